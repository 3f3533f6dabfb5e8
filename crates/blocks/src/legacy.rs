//! ggml's oldest types: blocks of 32 weights with one scale, and offset if any.
//!
//! Q4_0 and Q5_0 are one algorithm with 16 and 32 levels around zero, Q4_1 and Q5_1 one with 16 and
//! 32 levels above an offset.

use super::feedback::{Grid, Stepped};
use super::lossless::Solvable;
use super::num::{HALF_BITS, Half, inverse_or_zero, max, round_ints};
use super::planes;
use super::search::{
    Measure, VECTORS, WITH_IMPORTANCE, affine, bounds, eight, extreme, levels_of_inverse,
    side_by_side, sum_of_squares, symmetric, weigh, weigh_lanes,
};
use super::{Block, Fault};
use crate::simd::{LANES, Simd};
use crate::types::GgmlType;

/// Weights per block of all types in this file.
const LEN: usize = 32;
type Weights = [f32; LEN];
type Levels = [u8; LEN];
/// Candidates of error feedback: changes of the scale in 32nds; and of scale and offset, the latter
/// in quarters of a step.
const HALF_TRIES: &[[i8; 2]] = &[[0, 0], [-1, 0], [1, 0], [-2, 0], [2, 0]];
const OFFSET_TRIES: &[[i8; 2]] = &[[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1], [-1, 1], [1, -1]];

/// Scale and offset, slightly changed.
fn nudged_offset(d: Half, m: Half, [scale, offset]: [i8; 2]) -> (Half, Half) {
    let moved = match offset {
        0 => m,
        n => Half::from_f32(m.to_f32() + d.to_f32() * f32::from(n) / 4.0),
    };
    (d.nudged(scale), moved)
}

/// Blocks searched in parallel.
const TOGETHER: usize = VECTORS * LANES;

/// 32 signed bytes and a scale: `w = d * q`.
///
/// ```text
/// byte 0   2                       34
///      | d | q0 q1 q2 ...     q31  |
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ8_0 {
    d: Half,
    qs: [i8; LEN],
}

impl Block<LEN> for BlockQ8_0 {
    const TYPE: GgmlType = GgmlType::Q8_0;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        simd: S,
        weights: &[Weights],
        _importance: Option<&[Weights]>,
        row: &mut [Self],
    ) {
        for (blocks, row) in weights.chunks(LANES).zip(row.chunks_mut(LANES)) {
            let d = largest_magnitudes(simd, blocks) / simd.splat(127.0);
            let zero = simd.splat(0.0);
            let inverses = simd.store(simd.select(simd.eq(d, zero), zero, simd.splat(1.0) / d));
            let d = simd.store(d);
            for (lane, (x, block)) in blocks.iter().zip(row).enumerate() {
                let mut levels = [[0; LANES]; LEN / LANES];
                for (levels, x) in levels.iter_mut().zip(x.as_chunks().0) {
                    *levels =
                        simd.store_u8(round_ints(simd, simd.load(x) * simd.splat(inverses[lane])));
                }
                *block = BlockQ8_0 {
                    d: Half::from_f32(d[lane]),
                    qs: bytemuck::cast(levels),
                };
            }
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut Weights) {
        let d = simd.splat(self.d.to_f32());
        for (w, q) in weights
            .as_chunks_mut()
            .0
            .iter_mut()
            .zip(self.qs.as_chunks().0)
        {
            *w = simd.store(simd.to_f32(simd.load_i8(q)) * d);
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Stepped<LEN> for BlockQ8_0 {
    const SUB: usize = LEN;
    /// From -127, as in ggml.
    const GRID: Grid = Grid::Even { top: 254 };
    const ZERO: f32 = 127.0;
    const TRIES: &'static [[i8; 2]] = &[[0, 0]];

    fn step(&self, _: usize) -> f32 {
        self.d.to_f32()
    }

    fn nudge(&mut self, _: usize, [scale, _]: [i8; 2]) {
        self.d = self.d.nudged(scale);
    }

    fn set_levels(&mut self, levels: &Levels) {
        self.qs = levels.map(|level| level.wrapping_sub(127) as i8);
    }
}

impl Solvable<LEN> for BlockQ8_0 {
    const STEP_BITS: i32 = HALF_BITS;

    fn set_scale(&mut self, _: usize, step: f32, _offset: f32) {
        self.d = Half::from_f32(step);
    }
}

/// The largest magnitude in each of up to eight blocks, by comparisons from first to last: a NaN
/// resets it.
#[inline(always)]
fn largest_magnitudes<S: Simd>(simd: S, blocks: &[Weights]) -> S::F32 {
    // As integers, magnitudes have the same order, and NaN exceeds all of them.
    let mut largest = [simd.splat(0.0); LANES];
    for (largest, x) in largest.iter_mut().zip(eight(blocks)) {
        let mut bits = simd.splat_i32(0);
        for x in x.as_chunks().0 {
            bits = simd.max_i32(bits, simd.bits(simd.abs(simd.load(x))));
        }
        *largest = simd.of_bits(bits);
    }
    let mut bits = simd.splat_i32(0);
    for largest in simd.transpose(largest) {
        bits = simd.max_i32(bits, simd.bits(largest));
    }
    let largest = simd.of_bits(bits);
    if simd.all(simd.eq(largest, largest)) {
        return largest;
    }
    let mut serial = [0.0; LANES];
    for (largest, x) in serial.iter_mut().zip(blocks) {
        *largest = x.iter().fold(0.0, |largest, v| max(largest, v.abs()));
    }
    simd.load(&serial)
}

/// 4-bit levels around zero: `w = d * (q - 8)`.
///
/// ```text
/// byte 0   2                               18
///      | d | q0,q16  q1,q17  ...  q15,q31  |   low nibble first
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4_0 {
    d: Half,
    qs: [u8; LEN / 2],
}

impl Block<LEN> for BlockQ4_0 {
    const TYPE: GgmlType = GgmlType::Q4_0;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        simd: S,
        weights: &[Weights],
        importance: Option<&[Weights]>,
        row: &mut [Self],
    ) {
        signed_row::<_, _, 8>(simd, weights, importance, row, |d, levels| BlockQ4_0 {
            d: Half::from_f32(d),
            qs: planes::pack::<4, 16, _, _>(levels, 0),
        });
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut Weights) {
        signed_weights::<_, 8>(simd, self.d, &levels(simd, &self.qs, None), weights);
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Stepped<LEN> for BlockQ4_0 {
    const SUB: usize = LEN;
    const GRID: Grid = Grid::Even { top: 15 };
    const ZERO: f32 = 8.0;
    const TRIES: &'static [[i8; 2]] = HALF_TRIES;

    fn step(&self, _: usize) -> f32 {
        self.d.to_f32()
    }

    fn nudge(&mut self, _: usize, [scale, _]: [i8; 2]) {
        self.d = self.d.nudged(scale);
    }

    fn set_levels(&mut self, levels: &Levels) {
        self.qs = planes::pack::<4, 16, _, _>(levels, 0);
    }
}

impl Solvable<LEN> for BlockQ4_0 {
    const STEP_BITS: i32 = HALF_BITS;
    const HAS_NEGATIVE_STEPS: bool = true;

    fn set_scale(&mut self, _: usize, step: f32, _offset: f32) {
        self.d = Half::from_f32(step);
    }
}

/// 5-bit levels around zero: `w = d * (q - 16)`.
///
/// ```text
/// byte 0   2    6                               22
///      | d | qh | q0,q16  q1,q17  ...  q15,q31  |   low four bits, low nibble first
///            bit i: the fifth bit of qi
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5_0 {
    d: Half,
    qh: [u8; 4],
    qs: [u8; LEN / 2],
}

impl Block<LEN> for BlockQ5_0 {
    const TYPE: GgmlType = GgmlType::Q5_0;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        simd: S,
        weights: &[Weights],
        importance: Option<&[Weights]>,
        row: &mut [Self],
    ) {
        signed_row::<_, _, 16>(simd, weights, importance, row, |d, levels| BlockQ5_0 {
            d: Half::from_f32(d),
            qh: fifth_bits(levels),
            qs: planes::pack::<4, 16, _, _>(levels, 0),
        });
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut Weights) {
        signed_weights::<_, 16>(
            simd,
            self.d,
            &levels(simd, &self.qs, Some(self.qh)),
            weights,
        );
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault()
    }
}

impl Stepped<LEN> for BlockQ5_0 {
    const SUB: usize = LEN;
    const GRID: Grid = Grid::Even { top: 31 };
    const ZERO: f32 = 16.0;
    const TRIES: &'static [[i8; 2]] = HALF_TRIES;

    fn step(&self, _: usize) -> f32 {
        self.d.to_f32()
    }

    fn nudge(&mut self, _: usize, [scale, _]: [i8; 2]) {
        self.d = self.d.nudged(scale);
    }

    fn set_levels(&mut self, levels: &Levels) {
        self.qh = fifth_bits(levels);
        self.qs = planes::pack::<4, 16, _, _>(levels, 0);
    }
}

impl Solvable<LEN> for BlockQ5_0 {
    const STEP_BITS: i32 = HALF_BITS;
    const HAS_NEGATIVE_STEPS: bool = true;

    fn set_scale(&mut self, _: usize, step: f32, _offset: f32) {
        self.d = Half::from_f32(step);
    }
}

/// 4-bit levels above an offset: `w = d * q + m`.
///
/// ```text
/// byte 0   2   4                               20
///      | d | m | q0,q16  q1,q17  ...  q15,q31  |   low nibble first
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ4_1 {
    d: Half,
    m: Half,
    qs: [u8; LEN / 2],
}

impl Block<LEN> for BlockQ4_1 {
    const TYPE: GgmlType = GgmlType::Q4_1;

    #[inline(always)]
    fn quantize_row<I: Simd>(
        simd: I,
        weights: &[Weights],
        importance: Option<&[Weights]>,
        row: &mut [Self],
    ) {
        offset_row::<I, _, 15>(simd, weights, importance, row, |d, m, levels| BlockQ4_1 {
            d: Half::from_f32(d),
            m: Half::from_f32(m),
            qs: planes::pack::<4, 16, _, _>(levels, 0),
        });
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut Weights) {
        offset_weights(simd, self.d, self.m, &levels(simd, &self.qs, None), weights);
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault().or(self.m.fault())
    }
}

impl Stepped<LEN> for BlockQ4_1 {
    const SUB: usize = LEN;
    const GRID: Grid = Grid::Even { top: 15 };
    const TRIES: &'static [[i8; 2]] = OFFSET_TRIES;

    fn step(&self, _: usize) -> f32 {
        self.d.to_f32()
    }

    fn base(&self, _: usize) -> f32 {
        self.m.to_f32()
    }

    fn nudge(&mut self, _: usize, change: [i8; 2]) {
        (self.d, self.m) = nudged_offset(self.d, self.m, change);
    }

    fn set_levels(&mut self, levels: &Levels) {
        self.qs = planes::pack::<4, 16, _, _>(levels, 0);
    }
}

impl Solvable<LEN> for BlockQ4_1 {
    const STEP_BITS: i32 = HALF_BITS;
    const HAS_OFFSET: bool = true;

    fn set_scale(&mut self, _: usize, step: f32, offset: f32) {
        (self.d, self.m) = (Half::from_f32(step), Half::from_f32(offset));
    }
}

/// 5-bit levels above an offset: `w = d * q + m`.
///
/// ```text
/// byte 0   2   4    8                               24
///      | d | m | qh | q0,q16  q1,q17  ...  q15,q31  |   low four bits, low nibble first
///                bit i: the fifth bit of qi
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockQ5_1 {
    d: Half,
    m: Half,
    qh: [u8; 4],
    qs: [u8; LEN / 2],
}

impl Block<LEN> for BlockQ5_1 {
    const TYPE: GgmlType = GgmlType::Q5_1;

    #[inline(always)]
    fn quantize_row<I: Simd>(
        simd: I,
        weights: &[Weights],
        importance: Option<&[Weights]>,
        row: &mut [Self],
    ) {
        offset_row::<I, _, 31>(simd, weights, importance, row, |d, m, levels| BlockQ5_1 {
            d: Half::from_f32(d),
            m: Half::from_f32(m),
            qh: fifth_bits(levels),
            qs: planes::pack::<4, 16, _, _>(levels, 0),
        });
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut Weights) {
        offset_weights(
            simd,
            self.d,
            self.m,
            &levels(simd, &self.qs, Some(self.qh)),
            weights,
        );
    }

    fn fault(&self) -> Option<Fault> {
        self.d.fault().or(self.m.fault())
    }
}

impl Stepped<LEN> for BlockQ5_1 {
    const SUB: usize = LEN;
    const GRID: Grid = Grid::Even { top: 31 };
    const TRIES: &'static [[i8; 2]] = OFFSET_TRIES;

    fn step(&self, _: usize) -> f32 {
        self.d.to_f32()
    }

    fn base(&self, _: usize) -> f32 {
        self.m.to_f32()
    }

    fn nudge(&mut self, _: usize, change: [i8; 2]) {
        (self.d, self.m) = nudged_offset(self.d, self.m, change);
    }

    fn set_levels(&mut self, levels: &Levels) {
        self.qh = fifth_bits(levels);
        self.qs = planes::pack::<4, 16, _, _>(levels, 0);
    }
}

impl Solvable<LEN> for BlockQ5_1 {
    const STEP_BITS: i32 = HALF_BITS;
    const HAS_OFFSET: bool = true;

    fn set_scale(&mut self, _: usize, step: f32, offset: f32) {
        (self.d, self.m) = (Half::from_f32(step), Half::from_f32(offset));
    }
}

/// Quantizes a row to `2 * HALF` levels around zero; `pack` makes a block from scale and levels.
#[inline(always)]
fn signed_row<S: Simd, B, const HALF: i32>(
    simd: S,
    weights: &[Weights],
    importance: Option<&[Weights]>,
    row: &mut [B],
    pack: impl Fn(f32, &Levels) -> B,
) {
    if let Some(importance) = importance {
        let variance = simd.splat(mean_square(weights));
        let groups = weights.chunks(LANES).zip(importance.chunks(LANES));
        for ((blocks, importance), row) in groups.zip(row.chunks_mut(LANES)) {
            let (x, mut w) = (simd.gather(eight(blocks)), simd.gather(eight(importance)));
            for (w, &x) in w.iter_mut().zip(&x) {
                *w = weigh_lanes(simd, x, *w, variance);
            }
            let fit = symmetric::<S, LEN, HALF>(simd, &x, &w);
            let (scales, inverses) = (simd.store(fit.scale), simd.store(fit.inverse));
            for (lane, (x, block)) in blocks.iter().zip(row).enumerate() {
                let levels = levels_of_inverse::<S, LEN, HALF>(simd, x, inverses[lane]);
                *block = pack(scales[lane], &levels);
            }
        }
    } else {
        for (x, block) in weights.iter().zip(row) {
            // The extreme weight becomes level 0.
            let d = extreme(x) / -HALF as f32;
            let inverse = simd.splat(inverse_or_zero(d));
            // One addition both centres and rounds.
            let centre = simd.splat(HALF as f32 + 0.5);
            let mut levels = [0; LEN];
            for (levels, x) in levels.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
                *levels = level_bytes(simd, simd.load(x) * inverse + centre, 2 * HALF - 1);
            }
            *block = pack(d, &levels);
        }
    }
}

/// Quantizes a row to levels `0 ..= MAX` above an offset; `pack` makes a block from scale, offset
/// and levels.
#[inline(always)]
fn offset_row<I: Simd, B, const MAX: i32>(
    simd: I,
    weights: &[Weights],
    importance: Option<&[Weights]>,
    row: &mut [B],
    pack: impl Fn(f32, f32, &Levels) -> B,
) {
    if let Some(importance) = importance {
        let variance = mean_square(weights);
        let parts = weights
            .chunks(TOGETHER)
            .zip(importance.chunks(TOGETHER))
            .zip(row.chunks_mut(TOGETHER));
        for ((x, importance), row) in parts {
            let mut errors = [[0.0; LEN]; TOGETHER];
            for ((errors, x), importance) in errors.iter_mut().zip(x).zip(importance) {
                *errors = weigh(x, importance, variance);
            }
            let (lanes, errors) = (
                side_by_side(simd, x, 0),
                side_by_side(simd, &errors[..x.len()], 0),
            );
            let found = affine::<I, LEN, VECTORS, MAX>(
                simd,
                &lanes,
                &errors,
                WITH_IMPORTANCE,
                Measure::Square,
            );
            let (mut scales, mut lows) = ([[0.0; LANES]; VECTORS], [[0.0; LANES]; VECTORS]);
            for v in 0..VECTORS {
                (scales[v], lows[v]) = (simd.store(found.scale[v]), simd.store(found.low[v]));
            }
            let origins = found.origins(simd);
            for (i, (x, block)) in x.iter().zip(row).enumerate() {
                let levels = origins.as_flattened()[i].levels::<LEN, MAX>(x);
                *block = pack(scales.as_flattened()[i], lows.as_flattened()[i], &levels);
            }
        }
    } else {
        for (x, block) in weights.iter().zip(row) {
            let (mut low, high) = bounds(x, f32::MAX, -f32::MAX);
            if low == 0.0 {
                // Keep the sign of the first zero.
                low = x.iter().copied().find(|v| *v == 0.0).unwrap_or(low);
            }
            let d = (high - low) / MAX as f32;
            let (inverse, half) = (simd.splat(inverse_or_zero(d)), simd.splat(0.5));
            let mut levels = [0; LEN];
            for (levels, x) in levels.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
                *levels = level_bytes(simd, (simd.load(x) - simd.splat(low)) * inverse + half, MAX);
            }
            *block = pack(d, low, &levels);
        }
    }
}

/// Mean square of a row.
fn mean_square(row: &[Weights]) -> f32 {
    let row = row.as_flattened();
    sum_of_squares(row) / row.len() as f32
}

/// Levels from multiples of the step. These are from 0 to below `top + 1`, or infinite or NaN for a
/// scale that overflowed or vanished: C's conversion then gives 0.
#[inline(always)]
fn level_bytes<S: Simd>(simd: S, steps: S::F32, top: i32) -> [u8; LANES] {
    let finite = simd.select(
        simd.lt(steps, simd.splat(top as f32 + 2.0)),
        steps,
        simd.splat(0.0),
    );
    simd.store_u8(simd.min_i32(simd.trunc(finite), simd.splat_i32(top)))
}

#[inline]
fn fifth_bits(levels: &Levels) -> [u8; 4] {
    /// The lowest bit of every byte.
    const LOWEST: u64 = 0x0101_0101_0101_0101;
    /// Multiplication by it moves the lowest bit of byte `i` to bit `56 + i`, without other bits
    /// above bit 55.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let mut bits = [0; 4];
    for (bits, eight) in bits.iter_mut().zip(levels.as_chunks().0) {
        *bits = ((u64::from_le_bytes(*eight) >> 4 & LOWEST).wrapping_mul(GATHER) >> 56) as u8;
    }
    bits
}

/// The levels of a block, with the fifth bits if any.
#[inline(always)]
fn levels<S: Simd>(
    simd: S,
    qs: &[u8; LEN / 2],
    fifth_bits: Option<[u8; 4]>,
) -> [S::I32; LEN / LANES] {
    let [first, second] = [0, 1].map(|half| qs.as_chunks().0[half]);
    let ([l0, l2], [l1, l3]) = (
        planes::nibbles(simd, &first),
        planes::nibbles(simd, &second),
    );
    let mut levels = [l0, l1, l2, l3];
    if let Some(fifth_bits) = fifth_bits {
        let (fifth, none) = (simd.splat_i32(16), simd.splat_i32(0));
        for (levels, bits) in levels.iter_mut().zip(fifth_bits) {
            *levels = simd.or(*levels, simd.select_i32(simd.lanes_of(bits), fifth, none));
        }
    }
    levels
}

#[inline(always)]
fn signed_weights<S: Simd, const HALF: i32>(
    simd: S,
    d: Half,
    levels: &[S::I32; LEN / LANES],
    weights: &mut Weights,
) {
    let (d, half) = (simd.splat(d.to_f32()), simd.splat_i32(HALF));
    for (w, &l) in weights.as_chunks_mut().0.iter_mut().zip(levels) {
        *w = simd.store(simd.to_f32(l - half) * d);
    }
}

#[inline(always)]
fn offset_weights<S: Simd>(
    simd: S,
    d: Half,
    m: Half,
    levels: &[S::I32; LEN / LANES],
    weights: &mut Weights,
) {
    let (d, m) = (simd.splat(d.to_f32()), simd.splat(m.to_f32()));
    for (w, &l) in weights.as_chunks_mut().0.iter_mut().zip(levels) {
        *w = simd.store(simd.to_f32(l) * d + m);
    }
}
