//! Integration tests of the block formats: golden vectors, instruction sets, properties, and
//! comparison with the real ggml.

mod ggml;
mod golden;
mod inputs;
mod isa;
mod properties;
mod vs_ggml;
