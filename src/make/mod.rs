//! `make`: from a model and a text to the best files of their sizes, with the evidence beside them.
//!
//! ```text
//! texts      calibration and evaluation, which have no document in common
//! imatrix    what every matrix is multiplied by
//! scores     what every type would cost every tensor, in nats
//! choice     a recipe for every budget
//! files      all from one pass over the model
//! proof      their divergence on the evaluation text, beside what was predicted
//! report     frontier.json, report.html, recipes
//! ```
//!
//! Every result that takes long is kept in the output directory under a key of all that it depends on: a run that was
//! killed goes on where it was, and a second run with another budget begins with the choice.

mod adjust;
mod choice;
mod compare;
mod kept;
mod proof;
mod record;
mod refine;
mod texts;

use crate::format::checkpoint::Key;
use crate::format::gguf::Value;
use crate::format::imatrix::{Format, Imatrix};
use crate::format::output::Output;
use crate::format::types::GgmlType;
use crate::frontier::{self, Scores, Settings};
use crate::imatrix::collect;
use crate::input::Input;
use crate::model::Engine;
use crate::plan::file_type::FileType;
use crate::plan::frontier::{Budget, BudgetError, ConstraintError, Constraints, Invalid};
use crate::progress::Progress;
use crate::quantize;
use crate::report;
use crate::resume::{self, Resume};
use crate::tokenizer::Tokenizer;
use crate::{evaluate, format};
use choice::Choices;
use kept::Kept;
use proof::{Found, Subject};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use proof::{Fit, fit};
pub use texts::{Text, Texts, split};

/// What to do.
pub struct Job {
    /// Texts to calibrate and to judge on.
    pub texts: Texts,
    /// An importance matrix that is there already.
    pub imatrix: Option<PathBuf>,
    /// What to write: each budget as the user put it, and what it means. None leaves it at the frontier.
    pub budgets: Vec<(String, Budget)>,
    /// Which tensors may take which types.
    pub constraints: Constraints,
    /// How types are judged.
    pub settings: Settings,
    /// The most chunks of the calibration text that types are judged on; the importance matrix takes all.
    pub score_chunks: usize,
    /// Where everything goes.
    pub directory: PathBuf,
    /// What the files are called, before their size.
    pub name: String,
    /// Write no files, measure nothing.
    pub frontier_only: bool,
    /// Threads for quantizing; 0 takes one per core.
    pub threads: usize,
    /// How the files are run that are written.
    pub options: crate::model::Options,
    /// Whether a model that is quantized already may be quantized anew.
    pub allow_requantize: bool,
    /// Presets of llama.cpp that are quantized and measured too.
    pub compare: Vec<FileType>,
    /// The most swaps of each file's recipe that are measured end to end.
    pub refine: usize,
}

/// What was done.
pub struct Made {
    /// What is in frontier.json.
    pub report: report::data::Frontier,
    /// The files that were written, in the order of the budgets.
    pub files: Vec<PathBuf>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// No importance matrix.
    #[error(transparent)]
    Collect(#[from] collect::Error),
    /// No scores.
    #[error(transparent)]
    Score(#[from] frontier::Error),
    /// Files could not be planned or written.
    #[error(transparent)]
    Quantize(#[from] quantize::Error),
    /// A model that was written could not be read again.
    #[error(transparent)]
    Convert(#[from] crate::convert::Error),
    /// A model that was written could not be run.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// Nothing could be measured.
    #[error(transparent)]
    Measure(#[from] evaluate::measure::Error),
    /// A text cannot be cut into chunks.
    #[error("{name}: {error}")]
    Text {
        /// The text, or which of both it is.
        name: String,
        /// What is wrong.
        error: evaluate::windows::Error,
    },
    /// A budget that no recipe meets.
    #[error("{0}")]
    Budget(#[from] BudgetError),
    /// Constraints that leave no recipe.
    #[error("no recipe keeps these constraints:\n{}", .0.iter().map(|e| format!("  - {e}")).collect::<Vec<_>>().join("\n"))]
    Constraints(Vec<ConstraintError>),
    /// Numbers that cannot be chosen by.
    #[error("{0}")]
    Scores(#[from] Invalid),
    /// A model that is quantized already.
    #[error(
        "{} of {} matrices are quantized already ({example}): what was rounded once is lost, and the divergence from the \
         original cannot be measured any more. Start from the original model, or accept that with --allow-requantize",
        quantized,
        matrices
    )]
    Quantized {
        /// Matrices that are.
        quantized: usize,
        /// All matrices.
        matrices: usize,
        /// One of them, with its type.
        example: String,
    },
    /// A tensor came out in another type than was chosen.
    #[error("tensor '{tensor}': {chosen} was chosen and {planned} would be written; report this")]
    Recipe {
        /// The tensor.
        tensor: String,
        /// What was chosen.
        chosen: GgmlType,
        /// What the quantizer would write.
        planned: GgmlType,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// The model, open.
#[derive(Clone, Copy)]
pub struct Opened<'m> {
    /// Its tensors.
    pub input: &'m Input<'m>,
    /// What runs it.
    pub engine: &'m Engine<'m>,
    /// Its vocabulary.
    pub tokenizer: &'m Tokenizer,
}

/// How often a long stage keeps what it has come to.
const KEEP_EVERY: Duration = Duration::from_secs(30);

/// Does it all. `tell` hears what the user should know on the way.
pub fn run(model: Opened<'_>, job: &Job, progress: &dyn Progress, tell: &dyn Fn(&str)) -> Result<Made> {
    refuse_quantized(model.input, job)?;
    let kept = Kept::new(&job.directory)?;
    let mut stages = Stages::default();
    let windows = texts::Cut::new(model, &job.texts)?;

    let (imatrix, imatrix_path) =
        stages.run("importance matrix", || imatrix(model, job, &windows, &kept, progress, tell))?;
    let scores = stages.run("scores", || scores(model, job, &windows, &imatrix, &kept, progress, tell))?;
    let mut choices = stages.run("choice", || Choices::new(model, job, &scores, &imatrix_path))?;

    let mut notes = choices.notes.clone();
    let mut proven = None;
    if !job.frontier_only {
        let proof = Proof { model, job, windows: &windows, imatrix: (&imatrix, &imatrix_path), kept: &kept, progress };
        let key = adjust::key(model.input, job, &windows, &scores)?;
        proven = Some(proof.of(&mut choices, &key, &mut stages, &mut notes)?);
    }
    let mut report = record::new(model, job, &windows, &scores, &choices);
    let mut files = Vec::new();
    if let Some(Proven { found, presets, of_files }) = proven {
        files = of_files;
        record::measured(&mut report, found, presets, &windows);
    }
    report.stages = stages.0;
    record::write(job, &mut report, &choices)?;
    Ok(Made { report, files, notes })
}

/// What it takes to write files and measure them.
struct Proof<'p> {
    model: Opened<'p>,
    job: &'p Job,
    windows: &'p texts::Cut,
    imatrix: (&'p Imatrix, &'p Path),
    kept: &'p Kept,
    progress: &'p dyn Progress,
}

/// What was measured.
struct Proven {
    found: Vec<Found>,
    presets: Vec<(FileType, Found)>,
    of_files: Vec<PathBuf>,
}

impl Proof<'_> {
    /// Writes and measures the files, and those again whose recipes the measurement changes.
    fn of(&self, choices: &mut Choices, key: &Key, stages: &mut Stages, notes: &mut Vec<String>) -> Result<Proven> {
        let Proof { model, job, windows, imatrix, kept, progress } = *self;
        let mut adjusted = adjust::apply(job, choices, kept, key);
        let compared = compare::Compared::new(model.input, job, choices, windows, imatrix.1, kept, notes)?;
        let mut of_files = stages.run("files", || self.write(choices, compared.outputs()))?;
        let (mut found, presets) = stages.run("proof", || {
            let presets: Vec<_> = compared.presets.iter().map(|(_, subject)| subject.clone()).collect();
            let mut found = self.measure(&of_files, &presets)?;
            let presets = found.split_off(of_files.len());
            Ok((found, compared.presets.iter().map(|(preset, _)| *preset).zip(presets).collect()))
        })?;
        drop(compared);
        let done: Vec<_> = choices.chosen.iter().map(|c| adjusted.contains_key(&c.budget)).collect();
        for _ in 0..adjust::ROUNDS {
            let nats: Vec<f64> = found.iter().map(|found| found.measured.kld).collect();
            let changed = adjust::closer(job, choices, &nats, &done);
            if changed.is_empty() {
                break;
            }
            (of_files, found) = stages.run("nearer to the wish", || self.again(choices, &of_files))?;
            for index in changed {
                adjust::keep(&mut adjusted, &choices.chosen[index], None, kept, key)?;
            }
        }
        let open: Vec<_> = (0..choices.chosen.len()).filter(|i| !done[*i] && job.refine > 0).collect();
        if !open.is_empty() {
            stages.run("refinement", || {
                let chunks = windows.other_chunks(job.score_chunks)?;
                if chunks.len() < 2 {
                    notes.push("--refine has no text: every chunk of the calibration text was judged on".into());
                    return Ok(());
                }
                for index in open {
                    let recipe = (&*choices.chosen[index].solution.choices, &*of_files[index]);
                    let refined = refine::refine(model, job, &choices.problem, recipe, &chunks, imatrix.0, progress)?;
                    let note = refined.note(&choices.chosen[index].budget);
                    choices.set(job, index, &refined.choices);
                    adjust::keep(&mut adjusted, &choices.chosen[index], Some(note), kept, key)?;
                }
                (of_files, found) = self.again(choices, &of_files)?;
                Ok(())
            })?;
        }
        notes.extend(adjusted.values().filter_map(|adjusted| adjusted.note.clone()));
        for (chosen, found) in choices.chosen.iter().zip(&found) {
            if chosen.wish.is_some_and(|wish| found.measured.kld > wish) {
                notes.push(format!("{}: {:.6} nats were measured", chosen.budget, found.measured.kld));
            }
        }
        Ok(Proven { found, presets, of_files })
    }

    /// Writes and measures what has changed, and removes the files that were there in its place.
    fn again(&self, choices: &Choices, before: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<Found>)> {
        let files = self.write(choices, Vec::new())?;
        for old in before.iter().filter(|old| !files.contains(old)) {
            // Whoever cannot remove it can leave it: nothing refers to it any more.
            let _ = std::fs::remove_file(old);
        }
        let found = self.measure(&files, &[])?;
        Ok((files, found))
    }

    fn write(&self, choices: &Choices, more: Vec<quantize::OutputRequest>) -> Result<Vec<PathBuf>> {
        choice::write(self.model, self.job, choices, self.imatrix.1, more, self.kept, self.progress)
    }

    /// What is measured of the files, then of the presets.
    fn measure(&self, files: &[PathBuf], presets: &[Subject]) -> Result<Vec<Found>> {
        let subjects = files.iter().map(|path| Subject::of_file(self.model.input, self.windows, path));
        let mut subjects = subjects.collect::<Result<Vec<_>>>()?;
        subjects.extend_from_slice(presets);
        proof::measure(self.model, self.job, self.windows, &subjects, self.kept, self.progress)
    }
}

/// A model whose matrices are quantized is no base to measure against.
fn refuse_quantized(input: &Input<'_>, job: &Job) -> Result<()> {
    let matrices: Vec<_> = input.tensors.iter().filter(|t| t.info.shape.dims().len() > 1).collect();
    let quantized: Vec<_> = matrices.iter().filter(|t| t.info.ggml_type.is_quantized()).collect();
    match quantized.first() {
        Some(first) if !job.allow_requantize => Err(Error::Quantized {
            quantized: quantized.len(),
            matrices: matrices.len(),
            example: format!("'{}' is {}", first.info.name, first.info.ggml_type),
        }),
        _ => Ok(()),
    }
}

/// The importance matrix: the user's, one that an earlier run has left, or a new one.
fn imatrix(
    model: Opened<'_>,
    job: &Job,
    windows: &texts::Cut,
    kept: &Kept,
    progress: &dyn Progress,
    tell: &dyn Fn(&str),
) -> Result<(Imatrix, PathBuf)> {
    if let Some(path) = &job.imatrix {
        return Ok((Imatrix::read(path)?, path.clone()));
    }
    let path = job.directory.join("imatrix.gguf");
    let key = resume::Job::new("make: imatrix").with_model(model.input)?.with("tokens", windows.calibration_bytes());
    let key = key.key();
    if path.exists() && kept.has("imatrix", &key) {
        return Ok((Imatrix::read(&path)?, path));
    }
    let (resume, note) = Resume::open(&kept.path("imatrix.resume"), key, KEEP_EVERY)?;
    note.iter().for_each(|note| tell(note));
    let options = collect::Options { process_output: true, resume: Some(&resume), ..collect::Options::default() };
    let collected = collect::collect(model.engine, &windows.calibration()?, &options, progress)?;
    let mut sums = collected.sums;
    sums.datasets = job.texts.calibration.iter().map(|text| text.name.clone()).collect();
    let imatrix = sums.to_file(job.texts.context as u32);
    imatrix.write(&path, Format::Gguf, &model.input.paths())?;
    kept.remember("imatrix", &key)?;
    resume.remove();
    // As it is read by who uses it: sums in f32.
    Ok((Imatrix::read(&path)?, path))
}

/// The scores: those that an earlier run has left, or new ones.
fn scores(
    model: Opened<'_>,
    job: &Job,
    windows: &texts::Cut,
    imatrix: &Imatrix,
    kept: &Kept,
    progress: &dyn Progress,
    tell: &dyn Fn(&str),
) -> Result<Scores> {
    let chunks = windows.score_chunks(job.score_chunks)?;
    let tokens: Vec<u8> = chunks.iter().flatten().flat_map(|t| t.to_le_bytes()).collect();
    let values = imatrix.entries.iter().flat_map(|(name, entry)| {
        name.bytes().chain(entry.means().into_iter().flat_map(f32::to_le_bytes)).collect::<Vec<u8>>()
    });
    let settings = serde_json::to_vec(&job.settings).unwrap_or_default();
    let key = resume::Job::new("make: scores").with_model(model.input)?.with("tokens", &tokens);
    let key = key.with("imatrix", &values.collect::<Vec<u8>>()).with("settings", &settings).key();
    if let Some(scores) = kept.read("scores", &key) {
        return Ok(scores);
    }
    let (resume, note) = Resume::open(&kept.path("scores.resume"), key, KEEP_EVERY)?;
    note.iter().for_each(|note| tell(note));
    let allowed = |name: &str, t| job.constraints.allows(name, t);
    let scores =
        frontier::score(model.input, model.engine, imatrix, &chunks, &job.settings, &allowed, Some(&resume), progress)?;
    kept.write("scores", &key, &scores)?;
    resume.remove();
    Ok(scores)
}

/// The stages that are done, with their time and memory.
#[derive(Default)]
struct Stages(Vec<report::data::Stage>);

impl Stages {
    fn run<T>(&mut self, name: &str, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = stage()?;
        let seconds = start.elapsed().as_secs_f64();
        self.0.push(report::data::Stage { name: name.into(), seconds, peak_bytes: peak_memory() });
        Ok(result)
    }
}

/// The most memory that this process has had, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Writes a text file, beside its place and then renamed.
fn write_text(path: &Path, text: &str) -> Result<()> {
    let mut output = Output::create(path, text.len() as u64, &[])?;
    output.write(text.as_bytes())?;
    Ok(output.finish()?)
}

/// Where a model's metadata has its name.
pub(crate) const GENERAL_NAME: &str = "general.name";

/// What a model is called: its metadata's name, or else its file's; as a file name can be.
pub fn model_name(input: &Input<'_>) -> String {
    let named = input.metadata().get(GENERAL_NAME).and_then(Value::as_str).map(str::to_owned);
    let path = input.paths().first().map(|path| path.to_path_buf());
    let stem = path.and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    let name = named.filter(|name| !name.trim().is_empty()).or(stem).unwrap_or_else(|| "model".into());
    let kept = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = name.trim().chars().map(kept).collect();
    name.trim_matches(['.', '-']).to_owned()
}
