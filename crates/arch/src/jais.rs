//! Jais: GPT-2 with a gate and ALiBi, whose slopes are a tensor. Jais 2: layer norms, RoPE, squared
//! ReLU.

use super::config::Result;
use super::decoder::{Activation, Alibi, Decoder, Needs, Norm, Rope, ScoreDivisor};
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION, PLAIN_FFN};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, ROPE_DIMENSIONS};
use super::recipes::Op;
use super::recipes::Op::Transpose;
use super::recipes::Size::{Any, Hidden};
use super::{Architecture, Config, Parameter, Recipe, gpt2, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// For models without a tensor of slopes.
const MAX_ALIBI_BIAS: f32 = 8.0;

pub(super) static JAIS: Architecture = Architecture {
    classes: &["JAISLMHeadModel"],
    name: "jais",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[PARAMETERS],
    tensors: &[TENSORS, gpt2::BY_COLUMNS, gpt2::BY_ROWS],
    generated: |_, keys| {
        keys.set("attention.max_alibi_bias", Value::F32(MAX_ALIBI_BIAS));
        Ok(Vec::new())
    },
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::None,
        alibi: Alibi::Listed,
        needs: Needs {
            optional: &["position_embd"],
            own_output: true,
            ..Needs::ALL_BIASES
        },
        score_divisor: ScoreDivisor::Length,
        ..Decoder::LLAMA
    },
};

pub(super) static JAIS2: Architecture = Architecture {
    classes: &["Jais2ForCausalLM"],
    name: "jais2",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, &[ROPE_DIMENSIONS]],
    tensors: &[EMBEDDINGS, NORMS, PLAIN_ATTENTION, PLAIN_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::Halves,
        activation: Activation::SquaredRelu,
        needs: Needs::BIASES,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::Layers,
    Parameter::U32("context_length", &["n_positions"]),
    Parameter::U32("embedding_length", &["n_embd"]),
    Parameter::U32("feed_forward_length", &["n_inner"]),
    Parameter::U32("attention.head_count", &["n_head"]),
    Parameter::F32("attention.layer_norm_epsilon", &["layer_norm_epsilon"]),
    Parameter::FileType,
];

/// Factor of embeddings.
fn embedding_scale(config: &Config) -> Result<f64> {
    config.f64(&["mup_embeddings_scale", "embeddings_scale"])
}

/// Factor of logits.
fn width_scale(config: &Config) -> Result<f64> {
    match config.optional_f64(&["mup_output_alpha"])? {
        Some(alpha) => Ok(alpha * config.f64(&["mup_width_scale"])?),
        None => config.f64(&["width_scale"]),
    }
}

/// The maximum ALiBi bias, from the first slope.
fn max_alibi_bias(config: &Config, slopes: &[f32]) -> Result<f32> {
    let heads = config.u32(&["n_head"])?.max(1);
    let regular = f64::from(1u32 << heads.ilog2());
    let first = slopes.first().ok_or("the tensor of slopes is empty")?;
    // Python rounds half to even.
    Ok(-(f64::from(*first).log2() * regular).round_ties_even() as f32)
}

const TENSORS: &[Recipe] = &[
    Recipe::with(
        "transformer.wte",
        "token_embd",
        &[Any, Hidden],
        &[Op::Scale(embedding_scale)],
    ),
    Recipe::with(
        "lm_head",
        "output",
        &[Any, Hidden],
        &[Op::Scale(width_scale)],
    ),
    Recipe::to_key(
        "transformer.relative_pe.slopes",
        "{}.attention.max_alibi_bias",
        max_alibi_bias,
    ),
    Recipe::with(
        "transformer.h.{}.mlp.c_fc2.weight",
        "blk.{}.ffn_gate.weight",
        &[Any, Any],
        &[Transpose],
    ),
    Recipe::rename(
        "transformer.h.{}.mlp.c_fc2.bias",
        "blk.{}.ffn_gate.bias",
        &[Any],
    ),
];
