//! The stream: bands of rows in, the output's bytes out. Memory is bounded by the band, not by the
//! model.
//!
//! One thread writes while the others work on the next band. Where nothing changes, the writer gets
//! the mapped bytes themselves.

use super::checkpoint::Source;
use super::mean::{Read, mean, mean_magnitude};
use super::numbers::{
    apply, is_quiet_bf16, make_ternary, narrow, narrow_integers, quiet_bf16, rounding, same_type,
    widen,
};
use super::plan::{Plan, PlannedTensor};
use super::stored::Blocks;
use super::weights::{Numeric, Part, Stored, Weights};
use super::{Error, Result};
use crate::format::gguf::Writer;
use crate::format::safetensors::Dtype;
use crate::format::types::GgmlType;
use crate::progress::{Progress, Unit};
use quantier_core::threads;
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
    /// Mapped bytes that are not needed again once this is written: the file, and the range.
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
    ///
    /// # Errors
    /// If a file cannot be read or written, a weight is refused by `--check`, or the job is stopped.
    pub fn run(&self, progress: &dyn Progress) -> Result<()> {
        let pool = threads::pool(self.threads).map_err(Error::impossible)?;
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
            let (step, end) = (tensor.step(BAND_WEIGHTS), tensor.shape.elements());
            let mut start = 0;
            while start < end {
                if progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                let elements = start..end.min(start + step);
                start = elements.end;
                let buffer = buffers.try_recv().unwrap_or_default();
                let band = pool.install(|| self.band(tensor, elements, buffer))?;
                if bands.send(band).is_err() {
                    // The writer has failed and says why.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Elements of a tensor as they are in the output, whole rows of them, in the threads of the
    /// pool that this is called in.
    fn band(
        &self,
        tensor: &PlannedTensor,
        elements: Range<u64>,
        mut buffer: Vec<u8>,
    ) -> Result<Band> {
        let shard = tensor.shard;
        let stored = match &tensor.weights {
            Weights::Stored(stored) => stored,
            Weights::Computed(weights) => {
                let weights = &weights[elements.start as usize..elements.end as usize];
                buffer.resize(tensor.bytes_of(weights.len() as u64), 0);
                narrow(tensor.target, weights, &mut buffer);
                return Ok(Band {
                    bytes: Bytes::Made(buffer),
                    shard,
                    release: Vec::new(),
                });
            }
        };
        let release = self.mapped(tensor, elements.clone());
        self.check_lengths(stored, elements.clone())?;
        if let Some((file, range)) = self.unchanged(tensor, stored, elements.clone()) {
            return Ok(Band {
                bytes: Bytes::Mapped { file, range },
                shard,
                release,
            });
        }
        buffer.resize(tensor.bytes_of(elements.end - elements.start), 0);
        let step = tensor.step(TASK_WEIGHTS);
        let tasks = buffer.par_chunks_mut(tensor.bytes_of(step)).enumerate();
        tasks.try_for_each_init(Scratch::default, |scratch, (i, out)| {
            let start = elements.start + i as u64 * step;
            let task = start..elements.end.min(start + step);
            match self.is_copied_whole(tensor, stored, task.clone()) {
                _ if is_of_fp4(tensor.target) => self.repack(stored, task, out),
                _ if tensor.target == GgmlType::I32 => self.integers(tensor, stored, task, out),
                true => {
                    self.copy(stored, task, out);
                    Ok::<_, Error>(())
                }
                false => {
                    let start = task.start;
                    self.convert(tensor, stored, task, scratch)?;
                    self.check_range(tensor, start, &scratch.weights)?;
                    narrow(tensor.target, &scratch.weights, out);
                    Ok(())
                }
            }
        })?;
        Ok(Band {
            bytes: Bytes::Made(buffer),
            shard,
            release,
        })
    }

    /// Some rows, counted over all matrices, as bytes of the type that the tensor becomes: mapped
    /// bytes, or made in `buffer`. Uses the threads of the pool that this is called in.
    ///
    /// # Errors
    /// If a file has become shorter, or `--check` finds a weight that is no number.
    pub(crate) fn read<'b>(
        &'b self,
        tensor: &'b PlannedTensor,
        rows: Range<u64>,
        buffer: &'b mut Vec<u8>,
    ) -> Result<&'b [u8]> {
        let band = self.band(tensor, tensor.elements(rows), std::mem::take(buffer))?;
        Ok(match band.bytes {
            Bytes::Mapped { file, range } => &self.checkpoint.maps()[file].bytes()[range],
            Bytes::Made(bytes) => {
                *buffer = bytes;
                buffer
            }
        })
    }

    /// Tells the system that the sources of such rows are not needed again soon.
    pub(crate) fn release(&self, tensor: &PlannedTensor, rows: Range<u64>) {
        for (file, range) in self.mapped(tensor, tensor.elements(rows)) {
            self.checkpoint.maps()[file].release(range);
        }
    }

    /// The file of a tensor's first source; the first file where the tensor is computed.
    pub(crate) fn path_of(&self, tensor: &PlannedTensor) -> &Path {
        let source = tensor.weights.sources().next();
        let file = source.map_or(0, |source| self.checkpoint.tensors[source].file);
        self.checkpoint.maps()[file].path()
    }

    /// Where elements come from: files, and ranges of their bytes.
    fn mapped(&self, tensor: &PlannedTensor, elements: Range<u64>) -> Vec<(usize, Range<usize>)> {
        let Weights::Stored(stored) = &tensor.weights else {
            return Vec::new();
        };
        let in_file = |(part, elements): (&Part, Range<u64>)| {
            let source = self.source(part);
            (source.file, source.bytes(part.order.bounds(elements)))
        };
        stored.pieces(elements).map(in_file).collect()
    }

    /// Fails if a file that some elements come from has become shorter.
    fn check_lengths(&self, stored: &Stored, elements: Range<u64>) -> Result<()> {
        for (part, _) in stored.pieces(elements) {
            let source = self.source(part);
            let others = source.form.iter().flat_map(|form| form.files());
            for file in std::iter::once(source.file).chain(others) {
                self.checkpoint.maps()[file].check_length()?;
            }
        }
        Ok(())
    }

    fn source(&self, part: &Part) -> &Source {
        &self.checkpoint.tensors[part.source]
    }

    /// True if a part's numbers stay as they are, apart from their order.
    fn is_copied(&self, tensor: &PlannedTensor, part: &Part) -> bool {
        same_type(self.source(part).dtype) == Some(tensor.target)
            && part.numeric.is_empty()
            && self.source(part).form.is_none()
            && !self.check
    }

    fn is_copied_whole(&self, tensor: &PlannedTensor, stored: &Stored, task: Range<u64>) -> bool {
        let mut pieces = stored.pieces(task);
        pieces.all(|(part, _)| self.is_copied(tensor, part))
    }

    /// The bytes of a file that are the output's, where nothing changes.
    fn unchanged(
        &self,
        tensor: &PlannedTensor,
        stored: &Stored,
        elements: Range<u64>,
    ) -> Option<(usize, Range<usize>)> {
        let mut pieces = stored.pieces(elements);
        let (Some((part, elements)), None) = (pieces.next(), pieces.next()) else {
            return None;
        };
        if !self.is_copied(tensor, part) {
            return None;
        }
        let source = self.source(part);
        let range = source.bytes(part.order.contiguous(elements)?);
        let bytes = &self.checkpoint.maps()[source.file].bytes()[range.clone()];
        let intact = source.dtype != Dtype::Bf16
            || bytes
                .par_chunks(TASK_WEIGHTS as usize * 2)
                .all(is_quiet_bf16);
        intact.then_some((source.file, range))
    }

    /// Copies elements that only change places.
    fn copy(&self, stored: &Stored, elements: Range<u64>, mut out: &mut [u8]) {
        for (part, elements) in stored.pieces(elements) {
            let source = self.source(part);
            let width = source.dtype.bytes();
            let (here, rest) = out.split_at_mut((elements.end - elements.start) as usize * width);
            part.order
                .gather(self.checkpoint.data(source), width, elements, here);
            if source.dtype == Dtype::Bf16 {
                quiet_bf16(here);
            }
            out = rest;
        }
    }

    /// Narrows whole numbers to 32 bits.
    fn integers(
        &self,
        tensor: &PlannedTensor,
        stored: &Stored,
        elements: Range<u64>,
        mut out: &mut [u8],
    ) -> Result<()> {
        let first = elements.start;
        let mut raw = Vec::new();
        let mut done = 0;
        for (part, here) in stored.pieces(elements) {
            let source = self.source(part);
            let (count, width) = ((here.end - here.start) as usize, source.dtype.bytes());
            raw.resize(count * width, 0);
            let data = self.checkpoint.data(source);
            part.order.gather(data, width, here, &mut raw);
            let (numbers, rest) = out.split_at_mut(count * size_of::<i32>());
            if let Err((at, value)) = narrow_integers(source.dtype, &raw, numbers) {
                return Err(Error::BadWeight {
                    path: self.checkpoint.maps()[source.file].path().to_owned(),
                    tensor: source.name.clone(),
                    row: (first + done + at as u64) / tensor.unit(),
                    value,
                });
            }
            done += count as u64;
            out = rest;
        }
        Ok(())
    }

    /// Puts 4-bit floats into blocks; a part that is not of 4-bit floats has no such target.
    fn repack(&self, stored: &Stored, elements: Range<u64>, out: &mut [u8]) -> Result<()> {
        let mut place = 0;
        for (part, elements) in stored.pieces(elements) {
            let source = self.source(part);
            let Some(fp4) = source.form.as_ref().and_then(|form| form.fp4()) else {
                continue;
            };
            let group = fp4.kind().group();
            for run in part.order.runs(elements) {
                let groups = run.start / group..(run.start + run.len) / group;
                let count = (groups.end - groups.start) as usize;
                let blocks = Blocks { bytes: out, place };
                fp4.repack(self.checkpoint.maps(), groups, blocks)
                    .map_err(|fault| self.checkpoint.bad_scale(source, fault))?;
                place += count;
            }
        }
        Ok(())
    }

    /// The numbers of elements, before they are rounded to the output's type.
    pub(super) fn numbers(
        &self,
        tensor: &PlannedTensor,
        stored: &Stored,
        elements: Range<u64>,
    ) -> Result<Vec<f32>> {
        self.check_lengths(stored, elements.clone())?;
        let mut scratch = Scratch::default();
        self.convert(tensor, stored, elements, &mut scratch)?;
        Ok(scratch.weights)
    }

    /// Makes the numbers of elements in `scratch.weights`.
    fn convert(
        &self,
        tensor: &PlannedTensor,
        stored: &Stored,
        elements: Range<u64>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Scratch { raw, weights } = scratch;
        weights.resize((elements.end - elements.start) as usize, 0.0);
        let mut done = 0;
        for (part, here) in stored.pieces(elements.clone()) {
            let source = self.source(part);
            let count = (here.end - here.start) as usize;
            let weights = &mut weights[done..done + count];
            match part.order.contiguous(here.clone()) {
                Some(range) => self.checkpoint.numbers(source, range, weights)?,
                None if source.form.is_some() => self.read_runs(part, here, weights)?,
                None => {
                    let (data, width) = (self.checkpoint.data(source), source.dtype.bytes());
                    raw.resize(count * width, 0);
                    part.order.gather(data, width, here, raw);
                    widen(source.dtype, raw, weights);
                }
            }
            let mut dtype = source.dtype;
            for numeric in &part.numeric {
                match numeric {
                    Numeric::Widen => dtype = Dtype::F32,
                    Numeric::Ternary => {
                        let mean = self.mean_of(part, mean_magnitude)?;
                        make_ternary(mean, dtype, weights);
                    }
                    Numeric::Centred => {
                        let rounded = rounding(dtype);
                        let mean = self.mean_of(part, |count, read| mean(count, rounded, read))?;
                        weights.iter_mut().for_each(|w| *w = rounded(*w - mean));
                    }
                    numeric => apply(*numeric, dtype, weights),
                }
            }
            if self.check && !weights.iter().fold(true, |all, w| all & w.is_finite()) {
                let at = weights.iter().position(|w| !w.is_finite()).unwrap_or(0);
                return Err(Error::BadWeight {
                    path: self.checkpoint.maps()[source.file].path().to_owned(),
                    tensor: source.name.clone(),
                    row: (elements.start + (done + at) as u64) / tensor.unit(),
                    value: weights[at],
                });
            }
            done += count;
        }
        Ok(())
    }

    /// The mean of a whole tensor's numbers; `mean` gets their count and a reader.
    fn mean_of(&self, part: &Part, mean: impl FnOnce(u64, Read<'_>) -> f32) -> Result<f32> {
        if let Some(mean) = part.mean.get() {
            return Ok(*mean);
        }
        let source = self.source(part);
        let mut failed = None;
        let mean = mean(source.shape.iter().product(), &mut |at, out| {
            let elements = at..at + out.len() as u64;
            failed = self
                .checkpoint
                .numbers(source, elements, out)
                .err()
                .or(failed.take());
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(*part.mean.get_or_init(|| mean)),
        }
    }

    /// The numbers of a quantized tensor in another order than the file's.
    fn read_runs(&self, part: &Part, elements: Range<u64>, mut weights: &mut [f32]) -> Result<()> {
        let source = self.source(part);
        for run in part.order.runs(elements) {
            let (here, rest) = weights.split_at_mut(run.len as usize);
            match run.stride {
                1 => self
                    .checkpoint
                    .numbers(source, run.start..run.start + run.len, here)?,
                stride => {
                    for (i, weight) in here.iter_mut().enumerate() {
                        let at = run.start + i as u64 * stride;
                        let weight = std::slice::from_mut(weight);
                        self.checkpoint.numbers(source, at..at + 1, weight)?;
                    }
                }
            }
            weights = rest;
        }
        Ok(())
    }
}

/// True of blocks of 4-bit floats, which are never made of other numbers here.
fn is_of_fp4(target: GgmlType) -> bool {
    matches!(target, GgmlType::NVFP4 | GgmlType::MXFP4)
}

/// Memory that a thread keeps from task to task.
#[derive(Default)]
struct Scratch {
    raw: Vec<u8>,
    weights: Vec<f32>,
}
