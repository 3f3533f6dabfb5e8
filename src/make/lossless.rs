//! The loss of a base model that was quantized already, and the types without further loss.

use super::Result;
use crate::format::types::GgmlType;
use crate::input::Input;
use crate::resume::KeyBuilder;
use crate::rounding::{self, lossless_type};
use crate::sensitivity;
use std::collections::BTreeMap;

/// Types that checkpoints are published in: such a file may be all that there is of a model.
pub(super) const PUBLISHED: &[GgmlType] = &[GgmlType::MXFP4, GgmlType::NVFP4];

/// The smallest type that holds a tensor without loss, by the name of the tensor.
pub(super) struct Lossless(BTreeMap<String, GgmlType>);

impl Lossless {
    /// Looks at some rows of every tensor that may be quantized.
    pub(super) fn of(input: &Input<'_>) -> Result<Lossless> {
        let mut found = BTreeMap::new();
        for tensor in &input.tensors {
            if input.entry(tensor).facts.quantizable {
                let error = |error: rounding::Error| sensitivity::Error::from(error);
                let t = lossless_type(input, tensor).map_err(error)?;
                found.extend(t.map(|t| (tensor.info.name.to_string(), t)));
            }
        }
        Ok(Lossless(found))
    }

    /// A key of what depends on them.
    pub(super) fn with(&self, key: KeyBuilder) -> KeyBuilder {
        match self.0.is_empty() {
            true => key,
            false => key.with("lossless", format!("{:?}", self.0).as_bytes()),
        }
    }

    /// Notes for the user.
    pub(super) fn notes(&self, input: &Input<'_>) -> Vec<String> {
        let (quantized, matrices) = quantized_matrices(input);
        let mut notes = Vec::new();
        if quantized > 0 {
            notes.push(format!(
                "{quantized} of {matrices} matrices of the model are quantized already; divergences are those from \
                 this model, not from the one before its first rounding"
            ));
        }
        let stored = |name: &str| {
            let id = input.catalog().tensor_named(name);
            id.map(|id| input.tensor(id).info.ggml_type)
        };
        let mut counts = BTreeMap::new();
        for (name, t) in &self.0 {
            if stored(name) != Some(*t) {
                *counts.entry(t.name()).or_insert(0) += 1;
            }
        }
        for (t, count) in counts {
            let [verb, pronoun] = match count {
                1 => ["lies", "it"],
                _ => ["lie", "them"],
            };
            notes.push(format!(
                "{count} of {matrices} matrices {verb} on the grid of {t}, which costs {pronoun} nothing"
            ));
        }
        notes
    }
}

/// The numbers of quantized matrices, and of all.
pub(super) fn quantized_matrices(input: &Input<'_>) -> (usize, usize) {
    let tensors = input.tensors.iter();
    let matrices: Vec<_> = tensors
        .filter(|t| input.entry(t).is_matrix() || t.info.ggml_type.is_quantized())
        .collect();
    let quantized = matrices.iter().filter(|t| t.info.ggml_type.is_quantized());
    (quantized.count(), matrices.len())
}
