//! Rounding of rows of weights into blocks, for all methods.

use crate::feedback::{descend, round_rows};
use crate::{InputStatistics, OutputFactor, Proof};
use quantier_blocks::Codec;
use quantier_blocks::simd::LANES;
use quantier_core::progress::Progress;
use quantier_gguf::types::GgmlType;
use rayon::prelude::*;

/// Method of rounding weights to the levels of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest level, byte-identical to the reference.
    #[default]
    Reference,
    /// With error feedback (GPTQ), from input Hessians.
    Feedback {
        /// Each linear is calibrated on the activations of the already rounded model (GPTAQ).
        sequential: bool,
        /// The rows of a matrix are rounded jointly, weighted by its output Hessian (YAQA).
        two_sided: bool,
    },
}

impl Rounding {
    /// Plain error feedback: neither sequential nor two-sided.
    pub const FEEDBACK: Rounding = Rounding::Feedback {
        sequential: false,
        two_sided: false,
    };

    /// True with error feedback.
    pub fn has_feedback(self) -> bool {
        self != Rounding::Reference
    }

    /// True if each linear is calibrated on the activations of the already rounded model.
    pub fn is_sequential(self) -> bool {
        matches!(
            self,
            Rounding::Feedback {
                sequential: true,
                ..
            }
        )
    }

    /// True if rows are rounded jointly, weighted by the output Hessian.
    pub fn is_two_sided(self) -> bool {
        matches!(
            self,
            Rounding::Feedback {
                two_sided: true,
                ..
            }
        )
    }

    /// Name in a file's metadata.
    pub fn name(self) -> &'static str {
        match self {
            Rounding::Reference => "reference",
            Rounding::Feedback {
                sequential: false, ..
            } => "feedback",
            Rounding::Feedback {
                sequential: true, ..
            } => "propagated",
        }
    }
}

/// Calibration data for rounding a matrix.
#[derive(Clone, Copy, Default)]
pub struct Knowledge<'k> {
    /// Importance by column: the mean square of its input.
    pub importance: Option<&'k [f32]>,
    /// The input Hessian, with the target shift of sequential rounding: enables error feedback for
    /// types that take it.
    pub inputs: Option<&'k InputStatistics>,
    /// The output Hessian: enables two-sided rounding of a whole matrix.
    pub output: Option<&'k OutputFactor>,
}

/// The job was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped")]
pub struct Stopped;

/// Rounds rows of equal length to the blocks of one type.
#[derive(Clone, Copy)]
pub struct Rounder {
    codec: &'static Codec,
    row_len: usize,
    /// True if rows on the type's grid are encoded without loss.
    lossless: bool,
}

impl Rounder {
    /// A rounder for rows of `row_len` weights; `None` if the type does not hold weights, or its
    /// blocks do not fit the row length.
    pub fn new(ggml_type: GgmlType, row_len: usize) -> Option<Rounder> {
        let codec = Codec::of(ggml_type)?;
        let fits = row_len > 0 && row_len.is_multiple_of(ggml_type.block_len());
        fits.then_some(Rounder {
            codec,
            row_len,
            lossless: false,
        })
    }

    /// Enables lossless encoding of rows that lie on the type's grid; the reference's search may
    /// miss their scales.
    #[must_use]
    pub fn or_lossless(self) -> Rounder {
        Rounder {
            lossless: true,
            ..self
        }
    }

    /// Encodes rows that the type represents without loss; `false` if any row is not representable.
    pub fn encode_lossless(&self, weights: &[f32], out: &mut [u8]) -> bool {
        let mut rows = self.rows(weights, out);
        rows.all(|(weights, out)| self.codec.encode_lossless(weights, out) == Some(true))
    }

    /// The type.
    pub fn ggml_type(&self) -> GgmlType {
        self.codec.ggml_type
    }

    pub(crate) fn codec(&self) -> &'static Codec {
        self.codec
    }

    /// True if the type supports error feedback.
    pub fn takes_feedback(&self) -> bool {
        self.codec.takes_feedback()
    }

    /// Bytes per row of blocks.
    pub fn row_bytes(&self) -> usize {
        self.row_len / self.codec.ggml_type.block_len() * self.codec.ggml_type.block_bytes()
    }

    /// Bytes of the blocks of `weights` weights.
    pub fn blocks_bytes(&self, weights: usize) -> usize {
        weights / self.row_len * self.row_bytes()
    }

    /// Dequantizes rows of blocks.
    ///
    /// # Panics
    /// If the lengths are inconsistent.
    pub fn widen(&self, blocks: &[u8], out: &mut [f32]) {
        self.codec.dequantize_row(blocks, out);
    }

    /// Rounds rows of one matrix, `[rows, row_len]`, to rows of blocks. With inputs, and a type
    /// that takes feedback, rows are rounded with error feedback, and replaced by the reference's
    /// rounding if that has the smaller error on held-out inputs; otherwise every row is rounded as
    /// in the reference. With an output Hessian, the rows must be those of the whole matrix and are
    /// rounded on all threads of the current pool, with results independent of their number;
    /// otherwise on the calling thread.
    ///
    /// The proof is empty without feedback and for rows that are encoded without loss. One-sided
    /// feedback leaves [`Proof::power`] at 0, since it is the same for all types. Two-sided proofs
    /// are weighted by the output Hessian.
    ///
    /// # Errors
    /// If `progress` is cancelled; checked before each row, or before feedback.
    ///
    /// # Panics
    /// If the lengths are inconsistent.
    pub fn round(
        &self,
        weights: &[f32],
        knowledge: &Knowledge<'_>,
        out: &mut [u8],
        progress: &dyn Progress,
    ) -> Result<Proof, Stopped> {
        let go_on = || match progress.cancelled() {
            true => Err(Stopped),
            false => Ok(()),
        };
        if self.lossless && self.encode_lossless(weights, out) {
            go_on()?;
            return Ok(Proof::default());
        }
        let Some(inputs) = knowledge.inputs.filter(|_| self.takes_feedback()) else {
            for (weights, out) in self.rows(weights, out) {
                go_on()?;
                self.codec.quantize_row(weights, knowledge.importance, out);
            }
            return Ok(Proof::default());
        };
        go_on()?;
        Ok(match knowledge.output {
            Some(output) => self.two_sided(weights, knowledge.importance, inputs, output, out),
            None => self.one_sided(weights, knowledge.importance, inputs, out),
        })
    }

    fn rows<'r>(
        &self,
        weights: &'r [f32],
        out: &'r mut [u8],
    ) -> impl Iterator<Item = (&'r [f32], &'r mut [u8])> + use<'r> {
        assert_eq!(
            weights.len() / self.row_len * self.row_bytes(),
            out.len(),
            "rows of blocks"
        );
        weights
            .chunks_exact(self.row_len)
            .zip(out.chunks_exact_mut(self.row_bytes()))
    }

    /// Feedback along rows only.
    fn one_sided(
        &self,
        weights: &[f32],
        importance: Option<&[f32]>,
        inputs: &InputStatistics,
        out: &mut [u8],
    ) -> Proof {
        let rows = weights.len() / self.row_len;
        let mut rounded = inputs.target(weights, 1);
        self.feed_back(inputs, &mut rounded, out);
        if inputs.held_out.is_empty() {
            return Proof::unjudged(rows);
        }
        let feedback = inputs.squared_errors(weights, &mut rounded);
        let mut plain = vec![0; out.len()];
        for (weights, plain) in self.rows(weights, &mut plain) {
            self.codec.quantize_row(weights, importance, plain);
        }
        self.widen(&plain, &mut rounded);
        let reference = inputs.squared_errors(weights, &mut rounded);
        let proof = better([feedback[0], reference[0]], rows, out, &plain);
        let taken = match proof.by_reference {
            0 => feedback[1],
            _ => reference[1],
        };
        Proof {
            even: [reference[1], taken],
            ..proof
        }
    }

    /// Rounds the targets of some rows; on return, `numbers` has the rounded values.
    fn feed_back(&self, inputs: &InputStatistics, numbers: &mut [f32], out: &mut [u8]) {
        let target = numbers.to_vec();
        round_rows(self.codec, &inputs.factor, numbers, out);
        descend(self.codec, &inputs.curvature, &target, numbers, out);
    }

    /// Feedback along rows and between them.
    fn two_sided(
        &self,
        weights: &[f32],
        importance: Option<&[f32]>,
        inputs: &InputStatistics,
        output: &OutputFactor,
        out: &mut [u8],
    ) -> Proof {
        let (n, m, threads) = (self.row_len, output.rows(), rayon::current_num_threads());
        let row_bytes = self.row_bytes();
        assert_eq!(
            [weights.len(), out.len()],
            [m * n, m * row_bytes],
            "a matrix of {m} rows"
        );
        let target = inputs.target(weights, threads);
        output.round_blocks(&target, n, threads, |rows, numbers| {
            let task_rows = rows.len().div_ceil(threads).next_multiple_of(LANES);
            let mut blocks = vec![0u8; rows.len() * row_bytes];
            numbers
                .par_chunks_mut(task_rows * n)
                .zip(blocks.par_chunks_mut(task_rows * row_bytes))
                .for_each(|(numbers, blocks)| {
                    self.feed_back(inputs, numbers, blocks);
                });
            for (row, blocks) in rows.iter().zip(blocks.chunks_exact(row_bytes)) {
                out[row * row_bytes..][..row_bytes].copy_from_slice(blocks);
            }
        });
        if inputs.held_out.is_empty() {
            return Proof::unjudged(m);
        }
        let cost = |blocks: &[u8]| {
            let mut rounded = vec![0.0; m * n];
            self.widen(blocks, &mut rounded);
            output.cost(&inputs.errors(weights, &mut rounded, threads), threads)
        };
        let mut plain = vec![0; out.len()];
        weights
            .par_chunks_exact(n)
            .zip(plain.par_chunks_exact_mut(row_bytes))
            .for_each(|(weights, plain)| self.codec.quantize_row(weights, importance, plain));
        let power = output.cost(&inputs.original_products(weights, threads), threads);
        Proof {
            power,
            ..better([cost(out), cost(&plain)], m, out, &plain)
        }
    }
}

/// Replaces the blocks of error feedback by the reference's `plain` blocks if these have the
/// smaller error; `errors` holds both errors in this order.
fn better(errors: [f64; 2], rows: usize, blocks: &mut [u8], plain: &[u8]) -> Proof {
    let ([feedback, reference], rows) = (errors, rows as u64);
    // NaN counts as larger.
    if feedback > reference || feedback.is_nan() {
        blocks.copy_from_slice(plain);
        return Proof {
            reference,
            taken: reference,
            rows,
            by_reference: rows,
            ..Proof::default()
        };
    }
    Proof {
        reference,
        taken: feedback,
        rows,
        ..Proof::default()
    }
}
