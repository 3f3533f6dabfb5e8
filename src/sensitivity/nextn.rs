//! Estimated sensitivities of the block for a further token. The model's own output does not depend
//! on it, so that its divergence cannot be measured.
//!
//! Its tensors are as sensitive as those of the last layer with the same roles: a tensor's
//! importance-weighted error (see [`Candidate::weighted_error`]) is multiplied by the cost of such
//! errors there, in nats. A draft then has about as many bits as the corresponding layer.

use super::Result;
use super::saved::{Costs, Nats};
use super::scores::Candidate;
use crate::input::Input;
use crate::progress::{Progress, Unit};
use std::collections::BTreeMap;

/// Nats per error, for each series of a candidate's scores: with error feedback, and without.
type Rates = Vec<f64>;

/// Adds scores for tensors of a block for a further token with importance weights.
pub(super) fn estimate(
    nats: &mut Nats,
    candidates: &BTreeMap<&str, Candidate<'_>>,
    input: &Input<'_>,
    pool: &rayon::ThreadPool,
    progress: &dyn Progress,
) -> Result<()> {
    let block = candidates
        .iter()
        .filter(|(name, candidate)| input.is_nextn(name) && candidate.weights.importance.is_some());
    let block: Vec<_> = block.collect();
    progress.begin(block.len() as u64, Unit::Steps);
    let mut rates: Vec<Option<Rates>> = Vec::new();
    for (name, candidate) in &block {
        progress.at(name);
        let like = counterpart(nats, candidates, input, candidate);
        let rate = like.map(|(like, scores)| -> Result<Rates> {
            let errors = pool.install(|| like.weighted_error(progress))?;
            Ok(rates_of(scores, &errors))
        });
        rates.push(rate.transpose()?);
        progress.advance(1);
    }
    let known: Vec<&Rates> = rates.iter().flatten().collect();
    let Some(first) = known.first() else {
        return Ok(());
    };
    let others: Rates = (0..first.len())
        .map(|score| mean(known.iter().filter_map(|rates| rates.get(score)).copied()))
        .collect();
    for ((name, candidate), rates) in block.iter().zip(&rates) {
        let errors = pool.install(|| candidate.weighted_error(progress))?;
        let rates = rates.as_ref().unwrap_or(&others);
        let series = |i: usize| {
            let rate = rates.get(i).into_iter();
            let scores = rate.flat_map(|rate| errors.iter().map(move |error| error * *rate));
            scores.collect()
        };
        let costs = Costs {
            nats: series(0),
            plain: series(1),
            error: 0.0,
        };
        nats.insert((**name).to_owned(), costs);
    }
    Ok(())
}

/// The tensor with a candidate's label in the last layer that has one, and its scores.
fn counterpart<'c, 'a>(
    nats: &'c Nats,
    candidates: &'c BTreeMap<&str, Candidate<'a>>,
    input: &Input<'_>,
    candidate: &Candidate<'_>,
) -> Option<(&'c Candidate<'a>, &'c Costs)> {
    let label = input.entry(candidate.tensor()).label();
    let same = candidates.iter().filter(|(name, other)| {
        input.entry(other.tensor()).label() == label && !input.is_nextn(name)
    });
    let scored = same.filter_map(|(name, other)| Some((other, nats.get(*name)?)));
    scored.max_by_key(|(other, _)| input.entry(other.tensor()).layer)
}

/// Mean rate of every series of scores, each of which has one score per error.
fn rates_of(costs: &Costs, errors: &[f64]) -> Rates {
    let series = [&costs.nats, &costs.plain].into_iter();
    let rate = |scores: &[f64]| {
        let pairs = scores.iter().zip(errors);
        mean(pairs.map(|(nats, error)| nats / error))
    };
    let series = series.filter(|scores| !scores.is_empty());
    series.map(|scores| rate(scores)).collect()
}

/// Geometric mean of the positive finite numbers; 0 without any.
fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let logarithms = numbers.filter(|x| *x > 0.0 && x.is_finite()).map(f64::ln);
    let logarithms: Vec<f64> = logarithms.collect();
    match logarithms.len() {
        0 => 0.0,
        count => (logarithms.iter().sum::<f64>() / count as f64).exp(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_mean_scores_per_error() {
        // Two types; with error feedback, then without.
        let both = Costs {
            plain: vec![0.4, 3.2],
            ..Costs::of(vec![0.2, 0.8])
        };
        let rates = rates_of(&both, &[0.1, 0.1]);
        assert!((rates[0] - 4.0).abs() < 1e-12, "{rates:?}");
        assert!((rates[1] - 128f64.sqrt()).abs() < 1e-12, "{rates:?}");
        // A type without an error gives no rate.
        let rates = |nats: [f64; 2], errors| rates_of(&Costs::of(nats.into()), errors);
        assert_eq!(rates([0.0, 0.5], &[0.0, 0.25]), [2.0]);
        assert_eq!(rates([0.0, 0.0], &[0.0, 0.0]), [0.0]);
    }
}
