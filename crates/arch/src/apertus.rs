//! Apertus: QK norms, a feed-forward network without a gate, and xIELU, whose parameters are
//! tensors of the checkpoint and keys of the GGUF.

use super::decoder::{Activation, Decoder, Needs, Rope, Xielu};
use super::llama::{BUFFERS, EMBEDDINGS, OWN_PARAMETERS, PLAIN_ATTENTION, PLAIN_FFN, rope_factors};
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS};
use super::qwen::HEAD_NORMS;
use super::recipes::Size::Hidden;
use super::{Architecture, Config, Recipe, config};
use quantier_tokenizer::VocabKind;

pub(super) static APERTUS: Architecture = Architecture {
    classes: &["ApertusForCausalLM"],
    name: "apertus",
    vocabulary: VocabKind::Llama,
    parameters: &[COMMON, HEAD_LENGTHS, FILE_TYPE, OWN_PARAMETERS],
    tensors: &[
        EMBEDDINGS,
        TENSORS,
        PLAIN_ATTENTION,
        HEAD_NORMS,
        PLAIN_FFN,
        BUFFERS,
    ],
    generated: rope_factors,
    decoder: Decoder {
        rope: Rope::Halves,
        activation: Activation::Xielu(Xielu::UNKNOWN),
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

const TENSORS: &[Recipe] = &[
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.attention_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feedforward_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
    Recipe::to_key("model.layers.{}.mlp.act_fn.alpha_n", "xielu.alpha_n", only),
    Recipe::to_key("model.layers.{}.mlp.act_fn.alpha_p", "xielu.alpha_p", only),
    Recipe::to_key("model.layers.{}.mlp.act_fn.beta", "xielu.beta", only),
    Recipe::to_key("model.layers.{}.mlp.act_fn.eps", "xielu.eps", only),
];

fn only(_: &Config, numbers: &[f32]) -> config::Result<f32> {
    match numbers {
        [number] => Ok(*number),
        _ => Err(format!("it has {} numbers instead of one", numbers.len())),
    }
}
