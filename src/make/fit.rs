//! Fit of measured to predicted divergences.

pub use crate::report::data::Fit;

/// Fits `measured = scale x predicted ^ exponent` to pairs of predicted and measured nats, by least
/// squares of the logarithms. None with fewer than three positive pairs: a curve through one or two
/// points has no predictive value.
pub fn fit(pairs: &[(f64, f64)]) -> Option<Fit> {
    const FEWEST: usize = 3;
    let logs = logarithms(pairs);
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
    // Files of one size do not determine the exponent.
    let exponent = if under < 1e-9 { 1.0 } else { over / under };
    let mut fit = Fit {
        scale: (y - exponent * x).exp(),
        exponent,
        points: logs.len() as u32,
        rank_correlation: Some(rank_correlation(&logs)),
        median_error: None,
    };
    fit.median_error = Some(median_error(&fit, &logs));
    Some(fit)
}

/// Fits `measured = scale x predicted`: the geometric mean of the ratios. None without positive pairs.
pub(super) fn factor(pairs: &[(f64, f64)]) -> Option<Fit> {
    let logs = logarithms(pairs);
    if logs.is_empty() {
        return None;
    }
    let mean = logs.iter().map(|(p, m)| m - p).sum::<f64>() / logs.len() as f64;
    let mut fit = Fit {
        scale: mean.exp(),
        exponent: 1.0,
        points: logs.len() as u32,
        rank_correlation: None,
        median_error: None,
    };
    fit.median_error = Some(median_error(&fit, &logs));
    Some(fit)
}

/// Logarithms of the positive pairs.
fn logarithms(pairs: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let positive = pairs.iter().filter(|(p, m)| *p > 0.0 && *m > 0.0);
    positive.map(|(p, m)| (p.ln(), m.ln())).collect()
}

/// Median relative error of a fit, from the logarithms of at least one pair.
fn median_error(fit: &Fit, logs: &[(f64, f64)]) -> f64 {
    let mut errors: Vec<f64> = logs
        .iter()
        .map(|(p, m)| (fit.apply(p.exp()) / m.exp() - 1.0).abs())
        .collect();
    errors.sort_by(f64::total_cmp);
    (errors[(errors.len() - 1) / 2] + errors[errors.len() / 2]) / 2.0
}

/// Spearman's rank correlation, for values without ties.
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
    fn a_power_law_is_recovered() {
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
    fn a_factor_is_the_geometric_mean_of_the_ratios() {
        let found = factor(&[(0.1, 0.05), (0.01, 0.02), (0.0, 1.0)]).unwrap();
        assert!((found.scale - 1.0).abs() < 1e-12 && found.points == 2);
        // 1.0 for ratios of 0.5 and 2.
        assert!((found.median_error.unwrap() - 0.75).abs() < 1e-12);
        assert_eq!(factor(&[]), None);
    }

    #[test]
    fn two_points_give_no_fit() {
        assert_eq!(fit(&[(0.1, 0.2), (0.2, 0.4), (0.0, 0.2)]), None);
        let one_size = fit(&[(0.1, 0.2), (0.1, 0.2), (0.1, 0.2)]).unwrap();
        assert!((one_size.scale - 2.0).abs() < 1e-12 && one_size.exponent == 1.0);
    }

    #[test]
    fn rank_correlation_depends_on_order_only() {
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
