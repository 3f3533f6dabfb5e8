//! Ternary weights (BitNet b1.58, TriLM): -1, 0 or 1 times the largest magnitude of 256.

use super::feedback::{Grid, Stepped};
use super::lossless::Solvable;
use super::low::SMALLER_TRIES;
use super::num::{HALF_BITS, Half, inverse_or_zero, max, round_i32};
use super::planes;
use super::{Block, Fault};
use crate::simd::{LANES, Simd};
use crate::types::GgmlType;

const LEN: usize = 256;
/// Bytes per run of digits of TQ2_0.
const RUN: usize = 32;
/// 3^5, the number of values of five ternary digits.
const FIVE_DIGITS: u16 = 243;

/// Five ternary digits in a byte: `w = d * (t - 1)`.
///
/// A byte holds its digits as a fraction of 1, rounded up: multiplied by three, the carry out of
/// the byte is the next digit. Digit `n` of byte `m` of a group belongs to weight `n * (bytes of
/// the group) + m`.
///
/// ```text
/// byte 0              32           48         52  54
///      | 5 x 32 t0..  | 5 x 16 ..  | 4 x 4 .. | d |
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockTq1_0 {
    wide: [u8; 32],
    middle: [u8; 16],
    narrow: [u8; 4],
    d: Half,
}

impl Block<LEN> for BlockTq1_0 {
    const TYPE: GgmlType = GgmlType::TQ1_0;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        _: S,
        weights: &[[f32; LEN]],
        _importance: Option<&[[f32; LEN]]>,
        row: &mut [Self],
    ) {
        for (x, block) in weights.iter().zip(row) {
            let (d, digits) = digits(x);
            block.d = Half::from_f32(d);
            block.set_levels(&digits);
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, weights: &mut [f32; LEN]) {
        let d = self.d.to_f32();
        let (wide, rest) = weights.as_mut_slice().split_at_mut(5 * 32);
        let (middle, narrow) = rest.split_at_mut(5 * 16);
        unpack_digits(&self.wide, d, wide);
        unpack_digits(&self.middle, d, middle);
        unpack_digits(&self.narrow, d, narrow);
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Stepped<LEN> for BlockTq1_0 {
    const SUB: usize = LEN;
    const GRID: Grid = Grid::Even { top: 2 };
    const ZERO: f32 = 1.0;
    const TRIES: &'static [[i8; 2]] = SMALLER_TRIES;

    fn step(&self, _: usize) -> f32 {
        self.d.to_f32()
    }

    fn nudge(&mut self, _: usize, [scale, _]: [i8; 2]) {
        self.d = self.d.nudged(scale);
    }

    #[inline(always)]
    fn set_levels(&mut self, levels: &[u8; LEN]) {
        let (wide, rest) = levels.as_slice().split_at(5 * 32);
        let (middle, narrow) = rest.split_at(5 * 16);
        (self.wide, self.middle, self.narrow) =
            (pack_digits(wide), pack_digits(middle), pack_digits(narrow));
    }
}

impl Solvable<LEN> for BlockTq1_0 {
    const STEP_BITS: i32 = HALF_BITS;

    fn set_scale(&mut self, _: usize, step: f32, _offset: f32) {
        self.d = Half::from_f32(step);
    }
}

/// Two bits per weight: `w = d * (t - 1)`. Byte `m` of a half holds weights `m`, `m + 32`, `m +
/// 64`, `m + 96` of that half of the block, lowest bits first.
///
/// ```text
/// byte 0               32               64  66
///      | t0,t32,t64,t96 ..  | t128,t160 .. | d |
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockTq2_0 {
    qs: [u8; LEN / 4],
    d: Half,
}

impl Block<LEN> for BlockTq2_0 {
    const TYPE: GgmlType = GgmlType::TQ2_0;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        _: S,
        weights: &[[f32; LEN]],
        _importance: Option<&[[f32; LEN]]>,
        row: &mut [Self],
    ) {
        for (x, block) in weights.iter().zip(row) {
            let (d, digits) = digits(x);
            block.d = Half::from_f32(d);
            block.set_levels(&digits);
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut [f32; LEN]) {
        let (d, one) = (simd.splat(self.d.to_f32()), simd.splat_i32(1));
        for (half, weights) in weights
            .as_chunks_mut::<{ LEN / 2 }>()
            .0
            .iter_mut()
            .enumerate()
        {
            for i in 0..RUN / LANES {
                let runs = planes::quarters(simd, &self.qs.as_chunks().0[half * RUN / LANES + i]);
                for (run, digits) in runs.into_iter().enumerate() {
                    weights.as_chunks_mut().0[run * RUN / LANES + i] =
                        simd.store(simd.to_f32(digits - one) * d);
                }
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Stepped<LEN> for BlockTq2_0 {
    const SUB: usize = LEN;
    const GRID: Grid = Grid::Even { top: 2 };
    const ZERO: f32 = 1.0;
    const TRIES: &'static [[i8; 2]] = SMALLER_TRIES;

    fn step(&self, _: usize) -> f32 {
        self.d.to_f32()
    }

    fn nudge(&mut self, _: usize, [scale, _]: [i8; 2]) {
        self.d = self.d.nudged(scale);
    }

    #[inline(always)]
    fn set_levels(&mut self, levels: &[u8; LEN]) {
        self.qs = planes::pack::<2, 32, _, _>(levels, 0);
    }
}

impl Solvable<LEN> for BlockTq2_0 {
    const STEP_BITS: i32 = HALF_BITS;

    fn set_scale(&mut self, _: usize, step: f32, _offset: f32) {
        self.d = Half::from_f32(step);
    }
}

/// The scale, and a digit of 0, 1 or 2 per weight.
#[inline]
fn digits(x: &[f32; LEN]) -> (f32, [u8; LEN]) {
    let d = x.iter().fold(0.0, |amax, v| max(amax, v.abs()));
    let inverse = inverse_or_zero(d);
    (d, x.map(|v| (round_i32(v * inverse) as u8).wrapping_add(1)))
}

/// Packs up to five digits into each byte, the first one the most significant; missing ones are 0.
#[inline]
fn pack_digits<const BYTES: usize>(digits: &[u8]) -> [u8; BYTES] {
    let mut packed = [0u8; BYTES];
    let groups = digits.as_chunks::<BYTES>().0;
    for n in 0..5 {
        for (m, byte) in packed.iter_mut().enumerate() {
            *byte = byte
                .wrapping_mul(3)
                .wrapping_add(groups.get(n).map_or(0, |group| group[m]));
        }
    }
    packed.map(|number| {
        (u16::from(number) * 256)
            .wrapping_add(FIVE_DIGITS - 1)
            .wrapping_div(FIVE_DIGITS) as u8
    })
}

#[inline]
fn unpack_digits<const BYTES: usize>(packed: &[u8; BYTES], d: f32, weights: &mut [f32]) {
    let mut rest = *packed;
    for out in weights.as_chunks_mut::<BYTES>().0 {
        for (w, byte) in out.iter_mut().zip(&mut rest) {
            let tripled = u16::from(*byte) * 3;
            *w = f32::from((tripled >> 8) as i8 - 1) * d;
            *byte = tripled as u8;
        }
    }
}
