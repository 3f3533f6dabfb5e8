//! Rounding with error feedback inside the blocks of llama.cpp's types.
//!
//! ```text
//! Feedback     a directory of covariances; Inputs: what is known of one matrix's
//! Factor       of the covariance of what a matrix meets: how the errors of columns act on each other
//! RowFactor    of the covariance of gradients at what a matrix makes: how the errors of rows act on each other
//! round_rows   panel after panel of columns: blocks with the errors of those before them, then all columns behind
//! ```
//!
//! The files are plain GGUF of plain types: a block type says which numbers a weight can become,
//! and which of them it becomes is chosen here. See [`crate::quant`] for what happens within a
//! block.

mod factor;
mod round;
mod rows;
#[cfg(test)]
mod tests;

pub use factor::{DAMPING, Factor, NoFactor};
pub use round::{Feedback, Inputs, Proof, Proved, Rounding, spread};
pub use rows::{ROW_DAMPING, RowFactor};

use crate::matrix::{View, subtract_product};
use crate::quant::Codec;
use crate::simd::LANES;

/// Columns after which the errors go to all columns behind, in one product.
const PANEL: usize = 256;

/// Rounds rows of weights, `[rows, columns]`, into rows of blocks; the weights are lost. Each row's
/// result depends on it alone.
///
/// # Panics
/// If the type takes no feedback, or lengths do not fit each other.
pub fn round_rows(codec: &Codec, factor: &Factor, weights: &mut [f32], out: &mut [u8]) {
    let (n, len, block_bytes) = (
        factor.columns(),
        codec.ggml_type.block_len(),
        codec.ggml_type.block_bytes(),
    );
    assert!(
        n > 0 && n.is_multiple_of(len) && weights.len().is_multiple_of(n),
        "rows of {n} columns"
    );
    let (rows, row_bytes) = (weights.len() / n, n / len * block_bytes);
    assert_eq!(out.len(), rows * row_bytes, "rows of blocks");
    let mut errors = vec![0.0f32; rows * PANEL];
    let (mut x, mut blocks) = (vec![0.0f32; LANES * len], vec![0u8; LANES * block_bytes]);
    for from in (0..n).step_by(PANEL) {
        let to = (from + PANEL).min(n);
        for first in (0..rows).step_by(LANES) {
            let here = LANES.min(rows - first);
            for at in (from..to).step_by(len) {
                x.fill(0.0);
                for (row, x) in (first..first + here).zip(x.chunks_exact_mut(len)) {
                    x.copy_from_slice(&weights[row * n + at..][..len]);
                }
                codec.round_eight(factor.coupling(at), &mut x, &mut blocks);
                let of_rows = x.chunks_exact(len).zip(blocks.chunks_exact(block_bytes));
                for (row, (x, block)) in (first..first + here).zip(of_rows) {
                    errors[row * PANEL + at - from..][..len].copy_from_slice(x);
                    out[row * row_bytes + at / len * block_bytes..][..block_bytes]
                        .copy_from_slice(block);
                }
                if at + len < to {
                    let errors = View::new(&x, here, len, len);
                    let behind = factor.behind(at, at + len, to);
                    subtract_product(errors, behind, &mut weights[first * n + at + len..], n, 1);
                }
            }
        }
        if to < n {
            let errors = View::new(&errors, rows, to - from, PANEL);
            subtract_product(errors, factor.behind(from, to, n), &mut weights[to..], n, 1);
        }
    }
}
