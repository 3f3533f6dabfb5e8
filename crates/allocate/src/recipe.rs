//! From a file type, overrides and facts of a model to a type for each tensor.

use super::file_type::FileType;
use super::presets::{ModelFacts, TensorFacts, counts_layers, fit_rows, type_for};
use quantier_arch::{Facts, Role, TensorId};
use quantier_blocks::types::GgmlType;
use std::collections::{BTreeMap, HashMap};

/// A regular expression on the names of tensors, not anchored.
#[derive(Clone, Debug)]
pub struct Pattern(fancy_regex::Regex);

impl Pattern {
    /// From a regular expression.
    ///
    /// # Errors
    /// An invalid regular expression.
    pub fn new(text: &str) -> Result<Pattern, String> {
        fancy_regex::Regex::new(text)
            .map(Pattern)
            .map_err(|e| format!("'{text}' is no regular expression: {e}"))
    }

    /// True if it matches a part of the name. Excessive backtracking counts as no match.
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name).unwrap_or(false)
    }

    /// The expression.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// A user's choice of types.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// The preset; `None` copies every tensor unchanged.
    pub file_type: Option<FileType>,
    /// The preset's default type for everything, no mixture.
    pub pure: bool,
    /// Leave `output.weight` unchanged.
    pub leave_output: bool,
    /// A type for the output matrix, or for a tied embedding.
    pub output_type: Option<GgmlType>,
    /// A type for the token embedding.
    pub embedding_type: Option<GgmlType>,
    /// Types by name; the first match decides.
    pub overrides: Vec<(Pattern, GgmlType)>,
    /// Types by tensor of this model; they precede the patterns.
    pub recipe: BTreeMap<TensorId, GgmlType>,
}

/// A tensor with the facts for the choice of its type.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its id.
    pub id: TensorId,
    /// Its name.
    pub name: &'a str,
    /// Role, layer and flags.
    pub facts: Facts,
    /// Its dimensions, row length first, missing ones 1.
    pub dims: [u64; 4],
    /// Its present type.
    pub ggml_type: GgmlType,
}

/// The chosen type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The tensor's role.
    pub role: Role,
    /// The type from the preset, an override or an option.
    pub wanted: GgmlType,
    /// The final type: `wanted`, or its fallback if the rows do not fit.
    pub target: GgmlType,
    /// False if the tensor is never quantized.
    pub quantizable: bool,
}

/// A reason for failure, about one tensor or the whole job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The fault and its remedy, without the tensor's name: equal reasons are reported once.
    pub reason: String,
    /// The tensor; empty for the whole job.
    pub tensor: String,
}

impl Problem {
    /// A problem of one tensor.
    pub fn of(tensor: &str, reason: impl Into<String>) -> Problem {
        Problem {
            reason: reason.into(),
            tensor: tensor.to_owned(),
        }
    }

    /// A paragraph for each reason, with all its tensors.
    pub fn by_reason(problems: &[Problem]) -> String {
        let mut tensors: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for problem in problems {
            tensors
                .entry(&problem.reason)
                .or_default()
                .push(&problem.tensor);
        }
        let paragraph = |(reason, names): (&str, Vec<&str>)| match names.join(", ") {
            names if names.is_empty() => format!("  - {reason}"),
            names => format!("  - {reason}: {names}"),
        };
        tensors
            .into_iter()
            .map(paragraph)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Chooses a type for every tensor, in order: some presets count tensors.
///
/// # Errors
/// Every tensor without a possible type.
pub fn choose(
    wishes: &Wishes,
    model: &ModelFacts,
    tensors: &[Candidate<'_>],
) -> Result<Vec<Chosen>, Vec<Problem>> {
    let mut seen: HashMap<Role, u32> = HashMap::new();
    let mut problems = Vec::new();
    let mut chosen = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        match choose_one(wishes, model, tensor, &mut seen) {
            Ok(one) => chosen.push(one),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        Ok(chosen)
    } else {
        Err(problems)
    }
}

fn choose_one(
    wishes: &Wishes,
    model: &ModelFacts,
    tensor: &Candidate<'_>,
    seen: &mut HashMap<Role, u32>,
) -> Result<Chosen, Problem> {
    let Candidate {
        id,
        name,
        facts,
        dims,
        ggml_type,
    } = *tensor;
    let role = facts.role;
    let kept = Chosen {
        role,
        wanted: ggml_type,
        target: ggml_type,
        quantizable: false,
    };
    let Some(file_type) = wishes.file_type else {
        return Ok(kept);
    };
    if !facts.quantizable || wishes.leave_output && role == Role::Output {
        return Ok(kept);
    }
    let patterns = &wishes.overrides;
    let by_pattern = || patterns.iter().find(|(pattern, _)| pattern.matches(name));
    let overridden = wishes
        .recipe
        .get(&id)
        .or_else(|| Some(&by_pattern()?.1))
        .copied();
    let embedding_type = wishes
        .embedding_type
        .filter(|_| role == Role::TokenEmbedding);
    let embedding_type =
        embedding_type.filter(|_| !facts.is_per_layer_embedding || overridden.is_none());
    let output_type = wishes.output_type.filter(|_| role == Role::Output);
    // No fallback for these two options: rows that do not fit are an error.
    if let Some(wanted) = embedding_type.or(output_type) {
        if !dims[0].is_multiple_of(wanted.block_len() as u64) {
            return Err(Problem::of(name, misfit(dims[0], wanted)));
        }
        return Ok(Chosen {
            role,
            wanted,
            target: wanted,
            quantizable: true,
        });
    }
    let default = file_type.default_type();
    if !default.is_quantized() {
        return Ok(Chosen {
            role,
            wanted: default,
            target: default,
            quantizable: true,
        });
    }
    let serves_as_output = role == Role::TokenEmbedding && model.tied;
    let wanted = match (overridden, wishes.output_type.filter(|_| serves_as_output)) {
        (Some(t), _) => t,
        _ if wishes.pure => default,
        (_, Some(t)) => t,
        _ => {
            let tensor = TensorFacts {
                role,
                row_len: dims[0],
                matrices: dims[2],
                ordinal: ordinal(file_type, tensor, model, seen)?,
                keeps_q8: facts.keeps_q8,
            };
            type_for(file_type, &tensor, model)
        }
    };
    let target = fit_rows(wanted, dims[0]).ok_or_else(|| {
        Problem::of(
            name,
            format!(
                "{}, and llama.cpp knows no type to take instead",
                misfit(dims[0], wanted)
            ),
        )
    })?;
    Ok(Chosen {
        role,
        wanted,
        target,
        quantizable: true,
    })
}

fn misfit(row_len: u64, t: GgmlType) -> String {
    format!(
        "rows of {row_len} weights are not whole blocks of {t} ({} weights)",
        t.block_len()
    )
}

/// The ordinal of a tensor within its role; counts it.
fn ordinal(
    file_type: FileType,
    tensor: &Candidate<'_>,
    model: &ModelFacts,
    seen: &mut HashMap<Role, u32>,
) -> Result<u32, Problem> {
    let Facts { role, layer, .. } = tensor.facts;
    // The roles that carry attention values are counted together.
    let counted_as = if role.carries_values() {
        Role::AttentionV
    } else {
        role
    };
    let count = seen.entry(counted_as).or_insert(0);
    let before = *count;
    *count += 1;
    if !counts_layers(file_type, role, model) {
        return Ok(before);
    }
    match layer.map(u32::try_from) {
        Some(Ok(layer)) if layer < model.layers => Ok(layer),
        _ => Err(Problem::of(
            tensor.name,
            format!(
                "its layer cannot be told from its name (blk.0 to blk.{} expected)",
                model.layers.saturating_sub(1)
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(layers: u32) -> ModelFacts {
        ModelFacts {
            architecture: "llama".into(),
            layers,
            heads: 8,
            kv_heads: 4,
            value_tensors: layers,
            ..ModelFacts::default()
        }
    }

    fn one<'a>(name: &'a str, dims: [u64; 4]) -> Candidate<'a> {
        Candidate {
            id: TensorId(0),
            name,
            facts: Facts::new("llama", name, dims),
            dims,
            ggml_type: GgmlType::F16,
        }
    }

    fn wishes(file_type: FileType) -> Wishes {
        Wishes {
            file_type: Some(file_type),
            ..Wishes::default()
        }
    }

    const PLAIN: [u64; 4] = [256, 256, 1, 1];

    #[test]
    fn ordinals_count_only_what_the_rules_decide() {
        let names: Vec<String> = (0..6).map(|i| format!("blk.{i}.attn_v.weight")).collect();
        let tensors: Vec<_> = names.iter().map(|n| one(n, PLAIN)).collect();
        let plain = choose(&wishes(FileType::Q4_K_S), &model(6), &tensors).unwrap();
        let types: Vec<_> = plain.iter().map(|c| c.target.name()).collect();
        assert_eq!(types, ["q5_K", "q5_K", "q5_K", "q5_K", "q4_K", "q4_K"]);

        let mut overridden = wishes(FileType::Q4_K_S);
        overridden
            .overrides
            .push((Pattern::new("blk.0.attn_v").unwrap(), GgmlType::Q8_0));
        let types: Vec<_> = choose(&overridden, &model(6), &tensors)
            .unwrap()
            .iter()
            .map(|c| c.target.name())
            .collect();
        assert_eq!(
            types,
            ["q8_0", "q5_K", "q5_K", "q5_K", "q5_K", "q4_K"],
            "an overridden tensor is not counted"
        );
    }

    #[test]
    fn a_recipe_decides_before_patterns() {
        let mut wishes = wishes(FileType::Q4_K_S);
        wishes
            .overrides
            .push((Pattern::new("attn").unwrap(), GgmlType::Q8_0));
        for (id, expected) in [(0, GgmlType::Q6_K), (1, GgmlType::Q8_0)] {
            wishes.recipe = BTreeMap::from([(TensorId(id), GgmlType::Q6_K)]);
            let tensors = [one("blk.0.attn_q.weight", PLAIN)];
            let chosen = choose(&wishes, &model(1), &tensors).unwrap();
            assert_eq!(chosen[0].target, expected);
        }
    }

    #[test]
    fn a_tied_embedding_is_treated_as_the_output() {
        let tensors = [one("token_embd.weight", PLAIN)];
        let mut tied = model(2);
        tied.tied = true;
        assert_eq!(
            choose(&wishes(FileType::Q4_K_M), &tied, &tensors).unwrap()[0].target,
            GgmlType::Q6_K
        );
        assert_eq!(
            choose(&wishes(FileType::Q4_K_M), &model(2), &tensors).unwrap()[0].target,
            GgmlType::Q4_K
        );
    }

    #[test]
    fn odd_rows_fall_back_and_say_so() {
        let chosen = choose(
            &wishes(FileType::Q4_K_M),
            &model(2),
            &[one("blk.0.attn_q.weight", [320, 8, 1, 1])],
        )
        .unwrap();
        assert_eq!(
            (chosen[0].wanted, chosen[0].target),
            (GgmlType::Q4_K, GgmlType::Q5_0)
        );
    }

    #[test]
    fn an_explicit_embedding_type_must_fit() {
        let mut w = wishes(FileType::Q4_0);
        w.embedding_type = Some(GgmlType::Q4_K);
        let problems =
            choose(&w, &model(2), &[one("token_embd.weight", [320, 8, 1, 1])]).unwrap_err();
        assert!(
            problems[0].tensor == "token_embd.weight" && problems[0].reason.contains("rows of 320"),
            "{problems:?}"
        );
    }

    #[test]
    fn an_expert_without_a_layer_is_a_problem() {
        let mut experts = model(2);
        experts.experts = 4;
        let problems = choose(
            &wishes(FileType::Q4_K_M),
            &experts,
            &[one("blk.7.ffn_down_exps.weight", [256, 256, 4, 1])],
        )
        .unwrap_err();
        assert!(problems[0].tensor.contains("blk.7"), "{problems:?}");
    }
}
