//! Importance matrices: sums of squared activations, merged, judged and described.

pub mod collect;
pub mod coverage;
pub mod statistics;
pub mod sums;
