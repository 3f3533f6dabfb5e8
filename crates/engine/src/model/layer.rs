//! A layer with its weights: blocks of mixers on the residual stream.

use super::linear::{Linear, Norm, Pass};
use super::mixer::{
    AnyMixer, Apart, Attention, Decay, DeltaNet, Factored, Factors, Ffn, First, Gate, Indexer,
    Latent, LatentAttention, Lightning, LowRank, Mamba, Mamba2, Moe, Projections, Rates, Shared,
    ShortConv, Single, Sparse, Stage, Tape,
};
use super::ops::attention::{Scores, alibi_slopes};
use super::ops::elementwise::{add, add_scaled, scale};
use super::ops::rope::Angles;
use super::ops::router::Router;
use super::rows::Rows;
use super::weights::Weights;
use super::{Replaced, Result};
use quantier_arch::Norm as NormKind;
use quantier_arch::spec::{
    self, AttentionSpec, BlockSpec, BranchSpec, DeltaSpec, FactorsSpec, FfnSpec, IndexerSpec,
    LatentSpec, LayerSpec, LightningSpec, Mamba2Spec, MambaSpec, MixerSpec, MoeSpec, Residual,
    ShortConvSpec, SparseSpec,
};
use std::borrow::Cow;
use std::sync::Arc;

/// What passes from one layer to the next, of one chunk.
#[derive(Clone, Debug, Default)]
pub(super) struct Bundle {
    /// The residual stream: `[positions, hidden]`.
    pub stream: Rows,
}

/// A layer, widened.
#[derive(Clone)]
pub(super) struct Layer {
    blocks: Vec<Block>,
    /// Of the stream behind them.
    norm: Option<Norm>,
}

#[derive(Clone)]
struct Block {
    branches: Vec<Branch>,
    post_norm: Option<Norm>,
    residual_scale: f32,
    residual: Residual,
}

#[derive(Clone)]
struct Branch {
    norm: Option<Norm>,
    mixer: AnyMixer,
}

/// A stage of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub block: usize,
    pub branch: usize,
    pub stage: usize,
}

/// A chunk within a layer, in front of a stage.
#[derive(Clone, Debug, Default)]
pub(super) struct Between {
    /// As it was in front of the stage's block.
    pub bundle: Bundle,
    /// What the branches before the stage's in the same block have made; None if there are none.
    pub mixed: Option<Rows>,
    /// The stage's input; None if it is the first one of a mixer, whose input follows from the
    /// stream.
    pub input: Option<Rows>,
}

/// What the derivative of a layer needs.
pub(super) struct LayerTape<'l> {
    blocks: Vec<BlockTape<'l>>,
    /// The stream in front of the norm behind them, if there is one.
    unnormalized: Option<Rows>,
}

struct BlockTape<'l> {
    block: &'l Block,
    /// The stream in front of the block.
    stream: Rows,
    branches: Vec<BranchTape<'l>>,
    /// What the branches made, if a norm is behind them.
    mixed: Option<Rows>,
}

#[derive(Default)]
struct BranchTape<'l> {
    /// The mixer's input; None without a norm, where it is the stream.
    normalized: Option<Rows>,
    mixer: Tape<'l>,
}

impl Layer {
    /// Widens a layer. `angles` are those of the model's rotations.
    pub(super) fn load(
        weights: &Weights<'_>,
        spec: &LayerSpec,
        angles: &[Arc<Angles>],
    ) -> Result<Layer> {
        let blocks = spec.blocks.iter();
        let blocks = blocks.map(|block| Block::load(weights, block, angles));
        Ok(Layer {
            blocks: blocks.collect::<Result<_>>()?,
            norm: norm(weights, &spec.norm)?,
        })
    }

    /// From the bundle in front of the layer to that behind it.
    pub(super) fn forward(&self, mut bundle: Bundle, pass: &Pass<'_>) -> Result<Bundle> {
        for block in &self.blocks {
            let y = block.mix(&bundle.stream, pass, None)?;
            block.add_to(&mut bundle.stream, y);
        }
        self.normalize(&mut bundle.stream);
        Ok(bundle)
    }

    fn normalize(&self, stream: &mut Rows) {
        if let Some(norm) = &self.norm {
            norm.apply(stream.numbers_mut());
        }
    }

    /// The same, with what [`Layer::backward`] needs.
    pub(super) fn record<'l>(
        &'l self,
        Bundle { mut stream }: Bundle,
        pass: &Pass<'_>,
    ) -> Result<(Bundle, LayerTape<'l>)> {
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let mut branches = Vec::new();
            let y = block.mix(&stream, pass, Some(&mut branches))?;
            blocks.push(BlockTape {
                block,
                stream: stream.clone(),
                branches,
                mixed: block.post_norm.is_some().then(|| y.clone()),
            });
            block.add_to(&mut stream, y);
        }
        let unnormalized = self.norm.is_some().then(|| stream.clone());
        self.normalize(&mut stream);
        let tape = LayerTape {
            blocks,
            unnormalized,
        };
        Ok((Bundle { stream }, tape))
    }

    /// The derivative: from the gradient of the bundle behind the layer to that in front of it. The
    /// tap sees the output gradient of every linear.
    pub(super) fn backward(
        &self,
        tape: &LayerTape<'_>,
        mut gradient: Bundle,
        pass: &Pass<'_>,
    ) -> Result<Bundle> {
        if let (Some(norm), Some(stream)) = (&self.norm, &tape.unnormalized) {
            norm.derivative(stream.numbers(), gradient.stream.numbers_mut());
        }
        let mut tapes = tape.blocks.iter().rev();
        let stream = tapes.try_fold(gradient.stream, |gradient, tape| {
            tape.backward(gradient, pass)
        })?;
        Ok(Bundle { stream })
    }

    /// The stages in their order.
    pub(super) fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        for (block, of_block) in self.blocks.iter().enumerate() {
            for (branch, of_branch) in of_block.branches.iter().enumerate() {
                let stages = 0..of_branch.mixer.stages().len();
                places.extend(stages.map(|stage| Place {
                    block,
                    branch,
                    stage,
                }));
            }
        }
        places
    }

    /// The linears of a stage.
    pub(super) fn linears(&self, place: Place) -> Stage<&Linear> {
        let mixer = &self.blocks[place.block].branches[place.branch].mixer;
        mixer.stages().swap_remove(place.stage)
    }

    /// Puts other weights into linears of a stage.
    pub(super) fn replace(&mut self, place: Place, replaced: Vec<Replaced>) {
        let mixer = &mut self.blocks[place.block].branches[place.branch].mixer;
        let stage = mixer.stages_mut().swap_remove(place.stage);
        let mut linears: Vec<_> = stage.linears.into_iter().chain(stage.inner).collect();
        for Replaced { name, weights } in replaced {
            let named = linears.iter_mut().filter(|linear| linear.name == name);
            named.for_each(|linear| linear.replace(weights.clone()));
        }
    }

    /// The input of a stage.
    pub(super) fn input<'b>(&self, place: Place, at: &'b Between) -> Cow<'b, Rows> {
        match &at.input {
            Some(input) => Cow::Borrowed(input),
            None => self.blocks[place.block].branches[place.branch].input(&at.bundle.stream),
        }
    }

    /// Takes a chunk through one stage.
    pub(super) fn step(&self, place: Place, mut at: Between, pass: &Pass<'_>) -> Result<Between> {
        let block = &self.blocks[place.block];
        let mixer = &block.branches[place.branch].mixer;
        let (y, _) = mixer.run_stage(place.stage, &self.input(place, &at), pass)?;
        at.input = None;
        if place.stage + 1 < mixer.stages().len() {
            at.input = Some(y);
            return Ok(at);
        }
        let mixed = match at.mixed.take() {
            Some(mut mixed) => {
                add(mixed.numbers_mut(), y.numbers());
                mixed
            }
            None => y,
        };
        match place.branch + 1 < block.branches.len() {
            true => at.mixed = Some(mixed),
            false => {
                block.add_to(&mut at.bundle.stream, mixed);
                if place.block + 1 == self.blocks.len() {
                    self.normalize(&mut at.bundle.stream);
                }
            }
        }
        Ok(at)
    }
}

impl Block {
    fn load(weights: &Weights<'_>, spec: &BlockSpec, angles: &[Arc<Angles>]) -> Result<Block> {
        let branches = spec.branches.iter();
        let branches = branches.map(|branch| Branch::load(weights, branch, angles));
        Ok(Block {
            branches: branches.collect::<Result<_>>()?,
            post_norm: norm(weights, &spec.post_norm)?,
            residual_scale: spec.residual_scale,
            residual: spec.residual,
        })
    }

    /// The sum of what the branches make of the stream.
    fn mix<'b>(
        &'b self,
        stream: &Rows,
        pass: &Pass<'_>,
        mut tapes: Option<&mut Vec<BranchTape<'b>>>,
    ) -> Result<Rows> {
        let mut sum: Option<Rows> = None;
        for branch in &self.branches {
            let input = branch.input(stream);
            let mut tape = tapes.is_some().then(BranchTape::default);
            let of_mixer = tape.as_mut().map(|tape| &mut tape.mixer);
            let y = branch.mixer.forward(&input, pass, of_mixer)?;
            if let (Some(tapes), Some(mut tape)) = (&mut tapes, tape) {
                if let Cow::Owned(input) = input {
                    tape.normalized = Some(input);
                }
                tapes.push(tape);
            }
            match &mut sum {
                Some(sum) => add(sum.numbers_mut(), y.numbers()),
                None => sum = Some(y),
            }
        }
        Ok(sum.unwrap_or_default())
    }

    /// The norm in front of the first branch.
    fn first_norm(&self) -> Option<&Norm> {
        self.branches.first()?.norm.as_ref()
    }

    fn add_to(&self, stream: &mut Rows, mut mixed: Rows) {
        if let Some(norm) = &self.post_norm {
            norm.apply(mixed.numbers_mut());
        }
        if let Residual::Normalized(factor) = self.residual {
            if let Some(norm) = self.first_norm() {
                norm.apply(stream.numbers_mut());
            }
            scale(stream.numbers_mut(), factor);
        }
        add_scaled(stream.numbers_mut(), mixed.numbers(), self.residual_scale);
    }
}

impl Branch {
    fn load(weights: &Weights<'_>, spec: &BranchSpec, angles: &[Arc<Angles>]) -> Result<Branch> {
        Ok(Branch {
            norm: norm(weights, &spec.norm)?,
            mixer: match &spec.mixer {
                MixerSpec::Attention(spec) => {
                    AnyMixer::Attention(attention(weights, spec, angles)?)
                }
                MixerSpec::LatentAttention(spec) => {
                    AnyMixer::LatentAttention(latent_attention(weights, spec, angles)?)
                }
                MixerSpec::DeltaNet(spec) => AnyMixer::DeltaNet(delta_net(weights, spec)?),
                MixerSpec::Lightning(spec) => AnyMixer::Lightning(lightning(weights, spec)?),
                MixerSpec::Mamba2(spec) => AnyMixer::Mamba2(mamba2(weights, spec)?),
                MixerSpec::Linear(spec) => AnyMixer::Single(Single(weights.linear(spec)?)),
                MixerSpec::ShortConv(spec) => AnyMixer::ShortConv(short_conv(weights, spec)?),
                MixerSpec::Mamba(spec) => AnyMixer::Mamba(mamba(weights, spec)?),
                MixerSpec::Ffn(spec) => AnyMixer::Ffn(ffn(weights, spec)?),
                MixerSpec::Moe(spec) => AnyMixer::Moe(moe(weights, spec)?),
            },
        })
    }

    /// What the mixer reads.
    fn input<'s>(&self, stream: &'s Rows) -> Cow<'s, Rows> {
        match &self.norm {
            Some(norm) => Cow::Owned(norm.of(stream)),
            None => Cow::Borrowed(stream),
        }
    }
}

impl BlockTape<'_> {
    fn backward(&self, gradient: Rows, pass: &Pass<'_>) -> Result<Rows> {
        let block = self.block;
        let mut of_mixed = gradient.clone();
        scale(of_mixed.numbers_mut(), block.residual_scale);
        if let (Some(norm), Some(mixed)) = (&block.post_norm, &self.mixed) {
            norm.derivative(mixed.numbers(), of_mixed.numbers_mut());
        }
        let mut of_stream = gradient;
        if let Residual::Normalized(factor) = block.residual {
            scale(of_stream.numbers_mut(), factor);
            if let Some(norm) = block.first_norm() {
                norm.derivative(self.stream.numbers(), of_stream.numbers_mut());
            }
        }
        for (branch, tape) in block.branches.iter().zip(&self.branches).rev() {
            let (mixer, dy) = (&branch.mixer, of_mixed.clone());
            let (Some(norm), Some(input)) = (&branch.norm, &tape.normalized) else {
                mixer.backward(&tape.mixer, &self.stream, dy, pass, &mut of_stream)?;
                continue;
            };
            let mut of_input = Rows::zeros(input.len(), input.columns());
            mixer.backward(&tape.mixer, input, dy, pass, &mut of_input)?;
            norm.derivative(self.stream.numbers(), of_input.numbers_mut());
            add(of_stream.numbers_mut(), of_input.numbers());
        }
        Ok(of_stream)
    }
}

/// A norm, where there is one.
fn norm(weights: &Weights<'_>, spec: &Option<spec::NormSpec>) -> Result<Option<Norm>> {
    spec.as_ref().map(|spec| weights.norm(spec)).transpose()
}

fn attention(
    weights: &Weights<'_>,
    spec: &AttentionSpec,
    angles: &[Arc<Angles>],
) -> Result<Attention> {
    let norm = |spec| norm(weights, spec);
    let numbers = spec.numbers;
    let sinks = spec.sinks.as_ref();
    let sinks = sinks.map(|name| weights.finite(name, &[numbers.heads]));
    Ok(Attention {
        projections: projections(weights, &spec.projections)?,
        query_norm: norm(&spec.query_norm)?,
        key_norm: norm(&spec.key_norm)?,
        norms_rotated: spec.norms_rotated,
        gate: gate(weights, &spec.gate)?,
        gate_activation: spec.gate_activation,
        output_norm: norm(&spec.output_norm)?,
        output: weights.linear(&spec.output)?,
        heads: numbers.heads,
        kv_heads: numbers.kv_heads,
        key_length: numbers.key_length,
        clamp: spec.clamp,
        temperature: spec.temperature,
        rope: spec.rope,
        angles: numbers
            .rotation
            .and_then(|rotation| angles.get(rotation).cloned()),
        scores: Scores {
            scale: spec.score_scale,
            cap: spec.score_cap,
            window: numbers.window,
            sinks: sinks.transpose()?.map(Arc::from),
            is_chunked: numbers.is_chunked,
            slopes: spec
                .max_alibi_bias
                .map(|bias| alibi_slopes(numbers.heads, bias).into()),
        },
    })
}

fn projections(weights: &Weights<'_>, spec: &spec::Projections) -> Result<Projections> {
    Ok(match spec {
        spec::Projections::Apart([query, key, value]) => Projections::Apart(Box::new([
            weights.linear(query)?,
            weights.linear(key)?,
            weights.linear(value)?,
        ])),
        spec::Projections::Fused(all) => Projections::Fused(weights.linear(all)?),
    })
}

fn gate(weights: &Weights<'_>, spec: &spec::Gate) -> Result<Gate> {
    Ok(match spec {
        spec::Gate::None => Gate::None,
        spec::Gate::Queries => Gate::Queries,
        spec::Gate::Own(gate) => Gate::Own(weights.linear(gate)?),
    })
}

fn factored(weights: &Weights<'_>, spec: &spec::Factored) -> Result<Factored> {
    Ok(match spec {
        spec::Factored::Whole(whole) => Factored::Whole(weights.linear(whole)?),
        spec::Factored::LowRank {
            first,
            norm: between,
            second,
        } => Factored::LowRank(Box::new(LowRank {
            first: weights.linear(first)?,
            norm: norm(weights, between)?,
            second: weights.linear(second)?,
        })),
    })
}

fn latent_attention(
    weights: &Weights<'_>,
    spec: &LatentSpec,
    angles: &[Arc<Angles>],
) -> Result<LatentAttention> {
    let rotation = spec.attention.rotation;
    Ok(LatentAttention {
        numbers: spec.numbers,
        heads: spec.attention.heads,
        query: factored(weights, &spec.query)?,
        compression: weights.linear(&spec.compression)?,
        norm: weights.norm(&spec.norm)?,
        key: weights.linear(&spec.key)?,
        value: weights.linear(&spec.value)?,
        gate: gate(weights, &spec.gate)?,
        output: weights.linear(&spec.output)?,
        rope: spec.rope,
        angles: rotation.and_then(|rotation| angles.get(rotation).cloned()),
        scores: Scores {
            scale: spec.score_scale,
            cap: None,
            window: spec.attention.window,
            sinks: None,
            is_chunked: spec.attention.is_chunked,
            slopes: None,
        },
        temperature: spec.temperature,
        sparse: spec
            .sparse
            .as_ref()
            .map(|spec| sparse(weights, spec, angles.first()))
            .transpose()?,
    })
}

fn sparse(
    weights: &Weights<'_>,
    spec: &SparseSpec,
    angles: Option<&Arc<Angles>>,
) -> Result<Sparse> {
    let indexer = |spec: &IndexerSpec| -> Result<Box<Indexer>> {
        Ok(Box::new(Indexer {
            numbers: spec.numbers,
            query: weights.linear(&spec.query)?,
            key: weights.linear(&spec.key)?,
            key_norm: weights.norm(&spec.key_norm)?,
            weights: weights.linear(&spec.weights)?,
            rope: spec.rope,
            angles: angles.cloned(),
        }))
    };
    Ok(Sparse {
        top_k: spec.top_k,
        indexer: spec.indexer.as_ref().map(indexer).transpose()?,
    })
}

fn delta_net(weights: &Weights<'_>, spec: &DeltaSpec) -> Result<DeltaNet> {
    let numbers = spec.numbers;
    let heads = numbers.value_heads;
    let length = numbers.key_length;
    // Several are of queries, keys and values, which are equally long then.
    let channels = numbers.channels() / spec.convolutions.len();
    let convolutions = spec.convolutions.iter();
    let convolutions: Result<Vec<_>> = convolutions
        .map(|name| weights.finite(name, &[channels, numbers.kernel]))
        .collect();
    let decay = match spec.decay_bound {
        Some(_) => weights.finite(&spec.decay, &[heads])?,
        None => weights.at_most_zero(&spec.decay, &[heads])?,
    };
    Ok(DeltaNet {
        numbers,
        projections: projections(weights, &spec.projections)?,
        gate: factored(weights, &spec.gate)?,
        gate_activation: spec.gate_activation,
        rates: match &spec.rates {
            spec::Rates::Apart { strength, step } => Rates::Apart(Box::new(Apart {
                strength: weights.linear(strength)?,
                step: factored(weights, step)?,
            })),
            spec::Rates::Fused(both) => Rates::Fused(weights.linear(both)?),
        },
        step_bias: weights.finite(&spec.step_bias, &[numbers.decays()])?,
        decay: match spec.decay_bound {
            Some(bound) => Decay::Bounded {
                numbers: decay,
                bound,
            },
            None => Decay::Softplus(decay),
        },
        kernels: convolutions?.concat(),
        // The root mean square of a head of length 1 is the root of its share.
        unit: Norm {
            kind: NormKind::Rms,
            epsilon: spec.epsilon / length as f32,
            weight: vec![1.0 / (length as f32).sqrt(); length],
            bias: Vec::new(),
            len: length,
        },
        norm: weights.norm(&spec.norm)?,
        output: weights.linear(&spec.output)?,
    })
}

fn mamba2(weights: &Weights<'_>, spec: &Mamba2Spec) -> Result<Mamba2> {
    let numbers = spec.numbers;
    let (heads, channels) = (numbers.heads, numbers.channels());
    let bias = spec.convolution_bias.as_ref();
    let bias = bias.map(|name| weights.finite(name, &[channels]));
    Ok(Mamba2 {
        numbers,
        input: weights.linear(&spec.input)?,
        factors: spec
            .factors
            .as_ref()
            .map(|spec| factors(weights, spec))
            .transpose()?,
        kernels: weights.finite(&spec.convolution, &[channels, numbers.kernel])?,
        channel_bias: bias.transpose()?,
        step_bias: weights.finite(&spec.step_bias, &[heads])?,
        decay: weights.at_most_zero(&spec.decay, &[heads])?,
        skip: weights.finite(&spec.skip, &[heads])?,
        norm: norm(weights, &spec.norm)?,
        output: weights.linear(&spec.output)?,
    })
}

fn short_conv(weights: &Weights<'_>, spec: &ShortConvSpec) -> Result<ShortConv> {
    let numbers = spec.numbers;
    Ok(ShortConv {
        input: weights.linear(&spec.input)?,
        kernels: weights.finite(&spec.convolution, &[numbers.channels, numbers.kernel])?,
        output: weights.linear(&spec.output)?,
    })
}

fn mamba(weights: &Weights<'_>, spec: &MambaSpec) -> Result<Mamba> {
    let numbers = spec.numbers;
    let channels = numbers.channels;
    let norms = |[rank, key, query]: &[spec::NormSpec; 3]| -> Result<Box<[Norm; 3]>> {
        let [rank, key, query] = [rank, key, query].map(|norm| weights.norm(norm));
        Ok(Box::new([rank?, key?, query?]))
    };
    Ok(Mamba {
        numbers,
        input: weights.linear(&spec.input)?,
        kernels: weights.finite(&spec.convolution, &[channels, numbers.kernel])?,
        kernel_bias: weights.finite(&spec.convolution_bias, &[channels])?,
        parameters: weights.linear(&spec.parameters)?,
        norms: spec.norms.as_ref().map(norms).transpose()?,
        step: weights.linear(&spec.step)?,
        decay: weights.at_most_zero(&spec.decay, &[channels, numbers.state])?,
        skip: weights.finite(&spec.skip, &[channels])?,
        output: weights.linear(&spec.output)?,
    })
}

fn factors(weights: &Weights<'_>, spec: &FactorsSpec) -> Result<Box<Factors>> {
    let [keys, queries, rank] = spec.norms.each_ref().map(|norm| weights.norm(norm));
    Ok(Box::new(Factors {
        parameters: weights.linear(&spec.parameters)?,
        norms: [keys?, queries?, rank?],
        step: weights.linear(&spec.step)?,
    }))
}

fn lightning(weights: &Weights<'_>, spec: &LightningSpec) -> Result<Lightning> {
    Ok(Lightning {
        numbers: spec.numbers,
        projections: weights.linear(&spec.projections)?,
        gate: weights.linear(&spec.gate)?,
        norm: weights.norm(&spec.norm)?,
        output: weights.linear(&spec.output)?,
    })
}

fn ffn(weights: &Weights<'_>, spec: &FfnSpec) -> Result<Ffn> {
    Ok(Ffn {
        first: match &spec.first {
            spec::First::Gated { gate, up } => First::Gated {
                gate: weights.linear(gate)?,
                up: weights.linear(up)?,
            },
            spec::First::Fused(both) => First::Fused(weights.linear(both)?),
            spec::First::Plain(up) => First::Plain(weights.linear(up)?),
        },
        inner_norm: norm(weights, &spec.inner_norm)?,
        down: weights.linear(&spec.down)?,
        activation: spec.activation,
        limit: spec.limit,
    })
}

fn moe(weights: &Weights<'_>, spec: &MoeSpec) -> Result<Moe> {
    let shared = |shared: &spec::SharedSpec| -> Result<Shared> {
        let router = shared.router.as_ref();
        Ok(Shared {
            router: router.map(|router| weights.linear(router)).transpose()?,
            ffn: ffn(weights, &shared.ffn)?,
        })
    };
    let latent = |[down, up]: &[spec::LinearSpec; 2]| -> Result<Latent> {
        Ok(Latent {
            down: weights.linear(down)?,
            up: weights.linear(up)?,
        })
    };
    let bias = spec.selection_bias.as_ref();
    let bias = bias.map(|bias| weights.finite(bias, &[spec.router.rows]));
    Ok(Moe {
        scores: weights.linear(&spec.router)?,
        router: Router {
            routing: spec.routing,
            selection_bias: bias.transpose()?,
        },
        latent: spec.latent.as_ref().map(latent).transpose()?,
        experts: ffn(weights, &spec.experts)?,
        shared: spec.shared.as_ref().map(shared).transpose()?,
        scale: spec.scale,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ops::tests::{check_gradients, random};
    use quantier_arch::LinearId;
    use quantier_core::progress::Silent;

    const HIDDEN: usize = 6;

    fn norm(seed: u32) -> Norm {
        Norm {
            kind: NormKind::Rms,
            epsilon: 1e-2,
            weight: random(HIDDEN, seed),
            bias: vec![0.0; HIDDEN],
            len: HIDDEN,
        }
    }

    /// A norm and a matrix.
    fn branch(seed: u32) -> Branch {
        let linear = Linear {
            id: LinearId(seed),
            name: "linear".into(),
            weights: Arc::new(random(HIDDEN * HIDDEN, seed)),
            experts: 1,
            columns: HIDDEN,
            scales: None,
            bias: None,
            uploaded: None,
        };
        Branch {
            norm: Some(norm(seed + 1)),
            mixer: AnyMixer::Single(Single(linear)),
        }
    }

    fn block(branches: Vec<Branch>, residual: Residual) -> Block {
        Block {
            branches,
            post_norm: None,
            residual_scale: 0.7,
            residual,
        }
    }

    /// One block with a norm and a matrix, and a norm behind it.
    fn layer() -> Layer {
        Layer {
            blocks: vec![block(vec![branch(1)], Residual::Stream)],
            norm: Some(norm(3)),
        }
    }

    fn pass<'p>() -> Pass<'p> {
        Pass {
            chunk: 0,
            tap: None,
            recording: true,
            split: 1,
            progress: &Silent,
        }
    }

    fn bundle(x: &[f32]) -> Bundle {
        Bundle {
            stream: Rows::new(x.to_vec(), HIDDEN),
        }
    }

    /// Compares the derivative of a layer with differences, and its forward pass with its steps.
    fn check(layer: &Layer) {
        let at = random(3 * HIDDEN, 4);
        let forward = |x: &[Vec<f32>]| {
            let behind = layer.forward(bundle(&x[0]), &pass()).unwrap();
            behind.stream.into_numbers()
        };
        let backward = |x: &[Vec<f32>], g: &[f32]| {
            let (_, tape) = layer.record(bundle(&x[0]), &pass()).unwrap();
            let gradient = layer.backward(&tape, bundle(g), &pass()).unwrap();
            vec![gradient.stream.into_numbers()]
        };
        check_gradients("layer", std::slice::from_ref(&at), &forward, &backward);
        let mut between = Between {
            bundle: bundle(&at),
            ..Between::default()
        };
        for place in layer.places() {
            between = layer.step(place, between, &pass()).unwrap();
        }
        assert_eq!(between.bundle.stream.numbers(), forward(&[at]));
    }

    #[test]
    fn the_norm_behind_the_blocks_has_a_derivative_and_is_the_last_step() {
        check(&layer());
    }

    #[test]
    fn blocks_add_to_the_stream_or_to_what_their_first_mixer_reads() {
        for residual in [Residual::Stream, Residual::Normalized(1.6)] {
            let two = || vec![branch(1), branch(11)];
            check(&Layer {
                blocks: vec![block(two(), residual), block(two(), residual)],
                norm: None,
            });
        }
    }
}
