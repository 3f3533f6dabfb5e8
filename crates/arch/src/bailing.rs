//! Ling and Ring 3 (Bailing MoE V3): Kimi Delta Attention with bounded decays in most layers,
//! multi-head latent attention with a gate per head in the others, and a mixture of experts in all
//! but the first ones.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{Decoder, DeltaHeads, Needs, Recurrence, Router, Sections};
use super::experts::{DENSE_LAYERS, EXPERT_LENGTH, SHARED_EXPERTS};
use super::kimi::{BY_QUERY_HEAD, DELTA_KERNELS, KEYS_AND_VALUES, RANK};
use super::llama::{BUFFERS, GATED_FFN, NORMS};
use super::nextn::{NEXTN, PREDICT_LAYERS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flag, set_floats, set_numbers};
use super::qwen::EXPERTS;
use super::recipes::Op::{self, Exp, Reshape, Transpose};
use super::recipes::Size::{Any, Experts, Head, Hidden, Number, Queries, QueryHeads};
use super::recipes::{Input, Output, Recipe, When};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static BAILING_MOE3: Architecture = Architecture {
    classes: &["BailingMoeV3ForCausalLM"],
    name: "bailingmoe3",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        PARAMETERS,
        super::kimi::LATENT_LENGTHS,
        EXPERT_PARAMETERS,
        PREDICT_LAYERS,
    ],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        ATTENTION,
        DELTA_ATTENTION,
        LATENT_ATTENTION,
        GATED_FFN,
        EXPERTS,
        EXPERT_BIAS,
        SHARED_EXPERTS,
        NEXTN,
        BLOCK_NORM,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        recurrence: Some(Recurrence::DeltaNets(DeltaHeads::Own)),
        router: Router::LISTED,
        sections: Sections::Listed,
        drafts: true,
        needs: Needs {
            biases: &["exp_probs_b"],
            nextn: &["layer_output_norm"],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

/// The text model of the vision model: RoPE with sections.
pub(super) static BAILING_MOE3_VL: Architecture = Architecture {
    classes: &["BailingMoeV3VLForConditionalGeneration"],
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        PARAMETERS,
        super::kimi::LATENT_LENGTHS,
        EXPERT_PARAMETERS,
        PREDICT_LAYERS,
        &[Parameter::Computed(sections)],
    ],
    tensors: &[
        &[Recipe::leave_out("linear_proj*", "the vision part")],
        EMBEDDINGS,
        NORMS,
        ATTENTION,
        DELTA_ATTENTION,
        LATENT_ATTENTION,
        GATED_FFN,
        EXPERTS,
        EXPERT_BIAS,
        SHARED_EXPERTS,
        NEXTN,
        BLOCK_NORM,
        BUFFERS,
    ],
    ..BAILING_MOE3
};

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(kv_heads),
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::U32("ssm.conv_kernel", &["short_conv_kernel_size"]),
    Parameter::U32("kda.head_dim", &["head_dim"]),
    Parameter::Computed(|_, keys| {
        keys.set("kda.safe_gate", Value::Bool(true));
        Ok(())
    }),
    Parameter::F32("kda.gate_lower_bound", &["kda_lower_bound"]),
    Parameter::OptionalU32("attention.q_lora_rank", &["q_lora_rank"]),
    Parameter::U32("attention.kv_lora_rank", &["kv_lora_rank"]),
    Parameter::U32("rope.dimension_count", &["qk_rope_head_dim"]),
];

/// True if the weights of the chosen experts are normalized to sum to 1.
pub(super) const NORMALIZED: Parameter = Parameter::Computed(|config, keys| {
    set_flag(config, keys, "expert_weights_norm", "norm_topk_prob")
});

const EXPERT_PARAMETERS: &[Parameter] = &[
    EXPERT_LENGTH,
    Parameter::U32(
        "expert_shared_feed_forward_length",
        &["moe_shared_expert_intermediate_size"],
    ),
    Parameter::OrU32("expert_shared_count", &["num_shared_experts"], 1),
    DENSE_LAYERS,
    Parameter::F32("expert_weights_scale", &["routed_scaling_factor"]),
    NORMALIZED,
    Parameter::Computed(|config, keys| {
        limits(config, keys, "expert_swiglu_limit_list", "swiglu_clamp_exp")?;
        let field = "share_expert_swiglu_limit_list";
        limits(config, keys, field, "swiglu_clamp_shexp")
    }),
];

/// True for latent attention: in the last layer of each group, in layers after the last whole
/// group, and in multi-token prediction blocks.
fn is_latent(config: &Config, layer: u32) -> Result<bool> {
    const GROUP: &str = "layer_group_size";
    let (layers, group) = (config.layers()?, config.u32(&[GROUP])?);
    if group == 0 {
        return Err(format!("field '{GROUP}' is 0"));
    }
    Ok((u64::from(layer) + 1).is_multiple_of(group.into()) || layer >= layers / group * group)
}

fn has_latent_attention(config: &Config, layer: u32) -> bool {
    is_latent(config, layer).unwrap_or(true)
}

fn has_delta_attention(config: &Config, layer: u32) -> bool {
    !has_latent_attention(config, layer)
}

/// One KV head in layers of latent attention, none in the others. Rejects models unsupported by the
/// reference.
fn kv_heads(config: &Config, keys: &mut Keys) -> Result<()> {
    for (field, wanted) in [
        ("no_kda_lora", serde_json::Value::from(true)),
        ("kda_safe_gate", true.into()),
        ("gated_attention_proj_granularity_type", "head_wise".into()),
    ] {
        if config.get(field) != Some(&wanted) {
            return Err(format!(
                "field '{field}' is not {wanted}; models of this class without it cannot be converted yet"
            ));
        }
    }
    let blocks = 0..config.blocks()?;
    let heads: Result<Vec<u32>> = blocks
        .map(|block| Ok(u32::from(is_latent(config, block)?)))
        .collect();
    set_numbers(keys, "attention.head_count_kv", heads?);
    Ok(())
}

/// Activation limits, one per block; 0 for none.
fn limits(config: &Config, keys: &mut Keys, field: &str, key: &str) -> Result<()> {
    let Some(listed) = config.get(field) else {
        return Ok(());
    };
    let wrong = || wrong_kind(field, listed, "a list of numbers");
    let limit = |value: &serde_json::Value| match value.is_null() {
        true => Some(0.0),
        false => value.as_f64().map(|limit| limit as f32),
    };
    let list = listed.as_array().ok_or_else(wrong)?;
    let mut limits: Vec<f32> = list
        .iter()
        .map(limit)
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    limits.resize(config.blocks()? as usize, 0.0);
    set_floats(keys, key, limits);
    Ok(())
}

/// RoPE pairs of a head for time, height and width.
fn sections(config: &Config, keys: &mut Keys) -> Result<()> {
    const FIELD: &str = "mrope_section";
    let listed = config.get(FIELD);
    let listed = listed.ok_or_else(|| format!("field '{FIELD}' is missing"))?;
    let wrong = || wrong_kind(FIELD, listed, "a list of three whole numbers");
    let list = listed.as_array().filter(|list| list.len() >= 3);
    let list = list.ok_or_else(wrong)?[..3].iter();
    let number = |value: &serde_json::Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let sizes: Option<Vec<u32>> = list.map(number).collect();
    let sizes = sizes.ok_or_else(wrong)?;
    let pairs: u64 = sizes.iter().map(|size| u64::from(*size)).sum();
    let rotated = config.u32(&["qk_rope_head_dim"])?;
    if 2 * pairs != u64::from(rotated) {
        return Err(format!(
            "field '{FIELD}' has {pairs} pairs, and 'qk_rope_head_dim' is {rotated}"
        ));
    }
    set_numbers(
        keys,
        "rope.dimension_sections",
        sizes.into_iter().chain([0]),
    );
    Ok(())
}

pub(super) const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename("model.word_embeddings", "token_embd", &[Any, Hidden]),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
];

/// The matrices shared by both kinds of attention.
const ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.attention.q_proj",
        "blk.{}.attn_q",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.attention.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "model.layers.{}.attention.dense",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
];

const DELTA_ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.attention.k_proj",
        "blk.{}.attn_k",
        &[Queries, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.attention.v_proj",
        "blk.{}.attn_v",
        &[Queries, Hidden],
    ),
    Recipe::with(
        "model.layers.{}.attention.q_conv1d",
        "blk.{}.ssm_conv1d_q",
        &[],
        DELTA_KERNELS,
    ),
    Recipe::with(
        "model.layers.{}.attention.k_conv1d",
        "blk.{}.ssm_conv1d_k",
        &[],
        DELTA_KERNELS,
    ),
    Recipe::with(
        "model.layers.{}.attention.v_conv1d",
        "blk.{}.ssm_conv1d_v",
        &[],
        DELTA_KERNELS,
    ),
    Recipe::rename(
        "model.layers.{}.attention.f_proj",
        "blk.{}.ssm_f_a",
        &[Queries, Hidden],
    )
    .when(When::Layers(has_delta_attention)),
    Recipe::rename(
        "model.layers.{}.attention.g_proj",
        "blk.{}.ssm_g_a",
        &[Queries, Hidden],
    )
    .when(When::Layers(has_delta_attention)),
    Recipe::rename(
        "model.layers.{}.attention.b_proj",
        "blk.{}.ssm_beta",
        &[QueryHeads, Hidden],
    ),
    Recipe::with(
        "model.layers.{}.attention.A_log",
        "blk.{}.ssm_a",
        &[],
        &[Exp, Reshape(&[Any, Number(1)])],
    )
    .finite(),
    Recipe::rename(
        "model.layers.{}.attention.dt_bias",
        "blk.{}.ssm_dt.bias",
        &[Queries],
    )
    .finite(),
    Recipe::rename(
        "model.layers.{}.attention.o_norm",
        "blk.{}.ssm_norm",
        &[Head],
    ),
];

const LATENT_ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.attention.q_a_proj",
        "blk.{}.attn_q_a",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.attention.q_a_layernorm",
        "blk.{}.attn_q_a_norm",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.{}.attention.q_b_proj",
        "blk.{}.attn_q_b",
        &[Any, Any],
    ),
    Recipe::rename(
        "model.layers.{}.attention.kv_a_proj_with_mqa",
        "blk.{}.attn_kv_a_mqa",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.attention.kv_a_layernorm",
        "blk.{}.attn_kv_a_norm",
        &[RANK],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.attention.kv_b_proj.weight",
            &[Any, RANK],
        )],
        &[
            Output::new(
                "blk.{}.attn_k_b.weight",
                &[BY_QUERY_HEAD, Op::part(1, KEYS_AND_VALUES, 0), Transpose],
            ),
            Output::new(
                "blk.{}.attn_v_b.weight",
                &[BY_QUERY_HEAD, Op::part(1, KEYS_AND_VALUES, 1)],
            ),
        ],
    ),
    Recipe::rename(
        "model.layers.{}.attention.g_proj",
        "blk.{}.attn_gate",
        &[QueryHeads, Hidden],
    )
    .when(When::Layers(has_latent_attention)),
];

/// The bias of expert probabilities in the choice of experts.
pub(super) const EXPERT_BIAS: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.mlp.gate.expert_bias",
    "blk.{}.exp_probs_b.bias",
    &[Experts],
)];

/// The norm after a multi-token prediction block.
pub(super) const BLOCK_NORM: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.final_layernorm",
    "blk.{}.layer_output_norm",
    &[Hidden],
)];
