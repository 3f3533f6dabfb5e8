//! The projector of MiMo V2: the encoder of Qwen 2.5-VL with fewer keys than queries and with sinks, and an
//! encoder of audio in a checkpoint of its own, whose outputs are quantized by codebooks and embedded again.

use super::qwen::{BLOCK, GATED_NETWORK, GROUPED_ATTENTION, MERGER, PATCHES};
use super::{
    AUDIO, Beside, BesideOrder, COMMON, COMMON_AUDIO, EMPTY, Encoders, IN_F32, LOCAL_LAYERS, OUTER,
    PIXELS, Projector, USE_SILU, audio_u32, list, name_fields, of, set, set_audio,
    set_audio_epsilon, set_epsilon, unless_text, whole,
};
use crate::config::{Result, wrong_kind};
use crate::decoder::{Decoder, Needs};
use crate::parameters::{Parameter, set_numbers};
use crate::recipes::Op::{self, Cast, Pad, Reshape, Stack};
use crate::recipes::Recipe;
use crate::recipes::Size::{self, Any, Hidden, Number};
use crate::{Architecture, Config};
use quantier_gguf::gguf::{Array, Value, ValueType};
use quantier_gguf::types::GgmlType;
use serde_json::Value as Json;

pub(super) static MIMO_V2: Projector = Projector {
    architecture: Architecture {
        classes: &["MiMoV2ForCausalLM"],
        parameters: &[COMMON, KEYS],
        tensors: &[
            PATCHES,
            ATTENTION,
            GROUPED_ATTENTION,
            BLOCK,
            GATED_NETWORK,
            MERGER,
            AUDIO_ENDS,
            AUDIO_LAYERS,
            CODEBOOKS,
            LOCAL_LAYERS_OF_AUDIO,
            MATRICES,
        ],
        decoder: Decoder {
            needs: Needs {
                optional: &["v.blk.{}.attn_sinks"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        audio: &[TOKENIZER],
        beside: Some(Beside {
            dir: TOKENIZER,
            order: BesideOrder::Stored { last: CODEBOOK },
        }),
        complete: |parts| {
            let vision = &mut parts.vision;
            for (name, own, by_default) in [
                ("image_size", "image_size", 560),
                ("num_attention_heads", "num_heads", 32),
                ("num_hidden_layers", "depth", 28),
            ] {
                let number = whole(vision, own)?.unwrap_or(by_default);
                set(vision, name, number);
            }
            let local = parts
                .outer
                .get(LOCAL)
                .and_then(|audio| audio.get("input_local_layers"));
            set(&mut parts.vision, LOCAL_LAYERS, local.cloned());
            name_fields(
                &mut parts.audio,
                &[
                    ("hidden_size", "d_model"),
                    ("intermediate_size", "encoder_ffn_dim"),
                    ("num_attention_heads", "encoder_attention_heads"),
                ],
            );
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        const PARTS: [&str; 3] = ["visual.", "speech_embeddings.", "audio_encoder."];
        /// The decoder of audio, and what only training reads.
        const LEFT_OUT: [&str; 3] = [
            "_codebook.cluster_size",
            "_codebook.embed_avg",
            "_codebook.inited",
        ];
        // Codebooks and tables of embeddings count as tensors of one layer.
        let within = name
            .strip_prefix(TOKENIZER)
            .and_then(|name| name.strip_prefix('/'));
        let Some(within) = within else {
            let is_own = PARTS.iter().any(|part| name.starts_with(part));
            let name = unless_text(name).filter(|_| is_own)?;
            return Some(name.replace("speech_embeddings.", "speech_embeddings.0."));
        };
        let is_left_out =
            within.starts_with("decoder.") || LEFT_OUT.iter().any(|part| within.ends_with(part));
        (!is_left_out).then(|| within.replace(".vq.layers.", ".vq.0.layers."))
    },
};

/// The directory of the encoder of audio.
const TOKENIZER: &str = "audio_tokenizer";
/// A part of the names of codebooks.
const CODEBOOK: &str = "._codebook.embed";
/// The fields of what embeds the encoder's outputs.
const LOCAL: &str = "audio_config";
/// The field of the numbers of entries of all codebooks.
const ENTRIES: &str = "entries of codebooks";

const KEYS: &[Parameter] = &[
    COMMON_AUDIO,
    Parameter::ConstantStr("vision.projector_type", "mimovl"),
    USE_SILU,
    Parameter::OrU32(
        "vision.attention.head_count_kv",
        &["num_key_value_heads"],
        8,
    ),
    Parameter::U32("vision.spatial_merge_size", &["spatial_merge_size"]),
    Parameter::U32("vision.window_size", &["visual_token_window_size"]),
    Parameter::Computed(|config, keys| {
        const MODES: &str = "vit_window_attn_types";
        let modes = config.get(MODES);
        if let Some(modes) = modes.filter(|modes| modes.as_array().is_none_or(|m| !m.is_empty())) {
            keys.set("vision.wa_pattern_mode", list(MODES, modes)?);
        }
        set_epsilon(config, keys, "rms_norm_eps", 1e-6)
    }),
    PIXELS,
    Parameter::ConstantStr("audio.projector_type", "mimo_audio"),
    Parameter::Computed(|config, keys| {
        set_audio(config, keys, "audio.num_mel_bins", "n_mels")?;
        set_audio_epsilon(config, keys, 1e-5)?;
        let entries = super::indices(config, ENTRIES)?;
        if entries.is_empty() {
            return Err(format!("there are no codebooks in {TOKENIZER}"));
        }
        let count = entries.len() as u32;
        keys.set("audio.rvq.num_quantizers", Value::U32(count));
        set_numbers(keys, "audio.rvq.codebook_size", entries);
        Ok(())
    }),
    Parameter::Computed(|config, keys| {
        const WINDOWS: &str = "encoder_attn_window_size";
        let layers = audio_u32(config, &["encoder_layers"])?;
        if layers != config.audio_layers()? {
            return Err(
                "'encoder_layers' is not the number of layers of the encoder of audio".into(),
            );
        }
        let period = match of(config, AUDIO, "swa_per_block")? {
            Some(_) => audio_u32(config, &["swa_per_block"])?,
            None => 1,
        };
        let is_mixed = of(config, AUDIO, "hybrid_attention")?.is_some_and(|mixed| *mixed == true);
        let mode = |layer: u32| match is_mixed && period > 1 && layer % period < period - 1 {
            true => Value::I32(0),
            false => Value::I32(-1),
        };
        let modes = Array::of_values(ValueType::I32, (0..layers).map(mode));
        keys.set("audio.wa_pattern_mode", Value::Array(modes));
        let window = of(config, AUDIO, WINDOWS)?;
        let window = window.ok_or_else(|| format!("the encoder of audio lacks '{WINDOWS}'"))?;
        let first = window.get(0).and_then(Json::as_u64);
        let first = first.and_then(|first| u32::try_from(first).ok());
        let first = first.ok_or_else(|| wrong_kind(WINDOWS, window, "a list of whole numbers"))?;
        keys.set("audio.window_size", Value::U32(first));
        for (key, name) in [
            ("audio.local_block_count", "input_local_layers"),
            ("audio.local_group_size", "group_size"),
        ] {
            keys.set(key, Value::U32(local_u32(config, name)?));
        }
        Ok(())
    }),
];

/// A whole number of what embeds the outputs of the encoder of audio.
fn local_u32(config: &Config, name: &str) -> Result<u32> {
    let fields = of(config, OUTER, LOCAL)?;
    let number = fields.and_then(|fields| fields.get(name)?.as_u64());
    let number = number.and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| format!("'{name}' in '{LOCAL}' is missing or no whole number"))
}

/// The heads together may be longer than a patch.
const ATTENTION: &[Recipe] = &[
    block!("visual.blocks.{}.", "attn.proj", "attn_out", &[Hidden, Any]),
    block!("visual.blocks.{}.", "attn.sinks", "attn_sinks", &[Any]),
];

/// A bias per channel of frames.
const CHANNELS: &[Op] = &[Reshape(&[Any, Number(1)])];

const AUDIO_ENDS: &[Recipe] = &[
    Recipe::with(
        "encoder.conv1.weight",
        "a.conv1d.1.weight",
        &[Any, Any, Any],
        IN_F32,
    ),
    Recipe::with("encoder.conv1.bias", "a.conv1d.1.bias", &[Any], CHANNELS),
    Recipe::with(
        "encoder.conv2.weight",
        "a.conv1d.2.weight",
        &[Any, Any, Any],
        IN_F32,
    ),
    Recipe::with("encoder.conv2.bias", "a.conv1d.2.bias", &[Any], CHANNELS),
    Recipe::rename("encoder.layer_norm", "a.post_ln", &[Any]),
    Recipe::with(
        "encoder.down_sample_layer.0",
        "a.downsample.conv",
        &[Any, Any, Any],
        IN_F32,
    ),
    Recipe::rename("encoder.down_sample_norm", "a.downsample.norm", &[Any]),
];

macro_rules! audio {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(
            concat!("encoder.layers.{}.", $from),
            concat!("a.blk.{}.", $to),
            $dims,
        )
    };
}

const AUDIO_LAYERS: &[Recipe] = &[
    audio!("self_attn.q_proj", "attn_q", &[Any, Any]),
    audio!("self_attn.k_proj", "attn_k", &[Any, Any]),
    audio!("self_attn.v_proj", "attn_v", &[Any, Any]),
    audio!("self_attn.out_proj", "attn_out", &[Any, Any]),
    audio!("self_attn_layer_norm", "ln1", &[Any]),
    audio!("final_layer_norm", "ln2", &[Any]),
    audio!("fc1", "ffn_up", &[Any, Any]),
    audio!("fc2", "ffn_down", &[Any, Any]),
];

/// The number of codebooks, and that of entries of the largest.
const BOOKS: Size = Size::Computed(|config| Ok(super::indices(config, ENTRIES)?.len() as u64));
const MOST_ENTRIES: Size = Size::Computed(|config| {
    let entries = super::indices(config, ENTRIES)?.into_iter();
    Ok(entries.max().unwrap_or(0).into())
});
/// The number of tables of embeddings.
const CHANNEL_COUNT: Size =
    Size::Computed(|config| local_u32(config, "audio_channels").map(u64::from));

const CODEBOOKS: &[Recipe] = &[
    Recipe::with(
        "encoder.quantizer.vq.{}.layers.{}._codebook.embed",
        "a.rvq.codebook.weight",
        &[Any, Any],
        &[Pad(MOST_ENTRIES), Stack(BOOKS), Cast(GgmlType::F32)],
    )
    .all_rows_to(ENTRIES),
    Recipe::with(
        "speech_embeddings.{}.{}.weight",
        "mm.a.code_embd.weight",
        &[Any, Any],
        &[Stack(CHANNEL_COUNT), Cast(GgmlType::F32)],
    ),
];

macro_rules! local {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(
            concat!("audio_encoder.input_local_transformer.layers.{}.", $from),
            concat!("mm.a.local_blk.{}.", $to),
            $dims,
        )
    };
}

const LOCAL_LAYERS_OF_AUDIO: &[Recipe] = &[
    local!("self_attn.q_proj", "attn_q", &[Any, Any]),
    local!("self_attn.k_proj", "attn_k", &[Any, Any]),
    local!("self_attn.v_proj", "attn_v", &[Any, Any]),
    local!("self_attn.o_proj", "attn_out", &[Any, Any]),
    local!("mlp.gate_proj", "ffn_gate", &[Any, Any]),
    local!("mlp.up_proj", "ffn_up", &[Any, Any]),
    local!("mlp.down_proj", "ffn_down", &[Any, Any]),
    local!("input_layernorm", "ln1", &[Any]),
    local!("post_attention_layernorm", "ln2", &[Any]),
];

const MATRICES: &[Recipe] = &[
    Recipe::rename(
        "audio_encoder.input_local_transformer.norm",
        "mm.a.local_norm",
        &[Any],
    ),
    Recipe::rename(
        "audio_encoder.projection.mlp.0.weight",
        "mm.a.mlp.1.weight",
        &[Any, Any],
    ),
    Recipe::rename(
        "audio_encoder.projection.mlp.2.weight",
        "mm.a.mlp.2.weight",
        &[Any, Any],
    ),
];
