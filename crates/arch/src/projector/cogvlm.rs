//! The projector of CogVLM: an encoder with fused queries, keys and values, a matrix, a norm, a gated
//! network, and the embeddings of the tokens around an image.

use super::{COMMON, EMPTY, Encoders, Projector, set_epsilon, unless_text};
use crate::Architecture;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::CastPlain;
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, FeedForward, Hidden, Number, Product};

pub(super) static COGVLM: Projector = Projector {
    architecture: Architecture {
        classes: &["CogVLMForCausalLM"],
        parameters: &[COMMON, KEYS],
        tensors: &[EMBEDDINGS, LAYERS, NETWORK],
        decoder: Decoder {
            needs: Needs {
                biases: &["mm.post_fc_norm"],
                ..Needs::WEIGHTS
            },
            ..Decoder::LLAMA
        },
        ..EMPTY
    },
    encoders: Encoders::VISION,
    name: |_, name| unless_text(name).filter(|name| name.starts_with("model.vision.")),
};

const KEYS: &[Parameter] = &[
    Parameter::Computed(|config, keys| set_epsilon(config, keys, "layer_norm_eps", 1e-6)),
    Parameter::ConstantStr("projector_type", "cogvlm"),
];

const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename(
        "model.vision.patch_embedding.cls_embedding",
        "v.class_embd",
        &[Any, Hidden],
    ),
    Recipe::with(
        "model.vision.patch_embedding.proj.weight",
        "v.patch_embd.weight",
        &[Hidden, Any, Any, Any],
        &[CastPlain],
    ),
    Recipe::rename(
        "model.vision.patch_embedding.proj.bias",
        "v.patch_embd.bias",
        &[Hidden],
    ),
    Recipe::rename(
        "model.vision.patch_embedding.position_embedding",
        "v.position_embd",
        &[Any, Hidden],
    ),
    Recipe::rename("model.vision.boi", "v.boi", &[]),
    Recipe::rename("model.vision.eoi", "v.eoi", &[]),
];

macro_rules! layer {
    ($from:literal, $to:literal, $dims:expr) => {
        block!("model.vision.transformer.layers.{}.", $from, $to, $dims)
    };
}

const LAYERS: &[Recipe] = &[
    layer!(
        "attention.query_key_value",
        "attn_qkv",
        &[Product(&[Number(3), Hidden]), Hidden]
    ),
    layer!("attention.dense", "attn_out", &[Hidden, Hidden]),
    layer!("input_layernorm", "ln1", &[Hidden]),
    layer!("post_attention_layernorm", "ln2", &[Hidden]),
    layer!("mlp.fc1", "ffn_up", &[FeedForward, Hidden]),
    layer!("mlp.fc2", "ffn_down", &[Hidden, FeedForward]),
];

const NETWORK: &[Recipe] = &[
    Recipe::rename(
        "model.vision.linear_proj.linear_proj",
        "mm.model.fc",
        &[Any, Any],
    ),
    Recipe::rename("model.vision.linear_proj.norm1", "mm.post_fc_norm", &[Any]),
    Recipe::rename(
        "model.vision.linear_proj.dense_h_to_4h",
        "mm.up",
        &[Any, Any],
    ),
    Recipe::rename("model.vision.linear_proj.gate_proj", "mm.gate", &[Any, Any]),
    Recipe::rename(
        "model.vision.linear_proj.dense_4h_to_h",
        "mm.down",
        &[Any, Any],
    ),
];
