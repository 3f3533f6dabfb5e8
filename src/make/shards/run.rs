//! Doing a shard, and merging a stage.

use super::parts::{self, Parts, maker};
use super::plan::ShardPlan;
use super::{Cut, no_stage};
use crate::make::stage::{Session, Walk};
use crate::make::{Error, Job, Result};
use crate::progress::{Progress, Unit};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Result of a shard or a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Everything was there already.
    Already,
    /// This number of units was done, or merged.
    Units(usize),
    /// The time is over: some units are left for the next run of the shard.
    OutOfTime {
        /// Number of units done by this run.
        done: usize,
        /// Number of units left.
        left: usize,
    },
}

/// Progress of a shard, which ends at a deadline.
struct Until<'p> {
    progress: &'p dyn Progress,
    deadline: Option<Instant>,
}

impl Until<'_> {
    fn is_over(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }
}

impl Progress for Until<'_> {
    fn begin(&self, amount: u64, unit: Unit) {
        self.progress.begin(amount, unit);
    }

    fn at(&self, name: &str) {
        self.progress.at(name);
    }

    fn advance(&self, amount: u64) {
        self.progress.advance(amount);
    }

    fn cancelled(&self) -> bool {
        self.progress.cancelled() || self.is_over()
    }
}

impl Job<'_> {
    /// Does a shard of a stage. Units that are done already are left alone; after `time` the shard ends
    /// between two units, or within one, whose work is lost unless it saves snapshots.
    ///
    /// # Errors
    /// A plan of another version, model, text or processor; a stage whose predecessors are not merged;
    /// errors of the stage.
    pub fn shard(
        &self,
        plan: &ShardPlan,
        [stage, shard]: [&str; 2],
        time: Option<Duration>,
        progress: &dyn Progress,
        tell: &dyn Fn(&str),
    ) -> Result<Done> {
        self.check_plan(plan)?;
        let until = Until {
            progress,
            deadline: time.map(|time| Instant::now() + time),
        };
        let units = plan.units(stage, shard)?;
        let run =
            |session: &Session<'_>, cut: &dyn Cut| shard_of(session, cut, units.clone(), &until);
        self.part(stage, &run, &until, tell)
    }

    /// Merges the parts of a stage into its result, with which a run of the job continues.
    ///
    /// # Errors
    /// Missing or damaged parts; as [`Job::shard`].
    pub fn merge_shards(
        &self,
        plan: &ShardPlan,
        stage: &str,
        progress: &dyn Progress,
        tell: &dyn Fn(&str),
    ) -> Result<Done> {
        self.check_plan(plan)?;
        plan.stage(stage)?;
        let done = self.part(stage, &merge, progress, tell)?;
        // Also where the last shard has completed the result.
        parts::mark(&self.work(), stage)?;
        Ok(done)
    }

    /// Walks to a stage, and does a part of it.
    fn part(
        &self,
        stage: &str,
        run: &dyn Fn(&Session<'_>, &dyn Cut) -> Result<Done>,
        progress: &dyn Progress,
        tell: &dyn Fn(&str),
    ) -> Result<Done> {
        let work = self.work();
        work.create()?;
        let session = Session {
            job: self,
            work: &work,
            progress,
            tell,
        };
        let mut walk = Walk::part(session, stage, run);
        match self.walk(&mut walk) {
            Err(Error::Ended) => Ok(walk.into_done()),
            Err(error) => Err(error),
            Ok(_) => Err(no_stage(stage)),
        }
    }

    /// Checks that a plan is one of this job, program and processor.
    fn check_plan(&self, plan: &ShardPlan) -> Result<()> {
        let here = maker();
        if plan.maker != here {
            return Err(Error::OtherMaker {
                plan: plan.maker.clone(),
                here,
            });
        }
        let [model, texts] = self.identity()?;
        let differs = [
            ("model", model != plan.model),
            ("text", texts != plan.texts),
        ];
        match differs.iter().find(|(_, differs)| *differs) {
            Some((what, _)) => Err(Error::OtherPlan(what)),
            None => Ok(()),
        }
    }
}

/// Does the missing units of a range.
fn shard_of(
    session: &Session<'_>,
    cut: &dyn Cut,
    units: Range<usize>,
    until: &Until<'_>,
) -> Result<Done> {
    let parts = Parts::of(session.work, cut)?;
    parts.create()?;
    let mut missing = Vec::new();
    for unit in units {
        match parts.state(unit)? {
            Ok(()) if cut.is_there(session.work, unit)? => continue,
            Ok(()) | Err(None) => {}
            Err(Some(what)) => (session.tell)(&format!(
                "unit {unit} of {} is done again: {what}",
                cut.name()
            )),
        }
        missing.push(unit);
    }
    let count = missing.len();
    let mut done = 0;
    let runs = missing.chunk_by(|a, b| a + 1 == *b);
    for units in runs.flat_map(|run| run.chunks(cut.together().max(1))) {
        let left = count - done;
        if until.is_over() {
            return Ok(Done::OutOfTime { done, left });
        }
        let start = Instant::now();
        let range = units[0]..units[0] + units.len();
        let writers = range.clone().map(|unit| parts.writer(unit).map(Mutex::new));
        let writers = writers.collect::<Result<Vec<_>>>()?;
        match cut.run(session, range.clone(), &writers) {
            Err(error) if error.is_stop() && until.is_over() => {
                return Ok(Done::OutOfTime { done, left });
            }
            result => result?,
        }
        for writer in writers {
            let writer = writer.into_inner();
            writer.unwrap_or_else(PoisonError::into_inner).finish()?;
        }
        let seconds = start.elapsed().as_secs_f64() / units.len() as f64;
        range
            .into_iter()
            .try_for_each(|unit| parts.write_time(unit, seconds))?;
        done += units.len();
    }
    Ok(match done {
        0 => Done::Already,
        done => Done::Units(done),
    })
}

/// Merges all units.
fn merge(session: &Session<'_>, cut: &dyn Cut) -> Result<Done> {
    let all = Parts::all(session.work, cut)?;
    let count = all.len();
    cut.merge(session, &all)?;
    drop(all);
    for name in cut.uses_up() {
        parts::remove(session.work, name);
    }
    Ok(Done::Units(count))
}
