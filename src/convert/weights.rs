//! Where a tensor's weights come from: tensors of the checkpoint, and what is done to them, as
//! data.

use super::Source;
use super::scale::Scale;

/// The weights of one output tensor.
pub(super) struct Weights {
    /// Weights that the checkpoint does not hold; then there are no parts.
    generated: Vec<f32>,
    /// Tensors of one shape that follow each other.
    parts: Vec<Part>,
    view: View,
    /// Rows that each part gives to the output.
    rows: u64,
    /// Weights in a row of the output.
    row_len: u64,
}

/// One tensor of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    /// The tensor's index.
    pub(super) source: usize,
    /// What its weights are multiplied by.
    pub(super) scale: Option<Scale>,
}

/// How the output reads its parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum View {
    /// Row by row.
    Rows,
    /// Row by row, 1 added to every weight.
    PlusOne,
    /// Row by row, the two halves of every group of rows (a head) interleaved.
    Interleaved { group: u64 },
    /// Column by column.
    Transposed,
}

impl Weights {
    /// Weights from the plan itself.
    pub(super) fn generated(weights: Vec<f32>) -> Weights {
        let rows = weights.len() as u64;
        Weights {
            generated: weights,
            parts: Vec::new(),
            view: View::Rows,
            rows,
            row_len: 1,
        }
    }

    /// A tensor as it is. One dimension counts as rows of one weight.
    pub(super) fn of(source: usize, tensor: &Source, scale: Option<Scale>) -> Weights {
        let (row_len, outer) = match &*tensor.shape {
            [outer @ .., row_len] if !outer.is_empty() => (*row_len, outer),
            all => (1, all),
        };
        let parts = vec![Part { source, scale }];
        Weights {
            generated: Vec::new(),
            parts,
            view: View::Rows,
            rows: outer.iter().product(),
            row_len,
        }
    }

    /// Several tensors of one shape, one behind the other.
    pub(super) fn stacked(mut of: Vec<Weights>) -> Weights {
        let parts = of
            .iter()
            .flat_map(|weights| weights.parts.iter().copied())
            .collect();
        Weights {
            parts,
            ..of.swap_remove(0)
        }
    }

    /// With the halves of every head's rows interleaved.
    pub(super) fn interleaved(self, heads: u64) -> Result<Weights, String> {
        match heads.checked_mul(2) {
            Some(halves) if halves > 0 && self.rows.is_multiple_of(halves) => Ok(Weights {
                view: View::Interleaved {
                    group: self.rows / heads,
                },
                ..self
            }),
            _ => Err(format!(
                "its {} rows are not two halves of each of {heads} heads",
                self.rows
            )),
        }
    }

    /// With rows for columns.
    pub(super) fn transposed(self) -> Result<Weights, String> {
        match self.parts.iter().all(|part| part.scale.is_none()) {
            true => Ok(Weights {
                view: View::Transposed,
                rows: self.row_len,
                row_len: self.rows,
                ..self
            }),
            false => Err(
                "it is quantized and would have to be transposed, which is not supported".into(),
            ),
        }
    }

    /// With 1 added to every weight.
    pub(super) fn plus_one(self) -> Weights {
        Weights {
            view: View::PlusOne,
            ..self
        }
    }

    /// The first rows only.
    pub(super) fn first_rows(self, rows: u64) -> Weights {
        Weights { rows, ..self }
    }

    pub(super) fn generated_weights(&self) -> &[f32] {
        &self.generated
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(super) fn view(&self) -> View {
        self.view
    }

    /// Rows that each part gives to the output.
    pub(super) fn rows_per_part(&self) -> u64 {
        self.rows
    }

    /// Rows of the output.
    pub(super) fn rows(&self) -> u64 {
        self.rows * self.parts.len().max(1) as u64
    }

    /// Weights in a row of the output.
    pub(super) fn row_len(&self) -> u64 {
        self.row_len
    }

    /// The row of a part that is its given row in the output (not for columns).
    pub(super) fn source_row(&self, row: u64) -> u64 {
        match self.view {
            View::Rows | View::PlusOne | View::Transposed => row,
            View::Interleaved { group } => {
                let (head, in_head) = (row / group, row % group);
                head * group + in_head % 2 * (group / 2) + in_head / 2
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::safetensors::Dtype;

    #[test]
    fn halves_of_heads_are_interleaved() {
        let source = Source {
            name: "q".into(),
            dtype: Dtype::F32,
            shape: vec![12, 5],
            file: 0,
            range: 0..240,
        };
        let weights = Weights::of(0, &source, None).interleaved(2).unwrap();
        let rows: Vec<_> = (0..12).map(|row| weights.source_row(row)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert!(Weights::of(0, &source, None).interleaved(4).is_err());
        assert!(Weights::of(0, &source, None).interleaved(0).is_err());
    }
}
