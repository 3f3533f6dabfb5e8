//! DBRX: layer norms without biases, fused and clamped queries, keys and values, stacked experts.

use super::config::{Config, Result, number_in};
use super::decoder::{Decoder, Layout, Needs, Norm, Rope};
use super::recipes::Op::{CastByFile, Reshape, Transpose};
use super::recipes::Size::{self, Any, Computed, Field};
use super::{Architecture, Parameter, Recipe, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static DBRX: Architecture = Architecture {
    classes: &["DbrxForCausalLM"],
    name: "dbrx",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[PARAMETERS],
    tensors: &[TENSORS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::Halves,
        layout: Layout::Sequential("attn_output_norm"),
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

const FFN: &str = "ffn_config";
const ATTENTION: &str = "attn_config";
/// Fixed by the reference, missing in the config.
const EPSILON: f32 = 1e-5;

const PARAMETERS: &[Parameter] = &[
    Parameter::Layers,
    Parameter::U32("context_length", &["max_seq_len"]),
    Parameter::U32("embedding_length", &["d_model"]),
    Parameter::Computed(|config, keys| {
        let length = whole(config, FFN, "ffn_hidden_size")?;
        keys.set("feed_forward_length", Value::U32(length));
        Ok(())
    }),
    Parameter::U32("attention.head_count", &["n_heads"]),
    Parameter::Computed(|config, keys| {
        let heads = whole(config, ATTENTION, "kv_n_heads")?;
        keys.set("attention.head_count_kv", Value::U32(heads));
        for (key, field) in [
            ("rope.freq_base", "rope_theta"),
            ("attention.clamp_kqv", "clip_qkv"),
        ] {
            keys.set(key, Value::F32(number(config, field)? as f32));
        }
        for (key, field) in [
            ("expert_count", "moe_num_experts"),
            ("expert_used_count", "moe_top_k"),
        ] {
            keys.set(key, Value::U32(whole(config, FFN, field)?));
        }
        Ok(())
    }),
    Parameter::ConstantF32("attention.layer_norm_epsilon", EPSILON),
    Parameter::FileType,
];

/// A required integer in an object of the config.
fn whole(config: &Config, object: &str, name: &str) -> Result<u32> {
    let number = config.number_of(object, name)?;
    number.ok_or_else(|| format!("'{name}' is missing in '{object}'"))
}

/// A required number of the attention config.
fn number(config: &Config, name: &str) -> Result<f64> {
    let object = config.optional_object(ATTENTION)?;
    let number = object.map(|object| number_in(object, name)).transpose()?;
    let number = number.flatten();
    number.ok_or_else(|| format!("'{name}' is missing in '{ATTENTION}'"))
}

const HIDDEN: Size = Field(&["d_model"]);
const EXPERTS: Size = Computed(|config| Ok(whole(config, FFN, "moe_num_experts")?.into()));
const WIDTH: Size = Computed(|config| Ok(whole(config, FFN, "ffn_hidden_size")?.into()));
const ROWS: Size = Size::Product(&[EXPERTS, WIDTH]);
const EACH: &[Size] = &[EXPERTS, WIDTH, HIDDEN];

const TENSORS: &[Recipe] = &[
    Recipe::rename("transformer.wte", "token_embd", &[Any, HIDDEN]),
    Recipe::rename("transformer.norm_f", "output_norm", &[HIDDEN]),
    Recipe::rename("lm_head", "output", &[Any, HIDDEN]),
    Recipe::rename(
        "transformer.blocks.{}.norm_attn_norm.norm_1",
        "blk.{}.attn_norm",
        &[HIDDEN],
    ),
    Recipe::rename(
        "transformer.blocks.{}.norm_attn_norm.attn.Wqkv",
        "blk.{}.attn_qkv",
        &[Any, HIDDEN],
    ),
    Recipe::rename(
        "transformer.blocks.{}.norm_attn_norm.attn.out_proj",
        "blk.{}.attn_output",
        &[HIDDEN, HIDDEN],
    ),
    Recipe::rename(
        "transformer.blocks.{}.norm_attn_norm.norm_2",
        "blk.{}.attn_output_norm",
        &[HIDDEN],
    ),
    // With the file's type, unlike the routers of other models.
    Recipe::with(
        "transformer.blocks.{}.ffn.router.layer.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[EXPERTS, HIDDEN],
        &[CastByFile],
    ),
    Recipe::with(
        "transformer.blocks.{}.ffn.experts.mlp.w1",
        "blk.{}.ffn_gate_exps.weight",
        &[ROWS, HIDDEN],
        &[Reshape(EACH)],
    ),
    Recipe::with(
        "transformer.blocks.{}.ffn.experts.mlp.w2",
        "blk.{}.ffn_down_exps.weight",
        &[ROWS, HIDDEN],
        &[Reshape(EACH), Transpose],
    ),
    Recipe::with(
        "transformer.blocks.{}.ffn.experts.mlp.v1",
        "blk.{}.ffn_up_exps.weight",
        &[ROWS, HIDDEN],
        &[Reshape(EACH)],
    ),
];
