//! The parameters of one tensor of blocks: f16 scales and codes.

use super::adam::Adam;
use crate::quant::Codec;
use rayon::prelude::*;

/// Bound of the logarithm of a scale's factor.
const BOUND: f32 = 0.1;
/// Weights per task of a thread.
const TASK: usize = 32 << 10;
/// Bound of the distance of a weight from its code, in steps: what lies beyond the ends of a grid must
/// not run away.
const FARTHEST: f32 = 1.0;
/// Weights in a group whose codes can only change together; those of types without groups change at
/// half a step each, which is less.
const GROUP: usize = 8;
/// Least squared distance of a group from its codes, in steps, at which other codes are nearer.
const NEAR: f32 = 0.25;

/// The scales of a tensor: for each block one or two numbers, `[blocks, halves]`.
pub(super) struct Scales {
    /// At the start.
    pub start: Vec<f32>,
    /// Logarithms of their factors, before rounding to f16.
    pub log: Vec<f32>,
    pub adam: Adam,
    pub gradient: Vec<f32>,
}

/// The codes of a tensor: `[weights]`.
pub(super) struct Codes {
    /// Distance of each weight, before rounding to codes, from its code, in steps.
    pub offset: Vec<f32>,
    pub adam: Adam,
    pub gradient: Vec<f32>,
}

/// A tensor of blocks.
pub(super) struct Blocks {
    pub codec: &'static Codec,
    pub columns: usize,
    pub scales: Option<Scales>,
    pub codes: Option<Codes>,
}

impl Blocks {
    pub(super) fn row_bytes(&self) -> usize {
        self.columns / self.codec.ggml_type.block_len() * self.codec.ggml_type.block_bytes()
    }

    /// Scales per row.
    fn row_scales(&self) -> usize {
        self.columns / self.codec.ggml_type.block_len() * self.codec.halves()
    }

    fn task_rows(&self) -> usize {
        (TASK / self.columns).max(1)
    }

    /// The blocks' scales as they are.
    pub(super) fn stored_scales(codec: &Codec, bytes: &[u8]) -> Vec<f32> {
        let blocks = bytes.chunks_exact(codec.ggml_type.block_bytes());
        let halves = |block| (0..codec.halves()).map(move |half| codec.half(block, half));
        blocks.flat_map(halves).collect()
    }

    /// Adds the gradient of rows from `first` on, `[rows, columns]`. `bytes` are all of the tensor.
    pub(super) fn add(&mut self, first: usize, gradient: &[f32], bytes: &[u8]) {
        let (columns, codec, task) = (self.columns, self.codec, self.task_rows());
        let rows = gradient.len() / columns;
        if let Some(codes) = &mut self.codes {
            let sums = &mut codes.gradient[first * columns..][..gradient.len()];
            sums.par_chunks_mut(task * columns)
                .zip(gradient.par_chunks(task * columns))
                .for_each(|(sums, g)| sums.iter_mut().zip(g).for_each(|(sum, g)| *sum += g));
        }
        let (row_bytes, row_scales) = (self.row_bytes(), self.row_scales());
        let Some(scales) = &mut self.scales else {
            return;
        };
        let sums = &mut scales.gradient[first * row_scales..][..rows * row_scales];
        let bytes = &bytes[first * row_bytes..][..rows * row_bytes];
        sums.par_chunks_mut(task * row_scales)
            .zip(gradient.par_chunks(task * columns))
            .zip(bytes.par_chunks(task * row_bytes))
            .for_each(|((sums, gradient), bytes)| {
                let (halves, length) = (codec.halves(), codec.ggml_type.block_len());
                let mut parts = vec![0.0; gradient.len()];
                for half in 0..halves {
                    codec.part_of_half(bytes, half, &mut parts);
                    let blocks = parts
                        .chunks_exact(length)
                        .zip(gradient.chunks_exact(length));
                    for (sums, (parts, g)) in sums.chunks_exact_mut(halves).zip(blocks) {
                        sums[half] += parts.iter().zip(g).map(|(part, g)| part * g).sum::<f32>();
                    }
                }
            });
    }

    /// One step of the optimizers, and the new bytes. Gradients are 0 afterwards.
    pub(super) fn update(&mut self, bytes: &mut [u8], [scale, code]: [f32; 2], number: u64) {
        let (codec, columns, task) = (self.codec, self.columns, self.task_rows());
        let row_bytes = self.row_bytes();
        if let Some(scales) = &mut self.scales {
            let step = scales.adam.add(&scales.gradient, scale, number);
            scales.gradient.fill(0.0);
            let places = scales.log.iter_mut().enumerate();
            places.for_each(|(i, log)| {
                *log = (*log + scales.adam.change(step, i)).clamp(-BOUND, BOUND);
            });
            let halves = codec.halves();
            let blocks = bytes.chunks_exact_mut(codec.ggml_type.block_bytes());
            for (i, block) in blocks.enumerate() {
                for half in 0..halves {
                    let at = i * halves + half;
                    // What did not move keeps its bits, whatever its rounding.
                    if scales.log[at] != 0.0 {
                        codec.set_half(block, half, scales.start[at] * scales.log[at].exp());
                    }
                }
            }
        }
        let Some(codes) = &mut self.codes else {
            return;
        };
        let rows = bytes.par_chunks_mut(task * row_bytes);
        let gradients = codes.gradient.par_chunks_mut(task * columns);
        rows.zip(gradients).for_each(|(bytes, gradient)| {
            let mut steps = vec![0.0; gradient.len()];
            codec.code_steps(bytes, &mut steps);
            gradient
                .iter_mut()
                .zip(&steps)
                .for_each(|(g, step)| *g *= step);
        });
        let step = codes.adam.add(&codes.gradient, code, number);
        codes.gradient.par_iter_mut().for_each(|g| *g = 0.0);
        let adam = &codes.adam;
        let rows = bytes.par_chunks_mut(task * row_bytes);
        let offsets = codes.offset.par_chunks_mut(task * columns);
        rows.zip(offsets)
            .enumerate()
            .for_each(|(at, (bytes, offsets))| {
                let first = at * task * columns;
                let places = offsets.iter_mut().enumerate();
                places.for_each(|(i, offset)| {
                    let moved = *offset + adam.change(step, first + i);
                    *offset = moved.clamp(-FARTHEST, FARTHEST);
                });
                recode(codec, bytes, offsets);
            });
    }
}

/// New codes where a weight is nearer to others; the distances are then those from the new codes.
fn recode(codec: &Codec, bytes: &mut [u8], offsets: &mut [f32]) {
    let length = codec.ggml_type.block_len();
    let (mut steps, mut weights, mut target) =
        (vec![0.0; length], vec![0.0; length], vec![0.0; length]);
    let blocks = bytes.chunks_exact_mut(codec.ggml_type.block_bytes());
    for (block, offsets) in blocks.zip(offsets.chunks_exact_mut(length)) {
        let far = |group: &[f32]| group.iter().map(|x| x * x).sum::<f32>() > NEAR;
        if !offsets.chunks(GROUP).any(far) {
            continue;
        }
        codec.code_steps(block, &mut steps);
        codec.dequantize_row(block, &mut weights);
        for i in 0..length {
            target[i] = weights[i] + offsets[i] * steps[i];
        }
        codec.recode_row(&target, block);
        codec.dequantize_row(block, &mut weights);
        for i in 0..length {
            if steps[i] > 0.0 {
                offsets[i] = ((target[i] - weights[i]) / steps[i]).clamp(-FARTHEST, FARTHEST);
            }
        }
    }
}
