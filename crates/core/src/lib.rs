//! What every crate of Quantier may use: progress of long jobs, and words in messages.

#![warn(missing_docs, unreachable_pub)]

pub mod progress;
#[doc(hidden)]
pub mod rng;
pub mod turns;
pub mod words;
