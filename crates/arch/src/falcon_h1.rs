//! Falcon-H1: attention in parallel with Mamba-2 in every layer. Its many multipliers are folded
//! into the weights.

use super::config::{Config, Result};
use super::decoder::{Decoder, Mamba2Layers, Needs, Recurrence, Rope};
use super::mamba2::{BIASED, Sizes, epsilon, nonzero, set_size, state_space};
use super::parameters::FILE_TYPE;
use super::recipes::Op::{self, Scale, ScaleParts};
use super::recipes::Recipe;
use super::recipes::Size::{
    self, Any, Computed, FeedForward, Field, Hidden, Keys as KeyRows, Product, Queries,
};
use super::{Architecture, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static FALCON_H1: Architecture = Architecture {
    classes: &["FalconH1ForCausalLM"],
    name: "falcon-h1",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[STATE_PARAMETERS, FILE_TYPE, PARAMETERS],
    tensors: &[SCALED_EMBEDDINGS, NORMS, STATE_SPACES, ATTENTION, FFN],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        recurrence: Some(Recurrence::Mamba2(Mamba2Layers::All)),
        needs: Needs {
            optional: &["ssm_norm"],
            biases: BIASED,
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

const SIZES: Sizes = Sizes {
    hidden: Hidden,
    heads: Computed(heads),
    groups: GROUPS,
    inner: INNER,
};

const GROUPS: Size = Field(&["n_groups", "mamba_n_groups"]);
const INNER: Size = Field(&["mamba_d_ssm"]);
/// The total length of keys, or of queries.
const KEYS: Size = Product(&[Field(&["mamba_n_groups"]), Field(&["mamba_d_state"])]);

const STATE_SPACES: &[Recipe] = state_space!(
    "model.layers.{}.mamba.",
    SIZES,
    &[
        Scale(|config| config.f64(&["ssm_in_multiplier"])),
        ScaleParts {
            sizes: &[INNER, INNER, KEYS, KEYS, Any],
            factor: |config, part| of_list(config, "ssm_multipliers", part),
        },
    ],
    &[Scale(|config| config.f64(&["ssm_out_multiplier"]))]
);

const SCALED_EMBEDDINGS: &[Recipe] = &[
    Recipe::with(
        "model.embed_tokens",
        "token_embd",
        &[Any, Hidden],
        &[Scale(|config| config.f64(&["embedding_multiplier"]))],
    ),
    Recipe::with(
        "lm_head",
        "output",
        &[Any, Hidden],
        &[Scale(|config| config.f64(&["lm_head_multiplier"]))],
    ),
];

const NORMS: &[Recipe] = &[
    Recipe::rename("model.final_layernorm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.pre_ff_layernorm.weight",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
];

const SCALE_INPUT: Op = Scale(|config| config.f64(&["attention_in_multiplier"]));

const ATTENTION: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[Queries, Hidden],
        &[SCALE_INPUT],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_k",
        &[KeyRows, Hidden],
        &[Scale(|config| config.f64(&["key_multiplier"])), SCALE_INPUT],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.v_proj",
        "blk.{}.attn_v",
        &[KeyRows, Hidden],
        &[SCALE_INPUT],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Queries],
        &[Scale(|config| config.f64(&["attention_out_multiplier"]))],
    ),
];

const FFN: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.feed_forward.gate_proj",
        "blk.{}.ffn_gate",
        &[FeedForward, Hidden],
        &[Scale(|config| of_list(config, "mlp_multipliers", 0))],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.up_proj",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    Recipe::with(
        "model.layers.{}.feed_forward.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
        &[Scale(|config| of_list(config, "mlp_multipliers", 1))],
    ),
];

/// A number from a list of multipliers.
fn of_list(config: &Config, field: &str, number: usize) -> Result<f64> {
    let value = config.get(field);
    let value = value.ok_or_else(|| format!("field '{field}' is missing"))?;
    let multiplier = value.get(number).and_then(serde_json::Value::as_f64);
    let missing = || format!("field '{field}' is {value}; its number {number} is missing");
    multiplier.ok_or_else(missing)
}

fn heads(config: &Config) -> Result<u64> {
    let length = nonzero(config, &["mamba_d_head", "head_dim"])?.unwrap_or(64);
    Ok(INNER.required(config)? / length)
}

const STATE_PARAMETERS: &[Parameter] = &[
    Parameter::OrU32("context_length", &["max_position_embeddings"], 0),
    Parameter::U32("embedding_length", &["hidden_size", "d_model", "dim"]),
    Parameter::U32("feed_forward_length", &["intermediate_size"]),
    Parameter::U32("attention.head_count", &["num_attention_heads"]),
    Parameter::Layers,
    Parameter::OrU32(
        "ssm.conv_kernel",
        &["conv_kernel", "d_conv", "mamba_conv_kernel", "mamba_d_conv"],
        4,
    ),
    Parameter::Computed(|config, keys| {
        let (inner, heads) = (INNER.required(config)?, heads(config)?);
        if heads == 0 || !inner.is_multiple_of(heads) {
            return Err(format!(
                "'mamba_d_ssm' is {inner}, no multiple of {heads} heads"
            ));
        }
        set_size(keys, "ssm.inner_size", inner)
    }),
    Parameter::OrU32(
        "ssm.state_size",
        &["state_size", "d_state", "mamba_state_size", "mamba_d_state"],
        128,
    ),
    Parameter::Computed(|config, keys| set_size(keys, "ssm.time_step_rank", heads(config)?)),
    Parameter::U32("ssm.group_count", &["n_groups", "mamba_n_groups"]),
    Parameter::Computed(epsilon),
];

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::U32("attention.head_count_kv", &["num_key_value_heads"]),
    Parameter::U32("attention.key_length", &["head_dim"]),
    Parameter::U32("attention.value_length", &["head_dim"]),
    Parameter::Computed(|config, keys| {
        let theta = super::config::number_in(config.rope(), "rope_theta")?;
        let theta = theta.ok_or("field 'rope_theta' is missing")?;
        keys.set("rope.freq_base", Value::F32(theta as f32));
        Ok(())
    }),
];
