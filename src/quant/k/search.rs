//! Searches for the scale of a few weights: least weighted squares over a handful of candidates.
//!
//! All of them go one way. A candidate scale rounds the weights `x` to integer levels `l`; for these levels, the
//! best scale has a closed form from weighted sums, and so has the error that it leaves; the candidate with the
//! least error wins. The sums are sequential, so that their rounding is that of the reference.

use crate::quant::num::{max, nearest_int};

/// Groups whose largest magnitude lies below this count as zero (ggml's `GROUP_MAX_EPS`).
pub(in crate::quant) const VANISHING: f32 = 1e-15;

/// Rounds of improving one level at a time, at most, in the searches that do so.
const ROUNDS: usize = 5;

/// Levels `0 ..= 2 * HALF - 1` with `x ~ scale * (level - HALF)`.
pub(in crate::quant) struct Symmetric<const N: usize> {
    pub(in crate::quant) scale: f32,
    pub(in crate::quant) levels: [u8; N],
}

impl<const N: usize> Symmetric<N> {
    /// What stands for a group of zeros. Its levels mean `-HALF`, but the scale makes that nothing.
    const ZERO: Self = Symmetric { scale: 0.0, levels: [0; N] };
}

/// Levels `0 ..= MAX` with `x ~ scale * level - offset`.
pub(in crate::quant) struct Affine<const N: usize> {
    pub(in crate::quant) scale: f32,
    pub(in crate::quant) offset: f32,
    pub(in crate::quant) levels: [u8; N],
}

/// Levels `0 ..= MAX` with `x ~ scale * level`.
///
/// A negative `x`, which only rounding errors bring about, gives a level below zero, wrapped into a byte.
pub(in crate::quant) struct Unsigned<const N: usize> {
    pub(in crate::quant) scale: f32,
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

/// The weight of largest magnitude, the first of equals; `None` where all vanish.
#[inline]
fn extreme(x: &[f32]) -> Option<f32> {
    let (mut magnitude, mut extreme) = (0.0, 0.0);
    for &v in x {
        if v.abs() > magnitude {
            (magnitude, extreme) = (v.abs(), v);
        }
    }
    // Not `>=`: a NaN must pass, as it does in the reference.
    #[allow(clippy::neg_cmp_op_on_partial_ord)]
    (!(magnitude < VANISHING)).then_some(extreme)
}

/// The signed level `-HALF ..= HALF - 1` nearest to `v`.
#[inline]
fn signed_level<const HALF: i32>(v: f32) -> i32 {
    nearest_int(v).clamp(-HALF, HALF - 1)
}

/// The level `0 ..= MAX` nearest to `v`.
#[inline]
fn unsigned_level<const MAX: i32>(v: f32) -> i32 {
    nearest_int(v).clamp(0, MAX)
}

/// Levels for `x ~ d * (level - HALF)`.
#[inline]
pub(in crate::quant) fn symmetric_levels<const N: usize, const HALF: i32>(x: &[f32; N], d: f32) -> [u8; N] {
    std::array::from_fn(|i| (signed_level::<HALF>(x[i] / d) + HALF) as u8)
}

/// Levels for `x ~ d * level - offset`.
#[inline]
pub(in crate::quant) fn affine_levels<const N: usize, const MAX: i32>(x: &[f32; N], d: f32, offset: f32) -> [u8; N] {
    std::array::from_fn(|i| unsigned_level::<MAX>((x[i] + offset) / d) as u8)
}

/// Searches a [`Symmetric`] scale: the extreme weight lands on `-HALF`, or up to 0.9 levels beside it.
/// `weights` say what the error of each `x` counts (ggml's `make_qx_quants`).
pub(in crate::quant) fn symmetric<const N: usize, const HALF: i32>(x: &[f32; N], weights: &[f32; N]) -> Symmetric<N> {
    /// Candidates on either side, and how far apart they lie, in levels.
    const REACH: i32 = 9;
    const STEP: f32 = 0.1;
    /// Candidates whose sums run side by side. They do not depend on each other, unlike the additions of one sum.
    const LANES: usize = 4;

    let Some(extreme) = extreme(x) else { return Symmetric::ZERO };
    let weighted: [f32; N] = std::array::from_fn(|i| weights[i] * x[i]);
    // The candidate at zero comes first, the others in order; the last one again fills the last lane.
    let order = std::iter::once(0).chain((-REACH..=REACH).filter(|&offset| offset != 0)).chain([REACH]);
    let mut inverses = [[0.0; LANES]; (2 * REACH as usize + 2) / LANES];
    for (inverse, offset) in inverses.as_flattened_mut().iter_mut().zip(order) {
        *inverse = -(HALF as f32 + STEP * offset as f32) / extreme;
    }

    let (mut scale, mut best, mut best_inverse) = (0.0, 0.0, inverses[0][0]);
    for (group, inverses) in inverses.iter().enumerate() {
        // The sums of w x l and w l^2 over the levels l.
        let (mut xl, mut ll) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..N {
            for lane in 0..LANES {
                let l = signed_level::<HALF>(inverses[lane] * x[i]) as f32;
                xl[lane] += weighted[i] * l;
                ll[lane] += weights[i] * l * l;
            }
        }
        for lane in 0..LANES {
            if (group, lane) == (0, 0) {
                scale = if ll[0] != 0.0 { xl[0] / ll[0] } else { 0.0 };
                best = scale * xl[0];
            } else if ll[lane] > 0.0 && xl[lane] * xl[lane] > best * ll[lane] {
                scale = xl[lane] / ll[lane];
                best = scale * xl[lane];
                best_inverse = inverses[lane];
            }
        }
    }
    let levels = std::array::from_fn(|i| (signed_level::<HALF>(best_inverse * x[i]) + HALF) as u8);
    Symmetric { scale, levels }
}

/// Searches a [`Symmetric`] scale by moving one level at a time from where the extreme weight lands on `-HALF`;
/// every error counts `x^2` (ggml's `make_q3_quants`).
pub(in crate::quant) fn symmetric_by_descent<const N: usize, const HALF: i32>(x: &[f32; N]) -> Symmetric<N> {
    let Some(extreme) = extreme(x) else { return Symmetric::ZERO };
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

/// Sums over weights `w`, numbers `x` and levels `l`: of `w`, `w x`, `w l`, `w l^2` and `w x l`.
struct Sums {
    w: f32,
    x: f32,
    l: f32,
    ll: f32,
    xl: f32,
}

impl Sums {
    /// The least-squares fit of `x ~ scale * l + low`, where `low` may not lie above zero. NaN, which no
    /// comparison of errors prefers, where there is none.
    #[inline]
    fn scale_and_low(&self) -> (f32, f32) {
        let Sums { w, x, l, ll, xl } = *self;
        let determinant = w * ll - l * l;
        if determinant > 0.0 {
            let low = (ll * x - l * xl) / determinant;
            if low > 0.0 { (xl / ll, 0.0) } else { ((w * xl - x * l) / determinant, low) }
        } else {
            (f32::NAN, f32::NAN)
        }
    }
}

/// Searches an [`Affine`] scale and offset. `weights` say what the error of each `x` counts, `measure` what an
/// error counts: its square or its magnitude (ggml's `make_qkx2_quants` and `make_qkx3_quants`).
pub(in crate::quant) fn affine<const N: usize, const MAX: i32>(
    x: &[f32; N],
    weights: &[f32; N],
    candidates: Candidates,
    measure: impl Fn(f32) -> f32,
) -> Affine<N> {
    /// Candidates that are tried side by side. A winner moves the lowest level, and with it the candidates to
    /// come: those beside it are then tried again.
    const LANES: usize = 4;

    let (mut low, mut high) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = weights[0] * x[0];
    for i in 1..N {
        if x[i] < low {
            low = x[i];
        }
        if x[i] > high {
            high = x[i];
        }
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    // The lowest level must not lie above zero: offsets have no sign.
    if low > 0.0 {
        low = 0.0;
    }
    if high <= low {
        return Affine { scale: 0.0, offset: -low, levels: [0; N] };
    }

    let inverse = MAX as f32 / (high - low);
    let mut scale = 1.0 / inverse;
    let mut best_levels: [f32; N] = std::array::from_fn(|i| unsigned_level::<MAX>(inverse * (x[i] - low)) as f32);
    let mut best_error = 0.0;
    for i in 0..N {
        best_error += weights[i] * measure(scale * best_levels[i] + low - x[i]);
    }
    let mut next = 0;
    while next <= candidates.last {
        let inverses: [f32; LANES] = std::array::from_fn(|lane| {
            (candidates.first + candidates.step * (next + lane as i32) as f32 + MAX as f32) / (high - low)
        });
        let mut levels = [[0.0; LANES]; N];
        let (mut sum_l, mut sum_ll, mut sum_xl) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for i in 0..N {
            let above = x[i] - low;
            for lane in 0..LANES {
                let l = unsigned_level::<MAX>(inverses[lane] * above) as f32;
                let weighted = weights[i] * l;
                levels[i][lane] = l;
                sum_l[lane] += weighted;
                sum_ll[lane] += weighted * l;
                sum_xl[lane] += weighted * x[i];
            }
        }
        let (mut scales, mut lows) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            let sums = Sums { w: sum_w, x: sum_x, l: sum_l[lane], ll: sum_ll[lane], xl: sum_xl[lane] };
            (scales[lane], lows[lane]) = sums.scale_and_low();
        }
        let mut errors = [0.0; LANES];
        for i in 0..N {
            for lane in 0..LANES {
                errors[lane] += weights[i] * measure(scales[lane] * levels[i][lane] + lows[lane] - x[i]);
            }
        }
        let valid = LANES.min((candidates.last - next + 1) as usize);
        match (0..valid).find(|&lane| errors[lane] < best_error) {
            Some(lane) => {
                (best_error, scale, low) = (errors[lane], scales[lane], lows[lane]);
                best_levels = levels.map(|l| l[lane]);
                next += lane as i32 + 1;
            }
            None => next += LANES as i32,
        }
    }
    Affine { scale, offset: -low, levels: best_levels.map(|l| l as u8) }
}

/// Searches an [`Unsigned`] scale: first among nine that put the largest `x` on `MAX` or beside it, then by moving
/// one level at a time. `weights` say what the error of each `x` counts (ggml's `make_qp_quants`).
pub(in crate::quant) fn unsigned<const N: usize, const MAX: i32>(x: &[f32; N], weights: &[f32; N]) -> Unsigned<N> {
    /// Candidates on either side, and how far apart they lie, in levels.
    const REACH: i32 = 4;
    const STEP: f32 = 0.1;

    let largest = x.iter().fold(0.0, |largest, &v| max(largest, v));
    if largest < VANISHING {
        return Unsigned { scale: 0.0, levels: [0; N] };
    }
    let error_of = |scale: f32, level: &dyn Fn(f32) -> i32| {
        let mut error = 0.0;
        for (&v, &w) in x.iter().zip(weights) {
            let difference = v - scale * level(v) as f32;
            error += w * difference * difference;
        }
        error
    };

    let mut inverse = MAX as f32 / largest;
    // The first candidate is judged by levels that went through a byte unclamped.
    let mut best_error = error_of(1.0 / inverse, &|v| i32::from(nearest_int(inverse * v) as u8));
    for offset in (-REACH..=REACH).filter(|&offset| offset != 0) {
        let candidate = (STEP * offset as f32 + MAX as f32) / largest;
        let error = error_of(1.0 / candidate, &|v| nearest_int(candidate * v).min(MAX));
        if error < best_error {
            best_error = error;
            inverse = candidate;
        }
    }

    let mut levels = [0u8; N];
    let (mut xl, mut ll) = (0.0, 0.0);
    for ((level, &v), &w) in levels.iter_mut().zip(x).zip(weights) {
        let nearest = nearest_int(inverse * v).min(MAX);
        *level = nearest as u8;
        let l = nearest as f32;
        xl += w * v * l;
        ll += w * l * l;
    }
    for _ in 0..ROUNDS {
        let mut changed = false;
        for ((level, &v), &w) in levels.iter_mut().zip(x).zip(weights) {
            let l = f32::from(*level);
            let (rest_xl, rest_ll) = (xl - w * v * l, ll - w * l * l);
            if rest_xl > 0.0 && rest_ll > 0.0 {
                let moved = nearest_int(v * rest_ll / rest_xl).min(MAX);
                if moved != i32::from(*level) {
                    let l = moved as f32;
                    let (new_xl, new_ll) = (rest_xl + w * v * l, rest_ll + w * l * l);
                    if new_xl * new_xl * ll > xl * xl * new_ll {
                        (*level, xl, ll) = (moved as u8, new_xl, new_ll);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    Unsigned { scale: if ll > 0.0 { xl / ll } else { 0.0 }, levels }
}
