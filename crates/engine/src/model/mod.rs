//! The forward pass: a decoder described by data, run layer by layer over all chunks, each weight
//! widened once.
//!
//! ```text
//! Engine::new      hyperparameters from the metadata, and the model's tensors
//! Engine::run      for each layer: widen it, run every chunk through it in parallel; -> Hidden
//! Engine::head     final norm and output matrix: hidden activations -> logits
//! ```
//!
//! Weights of any type are dequantized by our own code and multiplied in f32, so that measured
//! differences come from the weights alone. Results do not depend on the number of chunks or on
//! their order of computation.

pub mod backward;
#[cfg(feature = "candle")]
mod candle;
mod device;
mod embed;
mod gradients;
mod head;
mod layer;
mod linear;
mod mixer;
mod nextn;
mod ops;
mod order;
mod pooler;
mod rerun;
mod rows;
mod sequential;
mod states;
mod streams;
mod weights;

use layer::{Bundle, Layer};
use linear::Pass;
use ops::rope::Angles;
use quantier_arch::Input;
use quantier_arch::spec::ModelSpec;
use quantier_arch::{Catalog, LinearId, TensorId, role};
use quantier_core::progress::{Progress, Unit};
use quantier_core::{threads, words};
use rayon::prelude::*;
use states::{Layout, Slots, States};
use std::ops::Range;
use std::sync::Arc;
use weights::Weights;

pub use device::{Backend, Device, Uploaded, device};
pub use gradients::{BaseLogits, Batch, ParameterGradients, RowGradient};
pub use head::Head;
pub use linear::{LinearWeights, Matrices};
pub use ops::delta::delta_rule;
pub use ops::product::rows_times_rows;
pub use order::in_order;
pub use pooler::Pooler;
pub use quantier_arch::hyper::{AttentionNumbers, Hyper, Rotation};
pub use quantier_core::turns::Turns;
pub use rows::Rows;
pub use sequential::SequentialRounder;
pub use weights::{Changed, Replaced};

/// Rows of hidden activations per block of logits.
pub const LOGIT_ROWS: usize = 64;

/// Errors of a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model is not supported, or is damaged.
    #[error("{0}")]
    Model(String),
    /// A file or a snapshot could not be read.
    #[error(transparent)]
    Format(#[from] quantier_gguf::Error),
    /// Activations are not finite.
    #[error(
        "layer {layer}, chunk {chunk}: the activations are not finite; the model is damaged, or its numbers are too \
         large for f32"
    )]
    NotFinite {
        /// The layer, counted from 0.
        layer: usize,
        /// The chunk, counted from 0.
        chunk: usize,
    },
    /// A gradient is not finite.
    #[error(
        "layer {layer}, chunk {chunk}: the gradients are not finite; choose types by --score imatrix, which needs none"
    )]
    GradientNotFinite {
        /// The layer, counted from 0.
        layer: usize,
        /// The chunk, counted from 0.
        chunk: usize,
    },
    /// The temporary file for activations could not be written or read.
    #[error(
        "the temporary file for activations: {0}; see that TMPDIR has room, or raise --max-memory"
    )]
    Spill(std::io::Error),
    /// A device failed.
    #[error("computing: {0}")]
    Device(String),
    /// Cancelled.
    #[error("stopped")]
    Cancelled,
}

impl Error {
    /// True if a repeated run would fail in the same way.
    pub fn is_final(&self) -> bool {
        !matches!(self, Error::Cancelled | Error::Spill(_) | Error::Format(_))
    }
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// The input of some linears in a chunk.
#[derive(Clone, Copy, Debug)]
pub struct LinearInput<'a> {
    /// The chunk, counted from 0.
    pub chunk: usize,
    /// All linears that read these rows.
    pub linears: &'a [LinearId],
    /// The expert or head that reads the rows; None for a linear of one matrix.
    pub routed: Option<Routed<'a>>,
    /// The activations.
    pub rows: &'a Rows,
}

/// The output gradient of a linear in a chunk.
#[derive(Clone, Copy, Debug)]
pub struct OutputGradient<'a> {
    /// The chunk, counted from 0.
    pub chunk: usize,
    /// The linear.
    pub linear: LinearId,
    /// The expert or head of the output; None for a linear of one matrix.
    pub routed: Option<Routed<'a>>,
    /// The gradient.
    pub rows: &'a Rows,
}

/// Positions routed to one expert; for a head, all positions.
#[derive(Clone, Copy, Debug)]
pub struct Routed<'a> {
    /// The expert or head.
    pub expert: usize,
    /// Number of experts or heads.
    pub experts: usize,
    /// The position of each row, ascending.
    pub positions: &'a [u32],
}

/// A parameter that is no weight of a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// The weights or the bias of a norm.
    Norm(TensorId),
    /// The bias of a linear's matrix, or of an expert's.
    Bias(LinearId, usize),
}

/// Observes linears. Chunks call from several threads at a time, but the calls of one chunk keep
/// their order.
pub trait Tap: Sync {
    /// Called before linears multiply this input.
    fn input(&self, input: LinearInput<'_>);

    /// Called with the output gradient of a linear.
    fn output_gradient(&self, _gradient: OutputGradient<'_>) {}

    /// True if the gradients of norms and biases are observed too.
    fn takes_parameters(&self) -> bool {
        false
    }

    /// Called with the gradient of a chunk by a parameter that is no weight of a linear, in a backward
    /// pass only; several times for a parameter that is used several times.
    fn parameter_gradient(&self, _parameter: Parameter, _gradient: &[f32]) {}

    /// True if every expert is to see every position, in forward passes only; the outputs of a
    /// layer remain those of the routed positions.
    fn sees_all_experts(&self) -> bool {
        false
    }
}

/// Stores the activations of a slot; one slot per chunk.
pub type Put<'p> = &'p mut dyn FnMut(usize, Vec<f32>) -> Result<()>;
/// Returns the activations of a slot.
pub type Get<'g> = &'g dyn Fn(usize) -> Result<Vec<f32>>;

/// Observes a run, and may save its state between two layers for another process.
pub trait Observer: Tap {
    /// A chunk has left the layer. Chunks end in approximately ascending order. An error ends the
    /// run.
    fn chunk_done(&self, _chunk: usize) -> Result<()> {
        Ok(())
    }

    /// All chunks have left the layer. An error ends the run.
    fn layer_done(&self, _layer: usize) -> Result<()> {
        Ok(())
    }

    /// Number of layers done by an earlier run. If it is not 0, the activations after them,
    /// `[positions, hidden]` of every chunk, are passed to `put`.
    fn resume(&self, _put: Put<'_>) -> Result<usize> {
        Ok(0)
    }

    /// Called when `done` layers are done: the activations can be saved now, and `get` returns
    /// them. An error ends the run.
    fn keep(&self, _done: usize, _get: Get<'_>) -> Result<()> {
        Ok(())
    }
}

/// Settings of an engine.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Number of threads; 0 for one per core.
    pub threads: usize,
    /// Limit in bytes for weights and activations; further activations go to a temporary file.
    pub max_memory: Option<u64>,
    /// The device of products with weights.
    pub device: Device,
}

/// A model, ready to run.
pub struct Engine<'a> {
    /// Hyperparameters from the metadata.
    pub hyper: Hyper,
    /// Structure of the forward pass.
    spec: Arc<ModelSpec>,
    weights: Weights<'a>,
    pool: Arc<rayon::ThreadPool>,
    max_memory: Option<u64>,
    reserved: u64,
}

/// Activations after the last layer, for selected rows of every chunk.
pub struct Hidden {
    states: States,
    rows: usize,
    width: usize,
    /// Bytes that were kept in a temporary file during the run.
    pub spilled_bytes: u64,
}

/// True if all chunks have the same length, as snapshots require.
pub fn are_even(chunks: &[Vec<u32>]) -> bool {
    chunks.windows(2).all(|pair| pair[0].len() == pair[1].len())
}

/// Length of the longest chunk.
fn longest(chunks: &[Vec<u32>]) -> usize {
    chunks.iter().map(Vec::len).max().unwrap_or(0)
}

/// Refuses a model without tensors that its architecture needs; the error lists them.
fn check_complete(hyper: &Hyper, catalog: &Catalog) -> std::result::Result<(), String> {
    /// Maximum number of tensors listed.
    const NAMED: usize = 12;
    let missing = hyper.missing(catalog);
    if missing.is_empty() {
        return Ok(());
    }
    let mut tensors = catalog.tensors().iter();
    let remedy = match tensors.any(|tensor| role::is_single_expert(&tensor.name)) {
        true => {
            "the file is old: it has one tensor for each expert; convert the original model again"
        }
        false => "the file is not complete",
    };
    let names: Vec<&str> = missing.iter().map(String::as_str).collect();
    Err(format!(
        "models of architecture {} do not run without these tensors, which are missing: {}; {remedy}",
        hyper.architecture,
        words::listed(&names, NAMED)
    ))
}

impl<'a> Engine<'a> {
    /// Reads the metadata and checks that the architecture is supported.
    ///
    /// # Errors
    /// An unsupported architecture, missing or wrong metadata, missing tensors, or a failure to
    /// start threads.
    pub fn new(input: &'a Input<'a>, options: &Options) -> Result<Engine<'a>> {
        let pool = threads::pool(options.threads).map_err(Error::Model)?;
        let hyper = Hyper::new(input.metadata()).map_err(Error::Model)?;
        check_complete(&hyper, input.catalog()).map_err(Error::Model)?;
        Ok(Engine {
            spec: Arc::new(ModelSpec::new(&hyper, input.catalog())),
            hyper,
            weights: Weights::new(input, options, pool.current_num_threads()),
            pool: Arc::new(pool),
            max_memory: options.max_memory,
            reserved: 0,
        })
    }

    /// Checks presence and shapes of the tensors of a run, without reading any.
    ///
    /// # Errors
    /// Tensors that are missing or have the wrong shape.
    pub fn check(&self) -> Result<()> {
        let weights = self.weights.shapes_only();
        self.check_embedder()?;
        for layer in &self.spec.layers {
            Layer::load(&weights, layer, &[])?;
        }
        match self.has_output() {
            true => drop(weights.linear(&self.spec.output)?),
            false => self.check_dense(&weights)?,
        }
        if let Some(spec) = &self.spec.nextn {
            weights.linear(&spec.projection)?;
            Layer::load(&weights, &spec.layer, &[])?;
        }
        self.head_input(&weights)?;
        Ok(())
    }

    /// The thread pool of the runs.
    pub fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// False for an embedding model, which predicts no tokens.
    pub fn has_output(&self) -> bool {
        self.hyper.pooling.is_none()
    }

    /// Number of rows of the output matrix; for an embedding model, of the table of tokens.
    pub fn vocabulary(&self) -> usize {
        self.spec.output.rows
    }

    /// Memory limit in bytes; `None` for no limit.
    pub fn max_memory(&self) -> Option<u64> {
        self.max_memory
    }

    /// Reserves this part of the memory limit for the caller.
    pub fn reserve(&mut self, bytes: u64) {
        self.reserved = bytes;
    }

    /// The model's catalog.
    pub fn catalog(&self) -> &'a Catalog {
        self.weights.catalog()
    }

    /// Name of the output matrix.
    pub fn output_name(&self) -> &'static str {
        self.spec.output_name
    }

    /// Runs chunks of tokens of equal length, or texts of an embedding model, and keeps the activations of
    /// the rows `keep` of each, as far as there are so many.
    ///
    /// # Errors
    /// Chunks that differ in length, and the errors of [`Engine::run_each`].
    pub fn run(
        &self,
        chunks: &[Vec<u32>],
        keep: Range<usize>,
        observer: Option<&dyn Observer>,
        progress: &dyn Progress,
    ) -> Result<Hidden> {
        self.positions_of(chunks)?;
        let of = |chunk: &Vec<u32>| {
            let end = keep.end.min(chunk.len());
            keep.start.min(end)..end
        };
        let keep: Vec<_> = match self.has_output() {
            true => chunks.iter().map(|_| keep.clone()).collect(),
            false => chunks.iter().map(of).collect(),
        };
        self.run_each(chunks, &keep, observer, progress)
    }

    /// Runs chunks of tokens of any lengths and keeps the activations of a range of rows of each.
    ///
    /// # Errors
    /// Tensors that are missing or have the wrong shape, activations that are not finite, a token
    /// outside the vocabulary, ranges that exceed their chunks.
    pub fn run_each(
        &self,
        chunks: &[Vec<u32>],
        keep: &[Range<usize>],
        observer: Option<&dyn Observer>,
        progress: &dyn Progress,
    ) -> Result<Hidden> {
        let is_within = |(chunk, keep): (&Vec<u32>, &Range<usize>)| keep.end <= chunk.len();
        if chunks.len() != keep.len() || !chunks.iter().zip(keep).all(is_within) {
            return Err(Error::Model("the kept rows exceed the chunks".into()));
        }
        let (width, all) = (self.hyper.stream_width(), self.hyper.width());
        let budget = self.layer_budget(longest(chunks));
        let states = Slots::new(self.slots(chunks, 1), budget)?;
        self.stream(chunks, &states, false, observer, progress)?;
        let spilled_bytes = states.spilled_bytes();
        let kept = States::new(
            keep.iter().map(|keep| keep.len() * width),
            self.budget(self.head_bytes() + self.logit_bytes()),
        )?;
        for (chunk, keep) in keep.iter().enumerate() {
            let rows = states.take(chunk)?[keep.start * all..keep.end * all].to_vec();
            let Bundle { stream, .. } = Bundle::new(Rows::new(rows, all), width);
            kept.put(chunk, stream.into_numbers())?;
        }
        Ok(Hidden {
            states: kept,
            rows: keep.first().map_or(0, |keep| keep.len()),
            width,
            spilled_bytes,
        })
    }

    /// The common length of some chunks; of the texts of an embedding model, the length of the longest.
    fn positions_of(&self, chunks: &[Vec<u32>]) -> Result<usize> {
        match are_even(chunks) || !self.has_output() {
            true => Ok(longest(chunks)),
            false => Err(Error::Model("chunks differ in length".into())),
        }
    }

    /// Runs all layers over all chunks. `states` has one slot per chunk, or with `keep_inputs` one
    /// per layer and chunk, followed by the outputs of the last layer.
    fn stream(
        &self,
        chunks: &[Vec<u32>],
        states: &Slots,
        keep_inputs: bool,
        observer: Option<&dyn Observer>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let slot = |layer: usize, chunk: usize| {
            if keep_inputs {
                layer * chunks.len() + chunk
            } else {
                chunk
            }
        };
        self.pool.install(|| {
            let resume = observer.filter(|_| !keep_inputs);
            let done = resume.map_or(Ok(0), |observer| {
                observer.resume(&mut |chunk, x| states.put(chunk, x))
            })?;
            if done == 0 {
                let embedder = self.embedder()?;
                let chunks = chunks.par_iter().enumerate();
                chunks.try_for_each(|(i, tokens)| {
                    let plain = |_: &str, _: &[u32], _: &mut [f32]| Ok::<_, Error>(());
                    let x = embedder.input(tokens, plain)?;
                    states.put(i, x.into_rows().into_numbers())
                })?;
            }
            let angles = self.angles(longest(chunks))?;
            let layers = self.hyper.runs();
            progress.begin((layers * chunks.len()) as u64, Unit::Steps);
            progress.advance((done * chunks.len()) as u64);
            for number in done..layers {
                progress.at(&format!("layer {} of {layers}", number + 1));
                let layer = Layer::load(&self.weights, &self.spec.layers[number], &angles)?;
                self.weights
                    .prefetch_layer((number + 1) % self.hyper.layers);
                in_order(chunks.len(), |chunk| {
                    if progress.cancelled() {
                        return Err(Error::Cancelled);
                    }
                    let from = slot(number, chunk);
                    let x = if keep_inputs {
                        states.copy(from)?
                    } else {
                        states.take(from)?
                    };
                    let pass = Pass {
                        chunk,
                        tap: observer.map(|observer| observer as &dyn Tap),
                        recording: false,
                        split: self.split(chunks.len()),
                        stored: Some(&self.weights),
                        progress,
                    };
                    let behind = layer.forward(self.bundle(x), &pass)?;
                    if !behind.stream.is_finite() {
                        return Err(Error::NotFinite {
                            layer: number,
                            chunk,
                        });
                    }
                    progress.advance(1);
                    let rows = behind.into_rows();
                    states.put(slot(number + 1, chunk), rows.into_numbers())?;
                    observer.map_or(Ok(()), |observer| observer.chunk_done(chunk))
                })?;
                if let Some(observer) = observer {
                    observer.layer_done(number)?;
                    observer.keep(number + 1, &|chunk| states.copy(slot(number + 1, chunk)))?;
                }
            }
            Ok(())
        })
    }

    /// Sizes of the slots of bundles.
    fn slots<'c>(&self, chunks: &'c [Vec<u32>], layers: usize) -> Layout<'c> {
        Layout {
            chunks,
            layers,
            width: self.hyper.width(),
            constant: self.hyper.constant(),
        }
    }

    /// The bundle stored in a slot.
    fn bundle(&self, numbers: Vec<f32>) -> Bundle {
        let rows = Rows::new(numbers, self.hyper.width());
        Bundle::new(rows, self.hyper.stream_width())
    }

    /// The bundle of streams, with zeros in the carried columns.
    fn with_carried(&self, stream: Rows) -> Bundle {
        let carried = self.hyper.carried();
        Bundle {
            carried: (carried > 0).then(|| Rows::zeros(stream.len(), carried)),
            ..Bundle::of(stream)
        }
    }

    /// The streams stored in a slot.
    fn stream_of(&self, numbers: Vec<f32>) -> Vec<f32> {
        self.bundle(numbers).stream.into_numbers()
    }

    /// Threads per product with `chunks` chunks in parallel.
    fn split(&self, chunks: usize) -> usize {
        (self.pool.current_num_threads() / chunks.max(1)).max(1)
    }

    /// Bytes of the largest layer's weights in f32, as far as they are in memory together.
    pub fn layer_bytes(&self) -> u64 {
        self.weights.largest_layer()
    }

    /// True if experts are widened one at a time, when they multiply: those of a layer exceed their
    /// share of [`Options::max_memory`].
    pub fn widens_experts_on_use(&self) -> bool {
        self.weights.is_by_matrix()
    }

    /// Memory for activations between layers, in bytes.
    fn layer_budget(&self, positions: usize) -> u64 {
        let working = self
            .weights
            .working_bytes(positions, self.hyper.stream_width());
        let working = working * self.pool.current_num_threads() as u64;
        self.budget(self.weights.largest_layer() + working)
    }

    /// Memory for activations beside `weights` bytes of weights.
    fn budget(&self, weights: u64) -> u64 {
        self.max_memory.map_or(u64::MAX, |all| {
            all.saturating_sub(weights.saturating_add(self.reserved))
        })
    }

    /// The angles of [`Hyper::rotations`].
    fn angles(&self, positions: usize) -> Result<Vec<Arc<Angles>>> {
        if let Some(longest) = self
            .hyper
            .longest_context
            .filter(|longest| positions > *longest)
        {
            return Err(Error::Model(format!(
                "contexts of {positions} tokens cannot be run here yet: beyond {longest} tokens attention sees only blocks \
                 that an indexer chooses; choose a shorter one (-c)"
            )));
        }
        let rotations = self.hyper.rotations.iter();
        // Step 3.5's factors are as many as windowed layers have pairs, although only the others use them.
        let is_shared = self.hyper.decoder.half_rotated;
        let with_factors = rotations.filter(|rotation| rotation.has_factors || is_shared);
        let widest = with_factors.map(|rotation| rotation.length / 2);
        let widest = widest.max().unwrap_or(0);
        let table = |rotation: &Rotation| {
            let long = positions > rotation.original_context;
            let pairs = rotation.length / 2;
            let factors = self
                .spec
                .rope_factors(long)
                .filter(|_| rotation.has_factors)
                .map(|name| self.weights.tensor(name, &[widest]))
                .transpose()?;
            let (cosines, sines) = rotation.table(positions, factors.as_deref());
            Ok(Arc::new(Angles {
                cosines,
                sines,
                pairs,
            }))
        };
        self.hyper.rotations.iter().map(table).collect()
    }
}

impl Hidden {
    /// Number of rows kept of the first chunk, and of every one of [`Engine::run`].
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes held in memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.states.memory_bytes()
    }

    /// Rows of a chunk: `[rows, streams * hidden]`.
    ///
    /// # Errors
    /// If the temporary file cannot be read.
    pub fn rows_of(&self, chunk: usize) -> Result<Rows> {
        Ok(Rows::new(self.states.copy(chunk)?, self.width))
    }

    /// Moves the rows of a chunk out; they are not available afterwards.
    ///
    /// # Errors
    /// If the temporary file cannot be read.
    pub fn take(&self, chunk: usize) -> Result<Rows> {
        Ok(Rows::new(self.states.take(chunk)?, self.width))
    }
}
