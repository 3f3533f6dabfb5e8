//! Mamba and Falcon Mamba, with selective state spaces, and Jamba, with attention and mixtures of
//! experts in some layers.

use super::config::{Config, Result};
use super::decoder::{Decoder, Needs, Recurrence, Rope, Router, Setting};
use super::llama::{BUFFERS, EMBEDDINGS, PLAIN_ATTENTION, STACKED};
use super::parameters::{FILE_TYPE, set_numbers};
use super::recipes::Op::{NegExp, Squeeze};
use super::recipes::Size::{Any, Computed, Experts, FeedForward, Field, Hidden, Number, Product};
use super::recipes::{Input, Output, Recipe, Size, When};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static MAMBA: Architecture = Architecture {
    classes: &[
        "MambaForCausalLM",
        "MambaLMHeadModel",
        "FalconMambaForCausalLM",
    ],
    name: "mamba",
    vocabulary: VocabKind::Mamba,
    parameters: &[&[Parameter::Computed(mamba)], FILE_TYPE],
    tensors: &[MAMBA_ENDS, MAMBA_LAYERS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        recurrence: Some(Recurrence::Mamba),
        needs: Needs {
            biases: &["ssm_conv1d", "ssm_dt"],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

pub(super) static JAMBA: Architecture = Architecture {
    classes: &["JambaForCausalLM"],
    name: "jamba",
    vocabulary: VocabKind::Jamba,
    parameters: &[&[Parameter::Computed(jamba)], FILE_TYPE],
    tensors: &[
        EMBEDDINGS,
        JAMBA_NORMS,
        JAMBA_STATES,
        PLAIN_ATTENTION,
        JAMBA_FFN,
        JAMBA_EXPERTS,
        BUFFERS,
    ],
    decoder: Decoder {
        router: Router {
            normalized: Setting::Always(false),
            ..Router::SOFTMAX
        },
        ..MAMBA.decoder
    },
    ..MAMBA
};

const MODEL: Size = Field(&["hidden_size", "d_model"]);
const KERNEL: Size = Field(&["conv_kernel", "d_conv"]);
/// The number of channels: llama.cpp supports no other.
const CHANNELS: Size = Product(&[Number(2), MODEL]);

const MAMBA_ENDS: &[Recipe] = &[
    Recipe::rename("backbone.embeddings", "token_embd", &[Any, MODEL]),
    Recipe::rename("backbone.embedding", "token_embd", &[Any, MODEL]),
    Recipe::rename("backbone.norm_f", "output_norm", &[MODEL]),
    Recipe::rename("lm_head", "output", &[Any, MODEL])
        .unless_equal(&["backbone.embeddings.weight", "backbone.embedding.weight"]),
];

/// Biases of the outer matrices are unsupported by llama.cpp.
const MAMBA_LAYERS: &[Recipe] = &[
    Recipe::rename("backbone.layers.{}.norm", "blk.{}.attn_norm", &[MODEL]),
    Recipe::rename(
        "backbone.layers.{}.mixer.in_proj.weight",
        "blk.{}.ssm_in.weight",
        &[Product(&[Number(2), CHANNELS]), MODEL],
    ),
    Recipe::with(
        "backbone.layers.{}.mixer.conv1d.weight",
        "blk.{}.ssm_conv1d.weight",
        &[CHANNELS, Number(1), KERNEL],
        &[Squeeze(1)],
    ),
    Recipe::rename(
        "backbone.layers.{}.mixer.conv1d.bias",
        "blk.{}.ssm_conv1d.bias",
        &[CHANNELS],
    ),
    Recipe::rename(
        "backbone.layers.{}.mixer.x_proj",
        "blk.{}.ssm_x",
        &[Any, CHANNELS],
    ),
    Recipe::rename(
        "backbone.layers.{}.mixer.dt_proj",
        "blk.{}.ssm_dt",
        &[CHANNELS, Any],
    ),
    Recipe::with(
        "backbone.layers.{}.mixer.A_log",
        "blk.{}.ssm_a",
        &[CHANNELS, Any],
        &[NegExp],
    ),
    Recipe::rename("backbone.layers.{}.mixer.D", "blk.{}.ssm_d", &[CHANNELS]),
    Recipe::rename(
        "backbone.layers.{}.mixer.out_proj.weight",
        "blk.{}.ssm_out.weight",
        &[MODEL, CHANNELS],
    ),
];

const JAMBA_NORMS: &[Recipe] = &[
    Recipe::rename("model.final_layernorm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.pre_ff_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
];

const STATE: Size = Field(&["mamba_d_state"]);
const RANK: Size = Computed(|config| rank_of(config, "mamba_dt_rank").map(u64::from));

const JAMBA_STATES: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mamba.in_proj.weight",
        "blk.{}.ssm_in.weight",
        &[Product(&[Number(2), CHANNELS]), Hidden],
    ),
    Recipe::with(
        "model.layers.{}.mamba.conv1d.weight",
        "blk.{}.ssm_conv1d.weight",
        &[CHANNELS, Number(1), Field(&["mamba_d_conv"])],
        &[Squeeze(1)],
    ),
    Recipe::rename(
        "model.layers.{}.mamba.conv1d.bias",
        "blk.{}.ssm_conv1d.bias",
        &[CHANNELS],
    ),
    Recipe::rename(
        "model.layers.{}.mamba.x_proj",
        "blk.{}.ssm_x",
        &[Any, CHANNELS],
    ),
    Recipe::rename(
        "model.layers.{}.mamba.dt_layernorm",
        "blk.{}.ssm_dt_norm",
        &[RANK],
    ),
    Recipe::rename(
        "model.layers.{}.mamba.b_layernorm",
        "blk.{}.ssm_b_norm",
        &[STATE],
    ),
    Recipe::rename(
        "model.layers.{}.mamba.c_layernorm",
        "blk.{}.ssm_c_norm",
        &[STATE],
    ),
    Recipe::rename(
        "model.layers.{}.mamba.dt_proj",
        "blk.{}.ssm_dt",
        &[CHANNELS, RANK],
    ),
    Recipe::with(
        "model.layers.{}.mamba.A_log",
        "blk.{}.ssm_a",
        &[CHANNELS, STATE],
        &[NegExp],
    ),
    Recipe::rename("model.layers.{}.mamba.D", "blk.{}.ssm_d", &[CHANNELS]),
    Recipe::rename(
        "model.layers.{}.mamba.out_proj.weight",
        "blk.{}.ssm_out.weight",
        &[Hidden, CHANNELS],
    ),
];

/// The feed-forward network of a dense layer, under its names or those of a single expert.
const JAMBA_FFN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.feed_forward.gate_proj",
        "blk.{}.ffn_gate",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.up_proj",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.experts.0.gate_proj",
        "blk.{}.ffn_gate",
        &[FeedForward, Hidden],
    )
    .when(When::Layers(is_dense)),
    Recipe::rename(
        "model.layers.{}.feed_forward.experts.0.up_proj",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    )
    .when(When::Layers(is_dense)),
    Recipe::rename(
        "model.layers.{}.feed_forward.experts.0.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    )
    .when(When::Layers(is_dense)),
];

const JAMBA_EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.feed_forward.router.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
    ),
    Recipe::new(
        &[
            Input::new(
                "model.layers.{}.feed_forward.experts.{}.down_proj.weight",
                &[Hidden, FeedForward],
            ),
            Input::new(
                "model.layers.{}.feed_forward.experts.{}.gate_proj.weight",
                &[FeedForward, Hidden],
            ),
            Input::new(
                "model.layers.{}.feed_forward.experts.{}.up_proj.weight",
                &[FeedForward, Hidden],
            ),
        ],
        &[
            Output::of(&[0], "blk.{}.ffn_down_exps.weight", STACKED),
            Output::of(&[1], "blk.{}.ffn_gate_exps.weight", STACKED),
            Output::of(&[2], "blk.{}.ffn_up_exps.weight", STACKED),
        ],
    ),
];

/// An integer under the first of these names, or a default; 0 counts as missing.
fn number(config: &Config, names: &[&str], otherwise: u32) -> Result<u32> {
    let number = config.optional_u32(names)?;
    Ok(number.filter(|number| *number > 0).unwrap_or(otherwise))
}

/// Default rank of steps: a sixteenth of the hidden size.
fn usual_rank(hidden: u32) -> u32 {
    hidden.div_ceil(16)
}

/// Rank of steps; "auto" is the default.
fn rank_of(config: &Config, name: &str) -> Result<u32> {
    let hidden = config.u32(&["hidden_size"])?;
    match config.get(name).is_some_and(|rank| *rank == "auto") {
        true => Ok(usual_rank(hidden)),
        false => number(config, &[name], usual_rank(hidden)),
    }
}

fn epsilon(config: &Config, otherwise: f64) -> Result<Value<'static>> {
    let epsilon = config.optional_f64(&["layer_norm_epsilon", "rms_norm_eps"])?;
    let epsilon = epsilon.filter(|epsilon| *epsilon != 0.0);
    Ok(Value::F32(epsilon.unwrap_or(otherwise) as f32))
}

/// Twice the hidden size, required as the number of channels.
fn twice(hidden: u32, channels: u32, field: &str) -> Result<u32> {
    match hidden.checked_mul(2) == Some(channels) {
        true => Ok(channels),
        false => Err(format!(
            "the states have {channels} channels by '{field}', and the hidden size is {hidden}: llama.cpp runs only \
             models with twice as many"
        )),
    }
}

fn mamba(config: &Config, keys: &mut Keys) -> Result<()> {
    let hidden = config.u32(&["hidden_size", "d_model"])?;
    let usual = hidden.saturating_mul(2);
    let channels = number(config, &["intermediate_size", "d_inner"], usual)?;
    let is_falcon = config.model_types().contains(&Some("falcon_mamba"));
    for (key, value) in [
        // Any length works.
        ("context_length", 1 << 20),
        ("embedding_length", hidden),
        ("feed_forward_length", 0),
        ("attention.head_count", 0),
        ("block_count", config.blocks()?),
        (
            "ssm.conv_kernel",
            number(config, &["conv_kernel", "d_conv"], 4)?,
        ),
        (
            "ssm.inner_size",
            twice(hidden, channels, "intermediate_size")?,
        ),
        (
            "ssm.state_size",
            number(config, &["state_size", "d_state"], 16)?,
        ),
        (
            "ssm.time_step_rank",
            number(config, &["time_step_rank", "dt_rank"], usual_rank(hidden))?,
        ),
    ] {
        keys.set(key, Value::U32(value));
    }
    keys.set("attention.layer_norm_rms_epsilon", epsilon(config, 1e-5)?);
    keys.set("ssm.dt_b_c_rms", Value::Bool(is_falcon));
    Ok(())
}

fn jamba(config: &Config, keys: &mut Keys) -> Result<()> {
    let hidden = config.u32(&["hidden_size", "mamba_d_model"])?;
    let channels = config.u32(&["mamba_expand"])?.saturating_mul(hidden);
    for (key, value) in [
        ("block_count", config.blocks()?),
        (
            "context_length",
            config.u32(&["max_position_embeddings", "n_ctx"])?,
        ),
        ("embedding_length", hidden),
        ("feed_forward_length", config.u32(&["intermediate_size"])?),
        (
            "attention.head_count",
            config.u32(&["num_attention_heads"])?,
        ),
    ] {
        keys.set(key, Value::U32(value));
    }
    let heads = config.u32(&["num_key_value_heads"])?;
    let attends = |layer: u32| is_of(config, "attn", layer);
    let layers = (0..config.layers()?).map(|layer| Ok(if attends(layer)? { heads } else { 0 }));
    let layers: Result<Vec<u32>> = layers.collect();
    set_numbers(keys, "attention.head_count_kv", layers?);
    for (key, value) in [
        ("ssm.conv_kernel", number(config, &["mamba_d_conv"], 4)?),
        ("ssm.inner_size", twice(hidden, channels, "mamba_expand")?),
        ("ssm.state_size", number(config, &["mamba_d_state"], 16)?),
        ("ssm.time_step_rank", rank_of(config, "mamba_dt_rank")?),
    ] {
        keys.set(key, Value::U32(value));
    }
    keys.set("attention.layer_norm_rms_epsilon", epsilon(config, 1e-6)?);
    let experts = config.u32(&["num_local_experts", "num_experts"])?;
    let used = config.u32(&["num_experts_per_tok", "num_experts_per_token"])?;
    keys.set("expert_count", Value::U32(experts));
    keys.set("expert_used_count", Value::U32(used));
    Ok(())
}

/// True if a layer is of this kind (`attn`, `expert`), by the kind's offset and period.
fn is_of(config: &Config, kind: &str, layer: u32) -> Result<bool> {
    let number = |what: &str| config.u32(&[&format!("{kind}_layer_{what}")]);
    let (offset, period) = (number("offset")?, number("period")?);
    match period {
        0 => Err(format!("field '{kind}_layer_period' is 0")),
        _ => Ok(layer >= offset && (layer - offset).is_multiple_of(period)),
    }
}

fn is_dense(config: &Config, layer: u32) -> bool {
    is_of(config, "expert", layer) == Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn config(fields: Json) -> Config {
        Config::new(fields.as_object().unwrap().clone()).unwrap()
    }

    fn jamba_config(more: Json) -> Config {
        let mut fields = json!({ "model_type": "jamba", "num_hidden_layers": 10 });
        let both = fields.as_object_mut().unwrap();
        both.extend(more.as_object().unwrap().clone());
        config(fields)
    }

    #[test]
    fn layers_by_offset_and_period() {
        let jamba = jamba_config(json!({}));
        let of = |kind: &str| -> Vec<u32> {
            let is_of = |layer: &u32| is_of(&jamba, kind, *layer).unwrap();
            (0..10).filter(is_of).collect()
        };
        assert_eq!(of("attn"), [4]);
        assert_eq!(of("expert"), [1, 3, 5, 7, 9]);
        assert!(is_dense(&jamba, 2) && !is_dense(&jamba, 3));
        let damaged = jamba_config(json!({ "attn_layer_period": 0 }));
        let error = is_of(&damaged, "attn", 4).unwrap_err();
        assert!(error.contains("'attn_layer_period'"), "{error}");
    }

    #[test]
    fn default_rank_by_hidden_size() {
        let rank = |more: Json| rank_of(&jamba_config(more), "mamba_dt_rank");
        assert_eq!(rank(json!({ "hidden_size": 100 })), Ok(7));
        assert_eq!(
            rank(json!({ "hidden_size": 100, "mamba_dt_rank": "auto" })),
            Ok(7)
        );
        assert_eq!(rank(json!({ "mamba_dt_rank": 160 })), Ok(160));
    }

    #[test]
    fn other_channel_counts_are_rejected() {
        let mut keys = Keys::new("jamba", 0);
        let error = jamba(&jamba_config(json!({ "mamba_expand": 3 })), &mut keys).unwrap_err();
        assert!(error.contains("'mamba_expand'"), "{error}");
        let odd = config(json!({ "hidden_size": 64, "num_hidden_layers": 1, "d_inner": 96 }));
        let error = mamba(&odd, &mut keys).unwrap_err();
        assert!(error.contains("96 channels"), "{error}");
    }
}
