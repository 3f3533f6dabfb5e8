//! The engine: a model runs over a text layer by layer, each weight widened once, and statistics of
//! its linears are collected on the way.
//!
//! | module | what it does |
//! |---|---|
//! | [`model`] | the forward pass, the backward stream, sequential rounding |
//! | [`evaluate`] | scored tokens, rows of logits and statistics: perplexity, KL divergence |
//! | [`imatrix`] | importance matrices: collecting, merging, coverage, statistics |
//! | [`hessian`] | Hessians of inputs and outputs, collected |
//! | [`resume`] | long jobs that survive being killed |
//!
//! Below it: files ([`quantier_gguf`]), the catalog of a model ([`quantier_arch`]), products of
//! matrices ([`quantier_round::matrix`]).

#![warn(missing_docs, unreachable_pub)]

pub mod evaluate;
pub mod hessian;
pub mod imatrix;
pub mod model;
pub mod resume;
