//! Models within models: the text model of a multimodal checkpoint, and the other parts in its
//! files.
//!
//! config.json of such a checkpoint has the text model's fields in a separate object, and tensor
//! names have a prefix.

use serde_json::{Map, Value};
use std::borrow::Cow;

/// Names of the text model's object; the first is canonical.
const TEXT_CONFIGS: [&str; 5] = [
    "text_config",
    "llm_config",
    "lm_config",
    "language_config",
    "lfm",
];
/// The object of an omni model's text and vision part, which contains a text model.
const THINKER: &str = "thinker_config";
/// Classes that take precedence over the text model's class.
const OUTER: [&str; 5] = [
    "StepVLForConditionalGeneration",
    "Sarashina2VisionForCausalLM",
    "Exaone4_5_ForConditionalGeneration",
    "Step3p7ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
];

/// Renames the object of the text model to `text_config`.
pub(super) fn rename_text_config(fields: &mut Map<String, Value>) {
    let [text, others @ ..] = TEXT_CONFIGS;
    let thinker = fields.get(THINKER).and_then(|thinker| thinker.get(text));
    let mut moved = thinker.cloned();
    for name in others {
        moved = fields.get(name).cloned().or(moved);
    }
    if let Some(config) = moved {
        fields.insert(text.into(), config);
    }
}

/// The class that determines the architecture: the text model's, if present.
pub(super) fn class(fields: &Map<String, Value>) -> Option<String> {
    let first = |fields: &Map<String, Value>| {
        let class = fields.get("architectures")?.get(0)?.as_str()?;
        Some(class.to_owned())
    };
    let own = first(fields).or_else(|| mamba(fields));
    if own.as_deref().is_some_and(|class| OUTER.contains(&class)) {
        return own;
    }
    let text = fields.get(TEXT_CONFIGS[0]).and_then(Value::as_object);
    text.and_then(first).or(own)
}

/// The class of a checkpoint by Mamba's authors, which has none.
fn mamba(fields: &Map<String, Value>) -> Option<String> {
    let layer = fields.get("ssm_cfg")?.get("layer");
    let layer = layer.and_then(Value::as_str).unwrap_or("Mamba");
    Some(format!("{layer}ForCausalLM"))
}

/// Merges the text model's fields with the outer ones; the text model's take precedence.
pub(super) fn flatten(fields: &mut Map<String, Value>) {
    if let Some(Value::Object(text)) = fields.get(TEXT_CONFIGS[0]).cloned() {
        fields.extend(text);
    }
}

/// The part of a model that a tensor belongs to.
#[derive(Clone, Debug, PartialEq)]
pub enum Part<'n> {
    /// The text model, with the tensor's name in it.
    Text(Cow<'n, str>),
    /// A part outside the text model.
    Other(&'static str),
}

const VISION: &str = "the vision part";
const AUDIO: &str = "the audio part";

/// Prefixes of names, and pieces anywhere in names, with their parts of the model.
const BEGINNINGS: &[(&str, &str)] = &[
    ("mlp", VISION),
    ("vit.", VISION),
    ("vpm.", VISION),
    ("siglip2.", VISION),
    ("merger.", VISION),
    ("resampler.", VISION),
    ("conformer.", AUDIO),
    ("sound_encoder.", AUDIO),
    ("sound_projection.", AUDIO),
    ("speech_embeddings.", AUDIO),
];
const PIECES: &[(&str, &str)] = &[
    ("audio.", AUDIO),
    ("audio_", AUDIO),
    ("codebook", AUDIO),
    ("depth_embedding", AUDIO),
    ("depth_linear", AUDIO),
    ("depthformer", AUDIO),
    ("talker.", AUDIO),
    ("token2wav.", AUDIO),
    ("code2wav.", AUDIO),
    ("visual.", VISION),
    ("vision.", VISION),
    ("vision_", VISION),
    ("projector.", VISION),
    ("pre_mm_projector_norm", VISION),
    ("image_newline", VISION),
    ("view_seperator", VISION),
    ("patch_embed", VISION),
    ("patch_merger.", VISION),
    ("patch_merge_mlp.", VISION),
    ("model.connector.", VISION),
];

/// A module of DFlash 2, in names that hold a piece of another part's.
const SELECTOR: &str = "candidate_selector.";

/// Prefixes in ERNIE and LFM2 Audio that correspond to `model.`.
const MODELS: [&str; 2] = ["ernie.", "lfm."];

/// The only layer of EAGLE-3's drafts, and its name in Llama.
const MIDLAYER: [&str; 2] = ["midlayer.", "model.layers.0."];

/// Prefixes of encoders within models that also have a head.
const ENCODERS: [&str; 3] = ["distilbert.", "roberta.", "bert."];

/// Old names of a norm's weights and biases.
const OLD_NORMS: [(&str, &str); 2] = [(".gamma", ".weight"), (".beta", ".bias")];

/// Prefixes in Mamba Codestral that other models have without `model.`.
const CODESTRAL: [&str; 2] = ["model.backbone", "model.lm_head"];

/// Prefixes of the text model's names, also inside names.
const PREFIXES: [&str; 3] = ["thinker.", "text_model.", "language_model."];

impl Part<'_> {
    /// The part with a tensor of this name.
    pub fn of(name: &str) -> Part<'_> {
        let begins = BEGINNINGS.iter().find(|(start, _)| name.starts_with(start));
        let has = || PIECES.iter().find(|(piece, _)| name.contains(piece));
        let other = begins.or_else(has).filter(|_| !name.contains(SELECTOR));
        if let Some((_, part)) = other {
            return Part::Other(part);
        }
        const BIAS: &str = "e_score_correction_bias";
        let mut name = Cow::Borrowed(name);
        if name.ends_with(BIAS) {
            name = name.replace(BIAS, "e_score_correction.bias").into();
        }
        for encoder in ENCODERS {
            if let Some(own) = name.strip_prefix(encoder) {
                name = own.to_owned().into();
            }
        }
        for (old, new) in OLD_NORMS {
            if let Some(norm) = name
                .strip_suffix(old)
                .filter(|norm| norm.ends_with("LayerNorm"))
            {
                name = format!("{norm}{new}").into();
            }
        }
        let [midlayer, first] = MIDLAYER;
        if let Some(own) = name.strip_prefix(midlayer) {
            name = format!("{first}{own}").into();
        }
        for model in MODELS {
            if name.contains(model) {
                name = name.replace(model, "model.").into();
            }
        }
        if CODESTRAL.iter().any(|start| name.starts_with(start)) {
            name = name["model.".len()..].to_owned().into();
        }
        for prefix in PREFIXES {
            if name.contains(prefix) {
                name = name.replace(prefix, "").into();
            }
        }
        Part::Text(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flattened(fields: Value) -> (Option<String>, Map<String, Value>) {
        let mut fields = fields.as_object().unwrap().clone();
        rename_text_config(&mut fields);
        let class = class(&fields);
        flatten(&mut fields);
        (class, fields)
    }

    #[test]
    fn text_model_fields_take_precedence() {
        for name in TEXT_CONFIGS {
            let (class, fields) = flattened(json!({
                "architectures": ["Outer"], "hidden_size": 1, "depth": 2,
                name: { "architectures": ["Inner"], "hidden_size": 3 }
            }));
            assert_eq!(class.as_deref(), Some("Inner"), "{name}");
            assert_eq!(
                (&fields["hidden_size"], &fields["depth"]),
                (&3.into(), &2.into())
            );
        }
        let (class, fields) = flattened(json!({
            "architectures": ["Qwen2_5OmniModel"],
            "thinker_config": { "text_config": { "hidden_size": 3 } }
        }));
        assert_eq!(class.as_deref(), Some("Qwen2_5OmniModel"));
        assert_eq!(fields["hidden_size"], 3);
    }

    #[test]
    fn some_classes_are_chosen_by_the_outer_name() {
        let (class, _) = flattened(json!({
            "architectures": ["StepVLForConditionalGeneration"],
            "text_config": { "architectures": ["Qwen3ForCausalLM"] }
        }));
        assert_eq!(class.as_deref(), Some("StepVLForConditionalGeneration"));
    }

    #[test]
    fn tensors_of_other_parts_are_distinguished() {
        let text = |name: &str| Part::Text(name.to_owned().into());
        for (name, part) in [
            (
                "model.layers.0.mlp.up_proj.weight",
                text("model.layers.0.mlp.up_proj.weight"),
            ),
            (
                "language_model.model.norm.weight",
                text("model.norm.weight"),
            ),
            (
                "model.language_model.norm.weight",
                text("model.norm.weight"),
            ),
            ("model.visual.blocks.0.norm1.weight", Part::Other(VISION)),
            ("vision_tower.encoder.norm.weight", Part::Other(VISION)),
            ("multi_modal_projector.linear_1.weight", Part::Other(VISION)),
            ("mlp1.0.weight", Part::Other(VISION)),
            (
                "candidate_selector.successor_codebook",
                text("candidate_selector.successor_codebook"),
            ),
            (
                "midlayer.mlp.up_proj.weight",
                text("model.layers.0.mlp.up_proj.weight"),
            ),
            ("thinker.audio_tower.conv1.weight", Part::Other(AUDIO)),
        ] {
            assert_eq!(Part::of(name), part, "{name}");
        }
        for (name, part) in [
            (
                "lfm.layers.0.conv.conv.weight",
                text("model.layers.0.conv.conv.weight"),
            ),
            ("depthformer.layers.0.w.weight", Part::Other(AUDIO)),
            ("codebook_offsets", Part::Other(AUDIO)),
        ] {
            assert_eq!(Part::of(name), part, "{name}");
        }
        for (name, own) in [
            (
                "bert.embeddings.LayerNorm.gamma",
                "embeddings.LayerNorm.weight",
            ),
            (
                "roberta.encoder.layer.0.output.LayerNorm.beta",
                "encoder.layer.0.output.LayerNorm.bias",
            ),
            (
                "distilbert.transformer.layer.0.ffn.lin1.bias",
                "transformer.layer.0.ffn.lin1.bias",
            ),
            (
                "model.layers.0.mlp.act_fn.beta",
                "model.layers.0.mlp.act_fn.beta",
            ),
        ] {
            assert_eq!(Part::of(name), text(own), "{name}");
        }
        let bias = "model.layers.3.mlp.gate.e_score_correction_bias";
        assert_eq!(
            Part::of(bias),
            text("model.layers.3.mlp.gate.e_score_correction.bias")
        );
    }
}
