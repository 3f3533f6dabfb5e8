//! Common parts of recurrences with one state per head: columns of a head, blocks of steps, decays
//! within a block, and iteration over blocks, forward and backward.
//!
//! A block is computed from the state before it, as matrix products, and yields its outputs and the
//! next state. The derivative runs over the blocks in reverse; the state before each block is
//! stored, everything within is recomputed.

use crate::model::rows::Rows;
use quantier_blocks::vector::{LANES, exp, vectorized};
use quantier_round::matrix::{View, multiply};
use rayon::prelude::*;
use std::ops::Range;

/// Steps per block.
const BLOCK: usize = 64;

/// Dimensions of a head.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    /// Total number of steps.
    pub positions: usize,
    /// Rows of the state.
    pub key: usize,
    /// Columns of the state.
    pub value: usize,
}

/// The steps of one head.
pub(super) trait Steps {
    type Block<'b>: Block
    where
        Self: 'b;

    fn lengths(&self) -> Lengths;

    /// Computes a block from the state `[key, value]` before it.
    fn block(&self, steps: Range<usize>, state: &[f32]) -> Self::Block<'_>;

    /// Outputs of all steps, from a zero initial state: `[positions, value]`.
    fn scan(&self) -> Vec<f32> {
        let Lengths {
            positions,
            key,
            value,
        } = self.lengths();
        let mut out = vec![0.0; positions * value];
        let mut state = vec![0.0; key * value];
        for steps in blocks(positions) {
            let out = &mut out[steps.start * value..steps.end * value];
            let block = self.block(steps, &state);
            block.outputs(out);
            block.advance(&mut state);
        }
        out
    }

    /// Derivative of [`Steps::scan`], given the gradient `g` of the outputs: `put` receives the
    /// gradients of every block, the last one first.
    fn derivative<'s>(
        &'s self,
        g: View<'_>,
        mut put: impl FnMut(Range<usize>, <Self::Block<'s> as Block>::Gradient),
    ) {
        let Lengths {
            positions,
            key,
            value,
        } = self.lengths();
        let mut states = Vec::new();
        let mut state = vec![0.0; key * value];
        for steps in blocks(positions) {
            states.push(state.clone());
            self.block(steps, &state).advance(&mut state);
        }
        let mut of_state = vec![0.0; key * value];
        for (steps, state) in blocks(positions).zip(&states).rev() {
            let block = self.block(steps.clone(), state);
            let gradient = block.derivative(g.range(steps.clone()), state, &mut of_state);
            put(steps, gradient);
        }
    }
}

/// Computed values of a block.
pub(super) trait Block {
    /// Gradients of the steps' inputs.
    type Gradient;

    /// Overwrites `out` with the outputs of the steps: `[steps, value]`.
    fn outputs(&self, out: &mut [f32]);

    /// Advances the state from before the block to after it.
    fn advance(&self, state: &mut [f32]);

    /// Derivative, given the gradient `g` of the outputs. `of_state` enters as the gradient of the
    /// state after the block and leaves as that of the state before it.
    fn derivative(&self, g: View<'_>, state: &[f32], of_state: &mut [f32]) -> Self::Gradient;
}

/// Splits `positions` steps into blocks.
pub(super) fn blocks(
    positions: usize,
) -> impl ExactSizeIterator<Item = Range<usize>> + DoubleEndedIterator {
    let starts = (0..positions.div_ceil(BLOCK)).map(|block| block * BLOCK);
    starts.map(move |start| start..(start + BLOCK).min(positions))
}

/// Index of the block of these steps.
pub(super) fn block_of(steps: &Range<usize>) -> usize {
    steps.start / BLOCK
}

/// Cumulative decays within a block.
pub(super) struct Decays {
    /// `c_i`: decay factor from the start of the block through each step.
    pub kept: Vec<f32>,
    /// `r_ij = c_i / c_j` for `j <= i`, else 0: `[steps, steps]`.
    pub ratios: Vec<f32>,
}

impl Decays {
    /// From log decays of the steps, all at most 0.
    pub(super) fn new(logarithms: &[f32]) -> Decays {
        let count = logarithms.len();
        let mut sum = 0.0;
        let sums = logarithms.iter().map(|logarithm| {
            sum += logarithm;
            sum
        });
        let sums: Vec<f32> = sums.collect();
        let mut ratios = vec![0.0; count * count];
        vectorized(
            #[inline(always)]
            || {
                for (i, row) in ratios.chunks_exact_mut(count).enumerate() {
                    let places = row.iter_mut().zip(&sums[..=i]);
                    places.for_each(|(ratio, earlier)| *ratio = exp(sums[i] - earlier));
                }
            },
        );
        Decays {
            kept: sums.iter().map(|sum| exp(*sum)).collect(),
            ratios,
        }
    }

    /// Number of steps.
    pub(super) fn count(&self) -> usize {
        self.kept.len()
    }

    /// Decay factors from each step to the last.
    pub(super) fn to_end(&self) -> &[f32] {
        &self.ratios[(self.count() - 1) * self.count()..]
    }

    /// Decay factor over the whole block.
    pub(super) fn kept_to_end(&self) -> f32 {
        self.kept[self.count() - 1]
    }

    /// `r_ij x_ij` for `j <= i`, else 0.
    pub(super) fn weighed(&self, x: &[f32]) -> Vec<f32> {
        let pairs = self.ratios.iter().zip(x);
        pairs.map(|(ratio, x)| ratio * x).collect()
    }

    /// Derivative of `x_j r_last,j` with respect to the cumulative log decays: adds to `of_sums`,
    /// given the gradients `g` of the scaled rows.
    pub(super) fn add_of_ends(&self, of_sums: &mut [f32], g: &[f32], x: &[f32]) {
        let (last, length) = (self.count() - 1, x.len() / self.count());
        let rows = g.chunks_exact(length).zip(x.chunks_exact(length));
        for (j, (g, x)) in rows.enumerate() {
            let of_ratio = dot(g, x) * self.to_end()[j];
            of_sums[last] += of_ratio;
            of_sums[j] -= of_ratio;
        }
    }
}

/// Turns gradients of cumulative log decays into those of the log decays: suffix sums.
pub(super) fn of_logarithms(of_sums: &mut [f32]) {
    let mut sum = 0.0;
    for g in of_sums.iter_mut().rev() {
        sum += *g;
        *g = sum;
    }
}

/// Passes the result of `f` for every head to `take`, in order; `split` is the number of threads.
pub(super) fn each_head<T: Send>(
    heads: usize,
    split: usize,
    f: impl Fn(usize) -> T + Sync + Send,
    mut take: impl FnMut(usize, T),
) {
    if split <= 1 {
        (0..heads).for_each(|head| take(head, f(head)));
        return;
    }
    for first in (0..heads).step_by(split) {
        let some = first..(first + split).min(heads);
        let made: Vec<T> = some.clone().into_par_iter().map(&f).collect();
        some.zip(made).for_each(|(head, made)| take(head, made));
    }
}

/// The columns of a head.
pub(super) fn columns_of(rows: &Rows, head: usize, length: usize) -> View<'_> {
    let numbers = &rows.numbers()[head * length..];
    View::new(numbers, rows.len(), length, rows.columns())
}

/// The number of a head in every row.
pub(super) fn number_of(rows: &Rows, head: usize) -> Vec<f32> {
    rows.iter().map(|row| row[head]).collect()
}

/// Adds the rows of a head to its columns.
pub(super) fn place(rows: &mut Rows, head: usize, of_head: &[f32], length: usize) {
    for (row, part) in rows.iter_mut().zip(of_head.chunks_exact(length)) {
        add(&mut row[head * length..][..length], part, 1.0);
    }
}

/// Writes the rows of some steps among those of all steps.
pub(super) fn put(all: &mut [f32], steps: &Range<usize>, of_steps: &[f32]) {
    let length = of_steps.len() / steps.len();
    all[steps.start * length..steps.end * length].copy_from_slice(of_steps);
}

/// Zeros of the same shape.
pub(super) fn zeros(x: &Rows) -> Rows {
    Rows::zeros(x.len(), x.columns())
}

/// `x += scale y`.
pub(super) fn add(x: &mut [f32], y: &[f32], scale: f32) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += scale * y);
}

/// Dot product: per lane, then over the lanes.
#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let ((xs, x), (ys, y)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (x, y) in xs.iter().zip(ys) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += x * y;
        }
    }
    let rest = x.iter().zip(y).map(|(x, y)| x * y);
    sums.into_iter().chain(rest).sum()
}

/// Multiplies every row by its number, or elementwise.
pub(super) fn scaled(x: &[f32], columns: usize, scales: &[f32]) -> Vec<f32> {
    let mut out = x.to_vec();
    let each = scales.len() / (x.len() / columns).max(1);
    let rows = out.chunks_exact_mut(columns);
    let rows = rows.zip(scales.chunks_exact(each.max(1)));
    vectorized(
        #[inline(always)]
        || {
            for (row, scales) in rows {
                match scales {
                    [scale] => row.iter_mut().for_each(|x| *x *= scale),
                    scales => row.iter_mut().zip(scales).for_each(|(x, s)| *x *= s),
                }
            }
        },
    );
    out
}

/// A slice as a row-major matrix.
pub(super) fn whole(x: &[f32], columns: usize) -> View<'_> {
    View::new(x, x.len() / columns, columns, columns)
}

pub(super) fn product(a: View<'_>, b: View<'_>) -> Vec<f32> {
    let mut out = vec![0.0; a.rows() * b.columns()];
    multiply(a, b, &mut out, b.columns(), 1);
    out
}
