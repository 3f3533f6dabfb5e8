//! The gate of a layer's input from per-layer embeddings (Gemma 3n).

use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Pass};
use crate::model::ops::activation::{gate, gate_derivative};
use crate::model::rows::Rows;
use quantier_arch::Activation;

/// ```text
/// stage 0    x -> gate -> activation(gate) * inputs
/// stage 1    -> output matrix
/// ```
///
/// The layer's inputs follow the columns of x.
#[derive(Clone)]
pub(in crate::model) struct PerLayer {
    pub gate: Linear,
    pub activation: Activation,
    pub output: Linear,
}

/// Values that the derivative of the first stage needs.
struct GateTape<'m> {
    mixer: &'m PerLayer,
    gate: Rows,
    inputs: Rows,
}

impl Mixer for PerLayer {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        vec![Stage::of(vec![&self.gate]), Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        vec![
            Stage::of(vec![&mut self.gate]),
            Stage::of(vec![&mut self.output]),
        ]
    }

    fn columns(&self, stage: usize) -> Option<usize> {
        Some(match stage {
            0 => self.gate.columns + self.output.columns,
            _ => self.output.columns,
        })
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
        let hidden = self.gate.columns;
        let x = input.columns_range(0..hidden);
        let inputs = input.columns_range(hidden..input.columns());
        pass.input(&[&self.gate], None, &x)?;
        let gate_rows = pass.times(&self.gate, &x)?;
        let mut y = gate_rows.clone();
        gate(y.numbers_mut(), inputs.numbers(), self.activation);
        let tape = GateTape {
            mixer: self,
            gate: gate_rows,
            inputs,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for GateTape<'_> {
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let PerLayer {
            gate: linear,
            activation,
            ..
        } = self.mixer;
        let mut of_gate = self.gate.clone();
        gate_derivative(
            of_gate.numbers_mut(),
            self.inputs.numbers(),
            dy.numbers(),
            *activation,
        );
        let mut of_inputs = self.gate.clone();
        gate(of_inputs.numbers_mut(), dy.numbers(), *activation);
        let mut of_x = Rows::zeros(input.len(), linear.columns);
        pass.back(linear, &of_gate, &mut of_x)?;
        dx.add_columns(0, &of_x);
        dx.add_columns(linear.columns, &of_inputs);
        Ok(())
    }
}
