//! The keys of the configuration file: a table of flags.

use quantier_allocate::frontier::{Budget, Constraints};
use toml::de::DeValue;

/// The type of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Texts,
    Path,
    Paths,
    Whole,
    Numbers,
    Flag,
}

impl Kind {
    pub fn words(self) -> &'static str {
        match self {
            Kind::Text => "a string",
            Kind::Texts => "a string or a list of strings",
            Kind::Path => "a path in quotes",
            Kind::Paths => "a path in quotes or a list of paths",
            Kind::Whole => "a whole number",
            Kind::Numbers => "a number or a list of numbers",
            Kind::Flag => "true or false",
        }
    }

    /// The values as command-line arguments; `None` if the type is wrong.
    pub fn typed(self, value: &DeValue<'_>) -> Option<Vec<String>> {
        let list = |one: &dyn Fn(&DeValue<'_>) -> Option<String>| match value {
            DeValue::Array(all) => all.iter().map(|value| one(value.get_ref())).collect(),
            value => Some(vec![one(value)?]),
        };
        let text = |value: &DeValue<'_>| value.as_str().map(str::to_owned);
        match self {
            Kind::Text | Kind::Path => Some(vec![text(value)?]),
            Kind::Texts | Kind::Paths => list(&text),
            Kind::Whole => Some(vec![whole(value)?.to_string()]),
            Kind::Numbers => list(&|value| match value {
                DeValue::Float(float) => Some(float.as_str().to_owned()),
                value => whole(value).map(|number| number.to_string()),
            }),
            Kind::Flag => Some(value.as_bool()?.then(String::new).into_iter().collect()),
        }
    }
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A key of the file: a flag's long name.
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// The value in the sample file.
    pub example: &'static str,
    /// Checks beyond those of the flag's own parser.
    pub check: fn(&str) -> Result<(), String>,
}

const fn key(name: &'static str, kind: Kind, example: &'static str) -> Key {
    Key {
        name,
        kind,
        example,
        check: |_| Ok(()),
    }
}

/// A section of the file with the commands that it applies to.
pub struct Section {
    pub name: &'static str,
    pub commands: &'static [&'static str],
    pub keys: &'static [Key],
}

pub const SECTIONS: [Section; 2] = [
    Section {
        name: "make",
        commands: &["make", "frontier"],
        keys: &[
            key("file", Kind::Paths, r#"["texts/calibration.txt"]"#),
            key("eval", Kind::Paths, r#"["texts/held-out.txt"]"#),
            key("variants", Kind::Whole, "8"),
            Key {
                check: |text| Budget::bpw(text).map(drop),
                ..key("bpw", Kind::Numbers, "[3.5, 4.25]")
            },
            Key {
                check: |text| Budget::like(text).map(drop),
                ..key("like", Kind::Texts, r#"["Q4_K_M", "Q5_K_M"]"#)
            },
            key("compare", Kind::Texts, r#"["Q4_K_M"]"#),
            Key {
                check: |text| Constraints::default().types(text),
                ..key("types", Kind::Texts, r#""k""#)
            },
            Key {
                check: |text| Constraints::default().pin(text),
                ..key("pin", Kind::Texts, r#"["token_embd=q8_0"]"#)
            },
            Key {
                check: |text| Constraints::default().min(text),
                ..key("min", Kind::Texts, r#"["output=q6_K"]"#)
            },
            Key {
                check: |text| Constraints::default().max(text),
                ..key("max", Kind::Texts, r#"["q6_K"]"#)
            },
            key("refine", Kind::Whole, "6"),
            key("ctx-size", Kind::Whole, "512"),
            key("score-chunks", Kind::Whole, "24"),
            key("score-rows", Kind::Whole, "256"),
            key("eval-chunks", Kind::Whole, "100"),
            key("draws", Kind::Whole, "2"),
            key("seed", Kind::Whole, "1"),
            key("threads", Kind::Whole, "8"),
            key("max-memory", Kind::Whole, "16384"),
        ],
    },
    Section {
        name: "publish",
        commands: &["publish", "make"],
        keys: &[
            key("quantized-by", Kind::Text, r#""me""#),
            Key {
                check: super::publish::check_repo,
                ..key("repo", Kind::Text, r#""me/{name}-GGUF""#)
            },
            key("license", Kind::Text, r#""apache-2.0""#),
            Key {
                check: super::publish::check_word,
                ..key("language", Kind::Texts, r#"["en"]"#)
            },
            Key {
                check: super::publish::check_word,
                ..key("tag", Kind::Texts, r#"["conversational"]"#)
            },
            key("template", Kind::Path, r#""card.md""#),
            key("copy", Kind::Flag, "true"),
        ],
    },
];
