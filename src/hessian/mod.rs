//! Covariances: the mean of `x x^T` over all that a matrix is multiplied by, for roundings that
//! make one weight's error good by the others (GPTQ, Frantar et al. 2022).
//!
//! ```text
//! Needs::of        bytes on the disk and in memory, from the shapes of a model alone
//! Recorder         sums while an importance matrix is collected: each distinct input once, a layer at a time
//! Store            a directory of them, to be read by tensor name
//! Pairs            of what matrices meet in two models, kept in memory
//! ```
//!
//! Of every [`HELD_OUT`] chunks the last is not summed. Some rows of it are kept as they are, so
//! that what is made of a covariance can be judged on activations that it has not seen.

mod collect;
mod needs;

pub(crate) use collect::Recorder;
pub use collect::Written;
pub use needs::Needs;
pub(crate) use needs::{check_room, gradient_bytes, input_of};
pub use quantier_round::hessian::{
    EXPERT_SAMPLE, HELD_OUT, Hessian, Identity, LEAST_ROWS, SAMPLE, Store, clear, holds_others,
    is_held_out,
};

use crate::format::snapshot::Key;
use std::path::PathBuf;

/// What to collect, and where it goes.
#[derive(Clone, Debug)]
pub struct Job {
    /// The directory; it is made if it is missing.
    pub directory: PathBuf,
    /// All that the covariances depend on. A directory that holds those of another key is refused.
    pub key: Key,
    /// Whether each expert gets a sum of its own, not only all of a tensor together; see [`Needs`].
    pub experts_apart: bool,
    /// Whether [some chunks](is_held_out) are left out of the sums, to judge by.
    pub hold_out: bool,
}
