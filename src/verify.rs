//! `verify`: validates every block of a model.
//!
//! The structure (offsets, overlaps, names, sizes) is checked when a model is opened.

use crate::format::gguf::Model;
use crate::format::{self, types::GgmlType};
use crate::progress::{Progress, Unit};
use crate::quant::{Codec, Fault};
use rayon::prelude::*;
use std::path::PathBuf;

/// Bytes validated between two checks for cancellation.
const BAND_BYTES: usize = 64 << 20;
/// Bytes per task of a thread.
const TASK_BYTES: usize = 1 << 20;

/// The first invalid block of a tensor.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BadTensor {
    /// The file.
    pub path: PathBuf,
    /// The tensor.
    pub tensor: String,
    /// Type of the tensor.
    pub ggml_type: String,
    /// Row of the block, counted over all matrices.
    pub row: u64,
    /// Index of the block in the tensor.
    pub block: u64,
    /// Fault of the block.
    pub fault: String,
}

/// Validates every block of every tensor, up to the first fault or, with `all`, the first fault of
/// each tensor. `None` after cancellation.
///
/// # Errors
/// A file that becomes shorter during validation.
pub fn verify(
    model: &Model,
    all: bool,
    progress: &dyn Progress,
) -> format::Result<Option<Vec<BadTensor>>> {
    let (mut bad, mut buffer) = (Vec::new(), Vec::new());
    progress.begin(
        model.tensors.iter().map(|t| t.info.bytes()).sum(),
        Unit::Bytes,
    );
    for tensor in &model.tensors {
        let info = &tensor.info;
        let map = &model.files.maps()[tensor.shard];
        progress.at(&info.name);
        let block_bytes = info.ggml_type.block_bytes();
        let whole_blocks = |bytes: usize| (bytes / block_bytes).max(1) * block_bytes;
        let bytes = info.bytes() as usize;
        for start in (0..bytes).step_by(whole_blocks(BAND_BYTES)) {
            if progress.cancelled() {
                return Ok(None);
            }
            let end = bytes.min(start + whole_blocks(BAND_BYTES));
            let band = tensor.read(start..end, &mut buffer)?;
            let first = (start / block_bytes) as u64;
            let found = first_fault(info.ggml_type, band, whole_blocks(TASK_BYTES));
            progress.advance(band.len() as u64);
            if let Some((block, fault)) = found {
                let block = first + block as u64;
                let row = block * info.ggml_type.block_len() as u64 / info.shape.row_len();
                bad.push(BadTensor {
                    path: map.path().to_owned(),
                    tensor: info.name.to_string(),
                    ggml_type: info.ggml_type.to_string(),
                    row,
                    block,
                    fault: fault.to_string(),
                });
                break;
            }
        }
        if !all && !bad.is_empty() {
            break;
        }
    }
    Ok(Some(bad))
}

fn first_fault(ggml_type: GgmlType, bytes: &[u8], task_bytes: usize) -> Option<(usize, Fault)> {
    let codec = Codec::of(ggml_type)?;
    let per_task = task_bytes / ggml_type.block_bytes();
    bytes
        .par_chunks(task_bytes)
        .enumerate()
        .find_map_first(|(i, chunk)| {
            codec
                .first_fault(chunk)
                .map(|(block, fault)| (i * per_task + block, fault))
        })
}
