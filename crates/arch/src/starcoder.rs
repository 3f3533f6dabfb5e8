//! StarCoder: norms with biases, and a feed-forward network without a gate. The first version is
//! GPT-2 with one KV head and untransposed matrices. CodeShell is a relative.

use super::decoder::{Activation, Decoder, Needs, Norm, Rope};
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{FeedForward, Hidden};
use super::{Architecture, Parameter, Recipe, gpt2, nothing_generated};
use quantier_tokenizer::VocabKind;

pub(super) static STARCODER: Architecture = Architecture {
    classes: &["GPTBigCodeForCausalLM"],
    name: "starcoder",
    parameters: &[
        SIZES,
        &[Parameter::ConstantU32("attention.head_count_kv", 1)],
        EPSILON,
        FILE_TYPE,
    ],
    tensors: &[gpt2::BY_ROWS],
    ..gpt2::GPT2
};

/// CodeShell: StarCoder with RoPE and more KV heads.
pub(super) static CODESHELL: Architecture = Architecture {
    classes: &["CodeShellForCausalLM"],
    name: "codeshell",
    parameters: &[
        SIZES,
        &[Parameter::U32(
            "attention.head_count_kv",
            &["num_query_groups"],
        )],
        EPSILON,
        FILE_TYPE,
        ROPE,
    ],
    tensors: &[gpt2::BY_ROWS],
    decoder: Decoder {
        rope: Rope::Halves,
        needs: Needs {
            // Without the embeddings, llama.cpp uses the output matrix in their place.
            optional: &["token_embd", "position_embd"],
            own_output: true,
            ..Needs::BIASES
        },
        ..gpt2::GPT2.decoder
    },
    ..gpt2::GPT2
};

const SIZES: &[Parameter] = &[
    Parameter::U32("context_length", &["n_positions"]),
    Parameter::U32("embedding_length", &["n_embd"]),
    Parameter::Computed(gpt2::feed_forward),
    Parameter::Layers,
    Parameter::U32("attention.head_count", &["n_head"]),
];

const EPSILON: &[Parameter] = &[Parameter::F32(
    "attention.layer_norm_epsilon",
    &["layer_norm_epsilon"],
)];

const ROPE: &[Parameter] = &[
    Parameter::ConstantF32("rope.freq_base", 10_000.0),
    Parameter::ConstantStr("rope.scaling.type", "linear"),
    Parameter::ConstantF32("rope.scaling.factor", 1.0),
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
        needs: Needs::BIASES,
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
