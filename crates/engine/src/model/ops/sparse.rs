//! Sparse activations: a row's numbers far above its mean.

use crate::model::rows::Rows;
use quantier_blocks::vector::{sum, sum_of_squares};

/// Mean of a row, and its standard deviation with one degree of freedom less than numbers.
fn moments(row: &[f32]) -> [f32; 2] {
    let mean = (sum(row) / row.len() as f64) as f32;
    let centred: Vec<f32> = row.iter().map(|x| x - mean).collect();
    let variance = sum_of_squares(&centred) / (row.len() as f64 - 1.0);
    [mean, (variance as f32).sqrt()]
}

/// Subtracts from every row its mean plus `deviations` standard deviations. Numbers below become 0.
pub(crate) fn keep_above(x: &mut Rows, deviations: f32) {
    for row in x.iter_mut() {
        let [mean, deviation] = moments(row);
        let bound = mean + deviations * deviation;
        row.iter_mut().for_each(|x| *x = (*x - bound).max(0.0));
    }
}

/// Derivative of [`keep_above`]: turns the output gradient `g` into the gradient of `x`.
///
/// With the sum `a` of the gradients of what is kept, each number of a row of `n` also has `-a` times
/// the bound's derivative, `1 / n + deviations (x - mean) / ((n - 1) deviation)`.
pub(crate) fn keep_above_derivative(x: &Rows, g: &mut Rows, deviations: f32) {
    for (x, g) in x.iter().zip(g.iter_mut()) {
        let [mean, deviation] = moments(x);
        let bound = mean + deviations * deviation;
        let places = g.iter_mut().zip(x).filter(|(_, x)| **x <= bound);
        places.for_each(|(g, _)| *g = 0.0);
        let kept = sum(g) as f32;
        let n = x.len() as f32;
        // Rows of equal numbers have no bound to move.
        let slope = match deviation > 0.0 {
            true => deviations / ((n - 1.0) * deviation),
            false => 0.0,
        };
        let places = g.iter_mut().zip(x);
        places.for_each(|(g, x)| *g -= kept * (1.0 / n + slope * (x - mean)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_above_the_bound_are_kept_less_the_bound() {
        // Mean 2, standard deviation 2 with two degrees of freedom; then a row of equal numbers.
        let mut rows = Rows::new(vec![0.0, 2.0, 4.0, 3.0, 3.0, 3.0], 3);
        keep_above(&mut rows, 0.5);
        assert_eq!(rows.numbers(), [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        let mut g = Rows::new(vec![1.0; 3], 3);
        keep_above_derivative(&Rows::new(vec![3.0; 3], 3), &mut g, 0.5);
        assert_eq!(g.numbers(), [0.0; 3]);
    }
}
