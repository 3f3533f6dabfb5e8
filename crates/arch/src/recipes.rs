//! Recipes that make a GGUF's tensors of a checkpoint's: names, sizes and operations, as rows of a
//! table.
//!
//! A recipe takes one tensor or several and makes none, one or several of them:
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
//! Operations name dimensions and sizes, never the bytes of one tensor, so that the same row also
//! says what becomes of a low-rank pair: an operation on rows is one on the rows of B, an operation
//! on columns is one on the columns of A.

use super::config::{Config, Result, TIED};
use quantier_gguf::types::GgmlType;

/// A row of the table.
///
/// In names, `{}` stands for a number, which in `to` is the layer's, and `*` for any text. In the
/// names of inputs the first number is the layer's, the second one counts tensors that are stacked,
/// such as experts. An input whose name ends neither in `.weight` nor in `.bias` stands for both,
/// and the ending is carried over to the outputs that have none.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    from: Few<Input>,
    to: Few<Output>,
    when: When,
    /// What the tensors belong to, if they are left out and the user should know.
    pub left_out: Option<&'static str>,
    /// The key that becomes of the numbers of a tensor.
    pub key: Option<ToKey>,
    /// Whether a conversion refuses outputs with numbers that are not finite.
    pub is_finite: bool,
    /// Names of a tensor; if it came before and has the same weights, this one is left out.
    pub unless_equal: &'static [&'static str],
}

/// A tensor that becomes metadata: one number, or, of tensors of layers, a list with one for each.
#[derive(Clone, Copy, Debug)]
pub struct ToKey {
    /// The key, in which `{}` stands for the architecture.
    pub key: &'static str,
    /// Its value, from the tensor's numbers.
    pub value: fn(&Config, &[f32]) -> Result<f32>,
}

/// A tensor of the checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Its name.
    pub name: &'static str,
    /// The weight's dimensions, outermost first, where they are known. A bias has the first of
    /// them.
    pub dims: &'static [Size],
}

/// A tensor of the GGUF.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Its name.
    pub name: &'static str,
    /// The inputs that it is made of, as indices; [`Op::Concat`] joins several.
    pub inputs: &'static [usize],
    /// What is done to them, in order.
    pub ops: &'static [Op],
}

/// One step from a checkpoint's tensors to a GGUF's. Dimensions are counted from the outermost.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// One of the consecutive parts of a dimension. One size may be [`Size::Any`]: what the others
    /// leave.
    Split {
        /// The dimension.
        axis: usize,
        /// The sizes of all parts.
        sizes: &'static [Size],
        /// Which part.
        part: usize,
    },
    /// At most so many rows; those behind them are left out.
    First(Size),
    /// The rows of these tokens, in this order.
    Rows(&'static [&'static str]),
    /// The two halves of the rows of each of so many heads are interleaved, which is how llama.cpp
    /// rotates them.
    Interleave(Size),
    /// The same with as many heads as the layer has.
    InterleaveBy(fn(&Config, u32) -> Result<u64>),
    /// The reverse, for the first rows of each head, those that are rotated: even rows, then odd ones.
    Deinterleave {
        /// The number of heads.
        heads: Size,
        /// How many rows of a head are rotated.
        rotated: fn(&Config) -> Result<u64>,
    },
    /// Blocks of a dimension that are grouped (a0 a1 b0 b1 c0 c1) are tiled (a0 b0 c0 a1 b1 c1).
    Tile {
        /// The dimension.
        axis: usize,
        /// The number of groups.
        groups: Size,
        /// The number of blocks in a group.
        members: Size,
    },
    /// The same of the rows behind the first ones, which stay.
    TileBehind {
        /// The number of rows that stay.
        first: Size,
        /// The number of groups.
        groups: Size,
        /// The number of blocks in a group.
        members: Size,
    },
    /// Rows in so many groups, each of parts of these sizes (q0 k0 v0 q1 k1 v1), with equal parts
    /// put together (q0 q1 k0 k1 v0 v1). One size may be [`Size::Any`].
    Ungroup {
        /// The number of groups.
        groups: Size,
        /// The sizes of a group's parts.
        sizes: &'static [Size],
    },
    /// The rows in as many equal parts as these numbers, in the order of the numbers.
    Order(&'static [usize]),
    /// The last two dimensions are exchanged.
    Transpose,
    /// Other dimensions for the same elements. One size may be [`Size::Any`].
    Reshape(&'static [Size]),
    /// A dimension of size 1 is left out.
    Squeeze(usize),
    /// So many tensors, told apart by the second number of their names, become one with another
    /// dimension before all others.
    Stack(Size),
    /// The inputs become one along this dimension.
    Concat(usize),
    /// 1 is added to every weight.
    AddOne,
    /// This is added to every weight.
    AddNumber(f64),
    /// Every weight x becomes exp(x).
    Exp,
    /// Every weight x becomes -exp(x).
    NegExp,
    /// Every weight becomes the nearest of 0 and plus and minus the mean of all magnitudes (BitNet b1.58,
    /// Ma et al. 2024). The tensor is a whole one of the checkpoint.
    Ternary,
    /// A tensor that the checkpoint does not have: one dimension of this size, filled with what the
    /// config says. The only operation of an output without inputs.
    Fill {
        /// The number of weights.
        len: Size,
        /// Each of them.
        value: fn(&Config) -> Result<f64>,
    },
    /// Every weight is multiplied by what the config says.
    Scale(fn(&Config) -> Result<f64>),
    /// The same by what the config says of the layer.
    ScaleBy(fn(&Config, u32) -> Result<f64>),
    /// Consecutive parts of the rows are multiplied each by what the config says of it. One size may
    /// be [`Size::Any`].
    ScaleParts {
        /// The sizes of all parts.
        sizes: &'static [Size],
        /// The factor of a part, by its number.
        factor: fn(&Config, usize) -> Result<f64>,
    },
    /// The type does not follow from the file type.
    Cast(GgmlType),
    /// The type follows from the file type, whatever the name.
    CastByFile,
}

impl Op {
    /// One of the consecutive parts of a dimension.
    pub(crate) const fn part(axis: usize, sizes: &'static [Size], part: usize) -> Op {
        Op::Split { axis, sizes, part }
    }
}

/// A size that the config determines.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// Whatever is there.
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
    /// The number under the first of these names that the config has.
    Field(&'static [&'static str]),
    /// What a function makes of the config.
    Computed(fn(&Config) -> Result<u64>),
    /// The product of these.
    Product(&'static [Size]),
    /// The quotient of these, which leaves no rest.
    Quotient(&'static Size, &'static Size),
}

/// When a row applies; else later rows are tried.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Always.
    Always,
    /// If the config has this field, and it is neither null nor false.
    Set(&'static str),
    /// If the config does not have this field, or it is null or false.
    Unset(&'static str),
    /// If the config has this number, and it is not 0.
    Counted(&'static str),
    /// If the rotation of heads has sections for pictures.
    Sections,
    /// If the model is a reranker, and its embeddings serve as output matrix or not.
    Reranker {
        /// Whether they do.
        tied: bool,
    },
    /// If the model has at least so many layers.
    Deep(u32),
    /// In layers before the one with this number; in all of them if the config does not say it.
    LayersBefore(Size),
    /// In layers from the one with this number on; in none if the config does not say it.
    LayersFrom(Size),
    /// In layers that this holds for.
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

/// The endings that a name without one of them stands for.
const ENDINGS: [&str; 2] = [".weight", ".bias"];

/// How a tensor's name matched a recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Which of the recipe's inputs it is, as an index.
    pub input: usize,
    /// The layer, where the recipe is for layers.
    pub layer: Option<u32>,
    /// The place in the stack, where tensors are stacked.
    pub index: Option<u32>,
    /// The ending that is carried over.
    pub ending: &'static str,
}

impl Input {
    /// A tensor of this name with these dimensions.
    pub(crate) const fn new(name: &'static str, dims: &'static [Size]) -> Input {
        Input { name, dims }
    }

    /// Whether the name stands for tensors that are stacked.
    pub fn is_stacked(&self) -> bool {
        self.name.matches("{}").count() > 1
    }
}

impl Output {
    /// A tensor that is made of the first input.
    pub(crate) const fn new(name: &'static str, ops: &'static [Op]) -> Output {
        Output::of(&[0], name, ops)
    }

    /// A tensor that is made of these inputs.
    pub(crate) const fn of(
        inputs: &'static [usize],
        name: &'static str,
        ops: &'static [Op],
    ) -> Output {
        Output { name, inputs, ops }
    }

    /// Its name for a tensor that matched.
    pub fn name(&self, matched: &Match) -> String {
        let name = match matched.layer {
            Some(layer) => self.name.replacen("{}", &layer.to_string(), 1),
            None => self.name.to_owned(),
        };
        match ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            true => name,
            false => name + matched.ending,
        }
    }
}

impl Recipe {
    /// A tensor that is only renamed.
    pub(crate) const fn rename(
        from: &'static str,
        to: &'static str,
        dims: &'static [Size],
    ) -> Recipe {
        Recipe::with(from, to, dims, &[])
    }

    /// A tensor that is renamed and changed.
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
        }
    }

    /// Tensors that become others, in this order, once all of them have been seen.
    pub(crate) const fn new(from: &'static [Input], to: &'static [Output]) -> Recipe {
        Recipe {
            from: Few::Several(from),
            to: Few::Several(to),
            when: When::Always,
            left_out: None,
            key: None,
            is_finite: false,
            unless_equal: &[],
        }
    }

    /// A tensor that no GGUF needs: it follows from the config.
    pub(crate) const fn skip(from: &'static str) -> Recipe {
        Recipe {
            from: Few::One(Input::new(from, &[])),
            to: Few::Several(&[]),
            when: When::Always,
            left_out: None,
            key: None,
            is_finite: false,
            unless_equal: &[],
        }
    }

    /// A tensor whose numbers become the value of a key.
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

    /// A tensor of a part of the model that is left out, with the name of that part for the user.
    pub const fn leave_out(from: &'static str, part: &'static str) -> Recipe {
        Recipe {
            left_out: Some(part),
            ..Recipe::skip(from)
        }
    }

    /// The same, left out if a tensor of one of these names came before and has the same weights.
    pub(crate) const fn unless_equal(self, names: &'static [&'static str]) -> Recipe {
        Recipe {
            unless_equal: names,
            ..self
        }
    }

    /// The same under a condition.
    pub const fn when(self, when: When) -> Recipe {
        Recipe { when, ..self }
    }

    /// A small tensor with which a model makes nothing but NaN if one of its numbers is not finite:
    /// such as how fast a state forgets.
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

    /// The GGUF's tensors; none if the inputs are left out.
    pub fn outputs(&self) -> &[Output] {
        self.to.as_slice()
    }

    /// Whether the recipe is for its names in every model.
    pub(crate) fn is_unconditional(&self) -> bool {
        matches!(self.when, When::Always)
    }

    /// Whether the recipe is for this layer, or for what stands outside of layers. Without a config,
    /// only recipes without a condition are.
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

    /// The number of tensors that are stacked, where some are.
    pub fn stacked(&self) -> Option<Size> {
        let mut ops = self.outputs().iter().flat_map(|output| output.ops);
        ops.find_map(|op| match op {
            Op::Stack(size) => Some(*size),
            _ => None,
        })
    }

    /// Whether the recipe is for this name, and how.
    pub(crate) fn matches(&self, name: &str, config: &Config) -> Option<Match> {
        let mut inputs = self.inputs().iter().enumerate();
        let matched = inputs.find_map(|(input, tensor)| {
            let (base, ending) = match ENDINGS.iter().any(|ending| tensor.name.ends_with(ending)) {
                true => (name, ""),
                false => ENDINGS
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
            When::Counted(field) => is_set(field) && config.get(field).is_some_and(|n| *n != 0),
            When::Sections => config.rope().contains_key("mrope_section"),
            When::Reranker { tied } => config.is_reranker() && is_set(TIED) == tied,
            When::Deep(least) => config.layers().is_ok_and(|layers| layers >= least),
            When::LayersBefore(size) => before(size),
            When::LayersFrom(size) => !before(size),
            When::Layers(holds) => matched.layer.is_some_and(|layer| holds(config, layer)),
        }
    }
}

/// The numbers that stand in a name where a pattern has `{}`; `None` if the name does not fit.
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
    // Another spelling of the same number would be another tensor of the same name.
    if digits == 0 || (digits > 1 && rest.starts_with('0')) {
        return None;
    }
    let number = rest[..digits].parse().ok()?;
    let mut all = vec![number];
    all.extend(numbers(pattern, &rest[digits..])?);
    Some(all)
}

impl Size {
    /// The size by the config; `None` where the config does not say it.
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

    /// The size by the config, which must say it.
    ///
    /// # Errors
    /// As [`Size::of`], and if a field is missing.
    pub fn required(self, config: &Config) -> Result<u64> {
        match self.of(config)? {
            Some(size) => Ok(size),
            None => config.u32(self.missing(config)).map(u64::from),
        }
    }

    /// The names of the field that is missing where the size is not known.
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

    /// The names that the config may have the size under.
    fn fields(self, config: &Config) -> &'static [&'static str] {
        /// The names from the first one on that is not null.
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
    fn names_give_layer_and_place_in_the_stack() {
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
    fn a_name_with_an_ending_is_for_that_ending_only() {
        let recipe = Recipe::rename("h.{}.c.weight", "blk.{}.c.weight", &[]);
        let none = config(json!({}));
        let matched = recipe.matches("h.0.c.weight", &none).unwrap();
        assert_eq!(recipe.outputs()[0].name(&matched), "blk.0.c.weight");
        assert_eq!(recipe.matches("h.0.c.bias", &none), None);
    }

    #[test]
    fn a_star_stands_for_any_text() {
        let none = config(json!({}));
        let matches = |pattern, name| Recipe::skip(pattern).matches(name, &none).is_some();
        assert!(matches("visual.*", "visual.blocks.0.attn.bias"));
        assert!(matches("*vision*", "model.vision_tower.a"));
        assert!(matches("*.inv_freq", "a.b.inv_freq"));
        assert!(!matches("visual.*", "model.visual.a") && !matches("*vision*", "model.audio.a"));
    }

    #[test]
    fn the_inputs_of_a_recipe_are_told_apart() {
        const INPUTS: &[Input] = &[Input::new("l.{}.gate", &[]), Input::new("l.{}.up", &[])];
        const OUTPUTS: &[Output] = &[Output::of(&[0, 1], "blk.{}.ffn_up", &[Op::Concat(0)])];
        let recipe = Recipe::new(INPUTS, OUTPUTS);
        let matched = recipe.matches("l.7.up.weight", &config(json!({}))).unwrap();
        assert_eq!((matched.input, matched.layer), (1, Some(7)));
        assert_eq!(OUTPUTS[0].name(&matched), "blk.7.ffn_up.weight");
    }

    #[test]
    fn conditions_are_on_fields_and_layers() {
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
    fn sizes_are_the_configs() {
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
