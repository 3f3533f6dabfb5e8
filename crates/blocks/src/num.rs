//! Number conversions of the block formats, bit-exact.

use super::Fault;
use crate::simd::Simd;

/// Offset from the exponent of a half (bias 15) to that of an f32 (bias 127), at the position of an
/// f32's exponent.
const EXPONENT_SHIFT: u32 = 112 << 23;
/// 2^-14: smaller halves are subnormal.
const SMALLEST_NORMAL: f32 = f32::from_bits(SMALLEST_NORMAL_HALF);
const SMALLEST_NORMAL_HALF: u32 = 113 << 23;
/// The bits of 2^16: larger numbers do not round to a finite half.
const BEYOND_HALF: u32 = (127 + 16) << 23;

/// An IEEE half in a block, as two little-endian bytes, so that blocks have alignment 1.
#[derive(Clone, Copy, PartialEq, Eq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct Half([u8; 2]);

/// Significant bits of a half.
pub(crate) const HALF_BITS: i32 = 11;

impl Half {
    /// Rounds to nearest, ties to even. Every NaN becomes the quiet NaN 0x7e00 with its sign, as in
    /// ggml.
    ///
    /// Branch-free, so that rows of halves are vectorized.
    #[inline]
    pub(crate) fn from_f32(x: f32) -> Half {
        let sign = (x.to_bits() >> 16) & 0x8000;
        let magnitude = x.to_bits() & 0x7fff_ffff;
        // The last bit of the sum is 2^-24, like that of a subnormal half: the addition rounds.
        let subnormal = (f32::from_bits(magnitude) + 0.5)
            .to_bits()
            .wrapping_sub(0.5f32.to_bits());
        let odd = (magnitude >> 13) & 1;
        let normal = magnitude
            .wrapping_sub(EXPONENT_SHIFT)
            .wrapping_add(0x0fff + odd)
            >> 13;
        let beyond = if magnitude > f32::INFINITY.to_bits() {
            0x7e00
        } else {
            0x7c00
        };
        let finite = if magnitude < SMALLEST_NORMAL_HALF {
            subnormal
        } else {
            normal
        };
        Half::from_bits(
            (sign
                | if magnitude < BEYOND_HALF {
                    finite
                } else {
                    beyond
                }) as u16,
        )
    }

    #[inline]
    pub(crate) fn from_bits(bits: u16) -> Half {
        Half(bits.to_le_bytes())
    }

    /// Exact; a signalling NaN becomes quiet.
    #[inline]
    pub(crate) fn to_bits(self) -> u16 {
        u16::from_le_bytes(self.0)
    }

    #[inline]
    pub(crate) fn to_f32(self) -> f32 {
        let bits = u32::from(u16::from_le_bytes(self.0));
        let magnitude = (bits & 0x7fff) << 13;
        let subnormal =
            (f32::from_bits(magnitude + SMALLEST_NORMAL_HALF) - SMALLEST_NORMAL).to_bits();
        let normal = magnitude + EXPONENT_SHIFT;
        let quiet = if bits & 0x03ff != 0 { 0x0040_0000 } else { 0 };
        let special = f32::INFINITY.to_bits() | magnitude | quiet;
        let finite = if bits & 0x7c00 == 0 {
            subnormal
        } else {
            normal
        };
        f32::from_bits(
            (bits & 0x8000) << 16
                | if bits & 0x7c00 == 0x7c00 {
                    special
                } else {
                    finite
                },
        )
    }

    /// The number changed by some 32nds of itself.
    #[inline]
    pub(crate) fn nudged(self, thirty_seconds: i8) -> Half {
        match thirty_seconds {
            0 => self,
            n => Half::from_f32(self.to_f32() * (1.0 + f32::from(n) / 32.0)),
        }
    }

    /// Fault of this number as a scale.
    #[inline]
    pub(crate) fn fault(self) -> Option<Fault> {
        let bits = u16::from_le_bytes(self.0);
        match (bits & 0x7c00 == 0x7c00, bits & 0x03ff) {
            (false, _) => None,
            (true, 0) => Some(Fault::Infinite),
            (true, _) => Some(Fault::NaN),
        }
    }
}

/// A code changed by a little, within `0 ..= top`.
#[inline]
pub(super) fn nudged(code: u8, change: i8, top: u8) -> u8 {
    code.saturating_add_signed(change).min(top.max(code))
}

/// 1.5 * 2^23. Added to a number between -2^22 and 2^22, it leaves the nearest integer in the
/// mantissa, ties to even.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// Rounds to the nearest integer, ties to even, for |x| < 2^22. Outside that range, the result is
/// that of ggml's `nearest_int`.
#[inline]
pub(crate) fn nearest_int(x: f32) -> i32 {
    ((x + MAGIC).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// [`nearest_int`] in every lane.
#[inline(always)]
pub(super) fn nearest_ints<S: Simd>(simd: S, x: S::F32) -> S::I32 {
    simd.and(
        simd.bits(x + simd.splat(MAGIC)),
        simd.splat_i32(0x007f_ffff),
    ) - simd.splat_i32(0x0040_0000)
}

/// C's `(int) x` on x86-64: towards zero; `i32::MIN` for NaN and out-of-range numbers.
#[inline]
pub(crate) fn trunc_i32(x: f32) -> i32 {
    const LIMIT: f32 = 2_147_483_648.0;
    if (-LIMIT..LIMIT).contains(&x) {
        x as i32
    } else {
        i32::MIN
    }
}

/// ggml's `MAX` macro: `b` unless `a > b`, so NaN in `b` is kept.
#[inline]
pub(crate) fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The largest magnitude, at least 0; NaN is ignored.
#[inline]
pub(crate) fn largest_magnitude<const N: usize>(x: &[f32; N]) -> f32 {
    x.iter()
        .fold(0.0, |amax, v| if amax < v.abs() { v.abs() } else { amax })
}

/// `1 / d`, or 0 for d = 0.
#[inline]
pub(crate) fn inverse_or_zero(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

/// C's `(int) roundf(x)` (and the low bytes of `lroundf(x)`) on x86-64: ties away from zero;
/// `i32::MIN` for NaN and out-of-range numbers. Needs no call into the math library.
#[inline]
pub(crate) fn round_i32(x: f32) -> i32 {
    let whole = trunc_i32(x);
    // Exact: a float with a fraction has few integer bits. Far outside of (-1, 1) if x is out of
    // range.
    let rest = x - whole as f32;
    whole + i32::from((0.5..1.0).contains(&rest)) - i32::from((0.5..1.0).contains(&-rest))
}

/// [`round_i32`] in every lane.
#[inline(always)]
pub(super) fn round_ints<S: Simd>(simd: S, x: S::F32) -> S::I32 {
    /// The bits of the largest number below a half. Adding it lifts halves to the next integer, as
    /// the sum is rounded, but nothing below a half.
    const HALF: i32 = 0x3eff_ffff;
    let sign = simd.and(simd.bits(x), simd.splat_i32(i32::MIN));
    simd.trunc(x + simd.of_bits(simd.or(sign, simd.splat_i32(HALF))))
}

/// C's `floorf(log2f(x))` for positive finite `x`, with a correctly rounded `log2f`.
///
/// That is the exponent of x, except for a few numbers just below a power of two, whose logarithm
/// rounds up to the integer n. With x = 2^n (1 - m / 2^24), log2(x) is close to n - m / (2^24 ln
/// 2). The floats next to n on that side are 2^(b - 23) apart, b being the binary exponent of n - 1
/// if n is positive and of |n| if it is negative, so that the logarithm rounds up where m < 2^b ln
/// 2.
#[inline]
pub(crate) fn floor_log2(x: f32) -> i32 {
    /// ln 2 in units of 2^-7. No b is larger than 7, and shifts for smaller b are exact enough,
    /// too.
    const LN_2: u32 = 88;
    debug_assert!(x > 0.0 && x.is_finite());
    let bits = x.to_bits();
    let (exponent, significand) = if bits < 1 << 23 {
        let shift = bits.leading_zeros() - 8;
        (-126 - shift as i32, bits << shift)
    } else {
        ((bits >> 23) as i32 - 127, bits & 0x007f_ffff | 0x0080_0000)
    };
    let below = (1 << 24) - significand;
    // n - 1 is the exponent; |n| of a negative n is its complement.
    let magnitude = exponent ^ (exponent >> 31);
    let rounds_up = magnitude > 0 && below <= LN_2 >> (7 - magnitude.ilog2());
    exponent + i32::from(rounds_up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Scalar;
    use half::f16;

    #[test]
    fn halves_widen_as_in_the_half_crate_and_round_trip() {
        for bits in 0..=u16::MAX {
            let wide = Half::from_bits(bits).to_f32();
            assert_eq!(
                wide.to_bits(),
                f16::from_bits(bits).to_f32_const().to_bits(),
                "{bits:#06x}"
            );
            let back = if wide.is_nan() {
                bits & 0x8000 | 0x7e00
            } else {
                bits
            };
            assert!(Half::from_f32(wide) == Half::from_bits(back), "{bits:#06x}");
        }
    }

    #[test]
    fn narrowing_rounds_as_in_the_half_crate() {
        // Around every half and every midpoint: the tie and its neighbours.
        for bits in (0..=u16::MAX).filter(|b| b & 0x7c00 != 0x7c00) {
            let low = f16::from_bits(bits).to_f32_const().to_bits();
            for half_step in [0x1000, 0x0800, 0x0400, 0x0200] {
                for x in [
                    low,
                    low + half_step - 1,
                    low + half_step,
                    low + half_step + 1,
                ]
                .map(f32::from_bits)
                {
                    let expected = f16::from_f32_const(x).to_bits();
                    assert!(
                        Half::from_f32(x) == Half::from_bits(expected),
                        "{x:e} ({:#010x})",
                        x.to_bits()
                    );
                }
            }
        }
        for bits in (0..f32::INFINITY.to_bits()).step_by(9973) {
            let x = f32::from_bits(bits);
            assert!(
                Half::from_f32(-x) == Half::from_bits(f16::from_f32_const(-x).to_bits()),
                "{x:e}"
            );
        }
    }

    #[test]
    fn rounding_matches_the_math_library() {
        for bits in (0..=u32::MAX).step_by(4099) {
            let x = f32::from_bits(bits);
            assert_eq!(round_i32(x), trunc_i32(x.round()), "{x:e}");
        }
        for n in -70_000..70_000 {
            for x in [
                n as f32 * 0.5,
                (n as f32 * 0.5).next_up(),
                (n as f32 * 0.5).next_down(),
            ] {
                assert_eq!(round_i32(x), trunc_i32(x.round()), "{x:e}");
            }
        }
        for x in [
            8_388_607.5,
            8_388_608.0,
            2_147_483_520.0,
            2_147_483_648.0,
            -2_147_483_648.0,
            -2_147_483_904.0,
        ] {
            assert_eq!(round_i32(x), trunc_i32(x.round()), "{x:e}");
        }
    }

    #[test]
    fn lanes_round_like_single_numbers() {
        let mut bits: Vec<u32> = (0..=u32::MAX).step_by(4099).collect();
        for n in -20_000..20_000 {
            let half = n as f32 * 0.5;
            bits.extend([half, half.next_up(), half.next_down()].map(f32::to_bits));
        }
        for eight in bits.as_chunks::<8>().0 {
            let x = eight.map(f32::from_bits);
            assert_eq!(
                Scalar.store_i32(nearest_ints(Scalar, Scalar.load(&x))),
                x.map(nearest_int),
                "{x:?}"
            );
            assert_eq!(
                Scalar.store_i32(round_ints(Scalar, Scalar.load(&x))),
                x.map(round_i32),
                "{x:?}"
            );
        }
    }

    /// A logarithm in f64, rounded once, is far more precise than the closest case needs.
    #[test]
    fn floor_log2_matches_correct_rounding() {
        let check = |bits: u32| {
            let x = f32::from_bits(bits);
            assert_eq!(
                floor_log2(x),
                (f64::from(x).log2() as f32).floor() as i32,
                "{x:e} ({bits:#010x})"
            );
        };
        for exponent in 0..255 {
            let next = (exponent + 1) << 23;
            (next - 300..next).for_each(check);
            (exponent << 23..(exponent << 23) + 300)
                .filter(|b| *b > 0)
                .for_each(check);
        }
        for power in 1..23 {
            ((1u32 << power).saturating_sub(300).max(1)..(1 << power) + 300).for_each(check);
        }
    }

    #[test]
    #[ignore = "every positive float: half a minute"]
    fn floor_log2_matches_the_math_library() {
        for bits in 1..f32::INFINITY.to_bits() {
            let x = f32::from_bits(bits);
            assert_eq!(floor_log2(x), x.log2().floor() as i32, "{bits:#010x}");
        }
    }
}
