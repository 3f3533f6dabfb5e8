//! Gradient of the KL divergence from a base model by the parameters: weights of linears and tables,
//! norms, biases.
//!
//! ```text
//! head      logits of both models; nats; output gradient q - p, over the number of rows
//! layers    in reverse: X' G of every linear, sums of norms and biases; X' G of the output matrix before them
//! tables    rows that tokens look up, after the first layer
//! ```
//!
//! The divergence is the forward one, sum of p ln(p / q) over the full vocabulary, with the base's
//! probabilities p, as a mean over rows. Its derivative by a logit is q - p.

use super::backward::{Backward, ParameterSums, Parameters, Trace, add_parameters};
use super::head::{Head, of_chunk};
use super::rows::Rows;
use super::{Engine, Error, LOGIT_ROWS, Result, Tap};
use quantier_arch::TensorId;
use quantier_blocks::vector::{LANES, exp, vectorized};
use quantier_core::progress::Progress;
use quantier_round::matrix::{View, add_product};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// The base's logits.
pub trait BaseLogits: Sync {
    /// Logits `[rows, vocabulary]` of a range of positions of a chunk.
    ///
    /// # Errors
    /// Those of [`Head::logits`].
    fn logits(&self, chunk: usize, positions: Range<usize>) -> Result<Rows>;
}

/// Chunks of tokens with the base's logits.
pub struct Batch<'b> {
    /// Chunks of equal length.
    pub chunks: &'b [Vec<u32>],
    /// The base's logits, by the number of the chunk in this batch.
    pub base: &'b dyn BaseLogits,
}

/// The gradient of some rows of a tensor.
pub struct RowGradient<'g> {
    /// The tensor.
    pub tensor: TensorId,
    /// The first row, counted over all matrices of the tensor.
    pub first: usize,
    /// Length of a row.
    pub columns: usize,
    /// `[rows, columns]`.
    pub numbers: &'g [f32],
}

/// Receives gradients of parameters.
pub trait ParameterGradients {
    /// Called with the gradient of some rows of a tensor. The gradient of a tensor is the sum over all
    /// calls; rows that are never shown have none.
    fn add(&mut self, gradient: RowGradient<'_>);
}

/// Gradients at the head.
struct AtHead {
    /// Sum over all rows, in nats.
    nats: f64,
    /// Gradient of the output matrix: `[vocabulary, hidden]`.
    weights: Vec<f32>,
    parameters: Parameters,
}

/// One block of rows at the head.
struct HeadBlock {
    nats: f64,
    /// Input of the output matrix: `[rows, hidden]`.
    input: Rows,
    /// Output gradient of the output matrix: `[rows, vocabulary]`.
    output: Rows,
    /// Gradient of the last layer's output.
    hidden: Rows,
    parameters: Parameters,
}

/// Nats of a row and, with a scale, its derivative by the logits times that; None if a number is not
/// finite.
fn divergence(base: &[f32], logits: &[f32], scale: Option<f32>) -> Option<(f64, Vec<f32>)> {
    let normalizer = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = vectorized(
            #[inline(always)]
            || row.chunks(LANES).map(|some| part(some, max)).sum(),
        );
        max + sum.ln() as f32
    };
    let [of_base, of_logits] = [base, logits].map(normalizer);
    if !(of_base.is_finite() && of_logits.is_finite()) {
        return None;
    }
    let mut gradient = vec![0.0; if scale.is_some() { base.len() } else { 0 }];
    let mut nats = 0.0f64;
    vectorized(
        #[inline(always)]
        || {
            for (base, logits) in base.chunks(LANES).zip(logits.chunks(LANES)) {
                let terms = base.iter().zip(logits).map(|(base, logit)| {
                    let p = base - of_base;
                    exp(p.min(0.0)) * (p - (logit - of_logits))
                });
                nats += f64::from(terms.sum::<f32>());
            }
            let places = gradient.iter_mut().zip(base).zip(logits);
            places.for_each(|((g, base), logit)| {
                let (p, q) = ((base - of_base).min(0.0), (logit - of_logits).min(0.0));
                *g = scale.unwrap_or(0.0) * (exp(q) - exp(p));
            });
        },
    );
    nats.is_finite().then_some((nats, gradient))
}

/// Sum of the exponentials of some logits less the largest.
#[inline(always)]
fn part(some: &[f32], max: f32) -> f64 {
    f64::from(some.iter().map(|x| exp(x - max)).sum::<f32>())
}

impl<'a> Engine<'a> {
    /// The mean KL divergence of the base's from this model's predictions at all positions of a batch,
    /// in nats, and its gradient by the parameters. Parameters without a derivative here are never
    /// shown to `gradients`: convolutions, decays, mixing factors, routers' selection biases.
    ///
    /// # Errors
    /// Those of [`Engine::run`], and gradients that are not finite.
    pub fn divergence_gradients(
        &self,
        batch: &Batch<'_>,
        gradients: &mut dyn ParameterGradients,
        progress: &dyn Progress,
    ) -> Result<f64> {
        let trace = self.trace(batch.chunks, None, progress)?;
        let rows = batch.chunks.len() * trace.positions;
        let all: Vec<Vec<u32>> = vec![(0..trace.positions as u32).collect(); batch.chunks.len()];
        let (mut backward, at_head) = self.backward_of(&trace, batch, &all, progress)?;
        let mut own = Vec::new();
        if let Some(output) = self.catalog().output() {
            own.push((output.tensor, 0, at_head.weights));
        }
        let catalog = self.catalog();
        let parameter = |((tensor, matrix), numbers): ((TensorId, usize), Vec<f32>)| {
            let columns = catalog.tensor(tensor).row_len() as usize;
            (tensor, matrix * numbers.len() / columns.max(1), numbers)
        };
        own.extend(at_head.parameters.into_iter().map(parameter));
        let mut show = |own: &[(TensorId, usize, Vec<f32>)]| {
            for (tensor, first, numbers) in own {
                gradients.add(RowGradient {
                    tensor: *tensor,
                    first: *first,
                    columns: catalog.tensor(*tensor).row_len() as usize,
                    numbers,
                });
            }
        };
        show(&own);
        while let Some((_, samples)) = backward.layer(progress)? {
            let of_linear = |samples: &super::backward::LinearSamples| {
                let (width, columns) = (samples.width, samples.columns);
                let mut sum = vec![0.0; width * columns];
                for piece in &samples.pieces {
                    for gradient in &piece.gradients {
                        let rows = gradient.len() / width;
                        let x = View::new(&piece.inputs, rows, columns, columns);
                        let g = View::new(gradient, rows, width, width);
                        add_product(g.transposed(), x, &mut sum, columns, 1);
                    }
                }
                let tensor = catalog.tensor_named(&samples.name);
                tensor.map(|tensor| (tensor, samples.matrix * width, sum))
            };
            let of_layer: Vec<_> = self
                .pool
                .install(|| samples.par_iter().filter_map(of_linear).collect());
            show(&of_layer);
            let parameters = backward.take_parameters().into_iter();
            show(&parameters.map(parameter).collect::<Vec<_>>());
        }
        for table in backward.tables()? {
            let Some(tensor) = catalog.tensor_named(&table.name) else {
                continue;
            };
            let mut sums: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
            for chunk in &table.chunks {
                let rows = chunk
                    .gradients
                    .iter()
                    .flat_map(|g| g.chunks_exact(table.columns));
                for (token, row) in chunk.tokens.iter().zip(rows) {
                    let sum = sums.entry(*token).or_insert_with(|| vec![0.0; row.len()]);
                    super::ops::elementwise::add(sum, row);
                }
            }
            let rows = sums.into_iter();
            show(
                &rows
                    .map(|(row, sum)| (tensor, row as usize, sum))
                    .collect::<Vec<_>>(),
            );
        }
        let parameters = backward.take_parameters().into_iter();
        show(&parameters.map(parameter).collect::<Vec<_>>());
        Ok(at_head.nats / rows.max(1) as f64)
    }

    /// Mean KL divergence of each chunk of a batch, in nats: of the base's from this model's predictions
    /// at all positions.
    ///
    /// # Errors
    /// Those of [`Engine::run`].
    pub fn divergence(&self, batch: &Batch<'_>, progress: &dyn Progress) -> Result<Vec<f64>> {
        let positions = batch.chunks.first().map_or(0, Vec::len);
        let hidden = self.run(batch.chunks, 0..positions, None, progress)?;
        let head = self.head()?;
        let of_chunk = |chunk: usize| -> Result<f64> {
            let rows = hidden.rows_of(chunk)?;
            let mut nats = 0.0;
            for first in (0..positions).step_by(LOGIT_ROWS) {
                if progress.cancelled() {
                    return Err(Error::Cancelled);
                }
                let range = first..(first + LOGIT_ROWS).min(positions);
                let base = batch.base.logits(chunk, range.clone())?;
                let logits = head.logits(&rows.range(range), chunk, None)?;
                for (logits, base) in logits.iter().zip(base.iter()) {
                    nats += self.row_divergence([base, logits], chunk, None)?.0;
                }
            }
            Ok(nats / positions.max(1) as f64)
        };
        let chunks = (0..batch.chunks.len()).into_par_iter();
        self.pool.install(|| chunks.map(of_chunk).collect())
    }

    /// Nats of a row, given the logits of base and model, and with a scale its derivative by the logits
    /// times that.
    fn row_divergence(
        &self,
        [base, logits]: [&[f32]; 2],
        chunk: usize,
        scale: Option<f32>,
    ) -> Result<(f64, Vec<f32>)> {
        divergence(base, logits, scale).ok_or(Error::NotFinite {
            layer: self.hyper.runs(),
            chunk,
        })
    }

    /// Starts a backward pass with the gradient of the mean divergence.
    fn backward_of<'e, 'c>(
        &'e self,
        trace: &'e Trace<'c>,
        batch: &Batch<'_>,
        sample: &'e [Vec<u32>],
        progress: &dyn Progress,
    ) -> Result<(Backward<'e, 'c>, AtHead)>
    where
        'a: 'e,
    {
        let head = self.head()?;
        let [vocabulary, hidden] = [self.vocabulary(), self.hyper.hidden];
        let mut all = AtHead {
            nats: 0.0,
            weights: vec![0.0; vocabulary * hidden],
            parameters: Parameters::new(),
        };
        let scale = 1.0 / (batch.chunks.len() * trace.positions).max(1) as f32;
        let threads = self.pool.current_num_threads();
        let mut starts = Vec::with_capacity(batch.chunks.len());
        self.pool.install(|| -> Result<()> {
            for chunk in 0..batch.chunks.len() {
                let rows = trace.output(self, chunk)?;
                let mut of_chunk = Vec::with_capacity(rows.numbers().len());
                let ranges: Vec<Range<usize>> = (0..rows.len())
                    .step_by(LOGIT_ROWS)
                    .map(|first| first..(first + LOGIT_ROWS).min(rows.len()))
                    .collect();
                // As many blocks at a time as there are threads: their gradients are wide.
                for ranges in ranges.chunks(threads) {
                    if progress.cancelled() {
                        return Err(Error::Cancelled);
                    }
                    let block = |range: &Range<usize>| {
                        let hidden = rows.range(range.clone());
                        let base = batch.base.logits(chunk, range.clone())?;
                        self.head_block(&head, chunk, hidden, &base, scale)
                    };
                    let blocks: Result<Vec<HeadBlock>> = ranges.par_iter().map(block).collect();
                    for block in blocks? {
                        all.nats += block.nats;
                        of_chunk.extend_from_slice(block.hidden.numbers());
                        let g = block.output.view();
                        let x = block.input.view();
                        add_product(g.transposed(), x, &mut all.weights, hidden, threads);
                        add_parameters(&mut all.parameters, block.parameters);
                    }
                }
                starts.push(Rows::new(of_chunk, self.hyper.stream_width()));
            }
            Ok(())
        })?;
        Ok((self.backward_with_parameters(trace, starts, sample)?, all))
    }

    fn head_block(
        &self,
        head: &Head<'_>,
        chunk: usize,
        hidden: Rows,
        base: &Rows,
        scale: f32,
    ) -> Result<HeadBlock> {
        let logits = head.logits(&hidden, chunk, None)?;
        let mut nats = 0.0;
        let mut gradient = Vec::with_capacity(logits.numbers().len());
        for (logits, base) in logits.iter().zip(base.iter()) {
            let rows = [base, logits];
            let (of_row, row) = self.row_divergence(rows, chunk, Some(scale))?;
            nats += of_row;
            gradient.extend_from_slice(&row);
        }
        let output = head.output_gradient(&logits, Rows::new(gradient, logits.columns()));
        let sums = ParameterSums::new(self.catalog());
        let pass = of_chunk(chunk, Some(&sums as &dyn Tap));
        let of_hidden = head.derivative(&hidden, &output, &pass)?;
        Ok(HeadBlock {
            nats,
            input: head.normalized(&hidden),
            output,
            hidden: of_hidden,
            parameters: sums.into_sums(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_and_its_derivative_match_differences() {
        let (base, logits) = ([0.3f32, -1.0, 2.0, 0.5], [0.1f32, -0.7, 1.2, 0.9]);
        let nats = |logits: &[f32]| divergence(&base, logits, None).unwrap().0;
        assert!(nats(&base).abs() < 1e-6 && nats(&logits) > 0.01);
        let (_, gradient) = divergence(&base, &logits, Some(1.0)).unwrap();
        for (i, g) in gradient.iter().enumerate() {
            let moved = |by: f32| {
                let mut logits = logits;
                logits[i] += by;
                nats(&logits)
            };
            let measured = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!(
                (measured - f64::from(*g)).abs() < 1e-4,
                "{i}: {g}, measured {measured}"
            );
        }
        assert!(divergence(&base, &[0.0, f32::NAN, 0.0, 0.0], None).is_none());
    }
}
