//! ERNIE 4.5: Llama whose matrices may be fused, in front of its name another prefix.

use super::decoder::{Decoder, Rope, Sections};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{Any, FeedForward, Hidden, Keys, Queries};
use super::recipes::{Input, Op, Output, Recipe, Size};
use super::{Architecture, nothing_generated};
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
