//! Lightning attention (Qin et al. 2024): linear attention whose states decay at a fixed rate,
//! followed by a norm and a gate.

use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative};
use crate::model::ops::elementwise::{sigmoid, sigmoid_slope};
use crate::model::ops::ssd::Streams;
use crate::model::rows::Rows;
use quantier_arch::Activation;
use quantier_arch::hyper::LightningNumbers;

/// ```text
/// stage 0    input -> queries, keys and values -> SiLU -> states of all heads -> norm
///            input -> gate -> sigmoid, times the normalized outputs of the heads
/// stage 1    outputs of the heads -> output matrix
/// ```
#[derive(Clone)]
pub(in crate::model) struct Lightning {
    pub numbers: LightningNumbers,
    /// Rows of each head's queries, then keys, then values.
    pub projections: Linear,
    pub gate: Linear,
    /// Over all heads.
    pub norm: Norm,
    pub output: Linear,
}

/// Values that the derivative of the first stage needs.
struct StatesTape<'m> {
    attention: &'m Lightning,
    /// Before SiLU.
    projected: Rows,
    streams: Streams,
    /// Outputs of the states.
    outputs: Rows,
    /// Normalized outputs.
    normalized: Rows,
    /// After the sigmoid.
    gates: Rows,
}

impl Lightning {
    /// Queries (0), keys (1) or values (2) from rows that hold all three per head.
    fn part(&self, rows: &Rows, part: usize) -> Rows {
        let length = self.numbers.length;
        let heads = rows.numbers().chunks_exact(3 * length);
        let numbers = heads.flat_map(|head| &head[part * length..][..length]);
        Rows::new(numbers.copied().collect(), self.numbers.values())
    }

    /// Inverse of [`Lightning::part`]: all three side by side per head.
    fn side_by_side(&self, parts: [&Rows; 3]) -> Rows {
        let length = self.numbers.length;
        let mut out = Vec::with_capacity(3 * parts[0].numbers().len());
        for head in 0..parts[0].numbers().len() / length {
            for part in parts {
                out.extend_from_slice(&part.numbers()[head * length..][..length]);
            }
        }
        Rows::new(out, 3 * self.numbers.values())
    }
}

impl Mixer for Lightning {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        let first = vec![&self.projections, &self.gate];
        vec![Stage::of(first), Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let first = vec![&mut self.projections, &mut self.gate];
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
        pass.input(&[&self.projections, &self.gate], None, input)?;
        let projected = pass.times(&self.projections, input)?;
        let mut activated = projected.clone();
        activate(activated.numbers_mut(), Activation::Silu);
        let decays = self.numbers.decays();
        let streams = Streams {
            groups: self.numbers.heads,
            query: self.part(&activated, 0),
            key: self.part(&activated, 1),
            value: self.part(&activated, 2),
            decay: Rows::new(decays.repeat(input.len()), self.numbers.heads),
        };
        let outputs = streams.scan(pass.split);
        let normalized = self.norm.of(&outputs);
        let mut gates = pass.times(&self.gate, input)?;
        let numbers = gates.numbers_mut().iter_mut();
        numbers.for_each(|gate| *gate = sigmoid(*gate));
        let y = times(&normalized, &gates);
        let tape = StatesTape {
            attention: self,
            projected,
            streams,
            outputs,
            normalized,
            gates,
        };
        Ok((y, Box::new(tape)))
    }
}

/// Elementwise product.
fn times(x: &Rows, y: &Rows) -> Rows {
    let numbers = x.numbers().iter().zip(y.numbers());
    Rows::new(numbers.map(|(x, y)| x * y).collect(), x.columns())
}

impl StageTape for StatesTape<'_> {
    fn backward(&self, _input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let attention = self.attention;
        let mut of_gates = times(&dy, &self.normalized);
        let gates = of_gates.numbers_mut().iter_mut().zip(self.gates.numbers());
        gates.for_each(|(g, gate)| *g *= sigmoid_slope(*gate));
        let mut of_outputs = times(&dy, &self.gates);
        pass.back_norm(
            &attention.norm,
            self.outputs.numbers(),
            of_outputs.numbers_mut(),
        );
        let gradient = self.streams.derivative(&of_outputs, pass.split);
        let parts = [&gradient.query, &gradient.key, &gradient.value];
        let of_activated = attention.side_by_side(parts);
        let mut of_projected = self.projected.clone();
        activate_derivative(
            of_projected.numbers_mut(),
            of_activated.numbers(),
            Activation::Silu,
        );
        // The last one first, as in all mixers.
        pass.back(&attention.gate, &of_gates, dx)?;
        pass.back(&attention.projections, &of_projected, dx)
    }
}
