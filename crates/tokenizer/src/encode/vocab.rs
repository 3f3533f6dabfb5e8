//! The vocabulary of a GGUF: texts, scores and roles of tokens, with the reference's additions.

use super::Error;
use foldhash::fast::RandomState;
use quantier_gguf::gguf::{Metadata, Value, ValueType, until_zero};
use std::collections::{BTreeSet, HashMap};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";

/// Roles of a token as a bit set: the reference assigns several to some tokens.
pub(super) type Role = u8;
pub(crate) const UNKNOWN: Role = 1;
pub(crate) const UNUSED: Role = 2;
pub(crate) const NORMAL: Role = 4;
pub(crate) const CONTROL: Role = 8;
pub(crate) const USER_DEFINED: Role = 16;
pub(crate) const BYTE: Role = 32;

/// Texts of tokens that end a turn or text: control tokens regardless of the file.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Infill tokens: their keys, their texts for files without the key, and true for those that end
/// generation. The first existing text becomes a control token.
const FILL_IN: [(&[&str], &[&str], bool); 6] = [
    (
        &[
            "tokenizer.ggml.fim_pre_token_id",
            "tokenizer.ggml.prefix_token_id",
        ],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        false,
    ),
    (
        &[
            "tokenizer.ggml.fim_suf_token_id",
            "tokenizer.ggml.suffix_token_id",
        ],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        false,
    ),
    (
        &[
            "tokenizer.ggml.fim_mid_token_id",
            "tokenizer.ggml.middle_token_id",
        ],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        false,
    ),
    (
        &["tokenizer.ggml.fim_pad_token_id"],
        &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        true,
    ),
    (
        &["tokenizer.ggml.fim_rep_token_id"],
        &[
            "<|fim_repo|>",
            "<|repo_name|>",
            "<fim-repo>",
            "<REPO>",
            "<reponame>",
        ],
        true,
    ),
    (
        &["tokenizer.ggml.fim_sep_token_id"],
        &["<|file_sep|>"],
        true,
    ),
];

/// One token.
pub(super) struct Token {
    pub text: Box<[u8]>,
    pub score: f32,
    pub role: Role,
    /// True if it includes the spaces before it.
    pub strips_left: bool,
    /// True if it includes the spaces after it.
    pub strips_right: bool,
}

pub(super) type Texts = HashMap<Box<[u8]>, u32, RandomState>;

/// Tokens and special ids.
pub(crate) struct Vocab {
    pub tokens: Vec<Token>,
    /// Map from texts to tokens.
    pub ids: Texts,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    /// Tokens that end generation.
    pub ends: BTreeSet<u32>,
}

/// Default special ids.
pub(crate) struct Defaults {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
}

fn numbers(
    metadata: &Metadata<'_>,
    key: &str,
    kinds: &[ValueType],
    tokens: usize,
) -> Result<Option<Vec<f32>>, Error> {
    let Some(value) = metadata.get(key) else {
        return Ok(None);
    };
    let array = value.as_array().filter(|a| kinds.contains(&a.element()));
    let array =
        array.ok_or_else(|| Error(format!("'{key}' is {value}, not an array of numbers")))?;
    if array.len() < tokens {
        return Err(Error(format!(
            "'{key}' has {} values for {tokens} tokens",
            array.len()
        )));
    }
    let number = |value| match value {
        Value::F32(v) => v,
        Value::I32(v) => v as f32,
        _ => 0.0,
    };
    Ok(Some(array.values().take(tokens).map(number).collect()))
}

/// A number from the metadata.
fn id(metadata: &Metadata<'_>, key: &str) -> Result<Option<u64>, Error> {
    let number = |v: &Value<'_>| {
        v.as_u64()
            .ok_or_else(|| Error(format!("'{key}' is {v}, not the id of a token")))
    };
    metadata.get(key).map(number).transpose()
}

/// A text from the metadata; empty if missing.
pub(crate) fn text<'m>(metadata: &'m Metadata<'_>, key: &str) -> Result<&'m str, Error> {
    let string = |v: &'m Value<'_>| {
        v.as_str()
            .ok_or_else(|| Error(format!("'{key}' is {v}, not a text")))
    };
    Ok(metadata.get(key).map(string).transpose()?.unwrap_or(""))
}

/// A boolean from the metadata.
pub(crate) fn flag(metadata: &Metadata<'_>, key: &str) -> Result<Option<bool>, Error> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::Bool(set)) => Ok(Some(*set)),
        Some(other) => Err(Error(format!("'{key}' is {other}, neither true nor false"))),
    }
}

/// Strings from the metadata.
pub(crate) fn strings<'m>(
    metadata: &'m Metadata<'_>,
    key: &str,
) -> Result<impl Iterator<Item = &'m [u8]>, Error> {
    let value = metadata
        .get(key)
        .ok_or_else(|| Error(format!("'{key}' is missing")))?;
    let array = value
        .as_array()
        .filter(|a| a.element() == ValueType::String || a.is_empty());
    let array = array.ok_or_else(|| Error(format!("'{key}' is {value}, not an array of texts")))?;
    Ok(array.strings().map(until_zero))
}

impl Vocab {
    /// Reads the tokens.
    pub(crate) fn read(metadata: &Metadata<'_>, defaults: Defaults) -> Result<Vocab, Error> {
        let texts: Vec<&[u8]> = strings(metadata, TOKENS)?.collect();
        let scores = numbers(
            metadata,
            SCORES,
            &[ValueType::F32, ValueType::I32],
            texts.len(),
        )?;
        let types = numbers(metadata, TYPES, &[ValueType::I32], texts.len())?;
        let mut ids = Texts::with_capacity_and_hasher(texts.len(), RandomState::default());
        let mut tokens = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            let text: Box<[u8]> = if text.is_empty() {
                format!("[EMPTY_{i}]").into_bytes().into()
            } else {
                (*text).into()
            };
            if let Some(first) = ids.insert(text.clone(), i as u32) {
                let shown = String::from_utf8_lossy(&text).into_owned();
                return Err(Error(format!(
                    "'{TOKENS}': tokens {first} and {i} are both {shown:?}"
                )));
            }
            let role = match types.as_ref().map(|t| t[i] as i32) {
                None | Some(1) => NORMAL,
                Some(2) => UNKNOWN,
                Some(3) => CONTROL,
                Some(4) => USER_DEFINED,
                Some(5) => UNUSED,
                Some(6) => BYTE,
                Some(_) => 0,
            };
            let score = scores.as_ref().map_or(0.0, |s| s[i]);
            tokens.push(Token {
                text,
                score,
                role,
                strips_left: false,
                strips_right: false,
            });
        }
        let (bos, eos, unknown) = (defaults.bos, defaults.eos, defaults.unknown);
        let mut vocab = Vocab {
            tokens,
            ids,
            bos,
            eos,
            unknown,
            ends: BTreeSet::new(),
        };
        vocab.bos = vocab.named(metadata, "tokenizer.ggml.bos_token_id", bos)?;
        vocab.eos = vocab.named(metadata, "tokenizer.ggml.eos_token_id", eos)?;
        vocab.unknown = vocab.named(metadata, "tokenizer.ggml.unknown_token_id", unknown)?;
        vocab.find_special(metadata)?;
        vocab.set_strips(metadata)?;
        Ok(vocab)
    }

    /// The id of a text.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text.as_bytes()).copied()
    }

    /// The id of a key, otherwise the default, if it is in the vocabulary.
    pub(crate) fn named(
        &self,
        metadata: &Metadata<'_>,
        key: &str,
        default: Option<u32>,
    ) -> Result<Option<u32>, Error> {
        let known = |id: &u64| *id < self.tokens.len() as u64;
        let named = id(metadata, key)?.filter(known);
        Ok(named
            .or(default.map(u64::from).filter(known))
            .map(|id| id as u32))
    }

    fn add_role(&mut self, id: u32, role: Role) {
        self.tokens[id as usize].role |= role;
    }

    /// Detects special tokens by their texts, as the reference does: files often lack their keys.
    fn find_special(&mut self, metadata: &Metadata<'_>) -> Result<(), Error> {
        for (keys, texts, ends) in FILL_IN {
            let mut named = None;
            for key in keys {
                named = self.named(metadata, key, named)?;
            }
            if named.is_none() {
                named = texts.iter().find_map(|text| self.id(text));
                named.into_iter().for_each(|id| self.add_role(id, CONTROL));
            }
            self.ends.extend(named.filter(|_| ends));
        }
        for id in ENDS
            .iter()
            .filter_map(|text| self.id(text))
            .collect::<Vec<_>>()
        {
            self.add_role(id, CONTROL);
            self.ends.insert(id);
        }
        for text in ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"] {
            if let Some(id) = self.id(text) {
                self.tokens[id as usize].role = USER_DEFINED;
            }
        }
        self.ends.extend(self.eos);
        self.ends
            .extend(self.named(metadata, "tokenizer.ggml.eot_token_id", None)?);
        self.ends
            .extend(self.named(metadata, "tokenizer.ggml.eom_token_id", None)?);
        let ends = |text: &str| self.id(text).filter(|id| self.ends.contains(id));
        let called = ends("<|call|>").or(ends("<|calls|>")).is_some();
        // These do not end a turn in Harmony and Solar; Gemma 4 and PLaMo.
        let end = ends("<|end|>")
            .filter(|_| called && (ends("<|return|>").or(ends("<|flush|>"))).is_some());
        let s =
            ends("</s>").filter(|_| ends("<|tool_response>").or(ends("<|plamo:eos|>")).is_some());
        for (id, role) in [(end, USER_DEFINED), (s, NORMAL)] {
            if let Some(id) = id {
                self.ends.remove(&id);
                self.tokens[id as usize].role = role;
            }
        }
        Ok(())
    }

    /// Sets the tokens that include adjacent spaces, by the name of the model, as files do not
    /// state it.
    fn set_strips(&mut self, metadata: &Metadata<'_>) -> Result<(), Error> {
        let name = text(metadata, "general.name")?.to_ascii_lowercase();
        let pre = text(metadata, "tokenizer.ggml.pre")?;
        let architecture = text(metadata, "general.architecture")?;
        let left = if ["jina-v2-de", "jina-v2-es", "jina-v2-code"]
            .iter()
            .any(|p| pre.contains(p))
            || ["nomic-bert-moe", "jina-bert-v3"]
                .iter()
                .any(|a| architecture.contains(a))
        {
            Some("<mask>")
        } else if name.contains("phi-3") || name.contains("phi3") {
            let special = self
                .tokens
                .iter_mut()
                .filter(|t| t.role & (CONTROL | USER_DEFINED | UNKNOWN) != 0);
            special.for_each(|t| t.strips_right = true);
            for (text, strips) in [
                ("</s>", true),
                ("<unk>", false),
                ("<s>", false),
                ("<|endoftext|>", false),
            ] {
                if let Some(id) = self.id(text) {
                    self.tokens[id as usize].strips_right = strips;
                }
            }
            None
        } else {
            name.contains("modern-bert").then_some("[MASK]")
        };
        if let Some(id) = left.and_then(|text| self.id(text)) {
            self.tokens[id as usize].strips_left = true;
        }
        Ok(())
    }

    /// The byte of a token such as `<0x0A>`.
    fn byte_of(text: &[u8]) -> Option<u8> {
        u8::from_str_radix(std::str::from_utf8(text.get(3..5)?).ok()?, 16).ok()
    }

    /// Decodes a token.
    pub(crate) fn piece(&self, id: u32, byte_level: bool) -> Vec<u8> {
        let Some(token) = self.tokens.get(id as usize) else {
            return Vec::new();
        };
        if token.role & (UNKNOWN | CONTROL | USER_DEFINED) != 0 {
            return token.text.to_vec();
        }
        if token.role & NORMAL != 0 {
            return match byte_level {
                true => super::bytes::decode_or_mark(&token.text),
                false => String::from_utf8_lossy(&token.text)
                    .replace('\u{2581}', " ")
                    .into_bytes(),
            };
        }
        if token.role & BYTE != 0 {
            Self::byte_of(&token.text).into_iter().collect()
        } else {
            Vec::new()
        }
    }

    /// Tokens of single bytes such as `<0x0A>`.
    pub(crate) fn byte_tokens(&self) -> [Option<u32>; 256] {
        std::array::from_fn(|b| self.id(&format!("<0x{b:02X}>")))
    }
}
