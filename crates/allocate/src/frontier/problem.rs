//! Input and output of the solver.

use quantier_arch::Role;
use quantier_blocks::types::GgmlType;

/// A possible type of an item, with its cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The type.
    pub ggml_type: GgmlType,
    /// Bytes of the item in the file. A GGUF pads every tensor to its alignment; for budgets of
    /// files, include the padding.
    pub bytes: u64,
    /// Predicted KL divergence in nats per token, at least 0 and additive over items.
    pub nats: f64,
}

/// The unit of allocation: a tensor of the GGUF.
///
/// A 3-D tensor of experts is one item, its nats the sum over the experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The name of the tensor.
    pub name: String,
    /// The role of the tensor.
    pub role: Role,
    /// Weights in a row.
    pub row_len: u64,
    /// Number of weights.
    pub weights: u64,
    /// The possible types, in any order.
    pub choices: Vec<Choice>,
}

/// An allocation problem.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problem {
    /// The items. Their order does not affect the solution.
    pub items: Vec<Item>,
    /// Bytes of the tensors that keep their type, such as norms.
    pub fixed_bytes: u64,
    /// Weights of those tensors.
    pub fixed_weights: u64,
}

/// A malformed problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{item}: {reason}")]
pub struct Invalid {
    /// The item.
    pub item: String,
    /// Its fault.
    pub reason: String,
}

/// Limit on the bytes of a problem, an exbibyte: it keeps the products of the solver within 128 bits.
const MOST_BYTES: u64 = 1 << 60;

impl Problem {
    /// Checks the problem.
    ///
    /// # Errors
    /// As [`Frontier::of`](super::Frontier::of).
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        let invalid = |item: &str, reason: String| Invalid {
            item: item.into(),
            reason,
        };
        let mut names: Vec<&str> = self.items.iter().map(|item| &*item.name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(invalid(
                twice[0],
                "occurs twice among the tensors to choose for".into(),
            ));
        }
        let (mut bytes, mut nats) = (self.fixed_bytes, 0.0);
        for item in &self.items {
            if item.choices.is_empty() {
                return Err(invalid(&item.name, "has no types to choose from".into()));
            }
            if let Some(c) = item
                .choices
                .iter()
                .find(|c| !(c.nats.is_finite() && c.nats >= 0.0))
            {
                let reason = format!(
                    "predicted nats of {} are {}; a number of at least 0 is needed",
                    c.ggml_type, c.nats
                );
                return Err(invalid(&item.name, reason));
            }
            bytes = bytes.saturating_add(item.choices.iter().map(|c| c.bytes).max().unwrap_or(0));
            nats += item.choices.iter().map(|c| c.nats).fold(0.0, f64::max);
            if bytes > MOST_BYTES || !f64::is_finite(nats) {
                return Err(invalid(
                    &item.name,
                    "with it, bytes or nats of all tensors grow beyond any model".into(),
                ));
            }
        }
        Ok(())
    }

    /// Weights of all tensors, chosen and fixed.
    pub(crate) fn weights(&self) -> u64 {
        self.items.iter().fold(self.fixed_weights, |sum, item| {
            sum.saturating_add(item.weights)
        })
    }

    /// Bytes of the recipe of the largest types, on the frontier or not.
    pub(crate) fn most_bytes(&self) -> u64 {
        let largest = |item: &Item| item.choices.iter().map(|choice| choice.bytes).max();
        self.fixed_bytes + self.items.iter().filter_map(largest).sum::<u64>()
    }

    /// Bits per weight of `bytes` of tensors.
    pub fn bpw(&self, bytes: u64) -> f64 {
        8.0 * bytes as f64 / self.weights().max(1) as f64
    }

    /// Names and types of a recipe, in the order of the items.
    pub fn recipe<'a>(
        &'a self,
        solution: &'a Solution,
    ) -> impl Iterator<Item = (&'a str, GgmlType)> + 'a {
        self.items
            .iter()
            .zip(&solution.choices)
            .map(|(item, &c)| (&*item.name, item.choices[c].ggml_type))
    }
}

/// A recipe: one choice for every item.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// Index of the choice, by item of the problem.
    pub choices: Vec<usize>,
    /// Bytes of all tensors, the fixed ones included.
    pub bytes: u64,
    /// Predicted nats per token, the sum over all items.
    pub nats: f64,
}
