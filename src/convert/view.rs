//! Views of a tensor: which of its elements an output has, and in which order. Nothing is moved
//! until a band of the output is gathered.
//!
//! A dimension of a view is a product of *factors*, outermost first; each has a size and a stride,
//! counted in elements of the tensor. A plain matrix of 6 rows and 4 columns is `[6 by 4] [4 by 1]`.
//! Factors are split where an operation needs it, so that every operation on indices only moves
//! factors:
//!
//! ```text
//! transpose               [4 by 1] [6 by 4]
//! swap 2 with 3 in rows   [3 by 4, 2 by 12] [4 by 1]     rows 0 3 1 4 2 5
//! narrow rows to 2..5     [3 by 4] [4 by 1], offset 8
//! reshape to 3 by 8       [3 by 8] [8 by 1]
//! ```
//!
//! Anything beyond one offset and a list of factors is refused when the conversion is planned
//! (columns of a transposed and flattened matrix, for example); no model needs it.

use std::ops::Range;

/// `size` elements, each `stride` elements of the tensor behind the one before.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Factor {
    size: u64,
    stride: u64,
}

/// Some elements of a tensor in some order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    /// The tensor's element that comes first.
    offset: u64,
    /// The dimensions, outermost first.
    dims: Vec<Vec<Factor>>,
}

/// Consecutive elements of a view that are evenly spaced in the tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    /// The tensor's element that comes first.
    pub(super) start: u64,
    /// The number of elements.
    pub(super) len: u64,
    /// The distance between neighbours in the tensor.
    pub(super) stride: u64,
}

impl View {
    /// A tensor as it is.
    pub(super) fn whole(shape: &[u64]) -> View {
        let mut stride = 1;
        let mut dims: Vec<_> = shape
            .iter()
            .rev()
            .map(|&size| {
                let factor = Factor { size, stride };
                stride = stride.saturating_mul(size);
                vec![factor]
            })
            .collect();
        dims.reverse();
        View { offset: 0, dims }
    }

    /// A tensor whose dimensions have these strides.
    pub(super) fn strided(shape: &[u64], strides: &[u64]) -> View {
        let factors = shape.iter().zip(strides);
        let dims = factors.map(|(&size, &stride)| vec![Factor { size, stride }]);
        View {
            offset: 0,
            dims: dims.collect(),
        }
    }

    /// The sizes of the dimensions.
    pub(super) fn shape(&self) -> Vec<u64> {
        self.dims.iter().map(|dim| size(dim)).collect()
    }

    /// The number of elements.
    pub(super) fn elements(&self) -> u64 {
        self.shape()
            .iter()
            .fold(1, |n, &size| n.saturating_mul(size))
    }

    /// With the last two dimensions exchanged.
    ///
    /// # Errors
    /// If there are fewer than two.
    pub(super) fn transposed(mut self) -> Result<View, String> {
        match self.dims.len() {
            0 | 1 => Err(format!("its shape {:?} has no columns", self.shape())),
            rank => {
                self.dims.swap(rank - 2, rank - 1);
                Ok(self)
            }
        }
    }

    /// Only this range of a dimension.
    ///
    /// # Errors
    /// If the dimension is shorter, or is put together so that the range is no whole part of it.
    pub(super) fn narrowed(mut self, axis: usize, range: Range<u64>) -> Result<View, String> {
        let shape = self.shape();
        let dim = self.dim(axis)?;
        if range.end > size(dim) || range.start > range.end {
            return Err(format!(
                "its shape {shape:?} has no {range:?} in dimension {axis}"
            ));
        }
        let (mut start, mut len) = (range.start, range.end - range.start);
        if len == size(dim) {
            return Ok(self);
        }
        let mut offset = 0;
        *dim = merged(dim);
        for i in 0..dim.len() {
            let inner = size(&dim[i + 1..]);
            if inner == 0 || (start.is_multiple_of(inner) && len.is_multiple_of(inner)) {
                let start = start.checked_div(inner).unwrap_or(0);
                offset += start * dim[i].stride;
                dim[i].size = len.checked_div(inner).unwrap_or(0);
                self.offset += offset;
                return Ok(self);
            }
            if start / inner != (start + len - 1) / inner {
                break;
            }
            offset += start / inner * dim[i].stride;
            dim[i].size = 1;
            start %= inner;
            len = len.min(inner);
        }
        Err(format!(
            "dimension {axis} of its shape {shape:?} cannot be cut to {range:?}"
        ))
    }

    /// With every one of `groups` equal parts of a dimension seen as `outer` times `inner` blocks,
    /// and these two exchanged.
    ///
    /// # Errors
    /// If the dimension does not have so many parts.
    pub(super) fn swapped(
        mut self,
        axis: usize,
        groups: u64,
        [outer, inner]: [u64; 2],
    ) -> Result<View, String> {
        let shape = self.shape();
        let dim = self.dim(axis)?;
        let cut = || {
            let blocks = groups.checked_mul(outer)?.checked_mul(inner)?;
            let block = size(dim).checked_div(blocks)?;
            if block == 0 || block * blocks != size(dim) {
                return None;
            }
            let (rest, block) = split(dim, block)?;
            let (rest, inner) = split(&rest, inner)?;
            let (groups, outer) = split(&rest, outer)?;
            Some([groups, inner, outer, block].concat())
        };
        *dim = cut().ok_or_else(|| {
            format!("dimension {axis} of its shape {shape:?} cannot be taken as {groups} times {outer} times {inner} parts")
        })?;
        Ok(self)
    }

    /// With other dimensions of the same number of elements.
    ///
    /// # Errors
    /// If the numbers differ, or elements of one new dimension are not evenly spaced.
    pub(super) fn reshaped(mut self, shape: &[u64]) -> Result<View, String> {
        let elements = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size));
        let cut = || {
            if elements? != self.elements() || elements? == 0 {
                return None;
            }
            let mut rest = merged(&self.dims.concat());
            let mut dims = Vec::new();
            for &size in shape.iter().rev() {
                let (outer, dim) = split(&rest, size)?;
                dims.push(dim);
                rest = outer;
            }
            dims.reverse();
            Some(dims)
        };
        match cut() {
            Some(dims) => {
                self.dims = dims;
                Ok(self)
            }
            None => Err(format!(
                "its shape {:?} cannot become {shape:?}",
                self.shape()
            )),
        }
    }

    /// Without a dimension of size 1.
    ///
    /// # Errors
    /// If the dimension has another size.
    pub(super) fn squeezed(mut self, axis: usize) -> Result<View, String> {
        match size(self.dim(axis)?) {
            1 => {
                self.dims.remove(axis);
                Ok(self)
            }
            _ => Err(format!(
                "dimension {axis} of its shape {:?} is not 1",
                self.shape()
            )),
        }
    }

    /// With a dimension of size 1 before all others.
    pub(super) fn expanded(mut self) -> View {
        self.dims.insert(0, Vec::new());
        self
    }

    fn dim(&mut self, axis: usize) -> Result<&mut Vec<Factor>, String> {
        let shape = self.shape();
        self.dims
            .get_mut(axis)
            .ok_or_else(|| format!("its shape {shape:?} has no dimension {axis}"))
    }

    /// The order of the elements without the dimensions: ready to be gathered.
    pub(super) fn order(&self) -> Order {
        let mut factors = merged(&self.dims.concat());
        factors.retain(|factor| factor.size != 1);
        if factors.is_empty() {
            factors.push(Factor { size: 1, stride: 1 });
        }
        Order {
            offset: self.offset,
            factors,
        }
    }
}

/// The elements of a view as one sequence.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Order {
    offset: u64,
    /// At least one; neighbours do not continue each other.
    factors: Vec<Factor>,
}

impl Order {
    /// The number of elements.
    pub(super) fn elements(&self) -> u64 {
        size(&self.factors)
    }

    /// True if groups of this many neighbours in the tensor stay together.
    pub(super) fn is_of_groups(&self, group: u64) -> bool {
        let [outer @ .., inner] = &*self.factors else {
            return false;
        };
        inner.stride == 1
            && inner.size.is_multiple_of(group)
            && self.offset.is_multiple_of(group)
            && outer
                .iter()
                .all(|factor| factor.stride.is_multiple_of(group))
    }

    /// The tensor's element that is this one in the sequence.
    fn position(&self, mut element: u64) -> u64 {
        let mut position = self.offset;
        for factor in self.factors.iter().rev() {
            position += element % factor.size * factor.stride;
            element /= factor.size;
        }
        position
    }

    /// A range of the tensor's elements that holds all these elements of the sequence.
    pub(super) fn bounds(&self, elements: Range<u64>) -> Range<u64> {
        if elements.is_empty() {
            return self.offset..self.offset;
        }
        let (mut first, mut last) = (elements.start, elements.end - 1);
        let mut inner = size(&self.factors);
        let mut low = self.offset;
        for (i, factor) in self.factors.iter().enumerate() {
            inner /= factor.size;
            low += first / inner * factor.stride;
            if first / inner != last / inner {
                // From this factor inwards, everything may be reached.
                let steps = last / inner - first / inner;
                let inwards = &self.factors[i + 1..];
                let reach: u64 = inwards.iter().map(|f| (f.size - 1) * f.stride).sum();
                return low..low + steps * factor.stride + reach + 1;
            }
            first %= inner;
            last %= inner;
        }
        low..low + 1
    }

    /// The range of the tensor's elements that these elements are, if they are neighbours in the
    /// same order.
    pub(super) fn contiguous(&self, elements: Range<u64>) -> Option<Range<u64>> {
        let len = elements.end - elements.start;
        let run = self.runs(elements).next()?;
        (run.len == len && (run.stride == 1 || len == 1)).then(|| run.start..run.start + len)
    }

    /// Consecutive elements of the sequence as evenly spaced runs, in order.
    pub(super) fn runs(&self, elements: Range<u64>) -> impl Iterator<Item = Run> {
        let last = self.factors[self.factors.len() - 1];
        let mut at = elements.start;
        std::iter::from_fn(move || {
            let len = (last.size - at % last.size).min(elements.end.saturating_sub(at));
            let run = Run {
                start: self.position(at),
                len,
                stride: last.stride,
            };
            at += len;
            (len > 0).then_some(run)
        })
    }

    /// Copies consecutive elements of the sequence out of the tensor's bytes.
    ///
    /// # Panics
    /// If `out` is not as long as the elements.
    pub(super) fn gather(&self, data: &[u8], width: usize, elements: Range<u64>, out: &mut [u8]) {
        assert_eq!(
            out.len() as u64,
            (elements.end - elements.start) * width as u64,
            "bytes of the elements"
        );
        match width {
            1 => self.gather_elements::<1>(data, elements, out),
            2 => self.gather_elements::<2>(data, elements, out),
            4 => self.gather_elements::<4>(data, elements, out),
            _ => self.gather_elements::<8>(data, elements, out),
        }
    }

    fn gather_elements<const N: usize>(&self, data: &[u8], elements: Range<u64>, out: &mut [u8]) {
        let (data, mut out) = (data.as_chunks::<N>().0, out.as_chunks_mut::<N>().0);
        let mut at = elements.start;
        let [.., outer, inner] = &*self.factors else {
            let start = self.position(at) as usize;
            return copy_run(data, start, self.factors[0].stride, out);
        };
        let matrix = outer.size * inner.size;
        while at < elements.end {
            let first = at % matrix;
            let rows = (matrix - first).min(elements.end - at) / inner.size;
            let is_matrix = first.is_multiple_of(inner.size) && rows > 1;
            let len = match is_matrix && inner.stride > outer.stride {
                true => rows * inner.size,
                false => (inner.size - at % inner.size).min(elements.end - at),
            };
            let (now, later) = out.split_at_mut(len as usize);
            let start = self.position(at) as usize;
            match is_matrix && inner.stride > outer.stride {
                // Neighbours in the tensor are columns here: read in its order.
                true => {
                    let (row_step, row_len) = (outer.stride as usize, inner.size as usize);
                    for column in 0..row_len {
                        let start = start + column * inner.stride as usize;
                        let column = now[column..].iter_mut().step_by(row_len);
                        let numbers = data[start..].iter().step_by(row_step);
                        column.zip(numbers).for_each(|(out, number)| *out = *number);
                    }
                }
                false => copy_run(data, start, inner.stride, now),
            }
            out = later;
            at += len;
        }
    }
}

/// Copies evenly spaced elements.
fn copy_run<const N: usize>(data: &[[u8; N]], start: usize, stride: u64, out: &mut [[u8; N]]) {
    match stride {
        1 => out.copy_from_slice(&data[start..][..out.len()]),
        _ => {
            let numbers = data[start..].iter().step_by(stride as usize);
            out.iter_mut()
                .zip(numbers)
                .for_each(|(out, number)| *out = *number);
        }
    }
}

fn size(factors: &[Factor]) -> u64 {
    factors
        .iter()
        .fold(1, |n, factor| n.saturating_mul(factor.size))
}

/// The outer and the inner part of factors, the inner part of this size.
fn split(factors: &[Factor], inner_size: u64) -> Option<(Vec<Factor>, Vec<Factor>)> {
    let mut outer = factors.to_vec();
    let mut inner = Vec::new();
    let mut left = inner_size;
    while left > 1 {
        let factor = outer.pop()?;
        if factor.size > 0 && left.is_multiple_of(factor.size) {
            left /= factor.size;
            inner.push(factor);
        } else if factor.size.is_multiple_of(left) {
            inner.push(Factor {
                size: left,
                stride: factor.stride,
            });
            outer.push(Factor {
                size: factor.size / left,
                stride: factor.stride * left,
            });
            left = 1;
        } else {
            return None;
        }
    }
    inner.reverse();
    (left == 1).then_some((outer, inner))
}

/// Factors with neighbours made one where the outer one continues the inner one.
fn merged(factors: &[Factor]) -> Vec<Factor> {
    let mut merged: Vec<Factor> = Vec::new();
    for factor in factors.iter().filter(|factor| factor.size != 1) {
        match merged.last_mut() {
            Some(outer) if outer.stride == factor.size * factor.stride => {
                *outer = Factor {
                    size: outer.size * factor.size,
                    stride: factor.stride,
                };
            }
            _ => merged.push(*factor),
        }
    }
    merged
}
