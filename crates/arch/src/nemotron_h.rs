//! Nemotron-H: every layer is one of a Mamba-2, attention without rotation, and a feed-forward
//! network.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{Activation, Decoder, Layout, Mamba2Layers, Rope};
use super::granite::{self, CONVOLUTION, GROUP_COUNT, GROUPS, HEAD_COUNT, HEADS, STATE_SIZE};
use super::mamba2::{EMBEDDINGS, NORM, Sizes, set_size, state_space};
use super::parameters::{COMMON, FILE_TYPE, set_numbers};
use super::recipes::Op::Interleave;
use super::recipes::Recipe;
use super::recipes::Size::{self, Any, FeedForward, Field, Hidden, KeyHeads, Product, QueryHeads};
use super::{Architecture, Parameter};
use quantier_gguf::gguf;
use quantier_tokenizer::VocabKind;
use serde_json::Value;

pub(super) static NEMOTRON_H: Architecture = Architecture {
    classes: &["NemotronHForCausalLM"],
    name: "nemotron_h",
    vocabulary: VocabKind::NemotronH,
    parameters: &[
        COMMON,
        FILE_TYPE,
        granite::PARAMETERS,
        STATE_PARAMETERS,
        LAYERS,
        HEAD_LENGTHS,
        NETWORKS,
    ],
    tensors: &[EMBEDDINGS, NORM, STATE_SPACES, ATTENTION, FFN],
    generated: super::nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        layout: Layout::Sequential("attn_norm"),
        activation: Activation::SquaredRelu,
        mamba2: Some(Mamba2Layers::Alone),
        ..Decoder::LLAMA
    },
};

const SIZES: Sizes = Sizes {
    hidden: Hidden,
    heads: Field(HEADS),
    groups: Field(GROUPS),
    inner: INNER,
};

/// Numbers of all heads of values.
const INNER: Size = Product(&[
    Field(&["num_heads", "mamba_num_heads"]),
    Field(&["mamba_head_dim", "hidden_size", "d_model"]),
]);

const STATE_PARAMETERS: &[Parameter] = &[
    CONVOLUTION,
    STATE_SIZE,
    GROUP_COUNT,
    Parameter::Computed(|config, keys| set_size(keys, "ssm.inner_size", INNER.required(config)?)),
    HEAD_COUNT,
];

const STATE_SPACES: &[Recipe] = state_space!("backbone.layers.{}.mixer.", SIZES, &[], &[]);

/// Heads of queries and keys are interleaved as for a rotation, which there is none of.
const ATTENTION: &[Recipe] = &[
    Recipe::with(
        "backbone.layers.{}.mixer.q_proj",
        "blk.{}.attn_q",
        &[Any, Hidden],
        &[Interleave(QueryHeads)],
    ),
    Recipe::with(
        "backbone.layers.{}.mixer.k_proj",
        "blk.{}.attn_k",
        &[Any, Hidden],
        &[Interleave(KeyHeads)],
    ),
    Recipe::rename(
        "backbone.layers.{}.mixer.v_proj",
        "blk.{}.attn_v",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "backbone.layers.{}.mixer.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
];

const FFN: &[Recipe] = &[
    Recipe::rename(
        "backbone.layers.{}.mixer.up_proj",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "backbone.layers.{}.mixer.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];

/// What a layer is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    StateSpace,
    Attention,
    Network,
    Experts,
}

impl Kind {
    /// By a letter, or by a name in a list.
    fn of(name: &str) -> Option<Kind> {
        match name {
            "M" | "mamba" | "linear_attention" => Some(Kind::StateSpace),
            "*" | "attention" | "full_attention" => Some(Kind::Attention),
            "-" => Some(Kind::Network),
            "E" | "moe" => Some(Kind::Experts),
            _ => None,
        }
    }
}

/// The kinds of all layers, as a text with a letter for each or as a list of names. A model has
/// networks or experts, not both: what llama.cpp's converter does not know becomes a state space
/// without tensors.
fn kinds(config: &Config) -> Result<Vec<Kind>> {
    const FIELDS: [&str; 2] = ["hybrid_override_pattern", "layers_block_type"];
    let pattern = FIELDS
        .iter()
        .find_map(|name| Some((*name, config.get(name)?)));
    let Some((name, pattern)) = pattern else {
        return Err(format!(
            "neither field '{}' nor '{}' is there",
            FIELDS[0], FIELDS[1]
        ));
    };
    let names: Option<Vec<String>> = match (pattern.as_str(), pattern.as_array()) {
        (Some(letters), _) => Some(letters.chars().map(String::from).collect()),
        (_, Some(names)) => {
            let name = |name: &Value| name.as_str().map(str::to_owned);
            names.iter().map(name).collect()
        }
        _ => None,
    };
    let names = names.ok_or_else(|| wrong_kind(name, pattern, "a text, or a list of texts,"))?;
    let layers = config.layers()?;
    if names.len() != layers as usize {
        let count = names.len();
        return Err(format!(
            "field '{name}' tells of {count} layers, and there are {layers}"
        ));
    }
    let other = match has_experts(config) {
        true => Kind::Network,
        false => Kind::Experts,
    };
    let kind = |kind: &String| {
        let known = Kind::of(kind).filter(|kind| *kind != other);
        known.ok_or_else(|| {
            format!(
                "field '{name}' has a layer '{kind}', which llama.cpp cannot run in such a model"
            )
        })
    };
    names.iter().map(kind).collect()
}

/// Sets the number of layers where the config lists them.
pub(super) fn complete(class: Option<&str>, fields: &mut serde_json::Map<String, Value>) {
    let listed = fields.get("layers_block_type").and_then(Value::as_array);
    let layers = listed.map(Vec::len);
    if let (Some("NemotronHForCausalLM"), Some(layers)) = (class, layers) {
        fields.insert("num_hidden_layers".into(), layers.into());
    }
}

/// Whether the model is a mixture of experts.
fn has_experts(config: &Config) -> bool {
    config.get("num_experts_per_tok").is_some()
}

/// Heads of keys in the layers with attention, and no rotation.
const LAYERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let heads = config.u32(&["num_key_value_heads", "n_head_kv"])?;
    let kinds = kinds(config)?;
    let of_layer = |kind: &Kind| u32::from(*kind == Kind::Attention) * heads;
    let heads: Vec<u32> = kinds.iter().map(of_layer).collect();
    granite::set_attention(config, keys, &heads, kinds.contains(&Kind::StateSpace))
})];

const HEAD_LENGTHS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let length = config.u32(&["head_dim", "attention_head_dim"])?;
    keys.set("attention.key_length", gguf::Value::U32(length));
    keys.set("attention.value_length", gguf::Value::U32(length));
    Ok(())
})];

/// The width of the layers with a feed-forward network.
const NETWORKS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let length = config.u32(&["intermediate_size", "n_inner", "hidden_dim"])?;
    let kinds = kinds(config)?;
    let of_layer = |kind: &Kind| u32::from(*kind == Kind::Network) * length;
    set_numbers(keys, "feed_forward_length", kinds.iter().map(of_layer));
    Ok(())
})];
