//! The plan: stages, shards, dependencies and costs, in a file that engines and people read.

use super::no_stage;
use super::parts::{self, maker};
use crate::format::{self, hex};
use crate::make::cost::Cost;
use crate::make::machine::{DISK, Machine, disk_seconds};
use crate::make::stage::{PlannedCut, Walk};
use crate::make::workdir::WorkDir;
use crate::make::{Error, Job, Result, write_text};
use crate::resume::KeyBuilder;
use crate::sensitivity::Measure;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Name of the file in the work directory.
const FILE: &str = "plan.json";
/// Version of the file's layout.
const LAYOUT: u32 = 2;

/// Steps that the last process does, with the reasons.
pub const LATER: &[(&str, &str)] = &[
    ("allocation", "one solution over all tensors; seconds"),
    (
        "files that missed --kld, --refine, presets for comparison",
        "each step depends on the measurement before it",
    ),
    ("report", "seconds"),
];

/// Size of shards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ShardSize {
    /// About this time each, on a machine like this one.
    Seconds(f64),
    /// This number for every stage, or fewer if it has fewer units.
    Count(usize),
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardPlan {
    /// Version of the layout.
    pub layout: u32,
    /// The program and its arithmetic; others are refused.
    pub maker: String,
    /// Checksum of the model's files, sizes, times and header.
    pub model: String,
    /// Checksum of the texts' tokens.
    pub texts: String,
    /// Directory in which the arguments were typed.
    pub directory: PathBuf,
    /// Arguments of `make`, without the program, with those of the configuration file.
    pub arguments: Vec<String>,
    /// Number of shards of every stage, if it was given: those beyond a stage's own are empty.
    pub count: Option<usize>,
    /// Matrix products in f32 of this machine, in floating-point operations per second.
    pub flops_per_second: f64,
    /// The stages in order.
    pub stages: Vec<PlannedStage>,
    /// Steps of the last process, with the reasons why they have no shards.
    pub later: Vec<[String; 2]>,
}

/// A stage of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedStage {
    /// Name, for `quantier shard` and `quantier merge-shards`.
    pub name: String,
    /// Stages that have to be merged before.
    pub after: Vec<String>,
    /// True if the result was there when the plan was made.
    pub done: bool,
    /// Number of units of work.
    pub units: usize,
    /// Estimated time of all units on this machine.
    pub seconds: f64,
    /// The part of it that is matrix products and factorizations.
    pub product_seconds: f64,
    /// The part of it that is reading and writing, at a gigabyte per second.
    pub disk_seconds: f64,
    /// Estimated time of one unit, by unit.
    pub unit_seconds: Vec<f64>,
    /// Peak memory of a shard in bytes, beside the mapped model.
    pub memory_bytes: u64,
    /// Bytes of all parts.
    pub part_bytes: u64,
    /// Estimated time of the merge, which reads all parts from a disk.
    pub merge_seconds: f64,
    /// Bytes of weights that a pass over its units reads, if all are done in one shard.
    pub read_bytes: u64,
    /// The shards; none if the stage is done.
    pub shards: Vec<PlannedShard>,
}

/// A shard of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedShard {
    /// First unit.
    pub first: usize,
    /// Number of units.
    pub units: usize,
    /// Estimated time.
    pub seconds: f64,
}

impl ShardPlan {
    /// Reads the plan of an output directory.
    ///
    /// # Errors
    /// No plan, or an unreadable one.
    pub fn read(directory: &Path) -> Result<ShardPlan> {
        let path = WorkDir::of(directory).path(FILE);
        let bad = |what: String| Error::BadPlan {
            path: path.clone(),
            what,
        };
        let text = std::fs::read_to_string(&path).map_err(|source| match source.kind() {
            ErrorKind::NotFound | ErrorKind::InvalidData => bad(source.to_string()),
            // A plan may be there.
            _ => Error::Format(format::Error::Io {
                path: path.clone(),
                action: "read",
                source,
            }),
        })?;
        let plan: ShardPlan =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        match plan.layout {
            LAYOUT => Ok(plan),
            other => Err(bad(format!(
                "its layout is {other}, and this program's {LAYOUT}"
            ))),
        }
    }

    /// A stage by name.
    ///
    /// # Errors
    /// A name that the plan does not have.
    pub fn stage(&self, name: &str) -> Result<&PlannedStage> {
        let mut stages = self.stages.iter();
        stages
            .find(|stage| stage.name == name)
            .ok_or_else(|| no_stage(name))
    }

    /// The units of a shard; none for a stage that is done.
    pub(super) fn units(&self, stage: &str, shard: &str) -> Result<Range<usize>> {
        let stage = self.stage(stage)?;
        let number = shard.parse::<usize>().ok();
        let found = number.and_then(|number| stage.shards.get(number));
        match found {
            Some(shard) => Ok(shard.first..shard.first + shard.units),
            None if stage.done => Ok(0..0),
            None if number.is_some_and(|number| self.count > Some(number)) => Ok(0..0),
            None => Err(Error::NoShard {
                stage: stage.name.clone(),
                shard: shard.to_owned(),
                shards: stage.shards.len(),
            }),
        }
    }

    /// True if a stage is merged now.
    pub fn is_merged(&self, directory: &Path, stage: &PlannedStage) -> bool {
        stage.done || parts::is_merged(&folder(directory, stage))
    }

    /// For every unit of a shard: `None` if it has no part; otherwise its time, as far as known, and the
    /// machine.
    pub fn unit_states(
        &self,
        directory: &Path,
        stage: &PlannedStage,
        shard: &PlannedShard,
    ) -> Vec<Option<(Option<f64>, Option<String>)>> {
        let folder = folder(directory, stage);
        let is_merged = parts::is_merged(&folder);
        let state = |unit: usize| {
            let time = parts::time(&folder, unit);
            (is_merged || parts::has_part(&folder, unit)).then(|| {
                let host = time.as_ref().and_then(|time| time.host.clone());
                (time.map(|time| time.seconds), host)
            })
        };
        (shard.first..shard.first + shard.units)
            .map(state)
            .collect()
    }
}

fn folder(directory: &Path, stage: &PlannedStage) -> PathBuf {
    parts::folder(&WorkDir::of(directory), &stage.name)
}

impl Job<'_> {
    /// Plans the shards of all stages, and writes the plan into the work directory. `arguments` are those
    /// of the command line, typed in `directory`.
    ///
    /// # Errors
    /// A job without the engine of this program, or whose sensitivities are not divergences; a work
    /// directory that cannot be written or cannot replace a file by a rename; errors of a dry run.
    pub fn plan_shards(
        &self,
        size: ShardSize,
        directory: &Path,
        arguments: Vec<String>,
    ) -> Result<ShardPlan> {
        if self.model().is_none() {
            return Err(Error::NoCuts(
                "the model is not run by the engine of this program",
            ));
        }
        if !self.has_output() {
            return Err(Error::NoCuts(
                "embedding models are small, and their texts differ in length",
            ));
        }
        if self.settings().measure != Measure::Divergence {
            return Err(Error::NoCuts(
                "the sensitivities are not those of --score divergence",
            ));
        }
        let work = self.work();
        let mut walk = Walk::plan_cuts(&work);
        let outcome = self.walk(&mut walk)?;
        let machine = Machine::new(
            self.input,
            &outcome.scores,
            self.options.engine.threads,
            self.options.rounding.has_feedback(),
        )?;
        let cuts = walk.into_cuts();
        let stages = cuts.iter().map(|cut| {
            let mut stage = planned(cut, size, &machine);
            let has = |name: &String| cuts.iter().any(|cut| cut.name == name);
            stage.after.retain(has);
            stage
        });
        let [model, texts] = self.identity()?;
        let later = LATER
            .iter()
            .map(|(step, why)| [*step, *why].map(String::from));
        let plan = ShardPlan {
            layout: LAYOUT,
            maker: maker(),
            model,
            texts,
            directory: directory.to_owned(),
            arguments,
            count: match size {
                ShardSize::Count(count) => Some(count),
                ShardSize::Seconds(_) => None,
            },
            flops_per_second: machine.flops_per_second,
            stages: stages.collect(),
            later: later.collect(),
        };
        work.create()?;
        check_renames(&work)?;
        for cut in cuts.iter().filter(|cut| !cut.done) {
            parts::unmark(&work, cut.name);
        }
        let text = serde_json::to_string_pretty(&plan).unwrap_or_default();
        write_text(&work.path(FILE), &format!("{text}\n"))?;
        Ok(plan)
    }

    /// Checksums of the model and of the texts.
    pub(super) fn identity(&self) -> Result<[String; 2]> {
        let model = KeyBuilder::new("make: model").with_model(self.input)?;
        let texts = self.with_texts(KeyBuilder::new("make: texts"));
        let texts = texts.unwrap_or_else(|| KeyBuilder::new("make: texts"));
        let texts = texts.with("context", &self.context.to_le_bytes());
        Ok([hex(&model.key()), hex(&texts.key())])
    }
}

/// A stage with its shards.
fn planned(cut: &PlannedCut, size: ShardSize, machine: &Machine) -> PlannedStage {
    let seconds: Vec<f64> = cut.units.iter().map(|cost| machine.seconds(cost)).collect();
    let all: f64 = seconds.iter().sum();
    let count = match size {
        ShardSize::Count(count) => count,
        ShardSize::Seconds(of_shard) => (all / of_shard.max(1.0)).ceil() as usize,
    };
    let shards = match cut.done {
        true => Vec::new(),
        false => divided(&seconds, count),
    };
    let sum = |of: fn(&Machine, &Cost) -> f64| cut.units.iter().map(|cost| of(machine, cost)).sum();
    let most = |of: fn(&Cost) -> u64| cut.units.iter().map(of).max().unwrap_or(0);
    PlannedStage {
        name: cut.name.into(),
        after: cut.after.iter().map(|name| (*name).into()).collect(),
        done: cut.done,
        units: cut.units.len(),
        seconds: all,
        product_seconds: sum(Machine::product_seconds),
        disk_seconds: sum(|_, cost| disk_seconds(cost)),
        memory_bytes: most(|cost| cost.memory),
        part_bytes: cut.units.iter().map(|cost| cost.written).sum(),
        merge_seconds: cut.merge_bytes as f64 / DISK,
        read_bytes: most(|cost| cost.read),
        unit_seconds: seconds,
        shards,
    }
}

/// Ranges of units with about equal times: at most `count`, at least one.
fn divided(seconds: &[f64], count: usize) -> Vec<PlannedShard> {
    let count = count.clamp(1, seconds.len().max(1));
    let (mut shards, mut first) = (Vec::new(), 0);
    for shard in 0..count {
        let (units, rest) = (&seconds[first..], count - shard);
        let goal = units.iter().sum::<f64>() / rest as f64;
        // Leave at least one unit for each of the others.
        let most = units.len().saturating_sub(rest - 1);
        let (mut taken, mut sum) = (0, 0.0);
        while taken < most {
            let with = sum + units[taken];
            if taken > 0 && with - goal > goal - sum && rest > 1 {
                break;
            }
            (sum, taken) = (with, taken + 1);
        }
        if rest == 1 {
            (taken, sum) = (units.len(), units.iter().sum());
        }
        shards.push(PlannedShard {
            first,
            units: taken,
            seconds: sum,
        });
        first += taken;
    }
    shards
}

/// Checks that the work directory's file system replaces files by renames.
fn check_renames(work: &WorkDir) -> Result<()> {
    let path = work.path("rename-test");
    let read = || std::fs::read_to_string(&path).ok();
    let mut replaced = true;
    for text in ["first", "second"] {
        write_text(&path, text)?;
        replaced &= read().as_deref() == Some(text);
    }
    let _ = std::fs::remove_file(&path);
    match replaced {
        true => Ok(()),
        false => Err(Error::NoRename(work.path(""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_all_units_in_order() {
        let seconds = [5.0, 1.0, 1.0, 1.0, 8.0, 1.0, 1.0];
        for count in [1, 2, 3, 7, 37] {
            let shards = divided(&seconds, count);
            assert_eq!(shards.len(), count.min(7));
            let mut next = 0;
            for shard in &shards {
                assert_eq!((shard.first, shard.units > 0), (next, true), "{shards:?}");
                next += shard.units;
            }
            assert_eq!(next, seconds.len());
        }
        let two = divided(&seconds, 2);
        assert!(two.iter().all(|shard| shard.seconds <= 10.0), "{two:?}");
        assert_eq!(divided(&[], 3).len(), 1);
    }
}
