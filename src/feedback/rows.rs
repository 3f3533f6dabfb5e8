//! How the errors of rows act on each other: the other side of a matrix.
//!
//! An error `E` of a matrix costs the output of the model, to second order, about `tr(G E C E^T)`:
//! with `C` the covariance of what the matrix meets, and `G` that of the gradients at what it makes
//! (the Kronecker-factored form of Martens and Grosse 2015; for rounding YAQA, Tseng et al. 2025).
//! With `G = U D U^T`, `U` upper triangular with ones on its diagonal, this is the sum over rows
//! `i` of `D_i t C t^T`, where `t = E_i + sum over k < i of U_ki E_k`: so rows are rounded in their
//! order, each as if it were alone, towards its weights and what the errors of those before it ask
//! for.
//!
//! Rows are taken a block at a time, without feedback among those of a block, so that they can be
//! rounded side by side: then `D` is a block of `G`, and `U` times the inverse of its own blocks
//! takes the place of `U`.

use super::factor::lower_factor;
use super::{Factor, NoFactor};
use crate::matrix::{View, add_product, multiply};
use rayon::prelude::*;

/// The mean of the diagonal that is added to it, as a part of it: gradients are of fewer positions
/// than inputs are.
pub const ROW_DAMPING: f64 = 0.3;
/// The fewest and the most rows of a block.
const BLOCK: [usize; 2] = [16, 128];
/// The fewest blocks, as long as they are not too small.
const BLOCKS: usize = 32;

/// The factor of the covariance of the gradients at what a matrix makes.
pub struct RowFactor {
    rows: usize,
    /// The rows in the order in which they are rounded: those of a block are as far from each other
    /// as can be.
    order: Vec<usize>,
    /// Where blocks begin, and the end of the last.
    starts: Vec<usize>,
    /// `[rows, rows]` in that order: what an error of a row asks of each row in later blocks.
    coupling: Vec<f32>,
    /// The covariance: `[rows, rows]`.
    mean: Vec<f32>,
}

impl RowFactor {
    /// Of a covariance `[rows, rows]`, with [`ROW_DAMPING`] times the mean of its diagonal added to
    /// the diagonal, in f64. Takes [`RowFactor::working_bytes`] meanwhile. `split` is how many
    /// threads may share the work.
    ///
    /// # Errors
    /// Numbers that are not finite, gradients that were all zero, a matrix that is no covariance.
    ///
    /// # Panics
    /// If `mean` has not `rows` times `rows` numbers.
    pub fn new(mean: Vec<f32>, rows: usize, split: usize) -> Result<RowFactor, NoFactor> {
        assert_eq!(mean.len(), rows * rows, "a covariance of {rows} rows");
        let added = Factor::added(&mean, rows, ROW_DAMPING)?;
        let blocks = rows
            .div_ceil((rows / BLOCKS).clamp(BLOCK[0], BLOCK[1]))
            .max(1);
        let mut starts = vec![0];
        let mut order = Vec::with_capacity(rows);
        for block in 0..blocks {
            order.extend((block..rows).step_by(blocks));
            starts.push(order.len());
        }
        // From last to first: then the lower triangular factor, turned round, is the upper one that
        // is wanted.
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
                let mut asked = Vec::new();
                for block in starts.windows(2).filter(|block| block[0] > k) {
                    // Times the inverse of the block's own triangle.
                    asked.clear();
                    for j in block[0]..block[1] {
                        let sum: f64 = asked
                            .iter()
                            .zip(block[0]..)
                            .map(|(x, i)| x * upper(i, j))
                            .sum();
                        asked.push((upper(k, j) - sum) / upper(j, j));
                    }
                    out[block[0]..block[1]]
                        .iter_mut()
                        .zip(&asked)
                        .for_each(|(out, x)| *out = *x as f32);
                }
            });
        Ok(RowFactor {
            rows,
            order,
            starts,
            coupling,
            mean,
        })
    }

    /// What making the factor of so many rows takes: the covariance, its copy in f64, and the
    /// factor.
    pub fn working_bytes(rows: u64) -> u64 {
        16 * rows * rows
    }

    /// How many rows it is for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Goes through the blocks in their order. For each, `round` is given the rows and what they
    /// are to be rounded to, `[rows, n]`, and puts in its place what they become. Each row of
    /// `wanted` is one of the matrix.
    pub(super) fn through(
        &self,
        wanted: &[f32],
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
                .flat_map(|row| &wanted[row * n..][..n])
                .copied()
                .collect();
            let mut rounded = target.clone();
            if from > 0 {
                let asked =
                    View::new(&self.coupling[from..], from, to - from, self.rows).transposed();
                add_product(
                    asked,
                    View::new(&errors, from, n, n),
                    &mut rounded,
                    n,
                    split,
                );
            }
            round(rows, &mut rounded);
            let here = errors[from * n..to * n].iter_mut();
            here.zip(&target)
                .zip(&rounded)
                .for_each(|((error, target), rounded)| *error = target - rounded);
        }
    }

    /// What errors `[rows, k]` of `k` products cost: the sum over products `p` of `p^T G p`.
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

    /// Covariance of vectors with a few strong directions.
    fn covariance(m: usize) -> Vec<f32> {
        let mut state = 5u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
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

    /// Rounded to whole numbers, block after block, errors together cost less than each rounded by
    /// itself; every row comes once; and what the last block is asked for is what makes its cost
    /// least.
    #[test]
    fn errors_of_rows_make_each_other_good() {
        for (m, n) in [(8, 3), (100, 4), (700, 2)] {
            let factor = RowFactor::new(covariance(m), m, 2).unwrap();
            let wanted: Vec<f32> = (0..m * n)
                .map(|i| ((i * 7919 % 613) as f32 - 306.0) / 61.0)
                .collect();
            let (mut found, mut seen) = (vec![0.0; m * n], vec![0; m]);
            factor.through(&wanted, n, 2, |rows, numbers| {
                numbers.iter_mut().for_each(|x| *x = x.round());
                for (row, numbers) in rows.iter().zip(numbers.chunks(n)) {
                    found[row * n..][..n].copy_from_slice(numbers);
                    seen[*row] += 1;
                }
            });
            assert!(seen.iter().all(|times| *times == 1));
            let errors = |of: &dyn Fn(usize) -> f32| -> Vec<f32> {
                (0..m * n).map(|i| wanted[i] - of(i)).collect()
            };
            let ours = factor.cost(&errors(&|i| found[i]), 1);
            let plain = factor.cost(&errors(&|i| wanted[i].round()), 1);
            let blocks = factor.starts.len() - 1;
            match blocks {
                1 => assert_eq!(ours, plain),
                _ => assert!(ours < 0.6 * plain, "{m}: {ours}, {plain} by itself"),
            }
        }
    }

    /// Without rounding in the last block, its rows take what is best for all: the derivative of
    /// the cost is zero there.
    #[test]
    fn open_rows_take_what_is_best() {
        let (m, n) = (64, 2);
        let mean = covariance(m);
        let factor = RowFactor::new(mean.clone(), m, 1).unwrap();
        let wanted: Vec<f32> = (0..m * n)
            .map(|i| ((i * 7919 % 613) as f32 - 306.0) / 61.0)
            .collect();
        let (mut found, mut last) = (vec![0.0; m * n], Vec::new());
        factor.through(&wanted, n, 1, |rows, numbers| {
            if rows[0] + 1 != factor.starts.len() - 1 {
                numbers.iter_mut().for_each(|x| *x = x.round());
            }
            last = rows.to_vec();
            rows.iter()
                .zip(numbers.chunks(n))
                .for_each(|(row, x)| found[row * n..][..n].copy_from_slice(x));
        });
        let added = Factor::added(&mean, m, ROW_DAMPING).unwrap();
        for i in last {
            for column in 0..n {
                let error = |k: usize| f64::from(wanted[k * n + column] - found[k * n + column]);
                let of = |k: usize| {
                    (f64::from(mean[i * m + k]) + if i == k { added } else { 0.0 }) * error(k)
                };
                let sum: f64 = (0..m).map(of).sum();
                let scale: f64 = (0..m).map(|k| of(k).abs()).sum();
                assert!(sum.abs() < 1e-4 * scale, "row {i}: {sum} of {scale}");
            }
        }
    }
}
