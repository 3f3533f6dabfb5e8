//! A mixture of experts, of which a token sees a few, and perhaps one that sees every token.

use super::ffn::{Ffn, GateTape, gated, gated_derivative};
use super::{BoxedTape, Mixer, Stage, StageTape};
use crate::model::linear::{Linear, Pass};
use crate::model::ops::elementwise::{add, dots, scale_groups, sigmoid, sigmoid_slope};
use crate::model::ops::router::{Weighing, most_probable, softmax, softmax_derivative};
use crate::model::rows::Rows;
use crate::model::{Result, Routed};
use quantier_arch::Activation;

/// ```text
/// stage 0    input -> router -> the chosen experts' gate and up -> their down, weighed and added
/// ```
///
/// One stage, since which experts a token sees follows from the input.
#[derive(Clone)]
pub(in crate::model) struct Moe {
    pub router: Linear,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub activation: Activation,
    /// Experts that see a token.
    pub used: usize,
    pub weighing: Weighing,
    pub shared: Option<Shared>,
}

/// The expert that sees every token, and the matrix of one row that weighs it.
#[derive(Clone)]
pub(in crate::model) struct Shared {
    pub router: Linear,
    pub ffn: Ffn,
}

/// What the derivative needs.
struct MoeTape<'m> {
    moe: &'m Moe,
    scores: Rows,
    /// The experts of each position.
    chosen: Vec<Vec<usize>>,
    /// Those that see a position, by number.
    experts: Vec<ExpertTape>,
    shared: Option<SharedTape<'m>>,
}

/// What an expert made of its positions.
struct ExpertTape {
    expert: usize,
    positions: Vec<u32>,
    gate: Rows,
    up: Rows,
    output: Rows,
    /// By position.
    weights: Vec<f32>,
}

struct SharedTape<'m> {
    shared: &'m Shared,
    gate: GateTape<'m>,
    output: Rows,
    weights: Vec<f32>,
}

/// Which experts see which positions.
struct Routing {
    /// By position.
    chosen: Vec<Vec<usize>>,
    /// By expert.
    positions: Vec<Vec<u32>>,
    /// `[positions, experts]`; only those of the chosen experts mean something.
    weights: Rows,
}

impl Moe {
    /// Sends every position to its most probable experts.
    fn route(&self, scores: &Rows) -> Routing {
        let mut weights = scores.clone();
        let mut positions = vec![Vec::new(); scores.columns()];
        let mut chosen = Vec::with_capacity(scores.len());
        for (position, row) in weights.iter_mut().enumerate() {
            softmax(row);
            let experts = most_probable(row, self.used.max(1));
            self.weighing.weights(row, &experts);
            for expert in &experts {
                positions[*expert].push(position as u32);
            }
            chosen.push(experts);
        }
        Routing {
            chosen,
            positions,
            weights,
        }
    }

    /// What an expert makes of its positions of the input.
    fn run_expert(
        &self,
        input: &Rows,
        routed: Routed<'_>,
        weights: Vec<f32>,
        pass: &Pass<'_>,
    ) -> Result<ExpertTape> {
        let expert = routed.expert;
        let x = input.select(routed.positions);
        pass.input(&[&self.gate, &self.up], Some(routed), &x)?;
        let gate = pass.times_expert(&self.gate, expert, &x)?;
        let up = pass.times_expert(&self.up, expert, &x)?;
        let inner = gated(&gate, &up, self.activation);
        pass.input(&[&self.down], Some(routed), &inner)?;
        Ok(ExpertTape {
            expert,
            positions: routed.positions.to_vec(),
            output: pass.times_expert(&self.down, expert, &inner)?,
            gate,
            up,
            weights,
        })
    }

    fn routed<'p>(&self, expert: usize, positions: &'p [u32]) -> Routed<'p> {
        Routed {
            expert,
            experts: self.gate.experts,
            positions,
        }
    }

    /// The linears that read every position of the input.
    fn whole(&self) -> Vec<&Linear> {
        let mut all = vec![&self.router];
        if let Some(shared) = &self.shared {
            all.push(&shared.router);
            all.extend(shared.ffn.first.linears());
        }
        all
    }
}

/// `y[positions] += x`.
fn add_at(y: &mut Rows, positions: &[u32], x: &Rows) {
    let columns = y.columns();
    for (position, x) in positions.iter().zip(x.iter()) {
        add(
            &mut y.numbers_mut()[*position as usize * columns..][..columns],
            x,
        );
    }
}

fn scaled(x: &Rows, scales: &[f32]) -> Rows {
    let mut x = x.clone();
    scale_groups(x.numbers_mut(), scales);
    x
}

impl Mixer for Moe {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        let mut stage = Stage {
            linears: vec![&self.router, &self.gate, &self.up],
            inner: vec![&self.down],
        };
        if let Some(Shared { router, ffn }) = &self.shared {
            stage.linears.push(router);
            stage.linears.extend(ffn.first.linears());
            stage.inner.push(&ffn.down);
        }
        vec![stage]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let mut stage = Stage {
            linears: vec![&mut self.router, &mut self.gate, &mut self.up],
            inner: vec![&mut self.down],
        };
        if let Some(Shared { router, ffn }) = &mut self.shared {
            stage.linears.push(router);
            stage.linears.extend(ffn.first.linears_mut());
            stage.inner.push(&mut ffn.down);
        }
        vec![stage]
    }

    fn run_stage<'m>(
        &'m self,
        _stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        pass.input(&self.whole(), None, input)?;
        let scores = pass.times(&self.router, input)?;
        let routing = self.route(&scores);
        let mut y = Rows::zeros(input.len(), input.columns());
        let mut experts = Vec::new();
        for (expert, positions) in routing.positions.iter().enumerate() {
            if positions.is_empty() {
                continue;
            }
            let weight =
                |p: &u32| routing.weights.numbers()[*p as usize * scores.columns() + expert];
            let weights = positions.iter().map(weight).collect();
            let tape = self.run_expert(input, self.routed(expert, positions), weights, pass)?;
            add_at(&mut y, positions, &scaled(&tape.output, &tape.weights));
            if pass.recording {
                experts.push(tape);
            }
        }
        let mut shared_tape = None;
        if let Some(shared) = &self.shared {
            let weights = pass.times(&shared.router, input)?.into_numbers();
            let weights: Vec<f32> = weights.into_iter().map(sigmoid).collect();
            let (inner, gate) = shared.ffn.run_first(input, pass)?;
            pass.input(&[&shared.ffn.down], None, &inner)?;
            let output = pass.times(&shared.ffn.down, &inner)?;
            add(y.numbers_mut(), scaled(&output, &weights).numbers());
            shared_tape = Some(SharedTape {
                shared,
                gate,
                output,
                weights,
            });
        }
        let tape = MoeTape {
            moe: self,
            scores,
            chosen: routing.chosen,
            experts,
            shared: shared_tape,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for MoeTape<'_> {
    /// The shared expert, then the others from the last to the first, the router before the first
    /// one: an order of sums, which results depend on.
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        if let Some(shared) = &self.shared {
            shared.backward(input, &dy, pass, dx)?;
        }
        let mut of_weights = Rows::zeros(self.scores.len(), self.scores.columns());
        for (number, expert) in self.experts.iter().enumerate().rev() {
            let g = dy.select(&expert.positions);
            let columns = of_weights.columns();
            for (position, dot) in
                expert
                    .positions
                    .iter()
                    .zip(dots(expert.output.numbers(), g.numbers(), g.len()))
            {
                let place = *position as usize * columns + expert.expert;
                of_weights.numbers_mut()[place] = dot;
            }
            if number == 0 {
                self.router_backward(&mut of_weights, pass, dx)?;
            }
            self.expert_backward(expert, &scaled(&g, &expert.weights), pass, dx)?;
        }
        Ok(())
    }
}

impl MoeTape<'_> {
    /// From the gradients of the weights, which become those of the scores.
    fn router_backward(&self, g: &mut Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        for ((g, scores), chosen) in g.iter_mut().zip(self.scores.iter()).zip(&self.chosen) {
            let mut probabilities = scores.to_vec();
            softmax(&mut probabilities);
            self.moe.weighing.derivative(&probabilities, chosen, g);
            softmax_derivative(scores, g);
        }
        pass.back(&self.moe.router, g, dx)
    }

    /// From the gradient of an expert's output.
    fn expert_backward(
        &self,
        expert: &ExpertTape,
        g: &Rows,
        pass: &Pass<'_>,
        dx: &mut Rows,
    ) -> Result<()> {
        let Moe {
            gate,
            up,
            down,
            activation,
            ..
        } = self.moe;
        let routed = Some(self.moe.routed(expert.expert, &expert.positions));
        let rows = expert.positions.len();
        let mut of_inner = Rows::zeros(rows, expert.gate.columns());
        pass.back_expert(down, routed, g, &mut of_inner)?;
        let [of_gate, of_up] = gated_derivative(&expert.gate, &expert.up, &of_inner, *activation);
        let mut of_input = Rows::zeros(rows, dx.columns());
        pass.back_expert(up, routed, &of_up, &mut of_input)?;
        pass.back_expert(gate, routed, &of_gate, &mut of_input)?;
        add_at(dx, &expert.positions, &of_input);
        Ok(())
    }
}

impl SharedTape<'_> {
    fn backward(&self, input: &Rows, dy: &Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let of_scores = dots(self.output.numbers(), dy.numbers(), dy.len())
            .into_iter()
            .zip(&self.weights)
            .map(|(g, weight)| g * sigmoid_slope(*weight));
        let of_scores = Rows::new(of_scores.collect(), 1);
        pass.back(&self.shared.router, &of_scores, dx)?;
        let mut of_inner = Rows::zeros(dy.len(), self.gate.columns());
        let of_output = scaled(dy, &self.weights);
        pass.back(&self.shared.ffn.down, &of_output, &mut of_inner)?;
        self.gate.backward(input, of_inner, pass, dx)
    }
}
