//! Perplexity and KL divergence: selection of scored tokens, scores of rows of logits, and
//! statistics over all rows.
//!
//! [`windows`] splits the text into chunks, [`sequences`] hold them or others with their scored positions; the
//! model computes one row of `[n_vocab]` logits per
//! scored position; [`score`] reduces each row to a few numbers, on any number of threads;
//! [`statistics`] summarizes them; [`positions`] shows where they lie; [`paired`] compares two models row by row;
//! [`tasks`] are multiple choices by log-likelihood; [`embeddings`] compare models that predict no tokens.
//!
//! Figures of tokens are those of llama-perplexity, with its names.

pub mod embeddings;
pub mod measure;
pub mod paired;
pub mod positions;
pub mod score;
pub mod sequences;
pub mod statistics;
pub mod tasks;
pub mod windows;
