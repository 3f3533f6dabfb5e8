//! Command-R: attention and feed-forward network side by side, norms without biases.

use super::decoder::{Decoder, Layout, Norm};
use super::llama::{BUFFERS, GATED_FFN, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{Any, Hidden};
use super::{Architecture, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static COMMAND_R: Architecture = Architecture {
    classes: &["CohereForCausalLM"],
    name: "command-r",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[TENSORS, PLAIN_ATTENTION, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        layout: Layout::Parallel,
        multiplied_logits: true,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    // The models know longer contexts than their config says.
    Parameter::U32(
        "context_length",
        &["model_max_length", "max_position_embeddings"],
    ),
    Parameter::F32("logit_scale", &["logit_scale"]),
    Parameter::Computed(|_, keys| {
        keys.set("rope.scaling.type", Value::str("none"));
        Ok(())
    }),
];

const TENSORS: &[Recipe] = &[
    Recipe::rename("model.embed_tokens", "token_embd", &[Any, Hidden]),
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
];
