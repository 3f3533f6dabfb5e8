//! RWKV 6 and 7, with time mixing by a state per head and channel mixing by a feed-forward network,
//! each on a mix of the current position and the previous one; and Qwen 2 with time mixing in place
//! of attention (QRWKV 6, ARWKV 7).

use super::config::{Config, Result};
use super::decoder::{Decoder, Layout, Needs, Norm, Recurrence, Rope, Wkv};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN, NORMS};
use super::parameters::FILE_TYPE;
use super::recipes::Op::{Concat, Order, Reshape, ScaleBy, Transpose};
use super::recipes::Size::{Any, Hidden, Number};
use super::recipes::{Input, Output, Recipe, When};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static RWKV6: Architecture = Architecture {
    classes: &["Rwkv6ForCausalLM"],
    name: "rwkv6",
    vocabulary: VocabKind::RwkvWorld,
    parameters: &[&[Parameter::Computed(rwkv6)], FILE_TYPE, NO_HEADS],
    tensors: &[RWKV6_ENDS, RWKV6_LAYERS],
    generated: nothing_generated,
    decoder: Decoder {
        norm: Norm::Layer,
        rope: Rope::None,
        layout: Layout::Sequential("attn_norm_2"),
        recurrence: Some(Recurrence::Wkv(Wkv::Six)),
        needs: Needs {
            biases: NORM_BIASES,
            own_output: true,
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

pub(super) static RWKV6_QWEN2: Architecture = Architecture {
    classes: &["RWKV6Qwen2ForCausalLM"],
    name: "rwkv6qwen2",
    vocabulary: VocabKind::Qwen,
    parameters: &[
        &[Parameter::Computed(rwkv6_qwen2)],
        FILE_TYPE,
        &[Parameter::Computed(rwkv6_qwen2_last)],
        NO_HEADS,
    ],
    tensors: &[EMBEDDINGS, NORMS, RWKV6_QWEN2_LAYERS, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        recurrence: Some(Recurrence::Wkv(Wkv::SixGated)),
        needs: Needs::OWN_OUTPUT,
        ..Decoder::LLAMA
    },
};

pub(super) static RWKV7: Architecture = Architecture {
    classes: &["Rwkv7ForCausalLM", "RWKV7ForCausalLM"],
    name: "rwkv7",
    parameters: &[&[Parameter::Computed(rwkv7)], FILE_TYPE, NO_HEADS],
    tensors: &[
        RWKV7_ENDS,
        FLA,
        FLA_CHANNELS,
        BLOCKS,
        BLOCK_CHANNELS,
        LAYERS,
        LAYER_CHANNELS,
    ],
    decoder: Decoder {
        recurrence: Some(Recurrence::Wkv(Wkv::Seven)),
        ..RWKV6.decoder
    },
    ..RWKV6
};

pub(super) static ARWKV7: Architecture = Architecture {
    classes: &["RwkvHybridForCausalLM"],
    name: "arwkv7",
    vocabulary: VocabKind::Qwen,
    parameters: &[
        &[Parameter::Computed(arwkv7)],
        FILE_TYPE,
        &[Parameter::ConstantU32("token_shift_count", 1)],
        NO_HEADS,
    ],
    tensors: &[EMBEDDINGS, NORMS, TIME_MIXERS, GATED_FFN, BUFFERS],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        recurrence: Some(Recurrence::Wkv(Wkv::Seven)),
        needs: Needs {
            optional: &["time_mix_g1", "time_mix_g2", "time_mix_ln"],
            own_output: true,
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

/// Biases of all norms.
const NORM_BIASES: &[&str] = &[
    "token_embd_norm",
    "output_norm",
    "attn_norm",
    "attn_norm_2",
    "time_mix_ln",
];
/// llama.cpp requires the key; the number of heads follows from their length.
const NO_HEADS: &[Parameter] = &[Parameter::ConstantU32("attention.head_count", 0)];
/// Any length works.
const CONTEXT: u32 = 1 << 20;

const RWKV6_ENDS: &[Recipe] = &[
    Recipe::rename("rwkv.embeddings", "token_embd", &[Any, Hidden]),
    Recipe::rename("rwkv.blocks.0.pre_ln", "token_embd_norm", &[Hidden]),
    Recipe::rename("rwkv.ln_out", "output_norm", &[Hidden]),
    Recipe::rename("head", "output", &[Any, Hidden]),
];

/// The recipes of RWKV 6 for time mixing: the prefix of names, and the operations on the two
/// matrices of the five mixes.
macro_rules! mixes_of_6 {
    ($prefix:literal, $first:expr, $second:expr; $($more:expr),* $(,)?) => {
        &[
            Recipe::with(
                concat!($prefix, "time_maa_x"),
                "blk.{}.time_mix_lerp_x.weight",
                ONE_ROW,
                FLAT,
            ),
            Recipe::new(
                &[
                    Input::new(concat!($prefix, "time_maa_w"), ONE_ROW),
                    Input::new(concat!($prefix, "time_maa_k"), ONE_ROW),
                    Input::new(concat!($prefix, "time_maa_v"), ONE_ROW),
                    Input::new(concat!($prefix, "time_maa_r"), ONE_ROW),
                    Input::new(concat!($prefix, "time_maa_g"), ONE_ROW),
                ],
                &[Output::of(
                    &[0, 1, 2, 3, 4],
                    "blk.{}.time_mix_lerp_fused.weight",
                    JOINED,
                )],
            ),
            Recipe::with(
                concat!($prefix, "time_maa_w1"),
                "blk.{}.time_mix_w1.weight",
                &[Hidden, Any],
                $first,
            ),
            Recipe::with(
                concat!($prefix, "time_maa_w2"),
                "blk.{}.time_mix_w2.weight",
                &[Number(5), Any, Hidden],
                $second,
            ),
            Recipe::with(
                concat!($prefix, "time_decay"),
                "blk.{}.time_mix_decay.weight",
                ONE_ROW,
                FLAT,
            ),
            Recipe::with(
                concat!($prefix, "time_decay_w1"),
                "blk.{}.time_mix_decay_w1.weight",
                &[Hidden, Any],
                &[Transpose],
            ),
            Recipe::with(
                concat!($prefix, "time_decay_w2"),
                "blk.{}.time_mix_decay_w2.weight",
                &[Any, Hidden],
                &[Transpose],
            ),
            $($more),*
        ]
    };
}

/// One number per channel.
const ONE_ROW: &[super::recipes::Size] = &[Number(1), Number(1), Hidden];
const FLAT: &[super::recipes::Op] = &[Reshape(&[Any])];
/// Several rows, concatenated.
const JOINED: &[super::recipes::Op] =
    &[Reshape(&[Number(1), Number(1), Number(1), Any]), Concat(0)];

const RWKV6_LAYERS: &[Recipe] = mixes_of_6!(
    "rwkv.blocks.{}.attention.", &[Transpose], &[Transpose];
    Recipe::rename("rwkv.blocks.{}.ln1", "blk.{}.attn_norm", &[Hidden]),
    Recipe::rename("rwkv.blocks.{}.ln2", "blk.{}.attn_norm_2", &[Hidden]),
    Recipe::with(
        "rwkv.blocks.{}.attention.time_faaaa",
        "blk.{}.time_mix_first.weight",
        &[Any, Any],
        &[],
    ),
    Recipe::rename(
        "rwkv.blocks.{}.attention.receptance",
        "blk.{}.time_mix_receptance",
        &[Hidden, Hidden],
    ),
    Recipe::rename(
        "rwkv.blocks.{}.attention.key",
        "blk.{}.time_mix_key",
        &[Hidden, Hidden],
    ),
    Recipe::rename(
        "rwkv.blocks.{}.attention.value",
        "blk.{}.time_mix_value",
        &[Hidden, Hidden],
    ),
    Recipe::rename(
        "rwkv.blocks.{}.attention.gate",
        "blk.{}.time_mix_gate",
        &[Hidden, Hidden],
    ),
    Recipe::rename("rwkv.blocks.{}.attention.ln_x", "blk.{}.time_mix_ln", &[Hidden]),
    Recipe::with(
        "rwkv.blocks.{}.attention.output.weight",
        "blk.{}.time_mix_output.weight",
        &[Hidden, Hidden],
        &[ScaleBy(rescale)],
    ),
    Recipe::with(
        "rwkv.blocks.{}.feed_forward.time_maa_k",
        "blk.{}.channel_mix_lerp_k.weight",
        ONE_ROW,
        FLAT,
    ),
    Recipe::with(
        "rwkv.blocks.{}.feed_forward.time_maa_r",
        "blk.{}.channel_mix_lerp_r.weight",
        ONE_ROW,
        FLAT,
    ),
    Recipe::rename(
        "rwkv.blocks.{}.feed_forward.key",
        "blk.{}.channel_mix_key",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "rwkv.blocks.{}.feed_forward.receptance",
        "blk.{}.channel_mix_receptance",
        &[Hidden, Hidden],
    ),
    Recipe::with(
        "rwkv.blocks.{}.feed_forward.value.weight",
        "blk.{}.channel_mix_value.weight",
        &[Hidden, Any],
        &[ScaleBy(rescale)],
    ),
);

/// From the order receptance, key, value, decay, gate of mixes to decay, key, value, receptance,
/// gate.
const BY_DECAY: super::recipes::Op = Order(&[3, 1, 2, 0, 4]);

const RWKV6_QWEN2_LAYERS: &[Recipe] = mixes_of_6!(
    "model.layers.{}.self_attn.", &[Transpose, BY_DECAY], &[Transpose, BY_DECAY];
    Recipe::rename(
        "model.layers.{}.self_attn.q_proj",
        "blk.{}.time_mix_receptance",
        &[Hidden, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.k_proj",
        "blk.{}.time_mix_key",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.v_proj",
        "blk.{}.time_mix_value",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.self_attn.gate",
        "blk.{}.time_mix_gate",
        &[Hidden, Hidden],
    ),
    Recipe::with(
        "model.layers.{}.self_attn.o_proj.weight",
        "blk.{}.time_mix_output.weight",
        &[Hidden, Hidden],
        &[ScaleBy(rescale)],
    ),
);

const RWKV7_ENDS: &[Recipe] = &[
    Recipe::rename("model.embeddings", "token_embd", &[Any, Hidden]),
    Recipe::rename("model.layers.0.pre_norm", "token_embd_norm", &[Hidden]),
    Recipe::rename("model.pre_ln", "token_embd_norm", &[Hidden]),
    Recipe::rename("model.norm", "output_norm", &[Hidden]),
    Recipe::rename("model.ln_out", "output_norm", &[Hidden]),
    Recipe::rename("lm_head", "output", &[Any, Hidden]),
    Recipe::rename("head", "output", &[Any, Hidden]),
];

/// Operations on low-rank factors stored as in the GGUF: none.
const AS_STORED: &[super::recipes::Op] = &[];
const TRANSPOSED: &[super::recipes::Op] = &[Transpose];

/// The recipes of RWKV 7 for time mixing: the prefix of names; the operations on factors; and the
/// names after the prefix of the first factors, the second factors and their biases, of the
/// matrices of receptances, keys, values and outputs, and of the norm.
macro_rules! time_mix_of_7 {
    (
        $prefix:literal, $ops:expr, [$first:literal, $second:literal, $added:literal],
        [$receptance:literal, $key:literal, $value:literal, $output:literal], $norm:literal
    ) => {
        &[
            Recipe::with(
                concat!($prefix, "x_x"),
                "blk.{}.time_mix_lerp_fused.weight",
                &[Any, Hidden],
                &[Reshape(&[Any, Number(1), Number(1), Hidden])],
            ),
            Recipe::new(
                &[
                    Input::new(concat!($prefix, "x_r"), ONE_ROW),
                    Input::new(concat!($prefix, "x_w"), ONE_ROW),
                    Input::new(concat!($prefix, "x_k"), ONE_ROW),
                    Input::new(concat!($prefix, "x_v"), ONE_ROW),
                    Input::new(concat!($prefix, "x_a"), ONE_ROW),
                    Input::new(concat!($prefix, "x_g"), ONE_ROW),
                ],
                &[Output::of(
                    &[0, 1, 2, 3, 4, 5],
                    "blk.{}.time_mix_lerp_fused.weight",
                    JOINED,
                )],
            )
            .when(When::Layers(is_gated)),
            Recipe::new(
                &[
                    Input::new(concat!($prefix, "x_r"), ONE_ROW),
                    Input::new(concat!($prefix, "x_w"), ONE_ROW),
                    Input::new(concat!($prefix, "x_k"), ONE_ROW),
                    Input::new(concat!($prefix, "x_v"), ONE_ROW),
                    Input::new(concat!($prefix, "x_a"), ONE_ROW),
                ],
                &[Output::of(
                    &[0, 1, 2, 3, 4],
                    "blk.{}.time_mix_lerp_fused.weight",
                    JOINED,
                )],
            ),
            Recipe::with(
                concat!($prefix, "w", $added),
                "blk.{}.time_mix_w0.weight",
                &[],
                FLAT,
            ),
            Recipe::with(
                concat!($prefix, "w", $first),
                "blk.{}.time_mix_w1.weight",
                &[Any, Any],
                $ops,
            ),
            Recipe::with(
                concat!($prefix, "w", $second),
                "blk.{}.time_mix_w2.weight",
                &[Any, Any],
                $ops,
            ),
            // The first layer has no earlier values: llama.cpp requires the tensors but does not
            // read them.
            Recipe::new(
                &[Input::new(concat!($prefix, "a", $added), &[])],
                &[
                    Output::new("blk.{}.time_mix_v0.weight", FLAT),
                    Output::new("blk.{}.time_mix_a0.weight", FLAT),
                ],
            )
            .when(When::Layers(is_first)),
            Recipe::new(
                &[Input::new(concat!($prefix, "a", $first), &[Any, Any])],
                &[
                    Output::new("blk.{}.time_mix_v1.weight", $ops),
                    Output::new("blk.{}.time_mix_a1.weight", $ops),
                ],
            )
            .when(When::Layers(is_first)),
            Recipe::new(
                &[Input::new(concat!($prefix, "a", $second), &[Any, Any])],
                &[
                    Output::new("blk.{}.time_mix_v2.weight", $ops),
                    Output::new("blk.{}.time_mix_a2.weight", $ops),
                ],
            )
            .when(When::Layers(is_first)),
            Recipe::with(
                concat!($prefix, "a", $added),
                "blk.{}.time_mix_a0.weight",
                &[],
                FLAT,
            ),
            Recipe::with(
                concat!($prefix, "a", $first),
                "blk.{}.time_mix_a1.weight",
                &[Any, Any],
                $ops,
            ),
            Recipe::with(
                concat!($prefix, "a", $second),
                "blk.{}.time_mix_a2.weight",
                &[Any, Any],
                $ops,
            ),
            Recipe::skip(concat!($prefix, "v", $added)).when(When::Layers(is_first)),
            Recipe::skip(concat!($prefix, "v", $first)).when(When::Layers(is_first)),
            Recipe::skip(concat!($prefix, "v", $second)).when(When::Layers(is_first)),
            Recipe::with(
                concat!($prefix, "v", $added),
                "blk.{}.time_mix_v0.weight",
                &[],
                FLAT,
            ),
            Recipe::with(
                concat!($prefix, "v", $first),
                "blk.{}.time_mix_v1.weight",
                &[Any, Any],
                $ops,
            ),
            Recipe::with(
                concat!($prefix, "v", $second),
                "blk.{}.time_mix_v2.weight",
                &[Any, Any],
                $ops,
            ),
            Recipe::with(
                concat!($prefix, "g", $first),
                "blk.{}.time_mix_g1.weight",
                &[Any, Any],
                $ops,
            ),
            Recipe::with(
                concat!($prefix, "g", $second),
                "blk.{}.time_mix_g2.weight",
                &[Any, Any],
                $ops,
            ),
            Recipe::with(
                concat!($prefix, "k_k"),
                "blk.{}.time_mix_k_k.weight",
                &[],
                FLAT,
            ),
            Recipe::with(
                concat!($prefix, "k_a"),
                "blk.{}.time_mix_k_a.weight",
                &[],
                FLAT,
            ),
            Recipe::with(
                concat!($prefix, "r_k"),
                "blk.{}.time_mix_r_k.weight",
                &[],
                FLAT,
            ),
            Recipe::rename(
                concat!($prefix, $receptance),
                "blk.{}.time_mix_receptance",
                &[Hidden, Hidden],
            ),
            Recipe::rename(
                concat!($prefix, $key),
                "blk.{}.time_mix_key",
                &[Hidden, Hidden],
            ),
            Recipe::rename(
                concat!($prefix, $value),
                "blk.{}.time_mix_value",
                &[Hidden, Hidden],
            ),
            Recipe::rename(
                concat!($prefix, $output),
                "blk.{}.time_mix_output",
                &[Hidden, Hidden],
            ),
            Recipe::rename(concat!($prefix, $norm), "blk.{}.time_mix_ln", &[Hidden]),
        ]
    };
}

/// The recipes of RWKV 7 for channel mixing: the prefix of names.
macro_rules! channel_mix_of_7 {
    ($layer:literal, [$first_norm:literal, $second_norm:literal], $prefix:literal) => {
        &[
            Recipe::rename(concat!($layer, $first_norm), "blk.{}.attn_norm", &[Hidden]),
            Recipe::rename(
                concat!($layer, $second_norm),
                "blk.{}.attn_norm_2",
                &[Hidden],
            ),
            Recipe::with(
                concat!($layer, $prefix, "x_k"),
                "blk.{}.channel_mix_lerp_k.weight",
                &[],
                FLAT,
            ),
            Recipe::rename(
                concat!($layer, $prefix, "key"),
                "blk.{}.channel_mix_key",
                &[Any, Hidden],
            ),
            Recipe::rename(
                concat!($layer, $prefix, "value"),
                "blk.{}.channel_mix_value",
                &[Hidden, Any],
            ),
        ]
    };
}

/// The names of flash-linear-attention.
const FLA: &[Recipe] = time_mix_of_7!(
    "model.layers.{}.attn.",
    AS_STORED,
    [
        "_lora.lora.0.weight",
        "_lora.lora.2.weight",
        "_lora.lora.2.bias"
    ],
    ["r_proj", "k_proj", "v_proj", "o_proj"],
    "g_norm"
);
const FLA_CHANNELS: &[Recipe] =
    channel_mix_of_7!("model.layers.{}.", ["attn_norm", "ffn_norm"], "ffn.");

/// RWKV's own names.
const BLOCKS: &[Recipe] = time_mix_of_7!(
    "model.blocks.{}.attn.",
    TRANSPOSED,
    ["1", "2", "0"],
    ["receptance", "key", "value", "output"],
    "ln_x"
);
const BLOCK_CHANNELS: &[Recipe] = channel_mix_of_7!("model.blocks.{}.", ["ln1", "ln2"], "ffn.");

/// The names in transformers.
const LAYERS: &[Recipe] = time_mix_of_7!(
    "model.layers.{}.attention.",
    TRANSPOSED,
    ["1", "2", "0"],
    ["receptance", "key", "value", "output"],
    "ln_x"
);
const LAYER_CHANNELS: &[Recipe] =
    channel_mix_of_7!("model.layers.{}.", ["ln1", "ln2"], "feed_forward.");

const TIME_MIXERS: &[Recipe] = time_mix_of_7!(
    "model.layers.{}.self_attn.time_mixer.",
    TRANSPOSED,
    ["1", "2", "0"],
    ["receptance", "key", "value", "output"],
    "ln_x"
);

fn is_first(_config: &Config, layer: u32) -> bool {
    layer == 0
}

/// True for models with gates, and thus a sixth mix.
fn is_gated(config: &Config, _layer: u32) -> bool {
    config
        .get("wkv_has_gate")
        .and_then(serde_json::Value::as_bool)
        != Some(false)
}

/// The stream is halved after each period of layers; outputs added to it are scaled beforehand.
fn rescale(config: &Config, layer: u32) -> Result<f64> {
    let interval = config.optional_u32(&["rescale_every"])?.unwrap_or(0);
    let halvings = layer.checked_div(interval).unwrap_or(0);
    Ok(0.5f64.powi(halvings.min(i32::MAX as u32) as i32))
}

/// Sets all numeric keys to these numbers.
fn set_all(keys: &mut Keys, numbers: &[(&str, u32)]) {
    for (key, value) in numbers {
        keys.set(key, Value::U32(*value));
    }
}

fn rwkv6(config: &Config, keys: &mut Keys) -> Result<()> {
    /// The size of the only model with larger factors.
    const LARGE: u32 = 4096;
    let hidden = config.u32(&["hidden_size"])?;
    let epsilon = config.f64(&["layer_norm_epsilon"])?;
    let length = config.optional_u32(&["intermediate_size"])?;
    let by_default = (u64::from(hidden) * 7 / 2 / 32 * 32) as u32;
    set_all(
        keys,
        &[
            ("context_length", CONTEXT),
            ("embedding_length", hidden),
            ("block_count", config.blocks()?),
        ],
    );
    keys.set("attention.layer_norm_epsilon", Value::F32(epsilon as f32));
    let [mixes, decays] = match hidden == LARGE {
        true => [64, 128],
        false => [32, 64],
    };
    set_all(
        keys,
        &[
            ("rescale_every_n_layers", config.u32(&["rescale_every"])?),
            ("wkv.head_size", config.u32(&["head_size"])?),
            ("time_mix_extra_dim", mixes),
            ("time_decay_extra_dim", decays),
            ("feed_forward_length", length.unwrap_or(by_default)),
        ],
    );
    Ok(())
}

fn rwkv6_qwen2(config: &Config, keys: &mut Keys) -> Result<()> {
    /// The smallest size with larger factors.
    const LARGE: u32 = 4096;
    let hidden = config.u32(&["hidden_size"])?;
    let heads = config.u32(&["num_attention_heads"])?;
    let length = hidden.checked_div(heads);
    let length = length.ok_or("'num_attention_heads' is 0; a model has heads")?;
    let [mixes, decays] = match hidden >= LARGE {
        true => [64, 128],
        false => [32, 64],
    };
    let number = |field: &str, by_default: u32| -> Result<u32> {
        Ok(config.optional_u32(&[field])?.unwrap_or(by_default))
    };
    set_all(
        keys,
        &[
            ("context_length", CONTEXT),
            ("embedding_length", hidden),
            ("block_count", config.blocks()?),
            ("wkv.head_size", length),
            ("time_mix_extra_dim", number("lora_rank_tokenshift", mixes)?),
            ("time_decay_extra_dim", number("lora_rank_decay", decays)?),
            ("feed_forward_length", config.u32(&["intermediate_size"])?),
        ],
    );
    Ok(())
}

fn rwkv6_qwen2_last(config: &Config, keys: &mut Keys) -> Result<()> {
    let epsilon = config.f64(&["rms_norm_eps"])?;
    keys.set(
        "attention.layer_norm_rms_epsilon",
        Value::F32(epsilon as f32),
    );
    let kv_heads = config.u32(&["num_key_value_heads"])?;
    set_all(
        keys,
        &[
            ("token_shift_count", 1),
            ("attention.head_count_kv", kv_heads),
        ],
    );
    Ok(())
}

/// RWKV 7's default rank of a factored matrix for models of this size.
fn usual_rank(hidden: u32, exponent: f64, multiplier: f64) -> u32 {
    let blocks = (f64::from(hidden).powf(exponent) * multiplier / 32.0).round_ties_even();
    (blocks.max(1.0) as u32).saturating_mul(32)
}

fn rwkv7(config: &Config, keys: &mut Keys) -> Result<()> {
    let hidden = config.u32(&["hidden_size"])?;
    let epsilon = config.f64(&["layer_norm_epsilon", "norm_eps"])?;
    let length = config.optional_u32(&["intermediate_size"])?;
    let rank = |fields: &[&str], exponent: f64, multiplier: f64| -> Result<u32> {
        let rank = config.optional_u32(fields)?;
        Ok(rank.unwrap_or_else(|| usual_rank(hidden, exponent, multiplier)))
    };
    set_all(
        keys,
        &[
            ("context_length", CONTEXT),
            ("embedding_length", hidden),
            ("block_count", config.blocks()?),
        ],
    );
    keys.set("attention.layer_norm_epsilon", Value::F32(epsilon as f32));
    set_all(
        keys,
        &[
            ("wkv.head_size", config.u32(&["head_size", "head_dim"])?),
            (
                "attention.decay_lora_rank",
                rank(&["lora_rank_decay", "decay_low_rank_dim"], 0.5, 1.8)?,
            ),
            (
                "attention.iclr_lora_rank",
                rank(&["lora_rank_iclr", "a_low_rank_dim"], 0.5, 1.8)?,
            ),
            (
                "attention.value_residual_mix_lora_rank",
                rank(
                    &["lora_rank_value_residual_mix", "v_low_rank_dim"],
                    0.5,
                    1.3,
                )?,
            ),
            (
                "attention.gate_lora_rank",
                rank(&["lora_rank_gate", "gate_low_rank_dim"], 0.8, 0.6)?,
            ),
            (
                "feed_forward_length",
                length.unwrap_or(hidden.saturating_mul(4)),
            ),
        ],
    );
    Ok(())
}

fn arwkv7(config: &Config, keys: &mut Keys) -> Result<()> {
    const VERSION: &str = "wkv_version";
    let version = config.u32(&[VERSION])?;
    if version != 7 {
        return Err(format!(
            "'{VERSION}' is {version}; llama.cpp knows models of this class of version 7"
        ));
    }
    let is_gated = config
        .get("wkv_has_gate")
        .and_then(serde_json::Value::as_bool);
    let is_gated = is_gated.ok_or("'wkv_has_gate' is neither true nor false")?;
    set_all(
        keys,
        &[
            ("context_length", CONTEXT),
            ("embedding_length", config.u32(&["hidden_size"])?),
            ("block_count", config.blocks()?),
        ],
    );
    let epsilon = config.f64(&["rms_norm_eps"])?;
    keys.set(
        "attention.layer_norm_rms_epsilon",
        Value::F32(epsilon as f32),
    );
    set_all(
        keys,
        &[
            ("wkv.head_size", config.u32(&["head_size"])?),
            ("attention.decay_lora_rank", 64),
            ("attention.iclr_lora_rank", 64),
            ("attention.value_residual_mix_lora_rank", 32),
            ("attention.gate_lora_rank", if is_gated { 128 } else { 0 }),
            ("feed_forward_length", config.u32(&["intermediate_size"])?),
        ],
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_grow_with_model_size() {
        // Ranks of RWKV 7 with 0.4, 1.5 and 2.9 billion weights, as listed by its authors.
        for (hidden, decay, values, gate) in [
            (1024, 64, 32, 160),
            (2048, 96, 64, 256),
            (2560, 96, 64, 320),
        ] {
            assert_eq!(usual_rank(hidden, 0.5, 1.8), decay);
            assert_eq!(usual_rank(hidden, 0.5, 1.3), values);
            assert_eq!(usual_rank(hidden, 0.8, 0.6), gate);
        }
    }

    #[test]
    fn outputs_are_halved_after_each_period() {
        let config =
            |json: serde_json::Value| Config::new(json.as_object().unwrap().clone()).unwrap();
        let some = config(serde_json::json!({"rescale_every": 6}));
        let factors = [0, 5, 6, 17].map(|layer| rescale(&some, layer).unwrap());
        assert_eq!(factors, [1.0, 1.0, 0.5, 0.25]);
        for none in [
            serde_json::json!({"rescale_every": 0}),
            serde_json::json!({}),
        ] {
            assert_eq!(rescale(&config(none), 9), Ok(1.0));
        }
    }
}
