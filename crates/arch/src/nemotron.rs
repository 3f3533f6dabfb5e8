//! Nemotron 4 and Minitron: layer norms with weights stored minus 1, squared ReLU, partial RoPE.

use super::config::{Result, number_in};
use super::decoder::{Activation, Decoder, Needs, Norm, Rope};
use super::gemma::PLUS_ONE_NORMS;
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION, PLAIN_FFN};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, rotated};
use super::{Architecture, Config, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static NEMOTRON: Architecture = Architecture {
    classes: &["NemotronForCausalLM"],
    name: "nemotron",
    vocabulary: VocabKind::Nemotron,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        PLUS_ONE_NORMS,
        // Biases of norms are unchanged.
        NORMS,
        PLAIN_ATTENTION,
        PLAIN_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::Halves,
        activation: Activation::SquaredRelu,
        needs: NORM_BIASES,
        ..Decoder::LLAMA
    },
};

/// Layer norms with biases, and an untied output matrix.
pub(super) const NORM_BIASES: Needs = Needs {
    biases: &["output_norm", "attn_norm", "ffn_norm"],
    ..Needs::OWN_OUTPUT
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::F32(
        "attention.layer_norm_epsilon",
        &[
            "layer_norm_eps",
            "layer_norm_epsilon",
            "norm_epsilon",
            "norm_eps",
        ],
    ),
    Parameter::Computed(rope),
];

fn rope(config: &Config, keys: &mut Keys) -> Result<()> {
    let rope = config.rope();
    keys.set("rope.dimension_count", Value::U32(rotated(config, None)?));
    let nonzero = |factor: Option<f64>| factor.filter(|factor| *factor != 0.0);
    let factor = nonzero(config.optional_f64(&["factor"])?);
    match factor.or(number_in(rope, "factor")?) {
        None => keys.set("rope.scaling.type", Value::str("none")),
        Some(factor) => {
            keys.set("rope.scaling.type", Value::str("linear"));
            keys.set("rope.scaling.factor", Value::F32(factor as f32));
        }
    }
    Ok(())
}
