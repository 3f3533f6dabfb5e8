//! Signs of eight weights in a byte (bit i set: weight i is negative), or in seven bits where their parity is even.

/// Seven sign bits, when the eighth is what makes the number of negative weights even.
pub(super) const EVEN_MASK: u8 = 0x7f;

/// How a format keeps the signs of eight weights.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Signs {
    /// In eight bits.
    Free,
    /// In seven bits; an odd number of minus signs cannot be told, so the cheapest weight gets the wrong sign.
    Even,
}

impl Signs {
    /// Splits weights into signs and magnitudes. The weight that got the wrong sign has a negative magnitude.
    #[inline]
    pub(super) fn split(self, x: &[f32; 8], importance: &[f32; 8]) -> (u8, [f32; 8]) {
        let mut signs = 0;
        let mut magnitudes = *x;
        for (i, v) in magnitudes.iter_mut().enumerate() {
            // Written so that a NaN counts as negative, as in ggml.
            let positive = *v >= 0.0;
            if !positive {
                *v = -*v;
                signs |= 1 << i;
            }
        }
        if self == Signs::Free {
            return (signs, magnitudes);
        }
        if signs.count_ones() % 2 == 1 {
            let cost = |i: usize| importance[i] * x[i] * x[i];
            let cheapest = (1..8).fold(0, |cheapest, i| if cost(i) < cost(cheapest) { i } else { cheapest });
            magnitudes[cheapest] = -magnitudes[cheapest];
            signs ^= 1 << cheapest;
        }
        (signs & EVEN_MASK, magnitudes)
    }

    /// The signs of the same weights, all turned round.
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

/// `scale * value`, with the signs put on.
#[inline]
pub(super) fn signed<const D: usize>(scale: f32, values: &[f32; D], signs: u8, out: &mut [f32; D]) {
    for (i, (w, value)) in out.iter_mut().zip(values).enumerate() {
        *w = f32::from_bits((scale * value).to_bits() ^ u32::from(signs >> i & 1) << 31);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_signs_come_back_complete() {
        let x = [1.0, -2.0, 3.0, -4.0, 5.0, 6.0, -7.0, -8.0];
        let (signs, magnitudes) = Signs::Even.split(&x, &[1.0; 8]);
        assert_eq!(magnitudes, x.map(f32::abs));
        assert_eq!(complete(signs), 0b1100_1010);
        assert_eq!(complete(Signs::Even.flipped(signs)), 0b0011_0101);
    }

    #[test]
    fn an_odd_number_of_signs_costs_the_cheapest_weight_its_own() {
        let x = [1.0, -2.0, 3.0, 4.0, 0.5, 6.0, 7.0, 8.0];
        let (signs, magnitudes) = Signs::Even.split(&x, &[1.0; 8]);
        assert_eq!(magnitudes, [1.0, 2.0, 3.0, 4.0, -0.5, 6.0, 7.0, 8.0]);
        assert_eq!(complete(signs), 0b0001_0010);
        let (_, magnitudes) = Signs::Even.split(&x, &[0.01, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(magnitudes[0], -1.0);
    }
}
