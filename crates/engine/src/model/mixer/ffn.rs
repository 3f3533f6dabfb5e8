//! A feed-forward network.

use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative, gate, gate_derivative};
use crate::model::ops::elementwise::{clamp, clamp_derivative, scale_groups};
use crate::model::rows::Rows;
use crate::model::{Result, Routed};
use quantier_arch::Activation;

/// ```text
/// stage 0    input -> gate and up -> activation(gate) * up -> norm
/// stage 1    that -> down
/// ```
#[derive(Clone)]
pub(in crate::model) struct Ffn {
    pub first: First,
    /// In front of the second stage.
    pub inner_norm: Option<Norm>,
    pub down: Linear,
    pub activation: Activation,
    /// Behind its activation the gate is at most this, and what it multiplies is clamped to plus and
    /// minus this.
    pub limit: Option<f32>,
}

/// The matrices of the first stage.
#[derive(Clone)]
pub(in crate::model) enum First {
    /// `activation(gate) * up`.
    Gated { gate: Linear, up: Linear },
    /// The same with the rows of gate before those of up in one matrix.
    Fused(Linear),
    /// `activation(up)`.
    Plain(Linear),
}

/// What the derivative of the first stage needs.
pub(super) struct GateTape<'m> {
    ffn: &'m Ffn,
    gate: Rows,
    /// None without a gate: then `gate` is what the activation reads.
    up: Option<Rows>,
    /// In front of the norm, if there is one.
    unnormalized: Option<Rows>,
}

impl GateTape<'_> {
    /// The length of a row of the output.
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

/// `activation(gate)`, at most `limit`.
fn limited(gate_rows: &Rows, activation: Activation, limit: f32) -> Rows {
    let mut out = gate_rows.clone();
    activate(out.numbers_mut(), activation);
    let places = out.numbers_mut().iter_mut();
    places.filter(|x| **x > limit).for_each(|x| *x = limit);
    out
}

impl Ffn {
    /// What the gate makes of the matrix beside it.
    fn gated(&self, gate: &Rows, up: &Rows) -> Rows {
        let Some(limit) = self.limit else {
            return gated(gate, up, self.activation);
        };
        let mut out = up.clone();
        clamp(out.numbers_mut(), limit);
        let gates = limited(gate, self.activation, limit);
        scale_groups(out.numbers_mut(), gates.numbers());
        out
    }

    /// The derivatives of [`Ffn::gated`] for gate and up.
    fn gated_derivative(&self, gate: &Rows, up: &Rows, g: &Rows) -> [Rows; 2] {
        let mut of_gate = gate.clone();
        let Some(limit) = self.limit else {
            gate_derivative(
                of_gate.numbers_mut(),
                up.numbers(),
                g.numbers(),
                self.activation,
            );
            return [of_gate, gated(gate, g, self.activation)];
        };
        let gates = limited(gate, self.activation, limit);
        let mut of_up = g.clone();
        scale_groups(of_up.numbers_mut(), gates.numbers());
        clamp_derivative(up.numbers(), of_up.numbers_mut(), limit);
        let mut of_gates = up.clone();
        clamp(of_gates.numbers_mut(), limit);
        scale_groups(of_gates.numbers_mut(), g.numbers());
        let places = of_gates.numbers_mut().iter_mut().zip(gates.numbers());
        let at_limit = places.filter(|(_, gate)| **gate >= limit);
        at_limit.for_each(|(g, _)| *g = 0.0);
        activate_derivative(of_gate.numbers_mut(), of_gates.numbers(), self.activation);
        [of_gate, of_up]
    }

    /// The first stage, whose input was shown already; `expert` is 0 for matrices that are alone.
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
    /// The derivative of [`Ffn::run_first`].
    pub(super) fn back(
        &self,
        routed: Option<Routed<'_>>,
        mut dy: Rows,
        pass: &Pass<'_>,
        dx: &mut Rows,
    ) -> Result<()> {
        if let (Some(norm), Some(before)) = (&self.ffn.inner_norm, &self.unnormalized) {
            norm.derivative(before.numbers(), dy.numbers_mut());
        }
        let activation = self.ffn.activation;
        let Some(up) = &self.up else {
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
