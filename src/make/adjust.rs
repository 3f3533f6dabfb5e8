//! Recipes that are changed after their files were measured: a file that was to have so many nats
//! and has others, and files that a search has found better ones for. What came of it is kept, so
//! that the next run begins with it.

use super::choice::{Choices, Chosen};
use super::{Job, Kept, Result, texts};
use crate::format::snapshot::Key;
use crate::input::Input;
use crate::resume;
use crate::sensitivity::Scores;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How often a file that is to have so many nats is chosen anew.
pub(super) const ROUNDS: usize = 2;
/// A file of fewer nats than this part of the wish is larger than it need be.
const LEAST: f64 = 0.95;
/// What part of the wish is aimed at: the middle of what is good enough.
const AIM: f64 = (1.0 + LEAST) / 2.0;

/// What became of a budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Adjusted {
    /// The choice for each item of the problem.
    choices: Vec<usize>,
    /// What the user is told, if anything.
    pub(super) note: Option<String>,
}

/// By budget, as the user put it.
pub(super) type All = BTreeMap<String, Adjusted>;

/// All that adjustments depend on.
pub(super) fn key(
    input: &Input<'_>,
    job: &Job,
    windows: &texts::Cut,
    scores: &Scores,
) -> Result<Key> {
    let scores = serde_json::to_vec(scores).unwrap_or_default();
    let key = resume::KeyBuilder::new("make: adjusted")
        .with_model(input)?
        .with("tokens", windows.evaluation_bytes());
    let key = key
        .with("calibration", windows.calibration_bytes())
        .with("scores", &scores);
    let key = key.with("rounding", job.rounding.name().as_bytes());
    Ok(key.with("refine", &job.refine.to_le_bytes()).key())
}

const NAME: &str = "adjusted";

/// Applies what an earlier run has come to.
pub(super) fn apply(job: &Job, choices: &mut Choices, kept: &Kept, key: &Key) -> All {
    let all: All = kept.read(NAME, key).unwrap_or_default();
    let mut applied = All::new();
    for (budget, adjusted) in all {
        let Some(index) = choices.chosen.iter().position(|c| c.budget == budget) else {
            continue;
        };
        if choices.set(job, index, &adjusted.choices) {
            applied.insert(budget, adjusted);
        }
    }
    applied
}

/// Keeps what a budget has become.
pub(super) fn keep(
    all: &mut All,
    chosen: &Chosen,
    note: Option<String>,
    kept: &Kept,
    key: &Key,
) -> Result<()> {
    let adjusted = Adjusted {
        choices: chosen.solution.choices.clone(),
        note,
    };
    all.insert(chosen.budget.clone(), adjusted);
    // Those of budgets that this run has not are kept as well.
    let mut every: All = kept.read(NAME, key).unwrap_or_default();
    every.extend(all.clone());
    kept.write(NAME, key, &every)
}

/// For a file that was to have `wish` nats, was predicted to have `predicted` and has `measured`:
/// the prediction to aim at, if the file is not good enough. Measured and predicted nats differ by
/// a factor that hardly depends on the size.
pub(super) fn target(wish: f64, predicted: f64, measured: f64) -> Option<f64> {
    let good = measured <= wish && measured >= LEAST * wish;
    let usable = [wish, predicted, measured]
        .iter()
        .all(|x| x.is_finite() && *x > 0.0);
    (usable && !good).then(|| AIM * wish * predicted / measured)
}

/// Chooses anew where a wish for nats is not met well enough, but for those that are `done`;
/// returns the numbers of the recipes that changed.
pub(super) fn closer(
    job: &Job,
    choices: &mut Choices,
    measured: &[f64],
    done: &[bool],
) -> Vec<usize> {
    let mut changed = Vec::new();
    for (index, measured) in measured
        .iter()
        .enumerate()
        .filter(|(index, _)| !done[*index])
    {
        let chosen = &choices.chosen[index];
        let Some(target) = chosen
            .wish
            .and_then(|wish| target(wish, chosen.solution.nats, *measured))
        else {
            continue;
        };
        let Some(solution) = choices.frontier.for_nats(target) else {
            continue;
        };
        if solution.choices != chosen.solution.choices && choices.set(job, index, &solution.choices)
        {
            changed.push(index);
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stable_factor_is_corrected_in_one_round() {
        // Measured is 1.3 times what was predicted.
        let aim = target(0.02, 0.0199, 0.0199 * 1.3).unwrap();
        let then = aim * 1.3;
        assert!((0.95 * 0.02..=0.02).contains(&then), "{then}");
        assert_eq!(target(0.02, aim, then), None);
        // Too good is too large.
        let aim = target(0.02, 0.0199, 0.0199 * 0.7).unwrap();
        assert_eq!(target(0.02, aim, aim * 0.7), None);
    }

    #[test]
    fn what_is_no_number_corrects_nothing() {
        assert_eq!(target(0.02, 0.02, 0.0), None);
        assert_eq!(target(0.02, 0.0, 0.03), None);
        assert_eq!(target(0.02, 0.02, f64::NAN), None);
    }
}
