//! The causal convolution of every channel with a kernel of its own.

use crate::model::rows::Rows;
use quantier_blocks::vector::vectorized;

/// `y[t][c] = sum_k kernel[c][k] x[t - K + 1 + k][c]`, with zeros in front of the first row. `kernels`
/// is `[columns, K]`.
pub(crate) fn convolve(x: &Rows, kernels: &[f32]) -> Rows {
    let len = kernels.len() / x.columns();
    let mut y = Rows::zeros(x.len(), x.columns());
    each_tap(x.columns(), kernels, |tap, weights| {
        let back = len - 1 - tap;
        for (y, x) in y.iter_mut().skip(back).zip(x.iter()) {
            add_products(y, x, weights);
        }
    });
    y
}

/// Its derivative for `x`, of the gradient `g` of the result.
pub(crate) fn convolve_derivative(g: &Rows, kernels: &[f32]) -> Rows {
    let len = kernels.len() / g.columns();
    let mut x = Rows::zeros(g.len(), g.columns());
    each_tap(g.columns(), kernels, |tap, weights| {
        let back = len - 1 - tap;
        for (x, g) in x.iter_mut().zip(g.iter().skip(back)) {
            add_products(x, g, weights);
        }
    });
    x
}

/// Calls `f` with the number of each tap and its weights, one for each channel.
fn each_tap(channels: usize, kernels: &[f32], mut f: impl FnMut(usize, &[f32])) {
    let len = kernels.len() / channels;
    for tap in 0..len {
        let weights: Vec<f32> = kernels.iter().skip(tap).step_by(len).copied().collect();
        f(tap, &weights);
    }
}

fn add_products(sums: &mut [f32], x: &[f32], weights: &[f32]) {
    vectorized(|| {
        let places = sums.iter_mut().zip(x).zip(weights);
        places.for_each(|((sum, x), weight)| *sum += x * weight);
    });
}
