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

/// Candidates that [`scale_and_min`] tries side by side.
const LANES: usize = 4;

/// `scale` and `min` (never above 0) for `x = scale * level + min` with levels 0 to `top`, of least weighted error,
/// and the levels. (ggml's `make_qkx3_quants` with weights and squared errors.)
///
/// A candidate that is taken moves `min`, from which the next ones count. Few are taken, hence several are tried at
/// once as if none were; those after a taken one are tried again.
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
    let level = |x: f32, inverse: f32, min: f32| nearest_int(inverse * (x - min)).clamp(0, i32::from(top));
    let error = |x: f32, w: f32, level: f32, scale: f32, min: f32| {
        let off = scale * level + min - x;
        w * (off * off)
    };

    // What the levels follow from: an inverse scale and the minimum at that time.
    let mut origin = (f32::from(top) / (max - min), min);
    let mut scale = 1.0 / origin.0;
    let mut least = 0.0;
    for (&x, &w) in x.iter().zip(w) {
        least += error(x, w, level(x, origin.0, min) as f32, scale, min);
    }
    let mut step = 0;
    while step <= spread.steps {
        let inverses: [f32; LANES] = std::array::from_fn(|c| {
            (spread.first + spread.step * f32::from(step + c as u8) + f32::from(top)) / (max - min)
        });
        let mut levels = [[0.0; LANES]; N];
        let (mut sum_l, mut sum_ll, mut sum_lx) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for ((levels, &x), &w) in levels.iter_mut().zip(x).zip(w) {
            for c in 0..LANES {
                let l = level(x, inverses[c], min) as f32;
                levels[c] = l;
                sum_l[c] += w * l;
                sum_ll[c] += w * l * l;
                sum_lx[c] += w * l * x;
            }
        }
        let determinants: [f32; LANES] = std::array::from_fn(|c| sum_w * sum_ll[c] - sum_l[c] * sum_l[c]);
        let (mut scales, mut mins) = ([0.0; LANES], [0.0; LANES]);
        for c in 0..LANES {
            scales[c] = (sum_w * sum_lx[c] - sum_wx * sum_l[c]) / determinants[c];
            mins[c] = (sum_ll[c] * sum_wx - sum_l[c] * sum_lx[c]) / determinants[c];
            if mins[c] > 0.0 {
                mins[c] = 0.0;
                scales[c] = sum_lx[c] / sum_ll[c];
            }
        }
        let mut errors = [0.0; LANES];
        for ((levels, &x), &w) in levels.iter().zip(x).zip(w) {
            for c in 0..LANES {
                errors[c] += error(x, w, levels[c], scales[c], mins[c]);
            }
        }
        let last = usize::from(spread.steps - step).min(LANES - 1);
        match (0..=last).find(|&c| determinants[c] > 0.0 && errors[c] < least) {
            Some(c) => {
                origin = (inverses[c], min);
                (scale, min, least) = (scales[c], mins[c], errors[c]);
                step += c as u8 + 1;
            }
            None => step += LANES as u8,
        }
    }
    let mut levels = [0; N];
    for (l, &x) in levels.iter_mut().zip(x) {
        *l = level(x, origin.0, origin.1) as u8;
    }
    (scale, min, levels)
}
