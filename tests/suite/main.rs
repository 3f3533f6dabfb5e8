//! The tests of the program, in one binary, so that it is linked once.
//!
//! ```text
//! cargo test --release --test suite                      all of them
//! cargo fast                                             all but slow::, of every crate, without --release
//! cargo test --release --test suite make::               one module
//! ```

mod adapters;
mod cli;
#[cfg(unix)]
mod cli_failures;
#[cfg(unix)]
mod config;
mod convert;
mod convert_golden;
mod diff;
mod drafts;
mod engine;
mod evaluate;
mod evaluate_failures;
mod experts;
mod fuzz_seeds;
#[cfg(unix)]
mod hessian;
#[cfg(all(unix, feature = "hub"))]
mod hub;
mod imatrix_failures;
mod logits_vs_reference;
mod nextn;
mod ollama_templates;
mod projector;
mod quantized;
#[cfg(unix)]
mod set;
mod slow;
#[cfg(unix)]
mod split;
mod support;
mod tasks;
mod tune;
mod unusual_inputs;
mod vocabulary;
