//! What is done to each row or number on its own: norms and activations. On this computer each call
//! stays on its thread, since chunks run side by side; on other devices candle does it.

use super::derived;
use super::product::numbers;
use crate::arch::Activation;
use crate::vector::{sigmoid, sum, sum_of_squares, vectorized};
use candle_core::{D, Result, Tensor};

const TWICE_ROOT: f32 = 1.595_769; // 2 sqrt(2 / pi)
const CUBIC: f32 = 0.044_715;

/// Every row divided by the root of its mean square, times `weight`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return match x.track_op() {
            true => candle_nn::ops::rms_norm_slow(&x.contiguous()?, weight, epsilon),
            false => candle_nn::ops::rms_norm(&x.contiguous()?, weight, epsilon),
        };
    }
    if x.track_op() {
        let (y, weight) = (rms_norm(&x.detach(), weight, epsilon)?, weight.clone());
        return derived::of_one(x, &y, move |x, g| {
            norm_derivative(x, g, &weight, epsilon, false)
        });
    }
    let columns = x.dim(D::Minus1)?;
    let normalize = |row: &mut [f32], weight: &[f32]| {
        let mean = sum_of_squares(row) / columns as f64;
        let scale = 1.0 / (mean as f32 + epsilon).sqrt();
        row.iter_mut()
            .zip(weight)
            .for_each(|(x, weight)| *x = *x * scale * weight);
    };
    numbers(weight, |weight| {
        changed(x, |out| {
            vectorized(|| {
                out.chunks_exact_mut(columns)
                    .for_each(|row| normalize(row, weight))
            })
        })
    })
}

/// Every row less its mean, divided by its standard deviation, times `weight`, plus `bias`.
pub(super) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f32,
) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return match x.track_op() {
            true => candle_nn::ops::layer_norm_slow(&x.contiguous()?, weight, bias, epsilon),
            false => candle_nn::ops::layer_norm(&x.contiguous()?, weight, bias, epsilon),
        };
    }
    if x.track_op() {
        let (y, weight) = (
            layer_norm(&x.detach(), weight, bias, epsilon)?,
            weight.clone(),
        );
        return derived::of_one(x, &y, move |x, g| {
            norm_derivative(x, g, &weight, epsilon, true)
        });
    }
    let columns = x.dim(D::Minus1)?;
    let normalize = |row: &mut [f32], weight: &[f32], bias: &[f32]| {
        let mean = (sum(row) / columns as f64) as f32;
        row.iter_mut().for_each(|x| *x -= mean);
        let variance = sum_of_squares(row) / columns as f64;
        let scale = 1.0 / (variance as f32 + epsilon).sqrt();
        let places = row.iter_mut().zip(weight).zip(bias);
        places.for_each(|((x, weight), bias)| *x = *x * scale * weight + bias);
    };
    numbers(weight, |weight| {
        numbers(bias, |bias| {
            let rows = |out: &mut [f32]| {
                out.chunks_exact_mut(columns)
                    .for_each(|row| normalize(row, weight, bias))
            };
            changed(x, |out| vectorized(|| rows(out)))
        })
    })
}

/// `x` plus `scale` times `y`.
pub(super) fn add(x: &Tensor, y: &Tensor, scale: f32) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return if scale == 1.0 {
            x + y
        } else {
            x + (y * f64::from(scale))?
        };
    }
    if x.track_op() || y.track_op() {
        let sum = add(&x.detach(), &y.detach(), scale)?;
        return derived::of_two([x, y], &sum, move |_, g| {
            let of_y = if scale == 1.0 {
                g.clone()
            } else {
                changed(g, |g| g.iter_mut().for_each(|g| *g *= scale))?
            };
            Ok([Some(g.clone()), Some(of_y)])
        });
    }
    numbers(y, |y| {
        changed(x, |out| {
            vectorized(|| out.iter_mut().zip(y).for_each(|(out, y)| *out += y * scale))
        })
    })
}

/// Every row plus `bias`.
pub(super) fn add_to_rows(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.broadcast_add(bias);
    }
    if x.track_op() {
        return derived::of_one(x, &add_to_rows(&x.detach(), bias)?, |_, g| Ok(g.clone()));
    }
    let add =
        |row: &mut [f32], bias: &[f32]| row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    let columns = x.dim(D::Minus1)?.max(1);
    numbers(bias, |bias| {
        changed(x, |out| {
            vectorized(|| out.chunks_exact_mut(columns).for_each(|row| add(row, bias)))
        })
    })
}

/// Every row of `[rows, columns]` times its number of `[rows, 1]`.
pub(super) fn scale_rows(x: &Tensor, scales: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.broadcast_mul(scales);
    }
    let columns = x.dim(D::Minus1)?.max(1);
    if x.track_op() || scales.track_op() {
        let y = scale_rows(&x.detach(), &scales.detach())?;
        return derived::of_two([x, scales], &y, move |[x, scales], g| {
            let dot = |(x, g): (&[f32], &[f32])| x.iter().zip(g).map(|(x, g)| x * g).sum::<f32>();
            let of_scales: Vec<f32> = numbers(x, |x| {
                numbers(g, |g| {
                    Ok(x.chunks_exact(columns)
                        .zip(g.chunks_exact(columns))
                        .map(dot)
                        .collect())
                })
            })?;
            let of_scales = Tensor::from_vec(of_scales, scales.shape(), scales.device())?;
            Ok([Some(scale_rows(g, scales)?), Some(of_scales)])
        });
    }
    numbers(scales, |scales| {
        changed(x, |out| {
            let rows = out.chunks_exact_mut(columns).zip(scales);
            vectorized(|| rows.for_each(|(row, scale)| row.iter_mut().for_each(|x| *x *= scale)));
        })
    })
}

/// Bends each number to stay below `cap`.
pub(super) fn bend(xs: &mut [f32], cap: Option<f32>) {
    if let Some(cap) = cap {
        xs.iter_mut().for_each(|x| *x = (*x / cap).tanh() * cap);
    }
}

/// A copy of the numbers, changed.
fn changed(x: &Tensor, change: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let mut out = numbers(x, |x| Ok(x.to_vec()))?;
    change(&mut out);
    Tensor::from_vec(out, x.shape(), x.device())
}

/// With `c` the row, less its mean if that is taken off, `s` what it is multiplied by and `h` the
/// gradient times the weight: `s (h - c s^2 mean(c h))`, less its mean if that is taken off.
fn norm_derivative(
    x: &Tensor,
    g: &Tensor,
    weight: &Tensor,
    epsilon: f32,
    centred: bool,
) -> Result<Tensor> {
    let columns = x.dim(D::Minus1)?;
    let mut out = numbers(g, |g| Ok(g.to_vec()))?;
    numbers(x, |x| {
        numbers(weight, |weight| {
            let mut c = vec![0.0f32; columns];
            for (h, x) in out.chunks_exact_mut(columns).zip(x.chunks_exact(columns)) {
                vectorized(|| {
                    let mean = if centred {
                        (sum(x) / columns as f64) as f32
                    } else {
                        0.0
                    };
                    c.iter_mut().zip(x).for_each(|(c, x)| *c = x - mean);
                    let s = 1.0 / ((sum_of_squares(&c) / columns as f64) as f32 + epsilon).sqrt();
                    h.iter_mut()
                        .zip(weight)
                        .for_each(|(h, weight)| *h *= weight);
                    let both: f64 = c.iter().zip(&*h).map(|(c, h)| f64::from(c * h)).sum();
                    let back = s * s * (both / columns as f64) as f32;
                    h.iter_mut()
                        .zip(&c)
                        .for_each(|(h, c)| *h = s * (*h - c * back));
                    let mean = if centred {
                        (sum(h) / columns as f64) as f32
                    } else {
                        0.0
                    };
                    h.iter_mut().for_each(|h| *h -= mean);
                });
            }
            Ok(())
        })
    })?;
    Tensor::from_vec(out, x.shape(), x.device())
}

/// The activation of each number.
pub(super) fn activated(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return match activation {
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu(),
        };
    }
    if x.track_op() {
        return derived::of_one(x, &activated(&x.detach(), activation)?, move |x, g| {
            numbers(g, |g| {
                changed(x, |out| {
                    vectorized(|| match activation {
                        Activation::Silu => out
                            .iter_mut()
                            .zip(g)
                            .for_each(|(x, g)| *x = silu_slope(*x) * g),
                        Activation::Gelu => out
                            .iter_mut()
                            .zip(g)
                            .for_each(|(x, g)| *x = gelu_slope(*x) * g),
                    });
                })
            })
        });
    }
    changed(x, |out| {
        vectorized(|| match activation {
            Activation::Silu => out.iter_mut().for_each(|x| *x = silu(*x)),
            Activation::Gelu => out.iter_mut().for_each(|x| *x = gelu(*x)),
        });
    })
}

/// The activation of each number of `gate`, times that of `up`.
pub(super) fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if !gate.device().is_cpu() {
        return activated(&gate.contiguous()?, activation)? * up;
    }
    if gate.track_op() || up.track_op() {
        let y = gated(&gate.detach(), &up.detach(), activation)?;
        return derived::of_two([gate, up], &y, move |[gate, up], g| {
            let of_up = gated(gate, g, activation)?;
            let of_gate = gate_derivative(gate, up, g, activation)?;
            Ok([Some(of_gate), Some(of_up)])
        });
    }
    numbers(up, |up| {
        changed(gate, |out| {
            vectorized(|| match activation {
                Activation::Silu => out
                    .iter_mut()
                    .zip(up)
                    .for_each(|(x, up)| *x = silu(*x) * up),
                Activation::Gelu => out
                    .iter_mut()
                    .zip(up)
                    .for_each(|(x, up)| *x = gelu(*x) * up),
            });
        })
    })
}

/// The slope of the activation at `gate`, times `up`, times the gradient.
fn gate_derivative(
    gate: &Tensor,
    up: &Tensor,
    g: &Tensor,
    activation: Activation,
) -> Result<Tensor> {
    numbers(up, |up| {
        numbers(g, |g| {
            let rest = up.iter().zip(g);
            changed(gate, |out| {
                let places = out.iter_mut().zip(rest);
                vectorized(|| match activation {
                    Activation::Silu => {
                        places.for_each(|(x, (up, g))| *x = silu_slope(*x) * up * g)
                    }
                    Activation::Gelu => {
                        places.for_each(|(x, (up, g))| *x = gelu_slope(*x) * up * g)
                    }
                });
            })
        })
    })
}

#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    let s = sigmoid(TWICE_ROOT * x * (1.0 + CUBIC * x * x));
    s + x * s * (1.0 - s) * TWICE_ROOT * (1.0 + 3.0 * CUBIC * x * x)
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// The form with a hyperbolic tangent: x / 2 (1 + tanh u) = x sigmoid(2 u).
#[inline(always)]
fn gelu(x: f32) -> f32 {
    x * sigmoid(TWICE_ROOT * x * (1.0 + CUBIC * x * x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(n: usize) -> Tensor {
        let numbers: Vec<f32> = (0..3 * n)
            .map(|i| ((i * 7919) % 1000) as f32 / 50.0 - 10.0)
            .collect();
        Tensor::from_vec(numbers, (3, n), &Device::Cpu).unwrap()
    }

    fn near(ours: &Tensor, theirs: &Tensor, bound: f32) {
        let pairs = ours.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let theirs = theirs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (i, (a, b)) in pairs.iter().zip(&theirs).enumerate() {
            assert!((a - b).abs() <= bound * b.abs().max(1e-3), "{i}: {a} {b}");
        }
    }

    #[test]
    fn derivatives_are_those_that_differences_show() {
        let (weight, bias) = (
            derived::tests::random(&[7], 5),
            derived::tests::random(&[7], 6),
        );
        let check = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>, shapes: &[&[usize]]| {
            derived::tests::check(f, shapes)
        };
        check(&|x| rms_norm(&x[0], &weight, 1e-3), &[&[3, 7]]);
        check(&|x| layer_norm(&x[0], &weight, &bias, 1e-3), &[&[3, 7]]);
        check(&|x| add(&x[0], &x[1], 0.3), &[&[3, 7], &[3, 7]]);
        check(&|x| add_to_rows(&x[0], &bias), &[&[3, 7]]);
        check(&|x| scale_rows(&x[0], &x[1]), &[&[3, 7], &[3, 1]]);
        for activation in [Activation::Silu, Activation::Gelu] {
            check(&|x| activated(&(&x[0] * 3.0)?, activation), &[&[3, 7]]);
            check(
                &|x| gated(&(&x[0] * 3.0)?, &x[1], activation),
                &[&[3, 7], &[3, 7]],
            );
        }
    }

    /// candle's own operations as the second opinion.
    #[test]
    fn rows_agree_with_candle() {
        for n in [1, 7, 64, 101] {
            let x = tensor(n);
            let (weight, bias) = (x.get(1).unwrap(), x.get(2).unwrap());
            near(
                &rms_norm(&x, &weight, 1e-5).unwrap(),
                &candle_nn::ops::rms_norm(&x, &weight, 1e-5).unwrap(),
                1e-5,
            );
            if n > 1 {
                let ours = layer_norm(&x, &weight, &bias, 1e-5).unwrap();
                near(
                    &ours,
                    &candle_nn::ops::layer_norm_slow(&x, &weight, &bias, 1e-5).unwrap(),
                    1e-4,
                );
            }
            near(
                &activated(&x, Activation::Silu).unwrap(),
                &x.silu().unwrap(),
                1e-6,
            );
            near(
                &activated(&x, Activation::Gelu).unwrap(),
                &x.gelu().unwrap(),
                1e-4,
            );
            let (up, both) = (
                (&x + 1.0).unwrap(),
                gated(&x, &(&x + 1.0).unwrap(), Activation::Silu).unwrap(),
            );
            near(&both, &(x.silu().unwrap() * up).unwrap(), 1e-6);
            near(
                &add(&x, &both, 0.5).unwrap(),
                &(&x + (&both * 0.5).unwrap()).unwrap(),
                1e-6,
            );
            near(
                &add_to_rows(&x, &bias).unwrap(),
                &x.broadcast_add(&bias).unwrap(),
                0.0,
            );
            let scales = x.narrow(1, 0, 1).unwrap();
            near(
                &scale_rows(&x, &scales).unwrap(),
                &x.broadcast_mul(&scales).unwrap(),
                0.0,
            );
        }
    }
}
