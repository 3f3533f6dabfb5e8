//! Gemma 1, 2 and 3 (text). Norm weights are stored minus 1. Gemma 4 stands in a file of its own.

use super::config::Result;
use super::decoder::{Activation, Cap, Decoder, Needs, Rope, Scales, ScoreDivisor, Window};
use super::llama::{BUFFERS, GATED_FFN, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, POOLING};
use super::recipes::Op::{AddOne, First};
use super::recipes::Size::{Any, Head, Hidden, Vocabulary};
use super::recipes::When;
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) const GEMMA: Decoder = Decoder {
    rope: Rope::Halves,
    activation: Activation::Gelu,
    scaled_embeddings: true,
    ..Decoder::LLAMA
};

pub(super) static GEMMA1: Architecture = Architecture {
    classes: &["GemmaForCausalLM"],
    name: "gemma",
    vocabulary: VocabKind::Gemma1,
    parameters: &[GEMMA1_PARAMETERS],
    tensors: &[
        TIED_EMBEDDINGS,
        PLUS_ONE_NORMS,
        PLAIN_ATTENTION,
        GATED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: GEMMA,
};

pub(super) static GEMMA2: Architecture = Architecture {
    classes: &["Gemma2ForCausalLM"],
    name: "gemma2",
    vocabulary: VocabKind::Gemma2,
    parameters: &[GEMMA1_PARAMETERS, GEMMA2_PARAMETERS],
    tensors: &[
        TIED_EMBEDDINGS,
        PLUS_ONE_ATTENTION_NORMS,
        FFN_NORMS,
        PLAIN_ATTENTION,
        GATED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        window: Window::Pattern {
            layers: 2,
            tokens: Some(4096),
            rope_base: None,
        },
        score_divisor: ScoreDivisor::RootOfShare(46),
        scales: Scales {
            score_cap: Cap::ListedOr(50.0),
            logit_cap: Cap::ListedOr(30.0),
            ..Scales::NONE
        },
        ..GEMMA
    },
};

pub(super) static GEMMA3: Architecture = Architecture {
    classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    name: "gemma3",
    vocabulary: VocabKind::Gemma3,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        &[Parameter::Computed(gemma3)],
    ],
    tensors: &[
        GEMMA3_EMBEDDINGS,
        PLUS_ONE_ATTENTION_NORMS,
        FFN_NORMS,
        PLAIN_ATTENTION,
        PLUS_ONE_HEAD_NORMS,
        GATED_FFN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        window: Window::Pattern {
            layers: 6,
            tokens: None,
            rope_base: Some(10_000.0),
        },
        score_divisor: ScoreDivisor::RootOfShare(62),
        scales: Scales {
            logit_cap: Cap::Listed,
            ..Scales::NONE
        },
        ..GEMMA
    },
};

/// Text embeddings: Gemma 3 without causal attention, with dense modules after the pooling.
pub(super) static GEMMA_EMBEDDING: Architecture = Architecture {
    classes: &["Gemma3TextModel"],
    name: "gemma-embedding",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        &[Parameter::Computed(gemma3)],
        EMBEDDING_PARAMETERS,
        POOLING,
    ],
    tensors: &[
        DENSE_MODULES,
        GEMMA3_EMBEDDINGS,
        PLUS_ONE_ATTENTION_NORMS,
        FFN_NORMS,
        PLAIN_ATTENTION,
        PLUS_ONE_HEAD_NORMS,
        GATED_FFN,
        BUFFERS,
    ],
    decoder: Decoder {
        predicts_tokens: false,
        sees_both_sides: true,
        needs: Needs {
            optional: &["dense_2", "dense_3"],
            ..Needs::WEIGHTS
        },
        ..GEMMA3.decoder
    },
    ..GEMMA3
};

/// The field that is set if dense modules are kept.
const KEEPS_MODULES: &str = "sentence_transformers_dense_modules";

impl Config {
    /// The config of a model whose dense modules are kept.
    pub fn with_dense_modules(self) -> Config {
        self.with_field(KEEPS_MODULES, true.into())
    }

    /// The config with the sizes of dense modules: name, inputs and outputs.
    pub fn with_module_sizes(self, sizes: &[(String, u32, u32)]) -> Config {
        let sizes = sizes.iter();
        let sizes = sizes.map(|(name, inputs, outputs)| serde_json::json!([name, inputs, outputs]));
        self.with_field(MODULE_SIZES, sizes.collect())
    }
}

/// The field with the sizes of dense modules.
const MODULE_SIZES: &str = "sentence_transformers_module_sizes";

const EMBEDDING_PARAMETERS: &[Parameter] = &[
    Parameter::U32("attention.sliding_window", &["sliding_window"]),
    Parameter::Computed(|config, keys| {
        let sizes = config.get(MODULE_SIZES).and_then(|sizes| sizes.as_array());
        let sizes = sizes.filter(|_| config.get(KEEPS_MODULES).is_some());
        for size in sizes.into_iter().flatten() {
            let name = size[0].as_str().unwrap_or_default();
            for (end, size) in [("in", &size[1]), ("out", &size[2])] {
                let size = size.as_u64().and_then(|size| u32::try_from(size).ok());
                keys.set(&format!("{name}_feat_{end}"), Value::U32(size.unwrap_or(0)));
            }
        }
        Ok(())
    }),
];

const DENSE_MODULES: &[Recipe] = &[
    Recipe::rename("dense_2", "dense_2", &[Any, Any]).when(When::Set(KEEPS_MODULES)),
    Recipe::rename("dense_3", "dense_3", &[Any, Any]).when(When::Set(KEEPS_MODULES)),
    Recipe::leave_out(
        "dense_*",
        "the dense modules (--sentence-transformers-dense-modules keeps them)",
    ),
];

const GEMMA1_PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", &["max_position_embeddings"]),
    Parameter::U32("embedding_length", &["hidden_size"]),
    Parameter::Layers,
    Parameter::U32("feed_forward_length", &["intermediate_size"]),
    Parameter::U32("attention.head_count", &["num_attention_heads"]),
    Parameter::U32(
        "attention.head_count_kv",
        &["num_key_value_heads", "num_attention_heads"],
    ),
    Parameter::F32("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    Parameter::U32("attention.key_length", &["head_dim"]),
    Parameter::U32("attention.value_length", &["head_dim"]),
    Parameter::FileType,
];

const GEMMA2_PARAMETERS: &[Parameter] = &[
    Parameter::F32("attn_logit_softcapping", &["attn_logit_softcapping"]),
    Parameter::F32("final_logit_softcapping", &["final_logit_softcapping"]),
    Parameter::U32("attention.sliding_window", &["sliding_window"]),
];

/// Embeddings are always tied; a copy is dropped.
const TIED_EMBEDDINGS: &[Recipe] = &[
    Recipe::rename("model.embed_tokens", "token_embd", &[Any, Hidden]),
    Recipe::skip("lm_head"),
];

/// Embeddings of the tokenizer's tokens alone.
pub(super) const GEMMA3_EMBEDDINGS: &[Recipe] = &[
    Recipe::with(
        "model.embed_tokens.weight",
        "token_embd.weight",
        &[Any, Hidden],
        &[First(Vocabulary)],
    ),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
];

/// The norms before and after attention and after the last layer, with weights stored minus 1.
pub(super) const PLUS_ONE_ATTENTION_NORMS: &[Recipe] = &[
    Recipe::with(
        "model.norm.weight",
        "output_norm.weight",
        &[Hidden],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.input_layernorm.weight",
        "blk.{}.attn_norm.weight",
        &[Hidden],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.post_attention_norm.weight",
        &[Hidden],
        &[AddOne],
    ),
];

const FFN_NORMS: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.pre_feedforward_layernorm.weight",
        "blk.{}.ffn_norm.weight",
        &[Hidden],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.post_feedforward_layernorm.weight",
        "blk.{}.post_ffw_norm.weight",
        &[Hidden],
        &[AddOne],
    ),
];

/// Norms before attention and feed-forward network and after the last layer, with weights stored
/// minus 1.
pub(super) const PLUS_ONE_NORMS: &[Recipe] = &[
    Recipe::with(
        "model.norm.weight",
        "output_norm.weight",
        &[Hidden],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.input_layernorm.weight",
        "blk.{}.attn_norm.weight",
        &[Hidden],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.ffn_norm.weight",
        &[Hidden],
        &[AddOne],
    ),
];

/// QK norms with weights stored minus 1.
pub(super) const PLUS_ONE_HEAD_NORMS: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.self_attn.q_norm.weight",
        "blk.{}.attn_q_norm.weight",
        &[Head],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.k_norm.weight",
        "blk.{}.attn_k_norm.weight",
        &[Head],
        &[AddOne],
    ),
];

/// Keys of Gemma 3 in addition to the common ones, and defaults of common ones.
pub(super) fn gemma3(config: &Config, keys: &mut Keys) -> Result<()> {
    let whole =
        |name: &str, default| Ok::<_, String>(config.optional_u32(&[name])?.unwrap_or(default));
    let head_len = whole("head_dim", 256)?;
    let theta = super::config::number_in(config.rope(), "rope_theta")?.unwrap_or(1_000_000.0);
    keys.set(
        "context_length",
        Value::U32(whole("max_position_embeddings", 131_072)?),
    );
    keys.set(
        "attention.head_count",
        Value::U32(whole("num_attention_heads", 8)?),
    );
    let epsilon = config.optional_f64(&["rms_norm_eps"])?.unwrap_or(1e-6);
    keys.set(
        "attention.layer_norm_rms_epsilon",
        Value::F32(epsilon as f32),
    );
    keys.set("attention.key_length", Value::U32(head_len));
    keys.set("attention.value_length", Value::U32(head_len));
    keys.set("rope.freq_base", Value::F32(theta as f32));
    if config.get("attn_logit_softcapping").is_some() {
        return Err("field 'attn_logit_softcapping' is set, which Gemma 3 does not have".into());
    }
    Parameter::NonzeroF32("final_logit_softcapping", &["final_logit_softcapping"])
        .apply(config, keys)?;
    if config.optional_u32(&["sliding_window_pattern"])? != Some(1) {
        keys.set(
            "attention.sliding_window",
            Value::U32(config.u32(&["sliding_window"])?),
        );
    }
    keys.set(
        "attention.head_count_kv",
        Value::U32(whole("num_key_value_heads", 4)?),
    );
    Ok(())
}
