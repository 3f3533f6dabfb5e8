//! Tiny files, models and servers for the tests.

#[path = "../../../crates/gguf/tests/gguf/allocation.rs"]
pub mod allocation;
#[path = "../../../crates/gguf/tests/gguf/files.rs"]
pub mod gguf;
pub mod hub;
pub mod models;
pub mod program;
pub mod text;
#[path = "../../../crates/gguf/tests/gguf/torch_files.rs"]
pub mod torch;
