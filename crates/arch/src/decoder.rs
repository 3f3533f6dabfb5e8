//! The forward pass of an architecture as data. Properties visible in the tensors of a file
//! (biases, QK norms, post-norms, experts, fused matrices) are not repeated here.

/// The decoder of an architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoder {
    /// True if the model predicts tokens; false for encoders, which make embeddings of texts.
    pub predicts_tokens: bool,
    /// True if attention is never causal, whatever the metadata says.
    pub sees_both_sides: bool,
    /// Kind of norm.
    pub norm: Norm,
    /// True if the epsilon key in the metadata decides the kind of norm.
    pub norm_by_epsilon: bool,
    /// Position encoding of queries and keys.
    pub rope: Rope,
    /// Assignment of a head's RoPE pairs to the dimensions of images.
    pub sections: Sections,
    /// Activation of the feed-forward network.
    pub activation: Activation,
    /// True if the metadata may name another activation.
    pub names_activation: bool,
    /// True if the activation limits of the metadata apply before the activation.
    pub limits_in_front: bool,
    /// Activation limit of every feed-forward network without one in the metadata.
    pub limit: Option<Limit>,
    /// Activation of the attention output gate.
    pub gate: Activation,
    /// Order of a layer's blocks.
    pub layout: Layout,
    /// True if embeddings are multiplied by the square root of their length.
    pub scaled_embeddings: bool,
    /// True if embeddings are normalized, without weights.
    pub normalized_embeddings: bool,
    /// Routing of experts.
    pub router: Router,
    /// Factor of the summed outputs of routed and shared experts.
    pub shared_scale: f32,
    /// Dense feed-forward networks in layers with experts.
    pub dense: Dense,
    /// True if groups of experts share smaller experts, which read the output of the others (Wu et
    /// al. 2025).
    pub adjugates: bool,
    /// True if routers read the stream before the layer, without a norm.
    pub routes_first: bool,
    /// Layers with a sliding window.
    pub window: Window,
    /// Layers without RoPE.
    pub unrotated: Unrotated,
    /// Parameters of YaRN that the metadata sets.
    pub yarn: YarnKeys,
    /// True if full-attention layers rotate half of the dimensions that the metadata gives.
    pub half_rotated: bool,
    /// RMS normalization of queries and keys after RoPE, without weights.
    pub unit_heads: UnitHeads,
    /// Scaling of queries with their position.
    pub tempering: Tempering,
    /// ALiBi.
    pub alibi: Alibi,
    /// True if values are RMS-normalized, without weights.
    pub unit_values: bool,
    /// True if keys before their norm serve as values in layers without a value matrix.
    pub keys_as_values: bool,
    /// Last layers that read the keys and values of earlier ones.
    pub shared_kv: SharedKv,
    /// Residual streams of a token.
    pub streams: Streams,
    /// Sparse activations of the first feed-forward networks; None without any.
    pub sparse_gates: Option<SparseGates>,
    /// True if QK norms come after RoPE.
    pub norms_rotated: bool,
    /// Epsilon of post-norms, if different from that of the other norms.
    pub post_norm_epsilon: Option<f32>,
    /// Names of the norms after attention and after the feed-forward network. Of several, a model
    /// has one; a norm before a block is none of them.
    pub post_norms: [&'static [&'static str]; 2],
    /// Names of the norms of the stream after attention and after the feed-forward network, as in the
    /// original Transformer (Vaswani et al. 2017). Before a second one, the stream before the block is
    /// added again. A model may lack all but the first.
    pub stream_norms: [&'static [&'static str]; 2],
    /// Scales of models whose metadata has none.
    pub scales: Scales,
    /// True if layers without KV heads have one matrix in place of attention.
    pub linear_layers: bool,
    /// True if logits are multiplied by the metadata's scale; otherwise divided.
    pub multiplied_logits: bool,
    /// True if the query matrix also holds an elementwise output gate, after the queries of each
    /// head.
    pub gated_queries: bool,
    /// Recurrent mixer of some layers; None if there is none.
    pub recurrence: Option<Recurrence>,
    /// True if the multi-token prediction block is attention and a feed-forward network that read,
    /// at each position, the token and the normalized activations of the previous position.
    pub drafts: bool,
    /// Name of the norm before the output matrix.
    pub output_norm: &'static str,
    /// True if the residual is the mixer's normalized input times the metadata's scale, instead of
    /// the stream.
    pub normalized_residuals: bool,
    /// Divisor of attention scores.
    pub score_divisor: ScoreDivisor,
    /// YaRN's scaling of attention scores, in addition to cosines and sines; None if there is none.
    pub score_yarn: Option<ScoreYarn>,
    /// True if an indexer selects blocks of tokens for attention. Contexts no longer than its
    /// selection see all tokens.
    pub chooses_blocks: bool,
    /// True if keys and values of all heads are computed from the latent vector by one matrix,
    /// instead of one per head before and after the scores.
    pub expands_latents: bool,
    /// Indexer of sparse latent attention; None if attention is dense.
    pub indexer: Option<IndexerKind>,
    /// True if RoPE covers the whole head, whatever the metadata says.
    pub rotates_whole_heads: bool,
    /// Reason why models cannot be run yet; None if they can.
    pub refused: Option<&'static str>,
    /// Optional tensors, and required ones besides the weights.
    pub needs: Needs,
}

/// Tensors that llama.cpp requires to load a model. The weights reached by an architecture's
/// recipes are required unless listed as optional. Names are those of a GGUF, without layer and
/// suffix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needs {
    /// Weights missing in some models of the architecture.
    pub optional: &'static [&'static str],
    /// Required biases.
    pub biases: &'static [&'static str],
    /// Required tensors of multi-token prediction blocks that other families' blocks may lack.
    pub nextn: &'static [&'static str],
    /// True if tied embeddings are not allowed.
    pub own_output: bool,
}

impl Needs {
    /// The weights alone.
    pub(crate) const WEIGHTS: Needs = Needs {
        optional: &[],
        biases: &[],
        nextn: &[],
        own_output: false,
    };
    /// Weights and an output matrix.
    pub(crate) const OWN_OUTPUT: Needs = Needs {
        own_output: true,
        ..Needs::WEIGHTS
    };
    /// Biases of norms and matrices, except those of queries, keys and values.
    pub(crate) const BIASES: Needs = Needs {
        biases: &[
            "output_norm",
            "attn_norm",
            "attn_output",
            "ffn_norm",
            "ffn_up",
            "ffn_down",
        ],
        ..Needs::WEIGHTS
    };
    /// Biases of all norms and matrices, with fused queries, keys and values.
    pub(crate) const ALL_BIASES: Needs = Needs {
        biases: &[
            "token_embd_norm",
            "output_norm",
            "attn_norm",
            "attn_qkv",
            "attn_output",
            "ffn_norm",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        ],
        ..Needs::WEIGHTS
    };
}

/// Divisor of attention scores, if the metadata has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScoreDivisor {
    /// The square root of the head length.
    Root,
    /// The square root of the hidden size per head in models with this many layers; otherwise as
    /// [`ScoreDivisor::Root`].
    RootOfShare(u32),
    /// The head length.
    Length,
    /// 1: scores are not divided.
    One,
}

/// Differences between families in the indexers of sparse attention (DeepSeek-AI 2025).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IndexerKind {
    /// RoPE of its queries and keys.
    pub rope: Rope,
    /// Epsilon of its key norm.
    pub epsilon: f32,
}

/// YaRN's factor of attention scores: the square of `magnitude (1 + 0.1 part ln(factor))`, with
/// `part` ten times the metadata's multiplier (DeepSeek-AI 2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreYarn {
    /// True if the metadata's multiplier is used; otherwise it is 0.
    pub is_listed: bool,
    /// True if `part` leaves cosines and sines unscaled.
    pub is_balanced: bool,
}

/// Scales of models whose metadata has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// Factor of embeddings.
    pub embeddings: f32,
    /// Factor of logits.
    pub logits: f32,
    /// Factor of the output matrix's input, times the hidden size; 1 without.
    pub width: Option<f32>,
    /// Factor of a block's output, times the square root of the number of layers; 1 without.
    pub depth: Option<f32>,
    /// Factor of attention scores; by [`ScoreDivisor`] without one.
    pub scores: Option<f32>,
    /// Soft cap of attention scores.
    pub score_cap: Cap,
    /// Soft cap of logits.
    pub logit_cap: Cap,
}

/// Soft cap of an architecture. Files saved by llama.cpp list the caps for all architectures, but
/// only some read them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cap {
    /// None, whatever the metadata lists.
    None,
    /// This one, whatever the metadata lists.
    Always(f32),
    /// That of the metadata; none if it is 0 or not listed.
    Listed,
    /// That of the metadata; none if it is 0, this one if it is not listed.
    ListedOr(f32),
}

impl Scales {
    /// None.
    pub(crate) const NONE: Scales = Scales {
        embeddings: 1.0,
        logits: 1.0,
        width: None,
        depth: None,
        scores: None,
        score_cap: Cap::None,
        logit_cap: Cap::None,
    };
}

/// Dense feed-forward networks in layers with experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dense {
    /// None: a layer has either.
    Instead,
    /// In some models, beside the experts: both read the same input (Grok).
    Beside,
    /// In all layers, in parallel with the experts of some models; each has norms of its own
    /// (Gemma 4).
    Apart,
    /// In all layers, behind attention; the experts read the layer's input with a norm of their
    /// own, in parallel with both (Arctic).
    Behind,
}

/// Parameters of YaRN that the metadata sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YarnKeys {
    /// Neither `beta_fast` nor `beta_slow`.
    None,
    /// Both.
    Betas,
    /// Both, the share of extrapolation, and without extrapolation the factor of cosines and sines.
    All,
}

/// Layers without RoPE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unrotated {
    /// None.
    None,
    /// Every n-th layer.
    Every(u32),
    /// Full-attention layers, if others have a window.
    Unwindowed,
    /// Full-attention layers after the leading dense ones.
    UnwindowedBehindDense,
    /// Those listed in the metadata; none without a list.
    Listed,
    /// Every n-th layer, if layers have a window; otherwise the last layer.
    EveryOrLast(u32),
    /// All, unless the model has this many layers.
    Unless(u32),
    /// All, if the metadata says that RoPE scaling was not fine-tuned.
    Untuned,
    /// The first layer of each period of this many, in models with a window; none in models of as
    /// many layers.
    FirstOf(u32),
}

/// RMS normalization of queries and keys after RoPE, without weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitHeads {
    /// None.
    None,
    /// In layers with RoPE, unless the model has this many experts.
    RotatedUnless(u32),
}

/// Last layers without keys and values of their own. Those with a window read what the last but one
/// of the other layers has, those with full attention what the last one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedKv {
    /// None.
    None,
    /// As many as the metadata says.
    Listed,
    /// All after this many, whatever the metadata says. They have matrices of keys and values, which
    /// nothing reads.
    After(u32),
}

/// Residual streams of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// One.
    One,
    /// Several; each layer computes one of them, the first, and predicts and corrects the others
    /// from it (AltUp, Baykal et al. 2023). Beside attention, a layer has a low-rank branch (LAuReL,
    /// Menghani et al. 2025).
    Predicted(u32),
}

/// Sparse activations: of the gates of a token's feed-forward network, only what exceeds their mean
/// by a multiple of their standard deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseGates {
    /// Number of leading layers with sparse activations, whatever the metadata says.
    pub layers: u32,
    /// Standard deviations above the mean.
    pub deviations: f32,
}

/// Scaling of queries with their position, to keep attention sharp over long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tempering {
    /// By the metadata.
    Listed,
    /// In layers without RoPE, with these constants (Llama 4).
    Unrotated {
        /// Growth rate of the scale.
        strength: f32,
        /// Positions per step of the scale.
        period: u32,
    },
}

/// Linear biases of attention (ALiBi, Press et al. 2022), given as the bias of the steepest head at
/// a distance of one context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Alibi {
    /// None.
    None,
    /// By the metadata; none without a key.
    Listed,
    /// This bias.
    Always(f32),
    /// `bias`, in models with this many layers.
    InModelsOf {
        /// Number of layers.
        layers: u32,
        /// Bias.
        bias: f32,
    },
}

/// Kind of norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// Divided by the root mean square (Zhang and Sennrich 2019).
    Rms,
    /// Mean subtracted, then divided by the standard deviation (Ba et al. 2016); without weights if
    /// the file has none.
    Layer,
}

/// Rotary position embedding of queries and keys (Su et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rope {
    /// None: positions are added to the embeddings.
    None,
    /// Adjacent dimensions form a pair.
    Pairs,
    /// Dimension `i` of the first half is paired with `i` of the second.
    Halves,
}

/// Order of a layer's blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    /// Attention, then the feed-forward network with a norm of this name.
    Sequential(&'static str),
    /// Both in parallel, after the attention norm.
    Parallel,
    /// In parallel if the file has no norm of this name; otherwise sequential.
    ParallelWithout(&'static str),
    /// In parallel if the metadata says so, each with its own norm; otherwise sequential.
    Switched,
}

/// Assignment of a head's RoPE pairs to time, height and width. A text token has the same position
/// in all three, and 0 in a fourth dimension, which takes the remaining pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sections {
    /// One dimension.
    None,
    /// Sections in sequence.
    Consecutive,
    /// Interleaved, until a section is used up.
    Interleaved,
    /// Sections in sequence with RoPE by halves, if the metadata lists sections.
    Listed,
}

/// Routing of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// Function from scores to probabilities.
    pub gating: Setting<Gating>,
    /// True if the weights of the chosen experts are normalized to sum to 1.
    pub normalized: Setting<bool>,
    /// Values that rank the experts.
    pub ranking: Ranking,
    /// True if weights multiply the experts' inputs instead of their outputs.
    pub weighs_inputs: bool,
}

impl Router {
    /// Softmax over all experts, normalized over the chosen ones.
    pub(crate) const SOFTMAX: Router = Router {
        gating: Setting::Always(Gating::Softmax),
        normalized: Setting::Always(true),
        ranking: Ranking::Probabilities,
        weighs_inputs: false,
    };
    /// By the metadata; sigmoid without normalization by default.
    pub(crate) const LISTED: Router = Router {
        gating: Setting::Listed(Gating::Sigmoid),
        normalized: Setting::Listed(false),
        ..Router::SOFTMAX
    };
}

/// Values that rank experts in their choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranking {
    /// Their probabilities.
    Probabilities,
    /// Their scores.
    Scores,
    /// The sigmoid of their scores.
    Sigmoid,
}

/// A setting fixed by the architecture or read from the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Setting<T> {
    /// This value, whatever the metadata says.
    Always(T),
    /// The metadata's value; this one by default.
    Listed(T),
    /// The metadata's value; by default, one of two by model size.
    Sized {
        /// Numbers of layers.
        layers: &'static [usize],
        /// Vocabulary size.
        tokens: u64,
        /// For models with one of these numbers of layers and this vocabulary size.
        those: T,
        /// For all others.
        others: T,
    },
}

/// Function from router scores to probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid.
    Sigmoid,
    /// Softmax over the chosen experts.
    ChosenSoftmax,
    /// The square root of softplus.
    RootSoftplus,
}

/// Recurrent mixers, which carry a state from token to token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recurrence {
    /// Gated delta nets, in layers not assigned to attention by the metadata.
    DeltaNets(DeltaHeads),
    /// Mamba-2 state spaces.
    Mamba2(Mamba2Layers),
    /// Mamba's selective state spaces, in layers without KV heads.
    Mamba,
    /// Short convolutions, in layers without KV heads.
    ShortConvolutions,
    /// Lightning attention. If the metadata has no list, the last layer of each period of this
    /// length has softmax attention.
    Lightning(u32),
    /// RWKV states, in all layers.
    Wkv(Wkv),
}

/// Versions of RWKV's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wkv {
    /// RWKV 6 (Peng et al. 2024): decay per channel, and a bonus for the current token.
    Six,
    /// RWKV 6 without the bonus, as gated linear attention (Yang et al. 2024).
    SixGated,
    /// RWKV 7 (Peng et al. 2025): decay and a delta rule.
    Seven,
}

impl Recurrence {
    /// True if layers without KV heads have no attention.
    pub(crate) fn is_told_by_heads(self) -> bool {
        match self {
            Recurrence::DeltaNets(sharing) => sharing == DeltaHeads::Own,
            Recurrence::Lightning(_) | Recurrence::Wkv(_) => false,
            Recurrence::Mamba2(_) | Recurrence::Mamba | Recurrence::ShortConvolutions => true,
        }
    }

    /// True if all layers are recurrent.
    pub(crate) fn is_everywhere(self) -> bool {
        matches!(self, Recurrence::Wkv(_))
    }

    /// True if a model may have no attention at all.
    pub(crate) fn may_be_alone(self) -> bool {
        matches!(
            self,
            Recurrence::Mamba | Recurrence::Mamba2(Mamba2Layers::All) | Recurrence::Wkv(_)
        )
    }
}

/// Sharing of key heads among the value heads of a gated delta net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaHeads {
    /// Value head `v` reads key head `v % key_heads`.
    Tiled,
    /// Consecutive value heads share a key head. Strength and step come from one matrix.
    Grouped,
    /// No sharing: each value head has its own key head, and a decay per channel (Kimi Delta
    /// Attention, Kimi Team 2025).
    Own,
}

/// Layers with Mamba-2 state spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mamba2Layers {
    /// All; in parallel with attention in layers with KV heads.
    All,
    /// Layers without KV heads.
    Unattended,
    /// Layers without KV heads and without a feed-forward network.
    Alone,
    /// Layers without KV heads; keys, queries and steps are projections of the values after the
    /// convolution (PLaMo 2).
    Factored,
}

/// Activation of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// GELU, tanh approximation.
    Gelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2` (So et al. 2021).
    SquaredRelu,
    /// Sigmoid.
    Sigmoid,
    /// `x sigmoid(1.702 x)` (Hendrycks and Gimpel 2016).
    QuickGelu,
    /// `ln(1 + exp(x))`.
    Softplus,
    /// Hyperbolic tangent.
    Tanh,
    /// xIELU (Huang and Schlag 2024), with parameters from the metadata.
    Xielu(Xielu),
}

/// Limits of gate and up in a gated feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// After the activation the gate is at most this; up is clamped to plus and minus this.
    Behind(f32),
    /// Before the activation the gate is at most `limit`; up is clamped to plus and minus `limit`,
    /// then `offset` is added.
    InFront {
        /// Limit of both.
        limit: f32,
        /// Offset of up.
        offset: f32,
    },
}

/// The parameters of xIELU: `rise x^2 + slope x` above 0, `fall (exp(min(x, bound)) - 1 - x) +
/// slope x` below.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Xielu {
    /// Curvature above 0.
    pub rise: f32,
    /// Curvature below 0.
    pub fall: f32,
    /// Slope at 0.
    pub slope: f32,
    /// Upper bound of the exponential's argument.
    pub bound: f32,
}

impl Xielu {
    /// Placeholder until the metadata is read.
    pub(crate) const UNKNOWN: Xielu = Xielu {
        rise: 0.0,
        fall: 0.0,
        slope: 0.0,
        bound: 0.0,
    };
}

/// Layers with a sliding window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Window {
    /// None, whatever the metadata says.
    None,
    /// Layers listed in the metadata.
    Listed(Listed),
    /// Chunked attention: the text is cut into chunks of this many tokens, and tokens see only
    /// their own chunk. The last of every four layers has full attention; all have if the metadata
    /// says 0 tokens.
    Chunks(u32),
    /// The last layer of each period has full attention.
    Pattern {
        /// The period.
        layers: u32,
        /// Window of the others, if the metadata has none.
        tokens: Option<u32>,
        /// RoPE base of the others, if different.
        rope_base: Option<f32>,
    },
}

/// Layers with a window, as listed in the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Listed {
    /// Without a list in the metadata, one layer per period has full attention: the last, or the
    /// first with `first`.
    pub period: u32,
    /// True if the first layer of a period has full attention.
    pub first: bool,
    /// Window, if the metadata has none; no windows without either.
    pub tokens: Option<u32>,
    /// Window of models whose metadata has any, whatever its size.
    pub fixed: Option<u32>,
    /// True if windowed layers use the RoPE scaling of the full-attention layers.
    pub stretched: bool,
    /// RoPE base of windowed layers, if the metadata has none; otherwise that of all layers.
    pub rope_base: Option<f32>,
    /// If set, only models with this many layers have windows.
    pub layers: Option<u32>,
}

impl Listed {
    /// Windows in the first three of every four layers, without RoPE scaling.
    pub(crate) const THREE_OF_FOUR: Listed = Listed {
        period: 4,
        first: false,
        tokens: None,
        fixed: None,
        stretched: false,
        rope_base: None,
        layers: None,
    };
}

impl Decoder {
    /// True if layers have several kinds of mixers.
    pub(crate) fn has_several_mixers(&self) -> bool {
        self.recurrence.is_some()
    }

    /// Llama's decoder; the others are given by their differences.
    pub(crate) const LLAMA: Decoder = Decoder {
        predicts_tokens: true,
        sees_both_sides: false,
        norm: Norm::Rms,
        norm_by_epsilon: false,
        rope: Rope::Pairs,
        sections: Sections::None,
        layout: Layout::Sequential("ffn_norm"),
        activation: Activation::Silu,
        names_activation: false,
        limits_in_front: false,
        limit: None,
        gate: Activation::Sigmoid,
        scaled_embeddings: false,
        normalized_embeddings: false,
        router: Router::SOFTMAX,
        shared_scale: 1.0,
        dense: Dense::Instead,
        adjugates: false,
        routes_first: false,
        window: Window::None,
        unrotated: Unrotated::None,
        yarn: YarnKeys::None,
        half_rotated: false,
        unit_heads: UnitHeads::None,
        tempering: Tempering::Listed,
        alibi: Alibi::None,
        unit_values: false,
        keys_as_values: false,
        shared_kv: SharedKv::None,
        streams: Streams::One,
        sparse_gates: None,
        norms_rotated: false,
        post_norm_epsilon: None,
        post_norms: [&["post_attention_norm"], &["post_ffw_norm"]],
        stream_norms: [&[], &[]],
        scales: Scales::NONE,
        linear_layers: false,
        multiplied_logits: false,
        gated_queries: false,
        recurrence: None,
        normalized_residuals: false,
        drafts: false,
        output_norm: "output_norm",
        score_divisor: ScoreDivisor::Root,
        score_yarn: None,
        chooses_blocks: false,
        expands_latents: false,
        indexer: None,
        rotates_whole_heads: false,
        refused: None,
        needs: Needs::WEIGHTS,
    };
}
