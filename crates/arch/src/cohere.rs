//! Command-R, R7B and North: parallel attention and feed-forward network, norms without biases.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{Decoder, Layout, Listed, Needs, Norm, Router, Unrotated, Window};
use super::experts::{DENSE_FFN, SHARED_EXPERTS};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, PLAIN_ATTENTION};
use super::nextn::{NEXTN, PREDICT_LAYERS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags};
use super::qwen::EXPERTS;
use super::recipes::Size::{Any, Head, Hidden, KeyHeads, QueryHeads};
use super::recipes::When;
use super::{Architecture, Keys, Parameter, Recipe, nothing_generated};
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
        // Full-attention layers have no positions.
        unrotated: Unrotated::Unwindowed,
        ..COMMAND_R.decoder
    },
    ..COMMAND_R
};

/// North: experts after dense layers, the mean of routed and shared experts, multi-token prediction
/// blocks.
pub(super) static COHERE2_MOE: Architecture = Architecture {
    classes: &["Cohere2MoeForCausalLM"],
    name: "cohere2moe",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        MOE_PARAMETERS,
        PREDICT_LAYERS,
        &[
            Parameter::U32("rope.dimension_count", &["head_dim"]),
            UNSCALED,
        ],
    ],
    tensors: &[
        EMBEDDINGS,
        NORM,
        PLAIN_ATTENTION,
        DENSE_FFN,
        EXPERTS,
        SHARED_EXPERTS,
        NEXTN,
        BUFFERS,
    ],
    decoder: Decoder {
        norm_by_epsilon: true,
        router: Router::LISTED,
        shared_scale: 0.5,
        window: Window::Listed(Listed {
            stretched: true,
            first: true,
            ..Listed::THREE_OF_FOUR
        }),
        unrotated: Unrotated::UnwindowedBehindDense,
        drafts: true,
        needs: Needs {
            optional: &["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
            ..Needs::WEIGHTS
        },
        ..COMMAND_R.decoder
    },
    ..COMMAND_R
};

const MOE_PARAMETERS: &[Parameter] = &[
    Parameter::F32("logit_scale", &["logit_scale"]),
    Parameter::U32("attention.sliding_window", &["sliding_window"]),
    Parameter::Computed(|config, keys| {
        let flags = config.sliding_layers();
        let flags = flags.ok_or("field 'layer_types' is missing")?;
        set_flags(keys, "attention.sliding_window_pattern", flags);
        Ok(())
    }),
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::U32("expert_feed_forward_length", &["intermediate_size"]),
    Parameter::Computed(|config, keys| {
        let kinds = config
            .get("mlp_layer_types")
            .and_then(|kinds| kinds.as_array());
        let dense = match kinds {
            Some(kinds) => kinds.iter().take_while(|kind| **kind == "dense").count() as u32,
            None => config
                .optional_u32(&["first_k_dense_replace"])?
                .unwrap_or(0),
        };
        keys.set("leading_dense_block_count", Value::U32(dense));
        let normalized = config
            .get("norm_topk_prob")
            .is_some_and(|norm| *norm == true);
        keys.set("expert_weights_norm", Value::Bool(normalized));
        Ok(())
    }),
    Parameter::Computed(shared),
];

fn shared(config: &Config, keys: &mut Keys) -> Result<()> {
    let Some(count @ 1..) = config.optional_u32(&["num_shared_experts"])? else {
        return Ok(());
    };
    const FIELD: &str = "shared_expert_combination_strategy";
    if let Some(way) = config.get(FIELD).filter(|way| **way != "average") {
        return Err(wrong_kind(FIELD, way, "'average'"));
    }
    let width = config.u32(&["intermediate_size"])?.checked_mul(count);
    let width = width.ok_or("the shared experts are wider than 32 bits say")?;
    keys.set("expert_shared_count", Value::U32(count));
    keys.set("expert_shared_feed_forward_length", Value::U32(width));
    Ok(())
}

const NORM: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
];

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
    // The models support longer contexts than their config has.
    Parameter::U32(
        "context_length",
        &["model_max_length", "max_position_embeddings"],
    ),
    Parameter::F32("logit_scale", &["logit_scale"]),
    UNSCALED,
];

/// Norms with separate weights per head, in the largest models.
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
