//! The projector of Pixtral, Mistral 3 and LightOnOCR: an encoder with rotary positions, two matrices,
//! and, in the first two, the embedding of the token between rows of patches.

use super::{COMMON, EMPTY, Encoders, OUTER, Projector, set_activation, set_epsilon, unless_text};
use crate::Architecture;
use crate::decoder::{Decoder, Needs};
use crate::parameters::Parameter;
use crate::recipes::Op::{CastPlain, Interleave, Rows, Squeeze};
use crate::recipes::Recipe;
use crate::recipes::Size::{Any, FeedForward, Hidden, QueryHeads};
use quantier_gguf::gguf::Value;

pub(super) static PIXTRAL: Projector = Projector {
    architecture: Architecture {
        classes: &[
            "LlavaForConditionalGeneration",
            "Mistral3ForConditionalGeneration",
        ],
        parameters: &[COMMON, OWN],
        tensors: &[ENCODER, MATRICES, ROW_BREAK],
        decoder: DECODER,
        ..EMPTY
    },
    encoders: Encoders::VISION,
    name: |_, name| {
        const EMBEDDINGS: &str = "embed_tokens.weight";
        // Newer checkpoints have a prefix before all names.
        let within = name.strip_prefix("model.").unwrap_or(name);
        let is_own = ["multi_modal_projector.", "vision_tower."]
            .iter()
            .any(|part| within.starts_with(part));
        match is_own {
            true => Some(within.to_owned()),
            false => name.ends_with(EMBEDDINGS).then(|| EMBEDDINGS.to_owned()),
        }
    },
};

pub(super) static LIGHTON_OCR: Projector = Projector {
    architecture: Architecture {
        classes: &["LightOnOCRForConditionalGeneration"],
        parameters: &[
            COMMON,
            OWN,
            &[Parameter::ConstantStr("projector_type", "lightonocr")],
        ],
        tensors: &[ENCODER, MATRICES],
        decoder: DECODER,
        ..EMPTY
    },
    encoders: Encoders::VISION,
    name: |_, name| {
        let name = unless_text(name)?;
        let name = name.replace("model.vision_encoder.", "vision_tower.");
        let name = name.replace("model.vision_projection.", "multi_modal_projector.");
        let is_own = ["multi_modal_projector.", "vision_tower."]
            .iter()
            .any(|part| name.starts_with(part));
        is_own.then_some(name)
    },
};

const DECODER: Decoder = Decoder {
    needs: Needs {
        optional: &["mm.input_norm", "mm.patch_merger"],
        ..Needs::WEIGHTS
    },
    ..Decoder::LLAMA
};

/// The token between rows of patches.
const BREAK: &str = "[IMG_BREAK]";

const OWN: &[Parameter] = &[Parameter::Computed(|config, keys| {
    match config.get("model_type").and_then(|kind| kind.as_str()) {
        Some("pixtral") => {}
        kind => {
            return Err(format!(
                "the encoder is a {}, and llama.cpp's converter knows Pixtral's alone for this class",
                kind.unwrap_or("model without 'model_type'")
            ));
        }
    }
    keys.set("projector_type", Value::str("pixtral"));
    set_epsilon(config, keys, "layer_norm_eps", 1e-5)?;
    set_activation(config, keys)?;
    if let Some(size) = config.number_of(OUTER, "spatial_merge_size")? {
        keys.set("vision.spatial_merge_size", Value::U32(size));
    }
    Ok(())
})];

const ENCODER: &[Recipe] = &[
    Recipe::with(
        "vision_tower.patch_conv.weight",
        "v.patch_embd.weight",
        &[Hidden, Any, Any, Any],
        &[CastPlain],
    ),
    Recipe::rename("vision_tower.ln_pre", "v.pre_ln", &[Hidden]),
    Recipe::with(
        "vision_tower.transformer.layers.{}.attention.q_proj",
        "v.blk.{}.attn_q",
        &[Hidden, Hidden],
        &[Interleave(QueryHeads)],
    ),
    Recipe::with(
        "vision_tower.transformer.layers.{}.attention.k_proj",
        "v.blk.{}.attn_k",
        &[Hidden, Hidden],
        &[Interleave(QueryHeads)],
    ),
    block!(
        "vision_tower.transformer.layers.{}.",
        "attention.v_proj",
        "attn_v",
        &[Hidden, Hidden]
    ),
    block!(
        "vision_tower.transformer.layers.{}.",
        "attention.o_proj",
        "attn_out",
        &[Hidden, Hidden]
    ),
    block!(
        "vision_tower.transformer.layers.{}.",
        "attention_norm",
        "ln1",
        &[Hidden]
    ),
    block!(
        "vision_tower.transformer.layers.{}.",
        "ffn_norm",
        "ln2",
        &[Hidden]
    ),
    block!(
        "vision_tower.transformer.layers.{}.",
        "feed_forward.gate_proj",
        "ffn_gate",
        &[FeedForward, Hidden]
    ),
    block!(
        "vision_tower.transformer.layers.{}.",
        "feed_forward.up_proj",
        "ffn_up",
        &[FeedForward, Hidden]
    ),
    block!(
        "vision_tower.transformer.layers.{}.",
        "feed_forward.down_proj",
        "ffn_down",
        &[Hidden, FeedForward]
    ),
];

const MATRICES: &[Recipe] = &[
    Recipe::rename("multi_modal_projector.linear_1", "mm.1", &[Any, Any]),
    Recipe::rename("multi_modal_projector.linear_2", "mm.2", &[Any, Any]),
    Recipe::rename("multi_modal_projector.norm", "mm.input_norm", &[Any]),
    Recipe::with(
        "multi_modal_projector.patch_merger.merging_layer.weight",
        "mm.patch_merger.weight",
        &[Any, Any],
        &[CastPlain],
    ),
];

const ROW_BREAK: &[Recipe] = &[Recipe::with(
    "embed_tokens.weight",
    "v.token_embd.img_break",
    &[Any, Any],
    &[Rows(&[BREAK]), Squeeze(0)],
)];
