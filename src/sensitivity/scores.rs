//! Costs of types by tensor, in nats of KL divergence per token, from the real quantized bytes.
//!
//! To second order, changing a matrix by `dW` costs `1/2 E[u^2]` per token, with `u = g . (dW x)`:
//! `x` is the input at a position, `g` the output gradient of the log-likelihood of labels sampled
//! from the model itself. Squares are computed per position and averaged over positions and draws.
//! Two tensors need less: for the output matrix, the variance of the change of the logits under the
//! model's own distribution follows without sampling, and a row of the embedding is read only by
//! its token.
//!
//! The work: rows of each matrix are quantized to every candidate, a band at a time, and each
//! difference multiplied once by the inputs; every draw is then a sum of products. Of large
//! matrices, a sample of the rows is enough (see `sampled`).

use super::rows::{Row, RowSample, RowSum};
use super::sampled::{Correlation, Sampling};
use super::saved::{Costs, Nats};
use super::{OutputRows, Result};
use crate::format::types::GgmlType;
use crate::input::Tensor;
use crate::model::backward::{Embedded, LinearSamples};
use crate::model::{Head, rows_times_rows};
use crate::progress::Progress;
use crate::quant::{Codec, vector::vectorized};
use crate::rounding::{
    InputHessians, InputStatistics, Knowledge, MatrixKnowledge, Proof, Rounder, Weights,
};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows of a matrix quantized and multiplied at a time.
pub(crate) const BAND_ROWS: usize = 64;
/// Errors of a type on held-out inputs: the reference's, and those of the chosen rounding.
pub(super) const ERRORS: usize = 2;
/// Rows of activations multiplied at a time.
pub(super) const BLOCK_ROWS: usize = 256;

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

/// Rows of one matrix, with their weights.
pub(super) struct Band<'r> {
    pub(super) rows: &'r [Row],
    /// `[rows, columns]`.
    pub(super) weights: Vec<f32>,
}

/// Change of a band by a type, and a buffer for its blocks.
#[derive(Default)]
pub(super) struct Change {
    blocks: Vec<u8>,
    pub(super) weights: Vec<f32>,
}

impl Band<'_> {
    /// Rounded weights minus the weights.
    pub(super) fn change(
        &self,
        rounder: &Rounder,
        knowledge: &Knowledge<'_>,
        change: &mut Change,
        progress: &dyn Progress,
    ) -> Result<Proof> {
        let Change { blocks, weights } = change;
        blocks.resize(rounder.blocks_bytes(self.weights.len()), 0);
        weights.resize(self.weights.len(), 0.0);
        let proof = rounder.round(&self.weights, knowledge, blocks, progress)?;
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

    pub(super) fn columns(&self) -> usize {
        self.weights.tensor.info.shape.row_len() as usize
    }

    /// Rows of each matrix.
    pub(super) fn rows(&self) -> usize {
        self.weights.tensor.rows_per_matrix() as usize
    }

    /// Runs `see` on bands of rows in parallel, and `fold` on the results in the order of rows.
    pub(super) fn bands<T: Send>(
        &self,
        sample: &RowSample,
        progress: &dyn Progress,
        see: impl Fn(Band<'_>) -> Result<T> + Sync,
        mut fold: impl FnMut(T),
    ) -> Result<()> {
        let Weights { reader, tensor, .. } = self.weights;
        let (n, start) = (self.columns(), tensor.rows_of(sample.matrix).start);
        let band_of = |rows| -> Result<T> {
            let mut weights = vec![0.0f32; <[Row]>::len(rows) * n];
            let mut left = &mut *weights;
            for run in rows.chunk_by(|a: &Row, b: &Row| a.index + 1 == b.index) {
                let (here, others) = left.split_at_mut(run.len() * n);
                let first = start + run[0].index as u64;
                reader.widen_here(tensor, first..first + run.len() as u64, here)?;
                left = others;
            }
            see(Band { rows, weights })
        };
        let bands: Vec<&[Row]> = sample.rows.chunks(BAND_ROWS).collect();
        // Enough bands at a time to keep all threads busy.
        for bands in bands.chunks(rayon::current_num_threads() * 2) {
            check_stop(progress)?;
            let seen: Result<Vec<T>> = bands.par_iter().map(|rows| band_of(rows)).collect();
            seen?.into_iter().for_each(&mut fold);
        }
        Ok(())
    }

    /// The same for all rows of a matrix, with the sums of `len` numbers.
    fn sums(
        &self,
        matrix: usize,
        len: usize,
        progress: &dyn Progress,
        see: impl Fn(Band<'_>) -> Result<Vec<f64>> + Sync,
    ) -> Result<Vec<f64>> {
        let mut total = vec![0.0f64; len];
        let sample = RowSample::all(matrix, self.rows());
        self.bands(&sample, progress, see, |sums| add(&mut total, &sums))?;
        Ok(total)
    }

    /// Statistics for rounding rows of a matrix.
    pub(super) fn knowledge<'k>(
        &'k self,
        matrix: usize,
        inputs: Option<&'k InputStatistics>,
    ) -> Knowledge<'k> {
        Knowledge {
            importance: self.weights.importance_of(matrix, inputs.is_some()),
            inputs,
            output: None,
        }
    }

    /// Statistics of a matrix's inputs, for error feedback.
    pub(super) fn inputs(&self, matrix: usize) -> Result<Option<Arc<InputStatistics>>> {
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
    /// correlations between positions if the samples cover the whole of each chunk.
    pub(super) fn of_matrix(
        &self,
        samples: &LinearSamples,
        sampling: Sampling,
        progress: &dyn Progress,
    ) -> Result<Costs> {
        // An expert without positions.
        if draws_of(samples) * positions_of(samples) == 0 {
            return Ok(self.costs(vec![0.0; self.types.len()], &[]));
        }
        if let Some(rows) = sampling.rows_of(self, samples.matrices) {
            let survey = self.survey(samples, progress)?;
            let some = |drawn: &_| self.of_some_rows(samples, drawn, progress);
            if let Some(costs) = self.of_enough_rows(rows, &survey, sampling, some)? {
                return Ok(costs);
            }
        }
        self.of_all_rows(samples, sampling.correlation, progress)
    }

    fn of_all_rows(
        &self,
        samples: &LinearSamples,
        correlation: Correlation,
        progress: &dyn Progress,
    ) -> Result<Costs> {
        let (n, m) = (samples.columns, samples.width);
        let (draws, positions) = (draws_of(samples), positions_of(samples));
        let inputs = self.inputs(samples.matrix)?;
        let knowledge = self.knowledge(samples.matrix, inputs.as_deref());
        // By type, piece, draw and position; then errors on held-out inputs.
        let len = self.types.len() * draws * positions;
        let all = len + self.types.len() * ERRORS;
        let mut u = self.sums(samples.matrix, all, progress, |band| {
            let (mut change, mut product) = (Change::default(), Vec::new());
            let wide = band.rows.len();
            let (mut u, mut errors) = (Vec::with_capacity(all), Vec::new());
            for rounder in &self.types {
                let proof = band.change(rounder, &knowledge, &mut change, progress)?;
                errors.extend(proof.even);
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
                            dot(product, &gradient[band.rows[0].index..])
                        };
                        let rows = product.chunks_exact(wide).zip(gradients.chunks_exact(m));
                        vectorized(
                            #[inline(always)]
                            || u.extend(rows.map(of_row)),
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
        if correlation != Correlation::Ignored {
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
            let ratios = correlation.ratios(&squares, &sums, samples.pieces.len() * draws);
            let pairs = squares.iter_mut().zip(ratios);
            pairs.for_each(|(square, ratio)| *square *= ratio);
        }
        squares
            .iter_mut()
            .for_each(|sum| *sum /= (2 * draws) as f64);
        Ok(self.costs(squares, &errors))
    }

    /// Costs of the types. With error feedback, the costs without it are in proportion to the
    /// `errors` on held-out inputs of one power, two for each type. With their own powers, tokens with
    /// massive activations decide the proportion; on SmolLM2, presets were predicted at 2.8 times what they
    /// have, and are at 2.5 times without that.
    pub(super) fn costs(&self, nats: Vec<f64>, errors: &[f64]) -> Costs {
        let ratios = errors.chunks(ERRORS).map(|errors| match errors[1] > 0.0 {
            true => errors[0] / errors[1],
            false => 1.0,
        });
        let plain = match self.hessians {
            Some(_) => nats
                .iter()
                .zip(ratios.chain(std::iter::repeat(1.0)))
                .map(|(nats, ratio)| nats * ratio)
                .collect(),
            None => Vec::new(),
        };
        Costs {
            nats,
            plain,
            error: 0.0,
        }
    }

    /// The same for the output matrix: half the variance of the change of the logits.
    pub(super) fn of_output(
        &self,
        head: &Head<'_>,
        read: &OutputRows,
        sampling: Sampling,
        progress: &dyn Progress,
    ) -> Result<Costs> {
        if let Some(rows) = sampling.rows_of(self, 1) {
            let survey = self.survey_logits(head, read, progress)?;
            let some = |drawn: &_| self.of_some_logits(head, read, drawn, progress);
            if let Some(costs) = self.of_enough_rows(rows, &survey, sampling, some)? {
                return Ok(costs);
            }
        }
        let OutputRows { inputs, log_z } = read;
        let statistics = self.inputs(0)?;
        let knowledge = self.knowledge(0, statistics.as_deref());
        let (n, positions) = (self.columns(), log_z.len());
        // First and second moment of the change, by type and position.
        let len = self.types.len() * positions * 2;
        let all = len + self.types.len() * ERRORS;
        let mut moments = self.sums(0, all, progress, |band| {
            let mut change = Change::default();
            let (mut logits, mut product) = (Vec::new(), Vec::new());
            let wide = band.rows.len();
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
                        let (logit, slope) = head.bend(band.rows[i].index, *product);
                        ((f64::from(logit) - log_z).exp() as f32, slope)
                    }));
                }
            }
            for (rounder, moments) in self
                .types
                .iter()
                .zip(moments.chunks_exact_mut(positions * 2))
            {
                let proof = band.change(rounder, &knowledge, &mut change, progress)?;
                errors.extend(proof.even);
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
        Ok(self.costs(
            moments.chunks(positions * 2).map(of_type).collect(),
            &errors,
        ))
    }

    /// The same for the embedding: each row is read only by its token.
    pub(super) fn of_embedding(
        &self,
        embedded: &[Embedded],
        sampling: Sampling,
        progress: &dyn Progress,
    ) -> Result<Costs> {
        let columns = self.columns();
        let mut samples: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (chunk, embedded) in embedded.iter().enumerate() {
            for (position, token) in embedded.tokens.iter().enumerate() {
                samples
                    .entry(*token as usize)
                    .or_default()
                    .push((chunk, position));
            }
        }
        let draws = embedded.first().map_or(0, |e| e.gradients.len());
        // The inputs of an embedding are row indices: it has no Hessian.
        let knowledge = self.knowledge(0, None);
        let (types, sequences) = (self.types.len(), embedded.len() * draws);
        let gradients = |row: usize| {
            let places = samples.get(&row).map_or(&[][..], Vec::as_slice);
            places.iter().flat_map(move |(chunk, position)| {
                let of_draws = embedded[*chunk].gradients.iter().enumerate();
                of_draws.map(move |(draw, g)| {
                    (chunk * draws + draw, &g[position * columns..][..columns])
                })
            })
        };
        let mut tokens = RowSample::all(0, self.rows());
        tokens.rows.retain(|row| samples.contains_key(&row.index));
        let is_sampled = sampling
            .rows_of(self, 1)
            .filter(|rows| *rows < tokens.rows.len());
        let sample = match is_sampled {
            Some(rows) => {
                let mut costs = vec![0.0; tokens.rows.len()];
                let mut done = 0;
                self.bands(
                    &tokens,
                    progress,
                    |band| {
                        let rows = band.rows.iter().zip(band.weights.chunks_exact(columns));
                        let cost = |(row, weights): (&Row, &[f32])| {
                            let all = gradients(row.index).map(|(_, g)| dot(g, g));
                            all.sum::<f64>() * dot(weights, weights)
                        };
                        Ok(rows.map(cost).collect::<Vec<f64>>())
                    },
                    |band: Vec<f64>| {
                        costs[done..][..band.len()].copy_from_slice(&band);
                        done += band.len();
                    },
                )?;
                let mut sample = RowSample::proportional(0, &costs, rows, sampling.seed);
                let index = |row: &mut Row| row.index = tokens.rows[row.index].index;
                sample.rows.iter_mut().for_each(index);
                sample
            }
            None => tokens,
        };
        // Squares by type, then sums by type, chunk and draw, of each row.
        let of_row = |change: &[f32], row: usize| {
            let (mut square, mut sums) = (0.0, vec![0.0f64; sequences]);
            for (sequence, g) in gradients(row) {
                let u = dot(change, g);
                square += u * u;
                sums[sequence] += u;
            }
            (square, sums)
        };
        let mut squares = vec![RowSum::default(); types];
        let mut in_sequences = vec![0.0f64; types * sequences];
        self.bands(
            &sample,
            progress,
            |band| {
                let mut change = Change::default();
                let mut all = Vec::with_capacity(types);
                for rounder in &self.types {
                    band.change(rounder, &knowledge, &mut change, progress)?;
                    let rows = band.rows.iter().zip(change.weights.chunks_exact(columns));
                    let rows = rows.map(|(row, change)| (*row, of_row(change, row.index)));
                    all.push(rows.collect::<Vec<_>>());
                }
                Ok(all)
            },
            |band| {
                for (i, rows) in band.into_iter().enumerate() {
                    for (row, (square, sums)) in rows {
                        squares[i].add(&row, square);
                        // Rows are independent: in a sample, the weights of sums are those of
                        // their squares.
                        let weight = row.weight.sqrt();
                        let sums: Vec<f64> = sums.iter().map(|sum| sum * weight).collect();
                        add(&mut in_sequences[i * sequences..][..sequences], &sums);
                    }
                }
            },
        )?;
        let of_type = |u: &[f64]| u.iter().map(|u| u * u).sum::<f64>();
        let sums: Vec<f64> = in_sequences.chunks(sequences.max(1)).map(of_type).collect();
        let estimates: Vec<f64> = squares.iter().map(|square| square.sum).collect();
        let correlation = match sampling.correlation {
            // Every token of a chunk reads a row: all positions are known, also where others are sampled.
            Correlation::Ignored => Correlation::Ratio,
            correlation => correlation,
        };
        let ratios = correlation.ratios(&estimates, &sums, sequences).into_iter();
        let scales: Vec<f64> = ratios
            .map(|ratio| ratio / (2 * draws.max(1)) as f64)
            .collect();
        let errors = squares.iter().zip(&scales);
        let errors = errors.map(|(square, scale)| square.error() * scale);
        let error = errors.sum::<f64>() / types.max(1) as f64;
        let nats = estimates.iter().zip(&scales);
        let nats = nats.map(|(sum, scale)| sum * scale).collect();
        Ok(Costs {
            error,
            // An embedding has no input errors.
            ..self.costs(nats, &[])
        })
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
            let inputs = self.inputs(matrix)?;
            let knowledge = self.knowledge(matrix, inputs.as_deref());
            let sums = self.sums(matrix, total.len(), progress, |band| {
                let mut change = Change::default();
                let mut sums = vec![squared(&band.weights)];
                for rounder in &self.types {
                    band.change(rounder, &knowledge, &mut change, progress)?;
                    sums.push(squared(&change.weights));
                }
                Ok(sums)
            })?;
            add(&mut total, &sums);
        }
        // Zero weights have no errors either.
        let all = if total[0] > 0.0 { total[0] } else { 1.0 };
        Ok(total[1..].iter().map(|error| error / all).collect())
    }
}

/// The factor that corrects squares of single positions for correlations between errors at
/// different positions.
///
/// The exact second order squares the sum over a sequence. That is one number per sequence and
/// draw, and mostly noise for a single type; but its ratio to the squares of single positions is a
/// property of the tensor, and every type is another sample of it: the mean ratio over all types is
/// used for each. With few `sequences` (chunks times draws) and types, the ratio is shrunk towards
/// 1.
pub(super) fn ratio_of_sums(squares: &[f64], of_sequences: &[f64], sequences: usize) -> f64 {
    /// Ratios outside of this range are noise.
    const BOUNDS: (f64, f64) = (0.5, 20.0);
    /// Weight of the prior ratio of 1, in samples.
    const PRIOR: f64 = 50.0;
    let pairs = squares
        .iter()
        .zip(of_sequences)
        .filter(|(squares, _)| **squares > 0.0);
    let ratios: Vec<f64> = pairs.map(|(squares, sums)| sums / squares).collect();
    if ratios.is_empty() {
        return 1.0;
    }
    let experiments = (ratios.len() * sequences) as f64;
    let sum = ratios.iter().sum::<f64>() * sequences as f64;
    ((sum + PRIOR) / (experiments + PRIOR)).clamp(BOUNDS.0, BOUNDS.1)
}

/// Adds numbers one by one.
pub(super) fn add(total: &mut [f64], numbers: &[f64]) {
    let pairs = total.iter_mut().zip(numbers);
    pairs.for_each(|(total, x)| *total += x);
}

/// Dot product over the shorter length, in eight lanes.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
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

/// Costs of a layer's tensors, summed over their matrices.
pub(super) fn of_layer(
    samples: &[LinearSamples],
    sampling: Sampling,
    candidates: &BTreeMap<&str, Candidate<'_>>,
    progress: &dyn Progress,
) -> Result<Nats> {
    let mut sums = Nats::new();
    for samples in samples {
        let Some(candidate) = candidates.get(&*samples.name) else {
            continue;
        };
        let costs = candidate.of_matrix(samples, sampling, progress)?;
        sums.entry(samples.name.clone()).or_default().add(&costs);
    }
    Ok(sums)
}

/// Number of sampled labels of each position.
pub(super) fn draws_of(samples: &LinearSamples) -> usize {
    let first = samples.pieces.first();
    first.map_or(0, |piece| piece.gradients.len())
}

/// Number of sampled positions.
pub(super) fn positions_of(samples: &LinearSamples) -> usize {
    let pieces = samples.pieces.iter();
    pieces
        .map(|piece| piece.inputs.len() / samples.columns)
        .sum()
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
    use super::ratio_of_sums;

    #[test]
    fn correlation_needs_many_samples() {
        let (squares, sums) = ([1.0, 2.0, 0.0], [3.0, 6.0, 0.0]);
        let ratio = |sequences| ratio_of_sums(&squares, &sums, sequences);
        assert!((ratio(25) - 2.0).abs() < 1e-12, "half of the way");
        assert!(ratio(1) < 1.1 && ratio(100_000) > 2.99);
        assert_eq!(ratio(0), 1.0);
    }
}
