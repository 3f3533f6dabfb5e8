//! GroveMoE: Qwen 3 with experts, and smaller ones shared by groups of experts.

use super::config::{Config, Result};
use super::decoder::{Decoder, Ranking, Rope, Router};
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::qwen::{EXPERTS, HEAD_NORMS};
use super::recipes::Size::{Any, Computed, Experts, Hidden};
use super::recipes::{Input, Op, Output, Recipe};
use super::{Architecture, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// Experts per smaller expert, fixed in the model's code.
const SHARING: u32 = 2;
/// Factor of the smaller experts' output, fixed in the model's code.
const SCALE: f32 = 0.05;
/// Default of the smaller experts' size, without a head length in the config.
const WIDTH: u32 = 128;

pub(super) static GROVE_MOE: Architecture = Architecture {
    classes: &[
        "GroveMoeForCausalLM",
        "modeling_grove_moe.GroveMoeForCausalLM",
    ],
    name: "grovemoe",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        SMALLER,
        EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        router: Router {
            ranking: Ranking::Sigmoid,
            ..Router::SOFTMAX
        },
        adjugates: true,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::OptionalU32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::Computed(|config, keys| {
        let width = config.optional_u32(&["head_dim"])?;
        let width = width.filter(|width| *width > 0).unwrap_or(WIDTH);
        keys.set("expert_chunk_feed_forward_length", Value::U32(width));
        Ok(())
    }),
    Parameter::ConstantU32("experts_per_group", SHARING),
    Parameter::ConstantF32("expert_group_scale", SCALE),
];

fn count(config: &Config) -> Result<u64> {
    Ok(Experts.required(config)? / u64::from(SHARING))
}

const STACKED: &[Op] = &[Op::Stack(Computed(count))];

const SMALLER: &[Recipe] = &[
    // Unused, even in the model's code.
    Recipe::skip("model.layers.{}.mlp.expert_bias"),
    Recipe::skip("model.layers.{}.mlp.gate.expert_bias"),
    Recipe::new(
        &[
            Input::new(
                "model.layers.{}.mlp.chunk_experts.{}.down_proj.weight",
                &[Hidden, Any],
            ),
            Input::new(
                "model.layers.{}.mlp.chunk_experts.{}.gate_proj.weight",
                &[Any, Hidden],
            ),
            Input::new(
                "model.layers.{}.mlp.chunk_experts.{}.up_proj.weight",
                &[Any, Hidden],
            ),
        ],
        &[
            Output::of(&[0], "blk.{}.ffn_down_chexps.weight", STACKED),
            Output::of(&[1], "blk.{}.ffn_gate_chexps.weight", STACKED),
            Output::of(&[2], "blk.{}.ffn_up_chexps.weight", STACKED),
        ],
    ),
];
