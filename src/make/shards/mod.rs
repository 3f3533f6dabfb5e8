//! Shards: stages cut into units of work that other processes do, on this machine or on others.
//!
//! ```text
//! Cut          a way to cut a stage; its units depend on the job alone, never on the number of shards
//! ShardPlan    the stages with their shards, costs and dependencies: work/plan.json
//! shard        does the units of one shard, a part each
//! merge        adds the parts in the order of units: the stage's ordinary result
//! ```
//!
//! A shard is a range of units, and a function of the plan and its index: it may be done twice, at once,
//! or killed at any time. The results are the same bytes as those of one process, since that adds the
//! same units in the same order. Nothing here starts, counts or watches processes.

mod arithmetic;
mod calibrating;
mod measuring;
mod parts;
mod plan;
mod run;
mod sensing;
mod writing;

pub(super) use calibrating::{Averaging, Summing};
pub(super) use measuring::Measuring;
use parts::Parts;
pub(super) use sensing::{Gradients, Sensing};
pub(super) use writing::Writing;

pub use plan::{LATER, PlannedShard, PlannedStage, ShardPlan, ShardSize};
pub use run::Done;

use super::cost::Cost;
use super::stage::Session;
use super::workdir::WorkDir;
use super::{Error, Result};
use crate::format::part::{Part, Writer};
use crate::format::snapshot::Key;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

/// A way to cut a stage into units of work.
pub(super) trait Cut {
    /// Name in the plan.
    fn name(&self) -> &'static str;

    /// Names of the cuts whose results are read.
    fn after(&self) -> &'static [&'static str];

    /// Key of all that the parts depend on.
    fn key(&self) -> Result<Key>;

    /// Number of units.
    fn units(&self) -> usize;

    /// Most units that one pass does.
    fn together(&self) -> usize {
        1
    }

    /// Cost of a unit.
    fn cost(&self, unit: usize) -> Cost;

    /// Does some units, each into its part.
    fn run(
        &self,
        session: &Session<'_>,
        units: Range<usize>,
        parts: &[Mutex<Writer>],
    ) -> Result<()>;

    /// True if what a unit leaves beside its part is there.
    fn is_there(&self, _work: &WorkDir, _unit: usize) -> Result<bool> {
        Ok(true)
    }

    /// Makes the stage's result from the parts of all units, in order.
    fn merge(&self, session: &Session<'_>, parts: &[Part]) -> Result<()>;

    /// Bytes that the merge reads.
    fn merge_bytes(&self) -> u64 {
        0
    }

    /// Names of the cuts whose parts are of no use after the merge.
    fn uses_up(&self) -> &'static [&'static str];
}

/// The error for files of units that are not there.
fn lost_files(stage: &str, directory: &Path) -> Error {
    Error::Format(crate::format::Error::Bad {
        path: directory.to_owned(),
        what: format!(
            "a file of stage {stage} is missing or damaged; remove work/parts/{stage} and run its shards again"
        ),
    })
}

/// The error for a stage without this name.
fn no_stage(name: &str) -> Error {
    Error::NoShards(name.to_owned())
}
