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

/// Every row plus `bias`. The derivative is the gradient.
pub(crate) fn add_bias(x: &mut Rows, bias: &[f32]) {
    vectorized(|| {
        for row in x.iter_mut() {
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
        }
    });
}

/// Every row times its number. The derivative for the rows is the same, that for the numbers is
/// [`dots`] of the rows and the gradient.
pub(crate) fn scale_rows(x: &mut Rows, scales: &[f32]) {
    vectorized(|| {
        for (row, scale) in x.iter_mut().zip(scales) {
            row.iter_mut().for_each(|x| *x *= scale);
        }
    });
}

/// The dot product of each row of `x` with the same row of `y`.
pub(crate) fn dots(x: &Rows, y: &Rows) -> Vec<f32> {
    let dot = |(x, y): (&[f32], &[f32])| x.iter().zip(y).map(|(x, y)| x * y).sum();
    x.iter().zip(y.iter()).map(dot).collect()
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

/// The logistic function.
pub(crate) fn sigmoid(x: f32) -> f32 {
    ((-x).exp() + 1.0).recip()
}

/// Its slope, of its value.
pub(crate) fn sigmoid_slope(value: f32) -> f32 {
    (1.0 - value) * value
}
