//! What every crate of Quantier may use: progress of long jobs, thread pools, and words
//! in messages.

#![warn(missing_docs, unreachable_pub)]

pub mod progress;
#[doc(hidden)]
pub mod rng;
pub mod threads;
pub mod turns;
pub mod words;
