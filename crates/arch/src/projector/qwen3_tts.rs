//! The parts of Qwen3-TTS beside its text model: an encoder of a speaker's voice (ECAPA-TDNN, Desplanques et
//! al. 2020), the predictor of codes, and in a checkpoint of its own, the decoder from codes to audio.

use super::{
    Beside, BesideOrder, CODE_LAYERS, DAC_BLOCKS, EMPTY, Encoders, IN_F16, IN_F32, OUTER,
    Projector, TEXT_HIDDEN, UPSAMPLING, WAVE_LAYERS, of, set,
};
use crate::Architecture;
use crate::Config;
use crate::config::Result;
use crate::decoder::{Decoder, Needs};
use crate::parameters::{Keys, Parameter};
use crate::recipes::Op::{self, Squeeze, Stack};
use crate::recipes::Size::{Any, Number};
use crate::recipes::{Input, Output, Recipe, Size, When};
use quantier_gguf::gguf::Value;
use serde_json::Value as Json;

pub(super) static QWEN3_TTS: Projector = Projector {
    architecture: Architecture {
        classes: &["Qwen3TTSForConditionalGeneration"],
        parameters: &[KEYS],
        tensors: &[
            QUANTIZERS,
            MORE_CODEBOOKS,
            FRAMES,
            WAVE_LAYERS_OF_DECODER,
            UPSAMPLERS,
            DAC_ENTRY,
            DAC,
            DAC_END,
            OTHERS,
            CODES,
            CODE_LAYERS_OF_PREDICTOR,
            SPEAKER,
        ],
        decoder: Decoder {
            needs: Needs {
                optional: &["a.gen.code.proj_in"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        audio: &["speaker_encoder_config"],
        beside: Some(Beside {
            dir: DECODER,
            order: BesideOrder::Recipes,
        }),
        complete: |parts| {
            let talker = parts.outer.get(TALKER);
            let hidden = talker.and_then(|talker| talker.get("hidden_size")).cloned();
            let codes = talker.and_then(|talker| talker.get(PREDICTOR)?.get("num_hidden_layers"));
            let codes = codes.cloned();
            let wave = parts
                .outer
                .get(DECODER)
                .and_then(|all| all.get("decoder_config"));
            let wave = wave.ok_or_else(|| format!("'decoder_config' is missing in {DECODER}"))?;
            let count = |name: &str| {
                let list = wave.get(name).and_then(Json::as_array);
                let list = list.ok_or_else(|| format!("'{name}' is missing in {DECODER}"))?;
                Ok::<_, String>(list.len())
            };
            let (upsampling, blocks) = (count("upsampling_ratios")?, count("upsample_rates")?);
            if blocks != usize::from(BLOCKS_OF_DAC) {
                return Err(format!(
                    "'upsample_rates' in {DECODER} has {blocks} numbers; llama.cpp runs {BLOCKS_OF_DAC}"
                ));
            }
            let layers = wave.get("num_hidden_layers").cloned();
            let audio = &mut parts.audio;
            // The first stage is a convolution.
            set(audio, "n_layers", STAGES_OF_SPEAKER);
            set(audio, CODE_LAYERS, codes);
            set(audio, WAVE_LAYERS, layers);
            set(audio, UPSAMPLING, upsampling);
            set(audio, DAC_BLOCKS, blocks);
            set(audio, TEXT_HIDDEN, hidden);
            Ok(())
        },
        ..Encoders::AUDIO
    },
    name: |_, name| {
        let within = name
            .strip_prefix(DECODER)
            .and_then(|name| name.strip_prefix('/'));
        let Some(within) = within else {
            const CODES: &str = "talker.code_predictor.";
            let is_own = name.starts_with("speaker_encoder.")
                || name.starts_with(CODES)
                || name == "talker.model.codec_embedding.weight";
            let name = is_own.then(|| name.to_owned())?;
            // Tables and matrices of codes count as tensors of one layer.
            return Some(match name.strip_prefix(CODES) {
                Some(rest) if rest.starts_with("lm_head.") => {
                    name.replace("lm_head.", "lm_head.0.")
                }
                Some(_) => name.replace("codec_embedding.", "codec_embedding.0."),
                None => name,
            });
        };
        // The blocks of the decoder stand between its first convolution and its last.
        if let Some(rest) = within.strip_prefix("decoder.decoder.") {
            let (number, rest) = rest.split_once('.')?;
            let block = number.parse::<u8>().ok()?.checked_sub(1);
            let block = block.filter(|block| *block < BLOCKS_OF_DAC);
            return Some(match block {
                Some(block) => format!("decoder.blocks.{block}.{rest}"),
                None => within.to_owned(),
            });
        }
        let is_own = within.starts_with("decoder.");
        is_own.then(|| within.replace("rvq_rest.vq.layers.", "rvq_rest.vq.0.layers."))
    },
};

/// The directory of the decoder of audio.
const DECODER: &str = "speech_tokenizer";
/// The fields of the text model, and in them those of the predictor of codes.
const TALKER: &str = "talker_config";
const PREDICTOR: &str = "code_predictor_config";
/// The stages of the speaker's encoder.
const STAGES_OF_SPEAKER: u32 = 4;
/// The blocks of the decoder (DAC, Kumar et al. 2023), of which llama.cpp runs as many.
const BLOCKS_OF_DAC: u8 = 4;
/// The codebooks behind the first.
const CODEBOOKS: Size = Number(15);

/// Sets whole numbers.
fn set_constants(keys: &mut Keys, numbers: &[(&str, u32)]) {
    for (key, number) in numbers {
        keys.set(key, Value::U32(*number));
    }
}

const KEYS: &[Parameter] = &[
    Parameter::FileType,
    Parameter::Computed(|config, keys| {
        let hidden = config.u32(&[TEXT_HIDDEN])?;
        keys.set("has_audio_encoder", Value::Bool(true));
        keys.set("audio.projector_type", Value::str("qwen3tts_spkenc"));
        // Those of no attention, which the encoder does not have, stand for llama.cpp to load it.
        set_constants(
            keys,
            &[
                ("audio.projection_dim", hidden),
                ("audio.num_mel_bins", 128),
                ("audio.block_count", STAGES_OF_SPEAKER - 1),
                ("audio.embedding_length", 1536),
                ("audio.attention.head_count", 1),
                ("audio.feed_forward_length", 1536),
            ],
        );
        keys.set("audio.attention.layer_norm_epsilon", Value::F32(1e-5));
        keys.set("has_gen_audio_encoder", Value::Bool(true));
        keys.set("gen.audio.projector_type", Value::str("qwen3tts_gen"));
        set_constants(keys, &[("gen.audio.projection_dim", hidden)]);
        set_predictor(config, keys)
    }),
];

/// Sets the sizes of the predictor of codes.
fn set_predictor(config: &Config, keys: &mut Keys) -> Result<()> {
    let fields = of(config, OUTER, TALKER)?.and_then(|talker| talker.get(PREDICTOR));
    let field = |name: &str| {
        let value = fields.and_then(|fields| fields.get(name));
        value.ok_or_else(|| format!("'{name}' is missing in '{PREDICTOR}'"))
    };
    for (key, name) in [
        ("gen.audio.embedding_length", "hidden_size"),
        ("gen.audio.feed_forward_length", "intermediate_size"),
        ("gen.audio.block_count", "num_hidden_layers"),
        ("gen.audio.attention.head_count", "num_attention_heads"),
        ("gen.audio.attention.head_count_kv", "num_key_value_heads"),
    ] {
        let number = field(name)?.as_u64();
        let number = number.and_then(|number| u32::try_from(number).ok());
        let number =
            number.ok_or_else(|| format!("'{name}' in '{PREDICTOR}' is no whole number"))?;
        keys.set(key, Value::U32(number));
    }
    const EPSILON: &str = "rms_norm_eps";
    let epsilon = field(EPSILON)?.as_f64();
    let epsilon = epsilon.ok_or_else(|| format!("'{EPSILON}' in '{PREDICTOR}' is no number"))?;
    keys.set(
        "gen.audio.attention.layer_norm_epsilon",
        Value::F32(epsilon as f32),
    );
    Ok(())
}

macro_rules! quantizer {
    ($from:literal, $to:literal) => {
        Recipe::with(
            concat!("decoder.quantizer.", $from, ".weight"),
            concat!("a.gen.wav.quant.", $to, ".weight"),
            &[Any, Any, Number(1)],
            &[Squeeze(2)],
        )
    };
}

macro_rules! codebook {
    ($from:literal, $to:literal, $ops:expr) => {
        Recipe::new(
            &[
                Input::new(
                    concat!("decoder.quantizer.", $from, "._codebook.embedding_sum"),
                    &[Any, Any],
                ),
                Input::new(
                    concat!("decoder.quantizer.", $from, "._codebook.cluster_usage"),
                    &[Any],
                ),
            ],
            &[Output::of(
                &[0, 1],
                concat!("a.gen.wav.quant.", $to, ".codebook.weight"),
                $ops,
            )],
        )
    };
}

macro_rules! convolution {
    ($from:expr, $to:expr, $ops:expr) => {
        Recipe::with(
            concat!("decoder.", $from, ".weight"),
            concat!("a.gen.wav.", $to, ".weight"),
            &[Any, Any, Any],
            $ops,
        )
    };
    ($from:expr, $to:expr) => {
        Recipe::rename(
            concat!("decoder.", $from, ".bias"),
            concat!("a.gen.wav.", $to, ".bias"),
            &[Any],
        )
    };
}

macro_rules! wave {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(
            concat!("decoder.", $from),
            concat!("a.gen.wav.", $to),
            $dims,
        )
    };
}

const QUANTIZERS: &[Recipe] = &[
    quantizer!("rvq_first.input_proj", "first.in_proj"),
    quantizer!("rvq_first.output_proj", "first.out_proj"),
    codebook!("rvq_first.vq.layers.0", "first", &[Op::Averages]),
    quantizer!("rvq_rest.input_proj", "rest.in_proj"),
    quantizer!("rvq_rest.output_proj", "rest.out_proj"),
];

/// They count as tensors of one layer: behind those of none.
const MORE_CODEBOOKS: &[Recipe] = &[codebook!(
    "rvq_rest.vq.{}.layers.{}",
    "rest",
    &[Op::Averages, Stack(CODEBOOKS)]
)];

const FRAMES: &[Recipe] = &[
    convolution!("pre_conv.conv", "pre_conv", IN_F16),
    convolution!("pre_conv.conv", "pre_conv"),
    wave!("pre_transformer.input_proj", "tfm.in_proj", &[Any, Any]),
    wave!("pre_transformer.output_proj", "tfm.out_proj", &[Any, Any]),
    wave!("pre_transformer.norm", "tfm.output_norm", &[Any]),
];

macro_rules! transformer {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(
            concat!("decoder.pre_transformer.layers.{}.", $from),
            concat!("a.gen.wav.tfm.blk.{}.", $to, ".weight"),
            $dims,
        )
    };
}

const WAVE_LAYERS_OF_DECODER: &[Recipe] = &[
    transformer!("input_layernorm.weight", "ln1", &[Any]),
    transformer!("self_attn.q_proj.weight", "attn_q", &[Any, Any]),
    transformer!("self_attn.k_proj.weight", "attn_k", &[Any, Any]),
    transformer!("self_attn.v_proj.weight", "attn_v", &[Any, Any]),
    transformer!("self_attn.o_proj.weight", "attn_out", &[Any, Any]),
    transformer!("self_attn_layer_scale.scale", "ls1", &[Any]),
    transformer!("post_attention_layernorm.weight", "ln2", &[Any]),
    transformer!("mlp.gate_proj.weight", "ffn_gate", &[Any, Any]),
    transformer!("mlp.up_proj.weight", "ffn_up", &[Any, Any]),
    transformer!("mlp.down_proj.weight", "ffn_down", &[Any, Any]),
    transformer!("mlp_layer_scale.scale", "ls2", &[Any]),
];

const UPSAMPLERS: &[Recipe] = &[
    convolution!("upsample.{}.0.conv", "up.blk.{}.conv", IN_F32),
    convolution!("upsample.{}.0.conv", "up.blk.{}.conv"),
    convolution!("upsample.{}.1.dwconv.conv", "up.blk.{}.dwconv", IN_F16),
    convolution!("upsample.{}.1.dwconv.conv", "up.blk.{}.dwconv"),
    wave!("upsample.{}.1.norm", "up.blk.{}.norm", &[Any]),
    wave!("upsample.{}.1.pwconv1", "up.blk.{}.pw1", &[Any, Any]),
    wave!("upsample.{}.1.pwconv2", "up.blk.{}.pw2", &[Any, Any]),
    wave!("upsample.{}.1.gamma", "up.blk.{}.gamma", &[Any]),
];

/// The frequencies of an activation, and the factors of its sines (SnakeBeta, Lee et al. 2023).
macro_rules! snake {
    ($from:expr, $to:expr) => {
        Recipe::with(
            concat!("decoder.", $from, ".alpha"),
            concat!("a.gen.wav.dac.", $to, ".alpha"),
            &[Any],
            &[Op::SnakeFrequency],
        )
    };
    ($from:expr, $to:expr, factor) => {
        Recipe::with(
            concat!("decoder.", $from, ".beta"),
            concat!("a.gen.wav.dac.", $to, ".beta"),
            &[Any],
            &[Op::SnakeFactor],
        )
    };
}

const DAC_ENTRY: &[Recipe] = &[
    convolution!("decoder.0.conv", "dac.entry", IN_F16),
    convolution!("decoder.0.conv", "dac.entry"),
];

/// A block's activation and convolution, and its residual units by their modules: two activations, each with a
/// convolution.
macro_rules! dac {
    ($($module:literal => $unit:literal),*) => {
        &[
            snake!("blocks.{}.block.0", "blk.{}.snake"),
            snake!("blocks.{}.block.0", "blk.{}.snake", factor),
            convolution!("blocks.{}.block.1.conv", "dac.blk.{}.conv", IN_F32),
            convolution!("blocks.{}.block.1.conv", "dac.blk.{}.conv"),
            $(
                dac!(act $module, $unit, "1"),
                dac!(act $module, $unit, "1", factor),
                dac!(conv $module, $unit, "1", IN_F16),
                dac!(conv $module, $unit, "1"),
                dac!(act $module, $unit, "2"),
                dac!(act $module, $unit, "2", factor),
                dac!(conv $module, $unit, "2", IN_F16),
                dac!(conv $module, $unit, "2"),
            )*
        ]
    };
    (act $module:literal, $unit:literal, $number:literal $(, $factor:ident)?) => {
        snake!(
            concat!("blocks.{}.block.", $module, ".act", $number),
            concat!("blk.{}.res.", $unit, ".act", $number)
            $(, $factor)?
        )
    };
    (conv $module:literal, $unit:literal, $number:literal $(, $ops:expr)?) => {
        convolution!(
            concat!("blocks.{}.block.", $module, ".conv", $number, ".conv"),
            concat!("dac.blk.{}.res.", $unit, ".conv", $number)
            $(, $ops)?
        )
    };
}

const DAC: &[Recipe] = dac!("2" => "0", "3" => "1", "4" => "2");

const DAC_END: &[Recipe] = &[
    snake!("decoder.5", "post_snake"),
    snake!("decoder.5", "post_snake", factor),
    convolution!("decoder.6.conv", "dac.post_conv", IN_F16),
    convolution!("decoder.6.conv", "dac.post_conv"),
];

/// What only training reads.
const OTHERS: &[Recipe] = &[Recipe::skip("decoder.*")];

const CODES: &[Recipe] = &[
    Recipe::rename(
        "talker.model.codec_embedding.weight",
        "a.gen.code.out_embd.weight",
        &[Any, Any],
    ),
    Recipe::rename(
        "talker.code_predictor.model.norm.weight",
        "a.gen.code.output_norm.weight",
        &[Any],
    ),
    Recipe::rename(
        "talker.code_predictor.small_to_mtp_projection",
        "a.gen.code.proj_in",
        &[Any, Any],
    ),
    Recipe::with(
        "talker.code_predictor.model.codec_embedding.{}.{}.weight",
        "a.gen.code.embd.weight",
        &[Any, Any],
        &[Stack(CODEBOOKS)],
    ),
    Recipe::with(
        "talker.code_predictor.lm_head.{}.{}.weight",
        "a.gen.code.head.weight",
        &[Any, Any],
        &[Stack(CODEBOOKS)],
    ),
];

macro_rules! code {
    ($from:literal, $to:literal, $dims:expr) => {
        code!($from, $to, $dims, &[])
    };
    ($from:literal, $to:literal, $dims:expr, $ops:expr) => {
        Recipe::with(
            concat!("talker.code_predictor.model.layers.{}.", $from, ".weight"),
            concat!("a.gen.code.blk.{}.", $to, ".weight"),
            $dims,
            $ops,
        )
    };
}

const CODE_LAYERS_OF_PREDICTOR: &[Recipe] = &[
    code!("input_layernorm", "ln1", &[Any]),
    code!("self_attn.q_proj", "attn_q", &[Any, Any]),
    code!("self_attn.q_norm", "attn_q_norm", &[Any]),
    code!("self_attn.k_proj", "attn_k", &[Any, Any]),
    code!("self_attn.k_norm", "attn_k_norm", &[Any]),
    code!("self_attn.v_proj", "attn_v", &[Any, Any]),
    code!("self_attn.o_proj", "attn_out", &[Any, Any]),
    code!("post_attention_layernorm", "ln2", &[Any]),
    code!("mlp.gate_proj", "ffn_gate", &[Any, Any]),
    code!("mlp.up_proj", "ffn_up", &[Any, Any]),
    // Its inputs are above the range of F16.
    code!("mlp.down_proj", "ffn_down", &[Any, Any], IN_F32),
];

macro_rules! speaker {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(concat!("speaker_encoder.", $from), $to, $dims)
    };
}

/// The stages behind the first, which is a convolution.
const BEHIND: When = When::Layers(|_, layer| layer > 0);

const SPEAKER: &[Recipe] = &[
    speaker!("blocks.0.conv", "a.conv1d.0", &[Any, Any, Any]),
    speaker!(
        "blocks.{}.tdnn1.conv",
        "a.blk.{}.conv_pw1",
        &[Any, Any, Any]
    )
    .when(BEHIND),
    speaker!(
        "blocks.{}.tdnn2.conv",
        "a.blk.{}.conv_pw2",
        &[Any, Any, Any]
    )
    .when(BEHIND),
    speaker!(
        "blocks.{}.res2net_block.blocks.{}.conv",
        "a.blk.{}.res2.{}",
        &[Any, Any, Any]
    )
    .when(BEHIND),
    speaker!(
        "blocks.{}.se_block.conv1",
        "a.blk.{}.se_conv1",
        &[Any, Any, Any]
    )
    .when(BEHIND),
    speaker!(
        "blocks.{}.se_block.conv2",
        "a.blk.{}.se_conv2",
        &[Any, Any, Any]
    )
    .when(BEHIND),
    speaker!("mfa.conv", "a.conv_out", &[Any, Any, Any]),
    speaker!("asp.conv", "a.asp_attn", &[Any, Any, Any]),
    speaker!("asp.tdnn.conv", "a.asp_tdnn", &[Any, Any, Any]),
    speaker!("fc", "mm.a.fc", &[Any, Any, Any]),
];
