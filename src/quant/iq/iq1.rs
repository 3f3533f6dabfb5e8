//! The ternary types: eight weights of -1, 0 or 1 to a point, all of them shifted up or down by an eighth.

use super::ternary::{BOOK, MINUS, PLUS, Search, Split, TRITS};
use super::{BLOCK, grade, squares, sum_of_squares, weigh};
use crate::format::types::GgmlType;
use crate::quant::num::Half;
use crate::quant::{Block, Fault};
use crate::simd::Simd;

/// Points in a block.
const POINTS: usize = BLOCK / 8;
/// Weights under one scale of IQ1_S.
const S_SUB: usize = 32;
/// Weights under one scale of IQ1_M.
const M_SUB: usize = 16;
/// Scales in a block of IQ1_S.
const S_SUBS: usize = BLOCK / S_SUB;
/// Scales in a block of IQ1_M.
const M_SUBS: usize = BLOCK / M_SUB;

/// The largest scale of a block is stored as this many steps.
const LARGEST_SCALE: f32 = 15.0;
/// The highest code of a scale, in three bits.
const TOP_SCALE: u8 = 7;
/// ggml's correction of the block scale of IQ1_S, found by trial.
const S_CORRECTION: f32 = 1.125;
/// ggml's correction of the block scale of IQ1_M, found by trial.
const M_CORRECTION: f32 = 1.1125;
/// ggml takes a sub-block of IQ1_S for zero below this magnitude.
const S_LEAST: f32 = 1.0e-12;
/// ggml takes a sub-block of IQ1_M for zero below this magnitude.
const M_LEAST: f32 = 1.0e-7;

/// What a point's weights are in units of the scale.
#[inline]
fn shifted(point: u16, minus: bool) -> [f32; 8] {
    let shift = if minus { MINUS[1] } else { PLUS[1] };
    TRITS[usize::from(point)].map(|trit| f32::from(trit) + shift)
}

/// 1.5625 bits: points from a book of 2048, one shift and one scale for 32 weights.
///
/// ```text
/// byte 0   2                       34                           50
///      | d | low bytes of p0..p31  | words g0..g7, 2 bytes each |
///
/// word g of 32 weights, little-endian:
/// bit 0           3     6     9     12     15            16
///     | high bits | ... | ... | ... | code | shift down? |
///
/// w = d * (2 * code + 1) * (trit + 1/8, or - 1/8)
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq1S {
    d: Half,
    points: [[u8; S_SUB / 8]; S_SUBS],
    words: [[u8; 2]; S_SUBS],
}

/// IQ1_S: all of a sub-block is shifted up or down.
struct OneShift;

impl Search<S_SUB, 4, 2> for OneShift {
    const LEAST: f32 = S_LEAST;

    fn shifted_down(choice: usize, _group: usize) -> bool {
        choice == 1
    }

    #[inline(always)]
    fn splits(x: &[f32; S_SUB], weights: &[f32; S_SUB], order: &[usize; S_SUB], mut row: impl FnMut(usize, &Split<2>)) {
        // Sums over the i smallest weights.
        let (mut sx, mut sw) = ([0.0; S_SUB + 1], [0.0; S_SUB + 1]);
        for (j, &i) in order.iter().enumerate() {
            sx[j + 1] = sx[j] + weights[i] * x[i];
            sw[j + 1] = sw[j] + weights[i];
        }
        let mut split = Split::default();
        for first in 0..S_SUB + 1 {
            for (choice, v) in [&PLUS, &MINUS].into_iter().enumerate() {
                let (qx, qq) = (&mut split.qx[choice], &mut split.qq[choice]);
                for last in first..S_SUB + 1 {
                    let (x1, x2, x3) = (sx[first], sx[last] - sx[first], sx[S_SUB] - sx[last]);
                    let (w1, w2, w3) = (sw[first], sw[last] - sw[first], sw[S_SUB] - sw[last]);
                    qx[last] = x1 * v[0] + x2 * v[1] + x3 * v[2];
                    qq[last] = w1 * v[0] * v[0] + w2 * v[1] * v[1] + w3 * v[2] * v[2];
                }
            }
            row(first, &split);
        }
    }
}

impl Block<BLOCK> for BlockIq1S {
    const TYPE: GgmlType = GgmlType::IQ1_S;
    const NEEDS_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize_row<S: Simd>(_: S, weights: &[[f32; BLOCK]], importance: Option<&[[f32; BLOCK]]>, row: &mut [Self]) {
        let importance = importance.expect("IQ1_S needs importance weights");
        let map = BOOK.map();
        for ((x, importance), block) in weights.iter().zip(importance).zip(row) {
            let errors = weigh(x, importance, 2.0 * sum_of_squares(x) / BLOCK as f32);
            let fit = OneShift::fit::<S_SUBS>(map, x, &errors);
            *block = bytemuck::Zeroable::zeroed();
            block.points = fit.points.map(|points| points.map(|p| p as u8));
            let grades = grade(&fit.scales, LARGEST_SCALE, TOP_SCALE);
            if let Some((step, _)) = grades {
                block.d = Half::from_f32(step * S_CORRECTION);
            }
            for (i, word) in block.words.iter_mut().enumerate() {
                let high = fit.points[i].iter().rev().fold(0, |word, p| word << 3 | p >> 8);
                // Codes and shifts stay zero with the block scale.
                let top = grades.map_or(0, |(_, codes)| u16::from(codes[i]) | (fit.choices[i] as u16) << 3);
                *word = (high | top << 12).to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, weights: &mut [f32; BLOCK]) {
        let d = self.d.to_f32();
        for ((out, points), word) in weights.as_chunks_mut::<S_SUB>().0.iter_mut().zip(&self.points).zip(self.words) {
            let word = u16::from_le_bytes(word);
            let scale = d * f32::from(2 * (word >> 12 & 7) + 1);
            for (g, (out, &low)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points).enumerate() {
                let point = u16::from(low) | (word >> (3 * g) & 7) << 8;
                *out = shifted(point, word >> 15 == 1).map(|v| scale * v);
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

/// 1.75 bits: points from a book of 2048, a shift for 8 weights, a scale for 16.
///
/// ```text
/// byte 0                      32                             48                           56
///      | low bytes of p0..p31 | halves h0..h31, 4 bits each  | words s0..s3, 2 bytes each |
///
/// half h (low half of a byte first):     word s, little-endian:
/// bit 0           3             4        bit 0       3       6       9       12                16
///     | high bits | shift down? |            | code0 | code1 | code2 | code3 | nibble s of d   |
///
/// d is an f16, its lowest nibble in s0
/// w = d * (2 * code + 1) * (trit + 1/8, or - 1/8)
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq1M {
    points: [u8; POINTS],
    halves: [u8; POINTS / 2],
    words: [[u8; 2]; 4],
}

/// IQ1_M: each half of a sub-block is shifted up or down. Bit 1 of the choice is the first half's.
struct TwoShifts;

impl Search<M_SUB, 2, 4> for TwoShifts {
    const LEAST: f32 = M_LEAST;

    fn shifted_down(choice: usize, group: usize) -> bool {
        choice >> (1 - group) & 1 == 1
    }

    #[inline(always)]
    fn splits(x: &[f32; M_SUB], weights: &[f32; M_SUB], order: &[usize; M_SUB], mut row: impl FnMut(usize, &Split<4>)) {
        // Sums over those of the i smallest weights that lie in either half.
        let (mut sx, mut sw) = ([[0.0; M_SUB + 1]; 2], [[0.0; M_SUB + 1]; 2]);
        for (j, &i) in order.iter().enumerate() {
            let (half, other) = (i / 8, 1 - i / 8);
            sx[half][j + 1] = sx[half][j] + weights[i] * x[i];
            sx[other][j + 1] = sx[other][j];
            sw[half][j + 1] = sw[half][j] + weights[i];
            sw[other][j + 1] = sw[other][j];
        }
        // Neighbouring values differ by one, so the sum over all three parts is that of the greatest value, less one
        // for each boundary that a weight is below. For squares, the differences are these:
        let below = |v: &[f32; 3]| [v[0] * v[0] - v[1] * v[1], v[1] * v[1] - v[2] * v[2]];
        let mut split = Split::default();
        // By half and shift.
        let (mut qx, mut qq) = ([[[0.0; M_SUB + 1]; 2]; 2], [[[0.0; M_SUB + 1]; 2]; 2]);
        for first in 0..M_SUB + 1 {
            for (half, (sx, sw)) in sx.iter().zip(&sw).enumerate() {
                for (down, v) in [&PLUS, &MINUS].into_iter().enumerate() {
                    let [to_first, to_last] = below(v);
                    for last in first..M_SUB + 1 {
                        qx[half][down][last] = sx[M_SUB] * v[2] - (sx[first] + sx[last]);
                        qq[half][down][last] = sw[M_SUB] * v[2] * v[2] + sw[first] * to_first + sw[last] * to_last;
                    }
                }
            }
            for choice in 0..4 {
                for last in first..M_SUB + 1 {
                    split.qx[choice][last] = qx[0][choice >> 1][last] + qx[1][choice & 1][last];
                    split.qq[choice][last] = qq[0][choice >> 1][last] + qq[1][choice & 1][last];
                }
            }
            row(first, &split);
        }
    }
}

impl BlockIq1M {
    fn d(&self) -> Half {
        let nibble = |i: usize| (u16::from_le_bytes(self.words[i]) >> 12) << (4 * i);
        Half::from_bits(nibble(0) | nibble(1) | nibble(2) | nibble(3))
    }
}

impl Block<BLOCK> for BlockIq1M {
    const TYPE: GgmlType = GgmlType::IQ1_M;

    #[inline(always)]
    fn quantize_row<S: Simd>(_: S, weights: &[[f32; BLOCK]], importance: Option<&[[f32; BLOCK]]>, row: &mut [Self]) {
        let map = BOOK.map();
        for (i, (x, block)) in weights.iter().zip(row).enumerate() {
            let errors = match importance {
                Some(importance) => weigh(x, &importance[i], 2.0 * sum_of_squares(x) / BLOCK as f32),
                None => squares(x),
            };
            let fit = TwoShifts::fit::<M_SUBS>(map, x, &errors);
            *block = bytemuck::Zeroable::zeroed();
            block.points = bytemuck::cast(fit.points.map(|points| points.map(|p| p as u8)));
            block.halves = fit.points.map(|[p0, p1]| (p0 >> 8 | p1 >> 8 << 4) as u8);
            // Codes and shifts stay zero with the block scale.
            let Some((step, codes)) = grade(&fit.scales, LARGEST_SCALE, TOP_SCALE) else { continue };
            for (half, choice) in block.halves.iter_mut().zip(fit.choices) {
                let down = |group| u8::from(TwoShifts::shifted_down(choice, group));
                *half |= down(0) << 3 | down(1) << 7;
            }

            // The block scale is fitted once more, to all weights at their final codes.
            let (mut qx, mut qq) = (0.0, 0.0);
            let groups = x.as_chunks::<8>().0.iter().zip(errors.as_chunks::<8>().0);
            for (g, (x, errors)) in groups.enumerate() {
                let (sub, group) = (g / 2, g % 2);
                let scale = f32::from(2 * codes[sub] + 1);
                let levels = shifted(fit.points[sub][group], TwoShifts::shifted_down(fit.choices[sub], group));
                for ((x, w), level) in x.iter().zip(errors).zip(levels) {
                    let q = level * scale;
                    qx += w * q * x;
                    qq += w * q * q;
                }
            }
            let refitted = if qq > 0.0 && !step.is_nan() { qx / qq } else { step };
            let d = Half::from_f32(refitted * M_CORRECTION).to_bits();
            for (i, word) in block.words.iter_mut().enumerate() {
                let codes = codes[4 * i..][..4].iter().rev().fold(0, |word, &code| word << 3 | u16::from(code));
                *word = (codes | (d >> (4 * i) & 0x0f) << 12).to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, weights: &mut [f32; BLOCK]) {
        let d = self.d().to_f32();
        for (g, out) in weights.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let code = u16::from_le_bytes(self.words[g / 8]) >> (3 * (g / 2 % 4)) & 7;
            let scale = d * f32::from(2 * code + 1);
            let half = u16::from(self.halves[g / 2] >> (4 * (g % 2)));
            let point = u16::from(self.points[g]) | (half & 7) << 8;
            *out = shifted(point, half >> 3 & 1 == 1).map(|v| scale * v);
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d().fault()
    }
}
