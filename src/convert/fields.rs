//! Fields of the config that stand in tensors of the checkpoint.

use super::{Checkpoint, Error, Result};
use crate::arch::recipes::FieldValue;
use crate::arch::{Architecture, Config};
use crate::plan::recipe::Problem;
use serde_json::Value;
use std::collections::BTreeMap;

/// Adds the fields of an architecture's tensors; the first of several tensors decides.
///
/// # Errors
/// Tensors whose numbers are not those of a field.
pub(super) fn complete(
    mut config: Config,
    checkpoint: &Checkpoint,
    architecture: &Architecture,
    vocab_only: bool,
) -> Result<Config> {
    let mut problems = Vec::new();
    // The rows of stacked tensors, by their numbers.
    let mut stacks: BTreeMap<&str, BTreeMap<u32, u64>> = BTreeMap::new();
    for source in &checkpoint.tensors {
        let recipe = architecture.recipe(source.text_name(), &config);
        let Some((recipe, matched)) = recipe else {
            continue;
        };
        let field = recipe.field;
        let Some(field) = field.filter(|field| config.get(field.name).is_none()) else {
            continue;
        };
        let rows = || source.shape.first().copied().unwrap_or(0);
        let value = match field.value {
            // As in the reference, which has not seen the weights.
            FieldValue::RowLength | FieldValue::Rows | FieldValue::AllRows
                if vocab_only && !architecture.is_draft() =>
            {
                continue;
            }
            FieldValue::AllRows => {
                let stack = stacks.entry(field.name).or_default();
                stack.insert(matched.index.unwrap_or(0), rows());
                continue;
            }
            FieldValue::Integers => checkpoint.integers(source).map(Value::from),
            FieldValue::Rows => Ok(Value::from(rows())),
            FieldValue::RowLength => Ok(Value::from(source.shape.last().copied().unwrap_or(0))),
        };
        match value {
            Ok(value) => config = config.with_field(field.name, value),
            Err(what) => problems.push(Problem::of(&source.name, what)),
        }
    }
    for (name, stack) in stacks {
        config = config.with_field(name, stack.into_values().collect());
    }
    match problems.is_empty() {
        true => Ok(config),
        false => Err(Error::Impossible(problems)),
    }
}
