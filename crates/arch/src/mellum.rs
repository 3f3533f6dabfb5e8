//! Mellum 2: Qwen 3 with experts, and sliding windows in listed layers, whose RoPE is not scaled.

use super::config::Result;
use super::decoder::{Decoder, Listed, Needs, Rope, Window};
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags};
use super::qwen::{EXPERTS, HEAD_NORMS};
use super::{Architecture, Config, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static MELLUM: Architecture = Architecture {
    classes: &["MellumForCausalLM"],
    name: "mellum",
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
        window: Window::Listed(Listed::THREE_OF_FOUR),
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::OptionalU32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::Computed(windows),
];

fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let uses = config.get("use_sliding_window");
    let tokens = config.optional_u32(&["sliding_window"])?;
    let Some(tokens) = tokens.filter(|_| uses.is_none_or(|uses| *uses == true)) else {
        return Ok(());
    };
    let flags = config.sliding_layers();
    let flags = flags.ok_or("field 'layer_types' is missing")?;
    keys.set("attention.sliding_window", Value::U32(tokens));
    set_flags(keys, "attention.sliding_window_pattern", flags);
    Ok(())
}
