//! Q2_K.

use super::affine::{self, Codes};
use super::{LEN, Levels, sum};
use crate::format::types::GgmlType;
use crate::quant::num::Half;
use crate::quant::planes;
use crate::quant::search::{Candidates, WITH_IMPORTANCE, sum_of_squares, weigh};
use crate::quant::{Block, Fault};
use crate::simd::Simd;

/// Weights in a sub-block, and sub-blocks.
const N: usize = 16;
const S: usize = LEN / N;
/// The highest level and the highest scale code.
const MAX_LEVEL: i32 = 3;
const MAX_SCALE: i32 = 15;
/// ggml's candidates for Q2_K without importance weights.
const WITHOUT_IMPORTANCE: Candidates = Candidates { first: -0.5, step: 0.1, last: 15 };

/// 16 sub-blocks of 16 levels of 2 bits, with a 4-bit scale and a 4-bit offset each:
/// `w = d * (scales[j] & 15) * q - dmin * (scales[j] >> 4)`.
///
/// ```text
/// byte 0                     16                                80  82     84
///      | m0:s0 m1:s1 ... m15:s15 | q0..q255 in planes of 2 bits | d | dmin |
///        7-4 3-0  bits              in runs of 32
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    scales: [u8; S],
    qs: [u8; LEN / 4],
    d: Half,
    dmin: Half,
}

impl BlockQ2K {
    fn quantize(x: &[f32; LEN], importance: Option<&[f32; LEN]>) -> Self {
        let blocks: &[[f32; N]; S] = bytemuck::cast_ref(x);
        let (scales, offsets, mut levels) = match importance {
            Some(importance) => {
                let importance: &[[f32; N]; S] = bytemuck::cast_ref(importance);
                let variance = sum_of_squares(x) / LEN as f32;
                let weights: [[f32; N]; S] = std::array::from_fn(|j| weigh(&blocks[j], &importance[j], variance));
                let totals = weights.each_ref().map(|w| sum(w));
                let fits = affine::fit::<N, S, MAX_LEVEL>(blocks, &weights, WITH_IMPORTANCE, |e| e * e);
                let scales = Codes::of_least_error::<MAX_SCALE>(&fits.scales, &totals);
                let offsets = Codes::of_least_error::<MAX_SCALE>(&fits.offsets, &totals);
                (scales, offsets, fits.levels)
            }
            None => {
                let weights = blocks.map(|block| block.map(f32::abs));
                let fits = affine::fit::<N, S, MAX_LEVEL>(blocks, &weights, WITHOUT_IMPORTANCE, f32::abs);
                let scales = Codes::of_largest::<MAX_SCALE>(&fits.scales);
                let offsets = Codes::of_largest::<MAX_SCALE>(&fits.offsets);
                (scales, offsets, fits.levels)
            }
        };
        let mut block = BlockQ2K {
            scales: std::array::from_fn(|j| scales.codes[j] | (offsets.codes[j] << 4)),
            qs: [0; LEN / 4],
            d: scales.unit,
            dmin: offsets.unit,
        };
        let (scales, offsets) = block.scales_and_offsets();
        affine::round::<N, S, MAX_LEVEL>(blocks, &scales, &offsets, &mut levels);
        block.qs = planes::pack::<2, 32, LEN, _>(bytemuck::cast_ref(&levels), 0);
        block
    }

    #[inline]
    fn scales_and_offsets(&self) -> ([f32; S], [f32; S]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        (self.scales.map(|s| d * f32::from(s & 15)), self.scales.map(|s| dmin * f32::from(s >> 4)))
    }
}

impl Block<LEN> for BlockQ2K {
    const TYPE: GgmlType = GgmlType::Q2_K;

    #[inline(always)]
    fn quantize_row<S: Simd>(_: S, weights: &[[f32; LEN]], importance: Option<&[[f32; LEN]]>, row: &mut [Self]) {
        for (i, (x, block)) in weights.iter().zip(row).enumerate() {
            *block = Self::quantize(x, importance.map(|w| &w[i]));
        }
    }

    #[inline(always)]
    fn dequantize<L: Simd>(&self, _: L, weights: &mut [f32; LEN]) {
        let mut levels: Levels = [0; LEN];
        planes::unpack::<2, 32, _, _>(&self.qs, 0, &mut levels);
        let (scales, offsets) = self.scales_and_offsets();
        affine::dequantize::<N, S>(
            bytemuck::cast_ref(&levels),
            &scales,
            &offsets,
            bytemuck::cast_mut::<_, [[f32; N]; S]>(weights),
        );
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault().or(self.dmin.fault())
    }
}
