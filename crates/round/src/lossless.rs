//! Tensors that a type holds without loss.

use crate::{Result, Rounder};
use quantier_blocks::Codec;
use quantier_gguf::reader::{Tensor, TensorReader};
use quantier_gguf::types::GgmlType;

/// Rows that are looked at.
const SAMPLE: u64 = 16;

/// The smallest type that holds a tensor without loss, as far as some of its rows tell, which are
/// spread over all of it: its own if that has blocks, one on whose grid the weights of a checkpoint
/// lie, or none.
///
/// # Errors
/// Weights that cannot be read.
pub fn lossless_type(reader: &TensorReader<'_>, tensor: &Tensor<'_>) -> Result<Option<GgmlType>> {
    let own = tensor.info.ggml_type;
    if own.is_quantized() {
        return Ok(Some(own));
    }
    let row_len = tensor.info.shape.row_len() as usize;
    let mut rounders: Vec<_> = Codec::all()
        .iter()
        .filter(|codec| codec.ggml_type.bpw() < own.bpw())
        .filter_map(|codec| Rounder::new(codec.ggml_type, row_len))
        .collect();
    rounders.sort_by(|a, b| a.ggml_type().bpw().total_cmp(&b.ggml_type().bpw()));
    let (rows, mut row, mut blocks) = (tensor.info.shape.rows(), vec![0.0; row_len], Vec::new());
    let mut has_weights = false;
    for sample in 0..SAMPLE.min(rows) {
        // The last row of the last part first.
        let at = rows - 1 - sample * rows / SAMPLE.min(rows);
        reader.widen_here(tensor, at..at + 1, &mut row)?;
        has_weights |= row.iter().any(|w| *w != 0.0);
        rounders.retain(|rounder| {
            blocks.resize(rounder.row_bytes(), 0);
            rounder.encode_lossless(&row, &mut blocks)
        });
        if rounders.is_empty() {
            break;
        }
    }
    let first = rounders.first().filter(|_| has_weights);
    Ok(first.map(Rounder::ggml_type))
}
