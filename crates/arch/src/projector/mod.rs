//! Projectors: the encoder of images beside a text model, and the matrices from its outputs to the
//! text model's embeddings. llama.cpp reads them from a file of their own, of architecture `clip`.
//!
//! A projector is an [`Architecture`] whose config is the encoder's, with the whole config.json and
//! the settings of the preprocessor as fields (see [`Config::of_projector`]). Models that hear have
//! an encoder of audio, alone or beside that of images; its tensors begin with `a.`.

/// The recipe of a tensor of the encoder's layers, by the prefix of their names.
macro_rules! block {
    ($prefix:literal, $from:literal, $to:literal, $dims:expr) => {
        $crate::recipes::Recipe::rename(concat!($prefix, $from), concat!("v.blk.{}.", $to), $dims)
    };
}

/// The recipes of SigLIP's embeddings, which stay in F32, by the prefix of their names.
macro_rules! patches {
    ($prefix:literal) => {
        &[
            $crate::recipes::Recipe::with(
                concat!($prefix, "embeddings.patch_embedding"),
                "v.patch_embd",
                &[Hidden, Any, Any, Any],
                $crate::projector::IN_F32,
            ),
            $crate::recipes::Recipe::with(
                concat!($prefix, "embeddings.position_embedding"),
                "v.position_embd",
                &[Any, Hidden],
                $crate::projector::IN_F32,
            ),
        ]
    };
}

/// The recipe of two patches that follow each other in time, as two convolutions, by the name of their
/// weights.
macro_rules! two_patches {
    ($from:literal) => {
        $crate::recipes::Recipe::new(
            &[$crate::recipes::Input::new(
                $from,
                &[Hidden, Any, Number(2), Any, Any],
            )],
            &[
                $crate::recipes::Output::new(
                    "v.patch_embd.weight",
                    &[Op::part(2, &[Number(1), Any], 0), Squeeze(2), CastPlain],
                ),
                $crate::recipes::Output::new(
                    "v.patch_embd.weight.1",
                    &[Op::part(2, &[Number(1), Any], 1), Squeeze(2), CastPlain],
                ),
            ],
        )
    };
}

/// The recipes of attention and norms of layers in the names of Llama's, by their prefix.
macro_rules! llama_attention {
    ($prefix:literal) => {
        &[
            block!($prefix, "self_attn.q_proj", "attn_q", &[Hidden, Hidden]),
            block!($prefix, "self_attn.k_proj", "attn_k", &[Hidden, Hidden]),
            block!($prefix, "self_attn.v_proj", "attn_v", &[Hidden, Hidden]),
            block!($prefix, "self_attn.o_proj", "attn_out", &[Hidden, Hidden]),
            block!($prefix, "input_layernorm", "ln1", &[Hidden]),
            block!($prefix, "post_attention_layernorm", "ln2", &[Hidden]),
        ]
    };
}

/// The recipes of SigLIP's layers and last norm in the names of transformers, by their prefix.
macro_rules! siglip {
    ($prefix:literal) => {
        &[
            siglip!($prefix, "self_attn.q_proj", "attn_q", &[Hidden, Hidden]),
            siglip!($prefix, "self_attn.k_proj", "attn_k", &[Hidden, Hidden]),
            siglip!($prefix, "self_attn.v_proj", "attn_v", &[Hidden, Hidden]),
            siglip!($prefix, "self_attn.out_proj", "attn_out", &[Hidden, Hidden]),
            siglip!($prefix, "layer_norm1", "ln1", &[Hidden]),
            siglip!($prefix, "layer_norm2", "ln2", &[Hidden]),
            siglip!($prefix, "mlp.fc1", "ffn_up", &[FeedForward, Hidden]),
            siglip!($prefix, "mlp.fc2", "ffn_down", &[Hidden, FeedForward]),
            $crate::recipes::Recipe::rename(
                concat!($prefix, "post_layernorm"),
                "v.post_ln",
                &[Hidden],
            ),
        ]
    };
    ($prefix:literal, $from:literal, $to:literal, $dims:expr) => {
        $crate::recipes::Recipe::rename(
            concat!($prefix, "encoder.layers.{}.", $from),
            concat!("v.blk.{}.", $to),
            $dims,
        )
    };
}

mod cogvlm;
mod conformer;
mod deepseek;
mod dots;
mod dots3;
mod gemma;
mod gemma3n;
mod gemma4;
mod glm;
mod granite;
mod hunyuan;
mod internvl;
mod kimi;
mod lfm2;
mod llama4;
mod mimo;
mod minimax;
mod muse;
mod nemotron;
mod omni;
mod phi;
mod pixtral;
mod pocket_tts;
mod qwen;
mod qwen3_tts;
mod siglip;
mod smolvlm;
mod step3;
mod whisper;

use super::config::{BLOCKS, Result, wrong_kind};
use super::decoder::{Decoder, Needs};
use super::parameters::Keys;
use super::parameters::Parameter;
use super::recipes::{Op, Size};
use super::{Architecture, Config, defaults, nothing_generated};
use quantier_gguf::gguf::{Array, Value, ValueType};
use quantier_gguf::types::GgmlType;
use quantier_tokenizer::VocabKind;
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// Names of a projector's fields beside those of its encoder: the whole config.json, the settings
/// of the preprocessor, the fields of the encoder of audio, and the hidden size of the text model.
pub(crate) const OUTER: &str = "outer config";
pub(crate) const PREPROCESSOR: &str = "preprocessor config";
pub(crate) const AUDIO: &str = "audio config";
pub(crate) const TEXT_HIDDEN: &str = "hidden size of the text model";

/// Name of the field of the whole config with the name of the checkpoint's directory.
pub const DIRECTORY: &str = "directory";

/// Prefix of the names of tensors of an encoder of audio.
pub(crate) const OF_AUDIO: &str = "a.";

/// Layers beside those of the encoders of images and of audio, by prefixes of their tensors' names, and the fields of
/// their numbers.
pub(crate) const OTHER_LAYERS: [(&str, &str); 10] = [
    ("v.sam.blk.", SAM_LAYERS),
    ("v.proj_blk.", PROJECTIONS),
    ("mm.a.local_blk.", LOCAL_LAYERS),
    ("v.blk.{}.{}.", STAGES),
    ("a.gen.code.blk.", CODE_LAYERS),
    ("a.gen.wav.tfm.blk.", WAVE_LAYERS),
    ("a.gen.wav.up.blk.", UPSAMPLING),
    ("a.gen.wav.dac.blk.", DAC_BLOCKS),
    ("a.gen.flow.blk.", FLOW_BLOCKS),
    ("a.gen.flow.time.", FLOW_TIMES),
];

/// The number of layers of SAM's encoder (Kirillov et al. 2023).
const SAM_LAYERS: &str = "layers of SAM";
/// The number of projectors, each of one layer.
const PROJECTIONS: &str = "number of projectors";
/// The number of layers that embed the outputs of an encoder of audio.
const LOCAL_LAYERS: &str = "local layers";
/// The numbers of layers of a predictor of codes, and of those, of the stages and of the blocks of a decoder
/// from codes to audio.
const CODE_LAYERS: &str = "layers of codes";
const WAVE_LAYERS: &str = "layers of the decoder";
const UPSAMPLING: &str = "stages of the decoder";
const DAC_BLOCKS: &str = "blocks of the decoder";
/// The number of blocks of a network that makes latents, and of its times.
const FLOW_BLOCKS: &str = "blocks of the flow";
const FLOW_TIMES: &str = "times of the flow";
/// The number of stages, each of several blocks.
const STAGES: &str = "number of stages";

/// A projector.
pub struct Projector {
    /// Classes, keys and recipes.
    pub architecture: Architecture,
    /// The objects of config.json with the fields of its encoders.
    encoders: Encoders,
    /// The name of a checkpoint tensor within the projector; `None` for tensors of other parts.
    pub name: fn(&Config, &str) -> Option<String>,
}

/// The objects of config.json with the fields of encoders, by their paths.
#[derive(Clone, Copy)]
struct Encoders {
    /// The encoder of images; empty without one.
    vision: &'static [&'static str],
    /// The encoder of audio; empty without one.
    audio: &'static [&'static str],
    /// A part of the model in a checkpoint of its own.
    beside: Option<Beside>,
    /// Adds the fields that the reference derives from others.
    complete: fn(&mut Parts) -> Result<()>,
}

/// A second checkpoint in a directory of the first. Its config is a field of the whole config, under the
/// directory's name; the names of its tensors begin with that name and a slash.
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    /// The directory.
    pub dir: &'static str,
    /// The order of its tensors, which come before those of the first.
    pub order: BesideOrder,
}

/// The order of the tensors of a second checkpoint.
#[derive(Clone, Copy, Debug)]
pub enum BesideOrder {
    /// As their bytes are stored, and those with this part in their names behind the others.
    Stored {
        /// The part of a name.
        last: &'static str,
    },
    /// That of the recipes: by their table, by the layer, and by their place in the table.
    Recipes,
}

impl Encoders {
    /// Images alone.
    const VISION: Encoders = Encoders {
        vision: &["vision_config"],
        audio: &[],
        beside: None,
        complete: |_| Ok(()),
    };
    /// Audio alone.
    const AUDIO: Encoders = Encoders {
        vision: &[],
        audio: &["audio_config"],
        ..Encoders::VISION
    };
    /// Images and audio.
    const BOTH: Encoders = Encoders {
        audio: &["audio_config"],
        ..Encoders::VISION
    };
}

type Fields = Map<String, Json>;

/// What a projector's fields are made of.
pub(crate) struct Parts {
    /// The whole config.json.
    pub(crate) outer: Fields,
    /// The settings of the preprocessor.
    pub(crate) preprocessor: Fields,
    /// The fields of the encoder of images.
    pub(crate) vision: Option<Fields>,
    /// The fields of the encoder of audio.
    pub(crate) audio: Option<Fields>,
}

impl Parts {
    /// The parts of a projector, with defaults and derived fields.
    ///
    /// # Errors
    /// A missing encoder, and fields of the wrong kind. An encoder of audio beside one of images may
    /// be missing.
    pub(crate) fn of(projector: &Projector, outer: Fields, preprocessor: Fields) -> Result<Parts> {
        let Encoders {
            vision,
            audio,
            complete,
            ..
        } = projector.encoders;
        let object = |path: &[&str]| {
            let (first, rest) = path.split_first()?;
            let mut value = outer.get(*first)?;
            for name in rest {
                value = value.get(*name)?;
            }
            let mut fields = value
                .as_object()
                .filter(|fields| !fields.is_empty())?
                .clone();
            let completed = defaults::complete_encoder(&mut fields, &outer);
            Some(completed.map(|()| fields))
        };
        let mut parts = Parts {
            vision: object(vision).transpose()?,
            audio: object(audio).transpose()?,
            outer,
            preprocessor,
        };
        let missing = match (vision, audio) {
            ([_, ..], _) if parts.vision.is_none() => Some((vision, "images")),
            ([], [_, ..]) if parts.audio.is_none() => Some((audio, "audio")),
            _ => None,
        };
        if let Some((path, what)) = missing {
            return Err(format!(
                "'{}' is missing: the model has no encoder of {what}, and no projector",
                path.join(".")
            ));
        }
        complete(&mut parts)?;
        Ok(parts)
    }
}

/// Sets a field of an encoder.
fn set(part: &mut Option<Fields>, name: &str, value: impl Into<Json>) {
    if let Some(fields) = part {
        fields.insert(name.into(), value.into());
    }
}

/// Gives an encoder's own fields the names of other encoders' too: pairs of a name and the own one.
fn name_fields(part: &mut Option<Fields>, names: &[(&str, &str)]) {
    for (name, own) in names {
        let value = field(part, own).cloned();
        set(part, name, value);
    }
}

/// A field of an encoder, not null.
fn field<'p>(part: &'p Option<Fields>, name: &str) -> Option<&'p Json> {
    part.as_ref()?.get(name).filter(|value| !value.is_null())
}

/// A whole number in a field of an encoder.
///
/// # Errors
/// A value of another kind.
fn whole(part: &Option<Fields>, name: &str) -> Result<Option<u64>> {
    let value = field(part, name);
    let number = |value: &Json| {
        let number = value.as_u64();
        number.ok_or_else(|| wrong_kind(name, value, "a whole number"))
    };
    value.map(number).transpose()
}

/// The config.json of a model that has none, by the shapes of its tensors; `None` of other models.
pub fn config_by_shapes(shapes: &BTreeMap<&str, &[u64]>) -> Option<Map<String, Json>> {
    pocket_tts::config(shapes)
}

/// The name of a model's class: that of its encoder of images, if it has one of its own.
pub(crate) fn class(outer: &Fields) -> Option<String> {
    let first = |fields: &Fields| {
        let class = fields.get("architectures")?.get(0)?.as_str()?;
        Some(class.to_owned())
    };
    let vision = outer.get("vision_config").and_then(Json::as_object);
    vision.and_then(first).or_else(|| first(outer))
}

/// All projectors that can be converted.
pub static PROJECTORS: &[&Projector] = &[
    &gemma::GEMMA3,
    &pixtral::PIXTRAL,
    &qwen::QWEN2_VL,
    &qwen::QWEN2_5_VL,
    &qwen::QWEN3_VL,
    &smolvlm::SMOLVLM,
    &gemma4::GEMMA4,
    &gemma4::GEMMA4_UNIFIED,
    &internvl::INTERNVL,
    &lfm2::LFM2_VL,
    &glm::GLM4V,
    &glm::GLM5V,
    &kimi::KIMI_VL,
    &kimi::KIMI_K25,
    &muse::MUSE_GLIMMER,
    &llama4::LLAMA4,
    &whisper::VOXTRAL,
    &whisper::ULTRAVOX,
    &whisper::QWEN2_AUDIO,
    &whisper::AUDIO_FLAMINGO,
    &whisper::MERALION,
    &whisper::GLM_ASR,
    &conformer::LFM2_AUDIO,
    &conformer::GRANITE_SPEECH,
    &granite::GRANITE4_VISION,
    &cogvlm::COGVLM,
    &dots::DOTS_OCR,
    &hunyuan::HUNYUAN_VL,
    &siglip::JANUS_PRO,
    &siglip::YOUTU_VL,
    &siglip::PADDLEOCR_VL,
    &siglip::MINICPM_V,
    &pixtral::LIGHTON_OCR,
    &qwen::EXAONE,
    &qwen::LING3_VL,
    &deepseek::DEEPSEEK4_VISION,
    &deepseek::DEEPSEEK_OCR,
    &deepseek::UNLIMITED_OCR,
    &deepseek::DEEPSEEK_OCR2,
    &minimax::MINIMAX_M3,
    &step3::STEP3_VL,
    &phi::PHI4,
    &omni::QWEN2_5_OMNI,
    &omni::QWEN3_OMNI,
    &omni::QWEN3_ASR,
    &gemma3n::GEMMA3N,
    &nemotron::NEMOTRON_NANO_VL,
    &mimo::MIMO_V2,
    &dots3::DOTS3_NOTE,
    &qwen3_tts::QWEN3_TTS,
    &pocket_tts::POCKET_TTS,
];

/// A projector without keys and tensors; the others are given by their differences. llama.cpp's
/// decoders do not run it.
const EMPTY: Architecture = Architecture {
    classes: &[],
    name: "clip",
    vocabulary: VocabKind::Llama,
    parameters: &[],
    tensors: &[],
    generated: nothing_generated,
    decoder: Decoder {
        needs: Needs::WEIGHTS,
        ..Decoder::LLAMA
    },
};

impl Projector {
    /// The second checkpoint of such models.
    pub fn beside(&self) -> Option<Beside> {
        self.encoders.beside
    }

    /// The projector of a checkpoint, by its class.
    ///
    /// # Errors
    /// As [`Projector::refusal`], with the supported classes.
    pub fn of(outer: &Map<String, Json>) -> std::result::Result<&'static Projector, String> {
        Projector::find(outer).map_err(|refusal| {
            let all = PROJECTORS.iter();
            let known: Vec<_> = all.flat_map(|p| p.architecture.classes).copied().collect();
            format!("{refusal}; supported are {}", known.join(", "))
        })
    }

    /// The reason why a checkpoint's projector cannot be converted: a missing or unsupported class, by its
    /// name. None for supported classes.
    pub fn refusal(outer: &Map<String, Json>) -> Option<String> {
        Projector::find(outer).err()
    }

    fn find(outer: &Map<String, Json>) -> std::result::Result<&'static Projector, String> {
        let class = class(outer);
        let class = class.ok_or("field 'architectures' is missing or empty")?;
        let mut all = PROJECTORS.iter().copied();
        let found = all.find(|projector| projector.architecture.classes.contains(&&*class));
        found.ok_or_else(|| format!("the projector of class '{class}' is not supported"))
    }
}

/// The keys of all encoders of images, in the reference's order.
const COMMON: &[Parameter] = &[
    Parameter::FileType,
    Parameter::Computed(|_, keys| {
        keys.set("has_vision_encoder", Value::Bool(true));
        Ok(())
    }),
    Parameter::U32("vision.projection_dim", &[TEXT_HIDDEN]),
    Parameter::U32("vision.image_size", &["image_size"]),
    Parameter::U32("vision.patch_size", &["patch_size"]),
    Parameter::U32(
        "vision.embedding_length",
        &["hidden_size", "width", "vt_hidden_size"],
    ),
    Parameter::U32(
        "vision.feed_forward_length",
        &["intermediate_size", "vt_intermediate_size"],
    ),
    Parameter::U32("vision.block_count", BLOCKS),
    Parameter::U32(
        "vision.attention.head_count",
        &[
            "num_attention_heads",
            "num_heads",
            "heads",
            "vt_num_attention_heads",
        ],
    ),
    Parameter::Computed(|config, keys| {
        for (key, field) in [
            ("vision.image_mean", "image_mean"),
            ("vision.image_std", "image_std"),
        ] {
            let value = of(config, PREPROCESSOR, field)?.ok_or_else(|| {
                format!(
                    "'{field}' is neither in preprocessor_config.json nor in processor_config.json; download them \
                     again"
                )
            })?;
            keys.set(key, list(field, value)?);
        }
        Ok(())
    }),
];

/// The keys of all encoders of audio, in the reference's order.
const COMMON_AUDIO: Parameter = Parameter::Computed(|config, keys| {
    keys.set("has_audio_encoder", Value::Bool(true));
    let hidden = config.u32(&[TEXT_HIDDEN])?;
    keys.set("audio.projection_dim", Value::U32(hidden));
    for (key, names) in [
        ("audio.embedding_length", &["hidden_size"][..]),
        ("audio.feed_forward_length", &["intermediate_size"]),
        ("audio.block_count", BLOCKS),
        ("audio.attention.head_count", &["num_attention_heads"]),
    ] {
        keys.set(key, Value::U32(audio_u32(config, names)?));
    }
    Ok(())
});

/// A required whole number of the encoder of audio, under the first present name.
///
/// # Errors
/// A missing field, or a value that is not an integer.
pub(crate) fn audio_u32(config: &Config, names: &[&str]) -> Result<u32> {
    let fields = config.optional_object(AUDIO)?;
    let has = |name: &&&str| fields.is_some_and(|fields| fields.contains_key(**name));
    let name = names.iter().find(has);
    let number = name.map(|name| config.number_of(AUDIO, name)).transpose()?;
    number.flatten().ok_or_else(|| {
        format!(
            "the encoder of audio lacks the field '{}'",
            names.join("' or '")
        )
    })
}

/// Sets a whole number of the encoder of audio.
fn set_audio(config: &Config, keys: &mut Keys, key: &str, name: &str) -> Result<()> {
    keys.set(key, Value::U32(audio_u32(config, &[name])?));
    Ok(())
}

const EPSILON: &str = "vision.attention.layer_norm_epsilon";

/// Sets the epsilon of the norms of the encoder of images, or a default.
fn set_epsilon(config: &Config, keys: &mut Keys, name: &str, by_default: f64) -> Result<()> {
    let epsilon = config.optional_f64(&[name])?.unwrap_or(by_default);
    keys.set(EPSILON, Value::F32(epsilon as f32));
    Ok(())
}

/// Sets the epsilon of the norms of the encoder of audio, or a default.
fn set_audio_epsilon(config: &Config, keys: &mut Keys, by_default: f64) -> Result<()> {
    const NAME: &str = "layer_norm_eps";
    let epsilon = match of(config, AUDIO, NAME)? {
        Some(value) => value
            .as_f64()
            .ok_or_else(|| wrong_kind(NAME, value, "a number"))?,
        None => by_default,
    };
    keys.set(
        "audio.attention.layer_norm_epsilon",
        Value::F32(epsilon as f32),
    );
    Ok(())
}

/// Sets the activation of the encoder of images, which must be SiLU or GELU.
fn set_activation(config: &Config, keys: &mut Keys) -> Result<()> {
    let key = match config.get("hidden_act").and_then(Json::as_str) {
        Some("silu") => "use_silu",
        Some("gelu") => "use_gelu",
        other => {
            let other = other.unwrap_or("missing");
            return Err(format!(
                "'hidden_act' is {other}; llama.cpp runs silu and gelu"
            ));
        }
    };
    keys.set(key, Value::Bool(true));
    Ok(())
}

/// Sets the side of the squares of patches that are averaged, if it is not the usual one.
fn set_side(config: &Config, keys: &mut Keys) -> Result<()> {
    /// Side of the squares of patches that llama.cpp averages without the key.
    const USUAL: u64 = 4;
    const LENGTH: &str = "image_seq_length";
    let length = match of(config, PREPROCESSOR, LENGTH)? {
        Some(value) => value
            .as_u64()
            .ok_or_else(|| wrong_kind(LENGTH, value, "a whole number"))?,
        None => 256,
    };
    let patches =
        u64::from(config.u32(&["image_size"])?).checked_div(config.u32(&["patch_size"])?.into());
    let side = patches.and_then(|patches| patches.checked_div(length.isqrt()));
    let side = side.ok_or_else(|| format!("'patch_size' or '{LENGTH}' is 0"))?;
    if side > 0 && side != USUAL {
        let side = u32::try_from(side).map_err(|_| "'image_size' is too large")?;
        keys.set("vision.projector.scale_factor", Value::U32(side));
    }
    Ok(())
}

/// Sets the side of the squares of patches that are joined, by their ratio in the whole config.json, or by
/// a default.
fn set_downsampling(config: &Config, keys: &mut Keys, by_default: Option<f64>) -> Result<()> {
    const RATIO: &str = "downsample_ratio";
    let number = match of(config, OUTER, RATIO)? {
        Some(ratio) => {
            let number = ratio.as_f64().filter(|ratio| *ratio > 0.0);
            Some(number.ok_or_else(|| wrong_kind(RATIO, ratio, "a number above 0"))?)
        }
        None => by_default,
    };
    let number = number.ok_or_else(|| format!("field '{RATIO}' is missing"))?;
    keys.set(
        "vision.projector.scale_factor",
        Value::U32((1.0 / number) as u32),
    );
    Ok(())
}

/// A whole number of the whole config.json, or a default.
fn outer_u32(config: &Config, name: &str, by_default: Option<u32>) -> Result<u32> {
    let number = config.number_of(OUTER, name)?.or(by_default);
    number.ok_or_else(|| format!("field '{name}' is missing"))
}

/// Sets a whole number of the preprocessor's settings.
fn preprocessor_u32(config: &Config, keys: &mut Keys, key: &str, name: &str) -> Result<()> {
    let number = config.number_of(PREPROCESSOR, name)?;
    let number = number.ok_or_else(|| {
        format!(
            "'{name}' is neither in preprocessor_config.json nor in processor_config.json; download them again"
        )
    })?;
    keys.set(key, Value::U32(number));
    Ok(())
}

/// The least and the most pixels of an image, of the preprocessor's settings.
const PIXELS: Parameter = Parameter::Computed(|config, keys| {
    preprocessor_u32(config, keys, "vision.image_min_pixels", "min_pixels")?;
    preprocessor_u32(config, keys, "vision.image_max_pixels", "max_pixels")
});

/// A list of whole numbers; empty if it is missing.
fn indices(config: &Config, field: &str) -> Result<Vec<u32>> {
    let Some(value) = config.get(field) else {
        return Ok(Vec::new());
    };
    let numbers = value.as_array().map(|list| {
        let number = |value: &Json| u32::try_from(value.as_u64()?).ok();
        list.iter().map(number).collect::<Option<Vec<u32>>>()
    });
    numbers
        .flatten()
        .ok_or_else(|| wrong_kind(field, value, "a list of whole numbers"))
}

/// A name, unless it is of the text model.
fn unless_text(name: &str) -> Option<String> {
    (!name.contains("language_model.")).then(|| name.to_owned())
}

/// A field of the whole config.json or of the preprocessor's settings, not null.
fn of<'c>(config: &'c Config, object: &str, field: &str) -> Result<Option<&'c Json>> {
    let fields = config.optional_object(object)?;
    let value = fields.and_then(|fields| fields.get(field));
    Ok(value.filter(|value| !value.is_null()))
}

/// A list of numbers: of integers if the first is one, as in the reference.
fn list(name: &str, value: &Json) -> Result<Value<'static>> {
    let wrong = || wrong_kind(name, value, "a list of numbers");
    let numbers = value.as_array().filter(|list| !list.is_empty());
    let numbers = numbers.ok_or_else(wrong)?;
    let list = match numbers[0].is_i64() {
        true => {
            let numbers = numbers.iter().map(|n| i32::try_from(n.as_i64()?).ok());
            let numbers = numbers.collect::<Option<Vec<i32>>>().ok_or_else(wrong)?;
            Array::of_values(ValueType::I32, numbers.into_iter().map(Value::I32))
        }
        false => {
            let numbers = numbers.iter().map(Json::as_f64);
            let numbers = numbers.collect::<Option<Vec<f64>>>().ok_or_else(wrong)?;
            let numbers = numbers.into_iter().map(|n| Value::F32(n as f32));
            Array::of_values(ValueType::F32, numbers)
        }
    };
    Ok(Value::Array(list))
}

/// Convolutions, and embeddings of patches and positions of some models.
const IN_F32: &[Op] = &[Op::Cast(GgmlType::F32)];
/// Convolutions of models that speak, and transposed ones.
const IN_F16: &[Op] = &[Op::Cast(GgmlType::F16)];
/// A bias per channel, as a picture of one point.
const CHANNELS: &[Op] = &[Op::Reshape(&[
    Size::Number(1),
    Size::Any,
    Size::Number(1),
    Size::Number(1),
])];
/// Convolutions of one channel each, and of one step.
const DEPTHWISE: &[Op] = &[Op::Squeeze(1), Op::Cast(GgmlType::F32)];
const POINTWISE: &[Op] = &[Op::Squeeze(2), Op::Cast(GgmlType::F32)];

const USE_GELU: Parameter = Parameter::Computed(|_, keys| {
    keys.set("use_gelu", Value::Bool(true));
    Ok(())
});

const USE_SILU: Parameter = Parameter::Computed(|_, keys| {
    keys.set("use_silu", Value::Bool(true));
    Ok(())
});

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashSet;

    #[test]
    fn classes_are_unique_and_found() {
        let mut seen = HashSet::new();
        for projector in PROJECTORS {
            for class in projector.architecture.classes {
                assert!(seen.insert(class), "{class} is listed twice");
                let outer = json!({ "architectures": [class] });
                let found = Projector::of(outer.as_object().unwrap()).unwrap();
                assert!(std::ptr::eq(found, *projector), "{class}");
            }
        }
    }

    #[test]
    fn the_class_of_the_encoder_takes_precedence() {
        let outer = json!({
            "architectures": ["InternVLChatModel"],
            "vision_config": { "architectures": ["InternVisionModel"] },
        });
        let class = class(outer.as_object().unwrap());
        assert_eq!(class.as_deref(), Some("InternVisionModel"));
    }

    #[test]
    fn names_of_recipes_have_the_same_layers() {
        for projector in PROJECTORS {
            let tables = projector.architecture.tensors.iter();
            for recipe in tables.flat_map(|recipes| recipes.iter()) {
                let numbers = |name: &str| name.matches("{}").count();
                for output in recipe.outputs() {
                    for &input in output.inputs {
                        let input = recipe.inputs()[input].name;
                        let own = numbers(input) - usize::from(recipe.is_stack());
                        // Tensors that count as those of one layer stand outside of the layers.
                        let is_outside = recipe.is_stack() && numbers(output.name) == 0;
                        assert!(own == numbers(output.name) || is_outside, "{input}");
                    }
                }
            }
        }
    }
}
