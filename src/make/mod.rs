//! `make`: from a model and a text to the best files of their sizes, with evidence.
//!
//! ```text
//! texts           calibration and evaluation, without common documents
//! projector       the encoders of images and of audio, if the model has any
//! calibration     the importance matrix and the input Hessians
//! sensitivities   nats of every type in every tensor, and the output Hessians
//! allocation      a recipe for every budget
//! files           from one pass over the model, or one sequential pass over the text each
//! tuning          optional: norms, scales and codes of each file, trained on the calibration text
//! proof           measured divergence on the evaluation text, beside the prediction
//! report          frontier.json, report.html, recipes
//! ```
//!
//! Each is a stage with a key of all its inputs, a cost, a run and a load; results are stored in
//! the work directory by key. So a killed run resumes, a changed budget repeats only the allocation
//! and later stages, and a dry run is the summed cost of missing results.
//!
//! ```text
//! Options     resolved arguments      Job::new    resolved for a model, with its texts
//! Job::dry_run                        Job::run    begins with a plan, like the dry run
//! ```

mod allocation;
mod calibration;
mod cost;
mod dry_run;
mod error;
mod files;
mod fit;
mod job;
mod lossless;
mod machine;
mod numbers;
mod options;
mod outside;
mod presets;
mod projector;
mod proof;
mod prover;
mod refinement;
mod report;
mod sensitivities;
mod shards;
mod stage;
mod targets;
mod texts;
mod tuning;
mod workdir;

use crate::format::output::Output;
use crate::imatrix::coverage::Coverage;
use crate::progress::Progress;
use crate::rounding::{InputHessians, TensorProof};
use crate::sensitivity::Scores;
use allocation::Allocation;
use calibration::{Calibrated, Calibration};
use files::{FilesStage, Writer};
use job::JobEngine;
use numbers::Numbers;
use outside::{Correction, LogitsMeter, LogitsStage, Ready};
use projector::ProjectorStage;
use proof::{EngineMeter, Meter, Proven};
use prover::{Native, Prover};
use sensitivities::{ScoringStage, Sensitivities};
use stage::{Session, Walk};
use std::path::{Path, PathBuf};

pub use crate::text::Text;
pub use cost::Cost;
pub use dry_run::{DryRun, StageCost};
pub use error::{Error, Result};
pub use fit::{Fit, fit};
pub use job::{Job, Runnable, Runner, model_name, rounding_bytes};
pub use options::{
    Compare, Files, Goal, LlamaCpp, NamedBudget, Options, ProjectorChoice, Scoring, Texts,
};
pub use outside::Error as OutsideError;
pub use projector::ProjectorSource;
pub use shards::{Done, LATER, PlannedShard, PlannedStage, ShardPlan, ShardSize};

/// Results of a run.
pub struct Made {
    /// Contents of frontier.json.
    pub report: crate::report::data::Frontier,
    /// The files, in the order of the budgets.
    pub files: Vec<PathBuf>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Results of the stages.
struct Outcome {
    allocation: Allocation,
    scores: Scores,
    /// Tokens per expert of the calibration text; `None` in a plan and without experts.
    coverage: Option<Coverage>,
    /// Factors from measured files, with an outside engine; `None` in a plan.
    correction: Option<Correction>,
    /// Divergences of the files; `None` if they are not measured, or not yet.
    proven: Option<Proven>,
    /// Effect of error feedback on each file, per tensor.
    proved: Option<Vec<Vec<TensorProof>>>,
    /// The file of the encoders, for a model that has any.
    projector: Option<crate::report::data::Projector>,
    notes: Vec<String>,
}

impl Job<'_> {
    /// Runs the stages without results, and writes files and report. `tell` receives notes for the
    /// user during the run.
    ///
    /// # Errors
    /// Everything that [`Job::dry_run`] refuses, before anything is written; errors of the stages;
    /// cancellation.
    pub fn run(&self, progress: &dyn Progress, tell: &dyn Fn(&str)) -> Result<Made> {
        let work = self.work();
        self.walk(&mut Walk::plan(&work))?;
        work.create()?;
        let session = Session {
            job: self,
            work: &work,
            progress,
            tell,
        };
        let mut walk = Walk::run(session);
        let outcome = self.walk(&mut walk)?;
        let report = report::write(self, &outcome, walk.into_timed())?;
        Ok(Made {
            report,
            files: files::paths(&outcome.allocation),
            notes: outcome.notes,
        })
    }

    /// Walks the stages. A plan ends at a stage whose result cannot be predicted.
    fn walk(&self, walk: &mut Walk<'_>) -> Result<Outcome> {
        let projector = self.projector.as_ref();
        let projector = projector.map(|projector| walk.stage(&ProjectorStage(projector)));
        let projector = projector.transpose()?;
        let numbers = self.numbers()?;
        let numbers = numbers.as_ref();
        let outside = match &self.engine {
            JobEngine::Outside(outside) => Some((outside, self.base(walk)?)),
            JobEngine::None | JobEngine::Native(_) => None,
        };
        let outside = outside
            .as_ref()
            .map(|(outside, base)| Ready { outside, base });
        let calibrated = self.calibrated(walk, numbers, outside)?;
        if let Some(session) = walk.session() {
            let hessians = calibrated.hessians.as_ref();
            let note = hessians.and_then(InputHessians::few_tokens);
            note.iter().for_each(|note| (session.tell)(note));
        }
        let coverage = match walk.session() {
            Some(_) => calibrated.coverage(self.input),
            None => None,
        };

        let scoring = ScoringStage::new(self, numbers, &calibrated)?;
        let mut sensitivities = walk.stage(&scoring)?;
        let correction = match outside {
            Some(ready) => self.corrected(walk, ready, &calibrated, &mut sensitivities)?,
            None => None,
        };
        let work = walk.work();
        let mut allocation = walk.compute("allocation", || {
            Allocation::new(self, &calibrated, &sensitivities, work)
        })?;
        let mut notes = self.lossless.notes(self.input);
        notes.extend(
            outside
                .iter()
                .flat_map(|ready| outside::notes(ready.outside)),
        );
        notes.extend(self.shortened());
        let unreached = |coverage: &Coverage| calibration::unreached(self, coverage);
        notes.extend(coverage.as_ref().and_then(unreached));
        notes.extend(allocation.notes.iter().cloned());
        if self
            .model()
            .is_some_and(|model| model.engine.hyper.loops > 1)
        {
            notes.push(
                "the layers run several times, so they are rounded without error feedback".into(),
            );
        }

        let writer = Writer::new(self, numbers, &calibrated, &sensitivities)?;
        let prover = |meter, native| Prover {
            job: self,
            meter,
            calibrated: &calibrated,
            writer: &writer,
            native,
        };
        let mut proven = None;
        match (self.options.files(), self.model().zip(numbers), outside) {
            (None, ..) => {}
            (Some(files), Some((model, numbers)), _) => {
                let meter = EngineMeter {
                    job: self,
                    model,
                    numbers,
                };
                let native = Native {
                    model,
                    numbers,
                    refine: files.refine,
                };
                proven = prover(&meter as &dyn Meter, Some(native)).prove(
                    walk,
                    &mut allocation,
                    &mut notes,
                )?;
            }
            (Some(_), None, Some(ready)) => {
                let of = outside::Of::Evaluation;
                let logits = walk.stage(&LogitsStage::new(of, self, ready)?)?;
                let meter = LogitsMeter {
                    job: self,
                    outside: ready.outside,
                    logits: &logits,
                };
                proven =
                    prover(&meter as &dyn Meter, None).prove(walk, &mut allocation, &mut notes)?;
            }
            (Some(_), None, None) => {
                walk.stage(&FilesStage {
                    name: "files",
                    writer: &writer,
                    allocation: &allocation,
                    comparison: None,
                })?;
                notes.push("the model cannot be run here, so the files were not measured".into());
            }
        }
        let proved = match proven.is_some() && calibrated.hessians.is_some() {
            true => Some(writer.proved(&allocation, work)?),
            false => None,
        };
        Ok(Outcome {
            allocation,
            scores: sensitivities.scores,
            coverage,
            correction,
            proven,
            proved,
            projector,
            notes,
        })
    }

    /// The importance matrix, and the input Hessians if the engine of this program runs the model.
    fn calibrated(
        &self,
        walk: &mut Walk<'_>,
        numbers: Option<&Numbers>,
        outside: Option<Ready<'_>>,
    ) -> Result<Calibrated> {
        if let (Some(ready), None) = (outside, &self.options.imatrix) {
            let parts = outside::PartsStage::new(self, ready)?;
            let calibrated = walk.stage(&parts)?;
            // Also those of a run that was killed just before.
            if let Some(session) = walk.session() {
                parts.remove_parts(session.work);
            }
            return Ok(calibrated);
        }
        let calibration = match self.model().zip(numbers) {
            Some((model, numbers)) => Calibration::new(self, model, numbers)?,
            None => None,
        };
        match &calibration {
            Some(calibration) => walk.stage(calibration),
            None => Calibrated::given(self),
        }
    }

    /// The GGUF for an outside engine.
    fn base(&self, walk: &mut Walk<'_>) -> Result<PathBuf> {
        match outside::given_base(self)? {
            Some(given) => Ok(given),
            None => walk.stage(&outside::BaseStage::new(self)?),
        }
    }

    /// Turns weighted errors into nats by measurements of an outside engine.
    fn corrected(
        &self,
        walk: &mut Walk<'_>,
        ready: Ready<'_>,
        calibrated: &Calibrated,
        sensitivities: &mut Sensitivities,
    ) -> Result<Option<Correction>> {
        let of = outside::Of::Probing;
        let logits = walk.stage(&LogitsStage::new(of, self, ready)?)?;
        let probing = outside::Probing::new(
            self,
            ready.outside,
            &logits,
            calibrated,
            &sensitivities.scores,
        )?;
        let correction = walk.stage(&probing)?;
        match &correction {
            Some(correction) => correction.apply(self, &mut sensitivities.scores),
            None => sensitivities.is_guess = true,
        }
        Ok(correction)
    }
}

/// Writes a text file under a temporary name, then renames it.
fn write_text(path: &Path, text: &str) -> Result<()> {
    let mut output = Output::create(path, text.len() as u64, &[])?;
    output.write(text.as_bytes())?;
    Ok(output.finish()?)
}
