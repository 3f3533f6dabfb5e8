//! A state space (Mamba-2, Dao and Gu 2024): a causal convolution over values, keys and queries, a
//! state per head that forgets, and a gate in front of a norm.

use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative, gate, gate_derivative};
use crate::model::ops::convolution::{convolve, convolve_derivative};
use crate::model::ops::elementwise::{
    add_bias, add_scaled_groups, dots, scale_groups, sigmoid, softplus,
};
use crate::model::ops::ssd::Streams;
use crate::model::rows::Rows;
use quantier_arch::Activation;
use quantier_arch::hyper::Mamba2Numbers;

/// ```text
/// stage 0    input -> gates | channels | steps
///            channels -> convolution, SiLU -> values | keys | queries
///            steps -> bias, softplus; times the decay, the logarithm of what states keep
///            states, of values times steps -> plus the values times `skip`
///            -> times SiLU of the gates -> norm -> the heads' outputs
/// stage 1    the heads' outputs -> the output matrix
/// ```
#[derive(Clone)]
pub(in crate::model) struct Mamba2 {
    pub numbers: Mamba2Numbers,
    /// The rows of gates before those of values, keys, queries and steps.
    pub input: Linear,
    /// `[channels, kernel]`.
    pub kernels: Vec<f32>,
    /// `[channels]`.
    pub channel_bias: Option<Vec<f32>>,
    /// `[heads]`.
    pub step_bias: Vec<f32>,
    /// `[heads]`, below 0.
    pub decay: Vec<f32>,
    /// `[heads]`.
    pub skip: Vec<f32>,
    /// Over the heads that share keys.
    pub norm: Option<Norm>,
    pub output: Linear,
}

/// What the derivative of the first stage needs.
struct StatesTape<'m> {
    space: &'m Mamba2,
    gates: Rows,
    /// Behind the convolution, in front of SiLU: `[positions, channels]`.
    convolved: Rows,
    /// Behind SiLU.
    values: Rows,
    /// Steps with their bias, and behind softplus.
    steps: [Rows; 2],
    streams: Streams,
    /// What the states put out, and what goes past them.
    outputs: Rows,
    /// The same, gated.
    gated: Rows,
}

impl Mamba2 {
    /// Gates, channels and steps of rows that have them side by side.
    fn parts(&self, rows: &Rows) -> [Rows; 3] {
        let values = self.numbers.values();
        let steps = values + self.numbers.channels();
        [0..values, values..steps, steps..rows.columns()].map(|part| rows.columns_range(part))
    }

    /// Values, keys and queries of rows that have them side by side.
    fn channels(&self, rows: &Rows) -> [Rows; 3] {
        let keys = self.numbers.values();
        let queries = keys + self.numbers.keys();
        [0..keys, keys..queries, queries..rows.columns()].map(|part| rows.columns_range(part))
    }
}

impl Mixer for Mamba2 {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        vec![Stage::of(vec![&self.input]), Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        vec![
            Stage::of(vec![&mut self.input]),
            Stage::of(vec![&mut self.output]),
        ]
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
        pass.input(&[&self.input], None, input)?;
        let [gates, channels, mut steps] = self.parts(&pass.times(&self.input, input)?);
        let mut convolved = convolve(&channels, &self.kernels);
        if let Some(bias) = &self.channel_bias {
            add_bias(&mut convolved, bias);
        }
        let mut activated = convolved.clone();
        activate(activated.numbers_mut(), Activation::Silu);
        let [values, key, query] = self.channels(&activated);
        add_bias(&mut steps, &self.step_bias);
        let mut lengths = steps.clone();
        let numbers = lengths.numbers_mut().iter_mut();
        numbers.for_each(|step| *step = softplus(*step));
        let mut decay = lengths.clone();
        for row in decay.iter_mut() {
            scale_groups(row, &self.decay);
        }
        let mut value = values.clone();
        scale_groups(value.numbers_mut(), lengths.numbers());
        let streams = Streams {
            groups: self.numbers.groups,
            query,
            key,
            value,
            decay,
        };
        let mut outputs = streams.scan(pass.split);
        for (row, values) in outputs.iter_mut().zip(values.iter()) {
            add_scaled_groups(row, values, &self.skip);
        }
        let mut gated = gates.clone();
        gate(gated.numbers_mut(), outputs.numbers(), Activation::Silu);
        let y = match &self.norm {
            Some(norm) => norm.of(&gated),
            None => gated.clone(),
        };
        let tape = StatesTape {
            space: self,
            gates,
            convolved,
            values,
            steps: [steps, lengths],
            streams,
            outputs,
            gated,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for StatesTape<'_> {
    fn backward(&self, _input: &Rows, mut dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let (space, silu) = (self.space, Activation::Silu);
        if let Some(norm) = &space.norm {
            norm.derivative(self.gated.numbers(), dy.numbers_mut());
        }
        let mut of_gates = self.gates.clone();
        gate_derivative(
            of_gates.numbers_mut(),
            self.outputs.numbers(),
            dy.numbers(),
            silu,
        );
        let mut of_outputs = self.gates.clone();
        gate(of_outputs.numbers_mut(), dy.numbers(), silu);
        let Streams {
            query,
            key,
            mut value,
            mut decay,
            ..
        } = self.streams.derivative(&of_outputs, pass.split);

        // Steps are in the values and in the decays.
        let [steps, lengths] = &self.steps;
        let of_lengths = dots(
            value.numbers(),
            self.values.numbers(),
            lengths.numbers().len(),
        );
        scale_groups(value.numbers_mut(), lengths.numbers());
        for (row, of_outputs) in value.iter_mut().zip(of_outputs.iter()) {
            add_scaled_groups(row, of_outputs, &space.skip);
        }
        for row in decay.iter_mut() {
            scale_groups(row, &space.decay);
        }
        let of_steps = decay.numbers_mut().iter_mut().zip(&of_lengths);
        for ((g, of_length), step) in of_steps.zip(steps.numbers()) {
            *g = (*g + of_length) * sigmoid(*step);
        }

        let mut of_convolved = self.convolved.clone();
        let of_activated = Rows::beside(&[&value, &key, &query]);
        activate_derivative(of_convolved.numbers_mut(), of_activated.numbers(), silu);
        let of_channels = convolve_derivative(&of_convolved, &space.kernels);
        let of_input = Rows::beside(&[&of_gates, &of_channels, &decay]);
        pass.back(&space.input, &of_input, dx)
    }
}
