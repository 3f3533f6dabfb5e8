//! Measurement of models on sequences: scores all scored rows of logits of every sequence, on the
//! engine's threads.
//!
//! ```text
//! Measured::new    runs the layers over all sequences; keeps the activations of the scored rows
//! nll, compare     one sweep over the sequences: logits of a few rows at a time are computed,
//!                  scored and discarded; those of the base once for all compared models
//! ```

use super::score::{self, Comparison, Distribution};
use super::sequences::{Sequence, Sequences};
use super::windows::Windows;
use crate::model::{self, Engine, Head, Hidden, LOGIT_ROWS, Rows};
use quantier_core::progress::{Progress, Unit};
use quantier_gguf::logits::{self as stored, Logits, Shape};
use rayon::prelude::*;
use std::ops::Range;

/// Errors of a measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model could not be run.
    #[error("{model}: {error}")]
    Model {
        /// The model.
        model: String,
        /// The error.
        error: model::Error,
    },
    /// Logits that are not finite, computed from finite activations.
    #[error(
        "{model}: chunk {chunk}, scored row {row}: {error}. What the layers make is finite: the norm behind the last \
         one, or the output matrix, is damaged"
    )]
    NotFinite {
        /// The model.
        model: String,
        /// The chunk, counted from 0.
        chunk: usize,
        /// The row, counted from the first scored one.
        row: usize,
        /// The logit.
        error: score::Error,
    },
    /// A row of logits that cannot be used for another reason.
    #[error("{model}: chunk {chunk}, scored row {row}: {error}")]
    Row {
        /// The model, or the logits file.
        model: String,
        /// The chunk, counted from 0.
        chunk: usize,
        /// The row, counted from the first scored one.
        row: usize,
        /// The error.
        error: score::Error,
    },
    /// An embedding without a direction.
    #[error(
        "{model}: the embedding of text {text} is zero or not finite; the model is damaged, or its numbers are too large \
         for f32"
    )]
    Embedding {
        /// The model.
        model: String,
        /// The text, counted from 0.
        text: usize,
    },
    /// Embeddings that cannot be compared.
    #[error(
        "the embeddings of {base} and {other} differ in number or length; compare models of one family with the same pooling"
    )]
    Embeddings {
        /// The base model.
        base: String,
        /// The other model.
        other: String,
    },
    /// A logits file could not be read or written.
    #[error(transparent)]
    File(#[from] quantier_gguf::Error),
    /// Cancelled.
    #[error("stopped")]
    Cancelled,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// A model with the activations of its layers on the sequences.
pub struct Measured<'e> {
    name: String,
    engine: &'e Engine<'e>,
    hidden: Hidden,
}

/// The base of a comparison.
pub enum Base<'e> {
    /// A model: full f32 logits.
    Model(Measured<'e>),
    /// Log-probabilities in a file, 16 bits each.
    Stored {
        /// Name of the file in messages.
        name: String,
        /// The file; its first chunks are the sequences.
        logits: &'e Logits,
    },
}

/// Destination of a model's encoded rows of logits, if they are saved.
pub type Save<'s> = Option<&'s mut stored::Writer>;

impl<'e> Measured<'e> {
    /// Runs all layers of a model over all sequences. `name` identifies it in errors.
    ///
    /// # Errors
    /// Errors of [`Engine::run_each`], with the model's name.
    pub fn new(
        name: String,
        engine: &'e Engine<'e>,
        sequences: &Sequences,
        progress: &dyn Progress,
    ) -> Result<Measured<'e>> {
        let all = sequences.all().iter();
        let (chunks, keep): (Vec<_>, Vec<_>) = all
            .map(|sequence| (sequence.tokens().to_vec(), sequence.span()))
            .unzip();
        match engine.run_each(&chunks, &keep, None, progress) {
            Ok(hidden) => Ok(Measured {
                name,
                engine,
                hidden,
            }),
            Err(error) => Err(Error::Model { model: name, error }),
        }
    }

    /// Bytes of activations in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.hidden.memory_bytes()
    }

    fn head(&self) -> Result<Output<'_>> {
        Ok(Output {
            measured: self,
            head: self.engine.head().map_err(|e| self.failed(e))?,
        })
    }

    fn failed(&self, error: model::Error) -> Error {
        Error::Model {
            model: self.name.clone(),
            error,
        }
    }
}

/// A model with its output matrix widened.
struct Output<'m> {
    measured: &'m Measured<'m>,
    head: Head<'m>,
}

impl Output<'_> {
    /// The stored activations of a sequence's scored rows.
    fn rows(&self, chunk: usize, sequence: &Sequence) -> Result<Rows> {
        let span = self.measured.hidden.rows_of(chunk);
        let span = span.map_err(|e| self.measured.failed(e))?;
        let (targets, first) = (sequence.targets(), sequence.span().start as u32);
        if targets.len() == span.len() {
            return Ok(span);
        }
        let rows: Vec<u32> = targets.iter().map(|t| t.position - first).collect();
        Ok(span.select(&rows))
    }

    /// Logits of a range of rows: `[rows * n_vocab]`.
    fn logits(&self, rows: &Rows, chunk: usize, range: &Range<usize>) -> Result<Vec<f32>> {
        let logits = self.head.logits(&rows.range(range.clone()), chunk, None);
        let logits = logits.map_err(|e| self.measured.failed(e))?;
        Ok(logits.into_numbers())
    }

    fn bad(&self, chunk: usize, row: usize, error: score::Error) -> Error {
        let model = self.measured.name.clone();
        match error {
            score::Error::NotFinite { .. } => Error::NotFinite {
                model,
                chunk,
                row,
                error,
            },
            error => Error::Row {
                model,
                chunk,
                row,
                error,
            },
        }
    }
}

/// The -ln p of all scored tokens, in nats, by row.
///
/// # Errors
/// Logits that are not finite, a label outside the vocabulary, a logits file that cannot be
/// written, cancellation.
pub fn nll(
    measured: &Measured<'_>,
    sequences: &Sequences,
    save: Save<'_>,
    progress: &dyn Progress,
) -> Result<Vec<f64>> {
    let output = measured.head()?;
    let saving = save.as_ref().map(|writer| writer.row_bytes());
    let mut sweep = Sweep {
        sequences,
        engine: measured.engine,
        save,
        progress,
    };
    progress.begin(sequences.all().len() as u64, Unit::Steps);
    let mut all = Vec::with_capacity(sequences.rows());
    sweep.run(
        |chunk, sequence| {
            let (rows, targets) = (output.rows(chunk, sequence)?, sequence.targets());
            let block = |range: Range<usize>| -> Result<(Vec<f64>, Vec<u8>)> {
                let logits = output.logits(&rows, chunk, &range)?;
                let n_vocab = logits.len() / range.len();
                let (mut nll, mut saved) = (Vec::with_capacity(range.len()), Vec::new());
                for (row, logits) in range.zip(logits.chunks_exact(n_vocab)) {
                    let at = |error| output.bad(chunk, row, error);
                    let distribution = Distribution::of_logits(logits).map_err(at)?;
                    nll.push(distribution.nll(targets[row].label).map_err(at)?);
                    encode(&distribution, saving, &mut saved);
                }
                Ok((nll, saved))
            };
            let blocks: Result<Vec<_>> = blocks(targets.len()).map(block).collect();
            let (nll, saved): (Vec<_>, Vec<_>) = blocks?.into_iter().unzip();
            Ok((nll.concat(), saved.concat()))
        },
        |nll| all.extend(nll),
    )?;
    Ok(all)
}

/// Compares every scored row of some models with the same row of their base. Results by model, then
/// by row.
///
/// Output matrices stay widened for as many models as the first one's `max_memory` allows, at least
/// one; the base's logits are computed once for all of these. `save` applies to a base that is a
/// model.
///
/// # Errors
/// Logits that are not finite, vocabularies of different sizes, a logits file that cannot be read
/// or written, cancellation.
pub fn compare(
    base: &Base<'_>,
    models: &[Measured<'_>],
    sequences: &Sequences,
    mut save: Save<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Comparison>>> {
    let Some(first) = models.first() else {
        return Ok(Vec::new());
    };
    let base = match base {
        Base::Model(measured) => BaseRows::Model(Box::new(measured.head()?)),
        Base::Stored { name, logits } => BaseRows::Stored(name, logits),
    };
    let group = group_size(&base, models);
    progress.begin(
        (sequences.all().len() * models.len().div_ceil(group)) as u64,
        Unit::Steps,
    );
    let mut all = vec![Vec::with_capacity(sequences.rows()); models.len()];
    for (models, all) in models.chunks(group).zip(all.chunks_mut(group)) {
        let outputs = models
            .iter()
            .map(Measured::head)
            .collect::<Result<Vec<_>>>()?;
        // The base's rows are the same for every group; the first group saves them.
        let save = save.take();
        let saving = match (&base, &save) {
            (BaseRows::Model(_), Some(writer)) => Some(writer.row_bytes()),
            _ => None,
        };
        let mut sweep = Sweep {
            sequences,
            engine: first.engine,
            save,
            progress,
        };
        sweep.run(
            |chunk, sequence| compare_chunk(&base, &outputs, chunk, sequence, saving),
            |found| {
                all.iter_mut()
                    .zip(found)
                    .for_each(|(all, found)| all.extend(found))
            },
        )?;
    }
    Ok(all)
}

/// Source of the base's rows: a model or a file.
enum BaseRows<'m> {
    Model(Box<Output<'m>>),
    Stored(&'m str, &'m Logits),
}

/// Results of a sequence: comparisons by model, and the base's encoded rows if they are saved.
type Compared = (Vec<Vec<Comparison>>, Vec<u8>);

fn compare_chunk(
    base: &BaseRows<'_>,
    outputs: &[Output<'_>],
    chunk: usize,
    sequence: &Sequence,
    saving: Option<usize>,
) -> Result<Compared> {
    let targets = sequence.targets();
    let base = match base {
        BaseRows::Model(output) => BaseChunk::Model(output, output.rows(chunk, sequence)?),
        BaseRows::Stored(name, logits) => BaseChunk::Stored(name, logits),
    };
    let hidden = outputs
        .iter()
        .map(|output| output.rows(chunk, sequence))
        .collect::<Result<Vec<_>>>()?;
    let block = |range: Range<usize>| -> Result<Compared> {
        let values = base.values(chunk, &range)?;
        let base_rows = base.distributions(&values, chunk, &range)?;
        let mut saved = Vec::new();
        base_rows
            .iter()
            .for_each(|row| encode(row, saving, &mut saved));
        let one = |(output, hidden): (&Output<'_>, &Rows)| -> Result<Vec<Comparison>> {
            let logits = output.logits(hidden, chunk, &range)?;
            let rows = range
                .clone()
                .zip(logits.chunks_exact(logits.len() / range.len()));
            let compare = |((row, logits), base): ((usize, &[f32]), &Distribution<'_>)| {
                Distribution::of_logits(logits)
                    .and_then(|found| score::compare(base, &found, targets[row].label))
                    .map_err(|error| output.bad(chunk, row, error))
            };
            rows.zip(&base_rows).map(compare).collect()
        };
        Ok((
            outputs
                .iter()
                .zip(&hidden)
                .map(one)
                .collect::<Result<_>>()?,
            saved,
        ))
    };
    let mut all = vec![Vec::with_capacity(targets.len()); outputs.len()];
    let mut saved = Vec::new();
    for (found, rows) in blocks(targets.len())
        .map(block)
        .collect::<Result<Vec<_>>>()?
    {
        all.iter_mut()
            .zip(found)
            .for_each(|(all, found)| all.extend(found));
        saved.extend(rows);
    }
    Ok((all, saved))
}

/// Source of the base's rows of a chunk.
enum BaseChunk<'m> {
    Model(&'m Output<'m>, Rows),
    Stored(&'m str, &'m Logits),
}

impl BaseChunk<'_> {
    /// Logits or log-probabilities of a range of rows: `[rows * n_vocab]`.
    fn values(&self, chunk: usize, range: &Range<usize>) -> Result<Vec<f32>> {
        match self {
            BaseChunk::Model(output, hidden) => output.logits(hidden, chunk, range),
            BaseChunk::Stored(_, logits) => {
                let n_vocab = logits.shape().n_vocab as usize;
                let mut values = vec![0.0; range.len() * n_vocab];
                for (row, values) in range.clone().zip(values.chunks_exact_mut(n_vocab)) {
                    logits.row(chunk, row, values)?;
                }
                Ok(values)
            }
        }
    }

    fn distributions<'v>(
        &self,
        values: &'v [f32],
        chunk: usize,
        range: &Range<usize>,
    ) -> Result<Vec<Distribution<'v>>> {
        let one = |(row, values)| match self {
            BaseChunk::Model(output, _) => {
                Distribution::of_logits(values).map_err(|e| output.bad(chunk, row, e))
            }
            BaseChunk::Stored(name, _) => {
                Distribution::of_stored(values).map_err(|error| Error::Row {
                    model: (*name).to_owned(),
                    chunk,
                    row,
                    error,
                })
            }
        };
        range
            .clone()
            .zip(values.chunks_exact(values.len() / range.len()))
            .map(one)
            .collect()
    }
}

/// Number of models whose output matrices are widened at a time.
fn group_size(base: &BaseRows<'_>, models: &[Measured<'_>]) -> usize {
    let Some(max_memory) = models.first().and_then(|m| m.engine.max_memory()) else {
        return models.len();
    };
    let head = |m: &Measured<'_>| m.engine.head_bytes();
    let largest = models.iter().map(head).max().unwrap_or(0).max(1);
    let threads = models[0].engine.pool().current_num_threads() as u64;
    // Each thread holds a block of logits of the base and of one model.
    let logits = 2 * threads * (LOGIT_ROWS * models[0].engine.vocabulary() * 4) as u64;
    let base = match base {
        BaseRows::Model(output) => head(output.measured) + output.measured.memory_bytes(),
        BaseRows::Stored(..) => 0,
    };
    let taken = base + logits + models.iter().map(Measured::memory_bytes).sum::<u64>();
    (max_memory.saturating_sub(taken) / largest).clamp(1, models.len() as u64) as usize
}

/// Shape of a model's logits file for these windows.
pub fn shape(engine: &Engine<'_>, windows: &Windows<'_>) -> Shape {
    // Numbers too large are refused when the file is created.
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let [n_ctx, n_vocab, n_chunk] =
        [windows.n_ctx(), engine.vocabulary(), windows.chunks()].map(number);
    Shape {
        n_ctx,
        n_vocab,
        n_chunk,
    }
}

/// Appends an encoded row of `saving` bytes, if rows are saved.
fn encode(row: &Distribution<'_>, saving: Option<usize>, out: &mut Vec<u8>) {
    let Some(bytes) = saving else { return };
    let start = out.len();
    out.resize(start + bytes, 0);
    stored::encode(row.values(), row.log_z(), &mut out[start..]);
}

/// Blocks of [`LOGIT_ROWS`] rows, in parallel.
fn blocks(rows: usize) -> impl IndexedParallelIterator<Item = Range<usize>> {
    let block = move |i: usize| i * LOGIT_ROWS..((i + 1) * LOGIT_ROWS).min(rows);
    (0..rows.div_ceil(LOGIT_ROWS)).into_par_iter().map(block)
}

/// A loop over all sequences, in parallel batches, with ordered results.
struct Sweep<'s> {
    sequences: &'s Sequences,
    engine: &'s Engine<'s>,
    save: Save<'s>,
    progress: &'s dyn Progress,
}

impl Sweep<'_> {
    /// Calls `one` with every sequence on the engine's threads, and `done` with each result in order.
    fn run<T: Send>(
        &mut self,
        one: impl Fn(usize, &Sequence) -> Result<(T, Vec<u8>)> + Sync,
        mut done: impl FnMut(T),
    ) -> Result<()> {
        let (all, pool) = (self.sequences.all(), self.engine.pool());
        let chunks = all.len();
        self.progress.at("logits");
        for start in (0..chunks).step_by(pool.current_num_threads().max(1)) {
            if self.progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let batch = start..(start + pool.current_num_threads()).min(chunks);
            // Of several errors, that of the first sequence is returned.
            let one = |chunk: usize| one(chunk, &all[chunk]);
            let found: Vec<Result<_>> = pool.install(|| batch.into_par_iter().map(one).collect());
            for found in found {
                let (found, saved) = found?;
                if let Some(writer) = &mut self.save {
                    writer.write(&saved)?;
                }
                done(found);
                self.progress.advance(1);
            }
        }
        Ok(())
    }
}
