//! What precision is worth: for every tensor and every type it may take, bytes and predicted nats.
//!
//! ```text
//! candidates   the tensors that may be quantized, and the types that fit each
//! trace        a forward pass over some chunks of text, every layer's input kept
//! backward     from labels drawn from the model itself, layer by layer towards the input
//! scores       each candidate's quantized bytes against what its matrix met on the way
//! ```
//!
//! What comes out is a [`Scores`]: numbers for the solver in `plan`.

mod scores;
pub(crate) mod sweep;

use crate::format::imatrix::Imatrix;
use crate::format::types::GgmlType;
use crate::input::{Input, Tensor};
use crate::model::backward::{Labels, mixed};
use crate::model::{Engine, Head, LOGIT_ROWS};
use crate::plan::presets::requires_imatrix;
use crate::plan::role::{Role, may_be_quantized};
use crate::progress::{Progress, Unit};
use crate::quant::Codec;
use crate::resume::Resume;
use rayon::prelude::*;
use scores::Candidate;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why nothing could be scored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be run.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// A file could not be read.
    #[error(transparent)]
    Convert(#[from] crate::convert::Error),
    /// A tensor of integers.
    #[error("tensor '{0}' holds no weights")]
    NoWeights(String),
    /// A score is no number.
    #[error(
        "tensor '{0}': its scores are not finite; its weights or their gradients are too large for f32. Choose types by \
         --score imatrix, which needs no gradients"
    )]
    NotFinite(String),
    /// The importance matrix does not fit.
    #[error(
        "tensor '{tensor}': the importance matrix has {found} values and {needed} are needed; it is of another model"
    )]
    Imatrix {
        /// The tensor.
        tensor: String,
        /// Values that are there.
        found: usize,
        /// Values that it takes.
        needed: usize,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// By what the cost of a type is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// The KL divergence that it causes downstream, to second order, in nats per token.
    Divergence,
    /// The KL divergence that is measured with this tensor alone in that type, in nats per token.
    Sweep,
    /// The squared error of the weights, times the importance weights: no more than relative numbers.
    Imatrix,
}

/// How scores are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// By what a type is judged.
    pub measure: Measure,
    /// The types that are tried, beside the one that a tensor has.
    pub types: Vec<GgmlType>,
    /// Positions whose inputs and gradients are kept, over all chunks; 0 for all. Gradients flow through all.
    /// A sweep takes all.
    pub positions: usize,
    /// Labels that are drawn for each position.
    pub draws: usize,
    /// Chooses labels and positions.
    pub seed: u64,
}

/// A type that a tensor may take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The type.
    #[serde(rename = "type")]
    pub ggml_type: GgmlType,
    /// Bytes of the tensor in that type.
    pub bytes: u64,
    /// What it is predicted to cost, in nats per token.
    pub nats: f64,
}

/// A tensor that may take several types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Its name.
    pub name: String,
    /// Its dimensions, row length first.
    pub dims: Vec<u64>,
    /// How many weights it has.
    pub weights: u64,
    /// Its type in the model that was scored.
    pub base_type: GgmlType,
    /// What it may become; its own type is among them if the quantizer may leave it.
    pub choices: Vec<Choice>,
}

/// The scores of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// In the order of the model.
    pub tensors: Vec<Scored>,
    /// Bytes of the tensors that stay what they are.
    pub fixed_bytes: u64,
    /// Weights of those.
    pub fixed_weights: u64,
    /// By what they were judged.
    pub measure: Measure,
    /// Chunks that were looked at.
    pub sequences: usize,
    /// Positions that were looked at in them.
    pub positions: usize,
}

/// Scores every tensor of a model on chunks of text, all of one length.
///
/// # Errors
/// Anything that is not finite, an importance matrix of another model, a model that cannot be run.
pub fn score(
    input: &Input<'_>,
    engine: &Engine<'_>,
    imatrix: &Imatrix,
    chunks: &[Vec<u32>],
    settings: &Settings,
    allowed: &dyn Fn(&str, GgmlType) -> bool,
    _resume: Option<&Resume>,
    progress: &dyn Progress,
) -> Result<Scores> {
    let importance = importance(input, imatrix)?;
    let architecture = &*engine.hyper.architecture;
    let mut candidates = BTreeMap::new();
    let (mut fixed_bytes, mut fixed_weights) = (0, 0);
    for tensor in &input.tensors {
        let info = &tensor.info;
        let name = &*info.name;
        let dims = info.shape.four();
        let dimensions = dims.iter().rposition(|d| *d > 1).unwrap_or(0) + 1;
        if !may_be_quantized(architecture, name, dimensions, true) || Codec::of(info.ggml_type).is_none() {
            (fixed_bytes, fixed_weights) = (fixed_bytes + info.bytes(), fixed_weights + info.shape.elements());
            continue;
        }
        let importance = importance.get(name).map(Vec::as_slice);
        let unwise = |t| requires_imatrix(Role::of(name), t, None);
        let mut types = scores::possible(&settings.types, tensor, importance.is_some(), unwise);
        types.retain(|codec| codec.ggml_type != info.ggml_type && allowed(name, codec.ggml_type));
        candidates.insert(name, Candidate { tensor, importance, types });
    }
    let mut nats: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let positions = match settings.measure {
        Measure::Divergence => divergence(input, engine, &candidates, chunks, settings, progress, &mut nats)?,
        Measure::Sweep => sweep::sweep(input, engine, &candidates, chunks, progress, &mut nats)?,
        Measure::Imatrix => {
            progress.begin(candidates.len() as u64, Unit::Steps);
            for (name, candidate) in &candidates {
                progress.at(name);
                let errors = engine.pool().install(|| candidate.weighted_error(input, progress))?;
                nats.insert((*name).to_owned(), errors);
                progress.advance(1);
            }
            0
        }
    };
    let tensors = input.tensors.iter().filter_map(|tensor| {
        let candidate = candidates.get(&*tensor.info.name)?;
        Some(scored(tensor, candidate, nats.get(&*tensor.info.name)))
    });
    let (measure, sequences) = (settings.measure, chunks.len());
    Ok(Scores { tensors: tensors.collect(), fixed_bytes, fixed_weights, measure, sequences, positions })
}

fn scored(tensor: &Tensor<'_>, candidate: &Candidate<'_>, nats: Option<&Vec<f64>>) -> Scored {
    let info = &tensor.info;
    let bytes = |t: GgmlType| t.row_bytes(info.shape.row_len()).unwrap_or(0) * info.shape.rows();
    let mut choices = vec![Choice { ggml_type: info.ggml_type, bytes: info.bytes(), nats: 0.0 }];
    for (codec, nats) in candidate.types.iter().zip(nats.into_iter().flatten()) {
        choices.push(Choice { ggml_type: codec.ggml_type, bytes: bytes(codec.ggml_type), nats: *nats });
    }
    Scored {
        name: info.name.to_string(),
        dims: info.shape.dims().to_vec(),
        weights: info.shape.elements(),
        base_type: info.ggml_type,
        choices,
    }
}

/// The importance weights of every tensor that has some.
fn importance(input: &Input<'_>, imatrix: &Imatrix) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut found = BTreeMap::new();
    for tensor in &input.tensors {
        let Some(entry) = imatrix.entries.get(&*tensor.info.name) else { continue };
        let [columns, _, matrices, _] = tensor.info.shape.four();
        let needed = (columns * matrices) as usize;
        if entry.sums.len() != needed {
            return Err(Error::Imatrix { tensor: tensor.info.name.to_string(), found: entry.sums.len(), needed });
        }
        found.insert(tensor.info.name.to_string(), entry.means());
    }
    Ok(found)
}

/// The mean divergence per token, for every candidate; returns the positions that were looked at.
fn divergence(
    input: &Input<'_>,
    engine: &Engine<'_>,
    candidates: &BTreeMap<&str, Candidate<'_>>,
    chunks: &[Vec<u32>],
    settings: &Settings,
    progress: &dyn Progress,
    nats: &mut BTreeMap<String, Vec<f64>>,
) -> Result<usize> {
    let trace = engine.trace(chunks, None, progress)?;
    let sample = sample(chunks, settings);
    let positions: usize = sample.iter().map(Vec::len).sum();
    let mut add = |name: &str, sums: &[f64], per: usize| {
        let mean = nats.entry(name.to_owned()).or_insert_with(|| vec![0.0; sums.len()]);
        mean.iter_mut().zip(sums).for_each(|(mean, sum)| *mean += sum / per as f64);
    };
    if let Some(candidate) = candidates.get(engine.output_name()) {
        progress.at("output");
        let head = engine.head()?;
        let (rows, log_z) = output_rows(engine, &head, &trace, &sample)?;
        let sums = engine.pool().install(|| candidate.of_output(input, &head, (&rows, &log_z), progress))?;
        add(engine.output_name(), &sums, positions);
    }
    let labels = Labels { draws: settings.draws, seed: settings.seed };
    let mut backward = engine.backward(&trace, labels, &sample, progress)?;
    engine.pool().install(|| {
        scores::of_layers(input, &mut backward, candidates, progress, |_, sums| {
            sums.iter().for_each(|(name, sums)| add(name, sums, positions));
            Ok(())
        })
    })?;
    const EMBEDDING: &str = "token_embd.weight";
    if let Some(candidate) = candidates.get(EMBEDDING) {
        progress.at("embedding");
        let embedded = backward.embeddings()?;
        let tokens = embedded.iter().map(|e| e.tokens.len()).sum();
        let sums = engine.pool().install(|| candidate.of_embedding(input, &embedded, progress))?;
        add(EMBEDDING, &sums, tokens);
    }
    Ok(positions)
}

/// Positions of each chunk that are looked at, rising: the same number in all, drawn without regard to what is there.
fn sample(chunks: &[Vec<u32>], settings: &Settings) -> Vec<Vec<u32>> {
    let each = settings.positions.div_ceil(chunks.len().max(1));
    let one = |(chunk, tokens): (usize, &Vec<u32>)| {
        let mut all: Vec<u32> = (0..tokens.len() as u32).collect();
        if settings.positions > 0 && each < all.len() {
            let key = |p: &u32| mixed(mixed(settings.seed ^ chunk as u64) ^ u64::from(*p));
            all.sort_unstable_by_key(key);
            all.truncate(each);
            all.sort_unstable();
        }
        all
    };
    chunks.iter().enumerate().map(one).collect()
}

/// What the output matrix is multiplied by at the sampled positions, and the logarithms of the sums of exponentials.
fn output_rows(
    engine: &Engine<'_>,
    head: &Head<'_>,
    trace: &crate::model::backward::Trace<'_>,
    sample: &[Vec<u32>],
) -> Result<(Vec<f32>, Vec<f64>)> {
    let one = |(chunk, positions): (usize, &Vec<u32>)| -> crate::model::Result<(Vec<f32>, Vec<f64>)> {
        let hidden = trace.output(engine, chunk)?;
        let wanted = candle_core::Tensor::from_slice(positions, positions.len(), hidden.device())?;
        let hidden = hidden.index_select(&wanted, 0)?;
        let rows = head.normalized(&hidden)?.flatten_all()?.to_vec1()?;
        let mut log_z = Vec::with_capacity(positions.len());
        for start in (0..positions.len()).step_by(LOGIT_ROWS) {
            let block = hidden.narrow(0, start, LOGIT_ROWS.min(positions.len() - start))?;
            for logits in head.logits(&block, chunk, None)?.to_vec2::<f32>()? {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
                log_z.push(f64::from(max) + sum.ln());
            }
        }
        Ok((rows, log_z))
    };
    let parts: crate::model::Result<Vec<_>> =
        engine.pool().install(|| sample.par_iter().enumerate().map(one).collect());
    let (rows, log_z): (Vec<_>, Vec<_>) = parts?.into_iter().unzip();
    Ok((rows.concat(), log_z.concat()))
}
