//! The projectors of Gemma 4: encoders of images and of audio, whose matrices may have bounds of their
//! inputs and outputs, and a matrix for each. The unified models have no encoder, but the matrices.

use super::{
    AUDIO, COMMON, COMMON_AUDIO, DEPTHWISE, EMPTY, Encoders, IN_F32, Projector, field, set,
    set_audio, set_audio_epsilon, set_epsilon, unless_text, whole,
};
use crate::Architecture;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::{CastPlain, Reshape, Softplus, Tile, Transpose};
use crate::recipes::Size::{Any, FeedForward, Field, Hidden, Number, Product};
use crate::recipes::{Op, Recipe, Size, When};
use quantier_gguf::gguf::Value;

pub(super) static GEMMA4: Projector = Projector {
    architecture: Architecture {
        classes: &["Gemma4ForConditionalGeneration"],
        parameters: &[COMMON, KEYS],
        tensors: &[
            PATCHES,
            LAYERS,
            LAYER_BOUNDS,
            MATRIX,
            CONVOLUTIONS,
            AUDIO_LAYERS,
            AUDIO_BOUNDS,
            AUDIO_MATRIX,
        ],
        decoder: Decoder {
            needs: Needs {
                optional: &[
                    "v.std_bias",
                    "v.std_scale",
                    "v.blk.{}.out_scale",
                    "a.blk.{}.per_dim_scale",
                    "a.pre_encode.out",
                ],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            // The size of images is not fixed.
            set(&mut parts.vision, "image_size", 224);
            let bins = whole(&parts.audio, "input_feat_size")?.unwrap_or(128);
            set(&mut parts.audio, "feat_in", bins);
            if let Some(hidden) = whole(&parts.audio, "hidden_size")? {
                set(
                    &mut parts.audio,
                    "intermediate_size",
                    hidden.saturating_mul(4),
                );
            }
            Ok(())
        },
        ..Encoders::BOTH
    },
    name: |_, name| {
        // The matrix within a module that clips its inputs and outputs.
        let name = unless_text(name)?;
        match name.contains("audio_tower") {
            true => Some(name.replace(".linear.", ".")),
            false => Some(name.replace(".linear.weight", ".weight")),
        }
    },
};

pub(super) static GEMMA4_UNIFIED: Projector = Projector {
    architecture: Architecture {
        classes: &["Gemma4UnifiedForConditionalGeneration"],
        parameters: &[COMMON, KEYS, UNIFIED_KEYS],
        tensors: &[UNIFIED_PATCHES, MATRIX, AUDIO_MATRIX],
        decoder: Decoder {
            needs: Needs {
                biases: &["v.patch_norm.1", "v.patch_norm.2", "v.patch_norm.3"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            (GEMMA4.encoders.complete)(parts)?;
            for (part, length, what) in [
                (&mut parts.vision, "mm_embed_dim", "images"),
                (&mut parts.audio, "audio_embed_dim", "audio"),
            ] {
                let length = field(part, length)
                    .cloned()
                    .ok_or_else(|| format!("the encoder of {what} lacks the field '{length}'"))?;
                set(part, "hidden_size", length);
                for name in ["intermediate_size", "num_layers", "num_attention_heads"] {
                    set(part, name, 0);
                }
            }
            // The side of the squares whose colors one matrix takes.
            const SIDE: &str = "model_patch_size";
            if whole(&parts.vision, SIDE)?.is_none() {
                let side = whole(&parts.vision, "patch_size")?
                    .zip(whole(&parts.vision, "pooling_kernel_size")?)
                    .and_then(|(patch, pool)| patch.checked_mul(pool));
                let side = side.ok_or_else(|| format!("field '{SIDE}' is missing"))?;
                set(&mut parts.vision, SIDE, side);
            }
            Ok(())
        },
        ..Encoders::BOTH
    },
    name: |_, name| unless_text(name),
};

const KEYS: &[Parameter] = &[
    Parameter::Computed(|config, keys| match config.get(AUDIO) {
        Some(_) => COMMON_AUDIO.apply(config, keys),
        None => Ok(()),
    }),
    Parameter::ConstantStr("vision.projector_type", "gemma4v"),
    Parameter::Computed(|config, keys| {
        set_epsilon(config, keys, "layer_norm_eps", 1e-6)?;
        if config.get(AUDIO).is_none() {
            return Ok(());
        }
        keys.set("audio.projector_type", Value::str("gemma4a"));
        set_audio(config, keys, "audio.num_mel_bins", "feat_in")?;
        set_audio_epsilon(config, keys, 1e-6)
    }),
];

const UNIFIED_KEYS: &[Parameter] = &[
    Parameter::ConstantStr("vision.projector_type", "gemma4uv"),
    Parameter::ConstantStr("audio.projector_type", "gemma4ua"),
];

const PATCH: Size = Field(&["patch_size"]);
const COLORS: Size = Number(3);

/// Colors of a pixel side by side become three channels.
const CHANNELS_FIRST: &[Op] = &[
    Reshape(&[Hidden, Any, COLORS]),
    Transpose,
    Reshape(&[Hidden, COLORS, PATCH, PATCH]),
    CastPlain,
];

const PATCHES: &[Recipe] = &[
    Recipe::with(
        "model.vision_tower.patch_embedder.input_proj.weight",
        "v.patch_embd.weight",
        &[Hidden, Product(&[PATCH, PATCH, COLORS])],
        CHANNELS_FIRST,
    ),
    Recipe::rename(
        "model.vision_tower.patch_embedder.position_embedding_table",
        "v.position_embd.weight",
        &[Any, Any, Hidden],
    ),
    Recipe::rename("model.vision_tower.std_bias", "v.std_bias", &[Hidden]),
    Recipe::rename("model.vision_tower.std_scale", "v.std_scale", &[Hidden]),
];

macro_rules! vision {
    ($from:literal, $to:literal, $dims:expr) => {
        block!("model.vision_tower.encoder.layers.{}.", $from, $to, $dims)
    };
    ($from:literal, $to:literal) => {
        Recipe::bounds(
            concat!("model.vision_tower.encoder.layers.{}.", $from),
            concat!("v.blk.{}.", $to),
        )
    };
}

const LAYERS: &[Recipe] = &[
    vision!("self_attn.q_proj", "attn_q", &[Any, Hidden]),
    vision!("self_attn.k_proj", "attn_k", &[Any, Hidden]),
    vision!("self_attn.v_proj", "attn_v", &[Any, Hidden]),
    vision!("self_attn.o_proj", "attn_out", &[Hidden, Any]),
    vision!("self_attn.q_norm", "attn_q_norm", &[Any]),
    vision!("self_attn.k_norm", "attn_k_norm", &[Any]),
    vision!("input_layernorm", "ln1", &[Hidden]),
    vision!("post_attention_layernorm", "attn_post_norm", &[Hidden]),
    vision!("pre_feedforward_layernorm", "ln2", &[Hidden]),
    vision!("post_feedforward_layernorm", "ffn_post_norm", &[Hidden]),
    vision!("mlp.gate_proj", "ffn_gate", &[FeedForward, Hidden]),
    vision!("mlp.up_proj", "ffn_up", &[FeedForward, Hidden]),
    vision!("mlp.down_proj", "ffn_down", &[Hidden, FeedForward]),
    Recipe::with(
        "model.vision_tower.encoder.layers.{}.layer_scalar",
        "v.blk.{}.out_scale.weight",
        &[],
        &[Reshape(&[Any])],
    ),
];

const LAYER_BOUNDS: &[Recipe] = &[
    vision!("self_attn.q_proj", "attn_q"),
    vision!("self_attn.k_proj", "attn_k"),
    vision!("self_attn.v_proj", "attn_v"),
    vision!("self_attn.o_proj", "attn_out"),
    vision!("mlp.gate_proj", "ffn_gate"),
    vision!("mlp.up_proj", "ffn_up"),
    vision!("mlp.down_proj", "ffn_down"),
];

const MATRIX: &[Recipe] = &[Recipe::rename(
    "model.embed_vision.embedding_projection",
    "mm.input_projection",
    &[Any, Any],
)];

const HEARS: When = When::Set(AUDIO);
const CONVOLUTIONS: &[Recipe] = &[
    Recipe::with(
        "model.audio_tower.subsample_conv_projection.layer0.conv",
        "a.conv1d.0",
        &[Any, Any, Any, Any],
        IN_F32,
    )
    .when(HEARS),
    Recipe::with(
        "model.audio_tower.subsample_conv_projection.layer1.conv",
        "a.conv1d.1",
        &[Any, Any, Any, Any],
        IN_F32,
    )
    .when(HEARS),
    Recipe::rename(
        "model.audio_tower.subsample_conv_projection.layer0.norm",
        "a.conv1d.0.norm",
        &[Any],
    )
    .when(HEARS),
    Recipe::rename(
        "model.audio_tower.subsample_conv_projection.layer1.norm",
        "a.conv1d.1.norm",
        &[Any],
    )
    .when(HEARS),
    Recipe::with(
        "model.audio_tower.subsample_conv_projection.input_proj_linear",
        "a.input_projection",
        &[Any, Any],
        IN_F32,
    )
    .when(HEARS),
    Recipe::rename(
        "model.audio_tower.output_proj",
        "a.pre_encode.out",
        &[Any, Any],
    )
    .when(HEARS),
];

macro_rules! audio {
    ($from:literal, $to:literal, $dims:expr, $ops:expr) => {
        Recipe::with(
            concat!("model.audio_tower.layers.{}.", $from),
            concat!("a.blk.{}.", $to),
            $dims,
            $ops,
        )
    };
    ($from:literal, $to:literal) => {
        Recipe::bounds(
            concat!("model.audio_tower.layers.{}.", $from),
            concat!("a.blk.{}.", $to),
        )
    };
}

const AUDIO_LAYERS: &[Recipe] = &[
    audio!("feed_forward1.pre_layer_norm", "ffn_norm", &[Any], &[]),
    audio!(
        "feed_forward1.post_layer_norm",
        "ffn_post_norm",
        &[Any],
        &[]
    ),
    audio!("feed_forward1.ffw_layer_1", "ffn_up", &[Any, Any], &[]),
    audio!("feed_forward1.ffw_layer_2", "ffn_down", &[Any, Any], &[]),
    audio!("feed_forward2.pre_layer_norm", "ffn_norm_1", &[Any], &[]),
    audio!(
        "feed_forward2.post_layer_norm",
        "ffn_post_norm_1",
        &[Any],
        &[]
    ),
    audio!("feed_forward2.ffw_layer_1", "ffn_up_1", &[Any, Any], &[]),
    audio!("feed_forward2.ffw_layer_2", "ffn_down_1", &[Any, Any], &[]),
    audio!("self_attn.q_proj", "attn_q", &[Any, Any], &[]),
    audio!("self_attn.k_proj", "attn_k", &[Any, Any], &[]),
    audio!("self_attn.v_proj", "attn_v", &[Any, Any], &[]),
    audio!("self_attn.post", "attn_out", &[Any, Any], &[]),
    audio!("self_attn.relative_k_proj", "attn_k_rel", &[Any, Any], &[]),
    audio!(
        "self_attn.per_dim_scale",
        "per_dim_scale.weight",
        &[Any],
        &[Softplus]
    ),
    audio!("norm_pre_attn", "attn_pre_norm", &[Any], &[]),
    audio!("norm_post_attn", "attn_post_norm", &[Any], &[]),
    audio!("norm_out", "ln2", &[Any], &[]),
    audio!("lconv1d.pre_layer_norm", "conv_norm", &[Any], &[]),
    audio!("lconv1d.linear_start", "conv_pw1", &[Any, Any], &[]),
    audio!(
        "lconv1d.depthwise_conv1d.weight",
        "conv_dw.weight",
        &[Any, Number(1), Any],
        DEPTHWISE
    ),
    audio!("lconv1d.conv_norm", "norm_conv", &[Any], &[]),
    audio!("lconv1d.linear_end", "conv_pw2", &[Any, Any], &[]),
];

const AUDIO_BOUNDS: &[Recipe] = &[
    audio!("feed_forward1.ffw_layer_1", "ffn_up"),
    audio!("feed_forward1.ffw_layer_2", "ffn_down"),
    audio!("feed_forward2.ffw_layer_1", "ffn_up_1"),
    audio!("feed_forward2.ffw_layer_2", "ffn_down_1"),
    audio!("self_attn.q_proj", "attn_q"),
    audio!("self_attn.k_proj", "attn_k"),
    audio!("self_attn.v_proj", "attn_v"),
    audio!("self_attn.post", "attn_out"),
    audio!("lconv1d.linear_start", "conv_pw1"),
    audio!("lconv1d.linear_end", "conv_pw2"),
];

const AUDIO_MATRIX: &[Recipe] = &[Recipe::rename(
    "model.embed_audio.embedding_projection",
    "mm.a.input_projection",
    &[Any, Any],
)
.when(HEARS)];

const SIDE: Size = Field(&["model_patch_size"]);
const AREA: Size = Product(&[SIDE, SIDE]);
const PIXELS: Size = Product(&[COLORS, AREA]);

/// Colors of a pixel side by side become three channels, in vectors and in the columns of matrices.
const PLANES: &[Op] = &[Reshape(&[AREA, COLORS]), Transpose, Reshape(&[Any])];
const COLUMN_PLANES: &[Op] = &[
    Reshape(&[Any, AREA, COLORS]),
    Transpose,
    Reshape(&[Any, PIXELS]),
    CastPlain,
];

const UNIFIED_PATCHES: &[Recipe] = &[
    Recipe::with(
        "model.vision_embedder.patch_dense.weight",
        "v.patch_embd.weight",
        &[Any, PIXELS],
        COLUMN_PLANES,
    ),
    Recipe::rename(
        "model.vision_embedder.patch_dense.bias",
        "v.patch_embd.bias",
        &[Any],
    ),
    Recipe::with(
        "model.vision_embedder.patch_ln1",
        "v.patch_norm.1",
        &[PIXELS],
        PLANES,
    ),
    Recipe::rename("model.vision_embedder.patch_ln2", "v.patch_norm.2", &[Any]),
    Recipe::rename("model.vision_embedder.pos_norm", "v.patch_norm.3", &[Any]),
    Recipe::with(
        "model.vision_embedder.pos_embedding",
        "v.position_embd.weight",
        &[Any, Number(2), Hidden],
        &[
            Reshape(&[Any, Hidden]),
            Tile {
                axis: 0,
                groups: Any,
                members: Number(2),
            },
            Reshape(&[Number(2), Any, Hidden]),
        ],
    ),
];
