//! Nemotron-H and Nemotron 3: every layer is a Mamba-2 state space, attention without RoPE, a
//! feed-forward network or experts.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{
    Activation, Decoder, Gating, Layout, Mamba2Layers, Needs, Recurrence, Rope, Router, Setting,
};
use super::granite::{self, CONVOLUTION, GROUP_COUNT, GROUPS, HEAD_COUNT, HEADS, STATE_SIZE};
use super::llama::rope_factors;
use super::mamba2::{BIASED, Sizes, set_size, state_space};
use super::parameters::{COMMON, FILE_TYPE, set_numbers};
use super::recipes::Op::{CastByFile, Interleave, Stack};
use super::recipes::Size::{
    self, Any, Computed, Field, Hidden, KeyHeads, Number, Product, QueryHeads,
};
use super::recipes::{Input, Output, Recipe, When};
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
        granite::SHARED,
        STATE_PARAMETERS,
        LAYERS,
        HEAD_LENGTHS,
        NETWORKS,
    ],
    tensors: &[TABLES[0], TABLES[1], TABLES[2], TABLES[3], TABLES[4]],
    generated: rope_factors,
    decoder: Decoder {
        rope: Rope::None,
        layout: Layout::Sequential("attn_norm"),
        activation: Activation::SquaredRelu,
        recurrence: Some(Recurrence::Mamba2(Mamba2Layers::Alone)),
        needs: Needs {
            biases: BIASED,
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

/// Nemotron-H with experts, optionally latent, in place of feed-forward networks.
static NEMOTRON_H_MOE: Architecture = Architecture {
    classes: &[],
    name: "nemotron_h_moe",
    parameters: &[
        COMMON,
        FILE_TYPE,
        granite::PARAMETERS,
        granite::SHARED,
        STATE_PARAMETERS,
        LAYERS,
        HEAD_LENGTHS,
        EXPERTS,
        ROUTER,
        LATENT,
        PREDICT_LAYERS,
    ],
    tensors: &[
        TABLES[0],
        TABLES[1],
        TABLES[2],
        TABLES[3],
        NEXTN_ROUTER,
        TABLES[5],
        NEXTN,
    ],
    decoder: Decoder {
        drafts: true,
        router: Router {
            gating: Setting::Always(Gating::Sigmoid),
            normalized: Setting::Listed(false),
            ..Router::LISTED
        },
        needs: Needs {
            optional: &["ffn_latent_down", "ffn_latent_up"],
            nextn: &["nextn.shared_head_norm"],
            biases: &["ssm_conv1d", "exp_probs_b"],
            ..Needs::WEIGHTS
        },
        ..NEMOTRON_H.decoder
    },
    ..NEMOTRON_H
};

/// Size and number of active experts differ by layer.
pub(super) static NEMOTRON_H_PUZZLE: Architecture = Architecture {
    classes: &["NemotronHPuzzleForCausalLM"],
    parameters: &[
        COMMON,
        FILE_TYPE,
        granite::PARAMETERS,
        granite::SHARED,
        STATE_PARAMETERS,
        LAYERS,
        HEAD_LENGTHS,
        PUZZLE_EXPERTS,
        ROUTER,
        LATENT,
    ],
    tensors: &[
        &[Recipe::leave_out("mtp.*", "multi-token prediction")],
        TABLES[0],
        TABLES[1],
        TABLES[2],
        TABLES[3],
        TABLES[5],
        MODEL_TABLES[0],
        MODEL_TABLES[1],
        MODEL_TABLES[2],
        MODEL_TABLES[3],
        MODEL_TABLES[5],
    ],
    ..NEMOTRON_H_MOE
};

/// The architecture of the class, with or without experts.
pub(super) fn of_class(config: &Config) -> Result<&'static Architecture> {
    Ok(match has_experts(config) {
        true => &NEMOTRON_H_MOE,
        false => &NEMOTRON_H,
    })
}

const SIZES: Sizes = Sizes {
    hidden: Hidden,
    heads: Field(HEADS),
    groups: Field(GROUPS),
    inner: INNER,
};

/// Total length of value heads.
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

/// The recipe tables of a model by prefix of names: embeddings, norms, state spaces, attention,
/// feed-forward networks, experts.
macro_rules! tables {
    ($model:literal) => {
        [
            &[
                Recipe::rename(concat!($model, "embeddings"), "token_embd", &[Any, Hidden]),
                Recipe::rename(concat!($model, "norm_f"), "output_norm", &[Hidden]),
                Recipe::rename("lm_head", "output", &[Any, Hidden]),
            ],
            &[Recipe::rename(
                concat!($model, "layers.{}.norm"),
                "blk.{}.attn_norm",
                &[Hidden],
            )],
            state_space!(concat!($model, "layers.{}.mixer."), SIZES, &[], &[]),
            // Query and key heads are interleaved as for RoPE, although there is none.
            &[
                Recipe::with(
                    concat!($model, "layers.{}.mixer.q_proj"),
                    "blk.{}.attn_q",
                    &[Any, Hidden],
                    &[Interleave(QueryHeads)],
                ),
                Recipe::with(
                    concat!($model, "layers.{}.mixer.k_proj"),
                    "blk.{}.attn_k",
                    &[Any, Hidden],
                    &[Interleave(KeyHeads)],
                ),
                Recipe::rename(
                    concat!($model, "layers.{}.mixer.v_proj"),
                    "blk.{}.attn_v",
                    &[Any, Hidden],
                ),
                Recipe::rename(
                    concat!($model, "layers.{}.mixer.o_proj"),
                    "blk.{}.attn_output",
                    &[Hidden, Any],
                ),
            ],
            &[
                Recipe::rename(
                    concat!($model, "layers.{}.mixer.up_proj"),
                    "blk.{}.ffn_up",
                    &[Any, Hidden],
                ),
                Recipe::rename(
                    concat!($model, "layers.{}.mixer.down_proj"),
                    "blk.{}.ffn_down",
                    &[Hidden, Any],
                ),
            ],
            &[
                Recipe::rename(
                    concat!($model, "layers.{}.mixer.gate.weight"),
                    "blk.{}.ffn_gate_inp.weight",
                    &[NUMBER_OF_EXPERTS, Hidden],
                ),
                Recipe::rename(
                    concat!($model, "layers.{}.mixer.gate.e_score_correction.bias"),
                    "blk.{}.exp_probs_b.bias",
                    &[NUMBER_OF_EXPERTS],
                ),
                Recipe::new(
                    &[
                        Input::new(
                            concat!($model, "layers.{}.mixer.experts.{}.down_proj.weight"),
                            &[Any, Any],
                        ),
                        Input::new(
                            concat!($model, "layers.{}.mixer.experts.{}.up_proj.weight"),
                            &[Any, Any],
                        ),
                    ],
                    &[
                        Output::of(
                            &[0],
                            "blk.{}.ffn_down_exps.weight",
                            &[Stack(NUMBER_OF_EXPERTS)],
                        ),
                        Output::of(
                            &[1],
                            "blk.{}.ffn_up_exps.weight",
                            &[Stack(NUMBER_OF_EXPERTS)],
                        ),
                    ],
                ),
                Recipe::rename(
                    concat!($model, "layers.{}.mixer.fc1_latent_proj"),
                    "blk.{}.ffn_latent_down",
                    &[Any, Hidden],
                ),
                Recipe::rename(
                    concat!($model, "layers.{}.mixer.fc2_latent_proj"),
                    "blk.{}.ffn_latent_up",
                    &[Hidden, Any],
                ),
                Recipe::rename(
                    concat!($model, "layers.{}.mixer.shared_experts.up_proj"),
                    "blk.{}.ffn_up_shexp",
                    &[Any, Hidden],
                ),
                Recipe::rename(
                    concat!($model, "layers.{}.mixer.shared_experts.down_proj"),
                    "blk.{}.ffn_down_shexp",
                    &[Hidden, Any],
                ),
            ],
        ]
    };
}

const NUMBER_OF_EXPERTS: Size = Field(&["n_routed_experts"]);

const TABLES: [&[Recipe]; 6] = tables!("backbone.");
/// Puzzle's names.
const MODEL_TABLES: [&[Recipe]; 6] = tables!("model.");

/// The router of a multi-token prediction block, which the reference does not treat as one.
const NEXTN_ROUTER: &[Recipe] = &[Recipe::with(
    "backbone.layers.{}.mixer.gate.weight",
    "blk.{}.ffn_gate_inp.weight",
    &[NUMBER_OF_EXPERTS, Hidden],
    &[CastByFile],
)
.when(When::LayersFrom(Computed(|config| {
    config.layers().map(u64::from)
})))];

/// Tensors of a multi-token prediction block in addition to attention and experts.
const NEXTN: &[Recipe] = &[
    Recipe::rename("backbone.layers.{}.enorm", "blk.{}.nextn.enorm", &[Hidden]),
    Recipe::rename("backbone.layers.{}.hnorm", "blk.{}.nextn.hnorm", &[Hidden]),
    Recipe::rename(
        "backbone.layers.{}.eh_proj",
        "blk.{}.nextn.eh_proj",
        &[Hidden, Product(&[Number(2), Hidden])],
    ),
    Recipe::rename(
        "backbone.layers.{}.post_attention_norm",
        "blk.{}.post_attention_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "backbone.layers.{}.final_layernorm",
        "blk.{}.nextn.shared_head_norm",
        &[Hidden],
    ),
];

/// The kind of a layer.
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

/// The kinds of all layers, from a string with a letter per layer or from a list of names. A model
/// has feed-forward networks or experts, not both: llama.cpp's converter turns unknown kinds into
/// state spaces without tensors.
fn kinds(config: &Config) -> Result<Vec<Kind>> {
    const FIELDS: [&str; 2] = ["hybrid_override_pattern", KINDS];
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

/// Sets fields derived from lists: the number of layers, and Puzzle's kinds of layers.
pub(super) fn complete(class: Option<&str>, fields: &mut serde_json::Map<String, Value>) {
    if class == Some(PUZZLE) {
        let blocks = fields.get(BLOCKS).and_then(Value::as_array);
        let kinds = blocks
            .into_iter()
            .flatten()
            .map(|block| block.get("block_type"));
        let kinds: Vec<Value> = kinds
            .map(|kind| kind.cloned().unwrap_or_default())
            .collect();
        fields.insert(KINDS.into(), kinds.into());
    } else if class != Some("NemotronHForCausalLM") {
        return;
    }
    let listed = fields.get(KINDS).and_then(Value::as_array);
    if let Some(layers) = listed.map(Vec::len) {
        fields.insert("num_hidden_layers".into(), layers.into());
    }
}

const PUZZLE: &str = "NemotronHPuzzleForCausalLM";
const BLOCKS: &str = "block_configs";
const KINDS: &str = "layers_block_type";

/// True for a mixture of experts.
fn has_experts(config: &Config) -> bool {
    config.first(&["num_experts_per_tok"]).is_some() || config.class() == Some(PUZZLE)
}

/// The kinds of layers and of a multi-token prediction block, which has attention and experts.
fn with_nextn(config: &Config) -> Result<impl Iterator<Item = Option<Kind>> + use<>> {
    let blocks = config.nextn() as usize;
    if blocks > 1 {
        return Err(format!(
            "{blocks} blocks for multi-token prediction; llama.cpp's converter takes one of such a model"
        ));
    }
    let kinds = kinds(config)?.into_iter().map(Some);
    Ok(kinds.chain(std::iter::repeat_n(None, blocks)))
}

/// KV heads of layers with attention, and no RoPE.
const LAYERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let heads = config.u32(&["num_key_value_heads", "n_head_kv"])?;
    let kinds: Vec<_> = with_nextn(config)?.collect();
    let of_layer = |kind: &Option<Kind>| match kind {
        Some(Kind::Attention) | None => heads,
        Some(_) => 0,
    };
    let heads: Vec<u32> = kinds.iter().map(of_layer).collect();
    let has_state_spaces = match config.class() == Some(PUZZLE) {
        true => heads.contains(&0),
        false => kinds.contains(&Some(Kind::StateSpace)),
    };
    granite::set_attention(config, keys, &heads, has_state_spaces)
})];

const HEAD_LENGTHS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let length = config.u32(&["head_dim", "attention_head_dim"])?;
    keys.set("attention.key_length", gguf::Value::U32(length));
    keys.set("attention.value_length", gguf::Value::U32(length));
    Ok(())
})];

/// The size of feed-forward networks by layer.
const NETWORKS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let length = config.u32(&["intermediate_size", "n_inner", "hidden_dim"])?;
    let kinds = kinds(config)?;
    let of_layer = |kind: &Kind| u32::from(*kind == Kind::Network) * length;
    set_numbers(keys, "feed_forward_length", kinds.iter().map(of_layer));
    Ok(())
})];

/// The size of experts by layer.
const EXPERTS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let length = config.u32(&["moe_intermediate_size"])?;
    let of_layer = |kind: Option<Kind>| match kind {
        Some(Kind::Experts) | None => length,
        Some(_) => 0,
    };
    set_numbers(
        keys,
        "feed_forward_length",
        with_nextn(config)?.map(of_layer),
    );
    keys.set(
        "expert_used_count",
        gguf::Value::U32(config.u32(&["num_experts_per_tok"])?),
    );
    keys.set("expert_feed_forward_length", gguf::Value::U32(length));
    Ok(())
})];

/// The same for Puzzle, with values per layer.
const PUZZLE_EXPERTS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let blocks = config.get(BLOCKS).and_then(Value::as_array);
    let blocks = blocks.ok_or_else(|| format!("field '{BLOCKS}' is missing or no list"))?;
    let numbers = |name: &str| -> Result<Vec<u32>> {
        let number = |block: &Value| match block.get(name).filter(|value| !value.is_null()) {
            None => Ok(0),
            Some(value) => {
                let number = value.as_u64().and_then(|number| number.try_into().ok());
                number.ok_or_else(|| wrong_kind(name, value, "a whole number"))
            }
        };
        blocks.iter().map(number).collect()
    };
    let lengths = numbers("moe_intermediate_size")?;
    set_numbers(keys, "feed_forward_length", lengths.iter().copied());
    set_numbers(keys, "expert_feed_forward_length", lengths);
    set_numbers(keys, "expert_used_count", numbers("num_experts_per_tok")?);
    Ok(())
})];

const ROUTER: &[Parameter] = &[
    Parameter::U32(
        "expert_shared_feed_forward_length",
        &["moe_shared_expert_intermediate_size"],
    ),
    Parameter::U32("expert_count", &["n_routed_experts"]),
    Parameter::U32("expert_shared_count", &["n_shared_experts"]),
    Parameter::Computed(|config, keys| {
        const FIELD: &str = "norm_topk_prob";
        let value = config.get(FIELD);
        let value = value.ok_or_else(|| format!("field '{FIELD}' is missing"))?;
        let flag = value.as_bool();
        let flag = flag.ok_or_else(|| wrong_kind(FIELD, value, "true or false"))?;
        keys.set("expert_weights_norm", gguf::Value::Bool(flag));
        Ok(())
    }),
    Parameter::F32("expert_weights_scale", &["routed_scaling_factor"]),
    Parameter::U32("expert_group_count", &["n_group"]),
];

const LATENT: &[Parameter] = &[Parameter::OptionalU32(
    "moe_latent_size",
    &["moe_latent_size"],
)];

const PREDICT_LAYERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    if config.nextn() > 0 {
        keys.set("nextn_predict_layers", gguf::Value::U32(config.nextn()));
    }
    Ok(())
})];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(fields: Value) -> Config {
        Config::new(fields.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn patterns_are_strings_or_lists() {
        let dense = config(json!({ "hybrid_override_pattern": "M-*", "num_hidden_layers": 3 }));
        let of_dense = [Kind::StateSpace, Kind::Network, Kind::Attention];
        assert!(kinds(&dense).unwrap() == of_dense);
        let listed = config(
            json!({ "architectures": ["NemotronHForCausalLM"], "num_experts_per_tok": 2,
            "layers_block_type": ["mamba", "moe", "attention", "moe"] }),
        );
        assert_eq!(listed.layers(), Ok(4));
        let of_listed = [
            Kind::StateSpace,
            Kind::Experts,
            Kind::Attention,
            Kind::Experts,
        ];
        assert!(kinds(&listed).unwrap() == of_listed);
        let puzzle = config(json!({ "architectures": [PUZZLE],
            "block_configs": [{ "block_type": "mamba" }, { "block_type": "moe" }] }));
        assert_eq!(puzzle.layers(), Ok(2));
        assert!(kinds(&puzzle).unwrap() == [Kind::StateSpace, Kind::Experts]);
    }

    #[test]
    fn invalid_patterns_are_named() {
        for (fields, part) in [
            (json!({ "num_hidden_layers": 1 }), "neither field"),
            (
                json!({ "hybrid_override_pattern": 3, "num_hidden_layers": 1 }),
                "is a whole number",
            ),
            (
                json!({ "hybrid_override_pattern": "MM", "num_hidden_layers": 1 }),
                "2 layers",
            ),
            (
                json!({ "hybrid_override_pattern": "MX", "num_hidden_layers": 2 }),
                "'X'",
            ),
            (
                json!({ "hybrid_override_pattern": "ME", "num_hidden_layers": 2 }),
                "'E'",
            ),
            (
                json!({ "hybrid_override_pattern": "M-", "num_hidden_layers": 2, "num_experts_per_tok": 2 }),
                "'-'",
            ),
            (
                json!({ "layers_block_type": ["mamba", 3], "num_hidden_layers": 2 }),
                "a list",
            ),
        ] {
            let error = kinds(&config(fields)).err().unwrap();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
