//! What the forward pass of an architecture is made of, as data. What a file shows by its tensors
//! (biases, norms of heads, norms behind a block, experts, fused matrices) is not repeated here.

/// The decoder of an architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoder {
    /// How activations are normalized.
    pub norm: Norm,
    /// Whether the kind of epsilon in the metadata tells the kind of norm.
    pub norm_by_epsilon: bool,
    /// How positions enter queries and keys.
    pub rope: Rope,
    /// How the pairs of a head are shared out to the dimensions of pictures.
    pub sections: Sections,
    /// What stands between the matrices of the feed-forward network.
    pub activation: Activation,
    /// Whether the limits of activations that the metadata list stand in front of the activation.
    pub limits_in_front: bool,
    /// The limit of activations in every feed-forward network that the metadata give none.
    pub limit: Option<Limit>,
    /// What makes the factors of a gate of the heads' outputs.
    pub gate: Activation,
    /// How a layer's blocks follow each other.
    pub layout: Layout,
    /// Whether embeddings are multiplied by the square root of their length.
    pub scaled_embeddings: bool,
    /// Whether embeddings are normalized, without weights.
    pub normalized_embeddings: bool,
    /// How routers weigh experts.
    pub router: Router,
    /// What experts and shared ones make together is multiplied by this.
    pub shared_scale: f32,
    /// Which layers see only the last tokens.
    pub window: Window,
    /// Which layers do not rotate.
    pub unrotated: Unrotated,
    /// Whether the metadata say where YaRN passes from extrapolation to interpolation.
    pub yarn_betas: bool,
    /// Whether layers that see everything rotate half as much of a head as the metadata say.
    pub half_rotated: bool,
    /// Which queries and keys are divided by the root of their mean square, behind their rotation.
    pub unit_heads: UnitHeads,
    /// How queries grow with their position.
    pub tempering: Tempering,
    /// How distances are held against scores.
    pub alibi: Alibi,
    /// Whether norms of queries and keys stand behind the rotation.
    pub norms_rotated: bool,
    /// Added to the divisor of norms behind a block, if it is another than that of all norms.
    pub post_norm_epsilon: Option<f32>,
    /// Whether layers without heads of keys have one matrix in place of attention.
    pub linear_layers: bool,
    /// Whether the metadata's scale multiplies logits; else it divides them.
    pub multiplied_logits: bool,
    /// Whether the matrix of queries makes a gate for every number that a head puts out, behind the
    /// queries of the head.
    pub gated_queries: bool,
    /// What carries a state from token to token in some layers; None if nothing does.
    pub recurrence: Option<Recurrence>,
    /// Whether the block for a further token is attention and a feed-forward network, which read, at
    /// each position, the token and the normalized activations of the position before.
    pub drafts: bool,
    /// The name of the norm in front of the output matrix.
    pub output_norm: &'static str,
    /// Whether blocks add to what their mixers read, times the metadata's scale, in place of the
    /// stream.
    pub normalized_residuals: bool,
    /// What scores of attention are divided by.
    pub score_divisor: ScoreDivisor,
    /// How YaRN stretches scores of attention beside cosines and sines; None if it does not.
    pub score_yarn: Option<ScoreYarn>,
    /// Whether an indexer chooses the blocks of tokens that attention sees, all of them in contexts
    /// that are no longer than what it chooses.
    pub chooses_blocks: bool,
    /// How indexers choose the tokens that latent attention sees; None if it sees all.
    pub indexer: Option<IndexerKind>,
    /// Whether heads are rotated wholly, whatever the metadata says.
    pub rotates_whole_heads: bool,
    /// Why models cannot be run here yet, if they cannot.
    pub refused: Option<&'static str>,
    /// Which of its tensors a model may lack, and which it must have beside its weights.
    pub needs: Needs,
}

/// What llama.cpp does not load a model without. The weights that an architecture's recipes lead to
/// are needed unless they stand here. Names are those of a GGUF, without layer and ending.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needs {
    /// Weights that some models of the architecture lack.
    pub optional: &'static [&'static str],
    /// Biases that every one of them has.
    pub biases: &'static [&'static str],
    /// Whether the embeddings cannot serve as the output matrix.
    pub own_output: bool,
}

impl Needs {
    /// The weights alone.
    pub(crate) const WEIGHTS: Needs = Needs {
        optional: &[],
        biases: &[],
        own_output: false,
    };
    /// The weights, and an output matrix.
    pub(crate) const OWN_OUTPUT: Needs = Needs {
        own_output: true,
        ..Needs::WEIGHTS
    };
    /// Biases of norms and of matrices, but for those of queries, keys and values.
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
    /// Biases of all norms and matrices; queries, keys and values have one.
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

/// What scores of attention are divided by, if the metadata does not say it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScoreDivisor {
    /// The square root of the length of a head.
    Root,
    /// The same, in models of so many layers of the hidden size per head.
    RootOfShare(u32),
    /// The length of a head.
    Length,
}

/// What differs between families in the indexers of sparse attention (DeepSeek-AI 2025).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IndexerKind {
    /// How its queries and keys are rotated.
    pub rope: Rope,
    /// Added to the divisor of the norm of its keys.
    pub epsilon: f32,
}

/// How YaRN stretches scores of attention: by the square of `magnitude (1 + 0.1 part ln(factor))`, where
/// `part` is ten times the metadata's multiplier (DeepSeek-AI 2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreYarn {
    /// Whether the metadata's multiplier counts; else it is 0.
    pub is_listed: bool,
    /// Whether a `part` leaves cosines and sines as they are.
    pub is_balanced: bool,
}

/// Which layers do not rotate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unrotated {
    /// All rotate.
    None,
    /// Every n-th one.
    Every(u32),
    /// Those that see everything, if others do not.
    Unwindowed,
    /// Those that see everything behind the leading dense ones.
    UnwindowedBehindDense,
    /// Those that the metadata list; all rotate if they list none.
    Listed,
    /// Those that see everything, if others do not; else the last one.
    UnwindowedOrLast,
    /// All of them, unless the model has so many layers.
    Unless(u32),
    /// All of them, if the metadata denies that the rotation was trained.
    Untuned,
}

/// Which queries and keys are divided by the root of their mean square, behind their rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitHeads {
    /// None are.
    None,
    /// Those of layers that rotate, unless the model has so many experts.
    RotatedUnless(u32),
}

/// How queries grow with their position, so that attention stays sharp over long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tempering {
    /// As the metadata says.
    Listed,
    /// In layers that do not rotate: by so much (Llama 4).
    Unrotated {
        /// How fast they grow.
        strength: f32,
        /// Positions of one factor.
        period: u32,
    },
}

/// How distances are held against scores (ALiBi, Press et al. 2022): the bias of the steepest head
/// at a distance of one context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Alibi {
    /// Not at all.
    None,
    /// As the metadata says; not at all if it does not say it.
    Listed,
    /// By this.
    Always(f32),
    /// By `bias`, in models of so many layers.
    InModelsOf {
        /// The number of layers.
        layers: u32,
        /// The bias.
        bias: f32,
    },
}

/// How activations are normalized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// Divided by the root of the mean square (Zhang and Sennrich 2019).
    Rms,
    /// Mean taken off, then divided by the standard deviation (Ba et al. 2016); without weights if
    /// the file has none.
    Layer,
}

/// How positions enter queries and keys (Su et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rope {
    /// Not at all: positions are added to the embeddings.
    None,
    /// Numbers that follow each other are rotated together.
    Pairs,
    /// The first half of a head is rotated with the second.
    Halves,
}

/// How a layer's blocks follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    /// Attention, then the feed-forward network behind a norm of this name.
    Sequential(&'static str),
    /// Both side by side, behind the norm of attention.
    Parallel,
    /// Side by side if the file has no norm of this name, else one after the other.
    ParallelWithout(&'static str),
    /// Side by side if the metadata says so, each behind its norm; else one after the other.
    Switched,
}

/// How the pairs of a head are shared out to time, height and width. A token of text has the same
/// position in all three, and 0 in a fourth, which the pairs that are left over take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sections {
    /// There is one dimension.
    None,
    /// One section after the other.
    Consecutive,
    /// In turn, as long as a section lasts.
    Interleaved,
    /// One section after the other, in heads that are rotated by halves, if the metadata lists
    /// sections.
    Listed,
}

/// How routers weigh experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// How scores become probabilities.
    pub gating: Setting<Gating>,
    /// Whether the weights of the chosen experts are made to sum up to 1.
    pub normalized: Setting<bool>,
    /// Whether experts are chosen by scores, in place of probabilities.
    pub by_scores: bool,
    /// Whether weights multiply what experts read, in place of what they make.
    pub weighs_inputs: bool,
}

impl Router {
    /// Probabilities of all experts, those of the chosen ones made to sum up to 1.
    pub(crate) const SOFTMAX: Router = Router {
        gating: Setting::Always(Gating::Softmax),
        normalized: Setting::Always(true),
        by_scores: false,
        weighs_inputs: false,
    };
    /// As the metadata says; logistic functions if it does not say it.
    pub(crate) const LISTED: Router = Router {
        gating: Setting::Listed(Gating::Sigmoid),
        normalized: Setting::Listed(false),
        ..Router::SOFTMAX
    };
}

/// What an architecture or the metadata of a model decides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Setting<T> {
    /// This, whatever the metadata says.
    Always(T),
    /// What the metadata says; this if it does not say it.
    Listed(T),
    /// What the metadata says; if it does not say it, this or that by the size of the model.
    Sized {
        /// Numbers of layers.
        layers: &'static [usize],
        /// The number of tokens.
        tokens: u64,
        /// In models of one of these numbers of layers and of so many tokens.
        those: T,
        /// In all others.
        others: T,
    },
}

/// How a router's scores become probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Exponentials, as parts of the sum of all.
    Softmax,
    /// The logistic function of each.
    Sigmoid,
    /// Exponentials, as parts of the sum of those of the chosen experts.
    ChosenSoftmax,
    /// The square root of softplus of each.
    RootSoftplus,
}

/// What carries a state from token to token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recurrence {
    /// Gated delta nets, in layers that the metadata do not leave to attention.
    DeltaNets(DeltaHeads),
    /// State spaces of Mamba-2.
    Mamba2(Mamba2Layers),
    /// Selective state spaces, in layers without heads of keys.
    Mamba,
    /// Short convolutions, in layers without heads of keys.
    ShortConvolutions,
    /// Lightning attention. Of so many layers the last has softmax attention, if the metadata do not
    /// say which.
    Lightning(u32),
    /// RWKV's states, in all layers.
    Wkv(Wkv),
}

/// Kinds of RWKV's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wkv {
    /// RWKV 6 (Peng et al. 2024): states forget channel by channel, and a position counts more for
    /// itself.
    Six,
    /// The same without the latter, as gated linear attention has it (Yang et al. 2024).
    SixGated,
    /// RWKV 7 (Peng et al. 2025): states also take back what they had learned.
    Seven,
}

impl Recurrence {
    /// Whether layers without heads of keys have no attention.
    pub(crate) fn is_told_by_heads(self) -> bool {
        match self {
            Recurrence::DeltaNets(sharing) => sharing == DeltaHeads::Own,
            Recurrence::Lightning(_) | Recurrence::Wkv(_) => false,
            Recurrence::Mamba2(_) | Recurrence::Mamba | Recurrence::ShortConvolutions => true,
        }
    }

    /// Whether all layers are alike.
    pub(crate) fn is_everywhere(self) -> bool {
        matches!(self, Recurrence::Wkv(_))
    }

    /// Whether a model may have no attention at all.
    pub(crate) fn may_be_alone(self) -> bool {
        matches!(
            self,
            Recurrence::Mamba | Recurrence::Mamba2(Mamba2Layers::All) | Recurrence::Wkv(_)
        )
    }
}

/// Which heads of values share a head of keys in a gated delta net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaHeads {
    /// Heads of keys follow each other, again and again.
    Tiled,
    /// Heads of values that share one follow each other. Strength and step come from one matrix.
    Grouped,
    /// None do: each has its own, and every channel of it a decay of its own (Kimi Delta Attention,
    /// Kimi Team 2025).
    Own,
}

/// Which layers are state spaces of Mamba-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mamba2Layers {
    /// All of them, beside attention if they have heads of keys.
    All,
    /// Those without heads of keys.
    Unattended,
    /// Those without heads of keys and without a feed-forward network.
    Alone,
    /// Those without heads of keys; keys, queries and steps are made of the values behind the
    /// convolution (PLaMo 2).
    Factored,
}

/// What stands between the matrices of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// x times its logistic function.
    Silu,
    /// The Gaussian error linear unit in its tanh form.
    Gelu,
    /// The square of what is above 0 (So et al. 2021).
    SquaredRelu,
    /// The logistic function.
    Sigmoid,
    /// x times the logistic function of 1.702 x (Hendrycks and Gimpel 2016).
    QuickGelu,
    /// The logarithm of 1 plus the exponential.
    Softplus,
    /// The hyperbolic tangent.
    Tanh,
    /// xIELU (Huang and Schlag 2024), with the parameters of the metadata.
    Xielu(Xielu),
}

/// How far gate and up of a gated feed-forward network go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Behind its activation the gate is at most this, and up is clamped to plus and minus this.
    Behind(f32),
    /// In front of its activation the gate is at most `limit`; up is clamped to plus and minus
    /// `limit`, and then `offset` is added to it.
    InFront {
        /// The limit of both.
        limit: f32,
        /// Added to up.
        offset: f32,
    },
}

/// The parameters of xIELU: `rise x^2 + slope x` above 0, `fall (exp(min(x, bound)) - 1 - x) + slope
/// x` below.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Xielu {
    /// Curvature above 0.
    pub rise: f32,
    /// Curvature below 0.
    pub fall: f32,
    /// Slope at 0.
    pub slope: f32,
    /// The exponential's argument stays below this.
    pub bound: f32,
}

impl Xielu {
    /// Before the metadata are read.
    pub(crate) const UNKNOWN: Xielu = Xielu {
        rise: 0.0,
        fall: 0.0,
        slope: 0.0,
        bound: 0.0,
    };
}

/// Which layers see only the last tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Window {
    /// All layers see everything, whatever the metadata says.
    None,
    /// Those that the metadata list.
    Listed(Listed),
    /// Of every four layers the last sees everything, the others what belongs to their own part of a
    /// text, which is cut into parts of so many tokens; all see everything if the metadata say 0
    /// tokens.
    Chunks(u32),
    /// Of so many layers the last sees everything.
    Pattern {
        /// The period.
        layers: u32,
        /// Tokens that the others see, if the metadata does not say.
        tokens: Option<u32>,
        /// Base of the rotation in the others, if it is another.
        rope_base: Option<f32>,
    },
}

/// Layers with windows, as the metadata list them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Listed {
    /// If the metadata list none, one of so many sees everything: the last, unless it is the first.
    pub period: u32,
    /// Whether it is the first.
    pub first: bool,
    /// Tokens that the others see, if the metadata does not say; no windows if neither says it.
    pub tokens: Option<u32>,
    /// Whether their rotation is stretched as that of the layers that see everything.
    pub stretched: bool,
    /// Base of their rotation, if the metadata does not say; else that of all layers.
    pub rope_base: Option<f32>,
    /// Only models of so many layers have windows.
    pub layers: Option<u32>,
}

impl Listed {
    /// Of every four layers the first three; their rotation is not stretched.
    pub(crate) const THREE_OF_FOUR: Listed = Listed {
        period: 4,
        first: false,
        tokens: None,
        stretched: false,
        rope_base: None,
        layers: None,
    };
}

impl Decoder {
    /// Whether layers have mixers of several kinds.
    pub(crate) fn has_several_mixers(&self) -> bool {
        self.recurrence.is_some()
    }

    /// Llama's; the others are told by what differs.
    pub(crate) const LLAMA: Decoder = Decoder {
        norm: Norm::Rms,
        norm_by_epsilon: false,
        rope: Rope::Pairs,
        sections: Sections::None,
        layout: Layout::Sequential("ffn_norm"),
        activation: Activation::Silu,
        limits_in_front: false,
        limit: None,
        gate: Activation::Sigmoid,
        scaled_embeddings: false,
        normalized_embeddings: false,
        router: Router::SOFTMAX,
        shared_scale: 1.0,
        window: Window::None,
        unrotated: Unrotated::None,
        yarn_betas: false,
        half_rotated: false,
        unit_heads: UnitHeads::None,
        tempering: Tempering::Listed,
        alibi: Alibi::None,
        norms_rotated: false,
        post_norm_epsilon: None,
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
        indexer: None,
        rotates_whole_heads: false,
        refused: None,
        needs: Needs::WEIGHTS,
    };
}
