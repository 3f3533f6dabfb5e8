//! What Q2_K, Q4_K and Q5_K share: super-blocks of `S` sub-blocks of `N` weights, each with a scale and an offset.

use crate::quant::num::{Half, nearest_int};
use crate::quant::search::{self, Affine, Candidates};

/// The scales and offsets of the sub-blocks, and the levels that were found with them.
pub(super) struct Fits<const N: usize, const S: usize> {
    pub(super) scales: [f32; S],
    pub(super) offsets: [f32; S],
    pub(super) levels: [[u8; N]; S],
}

/// Fits every sub-block, with the weights and the measure of errors given for each.
#[inline]
pub(super) fn fit<const N: usize, const S: usize, const MAX: i32>(
    x: &[[f32; N]; S],
    weights: &[[f32; N]; S],
    candidates: Candidates,
    measure: impl Fn(f32) -> f32,
) -> Fits<N, S> {
    let mut fits = Fits { scales: [0.0; S], offsets: [0.0; S], levels: [[0; N]; S] };
    for j in 0..S {
        let Affine { scale, low, levels } = search::affine::<N, MAX>(&x[j], &weights[j], candidates, &measure);
        (fits.scales[j], fits.offsets[j], fits.levels[j]) = (scale, -low, levels);
    }
    fits
}

/// Scales as multiples of one: `scale ~ unit * code`, codes of `0 ..= MAX`.
pub(super) struct Codes<const S: usize> {
    pub(super) unit: Half,
    pub(super) codes: [u8; S],
}

impl<const S: usize> Codes<S> {
    /// The largest scale gets the code `MAX`. Negative scales, which only rounding errors bring about, wrap.
    #[inline]
    pub(super) fn of_largest<const MAX: i32>(scales: &[f32; S]) -> Self {
        let largest = scales.iter().fold(0.0, |largest, &s| if s > largest { s } else { largest });
        let inverse = if largest > 0.0 { MAX as f32 / largest } else { 0.0 };
        let codes = scales.map(|s| nearest_int(inverse * s) as u8);
        Codes { unit: Half::from_f32(largest / MAX as f32), codes }
    }

    /// The unit with the least error, where `weights` say what each scale's error counts.
    #[inline]
    pub(super) fn of_least_error<const MAX: i32>(scales: &[f32; S], weights: &[f32; S]) -> Self {
        let fit = search::unsigned::<S, MAX>(scales, weights);
        Codes { unit: Half::from_f32(fit.scale), codes: fit.levels }
    }

    /// With no code above `ceiling`.
    #[inline]
    pub(super) fn up_to(self, ceiling: u8) -> Self {
        Codes { unit: self.unit, codes: self.codes.map(|code| code.min(ceiling)) }
    }
}

/// Rounds the weights to the levels that the quantized scales and offsets stand for. Sub-blocks whose scale is
/// zero keep their levels.
#[inline]
pub(super) fn round<const N: usize, const S: usize, const MAX: i32>(
    x: &[[f32; N]; S],
    scales: &[f32; S],
    offsets: &[f32; S],
    levels: &mut [[u8; N]; S],
) {
    for j in 0..S {
        if scales[j] != 0.0 {
            levels[j] = search::affine_levels::<N, MAX>(&x[j], scales[j], offsets[j]);
        }
    }
}

/// The weights that the levels stand for.
#[inline]
pub(super) fn dequantize<const N: usize, const S: usize>(
    levels: &[[u8; N]; S],
    scales: &[f32; S],
    offsets: &[f32; S],
    weights: &mut [[f32; N]; S],
) {
    for j in 0..S {
        for (w, &level) in weights[j].iter_mut().zip(&levels[j]) {
            *w = scales[j] * f32::from(level) - offsets[j];
        }
    }
}
