//! Perplexity and KL divergence: selection of scored tokens, scores of rows of logits, and
//! statistics over all rows.
//!
//! [`windows`] splits the text into chunks; the model computes one row of `[n_vocab]` logits per
//! scored position; [`score`] reduces each row to a few numbers, on any number of threads;
//! [`statistics`] summarizes them; [`paired`] compares two models row by row.
//!
//! All figures are those of llama-perplexity, with its names.

pub mod measure;
pub mod paired;
pub mod score;
pub mod statistics;
pub mod windows;
