//! Four-bit levels that lie closer together around zero, where most weights are.
//!
//! IQ4_NL has a scale for each block of 32 weights, IQ4_XS one for 256 and a six-bit factor for each 32.

use super::num::{Half, inverse_or_zero, nearest_int};
use super::planes;
use super::search::{Best, Scores, VANISHING, extreme, score, sum_of_squares, weigh};
use super::{Block, Fault};
use crate::format::types::GgmlType;
use crate::simd::Simd;

/// The sixteen levels.
const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Weights under one factor.
const SUB: usize = 32;
type Sub = [f32; SUB];

/// 32 nonlinear levels and a scale: `w = d * LEVELS[q]`.
///
/// ```text
/// byte 0   2                               18
///      | d | q0,q16  q1,q17  ...  q15,q31  |   low nibble first
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq4Nl {
    d: Half,
    qs: [u8; SUB / 2],
}

impl Block<SUB> for BlockIq4Nl {
    const TYPE: GgmlType = GgmlType::IQ4_NL;

    #[inline(always)]
    fn quantize_row<S: Simd>(_: S, weights: &[Sub], importance: Option<&[Sub]>, row: &mut [Self]) {
        for (i, (x, block)) in weights.iter().zip(row).enumerate() {
            let w = sub_weights(x, importance.map(|w| (&w[i], twice_mean_square(x))));
            let d = best_scale(x, &w);
            let inverse = inverse_or_zero(d);
            *block = BlockIq4Nl { d: Half::from_f32(d), qs: pack(x, inverse) };
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, weights: &mut Sub) {
        unpack(&self.qs, self.d.to_f32(), weights);
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

/// 256 nonlinear levels, a scale, and eight factors from -32 to 31: `w = d * (s - 32) * LEVELS[q]`.
///
/// ```text
/// byte 0   2    4      8                                           136
///      | d | sh | sl   | q0,q16 .. q15,q31 | q32,q48 .. | ..  | ..  |   low nibble first
///            |    s0,s1  s2,s3 ..: low four bits
///            bits 2i, 2i+1: the high two bits of si
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq4Xs {
    d: Half,
    scales_high: [u8; 2],
    scales_low: [u8; 4],
    qs: [[u8; SUB / 2]; 8],
}

/// Half the range of the factors.
const FACTORS: i32 = 32;

impl Block<256> for BlockIq4Xs {
    const TYPE: GgmlType = GgmlType::IQ4_XS;

    #[inline(always)]
    fn quantize_row<S: Simd>(_: S, weights: &[[f32; 256]], importance: Option<&[[f32; 256]]>, row: &mut [Self]) {
        for (i, (x, block)) in weights.iter().zip(row).enumerate() {
            let subs: &[Sub; 8] = bytemuck::cast_ref(x);
            let importance: Option<&[Sub; 8]> = importance.map(|w| bytemuck::cast_ref(&w[i]));
            let variance = twice_mean_square(x);
            let scales: [f32; 8] = std::array::from_fn(|s| {
                best_scale(&subs[s], &sub_weights(&subs[s], importance.map(|w| (&w[s], variance))))
            });

            // The largest scale gets the factor -32, the one without a counterpart.
            let d = -extreme(&scales) / FACTORS as f32;
            let inverse = inverse_or_zero(d);
            let (mut low, mut high) = ([0; 8], 0u16);
            for s in 0..8 {
                let factor = nearest_int(inverse * scales[s]).clamp(-FACTORS, FACTORS - 1);
                block.qs[s] = pack(&subs[s], inverse_or_zero(d * factor as f32));
                let code = (factor + FACTORS) as u8;
                low[s] = code & 0x0f;
                high |= u16::from(code >> 4) << (2 * s);
            }
            block.d = Half::from_f32(d);
            block.scales_low = std::array::from_fn(|j| low[2 * j] | low[2 * j + 1] << 4);
            block.scales_high = high.to_le_bytes();
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, _: S, weights: &mut [f32; 256]) {
        let d = self.d.to_f32();
        let high = u16::from_le_bytes(self.scales_high);
        for (s, out) in weights.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
            let low = self.scales_low[s / 2] >> (4 * (s % 2)) & 0x0f;
            let code = i32::from(low) | i32::from(high >> (2 * s) & 3) << 4;
            unpack(&self.qs[s], d * (code - FACTORS) as f32, out);
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

/// The `variance` by which importance weighs errors.
#[inline]
fn twice_mean_square(x: &[f32]) -> f32 {
    sum_of_squares(x) * (2.0 / x.len() as f32)
}

/// Error weights: by importance, or by the squares of the weights themselves.
#[inline]
fn sub_weights(x: &Sub, importance: Option<(&Sub, f32)>) -> Sub {
    match importance {
        Some((importance, variance)) => weigh(x, importance, variance),
        None => x.map(|v| v * v),
    }
}

/// ggml tries these many levels more or less for the extreme weight.
const TRIES: [f32; 15] = [-7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.];

/// The scale of least weighted error among those that put the extreme weight near the lowest level.
fn best_scale(x: &Sub, w: &Sub) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < VANISHING {
        return 0.0;
    }
    let lowest = f32::from(LEVELS[0]);
    let mut inverse = [1.0 / (-extreme / lowest); 1 + TRIES.len()];
    for (inverse, t) in inverse[1..].iter_mut().zip(TRIES) {
        *inverse = (t + lowest) / extreme;
    }
    let Scores { wxl, wll } = score(x, w, &inverse, nearest_value, |w, x, l| w * l * x);
    let mut best = Best::new(if wll[0] > 0.0 { wxl[0] / wll[0] } else { 0.0 }, wxl[0]);
    for c in 1..inverse.len() {
        best.offer(wxl[c], wll[c]);
    }
    best.scale
}

/// Halfway between two levels. That is a half-integer, near which the differences that the reference compares are
/// exact, so that a comparison with it picks the same level, ties upwards and NaN to the top.
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (LEVELS[i] as f32 + LEVELS[i + 1] as f32) / 2.0;
        i += 1;
    }
    middles
};

/// Number of the level nearest to `x`.
#[inline]
fn nearest_level(x: f32) -> u32 {
    MIDDLES.iter().map(|&middle| u32::from(x >= middle || x.is_nan())).sum()
}

/// The level nearest to `x`. All sums are integers, hence exact.
#[inline]
fn nearest_value(x: f32) -> f32 {
    let mut value = f32::from(LEVELS[0]);
    for (i, &middle) in MIDDLES.iter().enumerate() {
        value += if x < middle { 0.0 } else { f32::from(LEVELS[i + 1]) - f32::from(LEVELS[i]) };
    }
    value
}

#[inline]
fn pack(x: &Sub, inverse: f32) -> [u8; SUB / 2] {
    planes::pack::<4, 16, _, _>(&x.map(|v| nearest_level(inverse * v) as u8), 0)
}

#[inline]
fn unpack(qs: &[u8; SUB / 2], d: f32, weights: &mut Sub) {
    let mut levels = [0; SUB];
    planes::unpack::<4, 16, _, _>(qs, 0, &mut levels);
    for (w, &level) in weights.iter_mut().zip(&levels) {
        *w = d * f32::from(LEVELS[usize::from(level)]);
    }
}
