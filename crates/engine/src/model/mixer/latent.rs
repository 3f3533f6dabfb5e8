//! Multi-head latent attention (DeepSeek-AI 2024) in its absorbed form: all heads share one key
//! head, part of which serves as values; each head has one matrix before the scores and one after
//! the weighted sum of values.

use super::attention::{Gate, Gated, by_head, by_position, temper};
use super::factored::{Factored, FactoredTape};
use super::indexer::Sparse;
use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::attention::{Heads, Scores};
use crate::model::ops::elementwise::add;
use crate::model::ops::rope::{Angles, Direction};
use crate::model::rows::Rows;
use crate::model::{Result, Routed};
use quantier_arch::hyper::{LatentNumbers, Temperature};
use quantier_arch::{Activation, Rope};
use std::sync::Arc;

/// ```text
/// stage 0    input -> queries, per head an unrotated part, then a rotated one
///            input -> latent vector, then the rotated part of all keys -> norm of the latent vector
///            unrotated part of a head's query -> key matrix of the head -> query of the latent vector
///            scores -> weighted sum of latent vectors -> value matrix of the head -> gate
/// stage 1    -> output matrix
/// ```
#[derive(Clone)]
pub(in crate::model) struct LatentAttention {
    pub numbers: LatentNumbers,
    pub heads: usize,
    pub query: Factored,
    /// Rows of the latent vector, then of the rotated key part.
    pub compression: Linear,
    /// Norm of the latent vector.
    pub norm: Norm,
    /// Per head: from the unrotated query part to a query of the latent vector.
    pub key: Linear,
    /// Per head: from the latent vector to the head's output.
    pub value: Linear,
    /// Gate of the heads' outputs; never fused with the queries.
    pub gate: Gate,
    pub output: Linear,
    pub rope: Rope,
    /// None in layers without rotation.
    pub angles: Option<Arc<Angles>>,
    pub scores: Scores,
    /// Factor of queries by position.
    pub temperature: Option<Temperature>,
    /// Selection of visible tokens; None for causal attention to all.
    pub sparse: Option<Sparse>,
}

/// Values that the derivative of the first stage needs.
struct LatentTape<'m> {
    attention: &'m LatentAttention,
    query: FactoredTape<'m>,
    /// Latent vectors before the norm.
    latent: Rows,
    heads: Heads,
    gated: Option<Gated>,
}

impl LatentAttention {
    /// The linears that read the input.
    fn first(&self) -> Vec<&Linear> {
        let mut linears = vec![self.query.outer(), &self.compression];
        if let Gate::Own(gate) = &self.gate {
            linears.push(gate);
        }
        let indexer = self
            .sparse
            .as_ref()
            .and_then(|sparse| sparse.indexer.as_ref());
        linears.extend(indexer.into_iter().flat_map(|indexer| indexer.outer()));
        linears
    }

    /// Routing to one head of a per-head linear, for all positions.
    fn of_head<'p>(&self, head: usize, positions: &'p [u32]) -> Option<Routed<'p>> {
        (self.heads > 1).then_some(Routed {
            expert: head,
            experts: self.heads,
            positions,
        })
    }

    /// Multiplies each head's rows by its matrix: `[heads, positions, columns]` to `[heads,
    /// positions, rows]`.
    fn times_heads(&self, linear: &Linear, x: &Rows, pass: &Pass<'_>) -> Result<Rows> {
        let count = x.len() / self.heads;
        let positions: Vec<u32> = (0..count as u32).collect();
        let mut numbers = Vec::new();
        let mut columns = 1;
        for head in 0..self.heads {
            let x = x.range(head * count..(head + 1) * count);
            pass.input(&[linear], self.of_head(head, &positions), &x)?;
            let y = pass.times_expert(linear, head, &x)?;
            columns = y.columns();
            numbers.extend(y.into_numbers());
        }
        Ok(Rows::new(numbers, columns))
    }

    /// Derivative of [`LatentAttention::times_heads`] with respect to the rows.
    fn back_heads(&self, linear: &Linear, g: &Rows, pass: &Pass<'_>) -> Result<Rows> {
        let count = g.len() / self.heads;
        let positions: Vec<u32> = (0..count as u32).collect();
        let mut numbers = Vec::with_capacity(g.len() * linear.columns);
        for head in 0..self.heads {
            let g = g.range(head * count..(head + 1) * count);
            let mut dx = Rows::zeros(count, linear.columns);
            pass.back_expert(linear, self.of_head(head, &positions), &g, &mut dx)?;
            numbers.extend(dx.into_numbers());
        }
        Ok(Rows::new(numbers, linear.columns))
    }

    /// Rotates rows `[heads, positions, length]`.
    fn rotate(&self, x: &mut Rows, heads: usize, direction: Direction) {
        if let Some(angles) = &self.angles {
            let positions = x.len() / heads;
            angles.rotate(x, positions, self.rope, direction);
        }
    }

    /// The unrotated and rotated parts of queries `[heads, positions, length]`.
    fn parts(&self, queries: &Rows) -> [Rows; 2] {
        let plain = self.numbers.key_length - self.numbers.rotated;
        [0..plain, plain..queries.columns()].map(|part| queries.columns_range(part))
    }
}

impl Mixer for LatentAttention {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        let indexer = self
            .sparse
            .as_ref()
            .and_then(|sparse| sparse.indexer.as_ref());
        let mut inner: Vec<_> = indexer.iter().map(|indexer| &indexer.query).collect();
        inner.extend(self.query.inner());
        inner.extend([&self.key, &self.value]);
        let first = Stage {
            linears: self.first(),
            inner,
        };
        vec![first, Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let (query, inner) = self.query.linears_mut();
        let mut first = Stage {
            linears: vec![query, &mut self.compression],
            inner: inner.into_iter().collect(),
        };
        if let Gate::Own(gate) = &mut self.gate {
            first.linears.push(gate);
        }
        let sparse = self.sparse.as_mut();
        if let Some(indexer) = sparse.and_then(|sparse| sparse.indexer.as_mut()) {
            let (outer, query) = indexer.linears_mut();
            first.linears.extend(outer);
            first.inner.push(query);
        }
        first.inner.extend([&mut self.key, &mut self.value]);
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
        let mut unseen = None;
        let (queries, query) = self.query.run_past(input, pass, |factor| {
            let sparse = self.sparse.as_ref();
            unseen = sparse
                .map(|sparse| sparse.unseen(input, factor, pass))
                .transpose()?
                .flatten();
            Ok(())
        })?;
        let [plain, mut rotated] = self.parts(&by_head(&queries, self.heads));
        self.rotate(&mut rotated, self.heads, Direction::Forward);
        let absorbed = self.times_heads(&self.key, &plain, pass)?;
        let compressed = pass.times(&self.compression, input)?;
        let rank = self.numbers.rank;
        let latent = compressed.columns_range(0..rank);
        let mut shared = compressed.columns_range(rank..compressed.columns());
        self.rotate(&mut shared, 1, Direction::Forward);
        let value = self.norm.of(&latent);
        let mut queries = Rows::beside(&[&absorbed, &rotated]);
        temper(&mut queries, self.heads, self.temperature);
        let heads = Heads {
            heads: self.heads,
            kv_heads: 1,
            query: queries,
            key: Rows::beside(&[&value, &shared]),
            value,
            unseen,
        };
        let mixed = self.scores.attend(&heads, pass.split);
        let outputs = self.times_heads(&self.value, &by_head(&mixed, self.heads), pass)?;
        let mut y = by_position(&outputs, self.heads);
        let gated = match &self.gate {
            Gate::Own(gate) => Some(Gated::new(
                &mut y,
                pass.times(gate, input)?,
                Activation::Sigmoid,
            )),
            Gate::None | Gate::Queries => None,
        };
        let tape = LatentTape {
            attention: self,
            query,
            latent,
            heads,
            gated,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for LatentTape<'_> {
    fn backward(&self, input: &Rows, mut dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let attention = self.attention;
        let of_gates = self.gated.as_ref().map(|gated| gated.derivative(&mut dy));
        if let (Gate::Own(gate), Some(of_gates)) = (&attention.gate, &of_gates) {
            pass.back(gate, of_gates, dx)?;
        }
        let of_outputs = by_head(&dy, attention.heads);
        let of_mixed = attention.back_heads(&attention.value, &of_outputs, pass)?;
        let of_mixed = by_position(&of_mixed, attention.heads);
        let Heads {
            mut query,
            key,
            value,
            ..
        } = attention.scores.derivative(&self.heads, &of_mixed);
        temper(&mut query, attention.heads, attention.temperature);

        // The latent vector is both a part of the keys and the values.
        let rank = attention.numbers.rank;
        let mut of_latent = key.columns_range(0..rank);
        add(of_latent.numbers_mut(), value.numbers());
        let norm = &attention.norm;
        pass.back_norm(norm, self.latent.numbers(), of_latent.numbers_mut());
        let mut of_shared = key.columns_range(rank..key.columns());
        attention.rotate(&mut of_shared, 1, Direction::Back);
        let of_compressed = Rows::beside(&[&of_latent, &of_shared]);
        pass.back(&attention.compression, &of_compressed, dx)?;

        let of_absorbed = query.columns_range(0..rank);
        let mut of_rotated = query.columns_range(rank..query.columns());
        attention.rotate(&mut of_rotated, attention.heads, Direction::Back);
        let of_plain = attention.back_heads(&attention.key, &of_absorbed, pass)?;
        let of_queries = Rows::beside(&[&of_plain, &of_rotated]);
        let of_queries = by_position(&of_queries, attention.heads);
        self.query.backward(input, of_queries, pass, dx)
    }
}
