//! Operations of a decoder on rows of f32, each with its derivative.
//!
//! A derivative takes the operation's inputs and the gradient of its output, and returns the
//! gradients of the inputs. `tests` compares all derivatives with finite differences, in one table.

pub(super) mod activation;
pub(super) mod attention;
pub(super) mod convolution;
pub(super) mod delta;
pub(super) mod elementwise;
pub(super) mod length;
pub(super) mod mixing;
pub(super) mod norm;
mod order;
pub(super) mod product;
pub(super) mod rope;
pub(super) mod router;
mod scan;
pub(super) mod selective;
pub(super) mod shift;
pub(super) mod sparse;
pub(super) mod ssd;
#[cfg(test)]
pub(super) mod tests;
pub(super) mod wkv;
