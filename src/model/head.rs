//! From hidden activations to logits: the last norm and the output matrix.

use super::hyper::Hyper;
use super::layer::{Normalizer, Pass};
use super::product::{is_ours, numbers, product_numbers};
use super::rows::bend;
use super::weights::{Matrix, Weights};
use super::{Engine, LOGIT_ROWS, Observer, Result};
use crate::matrix::{View, multiply};
use crate::progress::Silent;
use crate::vector::vectorized;
use candle_core::Tensor;

/// From hidden activations to logits.
pub struct Head<'e> {
    hyper: &'e Hyper,
    norm: Option<Normalizer>,
    output: Output<'e>,
    /// Added to the products with the output matrix.
    bias: Option<Vec<f32>>,
}

enum Output<'e> {
    /// Widened for good.
    Whole(Matrix),
    /// Some rows at a time, for a memory that the whole would take too much of. Every call widens
    /// all of them again.
    Bands {
        weights: &'e Weights<'e>,
        name: &'static str,
        rows: usize,
        band: usize,
    },
}

/// What part of the memory allowed the widened output matrix may take; `kld` has two of them at a
/// time.
const PART_OF_MEMORY: u64 = 3;
/// What part of it the bands of all threads take together, where the whole takes too much.
const PART_OF_BANDS: u64 = 8;
/// The fewest rows of a band: so many that the product is still a good one.
const LEAST_BAND: usize = 64;

impl Engine<'_> {
    /// Bytes that the output matrix takes when it is widened, as far as that is done at a time.
    pub fn head_bytes(&self) -> u64 {
        let row = self.hyper.hidden as u64 * 4;
        match self.band() {
            Some(rows) => rows as u64 * row * self.pool.current_num_threads() as u64,
            None => self.vocabulary() as u64 * row,
        }
    }

    /// Bytes of the logits that all threads compute at a time.
    pub(super) fn logit_bytes(&self) -> u64 {
        (self.pool.current_num_threads() * LOGIT_ROWS * self.vocabulary() * 4) as u64
    }

    /// Rows of the output matrix that a thread widens at a time, if the whole is too large.
    fn band(&self) -> Option<usize> {
        let row = (self.hyper.hidden as u64 * 4).max(1);
        let limit = self.max_memory.filter(|_| self.weights.device().is_cpu())?;
        if self.vocabulary() as u64 * row <= limit / PART_OF_MEMORY {
            return None;
        }
        let rows = limit / PART_OF_BANDS / self.pool.current_num_threads() as u64 / row;
        Some((rows as usize).max(LEAST_BAND))
    }

    /// Widens the last norm and the output matrix, unless that takes too much of the memory
    /// allowed.
    pub fn head(&self) -> Result<Head<'_>> {
        let (hyper, rows, name) = (&self.hyper, self.vocabulary(), self.output_name());
        self.pool.install(|| {
            let output = match self.band() {
                Some(band) => Output::Bands {
                    weights: &self.weights,
                    name,
                    rows,
                    band,
                },
                None => Output::Whole(
                    self.weights
                        .matrix(name.trim_end_matches(".weight"), &[rows, hyper.hidden])?,
                ),
            };
            let bias = match &output {
                Output::Whole(matrix) => matrix.bias.as_ref().map(Tensor::to_vec1).transpose()?,
                Output::Bands { .. } => None,
            };
            Ok(Head {
                hyper,
                norm: Normalizer::output(&self.weights, hyper)?,
                output,
                bias,
            })
        })
    }
}

impl Head<'_> {
    /// What the output matrix is multiplied by: hidden activations `[rows, hidden]`, normalized.
    pub fn normalized(&self, hidden: &Tensor) -> Result<Tensor> {
        self.norm
            .as_ref()
            .map_or_else(|| Ok(hidden.clone()), |norm| norm.apply(hidden))
    }

    /// The logit that a product with a row of the output matrix becomes, and its derivative.
    pub fn bend(&self, row: usize, product: f32) -> (f32, f32) {
        let z =
            (product + self.bias.as_ref().map_or(0.0, |bias| bias[row])) * self.hyper.logit_scale;
        match self.hyper.logit_cap {
            None => (z, self.hyper.logit_scale),
            Some(cap) => {
                let bent = (z / cap).tanh();
                (bent * cap, self.hyper.logit_scale * (1.0 - bent * bent))
            }
        }
    }

    /// The gradient of hidden activations `[rows, hidden]`, of that of their logits: `[rows *
    /// vocabulary]` each.
    pub(super) fn derivative(
        &self,
        hidden: &Tensor,
        logits: &[f32],
        mut gradient: Vec<f32>,
    ) -> Result<Vec<f32>> {
        let (rows, columns) = hidden.dims2()?;
        let scale = self.hyper.logit_scale;
        if let Some(cap) = self.hyper.logit_cap {
            gradient
                .iter_mut()
                .zip(logits)
                .for_each(|(g, logit)| *g *= 1.0 - (logit / cap).powi(2));
        }
        if scale != 1.0 {
            gradient.iter_mut().for_each(|g| *g *= scale);
        }
        let vocabulary = gradient.len() / rows.max(1);
        let mut of_inputs = vec![0.0f32; rows * columns];
        let all = View::new(&gradient, rows, vocabulary, vocabulary);
        match &self.output {
            Output::Whole(matrix) => numbers(&matrix.weight, |table| {
                multiply(
                    all,
                    View::new(table, vocabulary, columns, columns),
                    &mut of_inputs,
                    columns,
                    1,
                );
                Ok(())
            })?,
            Output::Bands {
                weights,
                name,
                rows: vocabulary,
                band,
            } => {
                let mut part = vec![0.0f32; rows * columns];
                for start in (0..*vocabulary).step_by(*band) {
                    let end = (start + band).min(*vocabulary);
                    let table = weights.band(name, start..end, columns)?;
                    let some = View::new(&gradient[start..], rows, end - start, *vocabulary);
                    multiply(
                        some,
                        View::new(&table, end - start, columns, columns),
                        &mut part,
                        columns,
                        1,
                    );
                    of_inputs
                        .iter_mut()
                        .zip(&part)
                        .for_each(|(sum, part)| *sum += part);
                }
            }
        }
        let of_inputs = Tensor::from_vec(of_inputs, (rows, columns), hidden.device())?;
        let hidden = candle_core::Var::from_tensor(hidden)?;
        let store = (self.normalized(hidden.as_tensor())? * of_inputs)?
            .sum_all()?
            .backward()?;
        let of_hidden = store
            .get(hidden.as_tensor())
            .map(|g| g.flatten_all()?.to_vec1());
        Ok(of_hidden.unwrap_or_else(|| Ok(vec![0.0; rows * columns]))?)
    }

    /// Logits `[rows, vocabulary]` of hidden activations `[rows, hidden]` of a chunk, on the
    /// calling thread.
    pub fn logits(
        &self,
        hidden: &Tensor,
        chunk: usize,
        observer: Option<&dyn Observer>,
    ) -> Result<Tensor> {
        let logits = self.numbers(hidden, chunk, observer)?;
        let rows = hidden.dim(0)?;
        let vocabulary = logits.len() / rows.max(1);
        Ok(Tensor::from_vec(
            logits,
            (rows, vocabulary),
            hidden.device(),
        )?)
    }

    /// The same as numbers of this computer, row by row.
    pub fn numbers(
        &self,
        hidden: &Tensor,
        chunk: usize,
        observer: Option<&dyn Observer>,
    ) -> Result<Vec<f32>> {
        let x = self.normalized(hidden)?;
        let pass = Pass {
            chunk,
            observer,
            split: 1,
            probes: None,
            progress: &Silent,
        };
        let mut logits = match &self.output {
            Output::Whole(matrix) if is_ours(&x) && matrix.bias.is_none() => {
                pass.see(&x, &matrix.name, [0, 1])?;
                product_numbers(&x, &matrix.weight, 1)?
            }
            Output::Whole(matrix) => pass.times(&x, matrix)?.flatten_all()?.to_vec1()?,
            Output::Bands {
                weights,
                name,
                rows,
                band,
            } => {
                pass.see(&x, name, [0, 1])?;
                in_bands(&x, weights, name, *rows, *band)?
            }
        };
        let scale = self.hyper.logit_scale;
        if scale != 1.0 {
            vectorized(|| logits.iter_mut().for_each(|x| *x *= scale));
        }
        bend(&mut logits, self.hyper.logit_cap);
        Ok(logits)
    }
}

/// The product with the rows of a table, of which `band` are widened at a time.
fn in_bands(
    x: &Tensor,
    weights: &Weights<'_>,
    name: &str,
    rows: usize,
    band: usize,
) -> Result<Vec<f32>> {
    let (count, columns) = x.dims2()?;
    let mut out = vec![0.0f32; count * rows];
    for start in (0..rows).step_by(band) {
        let end = (start + band).min(rows);
        let table = weights.band(name, start..end, columns)?;
        numbers(x, |x| {
            let table = View::new(&table, end - start, columns, columns).transposed();
            multiply(
                View::new(x, count, columns, columns),
                table,
                &mut out[start..],
                rows,
                1,
            );
            Ok(())
        })?;
    }
    Ok(out)
}
