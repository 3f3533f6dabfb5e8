//! Errors of downloads, each with a remedy.

use quantier_gguf as format;
use std::path::PathBuf;

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// The page for access tokens.
const TOKENS: &str = "https://huggingface.co/settings/tokens";

/// Failure of a download.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A bad environment variable or access token.
    #[error("{0}")]
    Setting(String),
    /// 401 without a token.
    #[error(
        "{0}: the Hub asks who you are (401): the model does not exist, or is private or gated; check the name, and set \
         HF_TOKEN to a token that may read it ({TOKENS})"
    )]
    Unauthorized(String),
    /// 401 with a token.
    #[error(
        "{address}: the Hub does not know the token from {from} (401): it has expired or was mistyped; make a new one at \
         {TOKENS}"
    )]
    BadToken {
        /// The requested address.
        address: String,
        /// Origin of the token: a variable or a file.
        from: String,
    },
    /// 403.
    #[error(
        "{address}: the Hub does not let you read it (403): accept the model's conditions at {page}, and use a token that \
         may read gated models"
    )]
    Forbidden {
        /// The requested address.
        address: String,
        /// The model's page.
        page: String,
    },
    /// 404 for the model.
    #[error("{0}: the Hub has no such model (404); check owner and name")]
    NoModel(String),
    /// 404 for the revision.
    #[error(
        "{0}: the model has no such branch, tag or commit (404); without @REVISION, main is taken"
    )]
    NoRevision(String),
    /// A file missing from the listing, or 404.
    #[error("{address}: the model has no file '{file}'{alternatives}")]
    NoFile {
        /// The requested address.
        address: String,
        /// The file.
        file: String,
        /// The alternatives, if any.
        alternatives: String,
    },
    /// 429, after all tries.
    #[error(
        "{0}: the Hub asks to slow down (429), also after several tries; wait some minutes and run again, which goes on \
         from what is there. With HF_TOKEN set, the Hub allows more"
    )]
    TooMany(String),
    /// Another status.
    #[error(
        "{address}: {url} answers with status {status}; try again later, which goes on from what is there"
    )]
    Status {
        /// The requested address.
        address: String,
        /// The answering URL, without its query.
        url: String,
        /// The status.
        status: u16,
    },
    /// No connection, or one that kept breaking.
    #[error(
        "{address}: no connection to {host} that lasts: {why}; check the network, HF_ENDPOINT and HTTPS_PROXY, and run \
         again, which goes on from what is there"
    )]
    Lost {
        /// The requested address.
        address: String,
        /// The server.
        host: String,
        /// The last reason.
        why: String,
    },
    /// `HF_HUB_OFFLINE` is set, and the model is not in the cache.
    #[error(
        "{address}: not, or not completely, in the cache {}, and HF_HUB_OFFLINE forbids to ask the Hub; run once without it",
        cache.display()
    )]
    Offline {
        /// The requested address.
        address: String,
        /// The cache.
        cache: PathBuf,
    },
    /// An invalid answer of the server.
    #[error("{address}: {what}")]
    Answer {
        /// The requested address.
        address: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// Two downloads with the wrong SHA-256.
    #[error(
        "{address}: {file} arrived twice with a SHA-256 of {actual} where the Hub says {expected}; nothing of it was kept. A proxy \
         may change it on the way"
    )]
    Sum {
        /// The requested address.
        address: String,
        /// The file.
        file: String,
        /// Its sum.
        actual: String,
        /// The sum that the Hub states.
        expected: String,
    },
    /// No usable model in the repository.
    #[error("{address}: {what}")]
    Unusable {
        /// The requested address.
        address: String,
        /// The reason and the remedy.
        what: String,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// Stopped from outside.
    #[error("stopped; what was downloaded is kept, and the same command goes on from there")]
    Stopped,
}
