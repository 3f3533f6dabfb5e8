//! Measured cost of a type in a tensor: the divergence of the model with only that tensor in that
//! type.
//!
//! ```text
//! trace      forward pass of the base, with the input of every layer saved
//! for each tensor, for each type:
//!     replace the tensor by its rounded form
//!     run from its layer on, from the saved input
//!     mean over all positions of the divergence from the base's logits
//! ```
//!
//! Exact, but it runs the rest of the model for each tensor and type, where the second-order score
//! takes one product. It serves as a comparison.

use super::saved::{self, Costs, Nats};
use super::scores::{Candidate, check_stop};
use super::{Error, ModelKnowledge, Result, Run};
use crate::arch::Role;
use crate::evaluate::score::{Distribution, compare};
use crate::format::types::GgmlType;
use crate::model::{Engine, Head, LOGIT_ROWS, Replaced, Rows};
use crate::progress::{Progress, Unit};
use crate::resume::Resume;
use crate::rounding::{Importance, Rounder, Weights};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Forwards only cancellation: one run of many counts as one step.
pub(crate) struct Within<'p>(pub(crate) &'p dyn Progress);

impl Progress for Within<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// Mean divergence per token of every candidate, and the number of positions. Tensors without
/// activations on this text are omitted.
pub(super) fn sweep(
    run: &Run<'_>,
    candidates: &BTreeMap<&str, Candidate<'_>>,
    progress: &dyn Progress,
) -> Result<(Nats, usize)> {
    let Run {
        engine,
        chunks,
        resume,
        ..
    } = *run;
    let trace = engine.trace(chunks, None, progress)?;
    let head = engine.head()?;
    let left = resume
        .and_then(Resume::take)
        .and_then(|left| saved::unpack(left.extra()));
    let (mut nats, _) = left.unwrap_or_default();
    nats.retain(|name, found| {
        candidates
            .get(&**name)
            .is_some_and(|candidate| candidate.types.len() == found.nats.len())
    });
    let steps = |candidate: &Candidate<'_>| candidate.types.len() as u64;
    progress.begin(candidates.values().map(steps).sum(), Unit::Steps);
    for (name, candidate) in candidates {
        if nats.contains_key(*name) {
            progress.advance(steps(candidate));
            continue;
        }
        let mut found = Vec::with_capacity(candidate.types.len());
        for rounder in &candidate.types {
            progress.at(&format!("{name} as {}", rounder.ggml_type()));
            let weights = engine
                .pool()
                .install(|| candidate.rounded(rounder, progress))?;
            let replaced = Replaced {
                name: (*name).to_owned(),
                weights: weights.into(),
            };
            let changed = engine.replacing(&[replaced])?;
            let hidden = changed.rerun(&trace, first_layer(engine, name), &Within(progress))?;
            let comparison = Comparison {
                engine,
                base: Side {
                    head: &head,
                    rows: &|chunk| trace.output(engine, chunk),
                },
                chunks: chunks.len(),
            };
            let other = Side {
                head: &changed.head()?,
                rows: &|chunk| hidden.rows_of(chunk),
            };
            let by_chunk = comparison.divergence(other, name, progress)?;
            // For a lossless type, rounding errors can make it slightly negative.
            found.push((by_chunk.iter().sum::<f64>() / by_chunk.len() as f64).max(0.0));
            progress.advance(1);
        }
        if found.is_empty() || found.iter().any(|nats| *nats > 0.0) {
            nats.insert((*name).to_owned(), Costs::of(found));
        }
        if let Some(resume) = resume.filter(|resume| resume.due()) {
            resume.save::<Error>(
                nats.len(),
                &saved::pack(&nats, &Vec::new()),
                [0, 0],
                &|_| Ok(Vec::new()),
            )?;
        }
    }
    Ok((nats, chunks.iter().map(Vec::len).sum()))
}

/// The first layer that depends on a tensor.
pub(crate) fn first_layer(engine: &Engine<'_>, name: &str) -> usize {
    let catalog = engine.catalog();
    let entry = catalog.tensor_named(name).map(|id| catalog.tensor(id));
    match entry.map(|entry| (entry.layer, entry.facts.role)) {
        Some((Some(layer), _)) => layer.index(),
        Some((None, Role::Output)) => engine.hyper.runs(),
        _ => 0,
    }
}

/// One of two compared models.
#[derive(Clone, Copy)]
pub(crate) struct Side<'s> {
    /// Output head.
    pub(crate) head: &'s Head<'s>,
    /// Rows of a chunk that the head reads: `[positions, hidden]`.
    pub(crate) rows: &'s (dyn Fn(usize) -> crate::model::Result<Rows> + Sync),
}

impl Side<'_> {
    /// Logits of some rows: `[rows * vocabulary]`.
    fn logits(
        &self,
        rows: &Rows,
        chunk: usize,
        range: &Range<usize>,
    ) -> crate::model::Result<Vec<f32>> {
        let logits = self.head.logits(&rows.range(range.clone()), chunk, None)?;
        Ok(logits.into_numbers())
    }
}

/// A base model, and the text for comparisons with it.
#[derive(Clone, Copy)]
pub(crate) struct Comparison<'c> {
    pub(crate) engine: &'c Engine<'c>,
    pub(crate) base: Side<'c>,
    /// Number of chunks.
    pub(crate) chunks: usize,
}

impl Comparison<'_> {
    /// Mean divergence of each chunk's rows from the base's, in nats. `what` names the changed
    /// tensor, for errors.
    pub(crate) fn divergence(
        &self,
        other: Side<'_>,
        what: &str,
        progress: &dyn Progress,
    ) -> Result<Vec<f64>> {
        let (base, chunks) = (self.base, self.chunks);
        let one = |chunk: usize| -> Result<f64> {
            let (theirs, ours) = ((base.rows)(chunk)?, (other.rows)(chunk)?);
            let (rows, mut sum) = (theirs.len(), 0.0);
            for start in (0..rows).step_by(LOGIT_ROWS) {
                check_stop(progress)?;
                let range = start..(start + LOGIT_ROWS).min(rows);
                let (theirs, ours) = (
                    base.logits(&theirs, chunk, &range)?,
                    other.logits(&ours, chunk, &range)?,
                );
                let vocabulary = ours.len() / range.len();
                for (theirs, ours) in theirs
                    .chunks_exact(vocabulary)
                    .zip(ours.chunks_exact(vocabulary))
                {
                    let both = Distribution::of_logits(theirs)
                        .and_then(|b| Ok((b, Distribution::of_logits(ours)?)));
                    // The label matters only for perplexity, which is not used here.
                    let compared = both.and_then(|(b, r)| compare(&b, &r, 0));
                    sum += compared.map_err(|_| Error::NotFinite(what.to_owned()))?.kld;
                }
            }
            Ok(sum / rows as f64)
        };
        self.engine
            .pool()
            .install(|| (0..chunks).into_par_iter().map(one).collect())
    }
}

impl ModelKnowledge<'_> {
    /// A tensor of the model after rounding to a type: byte for byte as in a file.
    pub(crate) fn rounded(
        &self,
        engine: &Engine<'_>,
        name: &str,
        ggml_type: GgmlType,
        progress: &dyn Progress,
    ) -> Result<Replaced> {
        let mut tensors = self.input.tensors.iter();
        let tensor = tensors.find(|tensor| tensor.info.name == name);
        let rounder =
            tensor.and_then(|tensor| Rounder::new(ggml_type, tensor.info.shape.row_len() as usize));
        let (tensor, rounder) = tensor
            .zip(rounder.map(Rounder::or_lossless))
            .ok_or_else(|| Error::NoWeights(name.to_owned()))?;
        let importance = self.imatrix.entries.get(name).map(Importance::new);
        let candidate = Candidate {
            weights: Weights {
                reader: self.input,
                tensor,
                name,
                importance: importance.as_ref(),
            },
            types: vec![rounder],
            hessians: self.hessians,
        };
        let weights = engine
            .pool()
            .install(|| candidate.rounded(&rounder, progress))?;
        Ok(Replaced {
            name: name.to_owned(),
            weights: weights.into(),
        })
    }
}
