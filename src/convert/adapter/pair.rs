//! Operations of recipes on a pair of factors.
//!
//! A matrix W of rows and columns is the product of B, `[rows, rank]`, and A, `[rank, columns]`. An
//! operation on rows is one on the rows of B, an operation on columns one on the columns of A:
//!
//! ```text
//! narrow, swap, reshape in rows     B
//! narrow, swap in columns           A
//! transpose                         A' and B' change places
//! stack                             both
//! concatenate rows                  B, where A is the same
//! multiply by a number              B, as in the reference
//! ```
//!
//! Dimensions before the last two are those of B. A has them too where matrices were stacked.

use crate::convert::weights::{Cast, Numeric, Operand, Weight};
use std::ops::Range;

/// Advice for an operation that no pair of factors can express.
const MERGE: &str = "merge the adapter into its base instead (--lora)";

/// The factors of a matrix, or of a stack of matrices.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// `[.., rank, columns]`, or `[rank, columns]` for all matrices.
    a: Operand,
    /// `[.., rows, rank]`.
    b: Operand,
    /// True if a number multiplies A: the adapter has the factors of the transpose, and the
    /// reference multiplies its B.
    scales_a: bool,
}

impl Pair {
    /// The factors `[rank, columns]` and `[rows, rank]` of a matrix.
    pub(super) fn new(a: Operand, b: Operand) -> Pair {
        Pair {
            a,
            b,
            scales_a: false,
        }
    }

    /// The matrix whose transpose has the factors `[rank, rows]` and `[columns, rank]`.
    ///
    /// # Errors
    /// Factors that are no matrices.
    pub(super) fn of_transpose(a: Operand, b: Operand) -> Result<Pair, String> {
        Ok(Pair {
            a: b.transposed()?,
            b: a.transposed()?,
            scales_a: true,
        })
    }

    /// A and B, both with as many dimensions as the product.
    ///
    /// # Errors
    /// If A is joined of several tensors.
    pub(super) fn finish(self) -> Result<[Operand; 2], String> {
        let (a, b) = (self.a.shape(), self.b.shape());
        let leading = vec![1; b.len() - a.len()];
        match leading.is_empty() {
            true => Ok([self.a, self.b]),
            false => Ok([self.a.reshaped(&[leading, a].concat())?, self.b]),
        }
    }

    /// True if every matrix has an A of its own.
    fn is_stacked(&self) -> bool {
        self.a.shape().len() > 2
    }

    /// Applies an operation on indices of one dimension of the product.
    fn along(
        self,
        axis: usize,
        apply: impl Fn(Operand, usize) -> Result<Operand, String>,
    ) -> Result<Pair, String> {
        let (rank, of_a) = (self.b.shape().len(), self.a.shape().len());
        let Pair { a, b, scales_a } = self;
        let (a, b) = match rank.checked_sub(axis) {
            Some(1) => (apply(a, of_a - 1)?, b),
            Some(places) if places == 2 || places > of_a => (a, apply(b, axis)?),
            Some(_) => (apply(a, axis)?, apply(b, axis)?),
            None => return Err(format!("factors have no dimension {axis}")),
        };
        Ok(Pair { a, b, scales_a })
    }
}

impl Weight for Pair {
    fn shape(&self) -> Vec<u64> {
        let (a, mut shape) = (self.a.shape(), self.b.shape());
        let last = shape.len() - 1;
        shape[last] = a[a.len() - 1];
        shape
    }

    fn narrowed(self, axis: usize, range: Range<u64>) -> Result<Pair, String> {
        self.along(axis, |factor, axis| factor.narrowed(axis, range.clone()))
    }

    fn swapped(self, axis: usize, groups: u64, blocks: [u64; 2]) -> Result<Pair, String> {
        self.along(axis, |factor, axis| factor.swapped(axis, groups, blocks))
    }

    fn reshaped(self, dims: &[u64]) -> Result<Pair, String> {
        let shape = self.shape();
        let (columns, rows) = dims.split_last().ok_or("a pair of factors is no number")?;
        if rows.is_empty() || shape.last() != Some(columns) || self.is_stacked() {
            return Err(format!(
                "factors of shape {shape:?} cannot become those of shape {dims:?}; {MERGE}"
            ));
        }
        let rank = self.b.shape()[shape.len() - 1];
        let b = self.b.reshaped(&[rows, &[rank]].concat())?;
        Ok(Pair { b, ..self })
    }

    fn transposed(self) -> Result<Pair, String> {
        match self.shape().len() {
            2 => Ok(Pair {
                a: self.b.transposed()?,
                b: self.a.transposed()?,
                scales_a: self.scales_a,
            }),
            _ => Err(format!("stacked factors cannot be transposed; {MERGE}")),
        }
    }

    fn squeezed(self, axis: usize) -> Result<Pair, String> {
        match axis + 2 < self.b.shape().len() && !self.is_stacked() {
            true => Ok(Pair {
                b: self.b.squeezed(axis)?,
                ..self
            }),
            false => Err(format!("factors cannot become those of a vector; {MERGE}")),
        }
    }

    fn stacked(pairs: Vec<Pair>) -> Result<Pair, String> {
        let (a, b): (Vec<_>, Vec<_>) = pairs.into_iter().map(|pair| (pair.a, pair.b)).unzip();
        Ok(Pair::new(Operand::stacked(a)?, Operand::stacked(b)?))
    }

    fn concatenated(pairs: Vec<Pair>, axis: usize) -> Result<Pair, String> {
        let is_stacked = pairs.iter().any(Pair::is_stacked);
        let (mut a, b): (Vec<_>, Vec<_>) = pairs.into_iter().map(|pair| (pair.a, pair.b)).unzip();
        if axis > 0 || is_stacked {
            return Err(format!(
                "factors cannot be joined in dimension {axis}; {MERGE}"
            ));
        }
        a.dedup();
        match (a.pop(), a.is_empty()) {
            (Some(a), true) => Ok(Pair::new(a, Operand::concatenated(b, 0)?)),
            _ => Err(format!(
                "the GGUF has one matrix where the base has several, whose updates differ in factor A; {MERGE}"
            )),
        }
    }

    fn with(self, numeric: Numeric) -> Result<Pair, String> {
        let Pair { a, b, scales_a } = self;
        let (a, b) = match numeric {
            Numeric::Times(_) if scales_a => (a.with(numeric)?, b),
            Numeric::Times(_) => (a, b.with(numeric)?),
            Numeric::Widen => (a.with(numeric)?, b.with(numeric)?),
            _ => {
                return Err(format!(
                    "the GGUF's weights are not proportional to the base's, so that factors cannot update them; {MERGE}"
                ));
            }
        };
        Ok(Pair { a, b, scales_a })
    }

    /// The type of an update is the file's, whatever that of its matrix.
    fn cast(self, _: Cast) -> Pair {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Config;
    use crate::arch::recipes::Op;
    use crate::arch::recipes::Size::{self, Any, Hidden, Number};
    use crate::convert::ops::{Sizes, make};
    use crate::convert::view::View;
    use serde_json::json;
    use std::path::Path;

    /// One of the consecutive parts of a dimension.
    const fn part(axis: usize, sizes: &'static [Size], part: usize) -> Op {
        Op::Split { axis, sizes, part }
    }

    const ROWS: u64 = 12;
    const COLUMNS: u64 = 8;
    const RANK: u64 = 3;

    /// Small numbers that differ from place to place.
    fn numbers(seed: u64, count: u64) -> Vec<f64> {
        let number = |i: u64| ((i * 7 + seed * 5) % 11) as f64 - 5.0;
        (0..count).map(number).collect()
    }

    /// The product of matrices `[rows, RANK]` and `[RANK, columns]`.
    fn product(b: &[f64], a: &[f64]) -> Vec<f64> {
        let columns = a.len() / RANK as usize;
        let row = |row: &[f64]| -> Vec<f64> {
            let number = |column| {
                let terms = row.iter().enumerate();
                terms.map(|(k, b)| b * a[k * columns + column]).sum()
            };
            (0..columns).map(number).collect()
        };
        b.chunks(RANK as usize).flat_map(row).collect()
    }

    /// The numbers of an output.
    fn read(operand: Operand, sources: &[Vec<f64>]) -> Vec<f64> {
        let count = operand.shape().iter().product();
        let stored = operand.finish();
        let mut all = Vec::new();
        for (part, elements) in stored.pieces(0..count) {
            let factor: f64 = part
                .numeric
                .iter()
                .map(|numeric| match numeric {
                    Numeric::Times(factor) => f64::from(*factor),
                    _ => 1.0,
                })
                .product();
            for run in part.order.runs(elements) {
                let places = (0..run.len).map(|i| run.start + i * run.stride);
                all.extend(places.map(|place| sources[part.source][place as usize] * factor));
            }
        }
        all
    }

    fn made<W: Weight>(ops: &[Op], inputs: Vec<Vec<W>>) -> Result<W, String> {
        let config = Config::new(json!({ "hidden_size": 2 }).as_object().unwrap().clone()).unwrap();
        let sizes = Sizes {
            config: &config,
            dir: Path::new("."),
            layer: Some(0),
        };
        make(ops, inputs, sizes)
    }

    /// Factors of this many matrices, as operands with their numbers: A, B, A, B and so on.
    fn factors(count: u64) -> (Vec<Pair>, Vec<Vec<f64>>) {
        let sources =
            (0..count).flat_map(|i| [numbers(i, RANK * COLUMNS), numbers(i + 100, ROWS * RANK)]);
        let operand =
            |source: u64, shape: [u64; 2]| Operand::viewed(source as usize, View::whole(&shape));
        let pair = |i| {
            Pair::new(
                operand(2 * i, [RANK, COLUMNS]),
                operand(2 * i + 1, [ROWS, RANK]),
            )
        };
        ((0..count).map(pair).collect(), sources.collect())
    }

    /// The product of an output's factors.
    fn multiplied(pair: Pair, sources: &[Vec<f64>]) -> Vec<f64> {
        let [a, b] = pair.finish().unwrap();
        let (of_a, of_b) = (a.shape(), b.shape());
        assert_eq!(of_a.len(), of_b.len());
        let matrix = |shape: &[u64]| shape[shape.len() - 2..].iter().product::<u64>() as usize;
        let [sizes_a, sizes_b] = [matrix(&of_a), matrix(&of_b)];
        let (a, b) = (read(a, sources), read(b, sources));
        let mut a = a.chunks(sizes_a).cycle();
        b.chunks(sizes_b)
            .flat_map(|b| product(b, a.next().unwrap()))
            .collect()
    }

    #[test]
    fn the_product_of_changed_factors_is_the_changed_product() {
        const GROUPS: Op = Op::Ungroup {
            groups: Number(2),
            sizes: &[Number(3), Any, Number(1)],
        };
        let cases: &[(&[Op], u64)] = &[
            (&[Op::Interleave(Number(3))], 1),
            (&[part(0, &[Number(5), Any], 1)], 1),
            (&[part(1, &[Number(3), Any], 1)], 1),
            (
                &[Op::Tile {
                    axis: 0,
                    groups: Number(2),
                    members: Number(3),
                }],
                1,
            ),
            (
                &[Op::Tile {
                    axis: 1,
                    groups: Number(4),
                    members: Number(2),
                }],
                1,
            ),
            (
                &[Op::TileBehind {
                    first: Number(4),
                    groups: Number(2),
                    members: Number(2),
                }],
                1,
            ),
            (
                &[Op::Deinterleave {
                    heads: Number(2),
                    rotated: |_| Ok(4),
                }],
                1,
            ),
            (&[GROUPS], 1),
            (&[Op::Order(&[2, 0, 1])], 1),
            (&[Op::First(Number(7))], 1),
            (&[Op::Transpose], 1),
            (&[Op::Transpose, part(0, &[Number(3), Any], 0)], 1),
            (&[Op::Scale(|_| Ok(0.5))], 1),
            (
                &[Op::ScaleParts {
                    sizes: &[Number(3), Any],
                    factor: |_, part| Ok(part as f64 + 2.0),
                }],
                1,
            ),
            (&[Op::Reshape(&[Number(3), Any, Number(COLUMNS)])], 1),
            (
                &[
                    Op::Reshape(&[Number(3), Hidden, Any, Number(COLUMNS)]),
                    part(1, &[Number(1), Number(1)], 1),
                    Op::Squeeze(1),
                ],
                1,
            ),
            (&[Op::Stack(Number(4))], 4),
            (&[Op::Stack(Number(4)), part(1, &[Number(5), Any], 1)], 4),
            (&[Op::Interleave(Number(2)), Op::Stack(Number(3))], 3),
        ];
        for (ops, count) in cases {
            let (pairs, sources) = factors(*count);
            let dense: Vec<_> = sources
                .chunks(2)
                .map(|factors| product(&factors[1], &factors[0]))
                .collect();
            let whole = (0..dense.len())
                .map(|source| Operand::viewed(source, View::whole(&[ROWS, COLUMNS])));
            let expected = made(ops, vec![whole.collect()]).unwrap();
            let pair = made(ops, vec![pairs]).unwrap();
            assert_eq!(pair.shape(), expected.shape(), "{ops:?}");
            assert_eq!(
                multiplied(pair, &sources),
                read(expected, &dense),
                "{ops:?}"
            );
        }
    }

    #[test]
    fn what_factors_cannot_express_is_refused_with_advice() {
        let cases: &[&[Op]] = &[
            &[Op::AddOne],
            &[Op::NegExp],
            &[Op::Reshape(&[Any])],
            &[Op::Reshape(&[Number(4), Any])],
            &[
                Op::Reshape(&[Number(1), Any, Number(COLUMNS)]),
                Op::Transpose,
            ],
        ];
        for ops in cases {
            let (pairs, _) = factors(1);
            let what = made(ops, vec![pairs]).unwrap_err();
            assert!(what.contains("--lora"), "{ops:?}: {what}");
        }
        // Matrices that become one, with updates of their own.
        let (pairs, _) = factors(2);
        let inputs = pairs.into_iter().map(|pair| vec![pair]).collect();
        let what = made(&[Op::Concat(0)], inputs).unwrap_err();
        assert!(what.contains("differ in factor A"), "{what}");
    }

    #[test]
    fn a_number_multiplies_the_factor_b_of_the_adapter() {
        let (pairs, _) = factors(1);
        let Pair { a, b, .. } = pairs.into_iter().next().unwrap();
        let scaled = |pair: Pair| pair.with(Numeric::Times(2.0)).unwrap();
        let is_scaled = |operand: Operand| {
            let stored = operand.finish();
            stored
                .pieces(0..1)
                .all(|(part, _)| !part.numeric.is_empty())
        };
        let plain = scaled(Pair::new(a.clone(), b.clone()));
        assert!(!is_scaled(plain.a) && is_scaled(plain.b));
        let transposed = scaled(Pair::of_transpose(a, b).unwrap());
        assert!(is_scaled(transposed.a) && !is_scaled(transposed.b));
    }
}
