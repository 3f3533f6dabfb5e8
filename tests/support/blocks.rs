//! What the tests of the block formats share; it needs nothing of the program but the formats.
#![allow(dead_code)] // each test program uses a part of it

#[path = "ggml.rs"]
pub mod ggml;
#[path = "inputs.rs"]
pub mod inputs;
