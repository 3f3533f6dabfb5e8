//! Gated DeltaNet (Yang et al. 2025) and Kimi Delta Attention (Kimi Team 2025): a causal
//! convolution over queries, keys and values, one decaying state per head updated by the delta
//! rule, and a gate after a norm.

use super::attention::Projections;
use super::factored::{Factored, FactoredTape};
use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative, gate, gate_derivative};
use crate::model::ops::convolution::{convolve, convolve_derivative};
use crate::model::ops::delta::Streams;
use crate::model::ops::elementwise::{add_bias, sigmoid, sigmoid_slope, softplus};
use crate::model::rows::Rows;
use quantier_arch::Activation;
use quantier_arch::hyper::DeltaNumbers;

/// ```text
/// stage 0    input -> queries, keys, values -> convolution, SiLU -> unit queries and keys
///            input -> strength -> sigmoid
///            input -> step -> bias -> decays per head or channel
///            states of all heads -> norm, times the activated gate -> outputs of the heads
/// stage 1    outputs of the heads -> output matrix
/// ```
#[derive(Clone)]
pub(in crate::model) struct DeltaNet {
    pub numbers: DeltaNumbers,
    pub projections: Projections,
    pub gate: Factored,
    pub gate_activation: Activation,
    pub rates: Rates,
    /// One per decay, that is per head or per channel.
    pub step_bias: Vec<f32>,
    pub decay: Decay,
    /// Kernels of queries, then keys, then values: `[channels, kernel]`.
    pub kernels: Vec<f32>,
    /// Scales a query or key head to unit length.
    pub unit: Norm,
    pub norm: Norm,
    pub output: Linear,
}

/// Map from steps to log decays. One coefficient per head.
#[derive(Clone)]
pub(in crate::model) enum Decay {
    /// Coefficient (below 0) times softplus(step).
    Softplus(Vec<f32>),
    /// Bound (below 0) times sigmoid(coefficient times step).
    Bounded { numbers: Vec<f32>, bound: f32 },
}

impl Decay {
    /// Log decays of steps with bias added; all heads have equally many.
    fn of(&self, steps: &Rows) -> Rows {
        let f = match self {
            Decay::Softplus(_) => |number: f32, step: f32, _: f32| number * softplus(step),
            Decay::Bounded { .. } => {
                |number: f32, step: f32, bound: f32| bound * sigmoid(number * step)
            }
        };
        self.each(steps.clone(), f)
    }

    /// Turns gradients of log decays into those of steps.
    fn derivative(&self, steps: &Rows, g: &mut Rows) {
        let slope = match self {
            Decay::Softplus(_) => |number: f32, step: f32, _: f32| number * sigmoid(step),
            Decay::Bounded { .. } => |number: f32, step: f32, bound: f32| {
                bound * number * sigmoid_slope(sigmoid(number * step))
            },
        };
        let slopes = self.each(steps.clone(), slope);
        let places = g.numbers_mut().iter_mut().zip(slopes.numbers());
        places.for_each(|(g, slope)| *g *= slope);
    }

    /// Maps every step by `f`(coefficient of its head, step, bound).
    fn each(&self, mut steps: Rows, f: impl Fn(f32, f32, f32) -> f32) -> Rows {
        let (numbers, bound) = match self {
            Decay::Softplus(numbers) => (numbers, 0.0),
            Decay::Bounded { numbers, bound } => (numbers, *bound),
        };
        let length = steps.columns() / numbers.len();
        for row in steps.iter_mut() {
            for (steps, number) in row.chunks_exact_mut(length).zip(numbers) {
                steps.iter_mut().for_each(|x| *x = f(*number, *x, bound));
            }
        }
        steps
    }
}

/// The matrices of strengths and steps.
#[derive(Clone)]
pub(in crate::model) enum Rates {
    /// Separate.
    Apart(Box<Apart>),
    /// One matrix: for every key head, the strength rows of the value heads that share it, then
    /// their step rows.
    Fused(Linear),
}

/// Separate matrices of strengths and steps.
#[derive(Clone)]
pub(in crate::model) struct Apart {
    pub strength: Linear,
    pub step: Factored,
}

impl Rates {
    fn stage(&self) -> Stage<&Linear> {
        match self {
            Rates::Apart(both) => Stage {
                linears: vec![&both.strength, both.step.outer()],
                inner: both.step.inner().into_iter().collect(),
            },
            Rates::Fused(both) => Stage::of(vec![both]),
        }
    }

    fn stage_mut(&mut self) -> Stage<&mut Linear> {
        match self {
            Rates::Apart(both) => {
                let Apart { strength, step } = &mut **both;
                let (outer, inner) = step.linears_mut();
                Stage {
                    linears: vec![strength, outer],
                    inner: inner.into_iter().collect(),
                }
            }
            Rates::Fused(both) => Stage::of(vec![both]),
        }
    }
}

/// Strengths and steps of an input, with the tape of a separate step matrix.
struct Rated<'m> {
    strength: Rows,
    steps: Rows,
    tape: Option<FactoredTape<'m>>,
}

/// Values that the derivative of the first stage needs.
struct StatesTape<'m> {
    net: &'m DeltaNet,
    /// After the convolution, before SiLU: `[positions, channels]`.
    convolved: Rows,
    /// Queries and keys after SiLU, before the norm.
    activated: [Rows; 2],
    /// Steps with bias added.
    steps: Rows,
    streams: Streams,
    /// Outputs of the states.
    outputs: Rows,
    /// Normalized outputs.
    normalized: Rows,
    gates: Rows,
    gate: FactoredTape<'m>,
    step: Option<FactoredTape<'m>>,
}

impl DeltaNet {
    fn first(&self) -> Stage<&Linear> {
        let mut stage = Stage::of(self.projections.linears());
        stage.linears.push(self.gate.outer());
        stage.inner.extend(self.gate.inner());
        let rates = self.rates.stage();
        stage.linears.extend(rates.linears);
        stage.inner.extend(rates.inner);
        stage
    }

    /// Queries, keys and values of an input, side by side.
    fn project(&self, input: &Rows, pass: &Pass<'_>) -> Result<Rows> {
        match &self.projections {
            Projections::Apart(all) => {
                let all: Result<Vec<_>> = all.iter().map(|one| pass.times(one, input)).collect();
                Ok(Rows::beside(&all?.iter().collect::<Vec<_>>()))
            }
            Projections::Fused(all) => pass.times(all, input),
        }
    }

    /// Splits rows into queries, keys and values.
    fn parts(&self, rows: &Rows) -> [Rows; 3] {
        let keys = self.numbers.keys();
        [0..keys, keys..2 * keys, 2 * keys..rows.columns()].map(|part| rows.columns_range(part))
    }

    /// Strengths and steps of an input.
    fn rates(&self, input: &Rows, pass: &Pass<'_>) -> Result<Rated<'_>> {
        match &self.rates {
            Rates::Apart(both) => {
                let strength = pass.times(&both.strength, input)?;
                let (steps, tape) = both.step.run(input, pass)?;
                Ok(Rated {
                    strength,
                    steps,
                    tape: Some(tape),
                })
            }
            Rates::Fused(both) => {
                let both = pass.times(both, input)?;
                let sharing = self.numbers.value_heads / self.numbers.key_heads;
                let part = |first: usize| {
                    let groups = both.numbers().chunks_exact(2 * sharing);
                    let parts = groups.flat_map(|group| &group[first * sharing..][..sharing]);
                    Rows::new(parts.copied().collect(), self.numbers.value_heads)
                };
                Ok(Rated {
                    strength: part(0),
                    steps: part(1),
                    tape: None,
                })
            }
        }
    }

    /// Strengths and steps in the row order of the fused matrix.
    fn fused(&self, strengths: &Rows, steps: &Rows) -> Rows {
        let sharing = self.numbers.value_heads / self.numbers.key_heads;
        let groups = strengths.numbers().chunks_exact(sharing);
        let groups = groups.zip(steps.numbers().chunks_exact(sharing));
        let both = groups.flat_map(|(strengths, steps)| strengths.iter().chain(steps));
        Rows::new(both.copied().collect(), 2 * self.numbers.value_heads)
    }
}

impl Mixer for DeltaNet {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        vec![self.first(), Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let mut first = Stage::of(self.projections.linears_mut());
        let (gate, inner) = self.gate.linears_mut();
        first.linears.push(gate);
        first.inner.extend(inner);
        let rates = self.rates.stage_mut();
        first.linears.extend(rates.linears);
        first.inner.extend(rates.inner);
        vec![first, Stage::of(vec![&mut self.output])]
    }

    fn run_stage<'m>(
        &'m self,
        stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        if stage > 0 {
            return run_linear(&self.output, input, pass);
        }
        pass.input(&self.first().linears, None, input)?;
        let convolved = convolve(&self.project(input, pass)?, &self.kernels);
        let mut activated = convolved.clone();
        activate(activated.numbers_mut(), Activation::Silu);
        let [queries, keys, value] = self.parts(&activated);
        let Rated {
            mut strength,
            mut steps,
            tape: step,
        } = self.rates(input, pass)?;
        strength
            .numbers_mut()
            .iter_mut()
            .for_each(|x| *x = sigmoid(*x));
        add_bias(&mut steps, &self.step_bias);
        let decay = self.decay.of(&steps);
        let streams = Streams {
            numbers: self.numbers,
            query: self.unit.of(&queries),
            key: self.unit.of(&keys),
            value,
            decay,
            strength,
        };
        let outputs = streams.scan(pass.split);
        let normalized = self.norm.of(&outputs);
        let (gates, gate_tape) = self.gate.run(input, pass)?;
        let mut y = gates.clone();
        gate(y.numbers_mut(), normalized.numbers(), self.gate_activation);
        let tape = StatesTape {
            net: self,
            convolved,
            activated: [queries, keys],
            steps,
            streams,
            outputs,
            normalized,
            gates,
            gate: gate_tape,
            step,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for StatesTape<'_> {
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let net = self.net;
        let mut of_gates = self.gates.clone();
        gate_derivative(
            of_gates.numbers_mut(),
            self.normalized.numbers(),
            dy.numbers(),
            net.gate_activation,
        );
        let mut of_outputs = self.gates.clone();
        gate(of_outputs.numbers_mut(), dy.numbers(), net.gate_activation);
        pass.back_norm(&net.norm, self.outputs.numbers(), of_outputs.numbers_mut());
        let Streams {
            mut query,
            mut key,
            value,
            mut decay,
            mut strength,
            ..
        } = self.streams.derivative(&of_outputs, pass.split);
        for (g, before) in [&mut query, &mut key].into_iter().zip(&self.activated) {
            net.unit.derivative(before.numbers(), g.numbers_mut());
        }
        let mut of_convolved = self.convolved.clone();
        let of_activated = Rows::beside(&[&query, &key, &value]);
        activate_derivative(
            of_convolved.numbers_mut(),
            of_activated.numbers(),
            Activation::Silu,
        );
        let of_projected = convolve_derivative(&of_convolved, &net.kernels);
        let strengths = self.streams.strength.numbers();
        let places = strength.numbers_mut().iter_mut().zip(strengths);
        places.for_each(|(g, strength)| *g *= sigmoid_slope(*strength));
        net.decay.derivative(&self.steps, &mut decay);
        // The last one first, as in all mixers.
        match (&net.rates, &self.step) {
            (Rates::Apart(both), Some(step)) => {
                step.backward(input, decay, pass, dx)?;
                pass.back(&both.strength, &strength, dx)?;
            }
            (Rates::Apart(_), None) => {}
            (Rates::Fused(both), _) => pass.back(both, &net.fused(&strength, &decay), dx)?,
        }
        self.gate.backward(input, of_gates, pass, dx)?;
        match &net.projections {
            Projections::Apart(linears) => {
                let parts = net.parts(&of_projected);
                let mut parts = linears.iter().zip(&parts).rev();
                parts.try_for_each(|(linear, g)| pass.back(linear, g, dx))
            }
            Projections::Fused(all) => pass.back(all, &of_projected, dx),
        }
    }
}
