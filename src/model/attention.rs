//! From queries, keys and values to what the heads say: scores, scale, soft cap, mask, softmax, the
//! mix of values.

use super::derived;
use super::product::{numbers, product};
use super::rows::bend;
use crate::matrix::{View, multiply};
use crate::vector::{LANES, exp, sum, vectorized};
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

/// Queries that are taken together. Keys behind the last of them are never looked at.
const BLOCK: usize = 64;

/// What is done to the scores of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scores {
    /// They are multiplied by this first.
    pub scale: f32,
    /// Then bent to stay below this.
    pub cap: Option<f32>,
    /// A token sees so many tokens, itself among them.
    pub window: Option<usize>,
}

impl Scores {
    /// What each head sees, side by side: `[positions, heads * value_length]`, of queries `[heads,
    /// positions, length]`, keys `[kv_heads, positions, length]` and values `[positions, kv_heads *
    /// value_length]`.
    ///
    /// `split` is how many threads may share the heads.
    pub(super) fn attend(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        split: usize,
    ) -> Result<Tensor> {
        let (heads, positions, length) = query.dims3()?;
        let kv_heads = key.dim(0)?;
        let value_length = value.dim(1)? / kv_heads;
        if !query.device().is_cpu() {
            // All heads of queries that share keys follow each other as rows.
            let query = query.reshape((kv_heads, heads / kv_heads * positions, length))?;
            let value = value
                .reshape((positions, kv_heads, value_length))?
                .permute((1, 2, 0))?;
            let mixed = product(
                &self.softmax(&product(&query, key, split)?)?,
                &value.contiguous()?,
                split,
            )?;
            let mixed = mixed
                .reshape((heads, positions, value_length))?
                .transpose(0, 1)?
                .contiguous()?;
            return mixed.reshape((positions, heads * value_length));
        }
        if query.track_op() || key.track_op() || value.track_op() {
            let y = self.attend(&query.detach(), &key.detach(), &value.detach(), split)?;
            let scores = *self;
            return derived::of_three([query, key, value], &y, move |args, g| {
                scores.derivative(args, g)
            });
        }
        let mut mixed = vec![0.0f32; heads * positions * value_length];
        numbers(query, |query| {
            numbers(key, |key| {
                numbers(value, |value| {
                    let one = |(head, out): (usize, &mut [f32])| {
                        let shared = head / (heads / kv_heads);
                        let query = View::new(
                            &query[head * positions * length..],
                            positions,
                            length,
                            length,
                        );
                        let key = View::new(
                            &key[shared * positions * length..],
                            positions,
                            length,
                            length,
                        );
                        let step = kv_heads * value_length;
                        let value = View::new(
                            &value[shared * value_length..],
                            positions,
                            value_length,
                            step,
                        );
                        self.head(query, key, value, out);
                    };
                    match split > 1 {
                        true => mixed
                            .par_chunks_mut(positions * value_length)
                            .enumerate()
                            .for_each(one),
                        false => mixed
                            .chunks_mut(positions * value_length)
                            .enumerate()
                            .for_each(one),
                    }
                    Ok(())
                })
            })
        })?;
        let mut out = vec![0.0f32; mixed.len()];
        for (head, mixed) in mixed.chunks_exact(positions * value_length).enumerate() {
            let places = out.chunks_exact_mut(heads * value_length);
            for (place, mixed) in places.zip(mixed.chunks_exact(value_length)) {
                place[head * value_length..][..value_length].copy_from_slice(mixed);
            }
        }
        Tensor::from_vec(out, (positions, heads * value_length), query.device())
    }

    /// One head: `[positions, value_length]`.
    fn head(&self, query: View<'_>, key: View<'_>, value: View<'_>, out: &mut [f32]) {
        let positions = query.rows();
        let value_length = value.columns();
        let mut scores = vec![0.0f32; BLOCK.min(positions) * positions];
        for first in (0..positions).step_by(BLOCK) {
            let end = (first + BLOCK).min(positions);
            // All that one of these queries sees.
            let keys = self.seen(first).start..end;
            let (rows, columns) = (end - first, keys.len());
            let scores = &mut scores[..rows * columns];
            multiply(
                query.range(first..end),
                key.range(keys.clone()).transposed(),
                scores,
                columns,
                1,
            );
            for (query, row) in (first..end).zip(scores.chunks_exact_mut(columns)) {
                let seen = self.seen(query);
                let seen = seen.start - keys.start..seen.end - keys.start;
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                self.row(&mut row[seen]);
            }
            let out = &mut out[first * value_length..];
            multiply(
                View::new(scores, rows, columns, columns),
                value.range(keys),
                out,
                value_length,
                1,
            );
        }
    }

    /// The gradients of queries, keys and values, from that of what [`Scores::attend`] makes of
    /// them.
    fn derivative(&self, [query, key, value]: [&Tensor; 3], g: &Tensor) -> Result<[Tensor; 3]> {
        let (heads, positions, length) = query.dims3()?;
        let kv_heads = key.dim(0)?;
        let step = value.dim(1)?;
        let value_length = step / kv_heads;
        let mut of_query = vec![0.0f32; heads * positions * length];
        let mut of_key = vec![0.0f32; kv_heads * positions * length];
        let mut of_value = vec![0.0f32; positions * step];
        let [q, k, v, g_all] = [query, key, value, g].map(|x| numbers(x, |x| Ok(x.to_vec())));
        let (q, k, v, g_all) = (q?, k?, v?, g_all?);
        for head in 0..heads {
            let shared = head / (heads / kv_heads);
            let of_head = Backward {
                query: View::new(&q[head * positions * length..], positions, length, length),
                key: View::new(&k[shared * positions * length..], positions, length, length),
                value: View::new(&v[shared * value_length..], positions, value_length, step),
                gradient: View::new(
                    &g_all[head * value_length..],
                    positions,
                    value_length,
                    heads * value_length,
                ),
            };
            of_head.run(
                self,
                &mut of_query[head * positions * length..][..positions * length],
                &mut of_key[shared * positions * length..][..positions * length],
                (&mut of_value[shared * value_length..], step),
            );
        }
        Ok([
            Tensor::from_vec(of_query, query.shape(), query.device())?,
            Tensor::from_vec(of_key, key.shape(), key.device())?,
            Tensor::from_vec(of_value, value.shape(), value.device())?,
        ])
    }

    /// Probabilities of `[.., queries, keys]`; query `i` of each `keys` queries sees keys up to
    /// `i`. Several heads of queries may follow each other in one batch.
    pub(super) fn softmax(&self, scores: &Tensor) -> Result<Tensor> {
        let keys = scores.dim(D::Minus1)?;
        if scores.device().is_cpu() {
            let mut out = numbers(scores, |scores| Ok(scores.to_vec()))?;
            for (row, scores) in out.chunks_exact_mut(keys).enumerate() {
                let seen = self.seen(row % keys);
                scores[..seen.start].fill(0.0);
                scores[seen.end..].fill(0.0);
                self.row(&mut scores[seen]);
            }
            return Tensor::from_vec(out, scores.shape(), scores.device());
        }
        let mut scores = (scores * f64::from(self.scale))?;
        if let Some(cap) = self.cap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let mask: Vec<f32> = (0..keys * keys)
            .map(|i| {
                if self.seen(i / keys).contains(&(i % keys)) {
                    0.0
                } else {
                    f32::NEG_INFINITY
                }
            })
            .collect();
        let repeats = scores.dim(D::Minus2)? / keys;
        let mask = Tensor::from_vec(mask, (keys, keys), scores.device())?.repeat((repeats, 1))?;
        candle_nn::ops::softmax_last_dim(&scores.broadcast_add(&mask)?)
    }

    fn seen(&self, query: usize) -> std::ops::Range<usize> {
        let first = self
            .window
            .map_or(0, |window| (query + 1).saturating_sub(window));
        first..query + 1
    }

    /// Scores of the keys that a query sees, to probabilities.
    fn row(&self, scores: &mut [f32]) {
        vectorized(|| scores.iter_mut().for_each(|x| *x *= self.scale));
        bend(scores, self.cap);
        vectorized(|| softmax_in_place(scores));
    }
}

/// What one head reads, and the gradient of what it says.
struct Backward<'a> {
    query: View<'a>,
    key: View<'a>,
    value: View<'a>,
    gradient: View<'a>,
}

impl Backward<'_> {
    /// Adds this head's part to the gradients, block by block of queries, with the probabilities
    /// computed anew. Those of values have `step` numbers from one position to the next.
    ///
    /// With probabilities `p` and their gradients `d`, that of the scores is `p (d - sum of p d)`
    /// times the slope of scale and cap.
    fn run(
        &self,
        scores: &Scores,
        of_query: &mut [f32],
        of_key: &mut [f32],
        (of_value, step): (&mut [f32], usize),
    ) {
        let (positions, length, value_length) = (
            self.query.rows(),
            self.query.columns(),
            self.value.columns(),
        );
        let (mut p, mut d, mut bent, mut part) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for first in (0..positions).step_by(BLOCK) {
            let end = (first + BLOCK).min(positions);
            let keys = scores.seen(first).start..end;
            let (rows, columns) = (end - first, keys.len());
            let (query, gradient) = (
                self.query.range(first..end),
                self.gradient.range(first..end),
            );
            let (key, value) = (self.key.range(keys.clone()), self.value.range(keys.clone()));
            p.resize(rows * columns, 0.0);
            d.resize(rows * columns, 0.0);
            multiply(query, key.transposed(), &mut p, columns, 1);
            if scores.cap.is_some() {
                bent.clear();
                bent.extend_from_slice(&p);
            }
            for (query, row) in (first..end).zip(p.chunks_exact_mut(columns)) {
                let seen = scores.seen(query);
                let seen = seen.start - keys.start..seen.end - keys.start;
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                scores.row(&mut row[seen]);
            }
            part.resize(columns * value_length, 0.0);
            multiply(
                View::new(&p, rows, columns, columns).transposed(),
                gradient,
                &mut part,
                value_length,
                1,
            );
            let places = of_value[keys.start * step..].chunks_mut(step);
            for (place, part) in places.zip(part.chunks_exact(value_length)) {
                place
                    .iter_mut()
                    .zip(part)
                    .for_each(|(place, part)| *place += part);
            }
            multiply(gradient, value.transposed(), &mut d, columns, 1);
            for (p, d) in p.chunks_exact(columns).zip(d.chunks_exact_mut(columns)) {
                vectorized(|| {
                    let both: f64 = p.iter().zip(&*d).map(|(p, d)| f64::from(p * d)).sum();
                    let both = both as f32;
                    d.iter_mut()
                        .zip(p)
                        .for_each(|(d, p)| *d = p * (*d - both) * scores.scale);
                });
            }
            if let Some(cap) = scores.cap {
                let slope = |score: f32| 1.0 - (score * scores.scale / cap).tanh().powi(2);
                d.iter_mut()
                    .zip(&bent)
                    .for_each(|(d, score)| *d *= slope(*score));
            }
            let d = View::new(&d, rows, columns, columns);
            multiply(
                d,
                key,
                &mut of_query[first * length..end * length],
                length,
                1,
            );
            part.resize(columns * length, 0.0);
            multiply(d.transposed(), query, &mut part, length, 1);
            let places = of_key[keys.start * length..].iter_mut();
            places.zip(&part).for_each(|(place, part)| *place += part);
        }
    }
}

#[inline(always)]
fn softmax_in_place(xs: &mut [f32]) {
    let (chunks, rest) = xs.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (max, x) in lanes.iter_mut().zip(chunk) {
            *max = if *x > *max { *x } else { *max };
        }
    }
    let mut max = f32::NEG_INFINITY;
    for x in lanes.iter().chain(rest) {
        max = if *x > max { *x } else { max };
    }
    // What is not a number stays so, and spreads.
    xs.iter_mut().for_each(|x| *x = exp(*x - max));
    let scale = (1.0 / sum(xs)) as f32;
    xs.iter_mut().for_each(|x| *x *= scale);
}

#[cfg(test)]
mod tests {
    use super::derived::tests::random;
    use super::*;

    #[test]
    fn derivatives_are_those_that_differences_show() {
        for (positions, window, cap) in
            [(5, None, None), (70, Some(9), None), (66, None, Some(2.0))]
        {
            let scores = Scores {
                scale: 0.8,
                cap,
                window,
            };
            derived::tests::check(
                |x| scores.attend(&x[0], &x[1], &x[2], 1),
                &[&[4, positions, 6], &[2, positions, 6], &[positions, 2 * 5]],
            );
        }
    }

    /// Blocks and lanes against sums in f64, one at a time.
    #[test]
    fn every_query_sees_what_it_may() {
        let (heads, kv_heads, length, value_length) = (4, 2, 6, 5);
        for (positions, window, cap) in [
            (1, None, None),
            (3, None, None),
            (64, Some(7), None),
            (150, None, Some(2.0)),
            (150, Some(70), None),
        ] {
            let scores = Scores {
                scale: 1.7,
                cap,
                window,
            };
            let (q, k) = (
                random(&[heads, positions, length], 1),
                random(&[kv_heads, positions, length], 2),
            );
            let v = random(&[positions, kv_heads * value_length], 3);
            let one = scores
                .attend(&q, &k, &v, 1)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap();
            assert_eq!(
                one,
                scores
                    .attend(&q, &k, &v, 3)
                    .unwrap()
                    .to_vec2::<f32>()
                    .unwrap()
            );
            let (q, k) = (q.to_vec3::<f32>().unwrap(), k.to_vec3::<f32>().unwrap());
            let v = v.to_vec2::<f32>().unwrap();
            for (position, row) in one.iter().enumerate() {
                for head in 0..heads {
                    let shared = head / 2;
                    let first = window.map_or(0, |w: usize| (position + 1).saturating_sub(w));
                    let weight = |key: usize| {
                        let dot = q[head][position]
                            .iter()
                            .zip(&k[shared][key])
                            .map(|(a, b)| f64::from(a * b));
                        let score = dot.sum::<f64>() * f64::from(scores.scale);
                        cap.map_or(score, |c| (score / f64::from(c)).tanh() * f64::from(c))
                            .exp()
                    };
                    let weights: Vec<f64> = (first..=position).map(weight).collect();
                    let sum: f64 = weights.iter().sum();
                    for i in 0..value_length {
                        let value = |key: usize| f64::from(v[key][shared * value_length + i]);
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

    #[test]
    fn what_is_not_a_number_shows() {
        let mut row = [0.5, f32::NAN, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        softmax_in_place(&mut row);
        assert!(row.iter().all(|x| x.is_nan()));
    }
}
