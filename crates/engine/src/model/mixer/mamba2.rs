//! Mamba-2 (Dao and Gu 2024): a causal convolution over values, keys and queries, one decaying
//! state per head, and a gate before a norm.

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
///            steps -> bias, softplus; times `decay`: log decays of the states
///            states, driven by values times steps -> plus the values times `skip`
///            -> times SiLU of the gates -> norm -> outputs of the heads
/// stage 1    outputs of the heads -> output matrix
/// ```
///
/// With factors, the input yields only gates and values; keys, queries and steps come from the
/// convolved values, each through a norm. Their matrices belong to the first stage, since gates and
/// values bypass them.
#[derive(Clone)]
pub(in crate::model) struct Mamba2 {
    pub numbers: Mamba2Numbers,
    /// Rows of gates, values, keys, queries, then steps; with factors, rows of each head's gates,
    /// then values.
    pub input: Linear,
    pub factors: Option<Box<Factors>>,
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

/// Matrices from values to keys, queries and steps.
#[derive(Clone)]
pub(in crate::model) struct Factors {
    /// Rows of keys, then of queries, then of the step factors.
    pub parameters: Linear,
    /// Norms of all three.
    pub norms: [Norm; 3],
    /// From step factors to steps. Its bias is the step bias.
    pub step: Linear,
}

/// Values that the derivative of the first stage needs.
struct StatesTape<'m> {
    space: &'m Mamba2,
    gates: Rows,
    /// After the convolution, before SiLU: `[positions, channels]`.
    convolved: Rows,
    /// After SiLU.
    values: Rows,
    /// With factors: keys, queries and step factors before their norms.
    parameters: Option<[Rows; 3]>,
    /// Steps with bias added, before and after softplus.
    steps: [Rows; 2],
    streams: Streams,
    /// Outputs of the states plus the skip.
    outputs: Rows,
    /// Gated outputs.
    gated: Rows,
}

impl Mamba2 {
    /// Splits rows that hold gates and values per head.
    fn by_head(&self, rows: &Rows) -> [Rows; 2] {
        let length = self.numbers.value_length;
        [0, 1].map(|part| {
            let heads = rows.numbers().chunks_exact(2 * length);
            let numbers = heads.flat_map(|head| &head[part * length..][..length]);
            Rows::new(numbers.copied().collect(), self.numbers.values())
        })
    }

    /// Inverse of [`Mamba2::by_head`].
    fn heads_of(&self, gates: &Rows, values: &Rows) -> Rows {
        let length = self.numbers.value_length;
        let heads = gates.numbers().chunks_exact(length);
        let heads = heads.zip(values.numbers().chunks_exact(length));
        let numbers = heads.flat_map(|(gates, values)| gates.iter().chain(values));
        Rows::new(numbers.copied().collect(), 2 * self.numbers.values())
    }

    /// Splits rows into two parts of these lengths and the rest.
    fn parts(rows: &Rows, [first, second]: [usize; 2]) -> [Rows; 3] {
        let rest = first + second;
        [0..first, first..rest, rest..rows.columns()].map(|part| rows.columns_range(part))
    }
}

impl Mixer for Mamba2 {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        let factors = self.factors.iter();
        let first = Stage {
            linears: vec![&self.input],
            inner: factors.flat_map(|f| [&f.parameters, &f.step]).collect(),
        };
        vec![first, Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let factors = self.factors.iter_mut();
        let first = Stage {
            linears: vec![&mut self.input],
            inner: factors
                .flat_map(|f| [&mut f.parameters, &mut f.step])
                .collect(),
        };
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
        pass.input(&[&self.input], None, input)?;
        let (values, keys) = (self.numbers.values(), self.numbers.keys());
        let projected = pass.times(&self.input, input)?;
        let (gates, channels, mut steps) = match &self.factors {
            Some(_) => {
                let [gates, channels] = self.by_head(&projected);
                (gates, channels, Rows::default())
            }
            None => {
                let [gates, channels, steps] =
                    Mamba2::parts(&projected, [values, self.numbers.channels()]);
                (gates, channels, steps)
            }
        };
        let mut convolved = convolve(&channels, &self.kernels);
        if let Some(bias) = &self.channel_bias {
            add_bias(&mut convolved, bias);
        }
        let mut activated = convolved.clone();
        activate(activated.numbers_mut(), Activation::Silu);
        let (values, key, query, parameters) = match &self.factors {
            Some(factors) => {
                pass.input(&[&factors.parameters], None, &activated)?;
                let made = pass.times(&factors.parameters, &activated)?;
                let made = Mamba2::parts(&made, [keys, keys]);
                let [key, query, rank] = [0, 1, 2].map(|i| factors.norms[i].of(&made[i]));
                pass.input(&[&factors.step], None, &rank)?;
                // The bias of the linear is the step bias.
                steps = pass.times(&factors.step, &rank)?;
                (activated, key, query, Some(made))
            }
            None => {
                let [values, key, query] = Mamba2::parts(&activated, [values, keys]);
                add_bias(&mut steps, &self.step_bias);
                (values, key, query, None)
            }
        };
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
            parameters,
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
            pass.back_norm(norm, self.gated.numbers(), dy.numbers_mut());
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
            mut query,
            mut key,
            mut value,
            mut decay,
            ..
        } = self.streams.derivative(&of_outputs, pass.split);

        // Steps enter the values and the decays.
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
        let of_activated = match (&space.factors, &self.parameters) {
            (Some(factors), Some(parameters)) => {
                let mut rank = Rows::zeros(dx.len(), factors.step.columns);
                pass.back(&factors.step, &decay, &mut rank)?;
                let of_made = [&mut key, &mut query, &mut rank];
                for (i, g) in of_made.into_iter().enumerate() {
                    pass.back_norm(&factors.norms[i], parameters[i].numbers(), g.numbers_mut());
                }
                let of_made = Rows::beside(&[&key, &query, &rank]);
                pass.back(&factors.parameters, &of_made, &mut value)?;
                value
            }
            _ => Rows::beside(&[&value, &key, &query]),
        };
        activate_derivative(of_convolved.numbers_mut(), of_activated.numbers(), silu);
        let of_channels = convolve_derivative(&of_convolved, &space.kernels);
        let of_input = match &space.factors {
            Some(_) => space.heads_of(&of_gates, &of_channels),
            None => Rows::beside(&[&of_gates, &of_channels, &decay]),
        };
        pass.back(&space.input, &of_input, dx)
    }
}
