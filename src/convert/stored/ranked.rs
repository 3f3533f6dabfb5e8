//! Fused queries, keys and values in FP8 as the ranks of a training run stored them: MiMo V2.
//!
//! ```text
//! rows    q0 k0 v0 q1 k1 v1 ...      one group of each for every rank; in the weights, q0 q1 ... k0 k1 ... v0 v1 ...
//! scales  blocks of 128 rows and columns of each rank; the last block of a rank may be partial
//! ```

use super::{Fault, Raw, Scaled};
use crate::format::map::Map;
use std::ops::Range;

/// Rows and columns per scale.
const BLOCK: u64 = 128;
/// Possible numbers of ranks. The first with the checkpoint's number of scales is meant.
const RANKS: [u64; 2] = [8, 4];

/// A fused projection.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::convert) struct Ranked {
    /// One matrix for each rank.
    scaled: Scaled,
    columns: u64,
    /// Rows of queries, keys and values in each rank.
    rows: [u64; 3],
    ranks: u64,
}

impl Ranked {
    /// `rows` are those of queries, keys and values in all ranks together.
    ///
    /// # Errors
    /// If codes, scales and rows do not match.
    pub(super) fn new(mut codes: Raw, mut scales: Raw, rows: [u64; 3]) -> Result<Ranked, String> {
        let misfit = |codes: &Raw, scales: &Raw| {
            format!(
                "scales of shape {:?} ({}) do not fit weights of shape {:?} with {rows:?} rows of queries, keys and values",
                scales.shape, scales.name, codes.shape
            )
        };
        let (&[total, columns], &[blocks, per_row]) = (&codes.shape[..], &scales.shape[..]) else {
            return Err(misfit(&codes, &scales));
        };
        let sum = rows.iter().try_fold(0u64, |sum, n| sum.checked_add(*n));
        let fits = |ranks: &u64| {
            let is_even = rows.iter().all(|rows| rows.is_multiple_of(*ranks));
            is_even && (total / ranks).div_ceil(BLOCK) * ranks == blocks
        };
        let ranks = RANKS.into_iter().find(fits);
        let Some(ranks) = ranks.filter(|_| sum == Some(total)) else {
            return Err(misfit(&codes, &scales));
        };
        codes.shape = vec![ranks, total / ranks, columns];
        scales.shape = vec![ranks, blocks / ranks, per_row];
        let scaled = Scaled::new(codes, scales, None, Some(&[BLOCK, BLOCK]))?;
        Ok(Ranked {
            scaled,
            columns,
            rows: rows.map(|rows| rows / ranks),
            ranks,
        })
    }

    pub(super) fn raws(&self) -> Vec<&Raw> {
        self.scaled.raws()
    }

    /// The stored row of a row of the weights.
    fn stored(&self, row: u64) -> u64 {
        let each: u64 = self.rows.iter().sum();
        let (mut row, mut first) = (row, 0);
        for rows in self.rows {
            let all = rows * self.ranks;
            if row < all {
                return row / rows * each + first + row % rows;
            }
            row -= all;
            first += rows;
        }
        row
    }

    pub(super) fn read(
        &self,
        maps: &[Map],
        elements: Range<u64>,
        mut out: &mut [f32],
    ) -> Result<(), Fault> {
        let mut at = elements.start;
        while !out.is_empty() {
            let (row, column) = (at / self.columns, at % self.columns);
            let len = ((self.columns - column) as usize).min(out.len());
            let (here, rest) = out.split_at_mut(len);
            let start = self.stored(row) * self.columns + column;
            let read = self.scaled.read(maps, start..start + len as u64, here);
            read.map_err(|fault| Fault {
                element: at + (fault.element - start),
                ..fault
            })?;
            out = rest;
            at += len as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::safetensors::Dtype;

    fn ranked(rows: [u64; 3], blocks: u64) -> Result<Ranked, String> {
        let total = rows.iter().sum();
        let codes = Raw::made("qkv", Dtype::F8E4m3, &[total, 256]);
        let scales = Raw::made("qkv_scale_inv", Dtype::F32, &[blocks, 2]);
        Ranked::new(codes, scales, rows)
    }

    #[test]
    fn rows_of_ranks_are_regrouped() {
        let ranked = ranked([16, 8, 4], 4).unwrap();
        assert_eq!(ranked.ranks, 4);
        let stored: Vec<u64> = (0..28).map(|row| ranked.stored(row)).collect();
        let mut sorted = stored.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, Vec::from_iter(0..28));
        // Queries of the first two ranks, the first key of each, the last value.
        assert_eq!(stored[..8], [0, 1, 2, 3, 7, 8, 9, 10]);
        assert_eq!([16, 18, 20, 22].map(|row| stored[row]), [4, 11, 18, 25]);
        assert_eq!(stored[27], 27);
    }

    #[test]
    fn ranks_follow_from_the_number_of_scales() {
        assert_eq!(ranked([1600, 160, 96], 16).unwrap().ranks, 8);
        assert_eq!(ranked([1600, 160, 96], 16).unwrap().rows, [200, 20, 12]);
        for blocks in [1, 3, 15] {
            let error = ranked([1600, 160, 96], blocks).unwrap_err();
            assert!(error.contains("qkv_scale_inv"), "{error}");
        }
    }
}
