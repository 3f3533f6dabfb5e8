//! Levels on both sides of zero.

use super::{ROUNDS, VANISHING, extremes};
use crate::num::{MAGIC, nearest_ints};
use crate::simd::{LANES, Simd};

/// Scales with `x ~ scale * level` for eight groups in lanes, levels being `-HALF ..= HALF - 1`.
pub(crate) struct Symmetric<S: Simd> {
    pub(crate) scale: S::F32,
    /// The levels are those nearest to `inverse * x` ([`levels_of_inverse`]). Infinite for a group
    /// of zeros.
    pub(crate) inverse: S::F32,
}

/// Result of [`symmetric_by_descent`] for `G` times eight groups.
pub(crate) struct Descent<S: Simd, const N: usize, const G: usize> {
    pub(crate) scales: [S::F32; G],
    /// The levels with `HALF` added, 0 for a group of zeros; those of eight groups side by side.
    pub(crate) levels: [[[u8; LANES]; N]; G],
}

/// The best scale so far in each lane, and its reduction of the error.
///
/// With levels `l` and weights `w`, the best scale for these levels is `wxl / wll`, the sums of `w
/// * x * l` over that of `w * l * l`, and it reduces the error by `wxl * wxl / wll`.
pub(crate) struct Best<S: Simd> {
    pub(crate) scale: S::F32,
    gain: S::F32,
}

impl<S: Simd> Best<S> {
    /// Starts from the first candidate, whose sums gave `scale` and `wxl`.
    #[inline(always)]
    pub(crate) fn new(scale: S::F32, wxl: S::F32) -> Self {
        Best {
            scale,
            gain: scale * wxl,
        }
    }

    /// Accepts the candidate in the lanes with a larger reduction; returns these lanes.
    #[inline(always)]
    pub(crate) fn offer(&mut self, simd: S, wxl: S::F32, wll: S::F32) -> S::Mask {
        let better = simd.both(
            simd.gt(wll, simd.splat(0.0)),
            simd.gt(wxl * wxl, self.gain * wll),
        );
        let scale = wxl / wll;
        self.scale = simd.select(better, scale, self.scale);
        self.gain = simd.select(better, scale * wxl, self.gain);
        better
    }
}

/// The signed levels `-HALF ..= HALF - 1` nearest to `v`, as in `nearest_int`.
#[inline(always)]
fn signed_levels<S: Simd, const HALF: i32>(simd: S, v: S::F32) -> S::I32 {
    simd.max_i32(
        simd.min_i32(nearest_ints(simd, v), simd.splat_i32(HALF - 1)),
        simd.splat_i32(-HALF),
    )
}

/// The same levels offset to start at 0.
#[inline(always)]
fn level_bytes<S: Simd, const HALF: i32>(simd: S, v: S::F32) -> [u8; LANES] {
    simd.store_u8(signed_levels::<S, HALF>(simd, v) + simd.splat_i32(HALF))
}

/// Levels `0 ..= 2 * HALF - 1` for `x ~ d * (level - HALF)`.
#[inline(always)]
pub(crate) fn levels_of_scale<S: Simd, const N: usize, const HALF: i32>(
    simd: S,
    x: &[f32; N],
    d: f32,
) -> [u8; N] {
    let d = simd.splat(d);
    let mut levels = [0; N];
    for (levels, x) in levels.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
        *levels = level_bytes::<S, HALF>(simd, simd.load(x) / d);
    }
    levels
}

/// Levels `0 ..= 2 * HALF - 1` for one lane of a search ([`Symmetric::inverse`]).
#[inline(always)]
pub(crate) fn levels_of_inverse<S: Simd, const N: usize, const HALF: i32>(
    simd: S,
    x: &[f32; N],
    inverse: f32,
) -> [u8; N] {
    let mut levels = [0; N];
    if inverse.is_finite() {
        let inverse = simd.splat(inverse);
        for (levels, x) in levels.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
            *levels = level_bytes::<S, HALF>(simd, inverse * simd.load(x));
        }
    }
    levels
}

/// ggml's candidates: offsets from `-HALF`, in levels.
const OFFSETS: [f32; 18] = [
    -9., -8., -7., -6., -5., -4., -3., -2., -1., 1., 2., 3., 4., 5., 6., 7., 8., 9.,
];
const STEP: f32 = 0.1;
/// Candidates scored in parallel.
const SIDE_BY_SIDE: usize = 3;

/// Searches [`Symmetric`] scales: the extreme weight lands on `-HALF`, or up to 0.9 levels beside
/// it. `w` are the error weights (ggml's `make_qx_quants`).
///
/// Each candidate costs ten operations per weight. They saturate the floating-point units: more
/// candidates in parallel are not faster.
#[inline(always)]
pub(crate) fn symmetric<S: Simd, const N: usize, const HALF: i32>(
    simd: S,
    x: &[S::F32; N],
    w: &[S::F32; N],
) -> Symmetric<S> {
    let extreme = extremes(simd, x);
    let zero = simd.splat(0.0);
    let mut rests = zero;
    for &v in x {
        rests = rests + v * zero;
    }
    if simd.all(simd.eq(rests, zero)) {
        search::<S, N, HALF, true>(simd, x, w, extreme)
    } else {
        search::<S, N, HALF, false>(simd, x, w, extreme)
    }
}

/// [`symmetric`]; `FINITE` weights allow faster rounding.
#[inline(always)]
fn search<S: Simd, const N: usize, const HALF: i32, const FINITE: bool>(
    simd: S,
    x: &[S::F32; N],
    w: &[S::F32; N],
    extreme: S::F32,
) -> Symmetric<S> {
    let zero = simd.splat(0.0);
    let mut wx = *w;
    for i in 0..N {
        wx[i] = w[i] * x[i];
    }
    let mut inverse = simd.splat(-HALF as f32) / extreme;
    let ([wxl], [wll]) = score::<S, N, 1, HALF, FINITE>(simd, x, w, &wx, &[inverse]);
    let mut best = Best::<S>::new(simd.select(simd.eq(wll, zero), zero, wxl / wll), wxl);
    for offsets in OFFSETS.as_chunks::<SIDE_BY_SIDE>().0 {
        let mut candidates = [zero; SIDE_BY_SIDE];
        for (candidate, offset) in candidates.iter_mut().zip(offsets) {
            *candidate = simd.splat(-(HALF as f32 + STEP * offset)) / extreme;
        }
        let (wxl, wll) = score::<S, N, SIDE_BY_SIDE, HALF, FINITE>(simd, x, w, &wx, &candidates);
        for c in 0..SIDE_BY_SIDE {
            let better = best.offer(simd, wxl[c], wll[c]);
            inverse = simd.select(better, candidates[c], inverse);
        }
    }
    let vanishing = simd.lt(simd.abs(extreme), simd.splat(VANISHING));
    Symmetric {
        scale: simd.select(vanishing, zero, best.scale),
        inverse: simd.select(vanishing, simd.splat(f32::INFINITY), inverse),
    }
}

/// Scores `C` candidates: the sums of `w * x * l` and of `w * l * l`.
#[inline(always)]
fn score<S: Simd, const N: usize, const C: usize, const HALF: i32, const FINITE: bool>(
    simd: S,
    x: &[S::F32; N],
    w: &[S::F32; N],
    wx: &[S::F32; N],
    inverses: &[S::F32; C],
) -> ([S::F32; C], [S::F32; C]) {
    let (mut wxl, mut wll) = ([simd.splat(0.0); C], [simd.splat(0.0); C]);
    for i in 0..N {
        for c in 0..C {
            let v = inverses[c] * x[i];
            let l = if FINITE {
                // No weight exceeds the extreme one, so `v` is hardly larger than HALF + 0.9: the
                // sum's bits count integers, and are clamped as such.
                let magic = simd.splat(MAGIC);
                let bits = simd.bits(v + magic);
                let bits = simd.min_i32(
                    bits,
                    simd.splat_i32((MAGIC + (HALF - 1) as f32).to_bits() as i32),
                );
                let bits =
                    simd.max_i32(bits, simd.splat_i32((MAGIC - HALF as f32).to_bits() as i32));
                simd.of_bits(bits) - magic
            } else {
                simd.to_f32(signed_levels::<S, HALF>(simd, v))
            };
            wxl[c] = wxl[c] + wx[i] * l;
            wll[c] = wll[c] + w[i] * l * l;
        }
    }
    (wxl, wll)
}

/// Searches scales for `x ~ scale * level`, levels being `-HALF ..= HALF - 1`, by changing one
/// level at a time, starting with the extreme weight on `-HALF`; the error weights are `x^2`
/// (ggml's `make_q3_quants`).
///
/// Moves are sequential; `G` times eight groups hide their latency.
#[inline(always)]
pub(crate) fn symmetric_by_descent<S: Simd, const N: usize, const G: usize, const HALF: i32>(
    simd: S,
    x: &[[S::F32; N]; G],
) -> Descent<S, N, G> {
    let zero = simd.splat(0.0);
    let mut vanishing = [simd.lt(zero, zero); G];
    let mut levels = [[simd.splat_i32(0); N]; G];
    let (mut xl, mut ll) = ([zero; G], [zero; G]);
    for g in 0..G {
        let extreme = extremes(simd, &x[g]);
        vanishing[g] = simd.lt(simd.abs(extreme), simd.splat(VANISHING));
        let inverse = simd.splat(-HALF as f32) / extreme;
        for i in 0..N {
            let v = x[g][i];
            levels[g][i] = signed_levels::<S, HALF>(simd, inverse * v);
            let (w, l) = (v * v, simd.to_f32(levels[g][i]));
            xl[g] = xl[g] + w * v * l;
            ll[g] = ll[g] + w * l * l;
        }
    }
    for _ in 0..ROUNDS {
        let mut changed = simd.lt(zero, zero);
        for i in 0..N {
            for g in 0..G {
                let v = x[g][i];
                let (w, l) = (v * v, simd.to_f32(levels[g][i]));
                let rest_xl = xl[g] - w * v * l;
                let rest_ll = ll[g] - w * l * l;
                let moved = signed_levels::<S, HALF>(simd, v * rest_ll / rest_xl);
                let l = simd.to_f32(moved);
                let (new_xl, new_ll) = (rest_xl + w * v * l, rest_ll + w * l * l);
                let possible = simd.both(simd.gt(rest_xl, zero), simd.gt(new_ll, zero));
                let better = simd.gt(new_xl * new_xl * ll[g], xl[g] * xl[g] * new_ll);
                let stays = simd.either(vanishing[g], simd.eq_i32(moved, levels[g][i]));
                let takes = simd.both(simd.both(possible, better), simd.not(stays));
                levels[g][i] = simd.select_i32(takes, moved, levels[g][i]);
                xl[g] = simd.select(takes, new_xl, xl[g]);
                ll[g] = simd.select(takes, new_ll, ll[g]);
                changed = simd.either(changed, takes);
            }
        }
        if !simd.any(changed) {
            break;
        }
    }
    let mut found = Descent {
        scales: [zero; G],
        levels: [[[0; LANES]; N]; G],
    };
    for g in 0..G {
        let scale = simd.select(simd.gt(ll[g], zero), xl[g] / ll[g], zero);
        found.scales[g] = simd.select(vanishing[g], zero, scale);
        for (bytes, &levels) in found.levels[g].iter_mut().zip(&levels[g]) {
            let levels = levels + simd.splat_i32(HALF);
            *bytes = simd.store_u8(simd.select_i32(vanishing[g], simd.splat_i32(0), levels));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel};

    /// Scales and inverses of eight groups, by fast and by general rounding.
    struct BothWays<'a, const N: usize, const HALF: i32>(
        &'a [[f32; N]; LANES],
        &'a [[f32; N]; LANES],
    );

    impl<const N: usize, const HALF: i32> Kernel for BothWays<'_, N, HALF> {
        type Output = [[[u32; LANES]; 2]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let (x, w) = (
                simd.gather(self.0.each_ref()),
                simd.gather(self.1.each_ref()),
            );
            let extreme = extremes(simd, &x);
            let short = search::<S, N, HALF, true>(simd, &x, &w, extreme);
            let long = search::<S, N, HALF, false>(simd, &x, &w, extreme);
            [short, long]
                .map(|fit| [fit.scale, fit.inverse].map(|v| simd.store(v).map(f32::to_bits)))
        }
    }

    fn both_ways_agree<const N: usize, const HALF: i32>() {
        let mut state = 1u32;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 24) as f32
        };
        // The ends of the range, where an inverse scale is nearly infinite or subnormal, and points
        // between.
        for magnitude in [3.4e38, 1e30, 1.0, 0.03, 1e-14, 1.1e-15, 1e-15, 1e-40] {
            for _ in 0..200 {
                let x = std::array::from_fn(|lane| {
                    std::array::from_fn(|_| match lane {
                        0 => magnitude,
                        1 => [magnitude, -magnitude][usize::from(next() < 0.5)],
                        2 if next() < 0.8 => 0.0,
                        3 => {
                            magnitude * (((next() - 0.5) * HALF as f32 * 2.0).round() / HALF as f32)
                        }
                        _ => magnitude * (2.0 * next() - 1.0),
                    })
                });
                let w = std::array::from_fn(|_| std::array::from_fn(|_| next()));
                for isa in Isa::available() {
                    let [short, long] = isa.run(BothWays::<N, HALF>(&x, &w));
                    assert_eq!(short, long, "{}: {x:?} {w:?}", isa.name());
                }
            }
        }
    }

    #[test]
    fn fast_and_general_rounding_agree_for_finite_weights() {
        both_ways_agree::<16, 4>();
        both_ways_agree::<32, 8>();
        both_ways_agree::<32, 16>();
        both_ways_agree::<16, 32>();
    }
}
