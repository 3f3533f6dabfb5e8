//! The search of the 2-bit and 3-bit codebook types.
//!
//! A sub-block has one scale; its magnitudes, in groups of `D`, are odd multiples of the scale that
//! form codebook points:
//!
//! ```text
//! for each candidate 1/scale around the one that takes the largest magnitude to the top level:
//!     round every group to levels; outside the book, take the nearest point in it
//!     keep the candidate whose points fit the weights best, with their least-squares scale
//! snap the groups again at that scale, and refit it
//! ```
//!
//! Sums run in source order and comparisons are strict, as in ggml. Optimizations:
//!
//! 1. Lanes are eight sub-blocks; every step but one handles one position at a time. So a sum over a sub-block keeps
//!    its order, and no candidate or sub-block is left over to fill lanes.
//! 2. The exception is the search of neighbours, where lanes are neighbours (see [`grid`](super::grid)). It goes
//!    through all candidates of one group of one sub-block before the next, so that the group stays in registers.
//! 3. Rounding, searching and summing are separate loops over all candidates: the first and the last have no
//!    branches, and all have much independent work.
//!
//! Results of the candidates stay in memory between these loops: 8 KiB for types with 31
//! candidates.

use super::BLOCK;
use super::grid::{Codebook, Map, Place, TABLES, cheapest, entry, field, read_points, spelled};
use super::signs::Signs;
use crate::feedback::{Eights, Fours};
use crate::simd::{LANES, Simd};
use std::sync::OnceLock;

/// A codebook and the values of its points in the format.
pub(super) struct Lattice<const D: usize, const N: usize> {
    book: Codebook<D, N>,
    /// Values of the points, in units of the scale.
    pub(super) values: [[f32; D]; N],
    eights: OnceLock<Eights>,
    fours: OnceLock<Fours>,
}

/// 2 * level + 1 for every possible level.
const ODD: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

impl<const D: usize, const N: usize> Lattice<D, N> {
    /// A lattice of `K` levels with these values; `hex` is the data file; `shells` as in
    /// [`Codebook::new`].
    pub(super) const fn new<const K: usize>(hex: &[u8], shells: usize, values: [f32; K]) -> Self {
        let levels = read_points(hex, K as u8);
        let book = Codebook::new(levels, K as u8, shells);
        Lattice {
            book,
            values: spelled(&levels, values),
            eights: OnceLock::new(),
            fours: OnceLock::new(),
        }
    }
}

impl<const N: usize> Lattice<8, N> {
    /// The points for error feedback, arranged on first use.
    pub(super) fn eights(&self) -> &Eights {
        self.eights.get_or_init(|| Eights::new(&self.values))
    }
}

impl<const N: usize> Lattice<4, N> {
    /// The points for error feedback, arranged on first use.
    pub(super) fn fours(&self) -> &Fours {
        self.fours.get_or_init(|| Fours::new(&self.values))
    }
}

/// Condition for snapping the groups again, at the scale of the best candidate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Resnap {
    /// All groups, always.
    Always,
    /// All groups, if the codebook point of any differed from its rounded lattice point, or no
    /// candidate was accepted.
    AllIfAnyStrayed,
    /// Only groups whose codebook point differed from their rounded lattice point.
    Strays,
}

/// Constants of a type's search.
pub(super) struct Plan {
    /// Distance between candidates, in half steps of the top level.
    pub(super) stride: f32,
    /// Sub-blocks whose magnitudes are all smaller count as zero.
    pub(super) least: f32,
    pub(super) resnap: Resnap,
    pub(super) signs: Signs,
}

/// Result for a block of `B` sub-blocks of `G` groups.
pub(super) struct Fit<const G: usize, const B: usize> {
    /// One per sub-block, not negative (but NaN where sums overflowed).
    pub(super) scales: [f32; B],
    pub(super) points: [[u16; G]; B],
    /// True for sub-blocks treated as zero; their other fields are zero.
    pub(super) empty: [bool; B],
    /// Eight weights per byte.
    pub(super) signs: [u8; 32],
}

/// Eight sub-blocks of `L` magnitudes: by position, one per lane.
struct Subs<const L: usize> {
    magnitudes: [[f32; LANES]; L],
    weights: [[f32; LANES]; L],
    /// Square roots of the weights, for comparing neighbours.
    roots: [[f32; LANES]; L],
    /// Weight times magnitude.
    products: [[f32; LANES]; L],
}

/// Lattice indices of eight sub-blocks, or their packed codebook points; by group.
type Points<const G: usize> = [[i32; LANES]; G];

/// Marks a codebook point that differs from the rounded lattice point.
const STRAYED: i32 = i32::MIN;

impl<const D: usize, const N: usize> Lattice<D, N> {
    /// Searches a block of `B` sub-blocks of `L` = `G * D` weights, with `C` candidates each.
    ///
    /// `start` takes magnitudes and weights of eight sub-blocks, by position, and the largest
    /// magnitudes. It returns the initial scale and the magnitude that the middle candidate maps to
    /// the top level; where that is not positive, the sub-block counts as zero.
    #[inline(always)]
    pub(super) fn fit<S: Simd, const L: usize, const G: usize, const C: usize, const B: usize>(
        &self,
        simd: S,
        plan: &Plan,
        x: &[f32; BLOCK],
        weights: &[f32; BLOCK],
        start: impl Fn(S, &[S::F32; L], &[S::F32; L], S::F32) -> (S::F32, S::F32),
    ) -> Fit<G, B> {
        const {
            assert!(
                G * D == L
                    && L * B == BLOCK
                    && L.is_multiple_of(8)
                    && B.is_multiple_of(LANES)
                    && C % 2 == 1
            )
        };
        let mut fit = Fit {
            scales: [0.0; B],
            points: [[0; G]; B],
            empty: [false; B],
            signs: [0; 32],
        };
        let batches = x.as_chunks::<L>().0.as_chunks::<LANES>().0.iter();
        let batches = batches.zip(weights.as_chunks::<L>().0.as_chunks::<LANES>().0);
        for (batch, (x, weights)) in batches.enumerate() {
            let weights = simd.gather(weights.each_ref());
            let mut magnitudes = simd.gather(x.each_ref());
            // By group of eight and lane.
            let mut signs = [[0; LANES]; 4];
            let eights = magnitudes
                .as_chunks_mut::<8>()
                .0
                .iter_mut()
                .zip(weights.as_chunks::<8>().0);
            for ((magnitudes, weights), signs) in eights.zip(&mut signs) {
                *signs = simd.store_u8(plan.signs.split(simd, magnitudes, weights));
            }
            let largest = magnitudes[1..]
                .iter()
                .fold(magnitudes[0], |largest, &v| simd.max(largest, v));
            let (scale, extreme) = start(simd, &magnitudes, &weights, largest);
            let vanishes = simd.either(
                simd.lt(largest, simd.splat(plan.least)),
                simd.le(extreme, simd.splat(0.0)),
            );
            let empty = simd.mask_bits(vanishes);

            let subs = Subs {
                magnitudes: magnitudes.map(|v| simd.store(v)),
                weights: weights.map(|w| simd.store(w)),
                roots: weights.map(|w| simd.store(simd.sqrt(w))),
                products: std::array::from_fn(|i| simd.store(weights[i] * magnitudes[i])),
            };
            let (scales, points) = self.search::<S, L, G, C>(simd, plan, &subs, scale, extreme);
            for lane in 0..LANES {
                let i = batch * LANES + lane;
                if empty >> lane & 1 == 1 {
                    fit.empty[i] = true;
                    continue;
                }
                let turned = scales[lane] < 0.0;
                fit.scales[i] = if turned { -scales[lane] } else { scales[lane] };
                fit.points[i] = points.map(|numbers| numbers[lane] as u16);
                for (to, from) in fit.signs[i * (L / 8)..][..L / 8].iter_mut().zip(&signs) {
                    *to = if turned {
                        plan.signs.flipped(from[lane])
                    } else {
                        from[lane]
                    };
                }
            }
        }
        fit
    }

    /// The best scales of eight sub-blocks (negative if all signs are to be flipped) and the points
    /// of their groups. NaN where a group has no nearest point.
    #[inline(always)]
    fn search<S: Simd, const L: usize, const G: usize, const C: usize>(
        &self,
        simd: S,
        plan: &Plan,
        subs: &Subs<L>,
        mut scale: S::F32,
        extreme: S::F32,
    ) -> ([f32; LANES], Points<G>) {
        let map = self.book.map();
        let zero = simd.splat(0.0);
        let top = ODD[usize::from(self.book.base()) - 1];
        let mut scales = [[0.0; LANES]; C];
        let mut trials: [Points<G>; C] = [[[0; LANES]; G]; C];
        for (c, (scale, trial)) in scales.iter_mut().zip(&mut trials).enumerate() {
            let inverse = simd.splat(top + (c as f32 - (C / 2) as f32) * plan.stride) / extreme;
            *scale = simd.store(simd.splat(1.0) / inverse);
            for (g, place) in trial.iter_mut().enumerate() {
                *place = self.places(simd, subs, g, inverse);
            }
        }
        let odd = simd.load(&odd_table::<D>());
        let first = map.point(0);
        let mut lost = 0u8;
        for lane in 0..LANES {
            let mut levels = [zero; C];
            for (levels, scale) in levels.iter_mut().zip(&scales) {
                *levels = simd.splat(scale[lane]) * odd;
            }
            for g in 0..G {
                let group = Group::new(simd, subs, g, lane, D);
                for (trial, &levels) in trials.iter_mut().zip(&levels) {
                    let point = self.snap(simd, map, trial[g][lane], &group, levels);
                    lost |= u8::from(point.is_none()) << lane;
                    trial[g][lane] = point.unwrap_or(first);
                }
            }
        }
        let mut best = zero;
        let mut chosen = simd.splat_i32(-1);
        for (c, trial) in trials.iter().enumerate() {
            let (qx, qq) = moments::<S, D, L, G>(simd, subs, trial);
            let better = simd.both(simd.gt(qq, zero), simd.gt(qx * qx, best * qq));
            let fitted = qx / qq;
            scale = simd.select(better, fitted, scale);
            best = simd.select(better, fitted * qx, best);
            chosen = simd.select_i32(better, simd.splat_i32(c as i32), chosen);
        }

        // Default without an accepted candidate: the first point of the book.
        let unchosen = first
            | if plan.resnap == Resnap::Strays {
                0
            } else {
                STRAYED
            };
        let chosen = simd.store_i32(chosen);
        let mut points: Points<G> = [[unchosen; LANES]; G];
        let mut refitted = [0.0; LANES];
        let inverse = simd.splat(1.0) / scale;
        let last_scales = simd.store(scale);
        let mut places = [[0; LANES]; G];
        for (g, places) in places.iter_mut().enumerate() {
            *places = self.places(simd, subs, g, inverse);
        }
        for lane in 0..LANES {
            if chosen[lane] >= 0 {
                for (point, trial) in points.iter_mut().zip(&trials[chosen[lane] as usize]) {
                    point[lane] = trial[lane];
                }
            }
            let wanted = plan.resnap == Resnap::Always
                || points.iter().any(|points| points[lane] & STRAYED != 0);
            if wanted && last_scales[lane] > 0.0 {
                refitted[lane] = 1.0;
                for g in 0..G {
                    if plan.resnap != Resnap::Strays || points[g][lane] & STRAYED != 0 {
                        let group = Group::new(simd, subs, g, lane, D);
                        let point = self.snap(
                            simd,
                            map,
                            places[g][lane],
                            &group,
                            simd.splat(last_scales[lane]) * odd,
                        );
                        lost |= u8::from(point.is_none()) << lane;
                        points[g][lane] = point.unwrap_or(first);
                    }
                }
            }
        }
        let (qx, qq) = moments::<S, D, L, G>(simd, subs, &points);
        let refits = simd.both(simd.gt(simd.load(&refitted), zero), simd.gt(qq, zero));
        let mut scales = simd.store(simd.select(refits, qx / qq, scale));
        for points in &mut points {
            *points = self.numbers(simd, map, points);
        }
        // ggml aborts without a nearest point; here, a NaN makes the block faulty.
        for lane in (0..LANES).filter(|lane| lost >> lane & 1 == 1) {
            scales[lane] = f32::NAN;
            points.iter_mut().for_each(|points| points[lane] = 0);
        }
        (scales, points)
    }

    /// Lattice index of the rounded group `g` of each sub-block: levels as digits, the first one
    /// lowest.
    #[inline(always)]
    fn places<S: Simd, const L: usize>(
        &self,
        simd: S,
        subs: &Subs<L>,
        g: usize,
        inverse: S::F32,
    ) -> [i32; LANES] {
        /// As [`nearest_int`](crate::num::nearest_int) adds 1.5 * 2^23 to a half, twice as much
        /// added to twice as much gives the same mantissa: the integer plus 2^22.
        const MAGIC: f32 = 2.0 * 12_582_912.0;
        const MANTISSA: i32 = 0x007f_ffff;
        const ZERO: i32 = 0x0040_0000;
        let base = i32::from(self.book.base());
        let mut place = simd.splat_i32(0);
        let mut excess = 0i32;
        for x in subs.magnitudes[g * D..][..D].iter().rev() {
            let twice = inverse * simd.load(x) - simd.splat(1.0);
            let nearest = simd.and(
                simd.bits(twice + simd.splat(MAGIC)),
                simd.splat_i32(MANTISSA),
            );
            let level = simd.min_i32(
                simd.max_i32(nearest, simd.splat_i32(ZERO)),
                simd.splat_i32(ZERO + base - 1),
            );
            place = times(simd, place, base) + level;
            excess = excess.wrapping_mul(base).wrapping_add(ZERO);
        }
        simd.store_i32(place - simd.splat_i32(excess))
    }

    /// Indices of packed codebook points.
    #[inline(always)]
    fn numbers<S: Simd>(&self, simd: S, map: &Map, points: &[i32; LANES]) -> [i32; LANES] {
        let points = simd.load_i32(points);
        let base = i32::from(self.book.base());
        let mut place = simd.splat_i32(0);
        for i in (0..D).rev() {
            // Fields of positions with up to four levels have two bits.
            let level = simd.and(
                field(simd, points, i),
                simd.splat_i32(if D == TABLES { 7 } else { 3 }),
            );
            place = times(simd, place, base) + level;
        }
        simd.store_i32(place)
            .map(|place| match map.at(place as usize) {
                Place::Known(number) => number.into(),
                Place::Among(_) => unreachable!("a point of the book is not in its map"),
            })
    }

    /// The codebook point for a group rounded to this lattice point. `None` if no neighbour's
    /// distance is finite in f32.
    #[inline(always)]
    fn snap<S: Simd>(
        &self,
        simd: S,
        map: &Map,
        place: i32,
        group: &Group<S>,
        levels: S::F32,
    ) -> Option<i32> {
        match map.at(place as usize) {
            Place::Known(number) => Some(map.point(number)),
            Place::Among(list) => {
                let mut tables = [levels; TABLES];
                for (table, (&x, &root)) in tables
                    .iter_mut()
                    .zip(group.magnitudes.iter().zip(&group.roots))
                {
                    let off = levels - x;
                    *table = root * off * off;
                }
                Some(list.point(cheapest::<S, D>(simd, &list, &tables)?) | STRAYED)
            }
        }
    }
}

/// `base` times each lane, for bases 3 and 8.
#[inline(always)]
fn times<S: Simd>(simd: S, x: S::I32, base: i32) -> S::I32 {
    match base {
        8 => simd.shift_left::<3>(x),
        _ => simd.shift_left::<1>(x) + x,
    }
}

/// A group of one sub-block, spread over the lanes like the cost tables.
struct Group<S: Simd> {
    magnitudes: [S::F32; TABLES],
    roots: [S::F32; TABLES],
}

impl<S: Simd> Group<S> {
    #[inline(always)]
    fn new<const L: usize>(simd: S, subs: &Subs<L>, g: usize, lane: usize, size: usize) -> Self {
        let low = simd.lt(
            simd.load(&[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]),
            simd.splat(1.0),
        );
        let mut group = Group {
            magnitudes: [simd.splat(0.0); TABLES],
            roots: [simd.splat(0.0); TABLES],
        };
        for (from, to) in [
            (&subs.magnitudes, &mut group.magnitudes),
            (&subs.roots, &mut group.roots),
        ] {
            for i in 0..TABLES {
                to[i] = simd.splat(from[g * size + i][lane]);
                if size > TABLES {
                    to[i] = simd.select(low, to[i], simd.splat(from[g * size + i + TABLES][lane]));
                }
            }
        }
        group
    }
}

/// The odd numbers of a cost table: all eight, or the first four twice.
const fn odd_table<const D: usize>() -> [f32; LANES] {
    let mut table = ODD;
    if D != TABLES {
        let mut i = 0;
        while i < TABLES {
            table[TABLES + i] = ODD[i];
            i += 1;
        }
    }
    table
}

/// The weighted sums of (magnitude * level) and (level * level), whose quotient is the
/// least-squares scale.
#[inline(always)]
fn moments<S: Simd, const D: usize, const L: usize, const G: usize>(
    simd: S,
    subs: &Subs<L>,
    points: &Points<G>,
) -> (S::F32, S::F32) {
    let tables = [simd.load(&odd_table::<D>()); TABLES];
    let (mut qx, mut qq) = (simd.splat(0.0), simd.splat(0.0));
    for (g, points) in points.iter().enumerate() {
        let packed = simd.load_i32(points);
        for i in 0..D {
            let level = entry(simd, &tables, packed, i);
            qx = qx + simd.load(&subs.products[g * D + i]) * level;
            qq = qq + simd.load(&subs.weights[g * D + i]) * level * level;
        }
    }
    (qx, qq)
}

/// Starting point of most types: the largest magnitude at the top level of `K`.
#[inline(always)]
pub(super) fn from_largest<S: Simd, const L: usize, const K: usize>(
    simd: S,
    _: &[S::F32; L],
    _: &[S::F32; L],
    largest: S::F32,
) -> (S::F32, S::F32) {
    (largest / simd.splat(const { ODD[K - 1] }), largest)
}
