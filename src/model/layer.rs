//! One layer of a decoder: its matrices in f32, and what it makes of the activations of one chunk.

use super::attention::Scores;
use super::backward::Probes;
use super::derived;
use super::hyper::{Hyper, Rotation};
use super::product::{numbers, product};
use super::rows::{activated, add, add_to_rows, gated, layer_norm, rms_norm, scale_rows};
use super::weights::{Matrix, Weights};
use super::{Error, Observer, Result, Seen};
use crate::arch::{Norm, Rope};
use crate::progress::Progress;
use candle_core::{D, Tensor};

/// A layer, widened.
pub(super) struct Layer<'a> {
    hyper: &'a Hyper,
    number: usize,
    attention_norm: Option<Normalizer>,
    projections: Projections,
    query_norm: Option<Normalizer>,
    key_norm: Option<Normalizer>,
    output: Matrix,
    attention_post_norm: Option<Normalizer>,
    ffn_norm: Option<Normalizer>,
    ffn: Ffn,
    ffn_post_norm: Option<Normalizer>,
    angles: Option<Angles>,
}

/// Cosines and sines, `[positions, pairs]`.
#[derive(Clone)]
pub(super) struct Angles {
    cosines: Tensor,
    sines: Tensor,
}

/// A norm; without weights if the model has none.
pub(super) struct Normalizer {
    kind: Norm,
    epsilon: f32,
    weight: Tensor,
    bias: Tensor,
}

enum Projections {
    Apart { query: Matrix, key: Matrix, value: Matrix },
    Fused(Matrix),
}

enum Ffn {
    /// `down(activation(gate) * up)`.
    Gated { gate: Matrix, up: Matrix, down: Matrix },
    /// The same with the rows of gate before those of up in one matrix.
    Fused { gate_up: Matrix, down: Matrix },
    /// `down(activation(up))`.
    Plain { up: Matrix, down: Matrix },
    /// Several of the first kind, of which a token sees a few.
    Experts { router: Matrix, gate: Matrix, up: Matrix, down: Matrix, shared: Option<Shared> },
}

/// The expert that sees every token, and the matrix of one row that weighs it.
struct Shared {
    router: Matrix,
    ffn: Box<Ffn>,
}

/// Which chunk goes through, who watches, how many threads one product may take, and where gradients are caught.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub chunk: usize,
    pub observer: Option<&'a dyn Observer>,
    pub split: usize,
    pub probes: Option<&'a Probes>,
    /// Who may ask to stop: heard before each product.
    pub progress: &'a dyn Progress,
}

impl Pass<'_> {
    /// The product of activations `[rows, columns]` with a matrix, which is observed.
    pub(super) fn times(&self, x: &Tensor, matrix: &Matrix) -> Result<Tensor> {
        self.see(x, &matrix.name, [0, 1])?;
        let y = product(x, &matrix.weight, self.split)?;
        let y = self.probes.map_or_else(|| Ok(y.clone()), |probes| probes.catch(x, matrix, None, &y))?;
        Ok(match &matrix.bias {
            Some(bias) => add_to_rows(&y, bias)?,
            None => y,
        })
    }

    /// The product with one expert's matrix, of the activations of these positions.
    fn times_expert(&self, x: &Tensor, matrix: &Matrix, (expert, positions): (usize, &[u32])) -> Result<Tensor> {
        self.see(x, &matrix.name, [expert, matrix.matrices()])?;
        let y = product(x, &matrix.weight.get(expert)?, self.split)?;
        match self.probes {
            Some(probes) => probes.catch(x, matrix, Some((expert, positions)), &y),
            None => Ok(y),
        }
    }

    /// Shows what matrix `matrix` of `matrices` of a tensor is about to meet.
    pub(super) fn see(&self, x: &Tensor, name: &str, [matrix, matrices]: [usize; 2]) -> Result<()> {
        if self.progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let Some(observer) = self.observer else { return Ok(()) };
        let columns = x.dim(D::Minus1)?;
        Ok(numbers(x, |rows| {
            observer.input(Seen { chunk: self.chunk, name, matrix, matrices, rows, columns, input: x.id() });
            Ok(())
        })?)
    }
}

impl Normalizer {
    fn load(weights: &Weights<'_>, hyper: &Hyper, stem: &str, len: usize) -> Result<Option<Normalizer>> {
        let weight = weights.optional(&format!("{stem}.weight"), &[len])?;
        let bias = weights.optional(&format!("{stem}.bias"), &[len])?;
        let kind = hyper.decoder.norm;
        if weight.is_none() && kind == Norm::Rms {
            return Ok(None);
        }
        let device = weights.device();
        let weight = weight.map_or_else(|| Tensor::ones(len, candle_core::DType::F32, device), Ok)?;
        let bias = bias.map_or_else(|| weight.zeros_like(), Ok)?;
        Ok(Some(Normalizer { kind, epsilon: hyper.epsilon, weight, bias }))
    }

    /// The norm in front of the output matrix.
    pub(super) fn output(weights: &Weights<'_>, hyper: &Hyper) -> Result<Option<Normalizer>> {
        Normalizer::load(weights, hyper, "output_norm", hyper.hidden)
    }

    /// A norm of heads, which has weights for one head or for all of them. It has no mean to take off.
    fn of_heads(
        weights: &Weights<'_>,
        hyper: &Hyper,
        stem: &str,
        len: usize,
        heads: usize,
    ) -> Result<Option<Normalizer>> {
        let Some(held) = weights.len(&format!("{stem}.weight")) else { return Ok(None) };
        let len = if held == len * heads { len * heads } else { len };
        Normalizer::load(weights, hyper, stem, len)
    }

    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self.kind {
            Norm::Rms => rms_norm(x, &self.weight, self.epsilon)?,
            Norm::Layer => layer_norm(x, &self.weight, &self.bias, self.epsilon)?,
        })
    }

    fn len(&self) -> usize {
        self.weight.elem_count()
    }
}

fn normalized(norm: &Option<Normalizer>, x: &Tensor) -> Result<Tensor> {
    norm.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.apply(x))
}

impl Angles {
    pub(super) fn new(
        rotation: &Rotation,
        positions: usize,
        factors: Option<&[f32]>,
        like: &Weights<'_>,
    ) -> Result<Angles> {
        let (cosines, sines) = rotation.table(positions, factors);
        let shape = (positions, rotation.length / 2);
        let tensor = |numbers| Tensor::from_vec(numbers, shape, like.device());
        Ok(Angles { cosines: tensor(cosines)?, sines: tensor(sines)? })
    }

    /// Rotates heads `[heads, positions, length]`, as far as the angles go.
    fn rotate(&self, x: &Tensor, rope: Rope) -> Result<Tensor> {
        let length = x.dim(D::Minus1)?;
        let rotated = self.cosines.dim(1)? * 2;
        let first = x.narrow(D::Minus1, 0, rotated)?.contiguous()?;
        let turned = match first.track_op() {
            false => turned(&first, &self.cosines, &self.sines, rope)?,
            true if first.device().is_cpu() => {
                let y = turned(&first.detach(), &self.cosines, &self.sines, rope)?;
                // Backwards is the other way round.
                let (cosines, sines) = (self.cosines.clone(), self.sines.neg()?);
                derived::of_one(&first, &y, move |_, g| turned(&g.contiguous()?, &cosines, &sines, rope))?
            }
            true => {
                use candle_nn::rotary_emb::{rope_i_slow, rope_slow};
                let first = first.unsqueeze(0)?;
                match rope {
                    Rope::Pairs => rope_i_slow(&first, &self.cosines, &self.sines)?,
                    Rope::Halves => rope_slow(&first, &self.cosines, &self.sines)?,
                    Rope::None => first,
                }
                .squeeze(0)?
            }
        };
        match rotated == length {
            true => Ok(turned),
            false => Ok(Tensor::cat(&[&turned, &x.narrow(D::Minus1, rotated, length - rotated)?], D::Minus1)?),
        }
    }
}

/// `[heads, positions, length]`, rotated.
fn turned(x: &Tensor, cosines: &Tensor, sines: &Tensor, rope: Rope) -> candle_core::Result<Tensor> {
    let x = x.unsqueeze(0)?;
    match rope {
        Rope::Pairs => candle_nn::rotary_emb::rope_i(&x, cosines, sines)?,
        Rope::Halves => candle_nn::rotary_emb::rope(&x, cosines, sines)?,
        Rope::None => x,
    }
    .squeeze(0)
}

impl<'a> Layer<'a> {
    /// Widens a layer. `angles` are those of the whole context, `windowed` those of layers with a window.
    pub(super) fn load(
        weights: &Weights<'_>,
        hyper: &'a Hyper,
        number: usize,
        angles: &Option<Angles>,
        windowed: &Option<Angles>,
    ) -> Result<Layer<'a>> {
        let stem = |name: &str| format!("blk.{number}.{name}");
        let norm = |name: &str| Normalizer::load(weights, hyper, &stem(name), hyper.hidden);
        // A decoder with norms behind its blocks only has none in front; a norm without weights is always there.
        let (hidden, heads, kv_heads) = (hyper.hidden, hyper.heads, hyper.kv_heads);
        let (queries, keys) = (heads * hyper.key_length, kv_heads * hyper.key_length);
        let values = kv_heads * hyper.value_length;
        let projections = match weights.has(&stem("attn_qkv.weight")) {
            true => Projections::Fused(weights.matrix(&stem("attn_qkv"), &[queries + keys + values, hidden])?),
            false => Projections::Apart {
                query: weights.matrix(&stem("attn_q"), &[queries, hidden])?,
                key: weights.matrix(&stem("attn_k"), &[keys, hidden])?,
                value: weights.matrix(&stem("attn_v"), &[values, hidden])?,
            },
        };
        let post = |name: &str| match weights.has(&stem(&format!("{name}.weight"))) {
            true => norm(name),
            false => Ok(None),
        };
        Ok(Layer {
            hyper,
            number,
            attention_norm: norm("attn_norm")?,
            projections,
            query_norm: Normalizer::of_heads(weights, hyper, &stem("attn_q_norm"), hyper.key_length, heads)?,
            key_norm: Normalizer::of_heads(weights, hyper, &stem("attn_k_norm"), hyper.key_length, kv_heads)?,
            output: weights.matrix(&stem("attn_output"), &[hidden, heads * hyper.value_length])?,
            attention_post_norm: post("post_attention_norm")?,
            ffn_norm: norm("ffn_norm")?,
            ffn: Ffn::load(weights, hyper, &stem)?,
            ffn_post_norm: post("post_ffw_norm")?,
            angles: match (hyper.rotates(number), hyper.window_of(number)) {
                (false, _) => None,
                (true, None) => angles.clone(),
                (true, Some(_)) => windowed.clone(),
            },
        })
    }

    /// What the layer makes of the activations `[positions, hidden]` of a chunk.
    pub(super) fn forward(&self, x: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        let scale = self.hyper.residual_scale;
        let attended = self.attention(&normalized(&self.attention_norm, x)?, pass)?;
        let x = add(x, &normalized(&self.attention_post_norm, &attended)?, scale)?;
        let y = self.ffn.forward(&normalized(&self.ffn_norm, &x)?, self.hyper, pass)?;
        Ok(add(&x, &normalized(&self.ffn_post_norm, &y)?, scale)?)
    }

    fn attention(&self, x: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        let hyper = self.hyper;
        let (heads, kv_heads, length) = (hyper.heads, hyper.kv_heads, hyper.key_length);
        let (query, key, value) = match &self.projections {
            Projections::Apart { query, key, value } => {
                (pass.times(x, query)?, pass.times(x, key)?, pass.times(x, value)?)
            }
            Projections::Fused(all) => {
                let all = pass.times(x, all)?;
                let (queries, keys) = (heads * length, kv_heads * length);
                let values = kv_heads * hyper.value_length;
                (all.narrow(1, 0, queries)?, all.narrow(1, queries, keys)?, all.narrow(1, queries + keys, values)?)
            }
        };
        let clamp = |x: Tensor| hyper.clamp.map_or_else(|| Ok(x.clone()), |c| x.clamp(-c, c));
        let (query, key, value) = (clamp(query)?, clamp(key)?, clamp(value)?);
        let query = self.heads(&query, heads, &self.query_norm)?;
        let key = self.heads(&key, kv_heads, &self.key_norm)?;
        let scores = Scores { scale: hyper.score_scale, cap: hyper.score_cap, window: hyper.window_of(self.number) };
        pass.times(&scores.attend(&query, &key, &value, pass.split)?, &self.output)
    }

    /// `[positions, heads * length]` as normalized and rotated `[heads, positions, length]`.
    fn heads(&self, x: &Tensor, heads: usize, norm: &Option<Normalizer>) -> Result<Tensor> {
        let (positions, width) = x.dims2()?;
        let length = width / heads;
        let over_all = norm.as_ref().is_some_and(|norm| norm.len() == width && heads > 1);
        let x = if over_all { normalized(norm, x)? } else { x.clone() };
        let mut x = x.reshape((positions, heads, length))?;
        if !over_all {
            x = normalized(norm, &x)?;
        }
        let x = x.transpose(0, 1)?.contiguous()?;
        match &self.angles {
            Some(angles) => angles.rotate(&x, self.hyper.decoder.rope),
            None => Ok(x),
        }
    }
}

impl Ffn {
    fn load(weights: &Weights<'_>, hyper: &Hyper, stem: &dyn Fn(&str) -> String) -> Result<Ffn> {
        let hidden = hyper.hidden;
        let rows = |name: &str| weights.dims(&stem(&format!("{name}.weight")));
        if weights.has(&stem("ffn_gate_inp.weight")) {
            let dims = rows("ffn_up_exps").or_else(|| rows("ffn_gate_exps")).unwrap_or_default();
            let (length, experts) = (dims.get(1).copied().unwrap_or(0), dims.get(2).copied().unwrap_or(0));
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
        let length = rows("ffn_down").and_then(|d| d.first().copied()).unwrap_or(0);
        let (up, down) = (
            weights.matrix(&stem("ffn_up"), &[up_rows, hidden])?,
            weights.matrix(&stem("ffn_down"), &[hidden, length])?,
        );
        Ok(match up_rows == 2 * length {
            true => Ffn::Fused { gate_up: up, down },
            false => Ffn::Plain { up, down },
        })
    }

    fn gated(weights: &Weights<'_>, hidden: usize, stem: &dyn Fn(&str) -> String, suffix: &str) -> Result<Ffn> {
        let stem = |name: &str| stem(&format!("{name}{suffix}"));
        let dims = ["ffn_up", "ffn_gate"].iter().find_map(|name| weights.dims(&format!("{}.weight", stem(name))));
        let dims = dims.unwrap_or_default();
        let length = dims.get(1).copied().unwrap_or(0);
        Ok(Ffn::Gated {
            gate: weights.matrix(&stem("ffn_gate"), &[length, hidden])?,
            up: weights.matrix(&stem("ffn_up"), &[length, hidden])?,
            down: weights.matrix(&stem("ffn_down"), &[hidden, length])?,
        })
    }

    fn forward(&self, x: &Tensor, hyper: &Hyper, pass: Pass<'_>) -> Result<Tensor> {
        let activation = hyper.decoder.activation;
        match self {
            Ffn::Gated { gate, up, down } => {
                pass.times(&gated(&pass.times(x, gate)?, &pass.times(x, up)?, activation)?, down)
            }
            Ffn::Fused { gate_up, down } => {
                let both = pass.times(x, gate_up)?;
                let length = both.dim(1)? / 2;
                let (gate, up) = (both.narrow(1, 0, length)?, both.narrow(1, length, length)?);
                pass.times(&gated(&gate, &up, activation)?, down)
            }
            Ffn::Plain { up, down } => pass.times(&activated(&pass.times(x, up)?, activation)?, down),
            Ffn::Experts { router, gate, up, down, shared } => {
                let routing = Routing::new(&pass.times(x, router)?, hyper)?;
                let mut y = Tensor::zeros(x.dims(), x.dtype(), x.device())?;
                for (expert, seen) in routing.positions.iter().enumerate() {
                    if seen.is_empty() {
                        continue;
                    }
                    let positions = Tensor::from_slice(seen, seen.len(), x.device())?;
                    let x = x.index_select(&positions, 0)?;
                    let at = (expert, &**seen);
                    let (gate, up) = (pass.times_expert(&x, gate, at)?, pass.times_expert(&x, up, at)?);
                    let out = pass.times_expert(&gated(&gate, &up, activation)?, down, at)?;
                    let weights = routing.weights.narrow(1, expert, 1)?.contiguous()?.index_select(&positions, 0)?;
                    y = y.index_add(&positions, &scale_rows(&out, &weights)?, 0)?;
                }
                if let Some(shared) = shared {
                    let weight = candle_nn::ops::sigmoid(&pass.times(x, &shared.router)?)?;
                    y = add(&y, &scale_rows(&shared.ffn.forward(x, hyper, pass)?, &weight)?, 1.0)?;
                }
                Ok(y)
            }
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
