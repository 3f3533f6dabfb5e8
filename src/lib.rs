//! Quantier turns a model checkpoint into the best GGUF for its size.
//!
//! This page is the map of the house. Data flows downwards; nothing imports upwards.
//!
//! | module | what it does | what it may touch |
//! |---|---|---|
//! | [`make`] | the main job, to be read top-down like a story: measure, choose, write, prove, report | files, through `format` |
//! | [`publish`] | from what `make` wrote to a directory for the Hub: card, Modelfiles, sums; chat templates linted and taken apart | files, through `format`; it links and renames |
//! | [`convert`], [`quantize`], [`verify`] | the other pipelines | files, through `format` |
//! | [`edit`] | models cut into shards, joined, or under other metadata; tensors as they are | files, through `format` |
//! | [`diff`] | what two models differ in: metadata, shapes, types, the error of every tensor | weights, through `input` |
//! | [`rounding`] | rows of weights to blocks, with error feedback: each error is compensated in the weights not yet rounded; Hessians and their files | numbers; a directory, through `format` |
//! | [`sensitivity`] | the nats that every type costs in every tensor, from gradients and real quantized bytes | weights, through `input`; what a killed run has kept |
//! | [`hub`] | `hf://`: models on the Hugging Face Hub, into its own cache | the network; the cache |
//! | [`input`] | a model to be read: a GGUF, or a checkpoint that is converted on the fly | files, through `format` |
//! | [`hessian`] | input and output Hessians while they are collected | numbers and names; a directory, through `format` |
//! | [`imatrix`] | sums of squared activations: collecting, merging, coverage, statistics | numbers and names; `model` to collect |
//! | [`evaluate`] | scored tokens, rows of logits and statistics: perplexity, KL divergence | numbers; a logits file's layout |
//! | [`arch`] | the table of architectures: names, metadata and transforms of their tensors | the names and shapes of a checkpoint |
//! | [`report`] | the evidence: the frontier's JSON, pictures, the page, the table for a terminal | nothing: data in, text out |
//! | [`tokenizer`] | vocabularies: Hugging Face tokenizer files to GGUF metadata | tokenizer files |
//! | [`model`] | the engine: forward and backward passes layer by layer over all chunks, taps on linears, sequential rounding | weights, through `input`; a temporary file |
//! | [`plan`] | numbers in, recipe out: roles, file types, preset rules, the frontier's solver | numbers and names only |
//! | [`quant`] | block layouts, quantizers, dequantizers, block validation | numbers only |
//! | [`mod@format`] | GGUF, safetensors, JSON and importance-matrix files, output files, the table of tensor types | files; the only reader of untrusted bytes |
//! | [`text`] | the built-in texts for calibration and evaluation, ten domains each | nothing |
//! | [`resume`] | long jobs that survive being killed | a snapshot beside the output, through `format` |
//! | [`simd`] | eight lanes of f32 with the same results on every CPU: plain, AVX2, NEON | nothing |
//! | [`progress`] | what a long job tells the one who started it, and how it is stopped | nothing |
//!
//! `src/main.rs` and `src/cli/` are the program: one file per command, and the only place that
//! prints.

#![warn(missing_docs)]

pub mod convert;
pub mod diff;
pub mod edit;
pub mod input;
pub mod make;
pub mod publish;
pub mod quantize;
pub mod sensitivity;
pub mod text;
pub mod verify;

pub use quantier_allocate as plan;
pub use quantier_arch as arch;
pub use quantier_blocks as quant;
pub use quantier_blocks::simd;
pub use quantier_core::progress;
pub use quantier_engine::{evaluate, hessian, imatrix, model, resume};
pub use quantier_gguf as format;
pub use quantier_hub as hub;
pub use quantier_report as report;
pub use quantier_round as rounding;
pub use quantier_tokenizer as tokenizer;
