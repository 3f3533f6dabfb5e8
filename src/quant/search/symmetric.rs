//! Levels on both sides of zero.

use super::{ROUNDS, VANISHING, extreme};
use crate::quant::num::nearest_int;
use crate::simd::Simd;

/// Levels `0 ..= 2 * HALF - 1` with `x ~ scale * (level - HALF)`.
pub(in crate::quant) struct Symmetric<const N: usize> {
    pub(in crate::quant) scale: f32,
    pub(in crate::quant) levels: [u8; N],
}

impl<const N: usize> Symmetric<N> {
    /// What stands for a group of zeros. Its levels mean `-HALF`, but the scale makes that nothing.
    const ZERO: Self = Symmetric { scale: 0.0, levels: [0; N] };
}

/// The signed level `-HALF ..= HALF - 1` nearest to `v`.
#[inline]
fn signed_level<const HALF: i32>(v: f32) -> i32 {
    nearest_int(v).clamp(-HALF, HALF - 1)
}

/// Levels for `x ~ d * (level - HALF)`.
#[inline]
pub(in crate::quant) fn symmetric_levels<const N: usize, const HALF: i32>(x: &[f32; N], d: f32) -> [u8; N] {
    std::array::from_fn(|i| (signed_level::<HALF>(x[i] / d) + HALF) as u8)
}

/// The sums over a group that tell how good each of `C` candidate scales is: with levels `l` and weights `w`, the
/// best scale for these levels is `wxl / wll`, and it lessens the error by `wxl * wxl / wll`.
pub(in crate::quant) struct Scores<const C: usize> {
    pub(in crate::quant) wxl: [f32; C],
    pub(in crate::quant) wll: [f32; C],
}

/// Scores `C` inverse scales. `level` gives the level nearest to a number in units of the scale, `product` multiplies
/// `w`, `x` and `l` in the type's own order.
#[inline]
pub(in crate::quant) fn score<const N: usize, const C: usize>(
    x: &[f32; N],
    w: &[f32; N],
    inverses: &[f32; C],
    level: impl Fn(f32) -> f32,
    product: impl Fn(f32, f32, f32) -> f32,
) -> Scores<C> {
    let mut scores = Scores { wxl: [0.0; C], wll: [0.0; C] };
    for (&x, &w) in x.iter().zip(w) {
        for (c, inverse) in inverses.iter().enumerate() {
            let l = level(inverse * x);
            scores.wxl[c] += product(w, x, l);
            scores.wll[c] += w * l * l;
        }
    }
    scores
}

/// The best scale so far, and by how much it lessens the error.
pub(in crate::quant) struct Best {
    pub(in crate::quant) scale: f32,
    gain: f32,
}

impl Best {
    /// Starts from the first candidate, whose sums gave `scale` and `wxl`.
    #[inline]
    pub(in crate::quant) fn new(scale: f32, wxl: f32) -> Best {
        Best { scale, gain: scale * wxl }
    }

    /// Takes the candidate if it gains more, and says so.
    #[inline]
    pub(in crate::quant) fn offer(&mut self, wxl: f32, wll: f32) -> bool {
        let better = wll > 0.0 && wxl * wxl > self.gain * wll;
        if better {
            *self = Best::new(wxl / wll, wxl);
        }
        better
    }
}

/// The best scale so far in each lane, and by how much it lessens the error.
pub(in crate::quant) struct BestLanes<S: Simd> {
    pub(in crate::quant) scale: S::F32,
    gain: S::F32,
}

impl<S: Simd> BestLanes<S> {
    /// Starts from the first candidate, whose sums gave `scale` and `wxl`.
    #[inline(always)]
    pub(in crate::quant) fn new(_: S, scale: S::F32, wxl: S::F32) -> Self {
        BestLanes { scale, gain: scale * wxl }
    }

    /// Takes the candidate where it gains more, and says where.
    #[inline(always)]
    pub(in crate::quant) fn offer(&mut self, simd: S, wxl: S::F32, wll: S::F32) -> S::Mask {
        let better = simd.both(simd.gt(wll, simd.splat(0.0)), simd.gt(wxl * wxl, self.gain * wll));
        let scale = wxl / wll;
        self.scale = simd.select(better, scale, self.scale);
        self.gain = simd.select(better, scale * wxl, self.gain);
        better
    }
}

/// Searches a [`Symmetric`] scale: the extreme weight lands on `-HALF`, or up to 0.9 levels beside it.
/// `w` says what the error of each `x` counts (ggml's `make_qx_quants`).
#[inline]
pub(in crate::quant) fn symmetric<const N: usize, const HALF: i32>(x: &[f32; N], w: &[f32; N]) -> Symmetric<N> {
    /// Where ggml looks beside `-HALF`, in steps of so many levels.
    const OFFSETS: [f32; 18] = [-9., -8., -7., -6., -5., -4., -3., -2., -1., 1., 2., 3., 4., 5., 6., 7., 8., 9.];
    const STEP: f32 = 0.1;

    let extreme = extreme(x);
    if extreme.abs() < VANISHING {
        return Symmetric::ZERO;
    }
    let level = |v: f32| signed_level::<HALF>(v) as f32;
    let product = |w: f32, x: f32, l: f32| w * x * l;

    let mut inverse = -HALF as f32 / extreme;
    let Scores { wxl: [wxl], wll: [wll] } = score(x, w, &[inverse], level, product);
    let mut best = Best::new(if wll != 0.0 { wxl / wll } else { 0.0 }, wxl);
    let candidates = OFFSETS.map(|offset| -(HALF as f32 + STEP * offset) / extreme);
    let scores = score(x, w, &candidates, level, product);
    for (c, &candidate) in candidates.iter().enumerate() {
        if best.offer(scores.wxl[c], scores.wll[c]) {
            inverse = candidate;
        }
    }
    Symmetric { scale: best.scale, levels: x.map(|v| (signed_level::<HALF>(inverse * v) + HALF) as u8) }
}

/// Searches a [`Symmetric`] scale by moving one level at a time from where the extreme weight lands on `-HALF`;
/// every error counts `x^2` (ggml's `make_q3_quants`).
pub(in crate::quant) fn symmetric_by_descent<const N: usize, const HALF: i32>(x: &[f32; N]) -> Symmetric<N> {
    let extreme = extreme(x);
    if extreme.abs() < VANISHING {
        return Symmetric::ZERO;
    }
    let inverse = -HALF as f32 / extreme;
    let mut levels: [i32; N] = std::array::from_fn(|i| signed_level::<HALF>(inverse * x[i]));
    let (mut xl, mut ll) = (0.0, 0.0);
    for (&v, &level) in x.iter().zip(&levels) {
        let (w, l) = (v * v, level as f32);
        xl += w * v * l;
        ll += w * l * l;
    }
    for _ in 0..ROUNDS {
        let mut changed = false;
        for (&v, level) in x.iter().zip(&mut levels) {
            let (w, l) = (v * v, *level as f32);
            let rest_xl = xl - w * v * l;
            if rest_xl > 0.0 {
                let rest_ll = ll - w * l * l;
                let moved = signed_level::<HALF>(v * rest_ll / rest_xl);
                if moved != *level {
                    let l = moved as f32;
                    let (new_xl, new_ll) = (rest_xl + w * v * l, rest_ll + w * l * l);
                    if new_ll > 0.0 && new_xl * new_xl * ll > xl * xl * new_ll {
                        (*level, xl, ll) = (moved, new_xl, new_ll);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    Symmetric { scale: if ll > 0.0 { xl / ll } else { 0.0 }, levels: levels.map(|level| (level + HALF) as u8) }
}
