//! New codes in blocks whose scales stay: each weight's nearest level, each group's nearest point;
//! and the steps between levels.

use super::pointed::{Choice, Pointed, nearest_choices};
use super::stepped::{Grid, Stepped};
use crate::simd::Isa;
use crate::vector::vectorized;

/// [`Codec::recode_row`](crate::Codec::recode_row) of one type.
pub(crate) type Recode = fn(Isa, &[f32], &mut [u8]);

/// [`Codec::code_steps`](crate::Codec::code_steps) of one type.
pub(crate) type Steps = fn(&[u8], &mut [f32]);

/// [`Steps`] for a stepped type.
pub(crate) fn steps_stepped<B: Stepped<N>, const N: usize>(row: &[u8], steps: &mut [f32]) {
    let blocks: &[B] = bytemuck::cast_slice(row);
    let spacing = match B::GRID {
        Grid::Even { .. } => 1.0,
        Grid::Table(table) => table.spacing(),
    };
    for (block, steps) in blocks.iter().zip(steps.chunks_exact_mut(N)) {
        for (sub, steps) in steps.chunks_exact_mut(B::SUB).enumerate() {
            steps.fill((block.step(sub) * spacing).abs());
        }
    }
}

/// [`Steps`] for a type with a codebook.
pub(crate) fn steps_pointed<B: Pointed>(row: &[u8], steps: &mut [f32]) {
    let blocks: &[B] = bytemuck::cast_slice(row);
    let spacing = B::points().spacing();
    for (block, steps) in blocks.iter().zip(steps.chunks_exact_mut(256)) {
        for (sub, steps) in steps.chunks_exact_mut(B::SUB).enumerate() {
            steps.fill((block.scale(sub) * spacing).abs());
        }
    }
}

/// [`Recode`] for a stepped type.
pub(crate) fn recode_stepped<B: Stepped<N>, const N: usize>(
    _: Isa,
    weights: &[f32],
    row: &mut [u8],
) {
    let blocks: &mut [B] = bytemuck::cast_slice_mut(row);
    for (block, x) in blocks.iter_mut().zip(weights.as_chunks::<N>().0) {
        let mut levels = [0u8; N];
        vectorized(
            #[inline(always)]
            || {
                for (sub, (x, levels)) in x
                    .chunks_exact(B::SUB)
                    .zip(levels.chunks_exact_mut(B::SUB))
                    .enumerate()
                {
                    let (step, base) = (block.step(sub), block.base(sub));
                    // The inverse of a subnormal step is infinite.
                    let inverse = match step.abs() < f32::MIN_POSITIVE {
                        true => 0.0,
                        false => 1.0 / step,
                    };
                    match B::GRID {
                        Grid::Even { top } => {
                            for (level, x) in levels.iter_mut().zip(x) {
                                let steps = (x - base) * inverse;
                                *level = (steps.clamp(0.0, f32::from(top)) + 0.5) as u8;
                            }
                        }
                        Grid::Table(table) => {
                            for (level, x) in levels.iter_mut().zip(x) {
                                *level = table.nearest((x - base) * inverse);
                            }
                        }
                    }
                }
            },
        );
        block.set_levels(&levels);
    }
}

/// [`Recode`] for a type with a codebook.
pub(crate) fn recode_pointed<B: Pointed>(isa: Isa, weights: &[f32], row: &mut [u8]) {
    let blocks: &mut [B] = bytemuck::cast_slice_mut(row);
    for (block, x) in blocks.iter_mut().zip(weights.as_chunks().0) {
        let choices: [Choice; 32] = nearest_choices(isa, block, x);
        block.set_choices(&choices);
    }
}
