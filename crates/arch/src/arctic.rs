//! Snowflake Arctic: experts that read a layer's input, in parallel with attention and a dense
//! feed-forward network.

use super::decoder::{Decoder, Dense};
use super::llama::{ATTENTION, BUFFERS, EMBEDDINGS, MIXTRAL_EXPERTS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, SHARED_ROPE_DIMENSIONS};
use super::recipes::Recipe;
use super::recipes::Size::Hidden;
use super::{Architecture, Parameter, nothing_generated};
use quantier_tokenizer::VocabKind;

pub(super) static ARCTIC: Architecture = Architecture {
    classes: &["ArcticForCausalLM"],
    name: "arctic",
    vocabulary: VocabKind::Arctic,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[EMBEDDINGS, LAYERS, ATTENTION, MIXTRAL_EXPERTS, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        dense: Dense::Behind,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    SHARED_ROPE_DIMENSIONS,
];

/// Norms, and the dense feed-forward networks, as wide as the stream.
const LAYERS: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.residual_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm_exps",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.residual_mlp.w1",
        "blk.{}.ffn_gate",
        &[Hidden, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.residual_mlp.w2",
        "blk.{}.ffn_down",
        &[Hidden, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.residual_mlp.w3",
        "blk.{}.ffn_up",
        &[Hidden, Hidden],
    ),
];
