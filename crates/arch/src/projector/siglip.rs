//! Projectors with SigLIP's encoder under names of their own: Janus Pro, Youtu-VL, PaddleOCR-VL
//! and MiniCPM-V 4.6.

use super::{
    COMMON, EMPTY, Encoders, OUTER, Projector, USE_GELU, USE_SILU, field, preprocessor_u32, set,
    set_epsilon, unless_text, whole,
};
use crate::decoder::{Decoder, Needs};
use crate::parameters::{Parameter, set_numbers};
use crate::recipes::Op::CastPlain;
use crate::recipes::Size::{Any, FeedForward, Hidden};
use crate::recipes::{Recipe, When};
use crate::{Architecture, Config};
use quantier_gguf::gguf::Value;
use serde_json::Value as Json;

pub(super) static JANUS_PRO: Projector = Projector {
    architecture: Architecture {
        classes: &["JanusForConditionalGeneration"],
        parameters: &[COMMON, JANUS_KEYS],
        tensors: &[JANUS_PATCHES, JANUS_SIGLIP, JANUS_MATRICES],
        decoder: Decoder {
            needs: Needs {
                biases: &["mm.0", "mm.1"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            if field(&parts.vision, "intermediate_size").is_none() {
                let ratio = field(&parts.vision, "mlp_ratio").and_then(Json::as_f64);
                let hidden = whole(&parts.vision, "hidden_size")?;
                if let Some((ratio, hidden)) = ratio.zip(hidden) {
                    let length = (hidden as f64 * ratio).round_ties_even() as u64;
                    set(&mut parts.vision, "intermediate_size", length);
                }
            }
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        let name = unless_text(name)?;
        let within = name.strip_prefix("model.").unwrap_or(&name);
        let is_own = within.starts_with("aligner.") || within.starts_with("vision_model.");
        is_own.then(|| within.replace("self_attn.projection_layer", "self_attn.out_proj"))
    },
};

const JANUS_KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "janus_pro"),
    Parameter::Computed(|config, keys| {
        set_epsilon(config, keys, "layer_norm_eps", 1e-6)?;
        let activation = config.get("hidden_act").and_then(Json::as_str);
        match activation.map(str::to_lowercase).as_deref() {
            Some("gelu") => keys.set("use_gelu", Value::Bool(true)),
            Some("silu") => keys.set("use_silu", Value::Bool(true)),
            _ => {}
        }
        Ok(())
    }),
];

macro_rules! plain_patches {
    ($prefix:literal) => {
        &[
            Recipe::with(
                concat!($prefix, "embeddings.patch_embedding.weight"),
                "v.patch_embd.weight",
                &[Hidden, Any, Any, Any],
                &[CastPlain],
            ),
            Recipe::rename(
                concat!($prefix, "embeddings.patch_embedding.bias"),
                "v.patch_embd.bias",
                &[Hidden],
            ),
            Recipe::rename(
                concat!($prefix, "embeddings.position_embedding"),
                "v.position_embd",
                &[Any, Hidden],
            ),
        ]
    };
}

const JANUS_PATCHES: &[Recipe] = plain_patches!("vision_model.");
const JANUS_SIGLIP: &[Recipe] = siglip!("vision_model.");
const JANUS_MATRICES: &[Recipe] = &[
    Recipe::rename("aligner.fc1", "mm.0", &[Any, Any]),
    Recipe::rename("aligner.hidden_layers.0", "mm.1", &[Any, Any]),
];

pub(super) static YOUTU_VL: Projector = Projector {
    architecture: Architecture {
        classes: &["YoutuVLForConditionalGeneration"],
        parameters: &[COMMON, YOUTU_KEYS],
        tensors: &[YOUTU_PATCHES, YOUTU_SIGLIP, YOUTU_MERGER],
        decoder: Decoder {
            needs: Needs {
                biases: &["mm.0", "mm.2"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            if field(&parts.vision, "image_size").is_none() {
                set(&mut parts.vision, "image_size", 560);
            }
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        /// The reference leaves out what else there is.
        const PARTS: [&str; 4] = [
            "siglip2.vision_model.embeddings.patch_embedding.",
            "siglip2.vision_model.encoder.layers.",
            "siglip2.vision_model.post_layernorm.",
            "merger.",
        ];
        let is_own = PARTS.iter().any(|part| name.starts_with(part));
        is_own.then(|| name.to_owned())
    },
};

const YOUTU_KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "youtuvl"),
    Parameter::Computed(|config, keys| {
        /// All are the approximation by a hyperbolic tangent.
        const GELUS: [&str; 5] = [
            "gelu",
            "gelu_pytorch_tanh",
            "gelu_fast",
            "gelu_new",
            "gelu_accurate",
        ];
        set_epsilon(config, keys, "layer_norm_eps", 1e-6)?;
        let activation = config.get("hidden_act").and_then(Json::as_str);
        let activation = activation.unwrap_or(GELUS[1]).to_lowercase();
        match &*activation {
            "silu" => USE_SILU.apply(config, keys),
            gelu if GELUS.contains(&gelu) => USE_GELU.apply(config, keys),
            other => Err(format!(
                "'hidden_act' is {other}; llama.cpp runs silu and gelu"
            )),
        }
    }),
    Parameter::OrU32("vision.spatial_merge_size", &["spatial_merge_size"], 2),
    // llama.cpp loads no file without.
    Parameter::U32("vision.window_size", &["window_size"]),
    Parameter::Computed(|config, keys| {
        const LAYERS: &str = "fullatt_block_indexes";
        let layers = super::indices(config, LAYERS)?;
        if layers.is_empty() {
            return Err(format!("field '{LAYERS}' is missing or empty"));
        }
        set_numbers(keys, "vision.wa_layer_indexes", layers);
        Ok(())
    }),
];

const YOUTU_PATCHES: &[Recipe] = &[
    Recipe::with(
        "siglip2.vision_model.embeddings.patch_embedding.weight",
        "v.patch_embd.weight",
        &[Hidden, Any],
        &[CastPlain],
    ),
    Recipe::rename(
        "siglip2.vision_model.embeddings.patch_embedding.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
];
const YOUTU_SIGLIP: &[Recipe] = siglip!("siglip2.vision_model.");
const YOUTU_MERGER: &[Recipe] = &[
    Recipe::rename("merger.ln_q", "mm.input_norm", &[Any]),
    Recipe::rename("merger.mlp.0", "mm.0", &[Any, Any]),
    Recipe::rename("merger.mlp.2", "mm.2", &[Any, Any]),
];

pub(super) static PADDLEOCR_VL: Projector = Projector {
    architecture: Architecture {
        classes: &["PaddleOCRVisionModel"],
        parameters: &[COMMON, PADDLE_KEYS],
        tensors: &[PADDLE_PATCHES, PADDLE_SIGLIP, PADDLE_MATRICES],
        decoder: Decoder {
            needs: Needs {
                biases: &["mm.input_norm", "mm.1", "mm.2"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            let pixels = parts.preprocessor.get("max_pixels").and_then(Json::as_f64);
            let side = pixels.map(|pixels| pixels.sqrt() as u64);
            set(&mut parts.vision, "image_size", side);
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        let is_own = name.contains("vision_model") || name.contains("mlp_AR");
        let is_other = ["packing_position_embedding", "vision_model.head"]
            .iter()
            .any(|part| name.contains(part));
        let name = unless_text(name).filter(|_| is_own && !is_other)?;
        Some(name.replace("visual.", "model."))
    },
};

const PADDLE_KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "paddleocr"),
    Parameter::Computed(|config, keys| {
        preprocessor_u32(config, keys, "vision.image_max_pixels", "max_pixels")?;
        preprocessor_u32(config, keys, "vision.image_min_pixels", "min_pixels")
    }),
    USE_GELU,
    Parameter::Computed(|config, keys| set_epsilon(config, keys, "rms_norm_eps", 1e-6)),
];

const PADDLE_PATCHES: &[Recipe] = plain_patches!("model.vision_model.");
const PADDLE_SIGLIP: &[Recipe] = siglip!("model.vision_model.");
const PADDLE_MATRICES: &[Recipe] = &[
    Recipe::rename("mlp_AR.pre_norm", "mm.input_norm", &[Any]),
    Recipe::rename("mlp_AR.linear_1", "mm.1", &[Any, Any]),
    Recipe::rename("mlp_AR.linear_2", "mm.2", &[Any, Any]),
];

pub(super) static MINICPM_V: Projector = Projector {
    architecture: Architecture {
        classes: &["MiniCPMV4_6ForConditionalGeneration"],
        parameters: &[COMMON, MINICPM_KEYS],
        tensors: &[
            MINICPM_PATCHES,
            MINICPM_SIGLIP,
            WINDOW_MERGER,
            MINICPM_MERGER,
        ],
        decoder: Decoder {
            needs: Needs {
                biases: &["v.vit_merger.ln1", "v.vit_merger.ds_ln"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            let get = |name: &str| {
                parts
                    .preprocessor
                    .get(name)
                    .filter(|value| !value.is_null())
            };
            let merges = match get(MODE).map(Json::as_str) {
                None | Some(Some("16x")) => true,
                Some(Some("4x")) => false,
                _ => {
                    return Err(format!(
                        "'{MODE}' of the preprocessor is neither 4x nor 16x"
                    ));
                }
            };
            // The side of slices; the encoder's own is that of the learned positions.
            if let Some(side) = get("scale_resolution").cloned() {
                set(&mut parts.vision, "image_size", side);
            }
            set(&mut parts.vision, MERGES, merges);
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |config, name| {
        let is_text = name.starts_with("lm_head.") || name.starts_with("mtp");
        let is_left_out = name.contains(".vit_merger.") && !merges(config);
        unless_text(name).filter(|_| !is_text && !is_left_out)
    },
};

/// How many patches become one token.
const MODE: &str = "downsample_mode";
/// The field of an encoder that joins squares of patches between two layers.
const MERGES: &str = "merges windows";

fn merges(config: &Config) -> bool {
    config.get(MERGES).is_some_and(|merges| *merges == true)
}

const MINICPM_KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "minicpmv4_6"),
    Parameter::Computed(|config, keys| {
        let side = if merges(config) { 4 } else { 2 };
        keys.set("vision.projector.scale_factor", Value::U32(side));
        const LAYER: &str = "insert_layer_id";
        let layer = match config.number_of(OUTER, LAYER)? {
            Some(layer) => Some(layer),
            None => config.optional_u32(&[LAYER])?,
        };
        set_numbers(keys, "vision.wa_layer_indexes", [layer.unwrap_or(6)]);
        Ok(())
    }),
    USE_GELU,
    Parameter::Computed(|config, keys| set_epsilon(config, keys, "layer_norm_eps", 1e-6)),
];

const MINICPM_PATCHES: &[Recipe] = plain_patches!("model.vision_tower.");
const MINICPM_SIGLIP: &[Recipe] = siglip!("model.vision_tower.");

macro_rules! window_merger {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(
            concat!("model.vision_tower.vit_merger.", $from),
            concat!("v.vit_merger.", $to),
            $dims,
        )
        .when(When::Set(MERGES))
    };
}

const WINDOW_MERGER: &[Recipe] = &[
    window_merger!("layer_norm1", "ln1", &[Any]),
    window_merger!("self_attn.q_proj", "attn_q", &[Any, Any]),
    window_merger!("self_attn.k_proj", "attn_k", &[Any, Any]),
    window_merger!("self_attn.v_proj", "attn_v", &[Any, Any]),
    window_merger!("self_attn.out_proj", "attn_out", &[Any, Any]),
    window_merger!("pre_norm", "ds_ln", &[Any]),
    window_merger!("linear_1", "ds_ffn_up", &[Any, Any]),
    window_merger!("linear_2", "ds_ffn_down", &[Any, Any]),
];

const MINICPM_MERGER: &[Recipe] = &[
    Recipe::rename("model.merger.mlp.0.pre_norm", "mm.input_norm", &[Any]),
    Recipe::rename("model.merger.mlp.0.linear_1", "mm.up", &[Any, Any]),
    Recipe::rename("model.merger.mlp.0.linear_2", "mm.down", &[Any, Any]),
];
