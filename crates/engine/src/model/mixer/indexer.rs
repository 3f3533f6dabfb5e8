//! The indexer of sparse attention (DeepSeek-AI 2025), which chooses the tokens that queries see.
//!
//! ```text
//! factor of queries -> queries of its heads -> rotation
//! input -> a key -> norm -> rotation
//! input -> a weight of each head
//! index of a query and a key = sum over heads of weight * max(0, query . key)
//! ```
//!
//! Queries see the `top_k` keys of the largest indices. No gradient goes through the choice, so that its
//! matrices have none; and in a chunk of at most `top_k` tokens there is nothing to choose.

use super::attention::by_head;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::attention::Unseen;
use crate::model::ops::rope::{Angles, Direction};
use crate::model::rows::Rows;
use crate::model::{Error, Result};
use quantier_arch::Rope;
use quantier_arch::hyper::IndexerNumbers;
use std::sync::Arc;

/// Which tokens queries see.
#[derive(Clone)]
pub(in crate::model) struct Sparse {
    /// How many.
    pub top_k: usize,
    /// What chooses them; None if another layer's indexer does.
    pub indexer: Option<Box<Indexer>>,
}

#[derive(Clone)]
pub(in crate::model) struct Indexer {
    pub numbers: IndexerNumbers,
    /// Reads the factor of queries.
    pub query: Linear,
    pub key: Linear,
    pub key_norm: Norm,
    /// Of its heads.
    pub weights: Linear,
    pub rope: Rope,
    pub angles: Option<Arc<Angles>>,
}

impl Sparse {
    /// What queries do not see of a chunk, whose input was shown already; `factor` is that of queries.
    ///
    /// # Errors
    /// A chunk of more than `top_k` tokens in a layer that takes the choice of another.
    pub(super) fn unseen(
        &self,
        input: &Rows,
        factor: &Rows,
        pass: &Pass<'_>,
    ) -> Result<Option<Unseen>> {
        let positions = input.len();
        let Some(indexer) = &self.indexer else {
            return match positions > self.top_k {
                true => Err(Error::Model(format!(
                    "chunks of {positions} tokens are longer than the {} that a token sees, and layers of this \
                     model share the choice of an indexer, which cannot be run yet; take chunks of at most {} (-c)",
                    self.top_k, self.top_k
                ))),
                false => Ok(None),
            };
        };
        pass.input(&[&indexer.query], None, factor)?;
        if positions <= self.top_k {
            return Ok(None);
        }
        indexer.unseen(self.top_k, input, factor, pass).map(Some)
    }
}

impl Indexer {
    /// The linears that read the input.
    pub(super) fn outer(&self) -> [&Linear; 2] {
        [&self.key, &self.weights]
    }

    pub(super) fn linears_mut(&mut self) -> ([&mut Linear; 2], &mut Linear) {
        ([&mut self.key, &mut self.weights], &mut self.query)
    }

    fn rotated(&self, mut x: Rows) -> Rows {
        if let Some(angles) = &self.angles {
            let length = x.columns();
            angles.rotate(x.numbers_mut(), length, self.rope, Direction::Forward);
        }
        x
    }

    fn unseen(&self, top_k: usize, input: &Rows, factor: &Rows, pass: &Pass<'_>) -> Result<Unseen> {
        let positions = input.len();
        let heads = self.numbers.heads;
        let queries = by_head(&pass.times(&self.query, factor)?, heads);
        let queries = self.rotated(queries);
        let keys = self.rotated(self.key_norm.of(&pass.times(&self.key, input)?));
        let weights = pass.times(&self.weights, input)?;
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let row = |x: &Rows, row: usize| -> std::ops::Range<usize> {
            row * x.columns()..(row + 1) * x.columns()
        };
        let scores = |query: usize| {
            let weights = &weights.numbers()[row(&weights, query)];
            let index = |key: usize| {
                let key = &keys.numbers()[row(&keys, key)];
                let of_head = |head: usize| {
                    let place = row(&queries, head * positions + query);
                    weights[head] * dot(&queries.numbers()[place], key).max(0.0)
                };
                (0..heads).map(of_head).sum()
            };
            (0..=query).map(index).collect()
        };
        Ok(Unseen::but_the_best(positions, top_k, scores))
    }
}
