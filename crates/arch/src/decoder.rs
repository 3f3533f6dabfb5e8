//! What the forward pass of an architecture is made of, as data. What a file shows by its tensors
//! (biases, norms of heads, norms behind a block, experts, fused matrices) is not repeated here.

/// The decoder of an architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoder {
    /// How activations are normalized.
    pub norm: Norm,
    /// How positions enter queries and keys.
    pub rope: Rope,
    /// How the pairs of a head are shared out to the dimensions of pictures.
    pub sections: Sections,
    /// What stands between the matrices of the feed-forward network.
    pub activation: Activation,
    /// How a layer's blocks follow each other.
    pub layout: Layout,
    /// Whether embeddings are multiplied by the square root of their length.
    pub scaled_embeddings: bool,
    /// Whether the weights of the chosen experts are made to sum up to 1.
    pub normalized_experts: bool,
    /// Which layers see only the last tokens.
    pub window: Window,
    /// Every n-th layer does not rotate; 0 for none.
    pub unrotated_every: u32,
    /// Whether the metadata's scale multiplies logits; else it divides them.
    pub multiplied_logits: bool,
    /// Whether the matrix of queries makes a gate for every number that a head puts out, behind the
    /// queries of the head.
    pub gated_queries: bool,
    /// Whether the layers that the metadata do not leave to attention are gated delta nets.
    pub delta_nets: bool,
    /// Models of so many layers scale scores by the hidden size per head instead of the length of a
    /// head.
    pub wide_heads: Option<u32>,
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
}

/// Which layers see only the last tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Window {
    /// All layers see everything, whatever the metadata says.
    None,
    /// Those that the metadata list, of every four the first three if it lists none; their rotation is
    /// not stretched. None if the metadata has no window.
    Listed,
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

impl Decoder {
    /// Llama's; the others are told by what differs.
    pub(crate) const LLAMA: Decoder = Decoder {
        norm: Norm::Rms,
        rope: Rope::Pairs,
        sections: Sections::None,
        layout: Layout::Sequential("ffn_norm"),
        activation: Activation::Silu,
        scaled_embeddings: false,
        normalized_experts: true,
        window: Window::None,
        unrotated_every: 0,
        multiplied_logits: false,
        gated_queries: false,
        delta_nets: false,
        wide_heads: None,
    };
}
