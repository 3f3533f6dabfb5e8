//! BitNet's packed ternary weights: four rows in a byte, two bits each, and one scale that divides.
//!
//! ```text
//! weight (i, j) = (bits 2k and 2k + 1 of byte (i mod r, j) - 1) / scale      r = rows / 4, k = i / r; in f32
//! ```

use super::{Fault, Raw};
use crate::format::map::Map;
use crate::format::safetensors::Dtype;
use std::ops::Range;

/// Packed ternary weights.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::convert) struct Ternary {
    codes: Raw,
    scale: f32,
    packed_rows: u64,
    columns: u64,
}

impl Ternary {
    /// # Errors
    /// If the codes are no bytes of a matrix.
    pub(super) fn new(codes: Raw, scale: f32) -> Result<Ternary, String> {
        match (&*codes.shape, codes.dtype) {
            (&[packed_rows, columns], Dtype::U8 | Dtype::I8) => Ok(Ternary {
                codes,
                scale,
                packed_rows,
                columns,
            }),
            (shape, dtype) => Err(format!(
                "packed ternary weights are a matrix of bytes, and these are of type {dtype} and shape {shape:?}"
            )),
        }
    }

    /// The shape of the weights.
    pub(super) fn shape(&self) -> Vec<u64> {
        vec![self.packed_rows.saturating_mul(4), self.columns]
    }

    pub(super) fn raws(&self) -> Vec<&Raw> {
        vec![&self.codes]
    }

    pub(super) fn read(
        &self,
        maps: &[Map],
        elements: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Fault> {
        let codes = self.codes.bytes(maps);
        let packed = codes.len() as u64;
        let numbers = [-1.0f32, 0.0, 1.0, 2.0].map(|number| number / self.scale);
        for (weight, at) in out.iter_mut().zip(elements) {
            let byte = codes[(at % packed) as usize] >> (at / packed * 2);
            *weight = numbers[usize::from(byte & 3)];
        }
        Ok(())
    }
}
