//! GLM 4 and GLM-OCR: pre- and post-norms, fused gate and up, RoPE on half of a head. ChatGLM:
//! without post-norms, with fused queries, keys and values.

use super::config::Result;
use super::decoder::{Decoder, Sections};
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION};
use super::nextn::NEXTN;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, rotated_part};
use super::recipes::Op;
use super::recipes::Size::{Any, Hidden, KeyHeads, Keys as KeyRows, Queries, QueryHeads};
use super::recipes::When;
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// Default of the rotated fraction of a head.
const PART: f64 = 0.5;

pub(super) static GLM4: Architecture = Architecture {
    classes: &["Glm4ForCausalLM", "Glm4vForConditionalGeneration"],
    name: "glm4",
    vocabulary: VocabKind::Glm4,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        GLM4_NORMS,
        MROPE_ATTENTION,
        PLAIN_ATTENTION,
        FUSED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        sections: Sections::Listed,
        ..Decoder::LLAMA
    },
};

/// GLM-OCR's text model: a multi-token prediction block follows the last layer.
pub(super) static GLM_OCR: Architecture = Architecture {
    classes: &["GlmOcrForConditionalGeneration"],
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS, PREDICT_LAYERS],
    tensors: &[
        EMBEDDINGS,
        GLM4_NORMS,
        MROPE_ATTENTION,
        PLAIN_ATTENTION,
        FUSED_FFN,
        NEXTN,
        BUFFERS,
    ],
    ..GLM4
};

pub(super) static CHATGLM: Architecture = Architecture {
    classes: &[
        "GlmForCausalLM",
        "ChatGLMModel",
        "ChatGLMForConditionalGeneration",
    ],
    name: "chatglm",
    vocabulary: VocabKind::ChatGlm,
    parameters: &[CHATGLM_PARAMETERS],
    tensors: &[
        CHATGLM_TENSORS,
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        FUSED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder::LLAMA,
};

const PARAMETERS: &[Parameter] = &[ROTATED_PART];

/// RoPE dimensions per head.
pub(super) const ROTATED_PART: Parameter = Parameter::Computed(|config, keys| {
    keys.set("rope.dimension_count", Value::U32(rotated(config)? as u32));
    Ok(())
});

const PREDICT_LAYERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    if config.get("num_nextn_predict_layers").is_some() {
        keys.set("nextn_predict_layers", Value::U32(config.nextn()));
    }
    Ok(())
})];

const GLM4_NORMS: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_self_attn_layernorm",
        "blk.{}.post_attention_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_mlp_layernorm",
        "blk.{}.post_ffw_norm",
        &[Hidden],
    ),
];

/// Pre-norms of attention and feed-forward network, of which the second is named as a post-norm,
/// and a norm after the last layer.
pub(super) const AROUND_ATTENTION: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.post_attention_norm",
        &[Hidden],
    ),
];

/// For RoPE with sections, llama.cpp rotates by halves.
const QUERIES_BY_HALVES: &[Op] = &[Op::Deinterleave {
    heads: QueryHeads,
    rotated,
}];
const KEYS_BY_HALVES: &[Op] = &[Op::Deinterleave {
    heads: KeyHeads,
    rotated,
}];

fn rotated(config: &Config) -> Result<u64> {
    let part = rotated_part(config, Some(PART))?;
    Ok((part * f64::from(config.head_len()?)) as u64)
}

const MROPE_ATTENTION: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[Queries, Hidden],
        QUERIES_BY_HALVES,
    )
    .when(When::Sections),
    Recipe::with(
        "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_k",
        &[KeyRows, Hidden],
        KEYS_BY_HALVES,
    )
    .when(When::Sections),
];

const FUSED_FFN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.gate_up_proj",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
];

const HEADS: &[&str] = &["n_head", "num_attention_heads"];
const KV_HEADS: &[&str] = &[
    "multi_query_group_num",
    "num_key_value_heads",
    "n_head",
    "num_attention_heads",
];
const WIDTH: &[&str] = &["ffn_hidden_size", "intermediate_size"];

const CHATGLM_PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", &["seq_length", "hidden_size", "n_embed"]),
    Parameter::U32("embedding_length", &["hidden_size", "n_embed"]),
    Parameter::U32("feed_forward_length", WIDTH),
    Parameter::Layers,
    Parameter::U32("attention.head_count", HEADS),
    Parameter::U32("attention.head_count_kv", KV_HEADS),
    Parameter::Computed(|config, keys| {
        let epsilon = config.optional_f64(&["layernorm_epsilon"])?.unwrap_or(1e-5);
        keys.set(
            "attention.layer_norm_rms_epsilon",
            Value::F32(epsilon as f32),
        );
        Ok(())
    }),
    Parameter::FileType,
    Parameter::Computed(chatglm_rope),
];

fn chatglm_rope(config: &Config, keys: &mut Keys) -> Result<()> {
    let length = match config.optional_u32(&["attention_dim"])? {
        Some(length) => length,
        None => config.share_of_head()?,
    };
    let rotated = f64::from(length) * rotated_part(config, Some(PART))?;
    keys.set("rope.dimension_count", Value::U32(rotated as u32));
    keys.set_exact("tokenizer.ggml.add_bos_token".into(), Value::Bool(false));
    let ratio = config.optional_f64(&["rope_ratio"])?.unwrap_or(1.0);
    keys.set("rope.freq_base", Value::F32((10_000.0 * ratio) as f32));
    Ok(())
}

const CHATGLM_TENSORS: &[Recipe] = &[
    Recipe::rename(
        "transformer.embedding.word_embeddings",
        "token_embd",
        &[Any, Hidden],
    ),
    Recipe::rename("transformer.output_layer", "output", &[Any, Hidden]),
    Recipe::rename(
        "transformer.encoder.final_layernorm",
        "output_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "transformer.encoder.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "transformer.encoder.layers.{}.self_attention.query_key_value",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "transformer.encoder.layers.{}.self_attention.dense",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "transformer.encoder.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "transformer.encoder.layers.{}.mlp.dense_h_to_4h",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "transformer.encoder.layers.{}.mlp.dense_4h_to_h",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
    Recipe::skip("transformer.rotary_pos_emb.inv_freq"),
];
