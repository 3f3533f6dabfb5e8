//! Step 3.5 and 3.7: sliding windows in listed layers, with their own heads and full RoPE, and half
//! RoPE in the others; a gate per head; stacked sigmoid-gated experts with a bias in their choice.

use super::config::{Config, Result, number_in, wrong_kind};
use super::decoder::{Decoder, Listed, Needs, Rope, Router, Window};
use super::experts::EXPERT_LENGTH;
use super::llama::{ATTENTION_GATE, BUFFERS, EMBEDDINGS, GATED_FFN, LISTED_ATTENTION, frequencies};
use super::nextn::PREDICT_LAYERS;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags, set_numbers};
use super::recipes::Op::{self, AddOne};
use super::recipes::Recipe;
use super::recipes::Size::{self, Any, Field, Head, Hidden, Number, Product};
use super::{Architecture, Generated, Keys, Parameter};
use quantier_gguf::gguf::{Array, Value, ValueType};
use quantier_tokenizer::VocabKind;

pub(super) static STEP35: Architecture = Architecture {
    classes: &["Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"],
    name: "step35",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS, PREDICT_LAYERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        LISTED_ATTENTION,
        ATTENTION_GATE,
        GATED_FFN,
        EXPERTS,
        FURTHER,
        BUFFERS,
    ],
    generated: rope_factors,
    decoder: Decoder {
        rope: Rope::Halves,
        router: Router::LISTED,
        half_rotated: true,
        window: Window::Listed(Listed::THREE_OF_FOUR),
        needs: Needs {
            optional: &[
                "attn_q_norm",
                "attn_k_norm",
                "attn_gate",
                "exp_probs_b",
                "ffn_gate_shexp",
                "ffn_up_shexp",
                "ffn_down_shexp",
            ],
            ..Needs::OWN_OUTPUT
        },
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(layers),
    Parameter::U32("attention.value_length", &["head_dim"]),
    Parameter::U32("expert_count", &["moe_num_experts"]),
    Parameter::U32("expert_used_count", &["moe_top_k"]),
    EXPERT_LENGTH,
    Parameter::U32("expert_shared_feed_forward_length", &["share_expert_dim"]),
    Parameter::OptionalF32("expert_weights_scale", &["moe_router_scaling_factor"]),
    Parameter::Computed(|config, keys| {
        if let Some(normalized) = config.get("norm_expert_weight") {
            keys.set("expert_weights_norm", Value::Bool(*normalized == true));
        }
        Ok(())
    }),
    Parameter::Computed(dense_layers),
    Parameter::OrU32("moe_every_n_layers", &["moe_every_n_layer"], 1),
    Parameter::Computed(|config, keys| {
        let epsilon = config.optional_f64(&["rms_norm_eps"])?.unwrap_or(1e-5);
        keys.set(
            "attention.layer_norm_rms_epsilon",
            Value::F32(epsilon as f32),
        );
        limits(config, keys, "swiglu_limits", "swiglu_clamp_exp")?;
        limits(config, keys, "swiglu_limits_shared", "swiglu_clamp_shexp")
    }),
];

/// Rotated fraction of a head in layers without windows.
const HALF: f64 = 0.5;

/// The entries of a list with one per block, padded.
fn padded(
    config: &Config,
    field: &str,
    filling: serde_json::Value,
) -> Result<Vec<serde_json::Value>> {
    let value = config.get(field);
    let mut list = match value {
        None => Vec::new(),
        Some(value) => {
            let list = value.as_array();
            let wrong = || wrong_kind(field, value, "a list with one entry for each layer");
            list.ok_or_else(wrong)?.clone()
        }
    };
    list.resize(config.blocks()? as usize, filling);
    Ok(list)
}

fn layers(config: &Config, keys: &mut Keys) -> Result<()> {
    let kinds = padded(config, "layer_types", "full_attention".into())?;
    let flags: Vec<bool> = kinds
        .iter()
        .map(|kind| kind == "sliding_attention")
        .collect();
    const PARTS: &str = "partial_rotary_factors";
    let parts = padded(config, PARTS, HALF.into())?;
    let wanted = |is_windowed: &bool| if *is_windowed { 1.0 } else { HALF };
    let places = flags.iter().zip(&parts);
    if let Some((layer, (flag, part))) = places
        .enumerate()
        .find(|(_, (flag, part))| part.as_f64() != Some(wanted(flag)))
    {
        let wanted = wanted(flag);
        return Err(format!(
            "'{PARTS}' of layer {layer} is {part}; llama.cpp rotates {wanted} of a head in layers of its kind"
        ));
    }
    const OTHER: &str = "attention_other_setting";
    for (key, field) in [
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_attention_groups"),
    ] {
        let all = config.u32(&[field])?;
        let windowed = config.number_of(OTHER, field)?.unwrap_or(all);
        let heads = flags.iter().map(|flag| if *flag { windowed } else { all });
        set_numbers(keys, key, heads);
    }
    let tokens = config.u32(&["sliding_window"])?;
    keys.set("attention.sliding_window", Value::U32(tokens));
    set_flags(keys, "attention.sliding_window_pattern", flags);
    Ok(())
}

/// Number of layers before the first that the config lists as one with experts.
fn dense_layers(config: &Config, keys: &mut Keys) -> Result<()> {
    const FIELD: &str = "moe_layers_enum";
    let listed = config.get(FIELD).and_then(|list| list.as_str());
    let listed = listed.map(str::trim).filter(|list| !list.is_empty());
    let mut dense = 0;
    if let Some(list) = listed {
        let layers = list
            .split(',')
            .map(|layer| layer.trim().parse::<u32>().ok());
        let layers = layers.collect::<Option<Vec<u32>>>();
        let layers = layers
            .ok_or_else(|| wrong_kind(FIELD, &list.into(), "numbers of layers between commas"))?;
        dense = layers.into_iter().min().unwrap_or(0);
    }
    keys.set("leading_dense_block_count", Value::U32(dense));
    Ok(())
}

/// Activation limits, one per block; 0 for none.
fn limits(config: &Config, keys: &mut Keys, field: &str, key: &str) -> Result<()> {
    let Some(value) = config.get(field) else {
        return Ok(());
    };
    let limit = |limit: &serde_json::Value| match limit.is_null() {
        true => Some(0.0),
        false => limit.as_f64(),
    };
    let list = padded(config, field, 0.0.into())?;
    let limits: Option<Vec<f64>> = list.iter().map(limit).collect();
    let limits = limits.ok_or_else(|| wrong_kind(field, value, "a list of numbers"))?;
    let limits = limits.into_iter().map(|limit| Value::F32(limit as f32));
    keys.set(key, Value::Array(Array::of_values(ValueType::F32, limits)));
    Ok(())
}

/// Llama 3.1's RoPE scaling of the rotated half of a head, followed by ones.
fn rope_factors(config: &Config, _: &mut Keys) -> Result<Vec<Generated>> {
    let rope = config.rope();
    let kind = rope.get("rope_type").and_then(|kind| kind.as_str());
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("llama3")) {
        return Ok(Vec::new());
    }
    let head = config.head_len()?;
    let rotated = (f64::from(head) * HALF) as u32;
    let number = |name, default| Ok::<_, String>(number_in(rope, name)?.unwrap_or(default));
    let base = number("rope_theta", 10_000.0)? as f32;
    let (factor, low) = (number("factor", 8.0)?, number("low_freq_factor", 1.0)?);
    let high = number("high_freq_factor", 4.0)?;
    let context = number("original_max_position_embeddings", 8192.0)?.trunc();
    // In f64 after the frequencies, unlike Llama's.
    let divisor = |frequency: f32| {
        let wavelength = std::f64::consts::TAU / f64::from(frequency);
        if wavelength < context / high {
            return 1.0;
        }
        if wavelength > context / low {
            return factor as f32;
        }
        let smooth = (context / wavelength - low) / (high - low);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    let mut weights: Vec<f32> = frequencies(base, rotated).map(divisor).collect();
    weights.resize((head / 2) as usize, 1.0);
    Ok(vec![Generated::vector("rope_freqs.weight", weights)])
}

const NORM: &[Op] = &[AddOne];
const WIDTH: Size = Field(&["moe_intermediate_size"]);
const COUNT: Size = Field(&["moe_num_experts"]);

const NORMS: &[Recipe] = &[
    Recipe::with("model.norm", "output_norm", &[Hidden], NORM),
    Recipe::with(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
        NORM,
    ),
    Recipe::with(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
        NORM,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_q_norm",
        &[Head],
        NORM,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.k_norm",
        "blk.{}.attn_k_norm",
        &[Head],
        NORM,
    ),
];

const EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.moe.gate.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[COUNT, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.moe.router_bias",
        "blk.{}.exp_probs_b.bias",
        &[COUNT],
    ),
    Recipe::rename(
        "model.layers.{}.moe.gate_proj",
        "blk.{}.ffn_gate_exps",
        &[COUNT, WIDTH, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.moe.up_proj",
        "blk.{}.ffn_up_exps",
        &[COUNT, WIDTH, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.moe.down_proj",
        "blk.{}.ffn_down_exps",
        &[COUNT, Hidden, WIDTH],
    ),
    Recipe::rename(
        "model.layers.{}.share_expert.gate_proj",
        "blk.{}.ffn_gate_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.share_expert.up_proj",
        "blk.{}.ffn_up_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.share_expert.down_proj",
        "blk.{}.ffn_down_shexp",
        &[Hidden, Any],
    ),
];

/// Tensors of a multi-token prediction block in addition to those of a layer.
const FURTHER: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.eh_proj",
        "blk.{}.nextn.eh_proj",
        &[Hidden, Product(&[Number(2), Hidden])],
    ),
    // The reference adds 1 to every tensor with the suffix `norm`.
    Recipe::with(
        "model.layers.{}.enorm",
        "blk.{}.nextn.enorm",
        &[Hidden],
        NORM,
    ),
    Recipe::with(
        "model.layers.{}.hnorm",
        "blk.{}.nextn.hnorm",
        &[Hidden],
        NORM,
    ),
    Recipe::with(
        "model.layers.{}.transformer.shared_head.norm",
        "blk.{}.nextn.shared_head_norm",
        &[Hidden],
        NORM,
    ),
    Recipe::rename(
        "model.layers.{}.transformer.shared_head.output",
        "blk.{}.nextn.shared_head_head",
        &[Any, Hidden],
    ),
];
