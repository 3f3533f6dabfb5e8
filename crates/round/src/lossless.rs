//! Types that represent a tensor without loss.

use crate::{Result, Rounder};
use quantier_blocks::Codec;
use quantier_gguf::reader::{Tensor, TensorReader};
use quantier_gguf::types::GgmlType;

/// Number of rows checked.
const SAMPLE: u64 = 16;

/// The smallest type that represents a tensor without loss, judged by a sample of evenly spaced
/// rows: the tensor's own type if that is quantized, a type whose grid contains the checkpoint's
/// weights, or none.
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
        // From the last row backwards.
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
