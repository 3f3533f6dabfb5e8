//! Constraints on an allocation: fixed types of some tensors, and the allowed types of others.

use super::problem::{Item, Problem};
use crate::recipe::Pattern;
use quantier_arch::Role;
use quantier_blocks::types::GgmlType;
use quantier_core::words::distance;

/// The tensors of a constraint.
#[derive(Clone, Debug)]
pub enum Subject {
    /// All tensors.
    All,
    /// Tensors of a role, by its label: `output` is not `attn_output`.
    Role(Role),
    /// Tensors by a regular expression on the name, as in llama-quantize's `--tensor-type`.
    Names(Pattern),
}

impl Subject {
    /// From the label of a role, or else a regular expression.
    ///
    /// # Errors
    /// An empty text or an invalid regular expression.
    pub(crate) fn parse(text: &str) -> Result<Subject, String> {
        match Role::from_label(text) {
            _ if text.is_empty() => Err("the name before '=' is missing".into()),
            Some(role) => Ok(Subject::Role(role)),
            None => Pattern::new(text).map(Subject::Names),
        }
    }

    fn covers(&self, name: &str, role: Role) -> bool {
        match self {
            Subject::All => true,
            Subject::Role(covered) => role == *covered,
            Subject::Names(pattern) => pattern.matches(name),
        }
    }

    fn text(&self) -> &str {
        match self {
            Subject::All => "all tensors",
            Subject::Role(role) => role.label(),
            Subject::Names(pattern) => pattern.as_str(),
        }
    }
}

/// Constraints on a problem, from the options of a command.
///
/// A pin overrides all other constraints; the first pin that covers a tensor decides. Otherwise all
/// of minimum, maximum and list of types hold. The first list that covers a tensor decides, and the
/// one for all tensors is the last; it leaves out tensors whose rows are whole blocks of none of its
/// types.
#[derive(Clone, Debug, Default)]
pub struct Constraints {
    pins: Vec<(Subject, GgmlType)>,
    bounds: Vec<(Bound, Subject, GgmlType)>,
    lists: Vec<(Subject, Vec<GgmlType>, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    Min,
    Max,
}

impl Bound {
    /// By bits per weight.
    fn allows(self, bound: GgmlType, t: GgmlType) -> bool {
        match self {
            Bound::Min => t.bpw() >= bound.bpw(),
            Bound::Max => t.bpw() <= bound.bpw(),
        }
    }

    fn option(self) -> &'static str {
        match self {
            Bound::Min => "--min",
            Bound::Max => "--max",
        }
    }
}

/// An unsatisfiable constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// A constraint without a tensor.
    #[error("{constraint} covers none of the tensors to choose for; the nearest name is {nearest}")]
    NothingCovered {
        /// The option.
        constraint: String,
        /// The role or tensor with the nearest name.
        nearest: String,
    },
    /// A pinned type with blocks that do not fit the rows of the tensor.
    #[error(
        "{tensor}: {constraint} does not fit: rows of {row_len} weights are not whole blocks of {ggml_type} ({} weights); \
         it can be {types}", ggml_type.block_len()
    )]
    DoesNotFit {
        /// The tensor.
        tensor: String,
        /// The option.
        constraint: String,
        /// The type.
        ggml_type: GgmlType,
        /// Weights in a row of the tensor.
        row_len: u64,
        /// Its possible types.
        types: String,
    },
    /// A tensor without an allowed type.
    #[error("{tensor}: {constraint} leaves it no type; it can be {types}")]
    NothingLeft {
        /// The tensor.
        tensor: String,
        /// The options.
        constraint: String,
        /// Its possible types.
        types: String,
    },
}

impl Constraints {
    /// Adds `--pin NAMES=TYPE`.
    ///
    /// # Errors
    /// A text without `=`, an invalid regular expression, an unknown type.
    pub fn pin(&mut self, text: &str) -> Result<(), String> {
        let (subject, t) = text.rsplit_once('=').ok_or("NAMES=TYPE is expected")?;
        self.pins.push((Subject::parse(subject)?, parse_type(t)?));
        Ok(())
    }

    /// Adds `--min NAMES=TYPE` or `--min TYPE`: no type of fewer bits per weight.
    ///
    /// # Errors
    /// An invalid regular expression, an unknown type.
    pub fn min(&mut self, text: &str) -> Result<(), String> {
        self.bound(Bound::Min, text)
    }

    /// Adds `--max NAMES=TYPE` or `--max TYPE`: no type of more bits per weight.
    ///
    /// # Errors
    /// An invalid regular expression, an unknown type.
    pub fn max(&mut self, text: &str) -> Result<(), String> {
        self.bound(Bound::Max, text)
    }

    fn bound(&mut self, bound: Bound, text: &str) -> Result<(), String> {
        let (subject, t) = match text.rsplit_once('=') {
            Some((subject, t)) => (Subject::parse(subject)?, t),
            None => (Subject::All, text),
        };
        self.bounds.push((bound, subject, parse_type(t)?));
        Ok(())
    }

    /// Adds `--types LIST` or `--types NAMES=LIST`: types and groups of types (`k`, `iq`, `legacy`,
    /// `all`), separated by commas. The list for all tensors is the last to apply.
    ///
    /// # Errors
    /// An invalid regular expression, an unknown type, a second list for all tensors.
    pub fn types(&mut self, text: &str) -> Result<(), String> {
        let (subject, list) = match text.rsplit_once('=') {
            Some((subject, list)) => (Subject::parse(subject)?, list),
            None => (Subject::All, text),
        };
        let typed = text.to_owned();
        match subject {
            Subject::All if self.lists.iter().any(|(s, ..)| matches!(s, Subject::All)) => {
                return Err(
                    "there can be one list for all tensors; separate types by commas".into(),
                );
            }
            Subject::All => self.lists.push((subject, parse_list(list)?, typed)),
            _ => {
                let some = self
                    .lists
                    .iter()
                    .filter(|(s, ..)| !matches!(s, Subject::All))
                    .count();
                self.lists.insert(some, (subject, parse_list(list)?, typed));
            }
        }
        Ok(())
    }

    /// True if a tensor with this row length may have a type. Other types need no sensitivity.
    pub fn allows(&self, name: &str, role: Role, row_len: u64, t: GgmlType) -> bool {
        if let Some((_, pinned)) = self.pin_of(name, role) {
            return *pinned == t;
        }
        let bounds = self
            .bounds
            .iter()
            .all(|(bound, s, limit)| !s.covers(name, role) || bound.allows(*limit, t));
        bounds
            && self
                .list_of(name, role, row_len)
                .is_none_or(|(_, types, _)| types.contains(&t))
    }

    fn pin_of(&self, name: &str, role: Role) -> Option<&(Subject, GgmlType)> {
        self.pins
            .iter()
            .find(|(subject, _)| subject.covers(name, role))
    }

    fn list_of(
        &self,
        name: &str,
        role: Role,
        row_len: u64,
    ) -> Option<&(Subject, Vec<GgmlType>, String)> {
        let fits = |t: &GgmlType| row_len.is_multiple_of(t.block_len() as u64);
        self.lists.iter().find(|(subject, types, _)| match subject {
            Subject::All => types.iter().any(fits),
            _ => subject.covers(name, role),
        })
    }

    /// Narrows the choices of every item to the allowed types.
    ///
    /// # Errors
    /// Every constraint without a tensor and every item without a remaining choice. The problem then
    /// stays unchanged.
    pub fn apply(&self, problem: &mut Problem) -> Result<(), Vec<ConstraintError>> {
        let mut errors = self.idle(problem);
        let mut narrowed = Vec::with_capacity(problem.items.len());
        for item in &problem.items {
            let left: Vec<_> = item
                .choices
                .iter()
                .filter(|c| self.allows(&item.name, item.role, item.row_len, c.ggml_type))
                .copied()
                .collect();
            if left.is_empty() && !item.choices.is_empty() {
                errors.push(self.nothing_left(item));
            }
            narrowed.push(left);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        problem
            .items
            .iter_mut()
            .zip(narrowed)
            .for_each(|(item, left)| item.choices = left);
        Ok(())
    }

    /// Every constraint that covers no item.
    fn idle(&self, problem: &Problem) -> Vec<ConstraintError> {
        let pins = self
            .pins
            .iter()
            .map(|(subject, t)| (subject, typed("--pin", subject, *t)));
        let bounds = self
            .bounds
            .iter()
            .map(|(bound, subject, t)| (subject, typed(bound.option(), subject, *t)));
        let lists = self
            .lists
            .iter()
            .map(|(subject, _, text)| (subject, format!("--types {text}")));
        pins.chain(bounds)
            .chain(lists)
            .filter(|(subject, _)| !matches!(subject, Subject::All))
            .filter(|(subject, _)| {
                !problem
                    .items
                    .iter()
                    .any(|item| subject.covers(&item.name, item.role))
            })
            .map(|(subject, constraint)| ConstraintError::NothingCovered {
                constraint,
                nearest: nearest(subject.text(), problem),
            })
            .collect()
    }

    fn nothing_left(&self, item: &Item) -> ConstraintError {
        let tensor = item.name.clone();
        let types: Vec<_> = item.choices.iter().map(|c| c.ggml_type.name()).collect();
        let types = types.join(", ");
        if let Some((subject, t)) = self.pin_of(&item.name, item.role) {
            let constraint = typed("--pin", subject, *t);
            if !item.row_len.is_multiple_of(t.block_len() as u64) {
                return ConstraintError::DoesNotFit {
                    tensor,
                    constraint,
                    ggml_type: *t,
                    row_len: item.row_len,
                    types,
                };
            }
            return ConstraintError::NothingLeft {
                tensor,
                constraint,
                types,
            };
        }
        let bounds = self
            .bounds
            .iter()
            .filter(|(_, subject, _)| subject.covers(&item.name, item.role));
        let bounds = bounds.map(|(bound, subject, t)| typed(bound.option(), subject, *t));
        let list = self
            .list_of(&item.name, item.role, item.row_len)
            .map(|(_, _, text)| format!("--types {text}"));
        let constraint: Vec<_> = bounds.chain(list).collect();
        ConstraintError::NothingLeft {
            tensor,
            constraint: constraint.join(" with "),
            types,
        }
    }
}

/// The text of an option.
fn typed(option: &str, subject: &Subject, t: GgmlType) -> String {
    match subject {
        Subject::All => format!("{option} {t}"),
        _ => format!("{option} {}={t}", subject.text()),
    }
}

/// The name nearest to a text, of a role in the problem or of a tensor.
fn nearest(text: &str, problem: &Problem) -> String {
    let roles = problem.items.iter().map(|item| item.role.label());
    let names = problem.items.iter().map(|item| &*item.name);
    let near = roles
        .chain(names)
        .min_by_key(|name| (distance(text, name), *name));
    near.unwrap_or("none, since there is no tensor to choose for")
        .to_owned()
}

/// Named groups of types.
const GROUPS: &[(&str, &[GgmlType])] = &[
    (
        "k",
        &[
            GgmlType::Q2_K,
            GgmlType::Q3_K,
            GgmlType::Q4_K,
            GgmlType::Q5_K,
            GgmlType::Q6_K,
        ],
    ),
    (
        "iq",
        &[
            GgmlType::IQ1_S,
            GgmlType::IQ1_M,
            GgmlType::IQ2_XXS,
            GgmlType::IQ2_XS,
            GgmlType::IQ2_S,
            GgmlType::IQ3_XXS,
            GgmlType::IQ3_S,
            GgmlType::IQ4_XS,
            GgmlType::IQ4_NL,
        ],
    ),
    (
        "legacy",
        &[
            GgmlType::Q4_0,
            GgmlType::Q4_1,
            GgmlType::Q5_0,
            GgmlType::Q5_1,
            GgmlType::Q8_0,
        ],
    ),
];

fn parse_type(text: &str) -> Result<GgmlType, String> {
    GgmlType::from_name(text.trim()).ok_or_else(|| {
        let near = GgmlType::all()
            .min_by_key(|t| distance(&text.to_ascii_lowercase(), &t.name().to_ascii_lowercase()));
        format!(
            "there is no type '{text}'; the nearest is {}",
            near.map_or("", GgmlType::name)
        )
    })
}

fn parse_list(text: &str) -> Result<Vec<GgmlType>, String> {
    let mut types = Vec::new();
    for word in text.split(',').map(str::trim) {
        match GROUPS
            .iter()
            .find(|(name, _)| word.eq_ignore_ascii_case(name))
        {
            _ if word.eq_ignore_ascii_case("all") => types.extend(GgmlType::all()),
            Some((_, group)) => types.extend_from_slice(group),
            None => types.push(
                parse_type(word).map_err(|e| format!("{e}; groups are k, iq, legacy and all"))?,
            ),
        }
    }
    Ok(types)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontier::Choice;

    /// Tensors of one layer and the ends of a model; rows of `attn_k` are whole blocks of 32 only.
    fn problem() -> Problem {
        use GgmlType as T;
        let names = [
            "token_embd",
            "blk.0.attn_k",
            "blk.0.attn_output",
            "blk.0.ffn_down",
            "output",
        ];
        let item = |name: &str| {
            let row_len = if name.ends_with("attn_k") { 320 } else { 512 };
            let all = [T::IQ2_XXS, T::Q4_0, T::IQ4_XS, T::Q4_K, T::Q6_K, T::Q8_0];
            let choices = all.into_iter().filter_map(|ggml_type| {
                Some(Choice {
                    ggml_type,
                    bytes: ggml_type.row_bytes(row_len)?,
                    nats: 1.0 / ggml_type.bpw(),
                })
            });
            let name = format!("{name}.weight");
            Item {
                role: Role::of(&name),
                name,
                row_len,
                weights: row_len,
                choices: choices.collect(),
            }
        };
        Problem {
            items: names.map(item).to_vec(),
            ..Problem::default()
        }
    }

    /// The remaining types, by the part of the name before `.weight`.
    fn left(problem: &Problem, name: &str) -> Vec<&'static str> {
        let item = problem
            .items
            .iter()
            .find(|item| item.name == format!("{name}.weight"))
            .unwrap();
        item.choices.iter().map(|c| c.ggml_type.name()).collect()
    }

    fn constraints(options: &[(&str, &str)]) -> Constraints {
        let mut constraints = Constraints::default();
        for (option, text) in options {
            match *option {
                "--pin" => constraints.pin(text),
                "--min" => constraints.min(text),
                "--max" => constraints.max(text),
                _ => constraints.types(text),
            }
            .unwrap();
        }
        constraints
    }

    fn applied(options: &[(&str, &str)]) -> Problem {
        let mut problem = problem();
        constraints(options).apply(&mut problem).unwrap();
        problem
    }

    /// The error messages; the problem stays unchanged.
    fn errors(options: &[(&str, &str)]) -> Vec<String> {
        let mut narrowed = problem();
        let errors = constraints(options).apply(&mut narrowed).unwrap_err();
        assert_eq!(narrowed, problem());
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn pins_override_other_constraints_and_the_first_wins() {
        let options = [
            ("--types", "k,legacy"),
            ("--min", "q4_K"),
            ("--pin", "down=iq2_xxs"),
            ("--pin", "ffn.*=Q8_0"),
        ];
        let problem = applied(&options);
        assert_eq!(left(&problem, "blk.0.ffn_down"), ["iq2_xxs"]);
        assert_eq!(
            left(&problem, "blk.0.attn_output"),
            ["q4_0", "q4_K", "q6_K", "q8_0"]
        );
    }

    #[test]
    fn labels_of_roles_select_roles() {
        let problem = applied(&[("--pin", "output=q6_K")]);
        assert_eq!(left(&problem, "output"), ["q6_K"]);
        assert_eq!(
            left(&problem, "blk.0.attn_output").len(),
            6,
            "'output' occurs in its name, but is another role"
        );
        assert_eq!(
            left(
                &applied(&[("--pin", "output.weight=q6_K")]),
                "blk.0.attn_output"
            ),
            ["q6_K"],
            "a pattern"
        );
    }

    #[test]
    fn bounds_are_by_bits_and_combine() {
        let problem = applied(&[
            ("--min", "iq4_xs"),
            ("--max", "ffn_down=q4_0"),
            ("--max", "q6_K"),
        ]);
        assert_eq!(
            left(&problem, "blk.0.ffn_down"),
            ["q4_0", "iq4_xs", "q4_K"],
            "all of 4.25 to 4.5 bits"
        );
        assert_eq!(left(&problem, "output"), ["q4_0", "iq4_xs", "q4_K", "q6_K"]);
    }

    #[test]
    fn specific_lists_precede_the_list_for_all() {
        for options in [
            [("--types", "iq, q8_0"), ("--types", "ffn_down=q4_K,Q6_k")],
            [("--types", "ffn_down=q4_K,Q6_k"), ("--types", "iq, q8_0")],
        ] {
            let problem = applied(&options);
            assert_eq!(left(&problem, "blk.0.ffn_down"), ["q4_K", "q6_K"]);
            assert_eq!(left(&problem, "token_embd"), ["iq2_xxs", "iq4_xs", "q8_0"]);
        }
        assert_eq!(applied(&[("--types", "all")]), problem());
    }

    #[test]
    fn excluded_types_need_no_scores() {
        let constraints = constraints(&[("--types", "k"), ("--pin", "output=q8_0")]);
        let allows = |name, role, t| constraints.allows(name, role, 256, t);
        assert!(allows("output.weight", Role::Output, GgmlType::Q8_0));
        assert!(!allows("output.weight", Role::Output, GgmlType::Q6_K));
        assert!(!allows(
            "blk.0.ffn_down.weight",
            Role::FfnDown,
            GgmlType::Q8_0
        ));
    }

    #[test]
    fn list_for_all_skips_rows_that_fit_none() {
        let all = constraints(&[("--types", "k,q8_0")]);
        let one = constraints(&[("--types", "ssm_dt=k")]);
        for (row_len, t, by_all) in [
            (48, GgmlType::F16, true),
            (64, GgmlType::F16, false),
            (64, GgmlType::Q8_0, true),
        ] {
            let allows = |constraints: &Constraints| {
                constraints.allows("blk.0.ssm_dt.weight", Role::StateStep, row_len, t)
            };
            assert_eq!(allows(&all), by_all, "{row_len} {t}");
            assert!(!allows(&one), "{row_len} {t}");
        }
    }

    #[test]
    fn unsatisfiable_constraints_are_named() {
        let all = errors(&[
            ("--pin", "ffn_dwon=q8_0"),
            ("--min", "blk.7=q8_0"),
            ("--types", "attn_q=q4_K"),
        ]);
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(
            all[0].contains("--pin ffn_dwon=q8_0 covers none") && all[0].ends_with("is ffn_down"),
            "{}",
            all[0]
        );
        assert!(all[1].contains("--min blk.7=q8_0"), "{}", all[1]);
        assert!(
            all[2].contains("--types attn_q=q4_K") && all[2].ends_with("is attn_k"),
            "{}",
            all[2]
        );

        let all = errors(&[("--pin", "attn=q4_K")]);
        assert_eq!(all.len(), 1, "only attn_k has odd rows");
        for part in [
            "blk.0.attn_k.weight",
            "rows of 320",
            "blocks of q4_K (256 weights)",
            "can be q4_0, q8_0",
        ] {
            assert!(all[0].contains(part), "{}", all[0]);
        }
        let all = errors(&[("--pin", "output=q5_1")]);
        assert!(
            all[0].contains("--pin output=q5_1 leaves it no type")
                && all[0].contains("iq2_xxs, q4_0"),
            "{}",
            all[0]
        );

        let all = errors(&[
            ("--max", "ffn_down=iq2_xxs"),
            ("--min", "q4_K"),
            ("--types", "k,q4_0,q8_0"),
        ]);
        let together = "blk.0.ffn_down.weight: --max ffn_down=iq2_xxs with --min q4_K with --types k,q4_0,q8_0 leaves";
        assert!(all.len() == 1 && all[0].starts_with(together), "{all:?}");
    }

    #[test]
    fn typing_errors_are_reported() {
        let mut c = Constraints::default();
        assert!(c.pin("q8_0").unwrap_err().contains("NAMES=TYPE"));
        assert!(c.pin("=q8_0").unwrap_err().contains("missing"));
        assert!(c.pin("attn(=q8_0").unwrap_err().contains("'attn('"));
        assert!(c.min("q4k").unwrap_err().contains("nearest is q4_K"));
        assert!(c.types("k,i").unwrap_err().contains("groups are k, iq"));
        assert!(c.types("").is_err());
        c.types("k").unwrap();
        assert!(c.types("iq").unwrap_err().contains("commas"));
        c.pin("(?=blk)x=q8_0").unwrap();
    }

    #[test]
    fn groups_have_storable_types() {
        for (name, group) in GROUPS {
            assert!(!group.is_empty() && GgmlType::from_name(name).is_none());
            let prefix = |t: &GgmlType| match *name {
                "k" => t.name().ends_with("_K"),
                "iq" => t.name().starts_with("iq"),
                _ => t.name().starts_with('q') && t.block_len() == 32,
            };
            assert!(group.iter().all(prefix), "{name}");
        }
    }
}
