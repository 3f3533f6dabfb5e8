//! Second-order divergence of every candidate, from one backward pass over some chunks of text. For an embedding
//! model, the divergence is the mean cosine distance of its texts' embeddings.

use super::sampled::{Correlation, Sampling};
use super::saved::{self, Costs, Nats};
use super::scores::{self, Candidate};
use super::{Error, Result, Run, Settings};
use crate::arch::{Catalog, Grouping};
use crate::evaluate::score::Distribution;
use crate::hessian::Recorder;
use crate::model::backward::{Backward, Labels, LinearSamples, Trace, mixed};
use crate::model::{Engine, Head, LOGIT_ROWS};
use crate::progress::Progress;
use crate::resume::Resume;
use crate::rounding::OutputFactor;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Mean divergence per token of every candidate, and the number of sampled positions.
pub(super) fn measured(
    run: &Run<'_>,
    candidates: &Candidates<'_>,
    progress: &dyn Progress,
) -> Result<(Nats, usize)> {
    let Run {
        engine,
        chunks,
        settings,
        output_hessians,
        resume,
    } = *run;
    let trace = engine.trace(chunks, None, progress)?;
    let scoring = Scoring::new(run, candidates, progress);
    let recorder = output_hessians
        .map(|job| Recorder::new(job, [chunks.len(), 0]))
        .transpose()?;
    let fits = |(name, costs): (&String, &Costs)| {
        let candidate = candidates.get(&**name);
        candidate.is_some_and(|candidate| candidate.types.len() == costs.nats.len())
    };
    let found = resume.and_then(Resume::take).and_then(|left| {
        let (nats, files) = saved::unpack(left.extra())?;
        let is_complete = recorder
            .as_ref()
            .is_none_or(|recorder| recorder.resume(&files));
        (is_complete && nats.iter().all(fits)).then_some((nats, left))
    });
    if let (None, Some(recorder)) = (&found, &recorder) {
        recorder.begin()?;
    }
    let keep =
        |backward: &Backward<'_, '_>, nats: &Nats| keep(resume, backward, nats, recorder.as_ref());
    let (mut backward, mut nats) = match found {
        Some((nats, left)) => (
            engine.backward_again(&trace, settings.draws, &scoring.sample, &left, progress)?,
            nats,
        ),
        None => {
            let mut nats = Nats::new();
            scoring.output(&trace, &mut nats)?;
            let labels = labels(settings, 0);
            let backward = engine.backward(&trace, labels, &scoring.sample, progress)?;
            keep(&backward, &nats)?;
            (backward, nats)
        }
    };
    while let Some((_, samples)) = backward.layer(progress)? {
        scoring.layer(&samples, recorder.as_ref(), &mut nats)?;
        keep(&backward, &nats)?;
    }
    recorder.map(Recorder::finish).transpose()?;
    scoring.tables(&mut backward, &mut nats)?;
    Ok((nats, scoring.positions))
}

/// Labels of chunks from the number `first` on.
pub(super) fn labels(settings: &Settings, first: usize) -> Labels {
    Labels {
        draws: settings.draws,
        seed: settings.seed,
        first,
    }
}

/// Tensors to score, by name.
pub(super) type Candidates<'a> = BTreeMap<&'a str, Candidate<'a>>;

/// The steps of a measurement, each of which adds costs of some tensors.
pub(super) struct Scoring<'s> {
    run: &'s Run<'s>,
    candidates: &'s Candidates<'s>,
    progress: &'s dyn Progress,
    /// Sampled positions by chunk.
    pub(super) sample: Vec<Vec<u32>>,
    /// Number of sampled positions.
    pub(super) positions: usize,
    sampling: Sampling,
}

impl<'s> Scoring<'s> {
    pub(super) fn new(
        run: &'s Run<'s>,
        candidates: &'s Candidates<'s>,
        progress: &'s dyn Progress,
    ) -> Scoring<'s> {
        let has_output = run.engine.has_output();
        let sample = match has_output {
            true => sample(run.chunks, run.settings),
            false => run.chunks.iter().map(|text| all_of(text)).collect(),
        };
        let positions: usize = sample.iter().map(Vec::len).sum();
        let is_whole = positions == run.chunks.iter().map(Vec::len).sum::<usize>();
        let sampling = Sampling {
            correlation: match (has_output, is_whole) {
                (false, _) => Correlation::Sums,
                (true, true) => Correlation::Ratio,
                (true, false) => Correlation::Ignored,
            },
            rows: run.settings.rows,
            seed: run.settings.seed,
        };
        Scoring {
            run,
            candidates,
            progress,
            sample,
            positions,
            sampling,
        }
    }

    /// What sums over `positions` are divided by: their number or, for an embedding model, that of the texts.
    fn divisor(&self, positions: usize) -> usize {
        match self.run.engine.has_output() {
            true => positions,
            false => self.run.chunks.len(),
        }
    }

    /// Scores the output matrix; an embedding model has none.
    pub(super) fn output(&self, trace: &Trace<'_>, nats: &mut Nats) -> Result<()> {
        let engine = self.run.engine;
        let candidate = self.candidates.get(engine.output_name());
        let Some(candidate) = candidate.filter(|_| engine.has_output()) else {
            return Ok(());
        };
        self.progress.at("output");
        let head = engine.head()?;
        let read = output_rows(engine, &head, trace, &self.sample, self.progress)?;
        let of_output = || candidate.of_output(&head, &read, self.sampling, self.progress);
        let sums = engine.pool().install(of_output)?;
        add(nats, engine.output_name(), sums, self.positions)
    }

    /// Scores the linears of a layer, and sums their output Hessians.
    pub(super) fn layer(
        &self,
        samples: &[LinearSamples],
        recorder: Option<&Recorder<'_>>,
        nats: &mut Nats,
    ) -> Result<()> {
        let (engine, chunks) = (self.run.engine, self.run.chunks.len());
        let of_layer = || scores::of_layer(samples, self.sampling, self.candidates, self.progress);
        let sums = engine.pool().install(of_layer)?;
        sums.into_iter()
            .try_for_each(|(name, sums)| add(nats, &name, sums, self.divisor(self.positions)))?;
        if let Some(recorder) = recorder {
            let most = most_rows(engine);
            let record = || record(recorder, engine.catalog(), samples, chunks, most);
            engine.pool().install(record)?;
        }
        Ok(())
    }

    /// Scores the tables that tokens are looked up in, and tensors that no input reaches.
    pub(super) fn tables(&self, backward: &mut Backward<'_, '_>, nats: &mut Nats) -> Result<()> {
        let (engine, candidates) = (self.run.engine, self.candidates);
        for name in engine.hyper.unread(engine.catalog()) {
            if let Some(candidate) = candidates.get(name) {
                let free = Costs::of(vec![0.0; candidate.types.len()]);
                add(nats, name, free, self.positions)?;
            }
        }
        let tables = engine.catalog().tensors().iter();
        let mut tables = tables.filter(|entry| entry.is_table);
        if !tables.any(|entry| candidates.contains_key(&*entry.name)) {
            return Ok(());
        }
        self.progress.at("embedding");
        for table in backward.tables()? {
            let Some(candidate) = candidates.get(&*table.name) else {
                continue;
            };
            let tokens = table.chunks.iter().map(|e| e.tokens.len()).sum();
            let of_table = || candidate.of_embedding(&table.chunks, self.sampling, self.progress);
            let sums = engine.pool().install(of_table)?;
            add(nats, &table.name, sums, self.divisor(tokens))?;
        }
        Ok(())
    }
}

/// Adds the costs of a tensor, summed over `tokens`.
fn add(nats: &mut Nats, name: &str, sums: Costs, tokens: usize) -> Result<()> {
    match sums.are_finite() {
        true => nats
            .entry(name.to_owned())
            .or_default()
            .add(&sums.per(tokens)),
        false => return Err(Error::NotFinite(name.to_owned())),
    }
    Ok(())
}

/// Saves a snapshot between two layers, if due.
fn keep(
    resume: Option<&Resume>,
    backward: &Backward<'_, '_>,
    nats: &Nats,
    recorder: Option<&Recorder<'_>>,
) -> Result<()> {
    let due = resume.filter(|resume| resume.due());
    let Some((resume, shape)) = due.zip(backward.shape()) else {
        return Ok(());
    };
    let gradients = |slot: usize| backward.gradient(slot);
    let files = recorder.map_or(Vec::new(), Recorder::files);
    Ok(resume.save(
        backward.done(),
        &saved::pack(nats, &files),
        shape,
        &gradients,
    )?)
}

/// Maximum number of rows for an output Hessian: its factor, in f64, must fit into a quarter of the
/// memory limit, or 2 GiB.
pub(super) fn most_rows(engine: &Engine<'_>) -> usize {
    const PART_OF_MEMORY: u64 = 4;
    const OTHERWISE: u64 = 2 << 30;
    let limit = engine
        .max_memory()
        .map_or(OTHERWISE, |all| all / PART_OF_MEMORY);
    (limit / OutputFactor::working_bytes(1)).isqrt() as usize
}

/// Rows of each linear with a summed output Hessian, from the catalog.
pub(crate) fn gradient_rows(engine: &Engine<'_>) -> Vec<u64> {
    let catalog = engine.catalog();
    let most = most_rows(engine) as u64;
    let of_layers = catalog.linears().iter().filter(|linear| {
        linear
            .layer
            .is_some_and(|layer| layer.index() < engine.hyper.layers)
    });
    let whole = of_layers.filter(|linear| linear.grouping == Grouping::Whole);
    whole
        .filter(|linear| catalog.in_hessians(linear.id, false))
        .map(|linear| catalog.weight(linear.id))
        .filter(|weight| weight.is_matrix() && weight.dims[1] <= most)
        .map(|weight| weight.dims[1])
        .collect()
}

/// True if products of gradients fit into f32. Otherwise, the matrix has no output Hessian.
fn are_summable(samples: &LinearSamples) -> bool {
    const MOST: f32 = 1e15;
    let all = samples
        .pieces
        .par_iter()
        .flat_map_iter(|piece| &piece.gradients);
    all.all(|of_draw| of_draw.iter().fold(true, |all, g| all & (g.abs() < MOST)))
}

/// Sums the output Hessians of a layer's linears, except for experts, each of which reads different
/// positions.
fn record(
    recorder: &Recorder<'_>,
    catalog: &Catalog,
    samples: &[LinearSamples],
    chunks: usize,
    most_rows: usize,
) -> Result<()> {
    let is_summed = |samples: &&LinearSamples| {
        let linear = catalog.linear_named(&samples.name);
        samples.matrices == 1
            && samples.width <= most_rows
            && linear.is_some_and(|linear| catalog.in_hessians(linear.id, false))
    };
    let samples: Vec<_> = samples
        .iter()
        .filter(is_summed)
        .filter(|samples| are_summable(samples))
        .collect();
    (0..chunks).into_par_iter().for_each(|chunk| {
        for samples in &samples {
            if let Some(piece) = samples.pieces.get(chunk) {
                recorder.gradients(chunk, &samples.name, samples.width, &piece.gradients);
            }
        }
        recorder.chunk_done(chunk);
    });
    Ok(recorder.layer_done()?)
}

/// All positions of a text.
fn all_of(text: &[u32]) -> Vec<u32> {
    (0..text.len() as u32).collect()
}

/// Random sampled positions of each chunk, ascending; the same number in all chunks.
pub(super) fn sample(chunks: &[Vec<u32>], settings: &Settings) -> Vec<Vec<u32>> {
    let each = settings.positions.div_ceil(chunks.len().max(1));
    let one = |(chunk, tokens): (usize, &Vec<u32>)| {
        let mut all = all_of(tokens);
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

/// Inputs of the output matrix at the sampled positions.
pub(crate) struct OutputRows {
    /// `[positions, columns]`.
    pub(crate) inputs: Vec<f32>,
    /// Log-sum-exp of the logits, `[positions]`.
    pub(crate) log_z: Vec<f64>,
}

/// Runs the output matrix at the sampled positions.
fn output_rows(
    engine: &Engine<'_>,
    head: &Head<'_>,
    trace: &Trace<'_>,
    sample: &[Vec<u32>],
    progress: &dyn Progress,
) -> Result<OutputRows> {
    let one =
        |(chunk, positions): (usize, &Vec<u32>)| -> crate::model::Result<(Vec<f32>, Vec<f64>)> {
            let hidden = trace.output(engine, chunk)?.select(positions);
            let rows = head.normalized(&hidden).into_numbers();
            let mut log_z = Vec::with_capacity(positions.len());
            for start in (0..positions.len()).step_by(LOGIT_ROWS) {
                if progress.cancelled() {
                    return Err(crate::model::Error::Cancelled);
                }
                let block = hidden.range(start..(start + LOGIT_ROWS).min(positions.len()));
                for logits in head.logits(&block, chunk, None)?.iter() {
                    // NaN leads to non-finite scores, which are refused.
                    log_z.push(Distribution::of_logits(logits).map_or(f64::NAN, |row| row.log_z()));
                }
            }
            Ok((rows, log_z))
        };
    let parts: crate::model::Result<Vec<_>> = engine
        .pool()
        .install(|| sample.par_iter().enumerate().map(one).collect());
    let (rows, log_z): (Vec<_>, Vec<_>) = parts?.into_iter().unzip();
    Ok(OutputRows {
        inputs: rows.concat(),
        log_z: log_z.concat(),
    })
}
