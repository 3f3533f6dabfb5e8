//! From the checkpoint's numbers to f32, and from f32 to the output's, rounded as numpy and gguf-py
//! round.
//!
//! For numbers the block codecs do the very same; what differs are the bits of NaNs, most of which
//! numpy keeps.

use super::softplus::softplus;
use super::weights::Numeric;
use crate::format::safetensors::Dtype;
use crate::format::types::GgmlType;
use crate::quant::Codec;

/// Set in a bf16 NaN, it makes a quiet one of it.
const QUIET: u16 = 0x0040;
/// Bits of an f32 mantissa beyond those of a half.
const LOST_BITS: u32 = 13;

/// The tensor type with the same representation, if there is one.
pub(super) fn same_type(dtype: Dtype) -> Option<GgmlType> {
    match dtype {
        Dtype::F32 => Some(GgmlType::F32),
        Dtype::F16 => Some(GgmlType::F16),
        Dtype::Bf16 => Some(GgmlType::BF16),
        _ => None,
    }
}

/// Turns stored numbers into f32.
///
/// # Panics
/// If the lengths do not fit each other.
pub(super) fn widen(dtype: Dtype, raw: &[u8], out: &mut [f32]) {
    assert_eq!(raw.len(), out.len() * dtype.bytes(), "stored numbers");
    match dtype {
        Dtype::F32 => each(raw, out, f32::from_le_bytes),
        Dtype::F16 => widen_halves(raw, out),
        Dtype::Bf16 => each(raw, out, |bytes| {
            f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
        }),
        Dtype::F64 => each(raw, out, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::F8E4m3 => each(raw, out, |[byte]: [u8; 1]| E4M3[usize::from(byte)]),
        Dtype::F8E5m2 => {
            each(raw, out, |[byte]: [u8; 1]| {
                half::f16::from_bits(u16::from(byte) << 8).to_f32()
            });
        }
        Dtype::F8E8m0 => each(raw, out, |[byte]: [u8; 1]| e8m0(byte)),
        Dtype::I64 => each(raw, out, |bytes| i64::from_le_bytes(bytes) as f32),
        Dtype::I32 => each(raw, out, |bytes| i32::from_le_bytes(bytes) as f32),
        Dtype::I16 => each(raw, out, |bytes| i16::from_le_bytes(bytes).into()),
        Dtype::U64 => each(raw, out, |bytes| u64::from_le_bytes(bytes) as f32),
        Dtype::U32 => each(raw, out, |bytes| u32::from_le_bytes(bytes) as f32),
        Dtype::U16 => each(raw, out, |bytes| u16::from_le_bytes(bytes).into()),
        Dtype::I8 => each(raw, out, |bytes| i8::from_le_bytes(bytes).into()),
        Dtype::U8 => each(raw, out, |[byte]: [u8; 1]| byte.into()),
        Dtype::Bool => each(raw, out, |[byte]: [u8; 1]| f32::from(byte != 0)),
    }
}

/// Applies an operation to every number. Halves are rounded to halves again: PyTorch computes in the
/// checkpoint's type where that is f16.
pub(super) fn apply(numeric: Numeric, dtype: Dtype, weights: &mut [f32]) {
    for w in weights {
        *w = match numeric {
            Numeric::Plus(number) => *w + number,
            // Rounded once: to the nearest f32 in all but a few of a billion cases.
            Numeric::Exp => f64::from(*w).exp() as f32,
            Numeric::NegExp => -(f64::from(*w).exp() as f32),
            Numeric::Softplus => softplus(*w),
            Numeric::Times(factor) => *w * factor,
            Numeric::Zero => 0.0,
            // They depend on the other weights, or change none.
            Numeric::Ternary | Numeric::Centred | Numeric::Widen => *w,
        };
        if dtype == Dtype::F16 {
            *w = half::f16::from_f32(*w).to_f32();
        }
    }
}

/// Rounding to a checkpoint's type.
pub(super) fn rounding(dtype: Dtype) -> fn(f32) -> f32 {
    match dtype {
        Dtype::F16 => |x| half::f16::from_f32(x).to_f32(),
        Dtype::Bf16 => |x| half::bf16::from_f32(x).to_f32(),
        _ => |x| x,
    }
}

/// Makes weights ternary: the nearest of 0 and plus and minus `mean`, which is at least 1e-5. The
/// divisions are those of the model's own code.
pub(super) fn make_ternary(mean: f32, dtype: Dtype, weights: &mut [f32]) {
    const LEAST: f32 = 1e-5;
    let inverse = 1.0 / mean.max(LEAST);
    for w in weights {
        *w = (*w * inverse).round_ties_even().clamp(-1.0, 1.0) / inverse;
        if dtype == Dtype::F16 {
            *w = half::f16::from_f32(*w).to_f32();
        }
    }
}

/// Rounds rows to a tensor type.
///
/// # Panics
/// If the lengths do not fit each other or the type is none that a conversion writes.
pub(super) fn narrow(target: GgmlType, weights: &[f32], out: &mut [u8]) {
    if target == GgmlType::I64 {
        let numbers = weights.iter().zip(out.as_chunks_mut().0);
        numbers.for_each(|(number, out)| *out = (*number as i64).to_le_bytes());
        return;
    }
    let codec = Codec::of(target).expect("a type that weights are stored in");
    codec.quantize_row(weights, None, out);
    if weights.iter().fold(false, |any, w| any | w.is_nan()) {
        match target {
            GgmlType::F16 => fix_halves(weights, out),
            GgmlType::Q8_0 => fix_blocks(weights, out),
            GgmlType::TQ1_0 | GgmlType::TQ2_0 => fix_ternary(target, weights, out),
            _ => {}
        }
    }
}

/// Converts stored whole numbers to 32 bits.
///
/// # Errors
/// Index and value of the first number that does not fit, or is not whole.
///
/// # Panics
/// If the lengths do not fit each other.
pub(super) fn narrow_integers(
    dtype: Dtype,
    raw: &[u8],
    out: &mut [u8],
) -> Result<(), (usize, f32)> {
    let width = dtype.bytes();
    assert_eq!(
        raw.len() / width,
        out.len() / size_of::<i32>(),
        "stored numbers"
    );
    let numbers = raw
        .chunks_exact(width)
        .zip(out.as_chunks_mut().0)
        .enumerate();
    for (at, (bytes, out)) in numbers {
        let number = match integer(dtype, bytes).map(i32::try_from) {
            Some(Ok(number)) => number,
            _ => {
                let mut value = [0.0];
                widen(dtype, bytes, &mut value);
                return Err((at, value[0]));
            }
        };
        *out = number.to_le_bytes();
    }
    Ok(())
}

/// A stored whole number; None if it has more than 63 bits, or is a float.
pub(super) fn integer(dtype: Dtype, bytes: &[u8]) -> Option<i64> {
    match dtype {
        Dtype::I64 => Some(i64::from_le_bytes(bytes.try_into().ok()?)),
        Dtype::U64 => i64::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok(),
        Dtype::I32 => Some(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        Dtype::U32 => Some(u32::from_le_bytes(bytes.try_into().ok()?).into()),
        Dtype::I16 => Some(i16::from_le_bytes(bytes.try_into().ok()?).into()),
        Dtype::U16 => Some(u16::from_le_bytes(bytes.try_into().ok()?).into()),
        Dtype::I8 => Some(i8::from_le_bytes(bytes.try_into().ok()?).into()),
        Dtype::U8 => Some(u8::from_le_bytes(bytes.try_into().ok()?).into()),
        _ => None,
    }
}

/// Makes every NaN among bf16 numbers a quiet one, as their way through f32 would.
pub(super) fn quiet_bf16(raw: &mut [u8]) {
    for number in raw.as_chunks_mut().0 {
        let bits = u16::from_le_bytes(*number);
        *number = (bits | if is_nan_bf16(bits) { QUIET } else { 0 }).to_le_bytes();
    }
}

/// True if [`quiet_bf16`] would change nothing.
pub(super) fn is_quiet_bf16(raw: &[u8]) -> bool {
    let signals = |bits: u16| is_nan_bf16(bits) & (bits & QUIET == 0);
    !raw.as_chunks().0.iter().fold(false, |any, number| {
        any | signals(u16::from_le_bytes(*number))
    })
}

fn is_nan_bf16(bits: u16) -> bool {
    bits & 0x7fff > 0x7f80
}

fn each<const N: usize>(raw: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    for (bytes, x) in raw.as_chunks().0.iter().zip(out) {
        *x = number(*bytes);
    }
}

fn widen_halves(raw: &[u8], out: &mut [f32]) {
    let codec = Codec::of(GgmlType::F16).expect("a type that weights are stored in");
    codec.dequantize_row(raw, out);
    if out.iter().fold(false, |any, x| any | x.is_nan()) {
        for (bytes, x) in raw
            .as_chunks()
            .0
            .iter()
            .zip(out)
            .filter(|(_, x)| x.is_nan())
        {
            let bits = u32::from(u16::from_le_bytes(*bytes));
            *x = f32::from_bits(
                (bits & 0x8000) << 16 | f32::INFINITY.to_bits() | (bits & 0x03ff) << LOST_BITS,
            );
        }
    }
}

/// The bits of a NaN as a half: the upper bits of its mantissa, but never none.
fn half_of_nan(x: f32) -> u16 {
    let mantissa = (x.to_bits() & 0x007f_ffff) >> LOST_BITS;
    ((x.to_bits() >> 16 & 0x8000) | 0x7c00 | mantissa.max(1)) as u16
}

fn fix_halves(weights: &[f32], out: &mut [u8]) {
    for (x, half) in weights
        .iter()
        .zip(out.as_chunks_mut().0)
        .filter(|(x, _)| x.is_nan())
    {
        *half = half_of_nan(*x).to_le_bytes();
    }
}

/// A block with a NaN has a NaN for a scale, and zeros. Which NaN depends, in numpy, on the CPU's
/// vectors and on the place in the block; this is the one that vectors give.
fn fix_blocks(weights: &[f32], out: &mut [u8]) {
    const LEN: usize = 32;
    const BYTES: usize = 34;
    const SCALE: u16 = 0x7e00;
    for (x, block) in weights
        .as_chunks::<LEN>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<BYTES>().0)
    {
        if x.iter().any(|x| x.is_nan()) {
            *block = [0; BYTES];
            block[..2].copy_from_slice(&SCALE.to_le_bytes());
        }
    }
}

/// The same for ternary blocks: zeros, and behind them the scale.
fn fix_ternary(target: GgmlType, weights: &[f32], out: &mut [u8]) {
    const LEN: usize = 256;
    const SCALE: [u8; 2] = 0x7e00u16.to_le_bytes();
    let codec = Codec::of(target).expect("a type that weights are stored in");
    let mut zeros = vec![0; out.len() * LEN / weights.len()];
    codec.quantize_row(&[0.0; LEN], None, &mut zeros);
    let scale = zeros.len() - SCALE.len();
    zeros[scale..].copy_from_slice(&SCALE);
    let blocks = out.chunks_exact_mut(zeros.len());
    for (x, block) in weights.chunks_exact(LEN).zip(blocks) {
        if x.iter().any(|x| x.is_nan()) {
            block.copy_from_slice(&zeros);
        }
    }
}

/// The number of F8_E8M0, a power of two: an exponent with bias 127; the greatest one is no number.
fn e8m0(byte: u8) -> f32 {
    /// 2^-127, which is subnormal in f32.
    const SMALLEST: u32 = 0x0040_0000;
    match byte {
        0 => f32::from_bits(SMALLEST),
        0xff => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// The numbers of F8_E4M3: a sign, four bits of exponent with bias 7, three of mantissa; no
/// infinities.
static E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte as usize] = e4m3(byte);
        byte += 1;
    }
    table
};

const fn e4m3(byte: u32) -> f32 {
    /// PyTorch's result for the one NaN.
    const NAN: u32 = 0x7ff0_0000;
    /// 2^-9, the last place of numbers without an exponent.
    const SMALLEST: f32 = 1.0 / 512.0;
    let sign = (byte & 0x80) << 24;
    let (exponent, mantissa) = (byte >> 3 & 15, byte & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => NAN,
        (0, _) => (mantissa as f32 * SMALLEST).to_bits(),
        _ => (exponent + 127 - 7) << 23 | mantissa << 20,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_are_the_formats() {
        let values = [
            (0x00, 0.0),
            (0x01, 1.0 / 512.0),
            (0x08, 1.0 / 64.0),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xc0, -2.0),
        ];
        for (byte, value) in values {
            assert_eq!(E4M3[byte], value, "{byte:#x}");
        }
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        let mut out = [0.0; 3];
        widen(Dtype::F8E5m2, &[0x3c, 0x7b, 0x01], &mut out);
        assert_eq!(out, [1.0, 57344.0, 1.0 / 65536.0]);
    }

    #[test]
    fn whole_numbers_are_narrowed_without_loss() {
        let raw: Vec<u8> = [7i64, -1, 1 << 30]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        let mut out = [0; 12];
        assert_eq!(narrow_integers(Dtype::I64, &raw, &mut out), Ok(()));
        let numbers = out
            .as_chunks()
            .0
            .iter()
            .map(|bytes| i32::from_le_bytes(*bytes));
        assert_eq!(numbers.collect::<Vec<_>>(), [7, -1, 1 << 30]);
        let mut out = [0; 8];
        let raw: Vec<u8> = [5i64, 1 << 31]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        let beyond = narrow_integers(Dtype::I64, &raw, &mut out);
        assert_eq!(beyond, Err((1, 2_147_483_648.0)));
        let float = narrow_integers(Dtype::F32, &1.5f32.to_le_bytes(), &mut out[..4]);
        assert_eq!(float, Err((0, 1.5)));
        assert_eq!(integer(Dtype::U64, &u64::MAX.to_le_bytes()), None);
    }

    #[test]
    fn operations_are_rounded_to_the_checkpoints_type() {
        let applied = |numeric, dtype, weight: f32| {
            let mut weights = [weight];
            apply(numeric, dtype, &mut weights);
            weights[0]
        };
        let e = std::f32::consts::E;
        assert_eq!(applied(Numeric::NegExp, Dtype::F32, 1.0), -e);
        assert_eq!(applied(Numeric::Exp, Dtype::F32, 1.0), e);
        assert_eq!(applied(Numeric::NegExp, Dtype::Bf16, 0.0), -1.0);
        assert_eq!(applied(Numeric::NegExp, Dtype::F16, 1.0), -2.71875);
        assert_eq!(applied(Numeric::NegExp, Dtype::F32, f32::NEG_INFINITY), 0.0);
        // 2049 is no half; the nearest even one is 2048.
        assert_eq!(applied(Numeric::Plus(1.0), Dtype::F32, 2048.0), 2049.0);
        assert_eq!(applied(Numeric::Plus(1.0), Dtype::F16, 2048.0), 2048.0);
    }

    #[test]
    fn ternary_weights_are_the_nearest_ones() {
        let mut weights = [0.3, -0.26, 0.25, -0.0, 9.0, -1e-9];
        make_ternary(0.5, Dtype::F32, &mut weights);
        assert_eq!(weights, [0.5, -0.5, 0.0, 0.0, 0.5, 0.0]);
        assert!(weights[3].is_sign_negative());
        let mut zeros = [0.0; 2];
        make_ternary(0.0, Dtype::F32, &mut zeros);
        assert_eq!(zeros, [0.0; 2]);
        // 1/3 is no half.
        let mut weights = [1.0];
        make_ternary(1.0 / 3.0, Dtype::F16, &mut weights);
        assert_eq!(weights, [0.333_251_95]);
    }

    /// Bits taken from numpy 2.2 on the same inputs.
    #[test]
    fn nans_keep_the_bits_that_numpy_keeps() {
        let nans = [
            0x7f80_0001,
            0x7fc0_0000,
            0xffc1_2345,
            0x7fff_ffff,
            0x7f80_2000,
            0xff80_0001,
        ]
        .map(f32::from_bits);
        let mut halves = [0; 12];
        narrow(GgmlType::F16, &nans, &mut halves);
        let bits: Vec<_> = halves
            .as_chunks()
            .0
            .iter()
            .map(|b| u16::from_le_bytes(*b))
            .collect();
        assert_eq!(bits, [0x7c01, 0x7e00, 0xfe09, 0x7fff, 0x7c01, 0xfc01]);

        let mut wide = [0.0; 4];
        widen(
            Dtype::F16,
            &[0x01, 0x7c, 0x00, 0x7e, 0x55, 0xfe, 0x01, 0xfc],
            &mut wide,
        );
        assert_eq!(
            wide.map(f32::to_bits),
            [0x7f80_2000, 0x7fc0_0000, 0xffca_a000, 0xff80_2000]
        );

        let mut bf16 = [0x81, 0x7f, 0xc0, 0x7f, 0x81, 0xff, 0x80, 0x7f];
        assert!(!is_quiet_bf16(&bf16));
        quiet_bf16(&mut bf16);
        assert_eq!(bf16, [0xc1, 0x7f, 0xc0, 0x7f, 0xc1, 0xff, 0x80, 0x7f]);
        assert!(is_quiet_bf16(&bf16));
    }

    #[test]
    fn a_block_with_a_nan_is_zeros_under_a_nan() {
        let mut weights = [1.0; 32];
        weights[3] = f32::from_bits(0xffc1_2345);
        let mut block = [9; 34];
        narrow(GgmlType::Q8_0, &weights, &mut block);
        assert_eq!(
            (&block[..2], &block[2..]),
            (&[0x00, 0x7e][..], &[0; 32][..])
        );
    }
}
