//! A mixture of experts with optional shared expert.

use super::ffn::{Ffn, GateTape};
use super::front::run_front;
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
///            weighted sum -> chosen adjugate experts, added to it
///            input -> shared expert, optionally weighted
/// ```
///
/// All of it is one stage, since the routing follows from the input. A router that reads other
/// rows, the leading columns of the input, is a stage in front:
///
/// ```text
/// stage 0    leading columns -> scores, behind the other columns
/// stage 1    the other columns and their scores -> as above
/// ```
#[derive(Clone)]
pub(in crate::model) struct Moe {
    pub scores: Linear,
    pub router: Router,
    /// True if the router reads the leading columns of the input.
    pub routes_first: bool,
    pub latent: Option<Latent>,
    /// Each linear holds one matrix per expert.
    pub experts: Ffn,
    pub adjugates: Option<Box<Adjugates>>,
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

/// Smaller experts that read the output of the others.
#[derive(Clone)]
pub(in crate::model) struct Adjugates {
    pub router: Router,
    /// Each linear holds one matrix per group of experts.
    pub experts: Ffn,
    /// Factor of their output.
    pub scale: f32,
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
    experts: GroupTape<'m>,
    adjugates: Option<GroupTape<'m>>,
    shared: Option<SharedTape<'m>>,
}

/// Experts with their router.
#[derive(Clone, Copy)]
struct Group<'m> {
    router: &'m Router,
    ffn: &'m Ffn,
}

/// Values that the derivative of a group needs.
struct GroupTape<'m> {
    group: Group<'m>,
    /// Chosen experts by position.
    chosen: Vec<Vec<usize>>,
    /// Experts with at least one position, by number.
    experts: Vec<ExpertTape<'m>>,
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

impl<'m> Group<'m> {
    /// Routes every position to its experts.
    fn route(self, scores: &Rows) -> Routes {
        let mut weights = scores.clone();
        let mut positions = vec![Vec::new(); self.ffn.down.experts];
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

    /// Weighted sum of the outputs of the experts chosen by `scores`.
    fn run(self, rows: &Rows, scores: &Rows, pass: &Pass<'_>) -> Result<(Rows, GroupTape<'m>)> {
        let routes = self.route(scores);
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
        let tape = GroupTape {
            group: self,
            chosen: routes.chosen,
            experts,
        };
        Ok((y, tape))
    }

    /// Weighted output of an expert for its routed positions of `rows`.
    fn run_expert(
        self,
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
        let output = pass.times_expert(&self.ffn.down, expert, &inner)?;
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
    fn run_inner(
        self,
        routed: Routed<'_>,
        x: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, GateTape<'m>)> {
        let Ffn { first, down, .. } = self.ffn;
        pass.input(&first.linears(), Some(routed), x)?;
        let (inner, gate) = self.ffn.run_first(routed.expert, x, pass)?;
        pass.input(&[down], Some(routed), &inner)?;
        Ok((inner, gate))
    }

    /// Shows the linears of an expert the positions not routed to it.
    fn show_others(
        self,
        expert: usize,
        routed: &[u32],
        rows: &Rows,
        pass: &Pass<'_>,
    ) -> Result<()> {
        let mut routed = routed.iter().peekable();
        let mut is_routed = |position: &u32| {
            // A position may be routed to an expert several times.
            let mut times = std::iter::from_fn(|| routed.next_if_eq(&position));
            times.next().is_some() | (times.count() > 0)
        };
        let others = (0..rows.len() as u32).filter(|p| !is_routed(p));
        let others: Vec<u32> = others.collect();
        if others.is_empty() {
            return Ok(());
        }
        let (x, others) = (rows.select(&others), self.routed(expert, &others));
        self.run_inner(others, &x, pass).map(drop)
    }

    fn routed<'p>(self, expert: usize, positions: &'p [u32]) -> Routed<'p> {
        Routed {
            expert,
            experts: self.ffn.down.experts,
            positions,
        }
    }
}

impl Moe {
    fn group(&self) -> Group<'_> {
        Group {
            router: &self.router,
            ffn: &self.experts,
        }
    }

    /// The router, unless it is a stage of its own.
    fn router(&self) -> Option<&Linear> {
        (!self.routes_first).then_some(&self.scores)
    }

    /// The linears that read every position of the experts' rows.
    fn whole(&self) -> Vec<&Linear> {
        let mut all: Vec<_> = self.router().into_iter().collect();
        all.extend(self.latent.iter().map(|latent| &latent.down));
        if let Some(shared) = &self.shared {
            all.extend(&shared.router);
            all.extend(shared.ffn.first.linears());
        }
        all
    }
}

impl Adjugates {
    fn group(&self) -> Group<'_> {
        Group {
            router: &self.router,
            ffn: &self.experts,
        }
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
        let mut stage = Stage::of(self.router().into_iter().collect());
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
        if let Some(adjugates) = &self.adjugates {
            let Adjugates { experts, .. } = &**adjugates;
            stage.inner.extend(experts.first.linears());
            stage.inner.push(&experts.down);
        }
        if let Some(Shared { router, ffn }) = &self.shared {
            stage.linears.extend(router);
            stage.linears.extend(ffn.first.linears());
            stage.inner.push(&ffn.down);
        }
        match self.routes_first {
            true => vec![Stage::of(vec![&self.scores]), stage],
            false => vec![stage],
        }
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let (mut stage, mut front) = (Stage::of(Vec::new()), Vec::new());
        match self.routes_first {
            true => front.push(Stage::of(vec![&mut self.scores])),
            false => stage.linears.push(&mut self.scores),
        }
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
        if let Some(adjugates) = &mut self.adjugates {
            let Adjugates { experts, .. } = &mut **adjugates;
            stage.inner.extend(experts.first.linears_mut());
            stage.inner.push(&mut experts.down);
        }
        if let Some(Shared { router, ffn }) = &mut self.shared {
            stage.linears.extend(router);
            stage.linears.extend(ffn.first.linears_mut());
            stage.inner.push(&mut ffn.down);
        }
        front.push(stage);
        front
    }

    fn columns(&self, stage: usize) -> Option<usize> {
        let first = self.latent.as_ref().map(|latent| &latent.down);
        let of_experts = first.unwrap_or_else(|| self.experts.first.linears()[0]);
        let of_router = match self.routes_first {
            true => [Some(self.scores.columns), Some(self.count())],
            false => [Some(0), None],
        };
        let of_router = of_router.get(stage).copied().flatten();
        of_router.map(|columns| of_experts.columns + columns)
    }

    fn run_stage<'m>(
        &'m self,
        stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        if !self.routes_first {
            pass.input(&self.whole(), None, input)?;
            return self.mix(input, pass.times(&self.scores, input)?, pass);
        }
        if stage == 0 {
            return run_front(&self.scores, None, input, pass);
        }
        let [rows, scores] = self.parts(input);
        pass.input(&self.whole(), None, &rows)?;
        self.mix(&rows, scores, pass)
    }
}

impl Moe {
    /// Number of experts.
    fn count(&self) -> usize {
        self.experts.down.experts
    }

    /// The experts' rows, and the scores behind them.
    fn parts(&self, rows: &Rows) -> [Rows; 2] {
        let first = rows.columns() - self.count();
        [0..first, first..rows.columns()].map(|part| rows.columns_range(part))
    }

    /// The output for the experts' rows and their scores.
    fn mix<'m>(
        &'m self,
        input: &Rows,
        scores: Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        let latent = self.latent.as_ref();
        let latent_rows = latent.map(|latent| pass.times(&latent.down, input));
        let latent_rows = latent_rows.transpose()?;
        let rows = latent_rows.as_ref().unwrap_or(input);
        let (mut y, experts) = self.group().run(rows, &scores, pass)?;
        let mut adjugates = None;
        if let Some(more) = &self.adjugates {
            let (mut output, tape) = more.group().run(&y, &scores, pass)?;
            scale(output.numbers_mut(), more.scale);
            add(y.numbers_mut(), output.numbers());
            adjugates = Some(tape);
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
            experts,
            adjugates,
            shared: shared_tape,
        };
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for MoeTape<'_> {
    /// The shared expert, then the others from last to first, with the router before the first:
    /// results depend on the order of summation.
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        if !self.moe.routes_first {
            return self.back(input, dy, pass, dx).map(drop);
        }
        let [rows, _] = self.moe.parts(input);
        let mut of_rows = Rows::zeros(rows.len(), rows.columns());
        let of_scores = self.back(&rows, dy, pass, &mut of_rows)?;
        add(
            dx.numbers_mut(),
            Rows::beside(&[&of_rows, &of_scores]).numbers(),
        );
        Ok(())
    }
}

impl MoeTape<'_> {
    /// Derivative with respect to the experts' rows, added to `dx`, and to the scores, returned.
    fn back(&self, input: &Rows, mut dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<Rows> {
        scale(dy.numbers_mut(), self.moe.scale);
        if let Some(shared) = &self.shared {
            shared.backward(input, &dy, pass, dx)?;
        }
        let Some(Latent { down, up }) = &self.moe.latent else {
            return self.experts_backward(dy, dx, pass, &mut |of_scores, dx| {
                self.router_backward(of_scores, pass, dx)
            });
        };
        let mut of_mixed = Rows::zeros(input.len(), up.columns);
        pass.back(up, &dy, &mut of_mixed)?;
        let mut of_latent = Rows::zeros(input.len(), up.columns);
        let of_scores =
            self.experts_backward(of_mixed, &mut of_latent, pass, &mut |of_scores, _| {
                self.router_backward(of_scores, pass, dx)
            })?;
        pass.back(down, &of_latent, dx)?;
        Ok(of_scores)
    }

    /// Derivative of adjugate and other experts, from the gradient of their output to that of their
    /// rows, added to `of_rows`, and of the scores, returned; `then` gets both when the latter are
    /// complete.
    fn experts_backward(
        &self,
        mut dy: Rows,
        of_rows: &mut Rows,
        pass: &Pass<'_>,
        then: Then<'_>,
    ) -> Result<Rows> {
        let mut of_adjugates = None;
        if let (Some(tape), Some(adjugates)) = (&self.adjugates, &self.moe.adjugates) {
            let mut g = dy.clone();
            scale(g.numbers_mut(), adjugates.scale);
            let of_scores = tape.backward(&g, &mut dy, pass, &mut |of_weights, _| {
                tape.scores_backward(&self.scores, of_weights);
                Ok(())
            })?;
            of_adjugates = Some(of_scores);
        }
        self.experts
            .backward(&dy, of_rows, pass, &mut |of_weights, of_rows| {
                self.experts.scores_backward(&self.scores, of_weights);
                if let Some(of_scores) = &of_adjugates {
                    add(of_weights.numbers_mut(), of_scores.numbers());
                }
                then(of_weights, of_rows)
            })
    }

    /// Derivative of the router, unless it is a stage of its own.
    fn router_backward(&self, of_scores: &Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        match self.moe.router() {
            Some(router) => pass.back(router, of_scores, dx),
            None => Ok(()),
        }
    }
}

/// Called with the gradients of the weights, or scores, and of the rows.
type Then<'t> = &'t mut dyn FnMut(&mut Rows, &mut Rows) -> Result<()>;

impl GroupTape<'_> {
    /// From the gradient `g` of the output to that of the rows, added to `of_rows`, and that of the
    /// weights, `[positions, scores]`, returned. `then` gets both when the latter is complete.
    fn backward(
        &self,
        g: &Rows,
        of_rows: &mut Rows,
        pass: &Pass<'_>,
        then: Then<'_>,
    ) -> Result<Rows> {
        let weighs_inputs = self.group.router.routing.weighs_inputs;
        let mut of_weights = Rows::zeros(g.len(), self.scored());
        for (number, expert) in self.experts.iter().enumerate().rev() {
            let g = g.select(&expert.positions);
            if weighs_inputs {
                let of_inputs = self.expert_backward(expert, &g, pass)?;
                expert.of_weights(&of_inputs, &mut of_weights);
                let of_inputs = scaled(&of_inputs, &expert.weights);
                add_at(of_rows, &expert.positions, &of_inputs);
                continue;
            }
            expert.of_weights(&g, &mut of_weights);
            if number == 0 {
                then(&mut of_weights, of_rows)?;
            }
            let of_inputs = self.expert_backward(expert, &scaled(&g, &expert.weights), pass)?;
            add_at(of_rows, &expert.positions, &of_inputs);
        }
        if weighs_inputs {
            then(&mut of_weights, of_rows)?;
        }
        Ok(of_weights)
    }

    /// Number of scores of a position.
    fn scored(&self) -> usize {
        self.group.ffn.down.experts * self.group.router.sharing
    }

    /// Turns the gradients of the weights into those of the scores.
    fn scores_backward(&self, scores: &Rows, g: &mut Rows) {
        for ((g, scores), chosen) in g.iter_mut().zip(scores.iter()).zip(&self.chosen) {
            self.group.router.derivative(scores, chosen, g);
        }
    }

    /// From the gradient of an expert's output to that of its input.
    fn expert_backward(&self, expert: &ExpertTape<'_>, g: &Rows, pass: &Pass<'_>) -> Result<Rows> {
        let ffn = self.group.ffn;
        let routed = Some(self.group.routed(expert.expert, &expert.positions));
        let rows = expert.positions.len();
        let mut of_inner = Rows::zeros(rows, expert.gate.columns());
        pass.back_expert(&ffn.down, routed, g, &mut of_inner)?;
        let mut of_rows = Rows::zeros(rows, ffn.first.linears()[0].columns);
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
            of_weights.numbers_mut()[*position as usize * columns + self.expert] += dot;
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
