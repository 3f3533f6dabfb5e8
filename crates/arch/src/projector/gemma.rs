//! The projector of Gemma 3: SigLIP, an average over squares of patches, a norm and a matrix.

use super::{COMMON, EMPTY, PREPROCESSOR, Projector, USE_GELU, of};
use crate::Architecture;
use crate::config::wrong_kind;
use crate::parameters::Parameter;
use crate::recipes::Op::{AddOne, Cast};
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, FeedForward, Hidden};
use quantier_gguf::gguf::Value;
use quantier_gguf::types::GgmlType;

pub(super) static GEMMA3: Projector = Projector {
    architecture: Architecture {
        classes: &["Gemma3ForConditionalGeneration"],
        parameters: &[COMMON, OWN],
        tensors: &[SIGLIP, PROJECTION],
        ..EMPTY
    },
    name: |_, name| {
        const PARTS: [&str; 4] = [
            "multi_modal_projector.",
            "vision_tower.",
            "multimodal_projector.",
            "vision_model.",
        ];
        // SigLIP's head, which nothing reads.
        let is_own =
            PARTS.iter().any(|part| name.starts_with(part)) && !name.contains("vision_model.head.");
        is_own.then(|| name.replace("_weight", ".weight"))
    },
};

const OWN: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "gemma3"),
    Parameter::Computed(|config, keys| {
        let epsilon = config.optional_f64(&["layer_norm_eps"])?.unwrap_or(1e-6);
        keys.set(
            "vision.attention.layer_norm_epsilon",
            Value::F32(epsilon as f32),
        );
        Ok(())
    }),
    USE_GELU,
    Parameter::Computed(|config, keys| {
        /// Side of the squares of patches that llama.cpp averages without the key.
        const USUAL: u64 = 4;
        const LENGTH: &str = "image_seq_length";
        let length = match of(config, PREPROCESSOR, LENGTH)? {
            Some(value) => value
                .as_u64()
                .ok_or_else(|| wrong_kind(LENGTH, value, "a whole number"))?,
            None => 256,
        };
        let patches = u64::from(config.u32(&["image_size"])?)
            .checked_div(config.u32(&["patch_size"])?.into());
        let side = patches.and_then(|patches| patches.checked_div(length.isqrt()));
        let side = side.ok_or_else(|| format!("'patch_size' or '{LENGTH}' is 0"))?;
        if side > 0 && side != USUAL {
            let side = u32::try_from(side).map_err(|_| "'image_size' is too large")?;
            keys.set("vision.projector.scale_factor", Value::U32(side));
        }
        Ok(())
    }),
];

const SIGLIP: &[Recipe] = siglip!("vision_tower.vision_model.");

const PROJECTION: &[Recipe] = &[
    Recipe::with(
        "multi_modal_projector.mm_input_projection.weight",
        "mm.input_projection.weight",
        &[Hidden, Any],
        &[Cast(GgmlType::F16)],
    ),
    Recipe::with(
        "multi_modal_projector.mm_soft_emb_norm",
        "mm.soft_emb_norm",
        &[Hidden],
        &[AddOne],
    ),
];
