//! Levels above an offset.
//!
//! ```text
//! low, high <- least x (at most 0), greatest x
//! best <- the levels of scale (high - low) / MAX, and their error
//! for each candidate c:
//!     levels <- x in units of (high - low) / (MAX + c) above low, rounded, within 0 ..= MAX
//!     scale', low' <- least squares for these levels (low' at most 0)
//!     if their error is less: best <- scale', low'; low <- low'
//! ```
//!
//! An accepted candidate moves `low` for later ones, so candidates are sequential. Sub-blocks are
//! independent: each lane is one, with its own acceptance. That costs a transposition, 24 shuffles
//! for 64 weights, beside some 800 operations on them. Three more optimizations:
//!
//! 1. `G` vectors of lanes go through each loop together, which hides the latency of the additions.
//! 2. Rounding adds and subtracts 1.5 * 2^23 and clamps as f32, two operations less than the bit manipulation of
//!    [`nearest_int`]. Below 2^22 the results are equal, and since rounding is monotonic, checking the least and the
//!    greatest weight suffices (`Level::Quick`). Other sub-blocks use the bit manipulation.
//! 3. Results hold inverse scales and offsets instead of levels: few sub-blocks need their levels in the end.

use super::eight;
use crate::num::{MAGIC, nearest_int, nearest_ints};
use crate::simd::{LANES, Simd};

/// Vectors of sub-blocks searched in parallel.
pub(crate) const VECTORS: usize = 2;

/// The sub-blocks from index `start` on, position by position, padded with the last one.
#[inline(always)]
pub(crate) fn side_by_side<S: Simd, const N: usize>(
    s: S,
    subs: &[[f32; N]],
    start: usize,
) -> [[S::F32; VECTORS]; N] {
    let mut out = [[s.splat(0.0); VECTORS]; N];
    for v in 0..VECTORS {
        let from = (start + v * LANES).min(subs.len() - 1);
        for (out, x) in out.iter_mut().zip(s.gather(eight(&subs[from..]))) {
            out[v] = x;
        }
    }
    out
}

/// Result for `G` vectors of sub-blocks: `x ~ scale * level + low`, with `low` at most zero.
pub(crate) struct Affine<V, const G: usize> {
    pub(crate) scale: [V; G],
    pub(crate) low: [V; G],
    /// Sums of the error weights.
    pub(crate) total: [V; G],
    /// Inverse scale and `low` of the levels.
    origin: ([V; G], [V; G]),
}

/// Inverse scale and offset of the levels of one sub-block.
#[derive(Clone, Copy, Default)]
pub(crate) struct Origin {
    inverse: f32,
    low: f32,
}

impl Origin {
    /// Levels `0 ..= MAX` of the sub-block.
    #[inline(always)]
    pub(crate) fn levels<const N: usize, const MAX: i32>(self, x: &[f32; N]) -> [u8; N] {
        match self.inverse {
            // All weights equal.
            0.0 => [0; N],
            inverse => std::array::from_fn(|i| {
                nearest_int(inverse * (x[i] - self.low)).clamp(0, MAX) as u8
            }),
        }
    }
}

impl<V: Copy, const G: usize> Affine<V, G> {
    /// Inverse scale and offset of the levels, for lane `l` of vector `g` at `[g][l]`.
    #[inline(always)]
    pub(crate) fn origins<S: Simd<F32 = V>>(&self, s: S) -> [[Origin; LANES]; G] {
        let mut origins = [[Origin::default(); LANES]; G];
        for (g, origins) in origins.iter_mut().enumerate() {
            let (inverses, lows) = (s.store(self.origin.0[g]), s.store(self.origin.1[g]));
            for (origin, (inverse, low)) in origins.iter_mut().zip(inverses.into_iter().zip(lows)) {
                *origin = Origin { inverse, low };
            }
        }
        origins
    }
}

/// The candidates of an [`affine`] search: the range from the best lowest level so far to the
/// largest weight is divided into `MAX + first + i * step` steps, for `i` in `0 ..= last`.
#[derive(Clone, Copy)]
pub(crate) struct Candidates {
    pub(crate) first: f32,
    pub(crate) step: f32,
    pub(crate) last: i32,
}

/// ggml's candidates of an affine search with importance weights.
pub(crate) const WITH_IMPORTANCE: Candidates = Candidates {
    first: -0.9,
    step: 0.05,
    last: 36,
};

/// Measure of an error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    Square,
    Magnitude,
}

/// Bound on numbers for quick rounding.
const QUICK: f32 = 4_194_304.0;

/// Rounding of numbers to levels.
trait Level<S: Simd> {
    /// The level `0 ..= max` nearest to each number, as f32.
    fn of(s: S, v: S::F32, max: S::F32) -> S::F32;
}

/// For magnitudes below [`QUICK`].
struct Quick;

impl<S: Simd> Level<S> for Quick {
    #[inline(always)]
    fn of(s: S, v: S::F32, max: S::F32) -> S::F32 {
        let nearest = (v + s.splat(MAGIC)) - s.splat(MAGIC);
        s.min(s.max(nearest, s.splat(0.0)), max)
    }
}

/// For all numbers, like [`nearest_int`].
struct ByBits;

impl<S: Simd> Level<S> for ByBits {
    #[inline(always)]
    fn of(s: S, v: S::F32, max: S::F32) -> S::F32 {
        s.min(s.max(s.to_f32(nearest_ints(s, v)), s.splat(0.0)), max)
    }
}

/// State of the search for some vectors of sub-blocks.
struct Search<'a, S: Simd, const N: usize, const G: usize> {
    s: S,
    x: &'a [[S::F32; G]; N],
    w: &'a [[S::F32; G]; N],
    max: S::F32,
    measure: Measure,
}

/// Sums of a candidate's levels.
struct Sums<V, const G: usize> {
    wl: [V; G],
    wll: [V; G],
    wxl: [V; G],
}

impl<S: Simd, const N: usize, const G: usize> Search<'_, S, N, G> {
    /// The levels at these inverse scales, and their sums; `extremes` are the least and the
    /// greatest `x`.
    #[inline(always)]
    fn sums(
        &self,
        extremes: &[[S::F32; G]; 2],
        inverse: &[S::F32; G],
        low: &[S::F32; G],
        levels: &mut [[S::F32; G]; N],
    ) -> Sums<S::F32, G> {
        let s = self.s;
        let mut quick = s.eq(self.max, self.max);
        for x in extremes {
            for g in 0..G {
                quick = s.both(
                    quick,
                    s.lt(s.abs(inverse[g] * (x[g] - low[g])), s.splat(QUICK)),
                );
            }
        }
        match s.all(quick) {
            true => self.sums_by::<Quick>(inverse, low, levels),
            false => self.sums_by::<ByBits>(inverse, low, levels),
        }
    }

    #[inline(always)]
    fn sums_by<L: Level<S>>(
        &self,
        inverse: &[S::F32; G],
        low: &[S::F32; G],
        levels: &mut [[S::F32; G]; N],
    ) -> Sums<S::F32, G> {
        let zero = [self.s.splat(0.0); G];
        let mut sums = Sums {
            wl: zero,
            wll: zero,
            wxl: zero,
        };
        for i in 0..N {
            for g in 0..G {
                let (x, w) = (self.x[i][g], self.w[i][g]);
                let l = L::of(self.s, inverse[g] * (x - low[g]), self.max);
                let wl = w * l;
                levels[i][g] = l;
                sums.wl[g] = sums.wl[g] + wl;
                sums.wll[g] = sums.wll[g] + wl * l;
                sums.wxl[g] = sums.wxl[g] + wl * x;
            }
        }
        sums
    }

    /// The error of levels.
    #[inline(always)]
    fn error(
        &self,
        levels: &[[S::F32; G]; N],
        scale: &[S::F32; G],
        low: &[S::F32; G],
    ) -> [S::F32; G] {
        let mut error = [self.s.splat(0.0); G];
        for i in 0..N {
            for g in 0..G {
                let off = scale[g] * levels[i][g] + low[g] - self.x[i][g];
                let counts = match self.measure {
                    Measure::Square => off * off,
                    Measure::Magnitude => self.s.abs(off),
                };
                error[g] = error[g] + self.w[i][g] * counts;
            }
        }
        error
    }
}

/// Searches scales and offsets of `8 * G` sub-blocks of `N` weights, position by position in `x`.
/// `w` are the error weights (ggml's `make_qkx2_quants` and `make_qkx3_quants`).
#[inline(always)]
pub(crate) fn affine<S: Simd, const N: usize, const G: usize, const MAX: i32>(
    s: S,
    x: &[[S::F32; G]; N],
    w: &[[S::F32; G]; N],
    candidates: Candidates,
    measure: Measure,
) -> Affine<S::F32, G> {
    let zero = s.splat(0.0);
    let search = Search {
        s,
        x,
        w,
        max: s.splat(MAX as f32),
        measure,
    };
    let (mut least_x, mut high) = (x[0], x[0]);
    let (mut sum_w, mut sum_wx) = (w[0], w[0]);
    for g in 0..G {
        sum_wx[g] = w[0][g] * x[0][g];
    }
    for i in 1..N {
        for g in 0..G {
            least_x[g] = s.min(x[i][g], least_x[g]);
            high[g] = s.max(x[i][g], high[g]);
            sum_w[g] = sum_w[g] + w[i][g];
            sum_wx[g] = sum_wx[g] + w[i][g] * x[i][g];
        }
    }
    let extremes = [least_x, high];
    let (mut low, mut flat, mut range) = (least_x, [s.lt(zero, zero); G], least_x);
    let (mut scale, mut origin) = (least_x, (least_x, least_x));
    for g in 0..G {
        low[g] = s.min(zero, least_x[g]);
        // Lanes of equal weights need no search; they get an arbitrary valid range.
        flat[g] = s.le(high[g], low[g]);
        range[g] = s.select(flat[g], s.splat(1.0), high[g] - low[g]);
        origin.0[g] = search.max / range[g];
        scale[g] = s.splat(1.0) / origin.0[g];
    }
    origin.1 = low;

    let mut levels = [[zero; G]; N];
    search.sums(&extremes, &origin.0, &low, &mut levels);
    let mut least = search.error(&levels, &scale, &low);
    for candidate in 0..=candidates.last {
        let steps = s.splat(candidates.first + candidates.step * candidate as f32 + MAX as f32);
        let mut inverse = range;
        for g in 0..G {
            inverse[g] = steps / range[g];
        }
        let Sums { wl, wll, wxl } = search.sums(&extremes, &inverse, &low, &mut levels);
        // The least-squares fit of scale and low to the levels exists for a positive determinant.
        let (mut fitted, mut fitted_low, mut fits) = ([zero; G], [zero; G], flat);
        for g in 0..G {
            let determinant = sum_w[g] * wll[g] - wl[g] * wl[g];
            fits[g] = s.gt(determinant, zero);
            fitted[g] = (sum_w[g] * wxl[g] - sum_wx[g] * wl[g]) / determinant;
            fitted_low[g] = (wll[g] * sum_wx[g] - wl[g] * wxl[g]) / determinant;
            let above = s.gt(fitted_low[g], zero);
            fitted[g] = s.select(above, wxl[g] / wll[g], fitted[g]);
            fitted_low[g] = s.select(above, zero, fitted_low[g]);
        }
        let error = search.error(&levels, &fitted, &fitted_low);
        for g in 0..G {
            let wins = s.both(s.both(fits[g], s.lt(error[g], least[g])), s.not(flat[g]));
            origin.0[g] = s.select(wins, inverse[g], origin.0[g]);
            origin.1[g] = s.select(wins, low[g], origin.1[g]);
            scale[g] = s.select(wins, fitted[g], scale[g]);
            low[g] = s.select(wins, fitted_low[g], low[g]);
            least[g] = s.select(wins, error[g], least[g]);
            range[g] = s.select(wins, high[g] - low[g], range[g]);
        }
    }
    for g in 0..G {
        origin.0[g] = s.select(flat[g], zero, origin.0[g]);
        scale[g] = s.select(flat[g], zero, scale[g]);
    }
    Affine {
        scale,
        low,
        total: sum_w,
        origin,
    }
}

/// Levels for `x ~ d * level - offset`.
#[inline(always)]
pub(crate) fn affine_levels<const N: usize, const MAX: i32>(
    x: &[f32; N],
    d: f32,
    offset: f32,
) -> [u8; N] {
    std::array::from_fn(|i| nearest_int((x[i] + offset) / d).clamp(0, MAX) as u8)
}
