//! Muse Glimmer: normalized embeddings, gated attention, RoPE only in windowed layers, post-norms.

use super::config::Result;
use super::decoder::{Cap, Decoder, Listed, Needs, Scales, Unrotated, Window};
use super::llama::{ATTENTION, BUFFERS, EMBEDDINGS, GATED_FFN};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags};
use super::recipes::Op::{self, AddOne, Interleave};
use super::recipes::Size::{Any, Head, Hidden, Queries, QueryHeads};
use super::recipes::{Input, Output};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_tokenizer::VocabKind;

pub(super) static MUSE_GLIMMER: Architecture = Architecture {
    classes: &["MuseGlimmerForConditionalGeneration"],
    name: "muse-glimmer",
    vocabulary: VocabKind::MuseGlimmer,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[EMBEDDINGS, TENSORS, ATTENTION, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        needs: Needs::OWN_OUTPUT,
        normalized_embeddings: true,
        post_norm_epsilon: Some(1e-8),
        multiplied_logits: true,
        scales: Scales {
            logit_cap: Cap::ListedOr(30.0),
            ..Scales::NONE
        },
        window: Window::Listed(Listed::THREE_OF_FOUR),
        unrotated: Unrotated::Unwindowed,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::F32("final_logit_softcapping", &["final_logit_softcapping"]),
    Parameter::F32("logit_scale", &["output_multiplier"]),
    Parameter::U32("attention.sliding_window", &["sliding_window"]),
    Parameter::Computed(windows),
];

fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let flags = config
        .sliding_layers()
        .ok_or("field 'layer_types' is missing")?;
    set_flags(keys, "attention.sliding_window_pattern", flags);
    Ok(())
}

const PLUS_ONE: &[Op] = &[AddOne];

/// Factor of queries: QK norms have no other weights.
fn query_scale(config: &Config) -> Result<f64> {
    config.f64(&["qk_scale_factor"])
}

const TENSORS: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::with(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.post_attention_norm",
        &[Hidden],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.{}.pre_feedforward_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.{}.post_feedforward_layernorm",
        "blk.{}.post_ffw_norm",
        &[Hidden],
        PLUS_ONE,
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.gate_proj",
        "blk.{}.attn_gate",
        &[Any, Hidden],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.self_attn.q_proj.weight",
            &[Queries, Hidden],
        )],
        &[
            Output::of(
                &[],
                "blk.{}.attn_q_norm.weight",
                &[Op::Fill {
                    len: Head,
                    value: query_scale,
                }],
            ),
            Output::of(
                &[],
                "blk.{}.attn_k_norm.weight",
                &[Op::Fill {
                    len: Head,
                    value: |_| Ok(1.0),
                }],
            ),
            Output::new("blk.{}.attn_q.weight", &[Interleave(QueryHeads)]),
        ],
    ),
];
