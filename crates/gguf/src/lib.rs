//! Model files: GGUF, safetensors, PyTorch checkpoints, importance matrices, Hessians, logits. The
//! only readers of untrusted bytes.
//!
//! Everything is checked once, when it is read; results need no further checks. A damaged file
//! gives an [`Error`] with the defect and its place, never a panic, and never an allocation out of
//! proportion to the size of the file. Outputs get their names when they are complete.
//!
//! # Write a GGUF
//!
//! ```
//! use quantier_gguf::gguf::{Layout, Metadata, Shape, TensorInfo, Value, Writer};
//! use quantier_gguf::types::GgmlType;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("model.gguf");
//! let mut metadata = Metadata::new();
//! metadata.set("general.architecture", Value::str("llama"));
//! let tensors = [TensorInfo {
//!     name: "output_norm.weight".into(),
//!     shape: Shape::new(&[256])?,
//!     ggml_type: GgmlType::F32,
//! }];
//!
//! let layout = Layout::new(&metadata, &tensors, 32);
//! let mut writer = Writer::create(&path, layout, &[])?;
//! writer.write(&[0; 256 * 4])?;
//! writer.finish()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Read metadata and tensors
//!
//! ```
//! use quantier_gguf::{gguf::Model, reader::TensorReader};
//! # use quantier_gguf::gguf::{Layout, Metadata, Shape, TensorInfo, Value, Writer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("model.gguf");
//! # let mut metadata = Metadata::new();
//! # metadata.set("general.architecture", Value::str("llama"));
//! # let (shape, ggml_type) = (Shape::new(&[256])?, quantier_gguf::types::GgmlType::F32);
//! # let tensors = [TensorInfo { name: "output_norm.weight".into(), shape, ggml_type }];
//! # let mut writer = Writer::create(&path, Layout::new(&metadata, &tensors, 32), &[])?;
//! # writer.write(&1f32.to_le_bytes().repeat(256))?;
//! # writer.finish()?;
//! let model = Model::open(&path)?;
//! assert_eq!(model.architecture(), Some("llama"));
//! for (key, value) in model.metadata().iter() {
//!     println!("{key} = {value}");
//! }
//! let reader = TensorReader::from(model);
//! for tensor in &reader.tensors {
//!     let shape = &tensor.info.shape;
//!     println!("{} {shape} {}", tensor.info.name, tensor.info.ggml_type);
//!     let mut weights = vec![0.0; shape.elements() as usize];
//!     reader.widen(tensor, 0..shape.rows(), &mut weights)?;
//! #   assert!(weights == vec![1.0; 256]);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Write and read an importance matrix
//!
//! ```
//! use quantier_gguf::imatrix::{Entry, Imatrix};
//!
//! # fn main() -> quantier_gguf::Result<()> {
//! # let dir = tempfile::tempdir().expect("a temporary directory");
//! # let path = dir.path().join("imatrix.gguf");
//! let mut imatrix = Imatrix::default();
//! let entry = Entry { sums: vec![6.0, 9.0], counts: vec![3] };
//! imatrix.entries.insert("blk.0.attn_q.weight".into(), entry);
//! imatrix.write_gguf(&path)?;
//!
//! let imatrix = Imatrix::read(&path)?;
//! assert_eq!(imatrix.entries["blk.0.attn_q.weight"].means(), [2.0, 3.0]);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs, unreachable_pub)]

pub mod fault;
pub mod foreign;
pub mod gguf;
pub mod hessian;
pub mod imatrix;
pub mod index;
pub mod json;
pub mod logits;
pub mod map;
pub mod output;
pub mod part;
mod pickle;
pub mod reader;
pub mod safetensors;
pub mod snapshot;
pub mod tasks;
pub mod torch;
mod zip;

pub use quantier_blocks::types;

use byteorder::{ByteOrder, LittleEndian};
use std::path::PathBuf;

/// Result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Hexadecimal form of bytes, as used for checksums.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Numbers in little-endian bytes.
pub fn le_bytes(numbers: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * numbers.len()];
    LittleEndian::write_f32_into(numbers, &mut bytes);
    bytes
}

/// Failure to read or write a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The failed operation: open, read, write, rename.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file became shorter while it was in use.
    #[error("{} was {was} bytes long when it was opened and is {now} now; leave it alone while it is read, then run again", path.display())]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// Length when it was opened, in bytes.
        was: u64,
        /// Length now, in bytes.
        now: u64,
    },
    /// Malformed contents.
    #[error("{}: {what}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// Defect, place and remedy.
        what: String,
    },
    /// Not enough space for an output.
    #[error("{} needs {needed} bytes and only {free} are free there; make room or choose another directory", path.display())]
    NoSpace {
        /// The output.
        path: PathBuf,
        /// Its size in bytes.
        needed: u64,
        /// Free bytes.
        free: u64,
    },
    /// An existing output.
    #[error("{} exists already; choose another output, or replace it with --force", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// An output that would overwrite an input.
    #[error("{} is an input of this command and would be overwritten; choose another output", path.display())]
    OutputIsInput {
        /// The file.
        path: PathBuf,
    },
}

/// A quoted name for an error, shortened: a file can claim names as long as itself.
pub fn shown(name: &str) -> String {
    const SHOWN: usize = 100;
    match name.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("'{}...'", &name[..at]),
        None => format!("'{name}'"),
    }
}
