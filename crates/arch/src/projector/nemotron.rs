//! The projector of Nemotron Nano VL: RADIO (Ranzinger et al. 2024) for images, and where the model has
//! it, Parakeet's conformer for audio.

use super::{
    AUDIO, CHANNELS, COMMON, COMMON_AUDIO, EMPTY, Encoders, IN_F32, POINTWISE, Projector,
    audio_u32, outer_u32, set, set_audio, set_downsampling, unless_text,
};
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::{self, Cast, CastPlain, Reshape};
use crate::recipes::Size::{self, Any, Field, Hidden, Number};
use crate::recipes::{Recipe, When};
use crate::{Architecture, Config};
use quantier_gguf::gguf::Value;
use quantier_gguf::types::GgmlType;
use serde_json::json;

pub(super) static NEMOTRON_NANO_VL: Projector = Projector {
    architecture: Architecture {
        classes: &["NemotronH_Nano_VL_V2", "RADIOModel"],
        parameters: &[TYPES, COMMON, KEYS],
        tensors: &[
            EMBEDDINGS,
            LAYERS,
            MATRICES,
            CONVOLUTIONS,
            AUDIO_LAYERS,
            AUDIO_MATRICES,
        ],
        decoder: Decoder {
            needs: Needs {
                optional: &["a.mel_filters", "a.window"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        audio: &["sound_config"],
        complete: |parts| {
            let side = parts.outer.get(IMAGE_SIZE).cloned();
            let side = side.unwrap_or(DEFAULT_SIDE.into());
            set(&mut parts.vision, "image_size", side);
            // The sizes of ViT-H, which the config of RADIO does not have.
            for (name, number) in [
                ("hidden_size", 1280),
                ("intermediate_size", 5120),
                ("num_hidden_layers", 32),
                ("num_attention_heads", 16),
            ] {
                set(&mut parts.vision, name, number);
            }
            for (name, colors) in [
                ("image_mean", json!([0.485, 0.456, 0.406])),
                ("image_std", json!([0.229, 0.224, 0.225])),
            ] {
                let settings = parts.preprocessor.entry(name);
                settings.or_insert(colors);
            }
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        const PARTS: [&str; 4] = [
            "vision_model.radio_model.model.",
            "mlp1.",
            "sound_encoder.",
            "sound_projection.",
        ];
        /// Of normalization, which the keys have, and of videos, which llama.cpp does not run.
        const OTHERS: [&str; 2] = ["input_conditioner", "patch_generator.video_embedder"];
        let is_own = PARTS.iter().any(|part| name.starts_with(part));
        let is_other = OTHERS.iter().any(|part| name.contains(part));
        let is_of_training = name.contains("conv.norm") && name.contains("num_batches");
        unless_text(name).filter(|_| is_own && !is_other && !is_of_training)
    },
};

/// The field of the side of images at the root of config.json.
const IMAGE_SIZE: &str = "force_image_size";
const DEFAULT_SIDE: u32 = 512;

const TYPES: &[Parameter] = &[Parameter::Computed(|config, keys| {
    if config.get(AUDIO).is_none() {
        keys.set("projector_type", Value::str("nemotron_v2_vl"));
        return Ok(());
    }
    set_audio(config, keys, "audio.num_mel_bins", "num_mel_bins")?;
    keys.set("audio.attention.layer_norm_epsilon", Value::F32(1e-5));
    for (key, name) in [
        ("audio.subsampling_factor", "subsampling_factor"),
        ("audio.conv_kernel_size", KERNEL),
    ] {
        set_audio(config, keys, key, name)?;
    }
    keys.set("audio.projector_type", Value::str("parakeet"));
    keys.set("vision.projector_type", Value::str("nemotron_v2_vl"));
    Ok(())
})];

const KEYS: &[Parameter] = &[
    Parameter::Computed(|config, keys| match config.get(AUDIO) {
        Some(_) => COMMON_AUDIO.apply(config, keys),
        None => Ok(()),
    }),
    Parameter::ConstantF32(super::EPSILON, 1e-6),
    super::USE_GELU,
    Parameter::Computed(|config, keys| set_downsampling(config, keys, Some(0.5))),
];

/// The number of patches in a row of an image.
fn patches(config: &Config) -> Result<u64, String> {
    let side = outer_u32(config, IMAGE_SIZE, Some(DEFAULT_SIDE))?;
    let patch = config.u32(&["patch_size"])?;
    let patches = side.checked_div(patch).filter(|patches| *patches > 0);
    let patches = patches.ok_or("there is no whole patch in an image")?;
    Ok(patches.into())
}

const PATCH: Size = Field(&["patch_size"]);

const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename(
        "vision_model.radio_model.model.patch_generator.cls_token.token",
        "v.class_embd",
        &[Any, Hidden],
    ),
    Recipe::with(
        "vision_model.radio_model.model.patch_generator.embedder.weight",
        "v.patch_embd.weight",
        &[Hidden, Any],
        &[Reshape(&[Hidden, Number(3), PATCH, PATCH]), CastPlain],
    ),
    Recipe::rename(
        "vision_model.radio_model.model.patch_generator.embedder.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    Recipe::with(
        "vision_model.radio_model.model.patch_generator.pos_embed",
        "v.position_embd.weight",
        &[Number(1), Any, Hidden],
        &[Op::Resample(Size::Computed(patches))],
    ),
];

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        block!(
            "vision_model.radio_model.model.blocks.{}.",
            $from,
            $to,
            $dims
        )
    };
}

/// The widths are those of the tensors: the reference's are constants.
const LAYERS: &[Recipe] = &[
    layer!("attn.qkv", "attn_qkv", &[Any, Any]),
    layer!("attn.proj", "attn_out", &[Any, Any]),
    layer!("norm1", "ln1", &[Any]),
    layer!("norm2", "ln2", &[Any]),
    layer!("mlp.fc1", "ffn_up", &[Any, Any]),
    layer!("mlp.fc2", "ffn_down", &[Any, Any]),
];

const MATRICES: &[Recipe] = &[
    Recipe::rename("mlp1.0", "mm.model.mlp.0", &[Any]),
    Recipe::rename("mlp1.1", "mm.model.mlp.1", &[Any, Any]),
    Recipe::rename("mlp1.3", "mm.model.mlp.3", &[Any, Any]),
];

const HEARS: When = When::Set(AUDIO);

macro_rules! subsampling {
    ($number:literal) => {
        Recipe::with(
            concat!(
                "sound_encoder.encoder.subsampling.layers.",
                $number,
                ".weight"
            ),
            concat!("a.conv1d.", $number, ".weight"),
            &[Any, Any, Any, Any],
            IN_F32,
        )
        .when(HEARS)
    };
    ($number:literal, bias) => {
        Recipe::with(
            concat!(
                "sound_encoder.encoder.subsampling.layers.",
                $number,
                ".bias"
            ),
            concat!("a.conv1d.", $number, ".bias"),
            &[Any],
            CHANNELS,
        )
        .when(HEARS)
    };
}

const CONVOLUTIONS: &[Recipe] = &[
    subsampling!("0"),
    subsampling!("0", bias),
    subsampling!("2"),
    subsampling!("2", bias),
    subsampling!("3"),
    subsampling!("3", bias),
    subsampling!("5"),
    subsampling!("5", bias),
    subsampling!("6"),
    subsampling!("6", bias),
    Recipe::rename(
        "sound_encoder.encoder.subsampling.linear",
        "a.pre_encode.out",
        &[Any, Any],
    )
    .when(HEARS),
    Recipe::rename(
        "sound_encoder.encoder.feature_extractor.featurizer.fb",
        "a.mel_filters",
        &[],
    )
    .when(HEARS),
    Recipe::rename(
        "sound_encoder.encoder.feature_extractor.featurizer.window",
        "a.window",
        &[Any],
    )
    .when(HEARS),
];

macro_rules! audio {
    ($from:literal, $to:literal, $dims:expr) => {
        audio!($from, $to, $dims, &[])
    };
    ($from:literal, $to:literal, $dims:expr, $ops:expr) => {
        Recipe::with(
            concat!("sound_encoder.encoder.layers.{}.", $from),
            concat!("a.blk.{}.", $to),
            $dims,
            $ops,
        )
    };
}

const KERNEL: &str = "conv_kernel_size";

/// The length of a convolution in time.
const KERNEL_SIZE: Size = Size::Computed(|config| audio_u32(config, &[KERNEL]).map(u64::from));

const AUDIO_LAYERS: &[Recipe] = &[
    audio!("norm_feed_forward1", "ffn_norm", &[Any]),
    audio!("feed_forward1.linear1", "ffn_up", &[Any, Any]),
    audio!("feed_forward1.linear2", "ffn_down", &[Any, Any]),
    audio!("norm_feed_forward2", "ffn_norm_1", &[Any]),
    audio!("feed_forward2.linear1", "ffn_up_1", &[Any, Any]),
    audio!("feed_forward2.linear2", "ffn_down_1", &[Any, Any]),
    audio!("norm_self_att", "ln1", &[Any]),
    audio!("self_attn.q_proj", "attn_q", &[Any, Any]),
    audio!("self_attn.k_proj", "attn_k", &[Any, Any]),
    audio!("self_attn.v_proj", "attn_v", &[Any, Any]),
    audio!("self_attn.o_proj", "attn_out", &[Any, Any]),
    audio!("self_attn.relative_k_proj", "linear_pos", &[Any, Any]),
    audio!("self_attn.bias_u", "pos_bias_u", &[Any, Any]),
    audio!("self_attn.bias_v", "pos_bias_v", &[Any, Any]),
    audio!("norm_out", "ln2", &[Any]),
    audio!("norm_conv", "norm_conv", &[Any]),
    audio!(
        "conv.depthwise_conv.weight",
        "conv_dw.weight",
        &[Any, Number(1), KERNEL_SIZE],
        &[
            Reshape(&[Number(1), Number(1), Any, KERNEL_SIZE]),
            Cast(GgmlType::F32)
        ]
    ),
    audio!("conv.depthwise_conv.bias", "conv_dw.bias", &[Any]),
    audio!("conv.norm", "conv_norm", &[Any]),
    audio!("conv.norm.running_mean", "conv_norm_mean", &[Any]),
    audio!("conv.norm.running_var", "conv_norm_var", &[Any]),
    audio!(
        "conv.pointwise_conv1.weight",
        "conv_pw1.weight",
        &[Any, Any, Number(1)],
        POINTWISE
    ),
    audio!(
        "conv.pointwise_conv1.bias",
        "conv_pw1.bias",
        &[Any],
        CHANNELS
    ),
    audio!(
        "conv.pointwise_conv2.weight",
        "conv_pw2.weight",
        &[Any, Any, Number(1)],
        POINTWISE
    ),
    audio!(
        "conv.pointwise_conv2.bias",
        "conv_pw2.bias",
        &[Any],
        CHANNELS
    ),
];

const AUDIO_MATRICES: &[Recipe] = &[
    Recipe::rename("sound_projection.norm", "mm.a.norm_pre", &[Any]).when(HEARS),
    Recipe::rename("sound_projection.linear1", "mm.a.mlp.1", &[Any, Any]).when(HEARS),
    Recipe::rename("sound_projection.linear2", "mm.a.mlp.2", &[Any, Any]).when(HEARS),
];
