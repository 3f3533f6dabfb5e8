//! Sequential rounding: the unquantized and the rounded model run over a text in parallel, layer by
//! layer and within a layer stage by stage, so that each linear is calibrated on its input in the
//! rounded model.
//!
//! ```text
//! for each layer, for each stage of its mixers:
//!   input    the stage's input in both models, for every chunk
//!   round    the linears of the stage
//!   step     runs every chunk through the stage, in both models
//! then the same for the output matrix
//! ```

use super::layer::{Between, Layer, Place};
use super::linear::Pass;
use super::rows::Rows;
use super::states::States;
use super::{Engine, Error, Get, Put, Replaced, in_order};
use quantier_core::progress::{Progress, Unit};
use std::ops::Range;

/// Rounds the linears of a model in stage order.
pub trait SequentialRounder: Sync {
    /// Error of the rounder.
    type Error: From<Error> + Send;

    /// True if any of these linears will be rounded with statistics of its input. Inputs that no
    /// linear needs are not computed.
    fn wants(&self, tensors: &[String]) -> bool;

    /// Overwrites rows of a table with their rounded values: `[rows.len(), columns]`. Called on
    /// several threads.
    ///
    /// # Errors
    /// Those of the rounder.
    fn table_rows(
        &self,
        table: &str,
        rows: &[u32],
        columns: usize,
        numbers: &mut [f32],
    ) -> Result<(), Self::Error>;

    /// Takes the input of a stage for a chunk, in the unquantized and in the rounded model. Called
    /// on several threads.
    fn input(&self, chunk: usize, original: Rows, rounded: Rows);

    /// Rounds the linears of a stage, after its [`input`](SequentialRounder::input) for all chunks
    /// if [wanted](SequentialRounder::wants), and the linears in `inner`, whose inputs are computed
    /// within the stage. Returns the weights of the rounded linears.
    ///
    /// # Errors
    /// Those of the rounder.
    fn round(&self, linears: &[String], inner: &[String]) -> Result<Vec<Replaced>, Self::Error>;

    /// Number of layers done by an earlier run. If it is not 0, the activations after them,
    /// `[positions, hidden]`, are passed to `put`: for each chunk those of the unquantized model,
    /// then those of the rounded one.
    ///
    /// # Errors
    /// Those of the rounder.
    fn resume(&self, _put: Put<'_>) -> Result<usize, Self::Error> {
        Ok(0)
    }

    /// Called when `done` layers are done: the activations can be saved now, and `get` returns them
    /// in the order of [`resume`](SequentialRounder::resume).
    ///
    /// # Errors
    /// Those of the rounder.
    fn save(&self, _done: usize, _get: Get<'_>) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// The activations of both models before a stage.
struct Both<'e> {
    engine: &'e Engine<'e>,
    chunks: usize,
    /// Tokens of each chunk.
    lengths: Vec<usize>,
    /// Tokens of the longest chunk.
    positions: usize,
    /// For each chunk, the residual stream of the unquantized model, then that of the rounded one.
    streams: States,
    /// The other activations within a block, in the same order.
    aside: Option<Aside>,
    progress: &'e dyn Progress,
}

/// The parts of [`Between`] other than the stream, side by side.
struct Aside {
    states: States,
    /// Row length of each part present.
    columns: AsideColumns,
}

#[derive(Clone, Copy, Default, PartialEq)]
struct AsideColumns {
    input: Option<usize>,
    mixed: Option<usize>,
    entry: Option<usize>,
    section: Option<usize>,
}

impl AsideColumns {
    fn all(&self) -> usize {
        let parts = [self.input, self.mixed, self.entry, self.section];
        parts.into_iter().flatten().sum()
    }
}

impl Engine<'_> {
    /// Runs chunks of tokens of equal length, or texts of an embedding model, through this model and through its copy as rounded by
    /// `rounder`.
    ///
    /// # Errors
    /// Those of [`Engine::run`] and of `rounder`.
    pub fn round_sequentially<R: SequentialRounder>(
        &self,
        chunks: &[Vec<u32>],
        rounder: &R,
        progress: &dyn Progress,
    ) -> Result<(), R::Error> {
        let positions = self.positions_of(chunks)?;
        let layers = self.hyper.layers;
        if self.hyper.loops > 1 {
            let what =
                "the layers of this model run several times: it cannot be rounded sequentially";
            return Err(Error::Model(what.into()).into());
        }
        self.pool.install(|| {
            let width = self.hyper.width();
            // Half of the budget is for the inputs of later stages.
            let budget = self.sequential_budget(positions) / 2;
            let mut both = Both {
                engine: self,
                chunks: chunks.len(),
                lengths: chunks.iter().map(Vec::len).collect(),
                positions,
                streams: States::new(of_both(chunks.iter().map(Vec::len), width), budget)?,
                aside: None,
                progress,
            };
            let done = rounder.resume(&mut |slot, x| both.streams.put(slot, x))?;
            if done == 0 {
                both.embed(chunks, rounder)?;
            }
            let angles = self.angles(positions)?;
            let stages = |layers: Range<usize>| -> u64 {
                let stages = layers.map(|number| self.spec.layers[number].stages());
                (stages.sum::<usize>() * chunks.len()) as u64
            };
            progress.begin(stages(0..layers), Unit::Steps);
            progress.advance(stages(0..done));
            for number in done..layers {
                progress.at(&format!("layer {} of {layers}", number + 1));
                let original = Layer::load(&self.weights, &self.spec.layers[number], &angles)?;
                self.weights.prefetch_layer(number + 1);
                let mut rounded = original.clone();
                let places = original.places();
                for (i, &place) in places.iter().enumerate() {
                    let names = stage_names(&original, place);
                    if rounder.wants(&names[0]) {
                        both.show(rounder, |at, pass| {
                            original.input_of_linears(place, at, pass)
                        })?;
                    }
                    rounded.replace(place, rounder.round(&names[0], &names[1])?);
                    let layer = Layers {
                        number,
                        models: [&original, &rounded],
                    };
                    both.step(layer, place, places.get(i + 1))?;
                }
                rounder.save(number + 1, &|slot| both.streams.copy(slot))?;
            }
            let output = [self.output_name().to_owned()];
            if rounder.wants(&output) {
                progress.at("output");
                let input = self.head_input(&self.weights)?;
                both.show(rounder, |at, _| Ok(input.of(&at.bundle.stream)))?;
            }
            rounder.round(&output, &[])?;
            Ok(())
        })
    }

    /// Memory for activations beside a layer and its rounded copy, in bytes.
    fn sequential_budget(&self, positions: usize) -> u64 {
        let largest = self.weights.largest_layer();
        self.layer_budget(positions)
            .saturating_sub(if self.max_memory.is_some() {
                largest
            } else {
                0
            })
    }
}

/// Numbers of the slots of both models, for chunks of these lengths.
fn of_both(lengths: impl Iterator<Item = usize>, columns: usize) -> impl Iterator<Item = usize> {
    lengths.flat_map(move |length| [length * columns; 2])
}

/// A layer in both models.
#[derive(Clone, Copy)]
struct Layers<'l> {
    number: usize,
    /// Unquantized, then rounded.
    models: [&'l Layer; 2],
}

/// The tensors of a stage's linears, and of the linears whose inputs are computed within the stage.
fn stage_names(layer: &Layer, place: Place) -> [Vec<String>; 2] {
    let stage = layer.linears(place);
    [stage.linears, stage.inner].map(|linears| linears.iter().map(|l| l.name.clone()).collect())
}

impl Both<'_> {
    fn embed<R: SequentialRounder>(
        &self,
        chunks: &[Vec<u32>],
        rounder: &R,
    ) -> Result<(), R::Error> {
        let engine = self.engine;
        let embedder = engine.embedder()?;
        in_order(chunks.len(), |chunk| {
            let rows = |table: &str, rows: &[u32], numbers: &mut [f32]| {
                let columns = numbers.len() / rows.len().max(1);
                rounder.table_rows(table, rows, columns, numbers)
            };
            let tokens = &chunks[chunk];
            let original = embedder.input(tokens, |_, _, _| Ok::<_, Error>(()))?;
            let rounded = embedder.input(tokens, rows)?;
            for (model, bundle) in [original, rounded].into_iter().enumerate() {
                let numbers = bundle.into_rows().into_numbers();
                self.streams.put(2 * chunk + model, numbers)?;
            }
            Ok(())
        })
    }

    /// The activations of a slot, copied.
    fn copy(&self, slot: usize) -> super::Result<Between> {
        let aside = self.aside.as_ref();
        let aside = aside.map(|aside| aside.states.copy(slot));
        self.between(slot, aside.transpose()?)
    }

    /// The activations of a slot; those beside the stream are moved out, so that they do not lie in
    /// memory beside those of the next stage.
    fn take(&self, slot: usize) -> super::Result<Between> {
        let aside = self.aside.as_ref();
        let aside = aside.map(|aside| aside.states.take(slot));
        self.between(slot, aside.transpose()?)
    }

    fn between(&self, slot: usize, aside: Option<Vec<f32>>) -> super::Result<Between> {
        let mut between = Between {
            bundle: self.engine.bundle(self.streams.copy(slot)?),
            ..Between::default()
        };
        if let Some((numbers, Aside { columns, .. })) = aside.zip(self.aside.as_ref()) {
            let rows = Rows::new(numbers, columns.all());
            let mut first = 0;
            let mut part = |columns: usize| {
                first += columns;
                rows.columns_range(first - columns..first)
            };
            between.input = columns.input.map(&mut part);
            between.mixed = columns.mixed.map(&mut part);
            between.bundle.entry = columns.entry.map(&mut part);
            if let Some(stream) = columns.section.map(part) {
                between.bundle.enter_section(stream);
            }
        }
        Ok(between)
    }

    /// Passes the input of a stage to the rounder, for every chunk; `input` computes it from the
    /// activations before the stage.
    fn show<R: SequentialRounder>(
        &self,
        rounder: &R,
        input: impl Fn(Between, &Pass<'_>) -> super::Result<Rows> + Sync,
    ) -> Result<(), R::Error> {
        in_order(self.chunks, |chunk| {
            if self.progress.cancelled() {
                return Err(Error::Cancelled.into());
            }
            let pass = self.pass(chunk);
            let original = input(self.copy(2 * chunk)?, &pass)?;
            rounder.input(chunk, original, input(self.copy(2 * chunk + 1)?, &pass)?);
            Ok(())
        })
    }

    fn pass(&self, chunk: usize) -> Pass<'_> {
        Pass {
            chunk,
            tap: None,
            recording: false,
            split: self.engine.split(self.chunks),
            stored: Some(&self.engine.weights),
            progress: self.progress,
        }
    }

    /// Runs every chunk through a stage, in both models. `next` is the layer's next stage.
    fn step(&mut self, layer: Layers<'_>, place: Place, next: Option<&Place>) -> super::Result<()> {
        let is_block_done = next.is_none_or(|next| next.block != place.block);
        let hidden = self.engine.hyper.hidden;
        let columns = next.map(|next| {
            let columns = layer.models[0].columns(*next);
            let keeps_entry = next.block > 0 && layer.models[0].keeps_entry();
            AsideColumns {
                input: columns.filter(|_| next.stage > 0),
                mixed: (next.branch > 0).then_some(hidden),
                entry: keeps_entry.then_some(hidden),
                section: layer.models[0]
                    .is_within_section(next.block)
                    .then_some(hidden),
            }
        });
        let columns = columns.filter(|columns| columns.all() > 0);
        let room = |columns: AsideColumns| -> super::Result<Aside> {
            let budget = self.engine.sequential_budget(self.positions);
            let budget = budget.saturating_sub(self.streams.memory_bytes());
            let lengths = of_both(self.lengths.iter().copied(), columns.all());
            let states = States::new(lengths, budget)?;
            Ok(Aside { states, columns })
        };
        let aside = columns.map(room).transpose()?;
        in_order(self.chunks, |chunk| {
            for (model, model_layer) in layer.models.into_iter().enumerate() {
                if self.progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                let slot = 2 * chunk + model;
                let pass = self.pass(chunk);
                let Between {
                    mut bundle,
                    input,
                    mixed,
                } = model_layer.step(place, self.take(slot)?, &pass)?;
                let entry = bundle.entry.take();
                // Between a block's own opening and its end, the section is opened again instead.
                let section = bundle.leave_section();
                let section = section.filter(|_| columns.is_some_and(|c| c.section.is_some()));
                if let Some(aside) = &aside {
                    let parts = input.iter().chain(&mixed).chain(&entry).chain(&section);
                    let parts: Vec<&Rows> = parts.collect();
                    aside
                        .states
                        .put(slot, Rows::beside(&parts).into_numbers())?;
                }
                if !is_block_done {
                    continue;
                }
                if next.is_none() && !bundle.stream.is_finite() {
                    return Err(Error::NotFinite {
                        layer: layer.number,
                        chunk,
                    });
                }
                self.streams.put(slot, bundle.into_rows().into_numbers())?;
            }
            self.progress.advance(1);
            Ok(())
        })?;
        self.aside = aside;
        Ok(())
    }
}
