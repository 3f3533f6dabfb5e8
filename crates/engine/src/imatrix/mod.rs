//! Importance matrices: sums of squared activations, with merging, coverage and statistics.

pub mod collect;
pub mod coverage;
pub mod statistics;
pub mod sums;
