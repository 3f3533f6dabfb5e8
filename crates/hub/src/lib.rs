//! `hf://`: models on the Hugging Face Hub, downloaded into the Hub's own cache.
//!
//! ```text
//! Address::parse   hf://ORG/NAME[@REVISION][/FILE], checked
//! Settings         endpoint, cache and access token, from the environment variables of the Hub's own tools
//! fetch            list the files of a commit, choose the ones for a conversion, download each into the cache
//! ```
//!
//! Answers of the server are untrusted: names are checked before they become paths, every read is
//! bounded, and large files are checked against their SHA-256. The cache has the layout of the
//! Python library huggingface_hub, and shares its downloads:
//!
//! ```text
//! models--ORG--NAME/refs/REVISION              the last commit of a revision
//! models--ORG--NAME/blobs/ETAG                 the bytes of a file; ETAG is the SHA-256 of a large one
//! models--ORG--NAME/blobs/ETAG.incomplete      a partial download
//! models--ORG--NAME/snapshots/COMMIT/FILE      a link to ../../blobs/ETAG
//! .locks/models--ORG--NAME/ETAG.lock           locked by the writer of the blob
//! ```
//!
//! Downloads do not go through [`quantier_gguf::output`]: a partial file is kept for the next run to
//! resume.

#![warn(unreachable_pub)]

mod address;
#[cfg(feature = "hub")]
mod api;
#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod error;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod http;
#[cfg(feature = "hub")]
mod needed;
#[cfg(feature = "hub")]
mod settings;

pub use address::{Address, Origin, SCHEME, origin};
#[cfg(feature = "hub")]
pub use {
    error::{Error, Result},
    fetch::{Need, fetch},
    settings::{Settings, Token},
};
