//! The proof: the divergence of every written file on text that nothing was chosen by, and how well
//! it was predicted.

use super::{Job, Kept, Opened, Result, texts};
use crate::convert;
use crate::evaluate::measure::{Base, Measured, compare};
use crate::evaluate::statistics::Statistics;
use crate::format::snapshot::Key;
use crate::input::{Input, Source};
use crate::model::Engine;
use crate::progress::Progress;
use crate::report;
use crate::resume;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Files whose activations are kept beside those of the base at a time.
pub(super) const TOGETHER: usize = 4;

/// What was measured of one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) measured: report::data::Measured,
    pub(super) rows: u64,
}

/// A file to be measured, and under which name and key it is kept what was.
#[derive(Clone)]
pub(super) struct Subject {
    /// It need not be there if it has been measured.
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) key: Key,
}

impl Subject {
    /// A file that is there.
    pub(super) fn of_file(base: &Input<'_>, windows: &texts::Cut, path: &Path) -> Result<Subject> {
        let source = Source::open(path)?;
        let input = source.reader(&convert::Job::default())?;
        let key = resume::KeyBuilder::new("make: proof")
            .with_model(base)?
            .with_model(&input)?;
        let key = key.with("tokens", windows.evaluation_bytes()).key();
        let name = format!(
            "{}.measured",
            path.file_name().unwrap_or_default().to_string_lossy()
        );
        Ok(Subject {
            path: path.to_owned(),
            name,
            key,
        })
    }

    /// Whether an earlier run has measured it.
    pub(super) fn is_known(&self, kept: &Kept) -> bool {
        kept.read::<Found>(&self.name, &self.key).is_some()
    }
}

/// Measures the files, those that were not measured before, against the model.
pub(super) fn measure(
    model: Opened<'_>,
    job: &Job,
    windows: &texts::Cut,
    files: &[Subject],
    kept: &Kept,
    progress: &dyn Progress,
) -> Result<Vec<Found>> {
    let mut found: Vec<Option<Found>> = Vec::new();
    let mut missing = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let known = kept.read(&file.name, &file.key);
        if known.is_none() {
            missing.push((i, file));
        }
        found.push(known);
    }
    if !missing.is_empty() {
        let windows = windows.evaluation()?;
        let base = Base::Model(Measured::new(
            "the base".into(),
            model.engine,
            &windows,
            progress,
        )?);
        for group in missing.chunks(TOGETHER) {
            let sources = group
                .iter()
                .map(|(_, file)| Source::open(&file.path))
                .collect::<convert::Result<Vec<_>>>()?;
            let inputs = sources
                .iter()
                .map(|source| source.reader(&convert::Job::default()));
            let inputs = inputs.collect::<convert::Result<Vec<_>>>()?;
            let engines = inputs.iter().map(|input| Engine::new(input, &job.options));
            let engines = engines.collect::<crate::model::Result<Vec<_>>>()?;
            let mut models = Vec::new();
            for (engine, (_, file)) in engines.iter().zip(group) {
                models.push(Measured::new(
                    file.path.display().to_string(),
                    engine,
                    &windows,
                    progress,
                )?);
            }
            let compared = compare(&base, &models, &windows, None, progress)?;
            for (rows, (i, file)) in compared.iter().zip(group) {
                let Some(statistics) = Statistics::of(&[rows]) else {
                    continue;
                };
                let one = of(&statistics);
                kept.write(&file.name, &file.key, &one)?;
                found[*i] = Some(one);
            }
        }
    }
    Ok(found.into_iter().flatten().collect())
}

/// How many of these files an earlier run has measured.
pub(super) fn known(
    base: &Input<'_>,
    windows: &texts::Cut,
    files: &[PathBuf],
    kept: &Kept,
) -> Result<usize> {
    let mut known = 0;
    for path in files {
        known += usize::from(Subject::of_file(base, windows, path)?.is_known(kept));
    }
    Ok(known)
}

fn of(statistics: &Statistics) -> Found {
    let percentile = |wanted: f64| {
        let spread = &statistics.kld_spread.percentiles;
        spread
            .iter()
            .find(|(percent, _)| *percent == wanted)
            .map(|(_, value)| *value)
    };
    let measured = report::data::Measured {
        kld: statistics.kld.value,
        uncertainty: statistics.kld.uncertainty,
        median: percentile(50.0),
        p999: percentile(99.9),
        same_top: Some(statistics.same_top.value),
        ppl: Some(statistics.perplexity.value),
        ppl_base: Some(statistics.perplexity_base.value),
    };
    Found {
        measured,
        rows: statistics.rows as u64,
    }
}

/// Measured against predicted nats.
pub use report::data::Fit;

/// Fits `measured = scale x predicted ^ exponent` to pairs of predicted and measured nats, by least
/// squares of the logarithms. None with fewer than three pairs above 0: a curve through one or two
/// points says nothing of the others.
pub fn fit(pairs: &[(f64, f64)]) -> Option<Fit> {
    const FEWEST: usize = 3;
    let logs: Vec<(f64, f64)> = pairs
        .iter()
        .filter(|(p, m)| *p > 0.0 && *m > 0.0)
        .map(|(p, m)| (p.ln(), m.ln()))
        .collect();
    if logs.len() < FEWEST {
        return None;
    }
    let n = logs.len() as f64;
    let (x, y) = (
        logs.iter().map(|l| l.0).sum::<f64>() / n,
        logs.iter().map(|l| l.1).sum::<f64>() / n,
    );
    let (over, under) = logs.iter().fold((0.0, 0.0), |(a, b), l| {
        (a + (l.0 - x) * (l.1 - y), b + (l.0 - x) * (l.0 - x))
    });
    // Files of one size say nothing of the exponent.
    let exponent = if under < 1e-9 { 1.0 } else { over / under };
    let mut fit = Fit {
        scale: (y - exponent * x).exp(),
        exponent,
        points: logs.len() as u32,
        rank_correlation: Some(rank_correlation(&logs)),
        median_error: None,
    };
    let mut errors: Vec<f64> = logs
        .iter()
        .map(|(p, m)| (fit.apply(p.exp()) / m.exp() - 1.0).abs())
        .collect();
    errors.sort_by(f64::total_cmp);
    fit.median_error = Some((errors[(errors.len() - 1) / 2] + errors[errors.len() / 2]) / 2.0);
    Some(fit)
}

/// Spearman's, of values without ties.
fn rank_correlation(pairs: &[(f64, f64)]) -> f64 {
    let rank =
        |of: fn(&(f64, f64)) -> f64, x: f64| pairs.iter().filter(|p| of(p) < x).count() as f64;
    let square = |p: &(f64, f64)| (rank(|p| p.0, p.0) - rank(|p| p.1, p.1)).powi(2);
    let n = pairs.len() as f64;
    1.0 - 6.0 * pairs.iter().map(square).sum::<f64>() / (n * (n * n - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_law_is_found_again() {
        let pairs: Vec<(f64, f64)> = [0.001, 0.01, 0.02, 0.3, 0.9]
            .map(|p: f64| (p, 1.3 * p.powf(0.95)))
            .to_vec();
        let fit = fit(&pairs).unwrap();
        assert!(
            (fit.scale - 1.3).abs() < 1e-9 && (fit.exponent - 0.95).abs() < 1e-9,
            "{fit:?}"
        );
        assert!(
            fit.median_error.unwrap() < 1e-9
                && fit.rank_correlation == Some(1.0)
                && fit.points == 5
        );
    }

    #[test]
    fn two_points_are_no_curve() {
        assert_eq!(fit(&[(0.1, 0.2), (0.2, 0.4), (0.0, 0.2)]), None);
        let one_size = fit(&[(0.1, 0.2), (0.1, 0.2), (0.1, 0.2)]).unwrap();
        assert!((one_size.scale - 2.0).abs() < 1e-12 && one_size.exponent == 1.0);
    }

    #[test]
    fn order_is_what_the_rank_correlation_sees() {
        assert_eq!(
            rank_correlation(&[(1.0, 5.0), (2.0, 6.0), (3.0, 70.0)]),
            1.0
        );
        assert_eq!(
            rank_correlation(&[(1.0, 7.0), (2.0, 6.0), (3.0, 5.0)]),
            -1.0
        );
        assert_eq!(rank_correlation(&[(1.0, 6.0), (2.0, 5.0), (3.0, 7.0)]), 0.5);
    }
}
