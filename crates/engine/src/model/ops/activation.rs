//! Activations of feed-forward networks.

use super::elementwise::softplus;
use quantier_arch::{Activation, Xielu};
use quantier_blocks::vector::{sigmoid, vectorized};

const TWICE_ROOT: f32 = 1.595_769; // 2 sqrt(2 / pi)
const CUBIC: f32 = 0.044_715;
/// Slope factor of the sigmoid approximation of GELU.
const QUICK: f32 = 1.702;

/// Applies the activation to each number.
pub(crate) fn activate(x: &mut [f32], activation: Activation) {
    vectorized(
        #[inline(always)]
        || match activation {
            Activation::Silu => x.iter_mut().for_each(|x| *x = silu(*x)),
            Activation::Gelu => x.iter_mut().for_each(|x| *x = gelu(*x)),
            Activation::Relu => x.iter_mut().for_each(|x| *x = x.max(0.0)),
            Activation::SquaredRelu => x.iter_mut().for_each(|x| *x = squared_relu(*x)),
            Activation::Sigmoid => x.iter_mut().for_each(|x| *x = sigmoid(*x)),
            Activation::QuickGelu => x.iter_mut().for_each(|x| *x = quick_gelu(*x)),
            Activation::Softplus => x.iter_mut().for_each(|x| *x = softplus(*x)),
            Activation::Tanh => x.iter_mut().for_each(|x| *x = x.tanh()),
            Activation::Xielu(parameters) => x.iter_mut().for_each(|x| *x = xielu(*x, parameters)),
        },
    );
}

/// Derivative of [`activate`]: replaces `x` by the activation's slope times the gradient `g`.
pub(crate) fn activate_derivative(x: &mut [f32], g: &[f32], activation: Activation) {
    let places = x.iter_mut().zip(g);
    vectorized(
        #[inline(always)]
        || match activation {
            Activation::Silu => places.for_each(|(x, g)| *x = silu_slope(*x) * g),
            Activation::Gelu => places.for_each(|(x, g)| *x = gelu_slope(*x) * g),
            Activation::Relu => places.for_each(|(x, g)| *x = relu_slope(*x) * g),
            Activation::SquaredRelu => places.for_each(|(x, g)| *x = 2.0 * x.max(0.0) * g),
            Activation::Sigmoid => places.for_each(|(x, g)| *x = sigmoid_slope(*x) * g),
            Activation::QuickGelu => places.for_each(|(x, g)| *x = quick_gelu_slope(*x) * g),
            Activation::Softplus => places.for_each(|(x, g)| *x = sigmoid(*x) * g),
            Activation::Tanh => places.for_each(|(x, g)| *x = tanh_slope(*x) * g),
            Activation::Xielu(p) => places.for_each(|(x, g)| *x = xielu_slope(*x, p) * g),
        },
    );
}

/// Replaces each number of `gate` by its activation times that of `up`.
pub(crate) fn gate(gate: &mut [f32], up: &[f32], activation: Activation) {
    let places = gate.iter_mut().zip(up);
    vectorized(
        #[inline(always)]
        || match activation {
            Activation::Silu => places.for_each(|(x, up)| *x = silu(*x) * up),
            Activation::Gelu => places.for_each(|(x, up)| *x = gelu(*x) * up),
            Activation::Relu => places.for_each(|(x, up)| *x = x.max(0.0) * up),
            Activation::SquaredRelu => places.for_each(|(x, up)| *x = squared_relu(*x) * up),
            Activation::Sigmoid => places.for_each(|(x, up)| *x = sigmoid(*x) * up),
            Activation::QuickGelu => places.for_each(|(x, up)| *x = quick_gelu(*x) * up),
            Activation::Softplus => places.for_each(|(x, up)| *x = softplus(*x) * up),
            Activation::Tanh => places.for_each(|(x, up)| *x = x.tanh() * up),
            Activation::Xielu(parameters) => {
                places.for_each(|(x, up)| *x = xielu(*x, parameters) * up)
            }
        },
    );
}

/// Derivative of [`gate`] with respect to `gate`, which it replaces by the activation's slope times
/// `up` times the gradient `g`. The derivative with respect to `up` is [`gate`] of the gate and
/// `g`.
pub(crate) fn gate_derivative(gate: &mut [f32], up: &[f32], g: &[f32], activation: Activation) {
    let places = gate.iter_mut().zip(up.iter().zip(g));
    vectorized(
        #[inline(always)]
        || match activation {
            Activation::Silu => places.for_each(|(x, (up, g))| *x = silu_slope(*x) * up * g),
            Activation::Gelu => places.for_each(|(x, (up, g))| *x = gelu_slope(*x) * up * g),
            Activation::Relu => places.for_each(|(x, (up, g))| *x = relu_slope(*x) * up * g),
            Activation::SquaredRelu => {
                places.for_each(|(x, (up, g))| *x = 2.0 * x.max(0.0) * up * g)
            }
            Activation::Sigmoid => places.for_each(|(x, (up, g))| *x = sigmoid_slope(*x) * up * g),
            Activation::QuickGelu => {
                places.for_each(|(x, (up, g))| *x = quick_gelu_slope(*x) * up * g)
            }
            Activation::Softplus => places.for_each(|(x, (up, g))| *x = sigmoid(*x) * up * g),
            Activation::Tanh => places.for_each(|(x, (up, g))| *x = tanh_slope(*x) * up * g),
            Activation::Xielu(p) => {
                places.for_each(|(x, (up, g))| *x = xielu_slope(*x, p) * up * g)
            }
        },
    );
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

#[inline(always)]
fn sigmoid_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 - s)
}

#[inline(always)]
fn quick_gelu(x: f32) -> f32 {
    x * sigmoid(QUICK * x)
}

#[inline(always)]
fn quick_gelu_slope(x: f32) -> f32 {
    let s = sigmoid(QUICK * x);
    s * (1.0 + QUICK * x * (1.0 - s))
}

#[inline(always)]
fn tanh_slope(x: f32) -> f32 {
    let t = x.tanh();
    1.0 - t * t
}

#[inline(always)]
fn relu_slope(x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { 0.0 }
}

#[inline(always)]
fn squared_relu(x: f32) -> f32 {
    let above = x.max(0.0);
    above * above
}

#[inline(always)]
fn xielu(x: f32, p: Xielu) -> f32 {
    let curved = match x > 0.0 {
        true => p.rise * x * x,
        false => p.fall * (x.min(p.bound).exp_m1() - x),
    };
    curved + p.slope * x
}

#[inline(always)]
fn xielu_slope(x: f32, p: Xielu) -> f32 {
    // Between the bound and 0 the exponential is constant.
    let rising = if x < p.bound { x.exp() } else { 0.0 };
    let curved = match x > 0.0 {
        true => 2.0 * p.rise * x,
        false => p.fall * (rising - 1.0),
    };
    curved + p.slope
}

/// The tanh form: x / 2 (1 + tanh u) = x sigmoid(2 u).
#[inline(always)]
fn gelu(x: f32) -> f32 {
    x * sigmoid(TWICE_ROOT * x * (1.0 + CUBIC * x * x))
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    let s = sigmoid(TWICE_ROOT * x * (1.0 + CUBIC * x * x));
    s + x * s * (1.0 - s) * TWICE_ROOT * (1.0 + 3.0 * CUBIC * x * x)
}
