//! The projector of dots.ocr: an encoder with a gated network, squares of patches joined, a norm and
//! two matrices.

use super::{COMMON, EMPTY, Encoders, PIXELS, Projector, USE_SILU, set, unless_text};
use crate::Architecture;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::CastPlain;
use crate::recipes::Recipe;
use crate::recipes::Size::{self, Any, Field, Number, Product};

pub(super) static DOTS_OCR: Projector = Projector {
    architecture: Architecture {
        classes: &["DotsOCRForCausalLM"],
        parameters: &[COMMON, KEYS],
        tensors: &[EMBEDDINGS, LAYERS, MERGER],
        decoder: Decoder {
            needs: Needs {
                biases: &["mm.0", "mm.2", "mm.input_norm"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            // The size of images is not fixed.
            set(&mut parts.vision, "image_size", 0);
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| unless_text(name).filter(|name| name.starts_with("vision_tower.")),
};

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "dots_ocr"),
    PIXELS,
    Parameter::F32(super::EPSILON, &["rms_norm_eps"]),
    Parameter::U32("vision.projector.scale_factor", &["spatial_merge_size"]),
    USE_SILU,
];

/// The first of these fields is the length of the outputs in other models.
const WIDTH: Size = Field(&["hidden_size", "embed_dim"]);
const NETWORK: Size = Field(&["intermediate_size"]);

const EMBEDDINGS: &[Recipe] = &[
    Recipe::with(
        "vision_tower.patch_embed.patchifier.proj.weight",
        "v.patch_embd.weight",
        &[Any, Any, Any, Any],
        &[CastPlain],
    ),
    Recipe::rename(
        "vision_tower.patch_embed.patchifier.proj.bias",
        "v.patch_embd.bias",
        &[Any],
    ),
    Recipe::rename(
        "vision_tower.patch_embed.patchifier.norm",
        "v.pre_ln",
        &[Any],
    ),
];

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        block!("vision_tower.blocks.{}.", $from, $to, $dims)
    };
}

const LAYERS: &[Recipe] = &[
    layer!(
        "attn.qkv",
        "attn_qkv",
        &[Product(&[Number(3), WIDTH]), WIDTH]
    ),
    layer!("attn.proj", "attn_out", &[WIDTH, WIDTH]),
    layer!("norm1", "ln1", &[WIDTH]),
    layer!("norm2", "ln2", &[WIDTH]),
    layer!("mlp.fc1", "ffn_gate", &[NETWORK, WIDTH]),
    layer!("mlp.fc2", "ffn_down", &[WIDTH, NETWORK]),
    layer!("mlp.fc3", "ffn_up", &[NETWORK, WIDTH]),
];

const MERGER: &[Recipe] = &[
    Recipe::rename("vision_tower.merger.ln_q", "mm.input_norm", &[Any]),
    Recipe::rename("vision_tower.merger.mlp.0", "mm.0", &[Any, Any]),
    Recipe::rename("vision_tower.merger.mlp.2", "mm.2", &[Any, Any]),
    Recipe::rename("vision_tower.post_trunk_norm", "mm.post_norm", &[Any]),
];
