//! Grok 1 and 2: norms around attention and experts, soft caps, scaled embeddings and logits; in
//! Grok 2 a dense feed-forward network beside the experts.

use super::config::{Config, Result};
use super::decoder::{Activation, Cap, Decoder, Dense, Rope, Scales, YarnKeys};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, MIXTRAL_EXPERTS, PLAIN_ATTENTION, STACKED};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{Any, Expert, Experts, Hidden, Keys as KeyRows, Queries};
use super::recipes::{Input, Output, Recipe};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static GROK: Architecture = Architecture {
    classes: &["GrokForCausalLM", "Grok1ForCausalLM"],
    name: "grok",
    vocabulary: VocabKind::Grok,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        GROK1,
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        GATED_FFN,
        MIXTRAL_EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        activation: Activation::Gelu,
        dense: Dense::Beside,
        shared_scale: std::f32::consts::FRAC_1_SQRT_2,
        multiplied_logits: true,
        yarn: YarnKeys::All,
        post_norms: [
            &["attn_output_norm"],
            &["layer_output_norm", "post_ffw_norm"],
        ],
        // Those of Grok 1.
        scales: Scales {
            embeddings: 78.383_67,
            logits: 0.577_350_26,
            scores: Some(0.088_388_35),
            score_cap: Cap::ListedOr(CAP),
            logit_cap: Cap::Listed,
            ..Scales::NONE
        },
        ..Decoder::LLAMA
    },
};

/// Soft cap of attention scores and of the router, by default.
const CAP: f32 = 30.0;

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(|config, keys| {
        // The router's cap is unused by llama.cpp.
        for name in ["attn_logit_softcapping", "router_logit_softcapping"] {
            let cap = config.optional_f64(&[name])?;
            keys.set(name, Value::F32(cap.map_or(CAP, |cap| cap as f32)));
        }
        Ok(())
    }),
    Parameter::NonzeroF32("final_logit_softcapping", &["final_logit_softcapping"]),
    Parameter::OptionalU32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::Computed(yarn),
    Parameter::Computed(|config, keys| {
        let length = config.optional_u32(&["attn_temperature_len"])?;
        if let Some(length) = length.filter(|length| *length > 0) {
            keys.set("attention.temperature_length", Value::U32(length));
        }
        let root = f64::from(config.head_len()?).sqrt();
        let scale = config.optional_f64(&["attn_output_multiplier"])?;
        let scale = scale.unwrap_or(1.0 / root) as f32;
        keys.set("attention.output_scale", Value::F32(scale));
        Ok(())
    }),
    Parameter::F32("embedding_scale", &["embedding_multiplier_scale"]),
    Parameter::F32("logit_scale", &["output_multiplier_scale"]),
];

/// YaRN, whose parameters stand at the root of config.json.
fn yarn(config: &Config, keys: &mut Keys) -> Result<()> {
    let kind = config.get("rope_type").and_then(|kind| kind.as_str());
    if !matches!(kind, Some("yarn" | "original")) {
        return Ok(());
    }
    keys.set("rope.scaling.type", Value::str("yarn"));
    let factor = config.f64(&["scaling_factor"])? as f32;
    keys.set("rope.scaling.factor", Value::F32(factor));
    let context = config.u32(&["original_max_position_embeddings"])?;
    keys.set("rope.scaling.original_context_length", Value::U32(context));
    for (key, field) in [
        ("yarn_ext_factor", "extrapolation_factor"),
        ("yarn_attn_factor", "attn_factor"),
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ] {
        let number = config.f64(&[field])? as f32;
        keys.set(&format!("rope.scaling.{key}"), Value::F32(number));
    }
    Ok(())
}

/// The norms of Grok 2, and those after the last layer.
const NORMS: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.pre_attn_norm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_attn_norm",
        "blk.{}.attn_output_norm",
        &[Hidden],
    ),
    Recipe::rename("model.layers.{}.pre_moe_norm", "blk.{}.ffn_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.post_moe_norm",
        "blk.{}.post_ffw_norm",
        &[Hidden],
    ),
];

/// Grok 1's names.
const GROK1: &[Recipe] = &[
    Recipe::rename("transformer.in_out_embed", "token_embd", &[Any, Hidden]),
    Recipe::rename("transformer.rms_norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "transformer.decoder_layer.{}.rms_norm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "transformer.decoder_layer.{}.rms_norm_1",
        "blk.{}.attn_output_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "transformer.decoder_layer.{}.rms_norm_2",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "transformer.decoder_layer.{}.rms_norm_3",
        "blk.{}.layer_output_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "transformer.decoder_layer.{}.multi_head_attention.query",
        "blk.{}.attn_q",
        &[Queries, Hidden],
    ),
    Recipe::rename(
        "transformer.decoder_layer.{}.multi_head_attention.key",
        "blk.{}.attn_k",
        &[KeyRows, Hidden],
    ),
    Recipe::rename(
        "transformer.decoder_layer.{}.multi_head_attention.value",
        "blk.{}.attn_v",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "transformer.decoder_layer.{}.multi_head_attention.linear",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "transformer.decoder_layer.{}.router.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
    ),
    Recipe::new(
        &[
            Input::new(
                "transformer.decoder_layer.{}.moe.{}.linear.weight",
                &[Expert, Hidden],
            ),
            Input::new(
                "transformer.decoder_layer.{}.moe.{}.linear_1.weight",
                &[Hidden, Expert],
            ),
            Input::new(
                "transformer.decoder_layer.{}.moe.{}.linear_v.weight",
                &[Expert, Hidden],
            ),
        ],
        &[
            Output::of(&[0], "blk.{}.ffn_gate_exps.weight", STACKED),
            Output::of(&[1], "blk.{}.ffn_down_exps.weight", STACKED),
            Output::of(&[2], "blk.{}.ffn_up_exps.weight", STACKED),
        ],
    ),
];
