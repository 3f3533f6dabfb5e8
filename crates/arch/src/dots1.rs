//! dots.llm1: Qwen 3 with sigmoid-gated experts, a bias in their choice, and shared ones.

use super::decoder::{Decoder, Needs, Rope, Router};
use super::experts::{DENSE_LAYERS, EXPERT_LENGTH, SELECTION_BIAS, SHARED_EXPERTS};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flag};
use super::qwen::{EXPERTS, HEAD_NORMS};
use super::{Architecture, Parameter, nothing_generated};
use quantier_tokenizer::VocabKind;

pub(super) static DOTS1: Architecture = Architecture {
    classes: &["Dots1ForCausalLM"],
    name: "dots1",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        SELECTION_BIAS,
        SHARED_EXPERTS,
        EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        router: Router::LISTED,
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    EXPERT_LENGTH,
    DENSE_LAYERS,
    Parameter::U32("expert_shared_count", &["n_shared_experts"]),
    Parameter::F32("expert_weights_scale", &["routed_scaling_factor"]),
    Parameter::Computed(|config, keys| {
        set_flag(config, keys, "expert_weights_norm", "norm_topk_prob")
    }),
];
