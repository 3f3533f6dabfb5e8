//! DeepSeek V3.2 and GLM 5: DeepSeek V3 with an indexer that selects the tokens of a query's
//! attention.

use super::decoder::{Decoder, IndexerKind, Needs, Rope, Router, ScoreYarn};
use super::deepseek::{
    DEEPSEEK2, EXPERT_PARAMETERS, LATENT, LATENT_DECODER, PARAMETERS, QUERIES, ROTATION,
    SELECTION_BIAS, TIED_OUTPUT,
};
use super::experts::SHARED_EXPERTS;
use super::glm_moe::LISTED_PREDICT_LAYERS;
use super::kimi::{ATTENTION as OUTPUT, LATENT_ATTENTION};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS};
use super::nextn::NEXTN;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, rotated_part, set_flags};
use super::qwen::EXPERTS;
use super::recipes::Size::{Field, Hidden, Product};
use super::recipes::{Recipe, Size};
use super::{Architecture, Parameter};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static DEEPSEEK32: Architecture = Architecture {
    classes: &["DeepseekV32ForCausalLM"],
    name: "deepseek32",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        LOW_RANK_QUERIES,
        PARAMETERS,
        LATENT,
        EXPERT_PARAMETERS,
        ROTATION,
        &[LISTED_PREDICT_LAYERS],
        INDEXER_PARAMETERS,
    ],
    tensors: &[
        TIED_OUTPUT,
        EMBEDDINGS,
        NORMS,
        QUERIES,
        OUTPUT,
        LATENT_ATTENTION,
        INDEXER,
        GATED_FFN,
        EXPERTS,
        SHARED_EXPERTS,
        SELECTION_BIAS,
        NEXTN,
        BUFFERS,
    ],
    decoder: Decoder {
        router: Router::LISTED,
        score_yarn: Some(ScoreYarn {
            is_listed: true,
            is_balanced: false,
        }),
        indexer: Some(IndexerKind {
            rope: Rope::Halves,
            epsilon: 1e-6,
        }),
        needs: Needs {
            biases: &["indexer.k_norm"],
            ..Needs::WEIGHTS
        },
        ..LATENT_DECODER
    },
    ..DEEPSEEK2
};

/// GLM 5 and its successors, some of which share an indexer's selection among layers.
pub(super) static GLM_DSA: Architecture = Architecture {
    classes: &["GlmMoeDsaForCausalLM"],
    name: "glm-dsa",
    vocabulary: VocabKind::GlmMoe,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        LOW_RANK_QUERIES,
        PARAMETERS,
        LATENT,
        EXPERT_PARAMETERS,
        ROTATION,
        GLM_ROTATION,
        &[LISTED_PREDICT_LAYERS],
        INDEXER_PARAMETERS,
        INDEXER_TYPES,
    ],
    decoder: Decoder {
        score_yarn: Some(ScoreYarn {
            is_listed: false,
            is_balanced: false,
        }),
        indexer: Some(IndexerKind {
            rope: Rope::Pairs,
            epsilon: 0.0,
        }),
        needs: Needs {
            optional: &[
                "indexer.k_norm",
                "indexer.proj",
                "indexer.attn_k",
                "indexer.attn_q_b",
            ],
            ..Needs::WEIGHTS
        },
        ..DEEPSEEK32.decoder
    },
    ..DEEPSEEK32
};

/// llama.cpp supports only low-rank queries.
const LOW_RANK_QUERIES: &[Parameter] = &[Parameter::Computed(|config, _| {
    config.u32(&["q_lora_rank"]).map(drop)
})];

const GLM_ROTATION: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let rotated = f64::from(config.u32(&["qk_rope_head_dim"])?) * rotated_part(config, Some(1.0))?;
    keys.set("rope.dimension_count", Value::U32(rotated as u32));
    Ok(())
})];

/// Heads, length and choice of the indexer.
pub(super) const INDEXER_PARAMETERS: &[Parameter] = &[
    Parameter::U32("attention.indexer.head_count", &["index_n_heads"]),
    Parameter::U32("attention.indexer.key_length", &["index_head_dim"]),
    Parameter::U32("attention.indexer.top_k", &["index_topk"]),
];

/// Layers with an indexer, if others reuse its selection.
pub(super) const INDEXER_TYPES: &[Parameter] = &[Parameter::Computed(|config, keys| {
    const FIELD: &str = "indexer_types";
    if let Some(types) = config.get(FIELD) {
        let wrong = || super::config::wrong_kind(FIELD, types, "a list of texts");
        let types = types.as_array().ok_or_else(wrong)?;
        let is_full = types.iter().map(|kind| *kind == "full");
        set_flags(keys, "attention.indexer.types", is_full);
    }
    Ok(())
})];

const HEADS: Size = Field(&["index_n_heads"]);
const LENGTH: Size = Field(&["index_head_dim"]);

/// The indexer of sparse attention.
pub(super) const INDEXER: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.indexer.k_norm",
        "blk.{}.indexer.k_norm",
        &[LENGTH],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.indexer.weights_proj",
        "blk.{}.indexer.proj",
        &[HEADS, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.indexer.wk",
        "blk.{}.indexer.attn_k",
        &[LENGTH, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.indexer.wq_b",
        "blk.{}.indexer.attn_q_b",
        &[Product(&[HEADS, LENGTH]), Field(&["q_lora_rank"])],
    ),
];
