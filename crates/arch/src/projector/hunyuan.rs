//! The projector of HunyuanVL: an encoder with learned positions, two convolutions and a matrix
//! between norms, and the embeddings of the tokens around an image.

use super::{
    COMMON, EMPTY, Encoders, PIXELS, Projector, USE_GELU, field, set, set_epsilon, unless_text,
};
use crate::Architecture;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::{self, CastPlain};
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, FeedForward, Hidden, Number};
use serde_json::Value as Json;

pub(super) static HUNYUAN_VL: Projector = Projector {
    architecture: Architecture {
        classes: &["HunYuanVLForConditionalGeneration"],
        parameters: &[COMMON, KEYS],
        tensors: &[EMBEDDINGS, ATTENTION, NETWORK, PERCEIVER],
        decoder: Decoder {
            needs: Needs {
                optional: &["v.view_seperator"],
                biases: &["mm.0", "mm.2", "mm.model.fc"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            if field(&parts.vision, "image_size").is_none() {
                let size = field(&parts.vision, "max_image_size").cloned();
                let size = size.unwrap_or_else(|| Json::from(2048));
                set(&mut parts.vision, "image_size", size);
            }
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| unless_text(name).filter(|name| name.starts_with("vit.")),
};

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "hunyuanvl"),
    USE_GELU,
    Parameter::Computed(|config, keys| set_epsilon(config, keys, "rms_norm_eps", 1e-5)),
    Parameter::OrU32("vision.spatial_merge_size", &["spatial_merge_size"], 2),
    PIXELS,
];

const EMBEDDINGS: &[Recipe] = &[
    Recipe::with(
        "vit.embeddings.patch_embedding.weight",
        "v.patch_embd.weight",
        &[Hidden, Any, Any, Any],
        &[CastPlain],
    ),
    Recipe::rename(
        "vit.embeddings.patch_embedding.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    // The first position is that of a class, which the encoder does not have.
    Recipe::with(
        "vit.embeddings.position_embedding.weight",
        "v.position_embd.weight",
        &[Any, Hidden],
        &[Op::part(0, &[Number(1), Any], 1)],
    ),
];

const ATTENTION: &[Recipe] = llama_attention!("vit.layers.{}.");

const NETWORK: &[Recipe] = &[
    block!(
        "vit.layers.{}.",
        "mlp.dense_h_to_4h",
        "ffn_up",
        &[FeedForward, Hidden]
    ),
    block!(
        "vit.layers.{}.",
        "mlp.dense_4h_to_h",
        "ffn_down",
        &[Hidden, FeedForward]
    ),
];

const PERCEIVER: &[Recipe] = &[
    Recipe::with(
        "vit.perceive.proj.0.weight",
        "mm.0.weight",
        &[Any, Any, Any, Any],
        &[CastPlain],
    ),
    Recipe::rename("vit.perceive.proj.0.bias", "mm.0.bias", &[Any]),
    Recipe::with(
        "vit.perceive.proj.2.weight",
        "mm.2.weight",
        &[Any, Any, Any, Any],
        &[CastPlain],
    ),
    Recipe::rename("vit.perceive.proj.2.bias", "mm.2.bias", &[Any]),
    Recipe::rename("vit.perceive.mlp", "mm.model.fc", &[Any, Any]),
    Recipe::rename("vit.perceive.before_rms", "mm.pre_norm", &[Any]),
    Recipe::rename("vit.perceive.after_rms", "mm.post_norm", &[Any]),
    Recipe::rename("vit.perceive.image_newline", "v.image_newline", &[Any]),
    Recipe::rename("vit.perceive.image_sep", "v.view_seperator", &[]),
    Recipe::rename("vit.perceive.image_begin", "mm.image_begin", &[]),
    Recipe::rename("vit.perceive.image_end", "mm.image_end", &[]),
];
