//! MiniMax-01 and M1: lightning attention in seven of eight layers, softmax attention in the others,
//! experts in all; what a block adds to is its normalized input.

use super::config::{Config, Result};
use super::decoder::{Decoder, Recurrence, Rope};
use super::llama::{BUFFERS, EMBEDDINGS, MIXTRAL_EXPERTS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Recipe;
use super::recipes::Size::{self, Hidden, Number, Product, Queries};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static MINIMAX_01: Architecture = Architecture {
    classes: &["MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM"],
    name: "minimax-01",
    vocabulary: VocabKind::MiniMax01,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        LIGHTNING,
        MIXTRAL_EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        recurrence: Some(Recurrence::Lightning(8)),
        normalized_residuals: true,
        ..Decoder::LLAMA
    },
};

/// Queries, keys and values of all heads.
const ALL: Size = Product(&[Number(3), Queries]);

const LIGHTNING: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.qkv_proj",
        "blk.{}.attn_qkv",
        &[ALL, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.output_gate",
        "blk.{}.attn_gate",
        &[Queries, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.norm",
        "blk.{}.attn_norm_2",
        &[Queries],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.out_proj",
        "blk.{}.attn_output",
        &[Hidden, Queries],
    ),
];

const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(residual_scale),
    Parameter::U32("rope.dimension_count", &["rotary_dim"]),
];

/// One scale for all kinds of blocks, and none for what they add.
fn residual_scale(config: &Config, keys: &mut Keys) -> Result<()> {
    const ALPHAS: [&str; 3] = [
        "layernorm_full_attention_alpha",
        "layernorm_linear_attention_alpha",
        "layernorm_mlp_alpha",
    ];
    const BETAS: [&str; 3] = [
        "layernorm_full_attention_beta",
        "layernorm_linear_attention_beta",
        "layernorm_mlp_beta",
    ];
    let all = |names: [&str; 3]| -> Result<[f64; 3]> {
        let [a, b, c] = names.map(|name| config.f64(&[name]));
        Ok([a?, b?, c?])
    };
    let alphas = all(ALPHAS)?;
    for (names, numbers, expected) in [(ALPHAS, alphas, alphas[0]), (BETAS, all(BETAS)?, 1.0)] {
        if let Some(at) = numbers.iter().position(|number| *number != expected) {
            return Err(format!(
                "field '{}' is {}; llama.cpp runs only {expected}, as '{}' of a model that it knows",
                names[at], numbers[at], names[0]
            ));
        }
    }
    keys.set("residual_scale", Value::F32(alphas[0] as f32));
    Ok(())
}
