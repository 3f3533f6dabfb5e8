//! 2-bit codebook types: eight magnitudes per point.

use super::lattice::{Fit, Lattice, Plan, Resnap, from_largest};
use super::signs::{EVEN_MASK, Signs, complete, signed, signs_and_code};
use super::{BLOCK, grade, weigh, with_squares};
use crate::feedback::{Choice, Pointed, Points};
use crate::num::{Half, nudged};
use crate::search::unsigned;
use crate::simd::Simd;
use crate::types::GgmlType;
use crate::{Block, Fault};

/// Points per block.
const POINTS: usize = BLOCK / 8;
/// Levels per magnitude.
const LEVELS: usize = 3;
/// Values of the levels: roughly 1, 3 and 5 times eight.
const VALUES: [f32; LEVELS] = [8.0, 25.0, 43.0];
/// Scale candidates of IQ2_XXS: six on either side.
const XXS_CANDIDATES: usize = 13;
/// Scale candidates of the other two types: nine on either side.
const CANDIDATES: usize = 19;
/// Scales per block of IQ2_XXS.
const XXS_SUBS: usize = BLOCK / 32;
/// Scales per block of the other two types.
const SUBS: usize = BLOCK / 16;

static XXS: Lattice<8, 256> = Lattice::new(include_bytes!("data/iq2_xxs.hex"), 2, VALUES);
static XS: Lattice<8, 512> = Lattice::new(include_bytes!("data/iq2_xs.hex"), 2, VALUES);
static S: Lattice<8, 1024> = Lattice::new(include_bytes!("data/iq2_s.hex"), 1, VALUES);

/// ggml's search range for IQ2_XXS.
const XXS_PLAN: Plan = Plan {
    stride: 0.1,
    least: 1.0e-15,
    resnap: Resnap::Always,
    signs: Signs::Even,
};
/// ggml's search range for IQ2_XS.
const XS_PLAN: Plan = Plan {
    stride: 0.1,
    least: 1.0e-15,
    resnap: Resnap::Strays,
    signs: Signs::Even,
};
/// ggml's search range for IQ2_S.
const S_PLAN: Plan = Plan {
    stride: 0.1,
    least: 1.0e-8,
    resnap: Resnap::Strays,
    signs: Signs::Free,
};

/// The largest scale of a block is stored as this many steps.
const LARGEST_SCALE: f32 = 31.0;
/// The highest code of a scale, in four bits.
const TOP_SCALE: u8 = 15;
/// ggml's empirical correction of the block scale of IQ2_S.
const S_CORRECTION: f32 = 0.9875;

/// Factor of the values, from the block scale and a four-bit code.
#[inline]
fn scale_of(d: f32, code: u8) -> f32 {
    d * (0.5 + f32::from(code)) * 0.25
}

/// Scale code `i`, packed two per byte, low half first.
#[inline]
fn code_at(codes: &[u8; SUBS / 2], i: usize) -> u8 {
    codes[i / 2] >> (4 * (i % 2)) & 0x0f
}

/// Changes scale code `i`.
fn nudge_code(codes: &mut [u8; SUBS / 2], i: usize, change: i8) {
    let (byte, shift) = (&mut codes[i / 2], 4 * (i % 2));
    *byte = *byte & !(0x0f << shift) | nudged(*byte >> shift & 0x0f, change, TOP_SCALE) << shift;
}

/// Packs four-bit codes two per byte, low half first.
fn pack_codes(codes: [u8; SUBS]) -> [u8; SUBS / 2] {
    std::array::from_fn(|i| codes[2 * i] | codes[2 * i + 1] << 4)
}

/// 2.0625 bits: points from a book of 256, seven signs for eight weights.
///
/// ```text
/// byte 0   2                                      66
///      | d | groups g0..g7 of 32 weights, 8 bytes |
///
/// byte 0           4                                           8      (group; the second word little-endian)
///      | p0 .. p3  | signs0 | signs1 | signs2 | signs3 | code  |
///                  bit 0    7        14       21       28      32
///
/// w = d * (0.5 + code) * 0.25 * value; the eighth sign makes the number of minus signs even
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockIq2Xxs {
    d: Half,
    groups: [XxsGroup; XXS_SUBS],
}

/// 32 weights of IQ2_XXS.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct XxsGroup {
    points: [u8; 4],
    word: [u8; 4],
}

impl Block<BLOCK> for BlockIq2Xxs {
    const TYPE: GgmlType = GgmlType::IQ2_XXS;
    const NEEDS_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize_row<V: Simd>(
        simd: V,
        weights: &[[f32; BLOCK]],
        importance: Option<&[[f32; BLOCK]]>,
        row: &mut [Self],
    ) {
        let importance = importance.expect("IQ2_XXS needs importance weights");
        for (i, x, sum_of_squares) in with_squares(simd, weights) {
            let block = &mut row[i];
            let variance = sum_of_squares / BLOCK as f32;
            let errors = weigh(x, &importance[i], variance);
            let fit: Fit<4, XXS_SUBS> = XXS.fit::<V, 32, 4, XXS_CANDIDATES, XXS_SUBS>(
                simd,
                &XXS_PLAN,
                x,
                &errors,
                from_plain_levels,
            );
            *block = bytemuck::Zeroable::zeroed();
            let Some((step, codes)) = grade(&fit.scales, LARGEST_SCALE, TOP_SCALE) else {
                continue;
            };
            block.d = Half::from_f32(step);
            let signs = fit.signs.as_chunks::<4>().0;
            for (i, group) in block.groups.iter_mut().enumerate() {
                group.points = fit.points[i].map(|p| p as u8);
                group.word = signs_and_code(signs[i], codes[i]);
            }
        }
    }

    #[inline(always)]
    fn dequantize<V: Simd>(&self, simd: V, weights: &mut [f32; BLOCK]) {
        let d = self.d.to_f32();
        for (out, group) in weights.as_chunks_mut::<32>().0.iter_mut().zip(&self.groups) {
            let word = u32::from_le_bytes(group.word);
            let scale = scale_of(d, (word >> 28) as u8);
            for (i, (out, &point)) in out
                .as_chunks_mut::<8>()
                .0
                .iter_mut()
                .zip(&group.points)
                .enumerate()
            {
                let signs = complete((word >> (7 * i)) as u8 & EVEN_MASK);
                *out = signed(simd, scale, &XXS.values[usize::from(point)], signs);
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Pointed for BlockIq2Xxs {
    const SUB: usize = 32;
    const EVEN_SIGNS: bool = true;

    fn points() -> Points {
        Points::Eight(XXS.eights())
    }

    fn scale(&self, sub: usize) -> f32 {
        scale_of(self.d.to_f32(), self.groups[sub].word[3] >> 4)
    }

    fn nudge(&mut self, sub: usize, [scale, _]: [i8; 2]) {
        let byte = &mut self.groups[sub].word[3];
        *byte = *byte & 0x0f | nudged(*byte >> 4, scale, TOP_SCALE) << 4;
    }

    fn set_choices(&mut self, choices: &[Choice; POINTS]) {
        for (group, choices) in self.groups.iter_mut().zip(choices.as_chunks::<4>().0) {
            group.points = choices.map(|choice| choice.points[0] as u8);
            group.word = signs_and_code(
                choices.map(|choice| choice.signs & EVEN_MASK),
                group.word[3] >> 4,
            );
        }
    }
}

/// The highest plain level to which the first scale of IQ2_XXS is fitted.
const PLAIN_TOP: i32 = LEVELS as i32 + 1;

/// Starting point of IQ2_XXS: the scale of the best fit with plain levels 0 to 4, and three times
/// that.
#[inline(always)]
fn from_plain_levels<V: Simd>(
    simd: V,
    x: &[V::F32; 32],
    weights: &[V::F32; 32],
    _: V::F32,
) -> (V::F32, V::F32) {
    let [scale] = unsigned::<V, 32, 1, PLAIN_TOP>(simd, &[*x], &[*weights]).scales;
    (scale, scale * simd.splat(LEVELS as f32))
}

/// 2.3125 bits: points from a book of 512, seven signs for eight weights.
///
/// ```text
/// byte 0   2                            66                 74
///      | d | q0..q31, 2 bytes, 9+7 bits | codes, 4 bits    |
///
/// q: bits 0-8 the point, bits 9-15 the signs; codes: 16 weights each, low half first
///
/// w = d * (0.5 + code) * 0.25 * value; the eighth sign makes the number of minus signs even
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockIq2Xs {
    d: Half,
    points_and_signs: [[u8; 2]; POINTS],
    codes: [u8; SUBS / 2],
}

impl Block<BLOCK> for BlockIq2Xs {
    const TYPE: GgmlType = GgmlType::IQ2_XS;
    const NEEDS_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize_row<V: Simd>(
        simd: V,
        weights: &[[f32; BLOCK]],
        importance: Option<&[[f32; BLOCK]]>,
        row: &mut [Self],
    ) {
        let importance = importance.expect("IQ2_XS needs importance weights");
        for (i, x, sum_of_squares) in with_squares(simd, weights) {
            let block = &mut row[i];
            let variance = sum_of_squares / BLOCK as f32;
            let errors = weigh(x, &importance[i], variance);
            let fit: Fit<2, SUBS> = XS.fit::<V, 16, 2, CANDIDATES, SUBS>(
                simd,
                &XS_PLAN,
                x,
                &errors,
                from_largest::<V, 16, LEVELS>,
            );
            *block = bytemuck::Zeroable::zeroed();
            let Some((step, codes)) = grade(&fit.scales, LARGEST_SCALE, TOP_SCALE) else {
                continue;
            };
            block.d = Half::from_f32(step);
            block.codes = pack_codes(codes);
            for ((q, point), signs) in block
                .points_and_signs
                .iter_mut()
                .zip(fit.points.as_flattened())
                .zip(fit.signs)
            {
                *q = (point | u16::from(signs) << 9).to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn dequantize<V: Simd>(&self, simd: V, weights: &mut [f32; BLOCK]) {
        let d = self.d.to_f32();
        let groups = weights
            .as_chunks_mut::<16>()
            .0
            .iter_mut()
            .zip(self.points_and_signs.as_chunks::<2>().0);
        for (i, (out, pairs)) in groups.enumerate() {
            let scale = scale_of(d, code_at(&self.codes, i));
            for (out, &q) in out.as_chunks_mut().0.iter_mut().zip(pairs) {
                let q = u16::from_le_bytes(q);
                *out = signed(
                    simd,
                    scale,
                    &XS.values[usize::from(q & 0x1ff)],
                    complete((q >> 9) as u8),
                );
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Pointed for BlockIq2Xs {
    const SUB: usize = 16;
    const EVEN_SIGNS: bool = true;

    fn points() -> Points {
        Points::Eight(XS.eights())
    }

    fn scale(&self, sub: usize) -> f32 {
        scale_of(self.d.to_f32(), code_at(&self.codes, sub))
    }

    fn nudge(&mut self, sub: usize, [scale, _]: [i8; 2]) {
        nudge_code(&mut self.codes, sub, scale);
    }

    fn set_choices(&mut self, choices: &[Choice; POINTS]) {
        for (q, choice) in self.points_and_signs.iter_mut().zip(choices) {
            *q = (choice.points[0] | u16::from(choice.signs & EVEN_MASK) << 9).to_le_bytes();
        }
    }
}

/// 2.5625 bits: points from a book of 1024, a sign for every weight.
///
/// ```text
/// byte 0   2                       34          66                74               82
///      | d | low bytes of p0..p31  | sign bits | high bits, 2x4  | codes, 4 bits  |
///
/// high bits: two for each point, the first of four lowest; codes: 16 weights each, low half first
///
/// w = d * (0.5 + code) * 0.25 * value
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockIq2S {
    d: Half,
    points: [u8; POINTS],
    signs: [u8; POINTS],
    high_bits: [u8; POINTS / 4],
    codes: [u8; SUBS / 2],
}

/// Factor of the block's variance in the error weights without importance.
const S_VARIANCE_SHARE: f32 = 0.25;

impl Block<BLOCK> for BlockIq2S {
    const TYPE: GgmlType = GgmlType::IQ2_S;

    #[inline(always)]
    fn quantize_row<V: Simd>(
        simd: V,
        weights: &[[f32; BLOCK]],
        importance: Option<&[[f32; BLOCK]]>,
        row: &mut [Self],
    ) {
        for (i, x, sum_of_squares) in with_squares(simd, weights) {
            let block = &mut row[i];
            let variance = 2.0 * sum_of_squares / BLOCK as f32;
            let errors = match importance {
                Some(importance) => weigh(x, &importance[i], variance),
                None => x.map(|v| S_VARIANCE_SHARE * variance + v * v),
            };
            let fit: Fit<2, SUBS> = S.fit::<V, 16, 2, CANDIDATES, SUBS>(
                simd,
                &S_PLAN,
                x,
                &errors,
                from_largest::<V, 16, LEVELS>,
            );
            *block = bytemuck::Zeroable::zeroed();
            block.signs = fit.signs;
            for (i, point) in fit.points.as_flattened().iter().enumerate() {
                block.points[i] = *point as u8;
                block.high_bits[i / 4] |= ((point >> 8) as u8) << (2 * (i % 4));
            }
            let Some((step, codes)) = grade(&fit.scales, LARGEST_SCALE, TOP_SCALE) else {
                continue;
            };
            block.d = Half::from_f32(step * S_CORRECTION);
            block.codes = pack_codes(codes);
        }
    }

    #[inline(always)]
    fn dequantize<V: Simd>(&self, simd: V, weights: &mut [f32; BLOCK]) {
        let d = self.d.to_f32();
        for (i, out) in weights.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = scale_of(d, code_at(&self.codes, i));
            let high_bits = u16::from(self.high_bits[i / 2] >> (4 * (i % 2)));
            for (g, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                let point = u16::from(self.points[2 * i + g]) | (high_bits >> (2 * g) & 0x03) << 8;
                *out = signed(
                    simd,
                    scale,
                    &S.values[usize::from(point)],
                    self.signs[2 * i + g],
                );
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Pointed for BlockIq2S {
    const SUB: usize = 16;

    fn points() -> Points {
        Points::Eight(S.eights())
    }

    fn scale(&self, sub: usize) -> f32 {
        scale_of(self.d.to_f32(), code_at(&self.codes, sub))
    }

    fn nudge(&mut self, sub: usize, [scale, _]: [i8; 2]) {
        nudge_code(&mut self.codes, sub, scale);
    }

    fn set_choices(&mut self, choices: &[Choice; POINTS]) {
        self.high_bits = [0; POINTS / 4];
        for (i, choice) in choices.iter().enumerate() {
            let [point, _] = choice.points;
            self.points[i] = point as u8;
            self.high_bits[i / 4] |= ((point >> 8) as u8) << (2 * (i % 4));
            self.signs[i] = choice.signs;
        }
    }
}
