//! Fields of the config that stand in tensors of the checkpoint.

use super::{Checkpoint, Error, Result};
use crate::arch::recipes::FieldValue;
use crate::arch::{Architecture, Config};
use crate::plan::recipe::Problem;
use serde_json::Value;

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
    for source in &checkpoint.tensors {
        let recipe = architecture.recipe(source.text_name(), &config);
        let field = recipe.and_then(|(recipe, _)| recipe.field);
        let Some(field) = field.filter(|field| config.get(field.name).is_none()) else {
            continue;
        };
        let value = match field.value {
            // As in the reference, which has not seen the weights.
            FieldValue::RowLength | FieldValue::Rows if vocab_only && !architecture.is_draft() => {
                continue;
            }
            FieldValue::Integers => checkpoint.integers(source).map(Value::from),
            FieldValue::Rows => Ok(Value::from(source.shape.first().copied().unwrap_or(0))),
            FieldValue::RowLength => Ok(Value::from(source.shape.last().copied().unwrap_or(0))),
        };
        match value {
            Ok(value) => config = config.with_field(field.name, value),
            Err(what) => problems.push(Problem::of(&source.name, what)),
        }
    }
    match problems.is_empty() {
        true => Ok(config),
        false => Err(Error::Impossible(problems)),
    }
}
