//! Hessians: the mean of `x x^T` over the inputs `x` of a linear, or over its output gradients
//! (GPTQ, Frantar et al. 2022; YAQA, Tseng et al. 2025).
//!
//! ```text
//! sums      column products, summed by all threads in a fixed order
//! Store     a directory of Hessians, read by tensor name
//! PairSums  inputs of a linear in the original and in the rounded model, in memory
//! ```
//!
//! The last of every [`HELD_OUT`] chunks is not summed. A sample of its rows is kept, so that a
//! rounding can be validated on activations that its Hessian does not contain.

mod pairs;
mod sample;
mod store;
pub mod sums;

pub use pairs::{PairMeans, PairSums};
pub use sample::Sample;
pub use store::{Hessian, Identity, Store, check_free, clear, clear_others};

/// One chunk in this many is held out, the last.
pub const HELD_OUT: usize = 8;
/// Held-out rows stored per input.
pub const SAMPLE: usize = 512;
/// Held-out rows stored per expert.
pub const EXPERT_SAMPLE: usize = 128;
/// Minimum rows for a separate sum of an expert: with fewer, its weight beside the pooled sum would
/// be negligible.
pub const LEAST_ROWS: u64 = 32;

/// Most units of a text: each is summed apart, and its sums are as large as those of the whole text.
const UNITS: usize = 64;

/// Number of chunks in a unit of a text: sums start anew in each unit, and the units' sums are added
/// in order, so that units can be summed by different processes. Depends on the text alone.
pub fn unit_chunks(chunks: usize) -> usize {
    HELD_OUT * chunks.div_ceil(HELD_OUT * UNITS).max(1)
}

/// Minimum rows per product: each product reads and writes the whole sum.
pub const TOGETHER: usize = 512;

/// True if a chunk of `chunks` is held out: the last of every [`HELD_OUT`], or the last of fewer if
/// there are at least two.
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
    fn units_are_whole_groups_of_chunks() {
        assert_eq!(
            [1, 8, 9, 512, 513, 5000].map(unit_chunks),
            [8, 8, 8, 8, 16, 80]
        );
    }

    #[test]
    fn every_eighth_chunk_or_the_last_of_few_is_held_out() {
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
