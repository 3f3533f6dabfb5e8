//! Linear layers and norms with their weights, and what a chunk's pass through them needs.

use super::device::Uploaded;
use super::ops::elementwise::{add, add_bias, scale};
use super::ops::norm;
use super::ops::product::{product, product_derivative, row_derivative};
use super::rows::Rows;
use super::{Error, LinearInput, OutputGradient, Result, Routed, Tap};
use quantier_arch::{LinearId, Norm as NormKind};
use quantier_core::progress::Progress;
use std::sync::Arc;

/// A weight matrix that multiplies activations, or one for each expert or head, in f32.
#[derive(Clone)]
pub(super) struct Linear {
    /// Its place in the model's catalog.
    pub id: LinearId,
    /// The tensor's name.
    pub name: String,
    /// `[experts, rows, columns]`.
    pub weights: Arc<Vec<f32>>,
    /// More than one only for experts and heads.
    pub experts: usize,
    pub columns: usize,
    /// What the products are multiplied by, before the bias: `[experts]`.
    pub scales: Option<Vec<f32>>,
    /// `[experts, rows]`.
    pub bias: Option<Vec<f32>>,
    /// The same weights on a device that multiplies instead of the CPU.
    pub uploaded: Option<Arc<dyn Uploaded>>,
}

impl Linear {
    /// Puts other weights in place of these, on the CPU.
    pub(super) fn replace(&mut self, weights: Arc<Vec<f32>>) {
        (self.weights, self.uploaded) = (weights, None);
    }

    /// What the products of one expert are multiplied by.
    pub(super) fn scale_of(&self, expert: usize) -> Option<f32> {
        let scale = self.scales.as_ref().map(|scales| scales[expert]);
        scale.filter(|scale| *scale != 1.0)
    }

    /// The weights of one expert; 0 for a matrix that is alone.
    fn of_expert(&self, expert: usize) -> &[f32] {
        let each = self.weights.len() / self.experts;
        &self.weights[expert * each..][..each]
    }
}

/// A norm. One without weights in the file has ones.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub kind: NormKind,
    pub epsilon: f32,
    /// `[groups, len]`: several groups if each head has its own weights.
    pub weight: Vec<f32>,
    /// As long; zeros for none.
    pub bias: Vec<f32>,
    /// Numbers that are normalized together.
    pub len: usize,
}

impl Norm {
    /// Normalizes rows that are as long as the weights, or parts of them.
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

    /// The derivative at `x`: `g` becomes the gradient of `x`.
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

    /// The same rows, normalized.
    pub(super) fn of(&self, x: &Rows) -> Rows {
        let mut x = x.clone();
        self.apply(x.numbers_mut());
        x
    }
}

/// One chunk on its way through a layer.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub chunk: usize,
    /// Watches.
    pub tap: Option<&'a dyn Tap>,
    /// Whether tapes will be used.
    pub recording: bool,
    /// Threads that one product may take.
    pub split: usize,
    /// May ask to stop: heard before each product.
    pub progress: &'a dyn Progress,
}

impl Pass<'_> {
    /// Shows the input of some linears; of an expert's, with the expert.
    pub(super) fn input(
        &self,
        linears: &[&Linear],
        routed: Option<Routed<'_>>,
        rows: &Rows,
    ) -> Result<()> {
        self.go_on()?;
        if let Some(tap) = self.tap {
            let linears: Vec<_> = linears.iter().map(|linear| linear.id).collect();
            tap.input(LinearInput {
                chunk: self.chunk,
                linears: &linears,
                routed,
                rows,
            });
        }
        Ok(())
    }

    /// The product with a linear's weights, times its scale if it has one, plus its bias.
    pub(super) fn times(&self, linear: &Linear, x: &Rows) -> Result<Rows> {
        self.times_expert(linear, 0, x)
    }

    /// The same with one expert's weights.
    pub(super) fn times_expert(&self, linear: &Linear, expert: usize, x: &Rows) -> Result<Rows> {
        self.go_on()?;
        let mut y = match &linear.uploaded {
            Some(uploaded) => uploaded.product(expert, x)?,
            None => product(x, linear.of_expert(expert), self.split),
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

    /// The derivative of [`Pass::times`]: adds the gradient of the input to `dx`. The tap sees the
    /// gradient of the product before the scale, to which the stored weights belong.
    pub(super) fn back(&self, linear: &Linear, g: &Rows, dx: &mut Rows) -> Result<()> {
        self.back_expert(linear, None, g, dx)
    }

    /// The derivative of [`Pass::times_expert`].
    pub(super) fn back_expert(
        &self,
        linear: &Linear,
        routed: Option<Routed<'_>>,
        g: &Rows,
        dx: &mut Rows,
    ) -> Result<()> {
        self.go_on()?;
        let expert = routed.map_or(0, |routed| routed.expert);
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
        let weights = linear.of_expert(expert);
        let gradient = match g.len() {
            1 => row_derivative(g, weights),
            _ => product_derivative(g, weights, self.split),
        };
        add(dx.numbers_mut(), gradient.numbers());
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        match self.progress.cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}
