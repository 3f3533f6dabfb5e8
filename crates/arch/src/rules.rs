//! Rules that lead from a checkpoint's tensor names to those of a GGUF, and say what happens on the
//! way.

use super::config::Config;

/// A rule for one tensor, or for one tensor of every layer.
///
/// In names `{}` stands for a number: in `from` first the layer's, then the expert's; in `to` the
/// layer's. Unless `from` ends in `.weight` or `.bias`, the rule is for both, and the ending is
/// carried over to `to`.
pub struct Rule {
    /// The checkpoint's name.
    pub from: &'static str,
    /// The GGUF's name.
    pub to: &'static str,
    /// What is done to the weights.
    pub transform: Transform,
    /// The weight's dimensions, outermost first, where they are known; a bias has the first of
    /// them.
    pub dims: &'static [Dim],
}

/// What happens to a tensor's weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transform {
    /// Nothing.
    Keep,
    /// It is left out.
    Skip,
    /// The halves of every query head's rows are interleaved, which is how llama.cpp rotates them.
    InterleaveQueries,
    /// The same for the heads of keys.
    InterleaveKeys,
    /// Rows become columns.
    Transpose,
    /// 1 is added to every weight.
    AddOne,
    /// It is one expert's and is stacked with those of the others; the three stacks of a layer are
    /// written in this order.
    Expert(u8),
    /// Rows beyond the vocabulary are left out.
    VocabularyRows,
}

/// A dimension that the config determines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dim {
    /// Not checked.
    Any,
    /// The hidden size.
    Hidden,
    /// Width of the feed-forward network.
    FeedForward,
    /// Twice that: gate and up in one.
    TwiceFeedForward,
    /// Width of one expert.
    Expert,
    /// How many experts there are.
    Experts,
    /// All query heads together.
    Queries,
    /// All key heads together.
    Keys,
    /// Length of a head.
    Head,
}

/// The endings that a rule without one of them stands for.
const ENDINGS: [&str; 2] = [".weight", ".bias"];

/// Where a rule's name matched.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// The name in the GGUF.
    pub name: String,
    /// The layer, where the rule is for layers.
    pub layer: Option<u32>,
    /// The expert, where the rule is for experts.
    pub expert: Option<u32>,
}

impl Rule {
    /// A tensor that is only renamed.
    pub const fn keep(from: &'static str, to: &'static str, dims: &'static [Dim]) -> Rule {
        Rule {
            from,
            to,
            transform: Transform::Keep,
            dims,
        }
    }

    /// A tensor that is left out.
    pub const fn skip(from: &'static str) -> Rule {
        Rule {
            from,
            to: "",
            transform: Transform::Skip,
            dims: &[],
        }
    }

    /// A tensor that is renamed and changed.
    pub const fn with(
        from: &'static str,
        to: &'static str,
        transform: Transform,
        dims: &'static [Dim],
    ) -> Rule {
        Rule {
            from,
            to,
            transform,
            dims,
        }
    }

    /// Whether the rule is for this name, and what the name becomes.
    pub fn matches(&self, name: &str) -> Option<Match> {
        let (base, ending) = match ENDINGS.iter().any(|ending| self.from.ends_with(ending)) {
            true => (name, ""),
            false => ENDINGS
                .iter()
                .find_map(|ending| Some((name.strip_suffix(ending)?, *ending)))
                .unwrap_or((name, "")),
        };
        let numbers = numbers(self.from, base)?;
        let layer = numbers.first().copied();
        let name = match layer {
            Some(layer) => self.to.replacen("{}", &layer.to_string(), 1),
            None => self.to.to_owned(),
        };
        Some(Match {
            name: name + ending,
            layer,
            expert: numbers.get(1).copied(),
        })
    }
}

/// The numbers that stand in a name where a pattern has `{}`; `None` if the name does not fit.
fn numbers(pattern: &str, name: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    let mut rest = name;
    for (i, part) in pattern.split("{}").enumerate() {
        if i > 0 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            // Another spelling of the same number would be another tensor of the same name.
            if digits == 0 || (digits > 1 && rest.starts_with('0')) {
                return None;
            }
            numbers.push(rest[..digits].parse().ok()?);
            rest = &rest[digits..];
        }
        rest = rest.strip_prefix(part)?;
    }
    rest.is_empty().then_some(numbers)
}

impl Dim {
    /// Its size by the config; `None` where the config does not say it.
    pub fn size(self, config: &Config) -> Option<u64> {
        let field = |names: &[&str]| config.optional_u32(names).ok().flatten().map(u64::from);
        let heads = |names: &[&str]| Some(field(names)? * u64::from(config.head_len().ok()?));
        match self {
            Dim::Any => None,
            Dim::Hidden => field(&["hidden_size", "n_embd"]),
            Dim::FeedForward => field(&["intermediate_size"]),
            Dim::TwiceFeedForward => Some(2 * field(&["intermediate_size"])?),
            Dim::Expert => field(&["moe_intermediate_size", "intermediate_size"]),
            Dim::Experts => field(&["num_local_experts", "num_experts"]),
            Dim::Queries => heads(&["num_attention_heads"]),
            Dim::Keys => heads(&["num_key_value_heads", "num_attention_heads"]),
            Dim::Head => Some(config.head_len().ok()?.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_finds_layer_and_expert() {
        let rule = Rule::keep("m.{}.e.{}.w", "blk.{}.w_exps", &[]);
        let found = rule.matches("m.12.e.3.w.bias").unwrap();
        assert_eq!(
            found,
            Match {
                name: "blk.12.w_exps.bias".into(),
                layer: Some(12),
                expert: Some(3)
            }
        );
        for other in [
            "m.12.e.3.w.scale",
            "m.x.e.3.w.bias",
            "m.12.e.w.bias",
            "m.012.e.3.w",
            "m.99999999999.e.1.w",
        ] {
            assert_eq!(rule.matches(other), None, "{other}");
        }
    }

    #[test]
    fn a_rule_with_an_ending_is_for_that_ending_only() {
        let rule = Rule::keep("h.{}.c.weight", "blk.{}.c.weight", &[]);
        assert_eq!(rule.matches("h.0.c.weight").unwrap().name, "blk.0.c.weight");
        assert_eq!(rule.matches("h.0.c.bias"), None);
    }
}
