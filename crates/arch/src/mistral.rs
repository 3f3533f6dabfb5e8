//! Mistral's own format: params.json in place of config.json, and the names of Mistral's own code.

use super::config::{Result, number_in, wrong_kind};
use super::decoder::Decoder;
use super::llama::rope_factors;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, ROPE_DIMENSIONS};
use super::recipes::Recipe;
use super::recipes::Size::{Any, FeedForward, Hidden, Keys as KeyRows, Queries};
use super::{Architecture, Config, Keys, Parameter};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;
use serde_json::{Map, Value as Json};

/// Stands for the class of a model, missing in params.json.
const PLAIN: &str = "params.json";
const SCALED: &str = "params.json with llama_4_scaling";
/// Scaling of queries with their position.
const SCALING: &str = "llama_4_scaling";

/// Fields of params.json, and their names in config.json.
const NAMES: [(&str, &str); 4] = [
    ("dim", "hidden_size"),
    ("hidden_dim", "intermediate_size"),
    ("n_heads", "num_attention_heads"),
    ("n_kv_heads", "num_key_value_heads"),
];

pub(super) static LLAMA: Architecture = Architecture {
    classes: &[PLAIN],
    name: "llama",
    vocabulary: VocabKind::Mistral,
    parameters: PARAMETERS,
    tensors: &[TENSORS],
    generated: rope_factors,
    decoder: Decoder::LLAMA,
};

pub(super) static MISTRAL3: Architecture = Architecture {
    classes: &[SCALED],
    name: "mistral3",
    vocabulary: VocabKind::Mistral,
    parameters: PARAMETERS,
    tensors: &[TENSORS],
    generated: rope_factors,
    decoder: super::llama::MISTRAL3.decoder,
};

const PARAMETERS: &[&[Parameter]] = &[
    COMMON,
    HEAD_LENGTHS,
    FILE_TYPE,
    &[ROPE_DIMENSIONS, Parameter::Computed(long_contexts)],
];

/// Rows of queries and keys are already in llama.cpp's order.
const TENSORS: &[Recipe] = &[
    Recipe::rename("tok_embeddings", "token_embd", &[Any, Hidden]),
    Recipe::rename("output", "output", &[Any, Hidden]),
    Recipe::rename("norm", "output_norm", &[Hidden]),
    Recipe::rename("layers.{}.attention_norm", "blk.{}.attn_norm", &[Hidden]),
    Recipe::rename("layers.{}.ffn_norm", "blk.{}.ffn_norm", &[Hidden]),
    Recipe::rename(
        "layers.{}.attention.wq",
        "blk.{}.attn_q",
        &[Queries, Hidden],
    ),
    Recipe::rename(
        "layers.{}.attention.wk",
        "blk.{}.attn_k",
        &[KeyRows, Hidden],
    ),
    Recipe::rename("layers.{}.attention.wv", "blk.{}.attn_v", &[Any, Hidden]),
    Recipe::rename(
        "layers.{}.attention.wo",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "layers.{}.feed_forward.w1",
        "blk.{}.ffn_gate",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "layers.{}.feed_forward.w3",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "layers.{}.feed_forward.w2",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];

impl Config {
    /// The config of a params.json.
    ///
    /// # Errors
    /// A field of the wrong kind, or an unsupported model in this format.
    pub fn of_params(mut fields: Map<String, Json>) -> Result<Config> {
        if fields.get("moe").is_some_and(|moe| !moe.is_null()) {
            return Err(
                "mixtures of experts in Mistral's format ('moe') are not converted yet; take the checkpoint in Hugging \
                 Face's format (config.json, model*.safetensors), without --mistral-format"
                    .into(),
            );
        }
        for (name, other) in NAMES {
            if let (Some(value), false) = (fields.get(name).cloned(), fields.contains_key(other)) {
                fields.insert(other.into(), value);
            }
        }
        let class = if fields.contains_key(SCALING) {
            SCALED
        } else {
            PLAIN
        };
        fields.insert("architectures".into(), Json::from(vec![class]));
        Config::new(fields)
    }

    /// True for fields of a params.json.
    pub fn is_of_params(&self) -> bool {
        matches!(self.class(), Some(PLAIN | SCALED))
    }
}

/// YaRN under the names of params.json, and scaling of queries.
fn long_contexts(config: &Config, keys: &mut Keys) -> Result<()> {
    const CONTEXT: &str = "original_max_position_embeddings";
    if let Some(yarn) = config.optional_object("yarn")? {
        let number = |name: &str| {
            let number = number_in(yarn, name)?;
            number.ok_or_else(|| format!("'{name}' is missing among the parameters of yarn"))
        };
        let context = number(CONTEXT)?;
        let scales = match yarn.get("apply_scale") {
            Some(Json::Bool(scales)) => *scales,
            Some(other) => return Err(wrong_kind("apply_scale", other, "true or false")),
            None => return Err("'apply_scale' is missing among the parameters of yarn".into()),
        };
        keys.set("rope.scaling.type", Value::str("yarn"));
        for (key, value) in [
            ("factor", number("factor")?),
            ("yarn_beta_fast", number("beta")?),
            ("yarn_beta_slow", number("alpha")?),
            ("yarn_log_multiplier", if scales { 0.0 } else { 1.0 }),
        ] {
            keys.set(&format!("rope.scaling.{key}"), Value::F32(value as f32));
        }
        keys.set(
            "rope.scaling.original_context_length",
            Value::U32(context as u32),
        );
    }
    if let Some(scaling) = config.optional_object(SCALING)? {
        let beta = number_in(scaling, "beta")?;
        let beta = beta.ok_or_else(|| format!("'beta' is missing in '{SCALING}'"))?;
        keys.set("attention.temperature_scale", Value::F32(beta as f32));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(more: Json) -> Result<Config> {
        let mut fields = json!({ "dim": 64, "n_layers": 1, "head_dim": 32, "hidden_dim": 96, "n_heads": 2,
            "n_kv_heads": 1, "norm_eps": 1e-5, "vocab_size": 100, "rope_theta": 1e6 });
        let fields = fields.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        Config::of_params(fields.clone())
    }

    #[test]
    fn params_json_names() {
        let config = config(
            json!({ "llama_4_scaling": { "beta": 0.5 }, "yarn": { "factor": 4.0, "beta": 32,
            "alpha": 1, "apply_scale": false, "original_max_position_embeddings": 2048 } }),
        );
        let config = config.unwrap();
        let architecture = Architecture::of_class(config.class().unwrap()).unwrap();
        assert_eq!(architecture.name, "mistral3");
        let mut keys = Keys::new(architecture.name, 1);
        let parameters = architecture.parameters.iter().flat_map(|list| list.iter());
        parameters.for_each(|parameter| parameter.apply(&config, &mut keys).unwrap());
        let entries = keys.into_entries();
        let of = |name: &str| {
            let key = format!("mistral3.{name}");
            entries
                .iter()
                .find(|(k, _)| *k == key)
                .map(|(_, value)| value.clone())
        };
        assert_eq!(of("embedding_length"), Some(Value::U32(64)));
        assert_eq!(of("attention.head_count_kv"), Some(Value::U32(1)));
        assert_eq!(
            of("rope.scaling.yarn_log_multiplier"),
            Some(Value::F32(1.0))
        );
        assert_eq!(of("attention.temperature_scale"), Some(Value::F32(0.5)));
        assert_eq!(of("vocab_size"), None);
    }

    #[test]
    fn unsupported_models_in_this_format_are_named() {
        assert_eq!(config(json!({})).unwrap().class(), Some(PLAIN));
        let error = config(json!({ "moe": { "num_experts": 4 } })).unwrap_err();
        assert!(error.contains("'moe'"));
    }
}
