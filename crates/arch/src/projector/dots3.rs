//! The projector of dots3-note: an encoder of images with experts in some layers, whose number differs
//! from layer to layer, and Whisper's encoder of audio with gates.

use super::{
    AUDIO, COMMON, COMMON_AUDIO, EMPTY, Encoders, Fields, IN_F32, PIXELS, Parts, Projector,
    USE_SILU, audio_u32, field, of, set, unless_text,
};
use crate::config::{Result, wrong_kind};
use crate::decoder::{Decoder, Needs};
use crate::parameters::{Parameter, set_numbers};
use crate::recipes::Op::{CastPlain, StackBy};
use crate::recipes::Size::{self, Any, Hidden, Number, Product};
use crate::recipes::{Input, Op, Output, Recipe, When};
use crate::{Architecture, Config};
use quantier_gguf::gguf::Value;
use serde_json::{Value as Json, json};

pub(super) static DOTS3_NOTE: Projector = Projector {
    architecture: Architecture {
        classes: &["Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration"],
        parameters: &[COMMON, KEYS],
        tensors: &[
            PATCHES,
            LAYERS,
            NETWORKS,
            EXPERTS,
            MERGER,
            AUDIO_ENDS,
            AUDIO_LAYERS,
        ],
        decoder: Decoder {
            needs: Needs {
                optional: &["v.blk.{}.exp_probs_b"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            let Some(Json::Object(whisper)) = field(&parts.audio, WHISPER).cloned() else {
                return Err(format!("'{WHISPER}' is missing in 'audio_config'"));
            };
            for (name, own) in [
                ("hidden_size", "d_model"),
                ("intermediate_size", "encoder_ffn_dim"),
                ("num_attention_heads", "encoder_attention_heads"),
                ("num_hidden_layers", "encoder_layers"),
            ] {
                set(&mut parts.audio, name, whisper.get(own).cloned());
            }
            if let Some(Json::Object(images)) = parts.preprocessor.get("vision_config").cloned() {
                parts.preprocessor.extend(images);
            }
            // The config gives the length of the outputs under the name of the encoder's.
            let hidden = field(&parts.vision, "embed_dim").cloned();
            set(&mut parts.vision, "hidden_size", hidden);
            // Images of any size.
            set(&mut parts.vision, "image_size", 0);
            check(parts, &whisper)
        },
        ..Encoders::BOTH
    },
    name: |_, name| {
        let is_own = name.starts_with("vision_encoder.") || name.starts_with("audio_encoder.");
        unless_text(name).filter(|_| is_own)
    },
};

/// The fields of the encoder of audio that are Whisper's.
const WHISPER: &str = "whisper_config";
/// The numbers of experts of all layers; 0 or less for a network without.
const PYRAMID: &str = "pyramid_num_routed";

/// Checks the variants of encoders, of which llama.cpp runs one.
fn check(parts: &Parts, whisper: &Fields) -> Result<()> {
    /// The only value of a field, and whether the field may be missing.
    struct Only {
        name: &'static str,
        value: fn() -> Json,
        or_missing: bool,
    }
    const fn only(name: &'static str, value: fn() -> Json, or_missing: bool) -> Only {
        Only {
            name,
            value,
            or_missing,
        }
    }
    let vision = [
        only("adapter_type", || json!("patch_merger"), false),
        only("pre_pixel_shuffle", || json!(true), false),
        only("router_scoring_func", || json!("sigmoid"), true),
        only("router_scale", || json!(1.0), true),
        only("temporal_patch_size", || json!(1), true),
        only("use_bias", || json!(false), true),
        only("use_qk_norm", || json!(true), false),
    ];
    let audio = [
        only("use_conv2d_stem", || json!(true), false),
        only("use_rope", || json!(true), false),
        only("use_rms_norm", || json!(true), false),
        only("use_causal", || json!(false), true),
        only("merge_factor", || json!(1), true),
        only("chunk_seconds", || json!(60), false),
    ];
    let activation = [only("activation_function", || json!("swiglu"), false)];
    let rope = [
        only("partial_rotary_factor", || json!(0.5), false),
        only("rope_theta", || json!(10000.0), false),
    ];
    let rotary = field(&parts.audio, "rope_parameters").and_then(Json::as_object);
    let objects = [
        (parts.vision.as_ref(), &vision[..]),
        (parts.audio.as_ref(), &audio),
        (Some(whisper), &activation),
        (rotary, &rope),
    ];
    for (fields, all) in objects {
        for Only {
            name,
            value,
            or_missing,
        } in all
        {
            let found = fields.and_then(|fields| fields.get(*name));
            let found = found.filter(|found| !found.is_null());
            let only = value();
            let is_right = match found {
                None => *or_missing,
                Some(found) => {
                    *found == only || found.is_number() && found.as_f64() == only.as_f64()
                }
            };
            if !is_right {
                let found = found.map_or("missing".to_owned(), Json::to_string);
                return Err(format!(
                    "'{name}' of the encoders is {found}; llama.cpp runs {only} alone"
                ));
            }
        }
    }
    Ok(())
}

/// The number of experts of a layer; 0 for a network without.
fn experts(config: &Config, layer: u32) -> Result<u64> {
    let numbers = pyramid(config)?;
    let number = numbers.get(layer as usize);
    let number = number.ok_or_else(|| format!("'{PYRAMID}' has no number for layer {layer}"))?;
    Ok(u64::from(*number))
}

/// The numbers of experts of all layers.
fn pyramid(config: &Config) -> Result<Vec<u32>> {
    let value = config.get(PYRAMID);
    let value = value.ok_or_else(|| format!("field '{PYRAMID}' is missing"))?;
    let number = |value: &Json| u32::try_from(value.as_i64()?.max(0)).ok();
    let numbers = value.as_array();
    let numbers = numbers.and_then(|list| list.iter().map(number).collect());
    numbers.ok_or_else(|| wrong_kind(PYRAMID, value, "a list of whole numbers"))
}

const KEYS: &[Parameter] = &[
    COMMON_AUDIO,
    Parameter::ConstantStr("vision.projector_type", "dots3note_v"),
    USE_SILU,
    Parameter::F32(super::EPSILON, &["rms_norm_eps"]),
    Parameter::U32("vision.spatial_merge_size", &["spatial_merge_size"]),
    PIXELS,
    Parameter::Computed(|config, keys| {
        const USED: &str = "capacity_factor";
        let numbers = pyramid(config)?;
        if !numbers.is_empty() {
            set_numbers(keys, "vision.expert_count_per_layer", numbers);
        }
        let used = config.f64(&[USED])?;
        keys.set("vision.expert_used_count", Value::U32(used as u32));
        Ok(())
    }),
    Parameter::ConstantStr("audio.projector_type", "dots3note_a"),
    Parameter::Computed(|config, keys| {
        const BINS: &str = "num_mel_bins";
        let bins = of(config, AUDIO, WHISPER)?.and_then(|whisper| whisper.get(BINS)?.as_u64());
        let bins = bins.and_then(|bins| u32::try_from(bins).ok());
        let bins = bins.ok_or_else(|| format!("'{BINS}' is missing in '{WHISPER}'"))?;
        keys.set("audio.num_mel_bins", Value::U32(bins));
        Ok(())
    }),
    Parameter::ConstantF32("audio.attention.layer_norm_epsilon", 1e-6),
];

const PATCHES: &[Recipe] = &[
    Recipe::with(
        "vision_encoder.patch_embed.proj.weight",
        "v.patch_embd.weight",
        &[Hidden, Any, Any, Any],
        &[CastPlain],
    ),
    Recipe::rename(
        "vision_encoder.patch_embed.proj.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    Recipe::rename("vision_encoder.patch_embed.norm", "v.pre_ln", &[Hidden]),
];

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        block!("vision_encoder.blocks.{}.", $from, $to, $dims)
    };
}

const LAYERS: &[Recipe] = &[
    layer!(
        "attn.qkv",
        "attn_qkv",
        &[Product(&[Number(3), Hidden]), Hidden]
    ),
    layer!("attn.q_norm", "attn_q_norm", &[Any]),
    layer!("attn.k_norm", "attn_k_norm", &[Any]),
    layer!("attn.proj", "attn_out", &[Hidden, Hidden]),
    layer!("norm_1", "ln1", &[Hidden]),
    layer!("norm_2", "ln2", &[Hidden]),
];

const DENSE: When = When::Layers(|config, layer| experts(config, layer) == Ok(0));
const ROUTED: When =
    When::Layers(|config, layer| experts(config, layer).is_ok_and(|experts| experts > 0));

const NETWORKS: &[Recipe] = &[
    layer!("mlp.fc1", "ffn_gate", &[Any, Hidden]).when(DENSE),
    layer!("mlp.fc2", "ffn_down", &[Hidden, Any]).when(DENSE),
    layer!("mlp.fc3", "ffn_up", &[Any, Hidden]).when(DENSE),
];

const EXPERTS: &[Recipe] = &[
    Recipe::with(
        "vision_encoder.blocks.{}.mlp.gate_weight",
        "v.blk.{}.ffn_gate_inp.weight",
        &[Any, Hidden],
        IN_F32,
    )
    .when(ROUTED),
    Recipe::with(
        "vision_encoder.blocks.{}.mlp.router_bias",
        "v.blk.{}.exp_probs_b.weight",
        &[Any],
        IN_F32,
    )
    .when(ROUTED),
    Recipe::new(
        &[
            Input::new(
                "vision_encoder.blocks.{}.mlp.experts.{}.fc1.weight",
                &[Any, Hidden],
            ),
            Input::new(
                "vision_encoder.blocks.{}.mlp.experts.{}.fc2.weight",
                &[Hidden, Any],
            ),
            Input::new(
                "vision_encoder.blocks.{}.mlp.experts.{}.fc3.weight",
                &[Any, Hidden],
            ),
        ],
        &[
            Output::of(&[0], "v.blk.{}.ffn_gate_exps.weight", &[StackBy(experts)]),
            Output::of(&[1], "v.blk.{}.ffn_down_exps.weight", &[StackBy(experts)]),
            Output::of(&[2], "v.blk.{}.ffn_up_exps.weight", &[StackBy(experts)]),
        ],
    )
    .when(ROUTED),
];

const MERGER: &[Recipe] = &[
    Recipe::rename("vision_encoder.post_trunk_norm", "mm.post_norm", &[Any]),
    Recipe::rename("vision_encoder.adapter.ln_q", "mm.input_norm", &[Any]),
    Recipe::rename("vision_encoder.adapter.mlp.0", "mm.0", &[Any, Any]),
    Recipe::rename("vision_encoder.adapter.mlp.2", "mm.2", &[Any, Any]),
    Recipe::rename(
        "audio_encoder.audio_adapter.proj.0",
        "mm.a.norm_pre",
        &[Any],
    ),
    Recipe::rename(
        "audio_encoder.audio_adapter.proj.1",
        "mm.a.mlp.1",
        &[Any, Any],
    ),
    Recipe::rename(
        "audio_encoder.audio_adapter.proj.3",
        "mm.a.mlp.3",
        &[Any, Any],
    ),
];

macro_rules! audio {
    ($from:literal, $to:literal, $dims:expr, $ops:expr) => {
        Recipe::with(
            concat!("audio_encoder.dots_encoder.speech_encoder.", $from),
            concat!("a.", $to),
            $dims,
            $ops,
        )
    };
}

macro_rules! layer_of_audio {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(
            concat!(
                "audio_encoder.dots_encoder.speech_encoder.layers.{}.",
                $from
            ),
            concat!("a.blk.{}.", $to),
            $dims,
        )
    };
}

const AUDIO_ENDS: &[Recipe] = &[
    audio!("conv2d1", "conv2d.1", &[Any, Any, Any, Any], IN_F32),
    audio!("conv2d2", "conv2d.2", &[Any, Any, Any, Any], IN_F32),
    audio!("conv2d3", "conv2d.3", &[Any, Any, Any, Any], IN_F32),
    audio!("conv_out", "conv_out", &[Any, Any], IN_F32),
    audio!("layer_norm", "post_ln", &[Any], &[]),
];

/// The rows of gates and of the others, one after the other.
const NETWORK: Size =
    Size::Computed(|config| audio_u32(config, &["intermediate_size"]).map(u64::from));
const HALVES: &[Size] = &[NETWORK, NETWORK];

const AUDIO_LAYERS: &[Recipe] = &[
    layer_of_audio!("self_attn.q_proj", "attn_q", &[Any, Any]),
    layer_of_audio!("self_attn.k_proj", "attn_k", &[Any, Any]),
    layer_of_audio!("self_attn.v_proj", "attn_v", &[Any, Any]),
    layer_of_audio!("self_attn.out_proj", "attn_out", &[Any, Any]),
    layer_of_audio!("self_attn_layer_norm", "ln1", &[Any]),
    layer_of_audio!("final_layer_norm", "ln2", &[Any]),
    Recipe::new(
        &[Input::new(
            "audio_encoder.dots_encoder.speech_encoder.layers.{}.fc1",
            &[Any, Any],
        )],
        &[
            Output::new("a.blk.{}.ffn_gate", &[Op::part(0, HALVES, 0)]),
            Output::new("a.blk.{}.ffn_up", &[Op::part(0, HALVES, 1)]),
        ],
    ),
    layer_of_audio!("fc2", "ffn_down", &[Any, Any]),
];
