//! A Hugging Face checkpoint becomes a GGUF.

pub mod general;
