//! EXAONE 4: norms behind each half of a layer; windows, and rotation only within them, in the model
//! of 64 layers.

use super::config::Result;
use super::decoder::{Decoder, Listed, Rope, Unrotated, Window};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, PLAIN_ATTENTION, rope_factors_by};
use super::olmo::POST_NORMS;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flags};
use super::qwen::HEAD_NORMS;
use super::{Architecture, Config, Keys, Parameter};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// How far Llama 3.1's stretching goes, if the config does not say it.
const FACTOR: f64 = 16.0;

pub(super) static EXAONE4: Architecture = Architecture {
    classes: &["Exaone4ForCausalLM"],
    name: "exaone4",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        POST_NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        BUFFERS,
    ],
    generated: |config, _| rope_factors_by(config, FACTOR),
    decoder: Decoder {
        rope: Rope::Halves,
        window: Window::Listed(Listed {
            tokens: Some(4096),
            stretched: true,
            layers: Some(64),
            ..Listed::THREE_OF_FOUR
        }),
        unrotated: Unrotated::Unwindowed,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(windows),
];

fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let Some(tokens) = config.optional_u32(&["sliding_window"])? else {
        return Ok(());
    };
    keys.set("attention.sliding_window", Value::U32(tokens));
    let layers = 0..config.layers()? as usize;
    let pattern = config.get("sliding_window_pattern");
    if let Some(flags) = config.sliding_layers() {
        set_flags(keys, "attention.sliding_window_pattern", flags);
    } else if let Some(letters) = pattern.and_then(|pattern| pattern.as_str()) {
        let letters: Vec<char> = letters.chars().collect();
        if !letters.is_empty() {
            let flags = layers.map(|layer| letters[layer % letters.len()] == 'L');
            set_flags(keys, "attention.sliding_window_pattern", flags);
        }
    } else if let Some(period) = pattern.and_then(|pattern| pattern.as_u64()) {
        let flags = layers.map(|layer| !(layer as u64 + 1).is_multiple_of(period));
        set_flags(keys, "attention.sliding_window_pattern", flags);
    }
    Ok(())
}
