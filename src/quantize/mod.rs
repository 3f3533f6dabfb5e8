//! `quantize`: a GGUF or a Hugging Face checkpoint in, one or more quantized GGUFs out, with the bytes
//! of llama-quantize.
//!
//! [`Plan::new`] decides everything and refuses what cannot work, before a byte is written;
//! [`Plan::run`] streams the tensors through.

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

/// What to write and where.
#[derive(Clone, Debug, Default)]
pub struct OutputRequest {
    /// The file; with [`Job::keep_split`], the part before `-00001-of-00003.gguf`.
    pub path: PathBuf,
    /// Which types it gets.
    pub wishes: Wishes,
    /// How its weights are rounded. Error feedback needs [`Job::hessians`].
    pub rounding: Rounding,
}

/// A whole job.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The model, as the user named it: a GGUF, any shard of a split one, or a Hugging Face
    /// checkpoint.
    pub input: PathBuf,
    /// What to write; all from one pass over the input.
    pub outputs: Vec<OutputRequest>,
    /// The importance matrix.
    pub imatrix: Option<ImatrixRequest>,
    /// A directory of input Hessians, for error feedback.
    pub hessians: Option<PathBuf>,
    /// Whether tensors that are quantized already may be quantized anew.
    pub allow_requantize: bool,
    /// Write as many shards as the input has.
    pub keep_split: bool,
    /// Whether a type that does not fit a tensor's rows is a failure instead of being replaced.
    pub no_fallback: bool,
    /// Metadata to set in the output.
    pub kv_overrides: Vec<KvOverride>,
    /// Layers to leave out; later ones move up.
    pub prune_layers: Vec<u32>,
    /// Threads; 0 takes one per core.
    pub threads: usize,
}

/// Which importance matrix to use, and for which tensors.
#[derive(Clone, Debug, Default)]
pub struct ImatrixRequest {
    /// The file, as the user named it; its name goes into the output's metadata.
    pub path: PathBuf,
    /// Another name for the metadata.
    pub shown: Option<String>,
    /// Use it only for tensors whose name contains one of these; empty for all.
    pub include: Vec<String>,
    /// Do not use it for tensors whose name contains one of these.
    pub exclude: Vec<String>,
}

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// A checkpoint could not be converted on the way.
    #[error(transparent)]
    Convert(#[from] crate::convert::Error),
    /// The model could not be run.
    #[error(transparent)]
    Model(crate::model::Error),
    /// The inputs or output gradients of a linear are unusable.
    #[error(
        "tensor '{tensor}': {error}; the model is damaged, or its numbers are too large for f32"
    )]
    Inputs {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        error: NoFactor,
    },
    /// The plan cannot work; one sentence per reason.
    #[error("this cannot be done, and nothing was written:\n{}", Problem::by_reason(.0))]
    Impossible(Vec<Problem>),
    /// Weights that are no numbers, or too large for a type.
    #[error(transparent)]
    Round(rounding::Error),
    /// Stopped from outside.
    #[error("stopped; nothing was written")]
    Cancelled,
}

/// Result of this module.
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
    /// Whether the same run, started again, would fail again.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Error::Round(_) | Error::Inputs { .. } | Error::Impossible(_) => true,
            Error::Model(error) => error.is_final(),
            Error::Format(_) | Error::Convert(_) | Error::Cancelled => false,
        }
    }

    /// A reason that concerns no single tensor.
    fn impossible(reason: impl Into<String>) -> Error {
        Error::Impossible(vec![Problem::of("", reason)])
    }
}
