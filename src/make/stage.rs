//! Stages: the steps of a run, each with the key of its result, a cost, a run and a load.
//!
//! A walk over the stages either runs or plans them. Both walk the same list, so that the dry run
//! and the refusals before a run cannot differ from the run itself. A stage is a function of the
//! options, the model and earlier results, and its result is named by its key: parts of it could be
//! computed elsewhere.

use super::cost::Cost;
use super::shards::{Cut, Done};
use super::workdir::WorkDir;
use super::{Error, Job, Result};
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

    /// Ways to cut the stage into shards, in order.
    fn cuts(&self) -> Vec<Box<dyn Cut + '_>> {
        Vec::new()
    }
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

/// A cut of a stage in a plan.
pub(super) struct PlannedCut {
    pub(super) name: &'static str,
    pub(super) after: &'static [&'static str],
    /// True if an earlier run has left the stage's result.
    pub(super) done: bool,
    /// Cost by unit.
    pub(super) units: Vec<Cost>,
    /// Bytes that the merge reads.
    pub(super) merge_bytes: u64,
}

impl PlannedCut {
    fn of(cut: &dyn Cut, done: bool) -> PlannedCut {
        PlannedCut {
            name: cut.name(),
            after: cut.after(),
            done,
            units: (0..cut.units()).map(|unit| cut.cost(unit)).collect(),
            merge_bytes: cut.merge_bytes(),
        }
    }
}

/// Does a part of a cut stage.
pub(super) type DoPart<'w> = &'w dyn Fn(&Session<'_>, &dyn Cut) -> Result<Done>;

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
        /// The cuts, if they are wanted.
        cuts: Option<Vec<PlannedCut>>,
    },
    /// Does a part of one stage, and ends there.
    Part {
        session: Session<'w>,
        /// Name of the cut.
        stage: &'w str,
        run: DoPart<'w>,
        /// Cuts on the way without a result.
        missing: Vec<&'static str>,
        done: Done,
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
            cuts: None,
        }
    }

    /// A plan with the cuts of the stages.
    pub(super) fn plan_cuts(work: &'w WorkDir) -> Walk<'w> {
        Walk::Plan {
            work,
            planned: Vec::new(),
            cuts: Some(Vec::new()),
        }
    }

    /// A walk to a cut, of which `run` does a part.
    pub(super) fn part(session: Session<'w>, stage: &'w str, run: DoPart<'w>) -> Walk<'w> {
        Walk::Part {
            session,
            stage,
            run,
            missing: Vec::new(),
            done: Done::Already,
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
            Walk::Plan { planned, cuts, .. } => {
                if let Some(cuts) = cuts {
                    for cut in stage.cuts() {
                        // Files are written again where their recipes change.
                        if cuts.iter().all(|known| known.name != cut.name()) {
                            cuts.push(PlannedCut::of(&*cut, loaded.is_some()));
                        }
                    }
                }
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
            Walk::Part {
                session,
                stage: name,
                run,
                missing,
                done,
            } => {
                let cuts = stage.cuts();
                if let Some(cut) = cuts.iter().find(|cut| cut.name() == *name) {
                    if loaded.is_none() {
                        let missing = cut.after().iter().find(|name| missing.contains(*name));
                        if let Some(needs) = missing {
                            return Err(Error::NotMerged {
                                stage: cut.name(),
                                needs,
                            });
                        }
                        *done = run(session, &**cut)?;
                    }
                    return Err(Error::Ended);
                }
                if loaded.is_none() {
                    missing.extend(cuts.iter().map(|cut| cut.name()));
                }
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
            Walk::Plan { .. } | Walk::Part { .. } => Vec::new(),
        }
    }

    /// Costs of a plan.
    pub(super) fn into_planned(self) -> Vec<Planned> {
        match self {
            Walk::Run { .. } | Walk::Part { .. } => Vec::new(),
            Walk::Plan { planned, .. } => planned,
        }
    }

    /// Cuts of a plan.
    pub(super) fn into_cuts(self) -> Vec<PlannedCut> {
        match self {
            Walk::Plan { cuts, .. } => cuts.unwrap_or_default(),
            Walk::Run { .. } | Walk::Part { .. } => Vec::new(),
        }
    }

    /// What a walk to a part has done.
    pub(super) fn into_done(self) -> Done {
        match self {
            Walk::Part { done, .. } => done,
            Walk::Run { .. } | Walk::Plan { .. } => Done::Already,
        }
    }

    pub(super) fn work(&self) -> &'w WorkDir {
        match self {
            Walk::Run { session, .. } | Walk::Part { session, .. } => session.work,
            Walk::Plan { work, .. } => work,
        }
    }

    /// Session of a run; none for a plan or a part.
    pub(super) fn session(&self) -> Option<&Session<'w>> {
        match self {
            Walk::Run { session, .. } => Some(session),
            Walk::Plan { .. } | Walk::Part { .. } => None,
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
