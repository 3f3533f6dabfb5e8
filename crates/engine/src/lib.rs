//! The engine: runs a model over a text layer by layer, widening each weight once, and collects
//! statistics of its linears.
//!
//! | module | contents |
//! |---|---|
//! | [`model`] | forward pass, backward stream, sequential rounding |
//! | [`evaluate`] | scored tokens, rows of logits and statistics: perplexity, KL divergence |
//! | [`imatrix`] | importance matrices: collecting, merging, coverage, statistics |
//! | [`hessian`] | collection of input and output Hessians |
//! | [`resume`] | snapshots of long jobs |
//!
//! Built on files ([`quantier_gguf`]), the catalog of a model ([`quantier_arch`]) and matrix
//! products ([`quantier_round::matrix`]).

#![warn(missing_docs, unreachable_pub)]

pub mod evaluate;
pub mod hessian;
pub mod imatrix;
pub mod model;
pub mod resume;
