//! The projector of Granite 4 Vision: SigLIP, and a Q-Former (Li et al. 2023) for each layer of the text
//! model that sees.

use super::{
    COMMON, EMPTY, Encoders, OUTER, PROJECTIONS, Parts, Projector, USE_GELU, of, set, set_epsilon,
    unless_text,
};
use crate::config::{BLOCKS, Result};
use crate::decoder::{Decoder, Needs};
use crate::parameters::{Parameter, set_numbers};
use crate::recipes::Op::CastPlain;
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, FeedForward, Hidden};
use crate::{Architecture, Config};
use quantier_gguf::gguf::{Array, Value, ValueType};
use serde_json::{Value as Json, json};

pub(super) static GRANITE4_VISION: Projector = Projector {
    architecture: Architecture {
        classes: &["Granite4VisionForConditionalGeneration"],
        parameters: &[COMMON, KEYS],
        tensors: &[PATCHES, SIGLIP, ENDS, QFORMER],
        decoder: Decoder {
            needs: Needs {
                optional: &["v.post_ln", "v.image_newline"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: list_projectors,
        ..Encoders::VISION
    },
    name: |config, name| {
        if name.contains("vision_model.head") || name.starts_with("lm_head") {
            return None;
        }
        let name = unless_text(name)?;
        let of_kind = |kind: Kind| {
            let rest = name.strip_prefix("model.")?.strip_prefix(kind.name())?;
            let (number, rest) = rest.strip_prefix("_projectors.")?.split_once('.')?;
            Some((kind, number.parse::<u32>().ok()?, rest))
        };
        let found = of_kind(Kind::Layerwise).or_else(|| of_kind(Kind::Spatial));
        let Some((kind, number, rest)) = found else {
            return Some(name);
        };
        let all = projectors(config);
        let place = all
            .iter()
            .position(|one| (one.kind, one.number) == (kind, number))?;
        // Each Q-Former has one layer.
        let rest = rest.replace("qformer.encoder.layer.0.", "qformer.layer.");
        Some(format!("projectors.{place}.{rest}"))
    },
};

/// The kinds of projectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of a layer of the encoder.
    Layerwise,
    /// Of a shifted grid.
    Spatial,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Layerwise => "layerwise",
            Kind::Spatial => "spatial",
        }
    }
}

/// A projector.
struct One {
    /// The layer of the encoder that it reads.
    vision: i64,
    /// The layer of the text model that it leads to.
    text: i64,
    kind: Kind,
    /// Its number among those of its kind.
    number: u32,
}

/// The field of all projectors in order, as lists.
const LIST: &str = "list of projectors";

/// Lists the projectors in the order of the layers of the text model that they lead to.
fn list_projectors(parts: &mut Parts) -> Result<()> {
    const LAYERS: &str = "num_hidden_layers";
    let layers = |object: &str| {
        let layers = parts
            .outer
            .get(object)
            .and_then(|object| object.get(LAYERS)?.as_i64());
        layers.ok_or_else(|| format!("'{LAYERS}' is missing in '{object}'"))
    };
    let (text, vision) = (layers("text_config")?, layers("vision_config")?);
    let list = |name: &str| match parts.outer.get(name) {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(value) => value
            .as_array()
            .cloned()
            .ok_or_else(|| format!("'{name}' is no list")),
    };
    // Negative numbers count from the end.
    let counted = |number: i64, all: i64| if number < 0 { all + number } else { number };
    let mut all = Vec::new();
    let pairs = list("deepstack_layer_map")?.into_iter().map(|pair| {
        let number = |place: usize| pair.get(place).and_then(Json::as_i64);
        let pair = number(0).zip(number(1));
        pair.ok_or("'deepstack_layer_map' is no list of pairs of layers")
    });
    let mut pairs: Vec<(i64, i64)> = pairs.collect::<std::result::Result<_, _>>()?;
    pairs.sort_unstable();
    for (number, (from, to)) in (0..).zip(pairs) {
        all.push(One {
            vision: counted(from, vision),
            text: counted(to, text),
            kind: Kind::Layerwise,
            number,
        });
    }
    let from = parts
        .outer
        .get("spatial_vision_layer")
        .and_then(Json::as_i64);
    for (number, to) in (0..).zip(list("spatial_target_layers")?) {
        all.push(One {
            vision: counted(from.unwrap_or(-1), vision),
            text: to
                .as_i64()
                .ok_or("'spatial_target_layers' is no list of layers")?,
            kind: Kind::Spatial,
            number,
        });
    }
    all.sort_by_key(|one| one.text);
    let lists = all.iter();
    let lists: Vec<Json> = lists
        .map(|one| json!([one.vision, one.text, one.kind == Kind::Spatial, one.number]))
        .collect();
    set(&mut parts.vision, PROJECTIONS, lists.len());
    set(&mut parts.vision, LIST, lists);
    Ok(())
}

/// The projectors in order.
fn projectors(config: &Config) -> Vec<One> {
    let one = |list: &Json| {
        Some(One {
            vision: list.get(0)?.as_i64()?,
            text: list.get(1)?.as_i64()?,
            kind: match list.get(2)?.as_bool()? {
                true => Kind::Spatial,
                false => Kind::Layerwise,
            },
            number: list.get(3)?.as_u64()? as u32,
        })
    };
    let lists = config.get(LIST).and_then(Json::as_array);
    lists.into_iter().flatten().filter_map(one).collect()
}

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "granite4_vision"),
    Parameter::Computed(|config, keys| set_epsilon(config, keys, "layer_norm_eps", 1e-6)),
    USE_GELU,
    Parameter::OrU32("vision.preproc_image_size", &["image_size"], 384),
    Parameter::Computed(|config, keys| {
        const RATE: &str = "downsample_rate";
        let rate = of(config, OUTER, RATE)?.and_then(Json::as_str);
        let sides = rate.and_then(|rate| {
            let (query, window) = rate.split_once('/')?;
            Some((query.parse::<u32>().ok()?, window.parse::<u32>().ok()?))
        });
        let (query, window) = sides.ok_or_else(|| format!("'{RATE}' is no ratio as 4/8"))?;
        keys.set("vision.projector.query_side", Value::U32(query));
        keys.set("vision.projector.window_side", Value::U32(window));
        let all = projectors(config);
        let layers = config.u32(BLOCKS)?;
        let vision = all.iter().map(|one| u32::try_from(one.vision).ok());
        let vision = vision.collect::<Option<Vec<_>>>();
        let vision =
            vision.filter(|all| !all.is_empty() && all.iter().all(|layer| *layer <= layers));
        let vision =
            vision.ok_or("the layers that the projectors read are not those of the encoder")?;
        set_numbers(keys, "vision.feature_layer", vision);
        let offsets = all.iter().map(|one| match one.kind {
            Kind::Spatial => Value::I32(one.number as i32),
            Kind::Layerwise => Value::I32(-1),
        });
        let offsets = Array::of_values(ValueType::I32, offsets);
        keys.set("vision.projector.spatial_offsets", Value::Array(offsets));
        const SIZES: &str = "image_grid_pinpoints";
        let Some(sizes) = of(config, OUTER, SIZES)?.and_then(Json::as_array) else {
            return Ok(());
        };
        let mut sides = Vec::new();
        for size in sizes {
            // Width before height.
            for place in [1, 0] {
                let side = size
                    .get(place)
                    .and_then(|side| u32::try_from(side.as_u64()?).ok());
                sides.push(side.ok_or_else(|| format!("'{SIZES}' is no list of sizes"))?);
            }
        }
        if !sides.is_empty() {
            set_numbers(keys, "vision.image_grid_pinpoints", sides);
        }
        Ok(())
    }),
];

const PATCHES: &[Recipe] = &[
    Recipe::with(
        "model.vision_tower.vision_model.embeddings.patch_embedding.weight",
        "v.patch_embd.weight",
        &[Hidden, Any, Any, Any],
        &[CastPlain],
    ),
    Recipe::rename(
        "model.vision_tower.vision_model.embeddings.patch_embedding.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    Recipe::rename(
        "model.vision_tower.vision_model.embeddings.position_embedding",
        "v.position_embd",
        &[Any, Hidden],
    ),
];

const SIGLIP: &[Recipe] = siglip!("model.vision_tower.vision_model.");

const ENDS: &[Recipe] = &[Recipe::rename(
    "model.image_newline",
    "v.image_newline",
    &[],
)];

macro_rules! projector {
    ($from:literal, $to:literal, $dims:expr) => {
        Recipe::rename(
            concat!("projectors.{}.", $from),
            concat!("v.proj_blk.{}.", $to),
            $dims,
        )
    };
}

const QFORMER: &[Recipe] = &[
    projector!("image_positions", "img_pos", &[]),
    projector!("query", "query", &[]),
    projector!("out_linear", "linear", &[Any, Any]),
    projector!("norm", "norm", &[Any]),
    projector!("qformer.layernorm", "post_norm", &[Any]),
    projector!(
        "qformer.layer.attention.attention.query",
        "self_attn_q",
        &[Any, Any]
    ),
    projector!(
        "qformer.layer.attention.attention.key",
        "self_attn_k",
        &[Any, Any]
    ),
    projector!(
        "qformer.layer.attention.attention.value",
        "self_attn_v",
        &[Any, Any]
    ),
    projector!(
        "qformer.layer.attention.output.dense",
        "self_attn_out",
        &[Any, Any]
    ),
    projector!(
        "qformer.layer.attention.output.LayerNorm",
        "self_attn_norm",
        &[Any]
    ),
    projector!(
        "qformer.layer.crossattention.attention.query",
        "cross_attn_q",
        &[Any, Any]
    ),
    projector!(
        "qformer.layer.crossattention.attention.key",
        "cross_attn_k",
        &[Any, Any]
    ),
    projector!(
        "qformer.layer.crossattention.attention.value",
        "cross_attn_v",
        &[Any, Any]
    ),
    projector!(
        "qformer.layer.crossattention.output.dense",
        "cross_attn_out",
        &[Any, Any]
    ),
    projector!(
        "qformer.layer.crossattention.output.LayerNorm",
        "cross_attn_norm",
        &[Any]
    ),
    projector!(
        "qformer.layer.intermediate_query.dense",
        "ffn_up",
        &[Any, Any]
    ),
    projector!("qformer.layer.output_query.dense", "ffn_down", &[Any, Any]),
    projector!("qformer.layer.output_query.LayerNorm", "ffn_norm", &[Any]),
];
