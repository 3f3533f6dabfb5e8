//! IBM's Granite: Llama with four multipliers.

use super::config::Result;
use super::decoder::Decoder;
use super::llama::{ATTENTION, BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, rope_factors};
use super::parameters::{COMMON, FILE_TYPE};
use super::{Architecture, Config, Keys, Parameter};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static GRANITE: Architecture = Architecture {
    classes: &["GraniteForCausalLM"],
    name: "granite",
    vocabulary: VocabKind::Llama,
    parameters: &[COMMON, FILE_TYPE, PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, ATTENTION, GATED_FFN, BUFFERS],
    generated: rope_factors,
    decoder: Decoder::LLAMA,
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(rope_dimensions),
    Parameter::NonzeroF32("attention.scale", &["attention_multiplier"]),
    Parameter::NonzeroF32("embedding_scale", &["embedding_multiplier"]),
    Parameter::NonzeroF32("residual_scale", &["residual_multiplier"]),
    Parameter::NonzeroF32("logit_scale", &["logits_scaling"]),
];

/// Granite has no head length of its own: a `head_dim` in the config counts for nothing.
fn rope_dimensions(config: &Config, keys: &mut Keys) -> Result<()> {
    keys.set("rope.dimension_count", Value::U32(config.share_of_head()?));
    Ok(())
}
