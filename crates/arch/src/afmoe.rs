//! Arcee's Trinity (AFMoE): gated attention, pre- and post-norms, sliding windows in three of four
//! layers, RoPE in these only.

use super::decoder::{Decoder, Listed, Needs, Rope, Router, Unrotated, Window};
use super::experts::{GATE_UP_DOWN, SHARED_EXPERTS};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, OWN_PARAMETERS, PLAIN_ATTENTION, rope_factors};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::qwen::HEAD_NORMS;
use super::recipes::Size::{Any, Experts, Hidden};
use super::{Architecture, Parameter, Recipe};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static AFMOE: Architecture = Architecture {
    classes: &["AfmoeForCausalLM"],
    name: "afmoe",
    vocabulary: VocabKind::Llama,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, OWN_PARAMETERS, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        LAYER_NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATE_AND_ROUTER,
        GATED_FFN,
        GATE_UP_DOWN,
        SHARED_EXPERTS,
        BUFFERS,
    ],
    generated: rope_factors,
    decoder: Decoder {
        rope: Rope::Halves,
        scaled_embeddings: true,
        router: Router::LISTED,
        window: Window::Listed(Listed {
            stretched: true,
            ..Listed::THREE_OF_FOUR
        }),
        unrotated: Unrotated::Every(4),
        needs: Needs {
            optional: &["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
            biases: &["exp_probs_b"],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::OptionalU32("expert_shared_count", &["num_shared_experts"]),
    Parameter::OptionalU32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::OptionalU32("leading_dense_block_count", &["num_dense_layers"]),
    Parameter::Computed(|config, keys| {
        if let Some(normalized) = config.get("route_norm") {
            keys.set("expert_weights_norm", Value::Bool(*normalized == true));
        }
        Ok(())
    }),
    Parameter::OptionalF32("expert_weights_scale", &["route_scale"]),
    Parameter::OptionalU32("attention.sliding_window", &["sliding_window"]),
];

const LAYER_NORMS: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.post_attention_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.pre_mlp_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_mlp_layernorm",
        "blk.{}.post_ffw_norm",
        &[Hidden],
    ),
];

const GATE_AND_ROUTER: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.gate_proj",
        "blk.{}.attn_gate",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.router.gate.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.expert_bias",
        "blk.{}.exp_probs_b.bias",
        &[Experts],
    ),
];
