//! Checks `tokenizer.json` for the tokenizers library, which trusts its files: refuses files that
//! make it panic, loop or allocate without bound, and other models than expected.

use super::MAX_TOKENS;
use super::files::kind;
use super::hf::Model;
use serde_json::{Map, Value};

/// Supported parts of `normalizer`, `pre_tokenizer`, `post_processor` and `decoder`.
const KNOWN: [(&str, &[&str]); 4] = [
    (
        "normalizer",
        &[
            "Sequence",
            "NFC",
            "NFD",
            "NFKC",
            "NFKD",
            "Nmt",
            "Lowercase",
            "Strip",
            "StripAccents",
            "Replace",
            "Prepend",
            "BertNormalizer",
            "ByteLevel",
        ],
    ),
    (
        "pre_tokenizer",
        &[
            "Sequence",
            "Split",
            "ByteLevel",
            "Digits",
            "Punctuation",
            "Metaspace",
            "Whitespace",
            "WhitespaceSplit",
            "BertPreTokenizer",
            "CharDelimiterSplit",
            "UnicodeScripts",
        ],
    ),
    (
        "post_processor",
        &[
            "Sequence",
            "ByteLevel",
            "TemplateProcessing",
            "RobertaProcessing",
            "BertProcessing",
        ],
    ),
    (
        "decoder",
        &[
            "Sequence",
            "ByteLevel",
            "Replace",
            "ByteFallback",
            "Fuse",
            "Strip",
            "Metaspace",
            "BPEDecoder",
            "WordPiece",
        ],
    ),
];
/// Fields with the parts of a sequence.
const PARTS: [&str; 4] = ["normalizers", "pretokenizers", "processors", "decoders"];
/// Maximum number of parts of a field; real ones have about ten.
const MAX_PARTS: usize = 64;
/// Maximum growth factor of a text in a field: the product over its parts.
const MAX_GROWTH: usize = 1024;
/// Maximum number of bytes that a part prepends.
const MAX_PREPENDED: usize = 64;
/// Maximum total length of the patterns in bytes; the longest real one has about 600.
const MAX_PATTERNS: usize = 8192;
/// Maximum number of regular expressions: the library lets each backtrack a million times. Real
/// files have up to seven.
const MAX_REGEXES: usize = 16;
/// Maximum sum of counted repetitions such as `{1,3}`: each copies a part of the compiled pattern.
const MAX_REPEATED: usize = 256;
/// Maximum number of slots of a template, and of ids of a special token.
const MAX_SLOTS: usize = 64;
/// Maximum length of an added token in bytes: it is encoded as a text.
pub(super) const MAX_ADDED: usize = 1024;

/// Refuses files that the library cannot handle.
pub(super) fn check(json: &Map<String, Value>, model: Model) -> Result<(), String> {
    let mut patterns = Patterns::default();
    for (field, known) in KNOWN {
        let mut found = Vec::new();
        parts(
            field,
            known,
            json.get(field).unwrap_or(&Value::Null),
            &mut found,
        )?;
        let mut growth = 1usize;
        for part in found {
            check_part(field, part)?;
            patterns.add(part)?;
            growth = growth.saturating_mul(growth_of(field, part));
        }
        if growth > MAX_GROWTH {
            return Err(format!(
                "its {field} makes a text more than {MAX_GROWTH} times longer"
            ));
        }
    }
    check_model(json.get("model").ok_or("it has no model")?, model)?;
    match json.get("added_tokens") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(added)) => added.iter().try_for_each(check_added),
        Some(other) => Err(format!("added_tokens is {}, not an array", kind(other))),
    }
}

/// Collects the parts of a field, with those of nested sequences.
fn parts<'a>(
    field: &str,
    known: &[&str],
    part: &'a Value,
    found: &mut Vec<&'a Value>,
) -> Result<(), String> {
    if part.is_null() {
        return Ok(());
    }
    let name = part
        .get("type")
        .and_then(Value::as_str)
        .ok_or_else(|| format!("the {field} has no type"))?;
    if !known.contains(&name) {
        return Err(format!(
            "the {field} {name} is not one that tokenizers of language models use"
        ));
    }
    if found.len() == MAX_PARTS {
        return Err(format!("the {field} has more than {MAX_PARTS} parts"));
    }
    found.push(part);
    let inner = PARTS
        .iter()
        .filter_map(|parts| part.get(*parts)?.as_array())
        .flatten();
    inner
        .into_iter()
        .try_for_each(|part| parts(field, known, part, found))
}

fn check_part(field: &str, part: &Value) -> Result<(), String> {
    match part.get("type").and_then(Value::as_str) {
        Some("TemplateProcessing") => check_template(part),
        Some("Prepend") if text(part, "prepend").len() > MAX_PREPENDED => Err(format!(
            "the {field} prepends more than {MAX_PREPENDED} bytes to a text"
        )),
        _ => Ok(()),
    }
}

fn text<'a>(part: &'a Value, name: &str) -> &'a str {
    part.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Growth factor of a text in a part, excluding additions of constant length and Unicode
/// normalization, whose growth is bounded.
fn growth_of(field: &str, part: &Value) -> usize {
    match (field, text(part, "type")) {
        (_, "Replace") => {
            let content = text(part, "content").len();
            match part
                .get("pattern")
                .map_or("", |pattern| text(pattern, "String"))
            {
                // A pattern may match the empty string between any two characters.
                "" => content + 1,
                string => content.div_ceil(string.len()).max(1),
            }
        }
        // Two bytes of UTF-8 per byte, or U+FFFD in three for an invalid one.
        ("decoder", "ByteLevel") => 3,
        (_, "ByteLevel" | "BertNormalizer" | "BPEDecoder") => 2,
        (_, "Metaspace") => text(part, "replacement").len().max(1),
        _ => 1,
    }
}

/// Totals over the patterns of a file: the library compiles them without a limit.
#[derive(Default)]
struct Patterns {
    regexes: usize,
    bytes: usize,
    repeated: usize,
}

impl Patterns {
    fn add(&mut self, part: &Value) -> Result<(), String> {
        let Some(pattern) = part.get("pattern") else {
            return Ok(());
        };
        let regex = text(pattern, "Regex");
        self.regexes += usize::from(!regex.is_empty());
        self.bytes += regex.len() + text(pattern, "String").len();
        // Braces enclose a name (`\p{Lu}`) or a count.
        let counts = regex
            .split('{')
            .skip(1)
            .filter_map(|rest| rest.split_once('}'))
            .flat_map(|(in_braces, _)| {
                in_braces
                    .split(',')
                    .filter_map(|number| number.trim().parse().ok())
                    .collect::<Vec<usize>>()
            });
        self.repeated = counts.fold(self.repeated, usize::saturating_add);
        if self.regexes > MAX_REGEXES {
            return Err(format!(
                "it has more than {MAX_REGEXES} regular expressions"
            ));
        }
        if self.bytes > MAX_PATTERNS {
            return Err(format!("its patterns have more than {MAX_PATTERNS} bytes"));
        }
        if self.repeated > MAX_REPEATED {
            return Err(format!(
                "the counted repetitions of its patterns add up to more than {MAX_REPEATED}"
            ));
        }
        Ok(())
    }
}

/// A template may contain the text once, and all its special tokens must have ids.
fn check_template(part: &Value) -> Result<(), String> {
    let slots = |name| {
        part.get(name)
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice)
    };
    let (single, pair) = (slots("single"), slots("pair"));
    if single
        .iter()
        .filter(|slot| slot.get("Sequence").is_some())
        .count()
        > 1
    {
        return Err("the post_processor repeats the text".to_owned());
    }
    if single.len() > MAX_SLOTS || pair.len() > MAX_SLOTS {
        return Err(format!(
            "a template of the post_processor has more than {MAX_SLOTS} slots"
        ));
    }
    let special = |token: &str| {
        part.get("special_tokens")
            .and_then(|tokens| tokens.get(token))
    };
    for slot in single.iter().chain(pair) {
        let Some(token) = slot.get("SpecialToken").and_then(|s| s.get("id")?.as_str()) else {
            continue;
        };
        let Some(special) = special(token) else {
            return Err(format!(
                "the post_processor adds {token:?}, which is not among its special_tokens"
            ));
        };
        if special
            .get("ids")
            .and_then(Value::as_array)
            .is_some_and(|ids| ids.len() > MAX_SLOTS)
        {
            return Err(format!(
                "the post_processor's {token:?} has more than {MAX_SLOTS} ids"
            ));
        }
    }
    Ok(())
}

fn check_added(entry: &Value) -> Result<(), String> {
    let content = text(entry, "content");
    match content.len() > MAX_ADDED {
        true => Err(format!(
            "an added token has {} bytes; the limit is {MAX_ADDED}",
            content.len()
        )),
        false => Ok(()),
    }
}

fn check_model(model: &Value, expected: Model) -> Result<(), String> {
    let name = match expected {
        Model::BytePairs => "BPE",
        Model::WordPiece => "WordPiece",
        Model::Unigram => "Unigram",
    };
    // Old files have merges but no type.
    match model.get("type").and_then(Value::as_str) {
        Some(other) if other == name => {}
        None if expected == Model::BytePairs && model.get("merges").is_some() => {}
        other => {
            let other = other.unwrap_or("without a name");
            return Err(match expected {
                Model::BytePairs => {
                    format!("its model is {other}; only BPE (byte-pair encoding) can be converted")
                }
                _ => format!("its model is {other}; models of this class have {name}"),
            });
        }
    }
    if expected == Model::Unigram {
        return check_pieces(model);
    }
    let vocab = match model.get("vocab") {
        Some(Value::Object(vocab)) => vocab,
        Some(other) => return Err(format!("its vocabulary is {}, not an object", kind(other))),
        None => return Err("its model has no vocab".to_owned()),
    };
    if vocab.len() > MAX_TOKENS {
        return Err(format!(
            "its vocabulary has {} tokens; the limit is {MAX_TOKENS}",
            vocab.len()
        ));
    }
    for (token, id) in vocab {
        match id.as_u64() {
            None => {
                return Err(format!(
                    "the id of token {token:?} is not a whole number from 0 up"
                ));
            }
            Some(id) if id >= MAX_TOKENS as u64 => {
                return Err(format!(
                    "token {token:?} has the id {id}; the largest allowed is {}",
                    MAX_TOKENS - 1
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// A list of texts and scores.
fn check_pieces(model: &Value) -> Result<(), String> {
    let pieces = match model.get("vocab") {
        Some(Value::Array(pieces)) => pieces,
        Some(other) => return Err(format!("its vocabulary is {}, not an array", kind(other))),
        None => return Err("its model has no vocab".to_owned()),
    };
    if pieces.len() > MAX_TOKENS {
        return Err(format!(
            "its vocabulary has {} tokens; the limit is {MAX_TOKENS}",
            pieces.len()
        ));
    }
    let is_piece = |piece: &Value| matches!(piece.as_array().map(Vec::as_slice), Some([text, score]) if text.is_string() && score.is_number());
    match pieces.iter().position(|piece| !is_piece(piece)) {
        Some(at) => Err(format!(
            "token {at} of its vocabulary is not a text and a score"
        )),
        None => Ok(()),
    }
}
