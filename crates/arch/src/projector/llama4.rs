//! The projector of Llama 4: an encoder with rotary and learned positions, squares of patches joined,
//! and three matrices.

use super::{COMMON, EMPTY, Encoders, Projector, USE_GELU, unless_text};
use crate::Architecture;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::CastPlain;
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, FeedForward, Hidden};
use quantier_gguf::gguf::Value;

pub(super) static LLAMA4: Projector = Projector {
    architecture: Architecture {
        classes: &["Llama4ForConditionalGeneration"],
        parameters: &[COMMON, KEYS],
        tensors: &[EMBEDDINGS, ATTENTION, NETWORK, MATRICES],
        decoder: Decoder {
            needs: Needs::WEIGHTS,
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders::VISION,
    name: |_, name| {
        let is_own = name.contains("multi_modal_projector") || name.contains("vision_model");
        unless_text(name).filter(|_| is_own)
    },
};

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "llama4"),
    Parameter::F32(super::EPSILON, &["norm_eps"]),
    Parameter::Computed(|config, keys| {
        const RATIO: &str = "pixel_shuffle_ratio";
        let ratio = config.f64(&[RATIO])?;
        if ratio <= 0.0 {
            return Err(format!("'{RATIO}' is {ratio}, which is not above 0"));
        }
        keys.set(
            "vision.projector.scale_factor",
            Value::U32((1.0 / ratio) as u32),
        );
        match config.get("hidden_act") {
            Some(act) if act == "gelu" => USE_GELU.apply(config, keys),
            _ => Err("'hidden_act' is not gelu, and llama.cpp runs no other".into()),
        }
    }),
];

const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename("vision_model.class_embedding", "v.class_embd", &[Hidden]),
    Recipe::with(
        "vision_model.patch_embedding.linear.weight",
        "v.patch_embd.weight",
        &[Hidden, Any],
        &[CastPlain],
    ),
    Recipe::rename(
        "vision_model.positional_embedding_vlm",
        "v.position_embd.weight",
        &[Any, Hidden],
    ),
    Recipe::rename("vision_model.layernorm_pre", "v.pre_ln", &[Hidden]),
    Recipe::rename("vision_model.layernorm_post", "v.post_ln", &[Hidden]),
];

/// The reference takes the norm in front of the network for one of Gemma 4, behind the attention, and llama.cpp
/// then runs the encoder without it.
const ATTENTION: &[Recipe] = llama_attention!("vision_model.model.layers.{}.");

const NETWORK: &[Recipe] = &[
    block!(
        "vision_model.model.layers.{}.",
        "mlp.fc1",
        "ffn_up",
        &[FeedForward, Hidden]
    ),
    block!(
        "vision_model.model.layers.{}.",
        "mlp.fc2",
        "ffn_down",
        &[Hidden, FeedForward]
    ),
];

const MATRICES: &[Recipe] = &[
    Recipe::rename(
        "vision_model.vision_adapter.mlp.fc1",
        "mm.model.mlp.1",
        &[Any, Any],
    ),
    Recipe::rename(
        "vision_model.vision_adapter.mlp.fc2",
        "mm.model.mlp.2",
        &[Any, Any],
    ),
    Recipe::rename("multi_modal_projector.linear_1", "mm.model.fc", &[Any, Any]),
];
