//! Qwen 3 Next, and Qwen 3.5 and its successors, dense and with experts: three of four layers are
//! gated delta nets, the others softmax attention with an output gate in the query matrix.

use super::config::{Config, Result};
use super::decoder::{Decoder, DeltaHeads, Layout, Recurrence, Rope, Sections};
use super::gemma::{PLUS_ONE_ATTENTION_NORMS, PLUS_ONE_HEAD_NORMS};
use super::llama::{BUFFERS, EMBEDDINGS, GATED_FFN};
use super::nextn::PREDICT_LAYERS;
use super::parameters::{COMMON, FILE_TYPE, HEAD_LENGTHS, rotated_part, set_numbers};
use super::qwen::{EXPERT_PARAMETERS, EXPERTS, SHARED_EXPERT};
use super::recipes::Op::{AddOne, NegExp, Squeeze, Tile, TileBehind};
use super::recipes::Size::{
    self, Any, Computed, Field, Hidden, Keys as KeyRows, Number, Product, Queries, Quotient,
};
use super::recipes::{Input, Op, Output, Recipe};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::{Array, Value, ValueType};
use quantier_tokenizer::VocabKind;

/// Value heads stay next to those with the same key head.
pub(super) static QWEN3_NEXT: Architecture = Architecture {
    classes: &["Qwen3NextForCausalLM"],
    name: "qwen3next",
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        EXPERT_PARAMETERS,
        PREDICT_LAYERS,
        DELTA_NET,
    ],
    tensors: &[
        EMBEDDINGS,
        PLUS_ONE_ATTENTION_NORMS,
        GATED_ATTENTION,
        PLUS_ONE_HEAD_NORMS,
        GROUPED_DELTA_NETS,
        EXPERTS,
        SHARED_EXPERT,
        NEXTN,
        BUFFERS,
    ],
    decoder: Decoder {
        sections: Sections::None,
        recurrence: Some(Recurrence::DeltaNets(DeltaHeads::Grouped)),
        drafts: true,
        ..QWEN3_5.decoder
    },
    ..QWEN3_5
};

pub(super) static QWEN3_5: Architecture = Architecture {
    classes: &["Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"],
    name: "qwen35",
    vocabulary: VocabKind::ByteLevel,
    parameters: &[
        COMMON,
        HEAD_LENGTHS,
        FILE_TYPE,
        EXPERT_PARAMETERS,
        PREDICT_LAYERS,
        DELTA_NET,
        SECTIONS,
    ],
    tensors: &[
        EMBEDDINGS,
        PLUS_ONE_ATTENTION_NORMS,
        GATED_ATTENTION,
        PLUS_ONE_HEAD_NORMS,
        DELTA_NETS,
        GATED_FFN,
        NEXTN,
        BUFFERS,
    ],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::Halves,
        sections: Sections::Interleaved,
        layout: Layout::Sequential("post_attention_norm"),
        gated_queries: true,
        recurrence: Some(Recurrence::DeltaNets(DeltaHeads::Tiled)),
        drafts: true,
        ..Decoder::LLAMA
    },
};

pub(super) static QWEN3_5_MOE: Architecture = Architecture {
    classes: &[
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
    ],
    name: "qwen35moe",
    tensors: &[
        EMBEDDINGS,
        PLUS_ONE_ATTENTION_NORMS,
        GATED_ATTENTION,
        PLUS_ONE_HEAD_NORMS,
        DELTA_NETS,
        EXPERTS,
        SHARED_EXPERT,
        NEXTN,
        BUFFERS,
    ],
    ..QWEN3_5
};

/// The text model of MiniCPM-V 4.6, without multi-token prediction blocks.
pub(super) static MINICPM_V4_6: Architecture = Architecture {
    classes: &["MiniCPMV4_6ForConditionalGeneration"],
    tensors: &[
        &[
            Recipe::leave_out("mtp*", "multi-token prediction"),
            Recipe::leave_out("model.merger.*", "the vision part"),
        ],
        EMBEDDINGS,
        PLUS_ONE_ATTENTION_NORMS,
        GATED_ATTENTION,
        PLUS_ONE_HEAD_NORMS,
        DELTA_NETS,
        GATED_FFN,
        BUFFERS,
    ],
    ..QWEN3_5
};

const KEY_HEADS: Size = Field(&["linear_num_key_heads"]);
const VALUE_HEADS: Size = Field(&["linear_num_value_heads"]);
/// Value heads per key head.
const SHARING: Size = Quotient(&VALUE_HEADS, &KEY_HEADS);
const KEYS: Size = Product(&[KEY_HEADS, Field(&["linear_key_head_dim"])]);
const VALUES: Size = Product(&[VALUE_HEADS, Field(&["linear_value_head_dim"])]);
const QUERIES_AND_KEYS: Size = Product(&[Number(2), KEYS]);
/// Total length of queries, keys and values.
const CHANNELS: Size = Computed(|config| {
    let (keys, values) = (QUERIES_AND_KEYS.required(config)?, VALUES.required(config)?);
    let channels = keys.checked_add(values);
    channels.ok_or("queries, keys and values are too long together".into())
});
const QUERIES_AND_GATES: Size = Product(&[Number(2), Queries]);

/// In the checkpoint, value heads are grouped by their key head; ggml repeats the sequence of key
/// heads.
const TILE_ROWS: Op = Tile {
    axis: 0,
    groups: KEY_HEADS,
    members: SHARING,
};
/// The same order for the values after queries and keys.
const TILE_VALUES: Op = TileBehind {
    first: QUERIES_AND_KEYS,
    groups: KEY_HEADS,
    members: SHARING,
};

pub(super) const DELTA_NETS: &[Recipe] = &[
    Recipe::with(
        "model.layers.{}.linear_attn.in_proj_qkv",
        "blk.{}.attn_qkv",
        &[CHANNELS, Hidden],
        &[TILE_VALUES],
    ),
    Recipe::with(
        "model.layers.{}.linear_attn.in_proj_z",
        "blk.{}.attn_gate",
        &[VALUES, Hidden],
        &[TILE_ROWS],
    ),
    Recipe::with(
        "model.layers.{}.linear_attn.in_proj_b",
        "blk.{}.ssm_beta",
        &[VALUE_HEADS, Hidden],
        &[TILE_ROWS],
    ),
    Recipe::with(
        "model.layers.{}.linear_attn.in_proj_a",
        "blk.{}.ssm_alpha",
        &[VALUE_HEADS, Hidden],
        &[TILE_ROWS],
    ),
    Recipe::with(
        "model.layers.{}.linear_attn.conv1d",
        "blk.{}.ssm_conv1d",
        &[CHANNELS, Number(1), Field(&["linear_conv_kernel_dim"])],
        &[Squeeze(1), TILE_VALUES],
    ),
    Recipe::with(
        "model.layers.{}.linear_attn.A_log",
        "blk.{}.ssm_a",
        &[VALUE_HEADS],
        &[TILE_ROWS, NegExp],
    )
    .finite(),
    Recipe::with(
        "model.layers.{}.linear_attn.dt_bias",
        "blk.{}.ssm_dt.bias",
        &[VALUE_HEADS],
        &[TILE_ROWS],
    )
    .finite(),
    Recipe::rename(
        "model.layers.{}.linear_attn.norm",
        "blk.{}.ssm_norm",
        &[Field(&["linear_value_head_dim"])],
    ),
    Recipe::with(
        "model.layers.{}.linear_attn.out_proj",
        "blk.{}.ssm_out",
        &[Hidden, VALUES],
        &[Tile {
            axis: 1,
            groups: KEY_HEADS,
            members: SHARING,
        }],
    ),
];

/// The values, or the gates, of the heads that share a key head.
const SHARED_VALUES: Size = Product(&[SHARING, Field(&["linear_value_head_dim"])]);
/// Rows per key head in one matrix: queries, keys and values, then gates.
const WITH_GATES: &[Size] = &[Any, SHARED_VALUES];
const WITHOUT_GATES: &[Size] = &[
    Field(&["linear_key_head_dim"]),
    Field(&["linear_key_head_dim"]),
    SHARED_VALUES,
];
const BY_KEY_HEAD: Op = Op::Reshape(&[KEY_HEADS, Any, Hidden]);
const BY_ROWS: Op = Op::Reshape(&[Any, Hidden]);

const GROUPED_DELTA_NETS: &[Recipe] = &[
    Recipe::new(
        &[Input::new(
            "model.layers.{}.linear_attn.in_proj_qkvz.weight",
            &[Any, Hidden],
        )],
        &[
            Output::new(
                "blk.{}.attn_qkv.weight",
                &[
                    BY_KEY_HEAD,
                    Op::part(1, WITH_GATES, 0),
                    BY_ROWS,
                    Op::Ungroup {
                        groups: KEY_HEADS,
                        sizes: WITHOUT_GATES,
                    },
                ],
            ),
            Output::new(
                "blk.{}.attn_gate.weight",
                &[BY_KEY_HEAD, Op::part(1, WITH_GATES, 1), BY_ROWS],
            ),
        ],
    ),
    Recipe::rename(
        "model.layers.{}.linear_attn.in_proj_ba",
        "blk.{}.ssm_ba",
        &[Product(&[Number(2), VALUE_HEADS]), Hidden],
    ),
    Recipe::with(
        "model.layers.{}.linear_attn.conv1d",
        "blk.{}.ssm_conv1d",
        &[CHANNELS, Number(1), Field(&["linear_conv_kernel_dim"])],
        &[Squeeze(1)],
    ),
    Recipe::with(
        "model.layers.{}.linear_attn.A_log",
        "blk.{}.ssm_a",
        &[VALUE_HEADS],
        &[NegExp],
    )
    .finite(),
    Recipe::rename(
        "model.layers.{}.linear_attn.dt_bias",
        "blk.{}.ssm_dt.bias",
        &[VALUE_HEADS],
    )
    .finite(),
    Recipe::rename(
        "model.layers.{}.linear_attn.norm",
        "blk.{}.ssm_norm",
        &[Field(&["linear_value_head_dim"])],
    ),
    Recipe::rename(
        "model.layers.{}.linear_attn.out_proj",
        "blk.{}.ssm_out",
        &[Hidden, VALUES],
    ),
];

/// Attention with gate rows after the query rows of each head.
pub(super) const GATED_ATTENTION: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_q",
        &[QUERIES_AND_GATES, Hidden],
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
        "model.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Queries],
    ),
];

/// Tensors of a multi-token prediction block in addition to those of a layer.
const NEXTN: &[Recipe] = &[
    Recipe::rename(
        "model.layers.{}.eh_proj",
        "blk.{}.nextn.eh_proj",
        &[Hidden, Product(&[Number(2), Hidden])],
    ),
    Recipe::with(
        "model.layers.{}.enorm.weight",
        "blk.{}.nextn.enorm.weight",
        &[Hidden],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.hnorm.weight",
        "blk.{}.nextn.hnorm.weight",
        &[Hidden],
        &[AddOne],
    ),
    Recipe::with(
        "model.layers.{}.shared_head.norm.weight",
        "blk.{}.nextn.shared_head_norm.weight",
        &[Hidden],
        &[AddOne],
    ),
];

pub(super) const DELTA_NET: &[Parameter] = &[
    Parameter::U32("ssm.conv_kernel", &["linear_conv_kernel_dim"]),
    Parameter::U32("ssm.state_size", &["linear_key_head_dim"]),
    Parameter::U32("ssm.group_count", &["linear_num_key_heads"]),
    Parameter::U32("ssm.time_step_rank", &["linear_num_value_heads"]),
    Parameter::Computed(inner_size),
    Parameter::Computed(recurrent_layers),
    Parameter::Computed(full_attention_interval),
    Parameter::Computed(rotated_dimensions),
];

/// RoPE sections for time, height, width and a fourth dimension, always written.
pub(super) const SECTIONS: &[Parameter] = &[Parameter::Computed(|config, keys| {
    const NAME: &str = "rope.dimension_sections";
    const BY_DEFAULT: [u32; 4] = [11, 11, 10, 0];
    let sections = config.rope_sections()?;
    if sections.is_none() {
        set_numbers(keys, NAME, BY_DEFAULT);
    }
    check_sections(config, sections.unwrap_or(BY_DEFAULT), keys)
})];

/// Rejects sections that ggml does not support, and notes those that do not cover all rotated pairs
/// of a head. Text is not affected, as time, height and width are equal.
///
/// # Errors
/// If the sections sum to 0, or to more than a head.
fn check_sections(config: &Config, sections: [u32; 4], keys: &mut Keys) -> Result<()> {
    let together: u64 = sections.iter().map(|size| u64::from(*size)).sum();
    let (head, pairs) = (config.head_len()?, rotated_numbers(config)? / 2);
    if !(1..=u64::from(head)).contains(&together) {
        return Err(format!(
            "the sections {sections:?} of 'mrope_section' are {together} pairs together; between 1 and {head}, the \
             length of a head, are possible"
        ));
    }
    if config.rope_sections()?.is_some() && together != u64::from(pairs) {
        keys.note(format!(
            "the sections {sections:?} of 'mrope_section' are {together} pairs together, and {pairs} pairs of a head are \
             rotated; text is not concerned, but pictures are placed otherwise than with transformers"
        ));
    }
    Ok(())
}

fn inner_size(config: &Config, keys: &mut Keys) -> Result<()> {
    let [key, value] = ["linear_key_head_dim", "linear_value_head_dim"];
    let [of_keys, of_values] = [config.u32(&[key])?, config.u32(&[value])?];
    if of_keys != of_values {
        return Err(format!(
            "'{key}' is {of_keys} and '{value}' is {of_values}; llama.cpp runs only heads of one length"
        ));
    }
    let size = VALUES.required(config)?;
    let size = u32::try_from(size)
        .map_err(|_| "the values of all heads have more than 32 bits".to_owned())?;
    keys.set("ssm.inner_size", Value::U32(size));
    Ok(())
}

/// Layers with delta nets, if the config lists kinds of layers; multi-token prediction blocks have
/// none.
fn recurrent_layers(config: &Config, keys: &mut Keys) -> Result<()> {
    const FIELD: &str = "layer_types";
    let (layers, blocks) = (config.layers()? as usize, config.nextn() as usize);
    let kinds = config.get(FIELD).and_then(|kinds| kinds.as_array());
    let kinds = match (kinds, config.get(FIELD)) {
        (Some(kinds), _) => kinds.clone(),
        (None, Some(_)) => Vec::new(),
        // transformers' class has a default list.
        (None, None) if is_next(config) => {
            let interval = config.optional_u32(&[INTERVAL])?.unwrap_or(4).max(1) as usize;
            let kind = |layer: usize| match layer.is_multiple_of(interval) {
                true => "full_attention".into(),
                false => "linear_attention".into(),
            };
            (1..=layers).map(kind).collect()
        }
        (None, None) => return Ok(()),
    };
    if kinds.len() != layers {
        let count = kinds.len();
        return Err(format!(
            "field '{FIELD}' lists {count} layers, and there are {layers}"
        ));
    }
    let flags = kinds.iter().map(|kind| kind == "linear_attention");
    let flags = flags.chain(std::iter::repeat_n(false, blocks));
    let flags = Array::of_values(ValueType::Bool, flags.map(Value::Bool));
    keys.set("attention.recurrent_layers", Value::Array(flags));
    Ok(())
}

/// The last layer of each interval has attention.
const INTERVAL: &str = "full_attention_interval";

fn is_next(config: &Config) -> bool {
    config
        .get("model_type")
        .is_some_and(|model_type| *model_type == "qwen3_next")
}

fn full_attention_interval(config: &Config, keys: &mut Keys) -> Result<()> {
    let interval = config.optional_u32(&[INTERVAL])?;
    keys.set(INTERVAL, Value::U32(interval.unwrap_or(4)));
    Ok(())
}

fn rotated_dimensions(config: &Config, keys: &mut Keys) -> Result<()> {
    keys.set("rope.dimension_count", Value::U32(rotated_numbers(config)?));
    Ok(())
}

/// RoPE dimensions per head.
fn rotated_numbers(config: &Config) -> Result<u32> {
    let part = rotated_part(config, Some(0.25))?;
    Ok((f64::from(config.head_len()?) * part) as u32)
}
