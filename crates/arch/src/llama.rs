//! Llama and its relatives: Mistral, Mixtral, TinyLlama, SmolLM. Other families reuse these
//! recipes.

use super::config::{Result, number_in};
use super::decoder::{Activation, Decoder, Unrotated, YarnKeys};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, POOLING, ROPE_DIMENSIONS};
use super::recipes::Op::{self, Interleave, Stack};
use super::recipes::Size::{
    Any, Expert, Experts, FeedForward, Hidden, KeyHeads, Keys as KeyRows, Queries, QueryHeads,
};
use super::recipes::{Input, Output, Recipe};
use super::{Architecture, Config, Generated, Keys, Parameter, bert, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static LLAMA: Architecture = Architecture {
    classes: &[
        "LlamaForCausalLM",
        "LLaMAForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "VLlama3ForCausalLM",
        "LlavaForConditionalGeneration",
        "VoxtralForConditionalGeneration",
        "IQuestCoderForCausalLM",
        "LlamaModel",
    ],
    name: "llama",
    vocabulary: VocabKind::Llama,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, OWN_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        ATTENTION,
        GATED_FFN,
        MIXTRAL_EXPERTS,
        BUFFERS,
    ],
    generated: rope_factors,
    decoder: Decoder::LLAMA,
};

/// Llama without causal attention, for embeddings.
pub(super) static LLAMA_EMBED: Architecture = Architecture {
    classes: &["LlamaBidirectionalModel"],
    name: "llama-embed",
    decoder: bert::ENCODER,
    ..LLAMA
};

/// InternLM 3: Llama with another vocabulary.
pub(super) static INTERNLM3: Architecture = Architecture {
    classes: &["InternLM3ForCausalLM"],
    vocabulary: VocabKind::InternLm3,
    generated: nothing_generated,
    ..LLAMA
};

pub(super) static MISTRAL3: Architecture = Architecture {
    classes: &["Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"],
    name: "mistral3",
    vocabulary: VocabKind::Llama,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        OWN_PARAMETERS,
        &[Parameter::Computed(ministral)],
    ],
    tensors: &[EMBEDDINGS, NORMS, ATTENTION, GATED_FFN, BUFFERS],
    generated: rope_factors,
    decoder: Decoder {
        yarn: YarnKeys::Betas,
        ..Decoder::LLAMA
    },
};

pub(super) static SMOLLM3: Architecture = Architecture {
    classes: &["SmolLM3ForCausalLM"],
    name: "smollm3",
    vocabulary: VocabKind::Llama,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, OWN_PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, ATTENTION, GATED_FFN, BUFFERS],
    generated: rope_factors,
    decoder: Decoder {
        unrotated: Unrotated::Every(4),
        ..Decoder::LLAMA
    },
};

/// Nanbeige: looped layers.
pub(super) static NANBEIGE: Architecture = Architecture {
    classes: &["NanbeigeForCausalLM"],
    name: "nanbeige",
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, OWN_PARAMETERS, LOOPS],
    tensors: &[EMBEDDINGS, NORMS, ATTENTION, GATED_FFN, BUFFERS],
    ..LLAMA
};

const LOOPS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let loops = config.optional_u32(&["num_loops"])?.unwrap_or(1).max(1);
    keys.set("num_loops", Value::U32(loops));
    let skips = config.get("skip_loop_final_norm");
    let skips = skips.is_some_and(|value| *value == true);
    keys.set("skip_loop_final_norm", Value::Bool(skips));
    Ok(())
})];

pub(super) static ARCEE: Architecture = Architecture {
    classes: &["ArceeForCausalLM"],
    name: "arcee",
    vocabulary: VocabKind::Llama,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, OWN_PARAMETERS, POOLING],
    tensors: &[EMBEDDINGS, NORMS, ATTENTION, PLAIN_FFN, BUFFERS],
    generated: rope_factors,
    decoder: Decoder {
        activation: Activation::SquaredRelu,
        ..Decoder::LLAMA
    },
};

pub(super) const OWN_PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    ROPE_DIMENSIONS,
];

/// Token embeddings and the output matrix, absent with tied embeddings.
pub(super) const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename("model.embed_tokens", "token_embd", &[Any, Hidden]),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
];

/// Norms before attention and feed-forward network, and after the last layer.
pub(super) const NORMS: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
];

/// Attention with RoPE by pairs in llama.cpp, for which rows are interleaved.
pub(super) const ATTENTION: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[Queries, Hidden],
        &[Interleave(QueryHeads)],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_k",
        &[KeyRows, Hidden],
        &[Interleave(KeyHeads)],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.v_proj",
        "blk.{}.attn_v",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
];

/// Attention with RoPE by halves, as in the checkpoint.
pub(super) const PLAIN_ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[Queries, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_k",
        &[KeyRows, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.v_proj",
        "blk.{}.attn_v",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
];

/// Attention with a number of heads per layer.
pub(super) const LISTED_ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_k",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.v_proj",
        "blk.{}.attn_v",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
];

/// A gate of the heads' outputs.
pub(super) const ATTENTION_GATE: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.self_attn.g_proj",
    "blk.{}.attn_gate",
    &[Any, Hidden],
)];

/// A feed-forward network with a gate.
pub(super) const GATED_FFN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.gate_proj",
        "blk.{}.ffn_gate",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.up_proj",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];

/// A feed-forward network with a gate, whose width differs by layer.
pub(super) const LISTED_FFN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.gate_proj",
        "blk.{}.ffn_gate",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.up_proj",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
];

/// A feed-forward network without a gate.
pub(super) const PLAIN_FFN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.up_proj",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];

/// Buffers in old checkpoints, redundant with the config.
pub(super) const BUFFERS: &[Recipe] = &[Recipe::skip(
    "model.layers.{}.self_attn.rotary_emb.inv_freq",
)];

/// Stacks one tensor per expert into one.
pub(super) const STACKED: &[Op] = &[Stack(Experts)];

pub(super) const MIXTRAL_EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.gate.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
    ),
    Recipe::new(
        &[
            Input::new(
                "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
                &[Expert, Hidden],
            ),
            Input::new(
                "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
                &[Hidden, Expert],
            ),
            Input::new(
                "model.layers.{}.block_sparse_moe.experts.{}.w3.weight",
                &[Expert, Hidden],
            ),
        ],
        &[
            Output::of(&[0], "blk.{}.ffn_gate_exps.weight", STACKED),
            Output::of(&[1], "blk.{}.ffn_down_exps.weight", STACKED),
            Output::of(&[2], "blk.{}.ffn_up_exps.weight", STACKED),
        ],
    ),
];

/// Ministral's scaling for long contexts: magnitude of RoPE, and queries by position.
fn ministral(config: &Config, keys: &mut Keys) -> Result<()> {
    let model_type = config.get("model_type").and_then(|value| value.as_str());
    if model_type == Some("ministral3") {
        let rope = config.rope();
        let number = |name: &str| {
            let number = number_in(rope, name)?;
            number.ok_or_else(|| format!("'{name}' is missing among the rope parameters"))
        };
        for (key, name) in [
            ("rope.scaling.yarn_log_multiplier", "mscale_all_dim"),
            ("attention.temperature_scale", "llama_4_scaling_beta"),
        ] {
            keys.set(key, Value::F32(number(name)? as f32));
        }
    }
    Ok(())
}

/// Llama 3.1's RoPE scaling: one divisor per frequency.
///
/// Frequencies with short wavelengths are unchanged, those with long ones are divided by `factor`,
/// with a blend in between. All in f32, in PyTorch's order of operations in the reference: a number
/// divided by a tensor is the tensor's reciprocal times the number.
pub(super) fn rope_factors(config: &Config, _: &mut Keys) -> Result<Vec<Generated>> {
    rope_factors_by(config, 8.0)
}

/// The same with another default of `factor`.
pub(super) fn rope_factors_by(config: &Config, by_default: f64) -> Result<Vec<Generated>> {
    let rope = config.rope();
    if !rope
        .get("rope_type")
        .and_then(|kind| kind.as_str())
        .is_some_and(|kind| kind.eq_ignore_ascii_case("llama3"))
    {
        return Ok(Vec::new());
    }
    let number = |name, default| Ok::<_, String>(number_in(rope, name)?.unwrap_or(default));
    let base = number("rope_theta", 10_000.0)? as f32;
    let factor = number("factor", by_default)?;
    let (low, high) = (
        number("low_freq_factor", 1.0)?,
        number("high_freq_factor", 4.0)?,
    );
    let context = number("original_max_position_embeddings", 8192.0)?;
    let (longest, shortest) = ((context / low) as f32, (context / high) as f32);
    let divisor = |frequency: f32| {
        let wavelength = (1.0 / frequency) * std::f64::consts::TAU as f32;
        if wavelength < shortest {
            return 1.0;
        }
        if wavelength > longest {
            return factor as f32;
        }
        let smooth = ((1.0 / wavelength) * context as f32 - low as f32) / (high - low) as f32;
        1.0 / ((1.0 - smooth) / factor as f32 + smooth)
    };
    let frequencies = frequencies(base, config.head_len()?);
    let weights = frequencies.map(divisor).collect();
    Ok(vec![Generated::vector("rope_freqs.weight", weights)])
}

/// RoPE frequencies, one per pair of rotated dimensions.
pub(super) fn frequencies(base: f32, rotated: u32) -> impl Iterator<Item = f32> {
    let exponents = (0..rotated).step_by(2);
    let exponents = exponents.map(move |i| i as f32 / rotated as f32);
    exponents.map(move |exponent| 1.0 / (f64::from(base).powf(f64::from(exponent)) as f32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_llama_3_has_rope_factors() {
        let config = |rope: serde_json::Value| {
            let fields = json!({ "hidden_size": 256, "num_attention_heads": 4, "rope_theta": 500000.0,
                "rope_scaling": rope });
            Config::new(fields.as_object().unwrap().clone()).unwrap()
        };
        let factors = |rope| rope_factors(&config(rope), &mut Keys::default()).unwrap();
        assert_eq!(factors(json!({ "rope_type": "linear", "factor": 2.0 })), []);
        let llama3 = factors(
            json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 }),
        );
        let weights = &llama3[0].weights;
        assert_eq!((weights.len(), weights[0], weights[31]), (32, 1.0, 32.0));
        assert!(weights.is_sorted(), "{weights:?}");
    }
}
