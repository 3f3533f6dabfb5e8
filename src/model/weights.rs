//! Tensors of the file on their way to the forward pass: widened to f32 by the dequantizers of
//! `quant`.

use super::{Error, Result};
use crate::arch::Catalog;
use crate::input::{Input, Tensor as Stored};
use crate::quant::Codec;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// Weights that are read at a time (one row at least).
const BAND_WEIGHTS: u64 = 8 << 20;
/// Weights that one thread takes at a time (one row at least).
const TASK_WEIGHTS: usize = 64 << 10;

/// The tensors of a model by name.
pub(super) struct Weights<'a> {
    input: &'a Input<'a>,
    by_name: HashMap<&'a str, &'a Stored<'a>>,
    /// Weights that are taken instead of the file's.
    replaced: HashMap<String, Arc<Vec<f32>>>,
    device: Device,
    /// Whether shapes are all that is wanted.
    shapes_only: bool,
}

/// Weights to be used in place of a tensor's own: all of them, in the order of the file.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// The tensor.
    pub name: String,
    /// As many as it has.
    pub weights: Arc<Vec<f32>>,
}

/// A matrix, or one for each expert, and what is added to its product.
#[derive(Clone)]
pub(super) struct Matrix {
    /// Its name in the file.
    pub name: String,
    /// `[rows, columns]`, or `[experts, rows, columns]`.
    pub weight: Tensor,
    /// `[rows]`.
    pub bias: Option<Tensor>,
}

impl Matrix {
    /// How many matrices it is.
    pub(super) fn matrices(&self) -> usize {
        if self.weight.rank() == 3 {
            self.weight.dims()[0]
        } else {
            1
        }
    }
}

impl<'a> Weights<'a> {
    pub(super) fn new(input: &'a Input<'a>, device: &Device) -> Weights<'a> {
        let by_name = input.tensors.iter().map(|t| (&*t.info.name, t)).collect();
        Weights {
            input,
            by_name,
            replaced: HashMap::new(),
            device: device.clone(),
            shapes_only: false,
        }
    }

    /// The same tensors, of which none is read: each gives zeros that take no memory.
    pub(super) fn shapes_only(&self) -> Weights<'a> {
        Weights {
            input: self.input,
            by_name: self.by_name.clone(),
            replaced: HashMap::new(),
            device: Device::Cpu,
            shapes_only: true,
        }
    }

    /// The same, with other weights in some tensors; what was replaced here stays replaced.
    pub(super) fn replacing(&self, replaced: &[Replaced]) -> Result<Weights<'a>> {
        let mut all = self.replaced.clone();
        for Replaced { name, weights } in replaced {
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
        let (by_name, device) = (self.by_name.clone(), self.device.clone());
        Ok(Weights {
            input: self.input,
            by_name,
            replaced: all,
            device,
            shapes_only: false,
        })
    }

    pub(super) fn catalog(&self) -> &'a Catalog {
        self.input.catalog()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Bytes that a layer takes when it is widened, the largest of all.
    pub(super) fn largest_layer(&self, layers: usize) -> u64 {
        let bytes = |layer: usize| {
            let prefix = format!("blk.{layer}.");
            let of_layer = self
                .input
                .tensors
                .iter()
                .filter(|t| t.info.name.starts_with(&prefix));
            of_layer.map(|t| t.info.shape.elements() * 4).sum::<u64>()
        };
        (0..layers).map(bytes).max().unwrap_or(0)
    }

    /// About the bytes of activations that a layer has at a time while a chunk of `positions` goes
    /// through it.
    pub(super) fn working_bytes(&self, positions: usize, hidden: usize) -> u64 {
        /// What the matrix of most rows makes, its neighbour, and what comes of both.
        const WIDEST: u64 = 3;
        /// The layer's input, normalized, its output, and copies of them.
        const HIDDEN: u64 = 6;
        let of_layers = self
            .input
            .tensors
            .iter()
            .filter(|t| t.info.name.starts_with("blk."));
        let rows = of_layers.filter_map(|t| t.info.shape.dims().get(1).copied());
        (WIDEST * rows.max().unwrap_or(0) + HIDDEN * hidden as u64) * positions as u64 * 4
    }

    /// Tells the system that a layer's tensors are needed soon, so that it reads them meanwhile.
    /// Only a hint.
    pub(super) fn prefetch_layer(&self, layer: usize) {
        let prefix = format!("blk.{layer}.");
        let of_layer = self
            .input
            .tensors
            .iter()
            .filter(|t| t.info.name.starts_with(&prefix));
        of_layer.for_each(|tensor| self.input.prefetch(tensor));
    }

    /// A tensor of these dimensions, outermost first.
    ///
    /// # Errors
    /// If it is missing or has other dimensions.
    pub(super) fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let found = self.optional(name, dims)?;
        found.ok_or_else(|| self.bad(name, "is missing; the file is not complete".into()))
    }

    /// The same; `None` if it is missing.
    pub(super) fn optional(&self, name: &str, dims: &[usize]) -> Result<Option<Tensor>> {
        let Some(stored) = self.by_name.get(name) else {
            return Ok(None);
        };
        let shape = &stored.info.shape;
        let wanted: Vec<u64> = dims.iter().map(|d| *d as u64).filter(|d| *d != 1).collect();
        let held: Vec<u64> = shape
            .dims()
            .iter()
            .rev()
            .copied()
            .filter(|d| *d != 1)
            .collect();
        if wanted != held {
            let what = format!(
                "has shape {shape}; {dims:?}, outermost first, is what the metadata leads to"
            );
            return Err(self.bad(name, what));
        }
        if self.shapes_only {
            return Ok(Some(
                Tensor::zeros((), DType::F32, &self.device)?.broadcast_as(dims)?,
            ));
        }
        let mut weights = vec![0.0; shape.elements() as usize];
        self.widen(stored, 0..shape.rows(), &mut weights, true)?;
        Ok(Some(Tensor::from_vec(weights, dims, &self.device)?))
    }

    /// A matrix with its bias if there is one.
    pub(super) fn matrix(&self, stem: &str, dims: &[usize]) -> Result<Matrix> {
        let name = format!("{stem}.weight");
        let weight = self.tensor(&name, dims)?;
        let bias = match dims {
            [rows, _] => self.optional(&format!("{stem}.bias"), &[*rows])?,
            _ => None,
        };
        Ok(Matrix { name, weight, bias })
    }

    /// Some rows of a table, by number: `[numbers, columns]`.
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

    /// Rows of a table that follow each other, widened by the calling thread: `[rows, columns]`.
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
        let stored = self
            .by_name
            .get(name)
            .ok_or_else(|| self.bad(name, "is missing".into()))?;
        let shape = &stored.info.shape;
        match shape.row_len() == columns as u64 && columns > 0 {
            true => Ok(stored),
            false => Err(self.bad(
                name,
                format!("has shape {shape}; rows of {columns} are expected"),
            )),
        }
    }

    /// How many rows a table has.
    pub(super) fn row_count(&self, name: &str) -> Option<usize> {
        Some(self.by_name.get(name)?.info.shape.rows() as usize)
    }

    /// Where tensors are put.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The dimensions of a tensor, row length first.
    pub(super) fn dims(&self, name: &str) -> Option<Vec<usize>> {
        Some(
            self.by_name
                .get(name)?
                .info
                .shape
                .dims()
                .iter()
                .map(|d| *d as usize)
                .collect(),
        )
    }

    /// The number of values of a tensor in one dimension.
    pub(super) fn len(&self, name: &str) -> Option<usize> {
        Some(self.by_name.get(name)?.info.shape.elements() as usize)
    }

    /// Widens rows into `out`; on all threads if it is told so.
    fn widen(
        &self,
        stored: &Stored<'_>,
        rows: std::ops::Range<u64>,
        out: &mut [f32],
        together: bool,
    ) -> Result<()> {
        let info = &stored.info;
        let codec = Codec::of(info.ggml_type).ok_or_else(|| {
            self.bad(
                &info.name,
                format!("is of type {}, which holds no weights", info.ggml_type),
            )
        })?;
        let row_len = info.shape.row_len() as usize;
        if let Some(weights) = self.replaced.get(&*info.name) {
            out.copy_from_slice(&weights[rows.start as usize * row_len..][..out.len()]);
            return Ok(());
        }
        let row_bytes = (info.bytes() / info.shape.rows()) as usize;
        let band_rows = (BAND_WEIGHTS / row_len as u64).max(1);
        let task_rows = (TASK_WEIGHTS / row_len).max(1);
        let mut buffer = Vec::new();
        for (i, band) in out.chunks_mut(band_rows as usize * row_len).enumerate() {
            let start = rows.start + i as u64 * band_rows;
            let here = start..start + (band.len() / row_len) as u64;
            let raw = self.input.read(stored, here.clone(), &mut buffer)?;
            if together {
                let tasks = band
                    .par_chunks_mut(task_rows * row_len)
                    .zip(raw.par_chunks(task_rows * row_bytes));
                tasks.for_each(|(weights, raw)| codec.dequantize_row(raw, weights));
                // A table whose rows are asked for one by one, or again and again, stays.
                self.input.release(stored, here);
            } else {
                codec.dequantize_row(raw, band);
            }
        }
        Ok(())
    }

    fn bad(&self, name: &str, what: String) -> Error {
        Error::Model(format!("tensor '{name}' {what}"))
    }
}
