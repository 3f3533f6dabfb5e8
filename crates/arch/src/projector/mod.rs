//! Projectors: the encoder of images beside a text model, and the matrices from its outputs to the
//! text model's embeddings. llama.cpp reads them from a file of their own, of architecture `clip`.
//!
//! A projector is an [`Architecture`] whose config is the encoder's, with the whole config.json and
//! the settings of the preprocessor as fields (see [`Config::of_projector`]).

/// The recipe of a tensor of the encoder's layers, by the prefix of their names.
macro_rules! block {
    ($prefix:literal, $from:literal, $to:literal, $dims:expr) => {
        $crate::recipes::Recipe::rename(concat!($prefix, $from), concat!("v.blk.{}.", $to), $dims)
    };
}

/// The recipes of SigLIP in the names of transformers, by their prefix.
macro_rules! siglip {
    ($prefix:literal) => {
        &[
            $crate::recipes::Recipe::with(
                concat!($prefix, "embeddings.patch_embedding"),
                "v.patch_embd",
                &[Hidden, Any, Any, Any],
                $crate::projector::IN_F32,
            ),
            $crate::recipes::Recipe::with(
                concat!($prefix, "embeddings.position_embedding"),
                "v.position_embd",
                &[Any, Hidden],
                $crate::projector::IN_F32,
            ),
            siglip!($prefix, "self_attn.q_proj", "attn_q", &[Hidden, Hidden]),
            siglip!($prefix, "self_attn.k_proj", "attn_k", &[Hidden, Hidden]),
            siglip!($prefix, "self_attn.v_proj", "attn_v", &[Hidden, Hidden]),
            siglip!($prefix, "self_attn.out_proj", "attn_out", &[Hidden, Hidden]),
            siglip!($prefix, "layer_norm1", "ln1", &[Hidden]),
            siglip!($prefix, "layer_norm2", "ln2", &[Hidden]),
            siglip!($prefix, "mlp.fc1", "ffn_up", &[FeedForward, Hidden]),
            siglip!($prefix, "mlp.fc2", "ffn_down", &[Hidden, FeedForward]),
            $crate::recipes::Recipe::rename(
                concat!($prefix, "post_layernorm"),
                "v.post_ln",
                &[Hidden],
            ),
        ]
    };
    ($prefix:literal, $from:literal, $to:literal, $dims:expr) => {
        $crate::recipes::Recipe::rename(
            concat!($prefix, "encoder.layers.{}.", $from),
            concat!("v.blk.{}.", $to),
            $dims,
        )
    };
}

mod gemma;
mod pixtral;
mod qwen;
mod smolvlm;

use super::config::{BLOCKS, Result, wrong_kind};
use super::decoder::{Decoder, Needs};
use super::parameters::Parameter;
use super::recipes::Op;
use super::{Architecture, Config, nothing_generated};
use quantier_gguf::gguf::{Array, Value, ValueType};
use quantier_gguf::types::GgmlType;
use quantier_tokenizer::VocabKind;
use serde_json::Value as Json;

/// Names of a projector's fields beside those of its encoder: the whole config.json, the settings
/// of the preprocessor, and the hidden size of the text model.
pub(crate) const OUTER: &str = "outer config";
pub(crate) const PREPROCESSOR: &str = "preprocessor config";
pub(crate) const TEXT_HIDDEN: &str = "hidden size of the text model";

/// A projector.
pub struct Projector {
    /// Classes, keys and recipes.
    pub architecture: Architecture,
    /// The name of a checkpoint tensor within the projector; `None` for tensors of other parts.
    pub name: fn(&Config, &str) -> Option<String>,
}

/// All projectors that can be converted.
pub static PROJECTORS: &[&Projector] = &[
    &gemma::GEMMA3,
    &pixtral::PIXTRAL,
    &qwen::QWEN2_VL,
    &qwen::QWEN2_5_VL,
    &qwen::QWEN3_VL,
    &smolvlm::SMOLVLM,
];

/// A projector without keys and tensors; the others are given by their differences. llama.cpp's
/// decoders do not run it.
const EMPTY: Architecture = Architecture {
    classes: &[],
    name: "clip",
    vocabulary: VocabKind::Llama,
    parameters: &[],
    tensors: &[],
    generated: nothing_generated,
    decoder: Decoder {
        needs: Needs::WEIGHTS,
        ..Decoder::LLAMA
    },
};

impl Projector {
    /// The projector of a checkpoint, by its class.
    ///
    /// # Errors
    /// A missing or unsupported class.
    pub fn of(config: &Config) -> std::result::Result<&'static Projector, String> {
        let class = config.class();
        let class = class.ok_or("field 'architectures' is missing or empty")?;
        let mut all = PROJECTORS.iter().copied();
        let found = all.find(|projector| projector.architecture.classes.contains(&class));
        found.ok_or_else(|| {
            let all = PROJECTORS.iter();
            let known: Vec<_> = all.flat_map(|p| p.architecture.classes).copied().collect();
            format!(
                "the projector of class '{class}' is not supported; supported are {}",
                known.join(", ")
            )
        })
    }
}

/// The keys of all encoders of images, in the reference's order.
const COMMON: &[Parameter] = &[
    Parameter::FileType,
    Parameter::Computed(|_, keys| {
        keys.set("has_vision_encoder", Value::Bool(true));
        Ok(())
    }),
    Parameter::U32("vision.projection_dim", &[TEXT_HIDDEN]),
    Parameter::U32("vision.image_size", &["image_size"]),
    Parameter::U32("vision.patch_size", &["patch_size"]),
    Parameter::U32(
        "vision.embedding_length",
        &["hidden_size", "width", "vt_hidden_size"],
    ),
    Parameter::U32(
        "vision.feed_forward_length",
        &["intermediate_size", "vt_intermediate_size"],
    ),
    Parameter::U32("vision.block_count", BLOCKS),
    Parameter::U32(
        "vision.attention.head_count",
        &[
            "num_attention_heads",
            "num_heads",
            "heads",
            "vt_num_attention_heads",
        ],
    ),
    Parameter::Computed(|config, keys| {
        for (key, field) in [
            ("vision.image_mean", "image_mean"),
            ("vision.image_std", "image_std"),
        ] {
            let value = of(config, PREPROCESSOR, field)?.ok_or_else(|| {
                format!(
                    "'{field}' is neither in preprocessor_config.json nor in processor_config.json; download them \
                     again"
                )
            })?;
            keys.set(key, list(field, value)?);
        }
        Ok(())
    }),
];

/// A field of the whole config.json or of the preprocessor's settings, not null.
fn of<'c>(config: &'c Config, object: &str, field: &str) -> Result<Option<&'c Json>> {
    let fields = config.optional_object(object)?;
    let value = fields.and_then(|fields| fields.get(field));
    Ok(value.filter(|value| !value.is_null()))
}

/// A list of numbers: of integers if the first is one, as in the reference.
fn list(name: &str, value: &Json) -> Result<Value<'static>> {
    let wrong = || wrong_kind(name, value, "a list of numbers");
    let numbers = value.as_array().filter(|list| !list.is_empty());
    let numbers = numbers.ok_or_else(wrong)?;
    let list = match numbers[0].is_i64() {
        true => {
            let numbers = numbers.iter().map(|n| i32::try_from(n.as_i64()?).ok());
            let numbers = numbers.collect::<Option<Vec<i32>>>().ok_or_else(wrong)?;
            Array::of_values(ValueType::I32, numbers.into_iter().map(Value::I32))
        }
        false => {
            let numbers = numbers.iter().map(Json::as_f64);
            let numbers = numbers.collect::<Option<Vec<f64>>>().ok_or_else(wrong)?;
            let numbers = numbers.into_iter().map(|n| Value::F32(n as f32));
            Array::of_values(ValueType::F32, numbers)
        }
    };
    Ok(Value::Array(list))
}

/// Embeddings of patches and positions of SigLIP.
const IN_F32: &[Op] = &[Op::Cast(GgmlType::F32)];

const USE_GELU: Parameter = Parameter::Computed(|_, keys| {
    keys.set("use_gelu", Value::Bool(true));
    Ok(())
});

const USE_SILU: Parameter = Parameter::Computed(|_, keys| {
    keys.set("use_silu", Value::Bool(true));
    Ok(())
});
