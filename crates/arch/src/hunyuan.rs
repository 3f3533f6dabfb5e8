//! Hunyuan, dense: QK norms after RoPE, with a base that grows with the context.

use super::config::{Result, number_in};
use super::decoder::{Decoder, Rope, Sections};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::Head;
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// The context of the scaled base; the config has a smaller one.
const CONTEXT: u32 = 256 * 1024;
/// Accepted contexts in the config.
const CONFIG_CONTEXTS: [u32; 2] = [32 * 1024, CONTEXT];
/// Default of the base's scaling factor alpha.
const ALPHA: f64 = 50.0;
const BASE: f64 = 10_000.0;

pub(super) static HUNYUAN_DENSE: Architecture = Architecture {
    classes: &["HunYuanDenseV1ForCausalLM"],
    name: "hunyuan-dense",
    vocabulary: VocabKind::Hunyuan,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        norms_rotated: true,
        ..Decoder::LLAMA
    },
};

/// The text model of Hunyuan VL and OCR.
pub(super) static HUNYUAN_VL: Architecture = Architecture {
    classes: &["HunYuanVLForConditionalGeneration"],
    name: "hunyuan_vl",
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS, VL_PARAMETERS],
    decoder: Decoder {
        sections: Sections::Listed,
        ..HUNYUAN_DENSE.decoder
    },
    ..HUNYUAN_DENSE
};

const PARAMETERS: &[Parameter] = &[
    // Some configs of dense models have one expert.
    Parameter::Computed(|config, keys| {
        if config.get("num_local_experts").is_none() {
            keys.remove("expert_count");
        }
        Ok(())
    }),
    Parameter::Computed(rope),
];
const VL_PARAMETERS: &[Parameter] = &[Parameter::Computed(sections)];

fn number(config: &Config, name: &str, by_default: f64) -> Result<f64> {
    Ok(number_in(config.rope(), name)?.unwrap_or(by_default))
}

/// The type of RoPE scaling; newer files of Hunyuan VL call theirs `dynamic`.
fn kind(config: &Config) -> &str {
    let rope = config.rope();
    let kind = rope.get("rope_type").and_then(|kind| kind.as_str());
    match kind.unwrap_or_default() {
        "dynamic" if rope.contains_key("mrope_section") => "xdrope",
        kind => kind,
    }
}

/// The base is scaled, the same for all positions (NTK-aware scaling).
fn rope(config: &Config, keys: &mut Keys) -> Result<()> {
    if !matches!(kind(config), "dynamic" | "xdrope") {
        return Ok(());
    }
    let (alpha, base) = (
        number(config, "alpha", ALPHA)?,
        number(config, "rope_theta", BASE)?,
    );
    let length = f64::from(config.u32(&["head_dim"])?);
    let stretched = base * alpha.powf(length / (length - 2.0));
    keys.set("rope.freq_base", Value::F32(stretched as f32));
    keys.set("rope.scaling.type", Value::str("none"));
    keys.set("rope.scaling.factor", Value::F32(1.0));
    if kind(config) == "dynamic" {
        const FIELD: &str = "max_position_embeddings";
        let context = config.u32(&[FIELD])?;
        if base != BASE || !CONFIG_CONTEXTS.contains(&context) {
            return Err(format!(
                "'rope_theta' {base} with '{FIELD}' {context} is stretched in no known way"
            ));
        }
        keys.set("rope.scaling.original_context_length", Value::U32(CONTEXT));
        keys.set("context_length", Value::U32(CONTEXT));
    }
    Ok(())
}

/// RoPE scaling of Hunyuan VL is left to llama.cpp.
fn sections(config: &Config, keys: &mut Keys) -> Result<()> {
    if kind(config) != "xdrope" {
        return Ok(());
    }
    let missing = |name: &str| format!("'{name}' is missing among the rope parameters");
    let needed = |name: &str| number_in(config.rope(), name)?.ok_or_else(|| missing(name));
    keys.set("rope.freq_base", Value::F32(needed("rope_theta")? as f32));
    keys.set("rope.scaling.alpha", Value::F32(needed("alpha")? as f32));
    keys.set("rope.scaling.type", Value::str("none"));
    let factor = number(config, "factor", 1.0)?;
    keys.set("rope.scaling.factor", Value::F32(factor as f32));
    let context = config.u32(&["max_position_embeddings"])?;
    keys.set("rope.scaling.original_context_length", Value::U32(context));
    keys.set("context_length", Value::U32(context));
    let sections = config.sections_in(&["xdrope_section", "mrope_section"])?;
    let sections = sections.ok_or_else(|| missing("xdrope_section"))?;
    super::parameters::set_numbers(keys, "rope.dimension_sections", sections);
    Ok(())
}

pub(super) const HEAD_NORMS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.query_layernorm",
        "blk.{}.attn_q_norm",
        &[Head],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.key_layernorm",
        "blk.{}.attn_k_norm",
        &[Head],
    ),
];
