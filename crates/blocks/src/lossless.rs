//! Rows that a type holds without loss: their weights lie on the grid of its blocks.
//!
//! Checkpoints are made of such rows if they were trained for a type (Google's QAT releases for
//! Q4_0), or widened from integers or small floats (AWQ, GPTQ, MXFP4). The reference's quantizers
//! search for scales of small error and mostly miss the scales of such a row. Here they are solved
//! for:
//!
//! ```text
//! for each sub-block: for each number of the grid that the weight of largest magnitude may stand for:
//!     interval of steps, from that weight and the precision that the weights were stored in
//!     for each weight: its nearest number narrows the interval, or empties it
//!     the step of fewest bits within the interval that the type can store
//! ```
//!
//! *Without loss* means: each decoded weight is the stored one, or rounds to it in the precision
//! that the checkpoint has, the narrowest of bf16, f16 and f32 that holds all weights of the
//! sub-block. The former is tried first. A type with an offset has to store it as f16, which moves
//! all weights of the block: they may also be off by half a unit in the last place of the least of
//! them, in f16 or in the checkpoint's precision.

use super::feedback::{Grid, Stepped};
use super::num::Half;
use crate::simd::Scalar;
use std::ops::RangeInclusive;

/// A type whose scales can be solved for.
pub(crate) trait Solvable<const N: usize>: Stepped<N> {
    /// Significant bits of a step.
    const STEP_BITS: i32;
    /// True if blocks have an offset of their own, an f16.
    const HAS_OFFSET: bool = false;
    /// True if a negative step reaches weights out of reach of a positive one.
    const HAS_NEGATIVE_STEPS: bool = false;

    /// Stores step and offset of a sub-block, as exactly as the type can.
    fn set_scale(&mut self, sub: usize, step: f32, offset: f32);
}

/// [`Codec::encode_lossless`](crate::Codec::encode_lossless) of one type.
pub(crate) type EncodeLossless = fn(&[f32], &mut [u8]) -> bool;

/// Encodes a row whose weights all lie on the type's grid; `false` if some do not, with blocks of no
/// use.
pub(crate) fn encode<B: Solvable<N>, const N: usize>(weights: &[f32], row: &mut [u8]) -> bool {
    let numbers = Numbers::of::<B, N>();
    let blocks: &mut [B] = bytemuck::cast_slice_mut(row);
    let mut pairs = weights.as_chunks::<N>().0.iter().zip(blocks);
    pairs.all(|(weights, block)| encode_block(&numbers, weights, block))
}

fn encode_block<B: Solvable<N>, const N: usize>(
    numbers: &Numbers,
    weights: &[f32; N],
    block: &mut B,
) -> bool {
    *block = B::zeroed();
    let (mut levels, mut bounds) = ([0; N], [const { 0.0..=0.0 }; N]);
    let parts = levels
        .chunks_exact_mut(B::SUB)
        .zip(bounds.chunks_exact_mut(B::SUB));
    let parts = weights.chunks_exact(B::SUB).zip(parts);
    for (sub, (weights, (levels, bounds))) in parts.enumerate() {
        let mut part = SubBlock {
            weights,
            bounds,
            levels,
        };
        let precisions = [Precision::Exact, Precision::narrowest(weights)];
        let is_solved = precisions.into_iter().any(|precision| {
            part.set_bounds(precision, B::HAS_OFFSET);
            part.solve::<B, N>(numbers, block, sub)
        });
        if !is_solved {
            return false;
        }
    }
    block.set_levels(&levels);
    let mut decoded = [0.0; N];
    block.dequantize(Scalar, &mut decoded);
    let mut decoded = decoded.iter().zip(&bounds);
    decoded.all(|(decoded, bounds)| bounds.contains(&f64::from(*decoded)))
}

/// The precision that weights were stored in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Precision {
    /// Decoded weights have to be equal, whatever they were stored in.
    Exact,
    /// Decoded weights of a type without an offset have to be equal.
    F32,
    F16,
    Bf16,
}

impl Precision {
    /// The narrowest that holds these weights.
    fn narrowest(weights: &[f32]) -> Precision {
        let all = |fits: fn(f32) -> bool| weights.iter().all(|w| fits(*w));
        if all(|w| w.to_bits() & 0xffff == 0) {
            return Precision::Bf16;
        }
        match all(|w| Half::from_f32(w).to_f32() == w) {
            true => Precision::F16,
            false => Precision::F32,
        }
    }

    /// True if the last place of a number is even.
    fn is_even(self, x: f32) -> bool {
        match self {
            Precision::Exact | Precision::F32 => x.to_bits() & 1 == 0,
            Precision::F16 => Half::from_f32(x).to_bits() & 1 == 0,
            Precision::Bf16 => x.to_bits() >> 16 & 1 == 0,
        }
    }

    /// Half a unit in the last place of a number.
    fn half_ulp(self, x: f32) -> f64 {
        const SMALLEST_HALF: i32 = -14;
        match self {
            Precision::Exact | Precision::F32 => 0.0,
            _ if x == 0.0 => 0.0,
            Precision::F16 => power_of_two(exponent(f64::from(x)).max(SMALLEST_HALF) - 11),
            Precision::Bf16 => power_of_two(exponent(f64::from(x)) - 8),
        }
    }
}

/// Weights that share a step.
struct SubBlock<'s> {
    weights: &'s [f32],
    /// The numbers that may be decoded in place of each weight.
    bounds: &'s mut [RangeInclusive<f64>],
    levels: &'s mut [u8],
}

impl SubBlock<'_> {
    fn set_bounds(&mut self, precision: Precision, has_offset: bool) {
        /// Products and quotients in f64 are off by less than this.
        const F64: f64 = 1e-12;
        /// Ties are rounded to even numbers.
        const WITHOUT_TIES: f64 = 1.0 - 1e-9;
        let least = least(self.weights);
        let of_offset = match precision {
            Precision::Exact => 0.0,
            _ => precision
                .half_ulp(least)
                .max(Precision::F16.half_ulp(least)),
        };
        for (bounds, weight) in self.bounds.iter_mut().zip(self.weights) {
            let w = f64::from(*weight);
            let [below, above] = match has_offset {
                true => [precision.half_ulp(*weight) + of_offset; 2],
                false => {
                    let half = match precision.is_even(*weight) {
                        true => precision.half_ulp(*weight),
                        false => precision.half_ulp(*weight) * WITHOUT_TIES,
                    };
                    // Numbers below a power of two are half as far apart.
                    let toward_zero = match w.abs() == power_of_two(exponent(w)) {
                        true => half / 2.0,
                        false => half,
                    };
                    match w < 0.0 {
                        true => [half, toward_zero],
                        false => [toward_zero, half],
                    }
                }
            };
            let least = w.abs() * F64;
            *bounds = w - below.max(least)..=w + above.max(least);
        }
    }

    /// Finds step and levels; `false` if there are none.
    fn solve<B: Solvable<N>, const N: usize>(
        &mut self,
        numbers: &Numbers,
        block: &mut B,
        sub: usize,
    ) -> bool {
        let offset = match B::HAS_OFFSET {
            true => Half::from_f32(least(self.weights)).to_f32(),
            false => 0.0,
        };
        let base = f64::from(offset);
        let above: Vec<f64> = self.weights.iter().map(|w| f64::from(*w) - base).collect();
        let moved = |bounds: &RangeInclusive<f64>| [bounds.start() - base, bounds.end() - base];
        let size = |i: &usize| above[*i].abs();
        let places = 0..above.len();
        let Some(pivot) = places.max_by(|a, b| size(a).total_cmp(&size(b))) else {
            return false;
        };
        let largest = above[pivot];
        if !largest.is_finite() {
            return false;
        }
        if largest == 0.0 {
            block.set_scale(sub, 0.0, offset);
            self.levels.fill(numbers.nearest(0.0).1);
            return true;
        }
        for number in &numbers.pivots {
            if largest / number < 0.0 && !B::HAS_NEGATIVE_STEPS {
                continue;
            }
            let mut steps = quotient(moved(&self.bounds[pivot]), *number);
            let fits = above.iter().zip(&*self.bounds).all(|(above, bounds)| {
                let step = (steps[0] + steps[1]) / 2.0;
                let (number, _) = numbers.nearest(above / step);
                let [from, to] = moved(bounds);
                if number == 0.0 {
                    return from <= 0.0 && to >= 0.0;
                }
                let [from, to] = quotient([from, to], number);
                steps = [steps[0].max(from), steps[1].min(to)];
                steps[0] <= steps[1]
            });
            let Some(step) = fits.then(|| shortest(steps, B::STEP_BITS)).flatten() else {
                continue;
            };
            block.set_scale(sub, step as f32, offset);
            if f64::from(block.step(sub)) != step {
                continue;
            }
            for (level, above) in self.levels.iter_mut().zip(&above) {
                *level = numbers.nearest(above / step).1;
            }
            return true;
        }
        false
    }
}

/// The least weight, which has level 0 where blocks have an offset.
fn least(weights: &[f32]) -> f32 {
    weights.iter().fold(f32::INFINITY, |least, w| least.min(*w))
}

/// An interval divided by a number.
fn quotient([from, to]: [f64; 2], number: f64) -> [f64; 2] {
    match number < 0.0 {
        true => [to / number, from / number],
        false => [from / number, to / number],
    }
}

/// The number with the fewest significant bits, at most `bits`, that is near the middle of an
/// interval and within it.
fn shortest([from, to]: [f64; 2], bits: i32) -> Option<f64> {
    let middle = (from + to) / 2.0;
    let rounded = |bits: i32| {
        let unit = power_of_two(exponent(middle) - bits);
        (middle / unit).round() * unit
    };
    let mut all = (0..bits).map(rounded);
    all.find(|number| (from..=to).contains(number))
}

/// The exponent of a number's leading bit; that of 0 is far below all.
fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52 & 0x7ff) as i32) - 1023
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023).clamp(0, 0x7fe) as u64) << 52)
}

/// The numbers of a type's grid, in steps.
struct Numbers {
    /// In rising order, with their levels.
    all: Vec<(f64, u8)>,
    /// Without 0, the largest magnitude first.
    pivots: Vec<f64>,
}

impl Numbers {
    fn of<B: Solvable<N>, const N: usize>() -> Numbers {
        let zero = match B::HAS_OFFSET {
            true => 0.0,
            false => B::ZERO,
        };
        let all: Vec<_> = match B::GRID {
            Grid::Even { top } => (0..=top)
                .map(|level| (f64::from(level) - f64::from(zero), level))
                .collect(),
            Grid::Table(table) => table.entries().collect(),
        };
        let mut pivots: Vec<_> = all.iter().map(|(number, _)| *number).collect();
        pivots.retain(|number| *number != 0.0);
        pivots.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
        Numbers { all, pivots }
    }

    fn nearest(&self, x: f64) -> (f64, u8) {
        let at = self.all.partition_point(|(number, _)| *number < x);
        let next = self.all[at.min(self.all.len() - 1)];
        let before = self.all[at.saturating_sub(1)];
        match (x - before.0).abs() <= (next.0 - x).abs() {
            true => before,
            false => next,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Codec;
    use crate::types::GgmlType;
    use quantier_core::rng::Rng;

    const TYPES: &[GgmlType] = &[
        GgmlType::Q1_0,
        GgmlType::TQ1_0,
        GgmlType::TQ2_0,
        GgmlType::Q2_0,
        GgmlType::MXFP4,
        GgmlType::NVFP4,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
    ];

    /// A row of blocks of any levels, with scales as models have them.
    fn any_row(t: GgmlType, blocks: usize, rng: &mut Rng) -> Vec<f32> {
        let codec = Codec::of(t).unwrap();
        let mut row = vec![0u8; blocks * t.block_bytes()];
        loop {
            row.iter_mut().for_each(|byte| *byte = rng.next_u64() as u8);
            if t == GgmlType::TQ2_0 {
                // Without the digit 3, of which the reference makes no use.
                let digits = |b: u8| b & 0x55 | b & 0xaa & !((b & 0x55) << 1);
                row.chunks_mut(66)
                    .flat_map(|block| &mut block[..64])
                    .for_each(|byte| *byte = digits(*byte));
            }
            if t == GgmlType::NVFP4 {
                // Scales without the bit of the sign.
                let scales = row.chunks_mut(36).flat_map(|block| &mut block[..4]);
                scales.for_each(|scale| *scale &= 0x7f);
            }
            let mut weights = vec![0.0; blocks * t.block_len()];
            codec.dequantize_row(&row, &mut weights);
            let fits = |w: &f32| w.is_finite() && (*w == 0.0 || (1e-4..1e4).contains(&w.abs()));
            // Nor does it make use of the level -128.
            let is_reachable = match t {
                GgmlType::Q8_0 => !row.chunks(34).any(|block| block[2..].contains(&0x80)),
                _ => true,
            };
            if codec.first_fault(&row).is_none() && weights.iter().all(fits) && is_reachable {
                return weights;
            }
        }
    }

    fn found(t: GgmlType, weights: &[f32]) -> Option<Vec<f32>> {
        let codec = Codec::of(t).unwrap();
        let mut row = vec![0xa5; weights.len() / t.block_len() * t.block_bytes()];
        if !codec.encode_lossless(weights, &mut row)? {
            return None;
        }
        let mut decoded = vec![0.0; weights.len()];
        codec.dequantize_row(&row, &mut decoded);
        Some(decoded)
    }

    fn bf16(x: f32) -> f32 {
        half::bf16::from_f32(x).to_f32()
    }

    fn f16(x: f32) -> f32 {
        half::f16::from_f32(x).to_f32()
    }

    /// Types whose blocks have an offset.
    const OFFSET: [GgmlType; 2] = [GgmlType::Q4_1, GgmlType::Q5_1];

    #[test]
    fn rows_on_the_grid_are_decoded_exactly() {
        let mut rng = Rng::new(1);
        for t in TYPES.iter().filter(|t| !OFFSET.contains(t)) {
            for _ in 0..30 {
                let weights = any_row(*t, 1, &mut rng);
                assert_eq!(found(*t, &weights), Some(weights), "{t}");
            }
        }
    }

    #[test]
    fn rows_that_were_rounded_to_a_checkpoint_s_precision_round_to_the_same() {
        let mut rng = Rng::new(2);
        for t in TYPES.iter().filter(|t| !OFFSET.contains(t)) {
            for round in [bf16, f16] {
                let stored: Vec<f32> = any_row(*t, 1, &mut rng).into_iter().map(round).collect();
                let decoded = found(*t, &stored).unwrap_or_else(|| panic!("{t} is not found"));
                let again: Vec<f32> = decoded.into_iter().map(round).collect();
                assert_eq!(again, stored, "{t}");
            }
        }
    }

    #[test]
    fn offsets_that_are_halves_are_exact() {
        let mut rng = Rng::new(5);
        for (t, levels) in OFFSET.into_iter().zip([16, 32]) {
            for _ in 0..30 {
                let [scale, offset] = [rng.uniform(), rng.gaussian()].map(|x| f16(0.01 + x));
                let mut weights: Vec<f32> = (0..32)
                    .map(|_| scale * rng.below(levels) as f32 + offset)
                    .collect();
                weights[7] = offset;
                assert_eq!(found(t, &weights), Some(weights), "{t}");
            }
        }
    }

    /// `scale * (level - zero)`, as AWQ has it: the offset is no f16.
    #[test]
    fn offsets_may_be_rounded() {
        let mut rng = Rng::new(3);
        for round in [bf16, f16, |x| x] {
            for _ in 0..30 {
                let scale = f16(0.001 + 0.01 * rng.uniform());
                let zero = rng.below(16) as f32;
                let weights: Vec<f32> = (0..64)
                    .map(|_| round(scale * (rng.below(16) as f32 - zero)))
                    .collect();
                let decoded = found(GgmlType::Q4_1, &weights).expect("is found");
                let off = decoded.iter().zip(&weights).map(|(a, b)| (a - b).abs());
                assert!(off.fold(0.0, f32::max) <= 15.0 * scale / 256.0);
            }
        }
    }

    #[test]
    fn rows_off_the_grid_are_not_found() {
        let mut rng = Rng::new(4);
        for t in TYPES {
            for round in [bf16, f16, |x| x] {
                let random: Vec<f32> = (0..256).map(|_| round(rng.gaussian() * 0.02)).collect();
                assert_eq!(found(*t, &random), None, "{t}: random weights");
            }
            let mut weights = match OFFSET.contains(t) {
                true => (0..64).map(|_| 0.25 * rng.below(16) as f32).collect(),
                false => any_row(*t, 2, &mut rng),
            };
            let most = weights.iter().fold(0.0f32, |most, w| most.max(w.abs()));
            let place = t.block_len() + 3;
            let grids = [0.41, 0.3].map(|part| part * most / 127.0);
            weights[place] += grids[rng.below(2) as usize];
            assert_eq!(found(*t, &weights), None, "{t}: one weight is off the grid");
            for bad in [f32::NAN, f32::INFINITY] {
                weights[place] = bad;
                assert_eq!(found(*t, &weights), None, "{t}: {bad}");
            }
        }
        assert_eq!(found(GgmlType::Q4_K, &[0.0; 256]), None, "not solved for");
    }

    #[test]
    fn rows_of_zeros_and_of_one_number_are_found() {
        for t in TYPES {
            let zeros = vec![0.0; 2 * t.block_len()];
            let decoded = found(*t, &zeros).unwrap_or_else(|| panic!("{t}: zeros"));
            assert!(decoded.iter().all(|w| *w == 0.0), "{t}");
            let ones = vec![-1.0; 2 * t.block_len()];
            assert_eq!(found(*t, &ones), Some(ones), "{t}: ones");
        }
    }
}
