//! The output head: final norm and output matrix.

use super::Hyper;
use super::linear::{Linear, Norm, Pass};
use super::ops::elementwise::{add, scale, soft_cap};
use super::ops::product::product_derivative;
use super::rows::Rows;
use super::streams::Merging;
use super::weights::Weights;
use super::{Engine, LOGIT_ROWS, LinearInput, Result, Tap};
use quantier_arch::LinearId;
use quantier_core::progress::Silent;
use quantier_round::matrix::{View, multiply};
use std::borrow::Cow;

/// Output head: from hidden activations to logits.
pub struct Head<'e> {
    hyper: &'e Hyper,
    input: HeadInput,
    output: Output<'e>,
    /// Factor of the products with the output matrix, if not 1.
    scale: Option<f32>,
    /// Bias of the logits.
    bias: Option<Vec<f32>>,
}

/// From the last layer's streams to the input of the output matrix.
pub(super) struct HeadInput {
    merging: Option<Merging>,
    /// The norm before the output matrix, with the factor of that matrix's input.
    norm: Option<Norm>,
}

impl HeadInput {
    /// Merged streams before the norm.
    fn merged<'h>(&self, hidden: &'h Rows) -> Cow<'h, Rows> {
        match &self.merging {
            Some(merging) => Cow::Owned(merging.merge(hidden)),
            None => Cow::Borrowed(hidden),
        }
    }

    /// Input of the output matrix: `[rows, hidden]`.
    pub(super) fn of(&self, hidden: &Rows) -> Rows {
        let merged = self.merged(hidden);
        match &self.norm {
            Some(norm) => norm.of(&merged),
            None => merged.into_owned(),
        }
    }

    /// One stream, with this norm.
    #[cfg(test)]
    pub(super) fn of_norm(norm: Option<Norm>) -> HeadInput {
        HeadInput {
            merging: None,
            norm,
        }
    }

    /// Derivative of [`HeadInput::of`]: from the gradient of the input to that of the streams.
    pub(super) fn derivative(&self, hidden: &Rows, mut gradient: Rows, pass: &Pass<'_>) -> Rows {
        if let Some(norm) = &self.norm {
            let merged = self.merged(hidden);
            pass.back_norm(norm, merged.numbers(), gradient.numbers_mut());
        }
        match &self.merging {
            Some(merging) => merging.derivative(hidden, gradient),
            None => gradient,
        }
    }
}

/// The pass of a chunk through the head, on the calling thread.
pub(super) fn of_chunk<'p>(chunk: usize, tap: Option<&'p dyn Tap>) -> Pass<'p> {
    Pass {
        chunk,
        tap,
        recording: false,
        split: 1,
        stored: None,
        progress: &Silent,
    }
}

enum Output<'e> {
    /// Widened once.
    Whole(Linear),
    /// Widened in bands of rows on every call, where the whole matrix exceeds its share of the
    /// memory.
    Bands {
        id: LinearId,
        weights: &'e Weights<'e>,
        name: &'static str,
        rows: usize,
        band: usize,
        scale: Option<f32>,
    },
}

/// The memory limit divided by this bounds the widened output matrix; `kld` holds two at a time.
const PART_OF_MEMORY: u64 = 3;
/// The memory limit divided by this bounds the bands of all threads, where the whole matrix is too
/// large.
const PART_OF_BANDS: u64 = 8;
/// Minimum rows per band: enough for an efficient product.
const LEAST_BAND: usize = 64;

impl Engine<'_> {
    /// Bytes of the widened output matrix, or of the bands that are widened at a time.
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

    /// Rows per band and thread, if the whole matrix is too large.
    fn band(&self) -> Option<usize> {
        let row = (self.hyper.hidden as u64 * 4).max(1);
        let limit = self.max_memory.filter(|_| self.weights.device().is_own())?;
        if self.vocabulary() as u64 * row <= limit / PART_OF_MEMORY {
            return None;
        }
        let rows = limit / PART_OF_BANDS / self.pool.current_num_threads() as u64 / row;
        Some((rows as usize).max(LEAST_BAND))
    }

    /// Loads what precedes the output matrix.
    pub(super) fn head_input(&self, weights: &Weights<'_>) -> Result<HeadInput> {
        let (hyper, spec) = (&self.hyper, &self.spec);
        let norm = spec.output_norm.as_ref();
        let mut norm = norm.map(|norm| weights.norm(norm)).transpose()?;
        if let Some(norm) = norm.as_mut().filter(|_| hyper.output_scale != 1.0) {
            let numbers = norm.weight.iter_mut().chain(&mut norm.bias);
            numbers.for_each(|x| *x *= hyper.output_scale);
            norm.tensors.scale(hyper.output_scale, hyper.output_scale);
        }
        let streams = spec.streams.as_ref();
        let merging = streams.map(|streams| Merging::load(weights, streams, hyper.hidden));
        Ok(HeadInput {
            merging: merging.transpose()?,
            norm,
        })
    }

    /// Widens the final norm and the output matrix, or only the norm if the matrix exceeds its
    /// share of the memory.
    ///
    /// # Errors
    /// Tensors that are missing, have the wrong shape or cannot be read.
    pub fn head(&self) -> Result<Head<'_>> {
        let (hyper, rows, name) = (&self.hyper, self.vocabulary(), self.output_name());
        self.pool.install(|| {
            let linear = self.catalog().output();
            let output = match self.band().zip(linear) {
                Some((band, linear)) => Output::Bands {
                    id: linear.id,
                    weights: &self.weights,
                    name,
                    rows,
                    band,
                    scale: self.weights.scales(linear, 1)?.map(|scales| scales[0]),
                },
                None => Output::Whole(self.weights.linear(&self.spec.output)?),
            };
            let (scale, bias) = match &output {
                Output::Whole(linear) => (linear.scale_of(0), linear.bias.clone()),
                Output::Bands { scale, .. } => (*scale, None),
            };
            Ok(Head {
                hyper,
                input: self.head_input(&self.weights)?,
                output,
                scale,
                bias,
            })
        })
    }
}

impl Head<'_> {
    /// Input of the output matrix, `[rows, hidden]`: merged and normalized hidden activations `[rows,
    /// streams * hidden]`.
    pub fn normalized(&self, hidden: &Rows) -> Rows {
        self.input.of(hidden)
    }

    /// The logit of a product with a row of the output matrix, and its derivative.
    pub fn bend(&self, row: usize, product: f32) -> (f32, f32) {
        let factor = self.scale.unwrap_or(1.0);
        let bias = self.bias.as_ref().map_or(0.0, |bias| bias[row]);
        let z = (product * factor + bias) * self.hyper.logit_scale;
        let slope = factor * self.hyper.logit_scale;
        match self.hyper.logit_cap {
            None => (z, slope),
            Some(cap) => {
                let bent = (z / cap).tanh();
                (bent * cap, slope * (1.0 - bent * bent))
            }
        }
    }

    /// The output gradient of the output matrix, given the logits and their gradient: `[rows,
    /// vocabulary]` each.
    pub(super) fn output_gradient(&self, logits: &Rows, mut gradient: Rows) -> Rows {
        if let Some(cap) = self.hyper.logit_cap {
            gradient
                .numbers_mut()
                .iter_mut()
                .zip(logits.numbers())
                .for_each(|(g, logit)| *g *= 1.0 - (logit / cap).powi(2));
        }
        let factor = self.scale.unwrap_or(1.0);
        scale(gradient.numbers_mut(), factor * self.hyper.logit_scale);
        gradient
    }

    /// The gradient of hidden activations `[rows, streams * hidden]`, given that of the output matrix:
    /// `[rows, vocabulary]`. The tap of `pass` sees the gradient of the final norm.
    pub(super) fn derivative(
        &self,
        hidden: &Rows,
        gradient: &Rows,
        pass: &Pass<'_>,
    ) -> Result<Rows> {
        let of_input = match &self.output {
            Output::Whole(linear) => product_derivative(gradient, &linear.of_expert(0, None)?, 1),
            Output::Bands { .. } => {
                let columns = self.hyper.hidden;
                let mut sum = Rows::zeros(hidden.len(), columns);
                self.bands(|start, table| {
                    let rows = table.len() / columns;
                    let part = gradient.columns_range(start..start + rows);
                    add(
                        sum.numbers_mut(),
                        product_derivative(&part, table, 1).numbers(),
                    );
                })?;
                sum
            }
        };
        Ok(self.input.derivative(hidden, of_input, pass))
    }

    /// Logits `[rows, vocabulary]` of a chunk's hidden activations `[rows, streams * hidden]`, computed on
    /// the calling thread.
    ///
    /// # Errors
    /// If the output matrix cannot be read, or a device fails.
    pub fn logits(&self, hidden: &Rows, chunk: usize, tap: Option<&dyn Tap>) -> Result<Rows> {
        let x = self.normalized(hidden);
        let pass = of_chunk(chunk, tap);
        let mut logits = match &self.output {
            Output::Whole(linear) => {
                pass.input(&[linear], None, &x)?;
                pass.times(linear, &x)?
            }
            Output::Bands { id, rows, .. } => {
                if let Some(tap) = tap {
                    tap.input(LinearInput {
                        chunk,
                        linears: &[*id],
                        routed: None,
                        rows: &x,
                    });
                }
                let mut out = Rows::zeros(x.len(), *rows);
                self.bands(|start, table| {
                    let columns = x.columns();
                    let table = View::new(table, table.len() / columns, columns, columns);
                    let out = &mut out.numbers_mut()[start..];
                    multiply(x.view(), table.transposed(), out, *rows, 1);
                })?;
                scale(out.numbers_mut(), self.scale.unwrap_or(1.0));
                out
            }
        };
        scale(logits.numbers_mut(), self.hyper.logit_scale);
        if let Some(cap) = self.hyper.logit_cap {
            soft_cap(logits.numbers_mut(), cap);
        }
        Ok(logits)
    }

    /// Calls `show` with each band of rows of the output matrix and its first row number; never if
    /// the matrix is widened whole.
    fn bands(&self, mut show: impl FnMut(usize, &[f32])) -> Result<()> {
        let Output::Bands {
            weights,
            name,
            rows,
            band,
            ..
        } = &self.output
        else {
            return Ok(());
        };
        for start in (0..*rows).step_by(*band) {
            let end = (start + band).min(*rows);
            show(start, &weights.band(name, start..end, self.hyper.hidden)?);
        }
        Ok(())
    }
}
