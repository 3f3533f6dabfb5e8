//! Recipes changed by measurements: of files that missed their divergence target, and of refined
//! files. The changes are stored, so that the next run starts with them.

use super::Result;
use super::allocation::{Allocation, FilePlan};
use super::job::Job;
use super::workdir::WorkDir;
use crate::format::snapshot::Key;
use crate::resume::KeyBuilder;
use crate::sensitivity::Scores;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Maximum number of correction rounds for files that missed their divergence target.
pub(super) const ROUNDS: usize = 2;
/// Minimum fraction of its target that a file may reach; below it, the file is larger than
/// necessary.
const LEAST: f64 = 0.95;
/// Fraction of the target that a correction aims at: the middle of the range.
const AIM: f64 = (1.0 + LEAST) / 2.0;

/// A changed recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Adjusted {
    /// Choice for each item of the problem.
    choices: Vec<usize>,
    /// Note for the user.
    note: Option<String>,
}

type ByBudget = BTreeMap<String, Adjusted>;

/// Changed recipes of a run, by budget.
#[derive(Default)]
pub(super) struct Adjustments {
    of_run: ByBudget,
    /// Key of all their inputs.
    key: Option<Key>,
}

/// Name of the changes in the work directory.
const NAME: &str = "adjusted";

/// Applies the changes of earlier runs.
pub(super) fn apply(
    job: &Job<'_>,
    scores: &Scores,
    allocation: &mut Allocation,
    work: &WorkDir,
) -> Result<()> {
    let Some(files) = job.options.files() else {
        return Ok(());
    };
    let scores = serde_json::to_vec(scores).unwrap_or_default();
    let key = KeyBuilder::new("make: adjusted").with_model(job.input)?;
    let Some(key) = job.with_texts(key) else {
        return Ok(());
    };
    let key = key
        .with("scores", &scores)
        .with("rounding", job.options.rounding.name().as_bytes())
        .with("refine", &files.refine.to_le_bytes())
        .key();
    let stored: ByBudget = work.read(NAME, &key).unwrap_or_default();
    for (budget, adjusted) in stored {
        let mut files = allocation.files.iter();
        let Some(index) = files.position(|file| file.budget == budget) else {
            continue;
        };
        if allocation.set(index, &adjusted.choices) {
            allocation.adjusted.of_run.insert(budget, adjusted);
        }
    }
    allocation.adjusted.key = Some(key);
    Ok(())
}

impl Adjustments {
    /// True if the recipe of a budget has been changed.
    pub(super) fn contains(&self, budget: &str) -> bool {
        self.of_run.contains_key(budget)
    }

    /// Notes for the user.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        self.of_run.values().filter_map(|a| a.note.clone())
    }

    /// Stores the recipe of a file; recipes of budgets from earlier runs are kept.
    pub(super) fn store(
        &mut self,
        file: &FilePlan,
        note: Option<String>,
        work: &WorkDir,
    ) -> Result<()> {
        let adjusted = Adjusted {
            choices: file.solution.choices.clone(),
            note,
        };
        self.of_run.insert(file.budget.clone(), adjusted);
        let Some(key) = &self.key else {
            return Ok(());
        };
        let mut all: ByBudget = work.read(NAME, key).unwrap_or_default();
        all.extend(self.of_run.clone());
        work.write(NAME, key, &all)
    }
}

/// The prediction to aim at for a file with `predicted` and `measured` nats, if it misses the
/// `target`. The ratio of measured to predicted nats hardly depends on the size.
fn aim(target: f64, predicted: f64, measured: f64) -> Option<f64> {
    let is_hit = measured <= target && measured >= LEAST * target;
    let is_usable = [target, predicted, measured]
        .iter()
        .all(|x| x.is_finite() && *x > 0.0);
    (is_usable && !is_hit).then(|| AIM * target * predicted / measured)
}

/// Solves again for files that missed their divergence target, except for those that are `settled`.
/// Returns the indices of the changed files.
pub(super) fn correct(
    allocation: &mut Allocation,
    measured: &[f64],
    settled: &[bool],
) -> Vec<usize> {
    let mut changed = Vec::new();
    for (index, measured) in measured
        .iter()
        .enumerate()
        .filter(|(index, _)| !settled[*index])
    {
        let file = &allocation.files[index];
        let Some(nats) = file
            .target
            .and_then(|target| aim(target, file.solution.nats, *measured))
        else {
            continue;
        };
        let Some(solution) = allocation.frontier.for_nats(nats) else {
            continue;
        };
        if solution.choices != file.solution.choices && allocation.set(index, &solution.choices) {
            changed.push(index);
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_ratio_is_corrected_in_one_round() {
        // Measured is 1.3 times the prediction.
        let aimed = aim(0.02, 0.0199, 0.0199 * 1.3).unwrap();
        let then = aimed * 1.3;
        assert!((0.95 * 0.02..=0.02).contains(&then), "{then}");
        assert_eq!(aim(0.02, aimed, then), None);
        // A divergence far below the target means a file larger than necessary.
        let aimed = aim(0.02, 0.0199, 0.0199 * 0.7).unwrap();
        assert_eq!(aim(0.02, aimed, aimed * 0.7), None);
    }

    #[test]
    fn nonpositive_numbers_give_no_correction() {
        assert_eq!(aim(0.02, 0.02, 0.0), None);
        assert_eq!(aim(0.02, 0.0, 0.03), None);
        assert_eq!(aim(0.02, 0.02, f64::NAN), None);
    }
}
