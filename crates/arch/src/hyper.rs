//! Hyperparameters of a model's decoder, read from its metadata and checked.

use crate::{
    Activation, Alibi, Architecture, Cap, Decoder, DeltaHeads, Gating, Mamba2Layers, Norm, Pooling,
    Ranking, Recurrence, Rope, Router, ScoreDivisor, ScoreYarn, Sections, Setting, SharedKv,
    Streams, Tempering, UnitHeads, Unrotated, Window, Wkv, Xielu, YarnKeys,
};
use quantier_gguf::gguf::{Metadata, Value, keys};
use std::ops::Range;

/// Sizes of the sections of a head's RoPE pairs, per dimension of images.
const SECTIONS: &str = "rope.dimension_sections";
/// Upper bound of accepted head counts and lengths.
const LIMIT: u64 = 1 << 24;
/// Upper bound of accepted layer counts.
const LAYERS: usize = 1 << 14;

/// Hyperparameters of a decoder. Lengths are counted in numbers.
#[derive(Clone, Debug)]
pub struct Hyper {
    /// Architecture name in GGUF.
    pub architecture: String,
    /// The architecture's decoder.
    pub decoder: Decoder,
    /// True if a token sees no later ones.
    pub is_causal: bool,
    /// Pooling of an embedding model; None for a model that predicts tokens.
    pub pooling: Option<Pooling>,
    /// The context length of training, in tokens; None if the metadata names none.
    pub context: Option<usize>,
    /// Number of layers, without multi-token prediction blocks.
    pub layers: usize,
    /// Number of passes of a token through all layers.
    pub loops: usize,
    /// True if the last norm is also applied between two loops.
    pub loop_norm: bool,
    /// The hidden size.
    pub hidden: usize,
    /// Attention per layer; None in layers without attention.
    pub attention: Vec<Option<AttentionNumbers>>,
    /// Length of a per-layer embedding; None without such embeddings.
    pub per_layer: Option<usize>,
    /// Number of residual streams.
    pub streams: usize,
    /// Attention of the multi-token prediction block; None without a supported block.
    pub nextn: Option<AttentionNumbers>,
    /// True for layers with one matrix in place of attention.
    pub is_linear: Vec<bool>,
    /// Recurrent mixer per layer; None in layers without one.
    pub recurrent: Vec<Option<Recurrent>>,
    /// The stream is halved after each period of this many layers.
    pub halved_every: Option<usize>,
    /// Multi-head latent attention, in all layers with attention; None for standard attention.
    pub latent: Option<LatentNumbers>,
    /// Multi-head latent attention whose keys and values are expanded before the scores, in all
    /// layers; None for other attention.
    pub expanded: Option<LatentNumbers>,
    /// The longest context, in tokens, with full attention in models with a block-selecting
    /// indexer; None without one.
    pub longest_context: Option<usize>,
    /// The indexers of sparse attention; None for dense causal attention.
    pub indexer: Option<IndexerNumbers>,
    /// Lower bound of the log decay per step in a delta net, negative; None if there is no bound.
    pub decay_bound: Option<f32>,
    /// True for layers with a feed-forward network.
    pub has_ffn: Vec<bool>,
    /// Activation of the feed-forward network, per layer.
    pub activations: Vec<Activation>,
    /// True if attention and the feed-forward network are parallel.
    pub parallel: bool,
    /// Epsilon of norms.
    pub epsilon: f32,
    /// Variants of RoPE in the model.
    pub rotations: Vec<Rotation>,
    /// Factor of attention scores.
    pub score_scale: f32,
    /// Scaling of queries with their position.
    pub temperature: Option<Temperature>,
    /// True if queries and keys in layers with RoPE are RMS-normalized without weights.
    pub unit_heads: bool,
    /// Soft cap of attention scores.
    pub score_cap: Option<f32>,
    /// Maximum ALiBi bias: factor of each head's slope.
    pub max_alibi_bias: Option<f32>,
    /// Soft cap of logits.
    pub logit_cap: Option<f32>,
    /// Factor of embeddings.
    pub embedding_scale: f32,
    /// Factor of a block's output.
    pub residual_scale: f32,
    /// Additional factor of the attention output.
    pub value_scale: f32,
    /// Factor of logits.
    pub logit_scale: f32,
    /// Factor of the output matrix's input.
    pub output_scale: f32,
    /// Queries, keys and values are clamped to plus and minus this.
    pub clamp: Option<f32>,
    /// Activation limit of the feed-forward network and the shared expert, per block.
    pub limits: Vec<Option<f32>>,
    /// Activation limit of the routed experts, per block.
    pub expert_limits: Vec<Option<f32>>,
    /// Routing per layer, in models with experts.
    pub routing: Vec<Routing>,
    /// The adjugate experts of each layer; None without any.
    pub adjugates: Option<AdjugateNumbers>,
}

/// Smaller experts shared by groups of experts, which read the output of the others (Wu et al.
/// 2025).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdjugateNumbers {
    /// Experts that share one.
    pub sharing: usize,
    /// Factor of their output.
    pub scale: f32,
}

/// Choice and weights of a token's experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts per token.
    pub used: usize,
    /// Function from scores to probabilities.
    pub gating: Gating,
    /// Groups of experts; None if all experts form one group.
    pub groups: Option<ExpertGroups>,
    /// True if the weights of the chosen experts are normalized to sum to 1.
    pub normalized: bool,
    /// Factor of weights.
    pub scale: f32,
    /// Values that rank the experts.
    pub ranking: Ranking,
    /// True if weights multiply the experts' inputs instead of their outputs.
    pub weighs_inputs: bool,
}

/// Groups of experts of equal size. A group is scored by the sum of its two largest probabilities
/// (DeepSeek-AI 2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Number of groups.
    pub count: usize,
    /// Groups per token.
    pub used: usize,
}

/// Some of the columns that layers carry beside the residual stream ([`Hyper::carried`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The first column.
    pub first: usize,
    /// Number of columns.
    pub count: usize,
}

impl Columns {
    /// The columns as a range.
    pub fn range(self) -> Range<usize> {
        self.first..self.end()
    }

    /// The column after the last.
    pub fn end(self) -> usize {
        self.first + self.count
    }
}

/// The attention of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionNumbers {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Length of a head of queries and keys.
    pub key_length: usize,
    /// Length of a head of values.
    pub value_length: usize,
    /// Number of visible tokens, including the current one; None for all.
    pub window: Option<usize>,
    /// True if only tokens of the same chunk are visible; chunks have `window` tokens.
    pub is_chunked: bool,
    /// Index into [`Hyper::rotations`]; None for layers without RoPE.
    pub rotation: Option<usize>,
    /// Source and readers of keys and values.
    pub cache: Cache,
}

/// The keys and values of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Its own, which it alone reads.
    Own,
    /// Its own, which later layers read too: in these columns, keys before values.
    Kept(Columns),
    /// Those in the columns of an earlier layer.
    Shared(Columns),
}

/// Multi-head latent attention (DeepSeek-AI 2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentNumbers {
    /// Length of the latent vector, shared by keys and values of all heads.
    pub rank: usize,
    /// RoPE dimensions of a head's queries and of the keys.
    pub rotated: usize,
    /// Length of a head's queries, including the rotated dimensions.
    pub key_length: usize,
    /// Length of a head's output.
    pub value_length: usize,
}

/// The indexer of sparse attention (DeepSeek-AI 2025): a query attends to the previous tokens with
/// the largest weighted sum of positive scores over the indexer's heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexerNumbers {
    /// Query heads.
    pub heads: usize,
    /// Length of a head, and of a key.
    pub length: usize,
    /// Selected tokens per query.
    pub top_k: usize,
}

/// The gated delta net of one layer (Yang et al. 2025).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaNumbers {
    /// Query and key heads.
    pub key_heads: usize,
    /// Value heads, one state each.
    pub value_heads: usize,
    /// Sharing of key heads among value heads.
    pub sharing: DeltaHeads,
    /// Length of a head of queries and keys.
    pub key_length: usize,
    /// Length of a head of values.
    pub value_length: usize,
    /// Kernel size of the convolution.
    pub kernel: usize,
}

impl DeltaNumbers {
    /// The key head of a value head.
    pub fn shared(&self, head: usize) -> usize {
        match self.sharing {
            DeltaHeads::Tiled => head % self.key_heads,
            DeltaHeads::Grouped => head / (self.value_heads / self.key_heads),
            DeltaHeads::Own => head,
        }
    }

    /// Decays per token: one per head, or one per channel.
    pub fn decays(&self) -> usize {
        match self.sharing {
            DeltaHeads::Tiled | DeltaHeads::Grouped => self.value_heads,
            DeltaHeads::Own => self.keys(),
        }
    }

    /// Total length of queries, equal to that of keys.
    pub fn keys(&self) -> usize {
        self.key_heads * self.key_length
    }

    /// Total length of values.
    pub fn values(&self) -> usize {
        self.value_heads * self.value_length
    }

    /// Total length of queries, keys and values.
    pub fn channels(&self) -> usize {
        2 * self.keys() + self.values()
    }

    /// Approximate operations on the states per token: decay, recall, update and output of each
    /// number.
    pub fn operations(&self) -> usize {
        const EACH: usize = 4 * 2;
        EACH * self.values() * self.key_length
    }

    /// Length of the recurrent state: the states of the heads, and the convolution's previous
    /// tokens.
    pub fn state(&self) -> usize {
        self.values() * self.key_length + (self.kernel - 1) * self.channels()
    }
}

/// The state space of one layer (Mamba-2, Dao and Gu 2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mamba2Numbers {
    /// Query and key heads (C and B), each shared by consecutive value heads.
    pub groups: usize,
    /// Value heads, one state each.
    pub heads: usize,
    /// Length of a head of queries and keys.
    pub key_length: usize,
    /// Length of a head of values.
    pub value_length: usize,
    /// Kernel size of the convolution.
    pub kernel: usize,
    /// Rank of steps if keys, queries and steps are projections of the values after the
    /// convolution; None if they are projections of the input.
    pub rank: Option<usize>,
}

impl Mamba2Numbers {
    /// Total length of values.
    pub fn values(&self) -> usize {
        self.heads * self.value_length
    }

    /// Total length of keys, equal to that of queries.
    pub fn keys(&self) -> usize {
        self.groups * self.key_length
    }

    /// Channels of the convolution: values, keys and queries, or values only.
    pub fn channels(&self) -> usize {
        match self.rank {
            Some(_) => self.values(),
            None => self.values() + 2 * self.keys(),
        }
    }

    /// Length of the input projection: gates, channels and, without `rank`, steps.
    pub fn inputs(&self) -> usize {
        match self.rank {
            Some(_) => 2 * self.values(),
            None => self.values() + self.channels() + self.heads,
        }
    }

    /// Approximate operations on the states per token: decay, update and output of each number.
    pub fn operations(&self) -> usize {
        const EACH: usize = 3 * 2;
        EACH * self.values() * self.key_length
    }

    /// Length of the recurrent state: the states of the heads, and the convolution's previous
    /// tokens.
    pub fn state(&self) -> usize {
        self.values() * self.key_length + (self.kernel - 1) * self.channels()
    }
}

/// The recurrent mixer of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Recurrent {
    /// A gated delta net.
    DeltaNet(DeltaNumbers),
    /// A Mamba-2 state space.
    Mamba2(Mamba2Numbers),
    /// Mamba's selective state space.
    Mamba(MambaNumbers),
    /// A short convolution.
    ShortConvolution(ConvolutionNumbers),
    /// Lightning attention.
    Lightning(LightningNumbers),
    /// RWKV's time mixing.
    Wkv(WkvNumbers),
}

impl Recurrent {
    /// Length of the recurrent state.
    pub fn state(&self) -> usize {
        match self {
            Recurrent::DeltaNet(numbers) => numbers.state(),
            Recurrent::Mamba2(numbers) => numbers.state(),
            Recurrent::Mamba(numbers) => numbers.state(),
            Recurrent::ShortConvolution(numbers) => numbers.state(),
            Recurrent::Lightning(numbers) => numbers.state(),
            Recurrent::Wkv(numbers) => numbers.state(),
        }
    }

    /// Approximate operations on the state per token.
    pub fn operations(&self) -> usize {
        match self {
            Recurrent::DeltaNet(numbers) => numbers.operations(),
            Recurrent::Mamba2(numbers) => numbers.operations(),
            Recurrent::Mamba(numbers) => numbers.operations(),
            Recurrent::ShortConvolution(numbers) => numbers.operations(),
            Recurrent::Lightning(numbers) => numbers.operations(),
            Recurrent::Wkv(numbers) => numbers.operations(),
        }
    }
}

/// The short convolution of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvolutionNumbers {
    /// Number of channels.
    pub channels: usize,
    /// Kernel size.
    pub kernel: usize,
}

impl ConvolutionNumbers {
    /// Operations per token: two gates, and a multiply-add per tap.
    pub fn operations(&self) -> usize {
        (2 + 2 * self.kernel) * self.channels
    }

    /// Length of the recurrent state.
    pub fn state(&self) -> usize {
        (self.kernel - 1) * self.channels
    }
}

/// The selective state space of one layer (Mamba, Gu and Dao 2023).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MambaNumbers {
    /// Number of channels.
    pub channels: usize,
    /// Length of a channel's state.
    pub state: usize,
    /// Rank of the steps of all channels.
    pub rank: usize,
    /// Kernel size of the convolution.
    pub kernel: usize,
    /// True if step factors, keys and queries are normalized without weights.
    pub is_normalized: bool,
}

impl MambaNumbers {
    /// Approximate operations per token: decay, update and output of each number of a state, and
    /// the convolution.
    pub fn operations(&self) -> usize {
        const EACH: usize = 3 * 2;
        (EACH * self.state + 2 * self.kernel) * self.channels
    }

    /// Length of the recurrent state: the states of the channels, and the convolution's previous
    /// tokens.
    pub fn state(&self) -> usize {
        (self.state + self.kernel - 1) * self.channels
    }
}

/// Linear attention of one layer with a fixed decay per head (lightning attention, Qin et al.
/// 2024).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LightningNumbers {
    /// Heads, each with a query, key, value and state.
    pub heads: usize,
    /// Length of a head.
    pub length: usize,
    /// Factor of the heads' slopes.
    pub rate: f32,
}

impl LightningNumbers {
    /// Total length of values, equal to that of queries and of keys.
    pub fn values(&self) -> usize {
        self.heads * self.length
    }

    /// Log decay per step, by head.
    pub fn decays(&self) -> Vec<f32> {
        /// The first of 8 heads has slope one half.
        const HALVED: f32 = 3.0;
        let start = 2f32.powf(-2f32.powf(HALVED - (self.heads as f32).log2()));
        let slope = |head: usize| start * start.powf(head as f32);
        (0..self.heads)
            .map(|head| -slope(head) * self.rate)
            .collect()
    }

    /// Approximate operations on the states per token: decay, update and output of each number.
    pub fn operations(&self) -> usize {
        const EACH: usize = 3 * 2;
        EACH * self.state()
    }

    /// Length of the recurrent state.
    pub fn state(&self) -> usize {
        self.values() * self.length
    }
}

/// RWKV's time mixing in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WkvNumbers {
    /// RWKV version.
    pub kind: Wkv,
    /// Receptance heads, one state each.
    pub heads: usize,
    /// Key and value heads, each shared by consecutive receptance heads.
    pub kv_heads: usize,
    /// Length of a head.
    pub length: usize,
    /// Stored previous positions: one for time mixing, one for channel mixing if present.
    pub shifts: usize,
}

impl WkvNumbers {
    /// Total length of the heads: the hidden size.
    pub fn channels(&self) -> usize {
        self.heads * self.length
    }

    /// Total length of keys, equal to that of values.
    pub fn keys(&self) -> usize {
        self.kv_heads * self.length
    }

    /// Approximate operations on the states per token: decay, update and output of each number, and
    /// in RWKV 7 also recall and removal.
    pub fn operations(&self) -> usize {
        let each = match self.kind {
            Wkv::Six | Wkv::SixGated => 3 * 2,
            Wkv::Seven => 5 * 2,
        };
        each * self.channels() * self.length
    }

    /// Length of the recurrent state: the states of the heads, and the previous positions.
    pub fn state(&self) -> usize {
        self.channels() * (self.length + self.shifts)
    }
}

/// Factor of queries, `1 + strength * ln(1 + floor((position + offset) / period))`, to keep
/// attention sharp over long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Growth rate.
    pub strength: f32,
    /// Positions per step.
    pub period: usize,
    /// Offset of positions.
    pub offset: usize,
}

impl Temperature {
    /// The factor at a position.
    pub fn factor(&self, position: usize) -> f32 {
        1.0 + self.strength * (((position + self.offset) / self.period) as f32 + 1.0).ln()
    }
}

/// RoPE with linear interpolation and YaRN (Peng et al. 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// RoPE dimensions per head.
    pub length: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// Factor of positions.
    pub scale: f32,
    /// Factor of cosines and sines.
    pub magnitude: f32,
    /// Share of extrapolation in the mix of angles; 0 for interpolation only.
    pub extrapolation: f32,
    /// Rotations over the original context above which angles are fully extrapolated.
    pub beta_fast: f32,
    /// Rotations below which angles are fully interpolated.
    pub beta_slow: f32,
    /// The context length of training before scaling.
    pub original_context: usize,
    /// Unrotated pairs among the first `length / 2`.
    pub still: Vec<usize>,
    /// True if the file's tensors of RoPE factors apply.
    pub has_factors: bool,
}

impl<T: Copy> Setting<T> {
    /// The default for a model with these numbers of layers and tokens.
    fn of(self, of_layers: usize, of_tokens: u64) -> T {
        match self {
            Setting::Always(value) | Setting::Listed(value) => value,
            Setting::Sized {
                layers,
                tokens,
                those,
                others,
            } => match layers.contains(&of_layers) && tokens == of_tokens {
                true => those,
                false => others,
            },
        }
    }
}

/// Lengths of a head.
#[derive(Clone, Copy)]
struct HeadLengths {
    /// Of queries and keys.
    key: usize,
    /// Of values.
    value: usize,
}

/// The error names the key.
type Result<T> = std::result::Result<T, String>;

struct Keys<'a> {
    metadata: &'a Metadata<'a>,
    architecture: &'a str,
}

/// True for a layer with a window, if the last layer of each period has none (with `first`, the
/// first); a period of 0 has no such layer.
fn is_windowed(layer: usize, period: usize, first: bool) -> bool {
    match (period, first) {
        (0, _) => true,
        (_, true) => !layer.is_multiple_of(period),
        (_, false) => layer % period < period - 1,
    }
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value<'_>> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    fn bad(&self, key: &str, what: impl std::fmt::Display) -> String {
        format!("'{}.{key}' {what}", self.architecture)
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|n| *n <= LIMIT) {
                Some(n) => Ok(Some(n as usize)),
                None => Err(self.bad(
                    key,
                    format!("is {value}; one whole number of at most {LIMIT} is expected"),
                )),
            },
        }
    }

    fn number(&self, key: &str) -> Result<usize> {
        match self.optional(key)? {
            Some(n) if n > 0 => Ok(n),
            Some(_) => Err(self.bad(key, "is 0")),
            None => Err(self.bad(key, "is missing")),
        }
    }

    /// One number for all layers, or a list with one per layer.
    fn per_layer(&self, key: &str, layers: usize) -> Result<Option<Vec<usize>>> {
        self.numbers(key, layers, "layer")
    }

    /// One number for all items of a kind, or a list with one per item.
    fn numbers(&self, key: &str, count: usize, kind: &str) -> Result<Option<Vec<usize>>> {
        let Some(Value::Array(list)) = self.get(key) else {
            return Ok(self.optional(key)?.map(|n| vec![n; count]));
        };
        let number = |value: Value<'_>| value.as_u64().filter(|n| *n <= LIMIT);
        let numbers: Option<Vec<_>> = list.values().map(number).collect();
        match numbers.filter(|numbers| numbers.len() == count) {
            Some(numbers) => Ok(Some(numbers.into_iter().map(|n| n as usize).collect())),
            None => Err(self.bad(
                key,
                format!(
                    "is a list; {count} whole numbers of at most {LIMIT} are expected, one for \
                     each {kind}"
                ),
            )),
        }
    }

    /// A boolean.
    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.bad(key, format!("is {value}; true or false is expected"))),
        }
    }

    /// A list of booleans, one per layer, or one for all layers.
    fn flags(&self, key: &str, layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let flag = |value: Value<'_>| match (&value, value.as_u64()) {
            (Value::Bool(flag), _) => Some(*flag),
            (_, Some(number @ 0..=1)) => Some(number == 1),
            _ => None,
        };
        let flags: Option<Vec<_>> = match value.as_array() {
            Some(list) => list.values().map(flag).collect(),
            None => flag(value.clone()).map(|flag| vec![flag; layers]),
        };
        match flags.filter(|flags| flags.len() == layers) {
            Some(flags) => Ok(Some(flags)),
            None => Err(self.bad(
                key,
                format!("is {value}; {layers} truth values are expected, one for each layer"),
            )),
        }
    }

    /// Layers with a window, by a list or a period in the metadata; `None` without either. With
    /// `first`, the first layer of each period has none, otherwise the last. Some files' lists omit
    /// the blocks for multi-token prediction.
    fn windowed(&self, [layers, blocks]: [usize; 2], first: bool) -> Result<Option<Vec<bool>>> {
        const PATTERN: &str = "attention.sliding_window_pattern";
        if self
            .get(PATTERN)
            .is_some_and(|value| value.as_array().is_some())
        {
            let listed = self.flags(PATTERN, layers);
            return listed.or_else(|_| self.flags(PATTERN, blocks));
        }
        let period = self.optional(PATTERN)?;
        Ok(period.map(|period| {
            (0..layers)
                .map(|layer| is_windowed(layer, period, first))
                .collect()
        }))
    }

    /// One finite number for all layers, or a list with one per layer. `key` is the full key,
    /// without the architecture's prefix.
    fn floats(&self, key: &str, layers: usize) -> Result<Vec<f32>> {
        let number = |value: &Value<'_>| match value {
            Value::F32(x) if x.is_finite() => Some(*x),
            _ => None,
        };
        let value = self.metadata.get(key);
        let value = value.ok_or_else(|| format!("'{key}' is missing"))?;
        let numbers = match value {
            Value::Array(list) => list.values().map(|value| number(&value)).collect(),
            value => number(value).map(|number| vec![number; layers]),
        };
        let numbers = numbers.filter(|numbers: &Vec<f32>| numbers.len() == layers);
        numbers.ok_or_else(|| {
            format!("'{key}' is {value}; {layers} finite f32 are expected, one for each layer")
        })
    }

    /// Activation limit per block, from one number or a list; none for values near 0, as in the
    /// reference.
    fn limits(&self, key: &str, blocks: usize) -> Result<Vec<Option<f32>>> {
        const LEAST: f32 = 1e-6;
        let own = format!("{}.{key}", self.architecture);
        let limits = match self.get(key) {
            None => vec![0.0; blocks],
            Some(_) => self.floats(&own, blocks)?,
        };
        let limits = limits.into_iter();
        Ok(limits
            .map(|limit| Some(limit).filter(|limit| *limit > LEAST))
            .collect())
    }

    /// Pooling of an embedding model: of an encoder, and of a decoder whose metadata has one. A reranker's
    /// embedding is the vector that its classifier reads.
    fn pooling(&self, predicts_tokens: bool, is_causal: bool) -> Result<Option<Pooling>> {
        const KEY: &str = "pooling_type";
        const CLASSIFIER: &str = "classifier.pooling_type";
        const RANK: usize = 4;
        let listed = |key: &str| -> Result<Option<Pooling>> {
            Ok(match self.optional(key)? {
                None | Some(0) => None,
                Some(1) => Some(Pooling::Mean),
                Some(2) => Some(Pooling::Cls),
                Some(3) => Some(Pooling::Last),
                Some(number) => {
                    return Err(self.bad(key, format!("is {number}; 0 to 4 are known")));
                }
            })
        };
        if self.optional(KEY)? == Some(RANK) {
            let otherwise = match (is_causal, self.architecture) {
                (true, _) => Pooling::Last,
                (false, "modern-bert") => Pooling::Mean,
                (false, _) => Pooling::Cls,
            };
            return Ok(Some(listed(CLASSIFIER)?.unwrap_or(otherwise)));
        }
        let own = Some(Pooling::Tokens).filter(|_| !predicts_tokens);
        Ok(listed(KEY)?.or(own))
    }

    /// The activation that the metadata names, or `by_default`.
    fn named_activation(&self, by_default: Activation) -> Result<Activation> {
        const KEY: &str = "hidden_activation";
        match self.get(KEY).and_then(Value::as_str) {
            Some("silu" | "swish" | "swiglu") => Ok(Activation::Silu),
            Some("reglu") => Ok(Activation::Relu),
            Some("relu") => Err(self.bad(KEY, "is relu; only activations with a gate can be run")),
            _ => Ok(by_default),
        }
    }

    /// Activation of the feed-forward network, per layer.
    fn activations(&self, decoder: &Decoder, layers: usize) -> Result<Vec<Activation>> {
        let by_default = match decoder.names_activation {
            true => self.named_activation(decoder.activation)?,
            false => decoder.activation,
        };
        if !matches!(by_default, Activation::Xielu(_)) {
            return Ok(vec![by_default; layers]);
        }
        let [positive, negative, slope, bound] = ["alpha_p", "alpha_n", "beta", "eps"]
            .map(|name| self.floats(&format!("xielu.{name}"), layers));
        let (positive, negative, slope, bound) = (positive?, negative?, slope?, bound?);
        // log(1 + exp(x)), which is x where the exponential would be too large.
        let softplus = |x: f32| if x > 20.0 { x } else { x.exp().ln_1p() };
        let layer = |i: usize| {
            Activation::Xielu(Xielu {
                rise: softplus(positive[i]),
                fall: slope[i] + softplus(negative[i]),
                slope: slope[i],
                bound: bound[i],
            })
        };
        Ok((0..layers).map(layer).collect())
    }

    fn float(&self, key: &str) -> Result<Option<f32>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(x)) if x.is_finite() => Ok(Some(*x)),
            Some(value) => Err(self.bad(key, format!("is {value}; a finite f32 is expected"))),
        }
    }

    /// A soft cap, by the architecture's rule.
    fn cap(&self, key: &str, cap: Cap) -> Result<Option<f32>> {
        let default = match cap {
            Cap::None => return Ok(None),
            Cap::Always(cap) => return Ok(Some(cap)),
            Cap::Listed => None,
            Cap::ListedOr(default) => Some(default),
        };
        let listed = self.float(key)?;
        Ok(listed.or(default).filter(|cap| *cap != 0.0))
    }

    /// Pairs of a head outside the sections of time, height and width.
    fn still(&self, pairs: usize, sections: Sections) -> Result<Vec<usize>> {
        if sections == Sections::None {
            return Ok(Vec::new());
        }
        let sizes = self.numbers(SECTIONS, 4, "dimension")?;
        let sizes = sizes.ok_or_else(|| self.bad(SECTIONS, "is missing"))?;
        let all: usize = sizes.iter().sum();
        if all == 0 {
            return Err(self.bad(SECTIONS, "holds only zeros"));
        }
        let turns = |pair: &usize| {
            let sector = pair % all;
            match sections {
                Sections::Interleaved => sector < 3 * sizes[sector % 3],
                _ => sector < all - sizes[3],
            }
        };
        Ok((0..pairs).filter(|pair| !turns(pair)).collect())
    }

    /// The delta nets per layer: in layers listed in the metadata; without a list, in all but the
    /// last layer of each interval.
    fn delta_nets(
        &self,
        sharing: DeltaHeads,
        layers: usize,
        blocks: usize,
    ) -> Result<Vec<Option<Recurrent>>> {
        const HEADS: &str = "ssm.time_step_rank";
        const INNER: &str = "ssm.inner_size";
        let (key_heads, value_heads) = (self.number("ssm.group_count")?, self.number(HEADS)?);
        let (kernel, inner) = (self.number("ssm.conv_kernel")?, self.number(INNER)?);
        if !value_heads.is_multiple_of(key_heads) {
            return Err(self.bad(
                HEADS,
                format!("is {value_heads}, no multiple of {key_heads} heads of keys"),
            ));
        }
        if !inner.is_multiple_of(value_heads) {
            return Err(self.bad(
                INNER,
                format!("is {inner}, no multiple of {value_heads} heads"),
            ));
        }
        let numbers = DeltaNumbers {
            key_heads,
            value_heads,
            sharing,
            key_length: self.number("ssm.state_size")?,
            value_length: inner / value_heads,
            kernel,
        };
        let recurrent = self.recurrent(4, blocks)?;
        let layer = |layer: usize| recurrent[layer].then_some(Recurrent::DeltaNet(numbers));
        Ok((0..layers).map(layer).collect())
    }

    /// Recurrent blocks: those listed in the metadata; without a list, all but the last of each
    /// interval.
    fn recurrent(&self, interval: usize, blocks: usize) -> Result<Vec<bool>> {
        const INTERVAL: &str = "full_attention_interval";
        if let Some(listed) = self.flags("attention.recurrent_layers", blocks)? {
            return Ok(listed);
        }
        let interval = match self.get(INTERVAL) {
            Some(_) => self.number(INTERVAL)?,
            None => interval,
        };
        Ok((1..=blocks)
            .map(|block| !block.is_multiple_of(interval))
            .collect())
    }

    /// Sizes of short convolutions.
    fn convolution(&self, channels: usize) -> Result<ConvolutionNumbers> {
        const KERNEL: &str = "shortconv.l_cache";
        match self.number(KERNEL)? {
            1 => Err(self.bad(
                KERNEL,
                "is 1; llama.cpp runs convolutions of 2 tokens or more",
            )),
            kernel => Ok(ConvolutionNumbers { channels, kernel }),
        }
    }

    /// Sizes of selective state spaces.
    fn mamba(&self, hidden: usize) -> Result<MambaNumbers> {
        const CHANNELS: &str = "ssm.inner_size";
        let channels = self.number(CHANNELS)?;
        if channels != 2 * hidden {
            return Err(self.bad(
                CHANNELS,
                format!(
                    "is {channels}; llama.cpp runs only twice the length of embeddings, {hidden}"
                ),
            ));
        }
        Ok(MambaNumbers {
            channels,
            state: self.number("ssm.state_size")?,
            rank: self.number("ssm.time_step_rank")?,
            kernel: self.number("ssm.conv_kernel")?,
            is_normalized: self.flag("ssm.dt_b_c_rms")?.unwrap_or(false),
        })
    }

    /// Lightning attention per layer.
    fn lightning(
        &self,
        interval: u32,
        heads: LightningNumbers,
        layers: usize,
        blocks: usize,
    ) -> Result<Vec<Option<Recurrent>>> {
        let recurrent = self.recurrent(interval as usize, blocks)?;
        if layers == 1 && recurrent[0] {
            return Err(self.bad(
                "block_count",
                "is 1; how fast lightning attention forgets is told by the layer among several",
            ));
        }
        let layer = |layer: usize| {
            // In f64, as the reference.
            let depth = layer as f64 / (layers - 1) as f64;
            let numbers = LightningNumbers {
                rate: (1.0 - depth + 1e-5) as f32,
                ..heads
            };
            recurrent[layer].then_some(Recurrent::Lightning(numbers))
        };
        Ok((0..layers).map(layer).collect())
    }

    /// Sizes of RWKV's time mixing.
    fn wkv(&self, kind: Wkv, hidden: usize) -> Result<WkvNumbers> {
        const LENGTH: &str = "wkv.head_size";
        const KV_HEADS: &str = "attention.head_count_kv";
        let length = self.number(LENGTH)?;
        if !hidden.is_multiple_of(length) {
            return Err(self.bad(
                LENGTH,
                format!("is {length}, no divisor of the {hidden} numbers of an embedding"),
            ));
        }
        let heads = hidden / length;
        let kv_heads = match kind {
            Wkv::SixGated => self.optional(KV_HEADS)?.unwrap_or(0),
            Wkv::Six | Wkv::Seven => 0,
        };
        let kv_heads = match kv_heads {
            0 => heads,
            kv_heads if heads.is_multiple_of(kv_heads) => kv_heads,
            _ => {
                return Err(self.bad(
                    KV_HEADS,
                    format!("is {kv_heads}, no divisor of {heads} heads"),
                ));
            }
        };
        Ok(WkvNumbers {
            kind,
            heads,
            kv_heads,
            length,
            shifts: self.optional("token_shift_count")?.unwrap_or(2),
        })
    }

    /// Routing per layer. Lists also count multi-token prediction blocks.
    fn routing(&self, router: Router, layers: usize, blocks: usize) -> Result<Vec<Routing>> {
        const GATING: &str = "expert_gating_func";
        let gating = match (router.gating, self.optional(GATING)?) {
            (Setting::Always(gating), _) | (Setting::Listed(gating), None | Some(0)) => gating,
            (sized @ Setting::Sized { .. }, None | Some(0)) => sized.of(layers, self.tokens()?),
            (_, Some(1)) => Gating::Softmax,
            (_, Some(2)) => Gating::Sigmoid,
            (_, Some(3)) => Gating::ChosenSoftmax,
            (_, Some(4)) => Gating::RootSoftplus,
            (_, Some(number)) => {
                return Err(self.bad(GATING, format!("is {number}; 1 to 4 are known")));
            }
        };
        let normalized = match router.normalized {
            Setting::Always(normalized) => normalized,
            setting => match self.flag("expert_weights_norm")? {
                Some(normalized) => normalized,
                None => setting.of(layers, self.tokens()?),
            },
        };
        let scale = self.float("expert_weights_scale")?;
        const USED: &str = "expert_used_count";
        let used = self.per_layer(USED, blocks)?;
        let mut used = used.unwrap_or_else(|| vec![0; blocks]);
        used.truncate(layers);
        let experts = self.optional("expert_count")?.filter(|n| *n > 0);
        let too_many = used
            .iter()
            .find(|used| experts.is_some_and(|all| **used > all));
        if let (Some(used), Some(experts)) = (too_many, experts) {
            return Err(self.bad(USED, format!("is {used}; there are {experts} experts")));
        }
        let routing = |used: usize| {
            Ok(Routing {
                used,
                gating,
                groups: self.groups(used)?,
                normalized,
                scale: scale.filter(|scale| *scale != 0.0).unwrap_or(1.0),
                ranking: router.ranking,
                weighs_inputs: router.weighs_inputs,
            })
        };
        used.into_iter().map(routing).collect()
    }

    /// Adjugate experts.
    fn adjugates(&self, blocks: usize) -> Result<AdjugateNumbers> {
        const SHARING: &str = "experts_per_group";
        const SCALE: &str = "expert_group_scale";
        let (experts, sharing) = (self.number("expert_count")?, self.number(SHARING)?);
        let used = self.per_layer("expert_used_count", blocks)?;
        let used = used.unwrap_or_default().into_iter().max().unwrap_or(0);
        if !experts.is_multiple_of(sharing) || experts / sharing < used {
            return Err(self.bad(
                SHARING,
                format!(
                    "is {sharing}; a divisor of {experts} experts is expected, with room for \
                     {used} in the {} that share one",
                    experts / sharing
                ),
            ));
        }
        let scale = self.float(SCALE)?;
        let scale = scale.ok_or_else(|| self.bad(SCALE, "is missing"))?;
        Ok(AdjugateNumbers { sharing, scale })
    }

    /// The groups of experts in a layer with this many experts per token.
    fn groups(&self, experts_used: usize) -> Result<Option<ExpertGroups>> {
        const COUNT: &str = "expert_group_count";
        const USED: &str = "expert_group_used_count";
        /// Number of experts in a group's score.
        const SUMMED: usize = 2;
        let count = self.optional(COUNT)?.unwrap_or(0);
        if count <= 1 || experts_used == 0 {
            return Ok(None);
        }
        let (experts, used) = (self.number("expert_count")?, self.number(USED)?);
        let size = experts / count;
        if !experts.is_multiple_of(count) || size < SUMMED {
            return Err(self.bad(
                COUNT,
                format!("is {count}; {experts} experts in groups of {SUMMED} or more are expected"),
            ));
        }
        if used >= count || used * size < experts_used {
            return Err(self.bad(
                USED,
                format!(
                    "is {used}; less than {count} groups of {size} experts are expected, and room for {experts_used} \
                     experts"
                ),
            ));
        }
        Ok(Some(ExpertGroups { count, used }))
    }

    /// Sizes of Mamba-2 state spaces.
    fn mamba2(&self, which: Mamba2Layers, hidden: usize) -> Result<Mamba2Numbers> {
        const HEADS: &str = "ssm.time_step_rank";
        const GROUPS: &str = "ssm.group_count";
        const INNER: &str = "ssm.inner_size";
        let rank = (which == Mamba2Layers::Factored).then_some((hidden / 16).max(64));
        // With factored projections, all heads share keys and queries.
        let groups = match rank {
            Some(_) => 1,
            None => self.number(GROUPS)?,
        };
        let heads = self.number(HEADS)?;
        let inner = self.number(INNER)?;
        if !heads.is_multiple_of(groups) {
            return Err(self.bad(HEADS, format!("is {heads}, no multiple of {groups} groups")));
        }
        if !inner.is_multiple_of(heads) {
            return Err(self.bad(INNER, format!("is {inner}, no multiple of {heads} heads")));
        }
        const LENGTH: &str = "ssm.state_size";
        let key_length = self.number(LENGTH)?;
        if (groups * key_length) as u64 > LIMIT {
            let what = format!("is {key_length}; {groups} groups have more than {LIMIT} numbers");
            return Err(self.bad(LENGTH, what));
        }
        Ok(Mamba2Numbers {
            groups,
            heads,
            key_length,
            value_length: inner / heads,
            kernel: self.number("ssm.conv_kernel")?,
            rank,
        })
    }

    /// The delta nets of layers without KV heads, all of the same size. Layers saved with 0 heads
    /// have as many as the others.
    fn own_delta_nets(
        &self,
        heads: &[usize],
        kv_heads: &[usize],
    ) -> Result<Vec<Option<Recurrent>>> {
        let length = self.number("kda.head_dim")?;
        let kernel = self.number("ssm.conv_kernel")?;
        let net = |heads: usize| {
            Recurrent::DeltaNet(DeltaNumbers {
                key_heads: heads,
                value_heads: heads,
                sharing: DeltaHeads::Own,
                key_length: length,
                value_length: length,
                kernel,
            })
        };
        let most = heads.iter().copied().max().unwrap_or(0);
        let layers = heads.iter().zip(kv_heads);
        let heads = layers.map(|(heads, kv_heads)| {
            let heads = if *heads == 0 { most } else { *heads };
            (heads > 0 && *kv_heads == 0).then_some(heads)
        });
        Ok(heads.map(|heads| heads.map(net)).collect())
    }

    /// Multi-head latent attention with separate matrices per head, if the metadata has a key
    /// length for it.
    fn latent(&self, key_length: usize) -> Result<Option<LatentNumbers>> {
        const KEY: &str = "attention.key_length_mla";
        const RANK: &str = "attention.kv_lora_rank";
        // Files that llama.cpp saves list every key, unused ones as 0.
        if self.optional(KEY)?.unwrap_or(0) == 0 {
            return Ok(None);
        }
        let numbers = LatentNumbers {
            rank: self.number(RANK)?,
            rotated: self.optional("rope.dimension_count")?.unwrap_or(0),
            key_length: self.number(KEY)?,
            value_length: self.number("attention.value_length_mla")?,
        };
        if numbers.rotated >= numbers.key_length {
            let (rotated, length) = (numbers.rotated, numbers.key_length);
            return Err(self.bad(
                KEY,
                format!(
                    "is {length}; more than the {rotated} of 'rope.dimension_count' is expected"
                ),
            ));
        }
        if key_length != numbers.rank + numbers.rotated {
            return Err(self.bad(
                "attention.key_length",
                format!(
                    "is {key_length}; the sum of '{RANK}' and 'rope.dimension_count' is expected"
                ),
            ));
        }
        Ok(Some(numbers))
    }

    /// Multi-head latent attention with keys and values of these lengths.
    fn expanded(&self, key_length: usize, value_length: usize) -> Result<LatentNumbers> {
        const ROTATED: &str = "rope.dimension_count";
        let rotated = self.number(ROTATED)?;
        if rotated >= key_length {
            return Err(self.bad(
                ROTATED,
                format!("is {rotated}; less than the {key_length} numbers of a key is expected"),
            ));
        }
        Ok(LatentNumbers {
            rank: self.number("attention.kv_lora_rank")?,
            rotated,
            key_length,
            value_length,
        })
    }

    /// The indexers of sparse attention; `rotated` is the number of RoPE dimensions per head.
    fn indexer(&self, rotated: usize) -> Result<IndexerNumbers> {
        const LENGTH: &str = "attention.indexer.key_length";
        let numbers = IndexerNumbers {
            heads: self.number("attention.indexer.head_count")?,
            length: self.number(LENGTH)?,
            top_k: self.number("attention.indexer.top_k")?,
        };
        match numbers.length < rotated {
            true => Err(self.bad(
                LENGTH,
                format!(
                    "is {}; {rotated} numbers of a head are rotated",
                    numbers.length
                ),
            )),
            false => Ok(numbers),
        }
    }

    /// Assigns carried columns, from `first` on, to keys and values that the last layers read.
    fn share(
        &self,
        shared: SharedKv,
        mut first: usize,
        attention: &mut [Option<AttentionNumbers>],
    ) -> Result<()> {
        const SHARED: &str = "attention.shared_kv_layers";
        /// One with a window, one with full attention.
        const SOURCES: usize = 2;
        let layers = attention.len();
        let count = match shared {
            SharedKv::None => return Ok(()),
            SharedKv::Listed => self.optional(SHARED)?.unwrap_or(0),
            SharedKv::After(own) => layers.saturating_sub(own as usize),
        };
        if count == 0 {
            return Ok(());
        }
        let own = layers.checked_sub(count).filter(|own| *own >= SOURCES);
        let own = own.ok_or_else(|| {
            let what = format!("is {count}; of {layers} layers {SOURCES} keep keys and values");
            self.bad(SHARED, what)
        })?;
        let (sources, readers) = attention.split_at_mut(own);
        for (source, is_windowed) in [(own - 2, true), (own - 1, false)] {
            let readers = readers.iter_mut().flatten();
            let readers = readers.filter(|reader| reader.window.is_some() == is_windowed);
            let readers: Vec<_> = readers.collect();
            let Some(kept) = sources[source].as_mut().filter(|_| !readers.is_empty()) else {
                continue;
            };
            let of_kind = |layer: &AttentionNumbers| {
                let window = layer.window.is_some();
                (window, layer.kv_heads, layer.key_length, layer.value_length)
            };
            if readers
                .iter()
                .any(|reader| of_kind(reader) != of_kind(kept))
            {
                return Err(self.bad(
                    SHARED,
                    format!(
                        "is {count}; the last layers read keys and values of layer {source}, which has other heads or \
                         another window"
                    ),
                ));
            }
            let columns = Columns {
                first,
                count: kept.kv_heads * (kept.key_length + kept.value_length),
            };
            first = columns.end();
            kept.cache = Cache::Kept(columns);
            readers
                .into_iter()
                .for_each(|reader| reader.cache = Cache::Shared(columns));
        }
        Ok(())
    }

    /// Vocabulary size; 0 if the metadata has none.
    fn tokens(&self) -> Result<u64> {
        let listed = self.metadata.get("tokenizer.ggml.tokens");
        let listed = listed
            .and_then(Value::as_array)
            .map(|list| list.len() as u64);
        let said = self.optional("vocab_size")?;
        Ok(said.map(|n| n as u64).or(listed).unwrap_or(0))
    }

    /// Ten times YaRN's multiplier.
    fn yarn_part(&self, of_scores: Option<ScoreYarn>) -> Result<f32> {
        let Some(ScoreYarn {
            is_listed: true, ..
        }) = of_scores
        else {
            return Ok(0.0);
        };
        let multiplier = self.float("rope.scaling.yarn_log_multiplier")?;
        Ok(multiplier.unwrap_or(0.0) / 0.1)
    }

    fn rotation(&self, length: usize, context: usize, decoder: &Decoder) -> Result<Rotation> {
        let kind = self
            .get("rope.scaling.type")
            .and_then(Value::as_str)
            .unwrap_or("linear");
        let factor = self
            .float("rope.scaling.factor")?
            .filter(|f| *f != 0.0 && kind != "none")
            .unwrap_or(1.0);
        // llama.cpp reads the parameters of YaRN only for some families.
        let beta = |key: &str, by_default: f32| match decoder.yarn {
            YarnKeys::None => Ok::<_, String>(by_default),
            YarnKeys::Betas | YarnKeys::All => Ok(self.float(key)?.unwrap_or(by_default)),
        };
        let share = match decoder.yarn {
            YarnKeys::None | YarnKeys::Betas => None,
            YarnKeys::All => self.float("rope.scaling.yarn_ext_factor")?,
        };
        let share = share.filter(|share| *share >= 0.0).unwrap_or(1.0);
        let mut rotation = Rotation {
            length,
            base: self.float("rope.freq_base")?.unwrap_or(10_000.0),
            scale: 1.0 / factor,
            magnitude: self.float("rope.scaling.attn_factor")?.unwrap_or(1.0),
            extrapolation: if kind == "yarn" { share } else { 0.0 },
            beta_fast: beta("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: beta("rope.scaling.yarn_beta_slow", 1.0)?,
            original_context: self
                .optional("rope.scaling.original_context_length")?
                .unwrap_or(context),
            still: self.still(length / 2, decoder.sections)?,
            has_factors: true,
        };
        // NTK-aware scaling, the same for all positions.
        if let Some(alpha) = self
            .float("rope.scaling.alpha")?
            .filter(|alpha| *alpha > 0.0)
        {
            rotation.base *= alpha.powf(length as f32 / (length as f32 - 2.0));
        }
        if decoder.yarn == YarnKeys::All && rotation.extrapolation == 0.0 {
            let magnitude = self.float("rope.scaling.yarn_attn_factor")?;
            rotation.magnitude *= magnitude.unwrap_or(1.0);
        }
        if rotation.extrapolation != 0.0 {
            let magnitude = |part: f32| 1.0 + 0.1 * part * factor.max(1.0).ln();
            let of_scores = decoder.score_yarn;
            let part = match of_scores {
                None => self
                    .float("rope.scaling.yarn_log_multiplier")?
                    .unwrap_or(0.0),
                Some(_) => self.yarn_part(of_scores)?,
            };
            rotation.magnitude *= match part {
                0.0 => 1.0 + 0.1 * factor.ln(),
                _ if of_scores.is_some_and(|yarn| yarn.is_balanced) => 1.0,
                part => magnitude(1.0) / magnitude(part),
            };
        }
        Ok(rotation)
    }
}

impl Hyper {
    /// Number of layer runs: layers times loops.
    pub fn runs(&self) -> usize {
        self.layers * self.loops
    }

    /// The most tokens of a text for an embedding model: `size`, or the model's context if it is shorter.
    pub fn longest_text(&self, size: usize) -> usize {
        self.context.map_or(size, |context| size.min(context))
    }

    /// Reads the metadata.
    ///
    /// # Errors
    /// Missing or invalid keys; the error names the key.
    pub fn new(metadata: &Metadata<'_>) -> Result<Hyper> {
        let name = metadata.get(keys::ARCHITECTURE).and_then(Value::as_str);
        let name =
            name.ok_or_else(
                || match metadata.get("general.type").and_then(Value::as_str) {
                    Some("imatrix") => "this is an importance matrix, and no model".into(),
                    _ => format!("'{}' is missing", keys::ARCHITECTURE),
                },
            )?;
        let mut decoder = Architecture::of_gguf(name)?.decoder;
        let keys = Keys {
            metadata,
            architecture: name,
        };
        const CONVERTED: &str = "convert and quantize work";
        if let Some(reason) = decoder.refused {
            return Err(format!(
                "models of architecture '{name}' cannot be run here yet: {reason} ({CONVERTED})"
            ));
        }
        let is_causal = !decoder.sees_both_sides && keys.flag("attention.causal")? != Some(false);
        let pooling = keys.pooling(decoder.predicts_tokens, is_causal)?;
        if !is_causal && pooling.is_none() {
            return Err(format!(
                "this model also sees what comes after a token, and predicts no next one: it cannot be run here \
                 ({CONVERTED})"
            ));
        }
        if decoder.sections == Sections::Listed {
            decoder.sections = match keys.get(SECTIONS) {
                Some(_) => Sections::Consecutive,
                None => Sections::None,
            };
            if decoder.sections == Sections::Consecutive {
                decoder.rope = Rope::Halves;
            }
        }
        let (blocks, hidden) = (
            keys.number("block_count")?,
            keys.number("embedding_length")?,
        );
        if blocks > LAYERS {
            return Err(keys.bad("block_count", format!("is {blocks}, more than {LAYERS}")));
        }
        const NEXTN: &str = "nextn_predict_layers";
        let nextn = keys.optional(NEXTN)?.unwrap_or(0);
        let layers = blocks.checked_sub(nextn).filter(|layers| *layers > 0);
        let layers = layers
            .ok_or_else(|| keys.bad(NEXTN, format!("is {nextn}, and there are {blocks} layers")))?;
        const LOOPS: &str = "num_loops";
        let loops = keys.optional(LOOPS)?.unwrap_or(1);
        let runs = layers.checked_mul(loops);
        if loops == 0 || runs.is_none_or(|runs| runs > LAYERS) {
            let what =
                format!("is {loops}; {layers} layers run at least once, and {LAYERS} in all");
            return Err(keys.bad(LOOPS, what));
        }
        // Lists also count multi-token prediction blocks.
        let heads = keys.per_layer("attention.head_count", blocks)?;
        let heads = heads.ok_or_else(|| keys.bad("attention.head_count", "is missing"))?;
        let most_heads = heads.iter().copied().max().unwrap_or(0);
        if most_heads == 0 && !decoder.recurrence.is_some_and(Recurrence::may_be_alone) {
            return Err(keys.bad("attention.head_count", "is 0"));
        }
        let kv_heads = keys.per_layer("attention.head_count_kv", blocks)?;
        let kv_heads = kv_heads.unwrap_or_else(|| heads.clone());
        let may_be_unattended = decoder.recurrence.is_some_and(Recurrence::is_told_by_heads);
        let is_unattended = |layer: usize| may_be_unattended && kv_heads[layer] == 0;
        let is_linear =
            |layer: usize| decoder.linear_layers && heads[layer] > 0 && kv_heads[layer] == 0;
        let is_linear: Vec<_> = (0..layers).map(is_linear).collect();
        for layer in (0..layers).filter(|i| !is_linear[*i] && !is_unattended(*i)) {
            let (heads, kv_heads) = (heads[layer], kv_heads[layer]);
            if decoder.expands_latents && kv_heads != heads {
                return Err(keys.bad(
                    "attention.head_count_kv",
                    format!("is {kv_heads}; each of {heads} heads has keys of its own"),
                ));
            }
            if heads > 0 && (kv_heads == 0 || !heads.is_multiple_of(kv_heads)) {
                return Err(keys.bad(
                    "attention.head_count_kv",
                    format!("is {kv_heads}, no divisor of {heads} heads"),
                ));
            }
        }
        let length = |key: &str| {
            let length = keys.optional(key);
            length.map(|length| length.unwrap_or(hidden / most_heads.max(1)))
        };
        let (key_length, value_length) = (
            length("attention.key_length")?,
            length("attention.value_length")?,
        );
        let windowed_lengths = HeadLengths {
            key: keys
                .optional("attention.key_length_swa")?
                .unwrap_or(key_length),
            value: keys
                .optional("attention.value_length_swa")?
                .unwrap_or(value_length),
        };
        let full_lengths = HeadLengths {
            key: key_length,
            value: value_length,
        };
        let unequal = [full_lengths, windowed_lengths]
            .into_iter()
            .find(|length| length.key != length.value);
        if let Some(HeadLengths { key, value }) = unequal.filter(|_| decoder.keys_as_values) {
            return Err(keys.bad(
                "attention.value_length",
                format!("is {value}; {key} is expected, as keys serve as values"),
            ));
        }
        let length_of = |key: &str, by_default: usize, head: usize| {
            let length = keys.optional(key)?.unwrap_or(by_default);
            match length > head || !length.is_multiple_of(2) {
                true => Err(keys.bad(key, format!("is {length}; heads have {head} numbers"))),
                false => Ok(length),
            }
        };
        let latent = keys.latent(key_length)?;
        let is_plain = latent.is_none() && !decoder.expands_latents && decoder.recurrence.is_none();
        if !is_causal && !is_plain {
            return Err(format!(
                "models of architecture '{name}' cannot be run here yet without causal attention ({CONVERTED})"
            ));
        }
        let expanded = match decoder.expands_latents {
            true => Some(keys.expanded(key_length, value_length)?),
            false => None,
        };
        let rotated = match decoder.rope {
            Rope::None => 0,
            _ if decoder.rotates_whole_heads => key_length,
            _ => length_of("rope.dimension_count", key_length, key_length)?,
        };
        let indexer = decoder.indexer.map(|_| keys.indexer(rotated)).transpose()?;
        let feed_forward = match keys.get("feed_forward_length") {
            Some(Value::Array(_)) => keys.per_layer("feed_forward_length", blocks)?,
            _ => match decoder.recurrence {
                Some(Recurrence::Mamba | Recurrence::Mamba2(_)) => {
                    keys.per_layer("feed_forward_length", blocks)?
                }
                _ => None,
            },
        };
        let has_ffn: Vec<bool> = match feed_forward {
            Some(lengths) => lengths[..layers].iter().map(|length| *length > 0).collect(),
            None => vec![true; layers],
        };
        const RMS: &str = "attention.layer_norm_rms_epsilon";
        if decoder.norm_by_epsilon && keys.float(RMS)?.is_some_and(|epsilon| epsilon != 0.0) {
            decoder.norm = Norm::Rms;
        }
        let epsilon = match decoder.norm {
            Norm::Rms => keys.float(RMS)?,
            Norm::Layer => None,
        };
        let epsilon = match epsilon {
            None => keys.float("attention.layer_norm_epsilon")?,
            epsilon => epsilon,
        };
        let context = keys.optional("context_length")?.unwrap_or(0);
        let mut rotations = vec![keys.rotation(rotated, context, &decoder)?];
        let mut windows = vec![None; layers];
        let tokens = keys.optional("attention.sliding_window");
        match decoder.window {
            Window::None => {}
            Window::Chunks(tokens_of_part) => {
                if tokens? != Some(0) {
                    let listed = keys.windowed([layers, blocks], false)?;
                    let is_cut = |layer: usize| match &listed {
                        Some(listed) => listed[layer],
                        None => is_windowed(layer, 4, false),
                    };
                    let window = |layer| Some(tokens_of_part as usize).filter(|_| is_cut(layer));
                    windows = (0..layers).map(window).collect();
                }
                let base = keys
                    .float("rope.freq_base_swa")?
                    .unwrap_or(rotations[0].base);
                let windowed = Rotation {
                    base,
                    ..rotations[0].clone()
                };
                rotations.push(windowed);
            }
            Window::Pattern {
                layers: period,
                tokens: by_default,
                rope_base,
            } => {
                let tokens = tokens?.or(by_default.map(|tokens| tokens as usize));
                let tokens = tokens.filter(|tokens| *tokens > 0);
                let listed = keys.windowed([layers, blocks], false)?;
                for (layer, window) in windows.iter_mut().enumerate() {
                    let has_window = match &listed {
                        Some(listed) => listed[layer],
                        None => is_windowed(layer, period as usize, false),
                    };
                    *window = tokens.filter(|_| has_window);
                }
                let base = keys.float("rope.freq_base_swa")?.or(rope_base);
                let base = base.unwrap_or(rotations[0].base);
                let windowed = match rope_base {
                    Some(_) => rotations[0].unstretched(base),
                    None => Rotation {
                        base,
                        ..rotations[0].clone()
                    },
                };
                rotations.push(Rotation {
                    has_factors: false,
                    ..windowed
                });
            }
            Window::Listed(list) => {
                let tokens = tokens?.or(list.tokens.map(|tokens| tokens as usize));
                let tokens = tokens.map(|tokens| match list.fixed {
                    Some(fixed) if tokens > 0 => fixed as usize,
                    _ => tokens,
                });
                let tokens = tokens.filter(|tokens| {
                    *tokens > 0 && list.layers.is_none_or(|number| number as usize == layers)
                });
                let listed = keys.windowed([layers, blocks], list.first)?;
                for (layer, window) in windows.iter_mut().enumerate() {
                    let has_window = match &listed {
                        Some(listed) => listed[layer],
                        None => is_windowed(layer, list.period as usize, list.first),
                    };
                    *window = tokens.filter(|_| has_window);
                }
                let base = keys.float("rope.freq_base_swa")?.or(list.rope_base);
                let base = base.unwrap_or(rotations[0].base);
                let mut windowed = match list.stretched {
                    true => Rotation {
                        base,
                        ..rotations[0].clone()
                    },
                    false => rotations[0].unstretched(base),
                };
                windowed.length =
                    length_of("rope.dimension_count_swa", rotated, windowed_lengths.key)?;
                windowed.has_factors &= list.stretched;
                rotations.push(windowed);
            }
        }
        if decoder.half_rotated {
            rotations[0].length /= 2;
        }
        let is_windowed = windows.iter().any(Option::is_some);
        let is_tuned = keys.flag("rope.scaling.finetuned")?.unwrap_or(true);
        let dense_layers = keys.optional("leading_dense_block_count")?.unwrap_or(0);
        let listed_rotations = match decoder.unrotated {
            Unrotated::Listed => keys.flags("attention.rope_pattern", blocks)?,
            _ => None,
        };
        let rotates = |layer: usize| {
            decoder.rope != Rope::None
                && match decoder.unrotated {
                    Unrotated::None => true,
                    Unrotated::Every(number) => !(layer + 1).is_multiple_of(number as usize),
                    Unrotated::Unwindowed => !is_windowed || windows[layer].is_some(),
                    Unrotated::UnwindowedBehindDense => {
                        windows[layer].is_some() || layer < dense_layers
                    }
                    Unrotated::Listed => listed_rotations
                        .as_ref()
                        .is_none_or(|rotates| rotates[layer]),
                    Unrotated::EveryOrLast(number) => match is_windowed {
                        true => !(layer + 1).is_multiple_of(number as usize),
                        false => layer + 1 < layers,
                    },
                    Unrotated::Unless(number) => layers == number as usize,
                    Unrotated::Untuned => is_tuned,
                    Unrotated::FirstOf(number) => {
                        let number = number as usize;
                        !is_windowed || layers == number || !layer.is_multiple_of(number)
                    }
                }
        };
        let attention = |layer: usize| {
            let lengths = match windows[layer] {
                Some(_) => windowed_lengths,
                None => full_lengths,
            };
            AttentionNumbers {
                heads: heads[layer],
                kv_heads: kv_heads[layer],
                key_length: lengths.key,
                value_length: latent.map_or(lengths.value, |latent| latent.rank),
                window: windows[layer],
                is_chunked: matches!(decoder.window, Window::Chunks(_)),
                rotation: rotates(layer).then_some(usize::from(windows[layer].is_some())),
                cache: Cache::Own,
            }
        };
        let of_unattended = |numbers: Recurrent| {
            let layer = |layer: usize| is_unattended(layer).then_some(numbers);
            (0..layers).map(layer).collect()
        };
        let recurrent: Vec<_> = match decoder.recurrence {
            None => vec![None; layers],
            Some(Recurrence::DeltaNets(DeltaHeads::Own)) => {
                keys.own_delta_nets(&heads[..layers], &kv_heads[..layers])?
            }
            Some(Recurrence::DeltaNets(sharing)) => keys.delta_nets(sharing, layers, blocks)?,
            Some(Recurrence::Mamba2(which)) => {
                let numbers = Recurrent::Mamba2(keys.mamba2(which, hidden)?);
                let is_one = |layer: usize| match which {
                    Mamba2Layers::All => true,
                    Mamba2Layers::Unattended | Mamba2Layers::Factored => is_unattended(layer),
                    Mamba2Layers::Alone => is_unattended(layer) && !has_ffn[layer],
                };
                let layer = |layer: usize| is_one(layer).then_some(numbers);
                (0..layers).map(layer).collect()
            }
            Some(Recurrence::Mamba) => of_unattended(Recurrent::Mamba(keys.mamba(hidden)?)),
            Some(Recurrence::ShortConvolutions) => {
                of_unattended(Recurrent::ShortConvolution(keys.convolution(hidden)?))
            }
            Some(Recurrence::Wkv(kind)) => {
                vec![Some(Recurrent::Wkv(keys.wkv(kind, hidden)?)); layers]
            }
            Some(Recurrence::Lightning(interval)) => {
                let of_all = LightningNumbers {
                    heads: most_heads,
                    length: key_length,
                    rate: 1.0,
                };
                keys.lightning(interval, of_all, layers, blocks)?
            }
        };
        let attends = |layer: usize| {
            heads[layer] > 0
                && !is_linear[layer]
                && !is_unattended(layer)
                && !matches!(
                    recurrent[layer],
                    Some(Recurrent::DeltaNet(_) | Recurrent::Lightning(_))
                )
        };
        // llama.cpp runs exactly one block.
        let nextn = (decoder.drafts && nextn == 1).then(|| AttentionNumbers {
            heads: heads[layers],
            kv_heads: kv_heads[layers],
            key_length,
            value_length: latent.map_or(value_length, |latent| latent.rank),
            window: None,
            is_chunked: false,
            rotation: (decoder.rope != Rope::None).then_some(0),
            cache: Cache::Own,
        });
        let nextn = nextn.filter(|block| {
            block.heads > 0 && block.kv_heads > 0 && block.heads.is_multiple_of(block.kv_heads)
        });
        let attention = (0..layers).map(|layer| attends(layer).then(|| attention(layer)));
        let mut attention: Vec<_> = attention.collect();
        const PER_LAYER: &str = "embedding_length_per_layer_input";
        let per_layer = keys.optional(PER_LAYER)?.filter(|length| *length > 0);
        let streams = match decoder.streams {
            Streams::One => 1,
            Streams::Predicted(_) if per_layer.is_none() => {
                return Err(keys.bad(PER_LAYER, "is missing or 0"));
            }
            Streams::Predicted(count) => count as usize,
        };
        let first = per_layer.map_or(0, |length| length * layers);
        keys.share(decoder.shared_kv, first, &mut attention)?;
        let scale = match decoder.score_divisor {
            ScoreDivisor::One => 1.0,
            ScoreDivisor::Length => 1.0 / key_length as f32,
            ScoreDivisor::RootOfShare(number) if layers == number as usize => {
                1.0 / ((hidden / most_heads) as f32).sqrt()
            }
            ScoreDivisor::Root | ScoreDivisor::RootOfShare(_) => {
                let length = latent.map_or(key_length, |latent| latent.key_length);
                1.0 / (length as f32).sqrt()
            }
        };
        let stretch = match decoder.score_yarn {
            None => 1.0,
            yarn => rotations[0].score_stretch(keys.yarn_part(yarn)?),
        };
        let positive = |x: Option<f32>| x.filter(|x| *x != 0.0);
        const STRENGTH: &str = "attention.temperature_scale";
        const PERIOD: &str = "attention.temperature_length";
        let period = match decoder.score_yarn {
            None => rotations[0].original_context,
            Some(_) => keys.optional(PERIOD)?.unwrap_or(0),
        };
        let temperature = match decoder.tempering {
            Tempering::Listed => positive(keys.float(STRENGTH)?).map(|strength| Temperature {
                strength,
                period,
                offset: 0,
            }),
            Tempering::Unrotated { strength, period } => is_windowed.then_some(Temperature {
                strength,
                period: period as usize,
                offset: 1,
            }),
        };
        let unit_heads = match decoder.unit_heads {
            UnitHeads::None => false,
            UnitHeads::RotatedUnless(experts) => {
                keys.optional("expert_count")? != Some(experts as usize)
            }
        };
        if temperature.is_some_and(|temperature| temperature.period == 0) {
            let needed = match decoder.score_yarn {
                None => "rope.scaling.original_context_length",
                Some(_) => PERIOD,
            };
            return Err(keys.bad(STRENGTH, format!("needs '{needed}'")));
        }
        let max_alibi_bias = match decoder.alibi {
            Alibi::None => None,
            Alibi::Listed => keys.float("attention.max_alibi_bias")?,
            Alibi::Always(bias) => Some(bias),
            Alibi::InModelsOf {
                layers: number,
                bias,
            } => Some(bias).filter(|_| layers == number as usize),
        };
        const BOUND: &str = "kda.gate_lower_bound";
        // Files that llama.cpp saves list a missing bound as infinite.
        let is_unbounded = matches!(keys.get(BOUND), Some(Value::F32(f32::NEG_INFINITY)));
        let decay_bound = match is_unbounded {
            true => None,
            false => keys.float(BOUND)?,
        };
        if decay_bound.is_some_and(|bound| bound >= 0.0) {
            return Err(keys.bad(BOUND, "is not below 0"));
        }
        let scales = decoder.scales;
        let embedding_scale = if decoder.scaled_embeddings {
            (hidden as f32).sqrt()
        } else {
            scales.embeddings
        };
        let hyper = Hyper {
            architecture: name.to_owned(),
            decoder,
            is_causal,
            pooling,
            context: Some(context).filter(|context| *context > 0),
            layers,
            loops,
            loop_norm: loops > 1 && !keys.flag("skip_loop_final_norm")?.unwrap_or(false),
            hidden,
            attention,
            per_layer,
            streams,
            nextn,
            is_linear,
            activations: keys.activations(&decoder, layers)?,
            parallel: keys.flag("use_parallel_residual")?.unwrap_or(false),
            recurrent,
            halved_every: keys
                .optional("rescale_every_n_layers")?
                .filter(|number| *number > 0),
            latent,
            expanded,
            indexer,
            longest_context: match decoder.chooses_blocks {
                true => {
                    let blocks = keys.number("attention.indexer.top_k")?;
                    Some(blocks.saturating_mul(keys.number("attention.indexer.block_size")?))
                }
                false => None,
            },
            decay_bound,
            has_ffn,
            epsilon: epsilon.unwrap_or(1e-5),
            rotations,
            score_scale: stretch
                * positive(keys.float("attention.scale")?)
                    .or(keys.float("attention.output_scale")?)
                    .or(scales.scores)
                    .unwrap_or(scale),
            temperature,
            unit_heads,
            max_alibi_bias: positive(max_alibi_bias),
            score_cap: keys.cap("attn_logit_softcapping", scales.score_cap)?,
            logit_cap: keys.cap("final_logit_softcapping", scales.logit_cap)?,
            embedding_scale: positive(keys.float("embedding_scale")?).unwrap_or(embedding_scale),
            residual_scale: positive(keys.float("residual_scale")?).unwrap_or_else(|| {
                let depth = scales.depth.map(|depth| depth / (layers as f32).sqrt());
                depth.unwrap_or(1.0)
            }),
            output_scale: scales.width.map_or(1.0, |width| width / hidden as f32),
            value_scale: positive(keys.float("attention.value_scale")?).unwrap_or(1.0),
            logit_scale: positive(keys.float("logit_scale")?).map_or(scales.logits, |scale| {
                match decoder.multiplied_logits {
                    true => scale,
                    false => 1.0 / scale,
                }
            }),
            clamp: positive(keys.float("attention.clamp_kqv")?),
            limits: keys.limits("swiglu_clamp_shexp", blocks)?,
            expert_limits: keys.limits("swiglu_clamp_exp", blocks)?,
            routing: keys.routing(decoder.router, layers, blocks)?,
            adjugates: match decoder.adjugates {
                true => Some(keys.adjugates(blocks)?),
                false => None,
            },
        };
        match hyper.carried() as u64 > LIMIT {
            true => Err(format!(
                "{} numbers per token would pass between layers, more than {LIMIT}",
                hyper.carried()
            )),
            false => Ok(hyper),
        }
    }

    /// Numbers per position in all residual streams.
    pub fn stream_width(&self) -> usize {
        self.streams * self.hidden
    }

    /// Numbers per position between layers: the streams and the carried columns.
    pub fn width(&self) -> usize {
        self.stream_width() + self.carried()
    }

    /// Numbers per position that layers carry beside the streams: RWKV 7's values of the first layer,
    /// which all others read; the inputs of all layers from per-layer embeddings, then keys and values
    /// that later layers read.
    pub fn carried(&self) -> usize {
        let values = match self.recurrent.first() {
            Some(Some(Recurrent::Wkv(numbers))) if numbers.kind == Wkv::Seven => numbers.keys(),
            _ => 0,
        };
        let kept = |attention: &AttentionNumbers| match attention.cache {
            Cache::Kept(columns) => columns.count,
            Cache::Own | Cache::Shared(_) => 0,
        };
        let kept: usize = self.attention.iter().flatten().map(kept).sum();
        values + self.per_layer.map_or(0, |length| length * self.layers) + kept
    }

    /// The columns of streams and carried columns side by side that no layer changes: inputs from
    /// per-layer embeddings.
    pub fn constant(&self) -> Columns {
        Columns {
            first: self.stream_width(),
            count: self.per_layer.map_or(0, |length| length * self.layers),
        }
    }

    /// The carried columns with a layer's input from per-layer embeddings.
    pub fn per_layer_input(&self, layer: usize) -> Option<Columns> {
        let count = self.per_layer?;
        Some(Columns {
            first: layer * count,
            count,
        })
    }

    /// Total length of the recurrent states of all layers.
    pub fn states(&self) -> usize {
        self.recurrent.iter().flatten().map(Recurrent::state).sum()
    }

    /// Approximate operations on the states of all layers per token.
    pub fn state_operations(&self) -> usize {
        let recurrent = self.recurrent.iter().flatten();
        recurrent.map(Recurrent::operations).sum()
    }

    /// The largest number of experts per token over all layers.
    pub fn experts_used(&self) -> usize {
        let used = self.routing.iter().map(|routing| routing.used);
        used.max().unwrap_or(0)
    }
}

impl Rotation {
    /// YaRN's factor of attention scores ([`ScoreYarn`]); `part` is ten times its multiplier.
    fn score_stretch(&self, part: f32) -> f32 {
        let stretched = (1.0 / self.scale).ln();
        let magnitude = match self.extrapolation == 0.0 {
            true => self.magnitude * (1.0 + 0.1 * stretched),
            false => self.magnitude,
        };
        (magnitude * (1.0 + 0.1 * part * stretched)).powi(2)
    }

    /// The rotation with another base and without position scaling.
    fn unstretched(&self, base: f32) -> Rotation {
        Rotation {
            base,
            scale: 1.0,
            extrapolation: 0.0,
            magnitude: 1.0,
            ..self.clone()
        }
    }

    /// Cosines and sines of positions from 0: `[positions, length / 2]` each. `factors` divide the
    /// angles.
    pub fn table(&self, positions: usize, factors: Option<&[f32]>) -> (Vec<f32>, Vec<f32>) {
        let pairs = self.length / 2;
        let step = self.base.powf(-2.0 / self.length as f32);
        let (low, high) = self.ramp();
        let (mut cosines, mut sines) = (
            Vec::with_capacity(positions * pairs),
            Vec::with_capacity(positions * pairs),
        );
        for position in 0..positions {
            let mut angle = position as f32;
            for pair in 0..pairs {
                let turned = if self.still.contains(&pair) {
                    0.0
                } else {
                    angle
                };
                let whole = turned / factors.map_or(1.0, |f| f[pair]);
                let mut theta = self.scale * whole;
                if self.extrapolation != 0.0 {
                    let ramp =
                        1.0 - ((pair as f32 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    let mix = ramp * self.extrapolation;
                    theta = theta * (1.0 - mix) + whole * mix;
                }
                cosines.push(theta.cos() * self.magnitude);
                sines.push(theta.sin() * self.magnitude);
                angle *= step;
            }
        }
        (cosines, sines)
    }

    /// The range of pairs between extrapolation and interpolation.
    fn ramp(&self) -> (f32, f32) {
        let pair = |turns: f32| {
            let context = self.original_context as f32;
            self.length as f32 * (context / (turns * 2.0 * std::f32::consts::PI)).ln()
                / (2.0 * self.base.ln())
        };
        let last = self.length as f32 - 1.0;
        (
            pair(self.beta_fast).floor().max(0.0),
            pair(self.beta_slow).ceil().min(last),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalog;

    /// A Qwen 3.5 with four layers and one multi-token prediction block.
    fn metadata(changes: &[(&str, u32)]) -> Metadata<'static> {
        let mut metadata = Metadata::new();
        metadata.set(keys::ARCHITECTURE.to_owned(), Value::str("qwen35"));
        let sections = quantier_gguf::gguf::Array::of_values(
            quantier_gguf::gguf::ValueType::I32,
            [3, 3, 2, 0].map(Value::I32),
        );
        let own = |key: &str| format!("qwen35.{key}");
        metadata.set(own("rope.dimension_sections"), Value::Array(sections));
        for (key, value) in [
            ("block_count", 5),
            ("nextn_predict_layers", 1),
            ("embedding_length", 64),
            ("attention.head_count", 2),
            ("attention.key_length", 32),
            ("attention.value_length", 32),
            ("rope.dimension_count", 8),
            ("ssm.conv_kernel", 4),
            ("ssm.state_size", 16),
            ("ssm.group_count", 2),
            ("ssm.time_step_rank", 4),
            ("ssm.inner_size", 64),
        ]
        .into_iter()
        .chain(changes.iter().copied())
        {
            metadata.set(own(key), Value::U32(value));
        }
        metadata
    }

    #[test]
    fn delta_nets_in_three_of_four_layers() {
        let hyper = Hyper::new(&metadata(&[])).unwrap();
        assert_eq!(hyper.layers, 4);
        let nets: Vec<_> = hyper.recurrent.iter().map(Option::is_some).collect();
        assert_eq!(nets, [true, true, true, false]);
        let attention: Vec<_> = hyper.attention.iter().map(Option::is_some).collect();
        assert_eq!(attention, [false, false, false, true]);
        let Some(Recurrent::DeltaNet(net)) = hyper.recurrent[0] else {
            panic!("another layer: {:?}", hyper.recurrent[0]);
        };
        assert_eq!((net.keys(), net.values(), net.channels()), (32, 64, 128));
        assert_eq!(net.state(), 64 * 16 + 3 * 128);
        assert_eq!([0, 1, 2, 3].map(|head| net.shared(head)), [0, 1, 0, 1]);
        let every_other = Hyper::new(&metadata(&[("full_attention_interval", 2)])).unwrap();
        assert!(every_other.attention[1].is_some() && every_other.attention[2].is_none());
    }

    /// Metadata of integers; lists have one per layer.
    fn numbers(architecture: &'static str, numbers: &[(&str, &[u32])]) -> Metadata<'static> {
        let mut metadata = Metadata::new();
        metadata.set(keys::ARCHITECTURE.to_owned(), Value::str(architecture));
        for (key, numbers) in numbers {
            let value = match numbers {
                [number] => Value::U32(*number),
                numbers => {
                    let numbers = numbers.iter().map(|number| Value::U32(*number));
                    let list = quantier_gguf::gguf::Array::of_values(
                        quantier_gguf::gguf::ValueType::U32,
                        numbers,
                    );
                    Value::Array(list)
                }
            };
            metadata.set(format!("{architecture}.{key}"), value);
        }
        metadata
    }

    #[test]
    fn short_convolutions_in_layers_without_kv_heads() {
        let sound: [(&str, &[u32]); 5] = [
            ("block_count", &[3]),
            ("embedding_length", &[64]),
            ("attention.head_count", &[4]),
            ("attention.head_count_kv", &[0, 2, 0]),
            ("shortconv.l_cache", &[3]),
        ];
        let hyper = Hyper::new(&numbers("lfm2", &sound)).unwrap();
        let attends: Vec<_> = hyper.attention.iter().map(Option::is_some).collect();
        assert_eq!(attends, [false, true, false]);
        let convolves: Vec<_> = hyper.recurrent.iter().map(Option::is_some).collect();
        assert_eq!(convolves, [true, false, true]);
        assert_eq!(hyper.states(), 2 * 2 * 64);
        for kernel in [0, 1] {
            let mut damaged = sound;
            let kernel = [kernel];
            damaged[4].1 = &kernel;
            let error = Hyper::new(&numbers("lfm2", &damaged)).unwrap_err();
            assert!(error.contains("'lfm2.shortconv.l_cache'"), "{error}");
        }
        let error = Hyper::new(&numbers("llama", &sound)).unwrap_err();
        assert!(error.contains("head_count_kv"), "{error}");
    }

    #[test]
    fn mamba_without_attention_and_ffn() {
        let sound: [(&str, &[u32]); 8] = [
            ("block_count", &[2]),
            ("embedding_length", &[64]),
            ("attention.head_count", &[0]),
            ("feed_forward_length", &[0]),
            ("ssm.conv_kernel", &[4]),
            ("ssm.inner_size", &[128]),
            ("ssm.state_size", &[16]),
            ("ssm.time_step_rank", &[4]),
        ];
        let hyper = Hyper::new(&numbers("mamba", &sound)).unwrap();
        assert_eq!(
            (hyper.attention, hyper.has_ffn),
            (vec![None; 2], vec![false; 2])
        );
        let Some(Recurrent::Mamba(mamba)) = hyper.recurrent[1] else {
            panic!("another layer: {:?}", hyper.recurrent[1]);
        };
        assert_eq!(
            (mamba.state(), mamba.is_normalized),
            (128 * (16 + 3), false)
        );
        for (key, value) in [
            ("ssm.conv_kernel", 0),
            ("ssm.inner_size", 96),
            ("ssm.state_size", 0),
            ("ssm.time_step_rank", 0),
        ] {
            let value = [value];
            let changed = sound.map(|(name, number)| match name == key {
                true => (name, &value[..]),
                false => (name, number),
            });
            let error = Hyper::new(&numbers("mamba", &changed)).unwrap_err();
            assert!(error.contains(&format!("'mamba.{key}'")), "{key}: {error}");
        }
    }

    #[test]
    fn routing_from_family_and_metadata() {
        let metadata = metadata(&[
            ("expert_count", 8),
            ("expert_used_count", 3),
            ("expert_group_count", 4),
            ("expert_group_used_count", 2),
            ("expert_gating_func", 4),
        ]);
        let keys = Keys {
            metadata: &metadata,
            architecture: "qwen35",
        };
        let routing = Routing {
            used: 3,
            gating: Gating::RootSoftplus,
            groups: Some(ExpertGroups { count: 4, used: 2 }),
            normalized: false,
            scale: 1.0,
            ranking: Ranking::Probabilities,
            weighs_inputs: false,
        };
        let listed = keys.routing(Router::LISTED, 2, 3).unwrap();
        assert_eq!(listed, [routing, routing]);
        let softmax = Routing {
            gating: Gating::Softmax,
            normalized: true,
            ..routing
        };
        assert_eq!(keys.routing(Router::SOFTMAX, 1, 1).unwrap(), [softmax]);
    }

    #[test]
    fn invalid_expert_groups_are_named() {
        let sound = [
            ("expert_count", 8),
            ("expert_used_count", 3),
            ("expert_group_count", 4),
            ("expert_group_used_count", 2),
        ];
        for (key, value) in [
            ("expert_group_count", 3),
            ("expert_group_count", 8),
            ("expert_group_used_count", 4),
            ("expert_group_used_count", 1),
            ("expert_group_used_count", 0),
            ("expert_count", 0),
        ] {
            let changed = sound.map(|(name, number)| match name == key {
                true => (name, value),
                false => (name, number),
            });
            let error = Hyper::new(&metadata(&changed)).unwrap_err();
            assert!(error.contains(&format!("'qwen35.{key}'")), "{key}: {error}");
        }
    }

    /// A Kimi Linear with two layers of delta attention and one of latent attention.
    const KIMI: &[(&str, &[u32])] = &[
        ("block_count", &[3]),
        ("embedding_length", &[64]),
        ("attention.head_count", &[4]),
        ("attention.head_count_kv", &[0, 0, 1]),
        ("attention.key_length", &[48 + 8]),
        ("attention.key_length_mla", &[24]),
        ("attention.value_length_mla", &[20]),
        ("attention.kv_lora_rank", &[48]),
        ("rope.dimension_count", &[8]),
        ("ssm.conv_kernel", &[4]),
        ("kda.head_dim", &[16]),
    ];

    /// `KIMI` with another value of a key.
    fn kimi(key: &str, other: &'static [u32]) -> Result<Hyper> {
        let of_key = |(name, listed): &(&'static str, &'static [u32])| match *name == key {
            true => (*name, other),
            false => (*name, *listed),
        };
        let all: Vec<_> = KIMI.iter().map(of_key).collect();
        Hyper::new(&numbers("kimi-linear", &all))
    }

    #[test]
    fn kimi_layers_have_channel_decays_or_latent_attention() {
        let hyper = kimi("", &[]).unwrap();
        let nets: Vec<_> = hyper.recurrent.iter().map(Option::is_some).collect();
        assert_eq!(nets, [true, true, false]);
        let Some(Recurrent::DeltaNet(net)) = hyper.recurrent[0] else {
            panic!("another layer: {:?}", hyper.recurrent[0]);
        };
        assert_eq!((net.decays(), net.values(), net.channels()), (64, 64, 192));
        assert_eq!(net.state(), 4 * 16 * 16 + 3 * 3 * 64);
        assert_eq!([0, 3].map(|head| net.shared(head)), [0, 3]);
        // As llama.cpp saves them.
        let saved = kimi("attention.head_count", &[0, 0, 4]).unwrap();
        assert_eq!(saved.recurrent, hyper.recurrent);
        let latent = hyper.latent.unwrap();
        assert_eq!((latent.rank, latent.rotated), (48, 8));
        let attention = hyper.attention[2].unwrap();
        assert_eq!((attention.kv_heads, attention.value_length), (1, 48));
        assert_eq!(
            (attention.rotation, hyper.score_scale),
            (None, 1.0 / 24f32.sqrt())
        );
    }

    #[test]
    fn invalid_latent_attention_is_named() {
        for (key, other) in [
            ("attention.key_length", &[57][..]),
            ("attention.key_length_mla", &[8]),
            ("attention.value_length_mla", &[0]),
            ("attention.kv_lora_rank", &[0]),
            ("kda.head_dim", &[0]),
            ("ssm.conv_kernel", &[0]),
        ] {
            let error = kimi(key, other).unwrap_err();
            assert!(
                error.contains(&format!("'kimi-linear.{key}'")),
                "{key}: {error}"
            );
        }
        // A positive bound would let states grow.
        let mut metadata = numbers("kimi-linear", KIMI);
        let key = "kimi-linear.kda.gate_lower_bound";
        metadata.set(key.to_owned(), Value::F32(0.5));
        let error = Hyper::new(&metadata).unwrap_err();
        assert!(error.contains(key), "{error}");
    }

    #[test]
    fn invalid_delta_nets_are_named() {
        for (key, value) in [
            ("ssm.time_step_rank", 3),
            ("ssm.inner_size", 63),
            ("ssm.group_count", 0),
            ("ssm.conv_kernel", 0),
            ("full_attention_interval", 0),
            ("nextn_predict_layers", 5),
        ] {
            let error = Hyper::new(&metadata(&[(key, value)])).unwrap_err();
            assert!(error.contains(&format!("'qwen35.{key}'")), "{key}: {error}");
        }
    }

    /// Metadata of an architecture, from integers and lists.
    fn of(
        architecture: &str,
        numbers: &[(&str, u32)],
        lists: &[(&str, &[u32])],
    ) -> Metadata<'static> {
        let mut metadata = Metadata::new();
        metadata.set(
            keys::ARCHITECTURE.to_owned(),
            Value::str(architecture.to_owned()),
        );
        let own = |key: &str| format!("{architecture}.{key}");
        for (key, value) in numbers {
            metadata.set(own(key), Value::U32(*value));
        }
        for (key, list) in lists {
            let list = list.iter().map(|number| Value::I32(*number as i32));
            let list =
                quantier_gguf::gguf::Array::of_values(quantier_gguf::gguf::ValueType::I32, list);
            metadata.set(own(key), Value::Array(list));
        }
        metadata
    }

    const STATE_SPACE: [(&str, u32); 8] = [
        ("block_count", 4),
        ("embedding_length", 64),
        ("attention.head_count", 4),
        ("ssm.conv_kernel", 4),
        ("ssm.state_size", 16),
        ("ssm.group_count", 2),
        ("ssm.time_step_rank", 6),
        ("ssm.inner_size", 96),
    ];
    /// State space, network, attention, network.
    const PATTERN: [(&str, &[u32]); 2] = [
        ("attention.head_count_kv", &[0, 0, 2, 0]),
        ("feed_forward_length", &[0, 32, 0, 32]),
    ];

    #[test]
    fn nemotron_h_layers_have_one_mixer() {
        let hyper = Hyper::new(&of("nemotron_h", &STATE_SPACE, &PATTERN)).unwrap();
        let spaces: Vec<_> = hyper.recurrent.iter().map(Option::is_some).collect();
        assert_eq!(spaces, [true, false, false, false]);
        let attention: Vec<_> = hyper.attention.iter().map(Option::is_some).collect();
        assert_eq!(attention, [false, false, true, false]);
        assert_eq!(hyper.has_ffn, [false, true, false, true]);
        assert_eq!(hyper.attention[2].unwrap().rotation, None);
        let Some(Recurrent::Mamba2(space)) = hyper.recurrent[0] else {
            panic!("another layer: {:?}", hyper.recurrent[0]);
        };
        assert_eq!(
            (space.values(), space.keys(), space.channels()),
            (96, 32, 160)
        );
        assert_eq!(space.inputs(), 96 + 160 + 6);
        assert_eq!(hyper.states(), 96 * 16 + 3 * 160);
        // Mamba-2 has state spaces only.
        let nothing = [("attention.head_count", 0), ("feed_forward_length", 0)];
        let mamba2 =
            Hyper::new(&of("mamba2", &[&STATE_SPACE[..], &nothing].concat(), &[])).unwrap();
        assert!(mamba2.recurrent.iter().all(Option::is_some));
        assert!(mamba2.attention.iter().all(Option::is_none) && !mamba2.has_ffn.contains(&true));
    }

    #[test]
    fn invalid_state_spaces_are_named() {
        for (key, value) in [
            ("ssm.time_step_rank", 5),
            ("ssm.time_step_rank", 0),
            ("ssm.inner_size", 95),
            ("ssm.group_count", 0),
            ("ssm.conv_kernel", 0),
            ("ssm.state_size", 0),
            ("ssm.state_size", 1 << 24),
        ] {
            let numbers = [&STATE_SPACE[..], &[(key, value)]].concat();
            let error = Hyper::new(&of("nemotron_h", &numbers, &PATTERN)).unwrap_err();
            assert!(
                error.contains(&format!("'nemotron_h.{key}'")),
                "{key}: {error}"
            );
        }
    }

    /// A DeepSeek V3 with three layers.
    const DEEPSEEK: &[(&str, u32)] = &[
        ("block_count", 3),
        ("embedding_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 48 + 8),
        ("attention.value_length", 48),
        ("attention.key_length_mla", 24),
        ("attention.value_length_mla", 20),
        ("attention.kv_lora_rank", 48),
        ("rope.dimension_count", 8),
        ("expert_count", 8),
        ("expert_used_count", 2),
    ];

    /// Metadata of a DeepSeek with YaRN by a factor of eight.
    fn stretched(architecture: &str, multiplier: Option<f32>) -> Metadata<'static> {
        let mut numbers = DEEPSEEK.to_vec();
        numbers.extend([
            ("attention.indexer.head_count", 2),
            ("attention.indexer.key_length", 8),
            ("attention.indexer.top_k", 16),
        ]);
        let mut metadata = of(architecture, &numbers, &[]);
        let own = |key: &str| format!("{architecture}.{key}");
        metadata.set(own("rope.scaling.type"), Value::str("yarn"));
        metadata.set(own("rope.scaling.factor"), Value::F32(8.0));
        if let Some(multiplier) = multiplier {
            let key = own("rope.scaling.yarn_log_multiplier");
            metadata.set(key, Value::F32(multiplier));
        }
        metadata
    }

    #[test]
    fn yarn_scales_latent_attention_scores() {
        let plain = 1.0 / 24f32.sqrt();
        let log = 8f32.ln();
        let magnitude = |part: f32| 1.0 + 0.1 * part * log;
        // In the models' own code, scores are divided by the square root of the head length and
        // multiplied by the squared magnitude of `mscale_all_dim`; cosines and sines by the
        // quotient of both magnitudes.
        for (architecture, part, of_angles) in [
            ("deepseek2", 0.707, 1.0),
            ("deepseek2", 1.0, 1.0),
            ("deepseek32", 0.707, magnitude(1.0) / magnitude(0.707)),
            ("mistral4", 1.0, 1.0),
        ] {
            let hyper = Hyper::new(&stretched(architecture, Some(0.1 * part))).unwrap();
            let found = hyper.rotations[0].magnitude;
            assert!((found - of_angles).abs() < 1e-5, "{architecture}: {found}");
            let expected = plain * (of_angles * magnitude(part)).powi(2);
            let off = (hyper.score_scale - expected).abs();
            assert!(
                off < 1e-5,
                "{architecture}: {} {expected}",
                hyper.score_scale
            );
        }
        let unlisted = Hyper::new(&stretched("glm-dsa", Some(0.1))).unwrap();
        assert!((unlisted.score_scale - plain * magnitude(1.0).powi(2)).abs() < 1e-5);
        // No scaling without YaRN.
        let hyper = Hyper::new(&of("deepseek2", DEEPSEEK, &[])).unwrap();
        assert_eq!(hyper.score_scale, plain);
    }

    #[test]
    fn gating_defaults_by_model_size() {
        let gating = |layers: u32, tokens: u32| {
            let mut numbers = DEEPSEEK.to_vec();
            numbers[0].1 = layers;
            numbers.push(("vocab_size", tokens));
            let hyper = Hyper::new(&of("deepseek2", &numbers, &[])).unwrap();
            hyper.routing[0].gating
        };
        assert_eq!(gating(47, 154_880), Gating::Sigmoid);
        assert_eq!(gating(47, 154_881), Gating::Softmax);
        assert_eq!(gating(3, 154_880), Gating::Softmax);
    }

    #[test]
    fn windows_follow_a_list_or_a_period_of_the_metadata() {
        let windows = |pattern: &[u32]| {
            let mut all: Vec<(&str, &[u32])> = vec![
                ("block_count", &[4]),
                ("embedding_length", &[64]),
                ("attention.head_count", &[4]),
                ("attention.sliding_window", &[32]),
            ];
            if !pattern.is_empty() {
                all.push(("attention.sliding_window_pattern", pattern));
            }
            let mut metadata = numbers("cohere2", &all);
            metadata.set("cohere2.attention.layer_norm_epsilon", Value::F32(1e-5));
            metadata.set("cohere2.logit_scale", Value::F32(1.0));
            let hyper = Hyper::new(&metadata).unwrap();
            let attention = hyper.attention.iter().flatten();
            attention
                .map(|a| [a.window.is_some(), a.rotation.is_some()])
                .collect::<Vec<_>>()
        };
        let all = |windowed: [bool; 4]| windowed.map(|windowed| [windowed; 2]).to_vec();
        assert_eq!(windows(&[]), all([true, true, true, false]));
        assert_eq!(windows(&[2]), all([true, false, true, false]));
        assert_eq!(windows(&[1, 0, 0, 1]), all([true, false, false, true]));
    }

    #[test]
    fn experts_per_token_are_at_most_all_experts() {
        let mut numbers = DEEPSEEK.to_vec();
        numbers.last_mut().unwrap().1 = 9;
        let error = Hyper::new(&of("deepseek2", &numbers, &[])).unwrap_err();
        let expected = "'deepseek2.expert_used_count' is 9; there are 8 experts";
        assert_eq!(error, expected);
    }

    #[test]
    fn invalid_indexers_are_named() {
        for (key, value) in [
            ("attention.indexer.key_length", 7),
            ("attention.indexer.top_k", 0),
            ("attention.indexer.head_count", 0),
        ] {
            let mut metadata = stretched("glm-dsa", None);
            metadata.set(format!("glm-dsa.{key}"), Value::U32(value));
            let error = Hyper::new(&metadata).unwrap_err();
            assert!(error.contains(&format!("'glm-dsa.{key}'")), "{error}");
        }
        let hyper = Hyper::new(&stretched("glm-dsa", None)).unwrap();
        let indexer = hyper.indexer.unwrap();
        assert_eq!((indexer.heads, indexer.length, indexer.top_k), (2, 8, 16));
    }

    #[test]
    fn query_scaling_requires_a_length() {
        let mut metadata = of("mistral4", DEEPSEEK, &[]);
        let own = |key: &str| format!("mistral4.attention.{key}");
        metadata.set(own("temperature_scale"), Value::F32(0.1));
        let error = Hyper::new(&metadata).unwrap_err();
        assert!(error.contains("'attention.temperature_length'"), "{error}");
        metadata.set(own("temperature_length"), Value::U32(8192));
        let temperature = Hyper::new(&metadata).unwrap().temperature.unwrap();
        assert_eq!(temperature.period, 8192);
        assert_eq!(temperature.factor(8191), 1.0);
        assert_eq!(temperature.factor(8192), 1.0 + 0.1 * 2f32.ln());
    }

    #[test]
    fn lightning_attention_decays_faster_in_early_layers() {
        let numbers = |layers| {
            [
                ("block_count", layers),
                ("embedding_length", 64),
                ("attention.head_count", 4),
                ("attention.key_length", 16),
                ("rope.dimension_count", 8),
            ]
        };
        let hyper = Hyper::new(&of("minimax-01", &numbers(9), &[])).unwrap();
        let attends: Vec<_> = hyper.attention.iter().map(Option::is_some).collect();
        assert_eq!(attends.iter().position(|attends| *attends), Some(7));
        let decays = |layer: usize| match hyper.recurrent[layer] {
            Some(Recurrent::Lightning(numbers)) => numbers.decays(),
            other => panic!("another layer: {other:?}"),
        };
        let near = |x: f32, y: f32| (x - y).abs() < 1e-5 * y.abs();
        // Slopes are 1/4, 1/16, ...
        let first = decays(0);
        assert!((0..4).all(|head| near(first[head], -1.00001 * 0.25f32.powi(head as i32 + 1))));
        assert!(near(decays(4)[0], -0.50001 * 0.25) && near(decays(8)[0], -1e-5 * 0.25));
        assert_eq!(hyper.states(), 8 * 4 * 16 * 16);
        let error = Hyper::new(&of("minimax-01", &numbers(1), &[])).unwrap_err();
        assert!(error.contains("'minimax-01.block_count'"), "{error}");
    }

    /// A model with four layers and eight experts.
    fn experts(architecture: &str, more: &[(&str, u32)]) -> Metadata<'static> {
        let all = [
            ("block_count", 4),
            ("embedding_length", 64),
            ("attention.head_count", 4),
            ("expert_count", 8),
            ("expert_used_count", 2),
        ];
        of(architecture, &[&all[..], more].concat(), &[])
    }

    #[test]
    fn soft_caps_apply_to_the_architectures_that_read_them() {
        // llama.cpp saves all keys for all architectures: these caps stand in every such file.
        let caps = |metadata: &Metadata| {
            let hyper = Hyper::new(metadata).unwrap();
            (hyper.score_cap, hyper.logit_cap)
        };
        for (architecture, listed, absent) in [
            ("llama", (None, None), (None, None)),
            ("qwen3", (None, None), (None, None)),
            ("gemma", (None, None), (None, None)),
            ("gemma2", (Some(20.0), Some(10.0)), (Some(50.0), Some(30.0))),
            ("gemma3", (None, Some(10.0)), (None, None)),
            ("grok", (Some(20.0), Some(10.0)), (Some(30.0), None)),
            ("muse-glimmer", (None, Some(10.0)), (None, Some(30.0))),
        ] {
            let more = [
                ("attention.sliding_window", 16),
                ("rope.dimension_count", 16),
            ];
            let mut metadata = experts(architecture, &more);
            assert_eq!(caps(&metadata), absent, "{architecture}");
            for (key, cap) in [("attn", 20.0), ("router", 40.0), ("final", 10.0)] {
                let key = format!("{architecture}.{key}_logit_softcapping");
                metadata.set(key, Value::F32(cap));
            }
            assert_eq!(caps(&metadata), listed, "{architecture}");
        }
        let mut metadata = experts("gemma3", &[]);
        metadata.set("gemma3.final_logit_softcapping", Value::F32(0.0));
        assert_eq!(caps(&metadata), (None, None));
    }

    #[test]
    fn llama_4_rotates_within_chunks() {
        let hyper = Hyper::new(&experts("llama4", &[])).unwrap();
        let numbers = |layer: usize| hyper.attention[layer].unwrap();
        assert_eq!(
            (numbers(0).window, numbers(0).is_chunked),
            (Some(8192), true)
        );
        assert_eq!((numbers(0).rotation, numbers(3).rotation), (Some(1), None));
        assert_eq!(numbers(3).window, None);
        let temperature = hyper.temperature.unwrap();
        assert_eq!(temperature.factor(8190), 1.0);
        assert_eq!(temperature.factor(8191), 1.0 + 0.1 * 2f32.ln());
        assert!(
            hyper.unit_heads
                && hyper.routing[0].ranking == Ranking::Scores
                && hyper.routing[0].weighs_inputs
        );
        // The largest model has no QK norms; without chunks only the last layer lacks RoPE.
        assert!(
            !Hyper::new(&experts("llama4", &[("expert_count", 128)]))
                .unwrap()
                .unit_heads
        );
        let whole = experts("llama4", &[("attention.sliding_window", 0)]);
        let whole = Hyper::new(&whole).unwrap();
        let rotates: Vec<_> = whole
            .attention
            .iter()
            .map(|a| a.unwrap().rotation)
            .collect();
        assert_eq!(rotates, [Some(0), Some(0), Some(0), None]);
        assert_eq!(whole.temperature, None);
        // Listed windows leave RoPE to the layer's number.
        let mut listed = experts("llama4", &[]);
        let flags = [true, false, true, false].map(Value::Bool);
        let flags =
            quantier_gguf::gguf::Array::of_values(quantier_gguf::gguf::ValueType::Bool, flags);
        listed.set(
            "llama4.attention.sliding_window_pattern",
            Value::Array(flags),
        );
        let listed = Hyper::new(&listed).unwrap();
        let layers = listed.attention.iter().map(|layer| layer.unwrap());
        let layers: Vec<_> = layers.map(|a| (a.window.is_some(), a.rotation)).collect();
        let expected = [
            (true, Some(1)),
            (false, Some(0)),
            (true, Some(1)),
            (false, None),
        ];
        assert_eq!(layers, expected);
    }

    #[test]
    fn granites_switch_for_rope_is_read_without_experts_only() {
        for (architecture, rotates) in [("granite", false), ("granitemoe", true)] {
            let mut metadata = experts(architecture, &[]);
            let key = format!("{architecture}.rope.scaling.finetuned");
            metadata.set(key, Value::Bool(false));
            let hyper = Hyper::new(&metadata).unwrap();
            let rotation = hyper.attention[0].unwrap().rotation;
            assert_eq!(rotation.is_some(), rotates, "{architecture}");
        }
    }

    #[test]
    fn blocks_behind_the_layers_have_limits_of_their_own() {
        let mut metadata = metadata(&[]);
        let limits = [0.0, 0.0, 1e-7, 3.0, 5.0].map(Value::F32);
        let limits =
            quantier_gguf::gguf::Array::of_values(quantier_gguf::gguf::ValueType::F32, limits);
        metadata.set("qwen35.swiglu_clamp_exp", Value::Array(limits));
        let hyper = Hyper::new(&metadata).unwrap();
        assert_eq!(hyper.layers, 4);
        assert_eq!(
            hyper.expert_limits,
            [None, None, None, Some(3.0), Some(5.0)]
        );
        assert_eq!(hyper.limits, [None; 5]);
    }

    #[test]
    fn full_attention_in_the_first_of_four_layers() {
        let windows = |architecture: &str, more: &[(&str, u32)]| -> Vec<bool> {
            let hyper = Hyper::new(&experts(architecture, more)).unwrap();
            let layers = hyper.attention.iter();
            layers
                .map(|layer| layer.unwrap().window.is_some())
                .collect()
        };
        let window = [("attention.sliding_window", 128)];
        assert_eq!(windows("laguna", &window), [false, true, true, true]);
        assert_eq!(windows("afmoe", &window), [true, true, true, false]);
        assert_eq!(windows("laguna", &[]), [false; 4]);
    }

    #[test]
    fn layers_without_rope_are_listed_or_full_attention() {
        let rotates = |metadata: &Metadata<'_>| -> Vec<bool> {
            let hyper = Hyper::new(metadata).unwrap();
            let layers = hyper.attention.iter();
            layers
                .map(|layer| layer.unwrap().rotation.is_some())
                .collect()
        };
        let mut listed = experts("granite_swa", &[("attention.sliding_window", 128)]);
        assert_eq!(rotates(&listed), [true; 4]);
        let flags = [true, false, true, false].map(Value::Bool);
        let kind = quantier_gguf::gguf::ValueType::Bool;
        let flags = quantier_gguf::gguf::Array::of_values(kind, flags);
        let key = "granite_swa.attention.rope_pattern";
        listed.set(key.to_owned(), Value::Array(flags));
        assert_eq!(rotates(&listed), [true, false, true, false]);
        listed.set(key.to_owned(), Value::U32(2));
        assert!(Hyper::new(&listed).unwrap_err().contains(key));
        let north = [
            ("attention.sliding_window", 128),
            ("leading_dense_block_count", 1),
        ];
        assert_eq!(rotates(&experts("cohere2moe", &north)), [true; 4]);
        let behind = [("attention.sliding_window", 128)];
        assert_eq!(
            rotates(&experts("cohere2moe", &behind)),
            [false, true, true, true]
        );
    }

    #[test]
    fn step_rotates_half_of_a_head_in_full_attention() {
        let window = [
            ("attention.sliding_window", 128),
            ("attention.key_length", 32),
        ];
        let flags = [("attention.sliding_window_pattern", &[0, 1, 1, 0][..])];
        let all = [
            ("block_count", 4),
            ("embedding_length", 64),
            ("attention.head_count", 4),
        ];
        let hyper = Hyper::new(&of("step35", &[&all[..], &window].concat(), &flags)).unwrap();
        let lengths: Vec<_> = hyper
            .rotations
            .iter()
            .map(|r| (r.length, r.has_factors))
            .collect();
        assert_eq!(lengths, [(16, true), (32, false)]);
        let windows: Vec<_> = hyper.attention.iter().map(|a| a.unwrap().window).collect();
        assert_eq!(windows, [None, Some(128), Some(128), None]);
    }

    /// A Gemma 4 with five layers, of which the last two share keys and values.
    fn gemma4(more: &[(&str, u32)], windows: &[u32]) -> Result<Hyper> {
        let all = [
            ("block_count", 5),
            ("embedding_length", 64),
            ("attention.head_count", 4),
            ("attention.key_length", 32),
            ("attention.value_length", 32),
            ("attention.key_length_swa", 16),
            ("attention.value_length_swa", 16),
            ("rope.dimension_count", 32),
            ("rope.dimension_count_swa", 16),
            ("attention.sliding_window", 8),
            ("attention.shared_kv_layers", 2),
            ("embedding_length_per_layer_input", 6),
        ];
        let changed = |(key, value): (&'static str, u32)| {
            let other = more.iter().find(|(name, _)| *name == key);
            (key, other.map_or(value, |(_, other)| *other))
        };
        let all: Vec<_> = all.into_iter().map(changed).collect();
        let lists = [
            ("attention.sliding_window_pattern", windows),
            ("attention.head_count_kv", &[2, 2, 1, 2, 1][..]),
        ];
        Hyper::new(&of("gemma4", &all, &lists))
    }

    #[test]
    fn last_layers_read_keys_and_values_of_their_kind() {
        let hyper = gemma4(&[], &[1, 1, 0, 1, 0]).unwrap();
        assert_eq!((hyper.score_cap, hyper.logit_cap), (None, Some(30.0)));
        let layers: Vec<_> = hyper.attention.iter().map(|a| a.unwrap()).collect();
        let lengths: Vec<_> = layers.iter().map(|layer| layer.key_length).collect();
        assert_eq!(lengths, [16, 16, 32, 16, 32]);
        // Behind the inputs of five layers.
        let windowed = Columns {
            first: 5 * 6,
            count: 2 * 2 * 16,
        };
        let full = Columns {
            first: windowed.end(),
            count: 2 * 32,
        };
        let caches: Vec<_> = layers.iter().map(|layer| layer.cache).collect();
        let expected = [
            Cache::Own,
            Cache::Kept(windowed),
            Cache::Kept(full),
            Cache::Shared(windowed),
            Cache::Shared(full),
        ];
        assert_eq!(caches, expected);
        assert_eq!((hyper.carried(), hyper.width()), (158, 64 + 158));
        assert_eq!(
            hyper.constant(),
            Columns {
                first: 64,
                count: 30
            }
        );
        let input = hyper.per_layer_input(2).unwrap();
        assert_eq!((input.first, input.count), (12, 6));
        assert_eq!(hyper.score_scale, 1.0);
        let plain = [
            ("embedding_length_per_layer_input", 0),
            ("attention.shared_kv_layers", 0),
        ];
        let plain = gemma4(&plain, &[1, 1, 0, 1, 0]).unwrap();
        assert_eq!((plain.carried(), plain.per_layer), (0, None));
    }

    #[test]
    fn gemma_3n_has_four_streams_and_shares_keys_after_twenty_layers() {
        let hyper = |layers: u32, per_layer: u32| {
            let all = [
                ("block_count", layers),
                ("embedding_length", 64),
                ("attention.head_count", 4),
                ("attention.head_count_kv", 2),
                ("attention.key_length", 16),
                ("attention.value_length", 16),
                ("attention.sliding_window", 8),
                // llama.cpp ignores it.
                ("attention.shared_kv_layers", 1),
                ("embedding_length_per_layer_input", per_layer),
            ];
            let mut metadata = of("gemma3n", &all, &[]);
            // llama.cpp ignores it as well.
            metadata.set("gemma3n.final_logit_softcapping", Value::F32(10.0));
            Hyper::new(&metadata)
        };
        let deep = hyper(25, 6).unwrap();
        assert_eq!((deep.streams, deep.stream_width()), (4, 4 * 64));
        assert_eq!((deep.score_scale, deep.logit_cap), (1.0, Some(30.0)));
        // Layers 20 to 23 have a window, layer 24 has none.
        let caches: Vec<_> = deep.attention.iter().map(|a| a.unwrap().cache).collect();
        let columns = |first: usize| Columns {
            first,
            count: 2 * 2 * 16,
        };
        let (windowed, full) = (columns(25 * 6), columns(25 * 6 + 64));
        assert_eq!(caches[17..19], [Cache::Own, Cache::Kept(windowed)]);
        assert_eq!(caches[19..21], [Cache::Kept(full), Cache::Shared(windowed)]);
        assert_eq!(caches[23..], [Cache::Shared(windowed), Cache::Shared(full)]);
        assert_eq!(deep.carried(), 25 * 6 + 2 * 64);
        assert_eq!(deep.width(), 4 * 64 + deep.carried());
        assert_eq!(deep.constant().first, 4 * 64);
        // Matrices of keys and values that nothing reads.
        let weights = [
            "blk.19.attn_k",
            "blk.20.attn_q",
            "blk.20.attn_k",
            "blk.20.attn_v",
        ];
        let weights = weights.map(|stem| format!("{stem}.weight"));
        let tensors = weights.iter().map(|name| (&**name, [64, 32, 1, 1]));
        let catalog = Catalog::new("gemma3n", tensors);
        assert_eq!(deep.unread(&catalog), [&*weights[2], &*weights[3]]);
        let flat = hyper(6, 6).unwrap();
        assert_eq!(flat.carried(), 6 * 6);
        let error = hyper(6, 0).unwrap_err();
        assert!(
            error.contains("'gemma3n.embedding_length_per_layer_input'"),
            "{error}"
        );
    }

    #[test]
    fn invalid_shared_keys_are_named() {
        const SHARED: &str = "'gemma4.attention.shared_kv_layers'";
        for (key, value, part) in [
            ("attention.shared_kv_layers", 4, SHARED),
            ("attention.shared_kv_layers", 6, SHARED),
            // The source of windowed layers would be one with full attention.
            ("attention.shared_kv_layers", 1, SHARED),
            (
                "attention.value_length",
                16,
                "'gemma4.attention.value_length' is 16",
            ),
            (
                "embedding_length_per_layer_input",
                1 << 23,
                "between layers",
            ),
        ] {
            let error = gemma4(&[(key, value)], &[1, 1, 0, 1, 0]).unwrap_err();
            assert!(error.contains(part), "{key}: {error}");
        }
        let error = gemma4(&[], &[1, 0, 0, 1, 0]).unwrap_err();
        assert!(
            error.contains("of layer 1, which has other heads"),
            "{error}"
        );
    }

    #[test]
    fn grok_has_scales_by_default_and_own_parameters_of_yarn() {
        let hyper = Hyper::new(&experts("grok", &[])).unwrap();
        let scales = (hyper.embedding_scale, hyper.logit_scale, hyper.score_scale);
        assert_eq!(scales, (78.383_67, 0.577_350_26, 0.088_388_35));
        assert_eq!((hyper.score_cap, hyper.logit_cap), (Some(30.0), None));
        let mut metadata = experts("grok", &[]);
        metadata.set("grok.rope.scaling.type", Value::str("yarn"));
        for (key, number) in [
            ("logit_scale", 0.5),
            ("attention.output_scale", 0.25),
            ("attn_logit_softcapping", 20.0),
            ("rope.scaling.factor", 16.0),
            ("rope.scaling.yarn_ext_factor", 0.5),
            ("rope.scaling.yarn_attn_factor", 1.25),
            ("rope.scaling.yarn_beta_fast", 8.0),
        ] {
            metadata.set(format!("grok.{key}"), Value::F32(number));
        }
        let hyper = Hyper::new(&metadata).unwrap();
        let scales = (hyper.logit_scale, hyper.score_scale, hyper.score_cap);
        assert_eq!(scales, (0.5, 0.25, Some(20.0)));
        let rotation = &hyper.rotations[0];
        assert_eq!((rotation.extrapolation, rotation.beta_fast), (0.5, 8.0));
        assert_eq!(rotation.magnitude, 1.0 + 0.1 * 16f32.ln());
        // Without extrapolation, the metadata's factor of cosines and sines applies.
        metadata.set("grok.rope.scaling.yarn_ext_factor", Value::F32(0.0));
        let rotation = &Hyper::new(&metadata).unwrap().rotations[0];
        assert_eq!((rotation.extrapolation, rotation.magnitude), (0.0, 1.25));
    }

    #[test]
    fn smallthinker_has_a_fixed_window_and_full_layers_without_rope() {
        let layers = |layers: u32, window: u32| {
            let all = [
                ("block_count", layers),
                ("attention.sliding_window", window),
            ];
            let hyper = Hyper::new(&experts("smallthinker", &all)).unwrap();
            let numbers = hyper.attention.into_iter().flatten();
            numbers
                .map(|numbers| (numbers.window, numbers.rotation.is_some()))
                .collect::<Vec<_>>()
        };
        let (full, windowed) = ((None, false), (Some(4096), true));
        let expected = [full, windowed, windowed, windowed, full, windowed];
        assert_eq!(layers(6, 64), expected);
        assert_eq!(layers(4, 64)[0], (None, true));
        assert_eq!(layers(6, 0), [(None, true); 6]);
    }

    #[test]
    fn invalid_adjugate_experts_are_named() {
        let grove = |more: &[(&str, u32)]| {
            let mut metadata = experts("grovemoe", more);
            metadata.set("grovemoe.expert_group_scale", Value::F32(0.05));
            Hyper::new(&metadata)
        };
        let adjugates = grove(&[("experts_per_group", 2)]).unwrap().adjugates;
        let expected = AdjugateNumbers {
            sharing: 2,
            scale: 0.05,
        };
        assert_eq!(adjugates, Some(expected));
        for more in [
            &[][..],
            &[("experts_per_group", 0)],
            &[("experts_per_group", 3)],
            &[("experts_per_group", 8)],
            &[("experts_per_group", 2), ("expert_used_count", 5)],
        ] {
            let error = grove(more).unwrap_err();
            assert!(error.contains("'grovemoe.experts_per_group'"), "{error}");
        }
        let error = Hyper::new(&experts("grovemoe", &[("experts_per_group", 2)])).unwrap_err();
        assert!(error.contains("'grovemoe.expert_group_scale'"), "{error}");
    }

    #[test]
    fn minicpm3_expands_latents_and_has_fixed_scales() {
        let all = [
            ("block_count", 4),
            ("embedding_length", 512),
            ("attention.head_count", 4),
            ("attention.key_length", 96),
            ("attention.kv_lora_rank", 48),
            ("rope.dimension_count", 32),
        ];
        let hyper = Hyper::new(&of("minicpm3", &all, &[])).unwrap();
        let expected = LatentNumbers {
            rank: 48,
            rotated: 32,
            key_length: 96,
            value_length: 128,
        };
        assert_eq!((hyper.expanded, hyper.latent), (Some(expected), None));
        let scales = [
            hyper.embedding_scale,
            hyper.residual_scale,
            hyper.output_scale,
            hyper.logit_scale,
        ];
        assert_eq!(scales, [12.0, 0.7, 0.5, 1.0]);
        assert_eq!(hyper.score_scale, 1.0 / 96f32.sqrt());
        for (key, value) in [
            ("attention.head_count_kv", 2),
            ("rope.dimension_count", 96),
            ("attention.kv_lora_rank", 0),
        ] {
            let others = all.iter().filter(|(name, _)| *name != key).copied();
            let all: Vec<_> = others.chain([(key, value)]).collect();
            let error = Hyper::new(&of("minicpm3", &all, &[])).unwrap_err();
            assert!(error.contains(&format!("'minicpm3.{key}'")), "{error}");
        }
    }
}
