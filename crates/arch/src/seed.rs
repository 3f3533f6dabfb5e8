//! Seed-OSS: Qwen 2 whose norm in front of the feed-forward network is named after attention.

use super::decoder::{Decoder, Layout, Rope};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::Hidden;
use super::{Architecture, Recipe, nothing_generated};
use quantier_tokenizer::VocabKind;

const FFN_NORM: &str = "post_attention_norm";

pub(super) static SEED_OSS: Architecture = Architecture {
    classes: &["SeedOssForCausalLM"],
    name: "seed_oss",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE],
    tensors: &[
        EMBEDDINGS,
        FFN_NORMS,
        NORMS,
        PLAIN_ATTENTION,
        GATED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        layout: Layout::Sequential(FFN_NORM),
        ..Decoder::LLAMA
    },
};

/// Replaces the name in Llama's recipes.
const FFN_NORMS: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.post_attention_layernorm",
    "blk.{}.post_attention_norm",
    &[Hidden],
)];
