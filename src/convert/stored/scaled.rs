//! Numbers of 8 bits under scales: FP8 in blocks, rows and tensors, and integers without groups.
//!
//! ```text
//! weight (m, i, j) = (code (m, i, j) - zero point) * scale (m / matrices, i / rows, j / columns)        in f32
//! ```

use super::{Fault, Raw, Sign, check_scale};
use crate::format::map::Map;
use crate::format::safetensors::Dtype;
use std::ops::Range;

/// Scaled numbers of 8 bits.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::convert) struct Scaled {
    codes: Raw,
    scales: Raw,
    /// Zero points, one per scale.
    zeros: Option<Raw>,
    /// Rows and columns of a matrix.
    rows: u64,
    columns: u64,
    /// Matrices, rows and columns per scale.
    each: [u64; 3],
    /// Scales per matrix, and per row.
    per_matrix: u64,
    per_row: u64,
}

impl Scaled {
    /// # Errors
    /// If the scales do not match the codes.
    pub(super) fn new(
        codes: Raw,
        scales: Raw,
        zeros: Option<Raw>,
        block: Option<&[u64]>,
    ) -> Result<Scaled, String> {
        let rank = codes.shape.len();
        if !(1..=3).contains(&rank) || scales.shape.len() > rank {
            return Err(format!(
                "scales of shape {:?} and weights of shape {:?} are none that this format has",
                scales.shape, codes.shape
            ));
        }
        if let Some(zeros) = zeros.iter().find(|zeros| zeros.shape != scales.shape) {
            return Err(format!(
                "{} has shape {:?}, and the scales have {:?}",
                zeros.name, zeros.shape, scales.shape
            ));
        }
        let misfit = || {
            format!(
                "scales of shape {:?} ({}) do not fit weights of shape {:?}",
                scales.shape, scales.name, codes.shape
            )
        };
        // Scales with fewer dimensions belong to the first ones.
        let mut counts = scales.shape.clone();
        counts.resize(rank, 1);
        let mut each = Vec::new();
        match block {
            Some(block) => {
                let Some(first) = scales.shape.len().checked_sub(block.len()) else {
                    return Err(misfit());
                };
                for (i, (&count, &size)) in counts.iter().zip(&codes.shape).enumerate() {
                    let width = i.checked_sub(first).and_then(|i| block.get(i).copied());
                    // The last block may be partial.
                    match width.unwrap_or(1) {
                        width if count.saturating_mul(width) >= size => each.push(width),
                        _ => return Err(misfit()),
                    }
                }
            }
            None => {
                for (&count, &size) in counts.iter().zip(&codes.shape) {
                    match count {
                        1 => each.push(size.max(1)),
                        count if count == size => each.push(1),
                        _ => return Err(misfit()),
                    }
                }
            }
        }
        let three = |list: &[u64]| {
            let mut three = [1; 3];
            three[3 - list.len()..].copy_from_slice(list);
            three
        };
        let [_, rows, columns] = three(&codes.shape);
        let [_, per_column, per_row] = three(&counts);
        Ok(Scaled {
            codes,
            scales,
            zeros,
            rows,
            columns,
            each: three(&each),
            per_matrix: per_column * per_row,
            per_row,
        })
    }

    pub(super) fn raws(&self) -> Vec<&Raw> {
        [&self.codes, &self.scales]
            .into_iter()
            .chain(&self.zeros)
            .collect()
    }

    pub(super) fn read(
        &self,
        maps: &[Map],
        elements: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Fault> {
        self.codes.read(maps, elements.clone(), out);
        let sign = match self.codes.dtype {
            Dtype::I8 => Sign::Any,
            _ => Sign::Positive,
        };
        let [matrices_each, rows_each, columns_each] = self.each;
        let (mut at, mut rest) = (elements.start, out);
        while !rest.is_empty() {
            let (row, column) = (at / self.columns, at % self.columns);
            let (matrix, row) = (row / self.rows, row % self.rows);
            let len = (self.columns - column).min(columns_each - column % columns_each);
            let len = (len as usize).min(rest.len());
            let index = matrix / matrices_each * self.per_matrix
                + row / rows_each * self.per_row
                + column / columns_each;
            let scale = self.scales.number(maps, index);
            let (here, later) = rest.split_at_mut(len);
            if let Some(zeros) = &self.zeros {
                let zero = zeros.number(maps, index);
                here.iter_mut().for_each(|code| *code -= zero);
            }
            check_scale(scale, sign, here).map_err(|what| Fault { element: at, what })?;
            here.iter_mut().for_each(|weight| *weight *= scale);
            rest = later;
            at += len as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(codes: &[u64], scales: &[u64], block: Option<&[u64]>) -> Result<Scaled, String> {
        let raw = |name: &str, dtype, shape| Raw::made(name, dtype, shape);
        let codes = raw("a.weight", Dtype::F8E4m3, codes);
        Scaled::new(
            codes,
            raw("a.weight_scale", Dtype::F32, scales),
            None,
            block,
        )
    }

    #[test]
    fn scales_are_matched_to_blocks_rows_and_tensors() {
        let each =
            |codes: &[u64], scales: &[u64], block| scaled(codes, scales, block).map(|s| s.each);
        let block: &[u64] = &[128, 128];
        assert_eq!(each(&[256, 300], &[2, 3], Some(block)), Ok([1, 128, 128]));
        assert_eq!(
            each(&[4, 256, 300], &[4, 2, 3], Some(block)),
            Ok([1, 128, 128])
        );
        assert_eq!(each(&[256, 300], &[], None), Ok([1, 256, 300]));
        assert_eq!(each(&[256, 300], &[256], None), Ok([1, 1, 300]));
        assert_eq!(each(&[256, 300], &[256, 1], None), Ok([1, 1, 300]));
        assert_eq!(each(&[4, 256, 300], &[4], None), Ok([1, 256, 300]));
        for (codes, scales, block) in [
            (&[256, 300][..], &[2, 2][..], Some(block)),
            (&[256, 300], &[3], Some(block)),
            (&[256, 300], &[2], None),
            (&[256, 300], &[1, 1, 1], None),
            (&[2, 2, 2, 2], &[], None),
        ] {
            assert!(
                scaled(codes, scales, block).is_err(),
                "{codes:?} {scales:?}"
            );
        }
        let error = scaled(&[256, 300], &[2, 2], Some(block)).unwrap_err();
        assert!(error.contains("a.weight_scale") && error.contains("do not fit"));
    }
}
