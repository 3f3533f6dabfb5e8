//! The projector of LFM2-VL: SigLIP 2, squares of patches joined, and two matrices.

use super::{COMMON, EMPTY, Encoders, Projector, USE_GELU, of, outer_u32, set, unless_text};
use crate::Architecture;
use crate::config::{BLOCKS, wrong_kind};
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::projector::OUTER;
use crate::recipes::Op::{CastPlain, Reshape, Transpose};
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, FeedForward, Hidden, Number};
use quantier_gguf::gguf::Value;

pub(super) static LFM2_VL: Projector = Projector {
    architecture: Architecture {
        classes: &["Lfm2VlForConditionalGeneration"],
        parameters: &[COMMON, KEYS],
        tensors: &[PATCHES, SIGLIP, MATRICES],
        decoder: Decoder {
            needs: Needs {
                optional: &["v.post_ln", "mm.input_norm"],
                biases: &["mm.1", "mm.2"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            // The size of images is not fixed.
            set(&mut parts.vision, "image_size", 256);
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        let name = unless_text(name)?;
        let within = name.strip_prefix("model.").unwrap_or(&name);
        let is_own = ["vision_tower.", "multi_modal_projector."]
            .iter()
            .any(|part| within.starts_with(part));
        is_own.then(|| within.to_owned())
    },
};

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "lfm2"),
    Parameter::F32(super::EPSILON, &["layer_norm_eps"]),
    Parameter::Computed(|config, keys| {
        let side = outer_u32(config, "downsample_factor", Some(2))?;
        keys.set("vision.projector.scale_factor", Value::U32(side));
        Ok(())
    }),
    USE_GELU,
    Parameter::Computed(|config, keys| {
        /// The layer whose outputs are used, counted from the end as in Python: -1 is the last.
        const LAYER: &str = "vision_feature_layer";
        let layer = match of(config, OUTER, LAYER)? {
            Some(layer) => layer
                .as_i64()
                .ok_or_else(|| wrong_kind(LAYER, layer, "a whole number"))?,
            None => -1,
        };
        let layers = i64::from(config.u32(BLOCKS)?).checked_add(layer);
        let layers = layers.and_then(|layers| u32::try_from(layers + 1).ok());
        let layers =
            layers.ok_or_else(|| format!("'{LAYER}' is {layer}: there is no such layer"))?;
        keys.set("vision.block_count", Value::U32(layers));
        Ok(())
    }),
];

const PATCH: &[crate::recipes::Op] = &[
    Reshape(&[Hidden, Any, Number(3)]),
    Transpose,
    Reshape(&[Hidden, Number(3), Number(16), Number(16)]),
    CastPlain,
];

const PATCHES: &[Recipe] = &[
    Recipe::with(
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "v.patch_embd.weight",
        &[Hidden, Number(16 * 16 * 3)],
        PATCH,
    ),
    Recipe::rename(
        "vision_tower.vision_model.embeddings.patch_embedding.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    Recipe::rename(
        "vision_tower.vision_model.embeddings.position_embedding",
        "v.position_embd",
        &[Any, Hidden],
    ),
];

const SIGLIP: &[Recipe] = siglip!("vision_tower.vision_model.");

const MATRICES: &[Recipe] = &[
    Recipe::rename("multi_modal_projector.layer_norm", "mm.input_norm", &[Any]),
    Recipe::rename("multi_modal_projector.linear_1", "mm.1", &[Any, Any]),
    Recipe::rename("multi_modal_projector.linear_2", "mm.2", &[Any, Any]),
];
