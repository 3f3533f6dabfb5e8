//! StarCoder 2: norms with biases, and a feed-forward network without a gate.

use super::decoder::{Activation, Decoder, Norm, Rope};
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{FeedForward, Hidden};
use super::{Architecture, Recipe, nothing_generated};
use quantier_tokenizer::VocabKind;

pub(super) static STARCODER2: Architecture = Architecture {
    classes: &["Starcoder2ForCausalLM"],
    name: "starcoder2",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE],
    tensors: &[EMBEDDINGS, NORMS, PLAIN_ATTENTION, FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::Halves,
        activation: Activation::Gelu,
        ..Decoder::LLAMA
    },
};

const FFN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.c_fc",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.c_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];
