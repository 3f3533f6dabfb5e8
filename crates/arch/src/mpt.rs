//! MPT: layer norms, optionally without biases, and ALiBi or learned positions.

use super::config::Result;
use super::decoder::{Activation, Alibi, Decoder, Needs, Norm, Rope};
use super::recipes::Size::{Any, Field};
use super::recipes::{Input, Output, Size};
use super::{Architecture, Config, Keys, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

/// Fixed in the model's code, missing in its config.
const EPSILON: f32 = 1e-5;

pub(super) static MPT: Architecture = Architecture {
    classes: &["MPTForCausalLM"],
    name: "mpt",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[PARAMETERS],
    tensors: &[TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::None,
        activation: Activation::Gelu,
        alibi: Alibi::Listed,
        needs: Needs {
            // Positions come from ALiBi, or from a table.
            optional: &[
                "position_embd",
                "attn_q_norm",
                "attn_k_norm",
                "ffn.act.scales",
            ],
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", &["max_seq_len"]),
    Parameter::U32("embedding_length", &["d_model"]),
    Parameter::Layers,
    Parameter::Computed(feed_forward),
    Parameter::U32("attention.head_count", &["n_heads"]),
    Parameter::Computed(attention),
];

fn feed_forward(config: &Config, keys: &mut Keys) -> Result<()> {
    let width = config.u32(&["d_model"])?.checked_mul(4);
    let width = width.ok_or("field 'd_model' is too large")?;
    keys.set("feed_forward_length", Value::U32(width));
    Ok(())
}

/// Fields of the attention object.
fn attention(config: &Config, keys: &mut Keys) -> Result<()> {
    const OBJECT: &str = "attn_config";
    let fields = config.optional_object(OBJECT)?;
    let fields = fields.ok_or(format!("field '{OBJECT}' is missing"))?;
    let number = |name: &str| super::config::number_in(fields, name);
    if let Some(heads) = number("kv_n_heads")?.filter(|heads| *heads != 0.0) {
        keys.set("attention.head_count_kv", Value::U32(heads as u32));
    }
    keys.set("attention.layer_norm_epsilon", Value::F32(EPSILON));
    if let Some(limit) = number("clip_qkv")? {
        keys.set("attention.clamp_kqv", Value::F32(limit as f32));
    }
    let is_alibi = fields.get("alibi").is_some_and(|alibi| *alibi == true);
    let bias = match is_alibi {
        true => {
            number("alibi_bias_max")?.ok_or(format!("'alibi_bias_max' is missing in '{OBJECT}'"))?
        }
        false => 0.0,
    };
    keys.set("attention.max_alibi_bias", Value::F32(bias as f32));
    Ok(())
}

const WIDTH: Size = Field(&["d_model"]);

const TENSORS: &[Recipe] = &[
    Recipe::rename("lm_head", "output", &[Any, WIDTH]),
    Recipe::rename("transformer.wte", "token_embd", &[Any, WIDTH]),
    Recipe::rename("transformer.wpe", "position_embd", &[Any, WIDTH]),
    Recipe::rename("transformer.norm_f", "output_norm", &[WIDTH]),
    Recipe::rename("transformer.blocks.{}.norm_1", "blk.{}.attn_norm", &[WIDTH]),
    Recipe::rename("transformer.blocks.{}.norm_2", "blk.{}.ffn_norm", &[WIDTH]),
    Recipe::rename(
        "transformer.blocks.{}.attn.Wqkv",
        "blk.{}.attn_qkv",
        &[Any, WIDTH],
    ),
    Recipe::rename(
        "transformer.blocks.{}.attn.q_ln",
        "blk.{}.attn_q_norm",
        &[Any],
    ),
    Recipe::rename(
        "transformer.blocks.{}.attn.k_ln",
        "blk.{}.attn_k_norm",
        &[Any],
    ),
    Recipe::rename(
        "transformer.blocks.{}.attn.out_proj",
        "blk.{}.attn_output",
        &[WIDTH, WIDTH],
    ),
    Recipe::rename(
        "transformer.blocks.{}.ffn.up_proj",
        "blk.{}.ffn_up",
        &[Any, WIDTH],
    ),
    // Of AWQ: divisors of the activation's output.
    Recipe::new(
        &[Input::new("transformer.blocks.{}.ffn.act.scales", &[Any])],
        &[Output::new("blk.{}.ffn.act.scales", &[])],
    ),
    Recipe::rename(
        "transformer.blocks.{}.ffn.down_proj",
        "blk.{}.ffn_down",
        &[WIDTH, Any],
    ),
];
