//! Numbers of an evaluation, without the model that makes them: which tokens are scored, what one
//! row of logits says, and what all rows say together.
//!
//! The story of a measurement: [`windows`] cuts the text into chunks; the model gives one row of
//! `[n_vocab]` logits for each scored position; [`score`] makes a few numbers of each row, on as
//! many threads as the caller likes; and [`statistics`] makes a table of them.
//!
//! All figures are those of llama-perplexity, under the same names.

pub mod measure;
pub mod score;
pub mod statistics;
pub mod windows;
