//! MiniCPM: Llama with three multipliers, and RoPE factors for long contexts. MiniCPM3: keys and
//! values from a latent vector, by one matrix for all heads.

use super::config::Result;
use super::decoder::{Decoder, Rope, Scales};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::olmo::WEIGHTS_INTERLEAVED;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::recipes::Recipe;
use super::recipes::Size::{Any, Hidden};
use super::{Architecture, Config, Generated, Keys, Parameter};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static MINICPM: Architecture = Architecture {
    classes: &["MiniCPMForCausalLM"],
    name: "minicpm",
    vocabulary: VocabKind::SentencePiece,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        WEIGHTS_INTERLEAVED,
        PLAIN_ATTENTION,
        GATED_FFN,
        BUFFERS,
    ],
    generated: long_rope_factors,
    decoder: Decoder::LLAMA,
};

pub(super) static MINICPM3: Architecture = Architecture {
    classes: &["MiniCPM3ForCausalLM"],
    name: "minicpm3",
    parameters: &[LATENT_PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, LATENT_ATTENTION, GATED_FFN, BUFFERS],
    generated: |config, _| {
        let rotated = config.u32(&["qk_rope_head_dim"])?;
        long_factors(config, rotated as usize / 2)
    },
    decoder: Decoder {
        rope: Rope::Halves,
        expands_latents: true,
        // Fixed in llama.cpp.
        scales: Scales {
            embeddings: 12.0,
            depth: Some(1.4),
            width: Some(256.0),
            ..Scales::NONE
        },
        ..Decoder::LLAMA
    },
    ..MINICPM
};

const LATENT_PARAMETERS: &[Parameter] = &[
    Parameter::FileType,
    Parameter::U32("context_length", &["max_position_embeddings"]),
    Parameter::U32("embedding_length", &["hidden_size"]),
    Parameter::Layers,
    Parameter::U32("feed_forward_length", &["intermediate_size"]),
    Parameter::U32("attention.head_count", &["num_attention_heads"]),
    Parameter::U32("attention.head_count_kv", &["num_key_value_heads"]),
    Parameter::F32("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::OptionalU32("attention.q_lora_rank", &["q_lora_rank"]),
    Parameter::U32("attention.kv_lora_rank", &["kv_lora_rank"]),
    Parameter::Computed(|config, keys| {
        let rotated = config.u32(&["qk_rope_head_dim"])?;
        let length = config.u32(&["qk_nope_head_dim"])?.checked_add(rotated);
        let length = length.ok_or("heads have more numbers than 32 bits say")?;
        keys.set("attention.key_length", Value::U32(length));
        keys.set("rope.dimension_count", Value::U32(rotated));
        Ok(())
    }),
];

const LATENT_ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_a_proj",
        "blk.{}.attn_q_a",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.q_a_layernorm",
        "blk.{}.attn_q_a_norm",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.q_b_proj",
        "blk.{}.attn_q_b",
        &[Any, Any],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.kv_a_proj_with_mqa",
        "blk.{}.attn_kv_a_mqa",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.kv_a_layernorm",
        "blk.{}.attn_kv_a_norm",
        &[Any],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.kv_b_proj",
        "blk.{}.attn_kv_b",
        &[Any, Any],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
];

const PARAMETERS: &[Parameter] = &[
    Parameter::F32("embedding_scale", &["scale_emb"]),
    Parameter::Computed(|config, keys| {
        let scale = config.f64(&["scale_depth"])? / f64::from(config.layers()?).sqrt();
        keys.set("residual_scale", Value::F32(scale as f32));
        Ok(())
    }),
    Parameter::Computed(|config, keys| {
        let scale = config.f64(&["hidden_size"])? / config.f64(&["dim_model_base"])?;
        keys.set("logit_scale", Value::F32(scale as f32));
        Ok(())
    }),
];

fn long_rope_factors(config: &Config, _: &mut Keys) -> Result<Vec<Generated>> {
    long_factors(config, config.share_of_head()? as usize / 2)
}

/// RoPE factors for long and short contexts, `expected` of each.
fn long_factors(config: &Config, expected: usize) -> Result<Vec<Generated>> {
    let factors = |field: &str, name| {
        let Some(weights) = config.rope_numbers(field)? else {
            return Ok(None);
        };
        match weights.len() == expected {
            true => Ok(Some(Generated::vector(name, weights))),
            false => Err(format!(
                "'{field}' has {} numbers; {expected} are needed",
                weights.len()
            )),
        }
    };
    let long = factors("long_factor", "rope_factors_long.weight")?;
    let short = factors("short_factor", "rope_factors_short.weight")?;
    match (long, short) {
        (Some(long), Some(short)) => Ok(vec![long, short]),
        (None, None) => Ok(Vec::new()),
        _ => Err("'long_factor' and 'short_factor' belong together".into()),
    }
}
