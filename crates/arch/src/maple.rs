//! Maple: Qwen 3 with experts with activation limits, sliding windows in listed layers, RoPE in
//! these only.

use super::config::{Result, wrong_kind};
use super::decoder::{Decoder, Listed, Needs, Rope, Unrotated, Window};
use super::experts::EXPERT_LENGTH;
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags};
use super::qwen::{EXPERTS, HEAD_NORMS};
use super::{Architecture, Config, Keys, Parameter, nothing_generated};
use crate::config::number_in;
use quantier_gguf::gguf::{Array, Value, ValueType};
use quantier_tokenizer::VocabKind;

pub(super) static MAPLE: Architecture = Architecture {
    classes: &["MapleForCausalLM"],
    name: "maple",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        limits_in_front: true,
        window: Window::Listed(Listed {
            stretched: true,
            ..Listed::THREE_OF_FOUR
        }),
        unrotated: Unrotated::Unwindowed,
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(check),
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(|config, keys| {
        let part = number_in(config.rope(), "partial_rotary_factor")?.unwrap_or(1.0);
        let rotated = f64::from(config.head_len()?) * part;
        keys.set("rope.dimension_count", Value::U32(rotated as u32));
        Ok(())
    }),
    Parameter::U32("attention.sliding_window", &["sliding_window"]),
    Parameter::Computed(|config, keys| {
        let flags = config.sliding_layers();
        let flags = flags.ok_or("field 'layer_types' is missing")?;
        set_flags(keys, "attention.sliding_window_pattern", flags);
        Ok(())
    }),
    EXPERT_LENGTH,
    Parameter::Computed(|config, keys| {
        /// Fixed in the model's code, missing in its config.
        const LIMIT: f32 = 7.0;
        let limits = (0..config.blocks()?).map(|_| Value::F32(LIMIT));
        let limits = Array::of_values(ValueType::F32, limits);
        keys.set("swiglu_clamp_exp", Value::Array(limits));
        Ok(())
    }),
];

/// The reference's requirements.
fn check(config: &Config, _: &mut Keys) -> Result<()> {
    let null = serde_json::Value::Null;
    let shared = config.get("num_shared_experts").unwrap_or(&null);
    for (field, wanted, by_default) in [
        ("hidden_act", serde_json::json!("silu"), false),
        ("norm_topk_prob", true.into(), true),
        ("nope_on_global_attention", true.into(), false),
    ] {
        let value = config.get(field).unwrap_or(&null);
        if *value != wanted && !(value.is_null() && by_default) {
            return Err(wrong_kind(field, value, &wanted.to_string()));
        }
    }
    match shared.is_null() || *shared == 0 {
        true => Ok(()),
        false => Err(wrong_kind("num_shared_experts", shared, "0")),
    }
}
