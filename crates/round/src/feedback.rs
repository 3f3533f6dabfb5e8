//! Error feedback along rows (GPTQ/LDLQ): columns are rounded panel by panel, and each error is
//! compensated in the columns not yet rounded. Coordinate descent then changes single codes while the cost
//! of all errors falls.

use crate::InputFactor;
use crate::factor::InputCurvature;
use crate::matrix::{View, add_product, multiply, subtract_product};
use quantier_blocks::Codec;
use quantier_blocks::feedback::{Curvature, Rounded};
use quantier_blocks::simd::LANES;
use quantier_blocks::vector::{add_scaled, vectorized};

/// Columns per panel: their errors are propagated to all later columns in one product.
const PANEL: usize = 256;

/// Rounds rows of weights, `[rows, columns]`, into rows of blocks; `weights` is overwritten. The
/// result of a row depends on that row only.
///
/// # Panics
/// If the type does not take feedback, or the lengths are inconsistent.
pub(crate) fn round_rows(codec: &Codec, factor: &InputFactor, weights: &mut [f32], out: &mut [u8]) {
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

/// Sweeps over all columns after rounding, at most: each saves about a third of what the one before it has
/// saved. Those of a codebook cost as much as rounding at one scale.
const SWEEPS: usize = 4;
const SWEEPS_OF_CODEBOOK: usize = 2;
/// Sweeps that change scales too.
const SWEEPS_OF_SCALES: usize = 2;
/// The largest relative change of a scale in one sweep.
const LARGEST_CHANGE: f32 = 0.1;

/// Changes codes of rounded rows, `[rows, columns]`, while the cost of their errors against `target` falls,
/// and in types without sub-blocks the scales. On return, `values` has the dequantized rows. The result of a
/// row depends on that row only.
///
/// # Panics
/// If the lengths are inconsistent.
pub(crate) fn descend(
    codec: &Codec,
    curvature: &InputCurvature,
    target: &[f32],
    values: &mut [f32],
    out: &mut [u8],
) {
    let hessian = curvature.hessian();
    let (n, len) = (hessian.columns(), codec.ggml_type.block_len());
    let rows = values.len() / n;
    codec.dequantize_row(out, values);
    let errors = values.iter().zip(target).map(|(value, t)| value - t);
    let errors: Vec<f32> = errors.collect();
    let mut slopes = vec![0.0f32; values.len()];
    let all = View::new(&errors, rows, n, n);
    multiply(all, hessian, &mut slopes, n, 1);
    drop(errors);
    let mut changes = vec![0.0f32; rows * PANEL];
    let row_bytes = out.len() / rows.max(1);
    let mut open: Vec<usize> = (0..rows).collect();
    let sweeps = match codec.has_codebook() {
        true => SWEEPS_OF_CODEBOOK,
        false => SWEEPS,
    };
    let has_sub_blocks = len == PANEL;
    for sweep in 0..sweeps {
        let with_scales = !has_sub_blocks && sweep < SWEEPS_OF_SCALES;
        let mut changed = vec![false; rows];
        // By columns first, for which the rows of the Hessian stay in the cache.
        for from in (0..n).step_by(PANEL) {
            let to = (from + PANEL).min(n);
            changes.fill(0.0);
            for &row in &open {
                let (place, width) = (row * n + from, to - from);
                let changes = &mut changes[row * PANEL..][..width];
                changes.copy_from_slice(&values[place..][..width]);
                let panel = Panel {
                    codec,
                    curvature,
                    from,
                    values: &mut values[place..][..width],
                    slopes: &mut slopes[place..][..width],
                    blocks: &mut out[row * row_bytes..][from * row_bytes / n..to * row_bytes / n],
                };
                changed[row] |= panel.descend(with_scales);
                for (change, value) in changes.iter_mut().zip(&values[place..]) {
                    *change = value - *change;
                }
            }
            // Scales change all weights, codes few.
            if with_scales {
                let changes = View::new(&changes, rows, to - from, PANEL);
                add_product(
                    changes,
                    curvature.part(from..to, 0..from),
                    &mut slopes,
                    n,
                    1,
                );
                if to < n {
                    let later = curvature.part(from..to, to..n);
                    add_product(changes, later, &mut slopes[to..], n, 1);
                }
                continue;
            }
            for &row in &open {
                let slopes = &mut slopes[row * n..][..n];
                for (j, change) in changes[row * PANEL..][..to - from].iter().enumerate() {
                    if *change != 0.0 {
                        let h = curvature.row(from + j);
                        vectorized(
                            #[inline(always)]
                            || {
                                add_scaled(&mut slopes[..from], &h[..from], *change);
                                add_scaled(&mut slopes[to..], &h[to..], *change);
                            },
                        );
                    }
                }
            }
        }
        open.retain(|row| changed[*row]);
        if open.is_empty() {
            break;
        }
    }
}

/// Some columns of a row.
struct Panel<'p> {
    codec: &'p Codec,
    curvature: &'p InputCurvature,
    /// The first column.
    from: usize,
    /// Dequantized weights.
    values: &'p mut [f32],
    /// Errors of the row times the Hessian.
    slopes: &'p mut [f32],
    blocks: &'p mut [u8],
}

impl Panel<'_> {
    /// Changes scales and codes of each block; true if anything has changed.
    fn descend(self, with_scales: bool) -> bool {
        let Panel {
            codec,
            curvature,
            from,
            values,
            slopes,
            blocks,
        } = self;
        let (len, width) = (codec.ggml_type.block_len(), values.len());
        let (mut before, mut any) = (vec![0.0f32; len], false);
        let blocks = blocks.chunks_exact_mut(codec.ggml_type.block_bytes());
        for (at, block) in (0..width).step_by(len).zip(blocks) {
            before.copy_from_slice(&values[at..][..len]);
            let own = curvature.of_block(from + at);
            let mut rounded = Rounded {
                values: &mut values[at..][..len],
                slopes: &mut slopes[at..][..len],
                block,
            };
            let mut has_changed = with_scales && scale(codec, own, &mut rounded);
            has_changed |= codec.descend(own, rounded);
            if !has_changed {
                continue;
            }
            any = true;
            for j in 0..len {
                let change = values[at + j] - before[j];
                if change != 0.0 && len < width {
                    let h = &curvature.row(from + at + j)[from..from + width];
                    vectorized(
                        #[inline(always)]
                        || {
                            add_scaled(&mut slopes[..at], &h[..at], change);
                            add_scaled(&mut slopes[at + len..], &h[at + len..], change);
                        },
                    );
                }
            }
        }
        any
    }
}

/// Replaces the scales of a block by those of least cost, given all codes and other blocks.
fn scale(codec: &Codec, curvature: Curvature<'_>, rounded: &mut Rounded<'_>) -> bool {
    let len = rounded.values.len();
    let (mut part, mut scaled) = (vec![0.0f32; len], vec![0.0f32; len]);
    let mut any = false;
    for half in 0..codec.halves() {
        codec.part_of_half(rounded.block, half, &mut part);
        let (mut slope, mut square) = (0.0f32, 0.0f32);
        vectorized(
            #[inline(always)]
            || {
                for (j, (a, s)) in part.iter().zip(&*rounded.slopes).enumerate() {
                    let products = curvature.rows[j * curvature.stride..].iter().zip(&part);
                    slope += a * s;
                    square += a * products.map(|(h, b)| h * b).sum::<f32>();
                }
            },
        );
        let change = (-slope / square).clamp(-LARGEST_CHANGE, LARGEST_CHANGE);
        let old = codec.half(rounded.block, half);
        if !change.is_finite() || old == 0.0 {
            continue;
        }
        codec.set_half(rounded.block, half, old * (1.0 + change));
        if codec.half(rounded.block, half) == old {
            continue;
        }
        any = true;
        codec.dequantize_row(rounded.block, &mut scaled);
        let changes = scaled
            .iter()
            .zip(&*rounded.values)
            .map(|(new, old)| new - old);
        for (j, change) in changes.enumerate() {
            let h = &curvature.rows[j * curvature.stride..][..len];
            vectorized(
                #[inline(always)]
                || add_scaled(rounded.slopes, h, change),
            );
        }
        rounded.values.copy_from_slice(&scaled);
    }
    any
}
