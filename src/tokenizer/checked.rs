//! `tokenizer.json` before the tokenizers library gets it: the library trusts its files, so what would make it panic,
//! loop or allocate without bound is refused here, and so is every kind of tokenizer but byte-pair encoding.

use super::MAX_TOKENS;
use super::files::kind;
use serde_json::{Map, Value};

/// The parts that may stand in `normalizer`, `pre_tokenizer`, `post_processor` and `decoder`.
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
    ("post_processor", &["Sequence", "ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing"]),
    ("decoder", &["Sequence", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "BPEDecoder"]),
];
/// The fields in which a sequence has its parts.
const PARTS: [&str; 4] = ["normalizers", "pretokenizers", "processors", "decoders"];

/// Refuses what the library should not see.
pub(super) fn check(json: &Map<String, Value>) -> Result<(), String> {
    for (field, known) in KNOWN {
        check_part(field, known, json.get(field).unwrap_or(&Value::Null))?;
    }
    check_model(json.get("model").ok_or("it has no model")?)?;
    match json.get("added_tokens") {
        None | Some(Value::Null | Value::Array(_)) => Ok(()),
        Some(other) => Err(format!("added_tokens is {}, not an array", kind(other))),
    }
}

fn check_part(field: &str, known: &[&str], part: &Value) -> Result<(), String> {
    if part.is_null() {
        return Ok(());
    }
    let name = part.get("type").and_then(Value::as_str).ok_or_else(|| format!("the {field} has no type"))?;
    if !known.contains(&name) {
        return Err(format!("the {field} {name} is not one that byte-pair encoders of language models use"));
    }
    if name == "TemplateProcessing" {
        check_template(part)?;
    }
    let parts = PARTS.iter().filter_map(|parts| part.get(*parts)?.as_array()).flatten();
    parts.into_iter().try_for_each(|part| check_part(field, known, part))
}

/// Every special token of a template must have its ids.
fn check_template(part: &Value) -> Result<(), String> {
    let slots = ["single", "pair"].iter().filter_map(|name| part.get(*name)?.as_array()).flatten();
    for slot in slots {
        if let Some(token) = slot.get("SpecialToken").and_then(|s| s.get("id")?.as_str())
            && part.get("special_tokens").and_then(|tokens| tokens.get(token)).is_none()
        {
            return Err(format!("the post_processor adds {token:?}, which is not among its special_tokens"));
        }
    }
    Ok(())
}

fn check_model(model: &Value) -> Result<(), String> {
    // Old files do not name the type; merges say it.
    match model.get("type").and_then(Value::as_str) {
        Some("BPE") => {}
        None if model.get("merges").is_some() => {}
        other => {
            let other = other.unwrap_or("without a name");
            return Err(format!("its model is {other}; only BPE (byte-pair encoding) can be converted"));
        }
    }
    let vocab = match model.get("vocab") {
        Some(Value::Object(vocab)) => vocab,
        Some(other) => return Err(format!("its vocabulary is {}, not an object", kind(other))),
        None => return Err("its model has no vocab".to_owned()),
    };
    if vocab.len() > MAX_TOKENS {
        return Err(format!("its vocabulary has {} tokens; the most that is taken is {MAX_TOKENS}", vocab.len()));
    }
    for (token, id) in vocab {
        match id.as_u64() {
            None => return Err(format!("the id of token {token:?} is not a whole number from 0 up")),
            Some(id) if id >= MAX_TOKENS as u64 => {
                return Err(format!(
                    "token {token:?} has the id {id}; the largest that is taken is {}",
                    MAX_TOKENS - 1
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
