//! How fast this machine is, tried.

use super::super::Result;
use super::count::{Count, takes_feedback};
use crate::format::types::GgmlType;
use crate::input::{Input, Tensor};
use crate::model::rows_times_rows;
use crate::quant::Codec;
use crate::rounding::{DAMPING, InputFactor, round_rows};
use crate::sensitivity::Scores;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What whole layers reach of the speed of a product alone, with attention, norms and what each
/// product prepares: 0.59 (scores) to 0.70 (importance matrix, proof) in a run on an idle machine.
const REACHED: f64 = 0.65;

/// What of that speed a product in f64 has, which takes twice the room.
const DOUBLE: f64 = 0.5;

/// How fast this machine is, tried.
pub(super) struct Machine {
    pub(super) flops_per_second: f64,
    /// Weights per second that all threads quantize and read again.
    rates: BTreeMap<GgmlType, f64>,
    /// The same with error feedback and all that proves it but products; and how many columns the
    /// rows had.
    fed: BTreeMap<GgmlType, (f64, usize)>,
}

/// How long a try takes at least.
const PRODUCT_TIME: Duration = Duration::from_millis(150);
const TYPE_TIME: Duration = Duration::from_millis(20);
/// Rows and columns, at most, that error feedback is tried on: a row of several panels, and as many
/// as share a reading of the factor.
const FED_ROWS: u64 = 32;
const FED_COLUMNS: usize = 512;

impl Machine {
    /// Tries products and every type, those that take it with error feedback too if `fed`.
    pub(super) fn new(
        input: &Input<'_>,
        expected: &Scores,
        threads: usize,
        fed: bool,
    ) -> Result<Machine> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| {
            crate::model::Error::Model(format!("cannot start {threads} threads: {e}"))
        })?;
        // Work per second of all threads, each of which does `work` again and again.
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
        let (mut rates, mut with_feedback) = (BTreeMap::new(), BTreeMap::new());
        let mut factors: BTreeMap<usize, Option<InputFactor>> = BTreeMap::new();
        let mut tensors: Vec<_> = expected.tensors.iter().collect();
        tensors.sort_by_key(|t| std::cmp::Reverse(t.weights));
        for scored in tensors {
            let Some(tensor) = input.tensors.iter().find(|t| t.info.name == scored.name) else {
                continue;
            };
            let Some(decoder) = Codec::of(tensor.info.ggml_type) else {
                continue;
            };
            let [columns, rows, ..] = tensor.info.shape.four();
            let (columns, mut some): (usize, Vec<f32>) = (columns as usize, Vec::new());
            for codec in scored.choices.iter().filter_map(|c| Codec::of(c.ggml_type)) {
                if rates.contains_key(&codec.ggml_type) {
                    continue;
                }
                if some.is_empty() {
                    // From the middle, as many as there are.
                    let count = if fed { FED_ROWS.min(rows) } else { 1 };
                    let first =
                        (tensor.info.shape.rows() / 2).min(tensor.info.shape.rows() - count);
                    some.resize(columns * count as usize, 0.0);
                    let mut buffer = Vec::new();
                    decoder.dequantize_row(
                        input.read(tensor, first..first + count, &mut buffer)?,
                        &mut some,
                    );
                }
                let weights = &some[..columns];
                let importance: Vec<f32> = (0..columns).map(|i| 0.5 + (i % 7) as f32).collect();
                let row_bytes =
                    |n: usize| codec.ggml_type.row_bytes(n as u64).unwrap_or(0) as usize;
                let of_type = rate(columns as f64, TYPE_TIME, &|| {
                    let (mut bytes, mut again) = (vec![0; row_bytes(columns)], vec![0.0; columns]);
                    codec.quantize_row(weights, Some(&importance), &mut bytes);
                    codec.dequantize_row(&bytes, &mut again);
                    std::hint::black_box(again);
                });
                rates.insert(codec.ggml_type, of_type);
                // Whole blocks of every type.
                let fewer = columns.min(FED_COLUMNS);
                let factor = factors.entry(fewer).or_insert_with(|| made_up(fewer));
                let Some(factor) = factor.as_ref().filter(|_| fed && codec.takes_feedback()) else {
                    continue;
                };
                let rows: Vec<f32> = some
                    .chunks_exact(columns)
                    .flat_map(|row| &row[..fewer])
                    .copied()
                    .collect();
                let of_type = rate(rows.len() as f64, TYPE_TIME, &|| {
                    // As Rounder::round does it, but for the products.
                    let row_bytes = row_bytes(fewer);
                    let (mut left, mut bytes) =
                        (rows.clone(), vec![0; rows.len() / fewer * row_bytes]);
                    round_rows(codec, factor, &mut left, &mut bytes);
                    codec.dequantize_row(&bytes, &mut left);
                    for (row, bytes) in rows
                        .chunks_exact(fewer)
                        .zip(bytes.chunks_exact_mut(row_bytes))
                    {
                        codec.quantize_row(row, Some(&importance[..fewer]), bytes);
                    }
                    codec.dequantize_row(&bytes, &mut left);
                    std::hint::black_box(left);
                });
                with_feedback.insert(codec.ggml_type, (of_type, fewer));
            }
        }
        Ok(Machine {
            flops_per_second,
            rates,
            fed: with_feedback,
        })
    }

    /// Seconds of so many operations of matrix products.
    pub(super) fn products(&self, operations: f64) -> f64 {
        operations / (REACHED * self.flops_per_second)
    }

    /// Seconds of so many operations that make factors.
    pub(super) fn factors(&self, operations: f64) -> f64 {
        operations / (DOUBLE * self.flops_per_second)
    }

    /// Seconds that quantizing takes where every type of every tensor is tried.
    pub(super) fn trials(&self, count: &Count<'_>, expected: &Scores) -> f64 {
        debug_assert_eq!(count.trials.len(), expected.tensors.len());
        let all = count
            .trials
            .iter()
            .flat_map(|t| t.types.iter().map(move |of| (t, *of)));
        all.map(|(t, of)| t.rows * self.tensor(t.tensor, of, t.fed))
            .sum()
    }

    /// Seconds that a tensor takes in this type, with error feedback if it is to be and the type
    /// takes it.
    pub(super) fn tensor(&self, tensor: &Tensor<'_>, t: GgmlType, fed: bool) -> f64 {
        let (weights, columns) = (
            tensor.info.shape.elements() as f64,
            tensor.info.shape.row_len() as f64,
        );
        match self.fed.get(&t).filter(|_| fed && takes_feedback(t)) {
            Some((rate, tried)) => {
                // Each weight's error goes to the columns behind it: half of all, in one product.
                let more = weights * (columns - *tried as f64).max(0.0);
                weights / rate.max(1.0) + more / self.flops_per_second
            }
            None => self
                .rates
                .get(&t)
                .map_or(0.0, |rate| weights / rate.max(1.0)),
        }
    }
}

/// The factor of a covariance of neighbours that are alike, and of a few channels far above the
/// others.
fn made_up(columns: usize) -> Option<InputFactor> {
    let strength = |i: usize| if i.is_multiple_of(97) { 20.0 } else { 1.0 };
    let of =
        |i: usize, j: usize| 0.5f32.powi(i.abs_diff(j).min(64) as i32) * strength(i) * strength(j);
    let mean: Vec<f32> = (0..columns)
        .flat_map(|i| (0..columns).map(move |j| of(i, j)))
        .collect();
    InputFactor::new(&mean, columns, DAMPING, 1).ok()
}
