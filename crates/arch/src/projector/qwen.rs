//! The projectors of Qwen 2-VL, 2.5-VL and 3-VL.

use super::{
    COMMON, EMPTY, EPSILON, Encoders, OUTER, PIXELS, Projector, USE_GELU, USE_SILU, field, indices,
    name_fields, of, set, whole,
};
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
        classes: &[
            "Qwen2VLForConditionalGeneration",
            "Qwen2VLModel",
            "Sarashina2VisionForCausalLM",
        ],
        parameters: &[
            COMMON,
            &[Parameter::ConstantStr("projector_type", "qwen2vl_merger")],
            &[Parameter::Computed(outer_epsilon)],
        ],
        tensors: &[PATCHES, BLOCK, SPLIT_ATTENTION, PLAIN_NETWORK, MERGER],
        ..EMPTY
    },
    encoders: QWEN2,
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
    encoders: QWEN2,
    name: of_visual,
};

pub(super) static QWEN3_VL: Projector = Projector {
    architecture: Architecture {
        classes: &[
            "Qwen3VLForConditionalGeneration",
            "Qwen3VLMoeForConditionalGeneration",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForConditionalGeneration",
            "Qwen4ExpForConditionalGeneration",
        ],
        parameters: &[
            COMMON,
            &[
                Parameter::ConstantStr("projector_type", "qwen3vl_merger"),
                USE_GELU,
            ],
            DEEP_KEYS,
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
    encoders: ENCODERS,
    name: |config, name| numbered_by_layer(config, of_visual(config, name)?),
};

pub(super) static EXAONE: Projector = Projector {
    architecture: Architecture {
        classes: &["Exaone4_5_ForConditionalGeneration"],
        parameters: &[
            COMMON,
            &[
                Parameter::ConstantStr("projector_type", "exaone4_5"),
                USE_SILU,
                PIXELS,
                Parameter::OptionalU32("vision.attention.head_count_kv", &["num_key_value_heads"]),
                Parameter::Computed(|config, keys| match config.get(TEXT_EPSILON) {
                    Some(value) => epsilon(Some(value), keys),
                    None => outer_epsilon(config, keys),
                }),
                Parameter::OptionalU32("vision.window_size", &["window_size"]),
                Parameter::Computed(|config, keys| {
                    match indices(config, FULL_ATTENTION)?.is_empty() {
                        true => Ok(()),
                        false => windows(config, keys),
                    }
                }),
            ],
        ],
        tensors: &[PATCHES, BLOCK, GROUPED_ATTENTION, GATED_NETWORK, MERGER],
        ..EMPTY
    },
    encoders: QWEN2,
    name: of_visual,
};

pub(super) static LING3_VL: Projector = Projector {
    architecture: Architecture {
        classes: &["BailingMoeV3VLForConditionalGeneration"],
        parameters: &[
            COMMON,
            &[
                Parameter::ConstantStr("projector_type", "ling3vl"),
                USE_GELU,
                Parameter::OptionalU32("vision.spatial_merge_size", &["spatial_merge_size"]),
                Parameter::Computed(text_epsilon),
            ],
        ],
        tensors: &[
            PATCHES,
            POSITIONS,
            BLOCK,
            FUSED_ATTENTION,
            NAMED_NETWORK,
            LING_MATRICES,
        ],
        decoder: Decoder {
            needs: Needs {
                biases: &["mm.input_norm", "mm.0", "mm.2"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            (ENCODERS.complete)(parts)?;
            const WITHOUT: &str = "disable_merger_proj";
            match field(&parts.vision, WITHOUT) {
                Some(without) if *without == true => Ok(()),
                _ => Err(format!(
                    "'{WITHOUT}' is not true, and llama.cpp runs no other"
                )),
            }
        },
        ..Encoders::VISION
    },
    name: |config, name| match name.starts_with("linear_proj.") {
        true => Some(name.to_owned()),
        false => of_visual(config, name),
    },
};

/// The keys of encoders whose layers are merged into those of the text model.
pub(super) const DEEP_KEYS: &[Parameter] = &[
    Parameter::OptionalU32("vision.spatial_merge_size", &["spatial_merge_size"]),
    Parameter::Computed(text_epsilon),
    Parameter::Computed(deep_layers),
];

/// Mergers are numbered in order, and in the GGUF by the layer that they read.
pub(super) fn numbered_by_layer(config: &Config, name: String) -> Option<String> {
    let Some(rest) = name.strip_prefix("visual.deepstack_merger_list.") else {
        return Some(name);
    };
    let (number, rest) = rest.split_once('.')?;
    let layers = deepstack(config).ok()?;
    let layer = layers.get(number.parse::<usize>().ok()?)?;
    Some(format!("visual.deepstack.{layer}.{rest}"))
}

/// Names of the encoder begin with `visual.`, or with `model.visual.` in newer checkpoints.
pub(super) fn of_visual(_: &Config, name: &str) -> Option<String> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    name.starts_with("visual.").then(|| name.to_owned())
}

/// The encoder of Qwen 2-VL.
pub(super) const QWEN2: Encoders = Encoders {
    complete: |parts| {
        name_fields(&mut parts.vision, NAMES);
        if let Some(length) = field(&parts.vision, "embed_dim").cloned() {
            // The length of the outputs stands in for that of the network, which no field gives.
            let outputs = field(&parts.vision, "hidden_size").cloned();
            set(&mut parts.vision, "intermediate_size", outputs);
            set(&mut parts.vision, "hidden_size", length);
        }
        if field(&parts.vision, "image_size").is_none() {
            set(&mut parts.vision, "image_size", 560);
        }
        Ok(())
    },
    ..Encoders::VISION
};

/// The encoder of Qwen 3-VL: the size of images is that of the learned positions.
pub(super) const ENCODERS: Encoders = Encoders {
    complete: |parts| {
        name_fields(&mut parts.vision, NAMES);
        if field(&parts.vision, "image_size").is_none() {
            let positions = whole(&parts.vision, "num_position_embeddings")?;
            let patch = whole(&parts.vision, "patch_size")?.unwrap_or(16);
            let side = (positions.unwrap_or(2304) as f64).sqrt();
            set(
                &mut parts.vision,
                "image_size",
                (side * patch as f64) as u64,
            );
        }
        Ok(())
    },
    ..Encoders::VISION
};

/// The names of other encoders for Qwen's fields.
const NAMES: &[(&str, &str)] = &[
    ("num_attention_heads", "num_heads"),
    ("num_hidden_layers", "depth"),
];

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
pub(super) fn outer_epsilon(config: &Config, keys: &mut Keys) -> Result<()> {
    epsilon(of(config, OUTER, TEXT_EPSILON)?, keys)
}

/// The epsilon of the text model's norms.
fn text_epsilon(config: &Config, keys: &mut Keys) -> Result<()> {
    let text = of(config, OUTER, "text_config")?;
    epsilon(text.and_then(|text| text.get(TEXT_EPSILON)), keys)
}

/// The field of the layers with attention over the whole image.
const FULL_ATTENTION: &str = "fullatt_block_indexes";

/// The period of layers with attention over the whole image; the others attend within windows.
pub(super) fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    const FIELD: &str = FULL_ATTENTION;
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
pub(super) const PATCHES: &[Recipe] = &[
    two_patches!("visual.patch_embed.proj.weight"),
    Recipe::rename(
        "visual.patch_embed.proj.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
];

pub(super) const POSITIONS: &[Recipe] = &[Recipe::with(
    "visual.pos_embed",
    "v.position_embd",
    &[Any, Hidden],
    &[Cast(GgmlType::F32)],
)];

/// Of every block, whatever its queries, keys and values are.
pub(super) const BLOCK: &[Recipe] = &[
    block!(
        "visual.blocks.{}.",
        "attn.proj",
        "attn_out",
        &[Hidden, Hidden]
    ),
    block!("visual.blocks.{}.", "norm1", "ln1", &[Hidden]),
    block!("visual.blocks.{}.", "norm2", "ln2", &[Hidden]),
];

pub(super) const SPLIT_ATTENTION: &[Recipe] = &[Recipe::new(
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

pub(super) const FUSED_ATTENTION: &[Recipe] = &[block!(
    "visual.blocks.{}.",
    "attn.qkv",
    "attn_qkv",
    &[THREE_HIDDEN, Hidden]
)];

/// Queries share keys and values.
pub(super) const GROUPED_ATTENTION: &[Recipe] = &[block!(
    "visual.blocks.{}.",
    "attn.qkv",
    "attn_qkv",
    &[Any, Hidden]
)];

const PLAIN_NETWORK: &[Recipe] = &[
    block!("visual.blocks.{}.", "mlp.fc1", "ffn_up", &[Any, Hidden]),
    block!("visual.blocks.{}.", "mlp.fc2", "ffn_down", &[Hidden, Any]),
];

pub(super) const GATED_NETWORK: &[Recipe] = &[
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

pub(super) const NAMED_NETWORK: &[Recipe] = &[
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

pub(super) const MERGER: &[Recipe] = &[
    Recipe::rename("visual.merger.ln_q", "v.post_ln", &[Hidden]),
    Recipe::rename("visual.merger.mlp.0", "mm.0", &[Any, Any]),
    Recipe::rename("visual.merger.mlp.2", "mm.2", &[Any, Any]),
];

pub(super) const NAMED_MERGER: &[Recipe] = &[
    Recipe::rename("visual.merger.norm", "v.post_ln", &[Hidden]),
    Recipe::rename("visual.merger.linear_fc1", "mm.0", &[Any, Any]),
    Recipe::rename("visual.merger.linear_fc2", "mm.2", &[Any, Any]),
];

const LING_MATRICES: &[Recipe] = &[
    Recipe::rename("visual.merger.norm", "mm.input_norm", &[Hidden]),
    Recipe::rename("linear_proj.0", "mm.0", &[Any, Any]),
    Recipe::rename("linear_proj.2", "mm.2", &[Any, Any]),
];

pub(super) const DEEP: &[Recipe] = &[
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
