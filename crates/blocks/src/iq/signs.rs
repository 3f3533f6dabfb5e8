//! Signs of eight weights in a byte (bit i set: weight i is negative), or in seven bits with even
//! parity.

use crate::simd::Simd;

/// Mask of seven sign bits, when the eighth makes the number of negative weights even.
pub(super) const EVEN_MASK: u8 = 0x7f;

/// Encoding of the signs of eight weights.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Signs {
    /// In eight bits.
    Free,
    /// In seven bits; an odd number of minus signs cannot be encoded, so the cheapest weight gets
    /// the wrong sign.
    Even,
}

impl Signs {
    /// Splits eight weights per lane into magnitudes, in place, and signs. The weight with the
    /// wrong sign keeps a negative magnitude.
    #[inline(always)]
    pub(super) fn split<S: Simd>(
        self,
        simd: S,
        x: &mut [S::F32; 8],
        importance: &[S::F32; 8],
    ) -> S::I32 {
        let (zero, none) = (simd.splat(0.0), simd.splat_i32(0));
        let bit = |i: usize| simd.splat_i32(1 << i);
        // The bit of the weight whose wrong sign costs least, the first of equals.
        let cost = |x: S::F32, importance: S::F32| importance * x * x;
        let (mut least, mut cheapest) = (cost(x[0], importance[0]), bit(0));
        let (mut signs, mut count) = (none, none);
        for (i, (v, &importance)) in x.iter_mut().zip(importance).enumerate() {
            // In this form, a NaN counts as negative, as in ggml.
            let negative = simd.not(simd.ge(*v, zero));
            signs = simd.or(signs, simd.select_i32(negative, bit(i), none));
            if self == Signs::Even {
                count = count + simd.select_i32(negative, bit(0), none);
                let cost = cost(*v, importance);
                cheapest = simd.select_i32(simd.lt(cost, least), bit(i), cheapest);
                least = simd.min(cost, least);
            }
            *v = simd.select(negative, simd.neg(*v), *v);
        }
        if self == Signs::Free {
            return signs;
        }
        let odd = simd.eq_i32(simd.and(count, bit(0)), bit(0));
        let turned = simd.select_i32(odd, cheapest, none);
        for (i, v) in x.iter_mut().enumerate() {
            *v = simd.select(simd.eq_i32(turned, bit(i)), simd.neg(*v), *v);
        }
        // Exclusive or.
        let other = simd.or(signs, turned) - simd.and(signs, turned);
        simd.and(other, simd.splat_i32(EVEN_MASK.into()))
    }

    /// The signs of the same weights, negated.
    #[inline]
    pub(super) fn flipped(self, signs: u8) -> u8 {
        match self {
            Signs::Free => !signs,
            Signs::Even => !signs & EVEN_MASK,
        }
    }
}

/// All eight signs from the seven that an even format stores.
#[inline]
pub(super) fn complete(seven: u8) -> u8 {
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

/// The little-endian word of 32 weights: four times seven signs, then a four-bit code.
#[inline]
pub(super) fn signs_and_code(signs: [u8; 4], code: u8) -> [u8; 4] {
    let signs = signs
        .iter()
        .rev()
        .fold(0, |word, &s| word << 7 | u32::from(s));
    (signs | u32::from(code) << 28).to_le_bytes()
}

/// `scale * value` with these signs.
#[inline(always)]
pub(super) fn signed<V: Simd>(simd: V, scale: f32, values: &[f32; 8], signs: u8) -> [f32; 8] {
    simd.store(simd.negate_where(signs, simd.splat(scale) * simd.load(values)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Scalar;

    /// Signs and magnitudes of one group.
    fn split(rule: Signs, x: [f32; 8], importance: [f32; 8]) -> (u8, [f32; 8]) {
        let mut lanes = x.map(|v| Scalar.splat(v));
        let signs = rule.split(Scalar, &mut lanes, &importance.map(|w| Scalar.splat(w)));
        (Scalar.store_u8(signs)[7], lanes.map(|v| Scalar.store(v)[7]))
    }

    #[test]
    fn even_signs_round_trip() {
        let x = [1.0, -2.0, 3.0, -4.0, 5.0, 6.0, -7.0, -8.0];
        let (signs, magnitudes) = split(Signs::Even, x, [1.0; 8]);
        assert_eq!(magnitudes, x.map(f32::abs));
        assert_eq!(complete(signs), 0b1100_1010);
        assert_eq!(complete(Signs::Even.flipped(signs)), 0b0011_0101);
    }

    #[test]
    fn odd_signs_flip_the_cheapest_weight() {
        let x = [1.0, -2.0, 3.0, 4.0, 0.5, 6.0, 7.0, 8.0];
        let (signs, magnitudes) = split(Signs::Even, x, [1.0; 8]);
        assert_eq!(magnitudes, [1.0, 2.0, 3.0, 4.0, -0.5, 6.0, 7.0, 8.0]);
        assert_eq!(complete(signs), 0b0001_0010);
        let (_, magnitudes) = split(Signs::Even, x, [0.01, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(magnitudes[0], -1.0);
    }
}
