//! The forward pass: a decoder described by data, layer by layer over all chunks, each weight widened once.
//!
//! ```text
//! Engine::new      the metadata's numbers, and where the tensors are
//! Engine::run      for each layer: widen it, then every chunk through it, side by side; -> Hidden
//! Engine::head     the last norm and the output matrix: hidden activations -> logits
//! ```
//!
//! Weights of any type are dequantized by our own code and multiplied in f32, so that what is measured is the
//! weights alone. Results do not depend on how many chunks there are or on the order in which they are computed.

mod attention;
mod hyper;
mod layer;
mod product;
mod states;
mod weights;

use crate::input::Input;
use crate::progress::{Progress, Unit};
use candle_core::{Device, Tensor};
use layer::{Angles, Layer, Normalizer, Pass};
use rayon::prelude::*;
use states::States;
use std::ops::Range;
use weights::{Matrix, Weights};

pub use hyper::{Hyper, Rotation};

/// Rows of hidden activations that are turned into logits at a time.
pub const LOGIT_ROWS: usize = 64;

/// Why a model could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model is not one that can be run.
    #[error("{0}")]
    Model(String),
    /// A file could not be read.
    #[error(transparent)]
    Convert(#[from] crate::convert::Error),
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
    /// The temporary file for activations failed.
    #[error("the temporary file for activations: {0}; see that TMPDIR has room, or raise --max-memory")]
    Spill(std::io::Error),
    /// A computation failed.
    #[error("computing: {0}")]
    Compute(#[from] candle_core::Error),
    /// Stopped from outside.
    #[error("stopped")]
    Cancelled,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// What a matrix meets.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The chunk, counted from 0.
    pub chunk: usize,
    /// The matrix's tensor.
    pub name: &'a str,
    /// Which matrix of it: the expert, or 0.
    pub matrix: usize,
    /// How many matrices it has.
    pub matrices: usize,
    /// The activations that it is multiplied by, row by row.
    pub rows: &'a [f32],
    /// The length of a row.
    pub columns: usize,
}

/// Watches the inputs of matrices.
pub trait Observer: Sync {
    /// A matrix is about to be multiplied by these. Chunks come from several threads at a time, but the inputs of one
    /// chunk always in the same order.
    fn input(&self, seen: Seen<'_>);

    /// All chunks have met all matrices of this layer.
    fn layer_done(&self, _layer: usize) {}
}

/// How a model is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads; 0 takes one per core.
    pub threads: usize,
    /// Bytes that weights and activations may take; activations beyond it go to a temporary file.
    pub max_memory: Option<u64>,
    /// Where tensors are computed.
    pub device: Device,
}

impl Default for Options {
    fn default() -> Options {
        Options { threads: 0, max_memory: None, device: Device::Cpu }
    }
}

/// A model that can be run.
pub struct Engine<'a> {
    /// What its metadata says.
    pub hyper: Hyper,
    weights: Weights<'a>,
    pool: rayon::ThreadPool,
    max_memory: Option<u64>,
    reserved: u64,
}

/// The activations behind the last layer, for some rows of every chunk.
pub struct Hidden {
    states: States,
    rows: usize,
    width: usize,
    device: Device,
    /// Bytes that were kept in a temporary file meanwhile.
    pub spilled_bytes: u64,
}

/// From hidden activations to logits.
pub struct Head<'e> {
    hyper: &'e Hyper,
    norm: Option<Normalizer>,
    output: Matrix,
}

impl<'a> Engine<'a> {
    /// Reads the metadata and checks that the architecture is known.
    pub fn new(input: &'a Input<'a>, options: &Options) -> Result<Engine<'a>> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .build()
            .map_err(|e| Error::Model(format!("cannot start {} threads: {e}", options.threads)))?;
        let hyper = Hyper::new(input.metadata())?;
        Ok(Engine {
            hyper,
            weights: Weights::new(input, &options.device),
            pool,
            max_memory: options.max_memory,
            reserved: 0,
        })
    }

    /// Looks for every tensor that a run needs, without reading any.
    ///
    /// # Errors
    /// Tensors that are missing or of the wrong shape.
    pub fn check(&self) -> Result<()> {
        let (weights, hyper) = (self.weights.shapes_only(), &self.hyper);
        let embeddings = self.weights.row_count("token_embd.weight").unwrap_or(0);
        weights.tensor("token_embd.weight", &[embeddings, hyper.hidden])?;
        for number in 0..hyper.layers {
            Layer::load(&weights, hyper, number, &None, &None)?;
        }
        weights.matrix(self.output_name().trim_end_matches(".weight"), &[self.vocabulary(), hyper.hidden])?;
        Normalizer::output(&weights, hyper)?;
        Ok(())
    }

    /// The threads that this runs on.
    pub fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// The number of tokens that the output matrix knows.
    pub fn vocabulary(&self) -> usize {
        self.weights.row_count(self.output_name()).unwrap_or(0)
    }

    /// Bytes of the output matrix when it is widened.
    pub fn head_bytes(&self) -> u64 {
        self.vocabulary() as u64 * self.hyper.hidden as u64 * 4
    }

    /// The memory that this may use, in bytes; `None` for all of it.
    pub fn max_memory(&self) -> Option<u64> {
        self.max_memory
    }

    /// Leaves so many bytes of the memory to others from now on.
    pub fn reserve(&mut self, bytes: u64) {
        self.reserved = bytes;
    }

    fn output_name(&self) -> &'static str {
        if self.weights.has("output.weight") { "output.weight" } else { "token_embd.weight" }
    }

    /// Runs chunks of tokens, all of one length, and keeps the activations of the rows `keep` of each.
    ///
    /// # Errors
    /// Tensors that are missing or of the wrong shape, activations that are not finite, a token outside of the
    /// vocabulary.
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
        let width = self.hyper.hidden;
        let budget = self.budget(self.weights.largest_layer(self.hyper.layers));
        self.pool.install(|| {
            let states = States::new(chunks.len(), positions * width, budget)?;
            chunks.par_iter().enumerate().try_for_each(|(i, tokens)| states.put(i, self.embed(tokens)?))?;
            let (angles, windowed) = self.angles(positions)?;
            let split = (self.pool.current_num_threads() / chunks.len().max(1)).max(1);
            progress.begin((self.hyper.layers * chunks.len()) as u64, Unit::Steps);
            for number in 0..self.hyper.layers {
                progress.at(&format!("layer {} of {}", number + 1, self.hyper.layers));
                let layer = Layer::load(&self.weights, &self.hyper, number, &angles, &windowed)?;
                (0..chunks.len()).into_par_iter().try_for_each(|chunk| {
                    if progress.cancelled() {
                        return Err(Error::Cancelled);
                    }
                    let x = Tensor::from_vec(states.take(chunk)?, (positions, width), self.weights.device())?;
                    let y = layer.forward(&x, Pass { chunk, observer, split })?;
                    let y = y.flatten_all()?.to_vec1::<f32>()?;
                    if !y.iter().fold(true, |all, y| all & y.is_finite()) {
                        return Err(Error::NotFinite { layer: number, chunk });
                    }
                    progress.advance(1);
                    states.put(chunk, y)
                })?;
                if let Some(observer) = observer {
                    observer.layer_done(number);
                }
            }
            let spilled_bytes = states.spilled_bytes(chunks.len());
            let kept = States::new(chunks.len(), keep.len() * width, self.budget(self.head_bytes()))?;
            for chunk in 0..chunks.len() {
                kept.put(chunk, states.take(chunk)?[keep.start * width..keep.end * width].to_vec())?;
            }
            Ok(Hidden { states: kept, rows: keep.len(), width, device: self.weights.device().clone(), spilled_bytes })
        })
    }

    /// Bytes that activations may take beside weights of so many.
    fn budget(&self, weights: u64) -> u64 {
        self.max_memory.map_or(u64::MAX, |all| all.saturating_sub(weights.saturating_add(self.reserved)))
    }

    /// Widens the last norm and the output matrix.
    pub fn head(&self) -> Result<Head<'_>> {
        let (hyper, vocabulary) = (&self.hyper, self.vocabulary());
        self.pool.install(|| {
            let name = self.output_name().trim_end_matches(".weight");
            let output = self.weights.matrix(name, &[vocabulary, hyper.hidden])?;
            Ok(Head { hyper, norm: Normalizer::output(&self.weights, hyper)?, output })
        })
    }

    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let width = self.hyper.hidden;
        let mut x = self.weights.rows("token_embd.weight", tokens, width)?;
        if self.hyper.embedding_scale != 1.0 {
            x = (x * f64::from(self.hyper.embedding_scale))?;
        }
        if self.weights.has("position_embd.weight") {
            let positions: Vec<u32> = (0..tokens.len() as u32).collect();
            x = (x + self.weights.rows("position_embd.weight", &positions, width)?)?;
        }
        Ok(x.flatten_all()?.to_vec1()?)
    }

    /// The angles of layers that see everything, and of those with a window.
    fn angles(&self, positions: usize) -> Result<(Option<Angles>, Option<Angles>)> {
        let hyper = &self.hyper;
        let long = positions > hyper.rotation.original_context;
        let names = ["rope_freqs.weight", if long { "rope_factors_long.weight" } else { "rope_factors_short.weight" }];
        let factors = match names.iter().find(|name| self.weights.has(name)) {
            Some(name) => Some(self.weights.tensor(name, &[hyper.rotation.length / 2])?.to_vec1::<f32>()?),
            None => None,
        };
        let table = |rotation: &Rotation, factors| Angles::new(rotation, positions, factors, &self.weights);
        Ok((
            Some(table(&hyper.rotation, factors.as_deref())?),
            hyper.window.is_some().then(|| table(&hyper.windowed_rotation, None)).transpose()?,
        ))
    }
}

impl Hidden {
    /// Rows that are kept of every chunk.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of them that are in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.states.memory_bytes()
    }

    /// The rows of a chunk: `[rows, hidden]`.
    pub fn rows_of(&self, chunk: usize) -> Result<Tensor> {
        let rows = self.states.take(chunk)?;
        self.states.put(chunk, rows.clone())?;
        Ok(Tensor::from_vec(rows, (self.rows, self.width), &self.device)?)
    }

    /// The rows of a chunk: `[rows, hidden]`. They are gone from here afterwards.
    pub fn take(&self, chunk: usize) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.states.take(chunk)?, (self.rows, self.width), &self.device)?)
    }
}

impl Head<'_> {
    /// Logits `[rows, vocabulary]` of hidden activations `[rows, hidden]` of a chunk, on the calling thread.
    pub fn logits(&self, hidden: &Tensor, chunk: usize, observer: Option<&dyn Observer>) -> Result<Tensor> {
        let normalized = self.norm.as_ref().map_or_else(|| Ok(hidden.clone()), |norm| norm.apply(hidden))?;
        let pass = Pass { chunk, observer, split: 1 };
        let mut logits = pass.times(&normalized, &self.output)?;
        if self.hyper.logit_scale != 1.0 {
            logits = (logits * f64::from(self.hyper.logit_scale))?;
        }
        if let Some(cap) = self.hyper.logit_cap {
            logits = ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        Ok(logits)
    }
}
