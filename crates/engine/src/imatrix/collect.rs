//! Collection of an importance matrix: statistics of the inputs of all matrices over a text.
//!
//! ```text
//! collect          for each group of chunks: all layers, then the output matrix if requested
//! Collector        sums per chunk and layer, added to the total in chunk order
//! ```
//!
//! Between two layers the state of a run consists of its sums, the activations of all chunks and
//! the scores so far: a snapshot, see [`Options::resume`].

use super::sums::{self, Sums};
use crate::evaluate::score::{self, Distribution};
use crate::evaluate::windows::Windows;
use crate::hessian::{self, Recorder};
use crate::model::{
    self, Engine, Get, Hidden, LOGIT_ROWS, LinearInput, Observer, Put, Tap, Turns, in_order,
};
use crate::resume::Resume;
use quantier_arch::role::block_of;
use quantier_arch::{Catalog, Grouping};
use quantier_core::progress::{self, Progress};
use quantier_gguf as format;
use quantier_gguf::part::{Part, Writer};
use quantier_gguf::snapshot::{Packer, Snapshot, Unpacker};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Errors of collecting. Chunks are counted from 0, from the beginning of the text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be run.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// An input cannot be summed.
    #[error("{}: {error}", place(.error.tensor(), *.chunk))]
    Sums {
        /// The chunk.
        chunk: usize,
        /// The error; it names the tensor.
        error: sums::Error,
    },
    /// The output of a layer is not finite although its input is.
    #[error(
        "layer {layer}, chunk {chunk}: the output of the layer is not finite, and the last matrix with finite \
         activations is '{tensor}'; it is damaged, or its numbers are too large for f32"
    )]
    NotFinite {
        /// The layer.
        layer: usize,
        /// The chunk.
        chunk: usize,
        /// The tensor.
        tensor: String,
    },
    /// A row of logits cannot be scored.
    #[error("chunk {chunk}, scored row {row}: {error}")]
    Row {
        /// The chunk.
        chunk: usize,
        /// The row, counted from the first scored one.
        row: usize,
        /// The error.
        error: score::Error,
    },
    /// An interim result could not be written.
    #[error(transparent)]
    Interim(format::Error),
    /// A Hessian could not be written.
    #[error(transparent)]
    Hessian(format::Error),
    /// The part of a unit could not be written or read.
    #[error(transparent)]
    Part(format::Error),
}

impl Error {
    /// True if a repeated run would fail in the same way.
    pub fn is_final(&self) -> bool {
        match self {
            Error::Model(error) => error.is_final(),
            Error::Interim(_) | Error::Hessian(_) | Error::Part(_) => false,
            _ => true,
        }
    }
}

/// `layer 3, chunk 7`; without the layer for tensors outside layers.
fn place(tensor: &str, chunk: usize) -> String {
    match block_of(tensor) {
        Some(layer) => format!("layer {layer}, chunk {chunk}"),
        None => format!("chunk {chunk}"),
    }
}

/// Receives the interim result after a group of chunks.
pub type Interim<'s> = &'s (dyn Fn(&Sums) -> format::Result<()> + Sync);

/// Options of collecting.
#[derive(Default)]
pub struct Options<'o> {
    /// Include the output matrix.
    pub process_output: bool,
    /// Score the second half of each chunk.
    pub score: bool,
    /// Group size in chunks, and the receiver of interim results. Each group reads all weights
    /// again; an interim result follows each group but the last.
    pub interim: Option<(usize, Interim<'o>)>,
    /// Number of the first chunk in the text, for errors.
    pub first_chunk: usize,
    /// Snapshots of the run.
    pub resume: Option<&'o Resume>,
    /// Every expert counts every token, instead of only those routed to it.
    pub all_experts: bool,
    /// Collection of input Hessians over the same chunks; not with interim results.
    pub covariance: Option<&'o hessian::Job>,
    /// Collection of one unit of the text only.
    pub unit: Option<Unit<'o>>,
}

/// A unit of a text, whose sums go into a part; [`merge`] adds those of all units.
#[derive(Clone)]
pub struct Unit<'u> {
    /// Its chunks.
    pub chunks: Range<usize>,
    /// The part.
    pub part: &'u Mutex<Writer>,
}

/// Results of collecting.
pub struct Collected {
    /// The sums, without names of texts; empty for a unit.
    pub sums: Sums,
    /// The -ln p of all scored tokens, in nats, chunk by chunk; empty without [`Options::score`].
    pub nll: Vec<f64>,
    /// Start of a resumed run: the first chunk of a group, and the number of finished layers.
    pub resumed: Option<[usize; 2]>,
    /// The Hessians written.
    pub covariance: Option<hessian::Written>,
}

/// Sums the squares of the inputs of all matrices.
///
/// The result depends neither on threads nor on groups nor on interruptions: sums of a layer are
/// computed per chunk, then added in f64 in chunk order.
///
/// # Errors
/// A model that cannot be run, activations that are not finite, an interim result or a Hessian that
/// cannot be written, a directory with Hessians of another job.
pub fn collect(
    engine: &Engine<'_>,
    windows: &Windows<'_>,
    options: &Options<'_>,
    progress: &dyn Progress,
) -> Result<Collected, Error> {
    let all = windows.chunks();
    let group = options
        .interim
        .map_or(all, |(chunks, _)| chunks.clamp(1, all));
    if options.covariance.is_some() && group < all {
        let what = "covariances are summed over all chunks, layer by layer: not together with interim results";
        return Err(model::Error::Model(what.into()).into());
    }
    let routing = &engine.hyper.routing;
    if options.all_experts && routing.iter().any(|routing| routing.weighs_inputs) {
        let what = "experts of this model read inputs times the weights of the router, which tokens of other \
                    experts do not have: it cannot show all experts all tokens";
        return Err(model::Error::Model(what.into()).into());
    }
    if !engine.has_output() && (options.process_output || options.score) {
        let what =
            "an embedding model predicts no tokens: it has no output matrix and no perplexity";
        return Err(model::Error::Model(what.into()).into());
    }
    if options.covariance.is_some() && engine.hyper.loops > 1 {
        let what =
            "the layers of this model run several times, and input Hessians are those of one run";
        return Err(model::Error::Model(what.into()).into());
    }
    let text = [all, windows.n_ctx()];
    // Snapshots hold activations of chunks of equal length.
    let resume = options.resume.filter(|_| windows.are_even());
    let recorder = options.covariance.map(|job| match &options.unit {
        Some(unit) => Ok(Recorder::of_unit(job, text, unit.chunks.clone(), unit.part)),
        None => Recorder::new(job, text),
    });
    let recorder = recorder.transpose().map_err(Error::Hessian)?;
    let found = resume.and_then(Resume::take);
    let found =
        found.and_then(|snapshot| Resumed::of(snapshot, windows, group, engine.hyper.runs()));
    // Layers whose Hessians are missing have to be repeated.
    let found = found.filter(|found| {
        recorder
            .as_ref()
            .is_none_or(|recorder| recorder.resume(&found.files))
    });
    if let (None, None, Some(recorder)) = (&found, &options.unit, &recorder) {
        recorder.begin().map_err(Error::Hessian)?;
    }
    let resumed = found
        .as_ref()
        .map(|found| [found.start, found.snapshot.done()]);
    let run = options
        .unit
        .as_ref()
        .map_or(0..all, |unit| unit.chunks.clone());
    let mut first = run.start;
    let mut collector = Collector {
        catalog: engine.catalog(),
        process_output: options.process_output,
        all_experts: options.all_experts,
        resume,
        length: windows.n_ctx() * engine.hyper.width(),
        start: 0,
        chunks: Vec::new(),
        turn: Mutex::default(),
        failed: Mutex::default(),
        nll: Vec::new(),
        found: Mutex::default(),
        recorder,
        unit: options.unit.clone(),
        records: AtomicUsize::new(0),
    };
    if let Some(Resumed {
        start,
        sums,
        nll,
        snapshot,
        ..
    }) = found
    {
        (first, collector.nll) = (start, nll);
        collector
            .turn
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .total = sums;
        collector.found = Mutex::new(Some(snapshot));
    }
    for start in (first..run.end).step_by(group) {
        let end = (start + group).min(run.end);
        collector.begin(start, end - start);
        collector
            .group(engine, windows, options, progress)
            .map_err(|e| collector.explained(e, options.first_chunk))?;
        if let Some((_, interim)) = options.interim.filter(|_| end < all) {
            interim(&lock(&collector.turn).total).map_err(Error::Interim)?;
        }
    }
    let turn = collector
        .turn
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let recorder = collector.recorder.filter(|_| options.unit.is_none());
    let covariance = recorder
        .map(Recorder::finish)
        .transpose()
        .map_err(Error::Hessian)?;
    Ok(Collected {
        sums: turn.total,
        nll: collector.nll,
        resumed,
        covariance,
    })
}

/// Names of the records with the sums of squares of a unit, one for each step of its run.
const SUMS: &str = "squares/";

/// Adds the sums of units, as they are added in one run over all chunks.
///
/// # Errors
/// A damaged part, units of different models.
pub fn merge(units: &[Part]) -> Result<Sums, Error> {
    let mut total = Sums::default();
    // A step of all units before the next step: layers that run several times add to the same sums.
    let names = units.first().into_iter().flat_map(Part::names);
    for name in names.filter(|name| name.starts_with(SUMS)) {
        for unit in units {
            let mut fields = Unpacker(unit.get(name).map_err(Error::Part)?);
            while !fields.0.is_empty() {
                let of_chunk = fields.number().zip(unpack_sums(&mut fields));
                let bad = || Error::Part(unit.bad(format!("'{name}' has no sums")));
                let (chunk, sums) = of_chunk.ok_or_else(bad)?;
                let merged = total.merge(&sums);
                merged.map_err(|error| Error::Sums { chunk, error })?;
            }
        }
    }
    Ok(total)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Collector<'o> {
    catalog: &'o Catalog,
    process_output: bool,
    all_experts: bool,
    resume: Option<&'o Resume>,
    /// Length of a chunk's activations.
    length: usize,
    /// The first chunk of the group.
    start: usize,
    /// Sums of the group's chunks in the current layer.
    chunks: Vec<Mutex<ChunkSums>>,
    turn: Mutex<Turn>,
    /// Failure of the lowest chunk of the group.
    failed: Mutex<Option<(usize, sums::Error)>>,
    nll: Vec<f64>,
    /// The snapshot of an earlier run.
    found: Mutex<Option<Snapshot>>,
    recorder: Option<Recorder<'o>>,
    unit: Option<Unit<'o>>,
    /// Number of records in the unit's part.
    records: AtomicUsize,
}

#[derive(Default)]
struct ChunkSums {
    sums: Sums,
    /// The last tensor to read an input.
    last: String,
}

/// Adds sums of chunks in chunk order.
#[derive(Default)]
struct Turn {
    total: Sums,
    turns: Turns<Sums>,
    /// Packed sums of the chunks of a unit, in place of the total: their order of addition is that of a
    /// run over all chunks.
    packed: Option<Packer>,
    /// Number of the first chunk in the text.
    first: usize,
}

impl Turn {
    /// Takes the sums of a chunk. An error carries the chunk that could not be added.
    fn take(&mut self, chunk: usize, sums: Sums) -> Result<(), (usize, sums::Error)> {
        self.turns.put(chunk, sums);
        while let Some((chunk, sums)) = self.turns.pop() {
            if let Some(packed) = &mut self.packed {
                packed.number(self.first + chunk);
                pack_sums(packed, &sums);
                continue;
            }
            self.total.merge(&sums).map_err(|error| (chunk, error))?;
        }
        Ok(())
    }
}

impl Collector<'_> {
    fn begin(&mut self, start: usize, chunks: usize) {
        self.start = start;
        self.chunks = (0..chunks).map(|_| Mutex::default()).collect();
        let mut turn = lock(&self.turn);
        turn.turns = Turns::default();
        turn.first = start;
        turn.packed = self.unit.is_some().then(Packer::default);
    }

    /// Writes the sums of a step of a unit's run.
    fn write_sums(&self) -> format::Result<()> {
        let Some(unit) = &self.unit else {
            return Ok(());
        };
        let packed = lock(&self.turn).packed.replace(Packer::default());
        let Some(packed) = packed.filter(|packed| !packed.0.is_empty()) else {
            return Ok(());
        };
        let record = self.records.fetch_add(1, Ordering::Relaxed);
        lock(unit.part).put(&format!("{SUMS}{record:06}"), &packed.0)
    }

    /// Runs the chunks of a group.
    fn group(
        &mut self,
        engine: &Engine<'_>,
        windows: &Windows<'_>,
        options: &Options<'_>,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let chunks: Vec<_> = (self.start..self.start + self.chunks.len())
            .map(|chunk| windows.input(chunk))
            .collect();
        let scored = match engine.has_output() {
            true => windows.first_scored()..windows.first_scored() + windows.scored(),
            false => 0..0,
        };
        let keep = match (options.process_output, options.score) {
            _ if engine.has_nextn() => 0..windows.n_ctx(),
            (true, _) => 0..windows.n_ctx(),
            (false, true) => scored.clone(),
            (false, false) => 0..0,
        };
        let hidden = engine.run(&chunks, keep.clone(), Some(&*self), progress)?;
        engine.run_nextn(&chunks, &hidden, &*self, progress)?;
        if !options.process_output && !options.score {
            return Ok(());
        }
        progress.begin(self.chunks.len() as u64, progress::Unit::Steps);
        progress.at("logits");
        let head = engine.head()?;
        let labels = |chunk: usize| match options.score {
            true => windows.labels(self.start + chunk),
            false => &[],
        };
        let nll: Vec<Mutex<Vec<f64>>> = (0..self.chunks.len()).map(|_| Mutex::default()).collect();
        // In chunk order, since the sums of a chunk wait for those before it.
        let one = |chunk: usize| -> Result<(), Error> {
            if progress.cancelled() {
                return Err(model::Error::Cancelled.into());
            }
            *lock(&nll[chunk]) = self.output(
                &head,
                &hidden,
                chunk,
                scored.start - keep.start,
                labels(chunk),
            )?;
            progress.advance(1);
            Ok(())
        };
        engine.pool().install(|| {
            in_order(self.chunks.len(), one)?;
            self.write_sums().map_err(Error::Part)?;
            self.recorder
                .as_ref()
                .map_or(Ok(()), Recorder::layer_done)
                .map_err(Error::Hessian)
        })?;
        self.nll.extend(
            nll.into_iter()
                .flat_map(|nll| nll.into_inner().unwrap_or_else(PoisonError::into_inner)),
        );
        Ok(())
    }

    /// Runs the output matrix on all stored rows of a chunk. Row `first + i` predicts `labels[i]`.
    fn output(
        &self,
        head: &model::Head<'_>,
        hidden: &Hidden,
        chunk: usize,
        first: usize,
        labels: &[u32],
    ) -> Result<Vec<f64>, Error> {
        let rows = hidden.take(chunk)?;
        let mut nll = Vec::with_capacity(labels.len());
        let begin = if self.process_output { 0 } else { first };
        for start in (begin..hidden.rows()).step_by(LOGIT_ROWS) {
            let count = LOGIT_ROWS.min(hidden.rows() - start);
            let logits = head.logits(&rows.range(start..start + count), chunk, Some(self))?;
            if labels.is_empty() || start + count <= first {
                continue;
            }
            for (i, logits) in logits.iter().enumerate() {
                let Some(row) = (start + i)
                    .checked_sub(first)
                    .filter(|row| *row < labels.len())
                else {
                    continue;
                };
                let at = |error| Error::Row { chunk, row, error };
                nll.push(
                    Distribution::of_logits(logits)
                        .and_then(|d| d.nll(labels[row]))
                        .map_err(at)?,
                );
            }
        }
        if self.process_output {
            self.chunk_done(chunk)?;
        }
        Ok(nll)
    }

    /// Keeps a single count for per-head tensors: all heads see every position.
    fn share_counts(&self, sums: &mut Sums) {
        for (name, tensor) in &mut sums.tensors {
            let linear = self.catalog.linear_named(name);
            if linear.is_some_and(|linear| matches!(linear.grouping, Grouping::Heads(_))) {
                tensor.counts.truncate(1);
            }
        }
    }

    fn fail(&self, chunk: usize, error: sums::Error) {
        let mut failed = lock(&self.failed);
        if failed.as_ref().is_none_or(|(first, _)| chunk < *first) {
            *failed = Some((chunk, error));
        }
    }

    /// Adds the tensor and the chunk's number in the text to an error.
    fn explained(&self, error: Error, first_chunk: usize) -> Error {
        let number = |chunk: usize| first_chunk + self.start + chunk;
        if let Some((chunk, error)) = lock(&self.failed).take() {
            return Error::Sums {
                chunk: number(chunk),
                error,
            };
        }
        match error {
            Error::Model(model::Error::NotFinite { layer, chunk }) => {
                let tensor = std::mem::take(&mut lock(&self.chunks[chunk]).last);
                Error::NotFinite {
                    layer,
                    chunk: number(chunk),
                    tensor,
                }
            }
            Error::Row { chunk, row, error } => Error::Row {
                chunk: number(chunk),
                row,
                error,
            },
            error => error,
        }
    }
}

impl Tap for Collector<'_> {
    fn sees_all_experts(&self) -> bool {
        self.all_experts
    }

    fn input(&self, input: LinearInput<'_>) {
        let mut chunk_sums = lock(&self.chunks[input.chunk]);
        let mut in_hessians = Vec::new();
        let mut added = Ok(());
        for &linear in input.linears {
            let name = &*self.catalog.weight(linear).name;
            chunk_sums.last.clear();
            chunk_sums.last.push_str(name);
            if self.catalog.in_hessians(linear, self.process_output) {
                in_hessians.push(name);
            }
            if !self.catalog.in_imatrix(linear, self.process_output) || added.is_err() {
                continue;
            }
            let matrix = input
                .routed
                .map_or([0, 1], |routed| [routed.expert, routed.experts]);
            let (numbers, columns) = (input.rows.numbers(), input.rows.columns());
            added = chunk_sums.sums.add_rows(name, matrix, numbers, columns);
        }
        drop(chunk_sums);
        if let Some(recorder) = self.recorder.as_ref().filter(|_| !in_hessians.is_empty()) {
            recorder.input(&in_hessians, input);
        }
        if let Err(error) = added {
            self.fail(input.chunk, error);
        }
    }
}

impl Observer for Collector<'_> {
    fn chunk_done(&self, chunk: usize) -> model::Result<()> {
        if lock(&self.failed).is_none() {
            let mut sums = std::mem::take(&mut lock(&self.chunks[chunk]).sums);
            self.share_counts(&mut sums);
            match lock(&self.turn).take(chunk, sums) {
                Ok(()) => {
                    if let Some(recorder) = &self.recorder {
                        recorder.chunk_done(chunk);
                    }
                    return Ok(());
                }
                Err((chunk, error)) => self.fail(chunk, error),
            }
        }
        // The error is in `failed`.
        Err(model::Error::Cancelled)
    }

    fn layer_done(&self, _: usize) -> model::Result<()> {
        lock(&self.turn).turns = Turns::default();
        self.write_sums()?;
        Ok(self
            .recorder
            .as_ref()
            .map_or(Ok(()), Recorder::layer_done)?)
    }

    fn resume(&self, put: Put<'_>) -> model::Result<usize> {
        let Some(snapshot) = lock(&self.found).take() else {
            return Ok(0);
        };
        for chunk in 0..self.chunks.len() {
            put(chunk, snapshot.state(chunk)?)?;
        }
        Ok(snapshot.done())
    }

    fn keep(&self, done: usize, get: Get<'_>) -> model::Result<()> {
        let Some(resume) = self.resume.filter(|resume| resume.due()) else {
            return Ok(());
        };
        let files = self.recorder.as_ref().map_or(Vec::new(), Recorder::files);
        let packed = pack(self.start, &lock(&self.turn).total, &self.nll, &files);
        resume.save(done, &packed, [self.chunks.len(), self.length], get)
    }
}

/// State of an earlier run.
struct Resumed {
    start: usize,
    sums: Sums,
    nll: Vec<f64>,
    /// Names and checksums of the Hessian files of finished layers.
    files: Files,
    snapshot: Snapshot,
}

type Files = Vec<(String, String)>;

impl Resumed {
    /// `None` if it does not fit this run, which a matching key rules out.
    fn of(
        snapshot: Snapshot,
        windows: &Windows<'_>,
        group: usize,
        layers: usize,
    ) -> Option<Resumed> {
        let (start, sums, nll, files) = unpack(snapshot.extra())?;
        let chunks = windows
            .chunks()
            .checked_sub(start)
            .filter(|left| *left > 0)?
            .min(group);
        let fits = start % group == 0
            && snapshot.shape()[0] == chunks
            && (1..=layers).contains(&snapshot.done());
        fits.then_some(Resumed {
            start,
            sums,
            nll,
            files,
            snapshot,
        })
    }
}

fn pack(start: usize, sums: &Sums, nll: &[f64], files: &Files) -> Vec<u8> {
    let mut packed = Packer::default();
    packed
        .number(start)
        .list(nll.iter().map(|x| x.to_le_bytes()));
    pack_sums(&mut packed, sums);
    packed.number(files.len());
    for (name, checksum) in files {
        packed.text(name).text(checksum);
    }
    packed.0
}

fn unpack(bytes: &[u8]) -> Option<(usize, Sums, Vec<f64>, Files)> {
    let mut fields = Unpacker(bytes);
    let (start, nll) = (fields.number()?, fields.list(f64::from_le_bytes)?);
    let sums = unpack_sums(&mut fields)?;
    let mut files = Files::new();
    for _ in 0..fields.number()? {
        files.push((fields.text()?.to_owned(), fields.text()?.to_owned()));
    }
    fields.0.is_empty().then_some((start, sums, nll, files))
}

fn pack_sums(packed: &mut Packer, sums: &Sums) {
    packed.number(sums.tensors.len());
    for (name, tensor) in &sums.tensors {
        packed
            .text(name)
            .list(tensor.sums.iter().map(|x| x.to_le_bytes()));
        packed.list(tensor.counts.iter().map(|x| x.to_le_bytes()));
    }
}

fn unpack_sums(fields: &mut Unpacker<'_>) -> Option<Sums> {
    let mut sums = Sums::default();
    for _ in 0..fields.number()? {
        let name = fields.text()?.to_owned();
        let (values, counts) = (
            fields.list(f64::from_le_bytes)?,
            fields.list(i64::from_le_bytes)?,
        );
        sums.tensors.insert(
            name,
            sums::TensorSums {
                sums: values,
                counts,
            },
        );
    }
    Some(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_chunks_wait_for_their_turn() {
        let of = |x: f32| {
            let mut sums = Sums::default();
            sums.add_rows("blk.0.attn_q.weight", [0, 1], &[x], 1)
                .unwrap();
            sums
        };
        let in_order = [1.0, 1e-9, 3e8, 7.0].map(of);
        let mut want = Sums::default();
        in_order.iter().for_each(|sums| want.merge(sums).unwrap());
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]] {
            let mut turn = Turn::default();
            order
                .iter()
                .for_each(|&chunk| turn.take(chunk, in_order[chunk].clone()).unwrap());
            assert_eq!(turn.total, want, "{order:?}");
        }
    }

    #[test]
    fn packing_round_trips() {
        let mut sums = Sums::default();
        sums.add_rows("blk.0.ffn_up_exps.weight", [1, 3], &[0.1, 0.2, 0.3, 0.4], 2)
            .unwrap();
        sums.add_rows("blk.0.attn_q.weight", [0, 1], &[1e-30, 0.2], 2)
            .unwrap();
        let files = vec![("blk.0.attn_q.gguf".to_owned(), "ab".to_owned())];
        let packed = pack(8, &sums, &[0.1, 2.0], &files);
        assert_eq!(unpack(&packed), Some((8, sums, vec![0.1, 2.0], files)));
        for cut in 0..packed.len() {
            assert_eq!(unpack(&packed[..cut]), None, "cut at {cut}");
        }
    }
}
