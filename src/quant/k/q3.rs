//! Q3_K.

use super::{LEN, Levels, sum};
use crate::format::types::GgmlType;
use crate::quant::num::{Half, nearest_int};
use crate::quant::planes;
use crate::quant::search::{self, Symmetric, extreme, sum_of_squares, weigh};
use crate::quant::{Block, Fault};
use crate::simd::Simd;

/// Weights in a sub-block, and sub-blocks.
const N: usize = 16;
const S: usize = LEN / N;
/// The levels are `-4 ..= 3`, the scale codes `-32 ..= 31`; both are stored with this added.
const HALF_LEVELS: i32 = 4;
const HALF_SCALES: i32 = 32;

/// 16 sub-blocks of 16 levels of 3 bits, with a 6-bit scale each: `w = d * (s - 32) * (q - 4)`.
///
/// ```text
/// byte 0                          32                            96                          108 110
///      | bit 2 of q0..q255, plane | bits 1-0 of q0..q255, planes | s0..s15 packed, see below | d |
///        of 1 bit in runs of 32     of 2 bits in runs of 32
///
/// byte 96 + j, j < 8:    7-4 = low bits of s(j+8),  3-0 = low bits of s(j)
/// byte 104 + j, j < 4:   7-6, 5-4, 3-2, 1-0 = high bits of s(j+12), s(j+8), s(j+4), s(j)
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    hmask: [u8; LEN / 8],
    qs: [u8; LEN / 4],
    scales: [u8; 12],
    d: Half,
}

/// The super-block's scale and the scale codes, `0 ..= 63`.
struct Scales {
    d: f32,
    codes: [u8; S],
}

impl Scales {
    /// The scale of largest magnitude gets the code -32.
    #[inline]
    fn of_extreme(scales: &[f32; S]) -> Scales {
        let extreme = extreme(scales);
        if extreme == 0.0 {
            return Scales { d: 0.0, codes: [0; S] };
        }
        let inverse = -HALF_SCALES as f32 / extreme;
        let codes = scales.map(|s| {
            // Through a signed byte first, as in the reference.
            let code = i32::from(nearest_int(inverse * s) as i8);
            (code.clamp(-HALF_SCALES, HALF_SCALES - 1) + HALF_SCALES) as u8
        });
        Scales { d: 1.0 / inverse, codes }
    }
}

impl BlockQ3K {
    fn quantize(x: &[f32; LEN], importance: Option<&[f32; LEN]>) -> Self {
        let blocks: &[[f32; N]; S] = bytemuck::cast_ref(x);
        let mut levels = [[0u8; N]; S];
        let mut scales = [0.0; S];
        let Scales { d, codes } = match importance {
            Some(importance) => {
                let importance: &[[f32; N]; S] = bytemuck::cast_ref(importance);
                let variance = 2.0 * sum_of_squares(x) / LEN as f32;
                let mut totals = [0.0; S];
                for j in 0..S {
                    let weights = weigh(&blocks[j], &importance[j], variance);
                    totals[j] = sum(&weights);
                    let fit = search::symmetric::<N, HALF_LEVELS>(&blocks[j], &weights);
                    (scales[j], levels[j]) = (fit.scale, fit.levels);
                }
                let Symmetric { scale, levels } = search::symmetric::<S, HALF_SCALES>(&scales, &totals);
                Scales { d: scale, codes: levels }
            }
            None => {
                for j in 0..S {
                    let fit = search::symmetric_by_descent::<N, HALF_LEVELS>(&blocks[j]);
                    (scales[j], levels[j]) = (fit.scale, fit.levels);
                }
                Scales::of_extreme(&scales)
            }
        };
        let mut block =
            BlockQ3K { hmask: [0; LEN / 8], qs: [0; LEN / 4], scales: pack_scales(&codes), d: Half::from_f32(d) };
        for (j, d) in block.sub_scales().into_iter().enumerate() {
            if d != 0.0 {
                levels[j] = search::symmetric_levels::<N, HALF_LEVELS>(&blocks[j], d);
            }
        }
        let levels: Levels = bytemuck::cast(levels);
        block.hmask = planes::pack::<1, 32, _, _>(&levels, 2);
        block.qs = planes::pack::<2, 32, _, _>(&levels, 0);
        block
    }

    #[inline]
    fn sub_scales(&self) -> [f32; S] {
        let d = self.d.to_f32();
        unpack_scales(&self.scales).map(|code| d * (i32::from(code) - HALF_SCALES) as f32)
    }
}

#[inline]
fn pack_scales(codes: &[u8; S]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..8 => (codes[i] & 15) | (codes[i + 8] << 4),
        _ => (0..4).fold(0, |byte, k| byte | ((codes[i - 8 + 4 * k] >> 4) << (2 * k))),
    })
}

#[inline]
fn unpack_scales(packed: &[u8; 12]) -> [u8; S] {
    std::array::from_fn(|j| {
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        low | (high << 4)
    })
}

impl Block<LEN> for BlockQ3K {
    const TYPE: GgmlType = GgmlType::Q3_K;

    #[inline(always)]
    fn quantize_row<S: Simd>(_: S, weights: &[[f32; LEN]], importance: Option<&[[f32; LEN]]>, row: &mut [Self]) {
        for (i, (x, block)) in weights.iter().zip(row).enumerate() {
            *block = Self::quantize(x, importance.map(|w| &w[i]));
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, weights: &mut [f32; LEN]) {
        let mut levels: Levels = [0; LEN];
        planes::unpack::<2, 32, _, _>(&self.qs, 0, &mut levels);
        planes::unpack::<1, 32, _, _>(&self.hmask, 2, &mut levels);
        let scales = self.sub_scales();
        for (i, (w, &level)) in weights.iter_mut().zip(&levels).enumerate() {
            *w = scales[i / N] * (i32::from(level) - HALF_LEVELS) as f32;
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_codes_unpack_to_what_was_packed() {
        let codes: [u8; S] = std::array::from_fn(|j| (j * 23 % 64) as u8);
        assert_eq!(unpack_scales(&pack_scales(&codes)), codes);
    }
}
