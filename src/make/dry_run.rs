//! Dry run: the summed costs of stages without results; operations and bytes from metadata, seconds
//! from short trials on this machine.

use super::job::JobEngine;
use super::machine::Machine;
use super::stage::{Planned, Walk};
use super::{Cost, Job, Outcome, Result};
use crate::hessian;
use crate::sensitivity::{Measure, Scored};
use serde::Serialize;
use std::collections::BTreeSet;

/// Plan of a run with its cost.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// Tensors with a choice of types.
    pub tensors: usize,
    /// Matrices of these tensors; each expert counts.
    pub matrices: u64,
    /// Candidate types, summed over all tensors.
    pub types: usize,
    /// Pairs of a matrix and a candidate type.
    pub trials: u64,
    /// Tokens of the calibration text, for the importance matrix and the input Hessians.
    pub calibration_tokens: u64,
    /// Tokens of the calibration text used for sensitivities.
    pub scoring_tokens: u64,
    /// Tokens of the evaluation text.
    pub evaluation_tokens: u64,
    /// Speed of this machine in a matrix product, in floating-point operations per second.
    pub flops_per_second: f64,
    /// The stages in order.
    pub stages: Vec<StageCost>,
    /// For every budget, the size of its file in bytes, where it does not depend on measurements.
    pub files: Vec<(String, Option<u64>)>,
    /// Size of all files in bytes. A budget in nats counts as the largest file.
    pub files_bytes: u64,
    /// Size of the projector in bytes; 0 without one.
    pub projector_bytes: u64,
    /// Size of the importance matrix in bytes.
    pub imatrix_bytes: u64,
    /// Maximum size of the Hessians in bytes; they are kept for later runs.
    pub covariance_bytes: u64,
    /// Peak size of snapshots in bytes.
    pub work_bytes: u64,
    /// Size of the GGUF of a checkpoint for an outside engine, in bytes.
    pub base_bytes: u64,
    /// Size of the log-probabilities of the base for an outside engine, in bytes.
    pub logits_bytes: u64,
    /// True if the numbers of tokens are estimated from the lengths of the texts.
    pub are_tokens_estimated: bool,
    /// Bytes of activations in a temporary file due to the memory limit.
    pub temporary_bytes: u64,
    /// Peak memory in bytes, without mapped files.
    pub memory_bytes: u64,
}

/// The cost of a stage.
#[derive(Clone, Debug, Serialize)]
pub struct StageCost {
    /// Name, as in the report.
    pub name: &'static str,
    /// Floating-point operations of its matrix products.
    pub flops: f64,
    /// Duration; 0 if the result exists.
    pub seconds: f64,
    /// True if an earlier run has left its result.
    pub done: bool,
    /// The rest of its cost.
    #[serde(flatten)]
    pub cost: Cost,
}

impl Job<'_> {
    /// Plans a run without writing anything.
    ///
    /// # Errors
    /// Everything that can be refused before measuring: budgets and constraints that no recipe
    /// satisfies, an importance matrix of another model, unreadable results of earlier runs.
    pub fn dry_run(&self) -> Result<DryRun> {
        let work = self.work();
        let mut walk = Walk::plan(&work);
        let outcome = self.walk(&mut walk)?;
        let planned = walk.into_planned();
        let feedback = self.options.rounding.has_feedback();
        let threads = self.options.engine.threads;
        let machine = Machine::new(self.input, &outcome.scores, threads, feedback)?;
        Ok(self.summary(&outcome, planned, &machine))
    }

    fn summary(&self, outcome: &Outcome, planned: Vec<Planned>, machine: &Machine) -> DryRun {
        let stage = |planned: &Planned| StageCost {
            name: planned.name,
            flops: planned.cost.operations + planned.cost.double_operations,
            seconds: machine.seconds(&planned.cost),
            done: planned.done,
            cost: planned.cost.clone(),
        };
        let mut all = Cost::default();
        planned
            .iter()
            .for_each(|planned| all += planned.cost.clone());
        let allocation = &outcome.allocation;
        let matrices = |t: &Scored| t.dims.get(2).copied().unwrap_or(1);
        let types = |t: &Scored| -> Vec<_> {
            let types = t.choices.iter().map(|choice| choice.ggml_type);
            types.filter(|of| *of != t.base_type).collect()
        };
        let tensors = &outcome.scores.tensors;
        let texts = self.model().map(|model| &model.texts);
        let outside = match &self.engine {
            JobEngine::Outside(outside) => Some(&outside.texts),
            JobEngine::None | JobEngine::Native(_) => None,
        };
        let is_calibrated = self.options.imatrix.is_none() || self.options.rounding.has_feedback();
        let budgets = self.options.files().map_or(&[][..], |files| &files.budgets);
        let bytes = |name: &str| {
            let file = allocation.files.iter().find(|file| file.budget == name);
            file.map(|file| file.file_bytes)
        };
        let mut files: Vec<_> = budgets
            .iter()
            .map(|budget| (budget.name.clone(), bytes(&budget.name)))
            .collect();
        let is_budget = |name: &str| budgets.iter().any(|budget| budget.name == name);
        for file in allocation.files.iter().filter(|f| !is_budget(&f.budget)) {
            files.push((file.budget.clone(), Some(file.file_bytes)));
        }
        for open in allocation.open.iter().filter(|o| !is_budget(&o.budget)) {
            files.push((open.budget.clone(), None));
        }
        let largest = allocation.header_bytes + allocation.frontier.largest().bytes;
        let numbers = self.numbers().ok().flatten();
        let feedback = numbers.and_then(|numbers| numbers.feedback);
        DryRun {
            tensors: tensors.len(),
            matrices: tensors.iter().map(matrices).sum(),
            types: tensors
                .iter()
                .flat_map(types)
                .collect::<BTreeSet<_>>()
                .len(),
            trials: tensors
                .iter()
                .map(|t| matrices(t) * types(t).len() as u64)
                .sum(),
            calibration_tokens: texts
                .filter(|_| is_calibrated)
                .map(|texts| texts.lengths()[0])
                .or(outside.map(|texts| texts.calibration_tokens))
                .unwrap_or(0),
            scoring_tokens: self.scoring_tokens(),
            evaluation_tokens: texts
                .filter(|_| self.options.files().is_some())
                .map(|texts| texts.lengths()[1])
                .or(outside.map(|texts| texts.evaluation_tokens()))
                .unwrap_or(0),
            flops_per_second: machine.flops_per_second,
            stages: planned.iter().map(stage).collect(),
            files,
            files_bytes: allocation.files.iter().map(|f| f.file_bytes).sum::<u64>()
                + allocation.open_files() as u64 * largest,
            projector_bytes: self
                .projector
                .as_ref()
                .map_or(0, |projector| projector.bytes),
            imatrix_bytes: super::calibration::imatrix_bytes(self),
            covariance_bytes: feedback.map_or(0, |feedback| {
                let output = feedback.output_rows.iter().copied();
                let output = output.map(hessian::gradient_bytes).sum::<u64>();
                feedback.needs.files + output
            }),
            work_bytes: all.scratch,
            base_bytes: all.base,
            logits_bytes: all.logits,
            are_tokens_estimated: outside.is_some_and(|texts| texts.are_estimates),
            temporary_bytes: all.temporary,
            memory_bytes: all.memory,
        }
    }

    fn scoring_tokens(&self) -> u64 {
        if let JobEngine::Outside(outside) = &self.engine {
            return outside.texts.probing_tokens();
        }
        let Some(model) = self.model() else {
            return 0;
        };
        if self.settings().measure == Measure::Imatrix {
            return 0;
        }
        let texts = &model.texts;
        let chunks = texts.scored_chunks(self.options.scoring.chunks);
        let chunks = chunks.and_then(|most| texts.spread_chunks(most));
        chunks.map_or(0, |chunks| {
            chunks.iter().map(Vec::len).sum::<usize>() as u64
        })
    }
}
