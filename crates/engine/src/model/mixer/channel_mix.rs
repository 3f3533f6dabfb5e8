//! RWKV's channel mixing (Peng et al. 2024 and 2025): two matrices with squared ReLU between, the
//! first of which reads a token shift; RWKV 6 adds a receptance gate.

use super::front::{beside, parts, run_front};
use super::{BoxedTape, Mixer, Stage, StageTape};
use crate::model::Result;
use crate::model::linear::{Linear, Pass};
use crate::model::ops::activation::{gate, gate_derivative};
use crate::model::ops::shift::{differences, differences_derivative, mixed, mixed_derivative};
use crate::model::rows::Rows;
use quantier_arch::Activation;

/// ```text
/// stage 0    input -> token shift for keys, and for receptances if there are any
/// stage 1    shifted input of keys -> squared ReLU -> keys
/// (stage 2   shifted input of receptances -> receptances)
/// stage 3    keys -> values, times sigmoid of the receptances
/// ```
#[derive(Clone)]
pub(in crate::model) struct ChannelMix {
    pub key_mix: Vec<f32>,
    pub key: Linear,
    pub value: Linear,
    pub receptance: Option<Box<Receptance>>,
}

/// The receptance gate of RWKV 6.
#[derive(Clone)]
pub(in crate::model) struct Receptance {
    pub mix: Vec<f32>,
    pub matrix: Linear,
}

/// Values that the derivative of the first stage needs.
struct ShiftTape<'m>(&'m ChannelMix);

/// Values that the derivative of the last stage needs.
struct ValueTape<'m> {
    mixer: &'m ChannelMix,
    values: Rows,
}

impl ChannelMix {
    /// Mixing weights of keys, then of receptances.
    fn mixes(&self) -> impl Iterator<Item = &Vec<f32>> {
        let receptance = self.receptance.iter().map(|receptance| &receptance.mix);
        std::iter::once(&self.key_mix).chain(receptance)
    }
}

impl Mixer for ChannelMix {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        let mut stages = vec![Stage::of(Vec::new()), Stage::of(vec![&self.key])];
        let receptance = self.receptance.iter();
        stages.extend(receptance.map(|receptance| Stage::of(vec![&receptance.matrix])));
        stages.push(Stage::of(vec![&self.value]));
        stages
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let mut stages = vec![Stage::of(Vec::new()), Stage::of(vec![&mut self.key])];
        let receptance = self.receptance.iter_mut();
        stages.extend(receptance.map(|receptance| Stage::of(vec![&mut receptance.matrix])));
        stages.push(Stage::of(vec![&mut self.value]));
        stages
    }

    fn columns(&self, stage: usize) -> Option<usize> {
        let (hidden, keys) = (self.key.columns, self.value.columns);
        Some(match (stage, &self.receptance) {
            (0, _) | (1, None) => hidden,
            (1, Some(_)) => 2 * hidden,
            (2, Some(_)) | (3, Some(_)) => hidden + keys,
            _ => keys,
        })
    }

    fn run_stage<'m>(
        &'m self,
        stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        match (stage, &self.receptance) {
            (0, _) => {
                let differences = differences(input);
                let mixes = self.mixes().map(|mix| mixed(input, &differences, mix));
                let mixes: Vec<Rows> = mixes.collect();
                let y = beside(&mixes.iter().collect::<Vec<_>>());
                Ok((y, Box::new(ShiftTape(self))))
            }
            (1, _) => run_front(&self.key, Some(Activation::SquaredRelu), input, pass),
            (2, Some(receptance)) => run_front(&receptance.matrix, None, input, pass),
            _ => {
                let keys = input.columns_range(0..self.value.columns);
                pass.input(&[&self.value], None, &keys)?;
                let values = pass.times(&self.value, &keys)?;
                let mut y = values.clone();
                if self.receptance.is_some() {
                    y = input.columns_range(self.value.columns..input.columns());
                    gate(y.numbers_mut(), values.numbers(), Activation::Sigmoid);
                }
                let tape = ValueTape {
                    mixer: self,
                    values,
                };
                Ok((y, Box::new(tape)))
            }
        }
    }
}

impl StageTape for ShiftTape<'_> {
    fn backward(&self, input: &Rows, dy: Rows, _pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let mut of_differences = Rows::zeros(input.len(), input.columns());
        let lengths: Vec<usize> = self.0.mixes().map(Vec::len).collect();
        for (mix, g) in self.0.mixes().zip(parts(&dy, &lengths)) {
            mixed_derivative(&g, mix, dx, &mut of_differences);
        }
        differences_derivative(&of_differences, dx);
        Ok(())
    }
}

impl StageTape for ValueTape<'_> {
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let matrix = &self.mixer.value;
        let mut of_values = dy;
        if self.mixer.receptance.is_some() {
            let receptances = input.columns_range(matrix.columns..input.columns());
            let mut of_receptances = receptances.clone();
            let (values, g) = (self.values.numbers(), of_values.numbers());
            gate_derivative(of_receptances.numbers_mut(), values, g, Activation::Sigmoid);
            dx.add_columns(matrix.columns, &of_receptances);
            let mut gated = receptances;
            gate(
                gated.numbers_mut(),
                of_values.numbers(),
                Activation::Sigmoid,
            );
            of_values = gated;
        }
        let mut of_keys = Rows::zeros(input.len(), matrix.columns);
        pass.back(matrix, &of_values, &mut of_keys)?;
        dx.add_columns(0, &of_keys);
        Ok(())
    }
}
