//! Grouped-query attention.

use super::front::{beside, run_front};
use super::{BoxedTape, Mixer, Stage, StageTape, run_linear};
use crate::model::Result;
use crate::model::linear::{Linear, Norm, Pass};
use crate::model::ops::activation::{activate, activate_derivative};
use crate::model::ops::attention::{Heads, Scores};
use crate::model::ops::elementwise::{
    add, clamp, clamp_derivative, dots, scale_groups, sigmoid, sigmoid_slope,
};
use crate::model::ops::rope::{Angles, Direction};
use crate::model::rows::Rows;
use quantier_arch::hyper::Temperature;
use quantier_arch::{Activation, Rope};
use std::sync::Arc;

/// ```text
/// stage 0    input -> queries, keys, values -> clamp, norms, rotation -> heads' outputs -> gate, norm
/// stage 1    -> output matrix
/// ```
///
/// Keys and values that later layers read precede the output columns; their readers find them after
/// the input columns.
#[derive(Clone)]
pub(in crate::model) struct Attention {
    pub projections: QueryKeyValue,
    pub keys_values: KeysValues,
    pub query_norm: Option<Norm>,
    pub key_norm: Option<Norm>,
    pub value_norm: Option<Norm>,
    /// True if both norms follow the rotation.
    pub norms_rotated: bool,
    /// Gate of the heads' outputs.
    pub gate: Gate,
    /// Activation of the gate.
    pub gate_activation: Activation,
    /// Norm before the output matrix.
    pub output_norm: Option<Norm>,
    pub output: Linear,
    pub heads: usize,
    pub kv_heads: usize,
    /// Length of a query or key head.
    pub key_length: usize,
    /// Queries, keys and values are clamped to plus and minus this bound.
    pub clamp: Option<f32>,
    /// Factor of queries by position.
    pub temperature: Option<Temperature>,
    pub rope: Rope,
    /// None in layers without rotation.
    pub angles: Option<Arc<Angles>>,
    pub scores: Scores,
}

/// Source and readers of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model) enum KeysValues {
    /// The layer's own, for itself.
    Own,
    /// The layer's own, for later layers too.
    Kept,
    /// An earlier layer's.
    Shared,
}

/// The matrices of attention.
#[derive(Clone)]
pub(in crate::model) enum QueryKeyValue {
    /// Of queries, keys and values.
    All(Projections),
    /// Of queries and keys; keys before their norm serve as values.
    KeysAsValues(Box<[Linear; 2]>),
    /// Of queries.
    Queries(Linear),
}

impl QueryKeyValue {
    fn linears(&self) -> Vec<&Linear> {
        match self {
            QueryKeyValue::All(all) => all.linears(),
            QueryKeyValue::KeysAsValues(both) => both.iter().collect(),
            QueryKeyValue::Queries(query) => vec![query],
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            QueryKeyValue::All(all) => all.linears_mut(),
            QueryKeyValue::KeysAsValues(both) => both.iter_mut().collect(),
            QueryKeyValue::Queries(query) => vec![query],
        }
    }
}

/// The query, key and value matrices.
#[derive(Clone)]
pub(in crate::model) enum Projections {
    /// Separate, in this order.
    Apart(Box<[Linear; 3]>),
    /// One matrix: rows of queries, then of keys, then of values.
    Fused(Linear),
}

impl Projections {
    pub(super) fn linears(&self) -> Vec<&Linear> {
        match self {
            Projections::Apart(all) => all.iter().collect(),
            Projections::Fused(all) => vec![all],
        }
    }

    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Projections::Apart(all) => all.iter_mut().collect(),
            Projections::Fused(all) => vec![all],
        }
    }
}

/// The gate of the heads' outputs; its activation multiplies them.
#[derive(Clone)]
pub(in crate::model) enum Gate {
    /// No gate.
    None,
    /// Each head's query rows are followed by as many gate rows.
    Queries,
    /// A separate matrix with a row per head or per element.
    Own(Linear),
}

/// Values that the derivative of the first stage needs.
struct HeadsTape<'m> {
    attention: &'m Attention,
    /// Queries, keys and values before the clamp, if there is one.
    projected: Option<[Rows; 3]>,
    /// Queries and keys before their norms, if there are any.
    unnormalized: [Option<Rows>; 2],
    /// Values before their norm, if there is one.
    unnormalized_values: Option<Rows>,
    heads: Heads,
    gated: Option<Gated>,
    /// The heads' outputs before the last norm, if there is one.
    unnormalized_output: Option<Rows>,
}

/// The gate before and after its activation, and the outputs that it multiplies.
pub(super) struct Gated {
    activation: Activation,
    gate: Rows,
    factors: Rows,
    outputs: Rows,
}

/// Number of heads and norm of queries or keys.
struct HeadsPlace<'a> {
    heads: usize,
    norm: Option<&'a Norm>,
    recording: bool,
}

impl Attention {
    /// Queries, keys and values of an input; the latter two are empty if they are an earlier layer's.
    fn project(&self, input: &Rows, pass: &Pass<'_>) -> Result<[Rows; 3]> {
        let projections = match &self.projections {
            QueryKeyValue::All(projections) => projections,
            QueryKeyValue::KeysAsValues(both) => {
                let [query, key] = &**both;
                let keys = pass.times(key, input)?;
                return Ok([pass.times(query, input)?, keys.clone(), keys]);
            }
            QueryKeyValue::Queries(query) => {
                let none = Rows::default();
                return Ok([pass.times(query, input)?, none.clone(), none]);
            }
        };
        match projections {
            Projections::Apart(all) => {
                let [query, key, value] = &**all;
                Ok([
                    pass.times(query, input)?,
                    pass.times(key, input)?,
                    pass.times(value, input)?,
                ])
            }
            Projections::Fused(all) => {
                let all = pass.times(all, input)?;
                let (queries, keys) = (
                    self.heads * self.key_length,
                    self.kv_heads * self.key_length,
                );
                Ok([
                    all.columns_range(0..queries),
                    all.columns_range(queries..queries + keys),
                    all.columns_range(queries + keys..all.columns()),
                ])
            }
        }
    }

    /// Queries or keys, from `[positions, heads * length]` to `[heads, positions, length]`,
    /// normalized and rotated; `tape` receives the input of the norm.
    fn placed(&self, mut x: Rows, place: &HeadsPlace<'_>, tape: &mut Option<Rows>) -> Rows {
        let mut normalize = |x: &mut Rows| {
            if let Some(norm) = place.norm {
                *tape = place.recording.then(|| x.clone());
                norm.apply(x.numbers_mut());
            }
        };
        if !self.norms_rotated {
            normalize(&mut x);
        }
        let mut x = by_head(&x, place.heads);
        self.rotate(&mut x, place.heads, Direction::Forward);
        if self.norms_rotated {
            normalize(&mut x);
        }
        x
    }

    /// Derivative of [`Attention::placed`].
    fn unplaced(
        &self,
        mut g: Rows,
        place: &HeadsPlace<'_>,
        tape: &Option<Rows>,
        pass: &Pass<'_>,
    ) -> Rows {
        let derive = |g: &mut Rows| {
            if let (Some(norm), Some(before)) = (place.norm, tape) {
                pass.back_norm(norm, before.numbers(), g.numbers_mut());
            }
        };
        if self.norms_rotated {
            derive(&mut g);
        }
        self.rotate(&mut g, place.heads, Direction::Back);
        let mut g = by_position(&g, place.heads);
        if !self.norms_rotated {
            derive(&mut g);
        }
        g
    }

    /// Rotates rows `[heads, positions, length]`.
    fn rotate(&self, x: &mut Rows, heads: usize, direction: Direction) {
        if let Some(angles) = &self.angles {
            let positions = x.len() / heads;
            angles.rotate(x, positions, self.rope, direction);
        }
    }

    /// Row length of the input that linears read.
    fn hidden(&self) -> usize {
        self.first().first().map_or(0, |linear| linear.columns)
    }

    /// Row lengths of keys and of values that are kept or shared.
    fn carried(&self) -> [usize; 2] {
        let value_length = self.output.columns / self.heads;
        match self.keys_values {
            KeysValues::Own => [0, 0],
            KeysValues::Kept | KeysValues::Shared => [
                self.kv_heads * self.key_length,
                self.kv_heads * value_length,
            ],
        }
    }

    /// Heads and norms of queries, then of keys.
    fn places(&self, recording: bool) -> [HeadsPlace<'_>; 2] {
        [
            (self.heads, &self.query_norm),
            (self.kv_heads, &self.key_norm),
        ]
        .map(|(heads, norm)| HeadsPlace {
            heads,
            norm: norm.as_ref(),
            recording,
        })
    }

    /// Linears of the first stage.
    fn first(&self) -> Vec<&Linear> {
        let mut linears = self.projections.linears();
        if let Gate::Own(gate) = &self.gate {
            linears.push(gate);
        }
        linears
    }

    /// Splits `[positions, heads * 2 * key_length]` into queries and gates.
    fn without_gates(&self, both: &Rows) -> [Rows; 2] {
        let part = |first: usize| {
            let pairs = both.numbers().chunks_exact(2 * self.key_length);
            let parts = pairs.flat_map(|pair| &pair[first * self.key_length..][..self.key_length]);
            Rows::new(parts.copied().collect(), both.columns() / 2)
        };
        [part(0), part(1)]
    }

    /// Inverse of [`Attention::without_gates`].
    fn with_gates(&self, queries: &Rows, gates: &Rows) -> Rows {
        let queries_of = queries.numbers().chunks_exact(self.key_length);
        let pairs = queries_of.zip(gates.numbers().chunks_exact(self.key_length));
        let both = pairs
            .flat_map(|(query, gate)| query.iter().chain(gate))
            .copied();
        Rows::new(both.collect(), 2 * queries.columns())
    }
}

/// Multiplies queries or their gradients, `[heads, positions, length]`, by the factors of their
/// positions.
pub(super) fn temper(query: &mut Rows, heads: usize, temperature: Option<Temperature>) {
    let Some(temperature) = temperature else {
        return;
    };
    let positions = query.len() / heads;
    for (row, query) in query.iter_mut().enumerate() {
        let factor = temperature.factor(row % positions);
        query.iter_mut().for_each(|x| *x *= factor);
    }
}

impl Gated {
    /// Multiplies the heads' outputs `y` by the activated `gate`.
    pub(super) fn new(y: &mut Rows, gate: Rows, activation: Activation) -> Gated {
        let outputs = y.clone();
        let mut factors = gate.clone();
        Gated::apply(y, &mut factors, activation);
        Gated {
            activation,
            gate,
            factors,
            outputs,
        }
    }

    /// [`Gated::new`] without a tape; `gate` is replaced by its activation.
    fn apply(y: &mut Rows, gate: &mut Rows, activation: Activation) {
        match activation {
            Activation::Sigmoid => {
                let places = gate.numbers_mut().iter_mut();
                places.for_each(|x| *x = sigmoid(*x));
            }
            other => activate(gate.numbers_mut(), other),
        }
        scale_groups(y.numbers_mut(), gate.numbers());
    }

    /// Turns the gradient `g` of the gated outputs into that of the outputs; returns that of the
    /// gate.
    pub(super) fn derivative(&self, g: &mut Rows) -> Rows {
        let factors = self.factors.numbers();
        let mut of_gate = dots(self.outputs.numbers(), g.numbers(), factors.len());
        match self.activation {
            Activation::Sigmoid => {
                let places = of_gate.iter_mut().zip(factors);
                places.for_each(|(g, factor)| *g *= sigmoid_slope(*factor));
            }
            other => {
                let mut slopes = self.gate.numbers().to_vec();
                activate_derivative(&mut slopes, &of_gate, other);
                of_gate = slopes;
            }
        }
        scale_groups(g.numbers_mut(), factors);
        Rows::new(of_gate, self.factors.columns())
    }
}

impl Mixer for Attention {
    fn stages(&self) -> Vec<Stage<&Linear>> {
        vec![Stage::of(self.first()), Stage::of(vec![&self.output])]
    }

    fn stages_mut(&mut self) -> Vec<Stage<&mut Linear>> {
        let mut first = self.projections.linears_mut();
        if let Gate::Own(gate) = &mut self.gate {
            first.push(gate);
        }
        vec![Stage::of(first), Stage::of(vec![&mut self.output])]
    }

    fn columns(&self, stage: usize) -> Option<usize> {
        let carried: usize = self.carried().iter().sum();
        Some(match (stage, self.keys_values) {
            (0, KeysValues::Shared) => self.hidden() + carried,
            (0, _) => self.hidden(),
            (_, KeysValues::Kept) => self.output.columns + carried,
            _ => self.output.columns,
        })
    }

    fn run_stage<'m>(
        &'m self,
        stage: usize,
        input: &Rows,
        pass: &Pass<'_>,
    ) -> Result<(Rows, BoxedTape<'m>)> {
        match (stage, self.keys_values) {
            (0, _) => {}
            (_, KeysValues::Kept) => return run_front(&self.output, None, input, pass),
            _ => return run_linear(&self.output, input, pass),
        }
        let mut shared = None;
        let mut leading = None;
        if self.keys_values == KeysValues::Shared {
            let (hidden, [keys, values]) = (self.hidden(), self.carried());
            let key = input.columns_range(hidden..hidden + keys);
            let value = input.columns_range(hidden + keys..hidden + keys + values);
            shared = Some((by_head(&key, self.kv_heads), value));
            leading = Some(input.columns_range(0..hidden));
        }
        let input = leading.as_ref().unwrap_or(input);
        pass.input(&self.first(), None, input)?;
        let mut all = self.project(input, pass)?;
        let gate = match &self.gate {
            Gate::None => None,
            Gate::Queries => {
                let [queries, gate] = self.without_gates(&all[0]);
                all[0] = queries;
                Some(gate)
            }
            Gate::Own(gate) => Some(pass.times(gate, input)?),
        };
        let projected = self.clamp.filter(|_| pass.recording).map(|_| all.clone());
        if let Some(limit) = self.clamp {
            all.iter_mut().for_each(|x| clamp(x.numbers_mut(), limit));
        }
        let [query, key, mut value] = all;
        let mut unnormalized = [None, None];
        let mut unnormalized_values = None;
        let [of_query, of_key] = &self.places(pass.recording);
        let mut query = self.placed(query, of_query, &mut unnormalized[0]);
        temper(&mut query, self.heads, self.temperature);
        let (key, value) = match shared {
            Some(shared) => shared,
            None => {
                if let Some(norm) = &self.value_norm {
                    unnormalized_values = pass.recording.then(|| value.clone());
                    norm.apply(value.numbers_mut());
                }
                (self.placed(key, of_key, &mut unnormalized[1]), value)
            }
        };
        let heads = Heads {
            heads: self.heads,
            kv_heads: self.kv_heads,
            query,
            key,
            value,
            unseen: None,
        };
        let mut y = self.scores.attend(&heads, pass.split);
        let kept = (self.keys_values == KeysValues::Kept)
            .then(|| [by_position(&heads.key, self.kv_heads), heads.value.clone()]);
        let mut tape = HeadsTape {
            attention: self,
            projected,
            unnormalized,
            unnormalized_values,
            heads,
            gated: None,
            unnormalized_output: None,
        };
        match gate {
            Some(gate) if pass.recording => {
                tape.gated = Some(Gated::new(&mut y, gate, self.gate_activation));
            }
            Some(mut gate) => Gated::apply(&mut y, &mut gate, self.gate_activation),
            None => {}
        }
        if let Some(norm) = &self.output_norm {
            tape.unnormalized_output = pass.recording.then(|| y.clone());
            norm.apply(y.numbers_mut());
        }
        if let Some([key, value]) = &kept {
            y = beside(&[&y, key, value]);
        }
        Ok((y, Box::new(tape)))
    }
}

impl StageTape for HeadsTape<'_> {
    fn backward(&self, input: &Rows, dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<()> {
        let attention = self.attention;
        if attention.keys_values != KeysValues::Shared {
            return self.back(dy, pass, dx).map(drop);
        }
        let hidden = attention.hidden();
        let mut of_x = Rows::zeros(input.len(), hidden);
        let [of_keys, of_values] = self.back(dy, pass, &mut of_x)?;
        dx.add_columns(0, &of_x);
        dx.add_columns(hidden, &of_keys);
        dx.add_columns(hidden + of_keys.columns(), &of_values);
        Ok(())
    }
}

impl HeadsTape<'_> {
    /// Adds the gradient of the input of the linears to `dx`. Returns the gradients of keys and values
    /// of an earlier layer: `[positions, kv_heads * length]`.
    fn back(&self, mut dy: Rows, pass: &Pass<'_>, dx: &mut Rows) -> Result<[Rows; 2]> {
        let attention = self.attention;
        let (outputs, [keys, values]) = (attention.output.columns, attention.carried());
        let mut of_kept = None;
        if attention.keys_values == KeysValues::Kept {
            let of_keys = dy.columns_range(outputs..outputs + keys);
            let of_values = dy.columns_range(outputs + keys..outputs + keys + values);
            of_kept = Some([by_head(&of_keys, attention.kv_heads), of_values]);
            dy = dy.columns_range(0..outputs);
        }
        if let (Some(norm), Some(before)) = (&attention.output_norm, &self.unnormalized_output) {
            pass.back_norm(norm, before.numbers(), dy.numbers_mut());
        }
        let of_gates = self.gated.as_ref().map(|gated| gated.derivative(&mut dy));
        if let (Gate::Own(gate), Some(of_gates)) = (&attention.gate, &of_gates) {
            pass.back(gate, of_gates, dx)?;
        }
        let mut gradients = attention.scores.derivative(&self.heads, &dy);
        temper(&mut gradients.query, attention.heads, attention.temperature);
        if let Some([of_keys, of_values]) = &of_kept {
            add(gradients.key.numbers_mut(), of_keys.numbers());
            add(gradients.value.numbers_mut(), of_values.numbers());
        }
        if let (Some(norm), Some(before)) = (&attention.value_norm, &self.unnormalized_values) {
            pass.back_norm(norm, before.numbers(), gradients.value.numbers_mut());
        }
        let [of_query, of_key] = &attention.places(true);
        let [queries, keys] = &self.unnormalized;
        let of_queries = attention.unplaced(gradients.query, of_query, queries, pass);
        let none = [Rows::default(), Rows::default()];
        let (of_shared, [of_keys, of_values]) = match attention.keys_values {
            KeysValues::Shared => {
                let of_keys = by_position(&gradients.key, attention.kv_heads);
                ([of_keys, gradients.value], none)
            }
            KeysValues::Own | KeysValues::Kept => {
                let of_keys = attention.unplaced(gradients.key, of_key, keys, pass);
                (none, [of_keys, gradients.value])
            }
        };
        let mut all = [of_queries, of_keys, of_values];
        if let (Some(limit), Some(projected)) = (attention.clamp, &self.projected) {
            for (g, x) in all.iter_mut().zip(projected) {
                clamp_derivative(x.numbers(), g.numbers_mut(), limit);
            }
        }
        if let (Gate::Queries, Some(of_gates)) = (&attention.gate, &of_gates) {
            all[0] = attention.with_gates(&all[0], of_gates);
        }
        let [of_queries, mut of_keys, of_values] = all;
        match &attention.projections {
            // The last one first: results depend on the order of summation.
            QueryKeyValue::All(Projections::Apart(linears)) => {
                let gradients = [&of_queries, &of_keys, &of_values];
                let mut both = linears.iter().zip(gradients).rev();
                both.try_for_each(|(linear, g)| pass.back(linear, g, dx))?;
            }
            QueryKeyValue::All(Projections::Fused(linear)) => {
                let of_all = Rows::beside(&[&of_queries, &of_keys, &of_values]);
                pass.back(linear, &of_all, dx)?;
            }
            QueryKeyValue::KeysAsValues(both) => {
                let [query, key] = &**both;
                add(of_keys.numbers_mut(), of_values.numbers());
                pass.back(key, &of_keys, dx)?;
                pass.back(query, &of_queries, dx)?;
            }
            QueryKeyValue::Queries(query) => pass.back(query, &of_queries, dx)?,
        }
        Ok(of_shared)
    }
}

/// Transposes `[positions, heads * length]` to `[heads, positions, length]`.
pub(super) fn by_head(x: &Rows, heads: usize) -> Rows {
    let length = x.columns() / heads;
    let mut out = Vec::with_capacity(x.numbers().len());
    for head in 0..heads {
        for row in x.iter() {
            out.extend_from_slice(&row[head * length..][..length]);
        }
    }
    Rows::new(out, length)
}

/// Inverse of [`by_head`].
pub(super) fn by_position(x: &Rows, heads: usize) -> Rows {
    let (positions, length) = (x.len() / heads, x.columns());
    let mut out = Rows::zeros(positions, heads * length);
    for (position, row) in out.iter_mut().enumerate() {
        for (head, place) in row.chunks_exact_mut(length).enumerate() {
            let from = (head * positions + position) * length;
            place.copy_from_slice(&x.numbers()[from..][..length]);
        }
    }
    out
}
