//! Drafts: small models that read hidden states of a target model, and predict several of its tokens at once.
//!
//! ```text
//! EAGLE-3   one layer; attention reads an embedding beside the fused hidden states (Li et al. 2025)
//! DFlash    a few layers that fill a block of tokens at once; DFlash 2 adds convolutions and a selector
//! DSpark    DFlash with a Markov head, which chains the tokens of a block
//! ```
//!
//! Their GGUFs have the vocabulary of the target, and rows of a smaller output matrix that stand for some of
//! its tokens (`d2t`). Conversion only; they cannot be run alone.

use super::config::{Result, number_in, wrong_kind};
use super::decoder::{Decoder, Needs, Rope};
use super::gemma4;
use super::llama::{self, BUFFERS, GATED_FFN, NORMS, OWN_PARAMETERS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, POOLING, set_flags, set_numbers};
use super::qwen::HEAD_NORMS;
use super::recipes::Op::{Deinterleave, Interleave, TargetTokens};
use super::recipes::Size::{
    Any, Hidden, KeyHeads, Keys as KeyRows, Number, Product, Queries, QueryHeads,
};
use super::recipes::{Place, Recipe, Size, When};
use super::{Architecture, Config, Generated, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;
use serde_json::{Map, Value as Json};
use std::collections::HashSet;

/// The field with the config.json of the target, the fields of its text model above the others.
pub(crate) const TARGET: &str = "config of the target";
/// Names in GGUFs.
const NAMES: [&str; 2] = ["eagle3", "dflash"];
/// The number of rows of a smaller output matrix.
const DRAFT_VOCAB: &str = "draft_vocab_size";
/// The fields of the layers within those of a speculator.
const INNER: &str = "transformer_layer_config";
/// The fields of DFlash.
const OWN: &str = "dflash_config";
const LAYER_IDS: &str = "target_layer_ids";
const MASK: &str = "mask_token_id";
/// Layers of the target that a speculator reads, counted from its embeddings.
const OUTSIDE_IDS: &str = "aux_hidden_state_layer_ids";
/// The layers that EAGLE-3 reads.
const EAGLE_IDS: &str = "eagle_aux_hidden_state_layer_ids";
const FROM_ANCHOR: &str = "sample_from_anchor";
/// Fields of the numbers of rows of tensors.
const TABLE_ROWS: &str = "rows of d2t";
const CONFIDENCE_ROWS: &str = "rows of the confidence head";
/// Tokens in a block of DFlash without a field in the config.
const BLOCK: u32 = 16;

const REFUSED: Option<&str> =
    Some("it is a draft model, and reads hidden states of its target while that runs");

pub(super) static EAGLE3: Architecture = Architecture {
    classes: &[
        "LlamaForCausalLMEagle3",
        "Eagle3LlamaForCausalLM",
        "Eagle3Speculator",
        "Eagle3DraftModel",
    ],
    name: NAMES[0],
    vocabulary: VocabKind::Llama,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, OWN_PARAMETERS],
    tensors: &[
        EAGLE_ENDS,
        EAGLE_ATTENTION,
        ENDS,
        TABLE,
        NORMS,
        GATED_FFN,
        BUFFERS,
    ],
    generated: eagle,
    decoder: Decoder {
        refused: REFUSED,
        needs: Needs {
            optional: &["token_embd", "enc.output_norm", "d2t"],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

pub(super) static DFLASH: Architecture = Architecture {
    classes: &["DFlashDraftModel", "DFlash2DraftModel"],
    name: NAMES[1],
    vocabulary: VocabKind::Qwen,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, POOLING, DFLASH_PARAMETERS],
    tensors: &[
        DFLASH_ENDS,
        ENDS,
        NORMS,
        INTERLEAVED_ATTENTION,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        SINKS,
        CONVOLUTIONS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        refused: REFUSED,
        rope: Rope::Halves,
        needs: Needs {
            optional: &[
                "token_embd",
                "attn_v",
                "attn_sinks",
                "attn_conv_base",
                "attn_conv_proj",
                "ffn_conv_base",
                "ffn_conv_proj",
                "selector_predecessor",
                "selector_successor",
                "selector_hidden",
                "markov_w1",
                "markov_w2",
                "conf_proj",
                "post_attention_norm",
                "post_ffw_norm",
                "layer_output_scale",
                "d2t",
            ],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

pub(super) static DSPARK: Architecture = Architecture {
    classes: &[
        "Qwen3DSparkModel",
        "DSparkDraftModel",
        "DSparkSpeculator",
        "Lfm2DSparkDraftModel",
        "LingDSparkModel",
    ],
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        POOLING,
        DFLASH_PARAMETERS,
        DSPARK_PARAMETERS,
    ],
    tensors: &[
        WHOLE_OUTPUT,
        TABLE,
        DSPARK_HEADS,
        DFLASH_ENDS,
        ENDS,
        NORMS,
        INTERLEAVED_ATTENTION,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        SINKS,
        CONVOLUTIONS,
        BUFFERS,
    ],
    ..DFLASH
};

/// DSpark with Gemma 4's layers: keys serve as values, norms follow attention and feed-forward network.
pub(super) static GEMMA4_DSPARK: Architecture = Architecture {
    classes: &["Gemma4DSparkModel"],
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        POOLING,
        DFLASH_PARAMETERS,
        GEMMA_PARAMETERS,
    ],
    tensors: &[
        GEMMA_LAYERS,
        DSPARK_HEADS,
        DFLASH_ENDS,
        ENDS,
        gemma4::NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        BUFFERS,
    ],
    generated: gemma_frequencies,
    ..DFLASH
};

/// Embeddings and output matrix, which a draft may share with its target.
const ENDS: &[Recipe] = &[
    Recipe::skip("model.embed_tokens.weight").when(When::Holds(shares_embeddings)),
    Recipe::rename("model.embed_tokens", "token_embd", &[Any, Hidden]),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
    Recipe::rename("model.lm_head", "output", &[Any, Hidden]),
];

/// The tokens of the target that the rows of a smaller output matrix stand for, and the inverse, which is not
/// read.
const TABLE: &[Recipe] = &[
    Recipe::with("model.d2t", "d2t", &[], &[TargetTokens])
        .rows_to(TABLE_ROWS)
        .at(Place::Last),
    Recipe::skip("model.t2d"),
];

/// The projection of the target's hidden states.
const EAGLE_ENDS: &[Recipe] = &[
    Recipe::rename("fc.weight", "fc.weight", &[Hidden, Any]),
    Recipe::rename("input_norm.weight", "enc.output_norm.weight", &[Any]),
    Recipe::rename(
        "model.layers.{}.hidden_norm.weight",
        "blk.{}.attn_norm_2.weight",
        &[Hidden],
    ),
];

/// The width of an embedding beside hidden states.
const BOTH: Size = Product(&[Number(2), Hidden]);

const EAGLE_ATTENTION: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[Queries, BOTH],
        &[Interleave(QueryHeads)],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_k",
        &[KeyRows, BOTH],
        &[Interleave(KeyHeads)],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.v_proj",
        "blk.{}.attn_v",
        &[Any, BOTH],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
];

const DFLASH_ENDS: &[Recipe] = &[
    Recipe::rename("model.fc", "fc", &[Hidden, Any]),
    Recipe::rename("model.hidden_norm", "enc.output_norm", &[Hidden]),
    Recipe::rename(
        "model.candidate_selector.predecessor_codebook",
        "selector_predecessor.weight",
        &[Any, Any],
    ),
    Recipe::rename(
        "model.candidate_selector.successor_codebook",
        "selector_successor.weight",
        &[Any, Any],
    ),
    Recipe::rename(
        "model.candidate_selector.hidden_projection",
        "selector_hidden",
        &[Any, Hidden],
    ),
];

/// Attention of checkpoints that rotate pairs; llama.cpp rotates halves.
const INTERLEAVED_ATTENTION: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.q_proj.weight",
        "blk.{}.attn_q.weight",
        &[Queries, Hidden],
        &[by_halves(QueryHeads)],
    )
    .when(When::Holds(rotates_pairs)),
    Recipe::with(
        "model.layers.{}.self_attn.k_proj.weight",
        "blk.{}.attn_k.weight",
        &[KeyRows, Hidden],
        &[by_halves(KeyHeads)],
    )
    .when(When::Holds(rotates_pairs)),
    Recipe::with(
        "model.layers.{}.self_attn.q_norm.weight",
        "blk.{}.attn_q_norm.weight",
        &[Size::Head],
        &[by_halves(Number(1))],
    )
    .when(When::Holds(rotates_pairs)),
    Recipe::with(
        "model.layers.{}.self_attn.k_norm.weight",
        "blk.{}.attn_k_norm.weight",
        &[Size::Head],
        &[by_halves(Number(1))],
    )
    .when(When::Holds(rotates_pairs)),
];

const fn by_halves(heads: Size) -> super::recipes::Op {
    Deinterleave {
        heads,
        rotated: |config| config.head_len().map(u64::from),
    }
}

const SINKS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.sinks",
        "blk.{}.attn_sinks.weight",
        &[QueryHeads],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.attention_sink_bias",
        "blk.{}.attn_sinks.weight",
        &[QueryHeads],
    ),
];

/// Convolutions over the positions of a block, in groups of channels.
const CONVOLUTIONS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.attention_conv.base_kernel",
        "blk.{}.attn_conv_base",
        &[],
    ),
    Recipe::rename(
        "model.layers.{}.attention_conv.kernel_projection",
        "blk.{}.attn_conv_proj",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp_conv.base_kernel",
        "blk.{}.ffn_conv_base",
        &[],
    ),
    Recipe::rename(
        "model.layers.{}.mlp_conv.kernel_projection",
        "blk.{}.ffn_conv_proj",
        &[Any, Hidden],
    ),
];

/// An output matrix with all tokens is the target's.
const WHOLE_OUTPUT: &[Recipe] = &[
    Recipe::skip("lm_head.weight").when(When::Holds(has_all_tokens)),
    Recipe::skip("model.lm_head.weight").when(When::Holds(has_all_tokens)),
];

const DSPARK_HEADS: &[Recipe] = &[
    Recipe::rename("model.markov_head.markov_w1", "markov_w1", &[Any, Any]),
    Recipe::rename("model.markov_head.markov_w2", "markov_w2", &[Any, Any]),
    Recipe::rename("model.confidence_head.proj", "conf_proj", &[Any, Any]).rows_to(CONFIDENCE_ROWS),
];

const GEMMA_LAYERS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.layer_scalar",
        "blk.{}.layer_output_scale.weight",
        &[Number(1)],
    ),
    Recipe::rename("model.confidence_proj", "conf_proj", &[Any, Any]).rows_to(CONFIDENCE_ROWS),
];

fn shares_embeddings(config: &Config) -> bool {
    config
        .get("has_embed_tokens")
        .is_some_and(|value| !is_true(value))
}

fn rotates_pairs(config: &Config) -> bool {
    config
        .get("rope_is_neox_style")
        .is_some_and(|value| !is_true(value))
}

fn has_all_tokens(config: &Config) -> bool {
    match vocabularies(config) {
        Ok([draft, target]) => draft == target,
        Err(_) => false,
    }
}

/// Python's truth of a value.
fn is_true(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::Bool(value) => *value,
        Json::Number(number) => number.as_f64() != Some(0.0),
        Json::String(text) => !text.is_empty(),
        Json::Array(list) => !list.is_empty(),
        Json::Object(fields) => !fields.is_empty(),
    }
}

/// The architecture of Llama's classes, some of which hold drafts as well.
///
/// # Errors
/// A draft's class without the fields of one.
pub(super) fn of_llama(config: &Config) -> Result<&'static Architecture> {
    let is_draft = config.has(DRAFT_VOCAB) && config.layers()? == 1;
    let class = config.class().unwrap_or_default();
    match (is_draft, EAGLE3.classes.contains(&class)) {
        (true, _) => Ok(&EAGLE3),
        (false, false) => Ok(&llama::LLAMA),
        (false, true) => Err(format!(
            "class '{class}' is that of EAGLE-3 drafts, which have one layer and a '{DRAFT_VOCAB}'; convert_hf_to_gguf.py \
             cannot convert others either"
        )),
    }
}

/// Completes the config of a draft: the fields of a speculator's layers, and those of DSpark in the place of
/// DFlash's.
pub(super) fn complete(class: Option<&str>, fields: &mut Map<String, Json>) {
    let is_of = |architecture: &Architecture| {
        class.is_some_and(|class| architecture.classes.contains(&class))
    };
    if is_of(&GEMMA4_DSPARK) {
        complete_gemma(fields);
    }
    if !is_of(&EAGLE3) && !is_of(&DSPARK) {
        return;
    }
    let from_anchor = !fields.contains_key(INNER) && !fields.contains_key(OUTSIDE_IDS);
    if let Some(Json::Object(inner)) = fields.get(INNER).cloned() {
        fields.extend(inner);
    }
    if !is_of(&DSPARK) {
        return;
    }
    fields.entry(FROM_ANCHOR).or_insert(Json::Bool(from_anchor));
    if fields.contains_key(OWN) {
        return;
    }
    let mut own = Map::new();
    if let Some(ids) = fields.get(OUTSIDE_IDS).and_then(Json::as_array) {
        let ids = ids
            .iter()
            .map(|id| id.as_i64().map(|id| id.saturating_sub(1)));
        own.insert(LAYER_IDS.into(), ids.collect());
        own.insert(MASK.into(), fields.get(MASK).cloned().into());
    } else {
        for name in [LAYER_IDS, MASK] {
            own.extend(
                fields
                    .get(name)
                    .map(|value| (name.to_owned(), value.clone())),
            );
        }
    }
    fields.insert(OWN.into(), Json::Object(own));
}

/// Full attention has fields of its own, and RoPE a default.
fn complete_gemma(fields: &mut Map<String, Json>) {
    for (name, own) in [
        ("head_dim", "global_head_dim"),
        ("num_key_value_heads", "num_global_key_value_heads"),
    ] {
        let value = fields.get(own).cloned();
        fields.extend(value.map(|value| (name.to_owned(), value)));
    }
    const ROPE: &str = "rope_parameters";
    let rope = fields.remove(ROPE).filter(is_true);
    let rope = rope.unwrap_or_else(|| {
        serde_json::json!({
            "rope_type": PROPORTIONAL, "partial_rotary_factor": ROTATED_PART, "rope_theta": 1_000_000.0,
        })
    });
    let of_full = rope.get("full_attention").cloned();
    fields.insert(ROPE.into(), of_full.unwrap_or(rope));
}

impl Config {
    /// The config of a draft, with the config.json of its target.
    pub fn with_target(self, mut target: Map<String, Json>) -> Config {
        if let Some(Json::Object(text)) = target.get("text_config").cloned() {
            target.extend(text);
        }
        self.with_field(TARGET, Json::Object(target))
    }
}

/// True for the architecture of drafts by its name in a GGUF.
pub fn is_draft(architecture: &str) -> bool {
    NAMES.contains(&architecture)
}

impl Architecture {
    /// True for drafts, which are converted with the vocabulary of their target.
    pub fn is_draft(&self) -> bool {
        is_draft(self.name)
    }

    /// True for drafts with the kind of vocabulary of their target's architecture; others have their own.
    pub fn has_vocabulary_of_target(&self) -> bool {
        self.name == DFLASH.name
    }

    /// The token that stands for those of a block before they are known, if the draft has one.
    ///
    /// # Errors
    /// A field of the wrong kind.
    pub fn mask_token(&self, config: &Config) -> Result<Option<u32>> {
        if self.name != DFLASH.name {
            return Ok(None);
        }
        let is_gemma = self.classes == GEMMA4_DSPARK.classes;
        match config.number_of(OWN, MASK)? {
            None if is_gemma => config.u32(&[MASK]).map(Some),
            mask => Ok(mask),
        }
    }
}

/// The config of the target.
fn target(config: &Config) -> Result<&Map<String, Json>> {
    config
        .optional_object(TARGET)?
        .ok_or_else(|| "the config of the draft's target is missing".into())
}

/// A required whole number of the target.
fn of_target(config: &Config, name: &str) -> Result<u32> {
    let value = target(config)?.get(name);
    let value =
        value.ok_or_else(|| format!("field '{name}' is missing in the target's config.json"))?;
    let number = value.as_u64().and_then(|number| number.try_into().ok());
    number.ok_or_else(|| wrong_kind(name, value, "a whole number of 32 bits"))
}

/// A list of whole numbers.
fn numbers(name: &str, value: &Json) -> Result<Vec<i64>> {
    let list = value.as_array();
    let numbers = list.and_then(|list| list.iter().map(Json::as_i64).collect::<Option<Vec<_>>>());
    numbers.ok_or_else(|| wrong_kind(name, value, "a list of whole numbers"))
}

/// Sets the layers of the target that a draft reads.
fn set_target_layers(keys: &mut Keys, layers: impl Iterator<Item = i64>) -> Result<()> {
    let numbers: Option<Vec<i32>> = layers.map(|layer| layer.try_into().ok()).collect();
    let numbers = numbers.ok_or("a layer of the target does not fit into 32 bits")?;
    if !numbers.is_empty() {
        set_numbers(keys, "target_layers", numbers.into_iter().map(|n| n as u32));
    }
    Ok(())
}

/// The keys of EAGLE-3, which come before all others, and Llama's RoPE factors.
fn eagle(config: &Config, keys: &mut Keys) -> Result<Vec<Generated>> {
    let given = config.get(EAGLE_IDS).filter(|value| is_true(value));
    let layers = match given {
        Some(value) => numbers(EAGLE_IDS, value)?,
        None => {
            let layers = i64::from(of_target(config, "num_hidden_layers")?);
            vec![2, layers / 2, layers - 3]
        }
    };
    // llama.cpp loads no other number (`llama_model_eagle3`).
    if layers.len() != 3 {
        return Err(format!(
            "'{EAGLE_IDS}' names {} layers of the target; llama.cpp runs EAGLE-3 with three",
            layers.len()
        ));
    }
    set_target_layers(keys, layers.into_iter())?;
    let hidden = match config.optional_u32(&["target_hidden_size"])? {
        Some(hidden) => hidden,
        None => of_target(config, "hidden_size")?,
    };
    keys.set("target_hidden_size", Value::U32(hidden));
    for key in ["norm_before_residual", "norm_before_fc"] {
        let flag = config.get(key).is_some_and(is_true);
        keys.set(key, Value::Bool(flag));
    }
    llama::rope_factors(config, keys)
}

const DFLASH_PARAMETERS: &[Parameter] = &[Parameter::Computed(dflash)];

fn dflash(config: &Config, keys: &mut Keys) -> Result<()> {
    let own = config.optional_object(OWN)?.cloned().unwrap_or_default();
    let number = |name: &str| match own.contains_key(name) {
        true => number_in(&own, name),
        false => config.optional_f64(&[name]),
    };
    let own_or = |name: &str| match own.get(name) {
        Some(value) => Some(value).filter(|value| !value.is_null()),
        None => config.get(name),
    };
    if let Some(part) = number_in(config.all_rope(), "partial_rotary_factor")? {
        let rotated = f64::from(config.head_len()?) * part;
        keys.set("rope.dimension_count", Value::U32(rotated as u32));
    }
    if let Some(scale) = number_in(&own, "attention_value_scale")? {
        keys.set("attention.value_scale", Value::F32(scale as f32));
    }
    const SIZE: &str = "block_size";
    let size = match own.contains_key(SIZE) {
        true => config.number_of(OWN, SIZE)?,
        false => config.optional_u32(&[SIZE])?,
    };
    keys.set(SIZE, Value::U32(size.unwrap_or(BLOCK)));
    if own.contains_key("conv_kernel_size") {
        for key in [
            "conv_kernel_size",
            "conv_group_size",
            "selector_rank",
            "selector_top_k",
        ] {
            let value = config.number_of(OWN, key)?;
            let value = value.ok_or_else(|| format!("field '{key}' is missing in '{OWN}'"))?;
            keys.set(key, Value::U32(value));
        }
    }
    if let Some(scale) = number("output_multiplier")? {
        keys.set("logit_scale", Value::F32(scale as f32));
    }
    if let Some(cap) = number("final_logit_softcapping")?.filter(|cap| *cap > 0.0) {
        keys.set("final_logit_softcapping", Value::F32(cap as f32));
    }
    if let Some(scale) = number("input_embedding_scale")? {
        keys.set("embedding_scale", Value::F32(scale as f32));
    }
    let ids = own_or(LAYER_IDS).map(|value| numbers(LAYER_IDS, value));
    let ids = ids.transpose()?.filter(|ids| !ids.is_empty());
    // llama.cpp loads no draft without (`llama_model_dflash`).
    let ids = ids.ok_or_else(|| {
        format!("'{LAYER_IDS}' is missing or empty: llama.cpp does not load a draft that reads no layer of its target")
    })?;
    set_target_layers(keys, ids.into_iter().map(|id| id.saturating_add(1)))?;
    set_window(config, &own, keys)?;
    let causal = config.get("is_causal");
    let causal = causal.or_else(|| own.get("causal").filter(|value| !value.is_null()));
    if let Some(causal) = causal {
        keys.set("attention.causal", Value::Bool(is_true(causal)));
    }
    // A draft rotates by position in the text alone.
    let target = target(config)?;
    let rope = ["rope_parameters", "rope_scaling"].iter();
    let mut rope = rope.filter_map(|name| target.get(*name).filter(|rope| is_true(rope)));
    if rope
        .next()
        .is_some_and(|rope| rope.get("mrope_section").is_some())
    {
        set_numbers(
            keys,
            "rope.dimension_sections",
            [config.head_len()? / 2, 0, 0, 0],
        );
    }
    Ok(())
}

/// Sliding windows of some or all layers.
fn set_window(config: &Config, own: &Map<String, Json>, keys: &mut Keys) -> Result<()> {
    const WINDOW: &str = "swa_window_size";
    let in_all = own.get("use_swa").is_some_and(is_true);
    let in_some = config.get("use_sliding_window").is_some_and(is_true);
    let window = match own.get(WINDOW).is_some_and(is_true) {
        true => config.number_of(OWN, WINDOW)?,
        false => config.optional_u32(&["sliding_window"])?,
    };
    let Some(window) = window.filter(|window| *window > 0 && (in_all || in_some)) else {
        return Ok(());
    };
    let slides = match in_all {
        true => vec![true; config.layers()? as usize],
        false => config.sliding_layers().unwrap_or_default(),
    };
    keys.set("attention.sliding_window", Value::U32(window));
    // llama.cpp requires a pattern beside a window.
    if slides.is_empty() {
        return Err("'layer_types' is missing: it says which layers have a sliding window".into());
    }
    set_flags(keys, "attention.sliding_window_pattern", slides);
    Ok(())
}

const DSPARK_PARAMETERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    const HEAD: &str = "markov_head_type";
    if let Some(kind) = config.get(HEAD).filter(|kind| **kind != "vanilla") {
        return Err(wrong_kind(HEAD, kind, "'vanilla'"));
    }
    let [draft, all] = vocabularies(config)?;
    if draft > all {
        return Err(format!(
            "'{DRAFT_VOCAB}' is {draft}, more than the vocabulary of {all} tokens"
        ));
    }
    if draft < all && config.get(TABLE_ROWS).is_none() {
        return Err(format!(
            "'{DRAFT_VOCAB}' is {draft} of {all} tokens, and the tensor 'd2t', which names them, is missing"
        ));
    }
    let from_anchor = config.get(FROM_ANCHOR).is_some_and(is_true);
    keys.set(FROM_ANCHOR, Value::Bool(from_anchor));
    let has_confidence = config.get(CONFIDENCE_ROWS).is_some();
    keys.set("has_confidence_head", Value::Bool(has_confidence));
    Ok(())
})];

/// RoPE of a part of a head's numbers, whose other frequencies are divided by infinity.
const PROPORTIONAL: &str = "proportional";
const ROTATED_PART: f64 = 0.25;

const GEMMA_PARAMETERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let only = |name: &str, is_usual: bool, wanted: &str| match is_usual {
        true => Ok(()),
        false => Err(format!("'{name}' of a draft of Gemma 4 must be {wanted}")),
    };
    let is_set = |name: &str| config.get(name).is_some_and(is_true);
    only("attention_k_eq_v", is_set("attention_k_eq_v"), "true")?;
    let kinds = config.get("layer_types").and_then(Json::as_array);
    let is_full = kinds.is_some_and(|kinds| kinds.iter().all(|kind| kind == "full_attention"));
    let count = kinds.map_or(0, Vec::len);
    only(
        "layer_types",
        is_full && count == config.layers()? as usize,
        "'full_attention' in every layer",
    )?;
    const GELU: &str = "gelu_pytorch_tanh";
    let activation = config.get("hidden_activation");
    only(
        "hidden_activation",
        activation.is_none_or(|value| value == GELU),
        "'gelu_pytorch_tanh'",
    )?;
    for name in [
        "attention_bias",
        "enable_moe_block",
        "final_logit_softcapping",
    ] {
        only(name, !is_set(name), "absent or false")?;
    }
    let [draft, all] = vocabularies(config)?;
    only(DRAFT_VOCAB, draft == all, "the whole vocabulary")?;
    keys.set(
        "attention.head_count_kv",
        Value::U32(config.u32(&["num_global_key_value_heads"])?),
    );
    let length = config.u32(&["global_head_dim"])?;
    for key in [
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
    ] {
        keys.set(key, Value::U32(length));
    }
    let hidden = f64::from(config.u32(&["hidden_size"])?);
    keys.set("embedding_scale", Value::F32(hidden.sqrt() as f32));
    keys.set("attention.scale", Value::F32(1.0));
    keys.set("hidden_activation", Value::str(GELU));
    let from_anchor = config.get(FROM_ANCHOR).is_none_or(is_true);
    keys.set(FROM_ANCHOR, Value::Bool(from_anchor));
    let has_confidence = config.get(CONFIDENCE_ROWS).is_some();
    keys.set("has_confidence_head", Value::Bool(has_confidence));
    Ok(())
})];

/// Divisors of the frequencies: 1 for the rotated part of a head.
fn gemma_frequencies(config: &Config, _: &mut Keys) -> Result<Vec<Generated>> {
    /// A divisor that leaves numbers in place.
    const INFINITE: f32 = 1e30;
    let rope = config.rope();
    match rope.get("rope_type").and_then(Json::as_str) {
        Some("default") => return Ok(Vec::new()),
        Some(PROPORTIONAL) => {}
        _ => {
            return Err(
                "the RoPE of a draft of Gemma 4 must be 'default' or 'proportional'".into(),
            );
        }
    }
    let part = number_in(rope, "partial_rotary_factor")?.unwrap_or(ROTATED_PART);
    let pairs = config.u32(&["global_head_dim"])? / 2;
    let rotated = f64::from(pairs) * part;
    if !(part > 0.0 && part <= 1.0 && rotated.fract() == 0.0) {
        return Err(format!(
            "'partial_rotary_factor' is {part}, which is no even number of a head's {} numbers",
            2 * pairs
        ));
    }
    let divisors = (0..pairs).map(|pair| match f64::from(pair) < rotated {
        true => 1.0,
        false => INFINITE,
    });
    Ok(vec![Generated::vector(
        "rope_freqs.weight",
        divisors.collect(),
    )])
}

/// The numbers of tokens that a draft predicts, and of its target's.
fn vocabularies(config: &Config) -> Result<[u32; 2]> {
    // EAGLE-3's own number may be another than its target's.
    let is_eagle =
        |class: &str| EAGLE3.classes.contains(&class) || llama::LLAMA.classes.contains(&class);
    let all = match config.class().is_some_and(is_eagle) {
        true => of_target(config, "vocab_size")?,
        false => config.u32(&["vocab_size"])?,
    };
    let draft = config.optional_u32(&[DRAFT_VOCAB])?;
    Ok([draft.filter(|draft| *draft > 0).unwrap_or(all), all])
}

/// The tokens of the target that rows of an output matrix stand for, from their distances to the rows'
/// indices.
///
/// # Errors
/// Another number of rows than by the config, and tokens that are outside of the vocabulary or repeated.
pub fn target_tokens(config: &Config, distances: &[f32]) -> Result<Vec<f32>> {
    let [draft, all] = vocabularies(config)?;
    if config.get(DRAFT_VOCAB).is_some() && distances.len() as u64 != u64::from(draft) {
        return Err(format!(
            "it has {} numbers, and '{DRAFT_VOCAB}' is {draft}",
            distances.len()
        ));
    }
    let mut taken = HashSet::new();
    let mut tokens = Vec::with_capacity(distances.len());
    for (row, distance) in distances.iter().enumerate() {
        let token = (*distance as i64).saturating_add(row as i64);
        if !(0..i64::from(all)).contains(&token) {
            return Err(format!(
                "row {row} stands for token {token}, and the target has {all}"
            ));
        }
        if !taken.insert(token) {
            return Err(format!("several rows stand for token {token}"));
        }
        tokens.push(token as f32);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(fields: Json) -> Config {
        Config::new(fields.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn drafts_are_recognized_in_llamas_classes() {
        let of = |class: &str, layers: u32, has_size: bool| {
            let mut fields = json!({ "architectures": [class], "num_hidden_layers": layers });
            if has_size {
                fields[DRAFT_VOCAB] = json!(8);
            }
            Architecture::of(&config(fields)).map(|architecture| architecture.name)
        };
        assert_eq!(of("LlamaForCausalLM", 1, true), Ok("eagle3"));
        assert_eq!(of("LlamaForCausalLM", 2, true), Ok("llama"));
        assert_eq!(of("LlamaForCausalLM", 1, false), Ok("llama"));
        assert_eq!(of("LlamaForCausalLMEagle3", 1, true), Ok("eagle3"));
        let without = of("LlamaForCausalLMEagle3", 1, false).unwrap_err();
        assert!(without.contains("'draft_vocab_size'"), "{without}");
    }

    #[test]
    fn a_speculators_layers_have_fields_of_their_own() {
        let inner = json!({ "num_hidden_layers": 3, "vocab_size": 9 });
        let fields = json!({ "architectures": ["DSparkSpeculator"], INNER: inner,
            OUTSIDE_IDS: [3, 7], MASK: 5 });
        let config = config(fields);
        assert_eq!(config.layers(), Ok(3));
        assert_eq!(config.get(FROM_ANCHOR), Some(&json!(false)));
        assert_eq!(config.get(OWN).unwrap()[LAYER_IDS], json!([2, 6]));
        assert_eq!(DSPARK.mask_token(&config), Ok(Some(5)));
    }

    #[test]
    fn rows_stand_for_different_tokens_of_the_target() {
        let fields = json!({ "architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, DRAFT_VOCAB: 3 });
        let target = json!({ "text_config": { "vocab_size": 8 } });
        let config = config(fields).with_target(target.as_object().unwrap().clone());
        assert_eq!(
            target_tokens(&config, &[0.0, 3.0, 5.0]),
            Ok(vec![0.0, 4.0, 7.0])
        );
        for (distances, part) in [
            (&[0.0, 3.0, 6.0][..], "token 8"),
            (&[0.0, 3.0, 2.0], "several rows"),
            (&[0.0, -2.0, 0.0], "token -1"),
            (&[0.0, 3.0], "2 numbers"),
            (&[f32::NAN, f32::INFINITY, 0.0], "token"),
        ] {
            let error = target_tokens(&config, distances).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
