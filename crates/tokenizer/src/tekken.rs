//! Mistral's own vocabularies: `tekken.json`, or `tokenizer.model.vN`.
//!
//! ```text
//! config           version, default_vocab_size, default_num_special_tokens
//! vocab            per token: rank, and token_bytes in base64; the first 256 are the bytes
//! special_tokens   per token: rank, token_str; their ids come first
//! ```
//!
//! A token is the result of every split into two tokens; the ranks of the parts determine the order
//! of these merges.

use super::encode::bytes;
use super::files::{Files, bad, kind, read_object, read_text};
use super::spm::{self, Model};
use super::tiktoken::Ranks;
use super::token::{self, Scores, Token, TokenType};
use super::{Import, MAX_TOKENS};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quantier_gguf::Result;
use quantier_gguf::gguf::Value as Gguf;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::PathBuf;

pub(super) const FILE: &str = "tekken.json";
/// Number of single-byte tokens, whose ranks are the bytes.
const BYTES: usize = 256;
/// Maximum total length of all merges in bytes; real files have about three million.
const MAX_MERGES: usize = 1 << 28;
/// Versions of the format; from 11 on, a file lists its special tokens.
const VERSIONS: [&str; 7] = ["v1", "v2", "v3", "v7", "v11", "v13", "v15"];
/// Special tokens of a file without a list of them.
const SPECIAL: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// A vocabulary with the texts of its roles.
struct Mistral {
    tokens: Vec<Token>,
    version: &'static str,
    /// Merges; `None` for SentencePiece.
    merges: Option<Vec<String>>,
    /// Ids of the BOS, EOS, unknown and padding tokens.
    roles: [u32; 4],
}

type Parsed<T> = std::result::Result<T, String>;

/// Reads a `tekken.json`.
fn parse(json: &Map<String, Value>) -> Parsed<Mistral> {
    let config = json.get("config").ok_or("it has no config")?;
    let number = |name: &str| {
        let number = config.get(name).and_then(Value::as_u64);
        let number = number.and_then(|n| usize::try_from(n).ok());
        number
            .filter(|&n| n <= MAX_TOKENS)
            .ok_or_else(|| format!("config.{name} is not a number up to {MAX_TOKENS}"))
    };
    let version = config.get("version").and_then(Value::as_str);
    let version = VERSIONS
        .into_iter()
        .find(|v| Some(*v) == version)
        .ok_or_else(|| {
            format!(
                "config.version is not one of {}; update quantier",
                VERSIONS.join(", ")
            )
        })?;
    let (size, count) = (
        number("default_vocab_size")?,
        number("default_num_special_tokens")?,
    );
    let own = size
        .checked_sub(count)
        .ok_or("config has more special tokens than tokens")?;
    let mut tokens = special(json.get("special_tokens"), version, count)?;
    let ranks = ranks(json.get("vocab"), own)?;
    let role = |text: &str| {
        let id = tokens.iter().position(|t| t.text == text);
        id.map(|id| id as u32)
            .ok_or_else(|| format!("it has no special token {text:?}"))
    };
    let roles = [role("<s>")?, role("</s>")?, role("<unk>")?, role("<pad>")?];
    let merges = merges(&ranks)?;
    tokens.extend(ranks.tokens().iter().map(|bytes| Token {
        text: bytes::encode(bytes),
        score: 0.0,
        token_type: TokenType::Normal,
    }));
    Ok(Mistral {
        tokens,
        version,
        merges: Some(merges),
        roles,
    })
}

/// Special tokens, padded to their number.
fn special(listed: Option<&Value>, version: &str, count: usize) -> Parsed<Vec<Token>> {
    let mut texts: Vec<String> = match listed {
        Some(Value::Array(entries)) => entries
            .iter()
            .enumerate()
            .map(|(at, entry)| {
                let text = entry.get("token_str").and_then(Value::as_str);
                let rank = entry.get("rank").and_then(Value::as_u64);
                match (text, rank) {
                    (Some(text), Some(rank)) if rank == at as u64 => Ok(text.to_owned()),
                    _ => Err(format!(
                        "special token {at} has no token_str, or another rank than {at}"
                    )),
                }
            })
            .collect::<Parsed<_>>()?,
        None | Some(Value::Null) if matches!(version, "v1" | "v2" | "v3" | "v7") => {
            SPECIAL.map(str::to_owned).to_vec()
        }
        None | Some(Value::Null) => {
            return Err(format!(
                "it has no special_tokens, which version {version} must have"
            ));
        }
        Some(other) => return Err(format!("special_tokens is {}, not an array", kind(other))),
    };
    if texts.len() > count {
        return Err(format!(
            "it has {} special tokens, but config says {count}",
            texts.len()
        ));
    }
    texts.extend((texts.len()..count).map(|id| format!("<SPECIAL_{id}>")));
    let mut seen = HashSet::new();
    if let Some(twice) = texts.iter().find(|text| !seen.insert(text.as_str())) {
        return Err(format!("the special token {twice:?} appears twice"));
    }
    let token = |text| Token {
        text,
        score: 0.0,
        token_type: TokenType::Control,
    };
    Ok(texts.into_iter().map(token).collect())
}

/// The first `count` tokens of the vocabulary.
fn ranks(vocab: Option<&Value>, count: usize) -> Parsed<Ranks> {
    let vocab = vocab
        .and_then(Value::as_array)
        .ok_or("it has no array vocab")?;
    let entries = vocab.get(..count).ok_or_else(|| {
        format!(
            "its vocab has {} tokens, but config requires {count}",
            vocab.len()
        )
    })?;
    let token = |(at, entry): (usize, &Value)| {
        let bytes = entry.get("token_bytes").and_then(Value::as_str);
        let bytes = bytes.and_then(|text| STANDARD.decode(text).ok());
        let bytes =
            bytes.ok_or_else(|| format!("token_bytes of token {at} of vocab are not base64"))?;
        if entry.get("rank").and_then(Value::as_u64) != Some(at as u64) {
            return Err(format!("token {at} of vocab has another rank"));
        }
        if at < BYTES && bytes != [at as u8] {
            return Err(format!("token {at} of vocab is not the byte {at}"));
        }
        Ok((at as u32, bytes))
    };
    let all = entries
        .iter()
        .enumerate()
        .map(token)
        .collect::<Parsed<_>>()?;
    Ranks::new(all)
}

/// All merges that produce the tokens, sorted by the ranks of tokens, left parts and right parts.
fn merges(ranks: &Ranks) -> Parsed<Vec<String>> {
    let mut merges = Vec::new();
    let mut bytes_of_all = 0;
    for (rank, token) in ranks.tokens().iter().enumerate().skip(BYTES) {
        let split = |at| {
            let (left, right) = token.split_at(at);
            Some((ranks.of(left)?, ranks.of(right)?, at))
        };
        let mut splits: Vec<(u32, u32, usize)> = (1..token.len()).filter_map(split).collect();
        if splits.is_empty() {
            return Err(format!("token {rank} of vocab is not made of two tokens"));
        }
        splits.sort_unstable();
        for (_, _, at) in splits {
            let (left, right) = token.split_at(at);
            let merge = format!("{} {}", bytes::encode(left), bytes::encode(right));
            bytes_of_all += merge.len();
            if bytes_of_all > MAX_MERGES {
                return Err(format!("its merges have more than {MAX_MERGES} bytes"));
            }
            merges.push(merge);
        }
    }
    Ok(merges)
}

/// The file of a checkpoint in Mistral's format: `tekken.json`, otherwise the last
/// `tokenizer.model.vN`, otherwise `tokenizer.model`.
fn file_of(files: &Files) -> (PathBuf, &'static str) {
    let tekken = files.dir.join(FILE);
    if tekken.is_file() {
        return (tekken, "");
    }
    let versions = VERSIONS.iter().flat_map(|version| {
        ["", "m1"].map(|more| {
            (
                files.dir.join(format!("{}.{version}{more}", spm::FILE)),
                *version,
            )
        })
    });
    let mut found: Vec<_> = versions.filter(|(path, _)| path.is_file()).collect();
    found.sort();
    found
        .pop()
        .unwrap_or_else(|| (files.dir.join(spm::FILE), "v1"))
}

/// A SentencePiece model in Mistral's format.
fn of_pieces(model: Model, version: &'static str) -> Parsed<Mistral> {
    let tokens = model.pieces;
    let id = |text: &str| {
        tokens
            .iter()
            .position(|t| t.text == text)
            .map(|id| id as u32)
    };
    let role = |text: &str| id(text).ok_or_else(|| format!("it has no token {text:?}"));
    let eos = role("</s>")?;
    let roles = [
        role("<s>")?,
        eos,
        role("<unk>")?,
        id("<pad>").unwrap_or(eos),
    ];
    Ok(Mistral {
        tokens,
        version,
        merges: None,
        roles,
    })
}

impl Import<'_> {
    /// Mistral's vocabulary. `native` if the weights are in Mistral's format too: then the
    /// checkpoint's chat template is used.
    pub(crate) fn mistral(&mut self, native: bool) -> Result<usize> {
        let files = self.files;
        let (path, version) = file_of(files);
        let missing = || {
            let what = format!(
                "neither {FILE} nor {}; download it from the model's source",
                spm::FILE
            );
            bad(&files.dir, what)
        };
        let mistral = if version.is_empty() {
            parse(&read_object(&path)?.ok_or_else(missing)?)
        } else {
            of_pieces(Model::read(&path)?.ok_or_else(missing)?, version)
        };
        let mistral = mistral.map_err(|what| bad(&path, what))?;
        let size = mistral.tokens.len();
        if let Some(other) = self.vocab_size.filter(|&other| other != size as u64) {
            return Err(bad(
                &path,
                format!("it has {size} tokens, but the configuration has a vocab_size of {other}"),
            ));
        }
        match &mistral.merges {
            Some(merges) => {
                self.entries.set_str("tokenizer.ggml.model", "gpt2");
                self.entries.set_str("tokenizer.ggml.pre", "tekken");
                self.entries.set_strings("tokenizer.ggml.merges", merges);
            }
            None => self.entries.set_str("tokenizer.ggml.model", "llama"),
        }
        for (kind, id) in ["bos", "eos", "unknown", "padding"]
            .iter()
            .zip(mistral.roles)
        {
            self.set_id(kind, id);
        }
        // The reference writes integer scores of 0 for tekken.
        let scores = match mistral.merges {
            Some(_) => Scores::Integers,
            None => Scores::Floats,
        };
        token::write(&mistral.tokens, scores, &mut self.entries);
        self.entries
            .set("tokenizer.ggml.add_bos_token", Gguf::Bool(true));
        self.entries
            .set("tokenizer.ggml.add_eos_token", Gguf::Bool(false));
        let own = read_text(&files.dir.join("chat_template.jinja"))?.filter(|_| native);
        match (own, mistral.version, mistral.merges.is_some()) {
            (Some(template), ..) => self.set_template(&template),
            (None, "v1", _) => self.set_template("mistral-v1"),
            (None, "v3", false) => self.set_template("mistral-v3"),
            (None, "v3", true) => self.set_template("mistral-v3-tekken"),
            (None, "v7", false) => self.set_template("mistral-v7"),
            (None, "v7", true) => self.set_template("mistral-v7-tekken"),
            (None, version, _) => self.notes.push(format!(
                "{FILE} of version {version} names no chat template, and none is written; `quantier set` can add one \
                 (tokenizer.chat_template)"
            )),
        }
        Ok(size)
    }

    fn set_template(&mut self, template: &str) {
        self.entries.set_str("tokenizer.chat_template", template);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(more: &[&str]) -> Map<String, Value> {
        let singles = (0..=255u8).map(|byte| vec![byte]);
        let all = singles.chain(more.iter().map(|text| text.as_bytes().to_vec()));
        let vocab: Vec<Value> = all
            .enumerate()
            .map(|(rank, token)| json!({ "rank": rank, "token_bytes": STANDARD.encode(token), "token_str": null }))
            .collect();
        let config = json!({ "version": "v3", "pattern": "", "num_vocab_tokens": vocab.len(),
            "default_vocab_size": vocab.len() + 24, "default_num_special_tokens": 24 });
        match json!({ "config": config, "vocab": vocab }) {
            Value::Object(map) => map,
            _ => unreachable!("an object"),
        }
    }

    #[test]
    fn special_tokens_come_first_and_every_split_is_a_merge() {
        let read = parse(&file(&["ab", "bc", "abc", " a"])).unwrap();
        let texts: Vec<&str> = read.tokens.iter().map(|t| t.text.as_str()).collect();
        assert_eq!(texts[..3], ["<unk>", "<s>", "</s>"]);
        assert_eq!(
            texts[19..25],
            [
                "[TOOL_CONTENT]",
                "<SPECIAL_20>",
                "<SPECIAL_21>",
                "<SPECIAL_22>",
                "<SPECIAL_23>",
                "Ā"
            ]
        );
        assert_eq!(texts[280..], ["ab", "bc", "abc", "Ġa"]);
        assert_eq!(read.merges.unwrap(), ["a b", "b c", "a bc", "ab c", "Ġ a"]);
        assert_eq!(read.roles, [1, 2, 0, 11]);
    }

    #[test]
    fn invalid_files_are_explained() {
        let with = |pointer: &str, value: Value| {
            let mut json = Value::Object(file(&["ab"]));
            *json.pointer_mut(pointer).unwrap() = value;
            parse(json.as_object().unwrap()).err().unwrap()
        };
        for (pointer, value, what) in [
            ("/config", json!({}), "config.version is not one of"),
            ("/config/version", json!("v15"), "it has no special_tokens"),
            (
                "/config/default_vocab_size",
                json!(1u64 << 40),
                "default_vocab_size",
            ),
            (
                "/config/default_vocab_size",
                json!(9),
                "more special tokens than tokens",
            ),
            (
                "/config/default_vocab_size",
                json!(999),
                "its vocab has 257 tokens",
            ),
            (
                "/config/default_num_special_tokens",
                json!(3),
                "it has 20 special tokens",
            ),
            ("/vocab", json!(null), "no array vocab"),
            (
                "/vocab/1/rank",
                json!(2),
                "token 1 of vocab has another rank",
            ),
            (
                "/vocab/2/token_bytes",
                json!("AA=="),
                "token 2 of vocab is not the byte 2",
            ),
            (
                "/vocab/256/token_bytes",
                json!("AA=="),
                "two ranks have the same token",
            ),
            (
                "/vocab/256/token_bytes",
                json!("YWJj"),
                "token 256 of vocab is not made of two tokens",
            ),
            ("/vocab/256/token_bytes", json!("?"), "not base64"),
        ] {
            let error = with(pointer, value);
            assert!(error.contains(what), "{pointer}: {error}");
        }
    }
}
