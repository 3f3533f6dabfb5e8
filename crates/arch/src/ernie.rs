//! ERNIE 4.5: Llama with another prefix of names and optionally fused matrices; dense and with
//! experts.

use super::decoder::{Decoder, Needs, Rope, Sections};
use super::experts::{GATE_UP_DOWN, ROUTER, SHARED_EXPERTS};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{Any, FeedForward, Hidden, Keys, Queries};
use super::recipes::{Input, Op, Output, Recipe, Size};
use super::{Architecture, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static ERNIE4_5: Architecture = Architecture {
    classes: &["Ernie4_5_ForCausalLM", "Ernie4_5ForCausalLM"],
    name: "ernie4_5",
    vocabulary: VocabKind::Ernie,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        GATED_FFN,
        FUSED,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder::LLAMA,
};

/// The text model of PaddleOCR-VL.
pub(super) static PADDLEOCR: Architecture = Architecture {
    classes: &["PaddleOCRVLForConditionalGeneration"],
    name: "paddleocr",
    decoder: Decoder {
        rope: Rope::Halves,
        sections: Sections::Consecutive,
        ..Decoder::LLAMA
    },
    ..ERNIE4_5
};

/// Mixtures of experts after dense layers.
pub(super) static ERNIE4_5_MOE: Architecture = Architecture {
    classes: &["Ernie4_5_MoeForCausalLM"],
    name: "ernie4_5-moe",
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, EXPERT_PARAMETERS],
    tensors: &[
        FURTHER_TOKENS,
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        GATED_FFN,
        ROUTER,
        EXPERT_BIAS,
        GATE_UP_DOWN,
        SHARED_EXPERTS,
        BUFFERS,
    ],
    decoder: Decoder {
        needs: Needs {
            optional: &[
                "exp_probs_b",
                "ffn_gate_shexp",
                "ffn_up_shexp",
                "ffn_down_shexp",
            ],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
    ..ERNIE4_5
};

const EXPERT_PARAMETERS: &[Parameter] = &[
    Parameter::U32("expert_count", &["moe_num_experts"]),
    Parameter::U32("expert_used_count", &["moe_k"]),
    Parameter::U32("interleave_moe_layer_step", &["moe_layer_interval"]),
    Parameter::U32("leading_dense_block_count", &["moe_layer_start_index"]),
    Parameter::OptionalU32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::OptionalU32("expert_shared_count", &["moe_num_shared_experts"]),
    Parameter::Computed(|config, keys| {
        let count = config.optional_u32(&["moe_num_shared_experts"])?;
        let (width, heads) = (
            config.optional_u32(&["intermediate_size"])?,
            config.optional_u32(&["num_key_value_heads"])?,
        );
        if let (Some(1..), Some(width), Some(heads)) = (count, width, heads) {
            // As in the reference: not the size of the shared experts, except by chance.
            let width = width.checked_div(heads);
            let width = width.ok_or("field 'num_key_value_heads' is 0")?;
            keys.set("expert_shared_feed_forward_length", Value::U32(width));
        }
        Ok(())
    }),
];

/// Multi-token prediction blocks, unsupported by llama.cpp.
const FURTHER_TOKENS: &[Recipe] = &[Recipe::leave_out(
    "model.mtp_*",
    "the block for multi-token prediction",
)];

const EXPERT_BIAS: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.mlp.moe_statics.e_score_correction.bias",
    "blk.{}.exp_probs_b.bias",
    &[],
)];

const HEADS: &[Size] = &[Queries, Keys, Keys];
const HALVES: &[Size] = &[FeedForward, FeedForward];

const FUSED: &[Recipe] = &[
    Recipe::new(
        &[Input::new(
            "model.layers.{}.self_attn.qkv_proj.weight",
            &[Any, Hidden],
        )],
        &[
            Output::new("blk.{}.attn_q.weight", &[Op::part(0, HEADS, 0)]),
            Output::new("blk.{}.attn_k.weight", &[Op::part(0, HEADS, 1)]),
            Output::new("blk.{}.attn_v.weight", &[Op::part(0, HEADS, 2)]),
        ],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.mlp.up_gate_proj.weight",
            &[Any, Hidden],
        )],
        &[
            Output::new("blk.{}.ffn_gate.weight", &[Op::part(0, HALVES, 0)]),
            Output::new("blk.{}.ffn_up.weight", &[Op::part(0, HALVES, 1)]),
        ],
    ),
];
