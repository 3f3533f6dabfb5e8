//! Files: GGUF, safetensors, JSON and the importance matrix. The only readers of untrusted bytes.
//!
//! Everything is checked once, where it is read; what comes out can be used without further checks.
//! A file that lies gives an [`Error`] with the name of the bad thing and its place, never a panic,
//! and never an allocation larger than the file itself warrants.

pub mod gguf;
pub mod hessian;
pub mod imatrix;
pub mod index;
pub mod json;
pub mod logits;
pub mod map;
pub mod output;
pub mod reader;
pub mod safetensors;
pub mod snapshot;

pub use quantier_blocks::types;

use byteorder::{ByteOrder, LittleEndian};
use std::path::PathBuf;

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Bytes in hexadecimal, as checksums are written.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Numbers as a little-endian file holds them.
fn le_bytes(numbers: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * numbers.len()];
    LittleEndian::write_f32_into(numbers, &mut bytes);
    bytes
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: open, read, write, rename.
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
    /// The bytes are not what the format allows.
    #[error("{}: {what}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong, where, and what to do.
        what: String,
    },
    /// Not enough room for what is about to be written.
    #[error("{} needs {needed} bytes and only {free} are free there; make room or choose another directory", path.display())]
    NoSpace {
        /// The file that would be written.
        path: PathBuf,
        /// Bytes that it will have.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// An output that is there already and would be replaced.
    #[error("{} exists already; choose another output, or replace it with --force", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// An output that would destroy an input.
    #[error("{} is an input of this command and would be overwritten; choose another output", path.display())]
    OutputIsInput {
        /// The file.
        path: PathBuf,
    },
}

/// A name in quotes for an error: a file can claim names as long as itself.
pub fn shown(name: &str) -> String {
    const SHOWN: usize = 100;
    match name.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("'{}...'", &name[..at]),
        None => format!("'{name}'"),
    }
}
