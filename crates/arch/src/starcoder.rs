//! StarCoder: norms with biases, and a feed-forward network without a gate. The first one is GPT-2
//! with one head of keys and values, and matrices stored by rows. CodeShell is built like it.

use super::decoder::{Activation, Decoder, Norm, Rope};
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{Any, FeedForward, Hidden};
use super::{Architecture, Parameter, Recipe, gpt2, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static STARCODER: Architecture = Architecture {
    classes: &["GPTBigCodeForCausalLM"],
    name: "starcoder",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[PARAMETERS],
    tensors: &[GPT_TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::None,
        activation: Activation::Gelu,
        ..Decoder::LLAMA
    },
};

/// CodeShell: the same with RoPE and more heads of keys and values.
pub(super) static CODESHELL: Architecture = Architecture {
    classes: &["CodeShellForCausalLM"],
    name: "codeshell",
    parameters: &[CODESHELL_PARAMETERS],
    decoder: Decoder {
        rope: Rope::Halves,
        ..STARCODER.decoder
    },
    ..STARCODER
};

const CODESHELL_PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", &["n_positions"]),
    Parameter::U32("embedding_length", &["n_embd"]),
    Parameter::Computed(gpt2::feed_forward),
    Parameter::Layers,
    Parameter::U32("attention.head_count", &["n_head"]),
    Parameter::U32("attention.head_count_kv", &["num_query_groups"]),
    Parameter::F32("attention.layer_norm_epsilon", &["layer_norm_epsilon"]),
    Parameter::FileType,
    Parameter::ConstantF32("rope.freq_base", 10_000.0),
    Parameter::Computed(|_, keys| {
        keys.set("rope.scaling.type", Value::str("linear"));
        Ok(())
    }),
    Parameter::ConstantF32("rope.scaling.factor", 1.0),
];

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", &["n_positions"]),
    Parameter::U32("embedding_length", &["n_embd"]),
    Parameter::Computed(gpt2::feed_forward),
    Parameter::Layers,
    Parameter::U32("attention.head_count", &["n_head"]),
    Parameter::Computed(|_, keys| {
        keys.set("attention.head_count_kv", Value::U32(1));
        Ok(())
    }),
    Parameter::F32("attention.layer_norm_epsilon", &["layer_norm_epsilon"]),
    Parameter::FileType,
];

const GPT_TENSORS: &[Recipe] = &[
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
    Recipe::skip("transformer.h.{}.attn.bias"),
    Recipe::skip("transformer.h.{}.attn.masked_bias"),
];

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
