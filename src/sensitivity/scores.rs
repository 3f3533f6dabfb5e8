//! Costs of types by tensor, in nats of KL divergence per token, from the real quantized bytes.
//!
//! To second order, changing a matrix by `dW` costs `1/2 E[u^2]` per token, with `u = g . (dW x)`:
//! `x` is the input at a position, `g` the output gradient of the log-likelihood of labels sampled
//! from the model itself. Squares are computed per position and averaged over positions and draws.
//! Two tensors need less: for the output matrix, the variance of the change of the logits under the
//! model's own distribution follows without sampling, and a row of the embedding is read only by
//! its token.
//!
//! The work: each matrix is quantized to every candidate, a band of rows at a time, and each
//! difference multiplied once by the inputs; every draw is then a sum of products.

use super::{OutputRows, Result};
use crate::format::types::GgmlType;
use crate::input::Tensor;
use crate::model::backward::{Embedded, LinearSamples};
use crate::model::{Head, rows_times_rows};
use crate::progress::Progress;
use crate::quant::Codec;
use crate::rounding::{
    InputHessians, InputStatistics, Knowledge, MatrixKnowledge, Proof, Rounder, Weights,
};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows of a matrix quantized and multiplied at a time.
const BAND_ROWS: usize = 64;
/// Errors of a type on held-out inputs: the reference's, and those of the chosen rounding.
const ERRORS: usize = 2;
/// Rows of activations multiplied at a time.
const BLOCK_ROWS: usize = 256;

/// Returns an error on cancellation.
pub(super) fn check_stop(progress: &dyn Progress) -> Result<()> {
    match progress.cancelled() {
        true => Err(crate::model::Error::Cancelled.into()),
        false => Ok(()),
    }
}

/// A tensor with importance weights and candidate types.
pub(super) struct Candidate<'a> {
    pub(super) weights: Weights<'a>,
    pub(super) types: Vec<Rounder>,
    /// Input Hessians, for error feedback.
    pub(super) hessians: Option<&'a InputHessians>,
}

/// A band of rows of one matrix.
struct Band<'i> {
    /// Index of its first row in the matrix.
    first: usize,
    weights: Vec<f32>,
    knowledge: Knowledge<'i>,
}

/// Change of a band by a type, and a buffer for its blocks.
#[derive(Default)]
struct Change {
    blocks: Vec<u8>,
    weights: Vec<f32>,
}

impl Band<'_> {
    fn rows(&self, columns: usize) -> usize {
        self.weights.len() / columns
    }

    /// Rounded weights minus the weights.
    fn change(
        &self,
        rounder: &Rounder,
        change: &mut Change,
        progress: &dyn Progress,
    ) -> Result<Proof> {
        let Change { blocks, weights } = change;
        blocks.resize(rounder.blocks_bytes(self.weights.len()), 0);
        weights.resize(self.weights.len(), 0.0);
        let proof = rounder.round(&self.weights, &self.knowledge, blocks, progress)?;
        rounder.widen(blocks, weights);
        weights
            .iter_mut()
            .zip(&self.weights)
            .for_each(|(change, w)| *change -= w);
        Ok(proof)
    }
}

impl Candidate<'_> {
    pub(super) fn tensor(&self) -> &Tensor<'_> {
        self.weights.tensor
    }

    fn columns(&self) -> usize {
        self.weights.tensor.info.shape.row_len() as usize
    }

    /// Runs `see` on all bands of a matrix in parallel, and sums its `len` numbers in band order.
    fn bands(
        &self,
        matrix: usize,
        len: usize,
        progress: &dyn Progress,
        see: impl Fn(Band<'_>) -> Result<Vec<f64>> + Sync,
    ) -> Result<Vec<f64>> {
        let Weights { reader, tensor, .. } = self.weights;
        let inputs = self.inputs(matrix)?;
        let knowledge = Knowledge {
            importance: self.weights.importance_of(matrix, inputs.is_some()),
            inputs: inputs.as_deref(),
            output: None,
        };
        let mut total = vec![0.0f64; len];
        let (mut buffer, rows) = (Vec::new(), tensor.rows_of(matrix));
        // Enough bands at a time to keep all threads busy.
        let step = (BAND_ROWS * rayon::current_num_threads() * 2) as u64;
        for start in rows.clone().step_by(step as usize) {
            check_stop(progress)?;
            let band = reader.band(tensor, start..(start + step).min(rows.end), &mut buffer)?;
            let sums: Result<Vec<Vec<f64>>> = band
                .par_chunks(BAND_ROWS)
                .map(|band| {
                    let mut weights = vec![0.0f32; band.len() * band.row_len()];
                    band.widen(&mut weights);
                    see(Band {
                        first: (band.rows().start - rows.start) as usize,
                        weights,
                        knowledge,
                    })
                })
                .collect();
            for sums in sums? {
                total
                    .iter_mut()
                    .zip(sums)
                    .for_each(|(total, sum)| *total += sum);
            }
        }
        Ok(total)
    }

    /// Statistics of a matrix's inputs, for error feedback.
    fn inputs(&self, matrix: usize) -> Result<Option<Arc<InputStatistics>>> {
        match self.hessians {
            Some(hessians) if self.types.iter().any(Rounder::takes_feedback) => {
                Ok(hessians.inputs(&self.tensor().info.name, matrix, self.columns())?)
            }
            _ => Ok(None),
        }
    }

    /// All weights rounded to a type, in file order.
    pub(super) fn rounded(&self, rounder: &Rounder, progress: &dyn Progress) -> Result<Vec<f32>> {
        let knowledge = |matrix: usize| -> Result<MatrixKnowledge> {
            Ok(MatrixKnowledge {
                inputs: match rounder.takes_feedback() {
                    true => self.inputs(matrix)?,
                    false => None,
                },
                output: None,
            })
        };
        let (blocks, _) = self.weights.round(rounder, &knowledge, progress)?;
        Ok(self.weights.widen(rounder, &blocks))
    }

    /// The sum of `u^2 / 2` over positions, averaged over draws, for each type; corrected for
    /// correlations between positions if the samples cover the `whole` of each chunk. With error
    /// feedback, the costs without it follow.
    pub(super) fn of_matrix(
        &self,
        samples: &LinearSamples,
        whole: bool,
        progress: &dyn Progress,
    ) -> Result<Vec<f64>> {
        let (n, m) = (samples.columns, samples.width);
        let draws = samples
            .pieces
            .first()
            .map_or(0, |piece| piece.gradients.len());
        let positions: usize = samples
            .pieces
            .iter()
            .map(|piece| piece.inputs.len() / n)
            .sum();
        // An expert without positions.
        if draws * positions == 0 {
            return Ok(vec![0.0; self.numbers()]);
        }
        // By type, piece, draw and position; then errors on held-out inputs.
        let len = self.types.len() * draws * positions;
        let all = len + self.types.len() * ERRORS;
        let mut u = self.bands(samples.matrix, all, progress, |band| {
            let (mut change, mut product) = (Change::default(), Vec::new());
            let wide = band.rows(n);
            let (mut u, mut errors) = (Vec::with_capacity(all), Vec::new());
            for rounder in &self.types {
                let proof = band.change(rounder, &mut change, progress)?;
                errors.extend([proof.reference, proof.taken]);
                for piece in &samples.pieces {
                    check_stop(progress)?;
                    let rows = piece.inputs.len() / n;
                    product.resize(rows * wide, 0.0);
                    rows_times_rows(
                        &piece.inputs,
                        &change.weights,
                        [rows, wide, n],
                        &mut product,
                    );
                    for gradients in &piece.gradients {
                        let of_row = |(product, gradient): (&[f32], &[f32])| {
                            dot(product, &gradient[band.first..])
                        };
                        u.extend(
                            product
                                .chunks_exact(wide)
                                .zip(gradients.chunks_exact(m))
                                .map(of_row),
                        );
                    }
                }
            }
            u.append(&mut errors);
            Ok(u)
        })?;
        let errors = u.split_off(len);
        let mut squares: Vec<f64> = u
            .chunks(draws * positions)
            .map(|u| u.iter().map(|u| u * u).sum())
            .collect();
        if whole {
            let of_type = |u: &[f64]| -> f64 {
                let (mut left, mut sum) = (u, 0.0);
                for piece in &samples.pieces {
                    let (here, rest) = left.split_at(draws * (piece.inputs.len() / n));
                    sum += here
                        .chunks((piece.inputs.len() / n).max(1))
                        .map(|u| u.iter().sum::<f64>().powi(2))
                        .sum::<f64>();
                    left = rest;
                }
                sum
            };
            let sums: Vec<f64> = u.chunks(draws * positions).map(of_type).collect();
            in_common(&mut squares, &sums, samples.pieces.len() * draws);
        }
        squares
            .iter_mut()
            .for_each(|sum| *sum /= (2 * draws) as f64);
        Ok(self.with_plain(squares, &errors))
    }

    /// Number of values of a score: the cost of each type and, with error feedback, the cost
    /// without it.
    pub(super) fn numbers(&self) -> usize {
        self.types.len() * if self.hessians.is_some() { 2 } else { 1 }
    }

    /// With error feedback, appends the costs without it, in proportion to the errors on held-out
    /// inputs.
    fn with_plain(&self, mut nats: Vec<f64>, errors: &[f64]) -> Vec<f64> {
        if self.hessians.is_some() {
            let ratio = |errors: &[f64]| {
                if errors[1] > 0.0 {
                    errors[0] / errors[1]
                } else {
                    1.0
                }
            };
            let plain: Vec<f64> = nats
                .iter()
                .zip(errors.chunks(ERRORS))
                .map(|(n, errors)| n * ratio(errors))
                .collect();
            nats.extend(plain);
        }
        nats
    }

    /// The same for the output matrix: half the variance of the change of the logits.
    pub(super) fn of_output(
        &self,
        head: &Head<'_>,
        read: &OutputRows,
        progress: &dyn Progress,
    ) -> Result<Vec<f64>> {
        let OutputRows { inputs, log_z } = read;
        let (n, positions) = (self.columns(), log_z.len());
        // First and second moment of the change, by type and position.
        let len = self.types.len() * positions * 2;
        let all = len + self.types.len() * ERRORS;
        let mut moments = self.bands(0, all, progress, |band| {
            let mut change = Change::default();
            let (mut logits, mut product) = (Vec::new(), Vec::new());
            let wide = band.rows(n);
            let mut moments = vec![0.0f64; len];
            let mut errors = Vec::new();
            // Probabilities and slopes of the logits for all positions: [positions, wide].
            let mut weighted = Vec::with_capacity(positions * wide);
            for (block, log_z) in inputs.chunks(BLOCK_ROWS * n).zip(log_z.chunks(BLOCK_ROWS)) {
                check_stop(progress)?;
                logits.resize(log_z.len() * wide, 0.0);
                rows_times_rows(block, &band.weights, [log_z.len(), wide, n], &mut logits);
                for (logits, log_z) in logits.chunks_exact(wide).zip(log_z) {
                    weighted.extend(logits.iter().enumerate().map(|(i, product)| {
                        let (logit, slope) = head.bend(band.first + i, *product);
                        ((f64::from(logit) - log_z).exp() as f32, slope)
                    }));
                }
            }
            for (rounder, moments) in self
                .types
                .iter()
                .zip(moments.chunks_exact_mut(positions * 2))
            {
                let proof = band.change(rounder, &mut change, progress)?;
                errors.extend([proof.reference, proof.taken]);
                let blocks = inputs
                    .chunks(BLOCK_ROWS * n)
                    .zip(weighted.chunks(BLOCK_ROWS * wide));
                for ((block, weighted), moments) in blocks.zip(moments.chunks_mut(BLOCK_ROWS * 2)) {
                    check_stop(progress)?;
                    product.resize(block.len() / n * wide, 0.0);
                    let rows = block.len() / n;
                    rows_times_rows(block, &change.weights, [rows, wide, n], &mut product);
                    let rows = product.chunks_exact(wide).zip(weighted.chunks_exact(wide));
                    for ((product, weighted), moments) in rows.zip(moments.chunks_exact_mut(2)) {
                        let (mut mean, mut square) = (0.0f32, 0.0f32);
                        for (product, (p, slope)) in product.iter().zip(weighted) {
                            let d = product * slope;
                            mean += p * d;
                            square += p * d * d;
                        }
                        moments[0] += f64::from(mean);
                        moments[1] += f64::from(square);
                    }
                }
            }
            moments.append(&mut errors);
            Ok(moments)
        })?;
        let errors = moments.split_off(len);
        let of_type = |m: &[f64]| {
            m.chunks_exact(2)
                .map(|m| (m[1] - m[0] * m[0]).max(0.0) / 2.0)
                .sum::<f64>()
        };
        Ok(self.with_plain(
            moments.chunks(positions * 2).map(of_type).collect(),
            &errors,
        ))
    }

    /// The same for the embedding: each row is read only by its token.
    pub(super) fn of_embedding(
        &self,
        embedded: &[Embedded],
        progress: &dyn Progress,
    ) -> Result<Vec<f64>> {
        let columns = self.columns();
        let mut samples: BTreeMap<u64, Vec<(usize, usize)>> = BTreeMap::new();
        for (chunk, embedded) in embedded.iter().enumerate() {
            for (position, token) in embedded.tokens.iter().enumerate() {
                samples
                    .entry(u64::from(*token))
                    .or_default()
                    .push((chunk, position));
            }
        }
        let draws = embedded.first().map_or(0, |e| e.gradients.len());
        let samples: Vec<_> = samples.into_iter().collect();
        // Squares by type, then sums by type, chunk and draw.
        let (types, sequences) = (self.types.len(), embedded.len() * draws);
        let of_row = |(row, places): &(u64, Vec<(usize, usize)>)| -> Result<Vec<f64>> {
            let Weights { reader, tensor, .. } = self.weights;
            let mut weights = vec![0.0f32; columns];
            reader.widen_here(tensor, *row..*row + 1, &mut weights)?;
            let band = Band {
                first: 0,
                weights,
                // The inputs of an embedding are row indices: it has no Hessian.
                knowledge: Knowledge {
                    importance: self.weights.importance_of(0, false),
                    ..Knowledge::default()
                },
            };
            let mut change = Change::default();
            let mut found = vec![0.0f64; types * (1 + sequences)];
            for (i, rounder) in self.types.iter().enumerate() {
                band.change(rounder, &mut change, progress)?;
                for (chunk, position) in places {
                    for (draw, g) in embedded[*chunk].gradients.iter().enumerate() {
                        let u = dot(&change.weights, &g[position * columns..][..columns]);
                        found[i] += u * u;
                        found[types + i * sequences + chunk * draws + draw] += u;
                    }
                }
            }
            Ok(found)
        };
        let mut total = vec![0.0f64; types * (1 + sequences)];
        for rows in samples.chunks(256) {
            let sums: Result<Vec<_>> = rows.par_iter().map(of_row).collect();
            for sums in sums? {
                total
                    .iter_mut()
                    .zip(sums)
                    .for_each(|(total, sum)| *total += sum);
            }
        }
        let (squares, sums) = total.split_at_mut(types);
        let of_type = |u: &[f64]| u.iter().map(|u| u * u).sum::<f64>();
        let sums: Vec<f64> = sums.chunks(sequences.max(1)).map(of_type).collect();
        in_common(squares, &sums, sequences);
        let nats = squares
            .iter()
            .map(|sum| sum / (2 * draws.max(1)) as f64)
            .collect();
        // An embedding has no input errors.
        Ok(self.with_plain(nats, &vec![1.0; types * ERRORS]))
    }

    /// The error of the weights alone: the sum of the squared changes, each times its column's
    /// importance weight, relative to the same sum over the weights. This is the relative noise in
    /// the tensor's output, whatever its size and scale, so that tensors are comparable.
    pub(super) fn weighted_error(&self, progress: &dyn Progress) -> Result<Vec<f64>> {
        let mut total = vec![0.0f64; self.types.len() + 1];
        let columns = self.columns();
        for matrix in 0..self.tensor().matrices() {
            let importance = self.weights.importance_of(matrix, true);
            let squared = |rows: &[f32]| -> f64 {
                let of_row = |row: &[f32]| match importance {
                    Some(importance) => row
                        .iter()
                        .zip(importance)
                        .map(|(d, w)| f64::from(d * d * w))
                        .sum::<f64>(),
                    None => row.iter().map(|d| f64::from(d * d)).sum(),
                };
                rows.chunks_exact(columns).map(of_row).sum()
            };
            let sums = self.bands(matrix, total.len(), progress, |band| {
                let mut change = Change::default();
                let mut sums = vec![squared(&band.weights)];
                for rounder in &self.types {
                    band.change(rounder, &mut change, progress)?;
                    sums.push(squared(&change.weights));
                }
                Ok(sums)
            })?;
            total
                .iter_mut()
                .zip(sums)
                .for_each(|(total, sum)| *total += sum);
        }
        // Zero weights have no errors either.
        let all = if total[0] > 0.0 { total[0] } else { 1.0 };
        Ok(total[1..].iter().map(|error| error / all).collect())
    }
}

/// Corrects the squares of single positions for correlations between errors at different positions.
///
/// The exact second order squares the sum over a sequence. That is one number per sequence and
/// draw, and mostly noise for a single type; but its ratio to the squares of single positions is a
/// property of the tensor, and every type is another sample of it: the mean ratio over all types is
/// used for each. With few `sequences` (chunks times draws) and types, the ratio is shrunk towards
/// 1.
fn in_common(squares: &mut [f64], of_sequences: &[f64], sequences: usize) {
    /// Ratios outside of this range are noise.
    const BOUNDS: (f64, f64) = (0.5, 20.0);
    /// Weight of the prior ratio of 1, in samples.
    const PRIOR: f64 = 50.0;
    let pairs = squares
        .iter()
        .zip(of_sequences)
        .filter(|(squares, _)| **squares > 0.0);
    let ratios: Vec<f64> = pairs.map(|(squares, sums)| sums / squares).collect();
    if !ratios.is_empty() {
        let experiments = (ratios.len() * sequences) as f64;
        let sum = ratios.iter().sum::<f64>() * sequences as f64;
        let ratio = ((sum + PRIOR) / (experiments + PRIOR)).clamp(BOUNDS.0, BOUNDS.1);
        squares.iter_mut().for_each(|squares| *squares *= ratio);
    }
}

/// Dot product over the shorter length, in eight lanes.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let len = a.len().min(b.len());
    let (a, a_rest) = a[..len].as_chunks::<8>();
    let (b, b_rest) = b[..len].as_chunks::<8>();
    let mut lanes = [0.0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    f64::from(lanes.iter().sum::<f32>() + rest)
}

/// Scores of the matrices of a layer, summed over the matrices of a tensor; `whole` if the samples
/// cover every position.
pub(super) fn of_layer(
    samples: &[LinearSamples],
    whole: bool,
    candidates: &BTreeMap<&str, Candidate<'_>>,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, Vec<f64>>> {
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for samples in samples {
        let Some(candidate) = candidates.get(&*samples.name) else {
            continue;
        };
        let of_matrix = candidate.of_matrix(samples, whole, progress)?;
        let sum = sums
            .entry(samples.name.clone())
            .or_insert_with(|| vec![0.0; of_matrix.len()]);
        sum.iter_mut().zip(of_matrix).for_each(|(sum, x)| *sum += x);
    }
    Ok(sums)
}

/// Types that a tensor can take at all: whole blocks per row, and importance weights where
/// required.
pub(super) fn possible(
    types: &[GgmlType],
    tensor: &Tensor<'_>,
    has_importance: bool,
    unwise: impl Fn(GgmlType) -> bool,
) -> Vec<Rounder> {
    let row_len = tensor.info.shape.row_len() as usize;
    let needs_importance = |t: GgmlType| Codec::of(t).is_some_and(|codec| codec.needs_importance);
    types
        .iter()
        .filter(|t| has_importance || !(needs_importance(**t) || unwise(**t)))
        .filter_map(|t| Some(Rounder::new(*t, row_len)?.or_lossless()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::in_common;

    #[test]
    fn correlation_needs_many_samples() {
        let (squares, sums) = ([1.0, 2.0, 0.0], [3.0, 6.0, 0.0]);
        let ratio = |sequences| {
            let mut squares = squares;
            in_common(&mut squares, &sums, sequences);
            assert!(
                (squares[1] / squares[0] - 2.0).abs() < 1e-12 && squares[2] == 0.0,
                "{squares:?}"
            );
            squares[0]
        };
        assert!((ratio(25) - 2.0).abs() < 1e-12, "half of the way");
        assert!(ratio(1) < 1.1 && ratio(100_000) > 2.99);
        assert_eq!(ratio(0), 1.0);
    }
}
