//! The matrix product, on one thread per call: the caller runs chunks side by side, which loses
//! less than splitting each product does.

use super::derived;
use crate::matrix::{View, multiply};
use candle_core::{Error, Result, Storage, Tensor};

/// `[batch.., m, k]` times the transpose of `[batch.., n, k]` (or of `[n, k]`, the same for all):
/// rows times rows.
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
        let of_a = a_tracked
            .then(|| product(g, &turned(b)?, split))
            .transpose()?;
        let of_b = b_tracked
            .then(|| product(&turned(g)?, &turned(a)?, split))
            .transpose()?;
        Ok([of_a, of_b])
    }
}

/// Whether [`product_numbers`] is how this tensor is multiplied. Built with a library for products,
/// candle's are faster than ours, on threads of their own.
pub(super) fn is_ours(a: &Tensor) -> bool {
    a.device().is_cpu() && !cfg!(any(feature = "mkl", feature = "accelerate"))
}

/// The numbers of [`product`], computed by this computer.
pub(super) fn product_numbers(a: &Tensor, b: &Tensor, split: usize) -> Result<Vec<f32>> {
    let (da, db) = (a.dims(), b.dims());
    let unfit = || Error::Msg(format!("a product of {da:?} and {db:?}"));
    let ([outer @ .., rows, k], [outer_b @ .., n, k_b]) = (da, db) else {
        return Err(unfit());
    };
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
    multiply(
        View::new(a, m, k, k),
        View::new(b, n, k, k).transposed(),
        out,
        n,
        1,
    );
}

/// Shows the numbers of a tensor, row by row; without a copy if they lie so in this computer's
/// memory.
pub(super) fn numbers<R>(x: &Tensor, then: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
    else {
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
}
