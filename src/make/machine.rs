//! The speed of this machine, measured by short trials.

use super::Result;
use super::cost::{Cost, Rounding};
use crate::format::types::GgmlType;
use crate::input::Input;
use crate::model::rows_times_rows;
use crate::progress::Silent;
use crate::rounding::{InputStatistics, Knowledge, Rounder};
use crate::sensitivity::Scores;
use quantier_core::threads;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Fraction of a product's speed that whole layers reach, with attention, norms and preparation of
/// each product: on an idle machine 0.66 to 0.75, depending on stage and model.
const REACHED: f64 = 0.70;

/// Relative speed of a product in f64, whose numbers have twice the size.
const DOUBLE: f64 = 0.5;

/// Bytes per second of a typical disk.
pub(super) const DISK: f64 = 1e9;

/// The speed of this machine.
pub(super) struct Machine {
    pub(super) flops_per_second: f64,
    /// Weights per second of all threads, quantized and dequantized, by type.
    rates: BTreeMap<GgmlType, f64>,
    /// The same for error feedback with its comparison, without products.
    feedback_rates: BTreeMap<GgmlType, Tried>,
}

/// Result of an error feedback trial.
struct Tried {
    /// Weights per second.
    rate: f64,
    /// Row length.
    columns: usize,
}

/// Minimum duration of a trial.
const PRODUCT_TIME: Duration = Duration::from_millis(150);
const TYPE_TIME: Duration = Duration::from_millis(20);
/// Maximum rows and columns of an error feedback trial: rows of several panels, and as many as
/// share one reading of the factor.
const FEEDBACK_ROWS: u64 = 32;
const FEEDBACK_COLUMNS: usize = 512;

impl Machine {
    /// Times products and every type; with `with_feedback` also error feedback, for types that support it.
    pub(super) fn new(
        input: &Input<'_>,
        scores: &Scores,
        threads: usize,
        with_feedback: bool,
    ) -> Result<Machine> {
        let pool = threads::pool(threads).map_err(crate::model::Error::Model)?;
        // Work per second of all threads, each repeating `work`.
        let rate = |amount: f64, at_least: Duration, work: &(dyn Fn() + Sync)| -> f64 {
            let each = pool.broadcast(|_| {
                work();
                let (start, mut times) = (Instant::now(), 0);
                while start.elapsed() < at_least {
                    work();
                    times += 1;
                }
                f64::from(times) * amount / start.elapsed().as_secs_f64()
            });
            each.into_iter().sum()
        };
        const SIDE: usize = 256;
        let a = vec![0.5f32; SIDE * SIDE];
        let flops_per_second = rate(2.0 * (SIDE * SIDE * SIDE) as f64, PRODUCT_TIME, &|| {
            let mut out = vec![0.0; SIDE * SIDE];
            rows_times_rows(&a, &a, [SIDE, SIDE, SIDE], &mut out);
            std::hint::black_box(out);
        });
        let (mut rates, mut feedback_rates) = (BTreeMap::new(), BTreeMap::new());
        let mut statistics: BTreeMap<usize, Option<InputStatistics>> = BTreeMap::new();
        let mut tensors: Vec<_> = scores.tensors.iter().collect();
        tensors.sort_by_key(|t| std::cmp::Reverse(t.weights));
        for scored in tensors {
            let Some(tensor) = input.tensors.iter().find(|t| t.info.name == scored.name) else {
                continue;
            };
            let [columns, rows, ..] = tensor.info.shape.four();
            let (columns, mut some): (usize, Vec<f32>) = (columns as usize, Vec::new());
            let choices = scored.choices.iter();
            for rounder in choices.filter_map(|c| Rounder::new(c.ggml_type, columns)) {
                let ggml_type = rounder.ggml_type();
                if rates.contains_key(&ggml_type) {
                    continue;
                }
                if some.is_empty() {
                    // Rows from the middle of the tensor.
                    let count = if with_feedback {
                        FEEDBACK_ROWS.min(rows)
                    } else {
                        1
                    };
                    let all = tensor.info.shape.rows();
                    let first = (all / 2).min(all - count);
                    some.resize(columns * count as usize, 0.0);
                    input.widen_here(tensor, first..first + count, &mut some)?;
                }
                let importance: Vec<f32> = (0..columns).map(|i| 0.5 + (i % 7) as f32).collect();
                let weights = &some[..columns];
                let plain = Knowledge {
                    importance: Some(&importance),
                    ..Knowledge::default()
                };
                let rate_of_type = rate(columns as f64, TYPE_TIME, &|| {
                    try_type(&rounder, weights, &[plain]);
                });
                rates.insert(ggml_type, rate_of_type);
                // A whole number of blocks for every type.
                let fewer = columns.min(FEEDBACK_COLUMNS);
                let statistics = statistics.entry(fewer).or_insert_with(|| synthetic(fewer));
                let inputs = statistics
                    .as_ref()
                    .filter(|_| with_feedback && rounder.takes_feedback());
                let Some((inputs, rounder)) = inputs.zip(Rounder::new(ggml_type, fewer)) else {
                    continue;
                };
                let rows: Vec<f32> = some
                    .chunks_exact(columns)
                    .flat_map(|row| &row[..fewer])
                    .copied()
                    .collect();
                // The reference's rounding is scored with feedback's, on the same inputs.
                let with_inputs = Knowledge {
                    inputs: Some(inputs),
                    ..Knowledge::default()
                };
                let plain = Knowledge {
                    importance: Some(&importance[..fewer]),
                    ..Knowledge::default()
                };
                let rate_of_type = rate(rows.len() as f64, TYPE_TIME, &|| {
                    try_type(&rounder, &rows, &[with_inputs, plain]);
                });
                let tried = Tried {
                    rate: rate_of_type,
                    columns: fewer,
                };
                feedback_rates.insert(ggml_type, tried);
            }
        }
        Ok(Machine {
            flops_per_second,
            rates,
            feedback_rates,
        })
    }

    /// Estimated duration of a stage in seconds.
    pub(super) fn seconds(&self, cost: &Cost) -> f64 {
        let rounding = cost.rounding.iter().map(|rounding| self.rounding(rounding));
        self.product_seconds(cost) + rounding.sum::<f64>() + disk_seconds(cost)
    }

    /// Estimated duration of a stage's products and factorizations in seconds.
    pub(super) fn product_seconds(&self, cost: &Cost) -> f64 {
        cost.operations / (REACHED * self.flops_per_second)
            + cost.double_operations / (DOUBLE * self.flops_per_second)
    }

    /// Estimated duration of rounding in seconds.
    fn rounding(&self, rounding: &Rounding) -> f64 {
        let Rounding {
            ggml_type,
            weights,
            columns,
            ..
        } = *rounding;
        match self
            .feedback_rates
            .get(&ggml_type)
            .filter(|_| rounding.feedback)
        {
            Some(tried) => {
                // An error changes all later columns of its row: on average half of them, in one
                // product. Coordinate descent takes a whole one, and one for each change of scales.
                let products = match ggml_type.block_len() {
                    256 => 1.5,
                    _ => 3.5,
                };
                let more =
                    2.0 * products * weights * (columns as f64 - tried.columns as f64).max(0.0);
                weights / tried.rate.max(1.0) + more / self.flops_per_second
            }
            None => self
                .rates
                .get(&ggml_type)
                .map_or(0.0, |rate| weights / rate.max(1.0)),
        }
    }
}

/// Estimated duration of a stage's reading and writing in seconds.
pub(super) fn disk_seconds(cost: &Cost) -> f64 {
    (cost.read + cost.written) as f64 / DISK
}

/// Rounds rows once with each knowledge, and dequantizes them.
fn try_type(rounder: &Rounder, weights: &[f32], knowledge: &[Knowledge<'_>]) {
    let mut blocks = vec![0; rounder.blocks_bytes(weights.len())];
    let mut again = vec![0.0; weights.len()];
    for knowledge in knowledge {
        // Trials are never cancelled.
        let _ = rounder.round(weights, knowledge, &mut blocks, &Silent);
        rounder.widen(&blocks, &mut again);
    }
    std::hint::black_box(again);
}

/// Synthetic statistics: a Hessian with correlated neighbours and a few dominant channels.
fn synthetic(columns: usize) -> Option<InputStatistics> {
    let strength = |i: usize| if i.is_multiple_of(97) { 20.0 } else { 1.0 };
    let of =
        |i: usize, j: usize| 0.5f32.powi(i.abs_diff(j).min(64) as i32) * strength(i) * strength(j);
    let mean: Vec<f32> = (0..columns)
        .flat_map(|i| (0..columns).map(move |j| of(i, j)))
        .collect();
    InputStatistics::unjudged(mean, columns).ok()
}
