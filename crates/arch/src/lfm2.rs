//! LFM2, dense and with experts: short convolutions between two gates in most layers, attention in
//! the others.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{Decoder, Needs, Recurrence, Rope, Router, Setting, Window};
use super::llama::{BUFFERS, STACKED};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, POOLING, set_numbers};
use super::recipes::Op::Squeeze;
use super::recipes::Size::{
    Any, Computed, Expert, Experts, Field, Head, Hidden, Keys as KeyRows, Number, Product, Queries,
};
use super::recipes::{Input, Output, Recipe, Size};
use super::{Architecture, Generated, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static LFM2: Architecture = Architecture {
    classes: &["Lfm2ForCausalLM", "LFM2ForCausalLM"],
    name: "lfm2",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        ATTENTION_LAYERS,
        SIZES,
        WIDTH,
    ],
    tensors: &[EMBEDDINGS, NORMS, ATTENTION, CONVOLUTION, FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        recurrence: Some(Recurrence::ShortConvolutions),
        output_norm: "token_embd_norm",
        // All attention, if the metadata has a window.
        window: Window::Pattern {
            layers: 0,
            tokens: None,
            rope_base: None,
        },
        ..Decoder::LLAMA
    },
};

/// Text embedding models without a head; the second class is not causal.
pub(super) static LFM2_EMBEDDING: Architecture = Architecture {
    classes: &["Lfm2Model", "Lfm2BidirectionalModel"],
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        ATTENTION_LAYERS,
        SIZES,
        WIDTH,
        BIDIRECTIONAL,
        POOLING,
    ],
    tensors: &[
        EMBEDDINGS,
        PROJECTION,
        NORMS,
        ATTENTION,
        CONVOLUTION,
        FFN,
        BUFFERS,
    ],
    generated: projection,
    decoder: Decoder {
        needs: Needs {
            optional: &["dense_2"],
            ..Needs::WEIGHTS
        },
        ..LFM2.decoder
    },
    ..LFM2
};

pub(super) static LFM2_MOE: Architecture = Architecture {
    classes: &["Lfm2MoeForCausalLM"],
    name: "lfm2moe",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        ATTENTION_LAYERS,
        EXPERT_PARAMETERS,
        SIZES,
    ],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        ATTENTION,
        CONVOLUTION,
        FFN,
        EXPERTS,
        BUFFERS,
    ],
    decoder: Decoder {
        router: Router {
            normalized: Setting::Always(true),
            ..Router::LISTED
        },
        needs: Needs {
            biases: &["exp_probs_b"],
            ..Needs::WEIGHTS
        },
        window: Window::None,
        ..LFM2.decoder
    },
    ..LFM2
};

const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename("model.embed_tokens", "token_embd", &[Any, Hidden]),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
    // The norm after the last layer, under the name of an embedding norm.
    Recipe::rename("model.embedding_norm", "token_embd_norm", &[Hidden]),
];

/// The projection after the pooling, of a file of its own.
pub(super) const PROJECTION_FILE: &str = "1_Dense/model.safetensors";
const PROJECTION: &[Recipe] = &[Recipe::rename("linear", "dense_2", &[Any, Hidden])];

const NORMS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.operator_norm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename("model.layers.{}.ffn_norm", "blk.{}.ffn_norm", &[Hidden]),
];

const ATTENTION: &[Recipe] = &[
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
        &[KeyRows, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.out_proj",
        "blk.{}.attn_output",
        &[Hidden, Queries],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.q_layernorm",
        "blk.{}.attn_q_norm",
        &[Head],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.k_layernorm",
        "blk.{}.attn_k_norm",
        &[Head],
    ),
];

/// Biases are unsupported by llama.cpp.
const CONVOLUTION: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.conv.conv.weight",
        "blk.{}.shortconv.conv.weight",
        &[Hidden, Number(1), Field(&["conv_L_cache"])],
        &[Squeeze(1)],
    ),
    Recipe::rename(
        "model.layers.{}.conv.in_proj.weight",
        "blk.{}.shortconv.in_proj.weight",
        &[Product(&[Number(3), Hidden]), Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.conv.out_proj.weight",
        "blk.{}.shortconv.out_proj.weight",
        &[Hidden, Hidden],
    ),
];

const FFN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.feed_forward.w1",
        "blk.{}.ffn_gate",
        &[WIDTH_OF_FFN, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.w2",
        "blk.{}.ffn_down",
        &[Hidden, WIDTH_OF_FFN],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.w3",
        "blk.{}.ffn_up",
        &[WIDTH_OF_FFN, Hidden],
    ),
];

const EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.feed_forward.gate.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Experts, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.expert_bias",
        "blk.{}.exp_probs_b.bias",
        &[Experts],
    ),
    Recipe::new(
        &[
            Input::new(
                "model.layers.{}.feed_forward.experts.{}.w1.weight",
                &[Expert, Hidden],
            ),
            Input::new(
                "model.layers.{}.feed_forward.experts.{}.w2.weight",
                &[Hidden, Expert],
            ),
            Input::new(
                "model.layers.{}.feed_forward.experts.{}.w3.weight",
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

/// The size of a dense feed-forward network: explicit in configs with experts, computed in others.
const WIDTH_OF_FFN: Size = Computed(|config| match config.get(ADJUSTED) {
    Some(_) => width(config),
    None => Ok(config.u32(&["intermediate_size"])?.into()),
});

const ATTENTION_LAYERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let heads = config.u32(&["num_key_value_heads"])?;
    let layers = attention_layers(config)?.into_iter();
    let heads = layers.map(|has_attention| if has_attention { heads } else { 0 });
    set_numbers(keys, "attention.head_count_kv", heads);
    Ok(())
})];

const SIZES: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    Parameter::U32("shortconv.l_cache", &["conv_L_cache"]),
];

const EXPERT_PARAMETERS: &[Parameter] = &[
    Parameter::U32("expert_feed_forward_length", &["moe_intermediate_size"]),
    Parameter::U32("leading_dense_block_count", &["num_dense_layers"]),
    Parameter::ConstantU32("expert_gating_func", SIGMOID),
];

/// The value of sigmoid as a gating function.
const SIGMOID: u32 = 2;

const WIDTH: &[Parameter] = &[
    Parameter::F32("attention.layer_norm_rms_epsilon", &["norm_eps"]),
    Parameter::Computed(|config, keys| {
        let width = u32::try_from(width(config)?);
        let width = width.map_err(|_| "the feed-forward network is wider than 2^32".to_owned())?;
        keys.set("feed_forward_length", Value::U32(width));
        Ok(())
    }),
];

/// The projection after the pooling, whose key precedes all others.
fn projection(config: &Config, keys: &mut Keys) -> Result<Vec<Generated>> {
    if let Some(length) = config.projected() {
        keys.set("embedding_length_out", Value::U32(length));
    }
    Ok(Vec::new())
}

const BIDIRECTIONAL: &[Parameter] = &[Parameter::Computed(|config, keys| {
    if config.class() == Some("Lfm2BidirectionalModel") {
        keys.set("attention.causal", Value::Bool(false));
    }
    Ok(())
})];

/// The field for two thirds of the given size, times a factor, rounded up.
const ADJUSTED: &str = "block_auto_adjust_ff_dim";

/// The size of the feed-forward network.
fn width(config: &Config) -> Result<u64> {
    const MULTIPLE: &str = "block_multiple_of";
    let said = config.u32(&["block_ff_dim", "intermediate_size"])?;
    let adjusted = config.get(ADJUSTED);
    let adjusted = adjusted.ok_or_else(|| format!("field '{ADJUSTED}' is missing"))?;
    if *adjusted == false {
        return Ok(said.into());
    }
    let mut width = u64::from(said) * 2 / 3;
    if let Some(factor) = config.optional_f64(&["block_ffn_dim_multiplier"])? {
        width = (factor * width as f64) as u64;
    }
    match config.u32(&[MULTIPLE])? {
        0 => Err(format!("field '{MULTIPLE}' is 0")),
        multiple => Ok(width.div_ceil(multiple.into()) * u64::from(multiple)),
    }
}

/// Layers with attention: by a list of kinds, or by a list of numbers, or all.
fn attention_layers(config: &Config) -> Result<Vec<bool>> {
    const KINDS: &str = "layer_types";
    const NUMBERS: &str = "full_attn_idxs";
    let layers = config.layers()?;
    let list = |name: &str| {
        let value = config.get(name);
        let list = value.map(|value| {
            value
                .as_array()
                .ok_or_else(|| wrong_kind(name, value, "a list"))
        });
        list.transpose()
    };
    if let Some(kinds) = list(KINDS)? {
        let count = kinds.len();
        return match count == layers as usize {
            true => Ok(kinds.iter().map(|kind| kind != "conv").collect()),
            false => Err(format!(
                "field '{KINDS}' lists {count} layers, and there are {layers}"
            )),
        };
    }
    let numbers = list(NUMBERS)?;
    let has_attention = |layer: u32| numbers.is_none_or(|numbers| numbers.contains(&layer.into()));
    Ok((0..layers).map(has_attention).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn config(more: Json) -> Config {
        let mut fields = json!({ "model_type": "lfm2", "num_hidden_layers": 3 });
        let both = fields.as_object_mut().unwrap();
        both.extend(more.as_object().unwrap().clone());
        Config::new(both.clone()).unwrap()
    }

    #[test]
    fn ffn_size_is_adjusted_by_the_config() {
        for (more, expected) in [
            (json!({ "block_ff_dim": 10752 }), 7168),
            (json!({ "block_ff_dim": 1000, "block_multiple_of": 7 }), 672),
            (
                json!({ "intermediate_size": 6656, "block_ffn_dim_multiplier": 1.5 }),
                6656,
            ),
            (
                json!({ "block_ff_dim": 10752, "block_auto_adjust_ff_dim": false }),
                10752,
            ),
            (
                json!({ "block_ff_dim": 100, "block_ffn_dim_multiplier": null }),
                256,
            ),
        ] {
            assert_eq!(width(&config(more.clone())), Ok(expected), "{more}");
        }
        let error = width(&config(json!({ "block_multiple_of": 0 }))).unwrap_err();
        assert!(error.contains("'block_multiple_of'"), "{error}");
    }

    #[test]
    fn attention_layers_by_kinds_or_numbers() {
        let kinds = json!({ "layer_types": ["conv", "full_attention", "conv"] });
        assert_eq!(
            attention_layers(&config(kinds)).unwrap(),
            [false, true, false]
        );
        let numbers = json!({ "full_attn_idxs": [2] });
        assert_eq!(
            attention_layers(&config(numbers)).unwrap(),
            [false, false, true]
        );
        assert_eq!(attention_layers(&config(json!({}))).unwrap(), [true; 3]);
        let error = attention_layers(&config(json!({ "layer_types": ["conv"] }))).unwrap_err();
        assert!(error.contains("'layer_types' lists 1 layers"), "{error}");
    }
}
