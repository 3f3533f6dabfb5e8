//! Attention, from queries, keys and values to the heads' outputs: scores, scale, soft cap, mask,
//! softmax, weighted sum of values.

use super::elementwise::{add, soft_cap};
use crate::model::rows::Rows;
use quantier_blocks::vector::{LANES, exp, sum, vectorized};
use quantier_round::matrix::{View, add_product, multiply};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Queries per block. Keys that none of the block's queries sees are never read.
const BLOCK: usize = 64;
/// Rows of a block's scores: fewer queries are taken where more heads share their keys.
const ROWS: usize = 192;
const LEAST_QUERIES: usize = 16;
/// Keys per tile of scores, which then fit a core's cache. Over more keys, maxima and sums run (Milakov and
/// Gimelshein 2018; Dao et al. 2022).
const TILE: usize = 512;
/// Keys per word of a mask.
const BITS: usize = u64::BITS as usize;

/// Parameters of the map from scores to probabilities.
#[derive(Clone, Debug)]
pub(crate) struct Scores {
    /// Factor of the scores.
    pub scale: f32,
    /// Soft cap of the scaled scores.
    pub cap: Option<f32>,
    /// True if a query sees no later keys.
    pub is_causal: bool,
    /// Number of tokens visible to a query, including its own; without causal attention, half of them on
    /// either side of it.
    pub window: Option<usize>,
    /// By head: score of a virtual key without a value, visible to all queries (attention sink,
    /// Xiao et al. 2023). Scale and cap do not apply.
    pub sinks: Option<Arc<[f32]>>,
    /// True if the text is split into chunks of `window` tokens and queries see only their own
    /// chunk.
    pub is_chunked: bool,
    /// By head: penalty of the scores per token of distance (ALiBi).
    pub slopes: Option<Arc<[f32]>>,
}

/// ALiBi slopes of heads (Press et al. 2022): a geometric sequence down to `2^-max_bias`; heads
/// beyond a power of 2 interpolate.
pub(crate) fn alibi_slopes(heads: usize, max_bias: f32) -> Vec<f32> {
    let regular = 1 << heads.max(1).ilog2();
    let slope = |head: usize| {
        let steps = match head < regular {
            true => (head + 1) as f32,
            false => (head - regular) as f32 + 0.5,
        };
        (-max_bias * steps / regular as f32).exp2()
    };
    (0..heads).map(slope).collect()
}

/// Queries, keys and values of a chunk. Each key head serves `heads / kv_heads` query heads.
#[derive(Debug)]
pub(crate) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    /// `[heads, positions, length]`, as rows of `length`.
    pub query: Rows,
    /// `[kv_heads, positions, length]`, as rows of `length`.
    pub key: Rows,
    /// `[positions, kv_heads * value_length]`.
    pub value: Rows,
    /// Additional mask of keys; None without one.
    pub unseen: Option<Unseen>,
}

/// Keys masked from queries, the same for all heads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unseen {
    /// By query: a bit for each key up to its own, set if masked. Empty for a query that sees all of these.
    keys: Vec<Vec<u64>>,
}

impl Unseen {
    /// Masks all keys but the `top_k` with the largest scores, for each query. `scores` returns the
    /// scores of the keys `0..=query`.
    pub(crate) fn but_the_best(
        positions: usize,
        top_k: usize,
        scores: impl Fn(usize) -> Vec<f32> + Sync,
    ) -> Unseen {
        let masked = |query: usize| {
            if query < top_k {
                return Vec::new();
            }
            let scores = scores(query);
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            let mut bits = vec![0; (query + 1).div_ceil(BITS)];
            order[top_k..]
                .iter()
                .for_each(|key| bits[key / BITS] |= 1 << (key % BITS));
            bits
        };
        Unseen {
            keys: (0..positions).into_par_iter().map(masked).collect(),
        }
    }

    /// True if a key is masked from a query.
    fn masks(&self, query: usize, key: usize) -> bool {
        let bits = self.keys[query].get(key / BITS);
        bits.is_some_and(|bits| bits >> (key % BITS) & 1 == 1)
    }
}

/// The parts of [`Heads`] that one query head reads.
#[derive(Clone, Copy)]
struct Head<'a> {
    number: usize,
    query: View<'a>,
    key: View<'a>,
    value: View<'a>,
    unseen: Option<&'a Unseen>,
}

impl Heads {
    fn value_length(&self) -> usize {
        self.value.columns() / self.kv_heads
    }

    /// Number of query heads that share a key and value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The key and value head of a query head.
    fn shared(&self, head: usize) -> usize {
        head / self.group()
    }

    fn head(&self, head: usize) -> Head<'_> {
        let (positions, length) = (self.value.len(), self.query.columns());
        let (shared, value_length) = (self.shared(head), self.value_length());
        let rows = |x: &'_ Rows, head: usize| head * positions * x.columns();
        let query = &self.query.numbers()[rows(&self.query, head)..];
        let key = &self.key.numbers()[rows(&self.key, shared)..];
        let value = &self.value.numbers()[shared * value_length..];
        Head {
            number: head,
            query: View::new(query, positions, length, length),
            key: View::new(key, positions, length, length),
            value: View::new(value, positions, value_length, self.value.columns()),
            unseen: self.unseen.as_ref(),
        }
    }
}

impl Scores {
    /// Outputs of all heads, side by side: `[positions, heads * value_length]`. `split` is the
    /// number of threads.
    pub(crate) fn attend(&self, all: &Heads, split: usize) -> Rows {
        let (heads, positions, value_length) = (all.heads, all.value.len(), all.value_length());
        let group = all.group();
        let queries = (ROWS / group).clamp(LEAST_QUERIES, BLOCK);
        let blocks = positions.div_ceil(queries);
        // By key head, block, head and query.
        let each = group * queries * value_length;
        let mut mixed = vec![0.0f32; all.kv_heads * blocks * each];
        let place = |at: usize| {
            let first = at % blocks * queries;
            (at / blocks, first..(first + queries).min(positions))
        };
        let attend = |(at, out): (usize, &mut [f32])| {
            let (shared, queries) = place(at);
            self.attend_block(all, shared, queries, out);
        };
        match split > 1 {
            true => mixed.par_chunks_mut(each).enumerate().for_each(attend),
            false => mixed.chunks_mut(each).enumerate().for_each(attend),
        }
        let width = heads * value_length;
        let mut out = Rows::zeros(positions, width);
        for (at, mixed) in mixed.chunks_exact(each).enumerate() {
            let (shared, queries) = place(at);
            for (head, mixed) in mixed
                .chunks_exact(queries.len() * value_length)
                .take(group)
                .enumerate()
            {
                let column = (shared * group + head) * value_length;
                for (query, mixed) in queries.clone().zip(mixed.chunks_exact(value_length)) {
                    out.numbers_mut()[query * width + column..][..value_length]
                        .copy_from_slice(mixed);
                }
            }
        }
        out
    }

    /// Adds to `out` the outputs of some queries of all heads that share a key head:
    /// `[heads, queries, value_length]`.
    fn attend_block(&self, all: &Heads, shared: usize, block: Range<usize>, out: &mut [f32]) {
        let group = all.group();
        let heads = shared * group..(shared + 1) * group;
        let Head { key, value, .. } = all.head(heads.start);
        let value_length = value.columns();
        let length = key.columns();
        let mut queries = Vec::with_capacity(group * block.len() * length);
        for head in heads.clone() {
            let of_head = head * all.value.len();
            let places = (of_head + block.start) * length..(of_head + block.end) * length;
            queries.extend_from_slice(&all.query.numbers()[places]);
        }
        let rows = group * block.len();
        let queries = View::new(&queries, rows, length, length);
        let row = |at: usize| {
            (
                heads.start + at / block.len(),
                block.start + at % block.len(),
            )
        };
        // All keys visible to any query of the block.
        let last = self.seen(block.end - 1).end;
        let keys = self.seen(block.start).start..last.min(all.value.len());
        let mut scores = vec![0.0f32; rows * keys.len().min(TILE)];
        let sums = (0..rows).map(|at| Running::new(self.sink(row(at).0)));
        let mut sums: Vec<Running> = sums.collect();
        for start in keys.clone().step_by(TILE) {
            let tile = start..(start + TILE).min(keys.end);
            let columns = tile.len();
            let scores = &mut scores[..rows * columns];
            multiply(
                queries,
                key.range(tile.clone()).transposed(),
                scores,
                columns,
                1,
            );
            let outputs = out.chunks_exact_mut(value_length);
            let places = scores.chunks_exact_mut(columns).zip(outputs).zip(&mut sums);
            for (at, ((scores, out), sum)) in places.enumerate() {
                let (head, query) = row(at);
                let seen = self.logits(all.unseen.as_ref(), [head, query], &tile, scores);
                // The probabilities of a single tile are those of the derivative, bit for bit.
                match tile == keys {
                    true => vectorized(
                        #[inline(always)]
                        || softmax_in_place(seen, self.sink(head)),
                    ),
                    false => vectorized(
                        #[inline(always)]
                        || sum.add(seen, out),
                    ),
                }
            }
            add_product(
                View::new(scores, rows, columns, columns),
                value.range(tile),
                out,
                value_length,
                1,
            );
        }
        if keys.len() > TILE {
            for (out, sum) in out.chunks_exact_mut(value_length).zip(&sums) {
                let scale = (1.0 / sum.sum) as f32;
                out.iter_mut().for_each(|x| *x *= scale);
            }
        }
    }

    /// Derivative of [`Scores::attend`]: the gradients of queries, keys and values.
    pub(crate) fn derivative(&self, all: &Heads, g: &Rows) -> Heads {
        let (heads, positions, value_length) = (all.heads, all.value.len(), all.value_length());
        let length = all.query.columns();
        let zeros = |x: &Rows| Rows::zeros(x.len(), x.columns());
        let mut gradients = Heads {
            heads,
            kv_heads: all.kv_heads,
            query: zeros(&all.query),
            key: zeros(&all.key),
            value: zeros(&all.value),
            unseen: None,
        };
        for head in 0..heads {
            let shared = all.shared(head);
            let gradient = &g.numbers()[head * value_length..];
            let step = gradients.value.columns();
            let query = &mut gradients.query.numbers_mut()[head * positions * length..];
            let key = &mut gradients.key.numbers_mut()[shared * positions * length..];
            HeadGradient {
                scores: self,
                head: all.head(head),
                gradient: View::new(gradient, positions, value_length, heads * value_length),
            }
            .add_to(Targets {
                query: &mut query[..positions * length],
                key: &mut key[..positions * length],
                value: &mut gradients.value.numbers_mut()[shared * value_length..],
                value_step: step,
            });
        }
        gradients
    }

    /// The keys that a query sees, if there are as many.
    fn seen(&self, query: usize) -> Range<usize> {
        if !self.is_causal {
            let side = self.window.map_or(usize::MAX, |window| window / 2);
            return query.saturating_sub(side)..query.saturating_add(side).saturating_add(1);
        }
        let first = self.window.map_or(0, |window| match self.is_chunked {
            true => query - query % window,
            false => (query + 1).saturating_sub(window),
        });
        first..query + 1
    }

    /// Turns a query's scores of some keys into probabilities.
    fn probabilities(&self, head: &Head<'_>, query: usize, keys: &Range<usize>, row: &mut [f32]) {
        let seen = self.logits(head.unseen, [head.number, query], keys, row);
        vectorized(
            #[inline(always)]
            || softmax_in_place(seen, self.sink(head.number)),
        );
    }

    /// Turns a query's scores of some keys into those of the softmax: scale, cap, penalty, mask. Returns those of the
    /// visible keys; all others become zero.
    fn logits<'r>(
        &self,
        unseen: Option<&Unseen>,
        [head, query]: [usize; 2],
        keys: &Range<usize>,
        row: &'r mut [f32],
    ) -> &'r mut [f32] {
        let seen = self.seen(query);
        let start = seen.start.clamp(keys.start, keys.end);
        let seen = start..seen.end.clamp(start, keys.end);
        let places = seen.start - keys.start..seen.end - keys.start;
        row[..places.start].fill(0.0);
        row[places.end..].fill(0.0);
        let row = &mut row[places];
        if let Some(unseen) = unseen {
            let places = row.iter_mut().zip(seen.clone());
            let places = places.filter(|(_, key)| unseen.masks(query, *key));
            places.for_each(|(score, _)| *score = f32::NEG_INFINITY);
        }
        vectorized(
            #[inline(always)]
            || row.iter_mut().for_each(|x| *x *= self.scale),
        );
        if let Some(cap) = self.cap {
            soft_cap(row, cap);
        }
        if let Some(slopes) = &self.slopes {
            let slope = slopes[head];
            let places = row.iter_mut().zip(seen);
            places.for_each(|(x, key)| *x -= slope * query.abs_diff(key) as f32);
        }
        row
    }

    /// The sink of a head; minus infinity for none.
    fn sink(&self, head: usize) -> f32 {
        let sinks = self.sinks.as_ref();
        sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head])
    }
}

/// The maximum of a row's scores so far, and the sum of their exponentials relative to it.
struct Running {
    max: f32,
    sum: f64,
}

impl Running {
    fn new(sink: f32) -> Running {
        Running {
            max: sink,
            sum: if sink > f32::NEG_INFINITY { 1.0 } else { 0.0 },
        }
    }

    /// Turns more scores into exponentials, and scales `out`, the sum of values so far, to their maximum.
    #[inline(always)]
    fn add(&mut self, scores: &mut [f32], out: &mut [f32]) {
        let max = largest(scores, self.max);
        if max == f32::NEG_INFINITY {
            // Masked keys; NaN stays NaN.
            let masked = scores.iter_mut().filter(|x| **x == f32::NEG_INFINITY);
            return masked.for_each(|x| *x = 0.0);
        }
        if max > self.max {
            let factor = exp(self.max - max);
            out.iter_mut().for_each(|x| *x *= factor);
            self.sum *= f64::from(factor);
            self.max = max;
        }
        // NaN scores stay NaN and propagate.
        scores.iter_mut().for_each(|x| *x = exp(*x - max));
        self.sum += sum(scores);
    }
}

/// A head with the gradient of its output.
struct HeadGradient<'a> {
    scores: &'a Scores,
    head: Head<'a>,
    gradient: View<'a>,
}

/// Gradients to which a head adds its own.
struct Targets<'a> {
    query: &'a mut [f32],
    key: &'a mut [f32],
    value: &'a mut [f32],
    /// Distance between the values of consecutive positions.
    value_step: usize,
}

impl HeadGradient<'_> {
    /// Adds this head's gradients, block by block of queries, recomputing the probabilities.
    ///
    /// With probabilities `p` and their gradients `d`, the gradient of the scores is `p (d - sum of
    /// p d)` times the derivative of scale and cap. A sink contributes by `p` summing to less than
    /// 1.
    fn add_to(&self, targets: Targets<'_>) {
        let HeadGradient { scores, head, .. } = self;
        let (positions, length) = (head.query.rows(), head.query.columns());
        let value_length = head.value.columns();
        let (mut p, mut d, mut bent, mut part) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for first in (0..positions).step_by(BLOCK) {
            let end = (first + BLOCK).min(positions);
            let keys = scores.seen(first).start..scores.seen(end - 1).end.min(positions);
            let (rows, columns) = (end - first, keys.len());
            let (query, gradient) = (
                head.query.range(first..end),
                self.gradient.range(first..end),
            );
            let (key, value) = (head.key.range(keys.clone()), head.value.range(keys.clone()));
            p.resize(rows * columns, 0.0);
            d.resize(rows * columns, 0.0);
            multiply(query, key.transposed(), &mut p, columns, 1);
            if scores.cap.is_some() {
                bent.clear();
                bent.extend_from_slice(&p);
            }
            for (query, row) in (first..end).zip(p.chunks_exact_mut(columns)) {
                scores.probabilities(head, query, &keys, row);
            }
            part.resize(columns * value_length, 0.0);
            multiply(
                View::new(&p, rows, columns, columns).transposed(),
                gradient,
                &mut part,
                value_length,
                1,
            );
            let step = targets.value_step;
            let places = targets.value[keys.start * step..].chunks_mut(step);
            for (place, part) in places.zip(part.chunks_exact(value_length)) {
                add(place, part);
            }
            multiply(gradient, value.transposed(), &mut d, columns, 1);
            for (p, d) in p.chunks_exact(columns).zip(d.chunks_exact_mut(columns)) {
                vectorized(
                    #[inline(always)]
                    || {
                        let both: f64 = p.iter().zip(&*d).map(|(p, d)| f64::from(p * d)).sum();
                        let both = both as f32;
                        d.iter_mut()
                            .zip(p)
                            .for_each(|(d, p)| *d = p * (*d - both) * scores.scale);
                    },
                );
            }
            if let Some(cap) = scores.cap {
                let slope = |score: f32| 1.0 - (score * scores.scale / cap).tanh().powi(2);
                d.iter_mut()
                    .zip(&bent)
                    .for_each(|(d, score)| *d *= slope(*score));
            }
            let d = View::new(&d, rows, columns, columns);
            let query_gradient = &mut targets.query[first * length..end * length];
            multiply(d, key, query_gradient, length, 1);
            part.resize(columns * length, 0.0);
            multiply(d.transposed(), query, &mut part, length, 1);
            add(&mut targets.key[keys.start * length..], &part);
        }
    }
}

/// Softmax with a sink of this score; minus infinity for none.
#[inline(always)]
fn softmax_in_place(xs: &mut [f32], sink: f32) {
    let max = largest(xs, sink);
    // NaN scores stay NaN and propagate.
    xs.iter_mut().for_each(|x| *x = exp(*x - max));
    let scale = (1.0 / (sum(xs) + f64::from(exp(sink - max)))) as f32;
    xs.iter_mut().for_each(|x| *x *= scale);
}

/// The largest of some numbers and `least`, without NaN.
#[inline(always)]
fn largest(xs: &[f32], least: f32) -> f32 {
    let (chunks, rest) = xs.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (max, x) in lanes.iter_mut().zip(chunk) {
            *max = if *x > *max { *x } else { *max };
        }
    }
    let mut max = least;
    for x in lanes.iter().chain(rest) {
        max = if *x > max { *x } else { max };
    }
    max
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::tests::random;

    /// Compares blocks and lanes with sequential sums in f64.
    #[test]
    fn queries_attend_to_visible_keys_only() {
        let (heads, kv_heads, length, value_length) = (4, 2, 6, 5);
        for (positions, window, cap, alibi, sink) in [
            (1, None, None, None, None),
            (1, None, None, None, Some(2.0)),
            (3, None, None, Some(8.0), None),
            (64, Some(7), None, None, Some(-1.0)),
            (150, None, Some(2.0), None, Some(9.0)),
            (150, Some(70), None, Some(4.0), None),
            (1100, None, None, None, None),
            (1100, None, Some(2.0), None, Some(-4.0)),
            (1300, Some(700), None, Some(0.1), Some(3.0)),
        ] {
            let scores = Scores {
                scale: 1.7,
                cap,
                window,
                is_chunked: false,
                is_causal: true,
                sinks: sink.map(|sink: f32| vec![sink, sink / 2.0, 0.0, -sink].into()),
                slopes: alibi.map(|bias| alibi_slopes(heads, bias).into()),
            };
            let all = Heads {
                heads,
                kv_heads,
                query: Rows::new(random(heads * positions * length, 1), length),
                key: Rows::new(random(kv_heads * positions * length, 2), length),
                value: Rows::new(
                    random(positions * kv_heads * value_length, 3),
                    2 * value_length,
                ),
                unseen: None,
            };
            let one = scores.attend(&all, 1);
            assert_eq!(one, scores.attend(&all, 3));
            let query = |head, position| {
                all.query
                    .range(head * positions + position..head * positions + position + 1)
                    .into_numbers()
            };
            let key_of = |head, position| {
                all.key
                    .range(head * positions + position..head * positions + position + 1)
                    .into_numbers()
            };
            for (position, row) in one.iter().enumerate() {
                for head in 0..heads {
                    let shared = head / 2;
                    let first = window.map_or(0, |w: usize| (position + 1).saturating_sub(w));
                    let weight = |key: usize| {
                        let (q, k) = (query(head, position), key_of(shared, key));
                        let dot = q.iter().zip(&k).map(|(a, b)| f64::from(a * b));
                        let score = dot.sum::<f64>() * f64::from(scores.scale);
                        let capped =
                            cap.map_or(score, |c| (score / f64::from(c)).tanh() * f64::from(c));
                        // Four heads: 2 to the power of -bias/4, -bias/2 and so on.
                        let slope = alibi.map_or(0.0, |bias: f32| {
                            (-f64::from(bias) * (head + 1) as f64 / 4.0).exp2()
                        });
                        (capped - slope * (position - key) as f64).exp()
                    };
                    let weights: Vec<f64> = (first..=position).map(weight).collect();
                    let sink = scores
                        .sinks
                        .as_ref()
                        .map(|sinks| f64::from(sinks[head]).exp());
                    let sum: f64 = weights.iter().chain(&sink).sum();
                    for i in 0..value_length {
                        let value = |key: usize| {
                            f64::from(
                                all.value.numbers()
                                    [key * 2 * value_length + shared * value_length + i],
                            )
                        };
                        let want: f64 = weights
                            .iter()
                            .zip(first..)
                            .map(|(w, key)| w / sum * value(key))
                            .sum();
                        let got = f64::from(row[head * value_length + i]);
                        assert!(
                            (got - want).abs() < 2e-6,
                            "{positions} {window:?} {position} {head}: {got} {want}"
                        );
                    }
                }
            }
        }
    }

    /// Without causal attention, the outputs of each query are those of the last query of a causal text that
    /// consists of the keys it sees.
    #[test]
    fn queries_of_encoders_see_both_sides() {
        let (positions, length) = (150, 6);
        for (window, alibi) in [
            (None, None),
            (Some(9), None),
            (Some(128), None),
            (None, Some(8.0)),
        ] {
            let scores = |is_causal: bool, window: Option<usize>| Scores {
                scale: 1.3,
                is_causal,
                cap: None,
                window,
                is_chunked: false,
                sinks: None,
                slopes: alibi
                    .filter(|_| !is_causal)
                    .map(|bias| alibi_slopes(1, bias).into()),
            };
            let rows = |seed| Rows::new(random(positions * length, seed), length);
            let heads = |query, key, value| Heads {
                heads: 1,
                kv_heads: 1,
                query,
                key,
                value,
                unseen: None,
            };
            let all = heads(rows(1), rows(2), rows(3));
            let got = scores(false, window).attend(&all, 1);
            assert_eq!(got, scores(false, window).attend(&all, 3));
            let slope = alibi.map_or(0.0, |bias: f32| f64::from((-bias).exp2()));
            for query in [0, 1, 4, 70, 149] {
                let side = window.map_or(positions, |window| window / 2);
                let seen = query - side.min(query)..(query + side + 1).min(positions);
                let weight = |key: usize| {
                    let dot: f64 = all
                        .query
                        .row(query)
                        .iter()
                        .zip(all.key.row(key))
                        .map(|(a, b)| f64::from(a * b))
                        .sum();
                    (dot * 1.3 - slope * query.abs_diff(key) as f64).exp()
                };
                let weights: Vec<f64> = seen.clone().map(weight).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..length {
                    let values = seen.clone().map(|key| f64::from(all.value.row(key)[i]));
                    let want: f64 = weights.iter().zip(values).map(|(w, v)| w / sum * v).sum();
                    let got = f64::from(got.row(query)[i]);
                    assert!(
                        (got - want).abs() < 2e-6,
                        "{window:?} {query}: {got} {want}"
                    );
                }
            }
        }
    }

    /// The chunk length of 70 is not a multiple of the block size.
    #[test]
    fn queries_see_their_own_chunk_only() {
        let scores = |window: usize, is_chunked: bool| Scores {
            scale: 1.0,
            cap: None,
            window: Some(window),
            is_chunked,
            is_causal: true,
            sinks: None,
            slopes: None,
        };
        let all = Heads {
            heads: 1,
            kv_heads: 1,
            query: Rows::new(random(150 * 6, 1), 6),
            key: Rows::new(random(150 * 6, 2), 6),
            value: Rows::new(random(150 * 5, 3), 5),
            unseen: None,
        };
        let part = |range: std::ops::Range<usize>| Heads {
            heads: 1,
            kv_heads: 1,
            query: all.query.range(range.clone()),
            key: all.key.range(range.clone()),
            value: all.value.range(range),
            unseen: None,
        };
        let cut = scores(70, true).attend(&all, 1);
        for range in [0..70, 70..140, 140..150] {
            let alone = scores(150, false).attend(&part(range.clone()), 1);
            for (a, b) in cut.range(range).numbers().iter().zip(alone.numbers()) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    /// The published slopes of 8 heads, and the interpolation of 12 heads from 16.
    #[test]
    fn alibi_slopes_are_geometric() {
        let eight = alibi_slopes(8, 8.0);
        assert_eq!(
            eight,
            [
                0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625
            ]
        );
        let twelve = alibi_slopes(12, 8.0);
        assert_eq!(twelve[..8], eight[..]);
        let sixteen = alibi_slopes(16, 8.0);
        for (own, between) in twelve[8..].iter().zip(sixteen.iter().step_by(2)) {
            assert!((own - between).abs() < 1e-7, "{twelve:?}");
        }
    }

    /// Tiles whose keys are all masked, before and after the others.
    #[test]
    fn masked_tiles_count_for_nothing() {
        let (positions, length, top_k) = (1500, 6, 3);
        let scores = Scores {
            scale: 1.0,
            cap: None,
            window: None,
            is_chunked: false,
            is_causal: true,
            sinks: None,
            slopes: None,
        };
        for first in [0, 1497] {
            let preferred = |query: usize| {
                let score = |key: usize| {
                    if (first..first + top_k).contains(&key) {
                        1.0
                    } else {
                        0.0
                    }
                };
                (0..=query).map(score).collect()
            };
            let all = Heads {
                heads: 1,
                kv_heads: 1,
                query: Rows::new(random(positions * length, 1), length),
                key: Rows::new(random(positions * length, 2), length),
                value: Rows::new(random(positions * length, 3), length),
                unseen: Some(Unseen::but_the_best(positions, top_k, preferred)),
            };
            let best = |x: &Rows| x.range(first..first + top_k);
            let few = Heads {
                heads: 1,
                kv_heads: 1,
                query: all.query.range(1497..1500),
                key: best(&all.key),
                value: best(&all.value),
                unseen: None,
            };
            // The last query sees all three.
            let (got, want) = (scores.attend(&all, 1), scores.attend(&few, 1));
            for (got, want) in got.row(1499).iter().zip(want.row(2)) {
                assert!((got - want).abs() < 1e-6, "{first}: {got} {want}");
            }
        }
    }

    #[test]
    fn nan_scores_propagate() {
        let mut row = [0.5, f32::NAN, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        softmax_in_place(&mut row, f32::NEG_INFINITY);
        assert!(row.iter().all(|x| x.is_nan()));
        for mut rest in [[f32::NEG_INFINITY; 3], [0.5; 3]] {
            let mut running = Running::new(f32::NEG_INFINITY);
            rest[1] = f32::NAN;
            running.add(&mut rest, &mut [0.0]);
            assert!(rest[1].is_nan());
        }
    }
}
