//! Qwen 2 and 3, dense and with experts.

use super::decoder::{Decoder, Needs, Rope, Router, Sections, Setting};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION, STACKED};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, POOLING};
use super::recipes::Size::{Any, Expert, Experts, Head, Hidden};
use super::recipes::{Input, Op, Output, Recipe, Size, When};
use super::{Architecture, Parameter, nothing_generated};
use quantier_gguf::gguf::{Array, Value};
use quantier_tokenizer::VocabKind;

const HALVES: Decoder = Decoder {
    rope: Rope::Halves,
    ..Decoder::LLAMA
};

const INTERLEAVED: Decoder = Decoder {
    sections: Sections::Interleaved,
    ..HALVES
};

pub(super) static QWEN2: Architecture = Architecture {
    classes: &[
        "Qwen2ForCausalLM",
        "Qwen2Model",
        "Qwen2AudioForConditionalGeneration",
        "KORMoForCausalLM",
        "AudioFlamingo3ForConditionalGeneration",
        "DotsOCRForCausalLM",
    ],
    name: "qwen2",
    vocabulary: VocabKind::Qwen,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, POOLING],
    tensors: &[EMBEDDINGS, NORMS, PLAIN_ATTENTION, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: HALVES,
};

/// The text models of Qwen 2 VL and Qwen 2.5 VL and Omni. Text has the same position in all three
/// dimensions, which equals standard RoPE.
pub(super) static QWEN2_VL: Architecture = Architecture {
    classes: &[
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2VLModel",
        "Qwen2_5OmniModel",
    ],
    name: "qwen2vl",
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE],
    decoder: Decoder {
        sections: Sections::Consecutive,
        ..HALVES
    },
    ..QWEN2
};

pub(super) static QWEN3: Architecture = Architecture {
    classes: &[
        "Qwen3ForCausalLM",
        "Qwen3Model",
        "StepVLForConditionalGeneration",
    ],
    name: "qwen3",
    vocabulary: VocabKind::Qwen,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        POOLING,
        RERANKER_PARAMETERS,
    ],
    tensors: &[
        RERANKER,
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
        router: Router {
            normalized: Setting::Always(false),
            ..Router::SOFTMAX
        },
        needs: Needs::OWN_OUTPUT,
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

/// The text models of Qwen 3 VL and Qwen 3 ASR.
pub(super) static QWEN3_VL: Architecture = Architecture {
    classes: &[
        "Qwen3VLForConditionalGeneration",
        "Qwen3ASRForConditionalGeneration",
    ],
    name: "qwen3vl",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        POOLING,
        RERANKER_PARAMETERS,
        DEEPSTACK,
    ],
    decoder: INTERLEAVED,
    ..QWEN3
};

/// The text models of Qwen 3 VL and Omni with experts.
pub(super) static QWEN3_VL_MOE: Architecture = Architecture {
    classes: &[
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3OmniMoeForConditionalGeneration",
    ],
    name: "qwen3vlmoe",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        EXPERT_PARAMETERS,
        DEEPSTACK,
    ],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        TRANSPOSED_EXPERTS,
        EXPERTS,
        BUFFERS,
    ],
    decoder: INTERLEAVED,
    ..QWEN3_MOE
};

/// The number of layers with image inputs besides the first.
const DEEPSTACK: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let thinker = config.get("thinker_config");
    let outer = thinker.map_or_else(|| config.get("vision_config"), |t| t.get("vision_config"));
    let layers = outer.and_then(|vision| vision.get("deepstack_visual_indexes")?.as_array());
    let count = layers.map_or(0, Vec::len) as u32;
    keys.set("n_deepstack_layers", Value::U32(count));
    Ok(())
})];

pub(super) const EXPERT_PARAMETERS: &[Parameter] = &[
    Parameter::OptionalU32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::OptionalU32(
        "expert_shared_feed_forward_length",
        &["shared_expert_intermediate_size"],
    ),
];

/// Rerankers answer "yes" or "no": their classifier is the output matrix's rows of these tokens.
const RERANKER: &[Recipe] = &[
    Recipe::new(
        &[Input::new("model.embed_tokens.weight", &[Any, Hidden])],
        &[
            Output::new("cls.output.weight", ANSWERS),
            Output::new("token_embd.weight", &[]),
        ],
    )
    .when(When::Reranker { tied: true }),
    Recipe::with(
        "lm_head.weight",
        "cls.output.weight",
        &[Any, Hidden],
        ANSWERS,
    )
    .when(When::Reranker { tied: false }),
];

const ANSWERS: &[Op] = &[Op::Rows(&["yes", "no"])];

const RERANKER_PARAMETERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    /// llama.cpp's pooling type for a score.
    const RANK: u32 = 4;
    if config.is_reranker() {
        keys.set("pooling_type", Value::U32(RANK));
        let labels = Array::of_strings(["yes", "no"]);
        keys.set("classifier.output_labels", Value::Array(labels));
        let (template, names) = (Value::str(RERANK_TEMPLATE), Array::of_strings(["rerank"]));
        keys.set_exact("tokenizer.chat_template.rerank".into(), template);
        keys.set_exact("tokenizer.chat_templates".into(), Value::Array(names));
    }
    Ok(())
})];

/// The chat template of a reranker, as published by its authors.
const RERANK_TEMPLATE: &str = "<|im_start|>system\n\
    Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
    Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n\
    <|im_start|>user\n\
    <Instruct>: Given a web search query, retrieve relevant passages that answer the query\n\
    <Query>: {query}\n\
    <Document>: {document}<|im_end|>\n\
    <|im_start|>assistant\n\
    <think>\n\n</think>\n\n";

/// QK norms per head.
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

/// The experts of Qwen 3 VL: stacked and transposed.
const TRANSPOSED_EXPERTS: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.mlp.experts.down_proj",
        "blk.{}.ffn_down_exps.weight",
        &[Experts, Expert, Hidden],
        &[Op::Transpose],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.mlp.experts.gate_up_proj",
            &[Experts, Hidden, Any],
        )],
        &[
            Output::new(
                "blk.{}.ffn_gate_exps.weight",
                &[Op::part(2, HALVES_OF_EXPERTS, 0), Op::Transpose],
            ),
            Output::new(
                "blk.{}.ffn_up_exps.weight",
                &[Op::part(2, HALVES_OF_EXPERTS, 1), Op::Transpose],
            ),
        ],
    ),
];

/// Fused gates and ups of experts.
const HALVES_OF_EXPERTS: &[Size] = &[Expert, Expert];

/// Stacked or unstacked experts.
pub(super) const EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.gate.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.experts.down_proj",
        "blk.{}.ffn_down_exps.weight",
        &[Experts, Hidden, Expert],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.mlp.experts.gate_up_proj",
            &[Experts, Any, Hidden],
        )],
        &[
            Output::new(
                "blk.{}.ffn_gate_exps.weight",
                &[Op::part(1, HALVES_OF_EXPERTS, 0)],
            ),
            Output::new(
                "blk.{}.ffn_up_exps.weight",
                &[Op::part(1, HALVES_OF_EXPERTS, 1)],
            ),
        ],
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

/// A shared expert, and its weight.
pub(super) const SHARED_EXPERT: &[Recipe] = &[
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
