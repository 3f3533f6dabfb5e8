//! The selective scan (Mamba, Gu and Dao 2023): every channel has a small state vector with a decay
//! rate per element.
//!
//! ```text
//! h_i    <- exp(step decay_i) h_i + step value key_i
//! output =  sum_i h_i query_i
//! ```
//!
//! Channels are lanes. The derivative runs over blocks of steps in reverse; the state before each
//! block is stored, those within are recomputed.

use super::elementwise::{add, multiply};
use crate::model::rows::Rows;
use quantier_blocks::vector::{LANES, exp, vectorized};
use rayon::prelude::*;
use std::ops::Range;

/// Channels per group of lanes.
const GROUP: usize = 64;
/// Steps per block of recomputed states.
const BLOCK: usize = 32;

/// Inputs of all channels.
#[derive(Debug)]
pub(crate) struct Selective {
    /// `[positions, channels]`.
    pub value: Rows,
    /// Time step, at least 0: `[positions, channels]`.
    pub step: Rows,
    /// `[positions, state]`.
    pub key: Rows,
    /// `[positions, state]`.
    pub query: Rows,
}

/// The parts of [`Selective`] that a group of channels reads. States are `[state, channels]`.
struct Channels<'a> {
    /// `[positions, channels]`.
    value: Vec<f32>,
    /// `[positions, channels]`.
    step: Vec<f32>,
    key: &'a Rows,
    query: &'a Rows,
    /// `[state, channels]`.
    decay: Vec<f32>,
    count: usize,
}

/// Gradients of the inputs of a group of channels.
struct Gradient {
    value: Vec<f32>,
    step: Vec<f32>,
    /// This group's share of the gradients of keys and queries.
    key: Rows,
    query: Rows,
}

impl Selective {
    /// Ranges of channels, by group.
    fn groups(&self) -> Vec<Range<usize>> {
        let channels = self.value.columns();
        let starts = (0..channels).step_by(GROUP);
        starts
            .map(|start| start..(start + GROUP).min(channels))
            .collect()
    }

    fn channels(&self, range: &Range<usize>, decay: &[f32]) -> Channels<'_> {
        let state = self.key.columns();
        let of_state = |i: usize| range.clone().map(move |channel| decay[channel * state + i]);
        Channels {
            value: self.value.columns_range(range.clone()).into_numbers(),
            step: self.step.columns_range(range.clone()).into_numbers(),
            key: &self.key,
            query: &self.query,
            decay: (0..state).flat_map(of_state).collect(),
            count: range.len(),
        }
    }

    /// Results of `f` for all groups; `split` is the number of threads.
    fn each_group<T: Send>(
        &self,
        decay: &[f32],
        split: usize,
        f: impl Fn(usize, Channels<'_>) -> T + Sync + Send,
    ) -> Vec<T> {
        let of_group = |range: Range<usize>| f(range.start, self.channels(&range, decay));
        match split > 1 {
            true => self.groups().into_par_iter().map(of_group).collect(),
            false => self.groups().into_iter().map(of_group).collect(),
        }
    }

    /// Outputs of all channels, from zero initial states: `[positions, channels]`. `decay` is
    /// `[channels, state]`, at most 0.
    pub(crate) fn scan(&self, decay: &[f32], split: usize) -> Rows {
        let outputs = self.each_group(decay, split, |first, group| (first, group.scan()));
        let mut out = Rows::zeros(self.value.len(), self.value.columns());
        for (first, output) in &outputs {
            place(&mut out, *first, output);
        }
        out
    }

    /// Derivative of [`Selective::scan`]: the gradients of all inputs, given the gradient `g` of
    /// the outputs.
    pub(crate) fn derivative(&self, decay: &[f32], g: &Rows, split: usize) -> Selective {
        let gradients = self.each_group(decay, split, |first, group| {
            let g = g.columns_range(first..first + group.count);
            (first, group.derivative(g.numbers()))
        });
        let zeros = |x: &Rows| Rows::zeros(x.len(), x.columns());
        let mut out = Selective {
            value: zeros(&self.value),
            step: zeros(&self.step),
            key: zeros(&self.key),
            query: zeros(&self.query),
        };
        for (first, gradient) in &gradients {
            place(&mut out.value, *first, &gradient.value);
            place(&mut out.step, *first, &gradient.step);
            add(out.key.numbers_mut(), gradient.key.numbers());
            add(out.query.numbers_mut(), gradient.query.numbers());
        }
        out
    }
}

/// Writes rows to columns from `first` on.
fn place(all: &mut Rows, first: usize, part: &[f32]) {
    let columns = part.len() / all.len().max(1);
    for (row, part) in all.iter_mut().zip(part.chunks_exact(columns.max(1))) {
        row[first..first + columns].copy_from_slice(part);
    }
}

/// Dot product: per lane, then over the lanes.
#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let ((xs, x), (ys, y)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut sums = [0.0f32; LANES];
    for (x, y) in xs.iter().zip(ys) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += x * y;
        }
    }
    let rest: f32 = x.iter().zip(y).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

impl Channels<'_> {
    fn positions(&self) -> usize {
        self.key.len()
    }

    /// Values and steps of one position.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let row = position * self.count..(position + 1) * self.count;
        (&self.value[row.clone()], &self.step[row])
    }

    /// Advances the states by one step. Calls `read` with every part of the new state and its
    /// index.
    #[inline(always)]
    fn advance(&self, position: usize, states: &mut [f32], mut read: impl FnMut(usize, &[f32])) {
        let (value, step) = self.at(position);
        let key = &self.key.numbers()[position * self.key.columns()..][..self.key.columns()];
        let decays = self.decay.chunks_exact(self.count);
        let states = states.chunks_exact_mut(self.count);
        for (i, ((state, decay), key)) in states.zip(decays).zip(key).enumerate() {
            let inputs = value.iter().zip(step);
            for ((h, decay), (value, step)) in state.iter_mut().zip(decay).zip(inputs) {
                *h = exp(step * decay) * *h + step * value * key;
            }
            read(i, state);
        }
    }

    /// Outputs: `[positions, channels]`.
    fn scan(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.value.len()];
        let mut states = vec![0.0; self.decay.len()];
        vectorized(
            #[inline(always)]
            || {
                let rows = out.chunks_exact_mut(self.count).zip(self.query.iter());
                for (position, (out, query)) in rows.enumerate() {
                    self.advance(position, &mut states, |i, state| {
                        let query = query[i];
                        out.iter_mut()
                            .zip(state)
                            .for_each(|(out, h)| *out += h * query);
                    });
                }
            },
        );
        out
    }

    fn derivative(&self, g: &[f32]) -> Gradient {
        let (size, positions) = (self.decay.len(), self.positions());
        let starts: Vec<usize> = (0..positions).step_by(BLOCK).collect();
        let mut kept = Vec::with_capacity(starts.len() * size);
        let mut states = vec![0.0; size];
        vectorized(
            #[inline(always)]
            || {
                for position in 0..positions {
                    if position % BLOCK == 0 {
                        kept.extend_from_slice(&states);
                    }
                    self.advance(position, &mut states, |_, _| ());
                }
            },
        );
        let mut backward = Backward {
            channels: self,
            g,
            of_states: vec![0.0; size],
            gradient: Gradient {
                value: vec![0.0; g.len()],
                step: vec![0.0; g.len()],
                key: Rows::zeros(positions, self.key.columns()),
                query: Rows::zeros(positions, self.key.columns()),
            },
        };
        // The state before a block and after each of its steps.
        let mut within = vec![0.0; (BLOCK + 1) * size];
        for (start, kept) in starts.iter().zip(kept.chunks_exact(size)).rev() {
            let steps = *start..(start + BLOCK).min(positions);
            vectorized(
                #[inline(always)]
                || {
                    within[..size].copy_from_slice(kept);
                    for (number, position) in steps.clone().enumerate() {
                        within.copy_within(number * size..(number + 1) * size, (number + 1) * size);
                        let behind = &mut within[(number + 1) * size..][..size];
                        self.advance(position, behind, |_, _| ());
                    }
                    for (number, position) in steps.enumerate().rev() {
                        let (before, behind) = within[number * size..][..2 * size].split_at(size);
                        backward.step(position, before, behind);
                    }
                },
            );
        }
        backward.gradient
    }
}

/// State of the backward pass.
struct Backward<'c> {
    channels: &'c Channels<'c>,
    /// Gradients of the outputs: `[positions, channels]`.
    g: &'c [f32],
    /// Gradients of the states after the step: `[state, channels]`.
    of_states: Vec<f32>,
    gradient: Gradient,
}

impl Backward<'_> {
    /// Derivative of one step, given the states before and after it.
    #[inline(always)]
    fn step(&mut self, position: usize, before: &[f32], behind: &[f32]) {
        let Channels {
            key,
            query,
            decay,
            count,
            ..
        } = self.channels;
        let (value, step) = self.channels.at(position);
        let row = position * count..(position + 1) * count;
        let g = &self.g[row.clone()];
        let of_value = &mut self.gradient.value[row.clone()];
        let of_step = &mut self.gradient.step[row];
        let size = key.columns();
        let numbers = position * size..(position + 1) * size;
        let of_key = &mut self.gradient.key.numbers_mut()[numbers.clone()];
        let of_query = &mut self.gradient.query.numbers_mut()[numbers.clone()];
        let (key, query) = (&key.numbers()[numbers.clone()], &query.numbers()[numbers]);
        let mut of_inputs = vec![0.0f32; *count];
        let inputs: Vec<f32> = value.iter().zip(step).map(|(x, step)| x * step).collect();
        let mut kept = vec![0.0; *count];
        for i in 0..size {
            let lanes = i * count..(i + 1) * count;
            let of_state = &mut self.of_states[lanes.clone()];
            let (before, behind) = (&before[lanes.clone()], &behind[lanes.clone()]);
            let decay = &decay[lanes];
            of_query[i] = dot(g, behind);
            for c in 0..*count {
                of_state[c] += g[c] * query[i];
                kept[c] = exp(step[c] * decay[c]);
                of_step[c] += of_state[c] * before[c] * kept[c] * decay[c];
                of_inputs[c] += of_state[c] * key[i];
            }
            of_key[i] = dot(of_state, &inputs);
            multiply(of_state, &kept);
        }
        for c in 0..*count {
            of_step[c] += of_inputs[c] * value[c];
            of_value[c] = of_inputs[c] * step[c];
        }
    }
}
