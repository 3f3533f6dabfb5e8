//! Shared by all crates: progress of long jobs, thread pools, ordering of parallel results, random
//! numbers for tests, and formatting for messages.

#![warn(missing_docs, unreachable_pub)]

pub mod progress;
#[doc(hidden)]
pub mod rng;
pub mod threads;
pub mod turns;
pub mod words;
