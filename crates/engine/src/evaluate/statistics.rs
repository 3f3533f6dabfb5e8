//! Statistics over all rows: llama-perplexity's figures and their standard errors.
//!
//! Rows are stored (40 bytes each) and summarized at the end, so that texts can be measured
//! separately and grouped freely: every function takes parts, which count as one sequence of rows.

use super::score::Comparison;
use serde::Serialize;
use std::fmt;

/// llama-perplexity reports no standard error for this many rows or fewer.
const FEW: usize = 10;

/// Percentiles of the KL divergence that are reported beside the extremes.
const KLD_PERCENTILES: [f64; 9] = [99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1];
/// The same for delta p.
const DELTA_P_PERCENTILES: [f64; 11] = [
    99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1,
];

/// Fraction of the rows at each end that the trimmed mean leaves out, and of the tail.
const TAIL: f64 = 0.01;

/// A figure and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// Its standard error; None for 10 rows or fewer.
    pub uncertainty: Option<f64>,
}

impl Figure {
    fn times(self, factor: f64) -> Figure {
        Figure {
            value: self.value * factor,
            uncertainty: self.uncertainty.map(|u| u * factor),
        }
    }

    /// Exponential of the figure.
    fn exp(self) -> Figure {
        let value = self.value.exp();
        Figure {
            value,
            uncertainty: self.uncertainty.map(|u| u * value),
        }
    }
}

/// Mean and its standard error, sqrt(variance / (n - 1)) with the population variance, in two
/// passes.
pub(crate) fn mean(values: impl Iterator<Item = f64> + Clone) -> Figure {
    let (mut n, mut sum) = (0_usize, 0.0);
    values.clone().for_each(|x| (n, sum) = (n + 1, sum + x));
    let value = sum / n as f64;
    let variance = values.map(|x| (x - value).powi(2)).sum::<f64>() / n as f64;
    Figure {
        value,
        uncertainty: (n > FEW).then(|| (variance / (n - 1) as f64).sqrt()),
    }
}

/// Percentile of sorted values, with linear interpolation.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let at = percent / 100.0 * (sorted.len() - 1) as f64;
    let (i, part) = (at as usize, at.fract());
    let next = sorted[(i + 1).min(sorted.len() - 1)];
    (1.0 - part) * sorted[i] + part * next
}

/// Mean of sorted values without [`TAIL`] of them at each end.
fn trimmed_mean(sorted: &[f64]) -> f64 {
    let tail = (TAIL * sorted.len() as f64) as usize;
    let middle = &sorted[tail..sorted.len() - tail];
    middle.iter().sum::<f64>() / middle.len() as f64
}

/// Share of the sum of sorted values that the largest [`TAIL`] of them have, at least one. None of a sum of 0.
fn tail_share(sorted: &[f64]) -> Option<f64> {
    let tail = ((TAIL * sorted.len() as f64) as usize).max(1);
    let sum: f64 = sorted.iter().sum();
    let of_tail: f64 = sorted[sorted.len() - tail..].iter().sum();
    (sum > 0.0).then(|| of_tail / sum)
}

/// Distribution of values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// Largest value.
    pub maximum: f64,
    /// Pairs of percent and value, descending; 50 is the median.
    pub percentiles: Vec<(f64, f64)>,
    /// Smallest value.
    pub minimum: f64,
}

pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

impl Spread {
    /// The spread of sorted values, at least one.
    pub(crate) fn of(sorted: &[f64], percents: &[f64]) -> Spread {
        let percentiles = percents
            .iter()
            .map(|&percent| (percent, percentile(sorted, percent)))
            .collect();
        Spread {
            maximum: sorted[sorted.len() - 1],
            percentiles,
            minimum: sorted[0],
        }
    }

    fn render(&self, f: &mut fmt::Formatter, what: &str, factor: f64, unit: &str) -> fmt::Result {
        let mut line =
            |name: &str, x: f64| writeln!(f, "{name:<7} {what}: {:>10.6}{unit}", x * factor);
        line("Maximum", self.maximum)?;
        for &(percent, x) in &self.percentiles {
            match percent == 50.0 {
                true => line("Median", x)?,
                false => line(&format!("{percent:>4.1}%"), x)?,
            }
        }
        line("Minimum", self.minimum)
    }
}

/// Perplexity of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// Rows scored.
    pub rows: usize,
    /// Mean -ln p of the next token, in nats.
    pub nll: Figure,
    /// Perplexity: the exponential of the mean.
    pub perplexity: Figure,
}

impl Perplexity {
    /// From the -ln p of all rows, in nats. None without rows.
    pub fn of(parts: &[&[f64]]) -> Option<Perplexity> {
        let all = parts.iter().flat_map(|part| part.iter().copied());
        let rows = all.clone().count();
        let nll = mean(all);
        (rows > 0).then(|| Perplexity {
            rows,
            nll,
            perplexity: nll.exp(),
        })
    }
}

/// Comparison of a model with its base model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Statistics {
    /// Rows compared.
    pub rows: usize,
    /// Perplexity of the model.
    pub perplexity: Figure,
    /// Perplexity of the base model.
    pub perplexity_base: Figure,
    /// Correlation of the two models' -ln p; None if one of them is constant or rows are few.
    pub correlation: Option<f64>,
    /// ln(PPL / base PPL).
    pub log_ratio: Figure,
    /// PPL / base PPL.
    pub ratio: Figure,
    /// PPL - base PPL.
    pub difference: Figure,
    /// Mean KL divergence, in nats.
    pub kld: Figure,
    /// Distribution of the KL divergence, in nats.
    pub kld_spread: Spread,
    /// Mean KL divergence without the highest and the lowest 1% of the rows, in nats.
    pub kld_trimmed: f64,
    /// Share of the mean that the 1% of the rows with the largest KL divergence contribute; None if it is 0.
    pub kld_tail_share: Option<f64>,
    /// Mean change of the next token's probability, as a fraction.
    pub delta_p: Figure,
    /// Distribution of delta p.
    pub delta_p_spread: Spread,
    /// Root mean square of delta p.
    pub delta_p_rms: Figure,
    /// Fraction of the rows in which both models have the same most probable token.
    pub same_top: Figure,
}

impl Statistics {
    /// Statistics over all rows of the parts. None without rows.
    pub fn of(parts: &[&[Comparison]]) -> Option<Statistics> {
        let all = parts.iter().flat_map(|part| part.iter());
        let rows = all.clone().count();
        if rows == 0 {
            return None;
        }
        let (nll, nll_base) = (
            mean(all.clone().map(|c| c.nll)),
            mean(all.clone().map(|c| c.nll_base)),
        );
        let log_ratio = mean(all.clone().map(|c| c.nll - c.nll_base));
        let (perplexity, perplexity_base) = (nll.exp(), nll_base.exp());
        // Covariance of the two means, with the divisor of `mean`.
        let products = all
            .clone()
            .map(|c| (c.nll - nll.value) * (c.nll_base - nll_base.value));
        let covariance = products.sum::<f64>() / rows as f64 / (rows - 1).max(1) as f64;
        let both = nll.uncertainty.zip(nll_base.uncertainty);
        let correlation = both
            .map(|(a, b)| covariance / (a * b))
            .filter(|c| c.is_finite());
        let (p, b) = (perplexity.value, perplexity_base.value);
        let spread = |(ua, ub): (f64, f64)| {
            ((p * ua).powi(2) + (b * ub).powi(2) - 2.0 * p * b * covariance)
                .max(0.0)
                .sqrt()
        };
        let square = mean(all.clone().map(|c| c.delta_p.powi(2)));
        let rms = square.value.sqrt();
        let klds = sorted(all.clone().map(|c| c.kld));
        let delta_ps = sorted(all.clone().map(|c| c.delta_p));
        let same = all.clone().filter(|c| c.same_top).count() as f64 / rows as f64;
        Some(Statistics {
            rows,
            perplexity,
            perplexity_base,
            correlation,
            log_ratio,
            ratio: log_ratio.exp(),
            difference: Figure {
                value: p - b,
                uncertainty: both.map(spread),
            },
            kld: mean(all.clone().map(|c| c.kld)),
            kld_spread: Spread::of(&klds, &KLD_PERCENTILES),
            kld_trimmed: trimmed_mean(&klds),
            kld_tail_share: tail_share(&klds),
            delta_p: mean(all.map(|c| c.delta_p)),
            delta_p_spread: Spread::of(&delta_ps, &DELTA_P_PERCENTILES),
            delta_p_rms: Figure {
                value: rms,
                uncertainty: square
                    .uncertainty
                    .map(|u| if rms > 0.0 { 0.5 / rms * u } else { 0.0 }),
            },
            same_top: Figure {
                value: same,
                uncertainty: (rows > FEW).then(|| (same * (1.0 - same) / (rows - 1) as f64).sqrt()),
            },
        })
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.uncertainty {
            Some(u) => write!(f, "{:>10.6} ± {u:>10.6}", self.value),
            None => write!(f, "{:>10.6} (too few rows for an uncertainty)", self.value),
        }
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "====== Perplexity statistics ({} rows) ======",
            self.rows
        )?;
        writeln!(f, "Mean PPL(Q)                   : {}", self.perplexity)?;
        writeln!(
            f,
            "Mean PPL(base)                : {}",
            self.perplexity_base
        )?;
        match self.correlation {
            Some(c) => writeln!(f, "Cor(ln(PPL(Q)), ln(PPL(base))): {:>6.2}%", 100.0 * c)?,
            None => writeln!(f, "Cor(ln(PPL(Q)), ln(PPL(base))): none")?,
        }
        writeln!(f, "Mean ln(PPL(Q)/PPL(base))     : {}", self.log_ratio)?;
        writeln!(f, "Mean PPL(Q)/PPL(base)         : {}", self.ratio)?;
        writeln!(f, "Mean PPL(Q)-PPL(base)         : {}", self.difference)?;
        writeln!(f, "\n====== KL divergence statistics ======")?;
        writeln!(f, "Mean    KLD: {}", self.kld)?;
        self.kld_spread.render(f, "KLD", 1.0, "")?;
        writeln!(
            f,
            "Trimmed KLD: {:>10.6} (without 1% of the rows at each end)",
            self.kld_trimmed
        )?;
        if let Some(share) = self.kld_tail_share {
            writeln!(
                f,
                "Tail    KLD: {:>9.2} % of the mean comes from 1% of the rows",
                100.0 * share
            )?;
        }
        writeln!(f, "\n====== Token probability statistics ======")?;
        writeln!(f, "Mean    Δp: {} %", self.delta_p.times(100.0))?;
        self.delta_p_spread.render(f, "Δp", 100.0, " %")?;
        writeln!(f, "RMS Δp    : {} %", self.delta_p_rms.times(100.0))?;
        writeln!(f, "Same top p: {} %", self.same_top.times(100.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Comparison> {
        (0..12)
            .map(|i| {
                let x = f64::from(i);
                let (nll, nll_base, kld, delta_p) = (x + 1.0, x, x / 4.0, x / 10.0 - 0.5);
                Comparison {
                    nll,
                    nll_base,
                    kld,
                    delta_p,
                    same_top: i < 9,
                }
            })
            .collect()
    }

    #[test]
    fn figures_match_a_manual_calculation() {
        let rows = rows();
        let s = Statistics::of(&[&rows]).unwrap();
        // 0..12: mean 5.5, variance 143/12; the standard error is its square root over sqrt(11).
        let error = (143.0_f64 / 12.0 / 11.0).sqrt();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * b.abs().max(1.0), "{a} {b}");
        near(s.perplexity_base.value, 5.5_f64.exp());
        near(
            s.perplexity_base.uncertainty.unwrap(),
            5.5_f64.exp() * error,
        );
        near(s.correlation.unwrap(), 1.0);
        near(s.log_ratio.value, 1.0);
        near(s.log_ratio.uncertainty.unwrap(), 0.0);
        near(s.ratio.value, 1_f64.exp());
        near(s.difference.value, 6.5_f64.exp() - 5.5_f64.exp());
        near(
            s.difference.uncertainty.unwrap(),
            error * (6.5_f64.exp() - 5.5_f64.exp()),
        );
        near(s.kld.value, 1.375);
        near(s.kld_spread.percentiles[4].1, 1.375);
        near(s.kld_spread.percentiles[3].1, 0.9 * 11.0 / 4.0);
        near(s.kld_trimmed, 1.375);
        near(s.kld_tail_share.unwrap(), 11.0 / 66.0);
        near(s.delta_p_rms.value, (1.46_f64 / 12.0).sqrt());
        near(s.same_top.value, 0.75);
        near(
            s.same_top.uncertainty.unwrap(),
            (0.75_f64 * 0.25 / 11.0).sqrt(),
        );
    }

    #[test]
    fn trimmed_means_ignore_few_outliers() {
        let mut values: Vec<f64> = vec![1.0; 200];
        values[0] = 0.0;
        values[1] = 0.5;
        values[198..].copy_from_slice(&[300.0, 500.0]);
        assert_eq!(trimmed_mean(&values), 1.0);
        assert_eq!(tail_share(&values), Some(800.0 / 996.5));
        assert_eq!(tail_share(&[0.0, 0.0]), None);
    }

    #[test]
    fn parts_count_as_one_sequence_and_empty_as_none() {
        let rows = rows();
        assert_eq!(
            Statistics::of(&[&rows[..5], &[], &rows[5..]]),
            Statistics::of(&[&rows])
        );
        assert_eq!(Statistics::of(&[&[]]), None);
        assert_eq!(Perplexity::of(&[]), None);
        assert_eq!(Statistics::of(&[&rows[..3]]).unwrap().kld.uncertainty, None);
    }

    #[test]
    fn tables_name_every_figure() {
        let text = Statistics::of(&[&rows()]).unwrap().to_string();
        for name in [
            "Mean PPL(Q)/PPL(base)",
            "Median  KLD",
            " 0.1%   KLD",
            "75.0%   Δp",
            "Same top p",
        ] {
            assert!(text.contains(name), "{name} in\n{text}");
        }
    }
}
