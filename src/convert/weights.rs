//! The weights of an output, as data: views of the checkpoint's tensors, joined, with operations on
//! the numbers. [`super::tensors`] reads bands of them.

use super::view::{Order, View};
use crate::format::types::GgmlType;
use std::ops::Range;
use std::sync::OnceLock;

/// The weights of one output tensor.
#[derive(Debug, PartialEq)]
pub(super) enum Weights {
    /// Computed from the config.
    Computed(Vec<f32>),
    /// Read from the checkpoint.
    Stored(Stored),
}

/// Weights from tensors of the checkpoint, in sequence.
#[derive(Debug, PartialEq)]
pub(super) struct Stored {
    parts: Vec<Part>,
}

/// The elements from one view of one tensor.
#[derive(Debug, PartialEq)]
pub(super) struct Part {
    /// Index of the tensor.
    pub(super) source: usize,
    /// Its elements, in order.
    pub(super) order: Order,
    /// Operations on every number, in order.
    pub(super) numeric: Vec<Numeric>,
    /// The mean magnitude of the numbers, computed on demand.
    pub(super) mean: OnceLock<f32>,
    /// End of these elements in the output.
    end: u64,
}

/// An operation on every number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Numeric {
    /// x plus this.
    Plus(f32),
    /// exp(x).
    Exp,
    /// -exp(x).
    NegExp,
    /// x times this.
    Times(f32),
    /// x, no longer rounded to the checkpoint's type by further operations.
    Widen,
    /// 0, whatever x is.
    Zero,
    /// The nearest of 0 and plus and minus the mean magnitude of the tensor.
    Ternary,
    /// x minus the mean of the tensor.
    Centred,
}

impl Weights {
    /// Indices of the checkpoint's tensors; a tensor may occur repeatedly.
    pub(super) fn sources(&self) -> impl Iterator<Item = usize> {
        let parts = match self {
            Weights::Computed(_) => &[][..],
            Weights::Stored(stored) => &stored.parts,
        };
        parts.iter().map(|part| part.source)
    }
}

impl Stored {
    /// The parts with these elements of the output, and the range within each part.
    pub(super) fn pieces(&self, elements: Range<u64>) -> impl Iterator<Item = (&Part, Range<u64>)> {
        let first = self
            .parts
            .partition_point(|part| part.end <= elements.start);
        self.parts[first..].iter().map_while(move |part| {
            let start = part.end - part.order.elements();
            let here = elements.start.max(start)..elements.end.min(part.end);
            (here.start < here.end).then(|| (part, here.start - start..here.end - start))
        })
    }
}

/// Weights under construction: the operand of a recipe's operations.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    /// Dimensions, outermost first.
    shape: Vec<u64>,
    parts: Vec<Piece>,
    /// The number of leading dimensions divided among the parts; each part has all of the others.
    joined: usize,
    /// The type of the output, if not given by name and file type.
    pub(super) cast: Option<Cast>,
}

/// Type of an output that is not given by name and file type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cast {
    /// This type.
    To(GgmlType),
    /// The file type's, whatever the name.
    ByFile,
    /// The checkpoint's.
    Stored,
}

/// A view of one tensor.
#[derive(Clone, Debug)]
struct Piece {
    source: usize,
    view: View,
    numeric: Vec<Numeric>,
}

impl Operand {
    /// A tensor of the checkpoint with contiguous rows.
    #[cfg(test)]
    pub(super) fn tensor(source: usize, shape: &[u64]) -> Operand {
        Operand::viewed(source, View::whole(shape))
    }

    /// A tensor of the checkpoint without changes.
    pub(super) fn viewed(source: usize, view: View) -> Operand {
        Operand {
            shape: view.shape(),
            parts: vec![Piece {
                source,
                view,
                numeric: Vec::new(),
            }],
            joined: 0,
            cast: None,
        }
    }

    /// Stacks operands of one shape along a new outermost dimension.
    ///
    /// # Errors
    /// If there is none, or shapes or types differ.
    pub(super) fn stacked(operands: Vec<Operand>) -> Result<Operand, String> {
        let expanded = |mut operand: Operand| {
            operand.shape.insert(0, 1);
            for part in &mut operand.parts {
                part.view = part.view.clone().expanded();
            }
            operand.joined += usize::from(operand.joined > 0);
            operand
        };
        Operand::concatenated(operands.into_iter().map(expanded).collect(), 0)
    }

    /// Concatenates operands along a dimension.
    ///
    /// # Errors
    /// If there is none, they differ in other dimensions, or they already have several tensors and
    /// are not joined along the first dimension.
    pub(super) fn concatenated(operands: Vec<Operand>, axis: usize) -> Result<Operand, String> {
        let Some(first) = operands.first() else {
            return Err("there is nothing to join".into());
        };
        let (mut shape, cast) = (first.shape.clone(), first.cast);
        if axis >= shape.len() {
            return Err(format!("its shape {shape:?} has no dimension {axis}"));
        }
        let mut size = 0u64;
        for operand in &operands {
            let mut other = operand.shape.clone();
            if other.len() == shape.len() {
                size = size.saturating_add(other[axis]);
                other[axis] = shape[axis];
            }
            if other != shape {
                let other = &operand.shape;
                return Err(format!(
                    "shapes {shape:?} and {other:?} cannot be joined in dimension {axis}"
                ));
            }
            if operand.cast != cast {
                return Err("tensors of different types cannot be joined".into());
            }
        }
        let joined = operands.iter().map(|operand| operand.joined).max();
        let joined = joined.unwrap_or(0);
        let mut parts = Vec::new();
        match (axis, joined) {
            (0, _) => parts.extend(operands.into_iter().flat_map(|operand| operand.parts)),
            (_, 0) => {
                for index in 0..shape[..axis].iter().product() {
                    for part in operands.iter().flat_map(|o| &o.parts) {
                        parts.push(Piece {
                            view: at(&part.view, &shape[..axis], index)?,
                            ..part.clone()
                        });
                    }
                }
            }
            _ => {
                return Err(format!(
                    "tensors that are joined already cannot be joined in dimension {axis}"
                ));
            }
        }
        shape[axis] = size;
        Ok(Operand {
            shape,
            parts,
            joined: joined.max(axis + 1),
            cast,
        })
    }

    /// Dimensions, outermost first.
    pub(super) fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Applies an operation on indices that does not change the dimensions before `axis`.
    ///
    /// # Errors
    /// If dimension `axis` is divided among the parts, or the operation fails.
    pub(super) fn map(
        mut self,
        axis: usize,
        apply: impl Fn(View) -> Result<View, String>,
    ) -> Result<Operand, String> {
        if self.joined > axis {
            let tensors = self.parts.len();
            return Err(format!("dimension {axis} is joined of {tensors} tensors"));
        }
        for part in &mut self.parts {
            part.view = apply(part.view.clone())?;
        }
        self.shape.truncate(self.joined);
        self.shape
            .extend(&self.parts[0].view.shape()[self.joined..]);
        Ok(self)
    }

    /// Applies an operation on numbers.
    pub(super) fn with(mut self, numeric: Numeric) -> Operand {
        for part in &mut self.parts {
            part.numeric.push(numeric);
        }
        self
    }

    /// Makes the numbers ternary.
    ///
    /// # Errors
    /// If they are not those of one whole tensor in stored order.
    pub(super) fn by_all(self, numeric: Numeric) -> Result<Operand, String> {
        match &self.parts[..] {
            [part] if part.numeric.is_empty() => Ok(self.with(numeric)),
            _ => Err("only one whole tensor can be made ternary or centred".into()),
        }
    }

    /// Gives the output another type than the file type's.
    pub(super) fn cast(mut self, cast: Cast) -> Operand {
        self.cast = Some(cast);
        self
    }

    /// The finished weights.
    pub(super) fn finish(self) -> Stored {
        let mut end = 0;
        let parts = self.parts.into_iter().map(|part| {
            let order = part.view.order();
            end += order.elements();
            Part {
                source: part.source,
                order,
                numeric: part.numeric,
                mean: OnceLock::new(),
                end,
            }
        });
        Stored {
            parts: parts.collect(),
        }
    }
}

/// The part of a view at this index of its flattened leading dimensions.
fn at(view: &View, leading: &[u64], mut index: u64) -> Result<View, String> {
    let mut view = view.clone();
    for (axis, &size) in leading.iter().enumerate().rev() {
        let here = index % size;
        index /= size;
        view = view.narrowed(axis, here..here + 1)?;
    }
    Ok(view)
}
