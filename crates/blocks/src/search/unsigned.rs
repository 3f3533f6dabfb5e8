//! Levels above zero.

use super::{ROUNDS, VANISHING};
use crate::num::nearest_ints;
use crate::simd::Simd;

/// Result of [`unsigned`] for `G` times eight groups.
pub(crate) struct Unsigned<S: Simd, const N: usize, const G: usize> {
    pub(crate) scales: [S::F32; G],
    /// As bytes, `0 ..= 255`.
    pub(crate) levels: [[S::I32; N]; G],
}

/// Offsets of the candidates of [`unsigned`] from the largest `x` on `MAX`, in levels.
const OFFSETS: [f32; 8] = [-4., -3., -2., -1., 1., 2., 3., 4.];
const STEP: f32 = 0.1;

/// Searches scales for `x ~ scale * level`, levels being `0 ..= MAX`, for `G` times eight groups in
/// parallel: first among nine that put the largest `x` on `MAX` or beside it, then by changing one
/// level at a time. `w` are the error weights (ggml's `make_qp_quants`).
///
/// A negative `x`, possible only by rounding errors, gives a negative level, wrapped into a byte.
///
/// Moves are sequential; `G` hides their latency, with the scales and offsets of a super-block.
#[inline(always)]
pub(crate) fn unsigned<S: Simd, const N: usize, const G: usize, const MAX: i32>(
    simd: S,
    x: &[[S::F32; N]; G],
    w: &[[S::F32; N]; G],
) -> Unsigned<S, N, G> {
    let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
    let (highest, byte) = (simd.splat_i32(MAX), simd.splat_i32(0xff));
    let mut vanishing = [simd.lt(zero, zero); G];
    let mut levels = [[simd.splat_i32(0); N]; G];
    let (mut xl, mut ll) = ([zero; G], [zero; G]);
    for g in 0..G {
        let mut largest = zero;
        for &v in &x[g] {
            largest = simd.max(largest, v);
        }
        vanishing[g] = simd.lt(largest, simd.splat(VANISHING));

        let mut inverse = simd.splat(MAX as f32) / largest;
        let mut candidates = [inverse; OFFSETS.len()];
        let mut scales = [one; OFFSETS.len()];
        for (c, offset) in OFFSETS.into_iter().enumerate() {
            candidates[c] = simd.splat(STEP * offset + MAX as f32) / largest;
            scales[c] = one / candidates[c];
        }
        let scale = one / inverse;
        let mut least = zero;
        let mut errors = [zero; OFFSETS.len()];
        for (&v, &w) in x[g].iter().zip(&w[g]) {
            // The first candidate is scored with levels that were converted to a byte without
            // clamping.
            let level = simd.and(nearest_ints(simd, inverse * v), byte);
            let difference = v - scale * simd.to_f32(level);
            least = least + w * difference * difference;
            for c in 0..OFFSETS.len() {
                let level = simd.min_i32(nearest_ints(simd, candidates[c] * v), highest);
                let difference = v - scales[c] * simd.to_f32(level);
                errors[c] = errors[c] + w * difference * difference;
            }
        }
        for c in 0..OFFSETS.len() {
            let better = simd.lt(errors[c], least);
            least = simd.select(better, errors[c], least);
            inverse = simd.select(better, candidates[c], inverse);
        }

        for i in 0..N {
            let nearest = simd.min_i32(nearest_ints(simd, inverse * x[g][i]), highest);
            levels[g][i] = simd.and(nearest, byte);
            let l = simd.to_f32(nearest);
            xl[g] = xl[g] + w[g][i] * x[g][i] * l;
            ll[g] = ll[g] + w[g][i] * l * l;
        }
    }
    for _ in 0..ROUNDS {
        let mut changed = simd.lt(zero, zero);
        for i in 0..N {
            for g in 0..G {
                let (v, w) = (x[g][i], w[g][i]);
                let l = simd.to_f32(levels[g][i]);
                let (rest_xl, rest_ll) = (xl[g] - w * v * l, ll[g] - w * l * l);
                let moved = simd.min_i32(nearest_ints(simd, v * rest_ll / rest_xl), highest);
                let l = simd.to_f32(moved);
                let (new_xl, new_ll) = (rest_xl + w * v * l, rest_ll + w * l * l);
                let possible = simd.both(simd.gt(rest_xl, zero), simd.gt(rest_ll, zero));
                let better = simd.gt(new_xl * new_xl * ll[g], xl[g] * xl[g] * new_ll);
                let stays = simd.either(vanishing[g], simd.eq_i32(moved, levels[g][i]));
                let takes = simd.both(simd.both(possible, better), simd.not(stays));
                levels[g][i] = simd.select_i32(takes, simd.and(moved, byte), levels[g][i]);
                xl[g] = simd.select(takes, new_xl, xl[g]);
                ll[g] = simd.select(takes, new_ll, ll[g]);
                changed = simd.either(changed, takes);
            }
        }
        if !simd.any(changed) {
            break;
        }
    }
    let mut scales = [zero; G];
    for g in 0..G {
        let scale = simd.select(simd.gt(ll[g], zero), xl[g] / ll[g], zero);
        scales[g] = simd.select(vanishing[g], zero, scale);
        for level in &mut levels[g] {
            *level = simd.select_i32(vanishing[g], simd.splat_i32(0), *level);
        }
    }
    Unsigned { scales, levels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::num::{max, nearest_int};
    use crate::simd::{Isa, Kernel, LANES};

    /// The same for one group, without lanes: scale and levels.
    fn plain<const N: usize, const MAX: i32>(x: &[f32; N], w: &[f32; N]) -> (f32, [u8; N]) {
        const REACH: i32 = 4;

        let largest = x.iter().fold(0.0, |largest, &v| max(largest, v));
        if largest < VANISHING {
            return (0.0, [0; N]);
        }
        let error_of = |scale: f32, level: &dyn Fn(f32) -> i32| {
            let mut error = 0.0;
            for (&v, &w) in x.iter().zip(w) {
                let difference = v - scale * level(v) as f32;
                error += w * difference * difference;
            }
            error
        };

        let mut inverse = MAX as f32 / largest;
        // The first candidate is scored with levels that were converted to a byte without clamping.
        let mut best_error = error_of(
            1.0 / inverse,
            &|v| i32::from(nearest_int(inverse * v) as u8),
        );
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
        for ((level, &v), &w) in levels.iter_mut().zip(x).zip(w) {
            let nearest = nearest_int(inverse * v).min(MAX);
            *level = nearest as u8;
            let l = nearest as f32;
            xl += w * v * l;
            ll += w * l * l;
        }
        for _ in 0..ROUNDS {
            let mut changed = false;
            for ((level, &v), &w) in levels.iter_mut().zip(x).zip(w) {
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
        (if ll > 0.0 { xl / ll } else { 0.0 }, levels)
    }

    /// Eight groups of weights, or of error weights.
    type Groups<const N: usize> = [[f32; N]; LANES];

    struct Search<'a, const N: usize, const MAX: i32>([&'a Groups<N>; 2], [&'a Groups<N>; 2]);

    impl<const N: usize, const MAX: i32> Kernel for Search<'_, N, MAX> {
        type Output = [[(f32, [u8; N]); LANES]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let gather =
                |groups: [&Groups<N>; 2]| groups.map(|groups| simd.gather(groups.each_ref()));
            let found = unsigned::<S, N, 2, MAX>(simd, &gather(self.0), &gather(self.1));
            std::array::from_fn(|g| {
                let (scales, levels) = (
                    simd.store(found.scales[g]),
                    found.levels[g].map(|l| simd.store_i32(l)),
                );
                std::array::from_fn(|lane| {
                    (scales[lane], levels.map(|l| u8::try_from(l[lane]).unwrap()))
                })
            })
        }
    }

    /// Pseudo-random groups, a different kind in each lane: plain scales, many zeros, negative and
    /// vanishing ones, infinities and NaN.
    fn groups<const N: usize>(seed: u32) -> Groups<N> {
        let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 24) as f32
        };
        std::array::from_fn(|lane| {
            std::array::from_fn(|_| {
                let u = next();
                match lane {
                    0 | 1 => u * 0.01,
                    2 => u * u * u * 40.0,
                    3 if u < 0.7 => 0.0,
                    4 => u - 0.1,
                    5 => u * 3e-15,
                    6 if u < 0.1 => {
                        [f32::NAN, f32::INFINITY, -3e38, 3e38, 1e-40][(u * 50.0) as usize]
                    }
                    7 if seed.is_multiple_of(3) => 0.0,
                    _ => u,
                }
            })
        })
    }

    fn compare<const N: usize, const MAX: i32>() {
        for seed in 0..3000 {
            let (x, w) = (
                [groups(2 * seed), groups(2 * seed + 1)],
                [groups(seed + 7), groups(seed + 8)],
            );
            for isa in Isa::available() {
                let found = isa.run(Search::<N, MAX>(x.each_ref(), w.each_ref()));
                for g in 0..2 {
                    for lane in 0..LANES {
                        let (expected, expected_levels) = plain::<N, MAX>(&x[g][lane], &w[g][lane]);
                        let (scale, levels) = found[g][lane];
                        let same = scale.to_bits() == expected.to_bits()
                            || scale.is_nan() && expected.is_nan();
                        assert!(
                            same && levels == expected_levels,
                            "{}: {:?} {:?}: {scale} {levels:?}, not {} {:?}",
                            isa.name(),
                            x[g][lane],
                            w[g][lane],
                            expected,
                            expected_levels
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn lanes_match_single_groups() {
        compare::<8, 63>();
        compare::<16, 15>();
    }
}
