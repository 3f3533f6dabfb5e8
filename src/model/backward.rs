//! The backward stream: layer by layer in reverse, from stored layer inputs, recomputing each
//! layer's forward pass.
//!
//! ```text
//! Engine::trace      the forward pass, which keeps the input of every layer
//! Engine::backward   labels are drawn from the model's own distribution; their gradient meets the last layer
//! Backward::layer    each matrix of the next layer towards the input: what it was multiplied by, and the gradient of
//!                    its product, for some positions of every chunk; None behind the first layer
//! Backward::embeddings   the gradient of what the first layer reads
//! ```
//!
//! The gradient is that of `L = sum over positions of ln p(label)`, in nats. There is one forward
//! pass for both directions: where gradients are wanted, a variable of zeros is added to the
//! product of every matrix, and candle derives the gradient there.

use super::layer::{Angles, Layer, Pass};
use super::states::States;
use super::weights::Matrix;
use super::{Engine, Error, LOGIT_ROWS, Result};
use crate::format::snapshot::Snapshot;
use crate::progress::{Progress, Unit};
use candle_core::backprop::GradStore;
use candle_core::{Tensor, TensorId, Var};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A forward pass of which every layer's input is kept.
pub struct Trace<'c> {
    pub(super) chunks: &'c [Vec<u32>],
    /// By layer, then by chunk; behind the last layer's input its output.
    states: States,
    pub(super) positions: usize,
}

/// How labels are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Labels {
    /// How many for each position, independently of each other.
    pub draws: usize,
    /// Chooses the random numbers; the same seed gives the same labels, on any number of threads.
    pub seed: u64,
}

/// A backward pass on its way.
pub struct Backward<'e, 'c> {
    engine: &'e Engine<'e>,
    trace: &'e Trace<'c>,
    /// Gradients of the next layer's output, by chunk, then by draw.
    gradients: States,
    draws: usize,
    /// Positions that are told, by chunk.
    sample: &'e [Vec<u32>],
    angles: (Option<Angles>, Option<Angles>),
    /// Layers that are still to come.
    left: usize,
}

/// What one matrix met, and what it was worth.
pub struct Met {
    /// The matrix's tensor.
    pub name: String,
    /// Which matrix of it: the expert, or 0.
    pub matrix: usize,
    /// How many matrices it has.
    pub matrices: usize,
    /// Length of a row of inputs.
    pub columns: usize,
    /// Length of a row of gradients.
    pub width: usize,
    /// In the order of the chunks.
    pub pieces: Vec<Piece>,
}

/// The part of [`Met`] that is one chunk's.
pub struct Piece {
    /// What the matrix was multiplied by: `[rows, columns]`. Matrices that read the same share it.
    pub inputs: Arc<Vec<f32>>,
    /// The gradient of the products: `[rows, width]` for each draw.
    pub gradients: Vec<Vec<f32>>,
}

/// The gradient of what the first layer reads of a chunk: that of its token embeddings.
pub struct Embedded {
    /// The tokens, by position.
    pub tokens: Vec<u32>,
    /// `[positions, hidden]` for each draw.
    pub gradients: Vec<Vec<f32>>,
}

/// Where the gradients of products are caught: variables of zeros, one added to each product.
#[derive(Default)]
pub(super) struct Probes(RefCell<Vec<Probe>>);

struct Probe {
    name: String,
    matrix: usize,
    matrices: usize,
    inputs: Tensor,
    /// The position of each row; None for all in order.
    positions: Option<Vec<u32>>,
    at: Var,
}

impl Probes {
    /// The product `y` of `x` and a matrix, of all positions or of those that one expert sees.
    pub(super) fn catch(
        &self,
        x: &Tensor,
        of: &Matrix,
        expert: Option<(usize, &[u32])>,
        y: &Tensor,
    ) -> Result<Tensor> {
        let at = Var::zeros(y.shape(), y.dtype(), y.device())?;
        let caught = (y + at.as_tensor())?;
        self.0.borrow_mut().push(Probe {
            name: of.name.clone(),
            matrix: expert.map_or(0, |(expert, _)| expert),
            matrices: of.matrices(),
            inputs: x.detach(),
            positions: expert.map(|(_, positions)| positions.to_vec()),
            at,
        });
        Ok(caught)
    }
}

impl<'a> Engine<'a> {
    /// Runs chunks of tokens, all of one length, and keeps what every layer reads. What does not
    /// fit into memory goes to a temporary file.
    pub fn trace<'c>(
        &self,
        chunks: &'c [Vec<u32>],
        observer: Option<&dyn super::Observer>,
        progress: &dyn Progress,
    ) -> Result<Trace<'c>> {
        let positions = chunks.first().map_or(0, Vec::len);
        let slots = (self.hyper.layers + 1) * chunks.len();
        let states = States::new(
            slots,
            positions * self.hyper.hidden,
            self.layer_budget(positions),
        )?;
        self.stream(chunks, &states, true, observer, progress)?;
        Ok(Trace {
            chunks,
            states,
            positions,
        })
    }

    /// Begins at the logits: draws labels and takes their gradient back to the last layer. `sample`
    /// are the positions of each chunk that are told of, rising.
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
        let (chunks, positions, layers) = (trace.chunks.len(), trace.positions, self.hyper.layers);
        let width = self.hyper.hidden;
        let gradients = self.gradients(trace, labels.draws)?;
        let head = self.head()?;
        progress.begin((layers + 1) as u64 * chunks as u64, Unit::Steps);
        progress.at("output");
        self.pool.install(|| -> Result<()> {
            (0..chunks).into_par_iter().try_for_each(|chunk| {
                let hidden = trace.states.copy(layers * chunks + chunk)?;
                let mut out = vec![Vec::with_capacity(positions * width); labels.draws];
                for (block, rows) in hidden.chunks(LOGIT_ROWS * width).enumerate() {
                    if progress.cancelled() {
                        return Err(Error::Cancelled);
                    }
                    let rows = Tensor::from_slice(
                        rows,
                        (rows.len() / width, width),
                        self.weights.device(),
                    )?;
                    let logits = head.numbers(&rows, chunk, None)?;
                    let vocabulary = logits.len() / rows.dim(0)?;
                    for (draw, out) in out.iter_mut().enumerate() {
                        let of_row = |(row, logits): (usize, &[f32])| {
                            label_gradient(
                                logits,
                                labels.random(chunk, block * LOGIT_ROWS + row, draw),
                            )
                        };
                        let gradient = logits
                            .chunks_exact(vocabulary)
                            .enumerate()
                            .flat_map(of_row)
                            .collect();
                        out.extend(head.derivative(&rows, &logits, gradient)?);
                    }
                }
                progress.advance(1);
                out.into_iter()
                    .enumerate()
                    .try_for_each(|(d, out)| gradients.put(chunk * labels.draws + d, out))
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
        })
    }

    /// Goes on where a former process had come to: `kept` has how many layers were done and the
    /// gradients behind them, as [`Backward::done`] and [`Backward::gradient`] gave them.
    ///
    /// # Errors
    /// If it does not fit the trace, or cannot be read.
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
        let (chunks, layers, width) = (trace.chunks.len(), self.hyper.layers, self.hyper.hidden);
        let shape = [chunks * draws, trace.positions * width];
        let left = layers
            .checked_sub(kept.done())
            .filter(|_| kept.shape() == shape);
        let left = left.ok_or_else(|| Error::Model("what was kept is of another run".into()))?;
        progress.begin((layers + 1) as u64 * chunks as u64, Unit::Steps);
        progress.advance(((kept.done() + 1) * chunks) as u64);
        let gradients = self.gradients(trace, draws)?;
        (0..shape[0]).try_for_each(|slot| gradients.put(slot, kept.state(slot)?))?;
        let angles = self.angles(trace.positions)?;
        Ok(Backward {
            engine: self,
            trace,
            gradients,
            draws,
            sample,
            angles,
            left,
        })
    }

    /// Room for the gradients of one layer's output.
    fn gradients(&self, trace: &Trace<'_>, draws: usize) -> Result<States> {
        let len = trace.positions * self.hyper.hidden;
        States::new(
            trace.chunks.len() * draws,
            len,
            self.layer_budget(trace.positions),
        )
    }
}

impl Backward<'_, '_> {
    /// Layers that are done.
    pub fn done(&self) -> usize {
        self.engine.hyper.layers - self.left
    }

    /// How many gradients there are between two layers, and how many numbers each has.
    pub fn shape(&self) -> [usize; 2] {
        [
            self.trace.chunks.len() * self.draws,
            self.trace.positions * self.engine.hyper.hidden,
        ]
    }

    /// One of the gradients between two layers.
    pub fn gradient(&self, slot: usize) -> Result<Vec<f32>> {
        self.gradients.copy(slot)
    }

    /// What the matrices of the next layer towards the input met; the number of the layer with it.
    ///
    /// # Errors
    /// A gradient that is not finite: the layer and the chunk are named.
    pub fn layer(&mut self, progress: &dyn Progress) -> Result<Option<(usize, Vec<Met>)>> {
        let Some(number) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        let engine = self.engine;
        let chunks = self.trace.chunks.len();
        progress.at(&format!("layer {number}"));
        let told: Result<Vec<_>> = engine.pool.install(|| {
            let layer = Layer::load(
                &engine.weights,
                &engine.hyper,
                number,
                &self.angles.0,
                &self.angles.1,
            )?;
            let one = |chunk: usize| {
                if progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                let told = self.chunk(&layer, [number, chunk], progress)?;
                progress.advance(1);
                Ok(told)
            };
            (0..chunks).into_par_iter().map(one).collect()
        });
        let mut met: BTreeMap<(String, usize), Met> = BTreeMap::new();
        for (probe, piece) in told?.into_iter().flatten() {
            let all = met
                .entry((probe.name.clone(), probe.matrix))
                .or_insert_with(|| Met {
                    columns: probe.inputs.dims()[1],
                    width: probe.at.dims()[1],
                    name: probe.name,
                    matrix: probe.matrix,
                    matrices: probe.matrices,
                    pieces: Vec::new(),
                });
            all.pieces.push(piece);
        }
        self.left = number;
        Ok(Some((number, met.into_values().collect())))
    }

    /// One chunk through one layer and back.
    fn chunk(
        &self,
        layer: &Layer<'_>,
        [number, chunk]: [usize; 2],
        progress: &dyn Progress,
    ) -> Result<Vec<(Probe, Piece)>> {
        let (chunks, shape) = (
            self.trace.chunks.len(),
            (self.trace.positions, self.engine.hyper.hidden),
        );
        let device = self.engine.weights.device();
        let x = Var::from_vec(
            self.trace.states.copy(number * chunks + chunk)?,
            shape,
            device,
        )?;
        let probes = Probes::default();
        let pass = Pass {
            chunk,
            observer: None,
            split: self.engine.split(chunks),
            probes: Some(&probes),
            progress,
        };
        let y = layer.forward(x.as_tensor(), pass)?;
        let probes = probes.0.into_inner();
        let rows: Vec<_> = probes
            .iter()
            .map(|p| rows_of(p, &self.sample[chunk]))
            .collect();
        let selected = |x: &Tensor, rows: &[u32]| -> Result<Vec<f32>> {
            let rows = Tensor::from_slice(rows, rows.len(), device)?;
            Ok(x.index_select(&rows, 0)?.flatten_all()?.to_vec1()?)
        };
        let mut gradients = vec![Vec::with_capacity(self.draws); probes.len()];
        for draw in 0..self.draws {
            let slot = chunk * self.draws + draw;
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            let upstream = Tensor::from_vec(self.gradients.take(slot)?, shape, device)?;
            let store = (&y * upstream)?.sum_all()?.backward()?;
            let below = numbers_at(&store, &x)?;
            if !below.iter().fold(true, |all, g| all & g.is_finite()) {
                return Err(Error::GradientNotFinite {
                    layer: number,
                    chunk,
                });
            }
            self.gradients.put(slot, below)?;
            for ((gradients, probe), rows) in gradients.iter_mut().zip(&probes).zip(&rows) {
                gradients.push(match store.get(&probe.at) {
                    Some(gradient) => selected(gradient, rows)?,
                    None => vec![0.0; rows.len() * probe.at.dims()[1]],
                });
            }
        }
        let mut shared: HashMap<(TensorId, Option<usize>), Arc<Vec<f32>>> = HashMap::new();
        let mut told = Vec::with_capacity(probes.len());
        for ((probe, rows), gradients) in probes.into_iter().zip(&rows).zip(gradients) {
            let key = (
                probe.inputs.id(),
                probe.positions.is_some().then_some(probe.matrix),
            );
            let inputs = match shared.get(&key) {
                Some(inputs) => inputs.clone(),
                None => Arc::new(selected(&probe.inputs, rows)?),
            };
            shared.insert(key, inputs.clone());
            told.push((probe, Piece { inputs, gradients }));
        }
        Ok(told)
    }

    /// The gradients of the embeddings, chunk by chunk; behind the last layer only.
    pub fn embeddings(&self) -> Result<Vec<Embedded>> {
        debug_assert_eq!(self.left, 0, "layers are left");
        let scale = self.engine.hyper.embedding_scale;
        let one = |(chunk, tokens): (usize, &Vec<u32>)| {
            let draw = |draw: usize| -> Result<Vec<f32>> {
                let mut gradient = self.gradients.copy(chunk * self.draws + draw)?;
                gradient.iter_mut().for_each(|g| *g *= scale);
                Ok(gradient)
            };
            let gradients = (0..self.draws).map(draw).collect::<Result<Vec<_>>>()?;
            Ok(Embedded {
                tokens: tokens.clone(),
                gradients,
            })
        };
        self.trace.chunks.iter().enumerate().map(one).collect()
    }
}

impl Trace<'_> {
    /// What the head reads of a chunk: `[positions, hidden]`.
    pub fn output(&self, engine: &Engine<'_>, chunk: usize) -> Result<Tensor> {
        let hidden = self
            .states
            .copy(engine.hyper.layers * self.chunks.len() + chunk)?;
        Ok(Tensor::from_vec(
            hidden,
            (self.positions, engine.hyper.hidden),
            engine.weights.device(),
        )?)
    }

    /// What a layer reads of a chunk, or, behind the last layer, what comes out: `[positions *
    /// hidden]`.
    pub(super) fn input(&self, layer: usize, chunk: usize) -> Result<Vec<f32>> {
        self.states.copy(layer * self.chunks.len() + chunk)
    }

    /// The chunks of tokens.
    pub fn chunks(&self) -> &[Vec<u32>] {
        self.chunks
    }
}

/// The rows of a probe that belong to these positions.
fn rows_of(probe: &Probe, sample: &[u32]) -> Vec<u32> {
    match &probe.positions {
        None => sample.to_vec(),
        Some(positions) => {
            let told = |(_, position): &(usize, &u32)| sample.binary_search(position).is_ok();
            positions
                .iter()
                .enumerate()
                .filter(told)
                .map(|(row, _)| row as u32)
                .collect()
        }
    }
}

/// The gradient of a variable; zeros if nothing depends on it.
fn numbers_at(store: &GradStore, of: &Var) -> Result<Vec<f32>> {
    match store.get(of.as_tensor()) {
        Some(gradient) => Ok(gradient.flatten_all()?.to_vec1()?),
        None => Ok(vec![0.0; of.elem_count()]),
    }
}

/// The gradient of `ln p(label)` for logits: 1 at the label less the probabilities. `random` in
/// `0..1` draws the label.
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
    // Rounding can leave a last crumb: it belongs to the last token that has any probability.
    let label = label.or_else(|| gradient.iter().rposition(|e| *e != 0.0));
    if let Some(label) = label {
        gradient[label] += 1.0;
    }
    gradient
}

impl Labels {
    /// A number in `0..1` for a draw at a position of a chunk.
    fn random(&self, chunk: usize, position: usize, draw: usize) -> f64 {
        let key = [chunk, position, draw]
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
    fn labels_follow_the_distribution_and_gradients_sum_to_nothing() {
        let logits = [0.5f32, -1.0, 2.0, f32::MIN];
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let labels = Labels { draws: 2, seed: 3 };
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
        assert_eq!(
            label_gradient(&logits, 1.0 - 1e-17)
                .iter()
                .position(|g| *g > 0.0),
            Some(2)
        );
    }
}
