//! Weights of a checkpoint with the update of an adapter, as PEFT merges it.
//!
//! ```text
//! W' = round(W + scale * (B A))
//! ```
//!
//! B A is summed in 64 bits and rounded to 32, where PyTorch's sums in 32 bits depend on the CPU.
//! Then, as in PEFT: times the scale and plus W in 32 bits, and rounded once to the type of W. The update
//! of embeddings is rounded to that type before it is added.

use super::{Fault, Raw};
use crate::convert::checkpoint::Source;
use crate::convert::numbers::rounding;
use crate::format::map::Map;
use crate::format::safetensors::Dtype;
use std::ops::Range;

/// Weights in place of a checkpoint's, or updated by factors.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::convert) struct Merged {
    /// W: `[rows, columns]`, or any shape without an update.
    weights: Raw,
    /// The type that weights are rounded to.
    dtype: Dtype,
    update: Option<Update>,
}

/// An update of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::convert) struct Update {
    /// A, `[rank, columns]`.
    a: Raw,
    /// B, `[rows, rank]`.
    b: Raw,
    /// The factor of the product.
    scale: f32,
    /// True if B A is the transpose of the update: A is `[rank, rows]`, B `[columns, rank]`.
    is_transposed: bool,
    /// True if the update is rounded to the type of W before it is added.
    is_rounded: bool,
}

impl Update {
    /// # Errors
    /// Factors whose rows are not contiguous.
    pub(in crate::convert) fn new(
        [a, b]: [&Source; 2],
        scale: f32,
        is_transposed: bool,
    ) -> Result<Update, String> {
        Ok(Update {
            a: Raw::of(a)?,
            b: Raw::of(b)?,
            scale,
            is_transposed,
            is_rounded: false,
        })
    }

    /// Rounded to the type of W before it is added, as the update of embeddings.
    pub(in crate::convert) fn rounded(self) -> Update {
        Update {
            is_rounded: true,
            ..self
        }
    }

    fn rank(&self) -> u64 {
        self.a.shape[0]
    }

    /// The factors of the update itself: rows of B for `rows`, columns of A for `columns`, both
    /// with the rank as their inner dimension.
    fn factors(&self, maps: &[Map], [rows, columns]: [Range<u64>; 2]) -> [Vec<f32>; 2] {
        match self.is_transposed {
            false => [
                by_rows(&self.b, maps, rows),
                by_columns(&self.a, maps, columns),
            ],
            true => [
                by_columns(&self.a, maps, rows),
                by_rows(&self.b, maps, columns),
            ],
        }
    }
}

/// Rows of a matrix, one after the other.
fn by_rows(raw: &Raw, maps: &[Map], rows: Range<u64>) -> Vec<f32> {
    let row_len = raw.shape[1];
    raw.numbers(maps, rows.start * row_len..rows.end * row_len)
}

/// Columns of a matrix, one after the other.
fn by_columns(raw: &Raw, maps: &[Map], columns: Range<u64>) -> Vec<f32> {
    let (rows, row_len) = (raw.shape[0], raw.shape[1]);
    let len = (columns.end - columns.start) as usize;
    let mut all = vec![0.0; len * rows as usize];
    for row in 0..rows {
        let start = row * row_len;
        let numbers = raw.numbers(maps, start + columns.start..start + columns.end);
        let places = all[row as usize..].iter_mut().step_by(rows as usize);
        places
            .zip(numbers)
            .for_each(|(place, number)| *place = number);
    }
    all
}

impl Merged {
    /// Other weights of the same shape, in the checkpoint's type.
    ///
    /// # Errors
    /// Weights whose rows are not contiguous.
    pub(in crate::convert) fn replaced(weights: &Source, dtype: Dtype) -> Result<Merged, String> {
        Ok(Merged {
            weights: Raw::of(weights)?,
            dtype,
            update: None,
        })
    }

    /// A matrix with an update.
    ///
    /// # Errors
    /// Weights whose rows are not contiguous.
    pub(in crate::convert) fn updated(weights: &Source, update: Update) -> Result<Merged, String> {
        Ok(Merged {
            weights: Raw::of(weights)?,
            dtype: weights.dtype,
            update: Some(update),
        })
    }

    pub(super) fn read(
        &self,
        maps: &[Map],
        elements: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Fault> {
        self.weights.read(maps, elements.clone(), out);
        if let (Some(update), false) = (&self.update, elements.is_empty()) {
            self.add(update, maps, elements, out);
        }
        let rounded = rounding(self.dtype);
        out.iter_mut().for_each(|weight| *weight = rounded(*weight));
        Ok(())
    }

    /// Adds the update to some elements.
    fn add(&self, update: &Update, maps: &[Map], elements: Range<u64>, out: &mut [f32]) {
        let row_len = self.weights.shape[1];
        let rounded: fn(f32) -> f32 = match update.is_rounded {
            true => rounding(self.dtype),
            false => |x| x,
        };
        let rows = elements.start / row_len..elements.end.div_ceil(row_len);
        let columns = match rows.end - rows.start {
            1 => elements.start % row_len..elements.start % row_len + out.len() as u64,
            _ => 0..row_len,
        };
        let rank = update.rank() as usize;
        let [left, right] = update.factors(maps, [rows.clone(), columns.clone()]);
        for (element, weight) in elements.zip(out) {
            let row = (element / row_len - rows.start) as usize * rank;
            let column = (element % row_len - columns.start) as usize * rank;
            let terms = left[row..row + rank]
                .iter()
                .zip(&right[column..column + rank]);
            let sum: f64 = terms.map(|(b, a)| f64::from(*b) * f64::from(*a)).sum();
            *weight += rounded(sum as f32 * update.scale);
        }
    }

    pub(super) fn raws(&self) -> Vec<&Raw> {
        let factors = self.update.iter().flat_map(|update| [&update.a, &update.b]);
        std::iter::once(&self.weights).chain(factors).collect()
    }
}
