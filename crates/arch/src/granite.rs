//! IBM's Granite: Llama with four multipliers.

use super::decoder::Decoder;
use super::llama::{ATTENTION, BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, rope_factors};
use super::parameters::{COMMON, FILE_TYPE, SHARED_ROPE_DIMENSIONS};
use super::{Architecture, Parameter};
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
    SHARED_ROPE_DIMENSIONS,
    Parameter::NonzeroF32("attention.scale", &["attention_multiplier"]),
    Parameter::NonzeroF32("embedding_scale", &["embedding_multiplier"]),
    Parameter::NonzeroF32("residual_scale", &["residual_multiplier"]),
    Parameter::NonzeroF32("logit_scale", &["logits_scaling"]),
];
