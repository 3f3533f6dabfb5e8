//! Shrinkage of the statistics of an expert towards those of all experts of its layer.
//!
//! An expert that few tokens are routed to has noisy means, or none. The mean over its `r` rows and
//! the pooled mean over the rows of all experts are combined to
//!
//! ```text
//! (r own + k pooled) / (r + k)
//! ```
//!
//! the credibility estimator (Bühlmann 1967): with `k` the variance of a row within an expert over
//! the variance of means between experts, it has the least mean squared error of all linear
//! estimates. Ledoit and Wolf (2004) shrink matrices in the same way. The pooled mean
//! counts for [`Prior`] rows. Without rows the estimate is the pooled mean, with many it is the
//! expert's own; as a convex combination of two positive semidefinite matrices, it is one.

use quantier_gguf::imatrix::Entry;

/// Rows that the pooled mean counts for: `k` above.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prior(f64);

impl Prior {
    /// Of mean squares by channel (importance weights): every channel is a separate estimate, so
    /// few rows suffice. Measured on a trained model of 8 experts per layer, with 16 to 128 rows for
    /// each: 16 to 64 are best, and 32 leaves 0.31 to 0.72 of the squared error of the own means.
    pub const SQUARES: Prior = Prior(32.0);

    /// Of mean products of pairs of `columns` channels (Hessians): full rank takes as many rows,
    /// and with fewer the inverse is noise in all other directions.
    pub fn products(columns: usize) -> Prior {
        Prior(columns as f64)
    }

    /// Weight of the mean over `rows` rows, from 0 to 1; the rest is that of the pooled mean.
    pub fn own_weight(self, rows: u64) -> f64 {
        rows as f64 / (rows as f64 + self.0)
    }

    /// Replaces the pooled mean by the estimate for a matrix with the mean `own` over `rows` rows.
    pub fn shrink(self, own: &[f32], rows: u64, pooled: &mut [f32]) {
        let weight = self.own_weight(rows);
        for (pooled, own) in pooled.iter_mut().zip(own) {
            *pooled = (f64::from(*own) * weight + f64::from(*pooled) * (1.0 - weight)) as f32;
        }
    }
}

/// Importance weights of a tensor, one per column and matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// The reference's: means over each matrix's own rows, ones without rows.
    reference: Vec<f32>,
    /// Those of several matrices, shrunk towards the pooled means; `None` if there is no difference.
    shrunk: Option<Vec<f32>>,
}

impl Importance {
    /// The importance weights of an entry of an importance matrix.
    pub fn new(entry: &Entry) -> Importance {
        Importance {
            reference: entry.means(),
            shrunk: shrunk(entry),
        }
    }

    /// Weights that are already means, of one matrix.
    pub fn of_means(means: Vec<f32>) -> Importance {
        Importance {
            reference: means,
            shrunk: None,
        }
    }

    /// Weights of all matrices for rounding as the reference does: llama-quantize's.
    pub fn reference(&self) -> &[f32] {
        &self.reference
    }

    /// Weights of all matrices, shrunk where there are several.
    pub fn shrunk(&self) -> &[f32] {
        self.shrunk.as_deref().unwrap_or(&self.reference)
    }
}

/// Means over the rows of each matrix, shrunk; `None` for one matrix, for files with one count for
/// all, and without any rows.
///
/// The target is the pooled mean by channel, or the matrix's own mean over all channels, if that is
/// nearer on the whole: the channels of a down projection are other neurons in every expert, and the
/// same channels of two experts have nothing in common.
fn shrunk(entry: &Entry) -> Option<Vec<f32>> {
    let matrices = entry.counts.len();
    let rows: i64 = entry.counts.iter().sum();
    if matrices < 2 || rows <= 0 {
        return None;
    }
    let columns = entry.sums.len() / matrices;
    let mut total = vec![0.0f64; columns];
    for sums in entry.sums.chunks_exact(columns.max(1)) {
        total
            .iter_mut()
            .zip(sums)
            .for_each(|(total, sum)| *total += f64::from(*sum));
    }
    let pooled: Vec<f32> = total.iter().map(|sum| (sum / rows as f64) as f32).collect();
    let means = entry.means();
    let own = || means.chunks_exact(columns.max(1)).zip(&entry.counts);
    let distance = |own: &[f32], target: &dyn Fn(usize) -> f32| -> f64 {
        let squares = own
            .iter()
            .enumerate()
            .map(|(i, x)| f64::from(x - target(i)).powi(2));
        squares.sum()
    };
    let [mut by_channel, mut by_matrix] = [0.0f64; 2];
    for (own, count) in own().filter(|(_, count)| **count < rows) {
        let (count, level) = (*count as f64, level(own));
        // The mean of the others: with few experts, the pooled mean is near to each of its parts.
        let others =
            |i: usize| ((total[i] - count * f64::from(own[i])) / (rows as f64 - count)) as f32;
        by_channel += count * distance(own, &others);
        by_matrix += count * distance(own, &|_| level);
    }
    let of_matrix = |(own, count): (&[f32], &i64)| {
        let rows = (*count).max(0) as u64;
        let mut mean = match by_channel <= by_matrix {
            true => pooled.clone(),
            // A matrix without rows has no level of its own; the scale of weights is irrelevant.
            false => vec![level(if rows > 0 { own } else { &pooled }); columns],
        };
        Prior::SQUARES.shrink(own, rows, &mut mean);
        mean
    };
    Some(own().flat_map(of_matrix).collect())
}

/// The mean over all channels.
fn level(means: &[f32]) -> f32 {
    let sum: f64 = means.iter().map(|x| f64::from(*x)).sum();
    (sum / means.len().max(1) as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DAMPING, InputFactor};
    use quantier_core::rng::Rng;

    fn entry(counts: &[i64], columns: usize, seed: u64) -> Entry {
        let mut rng = Rng::new(seed);
        let mut sums = Vec::new();
        for count in counts {
            sums.extend((0..columns).map(|_| *count as f32 * (0.1 + rng.uniform())));
        }
        Entry {
            sums,
            counts: counts.to_vec(),
        }
    }

    #[test]
    fn many_rows_give_the_own_mean_and_none_the_pooled() {
        for prior in [Prior::SQUARES, Prior::products(256)] {
            let estimate = |rows| {
                let mut pooled = vec![4.0f32, 2.0];
                prior.shrink(&[1.0, 3.0], rows, &mut pooled);
                pooled
            };
            assert_eq!(estimate(0), [4.0, 2.0]);
            assert_eq!(estimate(u64::MAX), [1.0, 3.0]);
            let half = estimate(prior.0 as u64);
            assert_eq!(half, [2.5, 2.5]);
            let mut before = estimate(0);
            for rows in [1, 10, 100, 1000, 1_000_000] {
                let after = estimate(rows);
                assert!(after[0] < before[0] && after[1] > before[1], "{rows}");
                before = after;
            }
        }
    }

    #[test]
    fn importance_of_unreached_experts_is_the_pooled_one() {
        let mut entry = entry(&[100, 0, 3, 1_000_000], 8, 1);
        // Channels in common: their means differ by a hundredth between experts.
        for (at, sum) in entry.sums.iter_mut().enumerate() {
            let count = entry.counts[at / 8] as f32;
            *sum = count * (1 + at % 8) as f32 * (1.0 + 0.01 * (*sum / count.max(1.0)));
        }
        let importance = Importance::new(&entry);
        let (reference, shrunk) = (importance.reference(), importance.shrunk());
        assert_eq!(reference[8..16], [1.0; 8], "llama-quantize's");
        let rows: i64 = entry.counts.iter().sum();
        for column in 0..8 {
            let total: f64 = (0..4)
                .map(|matrix| f64::from(entry.sums[matrix * 8 + column]))
                .sum();
            let pooled = (total / rows as f64) as f32;
            assert_eq!(shrunk[8 + column], pooled);
            let [own, near] = [reference, shrunk].map(|of| of[24 + column]);
            assert!((near / own - 1.0).abs() < 1e-4, "{own} {near}");
            let [own, between] = [reference, shrunk].map(|of| of[16 + column]);
            let bounds = own.min(pooled)..=own.max(pooled);
            assert!(bounds.contains(&between), "{own} {between} {pooled}");
        }
    }

    #[test]
    fn channels_without_anything_in_common_shrink_towards_their_level() {
        let counts = vec![8, 8, 0];
        let mut sums = vec![8.0, 80.0, 800.0, 800.0, 8.0, 80.0];
        sums.extend([0.0; 3]);
        let importance = Importance::new(&Entry { sums, counts });
        let shrunk = importance.shrunk();
        // Own means of 1, 10 and 100 with a weight of 8 / (8 + 32), and their level of 37.
        let expected = [1.0f32, 10.0, 100.0].map(|own| 0.2 * own + 0.8 * 37.0);
        for (found, expected) in shrunk[..3].iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{shrunk:?}");
        }
        assert_eq!(shrunk[6], shrunk[7]);
        assert_eq!(shrunk[7], shrunk[8]);
    }

    #[test]
    fn importance_of_a_single_matrix_is_the_reference_s() {
        for counts in [&[7][..], &[0], &[0, 0]] {
            let entry = entry(counts, 4, 2);
            let importance = Importance::new(&entry);
            assert_eq!(importance.shrunk(), entry.means());
            assert_eq!(importance.reference(), entry.means());
        }
    }

    /// A mean over fewer rows than columns is singular; shrunk towards a positive definite one it is
    /// factored without additional damping.
    #[test]
    fn shrunk_hessians_are_positive_definite() {
        const N: usize = 24;
        let mut rng = Rng::new(3);
        let mean = |rows: usize, rng: &mut Rng| {
            let mut mean = vec![0.0f32; N * N];
            for _ in 0..rows {
                let x: Vec<f32> = (0..N).map(|_| rng.gaussian()).collect();
                for i in 0..N {
                    for j in 0..N {
                        mean[i * N + j] += x[i] * x[j] / rows as f32;
                    }
                }
            }
            mean
        };
        let pooled = mean(400, &mut rng);
        for rows in [1, 3, N - 1, 2 * N] {
            let own = mean(rows, &mut rng);
            let mut shrunk = pooled.clone();
            Prior::products(N).shrink(&own, rows as u64, &mut shrunk);
            assert!(InputFactor::new(&shrunk, N, DAMPING, 1).is_ok(), "{rows}");
            // The quadratic form is at least the pooled part's.
            let weight = 1.0 - Prior::products(N).own_weight(rows as u64);
            for _ in 0..20 {
                let v: Vec<f32> = (0..N).map(|_| rng.gaussian()).collect();
                let form = |h: &[f32]| -> f64 {
                    let at = |i: usize, j: usize| f64::from(h[i * N + j] * v[i] * v[j]);
                    (0..N * N).map(|ij| at(ij / N, ij % N)).sum()
                };
                assert!(form(&shrunk) > 0.999 * weight * form(&pooled), "{rows}");
            }
        }
    }
}
