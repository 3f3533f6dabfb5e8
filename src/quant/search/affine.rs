//! Levels above an offset.

use crate::quant::num::nearest_int;

/// Levels `0 ..= MAX` with `x ~ scale * level + low`, `low` not being above zero.
pub(in crate::quant) struct Affine<const N: usize> {
    pub(in crate::quant) scale: f32,
    pub(in crate::quant) low: f32,
    pub(in crate::quant) levels: [u8; N],
}

/// The candidates of an [`affine`] search: the range from the best lowest level so far to the largest weight is
/// divided into `MAX + first + i * step` steps, for `i` in `0 ..= last`.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Candidates {
    pub(in crate::quant) first: f32,
    pub(in crate::quant) step: f32,
    pub(in crate::quant) last: i32,
}

/// ggml's candidates wherever importance weights steer an affine search.
pub(in crate::quant) const WITH_IMPORTANCE: Candidates = Candidates { first: -0.9, step: 0.05, last: 36 };

/// Candidates that are tried side by side.
const LANES: usize = 4;

/// The level `0 ..= MAX` nearest to `v`.
#[inline]
fn unsigned_level<const MAX: i32>(v: f32) -> i32 {
    nearest_int(v).clamp(0, MAX)
}

/// Levels for `x ~ d * level - offset`.
#[inline]
pub(in crate::quant) fn affine_levels<const N: usize, const MAX: i32>(x: &[f32; N], d: f32, offset: f32) -> [u8; N] {
    std::array::from_fn(|i| unsigned_level::<MAX>((x[i] + offset) / d) as u8)
}

/// Searches an [`Affine`] scale and offset. `w` says what the error of each `x` counts, `measure` what an error
/// counts: its square or its magnitude (ggml's `make_qkx2_quants` and `make_qkx3_quants`).
///
/// A candidate that wins moves `low`, from which the next ones count. Few do, hence several are tried at once as if
/// none did; those after a winner are tried again.
#[inline]
pub(in crate::quant) fn affine<const N: usize, const MAX: i32>(
    x: &[f32; N],
    w: &[f32; N],
    candidates: Candidates,
    measure: impl Fn(f32) -> f32,
) -> Affine<N> {
    let (mut low, mut high) = (x[0], x[0]);
    let (mut sum_w, mut sum_wx) = (w[0], w[0] * x[0]);
    for (&x, &w) in x.iter().zip(w).skip(1) {
        if x < low {
            low = x;
        }
        if x > high {
            high = x;
        }
        sum_w += w;
        sum_wx += w * x;
    }
    if low > 0.0 {
        low = 0.0;
    }
    if high <= low {
        return Affine { scale: 0.0, low, levels: [0; N] };
    }
    let level = |x: f32, inverse: f32, low: f32| unsigned_level::<MAX>(inverse * (x - low));
    let error = |x: f32, w: f32, l: f32, scale: f32, low: f32| w * measure(scale * l + low - x);

    // What the best levels follow from: an inverse scale, and `low` at that time.
    let mut origin = (MAX as f32 / (high - low), low);
    let mut scale = 1.0 / origin.0;
    let mut least = 0.0;
    for (&x, &w) in x.iter().zip(w) {
        least += error(x, w, level(x, origin.0, low) as f32, scale, low);
    }
    let mut next = 0;
    while next <= candidates.last {
        let inverses: [f32; LANES] = std::array::from_fn(|c| {
            (candidates.first + candidates.step * (next + c as i32) as f32 + MAX as f32) / (high - low)
        });
        let mut levels = [[0.0; LANES]; N];
        let (mut sum_wl, mut sum_wll, mut sum_wxl) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for (levels, &x) in levels.iter_mut().zip(x) {
            *levels = inverses.map(|inverse| level(x, inverse, low) as f32);
        }
        // A pass of its own: in one with the levels, the compiler shuffles the lanes about.
        for ((levels, &x), &w) in levels.iter().zip(x).zip(w) {
            for c in 0..LANES {
                let wl = w * levels[c];
                sum_wl[c] += wl;
                sum_wll[c] += wl * levels[c];
                sum_wxl[c] += wl * x;
            }
        }
        // The least-squares fit of scale and low to the levels; there is none without a positive determinant.
        let determinants: [f32; LANES] = std::array::from_fn(|c| sum_w * sum_wll[c] - sum_wl[c] * sum_wl[c]);
        let (mut scales, mut lows) = ([0.0; LANES], [0.0; LANES]);
        for c in 0..LANES {
            scales[c] = (sum_w * sum_wxl[c] - sum_wx * sum_wl[c]) / determinants[c];
            lows[c] = (sum_wll[c] * sum_wx - sum_wl[c] * sum_wxl[c]) / determinants[c];
            if lows[c] > 0.0 {
                lows[c] = 0.0;
                scales[c] = sum_wxl[c] / sum_wll[c];
            }
        }
        let mut errors = [0.0; LANES];
        for ((levels, &x), &w) in levels.iter().zip(x).zip(w) {
            for c in 0..LANES {
                errors[c] += error(x, w, levels[c], scales[c], lows[c]);
            }
        }
        let last = ((candidates.last - next) as usize).min(LANES - 1);
        match (0..=last).find(|&c| determinants[c] > 0.0 && errors[c] < least) {
            Some(c) => {
                origin = (inverses[c], low);
                (scale, low, least) = (scales[c], lows[c], errors[c]);
                next += c as i32 + 1;
            }
            None => next += LANES as i32,
        }
    }
    let mut levels = [0; N];
    for (l, &x) in levels.iter_mut().zip(x) {
        *l = level(x, origin.0, origin.1) as u8;
    }
    Affine { scale, low, levels }
}
