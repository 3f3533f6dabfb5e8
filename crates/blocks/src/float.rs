//! Plain numbers as blocks of one weight.

use super::num::Half;
use super::{Block, Fault};
use crate::simd::Simd;
use crate::types::GgmlType;

/// An f32, copied bit by bit.
///
/// ```text
/// byte 0                         4
///      | sign, exponent, mantissa |   little-endian
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct BlockF32([u8; 4]);

impl Block<1> for BlockF32 {
    const TYPE: GgmlType = GgmlType::F32;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        _: S,
        weights: &[[f32; 1]],
        _importance: Option<&[[f32; 1]]>,
        row: &mut [Self],
    ) {
        for ([x], number) in weights.iter().zip(row) {
            *number = BlockF32(x.to_le_bytes());
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, [weight]: &mut [f32; 1]) {
        *weight = f32::from_le_bytes(self.0);
    }

    fn fault(&self) -> Option<Fault> {
        fault_of(f32::from_le_bytes(self.0))
    }
}

/// An IEEE half, rounded to nearest even.
///
/// ```text
/// bit 15     14        10         0
///     | sign | exponent | mantissa |   little-endian
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct BlockF16(Half);

impl Block<1> for BlockF16 {
    const TYPE: GgmlType = GgmlType::F16;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        _: S,
        weights: &[[f32; 1]],
        _importance: Option<&[[f32; 1]]>,
        row: &mut [Self],
    ) {
        for ([x], number) in weights.iter().zip(row) {
            *number = BlockF16(Half::from_f32(*x));
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, [weight]: &mut [f32; 1]) {
        *weight = self.0.to_f32();
    }

    fn fault(&self) -> Option<Fault> {
        self.0.fault()
    }
}

/// The upper half of an f32, rounded to nearest even.
///
/// ```text
/// bit 15     14        7          0
///     | sign | exponent | mantissa |   little-endian
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct BlockBf16([u8; 2]);

impl Block<1> for BlockBf16 {
    const TYPE: GgmlType = GgmlType::BF16;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        _: S,
        weights: &[[f32; 1]],
        _importance: Option<&[[f32; 1]]>,
        row: &mut [Self],
    ) {
        /// The quiet bit of a NaN.
        const QUIET: u32 = 0x40;
        for ([x], number) in weights.iter().zip(row) {
            let bits = x.to_bits();
            let upper = bits >> 16;
            let rounded = bits.wrapping_add(0x7fff + (upper & 1)) >> 16;
            *number = BlockBf16(
                ((if x.is_nan() { upper | QUIET } else { rounded }) as u16).to_le_bytes(),
            );
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, [weight]: &mut [f32; 1]) {
        *weight = f32::from_bits(u32::from(u16::from_le_bytes(self.0)) << 16);
    }

    fn fault(&self) -> Option<Fault> {
        fault_of(f32::from_bits(u32::from(u16::from_le_bytes(self.0)) << 16))
    }
}

fn fault_of(x: f32) -> Option<Fault> {
    match (x.is_nan(), x.is_infinite()) {
        (true, _) => Some(Fault::NaN),
        (_, true) => Some(Fault::Infinite),
        _ => None,
    }
}
