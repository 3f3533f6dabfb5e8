//! OLMoE: QK norms over all heads, expert probabilities without normalization.

use super::decoder::{Decoder, Needs, Rope, Router, Setting};
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION};
use super::olmo::WHOLE_NORMS;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::qwen::EXPERTS;
use super::{Architecture, Parameter, nothing_generated};
use quantier_tokenizer::VocabKind;

/// Fixed by the reference, missing in the config.
const EPSILON: f32 = 1e-5;

pub(super) static OLMOE: Architecture = Architecture {
    classes: &["OlmoeForCausalLM"],
    name: "olmoe",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        &[Parameter::ConstantF32(
            "attention.layer_norm_rms_epsilon",
            EPSILON,
        )],
    ],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        WHOLE_NORMS,
        PLAIN_ATTENTION,
        EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        router: Router {
            normalized: Setting::Always(false),
            ..Router::SOFTMAX
        },
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};
