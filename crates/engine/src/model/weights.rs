//! The model's tensors, widened for the forward pass.

use super::device::Device;
use super::linear::{Linear, LinearWeights, Norm, NormTensors};
use super::ops::elementwise::scale;
use super::{Error, Options, Result};
use quantier_arch::Input;
use quantier_arch::catalog;
use quantier_arch::spec::{LinearSpec, NormSpec, ScaledNormSpec};
use quantier_arch::{Catalog, Entry, TensorId};
use quantier_gguf as format;
use quantier_gguf::reader::{Band, Tensor as Stored};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The tensors of a model.
pub(super) struct Weights<'a> {
    input: &'a Input<'a>,
    /// Weights that override those of the file.
    replaced: HashMap<String, Arc<Vec<f32>>>,
    /// Bytes that override those of the file, of the same type and shape.
    changed: Arc<Changed>,
    device: Device,
    /// Number of threads that multiply, if experts are widened one at a time: those of a layer
    /// exceed their share of the memory.
    by_matrix: Option<usize>,
    /// True if only shapes are checked.
    shapes_only: bool,
}

const MISSING: &str = "is missing; the file is not complete";

/// The widened layer takes at most the memory limit divided by this; otherwise its experts are
/// widened one at a time.
const PART_OF_MEMORY: u64 = 2;

/// Bytes that override those of some tensors: all of each, in the type of the file.
pub type Changed = HashMap<TensorId, Vec<u8>>;

/// Weights that override those of a tensor: all of them, in file order.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// The tensor.
    pub name: String,
    /// As many as the tensor has.
    pub weights: LinearWeights,
}

impl<'a> Weights<'a> {
    pub(super) fn new(input: &'a Input<'a>, options: &Options, threads: usize) -> Weights<'a> {
        let whole = Weights {
            input,
            replaced: HashMap::new(),
            changed: Arc::default(),
            device: options.device.clone(),
            by_matrix: None,
            shapes_only: false,
        };
        let limit = options.max_memory.filter(|_| options.device.is_own());
        let exceeds = limit.is_some_and(|all| whole.largest_layer() > all / PART_OF_MEMORY);
        Weights {
            by_matrix: exceeds.then_some(threads),
            ..whole
        }
    }

    /// The same tensors without data: shapes are checked and weights come back empty.
    pub(super) fn shapes_only(&self) -> Weights<'a> {
        Weights {
            input: self.input,
            replaced: HashMap::new(),
            changed: Arc::default(),
            device: Device::default(),
            by_matrix: None,
            shapes_only: true,
        }
    }

    /// A copy with other weights in some tensors; earlier replacements remain.
    pub(super) fn replacing(&self, replaced: &[Replaced]) -> Result<Weights<'a>> {
        let mut all = self.replaced.clone();
        for Replaced { name, weights } in replaced {
            let LinearWeights::Widened(weights) = weights else {
                return Err(self.bad(name, "is replaced by weights that are not in f32".into()));
            };
            let (needed, found) = (self.len(name), weights.len());
            match needed {
                Some(needed) if needed == found => all.insert(name.clone(), weights.clone()),
                Some(needed) => {
                    return Err(self.bad(
                        name,
                        format!("has {needed} weights, and {found} should replace them"),
                    ));
                }
                None => {
                    return Err(self.bad(name, "is missing; its weights cannot be replaced".into()));
                }
            };
        }
        Ok(Weights {
            input: self.input,
            replaced: all,
            changed: self.changed.clone(),
            device: self.device.clone(),
            by_matrix: self.by_matrix,
            shapes_only: false,
        })
    }

    /// A copy with other bytes in some tensors, in the place of earlier changes.
    pub(super) fn changing(&self, changed: Arc<Changed>) -> Result<Weights<'a>> {
        for (id, bytes) in changed.iter() {
            let info = &self.input.tensor(*id).info;
            if info.bytes() != bytes.len() as u64 {
                let (needed, given) = (info.bytes(), bytes.len());
                let what = format!("has {needed} bytes, and {given} should take their place");
                return Err(self.bad(&info.name, what));
            }
        }
        Ok(Weights {
            input: self.input,
            replaced: self.replaced.clone(),
            changed,
            device: self.device.clone(),
            by_matrix: self.by_matrix,
            shapes_only: false,
        })
    }

    /// True if experts are widened one at a time, when they multiply.
    pub(super) fn is_by_matrix(&self) -> bool {
        self.by_matrix.is_some()
    }

    pub(super) fn catalog(&self) -> &'a Catalog {
        self.input.catalog()
    }

    /// The tensor of this name.
    fn stored(&self, name: &str) -> Option<&'a Stored<'a>> {
        let id = self.catalog().tensor_named(name)?;
        Some(self.input.tensor(id))
    }

    /// Bytes of the largest layer's weights in f32, as far as they are widened together.
    pub(super) fn largest_layer(&self) -> u64 {
        let mut layers: BTreeMap<u32, u64> = BTreeMap::new();
        let mut widest = 0;
        for entry in self.catalog().tensors() {
            let Some(layer) = entry.layer else {
                continue;
            };
            let weights = self.input.tensor(entry.id).info.shape.elements();
            let linear = self.catalog().linear_of(entry.id);
            match linear.and_then(|linear| linear.grouping.experts()) {
                Some(experts) if self.by_matrix.is_some() => {
                    widest = widest.max(weights / experts.max(1) as u64);
                }
                _ => *layers.entry(layer.0).or_default() += weights,
            }
        }
        let together = layers.into_values().max().unwrap_or(0);
        4 * (together + widest * self.by_matrix.unwrap_or(0) as u64)
    }

    /// The tensors of a layer.
    fn of_layer(&self, layer: usize) -> impl Iterator<Item = &'a Stored<'a>> {
        let entries = self.input.catalog().tensors().iter();
        let is_here = move |entry: &&Entry| entry.layer.is_some_and(|id| id.index() == layer);
        let input = self.input;
        entries
            .filter(is_here)
            .map(move |entry| input.tensor(entry.id))
    }

    /// Estimated bytes of a layer's activations while one chunk of `positions` passes through.
    pub(super) fn working_bytes(&self, positions: usize, hidden: usize) -> u64 {
        /// Outputs of the matrix with the most rows and of its neighbour, and their product.
        const WIDEST: u64 = 3;
        /// The layer's input, its normalized input, its output, and copies.
        const HIDDEN: u64 = 6;
        let entries = self.input.catalog().tensors().iter();
        let rows = entries
            .filter(|entry| entry.layer.is_some())
            .map(|entry| entry.dims[1]);
        (WIDEST * rows.max().unwrap_or(0) + HIDDEN * hidden as u64) * positions as u64 * 4
    }

    /// Hints to the system that a layer's tensors are needed soon, so that it reads ahead.
    pub(super) fn prefetch_layer(&self, layer: usize) {
        self.of_layer(layer)
            .for_each(|tensor| self.input.prefetch(tensor));
    }

    /// A tensor of these dimensions, outermost first.
    ///
    /// # Errors
    /// If it is missing or has other dimensions.
    pub(super) fn tensor(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let weights = self.optional(name, dims)?;
        weights.ok_or_else(|| self.bad(name, MISSING.into()))
    }

    /// [`Weights::tensor`] with finite numbers only.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`], and a number that is not finite; the error gives its index.
    pub(super) fn finite(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let numbers = self.tensor(name, dims)?;
        match numbers.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(self.bad(
                name,
                format!(
                    "holds {} as its number {at}; the checkpoint is damaged, or its numbers are too large for f32",
                    numbers[at]
                ),
            )),
            None => Ok(numbers),
        }
    }

    /// Finite numbers of at most 0.
    ///
    /// # Errors
    /// Those of [`Weights::finite`], and a number above 0.
    pub(super) fn at_most_zero(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let numbers = self.finite(name, dims)?;
        match numbers.iter().position(|x| *x > 0.0) {
            Some(at) => Err(self.bad(
                name,
                format!(
                    "holds {} as its number {at}, and a state would grow by it; the file is damaged",
                    numbers[at]
                ),
            )),
            None => Ok(numbers),
        }
    }

    /// Reciprocals of divisors.
    ///
    /// # Errors
    /// Those of [`Weights::finite`], and a divisor of 0.
    pub(super) fn reciprocals(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let numbers = self.finite(name, dims)?;
        match numbers.iter().position(|x| *x == 0.0) {
            Some(at) => Err(self.bad(
                name,
                format!("holds 0 as its number {at}, and is a divisor; the file is damaged"),
            )),
            None => Ok(numbers.iter().map(|x| x.recip()).collect()),
        }
    }

    /// [`Weights::tensor`], or `None` if it is missing.
    fn optional(&self, name: &str, dims: &[usize]) -> Result<Option<Vec<f32>>> {
        let Some(stored) = self.shaped(name, dims)? else {
            return Ok(None);
        };
        if self.shapes_only {
            return Ok(Some(Vec::new()));
        }
        let shape = &stored.info.shape;
        let mut weights = vec![0.0; shape.elements() as usize];
        self.widen(stored, 0..shape.rows(), &mut weights, true)?;
        Ok(Some(weights))
    }

    /// A tensor of these dimensions, outermost first, or `None` if it is missing.
    fn shaped(&self, name: &str, dims: &[usize]) -> Result<Option<&'a Stored<'a>>> {
        let Some(stored) = self.stored(name) else {
            return Ok(None);
        };
        let shape = &stored.info.shape;
        let expected = dims.iter().map(|d| *d as u64).filter(|d| *d != 1);
        let stored_dims = shape.dims().iter().rev().copied().filter(|d| *d != 1);
        if !expected.eq(stored_dims) {
            let what = format!(
                "has shape {shape}; {dims:?}, outermost first, is what the metadata leads to"
            );
            return Err(self.bad(name, what));
        }
        Ok(Some(stored))
    }

    /// A linear, with its bias if there is one.
    ///
    /// # Errors
    /// If its weights are missing, or a tensor has other dimensions.
    pub(super) fn linear(&self, spec: &LinearSpec) -> Result<Linear> {
        let name = format!("{}.weight", spec.stem);
        let matrix = [spec.rows, spec.columns];
        let experts = spec.experts.unwrap_or(1);
        let dims = [experts, spec.rows, spec.columns];
        let stored = self.shaped(&name, &dims)?;
        stored.ok_or_else(|| self.bad(&name, MISSING.into()))?;
        let entry = self.catalog().linear_named(&name);
        let entry = entry.ok_or_else(|| self.bad(&name, "multiplies no activations".into()))?;
        let is_on_use = self.by_matrix.is_some()
            && entry.grouping.experts().is_some()
            && !self.replaced.contains_key(&name);
        let (weights, uploaded) = match is_on_use {
            true => (LinearWeights::Stored { rows: spec.rows }, None),
            false => {
                let weights = self.tensor(&name, &dims)?;
                let uploaded = match self.shapes_only {
                    true => None,
                    false => self.device.upload(&weights, matrix)?,
                };
                (weights.into(), uploaded)
            }
        };
        let bias = self.optional(&format!("{}.bias", spec.stem), &[experts, spec.rows])?;
        let scales = self.scales(entry, experts)?;
        Ok(Linear {
            id: entry.id,
            name,
            weights,
            experts,
            columns: spec.columns,
            scales,
            bias,
            uploaded,
        })
    }

    /// Factors of a linear's products, one per matrix.
    ///
    /// # Errors
    /// If the tensor has another length, or a number is not finite.
    pub(super) fn scales(
        &self,
        linear: &catalog::Linear,
        matrices: usize,
    ) -> Result<Option<Vec<f32>>> {
        let scale = linear
            .scale
            .map(|scale| &*self.catalog().tensor(scale).name);
        let scales = scale.map(|scale| self.finite(scale, &[matrices]));
        Ok(scales.transpose()?.filter(|scales| !scales.is_empty()))
    }

    /// A norm, with ones for missing weights.
    ///
    /// # Errors
    /// If a tensor has other dimensions.
    pub(super) fn norm(&self, spec: &NormSpec) -> Result<Norm> {
        let all = spec.groups * spec.len;
        let weight = self.catalog().weight_of(&spec.stem);
        // Weights of several groups may be stored as one row.
        let is_one_row = weight.is_some_and(|weight| weight.row_len() == all as u64);
        let dims = match is_one_row {
            true => [1, all],
            false => [spec.groups, spec.len],
        };
        let bias_name = format!("{}.bias", spec.stem);
        let bias_id = self.catalog().tensor_named(&bias_name);
        let tensors = NormTensors {
            weight: weight.map(|weight| (weight.id, 1.0)),
            bias: bias_id.map(|bias| (bias, 1.0)),
        };
        let weight = weight.map(|weight| self.tensor(&weight.name, &dims));
        let bias = self.optional(&bias_name, &dims)?;
        Ok(Norm {
            kind: spec.kind,
            epsilon: spec.epsilon,
            weight: weight.transpose()?.unwrap_or_else(|| vec![1.0; all]),
            bias: bias.unwrap_or_else(|| vec![0.0; all]),
            len: spec.len,
            tensors,
        })
    }

    /// A norm whose weights are multiplied by a factor.
    ///
    /// # Errors
    /// If a tensor has other dimensions.
    pub(super) fn scaled_norm(&self, spec: &ScaledNormSpec) -> Result<Norm> {
        let mut norm = self.norm(&spec.norm)?;
        scale(&mut norm.weight, spec.factor);
        norm.tensors.scale(spec.factor, 1.0);
        Ok(norm)
    }

    /// Selected rows of a table: `[numbers, columns]`.
    pub(super) fn rows(&self, name: &str, numbers: &[u32], columns: usize) -> Result<Vec<f32>> {
        let stored = self.table(name, columns)?;
        let mut out = vec![0.0; numbers.len() * columns];
        for (number, row) in numbers.iter().zip(out.chunks_exact_mut(columns)) {
            let (number, rows) = (u64::from(*number), stored.info.shape.rows());
            if number >= rows {
                return Err(self.bad(
                    name,
                    format!("has {rows} rows, and row {number} is asked for"),
                ));
            }
            self.widen(stored, number..number + 1, row, false)?;
        }
        Ok(out)
    }

    /// A contiguous range of a table's rows, widened on the calling thread: `[rows, columns]`.
    pub(super) fn band(
        &self,
        name: &str,
        rows: std::ops::Range<usize>,
        columns: usize,
    ) -> Result<Vec<f32>> {
        let stored = self.table(name, columns)?;
        let mut out = vec![0.0; rows.len() * columns];
        self.widen(stored, rows.start as u64..rows.end as u64, &mut out, false)?;
        Ok(out)
    }

    fn table(&self, name: &str, columns: usize) -> Result<&'a Stored<'a>> {
        let stored = self.stored(name);
        let stored = stored.ok_or_else(|| self.bad(name, "is missing".into()))?;
        let shape = &stored.info.shape;
        match shape.row_len() == columns as u64 && columns > 0 {
            true => Ok(stored),
            false => Err(self.bad(
                name,
                format!("has shape {shape}; rows of {columns} are expected"),
            )),
        }
    }

    /// Number of rows of a table.
    pub(super) fn row_count(&self, name: &str) -> Option<usize> {
        Some(self.stored(name)?.info.shape.rows() as usize)
    }

    /// The device of products with weights.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Number of a tensor's values.
    fn len(&self, name: &str) -> Option<usize> {
        Some(self.stored(name)?.info.shape.elements() as usize)
    }

    /// Widens rows into `out`. `shared`: on all threads, and the rows are not read again.
    fn widen(
        &self,
        stored: &Stored<'_>,
        rows: std::ops::Range<u64>,
        out: &mut [f32],
        shared: bool,
    ) -> Result<()> {
        let info = &stored.info;
        if let Some(weights) = self.replaced.get(&*info.name) {
            let first = rows.start as usize * info.shape.row_len() as usize;
            out.copy_from_slice(&weights[first..][..out.len()]);
            return Ok(());
        }
        let changed = self.catalog().tensor_named(&info.name);
        let changed = changed.and_then(|id| self.changed.get(&id));
        if let Some(bytes) = changed {
            let row = bytes.len() / info.shape.rows() as usize;
            let bytes = &bytes[rows.start as usize * row..rows.end as usize * row];
            let band = Band::new(stored, rows.start, bytes)
                .ok_or_else(|| self.bad(&info.name, "holds no weights, and was changed".into()))?;
            let task = stored.task_rows();
            let parts = out.par_chunks_mut((task * band.row_len()).max(1));
            match shared {
                true => (band.par_chunks(task).zip(parts)).for_each(|(rows, out)| rows.widen(out)),
                false => band.widen(out),
            }
            return Ok(());
        }
        let widened = match shared {
            true => self.input.widen(stored, rows, out),
            false => self.input.widen_here(stored, rows, out),
        };
        widened.map_err(|error| match error {
            format::Error::Bad { .. } => Error::Model(error.to_string()),
            error => Error::Format(error),
        })
    }

    fn bad(&self, name: &str, what: String) -> Error {
        Error::Model(format!("tensor '{name}' {what}"))
    }
}
