//! Paired differences: which of two models is closer to the base, on the same rows.
//!
//! Tokens differ more from each other than models do, so that the difference row by row is far surer
//! than both means are. Rows of one chunk (or conversation) depend on each other: the standard error is that of the
//! sums of chunks.

use super::score::Comparison;
use serde::Serialize;

/// Fewest chunks for a standard error.
const FEWEST: usize = 8;
/// Standard errors from 0 beyond which the sign of a difference is sure: about 95% of the time.
const SURE: f64 = 2.0;

/// Which of two models is closer to the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The first.
    First,
    /// The second.
    Second,
    /// Neither beyond the standard error of these rows.
    Unclear,
}

/// The difference of two models' mean KL divergences.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// First minus second, in nats.
    pub difference: f64,
    /// Its standard error; None with fewer than 8 chunks with rows.
    pub uncertainty: Option<f64>,
    /// The verdict at two standard errors.
    pub verdict: Verdict,
    /// About the number of rows that would decide, if these do not.
    pub rows_needed: Option<u64>,
}

impl Paired {
    /// From both models' rows, the same positions in the same order. `chunks` are the numbers of rows that
    /// depend on each other, in order. None without rows.
    ///
    /// # Panics
    /// If the numbers of rows differ.
    pub fn of(first: &[Comparison], second: &[Comparison], chunks: &[usize]) -> Option<Paired> {
        assert_eq!(first.len(), second.len(), "rows of the same positions");
        assert_eq!(
            first.len(),
            chunks.iter().sum::<usize>(),
            "rows of all chunks"
        );
        let [first, second] = [first, second].map(|rows| sums_of_chunks(rows, chunks));
        let differences = first.iter().zip(&second).map(|(a, b)| a - b);
        Paired::of_sums(&differences.collect::<Vec<_>>(), chunks)
    }

    /// From the differences of both models' sums of KL divergences by chunk, in nats, and the numbers of rows of the
    /// chunks. None without rows.
    ///
    /// # Panics
    /// If the numbers of chunks differ.
    pub fn of_sums(differences: &[f64], chunks: &[usize]) -> Option<Paired> {
        assert_eq!(differences.len(), chunks.len(), "sums of all chunks");
        let rows = chunks.iter().sum::<usize>() as f64;
        if rows == 0.0 {
            return None;
        }
        let difference = differences.iter().sum::<f64>() / rows;
        // A chunk's deviation from the mean; chunks may differ in length (the ratio estimator of cluster samples:
        // Cochran 1977, section 11.2).
        let both = differences
            .iter()
            .zip(chunks)
            .filter(|(_, rows)| **rows > 0);
        let deviations = both.map(|(sum, rows)| sum - *rows as f64 * difference);
        let deviations: Vec<f64> = deviations.collect();
        let n = deviations.len() as f64;
        let squares: f64 = deviations.iter().map(|x| x.powi(2)).sum();
        let uncertainty =
            (deviations.len() >= FEWEST).then(|| (squares * n / (n - 1.0)).sqrt() / rows);
        let is_sure = uncertainty.is_some_and(|error| difference.abs() > SURE * error);
        let verdict = match is_sure {
            true if difference < 0.0 => Verdict::First,
            true => Verdict::Second,
            false => Verdict::Unclear,
        };
        // The standard error falls with the square root of the number of rows.
        let needed = uncertainty
            .filter(|_| !is_sure && difference != 0.0)
            .map(|error| {
                let times = (SURE * error / difference).powi(2);
                (times * rows).ceil().min(1e15) as u64
            });
        Some(Paired {
            difference,
            uncertainty,
            verdict,
            rows_needed: needed,
        })
    }
}

/// Sums of the KL divergence of consecutive chunks, in nats.
///
/// # Panics
/// If the chunks exceed the rows.
pub fn sums_of_chunks(rows: &[Comparison], chunks: &[usize]) -> Vec<f64> {
    let mut rest = rows;
    let sum = |rows_of: &usize| {
        let (chunk, behind) = rest.split_at(*rows_of);
        rest = behind;
        chunk.iter().map(|row| row.kld).sum()
    };
    chunks.iter().map(sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quantier_core::rng::Rng;

    const PER_CHUNK: usize = 32;

    /// Rows of two models: a common part that varies by token and by chunk, a small one of each model, and a
    /// difference.
    fn rows(chunks: usize, difference: f64, seed: u64) -> [Vec<Comparison>; 2] {
        let mut rng = Rng::new(seed);
        let mut both = [Vec::new(), Vec::new()];
        for _ in 0..chunks {
            let of_chunk = [f64::from(rng.gaussian()), f64::from(rng.gaussian())];
            for _ in 0..PER_CHUNK {
                let common = f64::from(rng.gaussian()).exp();
                for (model, rows) in both.iter_mut().enumerate() {
                    let own = 0.02 * of_chunk[model] + 0.05 * f64::from(rng.gaussian());
                    let shift = if model == 0 { difference } else { 0.0 };
                    rows.push(Comparison {
                        nll: 0.0,
                        nll_base: 0.0,
                        kld: 0.1 * (common + own) + shift,
                        delta_p: 0.0,
                        same_top: true,
                    });
                }
            }
        }
        both
    }

    fn chunks_of(rows: usize) -> Vec<usize> {
        vec![PER_CHUNK; rows / PER_CHUNK]
    }

    fn paired(chunks: usize, difference: f64, seed: u64) -> Paired {
        let [first, second] = rows(chunks, difference, seed);
        Paired::of(&first, &second, &chunks_of(first.len())).unwrap()
    }

    /// The standard error is that of resampled chunks, and several times that of independent rows.
    #[test]
    fn standard_errors_match_the_bootstrap() {
        const CHUNKS: usize = 100;
        let [first, second] = rows(CHUNKS, 0.0, 3);
        let found = Paired::of(&first, &second, &chunks_of(first.len())).unwrap();
        let differences: Vec<f64> = first
            .iter()
            .zip(&second)
            .map(|(a, b)| a.kld - b.kld)
            .collect();
        let mut rng = Rng::new(9);
        let mut draws = Vec::new();
        for _ in 0..2000 {
            let mut sum = 0.0;
            for _ in 0..CHUNKS {
                let chunk = ((rng.uniform() * CHUNKS as f32) as usize).min(CHUNKS - 1);
                sum += differences[chunk * PER_CHUNK..][..PER_CHUNK]
                    .iter()
                    .sum::<f64>();
            }
            draws.push(sum / differences.len() as f64);
        }
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        let error = found.uncertainty.unwrap();
        assert!(
            (error / variance.sqrt() - 1.0).abs() < 0.06,
            "{error}, {}",
            variance.sqrt()
        );
        let n = differences.len() as f64;
        let mean = differences.iter().sum::<f64>() / n;
        let of_rows = (differences.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n / n).sqrt();
        assert!(error > 1.5 * of_rows, "{error}, {of_rows}");
    }

    /// A difference of about 1% of the divergence is found with the number of rows that fewer predict.
    #[test]
    fn planted_differences_are_found_with_the_rows_predicted() {
        const PLANTED: f64 = 0.0016;
        let (mut sure, mut all) = (0, 0);
        for seed in 0..40 {
            let few = paired(8, PLANTED, seed);
            let Some(needed) = few.rows_needed.filter(|_| few.difference > 0.5 * PLANTED) else {
                continue;
            };
            let chunks = (needed as usize).div_ceil(PER_CHUNK).max(16) * 4;
            let more = paired(chunks, PLANTED, 1000 + seed);
            assert_ne!(more.verdict, Verdict::First);
            all += 1;
            sure += usize::from(more.verdict == Verdict::Second);
        }
        assert!(all >= 5 && sure * 10 >= all * 8, "{sure} of {all}");
        assert_eq!(paired(400, PLANTED, 5).verdict, Verdict::Second);
        assert_eq!(paired(400, -PLANTED, 5).verdict, Verdict::First);
    }

    #[test]
    fn few_chunks_give_no_verdict() {
        let few = paired(4, 0.5, 1);
        assert_eq!((few.verdict, few.uncertainty), (Verdict::Unclear, None));
        let [first, _] = rows(1, 0.0, 1);
        assert_eq!(Paired::of(&[], &[], &[]), None);
        let same = Paired::of(&first, &first, &[2; PER_CHUNK / 2]).unwrap();
        assert_eq!((same.difference, same.rows_needed), (0.0, None));
    }
}
