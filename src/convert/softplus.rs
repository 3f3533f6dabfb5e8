//! ln(1 + exp(x)) with the bits of PyTorch, whose vectors take both functions from SLEEF (Shibata and
//! Petrogalli 2020).
//!
//! ```text
//! exp(x)       2^q (1 + s + s^2 p(s)),  q = x / ln 2 to the nearest,  s = x - q ln 2
//! ln(1 + x)    e ln 2 + 2 artanh(m / (2 + m)),  1 + x = 2^e (1 + m)
//! ```
//!
//! Sums and products are those of SLEEF with fused multiply-add, in its order. Numbers written as
//! pairs are exact sums of two f32.

/// PyTorch's threshold, beyond which the difference from x is lost.
const LARGE: f32 = 20.0;

/// ln 2 in two parts; the first has few bits, so that its products are exact.
const LN2: [f32; 2] = [0.693_145_75, 1.428_606_8e-6];
/// ln 2 as a pair.
const LN2_PAIR: [f32; 2] = [std::f32::consts::LN_2, -1.904_654_2e-9];

/// Coefficients of exp(s), from the highest power.
const EXP: [f32; 6] = [
    0.000_198_527_62,
    0.001_393_043_6,
    0.008_333_361,
    0.041_666_485,
    0.166_666_67,
    0.5,
];

/// Coefficients of 2 artanh, from the highest power.
const ARTANH: [f32; 3] = [0.302_729_5, 0.399_610_82, 0.666_669_5];

/// ln(1 + exp(x)).
pub(super) fn softplus(x: f32) -> f32 {
    match x > LARGE {
        true => x,
        false => ln_1p(exp(x)),
    }
}

fn exp(x: f32) -> f32 {
    /// The result is 0 below.
    const LEAST: f32 = -104.0;
    if x < LEAST {
        return 0.0;
    }
    let q = (x * std::f32::consts::LOG2_E).round_ties_even();
    let s = q.mul_add(-LN2[1], q.mul_add(-LN2[0], x));
    let p = EXP[1..].iter().fold(EXP[0], |p, c| p.mul_add(s, *c));
    let u = 1.0 + (s * s).mul_add(p, s);
    // In two steps: the result may have an exponent that no f32 has.
    let half = (q as i32) >> 1;
    u * power(half) * power(q as i32 - half)
}

fn ln_1p(x: f32) -> f32 {
    let e = exponent((x + 1.0) * (1.0 / 0.75));
    let t = power(-e);
    let m = x.mul_add(t, t - 1.0);
    let whole = {
        let (e, product) = (e as f32, LN2_PAIR[0] * e as f32);
        let rest = LN2_PAIR[0].mul_add(e, -product);
        [product, LN2_PAIR[1].mul_add(e, rest)]
    };
    let divisor = [2.0 + m, (2.0 - (2.0 + m)) + m];
    let ratio = {
        let inverse = 1.0 / divisor[0];
        let ratio = m * inverse;
        let rest = inverse.mul_add(m, -ratio);
        let lost = (-divisor[0]).mul_add(inverse, 1.0);
        let lost = (-divisor[1]).mul_add(inverse, lost);
        [ratio, ratio.mul_add(lost, rest)]
    };
    let square = ratio[0] * ratio[0];
    let p = ARTANH[1..]
        .iter()
        .fold(ARTANH[0], |p, c| p.mul_add(square, *c));
    let first = whole[0] + 2.0 * ratio[0];
    let rest = (((whole[0] - first) + 2.0 * ratio[0]) + whole[1]) + 2.0 * ratio[1];
    let last = (square * ratio[0]) * p;
    let sum = first + last;
    sum + (((first - sum) + last) + rest)
}

/// 2 to this power, which is normal.
fn power(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The exponent of a positive normal number.
fn exponent(x: f32) -> i32 {
    (x.to_bits() >> 23) as i32 - 127
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits taken from PyTorch on the same inputs.
    #[test]
    fn the_bits_are_those_of_pytorch() {
        for (x, bits) in [
            (0.0, 0x3f31_7218),
            (1.0, 0x3fa8_18f5),
            (-1.0, 0x3ea0_63d6),
            (0.05, 0x3f37_ecf9),
            (-0.031, 0x3f2d_8228),
            (2.5, 0x4025_0c88),
            (-7.25, 0x3a3a_1a15),
            (19.5, 0x419c_0000),
            (-40.0, 0x229c_bc92),
            (1e-3, 0x3f31_92df),
            (0.7, 0x3f8d_3533),
            (-0.7, 0x3ece_6e67),
            (3.3, 0x4055_849e),
            (11.1, 0x4131_99aa),
            (-15.5, 0x3447_389b),
            (-2.2, 0x3dd7_35ec),
        ] {
            assert_eq!(softplus(x).to_bits(), bits, "{x}");
        }
        assert_eq!(softplus(25.0), 25.0);
        assert_eq!(softplus(-110.0), 0.0);
    }
}
