//! GPT-2, with transposed matrices, and names with and without a prefix.

use super::config::Result;
use super::decoder::{Activation, Decoder, Needs, Norm, Rope};
use super::recipes::Op::Transpose;
use super::recipes::Size::{Any, Hidden};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// Size of the feed-forward network, relative to the hidden size.
const FFN_FACTOR: u32 = 4;

pub(super) static GPT2: Architecture = Architecture {
    classes: &["GPT2LMHeadModel"],
    name: "gpt2",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[PARAMETERS],
    tensors: &[BY_COLUMNS, BY_ROWS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::None,
        activation: Activation::Gelu,
        needs: Needs::ALL_BIASES,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::Layers,
    Parameter::Computed(context),
    Parameter::U32("embedding_length", &["n_embd"]),
    Parameter::Computed(feed_forward),
    Parameter::U32("attention.head_count", &["n_head"]),
    Parameter::F32("attention.layer_norm_epsilon", &["layer_norm_epsilon"]),
    Parameter::FileType,
];

/// Rows of the position table. Old files also have them in `n_ctx`, the field that the reference
/// reads.
fn context(config: &Config, keys: &mut Keys) -> Result<()> {
    let old = config.optional_u32(&["n_ctx"])?;
    let positions = match config.optional_u32(&["n_positions"])?.or(old) {
        Some(positions) => positions,
        None => config.u32(&["n_positions", "n_ctx"])?,
    };
    if let Some(old) = old.filter(|old| *old != positions) {
        keys.note(format!(
            "the context is n_positions of config.json, {positions}; convert_hf_to_gguf.py writes n_ctx, {old}, and \
             llama.cpp does not load the file then"
        ));
    }
    keys.set("context_length", Value::U32(positions));
    Ok(())
}

/// The size of the feed-forward network: the config's, or a multiple of the hidden size. The
/// reference always uses the multiple.
pub(super) fn feed_forward(config: &Config, keys: &mut Keys) -> Result<()> {
    let by_factor = config
        .u32(&["hidden_size", "n_embd"])?
        .checked_mul(FFN_FACTOR)
        .ok_or("field 'n_embd' is too large")?;
    let width = config.optional_u32(&["n_inner", "intermediate_size"])?;
    let width = width.unwrap_or(by_factor);
    if width != by_factor {
        keys.note(format!(
            "the feed-forward network has config.json's width, {width}; convert_hf_to_gguf.py writes {by_factor}, and \
             llama.cpp does not load the file then"
        ));
    }
    keys.set("feed_forward_length", Value::U32(width));
    Ok(())
}

const fn transposed(from: &'static str, to: &'static str) -> Recipe {
    Recipe::with(from, to, &[Any, Any], &[Transpose])
}

/// Tensors of GPT-2's relatives without transposed matrices.
pub(super) const BY_ROWS: &[Recipe] = &[
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
    Recipe::rename("transformer.wte", "token_embd", &[Any, Hidden]),
    Recipe::rename("transformer.wpe", "position_embd", &[Any, Hidden]),
    Recipe::rename("transformer.ln_f", "output_norm", &[Hidden]),
    Recipe::rename("transformer.h.{}.ln_1", "blk.{}.attn_norm", &[Hidden]),
    Recipe::rename("transformer.h.{}.ln_2", "blk.{}.ffn_norm", &[Hidden]),
    Recipe::rename(
        "transformer.h.{}.attn.c_attn",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "transformer.h.{}.attn.c_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename("transformer.h.{}.mlp.c_fc", "blk.{}.ffn_up", &[Any, Hidden]),
    Recipe::rename(
        "transformer.h.{}.mlp.c_proj",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
    // Old checkpoints contain the causal mask.
    Recipe::skip("transformer.h.{}.attn.bias"),
    Recipe::skip("transformer.h.{}.attn.masked_bias"),
];

/// Transposed matrices.
pub(super) const BY_COLUMNS: &[Recipe] = &[
    transposed(
        "transformer.h.{}.attn.c_attn.weight",
        "blk.{}.attn_qkv.weight",
    ),
    transposed(
        "transformer.h.{}.attn.c_proj.weight",
        "blk.{}.attn_output.weight",
    ),
    transposed("transformer.h.{}.mlp.c_fc.weight", "blk.{}.ffn_up.weight"),
    transposed(
        "transformer.h.{}.mlp.c_proj.weight",
        "blk.{}.ffn_down.weight",
    ),
];
