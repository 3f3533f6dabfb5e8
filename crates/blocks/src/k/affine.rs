//! Common to Q2_K, Q4_K and Q5_K: super-blocks of `S` sub-blocks of `N` weights, each with a scale and
//! an offset.

use super::LEN;
use crate::num::{Half, nearest_int};
use crate::search::{self, Candidates, Measure, Origin, VECTORS, side_by_side};
use crate::simd::{LANES, Simd};

/// Number of super-blocks quantized together, with their sub-blocks searched in parallel.
pub(super) const TOGETHER: usize = LANES;

/// The scales and offsets of the sub-blocks of some super-blocks.
pub(super) struct Fits<const S: usize> {
    pub(super) scales: [[f32; S]; TOGETHER],
    pub(super) offsets: [[f32; S]; TOGETHER],
    /// Sum of the error weights by sub-block.
    pub(super) totals: [[f32; S]; TOGETHER],
    /// Inverse scale and offset of the levels.
    pub(super) origins: [[Origin; S]; TOGETHER],
}

/// Fits every sub-block of up to [`TOGETHER`] super-blocks, with error weights `weights` and error
/// measure `measure`.
#[inline(always)]
pub(super) fn fit<I: Simd, const N: usize, const S: usize, const MAX: i32>(
    simd: I,
    x: &[[f32; LEN]],
    weights: &[[f32; LEN]; TOGETHER],
    candidates: Candidates,
    measure: Measure,
) -> Fits<S> {
    let mut fits = Fits {
        scales: [[0.0; S]; TOGETHER],
        offsets: [[0.0; S]; TOGETHER],
        totals: [[0.0; S]; TOGETHER],
        origins: [[Origin::default(); S]; TOGETHER],
    };
    let (subs, weights) = (
        x.as_flattened().as_chunks::<N>().0,
        weights.as_flattened().as_chunks::<N>().0,
    );
    for start in (0..subs.len()).step_by(VECTORS * LANES) {
        let (x, w) = (
            side_by_side(simd, subs, start),
            side_by_side(simd, weights, start),
        );
        let found = search::affine::<I, N, VECTORS, MAX>(simd, &x, &w, candidates, measure);
        let origins = found.origins(simd);
        for v in 0..VECTORS {
            let (scales, lows, totals) = (found.scale[v], found.low[v], found.total[v]);
            store(simd.store(scales), &mut fits.scales, start + v * LANES);
            store(
                simd.store(simd.neg(lows)),
                &mut fits.offsets,
                start + v * LANES,
            );
            store(simd.store(totals), &mut fits.totals, start + v * LANES);
            store(origins[v], &mut fits.origins, start + v * LANES);
        }
    }
    fits
}

/// Stores results of the sub-blocks from index `at` on.
#[inline(always)]
fn store<T: Copy, const S: usize>(lanes: [T; LANES], to: &mut [[T; S]; TOGETHER], at: usize) {
    for (to, lane) in to.as_flattened_mut()[at..].iter_mut().zip(lanes) {
        *to = lane;
    }
}

/// Scales as multiples of one: `scale ~ unit * code`, codes of `0 ..= MAX`.
#[derive(Clone, Copy)]
pub(super) struct Codes<const S: usize> {
    pub(super) unit: Half,
    pub(super) codes: [u8; S],
}

impl<const S: usize> Codes<S> {
    /// The largest scale gets the code `MAX`. Negative scales, which only rounding errors cause,
    /// wrap.
    #[inline(always)]
    fn of_largest<const MAX: i32>(scales: &[f32; S]) -> Self {
        let largest = scales
            .iter()
            .fold(0.0, |largest, &s| if s > largest { s } else { largest });
        let inverse = if largest > 0.0 {
            MAX as f32 / largest
        } else {
            0.0
        };
        let codes = scales.map(|s| nearest_int(inverse * s) as u8);
        Codes {
            unit: Half::from_f32(largest / MAX as f32),
            codes,
        }
    }

    /// Clamps codes to `ceiling`.
    #[inline(always)]
    pub(super) fn up_to(self, ceiling: u8) -> Self {
        Codes {
            unit: self.unit,
            codes: self.codes.map(|code| code.min(ceiling)),
        }
    }
}

/// Scales and offsets of every super-block, the largest of each with the code `MAX`.
#[inline(always)]
pub(super) fn codes_of_largest<const S: usize, const MAX: i32>(
    fits: &Fits<S>,
) -> [[Codes<S>; 2]; TOGETHER] {
    std::array::from_fn(|i| {
        [
            Codes::of_largest::<MAX>(&fits.scales[i]),
            Codes::of_largest::<MAX>(&fits.offsets[i]),
        ]
    })
}

/// Scales and offsets of every super-block in the units with the least error, weighted by the error
/// weights of the sub-blocks.
#[inline(always)]
pub(super) fn codes_of_least_error<I: Simd, const S: usize, const MAX: i32>(
    simd: I,
    fits: &Fits<S>,
) -> [[Codes<S>; 2]; TOGETHER] {
    // Lanes are super-blocks.
    let x = [
        simd.gather(fits.scales.each_ref()),
        simd.gather(fits.offsets.each_ref()),
    ];
    let totals = simd.gather(fits.totals.each_ref());
    let found = search::unsigned::<I, S, 2, MAX>(simd, &x, &[totals; 2]);
    let mut codes = [[Codes {
        unit: Half::from_f32(0.0),
        codes: [0; S],
    }; 2]; TOGETHER];
    for g in 0..2 {
        for (codes, unit) in codes.iter_mut().zip(simd.store(found.scales[g])) {
            codes[g].unit = Half::from_f32(unit);
        }
        for (i, levels) in found.levels[g].into_iter().enumerate() {
            for (codes, level) in codes.iter_mut().zip(simd.store_u8(levels)) {
                codes[g].codes[i] = level;
            }
        }
    }
    codes
}

/// Rounds the weights at the quantized scales and offsets. Sub-blocks with a scale of zero keep the
/// levels of the search.
#[inline(always)]
pub(super) fn round<const N: usize, const S: usize, const MAX: i32>(
    x: &[[f32; N]; S],
    scales: &[f32; S],
    offsets: &[f32; S],
    origins: &[Origin; S],
) -> [[u8; N]; S] {
    std::array::from_fn(|j| match scales[j] != 0.0 {
        true => search::affine_levels::<N, MAX>(&x[j], scales[j], offsets[j]),
        false => origins[j].levels::<N, MAX>(&x[j]),
    })
}

/// The values of eight levels of a sub-block.
#[inline(always)]
pub(super) fn weights<V: Simd>(simd: V, scale: f32, levels: V::I32, offset: f32) -> [f32; LANES] {
    simd.store(simd.splat(scale) * simd.to_f32(levels) - simd.splat(offset))
}
