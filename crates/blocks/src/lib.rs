//! Block formats: rows of f32 weights to the bytes of a ggml tensor type, and back.
//!
//! The bytes are those of the reference's `ggml_quantize_chunk`: plain IEEE f32 arithmetic, sums in
//! source order, no fused multiply-add, on every CPU. [`Codec::of`] returns the functions of a
//! [`GgmlType`].
//!
//! # Quantize and dequantize rows
//!
//! ```
//! use quantier_blocks::{Codec, types::GgmlType};
//!
//! let weights: Vec<f32> = (0..512).map(|i| (i as f32 * 0.37).sin()).collect();
//! let codec = Codec::of(GgmlType::Q4_K).unwrap();
//!
//! let mut row = vec![0; 2 * GgmlType::Q4_K.block_bytes()];
//! codec.quantize_row(&weights, None, &mut row);
//!
//! let mut back = vec![0.0; weights.len()];
//! codec.dequantize_row(&row, &mut back);
//! assert!(weights.iter().zip(&back).all(|(w, b)| (w - b).abs() < 0.1));
//! ```
//!
//! # With importance weights
//!
//! One weight per column: the mean square of the linear's input, from an importance matrix. Types
//! with [`Codec::needs_importance`] require them.
//!
//! ```
//! use quantier_blocks::{Codec, types::GgmlType};
//!
//! let weights: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin()).collect();
//! let importance: Vec<f32> = (0..256).map(|i| 1.0 + (i % 7) as f32).collect();
//! let codec = Codec::of(GgmlType::IQ2_XXS).unwrap();
//! assert!(codec.needs_importance);
//!
//! let mut row = vec![0; GgmlType::IQ2_XXS.block_bytes()];
//! codec.quantize_row(&weights, Some(&importance), &mut row);
//! ```
//!
//! # Validate blocks
//!
//! ```
//! use quantier_blocks::{Codec, Fault, types::GgmlType};
//!
//! let codec = Codec::of(GgmlType::Q8_0).unwrap();
//! let mut blocks = vec![0; 3 * GgmlType::Q8_0.block_bytes()];
//! assert_eq!(codec.first_fault(&blocks), None);
//!
//! // The scale of the second block becomes the f16 NaN.
//! blocks[34..36].copy_from_slice(&[0x00, 0x7e]);
//! assert_eq!(codec.first_fault(&blocks), Some((1, Fault::NaN)));
//! ```

// Loops over lanes index several arrays.
#![allow(clippy::needless_range_loop)]
#![warn(missing_docs, unreachable_pub)]

pub mod feedback;
mod float;
mod fp4;
mod halves;
mod iq;
mod iq4;
mod k;
mod legacy;
mod lossless;
mod low;
mod num;
mod planes;
mod search;
pub mod simd;
mod ternary;
pub mod types;
pub mod vector;

use crate::simd::{Isa, Kernel, Simd};
use crate::types::GgmlType;

/// A block of `N` weights, in ggml's memory layout: one struct per type.
///
/// All fields are bytes (alignment 1), so that a row of a file is a slice of blocks without a copy.
pub(crate) trait Block<const N: usize>: bytemuck::Pod {
    /// The tensor type of the block.
    const TYPE: GgmlType;
    /// True if the reference refuses to quantize to this type without importance weights.
    const NEEDS_IMPORTANCE: bool = false;

    /// Quantizes one row: `weights` and `importance` have one array per block of `row`. The result
    /// does not depend on `simd`.
    fn quantize_row<S: Simd>(
        simd: S,
        weights: &[[f32; N]],
        importance: Option<&[[f32; N]]>,
        row: &mut [Self],
    );

    /// Dequantizes the block with the instructions of `simd`.
    fn dequantize<S: Simd>(&self, simd: S, weights: &mut [f32; N]);

    /// The fault of the block, by the rules of the reference's `ggml_validate_row_data`.
    fn fault(&self) -> Option<Fault>;
}

/// Fault of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A NaN scale (or plain number).
    NaN,
    /// An infinite scale (or plain number).
    Infinite,
    /// The E8M0 exponent 0xFF, which is NaN.
    BadExponent,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fault::NaN => "a value that is not a number (NaN)",
            Fault::Infinite => "an infinite value",
            Fault::BadExponent => "the exponent 0xff, which stands for no number",
        })
    }
}

/// [`Codec::quantize_row_with`] of one type.
type QuantizeRow = fn(Isa, &[f32], Option<&[f32]>, &mut [u8]);

/// The row functions of one tensor type.
pub struct Codec {
    /// The tensor type.
    pub ggml_type: GgmlType,
    /// True if quantizing requires importance weights, as in the reference.
    pub needs_importance: bool,
    quantize: QuantizeRow,
    dequantize: fn(Isa, &[u8], &mut [f32]),
    first_fault: fn(&[u8]) -> Option<(usize, Fault)>,
    /// Error feedback, for types with levels to choose.
    round_eight: Option<feedback::RoundEight>,
    descend: Option<feedback::Descend>,
    has_codebook: bool,
    /// New codes within the scales, for the same types.
    recode: Option<feedback::Recode>,
    code_steps: Option<feedback::Steps>,
    /// For types whose scales can be solved for.
    encode_lossless: Option<lossless::EncodeLossless>,
}

static CODECS: &[Codec] = &[
    Codec::solvable::<legacy::BlockQ8_0, 32>(),
    Codec::stepped::<k::BlockQ2K, 256>(),
    Codec::stepped::<k::BlockQ3K, 256>(),
    Codec::stepped::<k::BlockQ4K, 256>(),
    Codec::stepped::<k::BlockQ5K, 256>(),
    Codec::stepped::<k::BlockQ6K, 256>(),
    Codec::new::<float::BlockF32, 1>(),
    Codec::new::<float::BlockF16, 1>(),
    Codec::new::<float::BlockBf16, 1>(),
    Codec::solvable::<legacy::BlockQ4_0, 32>(),
    Codec::solvable::<legacy::BlockQ4_1, 32>(),
    Codec::solvable::<legacy::BlockQ5_0, 32>(),
    Codec::solvable::<legacy::BlockQ5_1, 32>(),
    Codec::solvable::<low::BlockQ1_0, 128>(),
    Codec::solvable::<low::BlockQ2_0, 64>(),
    Codec::solvable::<ternary::BlockTq1_0, 256>(),
    Codec::solvable::<ternary::BlockTq2_0, 256>(),
    Codec::solvable::<fp4::BlockMxfp4, 32>(),
    Codec::solvable::<fp4::BlockNvfp4, 64>(),
    Codec::stepped::<iq4::BlockIq4Nl, 32>(),
    Codec::stepped::<iq4::BlockIq4Xs, 256>(),
    Codec::pointed::<iq::BlockIq1S>(),
    Codec::pointed::<iq::BlockIq1M>(),
    Codec::pointed::<iq::BlockIq2Xxs>(),
    Codec::pointed::<iq::BlockIq2Xs>(),
    Codec::pointed::<iq::BlockIq2S>(),
    Codec::pointed::<iq::BlockIq3Xxs>(),
    Codec::pointed::<iq::BlockIq3S>(),
];

impl Codec {
    const fn new<B: Block<N>, const N: usize>() -> Codec {
        Codec {
            ggml_type: B::TYPE,
            needs_importance: B::NEEDS_IMPORTANCE,
            quantize: quantize_row::<B, N>,
            dequantize: dequantize_row::<B, N>,
            first_fault: first_fault::<B, N>,
            round_eight: None,
            descend: None,
            has_codebook: false,
            recode: None,
            code_steps: None,
            encode_lossless: None,
        }
    }

    const fn stepped<B: feedback::Stepped<N>, const N: usize>() -> Codec {
        Codec {
            round_eight: Some(feedback::round_stepped::<B, N>),
            descend: Some(feedback::descend_stepped::<B, N>),
            recode: Some(feedback::recode_stepped::<B, N>),
            code_steps: Some(feedback::steps_stepped::<B, N>),
            ..Codec::new::<B, N>()
        }
    }

    const fn solvable<B: lossless::Solvable<N>, const N: usize>() -> Codec {
        Codec {
            encode_lossless: Some(lossless::encode::<B, N>),
            ..Codec::stepped::<B, N>()
        }
    }

    const fn pointed<B: feedback::Pointed>() -> Codec {
        Codec {
            round_eight: Some(feedback::round_pointed::<B>),
            descend: Some(feedback::descend_pointed::<B>),
            has_codebook: true,
            recode: Some(feedback::recode_pointed::<B>),
            code_steps: Some(feedback::steps_pointed::<B>),
            ..Codec::new::<B, 256>()
        }
    }

    /// The codec of a type; `None` for types without model weights (integers, f64, q8_1, q8_K).
    pub fn of(ggml_type: GgmlType) -> Option<&'static Codec> {
        CODECS.iter().find(|codec| codec.ggml_type == ggml_type)
    }

    /// All types with a codec.
    pub fn all() -> &'static [Codec] {
        CODECS
    }

    /// Quantizes one row of `weights`, `[columns]`, into `row`, [`GgmlType::row_bytes`] bytes, with
    /// importance weights, `[columns]`, or none.
    ///
    /// # Panics
    /// If the row is not whole blocks, lengths do not match, or importance weights are missing
    /// where [`Codec::needs_importance`] is set.
    pub fn quantize_row(&self, weights: &[f32], importance: Option<&[f32]>, row: &mut [u8]) {
        self.quantize_row_with(Isa::best(), weights, importance, row);
    }

    /// [`Codec::quantize_row`] with an instruction set, without effect on the result.
    ///
    /// # Panics
    /// As [`Codec::quantize_row`].
    pub fn quantize_row_with(
        &self,
        isa: Isa,
        weights: &[f32],
        importance: Option<&[f32]>,
        row: &mut [u8],
    ) {
        assert!(
            importance.is_none_or(|w| w.len() == weights.len()),
            "importance weights do not fit the row"
        );
        assert!(
            importance.is_some() || !self.needs_importance,
            "{} needs importance weights",
            self.ggml_type
        );
        assert_eq!(
            self.ggml_type.row_bytes(weights.len() as u64),
            Some(row.len() as u64),
            "row length"
        );
        (self.quantize)(isa, weights, importance, row);
    }

    /// Encodes a row whose weights the type holds without loss: they lie on the grid of its blocks,
    /// up to the rounding of the checkpoint's own precision. `false` if some do not, with `row` of no
    /// use; `None` if the type's scales cannot be solved for (K, IQ and float types).
    ///
    /// # Panics
    /// If the row is not whole blocks, or the lengths do not fit each other.
    pub fn encode_lossless(&self, weights: &[f32], row: &mut [u8]) -> Option<bool> {
        assert_eq!(
            self.ggml_type.row_bytes(weights.len() as u64),
            Some(row.len() as u64),
            "row length"
        );
        Some(self.encode_lossless?(weights, row))
    }

    /// True if rows can be rounded with error feedback, for every type with levels to choose.
    pub fn takes_feedback(&self) -> bool {
        self.round_eight.is_some()
    }

    /// True if the weights of a group are a point of a codebook.
    pub fn has_codebook(&self) -> bool {
        self.has_codebook
    }

    /// Rounds a block of eight rows with error feedback: `weights` is `[8, block_len]`, `blocks` is
    /// `[8, block_bytes]`. On return, `weights` holds the errors for compensation in later columns:
    /// each weight before its own rounding, minus its rounded value.
    ///
    /// # Panics
    /// If the type does not support error feedback, or lengths do not match.
    pub fn round_eight(
        &self,
        coupling: feedback::Coupling<'_>,
        weights: &mut [f32],
        blocks: &mut [u8],
    ) {
        let len = self.ggml_type.block_len();
        assert!(
            weights.len() == 8 * len && blocks.len() == 8 * self.ggml_type.block_bytes(),
            "a block of eight rows"
        );
        assert!(
            coupling.costs.len() >= len && coupling.groups.len() * 8 >= len,
            "the factors do not fit the block"
        );
        let round = self
            .round_eight
            .expect("types without levels take no feedback");
        round(Isa::best(), coupling, weights, blocks);
    }

    /// Changes codes of a rounded block of one row while the cost of the row's errors falls, each once,
    /// given all others; scales stay. Returns true if a code has changed: then values and slopes are
    /// the new ones. Changes of other blocks' columns are not added to their slopes.
    ///
    /// # Panics
    /// If lengths do not match.
    pub fn descend(
        &self,
        curvature: feedback::Curvature<'_>,
        rounded: feedback::Rounded<'_>,
    ) -> bool {
        let len = self.ggml_type.block_len();
        assert!(
            rounded.values.len() == len
                && rounded.slopes.len() == len
                && rounded.block.len() == self.ggml_type.block_bytes()
                && curvature.groups.len() * 8 >= len,
            "one block"
        );
        let descend = self.descend;
        descend.is_some_and(|descend| descend(Isa::best(), curvature, rounded))
    }

    /// Replaces the codes of a row, or of any whole number of blocks, by those nearest to `weights`,
    /// `[blocks, block_len]`; the scales stay. Types without codes keep their bytes.
    ///
    /// # Panics
    /// If lengths do not match.
    pub fn recode_row(&self, weights: &[f32], row: &mut [u8]) {
        assert_eq!(
            self.ggml_type.row_bytes(weights.len() as u64),
            Some(row.len() as u64),
            "row length"
        );
        if let Some(recode) = self.recode {
            recode(Isa::best(), weights, row);
        }
    }

    /// The distance between adjacent levels at each weight of a row, or of any whole number of blocks:
    /// `[blocks, block_len]`; for types with a codebook, between adjacent values of one weight. 0 for
    /// types without codes.
    ///
    /// # Panics
    /// If lengths do not match.
    pub fn code_steps(&self, row: &[u8], steps: &mut [f32]) {
        assert_eq!(
            self.ggml_type.row_bytes(steps.len() as u64),
            Some(row.len() as u64),
            "row length"
        );
        match self.code_steps {
            Some(code_steps) => code_steps(row, steps),
            None => steps.fill(0.0),
        }
    }

    /// Dequantizes one row of blocks, or any whole number of blocks, into `weights`,
    /// `[blocks, block_len]`.
    ///
    /// # Panics
    /// If lengths do not match.
    pub fn dequantize_row(&self, row: &[u8], weights: &mut [f32]) {
        self.dequantize_row_with(Isa::best(), row, weights);
    }

    /// [`Codec::dequantize_row`] with an instruction set, without effect on the result.
    ///
    /// # Panics
    /// As [`Codec::dequantize_row`].
    pub fn dequantize_row_with(&self, isa: Isa, row: &[u8], weights: &mut [f32]) {
        assert_eq!(
            self.ggml_type.row_bytes(weights.len() as u64),
            Some(row.len() as u64),
            "row length"
        );
        (self.dequantize)(isa, row, weights);
    }

    /// Index and fault of the first invalid block. An incomplete block at the end is ignored.
    pub fn first_fault(&self, blocks: &[u8]) -> Option<(usize, Fault)> {
        (self.first_fault)(blocks)
    }
}

/// [`Block::quantize_row`], compiled for every instruction set.
struct Quantize<'a, B, const N: usize> {
    weights: &'a [[f32; N]],
    importance: Option<&'a [[f32; N]]>,
    row: &'a mut [B],
}

impl<B: Block<N>, const N: usize> Kernel for Quantize<'_, B, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        B::quantize_row(simd, self.weights, self.importance, self.row);
    }
}

fn quantize_row<B: Block<N>, const N: usize>(
    isa: Isa,
    weights: &[f32],
    importance: Option<&[f32]>,
    row: &mut [u8],
) {
    let importance = importance.map(|w| w.as_chunks().0);
    isa.run(Quantize::<B, N> {
        weights: weights.as_chunks().0,
        importance,
        row: bytemuck::cast_slice_mut(row),
    });
}

/// [`Block::dequantize`] of a row, compiled for every instruction set.
struct Dequantize<'a, B, const N: usize> {
    row: &'a [B],
    weights: &'a mut [[f32; N]],
}

impl<B: Block<N>, const N: usize> Kernel for Dequantize<'_, B, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.row
            .iter()
            .zip(self.weights)
            .for_each(|(block, weights)| block.dequantize(simd, weights));
    }
}

fn dequantize_row<B: Block<N>, const N: usize>(isa: Isa, row: &[u8], weights: &mut [f32]) {
    isa.run(Dequantize::<B, N> {
        row: bytemuck::cast_slice(row),
        weights: weights.as_chunks_mut().0,
    });
}

fn first_fault<B: Block<N>, const N: usize>(bytes: &[u8]) -> Option<(usize, Fault)> {
    let whole = bytes.len() / size_of::<B>() * size_of::<B>();
    let blocks: &[B] = bytemuck::cast_slice(&bytes[..whole]);
    blocks
        .iter()
        .enumerate()
        .find_map(|(i, block)| Some((i, block.fault()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codec_layouts_match_their_types() {
        // A zeroed row of one block must pass through all three functions with the table's sizes.
        for codec in Codec::all() {
            let t = codec.ggml_type;
            let mut weights = vec![1.0; t.block_len()];
            codec.dequantize_row(&vec![0; t.block_bytes()], &mut weights);
            assert!(
                std::ptr::eq(Codec::of(t).unwrap(), codec),
                "{t} is listed twice"
            );
        }
    }
}
