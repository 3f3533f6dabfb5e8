//! A part of the forward pass once more, with other weights in some tensors.

use super::backward::Trace;
use super::{Engine, Hidden, LinearInput, Observer, Put, Replaced, Result, Tap};
use quantier_core::progress::Progress;

/// The observer that sees nothing and lets the run begin at the input of a layer, as a trace has
/// it.
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
    /// The same model with other weights in some tensors. It runs on the same threads.
    ///
    /// # Errors
    /// A tensor that the model has not, or as many weights as it has not.
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

    /// Takes the chunks of a trace through this model from layer `first` on, and keeps the
    /// activations of all positions. The trace is of a model that is the same before that layer;
    /// from the embedding on if `first` is 0, and no layer at all if it is the number of layers.
    ///
    /// # Errors
    /// As [`Engine::run`].
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
