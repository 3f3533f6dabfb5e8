//! The few number conversions that all block formats share, exact to the bit.

use super::Fault;
use half::f16;

/// An IEEE half in a block, as two little-endian bytes, so that blocks have alignment 1.
#[derive(Clone, Copy, PartialEq, Eq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct Half([u8; 2]);

impl Half {
    /// Rounds to nearest, ties to even. Every NaN becomes the quiet NaN 0x7e00 with its sign, as in ggml.
    #[inline]
    pub(crate) fn from_f32(x: f32) -> Half {
        if x.is_nan() {
            return Half::from_bits(0x7e00 | ((x.to_bits() >> 16) as u16 & 0x8000));
        }
        Half::from_bits(f16::from_f32(x).to_bits())
    }

    #[inline]
    pub(crate) fn from_bits(bits: u16) -> Half {
        Half(bits.to_le_bytes())
    }

    #[inline]
    pub(crate) fn to_bits(self) -> u16 {
        u16::from_le_bytes(self.0)
    }

    #[inline]
    pub(crate) fn to_f32(self) -> f32 {
        f16::from_le_bytes(self.0).to_f32()
    }

    /// What makes this number useless as a scale.
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

/// Rounds to the nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the
/// mantissa. Outside that range the result is what the same bits give in ggml's `nearest_int`.
#[inline]
pub(crate) fn nearest_int(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    ((x + MAGIC).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// C's `(int) x` as x86-64 does it: towards zero, and `i32::MIN` for NaN and everything that does not fit.
#[inline]
pub(crate) fn trunc_i32(x: f32) -> i32 {
    const LIMIT: f32 = 2_147_483_648.0;
    if x >= -LIMIT && x < LIMIT { x as i32 } else { i32::MIN }
}

/// The larger of two numbers as ggml's `MAX` macro picks it: `b` unless `a > b`, so a NaN in `b` is taken up.
#[inline]
pub(crate) fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}
