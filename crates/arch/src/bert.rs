//! Encoders for embeddings, and rerankers: BERT and its relatives. Their attention is not causal.
//!
//! ```text
//! BERT, DistilBERT, RoBERTa, XLM-RoBERTa   norms behind the blocks, learned positions
//! Nomic-BERT                               norms behind the blocks, RoPE; experts in every other layer
//! Jina-BERT                                norms behind the blocks, ALiBi
//! ModernBERT, NeoBERT, EuroBERT            norms in front of the blocks, RoPE
//! ```

use super::config::{Config, Result, wrong_kind};
use super::decoder::{
    Activation, Alibi, Decoder, Listed, Needs, Norm, Rope, Router, Setting, Window,
};
use super::llama::{self, BUFFERS, GATED_FFN, NORMS, PLAIN_ATTENTION};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, POOLING};
use super::recipes::Op::{Reshape, Transpose};
use super::recipes::Size::{self, Any, Computed, Experts, Field, Hidden};
use super::recipes::{Op, Recipe, When};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::{Array, Value};
use quantier_tokenizer::VocabKind;
use serde_json::{Map, Value as Json};

/// An encoder. Its files say that attention is not causal.
pub(super) const ENCODER: Decoder = Decoder {
    predicts_tokens: false,
    ..Decoder::LLAMA
};

const BERT_DECODER: Decoder = Decoder {
    norm: Norm::Layer,
    rope: Rope::None,
    activation: Activation::Gelu,
    stream_norms: [&["attn_output_norm", "attn_norm_2"], &["layer_output_norm"]],
    needs: Needs {
        optional: &["token_types", "cls", "cls.output"],
        biases: &["token_embd_norm", "attn_output_norm", "layer_output_norm"],
        ..Needs::WEIGHTS
    },
    ..ENCODER
};

pub(super) static BERT: Architecture = Architecture {
    classes: &[
        "BertModel",
        "BertForMaskedLM",
        "BertForSequenceClassification",
    ],
    name: "bert",
    vocabulary: VocabKind::WordPiece,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, ENCODER_PARAMETERS],
    tensors: &[EMBEDDINGS, POSITIONS, LAYERS, CLASSIFIERS, HEADS, BUFFERS],
    generated: nothing_generated,
    decoder: BERT_DECODER,
};

pub(super) static DISTILBERT: Architecture = Architecture {
    classes: &[
        "DistilBertModel",
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
    ],
    parameters: &[EPSILON, COMMON, HEAD_LENGTHS, FILE_TYPE, ENCODER_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        POSITIONS,
        DISTILLED,
        CLASSIFIERS,
        HEADS,
        BUFFERS,
    ],
    ..BERT
};

pub(super) static ROBERTA: Architecture = Architecture {
    classes: &["RobertaModel", "RobertaForSequenceClassification"],
    vocabulary: VocabKind::Roberta,
    tensors: &[
        EMBEDDINGS,
        SHIFTED_POSITIONS,
        LAYERS,
        CLASSIFIERS,
        HEADS,
        BUFFERS,
    ],
    ..BERT
};

pub(super) static XLM_ROBERTA: Architecture = Architecture {
    classes: &["XLMRobertaModel", "XLMRobertaForSequenceClassification"],
    vocabulary: VocabKind::XlmRoberta,
    parameters: &[
        WITHOUT_ADAPTERS,
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        ENCODER_PARAMETERS,
    ],
    ..ROBERTA
};

pub(super) static NOMIC_BERT: Architecture = Architecture {
    classes: &["NomicBertModel"],
    name: "nomic-bert",
    vocabulary: VocabKind::NomicBert,
    parameters: &[
        NOMIC_PROMISES,
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        ENCODER_PARAMETERS,
    ],
    tensors: &[EMBEDDINGS, NOMIC, NOMIC_GATED, HEADS, BUFFERS],
    generated: nothing_generated,
    decoder: NOMIC_DECODER,
};

const NOMIC_DECODER: Decoder = Decoder {
    rope: Rope::Halves,
    activation: Activation::Silu,
    ..BERT_DECODER
};

pub(super) static NOMIC_BERT_MOE: Architecture = Architecture {
    classes: &[],
    name: "nomic-bert-moe",
    vocabulary: VocabKind::NomicBertMoe,
    parameters: &[
        NOMIC_PROMISES,
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        ENCODER_PARAMETERS,
        NOMIC_EXPERTS,
    ],
    tensors: &[EMBEDDINGS, NOMIC, NOMIC_MOE, HEADS, BUFFERS],
    decoder: Decoder {
        activation: Activation::Gelu,
        router: Router {
            normalized: Setting::Always(false),
            ..Router::SOFTMAX
        },
        ..NOMIC_DECODER
    },
    ..NOMIC_BERT
};

pub(super) static JINA_BERT: Architecture = Architecture {
    classes: &["JinaBertModel", "JinaBertForMaskedLM"],
    name: "jina-bert-v2",
    vocabulary: VocabKind::JinaBert,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, ENCODER_PARAMETERS],
    tensors: &[EMBEDDINGS, JINA, LAYERS, CLASSIFIERS, HEADS, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        alibi: Alibi::Always(8.0),
        needs: Needs {
            optional: &[
                "cls",
                "cls.output",
                "attn_q_norm",
                "attn_k_norm",
                "attn_norm_2",
                "ffn_gate",
            ],
            biases: &[
                "token_embd_norm",
                "attn_output",
                "attn_output_norm",
                "ffn_down",
                "layer_output_norm",
            ],
            ..Needs::WEIGHTS
        },
        ..BERT_DECODER
    },
};

pub(super) static MODERN_BERT: Architecture = Architecture {
    classes: &[
        "ModernBertModel",
        "ModernBertForMaskedLM",
        "ModernBertForSequenceClassification",
    ],
    name: "modern-bert",
    vocabulary: VocabKind::ModernBert,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        ENCODER_PARAMETERS,
        MODERN_PARAMETERS,
    ],
    tensors: &[MODERN, CLASSIFIERS, HEADS, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        norm: Norm::Layer,
        activation: Activation::Gelu,
        names_activation: true,
        window: Window::Listed(Listed {
            period: 3,
            first: true,
            rope_base: Some(10_000.0),
            ..Listed::THREE_OF_FOUR
        }),
        needs: Needs {
            optional: &["attn_norm", "cls", "cls.output", "cls.norm"],
            ..Needs::WEIGHTS
        },
        ..ENCODER
    },
};

pub(super) static NEO_BERT: Architecture = Architecture {
    classes: &[
        "NeoBERT",
        "NeoBERTLMHead",
        "NeoBERTForSequenceClassification",
    ],
    name: "neo-bert",
    vocabulary: VocabKind::WordPiece,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        ENCODER_PARAMETERS,
        NEO_PARAMETERS,
    ],
    tensors: &[NEO, CLASSIFIERS, HEADS, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        output_norm: "enc.output_norm",
        needs: Needs {
            optional: &["cls", "cls.output"],
            ..Needs::WEIGHTS
        },
        ..ENCODER
    },
};

pub(super) static EURO_BERT: Architecture = Architecture {
    classes: &["EuroBertModel", "JinaEmbeddingsV5Model"],
    name: "eurobert",
    vocabulary: VocabKind::EuroBert,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        NOT_CAUSAL_KEY,
        UNSCALED,
        POOLING,
    ],
    tensors: &[EURO, NORMS, PLAIN_ATTENTION, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        ..ENCODER
    },
};

/// Nomic-BERT, with experts or without.
pub(super) fn of_nomic(config: &Config) -> Result<&'static Architecture> {
    const EVERY: &str = "moe_every_n_layers";
    let has_experts = config
        .optional_u32(&[EVERY])?
        .is_some_and(|every| every > 0);
    Ok(match has_experts {
        true => &NOMIC_BERT_MOE,
        false => &NOMIC_BERT,
    })
}

/// Model types whose configuration classes have labels by default.
const LABELLED: [&str; 5] = ["bert", "distilbert", "roberta", "xlm-roberta", "modernbert"];
const LABELS: &str = "id2label";
/// The only label of models without labels.
const DUMMY: &str = "LABEL_0";
/// The number of labels of models without labels.
const DUMMIES: usize = 2;
/// Names of the number of positions.
const POSITION_COUNT: &str = "max_position_embeddings";
const NOMIC_POSITIONS: &str = "n_positions";
/// The padding token.
const PADDING: &str = "pad_token_id";

/// Completes the fields that the reference derives from others.
pub(super) fn complete(class: Option<&str>, fields: &mut Map<String, Json>) -> Result<()> {
    let class = class.unwrap_or_default();
    let is_shifted = [&ROBERTA, &XLM_ROBERTA]
        .iter()
        .any(|a| a.classes.contains(&class));
    if is_shifted && let Some(count) = fields.get(POSITION_COUNT).and_then(Json::as_u64) {
        let first = first_behind(fields.get(PADDING))?;
        let left = count.checked_sub(first).ok_or_else(|| {
            format!("field '{POSITION_COUNT}' is {count}, and the first position is {first}")
        })?;
        fields.insert(POSITION_COUNT.into(), left.into());
    }
    if NOMIC_BERT.classes.contains(&class) {
        let number = |name: &str| fields.get(name).and_then(Json::as_u64);
        let trained = number("max_trained_positions").unwrap_or(2048);
        let positions = match (number(NOMIC_POSITIONS), trained) {
            (Some(8192), 2048) => 2048u32,
            (Some(2048), 2048) => 512,
            (positions, _) => {
                let positions = positions.map_or("missing".to_owned(), |n| n.to_string());
                return Err(format!(
                    "field '{NOMIC_POSITIONS}' is {positions} and 'max_trained_positions' {trained}; Nomic-BERT has 8192 \
                     or 2048 positions, of which 2048 or 512 are trained"
                ));
            }
        };
        fields.insert(NOMIC_POSITIONS.into(), Json::from(positions));
    }
    Ok(())
}

/// The first position of RoBERTa's table of positions that a token has: that behind the padding
/// token's.
fn first_behind(padding: Option<&Json>) -> Result<u64> {
    match padding.filter(|token| !token.is_null()) {
        None => Ok(0),
        Some(token) => token
            .as_u64()
            .map(|token| token.saturating_add(1))
            .ok_or_else(|| wrong_kind(PADDING, token, "a whole number that is not negative")),
    }
}

/// The labels of a classifier, by number; None for models without labels of their own.
fn labels(config: &Config) -> Result<Option<Vec<String>>> {
    let Some(all) = config.optional_object(LABELS)? else {
        let is_labelled = config.model_types()[0].is_some_and(|name| LABELLED.contains(&name));
        let count = config
            .optional_u32(&["num_labels"])?
            .filter(|_| is_labelled);
        let count = count.filter(|count| *count as usize != DUMMIES && *count > 0);
        let names = |count| (0..count).map(|label| format!("LABEL_{label}")).collect();
        return Ok(count.map(names));
    };
    let mut labels: Vec<(&String, &Json)> = all.iter().collect();
    if labels.is_empty()
        || labels.len() == DUMMIES && all.get("0").is_some_and(|label| label == DUMMY)
    {
        return Ok(None);
    }
    let is_known = config.model_types()[0].is_some_and(|name| LABELLED.contains(&name));
    let number = |key: &str| match (is_known, key.parse::<i64>()) {
        (true, Ok(number)) => Ok((number, String::new())),
        (true, Err(_)) => Err(format!("'{key}' in field '{LABELS}' is not a number")),
        // Without a class, Python sorts the texts.
        (false, _) => Ok((0, key.to_owned())),
    };
    let mut numbered = Vec::new();
    for (key, label) in labels.drain(..) {
        let text = label
            .as_str()
            .ok_or_else(|| wrong_kind(LABELS, label, "a list of texts"))?;
        numbered.push((number(key)?, text.to_owned()));
    }
    numbered.sort();
    Ok(Some(numbered.into_iter().map(|(_, text)| text).collect()))
}

/// True for a classifier with labels of its own.
fn has_labels(config: &Config) -> bool {
    // Errors are those of the key.
    !matches!(labels(config), Ok(None))
}

const LABELLED_CLASSIFIER: When = When::Holds(has_labels);

const NOT_CAUSAL_KEY: &[Parameter] = &[Parameter::Computed(|_, keys| {
    keys.set("attention.causal", Value::Bool(false));
    Ok(())
})];

const UNSCALED: &[Parameter] = &[Parameter::ConstantStr("rope.scaling.type", "none")];

/// Not causal, pooling, labels of a classifier.
const ENCODER_PARAMETERS: &[Parameter] = &[
    NOT_CAUSAL_KEY[0],
    POOLING[0],
    Parameter::Computed(|config, keys| {
        if let Some(labels) = labels(config)? {
            keys.set(
                "classifier.output_labels",
                Value::Array(Array::of_strings(labels)),
            );
        }
        Ok(())
    }),
];

/// DistilBERT's epsilon, fixed in the model's code.
const EPSILON: &[Parameter] = &[Parameter::ConstantF32(
    "attention.layer_norm_epsilon",
    1e-12,
)];

/// Refuses adapters within the model.
const WITHOUT_ADAPTERS: &[Parameter] = &[Parameter::Computed(|config, _| {
    const ADAPTERS: &str = "lora_adaptations";
    match config.get(ADAPTERS) {
        None => Ok(()),
        Some(_) => Err(format!(
            "field '{ADAPTERS}' is set: jina-embeddings-v3 has adapters within the model, which convert_hf_to_gguf.py \
             writes to files beside it, and Quantier does not yet; jina-embeddings-v2 and v5 are supported"
        )),
    }
})];

/// What the reference requires of Nomic-BERT.
const NOMIC_PROMISES: &[Parameter] = &[Parameter::Computed(|config, _| {
    let has_experts = std::ptr::eq(of_nomic(config)?, &NOMIC_BERT_MOE);
    let expected: [(&str, Json); 10] = [
        (
            "activation_function",
            if has_experts { "gelu" } else { "swiglu" }.into(),
        ),
        ("causal", false.into()),
        ("qkv_proj_bias", has_experts.into()),
        ("mlp_fc1_bias", has_experts.into()),
        ("mlp_fc2_bias", has_experts.into()),
        ("prenorm", false.into()),
        ("rotary_emb_fraction", 1.0.into()),
        ("rotary_emb_interleaved", false.into()),
        ("rotary_emb_scale_base", Json::Null),
        (POSITION_COUNT, Json::Null),
    ];
    for (name, value) in expected {
        let own = config.get(name).cloned().unwrap_or_default();
        let is_equal = match (own.as_f64(), value.as_f64()) {
            (Some(own), Some(value)) => own == value,
            _ => own == value,
        };
        if !is_equal {
            return Err(format!(
                "field '{name}' is {own}, and only {value} can be converted of a Nomic-BERT"
            ));
        }
    }
    Ok(())
})];

const NOMIC_EXPERTS: &[Parameter] = &[
    Parameter::U32("moe_every_n_layers", &["moe_every_n_layers"]),
    Parameter::U32("expert_used_count", &["moe_top_k"]),
];

const MODERN_PARAMETERS: &[Parameter] = &[
    Parameter::Computed(modern_epsilon),
    Parameter::U32("attention.sliding_window", &["local_attention"]),
    Parameter::OptionalU32(
        "attention.sliding_window_pattern",
        &["global_attn_every_n_layers"],
    ),
    UNSCALED[0],
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::Computed(|config, keys| {
        let Some(name) = config.get("hidden_activation") else {
            return Ok(());
        };
        let text = name.as_str();
        let text = text.ok_or_else(|| wrong_kind("hidden_activation", name, "a text"))?;
        if !text.is_empty() {
            keys.set("hidden_activation", Value::str(text.to_owned()));
        }
        Ok(())
    }),
];

/// The epsilon of layer norms, where no field has it under a name that the reference reads for them.
fn modern_epsilon(config: &Config, keys: &mut Keys) -> Result<()> {
    let named = &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"];
    if config.optional_f64(named)?.is_none() {
        let epsilon = config.f64(&["norm_eps"])?;
        keys.set("attention.layer_norm_epsilon", Value::F32(epsilon as f32));
        keys.note(format!(
            "the epsilon of the norms is norm_eps of config.json, {epsilon}; convert_hf_to_gguf.py leaves it out without a \
             layer_norm_eps, and llama.cpp does not load the file then"
        ));
    }
    Ok(())
}

const NEO_PARAMETERS: &[Parameter] = &[
    Parameter::Computed(neo_feed_forward),
    Parameter::ConstantF32("rope.freq_base", 10_000.0),
    UNSCALED[0],
    Parameter::Computed(|config, keys| {
        let epsilon = config.optional_f64(&["norm_eps"])?.unwrap_or(1e-6);
        keys.set(
            "attention.layer_norm_rms_epsilon",
            Value::F32(epsilon as f32),
        );
        Ok(())
    }),
    Parameter::ConstantU32("pooling_type", super::Pooling::Cls as u32),
];

/// Two thirds of the given width.
fn neo_feed_forward(config: &Config, keys: &mut Keys) -> Result<()> {
    let width = f64::from(config.u32(&["intermediate_size"])?) * 2.0 / 3.0;
    keys.set("feed_forward_length", Value::U32(width as u32));
    Ok(())
}

/// Embeddings of tokens and token types, and their norm.
const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename("embeddings.word_embeddings", "token_embd", &[Any, Hidden]),
    Recipe::rename(
        "embeddings.token_type_embeddings",
        "token_types",
        &[Any, Hidden],
    ),
    Recipe::rename("embeddings.LayerNorm", "token_embd_norm", &[Hidden]),
    Recipe::skip("embeddings.position_ids"),
];

const POSITIONS: &[Recipe] = &[Recipe::rename(
    "embeddings.position_embeddings",
    "position_embd",
    &[Any, Hidden],
)];

/// Positions before the first, which no token has, and the others.
const BEHIND_PADDING: &[Size] = &[Computed(first_position), Any];

fn first_position(config: &Config) -> Result<u64> {
    first_behind(config.get(PADDING))
}

const SHIFTED_POSITIONS: &[Recipe] = &[
    Recipe::with(
        "embeddings.position_embeddings.weight",
        "position_embd.weight",
        &[Any, Hidden],
        &[Op::part(0, BEHIND_PADDING, 1)],
    )
    .when(When::Set(PADDING)),
    POSITIONS[0],
];

/// Attention, feed-forward network, and the norms behind them.
const LAYERS: &[Recipe] = &[
    Recipe::rename(
        "encoder.layer.{}.attention.self.query",
        "blk.{}.attn_q",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.attention.self.key",
        "blk.{}.attn_k",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.attention.self.value",
        "blk.{}.attn_v",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.attention.output.dense",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "encoder.layer.{}.attention.output.LayerNorm",
        "blk.{}.attn_output_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.intermediate.dense",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.output.dense",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "encoder.layer.{}.output.LayerNorm",
        "blk.{}.layer_output_norm",
        &[Hidden],
    ),
];

const DISTILLED: &[Recipe] = &[
    Recipe::rename(
        "transformer.layer.{}.attention.q_lin",
        "blk.{}.attn_q",
        &[WIDTH, WIDTH],
    ),
    Recipe::rename(
        "transformer.layer.{}.attention.k_lin",
        "blk.{}.attn_k",
        &[WIDTH, WIDTH],
    ),
    Recipe::rename(
        "transformer.layer.{}.attention.v_lin",
        "blk.{}.attn_v",
        &[WIDTH, WIDTH],
    ),
    Recipe::rename(
        "transformer.layer.{}.attention.out_lin",
        "blk.{}.attn_output",
        &[WIDTH, WIDTH],
    ),
    Recipe::rename(
        "transformer.layer.{}.sa_layer_norm",
        "blk.{}.attn_output_norm",
        &[WIDTH],
    ),
    Recipe::rename(
        "transformer.layer.{}.ffn.lin1",
        "blk.{}.ffn_up",
        &[Field(&["hidden_dim"]), WIDTH],
    ),
    Recipe::rename(
        "transformer.layer.{}.ffn.lin2",
        "blk.{}.ffn_down",
        &[WIDTH, Field(&["hidden_dim"])],
    ),
    Recipe::rename(
        "transformer.layer.{}.output_layer_norm",
        "blk.{}.layer_output_norm",
        &[WIDTH],
    ),
    Recipe::rename("pre_classifier", "cls", &[WIDTH, WIDTH]),
    // The head of masked language modeling.
    Recipe::skip("vocab_*"),
];

const WIDTH: Size = Field(&["dim"]);

/// Classifiers of rerankers and the like.
const CLASSIFIERS: &[Recipe] = &[
    Recipe::rename("classifier.dense", "cls", &[Any, Any]),
    Recipe::rename("classifier.out_proj", "cls.output", &[Any, Any]),
    Recipe::rename("classifier", "cls.output", &[Any, Any]).when(LABELLED_CLASSIFIER),
    Recipe::rename("classifier", "cls", &[Any, Any]),
];

/// Heads that embeddings do not need: pooling, masked language modeling, next sentences.
const HEADS: &[Recipe] = &[
    Recipe::skip("pooler.dense.weight"),
    Recipe::skip("pooler.dense.bias"),
    Recipe::skip("cls.predictions*"),
    Recipe::skip("cls.seq_relationship*"),
];

const NOMIC: &[Recipe] = &[
    Recipe::rename("emb_ln", "token_embd_norm", &[Hidden]),
    Recipe::rename(
        "encoder.layers.{}.attn.Wqkv",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "encoder.layers.{}.attn.out_proj",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "encoder.layers.{}.norm1",
        "blk.{}.attn_output_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "encoder.layers.{}.mlp.fc2",
        "blk.{}.ffn_down",
        &[Hidden, INNER],
    ),
    Recipe::rename(
        "encoder.layers.{}.norm2",
        "blk.{}.layer_output_norm",
        &[Hidden],
    ),
];

const NOMIC_GATED: &[Recipe] = &[
    Recipe::rename(
        "encoder.layers.{}.mlp.fc11",
        "blk.{}.ffn_up",
        &[INNER, Hidden],
    ),
    Recipe::rename(
        "encoder.layers.{}.mlp.fc12",
        "blk.{}.ffn_gate",
        &[INNER, Hidden],
    ),
];

const INNER: Size = Field(&["n_inner"]);
/// The rows of all experts, which stand one below the other.
const OF_EXPERTS: &[Size] = &[Experts, INNER, Hidden];

const NOMIC_MOE: &[Recipe] = &[
    Recipe::rename(
        "encoder.layers.{}.mlp.fc1",
        "blk.{}.ffn_up",
        &[INNER, Hidden],
    ),
    Recipe::rename(
        "encoder.layers.{}.mlp.router.layer",
        "blk.{}.ffn_gate_inp",
        &[Experts, Hidden],
    ),
    Recipe::with(
        "encoder.layers.{}.mlp.experts.mlp.w1",
        "blk.{}.ffn_up_exps.weight",
        &[Any, Hidden],
        &[Reshape(OF_EXPERTS)],
    ),
    Recipe::with(
        "encoder.layers.{}.mlp.experts.mlp.w2",
        "blk.{}.ffn_down_exps.weight",
        &[Any, Hidden],
        &[Reshape(OF_EXPERTS), Transpose],
    ),
    // llama.cpp has no bias of the experts' sum.
    Recipe::skip("encoder.layers.{}.mlp.experts.bias"),
];

const JINA: &[Recipe] = &[
    Recipe::rename(
        "encoder.layer.{}.attention.self.layer_norm_q",
        "blk.{}.attn_q_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.attention.self.layer_norm_k",
        "blk.{}.attn_k_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.layer_norm_1",
        "blk.{}.attn_norm_2",
        &[Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.layer_norm_2",
        "blk.{}.layer_output_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.mlp.layernorm",
        "blk.{}.layer_output_norm",
        &[Hidden],
    ),
    // Gates and ups in one matrix.
    Recipe::rename(
        "encoder.layer.{}.mlp.gated_layers",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.mlp.up_gated_layer",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.mlp.gated_layers_v",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "encoder.layer.{}.mlp.gated_layers_w",
        "blk.{}.ffn_gate",
        &[Any, Hidden],
    ),
    Recipe::rename("encoder.layer.{}.mlp.wo", "blk.{}.ffn_down", &[Hidden, Any]),
    Recipe::rename(
        "encoder.layer.{}.mlp.down_layer",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
];

const MODERN: &[Recipe] = &[
    Recipe::rename(
        "model.embeddings.tok_embeddings",
        "token_embd",
        &[Any, Hidden],
    ),
    Recipe::rename("model.embeddings.norm", "token_embd_norm", &[Hidden]),
    Recipe::rename("model.final_norm", "output_norm", &[Hidden]),
    Recipe::rename("model.layers.{}.attn_norm", "blk.{}.attn_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.attn.Wqkv",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.attn.Wo",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename("model.layers.{}.mlp_norm", "blk.{}.ffn_norm", &[Hidden]),
    Recipe::rename("model.layers.{}.mlp.Wi", "blk.{}.ffn_up", &[Any, Hidden]),
    Recipe::rename("model.layers.{}.mlp.Wo", "blk.{}.ffn_down", &[Hidden, Any]),
    Recipe::rename("head.dense", "cls", &[Any, Hidden]),
    Recipe::rename("head.norm", "cls.norm", &[Hidden]),
    Recipe::leave_out("decoder", "the head of masked language modeling"),
];

const NEO: &[Recipe] = &[
    Recipe::rename("model.encoder", "token_embd", &[Any, Hidden]),
    Recipe::rename("model.layer_norm", "enc.output_norm", &[Hidden]),
    Recipe::rename(
        "model.transformer_encoder.{}.attention_norm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.transformer_encoder.{}.qkv",
        "blk.{}.attn_qkv",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.transformer_encoder.{}.wo",
        "blk.{}.attn_output",
        &[Hidden, Any],
    ),
    Recipe::rename(
        "model.transformer_encoder.{}.ffn_norm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.transformer_encoder.{}.ffn.w12",
        "blk.{}.ffn_up",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.transformer_encoder.{}.ffn.w3",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
    Recipe::rename("dense", "cls", &[Any, Hidden]),
    Recipe::leave_out("decoder", "the head of masked language modeling"),
];

/// Without an output matrix.
const EURO: &[Recipe] = &[llama::EMBEDDINGS[0]];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(fields: Json) -> Result<Config> {
        Config::new(fields.as_object().unwrap().clone())
    }

    #[test]
    fn labels_are_in_the_references_order() {
        let labels = |fields| labels(&config(fields).unwrap());
        let own = json!({ "0": "a", "10": "c", "2": "b" });
        let known = labels(json!({ "model_type": "bert", "id2label": own }));
        assert_eq!(known.unwrap().unwrap(), ["a", "b", "c"]);
        let raw = labels(json!({ "model_type": "neobert", "id2label": own }));
        assert_eq!(raw.unwrap().unwrap(), ["a", "c", "b"]);
        // Two labels by default, one label of a reranker, two real ones.
        let dummies = json!({ "0": "LABEL_0", "1": "LABEL_1" });
        for (fields, count) in [
            (json!({ "model_type": "bert" }), None),
            (json!({ "model_type": "bert", "id2label": dummies }), None),
            (json!({ "model_type": "bert", "num_labels": 1 }), Some(1)),
            (json!({ "model_type": "neobert", "num_labels": 1 }), None),
            (
                json!({ "model_type": "bert", "id2label": { "0": "LABEL_0" } }),
                Some(1),
            ),
            (
                json!({ "model_type": "bert", "id2label": { "0": "no", "1": "yes" } }),
                Some(2),
            ),
            (json!({ "model_type": "bert", "id2label": {} }), None),
        ] {
            let labels = labels(fields.clone()).unwrap();
            assert_eq!(labels.map(|labels| labels.len()), count, "{fields}");
        }
        let error = labels(json!({ "model_type": "bert", "id2label": { "x": "a" } })).unwrap_err();
        assert!(error.contains("'x' in field 'id2label'"), "{error}");
    }

    #[test]
    fn positions_begin_behind_that_of_the_padding_token() {
        let positions = |more: Json| {
            let mut fields = json!({ "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta",
                "max_position_embeddings": 514 });
            let all = fields.as_object_mut().unwrap();
            all.extend(more.as_object().unwrap().clone());
            let config = config(fields)?;
            Ok::<_, String>((config.u32(&[POSITION_COUNT])?, first_position(&config)?))
        };
        assert_eq!(positions(json!({})), Ok((512, 2)));
        assert_eq!(positions(json!({ "pad_token_id": 0 })), Ok((513, 1)));
        assert_eq!(positions(json!({ "pad_token_id": null })), Ok((514, 0)));
        assert!(
            positions(json!({ "pad_token_id": 600 }))
                .unwrap_err()
                .contains("514")
        );
        assert!(
            positions(json!({ "pad_token_id": -1 }))
                .unwrap_err()
                .contains("'pad_token_id'")
        );
    }

    #[test]
    fn nomic_berts_promises_are_kept() {
        let fields = json!({ "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "n_positions": 8192,
            "activation_function": "swiglu", "causal": false, "qkv_proj_bias": false, "mlp_fc1_bias": false,
            "mlp_fc2_bias": false, "prenorm": false, "rotary_emb_fraction": 1, "rotary_emb_interleaved": false });
        let check = |name: &str, value: Json| {
            let mut fields = fields.as_object().unwrap().clone();
            fields.insert(name.into(), value);
            let config = Config::new(fields)?;
            NOMIC_PROMISES[0].apply(&config, &mut Keys::new("nomic-bert", 0))?;
            config.u32(&[NOMIC_POSITIONS])
        };
        assert_eq!(check("n_layer", json!(2)), Ok(2048));
        assert_eq!(check("n_positions", json!(2048)), Ok(512));
        assert!(
            check("n_positions", json!(512))
                .unwrap_err()
                .contains("'n_positions' is 512")
        );
        assert!(
            check("causal", json!(true))
                .unwrap_err()
                .contains("'causal' is true")
        );
        assert!(
            check("moe_every_n_layers", json!(2))
                .unwrap_err()
                .contains("'activation_function'")
        );
    }
}
