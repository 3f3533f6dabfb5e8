//! Collection of Hessians: sums each distinct input of a layer once, in chunk order, and writes the
//! sums at the end of the layer.

use super::{EXPERT_SAMPLE, Job, LEAST_ROWS, SAMPLE, is_held_out};
use crate::model::{LinearInput, Turns};
use quantier_gguf::hessian::{File, Head, INDEX, Index, Part, Writing, write};
use quantier_gguf::{Error, Result};
use quantier_round::hessian::sums::{Kind, Panel, Rows, Work, rows};
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
    chunks: Vec<Mutex<Vec<Input>>>,
    turn: Mutex<Turn>,
    work: Work,
    /// By file name.
    written: Mutex<BTreeMap<String, Done>>,
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
        }
    }

    fn take(&mut self, input: Input, held_out: bool, work: &Work) {
        for tensor in input.tensors {
            if !self.tensors.contains(&tensor) {
                self.tensors.push(tensor);
            }
        }
        if held_out {
            self.sample.offer(&input.rows, self.columns);
            if let Some(sample) = self.samples.get_mut(input.matrix) {
                sample.offer(&input.rows, self.columns);
            }
            return;
        }
        self.rows[input.matrix] += (input.rows.len() / self.columns) as u64;
        match self.each.get_mut(input.matrix) {
            Some(sum) => sum.add(input.rows, self.columns, EXPERT_TOGETHER, work),
            None => self.all.add(input.rows, self.columns, TOGETHER, work),
        }
    }

    fn write(self, path: &Path, job: &Job, panels: &[Panel]) -> Result<Done> {
        let head = Head {
            key: job.key,
            columns: self.columns,
            rows: self.rows,
            tensors: self.tensors,
        };
        let all: u64 = head.rows.iter().sum();
        let filled: Vec<&[Panel]> = std::iter::once(&self.all)
            .chain(&self.each)
            .filter(|sum| !sum.panels.is_empty())
            .map(|sum| &panels[sum.panels.clone()])
            .collect();
        let mut parts = vec![mean(Part::Mean(None), filled, all)];
        for (matrix, sum) in self
            .each
            .iter()
            .enumerate()
            .filter(|(matrix, _)| head.rows[*matrix] >= LEAST_ROWS)
        {
            parts.push(mean(
                Part::Mean(Some(matrix)),
                vec![&panels[sum.panels.clone()]],
                head.rows[matrix],
            ));
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
        let (checksum, bytes) = write(path, &head, &parts)?;
        Ok(Done {
            checksum,
            tensors: head.tensors.len(),
            bytes,
        })
    }
}

fn mean<'p>(part: Part, sums: Vec<&'p [Panel]>, count: u64) -> Writing<'p> {
    let pieces = move |put: &mut dyn FnMut(&[f32]) -> Result<()>| means(&sums, count, put);
    Writing {
        part,
        rows: 0,
        pieces: Box::new(pieces),
    }
}

/// Passes the mean over `count` rows to `put`, row by row of the triangle. `sums` add up to the
/// total.
fn means(sums: &[&[Panel]], count: u64, put: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
    let mut sums: Vec<_> = sums.iter().map(|panels| rows(panels)).collect();
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
    /// Creates the directory and checks it for Hessians of another job.
    ///
    /// # Errors
    /// A directory that cannot be created or read, or that holds Hessians of another job.
    pub fn new(job: &'j Job, chunks: usize) -> Result<Recorder<'j>> {
        let directory = &job.directory;
        let io = |source| Error::Io {
            path: directory.clone(),
            action: "create",
            source,
        };
        std::fs::create_dir_all(directory).map_err(io)?;
        check_free(directory, &job.key)?;
        Ok(Recorder {
            job,
            chunks: (0..chunks).map(|_| Mutex::default()).collect(),
            turn: Mutex::default(),
            work: Work::default(),
            written: Mutex::default(),
        })
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
            let held_out = self.job.hold_out && is_held_out(chunk, self.chunks.len());
            for input in inputs {
                let fresh = || Summed::new(&input, self.job.experts_apart);
                let summed = summed.entry(input.tensors[0].clone()).or_insert_with(fresh);
                summed.take(input, held_out, &self.work);
            }
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
        // Inputs present only in held-out chunks have no mean.
        let inputs: Vec<_> = inputs
            .into_iter()
            .filter(|(_, summed)| summed.rows.iter().any(|n| *n > 0))
            .collect();
        let written = inputs.into_par_iter().map(|(lead, summed)| {
            let name = format!("{}.gguf", lead.trim_end_matches(".weight"));
            let done = summed.write(&self.job.directory.join(&name), self.job, &panels)?;
            Ok((name, done))
        });
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
