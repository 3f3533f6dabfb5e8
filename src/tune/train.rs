//! The run: steps over batches, decisions on held-out chunks, the best state.

use super::corpus::{Corpus, Text};
use super::parameters::Parameters;
use super::saved::{self, Course};
use super::write::{Targets, write};
use super::{Error, Options, Rates, Result, named};
use crate::format::gguf::Files;
use crate::format::snapshot::Key;
use crate::input::Input;
use crate::model::{self, BaseLogits, Batch, Changed, Engine, Head, Hidden, Rows};
use crate::progress::{Progress, Unit};
use crate::resume::{KeyBuilder, Resume};
use crate::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Decisions in a whole run.
const DECISIONS: usize = 20;
/// Fewest steps between two decisions.
const LEAST_STEPS: usize = 5;
/// Decisions without gain after which a run stops.
const PATIENCE: usize = 6;
/// Steps with gradients that are not finite, in a row, after which a run stops.
const MOST_BAD: usize = 5;
/// Steps over which the rates rise.
const RISE: usize = 10;
/// The rates' last part of their peak.
const LAST_RATE: f32 = 0.02;

/// One of the two models.
pub struct Model<'m> {
    /// Name for messages.
    pub name: String,
    /// Its tensors.
    pub input: &'m Input<'m>,
    /// Its engine.
    pub engine: &'m Engine<'m>,
}

/// A run: a base, a quantized file of it, texts.
pub struct Job<'m> {
    /// The model that the file was made from.
    pub base: Model<'m>,
    /// The quantized file.
    pub file: Model<'m>,
    /// The tokenizer of both.
    pub tokenizer: &'m Tokenizer,
    /// Texts for training.
    pub texts: Vec<Text>,
    /// Texts for decisions and the report; without any, a fifth of the others.
    pub held_out: Vec<Text>,
    /// Settings.
    pub options: Options,
}

/// The divergence of held-out chunks in the course of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps done.
    pub step: usize,
    /// Mean divergence of the training batches since the last point, in nats.
    pub training: Option<f64>,
    /// Mean divergence by text, in nats, of the chunks that decide.
    pub nats: Vec<f64>,
}

/// Divergence of one text before and after, of held-out chunks that decided nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextOutcome {
    /// The text.
    pub name: String,
    /// Chunks.
    pub chunks: usize,
    /// Mean nats before.
    pub before: f64,
    /// Mean nats after.
    pub after: f64,
}

/// Result of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The tensors that changed, with their bytes.
    #[serde(skip)]
    pub changed: Changed,
    /// The number of steps done, and of those in the best state.
    pub steps: [usize; 2],
    /// Tokens for training.
    pub tokens: usize,
    /// The course of the run.
    pub points: Vec<Point>,
    /// Before and after, by text.
    pub texts: Vec<TextOutcome>,
    /// Names of tensors of the chosen kinds that have no gradient.
    pub without_gradient: Vec<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// The base's logits of some chunks.
struct Logits<'b> {
    hidden: &'b Hidden,
    head: &'b Head<'b>,
    /// Numbers of the chunks in the corpus.
    chunks: &'b [usize],
}

impl BaseLogits for Logits<'_> {
    fn logits(&self, chunk: usize, positions: Range<usize>) -> model::Result<Rows> {
        let rows = self.hidden.rows_of(self.chunks[chunk])?.range(positions);
        self.head.logits(&rows, chunk, None)
    }
}

/// Text of a run with the base's activations.
struct Session<'j, 'm> {
    job: &'j Job<'m>,
    corpus: Corpus,
    hidden: Hidden,
    head: Head<'j>,
    progress: &'j dyn Progress,
}

impl<'m> Job<'m> {
    /// Trains, from the last snapshot of `resume` if there is one. Notes go to `note` as they arise.
    ///
    /// # Errors
    /// Models that do not belong together, too little text, a model that cannot be run, cancellation.
    pub fn run(
        &self,
        resume: Option<&Resume>,
        progress: &dyn Progress,
        note: &dyn Fn(&str),
    ) -> Result<Outcome> {
        self.check()?;
        let options = &self.options;
        let corpus = Corpus::new(self.tokenizer, &self.texts, &self.held_out, options.context)?;
        let mut parameters = Parameters::new(self.file.input, options)?;
        if parameters.is_empty() {
            return Err(Error::Nothing(self.file.name.clone()));
        }
        let of_base = named(&self.base.name);
        let all = 0..options.context;
        let hidden = self.base.engine.run(&corpus.chunks, all, None, progress);
        let session = Session {
            job: self,
            corpus,
            hidden: hidden.map_err(&of_base)?,
            head: self.base.engine.head().map_err(&of_base)?,
            progress,
        };
        session.run(&mut parameters, resume, note)
    }

    /// The key of all that the result depends on.
    ///
    /// # Errors
    /// Files that cannot be looked at.
    pub fn key(&self) -> Result<Key> {
        let mut key = KeyBuilder::new("tune")
            .with_model(self.base.input)?
            .with_model(self.file.input)?
            .with("options", format!("{:?}", self.options).as_bytes());
        for (kind, texts) in [("text", &self.texts), ("held out", &self.held_out)] {
            for text in texts {
                key = key.with(kind, text.content.as_bytes());
            }
        }
        Ok(key.key())
    }

    /// Writes a copy of the file with the tensors that changed.
    ///
    /// # Errors
    /// Those of output files.
    pub fn write(&self, files: &Files, outcome: &Outcome, targets: &Targets) -> Result<()> {
        write(files, self.file.input, &outcome.changed, targets)
    }

    /// Refuses models that do not belong together.
    fn check(&self) -> Result<()> {
        /// Most reasons listed.
        const LISTED: usize = 8;
        let (base, file) = (self.base.input, self.file.input);
        let mut reasons = Vec::new();
        let architectures = [&self.base, &self.file].map(|m| m.engine.hyper.architecture.clone());
        if architectures[0] != architectures[1] {
            let [base, file] = &architectures;
            reasons.push(format!("architecture {file}; the base has {base}"));
        }
        let [of_base, of_file] = [&self.base, &self.file].map(|m| m.engine.vocabulary());
        if of_base != of_file {
            reasons.push(format!(
                "a vocabulary of {of_file} tokens; the base has {of_base}"
            ));
        } else if tokens_of(base) != tokens_of(file) {
            reasons.push("another vocabulary of the same size".into());
        }
        for entry in file.catalog().tensors() {
            let Some(id) = base.catalog().tensor_named(&entry.name) else {
                continue;
            };
            let dims = base.catalog().tensor(id).dims;
            if dims != entry.dims {
                let (name, found) = (&entry.name, entry.dims);
                reasons.push(format!(
                    "tensor '{name}' of shape {found:?}; the base has {dims:?}"
                ));
            }
        }
        if reasons.is_empty() {
            return Ok(());
        }
        reasons.truncate(LISTED);
        Err(Error::Unrelated {
            base: self.base.name.clone(),
            file: self.file.name.clone(),
            reasons: reasons.join("\n"),
        })
    }
}

/// The tokens of a vocabulary.
fn tokens_of<'i>(input: &'i Input<'_>) -> Option<&'i crate::format::gguf::Value<'i>> {
    input.metadata().get("tokenizer.ggml.tokens")
}

impl Session<'_, '_> {
    fn run(
        &self,
        parameters: &mut Parameters,
        resume: Option<&Resume>,
        note: &dyn Fn(&str),
    ) -> Result<Outcome> {
        let options = &self.job.options;
        let start = parameters.bytes.clone();
        let every = (options.steps / DECISIONS).max(LEAST_STEPS);
        let (mut course, mut best) = match resume.and_then(Resume::take) {
            Some(snapshot) => saved::load(&snapshot, parameters)?,
            None => (Course::default(), start.clone()),
        };
        if course.points.is_empty() {
            course.points.push(Point {
                step: 0,
                training: None,
                nats: self.nats(&start, 0)?,
            });
        }
        self.progress.begin(options.steps as u64, Unit::Steps);
        self.progress.advance(course.done as u64);
        while course.done < options.steps
            && course.bad < MOST_BAD
            && course.done < course.best + PATIENCE * every
        {
            match self.step(parameters, course.done)? {
                Ok(nats) => {
                    course.training.push(nats);
                    course.bad = 0;
                }
                Err(what) => {
                    let text = format!("step {}: {what}; the step is undone", course.done + 1);
                    note(&text);
                    course.notes.push(text);
                    course.bad += 1;
                }
            }
            course.done += 1;
            self.progress.advance(1);
            if course.done.is_multiple_of(every) || course.done == options.steps {
                let nats = self.nats(&parameters.bytes, 0)?;
                if self.decide(&mut course, nats) {
                    best = parameters.bytes.clone();
                }
            }
            if let Some(resume) = resume.filter(|resume| resume.due()) {
                course.seen = parameters.seen();
                saved::save(resume, &course, parameters, &best)?;
            }
        }
        let [before, after] = [&start, &best].map(|bytes| self.nats(bytes, 1));
        let both = before?.into_iter().zip(after?);
        let named = self.corpus.held_out.iter().zip(both);
        let texts = named.map(|((name, part), (before, after))| TextOutcome {
            name: name.clone(),
            chunks: self.half(part, 1).len(),
            before,
            after,
        });
        let catalog = self.job.file.input.catalog();
        let name = |id| catalog.tensor(id).name.to_string();
        let differs =
            |(id, bytes): &(&quantier_arch::TensorId, &Vec<u8>)| start.get(id) != Some(bytes);
        let changed = best.iter().filter(differs);
        Ok(Outcome {
            changed: changed
                .map(|(id, bytes)| (*id, bytes.clone()))
                .collect::<HashMap<_, _>>(),
            steps: [course.done, course.best],
            tokens: self.corpus.trained * options.context,
            points: course.points,
            texts: texts.collect(),
            without_gradient: parameters.without_gradient().map(name).collect(),
            notes: course.notes,
        })
    }

    /// Records the divergence of a state by text; true if it is the best one.
    fn decide(&self, course: &mut Course, nats: Vec<f64>) -> bool {
        let first = course.points.first().map_or(&[][..], |point| &point.nats);
        let gain = gain(first, &nats);
        let is_nowhere_worse = nats
            .iter()
            .zip(first)
            .all(|(after, before)| after <= before);
        let is_best = gain < course.gain && is_nowhere_worse;
        if is_best {
            (course.best, course.gain) = (course.done, gain);
        }
        let training = std::mem::take(&mut course.training);
        course.points.push(Point {
            step: course.done,
            training: Some(training.iter().sum::<f64>() / training.len().max(1) as f64),
            nats,
        });
        let ratio = course.gain.exp();
        self.progress.at(&format!("divergence x {ratio:.3}"));
        is_best
    }

    /// One step. Returns the divergence of its batch before the step, or the reason for undoing it.
    fn step(
        &self,
        parameters: &mut Parameters,
        done: usize,
    ) -> Result<std::result::Result<f64, String>> {
        let options = &self.job.options;
        let numbers = self.corpus.batch(done, options.batch, options.seed);
        let name = &self.job.file.name;
        let bytes = parameters.bytes.clone();
        let mut adding = parameters.adding();
        let quiet = Quiet(self.progress);
        let ran = self.on_chunks(bytes, &numbers, |engine, batch| {
            engine.divergence_gradients(batch, &mut adding, &quiet)
        })?;
        let not_finite = adding.not_finite;
        let why = match (ran, not_finite) {
            (Ok(nats), None) => {
                let pool = self.job.file.engine.pool();
                pool.install(|| parameters.update(self.rates(done), done as u64 + 1));
                return Ok(Ok(nats));
            }
            (_, Some(id)) => {
                let name = &self.job.file.input.catalog().tensor(id).name;
                format!("the gradient of '{name}' is not finite")
            }
            (Err(error @ model::Error::GradientNotFinite { .. }), None) if done > 0 => {
                error.to_string()
            }
            (Err(error), None) => return Err(named(name)(error)),
        };
        parameters.undo();
        Ok(Err(why))
    }

    /// Runs the file with these bytes on some chunks of the corpus, beside the base's logits.
    fn on_chunks<T>(
        &self,
        bytes: Arc<Changed>,
        numbers: &[usize],
        run: impl FnOnce(&Engine<'_>, &Batch<'_>) -> T,
    ) -> Result<T> {
        let file = &self.job.file;
        let engine = file.engine.changing(bytes).map_err(named(&file.name))?;
        let chunks = numbers.iter().map(|number| &self.corpus.chunks[*number]);
        let chunks: Vec<Vec<u32>> = chunks.cloned().collect();
        let base = Logits {
            hidden: &self.hidden,
            head: &self.head,
            chunks: numbers,
        };
        let batch = Batch {
            chunks: &chunks,
            base: &base,
        };
        Ok(run(&engine, &batch))
    }

    /// The rates of a step: a linear rise, then half a cosine.
    fn rates(&self, done: usize) -> Rates {
        let Options { steps, rates, .. } = self.job.options;
        let rise = RISE.min(steps / 4);
        let part = match done < rise {
            true => (done + 1) as f32 / rise as f32,
            false => {
                let along = (done - rise) as f32 / (steps - rise).max(1) as f32;
                let cosine = (along * std::f32::consts::PI).cos();
                LAST_RATE + (1.0 - LAST_RATE) * (1.0 + cosine) / 2.0
            }
        };
        Rates {
            norms: rates.norms * part,
            scales: rates.scales * part,
            codes: rates.codes * part,
        }
    }

    /// Every other chunk of a part, from the one with this number on; all if there is only one.
    fn half(&self, part: &Range<usize>, number: usize) -> Vec<usize> {
        match part.len() {
            1 => part.clone().collect(),
            _ => part.clone().skip(number).step_by(2).collect(),
        }
    }

    /// Mean divergence of half the held-out chunks by text.
    fn nats(&self, bytes: &Arc<Changed>, half: usize) -> Result<Vec<f64>> {
        let halves: Vec<Vec<usize>> = (self.corpus.held_out.iter())
            .map(|(_, part)| self.half(part, half))
            .collect();
        let quiet = Quiet(self.progress);
        let all = self.on_chunks(bytes.clone(), &halves.concat(), |engine, batch| {
            engine.divergence(batch, &quiet)
        })?;
        let all = all.map_err(named(&self.job.file.name))?;
        let mut all = all.into_iter();
        let mean = |half: &Vec<usize>| {
            let sum: f64 = all.by_ref().take(half.len()).sum();
            sum / half.len().max(1) as f64
        };
        Ok(halves.iter().map(mean).collect())
    }
}

/// Mean logarithm of the ratios.
fn gain(before: &[f64], after: &[f64]) -> f64 {
    let logs = before.iter().zip(after).map(|(before, after)| {
        let least = f64::MIN_POSITIVE;
        (after.max(least) / before.max(least)).ln()
    });
    logs.sum::<f64>() / before.len().max(1) as f64
}

/// Cancellation without progress: the bar counts steps of the run.
struct Quiet<'p>(&'p dyn Progress);

impl Progress for Quiet<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}
