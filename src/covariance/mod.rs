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
mod pairs;
mod sample;
mod store;
mod sums;

pub(crate) use collect::Recorder;
pub use collect::Written;
pub use needs::Needs;
pub(crate) use needs::{check_room, gradient_bytes, input_of};
pub use pairs::Paired;
pub(crate) use pairs::Pairs;
pub use store::{Covariance, Identity, Store, clear, holds_others};

use crate::format::snapshot::Key;
use std::path::PathBuf;

/// Of so many chunks, the last is held out.
pub const HELD_OUT: usize = 8;
/// Rows of held-out chunks that are kept of an input.
pub const SAMPLE: usize = 512;
/// The same of one expert.
pub const EXPERT_SAMPLE: usize = 128;
/// Fewer rows than these give an expert no sum of its own: beside the pooled one, it would weigh
/// nothing.
pub const LEAST_ROWS: u64 = 32;

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

/// Whether a chunk of so many is held out: the last of every [`HELD_OUT`], or the last of fewer, if
/// there are two.
pub fn is_held_out(chunk: usize, chunks: usize) -> bool {
    match chunks {
        0 | 1 => false,
        2..HELD_OUT => chunk + 1 == chunks,
        _ => chunk % HELD_OUT == HELD_OUT - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_eight_chunks_is_held_out_or_the_last_of_few() {
        let held = |chunks: usize| {
            (0..chunks)
                .filter(|c| is_held_out(*c, chunks))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            [held(1), held(2), held(7), held(8), held(17)],
            [vec![], vec![1], vec![6], vec![7], vec![7, 15]]
        );
    }
}
