//! Causal depthwise convolution.

use crate::model::rows::Rows;
use quantier_blocks::vector::vectorized;

/// `y[t][c] = sum_k kernel[c][k] x[t - K + 1 + k][c]`, with zeros before the first row. `kernels`
/// is `[columns, K]`.
pub(crate) fn convolve(x: &Rows, kernels: &[f32]) -> Rows {
    let taps = taps(x.columns(), kernels);
    let mut y = Rows::zeros(x.len(), x.columns());
    for (row, y) in y.iter_mut().enumerate() {
        for (tap, weights) in taps.iter().enumerate() {
            if let Some(from) = (row + tap + 1).checked_sub(taps.len()) {
                add_products(y, x.row(from), weights);
            }
        }
    }
    y
}

/// Derivative of [`convolve`] with respect to `x`, given the gradient `g` of the output.
pub(crate) fn convolve_derivative(g: &Rows, kernels: &[f32]) -> Rows {
    let taps = taps(g.columns(), kernels);
    let mut x = Rows::zeros(g.len(), g.columns());
    for (row, x) in x.iter_mut().enumerate() {
        for (tap, weights) in taps.iter().enumerate() {
            let to = row + taps.len() - 1 - tap;
            if to < g.len() {
                add_products(x, g.row(to), weights);
            }
        }
    }
    x
}

/// Kernel weights by tap, one per channel.
fn taps(channels: usize, kernels: &[f32]) -> Vec<Vec<f32>> {
    let len = kernels.len() / channels;
    let weights = |tap: usize| kernels.iter().skip(tap).step_by(len).copied().collect();
    (0..len).map(weights).collect()
}

fn add_products(sums: &mut [f32], x: &[f32], weights: &[f32]) {
    vectorized(
        #[inline(always)]
        || {
            let places = sums.iter_mut().zip(x).zip(weights);
            places.for_each(|((sum, x), weight)| *sum += x * weight);
        },
    );
}
