//! StableLM: layer norms, partial RoPE, in some sizes parallel attention and feed-forward network.

use super::config::Result;
use super::decoder::{Decoder, Layout, Needs, Norm, Rope};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::parameters::{PARALLEL_RESIDUAL, rotated_part};
use super::{Architecture, Config, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static STABLELM: Architecture = Architecture {
    classes: &["StableLmForCausalLM", "StableLMEpochForCausalLM"],
    name: "stablelm",
    vocabulary: VocabKind::StableLm,
    parameters: &[PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, PLAIN_ATTENTION, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::Halves,
        layout: Layout::ParallelWithout("ffn_norm"),
        needs: Needs {
            optional: &["ffn_norm"],
            biases: &["output_norm", "attn_norm"],
            ..Needs::OWN_OUTPUT
        },
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", &["max_position_embeddings"]),
    Parameter::U32("embedding_length", &["hidden_size"]),
    Parameter::Layers,
    Parameter::U32("feed_forward_length", &["intermediate_size"]),
    Parameter::Computed(rotated),
    Parameter::U32("attention.head_count", &["num_attention_heads"]),
    Parameter::U32("attention.head_count_kv", &["num_key_value_heads"]),
    PARALLEL_RESIDUAL,
    Parameter::F32(
        "attention.layer_norm_epsilon",
        &["layer_norm_eps", "norm_eps"],
    ),
    Parameter::FileType,
];

fn rotated(config: &Config, keys: &mut Keys) -> Result<()> {
    let rotated = rotated_part(config, None)? * f64::from(config.share_of_head()?);
    keys.set("rope.dimension_count", Value::U32(rotated as u32));
    Ok(())
}
