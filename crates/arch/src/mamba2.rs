//! Mamba-2 (Dao and Gu 2024): pure state spaces, and shared parts of hybrids with attention.

use super::config::{Config, Result};
use super::decoder::{Decoder, Mamba2Layers, Needs, Recurrence, Rope};
use super::parameters::FILE_TYPE;
use super::recipes::Recipe;
use super::recipes::Size::{self, Any, Computed, Field};
use super::{Architecture, Keys, Parameter, nothing_generated};
use quantier_gguf::gguf::Value;
use quantier_tokenizer::VocabKind;

pub(super) static MAMBA2: Architecture = Architecture {
    classes: &["Mamba2ForCausalLM"],
    name: "mamba2",
    vocabulary: VocabKind::Mamba2,
    parameters: &[PARAMETERS, FILE_TYPE],
    tensors: &[EMBEDDINGS, NORM, STATE_SPACES],
    generated: nothing_generated,
    decoder: Decoder {
        rope: Rope::None,
        recurrence: Some(Recurrence::Mamba2(Mamba2Layers::All)),
        needs: Needs {
            biases: BIASED,
            ..Needs::WEIGHTS
        },
        ..Decoder::LLAMA
    },
};

/// Convolutions, whose bias llama.cpp adds without a check.
pub(super) const BIASED: &[&str] = &["ssm_conv1d"];

/// The recipes of one layer's state space, by prefix of names, with operations on its matrices.
macro_rules! state_space {
    ($prefix:expr, $sizes:expr, $input:expr, $output:expr) => {
        &[
            Recipe::with(
                concat!($prefix, "in_proj"),
                "blk.{}.ssm_in",
                &[Any, $sizes.hidden],
                $input,
            ),
            Recipe::with(
                concat!($prefix, "conv1d.weight"),
                "blk.{}.ssm_conv1d.weight",
                &[Any, crate::recipes::Size::Number(1), Any],
                &[crate::recipes::Op::Squeeze(1)],
            ),
            Recipe::rename(
                concat!($prefix, "conv1d.bias"),
                "blk.{}.ssm_conv1d.bias",
                &[Any],
            ),
            Recipe::rename(
                concat!($prefix, "dt_bias"),
                "blk.{}.ssm_dt.bias",
                &[$sizes.heads],
            )
            .finite(),
            Recipe::with(
                concat!($prefix, "A_log"),
                "blk.{}.ssm_a",
                &[$sizes.heads],
                &[
                    crate::recipes::Op::NegExp,
                    crate::recipes::Op::Reshape(crate::mamba2::ONE_EACH),
                ],
            )
            .finite(),
            Recipe::with(
                concat!($prefix, "D"),
                "blk.{}.ssm_d",
                &[$sizes.heads],
                &[crate::recipes::Op::Reshape(crate::mamba2::ONE_EACH)],
            ),
            Recipe::with(
                concat!($prefix, "norm.weight"),
                "blk.{}.ssm_norm.weight",
                &[$sizes.inner],
                &[crate::recipes::Op::Reshape(&[$sizes.groups, Any])],
            ),
            Recipe::with(
                concat!($prefix, "out_proj"),
                "blk.{}.ssm_out",
                &[$sizes.hidden, $sizes.inner],
                $output,
            ),
        ]
    };
}
pub(super) use state_space;

/// A column.
pub(super) const ONE_EACH: &[Size] = &[Any, Size::Number(1)];

/// The sizes of a family's state spaces.
pub(super) struct Sizes {
    /// The hidden size.
    pub(super) hidden: Size,
    /// Value heads.
    pub(super) heads: Size,
    /// Query and key heads.
    pub(super) groups: Size,
    /// Total length of value heads.
    pub(super) inner: Size,
}

const HIDDEN: Size = Field(&["hidden_size", "d_model", "dim"]);

const SIZES: Sizes = Sizes {
    hidden: HIDDEN,
    heads: Computed(heads),
    groups: Computed(groups),
    inner: Computed(inner),
};

const STATE_SPACES: &[Recipe] = state_space!("backbone.layers.{}.mixer.", SIZES, &[], &[]);

/// Embeddings, output and norms of layers in the names of Mamba's authors.
pub(super) const EMBEDDINGS: &[Recipe] = &[
    Recipe::rename("backbone.embeddings", "token_embd", &[Any, HIDDEN]),
    Recipe::rename("backbone.embedding", "token_embd", &[Any, HIDDEN]),
    Recipe::rename("backbone.norm_f", "output_norm", &[HIDDEN]),
    Recipe::rename("lm_head", "output", &[Any, HIDDEN]),
];
pub(super) const NORM: &[Recipe] = &[Recipe::rename(
    "backbone.layers.{}.norm",
    "blk.{}.attn_norm",
    &[HIDDEN],
)];

/// Default context length, as models without attention have none.
pub(super) const CONTEXT: u32 = 1 << 20;

const PARAMETERS: &[Parameter] = &[
    Parameter::ConstantU32("context_length", CONTEXT),
    Parameter::U32("embedding_length", &["hidden_size", "d_model", "dim"]),
    Parameter::ConstantU32("feed_forward_length", 0),
    Parameter::ConstantU32("attention.head_count", 0),
    Parameter::Layers,
    Parameter::OrU32("ssm.conv_kernel", &["conv_kernel", "d_conv"], 4),
    Parameter::Computed(inner_size),
    Parameter::OrU32("ssm.state_size", &["state_size", "d_state"], 128),
    Parameter::Computed(|config, keys| set_size(keys, "ssm.time_step_rank", heads(config)?)),
    Parameter::Computed(|config, keys| set_size(keys, "ssm.group_count", groups(config)?)),
    Parameter::Computed(epsilon),
];

/// The epsilon of norms must not be 0.
pub(super) fn epsilon(config: &Config, keys: &mut Keys) -> Result<()> {
    let epsilon = config.optional_f64(&["layer_norm_epsilon", "rms_norm_eps"])?;
    let epsilon = epsilon.filter(|epsilon| *epsilon != 0.0).unwrap_or(1e-5);
    keys.set(
        "attention.layer_norm_rms_epsilon",
        Value::F32(epsilon as f32),
    );
    Ok(())
}

/// Sets a size, which must fit into 32 bits.
pub(super) fn set_size(keys: &mut Keys, key: &str, size: u64) -> Result<()> {
    let size = u32::try_from(size).map_err(|_| format!("{key} is {size}, more than 32 bits"))?;
    keys.set(key, Value::U32(size));
    Ok(())
}

/// The number under the first of these names, if present and not 0.
pub(super) fn nonzero(config: &Config, names: &[&str]) -> Result<Option<u64>> {
    let number = config.optional_u32(names)?.filter(|number| *number > 0);
    Ok(number.map(u64::from))
}

fn groups(config: &Config) -> Result<u64> {
    Ok(nonzero(config, &["n_groups"])?.unwrap_or(1))
}

/// Total length of heads: by the config, or a multiple of the hidden size.
fn inner(config: &Config) -> Result<u64> {
    let inner = nonzero(config, &["mamba_d_ssm", "intermediate_size", "d_inner"])?;
    let expansion = nonzero(config, &["mamba_expand", "expand"])?.unwrap_or(2);
    let expanded = expansion * HIDDEN.required(config)?;
    Ok(inner.unwrap_or(expanded))
}

fn heads(config: &Config) -> Result<u64> {
    let length = nonzero(config, &["mamba_d_head", "head_dim"])?.unwrap_or(64);
    Ok(inner(config)? / length)
}

fn inner_size(config: &Config, keys: &mut Keys) -> Result<()> {
    let (inner, hidden) = (inner(config)?, HIDDEN.required(config)?);
    let expansion = nonzero(config, &["mamba_expand", "expand"])?.unwrap_or(2);
    if inner != expansion * hidden {
        return Err(format!(
            "state spaces of {inner} numbers are not {expansion} times the hidden size of {hidden}, which is all that \
             llama.cpp runs"
        ));
    }
    let length = nonzero(config, &["mamba_d_head", "head_dim"])?.unwrap_or(64);
    if !inner.is_multiple_of(length) {
        return Err(format!(
            "{inner} numbers are no whole number of heads of {length} ('head_dim')"
        ));
    }
    set_size(keys, "ssm.inner_size", inner)
}
