//! Checkpoints with mixtures of experts that do not fit their config.json.

use super::convert::{FFN, HIDDEN, Model, fails, plan};
use super::unusual_inputs::with_byte_level;
use serde_json::json;
use tempfile::TempDir;

/// A gpt-oss of one layer and two experts.
fn gpt_oss() -> Model {
    let mut model = Model::llama();
    model.tensors.retain(|name, _| !name.contains(".mlp."));
    for (field, value) in [
        ("architectures", json!(["GptOssForCausalLM"])),
        ("model_type", json!("gpt_oss")),
        ("vocab_size", json!(512)),
        ("head_dim", json!(HIDDEN / 2)),
        ("num_key_value_heads", json!(2)),
        ("num_local_experts", json!(2)),
        ("num_experts_per_tok", json!(1)),
    ] {
        model.config[field] = value;
    }
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        model.add(name, &[512, HIDDEN]);
    }
    for (name, shape) in [
        ("self_attn.sinks", vec![2]),
        ("self_attn.o_proj.bias", vec![HIDDEN]),
        ("mlp.router.weight", vec![2, HIDDEN]),
        ("mlp.router.bias", vec![2]),
        ("mlp.experts.gate_up_proj", vec![2, HIDDEN, 2 * FFN]),
        ("mlp.experts.gate_up_proj_bias", vec![2, 2 * FFN]),
        ("mlp.experts.down_proj", vec![2, FFN, HIDDEN]),
        ("mlp.experts.down_proj_bias", vec![2, HIDDEN]),
    ] {
        model.add(&format!("model.layers.0.{name}"), &shape);
    }
    model
}

fn written(model: &Model) -> TempDir {
    let dir = model.write();
    with_byte_level(dir.path(), &[]);
    dir
}

#[test]
fn there_is_one_sink_per_head() {
    let mut model = gpt_oss();
    plan(written(&model).path(), &["--dry-run"]);
    model.add("model.layers.0.self_attn.sinks", &[3]);
    let parts = [
        "dimension 0 of shape [3] must be 2 by config.json",
        "model.layers.0.self_attn.sinks",
    ];
    fails(written(&model).path(), &[], &parts);
}

#[test]
fn biases_of_experts_and_router_are_needed() {
    for name in ["mlp.router.bias", "mlp.experts.down_proj_bias"] {
        let mut model = gpt_oss();
        let name = format!("model.layers.0.{name}");
        model.tensors.remove(&name);
        fails(
            written(&model).path(),
            &[],
            &["these tensors are missing", &name],
        );
    }
}

/// A DeepSeek of one layer, whose two experts are apart.
fn deepseek() -> Model {
    let mut model = Model::llama();
    model.tensors.retain(|name, _| !name.contains(".mlp."));
    for (field, value) in [
        ("architectures", json!(["DeepseekForCausalLM"])),
        ("model_type", json!("deepseek")),
        ("rms_norm_eps", json!(1e-6)),
        ("n_routed_experts", json!(2)),
        ("n_shared_experts", json!(1)),
        ("num_experts_per_tok", json!(1)),
        ("moe_intermediate_size", json!(FFN)),
        ("first_k_dense_replace", json!(0)),
    ] {
        model.config[field] = value;
    }
    model.add("model.layers.0.mlp.gate.weight", &[2, HIDDEN]);
    for expert in ["shared_experts", "experts.0", "experts.1"] {
        let prefix = format!("model.layers.0.mlp.{expert}");
        model.add(&format!("{prefix}.gate_proj.weight"), &[FFN, HIDDEN]);
        model.add(&format!("{prefix}.up_proj.weight"), &[FFN, HIDDEN]);
        model.add(&format!("{prefix}.down_proj.weight"), &[HIDDEN, FFN]);
    }
    model
}

#[test]
fn experts_have_equal_shapes() {
    let mut model = deepseek();
    plan(model.write().path(), &["--dry-run"]);
    let name = "model.layers.0.mlp.experts.1.up_proj.weight";
    model.add(name, &[FFN / 2, HIDDEN]);
    fails(model.write().path(), &[], &[name, "by config.json"]);
}

#[test]
fn routers_have_no_bias_where_llama_cpp_loads_none() {
    let mut model = deepseek();
    let name = "model.layers.0.mlp.gate.bias";
    model.add(name, &[2]);
    fails(model.write().path(), &[], &[name]);
}

#[test]
fn a_shared_expert_is_needed_where_experts_are() {
    let mut model = deepseek();
    let name = "model.layers.0.mlp.shared_experts.up_proj.weight";
    model.tensors.remove(name);
    fails(
        model.write().path(),
        &[],
        &["these tensors are missing", name],
    );
}
