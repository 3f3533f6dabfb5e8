//! Hunyuan's mixtures of experts: Hunyuan A13B, with QK norms after RoPE, and Hy3, with multi-token
//! prediction blocks.

use super::config::{Config, Result, number_in, wrong_kind};
use super::decoder::{Decoder, Needs, Rope, Router};
use super::experts::{EXPERT_LENGTH, SHARED_EXPERTS, SHARED_MLP};
use super::hunyuan::HEAD_NORMS as NORMS_OF_HEADS;
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::nextn::{NEXTN, PREDICT_LAYERS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::qwen::{EXPERTS, HEAD_NORMS};
use super::recipes::Size::{Any, Experts, Hidden};
use super::{Architecture, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static HUNYUAN_MOE: Architecture = Architecture {
    classes: &["HunYuanMoEV1ForCausalLM"],
    name: "hunyuan-moe",
    vocabulary: VocabKind::HunyuanMoe,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        NORMS_OF_HEADS,
        ROUTER,
        EXPERTS,
        SHARED_MLP,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        norms_rotated: true,
        ..Decoder::LLAMA
    },
};

pub(super) static HY_V3: Architecture = Architecture {
    classes: &["HYV3ForCausalLM"],
    name: "hy_v3",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        HY_PARAMETERS,
        PREDICT_LAYERS,
    ],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        HY_ROUTER,
        EXPERTS,
        SHARED_MLP,
        SHARED_EXPERTS,
        BLOCK_NORM,
        NEXTN,
        BUFFERS,
    ],
    decoder: Decoder {
        drafts: true,
        rope: Rope::Halves,
        router: Router::LISTED,
        needs: Needs {
            optional: &[
                "exp_probs_b",
                "ffn_gate_shexp",
                "ffn_up_shexp",
                "ffn_down_shexp",
            ],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
    ..HUNYUAN_MOE
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("expert_shared_feed_forward_length", &["intermediate_size"]),
    Parameter::Computed(|config, keys| {
        for (key, field) in [
            ("expert_feed_forward_length", "moe_intermediate_size"),
            ("expert_used_count", "moe_topk"),
            ("expert_shared_count", "num_shared_expert"),
        ] {
            keys.set(key, Value::U32(of_all_layers(config, field)?));
        }
        Ok(())
    }),
    Parameter::Computed(rope),
];

/// A number listed per layer and equal in all layers.
fn of_all_layers(config: &Config, field: &str) -> Result<u32> {
    let listed = config.get(field);
    let listed = listed.ok_or_else(|| format!("field '{field}' is missing"))?;
    let list = listed.as_array().map_or(&[][..], Vec::as_slice);
    let first = list.first().and_then(|number| number.as_u64());
    let first = first.and_then(|number| u32::try_from(number).ok());
    first
        .filter(|_| list.iter().all(|number| *number == list[0]))
        .ok_or_else(|| wrong_kind(field, listed, "a list of one whole number for all layers"))
}

/// The RoPE base, scaled for all positions (NTK-aware scaling).
fn rope(config: &Config, keys: &mut Keys) -> Result<()> {
    /// The models' value; there is no rule for others.
    const ALPHA: f64 = 1000.0;
    const BASE: f64 = 10_000.0;
    const HEAD: u32 = 128;
    const CONTEXTS: [u32; 2] = [32 * 1024, 256 * 1024];
    let rope = config.rope();
    if rope.get("rope_type").is_none_or(|kind| *kind != "dynamic") {
        return Ok(());
    }
    let (alpha, base) = (
        number_in(rope, "alpha")?.unwrap_or(ALPHA),
        number_in(rope, "rope_theta")?.unwrap_or(BASE),
    );
    let length = config.share_of_head()?;
    let context = config.u32(&["max_position_embeddings"])?;
    if alpha != ALPHA || base != BASE || length != HEAD || !CONTEXTS.contains(&context) {
        return Err(format!(
            "'alpha' {alpha} with 'rope_theta' {base}, heads of {length} numbers and 'max_position_embeddings' {context} \
             is stretched in no known way"
        ));
    }
    let length = f64::from(length);
    let stretched = base * alpha.powf(length / (length - 2.0));
    let [_, longest] = CONTEXTS;
    keys.set("rope.freq_base", Value::F32(stretched as f32));
    keys.set("rope.scaling.type", Value::str("none"));
    keys.set("rope.scaling.factor", Value::F32(1.0));
    keys.set("rope.scaling.original_context_length", Value::U32(longest));
    keys.set("context_length", Value::U32(longest));
    Ok(())
}

const HY_PARAMETERS: &[Parameter] = &[
    EXPERT_LENGTH,
    Parameter::Computed(|config, keys| {
        let count = config.optional_u32(&["num_shared_experts"])?.unwrap_or(1);
        let length = config.u32(&["moe_intermediate_size"])?.checked_mul(count);
        let length = length.ok_or("the shared experts are wider than 32 bits say")?;
        keys.set("expert_shared_feed_forward_length", Value::U32(length));
        let normalized = config.get("route_norm").is_none_or(|norm| *norm == true);
        keys.set("expert_weights_norm", Value::Bool(normalized));
        let scale = config.optional_f64(&["router_scaling_factor"])?;
        keys.set(
            "expert_weights_scale",
            Value::F32(scale.unwrap_or(1.0) as f32),
        );
        Ok(())
    }),
    // Sigmoid.
    Parameter::ConstantU32("expert_gating_func", 2),
];

const ROUTER: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.mlp.gate.wg.weight",
    "blk.{}.ffn_gate_inp.weight",
    &[Experts, Hidden],
)];

/// llama.cpp expects the bias under a name without suffix.
const HY_ROUTER: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.router.gate.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.expert_bias",
        "blk.{}.exp_probs_b",
        &[Experts],
    ),
];

/// The norm after a multi-token prediction block.
const BLOCK_NORM: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.final_layernorm",
    "blk.{}.nextn.shared_head_norm",
    &[Hidden],
)];
