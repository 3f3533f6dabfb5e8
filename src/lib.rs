//! Quantier turns a model checkpoint into the best GGUF for its size.
//!
//! This page is the map of the house. Data flows downwards; nothing imports upwards.
//!
//! | module | what it does | what it may touch |
//! |---|---|---|
//! | [`quant`] | block layouts, quantizers, dequantizers, block validation | numbers only |
//! | [`format`] | GGUF, safetensors, JSON and importance-matrix files, the table of tensor types | files |
//! | [`arch`] | the table of architectures: names, metadata and transforms of their tensors | format |
//! | [`convert`] | Hugging Face checkpoints to GGUF | arch, quant, format |

#![warn(missing_docs)]

pub mod arch;
pub mod convert;
pub mod format;
pub mod plan;
pub mod progress;
pub mod quant;
pub mod quantize;
pub mod verify;
