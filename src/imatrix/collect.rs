//! Collecting: what the matrices of a model meet when a text goes through it.

use super::collected;
use super::sums::{self, Sums};
use crate::model;
use crate::model::{Engine, Hidden, LOGIT_ROWS, Observer, Seen};
use crate::progress::Progress;
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Why nothing could be collected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be run.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// What a matrix met cannot be summed.
    #[error("chunk {chunk}: {error}")]
    Sums {
        /// The chunk, counted from 0.
        chunk: usize,
        /// What is wrong; it names the tensor and with it the layer.
        error: sums::Error,
    },
}

/// Sums of the squares of all that the matrices meet, and the activations behind the last layer.
///
/// `chunks` are the tokens, all of one length. The sums do not depend on threads: those of a layer are made for each
/// chunk, then added in the order of the chunks. With `process_output` the output matrix is watched too.
pub fn collect(
    engine: &Engine<'_>,
    chunks: &[Vec<u32>],
    process_output: bool,
    progress: &dyn Progress,
) -> Result<(Sums, Hidden), Error> {
    let collector = Collector {
        process_output,
        chunks: chunks.iter().map(|_| Mutex::default()).collect(),
        total: Mutex::default(),
        failed: Mutex::default(),
    };
    let positions = chunks.first().map_or(0, Vec::len);
    let hidden = engine.run(chunks, 0..positions, Some(&collector), progress)?;
    if process_output {
        let head = engine.head()?;
        engine.pool().install(|| {
            (0..chunks.len()).into_par_iter().try_for_each(|chunk| -> model::Result<()> {
                let rows = hidden.rows_of(chunk)?;
                for start in (0..positions).step_by(LOGIT_ROWS) {
                    let rows = rows.narrow(0, start, LOGIT_ROWS.min(positions - start))?;
                    head.logits(&rows, chunk, Some(&collector))?;
                }
                Ok(())
            })
        })?;
        collector.add_up();
    }
    match collector.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((chunk, error)) => Err(Error::Sums { chunk, error }),
        None => Ok((collector.total.into_inner().unwrap_or_else(PoisonError::into_inner), hidden)),
    }
}

struct Collector {
    process_output: bool,
    /// Sums of the current layer, by chunk.
    chunks: Vec<Mutex<Sums>>,
    total: Mutex<Sums>,
    /// The first failure by chunk.
    failed: Mutex<Option<(usize, sums::Error)>>,
}

impl Collector {
    fn fail(&self, chunk: usize, error: sums::Error) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.as_ref().is_none_or(|(first, _)| chunk < *first) {
            *failed = Some((chunk, error));
        }
    }

    /// Adds the chunks' sums to the total, in their order.
    fn add_up(&self) {
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        for (chunk, sums) in self.chunks.iter().enumerate() {
            let sums = std::mem::take(&mut *sums.lock().unwrap_or_else(PoisonError::into_inner));
            if let Err(error) = total.merge(&sums) {
                self.fail(chunk, error);
            }
        }
    }
}

impl Observer for Collector {
    fn input(&self, seen: Seen<'_>) {
        if seen.matrices == 1 && !collected(seen.name, self.process_output) {
            return;
        }
        let mut sums = self.chunks[seen.chunk].lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = sums.add_rows(seen.name, [seen.matrix, seen.matrices], seen.rows, seen.columns) {
            self.fail(seen.chunk, error);
        }
    }

    fn layer_done(&self, _: usize) {
        self.add_up();
    }
}
