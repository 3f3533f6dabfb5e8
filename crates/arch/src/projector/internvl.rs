//! The projector of InternVL and Intern-S1: InternViT, squares of patches joined, a norm and two
//! matrices.

use super::{
    COMMON, EMPTY, Encoders, Projector, field, set, set_activation, set_downsampling, unless_text,
};
use crate::Architecture;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::projector::OUTER;
use crate::recipes::Size::{Any, FeedForward, Hidden, Number, Product};
use crate::recipes::{Input, Op, Output, Recipe};
use quantier_gguf::gguf::Value;

pub(super) static INTERNVL: Projector = Projector {
    architecture: Architecture {
        classes: &["InternVisionModel"],
        parameters: &[COMMON, KEYS],
        tensors: &[EMBEDDINGS, LAYERS, SPLIT_LAYERS, MATRICES],
        decoder: Decoder {
            needs: Needs {
                optional: &[
                    "v.blk.{}.attn_q_norm",
                    "v.blk.{}.attn_k_norm",
                    "v.blk.{}.ls1",
                    "v.blk.{}.ls2",
                ],
                biases: &["mm.model.mlp.0", "mm.model.mlp.1", "mm.model.mlp.3"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            // Height and width, of which llama.cpp reads one.
            for name in ["image_size", "patch_size"] {
                let first = field(&parts.vision, name)
                    .and_then(|size| size.get(0))
                    .cloned();
                if let Some(first) = first {
                    set(&mut parts.vision, name, first);
                }
            }
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        const S1: &str = "model.vision_tower.";
        /// The names of Intern-S1 beside those of InternVL.
        const RENAMED: [(&str, &str); 11] = [
            ("embeddings.cls_token", "embeddings.class_embedding"),
            (
                "embeddings.position_embeddings",
                "embeddings.position_embedding",
            ),
            (
                "embeddings.patch_embeddings.projection",
                "embeddings.patch_embedding",
            ),
            ("encoder.layer.", "encoder.layers."),
            (".attention.projection_layer", ".attn.proj"),
            (".attention.", ".attn."),
            (".layernorm_before", ".norm1"),
            (".layernorm_after", ".norm2"),
            (".lambda_", ".ls"),
            ("multi_modal_projector.layer_norm", "mlp1.0"),
            ("multi_modal_projector.linear_1", "mlp1.1"),
        ];
        let name = unless_text(name)?;
        if name.starts_with("vision_model") || name.starts_with("mlp") {
            return Some(name);
        }
        let is_s1 = name.starts_with(S1) || name.starts_with("model.multi_modal_projector");
        let renamed = |name: String| {
            let name = name.replace(S1, "vision_model.");
            let name = name.replace("model.multi_modal", "multi_modal");
            let name = name.replace("multi_modal_projector.linear_2", "mlp1.3");
            let all = RENAMED.iter();
            all.fold(name, |name, (from, to)| name.replace(from, to))
        };
        is_s1.then(|| renamed(name))
    },
};

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "internvl"),
    Parameter::F32(super::EPSILON, &["layer_norm_eps"]),
    Parameter::Computed(set_activation),
    Parameter::Computed(|config, keys| {
        set_downsampling(config, keys, None)?;
        for (key, name) in [
            ("vision.preproc_min_tiles", "min_dynamic_patch"),
            ("vision.preproc_max_tiles", "max_dynamic_patch"),
        ] {
            // Older models have none.
            let tiles = config.number_of(OUTER, name)?;
            if let Some(tiles) = tiles.filter(|tiles| *tiles > 0) {
                keys.set(key, Value::U32(tiles));
            }
        }
        Ok(())
    }),
];

const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename(
        "vision_model.embeddings.class_embedding",
        "v.class_embd",
        &[Any, Any, Hidden],
    ),
    Recipe::with(
        "vision_model.embeddings.patch_embedding.weight",
        "v.patch_embd.weight",
        &[Hidden, Any, Any, Any],
        &[Op::CastPlain],
    ),
    Recipe::rename(
        "vision_model.embeddings.patch_embedding.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    Recipe::rename(
        "vision_model.embeddings.position_embedding",
        "v.position_embd.weight",
        &[Any, Any, Hidden],
    ),
];

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        block!("vision_model.encoder.layers.{}.", $from, $to, $dims)
    };
}

const LAYERS: &[Recipe] = &[
    Recipe::new(
        &[Input::new(
            "vision_model.encoder.layers.{}.attn.qkv",
            &[Product(&[Number(3), Hidden]), Hidden],
        )],
        &[
            Output::new("v.blk.{}.attn_q", &[Op::part(0, &[Hidden, Hidden, Any], 0)]),
            Output::new("v.blk.{}.attn_k", &[Op::part(0, &[Hidden, Hidden, Any], 1)]),
            Output::new("v.blk.{}.attn_v", &[Op::part(0, &[Hidden, Hidden, Any], 2)]),
        ],
    ),
    layer!("attn.proj", "attn_out", &[Hidden, Hidden]),
    layer!("attn.q_norm", "attn_q_norm", &[Any]),
    layer!("attn.k_norm", "attn_k_norm", &[Any]),
    layer!("norm1", "ln1", &[Hidden]),
    layer!("norm2", "ln2", &[Hidden]),
    layer!("mlp.fc1", "ffn_up", &[FeedForward, Hidden]),
    layer!("mlp.fc2", "ffn_down", &[Hidden, FeedForward]),
    layer!("ls1", "ls1.weight", &[Hidden]),
    layer!("ls2", "ls2.weight", &[Hidden]),
];

/// Intern-S1 has queries, keys and values apart.
const SPLIT_LAYERS: &[Recipe] = &[
    layer!("attn.q_proj", "attn_q", &[Hidden, Hidden]),
    layer!("attn.k_proj", "attn_k", &[Hidden, Hidden]),
    layer!("attn.v_proj", "attn_v", &[Hidden, Hidden]),
];

const MATRICES: &[Recipe] = &[
    Recipe::rename("mlp1.0", "mm.model.mlp.0", &[Any]),
    Recipe::rename("mlp1.1", "mm.model.mlp.1", &[Any, Any]),
    Recipe::rename("mlp1.3", "mm.model.mlp.3", &[Any, Any]),
];
