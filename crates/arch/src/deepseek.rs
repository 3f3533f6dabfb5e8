//! DeepSeek's mixtures of experts: the first one, with standard attention (DeepSeek-AI 2024,
//! DeepSeekMoE), and DeepSeek V2, V3 and R1 with multi-head latent attention, also used by Kimi K2,
//! Moonlight, Youtu and Mistral Small 4; DeepSeek-OCR's text model has the experts without the
//! latent vector.

use super::config::{Config, Result};
use super::decoder::{Decoder, Gating, Rope, Router, ScoreYarn, Setting};
use super::experts::SHARED_EXPERTS;
use super::kimi::{ATTENTION as WHOLE_QUERIES, LATENT_ATTENTION};
use super::llama::{
    ATTENTION as INTERLEAVED_ATTENTION, BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, PLAIN_ATTENTION,
};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::qwen::EXPERTS;
use super::recipes::Size::{self, Any, Expert, Experts, Hidden, Number, Product};
use super::recipes::{Recipe, When};
use super::{Architecture, Generated, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;
use serde_json::Map;

pub(super) static DEEPSEEK: Architecture = Architecture {
    classes: &["DeepseekForCausalLM"],
    name: "deepseek",
    vocabulary: VocabKind::Qwen,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, FIRST_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        INTERLEAVED_ATTENTION,
        GATED_FFN,
        EXPERTS,
        SHARED_EXPERTS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        router: Router {
            gating: Setting::Always(Gating::Softmax),
            normalized: Setting::Always(false),
            ..Router::SOFTMAX
        },
        ..Decoder::LLAMA
    },
};

pub(super) static DEEPSEEK2: Architecture = Architecture {
    classes: &[
        "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM",
        "KimiVLForConditionalGeneration",
        "KimiK25ForConditionalGeneration",
        "YoutuForCausalLM",
        "YoutuVLForConditionalGeneration",
    ],
    name: "deepseek2",
    vocabulary: VocabKind::KimiK2,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        PARAMETERS,
        LATENT,
        LOADABLE_QUERIES,
        EXPERT_PARAMETERS,
        ROTATION,
    ],
    tensors: &[
        BEHIND_THE_LAYERS,
        TIED_OUTPUT,
        EMBEDDINGS,
        NORMS,
        QUERIES,
        WHOLE_QUERIES,
        LATENT_ATTENTION,
        GATED_FFN,
        EXPERTS,
        SHARED_EXPERTS,
        SELECTION_BIAS,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: LATENT_DECODER,
};

/// The decoder of DeepSeek V2 and its relatives.
pub(super) const LATENT_DECODER: Decoder = Decoder {
    // For models without the field: GLM 4.7 Flash, and DeepSeek V2.
    router: Router {
        gating: Setting::Sized {
            layers: &[47, 48],
            tokens: 154_880,
            those: Gating::Sigmoid,
            others: Gating::Softmax,
        },
        normalized: Setting::Listed(false),
        ..Router::SOFTMAX
    },
    score_yarn: Some(ScoreYarn {
        is_listed: true,
        is_balanced: true,
    }),
    drafts: true,
    ..Decoder::LLAMA
};

/// The text model of DeepSeek-OCR.
pub(super) static DEEPSEEK2_OCR: Architecture = Architecture {
    classes: &["DeepseekOCRForCausalLM", "UnlimitedOCRForCausalLM"],
    name: "deepseek2-ocr",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        PARAMETERS,
        EXPERT_PARAMETERS,
        ROTATION,
        &[Parameter::Computed(window)],
    ],
    tensors: &[
        BEHIND_THE_LAYERS,
        &[
            Recipe::leave_out("*sam_model*", "the vision part"),
            Recipe::leave_out("*qwen2_model*", "the vision part"),
        ],
        TIED_OUTPUT,
        EMBEDDINGS,
        NORMS,
        PLAIN_ATTENTION,
        GATED_FFN,
        EXPERTS,
        SHARED_EXPERTS,
        SELECTION_BIAS,
        BUFFERS,
    ],
    generated: bare_template,
    decoder: Decoder {
        rope: Rope::Halves,
        router: Router {
            gating: Setting::Listed(Gating::Softmax),
            normalized: Setting::Listed(false),
            ..Router::SOFTMAX
        },
        rotates_whole_heads: true,
        score_yarn: None,
        drafts: false,
        ..LATENT_DECODER
    },
    ..DEEPSEEK2
};

/// Mistral Small 4: DeepSeek V2 with stacked experts and fused gates and ups.
pub(super) static MISTRAL4: Architecture = Architecture {
    classes: &[],
    name: "mistral4",
    tensors: &[
        TIED_OUTPUT,
        EMBEDDINGS,
        NORMS,
        QUERIES,
        WHOLE_QUERIES,
        LATENT_ATTENTION,
        GATED_FFN,
        STACKED_EXPERTS,
        SHARED_EXPERTS,
        SELECTION_BIAS,
        BUFFERS,
    ],
    decoder: Decoder {
        score_yarn: Some(ScoreYarn {
            is_listed: true,
            is_balanced: false,
        }),
        ..LATENT_DECODER
    },
    ..DEEPSEEK2
};

/// The architecture of a Mistral 3, by the type of its text model.
pub(super) fn of_mistral(config: &Config) -> Result<&'static Architecture> {
    match config.model_types()[1] {
        Some("mistral4") => Ok(&MISTRAL4),
        _ => Ok(&super::llama::MISTRAL3),
    }
}

/// Classes whose configs may lack the epsilon of norms.
const WITHOUT_EPSILON: [&str; 9] = [
    "DeepseekOCRForCausalLM",
    "UnlimitedOCRForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "Dots3NoteForCausalLM",
    "Dots3NoteForConditionalGeneration",
    "Dots3NoteTextForCausalLM",
    "HYV4ForCausalLM",
];

/// Adds the reference's defaults of these classes.
pub(super) fn complete(class: Option<&str>, fields: &mut Map<String, serde_json::Value>) {
    if class.is_some_and(|class| WITHOUT_EPSILON.contains(&class)) {
        fields
            .entry("rms_norm_eps")
            .or_insert_with(|| serde_json::json!(1e-6));
    }
}

const FIRST_PARAMETERS: &[Parameter] = &[
    super::parameters::ROPE_DIMENSIONS,
    Parameter::ConstantStr("rope.scaling.type", "none"),
    Parameter::U32("leading_dense_block_count", &["first_k_dense_replace"]),
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::U32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::ConstantF32("expert_weights_scale", 1.0),
    Parameter::U32("expert_count", &["n_routed_experts"]),
    Parameter::U32("expert_shared_count", &["n_shared_experts"]),
];

pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter::Computed(leading_dense_layers),
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::OptionalU32("attention.q_lora_rank", &["q_lora_rank"]),
];

/// Number of leading dense layers: all in models without experts.
fn leading_dense_layers(config: &Config, keys: &mut Keys) -> Result<()> {
    const FIELD: &[&str] = &["first_k_dense_replace"];
    let dense = match (config.optional_u32(FIELD)?, config.get("n_routed_experts")) {
        (Some(dense), _) => dense,
        (None, Some(_)) => 0,
        (None, None) => config.layers()?,
    };
    keys.set("leading_dense_block_count", Value::U32(dense));
    Ok(())
}

/// Lengths of the latent vector and of heads.
pub(super) const LATENT: &[Parameter] = &[Parameter::Computed(|config, keys| {
    keys.set("attention.head_count_kv", Value::U32(1));
    let rank = config.optional_u32(&["kv_lora_rank"])?.unwrap_or(512);
    let [plain, rotated, value] =
        ["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"].map(|field| config.u32(&[field]));
    let (plain, rotated) = (plain?, rotated?);
    let sum = |a: u32| {
        let sum = a.checked_add(rotated);
        sum.ok_or_else(|| "the length of a head has more than 32 bits".to_owned())
    };
    keys.set("attention.kv_lora_rank", Value::U32(rank));
    keys.set("attention.key_length", Value::U32(sum(rank)?));
    keys.set("attention.value_length", Value::U32(rank));
    keys.set("attention.key_length_mla", Value::U32(sum(plain)?));
    keys.set("attention.value_length_mla", Value::U32(value?));
    Ok(())
})];

/// Rejects query matrices that llama.cpp does not load.
pub(super) const LOADABLE_QUERIES: &[Parameter] =
    &[Parameter::Computed(|config, _| loads_queries(config))];

/// Rejects query matrices that llama.cpp does not load: it expects low rank or not by the number of
/// layers, and in one case by the vocabulary size.
fn loads_queries(config: &Config) -> Result<()> {
    let (layers, tokens) = (config.layers()?, config.u32(&["vocab_size"])?);
    let is_lite = [26, 27].contains(&layers) || (layers, tokens) == (48, 128_256);
    match (is_lite, config.optional_u32(&["q_lora_rank"])?) {
        (false, None) => Err(format!(
            "field 'q_lora_rank' is missing; llama.cpp cannot load a model of {layers} layers and {tokens} tokens \
             whose queries are not of low rank"
        )),
        (true, Some(rank)) => Err(format!(
            "field 'q_lora_rank' is {rank}; llama.cpp cannot load a model of {layers} layers and {tokens} tokens \
             whose queries are of low rank"
        )),
        _ => Ok(()),
    }
}

pub(super) const EXPERT_PARAMETERS: &[Parameter] = &[
    Parameter::U32(
        "expert_feed_forward_length",
        &["moe_intermediate_size", "intermediate_size"],
    ),
    Parameter::OptionalU32("expert_count", &["n_routed_experts"]),
    Parameter::OrU32("expert_shared_count", &["n_shared_experts"], 0),
    Parameter::OptionalF32("expert_weights_scale", &["routed_scaling_factor"]),
    Parameter::Computed(|config, keys| {
        if config
            .get("norm_topk_prob")
            .is_some_and(|norm| *norm == true)
        {
            keys.set("expert_weights_norm", Value::Bool(true));
        }
        Ok(())
    }),
];

pub(super) const ROTATION: &[Parameter] = &[
    Parameter::U32("rope.dimension_count", &["qk_rope_head_dim"]),
    Parameter::Computed(|config, keys| {
        // A tenth of the value, by an old convention of llama.cpp.
        const PART: &str = "mscale_all_dim";
        if let Some(part) = super::config::number_in(config.rope(), PART)? {
            let multiplier = Value::F32((0.1 * part) as f32);
            keys.set("rope.scaling.yarn_log_multiplier", multiplier);
        }
        Ok(())
    }),
];

/// Written, but unused.
fn window(config: &Config, keys: &mut Keys) -> Result<()> {
    for field in ["sliding_window_size", "sliding_window"] {
        if let Some(window) = config.optional_u32(&[field])?.filter(|window| *window > 0) {
            keys.set("attention.sliding_window", Value::U32(window));
            break;
        }
    }
    Ok(())
}

/// A minimal chat template, unless the tokenizer has one.
fn bare_template(_: &Config, keys: &mut Keys) -> Result<Vec<Generated>> {
    keys.set_exact(
        "tokenizer.chat_template".into(),
        Value::str("{% for m in messages %}{{m['content']}}{% endfor %}"),
    );
    Ok(Vec::new())
}

/// Layers, and converted multi-token prediction blocks.
const BLOCKS: Size = Size::Computed(|config| Ok(config.blocks()?.into()));

/// Multi-token prediction blocks unsupported by llama.cpp.
pub(super) const BEHIND_THE_LAYERS: &[Recipe] =
    &[
        Recipe::leave_out("model.layers.{}.*", "multi-token prediction")
            .when(When::LayersFrom(BLOCKS)),
    ];

/// Dropped with tied embeddings.
pub(super) const TIED_OUTPUT: &[Recipe] = &[
    Recipe::skip("lm_head.weight").when(When::Set(super::config::TIED)),
    Recipe::skip("model.lm_head.weight").when(When::Set(super::config::TIED)),
];

/// The low-rank factors of queries.
pub(super) const QUERIES: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_a_proj",
        "blk.{}.attn_q_a",
        &[Size::Field(&["q_lora_rank"]), Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.q_a_layernorm",
        "blk.{}.attn_q_a_norm",
        &[Size::Field(&["q_lora_rank"])],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.q_b_proj",
        "blk.{}.attn_q_b",
        &[Any, Size::Field(&["q_lora_rank"])],
    ),
];

/// The router, and all experts in two tensors, the first with the rows of gates before those of
/// ups.
const STACKED_EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.mlp.gate.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.experts.gate_up_proj",
        "blk.{}.ffn_gate_up_exps.weight",
        &[Experts, Product(&[Number(2), Expert]), Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.mlp.experts.down_proj",
        "blk.{}.ffn_down_exps.weight",
        &[Experts, Hidden, Expert],
    ),
];

/// The bias of probabilities in the choice of experts.
pub(super) const SELECTION_BIAS: &[Recipe] = &[Recipe::rename(
    "model.layers.{}.mlp.gate.e_score_correction.bias",
    "blk.{}.exp_probs_b.bias",
    &[Experts],
)];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(fields: serde_json::Value) -> Config {
        Config::new(fields.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn low_rank_queries_by_number_of_layers() {
        for (layers, tokens, rank, loads) in [
            (61, 129_280, Some(1536), true),
            (27, 102_400, None, true),
            (48, 128_256, None, true),
            (61, 129_280, None, false),
            (48, 128_257, None, false),
            (26, 102_400, Some(1536), false),
        ] {
            let config = config(json!({ "num_hidden_layers": layers, "vocab_size": tokens,
                "q_lora_rank": rank }));
            let loaded = loads_queries(&config);
            assert_eq!(loaded.is_ok(), loads, "{layers} {tokens} {rank:?}");
            assert!(loads || loaded.unwrap_err().contains("'q_lora_rank'"));
        }
    }

    #[test]
    fn mistral_3_may_contain_a_mistral_4() {
        for (model_type, name) in [("mistral4", "mistral4"), ("mistral", "mistral3")] {
            let config = config(
                json!({ "architectures": ["Mistral3ForConditionalGeneration"],
                "model_type": "mistral3", "text_config": { "model_type": model_type,
                "num_attention_heads": 4, "hidden_size": 64 } }),
            );
            assert_eq!(Architecture::of(&config).unwrap().name, name);
        }
    }

    #[test]
    fn leading_or_all_layers_are_dense() {
        let dense = |fields: serde_json::Value| {
            let mut keys = Keys::new("a", 0);
            leading_dense_layers(&config(fields), &mut keys).unwrap();
            keys.into_entries()[0].1.as_u64()
        };
        let layers = json!({ "num_hidden_layers": 5 });
        assert_eq!(dense(layers), Some(5));
        assert_eq!(
            dense(json!({ "num_hidden_layers": 5, "n_routed_experts": 8 })),
            Some(0)
        );
        assert_eq!(
            dense(json!({ "num_hidden_layers": 5, "first_k_dense_replace": 2 })),
            Some(2)
        );
    }

    #[test]
    fn blocks_after_the_layers_are_dropped() {
        let config = config(json!({ "architectures": ["DeepseekV3ForCausalLM"],
            "num_hidden_layers": 3, "num_nextn_predict_layers": 1 }));
        let architecture = Architecture::of(&config).unwrap();
        let outputs = |layer: u32| {
            let name = format!("model.layers.{layer}.input_layernorm.weight");
            let (recipe, _) = architecture.recipe(&name, &config).unwrap();
            recipe.outputs().len()
        };
        assert_eq!((outputs(2), outputs(3)), (1, 0));
    }
}
