//! What can go wrong with a download, each with what to do about it.

use quantier_gguf as format;
use std::path::PathBuf;

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Where tokens are made.
const TOKENS: &str = "https://huggingface.co/settings/tokens";

/// Why a model could not be brought here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A variable of the environment, or the token, is wrong.
    #[error("{0}")]
    Setting(String),
    /// 401 without a token.
    #[error(
        "{0}: the Hub asks who you are (401): the model does not exist, or is private or gated; check the name, and set \
         HF_TOKEN to a token that may read it ({TOKENS})"
    )]
    WhoAreYou(String),
    /// 401 with a token.
    #[error(
        "{address}: the Hub does not know the token from {from} (401): it has expired or was mistyped; make a new one at \
         {TOKENS}"
    )]
    BadToken {
        /// What was asked for.
        address: String,
        /// Where the token came from.
        from: String,
    },
    /// 403.
    #[error(
        "{address}: the Hub does not let you read it (403): accept the model's conditions at {page}, and use a token that \
         may read gated models"
    )]
    Forbidden {
        /// What was asked for.
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
    /// A file that is not in the listing, or 404 for it.
    #[error("{address}: the model has no file '{file}'{there}")]
    NoFile {
        /// What was asked for.
        address: String,
        /// The file.
        file: String,
        /// What there is instead, if that helps.
        there: String,
    },
    /// 429 to the end.
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
        /// What was asked for.
        address: String,
        /// Who answered.
        url: String,
        /// The status.
        status: u16,
    },
    /// No connection, or one that breaks again and again.
    #[error(
        "{address}: no connection to {host} that lasts: {why}; check the network, HF_ENDPOINT and HTTPS_PROXY, and run \
         again, which goes on from what is there"
    )]
    Lost {
        /// What was asked for.
        address: String,
        /// Who was asked.
        host: String,
        /// The last reason.
        why: String,
    },
    /// `HF_HUB_OFFLINE`, and the cache has not got it.
    #[error(
        "{address}: not, or not completely, in the cache {}, and HF_HUB_OFFLINE forbids to ask the Hub; run once without it",
        cache.display()
    )]
    Offline {
        /// What was asked for.
        address: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The server says what cannot be.
    #[error("{address}: {what}")]
    Answer {
        /// What was asked for.
        address: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// Two downloads with the wrong SHA-256.
    #[error(
        "{address}: {file} arrived twice with a SHA-256 of {is} where the Hub says {should}; nothing of it was kept. A proxy \
         may change it on the way"
    )]
    Sum {
        /// What was asked for.
        address: String,
        /// The file.
        file: String,
        /// Its sum.
        is: String,
        /// What the Hub said.
        should: String,
    },
    /// Nothing in the repository can be used.
    #[error("{address}: {what}")]
    Unusable {
        /// What was asked for.
        address: String,
        /// Why, and what to do.
        what: String,
    },
    /// The disk.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// Stopped from outside.
    #[error("stopped; what was downloaded is kept, and the same command goes on from there")]
    Stopped,
}
