//! MiniMax M2: norms over all heads, sigmoid-gated experts with a bias in their choice. MiniMax M3:
//! attention to selected blocks of tokens.
//!
//! MiniMax-01 and M1: lightning attention in seven of eight layers, softmax attention in the
//! others, experts in all; residuals are the normalized inputs.

use super::config::{Config, Result};
use super::decoder::{
    Activation, Decoder, Gating, Limit, Needs, Recurrence, Rope, Router, Setting,
};
use super::experts::DENSE_FFN;
use super::llama::{BUFFERS, EMBEDDINGS, MIXTRAL_EXPERTS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Size::{
    self, Any, Experts, Head, Hidden, Keys as KeyRows, Number, Product, Queries,
};
use super::recipes::{Op, Recipe};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_gguf::types::GgmlType;
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
            ..Router::SOFTMAX
        },
        needs: Needs {
            biases: &["exp_probs_b"],
            ..Needs::OWN_OUTPUT
        },
        ..Decoder::LLAMA
    },
};

/// MiniMax M3: norms plus 1, activation limits, a shared expert; an indexer selects the blocks of
/// tokens for attention, all of them in contexts no longer than its selection.
pub(super) static MINIMAX_M3: Architecture = Architecture {
    classes: &[
        "MiniMaxM3SparseForCausalLM",
        "MiniMaxM3SparseForConditionalGeneration",
    ],
    name: "minimax-m3",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        M2_PARAMETERS,
        M3_PARAMETERS,
    ],
    tensors: &[
        EMBEDDINGS,
        NORMS_PLUS_ONE,
        PLAIN_ATTENTION,
        INDEXER,
        DENSE_FFN,
        MIXTRAL_EXPERTS,
        M2_SELECTION_BIAS,
        M3_SHARED_EXPERT,
        BUFFERS,
    ],
    decoder: Decoder {
        router: Router::LISTED,
        activation: Activation::QuickGelu,
        limit: Some(Limit::InFront {
            limit: 7.0,
            offset: 1.0,
        }),
        chooses_blocks: true,
        needs: Needs {
            optional: &[
                "indexer.q_proj",
                "indexer.k_proj",
                "indexer.q_norm",
                "indexer.k_norm",
            ],
            ..MINIMAX_M2.decoder.needs
        },
        ..MINIMAX_M2.decoder
    },
    ..MINIMAX_M2
};

const M3_PARAMETERS: &[Parameter] = &[
    Parameter::U32("expert_shared_count", &["n_shared_experts"]),
    Parameter::F32("expert_weights_scale", &["routed_scaling_factor"]),
    Parameter::Computed(|config, keys| {
        keys.set("expert_weights_norm", Value::Bool(true));
        const SPARSE: &str = "sparse_attention_config";
        for (key, name) in [
            ("head_count", "sparse_num_index_heads"),
            ("key_length", "sparse_index_dim"),
            ("top_k", "sparse_topk_blocks"),
            ("block_size", "sparse_block_size"),
            ("local_blocks", "sparse_local_block"),
        ] {
            let number = config.number_of(SPARSE, name)?;
            let number = number.ok_or_else(|| format!("'{name}' is missing in '{SPARSE}'"))?;
            keys.set(&format!("attention.indexer.{key}"), Value::U32(number));
        }
        const LAYERS: &str = "moe_layer_freq";
        let layers = config.get(LAYERS).and_then(|layers| layers.as_array());
        let layers = layers.ok_or_else(|| format!("field '{LAYERS}' is missing or no list"))?;
        let dense = layers.iter().take_while(|layer| **layer == 0).count();
        keys.set("leading_dense_block_count", Value::U32(dense as u32));
        Ok(())
    }),
];

const PLUS_ONE: &[Op] = &[Op::AddOne];

const NORMS_PLUS_ONE: &[Recipe] = &[
    Recipe::with("model.norm", "output_norm", &[Hidden], PLUS_ONE),
    Recipe::with(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_q_norm",
        &[Head],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.k_norm",
        "blk.{}.attn_k_norm",
        &[Head],
        PLUS_ONE,
    ),
];

const IN_F32: &[Op] = &[Op::Cast(GgmlType::F32)];

const INDEXER: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.index_q_proj",
        "blk.{}.indexer.q_proj",
        &[Any, Hidden],
        IN_F32,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.index_k_proj",
        "blk.{}.indexer.k_proj",
        &[Any, Hidden],
        IN_F32,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.index_q_norm",
        "blk.{}.indexer.q_norm",
        &[Any],
        PLUS_ONE,
    ),
    Recipe::with(
        "model.layers.{}.self_attn.index_k_norm",
        "blk.{}.indexer.k_norm",
        &[Any],
        PLUS_ONE,
    ),
];

const M3_SHARED_EXPERT: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.shared_experts.gate_proj",
        "blk.{}.ffn_gate_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.shared_experts.up_proj",
        "blk.{}.ffn_up_shexp",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.shared_experts.down_proj",
        "blk.{}.ffn_down_shexp",
        &[Hidden, Any],
    ),
];

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

/// One scale of residuals for all blocks, and none for their outputs.
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
