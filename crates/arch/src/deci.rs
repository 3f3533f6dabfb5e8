//! DeciLM and Llama-Nemotron: layers with attention, with one matrix in its place, or without
//! either; sizes differ by layer.

use super::config::{Result, wrong_kind};
use super::decoder::Decoder;
use super::llama::{
    BUFFERS, EMBEDDINGS, LISTED_FFN, NORMS, OWN_PARAMETERS, PLAIN_ATTENTION, rope_factors,
};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_numbers};
use super::recipes::Op::{self, InterleaveBy};
use super::recipes::Size::{Any, Hidden};
use super::{Architecture, Config, Keys, Parameter, Recipe};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;
use serde_json::Value as Json;

pub(super) static DECI: Architecture = Architecture {
    classes: &["DeciLMForCausalLM"],
    name: "deci",
    vocabulary: VocabKind::Deci,
    parameters: &[&[Parameter::Computed(parameters)], OWN_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        TENSORS,
        LISTED_FFN,
        PLAIN_ATTENTION,
        BUFFERS,
    ],
    generated: rope_factors,
    decoder: Decoder {
        linear_layers: true,
        ..Decoder::LLAMA
    },
};

/// A layer of a searched architecture.
pub(super) struct Block {
    heads: u32,
    kv_heads: u32,
    width: u32,
}

impl Block {
    /// True if the layer has a weight of this name. One matrix in place of attention has the name
    /// of the output matrix.
    pub(super) fn has(&self, stem: &str) -> bool {
        match stem {
            "attn_norm" | "attn_output" => self.heads > 0,
            "attn_q" | "attn_k" | "attn_v" => self.kv_heads > 0,
            _ => !stem.starts_with("ffn_") || self.width > 0,
        }
    }
}

/// The layers of a searched architecture; `None` if all layers are alike.
pub(super) fn blocks(config: &Config) -> Result<Option<Vec<Block>>> {
    const FIELD: &str = "block_configs";
    let Some(value) = config.get(FIELD) else {
        return Ok(None);
    };
    let list = value
        .as_array()
        .ok_or_else(|| wrong_kind(FIELD, value, "a list"))?;
    let (layers, heads) = (
        config.layers()? as usize,
        config.u32(&["num_attention_heads"])?,
    );
    if list.len() != layers {
        return Err(format!(
            "'{FIELD}' has {} entries for {layers} layers",
            list.len()
        ));
    }
    let hidden = config.f64(&["hidden_size"])?;
    let blocks = list.iter().enumerate().map(|(layer, block)| {
        let bad = |what: &str| format!("'{FIELD}', layer {layer}: {what}");
        let attention = block
            .get("attention")
            .ok_or_else(|| bad("'attention' is missing"))?;
        let group = attention.get("n_heads_in_group").and_then(Json::as_u64);
        let is_linear = attention
            .get("replace_with_linear")
            .is_some_and(|flag| *flag == true);
        let ffn = block.get("ffn").ok_or_else(|| bad("'ffn' is missing"))?;
        let multiplier = ffn.get("ffn_mult").and_then(Json::as_f64).unwrap_or(0.0);
        Ok(Block {
            heads: if group.is_some() || is_linear {
                heads
            } else {
                0
            },
            kv_heads: match group {
                Some(0) => return Err(bad("'n_heads_in_group' is 0")),
                Some(group) => heads / u32::try_from(group).unwrap_or(u32::MAX),
                None => 0,
            },
            width: ((2.0 * multiplier * hidden / 3.0) as u32).next_multiple_of(256),
        })
    });
    blocks.collect::<Result<_>>().map(Some)
}

fn parameters(config: &Config, keys: &mut Keys) -> Result<()> {
    let common = |keys: &mut Keys, list: &[Parameter]| {
        list.iter()
            .try_for_each(|parameter| parameter.apply(config, keys))
    };
    let Some(blocks) = blocks(config)? else {
        [COMMON, HEAD_LENGTHS, FILE_TYPE]
            .iter()
            .try_for_each(|list| common(keys, list))?;
        if let Some(list) = kv_heads_by_layer(config)? {
            set_numbers(keys, "attention.head_count_kv", list);
        }
        return Ok(());
    };
    if let Some(theta) = super::config::number_in(config.rope(), "rope_theta")? {
        keys.set("rope.freq_base", Value::F32(theta as f32));
    }
    set_numbers(
        keys,
        "attention.head_count_kv",
        blocks.iter().map(|block| block.kv_heads),
    );
    set_numbers(
        keys,
        "attention.head_count",
        blocks.iter().map(|block| block.heads),
    );
    set_numbers(
        keys,
        "feed_forward_length",
        blocks.iter().map(|block| block.width),
    );
    let head = config.share_of_head()?;
    common(
        keys,
        &[
            Parameter::Layers,
            Parameter::U32("context_length", &["max_position_embeddings"]),
            Parameter::U32("embedding_length", &["hidden_size"]),
            Parameter::F32("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
        ],
    )?;
    keys.set("attention.key_length", Value::U32(head));
    keys.set("attention.value_length", Value::U32(head));
    common(keys, FILE_TYPE)
}

/// DeciLM 7B: KV heads per layer.
fn kv_heads_by_layer(config: &Config) -> Result<Option<Vec<u32>>> {
    const FIELD: &str = "num_key_value_heads_per_layer";
    let Some(value) = config.get(FIELD) else {
        return Ok(None);
    };
    let number = |n: &Json| n.as_u64().and_then(|n| u32::try_from(n).ok());
    let list = value
        .as_array()
        .and_then(|list| list.iter().map(number).collect());
    let list: Vec<u32> = list.ok_or_else(|| wrong_kind(FIELD, value, "a list of whole numbers"))?;
    match list.len() == config.layers()? as usize {
        true => Ok(Some(list)),
        false => Err(format!(
            "'{FIELD}' has {} numbers for {} layers",
            list.len(),
            config.layers()?
        )),
    }
}

fn query_heads(config: &Config, layer: u32) -> Result<u64> {
    match blocks(config)? {
        Some(blocks) => Ok(blocks
            .get(layer as usize)
            .map_or(0, |block| block.heads.into())),
        None => Ok(config.u32(&["num_attention_heads"])?.into()),
    }
}

fn key_heads(config: &Config, layer: u32) -> Result<u64> {
    if let Some(list) = kv_heads_by_layer(config)? {
        return Ok(list.get(layer as usize).map_or(0, |heads| (*heads).into()));
    }
    match blocks(config)? {
        Some(blocks) => Ok(blocks
            .get(layer as usize)
            .map_or(0, |block| block.kv_heads.into())),
        None => Ok(config
            .u32(&["num_key_value_heads", "num_attention_heads"])?
            .into()),
    }
}

const QUERIES: &[Op] = &[InterleaveBy(query_heads)];
const KEYS: &[Op] = &[InterleaveBy(key_heads)];

const TENSORS: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[Any, Hidden],
        QUERIES,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_k",
        &[Any, Hidden],
        KEYS,
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.linear_attn",
        "blk.{}.attn_output",
        &[Hidden, Hidden],
    ),
];
