//! Inputs that llama-quantize accepts silently, and that are refused or reported here.

use super::metadata::UsedImatrix;
use super::plan::Source;
use super::{Job, PlannedOutput, PlannedTensor};
use crate::arch::draft::is_draft;
use crate::arch::{Architecture, TensorId, role};
use crate::format::gguf::{Value, keys};
use crate::input::Input;
use crate::plan::recipe::{Pattern, Problem};
use quantier_core::words::{distance, listed};
use std::collections::HashSet;

/// Metadata key of the vocabulary's tokens.
const TOKENS: &str = "tokenizer.ggml.tokens";
/// Maximum number of names in a message.
const NAMED: usize = 8;

/// Models that llama.cpp cannot load, whatever their types: embeddings or an output matrix with a
/// number of rows other than the number of tokens, experts in separate tensors.
pub(super) fn unusable(input: &Input<'_>) -> Vec<Problem> {
    let metadata = input.metadata();
    let architecture = metadata.get(keys::ARCHITECTURE).and_then(Value::as_str);
    if !architecture.is_some_and(Architecture::is_known) {
        return Vec::new();
    }
    let catalog = input.catalog();
    let tokens = metadata.get(TOKENS).and_then(Value::as_array);
    // Both ends of the model have one row per token, unless it predicts some tokens of another model.
    let tokens = tokens.filter(|_| !architecture.is_some_and(is_draft));
    let embedding = catalog.embedding().map(|entry| entry.id);
    let output = catalog.output().map(|linear| linear.tensor);
    let ends = embedding
        .into_iter()
        .chain(output.filter(|_| !catalog.is_tied()));
    let rows = |id: TensorId| {
        let (name, tokens) = (&catalog.tensor(id).name, tokens?.len() as u64);
        let rows = input.tensor(id).info.shape.rows();
        let what = format!(
            "it has {rows} rows, and '{TOKENS}' {tokens} tokens; llama.cpp loads only as many rows as tokens. Convert \
             weights, config.json and tokenizer of one model"
        );
        (rows != tokens).then(|| Problem::of(name, what))
    };
    let tensors = catalog.tensors().iter();
    let experts = tensors.filter(|entry| role::is_single_expert(&entry.name));
    let experts = experts.map(|entry| {
        Problem::of(
            &entry.name,
            "this file is old: it has one tensor for each expert, which llama.cpp does not read any more; convert the \
             original model again",
        )
    });
    ends.filter_map(rows).chain(experts.take(NAMED)).collect()
}

/// An output matrix with a scale in another type than llama.cpp loads that scale with:
/// llama-quantize writes such a file, which llama.cpp refuses.
pub(super) fn scaled_output(
    input: &Input<'_>,
    sources: &[Source<'_>],
    planned: &[PlannedTensor],
) -> Option<Problem> {
    let mut pairs = sources.iter().zip(planned);
    let (_, tensor) =
        pairs.find(|(source, planned)| !input.loads_as(source.tensor, planned.chosen.target))?;
    Some(Problem::of(
        &tensor.name,
        format!(
            "it has a scale of its own, which llama.cpp loads with nvfp4 alone, and {} was chosen: keep it \
             (--leave-output-tensor)",
            tensor.chosen.target
        ),
    ))
}

/// A warning if tensors are rounded for the second time.
pub(super) fn quantized_before(output: &PlannedOutput<'_>) -> Option<String> {
    let is_second = |t: &&PlannedTensor| t.from.is_quantized() && t.chosen.target != t.from;
    let second: Vec<_> = output.tensors.iter().filter(is_second).collect();
    let first = second.first()?;
    Some(format!(
        "{} of {} {} quantized already ({} is {}, for one): this file is at best as good as the input, not as the \
         model before its first rounding",
        second.len(),
        count(output.tensors.len(), "tensor"),
        match second.len() {
            1 => "is",
            _ => "are",
        },
        first.name,
        first.from
    ))
}

/// An importance matrix of another model, without any name of this model.
pub(super) fn foreign_imatrix(input: &Input<'_>, used: &UsedImatrix) -> Option<Problem> {
    let names = used.imatrix.entries.keys();
    if names
        .clone()
        .any(|name| input.catalog().tensor_named(name).is_some())
    {
        return None;
    }
    let example = names.clone().next().map_or("", String::as_str);
    Some(Problem::of(
        "",
        format!(
            "{}: the importance matrix has none of this model's tensors (it has '{example}'); it belongs to \
             another model. Compute it with this one, or leave --imatrix out",
            used.file
        ),
    ))
}

/// Notes on tensors missing in the importance matrix, and on its unused entries.
pub(super) fn imatrix_gaps(
    input: &Input<'_>,
    job: &Job,
    used: &UsedImatrix,
    output: &PlannedOutput<'_>,
) -> Vec<String> {
    let catalog = input.catalog();
    let is_filtered = job
        .imatrix
        .as_ref()
        .is_some_and(|request| !request.include.is_empty() || !request.exclude.is_empty());
    let is_collected = |tensor: &PlannedTensor| {
        let linear = catalog.linear_named(&tensor.name);
        linear.is_some_and(|linear| catalog.in_imatrix(linear.id, false))
    };
    // Tensors that require it are refused later.
    let refused: HashSet<&str> = output.imatrix_missing().map(|t| &*t.name).collect();
    let is_without = |tensor: &&PlannedTensor| {
        let rounded = tensor.chosen.target != tensor.from && tensor.chosen.target.is_quantized();
        let is_refused = refused.contains(&*tensor.name);
        rounded && !tensor.has_importance && is_collected(tensor) && !is_refused
    };
    let without: Vec<&str> = output
        .tensors
        .iter()
        .filter(is_without)
        .map(|t| &*t.name)
        .collect();
    let entries = used.imatrix.entries.keys();
    let unknown: Vec<&str> = entries
        .map(String::as_str)
        .filter(|name| catalog.tensor_named(name).is_none())
        .collect();
    let mut warnings = Vec::new();
    if !without.is_empty() && !is_filtered && job.prune_layers.is_empty() {
        warnings.push(format!(
            "the importance matrix has no values for {}, quantized without it: {}",
            count(without.len(), "tensor"),
            listed(&without, NAMED)
        ));
    }
    if !unknown.is_empty() {
        warnings.push(format!(
            "the importance matrix has {} for other tensors than the model's: {}; does it belong to this model?",
            count(unknown.len(), "entry"),
            listed(&unknown, NAMED)
        ));
    }
    warnings
}

/// Patterns without a matching tensor, each with the nearest name.
pub(super) fn idle_patterns<'p>(
    patterns: impl Iterator<Item = &'p Pattern>,
    tensors: &[PlannedTensor],
) -> Vec<String> {
    let idle = patterns.filter(|pattern| !tensors.iter().any(|t| pattern.matches(&t.name)));
    let hints = idle.map(|pattern| {
        let text = pattern.as_str();
        let near = tensors.iter().flat_map(|t| parts(&t.name));
        let near = near
            .min_by_key(|part| distance(part, text))
            .unwrap_or_default();
        format!("--tensor-type {text} matches no tensor; the nearest name is {near}")
    });
    hints.collect()
}

/// A tensor's name, and the part of it that identifies its kind.
fn parts(name: &str) -> [&str; 2] {
    [name, role::kind_of(name)]
}

/// Layers to prune that do not exist.
pub(super) fn absent_layers(pruned: &[u32], layers: u32) -> Option<String> {
    let absent: Vec<String> = pruned
        .iter()
        .filter(|layer| **layer >= layers)
        .map(u32::to_string)
        .collect();
    let absent: Vec<&str> = absent.iter().map(String::as_str).collect();
    (!absent.is_empty()).then(|| {
        format!(
            "--prune-layers: the model has {layers} layers, 0 to {}, and no layer {}",
            layers.saturating_sub(1),
            listed(&absent, NAMED)
        )
    })
}

fn count(n: usize, one: &str) -> String {
    match (n, one.strip_suffix('y')) {
        (1, _) => format!("1 {one}"),
        (n, Some(stem)) => format!("{n} {stem}ies"),
        (n, None) => format!("{n} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_layers_are_named() {
        assert_eq!(absent_layers(&[0, 2], 3), None);
        let note = absent_layers(&[1, 3, 99], 3).unwrap();
        assert!(note.contains("0 to 2, and no layer 3, 99"), "{note}");
        assert_eq!(
            (count(1, "entry"), count(2, "entry")),
            ("1 entry".into(), "2 entries".into())
        );
    }
}
