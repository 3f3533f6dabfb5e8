//! RWKV states: each head has a matrix from keys to values with one decay per key channel.
//!
//! ```text
//! RWKV 6                     output = S'r + (r.(bonus k)) v,  then  S <- kept S + k v'
//! gated linear attention     S <- kept S + k v',              then  output = S'r
//! RWKV 7                     S <- kept S + k v' + put (S'take)',  then  output = S'r
//! ```
//!
//! Steps run sequentially: a head's state is small and stays in cache. The derivative runs over
//! blocks of steps in reverse; the state before each block is stored, those within are recomputed.

use super::scan::{add, columns_of, dot, each_head, place, zeros};
use crate::model::rows::Rows;
use quantier_blocks::vector::vectorized;

/// Steps per block of recomputed states.
const BLOCK: usize = 32;

/// Inputs of all heads: `[positions, heads * length]` each.
#[derive(Debug)]
pub(crate) struct Wkv {
    /// Head length.
    pub length: usize,
    pub receptance: Rows,
    /// Decay factors of the state.
    pub kept: Rows,
    pub key: Rows,
    pub value: Rows,
    /// `take` and `put`: keys of the state's read-out, and of its re-insertion.
    pub moved: Option<[Rows; 2]>,
    /// Weight of a position's own value in its output, `[heads * length]`; the output then reads
    /// the state before the step.
    pub bonus: Option<Vec<f32>>,
}

/// The parts of [`Wkv`] of one head: `[positions, length]` each.
struct Head {
    length: usize,
    receptance: Vec<f32>,
    kept: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    moved: Option<[Vec<f32>; 2]>,
    bonus: Option<Vec<f32>>,
}

impl Wkv {
    fn heads(&self) -> usize {
        self.value.columns() / self.length
    }

    fn head(&self, head: usize) -> Head {
        let part = |rows: &Rows| columns_of(rows, head, self.length).to_vec();
        let bonus = self.bonus.as_ref();
        Head {
            length: self.length,
            receptance: part(&self.receptance),
            kept: part(&self.kept),
            key: part(&self.key),
            value: part(&self.value),
            moved: self.moved.as_ref().map(|moved| moved.each_ref().map(part)),
            bonus: bonus.map(|bonus| bonus[head * self.length..][..self.length].to_vec()),
        }
    }

    /// Outputs of all heads, side by side, from zero initial states: `[positions, heads * length]`.
    pub(crate) fn scan(&self, split: usize) -> Rows {
        let mut out = zeros(&self.value);
        each_head(
            self.heads(),
            split,
            |head| self.head(head).scan(),
            |head, output| place(&mut out, head, &output, self.length),
        );
        out
    }

    /// Derivative of [`Wkv::scan`]: the gradients of all inputs but the bonus, given the gradient
    /// `g` of the outputs.
    pub(crate) fn derivative(&self, g: &Rows, split: usize) -> Wkv {
        let length = self.length;
        let mut out = Wkv {
            length,
            receptance: zeros(&self.receptance),
            kept: zeros(&self.kept),
            key: zeros(&self.key),
            value: zeros(&self.value),
            moved: self.moved.as_ref().map(|moved| moved.each_ref().map(zeros)),
            bonus: None,
        };
        let gradient = |head: usize| {
            let g = columns_of(g, head, length).to_vec();
            self.head(head).derivative(&g)
        };
        let take = |head: usize, gradient: Head| {
            place(&mut out.receptance, head, &gradient.receptance, length);
            place(&mut out.kept, head, &gradient.kept, length);
            place(&mut out.key, head, &gradient.key, length);
            place(&mut out.value, head, &gradient.value, length);
            if let (Some(all), Some(parts)) = (&mut out.moved, &gradient.moved) {
                for (all, part) in all.iter_mut().zip(parts) {
                    place(all, head, part, length);
                }
            }
        };
        each_head(self.heads(), split, gradient, take);
        out
    }
}

impl Head {
    fn positions(&self) -> usize {
        self.value.len() / self.length
    }

    fn at<'x>(&self, x: &'x [f32], position: usize) -> &'x [f32] {
        &x[position * self.length..][..self.length]
    }

    /// `S'take` of a step.
    #[inline(always)]
    fn taken(&self, position: usize, state: &[f32]) -> Vec<f32> {
        let mut taken = vec![0.0; self.length];
        if let Some([take, _]) = &self.moved {
            self.read(self.at(take, position), state, &mut taken);
        }
        taken
    }

    /// `out += S'x`.
    #[inline(always)]
    fn read(&self, x: &[f32], state: &[f32], out: &mut [f32]) {
        for (x, row) in x.iter().zip(state.chunks_exact(self.length)) {
            add(out, row, *x);
        }
    }

    /// Advances the state by one step.
    #[inline(always)]
    fn advance(&self, position: usize, state: &mut [f32]) {
        let taken = self.taken(position, state);
        let [kept, key, value] = [&self.kept, &self.key, &self.value].map(|x| self.at(x, position));
        for (j, row) in state.chunks_exact_mut(self.length).enumerate() {
            let places = row.iter_mut().zip(value);
            places.for_each(|(s, value)| *s = kept[j] * *s + key[j] * value);
            if let Some([_, put]) = &self.moved {
                add(row, &taken, self.at(put, position)[j]);
            }
        }
    }

    /// Weight of a position's own value in its output.
    #[inline(always)]
    fn own(&self, position: usize, bonus: &[f32]) -> f32 {
        let receptance = self.at(&self.receptance, position).iter();
        let places = receptance.zip(self.at(&self.key, position)).zip(bonus);
        places.map(|((r, k), bonus)| r * k * bonus).sum()
    }

    /// Outputs: `[positions, length]`.
    fn scan(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.value.len()];
        let mut state = vec![0.0; self.length * self.length];
        vectorized(
            #[inline(always)]
            || {
                for (position, out) in out.chunks_exact_mut(self.length).enumerate() {
                    let receptance = self.at(&self.receptance, position);
                    if let Some(bonus) = &self.bonus {
                        self.read(receptance, &state, out);
                        add(
                            out,
                            self.at(&self.value, position),
                            self.own(position, bonus),
                        );
                    }
                    self.advance(position, &mut state);
                    if self.bonus.is_none() {
                        self.read(receptance, &state, out);
                    }
                }
            },
        );
        out
    }

    /// Gradients of the head's inputs, given the gradient `g` of its outputs.
    fn derivative(&self, g: &[f32]) -> Head {
        let (size, positions) = (self.length * self.length, self.positions());
        let starts: Vec<usize> = (0..positions).step_by(BLOCK).collect();
        let mut kept = Vec::with_capacity(starts.len() * size);
        let mut state = vec![0.0; size];
        vectorized(
            #[inline(always)]
            || {
                for position in 0..positions {
                    if position.is_multiple_of(BLOCK) {
                        kept.extend_from_slice(&state);
                    }
                    self.advance(position, &mut state);
                }
            },
        );
        let zeros = || vec![0.0; self.value.len()];
        let mut gradient = Head {
            length: self.length,
            receptance: zeros(),
            kept: zeros(),
            key: zeros(),
            value: zeros(),
            moved: self.moved.is_some().then(|| [zeros(), zeros()]),
            bonus: None,
        };
        let mut of_state = vec![0.0; size];
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
                        self.advance(position, &mut within[(number + 1) * size..][..size]);
                    }
                    for (number, position) in steps.enumerate().rev() {
                        let states = within[number * size..][..2 * size].split_at(size);
                        let g = self.at(g, position);
                        self.step_back(position, states.into(), g, &mut of_state)
                            .put(position, &mut gradient);
                    }
                },
            );
        }
        gradient
    }

    /// Derivative of one step, given the states before and after it and the gradient `g` of its
    /// output. `of_state` enters as the gradient of the state after the step and leaves as that of
    /// the state before it.
    #[inline(always)]
    fn step_back(
        &self,
        position: usize,
        [before, behind]: [&[f32]; 2],
        g: &[f32],
        of_state: &mut [f32],
    ) -> StepGradient {
        let length = self.length;
        let [receptance, kept, key, value] =
            [&self.receptance, &self.kept, &self.key, &self.value].map(|x| self.at(x, position));
        let mut out = StepGradient {
            receptance: vec![0.0; length],
            kept: vec![0.0; length],
            key: vec![0.0; length],
            value: vec![0.0; length],
            moved: None,
        };
        let range = |j: usize| j * length..(j + 1) * length;
        if let Some(bonus) = &self.bonus {
            let along = dot(value, g);
            for j in 0..length {
                let row = &before[range(j)];
                out.receptance[j] = dot(row, g) + bonus[j] * key[j] * along;
                out.key[j] = receptance[j] * bonus[j] * along;
            }
            add(&mut out.value, g, self.own(position, bonus));
        } else {
            for j in 0..length {
                out.receptance[j] = dot(&behind[range(j)], g);
                add(&mut of_state[range(j)], g, receptance[j]);
            }
        }
        for j in 0..length {
            let row = &of_state[range(j)];
            out.kept[j] = dot(row, &before[range(j)]);
            out.key[j] += dot(row, value);
            add(&mut out.value, row, key[j]);
        }
        let mut of_taken = vec![0.0; length];
        if let Some([take, put]) = &self.moved {
            let (take, put) = (self.at(take, position), self.at(put, position));
            let taken = self.taken(position, before);
            let (mut of_take, mut of_put) = (vec![0.0; length], vec![0.0; length]);
            for j in 0..length {
                let row = &of_state[range(j)];
                of_put[j] = dot(row, &taken);
                add(&mut of_taken, row, put[j]);
            }
            for j in 0..length {
                of_take[j] = dot(&before[range(j)], &of_taken);
            }
            for (j, row) in of_state.chunks_exact_mut(length).enumerate() {
                row.iter_mut().for_each(|s| *s *= kept[j]);
                add(row, &of_taken, take[j]);
            }
            out.moved = Some([of_take, of_put]);
        } else {
            for (j, row) in of_state.chunks_exact_mut(length).enumerate() {
                row.iter_mut().for_each(|s| *s *= kept[j]);
            }
        }
        if self.bonus.is_some() {
            for (j, row) in of_state.chunks_exact_mut(length).enumerate() {
                add(row, g, receptance[j]);
            }
        }
        out
    }
}

/// Gradients of the inputs of one step of a head.
struct StepGradient {
    receptance: Vec<f32>,
    kept: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    moved: Option<[Vec<f32>; 2]>,
}

impl StepGradient {
    fn put(self, position: usize, all: &mut Head) {
        let place = |all: &mut [f32], part: &[f32]| {
            all[position * part.len()..][..part.len()].copy_from_slice(part);
        };
        place(&mut all.receptance, &self.receptance);
        place(&mut all.kept, &self.kept);
        place(&mut all.key, &self.key);
        place(&mut all.value, &self.value);
        if let (Some(all), Some(parts)) = (&mut all.moved, &self.moved) {
            all.iter_mut()
                .zip(parts)
                .for_each(|(all, part)| place(all, part));
        }
    }
}
