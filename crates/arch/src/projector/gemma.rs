//! The projector of Gemma 3: SigLIP, an average over squares of patches, a norm and a matrix.

use super::{COMMON, EMPTY, Encoders, Projector, USE_GELU, set_epsilon, set_side};
use crate::Architecture;
use crate::parameters::Parameter;
use crate::recipes::Op::{AddOne, Cast};
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, FeedForward, Hidden};
use quantier_gguf::types::GgmlType;

pub(super) static GEMMA3: Projector = Projector {
    architecture: Architecture {
        classes: &["Gemma3ForConditionalGeneration"],
        parameters: &[COMMON, OWN],
        tensors: &[PATCHES, SIGLIP, PROJECTION],
        ..EMPTY
    },
    encoders: Encoders::VISION,
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
    Parameter::Computed(|config, keys| set_epsilon(config, keys, "layer_norm_eps", 1e-6)),
    USE_GELU,
    Parameter::Computed(set_side),
];

const PATCHES: &[Recipe] = patches!("vision_tower.vision_model.");

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
