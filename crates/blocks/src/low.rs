//! One and two bits per weight, and one scale per block.

use super::feedback::{Grid, Stepped};
use super::lossless::Solvable;
use super::num::{HALF_BITS, Half, inverse_or_zero, largest_magnitude, round_i32};
use super::{Block, Fault};
use crate::simd::Simd;
use crate::types::GgmlType;

/// Candidates of error feedback beside the largest magnitude, in 32nds: at that scale most weights
/// round to one level.
pub(super) const SMALLER_TRIES: &[[i8; 2]] = &[
    [0, 0],
    [-2, 0],
    [-4, 0],
    [-6, 0],
    [-8, 0],
    [-10, 0],
    [-12, 0],
    [-14, 0],
    [-16, 0],
    [-18, 0],
    [-20, 0],
    [-22, 0],
];

const Q1_0_LEN: usize = 128;
const Q2_0_LEN: usize = 64;

/// The sign of each weight, and the mean magnitude: `w = b ? d : -d`.
///
/// ```text
/// byte 0   2                           18
///      | d | b0..b7  b8..b15  ...       |   lowest bit first
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ1_0 {
    d: Half,
    bits: [u8; Q1_0_LEN / 8],
}

impl Block<Q1_0_LEN> for BlockQ1_0 {
    const TYPE: GgmlType = GgmlType::Q1_0;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        _: S,
        weights: &[[f32; Q1_0_LEN]],
        _importance: Option<&[[f32; Q1_0_LEN]]>,
        row: &mut [Self],
    ) {
        for (x, block) in weights.iter().zip(row) {
            let sum: f32 = x.iter().fold(0.0, |sum, v| sum + v.abs());
            block.d = Half::from_f32(sum / Q1_0_LEN as f32);
            for (byte, eight) in block.bits.iter_mut().zip(x.as_chunks::<8>().0) {
                *byte = (0..8).fold(0, |byte, i| byte | u8::from(eight[i] >= 0.0) << i);
            }
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, weights: &mut [f32; Q1_0_LEN]) {
        let d = self.d.to_f32();
        for (eight, byte) in weights.as_chunks_mut::<8>().0.iter_mut().zip(self.bits) {
            *eight = std::array::from_fn(|i| if byte >> i & 1 == 1 { d } else { -d });
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

/// 2-bit levels from -1 to 2, the scale being the largest magnitude: `w = d * (q - 1)`.
///
/// ```text
/// byte 0   2                               18
///      | d | q0,q1,q2,q3  q4,q5,q6,q7  ...  |   lowest bits first
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ2_0 {
    d: Half,
    qs: [u8; Q2_0_LEN / 4],
}

impl Block<Q2_0_LEN> for BlockQ2_0 {
    const TYPE: GgmlType = GgmlType::Q2_0;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        _: S,
        weights: &[[f32; Q2_0_LEN]],
        _importance: Option<&[[f32; Q2_0_LEN]]>,
        row: &mut [Self],
    ) {
        for (x, block) in weights.iter().zip(row) {
            let d = largest_magnitude(x);
            let inverse = inverse_or_zero(d);
            block.d = Half::from_f32(d);
            block.set_levels(&x.map(|v| (round_i32(v * inverse) + 1).clamp(0, 3) as u8));
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, weights: &mut [f32; Q2_0_LEN]) {
        let d = self.d.to_f32();
        for (four, byte) in weights.as_chunks_mut::<4>().0.iter_mut().zip(self.qs) {
            *four = std::array::from_fn(|i| f32::from((byte >> (2 * i) & 3) as i8 - 1) * d);
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Stepped<Q1_0_LEN> for BlockQ1_0 {
    const SUB: usize = Q1_0_LEN;
    const GRID: Grid = Grid::Even { top: 1 };
    /// The midpoint of both levels.
    const ZERO: f32 = 0.5;
    const TRIES: &'static [[i8; 2]] = &[[0, 0], [-2, 0], [2, 0], [-4, 0], [4, 0]];

    fn step(&self, _: usize) -> f32 {
        2.0 * self.d.to_f32()
    }

    fn nudge(&mut self, _: usize, [scale, _]: [i8; 2]) {
        self.d = self.d.nudged(scale);
    }

    #[inline(always)]
    fn set_levels(&mut self, levels: &[u8; Q1_0_LEN]) {
        for (byte, eight) in self.bits.iter_mut().zip(levels.as_chunks::<8>().0) {
            *byte = eight.iter().rev().fold(0, |byte, level| byte << 1 | level);
        }
    }
}

impl Solvable<Q1_0_LEN> for BlockQ1_0 {
    const STEP_BITS: i32 = HALF_BITS;

    fn set_scale(&mut self, _: usize, step: f32, _offset: f32) {
        self.d = Half::from_f32(step / 2.0);
    }
}

impl Stepped<Q2_0_LEN> for BlockQ2_0 {
    const SUB: usize = Q2_0_LEN;
    const GRID: Grid = Grid::Even { top: 3 };
    const ZERO: f32 = 1.0;
    const TRIES: &'static [[i8; 2]] = SMALLER_TRIES;

    fn step(&self, _: usize) -> f32 {
        self.d.to_f32()
    }

    fn nudge(&mut self, _: usize, [scale, _]: [i8; 2]) {
        self.d = self.d.nudged(scale);
    }

    #[inline(always)]
    fn set_levels(&mut self, levels: &[u8; Q2_0_LEN]) {
        for (byte, four) in self.qs.iter_mut().zip(levels.as_chunks::<4>().0) {
            *byte = four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6;
        }
    }
}

impl Solvable<Q2_0_LEN> for BlockQ2_0 {
    const STEP_BITS: i32 = HALF_BITS;
    const HAS_NEGATIVE_STEPS: bool = true;

    fn set_scale(&mut self, _: usize, step: f32, _offset: f32) {
        self.d = Half::from_f32(step);
    }
}
