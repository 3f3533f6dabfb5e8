//! DeepSeek V4: several residual streams mixed by hyper-connections, keys and values compressed over
//! tokens, an indexer in some of these layers, queries and outputs of low rank, and experts, in the
//! first layers chosen by a table of tokens.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{Decoder, Needs};
use super::nextn::PREDICT_LAYERS;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, set_flag, set_floats, set_numbers};
use super::recipes::Op::{Cast, Concat, KeepType, Stack};
use super::recipes::Size::{self, Any, Experts, Field, Head, Hidden, Number, Product, QueryHeads};
use super::recipes::{Input, Output, Place, Recipe, When};
use super::sparse::INDEXER_PARAMETERS;
use super::{Architecture, Generated, Keys, Parameter};
use quantier_gguf::gguf::Value;
use quantier_gguf::types::GgmlType;
use quantier_tokenizer::VocabKind;
use serde_json::Map;

/// The class, whose checkpoints declare their storage by names alone.
pub(super) const CLASS: &str = "DeepseekV4ForCausalLM";

pub(super) static DEEPSEEK4: Architecture = Architecture {
    classes: &[CLASS],
    name: "deepseek4",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        PARAMETERS,
        INDEXER_PARAMETERS,
        COMPRESSION,
        HYPER_CONNECTION_PARAMETERS,
        HASHES_AND_STREAMS,
        PREDICT_LAYERS,
    ],
    tensors: &[
        OTHER_PARTS,
        ROOT,
        HYPER_CONNECTIONS,
        ATTENTION,
        COMPRESSOR,
        INDEXER,
        FFN,
        NEXTN,
    ],
    generated: template,
    decoder: Decoder {
        refused: Some(
            "its layers mix several residual streams (hyper-connections) and compress keys and values over tokens",
        ),
        needs: Needs {
            biases: &["exp_probs_b"],
            own_output: true,
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

/// Adds the parameters of `rope_scaling` to a `rope_parameters` without a type of its own, as in
/// configs of later transformers.
pub(super) fn complete(class: Option<&str>, fields: &mut Map<String, serde_json::Value>) {
    if class != Some(CLASS) {
        return;
    }
    let Some(scaling) = fields.get("rope_scaling").and_then(|s| s.as_object()) else {
        return;
    };
    let mut scaling = scaling.clone();
    if let (None, Some(kind)) = (scaling.get("rope_type"), scaling.get("type").cloned()) {
        scaling.insert("rope_type".into(), kind);
    }
    let parameters = fields.get_mut("rope_parameters");
    let Some(parameters) = parameters.and_then(|p| p.as_object_mut()) else {
        return;
    };
    let own = parameters.get("full_attention").and_then(|p| p.as_object());
    let own = own.unwrap_or(parameters);
    let has_type = |name: &str| own.get(name).is_some_and(|kind| !kind.is_null());
    if !has_type("rope_type") && !has_type("type") {
        parameters.extend(scaling);
    }
}

/// The place of the checkpoint's chat template. The reference sets one of its own there first, which
/// a checkpoint without one keeps; Quantier drops the key then, and says so.
fn template(_: &Config, keys: &mut Keys) -> Result<Vec<Generated>> {
    keys.set_exact("tokenizer.chat_template".into(), Value::str(""));
    Ok(Vec::new())
}

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("rope.dimension_count", &["qk_rope_head_dim"]),
    Parameter::U32("attention.q_lora_rank", &["q_lora_rank"]),
    Parameter::U32("attention.sliding_window", &["sliding_window"]),
    super::experts::EXPERT_LENGTH,
    Parameter::U32("expert_shared_count", &["n_shared_experts"]),
    Parameter::F32("expert_weights_scale", &["routed_scaling_factor"]),
    Parameter::Computed(|config, keys| {
        set_flag(config, keys, "expert_weights_norm", "norm_topk_prob")?;
        set_limits(config, keys, config.f64(&["swiglu_limit"])?)
    }),
];

/// Sets one limit of activations for the routed and shared experts of all blocks.
pub(super) fn set_limits(config: &Config, keys: &mut Keys, limit: f64) -> Result<()> {
    let blocks = config.blocks()? as usize;
    for key in ["swiglu_clamp_exp", "swiglu_clamp_shexp"] {
        set_floats(keys, key, vec![limit as f32; blocks]);
    }
    Ok(())
}

const COMPRESSION: &[Parameter] = &[
    Parameter::U32("attention.output_group_count", &["o_groups"]),
    Parameter::U32("attention.output_lora_rank", &["o_lora_rank"]),
    Parameter::Computed(|config, keys| {
        set_numbers(keys, "attention.compress_ratios", ratios(config)?);
        Ok(())
    }),
    Parameter::F32(
        "attention.compress_rope_freq_base",
        &["compress_rope_theta"],
    ),
];

/// Residual streams mixed by hyper-connections.
pub(super) const HYPER_CONNECTION_PARAMETERS: &[Parameter] = &[
    Parameter::U32("hyper_connection.count", &["hc_mult"]),
    Parameter::U32(
        "hyper_connection.sinkhorn_iterations",
        &["hc_sinkhorn_iters"],
    ),
    Parameter::F32("hyper_connection.epsilon", &["hc_eps"]),
];

const HASHES_AND_STREAMS: &[Parameter] = &[
    Parameter::U32("hash_layer_count", &["num_hash_layers"]),
    Parameter::Computed(|config, keys| {
        let length = STREAMS.required(config)?;
        let length = u32::try_from(length);
        let length = length.map_err(|_| "all streams have more than 32 bits".to_owned())?;
        keys.set("embedding_length_out", Value::U32(length));
        Ok(())
    }),
];

/// Tokens per compressed key, by layer; 0 for layers without compression.
fn ratios(config: &Config) -> Result<Vec<u32>> {
    const FIELD: &str = "compress_ratios";
    /// Ratios that llama.cpp loads.
    const KNOWN: [u64; 3] = [0, 4, 128];
    let listed = config.get(FIELD);
    let listed = listed.ok_or_else(|| format!("field '{FIELD}' is missing"))?;
    let wrong = || wrong_kind(FIELD, listed, "a list of the numbers 0, 4 and 128");
    let number = |ratio: &serde_json::Value| ratio.as_u64().filter(|ratio| KNOWN.contains(ratio));
    let list = listed.as_array().ok_or_else(wrong)?.iter();
    let ratios: Option<Vec<u32>> = list.map(|r| Some(number(r)? as u32)).collect();
    let ratios = ratios.ok_or_else(wrong)?;
    let layers = config.layers()?;
    match ratios.len() >= layers as usize {
        true => Ok(ratios),
        false => Err(format!(
            "field '{FIELD}' has {} entries for {layers} layers",
            ratios.len()
        )),
    }
}

fn ratio(config: &Config, layer: u32) -> u32 {
    let ratios = ratios(config).unwrap_or_default();
    ratios.get(layer as usize).copied().unwrap_or(0)
}

const COMPRESSED: When = When::Layers(|config, layer| ratio(config, layer) > 0);
const INDEXED: When = When::Layers(|config, layer| ratio(config, layer) == 4);

/// Length of all residual streams together.
pub(super) const STREAMS: Size = Product(&[Hidden, COUNT]);
pub(super) const COUNT: Size = Field(&["hc_mult"]);
const MIXES: Size = Size::Computed(|config| {
    let count = COUNT.required(config)?;
    let mixes = count.checked_add(2).and_then(|n| n.checked_mul(count));
    mixes.ok_or("'hc_mult' is too large".into())
});
const RANK: Size = Field(&["q_lora_rank"]);
/// Layers whose experts follow from the token.
const HASHED: Size = Field(&["num_hash_layers"]);

/// A matrix in the type of the checkpoint.
const fn kept(from: &'static str, to: &'static str, dims: &'static [Size]) -> Recipe {
    Recipe::with(from, to, dims, &[KeepType])
}

const OTHER_PARTS: &[Recipe] = &[
    Recipe::leave_out("aligner.*", "the vision part"),
    Recipe::leave_out("image_*", "the vision part"),
];

const ROOT: &[Recipe] = &[
    kept("embed.weight", "token_embd.weight", &[Any, Hidden]),
    Recipe::rename("norm.weight", "output_norm.weight", &[Hidden]),
    kept("head.weight", "output.weight", &[Any, Hidden]),
    kept("hc_head_fn", "output_hc_fn.weight", &[COUNT, STREAMS]),
    Recipe::rename("hc_head_base", "output_hc_base.weight", &[COUNT]),
    Recipe::rename("hc_head_scale", "output_hc_scale.weight", &[Number(1)]),
];

const HYPER_CONNECTIONS: &[Recipe] = &[
    kept(
        "layers.{}.hc_attn_fn",
        "blk.{}.hc_attn_fn.weight",
        &[MIXES, STREAMS],
    ),
    Recipe::rename(
        "layers.{}.hc_attn_base",
        "blk.{}.hc_attn_base.weight",
        &[MIXES],
    ),
    Recipe::rename(
        "layers.{}.hc_attn_scale",
        "blk.{}.hc_attn_scale.weight",
        &[Number(3)],
    ),
    kept(
        "layers.{}.hc_ffn_fn",
        "blk.{}.hc_ffn_fn.weight",
        &[MIXES, STREAMS],
    ),
    Recipe::rename(
        "layers.{}.hc_ffn_base",
        "blk.{}.hc_ffn_base.weight",
        &[MIXES],
    ),
    Recipe::rename(
        "layers.{}.hc_ffn_scale",
        "blk.{}.hc_ffn_scale.weight",
        &[Number(3)],
    ),
];

const ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "layers.{}.attn_norm.weight",
        "blk.{}.attn_norm.weight",
        &[Hidden],
    ),
    Recipe::rename(
        "layers.{}.attn.attn_sink",
        "blk.{}.attn_sinks.weight",
        &[QueryHeads],
    ),
    kept(
        "layers.{}.attn.wq_a.weight",
        "blk.{}.attn_q_a.weight",
        &[RANK, Hidden],
    ),
    Recipe::rename(
        "layers.{}.attn.q_norm.weight",
        "blk.{}.attn_q_a_norm.weight",
        &[RANK],
    ),
    kept(
        "layers.{}.attn.wq_b.weight",
        "blk.{}.attn_q_b.weight",
        &[Size::Queries, RANK],
    ),
    kept(
        "layers.{}.attn.wkv.weight",
        "blk.{}.attn_kv.weight",
        &[Head, Hidden],
    ),
    Recipe::rename(
        "layers.{}.attn.kv_norm.weight",
        "blk.{}.attn_kv_a_norm.weight",
        &[Head],
    ),
    kept(
        "layers.{}.attn.wo_a.weight",
        "blk.{}.attn_output_a.weight",
        &[Any, Any],
    ),
    kept(
        "layers.{}.attn.wo_b.weight",
        "blk.{}.attn_output_b.weight",
        &[Hidden, Any],
    ),
];

const COMPRESSOR: &[Recipe] = &[
    kept(
        "layers.{}.attn.compressor.ape",
        "blk.{}.attn_compressor_ape.weight",
        &[Any, Any],
    )
    .when(COMPRESSED),
    kept(
        "layers.{}.attn.compressor.wkv.weight",
        "blk.{}.attn_compressor_kv.weight",
        &[Any, Hidden],
    )
    .when(COMPRESSED),
    kept(
        "layers.{}.attn.compressor.wgate.weight",
        "blk.{}.attn_compressor_gate.weight",
        &[Any, Hidden],
    )
    .when(COMPRESSED),
    Recipe::rename(
        "layers.{}.attn.compressor.norm.weight",
        "blk.{}.attn_compressor_norm.weight",
        &[Head],
    )
    .when(COMPRESSED),
];

const INDEXER: &[Recipe] = &[
    kept(
        "layers.{}.attn.indexer.wq_b.weight",
        "blk.{}.indexer.attn_q_b.weight",
        &[Any, RANK],
    )
    .when(INDEXED),
    kept(
        "layers.{}.attn.indexer.weights_proj.weight",
        "blk.{}.indexer.proj.weight",
        &[Field(&["index_n_heads"]), Hidden],
    )
    .when(INDEXED),
    kept(
        "layers.{}.attn.indexer.compressor.ape",
        "blk.{}.indexer_compressor_ape.weight",
        &[Any, Any],
    )
    .when(INDEXED),
    kept(
        "layers.{}.attn.indexer.compressor.wkv.weight",
        "blk.{}.indexer_compressor_kv.weight",
        &[Any, Hidden],
    )
    .when(INDEXED),
    kept(
        "layers.{}.attn.indexer.compressor.wgate.weight",
        "blk.{}.indexer_compressor_gate.weight",
        &[Any, Hidden],
    )
    .when(INDEXED),
    Recipe::rename(
        "layers.{}.attn.indexer.compressor.norm.weight",
        "blk.{}.indexer_compressor_norm.weight",
        &[Field(&["index_head_dim"])],
    )
    .when(INDEXED),
];

/// Rows of the table of experts by token.
const TOKENS: Size = Field(&["vocab_size"]);

const FFN: &[Recipe] = &[
    Recipe::rename(
        "layers.{}.ffn_norm.weight",
        "blk.{}.ffn_norm.weight",
        &[Hidden],
    ),
    kept(
        "layers.{}.ffn.gate.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
    ),
    // Unused where the token decides.
    Recipe::skip("layers.{}.ffn.gate.bias").when(When::LayersBefore(HASHED)),
    Recipe::rename(
        "layers.{}.ffn.gate.bias",
        "blk.{}.exp_probs_b.bias",
        &[Experts],
    )
    .when(When::LayersFrom(HASHED)),
    Recipe::rename(
        "layers.{}.ffn.gate.bias_vl",
        "blk.{}.exp_probs_b_vl.bias",
        &[Experts],
    ),
    Recipe::with(
        "layers.{}.ffn.gate.tid2eid",
        "blk.{}.ffn_gate_tid2eid.weight",
        &[TOKENS, Field(&["num_experts_per_tok"])],
        &[Cast(GgmlType::I32)],
    )
    .at(Place::BeforeExperts)
    .when(When::LayersBefore(HASHED)),
    Recipe::new(
        &[
            Input::new(
                "layers.{}.ffn.experts.{}.w1.weight",
                &[Size::Expert, Hidden],
            ),
            Input::new(
                "layers.{}.ffn.experts.{}.w2.weight",
                &[Hidden, Size::Expert],
            ),
            Input::new(
                "layers.{}.ffn.experts.{}.w3.weight",
                &[Size::Expert, Hidden],
            ),
        ],
        &[
            Output::of(&[0], "blk.{}.ffn_gate_exps.weight", STACKED),
            Output::of(&[1], "blk.{}.ffn_down_exps.weight", STACKED),
            Output::of(&[2], "blk.{}.ffn_up_exps.weight", STACKED),
        ],
    ),
    kept(
        "layers.{}.ffn.shared_experts.w1.weight",
        "blk.{}.ffn_gate_shexp.weight",
        &[Any, Hidden],
    ),
    kept(
        "layers.{}.ffn.shared_experts.w2.weight",
        "blk.{}.ffn_down_shexp.weight",
        &[Hidden, Any],
    ),
    kept(
        "layers.{}.ffn.shared_experts.w3.weight",
        "blk.{}.ffn_up_shexp.weight",
        &[Any, Hidden],
    ),
];

const STACKED: &[super::recipes::Op] = &[Stack(Experts), KeepType];

/// Tensors of a multi-token prediction block in addition to those of a layer.
const NEXTN: &[Recipe] = &[
    Recipe::new(
        &[
            Input::new("layers.{}.e_proj.weight", &[Hidden, Hidden]),
            Input::new("layers.{}.h_proj.weight", &[Hidden, Hidden]),
        ],
        &[Output::of(
            &[0, 1],
            "blk.{}.nextn.eh_proj.weight",
            &[Concat(1), Cast(GgmlType::Q8_0)],
        )],
    )
    .at(Place::BehindExperts),
    Recipe::rename(
        "layers.{}.enorm.weight",
        "blk.{}.nextn.enorm.weight",
        &[Hidden],
    ),
    Recipe::rename(
        "layers.{}.hnorm.weight",
        "blk.{}.nextn.hnorm.weight",
        &[Hidden],
    ),
    Recipe::rename(
        "layers.{}.norm.weight",
        "blk.{}.nextn.shared_head_norm.weight",
        &[Hidden],
    ),
    // A draft model has the block's instead of the model's own.
    kept(
        "layers.{}.hc_head_fn",
        "output_hc_fn.weight",
        &[COUNT, STREAMS],
    ),
    Recipe::rename("layers.{}.hc_head_base", "output_hc_base.weight", &[COUNT]),
    Recipe::rename(
        "layers.{}.hc_head_scale",
        "output_hc_scale.weight",
        &[Number(1)],
    ),
];

#[cfg(test)]
mod tests {
    use super::super::config::number_in;
    use super::*;
    use serde_json::json;

    fn config(fields: serde_json::Value) -> Config {
        Config::new(fields.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn compression_decides_the_tensors_of_a_layer() {
        let config = config(json!({ "architectures": [CLASS], "num_hidden_layers": 3,
            "num_hash_layers": 1, "compress_ratios": [0, 4, 128] }));
        let has = |name: &str| -> Vec<u32> {
            let applies = |layer: &u32| {
                let name = name.replace("{}", &layer.to_string());
                let found = DEEPSEEK4.recipe(&name, &config);
                found.is_some_and(|(recipe, _)| !recipe.outputs().is_empty())
            };
            (0..3).filter(applies).collect()
        };
        assert_eq!(has("layers.{}.attn.compressor.ape"), [1, 2]);
        assert_eq!(has("layers.{}.attn.indexer.wq_b.weight"), [1]);
        assert_eq!(has("layers.{}.ffn.gate.tid2eid"), [0]);
        assert_eq!(has("layers.{}.ffn.gate.bias"), [1, 2]);
    }

    #[test]
    fn unknown_ratios_are_named() {
        for (listed, part) in [
            (json!([0, 8]), "0, 4 and 128"),
            (json!([0]), "1 entries for 2 layers"),
            (json!(4), "is a whole number"),
        ] {
            let fields = json!({ "num_hidden_layers": 2, "compress_ratios": listed });
            let error = ratios(&config(fields)).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn rope_scaling_completes_untyped_rope_parameters() {
        let kind = |rope: serde_json::Value| {
            let config = config(json!({ "architectures": [CLASS], "rope_theta": 10_000.0,
                "rope_scaling": { "type": "yarn", "factor": 16 }, "rope_parameters": rope }));
            let rope = config.rope();
            let factor = number_in(rope, "factor").unwrap();
            (rope.get("rope_type").cloned(), factor)
        };
        assert_eq!(kind(json!({})), (Some("yarn".into()), Some(16.0)));
        let own = json!({ "rope_type": "linear", "factor": 2 });
        assert_eq!(kind(own), (Some("linear".into()), Some(2.0)));
    }
}
