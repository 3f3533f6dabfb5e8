//! A gated delta net (Yang et al. 2025): a causal convolution over queries, keys and values, a state
//! per head that forgets and learns by the delta rule, and a gate behind a norm.

use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative, gate, gate_derivative};
use crate::model::ops::convolution::{convolve, convolve_derivative};
use crate::model::ops::delta::Streams;
use crate::model::ops::elementwise::{sigmoid, sigmoid_slope, softplus};
use crate::model::rows::Rows;
use quantier_arch::Activation;
use quantier_arch::hyper::DeltaNumbers;

/// ```text
/// stage 0    input -> queries, keys, values -> convolution, SiLU -> queries and keys of length 1
///            input -> strength -> logistic function
///            input -> step -> bias, softplus -> times the decay
///            the states of all heads -> norm, times SiLU of the gate -> the heads' outputs
/// stage 1    the heads' outputs -> the output matrix
/// ```
#[derive(Clone)]
pub(in crate::model) struct DeltaNet {
    pub numbers: DeltaNumbers,
    /// The rows of queries before those of keys before those of values.
    pub projections: Linear,
    pub gate: Linear,
    pub rates: Rates,
    /// `[value_heads]`.
    pub step_bias: Vec<f32>,
    /// `[value_heads]`, below 0.
    pub decay: Vec<f32>,
    /// `[channels, kernel]`.
    pub kernels: Vec<f32>,
    /// Makes a head of queries or keys one of length 1.
    pub unit: Norm,
    pub norm: Norm,
    pub output: Linear,
}

/// The matrices of strengths and steps.
#[derive(Clone)]
pub(in crate::model) enum Rates {
    /// In this order.
    Apart(Box<[Linear; 2]>),
    /// For every head of keys, the rows of strengths of the heads that share it, then those of steps.
    Fused(Linear),
}

impl Rates {
    fn linears(&self) -> Vec<&Linear> {
        match self {
            Rates::Apart(both) => both.iter().collect(),
            Rates::Fused(both) => vec![both],
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Rates::Apart(both) => both.iter_mut().collect(),
            Rates::Fused(both) => vec![both],
        }
    }
}

/// What the derivative of the first stage needs.
struct StatesTape<'m> {
    net: &'m DeltaNet,
    /// Behind the convolution, in front of SiLU: `[positions, channels]`.
    convolved: Rows,
    /// Queries and keys behind SiLU, in front of the norm.
    activated: [Rows; 2],
    /// Steps with their bias.
    steps: Rows,
    streams: Streams,
    /// What the states put out.
    outputs: Rows,
    /// The same, normalized.
    normalized: Rows,
    gates: Rows,
}

impl DeltaNet {
    fn first(&self) -> Vec<&Linear> {
        let mut all = vec![&self.projections, &self.gate];
        all.extend(self.rates.linears());
        all
    }

    /// Queries, keys and values of rows that have them side by side.
    fn parts(&self, rows: &Rows) -> [Rows; 3] {
        let keys = self.numbers.keys();
        [0..keys, keys..2 * keys, 2 * keys..rows.columns()].map(|part| rows.columns_range(part))
    }

    /// Strengths and steps of an input.
    fn rates(&self, input: &Rows, pass: &Pass<'_>) -> Result<[Rows; 2]> {
        match &self.rates {
            Rates::Apart(both) => {
                let [strength, step] = &**both;
                Ok([pass.times(strength, input)?, pass.times(step, input)?])
            }
            Rates::Fused(both) => {
                let both = pass.times(both, input)?;
                let sharing = self.numbers.value_heads / self.numbers.key_heads;
                let part = |first: usize| {
                    let groups = both.numbers().chunks_exact(2 * sharing);
                    let parts = groups.flat_map(|group| &group[first * sharing..][..sharing]);
                    Rows::new(parts.copied().collect(), self.numbers.value_heads)
                };
                Ok([part(0), part(1)])
            }
        }
    }

    /// Strengths and steps as one matrix makes both.
    fn fused(&self, strengths: &Rows, steps: &Rows) -> Rows {
        let sharing = self.numbers.value_heads / self.numbers.key_heads;
        let groups = strengths.numbers().chunks_exact(sharing);
        let groups = groups.zip(steps.numbers().chunks_exact(sharing));
        let both = groups.flat_map(|(strengths, steps)| strengths.iter().chain(steps));
        Rows::new(both.copied().collect(), 2 * self.numbers.value_heads)
    }

    /// Every number by what its head has: `f` gets both.
    fn by_head(&self, rows: &mut Rows, of_head: &[f32], f: impl Fn(&mut f32, f32)) {
        for row in rows.iter_mut() {
            row.iter_mut().zip(of_head).for_each(|(x, own)| f(x, *own));
        }
    }
}

impl Mixer for DeltaNet {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        vec![Stage::of(self.first()), Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let mut first = vec![&mut self.projections, &mut self.gate];
        first.extend(self.rates.linears_mut());
        vec![Stage::of(first), Stage::of(vec![&mut self.output])]
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
        pass.input(&self.first(), None, input)?;
        let convolved = convolve(&pass.times(&self.projections, input)?, &self.kernels);
        let mut activated = convolved.clone();
        activate(activated.numbers_mut(), Activation::Silu);
        let [queries, keys, value] = self.parts(&activated);
        let [mut strength, mut steps] = self.rates(input, pass)?;
        strength
            .numbers_mut()
            .iter_mut()
            .for_each(|x| *x = sigmoid(*x));
        self.by_head(&mut steps, &self.step_bias, |step, bias| *step += bias);
        let mut decay = steps.clone();
        self.by_head(&mut decay, &self.decay, |step, decay| {
            *step = decay * softplus(*step)
        });
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
        let gates = pass.times(&self.gate, input)?;
        let mut y = gates.clone();
        gate(y.numbers_mut(), normalized.numbers(), Activation::Silu);
        let tape = StatesTape {
            net: self,
            convolved,
            activated: [queries, keys],
            steps,
            streams,
            outputs,
            normalized,
            gates,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for StatesTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let net = self.net;
        let silu = Activation::Silu;
        let mut of_gates = self.gates.clone();
        gate_derivative(
            of_gates.numbers_mut(),
            self.normalized.numbers(),
            dy.numbers(),
            silu,
        );
        let mut of_outputs = self.gates.clone();
        gate(of_outputs.numbers_mut(), dy.numbers(), silu);
        net.norm
            .derivative(self.outputs.numbers(), of_outputs.numbers_mut());
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
        activate_derivative(of_convolved.numbers_mut(), of_activated.numbers(), silu);
        let of_projected = convolve_derivative(&of_convolved, &net.kernels);
        let strengths = self.streams.strength.numbers();
        let places = strength.numbers_mut().iter_mut().zip(strengths);
        places.for_each(|(g, strength)| *g *= sigmoid_slope(*strength));
        net.by_head(&mut decay, &net.decay, |g, decay| *g *= decay);
        let places = decay.numbers_mut().iter_mut().zip(self.steps.numbers());
        places.for_each(|(g, step)| *g *= sigmoid(*step));
        // The last one first, as everywhere.
        match &net.rates {
            Rates::Apart(both) => {
                let [of_strength, of_step] = &**both;
                pass.back(of_step, &decay, dx)?;
                pass.back(of_strength, &strength, dx)?;
            }
            Rates::Fused(both) => pass.back(both, &net.fused(&strength, &decay), dx)?,
        }
        pass.back(&net.gate, &of_gates, dx)?;
        pass.back(&net.projections, &of_projected, dx)
    }
}
