//! Spark 2.5: sliding windows in listed layers with their own RoPE, one gate per head.

use super::config::{Result, wrong_kind};
use super::decoder::{Activation, Decoder, Listed, Rope, Window};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags};
use super::recipes::Size::{Any, Hidden, QueryHeads};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static SPARK2_5: Architecture = Architecture {
    classes: &["Spark2_5ForCausalLM"],
    name: "spark2_5",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        TENSORS,
        PLAIN_ATTENTION,
        GATED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        activation: Activation::Gelu,
        window: Window::Listed(Listed {
            stretched: true,
            ..Listed::THREE_OF_FOUR
        }),
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(check),
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::U32("attention.sliding_window", &["sliding_window"]),
    Parameter::Computed(windows),
    Parameter::Computed(rotations),
];

/// The reference's requirements.
fn check(config: &Config, _: &mut Keys) -> Result<()> {
    for (field, value) in [
        ("gate_attn_act_mode", serde_json::json!("sigmoid")),
        ("headwise_attn_output_gate", serde_json::json!(true)),
        ("hidden_act", serde_json::json!("gelu")),
    ] {
        let found = config.get(field).unwrap_or(&serde_json::Value::Null);
        if *found != value {
            return Err(wrong_kind(field, found, &value.to_string()));
        }
    }
    Ok(())
}

fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let flags = config
        .sliding_layers()
        .ok_or("field 'layer_types' is missing")?;
    let (count, layers) = (flags.len(), config.layers()?);
    if count != layers as usize {
        return Err(format!(
            "'layer_types' has {count} entries for {layers} layers"
        ));
    }
    set_flags(keys, "attention.sliding_window_pattern", flags);
    Ok(())
}

fn rotations(config: &Config, keys: &mut Keys) -> Result<()> {
    let head = f64::from(config.u32(&["head_dim"])?);
    for (key, kind) in [
        ("rope.dimension_count", "full_attention"),
        ("rope.dimension_count_swa", "sliding_attention"),
    ] {
        let part = config.rope_part_of(kind)?;
        keys.set(key, Value::U32((head * part) as u32));
    }
    Ok(())
}

const TENSORS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_k_v_proj",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.g_proj",
        "blk.{}.attn_gate",
        &[QueryHeads, Hidden],
    ),
];
