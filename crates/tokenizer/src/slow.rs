//! `vocab.json` and `merges.txt`, or `vocab.txt`, without a `tokenizer.json`, as read by transformers.
//!
//! ```text
//! vocab.json   an object: token -> id
//! merges.txt   a line per merge: two tokens, in the order of their ranks; a header
//! vocab.txt    a line per token of a WordPiece vocabulary, in the order of their ids
//! ```
//!
//! The class of the tokenizer determines normalization and splits. The result is a `tokenizer.json`
//! without added tokens; those of the other files are added later.

use super::class::Class;
use super::files::{Files, bad, read_object, read_text};
use quantier_gguf::Result;
use serde_json::{Map, Value, json};
use std::collections::HashSet;

const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Ways to read the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slow {
    /// The first line of the merges is a header, whatever its contents, and so is the text after
    /// the last line break.
    Gpt2,
    /// The header begins with "#version:"; text is composed (NFC) and split by Qwen2's pattern.
    Qwen2,
}

/// A `tokenizer.json` for a checkpoint without one.
pub(super) fn tokenizer(files: &Files, class: &Class) -> Result<Map<String, Value>> {
    let (vocab_path, merges_path) = (files.dir.join(VOCAB), files.dir.join(MERGES));
    if !vocab_path.is_file() {
        return Err(bad(
            &files.dir,
            "no tokenizer.json; get it from the model's source, or save one with transformers",
        ));
    }
    let slow = class.slow().ok_or_else(|| {
        let what = format!(
            "{VOCAB} without a tokenizer.json, and {} is no class of tokenizers that reads it; get the tokenizer.json \
             from the model's source, or name a tokenizer_class such as GPT2Tokenizer in tokenizer_config.json",
            class.name()
        );
        bad(&files.dir, what)
    })?;
    let vocab = read_object(&vocab_path)?.unwrap_or_default();
    let text = read_text(&merges_path)?.ok_or_else(|| {
        let what = format!("no {MERGES} beside {VOCAB}; download it from the model's source");
        bad(&files.dir, what)
    })?;
    let merges = merges(&text, slow).map_err(|what| bad(&merges_path, what))?;
    let byte_level = |use_regex| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let (normalizer, pre_tokenizer) = match slow {
        Slow::Gpt2 => (Value::Null, byte_level(true)),
        Slow::Qwen2 => {
            let split = json!({ "type": "Split", "pattern": { "Regex": QWEN2 }, "behavior": "Isolated", "invert": false });
            let steps = json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] });
            (json!({ "type": "NFC" }), steps)
        }
    };
    let whole = json!({
        "version": "1.0", "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": byte_level(true),
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges }
    });
    match whole {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

/// A `tokenizer.json` of a `vocab.txt`, with these special tokens before and behind a text.
pub(super) fn word_piece(files: &Files, bounds: [Option<&str>; 2]) -> Result<Map<String, Value>> {
    const FILE: &str = "vocab.txt";
    let path = files.dir.join(FILE);
    let text = read_text(&path)?.ok_or_else(|| {
        let what =
            format!("neither tokenizer.json nor {FILE}; download one from the model's source");
        bad(&files.dir, what)
    })?;
    let mut vocab = Map::new();
    for (id, token) in text
        .strip_suffix('\n')
        .unwrap_or(&text)
        .split('\n')
        .enumerate()
    {
        vocab.insert(token.to_owned(), id.into());
    }
    let [first, last] = bounds.map(|token| {
        let token = token.unwrap_or_default();
        let id = vocab.get(token).cloned().ok_or_else(|| {
            bad(
                &path,
                format!("it lacks the token {token:?}, which stands before or behind every text"),
            )
        })?;
        Ok::<_, quantier_gguf::Error>((token, id))
    });
    let (first, last) = (first?, last?);
    let slot = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let part = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let named = |(token, id): &(&str, Value)| {
        let entry = json!({ "id": token, "ids": [id], "tokens": [token] });
        ((*token).to_owned(), entry)
    };
    let special: Map<String, Value> = [&first, &last].into_iter().map(named).collect();
    let (first, last) = (slot(first.0), slot(last.0));
    let (a, b) = (part("A"), part("B"));
    let whole = json!({
        "version": "1.0", "added_tokens": [],
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "TemplateProcessing", "single": [first, a, last],
            "pair": [first, a, last, b, last], "special_tokens": special },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab }
    });
    match whole {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

/// The merges of a file; the first of equal ones.
fn merges(text: &str, slow: Slow) -> std::result::Result<Vec<Value>, String> {
    let mut lines: Vec<(usize, &str)> = (1..).zip(text.split('\n')).collect();
    match slow {
        Slow::Gpt2 => {
            lines.pop();
            lines.drain(..lines.len().min(1));
        }
        Slow::Qwen2 => lines.retain(|(number, line)| {
            let line = line.trim();
            !(line.is_empty() || *number == 1 && line.starts_with("#version:"))
        }),
    }
    let mut seen = HashSet::new();
    let mut merges = Vec::with_capacity(lines.len());
    for (number, line) in lines {
        let mut parts = line.split_whitespace();
        let (Some(left), Some(right), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(format!(
                "line {number} is not two tokens with a space between"
            ));
        };
        if seen.insert((left, right)) {
            merges.push(json!([left, right]));
        }
    }
    Ok(merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_ends_match_the_classes() {
        let text = "#version: 0.2\na b\nab c\na b\n";
        for slow in [Slow::Gpt2, Slow::Qwen2] {
            assert_eq!(
                merges(text, slow).unwrap(),
                [json!(["a", "b"]), json!(["ab", "c"])]
            );
        }
        // Without a header, GPT-2's class loses the first merge, and without a final line break the
        // last.
        assert_eq!(
            merges("a b\nc d\ne f", Slow::Gpt2).unwrap(),
            [json!(["c", "d"])]
        );
        assert_eq!(merges("a b\n\nc d", Slow::Qwen2).unwrap().len(), 2);
        for (text, slow) in [
            ("h\na\n", Slow::Gpt2),
            ("h\n\n\n", Slow::Gpt2),
            ("a b c", Slow::Qwen2),
        ] {
            let error = merges(text, slow).unwrap_err();
            assert!(error.contains("is not two tokens"), "{error}");
        }
        assert_eq!(merges("", Slow::Gpt2), Ok(Vec::new()));
    }
}
