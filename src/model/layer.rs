//! One layer of a decoder: its matrices in f32, and what it makes of the activations of one chunk.

use super::attention::Scores;
use super::backward::Probes;
use super::derived;
use super::ffn::Ffn;
use super::hyper::{Hyper, Rotation};
use super::product::{numbers, product};
use super::rows::{add, add_to_rows, layer_norm, rms_norm};
use super::weights::{Matrix, Weights};
use super::{Error, Observer, Result, Seen};
use crate::arch::{Norm, Rope};
use crate::progress::Progress;
use candle_core::{D, Tensor};

/// A layer, widened.
#[derive(Clone)]
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
#[derive(Clone)]
pub(super) struct Normalizer {
    kind: Norm,
    epsilon: f32,
    weight: Tensor,
    bias: Tensor,
}

/// A part of a layer: matrices that can be multiplied when the parts before are done, and what is
/// made of the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Queries, keys and values, and what attention makes of them.
    Attention,
    /// The attention's output matrix.
    Output,
    /// The first half of a feed-forward network; nothing of experts.
    Gate,
    /// The second half; all of experts.
    Down,
}

/// In their order.
pub(super) const STEPS: [Step; 4] = [Step::Attention, Step::Output, Step::Gate, Step::Down];

impl Step {
    /// Whether what its matrices meet is made of the residual stream by a norm alone.
    pub(super) fn begins_a_block(self) -> bool {
        matches!(self, Step::Attention | Step::Gate)
    }
}

/// A chunk in front of a step.
pub(super) struct Before {
    /// The residual stream: `[positions, hidden]`.
    pub(super) stream: Tensor,
    /// What the step's matrices meet: `[positions, their columns]`.
    pub(super) met: Tensor,
}

#[derive(Clone)]
enum Projections {
    Apart {
        query: Matrix,
        key: Matrix,
        value: Matrix,
    },
    Fused(Matrix),
}

/// Which chunk goes through, who watches, how many threads one product may take, and where
/// gradients are caught.
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
        let y = self
            .probes
            .map_or_else(|| Ok(y.clone()), |probes| probes.catch(x, matrix, None, &y))?;
        Ok(match &matrix.bias {
            Some(bias) => add_to_rows(&y, bias)?,
            None => y,
        })
    }

    /// The product with one expert's matrix, of the activations of these positions.
    pub(super) fn times_expert(
        &self,
        x: &Tensor,
        matrix: &Matrix,
        (expert, positions): (usize, &[u32]),
    ) -> Result<Tensor> {
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
        let Some(observer) = self.observer else {
            return Ok(());
        };
        let columns = x.dim(D::Minus1)?;
        Ok(numbers(x, |rows| {
            observer.input(Seen {
                chunk: self.chunk,
                name,
                matrix,
                matrices,
                rows,
                columns,
                input: x.id(),
            });
            Ok(())
        })?)
    }
}

impl Normalizer {
    fn load(
        weights: &Weights<'_>,
        hyper: &Hyper,
        stem: &str,
        len: usize,
    ) -> Result<Option<Normalizer>> {
        let weight = weights.optional(&format!("{stem}.weight"), &[len])?;
        let bias = weights.optional(&format!("{stem}.bias"), &[len])?;
        let kind = hyper.decoder.norm;
        if weight.is_none() && kind == Norm::Rms {
            return Ok(None);
        }
        let device = weights.device();
        let weight =
            weight.map_or_else(|| Tensor::ones(len, candle_core::DType::F32, device), Ok)?;
        let bias = bias.map_or_else(|| weight.zeros_like(), Ok)?;
        Ok(Some(Normalizer {
            kind,
            epsilon: hyper.epsilon,
            weight,
            bias,
        }))
    }

    /// The norm in front of the output matrix.
    pub(super) fn output(weights: &Weights<'_>, hyper: &Hyper) -> Result<Option<Normalizer>> {
        Normalizer::load(weights, hyper, "output_norm", hyper.hidden)
    }

    /// A norm of heads, which has weights for one head or for all of them. It has no mean to take
    /// off.
    fn of_heads(
        weights: &Weights<'_>,
        hyper: &Hyper,
        stem: &str,
        len: usize,
        heads: usize,
    ) -> Result<Option<Normalizer>> {
        let Some(held) = weights.len(&format!("{stem}.weight")) else {
            return Ok(None);
        };
        let len = if held == len * heads {
            len * heads
        } else {
            len
        };
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
    norm.as_ref()
        .map_or_else(|| Ok(x.clone()), |norm| norm.apply(x))
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
        Ok(Angles {
            cosines: tensor(cosines)?,
            sines: tensor(sines)?,
        })
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
                derived::of_one(&first, &y, move |_, g| {
                    turned(&g.contiguous()?, &cosines, &sines, rope)
                })?
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
            false => Ok(Tensor::cat(
                &[&turned, &x.narrow(D::Minus1, rotated, length - rotated)?],
                D::Minus1,
            )?),
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
    /// Widens a layer. `angles` are those of the whole context, `windowed` those of layers with a
    /// window.
    pub(super) fn load(
        weights: &Weights<'_>,
        hyper: &'a Hyper,
        number: usize,
        angles: &Option<Angles>,
        windowed: &Option<Angles>,
    ) -> Result<Layer<'a>> {
        let stem = |name: &str| format!("blk.{number}.{name}");
        let norm = |name: &str| Normalizer::load(weights, hyper, &stem(name), hyper.hidden);
        // A decoder with norms behind its blocks only has none in front; a norm without weights is
        // always there.
        let (hidden, heads, kv_heads) = (hyper.hidden, hyper.heads, hyper.kv_heads);
        let (queries, keys) = (heads * hyper.key_length, kv_heads * hyper.key_length);
        let values = kv_heads * hyper.value_length;
        let projections = match weights.has(&stem("attn_qkv.weight")) {
            true => Projections::Fused(
                weights.matrix(&stem("attn_qkv"), &[queries + keys + values, hidden])?,
            ),
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
            query_norm: Normalizer::of_heads(
                weights,
                hyper,
                &stem("attn_q_norm"),
                hyper.key_length,
                heads,
            )?,
            key_norm: Normalizer::of_heads(
                weights,
                hyper,
                &stem("attn_k_norm"),
                hyper.key_length,
                kv_heads,
            )?,
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
        let mut at = Before {
            stream: x.clone(),
            met: self.met(Step::Attention, x)?,
        };
        for step in STEPS {
            at = self.step(step, at, pass)?;
        }
        Ok(at.stream)
    }

    /// What the matrices of a step meet that [begins a block](Step::begins_a_block), of the
    /// residual stream.
    pub(super) fn met(&self, step: Step, stream: &Tensor) -> Result<Tensor> {
        match step {
            Step::Attention => normalized(&self.attention_norm, stream),
            _ => normalized(&self.ffn_norm, stream),
        }
    }

    /// What a step makes of a chunk: that in front of the next one. Behind the last, nothing is
    /// met.
    pub(super) fn step(&self, step: Step, at: Before, pass: Pass<'_>) -> Result<Before> {
        let Before { stream, met } = at;
        let scale = self.hyper.residual_scale;
        Ok(match step {
            Step::Attention => Before {
                met: self.attention(&met, pass)?,
                stream,
            },
            Step::Output => {
                let y = pass.times(&met, &self.output)?;
                let stream = add(&stream, &normalized(&self.attention_post_norm, &y)?, scale)?;
                Before {
                    met: self.met(Step::Gate, &stream)?,
                    stream,
                }
            }
            Step::Gate => Before {
                met: self.ffn.gate(&met, self.hyper, pass)?,
                stream,
            },
            Step::Down => {
                let y = self.ffn.down(&met, self.hyper, pass)?;
                let stream = add(&stream, &normalized(&self.ffn_post_norm, &y)?, scale)?;
                Before {
                    met: stream.clone(),
                    stream,
                }
            }
        })
    }

    /// The matrices of a step: those that meet what stands [before](Before) it, and those behind
    /// them.
    pub(super) fn matrices(&mut self, step: Step) -> [Vec<&mut Matrix>; 2] {
        match (step, &mut self.projections) {
            (Step::Attention, Projections::Apart { query, key, value }) => {
                [vec![query, key, value], vec![]]
            }
            (Step::Attention, Projections::Fused(all)) => [vec![all], vec![]],
            (Step::Output, _) => [vec![&mut self.output], vec![]],
            (Step::Gate | Step::Down, _) => self.ffn.matrices(step),
        }
    }

    /// How long a row is behind the first half of the feed-forward network.
    pub(super) fn gated_columns(&self) -> usize {
        self.ffn.gated_columns().unwrap_or(self.hyper.hidden)
    }

    /// What attention makes of what is normalized, in front of its output matrix: `[positions,
    /// heads * length]`.
    fn attention(&self, x: &Tensor, pass: Pass<'_>) -> Result<Tensor> {
        let hyper = self.hyper;
        let (heads, kv_heads, length) = (hyper.heads, hyper.kv_heads, hyper.key_length);
        let (query, key, value) = match &self.projections {
            Projections::Apart { query, key, value } => (
                pass.times(x, query)?,
                pass.times(x, key)?,
                pass.times(x, value)?,
            ),
            Projections::Fused(all) => {
                let all = pass.times(x, all)?;
                let (queries, keys) = (heads * length, kv_heads * length);
                let values = kv_heads * hyper.value_length;
                (
                    all.narrow(1, 0, queries)?,
                    all.narrow(1, queries, keys)?,
                    all.narrow(1, queries + keys, values)?,
                )
            }
        };
        let clamp = |x: Tensor| {
            hyper
                .clamp
                .map_or_else(|| Ok(x.clone()), |c| x.clamp(-c, c))
        };
        let (query, key, value) = (clamp(query)?, clamp(key)?, clamp(value)?);
        let query = self.heads(&query, heads, &self.query_norm)?;
        let key = self.heads(&key, kv_heads, &self.key_norm)?;
        let scores = Scores {
            scale: hyper.score_scale,
            cap: hyper.score_cap,
            window: hyper.window_of(self.number),
        };
        Ok(scores.attend(&query, &key, &value, pass.split)?)
    }

    /// `[positions, heads * length]` as normalized and rotated `[heads, positions, length]`.
    fn heads(&self, x: &Tensor, heads: usize, norm: &Option<Normalizer>) -> Result<Tensor> {
        let (positions, width) = x.dims2()?;
        let length = width / heads;
        let over_all = norm
            .as_ref()
            .is_some_and(|norm| norm.len() == width && heads > 1);
        let x = if over_all {
            normalized(norm, x)?
        } else {
            x.clone()
        };
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
