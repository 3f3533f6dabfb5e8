//! A model and the same model as it is being rounded, side by side through a text: layer by layer,
//! and within a layer step by step, so that what is rounded last is rounded for what it will meet.
//!
//! ```text
//! for each layer, for each of its steps:
//!   meet     every chunk up to the step in both models: what the step's matrices meet in the one and in the other
//!   round    the matrices of the step
//!   step     every chunk through the step, in the one model as it is, in the other as it is rounded
//! then the same for the output matrix
//! ```

use super::layer::{Before, Layer, Normalizer, Pass, STEPS, Step};
use super::states::States;
use super::{Engine, Error, Get, Put, Replaced, in_order};
use crate::progress::{Progress, Unit};
use candle_core::{D, Tensor};

/// Rounds a model while both go through a text.
pub trait Rounder: Sync {
    /// Why it cannot.
    type Error: From<Error> + Send;

    /// Whether any of these tensors will be rounded by what it meets. What none needs is not
    /// computed.
    fn wants(&self, tensors: &[String]) -> bool;

    /// Gives rows of a table as they are rounded, in place of the model's: `[rows.len(), columns]`.
    /// Called on several threads.
    ///
    /// # Errors
    /// Its own.
    fn rows(
        &self,
        table: &str,
        rows: &[u32],
        columns: usize,
        numbers: &mut [f32],
    ) -> Result<(), Self::Error>;

    /// What matrices are about to meet in a chunk, in the model as it is and in the rounded one:
    /// `[positions, columns]`. Called on several threads.
    fn meet(&self, chunk: usize, columns: usize, of_original: Vec<f32>, of_rounded: Vec<f32>);

    /// All chunks have met the matrices `met`, unless none of them was [wanted](Rounder::wants).
    /// Gives the weights of those that are rounded, and of those in `behind`, which meet what the
    /// former make.
    ///
    /// # Errors
    /// Its own.
    fn round(&self, met: &[String], behind: &[String]) -> Result<Vec<Replaced>, Self::Error>;

    /// How many layers a former run has done. If there are any, the activations `[positions,
    /// hidden]` behind them are handed to `put`: for each chunk those of the model as it is, then
    /// those of the rounded one.
    ///
    /// # Errors
    /// Its own.
    fn resume(&self, _put: Put<'_>) -> Result<usize, Self::Error> {
        Ok(0)
    }

    /// So many layers are done: the time to keep the activations, which `get` gives in the same
    /// order.
    ///
    /// # Errors
    /// Its own.
    fn keep(&self, _done: usize, _get: Get<'_>) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Both models: their activations, in front of some step.
struct Both<'e> {
    engine: &'e Engine<'e>,
    chunks: usize,
    positions: usize,
    /// For each chunk those of the model as it is, then those of the rounded one.
    streams: States,
    /// The same of what the next step's matrices meet, unless it follows from the streams.
    met: Option<States>,
    progress: &'e dyn Progress,
}

impl Engine<'_> {
    /// Takes chunks of tokens, all of one length, through this model and through the same as
    /// `rounder` rounds it.
    ///
    /// # Errors
    /// As [`Engine::run`], and those of `rounder`.
    pub fn propagate<R: Rounder>(
        &self,
        chunks: &[Vec<u32>],
        rounder: &R,
        progress: &dyn Progress,
    ) -> Result<(), R::Error> {
        let positions = chunks.first().map_or(0, Vec::len);
        if chunks.iter().any(|c| c.len() != positions) {
            return Err(Error::Model("chunks differ in length".into()).into());
        }
        let layers = self.hyper.layers;
        self.pool.install(|| {
            let len = positions * self.hyper.hidden;
            // Half of the room for what is met between the steps of a layer.
            let streams = States::new(
                2 * chunks.len(),
                len,
                self.propagation_budget(positions) / 2,
            )?;
            let mut both = Both {
                engine: self,
                chunks: chunks.len(),
                positions,
                streams,
                met: None,
                progress,
            };
            let done = rounder.resume(&mut |slot, x| both.streams.put(slot, x))?;
            if done == 0 {
                both.embed(chunks, rounder)?;
            }
            let (angles, windowed) = self.angles(positions)?;
            progress.begin((STEPS.len() * layers * chunks.len()) as u64, Unit::Steps);
            progress.advance((STEPS.len() * done * chunks.len()) as u64);
            for number in done..layers {
                progress.at(&format!("layer {} of {layers}", number + 1));
                let mut layer =
                    Layer::load(&self.weights, &self.hyper, number, &angles, &windowed)?;
                self.weights.prefetch_layer(number + 1);
                for step in STEPS {
                    let names = layer
                        .matrices(step)
                        .map(|all| all.iter().map(|m| m.name.clone()).collect::<Vec<_>>());
                    if rounder.wants(&names[0]) {
                        both.meet(rounder, &|slot| {
                            both.before(&layer, step, slot).map(|before| before.met)
                        })?;
                    }
                    let mut rounded = layer.clone();
                    for Replaced { name, weights } in rounder.round(&names[0], &names[1])? {
                        let of_step = rounded.matrices(step).into_iter().flatten();
                        for matrix in of_step.filter(|matrix| matrix.name == name) {
                            let weights = weights.as_slice();
                            let weight = Tensor::from_slice(
                                weights,
                                matrix.weight.dims(),
                                self.weights.device(),
                            );
                            matrix.weight = weight.map_err(Error::from)?;
                        }
                    }
                    both.step(number, [&layer, &rounded], step)?;
                }
                rounder.keep(number + 1, &|slot| both.streams.copy(slot))?;
            }
            let output = [self.output_name().to_owned()];
            if rounder.wants(&output) {
                progress.at("output");
                let norm = Normalizer::output(&self.weights, &self.hyper)?;
                let stream = |slot| both.tensor(both.streams.copy(slot)?);
                both.meet(rounder, &|slot| {
                    norm.as_ref()
                        .map_or_else(|| stream(slot), |norm| norm.apply(&stream(slot)?))
                })?;
            }
            rounder.round(&output, &[])?;
            Ok(())
        })
    }

    /// Bytes that activations may take beside a layer as it is and as it is rounded.
    fn propagation_budget(&self, positions: usize) -> u64 {
        let largest = self.weights.largest_layer(self.hyper.layers);
        self.layer_budget(positions)
            .saturating_sub(if self.max_memory.is_some() {
                largest
            } else {
                0
            })
    }
}

impl Both<'_> {
    fn embed<R: Rounder>(&self, chunks: &[Vec<u32>], rounder: &R) -> Result<(), R::Error> {
        in_order(chunks.len(), |chunk| {
            let rows = |table: &str, rows: &[u32], numbers: &mut [f32]| {
                rounder.rows(table, rows, self.engine.hyper.hidden, numbers)
            };
            self.streams
                .put(2 * chunk, self.engine.embed(&chunks[chunk])?)?;
            self.streams
                .put(2 * chunk + 1, self.engine.embed_rows(&chunks[chunk], rows)?)?;
            Ok(())
        })
    }

    /// A slot's activations `[positions, any]`.
    fn tensor(&self, numbers: Vec<f32>) -> super::Result<Tensor> {
        let shape = (self.positions, numbers.len() / self.positions.max(1));
        Ok(Tensor::from_vec(
            numbers,
            shape,
            self.engine.weights.device(),
        )?)
    }

    /// What is in front of a step.
    fn before(&self, layer: &Layer<'_>, step: Step, slot: usize) -> super::Result<Before> {
        let stream = self.tensor(self.streams.copy(slot)?)?;
        let met = match &self.met {
            Some(met) if !step.begins_a_block() => self.tensor(met.copy(slot)?)?,
            _ => layer.met(step, &stream)?,
        };
        Ok(Before { stream, met })
    }

    /// Shows what every chunk is about to meet.
    fn meet<R: Rounder>(
        &self,
        rounder: &R,
        met: &(dyn Fn(usize) -> super::Result<Tensor> + Sync),
    ) -> Result<(), R::Error> {
        in_order(self.chunks, |chunk| {
            if self.progress.cancelled() {
                return Err(Error::Cancelled.into());
            }
            let (of_original, of_rounded) = (met(2 * chunk)?, met(2 * chunk + 1)?);
            let columns = of_original.dim(D::Minus1).map_err(Error::from)?;
            let numbers =
                |x: Tensor| -> super::Result<Vec<f32>> { Ok(x.flatten_all()?.to_vec1()?) };
            rounder.meet(chunk, columns, numbers(of_original)?, numbers(of_rounded)?);
            Ok(())
        })
    }

    /// Takes every chunk through a step, in the model as it is and in the rounded one.
    fn step(&mut self, number: usize, layers: [&Layer<'_>; 2], step: Step) -> super::Result<()> {
        let hyper = &self.engine.hyper;
        let last = step == Step::Down;
        // Behind a step that a norm follows, the stream says everything.
        let put_aside = match step {
            Step::Attention => Some(hyper.heads * hyper.value_length),
            Step::Gate => Some(layers[0].gated_columns()),
            Step::Output | Step::Down => None,
        };
        let room = |columns: usize| {
            let budget = self.engine.propagation_budget(self.positions);
            let budget = budget.saturating_sub(self.streams.memory_bytes());
            States::new(2 * self.chunks, self.positions * columns, budget)
        };
        let next = put_aside.map(room).transpose()?;
        in_order(self.chunks, |chunk| {
            for (of, layer) in layers.into_iter().enumerate() {
                if self.progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                let slot = 2 * chunk + of;
                let split = self.engine.split(self.chunks);
                let pass = Pass {
                    chunk,
                    observer: None,
                    split,
                    probes: None,
                    progress: self.progress,
                };
                let Before { stream, met } =
                    layer.step(step, self.before(layer, step, slot)?, pass)?;
                if let Some(next) = &next {
                    next.put(slot, met.flatten_all()?.to_vec1()?)?;
                } else {
                    let stream = stream.flatten_all()?.to_vec1::<f32>()?;
                    if last && !stream.iter().fold(true, |all, y| all & y.is_finite()) {
                        return Err(Error::NotFinite {
                            layer: number,
                            chunk,
                        });
                    }
                    self.streams.put(slot, stream)?;
                }
            }
            self.progress.advance(1);
            Ok(())
        })?;
        self.met = next;
        Ok(())
    }
}
