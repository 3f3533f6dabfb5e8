//! Hessians: the mean of `x x^T` over the inputs `x` of a linear, or over its output gradients
//! (GPTQ, Frantar et al. 2022; YAQA, Tseng et al. 2025).
//!
//! ```text
//! sums      products of columns, summed by all threads in a fixed order
//! Store     a directory of Hessians, read by tensor name
//! PairSums  inputs of a linear in the original and in the rounded model, in memory
//! ```
//!
//! The last of every [`HELD_OUT`] chunks is not summed. Some of its rows are kept, so that a rounding
//! can be judged on activations that its Hessian has not seen.

mod pairs;
mod sample;
mod store;
pub mod sums;

pub use pairs::{PairMeans, PairSums};
pub use sample::Sample;
pub use store::{Hessian, Identity, Store, check_free, clear, holds_others};

/// The last of this number of chunks is held out.
pub const HELD_OUT: usize = 8;
/// Rows of held-out chunks that are saved of an input.
pub const SAMPLE: usize = 512;
/// The same of one expert.
pub const EXPERT_SAMPLE: usize = 128;
/// Fewer rows than these give an expert no sum of its own: beside the pooled one, it would weigh
/// nothing.
pub const LEAST_ROWS: u64 = 32;

/// Rows in a product, at least: each reads and writes the whole sum.
pub const TOGETHER: usize = 512;

/// Whether a chunk of `chunks` is held out: the last of every [`HELD_OUT`], or the last of fewer, if
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
