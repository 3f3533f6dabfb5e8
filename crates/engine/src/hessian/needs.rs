//! The cost of collecting Hessians, from the shapes of a model.

use super::collect::waiting_rows;
use super::{EXPERT_SAMPLE, Job, SAMPLE, is_held_out, unit_chunks};
use crate::model::Engine;
use quantier_arch::{Entry, Grouping, InputId, LayerId, Linear};
use quantier_gguf::hessian::triangle;
use quantier_gguf::{Error, Result};
use quantier_round::hessian::check_free;
use quantier_round::hessian::sums::panel_numbers;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The cost of collecting the Hessians of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needs {
    /// Upper bound of the bytes of all files.
    pub files: u64,
    /// Upper bound of the bytes of memory: the sums of a layer, and activations waiting to be
    /// added.
    pub memory: u64,
    /// True if every expert can have a separate sum. Always true for a model without experts.
    pub experts_apart: bool,
    /// Floating-point operations of the sums: `n^2` per row of an input of `n` channels, plus the
    /// work of panels below the diagonal.
    pub operations: f64,
}

/// The memory limit divided by this bounds the experts' sums.
const PART_OF_MEMORY: u64 = 4;
/// Limit of the experts' sums without a memory limit, in bytes.
const EXPERTS: u64 = 2 << 30;

/// An input with the matrices that share it.
struct Distinct {
    layer: Option<LayerId>,
    columns: usize,
    matrices: usize,
    /// Number of matrices that read each position.
    seeing: usize,
}

impl Needs {
    /// The cost of running `chunks` chunks of `positions` tokens.
    pub fn of(engine: &Engine<'_>, process_output: bool, [chunks, positions]: [usize; 2]) -> Needs {
        let inputs = distinct(engine, process_output);
        let most = |of: &dyn Fn(&Distinct) -> u64| {
            let mut layers: BTreeMap<Option<LayerId>, u64> = BTreeMap::new();
            inputs
                .iter()
                .for_each(|input| *layers.entry(input.layer).or_default() += of(input));
            layers.into_values().max().unwrap_or(0)
        };
        let numbers = |n: usize| n as u64 * 4;
        let sums = |input: &Distinct, apart: bool| {
            let sums = if apart { input.matrices } else { 1 };
            numbers(
                sums * panel_numbers(input.columns)
                    + waiting_rows(input.matrices, apart) * input.columns,
            )
        };
        let limit = engine
            .max_memory()
            .map_or(EXPERTS, |all| all / PART_OF_MEMORY);
        let experts_apart = most(&|input| {
            if input.matrices > 1 {
                sums(input, true)
            } else {
                0
            }
        }) <= limit;
        // The sum of the ended units, beside that of the current one.
        let ended = |input: &Distinct, apart: bool| match chunks > unit_chunks(chunks) {
            true => numbers(if apart { input.matrices } else { 1 } * panel_numbers(input.columns)),
            false => 0,
        };
        let seen = |input: &Distinct| positions * input.seeing;
        let held_out = (0..chunks)
            .filter(|chunk| is_held_out(*chunk, chunks))
            .count();
        let samples = |input: &Distinct| {
            let rows = held_out * seen(input);
            let of_each = if input.matrices > 1 {
                input.matrices * EXPERT_SAMPLE.min(rows)
            } else {
                0
            };
            numbers((SAMPLE.min(rows) + of_each) * input.columns)
        };
        let threads = engine.pool().current_num_threads();
        // Each thread has a chunk in the layer, and about as many chunks wait for their turn or for
        // a panel.
        let waiting = |input: &Distinct| numbers((2 * threads + 1) * seen(input) * input.columns);
        /// A header, including names of experts' tensors and their checksums.
        const HEADER: u64 = 1024;
        const OF_MATRIX: u64 = 512;
        let file = |input: &Distinct| {
            let apart = if experts_apart && input.matrices > 1 {
                input.matrices
            } else {
                0
            };
            let means = (1 + apart) as u64 * numbers(triangle(input.columns));
            means + samples(input) + HEADER + OF_MATRIX * input.matrices as u64
        };
        let operations = |input: &Distinct| {
            2.0 * ((chunks - held_out) * seen(input)) as f64 * panel_numbers(input.columns) as f64
        };
        Needs {
            operations: inputs.iter().map(operations).sum(),
            files: inputs.iter().map(file).sum(),
            memory: most(&|input| {
                let of_units = sums(input, experts_apart) + ended(input, experts_apart);
                of_units + samples(input) + waiting(input)
            }),
            experts_apart,
        }
    }

    /// Checks the directory of a job, without writing.
    ///
    /// # Errors
    /// A directory that cannot be read or has Hessians of another job, or insufficient disk space.
    pub fn check(&self, job: &Job) -> Result<()> {
        check_room(job, self.files)
    }
}

/// Checks the directory of a job and the space for `needed` bytes.
///
/// # Errors
/// A directory that cannot be read or has Hessians of another job, or insufficient disk space.
pub fn check_room(job: &Job, needed: u64) -> Result<()> {
    let directory: &Path = &job.directory;
    let own = check_free(directory, &job.key)?;
    let above = |path: &&Path| path.as_os_str().is_empty() || path.exists();
    let disk = directory
        .ancestors()
        .find(above)
        .filter(|path| !path.as_os_str().is_empty());
    // If the available space is unknown, a full disk shows when writing.
    let free = fs4::available_space(disk.unwrap_or(Path::new(".")))
        .unwrap_or(u64::MAX)
        .saturating_add(own);
    match free < needed {
        true => Err(Error::NoSpace {
            path: directory.to_owned(),
            needed,
            free,
        }),
        false => Ok(()),
    }
}

/// File size of an output Hessian of `rows` channels, in bytes.
pub fn gradient_bytes(rows: u64) -> u64 {
    const HEADER: u64 = 2048;
    4 * triangle(rows as usize) as u64 + HEADER
}

/// The input of a weight tensor's linear; `None` if its Hessian is not collected.
pub fn input_of(engine: &Engine<'_>, tensor: &Entry, process_output: bool) -> Option<InputId> {
    let linear = engine.catalog().linear_of(tensor.id)?;
    is_collected(engine, linear, process_output).then_some(linear.input)
}

/// True if the input Hessian of a linear is collected: it is in the set and read by a layer of the
/// model or by the multi-token prediction block.
fn is_collected(engine: &Engine<'_>, linear: &Linear, process_output: bool) -> bool {
    let in_model = linear
        .layer
        .is_none_or(|layer| layer.index() < engine.hyper.layers + usize::from(engine.has_nextn()));
    let catalog = engine.catalog();
    in_model
        && catalog.weight(linear.id).is_matrix()
        && catalog.in_hessians(linear.id, process_output)
}

/// The inputs whose Hessians are collected.
fn distinct(engine: &Engine<'_>, process_output: bool) -> Vec<Distinct> {
    let catalog = engine.catalog();
    let collected = catalog
        .linears()
        .iter()
        .filter(|l| is_collected(engine, l, process_output));
    let mut seen = BTreeSet::new();
    collected
        .filter(|linear| seen.insert(linear.input))
        .map(|linear| Distinct {
            layer: linear.layer,
            columns: catalog.weight(linear.id).row_len() as usize,
            matrices: linear.grouping.matrices(),
            seeing: match linear.grouping {
                Grouping::Whole | Grouping::Experts(1) => 1,
                Grouping::Experts(_) => engine.hyper.experts_used().max(1),
                Grouping::Heads(count) => count,
            },
        })
        .collect()
}
