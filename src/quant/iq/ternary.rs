//! The search that the ternary types share.
//!
//! Sorted by size, the weights of a sub-block fall into three runs with the values -1, 0 and 1 (plus a shift), so all
//! ways to split them are tried:
//!
//! ```text
//! for each first boundary, second boundary, choice of shifts:
//!     keep the one that explains the weights best, with the least-squares scale for it
//! turn everything round if that scale is negative
//! for each group of eight: where its trits are not in the book, take the nearest point that is
//! refit the scale if that happened
//! ```
//!
//! Sums run in source order and comparisons are strict, as in ggml.

use super::BLOCK;
use super::grid::{Codebook, Map, Neighbours, Place, cheapest, place_of_eight, read_points, spelled, tables};
use crate::quant::num::max;

const LEVELS: [[u8; 8]; 2048] = read_points(include_bytes!("data/iq1.hex"), 3);
/// The codebook of both types.
pub(super) static BOOK: Codebook<8, 2048> = Codebook::new(LEVELS, 3, 3);
/// Its points in trits.
pub(super) static TRITS: [[i8; 8]; 2048] = spelled(&LEVELS, [-1, 0, 1]);

/// How far all values are shifted, up or down.
const SHIFT: f32 = 0.125;
/// The three values, shifted up.
pub(super) const PLUS: [f32; 3] = [-1.0 + SHIFT, SHIFT, 1.0 + SHIFT];
/// The three values, shifted down.
pub(super) const MINUS: [f32; 3] = [-1.0 - SHIFT, -SHIFT, 1.0 - SHIFT];

/// Boundaries in the longest sub-block.
const BOUNDARIES: usize = 33;

/// For one first boundary: by choice of shifts and second boundary, the weighted sums of (weight * value) and
/// (value * value).
pub(super) struct Split<const C: usize> {
    pub(super) qx: [[f32; BOUNDARIES]; C],
    pub(super) qq: [[f32; BOUNDARIES]; C],
}

impl<const C: usize> Default for Split<C> {
    fn default() -> Self {
        Split { qx: [[0.0; BOUNDARIES]; C], qq: [[0.0; BOUNDARIES]; C] }
    }
}

/// What the search finds for a block of `B` sub-blocks of `G` groups; zero where a sub-block was taken for zero.
pub(super) struct Fit<const G: usize, const B: usize> {
    /// One per sub-block, not negative (but NaN where sums overflowed).
    pub(super) scales: [f32; B],
    pub(super) points: [[u16; G]; B],
    /// The choice of shifts.
    pub(super) choices: [usize; B],
}

/// The best split of a sub-block.
pub(super) struct Best {
    scale: f32,
    first: usize,
    last: usize,
    choice: usize,
}

/// A search over sub-blocks of `S` = 8 * `G` weights with `C` choices of shifts. To turn all shifts of choice `c`
/// round is choice `C - 1 - c`.
pub(super) trait Search<const S: usize, const G: usize, const C: usize> {
    /// Sub-blocks without a magnitude as large as this are taken for zero.
    const LEAST: f32;

    /// Whether a choice shifts a group down.
    fn shifted_down(choice: usize, group: usize) -> bool;

    /// Calls `row` with the sums for each first boundary, in ascending order; `order` lists the weights by size.
    /// Entries for second boundaries below the first have no meaning.
    fn splits(x: &[f32; S], weights: &[f32; S], order: &[usize; S], row: impl FnMut(usize, &Split<C>));

    /// Searches a block of `B * S` = 256 weights.
    #[inline(always)]
    fn fit<const B: usize>(map: &Map, x: &[f32; BLOCK], weights: &[f32; BLOCK]) -> Fit<G, B> {
        const { assert!(S == 8 * G && S * B == BLOCK && S < BOUNDARIES) };
        let mut fit = Fit { scales: [0.0; B], points: [[0; G]; B], choices: [0; B] };
        for (i, (x, weights)) in x.as_chunks::<S>().0.iter().zip(weights.as_chunks::<S>().0).enumerate() {
            let largest = x[1..].iter().fold(x[0].abs(), |largest, v| max(largest, v.abs()));
            if largest < Self::LEAST {
                continue;
            }
            if let Some((scale, points, choice)) = Self::fit_sub(map, x, weights) {
                (fit.scales[i], fit.points[i], fit.choices[i]) = (scale, points, choice);
            }
        }
        fit
    }

    /// Scale, points and choice of shifts of a sub-block; `None` if no split explains anything.
    #[inline(always)]
    fn fit_sub(map: &Map, x: &[f32; S], weights: &[f32; S]) -> Option<(f32, [u16; G], usize)> {
        let order = ascending(x);
        let Best { mut scale, first, last, mut choice } = Self::best_split(x, weights, &order)?;
        let mut trits = [0u8; S];
        for (rank, &i) in order.iter().enumerate() {
            trits[i] = u8::from(rank >= first) + u8::from(rank >= last);
        }
        if scale < 0.0 {
            trits = trits.map(|trit| 2 - trit);
            scale = -scale;
            choice = C - 1 - choice;
        }

        let values = |group: usize| if Self::shifted_down(choice, group) { &MINUS } else { &PLUS };
        let (x, weights) = (x.as_chunks::<8>().0, weights.as_chunks::<8>().0);
        let mut points = [0; G];
        let mut strayed = false;
        for (g, trits) in trits.as_chunks::<8>().0.iter().enumerate() {
            let above = |limit| trits.iter().rev().fold(0, |bits: u8, &trit| bits << 1 | u8::from(trit > limit));
            points[g] = match map.at(place_of_eight(above(0), above(1))) {
                Place::Known(point) => point,
                Place::Among(neighbours) => {
                    strayed = true;
                    let point = nearest(&neighbours, &x[g], &weights[g], scale, values(g));
                    let Some(point) = point else { return Some((f32::NAN, points, choice)) };
                    point
                }
            };
        }
        if strayed {
            let (mut qx, mut qq) = (0.0, 0.0);
            for (g, &point) in points.iter().enumerate() {
                for i in 0..8 {
                    let q = values(g)[usize::from(BOOK.levels[usize::from(point)][i])];
                    qx += weights[g][i] * q * x[g][i];
                    qq += weights[g][i] * q * q;
                }
            }
            if qx > 0.0 && qq > 0.0 {
                scale = qx / qq;
            }
        }
        Some((scale, points, choice))
    }

    /// The split that explains most, the first one if several do.
    #[inline(always)]
    fn best_split(x: &[f32; S], weights: &[f32; S], order: &[usize; S]) -> Option<Best> {
        let mut best = None;
        let mut score = -f32::MAX;
        Self::splits(x, weights, order, |first, split| {
            // Most first boundaries have nothing better to offer, which all lanes of a row can tell at once.
            let better = |qx: f32, qq: f32, score: f32| (qq > 0.0) & (qx * qx > score * qq);
            let any = (0..C).any(|choice| {
                let sums = split.qx[choice][first..S + 1].iter().zip(&split.qq[choice][first..S + 1]);
                sums.fold(false, |any, (&qx, &qq)| any | better(qx, qq, score))
            });
            if !any {
                return;
            }
            for last in first..S + 1 {
                for choice in 0..C {
                    let (qx, qq) = (split.qx[choice][last], split.qq[choice][last]);
                    if better(qx, qq, score) {
                        let scale = qx / qq;
                        score = scale * qx;
                        best = Some(Best { scale, first, last, choice });
                    }
                }
            }
        });
        best
    }
}

/// The numbers of the weights by size, those of equal weights ascending (glibc's `qsort` is a merge sort, and so
/// stable, for arrays this short).
#[inline]
fn ascending<const S: usize>(x: &[f32; S]) -> [usize; S] {
    const SIGN: u32 = 1 << 31;
    let mut keys: [u64; S] = std::array::from_fn(|i| {
        // Adding zero makes both zeros equal; then bits ascend with the numbers if negative ones are turned round.
        let bits = (x[i] + 0.0).to_bits();
        let ascending = if bits & SIGN == 0 { bits | SIGN } else { !bits };
        u64::from(ascending) << 32 | i as u64
    });
    keys.sort_unstable();
    keys.map(|key| key as u32 as usize)
}

/// The neighbour with the least weighted distance, the first one if several have. `None` if no distance is a number
/// that f32 can hold.
///
/// There ggml goes on to search the whole book, but compares with weights behind the group and behind the row, so that
/// its result means nothing; we let the block show its fault. It takes weights above some 1e12, for which no f16 scale
/// would do.
#[inline(always)]
fn nearest(
    neighbours: &Neighbours<'_>,
    x: &[f32; 8],
    weights: &[f32; 8],
    scale: f32,
    values: &[f32; 3],
) -> Option<u16> {
    let values = [values[0], values[1], values[2], 0.0];
    let costs: [[f32; 4]; 8] = std::array::from_fn(|i| {
        values.map(|v| {
            let off = scale * v - x[i];
            weights[i] * off * off
        })
    });
    let simd = crate::simd::Scalar;
    Some(neighbours.number(cheapest::<_, 8>(simd, neighbours, &tables(simd, &costs))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_keep_their_order() {
        assert_eq!(ascending(&[0.0, -0.0, 1.0, -1.0, 0.0, -2.0, 1.0, -1.0]), [5, 3, 7, 0, 1, 4, 2, 6]);
    }
}
