//! Stages: the steps of a run, each with the key of its result, a cost, a run and a load.
//!
//! A walk over the stages either runs or plans them. Both walk the same list, so that the dry run
//! and the refusals before a run cannot differ from the run itself. A stage is a function of the
//! options, the model and earlier results, and its result is named by its key: parts of it could be
//! computed elsewhere.

use super::cost::Cost;
use super::workdir::WorkDir;
use super::{Job, Result};
use crate::format::snapshot::Key;
use crate::progress::Progress;
use crate::report;
use crate::resume::Resume;
use std::path::Path;
use std::time::Instant;

/// A step of a run.
pub(super) trait Stage {
    /// Result type.
    type Output;

    /// Name in reports.
    fn name(&self) -> &'static str;

    /// The result of an earlier run under the same key.
    fn load(&self, work: &WorkDir) -> Result<Option<Self::Output>>;

    /// Cost of computing the missing parts.
    fn cost(&self, work: &WorkDir) -> Result<Cost>;

    /// Computes the missing parts.
    fn run(&self, session: &Session<'_>) -> Result<Self::Output>;
}

/// A stage with a placeholder result from which later stages can be planned.
pub(super) trait Foreseeable: Stage {
    /// The placeholder.
    fn expected(&self, work: &WorkDir) -> Result<Self::Output>;
}

/// Context of a run: work directory and observers.
pub(super) struct Session<'s> {
    pub(super) job: &'s Job<'s>,
    pub(super) work: &'s WorkDir,
    pub(super) progress: &'s dyn Progress,
    /// Receives notes for the user.
    pub(super) tell: &'s dyn Fn(&str),
}

impl Session<'_> {
    /// Runs a long job that saves snapshots. An error that would recur in the next run removes the
    /// snapshot. The caller removes it once the result is stored.
    pub(super) fn resumable<T, E>(
        &self,
        snapshot: &Path,
        key: Key,
        is_final: impl Fn(&E) -> bool,
        run: impl FnOnce(&Resume) -> std::result::Result<T, E>,
    ) -> Result<(T, Resume)>
    where
        super::Error: From<E>,
    {
        let (resume, note) = Resume::open(snapshot, key, self.job.options.snapshot_every)?;
        note.iter().for_each(|note| (self.tell)(note));
        let result = run(&resume);
        if let Some(why) = resume.failed() {
            (self.tell)(&format!("cannot save a snapshot: {why}"));
        }
        let result = result.inspect_err(|error| {
            if is_final(error) {
                resume.remove();
            }
        });
        Ok((result?, resume))
    }
}

/// The cost of a stage in a plan.
pub(super) struct Planned {
    pub(super) name: &'static str,
    pub(super) cost: Cost,
    /// True if an earlier run has left the result.
    pub(super) done: bool,
}

/// One walk over the stages.
pub(super) enum Walk<'w> {
    /// Runs the stages, and times them.
    Run {
        session: Session<'w>,
        timed: Vec<report::data::Stage>,
    },
    /// Sums their costs, and writes nothing.
    Plan {
        work: &'w WorkDir,
        planned: Vec<Planned>,
    },
}

impl<'w> Walk<'w> {
    pub(super) fn run(session: Session<'w>) -> Walk<'w> {
        Walk::Run {
            session,
            timed: Vec::new(),
        }
    }

    pub(super) fn plan(work: &'w WorkDir) -> Walk<'w> {
        Walk::Plan {
            work,
            planned: Vec::new(),
        }
    }

    /// Result of a stage: loaded, computed, or expected.
    pub(super) fn stage<S: Foreseeable>(&mut self, stage: &S) -> Result<S::Output> {
        match self.last(stage)? {
            Some(output) => Ok(output),
            None => stage.expected(self.work()),
        }
    }

    /// Result of a stage that may end a plan: loaded or computed.
    pub(super) fn last<S: Stage>(&mut self, stage: &S) -> Result<Option<S::Output>> {
        let (work, start) = (self.work(), Instant::now());
        let loaded = stage.load(work)?;
        match self {
            Walk::Run { session, timed } => {
                let output = match loaded {
                    Some(output) => output,
                    None => stage.run(session)?,
                };
                timed.push(timing(stage.name(), start));
                Ok(Some(output))
            }
            Walk::Plan { planned, .. } => {
                let cost = match loaded {
                    Some(_) => Cost::default(),
                    None => stage.cost(work)?,
                };
                planned.push(Planned {
                    name: stage.name(),
                    cost,
                    done: loaded.is_some(),
                });
                Ok(loaded)
            }
        }
    }

    /// A step without cost and stored result.
    pub(super) fn compute<T>(
        &mut self,
        name: &'static str,
        step: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        let output = step()?;
        if let Walk::Run { timed, .. } = self {
            timed.push(timing(name, start));
        }
        Ok(output)
    }

    /// Timings of a run.
    pub(super) fn into_timed(self) -> Vec<report::data::Stage> {
        match self {
            Walk::Run { timed, .. } => timed,
            Walk::Plan { .. } => Vec::new(),
        }
    }

    /// Costs of a plan.
    pub(super) fn into_planned(self) -> Vec<Planned> {
        match self {
            Walk::Run { .. } => Vec::new(),
            Walk::Plan { planned, .. } => planned,
        }
    }

    pub(super) fn work(&self) -> &'w WorkDir {
        match self {
            Walk::Run { session, .. } => session.work,
            Walk::Plan { work, .. } => work,
        }
    }

    /// Session of a run; none for a plan.
    pub(super) fn session(&self) -> Option<&Session<'w>> {
        match self {
            Walk::Run { session, .. } => Some(session),
            Walk::Plan { .. } => None,
        }
    }
}

fn timing(name: &str, start: Instant) -> report::data::Stage {
    report::data::Stage {
        name: name.into(),
        seconds: start.elapsed().as_secs_f64(),
        peak_bytes: peak_memory(),
    }
}

/// Peak resident memory of this process, if the system reports it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}
