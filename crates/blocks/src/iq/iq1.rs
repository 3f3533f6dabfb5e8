//! Ternary codebook types: eight weights of -1, 0 or 1 per point, all shifted up or down by an
//! eighth.

use super::ternary::{BOOK, MINUS, PLUS, SHIFT, Search, Sub, Sums, TRITS, eights};
use super::{BLOCK, error_weights, grade, sum_of_squares, weigh};
use crate::feedback::{Choice, Pointed, Points};
use crate::num::{Half, nudged};
use crate::simd::{LANES, Simd};
use crate::types::GgmlType;
use crate::{Block, Fault};

/// Points per block.
const POINTS: usize = BLOCK / 8;
/// Weights per scale of IQ1_S.
const S_SUB: usize = 32;
/// Weights per scale of IQ1_M.
const M_SUB: usize = 16;
/// Scales per block of IQ1_S.
const S_SUBS: usize = BLOCK / S_SUB;
/// Scales per block of IQ1_M.
const M_SUBS: usize = BLOCK / M_SUB;

/// The largest scale of a block is stored as this many steps.
const LARGEST_SCALE: f32 = 15.0;
/// The highest code of a scale, in three bits.
const TOP_SCALE: u8 = 7;
/// ggml's empirical correction of the block scale of IQ1_S.
const S_CORRECTION: f32 = 1.125;
/// ggml's empirical correction of the block scale of IQ1_M.
const M_CORRECTION: f32 = 1.1125;
/// ggml treats a sub-block of IQ1_S as zero below this magnitude.
const S_LEAST: f32 = 1.0e-12;
/// ggml treats a sub-block of IQ1_M as zero below this magnitude.
const M_LEAST: f32 = 1.0e-7;

/// Eight columns from `from` on.
#[inline(always)]
fn lanes<V: Simd>(simd: V, columns: &[f32], from: usize) -> V::F32 {
    simd.load(
        columns[from..]
            .first_chunk()
            .expect("columns reach beyond the last boundary"),
    )
}

/// Values of a point's weights in units of the scale.
#[inline(always)]
fn shifted<V: Simd>(simd: V, point: u16, minus: bool) -> V::F32 {
    let shift = if minus { MINUS[1] } else { PLUS[1] };
    simd.to_f32(simd.load_i8(&TRITS[usize::from(point)])) + simd.splat(shift)
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
pub(crate) struct BlockIq1S {
    d: Half,
    points: [[u8; S_SUB / 8]; S_SUBS],
    words: [[u8; 2]; S_SUBS],
}

/// IQ1_S: a whole sub-block is shifted up or down.
pub(super) struct OneShift;

/// Columns for the boundaries of a sub-block of IQ1_S, up to eight after the last one.
const S_COLUMNS: usize = S_SUB + LANES;

/// Terms of the sums of IQ1_S.
pub(super) struct OneShiftParts {
    /// Running sums of (weight * x) and of the weights.
    x: [f32; S_COLUMNS],
    w: [f32; S_COLUMNS],
    /// By shift: terms of the weights above a boundary.
    x_above: [[f32; S_COLUMNS]; 2],
    w_above: [[f32; S_COLUMNS]; 2],
}

impl Search<S_SUB, 4, 2> for OneShift {
    const LEAST: f32 = S_LEAST;
    type Parts = OneShiftParts;

    fn shifted_down(choice: usize, _group: usize) -> bool {
        choice == 1
    }

    #[inline(always)]
    fn parts<V: Simd>(simd: V, sub: &Sub<4>) -> OneShiftParts {
        let [[x, w]] = sub.running::<1, S_SUB, S_COLUMNS>();
        let (mut x_above, mut w_above) = ([[0.0; S_COLUMNS]; 2], [[0.0; S_COLUMNS]; 2]);
        for (shift, v) in [PLUS[2], MINUS[2]].into_iter().enumerate() {
            let v = simd.splat(v);
            for at in (0..S_COLUMNS).step_by(LANES) {
                let x3 = simd.splat(x[S_SUB]) - lanes(simd, &x, at);
                let w3 = simd.splat(w[S_SUB]) - lanes(simd, &w, at);
                x_above[shift][at..][..LANES].copy_from_slice(&simd.store(x3 * v));
                w_above[shift][at..][..LANES].copy_from_slice(&simd.store(w3 * v * v));
            }
        }
        OneShiftParts {
            x,
            w,
            x_above,
            w_above,
        }
    }

    #[inline(always)]
    fn sums<V: Simd>(simd: V, parts: &OneShiftParts, first: usize, last: usize) -> Sums<V, 2> {
        let below = |v: f32| {
            (
                simd.splat(parts.x[first] * v),
                simd.splat(parts.w[first] * v * v),
            )
        };
        let ((x_plus, w_plus), (x_minus, w_minus)) = (below(PLUS[0]), below(MINUS[0]));
        // Values between the boundaries equal the shift: only the sign differs.
        let shift = simd.splat(PLUS[1]);
        let x = (lanes(simd, &parts.x, last) - simd.splat(parts.x[first])) * shift;
        let w = (lanes(simd, &parts.w, last) - simd.splat(parts.w[first])) * shift * shift;
        let ([x3_plus, x3_minus], [w3_plus, w3_minus]) = (&parts.x_above, &parts.w_above);
        Sums {
            qx: [
                x_plus + x + lanes(simd, x3_plus, last),
                x_minus - x + lanes(simd, x3_minus, last),
            ],
            qq: [
                w_plus + w + lanes(simd, w3_plus, last),
                w_minus + w + lanes(simd, w3_minus, last),
            ],
        }
    }
}

impl Block<BLOCK> for BlockIq1S {
    const TYPE: GgmlType = GgmlType::IQ1_S;
    const NEEDS_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        simd: S,
        weights: &[[f32; BLOCK]],
        importance: Option<&[[f32; BLOCK]]>,
        row: &mut [Self],
    ) {
        let importance = importance.expect("IQ1_S needs importance weights");
        let map = BOOK.map();
        for ((x, importance), block) in weights.iter().zip(importance).zip(row) {
            let errors = weigh(x, importance, 2.0 * sum_of_squares(x) / BLOCK as f32);
            let fit = OneShift::fit::<S, S_SUBS>(simd, map, x, &errors);
            *block = bytemuck::Zeroable::zeroed();
            block.points = fit.points.map(|points| points.map(|p| p as u8));
            let grades = grade(&fit.scales, LARGEST_SCALE, TOP_SCALE);
            if let Some((step, _)) = grades {
                block.d = Half::from_f32(step * S_CORRECTION);
            }
            for (i, word) in block.words.iter_mut().enumerate() {
                let high = fit.points[i]
                    .iter()
                    .rev()
                    .fold(0, |word, p| word << 3 | p >> 8);
                // Codes and shifts stay zero when the block scale is zero.
                let top = grades.map_or(0, |(_, codes)| {
                    u16::from(codes[i]) | (fit.choices[i] as u16) << 3
                });
                *word = (high | top << 12).to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut [f32; BLOCK]) {
        let d = self.d.to_f32();
        for ((out, points), word) in weights
            .as_chunks_mut::<S_SUB>()
            .0
            .iter_mut()
            .zip(&self.points)
            .zip(self.words)
        {
            let word = u16::from_le_bytes(word);
            let scale = d * f32::from(2 * (word >> 12 & 7) + 1);
            for (g, (out, &low)) in out
                .as_chunks_mut::<8>()
                .0
                .iter_mut()
                .zip(points)
                .enumerate()
            {
                let point = u16::from(low) | (word >> (3 * g) & 7) << 8;
                *out = simd.store(simd.splat(scale) * shifted(simd, point, word >> 15 == 1));
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Pointed for BlockIq1S {
    const SUB: usize = S_SUB;
    const TRIES: &'static [[i8; 2]] = &[[0, 0], [0, 1], [-1, 0], [1, 0]];

    fn points() -> Points {
        Points::Shifted(eights(), SHIFT)
    }

    fn scale(&self, sub: usize) -> f32 {
        self.d.to_f32() * f32::from(2 * (self.words[sub][1] >> 4 & 7) + 1)
    }

    fn down(&self, sub: usize) -> bool {
        self.words[sub][1] >> 7 == 1
    }

    fn nudge(&mut self, sub: usize, [scale, turn]: [i8; 2]) {
        let byte = &mut self.words[sub][1];
        let code = nudged(*byte >> 4 & 7, scale, TOP_SCALE);
        *byte = (*byte & 0x8f | code << 4) ^ u8::from(turn != 0) << 7;
    }

    fn set_choices(&mut self, choices: &[Choice; POINTS]) {
        for (i, choices) in choices.as_chunks::<4>().0.iter().enumerate() {
            self.points[i] = choices.map(|choice| choice.points[0] as u8);
            let high = choices
                .iter()
                .rev()
                .fold(0, |word, choice| word << 3 | choice.points[0] >> 8);
            self.words[i] = (u16::from_le_bytes(self.words[i]) & 0xf000 | high).to_le_bytes();
        }
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
pub(crate) struct BlockIq1M {
    points: [u8; POINTS],
    halves: [u8; POINTS / 2],
    words: [[u8; 2]; 4],
}

/// IQ1_M: each half of a sub-block is shifted up or down. Bit 1 of the choice is the first half's.
struct TwoShifts;

/// Columns for the boundaries of a sub-block of IQ1_M, up to eight after the last one.
const M_COLUMNS: usize = M_SUB + LANES;

/// Terms of the sums of one half of IQ1_M.
///
/// Neighbouring values differ by one, so the sum over all three parts is that of the greatest
/// value, minus one for each boundary that a weight is below. Squares have other differences.
#[derive(Clone, Copy, Default)]
struct Part {
    /// Running sums of (weight * x), and by shift the total if all weights had the greatest value.
    x: [f32; M_COLUMNS],
    x_all: [f32; 2],
    /// By shift: the contributions to the sum of (weight * value * value) of all weights and those
    /// below the first boundary, and of those below the second.
    w_first: [[f32; M_COLUMNS]; 2],
    w_last: [[f32; M_COLUMNS]; 2],
}

impl Search<M_SUB, 2, 4> for TwoShifts {
    const LEAST: f32 = M_LEAST;
    type Parts = [Part; 2];

    fn shifted_down(choice: usize, group: usize) -> bool {
        choice >> (1 - group) & 1 == 1
    }

    #[inline(always)]
    fn parts<V: Simd>(_: V, sub: &Sub<2>) -> [Part; 2] {
        let mut parts = [Part::default(); 2];
        for (part, [x, w]) in parts.iter_mut().zip(sub.running::<2, M_SUB, M_COLUMNS>()) {
            part.x = x;
            for (shift, v) in [PLUS, MINUS].iter().enumerate() {
                part.x_all[shift] = x[M_SUB] * v[2];
                let w_all = w[M_SUB] * v[2] * v[2];
                for ((first, last), w) in part.w_first[shift]
                    .iter_mut()
                    .zip(&mut part.w_last[shift])
                    .zip(&w)
                {
                    *first = w_all + w * (v[0] * v[0] - v[1] * v[1]);
                    *last = w * (v[1] * v[1] - v[2] * v[2]);
                }
            }
        }
        parts
    }

    #[inline(always)]
    fn sums<V: Simd>(simd: V, parts: &[Part; 2], first: usize, last: usize) -> Sums<V, 4> {
        // By half and shift.
        let (mut x, mut w) = ([[simd.splat(0.0); 2]; 2], [[simd.splat(0.0); 2]; 2]);
        for (half, parts) in parts.iter().enumerate() {
            let below = simd.splat(parts.x[first]) + lanes(simd, &parts.x, last);
            for shift in 0..2 {
                x[half][shift] = simd.splat(parts.x_all[shift]) - below;
                w[half][shift] = simd.splat(parts.w_first[shift][first])
                    + lanes(simd, &parts.w_last[shift], last);
            }
        }
        let ([x0, x1], [w0, w1]) = (x, w);
        Sums {
            qx: [x0[0] + x1[0], x0[0] + x1[1], x0[1] + x1[0], x0[1] + x1[1]],
            qq: [w0[0] + w1[0], w0[0] + w1[1], w0[1] + w1[0], w0[1] + w1[1]],
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
    fn quantize_row<S: Simd>(
        simd: S,
        weights: &[[f32; BLOCK]],
        importance: Option<&[[f32; BLOCK]]>,
        row: &mut [Self],
    ) {
        let map = BOOK.map();
        for (i, (x, block)) in weights.iter().zip(row).enumerate() {
            let errors = error_weights(x, importance.map(|w| &w[i]), sum_of_squares(x));
            let fit = TwoShifts::fit::<S, M_SUBS>(simd, map, x, &errors);
            *block = bytemuck::Zeroable::zeroed();
            block.points = bytemuck::cast(fit.points.map(|points| points.map(|p| p as u8)));
            block.halves = fit.points.map(|[p0, p1]| (p0 >> 8 | p1 >> 8 << 4) as u8);
            // Codes and shifts stay zero when the block scale is zero.
            let Some((step, codes)) = grade(&fit.scales, LARGEST_SCALE, TOP_SCALE) else {
                continue;
            };
            for (half, choice) in block.halves.iter_mut().zip(fit.choices) {
                let down = |group| u8::from(TwoShifts::shifted_down(choice, group));
                *half |= down(0) << 3 | down(1) << 7;
            }

            // The block scale is refitted to all weights at their final codes.
            let (mut qx, mut qq) = (0.0, 0.0);
            let groups = x.as_chunks::<8>().0.iter().zip(errors.as_chunks::<8>().0);
            for (g, (x, errors)) in groups.enumerate() {
                let (sub, group) = (g / 2, g % 2);
                let minus = TwoShifts::shifted_down(fit.choices[sub], group);
                let q = shifted(simd, fit.points[sub][group], minus)
                    * simd.splat(f32::from(2 * codes[sub] + 1));
                let wq = simd.load(errors) * q;
                let (x_terms, q_terms) = (simd.store(wq * simd.load(x)), simd.store(wq * q));
                for i in 0..8 {
                    qx += x_terms[i];
                    qq += q_terms[i];
                }
            }
            let refitted = if qq > 0.0 && !step.is_nan() {
                qx / qq
            } else {
                step
            };
            let d = Half::from_f32(refitted * M_CORRECTION).to_bits();
            for (i, word) in block.words.iter_mut().enumerate() {
                let codes = codes[4 * i..][..4]
                    .iter()
                    .rev()
                    .fold(0, |word, &code| word << 3 | u16::from(code));
                *word = (codes | (d >> (4 * i) & 0x0f) << 12).to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut [f32; BLOCK]) {
        let d = self.d().to_f32();
        let subs = weights
            .as_chunks_mut::<M_SUB>()
            .0
            .iter_mut()
            .zip(self.points.as_chunks::<2>().0);
        for (i, ((out, points), &halves)) in subs.zip(&self.halves).enumerate() {
            let code = u16::from_le_bytes(self.words[i / 4]) >> (3 * (i % 4)) & 7;
            let scale = simd.splat(d * f32::from(2 * code + 1));
            for (g, (out, &low)) in out.as_chunks_mut().0.iter_mut().zip(points).enumerate() {
                let half = u16::from(halves >> (4 * g));
                let point = u16::from(low) | (half & 7) << 8;
                *out = simd.store(scale * shifted(simd, point, half >> 3 & 1 == 1));
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d().fault()
    }
}

impl Pointed for BlockIq1M {
    const SUB: usize = M_SUB;
    const SHIFTS_GROUPS: bool = true;

    fn points() -> Points {
        Points::Shifted(eights(), SHIFT)
    }

    fn scale(&self, sub: usize) -> f32 {
        self.d().to_f32()
            * f32::from(2 * (u16::from_le_bytes(self.words[sub / 4]) >> (3 * (sub % 4)) & 7) + 1)
    }

    fn nudge(&mut self, sub: usize, [scale, _]: [i8; 2]) {
        let (word, shift) = (u16::from_le_bytes(self.words[sub / 4]), 3 * (sub % 4));
        let code = u16::from(nudged((word >> shift & 7) as u8, scale, TOP_SCALE));
        self.words[sub / 4] = (word & !(7 << shift) | code << shift).to_le_bytes();
    }

    fn set_choices(&mut self, choices: &[Choice; POINTS]) {
        for (i, pair) in choices.as_chunks::<2>().0.iter().enumerate() {
            let half = |choice: &Choice| (choice.points[0] >> 8) as u8 | u8::from(choice.down) << 3;
            self.points[2 * i..][..2].copy_from_slice(&pair.map(|choice| choice.points[0] as u8));
            self.halves[i] = half(&pair[0]) | half(&pair[1]) << 4;
        }
    }
}
