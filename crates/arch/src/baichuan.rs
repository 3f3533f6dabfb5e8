//! Baichuan: Llama with fused queries, keys and values; the model with 40 layers has ALiBi instead
//! of RoPE. XVERSE: Llama with another vocabulary.

use super::decoder::{Alibi, Decoder, Needs, Unrotated};
use super::llama::{ATTENTION, BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::olmo::WEIGHTS_INTERLEAVED;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, SHARED_ROPE_DIMENSIONS};
use super::recipes::Op::{self, Interleave, Reshape, Squeeze};
use super::recipes::Size::{self, Any, Hidden, KeyHeads, Number, QueryHeads};
use super::recipes::{Input, Output};
use super::{Architecture, Parameter, Recipe, nothing_generated};
use quantier_tokenizer::VocabKind;

pub(super) static BAICHUAN: Architecture = Architecture {
    classes: &["BaichuanForCausalLM", "BaiChuanForCausalLM"],
    name: "baichuan",
    vocabulary: VocabKind::SentencePiece,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, FUSED, ATTENTION, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        needs: Needs::OWN_OUTPUT,
        unrotated: Unrotated::Unless(32),
        alibi: Alibi::InModelsOf {
            layers: 40,
            bias: 8.0,
        },
        ..Decoder::LLAMA
    },
};

pub(super) static XVERSE: Architecture = Architecture {
    classes: &["XverseForCausalLM"],
    name: "xverse",
    vocabulary: VocabKind::Xverse,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        WEIGHTS_INTERLEAVED,
        PLAIN_ATTENTION,
        GATED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::ConstantStr("tensor_data_layout", "Meta AI original pth"),
    SHARED_ROPE_DIMENSIONS,
];

const THIRDS: Op = Reshape(&[Number(3), Any, Hidden]);
const EACH: &[Size] = &[Number(1), Number(1), Number(1)];

const FUSED: &[Recipe] = &[Recipe::new(
    &[Input::new(
        "model.layers.{}.self_attn.W_pack.weight",
        &[Any, Hidden],
    )],
    &[
        Output::new(
            "blk.{}.attn_q.weight",
            &[
                THIRDS,
                Op::part(0, EACH, 0),
                Squeeze(0),
                Interleave(QueryHeads),
            ],
        ),
        Output::new(
            "blk.{}.attn_k.weight",
            &[
                THIRDS,
                Op::part(0, EACH, 1),
                Squeeze(0),
                Interleave(KeyHeads),
            ],
        ),
        Output::new(
            "blk.{}.attn_v.weight",
            &[THIRDS, Op::part(0, EACH, 2), Squeeze(0)],
        ),
    ],
)];
