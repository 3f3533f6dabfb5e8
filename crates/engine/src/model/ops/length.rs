//! Rows scaled to the length of other rows.

use crate::model::rows::Rows;
use quantier_blocks::vector::sum_of_squares;

/// Euclidean length of a row.
fn length(row: &[f32]) -> f32 {
    (sum_of_squares(row) as f32).sqrt()
}

/// Scales every row of `x` to the length of the row of `target`.
pub(crate) fn match_lengths(x: &mut Rows, target: &Rows) {
    for (row, target) in x.iter_mut().zip(target.iter()) {
        let (wanted, own) = (length(target), length(row));
        row.iter_mut().for_each(|x| *x = *x * wanted / own);
    }
}

/// Derivative of [`match_lengths`]: turns the output gradient `g` into the gradient of `x`, and
/// returns that of `target`.
///
/// With the lengths `m` of the target `t` and `n` of `x`, and `d = x . g`: `m / n (g - x d / n^2)`,
/// and `t d / (m n)`.
pub(crate) fn match_lengths_derivative(x: &Rows, target: &Rows, g: &mut Rows) -> Rows {
    let mut of_target = target.clone();
    let rows = of_target.iter_mut().zip(g.iter_mut());
    for ((target, g), x) in rows.zip(x.iter()) {
        let (wanted, own) = (length(target), length(x));
        let both: f64 = x.iter().zip(&*g).map(|(x, g)| f64::from(x * g)).sum();
        let both = both as f32;
        let (ratio, back) = (wanted / own, both / (own * own));
        let places = g.iter_mut().zip(x);
        places.for_each(|(g, x)| *g = ratio * (*g - x * back));
        let factor = both / (wanted * own);
        target.iter_mut().for_each(|t| *t *= factor);
    }
    of_target
}
