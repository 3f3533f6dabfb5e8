//! Kimi K3: Kimi Delta Attention with a whole gate in most layers, gated latent attention without
//! RoPE in the others, attention over the residuals of earlier layers, and experts of a shorter
//! latent vector.

use super::config::Result;
use super::decoder::{Decoder, DeltaHeads, Needs, Recurrence, Rope, Router};
use super::deepseek;
use super::experts::{DENSE_LAYERS, EXPERT_LENGTH};
use super::kimi::{
    self, DECAY, DELTA, DELTA_ATTENTION, DELTA_ROWS, SHARED_EXPERTS, delta_lengths,
    has_latent_attention, kv_heads,
};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, STACKED};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flag};
use super::recipes::Op::Multiply;
use super::recipes::Size::{self, Any, Expert, Experts, Hidden};
use super::recipes::{Input, Output, Recipe, When};
use super::{Architecture, Config, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static KIMI_K3: Architecture = Architecture {
    classes: &["KimiK3ForConditionalGeneration"],
    name: "kimi-k3",
    vocabulary: VocabKind::KimiK3,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        PARAMETERS,
        super::glm5_next::LATENT_LENGTHS,
        EXPERT_PARAMETERS,
    ],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        RESIDUAL_ATTENTION,
        ATTENTION,
        DELTA_ATTENTION,
        DECAYS_AND_GATES,
        QUERIES,
        LATENT_ATTENTION,
        GATED_FFN,
        LATENT_EXPERTS,
        SHARED_EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        recurrence: Some(Recurrence::DeltaNets(DeltaHeads::Own)),
        router: Router::LISTED,
        refused: Some(
            "its layers attend to the residuals of earlier layers, and its experts read a latent vector",
        ),
        needs: Needs {
            biases: &["exp_probs_b"],
            optional: &["attn_gate", "ffn_routed_norm", "ffn_gate_shexp"],
            ..Needs::OWN_OUTPUT
        },
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(check),
    Parameter::Computed(kv_heads),
    Parameter::Computed(delta_lengths),
    Parameter::Computed(lower_bound),
    Parameter::OptionalU32("attention.q_lora_rank", &["q_lora_rank"]),
    Parameter::U32("attention.kv_lora_rank", &["kv_lora_rank"]),
    Parameter::U32("rope.dimension_count", &["qk_rope_head_dim"]),
];

/// The least decay of Kimi Delta Attention, if bounded.
pub(super) fn lower_bound(config: &Config, keys: &mut Keys) -> Result<()> {
    let delta = config.optional_object(DELTA)?;
    let bound = delta.map(|delta| super::config::number_in(delta, "gate_lower_bound"));
    if let Some(bound) = bound.transpose()?.flatten() {
        keys.set("kda.gate_lower_bound", Value::F32(bound as f32));
    }
    Ok(())
}

/// The reference's requirements.
fn check(config: &Config, _: &mut Keys) -> Result<()> {
    for (field, wanted) in [
        ("mla_use_nope", serde_json::Value::from(true)),
        ("moe_router_activation_func", "sigmoid".into()),
        ("hidden_act", "situ".into()),
    ] {
        if config.get(field) != Some(&wanted) {
            return Err(format!(
                "field '{field}' is not {wanted}; llama.cpp runs no Kimi K3 without it"
            ));
        }
    }
    Ok(())
}

const EXPERT_PARAMETERS: &[Parameter] = &[
    EXPERT_LENGTH,
    Parameter::U32("expert_shared_count", &["num_shared_experts"]),
    DENSE_LAYERS,
    Parameter::F32("expert_weights_scale", &["routed_scaling_factor"]),
    Parameter::Computed(|config, keys| {
        set_flag(config, keys, "expert_weights_norm", "moe_renormalize")
    }),
    Parameter::OptionalU32("expert_latent_length", &[LATENT_LENGTH]),
    Parameter::F32("activation.situ_beta", &["activation_situ_beta"]),
    Parameter::F32(
        "activation.situ_linear_beta",
        &["activation_situ_linear_beta"],
    ),
    Parameter::U32("attn_res.block_size", &["attn_res_block_size"]),
];

/// Norms and projections of the residuals' scores, used only as their products.
const RESIDUAL_ATTENTION: &[Recipe] = &[
    Recipe::new(
        &[
            Input::new("model.output_attn_res_norm.weight", &[Hidden]),
            Input::new("model.output_attn_res_proj.weight", &[]),
        ],
        &[Output::of(&[0, 1], "output_res_score.weight", &[Multiply])],
    ),
    Recipe::new(
        &[
            Input::new("model.layers.{}.self_attention_res_norm.weight", &[Hidden]),
            Input::new("model.layers.{}.self_attention_res_proj.weight", &[]),
        ],
        &[Output::of(
            &[0, 1],
            "blk.{}.attn_res_score.weight",
            &[Multiply],
        )],
    ),
    Recipe::new(
        &[
            Input::new("model.layers.{}.mlp_res_norm.weight", &[Hidden]),
            Input::new("model.layers.{}.mlp_res_proj.weight", &[]),
        ],
        &[Output::of(
            &[0, 1],
            "blk.{}.ffn_res_score.weight",
            &[Multiply],
        )],
    ),
];

fn has_delta_attention(config: &Config, layer: u32) -> bool {
    !has_latent_attention(config, layer)
}

/// True for layers with queries of one matrix.
fn has_whole_queries(config: &Config, layer: u32) -> bool {
    has_delta_attention(config, layer) || config.get(RANK).is_none()
}

const RANK: &str = "q_lora_rank";

const ATTENTION: &[Recipe] = &[kimi::ATTENTION[0].when(When::Layers(has_whole_queries))];

const QUERIES: &[Recipe] = &[
    deepseek::QUERIES[0].when(When::Set(RANK)),
    deepseek::QUERIES[1].when(When::Set(RANK)),
    deepseek::QUERIES[2].when(When::Set(RANK)),
];

const DECAYS_AND_GATES: &[Recipe] = &[
    DECAY,
    Recipe::rename(
        "model.layers.{}.self_attn.g_proj",
        "blk.{}.ssm_g",
        &[DELTA_ROWS, Hidden],
    )
    .when(When::Layers(has_delta_attention)),
    kimi::ATTENTION[1].when(When::Layers(has_delta_attention)),
];

const LATENT_ATTENTION: &[Recipe] = &[
    kimi::LATENT_ATTENTION[0],
    kimi::LATENT_ATTENTION[1],
    kimi::LATENT_ATTENTION[2],
    Recipe::rename(
        "model.layers.{}.self_attn.g_proj",
        "blk.{}.attn_gate",
        &[Any, Hidden],
    )
    .when(When::Layers(has_latent_attention)),
    kimi::ATTENTION[1].when(When::Layers(has_latent_attention)),
];

const LATENT_LENGTH: &str = "routed_expert_hidden_size";

/// Length of the vector that routed experts read.
const LATENT: Size = Size::Computed(|config| match config.optional_u32(&[LATENT_LENGTH])? {
    Some(length) => Ok(length.into()),
    None => Hidden.required(config),
});

const LATENT_EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.gate",
        "blk.{}.ffn_gate_inp",
        &[Experts, Hidden],
    ),
    Recipe::new(
        &[
            Input::new(
                "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
                &[Expert, LATENT],
            ),
            Input::new(
                "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
                &[LATENT, Expert],
            ),
            Input::new(
                "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
                &[Expert, LATENT],
            ),
        ],
        &[
            Output::of(&[0], "blk.{}.ffn_gate_exps.weight", STACKED),
            Output::of(&[1], "blk.{}.ffn_down_exps.weight", STACKED),
            Output::of(&[2], "blk.{}.ffn_up_exps.weight", STACKED),
        ],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.routed_expert_down_proj",
        "blk.{}.ffn_routed_down",
        &[LATENT, Hidden],
    )
    .when(When::Set(LATENT_LENGTH)),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.routed_expert_up_proj",
        "blk.{}.ffn_routed_up",
        &[Hidden, LATENT],
    )
    .when(When::Set(LATENT_LENGTH)),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.routed_expert_norm",
        "blk.{}.ffn_routed_norm",
        &[LATENT],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_kinds_of_attention_need_an_output_matrix() {
        let fields = json!({ "num_hidden_layers": 2, "q_lora_rank": 8,
            "linear_attn_config": { "full_attn_layers": [2] } });
        let config = Config::new(fields.as_object().unwrap().clone()).unwrap();
        let missing = |layer: u32, there: &[&str]| {
            let has = |name: &str| there.iter().any(|stem| name.contains(&format!(".{stem}.")));
            let missing = KIMI_K3.missing(&[layer], Some(&config), &has);
            missing
                .iter()
                .any(|missing| missing.name.ends_with("attn_output.weight"))
        };
        assert!(missing(0, &["attn_k", "ssm_a", "ssm_g"]));
        assert!(missing(1, &["attn_kv_a_mqa", "attn_q_a"]));
        assert!(!missing(1, &["attn_kv_a_mqa", "attn_q_a", "attn_output"]));
    }
}
