//! Qwen 3.8 Flash Next: Qwen 3.5's mixers between hyper-connections of low rank in place of norms,
//! an indexer in layers with full attention, and, in single layers, embeddings of hashed n-grams
//! from a large table.

use super::config::{Config, Result, wrong_kind};
use super::decoder::Decoder;
use super::delta::{DELTA_NET, DELTA_NETS, GATED_ATTENTION, QWEN3_5, SECTIONS};
use super::gemma::PLUS_ONE_HEAD_NORMS;
use super::llama::{BUFFERS, EMBEDDINGS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_numbers};
use super::qwen::{EXPERT_PARAMETERS, EXPERTS, SHARED_EXPERT};
use super::recipes::Op::{self, AddOne, Append, Squeeze};
use super::recipes::Size::{self, Any, Field, Hidden, Number, Product};
use super::recipes::{Input, Output, Recipe, When};
use super::{Architecture, Keys, Parameter};
use quantier_gguf::gguf::{Array, Value, ValueType};
use serde_json::Value as Json;

pub(super) static QWEN4_EXP: Architecture = Architecture {
    classes: &["Qwen4ExpForConditionalGeneration", "Qwen4ExpForCausalLM"],
    name: "qwen4exp",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        EXPERT_PARAMETERS,
        DELTA_NET,
        SECTIONS,
        PARAMETERS,
        &[Parameter::Computed(ngrams)],
    ],
    tensors: &[
        &[Recipe::leave_out("mtp*", "multi-token prediction")],
        EMBEDDINGS,
        HYPER_CONNECTIONS,
        GATED_ATTENTION,
        PLUS_ONE_HEAD_NORMS,
        INDEXER,
        DELTA_NETS,
        NGRAMS,
        EXPERTS,
        SHARED_EXPERT,
        BUFFERS,
    ],
    decoder: Decoder {
        drafts: false,
        refused: Some(
            "its layers mix several residual streams (hyper-connections), and a table of hashed n-grams adds to them",
        ),
        ..QWEN3_5.decoder
    },
    ..QWEN3_5
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("hyper_connection.count", &["hc_count"]),
    Parameter::U32("hyper_connection.low_rank", &["hc_lowrank"]),
    Parameter::U32("attention.indexer.head_count", &["indexer_n_heads"]),
    Parameter::U32("attention.indexer.key_length", &["indexer_head_dim"]),
    Parameter::U32("attention.indexer.top_k", &["indexer_budget"]),
    Parameter::Computed(|config, keys| {
        const FIELD: &str = "layer_types";
        let ratio = config.u32(&["indexer_compress_ratio"])?;
        let layers = config.layers()? as usize;
        let kinds = config.get(FIELD);
        let kinds = kinds.ok_or_else(|| format!("field '{FIELD}' is missing"))?;
        let list = kinds.as_array().filter(|list| list.len() >= layers);
        let wrong = || wrong_kind(FIELD, kinds, &format!("a list of {layers} kinds of layers"));
        let list = list.ok_or_else(wrong)?[..layers].iter();
        let ratios = list.map(|kind| if kind == "full_attention" { ratio } else { 0 });
        set_numbers(keys, "attention.compress_ratios", ratios);
        Ok(())
    }),
];

/// The field with the layers that have embeddings of n-grams.
const LAYERS: &str = "ple_layer_ids";
/// Fields set from tensors of the checkpoint.
const MULTIPLIERS: &str = "ple_layer_multipliers";
const OFFSETS: &str = "ple_head_offsets";
const SIZES: &str = "ple_head_vocab_sizes";
const ROW: &str = "ple_row_length";

/// The table of n-grams, if a layer has one.
fn ngrams(config: &Config, keys: &mut Keys) -> Result<()> {
    let listed = config.get(LAYERS);
    let listed = listed.ok_or_else(|| format!("field '{LAYERS}' is missing"))?;
    let wrong = || wrong_kind(LAYERS, listed, "a list of layers, counted from 1");
    let list = listed.as_array().ok_or_else(wrong)?.iter();
    let layers = list.map(|layer| u32::try_from(layer.as_u64()?.checked_sub(1)?).ok());
    let layers: Option<Vec<u32>> = layers.collect();
    let layers = layers.ok_or_else(wrong)?;
    if layers.is_empty() {
        return Ok(());
    }
    set_numbers(keys, "ple.layers", layers);
    for (key, field) in [
        ("ple.ngram_size", "ngram_size"),
        ("ple.heads_per_ngram", "heads_per_ngram"),
        ("ple.conv_kernel", "ple_conv_kernel_size"),
    ] {
        keys.set(key, Value::U32(config.u32(&[field])?));
    }
    keys.set("ple.eos_token_id", Value::U32(end(config)?));
    if let Some(image) = config.optional_u32(&["image_token_id"])? {
        keys.set("ple.image_token_id", Value::U32(image));
    }
    if let Some(length) = config.optional_u32(&[ROW])? {
        keys.set("embedding_length_per_layer_input", Value::U32(length));
    }
    for (key, field) in [
        ("ple.layer_multipliers", MULTIPLIERS),
        ("ple.head_offsets", OFFSETS),
        ("ple.head_vocab_sizes", SIZES),
    ] {
        let numbers = config.get(field).and_then(Json::as_array);
        let numbers = numbers.ok_or_else(|| {
            format!(
                "the checkpoint has no tensor with the {}, which the hashes of n-grams need; download it again",
                field.trim_start_matches("ple_").replace('_', " ")
            )
        })?;
        let numbers: Option<Vec<u64>> = numbers.iter().map(Json::as_u64).collect();
        let numbers = numbers.ok_or_else(|| {
            format!(
                "'{field}' in the checkpoint has a number below 0; it is damaged, download it again"
            )
        })?;
        let numbers = numbers.into_iter().map(Value::U64);
        keys.set(key, Value::Array(Array::of_values(ValueType::U64, numbers)));
    }
    Ok(())
}

/// The token that ends n-grams: the last of several.
fn end(config: &Config) -> Result<u32> {
    const FIELD: &str = "eos_token_id";
    let listed = config.get(FIELD).and_then(Json::as_array);
    let Some(last) = listed.and_then(|list| list.last()) else {
        return config.u32(&[FIELD]);
    };
    let last = last.as_u64().and_then(|id| u32::try_from(id).ok());
    last.ok_or_else(|| format!("field '{FIELD}' does not end with a token"))
}

const STREAMS: Size = Product(&[Hidden, Field(&["hc_count"])]);
const RANK: Size = Field(&["hc_lowrank"]);
const STREAM_COUNT: Size = Field(&["hc_count"]);

const HYPER_CONNECTIONS: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.attn_hyper_connection.hc_norm",
        "blk.{}.hc_attn_norm",
        &[],
        &[AddOne],
    ),
    Recipe::rename(
        "model.layers.{}.attn_hyper_connection.input_mix_weight_down",
        "blk.{}.hc_attn_down",
        &[RANK, STREAMS],
    ),
    Recipe::rename(
        "model.layers.{}.attn_hyper_connection.input_mix_weight_up",
        "blk.{}.hc_attn_up",
        &[STREAMS, RANK],
    ),
    Recipe::rename(
        "model.layers.{}.attn_hyper_connection.block_inject_weight",
        "blk.{}.hc_attn_inject",
        &[STREAM_COUNT, STREAMS],
    ),
    Recipe::with(
        "model.layers.{}.mlp_hyper_connection.hc_norm",
        "blk.{}.hc_ffn_norm",
        &[],
        &[AddOne],
    ),
    Recipe::rename(
        "model.layers.{}.mlp_hyper_connection.input_mix_weight_down",
        "blk.{}.hc_ffn_down",
        &[RANK, STREAMS],
    ),
    Recipe::rename(
        "model.layers.{}.mlp_hyper_connection.input_mix_weight_up",
        "blk.{}.hc_ffn_up",
        &[STREAMS, RANK],
    ),
    Recipe::rename(
        "model.layers.{}.mlp_hyper_connection.block_inject_weight",
        "blk.{}.hc_ffn_inject",
        &[STREAM_COUNT, STREAMS],
    ),
    Recipe::with(
        "model.hyper_connection_mixer.hc_norm",
        "output_hc_norm",
        &[],
        &[AddOne],
    ),
    Recipe::rename(
        "model.hyper_connection_mixer.input_mix_weight_down",
        "output_hc_down",
        &[RANK, STREAMS],
    ),
    Recipe::rename(
        "model.hyper_connection_mixer.input_mix_weight_up",
        "output_hc_up",
        &[STREAMS, RANK],
    ),
];

const INDEX_HEAD: Size = Field(&["indexer_head_dim"]);
/// Rows of the indexer's queries, then of its key.
const QUERIES_AND_KEY: &[Size] = &[Product(&[Field(&["indexer_n_heads"]), INDEX_HEAD]), Any];

const INDEXER: &[Recipe] = &[
    Recipe::new(
        &[Input::new(
            "model.layers.{}.self_attn.indexer.index_qk_proj.weight",
            &[Any, Hidden],
        )],
        &[
            Output::new(
                "blk.{}.indexer.q_proj.weight",
                &[Op::part(0, QUERIES_AND_KEY, 0)],
            ),
            Output::new(
                "blk.{}.indexer.k_proj.weight",
                &[Op::part(0, QUERIES_AND_KEY, 1)],
            ),
        ],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.indexer.q_layernorm",
        "blk.{}.indexer.q_norm",
        &[INDEX_HEAD],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.indexer.k_layernorm",
        "blk.{}.indexer.k_norm",
        &[INDEX_HEAD],
        &[AddOne],
    ),
];

/// The layer with embeddings of n-grams, their table, and the numbers of its hash.
const NGRAMS: &[Recipe] = &[
    Recipe::to_field("*ple_embedding.layer_multipliers", MULTIPLIERS),
    Recipe::to_field("*ple_embedding.ngram_heads_offsets", OFFSETS),
    Recipe::to_field("*ple_embedding.ngram_heads_vocab_sizes", SIZES),
    Recipe::with(
        "model.layers.{}.ple.ple_embedding.ngram_embedding.shard_{}",
        "per_layer_token_embd.weight",
        &[Any, Any],
        &[Append(Field(&["split_ngram_parts"]))],
    )
    .row_length_to(ROW)
    .when(When::Counted(LAYERS)),
    Recipe::rename(
        "model.layers.{}.ple.key_proj",
        "blk.{}.ple_key",
        &[STREAMS, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.ple.value_proj",
        "blk.{}.ple_value",
        &[Hidden, Hidden],
    ),
    Recipe::with(
        "model.layers.{}.ple.norm_key",
        "blk.{}.ple_norm_key",
        &[],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.ple.norm_query",
        "blk.{}.ple_norm_query",
        &[],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.ple.norm_conv",
        "blk.{}.ple_norm_conv",
        &[],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.ple.conv1d",
        "blk.{}.ple_conv1d",
        &[STREAMS, Number(1), Field(&["ple_conv_kernel_size"])],
        &[Squeeze(1)],
    ),
];
