//! The projector of SmolVLM and Idefics 3: SigLIP, squares of patches joined, and a matrix.

use super::{COMMON, EMPTY, OUTER, PREPROCESSOR, Projector, USE_GELU, of};
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
        tensors: &[SIGLIP, CONNECTOR],
        ..EMPTY
    },
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
        let epsilon = config.optional_f64(&["layer_norm_eps"])?.unwrap_or(1e-5);
        keys.set(
            "vision.attention.layer_norm_epsilon",
            Value::F32(epsilon as f32),
        );
        const SIDE: &str = "scale_factor";
        let side = match of(config, OUTER, SIDE)? {
            Some(side) => side.as_u64().and_then(|side| u32::try_from(side).ok()),
            None => Some(2),
        };
        let side = side.ok_or_else(|| format!("'{SIDE}' is no whole number"))?;
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

const SIGLIP: &[Recipe] = siglip!("model.vision_model.");

const CONNECTOR: &[Recipe] = &[Recipe::rename(
    "model.connector.modality_projection.proj",
    "mm.model.fc",
    &[Any, Any],
)];
