//! 3-bit codebook types: four magnitudes per point.

use super::lattice::{Fit, Lattice, Plan, Resnap, from_largest};
use super::signs::{EVEN_MASK, Signs, complete, signed, signs_and_code};
use super::{BLOCK, error_weights, grade, with_squares};
use crate::feedback::{Choice, Pointed, Points};
use crate::num::{Half, nudged};
use crate::simd::Simd;
use crate::types::GgmlType;
use crate::{Block, Fault};

/// Weights per scale.
const SUB: usize = 32;
/// Points per scale.
const POINTS: usize = SUB / 4;
/// Scales per block.
const SUBS: usize = BLOCK / SUB;
/// Levels per magnitude.
const LEVELS: usize = 8;

/// Values of IQ3_XXS: near multiples of eight, except the outermost, which lies farther out.
static XXS: Lattice<4, 256> = Lattice::new(
    include_bytes!("data/iq3_xxs.hex"),
    2,
    [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0],
);
static S: Lattice<4, 512> = Lattice::new(
    include_bytes!("data/iq3_s.hex"),
    3,
    [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0],
);

/// Scale candidates of IQ3_XXS: fifteen on either side.
const XXS_CANDIDATES: usize = 31;
/// Scale candidates of IQ3_S: nine on either side.
const S_CANDIDATES: usize = 19;

/// ggml's search range for IQ3_XXS.
const XXS_PLAN: Plan = Plan {
    stride: 0.2,
    least: 1.0e-8,
    resnap: Resnap::Strays,
    signs: Signs::Even,
};
/// ggml's search range for IQ3_S, where only zeros count as zero.
const S_PLAN: Plan = Plan {
    stride: 0.2,
    least: f32::from_bits(1),
    resnap: Resnap::AllIfAnyStrayed,
    signs: Signs::Free,
};

/// The largest scale of a block is stored as this many steps.
const LARGEST_SCALE: f32 = 31.0;
/// The highest code of a scale, in four bits.
const TOP_SCALE: u8 = 15;
/// ggml's empirical correction of the block scale of IQ3_XXS.
const XXS_CORRECTION: f32 = 1.0125;
/// ggml's empirical correction of the block scale of IQ3_S.
const S_CORRECTION: f32 = 1.033;

/// The values of two points.
#[inline(always)]
fn side_by_side(first: &[f32; 4], second: &[f32; 4]) -> [f32; 8] {
    bytemuck::cast([*first, *second])
}

/// 3.0625 bits: points from a book of 256, seven signs for eight weights.
///
/// ```text
/// byte 0   2                        66                    98
///      | d | point numbers p0..p63  | group words g0..g7  |
///
/// word g of 32 weights, little-endian:
/// bit 0        7        14       21       28     32
///     | signs0 | signs1 | signs2 | signs3 | code |
///
/// w = d * (0.5 + code) * 0.5 * value; the eighth sign makes the number of minus signs even
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockIq3Xxs {
    d: Half,
    points: [[u8; POINTS]; SUBS],
    words: [[u8; 4]; SUBS],
}

impl Block<BLOCK> for BlockIq3Xxs {
    const TYPE: GgmlType = GgmlType::IQ3_XXS;

    #[inline(always)]
    fn quantize_row<V: Simd>(
        simd: V,
        weights: &[[f32; BLOCK]],
        importance: Option<&[[f32; BLOCK]]>,
        row: &mut [Self],
    ) {
        for (i, x, sum_of_squares) in with_squares(simd, weights) {
            let block = &mut row[i];
            let errors = error_weights(x, importance.map(|w| &w[i]), sum_of_squares);
            let fit: Fit<POINTS, SUBS> = XXS.fit::<V, SUB, POINTS, XXS_CANDIDATES, SUBS>(
                simd,
                &XXS_PLAN,
                x,
                &errors,
                from_largest::<V, SUB, LEVELS>,
            );
            *block = bytemuck::Zeroable::zeroed();
            let Some((step, codes)) = grade(&fit.scales, LARGEST_SCALE, TOP_SCALE) else {
                continue;
            };
            block.d = Half::from_f32(step * XXS_CORRECTION);
            block.points = fit.points.map(|points| points.map(|p| p as u8));
            for ((word, signs), code) in block
                .words
                .iter_mut()
                .zip(fit.signs.as_chunks::<4>().0)
                .zip(codes)
            {
                *word = signs_and_code(*signs, code);
            }
        }
    }

    #[inline(always)]
    fn dequantize<V: Simd>(&self, simd: V, weights: &mut [f32; BLOCK]) {
        let d = self.d.to_f32();
        for ((out, points), word) in weights
            .as_chunks_mut::<SUB>()
            .0
            .iter_mut()
            .zip(&self.points)
            .zip(&self.words)
        {
            let word = u32::from_le_bytes(*word);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            for (g, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                let signs = complete((word >> (7 * g)) as u8 & EVEN_MASK);
                let [p0, p1] = [points[2 * g], points[2 * g + 1]].map(usize::from);
                *out = signed(
                    simd,
                    scale,
                    &side_by_side(&XXS.values[p0], &XXS.values[p1]),
                    signs,
                );
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Pointed for BlockIq3Xxs {
    const SUB: usize = SUB;
    const EVEN_SIGNS: bool = true;

    fn points() -> Points {
        Points::Four(XXS.fours())
    }

    fn scale(&self, sub: usize) -> f32 {
        self.d.to_f32() * (0.5 + f32::from(self.words[sub][3] >> 4)) * 0.5
    }

    fn nudge(&mut self, sub: usize, [scale, _]: [i8; 2]) {
        let byte = &mut self.words[sub][3];
        *byte = *byte & 0x0f | nudged(*byte >> 4, scale, TOP_SCALE) << 4;
    }

    fn set_choices(&mut self, choices: &[Choice; BLOCK / 8]) {
        for (i, choices) in choices.as_chunks::<4>().0.iter().enumerate() {
            self.points[i] = bytemuck::cast(choices.map(|choice| choice.points.map(|p| p as u8)));
            self.words[i] = signs_and_code(
                choices.map(|choice| choice.signs & EVEN_MASK),
                self.words[i][3] >> 4,
            );
        }
    }
}

/// 3.4375 bits: points from a book of 512, a sign for every weight.
///
/// ```text
/// byte 0   2                          66            74             106              110
///      | d | low bytes of p0..p63     | ninth bits  | sign bits    | codes, 4 bits  |
///
/// ninth bits: bit k of byte g belongs to point 8 * g + k; signs: bit i of byte g to weight 8 * g + i;
/// codes: 32 weights each, low half first
///
/// w = d * (1 + 2 * code) * value
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockIq3S {
    d: Half,
    points: [[u8; POINTS]; SUBS],
    ninth_bits: [u8; SUBS],
    signs: [[u8; SUB / 8]; SUBS],
    codes: [u8; SUBS / 2],
}

impl Block<BLOCK> for BlockIq3S {
    const TYPE: GgmlType = GgmlType::IQ3_S;

    #[inline(always)]
    fn quantize_row<V: Simd>(
        simd: V,
        weights: &[[f32; BLOCK]],
        importance: Option<&[[f32; BLOCK]]>,
        row: &mut [Self],
    ) {
        for (i, x, sum_of_squares) in with_squares(simd, weights) {
            let block = &mut row[i];
            let errors = error_weights(x, importance.map(|w| &w[i]), sum_of_squares);
            let fit: Fit<POINTS, SUBS> = S.fit::<V, SUB, POINTS, S_CANDIDATES, SUBS>(
                simd,
                &S_PLAN,
                x,
                &errors,
                from_largest::<V, SUB, LEVELS>,
            );
            *block = bytemuck::Zeroable::zeroed();
            block.ninth_bits = fit.points.map(|points| {
                points
                    .iter()
                    .rev()
                    .fold(0, |bits, p| bits << 1 | (p >> 8) as u8)
            });
            // ggml skips points and signs of all-zero sub-blocks: those after them move up,
            // although their ninth bits and scales stay, so they dequantize to other weights. These
            // bytes are reproduced.
            for (place, i) in (0..SUBS).filter(|&i| !fit.empty[i]).enumerate() {
                block.points[place] = fit.points[i].map(|p| p as u8);
                block.signs[place] = fit.signs.as_chunks().0[i];
            }
            let Some((step, codes)) = grade(&fit.scales, LARGEST_SCALE, TOP_SCALE) else {
                continue;
            };
            block.d = Half::from_f32(step * S_CORRECTION);
            block.codes = std::array::from_fn(|i| codes[2 * i] | codes[2 * i + 1] << 4);
        }
    }

    #[inline(always)]
    fn dequantize<V: Simd>(&self, simd: V, weights: &mut [f32; BLOCK]) {
        let d = self.d.to_f32();
        for (i, out) in weights.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
            let code = self.codes[i / 2] >> (4 * (i % 2)) & 0x0f;
            let scale = d * f32::from(1 + 2 * code);
            let ninth_bits = u16::from(self.ninth_bits[i]);
            for (g, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                let point = |p: usize| {
                    usize::from(u16::from(self.points[i][p]) | (ninth_bits >> p & 1) << 8)
                };
                let (p0, p1) = (point(2 * g), point(2 * g + 1));
                *out = signed(
                    simd,
                    scale,
                    &side_by_side(&S.values[p0], &S.values[p1]),
                    self.signs[i][g],
                );
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Pointed for BlockIq3S {
    const SUB: usize = SUB;

    fn points() -> Points {
        Points::Four(S.fours())
    }

    fn scale(&self, sub: usize) -> f32 {
        self.d.to_f32() * f32::from(1 + 2 * (self.codes[sub / 2] >> (4 * (sub % 2)) & 0x0f))
    }

    fn nudge(&mut self, sub: usize, [scale, _]: [i8; 2]) {
        let (byte, shift) = (&mut self.codes[sub / 2], 4 * (sub % 2));
        *byte = *byte & !(0x0f << shift) | nudged(*byte >> shift & 0x0f, scale, TOP_SCALE) << shift;
    }

    fn set_choices(&mut self, choices: &[Choice; BLOCK / 8]) {
        for (i, choices) in choices.as_chunks::<4>().0.iter().enumerate() {
            let points: [u16; POINTS] = bytemuck::cast(choices.map(|choice| choice.points));
            self.points[i] = points.map(|p| p as u8);
            self.ninth_bits[i] = points
                .iter()
                .rev()
                .fold(0, |bits, p| bits << 1 | (p >> 8) as u8);
            self.signs[i] = choices.map(|choice| choice.signs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_blocks_after_zeros_move_up_in_iq3_s() {
        let mut x = [0.0; BLOCK];
        for (i, v) in x.iter_mut().enumerate().filter(|(i, _)| i / SUB != 1) {
            *v = (i % SUB) as f32 - 15.5;
        }
        let mut block: [BlockIq3S; 1] = [bytemuck::Zeroable::zeroed()];
        BlockIq3S::quantize_row(crate::simd::Scalar, &[x], None, &mut block);
        assert_ne!(block[0].points[0], [0; POINTS]);
        assert_eq!(block[0].points[1], block[0].points[0]);
        assert_eq!(block[0].points[SUBS - 1], [0; POINTS]);
        assert_eq!(block[0].ninth_bits[1], 0);
        assert_eq!(block[0].ninth_bits[2], block[0].ninth_bits[0]);
    }
}
