//! A model as data: layers of blocks, blocks of a norm, mixers in parallel and an optional norm
//! behind them, and the tensors of each.
//!
//! What a file shows by its tensors (biases, norms of heads, norms behind a block, experts, fused
//! matrices) is looked up here, once, when a model is opened.

use crate::catalog::{EMBEDDING, OF_EXPERTS, OUTPUT};
use crate::hyper::{
    AttentionNumbers, ConvolutionNumbers, DeltaNumbers, Hyper, IndexerNumbers, LatentNumbers,
    LightningNumbers, Mamba2Numbers, MambaNumbers, Recurrent, Routing, Temperature, WkvNumbers,
};
use crate::{Activation, Catalog, DeltaHeads, Layout, Limit, Norm, Rope, Tempering, Wkv};

/// The position table of models that add positions to their embeddings.
const POSITIONS: &str = "position_embd.weight";
/// The norm behind the embeddings.
const EMBEDDING_NORM: &str = "token_embd_norm.weight";
/// Factors of angles for every context, and for short and long ones.
const FACTORS: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
];

/// What a model's forward pass is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Its layers, as often as they run.
    pub layers: Vec<LayerSpec>,
    /// The table of token embeddings.
    pub embedding: &'static str,
    /// The table of positions that are added to them.
    pub positions: Option<&'static str>,
    /// The norm behind the embeddings.
    pub embedding_norm: Option<NormSpec>,
    /// The norm in front of the output matrix.
    pub output_norm: Option<NormSpec>,
    /// The output matrix.
    pub output: LinearSpec,
    /// Its weight, which may be the table of token embeddings.
    pub output_name: &'static str,
    /// The block for a further token, if there is one that can be run.
    pub nextn: Option<NextnSpec>,
    /// Tensors that divide the angles of short and of long contexts.
    rope_factors: [Option<&'static str>; 2],
}

impl ModelSpec {
    /// The spec of a model with these tensors.
    pub fn new(hyper: &Hyper, catalog: &Catalog) -> ModelSpec {
        let output_norm = NormSpec::new(
            hyper,
            catalog,
            hyper.decoder.output_norm.into(),
            hyper.hidden,
        );
        let once = (0..hyper.layers).map(|number| LayerSpec::new(hyper, number, catalog));
        let mut layers: Vec<LayerSpec> = once.collect();
        if let Some(last) = layers.last_mut().filter(|_| hyper.loop_norm) {
            last.norm.clone_from(&output_norm);
        }
        let layers = layers.into_iter().cycle();
        let mut layers: Vec<LayerSpec> = layers.take(hyper.runs()).collect();
        // The norm behind the last loop is that in front of the output matrix.
        if let Some(last) = layers.last_mut() {
            last.norm = None;
        }
        let weight = catalog.output().map(|linear| catalog.tensor(linear.tensor));
        let output_name = match catalog.tensor_named(OUTPUT) {
            Some(_) => OUTPUT,
            None => EMBEDDING,
        };
        let there = |name: &'static str| catalog.tensor_named(name).map(|_| name);
        let [always, short, long] = FACTORS.map(there);
        ModelSpec {
            layers,
            embedding: EMBEDDING,
            positions: there(POSITIONS),
            embedding_norm: match hyper.decoder.normalized_embeddings {
                true => Some(NormSpec::weightless(hyper)),
                false => there(EMBEDDING_NORM)
                    .filter(|_| hyper.decoder.output_norm != "token_embd_norm")
                    .and_then(|_| {
                        NormSpec::new(hyper, catalog, "token_embd_norm".into(), hyper.hidden)
                    }),
            },
            output_norm,
            output: LinearSpec {
                stem: output_name.trim_end_matches(".weight").into(),
                experts: None,
                rows: weight.map_or(0, |entry| entry.dims[1..].iter().product::<u64>() as usize),
                columns: hyper.hidden,
            },
            output_name,
            nextn: NextnSpec::new(hyper, catalog),
            rope_factors: [always.or(short), always.or(long)],
        }
    }

    /// The tensor that divides the angles, of a context that is longer than the original one or
    /// not.
    pub fn rope_factors(&self, long: bool) -> Option<&'static str> {
        self.rope_factors[usize::from(long)]
    }
}

/// A block behind the layers that predicts the token behind the next one (multi-token prediction).
///
/// At each position it reads the token's embedding and the normalized activations of the position
/// before: both normalized, side by side, through a projection, then a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct NextnSpec {
    /// The table of token embeddings: its own, or the model's.
    pub embedding: String,
    /// In front of the projection, of embeddings.
    pub token_norm: NormSpec,
    /// The same of activations.
    pub hidden_norm: NormSpec,
    /// From both, side by side, to the layer's input.
    pub projection: LinearSpec,
    /// Its layer.
    pub layer: LayerSpec,
}

impl NextnSpec {
    /// That of a model, if it can be run and has a projection.
    pub(crate) fn new(hyper: &Hyper, catalog: &Catalog) -> Option<NextnSpec> {
        hyper.nextn?;
        let known = Known {
            number: hyper.layers,
            hyper,
            catalog,
        };
        let embedding = known.stem("nextn.embed_tokens.weight");
        let hidden = hyper.hidden;
        Some(NextnSpec {
            embedding: match catalog.tensor_named(&embedding) {
                Some(_) => embedding,
                None => EMBEDDING.to_owned(),
            },
            token_norm: known.norm_if_there("nextn.enorm", hidden)?,
            hidden_norm: known.norm_if_there("nextn.hnorm", hidden)?,
            projection: known
                .has("nextn.eh_proj")
                .then(|| known.linear("nextn.eh_proj", hidden, 2 * hidden))?,
            layer: LayerSpec::new(hyper, hyper.layers, catalog),
        })
    }
}

/// A layer: its blocks follow each other on the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// In their order.
    pub blocks: Vec<BlockSpec>,
    /// A norm of the stream behind them.
    pub norm: Option<NormSpec>,
    /// The stream is multiplied by this behind them.
    pub scale: f32,
}

/// `residual(stream) + residual_scale * post_norm(sum of branches(stream))`.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSpec {
    /// Side by side: their outputs are added.
    pub branches: Vec<BranchSpec>,
    /// Behind the sum.
    pub post_norm: Option<NormSpec>,
    /// What the mixers make is multiplied by this before it is added to the stream.
    pub residual_scale: f32,
    /// What that is added to.
    pub residual: Residual,
}

/// What blocks add to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Residual {
    /// The stream.
    Stream,
    /// What the first branch's mixer reads, times this.
    Normalized(f32),
}

/// `mixer(norm(stream))`.
#[derive(Clone, Debug, PartialEq)]
pub struct BranchSpec {
    /// In front of the mixer.
    pub norm: Option<NormSpec>,
    /// The mixer.
    pub mixer: MixerSpec,
}

/// What stands in a branch.
#[derive(Clone, Debug, PartialEq)]
pub enum MixerSpec {
    /// Softmax attention.
    Attention(AttentionSpec),
    /// Multi-head latent attention.
    LatentAttention(LatentSpec),
    /// One matrix in place of attention.
    Linear(LinearSpec),
    /// A gated delta net.
    DeltaNet(DeltaSpec),
    /// A state space.
    Mamba2(Mamba2Spec),
    /// A short convolution between two gates.
    ShortConv(ShortConvSpec),
    /// A selective state space.
    Mamba(MambaSpec),
    /// Lightning attention.
    Lightning(LightningSpec),
    /// The states of RWKV 6.
    Wkv6(Wkv6Spec),
    /// The states of RWKV 7.
    Wkv7(Wkv7Spec),
    /// RWKV's network, which also reads the position before.
    ChannelMix(ChannelMixSpec),
    /// A feed-forward network.
    Ffn(FfnSpec),
    /// A mixture of experts.
    Moe(MoeSpec),
}

/// What a mixer has to do with the numbers that the first layer carries to all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// Nothing.
    None,
    /// It makes them: its outputs stand behind them.
    Makes,
    /// It reads them: they stand behind its inputs.
    Reads,
}

impl MixerSpec {
    /// What it has to do with what the first layer carries to all others.
    pub fn carry(&self) -> Carry {
        match self {
            MixerSpec::Wkv7(spec) if spec.values.is_some() => Carry::Reads,
            MixerSpec::Wkv7(_) => Carry::Makes,
            _ => Carry::None,
        }
    }
}

/// A norm.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// The tensors' name without `.weight` and `.bias`.
    pub stem: String,
    /// Its kind.
    pub kind: Norm,
    /// Added to what it divides by.
    pub epsilon: f32,
    /// Numbers that are normalized together.
    pub len: usize,
    /// Rows of weights: more than one if each head has its own.
    pub groups: usize,
}

/// A weight matrix that multiplies activations, or one for each expert or head.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearSpec {
    /// The tensors' name without `.weight` and `.bias`.
    pub stem: String,
    /// Matrices, if there is one for each expert or head.
    pub experts: Option<usize>,
    /// Length of an output.
    pub rows: usize,
    /// Length of an input.
    pub columns: usize,
}

/// Attention of heads that share keys and values in groups.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Heads, and what a token sees.
    pub numbers: AttentionNumbers,
    /// The matrices of queries, keys and values.
    pub projections: Projections,
    /// A norm of queries, head by head or over all of them.
    pub query_norm: Option<NormSpec>,
    /// The same of keys.
    pub key_norm: Option<NormSpec>,
    /// The tensor of sinks: one logit per head, which takes its part of the probabilities and has no
    /// value.
    pub sinks: Option<String>,
    /// Whether both norms stand behind the rotation.
    pub norms_rotated: bool,
    /// The gate of the heads' outputs.
    pub gate: Gate,
    /// What makes its factors.
    pub gate_activation: Activation,
    /// The norm in front of the output matrix.
    pub output_norm: Option<NormSpec>,
    /// The output matrix.
    pub output: LinearSpec,
    /// How heads are rotated.
    pub rope: Rope,
    /// Scores are multiplied by this.
    pub score_scale: f32,
    /// How queries grow with their position.
    pub temperature: Option<Temperature>,
    /// Scores are bent to stay below this.
    pub score_cap: Option<f32>,
    /// Distances are held against scores by this times each head's slope (ALiBi, Press et al. 2022).
    pub max_alibi_bias: Option<f32>,
    /// Queries, keys and values are clamped to plus and minus this.
    pub clamp: Option<f32>,
}

/// A matrix, or the two factors of one of low rank.
#[derive(Clone, Debug, PartialEq)]
pub enum Factored {
    /// One matrix.
    Whole(LinearSpec),
    /// Two.
    LowRank {
        /// Reads the input.
        first: LinearSpec,
        /// A norm between both.
        norm: Option<NormSpec>,
        /// Reads what the first one makes.
        second: LinearSpec,
    },
}

/// Multi-head latent attention (DeepSeek-AI 2024) in its absorbed form: keys and values of all heads
/// are a latent vector and a rotated part; each head has a matrix in front of the scores, and one
/// behind the mix of values.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSpec {
    /// Lengths.
    pub numbers: LatentNumbers,
    /// Heads, and what a token sees.
    pub attention: AttentionNumbers,
    /// The matrix of queries.
    pub query: Factored,
    /// The matrix of the latent vector and the rotated part of keys.
    pub compression: LinearSpec,
    /// The norm of the latent vector.
    pub norm: NormSpec,
    /// By head: from a query to a query of the latent vector.
    pub key: LinearSpec,
    /// By head: from the latent vector to the output.
    pub value: LinearSpec,
    /// The gate of the heads' outputs.
    pub gate: Gate,
    /// The output matrix.
    pub output: LinearSpec,
    /// How heads are rotated.
    pub rope: Rope,
    /// Scores are multiplied by this.
    pub score_scale: f32,
    /// How queries grow with their position.
    pub temperature: Option<Temperature>,
    /// Which tokens a query sees; None for all before it.
    pub sparse: Option<SparseSpec>,
}

/// Which tokens queries see.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseSpec {
    /// How many.
    pub top_k: usize,
    /// What chooses them; None if they are those of the last layer in front that has an indexer.
    pub indexer: Option<IndexerSpec>,
}

/// An indexer ([`IndexerNumbers`]).
#[derive(Clone, Debug, PartialEq)]
pub struct IndexerSpec {
    /// Heads.
    pub numbers: IndexerNumbers,
    /// From the factor of queries to the indexer's queries.
    pub query: LinearSpec,
    /// Its keys.
    pub key: LinearSpec,
    /// The norm of its keys.
    pub key_norm: NormSpec,
    /// The weights of its heads.
    pub weights: LinearSpec,
    /// How its queries and keys are rotated.
    pub rope: Rope,
}

/// A gated delta net (Yang et al. 2025): a causal convolution over queries, keys and values, then a
/// state per head that forgets, and learns by the delta rule.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaSpec {
    /// Heads and the length of the convolution.
    pub numbers: DeltaNumbers,
    /// The matrices of queries, keys and values.
    pub projections: Projections,
    /// The gate of what the heads put out.
    pub gate: Factored,
    /// What stands behind the gate.
    pub gate_activation: Activation,
    /// The matrices of strength and step.
    pub rates: Rates,
    /// The tensor that is added to the step: one number per decay.
    pub step_bias: String,
    /// The tensor that multiplies the step: one number per head of values, below 0 without a bound.
    pub decay: String,
    /// The logarithm of the least that a step keeps, below 0.
    pub decay_bound: Option<f32>,
    /// The tensors of the convolution, of queries before keys before values: one kernel per channel.
    pub convolutions: Vec<String>,
    /// The norm of what a head puts out.
    pub norm: NormSpec,
    /// The output matrix.
    pub output: LinearSpec,
    /// The least length by which queries and keys are divided.
    pub epsilon: f32,
}

/// The matrices of a delta net's rates: how much of an error a head learns, before the logistic
/// function, and how fast it forgets, before its bias and softplus.
#[derive(Clone, Debug, PartialEq)]
pub enum Rates {
    /// One each.
    Apart {
        /// Of strengths.
        strength: LinearSpec,
        /// Of steps.
        step: Factored,
    },
    /// For every head of keys, the rows of strengths of the heads that share it, then those of steps.
    Fused(LinearSpec),
}

/// A state space (Mamba-2, Dao and Gu 2024): a causal convolution over values, keys and queries, then
/// a state per head that forgets.
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba2Spec {
    /// Heads and the length of the convolution.
    pub numbers: Mamba2Numbers,
    /// The matrix with the rows of gates before those of values, keys, queries and steps; or with the
    /// rows of gates before those of values, of each head.
    pub input: LinearSpec,
    /// In the second case, what keys, queries and steps are made of.
    pub factors: Option<FactorsSpec>,
    /// The tensor of the convolution: one kernel per channel.
    pub convolution: String,
    /// The tensor that is added behind it: one number per channel.
    pub convolution_bias: Option<String>,
    /// The tensor that is added to the steps: one number per head.
    pub step_bias: String,
    /// The tensor that multiplies them: one number below 0 per head.
    pub decay: String,
    /// How much of a value goes past the states: one number per head.
    pub skip: String,
    /// The norm behind the gate, of the heads that share keys.
    pub norm: Option<NormSpec>,
    /// The output matrix.
    pub output: LinearSpec,
}

/// A short convolution between two gates (Liquid AI 2025).
#[derive(Clone, Debug, PartialEq)]
pub struct ShortConvSpec {
    /// Channels and length.
    pub numbers: ConvolutionNumbers,
    /// The matrix with the rows of the gate in front before those of the gate behind before those of
    /// what goes through.
    pub input: LinearSpec,
    /// The tensor of the convolution: one kernel per channel.
    pub convolution: String,
    /// The output matrix.
    pub output: LinearSpec,
}

/// A selective state space (Mamba, Gu and Dao 2023): a causal convolution, then a state per channel
/// that forgets.
#[derive(Clone, Debug, PartialEq)]
pub struct MambaSpec {
    /// Sizes.
    pub numbers: MambaNumbers,
    /// The matrix with the rows of values before those of gates.
    pub input: LinearSpec,
    /// The tensor of the convolution: one kernel per channel.
    pub convolution: String,
    /// The tensor that is added behind it: one number per channel.
    pub convolution_bias: String,
    /// The matrix with the rows of ranks before those of keys before those of queries.
    pub parameters: LinearSpec,
    /// The norms of ranks, keys and queries.
    pub norms: Option<[NormSpec; 3]>,
    /// The matrix from ranks to the steps of all channels.
    pub step: LinearSpec,
    /// The tensor that multiplies the steps: one number for each of the states.
    pub decay: String,
    /// How much of a value goes past the states: one number per channel.
    pub skip: String,
    /// The output matrix.
    pub output: LinearSpec,
}

/// Keys, queries and steps that are made of values.
#[derive(Clone, Debug, PartialEq)]
pub struct FactorsSpec {
    /// The matrix with the rows of keys before those of queries before those that steps are made of.
    pub parameters: LinearSpec,
    /// The norms of the three.
    pub norms: [NormSpec; 3],
    /// The matrix of steps.
    pub step: LinearSpec,
}

/// Attention without softmax, whose states forget at a fixed rate (lightning attention, Qin et al.
/// 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct LightningSpec {
    /// Heads, and how fast they forget.
    pub numbers: LightningNumbers,
    /// The matrix with the rows of queries, keys and values of each head.
    pub projections: LinearSpec,
    /// The gate of what the heads put out.
    pub gate: LinearSpec,
    /// The norm of what all heads put out.
    pub norm: NormSpec,
    /// The output matrix.
    pub output: LinearSpec,
}

/// The states of RWKV 6 (Peng et al. 2024). Five mixes of a position with the one before, of decay,
/// key, value, receptance and gate, depend on the position themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Wkv6Spec {
    /// Heads.
    pub numbers: WkvNumbers,
    /// The tensor of the mix that all five are made of: one number per channel.
    pub first_mix: String,
    /// The tensors that are added to the five: one number per channel, of all five or one each.
    pub mixes: Vec<String>,
    /// The matrix with the rows of all five, in front of the hyperbolic tangent.
    pub mix_factor: LinearSpec,
    /// One matrix for each of the five behind it.
    pub mix_outputs: LinearSpec,
    /// The factors of decays, with a hyperbolic tangent between them.
    pub decay: [LinearSpec; 2],
    /// The tensor that is added to them: one number per channel.
    pub decay_bias: String,
    /// The tensor of how much a position counts for itself: one number per channel.
    pub bonus: Option<String>,
    /// The matrix of receptances.
    pub receptance: LinearSpec,
    /// The matrix of keys.
    pub key: LinearSpec,
    /// The matrix of values.
    pub value: LinearSpec,
    /// The matrix of gates.
    pub gate: LinearSpec,
    /// The norm of what a head puts out.
    pub norm: Option<NormSpec>,
    /// The output matrix.
    pub output: LinearSpec,
}

/// A matrix of low rank whose product is added to one number per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct RankSpec {
    /// Both factors.
    pub factors: [LinearSpec; 2],
    /// The tensor that is added.
    pub bias: String,
}

/// The states of RWKV 7 (Peng et al. 2025). Receptance, decay, key, value, rate and gate read mixes
/// of a position with the one before.
#[derive(Clone, Debug, PartialEq)]
pub struct Wkv7Spec {
    /// Heads.
    pub numbers: WkvNumbers,
    /// The tensor of the mixes: one number per channel of each.
    pub mixes: String,
    /// How fast states forget.
    pub decay: RankSpec,
    /// How much they take back of what they had learned.
    pub rate: RankSpec,
    /// How much of the first layer's values is mixed in; None in the first layer.
    pub values: Option<RankSpec>,
    /// The factors of the gate.
    pub gate: Option<[LinearSpec; 2]>,
    /// The tensor that multiplies keys where they are taken back: one number per channel.
    pub key_scale: String,
    /// The tensor of how much the rate has to do with keys: one number per channel.
    pub key_rate: String,
    /// The tensor of how much a position counts for itself: one number per channel.
    pub bonus: String,
    /// The matrix of receptances.
    pub receptance: LinearSpec,
    /// The matrix of keys.
    pub key: LinearSpec,
    /// The matrix of values.
    pub value: LinearSpec,
    /// The norm of what a head puts out.
    pub norm: Option<NormSpec>,
    /// The output matrix.
    pub output: LinearSpec,
}

/// RWKV's network: squared ReLU between two matrices, in RWKV 6 under a receptance.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelMixSpec {
    /// The tensor of the mix of a position with the one before that keys read: one number per channel.
    pub key_mix: String,
    /// The first matrix.
    pub key: LinearSpec,
    /// The second matrix.
    pub value: LinearSpec,
    /// The matrix of receptances, and the tensor of their mix.
    pub receptance: Option<ReceptanceSpec>,
}

/// The receptances of RWKV 6's network.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceptanceSpec {
    /// The matrix.
    pub matrix: LinearSpec,
    /// The tensor of the mix that it reads: one number per channel.
    pub mix: String,
}

/// The gate of the heads' outputs, which an activation of it multiplies.
#[derive(Clone, Debug, PartialEq)]
pub enum Gate {
    /// There is none.
    None,
    /// The rows of each head's queries are followed by as many of the gate.
    Queries,
    /// Its own matrix, with a row per head or per element.
    Own(LinearSpec),
}

/// The matrices of queries, keys and values.
#[derive(Clone, Debug, PartialEq)]
pub enum Projections {
    /// One each, in this order.
    Apart([LinearSpec; 3]),
    /// One with the rows of queries before those of keys before those of values.
    Fused(LinearSpec),
}

/// A feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub struct FfnSpec {
    /// The matrices of the first stage.
    pub first: First,
    /// The norm in front of the second stage.
    pub inner_norm: Option<NormSpec>,
    /// The matrix of the second stage.
    pub down: LinearSpec,
    /// What stands between them.
    pub activation: Activation,
    /// How far gate and up go.
    pub limit: Option<Limit>,
}

/// The matrices of a feed-forward network's first stage.
#[derive(Clone, Debug, PartialEq)]
pub enum First {
    /// `activation(gate) * up`.
    Gated {
        /// The gate.
        gate: LinearSpec,
        /// What it multiplies.
        up: LinearSpec,
    },
    /// The same with the rows of gate before those of up in one matrix.
    Fused(LinearSpec),
    /// `activation(up)`.
    Plain(LinearSpec),
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// Scores the experts.
    pub router: LinearSpec,
    /// The tensor that is added to probabilities where experts are chosen: one number per expert.
    pub selection_bias: Option<String>,
    /// How experts are chosen and weighed.
    pub routing: Routing,
    /// The matrix from the input to what experts read, and that from what they make to the output;
    /// None if experts read the input.
    pub latent: Option<[LinearSpec; 2]>,
    /// The experts: each matrix is one per expert.
    pub experts: FfnSpec,
    /// The expert that sees every token.
    pub shared: Option<SharedSpec>,
    /// What all of them make is multiplied by this.
    pub scale: f32,
}

/// The expert that sees every token.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedSpec {
    /// Weighs it; None if it counts as it is.
    pub router: Option<LinearSpec>,
    /// The expert.
    pub ffn: FfnSpec,
}

/// What is known of a layer: its number, its model, its tensors.
struct Known<'k> {
    number: usize,
    hyper: &'k Hyper,
    catalog: &'k Catalog,
}

impl LayerSpec {
    /// A layer of a model; behind the last one stands the block for a further token.
    fn new(hyper: &Hyper, number: usize, catalog: &Catalog) -> LayerSpec {
        let known = Known {
            number,
            hyper,
            catalog,
        };
        let attention = hyper.attention.get(number).copied();
        let attention = match attention.unwrap_or(hyper.nextn) {
            Some(numbers) => Some(match hyper.latent {
                Some(latent) => MixerSpec::LatentAttention(known.latent(latent, numbers)),
                None => MixerSpec::Attention(known.attention(numbers)),
            }),
            None if hyper.is_linear.get(number) == Some(&true) => {
                let linear = known.linear("attn_output", hyper.hidden, hyper.hidden);
                Some(MixerSpec::Linear(linear))
            }
            None => None,
        };
        let has_ffn = hyper.has_ffn.get(number) != Some(&false);
        let ffn = has_ffn.then(|| known.ffn_or_moe());
        let layout = match hyper.decoder.layout {
            Layout::ParallelWithout(norm) if known.has(norm) => Layout::Sequential(norm),
            // Where layers are one of both, a block for a further token is one behind the other.
            Layout::Sequential("attn_norm") if number == hyper.layers => {
                Layout::Sequential("post_attention_norm")
            }
            layout => layout,
        };
        let recurrent = hyper.recurrent.get(number).copied().flatten();
        // Elsewhere it is another norm.
        let is_second = !matches!(recurrent, Some(Recurrent::Lightning(_) | Recurrent::Wkv(_)));
        let attention_norm = match known.has("attn_norm_2") && is_second {
            true => "attn_norm_2",
            false => "attn_norm",
        };
        let recurrent = recurrent.map(|numbers| known.recurrent(numbers));
        let attention = attention.into_iter().chain(recurrent);
        let attention: Vec<_> = attention
            .map(|mixer| known.branch(attention_norm, mixer))
            .collect();
        let sequential = |norm: &str| {
            // Some families call the norm in front of the network that behind attention.
            let post_norm = Some("post_attention_norm").filter(|name| *name != norm);
            let attention = Some(attention.clone()).filter(|branches| !branches.is_empty());
            let attention = attention.map(|branches| {
                let block = known.block(branches, post_norm);
                BlockSpec {
                    residual_scale: block.residual_scale * hyper.value_scale,
                    ..block
                }
            });
            let ffn = ffn.clone().map(|mixer| known.branch(norm, mixer));
            let ffn = ffn.map(|branch| known.block(vec![branch], Some("post_ffw_norm")));
            attention.into_iter().chain(ffn).collect()
        };
        let parallel = |norm: &str| {
            let ffn = ffn.clone().map(|mixer| known.branch(norm, mixer));
            let branches = attention.clone().into_iter().chain(ffn).collect();
            vec![known.block(branches, None)]
        };
        let blocks = match layout {
            Layout::Sequential(norm) => sequential(norm),
            Layout::Switched if !hyper.parallel => sequential("ffn_norm"),
            Layout::Switched => parallel("ffn_norm"),
            Layout::Parallel | Layout::ParallelWithout(_) => parallel("attn_norm"),
        };
        let is_halved = |every: usize| (number + 1).is_multiple_of(every);
        LayerSpec {
            blocks,
            norm: None,
            scale: match hyper.halved_every.is_some_and(is_halved) {
                true => 0.5,
                false => 1.0,
            },
        }
    }

    /// The mixers of all blocks.
    pub(crate) fn mixers(&self) -> impl Iterator<Item = &MixerSpec> {
        let branches = self.blocks.iter().flat_map(|block| &block.branches);
        branches.map(|branch| &branch.mixer)
    }

    /// Stages of all mixers: within one, all linears read one input.
    pub fn stages(&self) -> usize {
        let stages = |mixer: &MixerSpec| match mixer {
            MixerSpec::Attention(_)
            | MixerSpec::LatentAttention(_)
            | MixerSpec::DeltaNet(_)
            | MixerSpec::Mamba2(_)
            | MixerSpec::ShortConv(_)
            | MixerSpec::Mamba(_)
            | MixerSpec::Lightning(_)
            | MixerSpec::Ffn(_) => 2,
            // The shift, one for each matrix behind it, and one for the states.
            MixerSpec::Wkv6(_) => 7,
            MixerSpec::Wkv7(_) => 6,
            MixerSpec::ChannelMix(spec) => 3 + usize::from(spec.receptance.is_some()),
            MixerSpec::Moe(_) | MixerSpec::Linear(_) => 1,
        };
        self.mixers().map(stages).sum()
    }
}

impl NormSpec {
    /// The norm of embeddings, of which the file has no weights.
    fn weightless(hyper: &Hyper) -> NormSpec {
        NormSpec {
            stem: "token_embd_norm".into(),
            kind: hyper.decoder.norm,
            epsilon: hyper.epsilon,
            len: hyper.hidden,
            groups: 1,
        }
    }

    /// A norm, if the file has it: a layer norm may have no weights, and is there all the same.
    fn new(hyper: &Hyper, catalog: &Catalog, stem: String, len: usize) -> Option<NormSpec> {
        let kind = hyper.decoder.norm;
        let there = kind == Norm::Layer || catalog.weight_of(&stem).is_some();
        there.then_some(NormSpec {
            stem,
            kind,
            epsilon: hyper.epsilon,
            len,
            groups: 1,
        })
    }
}

impl Known<'_> {
    fn stem(&self, name: &str) -> String {
        format!("blk.{}.{name}", self.number)
    }

    fn dims(&self, name: &str) -> Option<[u64; 4]> {
        let name = format!("{}.weight", self.stem(name));
        let id = self.catalog.tensor_named(&name)?;
        Some(self.catalog.tensor(id).dims)
    }

    fn has(&self, name: &str) -> bool {
        self.dims(name).is_some()
    }

    /// Whether there is a weight, whatever its name ends with.
    fn has_weight(&self, name: &str) -> bool {
        self.catalog.weight_of(&self.stem(name)).is_some()
    }

    /// One of the dimensions of a tensor; 0 if it is missing, which loading it will say.
    fn dim(&self, name: &str, which: usize) -> usize {
        self.dims(name).map_or(0, |dims| dims[which] as usize)
    }

    fn branch(&self, norm: &str, mixer: MixerSpec) -> BranchSpec {
        BranchSpec {
            norm: self.norm(norm, self.hyper.hidden),
            mixer,
        }
    }

    fn block(&self, branches: Vec<BranchSpec>, post_norm: Option<&str>) -> BlockSpec {
        let post_norm = post_norm.filter(|name| self.has_weight(name));
        let post_norm = post_norm.and_then(|name| self.norm(name, self.hyper.hidden));
        let epsilon = self.hyper.decoder.post_norm_epsilon;
        BlockSpec {
            branches,
            post_norm: post_norm.map(|norm| NormSpec {
                epsilon: epsilon.unwrap_or(norm.epsilon),
                ..norm
            }),
            residual_scale: match self.hyper.decoder.normalized_residuals {
                true => 1.0,
                false => self.hyper.residual_scale,
            },
            residual: match self.hyper.decoder.normalized_residuals {
                true => Residual::Normalized(self.hyper.residual_scale),
                false => Residual::Stream,
            },
        }
    }

    fn norm(&self, name: &str, len: usize) -> Option<NormSpec> {
        NormSpec::new(self.hyper, self.catalog, self.stem(name), len)
    }

    /// A norm that few files have.
    fn norm_if_there(&self, name: &str, len: usize) -> Option<NormSpec> {
        self.has(name).then(|| self.norm(name, len))?
    }

    /// A norm of heads: with weights for one head, with weights for each, or over all of them.
    fn norm_of_heads(&self, name: &str, len: usize, heads: usize) -> Option<NormSpec> {
        let dims = self.dims(name)?;
        let all = len * heads;
        if heads > 1 && dims[..2] == [len as u64, heads as u64] {
            let norm = self.norm(name, len)?;
            return Some(NormSpec {
                groups: heads,
                ..norm
            });
        }
        let is_whole = dims.iter().product::<u64>() == all as u64;
        self.norm(name, if is_whole { all } else { len })
    }

    fn linear(&self, name: &str, rows: usize, columns: usize) -> LinearSpec {
        LinearSpec {
            stem: self.stem(name),
            experts: None,
            rows,
            columns,
        }
    }

    fn attention(&self, numbers: AttentionNumbers) -> AttentionSpec {
        let hyper = self.hyper;
        let AttentionNumbers {
            heads,
            kv_heads,
            key_length,
            value_length,
            ..
        } = numbers;
        let (queries, keys, values) = (
            heads * key_length,
            kv_heads * key_length,
            kv_heads * value_length,
        );
        let gate = match (hyper.decoder.gated_queries, self.has("attn_gate")) {
            (true, _) => Gate::Queries,
            (false, false) => Gate::None,
            (false, true) => {
                let rows = match self.dim("attn_gate", 1) == heads {
                    true => heads,
                    false => heads * value_length,
                };
                Gate::Own(self.linear("attn_gate", rows, hyper.hidden))
            }
        };
        let query_rows = match gate {
            Gate::Queries => 2 * queries,
            _ => queries,
        };
        let projections = match self.has("attn_qkv") {
            true => {
                Projections::Fused(self.linear("attn_qkv", queries + keys + values, hyper.hidden))
            }
            false => Projections::Apart([
                self.linear("attn_q", query_rows, hyper.hidden),
                self.linear("attn_k", keys, hyper.hidden),
                self.linear("attn_v", values, hyper.hidden),
            ]),
        };
        let unit_norm = |name: &str| {
            (hyper.unit_heads && numbers.rotation.is_some()).then(|| NormSpec {
                stem: self.stem(name),
                kind: Norm::Rms,
                epsilon: hyper.epsilon,
                len: key_length,
                groups: 1,
            })
        };
        AttentionSpec {
            numbers,
            projections,
            sinks: self
                .has("attn_sinks")
                .then(|| self.stem("attn_sinks.weight")),
            query_norm: self
                .norm_of_heads("attn_q_norm", key_length, heads)
                .or_else(|| unit_norm("attn_q_norm")),
            key_norm: self
                .norm_of_heads("attn_k_norm", key_length, kv_heads)
                .or_else(|| unit_norm("attn_k_norm")),
            norms_rotated: hyper.decoder.norms_rotated || hyper.unit_heads,
            gate,
            output_norm: self.norm_if_there("attn_sub_norm", heads * value_length),
            output: self.linear("attn_output", hyper.hidden, heads * value_length),
            rope: hyper.decoder.rope,
            gate_activation: hyper.decoder.gate,
            score_scale: hyper.score_scale,
            temperature: match hyper.decoder.tempering {
                Tempering::Listed => hyper.temperature,
                Tempering::Unrotated { .. } => {
                    hyper.temperature.filter(|_| numbers.rotation.is_none())
                }
            },
            score_cap: hyper.score_cap,
            max_alibi_bias: hyper.max_alibi_bias,
            clamp: hyper.clamp,
        }
    }

    /// A matrix of the first name, or with one of the second name the product of both.
    fn factored(&self, [first, second]: [&str; 2], rows: usize) -> Factored {
        let hidden = self.hyper.hidden;
        match self.has(second) {
            true => Factored::LowRank {
                first: self.linear(first, self.dim(first, 1), hidden),
                norm: None,
                second: self.linear(second, rows, self.dim(first, 1)),
            },
            false => Factored::Whole(self.linear(first, rows, hidden)),
        }
    }

    fn latent(&self, numbers: LatentNumbers, attention: AttentionNumbers) -> LatentSpec {
        let hyper = self.hyper;
        let heads = attention.heads;
        let LatentNumbers {
            rank,
            rotated,
            key_length,
            value_length,
        } = numbers;
        let of_heads = |name: &str, rows: usize, columns: usize| LinearSpec {
            experts: Some(heads),
            ..self.linear(name, rows, columns)
        };
        // The file holds weights of these norms even if a family's norms are of another kind.
        let norm = |name: &str, len: usize| NormSpec {
            stem: self.stem(name),
            kind: Norm::Rms,
            epsilon: hyper.epsilon,
            len,
            groups: 1,
        };
        let query = match self.has("attn_q_a") {
            true => {
                let length = self.dim("attn_q_a", 1);
                Factored::LowRank {
                    first: self.linear("attn_q_a", length, hyper.hidden),
                    norm: Some(norm("attn_q_a_norm", length)),
                    second: self.linear("attn_q_b", heads * key_length, length),
                }
            }
            false => Factored::Whole(self.linear("attn_q", heads * key_length, hyper.hidden)),
        };
        LatentSpec {
            numbers,
            attention,
            query,
            compression: self.linear("attn_kv_a_mqa", rank + rotated, hyper.hidden),
            norm: norm("attn_kv_a_norm", rank),
            key: of_heads("attn_k_b", rank, key_length - rotated),
            value: of_heads("attn_v_b", value_length, rank),
            gate: match self.has("attn_gate") {
                true => Gate::Own(self.linear("attn_gate", heads, hyper.hidden)),
                false => Gate::None,
            },
            output: self.linear("attn_output", hyper.hidden, heads * value_length),
            rope: hyper.decoder.rope,
            score_scale: hyper.score_scale,
            temperature: hyper.temperature,
            sparse: self.sparse(),
        }
    }

    /// Blocks behind the layers see all tokens.
    fn sparse(&self) -> Option<SparseSpec> {
        let numbers = self
            .hyper
            .indexer
            .filter(|_| self.number < self.hyper.layers)?;
        let kind = self.hyper.decoder.indexer?;
        let hidden = self.hyper.hidden;
        let IndexerNumbers { heads, length, .. } = numbers;
        let rank = self.dim("attn_q_a", 1);
        let indexer = self.has("indexer.attn_k").then(|| IndexerSpec {
            numbers,
            query: self.linear("indexer.attn_q_b", heads * length, rank),
            key: self.linear("indexer.attn_k", length, hidden),
            key_norm: NormSpec {
                stem: self.stem("indexer.k_norm"),
                kind: Norm::Layer,
                epsilon: kind.epsilon,
                len: length,
                groups: 1,
            },
            weights: self.linear("indexer.proj", heads, hidden),
            rope: kind.rope,
        });
        Some(SparseSpec {
            top_k: numbers.top_k,
            indexer,
        })
    }

    fn delta_net(&self, numbers: DeltaNumbers) -> DeltaSpec {
        let (hidden, heads) = (self.hyper.hidden, numbers.value_heads);
        let values = numbers.values();
        let strength = self.linear("ssm_beta", heads, hidden);
        let own = numbers.sharing == DeltaHeads::Own;
        let convolutions: &[&str] = match own {
            true => &["ssm_conv1d_q", "ssm_conv1d_k", "ssm_conv1d_v"],
            false => &["ssm_conv1d"],
        };
        let tensor = |name: &&str| self.stem(&format!("{name}.weight"));
        DeltaSpec {
            numbers,
            projections: match own {
                true => Projections::Apart(
                    ["attn_q", "attn_k", "attn_v"].map(|name| self.linear(name, values, hidden)),
                ),
                false => Projections::Fused(self.linear("attn_qkv", numbers.channels(), hidden)),
            },
            gate: match own {
                true => self.factored(["ssm_g_a", "ssm_g_b"], values),
                false => Factored::Whole(self.linear("attn_gate", values, hidden)),
            },
            gate_activation: match own {
                true => Activation::Sigmoid,
                false => Activation::Silu,
            },
            rates: match numbers.sharing {
                DeltaHeads::Tiled => Rates::Apart {
                    strength,
                    step: Factored::Whole(self.linear("ssm_alpha", heads, hidden)),
                },
                DeltaHeads::Grouped => Rates::Fused(self.linear("ssm_ba", 2 * heads, hidden)),
                DeltaHeads::Own => Rates::Apart {
                    strength,
                    step: self.factored(["ssm_f_a", "ssm_f_b"], numbers.decays()),
                },
            },
            step_bias: self.stem("ssm_dt.bias"),
            decay: self.stem("ssm_a"),
            decay_bound: self.hyper.decay_bound,
            convolutions: convolutions.iter().map(tensor).collect(),
            norm: NormSpec {
                stem: self.stem("ssm_norm"),
                kind: Norm::Rms,
                epsilon: self.hyper.epsilon,
                len: numbers.value_length,
                groups: 1,
            },
            output: match own {
                true => self.linear("attn_output", hidden, values),
                false => self.linear("ssm_out", hidden, values),
            },
            epsilon: self.hyper.epsilon,
        }
    }

    fn recurrent(&self, numbers: Recurrent) -> MixerSpec {
        match numbers {
            Recurrent::DeltaNet(numbers) => MixerSpec::DeltaNet(self.delta_net(numbers)),
            Recurrent::Mamba2(numbers) => MixerSpec::Mamba2(self.mamba2(numbers)),
            Recurrent::Mamba(numbers) => MixerSpec::Mamba(self.mamba(numbers)),
            Recurrent::ShortConvolution(numbers) => MixerSpec::ShortConv(self.short_conv(numbers)),
            Recurrent::Lightning(numbers) => MixerSpec::Lightning(self.lightning(numbers)),
            Recurrent::Wkv(numbers) => match numbers.kind {
                Wkv::Six | Wkv::SixGated => MixerSpec::Wkv6(self.wkv6(numbers)),
                Wkv::Seven => MixerSpec::Wkv7(self.wkv7(numbers)),
            },
        }
    }

    fn mamba2(&self, numbers: Mamba2Numbers) -> Mamba2Spec {
        let (hidden, values) = (self.hyper.hidden, numbers.values());
        let bias = self.stem("ssm_conv1d.bias");
        Mamba2Spec {
            numbers,
            input: self.linear("ssm_in", numbers.inputs(), hidden),
            factors: numbers.rank.map(|rank| self.factors(numbers, rank)),
            convolution: self.stem("ssm_conv1d.weight"),
            convolution_bias: self.catalog.tensor_named(&bias).map(|_| bias),
            step_bias: self.stem("ssm_dt.bias"),
            decay: self.stem("ssm_a"),
            skip: self.stem("ssm_d"),
            norm: self.has("ssm_norm").then(|| NormSpec {
                stem: self.stem("ssm_norm"),
                kind: Norm::Rms,
                epsilon: self.hyper.epsilon,
                len: values / numbers.groups,
                groups: numbers.groups,
            }),
            output: self.linear("ssm_out", hidden, values),
        }
    }

    fn factors(&self, numbers: Mamba2Numbers, rank: usize) -> FactorsSpec {
        let keys = numbers.keys();
        let norm = |name: &str, len: usize| NormSpec {
            stem: self.stem(name),
            kind: Norm::Rms,
            epsilon: self.hyper.epsilon,
            len,
            groups: 1,
        };
        FactorsSpec {
            parameters: self.linear("ssm_x", 2 * keys + rank, numbers.values()),
            norms: [
                norm("ssm_b_norm", keys),
                norm("ssm_c_norm", keys),
                norm("ssm_dt_norm", rank),
            ],
            step: self.linear("ssm_dt", numbers.heads, rank),
        }
    }

    /// Both factors of a matrix of low rank.
    fn ranks(&self, [first, second]: [&str; 2]) -> [LinearSpec; 2] {
        let (hidden, rank) = (self.hyper.hidden, self.dim(first, 1));
        [
            self.linear(first, rank, hidden),
            self.linear(second, hidden, rank),
        ]
    }

    /// The norm of the heads of RWKV's states.
    fn wkv_norm(&self, numbers: WkvNumbers) -> Option<NormSpec> {
        const EPSILON: f32 = 64e-5;
        self.has("time_mix_ln").then(|| NormSpec {
            stem: self.stem("time_mix_ln"),
            kind: Norm::Layer,
            epsilon: EPSILON,
            len: numbers.length,
            groups: numbers.heads,
        })
    }

    fn wkv6(&self, numbers: WkvNumbers) -> Wkv6Spec {
        /// Mixes.
        const COUNT: usize = 5;
        let (hidden, keys) = (self.hyper.hidden, numbers.keys());
        let tensor = |name: &str| self.stem(&format!("{name}.weight"));
        let fused = tensor("time_mix_lerp_fused");
        let rank = self.dim("time_mix_w2", 0);
        Wkv6Spec {
            numbers,
            first_mix: tensor("time_mix_lerp_x"),
            mixes: match self.catalog.tensor_named(&fused) {
                Some(_) => vec![fused],
                None => ["w", "k", "v", "r", "g"]
                    .map(|mix| tensor(&format!("time_mix_lerp_{mix}")))
                    .into(),
            },
            mix_factor: self.linear("time_mix_w1", COUNT * rank, hidden),
            mix_outputs: LinearSpec {
                experts: Some(COUNT),
                ..self.linear("time_mix_w2", hidden, rank)
            },
            decay: self.ranks(["time_mix_decay_w1", "time_mix_decay_w2"]),
            decay_bias: tensor("time_mix_decay"),
            bonus: (numbers.kind == Wkv::Six).then(|| tensor("time_mix_first")),
            receptance: self.linear("time_mix_receptance", hidden, hidden),
            key: self.linear("time_mix_key", keys, hidden),
            value: self.linear("time_mix_value", keys, hidden),
            gate: self.linear("time_mix_gate", hidden, hidden),
            norm: self.wkv_norm(numbers),
            output: self.linear("time_mix_output", hidden, hidden),
        }
    }

    fn wkv7(&self, numbers: WkvNumbers) -> Wkv7Spec {
        let hidden = self.hyper.hidden;
        let tensor = |name: &str| self.stem(&format!("{name}.weight"));
        let rank = |[first, second, bias]: [&str; 3]| RankSpec {
            factors: self.ranks([first, second]),
            bias: tensor(bias),
        };
        let square = |name: &str| self.linear(name, hidden, hidden);
        Wkv7Spec {
            numbers,
            mixes: tensor("time_mix_lerp_fused"),
            decay: rank(["time_mix_w1", "time_mix_w2", "time_mix_w0"]),
            rate: rank(["time_mix_a1", "time_mix_a2", "time_mix_a0"]),
            values: (self.number > 0).then(|| rank(["time_mix_v1", "time_mix_v2", "time_mix_v0"])),
            gate: (self.has("time_mix_g1") && self.has("time_mix_g2"))
                .then(|| self.ranks(["time_mix_g1", "time_mix_g2"])),
            key_scale: tensor("time_mix_k_k"),
            key_rate: tensor("time_mix_k_a"),
            bonus: tensor("time_mix_r_k"),
            receptance: square("time_mix_receptance"),
            key: square("time_mix_key"),
            value: square("time_mix_value"),
            norm: self.wkv_norm(numbers),
            output: square("time_mix_output"),
        }
    }

    fn channel_mix(&self) -> ChannelMixSpec {
        let hidden = self.hyper.hidden;
        let length = self.dim("channel_mix_key", 1);
        let tensor = |name: &str| self.stem(&format!("{name}.weight"));
        ChannelMixSpec {
            key_mix: tensor("channel_mix_lerp_k"),
            key: self.linear("channel_mix_key", length, hidden),
            value: self.linear("channel_mix_value", hidden, length),
            receptance: self.has("channel_mix_receptance").then(|| ReceptanceSpec {
                matrix: self.linear("channel_mix_receptance", hidden, hidden),
                mix: tensor("channel_mix_lerp_r"),
            }),
        }
    }

    fn lightning(&self, numbers: LightningNumbers) -> LightningSpec {
        let (hidden, values) = (self.hyper.hidden, numbers.values());
        LightningSpec {
            numbers,
            projections: self.linear("attn_qkv", 3 * values, hidden),
            gate: self.linear("attn_gate", values, hidden),
            norm: NormSpec {
                stem: self.stem("attn_norm_2"),
                kind: Norm::Rms,
                epsilon: self.hyper.epsilon,
                len: values,
                groups: 1,
            },
            output: self.linear("attn_output", hidden, values),
        }
    }

    /// What stands between the matrices of the feed-forward network; behind the layers, that of the
    /// last one.
    fn activation(&self) -> Activation {
        let activations = &self.hyper.activations;
        activations[self.number.min(activations.len() - 1)]
    }

    /// The limit of activations in the feed-forward network, or in its experts; behind the layers, the
    /// family's.
    fn limit(&self, experts: bool) -> Option<Limit> {
        let limits = match experts {
            true => &self.hyper.expert_limits,
            false => &self.hyper.limits,
        };
        let listed = limits.get(self.number).copied().flatten();
        let limit = |limit: f32| match self.hyper.decoder.limits_in_front {
            true => Limit::InFront { limit, offset: 0.0 },
            false => Limit::Behind(limit),
        };
        listed.map(limit).or(self.hyper.decoder.limit)
    }

    /// How the router weighs experts; behind the layers, as in the last one.
    fn routing(&self) -> Routing {
        let routing = &self.hyper.routing;
        routing[self.number.min(routing.len() - 1)]
    }

    fn short_conv(&self, numbers: ConvolutionNumbers) -> ShortConvSpec {
        let channels = numbers.channels;
        ShortConvSpec {
            numbers,
            input: self.linear("shortconv.in_proj", 3 * channels, self.hyper.hidden),
            convolution: self.stem("shortconv.conv.weight"),
            output: self.linear("shortconv.out_proj", self.hyper.hidden, channels),
        }
    }

    fn mamba(&self, numbers: MambaNumbers) -> MambaSpec {
        let MambaNumbers {
            channels,
            state,
            rank,
            ..
        } = numbers;
        let hidden = self.hyper.hidden;
        let norm = |name: &str, len: usize| NormSpec {
            stem: self.stem(name),
            kind: Norm::Rms,
            epsilon: self.hyper.epsilon,
            len,
            groups: 1,
        };
        MambaSpec {
            numbers,
            input: self.linear("ssm_in", 2 * channels, hidden),
            convolution: self.stem("ssm_conv1d.weight"),
            convolution_bias: self.stem("ssm_conv1d.bias"),
            parameters: self.linear("ssm_x", rank + 2 * state, channels),
            norms: (numbers.is_normalized || self.has("ssm_dt_norm")).then(|| {
                [
                    norm("ssm_dt_norm", rank),
                    norm("ssm_b_norm", state),
                    norm("ssm_c_norm", state),
                ]
            }),
            step: self.linear("ssm_dt", channels, rank),
            decay: self.stem("ssm_a"),
            skip: self.stem("ssm_d"),
            output: self.linear("ssm_out", hidden, channels),
        }
    }

    fn ffn_or_moe(&self) -> MixerSpec {
        if self.has("channel_mix_key") {
            return MixerSpec::ChannelMix(self.channel_mix());
        }
        match self.has("ffn_gate_inp") {
            true => MixerSpec::Moe(self.moe()),
            false => MixerSpec::Ffn(self.ffn("", self.hyper.hidden)),
        }
    }

    /// The network of matrices whose names end so, which reads rows of this length.
    fn ffn(&self, suffix: &str, columns: usize) -> FfnSpec {
        let [gate, up, fused, down] =
            ["gate", "up", "gate_up", "down"].map(|name| format!("ffn_{name}{suffix}"));
        let up = if self.has(&fused) { fused } else { up };
        let sample = match self.has(&up) {
            true => &up,
            false => &gate,
        };
        let rows = self.dim(sample, 1);
        let experts = suffix.ends_with(OF_EXPERTS).then(|| self.dim(sample, 2));
        let linear = |name: &str, rows: usize, columns: usize| LinearSpec {
            experts,
            ..self.linear(name, rows, columns)
        };
        let length = match self.has(&gate) {
            true => rows,
            false => self.dim(&down, 0),
        };
        let first = match (self.has(&gate), rows == 2 * length) {
            (true, _) => First::Gated {
                gate: linear(&gate, rows, columns),
                up: linear(&up, rows, columns),
            },
            (false, true) => First::Fused(linear(&up, rows, columns)),
            (false, false) => First::Plain(linear(&up, rows, columns)),
        };
        FfnSpec {
            first,
            inner_norm: self.norm_if_there(&format!("ffn_sub_norm{suffix}"), length),
            down: linear(&down, columns, length),
            activation: self.activation(),
            limit: self.limit(experts.is_some()),
        }
    }

    fn moe(&self) -> MoeSpec {
        let hidden = self.hyper.hidden;
        let latent = self.has("ffn_latent_down").then(|| {
            let length = self.dim("ffn_latent_down", 1);
            [
                self.linear("ffn_latent_down", length, hidden),
                self.linear("ffn_latent_up", hidden, length),
            ]
        });
        let columns = latent.as_ref().map_or(hidden, |[down, _]| down.rows);
        let experts = self.ffn("_exps", columns);
        let shared = self.has("ffn_up_shexp").then(|| SharedSpec {
            router: self
                .has("ffn_gate_inp_shexp")
                .then(|| self.linear("ffn_gate_inp_shexp", 1, hidden)),
            ffn: self.ffn("_shexp", hidden),
        });
        // One family's files have a name without an ending.
        let names = ["exp_probs_b.bias", "exp_probs_b"].map(|name| self.stem(name));
        let is_there = |name: &String| self.catalog.tensor_named(name).is_some();
        let selection_bias = names.into_iter().find(is_there);
        MoeSpec {
            router: self.linear("ffn_gate_inp", experts.down.experts.unwrap_or(0), hidden),
            selection_bias,
            routing: self.routing(),
            latent,
            experts,
            scale: match shared.is_some() {
                true => self.hyper.decoder.shared_scale,
                false => 1.0,
            },
            shared,
        }
    }
}
