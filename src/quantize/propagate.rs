//! Rounding an output's tensors one behind the other: each matrix for what it meets behind those
//! that were rounded before it, and so that it makes of that what it made of its inputs before.

use super::plan::Plan;
use super::rounded::Rounded;
use super::{Error, Result};
use crate::covariance::{Pairs, Store};
use crate::feedback::{Inputs, NoFactor, RowFactor};
use crate::format;
use crate::model::{self, Engine, Get, Put, Replaced, Rounder};
use crate::progress::Progress;
use crate::quant::Codec;
use crate::resume::Resume;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What tensors are rounded behind each other with.
pub struct Propagation<'p> {
    /// The model that is quantized.
    pub engine: &'p Engine<'p>,
    /// Chunks of tokens, all of one length, of which some are held out to judge by.
    pub chunks: &'p [Vec<u32>],
    /// Covariances of the gradients at what matrices make, by tensor, as [`crate::frontier::score`]
    /// sums them. A matrix that is here is rounded for what its rows do together to what the model
    /// says; the others row by row.
    pub gradients: Option<&'p Store>,
    /// Where blocks are kept until their file is written, and where a killed run has left some;
    /// whoever calls removes it. A temporary file beside the output without.
    pub file: Option<&'p Path>,
    /// Where the state of the run is kept.
    pub resume: Option<&'p Resume>,
}

impl Plan<'_> {
    /// Rounds the matrices of an output that errors can be fed back in, layer by layer and within a
    /// layer step by step, for what they meet behind those that were rounded before. [`Plan::run`]
    /// then writes what this has come to.
    ///
    /// The last matrices of experts, and an output matrix that is the embedding too, are rounded
    /// for what they meet in the model as it is.
    ///
    /// # Errors
    /// Those of running the model and of rounding; activations that are not finite.
    pub fn propagate(
        &mut self,
        output: usize,
        with: &Propagation<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let there = with.resume.and_then(Resume::take);
        let rounded = match with.file {
            Some(path) => Rounded::open(path, there.as_ref().map(|there| there.extra()))?,
            None => {
                let beside = self.outputs[output]
                    .paths()
                    .next()
                    .and_then(|path| path.parent());
                Rounded::temporary(
                    beside
                        .filter(|p| !p.as_os_str().is_empty())
                        .unwrap_or(Path::new(".")),
                )?
            }
        };
        // What was kept of the run is of no use without all of its blocks.
        let there = there.filter(|there| there.extra() == rounded.index());
        let pass = Pass {
            plan: self,
            output,
            with,
            progress,
            there: Mutex::new(there),
            pairs: Mutex::new(None),
            rounded: Mutex::new(rounded),
        };
        with.engine.pool().install(|| pass.round_tables())?;
        with.engine.propagate(with.chunks, &pass, progress)?;
        let rounded = pass
            .rounded
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        self.outputs[output].rounded = Some(rounded);
        Ok(())
    }
}

/// The tensors whose rows are what the first layer reads.
const TABLES: [&str; 2] = ["token_embd.weight", "position_embd.weight"];

/// One output on its way through a text.
struct Pass<'p> {
    plan: &'p Plan<'p>,
    output: usize,
    with: &'p Propagation<'p>,
    progress: &'p dyn Progress,
    /// What a killed run has left.
    there: Mutex<Option<format::snapshot::Snapshot>>,
    /// What the next matrices meet.
    pairs: Mutex<Option<Arc<Pairs>>>,
    rounded: Mutex<Rounded>,
}

impl Pass<'_> {
    fn rounded(&self) -> MutexGuard<'_, Rounded> {
        lock(&self.rounded)
    }

    /// The number of a tensor that is still to be rounded.
    fn open(&self, name: &str) -> Option<usize> {
        let index = self
            .plan
            .tensors
            .iter()
            .position(|source| *source.tensor.info.name == *name)?;
        let planned = &self.plan.outputs[self.output].tensors[index];
        let changes = planned.chosen.target != planned.from && !self.rounded().has(&planned.name);
        changes.then_some(index)
    }

    fn feeds_back(&self, index: usize) -> bool {
        self.plan.outputs[self.output].tensors[index].has_feedback
    }

    /// Rounds what the first layer reads.
    fn round_tables(&self) -> Result<()> {
        for index in TABLES.iter().filter_map(|table| self.open(table)) {
            self.round(index, None)?;
        }
        Ok(())
    }

    /// Rounds a tensor for what it meets in this pass, or for what it meets in the model as it is.
    /// Each expert meets a few positions only: its own are those of the model as it is, and all
    /// together tell how far the rounded one's are from them.
    fn round(&self, index: usize, met: Option<&Arc<Inputs>>) -> Result<Vec<u8>> {
        let source = &self.plan.tensors[index];
        let [columns, _, matrices, _] = source.tensor.info.shape.four();
        let inputs_of = |matrix: usize| match (met, &self.plan.feedback) {
            _ if !self.feeds_back(index) => Ok(None),
            (Some(met), _) if matrices == 1 => Ok(Some(met.clone())),
            (met, Some(feedback)) => {
                let own = feedback.inputs(&source.tensor.info.name, matrix, columns as usize)?;
                Ok(match (own, met) {
                    (Some(own), Some(met)) => Some(Arc::new(own.moved_as(met))),
                    (own, _) => own,
                })
            }
            (_, None) => Ok(None),
        };
        let met_by_all = met.filter(|_| matrices == 1 && self.feeds_back(index));
        let rows = met_by_all
            .map(|_| self.row_factor(index))
            .transpose()?
            .flatten();
        let (blocks, proof) = match met_by_all.zip(rows) {
            Some((met, rows)) => {
                self.plan
                    .round_together(index, self.output, (met, &rows), self.progress)?
            }
            None => self
                .plan
                .round(index, self.output, &inputs_of, self.progress)?,
        };
        self.rounded().add(&source.name, &blocks, proof)?;
        Ok(blocks)
    }

    /// How the errors of a matrix's rows act on each other; `None` if nothing is known of it.
    fn row_factor(&self, index: usize) -> Result<Option<RowFactor>> {
        let info = &self.plan.tensors[index].tensor.info;
        let of = self
            .with
            .gradients
            .map(|store| store.get(&info.name, 0))
            .transpose()?
            .flatten();
        let Some(of) = of.filter(|of| of.columns as u64 == info.shape.rows()) else {
            return Ok(None);
        };
        match RowFactor::new(of.mean, of.columns, rayon::current_num_threads()) {
            Ok(factor) => Ok(Some(factor)),
            // No gradient came there, or of so few positions that rounding errors show.
            Err(NoFactor::Zero | NoFactor::Negative { .. }) => Ok(None),
            Err(error) => Err(Error::Inputs {
                tensor: info.name.to_string(),
                error,
            }),
        }
    }

    fn target(&self, index: usize) -> Option<&'static Codec> {
        Codec::of(self.plan.outputs[self.output].tensors[index].chosen.target)
    }
}

impl Rounder for Pass<'_> {
    type Error = Error;

    fn wants(&self, tensors: &[String]) -> bool {
        tensors
            .iter()
            .filter_map(|name| self.open(name))
            .any(|index| self.feeds_back(index))
    }

    fn rows(&self, table: &str, rows: &[u32], columns: usize, numbers: &mut [f32]) -> Result<()> {
        let index = self
            .plan
            .tensors
            .iter()
            .position(|source| *source.tensor.info.name == *table);
        let Some((index, codec)) = index.and_then(|index| Some((index, self.target(index)?)))
        else {
            return Ok(());
        };
        let rounded = self.rounded();
        let name = &self.plan.tensors[index].name;
        if !rounded.has(name) {
            return Ok(());
        }
        let mut blocks = vec![0; codec.ggml_type.row_bytes(columns as u64).unwrap_or(0) as usize];
        for (row, numbers) in rows.iter().zip(numbers.chunks_exact_mut(columns)) {
            rounded.read(name, u64::from(*row) * blocks.len() as u64, &mut blocks)?;
            codec.dequantize_row(&blocks, numbers);
        }
        Ok(())
    }

    fn meet(&self, chunk: usize, columns: usize, of_original: Vec<f32>, of_rounded: Vec<f32>) {
        let fresh = || Arc::new(Pairs::new(columns, self.with.chunks.len()));
        let pairs = lock(&self.pairs).get_or_insert_with(fresh).clone();
        pairs.add(chunk, of_original, of_rounded);
        pairs.help();
    }

    fn round(&self, met: &[String], behind: &[String]) -> Result<Vec<Replaced>> {
        let pairs = lock(&self.pairs).take().and_then(Arc::into_inner);
        let bad = |error| Error::Inputs {
            tensor: met.first().cloned().unwrap_or_default(),
            error,
        };
        let inputs = pairs
            .map(|pairs| Inputs::of_pairs(pairs.finish()))
            .transpose()
            .map_err(bad)?
            .flatten();
        let inputs = inputs.map(Arc::new);
        let mut replaced = Vec::new();
        for (number, name) in met.iter().chain(behind).enumerate() {
            let Some(index) = self.open(name) else {
                continue;
            };
            let blocks = self.round(index, inputs.as_ref().filter(|_| number < met.len()))?;
            // Nothing is computed with the output matrix.
            if let Some(codec) = self.target(index).filter(|_| name.starts_with("blk.")) {
                let mut weights =
                    vec![0.0; self.plan.tensors[index].tensor.info.shape.elements() as usize];
                codec.dequantize_row(&blocks, &mut weights);
                replaced.push(Replaced {
                    name: name.clone(),
                    weights: Arc::new(weights),
                });
            }
        }
        Ok(replaced)
    }

    fn resume(&self, put: Put<'_>) -> Result<usize> {
        let Some(there) = lock(&self.there).take() else {
            return Ok(0);
        };
        let positions = self.with.chunks.first().map_or(0, Vec::len);
        if there.shape()
            != [
                2 * self.with.chunks.len(),
                positions * self.with.engine.hyper.hidden,
            ]
        {
            return Err(model::Error::Model("what was kept is of another run".into()).into());
        }
        (0..there.shape()[0])
            .try_for_each(|slot| put(slot, there.state(slot).map_err(model::Error::from)?))?;
        Ok(there.done())
    }

    fn keep(&self, done: usize, get: Get<'_>) -> Result<()> {
        let Some(resume) = self.with.resume.filter(|resume| resume.due()) else {
            return Ok(());
        };
        let positions = self.with.chunks.first().map_or(0, Vec::len);
        let shape = [
            2 * self.with.chunks.len(),
            positions * self.with.engine.hyper.hidden,
        ];
        let index = self.rounded().index();
        Ok(resume.save(done, &index, shape, &|slot| get(slot))?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
