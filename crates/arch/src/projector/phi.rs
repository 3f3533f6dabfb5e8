//! The projector of Phi-4: SigLIP 2 up to its last layer but one, and two matrices.

use super::{
    COMMON, EMPTY, Encoders, OUTER, PREPROCESSOR, Projector, USE_GELU, set, set_epsilon,
    unless_text, whole,
};
use crate::config::{BLOCKS, Result};
use crate::decoder::{Decoder, Needs};
use crate::parameters::{Keys, Parameter};
use crate::recipes::Op::{CastPlain, Reshape, Transpose};
use crate::recipes::Recipe;
use crate::recipes::Size::{self, Any, FeedForward, Field, Hidden, Number};
use crate::{Architecture, Config};
use quantier_gguf::gguf::Value;

pub(super) static PHI4: Projector = Projector {
    architecture: Architecture {
        classes: &["Phi4ForCausalLMV"],
        parameters: &[COMMON, KEYS],
        tensors: &[PATCHES, SIGLIP, MATRICES],
        decoder: Decoder {
            needs: Needs {
                optional: &["v.post_ln"],
                biases: &["mm.0", "mm.2"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            for name in BLOCKS {
                let Some(layers) = whole(&parts.vision, name)? else {
                    continue;
                };
                if layers < 2 {
                    return Err(format!(
                        "'{name}' is {layers}: there is no last layer but one"
                    ));
                }
                set(&mut parts.vision, name, layers - 1);
                break;
            }
            let patch = parts.preprocessor.get("patch_size").cloned();
            set(&mut parts.vision, "patch_size", patch);
            // Given by the learned positions.
            set(&mut parts.vision, "image_size", 0);
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |config, name| {
        let name = unless_text(name)?;
        let name = name.replace("model.vision_tower.vision_tower.", "vision_tower.");
        let name = name.replace("model.mm_projector.", "mm_projector.");
        if name.starts_with("mm_projector.") {
            let is_own = ["mm_projector.0.", "mm_projector.2."]
                .iter()
                .any(|part| name.starts_with(part));
            return is_own.then_some(name);
        }
        let within = name.strip_prefix("vision_tower.vision_model.")?;
        let layer = within.strip_prefix("encoder.layers.");
        let layer = layer.and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        let is_last = layer.is_some_and(|layer| config.layers().is_ok_and(|all| layer == all));
        let is_left_out = within.starts_with("head.") || within.starts_with("post_layernorm.");
        (!is_last && !is_left_out).then_some(name)
    },
};

/// The field of the number of learned positions.
const POSITIONS: &str = "number of positions";

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "phi4"),
    Parameter::Computed(|config, keys| {
        let positions = config.u32(&[POSITIONS])?;
        let side = positions.isqrt();
        if side * side != positions {
            return Err(format!(
                "there are {positions} positions, which is no square"
            ));
        }
        let size = side.checked_mul(config.u32(&["patch_size"])?);
        let size = size.ok_or("'patch_size' is too large")?;
        keys.set("vision.image_size", Value::U32(size));
        pixels(config, keys, "vision.image_min_pixels", "min_num_patches")?;
        pixels(config, keys, "vision.image_max_pixels", "max_num_patches")
    }),
    USE_GELU,
    Parameter::Computed(|config, keys| set_epsilon(config, keys, "layer_norm_eps", 1e-6)),
];

/// Sets a number of pixels, given by the preprocessor or the whole config as a number of patches.
fn pixels(config: &Config, keys: &mut Keys, key: &str, name: &str) -> Result<()> {
    let patches = match config.number_of(PREPROCESSOR, name)? {
        Some(patches) => Some(patches),
        None => config.number_of(OUTER, name)?,
    };
    let patches = patches.ok_or_else(|| format!("'{name}' is missing"))?;
    let patch = config.u32(&["patch_size"])?;
    let pixels = patch.checked_mul(patch);
    let pixels = pixels.and_then(|pixels| pixels.checked_mul(patches));
    let pixels = pixels.ok_or_else(|| format!("'{name}' is too large"))?;
    keys.set(key, Value::U32(pixels));
    Ok(())
}

const PATCH: Size = Field(&["patch_size"]);

const PATCHES: &[Recipe] = &[
    Recipe::with(
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "v.patch_embd.weight",
        &[Hidden, Any],
        &[
            Reshape(&[Hidden, Any, Number(3)]),
            Transpose,
            Reshape(&[Hidden, Number(3), PATCH, PATCH]),
            CastPlain,
        ],
    ),
    Recipe::rename(
        "vision_tower.vision_model.embeddings.patch_embedding.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    Recipe::rename(
        "vision_tower.vision_model.embeddings.position_embedding.weight",
        "v.position_embd.weight",
        &[Any, Hidden],
    )
    .rows_to(POSITIONS),
];

const SIGLIP: &[Recipe] = siglip!("vision_tower.vision_model.");

const MATRICES: &[Recipe] = &[
    Recipe::rename("mm_projector.0", "mm.0", &[Any, Any]),
    Recipe::rename("mm_projector.2", "mm.2", &[Any, Any]),
];
