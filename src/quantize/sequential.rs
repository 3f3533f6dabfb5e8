//! Sequential rounding (GPTAQ): each linear is calibrated on the activations of the already rounded
//! model, towards the outputs of the original one.

use super::plan::Plan;
use super::rounded::Rounded;
use super::{Error, Result};
use crate::format;
use crate::model::{
    self, Engine, Get, LinearWeights, Matrices, Put, Replaced, Rows, SequentialRounder,
};
use crate::progress::Progress;
use crate::resume::Resume;
use crate::rounding::hessian::{Hessian, PairSums, Store};
use crate::rounding::{InputStatistics, MatrixKnowledge, NoFactor, OutputFactor, Rounder};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Parameters of sequential rounding beside the plan.
pub struct SequentialRun<'s> {
    /// Engine of the quantized model.
    pub engine: &'s Engine<'s>,
    /// Chunks of tokens of equal length; some are held out.
    pub chunks: &'s [Vec<u32>],
    /// True if the chunks are a part of the text of the input Hessians. The Hessians then stand for
    /// the original model's inputs in the whole text.
    pub is_part: bool,
    /// Output Hessians by tensor, for two-sided rounding. A matrix without one is rounded row by
    /// row.
    pub output_hessians: Option<&'s Store>,
    /// File for blocks until their output is written, reused after an interruption; the caller
    /// removes it. Without it, a temporary file beside the output is used.
    pub file: Option<&'s Path>,
    /// Snapshot settings of the run.
    pub resume: Option<&'s Resume>,
}

impl Plan<'_> {
    /// Rounds the tensors of an output with error feedback, layer by layer and stage by stage;
    /// [`Plan::run`] then writes them.
    ///
    /// Down projections of experts, and an output matrix tied to the embedding, are calibrated on
    /// the activations of the original model.
    ///
    /// # Errors
    /// Errors of running the model and of rounding; non-finite activations.
    pub fn round_sequentially(
        &mut self,
        output: usize,
        with: &SequentialRun<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let snapshot = with.resume.and_then(Resume::take);
        let rounded = match with.file {
            Some(path) => Rounded::open(path, snapshot.as_ref().map(|s| s.extra()))?,
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
        // A snapshot is useless without all of its blocks.
        let snapshot = snapshot.filter(|snapshot| snapshot.extra() == rounded.index());
        let pass = Pass {
            plan: self,
            output,
            with,
            progress,
            snapshot: Mutex::new(snapshot),
            pairs: Mutex::new(None),
            rounded: Mutex::new(rounded),
        };
        with.engine.pool().install(|| pass.round_tables())?;
        with.engine
            .round_sequentially(with.chunks, &pass, progress)?;
        let rounded = pass
            .rounded
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        self.outputs[output].rounded = Some(rounded);
        Ok(())
    }
}

/// Blocks of the matrices of a tensor.
struct Blocks {
    rounder: Rounder,
    blocks: Vec<u8>,
}

impl Matrices for Blocks {
    fn widen(&self, matrix: usize, out: &mut [f32]) {
        let bytes = self.rounder.blocks_bytes(out.len());
        self.rounder
            .widen(&self.blocks[matrix * bytes..][..bytes], out);
    }
}

/// Sequential pass over a text for one output.
struct Pass<'p> {
    plan: &'p Plan<'p>,
    output: usize,
    with: &'p SequentialRun<'p>,
    progress: &'p dyn Progress,
    /// Snapshot of an interrupted run.
    snapshot: Mutex<Option<format::snapshot::Snapshot>>,
    /// Sums of the inputs of the next linears.
    pairs: Mutex<Option<Arc<PairSums>>>,
    rounded: Mutex<Rounded>,
}

impl Pass<'_> {
    fn rounded(&self) -> MutexGuard<'_, Rounded> {
        lock(&self.rounded)
    }

    /// Index of a tensor in the plan.
    fn index(&self, name: &str) -> Option<usize> {
        let mut tensors = self.plan.tensors.iter();
        tensors.position(|source| *source.tensor.info.name == *name)
    }

    /// Index of a tensor that is not rounded yet.
    fn open(&self, name: &str) -> Option<usize> {
        let index = self.index(name)?;
        let planned = &self.plan.outputs[self.output].tensors[index];
        let changes = planned.chosen.target != planned.from && !self.rounded().has(&planned.name);
        changes.then_some(index)
    }

    fn has_feedback(&self, index: usize) -> bool {
        self.plan.outputs[self.output].tensors[index].has_feedback
    }

    /// Rounds the embedding tables, whose rows are the inputs of the first layer.
    fn round_tables(&self) -> Result<()> {
        let entries = self.plan.input.catalog().tensors().iter();
        for table in entries.filter(|entry| entry.is_table) {
            if let Some(index) = self.open(&table.name) {
                self.round(index, None)?;
            }
        }
        Ok(())
    }

    /// Rounds a tensor, with the statistics of its inputs in this pass or in the original model. An
    /// expert reads few positions: it has its own input Hessian of the original model, and the
    /// target shift of all experts' positions.
    fn round(&self, index: usize, seen: Option<&Arc<InputStatistics>>) -> Result<Vec<u8>> {
        let weights = self.plan.weights(index);
        let (tensor, has_feedback) = (weights.tensor, self.has_feedback(index));
        let columns = tensor.info.shape.row_len() as usize;
        let knowledge = |matrix: usize| -> Result<MatrixKnowledge> {
            let mut knowledge = MatrixKnowledge::default();
            match (seen, &self.plan.hessians) {
                _ if !has_feedback => {}
                (Some(seen), _) if tensor.matrices() == 1 => {
                    knowledge.inputs = Some(seen.clone());
                    knowledge.output = self.output_factor(index)?;
                }
                (seen, Some(hessians)) => {
                    let own = hessians.inputs(&tensor.info.name, matrix, columns)?;
                    knowledge.inputs = match (own, seen) {
                        (Some(own), Some(seen)) => Some(Arc::new(own.with_shift_of(seen))),
                        (own, _) => own,
                    };
                }
                (_, None) => {}
            }
            Ok(knowledge)
        };
        let rounder = self.plan.rounder(index, self.output)?;
        let (blocks, proof) = weights.round(&rounder, &knowledge, self.progress)?;
        self.rounded().add(weights.name, &blocks, proof)?;
        Ok(blocks)
    }

    /// The Hessian of the input that these linears share; `None` without one.
    fn hessian(&self, linears: &[String], columns: usize) -> Result<Option<Hessian>> {
        let Some(hessians) = &self.plan.hessians else {
            return Ok(None);
        };
        for name in linears {
            let hessian = hessians.hessian(name)?;
            if let Some(hessian) = hessian.filter(|hessian| hessian.columns == columns) {
                return Ok(Some(hessian));
            }
        }
        Ok(None)
    }

    /// Factor of a tensor's output Hessian; `None` without one.
    fn output_factor(&self, index: usize) -> Result<Option<OutputFactor>> {
        let info = &self.plan.tensors[index].tensor.info;
        let two_sided = self.plan.outputs[self.output].rounding.is_two_sided();
        let hessian = match self.with.output_hessians.filter(|_| two_sided) {
            Some(store) => store.get(&info.name, 0)?,
            None => None,
        };
        let Some(hessian) = hessian.filter(|h| h.columns as u64 == info.shape.rows()) else {
            return Ok(None);
        };
        let threads = rayon::current_num_threads();
        match OutputFactor::new(hessian.mean, hessian.columns, threads) {
            Ok(factor) => Ok(Some(factor)),
            // No gradients, or from so few positions that rounding errors dominate.
            Err(NoFactor::Zero | NoFactor::Negative { .. }) => Ok(None),
            Err(error) => Err(Error::Inputs {
                tensor: info.name.to_string(),
                error,
            }),
        }
    }

    /// Rounder of a tensor; `None` if its type holds no weights.
    fn rounder(&self, index: usize) -> Option<Rounder> {
        self.plan.rounder(index, self.output).ok()
    }
}

impl SequentialRounder for Pass<'_> {
    type Error = Error;

    fn wants(&self, tensors: &[String]) -> bool {
        tensors
            .iter()
            .filter_map(|name| self.open(name))
            .any(|index| self.has_feedback(index))
    }

    fn table_rows(
        &self,
        table: &str,
        rows: &[u32],
        columns: usize,
        numbers: &mut [f32],
    ) -> Result<()> {
        let index = self.index(table);
        let Some((index, rounder)) = index.and_then(|index| Some((index, self.rounder(index)?)))
        else {
            return Ok(());
        };
        let rounded = self.rounded();
        let name = &self.plan.tensors[index].name;
        if !rounded.has(name) {
            return Ok(());
        }
        let mut blocks = vec![0; rounder.row_bytes()];
        for (row, numbers) in rows.iter().zip(numbers.chunks_exact_mut(columns)) {
            rounded.read(name, u64::from(*row) * blocks.len() as u64, &mut blocks)?;
            rounder.widen(&blocks, numbers);
        }
        Ok(())
    }

    fn input(&self, chunk: usize, original: Rows, rounded: Rows) {
        let (columns, chunks) = (original.columns(), self.with.chunks.len());
        let fresh = || Arc::new(PairSums::new(columns, chunks, self.with.is_part));
        let pairs = lock(&self.pairs).get_or_insert_with(fresh).clone();
        pairs.add(chunk, original.into_numbers(), rounded.into_numbers());
        pairs.help();
    }

    fn round(&self, linears: &[String], inner: &[String]) -> Result<Vec<Replaced>> {
        let pairs = lock(&self.pairs).take().and_then(Arc::into_inner);
        let bad = |error| Error::Inputs {
            tensor: linears.first().cloned().unwrap_or_default(),
            error,
        };
        let means = pairs.map(PairSums::finish);
        let whole = match &means {
            Some(means) if self.with.is_part => self.hessian(linears, means.columns)?,
            _ => None,
        };
        let means = match (means, whole) {
            (Some(means), Some(whole)) => {
                Some(means.extended(whole.mean, whole.rows).map_err(bad)?)
            }
            (means, _) => means,
        };
        let inputs = means.map(InputStatistics::of_pairs).transpose();
        let inputs = inputs.map_err(bad)?.flatten().map(Arc::new);
        let mut replaced = Vec::new();
        for (number, name) in linears.iter().chain(inner).enumerate() {
            let Some(index) = self.open(name) else {
                continue;
            };
            let blocks = self.round(index, inputs.as_ref().filter(|_| number < linears.len()))?;
            // The output matrix is not used in this pass.
            let linear = self.plan.input.catalog().linear_named(name);
            let in_layer = linear.is_some_and(|linear| linear.layer.is_some());
            if let Some(rounder) = self.rounder(index).filter(|_| in_layer) {
                let weights = self.plan.weights(index);
                let experts = linear.and_then(|linear| linear.grouping.experts());
                let is_on_use = self.with.engine.widens_experts_on_use() && experts.is_some();
                let weights = match is_on_use {
                    true => LinearWeights::Blocks {
                        rows: weights.tensor.rows_per_matrix() as usize,
                        matrices: Arc::new(Blocks { rounder, blocks }),
                    },
                    false => weights.widen(&rounder, &blocks).into(),
                };
                replaced.push(Replaced {
                    name: name.clone(),
                    weights,
                });
            }
        }
        Ok(replaced)
    }

    fn resume(&self, put: Put<'_>) -> Result<usize> {
        let Some(snapshot) = lock(&self.snapshot).take() else {
            return Ok(0);
        };
        let positions = self.with.chunks.first().map_or(0, Vec::len);
        if snapshot.shape()
            != [
                2 * self.with.chunks.len(),
                positions * self.with.engine.hyper.width(),
            ]
        {
            return Err(
                model::Error::Model("the stored activations belong to another run".into()).into(),
            );
        }
        (0..snapshot.shape()[0])
            .try_for_each(|slot| put(slot, snapshot.state(slot).map_err(model::Error::from)?))?;
        Ok(snapshot.done())
    }

    fn save(&self, done: usize, get: Get<'_>) -> Result<()> {
        // Texts of an embedding model differ in length, and a snapshot does not hold them.
        let resume = self
            .with
            .resume
            .filter(|_| model::are_even(self.with.chunks));
        let Some(resume) = resume.filter(|resume| resume.due()) else {
            return Ok(());
        };
        let positions = self.with.chunks.first().map_or(0, Vec::len);
        let shape = [
            2 * self.with.chunks.len(),
            positions * self.with.engine.hyper.width(),
        ];
        let index = self.rounded().index();
        Ok(resume.save(done, &index, shape, &|slot| get(slot))?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
