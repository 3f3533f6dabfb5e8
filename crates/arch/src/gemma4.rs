//! Gemma 4 (text): two head lengths by kind of layer, RoPE on a part of each head in full attention,
//! experts beside the feed-forward network in some sizes, per-layer embeddings and keys and values of
//! earlier layers in others.

use super::config::{Config, Result, number_in, wrong_kind};
use super::decoder::{Cap, Decoder, Dense, Listed, Needs, Scales, ScoreDivisor, SharedKv, Window};
use super::gemma::{GEMMA, GEMMA3_EMBEDDINGS, gemma3};
use super::llama::{BUFFERS, LISTED_ATTENTION, LISTED_FFN};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags, set_numbers};
use super::recipes::Size::{Any, Experts, Hidden, Number};
use super::recipes::When;
use super::{Architecture, Generated, Keys, Parameter, Recipe};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static GEMMA4: Architecture = Architecture {
    classes: &["Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"],
    name: "gemma4",
    vocabulary: VocabKind::Gemma4,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        GEMMA3_EMBEDDINGS,
        NORMS,
        LAYER_SCALE,
        LISTED_ATTENTION,
        HEAD_NORMS,
        LISTED_FFN,
        EXPERTS,
        PER_LAYER_EMBEDDINGS,
        BUFFERS,
    ],
    generated: rope_factors,
    decoder: Decoder {
        window: Window::Listed(Listed {
            rope_base: Some(10_000.0),
            ..Listed::THREE_OF_FOUR
        }),
        score_divisor: ScoreDivisor::One,
        scales: Scales {
            logit_cap: Cap::ListedOr(30.0),
            ..Scales::NONE
        },
        dense: Dense::Apart,
        unit_values: true,
        keys_as_values: true,
        shared_kv: SharedKv::Listed,
        needs: Needs {
            optional: &["attn_v", "layer_output_scale", "ffn_down_exps.scale"],
            ..Needs::WEIGHTS
        },
        ..GEMMA
    },
};

/// The same, with tokens that are never sampled.
pub(super) static GEMMA4_UNIFIED: Architecture = Architecture {
    classes: &["Gemma4UnifiedForConditionalGeneration"],
    vocabulary: VocabKind::Gemma4Unified,
    ..GEMMA4
};

/// Kind of layers with full attention.
const FULL: &str = "full_attention";

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(gemma3),
    Parameter::U32("attention.shared_kv_layers", &["num_kv_shared_layers"]),
    Parameter::Computed(|config, keys| {
        let length = config.optional_u32(&["hidden_size_per_layer_input"])?;
        keys.set(
            "embedding_length_per_layer_input",
            Value::U32(length.unwrap_or(0)),
        );
        Ok(())
    }),
    Parameter::Computed(heads),
];

/// Layers with a sliding window.
fn windows(config: &Config) -> Result<Vec<bool>> {
    const FIELD: &str = "layer_types";
    let windows = config.sliding_layers();
    let windows = windows.ok_or_else(|| format!("field '{FIELD}' is missing or no list"))?;
    let (count, layers) = (windows.len(), config.layers()?);
    match count == layers as usize {
        true => Ok(windows),
        false => Err(format!("'{FIELD}' has {count} entries for {layers} layers")),
    }
}

/// A number of layers with full attention: in a field, or in the first such layer of
/// `per_layer_config` that has it.
fn of_full_attention(config: &Config, field: &str, of_layer: &str) -> Result<Option<u32>> {
    const LAYERS: &str = "per_layer_config";
    if let Some(number) = config.optional_u32(&[field])? {
        return Ok(Some(number));
    }
    let kinds = config.get("layer_types").and_then(|kinds| kinds.as_array());
    for (layer, own) in config.optional_object(LAYERS)?.into_iter().flatten() {
        let number: usize = layer
            .parse()
            .map_err(|_| format!("'{LAYERS}' has an entry '{layer}', which is no layer"))?;
        let kind = kinds.and_then(|kinds| kinds.get(number));
        if kind.is_some_and(|kind| kind == FULL)
            && let Some(value) = own.get(of_layer)
        {
            let whole = value.as_u64().and_then(|number| u32::try_from(number).ok());
            let whole = whole.ok_or_else(|| wrong_kind(of_layer, value, "a whole number"))?;
            return Ok(Some(whole));
        }
    }
    Ok(None)
}

/// Length of a head in layers with full attention.
fn full_head(config: &Config) -> Result<u32> {
    const FIELD: &str = "global_head_dim";
    let length = of_full_attention(config, FIELD, "head_dim")?;
    length.ok_or_else(|| {
        format!("field '{FIELD}' is missing, and 'per_layer_config' has no head_dim")
    })
}

/// Lengths and numbers of heads, and sizes of networks, by kind of layer.
fn heads(config: &Config, keys: &mut Keys) -> Result<()> {
    let windows = windows(config)?;
    set_flags(
        keys,
        "attention.sliding_window_pattern",
        windows.iter().copied(),
    );
    let (full, windowed) = (full_head(config)?, config.u32(&["head_dim"])?);
    keys.set("attention.key_length", Value::U32(full));
    keys.set("attention.value_length", Value::U32(full));
    keys.set("attention.key_length_swa", Value::U32(windowed));
    keys.set("attention.value_length_swa", Value::U32(windowed));
    const EXPERT: &[&str] = &["expert_intermediate_size", "moe_intermediate_size"];
    if let Some(length) = config.optional_u32(EXPERT)? {
        keys.set("expert_feed_forward_length", Value::U32(length));
    }
    let shared = config.u32(&["num_kv_shared_layers"])? as usize;
    if config
        .get("use_double_wide_mlp")
        .is_some_and(|wide| *wide == true)
    {
        let length = config.u32(&["intermediate_size"])?;
        let wide = length.checked_mul(2);
        let wide = wide.ok_or("field 'intermediate_size' is too large")?;
        let first = windows.len().saturating_sub(shared);
        let lengths = (0..windows.len()).map(|layer| if layer < first { length } else { wide });
        set_numbers(keys, "feed_forward_length", lengths);
    }
    let kv_heads = of_full_attention(config, "num_global_key_value_heads", "num_key_value_heads")?;
    let of_windowed = config.optional_u32(&["num_key_value_heads"])?;
    if let (Some(of_full), Some(of_windowed)) = (kv_heads, of_windowed) {
        let heads = windows.iter();
        let heads = heads.map(|is_windowed| if *is_windowed { of_windowed } else { of_full });
        set_numbers(keys, "attention.head_count_kv", heads);
    }
    let part = number_in(config.all_rope(), "partial_rotary_factor")?.unwrap_or(1.0);
    keys.set("rope.dimension_count", Value::U32(full));
    keys.set(
        "rope.dimension_count_swa",
        Value::U32((f64::from(windowed) * part) as u32),
    );
    Ok(())
}

/// Divisors of RoPE angles in full attention: pairs behind the rotated ones stay in place.
fn rope_factors(config: &Config, _: &mut Keys) -> Result<Vec<Generated>> {
    /// Divides an angle to nothing.
    const STILL: f32 = 1e30;
    const KIND: &str = "rope_type";
    let rope = config.rope_of(FULL)?;
    let kind = rope.get(KIND).and_then(|kind| kind.as_str());
    if kind != Some("proportional") {
        let kind = kind.unwrap_or("missing");
        return Err(format!(
            "'{KIND}' of '{FULL}' is {kind}; llama.cpp runs only 'proportional'"
        ));
    }
    let part = config.rope_part_of(FULL)?;
    let length = full_head(config)?;
    let turned = (f64::from(length) * part / 2.0) as usize;
    let pairs = length as usize / 2;
    let mut weights = vec![1.0; turned];
    weights.resize(pairs.max(turned), STILL);
    Ok(vec![Generated::vector("rope_freqs.weight", weights)])
}

/// Norms before and after attention and feed-forward network, and after the last layer.
pub(super) const NORMS: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.post_attention_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.pre_feedforward_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_feedforward_layernorm",
        "blk.{}.post_ffw_norm",
        &[Hidden],
    ),
];

/// Factor of a layer's output.
const LAYER_SCALE: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.layer_scalar",
    "blk.{}.layer_output_scale.weight",
    &[Number(1)],
)];

/// QK norms of heads whose length differs by kind of layer.
const HEAD_NORMS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_q_norm",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.k_norm",
        "blk.{}.attn_k_norm",
        &[Any],
    ),
];

/// Experts beside the feed-forward network, and a router with a scale per column and per expert.
const EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.router.proj",
        "blk.{}.ffn_gate_inp",
        &[Experts, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.router.scale",
        "blk.{}.ffn_gate_inp.scale",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.router.per_expert_scale",
        "blk.{}.ffn_down_exps.scale",
        &[Experts],
    ),
    Recipe::rename(
        "model.layers.{}.experts.gate_up_proj",
        "blk.{}.ffn_gate_up_exps.weight",
        &[Experts, Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.experts.down_proj",
        "blk.{}.ffn_down_exps.weight",
        &[Experts, Hidden, Any],
    ),
    Recipe::rename(
        "model.layers.{}.pre_feedforward_layernorm_2",
        "blk.{}.pre_ffw_norm_2",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_feedforward_layernorm_1",
        "blk.{}.post_ffw_norm_1",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_feedforward_layernorm_2",
        "blk.{}.post_ffw_norm_2",
        &[Hidden],
    ),
];

/// In models with per-layer embeddings.
const USED: When = When::Counted("hidden_size_per_layer_input");

/// The table of per-layer embeddings, their projection from the token embeddings, and their way
/// into every layer.
pub(super) const PER_LAYER_EMBEDDINGS: &[Recipe] = &[
    Recipe::rename(
        "model.embed_tokens_per_layer",
        "per_layer_token_embd",
        &[Any, Any],
    )
    .when(USED),
    Recipe::rename(
        "model.per_layer_model_projection",
        "per_layer_model_proj",
        &[Any, Hidden],
    )
    .when(USED),
    Recipe::rename(
        "model.per_layer_projection_norm",
        "per_layer_proj_norm",
        &[Any],
    )
    .when(USED),
    Recipe::rename(
        "model.layers.{}.per_layer_input_gate",
        "blk.{}.inp_gate",
        &[Any, Hidden],
    )
    .when(USED),
    Recipe::rename(
        "model.layers.{}.per_layer_projection",
        "blk.{}.proj",
        &[Hidden, Any],
    )
    .when(USED),
    Recipe::rename(
        "model.layers.{}.post_per_layer_input_norm",
        "blk.{}.post_norm",
        &[Hidden],
    )
    .when(USED),
];
