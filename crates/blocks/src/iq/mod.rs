//! Codebook types: groups of four or eight weights share the index of a point in a small codebook.
//!
//! All quantizers compute error weights, fit a scale and codebook points to every sub-block, store
//! the scales as multiples of one f16, and pack.

mod grid;
mod iq1;
mod iq2;
mod iq3;
mod lattice;
mod signs;
mod ternary;

use super::num::{max, nearest_int};
use super::search::{sum_of_squares, weigh, with_squares};

pub(crate) use iq1::{BlockIq1M, BlockIq1S};
pub(crate) use iq2::{BlockIq2S, BlockIq2Xs, BlockIq2Xxs};
pub(crate) use iq3::{BlockIq3S, BlockIq3Xxs};

/// Weights in a block.
const BLOCK: usize = 256;

/// Squares of the weights: the error weights of 3-bit types and IQ1_M without importance weights.
fn squares(x: &[f32; BLOCK]) -> [f32; BLOCK] {
    x.map(|v| v * v)
}

/// Error weights of the 3-bit types and IQ1_M; `sum_of_squares` is that of the block.
#[inline(always)]
fn error_weights(
    x: &[f32; BLOCK],
    importance: Option<&[f32; BLOCK]>,
    sum_of_squares: f32,
) -> [f32; BLOCK] {
    match importance {
        Some(importance) => weigh(x, importance, 2.0 * sum_of_squares / BLOCK as f32),
        None => squares(x),
    }
}

/// Stores scales as odd multiples `2 * code + 1`, `code <= top`, of the returned step; the largest
/// becomes `odd`. `None` if all scales are zero. A NaN scale (at which ggml aborts) makes the step
/// NaN, so that the block has a [`Fault`](super::Fault).
fn grade<const B: usize>(scales: &[f32; B], odd: f32, top: u8) -> Option<(f32, [u8; B])> {
    let largest = scales.iter().fold(0.0, |largest, &s| max(largest, s));
    let invalid = scales.iter().any(|s| s.is_nan());
    if largest == 0.0 && !invalid {
        return None;
    }
    let step = if invalid { f32::NAN } else { largest / odd };
    let inverse = 1.0 / step;
    Some((
        step,
        scales.map(|s| nearest_int(0.5 * (inverse * s - 1.0)).clamp(0, top.into()) as u8),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_scale_gets_the_top_code() {
        let (step, codes) = grade(&[0.0, 31.0, 3.0, 15.6], 31.0, 15).unwrap();
        assert_eq!((step, codes), (1.0, [0, 15, 1, 7]));
        assert!(grade(&[0.0; 4], 31.0, 15).is_none());
    }

    #[test]
    fn nan_scales_make_the_step_nan() {
        for at in 0..3 {
            let mut scales = [0.0; 3];
            scales[at] = f32::NAN;
            assert!(grade(&scales, 31.0, 15).unwrap().0.is_nan());
        }
    }
}
