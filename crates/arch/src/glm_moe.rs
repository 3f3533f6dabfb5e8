//! GLM's mixtures of experts: GLM 4.5 to 4.7 and Solar Open, with standard attention and partial
//! RoPE, and GLM 4.7 Flash, a DeepSeek V2.

use super::decoder::{Decoder, Layout, Needs, Rope, Router, Sections};
use super::deepseek::{
    BEHIND_THE_LAYERS, DEEPSEEK2, EXPERT_PARAMETERS, LATENT, LOADABLE_QUERIES,
    PARAMETERS as DEEPSEEK_PARAMETERS, QUERIES, ROTATION, SELECTION_BIAS, TIED_OUTPUT,
};
use super::experts::SHARED_EXPERTS;
use super::glm::AROUND_ATTENTION;
use super::kimi::{ATTENTION as WHOLE_QUERIES, LATENT_ATTENTION};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::nextn::{NEXTN, PREDICT_LAYERS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::qwen::{EXPERTS, HEAD_NORMS};
use super::{Architecture, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static GLM4_MOE: Architecture = Architecture {
    classes: &["Glm4MoeForCausalLM", "Glm4vMoeForConditionalGeneration"],
    name: "glm4moe",
    vocabulary: VocabKind::GlmMoe,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        AROUND_ATTENTION,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        EXPERTS,
        SHARED_EXPERTS,
        SELECTION_BIAS,
        NEXTN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        layout: Layout::Sequential("post_attention_norm"),
        sections: Sections::Listed,
        router: Router::LISTED,
        drafts: true,
        needs: Needs {
            optional: &[
                "attn_q_norm",
                "attn_k_norm",
                "ffn_gate_shexp",
                "ffn_up_shexp",
                "ffn_down_shexp",
            ],
            biases: &["exp_probs_b"],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

pub(super) static SOLAR_OPEN: Architecture = Architecture {
    classes: &["SolarOpenForCausalLM"],
    vocabulary: VocabKind::SolarOpen,
    ..GLM4_MOE
};

/// GLM 4.7 Flash.
pub(super) static GLM4_MOE_LITE: Architecture = Architecture {
    classes: &["Glm4MoeLiteForCausalLM"],
    vocabulary: VocabKind::GlmMoe,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        DEEPSEEK_PARAMETERS,
        LATENT,
        LOADABLE_QUERIES,
        EXPERT_PARAMETERS,
        ROTATION,
        PREDICT_LAYERS,
    ],
    tensors: &[
        BEHIND_THE_LAYERS,
        TIED_OUTPUT,
        EMBEDDINGS,
        NORMS,
        QUERIES,
        WHOLE_QUERIES,
        LATENT_ATTENTION,
        GATED_FFN,
        EXPERTS,
        SHARED_EXPERTS,
        SELECTION_BIAS,
        NEXTN,
        BUFFERS,
    ],
    ..DEEPSEEK2
};

const PARAMETERS: &[Parameter] = &[
    super::glm::ROTATED_PART,
    Parameter::OptionalU32("expert_count", &["n_routed_experts"]),
    Parameter::OptionalU32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::OptionalU32("expert_shared_count", &["n_shared_experts"]),
    Parameter::OptionalU32("leading_dense_block_count", &["first_k_dense_replace"]),
    // Sigmoid.
    Parameter::ConstantU32("expert_gating_func", 2),
    Parameter::OptionalF32("expert_weights_scale", &["routed_scaling_factor"]),
    Parameter::Computed(|config, keys| {
        if let Some(norm) = config.get("norm_topk_prob") {
            keys.set("expert_weights_norm", Value::Bool(*norm == true));
        }
        Ok(())
    }),
    LISTED_PREDICT_LAYERS,
];

/// The number of multi-token prediction blocks, if config.json has it, even if 0.
pub(super) const LISTED_PREDICT_LAYERS: Parameter = Parameter::Computed(|config, keys| {
    let promised = config.optional_u32(&["num_nextn_predict_layers"])?;
    if promised.is_some_and(|promised| promised == 0 || config.nextn() > 0) {
        keys.set("nextn_predict_layers", Value::U32(config.nextn()));
    }
    Ok(())
});
