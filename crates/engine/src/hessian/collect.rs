//! Collection of Hessians: sums each distinct input of a layer once, in chunk order, and writes the
//! sums at the end of the layer.
//!
//! The sums start anew in each unit of the text (see [`unit_chunks`]). A process can sum a single unit
//! into a part, and [`Recorder::merge`] adds the units of all parts in order: the files are those of one process.

use super::parts::{self, Total, Upper};
use super::{EXPERT_SAMPLE, HELD_OUT, Job, LEAST_ROWS, SAMPLE, is_held_out, unit_chunks};
use crate::model::{LinearInput, Turns};
use quantier_gguf::hessian::{File, Head, INDEX, Index, Part, Writing, write};
use quantier_gguf::part;
use quantier_gguf::snapshot::Key;
use quantier_gguf::{Error, Result};
use quantier_round::hessian::sums::{Kind, Panel, Rows, Work};
use quantier_round::hessian::{Sample, TOGETHER, check_free};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Minimum rows per product of an expert; up to this many wait per expert.
const EXPERT_TOGETHER: usize = 128;

/// Maximum rows that wait for a product, over all matrices of a tensor.
pub(super) fn waiting_rows(matrices: usize, apart: bool) -> usize {
    if matrices > 1 && apart {
        matrices * EXPERT_TOGETHER
    } else {
        TOGETHER
    }
}

/// Summary of the written files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Number of files without the index.
    pub files: usize,
    /// Number of tensors covered.
    pub tensors: usize,
    /// Total bytes of the files.
    pub bytes: u64,
}

/// Sums Hessians while chunks run through a model, from several threads.
///
/// The files depend neither on threads nor on interruptions: activations are added in chunk order,
/// in f32, with at least 512 rows per product (128 for an expert). (An f64 sum would take twice the
/// memory and, for 600 chunks, would change the mean by a millionth, while the choice of text
/// changes it by a thousandth.)
pub struct Recorder<'j> {
    job: &'j Job,
    text: Text,
    /// The part of a unit, in place of files.
    part: Option<&'j Mutex<part::Writer>>,
    chunks: Vec<Mutex<Vec<Input>>>,
    turn: Mutex<Turn>,
    work: Work,
    /// By file name.
    written: Mutex<BTreeMap<String, Done>>,
}

/// The chunks of a run, and the text that they belong to.
struct Text {
    /// The first chunk of the run.
    first: usize,
    /// Chunks of the whole text.
    chunks: usize,
    /// Tokens of a chunk.
    positions: usize,
    /// Chunks of a unit.
    unit: usize,
    /// True if some chunks are held out.
    holds_out: bool,
}

impl Text {
    /// Number of held-out chunks before a held-out chunk.
    fn held_out(&self, number: usize) -> Option<usize> {
        let is_held_out = self.holds_out && is_held_out(number, self.chunks);
        is_held_out.then_some(number / HELD_OUT)
    }

    /// True if a unit ends with this chunk, and another one follows.
    fn ends_unit(&self, number: usize) -> bool {
        (number + 1).is_multiple_of(self.unit) && number + 1 < self.chunks
    }
}

/// A written file.
struct Done {
    checksum: String,
    tensors: usize,
    bytes: u64,
}

/// Input of some matrices in one chunk.
struct Input {
    /// Tensors that read the input, in order; the first names it.
    tensors: Vec<String>,
    matrix: usize,
    matrices: usize,
    columns: usize,
    rows: Vec<f32>,
}

#[derive(Default)]
struct Turn {
    turns: Turns<Vec<Input>>,
    /// By the first tensor's name.
    inputs: BTreeMap<String, Summed>,
}

/// Sums of an input in the current layer.
struct Summed {
    columns: usize,
    tensors: Vec<String>,
    /// By matrix.
    rows: Vec<u64>,
    /// Over all matrices, unless each has a separate sum.
    all: Sum,
    /// By matrix, if they are separate.
    each: Vec<Sum>,
    sample: Sample,
    samples: Vec<Sample>,
    /// Rows of the current held-out chunk that were offered to the sample.
    offered: usize,
}

/// A sum, and activations waiting for a product.
#[derive(Default)]
struct Sum {
    panels: Range<usize>,
    waiting: Vec<Vec<f32>>,
}

impl Sum {
    /// Adds rows; starts a product once `together` rows are waiting.
    fn add(&mut self, rows: Vec<f32>, columns: usize, together: usize, work: &Work) {
        if self.panels.is_empty() {
            self.panels = work.begin(columns, Kind::Square);
        }
        self.waiting.push(rows);
        if self.waiting.iter().map(Vec::len).sum::<usize>() >= together * columns {
            self.flush(work);
        }
    }

    fn flush(&mut self, work: &Work) {
        let mut waiting = std::mem::take(&mut self.waiting);
        let rows = match waiting.len() {
            0 => return,
            1 => waiting.remove(0),
            _ => waiting.concat(),
        };
        work.add(self.panels.clone(), [&Rows::new(rows); 2]);
    }

    /// Ends the unit.
    fn end_unit(&mut self, work: &Work) {
        self.flush(work);
        work.end_unit(self.panels.clone());
    }

    /// The sum; `None` if nothing was added.
    fn upper<'p>(&self, panels: &'p [Panel]) -> Option<Upper<'p>> {
        (!self.panels.is_empty()).then(|| Upper::Panels(&panels[self.panels.clone()]))
    }
}

impl Summed {
    fn new(input: &Input, apart: bool) -> Summed {
        let several = input.matrices > 1;
        let of_each = |wanted: bool| if wanted { input.matrices } else { 0 };
        Summed {
            columns: input.columns,
            tensors: Vec::new(),
            rows: vec![0; input.matrices],
            all: Sum::default(),
            each: (0..of_each(several && apart))
                .map(|_| Sum::default())
                .collect(),
            sample: Sample::new(SAMPLE),
            samples: (0..of_each(several))
                .map(|_| Sample::new(EXPERT_SAMPLE))
                .collect(),
            offered: 0,
        }
    }

    /// Adds the input of a chunk.
    fn take(&mut self, input: Input, number: usize, text: &Text, work: &Work) {
        for tensor in input.tensors {
            if !self.tensors.contains(&tensor) {
                self.tensors.push(tensor);
            }
        }
        if let Some(before) = text.held_out(number) {
            // Numbers that do not depend on the rows of other chunks.
            let before = (before * text.positions) as u64;
            let of_all = before * self.rows.len() as u64 + self.offered as u64;
            self.sample.offer_at(of_all, &input.rows, self.columns);
            if let Some(sample) = self.samples.get_mut(input.matrix) {
                sample.offer_at(before, &input.rows, self.columns);
            }
            self.offered += input.rows.len() / self.columns;
            return;
        }
        self.rows[input.matrix] += (input.rows.len() / self.columns) as u64;
        match self.each.get_mut(input.matrix) {
            Some(sum) => sum.add(input.rows, self.columns, EXPERT_TOGETHER, work),
            None => self.all.add(input.rows, self.columns, TOGETHER, work),
        }
    }

    /// Called after the last input of a chunk.
    fn chunk_done(&mut self, ends_unit: bool, work: &Work) {
        self.offered = 0;
        if ends_unit {
            self.all.end_unit(work);
            self.each.iter_mut().for_each(|sum| sum.end_unit(work));
        }
    }

    fn total(self, key: Key, panels: &[Panel]) -> Total<'_> {
        Total {
            head: Head {
                key,
                columns: self.columns,
                rows: self.rows,
                tensors: self.tensors,
            },
            all: self.all.upper(panels),
            each: self.each.iter().map(|sum| sum.upper(panels)).collect(),
            sample: self.sample,
            samples: self.samples,
        }
    }
}

impl Total<'_> {
    /// True if a chunk that is not held out has rows of the input.
    fn has_mean(&self) -> bool {
        self.head.rows.iter().any(|n| *n > 0)
    }

    /// Writes the means and samples into the directory.
    fn write(self, lead: &str, directory: &Path) -> Result<(String, Done)> {
        let Total {
            head, all, each, ..
        } = self;
        let name = format!("{}.gguf", lead.trim_end_matches(".weight"));
        let filled: Vec<Upper<'_>> = std::iter::once(&all)
            .chain(&each)
            .filter_map(|sum| *sum)
            .collect();
        let mut parts = vec![mean(Part::Mean(None), filled, head.rows.iter().sum())];
        for (matrix, sum) in each.into_iter().enumerate() {
            let rows = head.rows[matrix];
            if let Some(sum) = sum.filter(|_| rows >= LEAST_ROWS) {
                parts.push(mean(Part::Mean(Some(matrix)), vec![sum], rows));
            }
        }
        let samples = self
            .samples
            .into_iter()
            .enumerate()
            .map(|(matrix, sample)| (Some(matrix), sample));
        for (matrix, sample) in std::iter::once((None, self.sample)).chain(samples) {
            let (rows, numbers) = sample.finish();
            if rows > 0 {
                let pieces = move |put: &mut dyn FnMut(&[f32]) -> Result<()>| put(&numbers);
                parts.push(Writing {
                    part: Part::Sample(matrix),
                    rows,
                    pieces: Box::new(pieces),
                });
            }
        }
        let (checksum, bytes) = write(&directory.join(&name), &head, &parts)?;
        let done = Done {
            checksum,
            tensors: head.tensors.len(),
            bytes,
        };
        Ok((name, done))
    }
}

fn mean<'p>(part: Part, sums: Vec<Upper<'p>>, count: u64) -> Writing<'p> {
    let pieces = move |put: &mut dyn FnMut(&[f32]) -> Result<()>| means(&sums, count, put);
    Writing {
        part,
        rows: 0,
        pieces: Box::new(pieces),
    }
}

/// Passes the mean over `count` rows to `put`, row by row of the triangle. `sums` add up to the
/// total.
fn means(sums: &[Upper<'_>], count: u64, put: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
    let mut sums: Vec<_> = sums.iter().map(|sum| sum.rows()).collect();
    let mut total: Vec<f64> = Vec::new();
    let mut mean: Vec<f32> = Vec::new();
    while let Some((first, others)) = sums.split_first_mut() {
        let Some(row) = first.next() else { break };
        total.clear();
        total.extend(row.iter().map(|x| f64::from(*x)));
        for other in others {
            let row = other.next().unwrap_or_default();
            total
                .iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += f64::from(*x));
        }
        mean.clear();
        mean.extend(total.iter().map(|sum| (sum / count as f64) as f32));
        put(&mean)?;
    }
    Ok(())
}

impl<'j> Recorder<'j> {
    /// Creates the directory and checks it for Hessians of another job. The text has `chunks` chunks of
    /// `positions` tokens.
    ///
    /// # Errors
    /// A directory that cannot be created or read, or that holds Hessians of another job.
    pub fn new(job: &'j Job, [chunks, positions]: [usize; 2]) -> Result<Recorder<'j>> {
        let directory = &job.directory;
        let io = |source| Error::Io {
            path: directory.clone(),
            action: "create",
            source,
        };
        std::fs::create_dir_all(directory).map_err(io)?;
        check_free(directory, &job.key)?;
        // Output gradients are summed as one unit.
        let unit = match job.hold_out {
            true => unit_chunks(chunks),
            false => chunks.max(1),
        };
        let text = Text {
            first: 0,
            chunks,
            positions,
            unit,
            holds_out: job.hold_out,
        };
        Ok(Recorder::over(job, text, chunks))
    }

    /// Sums `run`, chunks of a single unit, into a part.
    pub(crate) fn of_unit(
        job: &'j Job,
        [chunks, positions]: [usize; 2],
        run: Range<usize>,
        part: &'j Mutex<part::Writer>,
    ) -> Recorder<'j> {
        let text = Text {
            first: run.start,
            chunks,
            positions,
            unit: chunks,
            holds_out: job.hold_out,
        };
        Recorder {
            part: Some(part),
            ..Recorder::over(job, text, run.len())
        }
    }

    fn over(job: &'j Job, text: Text, chunks: usize) -> Recorder<'j> {
        Recorder {
            job,
            text,
            part: None,
            chunks: (0..chunks).map(|_| Mutex::default()).collect(),
            turn: Mutex::default(),
            work: Work::default(),
            written: Mutex::default(),
        }
    }

    /// Adds the Hessians of parts in the order of units, and writes those of the inputs for which
    /// `is_wanted` is true of their first tensor.
    ///
    /// # Errors
    /// A damaged part, a file that cannot be written.
    pub fn merge(
        &self,
        units: &[part::Part],
        is_wanted: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<()> {
        let leads = parts::leads(units).into_par_iter();
        let written = leads.filter(|lead| is_wanted(lead)).map(|lead| {
            let Some(mut merged) = parts::Merged::of(&lead, units)? else {
                return Ok(None);
            };
            let total = merged.total(self.job.key);
            match total.has_mean() {
                true => total.write(&lead, &self.job.directory).map(Some),
                false => Ok(None),
            }
        });
        let written = written.collect::<Result<Vec<_>>>()?;
        lock(&self.written).extend(written.into_iter().flatten());
        Ok(())
    }

    /// Starts over: existing files of this job count as incomplete from now on.
    ///
    /// # Errors
    /// An index that cannot be removed.
    pub fn begin(&self) -> Result<()> {
        let path = self.job.directory.join(INDEX);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
                path,
                action: "remove",
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Resumes after an earlier run that wrote these files; `false` if one is missing or changed.
    pub fn resume(&self, files: &[(String, String)]) -> bool {
        let there = |(name, checksum): &(String, String)| {
            let file = File::open(&self.job.directory.join(name)).ok()?;
            let bytes = self.job.directory.join(name).metadata().ok()?.len();
            let same = file.head().key == self.job.key && file.checksum() == checksum;
            let done = Done {
                checksum: checksum.clone(),
                tensors: file.head().tensors.len(),
                bytes,
            };
            same.then_some((name.clone(), done))
        };
        match files.iter().map(there).collect() {
            Some(found) => {
                *lock(&self.written) = found;
                true
            }
            None => false,
        }
    }

    /// Names and checksums of the written files.
    pub fn files(&self) -> Vec<(String, String)> {
        lock(&self.written)
            .iter()
            .map(|(name, done)| (name.clone(), done.checksum.clone()))
            .collect()
    }

    /// Takes the input of linears with these tensors; the first one names the file.
    pub(crate) fn input(&self, tensors: &[&str], input: LinearInput<'_>) {
        let mut inputs = lock(&self.chunks[input.chunk]);
        let (matrix, matrices) = input
            .routed
            .map_or((0, 1), |routed| (routed.expert, routed.experts));
        // The output matrix reads a chunk's rows in several parts.
        let begun = inputs.iter_mut().find(|begun| {
            (begun.matrix, begun.matrices) == (matrix, matrices) && begun.tensors[0] == tensors[0]
        });
        if let Some(begun) = begun {
            begun.rows.extend_from_slice(input.rows.numbers());
            return;
        }
        inputs.push(Input {
            tensors: tensors.iter().map(|name| (*name).to_owned()).collect(),
            matrix,
            matrices,
            columns: input.rows.columns(),
            rows: input.rows.numbers().to_vec(),
        });
    }

    /// Takes the output gradients of a matrix in a chunk: `[rows, columns]` per draw. They are
    /// summed like inputs, and shared by no other matrix.
    pub fn gradients(&self, chunk: usize, tensor: &str, columns: usize, of_draws: &[Vec<f32>]) {
        let (tensors, rows) = (vec![tensor.to_owned()], of_draws.concat());
        lock(&self.chunks[chunk]).push(Input {
            tensors,
            matrix: 0,
            matrices: 1,
            columns,
            rows,
        });
    }

    /// Called when a chunk has left the layer.
    pub fn chunk_done(&self, chunk: usize) {
        let inputs = std::mem::take(&mut *lock(&self.chunks[chunk]));
        let mut turn = lock(&self.turn);
        let Turn {
            turns,
            inputs: summed,
        } = &mut *turn;
        turns.put(chunk, inputs);
        while let Some((chunk, inputs)) = turns.pop() {
            let number = self.text.first + chunk;
            for input in inputs {
                let fresh = || Summed::new(&input, self.job.experts_apart);
                let summed = summed.entry(input.tensors[0].clone()).or_insert_with(fresh);
                summed.take(input, number, &self.text, &self.work);
            }
            let ends_unit = self.text.ends_unit(number);
            let all = summed.values_mut();
            all.for_each(|summed| summed.chunk_done(ends_unit, &self.work));
        }
        drop(turn);
        self.work.help();
    }

    /// Called when all chunks have left the layer: writes its files, on all threads of the current
    /// pool.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn layer_done(&self) -> Result<()> {
        let Turn { mut inputs, .. } = std::mem::take(&mut *lock(&self.turn));
        for summed in inputs.values_mut() {
            summed.all.flush(&self.work);
            summed.each.iter_mut().for_each(|sum| sum.flush(&self.work));
        }
        let panels = self.work.finish();
        let totals = inputs
            .into_iter()
            .map(|(lead, summed)| (lead, summed.total(self.job.key, &panels)));
        if let Some(part) = self.part {
            let mut part = lock(part);
            let mut totals = totals;
            return totals.try_for_each(|(lead, total)| parts::put(&lead, total, &mut part));
        }
        // Inputs present only in held-out chunks have no mean.
        let totals: Vec<_> = totals.filter(|(_, total)| total.has_mean()).collect();
        let written = totals
            .into_par_iter()
            .map(|(lead, total)| total.write(&lead, &self.job.directory));
        let written = written.collect::<Result<Vec<_>>>()?;
        lock(&self.written).extend(written);
        Ok(())
    }

    /// Called at the end of the run: completes the directory.
    ///
    /// # Errors
    /// An index that cannot be written.
    pub fn finish(self) -> Result<Written> {
        Index {
            key: self.job.key,
            files: self.files(),
        }
        .write(&self.job.directory)?;
        let written = lock(&self.written);
        let sum = |of: fn(&Done) -> u64| written.values().map(of).sum::<u64>();
        Ok(Written {
            files: written.len(),
            tensors: sum(|done| done.tensors as u64) as usize,
            bytes: sum(|done| done.bytes),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
