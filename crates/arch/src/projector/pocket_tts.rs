//! The parts of Pocket TTS beside its text model: Mimi's encoder of a speaker's voice and its decoder
//! (Défossez et al. 2024), and the network that makes latents by flow matching. Its checkpoints have no config;
//! the sizes are those of the tensors.

use super::{
    EMPTY, Encoders, FLOW_BLOCKS, FLOW_TIMES, Fields, IN_F16, OUTER, Projector, TEXT_HIDDEN,
    WAVE_LAYERS, audio_u32, field, of, set, unless_text, whole,
};
use crate::Architecture;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::{self, Squeeze};
use crate::recipes::Size::{self, Any, Number};
use crate::recipes::{Input, Output, Recipe};
use quantier_gguf::gguf::Value;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

pub(super) static POCKET_TTS: Projector = Projector {
    architecture: Architecture {
        classes: &["PocketTTSModel"],
        parameters: &[KEYS],
        tensors: &[
            FLOW,
            MIMI,
            ENCODER_LAYERS,
            DECODER_LAYERS,
            ENCODER,
            DECODER,
            OTHERS,
        ],
        decoder: Decoder {
            needs: Needs::WEIGHTS,
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            let layers = field(&parts.audio, "num_hidden_layers").cloned();
            let blocks = parts.outer.get(FLOW_BLOCKS).cloned();
            set(&mut parts.audio, WAVE_LAYERS, layers);
            set(
                &mut parts.audio,
                FLOW_BLOCKS,
                blocks.unwrap_or(DEFAULT_BLOCKS.into()),
            );
            set(&mut parts.audio, FLOW_TIMES, TIMES);
            whole(&parts.audio, "hidden_size").map(|_| ())
        },
        ..Encoders::AUDIO
    },
    name: |_, name| unless_text(name),
};

/// The times between which a latent flows, and the blocks of the network that every released model has.
const TIMES: u32 = 2;
const DEFAULT_BLOCKS: u32 = 6;
/// The length of a head of every released model.
const HEAD: u64 = 64;

/// The config of a checkpoint without one, by the shapes of its tensors; `None` if it is of another model.
pub(super) fn config(shapes: &BTreeMap<&str, &[u64]>) -> Option<Fields> {
    const MIMI_LAYERS: &str = "mimi.encoder_transformer.transformer.layers.";
    const FLOW: &str = "flow_lm.flow_net.res_blocks.";
    let first = |name: &str| shapes.get(name).and_then(|shape| shape.first()).copied();
    let layers = |prefix: &str, end: &str| {
        let names = shapes
            .keys()
            .filter_map(|name| name.strip_prefix(prefix)?.strip_suffix(end));
        names.filter(|number| number.parse::<u32>().is_ok()).count()
    };
    shapes.get("flow_lm.bos_emb")?;
    let hidden = *shapes.get("flow_lm.conditioner.embed.weight")?.get(1)?;
    let audio_hidden = first(&format!("{MIMI_LAYERS}0.norm1.weight"))?;
    let config = json!({
        "architectures": POCKET_TTS.architecture.classes,
        "model_type": "pockettts",
        "hidden_size": hidden,
        FLOW_BLOCKS: layers(FLOW, ".in_ln.weight"),
        "audio_config": {
            "num_hidden_layers": layers(MIMI_LAYERS, ".norm1.weight"),
            "hidden_size": audio_hidden,
            "intermediate_size": first(&format!("{MIMI_LAYERS}0.linear1.weight"))?,
            "num_attention_heads": audio_hidden / HEAD,
        },
    });
    match config {
        Json::Object(fields) => Some(fields),
        _ => None,
    }
}

const KEYS: &[Parameter] = &[
    Parameter::FileType,
    Parameter::Computed(|config, keys| {
        let hidden = Value::U32(config.u32(&[TEXT_HIDDEN])?);
        let number = |name: &str| audio_u32(config, &[name]).map(Value::U32);
        let lengths = |prefix: &str| {
            Ok::<_, String>([
                (
                    format!("{prefix}.block_count"),
                    number("num_hidden_layers")?,
                ),
                (format!("{prefix}.embedding_length"), number("hidden_size")?),
                (
                    format!("{prefix}.feed_forward_length"),
                    number("intermediate_size")?,
                ),
                (
                    format!("{prefix}.attention.head_count"),
                    number("num_attention_heads")?,
                ),
                (
                    format!("{prefix}.attention.layer_norm_epsilon"),
                    Value::F32(1e-5),
                ),
            ])
        };
        keys.set("has_audio_encoder", Value::Bool(true));
        keys.set("audio.projector_type", Value::str("pockettts_spkenc"));
        keys.set("audio.projection_dim", hidden.clone());
        for (key, value) in lengths("audio")? {
            keys.set(&key, value);
        }
        // Audio as it is.
        keys.set("audio.num_mel_bins", Value::U32(1));
        keys.set("has_gen_audio_encoder", Value::Bool(true));
        keys.set("gen.audio.projector_type", Value::str("pockettts_gen"));
        keys.set("gen.audio.projection_dim", hidden);
        let [layers, embedding, network, heads, epsilon] = lengths("gen.audio")?;
        for (key, value) in [embedding, network, layers, heads, epsilon] {
            keys.set(&key, value);
        }
        let directory = of(config, OUTER, super::DIRECTORY)?.and_then(Json::as_str);
        if let Some(directory) = directory.filter(|name| !name.is_empty()) {
            keys.set("gen.audio.model_variant", Value::str(directory.to_owned()));
        }
        Ok(())
    }),
];

macro_rules! flow {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(concat!("flow_lm.", $from), concat!("a.", $to), $dims)
    };
}

const FLOW: &[Recipe] = &[
    flow!("speaker_proj_weight", "speaker_proj.weight", &[Any, Any]),
    flow!(
        "input_linear.weight",
        "gen.input_linear.weight",
        &[Any, Any]
    ),
    flow!("emb_mean", "gen.emb_mean", &[Any]),
    flow!("emb_std", "gen.emb_std", &[Any]),
    flow!("out_eos", "gen.out_eos", &[Any, Any]),
    flow!("flow_net.input_proj", "gen.flow.input_proj", &[Any, Any]),
    flow!("flow_net.cond_embed", "gen.flow.cond_embd", &[Any, Any]),
    flow!(
        "flow_net.final_layer.linear",
        "gen.flow.final.proj",
        &[Any, Any]
    ),
    flow!(
        "flow_net.final_layer.adaLN_modulation.1",
        "gen.flow.final.ada",
        &[Any, Any]
    ),
    flow!(
        "flow_net.time_embed.{}.freqs",
        "gen.flow.time.{}.freqs",
        &[Any]
    ),
    flow!(
        "flow_net.time_embed.{}.mlp.0",
        "gen.flow.time.{}.up",
        &[Any, Any]
    ),
    flow!(
        "flow_net.time_embed.{}.mlp.2",
        "gen.flow.time.{}.down",
        &[Any, Any]
    ),
    flow!(
        "flow_net.time_embed.{}.mlp.3.alpha",
        "gen.flow.time.{}.norm",
        &[Any]
    ),
    flow!(
        "flow_net.res_blocks.{}.in_ln",
        "gen.flow.blk.{}.norm",
        &[Any]
    ),
    flow!(
        "flow_net.res_blocks.{}.mlp.0",
        "gen.flow.blk.{}.up",
        &[Any, Any]
    ),
    flow!(
        "flow_net.res_blocks.{}.mlp.2",
        "gen.flow.blk.{}.down",
        &[Any, Any]
    ),
    flow!(
        "flow_net.res_blocks.{}.adaLN_modulation.1",
        "gen.flow.blk.{}.ada",
        &[Any, Any]
    ),
];

const MIMI: &[Recipe] = &[
    Recipe::with(
        "mimi.downsample.conv.conv.weight",
        "a.downsample.conv.weight",
        &[Any, Any, Any],
        IN_F16,
    ),
    Recipe::with(
        "mimi.upsample.convtr.convtr.weight",
        "a.gen.wav.upsample.weight",
        &[Any, Any, Any],
        IN_F16,
    ),
    Recipe::with(
        "mimi.quantizer.output_proj.weight",
        "a.gen.wav.quant_out.weight",
        &[Any, Any, Number(1)],
        &[Squeeze(2)],
    ),
];

/// The rows of queries, of keys and of values.
const THIRD: Size = Size::Computed(|config| audio_u32(config, &["hidden_size"]).map(u64::from));
const THIRDS: &[Size] = &[THIRD, THIRD, THIRD];

/// The recipes of the layers beside Mimi's encoder or decoder, by the prefixes of their names.
macro_rules! transformer {
    ($from:literal, $to:literal) => {
        &[
            Recipe::new(
                &[Input::new(
                    concat!($from, "self_attn.in_proj.weight"),
                    &[Any, Any],
                )],
                &[
                    Output::new(concat!($to, "attn_q.weight"), &[Op::part(0, THIRDS, 0)]),
                    Output::new(concat!($to, "attn_k.weight"), &[Op::part(0, THIRDS, 1)]),
                    Output::new(concat!($to, "attn_v.weight"), &[Op::part(0, THIRDS, 2)]),
                ],
            ),
            transformer!($from, $to, "self_attn.out_proj", "attn_out", &[Any, Any]),
            transformer!($from, $to, "norm1", "ln1", &[Any]),
            transformer!($from, $to, "norm2", "ln2", &[Any]),
            transformer!($from, $to, "linear1", "ffn_up", &[Any, Any]),
            transformer!($from, $to, "linear2", "ffn_down", &[Any, Any]),
            transformer!($from, $to, "layer_scale_1.scale", "ls1.weight", &[Any]),
            transformer!($from, $to, "layer_scale_2.scale", "ls2.weight", &[Any]),
        ]
    };
    ($from:literal, $to:literal, $own:literal, $name:literal, $dims:expr) => {
        Recipe::rename(concat!($from, $own), concat!($to, $name), $dims)
    };
}

const ENCODER_LAYERS: &[Recipe] = transformer!(
    "mimi.encoder_transformer.transformer.layers.{}.",
    "a.blk.{}."
);
const DECODER_LAYERS: &[Recipe] = transformer!(
    "mimi.decoder_transformer.transformer.layers.{}.",
    "a.gen.wav.tfm.blk.{}."
);

/// Convolutions of SEANet, by their numbers among all modules: the weight of each, and its bias.
macro_rules! seanet {
    ($($from:literal => $to:literal,)*) => {
        &[$(
            Recipe::with(
                concat!("mimi.", $from, ".*.weight"),
                concat!("a.", $to, ".weight"),
                &[Any, Any, Any],
                IN_F16,
            ),
            Recipe::rename(
                concat!("mimi.", $from, ".*.bias"),
                concat!("a.", $to, ".bias"),
                &[Any],
            ),
        )*]
    };
}

/// SEANet's ends, and in every stage, a residual unit of two convolutions and one that changes the number of
/// samples.
const ENCODER: &[Recipe] = seanet! {
    "encoder.model.0" => "seanet.conv_in",
    "encoder.model.1.block.1" => "seanet.blk.0.res_conv1",
    "encoder.model.1.block.3" => "seanet.blk.0.res_conv2",
    "encoder.model.3" => "seanet.blk.0.scale_conv",
    "encoder.model.4.block.1" => "seanet.blk.1.res_conv1",
    "encoder.model.4.block.3" => "seanet.blk.1.res_conv2",
    "encoder.model.6" => "seanet.blk.1.scale_conv",
    "encoder.model.7.block.1" => "seanet.blk.2.res_conv1",
    "encoder.model.7.block.3" => "seanet.blk.2.res_conv2",
    "encoder.model.9" => "seanet.blk.2.scale_conv",
    "encoder.model.11" => "seanet.conv_out",
};

/// As the encoder, but the number of samples changes first.
const DECODER: &[Recipe] = seanet! {
    "decoder.model.0" => "gen.wav.seanet.conv_in",
    "decoder.model.2" => "gen.wav.seanet.blk.0.scale_conv",
    "decoder.model.3.block.1" => "gen.wav.seanet.blk.0.res_conv1",
    "decoder.model.3.block.3" => "gen.wav.seanet.blk.0.res_conv2",
    "decoder.model.5" => "gen.wav.seanet.blk.1.scale_conv",
    "decoder.model.6.block.1" => "gen.wav.seanet.blk.1.res_conv1",
    "decoder.model.6.block.3" => "gen.wav.seanet.blk.1.res_conv2",
    "decoder.model.8" => "gen.wav.seanet.blk.2.scale_conv",
    "decoder.model.9.block.1" => "gen.wav.seanet.blk.2.res_conv1",
    "decoder.model.9.block.3" => "gen.wav.seanet.blk.2.res_conv2",
    "decoder.model.11" => "gen.wav.seanet.conv_out",
};

/// The text model, and what nothing reads.
const OTHERS: &[Recipe] = &[Recipe::skip("*")];
