//! The search of the ternary codebook types.
//!
//! Sorted by size, the weights of a sub-block fall into three runs with the values -1, 0 and 1
//! (plus a shift), so all ways to split them are tried:
//!
//! ```text
//! for each first boundary, second boundary, choice of shifts:
//!     keep the one that fits the weights best, with its least-squares scale
//! negate everything if that scale is negative
//! for each group of eight: if its trits are not in the book, take the nearest point in it
//! refit the scale if any group changed
//! ```
//!
//! Sums run in source order and comparisons are strict, as in ggml. Optimizations:
//!
//! 1. Lanes are eight second boundaries. Acceptance of a split depends on the previous ones, so the lanes are first
//!    tested together against the best score so far, and one by one only if any is better.
//! 2. The search starts with a score that some split is known to beat, so that the slow path is rare
//!    ([`Search::floor`]). It costs a sample of the splits.
//! 3. Nothing is sorted: the rank of a weight is the number of weights before it, counted eight at a time.

use super::BLOCK;
use super::grid::{
    Codebook, Map, Neighbours, Place, cheapest, place_of_eight, read_points, spelled,
};
use crate::feedback::Eights;
use crate::num::max;
use crate::simd::{LANES, Simd};
use std::sync::OnceLock;

const LEVELS: [[u8; 8]; 2048] = read_points(include_bytes!("data/iq1.hex"), 3);
/// The codebook of both types.
pub(super) static BOOK: Codebook<8, 2048> = Codebook::new(LEVELS, 3, 3);
/// Its points in trits.
pub(super) static TRITS: [[i8; 8]; 2048] = spelled(&LEVELS, [-1, 0, 1]);

/// The points for error feedback, arranged on first use.
pub(super) fn eights() -> &'static Eights {
    static POINTS: OnceLock<Eights> = OnceLock::new();
    POINTS.get_or_init(|| Eights::new(&TRITS.map(|point| point.map(f32::from))))
}

/// Shift of all values, up or down.
pub(super) const SHIFT: f32 = 0.125;
/// The three values, shifted up.
pub(super) const PLUS: [f32; 3] = [-1.0 + SHIFT, SHIFT, 1.0 + SHIFT];
/// The three values, shifted down.
pub(super) const MINUS: [f32; 3] = [-1.0 - SHIFT, -SHIFT, 1.0 - SHIFT];

/// Result for a block of `B` sub-blocks of `G` groups; zero for sub-blocks treated as zero.
pub(super) struct Fit<const G: usize, const B: usize> {
    /// One per sub-block, not negative (but NaN where sums overflowed).
    pub(super) scales: [f32; B],
    pub(super) points: [[u16; G]; B],
    /// The choice of shifts.
    pub(super) choices: [usize; B],
}

/// A split of a sub-block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Split {
    scale: f32,
    first: usize,
    last: usize,
    choice: usize,
}

/// Eight splits in each of `C` choices of shifts: the weighted sums of (weight * value) and of
/// (value * value).
pub(super) struct Sums<V: Simd, const C: usize> {
    pub(super) qx: [V::F32; C],
    pub(super) qq: [V::F32; C],
}

/// The best split offered so far; the first of equals.
struct Best {
    score: f32,
    split: Option<Split>,
}

impl Best {
    /// Offers the splits at `first` and the eight boundaries from `last` on.
    #[inline(always)]
    fn offer<V: Simd, const C: usize>(
        &mut self,
        simd: V,
        [first, last]: [usize; 2],
        Sums { qx, qq }: Sums<V, C>,
    ) {
        let squares = squares::<V, C>(&qx);
        let masks = better(simd, self.score, &squares, &qq);
        let mut any = masks[0];
        for &mask in &masks[1..] {
            any = simd.either(any, mask);
        }
        if !simd.any(any) {
            return;
        }
        let (mut stored_qx, mut stored_qq, mut positive) =
            ([[0.0; LANES]; C], [[0.0; LANES]; C], [0; C]);
        for choice in 0..C {
            (stored_qx[choice], stored_qq[choice]) =
                (simd.store(qx[choice]), simd.store(qq[choice]));
            positive[choice] = simd.mask_bits(simd.gt(qq[choice], simd.splat(0.0)));
        }
        let positive = in_order(positive);
        let mut open = positive & in_order(bits(simd, &masks));
        while open != 0 {
            let next = open.trailing_zeros() as usize;
            let (lane, choice) = (next / C % LANES, next % C);
            let (qx, qq_of_next) = (stored_qx[choice][lane], stored_qq[choice][lane]);
            let scale = qx / qq_of_next;
            self.score = scale * qx;
            self.split = Some(Split {
                scale,
                first,
                last: last + lane,
                choice,
            });
            // All later lanes are tested again: a score can be a rounding error below the one it
            // beat.
            open = positive
                & !1 << next
                & in_order(bits(simd, &better(simd, self.score, &squares, &qq)));
        }
    }
}

#[inline(always)]
fn squares<V: Simd, const C: usize>(qx: &[V::F32; C]) -> [V::F32; C] {
    let mut squares = *qx;
    for x in &mut squares {
        *x = *x * *x;
    }
    squares
}

/// Lanes where `squares / qq` is above the score, for positive `qq`.
#[inline(always)]
fn better<V: Simd, const C: usize>(
    simd: V,
    score: f32,
    squares: &[V::F32; C],
    qq: &[V::F32; C],
) -> [V::Mask; C] {
    let score = simd.splat(score);
    let mut masks = [simd.lt(score * qq[0], squares[0]); C];
    for choice in 1..C {
        masks[choice] = simd.lt(score * qq[choice], squares[choice]);
    }
    masks
}

#[inline(always)]
fn bits<V: Simd, const C: usize>(simd: V, masks: &[V::Mask; C]) -> [u8; C] {
    let mut bits = [0; C];
    for choice in 0..C {
        bits[choice] = simd.mask_bits(masks[choice]);
    }
    bits
}

/// The bits of `C` masks in one word: bit `C * lane + choice`.
#[inline(always)]
fn in_order<const C: usize>(masks: [u8; C]) -> u32 {
    const { assert!(C * LANES <= 32) };
    let table = const { &sums_over_bits(1 << C) };
    masks.iter().enumerate().fold(0, |word, (choice, &mask)| {
        word | table[usize::from(mask)] << choice
    })
}

/// For every byte, the sum of `base^i` over its set bits `i`.
const fn sums_over_bits(base: u32) -> [u32; 256] {
    let mut sums = [0; 256];
    let mut byte = 1;
    while byte < 256 {
        sums[byte] = sums[byte / 2] * base + byte as u32 % 2;
        byte += 1;
    }
    sums
}

/// A sub-block of `G` groups: weights, error weights, and ranks in ascending order.
pub(super) struct Sub<'a, const G: usize> {
    pub(super) x: &'a [[f32; 8]; G],
    pub(super) weights: &'a [[f32; 8]; G],
    pub(super) ranks: [[i32; 8]; G],
}

impl<const G: usize> Sub<'_, G> {
    /// For `P` parts of the sub-block, the running sums of (weight * x) and of the weights, in
    /// ascending order of x: entry `i` is the sum over those of the `i` smallest of all `S` that
    /// lie in the part. Later entries are NaN, which never compares as better.
    #[inline(always)]
    pub(super) fn running<const P: usize, const S: usize, const COLUMNS: usize>(
        &self,
    ) -> [[[f32; COLUMNS]; 2]; P] {
        const { assert!(S == 8 * G && COLUMNS > S && COLUMNS.is_multiple_of(LANES)) };
        // A weight of another part adds zero, which leaves a sum that started at zero unchanged.
        let mut terms = [[[0.0; 2]; P]; S];
        for g in 0..G {
            for i in 0..8 {
                let (x, weight) = (self.x[g][i], self.weights[g][i]);
                terms[self.ranks[g][i] as usize % S][g * P / G] = [weight * x, weight];
            }
        }
        let mut sums = [[[f32::NAN; COLUMNS]; 2]; P];
        let mut sum = [[0.0; 2]; P];
        for i in 0..S + 1 {
            for part in 0..P {
                for k in 0..2 {
                    sums[part][k][i] = sum[part][k];
                    sum[part][k] += if i < S { terms[i][part][k] } else { 0.0 };
                }
            }
        }
        sums
    }
}

/// A search over sub-blocks of `S` = 8 * `G` weights with `C` choices of shifts. Flipping all
/// shifts of choice `c` gives choice `C - 1 - c`.
pub(super) trait Search<const S: usize, const G: usize, const C: usize> {
    /// Sub-blocks whose magnitudes are all smaller count as zero.
    const LEAST: f32;

    /// True if the choice shifts the group down.
    fn shifted_down(choice: usize, group: usize) -> bool;

    /// Terms of the sums of all splits.
    type Parts;

    fn parts<V: Simd>(simd: V, sub: &Sub<G>) -> Self::Parts;

    /// The sums at the first boundary `first` and the eight second boundaries from `last` on; NaN
    /// past the last one.
    fn sums<V: Simd>(simd: V, parts: &Self::Parts, first: usize, last: usize) -> Sums<V, C>;

    /// The split with the largest reduction of the error, the first of equals.
    #[inline(always)]
    fn best_split<V: Simd>(simd: V, sub: &Sub<G>) -> Option<Split> {
        let parts = Self::parts(simd, sub);
        Self::best_above(simd, &parts, Self::floor(simd, sub, &parts))
    }

    /// The split found when the search starts from a given score.
    #[inline(always)]
    fn best_above<V: Simd>(simd: V, parts: &Self::Parts, score: f32) -> Option<Split> {
        let mut best = Best { score, split: None };
        for first in 0..S + 1 {
            for last in (first..S + 1).step_by(LANES) {
                best.offer(simd, [first, last], Self::sums(simd, parts, first, last));
            }
        }
        best.split
    }

    /// A starting score with the same search result as the lowest score.
    ///
    /// Take a split of score L, and start from L less a relative 2^-9. A comparison errs by less
    /// than 2^-22 of the score, without overflow or underflow. There are at most 1122 splits, so
    /// somewhere between the start and L there is an interval of 2^-20 of L without any split's
    /// score. The first split above that gap (there is one, L's) is accepted whatever the best was
    /// before it; from then on both searches are the same.
    #[inline(always)]
    fn floor<V: Simd>(simd: V, sub: &Sub<G>, parts: &Self::Parts) -> f32 {
        const BELOW: f32 = 1.0 - 1.0 / 512.0;
        const STRIDE: usize = 4;
        // Bounds, lane by lane, within which the sums of (weight * value * value), which are at
        // least 1/64 of those of the weights, the squares of the others and the compared products
        // stay clear of f32's limits.
        const LEAST: f32 = 1.0 / (1u64 << 40) as f32;
        const MOST: f32 = (1u64 << 36) as f32;
        const FAINTEST: f32 = 1.0 / (1u64 << 60) as f32;
        let zero = simd.splat(0.0);
        let (mut least, mut weight, mut extent) = (zero, zero, zero);
        for (weights, x) in sub.weights.iter().zip(sub.x) {
            let (w, x) = (simd.load(weights), simd.load(x));
            least = simd.min(w, least);
            weight = weight + w;
            extent = extent + simd.abs(w * x);
        }
        let small = simd.both(
            simd.lt(weight, simd.splat(MOST)),
            simd.lt(extent, simd.splat(MOST)),
        );
        if !simd.all(simd.both(small, simd.eq(least, zero)))
            || !simd.any(simd.gt(weight, simd.splat(LEAST)))
        {
            return -f32::MAX;
        }
        let (mut tops, mut bottoms) = ([zero; C], [simd.splat(1.0); C]);
        for first in (STRIDE / 2..S).step_by(STRIDE) {
            for last in (first..S + 1).step_by(LANES) {
                let Sums { qx, qq } = Self::sums(simd, parts, first, last);
                let squares = squares::<V, C>(&qx);
                for c in 0..C {
                    let better = simd.gt(squares[c] * bottoms[c], tops[c] * qq[c]);
                    tops[c] = simd.select(better, squares[c], tops[c]);
                    bottoms[c] = simd.select(better, qq[c], bottoms[c]);
                }
            }
        }
        let mut scores = tops[0] / bottoms[0];
        for c in 1..C {
            scores = simd.max(scores, tops[c] / bottoms[c]);
        }
        let [score, ..] = simd.store(simd.neg(simd.min_across(simd.neg(scores))));
        if score > FAINTEST {
            score * BELOW
        } else {
            -f32::MAX
        }
    }

    /// Searches a block of `B * S` = 256 weights.
    #[inline(always)]
    fn fit<V: Simd, const B: usize>(
        simd: V,
        map: &Map,
        x: &[f32; BLOCK],
        weights: &[f32; BLOCK],
    ) -> Fit<G, B> {
        const { assert!(S == 8 * G && S * B == BLOCK) };
        let mut fit = Fit {
            scales: [0.0; B],
            points: [[0; G]; B],
            choices: [0; B],
        };
        let x: &[[[f32; 8]; G]; B] = bytemuck::cast_ref(x);
        let weights: &[[[f32; 8]; G]; B] = bytemuck::cast_ref(weights);
        for (i, (x, weights)) in x.iter().zip(weights).enumerate() {
            let magnitudes = x.as_flattened();
            let largest = magnitudes[1..]
                .iter()
                .fold(magnitudes[0].abs(), |largest, v| max(largest, v.abs()));
            if largest < Self::LEAST {
                continue;
            }
            if let Some((scale, points, choice)) = Self::fit_sub(simd, map, x, weights) {
                (fit.scales[i], fit.points[i], fit.choices[i]) = (scale, points, choice);
            }
        }
        fit
    }

    /// Scale, points and choice of shifts of a sub-block; `None` if no split reduces the error.
    #[inline(always)]
    fn fit_sub<V: Simd>(
        simd: V,
        map: &Map,
        x: &[[f32; 8]; G],
        weights: &[[f32; 8]; G],
    ) -> Option<(f32, [u16; G], usize)> {
        let ranks = ranks(simd, x);
        let mut sub = Sub {
            x,
            weights,
            ranks: [[0; 8]; G],
        };
        for (stored, &ranks) in sub.ranks.iter_mut().zip(&ranks) {
            *stored = simd.store_i32(ranks);
        }
        let Split {
            mut scale,
            first,
            last,
            mut choice,
        } = Self::best_split(simd, &sub)?;
        let turned = scale < 0.0;
        if turned {
            scale = -scale;
            choice = C - 1 - choice;
        }

        let values = |group: usize| {
            if Self::shifted_down(choice, group) {
                &MINUS
            } else {
                &PLUS
            }
        };
        let mut points = [0; G];
        let mut strayed = false;
        for g in 0..G {
            let below_first = simd.mask_bits(simd.gt_i32(simd.splat_i32(first as i32), ranks[g]));
            let below_last = simd.mask_bits(simd.gt_i32(simd.splat_i32(last as i32), ranks[g]));
            // Negating trits swaps "above" and "not below".
            let place = if turned {
                [below_last, below_first]
            } else {
                [!below_first, !below_last]
            };
            points[g] = match map.at(place_of_eight(place[0], place[1])) {
                Place::Known(point) => point,
                Place::Among(neighbours) => {
                    strayed = true;
                    let scaled = values(g).map(|v| scale * v);
                    let point = nearest(simd, &neighbours, &x[g], &weights[g], &scaled);
                    let Some(point) = point else {
                        return Some((f32::NAN, points, choice));
                    };
                    point
                }
            };
        }
        if strayed {
            let (mut qx, mut qq) = (0.0, 0.0);
            for g in 0..G {
                let [v0, v1, v2] = *values(g);
                let levels = simd.load_u8(&BOOK.levels[usize::from(points[g])]);
                let q = simd.lookup(simd.load(&[v0, v1, v2, 0.0, 0.0, 0.0, 0.0, 0.0]), levels);
                let wq = simd.load(&weights[g]) * q;
                let (x_terms, q_terms) = (simd.store(wq * simd.load(&x[g])), simd.store(wq * q));
                for i in 0..8 {
                    qx += x_terms[i];
                    qq += q_terms[i];
                }
            }
            if qx > 0.0 && qq > 0.0 {
                scale = qx / qq;
            }
        }
        Some((scale, points, choice))
    }
}

/// The ranks of the weights in ascending order, equal weights in their original order (glibc's
/// `qsort` is a merge sort, hence stable, for arrays this short): the number of weights that are
/// less, or equal and earlier.
#[inline(always)]
fn ranks<V: Simd, const G: usize>(simd: V, x: &[[f32; 8]; G]) -> [V::I32; G] {
    let (zero, one) = (simd.splat_i32(0), simd.splat_i32(1));
    let mut keys = [[0; LANES]; G];
    // A weight after j counts j as less if they are equal, as if it were greater by one, until its
    // own turn.
    let mut limits = [zero; G];
    for g in 0..G {
        // Adding zero makes both zeros equal; then bits ascend with the numbers if those of
        // negative ones are inverted.
        let bits = simd.bits(simd.load(&x[g]) + simd.splat(0.0));
        let magnitude = simd.and(bits, simd.splat_i32(i32::MAX));
        let key = simd.select_i32(
            simd.gt_i32(zero, bits),
            simd.splat_i32(-1) - magnitude,
            bits,
        );
        // Below the greatest i32 (the bits of a NaN), so that adding one is possible.
        let key = simd.min_i32(key, simd.splat_i32(i32::MAX - 1));
        keys[g] = simd.store_i32(key);
        limits[g] = key + one;
    }
    let mut ranks = [zero; G];
    for g in 0..G {
        for (j, own) in OWN.iter().enumerate() {
            limits[g] = limits[g] - simd.load_i32(own);
            let key = simd.splat_i32(keys[g][j]);
            for i in 0..G {
                ranks[i] = ranks[i]
                    - simd.select_i32(simd.gt_i32(limits[i], key), simd.splat_i32(-1), zero);
            }
        }
    }
    ranks
}

/// One in lane `j` of vector `j`.
const OWN: [[i32; LANES]; LANES] = {
    let mut own = [[0; LANES]; LANES];
    let mut j = 0;
    while j < LANES {
        own[j][j] = 1;
        j += 1;
    }
    own
};

/// The neighbour with the least weighted distance, the first of equals. `None` if no distance is
/// finite in f32. `values` are those of the trits, times the scale.
///
/// There ggml searches the whole book, but compares with weights outside the group and even the
/// row, so that its result is undefined; here the block is faulty instead. It takes weights above
/// some 1e12, for which no f16 scale exists.
#[inline(always)]
fn nearest<V: Simd>(
    simd: V,
    neighbours: &Neighbours<'_>,
    x: &[f32; 8],
    weights: &[f32; 8],
    values: &[f32; 3],
) -> Option<u16> {
    // Lanes are positions, those of the second row in the order 4 to 7, 0 to 3.
    let swapped = |x: &[f32; 8]| [x[4], x[5], x[6], x[7], x[0], x[1], x[2], x[3]];
    let mut rows = [simd.splat(0.0); LANES];
    for (half, (x, weights)) in [(*x, *weights), (swapped(x), swapped(weights))]
        .iter()
        .enumerate()
    {
        let (x, weights) = (simd.load(x), simd.load(weights));
        for (level, &v) in values.iter().enumerate() {
            let off = simd.splat(v) - x;
            rows[4 * half + level] = weights * off * off;
        }
    }
    // Position i, then position i + 4: three levels each and one unused entry.
    let [t0, t1, t2, t3, ..] = simd.transpose(rows);
    Some(neighbours.number(cheapest::<V, 8>(simd, neighbours, &[t0, t1, t2, t3])?))
}

#[cfg(test)]
mod tests {
    use super::super::iq1::OneShift;
    use super::*;
    use crate::simd::{Isa, Kernel};

    #[test]
    fn equal_weights_keep_their_order() {
        let x = [
            [0.0, -0.0, 1.0, -1.0, 0.0, -2.0, 1.0, -1.0],
            [f32::NAN, 1.0, -f32::NAN, 0.0, -1.0, 9.0, 9.0, -9.0],
        ];
        for isa in Isa::available() {
            assert_eq!(
                isa.run(Ranks(x)),
                [[6, 7, 10, 3, 8, 2, 11, 4], [15, 12, 0, 9, 5, 13, 14, 1]],
                "{}",
                isa.name()
            );
        }
    }

    /// Weights of few different sizes and importances, so that many splits are equally good or
    /// nearly so.
    #[test]
    fn floor_and_lanes_keep_the_search_result() {
        let mut floors = 0;
        for (seed, sizes) in (0..4000u64).zip([1, 2, 3, 5, 9, 40, 1000].into_iter().cycle()) {
            let mut state = seed * 2 + 1;
            let mut draw = |n: u64| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % n
            };
            let scale = [1.0, 1e-3, 1e3, 1e-6][seed as usize % 4];
            let x = std::array::from_fn(|_| {
                std::array::from_fn(|_| (draw(sizes) as f32 - (sizes / 2) as f32 - 0.37) * scale)
            });
            // If all weights are alike, splits differ only by rounding errors of sums of
            // importances with many bits.
            let kinds = if sizes == 1 { 1 << 24 } else { sizes.min(20) };
            let weights =
                std::array::from_fn(|_| std::array::from_fn(|_| draw(kinds) as f32 * scale));
            for isa in Isa::available() {
                let (floor, [floored, lowest, one_by_one]) = isa.run(Searches { x, weights });
                assert_eq!(lowest, one_by_one, "{} {x:?} {weights:?}", isa.name());
                assert_eq!(floored, lowest, "{} {x:?} {weights:?}", isa.name());
                floors += usize::from(floor > 0.0);
            }
        }
        assert!(floors > 3000, "{floors}");
    }

    struct Searches {
        x: [[f32; 8]; 4],
        weights: [[f32; 8]; 4],
    }

    impl Kernel for Searches {
        /// The floor, and the results of searching from it, from the lowest score, and from there
        /// one split at a time.
        type Output = (f32, [Option<Split>; 3]);

        fn run<V: Simd>(self, simd: V) -> Self::Output {
            let ranks = ranks(simd, &self.x).map(|ranks| simd.store_i32(ranks));
            let sub = Sub {
                x: &self.x,
                weights: &self.weights,
                ranks,
            };
            let parts = OneShift::parts(simd, &sub);
            let floor = OneShift::floor(simd, &sub, &parts);
            let [floored, lowest] =
                [floor, -f32::MAX].map(|score| OneShift::best_above(simd, &parts, score));

            let (mut score, mut one_by_one) = (-f32::MAX, None);
            for first in 0..33 {
                for last in first..33 {
                    let Sums { qx, qq } = OneShift::sums(simd, &parts, first, last);
                    for choice in 0..2 {
                        let (qx, qq) = (simd.store(qx[choice])[0], simd.store(qq[choice])[0]);
                        if qq > 0.0 && qx * qx > score * qq {
                            let scale = qx / qq;
                            score = scale * qx;
                            one_by_one = Some(Split {
                                scale,
                                first,
                                last,
                                choice,
                            });
                        }
                    }
                }
            }
            (floor, [floored, lowest, one_by_one])
        }
    }

    struct Ranks([[f32; 8]; 2]);

    impl Kernel for Ranks {
        type Output = [[i32; 8]; 2];

        fn run<V: Simd>(self, simd: V) -> Self::Output {
            ranks(simd, &self.0).map(|ranks| simd.store_i32(ranks))
        }
    }
}
