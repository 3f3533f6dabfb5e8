//! The run: steps over batches, decisions on held-out chunks, the best state.

use super::corpus::Corpus;
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
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Decisions in a whole run.
const DECISIONS: usize = 20;
/// Fewest steps between two decisions.
const LEAST_STEPS: usize = 5;
/// Decisions without a lower divergence after which a run stops.
const PATIENCE: usize = 6;
/// Steps with gradients that are not finite, in a row, after which a run stops.
const MOST_BAD: usize = 5;
/// Rise of the mean logarithm above its least at which rates are halved, and how often that happens.
const RISEN: f64 = 0.01;
const MOST_HALVINGS: u32 = 6;
/// Steps over which the rates rise.
const RISE: usize = 10;
/// Largest factor of rates for a file far from its base.
const LARGEST_SIZE: f64 = 1.5;
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

/// The base with its activations before the output matrix on all chunks of a corpus: it serves any number of
/// files.
pub struct Base<'m> {
    model: Model<'m>,
    corpus: Corpus,
    hidden: Hidden,
    head: Head<'m>,
}

/// A run: a base with its texts, and a quantized file of it.
pub struct Job<'j, 'm> {
    /// The model that the file was made from.
    pub base: &'j Base<'m>,
    /// The quantized file.
    pub file: Model<'m>,
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

/// Work of a run that nothing stops, in tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Tokens of all steps.
    pub trained: f64,
    /// Tokens that the file's divergence is measured on.
    pub measured: f64,
}

impl Work {
    /// The work for a corpus.
    pub fn new(options: &Options, corpus: &Corpus) -> Work {
        let (context, held_out) = (corpus.context as f64, corpus.chunks.len() - corpus.trained);
        // One at the start, and two of the other half for the report.
        let decisions = options.steps.div_ceil(every(options)) + 3;
        Work {
            trained: (options.steps * options.batch) as f64 * context,
            measured: (decisions * held_out) as f64 / 2.0 * context,
        }
    }
}

/// Steps between two decisions.
fn every(options: &Options) -> usize {
    (options.steps / DECISIONS).max(LEAST_STEPS)
}

/// A run with its observer.
struct Session<'s, 'j, 'm> {
    job: &'s Job<'j, 'm>,
    corpus: &'s Corpus,
    progress: &'s dyn Progress,
}

impl<'m> Base<'m> {
    /// Runs the base on all chunks of a corpus.
    ///
    /// # Errors
    /// A model that cannot be run, cancellation.
    pub fn new(model: Model<'m>, corpus: Corpus, progress: &dyn Progress) -> Result<Base<'m>> {
        let all = 0..corpus.context;
        let hidden = model.engine.run(&corpus.chunks, all, None, progress);
        Ok(Base {
            hidden: hidden.map_err(named(&model.name))?,
            head: model.engine.head().map_err(named(&model.name))?,
            corpus,
            model,
        })
    }
}

impl Job<'_, '_> {
    /// Trains, from the last snapshot of `resume` if there is one. Notes go to `note` as they arise.
    ///
    /// # Errors
    /// A file without anything to train, a model that cannot be run, cancellation.
    pub fn run(
        &self,
        resume: Option<&Resume>,
        progress: &dyn Progress,
        note: &dyn Fn(&str),
    ) -> Result<Outcome> {
        let mut parameters = Parameters::new(self.file.input, &self.options)?;
        if parameters.is_empty() {
            return Err(Error::Nothing(self.file.name.clone()));
        }
        let session = Session {
            job: self,
            corpus: &self.base.corpus,
            progress,
        };
        session.run(&mut parameters, resume, note)
    }

    /// The key of all that the result depends on.
    ///
    /// # Errors
    /// Files that cannot be looked at.
    pub fn key(&self) -> Result<Key> {
        let key = KeyBuilder::new("tune")
            .with_model(self.base.model.input)?
            .with_model(self.file.input)?
            .with("options", format!("{:?}", self.options).as_bytes());
        Ok(self.base.corpus.with(key).key())
    }

    /// Writes a copy of the file with the tensors that changed.
    ///
    /// # Errors
    /// Those of output files.
    pub fn write(&self, files: &Files, outcome: &Outcome, targets: &Targets) -> Result<()> {
        write(files, self.file.input, &outcome.changed, targets)
    }
}

/// Refuses models that do not belong together.
///
/// # Errors
/// Another architecture, vocabulary or shape; a tensor of the file that the base does not have.
pub fn check(base: &Model<'_>, file: &Model<'_>) -> Result<()> {
    /// Most reasons listed.
    const LISTED: usize = 8;
    let mut reasons = Vec::new();
    let architectures = [base, file].map(|model| &model.engine.hyper.architecture);
    if architectures[0] != architectures[1] {
        let [base, file] = &architectures;
        reasons.push(format!("architecture {file}; the base has {base}"));
    }
    let [of_base, of_file] = [base, file].map(|model| model.engine.vocabulary());
    if of_base != of_file {
        reasons.push(format!(
            "a vocabulary of {of_file} tokens; the base has {of_base}"
        ));
    } else if tokens_of(base.input) != tokens_of(file.input) {
        reasons.push("another vocabulary of the same size".into());
    }
    let catalog = base.input.catalog();
    let output = file.input.catalog().output().map(|output| output.tensor);
    for entry in file.input.catalog().tensors() {
        let (name, found) = (&entry.name, entry.dims);
        match catalog.tensor_named(name).map(|id| catalog.tensor(id).dims) {
            Some(dims) if dims != entry.dims => reasons.push(format!(
                "tensor '{name}' of shape {found:?}; the base has {dims:?}"
            )),
            // A tied output matrix may be stored.
            None if entry.linear.is_some() && output != Some(entry.id) => {
                reasons.push(format!("tensor '{name}', which the base does not have"));
            }
            _ => {}
        }
    }
    if reasons.is_empty() {
        return Ok(());
    }
    reasons.truncate(LISTED);
    Err(Error::Unrelated {
        base: base.name.clone(),
        file: file.name.clone(),
        reasons: reasons.join("\n"),
    })
}

/// The tokens of a vocabulary.
fn tokens_of<'i>(input: &'i Input<'_>) -> Option<&'i crate::format::gguf::Value<'i>> {
    input.metadata().get("tokenizer.ggml.tokens")
}

impl Course {
    /// Size of the rates. What the noise of steps costs grows with the square of the rates, whatever the file:
    /// they are in proportion to the square root of its divergence.
    fn size(&self) -> f32 {
        let start: Vec<f64> = self.start.iter().map(|chunks| mean(chunks)).collect();
        let size = (mean(&start) / Rates::NATS).sqrt().min(LARGEST_SIZE) as f32;
        size * 0.5f32.powi(self.halvings as i32)
    }
}

impl Session<'_, '_, '_> {
    fn run(
        &self,
        parameters: &mut Parameters,
        resume: Option<&Resume>,
        note: &dyn Fn(&str),
    ) -> Result<Outcome> {
        let options = &self.job.options;
        let start = parameters.bytes.clone();
        let every = every(options);
        let (mut course, mut best) = match resume.and_then(Resume::take) {
            Some(snapshot) => saved::load(&snapshot, parameters)?,
            None => (Course::default(), start.clone()),
        };
        if course.points.is_empty() {
            course.start = self.nats(&start, 0)?;
            course.points.push(Point {
                step: 0,
                training: None,
                nats: course.start.iter().map(|chunks| mean(chunks)).collect(),
            });
        }
        self.progress.begin(options.steps as u64, Unit::Steps);
        self.progress.advance(course.done as u64);
        while course.done < options.steps
            && course.bad < MOST_BAD
            && course.done < course.improved + PATIENCE * every
        {
            match self.step(parameters, course.done, course.size())? {
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
                if self.decide(&mut course, &nats) {
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
        let texts = named.map(|((name, _), (before, after))| TextOutcome {
            name: name.clone(),
            chunks: before.len(),
            before: mean(&before),
            after: mean(&after),
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
            tokens: self.corpus.trained * self.corpus.context,
            points: course.points,
            texts: texts.collect(),
            without_gradient: parameters.without_gradient().map(name).collect(),
            notes: course.notes,
        })
    }

    /// Records the divergence of a state by text; true if it is the best one.
    fn decide(&self, course: &mut Course, chunks: &[Vec<f64>]) -> bool {
        let texts = course.start.iter().zip(chunks);
        let is_nowhere_worse = texts
            .into_iter()
            .all(|(before, after)| !worse(before, after));
        let nats: Vec<f64> = chunks.iter().map(|chunks| mean(chunks)).collect();
        let first = course.points.first().map_or(&[][..], |point| &point.nats);
        let gain = gain(first, &nats);
        let is_best = gain < course.gain && is_nowhere_worse;
        // A text that rises at high rates may fall again with them: the run goes on.
        if gain < course.least {
            (course.improved, course.least) = (course.done, gain);
        } else if gain > course.least + RISEN && course.halvings < MOST_HALVINGS {
            // The noise of the steps costs more than they gain.
            course.halvings += 1;
            course.improved = course.done;
        }
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

    /// One step, with rates of this size. Returns the divergence of its batch before the step, or the reason
    /// for undoing it.
    fn step(
        &self,
        parameters: &mut Parameters,
        done: usize,
        size: f32,
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
                let rates = self.rates(done, size);
                pool.install(|| parameters.update(rates, done as u64 + 1));
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
            hidden: &self.job.base.hidden,
            head: &self.job.base.head,
            chunks: numbers,
        };
        let batch = Batch {
            chunks: &chunks,
            base: &base,
        };
        Ok(run(&engine, &batch))
    }

    /// The rates of a step: a linear rise, then half a cosine.
    fn rates(&self, done: usize, size: f32) -> Rates {
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
        let part = part * size;
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

    /// Divergence of half the held-out chunks, by text.
    fn nats(&self, bytes: &Arc<Changed>, half: usize) -> Result<Vec<Vec<f64>>> {
        let halves: Vec<Vec<usize>> = (self.corpus.held_out.iter())
            .map(|(_, part)| self.half(part, half))
            .collect();
        let quiet = Quiet(self.progress);
        let all = self.on_chunks(bytes.clone(), &halves.concat(), |engine, batch| {
            engine.divergence(batch, &quiet)
        })?;
        let all = all.map_err(named(&self.job.file.name))?;
        let mut all = all.into_iter();
        let of_text = |half: &Vec<usize>| all.by_ref().take(half.len()).collect();
        Ok(halves.iter().map(of_text).collect())
    }
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len().max(1) as f64
}

/// True if a text's divergence has risen by more than the standard error of the differences of its
/// chunks.
fn worse(before: &[f64], after: &[f64]) -> bool {
    let changes = before
        .iter()
        .zip(after)
        .map(|(before, after)| after - before);
    let changes: Vec<f64> = changes.collect();
    let change = mean(&changes);
    let squares = changes.iter().map(|x| (x - change).powi(2)).sum::<f64>();
    let chunks = changes.len() as f64;
    // One chunk has no error to compare with.
    let variance = if chunks > 1.0 {
        squares / (chunks - 1.0) / chunks
    } else {
        0.0
    };
    change > variance.sqrt()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_worse_beyond_the_standard_error_of_its_chunks() {
        let before = [0.1, 0.2, 0.3, 0.4];
        let changed = |changes: [f64; 4]| {
            let after: Vec<f64> = before.iter().zip(changes).map(|(x, y)| x + y).collect();
            worse(&before, &after)
        };
        assert!(!changed([0.0; 4]));
        assert!(!changed([-0.01; 4]));
        assert!(changed([0.01, 0.011, 0.009, 0.01]));
        assert!(!changed([0.03, -0.02, 0.02, -0.02]));
        assert!(worse(&[0.1], &[0.101]));
    }
}
