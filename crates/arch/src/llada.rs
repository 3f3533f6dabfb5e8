//! Masked language models (LLaDA, Dream, RND1): Llama and Qwen 2 without causal masks. Conversion
//! only; they cannot be run.

use super::config::Result;
use super::decoder::Decoder;
use super::llama::{BUFFERS, EMBEDDINGS, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, POOLING};
use super::recipes::Op::Interleave;
use super::recipes::Size::{self, Any, Field, KeyHeads, QueryHeads};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated, qwen};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static LLADA: Architecture = Architecture {
    classes: &["LLaDAModelLM"],
    name: "llada",
    vocabulary: VocabKind::Llada,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, POOLING, PARAMETERS],
    tensors: &[TENSORS],
    generated: nothing_generated,
    decoder: Decoder::LLAMA,
};

pub(super) static DREAM: Architecture = Architecture {
    classes: &["DreamModel"],
    name: "dream",
    vocabulary: VocabKind::Dream,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, POOLING, DREAM_PARAMETERS],
    ..qwen::QWEN2
};

/// LLaDA with experts.
pub(super) static LLADA_MOE: Architecture = Architecture {
    classes: &["LLaDAMoEModel", "LLaDAMoEModelLM"],
    name: "llada-moe",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, MOE_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        qwen::HEAD_NORMS,
        qwen::EXPERTS,
        BUFFERS,
    ],
    decoder: qwen::QWEN2_MOE.decoder,
    ..LLADA
};

/// RND1: Qwen 3 with experts.
pub(super) static RND1: Architecture = Architecture {
    classes: &["RND1"],
    name: "rnd1",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        qwen::EXPERT_PARAMETERS,
        DREAM_PARAMETERS,
    ],
    ..qwen::QWEN3_MOE
};

const MOE_PARAMETERS: &[Parameter] = &[
    Parameter::OptionalU32("expert_feed_forward_length", &["expert_intermediate_size"]),
    Parameter::Computed(|_, keys| {
        /// Fixed by the reference, missing in the config.
        const MASK: u32 = 156_895;
        keys.set_exact("tokenizer.ggml.mask_token_id".into(), Value::U32(MASK));
        keys.set("attention.causal", Value::Bool(false));
        keys.set_exact("diffusion.shift_logits".into(), Value::Bool(false));
        Ok(())
    }),
];

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(sizes),
];

fn sizes(config: &Config, keys: &mut Keys) -> Result<()> {
    let (hidden, heads) = (
        config.u32(&["hidden_size", "d_model"])?,
        config.u32(&["num_attention_heads", "n_heads"])?,
    );
    let share = hidden.checked_div(heads).ok_or("field 'n_heads' is 0")?;
    let head = config.optional_u32(&["head_dim"])?.unwrap_or(share);
    keys.set("rope.dimension_count", Value::U32(head));
    for (key, field, by_default) in [
        ("context_length", "max_sequence_length", 4096),
        ("embedding_length", "d_model", 4096),
        ("feed_forward_length", "mlp_hidden_size", 12_288),
    ] {
        let number = config.optional_u32(&[field])?;
        keys.set(key, Value::U32(number.unwrap_or(by_default)));
    }
    keys.set("attention.causal", Value::Bool(false));
    keys.set_exact("diffusion.shift_logits".into(), Value::Bool(false));
    Ok(())
}

const DREAM_PARAMETERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    keys.set("attention.causal", Value::Bool(false));
    if let Some(token) = config.optional_u32(&["mask_token_id"])? {
        keys.set_exact("tokenizer.ggml.mask_token_id".into(), Value::U32(token));
    }
    Ok(())
})];

const WIDTH: Size = Field(&["d_model", "hidden_size"]);

const TENSORS: &[Recipe] = &[
    Recipe::rename("model.transformer.wte", "token_embd", &[Any, WIDTH]),
    Recipe::rename("model.transformer.ff_out", "output", &[Any, WIDTH]),
    Recipe::rename("model.transformer.ln_f", "output_norm", &[WIDTH]),
    Recipe::rename(
        "model.transformer.blocks.{}.attn_norm",
        "blk.{}.attn_norm",
        &[WIDTH],
    ),
    Recipe::rename(
        "model.transformer.blocks.{}.ff_norm",
        "blk.{}.ffn_norm",
        &[WIDTH],
    ),
    Recipe::with(
        "model.transformer.blocks.{}.q_proj",
        "blk.{}.attn_q",
        &[Any, WIDTH],
        &[Interleave(QueryHeads)],
    ),
    Recipe::with(
        "model.transformer.blocks.{}.k_proj",
        "blk.{}.attn_k",
        &[Any, WIDTH],
        &[Interleave(KeyHeads)],
    ),
    Recipe::rename(
        "model.transformer.blocks.{}.v_proj",
        "blk.{}.attn_v",
        &[Any, WIDTH],
    ),
    Recipe::rename(
        "model.transformer.blocks.{}.attn_out",
        "blk.{}.attn_output",
        &[WIDTH, Any],
    ),
    Recipe::rename(
        "model.transformer.blocks.{}.ff_proj",
        "blk.{}.ffn_gate",
        &[Any, WIDTH],
    ),
    Recipe::rename(
        "model.transformer.blocks.{}.up_proj",
        "blk.{}.ffn_up",
        &[Any, WIDTH],
    ),
    Recipe::rename(
        "model.transformer.blocks.{}.ff_out",
        "blk.{}.ffn_down",
        &[WIDTH, Any],
    ),
];
