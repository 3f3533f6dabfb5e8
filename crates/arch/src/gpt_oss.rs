//! gpt-oss: attention sinks, a sliding window in every other layer, and experts with biases and
//! activation limits.

use super::decoder::{Activation, Decoder, Gating, Layout, Limit, Listed, Needs, Rope, Router};
use super::decoder::{Setting, Window};
use super::glm::AROUND_ATTENTION;
use super::llama::{BUFFERS, EMBEDDINGS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Op::{self, Reshape, Squeeze, Transpose};
use super::recipes::Size::{self, Any, Experts, Hidden, Number, QueryHeads};
use super::recipes::{Input, Output, Recipe};
use super::{Architecture, Parameter, nothing_generated};
use quantier_tokenizer::VocabKind;

pub(super) static GPT_OSS: Architecture = Architecture {
    classes: &["GptOssForCausalLM"],
    name: "gpt-oss",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        AROUND_ATTENTION,
        PLAIN_ATTENTION,
        SINKS,
        ROUTER,
        EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        layout: Layout::Sequential("post_attention_norm"),
        activation: Activation::QuickGelu,
        limit: Some(Limit::InFront {
            limit: 7.0,
            offset: 1.0,
        }),
        router: Router {
            gating: Setting::Always(Gating::ChosenSoftmax),
            normalized: Setting::Always(false),
            ..Router::SOFTMAX
        },
        window: Window::Listed(Listed {
            period: 2,
            stretched: true,
            ..Listed::THREE_OF_FOUR
        }),
        needs: Needs {
            biases: &[
                "attn_output",
                "ffn_gate_inp",
                "ffn_gate_exps",
                "ffn_up_exps",
                "ffn_down_exps",
            ],
            ..Needs::OWN_OUTPUT
        },
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("attention.sliding_window", &["sliding_window"]),
    Parameter::U32("expert_feed_forward_length", &["intermediate_size"]),
];

/// Sinks: a logit per head.
pub(super) const SINKS: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.self_attn.sinks",
    "blk.{}.attn_sinks.weight",
    &[QueryHeads],
)];

const ROUTER: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.mlp.router",
    "blk.{}.ffn_gate_inp",
    &[Experts, Hidden],
)];

/// The size of an expert.
const WIDTH: Size = Size::FeedForward;
const BOTH: Size = Size::Product(&[Number(2), WIDTH]);
const EACH: &[Size] = &[Number(1), Number(1)];
/// Rows of gate and up alternate.
const PAIRS_OF_ROWS: Op = Reshape(&[Experts, WIDTH, Number(2), Any]);
const PAIRS: Op = Reshape(&[Experts, WIDTH, Number(2)]);

/// Experts in 16 bits, stored transposed, and in MXFP4, stored by rows.
const EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.experts.down_proj_blocks",
        "blk.{}.ffn_down_exps.weight",
        &[Experts, Hidden, WIDTH],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.mlp.experts.gate_up_proj_blocks",
            &[Experts, BOTH, Hidden],
        )],
        &[
            Output::new(
                "blk.{}.ffn_gate_exps.weight",
                &[PAIRS_OF_ROWS, Op::part(2, EACH, 0), Squeeze(2)],
            ),
            Output::new(
                "blk.{}.ffn_up_exps.weight",
                &[PAIRS_OF_ROWS, Op::part(2, EACH, 1), Squeeze(2)],
            ),
        ],
    ),
    Recipe::with(
        "model.layers.{}.mlp.experts.down_proj",
        "blk.{}.ffn_down_exps.weight",
        &[Experts, WIDTH, Hidden],
        &[Transpose],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.experts.down_proj_bias",
        "blk.{}.ffn_down_exps.bias",
        &[Experts, Hidden],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.mlp.experts.gate_up_proj",
            &[Experts, Hidden, BOTH],
        )],
        &[
            Output::new(
                "blk.{}.ffn_gate_exps.weight",
                &[Transpose, PAIRS_OF_ROWS, Op::part(2, EACH, 0), Squeeze(2)],
            ),
            Output::new(
                "blk.{}.ffn_up_exps.weight",
                &[Transpose, PAIRS_OF_ROWS, Op::part(2, EACH, 1), Squeeze(2)],
            ),
        ],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.mlp.experts.gate_up_proj_bias",
            &[Experts, BOTH],
        )],
        &[
            Output::new(
                "blk.{}.ffn_gate_exps.bias",
                &[PAIRS, Op::part(2, EACH, 0), Squeeze(2)],
            ),
            Output::new(
                "blk.{}.ffn_up_exps.bias",
                &[PAIRS, Op::part(2, EACH, 1), Squeeze(2)],
            ),
        ],
    ),
];
