//! MiniMax M2: norms over all heads, experts chosen by logistic functions with a bias.
//!
//! MiniMax-01 and M1: lightning attention in seven of eight layers, softmax attention in the others,
//! experts in all; what a block adds to is its normalized input.

use super::config::{Config, Result};
use super::decoder::{Decoder, Gating, Needs, Recurrence, Rope, Router, Setting};
use super::llama::{BUFFERS, EMBEDDINGS, MIXTRAL_EXPERTS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Recipe;
use super::recipes::Size::{self, Experts, Hidden, Keys as KeyRows, Number, Product, Queries};
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

pub(super) static MINIMAX_M2: Architecture = Architecture {
    classes: &["MiniMaxM2ForCausalLM"],
    name: "minimax-m2",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, M2_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        NORMS_OF_ALL_HEADS,
        MIXTRAL_EXPERTS,
        M2_SELECTION_BIAS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        router: Router {
            gating: Setting::Listed(Gating::Sigmoid),
            normalized: Setting::Always(true),
        },
        needs: Needs {
            biases: &["exp_probs_b"],
            ..Needs::OWN_OUTPUT
        },
        ..Decoder::LLAMA
    },
};

const M2_PARAMETERS: &[Parameter] = &[
    Parameter::Computed(|config, _| match config.get("scoring_func") {
        Some(_) => Ok(()),
        None => Err(
            "field 'scoring_func' is missing; llama.cpp cannot run a MiniMax M2 without it".into(),
        ),
    }),
    Parameter::U32("expert_feed_forward_length", &["intermediate_size"]),
    Parameter::U32("rope.dimension_count", &["rotary_dim"]),
];

const NORMS_OF_ALL_HEADS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_q_norm",
        &[Queries],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.k_norm",
        "blk.{}.attn_k_norm",
        &[KeyRows],
    ),
];

const M2_SELECTION_BIAS: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.block_sparse_moe.e_score_correction.bias",
    "blk.{}.exp_probs_b.bias",
    &[Experts],
)];

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
