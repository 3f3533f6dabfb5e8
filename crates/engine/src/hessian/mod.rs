//! Input and output Hessians while they are collected; see [`quantier_round::hessian`] for their
//! sums and files.
//!
//! ```text
//! Needs::of   bytes on the disk and in memory, from the shapes of a model alone
//! Recorder    sums while an importance matrix is collected: each distinct input once, layer by layer
//! ```

mod collect;
mod needs;

pub use collect::Recorder;
pub use collect::Written;
pub use needs::Needs;
pub use needs::{check_room, gradient_bytes, input_of};
pub use quantier_round::hessian::{
    EXPERT_SAMPLE, HELD_OUT, Hessian, Identity, LEAST_ROWS, SAMPLE, Store, clear, holds_others,
    is_held_out,
};

use quantier_gguf::snapshot::Key;
use std::path::PathBuf;

/// The Hessians to collect, and their directory.
#[derive(Clone, Debug)]
pub struct Job {
    /// The directory; it is made if it is missing.
    pub directory: PathBuf,
    /// All that the Hessians depend on. A directory with those of another key is refused.
    pub key: Key,
    /// Whether each expert gets a sum of its own, not only all of a tensor together; see [`Needs`].
    pub experts_apart: bool,
    /// Whether [some chunks](is_held_out) are left out of the sums, to judge by.
    pub hold_out: bool,
}
