//! The K types: super-blocks of 256 weights, whose sub-block scales are themselves quantized.
//!
//! | type | sub-blocks | weight is              | scales             | bits per weight |
//! |------|------------|------------------------|--------------------|-----------------|
//! | Q2_K | 16 x 16    | `d*s * q - dmin*m`     | 4 bits, offsets 4  | 2.625           |
//! | Q3_K | 16 x 16    | `d*(s-32) * (q-4)`     | 6 bits             | 3.4375          |
//! | Q4_K | 8 x 32     | `d*s * q - dmin*m`     | 6 bits, offsets 6  | 4.5             |
//! | Q5_K | 8 x 32     | `d*s * q - dmin*m`     | 6 bits, offsets 6  | 5.5             |
//! | Q6_K | 16 x 16    | `d*s * (q-32)`         | 8 bits, signed     | 6.5625          |
//!
//! Every quantizer has the same three steps. It searches each sub-block for the scale (and offset)
//! with the least weighted error ([`search`](super::search)), quantizes these scales, and rounds
//! the weights again at the quantized scales; a sub-block with a scale of zero keeps the levels of
//! the search. Then [`planes`](super::planes) packs the levels.

mod affine;
mod q2;
mod q3;
mod q4_q5;
mod q6;

pub(crate) use q2::BlockQ2K;
pub(crate) use q3::BlockQ3K;
pub(crate) use q4_q5::{BlockQ4K, BlockQ5K};
pub(crate) use q6::BlockQ6K;

/// Weights per super-block, ggml's `QK_K`.
const LEN: usize = 256;
/// Bytes per run of most planes.
const RUN: usize = 32;

/// Candidates of error feedback: changes of the codes of scale and offset, and of scale alone.
const AFFINE_TRIES: &[[i8; 2]] = &[
    [0, 0],
    [-1, 0],
    [1, 0],
    [0, -1],
    [0, 1],
    [-1, -1],
    [1, 1],
    [-1, 1],
    [1, -1],
];
const SCALE_TRIES: &[[i8; 2]] = &[[0, 0], [-1, 0], [1, 0]];

/// One level or scale code per weight of a super-block.
type Levels = [u8; LEN];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Block;
    use crate::search::sum_of_squares;

    /// Root mean square error of quantization, in steps of a type with `levels` levels, for weights
    /// uniform over [-1, 1].
    fn error_in_steps<B: Block<LEN>>(levels: f32, importance: bool) -> f32 {
        let x: [f32; LEN] =
            std::array::from_fn(|i| ((i * i * 31 + 7 * i) % 509) as f32 / 254.0 - 1.0);
        let ones = [[1.0; LEN]];
        let mut row = [B::zeroed()];
        B::quantize_row(
            crate::simd::Scalar,
            &[x],
            importance.then_some(&ones[..]),
            &mut row,
        );
        assert_eq!(row[0].fault(), None);
        let mut back = [0.0; LEN];
        row[0].dequantize(crate::simd::Scalar, &mut back);
        let changes: [f32; LEN] = std::array::from_fn(|i| x[i] - back[i]);
        (sum_of_squares(&changes) / LEN as f32).sqrt() * levels / 2.0
    }

    #[test]
    fn quantization_error_is_near_rounding_error() {
        // Rounding to even steps would move them by 1 / sqrt(12) = 0.29 steps.
        for importance in [false, true] {
            for (levels, error) in [
                (4.0, error_in_steps::<BlockQ2K>(4.0, importance)),
                (8.0, error_in_steps::<BlockQ3K>(8.0, importance)),
                (16.0, error_in_steps::<BlockQ4K>(16.0, importance)),
                (32.0, error_in_steps::<BlockQ5K>(32.0, importance)),
                (64.0, error_in_steps::<BlockQ6K>(64.0, importance)),
            ] {
                assert!(
                    error < 0.36,
                    "{levels} levels, importance {importance}: {error} steps"
                );
            }
        }
    }

    fn zeros_stay_zeros_in<B: Block<LEN>>() {
        let ones = [[1.0; LEN]];
        for importance in [None, Some(&ones[..])] {
            let mut row = [B::zeroed()];
            B::quantize_row(crate::simd::Scalar, &[[0.0; LEN]], importance, &mut row);
            let mut back = [1.0; LEN];
            row[0].dequantize(crate::simd::Scalar, &mut back);
            assert_eq!(back, [0.0; LEN], "{}", B::TYPE);
        }
    }

    #[test]
    fn zeros_remain_zeros() {
        zeros_stay_zeros_in::<BlockQ2K>();
        zeros_stay_zeros_in::<BlockQ3K>();
        zeros_stay_zeros_in::<BlockQ4K>();
        zeros_stay_zeros_in::<BlockQ5K>();
        zeros_stay_zeros_in::<BlockQ6K>();
    }
}
