//! Poolside's Laguna: a softplus gate per head or element, numbers of heads per layer, two RoPE
//! variants, sigmoid-gated experts with a bias in their choice.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{Activation, Decoder, Listed, Needs, Rope, Router, Window};
use super::experts::{EXPERT_LENGTH, GATE_UP_DOWN, ROUTER, SELECTION_BIAS, SHARED_EXPERTS};
use super::llama::{ATTENTION_GATE, BUFFERS, EMBEDDINGS, GATED_FFN, LISTED_ATTENTION, NORMS};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_numbers};
use super::qwen::{HEAD_NORMS, SHARED_EXPERT};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static LAGUNA: Architecture = Architecture {
    classes: &["LagunaForCausalLM"],
    name: "laguna",
    vocabulary: VocabKind::Laguna,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        LISTED_ATTENTION,
        ATTENTION_GATE,
        HEAD_NORMS,
        GATED_FFN,
        ROUTER,
        SELECTION_BIAS,
        GATE_UP_DOWN,
        SHARED_EXPERT,
        SHARED_EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        gate: Activation::Softplus,
        router: Router::LISTED,
        window: Window::Listed(Listed {
            first: true,
            ..Listed::THREE_OF_FOUR
        }),
        needs: Needs {
            biases: &["exp_probs_b"],
            optional: &["ffn_gate_inp_shexp"],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(heads),
    Parameter::Computed(gates),
    Parameter::Computed(|config, keys| {
        let tokens = config.optional_u32(&["sliding_window"])?;
        if let Some(tokens) = tokens.filter(|tokens| *tokens > 0) {
            keys.set("attention.sliding_window", Value::U32(tokens));
        }
        Ok(())
    }),
    EXPERT_LENGTH,
    Parameter::U32(
        "expert_shared_feed_forward_length",
        &["shared_expert_intermediate_size"],
    ),
    Parameter::Computed(|_, keys| {
        keys.set("expert_weights_norm", Value::Bool(true));
        Ok(())
    }),
    Parameter::F32("expert_weights_scale", &["moe_routed_scaling_factor"]),
    // Sigmoid.
    Parameter::ConstantU32("expert_gating_func", 2),
    Parameter::Computed(dense_layers),
    Parameter::Computed(rotations),
];

/// A list with one entry per layer; None if missing or empty.
fn listed<'c>(config: &'c Config, field: &str) -> Result<Option<&'c [serde_json::Value]>> {
    let Some(value) = config.get(field) else {
        return Ok(None);
    };
    let list = value.as_array();
    let list =
        list.ok_or_else(|| wrong_kind(field, value, "a list with one entry for each layer"))?;
    let (count, layers) = (list.len(), config.layers()?);
    match count {
        0 => Ok(None),
        _ if count == layers as usize => Ok(Some(list)),
        _ => Err(format!("'{field}' has {count} entries for {layers} layers")),
    }
}

fn heads(config: &Config, keys: &mut Keys) -> Result<()> {
    const FIELD: &str = "num_attention_heads_per_layer";
    let heads = match listed(config, FIELD)? {
        None => vec![config.u32(&["num_attention_heads"])?; config.layers()? as usize],
        Some(list) => {
            let number = |value: &serde_json::Value| {
                let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
                number.ok_or_else(|| wrong_kind(FIELD, value, "a list of whole numbers"))
            };
            list.iter().map(number).collect::<Result<_>>()?
        }
    };
    set_numbers(keys, "attention.head_count", heads);
    Ok(())
}

/// The reference's requirements on gate types. The gate's matrix shows its type.
fn gates(config: &Config, _: &mut Keys) -> Result<()> {
    const WANTED: &str = "'per-head' or 'per-element'";
    let is_of_elements = |field: &str, value: &serde_json::Value| {
        let kind = value.as_str().map(|kind| kind.replace('-', "_"));
        match kind.as_deref() {
            Some("per_element") => Ok(true),
            Some("per_head") => Ok(false),
            _ => Err(wrong_kind(field, value, WANTED)),
        }
    };
    let of_all = config.get("gating");
    let all_of_elements = match of_all.filter(|gating| gating.is_string()) {
        Some(gating) => is_of_elements("gating", gating)?,
        None => false,
    };
    let Some(kinds) = listed(config, "gating_types")? else {
        let is_known = of_all.is_some_and(|gating| gating.is_string() || *gating == true);
        return match is_known {
            true => Ok(()),
            false => Err(format!("field 'gating' is none of {WANTED}")),
        };
    };
    for kind in kinds {
        if is_of_elements("gating_types", kind)? && !all_of_elements {
            return Err(
                "'gating_types' lists 'per_element', and 'gating' is not 'per-element': other programs would take the \
                 gate for one of heads; set it in config.json"
                    .into(),
            );
        }
    }
    Ok(())
}

fn dense_layers(config: &Config, keys: &mut Keys) -> Result<()> {
    const FIELD: &str = "mlp_layer_types";
    let kinds = config.get(FIELD).and_then(|kinds| kinds.as_array());
    let kinds = kinds.ok_or_else(|| format!("field '{FIELD}' is missing or no list"))?;
    let dense = kinds.iter().take_while(|kind| **kind == "dense").count();
    keys.set("leading_dense_block_count", Value::U32(dense as u32));
    Ok(())
}

fn rotations(config: &Config, keys: &mut Keys) -> Result<()> {
    let head = f64::from(config.u32(&["head_dim"])?);
    let kinds = [
        ("rope.dimension_count", "full_attention"),
        ("rope.dimension_count_swa", "sliding_attention"),
    ];
    for (key, kind) in kinds {
        match config.rope_part_or(kind, 1.0)? {
            Some(part) => keys.set(key, Value::U32((head * part) as u32)),
            None if kind == "full_attention" => {
                return Err(format!("'rope_parameters' has no '{kind}'"));
            }
            None => {}
        }
    }
    Ok(())
}
