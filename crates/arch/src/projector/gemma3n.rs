//! The projector of Gemma 3n: MobileNetV5 (Qin et al. 2024) for images, a conformer for audio, and a matrix
//! for each.

use super::{
    CHANNELS, COMMON, COMMON_AUDIO, EMPTY, Encoders, IN_F32, Projector, STAGES, name_fields, set,
    set_audio, set_epsilon, unless_text, whole,
};
use crate::Architecture;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::Cast;
use crate::recipes::Size::{Any, Number};
use crate::recipes::{Recipe, Size};
use quantier_gguf::types::GgmlType;
use serde_json::Value as Json;

pub(super) static GEMMA3N: Projector = Projector {
    architecture: Architecture {
        classes: &["Gemma3nForConditionalGeneration"],
        parameters: &[COMMON, KEYS],
        tensors: &[
            STEM,
            BLOCKS,
            FUSION,
            MATRICES,
            CONVOLUTIONS,
            AUDIO_LAYERS,
            AUDIO_MATRICES,
        ],
        decoder: Decoder {
            needs: Needs {
                // llama.cpp takes embeddings of tokens of images and of audio from the text model.
                optional: &[
                    "mm.embedding",
                    "mm.hard_emb_norm",
                    "mm.a.embedding",
                    "mm.a.hard_emb_norm",
                    "a.blk.{}.per_dim_k_scale",
                ],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            /// The stages of MobileNetV5, of which llama.cpp reads as many.
            const NUMBER_OF_STAGES: u64 = 4;
            const SIZE: &str = "size";
            const LENGTH: &str = "image_seq_length";
            let side = match parts.preprocessor.get(SIZE) {
                None => Some(768),
                Some(size) => size.get("height").and_then(Json::as_u64),
            };
            let side = side.ok_or_else(|| format!("'{SIZE}' of the preprocessor has no height"))?;
            let length = parts.preprocessor.get(LENGTH);
            let length = length.map_or(Some(256), Json::as_u64);
            let patch = length.and_then(|length| side.checked_div(length));
            let patch = patch.ok_or_else(|| {
                format!("'{LENGTH}' of the preprocessor is no whole number above 0")
            })?;
            // Images are not normalized.
            for (name, value) in [("image_mean", 0.0), ("image_std", 1.0)] {
                let colors = Json::from(vec![value; 3]);
                parts.preprocessor.insert(name.into(), colors);
            }
            let network = whole(&parts.vision, "intermediate_size")?.unwrap_or(2048);
            let heads = whole(&parts.vision, "num_attention_heads")?.unwrap_or(8);
            for (name, number) in [
                ("image_size", side),
                ("patch_size", patch),
                ("intermediate_size", network.saturating_mul(4)),
                ("num_attention_heads", heads),
                // Stages of blocks take the place of layers.
                ("n_layers", 0),
                (STAGES, NUMBER_OF_STAGES),
            ] {
                set(&mut parts.vision, name, number);
            }
            name_fields(
                &mut parts.audio,
                &[
                    ("n_layers", "conf_num_hidden_layers"),
                    ("num_attention_heads", "conf_num_attention_heads"),
                ],
            );
            let network = whole(&parts.audio, "intermediate_size")?.unwrap_or(6144);
            set(&mut parts.audio, "intermediate_size", network);
            Ok(())
        },
        ..Encoders::BOTH
    },
    name: |_, name| {
        const PARTS: [&str; 4] = [
            "model.vision_tower.",
            "model.embed_vision.",
            "model.audio_tower.",
            "model.embed_audio.",
        ];
        let is_own = PARTS.iter().any(|part| name.starts_with(part));
        unless_text(name).filter(|_| is_own)
    },
};

const KEYS: &[Parameter] = &[
    // llama.cpp counts the blocks itself.
    Parameter::ConstantU32("vision.block_count", 128),
    COMMON_AUDIO,
    Parameter::ConstantStr("vision.projector_type", "gemma3nv"),
    Parameter::Computed(|config, keys| set_epsilon(config, keys, "layer_norm_eps", 1e-6)),
    Parameter::ConstantStr("audio.projector_type", "gemma3na"),
    Parameter::Computed(|config, keys| {
        set_audio(config, keys, "audio.num_mel_bins", "input_feat_size")
    }),
    Parameter::ConstantF32("audio.attention.layer_norm_epsilon", 1e-5),
];

/// The dimensions of a convolution of images.
const CONVOLUTION: &[Size] = &[Any, Any, Any, Any];

const STEM: &[Recipe] = &[
    Recipe::with(
        "model.vision_tower.timm_model.conv_stem.conv.weight",
        "v.conv_stem.conv.weight",
        CONVOLUTION,
        IN_F32,
    ),
    Recipe::with(
        "model.vision_tower.timm_model.conv_stem.conv.bias",
        "v.conv_stem.conv.bias",
        &[Any],
        CHANNELS,
    ),
    Recipe::rename(
        "model.vision_tower.timm_model.conv_stem.bn",
        "v.conv_stem.bn",
        &[Any],
    ),
];

/// The recipe of a tensor of a block, which has the same name within the block. The first number of the
/// names is that of the stage, the second that of the block in it.
macro_rules! stage {
    ($name:literal, $dims:expr) => {
        Recipe::rename(
            concat!("model.vision_tower.timm_model.blocks.{}.{}.", $name),
            concat!("v.blk.{}.{}.", $name),
            $dims,
        )
    };
}

const BLOCKS: &[Recipe] = &[
    // Edge residuals.
    stage!("conv_exp.weight", CONVOLUTION),
    stage!("bn1.weight", &[Any]),
    stage!("conv_pwl.weight", CONVOLUTION),
    stage!("bn2.weight", &[Any]),
    // Universal inverted residuals.
    stage!("dw_start.conv.weight", CONVOLUTION),
    stage!("dw_start.bn.weight", &[Any]),
    stage!("dw_mid.conv.weight", CONVOLUTION),
    stage!("dw_mid.bn.weight", &[Any]),
    stage!("pw_exp.conv.weight", CONVOLUTION),
    stage!("pw_exp.bn.weight", &[Any]),
    stage!("pw_proj.conv.weight", CONVOLUTION),
    stage!("pw_proj.bn.weight", &[Any]),
    stage!("layer_scale.gamma", &[Any]),
    // Attention of many queries to one key.
    stage!("attn.query.proj.weight", CONVOLUTION),
    stage!("attn.key.proj.weight", CONVOLUTION),
    stage!("attn.value.proj.weight", CONVOLUTION),
    stage!("attn.output.proj.weight", CONVOLUTION),
    stage!("attn.key.down_conv.weight", CONVOLUTION),
    stage!("attn.key.norm.weight", &[Any]),
    stage!("attn.value.down_conv.weight", CONVOLUTION),
    stage!("attn.value.norm.weight", &[Any]),
    stage!("norm.weight", &[Any]),
];

macro_rules! fusion {
    ($name:literal, $dims:expr) => {
        Recipe::rename(
            concat!("model.vision_tower.timm_model.msfa.", $name),
            concat!("v.msfa.", $name),
            $dims,
        )
    };
}

/// The adapter that joins the pictures of the last stages.
const FUSION: &[Recipe] = &[
    fusion!("ffn.pw_exp.conv", CONVOLUTION),
    fusion!("ffn.pw_exp.bn", &[Any]),
    fusion!("ffn.pw_proj.conv", CONVOLUTION),
    fusion!("ffn.pw_proj.bn", &[Any]),
    fusion!("norm", &[Any]),
];

/// The recipes of the embeddings of an encoder's tokens and of the matrix behind it.
macro_rules! matrices {
    ($from:literal, $to:literal) => {
        &[
            Recipe::rename(
                concat!($from, "embedding"),
                concat!($to, "embedding"),
                &[Any, Any],
            ),
            Recipe::rename(
                concat!($from, "hard_embedding_norm"),
                concat!($to, "hard_emb_norm"),
                &[Any],
            ),
            Recipe::rename(
                concat!($from, "embedding_projection"),
                concat!($to, "input_projection"),
                &[Any, Any],
            ),
            Recipe::rename(
                concat!($from, "soft_embedding_norm"),
                concat!($to, "soft_emb_norm"),
                &[Any],
            ),
        ]
    };
}

const MATRICES: &[Recipe] = matrices!("model.embed_vision.", "mm.");
const AUDIO_MATRICES: &[Recipe] = matrices!("model.embed_audio.", "mm.a.");

macro_rules! convolution {
    ($number:literal) => {
        Recipe::with(
            concat!(
                "model.audio_tower.subsample_conv_projection.conv_",
                $number,
                ".conv"
            ),
            concat!("a.conv1d.", $number),
            CONVOLUTION,
            IN_F32,
        )
    };
    ($number:literal, $norm:literal) => {
        Recipe::rename(
            concat!(
                "model.audio_tower.subsample_conv_projection.conv_",
                $number,
                $norm
            ),
            concat!("a.conv1d.", $number, $norm),
            &[Any],
        )
    };
}

const CONVOLUTIONS: &[Recipe] = &[
    convolution!("0"),
    convolution!("0", ".norm"),
    convolution!("1"),
    convolution!("1", ".norm"),
    Recipe::with(
        "model.audio_tower.subsample_conv_projection.input_proj_linear",
        "a.pre_encode.out",
        &[Any, Any],
        &[Cast(GgmlType::F16)],
    ),
];

macro_rules! audio {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(
            concat!("model.audio_tower.conformer.{}.", $from),
            concat!("a.blk.{}.", $to),
            $dims,
        )
    };
}

const AUDIO_LAYERS: &[Recipe] = &[
    audio!("ffw_layer_start.pre_layer_norm", "ffn_norm", &[Any]),
    audio!("ffw_layer_start.ffw_layer_1", "ffn_up", &[Any, Any]),
    audio!("ffw_layer_start.ffw_layer_2", "ffn_down", &[Any, Any]),
    audio!("ffw_layer_start.post_layer_norm", "ffn_post_norm", &[Any]),
    audio!("ffw_layer_end.pre_layer_norm", "ffn_norm_1", &[Any]),
    audio!("ffw_layer_end.ffw_layer_1", "ffn_up_1", &[Any, Any]),
    audio!("ffw_layer_end.ffw_layer_2", "ffn_down_1", &[Any, Any]),
    audio!("ffw_layer_end.post_layer_norm", "ffn_post_norm_1", &[Any]),
    audio!("attention.pre_attn_norm", "ln1", &[Any]),
    audio!("attention.attn.q_proj", "attn_q", &[Any, Any]),
    audio!("attention.attn.k_proj", "attn_k", &[Any, Any]),
    audio!("attention.attn.v_proj", "attn_v", &[Any, Any]),
    audio!("attention.attn.per_dim_scale", "per_dim_scale", &[Any]),
    audio!(
        "attention.attn.per_dim_key_scale",
        "per_dim_k_scale",
        &[Any]
    ),
    audio!(
        "attention.attn.relative_position_embedding.pos_proj",
        "linear_pos",
        &[Any, Any]
    ),
    audio!("attention.post", "attn_out", &[Any, Any]),
    audio!("attention.post_norm", "ln2", &[Any]),
    audio!("lconv1d.pre_layer_norm", "conv_norm", &[Any]),
    audio!("lconv1d.linear_start", "conv_pw1", &[Any, Any]),
    Recipe::with(
        "model.audio_tower.conformer.{}.lconv1d.depthwise_conv1d",
        "a.blk.{}.conv_dw",
        &[Any, Number(1), Any],
        IN_F32,
    ),
    audio!("lconv1d.conv_norm", "norm_conv", &[Any]),
    audio!("lconv1d.linear_end", "conv_pw2", &[Any, Any]),
    audio!("norm", "layer_pre_norm", &[Any]),
];
