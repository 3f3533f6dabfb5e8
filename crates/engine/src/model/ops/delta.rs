//! The gated delta rule (Yang et al. 2025): each head has a state, a matrix from keys to values,
//! that forgets and then learns what it got wrong.
//!
//! ```text
//! S      <- exp(decay) S
//! d      =  strength (v - S'k)
//! S      <- S + k d'
//! output =  S'q / sqrt(length of k)
//! ```
//!
//! Steps are taken in blocks, as matrix products. Within a block let `c_i` be what is kept of the
//! state in front of it after step `i`, and `r_ij = c_i / c_j`. Then the rows `d_i` solve a
//! triangular system:
//!
//! ```text
//! d_i      = strength_i (v_i - c_i S'k_i - sum_{j < i} r_ij (k_i.k_j) d_j)
//! output_i = (c_i S'q_i + sum_{j <= i} r_ij (q_i.k_j) d_j) / sqrt(length of k)
//! S        <- c_last S + sum_j r_last,j k_j d_j'
//! ```
//!
//! The derivative goes through the blocks backwards, with the state in front of each kept.

use super::scan::{
    self, Decays, Lengths, Steps, add, columns_of, dot, each_head, number_of, of_logarithms, place,
    product, scaled, whole, zeros,
};
use crate::model::rows::Rows;
use quantier_arch::hyper::DeltaNumbers;
use quantier_blocks::vector::vectorized;
use quantier_round::matrix::{View, add_product, multiply};
use std::ops::Range;

/// What goes through the states of all heads. Heads of values outnumber those of keys, and share
/// them.
#[derive(Debug)]
pub(crate) struct Streams {
    pub numbers: DeltaNumbers,
    /// `[positions, key_heads * key_length]`.
    pub query: Rows,
    /// `[positions, key_heads * key_length]`.
    pub key: Rows,
    /// `[positions, value_heads * value_length]`.
    pub value: Rows,
    /// The logarithm of what is kept of a state: `[positions, value_heads]`.
    pub decay: Rows,
    /// How much of an error is learned: `[positions, value_heads]`.
    pub strength: Rows,
}

impl Streams {
    fn key_length(&self) -> usize {
        self.numbers.key_length
    }

    fn value_length(&self) -> usize {
        self.numbers.value_length
    }

    fn head(&self, head: usize) -> Head<'_> {
        let shared = self.numbers.shared(head);
        Head {
            query: columns_of(&self.query, shared, self.key_length()),
            key: columns_of(&self.key, shared, self.key_length()),
            value: columns_of(&self.value, head, self.value_length()),
            decay: number_of(&self.decay, head),
            strength: number_of(&self.strength, head),
        }
    }

    /// The outputs of all heads, side by side, from states of zeros:
    /// `[positions, value_heads * value_length]`.
    pub(crate) fn scan(&self, split: usize) -> Rows {
        let mut out = zeros(&self.value);
        each_head(
            self.numbers.value_heads,
            split,
            |head| self.head(head).scan(),
            |head, output| place(&mut out, head, &output, self.value_length()),
        );
        out
    }

    /// The derivative of [`Streams::scan`]: the gradients of everything, of that of the outputs.
    pub(crate) fn derivative(&self, g: &Rows, split: usize) -> Streams {
        let value_length = self.value_length();
        let mut out = Streams {
            numbers: self.numbers,
            query: zeros(&self.query),
            key: zeros(&self.key),
            value: zeros(&self.value),
            decay: zeros(&self.decay),
            strength: zeros(&self.strength),
        };
        let gradient = |head: usize| self.head(head).gradient(columns_of(g, head, value_length));
        let take = |head: usize, gradient: Gradient| {
            let shared = self.numbers.shared(head);
            place(&mut out.query, shared, &gradient.query, self.key_length());
            place(&mut out.key, shared, &gradient.key, self.key_length());
            place(&mut out.value, head, &gradient.value, value_length);
            place(&mut out.decay, head, &gradient.decay, 1);
            place(&mut out.strength, head, &gradient.strength, 1);
        };
        each_head(self.numbers.value_heads, split, gradient, take);
        out
    }
}

/// The outputs of the states of all heads `[positions, value_heads * value_length]`, from states of
/// zeros, on the calling thread: the recurrence alone, for measurements of it.
///
/// In this order: queries and keys `[positions, key_heads * key_length]`, of length 1; values
/// `[positions, value_heads * value_length]`; logarithms of what is kept of a state, at most 0, and
/// how much of an error is learned, both `[positions, value_heads]`.
///
/// # Panics
/// If the lengths do not fit.
pub fn delta_rule(numbers: DeltaNumbers, parts: [Vec<f32>; 5]) -> Vec<f32> {
    let (keys, heads) = (numbers.keys(), numbers.value_heads);
    let columns = [keys, keys, numbers.values(), heads, heads];
    let mut rows = parts.into_iter().zip(columns);
    let [query, key, value, decay, strength] = std::array::from_fn(|_| {
        let (numbers, columns) = rows.next().unwrap_or_default();
        Rows::new(numbers, columns)
    });
    let streams = Streams {
        numbers,
        query,
        key,
        value,
        decay,
        strength,
    };
    streams.scan(1).into_numbers()
}

/// The parts of [`Streams`] that one head of values reads.
struct Head<'a> {
    query: View<'a>,
    key: View<'a>,
    value: View<'a>,
    decay: Vec<f32>,
    strength: Vec<f32>,
}

/// Gradients of what one head reads, each as rows of its own.
struct Gradient {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    decay: Vec<f32>,
    strength: Vec<f32>,
}

/// What is computed of the steps of a block.
struct Block<'a> {
    query: View<'a>,
    key: View<'a>,
    strength: &'a [f32],
    decays: Decays,
    /// `k_i.k_j`.
    overlaps: Vec<f32>,
    /// `q_i.k_j`.
    scores: Vec<f32>,
    /// `S'k_i`.
    recalled: Vec<f32>,
    /// `S'q_i`.
    read: Vec<f32>,
    /// `v_i - c_i S'k_i`.
    errors: Vec<f32>,
    /// `d_i`.
    learned: Vec<f32>,
    /// `r_last,i k_i`.
    keys_to_end: Vec<f32>,
}

/// Gradients of what pairs of steps have in common.
struct Pairs {
    overlaps: Vec<f32>,
    scores: Vec<f32>,
    decays: Vec<f32>,
    strength: Vec<f32>,
}

impl Steps for Head<'_> {
    type Block<'b>
        = Block<'b>
    where
        Self: 'b;

    fn lengths(&self) -> Lengths {
        Lengths {
            positions: self.value.rows(),
            key: self.key.columns(),
            value: self.value.columns(),
        }
    }

    fn block(&self, steps: Range<usize>, state: &[f32]) -> Block<'_> {
        let value_length = self.value.columns();
        let (query, key) = (
            self.query.range(steps.clone()),
            self.key.range(steps.clone()),
        );
        let decays = Decays::new(&self.decay[steps.clone()]);
        // One product for keys and queries loses less than one each.
        let count = steps.len();
        let both = [key.to_vec(), query.to_vec()].concat();
        let both = whole(&both, key.columns());
        let mut recalled = product(both, whole(state, value_length));
        let read = recalled.split_off(count * value_length);
        let mut overlaps = product(both, key.transposed());
        let scores = overlaps.split_off(count * count);
        let mut errors = self.value.range(steps.clone()).to_vec();
        let rows = errors.chunks_exact_mut(value_length);
        for ((error, recalled), kept) in rows
            .zip(recalled.chunks_exact(value_length))
            .zip(&decays.kept)
        {
            add(error, recalled, -kept);
        }
        let mut block = Block {
            query,
            key,
            strength: &self.strength[steps],
            decays,
            overlaps,
            scores,
            read,
            learned: Vec::new(),
            keys_to_end: Vec::new(),
            recalled,
            errors,
        };
        block.learn(value_length);
        block
    }
}

impl Head<'_> {
    fn gradient(&self, g: View<'_>) -> Gradient {
        let Lengths {
            positions,
            key: key_length,
            value: value_length,
        } = self.lengths();
        let mut gradient = Gradient {
            query: vec![0.0; positions * key_length],
            key: vec![0.0; positions * key_length],
            value: vec![0.0; positions * value_length],
            decay: vec![0.0; positions],
            strength: vec![0.0; positions],
        };
        self.derivative(g, |steps, of_block| {
            let put = |all: &mut [f32], part: &[f32], length: usize| {
                all[steps.start * length..steps.end * length].copy_from_slice(part);
            };
            put(&mut gradient.query, &of_block.query, key_length);
            put(&mut gradient.key, &of_block.key, key_length);
            put(&mut gradient.value, &of_block.value, value_length);
            put(&mut gradient.decay, &of_block.decay, 1);
            put(&mut gradient.strength, &of_block.strength, 1);
        });
        gradient
    }
}

impl Block<'_> {
    fn count(&self) -> usize {
        self.decays.count()
    }

    fn value_length(&self) -> usize {
        self.errors.len() / self.count()
    }

    /// Outputs are multiplied by this.
    fn scale(&self) -> f32 {
        1.0 / (self.key.columns() as f32).sqrt()
    }

    /// Solves for `d_i`.
    fn learn(&mut self, value_length: usize) {
        let count = self.count();
        let mut learned = vec![0.0; count * value_length];
        vectorized(|| {
            for i in 0..count {
                let (before, rest) = learned.split_at_mut(i * value_length);
                let row = &mut rest[..value_length];
                row.copy_from_slice(&self.errors[i * value_length..][..value_length]);
                for (j, earlier) in before.chunks_exact(value_length).enumerate() {
                    let at = i * count + j;
                    add(row, earlier, -self.decays.ratios[at] * self.overlaps[at]);
                }
                row.iter_mut().for_each(|x| *x *= self.strength[i]);
            }
        });
        self.learned = learned;
        let keys = self.key.to_vec();
        self.keys_to_end = scaled(&keys, self.key.columns(), self.decays.to_end());
    }
}

impl scan::Block for Block<'_> {
    type Gradient = Gradient;

    fn outputs(&self, out: &mut [f32]) {
        let (count, value_length) = (self.count(), self.value_length());
        let learned = whole(&self.learned, value_length);
        multiply(
            whole(&self.decays.weighed(&self.scores), count),
            learned,
            out,
            value_length,
            1,
        );
        let rows = out.chunks_exact_mut(value_length);
        let read = self.read.chunks_exact(value_length);
        for ((out, read), kept) in rows.zip(read).zip(&self.decays.kept) {
            add(out, read, *kept);
            out.iter_mut().for_each(|x| *x *= self.scale());
        }
    }

    fn advance(&self, state: &mut [f32]) {
        let (value_length, kept) = (self.value_length(), self.decays.kept_to_end());
        state.iter_mut().for_each(|x| *x *= kept);
        let keys = whole(&self.keys_to_end, self.key.columns()).transposed();
        add_product(
            keys,
            whole(&self.learned, value_length),
            state,
            value_length,
            1,
        );
    }

    fn derivative(&self, g: View<'_>, state: &[f32], of_state: &mut [f32]) -> Gradient {
        let scale = self.scale();
        let (count, value_length) = (self.count(), self.value_length());
        let key_length = self.key.columns();
        let mut outputs = g.to_vec();
        outputs.iter_mut().for_each(|x| *x *= scale);
        let learned = whole(&self.learned, value_length);
        let state_view = whole(state, value_length);

        // Of the learned rows: by the outputs and by the state behind the block.
        let weights = self.decays.weighed(&self.scores);
        let mut of_learned = product(
            whole(&weights, count).transposed(),
            whole(&outputs, value_length),
        );
        add_product(
            whole(&self.keys_to_end, key_length),
            whole(of_state, value_length),
            &mut of_learned,
            value_length,
            1,
        );
        // Of the keys, by the state behind the block, per ratio to the end.
        let by_end = product(learned, whole(of_state, value_length).transposed());
        let of_kept_to_end = dot(state, of_state);

        // Through the triangular system, from its last row up.
        let of_errors = self.solve_back(of_learned);
        let of_values = scaled(&of_errors, value_length, self.strength);

        let of_weights = product(whole(&outputs, value_length), learned.transposed());
        let of_system = product(whole(&of_errors, value_length), learned.transposed());
        let mut pairs = self.of_pairs(&of_weights, &of_system);
        let rows = of_errors.chunks_exact(value_length);
        let rows = rows.zip(self.errors.chunks_exact(value_length));
        for (of_strength, (g, error)) in pairs.strength.iter_mut().zip(rows) {
            *of_strength += dot(g, error);
        }
        let of_decays = &mut pairs.decays;
        let last = count - 1;
        of_decays[last] += of_kept_to_end * self.decays.kept_to_end();
        let keys = self.key.to_vec();
        let mut of_keys = scaled(&by_end, key_length, self.decays.to_end());
        self.decays.add_of_ends(of_decays, &by_end, &keys);
        for (i, of_decay) in of_decays.iter_mut().enumerate().take(count) {
            let row = i * value_length..(i + 1) * value_length;
            let of_kept = dot(&self.read[row.clone()], &outputs[row.clone()])
                - dot(&self.recalled[row.clone()], &of_values[row]);
            *of_decay += of_kept * self.decays.kept[i];
        }

        // By the state in front of the block.
        let read = scaled(&outputs, value_length, &self.decays.kept);
        let mut recalled = scaled(&of_values, value_length, &self.decays.kept);
        recalled.iter_mut().for_each(|x| *x = -*x);
        let (read, recalled) = (whole(&read, value_length), whole(&recalled, value_length));
        let mut of_queries = product(read, state_view.transposed());
        add_product(
            recalled,
            state_view.transposed(),
            &mut of_keys,
            key_length,
            1,
        );
        let kept = self.decays.kept_to_end();
        of_state.iter_mut().for_each(|x| *x *= kept);
        add_product(self.query.transposed(), read, of_state, value_length, 1);
        add_product(self.key.transposed(), recalled, of_state, value_length, 1);

        // By the products of keys and queries.
        let of_scores = whole(&pairs.scores, count);
        let of_overlaps = whole(&pairs.overlaps, count);
        add_product(of_scores, self.key, &mut of_queries, key_length, 1);
        for (g, x) in [
            (of_scores.transposed(), self.query),
            (of_overlaps, self.key),
            (of_overlaps.transposed(), self.key),
        ] {
            add_product(g, x, &mut of_keys, key_length, 1);
        }
        of_logarithms(&mut pairs.decays);
        Gradient {
            query: of_queries,
            key: of_keys,
            value: of_values,
            decay: pairs.decays,
            strength: pairs.strength,
        }
    }
}

impl Block<'_> {
    /// Gradients by the pairs of steps, of those of the weighed scores and of the products of errors
    /// and learned rows.
    fn of_pairs(&self, of_weights: &[f32], of_system: &[f32]) -> Pairs {
        let count = self.count();
        let mut pairs = Pairs {
            overlaps: vec![0.0; count * count],
            scores: vec![0.0; count * count],
            decays: vec![0.0; count],
            strength: vec![0.0; count],
        };
        for i in 0..count {
            for j in 0..=i {
                let at = i * count + j;
                let ratio = self.decays.ratios[at];
                let mut of_ratio = of_weights[at] * self.scores[at];
                pairs.scores[at] = of_weights[at] * ratio;
                if j < i {
                    let of_overlap = -of_system[at] * self.overlaps[at];
                    pairs.strength[i] += of_overlap * ratio;
                    of_ratio += of_overlap * self.strength[i];
                    pairs.overlaps[at] = -of_system[at] * self.strength[i] * ratio;
                }
                pairs.decays[i] += of_ratio * ratio;
                pairs.decays[j] -= of_ratio * ratio;
            }
        }
        pairs
    }

    /// The transposed triangular system, solved for the gradients of `strength_i errors_i`.
    fn solve_back(&self, mut g: Vec<f32>) -> Vec<f32> {
        let (count, value_length) = (self.count(), self.value_length());
        vectorized(|| {
            for i in (0..count).rev() {
                let (before, rest) = g.split_at_mut(i * value_length);
                let row = &rest[..value_length];
                for (j, earlier) in before.chunks_exact_mut(value_length).enumerate() {
                    let at = i * count + j;
                    let weight = self.strength[i] * self.decays.ratios[at] * self.overlaps[at];
                    add(earlier, row, -weight);
                }
            }
        });
        g
    }
}
