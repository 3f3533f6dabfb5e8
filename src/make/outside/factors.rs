//! Factors that turn weighted errors into nats, one for each part of a model, from the measured
//! divergences of some files.
//!
//! ```text
//! measured_k  ~=  sum over parts g of  factor_g x errors_kg
//! ```
//!
//! Least squares of relative differences, with factors bounded from below and drawn slightly to a
//! common factor, so that a part that the files hardly show keeps a usable one.

/// Weight of the squared relative distance of a factor from the common one, beside squared relative
/// differences of the files.
const DRAW: f64 = 1e-5;
/// Smallest factor, relative to the common one: a part without cost would get the coarsest types.
const LEAST: f64 = 0.05;
/// Divergences below this part of their mean count as so large in relative differences: a file that
/// hardly differs from the base would outweigh all others.
const FLOOR: f64 = 0.1;
/// Smallest divergence, in nats: the programs print six decimals.
const RESOLUTION: f64 = 1e-5;
const ROUNDS: usize = 10_000;

/// The result of a fit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fitted {
    /// One factor for each part, positive.
    pub(super) factors: Vec<f64>,
    /// Divergences by the factors, in nats, in the order of the files.
    pub(super) fitted: Vec<f64>,
    /// Root of the mean squared relative difference between them and the measured ones.
    pub(super) residual: f64,
}

/// Fits factors to files with `errors` `[files][parts]` and `measured` nats `[files]`. `None`
/// without errors.
pub(super) fn fit(errors: &[Vec<f64>], measured: &[f64]) -> Option<Fitted> {
    let parts = errors.first()?.len();
    let mean = measured.iter().sum::<f64>() / measured.len() as f64;
    let weighed = |nats: f64| nats.max(FLOOR * mean).max(RESOLUTION);
    let relative: Vec<Vec<f64>> = errors
        .iter()
        .zip(measured)
        .map(|(row, nats)| row.iter().map(|e| e / weighed(*nats)).collect())
        .collect();
    let targets: Vec<f64> = measured.iter().map(|nats| nats / weighed(*nats)).collect();
    // The best common factor.
    let sums: Vec<f64> = relative.iter().map(|row| row.iter().sum()).collect();
    let squares = sums.iter().map(|sum| sum * sum).sum::<f64>();
    let products = sums.iter().zip(&targets).map(|(sum, target)| sum * target);
    let common = products.sum::<f64>() / squares;
    if !(common.is_finite() && common > 0.0) {
        return None;
    }
    // Coordinate descent on a convex function.
    let rows: Vec<Vec<f64>> = relative
        .iter()
        .map(|row| row.iter().map(|e| e * common).collect())
        .collect();
    let mut x = vec![1.0; parts];
    for _ in 0..ROUNDS {
        let mut moved = 0.0f64;
        for part in 0..parts {
            let (mut over, mut under) = (DRAW, DRAW);
            for (row, target) in rows.iter().zip(&targets) {
                let others: f64 = (0..parts)
                    .filter(|i| *i != part)
                    .map(|i| row[i] * x[i])
                    .sum();
                over += row[part] * (target - others);
                under += row[part] * row[part];
            }
            let new = (over / under).max(LEAST);
            moved = moved.max((new - x[part]).abs());
            x[part] = new;
        }
        if moved < 1e-12 {
            break;
        }
    }
    let factors: Vec<f64> = x.iter().map(|x| x * common).collect();
    let predicted = |row: &Vec<f64>| row.iter().zip(&factors).map(|(e, f)| e * f).sum::<f64>();
    let fitted: Vec<f64> = errors.iter().map(predicted).collect();
    let off = fitted.iter().zip(measured);
    let off = off.map(|(fitted, nats)| ((fitted - nats) / weighed(*nats)).powi(2));
    let residual = (off.sum::<f64>() / measured.len() as f64).sqrt();
    Some(Fitted {
        factors,
        fitted,
        residual,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One file for each part, coarse there and fine elsewhere, and one with all of medium size.
    fn design() -> Vec<Vec<f64>> {
        vec![
            vec![0.020, 0.001, 0.001],
            vec![0.001, 0.030, 0.001],
            vec![0.001, 0.001, 0.010],
            vec![0.008, 0.010, 0.004],
        ]
    }

    #[test]
    fn factors_of_additive_divergences_are_found() {
        let truth = [2.0, 0.5, 8.0];
        let errors = design();
        let measured: Vec<f64> = errors
            .iter()
            .map(|row| row.iter().zip(truth).map(|(e, f)| e * f).sum())
            .collect();
        let fitted = fit(&errors, &measured).unwrap();
        for (found, truth) in fitted.factors.iter().zip(truth) {
            assert!((found / truth - 1.0).abs() < 0.01, "{fitted:?}");
        }
        assert!(fitted.residual < 0.01, "{fitted:?}");
    }

    #[test]
    fn insensitive_parts_keep_a_positive_factor() {
        let errors = design();
        let measured: Vec<f64> = errors
            .iter()
            .map(|row| 2.0 * row[0] + 8.0 * row[2])
            .collect();
        let fitted = fit(&errors, &measured).unwrap();
        let [first, second, third] = fitted.factors[..] else {
            panic!("{fitted:?}")
        };
        assert!(second > 0.0 && second < 0.1 * first, "{fitted:?}");
        assert!(
            (first / 2.0 - 1.0).abs() < 0.1 && (third / 8.0 - 1.0).abs() < 0.1,
            "{fitted:?}"
        );
    }

    #[test]
    fn a_part_without_errors_gets_the_common_factor() {
        let fitted = fit(&[vec![0.01, 0.0], vec![0.02, 0.0]], &[0.03, 0.06]).unwrap();
        assert!((fitted.factors[0] - 3.0).abs() < 1e-6, "{fitted:?}");
        assert!((fitted.factors[1] - 3.0).abs() < 1e-6, "{fitted:?}");
        assert_eq!(fit(&[vec![0.0]], &[0.1]), None);
        assert_eq!(fit(&[], &[]), None);
    }
}
