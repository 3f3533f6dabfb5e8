//! The projectors of GLM-4V, GLM-OCR and GLM-5.3: an encoder with the names of Qwen's, a convolution
//! over squares of patches, and a gated network.

use super::qwen::{self, BLOCK, FUSED_ATTENTION, GATED_NETWORK, PATCHES, of_visual};
use super::{COMMON, EMPTY, Projector, of, set_epsilon};
use crate::Architecture;
use crate::Config;
use crate::config::Result;
use crate::decoder::{Decoder, Needs};
use crate::parameters::{Keys, Parameter};
use crate::projector::PREPROCESSOR;
use crate::recipes::Op::CastPlain;
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, Hidden};
use quantier_gguf::gguf::Value;

pub(super) static GLM4V: Projector = Projector {
    architecture: Architecture {
        classes: &[
            "Glm4vForConditionalGeneration",
            "Glm4vMoeForConditionalGeneration",
            "GlmOcrForConditionalGeneration",
        ],
        parameters: &[
            COMMON,
            &[Parameter::ConstantStr("projector_type", "glm4v")],
            KEYS,
        ],
        tensors: TENSORS,
        decoder: Decoder {
            needs: NEEDS,
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: qwen::ENCODERS,
    name: of_visual,
};

pub(super) static GLM5V: Projector = Projector {
    architecture: Architecture {
        classes: &["Glm5NextForConditionalGeneration"],
        parameters: &[
            COMMON,
            &[Parameter::ConstantStr("projector_type", "glm5v")],
            KEYS,
            GLM5_KEYS,
        ],
        tensors: TENSORS,
        decoder: Decoder {
            needs: NEEDS,
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: qwen::ENCODERS,
    name: of_visual,
};

const TENSORS: &[&[Recipe]] = &[
    PATCHES,
    EMBEDDINGS,
    BLOCK,
    HEAD_NORMS,
    FUSED_ATTENTION,
    GATED_NETWORK,
    MERGER,
];

const NEEDS: Needs = Needs {
    optional: &[
        "v.position_embd",
        "v.norm_embd",
        "v.post_ln",
        "v.blk.{}.attn_q_norm",
        "v.blk.{}.attn_k_norm",
    ],
    biases: &["mm.patch_merger"],
    ..Needs::WEIGHTS
};

const KEYS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let activation = config.get("hidden_act").and_then(|act| act.as_str());
    match activation.map(str::to_lowercase).as_deref() {
        Some("gelu") => keys.set("use_gelu", Value::Bool(true)),
        Some("silu") => keys.set("use_silu", Value::Bool(true)),
        _ => {}
    }
    set_epsilon(config, keys, "rms_norm_eps", 1e-5)
})];

const GLM5_KEYS: &[Parameter] = &[
    Parameter::OrU32("vision.spatial_merge_size", &["spatial_merge_size"], 2),
    Parameter::F32("vision.swiglu_clamp", &["swiglu_limit"]),
    Parameter::Computed(|config, keys| {
        pixels(config, keys, "vision.image_min_pixels", "min_image_tokens")?;
        pixels(config, keys, "vision.image_max_pixels", "max_image_tokens")
    }),
];

/// Sets a number of pixels, given by the preprocessor as a number of tokens.
fn pixels(config: &Config, keys: &mut Keys, key: &str, name: &str) -> Result<()> {
    let number = |name, by_default| {
        let number = config.number_of(PREPROCESSOR, name)?;
        Ok::<_, String>(number.unwrap_or(by_default))
    };
    if of(config, PREPROCESSOR, name)?.is_none() {
        return Err(format!(
            "'{name}' is missing in the preprocessor's settings, and llama.cpp loads no file without"
        ));
    }
    let side = number("patch_size", 14)?.checked_mul(number("merge_size", 2)?);
    let pixels = side.and_then(|side| side.checked_mul(side)?.checked_mul(number(name, 0).ok()?));
    let pixels = pixels.ok_or_else(|| format!("'{name}' of the preprocessor is too large"))?;
    keys.set(key, Value::U32(pixels));
    Ok(())
}

const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename(
        "visual.embeddings.position_embedding",
        "v.position_embd",
        &[Any, Hidden],
    ),
    Recipe::rename("visual.post_conv_layernorm", "v.norm_embd", &[Hidden]),
    Recipe::rename("visual.post_layernorm", "v.post_ln", &[Hidden]),
];

const HEAD_NORMS: &[Recipe] = &[
    block!("visual.blocks.{}.", "attn.q_norm", "attn_q_norm", &[Any]),
    block!("visual.blocks.{}.", "attn.k_norm", "attn_k_norm", &[Any]),
];

const MERGER: &[Recipe] = &[
    Recipe::with(
        "visual.downsample.weight",
        "mm.patch_merger.weight",
        &[Any, Hidden, Any, Any],
        &[CastPlain],
    ),
    Recipe::rename("visual.downsample.bias", "mm.patch_merger.bias", &[Any]),
    Recipe::rename("visual.merger.proj", "mm.model.fc", &[Any, Any]),
    Recipe::rename("visual.merger.post_projection_norm", "mm.post_norm", &[Any]),
    Recipe::rename("visual.merger.gate_proj", "mm.gate", &[Any, Any]),
    Recipe::rename("visual.merger.up_proj", "mm.up", &[Any, Any]),
    Recipe::rename("visual.merger.down_proj", "mm.down", &[Any, Any]),
];
