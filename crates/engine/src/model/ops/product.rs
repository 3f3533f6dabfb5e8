//! Matrix products, on one thread per call by default: parallel chunks are more efficient than
//! split products.

use crate::model::rows::Rows;
use quantier_round::matrix::{View, multiply};

/// `x w^T`, for `w` with as many columns as `x`. `split` is the number of threads per product.
pub(crate) fn product(x: &Rows, w: &[f32], split: usize) -> Rows {
    let columns = x.columns();
    let outputs = w.len() / columns;
    let mut y = vec![0.0f32; x.len() * outputs];
    let w = View::new(w, outputs, columns, columns);
    multiply(x.view(), w.transposed(), &mut y, outputs, split);
    Rows::new(y, outputs)
}

/// Derivative of [`product`] with respect to `x`: `g w`, for the gradient `g` of the product.
pub(crate) fn product_derivative(g: &Rows, w: &[f32], split: usize) -> Rows {
    let columns = w.len() / g.columns();
    let mut x = vec![0.0f32; g.len() * columns];
    let w = View::new(w, g.columns(), columns, columns);
    multiply(g.view(), w, &mut x, columns, split);
    Rows::new(x, columns)
}

/// [`product_derivative`] for one row, as dot products with the columns of `w`.
///
/// gemm sums single rows in an order that depends on the matrix layout. Dot products keep the
/// established order for expert scores of a single token.
pub(crate) fn row_derivative(g: &Rows, w: &[f32]) -> Rows {
    let columns = w.len() / g.columns();
    let mut turned = Vec::with_capacity(w.len());
    for column in 0..columns {
        turned.extend(w.iter().skip(column).step_by(columns));
    }
    product(g, &turned, 1)
}

/// `[m, k]` times the transpose of `[n, k]` into `[m, n]`, on the calling thread.
///
/// # Panics
/// If the lengths do not match the dimensions `[m, n, k]`.
pub fn rows_times_rows(a: &[f32], b: &[f32], [m, n, k]: [usize; 3], out: &mut [f32]) {
    multiply(
        View::new(a, m, k, k),
        View::new(b, n, k, k).transposed(),
        out,
        n,
        1,
    );
}
