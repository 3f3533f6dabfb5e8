//! Plans of shards for schedulers that exist: files that start the shards, and their state.
//!
//! ```text
//! slurm        job arrays with dependencies, memory and time
//! snakemake    a Snakefile, whose executors reach Slurm, Kubernetes and cloud batch
//! schedule     simulation of a plan on some machines
//! status       which shards are done, and how much more machines would help
//! ```
//!
//! Data in, text out: nothing here starts a process.

pub mod schedule;
pub mod slurm;
pub mod snakemake;
pub mod status;

use crate::make::PlannedStage;
use crate::report::numbers::shell;
use std::path::Path;

/// A step of a plan: the merges follow the shards of their stage.
fn merge_name(stage: &str) -> String {
    format!("merge-{stage}")
}

/// Settings of all schedulers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program, as the machines call it.
    pub program: String,
    /// Processor cores of a shard.
    pub cores: usize,
    /// Times that a killed shard is started again.
    pub retries: usize,
    /// Time limit of a shard, in multiples of its estimated time.
    pub time_factor: f64,
}

impl Settings {
    /// Memory limit of a shard in MiB: the estimate, a quarter more, and 1 GiB for the program and pages
    /// of the model.
    fn memory_mib(stage: &PlannedStage) -> u64 {
        (stage.memory_bytes + stage.memory_bytes / 4 + (1 << 30)) >> 20
    }

    /// Time limit of a shard in minutes, at least 10.
    fn minutes(&self, stage: &PlannedStage) -> u64 {
        let longest = stage.shards.iter().map(|shard| shard.seconds);
        let longest = longest.fold(0.0, f64::max) * self.time_factor / 60.0;
        (longest.ceil() as u64).max(10)
    }

    /// Time limit of a merge or of the last step in minutes.
    fn merge_minutes(&self, stage: &PlannedStage) -> u64 {
        ((stage.merge_seconds * self.time_factor / 60.0).ceil() as u64).max(10)
    }

    fn shard(&self, directory: &Path, stage: &str, number: &str) -> String {
        format!(
            "{} shard {} {stage} {number}",
            shell(&self.program),
            shell(&directory.display().to_string())
        )
    }

    fn merge(&self, directory: &Path, stage: &str) -> String {
        format!(
            "{} merge-shards {} {stage}",
            shell(&self.program),
            shell(&directory.display().to_string())
        )
    }

    /// The run that continues from the merged stages.
    fn make(&self, directory: &Path, arguments: &[String]) -> String {
        let arguments: Vec<_> = arguments.iter().map(|argument| shell(argument)).collect();
        format!(
            "cd {} && {} {}",
            shell(&directory.display().to_string()),
            shell(&self.program),
            arguments.join(" ")
        )
    }
}

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Its name.
    pub name: String,
    /// Its content.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::Settings;
    use crate::make::{PlannedShard, PlannedStage, ShardPlan};

    pub(super) fn settings() -> Settings {
        Settings {
            program: "quantier".into(),
            cores: 16,
            retries: 5,
            time_factor: 3.0,
        }
    }

    /// A plan of three stages, the first of which is done.
    pub(super) fn plan() -> ShardPlan {
        let stage = |name: &str, after: &[&str], shards: usize| PlannedStage {
            name: name.into(),
            after: after.iter().map(|name| (*name).into()).collect(),
            done: shards == 0,
            units: shards,
            seconds: 100.0 * shards as f64,
            product_seconds: 80.0 * shards as f64,
            disk_seconds: 5.0 * shards as f64,
            unit_seconds: vec![100.0; shards],
            memory_bytes: 2 << 30,
            part_bytes: 1 << 30,
            read_bytes: 1 << 30,
            merge_seconds: 10.0,
            shards: (0..shards)
                .map(|first| PlannedShard {
                    first,
                    units: 1,
                    seconds: 100.0,
                })
                .collect(),
        };
        ShardPlan {
            layout: 2,
            maker: "quantier".into(),
            model: String::new(),
            texts: String::new(),
            directory: "/home".into(),
            count: None,
            arguments: ["make", "m", "-o", "out"].map(String::from).into(),
            flops_per_second: 1e12,
            stages: vec![
                stage("imatrix", &[], 0),
                stage("gradients", &[], 5),
                stage("sensitivities", &["imatrix", "gradients"], 3),
            ],
            later: Vec::new(),
        }
    }
}
