//! The forward pass: a decoder described by data, layer by layer over all chunks, each weight
//! widened once.
//!
//! ```text
//! Engine::new      the metadata's numbers, and where the tensors are
//! Engine::run      for each layer: widen it, then every chunk through it, side by side; -> Hidden
//! Engine::head     the last norm and the output matrix: hidden activations -> logits
//! ```
//!
//! Weights of any type are dequantized by our own code and multiplied in f32, so that what is
//! measured is the weights alone. Results do not depend on how many chunks there are or on the
//! order in which they are computed.

pub mod backward;
#[cfg(feature = "candle")]
mod candle;
mod device;
mod head;
mod layer;
mod linear;
mod mixer;
mod nextn;
mod ops;
mod order;
mod rerun;
mod rows;
mod sequential;
mod states;
mod weights;

use layer::{Bundle, Layer};
use linear::{Norm, Pass};
use ops::rope::Angles;
use quantier_arch::Input;
use quantier_arch::spec::ModelSpec;
use quantier_arch::{Catalog, LinearId, role};
use quantier_core::progress::{Progress, Unit};
use quantier_core::{threads, words};
use rayon::prelude::*;
use states::States;
use std::ops::Range;
use std::sync::Arc;
use weights::Weights;

pub use device::{Backend, Device, Uploaded, device};
pub use head::Head;
pub use ops::delta::delta_rule;
pub use ops::product::rows_times_rows;
pub use order::in_order;
pub use quantier_arch::hyper::{AttentionNumbers, Hyper, Rotation};
pub use quantier_core::turns::Turns;
pub use rows::Rows;
pub use sequential::SequentialRounder;
pub use weights::Replaced;

/// Rows of hidden activations that are turned into logits at a time.
pub const LOGIT_ROWS: usize = 64;

/// Why a model could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model is not one that can be run.
    #[error("{0}")]
    Model(String),
    /// A file, or a snapshot, could not be read.
    #[error(transparent)]
    Format(#[from] quantier_gguf::Error),
    /// Activations are not numbers any more.
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
    /// A gradient is no number any more.
    #[error(
        "layer {layer}, chunk {chunk}: the gradients are not finite; choose types by --score imatrix, which needs none"
    )]
    GradientNotFinite {
        /// The layer, counted from 0.
        layer: usize,
        /// The chunk, counted from 0.
        chunk: usize,
    },
    /// The temporary file for activations failed.
    #[error(
        "the temporary file for activations: {0}; see that TMPDIR has room, or raise --max-memory"
    )]
    Spill(std::io::Error),
    /// A device failed.
    #[error("computing: {0}")]
    Device(String),
    /// Stopped from outside.
    #[error("stopped")]
    Cancelled,
}

impl Error {
    /// Whether the same run, started again, would come to the same end.
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
    /// The expert or head that the rows are for; None if there is one matrix for all positions.
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
    /// The expert or head that the rows are of; None if there is one matrix for all positions.
    pub routed: Option<Routed<'a>>,
    /// The gradient, row by row.
    pub rows: &'a Rows,
}

/// Positions that one expert sees, or one head, which sees all of them.
#[derive(Clone, Copy, Debug)]
pub struct Routed<'a> {
    /// The expert or head.
    pub expert: usize,
    /// How many there are.
    pub experts: usize,
    /// The position of each row, rising.
    pub positions: &'a [u32],
}

/// Watches linears. Chunks come from several threads at a time, but those of one chunk always in
/// the same order.
pub trait Tap: Sync {
    /// Linears are about to read this input.
    fn input(&self, input: LinearInput<'_>);

    /// The gradient has come back to this output.
    fn output_gradient(&self, _gradient: OutputGradient<'_>) {}

    /// True if every expert is shown every position, in forward passes alone; the outputs of a layer
    /// remain those of the routed positions.
    fn sees_all_experts(&self) -> bool {
        false
    }
}

/// Takes activations, or gives them, slot by slot: one slot per chunk.
pub type Put<'p> = &'p mut dyn FnMut(usize, Vec<f32>) -> Result<()>;
/// Gives the activations of a slot.
pub type Get<'g> = &'g dyn Fn(usize) -> Result<Vec<f32>>;

/// Watches a run, and may keep its state between two layers so that another process can go on.
pub trait Observer: Tap {
    /// A chunk has left the layer. Chunks end about in their order. An error ends the run.
    fn chunk_done(&self, _chunk: usize) -> Result<()> {
        Ok(())
    }

    /// All chunks have left the layer. An error ends the run.
    fn layer_done(&self, _layer: usize) -> Result<()> {
        Ok(())
    }

    /// How many layers a former run has done. If there are any, the activations `[positions,
    /// hidden]` behind them are handed to `put`, those of every chunk.
    fn resume(&self, _put: Put<'_>) -> Result<usize> {
        Ok(0)
    }

    /// So many layers are done: the time to keep the activations, which `get` gives. An error ends
    /// the run.
    fn keep(&self, _done: usize, _get: Get<'_>) -> Result<()> {
        Ok(())
    }
}

/// How a model is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads; 0 takes one per core.
    pub threads: usize,
    /// Bytes that weights and activations may take; activations beyond it go to a temporary file.
    pub max_memory: Option<u64>,
    /// Where tensors are computed.
    pub device: Device,
}

/// A model that can be run.
pub struct Engine<'a> {
    /// What its metadata says.
    pub hyper: Hyper,
    /// What its forward pass is made of.
    spec: Arc<ModelSpec>,
    weights: Weights<'a>,
    pool: Arc<rayon::ThreadPool>,
    max_memory: Option<u64>,
    reserved: u64,
}

/// The activations behind the last layer, for some rows of every chunk.
pub struct Hidden {
    states: States,
    rows: usize,
    width: usize,
    /// Bytes that were kept in a temporary file meanwhile.
    pub spilled_bytes: u64,
}

/// Refuses a model without tensors that its architecture needs; names them.
fn check_complete(hyper: &Hyper, catalog: &Catalog) -> std::result::Result<(), String> {
    /// Tensors that are named.
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
    /// Reads the metadata and checks that the architecture is known.
    ///
    /// # Errors
    /// An unsupported architecture, missing or wrong metadata, missing tensors, no threads.
    pub fn new(input: &'a Input<'a>, options: &Options) -> Result<Engine<'a>> {
        let pool = threads::pool(options.threads).map_err(Error::Model)?;
        let hyper = Hyper::new(input.metadata()).map_err(Error::Model)?;
        check_complete(&hyper, input.catalog()).map_err(Error::Model)?;
        Ok(Engine {
            spec: Arc::new(ModelSpec::new(&hyper, input.catalog())),
            hyper,
            weights: Weights::new(input, &options.device),
            pool: Arc::new(pool),
            max_memory: options.max_memory,
            reserved: 0,
        })
    }

    /// Looks for every tensor that a run needs, without reading any.
    ///
    /// # Errors
    /// Tensors that are missing or of the wrong shape.
    pub fn check(&self) -> Result<()> {
        let weights = self.weights.shapes_only();
        let embedding = self.spec.embedding;
        let rows = self.weights.row_count(embedding).unwrap_or(0);
        weights.tensor(embedding, &[rows, self.hyper.hidden])?;
        for layer in &self.spec.layers {
            Layer::load(&weights, layer, &[])?;
        }
        weights.linear(&self.spec.output)?;
        if let Some(spec) = &self.spec.nextn {
            weights.linear(&spec.projection)?;
            Layer::load(&weights, &spec.layer, &[])?;
        }
        if let Some(norm) = &self.spec.output_norm {
            weights.norm(norm)?;
        }
        Ok(())
    }

    /// The threads that this runs on.
    pub fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// The number of tokens that the output matrix knows.
    pub fn vocabulary(&self) -> usize {
        self.spec.output.rows
    }

    /// The memory that this may use, in bytes; `None` for all of it.
    pub fn max_memory(&self) -> Option<u64> {
        self.max_memory
    }

    /// Leaves so many bytes of the memory to others from now on.
    pub fn reserve(&mut self, bytes: u64) {
        self.reserved = bytes;
    }

    /// The catalog of the model.
    pub fn catalog(&self) -> &'a Catalog {
        self.weights.catalog()
    }

    /// The tensor that makes logits.
    pub fn output_name(&self) -> &'static str {
        self.spec.output_name
    }

    /// Runs chunks of tokens, all of one length, and keeps the activations of the rows `keep` of
    /// each.
    ///
    /// # Errors
    /// Tensors that are missing or of the wrong shape, activations that are not finite, a token
    /// outside of the vocabulary.
    pub fn run(
        &self,
        chunks: &[Vec<u32>],
        keep: Range<usize>,
        observer: Option<&dyn Observer>,
        progress: &dyn Progress,
    ) -> Result<Hidden> {
        let positions = chunks.first().map_or(0, Vec::len);
        if chunks.iter().any(|c| c.len() != positions) || keep.end > positions {
            return Err(Error::Model("chunks differ in length".into()));
        }
        let (width, all) = (self.hyper.hidden, self.hyper.width());
        let budget = self.layer_budget(positions);
        let states = States::new(chunks.len(), positions * all, budget)?;
        self.stream(chunks, &states, false, observer, progress)?;
        let spilled_bytes = states.spilled_bytes(chunks.len());
        let kept = States::new(
            chunks.len(),
            keep.len() * width,
            self.budget(self.head_bytes() + self.logit_bytes()),
        )?;
        for chunk in 0..chunks.len() {
            let rows = states.take(chunk)?[keep.start * all..keep.end * all].to_vec();
            let Bundle { stream, .. } = Bundle::new(Rows::new(rows, all), width);
            kept.put(chunk, stream.into_numbers())?;
        }
        Ok(Hidden {
            states: kept,
            rows: keep.len(),
            width,
            spilled_bytes,
        })
    }

    /// All layers over all chunks. Each chunk has one slot of `states`, or, where the input of
    /// every layer is kept, one for each layer and one for what comes out.
    fn stream(
        &self,
        chunks: &[Vec<u32>],
        states: &States,
        keep_inputs: bool,
        observer: Option<&dyn Observer>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let positions = chunks.first().map_or(0, Vec::len);
        if chunks.iter().any(|c| c.len() != positions) {
            return Err(Error::Model("chunks differ in length".into()));
        }
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
                let norm = self.embedding_norm()?;
                let chunks = chunks.par_iter().enumerate();
                chunks.try_for_each(|(i, tokens)| {
                    let plain = |_: &str, _: &[u32], _: &mut [f32]| Ok::<_, Error>(());
                    let x = self.embed(tokens, norm.as_ref(), plain)?;
                    states.put(i, self.with_carried(x))
                })?;
            }
            let angles = self.angles(positions)?;
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

    /// Numbers of a slot as a bundle.
    fn bundle(&self, numbers: Vec<f32>) -> Bundle {
        Bundle::new(Rows::new(numbers, self.hyper.width()), self.hyper.hidden)
    }

    /// A stream with zeros in place of what the first layer carries to all others.
    fn with_carried(&self, stream: Vec<f32>) -> Vec<f32> {
        let carried = self.hyper.carried();
        if carried == 0 {
            return stream;
        }
        let stream = Rows::new(stream, self.hyper.hidden);
        let carried = Rows::zeros(stream.len(), carried);
        Rows::beside(&[&stream, &carried]).into_numbers()
    }

    /// The streams of numbers of a slot.
    fn stream_of(&self, numbers: Vec<f32>) -> Vec<f32> {
        self.bundle(numbers).stream.into_numbers()
    }

    /// Threads that one product may take when so many chunks run side by side.
    fn split(&self, chunks: usize) -> usize {
        (self.pool.current_num_threads() / chunks.max(1)).max(1)
    }

    /// Bytes that activations between layers may take.
    fn layer_budget(&self, positions: usize) -> u64 {
        let working = self.weights.working_bytes(positions, self.hyper.hidden);
        let working = working * self.pool.current_num_threads() as u64;
        self.budget(self.weights.largest_layer(self.hyper.layers) + working)
    }

    /// Bytes that activations may take beside weights of so many.
    fn budget(&self, weights: u64) -> u64 {
        self.max_memory.map_or(u64::MAX, |all| {
            all.saturating_sub(weights.saturating_add(self.reserved))
        })
    }

    /// What the first layer reads of some tokens, with other numbers in rows of its tables:
    /// `change` is given a table's name, the numbers of the rows, and the rows. `norm` is the
    /// [`Engine::embedding_norm`].
    fn embed<E: From<Error>>(
        &self,
        tokens: &[u32],
        norm: Option<&Norm>,
        change: impl Fn(&str, &[u32], &mut [f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Vec<f32>, E> {
        let mut x = self.unnormalized_rows(tokens, change)?;
        if let Some(norm) = norm {
            norm.apply(&mut x);
        }
        Ok(x)
    }

    /// The same in front of the norm behind the embeddings, if there is one.
    fn unnormalized_rows<E: From<Error>>(
        &self,
        tokens: &[u32],
        change: impl Fn(&str, &[u32], &mut [f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Vec<f32>, E> {
        let rows = |table: &str, numbers: &[u32]| {
            let mut rows = self.weights.rows(table, numbers, self.hyper.hidden)?;
            change(table, numbers, &mut rows)?;
            Ok::<_, E>(rows)
        };
        let mut x = rows(self.spec.embedding, tokens)?;
        let scale = self.hyper.embedding_scale;
        if scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(table) = self.spec.positions {
            let positions: Vec<u32> = (0..tokens.len() as u32).collect();
            let at = rows(table, &positions)?;
            x.iter_mut().zip(&at).for_each(|(x, at)| *x += at);
        }
        Ok(x)
    }

    /// The norm behind the embeddings.
    fn embedding_norm(&self) -> Result<Option<Norm>> {
        let norm = self.spec.embedding_norm.as_ref();
        norm.map(|norm| self.weights.norm(norm)).transpose()
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
        let widest = self
            .hyper
            .rotations
            .iter()
            .map(|rotation| rotation.length / 2);
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
    /// Rows that are kept of every chunk.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of them that are in memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.states.memory_bytes()
    }

    /// The rows of a chunk: `[rows, hidden]`.
    ///
    /// # Errors
    /// If the temporary file cannot be read.
    pub fn rows_of(&self, chunk: usize) -> Result<Rows> {
        Ok(Rows::new(self.states.copy(chunk)?, self.width))
    }

    /// The same. They are gone from here afterwards.
    ///
    /// # Errors
    /// If the temporary file cannot be read.
    pub fn take(&self, chunk: usize) -> Result<Rows> {
        Ok(Rows::new(self.states.take(chunk)?, self.width))
    }
}
