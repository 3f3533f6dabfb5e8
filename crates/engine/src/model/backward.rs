//! The backward stream: layer by layer in reverse, from stored layer inputs, recomputing each
//! layer's forward pass.
//!
//! ```text
//! Engine::trace      the forward pass; stores the input of every layer
//! Engine::backward   draws labels from the model's distribution; propagates their gradient to the last layer
//! Backward::layer    input and output gradient of each linear of the next layer in reverse order, at the
//!                    sampled positions of every chunk; None after the first layer
//! Backward::tables   the gradients of the rows that tokens look up
//! ```
//!
//! The gradient is that of `L = sum over positions of ln p(label)`, in nats; for an embedding model, that of the
//! embedding's product with random signs (see `pooler`).

use super::head::of_chunk;
use super::layer::Layer;
use super::linear::Pass;
use super::ops::elementwise::add;
use super::ops::rope::Angles;
use super::rows::Rows;
use super::states::{Slots, States};
use super::{
    Engine, Error, Head, LOGIT_ROWS, LinearInput, OutputGradient, Parameter, Pooler, Result,
    Routed, Tap, are_even,
};
use quantier_arch::{Catalog, LinearId, TensorId};
use quantier_core::progress::{Progress, Unit};
use quantier_gguf::snapshot::Snapshot;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A forward pass with the inputs of all layers stored.
pub struct Trace<'c> {
    pub(super) chunks: &'c [Vec<u32>],
    /// By layer, then by chunk; the last layer's output follows.
    states: Slots,
    /// The first layer with stored inputs.
    first: usize,
    /// Tokens of the longest chunk.
    pub(super) positions: usize,
}

/// Sampling of labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Labels {
    /// Independent draws per position.
    pub draws: usize,
    /// Seed of the random numbers; labels depend on it alone, not on the number of threads.
    pub seed: u64,
    /// Number of the first chunk in its text.
    pub first: usize,
}

/// Gradients of the output of a layer, as computed by other processes.
pub struct Kept<'k> {
    /// Number of layers up to this one.
    pub left: usize,
    /// The gradient of a slot: by chunk, then by draw.
    pub gradient: &'k dyn Fn(usize) -> Result<Vec<f32>>,
}

/// A backward pass in progress.
pub struct Backward<'e, 'c> {
    engine: &'e Engine<'e>,
    trace: &'e Trace<'c>,
    /// Gradients of the output of the next layer to process, by chunk, then by draw.
    gradients: States,
    draws: usize,
    /// Sampled positions by chunk.
    sample: &'e [Vec<u32>],
    angles: Vec<Arc<Angles>>,
    /// Layers left to process.
    left: usize,
    /// Gradients of norms and biases of the last layer or tables processed, if they are observed.
    parameters: Option<Parameters>,
}

/// Gradients of parameters that are no weights of linears, by tensor and its matrix.
pub(super) type Parameters = BTreeMap<(TensorId, usize), Vec<f32>>;

/// Adds the gradients of another chunk.
pub(super) fn add_parameters(all: &mut Parameters, some: Parameters) {
    for (tensor, gradient) in some {
        match all.entry(tensor) {
            Entry::Occupied(mut sum) => add(sum.get_mut(), &gradient),
            Entry::Vacant(place) => drop(place.insert(gradient)),
        }
    }
}

/// Inputs and output gradients of one linear, or of one expert's, at the sampled positions.
pub struct LinearSamples {
    /// The linear's tensor.
    pub name: String,
    /// The expert, or 0.
    pub matrix: usize,
    /// Number of experts of the tensor, or 1.
    pub matrices: usize,
    /// Length of an input row.
    pub columns: usize,
    /// Length of an output gradient row.
    pub width: usize,
    /// One piece per chunk, in order.
    pub pieces: Vec<Piece>,
}

/// The samples of one chunk in [`LinearSamples`].
pub struct Piece {
    /// `[rows, columns]`, shared by linears with the same input.
    pub inputs: Arc<Vec<f32>>,
    /// `[rows, width]` for each draw.
    pub gradients: Vec<Vec<f32>>,
}

/// Gradients of the rows that tokens look up in a table.
pub struct TableGradients {
    /// The table's tensor.
    pub name: String,
    /// Length of a row.
    pub columns: usize,
    /// In order.
    pub chunks: Vec<Embedded>,
}

/// Gradients of one chunk's rows of a table.
#[derive(Clone)]
pub struct Embedded {
    /// Tokens by position.
    pub tokens: Vec<u32>,
    /// `[positions, columns]` for each draw.
    pub gradients: Vec<Vec<f32>>,
}

/// Collects samples of one chunk in one layer.
struct Sampler<'s> {
    /// Ascending.
    positions: &'s [u32],
    samples: Mutex<Vec<Sample>>,
    parameters: Option<ParameterSums<'s>>,
}

/// Sums the gradients of norms and biases of one chunk.
pub(super) struct ParameterSums<'s> {
    catalog: &'s Catalog,
    sums: Mutex<Parameters>,
}

impl<'s> ParameterSums<'s> {
    pub(super) fn new(catalog: &'s Catalog) -> ParameterSums<'s> {
        ParameterSums {
            catalog,
            sums: Mutex::default(),
        }
    }

    pub(super) fn into_sums(self) -> Parameters {
        self.sums
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tap for ParameterSums<'_> {
    fn input(&self, _input: LinearInput<'_>) {}

    fn takes_parameters(&self) -> bool {
        true
    }

    fn parameter_gradient(&self, parameter: Parameter, gradient: &[f32]) {
        let tensor = match parameter {
            Parameter::Norm(tensor) => Some((tensor, 0)),
            Parameter::Bias(linear, matrix) => {
                let bias = self.catalog.linears()[linear.index()].bias;
                bias.map(|bias| (bias, matrix))
            }
        };
        let Some(tensor) = tensor else {
            return;
        };
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let one = Parameters::from([(tensor, gradient.to_vec())]);
        add_parameters(&mut sums, one);
    }
}

/// Samples of one linear in a chunk.
struct Sample {
    linear: LinearId,
    matrix: usize,
    matrices: usize,
    columns: usize,
    width: usize,
    piece: Piece,
}

impl Sampler<'_> {
    /// The rows of an input at the sampled positions.
    fn rows(&self, routed: Option<Routed<'_>>, rows: &Rows) -> Vec<f32> {
        let Some(routed) = routed else {
            return rows.select(self.positions).into_numbers();
        };
        let is_sampled = |position: &u32| self.positions.binary_search(position).is_ok();
        let sampled = (0u32..).zip(routed.positions);
        let sampled: Vec<u32> = sampled
            .filter(|(_, position)| is_sampled(position))
            .map(|(row, _)| row)
            .collect();
        rows.select(&sampled).into_numbers()
    }
}

impl Tap for Sampler<'_> {
    fn input(&self, input: LinearInput<'_>) {
        let inputs = Arc::new(self.rows(input.routed, input.rows));
        let (matrix, matrices) = input
            .routed
            .map_or((0, 1), |routed| (routed.expert, routed.experts));
        let sample = |linear: &LinearId| Sample {
            linear: *linear,
            matrix,
            matrices,
            columns: input.rows.columns(),
            width: 0,
            piece: Piece {
                inputs: inputs.clone(),
                gradients: Vec::new(),
            },
        };
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.extend(input.linears.iter().map(sample));
    }

    fn takes_parameters(&self) -> bool {
        self.parameters.is_some()
    }

    fn parameter_gradient(&self, parameter: Parameter, gradient: &[f32]) {
        if let Some(sums) = &self.parameters {
            sums.parameter_gradient(parameter, gradient);
        }
    }

    fn output_gradient(&self, gradient: OutputGradient<'_>) {
        let matrix = gradient.routed.map_or(0, |routed| routed.expert);
        let rows = self.rows(gradient.routed, gradient.rows);
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let mut samples = samples.iter_mut();
        let sample = samples.find(|s| (s.linear, s.matrix) == (gradient.linear, matrix));
        if let Some(sample) = sample {
            sample.width = gradient.rows.columns();
            sample.piece.gradients.push(rows);
        }
    }
}

impl<'a> Engine<'a> {
    /// Runs chunks of tokens of equal length, or texts of an embedding model, and stores the input of every
    /// layer; beyond the memory limit in a temporary file.
    ///
    /// # Errors
    /// Those of [`Engine::run`], and a temporary file that cannot be written.
    pub fn trace<'c>(
        &self,
        chunks: &'c [Vec<u32>],
        observer: Option<&dyn super::Observer>,
        progress: &dyn Progress,
    ) -> Result<Trace<'c>> {
        let positions = self.positions_of(chunks)?;
        let slots = self.slots(chunks, self.hyper.runs() + 1);
        let states = Slots::new(slots, self.layer_budget(positions))?;
        self.stream(chunks, &states, true, observer, progress)?;
        Ok(Trace {
            chunks,
            states,
            first: 0,
            positions,
        })
    }

    /// A trace with the inputs of some layers only, as computed by other processes: `input` returns
    /// that of a layer and a chunk. The output of the last layer counts as the input of a further one.
    ///
    /// # Errors
    /// Those of `input`, an input of another length, a temporary file that cannot be written.
    pub fn trace_of<'c>(
        &self,
        chunks: &'c [Vec<u32>],
        layers: Range<usize>,
        input: &dyn Fn(usize, usize) -> Result<Vec<f32>>,
    ) -> Result<Trace<'c>> {
        let positions = self.positions_of(chunks)?;
        let slots = self.slots(chunks, layers.len());
        let states = Slots::new(slots, self.layer_budget(positions))?;
        for (row, layer) in layers.clone().enumerate() {
            for chunk in 0..chunks.len() {
                let rows = self.checked(input(layer, chunk)?, chunks[chunk].len())?;
                states.put(row * chunks.len() + chunk, rows)?;
            }
        }
        Ok(Trace {
            chunks,
            states,
            first: layers.start,
            positions,
        })
    }

    /// Activations or gradients of a chunk between two layers, with a check of their number.
    fn checked(&self, numbers: Vec<f32>, positions: usize) -> Result<Vec<f32>> {
        match numbers.len() == positions * self.hyper.width() {
            true => Ok(numbers),
            false => Err(Error::Model("what was kept is of another run".into())),
        }
    }

    /// Draws labels from the logits and propagates their gradient to the last layer's output.
    /// `sample` holds the sampled positions of each chunk, ascending.
    ///
    /// # Errors
    /// Logits that are not finite, a temporary file that cannot be written, cancellation.
    pub fn backward<'e, 'c>(
        &'e self,
        trace: &'e Trace<'c>,
        labels: Labels,
        sample: &'e [Vec<u32>],
        progress: &dyn Progress,
    ) -> Result<Backward<'e, 'c>>
    where
        'a: 'e,
    {
        let (chunks, positions, layers) = (trace.chunks.len(), trace.positions, self.hyper.runs());
        let gradients = self.gradients(trace, labels.draws)?;
        let end = match self.has_output() {
            true => End::Head(self.head()?),
            false => End::Pooler(self.pooler()?),
        };
        progress.begin((layers + 1) as u64 * chunks as u64, Unit::Steps);
        progress.at("output");
        self.pool.install(|| -> Result<()> {
            (0..chunks).into_par_iter().try_for_each(|chunk| {
                if progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                let hidden = trace.output(self, chunk)?;
                let out = match &end {
                    End::Head(head) => label_gradients(head, &hidden, chunk, &labels, progress)?,
                    End::Pooler(pooler) => pooler.probes(&hidden, chunk, &labels),
                };
                progress.advance(1);
                out.into_iter().enumerate().try_for_each(|(d, out)| {
                    let bundle = self.with_carried(out);
                    let numbers = bundle.into_rows().into_numbers();
                    gradients.put(chunk * labels.draws + d, numbers)
                })
            })
        })?;
        let angles = self.angles(positions)?;
        Ok(Backward {
            engine: self,
            trace,
            gradients,
            draws: labels.draws,
            sample,
            angles,
            left: layers,
            parameters: None,
        })
    }

    /// Resumes a backward pass of an earlier process: `kept` holds the number of layers done and
    /// the gradients after them, as returned by [`Backward::done`] and [`Backward::gradient`].
    ///
    /// # Errors
    /// If `kept` does not fit the trace, or cannot be read.
    pub fn backward_again<'e, 'c>(
        &'e self,
        trace: &'e Trace<'c>,
        draws: usize,
        sample: &'e [Vec<u32>],
        kept: &Snapshot,
        progress: &dyn Progress,
    ) -> Result<Backward<'e, 'c>>
    where
        'a: 'e,
    {
        let (chunks, layers, width) = (trace.chunks.len(), self.hyper.runs(), self.hyper.width());
        let shape = [chunks * draws, trace.positions * width];
        let left = layers
            .checked_sub(kept.done())
            .filter(|_| kept.shape() == shape && are_even(trace.chunks));
        let left = left.ok_or_else(|| Error::Model("what was kept is of another run".into()))?;
        let gradient = |slot| Ok(kept.state(slot)?);
        let kept = Kept {
            left,
            gradient: &gradient,
        };
        self.backward_from(trace, draws, sample, kept, progress)
    }

    /// Continues a backward pass from the gradients of a layer's output.
    ///
    /// # Errors
    /// Those of the gradients, gradients of another length, a temporary file that cannot be written.
    pub fn backward_from<'e, 'c>(
        &'e self,
        trace: &'e Trace<'c>,
        draws: usize,
        sample: &'e [Vec<u32>],
        kept: Kept<'_>,
        progress: &dyn Progress,
    ) -> Result<Backward<'e, 'c>>
    where
        'a: 'e,
    {
        let (chunks, layers, left) = (trace.chunks.len(), self.hyper.runs(), kept.left);
        progress.begin((layers + 1) as u64 * chunks as u64, Unit::Steps);
        progress.advance(((layers - left + 1) * chunks) as u64);
        let gradients = self.gradients(trace, draws)?;
        for slot in 0..chunks * draws {
            let positions = trace.chunks[slot / draws].len();
            let gradient = self.checked((kept.gradient)(slot)?, positions)?;
            gradients.put(slot, gradient)?;
        }
        let angles = self.angles(trace.positions)?;
        Ok(Backward {
            engine: self,
            trace,
            gradients,
            draws,
            sample,
            angles,
            left,
            parameters: None,
        })
    }

    /// Starts a backward pass at the last layer's output, with one gradient `[positions, streams *
    /// hidden]` for each chunk, that also observes norms and biases.
    pub(super) fn backward_with_parameters<'e, 'c>(
        &'e self,
        trace: &'e Trace<'c>,
        starts: Vec<Rows>,
        sample: &'e [Vec<u32>],
    ) -> Result<Backward<'e, 'c>>
    where
        'a: 'e,
    {
        let gradients = self.gradients(trace, 1)?;
        for (chunk, start) in starts.into_iter().enumerate() {
            let bundle = self.with_carried(start);
            gradients.put(chunk, bundle.into_rows().into_numbers())?;
        }
        Ok(Backward {
            engine: self,
            trace,
            gradients,
            draws: 1,
            sample,
            angles: self.angles(trace.positions)?,
            left: self.hyper.runs(),
            parameters: Some(Parameters::new()),
        })
    }

    /// Storage for the gradients of one layer's output.
    fn gradients(&self, trace: &Trace<'_>, draws: usize) -> Result<States> {
        let width = self.hyper.width();
        let chunks = trace.chunks.iter();
        let lengths = chunks.flat_map(|chunk| (0..draws).map(|_| chunk.len() * width));
        States::new(lengths, self.layer_budget(trace.positions))
    }
}

impl Backward<'_, '_> {
    /// Number of layers done.
    pub fn done(&self) -> usize {
        self.engine.hyper.runs() - self.left
    }

    /// Number of gradients between two layers, and length of each; None if they differ in length.
    pub fn shape(&self) -> Option<[usize; 2]> {
        are_even(self.trace.chunks).then(|| {
            [
                self.trace.chunks.len() * self.draws,
                self.trace.positions * self.engine.hyper.width(),
            ]
        })
    }

    /// One of the gradients between two layers.
    ///
    /// # Errors
    /// A temporary file that cannot be read.
    pub fn gradient(&self, slot: usize) -> Result<Vec<f32>> {
        self.gradients.copy(slot)
    }

    /// The number of the next layer in reverse order, and samples of its linears.
    ///
    /// # Errors
    /// A gradient that is not finite; the error names layer and chunk.
    pub fn layer(
        &mut self,
        progress: &dyn Progress,
    ) -> Result<Option<(usize, Vec<LinearSamples>)>> {
        let Some(number) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        let engine = self.engine;
        let chunks = self.trace.chunks.len();
        progress.at(&format!("layer {number}"));
        let samples: Result<Vec<_>> = engine.pool.install(|| {
            let layer = Layer::load(&engine.weights, &engine.spec.layers[number], &self.angles)?;
            let one = |chunk: usize| {
                if progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                let samples = self.chunk(&layer, [number, chunk], progress)?;
                progress.advance(1);
                Ok(samples)
            };
            (0..chunks).into_par_iter().map(one).collect()
        });
        let (samples, parameters): (Vec<_>, Vec<_>) = samples?.into_iter().unzip();
        if let Some(all) = &mut self.parameters {
            all.clear();
            parameters
                .into_iter()
                .for_each(|some| add_parameters(all, some));
        }
        let mut linears: BTreeMap<(&str, usize), LinearSamples> = BTreeMap::new();
        // Indexers choose and are not derived: nothing of the output depends on their weights.
        let derived = |sample: &Sample| !sample.piece.gradients.is_empty();
        for sample in samples.into_iter().flatten().filter(derived) {
            let name = &*engine.catalog().weight(sample.linear).name;
            let all = linears
                .entry((name, sample.matrix))
                .or_insert_with(|| LinearSamples {
                    name: name.to_owned(),
                    matrix: sample.matrix,
                    matrices: sample.matrices,
                    columns: sample.columns,
                    width: sample.width,
                    pieces: Vec::new(),
                });
            all.pieces.push(sample.piece);
        }
        self.left = number;
        Ok(Some((number, linears.into_values().collect())))
    }

    /// Propagates one chunk's gradient through one layer.
    fn chunk(
        &self,
        layer: &Layer,
        [number, chunk]: [usize; 2],
        progress: &dyn Progress,
    ) -> Result<(Vec<Sample>, Parameters)> {
        let (chunks, engine) = (self.trace.chunks.len(), self.engine);
        let takes = self.parameters.is_some();
        let sampler = Sampler {
            positions: &self.sample[chunk],
            samples: Mutex::default(),
            parameters: takes.then(|| ParameterSums::new(engine.catalog())),
        };
        let pass = Pass {
            chunk,
            tap: Some(&sampler),
            recording: true,
            split: engine.split(chunks),
            stored: Some(&engine.weights),
            progress,
        };
        let input = engine.bundle(self.trace.input(number, chunk)?);
        let (_, tape) = layer.record(input, &pass)?;
        for draw in 0..self.draws {
            let slot = chunk * self.draws + draw;
            let gradient = engine.bundle(self.gradients.take(slot)?);
            let below = layer.backward(&tape, gradient, &pass)?.into_rows();
            if !below.is_finite() {
                return Err(Error::GradientNotFinite {
                    layer: number,
                    chunk,
                });
            }
            self.gradients.put(slot, below.into_numbers())?;
        }
        drop(tape);
        let parameters = sampler.parameters.map(ParameterSums::into_sums);
        let samples = sampler.samples.into_inner();
        let samples = samples.unwrap_or_else(PoisonError::into_inner);
        Ok((samples, parameters.unwrap_or_default()))
    }

    /// Gradients of norms and biases of the last layer or tables processed.
    pub(super) fn take_parameters(&mut self) -> Parameters {
        self.parameters
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Gradients of the looked-up rows of every table; valid after the last layer.
    ///
    /// # Errors
    /// A temporary file that cannot be read.
    pub fn tables(&mut self) -> Result<Vec<TableGradients>> {
        debug_assert_eq!(self.left, 0, "layers are left");
        let embedder = self.engine.embedder()?;
        let mut tables = embedder.tables();
        for (chunk, tokens) in self.trace.chunks.iter().enumerate() {
            let draw = |draw: usize| -> Result<_> {
                let gradient = self.gradients.copy(chunk * self.draws + draw)?;
                Ok(self.engine.bundle(gradient))
            };
            let draws = (0..self.draws).map(draw).collect::<Result<Vec<_>>>()?;
            let sums = ParameterSums::new(self.engine.catalog());
            let tap = self.parameters.is_some().then_some(&sums as &dyn Tap);
            let embedded = embedder.derivative(tokens, draws, &of_chunk(chunk, tap))?;
            if let Some(all) = &mut self.parameters {
                add_parameters(all, sums.into_sums());
            }
            let places = tables.iter_mut().zip(embedded);
            places.for_each(|(table, embedded)| table.chunks.push(embedded));
        }
        Ok(tables)
    }
}

impl Trace<'_> {
    /// Input of the head for a chunk: `[positions, streams * hidden]`.
    ///
    /// # Errors
    /// If the temporary file cannot be read.
    pub fn output(&self, engine: &Engine<'_>, chunk: usize) -> Result<Rows> {
        let hidden = engine.stream_of(self.input(engine.hyper.runs(), chunk)?);
        Ok(Rows::new(hidden, engine.hyper.stream_width()))
    }

    /// Input of a layer for a chunk, or after the last layer its output: `[positions * hidden]`.
    ///
    /// # Errors
    /// If the temporary file cannot be read.
    pub fn input(&self, layer: usize, chunk: usize) -> Result<Vec<f32>> {
        let row = layer - self.first;
        self.states.copy(row * self.chunks.len() + chunk)
    }
}

/// What makes the model's result of the last layer's output.
enum End<'e> {
    Head(Head<'e>),
    Pooler(Pooler),
}

/// Draws labels for a chunk from the last layer's output `hidden`, and returns their gradients by it, one for each
/// draw.
fn label_gradients(
    head: &Head<'_>,
    hidden: &Rows,
    chunk: usize,
    labels: &Labels,
    progress: &dyn Progress,
) -> Result<Vec<Rows>> {
    let width = hidden.columns();
    let mut out = vec![Vec::with_capacity(hidden.numbers().len()); labels.draws];
    for (block, rows) in hidden.numbers().chunks(LOGIT_ROWS * width).enumerate() {
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let rows = Rows::new(rows.to_vec(), width);
        let logits = head.logits(&rows, chunk, None)?;
        for (draw, out) in out.iter_mut().enumerate() {
            let of_row = |(row, logits): (usize, &[f32])| {
                let position = block * LOGIT_ROWS + row;
                label_gradient(logits, labels.random(chunk, position, draw))
            };
            let gradient = logits.iter().enumerate().flat_map(of_row).collect();
            let gradient = Rows::new(gradient, logits.columns());
            let gradient = head.output_gradient(&logits, gradient);
            let gradient = head.derivative(&rows, &gradient, &of_chunk(chunk, None))?;
            out.extend_from_slice(gradient.numbers());
        }
    }
    Ok(out.into_iter().map(|out| Rows::new(out, width)).collect())
}

/// The gradient of `ln p(label)` with respect to the logits: one-hot label minus the probabilities.
/// `random` in `0..1` draws the label.
fn label_gradient(logits: &[f32], random: f64) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut gradient: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = gradient.iter().map(|e| f64::from(*e)).sum();
    let mut left = random * sum;
    let label = gradient.iter().position(|e| {
        left -= f64::from(*e);
        left < 0.0
    });
    let scale = (-1.0 / sum) as f32;
    gradient.iter_mut().for_each(|e| *e *= scale);
    // Rounding can leave a remainder: it goes to the last token with a nonzero probability.
    let label = label.or_else(|| gradient.iter().rposition(|e| *e != 0.0));
    if let Some(label) = label {
        gradient[label] += 1.0;
    }
    gradient
}

impl Labels {
    /// A random number in `0..1` for one draw at a position of a chunk.
    pub(super) fn random(&self, chunk: usize, position: usize, draw: usize) -> f64 {
        let key = [self.first + chunk, position, draw]
            .iter()
            .fold(self.seed, |key, n| mixed(key ^ (*n as u64)));
        (key >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): a step of the sequence, then its finalizer.
pub fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_the_distribution_and_gradients_sum_to_zero() {
        let logits = [0.5f32, -1.0, 2.0, f32::MIN];
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let labels = Labels {
            draws: 2,
            seed: 3,
            first: 0,
        };
        let mut counts = [0usize; 4];
        const ROWS: usize = 20_000;
        for position in 0..ROWS {
            let gradient = label_gradient(&logits, labels.random(1, position, 1));
            assert!(gradient.iter().sum::<f32>().abs() < 1e-6);
            counts[gradient.iter().position(|g| *g > 0.0).unwrap()] += 1;
        }
        for (count, logit) in counts.iter().zip(logits) {
            let p = f64::from(logit).exp() / sum;
            let spread = (p * (1.0 - p) / ROWS as f64).sqrt();
            assert!(
                (*count as f64 / ROWS as f64 - p).abs() < 4.0 * spread + 1e-9,
                "{counts:?}"
            );
        }
        assert_ne!(labels.random(1, 2, 0), labels.random(2, 1, 0));
        let later = Labels { first: 1, ..labels };
        assert_eq!(labels.random(1, 2, 0), later.random(0, 2, 0));
        assert_eq!(
            label_gradient(&logits, 1.0 - 1e-17)
                .iter()
                .position(|g| *g > 0.0),
            Some(2)
        );
    }
}
