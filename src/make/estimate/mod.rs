//! What a run would do: counted from metadata, timed by trying a product and a few rows of every
//! type on this machine.

mod count;
mod fed;
mod machine;

use super::choice::Choices;
use super::{
    IMATRIX, Job, Kept, Opened, Result, check, files, guess, imatrix_key, proof, scores_key,
};
use crate::format::imatrix::Imatrix;
use crate::input::Input;
use crate::plan::frontier::Budget;
use crate::sensitivity::{Measure, Scores};
use count::Count;
use fed::Fed;
use machine::Machine;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Tensors that have a choice.
    pub tensors: usize,
    /// Their matrices: each expert counts.
    pub matrices: u64,
    /// Types to choose from, over all tensors.
    pub types: usize,
    /// Pairs of a matrix and a type that are tried.
    pub trials: u64,
    /// Tokens of the calibration text: all of them go into the importance matrix and the
    /// covariances.
    pub calibration_tokens: u64,
    /// Those of them that types are judged on.
    pub scoring_tokens: u64,
    /// Tokens of the evaluation text.
    pub evaluation_tokens: u64,
    /// What this machine does in a matrix product, in floating-point operations per second.
    pub flops_per_second: f64,
    /// In their order.
    pub stages: Vec<Stage>,
    /// What the budgets come to, as far as that can be known before types are judged: bytes of the
    /// file.
    pub files: Vec<(String, Option<u64>)>,
    /// Bytes of the files that the budgets come to. A budget in nats counts as the largest file.
    pub files_bytes: u64,
    /// Bytes of the importance matrix.
    pub imatrix_bytes: u64,
    /// Bytes of the covariances that errors are fed back with, at most; they stay in the directory
    /// for later runs.
    pub covariance_bytes: u64,
    /// Bytes of what is kept for the case that the run is killed, at the worst moment.
    pub work_bytes: u64,
    /// Bytes of activations that go to a temporary file because of the limit on memory.
    pub temporary_bytes: u64,
    /// Bytes of memory at the worst moment, mapped files not counted.
    pub memory_bytes: u64,
}

/// A stage of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Its name, as in the report.
    pub name: &'static str,
    /// Floating-point operations of its matrix products.
    pub flops: f64,
    /// How long it would take; 0 if it is done.
    pub seconds: f64,
    /// Whether an earlier run has left its result.
    pub done: bool,
}

/// Estimates a run, and writes nothing.
///
/// # Errors
/// Whatever would be refused before anything is measured.
pub fn estimate(input: &Input<'_>, opened: Option<Opened<'_>>, job: &Job) -> Result<Estimate> {
    let windows = check(input, opened, job)?;
    let kept = Kept::look(&job.directory);
    let texts = windows.as_ref();
    let own = job.directory.join(IMATRIX);
    let imatrix_path = match (&job.imatrix, texts) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(windows)) => {
            let there = own.exists() && kept.has("imatrix", &imatrix_key(input, windows)?);
            there.then_some(own)
        }
        (None, None) => None,
    };
    let fed = opened.zip(texts).filter(|_| job.rounding.has_feedback());
    let fed = fed
        .map(|(model, windows)| Fed::new(model, job, windows, &kept))
        .transpose()?;
    let covariance = fed.as_ref().map(|fed| fed.key);
    let imatrix = imatrix_path
        .as_ref()
        .map(|path| Imatrix::read(path))
        .transpose()?;
    let expected = guess(input, job, imatrix.as_ref());
    let judged = job.settings.measure == Measure::Divergence;
    let chunks = match texts {
        Some(windows) if judged => windows.score_chunks(job.score_chunks)?,
        _ => Vec::new(),
    };
    let gradients = opened
        .map(|model| super::gradient_job(model, job, &chunks, &kept))
        .transpose()?
        .flatten();
    let gradients = gradients.map(|of| of.key);
    let gradient_rows = match opened.filter(|_| gradients.is_some()) {
        Some(model) => crate::sensitivity::gradient_rows(model.engine),
        None => Vec::new(),
    };
    let key = imatrix
        .as_ref()
        .map(|imatrix| scores_key(input, job, &chunks, imatrix, covariance.as_ref()))
        .transpose()?;
    let allowed = super::allowed(input, job);
    let scores = key.and_then(|key| kept.read::<Scores>("scores", &key));
    let scores = scores.filter(|scores| scores.cover(&expected, &allowed));
    let known =
        |(_, budget): &&(String, Budget)| scores.is_some() || !matches!(budget, Budget::Kld(_));
    let budgets: Vec<_> = job.budgets.iter().filter(known).cloned().collect();
    let model = opened.filter(|_| texts.is_some());
    let choices = scores.as_ref().unwrap_or(&expected);
    let variants = if scores.is_some() { job.variants } else { 0 };
    let choices = Choices::new(
        input,
        model,
        job,
        (&budgets, variants),
        choices,
        imatrix_path.as_deref(),
    )?;
    let (written, measured) = match (&scores, &imatrix_path) {
        (Some(_), Some(path)) => {
            let written =
                files::written(input, job, &choices, (path, [covariance, gradients]), &kept)?;
            let there: Vec<_> = choices
                .chosen
                .iter()
                .map(|c| c.path.clone())
                .filter(|path| path.exists())
                .collect();
            let measured = match texts {
                Some(windows) if written == choices.chosen.len() => {
                    proof::known(input, windows, &there, &kept)?
                }
                _ => 0,
            };
            (written, measured)
        }
        _ => (0, 0),
    };

    let fed = fed.as_ref();
    let count = Count::new(
        input,
        (model, fed),
        job,
        &expected,
        windows.as_ref(),
        chunks.len(),
    );
    let machine = Machine::new(input, &expected, job.threads, fed.is_some())?;
    let count_of_files = job.budgets.len() + job.variants;
    let unknown = count_of_files - budgets.len() - variants;
    let all_written = scores.is_some() && written == choices.chosen.len();
    let mut stages = Vec::new();
    let mut add = |name, flops: f64, seconds: f64, done: bool| {
        stages.push(Stage {
            name,
            flops,
            seconds: if done {
                0.0
            } else {
                machine.products(flops) + seconds
            },
            done,
        });
    };
    if job.imatrix.is_none() || fed.is_some() {
        add(
            "importance matrix",
            count.imatrix(),
            0.0,
            imatrix.is_some() && fed.is_none_or(|fed| fed.there),
        );
    }
    add(
        "scores",
        count.proved_trials()
            + count.gradients(&gradient_rows)
            + if judged { count.scores(&expected) } else { 0.0 },
        machine.trials(&count, &expected) + machine.factors(count.trial_factors()),
        scores.is_some(),
    );
    if !job.frontier_only {
        let rounding = Writing::new(input, fed, &choices, &count, &machine);
        // Files whose recipe is not known yet are taken for the mean of the others.
        let more = 1.0 + unknown as f64 / choices.chosen.len().max(1) as f64;
        let passes = if job.rounding.is_sequential() {
            choices.chosen.len() as f64 * count.propagation()
        } else {
            0.0
        };
        add(
            "files",
            (rounding.flops + passes) * more,
            rounding.seconds * more,
            all_written,
        );
        if texts.is_some() {
            add(
                "proof",
                count.proof(count_of_files),
                0.0,
                all_written && measured == choices.chosen.len(),
            );
        }
    }
    let file_bytes = |text: &String| {
        choices
            .chosen
            .iter()
            .find(|c| c.budget == *text)
            .map(|c| c.file_bytes)
    };
    let largest = choices.header_bytes + choices.frontier.largest().bytes;
    let mut shown: Vec<_> = job
        .budgets
        .iter()
        .map(|(text, _)| (text.clone(), file_bytes(text)))
        .collect();
    let of_variants = choices
        .chosen
        .iter()
        .filter(|c| !job.budgets.iter().any(|(text, _)| *text == c.budget));
    shown.extend(of_variants.map(|c| (c.budget.clone(), Some(c.file_bytes))));
    if variants < job.variants {
        shown.push((format!("--variants {}", job.variants), None));
    }
    let memory = count.memory(job, count_of_files);
    Ok(Estimate {
        tensors: expected.tensors.len(),
        matrices: count.trials.iter().map(|t| t.matrices).sum(),
        types: count
            .trials
            .iter()
            .flat_map(|t| &t.types)
            .collect::<BTreeSet<_>>()
            .len(),
        trials: count
            .trials
            .iter()
            .map(|t| t.matrices * t.types.len() as u64)
            .sum(),
        calibration_tokens: count.calibration as u64,
        scoring_tokens: count.scoring as u64,
        evaluation_tokens: count.evaluation as u64,
        flops_per_second: machine.flops_per_second,
        stages,
        files: shown,
        files_bytes: choices.chosen.iter().map(|c| c.file_bytes).sum::<u64>()
            + unknown as u64 * largest,
        imatrix_bytes: count.imatrix_bytes,
        covariance_bytes: fed.map_or(0, |fed| fed.needs.files)
            + gradient_rows
                .iter()
                .map(|rows| crate::hessian::gradient_bytes(*rows))
                .sum::<u64>(),
        // One while it is written beside the one before.
        work_bytes: 2 * count.state_bytes(),
        temporary_bytes: memory.1,
        memory_bytes: memory.0,
    })
}

/// What writing files takes.
#[derive(Default)]
struct Writing {
    /// Operations of matrix products.
    flops: f64,
    /// Seconds of all else.
    seconds: f64,
}

impl Writing {
    /// All files of which recipes are known: from one pass over the model, so that they share
    /// factors.
    fn new(
        input: &Input<'_>,
        fed: Option<&Fed>,
        choices: &Choices,
        count: &Count<'_>,
        machine: &Machine,
    ) -> Writing {
        let recipes = choices.chosen.iter().flat_map(|chosen| &chosen.recipe);
        let mut types: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        recipes.for_each(|(name, t)| types.entry(name).or_default().push(*t));
        let (mut writing, mut factored) = (Writing::default(), Vec::new());
        for tensor in &input.tensors {
            let wanted = types.remove(&*tensor.info.name).unwrap_or_default();
            let wanted: Vec<_> = wanted
                .into_iter()
                .filter(|t| *t != tensor.info.ggml_type)
                .collect();
            let is_fed = fed.is_some_and(|fed| fed.has(tensor));
            writing.seconds += wanted
                .iter()
                .map(|t| machine.tensor(tensor, *t, is_fed))
                .sum::<f64>();
            writing.flops += count.proved_in(tensor, &wanted);
            if is_fed && wanted.iter().any(|t| count::takes_feedback(*t)) {
                factored.push(tensor);
            }
        }
        writing.seconds += fed.map_or(0.0, |fed| {
            machine.factors(fed.factors(factored.into_iter()))
        });
        writing
    }
}
