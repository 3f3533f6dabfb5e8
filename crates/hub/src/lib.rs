//! `hf://`: models on the Hugging Face Hub, brought into the Hub's own cache.
//!
//! ```text
//! Address::parse   hf://ORG/NAME[@REVISION][/FILE], checked
//! Settings         where the Hub and the cache are, and the token: from the environment, as the Hub's own tools read it
//! fetch            the commit and the names of its files; those that a conversion reads; each into the cache
//! ```
//!
//! Everything that the server says is untrusted: names are compared with those that are known or
//! checked before they become a path, lengths bound what is read, and large files are checked
//! against their SHA-256. The cache is laid out as the Python library huggingface_hub does it, so
//! that either finds what the other has brought:
//!
//! ```text
//! models--ORG--NAME/refs/REVISION              the commit that a revision was at last
//! models--ORG--NAME/blobs/ETAG                 a file's bytes; ETAG is the SHA-256 of large files
//! models--ORG--NAME/blobs/ETAG.incomplete      the first part of them
//! models--ORG--NAME/snapshots/COMMIT/FILE      a link to ../../blobs/ETAG
//! .locks/models--ORG--NAME/ETAG.lock           held by whoever writes that blob
//! ```
//!
//! A download is the one kind of output that does not go through `format/output.rs`: its unfinished
//! file is kept, not removed, since it is what the next run goes on from.

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
