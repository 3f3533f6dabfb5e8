//! A model on a text: each scored row of logits of every chunk, on the engine's threads.

use super::score::{self, Comparison, Distribution};
use super::windows::Windows;
use crate::model::{self, Engine, Head, Hidden, LOGIT_ROWS};
use crate::progress::Progress;
use candle_core::Tensor;
use rayon::prelude::*;

/// Why a model could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be run.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// A row of logits is unusable.
    #[error("chunk {chunk}, scored row {row}: {error}")]
    Row {
        /// The chunk, counted from 0.
        chunk: usize,
        /// The row, counted from the first one that is scored.
        row: usize,
        /// What is wrong.
        error: score::Error,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// The activations of the scored rows of every chunk.
pub fn hidden(engine: &Engine<'_>, windows: &Windows<'_>, progress: &dyn Progress) -> Result<Hidden> {
    let chunks: Vec<_> = (0..windows.chunks()).map(|chunk| windows.input(chunk)).collect();
    let first = windows.first_scored();
    Ok(engine.run(&chunks, first..first + windows.scored(), None, progress)?)
}

/// The -ln p of every scored token, in nats, chunk by chunk.
pub fn nll(engine: &Engine<'_>, windows: &Windows<'_>, progress: &dyn Progress) -> Result<Vec<f64>> {
    let hidden = hidden(engine, windows, progress)?;
    let head = engine.head()?;
    let one = |chunk: usize| -> Result<Vec<f64>> {
        let (rows, labels) = (hidden.take(chunk)?, windows.labels(chunk));
        let mut out = Vec::with_capacity(labels.len());
        for start in (0..labels.len()).step_by(LOGIT_ROWS) {
            let logits = block(&head, &rows, start, labels.len(), chunk)?;
            for (i, logits) in logits.iter().enumerate() {
                let at = |error| Error::Row { chunk, row: start + i, error };
                out.push(Distribution::of_logits(logits).and_then(|d| d.nll(labels[start + i])).map_err(at)?);
            }
        }
        Ok(out)
    };
    let chunks: Result<Vec<_>> = engine.pool().install(|| (0..windows.chunks()).into_par_iter().map(one).collect());
    Ok(chunks?.concat())
}

/// Every scored row of a model beside the same row of its base, chunk by chunk. Both have full f32 logits.
pub fn compare(
    (base, base_hidden): (&Engine<'_>, &Hidden),
    engine: &Engine<'_>,
    windows: &Windows<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Comparison>> {
    let hidden = hidden(engine, windows, progress)?;
    let (base_head, head) = (base.head()?, engine.head()?);
    let one = |chunk: usize| -> Result<Vec<Comparison>> {
        let (base_rows, rows, labels) = (base_hidden.rows_of(chunk)?, hidden.take(chunk)?, windows.labels(chunk));
        let mut out = Vec::with_capacity(labels.len());
        for start in (0..labels.len()).step_by(LOGIT_ROWS) {
            let base_logits = block(&base_head, &base_rows, start, labels.len(), chunk)?;
            let logits = block(&head, &rows, start, labels.len(), chunk)?;
            for (i, (base, logits)) in base_logits.iter().zip(&logits).enumerate() {
                let at = |error| Error::Row { chunk, row: start + i, error };
                let (base, row) =
                    (Distribution::of_logits(base).map_err(at)?, Distribution::of_logits(logits).map_err(at)?);
                out.push(score::compare(&base, &row, labels[start + i]).map_err(at)?);
            }
        }
        Ok(out)
    };
    let chunks: Result<Vec<_>> = engine.pool().install(|| (0..windows.chunks()).into_par_iter().map(one).collect());
    Ok(chunks?.concat())
}

/// The logits of a few rows.
fn block(head: &Head<'_>, rows: &Tensor, start: usize, end: usize, chunk: usize) -> Result<Vec<Vec<f32>>> {
    let count = LOGIT_ROWS.min(end - start);
    let logits = rows.narrow(0, start, count).map_err(model::Error::from)?;
    Ok(head.logits(&logits, chunk, None)?.to_vec2().map_err(model::Error::from)?)
}
