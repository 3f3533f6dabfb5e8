//! The matrix product, on one thread per call: the caller runs chunks side by side, which loses less than splitting
//! each product does.

use super::derived;
use candle_core::{Error, Result, Storage, Tensor};
use gemm::Parallelism;

/// A matrix whose numbers lie somewhere in a slice.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    numbers: &'a [f32],
    rows: usize,
    columns: usize,
    /// From a row to the next, and from a column to the next.
    steps: (usize, usize),
}

impl<'a> View<'a> {
    /// `rows` rows of `columns` numbers, of which each begins `step` numbers after the one before.
    pub(super) fn new(numbers: &'a [f32], rows: usize, columns: usize, step: usize) -> View<'a> {
        View { numbers, rows, columns, steps: (step, 1) }
    }

    pub(super) fn transposed(self) -> View<'a> {
        View { numbers: self.numbers, rows: self.columns, columns: self.rows, steps: (self.steps.1, self.steps.0) }
    }

    /// Some of the rows.
    pub(super) fn range(self, rows: std::ops::Range<usize>) -> View<'a> {
        View { numbers: &self.numbers[rows.start * self.steps.0..], rows: rows.len(), ..self }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    fn is_inside(&self) -> bool {
        let last = self.rows.wrapping_sub(1) * self.steps.0 + self.columns.wrapping_sub(1) * self.steps.1;
        self.rows == 0 || self.columns == 0 || last < self.numbers.len()
    }
}

/// `out = a b`, row by row with `step` numbers from one to the next; what is between rows stays as it is. `split` is
/// how many threads may share the work, which changes no result.
///
/// # Panics
/// If the shapes do not fit each other or the slices.
pub(super) fn multiply(a: View<'_>, b: View<'_>, out: &mut [f32], step: usize, split: usize) {
    multiplied(a, b, out, step, split, false);
}

/// As [`multiply`]; with `add`, the product is added to what is there.
fn multiplied(a: View<'_>, b: View<'_>, out: &mut [f32], step: usize, split: usize, add: bool) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(b.rows == k && a.is_inside() && b.is_inside(), "a product of {m} x {k} and {} x {n}", b.rows);
    assert!(m == 0 || n == 0 || (step >= n && (m - 1) * step + n <= out.len()), "a product of {m} x {n} does not fit");
    if m == 0 || n == 0 || k == 0 {
        if add {
            return;
        }
        return out.chunks_mut(step.max(1)).take(m).for_each(|row| row[..n].fill(0.0));
    }
    let parallelism = if split > 1 { Parallelism::Rayon(split) } else { Parallelism::None };
    // SAFETY: every number of the three matrices is inside its slice, as was checked above, and `out` is ours alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            step as isize,
            add,
            a.numbers.as_ptr(),
            a.steps.1 as isize,
            a.steps.0 as isize,
            b.numbers.as_ptr(),
            b.steps.1 as isize,
            b.steps.0 as isize,
            if add { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `[batch.., m, k]` times the transpose of `[batch.., n, k]` (or of `[n, k]`, the same for all): rows times rows.
///
/// `split` is how many threads one product may take.
pub(super) fn product(a: &Tensor, b: &Tensor, split: usize) -> Result<Tensor> {
    match is_ours(a) {
        true => {
            let mut dims = a.dims().to_vec();
            dims.pop();
            dims.push(b.dim(b.rank().saturating_sub(2))?);
            let y = Tensor::from_vec(product_numbers(a, b, split)?, dims, a.device())?;
            match a.track_op() || b.track_op() {
                true => derived::of_two([a, b], &y, derivative(a, b, split)),
                false => Ok(y),
            }
        }
        false if b.rank() == 2 => a.broadcast_matmul(&b.t()?),
        false => a.matmul(&b.transpose(b.rank() - 2, b.rank() - 1)?),
    }
}

/// Of `y = a b^T` with the gradient `g` of `y`: `g b` for `a` and `g^T a` for `b`.
fn derivative(
    a: &Tensor,
    b: &Tensor,
    split: usize,
) -> impl Fn([&Tensor; 2], &Tensor) -> Result<[Option<Tensor>; 2]> + use<> {
    let (a_tracked, b_tracked) = (a.track_op(), b.track_op());
    move |[a, b], g| {
        let turned = |x: &Tensor| x.transpose(x.rank() - 2, x.rank() - 1);
        let of_a = a_tracked.then(|| product(g, &turned(b)?, split)).transpose()?;
        let of_b = b_tracked.then(|| product(&turned(g)?, &turned(a)?, split)).transpose()?;
        Ok([of_a, of_b])
    }
}

/// Whether [`product_numbers`] is how this tensor is multiplied. Built with a library for products, candle's are faster
/// than ours, on threads of their own.
pub(super) fn is_ours(a: &Tensor) -> bool {
    a.device().is_cpu() && !cfg!(any(feature = "mkl", feature = "accelerate"))
}

/// The numbers of [`product`], computed by this computer.
pub(super) fn product_numbers(a: &Tensor, b: &Tensor, split: usize) -> Result<Vec<f32>> {
    let (da, db) = (a.dims(), b.dims());
    let unfit = || Error::Msg(format!("a product of {da:?} and {db:?}"));
    let ([outer @ .., rows, k], [outer_b @ .., n, k_b]) = (da, db) else { return Err(unfit()) };
    let (mut m, n, k) = (*rows, *n, *k);
    let mut batch: usize = outer.iter().product();
    if outer_b.is_empty() {
        (m, batch) = (m * batch, 1);
    }
    if k != *k_b || (!outer_b.is_empty() && outer != outer_b) {
        return Err(unfit());
    }
    let mut out = vec![0.0f32; batch * m * n];
    numbers(a, |a| {
        numbers(b, |b| {
            for i in 0..batch {
                let a = View::new(&a[i * m * k..][..m * k], m, k, k);
                let b = View::new(&b[i * n * k..][..n * k], n, k, k);
                multiply(a, b.transposed(), &mut out[i * m * n..][..m * n], n, split);
            }
            Ok(())
        })
    })?;
    Ok(out)
}

/// `[m, k]` times the transpose of `[n, k]`, into `[m, n]`, on the calling thread.
///
/// # Panics
/// If the lengths do not fit the dimensions `[m, n, k]`.
pub fn rows_times_rows(a: &[f32], b: &[f32], [m, n, k]: [usize; 3], out: &mut [f32]) {
    multiply(View::new(a, m, k, k), View::new(b, n, k, k).transposed(), out, n, 1);
}

/// Adds to `out[i][j]`, for `i` in `some` and `j` from `some.start` on, the product of columns `i` and `j` of `rows`
/// `[n, columns]`: a panel of rows times their transpose, from the block on the diagonal to the right. On the calling
/// thread; `out` is `[some.len(), columns - some.start]`.
///
/// # Panics
/// If the lengths do not fit.
pub(crate) fn add_columns_times_columns(rows: &[f32], columns: usize, some: std::ops::Range<usize>, out: &mut [f32]) {
    let (n, width) = (rows.len() / columns, columns - some.start);
    assert!(rows.len().is_multiple_of(columns) && some.end <= columns, "columns {some:?} of {columns}");
    if n == 0 {
        return;
    }
    let right = View::new(&rows[some.start..], n, width, columns);
    let left = View::new(&rows[some.start..], n, some.len(), columns);
    multiplied(left.transposed(), right, out, width, 1, true);
}

/// Shows the numbers of a tensor, row by row; without a copy if they lie so in this computer's memory.
pub(super) fn numbers<R>(x: &Tensor, then: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return then(&x.flatten_all()?.to_vec1::<f32>()?);
    };
    then(&storage.as_slice::<f32>()?[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_those_that_differences_show() {
        derived::tests::check(|x| product(&x[0], &x[1], 1), &[&[5, 3], &[4, 3]]);
        derived::tests::check(|x| product(&x[0], &x[1], 1), &[&[2, 5, 3], &[2, 4, 3]]);
    }

    #[test]
    fn views_with_gaps_are_multiplied() {
        // 2 x 3 in rows of 4, times 3 x 2 as the transpose of 2 x 3, into rows of 3.
        let a = [1.0, 2.0, 3.0, 99.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, 2.0, 0.0, 1.0, 1.0];
        let mut out = [7.0; 5];
        multiply(View::new(&a, 2, 3, 4), View::new(&b, 2, 3, 3).transposed(), &mut out, 3, 1);
        assert_eq!(out, [7.0, 5.0, 7.0, 16.0, 11.0]);
        multiply(View::new(&a, 2, 0, 4), View::new(&b, 0, 2, 2), &mut out, 3, 1);
        assert_eq!(out, [0.0, 0.0, 7.0, 0.0, 0.0]);
    }

    #[test]
    fn panels_of_columns_are_added() {
        let rows = [1.0, 2.0, 3.0, -1.0, 0.5, 4.0];
        let mut out = [100.0; 2];
        add_columns_times_columns(&rows, 3, 1..2, &mut out);
        assert_eq!(out, [100.0 + 4.0 + 0.25, 100.0 + 6.0 + 2.0]);
        add_columns_times_columns(&[], 3, 1..2, &mut out);
        assert_eq!(out, [104.25, 108.0]);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_product_beyond_its_slice_is_refused() {
        multiply(View::new(&[1.0; 4], 2, 2, 2), View::new(&[1.0; 4], 2, 2, 2), &mut [0.0; 3], 2, 1);
    }

    #[test]
    #[should_panic(expected = "a product of")]
    fn a_view_beyond_its_slice_is_refused() {
        multiply(View::new(&[1.0; 4], 2, 2, 3), View::new(&[1.0; 4], 2, 2, 2), &mut [0.0; 4], 2, 1);
    }
}
