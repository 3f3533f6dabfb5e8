//! MiMo V2: attention sinks, sliding windows in listed layers with their own KV heads and RoPE,
//! values shorter than keys, sigmoid-gated experts with a bias in their choice, three multi-token
//! prediction blocks.

use super::bailing::BLOCK_NORM;
use super::config::{Config, Result, wrong_kind};
use super::decoder::{Decoder, Gating, Listed, Needs, Rope, Router, Setting, Window};
use super::experts::{EXPERT_LENGTH, GATE_UP_DOWN, ROUTER, SELECTION_BIAS};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, LISTED_ATTENTION, NORMS};
use super::nextn::{NEXTN, PREDICT_LAYERS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, rotated_part, set_numbers};
use super::recipes::Size::{Any, Hidden, QueryHeads};
use super::{Architecture, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// Number of multi-token prediction blocks, missing in the config.
pub(super) const BLOCKS: u32 = 3;

pub(super) static MIMO2: Architecture = Architecture {
    classes: &["MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"],
    name: "mimo2",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS, PREDICT_LAYERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        LISTED_ATTENTION,
        FUSED_AND_SINKS,
        GATED_FFN,
        ROUTER,
        SELECTION_BIAS,
        GATE_UP_DOWN,
        NEXTN,
        BLOCK_NORM,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        router: Router {
            gating: Setting::Always(Gating::Sigmoid),
            ..Router::SOFTMAX
        },
        window: Window::Listed(Listed::THREE_OF_FOUR),
        needs: Needs {
            optional: &["attn_sinks", "exp_probs_b", "layer_output_norm"],
            ..Needs::OWN_OUTPUT
        },
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(check),
    Parameter::Computed(windows),
    Parameter::U32("attention.value_length", &["v_head_dim"]),
    Parameter::U32("expert_count", &["n_routed_experts"]),
    EXPERT_LENGTH,
    Parameter::Computed(|config, keys| {
        let length = f64::from(config.u32(&["head_dim"])?);
        let rotated = (length * rotated_part(config, None)?) as u32;
        keys.set("rope.dimension_count", Value::U32(rotated));
        let epsilon = config.optional_f64(&["layernorm_epsilon"])?;
        let epsilon = epsilon.unwrap_or(1e-5) as f32;
        keys.set("attention.layer_norm_rms_epsilon", Value::F32(epsilon));
        Ok(())
    }),
    Parameter::OptionalF32("attention.value_scale", &["attention_value_scale"]),
];

/// The reference's requirements.
fn check(config: &Config, _: &mut Keys) -> Result<()> {
    for [windowed, field] in [
        ["swa_head_dim", "head_dim"],
        ["swa_num_attention_heads", "num_attention_heads"],
        ["swa_v_head_dim", "v_head_dim"],
    ] {
        let (of_windows, of_all) = (config.u32(&[windowed])?, config.u32(&[field])?);
        if of_windows != of_all {
            return Err(format!(
                "'{windowed}' is {of_windows}, and '{field}' is {of_all}: llama.cpp runs layers of one kind"
            ));
        }
    }
    let null = serde_json::Value::Null;
    let method = config.get("topk_method").unwrap_or(&null);
    if *method != "noaux_tc" {
        return Err(wrong_kind("topk_method", method, "'noaux_tc'"));
    }
    const BLOCK: &str = "mxfp4_block_size";
    match config.number_of("quantization_config", BLOCK)? {
        None | Some(32) => {}
        Some(size) => {
            return Err(format!(
                "'{BLOCK}' is {size}; ggml's blocks of 4-bit floats have 32 columns per scale"
            ));
        }
    }
    Ok(())
}

/// Layers with windows, and their KV heads. Multi-token prediction blocks have windows.
fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let value = config.get(PATTERN);
    let value = value.ok_or_else(|| format!("field '{PATTERN}' is missing"))?;
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    let layers = config.layers()? as usize;
    if list.len() != layers || list.iter().any(|flag| *flag != 0 && *flag != 1) {
        return Err(wrong_kind(
            PATTERN,
            value,
            &format!("a list of {layers} numbers, 1 for a window and 0 for none"),
        ));
    }
    let blocks = config.blocks()? as usize;
    let flags = list.iter().map(|flag| u32::from(*flag == 1));
    let flags: Vec<u32> = flags.chain([1; 8]).take(blocks).collect();
    let (all, windowed) = (
        config.u32(&["num_key_value_heads"])?,
        config.u32(&["swa_num_key_value_heads"])?,
    );
    let heads = flags.iter().map(|flag| [all, windowed][*flag as usize]);
    set_numbers(keys, "attention.head_count_kv", heads);
    let tokens = config.u32(&["sliding_window"])?;
    keys.set("attention.sliding_window", Value::U32(tokens));
    set_numbers(keys, "attention.sliding_window_pattern", flags);
    Ok(())
}

/// Rows of queries, keys and values in a fused projection; None for other tensors and families.
///
/// # Errors
/// A missing field, or one of the wrong kind.
pub fn fused_rows(config: &Config, name: &str) -> Result<Option<[u64; 3]>> {
    const FUSED: &str = ".self_attn.qkv_proj.weight";
    let is_own = config
        .class()
        .is_some_and(|class| MIMO2.classes.contains(&class));
    if !is_own || !name.ends_with(FUSED) {
        return Ok(None);
    }
    let within = match MIMO2.nextn() {
        Some(names) => names.within_layers(name, config)?,
        None => Vec::new(),
    };
    let name = within.first().map_or(name, String::as_str);
    let matched = MIMO2.recipe(name, config);
    let Some(layer) = matched.and_then(|(_, matched)| matched.layer) else {
        return Ok(None);
    };
    let listed = config.get(PATTERN).and_then(serde_json::Value::as_array);
    let flag = listed.and_then(|list| list.get(layer as usize));
    let heads = match layer >= config.layers()? || flag.is_some_and(|flag| *flag == 1) {
        true => "swa_num_key_value_heads",
        false => "num_key_value_heads",
    };
    let rows = |heads: &str, length: &str| -> Result<u64> {
        Ok(u64::from(config.u32(&[heads])?) * u64::from(config.u32(&[length])?))
    };
    Ok(Some([
        rows("num_attention_heads", "head_dim")?,
        rows(heads, "head_dim")?,
        rows(heads, "v_head_dim")?,
    ]))
}

/// Layers with windows: 1.
const PATTERN: &str = "hybrid_layer_pattern";

/// Fused projections of some checkpoints, and sinks.
const FUSED_AND_SINKS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.qkv_proj",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.attention_sink_bias",
        "blk.{}.attn_sinks.weight",
        &[QueryHeads],
    ),
];
