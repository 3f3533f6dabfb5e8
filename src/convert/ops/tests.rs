//! Views and operations against a naive reference that has every tensor whole in memory.

use super::*;
use crate::convert::weights::{Operand, Stored};
use crate::format::types::GgmlType;
use Size::{Any, Number};
use proptest::prelude::*;
use serde_json::json;
use std::ops::Range;

/// A whole tensor. Its elements are numbers that occur once.
#[derive(Clone, Debug, PartialEq)]
struct Whole {
    shape: Vec<u64>,
    elements: Vec<u32>,
}

impl Whole {
    fn new(source: usize, shape: &[u64]) -> Whole {
        let count: u64 = shape.iter().product();
        let first = source as u32 * 1_000_000;
        Whole {
            shape: shape.to_vec(),
            elements: (first..first + count as u32).collect(),
        }
    }

    /// The bytes of its elements.
    fn bytes(&self) -> Vec<u8> {
        self.elements.iter().flat_map(|e| e.to_le_bytes()).collect()
    }

    /// The tensor of this shape whose element at an index is the one at `from` of that index.
    fn rearranged(&self, shape: Vec<u64>, from: impl Fn(&[u64]) -> Vec<u64>) -> Whole {
        let count: u64 = shape.iter().product();
        let element = |mut flat: u64| {
            let mut index = vec![0; shape.len()];
            for (axis, size) in shape.iter().enumerate().rev() {
                index[axis] = flat % size;
                flat /= size;
            }
            let old = from(&index);
            let flat = old
                .iter()
                .zip(&self.shape)
                .fold(0, |flat, (i, n)| flat * n + i);
            self.elements[flat as usize]
        };
        let elements = (0..count).map(element).collect();
        Whole { shape, elements }
    }

    /// A range of a dimension.
    fn part(&self, axis: usize, range: Range<u64>) -> Option<Whole> {
        let mut shape = self.shape.clone();
        *shape.get_mut(axis)? = range.end.checked_sub(range.start)?;
        let fits = range.end <= self.shape[axis];
        fits.then(|| {
            self.rearranged(shape, |index| {
                let mut old = index.to_vec();
                old[axis] += range.start;
                old
            })
        })
    }

    /// A dimension with its positions in another order.
    fn permuted(&self, axis: usize, old: impl Fn(u64) -> u64) -> Whole {
        self.rearranged(self.shape.clone(), |index| {
            let mut from = index.to_vec();
            from[axis] = old(index[axis]);
            from
        })
    }

    fn concatenated(tensors: &[Whole], axis: usize) -> Option<Whole> {
        let mut shape = tensors.first()?.shape.clone();
        let total = tensors
            .iter()
            .map(|t| t.shape.get(axis))
            .sum::<Option<u64>>()?;
        for tensor in tensors {
            let mut other = tensor.shape.clone();
            (other.len() == shape.len()).then(|| other[axis] = shape[axis])?;
            (other == shape).then_some(())?;
        }
        shape[axis] = total;
        let outer: u64 = shape[..axis].iter().product();
        let mut elements = Vec::new();
        for i in 0..outer as usize {
            for tensor in tensors {
                let len = tensor.elements.len() / outer as usize;
                elements.extend(&tensor.elements[i * len..(i + 1) * len]);
            }
        }
        Some(Whole { shape, elements })
    }

    fn stacked(tensors: &[Whole]) -> Option<Whole> {
        let mut expanded = tensors.to_vec();
        expanded
            .iter_mut()
            .for_each(|tensor| tensor.shape.insert(0, 1));
        Whole::concatenated(&expanded, 0)
    }

    /// The operation, straight from its definition; `None` where it does not fit.
    fn apply(&self, op: Op) -> Option<Whole> {
        let number = |size: Size| match size {
            Number(n) => n,
            _ => unreachable!("sizes in these tests are numbers"),
        };
        // A tensor of one element may have no dimension left, and gain one again.
        let rows = self.shape.first().copied();
        let count: u64 = self.shape.iter().product();
        match op {
            Op::Split { axis, sizes, part } => {
                let size = *self.shape.get(axis)?;
                let given: u64 = sizes
                    .iter()
                    .filter(|s| !matches!(s, Any))
                    .map(|s| number(*s))
                    .sum();
                let left = size.checked_sub(given)?;
                let sizes: Vec<u64> = sizes
                    .iter()
                    .map(|s| if matches!(s, Any) { left } else { number(*s) })
                    .collect();
                (sizes.iter().sum::<u64>() == size).then_some(())?;
                let start: u64 = sizes[..part].iter().sum();
                self.part(axis, start..start + sizes[part])
            }
            Op::First(size) => self.part(0, 0..rows?.min(number(size))),
            Op::Interleave(heads) => {
                let (rows, heads) = (rows?, number(heads));
                rows.is_multiple_of(2 * heads).then_some(())?;
                let head = rows / heads;
                // Row 2i of a head is row i of its first half, row 2i + 1 row i of its second.
                Some(self.permuted(0, |row| {
                    row / head * head + row % 2 * (head / 2) + row % head / 2
                }))
            }
            Op::Tile {
                axis,
                groups,
                members,
            } => {
                let (groups, members) = (number(groups), number(members));
                let size = *self.shape.get(axis)?;
                size.is_multiple_of(groups * members).then_some(())?;
                let block = size / (groups * members);
                Some(self.permuted(axis, |position| {
                    let (tile, in_block) = (position / block, position % block);
                    let (member, group) = (tile / groups, tile % groups);
                    (group * members + member) * block + in_block
                }))
            }
            Op::Order(order) => {
                let (rows, parts) = (rows?, order.len() as u64);
                rows.is_multiple_of(parts).then_some(())?;
                let part = rows / parts;
                Some(self.permuted(0, |row| {
                    order[(row / part) as usize] as u64 * part + row % part
                }))
            }
            Op::Transpose => {
                let rank = self.shape.len();
                (rank > 1).then_some(())?;
                let swapped = |index: &[u64]| {
                    let mut index = index.to_vec();
                    index.swap(rank - 2, rank - 1);
                    index
                };
                Some(self.rearranged(swapped(&self.shape), swapped))
            }
            Op::Reshape(sizes) => {
                let given: u64 = sizes
                    .iter()
                    .filter(|s| !matches!(s, Any))
                    .map(|s| number(*s))
                    .product();
                count.is_multiple_of(given).then_some(())?;
                let size = |s: &Size| {
                    if matches!(s, Any) {
                        count / given
                    } else {
                        number(*s)
                    }
                };
                let shape: Vec<u64> = sizes.iter().map(size).collect();
                (shape.iter().product::<u64>() == count).then(|| Whole {
                    shape,
                    elements: self.elements.clone(),
                })
            }
            Op::Squeeze(axis) => {
                let mut squeezed = self.clone();
                (*squeezed.shape.get(axis)? == 1).then(|| squeezed.shape.remove(axis))?;
                Some(squeezed)
            }
            _ => unreachable!("{op:?} is not one of these tests"),
        }
    }
}

const OPS: &[Op] = &[
    Op::Split {
        axis: 0,
        sizes: &[Number(2), Any, Number(1)],
        part: 1,
    },
    Op::Split {
        axis: 0,
        sizes: &[Number(4), Number(4), Number(4)],
        part: 2,
    },
    Op::Split {
        axis: 1,
        sizes: &[Number(3), Any],
        part: 0,
    },
    Op::Split {
        axis: 1,
        sizes: &[Any, Number(2)],
        part: 1,
    },
    Op::First(Number(5)),
    Op::First(Number(8)),
    Op::Interleave(Number(1)),
    Op::Interleave(Number(2)),
    Op::Interleave(Number(3)),
    Op::Tile {
        axis: 0,
        groups: Number(2),
        members: Number(3),
    },
    Op::Tile {
        axis: 1,
        groups: Number(2),
        members: Number(2),
    },
    Op::Order(&[2, 0, 1]),
    Op::Order(&[1, 3, 0, 2]),
    Op::Transpose,
    Op::Transpose,
    Op::Reshape(&[Any, Number(2)]),
    Op::Reshape(&[Number(3), Any, Number(2)]),
    Op::Reshape(&[Any, Number(6)]),
    Op::Reshape(&[Any]),
    Op::Squeeze(0),
    Op::Squeeze(1),
];

fn chain() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(prop::sample::select(OPS), 0..5)
}

fn shape() -> impl Strategy<Value = Vec<u64>> {
    let size = prop::sample::select(vec![1u64, 1, 2, 3, 4, 6, 8, 12, 24]);
    prop::collection::vec(size, 1..4)
}

/// Reads elements as a conversion does, and checks the bounds that it would release.
fn read(stored: &Stored, sources: &[Whole], elements: Range<u64>) -> Vec<u32> {
    let mut all = Vec::new();
    for (part, elements) in stored.pieces(elements) {
        let source = &sources[part.source];
        let count = (elements.end - elements.start) as usize;
        let mut bytes = vec![0; count * 4];
        part.order
            .gather(&source.bytes(), 4, elements.clone(), &mut bytes);
        let read: Vec<u32> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b))
            .collect();
        let positions = part
            .order
            .runs(elements.clone())
            .flat_map(|run| (0..run.len).map(move |i| run.start + i * run.stride));
        let first = source.elements[0];
        let expected: Vec<u64> = read.iter().map(|e| u64::from(e - first)).collect();
        assert_eq!(positions.collect::<Vec<_>>(), expected, "runs");
        let bounds = part.order.bounds(elements.clone());
        assert!(expected.iter().all(|p| bounds.contains(p)), "{bounds:?}");
        if let Some(range) = part.order.contiguous(elements) {
            assert_eq!(range.collect::<Vec<_>>(), expected, "contiguous");
        }
        all.extend(read);
    }
    all
}

/// Compares an output with the naive one in every band that begins at a multiple of `step`.
fn compare(output: &Operand, sources: &[Whole], expected: &Whole, step: u64) {
    assert_eq!(output.shape(), expected.shape);
    let stored = output.clone().finish();
    let count = expected.elements.len() as u64;
    let mut start = 0;
    while start < count {
        let band = start..count.min(start + step);
        let here = &expected.elements[start as usize..band.end as usize];
        assert_eq!(read(&stored, sources, band.clone()), here, "{band:?}");
        start = band.end;
    }
}

fn config() -> Config {
    Config::new(json!({ "hidden_size": 8 }).as_object().unwrap().clone()).unwrap()
}

fn made(ops: &[Op], inputs: Vec<Vec<Operand>>) -> Result<Operand, String> {
    let config = config();
    let sizes = Sizes {
        config: &config,
        dir: Path::new("."),
        layer: Some(3),
    };
    make(ops, inputs, sizes)
}

/// Twelve rows of three columns: which rows come out, in which order.
#[test]
fn groups_and_rotated_rows_stand_in_their_order() {
    let by_layer: fn(&Config, u32) -> Result<u64, String> = |_, layer| Ok(u64::from(layer) - 1);
    let cases: [(Op, [u32; 12]); 6] = [
        (
            Op::HeadOrder {
                heads: Number(2),
                lengths: &[2, 1, 3],
                order: &[1, 2, 0],
            },
            [2, 3, 4, 5, 0, 1, 8, 9, 10, 11, 6, 7],
        ),
        // One head of two fours of rows.
        (
            Op::PairsApart {
                rows: Number(8),
                heads: Number(1),
            },
            [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11],
        ),
        // Two groups of four rows of queries, one of keys, one of values.
        (
            Op::Ungroup {
                groups: Number(2),
                sizes: &[Any, Number(1), Number(1)],
            },
            [0, 1, 2, 3, 6, 7, 8, 9, 4, 10, 5, 11],
        ),
        (
            Op::Deinterleave {
                heads: Number(2),
                rotated: |_| Ok(4),
            },
            [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11],
        ),
        (
            Op::Deinterleave {
                heads: Number(3),
                rotated: |_| Ok(4),
            },
            [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11],
        ),
        (
            Op::InterleaveBy(by_layer),
            [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11],
        ),
    ];
    let source = Whole::new(0, &[12, 3]);
    for (op, rows) in cases {
        let output = made(&[op], vec![vec![Operand::tensor(0, &[12, 3])]]).unwrap();
        let elements = rows
            .iter()
            .flat_map(|row| (0..3).map(move |column| row * 3 + column));
        let expected = Whole {
            shape: vec![12, 3],
            elements: elements.map(|i| source.elements[i as usize]).collect(),
        };
        compare(&output, std::slice::from_ref(&source), &expected, 5);
    }
    for op in [
        Op::Ungroup {
            groups: Number(5),
            sizes: &[Any],
        },
        Op::Ungroup {
            groups: Number(2),
            sizes: &[Number(4), Number(4)],
        },
        Op::Deinterleave {
            heads: Number(2),
            rotated: |_| Ok(3),
        },
        Op::Deinterleave {
            heads: Number(2),
            rotated: |_| Ok(8),
        },
    ] {
        let made = made(&[op], vec![vec![Operand::tensor(0, &[12, 3])]]);
        assert!(made.is_err(), "{op:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn chains_of_operations_are_the_naive_ones(shape in shape(), ops in chain(), step in 1u64..50) {
        let source = Whole::new(0, &shape);
        let expected = ops.iter().try_fold(source.clone(), |tensor, op| tensor.apply(*op));
        let expected = expected.filter(|tensor| !tensor.elements.is_empty());
        let operand = Operand::tensor(0, &shape);
        match (made(&ops, vec![vec![operand]]), expected) {
            (Ok(output), Some(expected)) => compare(&output, &[source], &expected, step),
            // Only operations beyond a single view are refused.
            (Err(what), Some(_)) => prop_assert!(
                ["cannot become", "cannot be cut", "cannot be taken as", "is joined of"].iter().any(|w| what.contains(w)),
                "{what}"
            ),
            (Ok(output), None) => prop_assert!(output.shape().contains(&0), "{:?}", output.shape()),
            (Err(_), None) => {}
        }
    }

    #[test]
    fn joined_tensors_are_the_naive_ones(
        shape in shape(), ops in chain(), count in 1usize..4, axis in 0usize..3, step in 1u64..50,
    ) {
        let sources: Vec<_> = (0..count).map(|i| Whole::new(i, &shape)).collect();
        let operands: Vec<_> = (0..count).map(|i| Operand::tensor(i, &shape)).collect();
        let changed: Option<Vec<_>> = sources.iter().map(|source| {
            let all = ops.iter().try_fold(source.clone(), |tensor, op| tensor.apply(*op))?;
            (!all.elements.is_empty()).then_some(all)
        }).collect();
        let Some(changed) = changed else { return Ok(()) };

        let stack = [&ops[..], &[Op::Stack(Any)]].concat();
        if let (Ok(output), Some(expected)) =
            (made(&stack, vec![operands.clone()]), Whole::stacked(&changed))
        {
            compare(&output, &sources, &expected, step);
        }
        let join = [&ops[..], &[Op::Concat(axis)]].concat();
        let inputs = operands.into_iter().map(|operand| vec![operand]).collect();
        if let (Ok(output), Some(expected)) =
            (made(&join, inputs), Whole::concatenated(&changed, axis))
        {
            compare(&output, &sources, &expected, step);
        }
    }
}

/// Two matrices of every expert become one tensor: gate above up in each.
#[test]
fn experts_are_fused_and_stacked() {
    let sources: Vec<_> = (0..6).map(|i| Whole::new(i, &[4, 3])).collect();
    let stack = |first: usize| (first..first + 3).map(|i| Operand::tensor(i, &[4, 3]));
    let inputs = vec![stack(0).collect(), stack(3).collect()];
    let output = made(&[Op::Concat(0), Op::Stack(Number(3))], inputs).unwrap();
    let fused: Vec<_> = (0..3)
        .map(|i| Whole::concatenated(&[sources[i].clone(), sources[i + 3].clone()], 0).unwrap())
        .collect();
    compare(&output, &sources, &Whole::stacked(&fused).unwrap(), 7);
    // The last two dimensions of a stack are free.
    let transposed = apply_to(output, Op::Transpose).unwrap_err();
    assert!(transposed.contains("joined of 6 tensors"), "{transposed}");
}

/// Parts of a table with any numbers of rows become one; those of another width do not.
#[test]
fn parts_are_appended_row_by_row() {
    let shapes: [&[u64]; 3] = [&[4, 3], &[1, 3], &[2, 3]];
    let sources: Vec<_> = (0..3).map(|i| Whole::new(i, shapes[i])).collect();
    let parts = (0..3).map(|i| Operand::tensor(i, shapes[i]));
    let output = made(&[Op::Append(Number(3))], vec![parts.clone().collect()]).unwrap();
    let elements = sources.iter().flat_map(|source| source.elements.clone());
    let expected = Whole {
        shape: vec![7, 3],
        elements: elements.collect(),
    };
    compare(&output, &sources, &expected, 5);
    let others = parts.chain([Operand::tensor(3, &[2, 4])]).collect();
    let error = made(&[Op::Append(Number(4))], vec![others]).unwrap_err();
    assert!(error.contains("[2, 4] cannot be joined"), "{error}");
}

/// Rows of queries, keys and values of every group, as Falcon and GPT-NeoX store them.
#[test]
fn a_fused_matrix_is_split_within_its_groups() {
    // Two groups of 2 query rows, 1 key row and 1 value row, of 3 columns.
    let source = Whole::new(0, &[8, 3]);
    let part = |part| Op::Split {
        axis: 1,
        sizes: &[Number(2), Number(1), Number(1)],
        part,
    };
    let rows = |ops: &[Op]| {
        let output = made(ops, vec![vec![Operand::tensor(0, &[8, 3])]]).unwrap();
        let elements = read(
            &output.clone().finish(),
            std::slice::from_ref(&source),
            0..{ output.shape().iter().product() },
        );
        let rows: Vec<u32> = elements.iter().step_by(3).map(|e| e / 3).collect();
        rows
    };
    let grouped = Op::Reshape(&[Number(2), Number(4), Any]);
    let flat = Op::Reshape(&[Any, Number(3)]);
    assert_eq!(rows(&[grouped, part(0), flat]), [0, 1, 4, 5]);
    assert_eq!(rows(&[grouped, part(1), flat]), [2, 6]);
    assert_eq!(rows(&[grouped, part(2), flat]), [3, 7]);
}

#[test]
fn halves_of_heads_are_interleaved() {
    let source = Whole::new(0, &[12]);
    let interleaved = |heads| apply_to(Operand::tensor(0, &[12]), Op::Interleave(heads));
    let output = interleaved(Number(2)).unwrap().finish();
    let rows = read(&output, &[source], 0..12);
    assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    for heads in [0, 4, u64::MAX] {
        let error = interleaved(Number(heads)).unwrap_err();
        assert!(error.contains(&format!("each of {heads} heads")), "{error}");
    }
}

#[test]
fn grouped_blocks_are_tiled() {
    let source = Whole::new(0, &[12]);
    let tile = Op::Tile {
        axis: 0,
        groups: Number(3),
        members: Number(2),
    };
    let output = apply_to(Operand::tensor(0, &[12]), tile).unwrap();
    let rows = read(&output.finish(), &[source], 0..12);
    // a0 a1 b0 b1 c0 c1, in blocks of two, become a0 b0 c0 a1 b1 c1.
    assert_eq!(rows, [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]);
}

#[test]
fn blocks_behind_the_first_rows_are_tiled() {
    let source = Whole::new(0, &[7, 2]);
    let tile = Op::TileBehind {
        first: Number(3),
        groups: Number(2),
        members: Number(2),
    };
    let output = apply_to(Operand::tensor(0, &[7, 2]), tile).unwrap();
    let rows = read(&output.finish(), &[source], 0..14);
    assert_eq!(rows, [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 8, 9, 12, 13]);
}

#[test]
fn operations_that_do_not_fit_say_why() {
    let cases: &[(Op, &str)] = &[
        (
            Op::Split {
                axis: 0,
                sizes: &[Number(2), Number(3)],
                part: 0,
            },
            "is not [2, 3] together",
        ),
        (
            Op::Split {
                axis: 2,
                sizes: &[Any],
                part: 0,
            },
            "has no dimension 2",
        ),
        (
            Op::Tile {
                axis: 1,
                groups: Number(2),
                members: Number(2),
            },
            "dimension 1 of its shape [6, 5] cannot be taken as 1 times 2 times 2 parts",
        ),
        (
            Op::Reshape(&[Number(4), Number(8)]),
            "[6, 5] cannot become [4, 8]",
        ),
        (Op::Squeeze(0), "dimension 0 of its shape [6, 5] is not 1"),
        (
            Op::Interleave(Size::QueryHeads),
            "'n_heads', 'num_attention_heads'",
        ),
    ];
    for (op, part) in cases {
        let error = apply_to(Operand::tensor(0, &[6, 5]), *op).unwrap_err();
        assert!(error.contains(part), "{op:?}: {error}");
    }
}

#[test]
fn numeric_operations_and_types_are_kept_for_the_bands() {
    let ops = [Op::NegExp, Op::AddOne, Op::Cast(GgmlType::F32)];
    let output = made(&ops, vec![vec![Operand::tensor(0, &[4])]]).unwrap();
    assert_eq!(output.cast, Some(Cast::To(GgmlType::F32)));
    assert_eq!(numeric(output), [[Numeric::NegExp, Numeric::Plus(1.0)]]);
}

/// Numeric operations of each part.
fn numeric(operand: Operand) -> Vec<Vec<Numeric>> {
    let weights = operand.finish();
    let pieces = weights.pieces(0..u64::MAX);
    pieces.map(|(part, _)| part.numeric.clone()).collect()
}

#[test]
fn parts_of_rows_have_factors_of_their_own() {
    const SIZES: &[Size] = &[Size::Number(1), Size::Any, Size::Number(2)];
    let ops = [
        Op::Scale(|_| Ok(3.0)),
        Op::ScaleParts {
            sizes: SIZES,
            factor: |_, part| Ok([0.5, 2.0, 4.0][part]),
        },
    ];
    let output = made(&ops, vec![vec![Operand::tensor(0, &[6, 5])]]).unwrap();
    assert_eq!(output.shape(), [6, 5]);
    let [first, second, third] =
        [0.5, 2.0, 4.0].map(|factor| vec![Numeric::Times(3.0), Numeric::Times(factor)]);
    assert_eq!(numeric(output), [first, second, third]);
    let too_long = made(&ops, vec![vec![Operand::tensor(0, &[2, 5])]]).unwrap_err();
    assert!(too_long.contains("[1, 2]"), "{too_long}");
}

fn apply_to(operand: Operand, op: Op) -> Result<Operand, String> {
    made(&[op], vec![vec![operand]])
}
