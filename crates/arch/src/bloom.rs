//! BLOOM: layer norms, also after the embeddings, and ALiBi. Falcon has the same names, RoPE, and
//! parallel attention and feed-forward network.

use super::decoder::{Activation, Alibi, Decoder, Layout, Needs, Norm, Rope};
use super::neox::BY_HEAD;
use super::recipes::Op;
use super::recipes::Size::{Any, Field, Head, Hidden};
use super::{Architecture, Parameter, Recipe, gpt2, nothing_generated};
use quantier_tokenizer::VocabKind;

/// Fixed in the model's code, missing in its config.
const MAX_ALIBI_BIAS: f32 = 8.0;
/// Fixed in the model's code, missing in its config.
const FALCON_CONTEXT: u32 = 2048;

pub(super) static BLOOM: Architecture = Architecture {
    classes: &["BloomForCausalLM", "BloomModel"],
    name: "bloom",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[PARAMETERS],
    tensors: &[BLOOM_TENSORS, TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        alibi: Alibi::Always(MAX_ALIBI_BIAS),
        layout: Layout::Sequential("ffn_norm"),
        needs: Needs::ALL_BIASES,
        ..FALCON.decoder
    },
};

pub(super) static FALCON: Architecture = Architecture {
    classes: &["FalconForCausalLM", "RWForCausalLM"],
    name: "falcon",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[FALCON_PARAMETERS],
    tensors: &[FALCON_TENSORS, TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::Halves,
        activation: Activation::Gelu,
        layout: Layout::Parallel,
        needs: Needs {
            // Large models have a separate norm of the feed-forward network.
            optional: &["attn_norm_2"],
            biases: &["output_norm", "attn_norm"],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

const HEADS: &[&str] = &["n_head", "num_attention_heads"];

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", &["seq_length", "hidden_size", "n_embed"]),
    Parameter::U32("embedding_length", &["hidden_size", "n_embed"]),
    Parameter::Computed(gpt2::feed_forward),
    Parameter::Layers,
    Parameter::U32("attention.head_count", HEADS),
    Parameter::U32("attention.head_count_kv", HEADS),
    Parameter::F32("attention.layer_norm_epsilon", &["layer_norm_epsilon"]),
    Parameter::FileType,
];

const FALCON_PARAMETERS: &[Parameter] = &[
    Parameter::ConstantU32("context_length", FALCON_CONTEXT),
    Parameter::ConstantStr("tensor_data_layout", "jploski"),
    Parameter::U32("embedding_length", &["hidden_size"]),
    Parameter::Computed(gpt2::feed_forward),
    Parameter::Layers,
    Parameter::U32("attention.head_count", &["num_attention_heads", "n_head"]),
    Parameter::OrU32("attention.head_count_kv", KV_HEADS, 1),
    Parameter::F32("attention.layer_norm_epsilon", &["layer_norm_epsilon"]),
    Parameter::FileType,
];

const KV_HEADS: &[&str] = &["num_kv_heads", "n_head_kv"];

const TENSORS: &[Recipe] = &[
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
    Recipe::rename("transformer.word_embeddings", "token_embd", &[Any, Hidden]),
    Recipe::rename("transformer.ln_f", "output_norm", &[Hidden]),
    Recipe::rename(
        "transformer.h.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "transformer.h.{}.self_attention.dense",
        "blk.{}.attn_output",
        &[Hidden, Hidden],
    ),
    Recipe::rename(
        "transformer.h.{}.mlp.dense_h_to_4h",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "transformer.h.{}.mlp.dense_4h_to_h",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
];

const BLOOM_TENSORS: &[Recipe] = &[
    Recipe::rename(
        "transformer.word_embeddings_layernorm",
        "token_embd_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "transformer.h.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
    Recipe::with(
        "transformer.h.{}.self_attention.query_key_value",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
        BY_HEAD,
    ),
];

/// Groups of query heads with their key head and value head.
const BY_GROUP: &[Op] = &[Op::Ungroup {
    groups: Field(KV_HEADS),
    sizes: &[Any, Head, Head],
}];

const FALCON_TENSORS: &[Recipe] = &[
    Recipe::rename("transformer.h.{}.ln_mlp", "blk.{}.attn_norm", &[Hidden]),
    Recipe::rename("transformer.h.{}.ln_attn", "blk.{}.attn_norm_2", &[Hidden]),
    Recipe::with(
        "transformer.h.{}.self_attention.query_key_value",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
        BY_GROUP,
    )
    .when(super::recipes::When::Set("num_kv_heads")),
    Recipe::with(
        "transformer.h.{}.self_attention.query_key_value",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
        BY_GROUP,
    )
    .when(super::recipes::When::Set("n_head_kv")),
    // One key and value head: one group.
    Recipe::rename(
        "transformer.h.{}.self_attention.query_key_value",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
];
