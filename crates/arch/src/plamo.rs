//! PLaMo 1: Llama with attention and feed-forward network side by side, of one size. PLaMo 3: norms on both sides of each half of a layer and of heads, windows by list.

use super::config::{Result, wrong_kind};
use super::decoder::{Decoder, Layout, Listed, Needs, Rope, Window};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags};
use super::recipes::Op::{self, AddNumber, AddOne};
use super::recipes::Size::{Any, Head, Hidden, Number};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// Fixed in the reference: the files of the one model do not say it right.
const CONTEXT: u32 = 4096;
const KEY_HEADS: u32 = 5;

pub(super) static PLAMO: Architecture = Architecture {
    classes: &["PlamoForCausalLM"],
    name: "plamo",
    vocabulary: VocabKind::SentencePiece,
    parameters: &[PLAMO_PARAMETERS],
    tensors: &[PLAMO_TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        layout: Layout::Parallel,
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

const PLAMO_PARAMETERS: &[Parameter] = &[
    Parameter::ConstantU32("context_length", CONTEXT),
    Parameter::U32("embedding_length", &["hidden_size"]),
    Parameter::U32("feed_forward_length", &["intermediate_size"]),
    Parameter::Layers,
    Parameter::U32("attention.head_count", &["num_attention_heads"]),
    Parameter::ConstantU32("attention.head_count_kv", KEY_HEADS),
    Parameter::F32("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    Parameter::FileType,
];

/// Heads of queries stand in the order of their use of keys: 8 for each of 5.
const fn grouped(axis: usize) -> Op {
    Op::Tile {
        axis,
        groups: Number(8),
        members: Number(5),
    }
}

const GROUPED_ROWS: &[Op] = &[grouped(0)];
const GROUPED_COLUMNS: &[Op] = &[grouped(1)];

const PLAMO_TENSORS: &[Recipe] = &[
    Recipe::rename("model.embed_tokens", "token_embd", &[Any, Hidden]),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename("model.layers.layers.{}.norm", "blk.{}.attn_norm", &[Hidden]),
    Recipe::with(
        "model.layers.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[Number(5120), Number(5120)],
        GROUPED_ROWS,
    ),
    Recipe::rename(
        "model.layers.layers.{}.self_attn.k_proj",
        "blk.{}.attn_k",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.layers.{}.self_attn.v_proj",
        "blk.{}.attn_v",
        &[Any, Hidden],
    ),
    Recipe::with(
        "model.layers.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Number(5120), Number(5120)],
        GROUPED_COLUMNS,
    ),
    Recipe::rename(
        "model.layers.layers.{}.mlp.gate_proj",
        "blk.{}.ffn_gate",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mlp.up_proj",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
    Recipe::skip("model.layers.layers.{}.self_attn.rotary_emb.inv_freq"),
];

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
        // With its ending, so that the GGUF's name has none.
        "model.layers.layers.{}.post_mixer_norm.weight",
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
        "model.layers.layers.{}.post_mlp_norm.weight",
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
