//! Quantier turns a model checkpoint into the best GGUF for its size.
//!
//! This page is the map of the house. Data flows downwards; nothing imports upwards.
//!
//! | module | what it does | what it may touch |
//! |---|---|---|
//! | [`quant`] | block layouts, quantizers, dequantizers, block validation | numbers only |
//! | [`format`] | GGUF and importance-matrix files, the table of tensor types | files |
//! | [`tokenizer`] | vocabularies: Hugging Face tokenizer files to GGUF metadata | files |

#![warn(missing_docs)]

pub mod convert;
pub mod format;
pub mod plan;
pub mod progress;
pub mod quant;
pub mod quantize;
pub mod tokenizer;
pub mod verify;
