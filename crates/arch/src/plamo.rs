//! PLaMo 1: Llama with parallel attention and feed-forward network, in one size. PLaMo 2 and 3: pre-
//! and post-norms and QK norms; version 2 with state spaces, version 3 with windows by list.

use super::config::{Result, number_in, wrong_kind};
use super::decoder::{Decoder, Layout, Listed, Mamba2Layers, Needs, Recurrence, Rope, Window};
use super::mamba2::set_size;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags, set_numbers};
use super::recipes::Op::{self, AddNumber, AddOne, NegExp, Squeeze};
use super::recipes::Size::{self, Any, Computed, Head, Hidden, Number, Product};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// Fixed in the reference: the only model's files have a wrong value.
const CONTEXT: u32 = 4096;
const KEY_HEADS: u32 = 5;

pub(super) static PLAMO: Architecture = Architecture {
    classes: &["PlamoForCausalLM"],
    name: "plamo",
    vocabulary: VocabKind::SentencePiece,
    parameters: &[PLAMO_PARAMETERS],
    tensors: &[PLAMO_TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        layout: Layout::Parallel,
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

const PLAMO_PARAMETERS: &[Parameter] = &[
    Parameter::ConstantU32("context_length", CONTEXT),
    Parameter::U32("embedding_length", &["hidden_size"]),
    Parameter::U32("feed_forward_length", &["intermediate_size"]),
    Parameter::Layers,
    Parameter::U32("attention.head_count", &["num_attention_heads"]),
    Parameter::ConstantU32("attention.head_count_kv", KEY_HEADS),
    Parameter::F32("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    Parameter::FileType,
];

/// Query heads in the order of their KV heads: 8 for each of 5.
const fn grouped(axis: usize) -> Op {
    Op::Tile {
        axis,
        groups: Number(8),
        members: Number(5),
    }
}

const GROUPED_ROWS: &[Op] = &[grouped(0)];
const GROUPED_COLUMNS: &[Op] = &[grouped(1)];

const PLAMO_TENSORS: &[Recipe] = &[
    Recipe::rename("model.embed_tokens", "token_embd", &[Any, Hidden]),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename("model.layers.layers.{}.norm", "blk.{}.attn_norm", &[Hidden]),
    Recipe::with(
        "model.layers.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[Number(5120), Number(5120)],
        GROUPED_ROWS,
    ),
    Recipe::rename(
        "model.layers.layers.{}.self_attn.k_proj",
        "blk.{}.attn_k",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.layers.{}.self_attn.v_proj",
        "blk.{}.attn_v",
        &[Any, Hidden],
    ),
    Recipe::with(
        "model.layers.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Number(5120), Number(5120)],
        GROUPED_COLUMNS,
    ),
    Recipe::rename(
        "model.layers.layers.{}.mlp.gate_proj",
        "blk.{}.ffn_gate",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mlp.up_proj",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
    Recipe::skip("model.layers.layers.{}.self_attn.rotary_emb.inv_freq"),
];

pub(super) static PLAMO3: Architecture = Architecture {
    classes: &["Plamo3ForCausalLM", "PLaMo3ForCausalLM"],
    name: "plamo3",
    vocabulary: VocabKind::Plamo3,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[TENSORS, ATTENTION],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        window: Window::Listed(Listed {
            period: 8,
            rope_base: Some(10_000.0),
            ..Listed::THREE_OF_FOUR
        }),
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(windows),
];

/// Attention in every other layer, otherwise a state space whose keys, queries and steps are
/// projections of its values.
pub(super) static PLAMO2: Architecture = Architecture {
    classes: &["Plamo2ForCausalLM", "PLaMo2ForCausalLM"],
    name: "plamo2",
    vocabulary: VocabKind::Plamo2,
    parameters: &[PLAMO2_PARAMETERS, FILE_TYPE],
    tensors: &[PLAMO2_SPACES, PLAMO2_NORMS, TENSORS, ATTENTION],
    decoder: Decoder {
        window: Window::None,
        recurrence: Some(Recurrence::Mamba2(Mamba2Layers::Factored)),
        needs: Needs {
            biases: &["ssm_dt"],
            ..Needs::WEIGHTS
        },
        ..PLAMO3.decoder
    },
    ..PLAMO3
};

/// Heads per layer: none in layers with a state space.
fn plamo2_heads(config: &Config, keys: &mut Keys) -> Result<()> {
    const ENABLED: &str = "mamba_enabled";
    if config.get(ENABLED).is_some_and(|value| *value == false) {
        return Err(format!(
            "field '{ENABLED}' is false; llama.cpp runs only models with state spaces"
        ));
    }
    let step = config.optional_u32(&["mamba_step"])?.unwrap_or(2);
    if step == 0 {
        return Err("field 'mamba_step' is 0".into());
    }
    keys.note(
        "llama.cpp at the reference's commit never finishes a token of such a model: its first layer has no heads, for \
         which llama.cpp rotates those of the others by 0 numbers, without end"
            .into(),
    );
    let layers = config.layers()?;
    let attends = |layer: u32| match layers <= step / 2 {
        true => layer + 1 == layers,
        false => layer % step == step / 2,
    };
    for (key, field, by_default) in [
        ("attention.head_count_kv", "num_key_value_heads", 4),
        ("attention.head_count", "num_attention_heads", 32),
    ] {
        let heads = config.optional_u32(&[field])?.unwrap_or(by_default);
        let heads = (0..layers).map(|layer| u32::from(attends(layer)) * heads);
        set_numbers(keys, key, heads);
    }
    Ok(())
}

const PLAMO2_HEADS: Size = Computed(|config| {
    let heads = config.optional_u32(&["mamba_num_heads"])?;
    Ok(heads.unwrap_or(64).into())
});
const PLAMO2_LENGTH: Size = Computed(|config| {
    let length = config.optional_u32(&["hidden_size_per_head"])?;
    Ok(length.unwrap_or(128).into())
});
const PLAMO2_INNER: Size = Product(&[PLAMO2_HEADS, PLAMO2_LENGTH]);

const PLAMO2_PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(plamo2_heads),
    Parameter::OrU32("context_length", &["max_position_embeddings"], 2048),
    Parameter::OrU32("embedding_length", &["hidden_size"], 4096),
    Parameter::OrU32("attention.key_length", &["hidden_size_per_head"], 128),
    Parameter::OrU32("attention.value_length", &["hidden_size_per_head"], 128),
    Parameter::Layers,
    Parameter::Computed(|config, keys| {
        let epsilon = config.optional_f64(&["rms_norm_eps"])?.unwrap_or(1e-6);
        keys.set(
            "attention.layer_norm_rms_epsilon",
            Value::F32(epsilon as f32),
        );
        let theta = number_in(config.rope(), "rope_theta")?.unwrap_or(10_000.0);
        keys.set("rope.freq_base", Value::F32(theta as f32));
        Ok(())
    }),
    Parameter::OrU32("ssm.state_size", &["mamba_d_state"], 64),
    Parameter::OrU32("ssm.conv_kernel", &["mamba_d_conv"], 4),
    Parameter::OrU32("ssm.time_step_rank", &["mamba_num_heads"], 64),
    Parameter::Computed(|config, keys| {
        set_size(keys, "ssm.inner_size", PLAMO2_INNER.required(config)?)
    }),
    Parameter::ConstantU32("ssm.group_count", 0),
    Parameter::OrU32("feed_forward_length", &["intermediate_size"], 13_312),
];

const PLAMO2_SPACES: &[Recipe] = &[
    Recipe::rename(
        "model.layers.layers.{}.mixer.in_proj",
        "blk.{}.ssm_in",
        &[Any, Hidden],
    ),
    Recipe::with(
        "model.layers.layers.{}.mixer.conv1d.weight",
        "blk.{}.ssm_conv1d.weight",
        &[PLAMO2_INNER, Number(1), Any],
        &[Squeeze(1)],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.bcdt_proj",
        "blk.{}.ssm_x",
        &[Any, PLAMO2_INNER],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.dt_proj",
        "blk.{}.ssm_dt",
        &[PLAMO2_HEADS, Any],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.dt_bias",
        "blk.{}.ssm_dt.bias",
        &[PLAMO2_HEADS],
    )
    .finite(),
    Recipe::with(
        "model.layers.layers.{}.mixer.A_log",
        "blk.{}.ssm_a",
        &[PLAMO2_HEADS],
        &[NegExp],
    )
    .finite(),
    Recipe::rename(
        "model.layers.layers.{}.mixer.D",
        "blk.{}.ssm_d",
        &[PLAMO2_HEADS],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.dt_norm_weight",
        "blk.{}.ssm_dt_norm",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.B_norm_weight",
        "blk.{}.ssm_b_norm",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.C_norm_weight",
        "blk.{}.ssm_c_norm",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.out_proj",
        "blk.{}.ssm_out",
        &[Hidden, PLAMO2_INNER],
    ),
];

/// QK norms with weights per head.
const PLAMO2_NORMS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.layers.{}.mixer.q_weight",
        "blk.{}.attn_q_norm.weight",
        &[Any, Any],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.k_weight",
        "blk.{}.attn_k_norm.weight",
        &[Any, Any],
    ),
];

fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let Some(tokens) = config.optional_u32(&["window_size", "sliding_window"])? else {
        return Ok(());
    };
    keys.set("attention.sliding_window", Value::U32(tokens));
    const PATTERN: &str = "sliding_window_pattern";
    let pattern = config.get(PATTERN);
    let pattern = pattern.ok_or_else(|| format!("field '{PATTERN}' is missing"))?;
    let flags = pattern
        .as_array()
        .map(|list| list.iter().map(|flag| flag.as_bool()));
    if let Some(flags) = flags.and_then(|flags| flags.collect::<Option<Vec<_>>>()) {
        set_flags(keys, "attention.sliding_window_pattern", flags);
        return Ok(());
    }
    let period = pattern
        .as_u64()
        .and_then(|period| u32::try_from(period).ok());
    let period = period.ok_or_else(|| wrong_kind(PATTERN, pattern, "a whole number or a list"))?;
    keys.set("attention.sliding_window_pattern", Value::U32(period));
    Ok(())
}

const PLUS_ONE: &[Op] = &[AddOne];

const TENSORS: &[Recipe] = &[
    Recipe::rename("model.embed_tokens", "token_embd", &[Any, Hidden]),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
    Recipe::with("model.norm", "output_norm", &[Hidden], PLUS_ONE),
    Recipe::with(
        "model.layers.layers.{}.pre_mixer_norm",
        "blk.{}.attn_norm",
        &[Hidden],
        PLUS_ONE,
    ),
    Recipe::with(
        // With its suffix, so that the GGUF's name has none.
        "model.layers.layers.{}.post_mixer_norm.weight",
        "blk.{}.post_attention_norm",
        &[Hidden],
        &[AddNumber(1.0 / 5.0)],
    ),
    Recipe::with(
        "model.layers.layers.{}.pre_mlp_norm",
        "blk.{}.ffn_norm",
        &[Hidden],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.layers.{}.post_mlp_norm.weight",
        "blk.{}.post_ffw_norm",
        &[Hidden],
        // 1 / 5^1.5
        &[AddNumber(0.089_442_719_099_991_59)],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mlp.gate_up_proj",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
];

const ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.layers.{}.mixer.qkv_proj",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::with(
        "model.layers.layers.{}.mixer.q_norm",
        "blk.{}.attn_q_norm",
        &[Head],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.layers.{}.mixer.k_norm",
        "blk.{}.attn_k_norm",
        &[Head],
        PLUS_ONE,
    ),
    Recipe::rename(
        "model.layers.layers.{}.mixer.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
];
