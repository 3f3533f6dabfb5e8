//! GGUF, versions 2 and 3, in either byte order: metadata and tensors, in one file or split over
//! several.
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | keys u64
//! key, value type, value                              for each key
//! name, dimensions, each dimension, type, offset      for each tensor
//! zeros to the next multiple of the alignment
//! tensor data; each tensor starts at a multiple of the alignment
//! ```
//!
//! [`Model::open`] maps and checks the files; [`Writer`] streams a file out.
//!
//! Numbers are little-endian. In a big-endian file, the lower half of the version field reads as 0,
//! and all numbers are big-endian, those inside blocks included.

mod endian;
mod entries;
mod model;
mod read;
mod value;
mod write;

pub use endian::Endian;
pub use entries::Entries;
pub use model::{Files, MAX_SHARDS, Model, Tensor, shard_name, shard_path, shard_siblings, shards};
pub use read::{DEFAULT_ALIGNMENT, Header, MAX_ALIGNMENT, MAX_NAME, TensorInfo, parse};
pub use value::until_zero;
pub use value::{Array, Metadata, Shape, Value, ValueType};
pub use write::{Layout, Writer};

/// `general.quantization_version`: the version of ggml's block formats.
pub const QUANTIZATION_VERSION: u32 = 2;

/// Metadata keys used by more than one module.
pub mod keys {
    #![allow(missing_docs)]
    pub const ARCHITECTURE: &str = "general.architecture";
    pub const TYPE: &str = "general.type";
    pub const ALIGNMENT: &str = "general.alignment";
    pub const FILE_TYPE: &str = "general.file_type";
    pub const QUANTIZATION_VERSION: &str = "general.quantization_version";
    pub const SPLIT_NO: &str = "split.no";
    pub const SPLIT_COUNT: &str = "split.count";
    pub const SPLIT_TENSORS: &str = "split.tensors.count";
}
