//! Partial repetition of the forward pass with other weights.

use super::backward::Trace;
use super::{Changed, Engine, Hidden, LinearInput, Observer, Put, Replaced, Result, Tap};
use quantier_core::progress::Progress;
use std::sync::Arc;

/// An observer that starts the run at the input of a layer, taken from a trace.
struct From<'t> {
    trace: &'t Trace<'t>,
    layer: usize,
}

impl Tap for From<'_> {
    fn input(&self, _input: LinearInput<'_>) {}
}

impl Observer for From<'_> {
    fn resume(&self, put: Put<'_>) -> Result<usize> {
        if self.layer > 0 {
            (0..self.trace.chunks.len())
                .try_for_each(|chunk| put(chunk, self.trace.input(self.layer, chunk)?))?;
        }
        Ok(self.layer)
    }
}

impl<'a> Engine<'a> {
    /// The same model with other weights in some tensors, on the same thread pool.
    ///
    /// # Errors
    /// An unknown tensor, or a wrong number of weights.
    pub fn replacing(&self, replaced: &[Replaced]) -> Result<Engine<'a>> {
        Ok(Engine {
            hyper: self.hyper.clone(),
            spec: self.spec.clone(),
            weights: self.weights.replacing(replaced)?,
            pool: self.pool.clone(),
            max_memory: self.max_memory,
            reserved: self.reserved,
        })
    }

    /// The same model with other bytes in some tensors, on the same thread pool; bytes that were
    /// changed before are those of the file again.
    ///
    /// # Errors
    /// A wrong number of bytes.
    pub fn changing(&self, changed: Arc<Changed>) -> Result<Engine<'a>> {
        Ok(Engine {
            hyper: self.hyper.clone(),
            spec: self.spec.clone(),
            weights: self.weights.changing(changed)?,
            pool: self.pool.clone(),
            max_memory: self.max_memory,
            reserved: self.reserved,
        })
    }

    /// Runs the chunks of a trace from layer `first` on and keeps the activations of all positions.
    /// `trace` is of a model with the same weights before that layer. `first` = 0 starts at the
    /// embeddings; `first` = number of layers runs none.
    ///
    /// # Errors
    /// Those of [`Engine::run`].
    pub fn rerun(
        &self,
        trace: &Trace<'_>,
        first: usize,
        progress: &dyn Progress,
    ) -> Result<Hidden> {
        let from = From {
            trace,
            layer: first.min(self.hyper.runs()),
        };
        self.run(trace.chunks, 0..trace.positions, Some(&from), progress)
    }
}
