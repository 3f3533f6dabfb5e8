//! OpenELM: numbers of heads and sizes of feed-forward networks differ by layer.

use super::config::{Result, wrong_kind};
use super::decoder::{Decoder, Rope};
use super::parameters::set_numbers;
use super::recipes::Op::{self, Reshape, Squeeze};
use super::recipes::Size::{self, Any, Field, Number};
use super::recipes::{Input, Output};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_tokenizer::VocabKind;

/// Fixed in the model's code, missing in its config.
const EPSILON: f32 = 1e-6;

pub(super) static OPENELM: Architecture = Architecture {
    classes: &["OpenELMForCausalLM"],
    name: "openelm",
    vocabulary: VocabKind::OpenElm,
    parameters: &[PARAMETERS],
    tensors: &[TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::Layers,
    Parameter::U32("context_length", &["max_context_length"]),
    Parameter::U32("embedding_length", &["model_dim"]),
    Parameter::Computed(widths),
    Parameter::Computed(|config, keys| {
        heads(config, keys, "attention.head_count", "num_query_heads")
    }),
    Parameter::Computed(|config, keys| {
        heads(config, keys, "attention.head_count_kv", "num_kv_heads")
    }),
    Parameter::F32("rope.freq_base", &["rope_freq_constant"]),
    Parameter::ConstantF32("attention.layer_norm_rms_epsilon", EPSILON),
    Parameter::U32("rope.dimension_count", HEAD),
    Parameter::U32("attention.key_length", HEAD),
    Parameter::U32("attention.value_length", HEAD),
    Parameter::FileType,
];

const HEAD: &[&str] = &["head_dim"];

/// A list with a number per layer.
fn list(config: &Config, name: &str) -> Result<Vec<f64>> {
    let value = config
        .get(name)
        .ok_or_else(|| format!("field '{name}' is missing"))?;
    let numbers = value
        .as_array()
        .and_then(|list| list.iter().map(|n| n.as_f64()).collect());
    let numbers: Vec<f64> = numbers.ok_or_else(|| wrong_kind(name, value, "a list of numbers"))?;
    let layers = config.layers()? as usize;
    match numbers.len() == layers {
        true => Ok(numbers),
        false => Err(format!(
            "'{name}' has {} numbers for {layers} layers",
            numbers.len()
        )),
    }
}

fn heads(config: &Config, keys: &mut Keys, key: &str, field: &str) -> Result<()> {
    let numbers = list(config, field)?;
    set_numbers(keys, key, numbers.into_iter().map(|n| n as u32));
    Ok(())
}

/// Multiples of the hidden size, rounded to a multiple of the divisor, by at most a tenth down.
fn widths(config: &Config, keys: &mut Keys) -> Result<()> {
    let width = f64::from(config.u32(&["model_dim"])?);
    let divisor = f64::from(config.u32(&["ffn_dim_divisor"])?);
    if divisor == 0.0 {
        return Err("field 'ffn_dim_divisor' is 0".into());
    }
    let rounded = |multiplier: f64| {
        let exact = multiplier * width;
        let rounded = ((exact + divisor / 2.0).trunc() / divisor).floor() * divisor;
        let rounded = rounded.max(divisor);
        (rounded + if rounded < 0.9 * exact { divisor } else { 0.0 }) as u32
    };
    let numbers = list(config, "ffn_multipliers")?;
    set_numbers(
        keys,
        "feed_forward_length",
        numbers.into_iter().map(rounded),
    );
    Ok(())
}

const WIDTH: Size = Field(&["model_dim"]);
const HALVES: Op = Reshape(&[Number(2), Any, WIDTH]);
const EACH: &[Size] = &[Number(1), Number(1)];

const TENSORS: &[Recipe] = &[
    Recipe::rename("transformer.token_embeddings", "token_embd", &[Any, WIDTH]),
    Recipe::rename("lm_head", "output", &[Any, WIDTH]),
    Recipe::rename("transformer.norm", "output_norm", &[WIDTH]),
    Recipe::rename(
        "transformer.layers.{}.attn_norm",
        "blk.{}.attn_norm",
        &[WIDTH],
    ),
    Recipe::rename(
        "transformer.layers.{}.ffn_norm",
        "blk.{}.ffn_norm",
        &[WIDTH],
    ),
    Recipe::rename(
        "transformer.layers.{}.attn.qkv_proj",
        "blk.{}.attn_qkv",
        &[Any, WIDTH],
    ),
    Recipe::rename(
        "transformer.layers.{}.attn.q_norm",
        "blk.{}.attn_q_norm",
        &[Field(HEAD)],
    ),
    Recipe::rename(
        "transformer.layers.{}.attn.k_norm",
        "blk.{}.attn_k_norm",
        &[Field(HEAD)],
    ),
    Recipe::rename(
        "transformer.layers.{}.attn.out_proj",
        "blk.{}.attn_output",
        &[WIDTH, Any],
    ),
    Recipe::new(
        &[Input::new(
            "transformer.layers.{}.ffn.proj_1.weight",
            &[Any, WIDTH],
        )],
        &[
            Output::new(
                "blk.{}.ffn_gate.weight",
                &[HALVES, Op::part(0, EACH, 0), Squeeze(0)],
            ),
            Output::new(
                "blk.{}.ffn_up.weight",
                &[HALVES, Op::part(0, EACH, 1), Squeeze(0)],
            ),
        ],
    ),
    Recipe::rename(
        "transformer.layers.{}.ffn.proj_2",
        "blk.{}.ffn_down",
        &[WIDTH, Any],
    ),
];
