//! A mixture of experts with optional shared expert.

use super::ffn::{Ffn, GateTape};
use super::{BoxedTape, Mixer, Stage, StageTape};
use crate::model::linear::{Linear, Pass};
use crate::model::ops::elementwise::{add, dots, scale, scale_groups, sigmoid, sigmoid_slope};
use crate::model::ops::router::Router;
use crate::model::rows::Rows;
use crate::model::{Result, Routed};

/// ```text
/// stage 0    input -> scores -> chosen experts and their weights
///            input, or its projection -> chosen experts, weighted sum -> optional projection back;
///            or the experts' inputs are weighted
///            input -> shared expert, optionally weighted
/// ```
///
/// All of it is one stage, since the routing follows from the input.
#[derive(Clone)]
pub(in crate::model) struct Moe {
    pub scores: Linear,
    pub router: Router,
    pub latent: Option<Latent>,
    /// Each linear holds one matrix per expert.
    pub experts: Ffn,
    pub shared: Option<Shared>,
    /// Factor of the output.
    pub scale: f32,
}

/// The projections around experts of another row length.
#[derive(Clone)]
pub(in crate::model) struct Latent {
    /// Before the experts.
    pub down: Linear,
    /// After the experts.
    pub up: Linear,
}

/// The shared expert, and the one-row matrix of its weight, if there is one.
#[derive(Clone)]
pub(in crate::model) struct Shared {
    pub router: Option<Linear>,
    pub ffn: Ffn,
}

/// Values that the derivative needs.
struct MoeTape<'m> {
    moe: &'m Moe,
    scores: Rows,
    /// Chosen experts by position.
    chosen: Vec<Vec<usize>>,
    /// Experts with at least one position, by number.
    experts: Vec<ExpertTape<'m>>,
    shared: Option<SharedTape<'m>>,
}

/// The tape of one expert.
struct ExpertTape<'m> {
    expert: usize,
    positions: Vec<u32>,
    gate: GateTape<'m>,
    /// The weighted quantity before its weights: the expert's output or its input.
    weighed: Rows,
    /// By routed position.
    weights: Vec<f32>,
}

struct SharedTape<'m> {
    shared: &'m Shared,
    gate: GateTape<'m>,
    output: Rows,
    /// By position.
    weights: Option<Vec<f32>>,
}

/// Routing of positions to experts.
struct Routes {
    /// By position.
    chosen: Vec<Vec<usize>>,
    /// By expert.
    positions: Vec<Vec<u32>>,
    /// `[positions, experts]`; only entries of chosen experts are meaningful.
    weights: Rows,
}

impl Moe {
    /// Routes every position to its experts.
    fn route(&self, scores: &Rows) -> Routes {
        let mut weights = scores.clone();
        let mut positions = vec![Vec::new(); scores.columns()];
        let mut chosen = Vec::with_capacity(scores.len());
        for (position, row) in weights.iter_mut().enumerate() {
            let experts = self.router.route(row);
            for expert in &experts {
                positions[*expert].push(position as u32);
            }
            chosen.push(experts);
        }
        Routes {
            chosen,
            positions,
            weights,
        }
    }

    /// Weighted output of an expert for its routed positions of `rows`.
    fn run_expert<'m>(
        &'m self,
        rows: &Rows,
        routed: Routed<'_>,
        weights: Vec<f32>,
        pass: &Pass<'_>,
    ) -> Result<(Rows, ExpertTape<'m>)> {
        let Routed {
            expert, positions, ..
        } = routed;
        let selected = rows.select(positions);
        let weighs_inputs = self.router.routing.weighs_inputs;
        let weighed = weighs_inputs.then(|| scaled(&selected, &weights));
        let x = weighed.as_ref().unwrap_or(&selected);
        let (inner, gate) = self.run_inner(routed, x, pass)?;
        let output = pass.times_expert(&self.experts.down, expert, &inner)?;
        let (output, weighed) = match weighs_inputs {
            true => (output, selected),
            false => (scaled(&output, &weights), output),
        };
        let tape = ExpertTape {
            expert,
            positions: positions.to_vec(),
            weighed,
            gate,
            weights,
        };
        Ok((output, tape))
    }

    /// Rows read by the last matrix of an expert.
    fn run_inner<'m>(
        &'m self,
        routed: Routed<'_>,
        x: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, GateTape<'m>)> {
        let Ffn { first, down, .. } = &self.experts;
        pass.input(&first.linears(), Some(routed), x)?;
        let (inner, gate) = self.experts.run_first(routed.expert, x, pass)?;
        pass.input(&[down], Some(routed), &inner)?;
        Ok((inner, gate))
    }

    /// Shows the linears of an expert the positions not routed to it.
    fn show_others(
        &self,
        expert: usize,
        routed: &[u32],
        rows: &Rows,
        pass: &Pass<'_>,
    ) -> Result<()> {
        let mut routed = routed.iter().peekable();
        let others = (0..rows.len() as u32).filter(|p| routed.next_if_eq(&p).is_none());
        let others: Vec<u32> = others.collect();
        if others.is_empty() {
            return Ok(());
        }
        let (x, others) = (rows.select(&others), self.routed(expert, &others));
        self.run_inner(others, &x, pass).map(drop)
    }

    fn routed<'p>(&self, expert: usize, positions: &'p [u32]) -> Routed<'p> {
        Routed {
            expert,
            experts: self.experts.down.experts,
            positions,
        }
    }

    /// The linears that read every position of the input.
    fn whole(&self) -> Vec<&Linear> {
        let mut all = vec![&self.scores];
        all.extend(self.latent.iter().map(|latent| &latent.down));
        if let Some(shared) = &self.shared {
            all.extend(&shared.router);
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
        let mut stage = Stage::of(vec![&self.scores]);
        let first = self.experts.first.linears();
        match &self.latent {
            Some(Latent { down, up }) => {
                stage.linears.push(down);
                stage.inner.extend(first);
                stage.inner.extend([&self.experts.down, up]);
            }
            None => {
                stage.linears.extend(first);
                stage.inner.push(&self.experts.down);
            }
        }
        if let Some(Shared { router, ffn }) = &self.shared {
            stage.linears.extend(router);
            stage.linears.extend(ffn.first.linears());
            stage.inner.push(&ffn.down);
        }
        vec![stage]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let mut stage = Stage::of(vec![&mut self.scores]);
        let first = self.experts.first.linears_mut();
        match &mut self.latent {
            Some(Latent { down, up }) => {
                stage.linears.push(down);
                stage.inner.extend(first);
                stage.inner.extend([&mut self.experts.down, up]);
            }
            None => {
                stage.linears.extend(first);
                stage.inner.push(&mut self.experts.down);
            }
        }
        if let Some(Shared { router, ffn }) = &mut self.shared {
            stage.linears.extend(router);
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
        let scores = pass.times(&self.scores, input)?;
        let routes = self.route(&scores);
        let latent = self.latent.as_ref();
        let latent_rows = latent.map(|latent| pass.times(&latent.down, input));
        let latent_rows = latent_rows.transpose()?;
        let rows = latent_rows.as_ref().unwrap_or(input);
        let mut y = Rows::zeros(rows.len(), rows.columns());
        let mut experts = Vec::new();
        let sees_all = !pass.recording && pass.tap.is_some_and(|tap| tap.sees_all_experts());
        for (expert, positions) in routes.positions.iter().enumerate() {
            if sees_all {
                self.show_others(expert, positions, rows, pass)?;
            }
            if positions.is_empty() {
                continue;
            }
            let weight =
                |p: &u32| routes.weights.numbers()[*p as usize * scores.columns() + expert];
            let weights = positions.iter().map(weight).collect();
            let routed = self.routed(expert, positions);
            let (output, tape) = self.run_expert(rows, routed, weights, pass)?;
            add_at(&mut y, positions, &output);
            if pass.recording {
                experts.push(tape);
            }
        }
        if let Some(Latent { up, .. }) = latent {
            pass.input(&[up], None, &y)?;
            y = pass.times(up, &y)?;
        }
        let mut shared_tape = None;
        if let Some(shared) = &self.shared {
            let scores = shared.router.as_ref();
            let scores = scores.map(|router| pass.times(router, input)).transpose()?;
            let weights = scores.map(|scores| {
                let scores = scores.into_numbers().into_iter();
                scores.map(sigmoid).collect::<Vec<f32>>()
            });
            let (inner, gate) = shared.ffn.run_first(0, input, pass)?;
            pass.input(&[&shared.ffn.down], None, &inner)?;
            let output = pass.times(&shared.ffn.down, &inner)?;
            let weighed = weights.as_ref().map(|weights| scaled(&output, weights));
            add(
                y.numbers_mut(),
                weighed.as_ref().unwrap_or(&output).numbers(),
            );
            shared_tape = Some(SharedTape {
                shared,
                gate,
                output,
                weights,
            });
        }
        scale(y.numbers_mut(), self.scale);
        let tape = MoeTape {
            moe: self,
            scores,
            chosen: routes.chosen,
            experts,
            shared: shared_tape,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for MoeTape<'_> {
    /// The shared expert, then the others from last to first, with the router before the first:
    /// results depend on the order of summation.
    fn backward(&self, input: &Rows, mut dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        scale(dy.numbers_mut(), self.moe.scale);
        if let Some(shared) = &self.shared {
            shared.backward(input, &dy, pass, dx)?;
        }
        let positions = input.len();
        let (mut of_mixed, mut of_latent) = (None, None);
        if let Some(Latent { up, .. }) = &self.moe.latent {
            let mut of_up = Rows::zeros(positions, up.columns);
            pass.back(up, &dy, &mut of_up)?;
            (of_mixed, of_latent) = (Some(of_up), Some(Rows::zeros(positions, up.columns)));
        }
        let of_mixed = of_mixed.unwrap_or(dy);
        let mut of_weights = Rows::zeros(self.scores.len(), self.scores.columns());
        let weighs_inputs = self.moe.router.routing.weighs_inputs;
        for (number, expert) in self.experts.iter().enumerate().rev() {
            let g = of_mixed.select(&expert.positions);
            if weighs_inputs {
                let of_inputs = self.expert_backward(expert, &g, pass)?;
                expert.of_weights(&of_inputs, &mut of_weights);
                let of_inputs = scaled(&of_inputs, &expert.weights);
                let of_rows = of_latent.as_mut().unwrap_or(&mut *dx);
                add_at(of_rows, &expert.positions, &of_inputs);
                continue;
            }
            expert.of_weights(&g, &mut of_weights);
            if number == 0 {
                self.router_backward(&mut of_weights, pass, dx)?;
            }
            let of_inputs = self.expert_backward(expert, &scaled(&g, &expert.weights), pass)?;
            let of_rows = of_latent.as_mut().unwrap_or(&mut *dx);
            add_at(of_rows, &expert.positions, &of_inputs);
        }
        if weighs_inputs {
            self.router_backward(&mut of_weights, pass, dx)?;
        }
        match (&self.moe.latent, &of_latent) {
            (Some(Latent { down, .. }), Some(g)) => pass.back(down, g, dx),
            _ => Ok(()),
        }
    }
}

impl MoeTape<'_> {
    /// From the gradients of the weights, which are overwritten by those of the scores.
    fn router_backward(&self, g: &mut Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        for ((g, scores), chosen) in g.iter_mut().zip(self.scores.iter()).zip(&self.chosen) {
            self.moe.router.derivative(scores, chosen, g);
        }
        pass.back(&self.moe.scores, g, dx)
    }

    /// From the gradient of an expert's output to that of its input.
    fn expert_backward(&self, expert: &ExpertTape<'_>, g: &Rows, pass: &Pass<'_>) -> Result<Rows> {
        let routed = Some(self.moe.routed(expert.expert, &expert.positions));
        let rows = expert.positions.len();
        let mut of_inner = Rows::zeros(rows, expert.gate.columns());
        pass.back_expert(&self.moe.experts.down, routed, g, &mut of_inner)?;
        let mut of_rows = Rows::zeros(rows, self.moe.experts.first.linears()[0].columns);
        expert.gate.back(routed, of_inner, pass, &mut of_rows)?;
        Ok(of_rows)
    }
}

impl ExpertTape<'_> {
    /// The gradients of the weights, given the gradient of the weighted quantity.
    fn of_weights(&self, g: &Rows, of_weights: &mut Rows) {
        let columns = of_weights.columns();
        let dots = dots(self.weighed.numbers(), g.numbers(), g.len());
        for (position, dot) in self.positions.iter().zip(dots) {
            of_weights.numbers_mut()[*position as usize * columns + self.expert] = dot;
        }
    }
}

impl SharedTape<'_> {
    fn backward(&self, input: &Rows, dy: &Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let mut of_output = None;
        if let (Some(router), Some(weights)) = (&self.shared.router, &self.weights) {
            let of_scores = dots(self.output.numbers(), dy.numbers(), dy.len())
                .into_iter()
                .zip(weights)
                .map(|(g, weight)| g * sigmoid_slope(*weight));
            pass.back(router, &Rows::new(of_scores.collect(), 1), dx)?;
            of_output = Some(scaled(dy, weights));
        }
        let of_output = of_output.as_ref().unwrap_or(dy);
        let mut of_inner = Rows::zeros(dy.len(), self.gate.columns());
        pass.back(&self.shared.ffn.down, of_output, &mut of_inner)?;
        self.gate.backward(input, of_inner, pass, dx)
    }
}
