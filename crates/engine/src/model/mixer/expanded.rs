//! Multi-head latent attention (DeepSeek-AI 2024) with expanded keys and values: one matrix computes
//! those of all heads from the latent vector.

use super::attention::{by_head, by_position};
use super::factored::{Factored, FactoredTape};
use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::attention::{Heads, Scores};
use crate::model::ops::elementwise::add;
use crate::model::ops::rope::{Angles, Direction};
use crate::model::rows::Rows;
use quantier_arch::Rope;
use quantier_arch::hyper::LatentNumbers;
use std::sync::Arc;

/// ```text
/// stage 0    input -> queries, per head an unrotated part, then a rotated one
///            input -> latent vector, then the rotated part of all keys -> norm of the latent vector
///            latent vector -> per head the unrotated part of its key, then its value
///            scores -> weighted sum of values
/// stage 1    -> output matrix
/// ```
#[derive(Clone)]
pub(in crate::model) struct ExpandedAttention {
    pub numbers: LatentNumbers,
    pub heads: usize,
    pub query: Factored,
    /// Rows of the latent vector, then of the rotated key part.
    pub compression: Linear,
    /// Norm of the latent vector.
    pub norm: Norm,
    /// For each head, rows of the unrotated key part, then of the value.
    pub expansion: Linear,
    pub output: Linear,
    pub rope: Rope,
    /// None in layers without rotation.
    pub angles: Option<Arc<Angles>>,
    pub scores: Scores,
}

/// Values that the derivative of the first stage needs.
struct ExpandedTape<'m> {
    attention: &'m ExpandedAttention,
    query: FactoredTape<'m>,
    /// Latent vectors before the norm.
    latent: Rows,
    heads: Heads,
}

impl ExpandedAttention {
    /// The linears that read the input.
    fn first(&self) -> Vec<&Linear> {
        vec![self.query.outer(), &self.compression]
    }

    /// Length of the unrotated part of a query or key.
    fn plain(&self) -> usize {
        self.numbers.key_length - self.numbers.rotated
    }

    /// Rotates the last numbers of queries or keys `[heads, positions, length]`.
    fn rotate(&self, x: &Rows, heads: usize, direction: Direction) -> Rows {
        let Some(angles) = &self.angles else {
            return x.clone();
        };
        let plain = x.columns() - self.numbers.rotated;
        let mut rotated = x.columns_range(plain..x.columns());
        angles.rotate(&mut rotated, x.len() / heads, self.rope, direction);
        match plain {
            0 => rotated,
            _ => Rows::beside(&[&x.columns_range(0..plain), &rotated]),
        }
    }

    /// A copy of `[positions, length]` for each head.
    fn for_all_heads(&self, x: &Rows) -> Rows {
        Rows::new(x.numbers().repeat(self.heads), x.columns())
    }

    /// The sum over the heads of `[heads, positions, length]`.
    fn sum_of_heads(&self, x: &Rows) -> Rows {
        let positions = x.len() / self.heads;
        let mut sum = x.range(0..positions);
        for head in 1..self.heads {
            let part = x.range(head * positions..(head + 1) * positions);
            add(sum.numbers_mut(), part.numbers());
        }
        sum
    }
}

impl Mixer for ExpandedAttention {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        let mut inner: Vec<_> = self.query.inner().into_iter().collect();
        inner.push(&self.expansion);
        let first = Stage {
            linears: self.first(),
            inner,
        };
        vec![first, Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let (query, factor) = self.query.linears_mut();
        let first = Stage {
            linears: vec![query, &mut self.compression],
            inner: factor.into_iter().chain([&mut self.expansion]).collect(),
        };
        vec![first, Stage::of(vec![&mut self.output])]
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
        pass.input(&self.first(), None, input)?;
        let (queries, query) = self.query.run(input, pass)?;
        let compressed = pass.times(&self.compression, input)?;
        let rank = self.numbers.rank;
        let latent = compressed.columns_range(0..rank);
        let shared = compressed.columns_range(rank..compressed.columns());
        let shared = self.rotate(&shared, 1, Direction::Forward);
        let normalized = self.norm.of(&latent);
        pass.input(&[&self.expansion], None, &normalized)?;
        let expanded = by_head(&pass.times(&self.expansion, &normalized)?, self.heads);
        let plain = self.plain();
        let keys = expanded.columns_range(0..plain);
        let values = expanded.columns_range(plain..expanded.columns());
        let heads = Heads {
            heads: self.heads,
            kv_heads: self.heads,
            query: self.rotate(
                &by_head(&queries, self.heads),
                self.heads,
                Direction::Forward,
            ),
            key: Rows::beside(&[&keys, &self.for_all_heads(&shared)]),
            value: by_position(&values, self.heads),
            unseen: None,
        };
        let y = self.scores.attend(&heads, pass.split);
        let tape = ExpandedTape {
            attention: self,
            query,
            latent,
            heads,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for ExpandedTape<'_> {
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let attention = self.attention;
        let Heads {
            query, key, value, ..
        } = attention.scores.derivative(&self.heads, &dy);
        let plain = attention.plain();
        let of_keys = key.columns_range(0..plain);
        let of_shared = attention.sum_of_heads(&key.columns_range(plain..key.columns()));
        let of_values = by_head(&value, attention.heads);
        let of_expanded = by_position(&Rows::beside(&[&of_keys, &of_values]), attention.heads);
        let mut of_latent = Rows::zeros(input.len(), attention.numbers.rank);
        pass.back(&attention.expansion, &of_expanded, &mut of_latent)?;
        let norm = &attention.norm;
        pass.back_norm(norm, self.latent.numbers(), of_latent.numbers_mut());
        let of_shared = attention.rotate(&of_shared, 1, Direction::Back);
        let of_compressed = Rows::beside(&[&of_latent, &of_shared]);
        pass.back(&attention.compression, &of_compressed, dx)?;
        let of_queries = attention.rotate(&query, attention.heads, Direction::Back);
        let of_queries = by_position(&of_queries, attention.heads);
        self.query.backward(input, of_queries, pass, dx)
    }
}
