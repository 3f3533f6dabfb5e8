//! `quantize`: from a GGUF or a Hugging Face checkpoint to one or more quantized GGUFs, with the
//! bytes of llama-quantize.
//!
//! [`Plan::new`] decides everything and refuses impossible jobs before a byte is written;
//! [`Plan::run`] streams the tensors.

mod checks;
mod metadata;
mod plan;
mod rounded;
mod run;
mod sequential;

pub use metadata::{KvOverride, OverrideValue};
pub use plan::{Plan, PlannedOutput, PlannedTensor};
pub use sequential::SequentialRun;

use crate::format;
use crate::plan::recipe::{Problem, Wishes};
use crate::rounding::{self, NoFactor, Rounding};
use std::path::PathBuf;

/// Path and types of an output.
#[derive(Clone, Debug, Default)]
pub struct OutputRequest {
    /// Path of the file; with [`Job::keep_split`], its part before `-00001-of-00003.gguf`.
    pub path: PathBuf,
    /// Requested types.
    pub wishes: Wishes,
    /// Rounding of its weights. Error feedback requires [`Job::hessians`].
    pub rounding: Rounding,
    /// Lossless encoding of rows on the grid of their type, where llama-quantize may
    /// miss their scales.
    pub lossless: bool,
}

/// A quantization job.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The model as given: a GGUF, any shard of a split one, or a Hugging Face checkpoint.
    pub input: PathBuf,
    /// The outputs, all written in one pass over the input.
    pub outputs: Vec<OutputRequest>,
    /// The importance matrix.
    pub imatrix: Option<ImatrixRequest>,
    /// A directory of input Hessians, for error feedback.
    pub hessians: Option<PathBuf>,
    /// Allows quantizing tensors that are quantized already.
    pub allow_requantize: bool,
    /// Writes as many shards as the input has.
    pub keep_split: bool,
    /// Refuses a type that does not fit a tensor's rows instead of replacing it.
    pub no_fallback: bool,
    /// Metadata overrides.
    pub kv_overrides: Vec<KvOverride>,
    /// Layers to remove; later ones move up.
    pub prune_layers: Vec<u32>,
    /// Number of threads; 0 means one per core.
    pub threads: usize,
}

/// An importance matrix and filters for its tensors.
#[derive(Clone, Debug, Default)]
pub struct ImatrixRequest {
    /// Path of the file as given; its name goes into the output's metadata.
    pub path: PathBuf,
    /// A different name for the metadata.
    pub shown: Option<String>,
    /// Use only for tensors whose names contain one of these; empty for all.
    pub include: Vec<String>,
    /// Exclude tensors whose names contain one of these.
    pub exclude: Vec<String>,
}

/// Errors of a job.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Failure to read or write a file.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// Failure to convert a checkpoint.
    #[error(transparent)]
    Convert(#[from] crate::convert::Error),
    /// Failure to run the model.
    #[error(transparent)]
    Model(crate::model::Error),
    /// Unusable inputs or output gradients of a linear.
    #[error(
        "tensor '{tensor}': {error}; the model is damaged, or its numbers are too large for f32"
    )]
    Inputs {
        /// The tensor.
        tensor: String,
        /// The defect.
        error: NoFactor,
    },
    /// An impossible plan, with one sentence per reason.
    #[error("this cannot be done, and nothing was written:\n{}", Problem::by_reason(.0))]
    Impossible(Vec<Problem>),
    /// Weights that are not finite, or too large for a type.
    #[error(transparent)]
    Round(rounding::Error),
    /// Cancelled.
    #[error("stopped; nothing was written")]
    Cancelled,
}

/// Result type of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl From<crate::model::Error> for Error {
    fn from(error: crate::model::Error) -> Error {
        match error {
            crate::model::Error::Cancelled => Error::Cancelled,
            error => Error::Model(error),
        }
    }
}

impl From<rounding::Error> for Error {
    fn from(error: rounding::Error) -> Error {
        match error {
            rounding::Error::Stopped(_) => Error::Cancelled,
            rounding::Error::Format(error) => Error::Format(error),
            error => Error::Round(error),
        }
    }
}

impl Error {
    /// True if a retry would fail again.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Error::Round(_) | Error::Inputs { .. } | Error::Impossible(_) => true,
            Error::Model(error) => error.is_final(),
            Error::Format(_) | Error::Convert(_) | Error::Cancelled => false,
        }
    }

    /// A reason that does not concern a single tensor.
    fn impossible(reason: impl Into<String>) -> Error {
        Error::Impossible(vec![Problem::of("", reason)])
    }
}
