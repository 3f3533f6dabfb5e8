//! IBM's Granite: Llama with four multipliers; its hybrids with Mamba-2, and Bamba.

use super::config::{Config, Result, wrong_kind};
use super::decoder::{Decoder, Listed, Mamba2Layers, Needs, Recurrence, Unrotated, Window};
use super::gpt_oss::SINKS;
use super::llama::{ATTENTION, BUFFERS, EMBEDDINGS, GATED_FFN, NORMS, rope_factors};
use super::mamba2::{BIASED, CONTEXT, Sizes, nonzero, set_size, state_space};
use super::parameters::{COMMON, FILE_TYPE, SHARED_ROPE_DIMENSIONS, set_flags, set_numbers};
use super::recipes::Size::{self, Any, FeedForward, Field, Hidden, Product};
use super::recipes::{Input, Op, Output, Recipe, When};
use super::{Architecture, Keys, Parameter};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static GRANITE: Architecture = Architecture {
    classes: &["GraniteForCausalLM"],
    name: "granite",
    vocabulary: VocabKind::Llama,
    parameters: &[COMMON, FILE_TYPE, PARAMETERS],
    tensors: &[EMBEDDINGS, NORMS, ATTENTION, GATED_FFN, BUFFERS],
    generated: rope_factors,
    decoder: Decoder {
        unrotated: Unrotated::Untuned,
        ..Decoder::LLAMA
    },
};

/// Hybrids with Mamba-2 and attention layers; all layers have a feed-forward network or experts.
pub(super) static GRANITE_HYBRID: Architecture = Architecture {
    classes: &["GraniteMoeHybridForCausalLM", "BambaForCausalLM"],
    name: "granitehybrid",
    vocabulary: VocabKind::GraniteHybrid,
    parameters: &[COMMON, FILE_TYPE, PARAMETERS, SHARED, HYBRID, LAYERS],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        BAMBA_NORMS,
        STATE_SPACES,
        ATTENTION,
        EXPERTS,
        SHARED_FFN,
        FFN,
        BUFFERS,
    ],
    generated: rope_factors,
    decoder: Decoder {
        recurrence: Some(Recurrence::Mamba2(Mamba2Layers::Unattended)),
        needs: Needs {
            biases: BIASED,
            ..GRANITE_MOE.decoder.needs
        },
        ..GRANITE.decoder
    },
};

/// Mixtures of experts without state spaces.
pub(super) static GRANITE_MOE: Architecture = Architecture {
    classes: &["GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"],
    name: "granitemoe",
    parameters: &[COMMON, FILE_TYPE, PARAMETERS, SHARED],
    tensors: &[EMBEDDINGS, NORMS, ATTENTION, EXPERTS, SHARED_FFN, BUFFERS],
    decoder: Decoder {
        needs: Needs {
            optional: &["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
            ..Needs::WEIGHTS
        },
        // llama.cpp reads the switch for dense models and hybrids only.
        unrotated: Unrotated::None,
        ..GRANITE.decoder
    },
    ..GRANITE
};

/// Attention with sinks and windows, layers without RoPE, dense or with experts.
pub(super) static GRANITE_SWA: Architecture = Architecture {
    classes: &["GraniteSWAForCausalLM", "GraniteMoeSWAForCausalLM"],
    name: "granite_swa",
    parameters: &[COMMON, FILE_TYPE, PARAMETERS, WINDOWS, SHARED],
    tensors: &[
        EMBEDDINGS,
        NORMS,
        ATTENTION,
        SINKS,
        GATED_FFN,
        FUSED_EXPERTS,
        BUFFERS,
    ],
    decoder: Decoder {
        unrotated: Unrotated::Listed,
        window: Window::Listed(Listed {
            stretched: true,
            ..Listed::THREE_OF_FOUR
        }),
        needs: Needs {
            optional: &["ffn_up_shexp", "ffn_down_shexp"],
            ..Needs::WEIGHTS
        },
        ..GRANITE.decoder
    },
    ..GRANITE
};

const WINDOWS: &[Parameter] = &[
    Parameter::OrU32("attention.sliding_window", &["sliding_window"], 128),
    Parameter::Computed(|config, keys| {
        let layers = 0..config.blocks()?;
        let flags = match config.sliding_layers().filter(|flags| !flags.is_empty()) {
            Some(flags) => flags,
            None => layers.map(|layer| layer % 4 != 0).collect(),
        };
        set_flags(keys, "attention.sliding_window_pattern", flags);
        let rotated = config
            .get("no_rope_layers")
            .and_then(|list| list.as_array());
        if let Some(rotated) = rotated.filter(|list| !list.is_empty()) {
            let flags = rotated.iter().map(|flag| *flag != 0 && *flag != false);
            set_flags(keys, "attention.rope_pattern", flags);
        }
        Ok(())
    }),
];

/// Fused gate and up.
const FUSED_EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.router.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.router.layer.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Any, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.experts.gate_up_proj",
        "blk.{}.ffn_gate_up_exps.weight",
        &[Any, BOTH, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.experts.down_proj",
        "blk.{}.ffn_down_exps.weight",
        &[Any, Hidden, FeedForward],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.input_linear.weight",
        "blk.{}.ffn_gate_up_exps.weight",
        &[Any, BOTH, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.output_linear.weight",
        "blk.{}.ffn_down_exps.weight",
        &[Any, Hidden, FeedForward],
    ),
    Recipe::rename(
        "model.layers.{}.shared_mlp.input_linear.weight",
        "blk.{}.ffn_up_shexp.weight",
        &[Any, Hidden],
    ),
    Recipe::rename(
        SHARED_OUTPUT,
        "blk.{}.ffn_down_shexp.weight",
        &[Hidden, Any],
    ),
];

const BOTH: Size = Product(&[Size::Number(2), FeedForward]);

/// Hybrids without a state space: plain models with the keys of hybrids.
static ATTENTION_ONLY: Architecture = Architecture {
    classes: &[],
    vocabulary: VocabKind::Qwen,
    parameters: &[COMMON, FILE_TYPE, PARAMETERS, SHARED, HYBRID, LAYERS],
    tensors: &[EMBEDDINGS, NORMS, BAMBA_NORMS, ATTENTION, FFN, BUFFERS],
    ..GRANITE
};
static ATTENTION_ONLY_MOE: Architecture = Architecture {
    classes: &[],
    vocabulary: VocabKind::Qwen,
    parameters: ATTENTION_ONLY.parameters,
    ..GRANITE_MOE
};

/// The architecture of a hybrid.
pub(super) fn of_hybrid(config: &Config) -> Result<&'static Architecture> {
    const USED: &[&str] = &["num_experts_per_tok", "num_experts_per_token"];
    let layers = attention_layers(config)?;
    let has_experts = nonzero(config, USED)?.is_some();
    Ok(match (layers.contains(&false), has_experts) {
        (true, _) => &GRANITE_HYBRID,
        (false, false) => &ATTENTION_ONLY,
        (false, true) => &ATTENTION_ONLY_MOE,
    })
}

/// Layers with attention: by name, by number, or every n-th.
fn attention_layers(config: &Config) -> Result<Vec<bool>> {
    const KINDS: &str = "layer_types";
    const NUMBERS: &str = "attn_layer_indices";
    let list = |name: &str| match config.get(name) {
        Some(value) => match value.as_array() {
            Some(list) => Ok(Some(list).filter(|list| !list.is_empty())),
            None => Err(wrong_kind(name, value, "a list")),
        },
        None => Ok(None),
    };
    let layers = config.layers()?;
    if let Some(kinds) = list(KINDS)? {
        if kinds.len() != layers as usize {
            let count = kinds.len();
            return Err(format!(
                "field '{KINDS}' tells of {count} layers, and there are {layers}"
            ));
        }
        return Ok(kinds.iter().map(|kind| kind == "attention").collect());
    }
    if let Some(numbers) = list(NUMBERS)? {
        return Ok((0..layers)
            .map(|layer| numbers.iter().any(|number| *number == layer))
            .collect());
    }
    let (period, offset) = (
        config.u32(&["attn_layer_period"])?,
        config.u32(&["attn_layer_offset"])?,
    );
    match period {
        0 => Err("field 'attn_layer_period' is 0".into()),
        period => Ok((0..layers).map(|layer| layer % period == offset).collect()),
    }
}

/// RoPE depends on the layers.
const LAYERS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    let heads = config.u32(&["num_key_value_heads", "n_head_kv"])?;
    let layers = attention_layers(config)?;
    let of_layer = |attends: &bool| u32::from(*attends) * heads;
    let heads: Vec<u32> = layers.iter().map(of_layer).collect();
    let act = config.get("hidden_act").filter(|act| *act != "silu");
    if let Some(act) = act {
        return Err(format!(
            "field 'hidden_act' is {act}; llama.cpp runs only \"silu\""
        ));
    }
    set_attention(config, keys, &heads, layers.contains(&false))
})];

pub(super) const SHARED: &[Parameter] = &[Parameter::Computed(|config, keys| {
    const LENGTH: &str = "expert_shared_feed_forward_length";
    if let Some(length) = nonzero(config, &["shared_intermediate_size"])? {
        set_size(keys, LENGTH, length)?;
    }
    Ok(())
})];

const STATE_SPACES: &[Recipe] = state_space!("model.layers.{}.mamba.", HYBRID_SIZES, &[], &[]);

const BAMBA_NORMS: &[Recipe] = &[
    Recipe::rename("model.final_layernorm", "output_norm", &[Hidden]),
    Recipe::rename(
        "model.layers.{}.pre_ff_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
];

/// The rows of gates before those of ups.
const HALVES: &[Size] = &[FeedForward, FeedForward];

/// Fused gates and ups of all experts.
const EXPERTS: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.router.layer.weight",
        "blk.{}.ffn_gate_inp.weight",
        &[Any, Hidden],
    ),
    Recipe::new(
        &[Input::new(
            "model.layers.{}.block_sparse_moe.input_linear.weight",
            &[Any, Any, Hidden],
        )],
        &[
            Output::new("blk.{}.ffn_gate_exps.weight", &[Op::part(1, HALVES, 0)]),
            Output::new("blk.{}.ffn_up_exps.weight", &[Op::part(1, HALVES, 1)]),
        ],
    ),
    Recipe::rename(
        "model.layers.{}.block_sparse_moe.output_linear",
        "blk.{}.ffn_down_exps",
        &[Any, Hidden, FeedForward],
    ),
];

const SHARED_LENGTH: Size = Field(&["shared_intermediate_size"]);
const SHARED_HALVES: &[Size] = &[SHARED_LENGTH, SHARED_LENGTH];
const SHARED_INPUT: &[Input] = &[Input::new(
    "model.layers.{}.shared_mlp.input_linear.weight",
    &[Any, Hidden],
)];
const SHARED_OUTPUT: &str = "model.layers.{}.shared_mlp.output_linear.weight";
const NUMBER_OF_EXPERTS: &str = "num_local_experts";

/// The shared expert, or the only feed-forward network.
const SHARED_FFN: &[Recipe] = &[
    Recipe::new(
        SHARED_INPUT,
        &[
            Output::new(
                "blk.{}.ffn_gate_shexp.weight",
                &[Op::part(0, SHARED_HALVES, 0)],
            ),
            Output::new(
                "blk.{}.ffn_up_shexp.weight",
                &[Op::part(0, SHARED_HALVES, 1)],
            ),
        ],
    )
    .when(When::Counted(NUMBER_OF_EXPERTS)),
    Recipe::rename(
        SHARED_OUTPUT,
        "blk.{}.ffn_down_shexp.weight",
        &[Hidden, SHARED_LENGTH],
    )
    .when(When::Counted(NUMBER_OF_EXPERTS)),
];

/// The feed-forward network of models without experts, or Bamba's.
const FFN: &[Recipe] = &[
    Recipe::new(
        SHARED_INPUT,
        &[
            Output::new("blk.{}.ffn_gate.weight", &[Op::part(0, SHARED_HALVES, 0)]),
            Output::new("blk.{}.ffn_up.weight", &[Op::part(0, SHARED_HALVES, 1)]),
        ],
    ),
    Recipe::rename(
        SHARED_OUTPUT,
        "blk.{}.ffn_down.weight",
        &[Hidden, SHARED_LENGTH],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.gate_proj",
        "blk.{}.ffn_gate",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.up_proj",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    Recipe::rename(
        "model.layers.{}.feed_forward.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];

pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter::U32("vocab_size", &["vocab_size"]),
    SHARED_ROPE_DIMENSIONS,
    Parameter::NonzeroF32("attention.scale", &["attention_multiplier"]),
    Parameter::NonzeroF32("embedding_scale", &["embedding_multiplier"]),
    Parameter::NonzeroF32("residual_scale", &["residual_multiplier"]),
    Parameter::NonzeroF32("logit_scale", &["logits_scaling"]),
];

pub(super) const HEADS: &[&str] = &["n_heads", "num_heads", "mamba_n_heads", "mamba_num_heads"];
pub(super) const GROUPS: &[&str] = &[
    "n_groups",
    "num_groups",
    "mamba_n_groups",
    "mamba_num_groups",
];

/// Keys of the state spaces of hybrids.
const HYBRID: &[Parameter] = &[
    CONVOLUTION,
    STATE_SIZE,
    GROUP_COUNT,
    Parameter::Computed(inner_size),
    HEAD_COUNT,
];

pub(super) const CONVOLUTION: Parameter = Parameter::U32(
    "ssm.conv_kernel",
    &["conv_kernel", "d_conv", "mamba_conv_kernel", "mamba_d_conv"],
);
pub(super) const STATE_SIZE: Parameter = Parameter::U32(
    "ssm.state_size",
    &[
        "state_size",
        "d_state",
        "state_dim",
        "ssm_state_size",
        "mamba_state_size",
        "mamba_d_state",
        "mamba_state_dim",
        "mamba_ssm_state_size",
    ],
);
pub(super) const GROUP_COUNT: Parameter = Parameter::U32("ssm.group_count", GROUPS);
pub(super) const HEAD_COUNT: Parameter = Parameter::U32("ssm.time_step_rank", HEADS);

/// The sizes of the state spaces of hybrids.
const HYBRID_SIZES: Sizes = Sizes {
    hidden: Hidden,
    heads: Field(HEADS),
    groups: Field(GROUPS),
    inner: INNER,
};

/// Total length of value heads: a multiple of the hidden size.
const INNER: Size = Product(&[
    Field(&["expand", "num_heads", "mamba_expand", "mamba_num_heads"]),
    Field(&["mamba_head_dim", "hidden_size", "d_model"]),
]);

/// Total length of value heads, checked for divisibility as in llama.cpp's converter.
fn inner_size(config: &Config, keys: &mut Keys) -> Result<()> {
    let inner = INNER.required(config)?;
    let length = nonzero(config, &["d_head", "mamba_d_head"])?.unwrap_or(64);
    if !inner.is_multiple_of(length) {
        return Err(format!(
            "{inner} numbers are no whole number of heads of {length} ('mamba_d_head')"
        ));
    }
    set_size(keys, "ssm.inner_size", inner)
}

/// Keys of attention in some layers, by the KV heads of each; with RoPE only in models without
/// another source of positions.
pub(super) fn set_attention(
    config: &Config,
    keys: &mut Keys,
    heads: &[u32],
    has_state_spaces: bool,
) -> Result<()> {
    if let Some(rotated) = config
        .optional_u32(&["attn_rotary_emb"])?
        .filter(|n| *n > 0)
    {
        keys.set("rope.dimension_count", Value::U32(rotated));
    }
    set_numbers(keys, "attention.head_count_kv", heads.iter().copied());
    let rotates = config.class() == Some("BambaForCausalLM") || !has_state_spaces;
    keys.set("rope.scaling.finetuned", Value::Bool(rotates));
    if !rotates {
        keys.set("context_length", Value::U32(CONTEXT));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn config(fields: Json) -> Config {
        Config::new(fields.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn hybrids_without_a_state_space_are_plain_models() {
        let name = |fields: Json| of_hybrid(&config(fields)).unwrap().name;
        let kinds = |kinds: [&str; 2]| json!({ "layer_types": kinds, "num_hidden_layers": 2 });
        assert_eq!(name(kinds(["mamba", "attention"])), "granitehybrid");
        assert_eq!(name(kinds(["attention", "attention"])), "granite");
        let experts = json!({ "attn_layer_indices": [0, 1], "num_hidden_layers": 2, "num_experts_per_tok": 2 });
        assert_eq!(name(experts), "granitemoe");
        let by_period =
            json!({ "attn_layer_period": 3, "attn_layer_offset": 1, "num_hidden_layers": 4 });
        assert_eq!(
            attention_layers(&config(by_period)).unwrap(),
            [false, true, false, false]
        );
    }

    #[test]
    fn unknown_layers_are_named() {
        for (fields, part) in [
            (json!({ "num_hidden_layers": 2 }), "'attn_layer_period'"),
            (
                json!({ "num_hidden_layers": 2, "attn_layer_period": 0, "attn_layer_offset": 0 }),
                "'attn_layer_period' is 0",
            ),
            (
                json!({ "num_hidden_layers": 2, "layer_types": ["mamba"] }),
                "tells of 1 layers",
            ),
            (
                json!({ "num_hidden_layers": 2, "layer_types": 7 }),
                "'layer_types' is a whole number",
            ),
        ] {
            let error = attention_layers(&config(fields)).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
