//! The projectors of Qwen 2.5 Omni, Qwen 3 Omni and Qwen3-ASR: the encoders of images of the VL models,
//! and Whisper's encoder of audio with computed positions.

use super::qwen::{self, BLOCK, FUSED_ATTENTION, GATED_NETWORK, PATCHES};
use super::whisper::{self, CONVOLUTIONS, ENCODER};
use super::{
    COMMON, COMMON_AUDIO, EMPTY, Encoders, Projector, USE_GELU, USE_SILU, audio_u32, name_fields,
    set_audio, set_audio_epsilon, unless_text,
};
use crate::config::Result;
use crate::decoder::{Decoder, Needs};
use crate::parameters::{Keys, Parameter};
use crate::recipes::Op::{self, Cast, Reshape};
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, Number};
use crate::{Architecture, Config, Generated};
use quantier_gguf::types::GgmlType;

pub(super) static QWEN2_5_OMNI: Projector = Projector {
    architecture: Architecture {
        classes: &["Qwen2_5OmniModel"],
        parameters: &[
            COMMON,
            AUDIO_KEYS,
            &[
                Parameter::ConstantStr("projector_type", "qwen2.5o"),
                USE_SILU,
                Parameter::Computed(qwen::windows),
                Parameter::Computed(qwen::outer_epsilon),
            ],
        ],
        tensors: &[
            PATCHES,
            BLOCK,
            qwen::SPLIT_ATTENTION,
            GATED_NETWORK,
            qwen::MERGER,
            CONVOLUTIONS,
            ENCODER,
            MATRIX,
        ],
        generated: positions,
        decoder: Decoder {
            needs: Needs {
                optional: &[POSITIONS],
                biases: &["a.conv1d.1", "a.conv1d.2", "mm.0", "mm.2", "mm.a.fc"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        beside: None,
        vision: VISION_PATH,
        audio: AUDIO_PATH,
        complete: |parts| {
            name_fields(&mut parts.audio, whisper::FIELDS);
            (qwen::QWEN2.complete)(parts)
        },
    },
    name: |_, name| of_thinker(name).filter(|name| !name.contains("audio_bos_eos_token")),
};

pub(super) static QWEN3_OMNI: Projector = Projector {
    architecture: Architecture {
        classes: &["Qwen3OmniMoeForConditionalGeneration"],
        parameters: &[
            COMMON,
            AUDIO_KEYS,
            &[USE_GELU],
            qwen::DEEP_KEYS,
            &[
                Parameter::ConstantStr("vision.projector_type", "qwen3vl_merger"),
                Parameter::ConstantStr("audio.projector_type", "qwen3a"),
            ],
        ],
        tensors: &[
            PATCHES,
            qwen::POSITIONS,
            BLOCK,
            FUSED_ATTENTION,
            qwen::NAMED_NETWORK,
            qwen::NAMED_MERGER,
            qwen::DEEP,
            PICTURES,
            ENCODER,
            MATRICES,
        ],
        generated: positions,
        decoder: Decoder {
            needs: Needs {
                optional: &[
                    POSITIONS,
                    "v.deepstack.{}.norm",
                    "v.deepstack.{}.fc1",
                    "v.deepstack.{}.fc2",
                ],
                biases: AUDIO_BIASES,
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        beside: None,
        vision: VISION_PATH,
        audio: AUDIO_PATH,
        complete: |parts| {
            name_fields(&mut parts.audio, whisper::FIELDS);
            (qwen::ENCODERS.complete)(parts)
        },
    },
    name: |config, name| {
        let mut name = of_thinker(name)?;
        for (old, new) in [
            (".merger_list.", ".deepstack_merger_list."),
            ("merger.ln_q", "merger.norm"),
            (".ln_q.", ".norm."),
            (".mlp.0.", ".linear_fc1."),
            (".mlp.2.", ".linear_fc2."),
        ] {
            if name.contains("merger") {
                name = name.replace(old, new);
            }
        }
        qwen::numbered_by_layer(config, name)
    },
};

pub(super) static QWEN3_ASR: Projector = Projector {
    architecture: Architecture {
        classes: &["Qwen3ASRForConditionalGeneration"],
        parameters: &[
            &[Parameter::FileType],
            AUDIO_KEYS,
            &[Parameter::ConstantStr("audio.projector_type", "qwen3a")],
        ],
        tensors: &[PICTURES, ENCODER, MATRICES],
        generated: positions,
        decoder: Decoder {
            needs: Needs {
                optional: &[POSITIONS],
                biases: AUDIO_BIASES,
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        beside: None,
        vision: &[],
        audio: AUDIO_PATH,
        complete: |parts| {
            name_fields(&mut parts.audio, whisper::FIELDS);
            Ok(())
        },
    },
    name: |_, name| of_thinker(name).filter(|name| name.starts_with("audio_tower.")),
};

const VISION_PATH: &[&str] = &["thinker_config", "vision_config"];
const AUDIO_PATH: &[&str] = &["thinker_config", "audio_config"];

const AUDIO_BIASES: &[&str] = &[
    "a.conv2d.1",
    "a.conv2d.2",
    "a.conv2d.3",
    "mm.a.mlp.1",
    "mm.a.mlp.2",
];

/// The name of a tensor of an encoder, of which the last norm has Whisper's name.
fn of_thinker(name: &str) -> Option<String> {
    let name = unless_text(name)?;
    let name = name.strip_prefix("thinker.").unwrap_or(&name);
    let name = name.strip_prefix("model.").unwrap_or(name);
    let is_own = name.starts_with("visual.") || name.starts_with("audio_tower.");
    is_own.then(|| name.replace("audio_tower.ln_post", "audio_tower.layer_norm"))
}

const AUDIO_KEYS: &[Parameter] = &[
    COMMON_AUDIO,
    Parameter::Computed(|config, keys| {
        set_audio(config, keys, "audio.num_mel_bins", "num_mel_bins")?;
        set_audio_epsilon(config, keys, 1e-5)
    }),
];

/// A bias per channel of a picture of times and frequencies.
const CHANNELS: &[Op] = &[Reshape(&[Any, Number(1), Number(1)])];
const IN_F16: &[Op] = &[Cast(GgmlType::F16)];

macro_rules! picture {
    ($number:literal) => {
        Recipe::with(
            concat!("audio_tower.conv2d", $number, ".weight"),
            concat!("a.conv2d.", $number, ".weight"),
            &[Any, Any, Any, Any],
            IN_F16,
        )
    };
    ($number:literal, bias) => {
        Recipe::with(
            concat!("audio_tower.conv2d", $number, ".bias"),
            concat!("a.conv2d.", $number, ".bias"),
            &[Any],
            CHANNELS,
        )
    };
}

const PICTURES: &[Recipe] = &[
    picture!("1"),
    picture!("1", bias),
    picture!("2"),
    picture!("2", bias),
    picture!("3"),
    picture!("3", bias),
    Recipe::with("audio_tower.conv_out", "a.conv_out", &[Any, Any], IN_F16),
];

const MATRIX: &[Recipe] = &[Recipe::rename("audio_tower.proj", "mm.a.fc", &[Any, Any])];

const MATRICES: &[Recipe] = &[
    Recipe::rename("audio_tower.proj1", "mm.a.mlp.1", &[Any, Any]),
    Recipe::rename("audio_tower.proj2", "mm.a.mlp.2", &[Any, Any]),
];

/// Positions that the model computes, as sines and cosines.
const POSITIONS: &str = "a.position_embd";

/// The tensor of positions: sines and cosines of 1,500 times at rates from 1 to 1/10,000, rounded once.
/// The reference's are PyTorch's, whose last bits depend on the CPU.
fn positions(config: &Config, _: &mut Keys) -> Result<Vec<Generated>> {
    const TIMES: u16 = 1500;
    const SLOWEST: f64 = 10_000.0;
    let width = audio_u32(config, &["hidden_size"])?;
    let rates = (width / 2).min(u32::from(u16::MAX)) as u16;
    if rates < 2 || width % 2 == 1 {
        return Err(format!("a width of {width} has no sines and cosines"));
    }
    let step = -(SLOWEST.ln() / f64::from(rates - 1)) as f32;
    let rates: Vec<f32> = (0..rates)
        .map(|rate| f64::from(step * f32::from(rate)).exp() as f32)
        .collect();
    let mut weights = Vec::with_capacity(usize::from(TIMES) * width as usize);
    for time in 0..TIMES {
        let angles = rates.iter().map(|rate| f64::from(f32::from(time) * rate));
        weights.extend(angles.clone().map(|angle| angle.sin() as f32));
        weights.extend(angles.map(|angle| angle.cos() as f32));
    }
    Ok(vec![Generated {
        name: "a.position_embd.weight",
        dims: vec![TIMES.into(), width.into()],
        weights,
    }])
}
