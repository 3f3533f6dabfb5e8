//! GPT-NeoX and Pythia: layer norms, fused queries, keys and values by head, parallel attention and
//! feed-forward network with separate norms.

use super::decoder::{Activation, Decoder, Layout, Needs, Norm, Rope};
use super::parameters::PARALLEL_RESIDUAL;
use super::recipes::Op;
use super::recipes::Size::{Any, Hidden, Number, QueryHeads};
use super::{Architecture, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static GPTNEOX: Architecture = Architecture {
    classes: &["GPTNeoXForCausalLM"],
    name: "gptneox",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[PARAMETERS],
    tensors: &[TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::Halves,
        activation: Activation::Gelu,
        needs: Needs {
            own_output: true,
            ..Needs::ALL_BIASES
        },
        layout: Layout::Switched,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", &["max_position_embeddings"]),
    Parameter::U32("embedding_length", &["hidden_size"]),
    Parameter::Layers,
    Parameter::U32("feed_forward_length", &["intermediate_size"]),
    Parameter::Computed(|config, keys| {
        let rotated = config.f64(&["rotary_pct"])? * f64::from(config.share_of_head()?);
        keys.set("rope.dimension_count", Value::U32(rotated as u32));
        Ok(())
    }),
    Parameter::U32("attention.head_count", &["num_attention_heads"]),
    PARALLEL_RESIDUAL,
    Parameter::F32("attention.layer_norm_epsilon", &["layer_norm_eps"]),
];

/// From a query, key and value per head to all queries, all keys and all values.
pub(super) const BY_HEAD: &[Op] = &[Op::Tile {
    axis: 0,
    groups: QueryHeads,
    members: Number(3),
}];

const TENSORS: &[Recipe] = &[
    Recipe::rename("gpt_neox.embed_in", "token_embd", &[Any, Hidden]),
    Recipe::rename("embed_out", "output", &[Any, Hidden]),
    Recipe::rename("gpt_neox.final_layer_norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "gpt_neox.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "gpt_neox.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
    Recipe::with(
        "gpt_neox.layers.{}.attention.query_key_value",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
        BY_HEAD,
    ),
    Recipe::rename(
        "gpt_neox.layers.{}.attention.dense",
        "blk.{}.attn_output",
        &[Hidden, Hidden],
    ),
    Recipe::rename(
        "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
];
