//! The gated delta rule: each head has a state, a matrix from keys to values, that decays and is
//! then corrected by its prediction error. Decays are one per state (Gated DeltaNet, Yang et al.
//! 2025) or one per key channel (Kimi Delta Attention, Kimi Team 2025).
//!
//! ```text
//! S      <- exp(decay) S
//! d      =  strength (v - S'k)
//! S      <- S + k d'
//! output =  S'q / sqrt(length of k)
//! ```
//!
//! Steps are processed in blocks, as matrix products. Within a block, let `c_i` be the cumulative
//! decay factor from its start through step `i`, and `r_ij = c_i / c_j`, both per channel. The rows
//! `d_i` solve a triangular system:
//!
//! ```text
//! d_i      = strength_i (v_i - S'(c_i k_i) - sum_{j < i} k_i.(r_ij k_j) d_j)
//! output_i = (S'(c_i q_i) + sum_{j <= i} q_i.(r_ij k_j) d_j) / sqrt(length of k)
//! S        <- c_last S + sum_j (r_last,j k_j) d_j'
//! ```
//!
//! No ratio is computed as a quotient, which could be 0 / 0 under strong decays, or from a
//! difference of log sums, where strong decays would cancel weak ones. Instead a block is halved
//! recursively: the ratio of two steps is the decay factor from the earlier step to the border
//! between their halves, times that from the border to the later step. In parts of a few steps it
//! is the product of the steps' decay factors.
//!
//! The derivative runs over the blocks in reverse; the state before each block is stored.

use super::scan::{
    self, Lengths, Steps, add, columns_of, dot, each_head, number_of, place, product, put, scaled,
    whole, zeros,
};
use crate::model::rows::Rows;
use quantier_arch::hyper::DeltaNumbers;
use quantier_blocks::vector::{exp, vectorized};
use quantier_round::matrix::{View, add_product, multiply};
use std::ops::Range;

/// Maximum steps of a part that is not halved further.
const FEW: usize = 8;

/// Inputs of all heads. Value heads may outnumber key heads and share them.
#[derive(Debug)]
pub(crate) struct Streams {
    pub numbers: DeltaNumbers,
    /// `[positions, key_heads * key_length]`.
    pub query: Rows,
    /// `[positions, key_heads * key_length]`.
    pub key: Rows,
    /// `[positions, value_heads * value_length]`.
    pub value: Rows,
    /// Log decay per state: `[positions, value_heads]`, or per channel: `[positions, value_heads *
    /// key_length]`.
    pub decay: Rows,
    /// Strength of the correction: `[positions, value_heads]`.
    pub strength: Rows,
}

impl Streams {
    fn key_length(&self) -> usize {
        self.numbers.key_length
    }

    fn value_length(&self) -> usize {
        self.numbers.value_length
    }

    /// Number of decays per head and step.
    fn decays(&self) -> usize {
        self.decay.columns() / self.numbers.value_heads
    }

    fn head(&self, head: usize) -> Head<'_> {
        let shared = self.numbers.shared(head);
        Head {
            query: columns_of(&self.query, shared, self.key_length()),
            key: columns_of(&self.key, shared, self.key_length()),
            value: columns_of(&self.value, head, self.value_length()),
            decay: columns_of(&self.decay, head, self.decays()).to_vec(),
            strength: number_of(&self.strength, head),
        }
    }

    /// Outputs of all heads, side by side, from zero initial states: `[positions, value_heads *
    /// value_length]`.
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

    /// Derivative of [`Streams::scan`]: the gradients of all inputs, given the gradient `g` of the
    /// outputs.
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
            place(&mut out.decay, head, &gradient.decay, self.decays());
            place(&mut out.strength, head, &gradient.strength, 1);
        };
        each_head(self.numbers.value_heads, split, gradient, take);
        out
    }
}

/// Runs the recurrence alone, for benchmarks: the outputs `[positions, value_heads * value_length]`
/// of all heads, from zero initial states, on the calling thread.
///
/// `parts` in this order: queries and keys `[positions, key_heads * key_length]`, of unit length;
/// values `[positions, value_heads * value_length]`; log decays, at most 0, `[positions, decays]`;
/// strengths of the correction, `[positions, value_heads]`.
///
/// # Panics
/// If the lengths are inconsistent.
pub fn delta_rule(numbers: DeltaNumbers, parts: [Vec<f32>; 5]) -> Vec<f32> {
    let (keys, heads) = (numbers.keys(), numbers.value_heads);
    let columns = [keys, keys, numbers.values(), numbers.decays(), heads];
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

/// The parts of [`Streams`] that one value head reads.
struct Head<'a> {
    query: View<'a>,
    key: View<'a>,
    value: View<'a>,
    /// `[positions, decays]`.
    decay: Vec<f32>,
    strength: Vec<f32>,
}

/// Gradients of one head's inputs, row by row.
struct Gradient {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    decay: Vec<f32>,
    strength: Vec<f32>,
}

/// Log decays of a block's steps, one per state or one per channel.
#[derive(Clone, Copy)]
struct Decays<'a> {
    /// `[steps, each]`.
    numbers: &'a [f32],
    each: usize,
}

/// Intermediate values of a block.
struct Block<'a> {
    query: Vec<f32>,
    key: Vec<f32>,
    decays: Decays<'a>,
    strength: &'a [f32],
    /// Decay factors: `[steps, decays]`.
    kept: Vec<f32>,
    /// `c_i`.
    kept_from_start: Vec<f32>,
    /// `c_i q_i`.
    queries_from_start: Vec<f32>,
    /// `c_i k_i`.
    keys_from_start: Vec<f32>,
    /// `r_last,j k_j`.
    keys_to_end: Vec<f32>,
    /// `k_i.(r_ij k_j)` for `j < i`, else 0: `[steps, steps]`.
    overlaps: Vec<f32>,
    /// `q_i.(r_ij k_j)` for `j <= i`, else 0: `[steps, steps]`.
    scores: Vec<f32>,
    /// `S'(c_i q_i)`.
    read: Vec<f32>,
    /// `v_i - S'(c_i k_i)`.
    errors: Vec<f32>,
    /// `d_i`.
    learned: Vec<f32>,
}

/// Two adjacent parts of a block, with their queries and keys decayed to the border.
struct Border {
    earlier: Range<usize>,
    later: Range<usize>,
    /// Decay factors from each earlier step to the border.
    until: Vec<f32>,
    /// Decay factors from the border to each later step.
    since: Vec<f32>,
    earlier_keys: Vec<f32>,
    /// Keys, then queries: one product for both is faster than two.
    later_rows: Vec<f32>,
}

fn exponentials(mut x: Vec<f32>) -> Vec<f32> {
    vectorized(
        #[inline(always)]
        || x.iter_mut().for_each(|x| *x = exp(*x)),
    );
    x
}

/// Multiplies `x` by one number, or elementwise.
fn times(x: &mut [f32], scales: &[f32]) {
    match scales {
        [scale] => x.iter_mut().for_each(|x| *x *= scale),
        scales => x.iter_mut().zip(scales).for_each(|(x, s)| *x *= s),
    }
}

/// Recursive halving of a block of `steps` steps: pairs of adjacent parts, and parts of a few
/// steps. Any two steps are in the two parts of one pair, or in one part of a few steps.
fn halves(steps: usize) -> (Vec<[Range<usize>; 2]>, Vec<Range<usize>>) {
    let (mut pairs, mut few) = (Vec::new(), Vec::new());
    let mut open: Vec<_> = std::iter::once(0..steps).collect();
    while let Some(part) = open.pop() {
        if part.len() <= FEW {
            few.push(part);
            continue;
        }
        let border = part.start + part.len() / 2;
        pairs.push([part.start..border, border..part.end]);
        open.extend([part.start..border, border..part.end]);
    }
    (pairs, few)
}

impl Decays<'_> {
    fn at(&self, step: usize) -> &[f32] {
        &self.numbers[step * self.each..][..self.each]
    }

    /// Cumulative decay factors from the start of the range through each step: `[steps, each]`.
    fn since(&self, steps: Range<usize>) -> Vec<f32> {
        let mut kept = Vec::with_capacity(steps.len() * self.each);
        let mut sums = vec![0.0; self.each];
        for step in steps {
            add(&mut sums, self.at(step), 1.0);
            kept.extend_from_slice(&sums);
        }
        exponentials(kept)
    }

    /// Decay factors from after each step to the end of the range: `[steps, each]`.
    fn until(&self, steps: Range<usize>) -> Vec<f32> {
        let mut kept = vec![0.0; steps.len() * self.each];
        let mut sums = vec![0.0; self.each];
        for (place, step) in kept.chunks_exact_mut(self.each).zip(steps).rev() {
            place.copy_from_slice(&sums);
            add(&mut sums, self.at(step), 1.0);
        }
        exponentials(kept)
    }

    /// `gradient += x y`, with the products summed over a row if its channels share a decay.
    fn add_products(&self, gradient: &mut [f32], x: &[f32], y: &[f32]) {
        let columns = x.len() / (gradient.len() / self.each);
        match self.each {
            1 => {
                let rows = x.chunks_exact(columns).zip(y.chunks_exact(columns));
                let places = gradient.iter_mut().zip(rows);
                places.for_each(|(g, (x, y))| *g += dot(x, y));
            }
            _ => {
                let places = gradient.iter_mut().zip(x.iter().zip(y));
                vectorized(
                    #[inline(always)]
                    || places.for_each(|(g, (x, y))| *g += x * y),
                );
            }
        }
    }

    /// Derivative of [`Decays::since`]: adds the gradients of the steps' log decays to `of_decays`,
    /// given the gradients of the log cumulative factors.
    fn since_derivative(&self, of_decays: &mut [f32], of_logs: &[f32]) {
        let mut sums = vec![0.0; self.each];
        let rows = of_decays.chunks_exact_mut(self.each);
        for (g, of_log) in rows.zip(of_logs.chunks_exact(self.each)).rev() {
            add(&mut sums, of_log, 1.0);
            add(g, &sums, 1.0);
        }
    }

    /// Derivative of [`Decays::until`], likewise.
    fn until_derivative(&self, of_decays: &mut [f32], of_logs: &[f32]) {
        let mut sums = vec![0.0; self.each];
        let rows = of_decays.chunks_exact_mut(self.each);
        for (g, of_log) in rows.zip(of_logs.chunks_exact(self.each)) {
            add(g, &sums, 1.0);
            add(&mut sums, of_log, 1.0);
        }
    }
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
        let (key_length, value_length) = (self.key.columns(), self.value.columns());
        let count = steps.len();
        let query = self.query.range(steps.clone()).to_vec();
        let key = self.key.range(steps.clone()).to_vec();
        let each = self.decay.len() / self.value.rows();
        let decays = Decays {
            numbers: &self.decay[steps.start * each..steps.end * each],
            each,
        };
        let kept_from_start = decays.since(0..count);
        let keys_from_start = scaled(&key, key_length, &kept_from_start);
        let queries_from_start = scaled(&query, key_length, &kept_from_start);
        // One product for keys and queries is faster than two.
        let both = [&keys_from_start[..], &queries_from_start].concat();
        let mut recalled = product(whole(&both, key_length), whole(state, value_length));
        let read = recalled.split_off(count * value_length);
        let mut errors = self.value.range(steps.clone()).to_vec();
        add(&mut errors, &recalled, -1.0);
        let mut block = Block {
            queries_from_start,
            keys_from_start,
            keys_to_end: scaled(&key, key_length, &decays.until(0..count)),
            query,
            key,
            kept: exponentials(decays.numbers.to_vec()),
            decays,
            strength: &self.strength[steps],
            kept_from_start,
            overlaps: vec![0.0; count * count],
            scores: vec![0.0; count * count],
            read,
            errors,
            learned: Vec::new(),
        };
        block.meet();
        block.learn();
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
        let each = self.decay.len() / positions.max(1);
        let mut gradient = Gradient {
            query: vec![0.0; positions * key_length],
            key: vec![0.0; positions * key_length],
            value: vec![0.0; positions * value_length],
            decay: vec![0.0; positions * each],
            strength: vec![0.0; positions],
        };
        self.derivative(g, |steps, of_block| {
            put(&mut gradient.query, &steps, &of_block.query);
            put(&mut gradient.key, &steps, &of_block.key);
            put(&mut gradient.value, &steps, &of_block.value);
            put(&mut gradient.decay, &steps, &of_block.decay);
            put(&mut gradient.strength, &steps, &of_block.strength);
        });
        gradient
    }
}

impl Block<'_> {
    fn count(&self) -> usize {
        self.strength.len()
    }

    fn key_length(&self) -> usize {
        self.key.len() / self.count()
    }

    fn value_length(&self) -> usize {
        self.errors.len() / self.count()
    }

    /// Factor of the outputs.
    fn scale(&self) -> f32 {
        1.0 / (self.key_length() as f32).sqrt()
    }

    /// Range of the rows of some steps.
    fn rows(&self, steps: &Range<usize>) -> Range<usize> {
        steps.start * self.key_length()..steps.end * self.key_length()
    }

    /// Row of a step.
    fn row<'x>(&self, x: &'x [f32], step: usize) -> &'x [f32] {
        &x[step * self.key_length()..][..self.key_length()]
    }

    /// Decay factors of a step.
    fn kept(&self, step: usize) -> &[f32] {
        &self.kept[step * self.decays.each..][..self.decays.each]
    }

    /// Decay factors over the whole block.
    fn kept_to_end(&self) -> &[f32] {
        &self.kept_from_start[self.kept.len() - self.decays.each..]
    }

    fn border(&self, [earlier, later]: [Range<usize>; 2]) -> Border {
        let key_length = self.key_length();
        let (until, since) = (
            self.decays.until(earlier.clone()),
            self.decays.since(later.clone()),
        );
        let mut later_rows = scaled(&self.key[self.rows(&later)], key_length, &since);
        later_rows.extend(scaled(&self.query[self.rows(&later)], key_length, &since));
        Border {
            earlier_keys: scaled(&self.key[self.rows(&earlier)], key_length, &until),
            later_rows,
            until,
            since,
            earlier,
            later,
        }
    }

    /// Computes overlaps and scores.
    fn meet(&mut self) {
        let (count, key_length) = (self.count(), self.key_length());
        let (pairs, few) = halves(count);
        for pair in pairs {
            let border = self.border(pair);
            let (rows, columns) = (border.later.len(), border.earlier.len());
            let earlier = whole(&border.earlier_keys, key_length).transposed();
            let both = product(whole(&border.later_rows, key_length), earlier);
            let (overlaps, scores) = both.split_at(rows * columns);
            for (all, part) in [(&mut self.overlaps, overlaps), (&mut self.scores, scores)] {
                let places = all[border.later.start * count..].chunks_mut(count);
                for (place, row) in places.zip(part.chunks_exact(columns)) {
                    place[border.earlier.clone()].copy_from_slice(row);
                }
            }
        }
        let (mut overlaps, mut scores) = (
            std::mem::take(&mut self.overlaps),
            std::mem::take(&mut self.scores),
        );
        vectorized(
            #[inline(always)]
            || {
                for earlier in few.iter().flat_map(Range::clone) {
                    let end = few.iter().find(|part| part.contains(&earlier));
                    let end = end.map_or(count, |part| part.end);
                    let mut key = self.row(&self.key, earlier).to_vec();
                    for step in earlier..end {
                        let at = step * count + earlier;
                        if step > earlier {
                            times(&mut key, self.kept(step));
                            overlaps[at] = dot(&key, self.row(&self.key, step));
                        }
                        scores[at] = dot(&key, self.row(&self.query, step));
                    }
                }
            },
        );
        (self.overlaps, self.scores) = (overlaps, scores);
    }

    /// Derivative of [`Block::meet`]: adds to the gradients of queries, keys and decays.
    fn meet_derivative(&self, of_overlaps: &[f32], of_scores: &[f32], gradient: &mut Gradient) {
        let (pairs, few) = halves(self.count());
        for pair in pairs {
            self.border_derivative(&self.border(pair), [of_overlaps, of_scores], gradient);
        }
        for part in few {
            self.few_derivative(part, [of_overlaps, of_scores], gradient);
        }
    }

    /// The part of [`Block::meet_derivative`] for two adjacent parts.
    fn border_derivative(&self, border: &Border, of_both: [&[f32]; 2], gradient: &mut Gradient) {
        let (count, key_length) = (self.count(), self.key_length());
        let each = self.decays.each;
        let (rows, columns) = (border.later.len(), border.earlier.len());
        let mut of_products = Vec::with_capacity(2 * rows * columns);
        for all in of_both {
            let places = all[border.later.start * count..].chunks(count).take(rows);
            places.for_each(|row| of_products.extend_from_slice(&row[border.earlier.clone()]));
        }
        let of_products = whole(&of_products, columns);
        let of_later = product(of_products, whole(&border.earlier_keys, key_length));
        let of_earlier = product(
            of_products.transposed(),
            whole(&border.later_rows, key_length),
        );
        let (of_keys, of_queries) = of_later.split_at(rows * key_length);
        let (later_keys, later_queries) = border.later_rows.split_at(rows * key_length);
        let mut of_logs = vec![0.0; border.since.len()];
        self.decays.add_products(&mut of_logs, later_keys, of_keys);
        self.decays
            .add_products(&mut of_logs, later_queries, of_queries);
        let place = &mut gradient.decay[border.later.start * each..border.later.end * each];
        self.decays.since_derivative(place, &of_logs);
        let mut of_logs = vec![0.0; border.until.len()];
        self.decays
            .add_products(&mut of_logs, &border.earlier_keys, &of_earlier);
        let place = &mut gradient.decay[border.earlier.start * each..border.earlier.end * each];
        self.decays.until_derivative(place, &of_logs);
        let put = |all: &mut [f32], steps: &Range<usize>, g: &[f32], kept: &[f32]| {
            add(
                &mut all[self.rows(steps)],
                &scaled(g, key_length, kept),
                1.0,
            );
        };
        put(&mut gradient.key, &border.later, of_keys, &border.since);
        put(
            &mut gradient.query,
            &border.later,
            of_queries,
            &border.since,
        );
        put(
            &mut gradient.key,
            &border.earlier,
            &of_earlier,
            &border.until,
        );
    }

    /// The part of [`Block::meet_derivative`] for a few steps: for each step, forward with its
    /// decayed key, then back with the gradient of the decayed key.
    fn few_derivative(
        &self,
        part: Range<usize>,
        [of_overlaps, of_scores]: [&[f32]; 2],
        gradient: &mut Gradient,
    ) {
        let (count, each) = (self.count(), self.decays.each);
        vectorized(
            #[inline(always)]
            || {
                for earlier in part.clone() {
                    let mut keys = vec![self.row(&self.key, earlier).to_vec()];
                    for step in earlier + 1..part.end {
                        let mut key = keys[keys.len() - 1].clone();
                        times(&mut key, self.kept(step));
                        keys.push(key);
                    }
                    let mut of_key = vec![0.0; self.key_length()];
                    for (step, key) in (earlier..part.end).zip(&keys).rev() {
                        let at = step * count + earlier;
                        let row = self.rows(&(step..step + 1));
                        add(&mut gradient.query[row.clone()], key, of_scores[at]);
                        add(&mut of_key, self.row(&self.query, step), of_scores[at]);
                        if step > earlier {
                            add(&mut gradient.key[row], key, of_overlaps[at]);
                            add(&mut of_key, self.row(&self.key, step), of_overlaps[at]);
                            let place = &mut gradient.decay[step * each..(step + 1) * each];
                            self.decays.add_products(place, key, &of_key);
                            times(&mut of_key, self.kept(step));
                        }
                    }
                    let row = self.rows(&(earlier..earlier + 1));
                    add(&mut gradient.key[row], &of_key, 1.0);
                }
            },
        );
    }

    /// Solves the triangular system for `d_i`.
    fn learn(&mut self) {
        let (count, value_length) = (self.count(), self.value_length());
        let mut learned = vec![0.0; count * value_length];
        vectorized(
            #[inline(always)]
            || {
                for i in 0..count {
                    let (before, rest) = learned.split_at_mut(i * value_length);
                    let row = &mut rest[..value_length];
                    row.copy_from_slice(&self.errors[i * value_length..][..value_length]);
                    for (j, earlier) in before.chunks_exact(value_length).enumerate() {
                        add(row, earlier, -self.overlaps[i * count + j]);
                    }
                    row.iter_mut().for_each(|x| *x *= self.strength[i]);
                }
            },
        );
        self.learned = learned;
    }

    /// Decays a state or its gradient over the whole block.
    fn keep(&self, state: &mut [f32]) {
        let each = state.len() / self.decays.each;
        let parts = state.chunks_exact_mut(each).zip(self.kept_to_end());
        parts.for_each(|(part, kept)| part.iter_mut().for_each(|x| *x *= kept));
    }

    /// Solves the transposed triangular system for the gradients of `strength_i errors_i`.
    fn solve_back(&self, mut g: Vec<f32>) -> Vec<f32> {
        let (count, value_length) = (self.count(), self.value_length());
        vectorized(
            #[inline(always)]
            || {
                for i in (0..count).rev() {
                    let (before, rest) = g.split_at_mut(i * value_length);
                    let row = &rest[..value_length];
                    for (j, earlier) in before.chunks_exact_mut(value_length).enumerate() {
                        add(
                            earlier,
                            row,
                            -self.strength[i] * self.overlaps[i * count + j],
                        );
                    }
                }
            },
        );
        g
    }
}

impl scan::Block for Block<'_> {
    type Gradient = Gradient;

    fn outputs(&self, out: &mut [f32]) {
        let (count, value_length, scale) = (self.count(), self.value_length(), self.scale());
        let learned = whole(&self.learned, value_length);
        multiply(whole(&self.scores, count), learned, out, value_length, 1);
        let places = out.iter_mut().zip(&self.read);
        places.for_each(|(x, read)| *x = (*x + read) * scale);
    }

    fn advance(&self, state: &mut [f32]) {
        let value_length = self.value_length();
        self.keep(state);
        let keys = whole(&self.keys_to_end, self.key_length()).transposed();
        let learned = whole(&self.learned, value_length);
        add_product(keys, learned, state, value_length, 1);
    }

    fn derivative(&self, g: View<'_>, state: &[f32], of_state: &mut [f32]) -> Gradient {
        let (count, value_length) = (self.count(), self.value_length());
        let (key_length, each) = (self.key_length(), self.decays.each);
        let learned = whole(&self.learned, value_length);
        let state_view = whole(state, value_length);
        let mut outputs = g.to_vec();
        outputs.iter_mut().for_each(|x| *x *= self.scale());
        let outputs_view = whole(&outputs, value_length);

        // Gradients of the learned rows, from the outputs and the state after the block.
        let mut of_learned = product(whole(&self.scores, count).transposed(), outputs_view);
        let of_state_view = whole(of_state, value_length);
        add_product(
            whole(&self.keys_to_end, key_length),
            of_state_view,
            &mut of_learned,
            value_length,
            1,
        );
        let of_keys_to_end = product(learned, of_state_view.transposed());

        // Through the triangular system, starting from its last row.
        let of_errors = self.solve_back(of_learned);
        let of_values = scaled(&of_errors, value_length, self.strength);
        let of_scores = product(outputs_view, learned.transposed());
        let mut of_overlaps = product(whole(&of_errors, value_length), learned.transposed());
        let mut of_strength = Vec::with_capacity(count);
        for i in 0..count {
            let row = i * value_length..(i + 1) * value_length;
            let of_row = &mut of_overlaps[i * count..(i + 1) * count];
            let recalled = dot(&of_row[..i], &self.overlaps[i * count..][..i]);
            of_strength.push(dot(&of_errors[row.clone()], &self.errors[row]) - recalled);
            of_row.iter_mut().for_each(|x| *x *= -self.strength[i]);
        }

        // Contributions through the state before the block.
        let of_queries_from_start = product(outputs_view, state_view.transposed());
        let mut of_keys_from_start =
            product(whole(&of_values, value_length), state_view.transposed());
        of_keys_from_start.iter_mut().for_each(|x| *x = -*x);
        let mut of_logs = vec![0.0; self.kept_from_start.len()];
        for (x, g) in [
            (&self.queries_from_start, &of_queries_from_start),
            (&self.keys_from_start, &of_keys_from_start),
        ] {
            self.decays.add_products(&mut of_logs, x, g);
        }
        let last = (count - 1) * each;
        let parts = state.chunks_exact(state.len() / each);
        let parts = parts.zip(of_state.chunks_exact(state.len() / each));
        let places = of_logs[last..].iter_mut().zip(self.kept_to_end());
        for ((place, kept), (state, of_state)) in places.zip(parts) {
            *place += kept * dot(state, of_state);
        }
        let mut of_decays = vec![0.0; count * each];
        self.decays.since_derivative(&mut of_decays, &of_logs);
        let mut of_logs = vec![0.0; self.kept_from_start.len()];
        self.decays
            .add_products(&mut of_logs, &self.keys_to_end, &of_keys_to_end);
        self.decays.until_derivative(&mut of_decays, &of_logs);

        let mut of_keys = scaled(&of_keys_from_start, key_length, &self.kept_from_start);
        let to_end = self.decays.until(0..count);
        add(
            &mut of_keys,
            &scaled(&of_keys_to_end, key_length, &to_end),
            1.0,
        );
        let mut gradient = Gradient {
            query: scaled(&of_queries_from_start, key_length, &self.kept_from_start),
            key: of_keys,
            value: of_values,
            decay: of_decays,
            strength: of_strength,
        };
        self.meet_derivative(&of_overlaps, &of_scores, &mut gradient);

        self.keep(of_state);
        let queries = whole(&self.queries_from_start, key_length).transposed();
        add_product(queries, outputs_view, of_state, value_length, 1);
        let mut recalled = gradient.value.clone();
        recalled.iter_mut().for_each(|x| *x = -*x);
        let keys = whole(&self.keys_from_start, key_length).transposed();
        add_product(
            keys,
            whole(&recalled, value_length),
            of_state,
            value_length,
            1,
        );
        gradient
    }
}
