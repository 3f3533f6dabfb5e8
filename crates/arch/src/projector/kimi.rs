//! The projectors of Kimi-VL, Kimi K2.5 and GLM-5.2 Vision: MoonViT, squares of patches joined, a norm
//! and two matrices.

use super::{COMMON, EMPTY, Encoders, Projector, USE_GELU, set, set_epsilon, unless_text, whole};
use crate::Architecture;
use crate::config::wrong_kind;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::projector::PREPROCESSOR;
use crate::recipes::Op::{self, CastPlain, PairsApart, Reshape};
use crate::recipes::Size::{self, Any, Field, Number, Product};
use crate::recipes::{Input, Output, Recipe};
use quantier_gguf::gguf::Value;

pub(super) static KIMI_VL: Projector = Projector {
    architecture: Architecture {
        classes: &["KimiVLForConditionalGeneration"],
        parameters: &[COMMON, KEYS],
        tensors: &[EMBEDDINGS, SPLIT_ATTENTION, LAYERS, MATRICES],
        decoder: Decoder {
            needs: NEEDS,
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            // The size of images is not fixed; this is that of the learned positions.
            set(&mut parts.vision, "image_size", 64 * 14);
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        let name = unless_text(name)?;
        let is_own = name.contains("vision_tower") || name.contains("multi_modal_projector");
        is_own.then_some(name)
    },
};

pub(super) static KIMI_K25: Projector = Projector {
    architecture: Architecture {
        classes: &[
            "KimiK25ForConditionalGeneration",
            "Glm5vForConditionalGeneration",
        ],
        parameters: &[COMMON, K25_KEYS],
        tensors: &[EMBEDDINGS, FUSED_ATTENTION, LAYERS, MATRICES],
        decoder: Decoder {
            needs: NEEDS,
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            let height = whole(&parts.vision, POSITIONS[0].1)?.unwrap_or(64);
            let patch = whole(&parts.vision, "patch_size")?.unwrap_or(14);
            set(
                &mut parts.vision,
                "image_size",
                height.saturating_mul(patch),
            );
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        let name = unless_text(name)?;
        if let Some(rest) = name.strip_prefix("mm_projector.") {
            let rest = rest.strip_prefix("proj.").unwrap_or(rest);
            // Modules of a sequence, or by their names.
            let rest = match rest.split_once('.') {
                Some(("0", ending)) => format!("linear_1.{ending}"),
                Some(("2", ending)) => format!("linear_2.{ending}"),
                _ => rest.to_owned(),
            };
            return Some(format!("multi_modal_projector.{rest}"));
        }
        name.contains("vision_tower").then_some(name)
    },
};

const NEEDS: Needs = Needs {
    biases: &["mm.input_norm", "mm.1", "mm.2"],
    ..Needs::WEIGHTS
};

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "kimivl"),
    USE_GELU,
    Parameter::ConstantU32("vision.projector.scale_factor", 2),
    Parameter::Computed(|config, keys| set_epsilon(config, keys, "layer_norm_eps", 1e-5)),
];

/// Keys, fields and defaults of the numbers of learned positions.
const POSITIONS: [(&str, &str, u32); 3] = [
    ("vision.pos_emb_height", "init_pos_emb_height", 64),
    ("vision.pos_emb_width", "init_pos_emb_width", 64),
    ("vision.pos_emb_time", "init_pos_emb_time", 4),
];

const K25_KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "kimik25"),
    Parameter::Computed(|config, keys| {
        for (key, name, by_default) in POSITIONS {
            let number = config.optional_u32(&[name])?.unwrap_or(by_default);
            // As in the reference: without the prefix of other keys.
            keys.set_exact(key.into(), Value::U32(number));
        }
        let activation = config.get("projector_hidden_act");
        let is_gelu = activation.is_none_or(|activation| activation == "gelu");
        keys.set("use_gelu", Value::Bool(is_gelu));
        set_epsilon(config, keys, "projector_ln_eps", 1e-5)?;
        const KERNEL: &str = "merge_kernel_size";
        let side = match config.get(KERNEL) {
            Some(kernel) => kernel
                .get(0)
                .and_then(|side| u32::try_from(side.as_u64()?).ok())
                .ok_or_else(|| wrong_kind(KERNEL, kernel, "a list of whole numbers"))?,
            None => 2,
        };
        keys.set("vision.projector.scale_factor", Value::U32(side));
        /// The least number of patches, which no config has.
        const LEAST: u32 = 8;
        let patch = config.optional_u32(&["patch_size"])?.unwrap_or(14);
        let most = config.number_of(PREPROCESSOR, "in_patch_limit")?;
        for (key, patches) in [
            ("vision.image_min_pixels", LEAST),
            ("vision.image_max_pixels", most.unwrap_or(16_384)),
        ] {
            let pixels = patch.checked_mul(patch);
            let pixels = pixels.and_then(|pixels| pixels.checked_mul(patches));
            let pixels = pixels.ok_or("'patch_size' or 'in_patch_limit' is too large")?;
            keys.set(key, Value::U32(pixels));
        }
        Ok(())
    }),
];

const WIDTH: Size = Field(&["hidden_size", "width", "vt_hidden_size"]);
const NETWORK: Size = Field(&["intermediate_size", "vt_intermediate_size"]);
const ALL: Size = Product(&[Number(3), WIDTH]);

/// Twice the number of heads, which K2.5 has under one name of two.
const QUERY_AND_KEY_HEADS: Size = Size::Computed(|config| {
    let heads = config.optional_u32(&["num_attention_heads"])?;
    Ok(2 * u64::from(heads.unwrap_or(16)))
});

const EMBEDDINGS: &[Recipe] = &[
    Recipe::with(
        "vision_tower.patch_embed.proj.weight",
        "v.patch_embd.weight",
        &[WIDTH, Any, Any, Any],
        &[CastPlain],
    ),
    Recipe::rename(
        "vision_tower.patch_embed.proj.bias",
        "v.patch_embd.bias",
        &[WIDTH],
    ),
    Recipe::rename(
        "vision_tower.encoder.final_layernorm",
        "v.post_ln",
        &[WIDTH],
    ),
];

const GRID: &str = "vision_tower.patch_embed.pos_emb.weight";

const SPLIT_ATTENTION: &[Recipe] = &[
    Recipe::with(
        GRID,
        "v.position_embd.weight",
        &[Any, Any, WIDTH],
        &[Reshape(&[Any, WIDTH])],
    ),
    Recipe::new(
        &[Input::new(
            "vision_tower.encoder.blocks.{}.wqkv",
            &[ALL, WIDTH],
        )],
        &[
            Output::new("v.blk.{}.attn_q", &[Op::part(0, &[WIDTH, WIDTH, Any], 0)]),
            Output::new("v.blk.{}.attn_k", &[Op::part(0, &[WIDTH, WIDTH, Any], 1)]),
            Output::new("v.blk.{}.attn_v", &[Op::part(0, &[WIDTH, WIDTH, Any], 2)]),
        ],
    ),
];

const FUSED_ATTENTION: &[Recipe] = &[
    Recipe::rename(GRID, "v.position_embd.weight", &[Any, Any, WIDTH]),
    Recipe::with(
        "vision_tower.encoder.blocks.{}.wqkv",
        "v.blk.{}.attn_qkv",
        &[ALL, WIDTH],
        &[PairsApart {
            rows: Product(&[Number(2), WIDTH]),
            heads: QUERY_AND_KEY_HEADS,
        }],
    ),
];

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        block!("vision_tower.encoder.blocks.{}.", $from, $to, $dims)
    };
}

const LAYERS: &[Recipe] = &[
    layer!("wo", "attn_out", &[WIDTH, WIDTH]),
    layer!("norm0", "ln1", &[WIDTH]),
    layer!("norm1", "ln2", &[WIDTH]),
    layer!("mlp.fc0", "ffn_up", &[NETWORK, WIDTH]),
    layer!("mlp.fc1", "ffn_down", &[WIDTH, NETWORK]),
];

const MATRICES: &[Recipe] = &[
    Recipe::rename("multi_modal_projector.pre_norm", "mm.input_norm", &[Any]),
    Recipe::rename("multi_modal_projector.linear_1", "mm.1", &[Any, Any]),
    Recipe::rename("multi_modal_projector.linear_2", "mm.2", &[Any, Any]),
];
