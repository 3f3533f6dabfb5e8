//! OLMo, with norms without weights, and OLMo 2, with post-norms.

use super::config::Result;
use super::decoder::{Decoder, Listed, Needs, Norm, Rope, Window};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags};
use super::recipes::Op::Interleave;
use super::recipes::Size::{Hidden, KeyHeads, Keys as KeyRows, Queries, QueryHeads};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// Fixed in the model's code, missing in its config.
const OLMO_EPSILON: f32 = 1e-5;

pub(super) static OLMO: Architecture = Architecture {
    classes: &["OlmoForCausalLM", "OLMoForCausalLM"],
    name: "olmo",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, OLMO_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        WEIGHTS_INTERLEAVED,
        PLAIN_ATTENTION,
        GATED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        ..Decoder::LLAMA
    },
};

pub(super) static OLMO2: Architecture = Architecture {
    classes: &["Olmo2ForCausalLM", "Olmo3ForCausalLM"],
    name: "olmo2",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        &[Parameter::Computed(windows)],
    ],
    tensors: &[
        EMBEDDINGS,
        POST_NORMS,
        WHOLE_NORMS,
        PLAIN_ATTENTION,
        GATED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        window: Window::Listed(Listed::THREE_OF_FOUR),
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

/// OLMo 3's sliding windows: in listed layers, by default in three of four.
fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let Some(tokens) = config.optional_u32(&["sliding_window"])? else {
        return Ok(());
    };
    keys.set("attention.sliding_window", Value::U32(tokens));
    let flags = match config.sliding_layers() {
        Some(flags) => flags,
        None => (1..=config.layers()?).map(|layer| layer % 4 != 0).collect(),
    };
    set_flags(keys, "attention.sliding_window_pattern", flags);
    Ok(())
}

const OLMO_PARAMETERS: &[Parameter] = &[
    Parameter::ConstantF32("attention.layer_norm_epsilon", OLMO_EPSILON),
    Parameter::OptionalF32("attention.clamp_kqv", &["clip_qkv"]),
];

/// Precedes [`PLAIN_ATTENTION`]: only the weights are interleaved; the reference leaves biases
/// unchanged.
pub(super) const WEIGHTS_INTERLEAVED: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.q_proj.weight",
        "blk.{}.attn_q.weight",
        &[Queries, Hidden],
        &[Interleave(QueryHeads)],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.k_proj.weight",
        "blk.{}.attn_k.weight",
        &[KeyRows, Hidden],
        &[Interleave(KeyHeads)],
    ),
];

/// Post-norms without pre-norms.
pub(super) const POST_NORMS: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.post_attention_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_feedforward_layernorm",
        "blk.{}.post_ffw_norm",
        &[Hidden],
    ),
];

/// QK norms over all heads.
pub(super) const WHOLE_NORMS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_q_norm",
        &[Queries],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.k_norm",
        "blk.{}.attn_k_norm",
        &[KeyRows],
    ),
];
