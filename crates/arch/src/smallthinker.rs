//! SmallThinker: experts chosen by a layer's input, before its attention.

use super::config::Result;
use super::decoder::{
    Activation, Decoder, Gating, Listed, Rope, Router, Setting, Unrotated, Window,
};
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{self, Field, Hidden};
use super::recipes::{Input, Op, Output, Recipe};
use super::{Architecture, Config, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static SMALLTHINKER: Architecture = Architecture {
    classes: &["SmallThinkerForCausalLM"],
    name: "smallthinker",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, PLAIN_ATTENTION, EXPERTS, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        activation: Activation::Relu,
        router: Router {
            gating: Setting::Listed(Gating::Softmax),
            ..Router::SOFTMAX
        },
        routes_first: true,
        window: Window::Listed(Listed {
            first: true,
            fixed: Some(WINDOW),
            stretched: true,
            ..Listed::THREE_OF_FOUR
        }),
        unrotated: Unrotated::FirstOf(4),
        ..Decoder::LLAMA
    },
};

/// Window in llama.cpp.
const WINDOW: u32 = 4096;

const PARAMETERS: &[Parameter] = &[
    Parameter::OptionalU32("expert_count", &["moe_num_primary_experts"]),
    Parameter::OptionalU32("expert_used_count", &["moe_num_active_primary_experts"]),
    Parameter::OptionalU32("expert_feed_forward_length", &["moe_ffn_hidden_size"]),
    Parameter::OptionalU32("feed_forward_length", &["moe_ffn_hidden_size"]),
    Parameter::Computed(gating_and_window),
];

fn gating_and_window(config: &Config, keys: &mut Keys) -> Result<()> {
    let is_set = |field: &str| {
        let value = config.get(field);
        value.is_some_and(|value| *value != false && *value != 0)
    };
    // Softmax or sigmoid.
    let gating = match is_set("moe_primary_router_apply_softmax") {
        true => 1,
        false => 2,
    };
    keys.set("expert_gating_func", Value::U32(gating));
    let layout = config.get("sliding_window_layout");
    let layout = layout.and_then(|layout| layout.as_array());
    let has_window = layout.is_some_and(|layout| layout.iter().any(|window| *window != 0));
    let tokens = config.optional_u32(&["sliding_window_size"])?;
    if let Some(tokens) = tokens.filter(|tokens| has_window && *tokens > 0) {
        keys.set("attention.sliding_window", Value::U32(tokens));
    }
    Ok(())
}

const COUNT: Size = Field(&[
    "moe_num_primary_experts",
    "num_local_experts",
    "num_experts",
]);
const WIDTH: Size = Field(&["moe_ffn_hidden_size"]);
const ALL: &[Op] = &[Op::Stack(COUNT)];

const EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.primary_router.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[COUNT, Hidden],
    ),
    Recipe::new(
        &[
            Input::new(
                "model.layers.{}.block_sparse_moe.experts.{}.down.weight",
                &[Hidden, WIDTH],
            ),
            Input::new(
                "model.layers.{}.block_sparse_moe.experts.{}.gate.weight",
                &[WIDTH, Hidden],
            ),
            Input::new(
                "model.layers.{}.block_sparse_moe.experts.{}.up.weight",
                &[WIDTH, Hidden],
            ),
        ],
        &[
            Output::of(&[0], "blk.{}.ffn_down_exps.weight", ALL),
            Output::of(&[1], "blk.{}.ffn_gate_exps.weight", ALL),
            Output::of(&[2], "blk.{}.ffn_up_exps.weight", ALL),
        ],
    ),
];
