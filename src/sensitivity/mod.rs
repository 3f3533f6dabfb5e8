//! Sensitivities: for every tensor and each of its candidate types, bytes and predicted nats.
//!
//! ```text
//! candidates   quantizable tensors, each with its possible types
//! trace        forward pass over some chunks of text, with the input of every layer saved
//! backward     from labels sampled from the model itself, layer by layer towards the input
//! scores       each candidate's rounding errors against inputs and output gradients
//! ```
//!
//! The result is a `Scores`, the input of the solver in `plan`. After every layer of the backward
//! pass, a snapshot may be saved, as set by [`Resume`].

mod divergence;
mod nextn;
mod rows;
mod sampled;
mod saved;
mod scores;
pub(crate) mod sweep;
pub(crate) mod units;

use crate::format::imatrix::Imatrix;
use crate::format::types::GgmlType;
use crate::hessian;
use crate::input::{Input, Tensor};
use crate::model::Engine;
use crate::plan::presets::requires_imatrix;
use crate::progress::{Progress, Unit};
use crate::quant::Codec;
use crate::resume::Resume;
use crate::rounding::{self, Importance, InputHessians, Rounder, Stopped, Weights};
use divergence::OutputRows;
pub(crate) use divergence::gradient_rows;
pub(crate) use sampled::{SURVEY_POSITIONS, scored_rows};
use saved::{Costs, Nats};
pub(crate) use scores::BAND_ROWS;
use scores::Candidate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Errors of scoring.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Failure to run the model.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// Failure to read a file.
    #[error(transparent)]
    Format(#[from] crate::format::Error),
    /// A tensor of integers.
    #[error("tensor '{0}' holds no weights")]
    NoWeights(String),
    /// A score that is not finite.
    #[error(
        "tensor '{0}': its scores are not finite; its weights or their gradients are too large for f32. Use \
         --score imatrix, which needs no gradients"
    )]
    NotFinite(String),
    /// An importance matrix without any tensor of the model.
    #[error(
        "the importance matrix has none of this model's tensors (it has '{0}'); it belongs to another model, or \
         its names are not those of a GGUF"
    )]
    Foreign(String),
    /// An importance matrix with another number of values.
    #[error(
        "tensor '{tensor}': the importance matrix has {found} values, but {needed} are needed; it belongs to another model"
    )]
    Imatrix {
        /// The tensor.
        tensor: String,
        /// Number of values in it.
        found: usize,
        /// Number of values needed.
        needed: usize,
    },
}

impl Error {
    /// True if a retry would fail again.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Error::Model(error) => error.is_final(),
            Error::Format(_) => false,
            Error::NoWeights(_)
            | Error::NotFinite(_)
            | Error::Foreign(_)
            | Error::Imatrix { .. } => true,
        }
    }
}

impl From<Stopped> for Error {
    fn from(_: Stopped) -> Error {
        crate::model::Error::Cancelled.into()
    }
}

impl From<rounding::Error> for Error {
    fn from(error: rounding::Error) -> Error {
        match error {
            rounding::Error::Format(error) => error.into(),
            rounding::Error::Stopped(stopped) => stopped.into(),
            rounding::Error::BadInput { tensor, .. } | rounding::Error::Overflow { tensor, .. } => {
                Error::NotFinite(tensor)
            }
        }
    }
}

/// Result type of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Measure of a type's cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// Sensitivity: the KL divergence caused by the type, to second order, in nats per token.
    Divergence,
    /// Measured KL divergence of the model with only this tensor in this type, in nats per token.
    Sweep,
    /// Squared error of the weights relative to their squares, both weighted by importance: not
    /// nats, but correlated with them.
    Imatrix,
    /// The same, times factors that were fitted to measured divergences of some files, in nats.
    Fitted,
}

/// Settings of scoring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The measure of a type's cost.
    pub measure: Measure,
    /// Candidate types beside a tensor's own.
    pub types: Vec<GgmlType>,
    /// Number of sampled positions over all chunks; 0 means all. Gradients flow through all
    /// positions, and a sweep uses all.
    pub positions: usize,
    /// Rows of each matrix to be rounded, about, with probabilities in proportion to their expected
    /// costs; 0 means all. Of a tensor of experts, four times as many of all experts together.
    #[serde(default)]
    pub rows: usize,
    /// Sampled labels per position.
    pub draws: usize,
    /// Seed for labels and positions.
    pub seed: u64,
}

impl Settings {
    /// The usual number of rows: the standard error is about 3%, below that of the positions.
    pub const ROWS: usize = 256;
}

/// A candidate type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The type.
    #[serde(rename = "type")]
    pub ggml_type: GgmlType,
    /// Size of the tensor in this type, in bytes.
    pub bytes: u64,
    /// Predicted cost in nats per token.
    pub nats: f64,
    /// Cost of the reference's rounding, for types rounded with error feedback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain_nats: Option<f64>,
}

impl Choice {
    /// The cost of the reference's rounding.
    pub(crate) fn plain(&self) -> f64 {
        self.plain_nats.unwrap_or(self.nats)
    }
}

/// A tensor with several candidate types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scored {
    /// Its name.
    pub name: String,
    /// Its dimensions, row length first.
    pub dims: Vec<u64>,
    /// Number of weights.
    pub weights: u64,
    /// Type in the scored model.
    pub base_type: GgmlType,
    /// Candidate types, including its own if the quantizer may keep it.
    pub choices: Vec<Choice>,
    /// Standard error of the nats due to the sampling of rows, relative to them, averaged over the
    /// types; 0 if all rows were rounded.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub standard_error: f64,
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

/// Scores of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scores {
    /// In the order of the model.
    pub tensors: Vec<Scored>,
    /// Tensors without activations on this text, whose sensitivities are unknown: their only choice
    /// is the most precise type.
    #[serde(default, rename = "never_met")]
    pub unread: Vec<String>,
    /// Measure of the costs.
    pub measure: Measure,
    /// Number of chunks.
    pub sequences: usize,
    /// Number of sampled positions.
    pub positions: usize,
}

/// Type of tensors without statistics in multi-token prediction blocks: a draft with too few bits
/// proposes tokens in vain.
pub(crate) const NEXTN_TYPE: GgmlType = GgmlType::Q8_0;

/// Predicate on the name of a tensor and a type: may the tensor take the type?
pub(crate) type Allowed<'a> = &'a dyn Fn(&str, GgmlType) -> bool;

/// Weights of a model, and the statistics for rounding them.
#[derive(Clone, Copy)]
pub(crate) struct ModelKnowledge<'k> {
    /// The model.
    pub input: &'k Input<'k>,
    /// Importance matrix.
    pub imatrix: &'k Imatrix,
    /// Input Hessians, for error feedback.
    pub hessians: Option<&'k InputHessians>,
}

/// A run of a model over a text.
#[derive(Clone, Copy)]
pub struct Run<'r> {
    /// The model's engine.
    pub engine: &'r Engine<'r>,
    /// Chunks of tokens of equal length.
    pub chunks: &'r [Vec<u32>],
    /// Settings of scoring.
    pub settings: &'r Settings,
    /// Output Hessians to sum during the run.
    pub output_hessians: Option<&'r hessian::Job>,
    /// Snapshot settings; an interrupted run resumes after its last layer, with the same numbers.
    pub resume: Option<&'r Resume>,
}

/// Scores every tensor of a model on chunks of text. With input Hessians, types are scored with
/// error feedback.
///
/// # Errors
/// Non-finite numbers, an importance matrix of another model, a model that cannot be run.
pub(crate) fn score(
    run: &Run<'_>,
    knowledge: &ModelKnowledge<'_>,
    allowed: Allowed<'_>,
    progress: &dyn Progress,
) -> Result<Scores> {
    let (input, settings) = (knowledge.input, run.settings);
    if settings.measure == Measure::Imatrix {
        return weighted(knowledge, settings, allowed, run.engine.pool(), progress);
    }
    let importance = importance(input, knowledge.imatrix)?;
    let candidates = candidates(input, &importance, knowledge.hessians, settings, allowed);
    let (mut nats, positions) = match settings.measure {
        Measure::Sweep => sweep::sweep(run, &candidates, progress)?,
        _ => divergence::measured(run, &candidates, progress)?,
    };
    nextn::estimate(&mut nats, &candidates, input, run.engine.pool(), progress)?;
    Ok(Scores {
        sequences: run.chunks.len(),
        positions,
        ..collected(input, &candidates, &nats, settings.measure, allowed)
    })
}

/// Sums the output Hessians of a run, without scores.
///
/// # Errors
/// As `score`.
pub fn sum_output_hessians(run: &Run<'_>, progress: &dyn Progress) -> Result<()> {
    divergence::measured(run, &BTreeMap::new(), progress).map(drop)
}

/// Scores every tensor by the importance-weighted error of its weights, without running the model.
///
/// # Errors
/// An importance matrix of another model.
pub(crate) fn weighted(
    knowledge: &ModelKnowledge<'_>,
    settings: &Settings,
    allowed: Allowed<'_>,
    pool: &rayon::ThreadPool,
    progress: &dyn Progress,
) -> Result<Scores> {
    let input = knowledge.input;
    let importance = importance(input, knowledge.imatrix)?;
    let candidates = candidates(input, &importance, None, settings, allowed);
    let known = |(name, _): &(&&str, &Candidate<'_>)| {
        importance.contains_key(**name) || !input.is_nextn(name)
    };
    let mut errors = Nats::new();
    progress.begin(candidates.len() as u64, Unit::Steps);
    for (name, candidate) in candidates.iter().filter(known) {
        progress.at(name);
        let of_types = pool.install(|| candidate.weighted_error(progress))?;
        if of_types.iter().any(|x| !x.is_finite()) {
            return Err(Error::NotFinite((*name).to_owned()));
        }
        errors.insert((*name).to_owned(), Costs::of(of_types));
        progress.advance(1);
    }
    Ok(collected(
        input,
        &candidates,
        &errors,
        Measure::Imatrix,
        allowed,
    ))
}

/// Tensors and types as `score` returns them, from metadata alone; the nats are a guess that falls
/// by a factor of 4 per bit. `has_importance` is true for tensors with future importance weights.
pub(crate) fn guess(
    input: &Input<'_>,
    has_importance: &dyn Fn(&str) -> bool,
    settings: &Settings,
    allowed: Allowed<'_>,
) -> Scores {
    let with: BTreeMap<String, Importance> = input
        .tensors
        .iter()
        .filter(|t| has_importance(&t.info.name))
        .map(|t| (t.info.name.to_string(), Importance::of_means(Vec::new())))
        .collect();
    let candidates = candidates(input, &with, None, settings, allowed);
    let of = |(name, candidate): (&&str, &Candidate<'_>)| {
        let weights = candidate.tensor().info.shape.elements() as f64;
        let of_type = |rounder: &Rounder| weights * 0.25f64.powf(rounder.ggml_type().bpw());
        (
            (*name).to_owned(),
            Costs::of(candidate.types.iter().map(of_type).collect()),
        )
    };
    // Blocks for further tokens are estimated from their weights and importance.
    let known = |(name, _): &(&&str, &Candidate<'_>)| has_importance(name) || !input.is_nextn(name);
    let nats: Nats = candidates.iter().filter(known).map(of).collect();
    collected(input, &candidates, &nats, settings.measure, allowed)
}

/// Tensors with several candidate types.
fn candidates<'a>(
    input: &'a Input<'_>,
    importance: &'a BTreeMap<String, Importance>,
    hessians: Option<&'a InputHessians>,
    settings: &Settings,
    allowed: Allowed<'_>,
) -> BTreeMap<&'a str, Candidate<'a>> {
    let of = |tensor: &'a Tensor<'_>| {
        let (info, name) = (&tensor.info, &*tensor.info.name);
        let facts = input.entry(tensor).facts;
        if !facts.quantizable || Codec::of(info.ggml_type).is_none() {
            return None;
        }
        let importance = importance.get(name);
        let unwise = |t| requires_imatrix(facts.role, t, None);
        let mut types = scores::possible(&settings.types, tensor, importance.is_some(), unwise);
        types.retain(|rounder| {
            let t = rounder.ggml_type();
            t != info.ggml_type && allowed(name, t) && input.loads_as(tensor, t)
        });
        let weights = Weights {
            reader: input,
            tensor,
            name,
            importance,
        };
        Some((
            name,
            Candidate {
                weights,
                types,
                hessians,
            },
        ))
    };
    input.tensors.iter().filter_map(of).collect()
}

/// Scores from nats by tensor.
fn collected(
    input: &Input<'_>,
    candidates: &BTreeMap<&str, Candidate<'_>>,
    nats: &Nats,
    measure: Measure,
    allowed: Allowed<'_>,
) -> Scores {
    let mut scores = Scores {
        tensors: Vec::new(),
        unread: Vec::new(),
        measure,
        sequences: 0,
        positions: 0,
    };
    for tensor in &input.tensors {
        let info = &tensor.info;
        let Some(candidate) = candidates.get(&*info.name) else {
            continue;
        };
        let nats = nats.get(&*info.name);
        if nats.is_none() {
            scores.unread.push(info.name.to_string());
        }
        let is_nextn = input.is_nextn(&info.name);
        let only = |others: &[GgmlType]| match nextn_type(others, info.ggml_type) {
            Some(fine) if is_nextn => fine,
            _ => only_choice(&info.name, info.ggml_type, others, allowed),
        };
        scores.tensors.push(scored(tensor, candidate, nats, only));
    }
    scores
}

fn scored(
    tensor: &Tensor<'_>,
    candidate: &Candidate<'_>,
    costs: Option<&Costs>,
    only: impl Fn(&[GgmlType]) -> GgmlType,
) -> Scored {
    let info = &tensor.info;
    let bytes = |t: GgmlType| t.row_bytes(info.shape.row_len()).unwrap_or(0) * info.shape.rows();
    let choice = |ggml_type, bytes, nats| Choice {
        ggml_type,
        bytes,
        nats,
        plain_nats: None,
    };
    let mut choices = vec![choice(info.ggml_type, info.bytes(), 0.0)];
    if let Some(costs) = costs {
        for (i, (rounder, nats)) in candidate.types.iter().zip(&costs.nats).enumerate() {
            let ggml_type = rounder.ggml_type();
            let choice = choice(ggml_type, bytes(ggml_type), *nats);
            choices.push(Choice {
                plain_nats: costs.plain.get(i).copied(),
                ..choice
            });
        }
    }
    if costs.is_none() {
        let others: Vec<_> = candidate.types.iter().map(Rounder::ggml_type).collect();
        let only = only(&others);
        choices = vec![choice(only, bytes(only), 0.0)];
    }
    Scored {
        name: info.name.to_string(),
        dims: info.shape.dims().to_vec(),
        weights: info.shape.elements(),
        base_type: info.ggml_type,
        choices,
        standard_error: costs.map_or(0.0, Costs::relative_error),
    }
}

impl Scores {
    /// True if these scores have every tensor and type of a [`guess`] for the `allowed` types.
    pub(crate) fn cover(&self, guess: &Scores, allowed: Allowed<'_>) -> bool {
        let covers = |guessed: &Scored| {
            let Some(scored) = self.tensors.iter().find(|t| t.name == guessed.name) else {
                return false;
            };
            let types = |scored: &Scored| scored.choices.iter().map(|c| c.ggml_type).collect();
            let (own, needed): (Vec<_>, Vec<_>) = (types(scored), types(guessed));
            if !self.unread.contains(&scored.name) {
                return needed.iter().all(|t| own.contains(t));
            }
            if guess.unread.contains(&guessed.name) {
                return own == needed;
            }
            let others = needed.into_iter().filter(|t| *t != guessed.base_type);
            let others: Vec<_> = others.collect();
            own == [only_choice(
                &guessed.name,
                guessed.base_type,
                &others,
                allowed,
            )]
        };
        guess.tensors.iter().all(covers)
    }
}

/// Type of a tensor of unknown sensitivity: its own, otherwise the most precise allowed one.
fn only_choice(name: &str, own: GgmlType, others: &[GgmlType], allowed: Allowed<'_>) -> GgmlType {
    let finest = others.iter().max_by(|a, b| a.bpw().total_cmp(&b.bpw()));
    let finest = finest.filter(|_| !allowed(name, own));
    finest.copied().unwrap_or(own)
}

/// The coarsest type of at least the precision of [`NEXTN_TYPE`] that is coarser than the tensor's
/// own.
fn nextn_type(types: &[GgmlType], own: GgmlType) -> Option<GgmlType> {
    let precision = NEXTN_TYPE.bpw()..own.bpw();
    let fine = types.iter().filter(|t| precision.contains(&t.bpw()));
    fine.min_by(|a, b| a.bpw().total_cmp(&b.bpw())).copied()
}

/// Importance weights of all tensors in an importance matrix.
///
/// # Errors
/// An importance matrix of another model.
pub(crate) fn importance(
    input: &Input<'_>,
    imatrix: &Imatrix,
) -> Result<BTreeMap<String, Importance>> {
    let mut found = BTreeMap::new();
    for tensor in &input.tensors {
        let Some(entry) = imatrix.entries.get(&*tensor.info.name) else {
            continue;
        };
        let needed = tensor.info.shape.row_len() as usize * tensor.matrices();
        if entry.sums.len() != needed {
            return Err(Error::Imatrix {
                tensor: tensor.info.name.to_string(),
                found: entry.sums.len(),
                needed,
            });
        }
        found.insert(tensor.info.name.to_string(), Importance::new(entry));
    }
    match imatrix.entries.keys().next() {
        Some(name) if found.is_empty() => Err(Error::Foreign(name.clone())),
        _ => Ok(found),
    }
}
