//! Orion: Llama with layer norms.

use super::decoder::{Decoder, Norm, Rope};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::nemotron::NORM_BIASES;
use super::{Architecture, Parameter, nothing_generated};
use quantier_tokenizer::VocabKind;

pub(super) static ORION: Architecture = Architecture {
    classes: &["OrionForCausalLM"],
    name: "orion",
    vocabulary: VocabKind::SentencePiece,
    parameters: &[PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, PLAIN_ATTENTION, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::Halves,
        needs: NORM_BIASES,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::FileType,
    Parameter::ConstantStr("tensor_data_layout", "Meta AI original pth"),
    Parameter::U32(
        "context_length",
        &[
            "max_sequence_length",
            "max_position_embeddings",
            "model_max_length",
        ],
    ),
    Parameter::U32("embedding_length", &["hidden_size"]),
    Parameter::Layers,
    Parameter::U32("feed_forward_length", &["intermediate_size"]),
    Parameter::U32("attention.head_count", &["num_attention_heads"]),
    Parameter::U32(
        "attention.head_count_kv",
        &["num_key_value_heads", "num_attention_heads"],
    ),
    // The config names it after RMS norms.
    Parameter::F32("attention.layer_norm_epsilon", &["rms_norm_eps"]),
];
