//! Ling and Ring 1 and 2 (Bailing MoE): routed and shared experts; version 2 has leading dense
//! layers, and a bias in the choice of experts.

use super::bailing::{BLOCK_NORM, EMBEDDINGS, EXPERT_BIAS, NORMALIZED};
use super::config::{Config, Result, number_in};
use super::decoder::{Decoder, Needs, Rope, Router, Setting};
use super::experts::{DENSE_LAYERS, EXPERT_LENGTH, SHARED_EXPERTS};
use super::llama::{BUFFERS, GATED_FFN, NORMS};
use super::nextn::NEXTN;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, ROPE_DIMENSIONS};
use super::qwen::EXPERTS;
use super::recipes::Size::{
    Any, Experts, Head, Hidden, KeyHeads, Keys as KeyRows, Queries, QueryHeads,
};
use super::recipes::{Input, Op, Output, Recipe, Size};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static BAILING_MOE: Architecture = Architecture {
    classes: &["BailingMoeForCausalLM"],
    name: "bailingmoe",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, MOE_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        SPLIT_ATTENTION,
        EXPERTS,
        SHARED_EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        router: Router {
            normalized: Setting::Listed(false),
            ..Router::SOFTMAX
        },
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

pub(super) static BAILING_MOE2: Architecture = Architecture {
    classes: &["BailingMoeV2ForCausalLM"],
    name: "bailingmoe2",
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, MOE2_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        FUSED_ATTENTION,
        GATED_FFN,
        EXPERTS,
        EXPERT_BIAS,
        SHARED_EXPERTS,
        NEXTN,
        BLOCK_NORM,
        BUFFERS,
    ],
    decoder: Decoder {
        rope: Rope::Halves,
        router: Router::LISTED,
        needs: Needs {
            optional: &["layer_output_norm"],
            ..Needs::OWN_OUTPUT
        },
        ..Decoder::LLAMA
    },
    ..BAILING_MOE
};

/// Sarvam: heads rotated as a whole, biases of experts around 0.
pub(super) static SARVAM_MOE: Architecture = Architecture {
    classes: &[
        "SarvamMoEForCausalLM",
        "modeling_sarvam_moe.SarvamMoEForCausalLM",
    ],
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        MOE2_PARAMETERS,
        &[ROPE_DIMENSIONS],
    ],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        FUSED_ATTENTION,
        GATED_FFN,
        EXPERTS,
        CENTRED_BIAS,
        SHARED_EXPERTS,
        NEXTN,
        BLOCK_NORM,
        BUFFERS,
    ],
    ..BAILING_MOE2
};

const CENTRED_BIAS: &[Recipe] = &[Recipe::with(
    "model.layers.{}.mlp.gate.expert_bias",
    "blk.{}.exp_probs_b.bias",
    &[Experts],
    &[Op::Centre],
)];

const MOE_PARAMETERS: &[Parameter] = &[
    Parameter::Computed(|config, _| match config.get("norm_head") {
        Some(value) if *value == true => Err(
            "field 'norm_head' is true: an output matrix with normalized \
            columns cannot be converted yet"
                .into(),
        ),
        _ => Ok(()),
    }),
    ROPE_DIMENSIONS,
    DENSE_LAYERS,
    Parameter::U32("vocab_size", &["vocab_size"]),
    EXPERT_LENGTH,
    Parameter::ConstantF32("expert_weights_scale", 1.0),
    Parameter::U32("expert_shared_count", &["num_shared_experts"]),
    NORMALIZED,
];

const MOE2_PARAMETERS: &[Parameter] = &[
    Parameter::Computed(|config, keys| {
        let part = number_in(config.rope(), "partial_rotary_factor")?.unwrap_or(0.5);
        let rotated = f64::from(config.head_len()?) * part;
        keys.set("rope.dimension_count", Value::U32(rotated as u32));
        Ok(())
    }),
    DENSE_LAYERS,
    Parameter::U32("vocab_size", &["vocab_size"]),
    EXPERT_LENGTH,
    Parameter::Computed(shared_length),
    Parameter::F32("expert_weights_scale", &["routed_scaling_factor"]),
    Parameter::U32("expert_shared_count", &["num_shared_experts"]),
    NORMALIZED,
    Parameter::Computed(|config, keys| {
        if config.get("num_nextn_predict_layers").is_some() {
            keys.set("nextn_predict_layers", Value::U32(config.nextn()));
        }
        Ok(())
    }),
];

/// The total size of the shared experts.
fn shared_length(config: &Config, keys: &mut Keys) -> Result<()> {
    let length = match config.optional_u32(&["moe_shared_expert_intermediate_size"])? {
        Some(length) => length,
        None => {
            let count = config.u32(&["num_shared_experts"])?;
            let length = config.u32(&["moe_intermediate_size"])?.checked_mul(count);
            length.ok_or("the product of 'moe_intermediate_size' and 'num_shared_experts' has more than 32 bits")?
        }
    };
    keys.set("expert_shared_feed_forward_length", Value::U32(length));
    Ok(())
}

const HEADS: &[Size] = &[Queries, KeyRows, KeyRows];

const SPLIT_ATTENTION: &[Recipe] = &[
    Recipe::new(
        &[Input::new(
            "model.layers.{}.attention.query_key_value.weight",
            &[Any, Hidden],
        )],
        &[
            Output::new(
                "blk.{}.attn_q.weight",
                &[Op::part(0, HEADS, 0), Op::Interleave(QueryHeads)],
            ),
            Output::new(
                "blk.{}.attn_k.weight",
                &[Op::part(0, HEADS, 1), Op::Interleave(KeyHeads)],
            ),
            Output::new("blk.{}.attn_v.weight", &[Op::part(0, HEADS, 2)]),
        ],
    ),
    Recipe::rename(
        "model.layers.{}.attention.dense",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
];

const FUSED_ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.attention.query_key_value",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.attention.dense",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "model.layers.{}.attention.query_layernorm",
        "blk.{}.attn_q_norm",
        &[Head],
    ),
    Recipe::rename(
        "model.layers.{}.attention.key_layernorm",
        "blk.{}.attn_k_norm",
        &[Head],
    ),
];
