//! `convert`: a Hugging Face checkpoint in, a GGUF out, byte for byte what convert_hf_to_gguf.py
//! writes.
//!
//! ```text
//! Checkpoint::open     config.json and every header of the weights, checked
//! Plan::new            each tensor's name, shape, type and origin; all metadata; the layout of every file
//! Plan::run            bands of rows through the transforms and the rounding, in parallel, to the disk
//! ```
//!
//! Everything that cannot work is refused by [`Plan::new`], before a byte is written.

mod adapter;
mod checkpoint;
mod computed;
mod explain;
mod fields;
pub mod general;
mod groups;
mod head;
mod mean;
mod modules;
mod numbers;
mod ops;
mod outputs;
mod parts;
mod plan;
mod projector;
mod range;
mod repack;
mod reranker;
mod softplus;
mod stored;
mod target;
mod tensors;
mod view;
mod weights;

pub use adapter::{Adapter, Based};
pub use checkpoint::{Checkpoint, Source};
pub use plan::{Plan, PlannedTensor};
pub use projector::ProjectorFile;
pub use range::TooLarge;

use crate::arch::Nextn;
use crate::format;
use crate::format::gguf::Endian;
use crate::format::safetensors::Dtype;
use crate::plan::file_type::FileType;
use crate::plan::recipe::Problem;
use std::path::PathBuf;

/// `--outtype`: the type of matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutType {
    /// The 16-bit type of the checkpoint's first matrix that has one, else f16.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// IEEE halves.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// Blocks of 32 with 8 bits each.
    Q8_0,
    /// Ternary weights, five in 8 bits; embeddings and output in f16.
    Tq1_0,
    /// Ternary weights of two bits; embeddings and output in f16.
    Tq2_0,
}

/// A conversion job.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Output path: a file, with `{ftype}` in the name replaced by the output type, or a directory,
    /// with the file named after the model.
    pub output: PathBuf,
    /// A JSON file with `general.*` keys that override the checkpoint's.
    pub metadata: Option<PathBuf>,
    /// The model's name, which overrides all others.
    pub model_name: Option<String>,
    /// The pre-tokenizer of a byte-level vocabulary; detected if None.
    pub pre: Option<String>,
    /// Write no community chat template for a model in Mistral's format.
    pub no_community_template: bool,
    /// The type of matrices.
    pub out_type: OutType,
    /// Maximum number of tensors per file; 0 for no limit.
    pub split_max_tensors: u64,
    /// Maximum tensor bytes per file; 0 for no limit.
    pub split_max_size: u64,
    /// Write a first file without tensors.
    pub no_tensor_first_split: bool,
    /// Write metadata and vocabulary only.
    pub vocab_only: bool,
    /// Fail on weights that are NaN or infinite.
    pub check: bool,
    /// Threads; 0 for one per core.
    pub threads: usize,
    /// The byte order of the files.
    pub endian: Endian,
    /// Treatment of multi-token prediction blocks.
    pub nextn: Nextn,
    /// Convert FP8 matrices to Q8_0.
    pub fp8_as_q8: bool,
    /// Dequantize 4-bit floats instead of repacking them.
    pub widen: bool,
    /// Keep the dense modules after the pooling of a sentence-transformers model.
    pub dense_modules: bool,
    /// The target of a draft model: a directory with config.json and tokenizer.
    pub target: Option<PathBuf>,
}

/// Error of a conversion.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// An impossible conversion; one sentence per reason.
    #[error("this cannot be done, and nothing was written:\n{}", Problem::by_reason(.0))]
    Impossible(Vec<Problem>),
    /// A weight rejected by `--check`.
    #[error("{}: tensor '{tensor}', row {row}, holds {value}; the checkpoint is damaged", path.display())]
    BadWeight {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row, counted over all matrices of the tensor.
        row: u64,
        /// The value: NaN or an infinity.
        value: f32,
    },
    /// An invalid number in a quantized tensor.
    #[error("{}: tensor '{tensor}', row {row}, column {column}: {what}; the checkpoint is damaged, download it again", path.display())]
    BadScale {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row, counted over all matrices of the tensor.
        row: u64,
        /// The column.
        column: u64,
        /// The error.
        what: String,
    },
    /// A weight rejected by `--check`: infinite in the output's type.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// Cancelled by the caller.
    #[error("stopped; nothing was written")]
    Cancelled,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A reason without a tensor.
    pub(crate) fn impossible(reason: impl Into<String>) -> Error {
        Error::Impossible(vec![Problem::of("", reason)])
    }
}

impl OutType {
    /// All types with their names on the command line.
    pub const NAMES: [(&'static str, OutType); 7] = [
        ("auto", OutType::Auto),
        ("f32", OutType::F32),
        ("f16", OutType::F16),
        ("bf16", OutType::Bf16),
        ("q8_0", OutType::Q8_0),
        ("tq1_0", OutType::Tq1_0),
        ("tq2_0", OutType::Tq2_0),
    ];

    /// The file type for a checkpoint whose first 16-bit matrix has this type.
    pub(crate) fn file_type(self, stored: Option<Dtype>) -> FileType {
        match self {
            OutType::F32 => FileType::F32,
            OutType::F16 => FileType::F16,
            OutType::Bf16 => FileType::BF16,
            OutType::Q8_0 => FileType::Q8_0,
            OutType::Tq1_0 => FileType::TQ1_0,
            OutType::Tq2_0 => FileType::TQ2_0,
            OutType::Auto if stored == Some(Dtype::Bf16) => FileType::BF16,
            OutType::Auto => FileType::F16,
        }
    }
}
