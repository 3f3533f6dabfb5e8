//! Refact: GPT-2's names, RMS norms, ALiBi, one KV head.

use super::config::Result;
use super::decoder::{Alibi, Decoder, Needs, Rope};
use super::recipes::Op;
use super::recipes::Size::{self, Any, Computed, Hidden};
use super::recipes::{Input, Output};
use super::{Architecture, Config, Parameter, Recipe, gpt2, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static REFACT: Architecture = Architecture {
    classes: &["GPTRefactForCausalLM"],
    name: "refact",
    vocabulary: VocabKind::Refact,
    parameters: &[PARAMETERS],
    tensors: &[TENSORS, gpt2::BY_ROWS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        needs: Needs {
            optional: &["position_embd"],
            ..Needs::WEIGHTS
        },
        alibi: Alibi::Always(8.0),
        ..Decoder::LLAMA
    },
};

const PARAMETERS: &[Parameter] = &[
    Parameter::U32("context_length", &["n_positions"]),
    Parameter::U32("embedding_length", &["n_embd"]),
    Parameter::Computed(|config, keys| {
        keys.set("feed_forward_length", Value::U32(width(config)? as u32));
        Ok(())
    }),
    Parameter::Layers,
    Parameter::U32("attention.head_count", &["n_head"]),
    Parameter::ConstantU32("attention.head_count_kv", 1),
    Parameter::F32("attention.layer_norm_rms_epsilon", &["layer_norm_epsilon"]),
    Parameter::FileType,
];

/// Two thirds of four times the hidden size, in whole multiples.
fn width(config: &Config) -> Result<u64> {
    const MULTIPLE: u64 = 256;
    let inner = 4 * u64::from(config.u32(&["n_embd"])?);
    Ok((2 * inner / 3).next_multiple_of(MULTIPLE))
}

fn head(config: &Config) -> Result<u64> {
    let (hidden, heads) = (config.u32(&["n_embd"])?, config.u32(&["n_head"])?);
    let length = hidden.checked_div(heads);
    length.map(u64::from).ok_or("field 'n_head' is 0".into())
}

const ONE_HEAD: &[Size] = &[Computed(head), Any];
const HALVES: &[Size] = &[Computed(width), Any];

const TENSORS: &[Recipe] = &[
    Recipe::rename("transformer.h.{}.attn.q", "blk.{}.attn_q", &[Any, Hidden]),
    Recipe::new(
        &[Input::new(
            "transformer.h.{}.attn.kv.weight",
            &[Any, Hidden],
        )],
        &[
            Output::new("blk.{}.attn_k.weight", &[Op::part(0, ONE_HEAD, 0)]),
            Output::new("blk.{}.attn_v.weight", &[Op::part(0, ONE_HEAD, 1)]),
        ],
    ),
    Recipe::new(
        &[Input::new(
            "transformer.h.{}.mlp.gate_up_proj.weight",
            &[Any, Hidden],
        )],
        &[
            Output::new("blk.{}.ffn_gate.weight", &[Op::part(0, HALVES, 0)]),
            Output::new("blk.{}.ffn_up.weight", &[Op::part(0, HALVES, 1)]),
        ],
    ),
    Recipe::rename(
        "transformer.h.{}.mlp.c_proj",
        "blk.{}.ffn_down",
        &[Hidden, Any],
    ),
];
