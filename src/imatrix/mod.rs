//! Importance matrices: sums of squared activations, merged, judged and described.

pub mod collect;
pub mod coverage;
pub mod statistics;
pub mod sums;

/// Whether statistics of this matrix are collected: those of the blocks, and with `process_output`
/// (llama-imatrix's `--process-output`) those of `output.weight`. Tensors of experts are collected
/// whatever their name.
pub fn collected(name: &str, process_output: bool) -> bool {
    name.starts_with("blk.") || (process_output && name == "output.weight")
}
