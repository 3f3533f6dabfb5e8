//! The second block of a layer: one feed-forward network, or experts of which a token sees a few.

use super::Result;
use super::hyper::Hyper;
use super::layer::{Pass, Step};
use super::rows::{activated, add, gated, scale_rows};
use super::weights::{Matrix, Weights};
use candle_core::Tensor;

/// A feed-forward network.
#[derive(Clone)]
pub(super) enum Ffn {
    /// `down(activation(gate) * up)`.
    Gated {
        gate: Matrix,
        up: Matrix,
        down: Matrix,
    },
    /// The same with the rows of gate before those of up in one matrix.
    Fused { gate_up: Matrix, down: Matrix },
    /// `down(activation(up))`.
    Plain { up: Matrix, down: Matrix },
    /// Several of the first kind, of which a token sees a few.
    Experts {
        router: Matrix,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        shared: Option<Shared>,
    },
}

/// The expert that sees every token, and the matrix of one row that weighs it.
#[derive(Clone)]
pub(super) struct Shared {
    router: Matrix,
    ffn: Box<Ffn>,
}

impl Ffn {
    pub(super) fn load(
        weights: &Weights<'_>,
        hyper: &Hyper,
        stem: &dyn Fn(&str) -> String,
    ) -> Result<Ffn> {
        let hidden = hyper.hidden;
        let rows = |name: &str| weights.dims(&stem(&format!("{name}.weight")));
        if weights.has(&stem("ffn_gate_inp.weight")) {
            let dims = rows("ffn_up_exps")
                .or_else(|| rows("ffn_gate_exps"))
                .unwrap_or_default();
            let (length, experts) = (
                dims.get(1).copied().unwrap_or(0),
                dims.get(2).copied().unwrap_or(0),
            );
            let shared = match weights.has(&stem("ffn_gate_inp_shexp.weight")) {
                true => Some(Shared {
                    router: weights.matrix(&stem("ffn_gate_inp_shexp"), &[1, hidden])?,
                    ffn: Box::new(Ffn::gated(weights, hidden, stem, "_shexp")?),
                }),
                false => None,
            };
            return Ok(Ffn::Experts {
                router: weights.matrix(&stem("ffn_gate_inp"), &[experts, hidden])?,
                gate: weights.matrix(&stem("ffn_gate_exps"), &[experts, length, hidden])?,
                up: weights.matrix(&stem("ffn_up_exps"), &[experts, length, hidden])?,
                down: weights.matrix(&stem("ffn_down_exps"), &[experts, hidden, length])?,
                shared,
            });
        }
        if weights.has(&stem("ffn_gate.weight")) {
            return Ffn::gated(weights, hidden, stem, "");
        }
        let up_rows = rows("ffn_up").and_then(|d| d.get(1).copied()).unwrap_or(0);
        let length = rows("ffn_down")
            .and_then(|d| d.first().copied())
            .unwrap_or(0);
        let (up, down) = (
            weights.matrix(&stem("ffn_up"), &[up_rows, hidden])?,
            weights.matrix(&stem("ffn_down"), &[hidden, length])?,
        );
        Ok(match up_rows == 2 * length {
            true => Ffn::Fused { gate_up: up, down },
            false => Ffn::Plain { up, down },
        })
    }

    fn gated(
        weights: &Weights<'_>,
        hidden: usize,
        stem: &dyn Fn(&str) -> String,
        suffix: &str,
    ) -> Result<Ffn> {
        let stem = |name: &str| stem(&format!("{name}{suffix}"));
        let dims = ["ffn_up", "ffn_gate"]
            .iter()
            .find_map(|name| weights.dims(&format!("{}.weight", stem(name))));
        let dims = dims.unwrap_or_default();
        let length = dims.get(1).copied().unwrap_or(0);
        Ok(Ffn::Gated {
            gate: weights.matrix(&stem("ffn_gate"), &[length, hidden])?,
            up: weights.matrix(&stem("ffn_up"), &[length, hidden])?,
            down: weights.matrix(&stem("ffn_down"), &[hidden, length])?,
        })
    }

    /// What the first half makes of the activations; of experts, which have none, the same
    /// activations.
    pub(super) fn gate(&self, x: &Tensor, hyper: &Hyper, pass: Pass<'_>) -> Result<Tensor> {
        let activation = hyper.decoder.activation;
        Ok(match self {
            Ffn::Gated { gate, up, .. } => {
                gated(&pass.times(x, gate)?, &pass.times(x, up)?, activation)?
            }
            Ffn::Fused { gate_up, .. } => {
                let both = pass.times(x, gate_up)?;
                let length = both.dim(1)? / 2;
                let (gate, up) = (both.narrow(1, 0, length)?, both.narrow(1, length, length)?);
                gated(&gate, &up, activation)?
            }
            Ffn::Plain { up, .. } => activated(&pass.times(x, up)?, activation)?,
            Ffn::Experts { .. } => x.clone(),
        })
    }

    /// How long a row of that is; `None` of experts, whose rows are as they were.
    pub(super) fn gated_columns(&self) -> Option<usize> {
        match self {
            Ffn::Gated { down, .. } | Ffn::Fused { down, .. } | Ffn::Plain { down, .. } => {
                down.weight.dims().last().copied()
            }
            Ffn::Experts { .. } => None,
        }
    }

    /// What the second half makes of that.
    pub(super) fn down(&self, x: &Tensor, hyper: &Hyper, pass: Pass<'_>) -> Result<Tensor> {
        let activation = hyper.decoder.activation;
        match self {
            Ffn::Gated { down, .. } | Ffn::Fused { down, .. } | Ffn::Plain { down, .. } => {
                pass.times(x, down)
            }
            Ffn::Experts {
                router,
                gate,
                up,
                down,
                shared,
            } => {
                let routing = Routing::new(&pass.times(x, router)?, hyper)?;
                let mut y = Tensor::zeros(x.dims(), x.dtype(), x.device())?;
                for (expert, seen) in routing.positions.iter().enumerate() {
                    if seen.is_empty() {
                        continue;
                    }
                    let positions = Tensor::from_slice(seen, seen.len(), x.device())?;
                    let x = x.index_select(&positions, 0)?;
                    let at = (expert, &**seen);
                    let (gate, up) = (
                        pass.times_expert(&x, gate, at)?,
                        pass.times_expert(&x, up, at)?,
                    );
                    let out = pass.times_expert(&gated(&gate, &up, activation)?, down, at)?;
                    let weights = routing
                        .weights
                        .narrow(1, expert, 1)?
                        .contiguous()?
                        .index_select(&positions, 0)?;
                    y = y.index_add(&positions, &scale_rows(&out, &weights)?, 0)?;
                }
                if let Some(shared) = shared {
                    let weight = candle_nn::ops::sigmoid(&pass.times(x, &shared.router)?)?;
                    let out = shared
                        .ffn
                        .down(&shared.ffn.gate(x, hyper, pass)?, hyper, pass)?;
                    y = add(&y, &scale_rows(&out, &weight)?, 1.0)?;
                }
                Ok(y)
            }
        }
    }

    /// The matrices of a step: those that meet what stands before it, and those behind them.
    pub(super) fn matrices(&mut self, step: Step) -> [Vec<&mut Matrix>; 2] {
        let (first, second) = match self {
            Ffn::Gated { gate, up, down } => (vec![gate, up], down),
            Ffn::Fused { gate_up, down } => (vec![gate_up], down),
            Ffn::Plain { up, down } => (vec![up], down),
            Ffn::Experts { .. } if step == Step::Gate => return [vec![], vec![]],
            Ffn::Experts {
                router,
                gate,
                up,
                down,
                shared,
            } => {
                let [mut first, mut second] = [vec![router, gate, up], vec![down]];
                if let Some(Shared { router, ffn }) = shared {
                    first.push(router);
                    if let Ffn::Gated { gate, up, down } = &mut **ffn {
                        first.extend([gate, up]);
                        second.push(down);
                    }
                }
                return [first, second];
            }
        };
        if step == Step::Gate {
            [first, vec![]]
        } else {
            [vec![second], vec![]]
        }
    }
}

/// Which experts see which positions.
struct Routing {
    /// By expert.
    positions: Vec<Vec<u32>>,
    /// `[positions, experts]`; only those of an expert that sees the position mean something.
    weights: Tensor,
}

impl Routing {
    /// The experts of a token are the most probable ones.
    fn new(logits: &Tensor, hyper: &Hyper) -> Result<Routing> {
        /// What the sum of weights is at least: the smallest normal number of f16, as in llama.cpp.
        const LEAST_SUM: f32 = 6.103_515_6e-5;
        let probabilities = match logits.track_op() {
            true => candle_nn::ops::softmax(logits, 1)?,
            false => candle_nn::ops::softmax_last_dim(logits)?,
        };
        let (rows, experts) = probabilities.dims2()?;
        let mut positions = vec![Vec::new(); experts];
        let mut chosen = vec![0.0f32; rows * experts];
        let mut order: Vec<usize> = Vec::new();
        for (position, row) in probabilities.to_vec2::<f32>()?.iter().enumerate() {
            order.clear();
            order.extend(0..experts);
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            order.truncate(hyper.experts_used.max(1));
            for expert in &order {
                positions[*expert].push(position as u32);
                chosen[position * experts + expert] = 1.0;
            }
        }
        let mut weights = (&probabilities * f64::from(hyper.expert_scale))?;
        if hyper.decoder.normalized_experts {
            let chosen = Tensor::from_vec(chosen, (rows, experts), logits.device())?;
            let sums = (probabilities * chosen)?.sum_keepdim(1)?;
            weights = weights.broadcast_div(&sums.maximum(LEAST_SUM)?)?;
        }
        Ok(Routing { positions, weights })
    }
}
