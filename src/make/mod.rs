//! `make`: from a model and a text to the best files of their sizes, with the evidence beside them.
//!
//! ```text
//! texts      calibration and evaluation, which have no document in common
//! imatrix    what every matrix is multiplied by
//! scores     what every type would cost every tensor, in nats
//! choice     a recipe for every budget
//! files      all from one pass over the model, or each of one of its own over the text
//! proof      their divergence on the evaluation text, beside what was predicted
//! report     frontier.json, report.html, recipes
//! ```
//!
//! Every result that takes long is kept in the output directory under a key of all that it depends
//! on: a run that was killed goes on where it was, and a second run with another budget begins with
//! the choice.

mod adjust;
mod choice;
mod compare;
mod estimate;
mod files;
mod kept;
mod proof;
mod prove;
mod record;
mod refine;
mod texts;

use crate::format::gguf::Value;
use crate::format::imatrix::{Format, Imatrix};
use crate::format::output::Output;
use crate::format::snapshot::Key;
use crate::format::types::GgmlType;
use crate::hessian::{self, Needs, Store};
use crate::imatrix::collect;
use crate::input::Input;
use crate::model::Engine;
use crate::plan::file_type::FileType;
use crate::plan::frontier::{Budget, BudgetError, ConstraintError, Constraints, Invalid};
use crate::progress::Progress;
use crate::quantize;
use crate::report;
use crate::resume::{self, Resume};
use crate::rounding::{InputHessians, InputStatistics, OutputFactor, Rounding};
use crate::sensitivity::{self, Measure, ModelKnowledge, Run, Scores, Settings};
use crate::tokenizer::Tokenizer;
use crate::{evaluate, format};
use choice::Choices;
use files::Writing;
use kept::Kept;
use prove::Prover;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use estimate::{Estimate, Stage, estimate};
pub use proof::{Fit, fit};
pub use texts::{HELD_OUT, Text, Texts, split};

/// What to do.
pub struct Job {
    /// Texts to calibrate and to judge on.
    pub texts: Texts,
    /// An importance matrix that is there already.
    pub imatrix: Option<PathBuf>,
    /// What to write: each budget as the user put it, and what it means. None leaves it at the
    /// frontier.
    pub budgets: Vec<(String, Budget)>,
    /// So many files more, of sizes spread over the frontier so that each step is worth it.
    pub variants: usize,
    /// Which tensors may take which types.
    pub constraints: Constraints,
    /// How types are judged.
    pub settings: Settings,
    /// The most chunks of the calibration text that types are judged on; the importance matrix
    /// takes all.
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
    /// How weights are rounded: those that types are judged by, and those of files.
    pub rounding: Rounding,
    /// Whether a model that is quantized already may be quantized anew.
    pub allow_requantize: bool,
    /// Presets of llama.cpp that are quantized and measured too.
    pub compare: Vec<FileType>,
    /// The most swaps of each file's recipe that are measured end to end.
    pub refine: usize,
    /// The command line that this is the job of, as others can repeat it: no path of this machine.
    pub command: Option<String>,
    /// How often a long stage keeps what it has come to.
    pub keep_every: Duration,
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
    Score(#[from] sensitivity::Error),
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
    #[error("{name}: {error}{advice}")]
    Text {
        /// Which of both texts, with its names.
        name: String,
        /// What is wrong.
        error: evaluate::windows::Error,
        /// What else can be done about it.
        advice: &'static str,
    },
    /// The place for the results is no directory.
    #[error("{}: this is a file; name a directory, which is made if it is not there", .0.display())]
    NoDirectory(PathBuf),
    /// The model cannot be run, and there is nothing else to choose by.
    #[error(
        "a model that cannot be run needs an importance matrix from elsewhere (--imatrix FILE)"
    )]
    NeedsImatrix,
    /// Nats are asked for, and there are none.
    #[error(
        "{0} asks for nats, and types are judged by their weighted error alone, which is no nats: ask for a size"
    )]
    NoNats(String),
    /// A budget that no recipe meets.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// Constraints that leave no recipe.
    #[error("no recipe keeps these constraints:\n{}", .0.iter().map(|e| format!("  - {e}")).collect::<Vec<_>>().join("\n"))]
    Constraints(Vec<ConstraintError>),
    /// Numbers that cannot be chosen by.
    #[error(transparent)]
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

impl Error {
    /// Whether the run was asked to stop, and would go on if it were started again.
    pub fn is_stop(&self) -> bool {
        use crate::model::Error::Cancelled;
        matches!(
            self,
            Error::Model(Cancelled)
                | Error::Collect(collect::Error::Model(Cancelled))
                | Error::Score(sensitivity::Error::Model(Cancelled))
                | Error::Measure(evaluate::measure::Error::Model {
                    error: Cancelled,
                    ..
                })
                | Error::Measure(evaluate::measure::Error::Cancelled)
                | Error::Quantize(quantize::Error::Cancelled)
        )
    }
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

/// Does it all. `tell` hears what the user should know on the way.
///
/// A model that cannot be run is not opened: then types are judged by the weighted error of an
/// importance matrix that is there already, and no file is measured.
pub fn run(
    input: &Input<'_>,
    opened: Option<Opened<'_>>,
    job: &Job,
    progress: &dyn Progress,
    tell: &dyn Fn(&str),
) -> Result<Made> {
    let windows = check(input, opened, job)?;
    let kept = Kept::new(&job.directory)?;
    let mut stages = Stages::default();

    let opened = opened.zip(windows.as_ref());
    let collected = || collected(opened, job, &kept, progress, tell);
    let (imatrix, imatrix_path, feedback) = stages.run("importance matrix", collected)?;
    let feedback = feedback.as_ref();
    feedback
        .and_then(InputHessians::few_tokens)
        .iter()
        .for_each(|what| tell(what));
    let judged = || {
        scores(
            input,
            opened,
            job,
            (&imatrix, feedback),
            &kept,
            progress,
            tell,
        )
    };
    let (scores, gradients) = stages.run("scores", judged)?;
    let mut choices = stages.run("choice", || {
        let budgets = (&*job.budgets, job.variants);
        Choices::new(
            input,
            opened.map(|o| o.0),
            job,
            budgets,
            &scores,
            Some(&imatrix_path),
        )
    })?;

    let mut notes = choices.notes.clone();
    let writing = Writing {
        input,
        job,
        imatrix: &imatrix_path,
        feedback,
        propagated: opened
            .filter(|_| job.rounding.is_sequential())
            .map(|(model, windows)| (model.engine, windows)),
        gradients: gradients.as_ref(),
        kept: &kept,
        progress,
        tell,
    };
    let (mut files, mut proven) = (Vec::new(), None);
    match opened {
        _ if job.frontier_only => {}
        Some((model, windows)) => {
            let prover = Prover {
                model,
                windows,
                imatrix: &imatrix,
                writing,
            };
            let all = prover.prove(&mut choices, &scores, &mut stages, &mut notes)?;
            files.clone_from(&all.files);
            proven = Some((all, windows));
        }
        None => {
            files = stages.run("files", || writing.write(&choices, Vec::new()))?;
            notes.push("the model cannot be run here, so the files were not measured".into());
        }
    }
    let mut report = record::new(input, job, windows.as_ref(), &scores, &choices);
    if let Some((proven, windows)) = proven {
        record::measured(&mut report, proven, windows);
        if feedback.is_some() {
            record::rounded(&mut report, job, writing.proved(&choices)?);
        }
    }
    report.stages = stages.0;
    record::write(job, &mut report, &choices)?;
    Ok(Made {
        report,
        files,
        notes,
    })
}

/// Everything that can be refused before anything is written or measured. Returns the texts in
/// chunks.
fn check(input: &Input<'_>, opened: Option<Opened<'_>>, job: &Job) -> Result<Option<texts::Cut>> {
    refuse_quantized(input, job)?;
    if job.directory.exists() && !job.directory.is_dir() {
        return Err(Error::NoDirectory(job.directory.clone()));
    }
    let nats = job
        .budgets
        .iter()
        .find(|(_, budget)| matches!(budget, Budget::Kld(_)));
    if let (Some((text, _)), Measure::Imatrix) = (nats, job.settings.measure) {
        return Err(Error::NoNats(text.clone()));
    }
    let imatrix = job
        .imatrix
        .as_ref()
        .map(|path| Imatrix::read(path))
        .transpose()?;
    if let Some(imatrix) = &imatrix {
        sensitivity::importance(input, imatrix)?;
    }
    choice::check(input, opened, job, &guess(input, job, imatrix.as_ref()))?;
    opened
        .map(|model| texts::Cut::new(model, &job.texts))
        .transpose()
}

/// What there will be to choose from, as far as metadata tell. Without an importance matrix, every
/// matrix that one is collected for is presumed to have its values.
fn guess(input: &Input<'_>, job: &Job, imatrix: Option<&Imatrix>) -> Scores {
    let has_importance = |name: &str| match imatrix {
        Some(imatrix) => imatrix.entries.contains_key(name),
        None => {
            let linear = input.catalog().linear_named(name);
            linear.is_some_and(|linear| input.catalog().in_imatrix(linear.id, true))
        }
    };
    sensitivity::guess(input, &has_importance, &job.settings, &allowed(input, job))
}

/// Whether the constraints let a tensor have a type.
fn allowed<'a>(input: &'a Input<'_>, job: &'a Job) -> impl Fn(&str, GgmlType) -> bool + 'a {
    |name, t| {
        job.constraints
            .allows(name, input.catalog().role_named(name), t)
    }
}

/// A model whose matrices are quantized is no base to measure against.
fn refuse_quantized(input: &Input<'_>, job: &Job) -> Result<()> {
    let matrices: Vec<_> = input
        .tensors
        .iter()
        .filter(|t| t.info.shape.dims().len() > 1)
        .collect();
    let quantized: Vec<_> = matrices
        .iter()
        .filter(|t| t.info.ggml_type.is_quantized())
        .collect();
    match quantized.first() {
        Some(first) if !job.allow_requantize => Err(Error::Quantized {
            quantized: quantized.len(),
            matrices: matrices.len(),
            example: format!("'{}' is {}", first.info.name, first.info.ggml_type),
        }),
        _ => Ok(()),
    }
}

/// All that the importance matrix depends on.
fn imatrix_key(input: &Input<'_>, windows: &texts::Cut) -> Result<Key> {
    let key = resume::KeyBuilder::new("make: imatrix")
        .with_model(input)?
        .with("tokens", windows.calibration_bytes());
    Ok(key.key())
}

/// All that covariances depend on, and how they are collected.
fn covariance_job(
    model: Opened<'_>,
    windows: &texts::Cut,
    kept: &Kept,
    needs: &Needs,
) -> Result<hessian::Job> {
    let key = resume::KeyBuilder::new("make: covariance").with_model(model.input)?;
    let key = key
        .with("tokens", windows.calibration_bytes())
        .with("experts apart", &[needs.experts_apart.into()])
        .key();
    let (directory, experts_apart) = (kept.path("covariance"), needs.experts_apart);
    Ok(hessian::Job {
        directory,
        key,
        experts_apart,
        hold_out: true,
    })
}

/// Memory that rounding with error feedback takes beside weights and activations: the sums of a
/// layer while they are collected, those of gradients, or later what is made of the inputs of the
/// widest matrix and of the gradients of the longest.
pub fn rounding_bytes(engine: &Engine<'_>, context: usize) -> u64 {
    // As many chunks as fill the samples.
    let chunks = hessian::HELD_OUT * hessian::SAMPLE;
    let needs = Needs::of(engine, true, [chunks, context]);
    let catalog = engine.catalog();
    let linears = catalog
        .linears()
        .iter()
        .filter(|linear| catalog.in_hessians(linear.id, true));
    let widest = linears
        .map(|linear| catalog.weight(linear.id).row_len())
        .max()
        .unwrap_or(0);
    let rows = sensitivity::gradient_rows(engine);
    // Half a square of each matrix of a layer.
    let sums =
        rows.iter().map(|rows| 2 * rows * rows).sum::<u64>() / (engine.hyper.layers as u64).max(1);
    let longest = rows.iter().copied().max().unwrap_or(0);
    // The matrix as it is to be rounded, and its errors.
    let together = OutputFactor::working_bytes(longest) + 8 * longest * widest;
    needs
        .memory
        .max(sums)
        .max(InputStatistics::working_bytes(widest) + together)
}

/// The importance matrix, and what is known of the inputs of matrices where weights are rounded
/// with it: those that an earlier run has left, or new ones. Both come from one pass.
fn collected(
    model: Option<(Opened<'_>, &texts::Cut)>,
    job: &Job,
    kept: &Kept,
    progress: &dyn Progress,
    tell: &dyn Fn(&str),
) -> Result<(Imatrix, PathBuf, Option<InputHessians>)> {
    let Some((model, windows)) = model else {
        let path = job.imatrix.clone().ok_or(Error::NeedsImatrix)?;
        return Ok((Imatrix::read(&path)?, path, None));
    };
    let given = job.imatrix.clone();
    let path = given.clone().unwrap_or_else(|| job.directory.join(IMATRIX));
    let key = imatrix_key(model.input, windows)?;
    let has_imatrix = given.is_some() || (path.exists() && kept.has("imatrix", &key));
    let wanted = match job.rounding.has_feedback() {
        true => {
            let windows_of = windows.calibration()?;
            let needs = Needs::of(
                model.engine,
                true,
                [windows_of.chunks(), windows_of.n_ctx()],
            );
            Some((covariance_job(model, windows, kept, &needs)?, needs))
        }
        false => None,
    };
    let there = |wanted: &hessian::Job| {
        InputHessians::open(&wanted.directory)
            .ok()
            .filter(|feedback| *feedback.key() == wanted.key)
    };
    let feedback = wanted.as_ref().and_then(|(wanted, _)| there(wanted));
    let missing = wanted.as_ref().filter(|_| feedback.is_none());
    if has_imatrix && missing.is_none() {
        return Ok((Imatrix::read(&path)?, path, feedback));
    }
    if let Some((wanted, needs)) = missing {
        // Those of other texts make room; those of a run that was killed stay.
        if hessian::holds_others(&wanted.directory, &wanted.key)? {
            hessian::clear(&wanted.directory)?;
        }
        needs.check(wanted)?;
    }
    let run_key = resume::KeyBuilder::new("make: imatrix").with("all", &key);
    let run_key = run_key
        .with(
            "covariance",
            missing.map_or(&[][..], |(wanted, _)| &wanted.key),
        )
        .key();
    let resume = resume(&kept.path("imatrix.resume"), run_key, job, tell)?;
    let options = collect::Options {
        process_output: true,
        resume: Some(&resume),
        covariance: missing.map(|(wanted, _)| wanted),
        ..collect::Options::default()
    };
    let collected = collect::collect(model.engine, &windows.calibration()?, &options, progress);
    let mut sums = ended(collected, collect::Error::is_final, &resume, tell)?.sums;
    if !has_imatrix {
        sums.datasets = job
            .texts
            .calibration
            .iter()
            .map(|text| text.name.clone())
            .collect();
        let imatrix = sums.to_file(job.texts.context as u32);
        imatrix.write(&path, Format::Gguf, &model.input.paths())?;
        kept.remember("imatrix", &key)?;
    }
    resume.remove();
    let feedback = match (feedback, missing) {
        (None, Some((wanted, _))) => Some(InputHessians::open(&wanted.directory)?),
        (feedback, _) => feedback,
    };
    // As it is read by who uses it: sums in f32.
    Ok((Imatrix::read(&path)?, path, feedback))
}

/// What the importance matrix is called in the directory.
const IMATRIX: &str = "imatrix.gguf";

/// All that scores depend on, but which types are wanted.
fn scores_key(
    input: &Input<'_>,
    job: &Job,
    chunks: &[Vec<u32>],
    imatrix: &Imatrix,
    covariance: Option<&Key>,
) -> Result<Key> {
    let tokens: Vec<u8> = chunks
        .iter()
        .flatten()
        .flat_map(|t| t.to_le_bytes())
        .collect();
    let values = imatrix.entries.iter().flat_map(|(name, entry)| {
        name.bytes()
            .chain(entry.means().into_iter().flat_map(f32::to_le_bytes))
            .collect::<Vec<u8>>()
    });
    let settings = serde_json::to_vec(&job.settings).unwrap_or_default();
    let key = resume::KeyBuilder::new("make: scores")
        .with_model(input)?
        .with("tokens", &tokens);
    let key = key.with("covariance", covariance.map_or(&[][..], |key| key));
    Ok(key
        .with("imatrix", &values.collect::<Vec<u8>>())
        .with("settings", &settings)
        .key())
}

/// What the covariances of gradients depend on, and where they go, where files are rounded with
/// them: both sides of a matrix are looked at where its tensors are rounded one behind the other
/// and the backward stream runs anyway.
fn gradient_job(
    model: Opened<'_>,
    job: &Job,
    chunks: &[Vec<u32>],
    kept: &Kept,
) -> Result<Option<hessian::Job>> {
    if job.settings.measure != Measure::Divergence || !job.rounding.is_two_sided() {
        return Ok(None);
    }
    let tokens: Vec<u8> = chunks
        .iter()
        .flatten()
        .flat_map(|token| token.to_le_bytes())
        .collect();
    let Settings {
        positions,
        draws,
        seed,
        ..
    } = job.settings;
    let key = resume::KeyBuilder::new("make: gradients")
        .with_model(model.input)?
        .with("tokens", &tokens);
    let key = key
        .with("context", &job.texts.context.to_le_bytes())
        .with("draws", &draws.to_le_bytes());
    let key = key
        .with("positions", &positions.to_le_bytes())
        .with("seed", &seed.to_le_bytes());
    // Which matrices there are depends on the memory.
    let rows = sensitivity::gradient_rows(model.engine);
    let key = key
        .with(
            "rows",
            &rows
                .iter()
                .flat_map(|rows| rows.to_le_bytes())
                .collect::<Vec<u8>>(),
        )
        .key();
    Ok(Some(hessian::Job {
        directory: kept.path("gradients"),
        key,
        experts_apart: false,
        hold_out: false,
    }))
}

/// The scores, and what is known of gradients: what an earlier run has left, if it has all that is
/// wanted, or new.
fn scores(
    input: &Input<'_>,
    opened: Option<(Opened<'_>, &texts::Cut)>,
    job: &Job,
    (imatrix, feedback): (&Imatrix, Option<&InputHessians>),
    kept: &Kept,
    progress: &dyn Progress,
    tell: &dyn Fn(&str),
) -> Result<(Scores, Option<Store>)> {
    let chunks = match opened {
        Some((_, windows)) if job.settings.measure != Measure::Imatrix => {
            windows.score_chunks(job.score_chunks)?
        }
        _ => Vec::new(),
    };
    let key = scores_key(
        input,
        job,
        &chunks,
        imatrix,
        feedback.map(InputHessians::key),
    )?;
    let wanted = guess(input, job, Some(imatrix));
    let allowed = allowed(input, job);
    let gradients = opened
        .map(|(model, _)| gradient_job(model, job, &chunks, kept))
        .transpose()?
        .flatten();
    let there = |of: &hessian::Job| {
        Store::open(&of.directory)
            .ok()
            .filter(|store| *store.key() == of.key)
    };
    let store = gradients.as_ref().and_then(there);
    let missing = gradients.as_ref().filter(|_| store.is_none());
    if let Some(of) =
        missing.filter(|of| hessian::holds_others(&of.directory, &of.key).unwrap_or(false))
    {
        hessian::clear(&of.directory)?;
    }
    if let Some((of, (model, _))) = missing.zip(opened) {
        let bytes = sensitivity::gradient_rows(model.engine)
            .into_iter()
            .map(hessian::gradient_bytes);
        hessian::check_room(of, bytes.sum())?;
    }
    // Those that an earlier run has left, or those that have come meanwhile.
    let opened_gradients = |store: Option<Store>| match (store, missing) {
        (None, Some(of)) => Store::open(&of.directory).map(Some),
        (store, _) => Ok(store),
    };
    if let Some(scores) = kept
        .read::<Scores>("scores", &key)
        .filter(|scores| scores.cover(&wanted, &allowed))
    {
        if let Some((missing, (model, _))) = missing.zip(opened) {
            let run = Run {
                engine: model.engine,
                chunks: &chunks,
                settings: &job.settings,
                output_hessians: Some(missing),
                resume: None,
            };
            sensitivity::sum_output_hessians(&run, progress)?;
        }
        return Ok((scores, opened_gradients(store)?));
    }
    let knowledge = ModelKnowledge {
        input,
        imatrix,
        hessians: feedback,
    };
    let scores = match opened {
        Some((model, _)) => {
            let types = serde_json::to_vec(&wanted).unwrap_or_default();
            let run_key = resume::KeyBuilder::new("make: scores")
                .with("all", &key)
                .with("types", &types);
            let run_key = run_key
                .with("gradients", missing.map_or(&[][..], |of| &of.key))
                .key();
            let resume = resume(&kept.path("scores.resume"), run_key, job, tell)?;
            let run = Run {
                engine: model.engine,
                chunks: &chunks,
                settings: &job.settings,
                output_hessians: missing,
                resume: Some(&resume),
            };
            let scores = sensitivity::score(&run, &knowledge, &allowed, progress);
            let scores = ended(scores, sensitivity::Error::is_final, &resume, tell)?;
            kept.write("scores", &key, &scores)?;
            resume.remove();
            return Ok((scores, opened_gradients(store)?));
        }
        None => {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(job.threads)
                .build();
            let pool =
                pool.map_err(|e| crate::model::Error::Model(format!("cannot start threads: {e}")))?;
            sensitivity::weighted(&knowledge, &job.settings, &allowed, &pool, progress)?
        }
    };
    kept.write("scores", &key, &scores)?;
    Ok((scores, None))
}

/// Where a stage keeps what it has come to.
fn resume(path: &Path, key: Key, job: &Job, tell: &dyn Fn(&str)) -> Result<Resume> {
    let (resume, note) = Resume::open(path, key, job.keep_every)?;
    note.iter().for_each(|note| tell(note));
    Ok(resume)
}

/// The end of such a stage: what would only fail again is not kept.
fn ended<T, E>(
    result: std::result::Result<T, E>,
    is_final: impl Fn(&E) -> bool,
    resume: &Resume,
    tell: &dyn Fn(&str),
) -> std::result::Result<T, E> {
    if let Some(why) = resume.failed() {
        tell(&format!("the state of the run could not be kept: {why}"));
    }
    result.inspect_err(|error| {
        if is_final(error) {
            resume.remove();
        }
    })
}

/// The stages that are done, with their time and memory.
#[derive(Default)]
struct Stages(Vec<report::data::Stage>);

impl Stages {
    fn run<T>(&mut self, name: &str, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = stage()?;
        let seconds = start.elapsed().as_secs_f64();
        self.0.push(report::data::Stage {
            name: name.into(),
            seconds,
            peak_bytes: peak_memory(),
        });
        Ok(result)
    }
}

/// The most memory that this process has had, where the system tells.
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
    let named = input
        .metadata()
        .get(GENERAL_NAME)
        .and_then(Value::as_str)
        .map(str::to_owned);
    let path = input.paths().first().map(|path| path.to_path_buf());
    let stem = path.and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    let name = named
        .filter(|name| !name.trim().is_empty())
        .or(stem)
        .unwrap_or_else(|| "model".into());
    let kept = |c: char| {
        if c.is_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = name.trim().chars().map(kept).collect();
    name.trim_matches(['.', '-']).to_owned()
}
