//! Samples of a matrix's rows, with probabilities in proportion to their expected costs.
//!
//! Rows are rounded independently, and their errors are nearly uncorrelated, so that a matrix's
//! cost is close to the sum of its rows' costs. Those differ by orders of magnitude, but in
//! proportion to the product of a row's power and that of its output gradients, which is known
//! before anything is rounded. A sample with probabilities in that proportion (Hansen and Hurwitz
//! 1943; systematic sampling by Madow 1949) estimates the sum from a few hundred rows within a few
//! percent, whatever the size of the matrix.

use quantier_core::rng::Rng;

/// A row to be scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Row {
    /// Index in the matrix.
    pub(super) index: usize,
    /// Inverse of its probability: its weight in a sum over all rows.
    pub(super) weight: f64,
}

/// Rows of one matrix, ascending.
#[derive(Clone, Debug)]
pub(super) struct RowSample {
    pub(super) matrix: usize,
    pub(super) rows: Vec<Row>,
}

impl RowSample {
    /// All `count` rows.
    pub(super) fn all(matrix: usize, count: usize) -> RowSample {
        let rows = (0..count).map(|index| Row { index, weight: 1.0 });
        RowSample {
            matrix,
            rows: rows.collect(),
        }
    }

    /// About `most` rows, with probabilities in proportion to the expected `costs` of all rows.
    /// Rows whose share would exceed certainty are always included.
    pub(super) fn proportional(matrix: usize, costs: &[f64], most: usize, seed: u64) -> RowSample {
        /// Part of the probability that is the same for all rows: an expected cost can be wrong.
        const EQUAL: f64 = 0.1;
        let all = |costs: &[f64]| costs.iter().filter(|c| c.is_finite()).sum::<f64>();
        let (sum, count) = (all(costs), costs.len().max(1) as f64);
        let size = |cost: &f64| {
            let share = if sum > 0.0 && cost.is_finite() {
                cost / sum
            } else {
                0.0
            };
            (1.0 - EQUAL) * share + EQUAL / count
        };
        let sizes: Vec<f64> = costs.iter().map(size).collect();
        let mut is_certain = vec![costs.len() <= most; costs.len()];
        let (mut left, mut size_left) = (most, sizes.iter().sum::<f64>());
        // Each certain row raises the probabilities of the others.
        while left > 0 {
            let certain = |i: &usize| !is_certain[*i] && sizes[*i] * left as f64 >= size_left;
            let certain: Vec<usize> = (0..sizes.len()).filter(certain).collect();
            if certain.is_empty() {
                break;
            }
            for i in certain {
                is_certain[i] = true;
                size_left -= sizes[i];
                left = left.saturating_sub(1);
            }
        }
        let step = size_left.max(f64::MIN_POSITIVE) / left.max(1) as f64;
        let mut next = step * Rng::new(seed.wrapping_add(matrix as u64)).uniform_f64();
        let (mut rows, mut end) = (Vec::with_capacity(most), 0.0);
        for (index, size) in sizes.iter().enumerate() {
            if is_certain[index] {
                rows.push(Row { index, weight: 1.0 });
                continue;
            }
            end += size;
            if left > 0 && next < end {
                let weight = step / size;
                rows.push(Row { index, weight });
                next += step;
            }
        }
        RowSample { matrix, rows }
    }
}

/// A sum over all rows, estimated from a sample, with its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct RowSum {
    /// The estimate.
    pub(super) sum: f64,
    /// Number, sum and squares of the weighted values of randomly chosen rows.
    random: [f64; 3],
}

impl RowSum {
    /// Adds a row's value.
    pub(super) fn add(&mut self, row: &Row, value: f64) {
        let weighted = value * row.weight;
        self.sum += weighted;
        if row.weight > 1.0 {
            let random = [1.0, weighted, weighted * weighted];
            self.random
                .iter_mut()
                .zip(random)
                .for_each(|(all, x)| *all += x);
        }
    }

    /// Adds the values of other rows.
    pub(super) fn merge(&mut self, other: &RowSum) {
        self.sum += other.sum;
        let pairs = self.random.iter_mut().zip(other.random);
        pairs.for_each(|(all, x)| *all += x);
    }

    /// Standard error of the estimate, from the spread of the weighted values.
    pub(super) fn error(&self) -> f64 {
        let [count, sum, squares] = self.random;
        match count >= 2.0 {
            true => ((squares - sum * sum / count).max(0.0) * count / (count - 1.0)).sqrt(),
            false => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(sample: &RowSample, values: &[f64]) -> RowSum {
        let mut sum = RowSum::default();
        sample
            .rows
            .iter()
            .for_each(|row| sum.add(row, values[row.index]));
        sum
    }

    fn heavy(count: usize, seed: u64) -> Vec<f64> {
        let mut rng = Rng::new(seed);
        (0..count)
            .map(|_| f64::from(rng.gaussian() * 2.0).exp())
            .collect()
    }

    #[test]
    fn a_sample_of_all_rows_is_exact() {
        let values = heavy(100, 1);
        for most in [100, 1000] {
            let sample = RowSample::proportional(0, &values, most, 1);
            assert_eq!(sample.rows, RowSample::all(0, 100).rows);
            let sum = sum_of(&sample, &values);
            assert_eq!((sum.sum, sum.error()), (values.iter().sum(), 0.0));
        }
    }

    #[test]
    fn samples_have_the_size_asked_for_and_ascend() {
        for (count, most) in [(1000, 1), (1000, 7), (1000, 256), (257, 256)] {
            let sample = RowSample::proportional(3, &heavy(count, 2), most, 5);
            let indices: Vec<usize> = sample.rows.iter().map(|row| row.index).collect();
            assert!(
                indices.is_sorted() && indices.len().abs_diff(most) <= 1,
                "{count} {most}"
            );
            assert!(sample.rows.iter().all(|row| row.weight >= 1.0));
        }
    }

    #[test]
    fn estimates_are_unbiased_and_their_errors_true() {
        // Costs that are twice or half the expected ones, at random.
        let expected = heavy(2000, 3);
        let mut rng = Rng::new(4);
        let mut values = expected.clone();
        values
            .iter_mut()
            .for_each(|v| *v *= f64::from(rng.gaussian() * 0.5).exp());
        let truth: f64 = values.iter().sum();
        let runs: Vec<RowSum> = (0..400)
            .map(|seed| sum_of(&RowSample::proportional(0, &expected, 128, seed), &values))
            .collect();
        let count = runs.len() as f64;
        let mean = runs.iter().map(|run| run.sum).sum::<f64>() / count;
        let spread = |run: &RowSum| (run.sum - truth).powi(2);
        let spread = (runs.iter().map(spread).sum::<f64>() / count).sqrt();
        let error = runs.iter().map(RowSum::error).sum::<f64>() / count;
        assert!((mean / truth - 1.0).abs() < 0.01, "{mean} for {truth}");
        assert!(spread / truth < 0.06, "{spread} of {truth}");
        // Systematic sampling does slightly better than its estimate, which assumes independence.
        assert!(
            (0.6..1.2).contains(&(spread / error)),
            "{spread} for {error}"
        );
    }

    #[test]
    fn rows_without_expected_costs_can_be_chosen() {
        for costs in [vec![0.0; 50], vec![f64::NAN; 50]] {
            let sample = RowSample::proportional(0, &costs, 10, 1);
            assert!(sample.rows.len().abs_diff(10) <= 1);
            let sum = sum_of(&sample, &[1.0; 50]).sum;
            assert!((sum - 50.0).abs() < 6.0, "{sum}");
        }
    }

    #[test]
    fn merged_sums_equal_sums_of_all_rows() {
        let (costs, values) = (heavy(300, 5), heavy(300, 6));
        let sample = RowSample::proportional(0, &costs, 64, 1);
        let mut merged = RowSum::default();
        for part in sample.rows.chunks(10) {
            let rows = part.to_vec();
            merged.merge(&sum_of(&RowSample { matrix: 0, rows }, &values));
        }
        let whole = sum_of(&sample, &values);
        assert!((merged.sum / whole.sum - 1.0).abs() < 1e-12);
        assert!((merged.error() / whole.error() - 1.0).abs() < 1e-9);
    }
}
