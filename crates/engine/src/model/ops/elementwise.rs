//! Sums, scales, biases, clamps and caps.

use crate::model::rows::Rows;
use quantier_blocks::vector::vectorized;

/// `x += scale y`. Derivative: the gradient for `x`, and its [`scale`] for `y`.
pub(crate) fn add_scaled(x: &mut [f32], y: &[f32], scale: f32) {
    vectorized(
        #[inline(always)]
        || x.iter_mut().zip(y).for_each(|(x, y)| *x += y * scale),
    );
}

/// `x += y`, for the sum of gradients of a shared input.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    add_scaled(x, y, 1.0);
}

/// Multiplies every number by `scale`. The derivative is the same operation.
pub(crate) fn scale(x: &mut [f32], scale: f32) {
    if scale != 1.0 {
        vectorized(
            #[inline(always)]
            || x.iter_mut().for_each(|x| *x *= scale),
        );
    }
}

/// `x *= y`, elementwise. Derivative for either: the gradient times the other.
pub(crate) fn multiply(x: &mut [f32], y: &[f32]) {
    vectorized(
        #[inline(always)]
        || x.iter_mut().zip(y).for_each(|(x, y)| *x *= y),
    );
}

/// Adds `bias` to every row. The derivative is the identity.
pub(crate) fn add_bias(x: &mut Rows, bias: &[f32]) {
    vectorized(
        #[inline(always)]
        || {
            for row in x.iter_mut() {
                row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
        },
    );
}

/// Multiplies every group of numbers by its scale. Groups are rows or heads, of equal length and as
/// many as scales. Derivative: the same operation for the numbers, [`dots`] of numbers and gradient
/// for the scales.
pub(crate) fn scale_groups(x: &mut [f32], scales: &[f32]) {
    let length = x.len() / scales.len().max(1);
    vectorized(
        #[inline(always)]
        || {
            for (group, scale) in x.chunks_exact_mut(length.max(1)).zip(scales) {
                group.iter_mut().for_each(|x| *x *= scale);
            }
        },
    );
}

/// `x += scales y`, with one scale per group of numbers.
pub(crate) fn add_scaled_groups(x: &mut [f32], y: &[f32], scales: &[f32]) {
    let length = (x.len() / scales.len().max(1)).max(1);
    let groups = x.chunks_exact_mut(length).zip(y.chunks_exact(length));
    for ((x, y), scale) in groups.zip(scales) {
        add_scaled(x, y, *scale);
    }
}

/// Dot products of corresponding groups of `x` and `y`.
pub(crate) fn dots(x: &[f32], y: &[f32], groups: usize) -> Vec<f32> {
    let length = (x.len() / groups.max(1)).max(1);
    let dot = |(x, y): (&[f32], &[f32])| x.iter().zip(y).map(|(x, y)| x * y).sum();
    x.chunks_exact(length)
        .zip(y.chunks_exact(length))
        .map(dot)
        .collect()
}

/// Clamps every number to plus and minus `limit`.
pub(crate) fn clamp(x: &mut [f32], limit: f32) {
    let clamped = |x: f32| if x < -limit { -limit } else { x };
    x.iter_mut().for_each(|x| {
        *x = if clamped(*x) > limit {
            limit
        } else {
            clamped(*x)
        }
    });
}

/// Derivative of [`clamp`]: sets the gradient `g` to 0 where `x` is outside the limit.
pub(crate) fn clamp_derivative(x: &[f32], g: &mut [f32], limit: f32) {
    let outside = |x: &f32| x.abs() > limit;
    g.iter_mut()
        .zip(x)
        .filter(|(_, x)| outside(x))
        .for_each(|(g, _)| *g = 0.0);
}

/// Soft cap: bends each number to magnitudes below `cap`.
pub(crate) fn soft_cap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = (*x / cap).tanh() * cap);
}

/// ln(1 + e^x), or `x` itself above `LINEAR`, as in the reference. Its derivative is [`sigmoid`].
pub(crate) fn softplus(x: f32) -> f32 {
    const LINEAR: f32 = 20.0;
    if x > LINEAR { x } else { x.exp().ln_1p() }
}

/// The logistic sigmoid.
pub(crate) fn sigmoid(x: f32) -> f32 {
    ((-x).exp() + 1.0).recip()
}

/// Derivative of [`sigmoid`], given its value.
pub(crate) fn sigmoid_slope(value: f32) -> f32 {
    (1.0 - value) * value
}
