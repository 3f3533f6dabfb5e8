//! Scoring in units of work, for several processes.
//!
//! ```text
//! gradients    of a chunk: the input of every layer and the gradients of its output, into a part
//! scores       of the output matrix, of a layer, or of the tables, from the parts of all chunks
//! merged       all scores, in the order of one process
//! ```
//!
//! A unit computes what one process would: a chunk passes the model alone in both, and the costs of a
//! layer come from the same activations.

use super::divergence::{Scoring, labels};
use super::saved::{self, Nats};
use super::{
    Allowed, Error, Measure, ModelKnowledge, Result, Run, Scores, candidates, collected,
    importance, nextn,
};
use crate::format::le_bytes;
use crate::format::part::{Part, Writer};
use crate::hessian::Recorder;
use crate::model::Engine;
use crate::model::backward::{Backward, Kept};
use crate::progress::Progress;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Number of units of scores: the output matrix, the layers from the last to the first, the tables.
pub(crate) fn count(engine: &Engine<'_>) -> usize {
    engine.hyper.runs() + 2
}

/// The layer of a unit; `None` for the output matrix and the tables.
pub(crate) fn layer_of(engine: &Engine<'_>, unit: usize) -> Option<usize> {
    let layers = engine.hyper.runs();
    (1..=layers).contains(&unit).then(|| layers - unit)
}

/// Name of the record with the input of a layer.
fn input_name(layer: usize) -> String {
    format!("input/{layer}")
}

/// Name of the record with the gradient of the input of a layer.
fn gradient_name(layer: usize, draw: usize) -> String {
    format!("gradient/{layer}/{draw}")
}

/// Writes the activations and gradients between all layers of some chunks of a run, each into its part.
///
/// # Errors
/// Errors of the model, parts that cannot be written.
pub(crate) fn gradients(
    run: &Run<'_>,
    range: Range<usize>,
    parts: &[Mutex<Writer>],
    progress: &dyn Progress,
) -> Result<()> {
    let (engine, layers, draws) = (run.engine, run.engine.hyper.runs(), run.settings.draws);
    let chunks = &run.chunks[range.clone()];
    let trace = engine.trace(chunks, None, progress)?;
    for (chunk, part) in parts.iter().enumerate() {
        for layer in 0..=layers {
            let input = trace.input(layer, chunk)?;
            locked(part).put(&input_name(layer), &le_bytes(&input))?;
        }
    }
    let write = |layer: usize, backward: &Backward<'_, '_>| -> Result<()> {
        for (chunk, part) in parts.iter().enumerate() {
            for draw in 0..draws {
                let gradient = backward.gradient(chunk * draws + draw)?;
                locked(part).put(&gradient_name(layer, draw), &le_bytes(&gradient))?;
            }
        }
        Ok(())
    };
    // No samples are read here.
    let sample = vec![Vec::new(); chunks.len()];
    let labels = labels(run.settings, range.start);
    let mut backward = engine.backward(&trace, labels, &sample, progress)?;
    write(layers, &backward)?;
    while let Some((layer, _)) = backward.layer(progress)? {
        write(layer, &backward)?;
    }
    Ok(())
}

/// A part that no other thread writes now.
pub(crate) fn locked(part: &Mutex<Writer>) -> MutexGuard<'_, Writer> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Costs of a unit.
pub(crate) struct Costs {
    nats: Nats,
    /// Names and checksums of the output Hessians.
    files: Vec<(String, String)>,
}

/// Name of the record with the costs of a unit.
const COSTS: &str = "costs";

impl Costs {
    /// Writes the costs into a part.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn put(&self, part: &mut Writer) -> Result<()> {
        Ok(part.put(COSTS, &saved::pack(&self.nats, &self.files))?)
    }

    /// Names of the output Hessians.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(name, _)| &**name)
    }

    /// Reads the costs of a part.
    ///
    /// # Errors
    /// A damaged part.
    pub(crate) fn of(part: &Part) -> Result<Costs> {
        let (nats, files) = saved::unpack(part.get(COSTS)?)
            .ok_or_else(|| part.bad("its costs cannot be read".into()))?;
        Ok(Costs { nats, files })
    }
}

/// A unit to score, with the gradients of all chunks, a part each.
#[derive(Clone, Copy)]
pub(crate) struct Unit<'u> {
    pub(crate) number: usize,
    pub(crate) gradients: &'u [Part],
}

impl Unit<'_> {
    /// A record of a chunk.
    fn numbers(&self, chunk: usize, name: &str) -> crate::model::Result<Vec<f32>> {
        let (numbers, _) = self.gradients[chunk].get(name)?.as_chunks();
        Ok(numbers.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

/// Scores a unit.
///
/// # Errors
/// As [`super::score`]; damaged parts.
pub(crate) fn scores(
    run: &Run<'_>,
    knowledge: &ModelKnowledge<'_>,
    allowed: Allowed<'_>,
    unit: Unit<'_>,
    progress: &dyn Progress,
) -> Result<Costs> {
    let (engine, draws) = (run.engine, run.settings.draws);
    let importance = importance(knowledge.input, knowledge.imatrix)?;
    let candidates = candidates(
        knowledge.input,
        &importance,
        knowledge.hessians,
        run.settings,
        allowed,
    );
    let scoring = Scoring::new(run, &candidates, progress);
    let recorder = run
        .output_hessians
        .map(|job| Recorder::new(job, [run.chunks.len(), 0]))
        .transpose()?;
    let input = |layer: usize, chunk: usize| unit.numbers(chunk, &input_name(layer));
    let trace = |layers: Range<usize>| engine.trace_of(run.chunks, layers, &input);
    let mut nats = Nats::new();
    if unit.number == 0 {
        let end = engine.hyper.runs();
        scoring.output(&trace(end..end + 1)?, &mut nats)?;
        return Ok(Costs {
            nats,
            files: Vec::new(),
        });
    }
    let layer = layer_of(engine, unit.number);
    let left = layer.map_or(0, |layer| layer + 1);
    let gradient = |slot: usize| unit.numbers(slot / draws, &gradient_name(left, slot % draws));
    let kept = Kept {
        left,
        gradient: &gradient,
    };
    let trace = trace(layer.map_or(0..0, |layer| layer..left))?;
    let mut backward = engine.backward_from(&trace, draws, &scoring.sample, kept, progress)?;
    match layer {
        Some(_) => {
            if let Some((_, samples)) = backward.layer(progress)? {
                scoring.layer(&samples, recorder.as_ref(), &mut nats)?;
            }
        }
        None => scoring.tables(&mut backward, &mut nats)?,
    }
    let files = recorder.map_or(Vec::new(), |recorder| recorder.files());
    Ok(Costs { nats, files })
}

/// Scores from the costs of all units, in order; completes the output Hessians of the run, whose files
/// are those of the units.
///
/// # Errors
/// As [`super::score`]; a missing file.
pub(crate) fn merged(
    run: &Run<'_>,
    knowledge: &ModelKnowledge<'_>,
    allowed: Allowed<'_>,
    units: &[Costs],
    progress: &dyn Progress,
) -> Result<Scores> {
    let (input, settings) = (knowledge.input, run.settings);
    let mut nats = Nats::new();
    for (name, costs) in units.iter().flat_map(|unit| &unit.nats) {
        nats.entry(name.clone()).or_default().add(costs);
    }
    if let Some(job) = run.output_hessians {
        let recorder = Recorder::new(job, [run.chunks.len(), 0])?;
        let files: Vec<_> = units.iter().flat_map(|unit| unit.files.clone()).collect();
        if !recorder.resume(&files) {
            return Err(Error::Format(crate::format::Error::Bad {
                path: job.directory.clone(),
                what: "an output Hessian is missing or damaged; remove the parts of the \
                       sensitivities and run their shards again"
                    .into(),
            }));
        }
        recorder.begin()?;
        recorder.finish()?;
    }
    let importance = importance(input, knowledge.imatrix)?;
    let candidates = candidates(input, &importance, knowledge.hessians, settings, allowed);
    nextn::estimate(&mut nats, &candidates, input, run.engine.pool(), progress)?;
    let chunks = run.chunks;
    Ok(Scores {
        sequences: chunks.len(),
        positions: super::divergence::sample(chunks, settings)
            .iter()
            .map(Vec::len)
            .sum(),
        ..collected(input, &candidates, &nats, Measure::Divergence, allowed)
    })
}
