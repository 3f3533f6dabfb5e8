//! Tests of the block formats from outside: golden vectors, instruction sets, properties, and the
//! real ggml beside them.

mod ggml;
mod golden;
mod inputs;
mod isa;
mod properties;
mod vs_ggml;
