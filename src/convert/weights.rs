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
    /// ln(1 + exp(x)).
    Softplus,
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

/// Weights under construction that the operations of recipes apply to. Dimensions are counted from
/// the outermost.
///
/// All methods with a result fail if an operation does not fit the shape, or cannot be expressed
/// without reading the weights.
pub(super) trait Weight: Clone {
    /// Dimensions, outermost first.
    fn shape(&self) -> Vec<u64>;

    /// A range of a dimension.
    fn narrowed(self, axis: usize, range: Range<u64>) -> Result<Self, String>;

    /// Every one of `groups` equal parts of a dimension consists of `outer` times `inner` blocks;
    /// these two are exchanged.
    fn swapped(self, axis: usize, groups: u64, blocks: [u64; 2]) -> Result<Self, String>;

    /// Other dimensions of the same elements.
    fn reshaped(self, dims: &[u64]) -> Result<Self, String>;

    /// The last two dimensions exchanged.
    fn transposed(self) -> Result<Self, String>;

    /// Without a dimension of size 1.
    fn squeezed(self, axis: usize) -> Result<Self, String>;

    /// Weights of one shape along a new outermost dimension.
    fn stacked(weights: Vec<Self>) -> Result<Self, String>;

    /// Weights one after the other along a dimension.
    fn concatenated(weights: Vec<Self>, axis: usize) -> Result<Self, String>;

    /// An operation on every number.
    fn with(self, numeric: Numeric) -> Result<Self, String>;

    /// Another type than the file type's.
    fn cast(self, cast: Cast) -> Self;
}

/// Weights under construction: the operand of a recipe's operations.
#[derive(Clone, Debug, PartialEq)]
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
    /// F16 in files of F16, else F32.
    Plain,
    /// The checkpoint's.
    Stored,
}

/// A view of one tensor.
#[derive(Clone, Debug, PartialEq)]
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

    /// Applies an operation on indices that does not change the dimensions before `axis`.
    ///
    /// # Errors
    /// If dimension `axis` is divided among the parts, or the operation fails.
    fn map(
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

impl Weight for Operand {
    fn shape(&self) -> Vec<u64> {
        self.shape.clone()
    }

    fn narrowed(self, axis: usize, range: Range<u64>) -> Result<Operand, String> {
        self.map(axis, |view| view.narrowed(axis, range.clone()))
    }

    fn swapped(self, axis: usize, groups: u64, blocks: [u64; 2]) -> Result<Operand, String> {
        self.map(axis, |view| view.swapped(axis, groups, blocks))
    }

    fn reshaped(self, dims: &[u64]) -> Result<Operand, String> {
        self.map(0, |view| view.reshaped(dims))
    }

    fn transposed(self) -> Result<Operand, String> {
        let axis = self.shape.len().saturating_sub(2);
        self.map(axis, View::transposed)
    }

    fn squeezed(self, axis: usize) -> Result<Operand, String> {
        self.map(axis, |view| view.squeezed(axis))
    }

    fn stacked(operands: Vec<Operand>) -> Result<Operand, String> {
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

    fn concatenated(operands: Vec<Operand>, axis: usize) -> Result<Operand, String> {
        let Some(first) = operands.first() else {
            return Err("there is nothing to join".into());
        };
        let (mut shape, cast) = (first.shape.clone(), first.cast);
        if axis >= shape.len() {
            return Err(format!("its shape {shape:?} has no dimension {axis}"));
        }
        if let [only] = &operands[..] {
            return Ok(only.clone());
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

    /// # Errors
    /// [`Numeric::Ternary`] and [`Numeric::Centred`] of anything but one whole tensor.
    fn with(mut self, numeric: Numeric) -> Result<Operand, String> {
        let is_by_all = matches!(numeric, Numeric::Ternary | Numeric::Centred);
        if is_by_all && !matches!(&self.parts[..], [part] if part.numeric.is_empty()) {
            return Err("only one whole tensor can be made ternary or centred".into());
        }
        for part in &mut self.parts {
            part.numeric.push(numeric);
        }
        Ok(self)
    }

    fn cast(mut self, cast: Cast) -> Operand {
        self.cast = Some(cast);
        self
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
