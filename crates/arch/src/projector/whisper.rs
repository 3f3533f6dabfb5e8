//! Projectors of audio with Whisper's encoder: Qwen2-Audio, Ultravox, Voxtral, Audio Flamingo 3,
//! MERaLiON and GLM-ASR.

use super::{
    COMMON_AUDIO, EMPTY, Encoders, Parts, Projector, field, name_fields, outer_u32, set_audio,
    set_audio_epsilon, unless_text,
};
use crate::Architecture;
use crate::config::Result;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::{self, Cast, Reshape, Squeeze};
use crate::recipes::Size::{Any, Number};
use crate::recipes::{Input, Output, Recipe};
use quantier_gguf::gguf::Value;
use quantier_gguf::types::GgmlType;

pub(super) static QWEN2_AUDIO: Projector = Projector {
    architecture: Architecture {
        classes: &["Qwen2AudioForConditionalGeneration"],
        parameters: &[
            FILE_TYPE,
            &[Parameter::ConstantStr("projector_type", "qwen2a")],
            KEYS,
        ],
        tensors: &[CONVOLUTIONS, ENCODER, QWEN2_MATRIX],
        decoder: needing(&["a.conv1d.1", "a.conv1d.2", "mm.a.fc"], &[]),
        ..EMPTY
    },
    encoders: WHISPER,
    name: |_, name| unless_text(name),
};

pub(super) static ULTRAVOX: Projector = Projector {
    architecture: Architecture {
        classes: &["UltravoxModel"],
        parameters: &[
            FILE_TYPE,
            &[Parameter::ConstantStr("projector_type", "ultravox")],
            KEYS,
            &[Parameter::Computed(|config, keys| {
                let factor = outer_u32(config, "stack_factor", None)?;
                keys.set(STACK, Value::U32(factor));
                Ok(())
            })],
        ],
        tensors: &[CONVOLUTIONS, ENCODER, MATRICES, NORMS],
        decoder: needing(&["a.conv1d.1", "a.conv1d.2"], &[]),
        ..EMPTY
    },
    encoders: WHISPER,
    name: |_, name| unless_text(name),
};

pub(super) static VOXTRAL: Projector = Projector {
    architecture: Architecture {
        classes: &["VoxtralForConditionalGeneration"],
        parameters: &[
            FILE_TYPE,
            &[Parameter::ConstantStr("projector_type", "voxtral")],
            KEYS,
            &[Parameter::ConstantU32(STACK, 4)],
        ],
        tensors: &[CONVOLUTIONS, ENCODER, MATRICES],
        decoder: needing(&["a.conv1d.1", "a.conv1d.2"], &[]),
        ..EMPTY
    },
    encoders: WHISPER,
    name: |_, name| unless_text(name),
};

pub(super) static AUDIO_FLAMINGO: Projector = Projector {
    architecture: Architecture {
        classes: &["AudioFlamingo3ForConditionalGeneration"],
        parameters: &[
            FILE_TYPE,
            &[Parameter::ConstantStr("projector_type", "musicflamingo")],
            KEYS,
        ],
        tensors: &[CONVOLUTIONS_IN_F32, ENCODER, MATRICES],
        decoder: needing(
            &["a.conv1d.1", "a.conv1d.2", "mm.a.mlp.1", "mm.a.mlp.2"],
            &[],
        ),
        ..EMPTY
    },
    encoders: WHISPER,
    name: |_, name| unless_text(name),
};

pub(super) static MERALION: Projector = Projector {
    architecture: Architecture {
        classes: &["MERaLiON2ForConditionalGeneration"],
        parameters: &[
            FILE_TYPE,
            &[Parameter::ConstantStr("projector_type", "meralion")],
            KEYS,
            &[Parameter::Computed(|config, keys| {
                let factor = outer_u32(config, "speech_mlp_scale_factor", Some(15))?;
                keys.set(STACK, Value::U32(factor));
                Ok(())
            })],
        ],
        tensors: &[CONVOLUTIONS, ENCODER, ADAPTER],
        decoder: needing(
            &[
                "a.conv1d.1",
                "a.conv1d.2",
                "mm.a.mlp.0",
                "mm.a.mlp.1",
                "mm.a.mlp.2",
                "mm.a.mlp.3",
                "mm.a.norm_pre",
            ],
            &[],
        ),
        ..EMPTY
    },
    encoders: Encoders {
        audio: &["speech_config"],
        ..WHISPER
    },
    name: |_, name| {
        let name = unless_text(name).filter(|name| !name.starts_with("text_decoder."))?;
        let rest = name.strip_prefix("speech_encoder.");
        Some(rest.map_or(name.clone(), |rest| format!("audio_tower.{rest}")))
    },
};

pub(super) static GLM_ASR: Projector = Projector {
    architecture: Architecture {
        classes: &["GlmasrModel"],
        parameters: &[
            FILE_TYPE,
            &[Parameter::ConstantStr("projector_type", "glma")],
            KEYS,
            &[Parameter::Computed(|config, keys| {
                let factor = outer_u32(config, "merge_factor", None)?;
                keys.set(STACK, Value::U32(factor));
                Ok(())
            })],
        ],
        tensors: &[CONVOLUTIONS, ENCODER, MATRICES, FIRST_NORM, ENDS],
        decoder: needing(
            &[
                "a.conv1d.1",
                "a.conv1d.2",
                "mm.a.mlp.1",
                "mm.a.mlp.2",
                "mm.a.norm_pre",
            ],
            &["a.position_embd", "a.post_ln"],
        ),
        ..EMPTY
    },
    encoders: Encoders {
        audio: &["whisper_config"],
        ..WHISPER
    },
    name: |_, name| {
        const ADAPTER: &str = "audio_encoder.adapting.";
        let is_text = name.starts_with("model.") || name.starts_with("lm_head.");
        let name = unless_text(name).filter(|_| !is_text)?;
        let name = name.replace("audio_encoder.whisper.", "audio_tower.");
        let Some(rest) = name.strip_prefix("audio_encoder.") else {
            return Some(name);
        };
        let is_norm = rest.starts_with("layer_norm.");
        let rest = rest.strip_prefix("adapting.").unwrap_or(rest);
        // A matrix that nothing reads.
        if rest.starts_with("proj.") {
            return None;
        }
        match rest.split_once('.') {
            Some(("layer_norm", ending)) if is_norm || name.starts_with(ADAPTER) => {
                Some(format!("multi_modal_projector.ln_pre.{ending}"))
            }
            Some(("0", ending)) => Some(format!("multi_modal_projector.linear_1.{ending}")),
            Some(("2", ending)) => Some(format!("multi_modal_projector.linear_2.{ending}")),
            _ => Some(name),
        }
    },
};

/// What llama.cpp loads: these biases, and all weights but the optional ones.
const fn needing(biases: &'static [&'static str], optional: &'static [&'static str]) -> Decoder {
    Decoder {
        needs: Needs {
            biases,
            optional,
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    }
}

const WHISPER: Encoders = Encoders {
    complete: whisper_names,
    ..Encoders::AUDIO
};

/// The names of other encoders for Whisper's fields.
pub(super) const FIELDS: &[(&str, &str)] = &[
    ("hidden_size", "d_model"),
    ("intermediate_size", "encoder_ffn_dim"),
    ("num_attention_heads", "encoder_attention_heads"),
];

/// Gives the fields of Whisper the names of other encoders.
fn whisper_names(parts: &mut Parts) -> Result<()> {
    let has = |name: &str| field(&parts.audio, name).is_some();
    if !has("hidden_size") && !has("intermediate_size") {
        name_fields(&mut parts.audio, FIELDS);
    }
    Ok(())
}

const STACK: &str = "audio.projector.stack_factor";

const FILE_TYPE: &[Parameter] = &[Parameter::FileType, COMMON_AUDIO];

const KEYS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    set_audio(config, keys, "audio.num_mel_bins", "num_mel_bins")?;
    set_audio_epsilon(config, keys, 1e-5)
})];

/// A bias as one column.
const COLUMN: &[Op] = &[Reshape(&[Any, Number(1)])];

macro_rules! convolutions {
    ($ops:expr) => {
        &[
            Recipe::with(
                "audio_tower.conv1.weight",
                "a.conv1d.1.weight",
                &[Any, Any, Any],
                $ops,
            ),
            Recipe::with("audio_tower.conv1.bias", "a.conv1d.1.bias", &[Any], COLUMN),
            Recipe::with(
                "audio_tower.conv2.weight",
                "a.conv1d.2.weight",
                &[Any, Any, Any],
                $ops,
            ),
            Recipe::with("audio_tower.conv2.bias", "a.conv1d.2.bias", &[Any], COLUMN),
        ]
    };
}

pub(super) const CONVOLUTIONS: &[Recipe] = convolutions!(&[Cast(GgmlType::F16)]);
const CONVOLUTIONS_IN_F32: &[Recipe] = convolutions!(&[Cast(GgmlType::F32)]);

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(
            concat!("audio_tower.layers.{}.", $from),
            concat!("a.blk.{}.", $to),
            $dims,
        )
    };
}

pub(super) const ENCODER: &[Recipe] = &[
    Recipe::rename(
        "audio_tower.embed_positions",
        "a.position_embd",
        &[Any, Any],
    ),
    layer!("self_attn.q_proj", "attn_q", &[Any, Any]),
    layer!("self_attn.k_proj", "attn_k", &[Any, Any]),
    layer!("self_attn.v_proj", "attn_v", &[Any, Any]),
    layer!("self_attn.out_proj", "attn_out", &[Any, Any]),
    layer!("self_attn_layer_norm", "ln1", &[Any]),
    layer!("final_layer_norm", "ln2", &[Any]),
    layer!("fc1", "ffn_up", &[Any, Any]),
    layer!("fc2", "ffn_down", &[Any, Any]),
    Recipe::rename("audio_tower.layer_norm", "a.post_ln", &[Any]),
];

const QWEN2_MATRIX: &[Recipe] = &[Recipe::rename(
    "multi_modal_projector.linear",
    "mm.a.fc",
    &[Any, Any],
)];

const MATRICES: &[Recipe] = &[
    Recipe::rename("multi_modal_projector.linear_1", "mm.a.mlp.1", &[Any, Any]),
    Recipe::rename("multi_modal_projector.linear_2", "mm.a.mlp.2", &[Any, Any]),
];

const FIRST_NORM: &[Recipe] = &[Recipe::rename(
    "multi_modal_projector.ln_pre",
    "mm.a.norm_pre",
    &[Any],
)];

const NORMS: &[Recipe] = &[
    FIRST_NORM[0],
    Recipe::rename("multi_modal_projector.ln_mid", "mm.a.norm_mid", &[Any]),
];

const ADAPTER: &[Recipe] = &[
    Recipe::rename("ln_speech", "mm.a.norm_pre", &[Any]),
    Recipe::rename(
        "speech_audio_adapter.mlp_adapter.0",
        "mm.a.mlp.0",
        &[Any, Any],
    ),
    Recipe::rename("speech_audio_adapter.gate_proj", "mm.a.mlp.1", &[Any, Any]),
    Recipe::rename("speech_audio_adapter.pool_proj", "mm.a.mlp.2", &[Any, Any]),
    Recipe::rename("speech_audio_adapter.out_proj", "mm.a.mlp.3", &[Any, Any]),
];

/// The embeddings of the tokens around audio.
const ENDS: &[Recipe] = &[Recipe::new(
    &[Input::new(
        "audio_encoder.audio_bos_eos_token.weight",
        &[Number(2), Any],
    )],
    &[
        Output::new("v.boi", &[Op::part(0, &[Number(1), Any], 0), Squeeze(0)]),
        Output::new("v.eoi", &[Op::part(0, &[Number(1), Any], 1), Squeeze(0)]),
    ],
)];
