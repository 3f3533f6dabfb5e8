//! Searches for the scale of a block, shared by several types.
//!
//! They minimize a weighted squared error over a fixed list of candidates, and they do it in the reference's order,
//! since the first of two equally good candidates wins and every sum depends on its order. Candidates that do not
//! depend on each other are scored side by side, each with sums of its own.

use super::num::nearest_int;

/// Blocks whose largest magnitude is below this count as zero (ggml's `GROUP_MAX_EPS`).
pub(super) const ZERO_BLOCK: f32 = 1.0e-15;

/// The mean of the squares of one row, summed front to back.
pub(super) fn mean_square<const N: usize>(row: &[[f32; N]]) -> f32 {
    let sum: f32 = row.as_flattened().iter().fold(0.0, |sum, x| sum + x * x);
    sum / row.as_flattened().len() as f32
}

/// How much the error of each weight counts: its importance times a magnitude that `floor` (a mean square) keeps
/// away from zero.
#[inline]
pub(super) fn error_weights<const N: usize>(x: &[f32; N], importance: &[f32; N], floor: f32) -> [f32; N] {
    std::array::from_fn(|i| importance[i] * (floor + x[i] * x[i]).sqrt())
}

/// The lowest and the highest weight, no higher than `low` and no lower than `high`; NaN does not count. Of zeros of
/// both signs it may be either.
///
/// Minima do not depend on the order, so that eight run side by side.
#[inline]
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

/// The first weight of the largest magnitude, with its sign; 0 if there is none above 0.
#[inline]
pub(super) fn extreme<const N: usize>(x: &[f32; N]) -> f32 {
    let (low, high) = bounds(x, 0.0, 0.0);
    if high > -low {
        high
    } else if high < -low {
        low
    } else {
        // Both signs reach it, or the block is zero.
        x.iter().copied().find(|v| v.abs() == high && high > 0.0).unwrap_or(0.0)
    }
}

/// Sums over a block that tell how good a candidate scale is: with levels `l` and error weights `w`, the best scale
/// for these levels is `wxl / wll`, and it lessens the error by `wxl * wxl / wll`.
pub(super) struct Scores<const C: usize> {
    pub(super) wxl: [f32; C],
    pub(super) wll: [f32; C],
}

/// Scores `C` inverse scales. `level` gives the level nearest to a weight in units of the scale, `product` multiplies
/// `w`, `x` and `l` in the type's own order.
#[inline]
pub(super) fn score<const N: usize, const C: usize>(
    x: &[f32; N],
    w: &[f32; N],
    inverse: &[f32; C],
    level: impl Fn(f32) -> f32,
    product: impl Fn(f32, f32, f32) -> f32,
) -> Scores<C> {
    let mut scores = Scores { wxl: [0.0; C], wll: [0.0; C] };
    for (&x, &w) in x.iter().zip(w) {
        for (c, inverse) in inverse.iter().enumerate() {
            let l = level(inverse * x);
            scores.wxl[c] += product(w, x, l);
            scores.wll[c] += w * l * l;
        }
    }
    scores
}

/// A scale, and the best value so far of what it gains.
pub(super) struct Best {
    pub(super) scale: f32,
    gain: f32,
}

impl Best {
    /// Starts from the first candidate, whose sums are these, with `scale`.
    #[inline]
    pub(super) fn new(scale: f32, wxl: f32) -> Best {
        Best { scale, gain: scale * wxl }
    }

    /// Takes the candidate if it gains more, and says so.
    #[inline]
    pub(super) fn offer(&mut self, wxl: f32, wll: f32) -> bool {
        let better = wll > 0.0 && wxl * wxl > self.gain * wll;
        if better {
            *self = Best::new(wxl / wll, wxl);
        }
        better
    }
}

/// Candidates beside the plain scale: ggml tries a tenth of a level more or less, nine times in each direction.
const SIGNED_TRIES: [f32; 18] = [-9., -8., -7., -6., -5., -4., -3., -2., -1., 1., 2., 3., 4., 5., 6., 7., 8., 9.];
const SIGNED_STEP: f32 = 0.1;

/// The scale `d` for `x = d * (level - half)` with `2 * half` levels, of least weighted error, and the levels.
/// The extreme weight falls on level 0 or near it. (ggml's `make_qx_quants`.)
#[inline]
pub(super) fn signed_scale<const N: usize>(x: &[f32; N], w: &[f32; N], half: i32) -> (f32, [u8; N]) {
    let extreme = extreme(x);
    if extreme.abs() < ZERO_BLOCK {
        return (0.0, [0; N]);
    }
    let steps = half as f32;
    let signed = |v: f32| nearest_int(v).clamp(-half, half - 1);
    let level = |v: f32| signed(v) as f32;
    let product = |w: f32, x: f32, l: f32| w * x * l;

    let mut inverse = -steps / extreme;
    let first = score(x, w, &[inverse], level, product);
    let (wxl, wll) = (first.wxl[0], first.wll[0]);
    let mut best = Best::new(if wll != 0.0 { wxl / wll } else { 0.0 }, wxl);
    let candidates = SIGNED_TRIES.map(|t| -(steps + SIGNED_STEP * t) / extreme);
    let scores = score(x, w, &candidates, level, product);
    for (c, &candidate) in candidates.iter().enumerate() {
        if best.offer(scores.wxl[c], scores.wll[c]) {
            inverse = candidate;
        }
    }
    (best.scale, x.map(|v| (signed(inverse * v) + half) as u8))
}

/// The candidates of [`scale_and_min`]: the range of the block is spread over `top + first`, then
/// `top + first + step` levels and so on, `steps` times more.
#[derive(Clone, Copy)]
pub(super) struct Spread {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) steps: u8,
}

/// `scale` and `min` (never above 0) for `x = scale * level + min` with levels 0 to `top`, of least weighted error,
/// and the levels. (ggml's `make_qkx3_quants` with weights and squared errors.)
///
/// A candidate that is taken moves `min`, from which the next ones count: they cannot be tried side by side.
#[inline]
pub(super) fn scale_and_min<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    top: u8,
    spread: Spread,
) -> (f32, f32, [u8; N]) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_wx) = (w[0], w[0] * x[0]);
    for (&x, &w) in x.iter().zip(w).skip(1) {
        if x < min {
            min = x;
        }
        if x > max {
            max = x;
        }
        sum_w += w;
        sum_wx += w * x;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max <= min {
        return (0.0, min, [0; N]);
    }
    let levels_for = |inverse: f32, min: f32| -> [f32; N] {
        x.map(|x| nearest_int(inverse * (x - min)).clamp(0, i32::from(top)) as f32)
    };
    let error_of = |levels: &[f32; N], scale: f32, min: f32| -> f32 {
        let errors: [f32; N] = std::array::from_fn(|i| {
            let off = scale * levels[i] + min - x[i];
            w[i] * (off * off)
        });
        errors.iter().fold(0.0, |sum, e| sum + e)
    };

    let inverse = f32::from(top) / (max - min);
    let mut scale = 1.0 / inverse;
    let mut levels = levels_for(inverse, min);
    let mut least = error_of(&levels, scale, min);
    for step in 0..=spread.steps {
        let inverse = (spread.first + spread.step * f32::from(step) + f32::from(top)) / (max - min);
        let tried = levels_for(inverse, min);
        let wl: [f32; N] = std::array::from_fn(|i| w[i] * tried[i]);
        let wll: [f32; N] = std::array::from_fn(|i| wl[i] * tried[i]);
        let wlx: [f32; N] = std::array::from_fn(|i| wl[i] * x[i]);
        let (mut sum_wl, mut sum_wll, mut sum_wlx) = (0.0, 0.0, 0.0);
        for i in 0..N {
            sum_wl += wl[i];
            sum_wll += wll[i];
            sum_wlx += wlx[i];
        }
        let determinant = sum_w * sum_wll - sum_wl * sum_wl;
        if determinant > 0.0 {
            let mut tried_scale = (sum_w * sum_wlx - sum_wx * sum_wl) / determinant;
            let mut tried_min = (sum_wll * sum_wx - sum_wl * sum_wlx) / determinant;
            if tried_min > 0.0 {
                tried_min = 0.0;
                tried_scale = sum_wlx / sum_wll;
            }
            let error = error_of(&tried, tried_scale, tried_min);
            if error < least {
                (least, scale, min, levels) = (error, tried_scale, tried_min, tried);
            }
        }
    }
    (scale, min, levels.map(|l| l as u8))
}
