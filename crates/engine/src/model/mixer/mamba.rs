//! Mamba: a selective state space model (Gu and Dao 2023).

use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative, gate, gate_derivative};
use crate::model::ops::convolution::{convolve, convolve_derivative};
use crate::model::ops::elementwise::{add, add_bias, multiply, sigmoid, softplus};
use crate::model::ops::selective::Selective;
use crate::model::rows::Rows;
use quantier_arch::Activation;
use quantier_arch::hyper::MambaNumbers;

/// ```text
/// stage 0    input -> values and gates
///            values -> causal convolution, bias, SiLU
///            values -> ranks, keys and queries, with optional norms
///            ranks -> steps, with a bias -> softplus
///            states of all channels, plus skip times values, times SiLU of the gates
/// stage 1    -> output matrix
/// ```
///
/// The stage has several linears in sequence, since gates and values bypass them.
#[derive(Clone)]
pub(in crate::model) struct Mamba {
    pub numbers: MambaNumbers,
    /// Rows of values, then of gates.
    pub input: Linear,
    /// `[channels, kernel]`.
    pub kernels: Vec<f32>,
    /// `[channels]`.
    pub kernel_bias: Vec<f32>,
    /// Rows of ranks, then of keys, then of queries.
    pub parameters: Linear,
    /// Norms of ranks, keys and queries.
    pub norms: Option<Box<[Norm; 3]>>,
    pub step: Linear,
    /// `[channels, state]`, at most 0.
    pub decay: Vec<f32>,
    /// `[channels]`.
    pub skip: Vec<f32>,
    pub output: Linear,
}

/// Values that the derivative of the first stage needs.
struct StatesTape<'m> {
    mamba: &'m Mamba,
    /// After the convolution, before SiLU.
    convolved: Rows,
    /// Ranks, keys and queries before their norms.
    parameters: [Rows; 3],
    /// Steps with bias added, before softplus.
    steps: Rows,
    scan: Selective,
    /// Outputs of the states plus the skip.
    outputs: Rows,
    gates: Rows,
}

impl Mamba {
    /// `x += rows * skip`, with one factor per column.
    fn add_skipped(&self, x: &mut Rows, rows: &Rows) {
        for (x, row) in x.iter_mut().zip(rows.iter()) {
            let mut skipped = row.to_vec();
            multiply(&mut skipped, &self.skip);
            add(x, &skipped);
        }
    }

    /// Splits rows into ranks, keys and queries.
    fn parts(&self, rows: &Rows) -> [Rows; 3] {
        let MambaNumbers { rank, state, .. } = self.numbers;
        let parts = [0..rank, rank..rank + state, rank + state..rank + 2 * state];
        parts.map(|part| rows.columns_range(part))
    }
}

impl Mixer for Mamba {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        let first = Stage {
            linears: vec![&self.input],
            inner: vec![&self.parameters, &self.step],
        };
        vec![first, Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let first = Stage {
            linears: vec![&mut self.input],
            inner: vec![&mut self.parameters, &mut self.step],
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
        let channels = self.numbers.channels;
        pass.input(&[&self.input], None, input)?;
        let both = pass.times(&self.input, input)?;
        let [values, gates] = [0, channels].map(|at| both.columns_range(at..at + channels));
        let mut convolved = convolve(&values, &self.kernels);
        add_bias(&mut convolved, &self.kernel_bias);
        let mut value = convolved.clone();
        activate(value.numbers_mut(), Activation::Silu);
        pass.input(&[&self.parameters], None, &value)?;
        let parameters = self.parts(&pass.times(&self.parameters, &value)?);
        let mut normalized = parameters.clone();
        if let Some(norms) = &self.norms {
            for (norm, rows) in norms.iter().zip(&mut normalized) {
                norm.apply(rows.numbers_mut());
            }
        }
        let [rank, key, query] = normalized;
        pass.input(&[&self.step], None, &rank)?;
        let steps = pass.times(&self.step, &rank)?;
        let step = steps.numbers().iter().map(|x| softplus(*x)).collect();
        let scan = Selective {
            value,
            step: Rows::new(step, channels),
            key,
            query,
        };
        let mut outputs = scan.scan(&self.decay, pass.split);
        self.add_skipped(&mut outputs, &scan.value);
        let mut y = gates.clone();
        gate(y.numbers_mut(), outputs.numbers(), Activation::Silu);
        let tape = StatesTape {
            mamba: self,
            convolved,
            parameters,
            steps,
            scan,
            outputs,
            gates,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for StatesTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let mamba = self.mamba;
        let silu = Activation::Silu;
        let (outputs, dy) = (self.outputs.numbers(), dy.numbers());
        let mut of_gates = self.gates.clone();
        gate_derivative(of_gates.numbers_mut(), outputs, dy, silu);
        let mut of_outputs = self.gates.clone();
        gate(of_outputs.numbers_mut(), dy, silu);
        let Selective {
            value: mut of_values,
            step: mut of_steps,
            key,
            query,
        } = self.scan.derivative(&mamba.decay, &of_outputs, pass.split);
        mamba.add_skipped(&mut of_values, &of_outputs);
        let steps = of_steps.numbers_mut().iter_mut().zip(self.steps.numbers());
        steps.for_each(|(g, step)| *g *= sigmoid(*step));
        let mut rank = Rows::zeros(dx.len(), mamba.numbers.rank);
        pass.back(&mamba.step, &of_steps, &mut rank)?;
        let mut of_parameters = [rank, key, query];
        if let Some(norms) = &mamba.norms {
            let rows = of_parameters.iter_mut().zip(&self.parameters);
            for (norm, (g, before)) in norms.iter().zip(rows) {
                pass.back_norm(norm, before.numbers(), g.numbers_mut());
            }
        }
        let of_parameters = Rows::beside(&of_parameters.each_ref());
        pass.back(&mamba.parameters, &of_parameters, &mut of_values)?;
        let mut of_convolved = self.convolved.clone();
        activate_derivative(of_convolved.numbers_mut(), of_values.numbers(), silu);
        let of_convolution = convolve_derivative(&of_convolved, &mamba.kernels);
        pass.back(
            &mamba.input,
            &Rows::beside(&[&of_convolution, &of_gates]),
            dx,
        )
    }
}
