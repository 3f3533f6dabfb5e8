//! The token shift (RWKV, Peng et al. 2023): mixes of each position with the previous one.

use super::elementwise::{add, multiply};
use crate::model::rows::Rows;

/// Differences to the previous row, `x[t - 1] - x[t]`, with zeros before the first.
pub(crate) fn differences(x: &Rows) -> Rows {
    let mut y = Rows::zeros(x.len(), x.columns());
    let (columns, numbers) = (x.columns(), x.numbers());
    y.numbers_mut()[columns.min(numbers.len())..]
        .copy_from_slice(&numbers[..numbers.len().saturating_sub(columns)]);
    let places = y.numbers_mut().iter_mut().zip(numbers);
    places.for_each(|(y, x)| *y -= x);
    y
}

/// Derivative of [`differences`]: adds the gradient of `x` to `dx`, given the gradient `g` of the
/// differences.
pub(crate) fn differences_derivative(g: &Rows, dx: &mut Rows) {
    let (columns, numbers) = (g.columns(), g.numbers());
    let places = dx.numbers_mut().iter_mut().zip(numbers);
    places.for_each(|(dx, g)| *dx -= g);
    let later = numbers.get(columns..).unwrap_or_default();
    add(&mut dx.numbers_mut()[..later.len()], later);
}

/// Rows plus their differences times `weights`, one weight per column.
pub(crate) fn mixed(x: &Rows, differences: &Rows, weights: &[f32]) -> Rows {
    let mut y = differences.clone();
    for (y, x) in y.iter_mut().zip(x.iter()) {
        multiply(y, weights);
        add(y, x);
    }
    y
}

/// Derivative of [`mixed`]: adds the gradients of `x` and of the differences to `dx` and `dd`,
/// given the gradient `g` of the mix.
pub(crate) fn mixed_derivative(g: &Rows, weights: &[f32], dx: &mut Rows, dd: &mut Rows) {
    add(dx.numbers_mut(), g.numbers());
    for (dd, g) in dd.iter_mut().zip(g.iter()) {
        let mut g = g.to_vec();
        multiply(&mut g, weights);
        add(dd, &g);
    }
}
