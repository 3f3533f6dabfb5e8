//! Metadata from a model's config.json: keys, their order and types.

use super::config::{Config, Pooling, Result, number_in, wrong_kind};
use quantier_gguf::gguf::{Array, Value, ValueType, keys};

/// Metadata under construction. As in the reference, setting a key again does not change its
/// position.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    architecture: &'static str,
    /// `general.file_type`.
    file_type: u32,
    entries: Vec<(String, Value<'static>)>,
    notes: Vec<String>,
}

impl Keys {
    /// Empty metadata of a model with this architecture and file type.
    pub fn new(architecture: &'static str, file_type: u32) -> Keys {
        Keys {
            architecture,
            file_type,
            entries: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Sets a key, with the architecture's name and a dot as prefix.
    pub(crate) fn set(&mut self, key: &str, value: Value<'static>) {
        self.set_exact(format!("{}.{key}", self.architecture), value);
    }

    /// Sets a key without prefix.
    pub fn set_exact(&mut self, key: String, value: Value<'static>) {
        match self.entries.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key, value)),
        }
    }

    /// Removes a key of the architecture.
    pub(crate) fn remove(&mut self, key: &str) {
        let key = format!("{}.{key}", self.architecture);
        self.entries.retain(|(other, _)| *other != key);
    }

    /// Adds a note for the user about the keys.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Notes for the user about the keys.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The keys in order.
    pub fn into_entries(self) -> Vec<(String, Value<'static>)> {
        self.entries
    }
}

/// A step from a config to metadata.
#[derive(Clone, Copy)]
pub enum Parameter {
    /// The number of layers and multi-token prediction blocks, as `block_count`.
    Layers,
    /// `general.file_type`.
    FileType,
    /// A required integer, from the first present field.
    U32(&'static str, &'static [&'static str]),
    /// An integer, if the first present field is not null.
    OptionalU32(&'static str, &'static [&'static str]),
    /// An integer, or a default.
    OrU32(&'static str, &'static [&'static str], u32),
    /// A required number.
    F32(&'static str, &'static [&'static str]),
    /// A number, if present and not null.
    OptionalF32(&'static str, &'static [&'static str]),
    /// A number, if present and not 0.
    NonzeroF32(&'static str, &'static [&'static str]),
    /// A fixed number.
    ConstantF32(&'static str, f32),
    /// A fixed integer.
    ConstantU32(&'static str, u32),
    /// A fixed string.
    ConstantStr(&'static str, &'static str),
    /// Keys set by a function.
    Computed(fn(&Config, &mut Keys) -> Result<()>),
}

use Parameter::{Computed, FileType, Layers, OptionalF32, OptionalU32};

impl Parameter {
    /// Adds this step's keys.
    ///
    /// # Errors
    /// A missing field of the config, or one of the wrong kind.
    pub fn apply(self, config: &Config, keys: &mut Keys) -> Result<()> {
        match self {
            Layers => keys.set("block_count", Value::U32(config.blocks()?)),
            FileType => keys.set_exact(keys::FILE_TYPE.into(), Value::U32(keys.file_type)),
            Parameter::U32(key, fields) => keys.set(key, Value::U32(config.u32(fields)?)),
            Parameter::F32(key, fields) => keys.set(key, Value::F32(config.f64(fields)? as f32)),
            Parameter::ConstantF32(key, value) => keys.set(key, Value::F32(value)),
            Parameter::ConstantU32(key, value) => keys.set(key, Value::U32(value)),
            Parameter::ConstantStr(key, value) => keys.set(key, Value::str(value)),
            OptionalU32(key, fields) => {
                if let Some(value) = config.optional_u32(fields)? {
                    keys.set(key, Value::U32(value));
                }
            }
            Parameter::OrU32(key, fields, by_default) => {
                let value = config.optional_u32(fields)?;
                keys.set(key, Value::U32(value.unwrap_or(by_default)));
            }
            OptionalF32(key, fields) => {
                if let Some(value) = config.optional_f64(fields)? {
                    keys.set(key, Value::F32(value as f32));
                }
            }
            Parameter::NonzeroF32(key, fields) => {
                if let Some(value) = config.optional_f64(fields)?.filter(|value| *value != 0.0) {
                    keys.set(key, Value::F32(value as f32));
                }
            }
            Computed(function) => function(config, keys)?,
        }
        Ok(())
    }
}

/// The keys of most models, in the reference's order.
pub(crate) const COMMON: &[Parameter] = &[
    Layers,
    OptionalU32(
        "context_length",
        &[
            "max_position_embeddings",
            "n_ctx",
            "n_positions",
            "max_length",
            "max_sequence_length",
            "model_max_length",
        ],
    ),
    OptionalU32("embedding_length", &["hidden_size", "n_embd", "dim"]),
    OptionalU32(
        "feed_forward_length",
        &[
            "prefix_dense_intermediate_size",
            "dense_intermediate_size",
            "intermediate_size",
            "n_inner",
            "hidden_dim",
        ],
    ),
    OptionalU32(
        "attention.head_count",
        &["num_attention_heads", "n_head", "n_heads"],
    ),
    OptionalU32(
        "attention.head_count_kv",
        &["num_key_value_heads", "n_kv_heads"],
    ),
    Computed(causal),
    Computed(rope),
    OptionalF32(
        "attention.layer_norm_rms_epsilon",
        &["rms_norm_eps", "norm_eps"],
    ),
    OptionalF32(
        "attention.layer_norm_epsilon",
        &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"],
    ),
    OptionalU32(
        "expert_count",
        &["num_local_experts", "num_experts", "n_routed_experts"],
    ),
    OptionalU32(
        "expert_used_count",
        &[
            "num_experts_per_tok",
            "num_experts_per_token",
            "top_k_experts",
        ],
    ),
    OptionalU32("expert_group_count", &["n_group"]),
    OptionalU32("expert_group_used_count", &["topk_group"]),
    Computed(expert_gating),
];

/// Lengths of a head's key and value, after [`COMMON`].
pub(crate) const HEAD_LENGTHS: &[Parameter] = &[
    OptionalU32("attention.key_length", &["head_dim"]),
    OptionalU32("attention.value_length", &["head_dim"]),
];

/// `general.file_type`, between the common keys and a family's.
pub(crate) const FILE_TYPE: &[Parameter] = &[FileType];

/// Pooling of a sentence-transformers model, and that in front of a classifier.
pub(crate) const POOLING: &[Parameter] = &[Parameter::Computed(|config, keys| {
    const CLASSIFIER: &str = "classifier_pooling";
    if let Some(kind) = config.pooling()? {
        keys.set("pooling_type", Value::U32(kind as u32));
    }
    let Some(name) = config.get(CLASSIFIER) else {
        return Ok(());
    };
    let kind = match name.as_str() {
        Some("cls") => Pooling::Cls,
        Some("mean") => Pooling::Mean,
        _ => return Err(wrong_kind(CLASSIFIER, name, "'cls' or 'mean'")),
    };
    keys.set("classifier.pooling_type", Value::U32(kind as u32));
    Ok(())
})];

/// Flag of parallel attention and feed-forward network; true without a field in the config.
pub(crate) const PARALLEL_RESIDUAL: Parameter = Parameter::Computed(|config, keys| {
    let parallel = config.get("use_parallel_residual");
    let parallel = parallel.is_none_or(|value| *value == true);
    keys.set("use_parallel_residual", Value::Bool(parallel));
    Ok(())
});

/// RoPE dimensions: the head length.
pub(crate) const ROPE_DIMENSIONS: Parameter = Parameter::Computed(|config, keys| {
    keys.set("rope.dimension_count", Value::U32(config.head_len()?));
    Ok(())
});

/// RoPE dimensions: the hidden size per head, ignoring `head_dim`.
pub(crate) const SHARED_ROPE_DIMENSIONS: Parameter = Parameter::Computed(|config, keys| {
    keys.set("rope.dimension_count", Value::U32(config.share_of_head()?));
    Ok(())
});

/// Sets a list of integers.
pub(crate) fn set_numbers(keys: &mut Keys, key: &str, numbers: impl IntoIterator<Item = u32>) {
    let numbers = numbers.into_iter().map(|number| Value::I32(number as i32));
    keys.set(key, Value::Array(Array::of_values(ValueType::I32, numbers)));
}

/// Sets a list of floats.
pub(crate) fn set_floats(keys: &mut Keys, key: &str, floats: impl IntoIterator<Item = f32>) {
    let floats = floats.into_iter().map(Value::F32);
    keys.set(key, Value::Array(Array::of_values(ValueType::F32, floats)));
}

/// Sets a boolean required in the config.
///
/// # Errors
/// If the field is missing.
pub(crate) fn set_flag(config: &Config, keys: &mut Keys, key: &str, field: &str) -> Result<()> {
    let flag = config.get(field);
    let flag = flag.ok_or_else(|| format!("field '{field}' is missing"))?;
    keys.set(key, Value::Bool(*flag == true));
    Ok(())
}

/// Sets a list of booleans.
pub(crate) fn set_flags(keys: &mut Keys, key: &str, flags: impl IntoIterator<Item = bool>) {
    let flags = flags.into_iter().map(Value::Bool);
    keys.set(key, Value::Array(Array::of_values(ValueType::Bool, flags)));
}

/// The rotated fraction of a head by the config, or `by_default`.
///
/// # Errors
/// If there is neither.
pub(crate) fn rotated_part(config: &Config, by_default: Option<f64>) -> Result<f64> {
    const PART: &str = "partial_rotary_factor";
    let part = number_in(config.rope(), PART)?.or(by_default);
    part.ok_or(format!("field '{PART}' is missing"))
}

/// RoPE dimensions per head: the rotated fraction of the hidden size, rounded down and divided
/// among the heads.
///
/// # Errors
/// If the fraction, the hidden size or the number of heads is missing.
pub(crate) fn rotated(config: &Config, by_default: Option<f64>) -> Result<u32> {
    let part = rotated_part(config, by_default)?;
    let hidden = config.u32(&["hidden_size", "n_embd"])?;
    let heads = config.u32(&["num_attention_heads", "n_head"])?;
    let rotated = ((part * f64::from(hidden)) as u32).checked_div(heads);
    rotated.ok_or("field 'num_attention_heads' is 0".into())
}

/// Sets the key of models without causal attention.
fn causal(config: &Config, keys: &mut Keys) -> Result<()> {
    if config.get("is_causal").is_some_and(|value| *value == false) {
        keys.set("attention.causal", Value::Bool(false));
    }
    Ok(())
}

/// RoPE type and parameters.
fn rope(config: &Config, keys: &mut Keys) -> Result<()> {
    let parameters = config.rope();
    let number = |name| number_in(parameters, name);
    let kind = parameters
        .get("rope_type")
        .and_then(|kind| kind.as_str())
        .unwrap_or_default();
    match (kind, number("factor")?) {
        ("linear", Some(factor)) => {
            keys.set("rope.scaling.type", Value::str("linear"));
            keys.set("rope.scaling.factor", Value::F32(factor as f32));
        }
        ("yarn", Some(factor)) => {
            const CONTEXT: &str = "original_max_position_embeddings";
            keys.set("rope.scaling.type", Value::str("yarn"));
            keys.set("rope.scaling.factor", Value::F32(factor as f32));
            let context = parameters.get(CONTEXT).filter(|value| !value.is_null());
            let context = context.ok_or(format!(
                "'{CONTEXT}' is missing among the parameters of yarn"
            ))?;
            let context = context.as_u64().and_then(|n| n.try_into().ok());
            let context =
                context.ok_or(format!("'{CONTEXT}' of yarn is no whole number of 32 bits"))?;
            keys.set("rope.scaling.original_context_length", Value::U32(context));
            let attention = if parameters.contains_key("attention_factor") {
                "attention_factor"
            } else {
                "attn_factor"
            };
            for (key, name) in [
                ("yarn_ext_factor", "extrapolation_factor"),
                ("yarn_attn_factor", attention),
                ("yarn_beta_fast", "beta_fast"),
                ("yarn_beta_slow", "beta_slow"),
            ] {
                if let Some(value) = number(name)? {
                    keys.set(&format!("rope.scaling.{key}"), Value::F32(value as f32));
                }
            }
        }
        ("su" | "longrope", _) => keys.set("rope.scaling.type", Value::str("longrope")),
        // Llama 3's and Gemma 4's types become a tensor.
        ("" | "default" | "mrope" | "linear" | "yarn" | "proportional", _) => {}
        _ if kind.eq_ignore_ascii_case("llama3") => {}
        // Hunyuan's type becomes another base.
        _ if parameters.contains_key("alpha") => {}
        _ => keys.note(format!(
            "the RoPE type '{kind}' of config.json has no counterpart in llama.cpp and is left out: contexts longer \
             than the original one will be worse than with transformers"
        )),
    }
    if let Some(sections) = config.rope_sections()? {
        set_numbers(keys, "rope.dimension_sections", sections);
    }
    if let Some(theta) = number("rope_theta")? {
        keys.set("rope.freq_base", Value::F32(theta as f32));
    }
    if let Some(theta) = config.sliding_rope_theta()? {
        keys.set("rope.freq_base_swa", Value::F32(theta as f32));
    }
    Ok(())
}

/// Gating of experts, if the config has it.
fn expert_gating(config: &Config, keys: &mut Keys) -> Result<()> {
    const FIELDS: &[&str] = &[
        "score_function",
        "scoring_func",
        "score_func",
        "moe_router_activation",
        "moe_router_activation_func",
        "expert_selection_fn",
    ];
    let Some((name, function)) = config.first(FIELDS) else {
        return Ok(());
    };
    let number = match function.as_str() {
        Some("softmax") => 1,
        Some("sigmoid") => 2,
        Some("sqrtsoftplus") => 4,
        _ => {
            return Err(wrong_kind(
                name,
                function,
                "'softmax', 'sigmoid' or 'sqrtsoftplus'",
            ));
        }
    };
    keys.set("expert_gating_func", Value::U32(number));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn keys_of(config: serde_json::Value) -> Result<Vec<(String, Value<'static>)>> {
        let config = Config::new(config.as_object().unwrap().clone())?;
        let mut keys = Keys::new("a", 7);
        [COMMON, FILE_TYPE]
            .concat()
            .iter()
            .try_for_each(|parameter| parameter.apply(&config, &mut keys))?;
        Ok(keys.into_entries())
    }

    #[test]
    fn common_keys_are_in_the_references_order() {
        let keys = keys_of(
            json!({ "num_hidden_layers": 2, "rms_norm_eps": 1e-5, "hidden_size": 8,
            "rope_theta": 5, "rope_scaling": { "type": "linear", "factor": 2 } }),
        );
        let names: Vec<_> = keys
            .unwrap()
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(
            names,
            [
                "a.block_count=2",
                "a.embedding_length=8",
                "a.rope.scaling.type=linear",
                "a.rope.scaling.factor=2",
                "a.rope.freq_base=5",
                "a.attention.layer_norm_rms_epsilon=0.00001",
                "general.file_type=7"
            ]
        );
    }

    #[test]
    fn fields_of_the_wrong_kind_are_named() {
        let error = keys_of(json!({ "num_hidden_layers": 2, "hidden_size": "8" })).unwrap_err();
        assert!(error.contains("'hidden_size' is a text (\"8\")"), "{error}");
        let error = keys_of(json!({ "hidden_size": 8 })).unwrap_err();
        assert!(error.contains("'num_hidden_layers'"), "{error}");
    }
}
