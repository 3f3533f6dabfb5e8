//! Qwen 2 and 3, dense and with experts.

use super::decoder::{Decoder, Rope};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION, STACKED};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{Any, Expert, Experts, Head, Hidden};
use super::recipes::{Input, Output, Recipe};
use super::{Architecture, Parameter, nothing_generated};
use quantier_tokenizer::VocabKind;

const HALVES: Decoder = Decoder {
    rope: Rope::Halves,
    ..Decoder::LLAMA
};

pub(super) static QWEN2: Architecture = Architecture {
    classes: &["Qwen2ForCausalLM"],
    name: "qwen2",
    vocabulary: VocabKind::Qwen,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE],
    tensors: &[EMBEDDINGS, NORMS, PLAIN_ATTENTION, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: HALVES,
};

pub(super) static QWEN3: Architecture = Architecture {
    classes: &["Qwen3ForCausalLM"],
    name: "qwen3",
    vocabulary: VocabKind::Qwen,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: HALVES,
};

pub(super) static QWEN2_MOE: Architecture = Architecture {
    classes: &["Qwen2MoeForCausalLM"],
    name: "qwen2moe",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, EXPERT_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        EXPERTS,
        SHARED_EXPERT,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        normalized_experts: false,
        ..HALVES
    },
};

pub(super) static QWEN3_MOE: Architecture = Architecture {
    classes: &["Qwen3MoeForCausalLM"],
    name: "qwen3moe",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, EXPERT_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: HALVES,
};

const EXPERT_PARAMETERS: &[Parameter] = &[
    Parameter::OptionalU32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::OptionalU32(
        "expert_shared_feed_forward_length",
        &["shared_expert_intermediate_size"],
    ),
];

/// A norm over every head's queries and keys.
pub(super) const HEAD_NORMS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_q_norm",
        &[Head],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.k_norm",
        "blk.{}.attn_k_norm",
        &[Head],
    ),
];

const EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.gate",
        "blk.{}.ffn_gate_inp",
        &[Experts, Hidden],
    ),
    Recipe::new(
        &[
            Input::new(
                "model.layers.{}.mlp.experts.{}.down_proj.weight",
                &[Hidden, Expert],
            ),
            Input::new(
                "model.layers.{}.mlp.experts.{}.gate_proj.weight",
                &[Expert, Hidden],
            ),
            Input::new(
                "model.layers.{}.mlp.experts.{}.up_proj.weight",
                &[Expert, Hidden],
            ),
        ],
        &[
            Output::of(&[0], "blk.{}.ffn_down_exps.weight", STACKED),
            Output::of(&[1], "blk.{}.ffn_gate_exps.weight", STACKED),
            Output::of(&[2], "blk.{}.ffn_up_exps.weight", STACKED),
        ],
    ),
];

const SHARED_EXPERT: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.shared_expert_gate",
        "blk.{}.ffn_gate_inp_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.shared_expert.gate_proj",
        "blk.{}.ffn_gate_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.shared_expert.up_proj",
        "blk.{}.ffn_up_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.shared_expert.down_proj",
        "blk.{}.ffn_down_shexp",
        &[Hidden, Any],
    ),
];
