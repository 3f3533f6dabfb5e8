//! The indexer of sparse attention (DeepSeek-AI 2025), which selects the tokens visible to each
//! query.
//!
//! ```text
//! query factor -> queries of the indexer's heads -> rotation
//! input -> key -> norm -> rotation
//! input -> weight of each head
//! index(query, key) = sum over heads of weight * max(0, query . key)
//! ```
//!
//! Each query attends to the `top_k` keys with the largest indices. No gradient flows through the
//! selection, so its matrices have none; chunks of at most `top_k` tokens need no selection.

use super::attention::by_head;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::attention::Unseen;
use crate::model::ops::rope::{Angles, Direction};
use crate::model::rows::Rows;
use crate::model::{Error, Result};
use quantier_arch::Rope;
use quantier_arch::hyper::IndexerNumbers;
use std::sync::Arc;

/// Selection of the tokens visible to queries.
#[derive(Clone)]
pub(in crate::model) struct Sparse {
    /// Number of tokens per query.
    pub top_k: usize,
    /// The selecting indexer; None if another layer's selection is shared.
    pub indexer: Option<Box<Indexer>>,
}

#[derive(Clone)]
pub(in crate::model) struct Indexer {
    pub numbers: IndexerNumbers,
    /// Reads the query factor.
    pub query: Linear,
    pub key: Linear,
    pub key_norm: Norm,
    /// Weights of the indexer's heads.
    pub weights: Linear,
    pub rope: Rope,
    pub angles: Option<Arc<Angles>>,
}

impl Sparse {
    /// Mask of the keys hidden from queries in a chunk; `factor` is the query factor. The caller
    /// has already shown `input` to the tap.
    ///
    /// # Errors
    /// A chunk of more than `top_k` tokens in a layer that shares another layer's selection.
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

    fn rotated(&self, mut x: Rows, heads: usize) -> Rows {
        if let Some(angles) = &self.angles {
            let positions = x.len() / heads;
            angles.rotate(&mut x, positions, self.rope, Direction::Forward);
        }
        x
    }

    fn unseen(&self, top_k: usize, input: &Rows, factor: &Rows, pass: &Pass<'_>) -> Result<Unseen> {
        let positions = input.len();
        let heads = self.numbers.heads;
        let queries = by_head(&pass.times(&self.query, factor)?, heads);
        let queries = self.rotated(queries, heads);
        let keys = self.rotated(self.key_norm.of(&pass.times(&self.key, input)?), 1);
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
