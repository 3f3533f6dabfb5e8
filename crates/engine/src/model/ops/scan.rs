//! What recurrences over a state per head have in common: the columns of a head, steps in blocks,
//! decays within a block, and the way through the blocks, forwards and back.
//!
//! A block is computed of the state in front of it, as matrix products, and says what its steps put
//! out and what becomes of the state. The derivative goes through the blocks backwards, with the
//! state in front of each kept and everything within computed again.

use crate::model::rows::Rows;
use quantier_blocks::vector::{LANES, exp, vectorized};
use quantier_round::matrix::{View, multiply};
use rayon::prelude::*;
use std::ops::Range;

/// Steps that are taken together.
const BLOCK: usize = 64;

/// The sizes of a head.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    /// Steps in all.
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

    /// Computes a block of the state `[key, value]` in front of it.
    fn block(&self, steps: Range<usize>, state: &[f32]) -> Self::Block<'_>;

    /// The outputs of all steps, from a state of zeros: `[positions, value]`.
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

    /// The derivative of [`Steps::scan`], of the gradient `g` of the outputs: `put` gets the
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

/// What is computed of the steps of a block.
pub(super) trait Block {
    /// Gradients of what the steps read.
    type Gradient;

    /// What the steps put out: `[steps, value]`, in place of what `out` holds.
    fn outputs(&self, out: &mut [f32]);

    /// From the state in front of the block to that behind it.
    fn advance(&self, state: &mut [f32]);

    /// The derivative, of the gradient `g` of the outputs and of that of the state behind the
    /// block, which becomes that of the state in front of it.
    fn derivative(&self, g: View<'_>, state: &[f32], of_state: &mut [f32]) -> Self::Gradient;
}

/// The blocks of so many steps.
pub(super) fn blocks(
    positions: usize,
) -> impl ExactSizeIterator<Item = Range<usize>> + DoubleEndedIterator {
    let starts = (0..positions.div_ceil(BLOCK)).map(|block| block * BLOCK);
    starts.map(move |start| start..(start + BLOCK).min(positions))
}

/// The number of the block of these steps.
pub(super) fn block_of(steps: &Range<usize>) -> usize {
    steps.start / BLOCK
}

/// How much steps keep of a state, within a block.
pub(super) struct Decays {
    /// `c_i`: what is kept of the state in front of the block after each step.
    pub kept: Vec<f32>,
    /// `r_ij = c_i / c_j` for `j <= i`, else 0: `[steps, steps]`.
    pub ratios: Vec<f32>,
}

impl Decays {
    /// Of the logarithms of what each step keeps, none of them above 0.
    pub(super) fn new(logarithms: &[f32]) -> Decays {
        let count = logarithms.len();
        let mut sum = 0.0;
        let sums = logarithms.iter().map(|logarithm| {
            sum += logarithm;
            sum
        });
        let sums: Vec<f32> = sums.collect();
        let mut ratios = vec![0.0; count * count];
        vectorized(|| {
            for (i, row) in ratios.chunks_exact_mut(count).enumerate() {
                let places = row.iter_mut().zip(&sums[..=i]);
                places.for_each(|(ratio, earlier)| *ratio = exp(sums[i] - earlier));
            }
        });
        Decays {
            kept: sums.iter().map(|sum| exp(*sum)).collect(),
            ratios,
        }
    }

    /// The number of steps.
    pub(super) fn count(&self) -> usize {
        self.kept.len()
    }

    /// The ratio to the last step, of each step.
    pub(super) fn to_end(&self) -> &[f32] {
        &self.ratios[(self.count() - 1) * self.count()..]
    }

    /// What is kept of the state in front of the block behind it.
    pub(super) fn kept_to_end(&self) -> f32 {
        self.kept[self.count() - 1]
    }

    /// `r_ij x_ij` for `j <= i`, else 0.
    pub(super) fn weighed(&self, x: &[f32]) -> Vec<f32> {
        let pairs = self.ratios.iter().zip(x);
        pairs.map(|(ratio, x)| ratio * x).collect()
    }

    /// Adds to the gradients of the sums what rows `x_j`, scaled by the ratios to the end, lead to,
    /// of the gradients `g` of the scaled rows.
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

/// The gradients of logarithms, of those of their sums: each is in the sums of all later steps.
pub(super) fn of_logarithms(of_sums: &mut [f32]) {
    let mut sum = 0.0;
    for g in of_sums.iter_mut().rev() {
        sum += *g;
        *g = sum;
    }
}

/// Gives `take` what `f` makes of every head, in their order; `split` is how many threads may work
/// at a time.
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

/// The one number of a head in every row.
pub(super) fn number_of(rows: &Rows, head: usize) -> Vec<f32> {
    rows.iter().map(|row| row[head]).collect()
}

/// Adds the rows of a head to its columns.
pub(super) fn place(rows: &mut Rows, head: usize, of_head: &[f32], length: usize) {
    for (row, part) in rows.iter_mut().zip(of_head.chunks_exact(length)) {
        add(&mut row[head * length..][..length], part, 1.0);
    }
}

/// Puts the rows of some steps in their place among those of all steps.
pub(super) fn put(all: &mut [f32], steps: &Range<usize>, of_steps: &[f32]) {
    let length = of_steps.len() / steps.len();
    all[steps.start * length..steps.end * length].copy_from_slice(of_steps);
}

/// As many zeros.
pub(super) fn zeros(x: &Rows) -> Rows {
    Rows::zeros(x.len(), x.columns())
}

/// `x += scale y`.
pub(super) fn add(x: &mut [f32], y: &[f32], scale: f32) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += scale * y);
}

/// The dot product: lane by lane, then the lanes.
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

/// Every row times its number, or times numbers of its own.
pub(super) fn scaled(x: &[f32], columns: usize, scales: &[f32]) -> Vec<f32> {
    let mut out = x.to_vec();
    let each = scales.len() / (x.len() / columns).max(1);
    let rows = out.chunks_exact_mut(columns);
    let rows = rows.zip(scales.chunks_exact(each.max(1)));
    vectorized(|| {
        for (row, scales) in rows {
            match scales {
                [scale] => row.iter_mut().for_each(|x| *x *= scale),
                scales => row.iter_mut().zip(scales).for_each(|(x, s)| *x *= s),
            }
        }
    });
    out
}

/// A matrix in a slice, row by row.
pub(super) fn whole(x: &[f32], columns: usize) -> View<'_> {
    View::new(x, x.len() / columns, columns, columns)
}

pub(super) fn product(a: View<'_>, b: View<'_>) -> Vec<f32> {
    let mut out = vec![0.0; a.rows() * b.columns()];
    multiply(a, b, &mut out, b.columns(), 1);
    out
}
