//! Optional refinement: swaps of types that are predicted to be near-ties, each measured end to
//! end.
//!
//! ```text
//! text       chunks of the calibration text not used by the sensitivities; never the evaluation text
//! swaps      one tensor up, one or more down, within the size of the file; by predicted loss per exchanged byte
//! trial      the file's model with these tensors replaced, from the first of their layers on
//! accepted   if the divergence falls by more than the standard error of the paired differences, chunk by chunk
//! ```

use super::Result;
use super::allocation::{Allocation, FilePlan};
use super::calibration::Calibrated;
use super::cost::Cost;
use super::job::{Job, Model};
use super::numbers::Numbers;
use super::stage::{Session, Stage};
use super::workdir::WorkDir;
use crate::convert;
use crate::format::types::GgmlType;
use crate::input::Source;
use crate::model::{Engine, Replaced};
use crate::plan::frontier::{Item, Problem};
use crate::progress::{Progress, Unit};
use crate::sensitivity::sweep::{Comparison, Side, Within, first_layer};
use std::collections::BTreeSet;

/// Maximum number of tensors that go down for one that goes up.
const MOST_DOWN: usize = 3;
/// Number of neighbouring better and worse types tried per tensor.
const NEAR: usize = 3;

/// Result of the search for a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refined {
    /// Choice for each item of the problem.
    pub(super) choices: Vec<usize>,
    pub(super) tried: usize,
    pub(super) taken: usize,
    /// Mean divergence on the text of the search, before and after, in nats.
    pub(super) before: f64,
    pub(super) after: f64,
}

impl Refined {
    /// Note for the user.
    pub(super) fn note(&self, budget: &str) -> String {
        let Refined {
            tried,
            taken,
            before,
            after,
            ..
        } = self;
        let effect = match taken {
            0 => String::new(),
            _ => format!(": from {before:.6} to {after:.6} nats on a part of the calibration text"),
        };
        format!("{budget}: {tried} swaps measured, {taken} accepted{effect}")
    }
}

/// An exchange of types between tensors.
#[derive(Clone, Debug, PartialEq)]
struct Swap {
    /// Items of the problem with their new choices, in ascending order.
    changes: Vec<(usize, usize)>,
    /// Predicted loss in nats per exchanged byte.
    loss: f64,
}

/// The stage: the search for one file.
pub(super) struct Refinement<'j> {
    pub(super) job: &'j Job<'j>,
    pub(super) model: &'j Model<'j>,
    pub(super) numbers: &'j Numbers,
    pub(super) calibrated: &'j Calibrated,
    pub(super) allocation: &'j Allocation,
    /// Index of the file.
    pub(super) file: usize,
    /// Maximum number of swaps to measure.
    pub(super) most: usize,
}

impl Stage for Refinement<'_> {
    /// The inner `None` means that there is no text.
    type Output = Option<Refined>;

    fn name(&self) -> &'static str {
        "refinement"
    }

    /// Changed recipes are stored by [`super::targets`].
    fn load(&self, _: &WorkDir) -> Result<Option<Option<Refined>>> {
        Ok(None)
    }

    fn cost(&self, _: &WorkDir) -> Result<Cost> {
        let chunks = self.job.options.scoring.chunks as f64;
        let tokens = (chunks * self.numbers.context).min(self.numbers.calibration);
        let model = self.numbers.forward(tokens) + self.numbers.logits(tokens);
        // The base and the file, then on average half of the layers for each swap.
        let swaps = self.most as f64 * (model / 2.0 + self.numbers.logits(tokens) / 2.0);
        Ok(Cost {
            operations: 2.0 * model + swaps,
            ..Cost::default()
        })
    }

    fn run(&self, session: &Session<'_>) -> Result<Option<Refined>> {
        let chunks = self
            .model
            .texts
            .other_chunks(self.job.options.scoring.chunks)?;
        if chunks.len() < 2 {
            (session.tell)(
                "--refine has no text: sensitivities use every chunk of the calibration text",
            );
            return Ok(None);
        }
        let file = &self.allocation.files[self.file];
        self.refine(file, &chunks, session.progress).map(Some)
    }
}

impl Refinement<'_> {
    /// Searches with the model of a file.
    fn refine(
        &self,
        file: &FilePlan,
        chunks: &[Vec<u32>],
        progress: &dyn Progress,
    ) -> Result<Refined> {
        let (problem, base_engine) = (&self.allocation.problem, self.model.engine);
        let choices = &file.solution.choices;
        let source = Source::open(&file.path)?;
        let input = source.reader(&convert::Job::default())?;
        let mut engine = Engine::new(&input, &self.job.options.engine)?;
        let within = Within(progress);
        let base = base_engine.trace(chunks, None, &within)?;
        let base_head = base_engine.head()?;
        let comparison = Comparison {
            engine: base_engine,
            base: Side {
                head: &base_head,
                rows: &|chunk| base.output(base_engine, chunk),
            },
            chunks: chunks.len(),
        };
        let mut trace = engine.trace(chunks, None, &within)?;
        let mut now = {
            let side = Side {
                head: &engine.head()?,
                rows: &|chunk| trace.output(&engine, chunk),
            };
            comparison.divergence(side, "file", progress)?
        };
        let limit = bytes(problem, choices);
        let before = mean(&now);
        let mut refined = Refined {
            choices: choices.clone(),
            tried: 0,
            taken: 0,
            before,
            after: before,
        };
        let mut seen = BTreeSet::new();
        progress.begin(self.most as u64, Unit::Steps);
        'search: while refined.tried < self.most {
            for swap in swaps(problem, &refined.choices, limit) {
                if refined.tried == self.most {
                    break 'search;
                }
                if !seen.insert(swap.changes.clone()) {
                    continue;
                }
                let items = swap.changes.iter().map(|(item, _)| &problem.items[*item]);
                let names: Vec<_> = items.map(|item| &*item.name).collect();
                let shown = names.join(", ");
                progress.at(&shown);
                let changed = engine.replacing(&self.replaced(&swap, progress)?)?;
                let first = names.iter().map(|name| first_layer(&engine, name)).min();
                let hidden = changed.rerun(&trace, first.unwrap_or(0), &within)?;
                let then = {
                    let side = Side {
                        head: &changed.head()?,
                        rows: &|chunk| hidden.rows_of(chunk),
                    };
                    comparison.divergence(side, &shown, progress)?
                };
                refined.tried += 1;
                progress.advance(1);
                if is_better(&now, &then) {
                    swap.changes
                        .iter()
                        .for_each(|(item, choice)| refined.choices[*item] = *choice);
                    refined.taken += 1;
                    refined.after = mean(&then);
                    (now, engine) = (then, changed);
                    trace = engine.trace(chunks, None, &within)?;
                    continue 'search;
                }
            }
            break;
        }
        Ok(refined)
    }

    /// Tensors of a swap in their new types.
    fn replaced(&self, swap: &Swap, progress: &dyn Progress) -> Result<Vec<Replaced>> {
        let knowledge = self.calibrated.knowledge(self.job.input);
        let tensor = |(item, choice): &(usize, usize)| {
            let item = &self.allocation.problem.items[*item];
            let (name, t) = (&item.name, type_of(item, *choice));
            Ok(knowledge.rounded(self.model.engine, name, t, progress)?)
        };
        swap.changes.iter().map(tensor).collect()
    }
}

fn type_of(item: &Item, choice: usize) -> GgmlType {
    item.choices[choice].ggml_type
}

fn bytes(problem: &Problem, choices: &[usize]) -> u64 {
    problem
        .items
        .iter()
        .zip(choices)
        .map(|(item, choice)| item.choices[*choice].bytes)
        .sum()
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

/// True if the mean of paired numbers falls by more than its standard error.
fn is_better(now: &[f64], then: &[f64]) -> bool {
    let differences: Vec<f64> = then.iter().zip(now).map(|(then, now)| then - now).collect();
    let n = differences.len() as f64;
    let mean = mean(&differences);
    let squares: f64 = differences.iter().map(|d| (d - mean).powi(2)).sum();
    differences.len() > 1 && mean < -(squares / (n * (n - 1.0))).sqrt()
}

/// Swaps that keep all items within `limit` bytes, ordered by predicted loss per byte.
fn swaps(problem: &Problem, choices: &[usize], limit: u64) -> Vec<Swap> {
    struct Move {
        item: usize,
        choice: usize,
        bytes: i64,
        nats: f64,
    }
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for (item, (of, now)) in problem.items.iter().zip(choices).enumerate() {
        let at = of.choices[*now];
        let moved = |(choice, to): (usize, &crate::plan::frontier::Choice)| Move {
            item,
            choice,
            bytes: to.bytes as i64 - at.bytes as i64,
            nats: to.nats - at.nats,
        };
        let moves = || of.choices.iter().enumerate().map(moved);
        let mut better: Vec<_> = moves().filter(|m| m.bytes > 0 && m.nats < 0.0).collect();
        let mut worse: Vec<_> = moves().filter(|m| m.bytes < 0 && m.nats > 0.0).collect();
        better.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.nats.total_cmp(&b.nats)));
        worse.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.nats.total_cmp(&b.nats)));
        up.extend(better.into_iter().take(NEAR));
        down.extend(worse.into_iter().take(NEAR));
    }
    // Least loss per saved byte first.
    down.sort_by(|a, b| {
        (a.nats / a.bytes as f64)
            .total_cmp(&(b.nats / b.bytes as f64))
            .reverse()
    });
    let slack = limit as i64 - bytes(problem, choices) as i64;
    let mut swaps: Vec<Swap> = Vec::new();
    for up in &up {
        for (first, one) in down
            .iter()
            .enumerate()
            .filter(|(_, one)| one.item != up.item)
        {
            let mut changes = vec![(up.item, up.choice), (one.item, one.choice)];
            let (mut bytes, mut nats) = (up.bytes + one.bytes, up.nats + one.nats);
            for more in &down[first + 1..] {
                if bytes <= slack || changes.len() > MOST_DOWN {
                    break;
                }
                if changes.iter().all(|(item, _)| *item != more.item) {
                    changes.push((more.item, more.choice));
                    (bytes, nats) = (bytes + more.bytes, nats + more.nats);
                }
            }
            if bytes <= slack {
                changes.sort_unstable();
                swaps.push(Swap {
                    changes,
                    loss: nats / up.bytes as f64,
                });
            }
        }
    }
    swaps.sort_by(|a, b| {
        a.loss
            .total_cmp(&b.loss)
            .then_with(|| a.changes.cmp(&b.changes))
    });
    swaps.dedup_by(|a, b| a.changes == b.changes);
    swaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Role;
    use crate::plan::frontier::Choice;

    fn item(name: &str, choices: &[(u64, f64)]) -> Item {
        let types = [GgmlType::Q2_K, GgmlType::Q4_K, GgmlType::Q6_K];
        let choices = choices.iter().zip(types);
        let choices = choices
            .map(|(&(bytes, nats), ggml_type)| Choice {
                ggml_type,
                bytes,
                nats,
            })
            .collect();
        Item {
            name: name.into(),
            role: Role::Other,
            row_len: 256,
            weights: 256,
            choices,
        }
    }

    #[test]
    fn swaps_keep_the_size_and_are_sorted_by_loss() {
        let items = vec![
            item("a", &[(10, 5.0), (20, 2.0), (30, 1.0)]),
            item("b", &[(10, 4.0), (20, 1.9), (30, 1.0)]),
            item("c", &[(5, 0.7), (10, 0.3), (15, 0.1)]),
        ];
        let problem = Problem {
            items,
            ..Problem::default()
        };
        let now = [1, 1, 1];
        let found = swaps(&problem, &now, 50);
        assert!(!found.is_empty() && found.windows(2).all(|pair| pair[0].loss <= pair[1].loss));
        for swap in &found {
            let mut then = now;
            swap.changes
                .iter()
                .for_each(|(item, choice)| then[*item] = *choice);
            assert!(bytes(&problem, &then) <= 50, "{swap:?}");
            assert!(
                swap.changes.len() > 1 && swap.changes.windows(2).all(|pair| pair[0].0 < pair[1].0),
                "{swap:?}"
            );
        }
        // c goes up for less than b goes down; in the opposite direction, a or b up needs both
        // others down.
        assert!(
            found.iter().any(|swap| swap.changes == [(1, 0), (2, 2)]),
            "{found:?}"
        );
        assert!(
            swaps(&problem, &[0, 0, 0], 25).is_empty(),
            "nothing can go down"
        );
    }

    #[test]
    fn only_significant_gains_are_accepted() {
        assert!(is_better(&[1.0, 2.0, 3.0], &[0.9, 1.9, 2.9]));
        assert!(!is_better(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]));
        assert!(
            !is_better(&[1.0, 2.0, 3.0], &[1.1, 1.7, 3.0]),
            "the mean falls by less than its error"
        );
        assert!(
            !is_better(&[1.0], &[0.5]),
            "one chunk has no error to compare with"
        );
    }
}
