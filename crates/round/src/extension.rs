//! Pair means of a whole text from pairs on a part of it.
//!
//! Sequential rounding is faster on a part of the calibration text. The original model's inputs `x`
//! are known on all of it, by their Hessian `H`. What rounding changes is small, and predicted from
//! `x`: with `x - z = B x + f`, where `B` and the mean of `f f^T` come from the part,
//!
//! ```text
//! E[z z^T]       = H - B H - H B^T + K        K = B H B^T + E[f f^T]
//! E[(x - z) z^T] = B H - K
//! ```
//!
//! This is the regression estimator of two-phase sampling (Cochran, Sampling Techniques, 1977,
//! chapter 12). Its error is that of `f` and `B`, not that of `E[x x^T]`.

use crate::NoFactor;
use crate::hessian::PairMeans;
use crate::matrix::{View, add_product, multiply};
use crate::statistics::factored;

/// Means `[n, n]` beside the factor: `H`, and those of `x x^T`, `(x - z) x^T`, `(x - z) (x - z)^T`.
pub(crate) const MEANS: u64 = 4;

impl PairMeans {
    /// The pair means of a text from the mean of its `rows` products `x x^T`, `[n, n]`. Unchanged without the squares of
    /// the differences, or if all inputs of the part are zero. Computed on the threads of the current pool.
    ///
    /// # Errors
    /// Numbers that are not finite.
    ///
    /// # Panics
    /// If the numbers of columns differ.
    pub fn extended(mut self, mut whole: Vec<f32>, rows: u64) -> Result<PairMeans, NoFactor> {
        let (n, split) = (self.columns, rayon::current_num_threads());
        assert_eq!(whole.len(), n * n, "a Hessian of other inputs");
        let Some(mut k) = self.differences.take() else {
            return Ok(self);
        };
        // x = z + d, so the mean of d x^T is that of d z^T plus that of d d^T, and so on.
        let mut dx = std::mem::take(&mut self.cross);
        let mut xx = std::mem::take(&mut self.mean);
        add_with_transpose(&mut xx, &dx, 1.0, n);
        add(&mut xx, &k);
        add(&mut dx, &k);
        let Some((factor, _)) = factored(&xx, n, self.rows)? else {
            // All inputs of the original model are zero.
            (self.mean, self.cross) = (k.clone(), negated(&k));
            return Ok(self);
        };
        let mut b = dx.clone();
        factor.divide(&mut b, split);
        drop(factor);
        // The mean of f f^T is that of (d - B x) (d - B x)^T.
        let mut products = vec![0.0; n * n];
        multiply(
            square(&b, n),
            square(&dx, n).transposed(),
            &mut products,
            n,
            split,
        );
        drop(dx);
        add_with_transpose(&mut k, &products, -1.0, n);
        // B H, then B (H + E[x x^T]).
        let mut bh = products;
        multiply(square(&b, n), square(&whole, n), &mut bh, n, split);
        let mut both = bh.clone();
        add_product(square(&b, n), square(&xx, n), &mut both, n, split);
        drop(xx);
        add_product(
            square(&both, n),
            square(&b, n).transposed(),
            &mut k,
            n,
            split,
        );
        drop((both, b));
        add_with_transpose(&mut whole, &bh, -1.0, n);
        add(&mut whole, &k);
        bh.iter_mut().zip(&k).for_each(|(x, k)| *x -= k);
        (self.mean, self.cross, self.rows) = (whole, bh, rows);
        Ok(self)
    }
}

fn square(numbers: &[f32], n: usize) -> View<'_> {
    View::new(numbers, n, n, n)
}

fn negated(numbers: &[f32]) -> Vec<f32> {
    numbers.iter().map(|x| -x).collect()
}

fn add(to: &mut [f32], other: &[f32]) {
    to.iter_mut().zip(other).for_each(|(x, y)| *x += y);
}

/// Adds `times` a matrix `[n, n]` and its transpose.
fn add_with_transpose(to: &mut [f32], other: &[f32], times: f32, n: usize) {
    /// Rows and columns of a tile, to stay in cache.
    const TILE: usize = 64;
    for (rows, to) in to.chunks_mut(TILE * n).enumerate() {
        for from in (0..n).step_by(TILE) {
            for (i, to) in to.chunks_exact_mut(n).enumerate() {
                let i = rows * TILE + i;
                for j in from..(from + TILE).min(n) {
                    to[j] += times * (other[i * n + j] + other[j * n + i]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hessian::PairSums;
    use quantier_core::rng::Rng;

    const N: usize = 24;

    /// Inputs of both models: correlated channels, and a rounded model that loses a part of some
    /// and adds noise.
    fn inputs(rows: usize, rng: &mut Rng) -> [Vec<f32>; 2] {
        let mut both = [Vec::new(), Vec::new()];
        for _ in 0..rows {
            let common = rng.centered();
            let x: Vec<f32> = (0..N)
                .map(|i| (common + rng.centered() * 0.5) * (1.0 + i as f32 / 8.0))
                .collect();
            let z = (0..N).map(|i| x[i] - 0.1 * x[(i + 1) % N] + 0.05 * rng.centered());
            both[1].extend(z);
            both[0].extend(x);
        }
        both
    }

    fn summed([x, z]: &[Vec<f32>; 2]) -> PairMeans {
        let sums = PairSums::new(N, 1, true);
        sums.add(0, x.clone(), z.clone());
        sums.finish()
    }

    fn hessian([x, _]: &[Vec<f32>; 2]) -> (Vec<f32>, u64) {
        let PairMeans { mean, rows, .. } = summed(&[x.clone(), x.clone()]);
        (mean, rows)
    }

    fn extended(part: &[Vec<f32>; 2], whole: &[Vec<f32>; 2]) -> PairMeans {
        let (mean, rows) = hessian(whole);
        summed(part).extended(mean, rows).unwrap()
    }

    /// Relative distance in the Frobenius norm.
    fn distance(found: &[f32], truth: &[f32]) -> f64 {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let errors = found.iter().zip(truth).map(|(a, b)| square(a - b));
        let errors: f64 = errors.sum();
        (errors / truth.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
    }

    #[test]
    fn the_means_of_a_whole_text_are_its_own() {
        let pairs = inputs(3000, &mut Rng::new(1));
        let direct = summed(&pairs);
        let found = extended(&pairs, &pairs);
        assert_eq!(found.rows, 3000);
        let [mean, cross] = [
            distance(&found.mean, &direct.mean),
            distance(&found.cross, &direct.cross),
        ];
        // The regression is damped by 1%.
        assert!(mean < 5e-3 && cross < 5e-2, "{mean} {cross}");
    }

    #[test]
    fn a_part_with_the_whole_hessian_is_closer_than_the_part_alone() {
        let whole = inputs(20_000, &mut Rng::new(2));
        let part = whole.each_ref().map(|rows| rows[..200 * N].to_vec());
        let (truth, alone) = (summed(&whole), summed(&part));
        let found = extended(&part, &whole);
        let distances = |of: &PairMeans| {
            [
                distance(&of.mean, &truth.mean),
                distance(&of.cross, &truth.cross),
            ]
        };
        let ([mean, cross], [mean_alone, cross_alone]) = (distances(&found), distances(&alone));
        assert!(mean < 0.2 * mean_alone, "{mean} {mean_alone}");
        assert!(cross < 0.5 * cross_alone, "{cross} {cross_alone}");
    }

    #[test]
    fn inputs_of_zeros_leave_the_rounded_models_own() {
        let [_, z] = inputs(100, &mut Rng::new(3));
        let pairs = [vec![0.0; z.len()], z];
        let direct = summed(&pairs);
        let found = extended(&pairs, &pairs);
        assert_eq!((found.mean, found.cross), (direct.mean, direct.cross));
    }
}
