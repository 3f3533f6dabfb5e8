//! The parameters of a file, with the state of their optimizers and the bytes that they make.

use super::adam::Adam;
use super::blocks::{Blocks, Codes, Scales};
use super::{Options, Rates, Result};
use crate::format::types::GgmlType;
use crate::input::Input;
use crate::model::{Changed, ParameterGradients, RowGradient};
use crate::quant::Codec;
use quantier_arch::{Entry, TensorId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Kinds of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    /// Norms, and biases where the model runs with them.
    pub norms: bool,
    /// The f16 scales of blocks.
    pub scales: bool,
    /// The codes of blocks.
    pub codes: bool,
}

impl Default for Kinds {
    fn default() -> Kinds {
        Kinds {
            norms: true,
            scales: true,
            codes: true,
        }
    }
}

/// A tensor of f32 numbers: a norm or a bias.
struct Plain {
    /// At the start.
    start: Vec<f32>,
    /// Their root mean square.
    size: f32,
    /// The change, in units of that.
    change: Vec<f32>,
    adam: Adam,
    gradient: Vec<f32>,
}

enum Tensor {
    Plain(Plain),
    Blocks(Box<Blocks>),
}

/// All parameters of a file.
pub(super) struct Parameters {
    tensors: BTreeMap<TensorId, Tensor>,
    /// The tensors of `tensors` with their bytes.
    pub bytes: Arc<Changed>,
    /// Tensors with a gradient in some step.
    seen: BTreeSet<TensorId>,
}

/// Adds the gradients of a step.
pub(super) struct Adding<'p> {
    tensors: &'p mut BTreeMap<TensorId, Tensor>,
    bytes: &'p Changed,
    seen: &'p mut BTreeSet<TensorId>,
    /// The first tensor with a gradient that is not finite.
    pub not_finite: Option<TensorId>,
}

/// The f32 numbers of bytes.
fn numbers(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.as_chunks().0.iter();
    numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

impl Tensor {
    /// The parameters of a tensor of the wanted kinds.
    fn of(entry: &Entry, ggml_type: GgmlType, bytes: &[u8], kinds: Kinds) -> Option<Tensor> {
        let columns = entry.row_len() as usize;
        if ggml_type == GgmlType::F32 {
            let is_matrix = entry.linear.is_some() || entry.is_table;
            let start = match kinds.norms && !is_matrix {
                true => numbers(bytes),
                false => return None,
            };
            let squares: f64 = start.iter().map(|x| f64::from(x * x)).sum();
            let size = (squares / start.len().max(1) as f64).sqrt() as f32;
            return Some(Tensor::Plain(Plain {
                size,
                change: vec![0.0; start.len()],
                adam: Adam::new(start.len()),
                gradient: vec![0.0; start.len()],
                start,
            }));
        }
        let codec = Codec::of(ggml_type).filter(|_| ggml_type.is_quantized())?;
        let scales = (kinds.scales && codec.halves() > 0).then(|| {
            let start = Blocks::stored_scales(codec, bytes);
            Scales {
                log: vec![0.0; start.len()],
                adam: Adam::new(start.len()),
                gradient: vec![0.0; start.len()],
                start,
            }
        });
        let weights = bytes.len() / ggml_type.block_bytes() * ggml_type.block_len();
        let codes = (kinds.codes && codec.takes_feedback()).then(|| Codes {
            offset: vec![0.0; weights],
            adam: Adam::new(weights),
            gradient: vec![0.0; weights],
        });
        let has_any = scales.is_some() || codes.is_some();
        let blocks = has_any.then_some(Blocks {
            codec,
            columns,
            scales,
            codes,
        })?;
        Some(Tensor::Blocks(Box::new(blocks)))
    }

    fn gradients(&mut self) -> Vec<&mut Vec<f32>> {
        match self {
            Tensor::Plain(plain) => vec![&mut plain.gradient],
            Tensor::Blocks(blocks) => {
                let scales = blocks.scales.iter_mut().map(|scales| &mut scales.gradient);
                let codes = blocks.codes.iter_mut().map(|codes| &mut codes.gradient);
                scales.chain(codes).collect()
            }
        }
    }

    /// The state that a snapshot holds, in a fixed order.
    fn state(&mut self) -> Vec<&mut Vec<f32>> {
        match self {
            Tensor::Plain(Plain { change, adam, .. }) => {
                vec![change, &mut adam.mean, &mut adam.square]
            }
            Tensor::Blocks(blocks) => {
                let scales = blocks.scales.iter_mut().flat_map(|scales| {
                    [
                        &mut scales.log,
                        &mut scales.adam.mean,
                        &mut scales.adam.square,
                    ]
                });
                let codes = blocks.codes.iter_mut().flat_map(|codes| {
                    [
                        &mut codes.offset,
                        &mut codes.adam.mean,
                        &mut codes.adam.square,
                    ]
                });
                scales.chain(codes).collect()
            }
        }
    }
}

impl Parameters {
    /// The parameters of the kinds that are asked for.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn new(input: &Input<'_>, options: &Options) -> Result<Parameters> {
        let (mut tensors, mut changed) = (BTreeMap::new(), Changed::new());
        let mut buffer = Vec::new();
        for entry in input.catalog().tensors() {
            let tensor = input.tensor(entry.id);
            let info = &tensor.info;
            if !input.is_run(&info.name) {
                continue;
            }
            let bytes = input.read(tensor, 0..info.shape.rows(), &mut buffer)?;
            if let Some(of_tensor) = Tensor::of(entry, info.ggml_type, bytes, options.kinds) {
                changed.insert(entry.id, bytes.to_vec());
                tensors.insert(entry.id, of_tensor);
            }
        }
        Ok(Parameters {
            tensors,
            bytes: Arc::new(changed),
            seen: BTreeSet::new(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Tensors that had no gradient yet: nothing of the output depends on them, or there is no
    /// derivative by them here.
    pub(super) fn without_gradient(&self) -> impl Iterator<Item = TensorId> + '_ {
        let ids = self.tensors.keys().copied();
        ids.filter(|id| !self.seen.contains(id))
    }

    /// The tensors that had a gradient.
    pub(super) fn seen(&self) -> Vec<u32> {
        self.seen.iter().map(|id| id.0).collect()
    }

    pub(super) fn set_seen(&mut self, seen: &[u32]) {
        self.seen = seen.iter().map(|id| TensorId(*id)).collect();
    }

    pub(super) fn adding(&mut self) -> Adding<'_> {
        Adding {
            tensors: &mut self.tensors,
            bytes: &self.bytes,
            seen: &mut self.seen,
            not_finite: None,
        }
    }

    /// Drops the gradients of a step.
    pub(super) fn undo(&mut self) {
        for tensor in self.tensors.values_mut() {
            let gradients = tensor.gradients().into_iter();
            gradients.for_each(|gradient| gradient.fill(0.0));
        }
    }

    /// One step of the optimizers with these rates, and the new bytes.
    pub(super) fn update(&mut self, rates: Rates, number: u64) {
        let all = Arc::make_mut(&mut self.bytes);
        for (id, tensor) in &mut self.tensors {
            let Some(bytes) = all.get_mut(id) else {
                continue;
            };
            match tensor {
                Tensor::Blocks(blocks) => {
                    blocks.update(bytes, [rates.scales, rates.codes], number);
                }
                Tensor::Plain(plain) => {
                    let step = plain.adam.add(&plain.gradient, rates.norms, number);
                    plain.gradient.fill(0.0);
                    for (i, bytes) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
                        plain.change[i] += plain.adam.change(step, i);
                        let number = plain.start[i] + plain.size * plain.change[i];
                        *bytes = number.to_le_bytes();
                    }
                }
            }
        }
    }

    /// All numbers of the state of the optimizers, with those of the parameters before rounding.
    pub(super) fn state(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        self.tensors.values_mut().flat_map(Tensor::state)
    }
}

impl ParameterGradients for Adding<'_> {
    fn add(&mut self, gradient: RowGradient<'_>) {
        let RowGradient {
            tensor: id,
            first,
            columns,
            numbers,
        } = gradient;
        let (Some(tensor), Some(bytes)) = (self.tensors.get_mut(&id), self.bytes.get(&id)) else {
            return;
        };
        self.seen.insert(id);
        if !numbers.iter().all(|x| x.is_finite()) {
            self.not_finite = self.not_finite.or(Some(id));
        }
        match tensor {
            Tensor::Blocks(blocks) => blocks.add(first, numbers, bytes),
            Tensor::Plain(plain) => {
                let sums = plain.gradient[first * columns..].iter_mut();
                sums.zip(numbers).for_each(|(sum, g)| *sum += g);
            }
        }
    }
}
