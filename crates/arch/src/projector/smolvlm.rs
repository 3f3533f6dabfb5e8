//! The projector of SmolVLM and Idefics 3: SigLIP, squares of patches joined, and a matrix.

use super::{
    COMMON, EMPTY, Encoders, PREPROCESSOR, Projector, USE_GELU, of, outer_u32, set_epsilon,
};
use crate::Architecture;
use crate::parameters::Parameter;
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, FeedForward, Hidden};
use quantier_gguf::gguf::Value;

pub(super) static SMOLVLM: Projector = Projector {
    architecture: Architecture {
        classes: &[
            "Idefics3ForConditionalGeneration",
            "SmolVLMForConditionalGeneration",
        ],
        parameters: &[COMMON, OWN],
        tensors: &[PATCHES, SIGLIP, CONNECTOR],
        ..EMPTY
    },
    encoders: Encoders::VISION,
    name: |_, name| {
        let is_own = ["model.vision_model.", "model.connector."]
            .iter()
            .any(|part| name.starts_with(part));
        is_own.then(|| name.to_owned())
    },
};

const OWN: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "idefics3"),
    Parameter::Computed(|config, keys| {
        set_epsilon(config, keys, "layer_norm_eps", 1e-5)?;
        let side = outer_u32(config, "scale_factor", Some(2))?;
        keys.set("vision.projector.scale_factor", Value::U32(side));
        Ok(())
    }),
    USE_GELU,
    Parameter::Computed(|config, keys| {
        let size = of(config, PREPROCESSOR, "size")?;
        let edge = size.and_then(|size| size.get("longest_edge"));
        let edge = match edge {
            Some(edge) => edge
                .as_u64()
                .and_then(|edge| u32::try_from(edge).ok())
                .ok_or("'longest_edge' of the preprocessor is no whole number")?,
            None => config.u32(&["image_size"])?,
        };
        keys.set("vision.preproc_image_size", Value::U32(edge));
        Ok(())
    }),
];

const PATCHES: &[Recipe] = patches!("model.vision_model.");

const SIGLIP: &[Recipe] = siglip!("model.vision_model.");

const CONNECTOR: &[Recipe] = &[Recipe::rename(
    "model.connector.modality_projection.proj",
    "mm.model.fc",
    &[Any, Any],
)];
