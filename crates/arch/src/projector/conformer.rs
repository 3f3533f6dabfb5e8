//! Projectors of audio with a conformer, whose batch norms are folded: LFM2-Audio, with two matrices
//! behind, and Granite Speech, with a Q-Former (Li et al. 2023).

use super::{
    AUDIO, COMMON_AUDIO, DEPTHWISE, EMPTY, Encoders, IN_F32, OUTER, POINTWISE, Projector,
    name_fields, of, outer_u32, set, set_audio, unless_text, whole,
};
use crate::Architecture;
use crate::config::wrong_kind;
use crate::decoder::{Decoder, Needs};
use crate::parameters::{Parameter, set_numbers};
use crate::recipes::Op::{self, Reshape};
use crate::recipes::Size::{self, Any, Number};
use crate::recipes::{BatchNorm, Input, Output, Recipe};
use quantier_gguf::gguf::Value;
use serde_json::Value as Json;

pub(super) static LFM2_AUDIO: Projector = Projector {
    architecture: Architecture {
        classes: &["Lfm2AudioForConditionalGeneration"],
        parameters: &[KEYS],
        tensors: &[CONVOLUTIONS, LAYERS, BATCH_NORM, MATRICES, EMBEDDINGS],
        decoder: Decoder {
            needs: Needs {
                // Of the output of audio, which llama.cpp does not run.
                optional: &[
                    "a.position_embd",
                    "a.position_embd_norm",
                    "a.embd_to_logits",
                ],
                biases: &["a.pre_encode.out", "mm.a.mlp.0", "mm.a.mlp.1", "mm.a.mlp.3"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        audio: &["encoder"],
        complete: |parts| {
            name_fields(
                &mut parts.audio,
                &[
                    ("hidden_size", "d_model"),
                    ("intermediate_size", "d_model"),
                    ("num_attention_heads", "n_heads"),
                ],
            );
            Ok(())
        },
        ..Encoders::AUDIO
    },
    name: |_, name| {
        /// Of training, and of the output of audio.
        const OTHERS: [&str; 5] = [
            "audio_loss_weight",
            "codebook_offsets",
            "depth_embeddings",
            "depth_linear",
            "depthformer",
        ];
        let is_other = name.starts_with("lfm.") || OTHERS.iter().any(|part| name.contains(part));
        unless_text(name).filter(|_| !is_other)
    },
};

const KEYS: &[Parameter] = &[
    Parameter::FileType,
    COMMON_AUDIO,
    Parameter::ConstantStr("projector_type", "lfm2a"),
    Parameter::Computed(|config, keys| set_audio(config, keys, "audio.num_mel_bins", "feat_in")),
    Parameter::ConstantF32("audio.attention.layer_norm_epsilon", 1e-5),
];

/// A bias per channel of a picture of times and frequencies.
const CHANNELS: &[Op] = &[Reshape(&[Any, Number(1), Number(1)])];

macro_rules! convolution {
    ($from:literal, $to:literal) => {
        Recipe::with(
            concat!("conformer.pre_encode.conv.", $from, ".weight"),
            concat!("a.conv1d.", $to, ".weight"),
            &[Any, Any, Any, Any],
            IN_F32,
        )
    };
}

macro_rules! convolution_bias {
    ($from:literal, $to:literal) => {
        Recipe::with(
            concat!("conformer.pre_encode.conv.", $from, ".bias"),
            concat!("a.conv1d.", $to, ".bias"),
            &[Any],
            CHANNELS,
        )
    };
}

const CONVOLUTIONS: &[Recipe] = &[
    convolution!("0", "0"),
    convolution_bias!("0", "0"),
    convolution!("2", "2"),
    convolution_bias!("2", "2"),
    convolution!("3", "3"),
    convolution_bias!("3", "3"),
    convolution!("5", "5"),
    convolution_bias!("5", "5"),
    convolution!("6", "6"),
    convolution_bias!("6", "6"),
    Recipe::rename("conformer.pre_encode.out", "a.pre_encode.out", &[Any, Any]),
];

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        layer!($from, $to, $dims, &[])
    };
    ($from:literal, $to:literal, $dims:expr, $ops:expr) => {
        Recipe::with(
            concat!("conformer.layers.{}.", $from),
            concat!("a.blk.{}.", $to),
            $dims,
            $ops,
        )
    };
}

const LAYERS: &[Recipe] = &[
    layer!("norm_feed_forward1", "ffn_norm", &[Any]),
    layer!("feed_forward1.linear1", "ffn_up", &[Any, Any]),
    layer!("feed_forward1.linear2", "ffn_down", &[Any, Any]),
    layer!("norm_feed_forward2", "ffn_norm_1", &[Any]),
    layer!("feed_forward2.linear1", "ffn_up_1", &[Any, Any]),
    layer!("feed_forward2.linear2", "ffn_down_1", &[Any, Any]),
    layer!("norm_self_att", "ln1", &[Any]),
    layer!("self_attn.linear_q", "attn_q", &[Any, Any]),
    layer!("self_attn.linear_k", "attn_k", &[Any, Any]),
    layer!("self_attn.linear_v", "attn_v", &[Any, Any]),
    layer!("self_attn.linear_out", "attn_out", &[Any, Any]),
    layer!("self_attn.linear_pos", "linear_pos", &[Any, Any]),
    layer!("self_attn.pos_bias_u", "pos_bias_u", &[Any, Any]),
    layer!("self_attn.pos_bias_v", "pos_bias_v", &[Any, Any]),
    layer!("norm_out", "ln2", &[Any]),
    layer!("norm_conv", "norm_conv", &[Any]),
    layer!(
        "conv.depthwise_conv.weight",
        "conv_dw.weight",
        &[Any, Number(1), Any],
        DEPTHWISE
    ),
    layer!("conv.depthwise_conv.bias", "conv_dw.bias", &[Any]),
    layer!(
        "conv.pointwise_conv1.weight",
        "conv_pw1.weight",
        &[Any, Any, Number(1)],
        POINTWISE
    ),
    layer!("conv.pointwise_conv1.bias", "conv_pw1.bias", &[Any]),
    layer!(
        "conv.pointwise_conv2.weight",
        "conv_pw2.weight",
        &[Any, Any, Number(1)],
        POINTWISE
    ),
    layer!("conv.pointwise_conv2.bias", "conv_pw2.bias", &[Any]),
];

/// The folded batch norm of a layer, by the prefix of its parts; further parts are read and count for nothing.
macro_rules! batch_norm {
    ($prefix:literal $(, $unused:literal)*) => {
        &[Recipe::new(
            &[
                Input::new(concat!($prefix, "weight"), &[Any]),
                Input::new(concat!($prefix, "bias"), &[Any]),
                Input::new(concat!($prefix, "running_mean"), &[Any]),
                Input::new(concat!($prefix, "running_var"), &[Any]),
                $(Input::new(concat!($prefix, $unused), &[]),)*
            ],
            &[
                Output::of(
                    &[0, 1, 2, 3],
                    "a.blk.{}.conv_norm.weight",
                    &[Op::BatchNorm(BatchNorm::Weight)],
                ),
                Output::of(
                    &[0, 1, 2, 3],
                    "a.blk.{}.conv_norm.bias",
                    &[Op::BatchNorm(BatchNorm::Bias)],
                ),
            ],
        )]
    };
}

const BATCH_NORM: &[Recipe] = batch_norm!(
    "conformer.layers.{}.conv.batch_norm.",
    "num_batches_tracked"
);

const MATRICES: &[Recipe] = &[
    Recipe::rename("audio_adapter.model.0", "mm.a.mlp.0", &[Any]),
    Recipe::rename("audio_adapter.model.1", "mm.a.mlp.1", &[Any, Any]),
    Recipe::rename("audio_adapter.model.3", "mm.a.mlp.3", &[Any, Any]),
];

const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename("audio_embedding.embedding", "a.position_embd", &[Any, Any]),
    Recipe::rename(
        "audio_embedding.embedding_norm",
        "a.position_embd_norm",
        &[Any],
    ),
    Recipe::rename("audio_embedding.to_logits", "a.embd_to_logits", &[Any, Any]),
];

pub(super) static GRANITE_SPEECH: Projector = Projector {
    architecture: Architecture {
        classes: &[
            "GraniteSpeechForConditionalGeneration",
            "GraniteSpeechPlusForConditionalGeneration",
        ],
        parameters: &[GRANITE_KEYS],
        tensors: &[
            GRANITE_ENDS,
            GRANITE_LAYERS,
            GRANITE_BATCH_NORM,
            FIRST_QFORMER_LAYER,
            SECOND_QFORMER_LAYER,
        ],
        decoder: Decoder {
            needs: Needs {
                biases: &[
                    "a.input_projection",
                    "a.enc_ctc_out",
                    "a.enc_ctc_out_mid",
                    "a.proj_norm",
                    "a.proj_linear",
                ],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        audio: &["encoder_config"],
        complete: |parts| {
            name_fields(
                &mut parts.audio,
                &[
                    ("hidden_size", "hidden_dim"),
                    ("num_attention_heads", "num_heads"),
                    ("num_hidden_layers", "num_layers"),
                ],
            );
            let hidden = whole(&parts.audio, "hidden_dim")?;
            let network = hidden.zip(whole(&parts.audio, "feedforward_mult")?);
            let network = network.and_then(|(hidden, times)| hidden.checked_mul(times));
            set(&mut parts.audio, "intermediate_size", network);
            Ok(())
        },
        ..Encoders::AUDIO
    },
    name: |_, name| {
        let is_left_out = name.contains("attention_dists") || name.contains("num_batches_tracked");
        unless_text(name).filter(|_| !is_left_out)
    },
};

const GRANITE_KEYS: &[Parameter] = &[
    Parameter::FileType,
    COMMON_AUDIO,
    Parameter::ConstantStr("projector_type", "granite_speech"),
    Parameter::Computed(|config, keys| set_audio(config, keys, "audio.num_mel_bins", "input_dim")),
    Parameter::ConstantF32("audio.attention.layer_norm_epsilon", 1e-5),
    Parameter::Computed(|config, keys| {
        set_audio(config, keys, "audio.chunk_size", "context_size")?;
        set_audio(config, keys, "audio.conv_kernel_size", "conv_kernel_size")?;
        set_audio(config, keys, "audio.max_pos_emb", "max_pos_emb")?;
        for (key, name) in [
            ("audio.projector.window_size", "window_size"),
            ("audio.projector.downsample_rate", "downsample_rate"),
        ] {
            keys.set(key, Value::U32(outer_u32(config, name, None)?));
        }
        const HEADS: &str = "num_attention_heads";
        let projector = of(config, OUTER, "projector_config")?;
        let heads = projector.and_then(|projector| projector.get(HEADS)?.as_u64());
        let heads = heads.and_then(|heads| u32::try_from(heads).ok());
        let heads = heads.ok_or_else(|| format!("'{HEADS}' is missing in 'projector_config'"))?;
        keys.set("audio.projector.head_count", Value::U32(heads));
        const LAYERS: &str = "cat_hidden_layers";
        let Some(layers) = of(config, AUDIO, LAYERS)? else {
            return Ok(());
        };
        let numbers = layers.as_array().map(|layers| {
            let number = |layer: &Json| u32::try_from(layer.as_u64()?).ok();
            layers.iter().map(number).collect::<Option<Vec<u32>>>()
        });
        let numbers = numbers.flatten();
        let numbers =
            numbers.ok_or_else(|| wrong_kind(LAYERS, layers, "a list of whole numbers"))?;
        if !numbers.is_empty() {
            set_numbers(keys, "audio.feature_layer", numbers);
        }
        Ok(())
    }),
];

const GRANITE_ENDS: &[Recipe] = &[
    Recipe::rename("encoder.input_linear", "a.input_projection", &[Any, Any]),
    Recipe::rename("encoder.out", "a.enc_ctc_out", &[Any, Any]),
    Recipe::rename("encoder.out_mid", "a.enc_ctc_out_mid", &[Any, Any]),
    Recipe::rename("projector.query", "a.proj_query", &[Any, Any, Any]),
    Recipe::rename("projector.qformer.layernorm", "a.proj_norm", &[Any]),
    Recipe::rename("projector.linear", "a.proj_linear", &[Any, Any]),
];

macro_rules! granite {
    ($from:literal, $to:literal, $dims:expr) => {
        granite!($from, $to, $dims, &[])
    };
    ($from:literal, $to:literal, $dims:expr, $ops:expr) => {
        Recipe::with(
            concat!("encoder.layers.{}.", $from),
            concat!("a.blk.{}.", $to),
            $dims,
            $ops,
        )
    };
}

const GRANITE_LAYERS: &[Recipe] = &[
    granite!("ff1.pre_norm", "ffn_norm", &[Any]),
    granite!("ff1.up_proj", "ffn_up", &[Any, Any]),
    granite!("ff1.down_proj", "ffn_down", &[Any, Any]),
    granite!("ff2.pre_norm", "ffn_norm_1", &[Any]),
    granite!("ff2.up_proj", "ffn_up_1", &[Any, Any]),
    granite!("ff2.down_proj", "ffn_down_1", &[Any, Any]),
    granite!("attn.pre_norm", "ln1", &[Any]),
    granite!("attn.to_q", "attn_q", &[Any, Any]),
    Recipe::new(
        &[Input::new(
            "encoder.layers.{}.attn.to_kv.weight",
            &[Any, Any],
        )],
        &[
            Output::new("a.blk.{}.attn_k.weight", &[Op::part(0, HALVES, 0)]),
            Output::new("a.blk.{}.attn_v.weight", &[Op::part(0, HALVES, 1)]),
        ],
    ),
    granite!("attn.to_out", "attn_out", &[Any, Any]),
    granite!("attn.rel_pos_emb.weight", "attn_rel_pos_emb", &[Any, Any]),
    granite!("post_norm", "ln2", &[Any]),
    granite!("conv.norm", "norm_conv", &[Any]),
    granite!(
        "conv.up_conv.weight",
        "conv_pw1.weight",
        &[Any, Any, Number(1)],
        POINTWISE
    ),
    granite!("conv.up_conv.bias", "conv_pw1.bias", &[Any]),
    granite!(
        "conv.depth_conv.conv.weight",
        "conv_dw.weight",
        &[Any, Number(1), Any],
        DEPTHWISE
    ),
    granite!(
        "conv.down_conv.weight",
        "conv_pw2.weight",
        &[Any, Any, Number(1)],
        POINTWISE
    ),
    granite!("conv.down_conv.bias", "conv_pw2.bias", &[Any]),
];

/// Keys, and values of the same length.
const HALVES: &[Size] = &[KEYS_LENGTH, Any];

/// The rows of all keys.
const KEYS_LENGTH: Size = Size::Computed(|config| {
    let heads = super::audio_u32(config, &["num_heads"])?;
    let length = super::audio_u32(config, &["dim_head"])?;
    Ok(u64::from(heads) * u64::from(length))
});

/// The reference gives it the name of a variance, without which llama.cpp does not load the file.
const GRANITE_BATCH_NORM: &[Recipe] = batch_norm!("encoder.layers.{}.conv.batch_norm.");

/// A layer of the Q-Former. Its numbers are not those of the encoder's layers.
macro_rules! qformer {
    ($number:literal) => {
        &[
            qformer!(
                $number,
                "attention.attention.query",
                "self_attn_q",
                &[Any, Any]
            ),
            qformer!(
                $number,
                "attention.attention.key",
                "self_attn_k",
                &[Any, Any]
            ),
            qformer!(
                $number,
                "attention.attention.value",
                "self_attn_v",
                &[Any, Any]
            ),
            qformer!(
                $number,
                "attention.output.dense",
                "self_attn_out",
                &[Any, Any]
            ),
            qformer!(
                $number,
                "attention.output.LayerNorm",
                "self_attn_norm",
                &[Any]
            ),
            qformer!(
                $number,
                "crossattention.attention.query",
                "cross_attn_q",
                &[Any, Any]
            ),
            qformer!(
                $number,
                "crossattention.attention.key",
                "cross_attn_k",
                &[Any, Any]
            ),
            qformer!(
                $number,
                "crossattention.attention.value",
                "cross_attn_v",
                &[Any, Any]
            ),
            qformer!(
                $number,
                "crossattention.output.dense",
                "cross_attn_out",
                &[Any, Any]
            ),
            qformer!(
                $number,
                "crossattention.output.LayerNorm",
                "cross_attn_norm",
                &[Any]
            ),
            qformer!($number, "intermediate_query.dense", "ffn_up", &[Any, Any]),
            qformer!($number, "output_query.dense", "ffn_down", &[Any, Any]),
            qformer!($number, "output_query.LayerNorm", "ffn_norm", &[Any]),
        ]
    };
    ($number:literal, $from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(
            concat!("projector.qformer.encoder.layer.", $number, ".", $from),
            concat!("a.proj_blk.", $number, ".", $to),
            $dims,
        )
    };
}

const FIRST_QFORMER_LAYER: &[Recipe] = qformer!("0");
const SECOND_QFORMER_LAYER: &[Recipe] = qformer!("1");
