//! The projectors of Qwen 2-VL, 2.5-VL and 3-VL.

use super::{COMMON, EMPTY, OUTER, Projector, USE_GELU, USE_SILU, of};
use crate::config::{Result, wrong_kind};
use crate::decoder::{Decoder, Needs};
use crate::parameters::{Keys, Parameter};
use crate::recipes::Op::{self, Cast, CastPlain, Squeeze};
use crate::recipes::Size::{Any, FeedForward, Hidden, Number, Product};
use crate::recipes::{Input, Output, Recipe, Size};
use crate::{Architecture, Config};
use quantier_gguf::gguf::{Array, Value, ValueType};
use quantier_gguf::types::GgmlType;
use serde_json::Value as Json;

pub(super) static QWEN2_VL: Projector = Projector {
    architecture: Architecture {
        classes: &["Qwen2VLForConditionalGeneration", "Qwen2VLModel"],
        parameters: &[
            COMMON,
            &[Parameter::ConstantStr("projector_type", "qwen2vl_merger")],
            &[Parameter::Computed(outer_epsilon)],
        ],
        tensors: &[PATCHES, BLOCK, SPLIT_ATTENTION, PLAIN_NETWORK, MERGER],
        ..EMPTY
    },
    name: of_visual,
};

pub(super) static QWEN2_5_VL: Projector = Projector {
    architecture: Architecture {
        classes: &["Qwen2_5_VLForConditionalGeneration"],
        parameters: &[
            COMMON,
            &[
                Parameter::ConstantStr("projector_type", "qwen2.5vl_merger"),
                USE_SILU,
                Parameter::Computed(windows),
                Parameter::Computed(outer_epsilon),
            ],
        ],
        tensors: &[PATCHES, BLOCK, SPLIT_ATTENTION, GATED_NETWORK, MERGER],
        ..EMPTY
    },
    name: of_visual,
};

pub(super) static QWEN3_VL: Projector = Projector {
    architecture: Architecture {
        classes: &[
            "Qwen3VLForConditionalGeneration",
            "Qwen3VLMoeForConditionalGeneration",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForConditionalGeneration",
        ],
        parameters: &[
            COMMON,
            &[
                Parameter::ConstantStr("projector_type", "qwen3vl_merger"),
                USE_GELU,
                Parameter::OptionalU32("vision.spatial_merge_size", &["spatial_merge_size"]),
                Parameter::Computed(text_epsilon),
                Parameter::Computed(deep_layers),
            ],
        ],
        tensors: &[
            PATCHES,
            POSITIONS,
            BLOCK,
            FUSED_ATTENTION,
            NAMED_NETWORK,
            NAMED_MERGER,
            DEEP,
        ],
        decoder: Decoder {
            needs: Needs {
                optional: &[
                    "v.deepstack.{}.norm",
                    "v.deepstack.{}.fc1",
                    "v.deepstack.{}.fc2",
                ],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    name: |config, name| {
        let name = of_visual(config, name)?;
        // Mergers are numbered in order, and in the GGUF by the layer that they read.
        let Some(rest) = name.strip_prefix("visual.deepstack_merger_list.") else {
            return Some(name);
        };
        let (number, rest) = rest.split_once('.')?;
        let layers = deepstack(config).ok()?;
        let layer = layers.get(number.parse::<usize>().ok()?)?;
        Some(format!("visual.deepstack.{layer}.{rest}"))
    },
};

/// Names of the encoder begin with `visual.`, or with `model.visual.` in newer checkpoints.
fn of_visual(_: &Config, name: &str) -> Option<String> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    name.starts_with("visual.").then(|| name.to_owned())
}

const EPSILON: &str = "vision.attention.layer_norm_epsilon";
const TEXT_EPSILON: &str = "rms_norm_eps";

fn epsilon(value: Option<&Json>, keys: &mut Keys) -> Result<()> {
    let epsilon = match value {
        Some(value) => value
            .as_f64()
            .ok_or_else(|| wrong_kind(TEXT_EPSILON, value, "a number"))?,
        None => 1e-6,
    };
    keys.set(EPSILON, Value::F32(epsilon as f32));
    Ok(())
}

/// The epsilon at the root of config.json.
fn outer_epsilon(config: &Config, keys: &mut Keys) -> Result<()> {
    epsilon(of(config, OUTER, TEXT_EPSILON)?, keys)
}

/// The epsilon of the text model's norms.
fn text_epsilon(config: &Config, keys: &mut Keys) -> Result<()> {
    let text = of(config, OUTER, "text_config")?;
    epsilon(text.and_then(|text| text.get(TEXT_EPSILON)), keys)
}

/// A list of whole numbers.
fn indices(config: &Config, field: &str) -> Result<Vec<u32>> {
    let Some(value) = config.get(field) else {
        return Ok(Vec::new());
    };
    let numbers = value.as_array().map(|list| {
        let number = |value: &Json| u32::try_from(value.as_u64()?).ok();
        list.iter().map(number).collect::<Option<Vec<u32>>>()
    });
    numbers
        .flatten()
        .ok_or_else(|| wrong_kind(field, value, "a list of whole numbers"))
}

/// The period of layers with attention over the whole image; the others attend within windows.
fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    const FIELD: &str = "fullatt_block_indexes";
    let layers = indices(config, FIELD)?;
    let period = layers.first().and_then(|first| first.checked_add(1));
    let period = period.ok_or_else(|| format!("field '{FIELD}' is missing or empty"))?;
    if layers
        .windows(2)
        .any(|pair| pair[1].checked_sub(pair[0]) != Some(period))
    {
        return Err(format!(
            "'{FIELD}' is {layers:?}; llama.cpp runs only layers of one period"
        ));
    }
    keys.set("vision.n_wa_pattern", Value::U32(period));
    Ok(())
}

fn deepstack(config: &Config) -> Result<Vec<u32>> {
    indices(config, "deepstack_visual_indexes")
}

/// For every layer, whether its outputs are merged into the text model's layers.
fn deep_layers(config: &Config, keys: &mut Keys) -> Result<()> {
    let (layers, deep) = (config.layers()?, deepstack(config)?);
    if let Some(layer) = deep.iter().find(|layer| **layer >= layers) {
        return Err(format!(
            "'deepstack_visual_indexes' has layer {layer}, and there are {layers}"
        ));
    }
    let flags = (0..layers).map(|layer| Value::Bool(deep.contains(&layer)));
    if layers > 0 {
        let list = Array::of_values(ValueType::Bool, flags);
        keys.set("vision.is_deepstack_layers", Value::Array(list));
    }
    Ok(())
}

const THREE_HIDDEN: Size = Product(&[Number(3), Hidden]);

/// Two patches that follow each other in time, as two convolutions.
const PATCHES: &[Recipe] = &[
    Recipe::new(
        &[Input::new(
            "visual.patch_embed.proj.weight",
            &[Hidden, Any, Number(2), Any, Any],
        )],
        &[
            Output::new(
                "v.patch_embd.weight",
                &[Op::part(2, &[Number(1), Any], 0), Squeeze(2), CastPlain],
            ),
            Output::new(
                "v.patch_embd.weight.1",
                &[Op::part(2, &[Number(1), Any], 1), Squeeze(2), CastPlain],
            ),
        ],
    ),
    Recipe::rename(
        "visual.patch_embed.proj.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
];

const POSITIONS: &[Recipe] = &[Recipe::with(
    "visual.pos_embed",
    "v.position_embd",
    &[Any, Hidden],
    &[Cast(GgmlType::F32)],
)];

/// Of every block, whatever its queries, keys and values are.
const BLOCK: &[Recipe] = &[
    block!(
        "visual.blocks.{}.",
        "attn.proj",
        "attn_out",
        &[Hidden, Hidden]
    ),
    block!("visual.blocks.{}.", "norm1", "ln1", &[Hidden]),
    block!("visual.blocks.{}.", "norm2", "ln2", &[Hidden]),
];

const SPLIT_ATTENTION: &[Recipe] = &[Recipe::new(
    &[Input::new(
        "visual.blocks.{}.attn.qkv",
        &[THREE_HIDDEN, Hidden],
    )],
    &[
        Output::new("v.blk.{}.attn_q", &[Op::part(0, &[Hidden, Hidden, Any], 0)]),
        Output::new("v.blk.{}.attn_k", &[Op::part(0, &[Hidden, Hidden, Any], 1)]),
        Output::new("v.blk.{}.attn_v", &[Op::part(0, &[Hidden, Hidden, Any], 2)]),
    ],
)];

const FUSED_ATTENTION: &[Recipe] = &[block!(
    "visual.blocks.{}.",
    "attn.qkv",
    "attn_qkv",
    &[THREE_HIDDEN, Hidden]
)];

const PLAIN_NETWORK: &[Recipe] = &[
    block!("visual.blocks.{}.", "mlp.fc1", "ffn_up", &[Any, Hidden]),
    block!("visual.blocks.{}.", "mlp.fc2", "ffn_down", &[Hidden, Any]),
];

const GATED_NETWORK: &[Recipe] = &[
    block!(
        "visual.blocks.{}.",
        "mlp.gate_proj",
        "ffn_gate",
        &[FeedForward, Hidden]
    ),
    block!(
        "visual.blocks.{}.",
        "mlp.up_proj",
        "ffn_up",
        &[FeedForward, Hidden]
    ),
    block!(
        "visual.blocks.{}.",
        "mlp.down_proj",
        "ffn_down",
        &[Hidden, FeedForward]
    ),
];

const NAMED_NETWORK: &[Recipe] = &[
    block!(
        "visual.blocks.{}.",
        "mlp.linear_fc1",
        "ffn_up",
        &[FeedForward, Hidden]
    ),
    block!(
        "visual.blocks.{}.",
        "mlp.linear_fc2",
        "ffn_down",
        &[Hidden, FeedForward]
    ),
];

const MERGER: &[Recipe] = &[
    Recipe::rename("visual.merger.ln_q", "v.post_ln", &[Hidden]),
    Recipe::rename("visual.merger.mlp.0", "mm.0", &[Any, Any]),
    Recipe::rename("visual.merger.mlp.2", "mm.2", &[Any, Any]),
];

const NAMED_MERGER: &[Recipe] = &[
    Recipe::rename("visual.merger.norm", "v.post_ln", &[Hidden]),
    Recipe::rename("visual.merger.linear_fc1", "mm.0", &[Any, Any]),
    Recipe::rename("visual.merger.linear_fc2", "mm.2", &[Any, Any]),
];

const DEEP: &[Recipe] = &[
    Recipe::rename("visual.deepstack.{}.norm", "v.deepstack.{}.norm", &[Any]),
    Recipe::rename(
        "visual.deepstack.{}.linear_fc1",
        "v.deepstack.{}.fc1",
        &[Any, Any],
    ),
    Recipe::rename(
        "visual.deepstack.{}.linear_fc2",
        "v.deepstack.{}.fc2",
        &[Any, Any],
    ),
];
