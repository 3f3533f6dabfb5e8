//! Collection of input and output Hessians; see [`quantier_round::hessian`] for sums and files.
//!
//! ```text
//! Needs::of   disk and memory costs, from the shapes of a model
//! Recorder    sums while an importance matrix is collected: each distinct input once, by layer
//! ```

mod collect;
mod needs;
mod parts;

pub use collect::Recorder;
pub use collect::Written;
pub use needs::Needs;
pub use needs::{check_room, gradient_bytes, input_of};
pub use quantier_round::hessian::{
    EXPERT_SAMPLE, HELD_OUT, Hessian, Identity, LEAST_ROWS, SAMPLE, Store, clear, clear_others,
    is_held_out, unit_chunks,
};

use quantier_gguf::snapshot::Key;
use std::path::PathBuf;

/// The Hessians to collect, and their directory.
#[derive(Clone, Debug)]
pub struct Job {
    /// The directory; created if missing.
    pub directory: PathBuf,
    /// Key of everything that the Hessians depend on. A directory with another key is refused.
    pub key: Key,
    /// True if each expert gets a separate sum beside that of the tensor; see [`Needs`].
    pub experts_apart: bool,
    /// True for inputs: [some chunks](is_held_out) are held out of the sums for validation, and the sums
    /// start anew in each [unit](unit_chunks) of the text.
    pub hold_out: bool,
}
