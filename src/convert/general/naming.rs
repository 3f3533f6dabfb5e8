//! Parts of a model's name, and the name of the output file.

use regex::Regex;
use std::sync::LazyLock;

/// The parts of a model id, `ORGANIZATION/NAME-SIZE-FINETUNE-VERSION`, as far as present.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct IdParts {
    /// The id without the organization.
    pub full_name: Option<String>,
    /// The part before the slash.
    pub organization: Option<String>,
    /// The model family.
    pub basename: Option<String>,
    /// The purpose of the finetune.
    pub finetune: Option<String>,
    /// The version, unless it belongs to the basename.
    pub version: Option<String>,
    /// The number of weights in words.
    pub size_label: Option<String>,
}

/// The size of a file, with which size labels in names are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Extent {
    /// Not compared.
    Unknown,
    /// The weights of a model.
    Model(u64),
    /// The weights of the matrices that an adapter changes: not more than those of its base.
    Adapter(u64),
}

impl Extent {
    /// True if a model with a label of so many weights cannot have this size.
    fn contradicts(self, label: f64) -> bool {
        match self {
            Extent::Unknown => false,
            // Different by more than seven eighths of the weights.
            Extent::Model(weights) => {
                let away = (u128::from(weights) * 7 / 8) as f64;
                (label - weights as f64).abs() > away
            }
            Extent::Adapter(weights) => label < (weights / 8) as f64,
        }
    }
}

/// Meanings of a part of a name. A part can have several; none means unknown.
#[derive(Clone, Copy, Default, PartialEq)]
struct Marks {
    basename: bool,
    size: bool,
    finetune: bool,
    version: bool,
    encoding: bool,
}

impl Marks {
    fn none(self) -> bool {
        self == Marks::default()
    }

    fn count(self) -> usize {
        [
            self.basename,
            self.size,
            self.finetune,
            self.version,
            self.encoding,
        ]
        .into_iter()
        .filter(|&m| m)
        .count()
    }
}

macro_rules! pattern {
    ($name:ident, $pattern:literal) => {
        static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new($pattern).expect("the pattern is right"));
    };
}
pattern!(VERSION, r"(?i)\A(?:(?:v|iter)?\d+(?:[.]\d+)*)\z");
pattern!(ENCODING, r"(?i)\A(?:i?q\d(?:_\w)*|b?fp?(?:16|32))\z");
pattern!(
    SIZE,
    r"(?i)\A(?:(?:[A]|\d+[x])?\d+(?:[._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl)\z"
);
pattern!(FINETUNE, r"(?i)\A(?:chat|instruct|vision|lora)\z");
pattern!(DECIMAL, r"\A\p{Nd}\z");
pattern!(LETTER, r"\A\p{L}\z");
pattern!(NO_TITLE, r"\A(?:v\d+(?:\.\d+)*|\d.*)\z");

fn matches(pattern: &Regex, c: char) -> bool {
    pattern.is_match(c.encode_utf8(&mut [0; 4]))
}

fn is_decimal(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && matches(&DECIMAL, c))
}

fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || (!c.is_ascii() && matches(&LETTER, c))
}

/// Parses an id. A size very different from the file's is taken for a context length.
pub(crate) fn id_parts(id: &str, extent: Extent) -> IdParts {
    if id.contains(' ') {
        // A sentence is a name without parts.
        return IdParts {
            full_name: Some(id.to_owned()),
            ..IdParts::default()
        };
    }
    let (organization, full_name) = match id.split_once('/') {
        Some((organization, name)) => (Some(organization), name),
        None => (None, id),
    };
    // "./name" has no organization.
    let organization = organization
        .filter(|o| !o.starts_with('.'))
        .map(str::to_owned);
    let mut parts: Vec<(String, Marks)> = full_name
        .split('-')
        .filter(|p| !p.is_empty())
        .map(|p| (p.to_owned(), Marks::default()))
        .collect();
    for (i, (part, marks)) in parts.iter_mut().enumerate() {
        if VERSION.is_match(part) {
            marks.version = true;
        } else if ENCODING.is_match(part) {
            marks.encoding = true;
            *part = part.to_uppercase();
        } else if i > 0 && SIZE.is_match(part) {
            let (label, is_context) = size_label_of(part, extent);
            *part = label;
            marks.finetune = is_context;
            marks.size = !is_context;
        } else if i > 0 && FINETUNE.is_match(part) {
            // The kind of an adapter's file is LoRA already.
            let is_kind = matches!(extent, Extent::Adapter(_)) && part.eq_ignore_ascii_case("lora");
            marks.encoding = is_kind;
            marks.finetune = !is_kind;
        }
    }
    // Words like "mini" are redundant beside a number.
    if parts
        .iter()
        .any(|(part, marks)| marks.size && part.chars().any(is_decimal))
    {
        for (part, marks) in parts.iter_mut() {
            marks.size &= !part.chars().all(is_letter);
        }
    }
    mark_basename(&mut parts);
    let joined = |has_mark: &dyn Fn(Marks) -> bool| {
        let marked: Vec<&str> = parts
            .iter()
            .filter(|(_, m)| has_mark(*m))
            .map(|(p, _)| p.as_str())
            .collect();
        Some(marked.join("-")).filter(|joined| !joined.is_empty())
    };
    let mut sizes: Vec<&str> = Vec::new();
    for (part, _) in parts.iter().filter(|(_, m)| m.size) {
        if !sizes.contains(&part.as_str()) {
            sizes.push(part);
        }
    }
    let size_label = Some(sizes.join("-")).filter(|s| !s.is_empty());
    let finetune = joined(&|m| m.finetune);
    let version = joined(&|m| m.version && !m.basename);
    // A name without recognized parts may be anything.
    let understood = size_label.is_some() || finetune.is_some() || version.is_some();
    let basename = joined(&|m| m.basename).filter(|_| understood);
    IdParts {
        full_name: Some(full_name.to_owned()),
        organization,
        basename,
        finetune,
        version,
        size_label,
    }
}

/// A size as written in a label, and true if it is more likely a context length.
fn size_label_of(part: &str, extent: Extent) -> (String, bool) {
    let mut chars: Vec<char> = part.replace('_', ".").chars().collect();
    // "7b1" is "7.1B".
    if let [.., unit, digit] = chars[..]
        && is_decimal(digit)
    {
        chars.truncate(chars.len() - 2);
        chars.extend(['.', digit, unit]);
    }
    let Some((unit, number)) = chars.split_last_mut() else {
        return (String::new(), false);
    };
    if number.last().is_some_and(|&c| is_decimal(c)) && "kmbt".contains(*unit) {
        unit.make_ascii_uppercase();
    }
    let mut is_context = false;
    let number: String = number.iter().collect();
    if let Ok(value) = number.parse::<f64>() {
        let thousands = " KMBT".find(*unit).map_or(-1, |power| power as i32);
        if extent.contradicts(value * 1000f64.powi(thousands)) {
            is_context = true;
            *unit = unit.to_lowercase().next().unwrap_or(*unit);
        }
    }
    (format!("{number}{unit}"), is_context)
}

/// The basename extends from the start to the first recognized part; versions may occur in it, not
/// at its end. Unrecognized parts after it are a finetune.
fn mark_basename(parts: &mut [(String, Marks)]) {
    let mut at_start = true;
    for (part, marks) in parts.iter_mut() {
        let begins_with_letter = part.chars().next().is_some_and(is_letter);
        if at_start && ((marks.none() && begins_with_letter) || marks.version) {
            marks.basename = true;
        } else {
            at_start = false;
            if marks.none() {
                marks.finetune = true;
            }
        }
    }
    for (_, marks) in parts.iter_mut().rev() {
        if !(marks.basename && marks.count() > 1) {
            break;
        }
        marks.basename = false;
    }
}

/// A display name: capitalized words, except those with capitals already, numbers and versions.
pub(crate) fn title(id: &str) -> String {
    let word = |word: &str| {
        let lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        if lower && !NO_TITLE.is_match(word) {
            title_case(word)
        } else {
            word.to_owned()
        }
    };
    id.replace('-', " ")
        .split_whitespace()
        .map(word)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Python's `str.title`: capitalizes every letter without a letter before it.
fn title_case(word: &str) -> String {
    let mut after_letter = false;
    let mut out = String::with_capacity(word.len());
    for c in word.chars() {
        if after_letter {
            out.extend(c.to_lowercase());
        } else {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase));
        }
        after_letter = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// A number of weights as text: at least two digits, `1.1B`, `70B`, `540K`.
pub(crate) fn rounded(weights: u64) -> String {
    const DIGITS: usize = 2;
    let (scale, unit) = match weights {
        w if w > 1_000_000_000_000 => (1e-12, 'T'),
        w if w > 1_000_000_000 => (1e-9, 'B'),
        w if w > 1_000_000 => (1e-6, 'M'),
        _ => (1e-3, 'K'),
    };
    let scaled = weights as f64 * scale;
    let whole = scaled.round_ties_even();
    let digits = if whole == 0.0 {
        0
    } else {
        format!("{whole}").len()
    };
    format!("{scaled:.0$}{unit}", DIGITS.saturating_sub(digits))
}

/// The size label of a model: all weights, or for a mixture of experts, the number of experts and
/// the weights of one expert plus the shared ones.
pub(crate) fn size_label(total: u64, shared: u64, expert: u64, experts: u64) -> String {
    if experts > 0 {
        format!("{experts}x{}", rounded(shared.saturating_add(expert)))
    } else {
        rounded(total)
    }
}

/// The parts of a file's name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FileName<'a> {
    /// The model's name, used without a basename.
    pub name: Option<&'a str>,
    /// The model family.
    pub basename: Option<&'a str>,
    /// The purpose of the finetune.
    pub finetune: Option<&'a str>,
    /// The version.
    pub version: Option<&'a str>,
    /// The number of weights as text.
    pub size_label: Option<&'a str>,
    /// The type of most tensors, for example `F16`.
    pub encoding: Option<&'a str>,
    /// `vocab` for a file without tensors, `LoRA` for an adapter.
    pub kind: Option<&'a str>,
}

impl FileName<'_> {
    /// The file's name without `.gguf`, after GGUF's naming convention.
    pub(crate) fn stem(&self) -> String {
        let joined = |text: &str| text.trim().replace(' ', "-");
        let base = self
            .basename
            .or(self.name)
            .map_or("ggml-model".to_owned(), |name| {
                joined(name).replace('/', "-")
            });
        let mut stem = base;
        let rest = [
            self.size_label.map(str::to_owned),
            self.finetune.map(joined),
            self.version.map(joined),
            self.encoding.map(|e| joined(e).to_uppercase()),
            self.kind.map(joined),
        ];
        rest.into_iter()
            .flatten()
            .for_each(|part| stem += &format!("-{part}"));
        stem
    }
}

/// Fills the type into a file name: `{ftype}` or `{outtype}` in lower case, `{FTYPE}` or
/// `{OUTTYPE}` in upper case. `{{` and `}}` are literal braces.
///
/// # Errors
/// An unknown field or a lone brace.
pub(crate) fn fill_template(name: &str, encoding: &str) -> Result<String, String> {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find(['{', '}']) {
        out += &rest[..at];
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
            out += &rest[..1];
            rest = after;
            continue;
        }
        let (field, after) = rest
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'))
            .ok_or_else(|| {
                format!("{name:?} has a lone brace; write {{{{ or }}}} for one that is meant")
            })?;
        out += &match field {
            "" | "0" | "ftype" | "outtype" => encoding.to_lowercase(),
            "FTYPE" | "OUTTYPE" => encoding.to_uppercase(),
            other => {
                return Err(format!(
                    "{name:?}: {{{other}}} is not known; {{ftype}} and {{FTYPE}} are"
                ));
            }
        };
        rest = after;
    }
    Ok(out + rest)
}
