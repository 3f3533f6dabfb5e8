//! Searches for the scale of a group of weights, shared by the types: weighted least squares over a
//! few candidates.
//!
//! In all of them, a candidate scale rounds the weights `x` to integer levels `l`; for these
//! levels, the best scale and its error have closed forms in weighted sums; the candidate with the
//! least error wins. The order is the reference's: floating-point sums depend on it, and the first
//! of equally good candidates wins.
//!
//! A lane is a group of weights: each search runs for eight at once, and every sum keeps its order.
//! Independent candidates also run in parallel, enough to hide the latency of the additions.
//! Branches, such as the acceptance of a candidate, become selections per lane. The weights are
//! transposed from rows to lanes for that ([`Simd::gather`]), at a few operations per weight.
//!
//! [`symmetric`] searches levels on both sides of zero, [`affine`] levels above an offset,
//! [`unsigned`] levels above zero.

mod affine;
mod symmetric;
mod unsigned;

pub(super) use affine::{
    Candidates, Measure, Origin, VECTORS, WITH_IMPORTANCE, affine, affine_levels, side_by_side,
};
pub(super) use symmetric::{
    Best, levels_of_inverse, levels_of_scale, symmetric, symmetric_by_descent,
};
pub(super) use unsigned::unsigned;

use crate::simd::{LANES, Simd};

/// Groups whose largest magnitude is smaller count as zero (ggml's `GROUP_MAX_EPS`).
pub(super) const VANISHING: f32 = 1e-15;

/// Maximum number of rounds of coordinate descent.
const ROUNDS: usize = 5;

/// The first eight items, padded with the last one. The results of padding lanes are ignored.
#[inline(always)]
pub(super) fn eight<T>(items: &[T]) -> [&T; LANES] {
    let last = items.len() - 1;
    std::array::from_fn(|lane| &items[lane.min(last)])
}

/// The sum of the squares, from first to last.
#[inline]
pub(super) fn sum_of_squares(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, v| sum + v * v)
}

/// [`sum_of_squares`] of eight blocks in lanes, which hides the latency of ordered sums.
#[inline(always)]
pub(super) fn sums_of_squares<S: Simd, const N: usize>(
    simd: S,
    blocks: [&[f32; N]; LANES],
) -> S::F32 {
    const { assert!(N.is_multiple_of(LANES)) };
    let mut sums = simd.splat(0.0);
    for part in 0..N / LANES {
        let rows = std::array::from_fn(|lane| simd.load(&blocks[lane].as_chunks().0[part]));
        for v in simd.transpose(rows) {
            sums = sums + v * v;
        }
    }
    sums
}

/// The blocks of a row, each with its index and [`sum_of_squares`], computed for eight at a time.
pub(super) struct WithSquares<'a, S, const N: usize> {
    simd: S,
    row: &'a [[f32; N]],
    next: usize,
    squares: [f32; LANES],
}

/// Blocks of a row with their sums of squares: see [`WithSquares`].
#[inline(always)]
pub(super) fn with_squares<S: Simd, const N: usize>(
    simd: S,
    row: &[[f32; N]],
) -> WithSquares<'_, S, N> {
    WithSquares {
        simd,
        row,
        next: 0,
        squares: [0.0; LANES],
    }
}

impl<'a, S: Simd, const N: usize> Iterator for WithSquares<'a, S, N> {
    type Item = (usize, &'a [f32; N], f32);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let i = self.next;
        let block = self.row.get(i)?;
        if i.is_multiple_of(LANES) {
            self.squares = self
                .simd
                .store(sums_of_squares(self.simd, eight(&self.row[i..])));
        }
        self.next += 1;
        Some((i, block, self.squares[i % LANES]))
    }
}

/// Error weights: the importance of the column times `sqrt(variance + x^2)`. `variance`, once or
/// twice the mean square of the block, bounds the error weight of small `x` from below.
#[inline]
pub(super) fn weigh<const N: usize>(
    x: &[f32; N],
    importance: &[f32; N],
    variance: f32,
) -> [f32; N] {
    std::array::from_fn(|i| importance[i] * (variance + x[i] * x[i]).sqrt())
}

/// [`weigh`] of a weight in each lane.
#[inline(always)]
pub(super) fn weigh_lanes<S: Simd>(
    simd: S,
    x: S::F32,
    importance: S::F32,
    variance: S::F32,
) -> S::F32 {
    importance * simd.sqrt(variance + x * x)
}

/// Minimum and maximum of the weights, including `low` and `high`; NaN is ignored. Of zeros with
/// different signs it may be either.
///
/// Minima do not depend on the order, so that eight run side by side.
#[inline(always)]
pub(super) fn bounds<const N: usize>(x: &[f32; N], low: f32, high: f32) -> (f32, f32) {
    const { assert!(N.is_multiple_of(8)) };
    let lower = |a: f32, b: f32| if b < a { b } else { a };
    let higher = |a: f32, b: f32| if b > a { b } else { a };
    let (mut lows, mut highs) = ([low; 8], [high; 8]);
    for eight in x.as_chunks::<8>().0 {
        for (i, &v) in eight.iter().enumerate() {
            lows[i] = lower(lows[i], v);
            highs[i] = higher(highs[i], v);
        }
    }
    for half in [4, 2, 1] {
        for i in 0..half {
            lows[i] = lower(lows[i], lows[i + half]);
            highs[i] = higher(highs[i], highs[i + half]);
        }
    }
    (lows[0], highs[0])
}

/// The number of largest magnitude, with its sign, the first of equals; 0 if none is above 0. NaN
/// is ignored.
#[inline(always)]
pub(super) fn extreme<const N: usize>(x: &[f32; N]) -> f32 {
    let (low, high) = bounds(x, 0.0, 0.0);
    if high > -low {
        high
    } else if high < -low {
        low
    } else {
        // Both signs reach it, or all are zero.
        x.iter()
            .copied()
            .find(|v| v.abs() == high && high > 0.0)
            .unwrap_or(0.0)
    }
}

/// [`extreme`] of the numbers in each lane.
#[inline(always)]
pub(super) fn extremes<S: Simd, const N: usize>(simd: S, x: &[S::F32; N]) -> S::F32 {
    let (mut low, mut high) = (simd.splat(0.0), simd.splat(0.0));
    for &v in x {
        low = simd.min(v, low);
        high = simd.max(v, high);
    }
    let mirrored = simd.neg(low);
    let mut extreme = simd.select(simd.lt(high, mirrored), low, high);
    let tied = simd.both(simd.eq(high, mirrored), simd.lt(low, high));
    if simd.any(tied) {
        for &v in x.iter().rev() {
            let reaches = simd.both(tied, simd.eq(simd.abs(v), high));
            extreme = simd.select(reaches, v, extreme);
        }
    }
    extreme
}
