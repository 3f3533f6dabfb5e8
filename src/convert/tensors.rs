//! The stream: bands of rows in, the output's bytes out. Memory is bounded by the band, not by the
//! model.
//!
//! One thread writes while the others work on the next band. Where nothing changes, the writer gets
//! the mapped bytes themselves.

use super::checkpoint::Source;
use super::numbers::{add_one, is_quiet_bf16, narrow, quiet_bf16, same_type, widen};
use super::plan::{Plan, PlannedTensor};
use super::scale::Scale;
use super::weights::{Part, View};
use super::{Error, Result};
use crate::format::gguf::Writer;
use crate::format::safetensors::Dtype;
use crate::progress::{Progress, Unit};
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Weights that are read, rounded and handed to the writer at a time (one row at least).
const BAND_WEIGHTS: u64 = 8 << 20;
/// Weights that one thread takes at a time (one row at least): small enough to stay in its cache.
const TASK_WEIGHTS: u64 = 64 << 10;
/// Bands that may wait for the writer.
const WAITING: usize = 1;

/// Bytes on their way to a file.
struct Band {
    bytes: Bytes,
    /// The file.
    shard: usize,
    /// Mapped bytes that are not needed any more once this is written: in which file, and where.
    release: Vec<(usize, Range<usize>)>,
}

enum Bytes {
    /// Those of a mapped file.
    Mapped {
        file: usize,
        range: Range<usize>,
    },
    Made(Vec<u8>),
}

impl Plan<'_> {
    /// Writes every file. Each appears under its name only when all are complete.
    pub fn run(&self, progress: &dyn Progress) -> Result<()> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build()
            .map_err(|e| {
                Error::impossible(format!("cannot start {} threads: {e}", self.threads))
            })?;
        let inputs = self.checkpoint.paths();
        let mut writers = Vec::new();
        for (path, layout) in self.paths().zip(self.layouts()) {
            writers.push(Writer::create(path, layout, &inputs)?);
        }
        progress.begin(self.tensor_bytes(), Unit::Bytes);
        let (to_writer, from_stream) = sync_channel::<Band>(WAITING);
        let (to_stream, from_writer) = sync_channel(WAITING + 2);
        let writers = std::thread::scope(|scope| {
            let writing = scope.spawn(|| self.write(writers, from_stream, to_stream, progress));
            let streamed = self.stream(&to_writer, &from_writer, &pool, progress);
            // The writer ends when nobody can send to it any more.
            drop(to_writer);
            let written = writing
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // If the writer failed first, its reason is the true one.
            written.and_then(|writers| streamed.map(|()| writers))
        })?;
        writers.into_iter().try_for_each(Writer::finish)?;
        Ok(())
    }

    /// The writer's thread. Gives the buffers back for reuse.
    fn write(
        &self,
        mut writers: Vec<Writer>,
        bands: Receiver<Band>,
        buffers: SyncSender<Vec<u8>>,
        progress: &dyn Progress,
    ) -> Result<Vec<Writer>> {
        for band in bands {
            let writer = &mut writers[band.shard];
            let count = match &band.bytes {
                Bytes::Mapped { file, range } => {
                    writer.copy(&self.checkpoint.maps()[*file], range.clone())?;
                    range.len()
                }
                Bytes::Made(bytes) => {
                    writer.write(bytes)?;
                    bytes.len()
                }
            };
            progress.advance(count as u64);
            for (file, range) in band.release {
                self.checkpoint.maps()[file].release(range);
            }
            if let Bytes::Made(buffer) = band.bytes {
                let _ = buffers.try_send(buffer);
            }
        }
        Ok(writers)
    }

    /// Works through all tensors, band by band.
    fn stream(
        &self,
        bands: &SyncSender<Band>,
        buffers: &Receiver<Vec<u8>>,
        pool: &rayon::ThreadPool,
        progress: &dyn Progress,
    ) -> Result<()> {
        for tensor in &self.tensors {
            progress.at(&tensor.name);
            let weights = &tensor.weights;
            let rows_per_band =
                (BAND_WEIGHTS / weights.row_len().max(1)).clamp(1, weights.rows().max(1));
            let mut row = 0;
            while row < weights.rows() {
                if progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                let rows = row..(row + rows_per_band).min(weights.rows());
                row = rows.end;
                let buffer = buffers.try_recv().unwrap_or_default();
                let band = pool.install(|| self.band(tensor, rows, buffer))?;
                if bands.send(band).is_err() {
                    // The writer has failed and says why.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Rows of a tensor as they are in the output, in the threads of the pool that this is called
    /// in.
    fn band(&self, tensor: &PlannedTensor, rows: Range<u64>, mut buffer: Vec<u8>) -> Result<Band> {
        let (weights, shard) = (&tensor.weights, tensor.shard);
        if weights.parts().is_empty() {
            let all = weights.generated_weights();
            let bytes = all[rows.start as usize..rows.end as usize]
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect();
            return Ok(Band {
                bytes: Bytes::Made(bytes),
                shard,
                release: Vec::new(),
            });
        }
        let release = self.mapped(tensor, rows.clone());
        release
            .iter()
            .try_for_each(|(file, _)| self.checkpoint.maps()[*file].check_length())?;
        let source = self.source(&weights.parts()[(rows.start / weights.rows_per_part()) as usize]);
        let is_plain =
            self.is_copied(tensor, source) && weights.view() == View::Rows && !self.check;
        if let ([(file, range)], true) = (&*release, is_plain) {
            let mapped = &self.checkpoint.maps()[*file].bytes()[range.clone()];
            let intact = source.dtype != Dtype::Bf16
                || mapped
                    .par_chunks(TASK_WEIGHTS as usize * 2)
                    .all(is_quiet_bf16);
            if intact {
                let bytes = Bytes::Mapped {
                    file: *file,
                    range: range.clone(),
                };
                return Ok(Band {
                    bytes,
                    shard,
                    release,
                });
            }
        }
        let row_bytes = tensor.target.row_bytes(tensor.shape.row_len()).unwrap_or(0)
            * weights.row_len()
            / tensor.shape.row_len();
        buffer.resize((rows.end - rows.start) as usize * row_bytes as usize, 0);
        let task_rows = (TASK_WEIGHTS / weights.row_len()).max(1);
        let tasks = buffer
            .par_chunks_mut((task_rows * row_bytes) as usize)
            .enumerate();
        tasks.try_for_each_init(Scratch::default, |scratch, (i, out)| {
            let start = rows.start + i as u64 * task_rows;
            let task = start..(start + task_rows).min(rows.end);
            self.convert(tensor, task, out, scratch)
        })?;
        Ok(Band {
            bytes: Bytes::Made(buffer),
            shard,
            release,
        })
    }

    /// Some rows, counted over all matrices, as bytes of the type that the tensor becomes: mapped
    /// bytes, or made in `buffer`. Uses the threads of the pool that this is called in.
    pub(crate) fn read<'b>(
        &'b self,
        tensor: &'b PlannedTensor,
        rows: Range<u64>,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8]> {
        let band = self.band(
            tensor,
            rows_of_weights(tensor, rows),
            std::mem::take(buffer),
        )?;
        Ok(match band.bytes {
            Bytes::Mapped { file, range } => &self.checkpoint.maps()[file].bytes()[range],
            Bytes::Made(bytes) => {
                *buffer = bytes;
                buffer
            }
        })
    }

    /// Tells the system that what such rows are made of is not needed again soon.
    pub(crate) fn release(&self, tensor: &PlannedTensor, rows: Range<u64>) {
        for (file, range) in self.mapped(tensor, rows_of_weights(tensor, rows)) {
            self.checkpoint.maps()[file].release(range);
        }
    }

    /// The file of a tensor's first part; the first one where it is computed.
    pub(crate) fn path_of(&self, tensor: &PlannedTensor) -> &Path {
        let file = tensor
            .weights
            .parts()
            .first()
            .map_or(0, |part| self.source(part).file);
        self.checkpoint.maps()[file].path()
    }

    /// Where rows come from: files, and ranges of their bytes.
    fn mapped(&self, tensor: &PlannedTensor, rows: Range<u64>) -> Vec<(usize, Range<usize>)> {
        if tensor.weights.parts().is_empty() {
            return Vec::new();
        }
        let in_file = |(part, rows): (usize, Range<u64>)| {
            let part = &tensor.weights.parts()[part];
            (
                self.source(part).file,
                self.mapped_range(tensor, part, rows),
            )
        };
        pieces(tensor.weights.rows_per_part(), rows)
            .into_iter()
            .map(in_file)
            .collect()
    }

    fn source(&self, part: &Part) -> &Source {
        &self.checkpoint.tensors[part.source]
    }

    /// Whether a tensor's numbers stay as they are, apart from their order.
    fn is_copied(&self, tensor: &PlannedTensor, source: &Source) -> bool {
        same_type(source.dtype) == Some(tensor.target)
            && tensor.weights.view() != View::PlusOne
            && tensor
                .weights
                .parts()
                .iter()
                .all(|part| part.scale.is_none())
    }

    /// Where rows of a part lie in its file; all of the part where the output reads columns.
    fn mapped_range(&self, tensor: &PlannedTensor, part: &Part, rows: Range<u64>) -> Range<usize> {
        let source = self.source(part);
        let row_bytes = tensor.weights.row_len() as usize * source.dtype.bytes();
        match tensor.weights.view() {
            View::Transposed => source.range.clone(),
            _ => {
                let start = source.range.start;
                start + rows.start as usize * row_bytes..start + rows.end as usize * row_bytes
            }
        }
    }

    /// Converts a few rows of the output.
    fn convert(
        &self,
        tensor: &PlannedTensor,
        rows: Range<u64>,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let row_bytes = out.len() / (rows.end - rows.start) as usize;
        let mut out = out;
        let first_row = rows.start;
        let mut done = 0;
        for (index, rows) in pieces(tensor.weights.rows_per_part(), rows) {
            let part = &tensor.weights.parts()[index];
            let count = rows.end - rows.start;
            let (here, rest) = out.split_at_mut(count as usize * row_bytes);
            self.convert_piece(tensor, part, rows, here, scratch)
                .map_err(|(row, value)| Error::BadWeight {
                    path: self.checkpoint.maps()[self.source(part).file]
                        .path()
                        .to_owned(),
                    tensor: self.source(part).name.clone(),
                    row: first_row + done + row,
                    value,
                })?;
            done += count;
            out = rest;
        }
        Ok(())
    }

    /// Converts rows of one part. Fails with the row, counted from the first of these, and the
    /// value that `--check` refuses.
    fn convert_piece(
        &self,
        tensor: &PlannedTensor,
        part: &Part,
        rows: Range<u64>,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> std::result::Result<(), (u64, f32)> {
        let source = self.source(part);
        let data = self.checkpoint.data(source);
        if self.is_copied(tensor, source) && !self.check {
            gather(tensor, source.dtype, data, rows, out);
            if source.dtype == Dtype::Bf16 {
                quiet_bf16(out);
            }
            return Ok(());
        }
        let row_len = tensor.weights.row_len() as usize;
        let n = (rows.end - rows.start) as usize * row_len;
        let width = source.dtype.bytes();
        let raw = match tensor.weights.view() {
            View::Rows | View::PlusOne => {
                &data[rows.start as usize * row_len * width..][..n * width]
            }
            View::Interleaved { .. } | View::Transposed => {
                scratch.raw.resize(n * width, 0);
                gather(tensor, source.dtype, data, rows.clone(), &mut scratch.raw);
                &scratch.raw
            }
        };
        scratch.weights.resize(n, 0.0);
        let weights = &mut scratch.weights[..n];
        widen(source.dtype, raw, weights);
        if let Some(scale) = &part.scale {
            self.apply_scale(tensor, scale, rows, weights);
        }
        if tensor.weights.view() == View::PlusOne {
            add_one(source.dtype, weights);
        }
        if self.check && !weights.iter().fold(true, |all, w| all & w.is_finite()) {
            let at = weights.iter().position(|w| !w.is_finite()).unwrap_or(0);
            return Err(((at / row_len) as u64, weights[at]));
        }
        narrow(tensor.target, weights, out);
        Ok(())
    }

    /// Multiplies rows by their scales.
    fn apply_scale(
        &self,
        tensor: &PlannedTensor,
        scale: &Scale,
        rows: Range<u64>,
        weights: &mut [f32],
    ) {
        let source = &self.checkpoint.tensors[scale.source];
        let (data, width) = (self.checkpoint.data(source), source.dtype.bytes());
        let row_len = tensor.weights.row_len() as usize;
        for (row, weights) in rows.zip(weights.chunks_exact_mut(row_len)) {
            let scale_row = tensor.weights.source_row(row) / scale.rows * scale.row_len;
            for (i, group) in weights.chunks_mut(scale.columns as usize).enumerate() {
                let mut factor = [0.0];
                widen(
                    source.dtype,
                    &data[(scale_row as usize + i) * width..][..width],
                    &mut factor,
                );
                group.iter_mut().for_each(|w| *w *= factor[0]);
            }
        }
    }
}

/// Memory that a thread keeps from task to task.
#[derive(Default)]
struct Scratch {
    raw: Vec<u8>,
    weights: Vec<f32>,
}

/// Rows of the output as parts and rows of these.
fn pieces(rows_per_part: u64, rows: Range<u64>) -> Vec<(usize, Range<u64>)> {
    let mut pieces = Vec::new();
    let mut row = rows.start;
    while row < rows.end {
        let (part, first) = (row / rows_per_part, row % rows_per_part);
        let count = (rows_per_part - first).min(rows.end - row);
        pieces.push((part as usize, first..first + count));
        row += count;
    }
    pieces
}

/// Rows of the output's shape, in which one dimension is one row, as rows of the weights, where it
/// is many.
fn rows_of_weights(tensor: &PlannedTensor, rows: Range<u64>) -> Range<u64> {
    let per_row = tensor.shape.row_len() / tensor.weights.row_len().max(1);
    rows.start * per_row..rows.end * per_row
}

/// Copies rows of the output out of the checkpoint's numbers, in the order of the view.
fn gather(tensor: &PlannedTensor, dtype: Dtype, data: &[u8], rows: Range<u64>, out: &mut [u8]) {
    let weights = &tensor.weights;
    let (row_len, width) = (weights.row_len() as usize, dtype.bytes());
    if weights.view() == View::Transposed {
        let columns = weights.rows_per_part() as usize;
        return transpose(data, columns, rows.start as usize, row_len, width, out);
    }
    let row_bytes = row_len * width;
    for (row, out) in rows.zip(out.chunks_exact_mut(row_bytes)) {
        out.copy_from_slice(&data[weights.source_row(row) as usize * row_bytes..][..row_bytes]);
    }
}

/// Turns columns, from `first` on, into rows of `row_len` numbers of `width` bytes.
fn transpose(
    data: &[u8],
    columns: usize,
    first: usize,
    row_len: usize,
    width: usize,
    out: &mut [u8],
) {
    let count = out.len() / (row_len * width);
    for (at, row) in data.chunks_exact(columns * width).enumerate() {
        for (i, number) in row[first * width..][..count * width]
            .chunks_exact(width)
            .enumerate()
        {
            out[(i * row_len + at) * width..][..width].copy_from_slice(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_output_are_found_in_their_parts() {
        assert_eq!(pieces(10, 8..23), [(0, 8..10), (1, 0..10), (2, 0..3)]);
        assert_eq!(pieces(10, 10..11), [(1, 0..1)]);
    }

    #[test]
    fn columns_become_rows() {
        // 2 rows of 3 columns of 2 bytes.
        let data = [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15];
        let mut out = [0; 8];
        transpose(&data, 3, 1, 2, 2, &mut out);
        assert_eq!(out, [2, 3, 12, 13, 4, 5, 14, 15]);
    }
}
