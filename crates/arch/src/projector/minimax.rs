//! The projector of MiniMax M3: CLIP's encoder with rotary positions in three dimensions, two matrices
//! per patch, and two per square of patches.

use super::{COMMON, EMPTY, Encoders, Projector, USE_GELU, set_epsilon, unless_text};
use crate::Architecture;
use crate::config::wrong_kind;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::{self, CastPlain, HeadOrder, Squeeze};
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, FeedForward, Hidden, Number, QueryHeads};
use quantier_gguf::gguf::Value;

pub(super) static MINIMAX_M3: Projector = Projector {
    architecture: Architecture {
        classes: &["MiniMaxM3SparseForConditionalGeneration"],
        parameters: &[COMMON, KEYS],
        tensors: &[EMBEDDINGS, ROTATED, ENCODER, MATRICES],
        decoder: Decoder {
            needs: Needs {
                optional: &["v.pre_ln", "v.post_ln"],
                biases: &["mm.1", "mm.2", "mm.merger.fc1", "mm.merger.fc2"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders::VISION,
    name: |_, name| {
        let is_own = [
            "vision_tower.",
            "multi_modal_projector.",
            "patch_merge_mlp.",
        ]
        .iter()
        .any(|part| name.starts_with(part));
        unless_text(name).filter(|_| is_own)
    },
};

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "minimax_m3"),
    USE_GELU,
    Parameter::Computed(|config, keys| {
        set_epsilon(config, keys, "layer_norm_eps", 1e-5)?;
        const MERGED: &str = "spatial_merge_size";
        let settings = config.optional_object("img_token_compression_config")?;
        let side = match settings.and_then(|settings| settings.get(MERGED)) {
            Some(side) => side
                .as_u64()
                .and_then(|side| u32::try_from(side).ok())
                .ok_or_else(|| wrong_kind(MERGED, side, "a whole number"))?,
            None => 2,
        };
        keys.set("vision.spatial_merge_size", Value::U32(side));
        Ok(())
    }),
];

const EMBEDDINGS: &[Recipe] = &[
    two_patches!("vision_tower.vision_model.embeddings.patch_embedding.weight"),
    Recipe::rename(
        "vision_tower.vision_model.embeddings.patch_embedding.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    Recipe::rename(
        "vision_tower.vision_model.pre_layrnorm",
        "v.pre_ln",
        &[Hidden],
    ),
];

/// Two halves of a head, of time, height and width each, become time, height and width of two halves
/// each. Two of its 80 rows are not rotated.
const AXES: &[Op] = &[HeadOrder {
    heads: QueryHeads,
    lengths: &[13, 13, 13, 13, 13, 13, 2],
    order: &[0, 3, 1, 4, 2, 5, 6],
}];

const ROTATED: &[Recipe] = &[
    Recipe::with(
        "vision_tower.vision_model.encoder.layers.{}.self_attn.q_proj",
        "v.blk.{}.attn_q",
        &[Hidden, Hidden],
        AXES,
    ),
    Recipe::with(
        "vision_tower.vision_model.encoder.layers.{}.self_attn.k_proj",
        "v.blk.{}.attn_k",
        &[Hidden, Hidden],
        AXES,
    ),
];

const ENCODER: &[Recipe] = siglip!("vision_tower.vision_model.");

const MATRICES: &[Recipe] = &[
    Recipe::rename("multi_modal_projector.linear_1", "mm.1", &[Any, Any]),
    Recipe::rename("multi_modal_projector.linear_2", "mm.2", &[Any, Any]),
    Recipe::rename("patch_merge_mlp.linear_1", "mm.merger.fc1", &[Any, Any]),
    Recipe::rename("patch_merge_mlp.linear_2", "mm.merger.fc2", &[Any, Any]),
];
