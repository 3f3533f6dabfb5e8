//! Linear recurrences with one decay per head: state space duality (Dao and Gu 2024), and linear
//! attention with fixed decay rates (Qin et al. 2024). Each head has a state, a matrix from keys to
//! values.
//!
//! ```text
//! S      <- exp(decay) S + k v'
//! output =  S'q
//! ```
//!
//! Steps are processed in blocks, as matrix products. Within a block, let `c_i` be the cumulative
//! decay factor from its start through step `i`, and `r_ij = c_i / c_j`:
//!
//! ```text
//! output_i = c_i S'q_i + sum_{j <= i} r_ij (q_i.k_j) v_j
//! S        <- c_last S + sum_j r_last,j k_j v_j'
//! ```
//!
//! Products of queries and keys are computed once for all heads that share them.

use super::scan::{
    self, Decays, Lengths, Steps, add, blocks, columns_of, dot, each_head, number_of,
    of_logarithms, place, product, put, scaled, whole, zeros,
};
use crate::model::rows::Rows;
use quantier_round::matrix::{View, add_product, multiply};
use std::ops::Range;

/// Inputs of all heads. Consecutive value heads share a query and key head.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Number of query and key heads.
    pub groups: usize,
    /// `[positions, groups * key_length]`.
    pub query: Rows,
    /// `[positions, groups * key_length]`.
    pub key: Rows,
    /// `[positions, heads * value_length]`.
    pub value: Rows,
    /// Log decay of the state: `[positions, heads]`.
    pub decay: Rows,
}

/// `q_i.k_j` for every block of a group.
type Scores = Vec<Vec<f32>>;

impl Streams {
    fn heads(&self) -> usize {
        self.decay.columns()
    }

    fn key_length(&self) -> usize {
        self.key.columns() / self.groups
    }

    fn value_length(&self) -> usize {
        self.value.columns() / self.heads()
    }

    /// The query and key head of a value head.
    fn group(&self, head: usize) -> usize {
        head / (self.heads() / self.groups)
    }

    /// Scores of every group.
    fn scores(&self, split: usize) -> Vec<Scores> {
        let length = self.key_length();
        let of_group = |group: usize| {
            let (query, key) = (
                columns_of(&self.query, group, length),
                columns_of(&self.key, group, length),
            );
            let scores = |steps: Range<usize>| {
                product(query.range(steps.clone()), key.range(steps).transposed())
            };
            blocks(query.rows()).map(scores).collect::<Scores>()
        };
        let mut all = Vec::with_capacity(self.groups);
        each_head(self.groups, split, of_group, |_, scores| all.push(scores));
        all
    }

    fn head<'a>(&'a self, head: usize, scores: &'a [Scores]) -> Head<'a> {
        let group = self.group(head);
        Head {
            query: columns_of(&self.query, group, self.key_length()),
            key: columns_of(&self.key, group, self.key_length()),
            value: columns_of(&self.value, head, self.value_length()),
            decay: number_of(&self.decay, head),
            scores: &scores[group],
        }
    }

    /// Outputs of all heads, side by side, from zero initial states: `[positions, heads *
    /// value_length]`.
    pub(crate) fn scan(&self, split: usize) -> Rows {
        let scores = self.scores(split);
        let mut out = zeros(&self.value);
        each_head(
            self.heads(),
            split,
            |head| self.head(head, &scores).scan(),
            |head, output| place(&mut out, head, &output, self.value_length()),
        );
        out
    }

    /// Derivative of [`Streams::scan`]: the gradients of all inputs, given the gradient `g` of the
    /// outputs.
    pub(crate) fn derivative(&self, g: &Rows, split: usize) -> Streams {
        let scores = self.scores(split);
        let (key_length, value_length) = (self.key_length(), self.value_length());
        let mut out = Streams {
            groups: self.groups,
            query: zeros(&self.query),
            key: zeros(&self.key),
            value: zeros(&self.value),
            decay: zeros(&self.decay),
        };
        let gradient = |head: usize| {
            let g = columns_of(g, head, value_length);
            self.head(head, &scores).gradient(g)
        };
        let take = |head: usize, gradient: Gradient| {
            let group = self.group(head);
            place(&mut out.query, group, &gradient.query, key_length);
            place(&mut out.key, group, &gradient.key, key_length);
            place(&mut out.value, head, &gradient.value, value_length);
            place(&mut out.decay, head, &gradient.decay, 1);
        };
        each_head(self.heads(), split, gradient, take);
        out
    }
}

/// The parts of [`Streams`] that one value head reads.
struct Head<'a> {
    query: View<'a>,
    key: View<'a>,
    value: View<'a>,
    decay: Vec<f32>,
    scores: &'a Scores,
}

/// Gradients of one head's inputs, row by row.
struct Gradient {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    decay: Vec<f32>,
}

/// Intermediate values of a block.
struct Block<'a> {
    query: View<'a>,
    key: View<'a>,
    value: View<'a>,
    decays: Decays,
    scores: &'a [f32],
    /// `S'q_i`.
    read: Vec<f32>,
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
        let query = self.query.range(steps.clone());
        Block {
            query,
            key: self.key.range(steps.clone()),
            value: self.value.range(steps.clone()),
            decays: Decays::new(&self.decay[steps.clone()]),
            scores: &self.scores[scan::block_of(&steps)],
            read: product(query, whole(state, self.value.columns())),
        }
    }
}

impl Head<'_> {
    fn gradient(&self, g: View<'_>) -> Gradient {
        let Lengths {
            positions,
            key,
            value,
        } = self.lengths();
        let mut gradient = Gradient {
            query: vec![0.0; positions * key],
            key: vec![0.0; positions * key],
            value: vec![0.0; positions * value],
            decay: vec![0.0; positions],
        };
        self.derivative(g, |steps, of_block| {
            put(&mut gradient.query, &steps, &of_block.query);
            put(&mut gradient.key, &steps, &of_block.key);
            put(&mut gradient.value, &steps, &of_block.value);
            put(&mut gradient.decay, &steps, &of_block.decay);
        });
        gradient
    }
}

impl Block<'_> {
    /// `r_last,i k_i`.
    fn keys_to_end(&self) -> Vec<f32> {
        scaled(&self.key.to_vec(), self.key.columns(), self.decays.to_end())
    }
}

impl scan::Block for Block<'_> {
    type Gradient = Gradient;

    fn outputs(&self, out: &mut [f32]) {
        let length = self.value.columns();
        let weights = self.decays.weighed(self.scores);
        multiply(
            whole(&weights, self.decays.count()),
            self.value,
            out,
            length,
            1,
        );
        let rows = out.chunks_exact_mut(length);
        let rows = rows.zip(self.read.chunks_exact(length));
        for ((out, read), kept) in rows.zip(&self.decays.kept) {
            add(out, read, *kept);
        }
    }

    fn advance(&self, state: &mut [f32]) {
        let kept = self.decays.kept_to_end();
        state.iter_mut().for_each(|x| *x *= kept);
        let keys = self.keys_to_end();
        let keys = whole(&keys, self.key.columns()).transposed();
        add_product(keys, self.value, state, self.value.columns(), 1);
    }

    fn derivative(&self, g: View<'_>, state: &[f32], of_state: &mut [f32]) -> Gradient {
        let (count, decays) = (self.decays.count(), &self.decays);
        let (key_length, value_length) = (self.key.columns(), self.value.columns());
        let mut of_decays = vec![0.0; count];

        // Contributions through the state after the block.
        let of_behind = whole(of_state, value_length);
        let mut of_values = product(whole(&self.keys_to_end(), key_length), of_behind);
        let by_end = product(self.value, of_behind.transposed());
        let mut of_keys = scaled(&by_end, key_length, decays.to_end());
        decays.add_of_ends(&mut of_decays, &by_end, &self.key.to_vec());
        of_decays[count - 1] += dot(state, of_state) * decays.kept_to_end();

        // Contributions through pairs of steps.
        let weights = decays.weighed(self.scores);
        let weights = whole(&weights, count).transposed();
        add_product(weights, g, &mut of_values, value_length, 1);
        let of_weights = product(g, self.value.transposed());
        for (i, row) in of_weights.chunks_exact(count).enumerate() {
            for (j, of_weight) in row[..=i].iter().enumerate() {
                let at = i * count + j;
                let of_ratio = of_weight * self.scores[at] * decays.ratios[at];
                of_decays[i] += of_ratio;
                of_decays[j] -= of_ratio;
            }
        }
        let of_scores = decays.weighed(&of_weights);
        let of_scores = whole(&of_scores, count);
        let mut of_queries = product(of_scores, self.key);
        add_product(
            of_scores.transposed(),
            self.query,
            &mut of_keys,
            key_length,
            1,
        );

        // Contributions through the state before the block.
        let g = g.to_vec();
        let rows = g.chunks_exact(value_length);
        let rows = rows.zip(self.read.chunks_exact(value_length));
        for ((of_decay, kept), (g, read)) in of_decays.iter_mut().zip(&decays.kept).zip(rows) {
            *of_decay += dot(g, read) * kept;
        }
        let read = scaled(&g, value_length, &decays.kept);
        let (read, front) = (whole(&read, value_length), whole(state, value_length));
        add_product(read, front.transposed(), &mut of_queries, key_length, 1);
        let kept = decays.kept_to_end();
        of_state.iter_mut().for_each(|x| *x *= kept);
        add_product(self.query.transposed(), read, of_state, value_length, 1);

        of_logarithms(&mut of_decays);
        Gradient {
            query: of_queries,
            key: of_keys,
            value: of_values,
            decay: of_decays,
        }
    }
}
