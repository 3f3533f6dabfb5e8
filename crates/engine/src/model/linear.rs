//! Linear layers and norms with their weights, and the context of a chunk's pass.

use super::device::Uploaded;
use super::ops::elementwise::{add, add_bias, multiply, scale};
use super::ops::norm;
use super::ops::product::{product, product_derivative, row_derivative};
use super::rows::Rows;
use super::weights::Weights;
use super::{Error, LinearInput, OutputGradient, Parameter, Result, Routed, Tap};
use quantier_arch::{LinearId, Norm as NormKind, TensorId};
use quantier_core::progress::Progress;
use std::borrow::Cow;
use std::sync::Arc;

/// Matrices of a tensor that are widened one at a time, when they multiply.
pub trait Matrices: Send + Sync {
    /// Widens a matrix: `[rows, columns]`.
    fn widen(&self, matrix: usize, out: &mut [f32]);
}

/// The weights of a linear.
#[derive(Clone)]
pub enum LinearWeights {
    /// Of all matrices: `[experts, rows, columns]`.
    Widened(Arc<Vec<f32>>),
    /// Those in the model's file, each matrix of this many rows widened on use.
    Stored {
        /// Rows of a matrix.
        rows: usize,
    },
    /// Of quantized blocks, each matrix of this many rows widened on use.
    Blocks {
        /// Rows of a matrix.
        rows: usize,
        /// The matrices.
        matrices: Arc<dyn Matrices>,
    },
}

impl From<Vec<f32>> for LinearWeights {
    fn from(weights: Vec<f32>) -> LinearWeights {
        LinearWeights::Widened(Arc::new(weights))
    }
}

impl std::fmt::Debug for LinearWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LinearWeights::Widened(weights) => write!(f, "{} weights", weights.len()),
            LinearWeights::Stored { rows } => write!(f, "stored matrices of {rows} rows"),
            LinearWeights::Blocks { rows, .. } => write!(f, "matrices of {rows} rows in blocks"),
        }
    }
}

/// A weight matrix that multiplies activations, or one per expert or head.
#[derive(Clone)]
pub(super) struct Linear {
    /// Id in the model's catalog.
    pub id: LinearId,
    /// Name of the tensor.
    pub name: String,
    pub weights: LinearWeights,
    /// More than one for experts and heads only.
    pub experts: usize,
    pub columns: usize,
    /// Factors of the products, applied before the bias: `[experts]`.
    pub scales: Option<Vec<f32>>,
    /// `[experts, rows]`.
    pub bias: Option<Vec<f32>>,
    /// The same weights on a device, if one multiplies instead of the CPU.
    pub uploaded: Option<Arc<dyn Uploaded>>,
}

impl Linear {
    /// Replaces the weights, on the CPU.
    pub(super) fn replace(&mut self, weights: LinearWeights) {
        (self.weights, self.uploaded) = (weights, None);
    }

    /// Factor of the products of one expert.
    pub(super) fn scale_of(&self, expert: usize) -> Option<f32> {
        let scale = self.scales.as_ref().map(|scales| scales[expert]);
        scale.filter(|scale| *scale != 1.0)
    }

    /// Weights of one expert, `[rows, columns]`; `expert` is 0 for a single matrix. `stored` has those
    /// that are widened on use.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub(super) fn of_expert(
        &self,
        expert: usize,
        stored: Option<&Weights<'_>>,
    ) -> Result<Cow<'_, [f32]>> {
        match &self.weights {
            LinearWeights::Widened(weights) => {
                let each = weights.len() / self.experts;
                Ok(Cow::Borrowed(&weights[expert * each..][..each]))
            }
            LinearWeights::Stored { rows } => {
                let stored = stored.ok_or_else(|| {
                    Error::Model(format!("the weights of '{}' are not in memory", self.name))
                })?;
                let first = expert * rows;
                stored
                    .band(&self.name, first..first + rows, self.columns)
                    .map(Cow::Owned)
            }
            LinearWeights::Blocks { rows, matrices } => {
                let mut weights = vec![0.0; rows * self.columns];
                matrices.widen(expert, &mut weights);
                Ok(Cow::Owned(weights))
            }
        }
    }
}

/// A norm. Weights missing in the file are ones.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub kind: NormKind,
    pub epsilon: f32,
    /// `[groups, len]`: several groups if each head has its own weights.
    pub weight: Vec<f32>,
    /// As long as the weights; zeros if the norm has no bias.
    pub bias: Vec<f32>,
    /// Length of a normalized group.
    pub len: usize,
    pub tensors: NormTensors,
}

/// The tensors of a norm's weights and bias, each with the factor of its numbers; None where the
/// file has none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NormTensors {
    pub weight: Option<(TensorId, f32)>,
    pub bias: Option<(TensorId, f32)>,
}

impl NormTensors {
    /// Multiplies the factors.
    pub(super) fn scale(&mut self, weight: f32, bias: f32) {
        self.weight
            .iter_mut()
            .for_each(|(_, factor)| *factor *= weight);
        self.bias.iter_mut().for_each(|(_, factor)| *factor *= bias);
    }
}

impl Norm {
    /// Normalizes rows as long as the weights, or parts of such rows.
    pub(super) fn apply(&self, x: &mut [f32]) {
        let norm = |x: &mut [f32], weight: &[f32], bias: &[f32]| match self.kind {
            NormKind::Rms => {
                norm::rms_norm(x, weight, self.epsilon);
                if bias.iter().any(|bias| *bias != 0.0) {
                    let rows = x.chunks_exact_mut(bias.len());
                    rows.for_each(|row| add(row, bias));
                }
            }
            NormKind::Layer => norm::layer_norm(x, weight, bias, self.epsilon),
        };
        if self.weight.len() == self.len {
            return norm(x, &self.weight, &self.bias);
        }
        for row in x.chunks_exact_mut(self.weight.len()) {
            let weights = self.weight.chunks_exact(self.len);
            let weights = weights.zip(self.bias.chunks_exact(self.len));
            let groups = row.chunks_exact_mut(self.len).zip(weights);
            groups.for_each(|(x, (weight, bias))| norm(x, weight, bias));
        }
    }

    /// Derivative at `x`: turns the output gradient `g` into the gradient of `x`.
    pub(super) fn derivative(&self, x: &[f32], g: &mut [f32]) {
        let centred = self.kind == NormKind::Layer;
        let derive = |x: &[f32], g: &mut [f32], weight: &[f32]| {
            norm::derivative(x, g, weight, self.epsilon, centred);
        };
        if self.weight.len() == self.len {
            return derive(x, g, &self.weight);
        }
        let rows = g.chunks_exact_mut(self.weight.len());
        for (g, x) in rows.zip(x.chunks_exact(self.weight.len())) {
            let weights = self.weight.chunks_exact(self.len);
            let groups = g.chunks_exact_mut(self.len).zip(x.chunks_exact(self.len));
            groups
                .zip(weights)
                .for_each(|((g, x), weight)| derive(x, g, weight));
        }
    }

    /// Gradients of the stored weights and of the stored bias at `x`, from the output gradient `g`;
    /// as long as the weights. Empty where the file has no tensor.
    fn parameter_gradients(&self, x: &[f32], g: &[f32]) -> [Vec<f32>; 2] {
        let columns = self.weight.len();
        let sums = |of: &mut dyn FnMut(&mut [f32], usize), tensor: Option<(TensorId, f32)>| {
            let Some((_, factor)) = tensor else {
                return Vec::new();
            };
            let mut sums = vec![0.0; columns];
            (0..g.len() / columns).for_each(|row| of(&mut sums, row * columns));
            scale(&mut sums, factor);
            sums
        };
        let mut unit = Norm {
            weight: vec![1.0; self.len],
            bias: vec![0.0; self.len],
            ..self.clone()
        };
        unit.tensors = NormTensors::default();
        let mut of_weight = |sums: &mut [f32], at: usize| {
            let mut normalized = x[at..at + columns].to_vec();
            unit.apply(&mut normalized);
            multiply(&mut normalized, &g[at..at + columns]);
            add(sums, &normalized);
        };
        let of_weight = sums(&mut of_weight, self.tensors.weight);
        let mut of_bias = |sums: &mut [f32], at: usize| add(sums, &g[at..at + columns]);
        [of_weight, sums(&mut of_bias, self.tensors.bias)]
    }

    /// Normalized copy of the rows.
    pub(super) fn of(&self, x: &Rows) -> Rows {
        let mut x = x.clone();
        self.apply(x.numbers_mut());
        x
    }
}

/// The pass of one chunk through a layer.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub chunk: usize,
    /// Observer of the linears.
    pub tap: Option<&'a dyn Tap>,
    /// True if tapes are recorded.
    pub recording: bool,
    /// Threads per product.
    pub split: usize,
    /// Weights that are widened on use.
    pub stored: Option<&'a Weights<'a>>,
    /// Checked for cancellation before each product.
    pub progress: &'a dyn Progress,
}

impl Pass<'_> {
    /// Shows the input of some linears to the tap; with `routed`, that of one expert.
    pub(super) fn input(
        &self,
        linears: &[&Linear],
        routed: Option<Routed<'_>>,
        rows: &Rows,
    ) -> Result<()> {
        let linears: Vec<_> = linears.iter().map(|linear| linear.id).collect();
        self.input_of(&linears, routed, rows)
    }

    /// [`Pass::input`] of linears without their weights.
    pub(super) fn input_of(
        &self,
        linears: &[LinearId],
        routed: Option<Routed<'_>>,
        rows: &Rows,
    ) -> Result<()> {
        self.go_on()?;
        if let Some(tap) = self.tap {
            tap.input(LinearInput {
                chunk: self.chunk,
                linears,
                routed,
                rows,
            });
        }
        Ok(())
    }

    /// The product with a linear's weights, times its scale, plus its bias.
    pub(super) fn times(&self, linear: &Linear, x: &Rows) -> Result<Rows> {
        self.times_expert(linear, 0, x)
    }

    /// [`Pass::times`] with the weights of one expert.
    pub(super) fn times_expert(&self, linear: &Linear, expert: usize, x: &Rows) -> Result<Rows> {
        self.go_on()?;
        let mut y = match &linear.uploaded {
            Some(uploaded) => uploaded.product(expert, x)?,
            None => product(x, &linear.of_expert(expert, self.stored)?, self.split),
        };
        if let Some(factor) = linear.scale_of(expert) {
            scale(y.numbers_mut(), factor);
        }
        if let Some(bias) = &linear.bias {
            let rows = bias.len() / linear.experts;
            add_bias(&mut y, &bias[expert * rows..][..rows]);
        }
        Ok(y)
    }

    /// Derivative of [`Pass::times`]: adds the gradient of the input to `dx`. The tap sees the
    /// gradient before the scale, which is the output gradient of the stored weights.
    pub(super) fn back(&self, linear: &Linear, g: &Rows, dx: &mut Rows) -> Result<()> {
        self.back_expert(linear, None, g, dx)
    }

    /// Derivative of [`Pass::times_expert`].
    pub(super) fn back_expert(
        &self,
        linear: &Linear,
        routed: Option<Routed<'_>>,
        g: &Rows,
        dx: &mut Rows,
    ) -> Result<()> {
        self.go_on()?;
        let expert = routed.map_or(0, |routed| routed.expert);
        if let (Some(_), Some(tap)) = (&linear.bias, self.tap)
            && tap.takes_parameters()
        {
            let mut sums = vec![0.0; g.columns()];
            g.iter().for_each(|row| add(&mut sums, row));
            tap.parameter_gradient(Parameter::Bias(linear.id, expert), &sums);
        }
        let scaled = linear.scale_of(expert).map(|factor| {
            let mut g = g.clone();
            scale(g.numbers_mut(), factor);
            g
        });
        let g = scaled.as_ref().unwrap_or(g);
        if let Some(tap) = self.tap {
            tap.output_gradient(OutputGradient {
                chunk: self.chunk,
                linear: linear.id,
                routed,
                rows: g,
            });
        }
        let weights = linear.of_expert(expert, self.stored)?;
        let gradient = match g.len() {
            1 => row_derivative(g, &weights),
            _ => product_derivative(g, &weights, self.split),
        };
        add(dx.numbers_mut(), gradient.numbers());
        Ok(())
    }

    /// Derivative of a norm at `x`: turns the output gradient `g` into the gradient of `x`. The tap
    /// sees the gradients of the norm's own tensors.
    pub(super) fn back_norm(&self, norm: &Norm, x: &[f32], g: &mut [f32]) {
        if let Some(tap) = self.tap.filter(|tap| tap.takes_parameters()) {
            let gradients = norm.parameter_gradients(x, g);
            let tensors = [norm.tensors.weight, norm.tensors.bias];
            for (tensor, numbers) in tensors.into_iter().zip(&gradients) {
                if let Some((tensor, _)) = tensor {
                    tap.parameter_gradient(Parameter::Norm(tensor), numbers);
                }
            }
        }
        norm.derivative(x, g);
    }

    fn go_on(&self) -> Result<()> {
        match self.progress.cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::tests::{check_gradients, random};

    #[test]
    fn norms_have_derivatives_by_their_tensors() {
        const LEN: usize = 6;
        let factor = 1.5;
        let tensors = NormTensors {
            weight: Some((TensorId(0), factor)),
            bias: Some((TensorId(1), factor)),
        };
        for kind in [NormKind::Rms, NormKind::Layer] {
            for groups in [1, 2] {
                let all = LEN * groups;
                // The stored numbers, times the factor.
                let norm = |x: &[Vec<f32>]| Norm {
                    kind,
                    epsilon: 1e-2,
                    weight: x[1].iter().map(|x| x * factor).collect(),
                    bias: x[2].iter().map(|x| x * factor).collect(),
                    len: LEN,
                    tensors,
                };
                let forward = |x: &[Vec<f32>]| {
                    let mut rows = x[0].clone();
                    norm(x).apply(&mut rows);
                    rows
                };
                let backward = |x: &[Vec<f32>], g: &[f32]| {
                    let norm = norm(x);
                    let [of_weight, of_bias] = norm.parameter_gradients(&x[0], g);
                    let mut of_x = g.to_vec();
                    norm.derivative(&x[0], &mut of_x);
                    vec![of_x, of_weight, of_bias]
                };
                let at = [random(3 * all, 1), random(all, 2), random(all, 3)];
                check_gradients("norm", &at, &forward, &backward);
            }
        }
    }
}
