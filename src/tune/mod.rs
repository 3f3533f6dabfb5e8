//! `tune`: trains what the blocks of a quantized file leave free, by KL divergence from its base.
//!
//! ```text
//! Corpus       the texts in chunks: for training, for decisions, for the report
//! Base         its activations before the output matrix, once, for all chunks and files
//! Parameters   norms, scales and codes of the file, with the state of their optimizers
//! steps        a batch: gradients, an update, new bytes; at intervals the divergence of held-out chunks
//! best         the bytes of the state with the least divergence there, written over a copy of the file
//! ```
//!
//! Only bytes of norms, of f16 scales and of codes change: the file keeps its layout. Mathematics and
//! limits are in docs/tuning.md.

mod adam;
mod blocks;
mod corpus;
mod parameters;
mod saved;
mod train;
mod write;

pub use corpus::{Corpus, Text};
pub use parameters::Kinds;
pub use train::{Base, Job, Model, Outcome, Point, TextOutcome, Work, check};
pub use write::{Targets, targets};

use crate::evaluate::windows;
use crate::{format, model};
use std::path::PathBuf;

/// Settings of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The parameters to train.
    pub kinds: Kinds,
    /// Number of steps, if nothing stops the run earlier.
    pub steps: usize,
    /// Chunks of each step.
    pub batch: usize,
    /// Learning rates.
    pub rates: Rates,
    /// Seed of the order of the chunks.
    pub seed: u64,
}

/// Learning rates by kind of parameter: about the change of each parameter in one step, at the peak
/// of the schedule, for a file at [`Rates::NATS`] from its base. They are in proportion to the square
/// root of the divergence, and halved where held-out chunks rise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of norms and biases, relative to the root mean square of the tensor.
    pub norms: f32,
    /// Of the logarithms of scales.
    pub scales: f32,
    /// Of weights, in steps of their codes.
    pub codes: f32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            kinds: Kinds::default(),
            steps: 400,
            batch: 4,
            rates: Rates::default(),
            seed: 1,
        }
    }
}

impl Rates {
    /// The divergence in nats that the rates are for.
    pub const NATS: f64 = 0.1;
}

impl Default for Rates {
    fn default() -> Rates {
        Rates {
            norms: 4.5e-3,
            scales: 4.5e-3,
            codes: 0.02,
        }
    }
}

/// Errors of a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Models that do not belong together, with all reasons.
    #[error(
        "{file} is not a quantized form of {base}:\n{reasons}\nGive the model that it was made from"
    )]
    Unrelated {
        /// The base.
        base: String,
        /// The quantized file.
        file: String,
        /// One reason per line.
        reasons: String,
    },
    /// Too few tokens.
    #[error(
        "the text{} {tokens} tokens for {purpose}, and {needed} are needed; give more text: at least {total} tokens in all",
        if *.texts == 1 { " has" } else { "s have together" }
    )]
    TooShort {
        /// Number of texts.
        texts: usize,
        /// Their tokens.
        tokens: usize,
        /// What the tokens are for.
        purpose: &'static str,
        /// Tokens needed for that.
        needed: usize,
        /// Tokens needed in all.
        total: usize,
    },
    /// Conversations that cannot be rendered.
    #[error("{name}: {what}")]
    Conversations {
        /// Name of the text.
        name: String,
        /// The fault.
        what: String,
    },
    /// A context too short to be run.
    #[error("{0}")]
    Context(windows::Error),
    /// Text for training that is also held out.
    #[error(
        "{held_out} with {training}; what is trained on cannot judge: take such passages out of one of them"
    )]
    Shared {
        /// The held-out text.
        held_out: crate::text::Shared,
        /// The training text.
        training: String,
    },
    /// Nothing in the file can be trained.
    #[error(
        "{0}: nothing to tune: the file has no types with f16 scales or codes, and no norms that the chosen kinds include"
    )]
    Nothing(String),
    /// A model cannot be run.
    #[error("{name}: {error}")]
    Model {
        /// The model.
        name: String,
        /// The error.
        error: model::Error,
    },
    /// A snapshot that does not fit its run.
    #[error("the snapshot of the run: {0}; remove it")]
    Snapshot(String),
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// Files that cannot be written as asked.
    #[error("{path}: {what}")]
    Output {
        /// The file.
        path: PathBuf,
        /// The reason.
        what: &'static str,
    },
    /// Cancelled.
    #[error("stopped; nothing was written")]
    Cancelled,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the model of an error.
fn named(name: &str) -> impl Fn(model::Error) -> Error + '_ {
    move |error| match error {
        model::Error::Cancelled => Error::Cancelled,
        error => Error::Model {
            name: name.to_owned(),
            error,
        },
    }
}
