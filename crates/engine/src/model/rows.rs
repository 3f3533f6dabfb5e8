//! Activations: rows of f32, one per token.

use quantier_round::matrix::View;
use std::ops::Range;

/// Rows of equal length, stored contiguously.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    numbers: Vec<f32>,
    columns: usize,
}

impl Rows {
    /// Rows of `columns` numbers each.
    ///
    /// # Panics
    /// If the numbers do not fill whole rows.
    pub(crate) fn new(numbers: Vec<f32>, columns: usize) -> Rows {
        assert!(
            numbers.len().is_multiple_of(columns),
            "{} numbers in rows of {columns}",
            numbers.len()
        );
        Rows { numbers, columns }
    }

    /// `rows` rows of `columns` zeros.
    pub(crate) fn zeros(rows: usize, columns: usize) -> Rows {
        Rows::new(vec![0.0; rows * columns], columns)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.numbers.len() / self.columns.max(1)
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Row length.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All numbers, row by row.
    pub fn numbers(&self) -> &[f32] {
        &self.numbers
    }

    /// All numbers, row by row.
    pub(crate) fn numbers_mut(&mut self) -> &mut [f32] {
        &mut self.numbers
    }

    /// All numbers, row by row.
    pub fn into_numbers(self) -> Vec<f32> {
        self.numbers
    }

    /// One row.
    pub(crate) fn row(&self, number: usize) -> &[f32] {
        &self.numbers[number * self.columns..][..self.columns]
    }

    /// Iterates over the rows.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.numbers.chunks_exact(self.columns.max(1))
    }

    /// Iterates over the rows.
    pub(crate) fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [f32]> {
        self.numbers.chunks_exact_mut(self.columns.max(1))
    }

    /// A contiguous range of rows.
    pub fn range(&self, rows: Range<usize>) -> Rows {
        let numbers = rows.start * self.columns..rows.end * self.columns;
        Rows::new(self.numbers[numbers].to_vec(), self.columns)
    }

    /// Selected rows, by number.
    pub fn select(&self, rows: &[u32]) -> Rows {
        let mut numbers = Vec::with_capacity(rows.len() * self.columns);
        for row in rows {
            numbers
                .extend_from_slice(&self.numbers[*row as usize * self.columns..][..self.columns]);
        }
        Rows::new(numbers, self.columns)
    }

    /// A contiguous range of columns.
    pub(super) fn columns_range(&self, columns: Range<usize>) -> Rows {
        let mut numbers = Vec::with_capacity(self.len() * columns.len());
        for row in self.iter() {
            numbers.extend_from_slice(&row[columns.clone()]);
        }
        Rows::new(numbers, columns.len())
    }

    /// Overwrites the columns from `first` on by those of `part`.
    pub(super) fn set_columns(&mut self, first: usize, part: &Rows) {
        for (row, part) in self.iter_mut().zip(part.iter()) {
            row[first..first + part.len()].copy_from_slice(part);
        }
    }

    /// Adds `part` to the columns from `first` on.
    pub(super) fn add_columns(&mut self, first: usize, part: &Rows) {
        for (row, part) in self.iter_mut().zip(part.iter()) {
            let places = row[first..first + part.len()].iter_mut().zip(part);
            places.for_each(|(x, part)| *x += part);
        }
    }

    /// Concatenates rows side by side.
    pub(super) fn beside(parts: &[&Rows]) -> Rows {
        let columns = parts.iter().map(|part| part.columns).sum();
        let rows = parts.first().map_or(0, |part| part.len());
        let mut numbers = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            for part in parts {
                numbers.extend_from_slice(&part.numbers[row * part.columns..][..part.columns]);
            }
        }
        Rows::new(numbers, columns)
    }

    /// True if all numbers are finite.
    pub(super) fn is_finite(&self) -> bool {
        self.numbers.iter().fold(true, |all, x| all & x.is_finite())
    }

    pub(super) fn view(&self) -> View<'_> {
        View::new(&self.numbers, self.len(), self.columns, self.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_sliced_and_joined() {
        let rows = Rows::new((0..6).map(|x| x as f32).collect(), 3);
        assert_eq!((rows.len(), rows.columns()), (2, 3));
        assert_eq!(rows.range(1..2).numbers(), [3.0, 4.0, 5.0]);
        assert_eq!(rows.select(&[1, 0, 1]).numbers()[..4], [3.0, 4.0, 5.0, 0.0]);
        let parts = [rows.columns_range(0..1), rows.columns_range(1..3)];
        assert_eq!(parts[1].numbers(), [1.0, 2.0, 4.0, 5.0]);
        assert_eq!(Rows::beside(&[&parts[0], &parts[1]]), rows);
        let mut changed = rows.clone();
        changed.set_columns(1, &parts[0]);
        changed.add_columns(0, &parts[1]);
        assert_eq!(changed.numbers(), [1.0, 2.0, 2.0, 7.0, 8.0, 5.0]);
        assert!(rows.is_finite() && !Rows::new(vec![0.0, f32::NAN], 1).is_finite());
    }
}
