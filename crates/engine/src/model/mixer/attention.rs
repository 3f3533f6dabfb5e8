//! Attention of heads that share keys and values in groups.

use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::attention::{Heads, Scores};
use crate::model::ops::elementwise::{clamp, clamp_derivative};
use crate::model::ops::rope::{Angles, Direction};
use crate::model::rows::Rows;
use quantier_arch::Rope;
use quantier_arch::hyper::Temperature;
use std::sync::Arc;

/// ```text
/// stage 0    input -> queries, keys, values -> clamp, norms, rotation -> the heads' outputs
/// stage 1    the heads' outputs -> the output matrix
/// ```
#[derive(Clone)]
pub(in crate::model) struct Attention {
    pub projections: Projections,
    pub query_norm: Option<Norm>,
    pub key_norm: Option<Norm>,
    pub output: Linear,
    pub heads: usize,
    pub kv_heads: usize,
    /// Length of a head of queries and keys.
    pub key_length: usize,
    /// Queries, keys and values are clamped to plus and minus this.
    pub clamp: Option<f32>,
    /// How queries grow with their position.
    pub temperature: Option<Temperature>,
    pub rope: Rope,
    /// None if the layer does not rotate.
    pub angles: Option<Arc<Angles>>,
    pub scores: Scores,
}

/// The matrices of queries, keys and values.
#[derive(Clone)]
pub(in crate::model) enum Projections {
    /// In this order.
    Apart(Box<[Linear; 3]>),
    /// One with the rows of queries before those of keys before those of values.
    Fused(Linear),
}

impl Projections {
    fn linears(&self) -> Vec<&Linear> {
        match self {
            Projections::Apart(all) => all.iter().collect(),
            Projections::Fused(all) => vec![all],
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Projections::Apart(all) => all.iter_mut().collect(),
            Projections::Fused(all) => vec![all],
        }
    }
}

/// What the derivative of the first stage needs.
struct HeadsTape<'m> {
    attention: &'m Attention,
    /// Queries, keys and values as projected, if they are clamped.
    projected: Option<[Rows; 3]>,
    /// Queries and keys in front of their norms, if they have some.
    unnormalized: [Option<Rows>; 2],
    heads: Heads,
}

impl Attention {
    /// Queries, keys and values of an input.
    fn project(&self, input: &Rows, pass: &Pass<'_>) -> Result<[Rows; 3]> {
        match &self.projections {
            Projections::Apart(all) => {
                let [query, key, value] = &**all;
                Ok([
                    pass.times(query, input)?,
                    pass.times(key, input)?,
                    pass.times(value, input)?,
                ])
            }
            Projections::Fused(all) => {
                let all = pass.times(all, input)?;
                let (queries, keys) = (
                    self.heads * self.key_length,
                    self.kv_heads * self.key_length,
                );
                Ok([
                    all.columns_range(0..queries),
                    all.columns_range(queries..queries + keys),
                    all.columns_range(queries + keys..all.columns()),
                ])
            }
        }
    }

    /// `[positions, heads * length]` as `[heads, positions, length]`, rotated.
    fn rotated(&self, x: &Rows, heads: usize) -> Rows {
        let mut x = by_head(x, heads);
        if let Some(angles) = &self.angles {
            let length = x.columns();
            angles.rotate(x.numbers_mut(), length, self.rope, Direction::Forward);
        }
        x
    }

    /// The derivative of [`Attention::rotated`].
    fn unrotated(&self, mut g: Rows, heads: usize) -> Rows {
        if let Some(angles) = &self.angles {
            let length = g.columns();
            angles.rotate(g.numbers_mut(), length, self.rope, Direction::Back);
        }
        by_position(&g, heads)
    }

    /// Multiplies queries, or their gradients, `[heads, positions, length]`, by the factors of their
    /// positions.
    fn temper(&self, query: &mut Rows) {
        let Some(temperature) = self.temperature else {
            return;
        };
        let positions = query.len() / self.heads;
        for (row, query) in query.iter_mut().enumerate() {
            let factor = temperature.factor(row % positions);
            query.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

impl Mixer for Attention {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        vec![
            Stage::of(self.projections.linears()),
            Stage::of(vec![&self.output]),
        ]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        vec![
            Stage::of(self.projections.linears_mut()),
            Stage::of(vec![&mut self.output]),
        ]
    }

    fn run_stage<'m>(
        &'m self,
        stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        if stage > 0 {
            return run_linear(&self.output, input, pass);
        }
        pass.input(&self.projections.linears(), None, input)?;
        let mut all = self.project(input, pass)?;
        let projected = self.clamp.filter(|_| pass.recording).map(|_| all.clone());
        if let Some(limit) = self.clamp {
            all.iter_mut().for_each(|x| clamp(x.numbers_mut(), limit));
        }
        let [mut query, mut key, value] = all;
        let normalize = |norm: &Option<Norm>, x: &mut Rows| {
            let norm = norm.as_ref()?;
            let before = pass.recording.then(|| x.clone());
            norm.apply(x.numbers_mut());
            before
        };
        let unnormalized = [
            normalize(&self.query_norm, &mut query),
            normalize(&self.key_norm, &mut key),
        ];
        let mut query = self.rotated(&query, self.heads);
        self.temper(&mut query);
        let heads = Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            query,
            key: self.rotated(&key, self.kv_heads),
            value,
        };
        let y = self.scores.attend(&heads, pass.split);
        let tape = HeadsTape {
            attention: self,
            projected,
            unnormalized,
            heads,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for HeadsTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let attention = self.attention;
        let mut gradients = attention.scores.derivative(&self.heads, &dy);
        attention.temper(&mut gradients.query);
        let mut query = attention.unrotated(gradients.query, attention.heads);
        let mut key = attention.unrotated(gradients.key, attention.kv_heads);
        let norms = [&attention.query_norm, &attention.key_norm];
        for ((norm, before), g) in norms
            .into_iter()
            .zip(&self.unnormalized)
            .zip([&mut query, &mut key])
        {
            if let (Some(norm), Some(before)) = (norm, before) {
                norm.derivative(before.numbers(), g.numbers_mut());
            }
        }
        let mut all = [query, key, gradients.value];
        if let (Some(limit), Some(projected)) = (attention.clamp, &self.projected) {
            for (g, x) in all.iter_mut().zip(projected) {
                clamp_derivative(x.numbers(), g.numbers_mut(), limit);
            }
        }
        match &attention.projections {
            // The last one first: an order of sums, which results depend on.
            Projections::Apart(linears) => linears
                .iter()
                .zip(&all)
                .rev()
                .try_for_each(|(linear, g)| pass.back(linear, g, dx)),
            Projections::Fused(linear) => {
                let [query, key, value] = &all;
                pass.back(linear, &Rows::beside(&[query, key, value]), dx)
            }
        }
    }
}

/// `[positions, heads * length]` as `[heads, positions, length]`.
fn by_head(x: &Rows, heads: usize) -> Rows {
    let length = x.columns() / heads;
    let mut out = Vec::with_capacity(x.numbers().len());
    for head in 0..heads {
        for row in x.iter() {
            out.extend_from_slice(&row[head * length..][..length]);
        }
    }
    Rows::new(out, length)
}

/// The reverse of [`by_head`].
fn by_position(x: &Rows, heads: usize) -> Rows {
    let (positions, length) = (x.len() / heads, x.columns());
    let mut out = Rows::zeros(positions, heads * length);
    for (position, row) in out.iter_mut().enumerate() {
        for (head, place) in row.chunks_exact_mut(length).enumerate() {
            let from = (head * positions + position) * length;
            place.copy_from_slice(&x.numbers()[from..][..length]);
        }
    }
    out
}
