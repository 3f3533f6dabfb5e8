//! The projectors of DeepSeek: of V4 Flash Vision, with an encoder with a gated network, two matrices
//! and the embeddings of the tokens around an image; of DeepSeek-OCR and Unlimited-OCR, with SAM's
//! encoder before CLIP's; of DeepSeek-OCR 2, with SAM's before a text model's layers.

use super::{
    COMMON, EMPTY, Encoders, Fields, IN_F32, Parts, Projector, SAM_LAYERS, USE_GELU, USE_SILU,
    field, set, set_epsilon, set_side, unless_text,
};
use crate::Architecture;
use crate::config::Result;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::{self, CastPlain, Reshape};
use crate::recipes::Size::{self, Any, FeedForward, Field, Hidden, Number, Product};
use crate::recipes::{Input, Output, Recipe};
use serde_json::{Value as Json, json};

pub(super) static DEEPSEEK4_VISION: Projector = Projector {
    architecture: Architecture {
        classes: &["DeepseekV4ForCausalLM"],
        parameters: &[COMMON, KEYS],
        tensors: &[EMBEDDINGS, LAYERS, MATRICES],
        decoder: Decoder {
            needs: Needs {
                biases: &["mm.1", "mm.2"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        vision: &[],
        complete: |parts| {
            let get = |name: &str| {
                let value = parts.outer.get(name).filter(|value| !value.is_null());
                let number = value.and_then(Json::as_u64);
                number.ok_or_else(|| {
                    format!(
                        "'{name}' is missing or no whole number: the model has no encoder of images, and no projector"
                    )
                })
            };
            let mut fields = Fields::new();
            for (name, own) in [
                ("num_hidden_layers", "vision_n_layers"),
                ("hidden_size", "vision_dim"),
                ("num_attention_heads", "vision_n_heads"),
                ("intermediate_size", "vision_inter_dim"),
                ("patch_size", "vision_patch_size"),
                ("downsample_ratio", "vision_downsample_ratio"),
                ("min_pixels", "vision_min_pixels"),
            ] {
                fields.insert(name.into(), get(own)?.into());
            }
            // What llama.cpp has no keys for.
            for (name, value) in [("vision_max_n_token", 384), ("vision_max_wh_ratio", 8)] {
                if get(name)? != value {
                    return Err(format!(
                        "'{name}' is not {value}, and llama.cpp runs no other"
                    ));
                }
            }
            // The size of images is not fixed.
            let side = get("vision_patch_size")?.checked_mul(get("vision_downsample_ratio")?);
            let side = side.and_then(|side| side.checked_mul(16));
            fields.insert("image_size".into(), side.into());
            for name in ["image_mean", "image_std"] {
                let settings = parts.preprocessor.entry(name);
                settings.or_insert_with(|| json!([0.5, 0.5, 0.5]));
            }
            parts.vision = Some(fields);
            Ok(())
        },
        ..Encoders::VISION
    },
    name: |_, name| {
        let is_own = ["vision.", "aligner.", "image_"]
            .iter()
            .any(|part| name.starts_with(part));
        unless_text(name).filter(|_| is_own)
    },
};

const KEYS: &[Parameter] = &[
    Parameter::ConstantStr("projector_type", "deepseek4v"),
    Parameter::ConstantF32(super::EPSILON, 1e-6),
    USE_SILU,
    Parameter::U32("vision.projector.scale_factor", &["downsample_ratio"]),
    Parameter::U32("vision.image_min_pixels", &["min_pixels"]),
];

const PATCH: Size = Field(&["patch_size"]);

const EMBEDDINGS: &[Recipe] = &[
    Recipe::with(
        "vision.patch_embed.proj.weight",
        "v.patch_embd.weight",
        &[Hidden, Any],
        &[Reshape(&[Hidden, Number(3), PATCH, PATCH]), CastPlain],
    ),
    Recipe::rename(
        "vision.patch_embed.proj.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    Recipe::rename("vision.norm", "v.post_ln", &[Hidden]),
    Recipe::rename("image_newline", "v.image_newline", &[]),
    Recipe::rename("image_start", "v.token_embd.img_start", &[]),
    Recipe::rename("image_end", "v.token_embd.img_end", &[]),
    Recipe::rename("image_pad", "v.token_embd.img_pad", &[]),
];

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        block!("vision.blocks.{}.", $from, $to, $dims)
    };
}

const LAYERS: &[Recipe] = &[
    layer!(
        "attn.wqkv",
        "attn_qkv",
        &[Product(&[Number(3), Hidden]), Hidden]
    ),
    layer!("attn.wo", "attn_out", &[Hidden, Hidden]),
    layer!("norm1", "ln1", &[Hidden]),
    layer!("norm2", "ln2", &[Hidden]),
    Recipe::new(
        &[Input::new(
            "vision.blocks.{}.mlp.w1",
            &[Product(&[Number(2), FeedForward]), Hidden],
        )],
        &[
            Output::new("v.blk.{}.ffn_gate", &[Op::part(0, &[FeedForward, Any], 0)]),
            Output::new("v.blk.{}.ffn_up", &[Op::part(0, &[FeedForward, Any], 1)]),
        ],
    ),
    layer!("mlp.w2", "ffn_down", &[Hidden, FeedForward]),
];

const MATRICES: &[Recipe] = &[
    Recipe::rename("aligner.w1", "mm.1", &[Any, Any]),
    Recipe::rename("aligner.w2", "mm.2", &[Any, Any]),
];

const fn ocr(
    classes: &'static [&'static str],
    parameters: &'static [&'static [Parameter]],
) -> Architecture {
    Architecture {
        classes,
        parameters,
        tensors: &[SAM, SAM_LAYER, CLIP, CLIP_LAYER, OCR_ENDS],
        decoder: Decoder {
            needs: Needs {
                optional: &["v.image_newline"],
                biases: &["mm.model.fc"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    }
}

pub(super) static DEEPSEEK_OCR: Projector = Projector {
    architecture: ocr(
        &["DeepseekOCRForCausalLM"],
        &[
            COMMON,
            &[Parameter::ConstantStr("projector_type", "deepseekocr")],
            OCR_KEYS,
            &[Parameter::ConstantU32(MOST_TILES, 9)],
            SAM_KEYS,
        ],
    ),
    encoders: Encoders {
        complete: clip_fields,
        ..Encoders::VISION
    },
    name: of_ocr,
};

pub(super) static UNLIMITED_OCR: Projector = Projector {
    architecture: ocr(
        &["UnlimitedOCRForCausalLM"],
        &[
            COMMON,
            &[Parameter::ConstantStr("projector_type", "deepseekocr")],
            OCR_KEYS,
            &[Parameter::ConstantU32(MOST_TILES, 32)],
            SAM_KEYS,
        ],
    ),
    encoders: Encoders {
        complete: clip_fields,
        ..Encoders::VISION
    },
    name: of_ocr,
};

pub(super) static DEEPSEEK_OCR2: Projector = Projector {
    architecture: Architecture {
        classes: &["DeepseekOCR2ForCausalLM"],
        parameters: &[
            COMMON,
            &[Parameter::ConstantStr("projector_type", "deepseekocr2")],
            OCR_KEYS,
            &[Parameter::ConstantU32(MOST_TILES, 6)],
            SAM_KEYS,
            &[Parameter::ConstantU32("vision.attention.head_count_kv", 2)],
        ],
        tensors: &[SAM, SAM_LAYER, QWEN2, QWEN2_LAYER, OCR_ENDS],
        decoder: Decoder {
            needs: Needs {
                optional: &[
                    "v.image_newline",
                    "v.resample_query_768",
                    "v.resample_query_1024",
                ],
                biases: &["mm.model.fc"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders {
        complete: |parts| {
            clip_fields(parts)?;
            const WIDTH: &str = "qwen2-0-5b";
            let width = field(&parts.vision, "width");
            let width = width
                .and_then(|width| width.get(WIDTH)?.get("dim"))
                .cloned();
            let width = width.ok_or_else(|| format!("'width' lacks 'dim' of '{WIDTH}'"))?;
            set(&mut parts.vision, "hidden_size", width);
            // Fixed in the model's own code.
            for (name, number) in [
                ("layers", 24),
                ("patch_size", 16),
                ("intermediate_size", 4864),
                ("num_attention_heads", 14),
            ] {
                if field(&parts.vision, name).is_none() {
                    set(&mut parts.vision, name, number);
                }
            }
            Ok(())
        },
        ..Encoders::VISION
    },
    name: of_ocr,
};

const MOST_TILES: &str = "vision.preproc_max_tiles";

/// Sets the fields of SAM's encoder and of CLIP's, which stand in the object of the widths.
fn clip_fields(parts: &mut Parts) -> Result<()> {
    const SAM: &str = "sam_vit_b";
    const CLIP: &str = "clip-l-14-224";
    let object = |name: &str| {
        let object = field(&parts.vision, "width")?.get(name)?.as_object();
        object.cloned()
    };
    let sam = object(SAM).ok_or_else(|| format!("'width' lacks '{SAM}'"))?;
    let clip = object(CLIP).unwrap_or_default();
    for (name, own) in [
        (SAM_LAYERS, "layers"),
        (SAM_WIDTH, "width"),
        (SAM_HEADS, "heads"),
    ] {
        set(&mut parts.vision, name, sam.get(own).cloned());
    }
    parts
        .vision
        .iter_mut()
        .for_each(|fields| fields.extend(clip.clone()));
    let width = field(&parts.vision, "width").filter(|width| width.is_number());
    if let Some(width) = width.cloned() {
        set(&mut parts.vision, "hidden_size", width);
    }
    if let Some(heads) = field(&parts.vision, "heads").and_then(Json::as_u64) {
        set(&mut parts.vision, "num_heads", heads);
        // As in the reference; llama.cpp takes the length from the tensors.
        set(&mut parts.vision, "intermediate_size", heads * 4);
    }
    Ok(())
}

fn of_ocr(_: &crate::Config, name: &str) -> Option<String> {
    let is_text = [
        "lm_head.",
        "model.embed_tokens.",
        "model.layers.",
        "model.norm.",
    ]
    .iter()
    .any(|part| name.starts_with(part));
    unless_text(name).filter(|_| !is_text)
}

const SAM_WIDTH: &str = "width of SAM";
const SAM_HEADS: &str = "heads of SAM";

const OCR_KEYS: &[Parameter] = &[
    Parameter::Computed(|config, keys| set_epsilon(config, keys, "layer_norm_eps", 1e-6)),
    USE_GELU,
    Parameter::Computed(set_side),
    Parameter::OrU32("vision.window_size", &["window_size"], 14),
    Parameter::ConstantU32("vision.preproc_min_tiles", 2),
];

const SAM_KEYS: &[Parameter] = &[
    Parameter::U32("vision.sam.block_count", &[SAM_LAYERS]),
    Parameter::U32("vision.sam.embedding_length", &[SAM_WIDTH]),
    Parameter::U32("vision.sam.head_count", &[SAM_HEADS]),
];

macro_rules! sam {
    ($from:literal, $to:literal, $dims:expr) => {
        sam!($from, $to, $dims, &[])
    };
    ($from:literal, $to:literal, $dims:expr, $ops:expr) => {
        Recipe::with(
            concat!("model.sam_model.", $from),
            concat!("v.sam.", $to),
            $dims,
            $ops,
        )
    };
}

const SAM: &[Recipe] = &[
    sam!(
        "pos_embed",
        "pos_embd.weight",
        &[Any, Any, Any, Any],
        IN_F32
    ),
    sam!(
        "patch_embed.proj.weight",
        "patch_embd.weight",
        &[Any, Any, Any, Any],
        &[CastPlain]
    ),
    sam!("patch_embed.proj.bias", "patch_embd.bias", &[Any]),
    sam!("neck.0", "neck.0", &[Any, Any, Any, Any], IN_F32),
    sam!("neck.1", "neck.1", &[Any]),
    sam!("neck.2", "neck.2", &[Any, Any, Any, Any], IN_F32),
    sam!("neck.3", "neck.3", &[Any]),
    sam!("net_2", "net_2", &[Any, Any, Any, Any], IN_F32),
    sam!("net_3", "net_3", &[Any, Any, Any, Any], IN_F32),
];

const SAM_LAYER: &[Recipe] = &[
    sam!("blocks.{}.norm1", "blk.{}.pre_ln", &[Any]),
    sam!("blocks.{}.norm2", "blk.{}.post_ln", &[Any]),
    sam!(
        "blocks.{}.attn.rel_pos_h",
        "blk.{}.attn.pos_h.weight",
        &[Any, Any],
        IN_F32
    ),
    sam!(
        "blocks.{}.attn.rel_pos_w",
        "blk.{}.attn.pos_w.weight",
        &[Any, Any],
        IN_F32
    ),
    sam!("blocks.{}.attn.qkv", "blk.{}.attn.qkv", &[Any, Any]),
    sam!("blocks.{}.attn.proj", "blk.{}.attn.out", &[Any, Any]),
    sam!("blocks.{}.mlp.lin1", "blk.{}.mlp.lin1", &[Any, Any]),
    sam!("blocks.{}.mlp.lin2", "blk.{}.mlp.lin2", &[Any, Any]),
];

const CLIP: &[Recipe] = &[
    Recipe::rename(
        "model.vision_model.embeddings.class_embedding",
        "v.class_embd",
        &[Hidden],
    ),
    Recipe::with(
        "model.vision_model.embeddings.patch_embedding.weight",
        "v.patch_embd.weight",
        &[Hidden, Any, Any, Any],
        IN_F32,
    ),
    Recipe::rename(
        "model.vision_model.embeddings.position_embedding",
        "v.position_embd",
        &[Any, Hidden],
    ),
    Recipe::rename("model.vision_model.pre_layrnorm", "v.pre_ln", &[Hidden]),
];

macro_rules! clip {
    ($from:literal, $to:literal, $dims:expr) => {
        block!(
            "model.vision_model.transformer.layers.{}.",
            $from,
            $to,
            $dims
        )
    };
}

const CLIP_LAYER: &[Recipe] = &[
    clip!(
        "self_attn.qkv_proj",
        "attn_qkv",
        &[Product(&[Number(3), Hidden]), Hidden]
    ),
    clip!("self_attn.out_proj", "attn_out", &[Hidden, Hidden]),
    clip!("layer_norm1", "ln1", &[Hidden]),
    clip!("layer_norm2", "ln2", &[Hidden]),
    clip!("mlp.fc1", "ffn_up", &[Any, Hidden]),
    clip!("mlp.fc2", "ffn_down", &[Hidden, Any]),
];

const QWEN2: &[Recipe] = &[
    Recipe::rename("model.qwen2_model.model.model.norm", "v.post_ln", &[Hidden]),
    Recipe::rename(
        "model.qwen2_model.query_768",
        "v.resample_query_768",
        &[Any, Any],
    ),
    Recipe::rename(
        "model.qwen2_model.query_1024",
        "v.resample_query_1024",
        &[Any, Any],
    ),
];

macro_rules! qwen2 {
    ($from:literal, $to:literal, $dims:expr) => {
        block!(
            "model.qwen2_model.model.model.layers.{}.",
            $from,
            $to,
            $dims
        )
    };
}

const QWEN2_LAYER: &[Recipe] = &[
    qwen2!("self_attn.q_proj", "attn_q", &[Any, Hidden]),
    qwen2!("self_attn.k_proj", "attn_k", &[Any, Hidden]),
    qwen2!("self_attn.v_proj", "attn_v", &[Any, Hidden]),
    qwen2!("self_attn.o_proj", "attn_out", &[Hidden, Any]),
    qwen2!("input_layernorm", "ln1", &[Hidden]),
    qwen2!("post_attention_layernorm", "ln2", &[Hidden]),
    qwen2!("mlp.gate_proj", "ffn_gate", &[FeedForward, Hidden]),
    qwen2!("mlp.up_proj", "ffn_up", &[FeedForward, Hidden]),
    qwen2!("mlp.down_proj", "ffn_down", &[Hidden, FeedForward]),
];

const OCR_ENDS: &[Recipe] = &[
    Recipe::rename("model.projector.layers", "mm.model.fc", &[Any, Any]),
    Recipe::rename("model.image_newline", "v.image_newline", &[]),
    Recipe::with(
        "model.view_seperator",
        "v.view_seperator",
        &[Any],
        &[Reshape(&[Number(1), Any])],
    ),
];
