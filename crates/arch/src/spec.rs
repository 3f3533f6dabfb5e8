//! A model as data: layers of blocks, blocks of a norm, parallel mixers and an optional post-norm,
//! and the tensors of each.
//!
//! Properties visible in a file's tensors (biases, QK norms, post-norms, experts, fused matrices)
//! are determined here, once, when a model is opened.

use crate::catalog::{EMBEDDING, OF_EXPERTS, OUTPUT};
use crate::hyper::{
    AdjugateNumbers, AttentionNumbers, Cache, Columns, ConvolutionNumbers, DeltaNumbers, Hyper,
    IndexerNumbers, LatentNumbers, LightningNumbers, Mamba2Numbers, MambaNumbers, Recurrent,
    Routing, Temperature, WkvNumbers,
};
use crate::role::PER_LAYER_EMBEDDING;
use crate::{
    Activation, Catalog, DeltaHeads, Dense, Layout, Limit, Norm, Rope, Streams, Tempering, Wkv,
};
use std::f32::consts::FRAC_1_SQRT_2;

/// The position table of models that add positions to their embeddings.
const POSITIONS: &str = "position_embd.weight";
/// The table of token types; all tokens of a text have the first.
const TOKEN_TYPES: &str = "token_types.weight";
/// The matrices after the pooling of an embedding model, without `.weight`.
const DENSE: [&str; 2] = ["dense_2", "dense_3"];
/// The norm after the embeddings.
const EMBEDDING_NORM: &str = "token_embd_norm.weight";
/// Divisors of RoPE angles for every context, for short and for long ones.
const FACTORS: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
];

/// The forward pass of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Layers, repeated in looped models.
    pub layers: Vec<LayerSpec>,
    /// The table of token embeddings.
    pub embedding: &'static str,
    /// The table of learned positions, added to token embeddings.
    pub positions: Option<&'static str>,
    /// The table of token types, whose first row is added to token embeddings.
    pub token_types: Option<&'static str>,
    /// The matrices after the pooling of an embedding model.
    pub dense: Vec<DenseSpec>,
    /// The norm after the embeddings.
    pub embedding_norm: Option<NormSpec>,
    /// Per-layer embeddings, inputs of every layer.
    pub per_layer: Option<PerLayerInputsSpec>,
    /// The matrices between embedding, residual streams and output; None with one stream.
    pub streams: Option<StreamsSpec>,
    /// The norm before the output matrix.
    pub output_norm: Option<NormSpec>,
    /// The output matrix.
    pub output: LinearSpec,
    /// Weight of the output matrix, possibly the table of token embeddings.
    pub output_name: &'static str,
    /// The multi-token prediction block, if present and supported.
    pub nextn: Option<NextnSpec>,
    /// Tensors of divisors of RoPE angles, for short and long contexts.
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
        // The norm after the last loop is the norm before the output matrix.
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
            token_types: there(TOKEN_TYPES).filter(|_| !hyper.decoder.predicts_tokens),
            dense: DenseSpec::all(hyper, catalog),
            embedding_norm: match hyper.decoder.normalized_embeddings {
                true => Some(NormSpec::weightless(hyper)),
                false => there(EMBEDDING_NORM)
                    .filter(|_| hyper.decoder.output_norm != "token_embd_norm")
                    .and_then(|_| {
                        NormSpec::new(hyper, catalog, "token_embd_norm".into(), hyper.hidden)
                    }),
            },
            per_layer: PerLayerInputsSpec::new(hyper),
            nextn: NextnSpec::new(hyper, catalog, output_norm.as_ref()),
            streams: StreamsSpec::new(hyper),
            output_norm,
            output: LinearSpec {
                stem: output_name.trim_end_matches(".weight").into(),
                experts: None,
                rows: weight.map_or(0, |entry| entry.dims[1..].iter().product::<u64>() as usize),
                columns: hyper.hidden,
            },
            output_name,
            rope_factors: [always.or(short), always.or(long)],
        }
    }

    /// The tensor of divisors of RoPE angles, for a context longer than the original one (`long`)
    /// or not.
    pub fn rope_factors(&self, long: bool) -> Option<&'static str> {
        self.rope_factors[usize::from(long)]
    }
}

/// A matrix after the pooling of an embedding model.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseSpec {
    /// The tensor of the matrix: `[rows, columns]`.
    pub weight: String,
    /// The tensor of the bias: one number per row.
    pub bias: Option<String>,
    /// Length of its output.
    pub rows: usize,
    /// Length of its input.
    pub columns: usize,
}

impl DenseSpec {
    /// The matrices in order; none for a model that predicts tokens.
    fn all(hyper: &Hyper, catalog: &Catalog) -> Vec<DenseSpec> {
        let mut columns = hyper.hidden;
        let dense = |stem: &&str| {
            let weight = format!("{stem}.weight");
            let rows = catalog.tensor(catalog.tensor_named(&weight)?).dims[1] as usize;
            let bias = format!("{stem}.bias");
            let spec = DenseSpec {
                weight,
                bias: catalog.tensor_named(&bias).map(|_| bias),
                rows,
                columns,
            };
            columns = rows;
            Some(spec)
        };
        match hyper.pooling {
            Some(_) => DENSE.iter().filter_map(dense).collect(),
            None => Vec::new(),
        }
    }
}

/// A block after the layers that predicts the token after the next one (multi-token prediction).
///
/// At each position it reads the token's embedding and the normalized activations of the previous
/// position: both normalized, concatenated, projected, then a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct NextnSpec {
    /// The table of token embeddings: its own, or the model's.
    pub embedding: String,
    /// The norm of embeddings before the projection.
    pub token_norm: NormSpec,
    /// The norm of activations before the projection.
    pub hidden_norm: NormSpec,
    /// From both, concatenated, to the layer's input.
    pub projection: LinearSpec,
    /// Its layer.
    pub layer: LayerSpec,
    /// Its output matrix, if it is not the model's.
    pub head: Option<NextnHead>,
}

/// The output matrix of a multi-token prediction block.
#[derive(Clone, Debug, PartialEq)]
pub struct NextnHead {
    /// The norm before it: its own, or the model's.
    pub norm: Option<NormSpec>,
    /// The matrix.
    pub weight: String,
}

impl NextnSpec {
    /// The block of a model, if supported and with a projection.
    pub(crate) fn new(
        hyper: &Hyper,
        catalog: &Catalog,
        output_norm: Option<&NormSpec>,
    ) -> Option<NextnSpec> {
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
            head: known.has("nextn.shared_head_head").then(|| NextnHead {
                norm: known
                    .norm_if_there("nextn.shared_head_norm", hidden)
                    .or_else(|| output_norm.cloned()),
                weight: known.stem("nextn.shared_head_head.weight"),
            }),
        })
    }
}

/// Per-layer embeddings (Gemma 3n): each token has a row for every layer, to which a projection of its
/// embedding is added.
#[derive(Clone, Debug, PartialEq)]
pub struct PerLayerInputsSpec {
    /// The table: a token's rows of all layers side by side.
    pub table: &'static str,
    /// The tensor of the projection: `[layers * length, hidden]`.
    pub projection: &'static str,
    /// The norm of a layer's part of the projection.
    pub norm: NormSpec,
    /// Number of layers.
    pub layers: usize,
}

impl PerLayerInputsSpec {
    fn new(hyper: &Hyper) -> Option<PerLayerInputsSpec> {
        let len = hyper.per_layer?;
        Some(PerLayerInputsSpec {
            table: PER_LAYER_EMBEDDING,
            projection: "per_layer_model_proj.weight",
            norm: NormSpec {
                stem: "per_layer_proj_norm".into(),
                kind: hyper.decoder.norm,
                epsilon: hyper.epsilon,
                len,
                groups: 1,
            },
            layers: hyper.layers,
        })
    }

    /// Length of a table's row, and of all layers' inputs of a token.
    pub fn columns(&self) -> usize {
        self.layers * self.norm.len
    }
}

/// Residual streams besides the first, from the embedding and to the output: a square matrix for
/// each, whose products are scaled to the length of the first stream (AltUp, Baykal et al. 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct StreamsSpec {
    /// Number of streams.
    pub count: usize,
    /// The tensor of the matrices that multiply the embedding: `[count - 1, hidden, hidden]`.
    pub expansion: &'static str,
    /// The tensor of the matrices that multiply the last layer's streams before the mean of all:
    /// `[count - 1, hidden, hidden]`.
    pub merging: &'static str,
}

impl StreamsSpec {
    fn new(hyper: &Hyper) -> Option<StreamsSpec> {
        match hyper.decoder.streams {
            Streams::One => None,
            Streams::Predicted(_) => Some(StreamsSpec {
                count: hyper.streams,
                expansion: "altup_proj.weight",
                merging: "altup_unembd_proj.weight",
            }),
        }
    }
}

/// A layer: a sequence of blocks on the residual stream. With several streams, consecutive blocks
/// form sections: an opening computes the stream that the section's blocks work on, a closing
/// brings it back to all streams.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// In order.
    pub blocks: Vec<BlockSpec>,
    /// A norm of the stream after the blocks.
    pub norm: Option<NormSpec>,
    /// Factor of the stream after the blocks.
    pub scale: f32,
    /// The tensor of a further factor: one number.
    pub scalar: Option<String>,
}

/// `stream_norms(residual(stream) + residual_scale * post_norm(sum of branches(stream)))`.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSpec {
    /// Parallel branches; their outputs are added.
    pub branches: Vec<BranchSpec>,
    /// The norm of the sum.
    pub post_norm: Option<NormSpec>,
    /// Factor of the mixers' output before the residual addition.
    pub residual_scale: f32,
    /// The residual.
    pub residual: Residual,
    /// Norms of the stream after the block; between two, the stream before the block is added again.
    pub stream_norms: Vec<NormSpec>,
    /// The opening of a section, before the block.
    pub opening: Option<OpeningSpec>,
    /// The closing of a section, after the block.
    pub closing: Option<ClosingSpec>,
}

/// From all residual streams to the one that a section works on.
#[derive(Clone, Debug, PartialEq)]
pub enum OpeningSpec {
    /// To every stream, a mean of all is added, weighted by the first one's modalities; the section
    /// works on the first of these predictions.
    Predict(ModalitiesSpec),
    /// The first stream, times numbers.
    First {
        /// The tensor of the numbers.
        scale: String,
        /// Length of a stream.
        hidden: usize,
    },
}

/// From the stream that a section worked on to all residual streams.
#[derive(Clone, Debug, PartialEq)]
pub enum ClosingSpec {
    /// To every prediction, the difference of the stream from its own prediction is added, times 1
    /// plus a weight from the stream's modalities.
    Correct(ModalitiesSpec),
    /// The stream is added to all streams but the first.
    AddToOthers,
}

/// `coefficients(tanh(router(norm(x))))`: weights of residual streams (AltUp).
#[derive(Clone, Debug, PartialEq)]
pub struct ModalitiesSpec {
    /// The norm before the router.
    pub norm: ScaledNormSpec,
    /// The matrix of modalities, one per stream.
    pub router: LinearSpec,
    /// The matrix from modalities to weights.
    pub coefficients: LinearSpec,
}

/// The residual of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Residual {
    /// The stream.
    Stream,
    /// The normalized input of the first branch's mixer, times this.
    Normalized(f32),
    /// The stream, times this.
    Scaled(f32),
}

/// `post_norm(mixer(norm(source)))`.
#[derive(Clone, Debug, PartialEq)]
pub struct BranchSpec {
    /// The norm before the mixer.
    pub norm: Option<NormSpec>,
    /// Origin of the mixer's input.
    pub source: Source,
    /// A second norm of the stream, whose output precedes that of the first: the router's input.
    pub router_norm: Option<ScaledNormSpec>,
    /// The mixer.
    pub mixer: MixerSpec,
    /// The norm after the mixer.
    pub post_norm: Option<NormSpec>,
}

/// Origin of a branch's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The stream before the block.
    Block,
    /// The stream before the layer.
    Layer,
    /// The stream before the layer, without a norm, and beside it that before the block, with the
    /// norm.
    Both,
}

/// The mixer of a branch.
#[derive(Clone, Debug, PartialEq)]
pub enum MixerSpec {
    /// Softmax attention.
    Attention(AttentionSpec),
    /// Multi-head latent attention.
    LatentAttention(LatentSpec),
    /// Multi-head latent attention with expanded keys and values.
    ExpandedAttention(ExpandedSpec),
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
    /// RWKV 6's time mixing.
    Wkv6(Wkv6Spec),
    /// RWKV 7's time mixing.
    Wkv7(Wkv7Spec),
    /// RWKV's channel mixing, which also reads the previous position.
    ChannelMix(ChannelMixSpec),
    /// A feed-forward network.
    Ffn(FfnSpec),
    /// A mixture of experts.
    Moe(Box<MoeSpec>),
    /// A gate of the layer's input from per-layer embeddings.
    PerLayer(PerLayerSpec),
    /// A low-rank branch beside attention.
    Laurel(LaurelSpec),
}

/// A mixer's use of the columns that layers carry beside the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// None.
    None,
    /// Source: these columns precede the mixer's outputs.
    Makes(Columns),
    /// Reader: these columns follow the mixer's inputs.
    Reads(Columns),
}

impl MixerSpec {
    /// Use of the carried columns.
    pub fn carry(&self) -> Carry {
        match self {
            MixerSpec::Wkv7(spec) => {
                let values = Columns {
                    first: 0,
                    count: spec.numbers.keys(),
                };
                match spec.values {
                    Some(_) => Carry::Reads(values),
                    None => Carry::Makes(values),
                }
            }
            MixerSpec::Attention(spec) => match spec.numbers.cache {
                Cache::Own => Carry::None,
                Cache::Kept(columns) => Carry::Makes(columns),
                Cache::Shared(columns) => Carry::Reads(columns),
            },
            MixerSpec::PerLayer(spec) => Carry::Reads(spec.inputs),
            _ => Carry::None,
        }
    }
}

/// A norm.
#[derive(Clone, Debug, PartialEq)]
pub struct NormSpec {
    /// Name of the tensors without `.weight` and `.bias`.
    pub stem: String,
    /// Its kind.
    pub kind: Norm,
    /// Added to the squared divisor.
    pub epsilon: f32,
    /// Length of a normalized vector.
    pub len: usize,
    /// Rows of weights: more than one for separate weights per head.
    pub groups: usize,
}

/// A norm times a factor.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaledNormSpec {
    /// The norm.
    pub norm: NormSpec,
    /// The factor.
    pub factor: f32,
}

/// `activation(gate(x)) * inputs`, then a matrix back to the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct PerLayerSpec {
    /// The gate.
    pub gate: LinearSpec,
    /// The activation of the gate.
    pub activation: Activation,
    /// The carried columns with the layer's inputs.
    pub inputs: Columns,
    /// The matrix after the product.
    pub output: LinearSpec,
}

/// `x + norm(second(first(x)))` (LAuReL, Menghani et al. 2025).
#[derive(Clone, Debug, PartialEq)]
pub struct LaurelSpec {
    /// Both factors of the matrix.
    pub factors: [LinearSpec; 2],
    /// The norm of its product.
    pub norm: NormSpec,
}

/// A weight matrix that multiplies activations, or one matrix per expert or head.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearSpec {
    /// Name of the tensors without `.weight` and `.bias`.
    pub stem: String,
    /// Number of matrices, if there is one per expert or head.
    pub experts: Option<usize>,
    /// Length of an output.
    pub rows: usize,
    /// Length of an input.
    pub columns: usize,
}

/// Grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Heads and window.
    pub numbers: AttentionNumbers,
    /// The matrices of queries, keys and values.
    pub projections: QueryKeyValue,
    /// The norm of queries, per head or over all heads.
    pub query_norm: Option<NormSpec>,
    /// The norm of keys.
    pub key_norm: Option<NormSpec>,
    /// The norm of values, per head.
    pub value_norm: Option<NormSpec>,
    /// The tensor of attention sinks: one logit per head, which takes part in the softmax and has
    /// no value.
    pub sinks: Option<String>,
    /// True if QK norms come after RoPE.
    pub norms_rotated: bool,
    /// The output gate.
    pub gate: Gate,
    /// Activation of the gate.
    pub gate_activation: Activation,
    /// The norm before the output matrix.
    pub output_norm: Option<NormSpec>,
    /// The output matrix.
    pub output: LinearSpec,
    /// Position encoding.
    pub rope: Rope,
    /// Factor of scores.
    pub score_scale: f32,
    /// Scaling of queries with their position.
    pub temperature: Option<Temperature>,
    /// True if a query sees no later keys. Otherwise a window is half before and half behind it.
    pub is_causal: bool,
    /// Soft cap of scores.
    pub score_cap: Option<f32>,
    /// Maximum ALiBi bias: factor of each head's slope (Press et al. 2022).
    pub max_alibi_bias: Option<f32>,
    /// Queries, keys and values are clamped to plus and minus this.
    pub clamp: Option<f32>,
}

/// A matrix, or its two low-rank factors.
#[derive(Clone, Debug, PartialEq)]
pub enum Factored {
    /// One matrix.
    Whole(LinearSpec),
    /// Two factors.
    LowRank {
        /// Reads the input.
        first: LinearSpec,
        /// The norm between the factors.
        norm: Option<NormSpec>,
        /// Reads the first factor's output.
        second: LinearSpec,
    },
}

/// Multi-head latent attention (DeepSeek-AI 2024) in its absorbed form: keys and values of all
/// heads are a latent vector and a rotated part; each head has a matrix before the scores, and one
/// after the weighted sum of values.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSpec {
    /// Lengths.
    pub numbers: LatentNumbers,
    /// Heads and window.
    pub attention: AttentionNumbers,
    /// The matrix of queries.
    pub query: Factored,
    /// The matrix of the latent vector and the rotated part of keys.
    pub compression: LinearSpec,
    /// The norm of the latent vector.
    pub norm: NormSpec,
    /// Per head: from a query to a query of the latent vector.
    pub key: LinearSpec,
    /// Per head: from the latent vector to the output.
    pub value: LinearSpec,
    /// The output gate.
    pub gate: Gate,
    /// The output matrix.
    pub output: LinearSpec,
    /// Position encoding.
    pub rope: Rope,
    /// Factor of scores.
    pub score_scale: f32,
    /// Scaling of queries with their position.
    pub temperature: Option<Temperature>,
    /// Sparse attention; None for dense causal attention.
    pub sparse: Option<SparseSpec>,
}

/// Multi-head latent attention that computes the keys and values of all heads from the latent
/// vector. A key is an unrotated part of the head, followed by a rotated part shared by all heads.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpandedSpec {
    /// Lengths.
    pub numbers: LatentNumbers,
    /// Heads and rotation.
    pub attention: AttentionNumbers,
    /// The matrix of queries.
    pub query: Factored,
    /// The matrix of the latent vector and the rotated part of keys.
    pub compression: LinearSpec,
    /// The norm of the latent vector.
    pub norm: NormSpec,
    /// From the latent vector, for each head: the unrotated part of its key, then its value.
    pub expansion: LinearSpec,
    /// The output matrix.
    pub output: LinearSpec,
    /// Position encoding.
    pub rope: Rope,
    /// Factor of scores.
    pub score_scale: f32,
}

/// Selection of tokens in sparse attention.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseSpec {
    /// Number of selected tokens.
    pub top_k: usize,
    /// The indexer; None if the layer reuses the selection of the nearest earlier layer with an
    /// indexer.
    pub indexer: Option<IndexerSpec>,
}

/// An indexer ([`IndexerNumbers`]).
#[derive(Clone, Debug, PartialEq)]
pub struct IndexerSpec {
    /// Heads.
    pub numbers: IndexerNumbers,
    /// From the low-rank query factor to the indexer's queries.
    pub query: LinearSpec,
    /// The matrix of the indexer's keys.
    pub key: LinearSpec,
    /// The norm of the indexer's keys.
    pub key_norm: NormSpec,
    /// The matrix of head weights.
    pub weights: LinearSpec,
    /// RoPE of the indexer's queries and keys.
    pub rope: Rope,
}

/// A gated delta net (Yang et al. 2025): a causal convolution over queries, keys and values, then a
/// state per head with decay and the delta rule.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaSpec {
    /// Heads and the length of the convolution.
    pub numbers: DeltaNumbers,
    /// The matrices of queries, keys and values.
    pub projections: Projections,
    /// The output gate.
    pub gate: Factored,
    /// Activation of the gate.
    pub gate_activation: Activation,
    /// The matrices of strength and step (beta and dt).
    pub rates: Rates,
    /// The tensor of biases of the step: one number per decay.
    pub step_bias: String,
    /// The tensor of factors of the step: one number per value head, negative without a bound.
    pub decay: String,
    /// Lower bound of the log decay per step, negative.
    pub decay_bound: Option<f32>,
    /// The tensors of the convolution, queries before keys before values: one kernel per channel.
    pub convolutions: Vec<String>,
    /// The norm of a head's output.
    pub norm: NormSpec,
    /// The output matrix.
    pub output: LinearSpec,
    /// Lower bound of the norm in the L2 normalization of queries and keys.
    pub epsilon: f32,
}

/// The matrices of a delta net's rates: the learning rate of the delta rule, before the sigmoid,
/// and the decay step, before bias and softplus.
#[derive(Clone, Debug, PartialEq)]
pub enum Rates {
    /// Separate matrices.
    Apart {
        /// For strengths.
        strength: LinearSpec,
        /// For steps.
        step: Factored,
    },
    /// One matrix: for each key head, the strength rows of its value heads, then their step rows.
    Fused(LinearSpec),
}

/// A state space (Mamba-2, Dao and Gu 2024): a causal convolution over values, keys and queries,
/// then a state per head with decay.
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba2Spec {
    /// Heads and the length of the convolution.
    pub numbers: Mamba2Numbers,
    /// The matrix with rows of gates, values, keys, queries and steps, in this order; or, with
    /// `factors`, for each head the rows of gates before those of values.
    pub input: LinearSpec,
    /// Projections of keys, queries and steps from values.
    pub factors: Option<FactorsSpec>,
    /// The tensor of the convolution: one kernel per channel.
    pub convolution: String,
    /// The tensor of biases of the convolution: one number per channel.
    pub convolution_bias: Option<String>,
    /// The tensor of biases of the steps: one number per head.
    pub step_bias: String,
    /// The tensor of factors of the steps: one negative number per head.
    pub decay: String,
    /// Skip connection of values: one number per head.
    pub skip: String,
    /// The norm after the gate, over the heads that share keys.
    pub norm: Option<NormSpec>,
    /// The output matrix.
    pub output: LinearSpec,
}

/// A short convolution between two gates (Liquid AI 2025).
#[derive(Clone, Debug, PartialEq)]
pub struct ShortConvSpec {
    /// Channels and length.
    pub numbers: ConvolutionNumbers,
    /// The matrix with rows of the input gate, the output gate and the convolved values, in this
    /// order.
    pub input: LinearSpec,
    /// The tensor of the convolution: one kernel per channel.
    pub convolution: String,
    /// The output matrix.
    pub output: LinearSpec,
}

/// A selective state space (Mamba, Gu and Dao 2023): a causal convolution, then a state per channel
/// with decay.
#[derive(Clone, Debug, PartialEq)]
pub struct MambaSpec {
    /// Sizes.
    pub numbers: MambaNumbers,
    /// The matrix with the rows of values before those of gates.
    pub input: LinearSpec,
    /// The tensor of the convolution: one kernel per channel.
    pub convolution: String,
    /// The tensor of biases of the convolution: one number per channel.
    pub convolution_bias: String,
    /// The matrix with rows of step factors, keys and queries, in this order.
    pub parameters: LinearSpec,
    /// The norms of step factors, keys and queries.
    pub norms: Option<[NormSpec; 3]>,
    /// The matrix from step factors to the steps of all channels.
    pub step: LinearSpec,
    /// The tensor of factors of the steps: one number per element of the state.
    pub decay: String,
    /// Skip connection of values: one number per channel.
    pub skip: String,
    /// The output matrix.
    pub output: LinearSpec,
}

/// Projections of keys, queries and steps from values.
#[derive(Clone, Debug, PartialEq)]
pub struct FactorsSpec {
    /// The matrix with rows of keys, queries and step factors, in this order.
    pub parameters: LinearSpec,
    /// The norms of keys, queries and step factors.
    pub norms: [NormSpec; 3],
    /// The matrix from step factors to steps.
    pub step: LinearSpec,
}

/// Linear attention with a fixed decay per head (lightning attention, Qin et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct LightningSpec {
    /// Heads and their decay.
    pub numbers: LightningNumbers,
    /// The matrix with the rows of queries, keys and values of each head.
    pub projections: LinearSpec,
    /// The output gate.
    pub gate: LinearSpec,
    /// The norm over all heads' outputs.
    pub norm: NormSpec,
    /// The output matrix.
    pub output: LinearSpec,
}

/// RWKV 6's time mixing (Peng et al. 2024): decay, key, value, receptance and gate read five mixes
/// of a position with the previous one, whose weights depend on the position.
#[derive(Clone, Debug, PartialEq)]
pub struct Wkv6Spec {
    /// Heads.
    pub numbers: WkvNumbers,
    /// The tensor of the first mix, the input of the mix weights: one number per channel.
    pub first_mix: String,
    /// The tensors of biases of the mix weights: one number per channel, for all five or one each.
    pub mixes: Vec<String>,
    /// The first factor of the weights of all five mixes, before the hyperbolic tangent.
    pub mix_factor: LinearSpec,
    /// The second factor: one matrix per mix.
    pub mix_outputs: LinearSpec,
    /// The factors of decays, with a hyperbolic tangent in between.
    pub decay: [LinearSpec; 2],
    /// The tensor of biases of decays: one number per channel.
    pub decay_bias: String,
    /// The tensor of bonuses of the current token: one number per channel.
    pub bonus: Option<String>,
    /// The matrix of receptances.
    pub receptance: LinearSpec,
    /// The matrix of keys.
    pub key: LinearSpec,
    /// The matrix of values.
    pub value: LinearSpec,
    /// The matrix of gates.
    pub gate: LinearSpec,
    /// The norm of a head's output.
    pub norm: Option<NormSpec>,
    /// The output matrix.
    pub output: LinearSpec,
}

/// A low-rank matrix with a bias.
#[derive(Clone, Debug, PartialEq)]
pub struct RankSpec {
    /// Both factors.
    pub factors: [LinearSpec; 2],
    /// The tensor of biases: one number per channel.
    pub bias: String,
}

/// RWKV 7's time mixing (Peng et al. 2025). Receptance, decay, key, value, rate and gate read mixes
/// of a position with the previous one.
#[derive(Clone, Debug, PartialEq)]
pub struct Wkv7Spec {
    /// Heads.
    pub numbers: WkvNumbers,
    /// The tensor of mix weights: one number per channel of each mix.
    pub mixes: String,
    /// Decay of states.
    pub decay: RankSpec,
    /// In-context learning rate: strength of removal in the delta rule.
    pub rate: RankSpec,
    /// Share of the first layer's values; None in the first layer.
    pub values: Option<RankSpec>,
    /// The factors of the gate.
    pub gate: Option<[LinearSpec; 2]>,
    /// The tensor of factors of removal keys: one number per channel.
    pub key_scale: String,
    /// The tensor of influences of the rate on keys: one number per channel.
    pub key_rate: String,
    /// The tensor of bonuses of the current token: one number per channel.
    pub bonus: String,
    /// The matrix of receptances.
    pub receptance: LinearSpec,
    /// The matrix of keys.
    pub key: LinearSpec,
    /// The matrix of values.
    pub value: LinearSpec,
    /// The norm of a head's output.
    pub norm: Option<NormSpec>,
    /// The output matrix.
    pub output: LinearSpec,
}

/// RWKV's channel mixing: squared ReLU between two matrices; in RWKV 6, gated by a receptance.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelMixSpec {
    /// The tensor of mix weights of keys, with the previous position: one number per channel.
    pub key_mix: String,
    /// The first matrix.
    pub key: LinearSpec,
    /// The second matrix.
    pub value: LinearSpec,
    /// Receptances.
    pub receptance: Option<ReceptanceSpec>,
}

/// The receptances of RWKV 6's channel mixing.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceptanceSpec {
    /// The matrix.
    pub matrix: LinearSpec,
    /// The tensor of mix weights of receptances: one number per channel.
    pub mix: String,
}

/// The output gate of attention heads.
#[derive(Clone, Debug, PartialEq)]
pub enum Gate {
    /// None.
    None,
    /// Rows of the query matrix: in each head, as many gate rows after the query rows.
    Queries,
    /// A separate matrix, with a row per head or per element.
    Own(LinearSpec),
}

/// The matrices of attention.
#[derive(Clone, Debug, PartialEq)]
pub enum QueryKeyValue {
    /// Of queries, keys and values.
    All(Projections),
    /// Of queries and keys; keys before their norm serve as values.
    KeysAsValues([LinearSpec; 2]),
    /// Of queries: keys and values are those of an earlier layer.
    Queries(LinearSpec),
}

/// The matrices of queries, keys and values.
#[derive(Clone, Debug, PartialEq)]
pub enum Projections {
    /// Three matrices, in this order.
    Apart([LinearSpec; 3]),
    /// One matrix with rows of queries, keys and values, in this order.
    Fused(LinearSpec),
}

/// A feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub struct FfnSpec {
    /// The matrices before the activation.
    pub first: First,
    /// The norm before the down matrix.
    pub inner_norm: Option<NormSpec>,
    /// Divisors of the activation's output, without a gate: the tensor.
    pub divisors: Option<String>,
    /// The matrix after the activation.
    pub down: LinearSpec,
    /// The activation.
    pub activation: Activation,
    /// Limits of gate and up.
    pub limit: Option<Limit>,
    /// Only gates this many standard deviations above their mean are kept, less that bound; all if
    /// None.
    pub sparsity: Option<f32>,
}

/// The matrices of a feed-forward network before its activation.
#[derive(Clone, Debug, PartialEq)]
pub enum First {
    /// `activation(gate) * up`.
    Gated {
        /// Input of the activation.
        gate: LinearSpec,
        /// Factor of the activation's output.
        up: LinearSpec,
    },
    /// Gated, with the rows of gate before those of up in one matrix.
    Fused(LinearSpec),
    /// `activation(up)`.
    Plain(LinearSpec),
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// The matrix of expert scores.
    pub router: LinearSpec,
    /// True if llama.cpp loads a bias of the scores.
    pub may_be_biased: bool,
    /// The tensor of biases of probabilities in the choice of experts: one number per expert.
    pub selection_bias: Option<String>,
    /// Choice and weights of experts.
    pub routing: Routing,
    /// The matrices from the input to the experts' input and from their output to the output; None
    /// if experts read the input directly.
    pub latent: Option<[LinearSpec; 2]>,
    /// The routed experts: one matrix per expert.
    pub experts: FfnSpec,
    /// Smaller experts, which read the output of the others.
    pub adjugates: Option<AdjugatesSpec>,
    /// True if the router reads the leading columns of the mixer's input, and the experts the
    /// others.
    pub routes_first: bool,
    /// The shared expert, or a dense network beside the experts.
    pub shared: Option<SharedSpec>,
    /// Factor of the summed outputs of routed and shared experts.
    pub scale: f32,
}

/// Smaller experts shared by groups of experts ([`AdjugateNumbers`]). Each of the best experts of a
/// token stands for the one of its group, whose weight is the probability of the expert of the same
/// number.
#[derive(Clone, Debug, PartialEq)]
pub struct AdjugatesSpec {
    /// Sizes.
    pub numbers: AdjugateNumbers,
    /// One matrix per group.
    pub experts: FfnSpec,
}

/// The shared expert.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedSpec {
    /// The matrix of its weight; None for weight 1.
    pub router: Option<LinearSpec>,
    /// The expert.
    pub ffn: FfnSpec,
}

/// A layer's number, model and tensors.
struct Known<'k> {
    number: usize,
    hyper: &'k Hyper,
    catalog: &'k Catalog,
}

impl LayerSpec {
    /// A layer of a model; the number after the last layer is the multi-token prediction block.
    fn new(hyper: &Hyper, number: usize, catalog: &Catalog) -> LayerSpec {
        let known = Known {
            number,
            hyper,
            catalog,
        };
        let attention = hyper.attention.get(number).copied();
        let attention = match attention.unwrap_or(hyper.nextn) {
            Some(numbers) => Some(match (hyper.latent, hyper.expanded) {
                (Some(latent), _) => MixerSpec::LatentAttention(known.latent(latent, numbers)),
                (None, Some(latent)) => {
                    MixerSpec::ExpandedAttention(known.expanded(latent, numbers))
                }
                (None, None) => MixerSpec::Attention(known.attention(numbers)),
            }),
            None if hyper.is_linear.get(number) == Some(&true) => {
                let linear = known.linear("attn_output", hyper.hidden, hyper.hidden);
                Some(MixerSpec::Linear(linear))
            }
            None => None,
        };
        let has_ffn = hyper.has_ffn.get(number) != Some(&false);
        let is_behind = hyper.decoder.dense == Dense::Behind;
        let ffn = has_ffn.then(|| match is_behind {
            true => MixerSpec::Ffn(known.ffn("", hyper.hidden)),
            false => known.ffn_or_moe(),
        });
        let experts = is_behind.then(|| MixerSpec::Moe(Box::new(known.moe())));
        let layout = match hyper.decoder.layout {
            Layout::ParallelWithout(norm) if known.has(norm) => Layout::Sequential(norm),
            // Where each layer is one of the two, a multi-token prediction block has both in
            // sequence.
            Layout::Sequential("attn_norm") if number == hyper.layers => {
                Layout::Sequential("post_attention_norm")
            }
            layout => layout,
        };
        let recurrent = hyper.recurrent.get(number).copied().flatten();
        // In these layers the name stands for another norm.
        let [norms_behind_attention, norms_behind_ffn] = hyper.decoder.stream_norms;
        let is_second = !matches!(recurrent, Some(Recurrent::Lightning(_) | Recurrent::Wkv(_)))
            && norms_behind_attention.is_empty();
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
            let [after_attention, after_ffn] = hyper.decoder.post_norms;
            let attention = Some(attention.clone()).filter(|branches| !branches.is_empty());
            let attention = attention.map(|branches| {
                let block = known.block(branches, known.first_other(after_attention, norm));
                BlockSpec {
                    residual_scale: block.residual_scale * hyper.value_scale,
                    stream_norms: known.stream_norms(norms_behind_attention),
                    ..block
                }
            });
            let experts = experts.clone().map(|mixer| BranchSpec {
                source: Source::Layer,
                ..known.branch("ffn_norm_exps", mixer)
            });
            let ffn = ffn.clone().map(|mixer| known.ffn_branches(norm, mixer));
            let ffn = ffn.map(|mut branches| {
                branches.extend(experts);
                BlockSpec {
                    stream_norms: known.stream_norms(norms_behind_ffn),
                    ..known.block(branches, known.first_other(after_ffn, norm))
                }
            });
            attention.into_iter().chain(ffn).collect()
        };
        let parallel = |norm: &str| {
            let ffn = has_ffn.then(|| known.branch(norm, known.ffn_or_moe()));
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
        let mut blocks: Vec<BlockSpec> = blocks;
        if hyper.streams > 1 {
            known.divide(&mut blocks);
        }
        blocks.extend(known.per_layer());
        let scalar = known.stem("layer_output_scale.weight");
        LayerSpec {
            blocks,
            norm: None,
            scalar: catalog.tensor_named(&scalar).map(|_| scalar),
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

    /// Stages of all mixers: the linears of a stage share one input.
    pub fn stages(&self) -> usize {
        let stages = |mixer: &MixerSpec| match mixer {
            MixerSpec::Attention(_)
            | MixerSpec::LatentAttention(_)
            | MixerSpec::ExpandedAttention(_)
            | MixerSpec::DeltaNet(_)
            | MixerSpec::Mamba2(_)
            | MixerSpec::ShortConv(_)
            | MixerSpec::Mamba(_)
            | MixerSpec::Lightning(_)
            | MixerSpec::PerLayer(_)
            | MixerSpec::Laurel(_)
            | MixerSpec::Ffn(_) => 2,
            // The token shift, one per matrix after it, and one for the states.
            MixerSpec::Wkv6(_) => 7,
            MixerSpec::Wkv7(_) => 6,
            MixerSpec::ChannelMix(spec) => 3 + usize::from(spec.receptance.is_some()),
            MixerSpec::Moe(moe) => 1 + usize::from(moe.routes_first),
            MixerSpec::Linear(_) => 1,
        };
        self.mixers().map(stages).sum()
    }
}

impl FfnSpec {
    /// The network with this many matrices.
    fn with_experts(mut self, count: usize) -> FfnSpec {
        let first = match &mut self.first {
            First::Gated { gate, up } => vec![gate, up],
            First::Fused(one) | First::Plain(one) => vec![one],
        };
        for linear in first.into_iter().chain([&mut self.down]) {
            linear.experts = Some(count);
        }
        self
    }
}

impl NormSpec {
    /// The norm of embeddings without weights in the file.
    fn weightless(hyper: &Hyper) -> NormSpec {
        NormSpec {
            stem: "token_embd_norm".into(),
            kind: hyper.decoder.norm,
            epsilon: hyper.epsilon,
            len: hyper.hidden,
            groups: 1,
        }
    }

    /// A norm, if present: layer norms without weights always are in decoders, and never in encoders.
    fn new(hyper: &Hyper, catalog: &Catalog, stem: String, len: usize) -> Option<NormSpec> {
        let kind = hyper.decoder.norm;
        let may_be_bare = kind == Norm::Layer && hyper.decoder.predicts_tokens;
        let there = may_be_bare || catalog.weight_of(&stem).is_some();
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

    /// True if the tensor exists, with any suffix.
    fn has_weight(&self, name: &str) -> bool {
        self.catalog.weight_of(&self.stem(name)).is_some()
    }

    /// A dimension of a tensor; 0 if the tensor is missing, an error that loading reports.
    fn dim(&self, name: &str, which: usize) -> usize {
        self.dims(name).map_or(0, |dims| dims[which] as usize)
    }

    fn branch(&self, norm: &str, mixer: MixerSpec) -> BranchSpec {
        BranchSpec {
            norm: self.norm(norm, self.hyper.hidden),
            source: match &mixer {
                MixerSpec::Moe(moe) if moe.routes_first => Source::Both,
                _ => Source::Block,
            },
            router_norm: None,
            mixer,
            post_norm: None,
        }
    }

    /// The first of these norms in the file, other than `norm`.
    fn first_other<'n>(&self, names: &[&'n str], norm: &str) -> Option<&'n str> {
        let mut others = names.iter().filter(|name| **name != norm);
        others.find(|name| self.has_weight(name)).copied()
    }

    /// The feed-forward network or experts; both in parallel, each with norms of its own, if the file
    /// has those of the experts.
    fn ffn_branches(&self, norm: &str, mixer: MixerSpec) -> Vec<BranchSpec> {
        /// The norm before the experts.
        const SECOND: &str = "pre_ffw_norm_2";
        if !self.has_weight(SECOND) {
            return vec![self.branch(norm, mixer)];
        }
        let hidden = self.hyper.hidden;
        let network = MixerSpec::Ffn(self.ffn("", hidden));
        let router_norm = self.norm("ffn_gate_inp.scale", hidden);
        let router_norm = router_norm.map(|norm| ScaledNormSpec {
            norm,
            factor: 1.0 / (hidden as f32).sqrt(),
        });
        let experts = MoeSpec {
            routes_first: router_norm.is_some(),
            ..self.moe()
        };
        vec![
            BranchSpec {
                post_norm: self.norm("post_ffw_norm_1", hidden),
                ..self.branch(norm, network)
            },
            BranchSpec {
                source: Source::Block,
                router_norm,
                post_norm: self.norm("post_ffw_norm_2", hidden),
                ..self.branch(SECOND, MixerSpec::Moe(Box::new(experts)))
            },
        ]
    }

    /// The block that adds the layer's input from per-layer embeddings.
    fn per_layer(&self) -> Option<BlockSpec> {
        let inputs = self.hyper.per_layer_input(self.number)?;
        let hidden = self.hyper.hidden;
        let mixer = MixerSpec::PerLayer(PerLayerSpec {
            gate: self.linear("inp_gate", inputs.count, hidden),
            activation: self.activation(),
            inputs,
            output: self.linear("proj", hidden, inputs.count),
        });
        let branch = BranchSpec {
            norm: None,
            source: Source::Block,
            router_norm: None,
            mixer,
            post_norm: None,
        };
        let block = self.block(
            vec![branch],
            Some("post_norm").filter(|name| self.has_weight(name)),
        );
        Some(match self.hyper.streams {
            1 => block,
            _ => BlockSpec {
                residual: Residual::Scaled(0.0),
                opening: Some(OpeningSpec::First {
                    scale: self.stem("altup_correct_scale.weight"),
                    hidden,
                }),
                closing: Some(ClosingSpec::AddToOthers),
                ..block
            },
        })
    }

    /// Makes the blocks of a layer a section on a predicted stream, with a low-rank branch beside
    /// attention.
    fn divide(&self, blocks: &mut [BlockSpec]) {
        if let Some(attention) = blocks.first_mut() {
            // The sum of stream, attention and branch is divided by the root of 2.
            let post_norm = attention.post_norm.take();
            if let Some(branch) = attention.branches.first_mut() {
                branch.post_norm = post_norm;
            }
            let laurel = self.branch("attn_norm", MixerSpec::Laurel(self.laurel()));
            attention.branches.push(laurel);
            attention.residual = Residual::Scaled(FRAC_1_SQRT_2);
            attention.residual_scale = FRAC_1_SQRT_2;
            let streams = self.hyper.streams;
            let predict = self.modalities("altup_predict_coef", streams * streams);
            attention.opening = Some(OpeningSpec::Predict(predict));
        }
        if let Some(last) = blocks.last_mut() {
            let correct = self.modalities("altup_correct_coef", self.hyper.streams);
            last.closing = Some(ClosingSpec::Correct(correct));
        }
    }

    fn laurel(&self) -> LaurelSpec {
        LaurelSpec {
            factors: self.ranks(["laurel_l", "laurel_r"]),
            norm: self.rms_norm("laurel_post_norm", self.hyper.hidden),
        }
    }

    fn modalities(&self, coefficients: &str, count: usize) -> ModalitiesSpec {
        let Hyper {
            hidden, streams, ..
        } = *self.hyper;
        ModalitiesSpec {
            norm: ScaledNormSpec {
                norm: self.rms_norm("altup_router_norm", hidden),
                factor: 1.0 / hidden as f32,
            },
            router: self.linear("altup_router", streams, hidden),
            coefficients: self.linear(coefficients, count, streams),
        }
    }

    fn block(&self, branches: Vec<BranchSpec>, post_norm: Option<&str>) -> BlockSpec {
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
            stream_norms: Vec::new(),
            opening: None,
            closing: None,
        }
    }

    /// Norms of the stream after a block; the first is required, as loading reports.
    fn stream_norms(&self, names: &[&str]) -> Vec<NormSpec> {
        let norms = names.iter().map(|name| self.norm(name, self.hyper.hidden));
        norms.flatten().collect()
    }

    fn norm(&self, name: &str, len: usize) -> Option<NormSpec> {
        NormSpec::new(self.hyper, self.catalog, self.stem(name), len)
    }

    /// An optional norm.
    fn norm_if_there(&self, name: &str, len: usize) -> Option<NormSpec> {
        self.has(name).then(|| self.norm(name, len))?
    }

    /// A QK norm: with weights of one head, weights per head, or over all heads.
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
        let matrix = |name: &str, rows: usize| self.linear(name, rows, hyper.hidden);
        let is_shared = matches!(numbers.cache, Cache::Shared(_));
        let takes_keys = hyper.decoder.keys_as_values && !self.has("attn_v");
        let projections = match (self.has("attn_qkv"), is_shared) {
            (true, _) => QueryKeyValue::All(Projections::Fused(matrix(
                "attn_qkv",
                queries + keys + values,
            ))),
            (false, true) => QueryKeyValue::Queries(matrix("attn_q", query_rows)),
            (false, false) if takes_keys => {
                QueryKeyValue::KeysAsValues([matrix("attn_q", query_rows), matrix("attn_k", keys)])
            }
            (false, false) => QueryKeyValue::All(Projections::Apart([
                matrix("attn_q", query_rows),
                matrix("attn_k", keys),
                matrix("attn_v", values),
            ])),
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
            value_norm: hyper.decoder.unit_values.then(|| NormSpec {
                stem: self.stem("attn_v_norm"),
                kind: Norm::Rms,
                epsilon: hyper.epsilon,
                len: value_length,
                groups: 1,
            }),
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
            is_causal: hyper.is_causal,
            score_cap: hyper.score_cap,
            max_alibi_bias: hyper.max_alibi_bias,
            clamp: hyper.clamp,
        }
    }

    /// The matrix `first`, or the product of both if the file has `second`.
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
        LatentSpec {
            numbers,
            attention,
            query: self.latent_query(heads * key_length),
            compression: self.linear("attn_kv_a_mqa", rank + rotated, hyper.hidden),
            norm: self.rms_norm("attn_kv_a_norm", rank),
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

    fn expanded(&self, numbers: LatentNumbers, attention: AttentionNumbers) -> ExpandedSpec {
        let hyper = self.hyper;
        let heads = attention.heads;
        let LatentNumbers {
            rank,
            rotated,
            key_length,
            value_length,
        } = numbers;
        let expanded = heads * (key_length - rotated + value_length);
        ExpandedSpec {
            numbers,
            attention,
            query: self.latent_query(heads * key_length),
            compression: self.linear("attn_kv_a_mqa", rank + rotated, hyper.hidden),
            norm: self.rms_norm("attn_kv_a_norm", rank),
            expansion: self.linear("attn_kv_b", expanded, rank),
            output: self.linear("attn_output", hyper.hidden, heads * value_length),
            rope: hyper.decoder.rope,
            score_scale: hyper.score_scale,
        }
    }

    /// The queries of latent attention, with this many rows.
    fn latent_query(&self, rows: usize) -> Factored {
        let hidden = self.hyper.hidden;
        match self.has("attn_q_a") {
            true => {
                let length = self.dim("attn_q_a", 1);
                Factored::LowRank {
                    first: self.linear("attn_q_a", length, hidden),
                    norm: Some(self.rms_norm("attn_q_a_norm", length)),
                    second: self.linear("attn_q_b", rows, length),
                }
            }
            false => Factored::Whole(self.linear("attn_q", rows, hidden)),
        }
    }

    /// An RMS norm with weights, even in families with another kind of norm.
    fn rms_norm(&self, name: &str, len: usize) -> NormSpec {
        NormSpec {
            stem: self.stem(name),
            kind: Norm::Rms,
            epsilon: self.hyper.epsilon,
            len,
            groups: 1,
        }
    }

    /// Sparse attention; blocks after the layers see all tokens.
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

    /// Both factors of a low-rank matrix.
    fn ranks(&self, [first, second]: [&str; 2]) -> [LinearSpec; 2] {
        let (hidden, rank) = (self.hyper.hidden, self.dim(first, 1));
        [
            self.linear(first, rank, hidden),
            self.linear(second, hidden, rank),
        ]
    }

    /// The norm of heads in RWKV's time mixing.
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
        /// Number of mixes.
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

    /// Activation of the feed-forward network; after the layers, that of the last one.
    fn activation(&self) -> Activation {
        let activations = &self.hyper.activations;
        activations[self.number.min(activations.len() - 1)]
    }

    /// Activation limit of the feed-forward network or of its experts: the metadata's, or the
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

    /// Routing of experts; after the layers, that of the last one.
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
            true => MixerSpec::Moe(Box::new(self.moe())),
            false => MixerSpec::Ffn(self.ffn("", self.hyper.hidden)),
        }
    }

    /// The network of matrices with this suffix, for inputs of this length.
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
            divisors: Some(self.stem("ffn.act.scales"))
                .filter(|name| suffix.is_empty() && self.catalog.tensor_named(name).is_some()),
            down: linear(&down, columns, length),
            activation: self.activation(),
            limit: self.limit(experts.is_some()),
            sparsity: self.sparsity().filter(|_| experts.is_none()),
        }
    }

    /// Bound of sparse gates in the layer.
    fn sparsity(&self) -> Option<f32> {
        let sparse = self.hyper.decoder.sparse_gates?;
        (self.number < sparse.layers as usize).then_some(sparse.deviations)
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
        let count = experts.down.experts.unwrap_or(0);
        let beside = match self.hyper.decoder.dense {
            Dense::Beside => &["_shexp", ""][..],
            Dense::Instead | Dense::Apart | Dense::Behind => &["_shexp"],
        };
        let mut beside = beside.iter();
        let shared = beside.find(|suffix| self.has(&format!("ffn_up{suffix}")));
        let shared = shared.map(|suffix| SharedSpec {
            router: self
                .has("ffn_gate_inp_shexp")
                .then(|| self.linear("ffn_gate_inp_shexp", 1, hidden)),
            ffn: self.ffn(suffix, hidden),
        });
        // In one family's files this name has no suffix.
        let names = ["exp_probs_b.bias", "exp_probs_b"].map(|name| self.stem(name));
        let is_there = |name: &String| self.catalog.tensor_named(name).is_some();
        let selection_bias = names.into_iter().find(is_there);
        MoeSpec {
            router: self.linear("ffn_gate_inp", count, hidden),
            may_be_biased: self.hyper.decoder.needs.biases.contains(&"ffn_gate_inp"),
            selection_bias,
            routing: self.routing(),
            routes_first: self.hyper.decoder.routes_first,
            latent,
            adjugates: self.hyper.adjugates.map(|numbers| AdjugatesSpec {
                numbers,
                experts: self
                    .ffn("_chexps", columns)
                    .with_experts(count / numbers.sharing),
            }),
            experts,
            scale: match shared.is_some() {
                true => self.hyper.decoder.shared_scale,
                false => 1.0,
            },
            shared,
        }
    }
}
