//! Feed-forward networks.

use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative, gate, gate_derivative};
use crate::model::ops::elementwise::{clamp, clamp_derivative, scale_groups};
use crate::model::ops::sparse::{keep_above, keep_above_derivative};
use crate::model::rows::Rows;
use crate::model::{Result, Routed};
use quantier_arch::{Activation, Limit};
use std::borrow::Cow;

/// ```text
/// stage 0    input -> gate and up -> activation(gate) * up -> norm
/// stage 1    -> down
/// ```
#[derive(Clone)]
pub(in crate::model) struct Ffn {
    pub first: First,
    /// Norm before the down matrix.
    pub inner_norm: Option<Norm>,
    /// Factors of the activation's output, without a gate.
    pub factors: Option<Vec<f32>>,
    pub down: Linear,
    pub activation: Activation,
    /// Bounds of gate and up.
    pub limit: Option<Limit>,
    /// Only gates this many standard deviations above their mean are kept, less that bound; all if
    /// None.
    pub sparsity: Option<f32>,
}

/// The matrices of the first stage.
#[derive(Clone)]
pub(in crate::model) enum First {
    /// `activation(gate) * up`.
    Gated { gate: Linear, up: Linear },
    /// The same with one matrix: the rows of gate, then those of up.
    Fused(Linear),
    /// `activation(up)`.
    Plain(Linear),
}

/// Values that the derivative of the first stage needs.
pub(super) struct GateTape<'m> {
    ffn: &'m Ffn,
    gate: Rows,
    /// None without a gate; then `gate` is the input of the activation.
    up: Option<Rows>,
    /// Output before the norm, if there is one.
    unnormalized: Option<Rows>,
}

impl GateTape<'_> {
    /// Row length of the output.
    pub(super) fn columns(&self) -> usize {
        self.gate.columns()
    }
}

impl First {
    pub(super) fn linears(&self) -> Vec<&Linear> {
        match self {
            First::Gated { gate, up } => vec![gate, up],
            First::Fused(one) | First::Plain(one) => vec![one],
        }
    }

    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            First::Gated { gate, up } => vec![gate, up],
            First::Fused(one) | First::Plain(one) => vec![one],
        }
    }
}

/// `activation(gate) * up`.
fn gated(gate_rows: &Rows, up: &Rows, activation: Activation) -> Rows {
    let mut out = gate_rows.clone();
    gate(out.numbers_mut(), up.numbers(), activation);
    out
}

/// Derivatives of [`gated`] with respect to gate and up.
fn gated_derivative(gate: &Rows, up: &Rows, g: &Rows, activation: Activation) -> [Rows; 2] {
    let mut of_gate = gate.clone();
    gate_derivative(of_gate.numbers_mut(), up.numbers(), g.numbers(), activation);
    [of_gate, gated(gate, g, activation)]
}

/// `gate` clamped to at most `limit`; `up` clamped to plus and minus `limit`, plus `offset`.
fn bounded(gate: &Rows, up: &Rows, limit: f32, offset: f32) -> [Rows; 2] {
    let (mut gate, mut up) = (gate.clone(), up.clone());
    at_most(gate.numbers_mut(), limit);
    clamp(up.numbers_mut(), limit);
    up.numbers_mut().iter_mut().for_each(|x| *x += offset);
    [gate, up]
}

/// `activation(gate)` clamped to at most `limit`.
fn limited(gate_rows: &Rows, activation: Activation, limit: f32) -> Rows {
    let mut out = gate_rows.clone();
    activate(out.numbers_mut(), activation);
    at_most(out.numbers_mut(), limit);
    out
}

fn at_most(xs: &mut [f32], limit: f32) {
    let places = xs.iter_mut().filter(|x| **x > limit);
    places.for_each(|x| *x = limit);
}

/// Derivative of [`at_most`]: zero gradient at and above the limit.
fn at_most_derivative(xs: &[f32], g: &mut [f32], limit: f32) {
    let places = g.iter_mut().zip(xs).filter(|(_, x)| **x >= limit);
    places.for_each(|(g, _)| *g = 0.0);
}

impl Ffn {
    /// The gates that the activation sees.
    fn kept<'g>(&self, gate: &'g Rows) -> Cow<'g, Rows> {
        let Some(deviations) = self.sparsity else {
            return Cow::Borrowed(gate);
        };
        let mut gate = gate.clone();
        keep_above(&mut gate, deviations);
        Cow::Owned(gate)
    }

    /// The gated product of `gate` and `up`, with sparsity and limits.
    fn gated(&self, gate: &Rows, up: &Rows) -> Rows {
        let gate = &*self.kept(gate);
        match self.limit {
            None => gated(gate, up, self.activation),
            Some(Limit::Behind(limit)) => {
                let mut out = up.clone();
                clamp(out.numbers_mut(), limit);
                let gates = limited(gate, self.activation, limit);
                scale_groups(out.numbers_mut(), gates.numbers());
                out
            }
            Some(Limit::InFront { limit, offset }) => {
                let [gate, up] = bounded(gate, up, limit, offset);
                gated(&gate, &up, self.activation)
            }
        }
    }

    /// Derivatives of [`Ffn::gated`] with respect to gate and up.
    fn gated_derivative(&self, gate: &Rows, up: &Rows, g: &Rows) -> [Rows; 2] {
        let [mut of_gate, of_up] = self.bounded_derivative(&self.kept(gate), up, g);
        if let Some(deviations) = self.sparsity {
            keep_above_derivative(gate, &mut of_gate, deviations);
        }
        [of_gate, of_up]
    }

    /// Derivatives of [`Ffn::gated`] with respect to the kept gates and up.
    fn bounded_derivative(&self, gate: &Rows, up: &Rows, g: &Rows) -> [Rows; 2] {
        match self.limit {
            None => gated_derivative(gate, up, g, self.activation),
            Some(Limit::Behind(limit)) => {
                let gates = limited(gate, self.activation, limit);
                let mut of_up = g.clone();
                scale_groups(of_up.numbers_mut(), gates.numbers());
                clamp_derivative(up.numbers(), of_up.numbers_mut(), limit);
                let mut of_gates = up.clone();
                clamp(of_gates.numbers_mut(), limit);
                scale_groups(of_gates.numbers_mut(), g.numbers());
                at_most_derivative(gates.numbers(), of_gates.numbers_mut(), limit);
                let mut of_gate = gate.clone();
                activate_derivative(of_gate.numbers_mut(), of_gates.numbers(), self.activation);
                [of_gate, of_up]
            }
            Some(Limit::InFront { limit, offset }) => {
                let [bounded_gate, bounded_up] = bounded(gate, up, limit, offset);
                let [mut of_gate, mut of_up] =
                    gated_derivative(&bounded_gate, &bounded_up, g, self.activation);
                at_most_derivative(gate.numbers(), of_gate.numbers_mut(), limit);
                clamp_derivative(up.numbers(), of_up.numbers_mut(), limit);
                [of_gate, of_up]
            }
        }
    }

    /// Factors of the activation's output; their own derivative.
    fn scale(&self, rows: &mut Rows) {
        if let Some(factors) = &self.factors {
            let rows = rows.numbers_mut().chunks_exact_mut(factors.len());
            rows.for_each(|row| scale_groups(row, factors));
        }
    }

    /// The first stage; the caller has already shown `input` to the tap. `expert` is 0 for a single
    /// FFN.
    pub(super) fn run_first<'m>(
        &'m self,
        expert: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, GateTape<'m>)> {
        let times = |linear: &Linear| pass.times_expert(linear, expert, input);
        let (gate, up) = match &self.first {
            First::Gated { gate, up } => (times(gate)?, Some(times(up)?)),
            First::Fused(both) => {
                let both = times(both)?;
                let length = both.columns() / 2;
                (
                    both.columns_range(0..length),
                    Some(both.columns_range(length..2 * length)),
                )
            }
            First::Plain(up) => (times(up)?, None),
        };
        let mut y = match &up {
            Some(up) => self.gated(&gate, up),
            None => {
                let mut y = gate.clone();
                activate(y.numbers_mut(), self.activation);
                self.scale(&mut y);
                y
            }
        };
        let mut unnormalized = None;
        if let Some(norm) = &self.inner_norm {
            unnormalized = pass.recording.then(|| y.clone());
            norm.apply(y.numbers_mut());
        }
        let tape = GateTape {
            ffn: self,
            gate,
            up,
            unnormalized,
        };
        Ok((y, tape))
    }
}

impl Mixer for Ffn {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        vec![Stage::of(self.first.linears()), Stage::of(vec![&self.down])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        vec![
            Stage::of(self.first.linears_mut()),
            Stage::of(vec![&mut self.down]),
        ]
    }

    fn run_stage<'m>(
        &'m self,
        stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        if stage > 0 {
            return run_linear(&self.down, input, pass);
        }
        pass.input(&self.first.linears(), None, input)?;
        let (y, tape) = self.run_first(0, input, pass)?;
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for GateTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        self.back(None, dy, pass, dx)
    }
}

impl GateTape<'_> {
    /// Derivative of [`Ffn::run_first`].
    pub(super) fn back(
        &self,
        routed: Option<Routed<'_>>,
        mut dy: Rows,
        pass: &Pass<'_>,
        dx: &mut Rows,
    ) -> Result<()> {
        if let (Some(norm), Some(before)) = (&self.ffn.inner_norm, &self.unnormalized) {
            pass.back_norm(norm, before.numbers(), dy.numbers_mut());
        }
        let activation = self.ffn.activation;
        let Some(up) = &self.up else {
            self.ffn.scale(&mut dy);
            let mut g = self.gate.clone();
            activate_derivative(g.numbers_mut(), dy.numbers(), activation);
            let mut linears = self.ffn.first.linears().into_iter();
            return linears.try_for_each(|up| pass.back_expert(up, routed, &g, dx));
        };
        let [of_gate, of_up] = self.ffn.gated_derivative(&self.gate, up, &dy);
        match &self.ffn.first {
            First::Gated { gate, up } => {
                pass.back_expert(up, routed, &of_up, dx)?;
                pass.back_expert(gate, routed, &of_gate, dx)
            }
            First::Fused(one) | First::Plain(one) => {
                pass.back_expert(one, routed, &Rows::beside(&[&of_gate, &of_up]), dx)
            }
        }
    }
}
