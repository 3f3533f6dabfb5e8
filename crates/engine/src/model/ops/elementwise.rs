//! Sums, scales, biases, clamps and caps.

use crate::model::rows::Rows;
use quantier_blocks::vector::vectorized;

/// `x += scale y`. The derivative for `x` is the gradient, that for `y` is [`scale`] of it.
pub(crate) fn add_scaled(x: &mut [f32], y: &[f32], scale: f32) {
    vectorized(|| x.iter_mut().zip(y).for_each(|(x, y)| *x += y * scale));
}

/// `x += y`, as gradients of what is read twice are added.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    add_scaled(x, y, 1.0);
}

/// Every number times `scale`. The derivative is the same.
pub(crate) fn scale(x: &mut [f32], scale: f32) {
    if scale != 1.0 {
        vectorized(|| x.iter_mut().for_each(|x| *x *= scale));
    }
}

/// Every number times that of `y`. The derivative for either is the gradient times the other.
pub(crate) fn multiply(x: &mut [f32], y: &[f32]) {
    vectorized(|| x.iter_mut().zip(y).for_each(|(x, y)| *x *= y));
}

/// Every row plus `bias`. The derivative is the gradient.
pub(crate) fn add_bias(x: &mut Rows, bias: &[f32]) {
    vectorized(|| {
        for row in x.iter_mut() {
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
    });
}

/// Every group of numbers times its scale: rows, or heads, as many of equal length as there are
/// scales. The derivative for the numbers is the same, that for the scales is [`dots`] of the
/// numbers and the gradient.
pub(crate) fn scale_groups(x: &mut [f32], scales: &[f32]) {
    let length = x.len() / scales.len().max(1);
    vectorized(|| {
        for (group, scale) in x.chunks_exact_mut(length.max(1)).zip(scales) {
            group.iter_mut().for_each(|x| *x *= scale);
        }
    });
}

/// `x += scales y`, with a scale for each group of numbers.
pub(crate) fn add_scaled_groups(x: &mut [f32], y: &[f32], scales: &[f32]) {
    let length = (x.len() / scales.len().max(1)).max(1);
    let groups = x.chunks_exact_mut(length).zip(y.chunks_exact(length));
    for ((x, y), scale) in groups.zip(scales) {
        add_scaled(x, y, *scale);
    }
}

/// The dot product of each of so many groups of `x` with the same group of `y`.
pub(crate) fn dots(x: &[f32], y: &[f32], groups: usize) -> Vec<f32> {
    let length = (x.len() / groups.max(1)).max(1);
    let dot = |(x, y): (&[f32], &[f32])| x.iter().zip(y).map(|(x, y)| x * y).sum();
    x.chunks_exact(length)
        .zip(y.chunks_exact(length))
        .map(dot)
        .collect()
}

/// Every number clamped to plus and minus `limit`.
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

/// Its derivative: the gradient `g` where `x` is within the limit, else nothing.
pub(crate) fn clamp_derivative(x: &[f32], g: &mut [f32], limit: f32) {
    let outside = |x: &f32| x.abs() > limit;
    g.iter_mut()
        .zip(x)
        .filter(|(_, x)| outside(x))
        .for_each(|(g, _)| *g = 0.0);
}

/// Bends each number to stay below `cap` (soft-capping).
pub(crate) fn soft_cap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = (*x / cap).tanh() * cap);
}

/// The logarithm of 1 + e^x, above `LINEAR` x itself, as the reference has it. The slope is
/// [`sigmoid`].
pub(crate) fn softplus(x: f32) -> f32 {
    const LINEAR: f32 = 20.0;
    if x > LINEAR { x } else { x.exp().ln_1p() }
}

/// The logistic function.
pub(crate) fn sigmoid(x: f32) -> f32 {
    ((-x).exp() + 1.0).recip()
}

/// Its slope, of its value.
pub(crate) fn sigmoid_slope(value: f32) -> f32 {
    (1.0 - value) * value
}
