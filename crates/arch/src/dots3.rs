//! dots3 note: DeepSeek V3's latent attention in two sizes, with sliding windows in listed layers and
//! an indexer in the others, a gate for each head, and experts behind dense layers.

use super::config::{Config, Result};
use super::decoder::{Decoder, IndexerKind, Listed, Needs, Rope, Router, ScoreYarn, Window};
use super::deepseek::{
    DEEPSEEK2, EXPERT_PARAMETERS, LATENT, LATENT_DECODER, PARAMETERS, QUERIES, ROTATION,
    SELECTION_BIAS, TIED_OUTPUT,
};
use super::experts::SHARED_EXPERTS;
use super::kimi::ATTENTION as OUTPUT;
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS};
use super::nextn::{NEXTN, PREDICT_LAYERS};
use super::parameters::{COMMON, FILE_TYPE, set_flags, set_numbers};
use super::qwen::EXPERTS;
use super::recipes::Op::{self, Reshape, ScaleBy, Transpose};
use super::recipes::Size::{self, Any, Field, Hidden};
use super::recipes::{Input, Output, Recipe, When};
use super::sparse::{INDEXER as ANYWHERE, INDEXER_PARAMETERS};
use super::{Architecture, Keys, Parameter};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;
use serde_json::Value as Json;

pub(super) static DOTS3_NOTE: Architecture = Architecture {
    classes: &[
        "Dots3NoteForCausalLM",
        "Dots3NoteForConditionalGeneration",
        "Dots3NoteTextForCausalLM",
    ],
    name: "dots3note",
    vocabulary: VocabKind::Dots3,
    parameters: &[
        COMMON,
        FILE_TYPE,
        CHECKS,
        PARAMETERS,
        LATENT,
        EXPERT_PARAMETERS,
        ROTATION,
        WINDOWS,
        PREDICT_LAYERS,
        INDEXER_PARAMETERS,
        INDEXED_LAYERS,
    ],
    tensors: &[
        TIED_OUTPUT,
        EMBEDDINGS,
        NORMS,
        SCALED_NORMS,
        QUERIES,
        LATENT_ATTENTION,
        OUTPUT,
        GATES,
        INDEXER,
        GATED_FFN,
        EXPERTS,
        SHARED_EXPERTS,
        SELECTION_BIAS,
        NEXTN,
        BUFFERS,
    ],
    decoder: Decoder {
        router: Router::LISTED,
        score_yarn: Some(ScoreYarn {
            is_listed: true,
            is_balanced: false,
        }),
        indexer: Some(IndexerKind {
            rope: Rope::Halves,
            epsilon: 1e-6,
        }),
        window: Window::Listed(Listed::THREE_OF_FOUR),
        drafts: false,
        refused: Some("its latent attention has other lengths in layers with sliding windows"),
        needs: Needs {
            biases: &["exp_probs_b", "indexer.k_norm"],
            ..Needs::WEIGHTS
        },
        ..LATENT_DECODER
    },
    ..DEEPSEEK2
};

const KINDS: &str = "layer_types";

/// True for layers with a window, and for multi-token prediction blocks.
fn has_window(config: &Config, layer: u32) -> bool {
    let kinds = config.get(KINDS).and_then(Json::as_array);
    let kind = kinds.and_then(|kinds| kinds.get(layer as usize));
    config.layers().is_ok_and(|layers| layer >= layers)
        || kind.is_some_and(|kind| kind == "sliding_attention")
}

fn has_no_window(config: &Config, layer: u32) -> bool {
    !has_window(config, layer)
}

/// The reference's requirements, and heads by layer.
const CHECKS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let layers = config.layers()?;
    let kinds = config.get(KINDS).and_then(Json::as_array);
    if kinds.is_none_or(|kinds| kinds.len() < layers as usize) {
        return Err(format!(
            "field '{KINDS}' is no list of the kinds of {layers} layers"
        ));
    }
    for (field, wanted, by_default) in [
        ("use_dsa", Json::from(true), true),
        ("normalization", "RMSNorm".into(), true),
        ("final_norm", "RMSNorm".into(), true),
        ("k_rope_only_layernorm", true.into(), true),
        ("topk_method", "noaux_tc".into(), true),
        ("scoring_func", "sigmoid".into(), false),
        ("n_group", 1.into(), true),
        ("topk_group", 1.into(), true),
        ("use_dynamic_rsf", false.into(), true),
        ("moe_gating_fp32", false.into(), true),
        ("attention_gate_type", "headwise".into(), true),
        ("swa_attention_gate_type", "headwise".into(), true),
    ] {
        match config.get(field) {
            None if by_default => {}
            Some(value) if *value == wanted => {}
            _ => {
                return Err(format!(
                    "field '{field}' is not {wanted}; llama.cpp runs no dots3 note without it"
                ));
            }
        }
    }
    let [plain, rotated, length] = [
        config.u32(&["swa_qk_nope_head_dim"])?,
        config.u32(&["swa_qk_rope_head_dim"])?,
        config.optional_u32(&["swa_head_dim"])?.unwrap_or(256),
    ];
    if plain.checked_add(rotated) != Some(length) {
        return Err(format!(
            "'swa_head_dim' is {length}, and 'swa_qk_nope_head_dim' and 'swa_qk_rope_head_dim' are {plain} and {rotated}"
        ));
    }
    for [windowed, field] in [
        ["swa_qk_rope_head_dim", "qk_rope_head_dim"],
        ["swa_q_lora_rank", "q_lora_rank"],
    ] {
        let (of_windows, of_all) = (config.u32(&[windowed])?, config.u32(&[field])?);
        if of_windows != of_all {
            return Err(format!(
                "'{windowed}' is {of_windows}, and '{field}' is {of_all}: llama.cpp runs layers of one kind"
            ));
        }
    }
    let [all, windowed] =
        ["num_attention_heads", "swa_num_attention_heads"].map(|field| config.u32(&[field]));
    let (all, windowed) = (all?, windowed?);
    let heads = (0..config.blocks()?).map(|layer| match has_window(config, layer) {
        true => windowed,
        false => all,
    });
    set_numbers(keys, "attention.head_count", heads);
    Ok(())
})];

const WINDOWS: &[Parameter] = &[
    Parameter::U32("attention.sliding_window", &["sliding_window_size"]),
    Parameter::Computed(windows),
];

fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let layers = 0..config.layers()?;
    let windowed = layers.map(|layer| has_window(config, layer));
    set_flags(keys, "attention.sliding_window_pattern", windowed);
    let [rank, rotated, plain, value] = [
        config.u32(&["swa_kv_lora_rank"])?,
        config.u32(&["swa_qk_rope_head_dim"])?,
        config.u32(&["swa_qk_nope_head_dim"])?,
        config.u32(&["swa_v_head_dim"])?,
    ];
    let sum = |a: u32| {
        let sum = a.checked_add(rotated);
        sum.ok_or_else(|| "the length of a head has more than 32 bits".to_owned())
    };
    keys.set("attention.kv_lora_rank_swa", Value::U32(rank));
    keys.set("attention.key_length_swa", Value::U32(sum(rank)?));
    keys.set("attention.value_length_swa", Value::U32(rank));
    keys.set("attention.key_length_mla_swa", Value::U32(sum(plain)?));
    keys.set("attention.value_length_mla_swa", Value::U32(value));
    Ok(())
}

/// Layers without a window have an indexer.
const INDEXED_LAYERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let layers = 0..config.layers()?;
    let indexed = layers.map(|layer| has_no_window(config, layer));
    set_flags(keys, "attention.indexer.types", indexed);
    Ok(())
})];

/// Scale of latent vectors, made part of the norms in front of them.
const RESCALED: &str = "apply_mla_qkv_lora_rescale";

fn scale_by(config: &Config, rank: &str) -> Result<f64> {
    let (hidden, rank) = (config.u32(&["hidden_size"])?, config.u32(&[rank])?);
    Ok((f64::from(hidden) / f64::from(rank)).sqrt())
}

fn query_scale(config: &Config, _: u32) -> Result<f64> {
    scale_by(config, "q_lora_rank")
}

fn key_scale(config: &Config, layer: u32) -> Result<f64> {
    match has_window(config, layer) {
        true => scale_by(config, "swa_kv_lora_rank"),
        false => scale_by(config, "kv_lora_rank"),
    }
}

const SCALED_NORMS: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.q_a_layernorm",
        "blk.{}.attn_q_a_norm",
        &[Field(&["q_lora_rank"])],
        &[ScaleBy(query_scale)],
    )
    .when(When::Set(RESCALED)),
    Recipe::with(
        "model.layers.{}.self_attn.kv_a_layernorm",
        "blk.{}.attn_kv_a_norm",
        &[Any],
        &[ScaleBy(key_scale)],
    )
    .when(When::Set(RESCALED)),
];

const UNWINDOWED: When = When::Layers(has_no_window);

const INDEXER: &[Recipe] = &[
    ANYWHERE[0].when(UNWINDOWED),
    ANYWHERE[1].when(UNWINDOWED),
    ANYWHERE[2].when(UNWINDOWED),
    ANYWHERE[3].when(UNWINDOWED),
];

/// A gate of attention, under the names that llama.cpp knows.
pub(super) const GATES: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.gate_proj",
        "blk.{}.attn_gate",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.g_proj",
        "blk.{}.attn_gate",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.output_gate",
        "blk.{}.attn_gate",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.linear_gate",
        "blk.{}.attn_gate",
        &[Any, Hidden],
    ),
];

const WINDOW_HEADS: Size = Field(&["swa_num_attention_heads"]);
const WINDOW_RANK: Size = Field(&["swa_kv_lora_rank"]);
const RANK: Size = Field(&["kv_lora_rank"]);
const BY_WINDOW_HEAD: Op = Reshape(&[WINDOW_HEADS, Any, WINDOW_RANK]);
const BY_HEAD: Op = Reshape(&[Size::Field(&["num_attention_heads"]), Any, RANK]);
/// Rows of each head: keys, then values.
const OF_WINDOWS: &[Size] = &[Field(&["swa_qk_nope_head_dim"]), Field(&["swa_v_head_dim"])];
const OF_ALL: &[Size] = &[Field(&["qk_nope_head_dim"]), Field(&["v_head_dim"])];

const LATENT_ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.kv_a_proj_with_mqa",
        "blk.{}.attn_kv_a_mqa",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.kv_a_layernorm",
        "blk.{}.attn_kv_a_norm",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.k_rope_only_layernorm",
        "blk.{}.attn_k_norm",
        &[Field(&["qk_rope_head_dim"])],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.self_attn.kv_b_proj.weight",
            &[Any, WINDOW_RANK],
        )],
        &[
            Output::new(
                "blk.{}.attn_k_b.weight",
                &[BY_WINDOW_HEAD, Op::part(1, OF_WINDOWS, 0), Transpose],
            ),
            Output::new(
                "blk.{}.attn_v_b.weight",
                &[BY_WINDOW_HEAD, Op::part(1, OF_WINDOWS, 1)],
            ),
        ],
    )
    .when(When::Layers(has_window)),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.self_attn.kv_b_proj.weight",
            &[Any, RANK],
        )],
        &[
            Output::new(
                "blk.{}.attn_k_b.weight",
                &[BY_HEAD, Op::part(1, OF_ALL, 0), Transpose],
            ),
            Output::new("blk.{}.attn_v_b.weight", &[BY_HEAD, Op::part(1, OF_ALL, 1)]),
        ],
    )
    .when(UNWINDOWED),
];
