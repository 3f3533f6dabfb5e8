//! Tuning of the files that were written: norms, scales and codes, by KL divergence from the base.
//!
//! ```text
//! NAME.tuned          the tuned file, complete, until it replaces the file
//! NAME.tuning.json    mark with the outcome, written before the replacement
//! ```
//!
//! So a file is tuned if it has the mark, and the work directory does not have its tuned form any more.

use super::allocation::{Allocation, FilePlan};
use super::cost::{Cost, Memory};
use super::files::{Writer, Written};
use super::job::{Job, Model};
use super::numbers::Numbers;
use super::stage::{Foreseeable, Session, Stage};
use super::workdir::WorkDir;
use super::{Error, Result};
use crate::convert;
use crate::format;
use crate::format::snapshot::Key;
use crate::input::Source;
use crate::model::Engine;
use crate::report::data;
use crate::resume::KeyBuilder;
use crate::tune;
use std::path::{Path, PathBuf};

/// Name of a file's mark in the work directory.
pub(super) fn mark_name(file: &str) -> String {
    format!("{file}.tuning")
}

/// Path of a tuned file before it replaces the file.
fn tuned_path(work: &WorkDir, file: &str) -> PathBuf {
    work.path(&format!("{file}.tuned"))
}

/// Removes what is left of a file's tuning: the file is written anew.
pub(super) fn forget(work: &WorkDir, file: &str) {
    work.remove(&mark_name(file));
    // A failure is harmless: without the mark, nothing refers to the file.
    let _ = std::fs::remove_file(tuned_path(work, file));
}

/// Key of a file's tuning.
pub(super) fn key(job: &Job<'_>, file: &Key) -> Option<Key> {
    let options = job.options.files()?.tune.as_ref()?;
    let model = job.model()?;
    let key = KeyBuilder::new("make: tuning")
        .with("file", file)
        .with("options", format!("{options:?}").as_bytes())
        .with("calibration", &model.texts.calibration_bytes());
    Some(key.key())
}

/// The stage.
pub(super) struct TuneStage<'j> {
    pub(super) name: &'static str,
    pub(super) job: &'j Job<'j>,
    pub(super) model: &'j Model<'j>,
    pub(super) numbers: &'j Numbers,
    pub(super) options: &'j tune::Options,
    pub(super) writer: &'j Writer<'j>,
    pub(super) allocation: &'j Allocation,
    /// True if the files have been written, not only planned.
    pub(super) are_written: Written,
}

/// Outcomes in the order of the allocation; empty if the files are only planned.
pub(super) type Tuned = Vec<data::Tuned>;

impl<'j> TuneStage<'j> {
    /// Outcome of an earlier run for a file.
    fn outcome(&self, work: &WorkDir, file: &FilePlan) -> Result<Option<data::Tuned>> {
        let Some(key) = self.writer.tuning_key(file)? else {
            return Ok(None);
        };
        Ok(work.read(&mark_name(&file.file_name()), &key))
    }

    fn missing(&self, work: &WorkDir) -> Result<Vec<&'j FilePlan>> {
        let mut missing = Vec::new();
        for file in &self.allocation.files {
            if self.outcome(work, file)?.is_none() || tuned_path(work, &file.file_name()).exists() {
                missing.push(file);
            }
        }
        Ok(missing)
    }

    /// The calibration text, of which a fifth is held out.
    fn corpus(&self) -> Result<tune::Corpus> {
        let texts = self.model.texts.calibration_chunks()?;
        Ok(tune::Corpus::of_chunks(texts, self.job.context)?)
    }

    /// The base on that text.
    fn base(&self, session: &Session<'_>) -> Result<tune::Base<'j>> {
        let corpus = self.corpus()?;
        let model = tune::Model {
            name: "the base".into(),
            input: self.job.input,
            engine: self.model.engine,
        };
        Ok(tune::Base::new(model, corpus, session.progress)?)
    }

    /// Tunes a file, writes its tuned form into the work directory, and marks it.
    fn tune(
        &self,
        session: &Session<'_>,
        base: &tune::Base<'_>,
        file: &FilePlan,
    ) -> Result<data::Tuned> {
        let (name, work) = (file.file_name(), session.work);
        let source = Source::open(&file.path)?;
        let Source::Gguf(files) = &source else {
            return Err(Error::Tune(tune::Error::Output {
                path: file.path.clone(),
                what: "it is no GGUF any more; remove it",
            }));
        };
        let input = source.reader(&convert::Job::default())?;
        let engine = Engine::new(&input, &self.job.options.engine)?;
        let job = tune::Job {
            base,
            file: tune::Model {
                name: name.clone(),
                input: &input,
                engine: &engine,
            },
            options: self.options.clone(),
        };
        let key = self.writer.tuning_key(file)?.unwrap_or_default();
        let mark = mark_name(&name);
        let is_final = |error: &tune::Error| !matches!(error, tune::Error::Cancelled);
        let run = |resume: &crate::resume::Resume| {
            job.run(Some(resume), session.progress, &|note| {
                (session.tell)(&format!("{name}: {note}"));
            })
        };
        let (outcome, resume) =
            session.resumable(&work.snapshot(&mark), job.key()?, is_final, run)?;
        let targets = tune::targets(files, &tuned_path(work, &name), true)?;
        job.write(files, &outcome, &targets)?;
        let tuned = tuned(&outcome);
        work.write(&mark, &key, &tuned)?;
        resume.remove();
        Ok(tuned)
    }
}

/// The outcome for the report: means over all chunks that decided nothing.
fn tuned(outcome: &tune::Outcome) -> data::Tuned {
    let chunks: usize = outcome.texts.iter().map(|text| text.chunks).sum();
    let mean = |of: fn(&tune::TextOutcome) -> f64| {
        let sum = outcome
            .texts
            .iter()
            .map(|text| of(text) * text.chunks as f64);
        sum.sum::<f64>() / chunks.max(1) as f64
    };
    data::Tuned {
        steps: outcome.steps[1] as u64,
        tokens: outcome.tokens as u64,
        before: mean(|text| text.before),
        after: mean(|text| text.after),
    }
}

/// Replaces a file by its tuned form, if the work directory has it.
fn replace(work: &WorkDir, path: &Path, name: &str) -> Result<()> {
    let tuned = tuned_path(work, name);
    if tuned.exists() {
        std::fs::rename(&tuned, path).map_err(|source| format::Error::Io {
            path: tuned.clone(),
            action: "rename",
            source,
        })?;
    }
    Ok(())
}

impl Stage for TuneStage<'_> {
    type Output = Tuned;

    fn name(&self) -> &'static str {
        self.name
    }

    fn load(&self, work: &WorkDir) -> Result<Option<Tuned>> {
        if !self.are_written || !self.missing(work)?.is_empty() {
            return Ok(None);
        }
        let files = self.allocation.files.iter();
        files.map(|file| self.outcome(work, file)).collect()
    }

    fn cost(&self, work: &WorkDir) -> Result<Cost> {
        let files = match self.are_written {
            true => self.missing(work)?.len(),
            false => self.allocation.files.len() + self.allocation.open_files(),
        };
        let numbers = self.numbers;
        let largest = self.allocation.files.iter().map(|file| file.file_bytes);
        let largest = largest
            .max()
            .unwrap_or_else(|| self.allocation.medium().file_bytes);
        // Refuses a text that is too short.
        let work_of = tune::Work::new(self.options, &self.corpus()?);
        // A step: forward, the same again in the backward pass, and twice that for both derivatives.
        let passes = 4.0 * work_of.trained + work_of.measured;
        let logits = 5.0 * work_of.trained + 2.0 * work_of.measured;
        let cost = Cost {
            operations: numbers.forward(numbers.calibration)
                + files as f64 * (numbers.forward(passes) + numbers.logits(logits)),
            read: numbers.model_bytes + files as u64 * largest,
            scratch: 3 * largest,
            ..Cost::default()
        };
        let memory = Memory {
            activations: numbers.calibration * numbers.width * 4.0,
            work: 4.0 * largest as f64
                + numbers.largest * 4.0
                + numbers.working(3.0)
                + 2.0 * numbers.working_logits(),
            // The offsets of codes, both means of their gradients, and the gradients.
            feedback: match self.options.kinds.codes {
                true => 16.0 * numbers.weights(),
                false => 0.0,
            },
        };
        Ok(numbers.with_memory(cost, memory))
    }

    fn run(&self, session: &Session<'_>) -> Result<Tuned> {
        let work = session.work;
        let (mut base, mut all) = (None, Tuned::new());
        for file in &self.allocation.files {
            let outcome = match (self.outcome(work, file)?, base.take()) {
                (Some(outcome), unused) => {
                    base = unused;
                    outcome
                }
                (None, ready) => {
                    let ready = match ready {
                        Some(ready) => ready,
                        None => self.base(session)?,
                    };
                    let outcome = self.tune(session, &ready, file)?;
                    base = Some(ready);
                    outcome
                }
            };
            replace(work, &file.path, &file.file_name())?;
            all.push(outcome);
        }
        Ok(all)
    }
}

impl Foreseeable for TuneStage<'_> {
    fn expected(&self, _: &WorkDir) -> Result<Tuned> {
        Ok(Vec::new())
    }
}
