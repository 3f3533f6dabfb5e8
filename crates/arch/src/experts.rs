//! Recipes of mixtures of experts shared by several families.

use super::llama::STACKED;
use super::parameters::Parameter;
use super::recipes::Size::{Any, Expert, Experts, Field, Hidden};
use super::recipes::{Input, Output, Recipe, Size};

/// The size of an expert.
pub(super) const EXPERT_LENGTH: Parameter =
    Parameter::U32("expert_feed_forward_length", &["moe_intermediate_size"]);
/// Number of leading layers without experts.
pub(super) const DENSE_LAYERS: Parameter =
    Parameter::U32("leading_dense_block_count", &["first_k_dense_replace"]);

const DENSE: Size = Field(&[
    "prefix_dense_intermediate_size",
    "dense_intermediate_size",
    "intermediate_size",
]);

/// The feed-forward networks of dense layers, with their own size.
pub(super) const DENSE_FFN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.gate_proj",
        "blk.{}.ffn_gate",
        &[DENSE, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.up_proj",
        "blk.{}.ffn_up",
        &[DENSE, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, DENSE],
    ),
];

/// The router.
pub(super) const ROUTER: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.mlp.gate.weight",
    "blk.{}.ffn_gate_inp.weight",
    &[Any, Hidden],
)];

/// Unstacked experts, in the order gate, up, down.
pub(super) const GATE_UP_DOWN: &[Recipe] = &[Recipe::new(
    &[
        Input::new(
            "model.layers.{}.mlp.experts.{}.gate_proj.weight",
            &[Expert, Hidden],
        ),
        Input::new(
            "model.layers.{}.mlp.experts.{}.up_proj.weight",
            &[Expert, Hidden],
        ),
        Input::new(
            "model.layers.{}.mlp.experts.{}.down_proj.weight",
            &[Hidden, Expert],
        ),
    ],
    &[
        Output::of(&[0], "blk.{}.ffn_gate_exps.weight", STACKED),
        Output::of(&[1], "blk.{}.ffn_up_exps.weight", STACKED),
        Output::of(&[2], "blk.{}.ffn_down_exps.weight", STACKED),
    ],
)];

/// The shared expert, or several as one.
pub(super) const SHARED_EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.shared_experts.gate_proj",
        "blk.{}.ffn_gate_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.shared_experts.up_proj",
        "blk.{}.ffn_up_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.shared_experts.down_proj",
        "blk.{}.ffn_down_shexp",
        &[Hidden, Any],
    ),
];

/// The shared expert under Hunyuan's names.
pub(super) const SHARED_MLP: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.shared_mlp.gate_proj",
        "blk.{}.ffn_gate_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.shared_mlp.up_proj",
        "blk.{}.ffn_up_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.shared_mlp.down_proj",
        "blk.{}.ffn_down_shexp",
        &[Hidden, Any],
    ),
];

/// The bias of expert probabilities in the choice of experts, under its various names.
pub(super) const SELECTION_BIAS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.gate.e_score_correction.bias",
        "blk.{}.exp_probs_b.bias",
        &[Experts],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.e_score_correction.bias",
        "blk.{}.exp_probs_b.bias",
        &[Experts],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.experts.e_score_correction.bias",
        "blk.{}.exp_probs_b.bias",
        &[Experts],
    ),
];

#[cfg(test)]
mod tests {
    use super::super::{Architecture, Config, Keys};
    use serde_json::{Value as Json, json};

    /// The error of a config with this class and two layers.
    fn error(class: &str, fields: Json) -> String {
        let mut config = json!({ "architectures": [class], "num_hidden_layers": 2, "hidden_size": 256,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "vocab_size": 512,
            "intermediate_size": 512, "moe_intermediate_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "max_position_embeddings": 32768, "num_experts": 8, "num_experts_per_tok": 2, "sliding_window": 128 });
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
        let config = Config::new(config.as_object().unwrap().clone()).unwrap();
        let architecture = Architecture::of(&config).unwrap();
        let mut keys = Keys::new(architecture.name, 0);
        let mut parameters = architecture.parameters.iter().flat_map(|list| list.iter());
        let applied = parameters.try_for_each(|parameter| parameter.apply(&config, &mut keys));
        applied.expect_err(class)
    }

    #[test]
    fn unsupported_settings_are_named() {
        let hunyuan = |fields: Json| {
            let mut all = json!({ "moe_intermediate_size": [96, 96], "moe_topk": [2, 2],
                "num_shared_expert": [1, 1] });
            for (name, value) in fields.as_object().unwrap() {
                all[name] = value.clone();
            }
            error("HunYuanMoEV1ForCausalLM", all)
        };
        let step = |fields: Json| {
            let mut all = json!({ "num_attention_groups": 1, "moe_num_experts": 8, "moe_top_k": 2,
                "share_expert_dim": 64, "layer_types": ["full_attention", "sliding_attention"],
                "partial_rotary_factors": [0.5, 1.0] });
            for (name, value) in fields.as_object().unwrap() {
                all[name] = value.clone();
            }
            error("Step3p5ForCausalLM", all)
        };
        let laguna = |fields: Json| {
            let mut all = json!({ "shared_expert_intermediate_size": 64, "moe_routed_scaling_factor": 1.0,
                "mlp_layer_types": ["dense", "sparse"], "gating": true });
            for (name, value) in fields.as_object().unwrap() {
                all[name] = value.clone();
            }
            error("LagunaForCausalLM", all)
        };
        let maple =
            json!({ "layer_types": ["sliding_attention", "full_attention"], "hidden_act": "silu" });
        let mimo = |class: &str, head_dim: u32, quantization: Json| {
            let fields = json!({ "swa_head_dim": head_dim, "swa_num_attention_heads": 2,
                "swa_v_head_dim": 128, "v_head_dim": 128, "topk_method": "noaux_tc",
                "quantization_config": quantization });
            error(class, fields)
        };
        for (error, part) in [
            (hunyuan(json!({ "moe_topk": [2, 3] })), "'moe_topk'"),
            (
                hunyuan(json!({ "num_shared_expert": 1 })),
                "'num_shared_expert'",
            ),
            (
                hunyuan(json!({ "rope_scaling": { "rope_type": "dynamic", "alpha": 50.0 } })),
                "'alpha' 50",
            ),
            (
                error("BailingMoeForCausalLM", json!({ "norm_head": true })),
                "'norm_head'",
            ),
            (
                error("BailingMoeForCausalLM", json!({})),
                "'first_k_dense_replace'",
            ),
            (laguna(json!({ "gating": false })), "'gating'"),
            (
                laguna(json!({ "gating_types": ["per_element", "per_head"] })),
                "'gating_types' lists 'per_element'",
            ),
            (
                laguna(json!({ "num_attention_heads_per_layer": [2] })),
                "has 1 entries for 2 layers",
            ),
            (laguna(json!({})), "'full_attention'"),
            (
                error("MapleForCausalLM", maple),
                "'nope_on_global_attention'",
            ),
            (error("MellumForCausalLM", json!({})), "'layer_types'"),
            (
                step(json!({ "partial_rotary_factors": [1.0, 1.0] })),
                "'partial_rotary_factors' of layer 0 is 1",
            ),
            (
                step(json!({ "moe_layers_enum": "1,x" })),
                "'moe_layers_enum'",
            ),
            (step(json!({ "swiglu_limits": ["a"] })), "'swiglu_limits'"),
            (
                mimo("MiMoV2FlashForCausalLM", 64, json!({})),
                "'swa_head_dim' is 64, and 'head_dim' is 128",
            ),
            (
                mimo("MiMoV2ForCausalLM", 128, json!({ "mxfp4_block_size": 16 })),
                "'mxfp4_block_size' is 16",
            ),
            (
                error(
                    "Cohere2MoeForCausalLM",
                    json!({ "logit_scale": 1.0, "layer_types": [], "num_shared_experts": 1,
                        "shared_expert_combination_strategy": "sum" }),
                ),
                "'shared_expert_combination_strategy'",
            ),
            (
                error(
                    "DbrxForCausalLM",
                    json!({ "d_model": 256, "n_heads": 2, "n_layers": 2, "max_seq_len": 64,
                        "ffn_config": {}, "attn_config": {} }),
                ),
                "'ffn_hidden_size' is missing in 'ffn_config'",
            ),
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
