//! The projector of Step3-VL and Step 3.7: an encoder with scaled layers, two convolutions and a
//! matrix.

use super::{COMMON, EMPTY, Encoders, Projector, field, outer_u32, set, set_epsilon, unless_text};
use crate::Architecture;
use crate::config::BLOCKS;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::{self, CastPlain};
use crate::recipes::Recipe;
use crate::recipes::Size::Any;
use quantier_gguf::gguf::Value;
use serde_json::{Value as Json, json};

pub(super) static STEP3_VL: Projector = Projector {
    architecture: Architecture {
        classes: &[
            "StepVLForConditionalGeneration",
            "Step3p7ForConditionalGeneration",
        ],
        parameters: &[COMMON, KEYS],
        tensors: &[EMBEDDINGS, LAYERS, MATRICES],
        decoder: Decoder {
            needs: Needs {
                optional: &["v.pre_ln"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            /// The ratio of the real model.
            const RATIO: f64 = 8960.0 / 1536.0;
            if field(&parts.vision, "intermediate_size").is_none() {
                let width = ["hidden_size", "width"]
                    .iter()
                    .find_map(|name| field(&parts.vision, name)?.as_f64());
                let ratio = field(&parts.vision, "mlp_ratio").and_then(Json::as_f64);
                let length = width.map(|width| width * ratio.unwrap_or(RATIO));
                let length = length.map(|length| length.round_ties_even() as u64);
                set(&mut parts.vision, "intermediate_size", length);
            }
            for (name, colors) in [
                ("image_mean", json!([0.48145466, 0.4578275, 0.40821073])),
                ("image_std", json!([0.26862954, 0.26130258, 0.27577711])),
            ] {
                parts.preprocessor.entry(name).or_insert(colors);
            }
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        let is_own = name.starts_with("vision_model.") || name == "vit_large_projector.weight";
        let name = unless_text(name).filter(|_| is_own)?;
        Some(name.replace("attn.in_proj_", "attn.in_proj."))
    },
};

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "step3vl"),
    Parameter::Computed(|config, keys| {
        let stride = outer_u32(config, "understand_projector_stride", None)?;
        let sizes = [
            stride,
            config.u32(&["image_size"])?,
            config.u32(&["hidden_size", "width"])?,
            config.u32(BLOCKS)?,
        ];
        // As in the reference, whose other numbers are those of this model.
        if sizes != [2, 728, 1536, 47] {
            return Err(format!(
                "stride, size of images, width and layers are {sizes:?}; llama.cpp runs [2, 728, 1536, 47] alone"
            ));
        }
        set_epsilon(config, keys, "layer_norm_eps", 1e-5)?;
        keys.set("vision.projector.scale_factor", Value::U32(stride * stride));
        keys.set("vision.preproc_image_size", Value::U32(3024));
        Ok(())
    }),
];

/// A convolution.
const PLAIN: &[Op] = &[CastPlain];

const EMBEDDINGS: &[Recipe] = &[
    Recipe::with(
        "vision_model.conv1.weight",
        "v.patch_embd.weight",
        &[Any, Any, Any, Any],
        PLAIN,
    ),
    Recipe::rename("vision_model.conv1.bias", "v.patch_embd.bias", &[Any]),
    Recipe::rename(
        "vision_model.positional_embedding",
        "v.position_embd.weight",
        &[Any, Any],
    ),
    Recipe::rename("vision_model.ln_pre", "v.pre_ln", &[Any]),
];

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        block!("vision_model.transformer.resblocks.{}.", $from, $to, $dims)
    };
}

const LAYERS: &[Recipe] = &[
    layer!("attn.in_proj", "attn_qkv", &[Any, Any]),
    layer!("attn.out_proj", "attn_out", &[Any, Any]),
    layer!("ln_1", "ln1", &[Any]),
    layer!("ln_2", "ln2", &[Any]),
    layer!("ls_1.gamma", "ls1.weight", &[Any]),
    layer!("ls_2.gamma", "ls2.weight", &[Any]),
    layer!("mlp.c_fc", "ffn_up", &[Any, Any]),
    layer!("mlp.c_proj", "ffn_down", &[Any, Any]),
];

const MATRICES: &[Recipe] = &[
    Recipe::with(
        "vision_model.vit_downsampler1.weight",
        "mm.0.weight",
        &[Any, Any, Any, Any],
        PLAIN,
    ),
    Recipe::rename("vision_model.vit_downsampler1.bias", "mm.0.bias", &[Any]),
    Recipe::with(
        "vision_model.vit_downsampler2.weight",
        "mm.1.weight",
        &[Any, Any, Any, Any],
        PLAIN,
    ),
    Recipe::rename("vision_model.vit_downsampler2.bias", "mm.1.bias", &[Any]),
    Recipe::rename(
        "vit_large_projector.weight",
        "mm.model.fc.weight",
        &[Any, Any],
    ),
];
