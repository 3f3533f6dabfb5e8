//! Rounding with error feedback: the levels of a block chosen one column after the other, each
//! column's error made good by the columns that are still open.
//!
//! A matrix `W` meets inputs `x`; what rounding costs it is the error of its output, `tr(E C E^T)`
//! with `E` the change of the weights and `C` the mean of `x x^T`. The best that open columns can
//! do about the error of a column is linear, the same for all rows, and stands in a factor of `C`
//! ([`Coupling`]; GPTQ, Frantar et al. 2022; LDLQ, Chee et al. 2023). Here is the step for one
//! block in eight rows; what lies before and behind a block is `crate::feedback`'s.
//!
//! ```text
//! the reference's search chooses the block's scales, for the weights as errors so far have changed them, with what errors
//!     of columns cost for their importance
//! for each sub-block: for its scale and for those beside it (Stepped::TRIES, Pointed::TRIES):
//!     for each column (or each group of a codebook): the level of least cost; its error goes to the columns behind it
//!     keep the scale of least cost
//! ```
//!
//! `stepped` is for types in which each weight has a level of its own, `pointed` for those with
//! codebooks.

mod pointed;
mod stepped;
#[cfg(test)]
mod tests;

pub(super) use pointed::{Choice, Eights, Fours, Pointed, Points, round_pointed};
pub(super) use stepped::{Grid, Stepped, Table, round_stepped};

/// How the errors of a block's columns act on each other, and what they cost.
#[derive(Clone, Copy)]
pub struct Coupling<'a> {
    /// Row `j` of this is for column `j` of the block: an error `e` of it takes `e * row[k]` from
    /// the weight of column `k > j`. What stands before column `j` does not count.
    pub rows: &'a [f32],
    /// From one row to the next.
    pub stride: usize,
    /// What the square of a column's error costs if the columns behind it make good what they can.
    pub costs: &'a [f32],
    /// By group of eight columns: what the errors of the group cost, as a quadratic form; and the
    /// same for the first four of them if the other four make good what they can.
    pub groups: &'a [Metric],
}

/// A quadratic form of the errors of eight columns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Metric {
    /// Of all eight.
    pub eight: [[f32; 8]; 8],
    /// Of the first four.
    pub first_four: [[f32; 4]; 4],
}

impl Coupling<'_> {
    /// The factors of column `j`, from column `from` up to `to`.
    #[inline(always)]
    fn row(&self, j: usize, from: usize, to: usize) -> &[f32] {
        &self.rows[j * self.stride..][from..to]
    }
}

/// Rounds one block of eight rows: `weights` and `blocks` have one array per row. On return,
/// `weights` holds the errors: each weight as it was when its turn came, less what the block says.
pub(super) type RoundEight = fn(crate::simd::Isa, Coupling<'_>, &mut [f32], &mut [u8]);

impl Metric {
    /// From the factors among eight columns (`coupling[j][k]` for `k > j`) and their costs.
    ///
    /// In turn, the errors are `e'_j = e_j - sum of coupling[k][j] e'_k over k < j`, and each costs
    /// `costs[j] e'_j^2`.
    pub fn new(coupling: [&[f32]; 8], costs: &[f32]) -> Metric {
        // turned[j][i]: how much of error i is in e'_j.
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
