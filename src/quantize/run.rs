//! The stream: bands of rows in, every output's blocks out. Memory is bounded by the band, not by
//! the model.
//!
//! While a band is read and quantized, the blocks of the one before are written.

use super::plan::{Plan, PlannedOutput, PlannedTensor, Source};
use super::rounded::Rounded;
use super::{Error, Result};
use crate::feedback::{Feedback, Inputs, Proof, Proved, RowFactor};
use crate::format::gguf::Writer;
use crate::format::types::GgmlType;
use crate::input::Input;
use crate::plan::recipe::Problem;
use crate::progress::{Progress, Unit};
use crate::quant::Codec;
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Weights that are read, quantized and written at a time (one row at least).
const BAND_WEIGHTS: u64 = 8 << 20;
/// Weights that one thread takes at a time (one row at least): small enough to stay in its cache.
const TASK_WEIGHTS: u64 = 64 << 10;
/// Rows that one thread takes at a time with error feedback: as many as share one reading of the
/// factor.
const FEEDBACK_ROWS: usize = 128;

impl Plan<'_> {
    /// Writes every output. Each appears under its name only when it is complete. Returns what
    /// rounding with error feedback did, for each output, tensor by tensor.
    pub fn run(&self, progress: &dyn Progress) -> Result<Vec<Vec<Proved>>> {
        let missing: Vec<_> = self
            .outputs
            .iter()
            .flat_map(|o| o.imatrix_missing())
            .map(without_imatrix)
            .collect();
        if !missing.is_empty() {
            return Err(Error::Impossible(missing));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build()
            .map_err(|e| {
                Error::impossible(format!("cannot start {} threads: {e}", self.threads))
            })?;
        let mut inputs = self.input.paths();
        inputs.extend(self.imatrix_path.as_deref());
        let mut sinks = Vec::new();
        for output in &self.outputs {
            sinks.push(Sink::new(output, open(output, &inputs)?));
        }
        progress.begin(self.input_bytes(), Unit::Bytes);
        for (index, source) in self.tensors.iter().enumerate() {
            progress.at(&source.name);
            let from = From {
                index,
                source,
                input: self.input,
                feedback: self.feedback.as_ref(),
            };
            pool.install(|| stream(from, &mut sinks, progress))?;
        }
        sinks.iter_mut().try_for_each(Sink::flush)?;
        let proved = sinks
            .iter_mut()
            .map(|sink| std::mem::take(&mut sink.proved))
            .collect();
        // All or none: what can fail fails before the first output has its name.
        let mut writers: Vec<_> = sinks.into_iter().flat_map(|sink| sink.files).collect();
        writers.iter_mut().try_for_each(Writer::settle)?;
        writers.into_iter().try_for_each(Writer::finish)?;
        Ok(proved)
    }

    /// Rounds a whole tensor for one output as `inputs` of each of its matrices say, on all threads
    /// of the pool that this is called in: its blocks, and what was proved of them.
    pub(super) fn round(
        &self,
        index: usize,
        output: usize,
        inputs: &dyn Fn(usize) -> Result<Option<Arc<Inputs>>>,
        progress: &dyn Progress,
    ) -> Result<(Vec<u8>, Proof)> {
        let (source, planned) = (&self.tensors[index], &self.outputs[output].tensors[index]);
        let tensor = source.tensor;
        let path = self.input.path_of(tensor);
        let (mut blocks, mut band, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
        let mut proof = Proof::default();
        for (rows, matrix) in Bands::new(source, true) {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let inputs = inputs(matrix)?;
            let making = Making {
                target: planned.chosen.target,
                band: &mut band,
                feedback: inputs.is_some(),
                proof: &mut proof,
            };
            let raw = self.input.read(tensor, rows.clone(), &mut buffer)?;
            quantize_band(
                (source, inputs.as_deref()),
                path,
                raw,
                rows.start,
                vec![making],
                progress,
            )?;
            blocks.extend_from_slice(&band);
            self.input.release(tensor, rows);
        }
        Ok((blocks, proof))
    }

    /// Rounds a tensor of a single matrix for one output, with what is known of its inputs and of
    /// the gradients at what it makes: its blocks, and what was proved of them.
    pub(super) fn round_together(
        &self,
        index: usize,
        output: usize,
        (inputs, rows): (&Inputs, &RowFactor),
        progress: &dyn Progress,
    ) -> Result<(Vec<u8>, Proof)> {
        let (source, target) = (
            &self.tensors[index],
            self.outputs[output].tensors[index].chosen.target,
        );
        let tensor = source.tensor;
        let info = &tensor.info;
        let codecs = Codec::of(info.ggml_type).zip(Codec::of(target));
        let (decoder, codec) =
            codecs.ok_or_else(|| Error::impossible(format!("'{}' holds no weights", info.name)))?;
        let (mut weights, mut buffer) = (vec![0.0; info.shape.elements() as usize], Vec::new());
        let row_len = info.shape.row_len() as usize;
        for (some, _) in Bands::new(source, true) {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let raw = self.input.read(tensor, some.clone(), &mut buffer)?;
            check_input(source, self.input.path_of(tensor), decoder, raw, some.start)?;
            let [first, end] = [some.start, some.end].map(|row| row as usize * row_len);
            decoder.dequantize_row(raw, &mut weights[first..end]);
            self.input.release(tensor, some);
        }
        let mut blocks = vec![0; weights.len() / target.block_len() * target.block_bytes()];
        let proof = inputs.round_together(
            rows,
            codec,
            source.importance.as_deref(),
            &weights,
            &mut blocks,
        );
        check_output(source, codec, &blocks, 0)?;
        Ok((blocks, proof))
    }
}

/// Fails if a band's blocks hold what is no number.
fn check_input(
    source: &Source<'_>,
    path: &Path,
    decoder: &Codec,
    raw: &[u8],
    first_row: u64,
) -> Result<()> {
    let info = &source.tensor.info;
    let Some((block, fault)) = decoder.first_fault(raw) else {
        return Ok(());
    };
    let row =
        first_row + (block / (info.shape.row_len() as usize / info.ggml_type.block_len())) as u64;
    Err(Error::BadInput {
        path: path.to_owned(),
        tensor: info.name.to_string(),
        row,
        fault,
    })
}

/// Fails if what a band's rows have become is no number.
fn check_output(source: &Source<'_>, codec: &Codec, blocks: &[u8], first_row: u64) -> Result<()> {
    let Some((block, fault)) = codec.first_fault(blocks) else {
        return Ok(());
    };
    let per_row = source.tensor.info.shape.row_len() as usize / codec.ggml_type.block_len();
    let row = first_row + (block / per_row) as u64;
    Err(Error::Overflow {
        tensor: source.name.clone(),
        row,
        target: codec.ggml_type,
        fault,
    })
}

/// The rows of a tensor, a band at a time, with the number of the matrix that they begin in.
struct Bands {
    next: u64,
    rows: u64,
    rows_per_band: u64,
    rows_per_matrix: u64,
    matrices: u64,
    /// Whether no band reaches into a second matrix.
    apart: bool,
}

impl Bands {
    fn new(source: &Source<'_>, apart: bool) -> Bands {
        let info = &source.tensor.info;
        let ([row_len, rows_per_matrix, matrices, _], rows) =
            (info.shape.four(), info.shape.rows());
        Bands {
            next: 0,
            rows,
            rows_per_band: (BAND_WEIGHTS / row_len).clamp(1, rows),
            rows_per_matrix,
            matrices,
            apart,
        }
    }
}

impl Iterator for Bands {
    type Item = (Range<u64>, usize);

    fn next(&mut self) -> Option<(Range<u64>, usize)> {
        let first = self.next;
        if first >= self.rows {
            return None;
        }
        let matrix = first / self.rows_per_matrix;
        let mut end = (first + self.rows_per_band).min(self.rows);
        if self.apart {
            end = end.min((matrix + 1) * self.rows_per_matrix);
        }
        self.next = end;
        Some((first..end, (matrix % self.matrices) as usize))
    }
}

fn without_imatrix(tensor: &PlannedTensor) -> Problem {
    let target = tensor.chosen.target;
    Problem::of(
        &tensor.name,
        format!(
            "{target} needs an importance matrix (--imatrix FILE), which is missing or has nothing for these tensors"
        ),
    )
}

fn open(output: &PlannedOutput<'_>, inputs: &[&Path]) -> Result<Vec<Writer>> {
    let create = |(path, layout)| Ok(Writer::create(path, layout, inputs)?);
    output
        .paths()
        .map(std::path::PathBuf::as_path)
        .zip(output.layouts())
        .map(create)
        .collect()
}

/// One output on its way.
struct Sink<'p> {
    output: &'p PlannedOutput<'p>,
    files: Vec<Writer>,
    /// The blocks of the current band; stays empty where the type does not change.
    band: Vec<u8>,
    /// Those of the band before, which are not written yet, and the file that they belong to.
    ready: Vec<u8>,
    shard: usize,
    proved: Vec<Proved>,
}

impl<'p> Sink<'p> {
    fn new(output: &'p PlannedOutput<'p>, files: Vec<Writer>) -> Sink<'p> {
        Sink {
            output,
            files,
            band: Vec::new(),
            ready: Vec::new(),
            shard: 0,
            proved: Vec::new(),
        }
    }

    /// What a tensor becomes here.
    fn target(&self, index: usize) -> GgmlType {
        self.output.tensors[index].chosen.target
    }

    /// Those blocks of a tensor that are there already.
    fn rounded(&self, index: usize) -> Option<&'p Rounded> {
        let planned = &self.output.tensors[index];
        self.output
            .rounded
            .as_ref()
            .filter(|rounded| rounded.has(&planned.name))
    }

    /// Whether errors of a tensor are fed back here.
    fn feeds_back(&self, index: usize) -> bool {
        self.output.tensors[index].has_feedback && self.rounded(index).is_none()
    }

    /// Adds what was proved of some rows of a tensor.
    fn prove(&mut self, index: usize, proof: &Proof) {
        let planned = &self.output.tensors[index];
        match self
            .proved
            .last_mut()
            .filter(|last| last.tensor == planned.name)
        {
            Some(last) => last.proof.add(proof),
            None => {
                let (tensor, ggml_type) = (planned.name.clone(), planned.chosen.target);
                self.proved.push(Proved {
                    tensor,
                    ggml_type,
                    proof: *proof,
                });
            }
        }
    }

    /// Writes what is ready.
    fn flush(&mut self) -> Result<()> {
        write_ready(&mut self.files, self.shard, &mut self.ready)
    }
}

fn write_ready(files: &mut [Writer], shard: usize, ready: &mut Vec<u8>) -> Result<()> {
    if !ready.is_empty() {
        files[shard].write(ready)?;
        ready.clear();
    }
    Ok(())
}

/// A tensor on its way.
#[derive(Clone, Copy)]
struct From<'f> {
    /// Its number in every output.
    index: usize,
    source: &'f Source<'f>,
    input: &'f Input<'f>,
    feedback: Option<&'f Feedback>,
}

/// A band of one output that is being made.
struct Making<'b> {
    target: GgmlType,
    band: &'b mut Vec<u8>,
    /// Whether errors are fed back.
    feedback: bool,
    proof: &'b mut Proof,
}

/// Streams one tensor. The last band stays ready, to be written beside the next tensor's first.
fn stream(from: From<'_>, sinks: &mut [Sink<'_>], progress: &dyn Progress) -> Result<()> {
    let From {
        index,
        source,
        input,
        feedback,
    } = from;
    let info = &source.tensor.info;
    let row_len = info.shape.row_len();
    let path = input.path_of(source.tensor);
    let feedback = feedback.filter(|_| sinks.iter().any(|sink| sink.feeds_back(index)));
    let mut buffer = Vec::new();
    // Each matrix has inputs of its own.
    for (rows, matrix) in Bands::new(source, feedback.is_some()) {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let inputs = match feedback {
            Some(feedback) => feedback.inputs(&info.name, matrix, row_len as usize)?,
            None => None,
        };
        let (mut before, mut now, mut given) = (Vec::new(), Vec::new(), Vec::new());
        let mut proofs = vec![Proof::default(); sinks.len()];
        for (sink, proof) in sinks.iter_mut().zip(&mut proofs) {
            let (target, feedback) = (sink.target(index), sink.feeds_back(index));
            match sink.rounded(index) {
                Some(rounded) => {
                    let row_bytes = target.row_bytes(row_len).unwrap_or(0);
                    sink.band
                        .resize((row_bytes * (rows.end - rows.start)) as usize, 0);
                    given.push((rounded, row_bytes * rows.start, &mut sink.band));
                    // Of the whole tensor.
                    if rows.start == 0 {
                        *proof = rounded.proof(&source.name).copied().unwrap_or_default();
                    }
                }
                None => now.push(Making {
                    target,
                    band: &mut sink.band,
                    feedback,
                    proof,
                }),
            }
            before.push((&mut sink.files, sink.shard, &mut sink.ready));
        }
        let (written, made) = rayon::join(
            || {
                before
                    .into_iter()
                    .try_for_each(|(files, shard, ready)| write_ready(files, shard, ready))
            },
            || {
                let raw = input.read(source.tensor, rows.clone(), &mut buffer)?;
                quantize_band(
                    (source, inputs.as_deref()),
                    path,
                    raw,
                    rows.start,
                    now,
                    progress,
                )?;
                given
                    .into_iter()
                    .try_for_each(|(rounded, at, band)| rounded.read(&source.name, at, band))?;
                Ok::<_, Error>(raw)
            },
        );
        written?;
        let raw = made?;
        for (sink, proof) in sinks.iter_mut().zip(&proofs) {
            sink.shard = sink.output.tensors[index].shard;
            if sink.target(index) == info.ggml_type {
                sink.files[sink.shard].write(raw)?;
            } else {
                std::mem::swap(&mut sink.band, &mut sink.ready);
            }
            if proof.rows > 0 {
                sink.prove(index, proof);
            }
        }
        progress.advance(raw.len() as u64);
        input.release(source.tensor, rows);
    }
    Ok(())
}

/// Checks a band's weights and quantizes them for every output that wants another type, in parallel
/// over rows.
fn quantize_band(
    (source, inputs): (&Source<'_>, Option<&Inputs>),
    path: &Path,
    raw: &[u8],
    first_row: u64,
    mut outputs: Vec<Making<'_>>,
    progress: &dyn Progress,
) -> Result<()> {
    let info = &source.tensor.info;
    let row_len = info.shape.row_len() as usize;
    let row_bytes = (info.bytes() / info.shape.rows()) as usize;
    // Integers have no codec: nothing about them can be wrong, and the plan only copies them.
    let Some(decoder) = Codec::of(info.ggml_type) else {
        return Ok(());
    };
    let fed_back = inputs.is_some() && outputs.iter().any(|output| output.feedback);
    let task_rows = if fed_back {
        FEEDBACK_ROWS
    } else {
        (TASK_WEIGHTS as usize / row_len).max(1)
    };

    let mut tasks: Vec<Task<'_>> = raw
        .chunks(task_rows * row_bytes)
        .enumerate()
        .map(|(i, raw)| Task {
            raw,
            first_row: first_row + (i * task_rows) as u64,
            outputs: Vec::new(),
        })
        .collect();
    for (
        number,
        Making {
            target,
            band,
            feedback,
            ..
        },
    ) in outputs.iter_mut().enumerate()
    {
        let Some(codec) = Codec::of(*target).filter(|_| *target != info.ggml_type) else {
            continue;
        };
        let out_row_bytes = row_len / target.block_len() * target.block_bytes();
        band.resize(raw.len() / row_bytes * out_row_bytes, 0);
        let inputs = inputs.filter(|_| *feedback);
        for (task, rows) in tasks
            .iter_mut()
            .zip(band.chunks_mut(task_rows * out_row_bytes))
        {
            task.outputs.push(Rows {
                number,
                codec,
                inputs,
                rows,
            });
        }
    }
    let worker = || vec![0.0f32; task_rows * row_len];
    // A band can take a minute in the slowest types: who wants to stop is heard between tasks.
    let done: Result<Vec<Vec<(usize, Proof)>>> = tasks
        .into_par_iter()
        .map_init(worker, |weights, task| match progress.cancelled() {
            true => Err(Error::Cancelled),
            false => task.run(source, path, decoder, weights),
        })
        .collect();
    // In the order of the rows, so that sums do not depend on threads.
    for (number, proof) in done?.into_iter().flatten() {
        outputs[number].proof.add(&proof);
    }
    Ok(())
}

/// Rows of one output that are to be made.
struct Rows<'t> {
    /// The number of the output.
    number: usize,
    codec: &'static Codec,
    /// With what is known of these inputs; else as the reference rounds.
    inputs: Option<&'t Inputs>,
    rows: &'t mut [u8],
}

/// A few rows that one thread quantizes for all outputs.
struct Task<'t> {
    raw: &'t [u8],
    first_row: u64,
    outputs: Vec<Rows<'t>>,
}

impl Task<'_> {
    fn run(
        self,
        source: &Source<'_>,
        path: &Path,
        decoder: &Codec,
        weights: &mut [f32],
    ) -> Result<Vec<(usize, Proof)>> {
        let info = &source.tensor.info;
        let [row_len, rows_per_matrix, matrices, _] = info.shape.four();
        let row_len = row_len as usize;
        check_input(source, path, decoder, self.raw, self.first_row)?;
        if self.outputs.is_empty() {
            return Ok(Vec::new());
        }
        let n_weights = self.raw.len() / info.ggml_type.block_bytes() * info.ggml_type.block_len();
        let weights = &mut weights[..n_weights];
        decoder.dequantize_row(self.raw, weights);
        let importance = |row: usize| {
            let matrix = (self.first_row + row as u64) / rows_per_matrix % matrices;
            source
                .importance
                .as_deref()
                .map(|all| &all[matrix as usize * row_len..][..row_len])
        };
        // The same for all outputs.
        let power = self
            .outputs
            .iter()
            .find_map(|rows| rows.inputs)
            .map_or(0.0, |inputs| inputs.power(weights));
        let mut proofs = Vec::new();
        for Rows {
            number,
            codec,
            inputs,
            rows: out,
        } in self.outputs
        {
            match inputs {
                // All of one matrix.
                Some(inputs) => {
                    proofs.push((
                        number,
                        Proof {
                            power,
                            ..inputs.round(codec, importance(0), weights, out)
                        },
                    ));
                }
                None => {
                    let out_row_bytes = out.len() / (n_weights / row_len);
                    let rows = weights
                        .chunks_exact(row_len)
                        .zip(out.chunks_exact_mut(out_row_bytes));
                    rows.enumerate()
                        .for_each(|(i, (x, y))| codec.quantize_row(x, importance(i), y));
                }
            }
            check_output(source, codec, out, self.first_row)?;
        }
        Ok(proofs)
    }
}
