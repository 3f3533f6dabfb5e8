//! EXAONE 3.5: Llama with other names. EXAONE 4 and 4.5: post-norms; in the model with 64 layers,
//! sliding windows, and RoPE only in windowed layers. K-EXAONE: experts, windows in all models.

use super::config::Result;
use super::decoder::{Decoder, Listed, Needs, Rope, Router, Unrotated, Window};
use super::experts::{EXPERT_LENGTH, SELECTION_BIAS, SHARED_EXPERTS};
use super::llama::{
    BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION, rope_factors, rope_factors_by,
};
use super::nextn::{NEXTN, PREDICT_LAYERS};
use super::olmo::POST_NORMS;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, rotated_part, set_flag, set_flags};
use super::qwen::{EXPERTS, HEAD_NORMS};
use super::recipes::Size::{Any, Hidden, Keys as KeyRows, Queries};
use super::{Architecture, Config, Keys, Parameter, Recipe};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static EXAONE: Architecture = Architecture {
    classes: &["ExaoneForCausalLM"],
    name: "exaone",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, EXAONE_PARAMETERS],
    tensors: &[EXAONE_TENSORS],
    generated: rope_factors,
    decoder: Decoder {
        rope: Rope::Halves,
        ..Decoder::LLAMA
    },
};

const EXAONE_PARAMETERS: &[Parameter] = &[
    Parameter::Computed(|config, keys| {
        let rotated = rotated_part(config, Some(1.0))? * f64::from(config.share_of_head()?);
        keys.set("rope.dimension_count", Value::U32(rotated as u32));
        Ok(())
    }),
    Parameter::Computed(epsilon),
];

/// Epsilon under llama.cpp's key. The reference writes the key of layer norms only, in a file that
/// does not load.
fn epsilon(config: &Config, keys: &mut Keys) -> Result<()> {
    const KEY: &str = "attention.layer_norm_rms_epsilon";
    let epsilon = config.f64(&["layer_norm_epsilon"])?;
    keys.set(KEY, Value::F32(epsilon as f32));
    keys.note(format!(
        "exaone.{KEY} is written, which convert_hf_to_gguf.py leaves out: llama.cpp does not load a file without it"
    ));
    Ok(())
}

const EXAONE_TENSORS: &[Recipe] = &[
    Recipe::rename("transformer.wte", "token_embd", &[Any, Hidden]),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
    Recipe::rename("transformer.ln_f", "output_norm", &[Hidden]),
    Recipe::rename("transformer.h.{}.ln_1", "blk.{}.attn_norm", &[Hidden]),
    Recipe::rename(
        "transformer.h.{}.attn.attention.q_proj",
        "blk.{}.attn_q",
        &[Queries, Hidden],
    ),
    Recipe::rename(
        "transformer.h.{}.attn.attention.k_proj",
        "blk.{}.attn_k",
        &[KeyRows, Hidden],
    ),
    Recipe::rename(
        "transformer.h.{}.attn.attention.v_proj",
        "blk.{}.attn_v",
        &[KeyRows, Hidden],
    ),
    Recipe::rename(
        "transformer.h.{}.attn.attention.out_proj",
        "blk.{}.attn_output",
        &[Hidden, Queries],
    ),
    Recipe::rename("transformer.h.{}.ln_2", "blk.{}.ffn_norm", &[Hidden]),
    Recipe::rename(
        "transformer.h.{}.mlp.c_fc_0",
        "blk.{}.ffn_gate",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "transformer.h.{}.mlp.c_fc_1",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "transformer.h.{}.mlp.c_proj",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
];

/// Default factor of Llama 3.1's RoPE scaling.
const FACTOR: f64 = 16.0;

pub(super) static EXAONE4: Architecture = Architecture {
    classes: &["Exaone4ForCausalLM"],
    name: "exaone4",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        POST_NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        BUFFERS,
    ],
    generated: |config, _| rope_factors_by(config, FACTOR),
    decoder: Decoder {
        rope: Rope::Halves,
        window: Window::Listed(Listed {
            tokens: Some(4096),
            stretched: true,
            layers: Some(64),
            ..Listed::THREE_OF_FOUR
        }),
        unrotated: Unrotated::Unwindowed,
        ..Decoder::LLAMA
    },
};

/// K-EXAONE: experts after dense layers, pre-norms.
pub(super) static EXAONE_MOE: Architecture = Architecture {
    classes: &["ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM"],
    name: "exaone-moe",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        PARAMETERS,
        EXPERT_PARAMETERS,
    ],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        SELECTION_BIAS,
        EXPERTS,
        SHARED_EXPERTS,
        NEXTN,
        BUFFERS,
    ],
    decoder: Decoder {
        router: Router::LISTED,
        window: Window::Listed(Listed {
            tokens: Some(128),
            stretched: true,
            ..Listed::THREE_OF_FOUR
        }),
        needs: Needs::OWN_OUTPUT,
        ..EXAONE4.decoder
    },
    ..EXAONE4
};

const EXPERT_PARAMETERS: &[Parameter] = &[
    EXPERT_LENGTH,
    Parameter::U32("expert_shared_count", &["num_shared_experts"]),
    Parameter::Computed(|config, keys| {
        let count = config.u32(&["num_shared_experts"])?;
        let width = config.u32(&["moe_intermediate_size"])?.checked_mul(count);
        let width = width.ok_or("the shared experts are wider than 32 bits say")?;
        keys.set("expert_shared_feed_forward_length", Value::U32(width));
        Ok(())
    }),
    Parameter::F32("expert_weights_scale", &["routed_scaling_factor"]),
    Parameter::Computed(|config, keys| {
        set_flag(config, keys, "expert_weights_norm", "norm_topk_prob")
    }),
    Parameter::OrU32(
        "leading_dense_block_count",
        &["first_k_dense_replace", "first_last_k_dense_replace"],
        0,
    ),
    Parameter::Computed(|config, keys| {
        keys.set("nextn_predict_layers", Value::U32(config.nextn()));
        Ok(())
    }),
    Parameter::ConstantStr("rope.scaling.type", "none"),
];

/// EXAONE 4.5's text model: EXAONE 4 with multi-token prediction blocks.
pub(super) static EXAONE4_5: Architecture = Architecture {
    classes: &["Exaone4_5_ForConditionalGeneration"],
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, PARAMETERS, PREDICT_LAYERS],
    tensors: &[
        EMBEDDINGS,
        POST_NORMS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        GATED_FFN,
        NEXTN,
        BUFFERS,
    ],
    ..EXAONE4
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(windows),
];

fn windows(config: &Config, keys: &mut Keys) -> Result<()> {
    let Some(tokens) = config.optional_u32(&["sliding_window"])? else {
        return Ok(());
    };
    keys.set("attention.sliding_window", Value::U32(tokens));
    let layers = 0..config.layers()? as usize;
    let pattern = config.get("sliding_window_pattern");
    if let Some(flags) = config.sliding_layers() {
        set_flags(keys, "attention.sliding_window_pattern", flags);
    } else if let Some(letters) = pattern.and_then(|pattern| pattern.as_str()) {
        let letters: Vec<char> = letters.chars().collect();
        if !letters.is_empty() {
            let flags = layers.map(|layer| letters[layer % letters.len()] == 'L');
            set_flags(keys, "attention.sliding_window_pattern", flags);
        }
    } else if let Some(period) = pattern.and_then(|pattern| pattern.as_u64()) {
        let flags = layers.map(|layer| !(layer as u64 + 1).is_multiple_of(period));
        set_flags(keys, "attention.sliding_window_pattern", flags);
    }
    Ok(())
}
