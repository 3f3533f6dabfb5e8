//! The search that the 2-bit and 3-bit codebook types share.
//!
//! A sub-block has one scale, and its magnitudes (in groups of `D`) are odd multiples of it that must lie in a
//! codebook:
//!
//! ```text
//! for each candidate 1/scale around the one that takes the largest magnitude to the top level:
//!     round every group to levels; where they are not in the book, take the nearest point that is
//!     keep the candidate whose points explain the weights best, with the least-squares scale for them
//! snap the groups again at that scale, and refit it
//! ```
//!
//! Sums run in source order and comparisons are strict, as in ggml.

use super::grid::{
    Codebook, Map, Neighbours, Place, cheapest, place_of_eight, place_of_four, read_points, spelled, tables,
};
use super::signs::Signs;
use crate::quant::num::{max, nearest_int};

/// A codebook with its points as odd numbers (what the search measures with) and as the format's values.
///
/// `W` is the number of levels, rounded up to a power of two.
pub(super) struct Lattice<const D: usize, const N: usize, const W: usize> {
    book: Codebook<D, N>,
    points: [[f32; D]; N],
    /// What the points stand for, in units of the scale.
    pub(super) values: [[f32; D]; N],
}

/// 2 * level + 1 for every level that a book may have.
const ODD: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

impl<const D: usize, const N: usize, const W: usize> Lattice<D, N, W> {
    /// A lattice of `K` levels that stand for `values`; `hex` is the data file; `shells` as in [`Codebook::new`].
    pub(super) const fn new<const K: usize>(hex: &[u8], shells: usize, values: [f32; K]) -> Self {
        let levels = read_points(hex, K as u8);
        let book = Codebook::new(levels, K as u8, shells);
        Lattice { book, points: spelled(&levels, ODD), values: spelled(&levels, values) }
    }
}

/// When the groups are snapped again, at the scale that the candidates led to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Resnap {
    /// All groups, always.
    Always,
    /// All groups, if any had left the lattice point that it was rounded to, or no candidate was accepted.
    AllIfAnyStrayed,
    /// Those that had left the lattice point that they were rounded to.
    Strays,
}

/// The constants by which the searches of the types differ.
pub(super) struct Plan {
    /// Candidates on either side of the middle one.
    pub(super) reach: i8,
    /// Distance between candidates, in half steps of the top level.
    pub(super) stride: f32,
    /// Sub-blocks without a magnitude as large as this are taken for zero.
    pub(super) least: f32,
    pub(super) resnap: Resnap,
    pub(super) signs: Signs,
}

/// A sub-block of magnitudes, prepared for the search.
struct Sub<const S: usize> {
    magnitudes: [f32; S],
    weights: [f32; S],
    /// Square roots of the weights, by which neighbours are compared.
    roots: [f32; S],
    /// Weight times magnitude.
    products: [f32; S],
}

/// What the search finds for a block of `B` sub-blocks of `G` groups.
pub(super) struct Fit<const G: usize, const B: usize> {
    /// One per sub-block, not negative (but NaN where sums overflowed).
    pub(super) scales: [f32; B],
    pub(super) points: [[u16; G]; B],
    /// Which sub-blocks were taken for zero; every other field is zero there.
    pub(super) empty: [bool; B],
    /// Eight weights each.
    pub(super) signs: [u8; 32],
}

/// A scale to begin with and the magnitude that the candidates take to the top level, from magnitudes, weights and
/// the largest magnitude; `None` to take the sub-block for zero.
pub(super) type Start<const S: usize> = fn(&[f32; S], &[f32; S], f32) -> Option<(f32, f32)>;

impl<const D: usize, const N: usize, const W: usize> Lattice<D, N, W> {
    /// Searches a block of `B * S` = 256 weights, `S` = `G * D` to a sub-block.
    #[inline(always)]
    pub(super) fn fit<const S: usize, const G: usize, const B: usize>(
        &self,
        plan: &Plan,
        x: &[f32; 256],
        weights: &[f32; 256],
        start: Start<S>,
    ) -> Fit<G, B> {
        const { assert!(G * D == S && S * B == 256 && S.is_multiple_of(8)) };
        let map = self.book.map();
        let mut fit = Fit { scales: [0.0; B], points: [[0; G]; B], empty: [false; B], signs: [0; 32] };
        let subs = x.as_chunks::<S>().0.iter().zip(weights.as_chunks::<S>().0);
        for (i, (x, weights)) in subs.enumerate() {
            let signs = &mut fit.signs[i * (S / 8)..][..S / 8];
            let sub = Sub::new(plan.signs, x, weights, signs);
            let largest = sub.magnitudes[1..].iter().fold(sub.magnitudes[0], |largest, &v| max(largest, v));
            let begin = if largest < plan.least { None } else { start(&sub.magnitudes, weights, largest) };
            let Some((scale, extreme)) = begin else {
                signs.fill(0);
                fit.empty[i] = true;
                continue;
            };
            // ggml gives up without a nearest point; here, a NaN lets the block show its fault.
            (fit.scales[i], fit.points[i]) =
                self.fit_sub(map, plan, &sub, scale, extreme).unwrap_or((f32::NAN, [0; G]));
            if fit.scales[i] < 0.0 {
                fit.scales[i] = -fit.scales[i];
                signs.iter_mut().for_each(|s| *s = plan.signs.flipped(*s));
            }
        }
        fit
    }

    /// The best scale of a sub-block (negative if all signs should be turned) and the points of its groups. `None`
    /// where a group has no nearest point.
    #[inline(always)]
    fn fit_sub<const S: usize, const G: usize>(
        &self,
        map: &Map,
        plan: &Plan,
        sub: &Sub<S>,
        mut scale: f32,
        extreme: f32,
    ) -> Option<(f32, [u16; G])> {
        let top = ODD[usize::from(self.book.base()) - 1];
        let mut points = [0; G];
        let mut strayed = [plan.resnap != Resnap::Strays; G];
        let mut best = 0.0;
        for candidate in -plan.reach..=plan.reach {
            let inverse = (top + f32::from(candidate) * plan.stride) / extreme;
            let mut trial = [0; G];
            let mut trial_strayed = [false; G];
            for g in 0..G {
                (trial[g], trial_strayed[g]) = self.snap(map, sub, g, inverse, 1.0 / inverse)?;
            }
            let (qx, qq) = self.moments(sub, &trial);
            if qq > 0.0 && qx * qx > best * qq {
                scale = qx / qq;
                best = scale * qx;
                (points, strayed) = (trial, trial_strayed);
            }
        }
        let wanted = plan.resnap == Resnap::Always || strayed.contains(&true);
        if wanted && scale > 0.0 {
            let inverse = 1.0 / scale;
            for g in 0..G {
                if plan.resnap != Resnap::Strays || strayed[g] {
                    points[g] = self.snap(map, sub, g, inverse, scale)?.0;
                }
            }
            let (qx, qq) = self.moments(sub, &points);
            if qq > 0.0 {
                scale = qx / qq;
            }
        }
        Some((scale, points))
    }

    /// The book's point for group `g`, and whether the group had to leave the lattice point that it was rounded to.
    #[inline(always)]
    fn snap<const S: usize>(&self, map: &Map, sub: &Sub<S>, g: usize, inverse: f32, scale: f32) -> Option<(u16, bool)> {
        let x = &sub.magnitudes.as_chunks::<D>().0[g];
        let highest = i32::from(self.book.base()) - 1;
        let levels = x.map(|v| nearest_int(0.5 * (inverse * v - 1.0)).clamp(0, highest) as usize);
        let all = |holds: &dyn Fn(usize) -> bool| {
            levels.iter().rev().fold(0, |bits: u8, &level| bits << 1 | u8::from(holds(level)))
        };
        let place = match D {
            4 => place_of_four([0, 1, 2].map(|bit| all(&|level| level >> bit & 1 == 1))),
            _ => place_of_eight(all(&|level| level > 0), all(&|level| level > 1)),
        };
        match map.at(place) {
            Place::Known(point) => Some((point, false)),
            Place::Among(neighbours) => {
                let point = self.nearest(&neighbours, x, &sub.roots.as_chunks::<D>().0[g], scale)?;
                Some((point, true))
            }
        }
    }

    /// The neighbour with the least weighted distance, the first one if several have. `None` if no distance is a
    /// number that f32 can hold.
    #[inline(always)]
    fn nearest(&self, neighbours: &Neighbours<'_>, x: &[f32; D], roots: &[f32; D], scale: f32) -> Option<u16> {
        let costs: [[f32; W]; D] = std::array::from_fn(|i| {
            std::array::from_fn(|level| {
                let off = scale * ODD[level] - x[i];
                roots[i] * off * off
            })
        });
        let simd = crate::simd::Scalar;
        Some(neighbours.number(cheapest::<_, D>(simd, neighbours, &tables(simd, &costs))?))
    }

    /// The weighted sums of (magnitude * level) and (level * level), whose quotient is the least-squares scale.
    #[inline(always)]
    fn moments<const S: usize, const G: usize>(&self, sub: &Sub<S>, points: &[u16; G]) -> (f32, f32) {
        let (mut qx, mut qq) = (0.0, 0.0);
        let groups = sub.products.as_chunks::<D>().0.iter().zip(sub.weights.as_chunks::<D>().0);
        for (&point, (products, weights)) in points.iter().zip(groups) {
            let levels = &self.points[usize::from(point)];
            for i in 0..D {
                qx += products[i] * levels[i];
                qq += weights[i] * levels[i] * levels[i];
            }
        }
        (qx, qq)
    }
}

impl<const S: usize> Sub<S> {
    #[inline(always)]
    fn new(rule: Signs, x: &[f32; S], weights: &[f32; S], signs: &mut [u8]) -> Self {
        let mut magnitudes = *x;
        for ((eight, weights), signs) in
            magnitudes.as_chunks_mut::<8>().0.iter_mut().zip(weights.as_chunks::<8>().0).zip(signs)
        {
            (*signs, *eight) = rule.split(eight, weights);
        }
        Sub {
            magnitudes,
            weights: *weights,
            roots: weights.map(f32::sqrt),
            products: std::array::from_fn(|i| weights[i] * magnitudes[i]),
        }
    }
}

/// The start of most types: the largest magnitude at the top level of `K`.
pub(super) fn from_largest<const S: usize, const K: usize>(
    _: &[f32; S],
    _: &[f32; S],
    largest: f32,
) -> Option<(f32, f32)> {
    Some((largest / const { ODD[K - 1] }, largest))
}
