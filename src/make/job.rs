//! A job: resolved options for one model, with its texts in chunks.

use super::lossless::{Lossless, PUBLISHED, quantized_matrices};
use super::numbers::Numbers;
use super::options::{LlamaCpp, Options, Texts};
use super::outside::Outside;
use super::projector::Projector;
use super::texts::Used;
use super::workdir::WorkDir;
use super::{Error, Result, texts};
use crate::arch::hyper::Hyper;
use crate::chat::encoder::Encoder;
use crate::format::gguf::Value;
use crate::format::imatrix::Imatrix;
use crate::format::snapshot::Key;
use crate::format::types::GgmlType;
use crate::hessian::{self, Needs};
use crate::input::Input;
use crate::model::Engine;
use crate::plan::frontier::Budget;
use crate::resume::KeyBuilder;
use crate::rounding::{InputStatistics, OutputFactor, Rounding};
use crate::sensitivity::{self, Measure, Scores, Settings};
use crate::text::Shared;
use std::path::PathBuf;

pub(super) use crate::sensitivity::gradient_rows;

/// The program that runs the model.
pub enum Runner<'m> {
    /// None: sensitivities are weighted errors of the weights, and files are not measured.
    None,
    /// The engine of this program.
    Native(Runnable<'m>),
    /// llama.cpp's programs.
    LlamaCpp(LlamaCpp),
}

/// A model that the engine can run.
#[derive(Clone, Copy)]
pub struct Runnable<'m> {
    /// The model.
    pub engine: &'m Engine<'m>,
    /// Its vocabulary.
    pub encoder: Encoder<'m>,
}

/// Resolved options for one model.
pub struct Job<'m> {
    pub(super) input: &'m Input<'m>,
    pub(super) engine: JobEngine<'m>,
    /// The tensors that types hold without loss.
    pub(super) lossless: Lossless,
    /// The encoders of images and of audio.
    pub(super) projector: Option<Projector<'m>>,
    /// Options, restricted to those that the model supports.
    pub(super) options: Options,
    /// Stem of file names.
    pub(super) name: String,
    /// Tokens per chunk.
    pub(super) context: usize,
}

/// The engine of a job, with the texts.
pub(super) enum JobEngine<'m> {
    None,
    Native(Box<Model<'m>>),
    Outside(Box<Outside>),
}

/// A runnable model with its texts in chunks.
pub(super) struct Model<'m> {
    pub(super) engine: &'m Engine<'m>,
    pub(super) texts: texts::Cut,
}

impl<'m> Job<'m> {
    /// Resolves options for a model, and refuses everything that needs no measurement. Without an
    /// engine, sensitivities are weighted errors, and weights are rounded as the reference does;
    /// two-sided rounding is used only if sensitivities are divergences, whose backward pass also
    /// makes the output Hessians.
    ///
    /// # Errors
    /// A quantized model, a file in place of the directory, texts that are too short, a budget in
    /// nats without divergences, and missing programs of an outside engine.
    pub fn new(
        input: &'m Input<'m>,
        runner: Runner<'m>,
        mut options: Options,
        texts: &Texts,
    ) -> Result<Job<'m>> {
        let model = match &runner {
            Runner::Native(model) => Some(*model),
            Runner::None | Runner::LlamaCpp(_) => None,
        };
        let is_outside = matches!(runner, Runner::LlamaCpp(_));
        if model.is_none() {
            options.scoring.settings.measure = Measure::Imatrix;
            options.rounding = Rounding::Reference;
        }
        // Hessians need a single run of each layer.
        if model
            .as_ref()
            .is_some_and(|model| model.engine.hyper.loops > 1)
        {
            options.rounding = Rounding::Reference;
        }
        if let Rounding::Feedback { two_sided, .. } = &mut options.rounding {
            *two_sided &= options.scoring.settings.measure == Measure::Divergence;
        }
        refuse_quantized(input, &options)?;
        if options.directory.exists() && !options.directory.is_dir() {
            return Err(Error::NoDirectory(options.directory));
        }
        if matches!(runner, Runner::None) && options.imatrix.is_none() {
            return Err(Error::NeedsImatrix);
        }
        let budgets = options.files().map_or(&[][..], |files| &files.budgets);
        let nats = budgets
            .iter()
            .find(|budget| matches!(budget.budget, Budget::Kld(_) | Budget::Cosine(_)));
        if let (Some(budget), Measure::Imatrix, false) =
            (nats, options.scoring.settings.measure, is_outside)
        {
            return Err(Error::NoNats(budget.name.clone()));
        }
        match is_embedding(input, model) {
            true => refuse_for_embeddings(&options, is_outside)?,
            false => {
                let mut cosine = budgets.iter();
                let cosine = cosine.find(|budget| matches!(budget.budget, Budget::Cosine(_)));
                if let Some(budget) = cosine {
                    return Err(Error::NoEmbeddings(budget.name.clone()));
                }
            }
        }
        let engine = match runner {
            Runner::None => JobEngine::None,
            Runner::Native(model) => JobEngine::Native(Box::new(Model {
                engine: model.engine,
                texts: texts::Cut::new(model, texts)?,
            })),
            Runner::LlamaCpp(programs) => {
                JobEngine::Outside(Box::new(Outside::new(programs, input, &options, texts)?))
            }
        };
        Ok(Job {
            input,
            lossless: Lossless::of(input)?,
            engine,
            projector: None,
            name: options.name.clone().unwrap_or_else(|| model_name(input)),
            options,
            context: texts.context,
        })
    }

    /// The model, if the engine of this program runs it.
    pub(super) fn model(&self) -> Option<&Model<'m>> {
        match &self.engine {
            JobEngine::Native(model) => Some(model),
            JobEngine::None | JobEngine::Outside(_) => None,
        }
    }

    /// A note on texts of an embedding model that were cut.
    pub(super) fn shortened(&self) -> Option<String> {
        let texts = &self.model()?.texts;
        let cut = texts.shortened;
        (cut > 0).then(|| {
            format!(
                "{cut} texts are longer than {} tokens, and were cut",
                texts.longest
            )
        })
    }

    /// False for an embedding model, which predicts no tokens.
    pub fn has_output(&self) -> bool {
        self.model().is_none_or(|model| model.engine.has_output())
    }

    /// The calibration texts with their numbers of tokens; none if no model is run.
    pub(super) fn calibration_tokens(&self) -> Used {
        match &self.engine {
            JobEngine::None => Vec::new(),
            JobEngine::Native(model) => model.texts.calibration.used.clone(),
            JobEngine::Outside(outside) => outside.texts.calibration_used(),
        }
    }

    /// The evaluation texts that have much in common with the calibration texts; none where another program
    /// runs the model.
    pub fn shared_texts(&self) -> Vec<Shared> {
        match &self.engine {
            JobEngine::Native(model) => model.texts.shared(),
            JobEngine::None | JobEngine::Outside(_) => Vec::new(),
        }
    }

    /// Adds the texts and the program that runs the model; `None` without one.
    pub(super) fn with_texts(&self, key: KeyBuilder) -> Option<KeyBuilder> {
        match &self.engine {
            JobEngine::None => None,
            JobEngine::Native(model) => Some(
                key.with("tokens", &model.texts.evaluation_bytes())
                    .with("calibration", &model.texts.calibration_bytes()),
            ),
            JobEngine::Outside(outside) => Some(outside.with_texts(key)),
        }
    }

    pub(super) fn work(&self) -> WorkDir {
        WorkDir::of(&self.options.directory)
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.options.scoring.settings
    }

    /// Figures for costs; none for a model without an engine.
    pub(super) fn numbers(&self) -> Result<Option<Numbers>> {
        let of = |model| Numbers::new(self.input, model, &self.options);
        self.model().map(of).transpose()
    }

    /// Sensitivities known from metadata: tensors, types and bytes, with a guess for the nats.
    pub(super) fn expected_scores(&self, imatrix: &Imatrix) -> Scores {
        let has_importance = |name: &str| imatrix.entries.contains_key(name);
        let settings = self.settings();
        sensitivity::guess(self.input, &has_importance, settings, &self.allowed())
    }

    /// Predicate for constraints: may this tensor have this type?
    pub(super) fn allowed(&self) -> impl Fn(&str, GgmlType) -> bool {
        |name, t| {
            let catalog = self.input.catalog();
            let tensor = catalog.tensor_named(name).map(|id| catalog.tensor(id));
            let row_len = tensor.map_or(0, |tensor| tensor.row_len());
            let role = catalog.role_named(name);
            self.options.constraints.allows(name, role, row_len, t)
        }
    }

    /// Path of a new importance matrix.
    pub(super) fn imatrix_file(&self) -> PathBuf {
        self.options.directory.join("imatrix.gguf")
    }
}

/// True for an embedding model, which predicts no tokens.
fn is_embedding(input: &Input<'_>, model: Option<Runnable<'_>>) -> bool {
    match model {
        Some(model) => !model.engine.has_output(),
        None => Hyper::new(input.metadata()).is_ok_and(|hyper| hyper.pooling.is_some()),
    }
}

/// Refuses what does not apply to embedding models.
fn refuse_for_embeddings(options: &Options, is_outside: bool) -> Result<()> {
    const NO_TOKENS: &str = "it predicts no tokens, whose probabilities that would compare";
    let files = options.files();
    let mut budgets = files.iter().flat_map(|files| &files.budgets);
    let is_kld = budgets.any(|budget| matches!(budget.budget, Budget::Kld(_)));
    let all = [
        (
            is_outside,
            "--engine llama.cpp=DIR",
            "llama-perplexity and llama-imatrix run models that predict tokens",
        ),
        (
            options.scoring.settings.measure == Measure::Sweep,
            "--score sweep",
            NO_TOKENS,
        ),
        (
            is_kld,
            "--kld",
            "it predicts no tokens; give a cosine distance (--cosine)",
        ),
        (
            files.is_some_and(|files| files.refine > 0),
            "--refine",
            NO_TOKENS,
        ),
        (
            files.is_some_and(|files| files.tune.is_some()),
            "--tune",
            "tuning trains by the KL divergence of predicted tokens",
        ),
    ];
    match all.into_iter().find(|(is_given, ..)| *is_given) {
        Some((_, option, reason)) => Err(Error::Embedding { option, reason }),
        None => Ok(()),
    }
}

/// Refuses a model with quantized matrices as a base, unless their types are those that checkpoints
/// are published in.
fn refuse_quantized(input: &Input<'_>, options: &Options) -> Result<()> {
    let is_refused = |t: GgmlType| t.is_quantized() && !PUBLISHED.contains(&t);
    let mut tensors = input.tensors.iter();
    let first = tensors.find(|tensor| is_refused(tensor.info.ggml_type));
    match first.filter(|_| !options.allow_requantize) {
        Some(first) => {
            let (quantized, matrices) = quantized_matrices(input);
            Err(Error::Quantized {
                quantized,
                matrices,
                example: format!("'{}' is {}", first.info.name, first.info.ggml_type),
            })
        }
        None => Ok(()),
    }
}

/// Requirements of the input Hessians for a model and its calibration text.
pub(super) fn hessian_needs(model: &Model<'_>) -> Result<Needs> {
    let calibration = model.texts.calibration()?;
    let text = [calibration.chunks(), calibration.mean_length()];
    Ok(Needs::of(model.engine, model.engine.has_output(), text))
}

/// A key of statistics, with the experts that see each token.
pub(super) fn shown_to_all(job: &Job<'_>, key: KeyBuilder) -> KeyBuilder {
    match job.options.all_experts {
        true => key.with("all experts", &[1]),
        false => key,
    }
}

/// Key of an importance matrix.
pub(super) fn imatrix_key(job: &Job<'_>, model: &Model<'_>) -> Result<Key> {
    let key = KeyBuilder::new("make: imatrix")
        .with_model(job.input)?
        .with("tokens", &model.texts.calibration_bytes());
    let key = shown_to_all(job, key);
    // Files written before the block was run lack its linears.
    let key = match model.engine.has_nextn() {
        true => key.with("block for a further token", &[1]),
        false => key,
    };
    Ok(key.key())
}

/// Memory of error feedback, beside weights and activations: the sums of a layer during collection,
/// those of gradients, or later the factors of the widest input and the longest output, in bytes.
pub fn rounding_bytes(engine: &Engine<'_>, context: usize) -> u64 {
    // Enough chunks to fill the samples.
    let text = [hessian::HELD_OUT * hessian::SAMPLE, context];
    let has_output = engine.has_output();
    let needs = Needs::of(engine, has_output, text);
    let catalog = engine.catalog();
    let linears = catalog.linears().iter();
    let linears = linears.filter(|linear| catalog.in_hessians(linear.id, has_output));
    let widest = linears
        .map(|linear| catalog.weight(linear.id).row_len())
        .max();
    let widest = widest.unwrap_or(0);
    let rows = gradient_rows(engine);
    // Half a square for each matrix of a layer.
    let sums =
        rows.iter().map(|rows| 2 * rows * rows).sum::<u64>() / (engine.hyper.layers as u64).max(1);
    let longest = rows.iter().copied().max().unwrap_or(0);
    // Target and errors of the matrix.
    let together = OutputFactor::working_bytes(longest) + 8 * longest * widest;
    needs
        .memory
        .max(sums)
        .max(InputStatistics::working_bytes(widest) + together)
}

/// Metadata key of the model's name.
pub(crate) const GENERAL_NAME: &str = "general.name";

/// The model's name, from its metadata or its file, made valid for file names.
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
    let allowed = |c: char| match c.is_alphanumeric() || "-_.".contains(c) {
        true => c,
        false => '-',
    };
    let name: String = name.trim().chars().map(allowed).collect();
    name.trim_matches(['.', '-']).to_owned()
}
