//! Four-bit floats (E2M1: sign, two exponent bits, one mantissa bit) with a small scale.
//!
//! E2M1 numbers are stored doubled, as integers, and scales halved.

use super::feedback::{Grid, Stepped, Table};
use super::lossless::Solvable;
use super::num::{floor_log2, largest_magnitude, nudged};
use super::planes;
use super::{Block, Fault};
use crate::simd::Simd;
use crate::types::GgmlType;

/// E2M1 numbers by code, doubled.
const NUMBERS: [f32; 16] = [
    0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.,
];
/// Midpoints between magnitudes.
const MIDDLES: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5., 7., 10.];
/// Sign bit of a code.
const SIGN: u8 = 8;

/// 32 E2M1 numbers and a power of two (OCP microscaling): `w = 2^(e - 128) * q`, `q` being doubled.
///
/// ```text
/// byte 0   1                               17
///      | e | q0,q16  q1,q17  ...  q15,q31  |   low nibble first
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockMxfp4 {
    e: u8,
    qs: [u8; 16],
}

impl Block<32> for BlockMxfp4 {
    const TYPE: GgmlType = GgmlType::MXFP4;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        _: S,
        weights: &[[f32; 32]],
        _importance: Option<&[[f32; 32]]>,
        row: &mut [Self],
    ) {
        /// The exponent of E2M1's largest number, 6 = 1.5 * 2^2.
        const LARGEST_EXPONENT: i32 = 2;
        const BIAS: i32 = 127;
        for (x, block) in weights.iter().zip(row) {
            let amax = largest_magnitude(x);
            block.e = if amax > 0.0 && amax.is_finite() {
                // An exponent below the byte's range wraps around, as in the reference.
                (floor_log2(amax) - LARGEST_EXPONENT + BIAS) as u8
            } else {
                0
            };
            block.qs = pack(&nearest_codes(x, amax, half_power_of_two(block.e)));
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut [f32; 32]) {
        planes::looked_up(
            simd,
            &self.qs,
            numbers(simd),
            half_power_of_two(self.e),
            weights,
        );
    }

    fn fault(&self) -> Option<Fault> {
        (self.e == 0xff).then_some(Fault::BadExponent)
    }
}

/// 64 E2M1 numbers, with a scale of eight bits (UE4M3, an FP8 without sign) for every 16: `w = d *
/// q`, `q` being doubled and `d` halved.
///
/// ```text
/// byte 0             4                                       36
///      | d0 d1 d2 d3 | q0,q8 .. q7,q15 | q16,q24 .. | .. | .. |   low nibble first
/// ```
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct BlockNvfp4 {
    d: [u8; 4],
    qs: [[u8; 8]; 4],
}

impl Block<64> for BlockNvfp4 {
    const TYPE: GgmlType = GgmlType::NVFP4;

    #[inline(always)]
    fn quantize_row<S: Simd>(
        _: S,
        weights: &[[f32; 64]],
        _importance: Option<&[[f32; 64]]>,
        row: &mut [Self],
    ) {
        /// The largest E2M1 number, to which the largest magnitude is mapped.
        const LARGEST: f32 = 6.0;
        for (x, block) in weights.iter().zip(row) {
            for (s, x) in x.as_chunks::<16>().0.iter().enumerate() {
                let amax = largest_magnitude(x);
                block.d[s] = to_ue4m3(amax / LARGEST);
                block.qs[s] = pack(&nearest_codes(x, amax, half_ue4m3(block.d[s])));
            }
        }
    }

    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut [f32; 64]) {
        for (s, out) in weights.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            planes::looked_up(simd, &self.qs[s], numbers(simd), half_ue4m3(self.d[s]), out);
        }
    }

    fn fault(&self) -> Option<Fault> {
        None
    }
}

/// [`NUMBERS`] by size.
static TABLE: Table = Table::new(&NUMBERS);

impl Stepped<32> for BlockMxfp4 {
    const SUB: usize = 32;
    const GRID: Grid = Grid::Table(&TABLE);
    const TRIES: &'static [[i8; 2]] = &[[0, 0], [-1, 0], [1, 0]];

    fn step(&self, _: usize) -> f32 {
        half_power_of_two(self.e)
    }

    fn nudge(&mut self, _: usize, [scale, _]: [i8; 2]) {
        self.e = nudged(self.e, scale, 0xfe);
    }

    fn set_levels(&mut self, levels: &[u8; 32]) {
        self.qs = pack(levels);
    }
}

impl Solvable<32> for BlockMxfp4 {
    const STEP_BITS: i32 = 1;

    fn set_scale(&mut self, _: usize, step: f32, _offset: f32) {
        let exponent = (0..0xff).find(|e| half_power_of_two(*e) == step);
        self.e = exponent.unwrap_or(0);
    }
}

impl Stepped<64> for BlockNvfp4 {
    const SUB: usize = 16;
    const GRID: Grid = Grid::Table(&TABLE);
    const TRIES: &'static [[i8; 2]] = &[[0, 0], [-1, 0], [1, 0], [-2, 0], [2, 0]];

    fn step(&self, sub: usize) -> f32 {
        half_ue4m3(self.d[sub])
    }

    fn nudge(&mut self, sub: usize, [scale, _]: [i8; 2]) {
        self.d[sub] = nudged(self.d[sub], scale, 0x7e);
    }

    fn set_levels(&mut self, levels: &[u8; 64]) {
        for (qs, levels) in self.qs.iter_mut().zip(levels.as_chunks::<16>().0) {
            *qs = pack(levels);
        }
    }
}

impl Solvable<64> for BlockNvfp4 {
    /// Three of them are stored.
    const STEP_BITS: i32 = 4;

    fn set_scale(&mut self, sub: usize, step: f32, _offset: f32) {
        let code = (0..0x7f).find(|code| half_ue4m3(*code) == step);
        self.d[sub] = code.unwrap_or(0);
    }
}

/// Codes of the numbers with the least difference to `x / step` in f32, the first (the smaller) of
/// equals; `amax` is the largest magnitude.
///
/// Only magnitudes are compared: a number of the opposite sign is never nearer than 0.
#[inline]
fn nearest_codes<const N: usize>(x: &[f32; N], amax: f32, step: f32) -> [u8; N] {
    /// Up to here, in steps, f32 distinguishes all differences, and those near a midpoint are
    /// exact.
    const EXACT: f32 = 16.0;
    let codes = if amax <= EXACT * step {
        let middles = MIDDLES.map(|m| m * step);
        x.map(|v| {
            middles
                .iter()
                .map(|&middle| u8::from(v.abs() > middle))
                .sum()
        })
    } else {
        // The scale was clamped: differences to distant numbers are equal.
        x.map(|v| least_difference(v.abs(), step))
    };
    std::array::from_fn(|i| {
        if x[i] < 0.0 && codes[i] > 0 {
            codes[i] | SIGN
        } else {
            codes[i]
        }
    })
}

fn least_difference(magnitude: f32, step: f32) -> u8 {
    let (mut code, mut least) = (0, magnitude);
    for (other, number) in (0..SIGN).zip(NUMBERS) {
        let difference = (number * step - magnitude).abs();
        if difference < least {
            (code, least) = (other, difference);
        }
    }
    code
}

/// Codes `j` and `j + BYTES` share byte `j`.
#[inline]
fn pack<const N: usize, const BYTES: usize>(codes: &[u8; N]) -> [u8; BYTES] {
    planes::pack::<4, BYTES, _, _>(codes, 0)
}

/// The halves of [`NUMBERS`].
#[inline(always)]
fn numbers<S: Simd>(simd: S) -> [S::F32; 2] {
    let [low, high] = bytemuck::cast::<_, [[f32; 8]; 2]>(NUMBERS);
    [simd.load(&low), simd.load(&high)]
}

/// Half of the E8M0 number `2^(e - 127)`, also for e = 255, which is NaN in E8M0 but has this value
/// in ggml.
#[inline]
fn half_power_of_two(e: u8) -> f32 {
    /// 2^-128, like 2^-127 a subnormal number.
    const SMALLEST: u32 = 0x0020_0000;
    f32::from_bits(if e < 2 {
        SMALLEST << e
    } else {
        (u32::from(e) - 1) << 23
    })
}

/// Half of a UE4M3 number: four exponent bits (bias 7) and three mantissa bits. The sign bit is
/// ignored; 0x7f is NaN in FP8, but 0 in ggml.
#[inline]
fn half_ue4m3(code: u8) -> f32 {
    /// 2^-10, half of the smallest subnormal number.
    const SMALLEST: f32 = 1.0 / 1024.0;
    /// Converts the exponent of a halved UE4M3 number to that of an f32.
    const BIAS: u32 = 127 - 7 - 1;
    let (exponent, mantissa) = (u32::from(code >> 3 & 0x0f), u32::from(code & 7));
    match (code, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa as f32 * SMALLEST,
        _ => f32::from_bits((exponent + BIAS) << 23 | mantissa << 20),
    }
}

/// The UE4M3 number nearest to `x` with ggml's rounding: ties away from zero, non-positive numbers
/// to 0, numbers from 256 on (the largest exponent) to the largest number, 448.
#[inline]
fn to_ue4m3(x: f32) -> u8 {
    const LARGEST: f32 = 448.0;
    const LARGEST_CODE: u8 = 0x7e;
    /// The first code with the largest exponent.
    const LARGEST_EXPONENT: u8 = 0x78;
    /// Smaller UE4M3 numbers are subnormal, with steps of 2^-9.
    const SMALLEST_NORMAL: f32 = 1.0 / 64.0;
    const STEPS: f32 = 512.0;
    /// Difference of the exponent biases, above three mantissa bits and the rounding bit.
    const BIAS: u32 = (127 - 7) << 4;
    if x.is_nan() || x <= 0.0 {
        return 0;
    }
    if x < SMALLEST_NORMAL {
        // Not rounded up to the smallest normal number.
        return ((x * STEPS + 0.5) as u8).min(7);
    }
    // Rounding carries into the exponent where necessary.
    let rounded = ((x.min(LARGEST).to_bits() >> 19) - BIAS).div_ceil(2) as u8;
    if rounded >= LARGEST_EXPONENT {
        LARGEST_CODE
    } else {
        rounded
    }
}
