//! The state of a plan: which shards are done, how long they took, and how much more machines would help.

use super::schedule::{critical_path, simulate};
use crate::make::ShardPlan;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// State of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The stages in order.
    pub stages: Vec<StageStatus>,
    /// Time in seconds that no number of machines shortens.
    pub critical_path_seconds: f64,
    /// Number of machines, estimated time in seconds, and part of the machines' time that is work.
    pub machines: Vec<(usize, f64, f64)>,
    /// Steps of the last process, with the reasons why they have no shards.
    pub later: Vec<[String; 2]>,
}

/// State of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageStatus {
    /// Its name.
    pub name: String,
    /// True if its result is there.
    pub merged: bool,
    /// Number of shards, and of those that are done.
    pub shards: usize,
    /// Number of shards that are done.
    pub done: usize,
    /// Shards that are not done.
    pub open: Vec<usize>,
    /// Estimated time of all shards in seconds.
    pub seconds: f64,
    /// Measured time of the units that are done, in seconds.
    pub measured_seconds: f64,
    /// Estimated time of the same units.
    pub measured_estimate: f64,
    /// The shard that took longest, with its time in seconds.
    pub longest: Option<(usize, f64)>,
    /// Machines that did them.
    pub hosts: BTreeSet<String>,
}

/// Numbers of machines for the estimates.
const MACHINES: [usize; 6] = [1, 4, 8, 16, 64, 256];

impl Status {
    /// State of a plan in its output directory.
    pub fn of(plan: &ShardPlan, directory: &Path) -> Status {
        let stages = plan.stages.iter().map(|stage| {
            let mut status = StageStatus {
                name: stage.name.clone(),
                merged: plan.is_merged(directory, stage),
                shards: stage.shards.len(),
                done: 0,
                open: Vec::new(),
                seconds: stage.seconds,
                measured_seconds: 0.0,
                measured_estimate: 0.0,
                longest: None,
                hosts: BTreeSet::new(),
            };
            for (number, shard) in stage.shards.iter().enumerate() {
                let units = plan.unit_states(directory, stage, shard);
                match status.merged || units.iter().all(Option::is_some) {
                    true => status.done += 1,
                    false => status.open.push(number),
                }
                let mut took = 0.0;
                for (unit, state) in units.into_iter().enumerate() {
                    let Some((Some(seconds), host)) = state else {
                        continue;
                    };
                    took += seconds;
                    status.measured_estimate += stage.unit_seconds[shard.first + unit];
                    status.hosts.extend(host);
                }
                status.measured_seconds += took;
                if took > status.longest.map_or(0.0, |(_, longest)| longest) {
                    status.longest = Some((number, took));
                }
            }
            status
        });
        let schedules = MACHINES.map(|machines| simulate(plan, machines, |stage| !stage.done));
        Status {
            stages: stages.collect(),
            critical_path_seconds: critical_path(plan),
            machines: schedules
                .iter()
                .map(|schedule| (schedule.machines, schedule.seconds, schedule.efficiency()))
                .collect(),
            later: plan.later.clone(),
        }
    }
}
