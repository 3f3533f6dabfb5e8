//! Gemma 3n (text): four residual streams that layers predict and correct (AltUp), low-rank branches
//! beside attention (Laurel), sparse activations in the first layers, per-layer embeddings.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{
    Cap, Decoder, Listed, Scales, ScoreDivisor, SharedKv, SparseGates, Streams, Window,
};
use super::gemma::{GEMMA, gemma3};
use super::gemma4::{NORMS, PER_LAYER_EMBEDDINGS};
use super::llama::{BUFFERS, LISTED_FFN, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags, set_numbers};
use super::qwen::HEAD_NORMS;
use super::recipes::Op::{self, Concat, Pad, Reshape};
use super::recipes::Size::{self, Any, Field, Hidden, Number};
use super::recipes::{Input, Output};
use super::{Architecture, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::{Array, Value, ValueType};
use quantier_tokenizer::VocabKind;
use serde_json::{Map, Value as Json, json};

const CLASSES: &[&str] = &["Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"];

pub(super) static GEMMA3N: Architecture = Architecture {
    classes: CLASSES,
    name: "gemma3n",
    vocabulary: VocabKind::Gemma3,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        LISTED_FFN,
        PADDED_EMBEDDINGS,
        PER_LAYER_EMBEDDINGS,
        STREAMS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        window: Window::Listed(Listed {
            period: 5,
            rope_base: Some(10_000.0),
            ..Listed::THREE_OF_FOUR
        }),
        score_divisor: ScoreDivisor::One,
        scales: Scales {
            logit_cap: Cap::Always(30.0),
            ..Scales::NONE
        },
        unit_values: true,
        shared_kv: SharedKv::After(OWN_KEYS),
        streams: Streams::Predicted(ALTUP as u32),
        sparse_gates: Some(SPARSE_GATES),
        ..GEMMA
    },
};

/// Number of streams.
const ALTUP: u64 = 4;
/// The quantile of 0.95 of the normal distribution, in f32 as PyTorch computes it.
const BOUND: f32 = 1.644_853_6;
/// Leading layers with keys and values of their own, in llama.cpp.
const OWN_KEYS: u32 = 20;
/// In llama.cpp.
const SPARSE_GATES: SparseGates = SparseGates {
    layers: 10,
    deviations: BOUND,
};
/// The fields of the config.
const STREAMS_FIELD: &str = "altup_num_inputs";
const WIDTHS: &str = "intermediate_size";
const WIDTH_LIST: &str = "intermediate_sizes";
const KINDS: &str = "layer_types";
const SPARSITY: &str = "activation_sparsity_pattern";

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(gemma3),
    Parameter::Computed(widths),
    Parameter::Computed(streams),
    Parameter::U32("altup.active_idx", &["altup_active_idx"]),
    Parameter::U32("altup.num_inputs", &[STREAMS_FIELD]),
    Parameter::U32(
        "embedding_length_per_layer_input",
        &["hidden_size_per_layer_input"],
    ),
    Parameter::Computed(shared_layers),
    Parameter::Computed(sparsity),
    Parameter::Computed(|config, keys| {
        let windows = config.sliding_layers();
        let windows = windows.ok_or_else(|| format!("field '{KINDS}' is missing or no list"))?;
        set_flags(keys, "attention.sliding_window_pattern", windows);
        Ok(())
    }),
];

/// Fills in what the class of the config computes: lists with an entry for each layer.
pub(super) fn complete(class: Option<&str>, fields: &mut Map<String, Json>) {
    /// Leading layers with sparse activations, in deeper models.
    const SPARSE: usize = 10;
    /// Share of activations that are 0.
    const ZEROS: f64 = 0.95;
    /// The last layer of each period has full attention.
    const PERIOD: usize = 5;
    if !class.is_some_and(|class| CLASSES.contains(&class)) {
        return;
    }
    let layers = fields.get("num_hidden_layers").and_then(Json::as_u64);
    // As many as a config may list; more are refused later.
    let Some(layers) = layers.filter(|layers| *layers <= 1 << 14) else {
        return;
    };
    let layers = layers as usize;
    let is_unset =
        |fields: &Map<String, Json>, name: &str| fields.get(name).is_none_or(Json::is_null);
    if is_unset(fields, KINDS) {
        let kind = |layer: usize| match (layer + 1).is_multiple_of(PERIOD) {
            true => "full_attention",
            false => "sliding_attention",
        };
        let kinds: Vec<_> = (0..layers).map(kind).collect();
        fields.insert(KINDS.into(), json!(kinds));
    }
    if is_unset(fields, SPARSITY) {
        let share = |layer: usize| match layers > SPARSE && layer < SPARSE {
            true => ZEROS,
            false => 0.0,
        };
        let shares: Vec<_> = (0..layers).map(share).collect();
        fields.insert(SPARSITY.into(), json!(shares));
    }
    match fields.get(WIDTHS).cloned() {
        Some(Json::Array(list)) => {
            let first = list.first().cloned().unwrap_or_default();
            fields.insert(WIDTHS.into(), first);
            fields.insert(WIDTH_LIST.into(), Json::Array(list));
        }
        Some(width) => {
            fields.insert(WIDTH_LIST.into(), json!(vec![width; layers]));
        }
        None => {}
    }
}

/// A list with an entry for each layer.
fn listed<'c>(config: &'c Config, field: &'static str) -> Result<&'c [Json]> {
    let value = config.get(field);
    let value = value.ok_or_else(|| format!("field '{field}' is missing"))?;
    let list = value.as_array();
    let list = list.ok_or_else(|| wrong_kind(field, value, "a list with an entry per layer"))?;
    let (count, layers) = (list.len(), config.layers()?);
    match count == layers as usize {
        true => Ok(list),
        false => Err(format!("'{field}' has {count} entries for {layers} layers")),
    }
}

fn widths(config: &Config, keys: &mut Keys) -> Result<()> {
    let width = |value: &Json| {
        let width = value.as_u64().and_then(|width| u32::try_from(width).ok());
        width.ok_or_else(|| wrong_kind(WIDTHS, value, "a whole number"))
    };
    let widths = listed(config, WIDTH_LIST)?.iter().map(width);
    let widths: Vec<u32> = widths.collect::<Result<_>>()?;
    if let Some(other) = widths.iter().find(|width| **width != widths[0]) {
        return Err(format!(
            "'{WIDTHS}' lists {} and {other}; llama.cpp loads layers of one width",
            widths[0]
        ));
    }
    set_numbers(keys, "feed_forward_length", widths);
    Ok(())
}

fn streams(config: &Config, _: &mut Keys) -> Result<()> {
    match config.u32(&[STREAMS_FIELD])? {
        count if u64::from(count) == ALTUP => Ok(()),
        count => Err(format!(
            "field '{STREAMS_FIELD}' is {count}; llama.cpp's converter knows {ALTUP}"
        )),
    }
}

fn shared_layers(config: &Config, keys: &mut Keys) -> Result<()> {
    const FIELD: &str = "num_kv_shared_layers";
    let shared = config.u32(&[FIELD])?;
    keys.set("attention.shared_kv_layers", Value::U32(shared));
    let run = config.layers()?.saturating_sub(OWN_KEYS);
    if shared != run {
        keys.note(format!(
            "'{FIELD}' is {shared}, but llama.cpp shares keys and values in the last {run} layers, after {OWN_KEYS} \
             of their own: the file computes something else than the checkpoint"
        ));
    }
    Ok(())
}

/// The bounds of sparse activations in standard deviations above the mean: quantiles of the normal
/// distribution.
fn sparsity(config: &Config, keys: &mut Keys) -> Result<()> {
    let bound = |share: &Json| match share.as_f64() {
        Some(0.0) => Ok(Value::F32(f32::NEG_INFINITY)),
        Some(0.95) => Ok(Value::F32(BOUND)),
        _ => Err(format!(
            "'{SPARSITY}' lists {share}; llama.cpp runs 0.95 in the first layers, and 0 in the others"
        )),
    };
    let bounds = listed(config, SPARSITY)?.iter().map(bound);
    let bounds: Vec<_> = bounds.collect::<Result<_>>()?;
    let SparseGates { layers, .. } = SPARSE_GATES;
    let is_sparse = |bound: &Value<'_>| *bound == Value::F32(BOUND);
    let mut differs = (0..).zip(&bounds);
    if differs.any(|(layer, bound)| is_sparse(bound) != (layer < layers)) {
        keys.note(format!(
            "'{SPARSITY}' is another list than 0.95 in the first {layers} layers and 0 in the others, which llama.cpp \
             runs: the file computes something else than the checkpoint"
        ));
    }
    let bounds = Array::of_values(ValueType::F32, bounds);
    keys.set("activation_sparsity_scale", Value::Array(bounds));
    Ok(())
}

/// Rows of the tables: those of tokens for pictures and sounds are missing in checkpoints.
const TOKENS: Size = Field(&["vocab_size"]);

const EMBEDDINGS: &[Recipe] = &[
    Recipe::with(
        "model.embed_tokens.weight",
        "token_embd.weight",
        &[Any, Hidden],
        &[Pad(TOKENS)],
    ),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
];

const PADDED_EMBEDDINGS: &[Recipe] = &[Recipe::with(
    "model.embed_tokens_per_layer.weight",
    "per_layer_token_embd.weight",
    &[Any, Any],
    &[Pad(TOKENS)],
)];

/// Three matrices as one stack.
const THREE: &[Op] = &[Reshape(&[Number(1), Any, Hidden]), Concat(0)];

/// The matrices of the streams besides the first, and their prediction, correction and low-rank
/// branch in each layer.
const STREAMS: &[Recipe] = &[
    Recipe::new(
        &[
            Input::new("model.altup_projections.0.weight", &[Hidden, Hidden]),
            Input::new("model.altup_projections.1.weight", &[Hidden, Hidden]),
            Input::new("model.altup_projections.2.weight", &[Hidden, Hidden]),
        ],
        &[Output::of(&[0, 1, 2], "altup_proj.weight", THREE)],
    ),
    Recipe::new(
        &[
            Input::new(
                "model.altup_unembed_projections.0.weight",
                &[Hidden, Hidden],
            ),
            Input::new(
                "model.altup_unembed_projections.1.weight",
                &[Hidden, Hidden],
            ),
            Input::new(
                "model.altup_unembed_projections.2.weight",
                &[Hidden, Hidden],
            ),
        ],
        &[Output::of(&[0, 1, 2], "altup_unembd_proj.weight", THREE)],
    ),
    Recipe::rename(
        "model.layers.{}.altup.correction_coefs",
        "blk.{}.altup_correct_coef",
        &[Number(ALTUP), Number(ALTUP)],
    ),
    Recipe::rename(
        "model.layers.{}.altup.correct_output_scale",
        "blk.{}.altup_correct_scale.weight",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.altup.prediction_coefs",
        "blk.{}.altup_predict_coef",
        &[Number(ALTUP * ALTUP), Number(ALTUP)],
    ),
    Recipe::rename(
        "model.layers.{}.altup.modality_router",
        "blk.{}.altup_router",
        &[Number(ALTUP), Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.altup.router_norm",
        "blk.{}.altup_router_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.laurel.linear_left",
        "blk.{}.laurel_l",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.laurel.linear_right",
        "blk.{}.laurel_r",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "model.layers.{}.laurel.post_laurel_norm",
        "blk.{}.laurel_post_norm",
        &[Hidden],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The metadata of a Gemma 3n with twelve layers, or the error.
    fn keys(more: Json) -> Result<Vec<(String, Value<'static>)>> {
        let mut fields = json!({ "architectures": ["Gemma3nForCausalLM"], "model_type": "gemma3n_text",
            "num_hidden_layers": 12 });
        for (name, value) in more.as_object().unwrap() {
            fields[name] = value.clone();
        }
        let config = Config::new(fields.as_object().unwrap().clone())?;
        let mut keys = Keys::new("gemma3n", 0);
        let mut parameters = GEMMA3N.parameters.iter().flat_map(|list| list.iter());
        parameters.try_for_each(|parameter| parameter.apply(&config, &mut keys))?;
        Ok(keys.into_entries())
    }

    #[test]
    fn lists_have_an_entry_for_each_layer() {
        let entries = keys(json!({})).unwrap();
        let list = |key: &str| {
            let entry = entries.iter().find(|(name, _)| name == key);
            entry.and_then(|(_, value)| value.as_array()).unwrap()
        };
        let windows: Vec<_> = list("gemma3n.attention.sliding_window_pattern")
            .values()
            .map(|value| value == Value::Bool(true))
            .collect();
        let full: Vec<_> = (0..12).filter(|layer| !windows[*layer]).collect();
        assert_eq!(full, [4, 9]);
        let sparse = list("gemma3n.activation_sparsity_scale");
        let sparse = sparse
            .values()
            .filter(|bound| *bound != Value::F32(f32::NEG_INFINITY));
        assert_eq!(sparse.count(), 10);
        assert_eq!(list("gemma3n.feed_forward_length").values().count(), 12);
    }

    #[test]
    fn settings_that_llama_cpp_ignores_are_noted() {
        let notes = |fields: Json| {
            let config = Config::new(fields.as_object().unwrap().clone()).unwrap();
            let mut keys = Keys::new("gemma3n", 0);
            shared_layers(&config, &mut keys).unwrap();
            sparsity(&config, &mut keys).unwrap();
            keys.notes().join(" ")
        };
        let model = |layers: usize, sparse: usize, shared: u32| {
            let share = |layer: usize| if layer < sparse { 0.95 } else { 0.0 };
            let shares: Vec<_> = (0..layers).map(share).collect();
            notes(
                json!({ "num_hidden_layers": layers, "num_kv_shared_layers": shared,
                "activation_sparsity_pattern": shares }),
            )
        };
        assert_eq!(model(30, 10, 10), "");
        let both = model(12, 0, 2);
        assert!(both.contains("'num_kv_shared_layers' is 2"), "{both}");
        assert!(both.contains("first 10 layers"), "{both}");
        assert!(!model(22, 10, 1).contains("first 10 layers"));
    }

    #[test]
    fn unsupported_settings_are_named() {
        for (fields, part) in [
            (json!({ "altup_num_inputs": 3 }), "'altup_num_inputs' is 3"),
            (
                json!({ "activation_sparsity_pattern": vec![0.9; 12] }),
                "'activation_sparsity_pattern' lists 0.9",
            ),
            (
                json!({ "activation_sparsity_pattern": [0.0] }),
                "has 1 entries for 12 layers",
            ),
            (json!({ "intermediate_size": [1, 2] }), "has 2 entries"),
        ] {
            let error = keys(fields).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
