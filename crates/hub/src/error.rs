//! Download errors, each with a remedy.

use quantier_gguf as format;
use std::path::PathBuf;

/// Result type of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Page for access tokens.
const TOKENS: &str = "https://huggingface.co/settings/tokens";

/// Failure of a download.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A bad environment variable or access token.
    #[error("{0}")]
    Setting(String),
    /// 401 without a token.
    #[error(
        "{0}: the Hub requires a login (401): the model does not exist, or is private or gated; check the name, and set \
         HF_TOKEN to a token with read access ({TOKENS})"
    )]
    Unauthorized(String),
    /// 401 with a token.
    #[error(
        "{address}: the Hub rejects the token from {from} (401): it has expired or was mistyped; create a new one at \
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
        "{address}: the Hub denies access (403): accept the model's conditions at {page}, and use a token that \
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
    #[error("{0}: the model has no such branch, tag or commit (404); the default is main")]
    NoRevision(String),
    /// A file missing from the listing, or 404.
    #[error("{address}: the model has no file '{file}'{alternatives}")]
    NoFile {
        /// The requested address.
        address: String,
        /// The file.
        file: String,
        /// Alternatives, if any.
        alternatives: String,
    },
    /// 429 after all tries.
    #[error(
        "{0}: the Hub's rate limit is exceeded (429), also after several tries; wait some minutes and run again, which resumes \
         the download. With HF_TOKEN set, the limit is higher"
    )]
    TooMany(String),
    /// Any other status.
    #[error(
        "{address}: {url} answers with status {status}; try again later, which resumes the download"
    )]
    Status {
        /// The requested address.
        address: String,
        /// The answering URL, without its query.
        url: String,
        /// The status.
        status: u16,
    },
    /// No connection, or repeated disconnections.
    #[error(
        "{address}: no stable connection to {host}: {why}; check the network, HF_ENDPOINT and HTTPS_PROXY, and run \
         again, which resumes the download"
    )]
    Lost {
        /// The requested address.
        address: String,
        /// The server.
        host: String,
        /// Reason of the last failure.
        why: String,
    },
    /// `HF_HUB_OFFLINE` is set, and the cache lacks the model.
    #[error(
        "{address}: not, or not completely, in the cache {}, and HF_HUB_OFFLINE forbids network requests; run once without it",
        cache.display()
    )]
    Offline {
        /// The requested address.
        address: String,
        /// The cache.
        cache: PathBuf,
    },
    /// Invalid answer of the server.
    #[error("{address}: {what}")]
    Answer {
        /// The requested address.
        address: String,
        /// Defect and remedy.
        what: String,
    },
    /// Wrong SHA-256 twice in a row.
    #[error(
        "{address}: {file} was downloaded twice with SHA-256 {actual}, but the Hub states {expected}; the download was discarded. A proxy \
         may change it on the way"
    )]
    Sum {
        /// The requested address.
        address: String,
        /// The file.
        file: String,
        /// SHA-256 of the download.
        actual: String,
        /// SHA-256 stated by the Hub.
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
    /// Failure to read or write a file.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// Cancelled.
    #[error("stopped; finished downloads are kept, and the same command resumes")]
    Stopped,
}
