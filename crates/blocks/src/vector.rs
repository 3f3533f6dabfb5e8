//! Plain loops over f32, compiled for the vector instructions of the CPU.
//!
//! The compiler vectorizes them. It neither reorders sums nor contracts products, so the results are
//! the same on every CPU.

use crate::simd::{Isa, Kernel, Simd};

/// Number of parallel sums in a loop, for vectorization.
pub const LANES: usize = 8;

/// Runs `f`, compiled for each instruction set of [`simd`](crate::simd), with the best one of this
/// CPU. `f` is a closure with `#[inline(always)]`, and calls functions that are inlined: what is not inlined is
/// compiled for every x86-64 processor.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    struct Plain<F>(F);
    impl<R, F: FnOnce() -> R> Kernel for Plain<F> {
        type Output = R;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    Isa::best().run(Plain(f))
}

/// e^x for x <= 0, with a relative error below 3e-7; x below -87 counts as -87, which is negligible
/// against 1. NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; the Taylor series of e^r to r^7 is off by less than 6e-9
    // there.
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number.
    const LN2_HIGH: f32 = 0.693_359_4; // 355 / 512, so that its product with n is exact
    const LN2_LOW: f32 = -2.121_944_4e-4; // ln 2 - LN2_HIGH
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    // 2^n in the exponent's bits: the low bits of `shifted` are n.
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// 1 / (1 + e^-x), to the precision of [`exp`].
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// Sum of squares in f64: lane by lane, then over the lanes.
#[inline(always)]
pub fn sum_of_squares(xs: &[f32]) -> f64 {
    let (chunks, rest) = xs.as_chunks::<LANES>();
    let mut sums = [0.0f64; LANES];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    sums.iter().sum::<f64>()
        + rest
            .iter()
            .map(|x| f64::from(*x) * f64::from(*x))
            .sum::<f64>()
}

/// Sum in f64: lane by lane, then over the lanes.
#[inline(always)]
pub fn sum(xs: &[f32]) -> f64 {
    let (chunks, rest) = xs.as_chunks::<LANES>();
    let mut sums = [0.0f64; LANES];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*x);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x)).sum::<f64>()
}

/// Adds numbers, each times a factor, to sums.
#[inline(always)]
pub fn add_scaled(sums: &mut [f32], numbers: &[f32], factor: f32) {
    sums.iter_mut()
        .zip(numbers)
        .for_each(|(sum, x)| *sum += factor * x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_error_is_bounded() {
        for i in 0..2_000_000 {
            let x = -86.9 * (i as f32) / 2e6;
            let want = f64::from(x).exp();
            assert!(
                (f64::from(exp(x)) / want - 1.0).abs() < 3e-7,
                "exp({x}) = {}",
                exp(x)
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_error_is_bounded_on_both_sides() {
        for i in -1_000_000..1_000_000 {
            let x = 85.0 * (i as f32) / 1e6;
            let want = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!(
                (f64::from(sigmoid(x)) / want - 1.0).abs() < 5e-7,
                "sigmoid({x}) = {}",
                sigmoid(x)
            );
        }
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(0.0)), (1.0, 0.5));
        assert!(sigmoid(f32::NEG_INFINITY) < 1e-37 && sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn results_are_independent_of_the_cpu() {
        let xs: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin() * 20.0).collect();
        let plain = (
            xs.iter().map(|x| sigmoid(*x)).collect::<Vec<_>>(),
            sum_of_squares(&xs),
            sum(&xs),
        );
        let fast = vectorized(
            #[inline(always)]
            || {
                (
                    xs.iter().map(|x| sigmoid(*x)).collect::<Vec<_>>(),
                    sum_of_squares(&xs),
                    sum(&xs),
                )
            },
        );
        assert_eq!(plain, fast);
    }
}
