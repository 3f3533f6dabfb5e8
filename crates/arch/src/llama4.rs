//! Llama 4: chunked attention in three of four layers, no RoPE in the others; experts with weighted
//! inputs in every layer or every n-th one.

use super::config::{Config, Result};
use super::decoder::Gating;
use super::decoder::{Decoder, Ranking, Router, Setting, Tempering, UnitHeads, Unrotated, Window};
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, OWN_PARAMETERS, PLAIN_ATTENTION, rope_factors};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{Any, Experts, Field, Hidden};
use super::recipes::{Input, Op, Output, Recipe, Size};
use super::{Architecture, Keys, Parameter};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// Tokens per chunk, whatever the config says: llama.cpp supports no other size.
const PART: u32 = 8192;

pub(super) static LLAMA4: Architecture = Architecture {
    classes: &["Llama4ForCausalLM", "Llama4ForConditionalGeneration"],
    name: "llama4",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, OWN_PARAMETERS, PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, PLAIN_ATTENTION, FFN, EXPERTS, BUFFERS],
    generated: rope_factors,
    decoder: Decoder {
        window: Window::Chunks(PART),
        unrotated: Unrotated::EveryOrLast(4),
        unit_heads: UnitHeads::RotatedUnless(128),
        tempering: Tempering::Unrotated {
            strength: 0.1,
            period: PART,
        },
        router: Router {
            gating: Setting::Always(Gating::Sigmoid),
            normalized: Setting::Always(false),
            ranking: Ranking::Scores,
            weighs_inputs: true,
        },
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    // `intermediate_size` is the experts' size.
    Parameter::U32("feed_forward_length", &["intermediate_size_mlp"]),
    Parameter::U32("interleave_moe_layer_step", &["interleave_moe_layer_step"]),
    Parameter::U32("expert_feed_forward_length", &["intermediate_size"]),
    Parameter::Computed(windows),
];

/// Sets the key of models with full attention in all layers.
fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let kinds = config.get("layer_types").and_then(|kinds| kinds.as_array());
    if kinds.is_some_and(|kinds| kinds.iter().all(|kind| kind == "full_attention")) {
        keys.set("attention.sliding_window", Value::U32(0));
    }
    Ok(())
}

const WIDTH: Size = Field(&["intermediate_size_mlp"]);
const OF_EXPERT: Size = Field(&["intermediate_size"]);
const HALVES: &[Size] = &[OF_EXPERT, OF_EXPERT];

const FFN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.feed_forward.gate_proj",
        "blk.{}.ffn_gate",
        &[WIDTH, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.up_proj",
        "blk.{}.ffn_up",
        &[WIDTH, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, WIDTH],
    ),
];

/// Experts are stored transposed.
const EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.feed_forward.router.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
    ),
    Recipe::with(
        "model.layers.{}.feed_forward.experts.down_proj",
        "blk.{}.ffn_down_exps.weight",
        &[Experts, OF_EXPERT, Hidden],
        &[Op::Transpose],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.feed_forward.experts.gate_up_proj",
            &[Experts, Hidden, Any],
        )],
        &[
            Output::new(
                "blk.{}.ffn_gate_exps.weight",
                &[Op::part(2, HALVES, 0), Op::Transpose],
            ),
            Output::new(
                "blk.{}.ffn_up_exps.weight",
                &[Op::part(2, HALVES, 1), Op::Transpose],
            ),
        ],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.shared_expert.gate_proj",
        "blk.{}.ffn_gate_shexp",
        &[OF_EXPERT, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.shared_expert.up_proj",
        "blk.{}.ffn_up_shexp",
        &[OF_EXPERT, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.shared_expert.down_proj",
        "blk.{}.ffn_down_shexp",
        &[Hidden, OF_EXPERT],
    ),
];
