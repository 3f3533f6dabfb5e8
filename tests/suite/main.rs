//! The tests of the program, in one test program, so that it is linked once.
//!
//! ```text
//! cargo test --release --test suite                      all of them
//! cargo test --release --test suite -- --skip slow::     those that take no more than some seconds
//! cargo test --release --test suite make::               one module
//! ```

mod cli;
#[cfg(unix)]
mod cli_failures;
#[cfg(unix)]
mod config;
mod convert;
mod convert_golden;
mod diff;
#[cfg(unix)]
mod documented;
mod engine;
mod evaluate;
mod evaluate_failures;
#[cfg(unix)]
mod feedback;
mod fuzz_seeds;
#[cfg(unix)]
mod hessian;
#[cfg(all(unix, feature = "hub"))]
mod hub;
#[cfg(unix)]
mod imatrix;
mod imatrix_failures;
mod logits_vs_reference;
#[cfg(unix)]
mod make;
mod make_proof;
mod ollama_templates;
#[cfg(unix)]
mod publish;
#[cfg(unix)]
mod sequential;
#[cfg(unix)]
mod set;
#[cfg(unix)]
mod split;
mod support;
mod vocabulary;
