//! Rounding with error feedback: the levels of a block are chosen column by column, and each
//! column's error is compensated in the columns not yet rounded.
//!
//! Rounding a matrix `W` with input Hessian `H = E[x x^T]` costs the error of its output,
//! `tr(D H D^T)` with `D` the change of the weights. The optimal compensation of a column's error is
//! linear, the same for all rows, and follows from a factor of `H` ([`Coupling`]; GPTQ, Frantar et
//! al. 2022; LDLQ, Chee et al. 2023). This is the step for one block of eight rows; the crate
//! quantier-round carries errors from block to block.
//!
//! ```text
//! the reference's search chooses the scales of the block, for the compensated weights, with the costs of the columns as
//!     importance
//! for each sub-block: for its scale and for adjacent ones (Stepped::TRIES, Pointed::TRIES):
//!     for each column (or each group of a codebook): the level of least cost; its error goes to the later columns
//!     keep the scale of least cost
//! ```
//!
//! `stepped` is for types with a level for each weight, `pointed` for codebook types.

mod descent;
mod pointed;
mod recode;
mod stepped;
#[cfg(test)]
mod tests;

pub use descent::{Curvature, Rounded};
pub(super) use descent::{Descend, descend_pointed, descend_stepped};
pub(super) use pointed::{Choice, Eights, Fours, Pointed, Points, round_pointed};
pub(super) use recode::{
    Recode, Steps, recode_pointed, recode_stepped, steps_pointed, steps_stepped,
};
pub(super) use stepped::{Grid, Stepped, Table, round_stepped};

/// Factors of the input Hessian for one block: compensation and cost of the columns' errors.
#[derive(Clone, Copy)]
pub struct Coupling<'a> {
    /// Row `j` compensates column `j` of the block: an error `e` changes the weight of column `k > j`
    /// by `-e * row[k]`. Entries up to column `j` are ignored.
    pub rows: &'a [f32],
    /// Distance between rows.
    pub stride: usize,
    /// Cost of a column's squared error, after compensation in the later columns.
    pub costs: &'a [f32],
    /// Cost of the errors of each group of eight columns, after compensation.
    pub groups: &'a [Metric],
}

/// The cost of errors in eight columns, as a quadratic form.
#[derive(Clone, Copy, Debug, Default)]
pub struct Metric {
    /// Of all eight.
    pub eight: [[f32; 8]; 8],
    /// Of the first four, after compensation in the other four.
    pub first_four: [[f32; 4]; 4],
}

/// The longest block, in weights.
const LONGEST: usize = 256;

impl Coupling<'static> {
    /// Columns without coupling, all of the same cost.
    const NONE: Coupling<'static> = Coupling {
        rows: &[0.0; LONGEST],
        stride: 0,
        costs: &[1.0; LONGEST],
        groups: &[Metric::IDENTITY; LONGEST / 8],
    };
}

impl Coupling<'_> {
    /// The factors of column `j` for columns `from..to`.
    #[inline(always)]
    fn row(&self, j: usize, from: usize, to: usize) -> &[f32] {
        &self.rows[j * self.stride..][from..to]
    }
}

/// Rounds one block of eight rows: `weights` and `blocks` have one array per row. On return,
/// `weights` has the errors: each compensated weight less its rounded value.
pub(super) type RoundEight = fn(crate::simd::Isa, Coupling<'_>, &mut [f32], &mut [u8]);

impl Metric {
    /// The sum of squared errors.
    const IDENTITY: Metric = {
        let mut identity = Metric {
            eight: [[0.0; 8]; 8],
            first_four: [[0.0; 4]; 4],
        };
        let mut i = 0;
        while i < 8 {
            identity.eight[i][i] = 1.0;
            if i < 4 {
                identity.first_four[i][i] = 1.0;
            }
            i += 1;
        }
        identity
    };

    /// From the Hessian among eight columns, which is positive definite.
    pub fn of_hessian(eight: [[f32; 8]; 8]) -> Metric {
        // Without the last four columns, one after the other: their errors compensate.
        let mut rest = eight.map(|row| row.map(f64::from));
        for k in (4..8).rev() {
            for i in 0..k {
                let factor = rest[i][k] / rest[k][k];
                for j in 0..k {
                    rest[i][j] -= factor * rest[k][j];
                }
            }
        }
        Metric {
            eight,
            first_four: std::array::from_fn(|i| std::array::from_fn(|j| rest[i][j] as f32)),
        }
    }

    /// The errors `x` with `eight * x = slopes`.
    #[inline(always)]
    pub(super) fn solve(&self, slopes: &[f32; 8]) -> [f32; 8] {
        let (mut a, mut x) = (self.eight, *slopes);
        for k in 0..8 {
            for i in k + 1..8 {
                let factor = a[i][k] / a[k][k];
                for j in k + 1..8 {
                    a[i][j] -= factor * a[k][j];
                }
                x[i] -= factor * x[k];
            }
        }
        for k in (0..8).rev() {
            for j in k + 1..8 {
                x[k] -= a[k][j] * x[j];
            }
            x[k] /= a[k][k];
        }
        x
    }

    /// From the factors among eight columns (`coupling[j][k]` for `k > j`) and their costs.
    ///
    /// In turn, the errors are `e'_j = e_j - sum of coupling[k][j] e'_k over k < j`, and each costs
    /// `costs[j] e'_j^2`.
    pub fn new(coupling: [&[f32]; 8], costs: &[f32]) -> Metric {
        // turned[j][i]: coefficient of error i in e'_j.
        let mut turned = [[0.0f32; 8]; 8];
        for j in 0..8 {
            turned[j][j] = 1.0;
            for k in 0..j {
                for i in 0..=k {
                    turned[j][i] -= coupling[k][j] * turned[k][i];
                }
            }
        }
        let mut metric = Metric::default();
        for a in 0..8 {
            for b in 0..8 {
                let term = |j: usize| costs[j] * turned[j][a] * turned[j][b];
                metric.eight[a][b] = (0..8).map(term).sum();
                if a < 4 && b < 4 {
                    metric.first_four[a][b] = (0..4).map(term).sum();
                }
            }
        }
        metric
    }
}
