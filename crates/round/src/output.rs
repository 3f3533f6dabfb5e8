//! The factor of an output Hessian: the coupling of errors between rows (two-sided rounding).
//!
//! An error `E` of a matrix costs, to second order, about `tr(G E H E^T)` nats, with `H` its input
//! Hessian and `G` its output Hessian (the Kronecker-factored form of Martens and Grosse 2015; for
//! rounding YAQA, Tseng et al. 2025). With `G = U D U^T`, `U` unit upper triangular, this is the
//! sum over rows `i` of `D_i t H t^T`, where `t = E_i + sum over k < i of U_ki E_k`: rows are
//! rounded in order, each with a target that compensates the errors of the rows before it.
//!
//! Rows are processed in blocks without feedback within a block, so that its rows can be rounded in
//! parallel: `D` is then block diagonal, and `U` is replaced by `U` times the inverse of its
//! diagonal blocks.

use super::factor::lower_factor;
use super::{InputFactor, NoFactor};
use crate::matrix::{View, add_product, multiply};
use rayon::prelude::*;

/// Damping of the diagonal, relative to its mean: gradients are sampled at fewer positions than
/// inputs.
const ROW_DAMPING: f64 = 0.3;
/// Minimum and maximum rows per block.
const BLOCK: [usize; 2] = [16, 128];
/// Minimum number of blocks, unless they get too small.
const BLOCKS: usize = 32;

/// The factor of the output Hessian of a matrix.
pub struct OutputFactor {
    rows: usize,
    /// Rounding order of the rows: rows of a block are as far apart as possible.
    order: Vec<usize>,
    /// First row of each block, and the end of the last.
    starts: Vec<usize>,
    /// `[rows, rows]` in rounding order: effect of a row's error on the targets of later blocks.
    coupling: Vec<f32>,
    /// The Hessian: `[rows, rows]`.
    mean: Vec<f32>,
}

impl OutputFactor {
    /// Factors a Hessian `[rows, rows]` in f64, with 0.3 times the mean of its diagonal added to
    /// the diagonal. Peak memory is [`OutputFactor::working_bytes`]. `split` is the maximum number
    /// of threads.
    ///
    /// # Errors
    /// Numbers that are not finite, gradients that are all zero, a matrix that is not positive
    /// definite.
    ///
    /// # Panics
    /// If the length of `mean` is not `rows` times `rows`.
    pub fn new(mean: Vec<f32>, rows: usize, split: usize) -> Result<OutputFactor, NoFactor> {
        assert_eq!(mean.len(), rows * rows, "a Hessian of {rows} rows");
        let added = InputFactor::added(&mean, rows, ROW_DAMPING)?;
        let blocks = rows
            .div_ceil((rows / BLOCKS).clamp(BLOCK[0], BLOCK[1]))
            .max(1);
        let mut starts = vec![0];
        let mut order = Vec::with_capacity(rows);
        for block in 0..blocks {
            order.extend((block..rows).step_by(blocks));
            starts.push(order.len());
        }
        // In reversed order, so that the reversed lower triangular factor is the upper one.
        let mut a = vec![0.0f64; rows * rows];
        a.par_chunks_mut(rows.max(1))
            .zip(order.par_iter().rev())
            .enumerate()
            .for_each(|(at, (a, i))| {
                a.iter_mut()
                    .zip(order.iter().rev())
                    .for_each(|(a, j)| *a = f64::from(mean[i * rows + j]));
                a[at] += added;
            });
        lower_factor(&mut a, rows, split).map_err(|at| NoFactor::Negative {
            column: order[rows - 1 - at],
        })?;
        let upper = |i: usize, j: usize| a[(rows - 1 - i) * rows + rows - 1 - j];
        let mut coupling = vec![0.0f32; rows * rows];
        coupling
            .par_chunks_mut(rows.max(1))
            .enumerate()
            .for_each(|(k, out)| {
                let mut row = Vec::new();
                for block in starts.windows(2).filter(|block| block[0] > k) {
                    // Times the inverse of the block's diagonal triangle.
                    row.clear();
                    for j in block[0]..block[1] {
                        let sum: f64 = row
                            .iter()
                            .zip(block[0]..)
                            .map(|(x, i)| x * upper(i, j))
                            .sum();
                        row.push((upper(k, j) - sum) / upper(j, j));
                    }
                    out[block[0]..block[1]]
                        .iter_mut()
                        .zip(&row)
                        .for_each(|(out, x)| *out = *x as f32);
                }
            });
        Ok(OutputFactor {
            rows,
            order,
            starts,
            coupling,
            mean,
        })
    }

    /// Peak memory of factoring `rows` rows, in bytes: the Hessian, its copy in f64, and the
    /// factor.
    pub fn working_bytes(rows: u64) -> u64 {
        16 * rows * rows
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Processes the blocks of rows in order. `round` replaces the targets of a block, `[rows, n]`,
    /// by rounded values. `matrix` holds the targets of all rows without feedback between rows.
    pub(super) fn round_blocks(
        &self,
        matrix: &[f32],
        n: usize,
        split: usize,
        mut round: impl FnMut(&[usize], &mut [f32]),
    ) {
        let mut errors = vec![0.0f32; self.rows * n];
        for block in self.starts.windows(2) {
            let (from, to) = (block[0], block[1]);
            let rows = &self.order[from..to];
            let target: Vec<f32> = rows
                .iter()
                .flat_map(|row| &matrix[row * n..][..n])
                .copied()
                .collect();
            let mut rounded = target.clone();
            if from > 0 {
                let coupling =
                    View::new(&self.coupling[from..], from, to - from, self.rows).transposed();
                add_product(
                    coupling,
                    View::new(&errors, from, n, n),
                    &mut rounded,
                    n,
                    split,
                );
            }
            round(rows, &mut rounded);
            let block_errors = errors[from * n..to * n].iter_mut();
            block_errors
                .zip(&target)
                .zip(&rounded)
                .for_each(|((error, target), rounded)| *error = target - rounded);
        }
    }

    /// The cost of errors `[rows, k]` of `k` products: the sum over products `p` of `p^T G p`.
    pub(super) fn cost(&self, errors: &[f32], split: usize) -> f64 {
        let (m, k) = (self.rows, errors.len() / self.rows.max(1));
        let mut weighted = vec![0.0f32; m * k];
        multiply(
            View::new(&self.mean, m, m, m),
            View::new(errors, m, k, k),
            &mut weighted,
            k,
            split,
        );
        weighted
            .iter()
            .zip(errors)
            .map(|(w, e)| f64::from(*w) * f64::from(*e))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quantier_core::rng::Rng;

    /// The Hessian of vectors with a few dominant directions.
    fn hessian(m: usize) -> Vec<f32> {
        let mut rng = Rng::new(5);
        let mut next = || rng.centered();
        let strong: Vec<f32> = (0..4 * m).map(|_| next()).collect();
        let mut mean = vec![0.0f32; m * m];
        for _ in 0..200 {
            let amounts: [f32; 4] = std::array::from_fn(|_| 3.0 * next());
            let mix = |i: usize| {
                amounts
                    .iter()
                    .enumerate()
                    .map(|(d, a)| a * strong[d * m + i])
                    .sum::<f32>()
            };
            let x: Vec<f32> = (0..m).map(|i| mix(i) + 0.3 * next()).collect();
            mean.iter_mut()
                .enumerate()
                .for_each(|(at, c)| *c += x[at / m] * x[at % m] / 200.0);
        }
        mean
    }

    /// Block by block rounding to integers costs less than rounding without feedback, and visits
    /// every row once.
    #[test]
    fn feedback_between_rows_reduces_the_cost() {
        for (m, n) in [(8, 3), (100, 4), (700, 2)] {
            let factor = OutputFactor::new(hessian(m), m, 2).unwrap();
            let weights: Vec<f32> = (0..m * n)
                .map(|i| ((i * 7919 % 613) as f32 - 306.0) / 61.0)
                .collect();
            let (mut rounded, mut seen) = (vec![0.0; m * n], vec![0; m]);
            factor.round_blocks(&weights, n, 2, |rows, numbers| {
                numbers.iter_mut().for_each(|x| *x = x.round());
                for (row, numbers) in rows.iter().zip(numbers.chunks(n)) {
                    rounded[row * n..][..n].copy_from_slice(numbers);
                    seen[*row] += 1;
                }
            });
            assert!(seen.iter().all(|times| *times == 1));
            let errors = |rounded: &dyn Fn(usize) -> f32| -> Vec<f32> {
                (0..m * n).map(|i| weights[i] - rounded(i)).collect()
            };
            let ours = factor.cost(&errors(&|i| rounded[i]), 1);
            let plain = factor.cost(&errors(&|i| weights[i].round()), 1);
            let blocks = factor.starts.len() - 1;
            match blocks {
                1 => assert_eq!(ours, plain),
                _ => assert!(ours < 0.6 * plain, "{m}: {ours}, {plain} by itself"),
            }
        }
    }

    /// If the last block is not rounded, its targets minimize the cost: the gradient is zero there.
    #[test]
    fn unrounded_rows_minimize_the_cost() {
        let (m, n) = (64, 2);
        let mean = hessian(m);
        let factor = OutputFactor::new(mean.clone(), m, 1).unwrap();
        let weights: Vec<f32> = (0..m * n)
            .map(|i| ((i * 7919 % 613) as f32 - 306.0) / 61.0)
            .collect();
        let (mut rounded, mut last) = (vec![0.0; m * n], Vec::new());
        factor.round_blocks(&weights, n, 1, |rows, numbers| {
            if rows[0] + 1 != factor.starts.len() - 1 {
                numbers.iter_mut().for_each(|x| *x = x.round());
            }
            last = rows.to_vec();
            rows.iter()
                .zip(numbers.chunks(n))
                .for_each(|(row, x)| rounded[row * n..][..n].copy_from_slice(x));
        });
        let added = InputFactor::added(&mean, m, ROW_DAMPING).unwrap();
        for i in last {
            for column in 0..n {
                let error = |k: usize| f64::from(weights[k * n + column] - rounded[k * n + column]);
                let term = |k: usize| {
                    (f64::from(mean[i * m + k]) + if i == k { added } else { 0.0 }) * error(k)
                };
                let sum: f64 = (0..m).map(term).sum();
                let scale: f64 = (0..m).map(|k| term(k).abs()).sum();
                assert!(sum.abs() < 1e-4 * scale, "row {i}: {sum} of {scale}");
            }
        }
    }
}
