//! Phi-1 and Phi-2: layer norms, parallel attention and feed-forward network. Phi-3 and its
//! relatives (Phi-3.5, Phi-4): fused queries, keys and values, fused gate and up.

use super::config::{Result, number_in, wrong_kind};
use super::decoder::{Activation, Decoder, Layout, Needs, Norm, Rope};
use super::llama::{BUFFERS, EMBEDDINGS, MIXTRAL_EXPERTS, NORMS, PLAIN_ATTENTION};
use super::recipes::Size::{Any, FeedForward, Hidden, Number, Product};
use super::{
    Architecture, Config, Generated, Keys, Parameter, Recipe, gpt2, nothing_generated,
    parameters::rotated,
};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static PHI3: Architecture = Architecture {
    classes: &["Phi3ForCausalLM", "Phi4ForCausalLMV"],
    name: "phi3",
    vocabulary: VocabKind::Phi3,
    parameters: &[PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, LAYERS, BUFFERS],
    generated: long_rope_factors,
    decoder: Decoder {
        rope: Rope::Halves,
        ..Decoder::LLAMA
    },
};

/// Phi-3.5-MoE: experts, and biases everywhere.
pub(super) static PHI_MOE: Architecture = Architecture {
    classes: &["PhiMoEForCausalLM"],
    name: "phimoe",
    parameters: &[PARAMETERS, EXPERT_PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, PLAIN_ATTENTION, MIXTRAL_EXPERTS, BUFFERS],
    decoder: Decoder {
        rope: Rope::Halves,
        needs: Needs {
            biases: &[
                "output",
                "output_norm",
                "attn_norm",
                "attn_output",
                "ffn_norm",
            ],
            own_output: true,
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
    ..PHI3
};

const EXPERT_PARAMETERS: &[Parameter] = &[
    Parameter::U32(
        "expert_used_count",
        &["num_experts_per_tok", "num_experts_per_token"],
    ),
    Parameter::U32("expert_count", &["num_local_experts", "num_experts"]),
];

pub(super) static PHI2: Architecture = Architecture {
    classes: &["PhiForCausalLM"],
    name: "phi2",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[PHI2_PARAMETERS],
    tensors: &[EMBEDDINGS, PLAIN_ATTENTION, PHI2_TENSORS, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::Halves,
        activation: Activation::Gelu,
        layout: Layout::Parallel,
        needs: Needs {
            biases: &[
                "output",
                "output_norm",
                "attn_norm",
                "attn_output",
                "ffn_up",
                "ffn_down",
            ],
            own_output: true,
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

const PHI2_PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", CONTEXT),
    Parameter::U32("embedding_length", HIDDEN),
    Parameter::Computed(gpt2::feed_forward),
    Parameter::Layers,
    Parameter::U32("attention.head_count", HEADS),
    Parameter::U32("attention.head_count_kv", HEADS),
    Parameter::F32(
        "attention.layer_norm_epsilon",
        &["layer_norm_epsilon", "layer_norm_eps"],
    ),
    Parameter::Computed(|config, keys| {
        keys.set("rope.dimension_count", Value::U32(rotated(config, None)?));
        Ok(())
    }),
    Parameter::FileType,
    Parameter::Computed(|_, keys| {
        keys.set_exact("tokenizer.ggml.add_bos_token".into(), Value::Bool(false));
        Ok(())
    }),
];

const PHI2_TENSORS: &[Recipe] = &[
    Recipe::rename("model.final_layernorm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.dense",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename("model.layers.{}.mlp.fc1", "blk.{}.ffn_up", &[Any, Hidden]),
    Recipe::rename("model.layers.{}.mlp.fc2", "blk.{}.ffn_down", &[Hidden, Any]),
];

const CONTEXT: &[&str] = &["n_positions", "max_position_embeddings"];
const HIDDEN: &[&str] = &["hidden_size", "n_embd"];
const HEADS: &[&str] = &["num_attention_heads", "n_head"];
const ORIGINAL_CONTEXT: &str = "original_max_position_embeddings";

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", CONTEXT),
    Parameter::Computed(original_context),
    Parameter::U32("embedding_length", HIDDEN),
    Parameter::U32("feed_forward_length", &["intermediate_size"]),
    Parameter::Layers,
    Parameter::U32("attention.head_count", HEADS),
    Parameter::U32(
        "attention.head_count_kv",
        &["num_key_value_heads", "n_head_kv"],
    ),
    Parameter::F32("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    Parameter::Computed(rope),
    Parameter::FileType,
    Parameter::Computed(sliding_window),
];

const LAYERS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.qkv_proj",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.gate_up_proj",
        "blk.{}.ffn_up",
        &[Product(&[Number(2), FeedForward]), Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];

/// The context length before extension.
fn original_context_of(config: &Config) -> Result<u32> {
    let value = config
        .rope()
        .get(ORIGINAL_CONTEXT)
        .filter(|value| !value.is_null());
    let value = value.ok_or(format!("field '{ORIGINAL_CONTEXT}' is missing"))?;
    let number = value.as_u64().and_then(|n| n.try_into().ok());
    number.ok_or_else(|| wrong_kind(ORIGINAL_CONTEXT, value, "a whole number"))
}

fn original_context(config: &Config, keys: &mut Keys) -> Result<()> {
    keys.set(
        "rope.scaling.original_context_length",
        Value::U32(original_context_of(config)?),
    );
    Ok(())
}

fn rope(config: &Config, keys: &mut Keys) -> Result<()> {
    let theta = number_in(config.rope(), "rope_theta")?.ok_or("field 'rope_theta' is missing")?;
    keys.set(
        "rope.dimension_count",
        Value::U32(rotated(config, Some(1.0))?),
    );
    keys.set("rope.freq_base", Value::F32(theta as f32));
    Ok(())
}

/// 0 means none, which distinguishes Phi-4 from the others.
fn sliding_window(config: &Config, keys: &mut Keys) -> Result<()> {
    keys.set(
        "attention.sliding_window",
        Value::U32(config.optional_u32(&["sliding_window"])?.unwrap_or(0)),
    );
    Ok(())
}

/// Divisors of RoPE frequencies for long and for short contexts, and the factor of attention.
fn long_rope_factors(config: &Config, keys: &mut Keys) -> Result<Vec<Generated>> {
    let original = f64::from(original_context_of(config)?);
    let rope = config.rope();
    let long = config.rope_numbers("long_factor")?;
    let Some(long) = long.filter(|long| !long.is_empty()) else {
        return Ok(Vec::new());
    };
    let short = config.rope_numbers("short_factor")?;
    let short = short.ok_or("'short_factor' is missing beside 'long_factor'")?;
    let scale = f64::from(config.u32(CONTEXT)?) / original;
    let kind = rope
        .get("rope_type")
        .and_then(|kind| kind.as_str())
        .unwrap_or_default()
        .to_lowercase();
    let attention = match &*kind {
        "su" | "longrope" if scale > 1.0 => (1.0 + scale.ln() / original.ln()).sqrt(),
        "yarn" if scale > 1.0 => 0.1 * scale.ln() + 1.0,
        "su" | "longrope" | "yarn" => 1.0,
        other => {
            return Err(format!(
                "rotary scaling of type '{other}' is unknown for this architecture"
            ));
        }
    };
    let expected = rotated(config, Some(1.0))? / 2;
    if long.len() != expected as usize || short.len() != expected as usize {
        let (long, short) = (long.len(), short.len());
        return Err(format!(
            "'long_factor' has {long} numbers and 'short_factor' {short}; {expected} are needed"
        ));
    }
    keys.set("rope.scaling.attn_factor", Value::F32(attention as f32));
    Ok(vec![
        Generated::vector("rope_factors_long.weight", long),
        Generated::vector("rope_factors_short.weight", short),
    ])
}
