//! Metadata of the output, and the model's facts for the preset rules.

use super::{Error, Job, Result};
use crate::arch::Role;
use crate::format::gguf::{Array, Metadata, QUANTIZATION_VERSION, Value, ValueType, keys};
use crate::format::imatrix::Imatrix;
use crate::format::types::GgmlType;
use crate::plan::presets::ModelFacts;
use crate::rounding::Rounding;

/// Flag in `general.file_type` for a guessed type.
const GUESSED: u32 = 1024;
/// Key of the number of layers, prefixed by the architecture.
const BLOCK_COUNT: &str = "block_count";
/// Architecture of projector files, which lack the keys of language models.
const VISION_TOWER: &str = "clip";
/// Key of the rounding method, if not the reference's.
const ROUNDING: &str = "quantier.rounding";
/// Maximum string length of llama.cpp's metadata overrides.
const OVERRIDE_STRING: usize = 127;

/// `--override-kv KEY=TYPE:VALUE`.
#[derive(Clone, Debug, PartialEq)]
pub struct KvOverride {
    /// New value.
    pub key: String,
    /// Its new value.
    pub value: OverrideValue,
}

/// Value types of llama.cpp's overrides.
#[derive(Clone, Debug, PartialEq)]
pub enum OverrideValue {
    /// Written as u32.
    Int(i64),
    /// Written as f32.
    Float(f64),
    /// Written as bool.
    Bool(bool),
    /// Written as a string.
    Str(Vec<u8>),
}

impl OverrideValue {
    fn to_value(&self) -> Value<'static> {
        match self {
            // As in the reference: the low 32 bits of the absolute value.
            OverrideValue::Int(v) => Value::U32(v.unsigned_abs() as u32),
            OverrideValue::Float(v) => Value::F32(*v as f32),
            OverrideValue::Bool(v) => Value::Bool(*v),
            OverrideValue::Str(v) => Value::String(v.clone().into()),
        }
    }
}

/// Metadata as seen by the reference's loader: overrides of the right type take precedence.
struct Lookup<'a> {
    metadata: &'a Metadata<'a>,
    overrides: &'a [KvOverride],
}

impl Lookup<'_> {
    fn overridden(&self, key: &str) -> Option<&OverrideValue> {
        self.overrides
            .iter()
            .find(|o| o.key == key)
            .map(|o| &o.value)
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.overridden(key) {
            Some(OverrideValue::Str(s)) => Some(String::from_utf8_lossy(s).into_owned()),
            _ => self.metadata.get(key)?.as_str().map(str::to_owned),
        }
    }

    /// A number.
    fn number(&self, key: &str) -> Option<u32> {
        match self.overridden(key) {
            Some(OverrideValue::Int(v)) => Some(*v as u32),
            _ => self.metadata.get(key)?.as_u64()?.try_into().ok(),
        }
    }

    /// Value of a key in the first layer, for keys that may vary by layer. Unlike a plain number,
    /// it can only be overridden if the file has one number for all layers.
    fn of_first_layer(&self, key: &str) -> Option<u32> {
        match self.metadata.get(key)?.as_array() {
            Some(array) => array.values().next()?.as_u64()?.try_into().ok(),
            None => self.number(key),
        }
    }
}

/// The model's facts for the preset rules. `roles` are those of all tensors.
pub(super) fn facts(
    metadata: &Metadata<'_>,
    job: &Job,
    roles: impl Iterator<Item = Role> + Clone,
    has_imatrix: bool,
) -> Result<ModelFacts> {
    let lookup = Lookup {
        metadata,
        overrides: &job.kv_overrides,
    };
    let mut facts = ModelFacts {
        tied: !roles.clone().any(|role| role == Role::Output),
        value_tensors: roles.filter(|role| role.carries_values()).count() as u32,
        has_imatrix,
        ..ModelFacts::default()
    };
    let Some(architecture) = lookup.text(keys::ARCHITECTURE) else {
        return match job.outputs.iter().all(|o| o.wishes.file_type.is_none()) {
            true => Ok(facts),
            false => Err(Error::impossible(format!(
                "{}: '{}' is missing, so the model's architecture is unknown; set it with --override-kv {}=str:NAME",
                job.input.display(),
                keys::ARCHITECTURE,
                keys::ARCHITECTURE
            ))),
        };
    };
    let key = |name: &str| format!("{architecture}.{name}");
    let number = |name: &str| lookup.number(&key(name));
    let layers = number(BLOCK_COUNT);
    if layers.is_none() && architecture != VISION_TOWER {
        return Err(Error::impossible(format!(
            "{}: '{}' is missing, so the number of layers is unknown; set it with --override-kv {}=int:NUMBER",
            job.input.display(),
            key(BLOCK_COUNT),
            key(BLOCK_COUNT)
        )));
    }
    facts.layers = layers.unwrap_or(0);
    facts.predict_layers = number("nextn_predict_layers").unwrap_or(0);
    facts.experts = number("expert_count").unwrap_or(0);
    facts.heads = lookup
        .of_first_layer(&key("attention.head_count"))
        .unwrap_or(0);
    facts.kv_heads = lookup
        .of_first_layer(&key("attention.head_count_kv"))
        .unwrap_or(facts.heads);
    facts.architecture = architecture;
    Ok(facts)
}

/// Changes of the metadata by an output.
pub(super) struct Changes<'c> {
    pub(super) overrides: &'c [KvOverride],
    pub(super) file_type: u32,
    pub(super) rounding: Rounding,
    pub(super) imatrix: Option<&'c UsedImatrix>,
    pub(super) architecture: &'c str,
    /// Pruned layers, if any.
    pub(super) layers_left: Option<Pruning<'c>>,
}

/// Pruning of layers.
#[derive(Clone, Copy)]
pub(super) struct Pruning<'c> {
    /// Number of layers of the input.
    pub(super) layers: u32,
    /// Indices of the pruned layers.
    pub(super) pruned: &'c [u32],
    /// Number of layers of the output.
    pub(super) left: u32,
}

impl Changes<'_> {
    /// Metadata of the output's first file.
    pub(super) fn apply<'a>(&self, metadata: &Metadata<'a>) -> Metadata<'a> {
        let mut out = metadata.cut_at_zeros();
        out.set(keys::QUANTIZATION_VERSION, Value::U32(QUANTIZATION_VERSION));
        out.set(keys::FILE_TYPE, Value::U32(self.file_type));
        for key in [keys::SPLIT_NO, keys::SPLIT_COUNT, keys::SPLIT_TENSORS] {
            out.remove(key);
        }
        for set in self.overrides {
            out.set(set.key.clone(), set.value.to_value());
        }
        if let Some(used) = self.imatrix {
            let cut = |s: &str| {
                Value::String(s.as_bytes()[..s.len().min(OVERRIDE_STRING)].to_vec().into())
            };
            out.set("quantize.imatrix.file", cut(&used.file));
            if let Some(dataset) = used.imatrix.datasets.first() {
                out.set("quantize.imatrix.dataset", cut(dataset));
            }
            out.set(
                "quantize.imatrix.entries_count",
                Value::U32(used.imatrix.entries.len() as u32),
            );
            // The reference reads a count beyond i32 as negative and omits the key.
            if (1..=i32::MAX as u32).contains(&used.imatrix.chunk_count) {
                out.set(
                    "quantize.imatrix.chunks_count",
                    Value::U32(used.imatrix.chunk_count),
                );
            }
        }
        set_rounding(&mut out, self.rounding);
        if let Some(pruning) = self.layers_left {
            let key = format!("{}.{BLOCK_COUNT}", self.architecture);
            out.set(key, Value::U32(pruning.left));
            self.shorten_lists(&mut out, pruning);
        }
        out
    }
}

impl Changes<'_> {
    /// Removes pruned layers from lists with one value per layer, which llama.cpp requires to have
    /// that length.
    fn shorten_lists(&self, metadata: &mut Metadata<'_>, pruning: Pruning<'_>) {
        let prefix = format!("{}.", self.architecture);
        let of_layers = |(key, value): (&str, &Value<'_>)| {
            let list = value.as_array()?;
            let name = key.strip_prefix(&prefix)?;
            let is_of_layers = list.len() as u64 == u64::from(pruning.layers)
                && list.element() != ValueType::String
                && !OTHER_LISTS.contains(&name);
            let kept = (0u32..)
                .zip(list.values())
                .filter(|(layer, _)| !pruning.pruned.contains(layer));
            let kept = Array::of_values(list.element(), kept.map(|(_, value)| value));
            is_of_layers.then(|| (key.to_owned(), kept))
        };
        let shortened: Vec<_> = metadata.iter().filter_map(of_layers).collect();
        for (key, list) in shortened {
            metadata.set(key, Value::Array(list));
        }
    }
}

/// Lists that are not per layer, whatever their length.
const OTHER_LISTS: [&str; 1] = ["rope.dimension_sections"];

/// Records a rounding method other than the reference's.
pub(super) fn set_rounding(metadata: &mut Metadata<'_>, rounding: Rounding) {
    match rounding {
        Rounding::Reference => metadata.remove(ROUNDING),
        _ => metadata.set(
            ROUNDING,
            Value::String(rounding.name().as_bytes().to_vec().into()),
        ),
    }
}

/// An importance matrix after filtering, with the name that the user gave.
pub(super) struct UsedImatrix {
    pub(super) file: String,
    pub(super) imatrix: Imatrix,
}

/// `general.file_type` of a copy: the input's, or a guess from the most frequent tensor type.
/// `types` are those of all tensors, pruned ones too, by layer and name: among equally frequent
/// types, the first to reach the count wins.
pub(super) fn file_type_of_copy(
    metadata: &Metadata<'_>,
    job: &Job,
    types: impl Iterator<Item = GgmlType>,
) -> u32 {
    let lookup = Lookup {
        metadata,
        overrides: &job.kv_overrides,
    };
    if let Some(said) = lookup.number(keys::FILE_TYPE) {
        return said;
    }
    let mut counts: Vec<(GgmlType, u32)> = Vec::new();
    let mut most = (GgmlType::F32, 0);
    for t in types {
        let i = counts
            .iter()
            .position(|(seen, _)| *seen == t)
            .unwrap_or_else(|| {
                counts.push((t, 0));
                counts.len() - 1
            });
        counts[i].1 += 1;
        if counts[i].1 > most.1 {
            most = counts[i];
        }
    }
    GUESSED | guess(most.0)
}

/// The file type guessed from the most frequent tensor type.
fn guess(t: GgmlType) -> u32 {
    use crate::plan::file_type::FileType as F;
    use GgmlType as T;
    /// A file type of the reference that it does not offer.
    const NVFP4: u32 = 39;
    const GUESSES: &[(GgmlType, F)] = &[
        (T::F16, F::F16),
        (T::BF16, F::BF16),
        (T::Q4_0, F::Q4_0),
        (T::Q4_1, F::Q4_1),
        (T::Q5_0, F::Q5_0),
        (T::Q5_1, F::Q5_1),
        (T::Q8_0, F::Q8_0),
        (T::Q2_K, F::Q2_K),
        (T::Q3_K, F::Q3_K_M),
        (T::Q4_K, F::Q4_K_M),
        (T::Q5_K, F::Q5_K_M),
        (T::Q6_K, F::Q6_K),
        (T::TQ1_0, F::TQ1_0),
        (T::TQ2_0, F::TQ2_0),
        (T::IQ2_XXS, F::IQ2_XXS),
        (T::IQ2_XS, F::IQ2_XS),
        (T::IQ2_S, F::IQ2_S),
        (T::IQ3_XXS, F::IQ3_XXS),
        (T::IQ3_S, F::IQ3_S),
        (T::IQ1_S, F::IQ1_S),
        (T::IQ1_M, F::IQ1_M),
        (T::IQ4_NL, F::IQ4_NL),
        (T::IQ4_XS, F::IQ4_XS),
        (T::Q1_0, F::Q1_0),
        (T::Q2_0, F::Q2_0),
    ];
    match t {
        T::NVFP4 => NVFP4,
        _ => GUESSES
            .iter()
            .find(|(of, _)| *of == t)
            .map_or(0, |(_, file_type)| file_type.id()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn pruned_layers_are_removed_from_lists() {
        let list = |values: &[u32]| {
            let values = values.iter().map(|n| Value::U32(*n));
            Value::Array(Array::of_values(ValueType::U32, values))
        };
        let mut metadata = Metadata::new();
        metadata.set("a.block_count", Value::U32(4));
        metadata.set("a.attention.head_count_kv", list(&[0, 1, 2, 3]));
        metadata.set("a.rope.dimension_sections", list(&[8, 12, 12, 0]));
        metadata.set("a.other", list(&[5, 6]));
        metadata.set("tokenizer.ggml.four", list(&[0, 1, 2, 3]));
        let changes = Changes {
            overrides: &[],
            file_type: 0,
            rounding: Rounding::Reference,
            imatrix: None,
            architecture: "a",
            layers_left: Some(Pruning {
                layers: 4,
                pruned: &[1, 2, 9],
                left: 2,
            }),
        };
        let out = changes.apply(&metadata);
        assert_eq!(out.get("a.block_count"), Some(&Value::U32(2)));
        assert_eq!(out.get("a.attention.head_count_kv"), Some(&list(&[0, 3])));
        for key in [
            "a.rope.dimension_sections",
            "a.other",
            "tokenizer.ggml.four",
        ] {
            assert_eq!(out.get(key), metadata.get(key), "{key}");
        }
    }

    #[test]
    fn overrides_apply_to_numbers_but_not_to_per_layer_values() {
        let mut metadata = Metadata::new();
        metadata.set("one", Value::U32(8));
        metadata.set(
            "by_layer",
            Value::Array(Array::of_values(ValueType::U32, [2, 8].map(Value::U32))),
        );
        let overrides = ["one", "by_layer", "missing"].map(|key| KvOverride {
            key: key.into(),
            value: OverrideValue::Int(4),
        });
        let lookup = Lookup {
            metadata: &metadata,
            overrides: &overrides,
        };
        assert_eq!(
            ["one", "missing"].map(|key| lookup.number(key)),
            [Some(4), Some(4)]
        );
        assert_eq!(
            ["one", "by_layer", "missing"].map(|key| lookup.of_first_layer(key)),
            [Some(4), Some(2), None]
        );
        let plain = Lookup {
            metadata: &metadata,
            overrides: &[],
        };
        assert_eq!(
            ["one", "by_layer", "missing"].map(|key| plain.of_first_layer(key)),
            [Some(8), Some(2), None]
        );
    }
}
