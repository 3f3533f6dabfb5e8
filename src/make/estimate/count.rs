//! Numbers that all estimates are made of, from metadata alone.

use super::super::{Job, Opened, proof, texts};
use super::fed::Fed;
use crate::format::types::GgmlType;
use crate::input::{Input, Tensor};
use crate::quant::Codec;
use crate::sensitivity::{Measure, Scores};
use std::collections::BTreeMap;

/// A tensor to be tried.
pub(super) struct Trial<'a> {
    pub(super) tensor: &'a Tensor<'a>,
    pub(super) matrices: u64,
    pub(super) types: Vec<GgmlType>,
    /// Part of the positions that each of its rows meets: fewer than all for experts.
    share: f64,
    /// Part of its rows that are tried: fewer than all for an embedding.
    pub(super) rows: f64,
    /// Whether it is tried with error feedback.
    pub(super) fed: bool,
}

/// Numbers that all estimates are made of.
pub(super) struct Count<'a> {
    pub(super) trials: Vec<Trial<'a>>,
    pub(super) calibration: f64,
    pub(super) scoring: f64,
    pub(super) evaluation: f64,
    positions: f64,
    draws: f64,
    context: f64,
    layers: f64,
    hidden: f64,
    /// Weights of all layers that a token meets.
    met: f64,
    /// Weights of the largest layer.
    largest: f64,
    /// Lengths of rows, then of columns, of the matrices of one layer.
    widths: (f64, f64),
    /// Weights of the output matrix.
    output: f64,
    output_name: &'a str,
    /// Products of attention for one token in all layers, in operations.
    attention: f64,
    threads: f64,
    pub(super) imatrix_bytes: u64,
    fed: Option<&'a Fed>,
}

impl<'a> Count<'a> {
    pub(super) fn new(
        input: &'a Input<'a>,
        (model, fed): (Option<Opened<'a>>, Option<&'a Fed>),
        job: &Job,
        expected: &Scores,
        windows: Option<&texts::Cut>,
        chunks: usize,
    ) -> Count<'a> {
        let context = job.texts.context as f64;
        let tokens =
            |of: fn(&texts::Cut) -> &[u8]| windows.map_or(0.0, |w| (of(w).len() / 4) as f64);
        let hyper = model.map(|model| &model.engine.hyper);
        let scoring = chunks as f64 * context;
        let output_name = model.map_or("output.weight", |model| model.engine.output_name());
        let used = hyper.map_or(1, |hyper| hyper.experts_used) as f64;
        let share = |t: &Tensor<'_>| match t.info.shape.four()[2] {
            1 => 1.0,
            experts => (used / experts as f64).min(1.0),
        };
        let elements = |t: &Tensor<'_>| t.info.shape.elements() as f64;
        let matrices = |t: &&Tensor<'_>| t.info.shape.dims().len() > 1;
        let in_layers: Vec<_> = input
            .tensors
            .iter()
            .filter(|t| t.info.name.starts_with("blk."))
            .collect();
        let in_layers: Vec<&Tensor<'_>> = in_layers.into_iter().filter(matrices).collect();
        let mut by_layer: BTreeMap<Option<i32>, (f64, f64, f64)> = BTreeMap::new();
        for tensor in &in_layers {
            let layer = by_layer
                .entry(crate::arch::role::layer_of(&tensor.info.name))
                .or_default();
            let [columns, rows, ..] = tensor.info.shape.four();
            layer.0 += elements(tensor);
            layer.1 += columns as f64 * share(tensor);
            layer.2 += rows as f64 * share(tensor);
        }
        let most = |of: fn(&(f64, f64, f64)) -> f64| by_layer.values().map(of).fold(0.0, f64::max);
        let of_trial = |tensor: &'a Tensor<'a>| {
            let scored = expected
                .tensors
                .iter()
                .find(|t| t.name == tensor.info.name)?;
            let types = scored
                .choices
                .iter()
                .map(|c| c.ggml_type)
                .filter(|t| *t != tensor.info.ggml_type);
            let is_embedding =
                tensor.info.name == "token_embd.weight" && output_name != "token_embd.weight";
            let rows = tensor.info.shape.rows() as f64;
            let judged = job.settings.measure == Measure::Divergence;
            Some(Trial {
                tensor,
                matrices: tensor.info.shape.four()[2],
                types: types.collect(),
                share: share(tensor),
                rows: if is_embedding && judged {
                    (scoring / rows).min(1.0)
                } else {
                    1.0
                },
                fed: job.settings.measure != Measure::Imatrix
                    && fed.is_some_and(|fed| fed.has(tensor)),
            })
        };
        let all = job.settings.positions as f64;
        Count {
            trials: input.tensors.iter().filter_map(of_trial).collect(),
            calibration: match job.imatrix.is_none() || fed.is_some() {
                true => tokens(texts::Cut::calibration_bytes),
                false => 0.0,
            },
            scoring,
            evaluation: if job.frontier_only {
                0.0
            } else {
                tokens(texts::Cut::evaluation_bytes)
            },
            positions: if all > 0.0 { all.min(scoring) } else { scoring },
            draws: job.settings.draws as f64,
            context,
            layers: hyper.map_or(0.0, |hyper| hyper.layers as f64),
            hidden: hyper.map_or(0.0, |hyper| hyper.hidden as f64),
            met: in_layers.iter().map(|t| elements(t) * share(t)).sum(),
            largest: most(|layer| layer.0),
            widths: (most(|layer| layer.1), most(|layer| layer.2)),
            output: input
                .tensors
                .iter()
                .find(|t| t.info.name == output_name)
                .map_or(0.0, elements),
            output_name,
            attention: hyper.map_or(0.0, |h| {
                2.0 * context * (h.heads * h.key_length * h.layers) as f64
            }),
            threads: match job.threads {
                0 => std::thread::available_parallelism().map_or(1, usize::from) as f64,
                threads => threads as f64,
            },
            imatrix_bytes: in_layers
                .iter()
                .map(|t| t.info.shape.row_len() * t.info.shape.four()[2] * 4)
                .sum(),
            fed,
        }
    }

    /// Operations of a forward pass of so many tokens through all layers.
    fn forward(&self, tokens: f64) -> f64 {
        tokens * (2.0 * self.met + self.attention)
    }

    /// Operations of the importance matrix and the covariances, which come from one pass.
    pub(super) fn imatrix(&self) -> f64 {
        let sums = self.fed.map_or(0.0, |fed| fed.needs.operations);
        self.forward(self.calibration) + self.calibration * 2.0 * self.output + sums
    }

    pub(super) fn scores(&self, expected: &Scores) -> f64 {
        // Forward for the trace and again for the derivatives; those of a product by its input, for
        // each draw; then the same at the output, where probabilities are needed twice.
        let stream = (2.0 + self.draws) * self.forward(self.scoring);
        let output = (1.0 + self.draws) * self.scoring * 2.0 * self.output
            + 2.0 * self.positions * 2.0 * self.output;
        let trial = |t: &Trial<'_>| {
            let is_met =
                t.tensor.info.name.starts_with("blk.") || t.tensor.info.name == self.output_name;
            let positions = if is_met {
                self.positions * t.share
            } else {
                0.0
            };
            2.0 * positions * t.tensor.info.shape.elements() as f64 * t.types.len() as f64
        };
        debug_assert_eq!(expected.tensors.len(), self.trials.len());
        stream + output + self.trials.iter().map(trial).sum::<f64>()
    }

    /// Operations of summing what the gradients at matrices of so many rows have in common: for
    /// each position and draw, half of a square.
    pub(super) fn gradients(&self, rows: &[u64]) -> f64 {
        self.positions * self.draws * rows.iter().map(|rows| (rows * rows) as f64).sum::<f64>()
    }

    /// Operations of proving every trial with error feedback: the products of the errors of both
    /// roundings.
    pub(super) fn proved_trials(&self) -> f64 {
        let fed = self
            .fed
            .into_iter()
            .flat_map(|fed| self.trials.iter().filter(|t| t.fed).map(move |t| (fed, t)));
        fed.map(|(fed, t)| 2.0 * fed.proof(t.tensor) * count_of(&t.types) as f64)
            .sum()
    }

    /// The same of factors, which are made in the order of names.
    pub(super) fn trial_factors(&self) -> f64 {
        let mut tensors: Vec<_> = self
            .trials
            .iter()
            .filter(|t| t.fed)
            .map(|t| t.tensor)
            .collect();
        tensors.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        self.fed.map_or(0.0, |fed| fed.factors(tensors.into_iter()))
    }

    /// Operations of proving what becomes of a tensor in files of these types: the products of the
    /// weights themselves, and of the errors of both roundings in each file.
    pub(super) fn proved_in(&self, tensor: &Tensor<'_>, types: &[GgmlType]) -> f64 {
        match (self.fed.filter(|fed| fed.has(tensor)), count_of(types)) {
            (None, _) | (_, 0) => 0.0,
            (Some(fed), types) => (1 + 2 * types) as f64 * fed.proof(tensor),
        }
    }

    /// Operations of rounding a file one tensor behind the other: both models go through the text,
    /// and what each distinct input has in common with itself and with the other model's is summed;
    /// the former is as much as the covariances take, which are symmetric, and the latter twice
    /// that.
    pub(super) fn propagation(&self) -> f64 {
        self.fed.map_or(0.0, |fed| {
            2.0 * self.forward(self.calibration) + 3.0 * fed.needs.operations
        })
    }

    pub(super) fn proof(&self, files: usize) -> f64 {
        let models = 1.0 + files as f64;
        models * (self.forward(self.evaluation) + self.evaluation / 2.0 * 2.0 * self.output)
    }

    /// Bytes of what a long stage keeps between two layers: the larger of both.
    pub(super) fn state_bytes(&self) -> u64 {
        (self.calibration.max(self.scoring * self.draws) * self.hidden * 4.0) as u64
    }

    /// Bytes of memory at the worst moment, and bytes that go to a temporary file.
    pub(super) fn memory(&self, job: &Job, files: usize) -> (u64, u64) {
        let (rows, columns) = self.widths;
        // What the threads work on: activations of one layer, several times where derivatives are
        // taken.
        let work = |times: f64| self.threads * self.context * (rows + columns) * 4.0 * times;
        let imatrix = (
            self.calibration * self.hidden,
            self.largest.max(self.output) * 4.0 + work(1.0),
        );
        let kept = self.positions * (rows + self.draws * columns) * 4.0;
        let states = (self.layers + 1.0 + self.draws) * self.scoring * self.hidden;
        let scores = (
            states,
            self.largest.max(self.output) * 4.0 + kept + work(3.0),
        );
        let models = 1.0 + files.min(proof::TOGETHER) as f64;
        let of_evaluation = (models / 2.0 + 1.0) * self.evaluation * self.hidden;
        let proof = (
            of_evaluation,
            (self.largest + models * self.output) * 4.0 + work(1.0),
        );
        // Both models between two steps: the streams, and what the widest matrices meet.
        let widest = self
            .fed
            .filter(|_| job.rounding.is_sequential())
            .map_or(0.0, |fed| fed.widest as f64);
        let states = if widest > 0.0 {
            2.0 * self.calibration * (self.hidden + widest)
        } else {
            0.0
        };
        let propagated = (states, 2.0 * self.largest * 4.0 + work(2.0));
        // What error feedback takes has been taken off the limit.
        let reserved = self.fed.map_or(0, |fed| fed.reserved);
        let limit = job
            .options
            .max_memory
            .map_or(f64::INFINITY, |limit| limit.saturating_sub(reserved) as f64);
        let sums = self.fed.map_or(0.0, |fed| fed.needs.memory as f64);
        let factor = self.fed.map_or(0.0, Fed::factor_bytes);
        let one = |((states, other), fed): ((f64, f64), f64)| {
            let states = states * 4.0;
            let room = (limit - other).max(0.0);
            (states.min(room) + other + fed, (states - room).max(0.0))
        };
        let all = [
            (imatrix, sums),
            (scores, factor),
            (propagated, factor),
            (proof, 0.0),
        ]
        .map(one);
        let most = |of: fn(&(f64, f64)) -> f64| all.iter().map(of).fold(0.0, f64::max) as u64;
        (most(|m| m.0), most(|m| m.1))
    }
}

/// How many of these types take error feedback.
fn count_of(types: &[GgmlType]) -> usize {
    types.iter().filter(|t| takes_feedback(**t)).count()
}

/// Whether a type has levels to choose.
pub(super) fn takes_feedback(t: GgmlType) -> bool {
    Codec::of(t).is_some_and(Codec::takes_feedback)
}
