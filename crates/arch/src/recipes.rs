//! Recipes from a checkpoint's tensors to a GGUF's: names, sizes and operations, as rows of a
//! table.
//!
//! A recipe maps one or more tensors to none, one or more:
//!
//! ```text
//! rename        q_norm                     attn_q_norm
//! with          q_proj                     attn_q        Interleave(QueryHeads)
//! one to many   qkv_proj                   attn_q        Split(0 of [Queries, Keys, Keys])
//!                                          attn_k        Split(1 of ...)
//! many to one   experts.{}.up_proj         ffn_up_exps   Stack(Experts)
//! none          rotary_emb.inv_freq
//! ```
//!
//! Operations name dimensions and sizes, never the bytes of one tensor. The same row thus also
//! converts a low-rank pair (LoRA): an operation on rows applies to the rows of B, an operation on
//! columns to the columns of A.

use super::config::{Config, Result, TIED};
use quantier_gguf::types::GgmlType;

/// A row of the table.
///
/// In names, `{}` is a number, in `to` the layer's, and `*` any text. In input names the first
/// number is the layer's; the second counts stacked tensors, such as experts, or the blocks of a
/// stage, where `to` has it too. An input name with neither `.weight` nor `.bias` covers both, and the suffix is carried over to outputs without
/// one.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    from: Few<Input>,
    to: Few<Output>,
    when: When,
    /// The part of the model with these tensors, if they are left out and the user should know.
    pub left_out: Option<&'static str>,
    /// The key set from a tensor's numbers.
    pub key: Option<ToKey>,
    /// True if a conversion rejects outputs with non-finite numbers.
    pub is_finite: bool,
    /// Names of earlier tensors; the input is left out if one of them has the same weights.
    pub unless_equal: &'static [&'static str],
    /// The field of the config set from a tensor.
    pub field: Option<ToField>,
    /// Place of the outputs in the file.
    pub place: Place,
    /// Suffixes that input names without one cover.
    endings: &'static [&'static str],
}

/// Place of a tensor in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the checkpoint's order.
    InOrder,
    /// Before repacked experts, which come before all other tensors.
    BeforeExperts,
    /// Between repacked experts and all other tensors.
    BehindExperts,
    /// After all other tensors.
    Last,
}

/// A tensor that becomes a field of the config, which parameters and sizes can use.
#[derive(Clone, Copy, Debug)]
pub struct ToField {
    /// Name of the field.
    pub name: &'static str,
    /// The value.
    pub value: FieldValue,
}

/// Value of a field from a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValue {
    /// The list of its whole numbers, in 64 bits.
    Integers,
    /// The length of its rows.
    RowLength,
    /// The number of its rows.
    Rows,
    /// The numbers of rows of all tensors of a stack.
    AllRows,
}

/// A tensor that becomes metadata: one number, or, for tensors of layers, a list with one per
/// layer.
#[derive(Clone, Copy, Debug)]
pub struct ToKey {
    /// The key; `{}` is the architecture.
    pub key: &'static str,
    /// The value, from the tensor's numbers.
    pub value: fn(&Config, &[f32]) -> Result<f32>,
}

/// A tensor of the checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Its name.
    pub name: &'static str,
    /// The weight's dimensions, outermost first, if known. A bias has the first of them.
    pub dims: &'static [Size],
}

/// A tensor of the GGUF.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Its name.
    pub name: &'static str,
    /// Indices of the inputs; [`Op::Concat`] joins several.
    pub inputs: &'static [usize],
    /// Operations, in order.
    pub ops: &'static [Op],
}

/// One operation from a checkpoint's tensors to a GGUF's. Dimensions are counted from the
/// outermost.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// One of the consecutive parts of a dimension. One size may be [`Size::Any`]: the rest.
    Split {
        /// The dimension.
        axis: usize,
        /// The sizes of all parts.
        sizes: &'static [Size],
        /// Index of the part.
        part: usize,
    },
    /// At most this many leading rows.
    First(Size),
    /// At least this many rows: zeros behind the others.
    Pad(Size),
    /// The rows of these tokens, in this order.
    Rows(&'static [&'static str]),
    /// Interleaves the two halves of each head's rows, as llama.cpp's RoPE expects; the number of
    /// heads is given.
    Interleave(Size),
    /// As [`Op::Interleave`], with the layer's number of heads.
    InterleaveBy(fn(&Config, u32) -> Result<u64>),
    /// The inverse for the rotated rows at the start of each head: even rows, then odd ones.
    Deinterleave {
        /// The number of heads.
        heads: Size,
        /// Number of rotated rows per head.
        rotated: fn(&Config) -> Result<u64>,
    },
    /// Grouped blocks of a dimension (a0 a1 b0 b1 c0 c1) are tiled (a0 b0 c0 a1 b1 c1).
    Tile {
        /// The dimension.
        axis: usize,
        /// The number of groups; [`Size::Any`] if the members give it.
        groups: Size,
        /// The number of blocks in a group.
        members: Size,
    },
    /// As [`Op::Tile`] on rows, after the first ones, which stay.
    TileBehind {
        /// The number of rows in place.
        first: Size,
        /// The number of groups.
        groups: Size,
        /// The number of blocks in a group.
        members: Size,
    },
    /// Reorders the consecutive parts of each head's rows by these indices.
    HeadOrder {
        /// The number of heads.
        heads: Size,
        /// The lengths of a head's parts.
        lengths: &'static [u64],
        /// The parts in their new order.
        order: &'static [usize],
    },
    /// Each head of the leading rows is a sequence of fours of rows; their first pairs come before
    /// their second pairs. The other rows stay.
    PairsApart {
        /// The number of leading rows.
        rows: Size,
        /// The number of their heads.
        heads: Size,
    },
    /// Groups of rows, each with parts of these sizes (q0 k0 v0 q1 k1 v1), reordered by part (q0 q1
    /// k0 k1 v0 v1). One size may be [`Size::Any`].
    Ungroup {
        /// The number of groups.
        groups: Size,
        /// The sizes of a group's parts.
        sizes: &'static [Size],
    },
    /// Reorders the rows in equal parts by these indices.
    Order(&'static [usize]),
    /// Swaps the last two dimensions.
    Transpose,
    /// Changes the dimensions of the same elements. One size may be [`Size::Any`].
    Reshape(&'static [Size]),
    /// Removes a dimension of size 1.
    Squeeze(usize),
    /// Stacks this many tensors, numbered by the second number of their names, along a new
    /// outermost dimension.
    Stack(Size),
    /// As [`Op::Stack`], with the layer's number of tensors.
    StackBy(fn(&Config, u32) -> Result<u64>),
    /// Appends this many tensors, numbered by the second number of their names, to each other: their
    /// rows become those of one tensor.
    Append(Size),
    /// Concatenates the inputs along this dimension.
    Concat(usize),
    /// Multiplies two small inputs number by number, in one dimension. The only operation of an
    /// output.
    Multiply,
    /// Adds the two halves of every row. The first operation of an output; the others keep the order
    /// of the numbers.
    AddHalves,
    /// Sums of vectors, divided by their counts. The inputs are sums and counts; the only operation of an
    /// output, but for a stack of all.
    Averages,
    /// exp(x): the frequency of an activation by sines. The only operation of an output.
    SnakeFrequency,
    /// 1 / (exp(x) + 1e-9): the factor of an activation by sines. The only operation of an output.
    SnakeFactor,
    /// A square grid of vectors, one after the other, as one of this side: interpolated bilinearly
    /// between the corners, which stay. The only operation of an output.
    Resample(Size),
    /// A batch norm as one factor or one summand per channel. The inputs are its weight, bias, mean
    /// and variance; the only operation of an output.
    BatchNorm(BatchNorm),
    /// The tokens of a draft's target that its rows stand for, from the distances to the rows' indices, in 64
    /// bits. The only operation of an output.
    TargetTokens,
    /// Adds 1 to every weight.
    AddOne,
    /// Adds this to every weight.
    AddNumber(f64),
    /// Widens weights: further operations are in f32, and not rounded to the checkpoint's type.
    Widen,
    /// Replaces every weight x by exp(x).
    Exp,
    /// Replaces every weight x by -exp(x).
    NegExp,
    /// Replaces every weight x by ln(1 + exp(x)).
    Softplus,
    /// Rounds every weight to 0 or plus or minus the mean magnitude of the whole checkpoint tensor
    /// (BitNet b1.58, Ma et al. 2024).
    Ternary,
    /// Subtracts the mean of the whole checkpoint tensor.
    Centre,
    /// A tensor missing in the checkpoint: one dimension of this size, filled with a constant from
    /// the config. The only operation of an output without inputs.
    Fill {
        /// The number of weights.
        len: Size,
        /// The constant.
        value: fn(&Config) -> Result<f64>,
    },
    /// Multiplies every weight by a factor from the config.
    Scale(fn(&Config) -> Result<f64>),
    /// As [`Op::Scale`], with a factor per layer.
    ScaleBy(fn(&Config, u32) -> Result<f64>),
    /// Multiplies each of consecutive parts of the rows by its own factor from the config. One size
    /// may be [`Size::Any`].
    ScaleParts {
        /// The sizes of all parts.
        sizes: &'static [Size],
        /// The factor of a part, by index.
        factor: fn(&Config, usize) -> Result<f64>,
    },
    /// A fixed type, independent of the file type.
    Cast(GgmlType),
    /// The type of the file type, whatever the name.
    CastByFile,
    /// F16 in files of F16, else F32: for convolutions of images.
    CastPlain,
    /// The type of the checkpoint: BF16 and F32 stay, FP8 becomes Q8_0. Other types are given by
    /// name and file type.
    KeepType,
}

/// The two results of [`Op::BatchNorm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchNorm {
    /// The factor.
    Weight,
    /// The summand.
    Bias,
}

impl Op {
    /// One of the consecutive parts of a dimension.
    pub(crate) const fn part(axis: usize, sizes: &'static [Size], part: usize) -> Op {
        Op::Split { axis, sizes, part }
    }
}

/// A size given by the config.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// Any size.
    Any,
    /// The hidden size.
    Hidden,
    /// The width of the feed-forward network.
    FeedForward,
    /// The width of one expert.
    Expert,
    /// The number of experts.
    Experts,
    /// The rows of all query heads.
    Queries,
    /// The rows of all key heads.
    Keys,
    /// The length of a head.
    Head,
    /// The number of query heads.
    QueryHeads,
    /// The number of key heads.
    KeyHeads,
    /// The number of tokens in the tokenizer's files.
    Vocabulary,
    /// This number.
    Number(u64),
    /// The field under the first of these names in the config.
    Field(&'static [&'static str]),
    /// A function of the config.
    Computed(fn(&Config) -> Result<u64>),
    /// The product of these sizes.
    Product(&'static [Size]),
    /// The quotient of two sizes, without remainder.
    Quotient(&'static Size, &'static Size),
}

/// Condition of a recipe; if false, later recipes are tried.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Always.
    Always,
    /// If the config has this field, neither null nor false.
    Set(&'static str),
    /// If the config lacks this field, or it is null or false.
    Unset(&'static str),
    /// If the config has this number, not 0, or this list, not empty.
    Counted(&'static str),
    /// If RoPE has sections for images.
    Sections,
    /// For rerankers with tied or untied embeddings.
    Reranker {
        /// True for tied embeddings.
        tied: bool,
    },
    /// If this is true of the config.
    Holds(fn(&Config) -> bool),
    /// If the model has at least this many layers.
    Deep(u32),
    /// In layers below this number; in all if the config does not have it.
    LayersBefore(Size),
    /// In layers from this number on; in none if the config does not have it.
    LayersFrom(Size),
    /// In layers for which this is true.
    Layers(fn(&Config, u32) -> bool),
}

/// One item, or several.
#[derive(Clone, Copy, Debug)]
enum Few<T: 'static> {
    One(T),
    Several(&'static [T]),
}

impl<T> Few<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Few::One(item) => std::slice::from_ref(item),
            Few::Several(items) => items,
        }
    }
}

/// The suffixes covered by a name without one.
const ENDINGS: [&str; 2] = [".weight", ".bias"];

/// Suffixes of the bounds that some encoders clip a matrix's inputs and outputs to.
const BOUNDS: [&str; 4] = [".input_max", ".input_min", ".output_max", ".output_min"];

/// A match of a tensor's name with a recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Index of the recipe's input.
    pub input: usize,
    /// The layer, for recipes of layers.
    pub layer: Option<u32>,
    /// The index in the stack, for stacked tensors.
    pub index: Option<u32>,
    /// The suffix carried over.
    pub ending: &'static str,
}

impl Input {
    /// A tensor of this name with these dimensions.
    pub(crate) const fn new(name: &'static str, dims: &'static [Size]) -> Input {
        Input { name, dims }
    }

    /// True if the name covers stacked tensors, or the blocks of stages.
    pub fn is_stacked(&self) -> bool {
        self.name.matches("{}").count() > 1
    }
}

impl Output {
    /// A tensor from the first input.
    pub(crate) const fn new(name: &'static str, ops: &'static [Op]) -> Output {
        Output::of(&[0], name, ops)
    }

    /// A tensor from these inputs.
    pub(crate) const fn of(
        inputs: &'static [usize],
        name: &'static str,
        ops: &'static [Op],
    ) -> Output {
        Output { name, inputs, ops }
    }

    /// The output's name for a matching tensor.
    pub fn name(&self, matched: &Match) -> String {
        let numbers = [matched.layer, matched.index].into_iter().flatten();
        let name = numbers.fold(self.name.to_owned(), |name, number| {
            name.replacen("{}", &number.to_string(), 1)
        });
        match ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            true => name,
            false => name + matched.ending,
        }
    }
}

impl Recipe {
    /// Renames a tensor.
    pub(crate) const fn rename(
        from: &'static str,
        to: &'static str,
        dims: &'static [Size],
    ) -> Recipe {
        Recipe::with(from, to, dims, &[])
    }

    /// Renames and changes a tensor.
    pub(crate) const fn with(
        from: &'static str,
        to: &'static str,
        dims: &'static [Size],
        ops: &'static [Op],
    ) -> Recipe {
        Recipe {
            from: Few::One(Input::new(from, dims)),
            to: Few::One(Output::new(to, ops)),
            when: When::Always,
            left_out: None,
            key: None,
            is_finite: false,
            unless_equal: &[],
            field: None,
            place: Place::InOrder,
            endings: &ENDINGS,
        }
    }

    /// Renames the bounds of a matrix's inputs and outputs: single numbers.
    pub(crate) const fn bounds(from: &'static str, to: &'static str) -> Recipe {
        Recipe {
            endings: &BOUNDS,
            ..Recipe::with(from, to, &[], &[Op::Reshape(&[Size::Any])])
        }
    }

    /// Converts several tensors to others, in this order, once all of them are available.
    pub(crate) const fn new(from: &'static [Input], to: &'static [Output]) -> Recipe {
        Recipe {
            from: Few::Several(from),
            to: Few::Several(to),
            when: When::Always,
            left_out: None,
            key: None,
            is_finite: false,
            unless_equal: &[],
            field: None,
            place: Place::InOrder,
            endings: &ENDINGS,
        }
    }

    /// Drops a tensor redundant with the config.
    pub(crate) const fn skip(from: &'static str) -> Recipe {
        Recipe {
            from: Few::One(Input::new(from, &[])),
            to: Few::Several(&[]),
            when: When::Always,
            left_out: None,
            key: None,
            is_finite: false,
            unless_equal: &[],
            field: None,
            place: Place::InOrder,
            endings: &ENDINGS,
        }
    }

    /// Turns a tensor's numbers into the value of a key.
    pub(crate) const fn to_key(
        from: &'static str,
        key: &'static str,
        value: fn(&Config, &[f32]) -> Result<f32>,
    ) -> Recipe {
        Recipe {
            key: Some(ToKey { key, value }),
            ..Recipe::skip(from)
        }
    }

    /// Turns a tensor's whole numbers into a field of the config.
    pub(crate) const fn to_field(from: &'static str, name: &'static str) -> Recipe {
        Recipe {
            field: Some(ToField {
                name,
                value: FieldValue::Integers,
            }),
            ..Recipe::skip(from)
        }
    }

    /// Sets a field of the config to the length of a row.
    pub(crate) const fn row_length_to(self, name: &'static str) -> Recipe {
        Recipe {
            field: Some(ToField {
                name,
                value: FieldValue::RowLength,
            }),
            ..self
        }
    }

    /// Sets a field of the config to the number of rows.
    pub(crate) const fn rows_to(self, name: &'static str) -> Recipe {
        Recipe {
            field: Some(ToField {
                name,
                value: FieldValue::Rows,
            }),
            ..self
        }
    }

    /// Sets a field of the config to the list of the numbers of rows of all stacked tensors.
    pub(crate) const fn all_rows_to(self, name: &'static str) -> Recipe {
        Recipe {
            field: Some(ToField {
                name,
                value: FieldValue::AllRows,
            }),
            ..self
        }
    }

    /// Moves the outputs in the file.
    pub(crate) const fn at(self, place: Place) -> Recipe {
        Recipe { place, ..self }
    }

    /// Drops a tensor of an unsupported part of the model; the user sees the name of the part.
    pub const fn leave_out(from: &'static str, part: &'static str) -> Recipe {
        Recipe {
            left_out: Some(part),
            ..Recipe::skip(from)
        }
    }

    /// Drops the tensor if an earlier one with one of these names has the same weights.
    pub(crate) const fn unless_equal(self, names: &'static [&'static str]) -> Recipe {
        Recipe {
            unless_equal: names,
            ..self
        }
    }

    /// Adds a condition.
    pub const fn when(self, when: When) -> Recipe {
        Recipe { when, ..self }
    }

    /// Requires finite numbers: for small tensors such as decays, which make all activations NaN if
    /// one is not finite.
    pub(crate) const fn finite(self) -> Recipe {
        Recipe {
            is_finite: true,
            ..self
        }
    }

    /// The checkpoint's tensors.
    pub fn inputs(&self) -> &[Input] {
        self.from.as_slice()
    }

    /// The GGUF's tensors; none if the inputs are dropped.
    pub fn outputs(&self) -> &[Output] {
        self.to.as_slice()
    }

    /// True if the recipe applies to all models.
    pub(crate) fn is_unconditional(&self) -> bool {
        matches!(self.when, When::Always)
    }

    /// True if the recipe applies to this layer, or outside of layers. Without a config, only
    /// unconditional recipes apply.
    pub(crate) fn applies(&self, layer: Option<u32>, config: Option<&Config>) -> bool {
        let matched = Match {
            input: 0,
            layer,
            index: None,
            ending: "",
        };
        match config {
            Some(config) => self.when.holds(&matched, config),
            None => matches!(self.when, When::Always),
        }
    }

    /// True if the recipe stacks tensors.
    pub fn is_stack(&self) -> bool {
        let mut ops = self.outputs().iter().flat_map(|output| output.ops);
        ops.any(|op| matches!(op, Op::Stack(_) | Op::StackBy(_) | Op::Append(_)))
    }

    /// The number of tensors per stacked input of a layer; 1 without stacks.
    ///
    /// # Errors
    /// If the config lacks the number.
    pub fn stack(&self, config: &Config, layer: Option<u32>) -> Result<u64> {
        let mut ops = self.outputs().iter().flat_map(|output| output.ops);
        let stack = ops.find_map(|op| match op {
            Op::Stack(size) | Op::Append(size) => Some(size.required(config)),
            Op::StackBy(size) => Some(size(config, layer.unwrap_or(0))),
            _ => None,
        });
        stack.unwrap_or(Ok(1))
    }

    /// The match of a name, if the recipe applies.
    pub(crate) fn matches(&self, name: &str, config: &Config) -> Option<Match> {
        let mut inputs = self.inputs().iter().enumerate();
        let matched = inputs.find_map(|(input, tensor)| {
            let (base, ending) = match ENDINGS.iter().any(|ending| tensor.name.ends_with(ending)) {
                true => (name, ""),
                false => self
                    .endings
                    .iter()
                    .find_map(|ending| Some((name.strip_suffix(ending)?, *ending)))
                    .unwrap_or((name, "")),
            };
            let numbers = numbers(tensor.name, base)?;
            Some(Match {
                input,
                layer: numbers.first().copied(),
                index: numbers.get(1).copied(),
                ending,
            })
        })?;
        self.when.holds(&matched, config).then_some(matched)
    }
}

impl ToKey {
    /// The key in a model of this architecture.
    pub fn name(&self, architecture: &str) -> String {
        self.key.replace("{}", architecture)
    }
}

impl When {
    fn holds(self, matched: &Match, config: &Config) -> bool {
        let is_set = |field| config.get(field).is_some_and(|value| *value != false);
        let before = |size: Size| match (matched.layer, size.of(config)) {
            (Some(layer), Ok(Some(size))) => u64::from(layer) < size,
            _ => true,
        };
        match self {
            When::Always => true,
            When::Set(field) => is_set(field),
            When::Unset(field) => !is_set(field),
            When::Counted(field) => {
                let is_none =
                    |n: &serde_json::Value| *n == 0 || n.as_array().is_some_and(Vec::is_empty);
                is_set(field) && !config.get(field).is_some_and(is_none)
            }
            When::Sections => config.rope().contains_key("mrope_section"),
            When::Reranker { tied } => config.is_reranker() && is_set(TIED) == tied,
            When::Holds(holds) => holds(config),
            When::Deep(least) => config.layers().is_ok_and(|layers| layers >= least),
            When::LayersBefore(size) => before(size),
            When::LayersFrom(size) => !before(size),
            When::Layers(holds) => matched.layer.is_some_and(|layer| holds(config, layer)),
        }
    }
}

/// The numbers in a name in place of a pattern's `{}`; `None` without a match.
fn numbers(pattern: &str, name: &str) -> Option<Vec<u32>> {
    let literal = pattern.find(['{', '*']).unwrap_or(pattern.len());
    let rest = name.strip_prefix(&pattern[..literal])?;
    let pattern = &pattern[literal..];
    if let Some(pattern) = pattern.strip_prefix('*') {
        let mut ends = rest.char_indices().map(|(i, _)| i).chain([rest.len()]);
        return ends.find_map(|end| numbers(pattern, &rest[end..]));
    }
    let Some(pattern) = pattern.strip_prefix("{}") else {
        return rest.is_empty().then(Vec::new);
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    // Another spelling of the number would give two tensors the same name.
    if digits == 0 || (digits > 1 && rest.starts_with('0')) {
        return None;
    }
    let number = rest[..digits].parse().ok()?;
    let mut all = vec![number];
    all.extend(numbers(pattern, &rest[digits..])?);
    Some(all)
}

impl Size {
    /// The size by the config; `None` if the config does not have it.
    ///
    /// # Errors
    /// If a field has the wrong kind, or the size does not fit into 64 bits.
    pub fn of(self, config: &Config) -> Result<Option<u64>> {
        match self {
            Size::Any | Size::Vocabulary => Ok(None),
            Size::Number(number) => Ok(Some(number)),
            Size::Computed(size) => size(config).map(Some),
            Size::Head => Ok(Some(config.head_len()?.into())),
            Size::Queries => Size::Product(&[Size::QueryHeads, Size::Head]).of(config),
            Size::Keys => Size::Product(&[Size::KeyHeads, Size::Head]).of(config),
            Size::Product(sizes) => {
                let mut product = 1u64;
                for size in sizes {
                    let Some(size) = size.of(config)? else {
                        return Ok(None);
                    };
                    product = product
                        .checked_mul(size)
                        .ok_or_else(|| format!("the product {sizes:?} has more than 64 bits"))?;
                }
                Ok(Some(product))
            }
            Size::Quotient(whole, part) => {
                let (Some(of), Some(by)) = (whole.of(config)?, part.of(config)?) else {
                    return Ok(None);
                };
                match of.checked_rem(by) {
                    Some(0) => Ok(Some(of / by)),
                    _ => Err(format!(
                        "{of} ({whole:?}) is no multiple of {by} ({part:?})"
                    )),
                }
            }
            _ => Ok(config.optional_u32(self.fields(config))?.map(u64::from)),
        }
    }

    /// The size by the config, which must have it.
    ///
    /// # Errors
    /// As [`Size::of`], and if a field is missing.
    pub fn required(self, config: &Config) -> Result<u64> {
        match self.of(config)? {
            Some(size) => Ok(size),
            None => config.u32(self.missing(config)).map(u64::from),
        }
    }

    /// The names of the missing field of an unknown size.
    fn missing(self, config: &Config) -> &'static [&'static str] {
        match self {
            Size::Queries => Size::QueryHeads.fields(config),
            Size::Keys => Size::KeyHeads.fields(config),
            Size::Product(sizes) => sizes
                .iter()
                .find(|size| size.of(config) == Ok(None))
                .map_or(&[], |size| size.missing(config)),
            Size::Quotient(whole, part) => match whole.of(config) {
                Ok(None) => whole.missing(config),
                _ => part.missing(config),
            },
            _ => self.fields(config),
        }
    }

    /// The possible names of the size's field.
    fn fields(self, config: &Config) -> &'static [&'static str] {
        /// The names from the first non-null field on.
        fn set(names: &'static [&'static str], config: &Config) -> &'static [&'static str] {
            let first = names.iter().position(|name| config.get(name).is_some());
            first.map_or(names, |first| &names[first..])
        }
        match self {
            Size::Hidden => &["hidden_size", "n_embd"],
            Size::FeedForward => &["intermediate_size"],
            Size::Expert => &["moe_intermediate_size", "intermediate_size"],
            Size::Experts => &[
                "num_local_experts",
                "num_experts",
                "n_routed_experts",
                "moe_num_experts",
            ],
            Size::QueryHeads => set(&["n_heads", "num_attention_heads", "n_head"], config),
            Size::KeyHeads => set(
                &["n_kv_heads", "num_key_value_heads", "num_attention_heads"],
                config,
            ),
            Size::Field(names) => names,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(fields: serde_json::Value) -> Config {
        Config::new(fields.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn names_give_layer_and_stack_index() {
        let recipe = Recipe::rename("m.{}.e.{}.w", "blk.{}.w_exps", &[]);
        let none = config(json!({}));
        let matched = recipe.matches("m.12.e.3.w.bias", &none).unwrap();
        assert_eq!((matched.layer, matched.index), (Some(12), Some(3)));
        assert_eq!(recipe.outputs()[0].name(&matched), "blk.12.w_exps.bias");
        for other in [
            "m.12.e.3.w.scale",
            "m.x.e.3.w.bias",
            "m.12.e.w.bias",
            "m.012.e.3.w",
            "m.99999999999.e.1.w",
        ] {
            assert_eq!(recipe.matches(other, &none), None, "{other}");
        }
    }

    #[test]
    fn a_name_with_a_suffix_matches_only_that_suffix() {
        let recipe = Recipe::rename("h.{}.c.weight", "blk.{}.c.weight", &[]);
        let none = config(json!({}));
        let matched = recipe.matches("h.0.c.weight", &none).unwrap();
        assert_eq!(recipe.outputs()[0].name(&matched), "blk.0.c.weight");
        assert_eq!(recipe.matches("h.0.c.bias", &none), None);
    }

    #[test]
    fn a_star_matches_any_text() {
        let none = config(json!({}));
        let matches = |pattern, name| Recipe::skip(pattern).matches(name, &none).is_some();
        assert!(matches("visual.*", "visual.blocks.0.attn.bias"));
        assert!(matches("*vision*", "model.vision_tower.a"));
        assert!(matches("*.inv_freq", "a.b.inv_freq"));
        assert!(!matches("visual.*", "model.visual.a") && !matches("*vision*", "model.audio.a"));
    }

    #[test]
    fn recipe_inputs_are_distinguished() {
        const INPUTS: &[Input] = &[Input::new("l.{}.gate", &[]), Input::new("l.{}.up", &[])];
        const OUTPUTS: &[Output] = &[Output::of(&[0, 1], "blk.{}.ffn_up", &[Op::Concat(0)])];
        let recipe = Recipe::new(INPUTS, OUTPUTS);
        let matched = recipe.matches("l.7.up.weight", &config(json!({}))).unwrap();
        assert_eq!((matched.input, matched.layer), (1, Some(7)));
        assert_eq!(OUTPUTS[0].name(&matched), "blk.7.ffn_up.weight");
    }

    #[test]
    fn conditions_on_fields_and_layers() {
        let config = config(
            json!({ "first_k_dense": 2, "fused": true, "tied": false, "no": null,
                "num_hidden_layers": 3 }),
        );
        const DENSE: Size = Size::Field(&["first_k_dense"]);
        let layers = |when| -> Vec<u32> {
            let recipe = Recipe::skip("l.{}").when(when);
            let applies = |layer: &u32| recipe.matches(&format!("l.{layer}"), &config).is_some();
            (0..4).filter(applies).collect()
        };
        assert_eq!(layers(When::LayersBefore(DENSE)), [0, 1]);
        assert_eq!(layers(When::LayersFrom(DENSE)), [2, 3]);
        assert_eq!(
            layers(When::LayersBefore(Size::Field(&["no"]))),
            [0, 1, 2, 3]
        );
        assert!(layers(When::LayersFrom(Size::Field(&["no"]))).is_empty());
        assert!(layers(When::Deep(4)).is_empty() && layers(When::Deep(3)).len() == 4);
        const EVEN: fn(&Config, u32) -> bool = |_, layer| layer.is_multiple_of(2);
        assert_eq!(layers(When::Layers(EVEN)), [0, 2]);
        for (field, is_set) in [
            ("fused", true),
            ("tied", false),
            ("no", false),
            ("x", false),
        ] {
            assert_eq!(layers(When::Set(field)).is_empty(), !is_set, "{field}");
            assert_eq!(layers(When::Unset(field)).is_empty(), is_set, "{field}");
        }
    }

    #[test]
    fn sizes_from_the_config() {
        let config = config(json!({
            "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": null, "n_kv_heads": 2,
            "intermediate_size": "wide"
        }));
        assert_eq!(Size::Queries.of(&config), Ok(Some(96)));
        assert_eq!(Size::Keys.of(&config), Ok(Some(32)));
        const TWICE: Size = Size::Product(&[Size::Number(2), Size::Hidden]);
        assert_eq!(TWICE.of(&config), Ok(Some(192)));
        assert_eq!(Size::Experts.of(&config), Ok(None));
        let missing = Size::Experts.required(&config).unwrap_err();
        assert!(
            missing.contains("'num_local_experts', 'num_experts', 'n_routed_experts'"),
            "{missing}"
        );
        assert!(
            Size::FeedForward
                .of(&config)
                .unwrap_err()
                .contains("is a text")
        );
        const RATIO: Size = Size::Quotient(&Size::Hidden, &Size::QueryHeads);
        assert_eq!(RATIO.of(&config), Ok(Some(16)));
        const UNEVEN: Size = Size::Quotient(&Size::Hidden, &Size::Number(7));
        assert!(UNEVEN.of(&config).unwrap_err().contains("no multiple of 7"));
        const UNKNOWN: Size = Size::Quotient(&Size::Hidden, &Size::Experts);
        assert!(
            UNKNOWN
                .required(&config)
                .unwrap_err()
                .contains("num_experts")
        );
        const HUGE: Size = Size::Product(&[Size::Number(1 << 40), Size::Number(1 << 40)]);
        assert!(HUGE.of(&config).is_err());
    }
}
