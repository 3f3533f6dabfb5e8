//! What several test programs share.
#![allow(dead_code)] // each test program uses a part of it

pub mod ggml;
pub mod gguf;
pub mod hub;
pub mod inputs;
pub mod models;
pub mod program;
pub mod text;
