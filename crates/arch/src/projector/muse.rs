//! The projector of Muse Glimmer: an encoder with rotary positions over patches of two frames, and
//! three matrices.

use super::{COMMON, EMPTY, Encoders, Projector, set, unless_text, whole};
use crate::Architecture;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::{AddHalves, CastPlain, Interleave, Reshape};
use crate::recipes::Recipe;
use crate::recipes::Size::{self, Any, FeedForward, Field, Hidden, Number, QueryHeads};

/// Frames of a patch. An image is two equal ones, so that their weights add up.
const FRAMES: &str = "patch_temporal";

pub(super) static MUSE_GLIMMER: Projector = Projector {
    architecture: Architecture {
        classes: &["MuseGlimmerForConditionalGeneration"],
        parameters: &[COMMON, KEYS],
        tensors: &[PATCHES, LAYERS, MATRICES],
        decoder: Decoder {
            needs: Needs {
                optional: &["v.pre_ln", "v.post_ln"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            let mut size = 1u64;
            for name in ["pos_emb_height", "patch_size", "merge_size"] {
                let factor = whole(&parts.vision, name)?;
                let factor = factor.ok_or_else(|| format!("field '{name}' is missing"))?;
                size = size.saturating_mul(factor);
            }
            if whole(&parts.vision, FRAMES)? != Some(2) {
                return Err(format!("'{FRAMES}' is not 2, and llama.cpp runs no other"));
            }
            set(&mut parts.vision, "image_size", size);
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        const PARTS: [&str; 3] = [
            "model.vision_tower.",
            "model.vision_adapter.",
            "model.vision_projection.",
        ];
        let is_own = PARTS.iter().any(|part| name.starts_with(part));
        unless_text(name).filter(|_| is_own)
    },
};

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "muse-glimmer"),
    Parameter::F32(super::EPSILON, &["layer_norm_eps"]),
    Parameter::U32("vision.spatial_merge_size", &["merge_size"]),
];

const PATCH: Size = Field(&["patch_size"]);

const PATCHES: &[Recipe] = &[
    Recipe::with(
        "model.vision_tower.patch_embedder.patch_embedding.weight",
        "v.patch_embd.weight",
        &[Hidden, Any],
        &[
            AddHalves,
            Reshape(&[Hidden, Number(3), PATCH, PATCH]),
            CastPlain,
        ],
    ),
    Recipe::rename(
        "model.vision_tower.patch_embedder.patch_embedding.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    Recipe::rename("model.vision_tower.ln_pre", "v.pre_ln", &[Hidden]),
    Recipe::rename("model.vision_tower.ln_post", "v.post_ln", &[Hidden]),
];

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        block!("model.vision_tower.layers.{}.", $from, $to, $dims)
    };
    ($from:literal, $to:literal) => {
        Recipe::with(
            concat!("model.vision_tower.layers.{}.", $from),
            concat!("v.blk.{}.", $to),
            &[Any, Hidden],
            &[Interleave(QueryHeads)],
        )
    };
}

const LAYERS: &[Recipe] = &[
    layer!("attn.q_proj", "attn_q"),
    layer!("attn.k_proj", "attn_k"),
    layer!("attn.v_proj", "attn_v", &[Any, Hidden]),
    layer!("attn.proj", "attn_out", &[Hidden, Any]),
    layer!("norm1", "ln1", &[Hidden]),
    layer!("norm2", "ln2", &[Hidden]),
    layer!("mlp.fc1", "ffn_up", &[FeedForward, Hidden]),
    layer!("mlp.fc2", "ffn_down", &[Hidden, FeedForward]),
];

const MATRICES: &[Recipe] = &[
    Recipe::rename("model.vision_adapter.fc1", "mm.0", &[Any, Any]),
    Recipe::rename("model.vision_adapter.fc2", "mm.1", &[Any, Any]),
    Recipe::rename("model.vision_projection", "mm.2", &[Any, Any]),
];
