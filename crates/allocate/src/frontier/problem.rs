//! What the solver is asked, and what it answers.

use quantier_arch::Role;
use quantier_blocks::types::GgmlType;

/// One type that an item may get, with its cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The type.
    pub ggml_type: GgmlType,
    /// Bytes that the item then takes in the file. A GGUF pads every tensor to its alignment; count
    /// the padding if budgets are to hold for files.
    pub bytes: u64,
    /// Predicted KL divergence in nats per token, at least 0. Adds up over items.
    pub nats: f64,
}

/// What gets one type: a tensor of the GGUF, or several that must share one.
///
/// A 3-D tensor of experts is one item, its nats the sum over the experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The tensor's name, or what its group is called.
    pub name: String,
    /// What the tensor does in the model.
    pub role: Role,
    /// Weights in a row; for a group a length that whole blocks of every allowed type divide.
    pub row_len: u64,
    /// How many weights it has.
    pub weights: u64,
    /// The types to choose from, in any order.
    pub choices: Vec<Choice>,
}

impl Item {
    /// Several items as one that gets a single type: bytes and nats add up, and only types that all
    /// have stay.
    pub fn together(name: impl Into<String>, items: &[Item]) -> Item {
        let sum = |t: GgmlType| {
            let same: Option<Vec<Choice>> =
                items.iter().map(|item| item.choice(t).copied()).collect();
            same.map(|same| Choice {
                ggml_type: t,
                bytes: same.iter().fold(0, |sum, c| sum.saturating_add(c.bytes)),
                nats: same.iter().map(|c| c.nats).sum(),
            })
        };
        let types = items.first().map_or(&[][..], |item| &item.choices);
        Item {
            name: name.into(),
            role: items.first().map_or(Role::Other, |item| item.role),
            row_len: items
                .iter()
                .fold(0, |divisor, item| common_divisor(divisor, item.row_len)),
            weights: items
                .iter()
                .fold(0, |sum, item| sum.saturating_add(item.weights)),
            choices: types.iter().filter_map(|c| sum(c.ggml_type)).collect(),
        }
    }

    /// The choice of a type.
    pub fn choice(&self, t: GgmlType) -> Option<&Choice> {
        self.choices.iter().find(|c| c.ggml_type == t)
    }
}

/// Euclid's: the longest row length of which both are multiples.
fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// What is to be chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Problem {
    /// What gets a type each. The order does not matter to the answer.
    pub items: Vec<Item>,
    /// Bytes of the tensors that keep their type (norms and the like).
    pub fixed_bytes: u64,
    /// Weights of those tensors.
    pub fixed_weights: u64,
}

/// Why a problem cannot be solved: it is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{item}: {reason}")]
pub struct Invalid {
    /// The item.
    pub item: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The most bytes of a problem, an exbibyte; keeps every product of the solver within 128 bits.
const MOST_BYTES: u64 = 1 << 60;

impl Problem {
    /// Whether every item has choices with finite, non-negative nats, no name occurs twice, and
    /// sums stay in range.
    pub fn check(&self) -> Result<(), Invalid> {
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
    pub fn weights(&self) -> u64 {
        self.items.iter().fold(self.fixed_weights, |sum, item| {
            sum.saturating_add(item.weights)
        })
    }

    /// Bits per weight of so many tensor bytes.
    pub fn bpw(&self, bytes: u64) -> f64 {
        8.0 * bytes as f64 / self.weights().max(1) as f64
    }

    /// The recipe in names and types, in the order of the items.
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
    /// For each item of the problem, in its order, the index of the choice.
    pub choices: Vec<usize>,
    /// Bytes of all tensors, the fixed ones included.
    pub bytes: u64,
    /// Predicted nats per token, the sum over all items.
    pub nats: f64,
}
