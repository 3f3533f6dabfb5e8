//! InternLM 2: fused queries, keys and values, by groups of heads.

use super::decoder::{Decoder, Needs};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Op::{self, Interleave, Reshape};
use super::recipes::Size::{self, Any, FeedForward, Head, Hidden, KeyHeads, QueryHeads};
use super::recipes::{Input, Output};
use super::{Architecture, Recipe, nothing_generated};
use quantier_tokenizer::VocabKind;

pub(super) static INTERNLM2: Architecture = Architecture {
    classes: &["InternLM2ForCausalLM"],
    name: "internlm2",
    vocabulary: VocabKind::InternLm2,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE],
    tensors: &[TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

/// A group of query heads, its key head, and its value head.
const GROUPS: Op = Reshape(&[KeyHeads, Any, Hidden]);
const PARTS: &[Size] = &[Any, Head, Head];
const FLAT: Op = Reshape(&[Any, Hidden]);

const TENSORS: &[Recipe] = &[
    Recipe::rename("model.tok_embeddings", "token_embd", &[Any, Hidden]),
    Recipe::rename("output", "output", &[Any, Hidden]),
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.attention_norm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename("model.layers.{}.ffn_norm", "blk.{}.ffn_norm", &[Hidden]),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.attention.wqkv.weight",
            &[Any, Hidden],
        )],
        &[
            Output::new(
                "blk.{}.attn_q.weight",
                &[GROUPS, Op::part(1, PARTS, 0), FLAT, Interleave(QueryHeads)],
            ),
            Output::new(
                "blk.{}.attn_k.weight",
                &[GROUPS, Op::part(1, PARTS, 1), FLAT, Interleave(KeyHeads)],
            ),
            Output::new(
                "blk.{}.attn_v.weight",
                &[GROUPS, Op::part(1, PARTS, 2), FLAT],
            ),
        ],
    ),
    Recipe::rename(
        "model.layers.{}.attention.wo",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.w1",
        "blk.{}.ffn_gate",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.w2",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.w3",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
];
