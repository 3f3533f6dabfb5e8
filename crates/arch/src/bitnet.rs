//! BitNet b1.58 (Ma et al. 2024): Llama with ternary weights, and a norm before the output matrices
//! of attention and of the feed-forward network.

use super::config::Result;
use super::decoder::{Decoder, Rope};
use super::llama::{BUFFERS, NORMS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Op::{self, Ternary};
use super::recipes::Size::{Any, FeedForward, Hidden, Keys as KeyRows, Queries};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_tokenizer::VocabKind;

pub(super) static BITNET: Architecture = Architecture {
    classes: &["BitnetForCausalLM", "BitNetForCausalLM"],
    name: "bitnet",
    vocabulary: VocabKind::SentencePiece,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[TENSORS, NORMS, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(activation),
    Parameter::ConstantStr("rope.scaling.type", "linear"),
    Parameter::ConstantF32("rope.scaling.factor", 1.0),
];

/// Rejects activations that llama.cpp would ignore.
fn activation(config: &Config, _: &mut Keys) -> Result<()> {
    let name = config.get("hidden_act").and_then(|name| name.as_str());
    match name {
        None | Some("silu") => Ok(()),
        Some(name) => Err(format!(
            "'hidden_act' is '{name}', and llama.cpp runs BitNet with 'silu'; there is no GGUF to make of this model"
        )),
    }
}

const TERNARY: &[Op] = &[Ternary];

const TENSORS: &[Recipe] = &[
    Recipe::rename("model.embed_tokens", "token_embd", &[Any, Hidden]),
    Recipe::rename(
        "model.layers.{}.self_attn.inner_attn_ln",
        "blk.{}.attn_sub_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.ffn_layernorm",
        "blk.{}.ffn_sub_norm",
        &[FeedForward],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.q_proj.weight",
        "blk.{}.attn_q.weight",
        &[Queries, Hidden],
        TERNARY,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.k_proj.weight",
        "blk.{}.attn_k.weight",
        &[KeyRows, Hidden],
        TERNARY,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.v_proj.weight",
        "blk.{}.attn_v.weight",
        &[KeyRows, Hidden],
        TERNARY,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.o_proj.weight",
        "blk.{}.attn_output.weight",
        &[Hidden, Queries],
        TERNARY,
    ),
    Recipe::with(
        "model.layers.{}.mlp.gate_proj.weight",
        "blk.{}.ffn_gate.weight",
        &[FeedForward, Hidden],
        TERNARY,
    ),
    Recipe::with(
        "model.layers.{}.mlp.up_proj.weight",
        "blk.{}.ffn_up.weight",
        &[FeedForward, Hidden],
        TERNARY,
    ),
    Recipe::with(
        "model.layers.{}.mlp.down_proj.weight",
        "blk.{}.ffn_down.weight",
        &[Hidden, FeedForward],
        TERNARY,
    ),
];
