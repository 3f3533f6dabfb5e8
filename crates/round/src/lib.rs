//! Rounding of weights to the blocks of llama.cpp's types, with error feedback.
//!
//! ```text
//! Rounder          rows of weights and calibration data in, blocks out; used for all rounding
//! Weights          a tensor with its importance, rounded as a whole or band by band
//! lossless_type    the type that represents a tensor without loss
//! InputHessians    a directory of input Hessians
//! InputStatistics  for one matrix: factored Hessian, held-out inputs, target shift
//! InputFactor      coupling of errors between columns (GPTQ)
//! OutputFactor     coupling of errors between rows (YAQA)
//! Prior, Importance  statistics of experts, shrunk towards those of all
//! hessian          sums, files and pairs of Hessians
//! matrix           dense matrices in slices, and their products
//! ```
//!
//! The result is plain blocks: a type defines the values that a weight can take, and error feedback
//! chooses among them. See [`quantier_blocks`] for rounding within a block.

#![warn(missing_docs, unreachable_pub)]

mod directory;
mod extension;
mod factor;
mod feedback;
pub mod hessian;
mod lossless;
pub mod matrix;
mod output;
mod proof;
mod rounder;
mod shrinkage;
mod statistics;
mod tensor;
#[cfg(test)]
mod tests;

pub use directory::InputHessians;
pub use factor::{DAMPING, InputFactor, NoFactor};
pub use lossless::lossless_type;
pub use output::OutputFactor;
pub use proof::{Proof, TensorProof, spread};
pub use rounder::{Knowledge, Rounder, Rounding, Stopped};
pub use shrinkage::{Importance, Prior};
pub use statistics::InputStatistics;
pub use tensor::{Error, MatrixKnowledge, Result, Target, Weights};
