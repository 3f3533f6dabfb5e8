//! Kimi Linear: Kimi Delta Attention in most layers, multi-head latent attention without RoPE in
//! the others, and experts in all but the first layers.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{Decoder, DeltaHeads, Gating, Needs, Recurrence, Rope, Router, Setting};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, MIXTRAL_EXPERTS, NORMS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_numbers};
use super::recipes::Op::{self, NegExp, Reshape, Transpose};
use super::recipes::Size::{self, Any, Experts, Field, Hidden, Number, Product, QueryHeads};
use super::recipes::{Input, Output, Recipe};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static KIMI_LINEAR: Architecture = Architecture {
    classes: &["KimiLinearForCausalLM", "KimiLinearModel"],
    name: "kimi-linear",
    vocabulary: VocabKind::Kimi,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        PARAMETERS,
        LATENT_LENGTHS,
        EXPERT_PARAMETERS,
    ],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        ATTENTION,
        DELTA_ATTENTION,
        DECAYS_AND_GATES,
        LATENT_ATTENTION,
        GATED_FFN,
        MIXTRAL_EXPERTS,
        SHARED_EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        recurrence: Some(Recurrence::DeltaNets(DeltaHeads::Own)),
        router: Router {
            gating: Setting::Listed(Gating::Softmax),
            normalized: Setting::Always(true),
            ..Router::LISTED
        },
        needs: Needs {
            own_output: true,
            biases: &["exp_probs_b"],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

/// The object with the fields of Kimi Delta Attention.
pub(super) const DELTA: &str = "linear_attn_config";

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(kv_heads),
    Parameter::Computed(delta_lengths),
    Parameter::Computed(whole_queries),
    Parameter::U32("attention.kv_lora_rank", &["kv_lora_rank", "n_lora_kv"]),
    Parameter::U32("rope.dimension_count", &["qk_rope_head_dim", "n_rot"]),
];

/// Rejects low-rank queries, unsupported by llama.cpp for this architecture.
fn whole_queries(config: &Config, _: &mut Keys) -> Result<()> {
    match config.optional_u32(&["q_lora_rank", "n_lora_q"])? {
        Some(rank) if rank > 0 => Err(format!(
            "field 'q_lora_rank' is {rank}; llama.cpp cannot load a Kimi Linear whose queries are of low rank"
        )),
        _ => Ok(()),
    }
}

const EXPERT_PARAMETERS: &[Parameter] = &[
    Parameter::U32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::U32("expert_shared_count", &["num_shared_experts"]),
    Parameter::U32("leading_dense_block_count", &["first_k_dense_replace"]),
    Parameter::F32("expert_weights_scale", &["routed_scaling_factor"]),
];

/// Head lengths of multi-head latent attention: in the cache, and per head.
pub(super) const LATENT_LENGTHS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let rank = config.u32(&["kv_lora_rank", "n_lora_kv"])?;
    let rotated = config.u32(&["qk_rope_head_dim", "n_rot"])?;
    let sum = |a: u32, b: u32| {
        let sum = a.checked_add(b);
        sum.ok_or_else(|| "the length of a head has more than 32 bits".to_owned())
    };
    keys.set("attention.key_length", Value::U32(sum(rank, rotated)?));
    let plain = config.optional_u32(&["qk_nope_head_dim"])?;
    let key = match config.optional_u32(&["n_embd_head_k_mla"])? {
        Some(length) => Some(length),
        None => plain.map(|plain| sum(plain, rotated)).transpose()?,
    };
    if let Some(length) = key {
        keys.set("attention.key_length_mla", Value::U32(length));
    }
    if let Some(length) = config.optional_u32(&["n_embd_head_v_mla", "v_head_dim"])? {
        keys.set("attention.value_length_mla", Value::U32(length));
    }
    Ok(())
})];

/// One KV head in layers of latent attention, none in the others.
pub(super) fn kv_heads(config: &Config, keys: &mut Keys) -> Result<()> {
    let latent = latent_layers(config)?;
    let layers = 0..config.layers()?;
    let heads = layers.map(|layer| u32::from(latent.contains(&layer)));
    set_numbers(keys, "attention.head_count_kv", heads);
    Ok(())
}

/// Layers of latent attention, counted from 0.
fn latent_layers(config: &Config) -> Result<Vec<u32>> {
    const LAYERS: &str = "full_attn_layers";
    let delta = config.optional_object(DELTA)?;
    let delta = delta.ok_or_else(|| format!("field '{DELTA}' is missing"))?;
    let missing = || format!("field '{LAYERS}' of '{DELTA}' is missing");
    let listed = delta.get(LAYERS).ok_or_else(missing)?;
    let wrong = || wrong_kind(LAYERS, listed, "a list of layers, counted from 1");
    let listed = listed.as_array().ok_or_else(wrong)?.iter();
    let layers = listed.filter_map(|layer| layer.as_u64()?.checked_sub(1));
    Ok(layers
        .filter_map(|layer| u32::try_from(layer).ok())
        .collect())
}

/// True for layers of latent attention; for none if the config does not list them.
pub(super) fn has_latent_attention(config: &Config, layer: u32) -> bool {
    latent_layers(config).is_ok_and(|layers| layers.contains(&layer))
}

/// Lengths of kernels and heads.
pub(super) fn delta_lengths(config: &Config, keys: &mut Keys) -> Result<()> {
    for (key, field) in [
        ("ssm.conv_kernel", "short_conv_kernel_size"),
        ("kda.head_dim", "head_dim"),
    ] {
        if let Some(number) = config.number_of(DELTA, field)? {
            keys.set(key, Value::U32(number));
        }
    }
    Ok(())
}

const DELTA_HEAD: Size = Size::Computed(|config| {
    let length = config.number_of(DELTA, "head_dim")?;
    let length = length.ok_or_else(|| format!("field 'head_dim' of '{DELTA}' is missing"))?;
    Ok(length.into())
});
pub(super) const DELTA_ROWS: Size = Product(&[QueryHeads, DELTA_HEAD]);

/// The matrices shared by both kinds of attention.
pub(super) const ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
];

/// One kernel per channel, with dimensions for steps and sequences.
const KERNELS: &[Op] = &[Reshape(&[Number(1), DELTA_ROWS, Number(1), Any])];
/// The same for models with one head length.
pub(super) const DELTA_KERNELS: &[Op] = &[Reshape(&[Number(1), Size::Queries, Number(1), Any])];

/// Kimi Delta Attention without decays and gates.
pub(super) const DELTA_ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_k",
        &[DELTA_ROWS, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.v_proj",
        "blk.{}.attn_v",
        &[DELTA_ROWS, Hidden],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.q_conv1d",
        "blk.{}.ssm_conv1d_q",
        &[],
        KERNELS,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.k_conv1d",
        "blk.{}.ssm_conv1d_k",
        &[],
        KERNELS,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.v_conv1d",
        "blk.{}.ssm_conv1d_v",
        &[],
        KERNELS,
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.f_a_proj",
        "blk.{}.ssm_f_a",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.f_b_proj",
        "blk.{}.ssm_f_b",
        &[DELTA_ROWS, Any],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.b_proj",
        "blk.{}.ssm_beta",
        &[QueryHeads, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.dt_bias",
        "blk.{}.ssm_dt.bias",
        &[DELTA_ROWS],
    )
    .finite(),
    Recipe::rename(
        "model.layers.{}.self_attn.o_norm",
        "blk.{}.ssm_norm",
        &[DELTA_HEAD],
    ),
];

const DECAYS_AND_GATES: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.A_log",
        "blk.{}.ssm_a",
        &[],
        &[NegExp],
    )
    .finite(),
    GATE_A,
    GATE_B,
];

/// The factors of the output gate.
pub(super) const GATE_A: Recipe = Recipe::rename(
    "model.layers.{}.self_attn.g_a_proj",
    "blk.{}.ssm_g_a",
    &[Any, Hidden],
);
pub(super) const GATE_B: Recipe = Recipe::rename(
    "model.layers.{}.self_attn.g_b_proj",
    "blk.{}.ssm_g_b",
    &[DELTA_ROWS, Any],
);
/// Decays, one per head.
pub(super) const DECAY: Recipe = Recipe::with(
    "model.layers.{}.self_attn.A_log",
    "blk.{}.ssm_a",
    &[],
    &[Reshape(&[Any]), Op::First(QueryHeads), Op::Widen, NegExp],
)
.finite();

pub(super) const RANK: Size = Field(&["kv_lora_rank", "n_lora_kv"]);
const PLAIN: Size = Field(&["qk_nope_head_dim"]);
const VALUE: Size = Field(&["n_embd_head_v_mla", "v_head_dim"]);
/// Rows of each head: keys, then values.
pub(super) const KEYS_AND_VALUES: &[Size] = &[PLAIN, VALUE];
/// The matrix of keys and values, absorbed per head into queries and outputs.
const BY_HEAD: Op = Reshape(&[Size::KeyHeads, Any, RANK]);
/// The same for models without a number of KV heads.
pub(super) const BY_QUERY_HEAD: Op = Reshape(&[QueryHeads, Any, RANK]);

pub(super) const LATENT_ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.kv_a_proj_with_mqa",
        "blk.{}.attn_kv_a_mqa",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.kv_a_layernorm",
        "blk.{}.attn_kv_a_norm",
        &[RANK],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.self_attn.kv_b_proj.weight",
            &[Any, RANK],
        )],
        &[
            Output::new(
                "blk.{}.attn_k_b.weight",
                &[BY_HEAD, Op::part(1, KEYS_AND_VALUES, 0), Transpose],
            ),
            Output::new(
                "blk.{}.attn_v_b.weight",
                &[BY_HEAD, Op::part(1, KEYS_AND_VALUES, 1)],
            ),
        ],
    ),
];

/// The same with as many KV heads as queries, whatever the config says.
pub(super) const LATENT_QUERY_HEADS: &[Recipe] = &[
    LATENT_ATTENTION[0],
    LATENT_ATTENTION[1],
    Recipe::new(
        &[Input::new(
            "model.layers.{}.self_attn.kv_b_proj.weight",
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
];

/// The selection bias and the shared experts.
pub(super) const SHARED_EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.gate.e_score_correction.bias",
        "blk.{}.exp_probs_b.bias",
        &[Experts],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.shared_experts.gate_proj",
        "blk.{}.ffn_gate_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.shared_experts.up_proj",
        "blk.{}.ffn_up_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.shared_experts.down_proj",
        "blk.{}.ffn_down_shexp",
        &[Hidden, Any],
    ),
];
