//! The factor of an input Hessian: the coupling of errors between columns.
//!
//! With `H` the mean of `x x^T` over inputs `x`, an error `e` of a row of weights costs `e^T H e`.
//! Columns are rounded in order, and the columns not yet rounded compensate the errors so far as
//! well as possible: then column `j`, with the compensated weight `w'_j`, costs `costs[j] (w'_j -
//! q_j)^2` and changes `w'_k` of every later column by `-coupling[j][k] (w'_j - q_j)`. With `H^-1 =
//! U^T U`, `U` upper triangular, these are `1 / U_jj^2` and `U_jk / U_jj` (GPTQ, Frantar et al.
//! 2022).

use crate::matrix::{View, multiply, subtract_product};
use quantier_blocks::feedback::{Coupling, Curvature, Metric};
use rayon::prelude::*;
use std::ops::Range;

/// Damping of the diagonal, relative to its mean: the Hessian of few inputs has directions without
/// any, in which errors still cost.
pub const DAMPING: f64 = 0.01;
/// Columns eliminated together.
const PANEL: usize = 128;

/// Errors of factoring a Hessian.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum NoFactor {
    /// A number that is not finite.
    #[error("its Hessian is not finite at [{row}, {column}]")]
    NotFinite {
        /// Input channel.
        row: usize,
        /// Input channel.
        column: usize,
    },
    /// All inputs are zero.
    #[error("its inputs were all zero")]
    Zero,
    /// Not positive definite: a combination of inputs has a negative square.
    #[error(
        "its Hessian is not positive definite: eliminating channel {column} leaves a negative square"
    )]
    Negative {
        /// Input channel.
        column: usize,
    },
}

/// The factor of an input Hessian.
pub struct InputFactor {
    columns: usize,
    /// `[columns, columns]`: 1 on the diagonal, 0 below it.
    coupling: Vec<f32>,
    costs: Vec<f32>,
    groups: Vec<Metric>,
}

impl InputFactor {
    /// The factor of a Hessian `[columns, columns]`, in f64, with `damping` times the mean of its
    /// diagonal added to the diagonal. Channels without inputs are not coupled.
    ///
    /// Costs [`InputFactor::operations`], with a peak memory of [`InputFactor::working_bytes`].
    /// `split` is the maximum number of threads.
    ///
    /// # Errors
    /// Numbers that are not finite, inputs that are all zero, a matrix that is not positive
    /// definite.
    ///
    /// # Panics
    /// If the length of `mean` is not `columns` times `columns`.
    pub fn new(
        mean: &[f32],
        columns: usize,
        damping: f64,
        split: usize,
    ) -> Result<InputFactor, NoFactor> {
        assert_eq!(
            mean.len(),
            columns * columns,
            "a Hessian of {columns} columns"
        );
        let added = InputFactor::added(mean, columns, damping)?;
        // In reversed order, so that the reversed lower triangular factor is the upper one.
        let mut a: Vec<f64> = mean.iter().rev().map(|x| f64::from(*x)).collect();
        a.iter_mut().step_by(columns + 1).for_each(|x| *x += added);
        lower_factor(&mut a, columns, split).map_err(|at| NoFactor::Negative {
            column: columns - 1 - at,
        })?;
        invert_lower(&mut a, columns, split);
        let mut coupling = vec![0.0f32; columns * columns];
        let mut costs = vec![0.0f32; columns];
        let rows = coupling
            .par_chunks_mut(columns.max(1))
            .zip(a.par_chunks(columns.max(1)).rev())
            .zip(&mut costs);
        rows.enumerate().for_each(|(j, ((coupling, a), cost))| {
            let diagonal = a[columns - 1 - j];
            *cost = (1.0 / (diagonal * diagonal)) as f32;
            for (k, coupling) in coupling.iter_mut().enumerate().skip(j) {
                *coupling = (a[columns - 1 - k] / diagonal) as f32;
            }
        });
        let group = |g: usize| {
            let row = |j: usize| &coupling[(8 * g + j) * columns + 8 * g..][..8];
            Metric::new(std::array::from_fn(row), &costs[8 * g..][..8])
        };
        let groups = (0..columns / 8).map(group).collect();
        Ok(InputFactor {
            columns,
            coupling,
            costs,
            groups,
        })
    }

    /// Multiplications and additions in f64 for the factor of `columns` columns: a third of
    /// `columns^3` for the triangle, and two thirds for its inverse, which multiplies zeros too.
    pub fn operations(columns: u64) -> f64 {
        (columns as f64).powi(3)
    }

    /// The addend of a Hessian's diagonal: `damping` times its mean.
    ///
    /// # Errors
    /// Numbers that are not finite, or a zero diagonal.
    pub(super) fn added(mean: &[f32], columns: usize, damping: f64) -> Result<f64, NoFactor> {
        if let Some(at) = mean.iter().position(|x| !x.is_finite()) {
            return Err(NoFactor::NotFinite {
                row: at / columns,
                column: at % columns,
            });
        }
        let trace: f64 = mean
            .iter()
            .step_by(columns + 1)
            .map(|x| f64::from(*x))
            .sum();
        if trace <= 0.0 {
            return Err(NoFactor::Zero);
        }
        Ok(damping * trace / columns as f64)
    }

    /// Peak memory of factoring `columns` columns, in bytes: the Hessian, its copy in f64, and the
    /// factor.
    pub fn working_bytes(columns: u64) -> u64 {
        16 * columns * columns
    }

    /// Multiplies rows `[any, columns]` by the inverse of the Hessian from the right, in `4 rows
    /// columns^2` operations on at most `split` threads.
    pub(super) fn divide(&self, rows: &mut [f32], split: usize) {
        let n = self.columns;
        let count = rows.len() / n.max(1);
        // The inverse is U^T U; row by row, U is the coupling times the square root of 1 / costs.
        let mut products = vec![0.0f32; rows.len()];
        let coupling = View::new(&self.coupling, n, n, n);
        multiply(
            View::new(rows, count, n, n),
            coupling.transposed(),
            &mut products,
            n,
            split,
        );
        products.chunks_exact_mut(n).for_each(|row| {
            row.iter_mut()
                .zip(&self.costs)
                .for_each(|(x, cost)| *x /= cost)
        });
        multiply(View::new(&products, count, n, n), coupling, rows, n, split);
    }

    /// Number of columns.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The coupling of the columns starting at `from`.
    pub(super) fn coupling(&self, from: usize) -> Coupling<'_> {
        Coupling {
            rows: &self.coupling[from * self.columns + from..],
            stride: self.columns,
            costs: &self.costs[from..],
            groups: &self.groups[from / 8..],
        }
    }

    /// Effect of errors of the columns `from .. to` on the columns `to .. end`.
    pub(super) fn later(&self, from: usize, to: usize, end: usize) -> View<'_> {
        View::new(
            &self.coupling[from * self.columns + to..],
            to - from,
            end - to,
            self.columns,
        )
    }
}

/// An input Hessian with the damping of its factor, for changes of rounded weights.
pub(crate) struct InputCurvature {
    columns: usize,
    /// `[columns, columns]`.
    hessian: Vec<f32>,
    /// The Hessian among each group of eight columns.
    groups: Vec<Metric>,
}

impl InputCurvature {
    /// The curvature of a Hessian `[columns, columns]`, with `damping` times the mean of its diagonal added
    /// to the diagonal.
    pub(crate) fn new(mut hessian: Vec<f32>, columns: usize, damping: f64) -> InputCurvature {
        let added = InputFactor::added(&hessian, columns, damping).unwrap_or(0.0) as f32;
        let diagonal = hessian.iter_mut().step_by(columns + 1);
        diagonal.for_each(|x| *x += added);
        let group = |g: usize| {
            let row =
                |j: usize| std::array::from_fn(|k| hessian[(8 * g + j) * columns + 8 * g + k]);
            Metric::of_hessian(std::array::from_fn(row))
        };
        let groups = (0..columns / 8).map(group).collect();
        InputCurvature {
            columns,
            hessian,
            groups,
        }
    }

    /// The whole Hessian.
    pub(crate) fn hessian(&self) -> View<'_> {
        View::new(&self.hessian, self.columns, self.columns, self.columns)
    }

    /// Some rows and columns.
    pub(crate) fn part(&self, rows: Range<usize>, columns: Range<usize>) -> View<'_> {
        let first = &self.hessian[rows.start * self.columns + columns.start..];
        View::new(first, rows.len(), columns.len(), self.columns)
    }

    /// Row of a column.
    pub(crate) fn row(&self, column: usize) -> &[f32] {
        &self.hessian[column * self.columns..][..self.columns]
    }

    /// The part among the columns from `from` on.
    pub(crate) fn of_block(&self, from: usize) -> Curvature<'_> {
        Curvature {
            rows: &self.hessian[from * self.columns + from..],
            stride: self.columns,
            groups: &self.groups[from / 8..],
        }
    }
}

/// Cholesky factor `a = L L^T` in place, from the lower triangle of a symmetric matrix; the part
/// above the diagonal is set to 0. The error is the first column with a pivot that is not positive.
pub(super) fn lower_factor(a: &mut [f64], n: usize, split: usize) -> Result<(), usize> {
    for from in (0..n).step_by(PANEL) {
        let to = (from + PANEL).min(n);
        let width = to - from;
        let mut corner = vec![0.0f64; width * width];
        for (row, corner) in corner.chunks_exact_mut(width).enumerate() {
            corner.copy_from_slice(&a[(from + row) * n + from..][..width]);
        }
        for j in 0..width {
            let above: f64 = corner[j * width..][..j].iter().map(|x| x * x).sum();
            let square = corner[j * width + j] - above;
            if square <= 0.0 || !square.is_finite() {
                return Err(from + j);
            }
            let diagonal = square.sqrt();
            corner[j * width + j] = diagonal;
            for i in j + 1..width {
                let product: f64 = (0..j)
                    .map(|k| corner[i * width + k] * corner[j * width + k])
                    .sum();
                corner[i * width + j] = (corner[i * width + j] - product) / diagonal;
            }
        }
        for (row, corner) in corner.chunks_exact_mut(width).enumerate() {
            corner[row + 1..].fill(0.0);
            a[(from + row) * n..][from..to].copy_from_slice(corner);
            a[(from + row) * n..][to..n].fill(0.0);
        }
        // The rows below, times the inverse of the corner's transpose.
        let mut panel = vec![0.0f64; (n - to) * width];
        let below = &mut a[to * n..];
        below
            .par_chunks_mut(n)
            .zip(panel.par_chunks_mut(width))
            .for_each(|(row, copy)| {
                let row = &mut row[from..to];
                for j in 0..width {
                    let product: f64 = (0..j).map(|k| row[k] * corner[j * width + k]).sum();
                    row[j] = (row[j] - product) / corner[j * width + j];
                }
                copy.copy_from_slice(row);
            });
        // The Schur complement, its lower triangle in bands.
        for (band, rows) in below.chunks_mut(n * 2 * PANEL).enumerate() {
            let (first, count) = (band * 2 * PANEL, rows.len() / n);
            let view =
                |from: usize, count: usize| View::new(&panel[from * width..], count, width, width);
            let end = first + count;
            subtract_product(
                view(first, count),
                view(0, end).transposed(),
                &mut rows[to..],
                n,
                split,
            );
        }
    }
    Ok(())
}

/// Inverts a lower triangular matrix in place, with zeros above the diagonal.
fn invert_lower(a: &mut [f64], n: usize, split: usize) {
    for from in (0..n).step_by(PANEL) {
        let to = (from + PANEL).min(n);
        let width = to - from;
        let (above, panel) = a.split_at_mut(from * n);
        let panel = &mut panel[..width * n];
        let mut corner = vec![0.0f64; width * width];
        for j in 0..width {
            corner[j * width + j] = 1.0 / panel[j * n + from + j];
            for i in j + 1..width {
                let product: f64 = (j..i)
                    .map(|k| panel[i * n + from + k] * corner[k * width + j])
                    .sum();
                corner[i * width + j] = -product / panel[i * n + from + i];
            }
        }
        if from > 0 {
            let mut product = vec![0.0f64; width * from];
            multiply(
                View::new(panel, width, from, n),
                View::new(above, from, from, n),
                &mut product,
                from,
                split,
            );
            panel
                .chunks_exact_mut(n)
                .for_each(|row| row[..from].fill(0.0));
            subtract_product(
                View::new(&corner, width, width, width),
                View::new(&product, width, from, from),
                panel,
                n,
                split,
            );
        }
        for (row, corner) in panel.chunks_exact_mut(n).zip(corner.chunks_exact(width)) {
            row[from..to].copy_from_slice(corner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quantier_core::rng::Rng;

    /// The Hessian of few more vectors than columns.
    fn hessian(n: usize) -> Vec<f32> {
        let mut rng = Rng::new(1);
        let vectors: Vec<f32> = (0..(n + 3) * n).map(|_| rng.centered()).collect();
        let mut mean = vec![0.0; n * n];
        for x in vectors.chunks(n) {
            for i in 0..n {
                for j in 0..n {
                    mean[i * n + j] +=
                        x[i] * x[j] * (1.0 + i as f32 / 10.0) * (1.0 + j as f32 / 10.0);
                }
            }
        }
        mean
    }

    /// The costs of errors column by column add up to their joint cost.
    #[test]
    fn costs_of_columns_add_up() {
        for n in [8, 136, 300] {
            let mean = hessian(n);
            let factor = InputFactor::new(&mean, n, 0.0, 1).unwrap();
            let weights: Vec<f64> = (0..n).map(|i| ((i * 37 % 19) as f64 - 9.0) / 7.0).collect();
            let chosen: Vec<f64> = weights.iter().map(|x| (x * 2.0).round() / 2.0).collect();
            let (mut open, mut in_turn) = (weights.clone(), 0.0);
            for j in 0..n {
                let error = open[j] - chosen[j];
                in_turn += f64::from(factor.costs[j]) * error * error;
                let factors = &factor.coupling[j * n..(j + 1) * n];
                open.iter_mut()
                    .zip(factors)
                    .skip(j + 1)
                    .for_each(|(open, f)| *open -= f64::from(*f) * error);
            }
            let errors: Vec<f64> = weights.iter().zip(&chosen).map(|(a, b)| a - b).collect();
            let row = |i: usize| {
                (0..n)
                    .map(|j| f64::from(mean[i * n + j]) * errors[j])
                    .sum::<f64>()
            };
            let together: f64 = (0..n).map(|i| errors[i] * row(i)).sum();
            assert!(
                (in_turn / together - 1.0).abs() < 2e-3,
                "{n}: {in_turn} in turn, {together} together"
            );
        }
    }

    /// Multiplication by the Hessian restores the rows.
    #[test]
    fn rows_are_divided_by_the_hessian() {
        let n = 136;
        let mean = hessian(n);
        let (factor, rows) = (InputFactor::new(&mean, n, 0.0, 1).unwrap(), 3);
        let weights: Vec<f32> = (0..rows * n)
            .map(|i| ((i * 37 % 19) as f32 - 9.0) / 7.0)
            .collect();
        let mut divided = weights.clone();
        factor.divide(&mut divided, 2);
        let mut again = vec![0.0; rows * n];
        multiply(
            View::new(&divided, rows, n, n),
            View::new(&mean, n, n, n),
            &mut again,
            n,
            1,
        );
        let off = weights
            .iter()
            .zip(&again)
            .map(|(w, a)| (w - a).abs())
            .fold(0.0, f32::max);
        assert!(off < 5e-3, "{off}");
    }

    #[test]
    fn factors_do_not_depend_on_threads() {
        let mean = hessian(300);
        let [one, two] =
            [1, 2].map(|split| InputFactor::new(&mean, 300, 0.01, split).unwrap().coupling);
        assert!(one == two);
    }

    #[test]
    fn invalid_hessians_are_refused() {
        let factor = |mean: &[f32], damping| InputFactor::new(mean, 2, damping, 1).map(|f| f.costs);
        assert_eq!(factor(&[0.0; 4], 0.01), Err(NoFactor::Zero));
        assert_eq!(
            factor(&[1.0, 0.0, f32::NAN, 1.0], 0.01),
            Err(NoFactor::NotFinite { row: 1, column: 0 })
        );
        assert_eq!(
            factor(&[1.0, 2.0, 2.0, 1.0], 0.01),
            Err(NoFactor::Negative { column: 0 })
        );
        // A channel without inputs costs its damping.
        let costs = factor(&[2.0, 0.0, 0.0, 0.0], 0.01).unwrap();
        assert!(
            (costs[0] - 2.01).abs() < 1e-6 && (costs[1] - 0.01).abs() < 1e-6,
            "{costs:?}"
        );
    }
}
