//! Tiny files, models and servers for the tests.

pub mod allocation;
pub mod gguf;
pub mod hub;
pub mod models;
pub mod program;
pub mod text;
