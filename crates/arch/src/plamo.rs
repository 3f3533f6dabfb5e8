//! PLaMo 3: norms on both sides of each half of a layer and of heads, windows by list.

use super::config::{Result, wrong_kind};
use super::decoder::{Decoder, Listed, Rope, Window};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags};
use super::recipes::Op::{self, AddNumber, AddOne};
use super::recipes::Size::{Any, Head, Hidden};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static PLAMO3: Architecture = Architecture {
    classes: &["Plamo3ForCausalLM", "PLaMo3ForCausalLM"],
    name: "plamo3",
    vocabulary: VocabKind::Plamo3,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        window: Window::Listed(Listed {
            period: 8,
            rope_base: Some(10_000.0),
            ..Listed::THREE_OF_FOUR
        }),
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(windows),
];

fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let Some(tokens) = config.optional_u32(&["window_size", "sliding_window"])? else {
        return Ok(());
    };
    keys.set("attention.sliding_window", Value::U32(tokens));
    const PATTERN: &str = "sliding_window_pattern";
    let pattern = config.get(PATTERN);
    let pattern = pattern.ok_or_else(|| format!("field '{PATTERN}' is missing"))?;
    let flags = pattern
        .as_array()
        .map(|list| list.iter().map(|flag| flag.as_bool()));
    if let Some(flags) = flags.and_then(|flags| flags.collect::<Option<Vec<_>>>()) {
        set_flags(keys, "attention.sliding_window_pattern", flags);
        return Ok(());
    }
    let period = pattern
        .as_u64()
        .and_then(|period| u32::try_from(period).ok());
    let period = period.ok_or_else(|| wrong_kind(PATTERN, pattern, "a whole number or a list"))?;
    keys.set("attention.sliding_window_pattern", Value::U32(period));
    Ok(())
}

const PLUS_ONE: &[Op] = &[AddOne];

const TENSORS: &[Recipe] = &[
    Recipe::rename("model.embed_tokens", "token_embd", &[Any, Hidden]),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
    Recipe::with("model.norm", "output_norm", &[Hidden], PLUS_ONE),
    Recipe::with(
        "model.layers.layers.{}.pre_mixer_norm",
        "blk.{}.attn_norm",
        &[Hidden],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.layers.{}.post_mixer_norm",
        "blk.{}.post_attention_norm",
        &[Hidden],
        &[AddNumber(1.0 / 5.0)],
    ),
    Recipe::with(
        "model.layers.layers.{}.pre_mlp_norm",
        "blk.{}.ffn_norm",
        &[Hidden],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.layers.{}.post_mlp_norm",
        "blk.{}.post_ffw_norm",
        &[Hidden],
        // 1 / 5^1.5
        &[AddNumber(0.089_442_719_099_991_59)],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.qkv_proj",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::with(
        "model.layers.layers.{}.mixer.q_norm",
        "blk.{}.attn_q_norm",
        &[Head],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.layers.{}.mixer.k_norm",
        "blk.{}.attn_k_norm",
        &[Head],
        PLUS_ONE,
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mlp.gate_up_proj",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
];
