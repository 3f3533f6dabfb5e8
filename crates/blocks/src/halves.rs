//! The f16 numbers of blocks: where each type stores them, and each weight's derivative by them.
//!
//! Weights are linear in every one: `w = d * a`, or `w = d * a + m * b`, with factors `a` and `b`
//! from codes and sub-scales. So the part of a weight that belongs to a number is the weight with the
//! other numbers 0, and its derivative is that part over the number.

use crate::Codec;
use crate::types::GgmlType;
use half::f16;

/// Places of a block's f16 numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Places {
    /// At these offsets, in bytes: the scale, then the offset's scale if there is one.
    At(&'static [usize]),
    /// The scale alone, four bits each at the top of four words of two bytes from this offset on, the
    /// lowest first.
    Nibbles(usize),
}

impl Places {
    /// Those of a type; none for plain numbers and for scales that are powers of two or f8.
    const fn of(ggml_type: GgmlType) -> Places {
        const FIRST: Places = Places::At(&[0]);
        const FIRST_TWO: Places = Places::At(&[0, 2]);
        match ggml_type {
            GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => FIRST,
            GgmlType::Q1_0 | GgmlType::Q2_0 => FIRST,
            GgmlType::Q4_1 | GgmlType::Q5_1 => FIRST_TWO,
            GgmlType::Q2_K => Places::At(&[80, 82]),
            GgmlType::Q3_K => Places::At(&[108]),
            GgmlType::Q4_K | GgmlType::Q5_K => FIRST_TWO,
            GgmlType::Q6_K => Places::At(&[208]),
            GgmlType::TQ1_0 => Places::At(&[52]),
            GgmlType::TQ2_0 => Places::At(&[64]),
            GgmlType::IQ1_M => Places::Nibbles(48),
            GgmlType::IQ1_S | GgmlType::IQ2_XXS | GgmlType::IQ2_XS | GgmlType::IQ2_S => FIRST,
            GgmlType::IQ3_XXS | GgmlType::IQ3_S | GgmlType::IQ4_NL | GgmlType::IQ4_XS => FIRST,
            _ => Places::At(&[]),
        }
    }
}

impl Codec {
    /// Number of f16 numbers in a block: 0 to 2.
    pub fn halves(&self) -> usize {
        match Places::of(self.ggml_type) {
            Places::At(offsets) => offsets.len(),
            Places::Nibbles(_) => 1,
        }
    }

    /// One of a block's f16 numbers.
    ///
    /// # Panics
    /// If the type has fewer, or the block is too short.
    pub fn half(&self, block: &[u8], number: usize) -> f32 {
        let bits = match Places::of(self.ggml_type) {
            Places::At(offsets) => {
                let at = offsets[number];
                u16::from_le_bytes([block[at], block[at + 1]])
            }
            Places::Nibbles(first) => {
                let nibble = |i: usize| u16::from(block[first + 2 * i + 1] >> 4) << (4 * i);
                (0..4).map(nibble).sum()
            }
        };
        f16::from_bits(bits).to_f32()
    }

    /// Replaces one of a block's f16 numbers by the nearest to `value`; other bits stay.
    ///
    /// # Panics
    /// If the type has fewer, or the block is too short.
    pub fn set_half(&self, block: &mut [u8], number: usize, value: f32) {
        let bits = f16::from_f32(value).to_bits();
        match Places::of(self.ggml_type) {
            Places::At(offsets) => {
                block[offsets[number]..][..2].copy_from_slice(&bits.to_le_bytes());
            }
            Places::Nibbles(first) => {
                for i in 0..4 {
                    let byte = &mut block[first + 2 * i + 1];
                    *byte = *byte & 0x0f | ((bits >> (4 * i) & 15) as u8) << 4;
                }
            }
        }
    }

    /// The parts of a row's weights, or of any whole number of blocks, that belong to one of the f16
    /// numbers: `[blocks, block_len]`. All parts add up to the weights.
    ///
    /// # Panics
    /// If lengths do not match, or the type has fewer numbers.
    pub fn part_of_half(&self, row: &[u8], number: usize, parts: &mut [f32]) {
        if self.halves() == 1 {
            return self.dequantize_row(row, parts);
        }
        let mut row = row.to_vec();
        for block in row.chunks_exact_mut(self.ggml_type.block_bytes()) {
            for other in (0..self.halves()).filter(|other| *other != number) {
                self.set_half(block, other, 0.0);
            }
        }
        self.dequantize_row(&row, parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quantier_core::rng::Rng;

    /// Two blocks of random weights.
    fn blocks(codec: &Codec) -> (Vec<u8>, Vec<f32>) {
        let len = 2 * codec.ggml_type.block_len();
        let mut rng = Rng::new(5);
        let weights: Vec<f32> = (0..len).map(|_| rng.gaussian()).collect();
        let mut row = vec![0; 2 * codec.ggml_type.block_bytes()];
        codec.quantize_row(&weights, Some(&vec![1.0; len]), &mut row);
        let mut back = vec![0.0; len];
        codec.dequantize_row(&row, &mut back);
        (row, back)
    }

    #[test]
    fn weights_are_linear_in_every_half() {
        for codec in Codec::all().iter().filter(|codec| codec.halves() > 0) {
            let (row, weights) = blocks(codec);
            let (len, bytes) = (codec.ggml_type.block_len(), codec.ggml_type.block_bytes());
            let mut sum = vec![0.0; weights.len()];
            for number in 0..codec.halves() {
                let mut part = vec![0.0; weights.len()];
                codec.part_of_half(&row, number, &mut part);
                assert!(part.iter().any(|x| *x != 0.0), "{}", codec.ggml_type);
                // Twice the number in the second block alone.
                let mut doubled = row.clone();
                let half = codec.half(&row[bytes..], number);
                codec.set_half(&mut doubled[bytes..], number, 2.0 * half);
                assert_eq!(codec.half(&doubled[bytes..], number), 2.0 * half);
                let mut found = vec![0.0; weights.len()];
                codec.dequantize_row(&doubled, &mut found);
                for i in 0..weights.len() {
                    let added = if i < len { 0.0 } else { part[i] };
                    let (found, expected) = (found[i], weights[i] + added);
                    assert!((found - expected).abs() < 1e-5, "{}: {i}", codec.ggml_type);
                    sum[i] += part[i];
                }
                codec.set_half(&mut doubled[bytes..], number, half);
                assert_eq!(doubled, row, "{}", codec.ggml_type);
            }
            let places = sum.iter().zip(&weights);
            assert!(places.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn every_type_with_a_scale_has_halves() {
        let without = Codec::all().iter().filter(|codec| codec.halves() == 0);
        let names: Vec<&str> = without.map(|codec| codec.ggml_type.name()).collect();
        assert_eq!(names, ["f32", "f16", "bf16", "mxfp4", "nvfp4"]);
    }
}
