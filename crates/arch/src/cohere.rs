//! Command-R and R7B: attention and feed-forward network side by side, norms without biases.

use super::decoder::{Decoder, Layout, Norm, Unrotated, Window};
use super::llama::{BUFFERS, GATED_FFN, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{Any, Head, Hidden, KeyHeads, QueryHeads};
use super::recipes::When;
use super::{Architecture, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static COMMAND_R: Architecture = Architecture {
    classes: &["CohereForCausalLM"],
    name: "command-r",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[TENSORS, HEAD_NORMS, PLAIN_ATTENTION, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        layout: Layout::Parallel,
        multiplied_logits: true,
        ..Decoder::LLAMA
    },
};

pub(super) static COHERE2: Architecture = Architecture {
    classes: &["Cohere2ForCausalLM"],
    name: "cohere2",
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, COHERE2_PARAMETERS],
    tensors: &[TENSORS, PLAIN_ATTENTION, GATED_FFN, BUFFERS],
    decoder: Decoder {
        window: Window::Pattern {
            layers: 4,
            tokens: None,
            rope_base: None,
        },
        // The layers that see everything have no positions.
        unrotated: Unrotated::Every(4),
        ..COMMAND_R.decoder
    },
    ..COMMAND_R
};

const COHERE2_PARAMETERS: &[Parameter] = &[
    Parameter::F32("logit_scale", &["logit_scale"]),
    Parameter::U32("attention.sliding_window", &["sliding_window"]),
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(|config, keys| {
        let rotated = config.f64(&["rotary_pct"])? * f64::from(config.share_of_head()?);
        keys.set("rope.dimension_count", Value::U32(rotated as u32));
        Ok(())
    }),
    UNSCALED,
];

const UNSCALED: Parameter = Parameter::ConstantStr("rope.scaling.type", "none");

const PARAMETERS: &[Parameter] = &[
    // The models know longer contexts than their config says.
    Parameter::U32(
        "context_length",
        &["model_max_length", "max_position_embeddings"],
    ),
    Parameter::F32("logit_scale", &["logit_scale"]),
    UNSCALED,
];

/// Norms with weights of their own for each head, in the largest models.
const HEAD_NORMS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_q_norm",
        &[QueryHeads, Head],
    )
    .when(When::Deep(64)),
    Recipe::rename(
        "model.layers.{}.self_attn.k_norm",
        "blk.{}.attn_k_norm",
        &[KeyHeads, Head],
    )
    .when(When::Deep(64)),
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
