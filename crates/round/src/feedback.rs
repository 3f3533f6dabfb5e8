//! Error feedback along rows (GPTQ/LDLQ): columns are rounded panel by panel, and each error is
//! compensated in the columns not yet rounded.

use crate::InputFactor;
use crate::matrix::{View, subtract_product};
use quantier_blocks::Codec;
use quantier_blocks::simd::LANES;

/// Columns per panel: their errors are propagated to all later columns in one product.
const PANEL: usize = 256;

/// Rounds rows of weights, `[rows, columns]`, into rows of blocks; `weights` is overwritten. The
/// result of a row depends on that row only.
///
/// # Panics
/// If the type does not take feedback, or the lengths are inconsistent.
pub fn round_rows(codec: &Codec, factor: &InputFactor, weights: &mut [f32], out: &mut [u8]) {
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
            let count = LANES.min(rows - first);
            for at in (from..to).step_by(len) {
                x.fill(0.0);
                for (row, x) in (first..first + count).zip(x.chunks_exact_mut(len)) {
                    x.copy_from_slice(&weights[row * n + at..][..len]);
                }
                codec.round_eight(factor.coupling(at), &mut x, &mut blocks);
                let rounded = x.chunks_exact(len).zip(blocks.chunks_exact(block_bytes));
                for (row, (x, block)) in (first..first + count).zip(rounded) {
                    errors[row * PANEL + at - from..][..len].copy_from_slice(x);
                    out[row * row_bytes + at / len * block_bytes..][..block_bytes]
                        .copy_from_slice(block);
                }
                if at + len < to {
                    let errors = View::new(&x, count, len, len);
                    let later = factor.later(at, at + len, to);
                    subtract_product(errors, later, &mut weights[first * n + at + len..], n, 1);
                }
            }
        }
        if to < n {
            let errors = View::new(&errors, rows, to - from, PANEL);
            subtract_product(errors, factor.later(from, to, n), &mut weights[to..], n, 1);
        }
    }
}
