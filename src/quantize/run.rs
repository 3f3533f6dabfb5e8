//! Streaming: bands of rows are read, blocks of all outputs written. Memory is bounded by the band,
//! not by the model.
//!
//! While a band is read and quantized, the blocks of the previous one are written.

use super::plan::{Plan, PlannedOutput, PlannedTensor};
use super::rounded::Rounded;
use super::{Error, Result};
use crate::format::gguf::Writer;
use crate::format::reader::Band;
use crate::format::types::GgmlType;
use crate::input::Tensor;
use crate::plan::recipe::Problem;
use crate::progress::{Progress, Unit};
use crate::rounding::{Proof, Rounder, Target, TensorProof, Weights};
use quantier_core::threads;
use std::ops::Range;
use std::path::Path;

impl Plan<'_> {
    /// Writes every output, which gets its name when it is complete. Returns the proofs of error
    /// feedback, for each output and tensor.
    ///
    /// # Errors
    /// Missing importance weights, weights that cannot be rounded, files that cannot be read or
    /// written, cancellation.
    pub fn run(&self, progress: &dyn Progress) -> Result<Vec<Vec<TensorProof>>> {
        let missing: Vec<_> = self
            .outputs
            .iter()
            .flat_map(|o| o.imatrix_missing())
            .map(without_imatrix)
            .collect();
        if !missing.is_empty() {
            return Err(Error::Impossible(missing));
        }
        let needs_model = |output: &PlannedOutput<'_>| {
            let rounding = output.rounding;
            (rounding.is_sequential() || rounding.is_two_sided()) && output.rounded.is_none()
        };
        if self.outputs.iter().any(needs_model) {
            return Err(Error::impossible(
                "sequential and two-sided rounding must run before a file is written",
            ));
        }
        let pool = threads::pool(self.threads).map_err(Error::impossible)?;
        let mut inputs = self.input.paths();
        inputs.extend(self.imatrix_path.as_deref());
        let mut sinks = Vec::new();
        for output in &self.outputs {
            sinks.push(Sink::new(output, open(output, &inputs)?));
        }
        progress.begin(self.input_bytes(), Unit::Bytes);
        for (index, source) in self.tensors.iter().enumerate() {
            progress.at(&source.name);
            pool.install(|| stream(self, index, &mut sinks, progress))?;
        }
        sinks.iter_mut().try_for_each(Sink::flush)?;
        let proved = sinks
            .iter_mut()
            .map(|sink| std::mem::take(&mut sink.proved))
            .collect();
        // All or none: flush everything before the first output is renamed.
        let mut writers: Vec<_> = sinks.into_iter().flat_map(|sink| sink.files).collect();
        writers.iter_mut().try_for_each(Writer::settle)?;
        writers.into_iter().try_for_each(Writer::finish)?;
        Ok(proved)
    }

    /// Weights of a tensor.
    pub(super) fn weights(&self, index: usize) -> Weights<'_> {
        let source = &self.tensors[index];
        Weights {
            reader: self.input,
            tensor: source.tensor,
            name: &source.name,
            importance: source.importance.as_ref(),
        }
    }

    /// Rounder of a tensor for one output.
    pub(super) fn rounder(&self, index: usize, output: usize) -> Result<Rounder> {
        let planned = &self.outputs[output].tensors[index];
        self.outputs[output]
            .rounder(planned)
            .ok_or_else(|| Error::impossible(format!("'{}' holds no weights", planned.name)))
    }
}

impl PlannedOutput<'_> {
    /// The rounder of a tensor; `None` if its type holds no weights.
    fn rounder(&self, tensor: &PlannedTensor) -> Option<Rounder> {
        let row_len = tensor.shape.row_len() as usize;
        let rounder = Rounder::new(tensor.chosen.target, row_len)?;
        Some(match self.lossless {
            true => rounder.or_lossless(),
            false => rounder,
        })
    }
}

fn without_imatrix(tensor: &PlannedTensor) -> Problem {
    let target = tensor.chosen.target;
    Problem::of(
        &tensor.name,
        format!(
            "{target} needs an importance matrix (--imatrix FILE), which is missing or lacks these tensors"
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

/// State of one output.
struct Sink<'p> {
    output: &'p PlannedOutput<'p>,
    files: Vec<Writer>,
    /// Blocks of the current band; empty if the type does not change.
    band: Vec<u8>,
    /// Blocks of the previous band, not written yet, and the file that they belong to.
    ready: Vec<u8>,
    shard: usize,
    proved: Vec<TensorProof>,
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

    /// Type of a tensor in the output.
    fn target(&self, index: usize) -> GgmlType {
        self.output.tensors[index].chosen.target
    }

    /// Source of a tensor that is already rounded.
    fn rounded(&self, index: usize) -> Option<&'p Rounded> {
        let planned = &self.output.tensors[index];
        self.output
            .rounded
            .as_ref()
            .filter(|rounded| rounded.has(&planned.name))
    }

    /// True if a tensor is still to be rounded with error feedback.
    fn has_feedback(&self, index: usize) -> bool {
        self.output.tensors[index].has_feedback && self.rounded(index).is_none()
    }

    /// Adds the proof for some rows of a tensor.
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
                self.proved.push(TensorProof {
                    tensor,
                    ggml_type,
                    proof: *proof,
                });
            }
        }
    }

    /// Writes pending blocks.
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

/// Streams one tensor. The last band stays pending, to be written beside the next tensor's first.
fn stream(
    plan: &Plan<'_>,
    index: usize,
    sinks: &mut [Sink<'_>],
    progress: &dyn Progress,
) -> Result<()> {
    let weights = plan.weights(index);
    let (reader, tensor) = (weights.reader, weights.tensor);
    let info = &tensor.info;
    let row_len = info.shape.row_len();
    let any_feedback = sinks.iter().any(|sink| sink.has_feedback(index));
    let hessians = plan.hessians.as_ref().filter(|_| any_feedback);
    let mut buffer = Vec::new();
    for (rows, matrix) in bands(tensor, hessians.is_some()) {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let inputs = match hessians {
            Some(hessians) => hessians.inputs(&info.name, matrix, row_len as usize)?,
            None => None,
        };
        let (mut before, mut targets, mut stored) = (Vec::new(), Vec::new(), Vec::new());
        let mut proofs = vec![Proof::default(); sinks.len()];
        for (sink, proof) in sinks.iter_mut().zip(&mut proofs) {
            let (target, feedback) = (sink.target(index), sink.has_feedback(index));
            let row_bytes = target.row_bytes(row_len).unwrap_or(0);
            let band_bytes = (row_bytes * (rows.end - rows.start)) as usize;
            match sink.rounded(index) {
                Some(rounded) => {
                    sink.band.resize(band_bytes, 0);
                    stored.push((rounded, row_bytes * rows.start, &mut sink.band));
                    // The proof covers the whole tensor.
                    if rows.start == 0 {
                        *proof = rounded.proof(weights.name).copied().unwrap_or_default();
                    }
                }
                None if target == info.ggml_type => {}
                None => {
                    let output = sink.output;
                    if let Some(rounder) = output.rounder(&output.tensors[index]) {
                        sink.band.resize(band_bytes, 0);
                        targets.push(Target {
                            rounder,
                            feedback,
                            blocks: &mut sink.band,
                            proof,
                        });
                    }
                }
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
                let bytes = reader.read(tensor, rows.clone(), &mut buffer)?;
                // Integers are copied without validation: all values are valid.
                if let Some(band) = Band::new(tensor, rows.start, bytes) {
                    weights.round_band(band, inputs.as_deref(), targets, progress)?;
                }
                stored
                    .into_iter()
                    .try_for_each(|(rounded, at, band)| rounded.read(weights.name, at, band))?;
                Ok::<_, Error>(bytes)
            },
        );
        written?;
        let bytes = made?;
        for (sink, proof) in sinks.iter_mut().zip(&proofs) {
            sink.shard = sink.output.tensors[index].shard;
            if sink.target(index) == info.ggml_type {
                sink.files[sink.shard].write(bytes)?;
            } else {
                std::mem::swap(&mut sink.band, &mut sink.ready);
            }
            if proof.rows > 0 {
                sink.prove(index, proof);
            }
        }
        progress.advance(bytes.len() as u64);
        reader.release(tensor, rows);
    }
    Ok(())
}

/// Bands of all rows of a tensor, each with the matrix of its first row; with `apart`, bands do not
/// cross matrices, which have different inputs.
fn bands(tensor: &Tensor<'_>, apart: bool) -> impl Iterator<Item = (Range<u64>, usize)> + use<> {
    let (rows, rows_per_matrix) = (tensor.info.shape.rows(), tensor.rows_per_matrix());
    let matrices = tensor.matrices();
    let step = if apart { rows_per_matrix } else { rows };
    let bands: Vec<_> = (0..rows)
        .step_by(step.max(1) as usize)
        .flat_map(|first| tensor.bands(first..first + step))
        .collect();
    bands.into_iter().map(move |rows| {
        let matrix = (rows.start / rows_per_matrix) as usize % matrices;
        (rows, matrix)
    })
}
