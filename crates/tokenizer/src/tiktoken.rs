//! Vocabularies of tiktoken: `qwen.tiktoken`, `hy.tiktoken`, `arcade100k.tiktoken`, `tiktoken.model`.
//!
//! ```text
//! file = lines of: token in base64, space, rank
//! ```
//!
//! Such a file ranks tokens and has no merges. A token's merge is the pair that remains of its
//! bytes after all merges of lower ranks. Special tokens are defined in the program beside the
//! file; here they are data.

use super::encode::{Tokenizer, bytes, merge};
use super::files::{bad, read_bytes, read_object};
use super::special::Special;
use super::token::{self, Scores, Token, TokenType};
use super::{Import, MAX_TOKENS, checked_size, pre};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use merge::Merger;
use quantier_gguf::Result;
use quantier_gguf::gguf::{Entries, Metadata};
use quantier_gguf::safetensors::lfs_pointer;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Maximum length of a token in bytes; real files have up to 128.
const MAX_BYTES: usize = 512;
/// Number of the tokens `<|extra_0|>`, `<|extra_1|>` ... of Qwen and Hunyuan.
const EXTRAS: usize = 205;

/// A file of a family, with the additions of its program.
struct Family {
    file: &'static str,
    /// Special tokens before the extras, from the first id after the file's on.
    special: &'static [&'static str],
    extras: usize,
    /// Unused ids between the file's tokens and the special ones.
    gap: usize,
    /// Pre-tokenizer for unknown fingerprints.
    pre: &'static str,
    /// True if the file has only this pre-tokenizer, whatever its fingerprint.
    one_pre: bool,
    /// True if tokens may lack merges, and line numbers are the ranks.
    lenient: bool,
}

static QWEN: Family = Family {
    file: "qwen.tiktoken",
    special: &["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    extras: EXTRAS,
    gap: 0,
    pre: "qwen2",
    one_pre: false,
    lenient: false,
};
static HUNYUAN: Family = Family {
    file: "hy.tiktoken",
    special: &[
        "<|endoftext|>",
        "<|startoftext|>",
        "<|bos|>",
        "<|eos|>",
        "<|pad|>",
    ],
    extras: EXTRAS,
    gap: 0,
    pre: "hunyuan",
    one_pre: false,
    lenient: true,
};
static ARCADE: Family = Family {
    file: "arcade100k.tiktoken",
    special: &[
        "<|endoftext|>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|fim_pad|>",
        "<gh_stars>",
        "<filename>",
        "<issue_start>",
        "<issue_comment>",
        "<issue_closed>",
        "<jupyter_start>",
        "<jupyter_text>",
        "<jupyter_code>",
        "<jupyter_output>",
        "<empty_output>",
        "<commit_before>",
        "<commit_msg>",
        "<commit_after>",
        "<reponame>",
        "<|endofprompt|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|pause|>",
        "<|reg0|>",
        "<|reg1|>",
        "<|reg2|>",
        "<|reg3|>",
        "<|reg4|>",
        "<|reg5|>",
        "<|reg6|>",
        "<|reg7|>",
        "<|extra0|>",
    ],
    extras: 0,
    gap: 1,
    pre: "stablelm2",
    one_pre: false,
    lenient: false,
};
/// Its special tokens are in tokenizer_config.json.
static KIMI: Family = Family {
    file: "tiktoken.model",
    special: &[],
    extras: 0,
    gap: 0,
    pre: "kimi-k2",
    one_pre: true,
    lenient: false,
};

impl Family {
    /// Texts of the special tokens.
    fn names(&self) -> Vec<String> {
        let extras = (0..self.extras).map(|n| format!("<|extra_{n}|>"));
        let named = self.special.iter().map(|text| (*text).to_owned());
        named.chain(extras).collect()
    }
}

/// Tokens by rank.
pub(super) struct Ranks {
    tokens: Vec<Vec<u8>>,
    ranks: HashMap<Vec<u8>, u32>,
}

impl Ranks {
    /// Reads a file. Ranks ascend from 0 without gaps; `lenient` skips repeated tokens and ranks by
    /// line.
    fn parse(file: &[u8], lenient: bool) -> std::result::Result<Ranks, String> {
        if let Some(pointer) = lfs_pointer(file) {
            return Err(pointer);
        }
        let mut all = Vec::new();
        let mut seen = HashSet::new();
        let lines = file.split(|&b| b == b'\n').zip(1..);
        for (line, number) in lines.filter(|(line, _)| !line.trim_ascii().is_empty()) {
            let wrong = |what: &str| format!("line {number}: {what}");
            if all.len() == MAX_TOKENS {
                return Err(format!("more than {MAX_TOKENS} tokens"));
            }
            let mut words = line
                .split(u8::is_ascii_whitespace)
                .filter(|word| !word.is_empty());
            let (Some(text), Some(rank), None) = (words.next(), words.next(), words.next()) else {
                return Err(wrong("not a token in base64 and its rank"));
            };
            let token = STANDARD
                .decode(text)
                .map_err(|e| wrong(&format!("the token is not base64: {e}")))?;
            let rank = std::str::from_utf8(rank).ok().and_then(|r| r.parse().ok());
            let rank: u32 = rank.ok_or_else(|| wrong("the rank is not a whole number"))?;
            match seen.insert(token.clone()) {
                true if lenient => all.push((all.len() as u32, token)),
                true => all.push((rank, token)),
                false if lenient => {}
                false => return Err(wrong("this token appears twice")),
            }
        }
        Ranks::new(all)
    }

    /// From tokens with their ranks.
    pub(super) fn new(mut all: Vec<(u32, Vec<u8>)>) -> std::result::Result<Ranks, String> {
        all.sort_unstable();
        let odd = all
            .iter()
            .find(|(_, t)| t.is_empty() || t.len() > MAX_BYTES);
        if let Some((rank, token)) = odd {
            return Err(format!(
                "the token of rank {rank} has {} bytes; allowed are 1 to {MAX_BYTES}",
                token.len()
            ));
        }
        let hole = all.iter().zip(0..).find(|((rank, _), at)| rank != at);
        if let Some((_, at)) = hole {
            return Err(format!("rank {at} is missing or repeated"));
        }
        if all.is_empty() {
            return Err("it has no tokens".to_owned());
        }
        let ranks = all.iter().map(|(rank, token)| (token.clone(), *rank));
        let ranks: HashMap<Vec<u8>, u32> = ranks.collect();
        if ranks.len() < all.len() {
            return Err("two ranks have the same token".to_owned());
        }
        Ok(Ranks {
            ranks,
            tokens: all.into_iter().map(|(_, token)| token).collect(),
        })
    }

    /// The tokens in rank order.
    pub(super) fn tokens(&self) -> &[Vec<u8>] {
        &self.tokens
    }

    /// The rank of a token.
    pub(super) fn of(&self, token: &[u8]) -> Option<u32> {
        self.ranks.get(token).copied()
    }

    /// The two parts whose merge makes a token, in GPT-2's alphabet: the remainder of its bytes
    /// after all merges of lower ranks. `None` unless exactly two parts remain.
    fn merge(&self, rank: u32, merger: &mut Merger) -> Option<String> {
        let token = &self.tokens[rank as usize];
        merger.clear();
        token.iter().for_each(|_| merger.push(1, merge::UNKNOWN));
        merger.merge(|left, right| {
            let joined = &token[left.start as usize..][..(left.len + right.len) as usize];
            let joined = self.ranks.get(joined).filter(|&&other| other < rank);
            joined.map(|&other| (other, other))
        });
        let mut parts = merger.symbols();
        let (Some(left), Some(_), None) = (parts.next(), parts.next(), parts.next()) else {
            return None;
        };
        let (left, right) = token.split_at(left.len as usize);
        Some(format!("{} {}", bytes::encode(left), bytes::encode(right)))
    }

    /// The merges of all multi-byte tokens, or the first token without one.
    fn merges(&self, lenient: bool) -> std::result::Result<Vec<String>, String> {
        let mut merger = Merger::default();
        let mut merges = Vec::with_capacity(self.tokens.len());
        for (token, rank) in self.tokens.iter().zip(0..) {
            if token.len() == 1 {
                continue;
            }
            match self.merge(rank, &mut merger) {
                Some(merge) => merges.push(merge),
                None if lenient => {}
                None => {
                    return Err(format!(
                        "the token of rank {rank} cannot be merged from two tokens of lower ranks"
                    ));
                }
            }
        }
        Ok(merges)
    }
}

impl Import<'_> {
    pub(crate) fn qwen1(&mut self) -> Result<usize> {
        self.tiktoken_with_ends(&QWEN)
    }

    pub(crate) fn stablelm(&mut self) -> Result<usize> {
        let file = self.files.dir.join(ARCADE.file);
        if self.files.tokenizer.is_some() || !file.is_file() {
            return self.byte_level();
        }
        self.tiktoken_with_ends(&ARCADE)
    }

    pub(crate) fn hunyuan_moe(&mut self) -> Result<usize> {
        /// `<|bos|>`; configurations state another one.
        const BOS: u32 = 127_959;

        let tokens = self.tiktoken_of_hunyuan()?;
        self.set_id("bos", BOS);
        Ok(tokens)
    }

    pub(crate) fn hunyuan(&mut self) -> Result<usize> {
        /// Hidden size of the model of seven billion weights, whose configuration states another
        /// BOS token.
        const LARGE: u64 = 4096;
        const BOS_OF_LARGE: u32 = 127_958;

        let number = |import: &Self, name| import.config(name).and_then(Value::as_i64);
        let tokens = if self.files.tokenizer.is_some() {
            let types: &[&str] = match number(self, "pad_token_id") {
                Some(..0) => &["bos", "eos", "unk", "sep", "cls", "mask"],
                _ => &Special::TYPES,
            };
            self.byte_level_with(&super::Rules {
                types,
                ..super::Rules::PLAIN
            })?
        } else {
            let tokens = self.tiktoken_of_hunyuan()?;
            if self.config("hidden_size").and_then(Value::as_u64) == Some(LARGE) {
                self.set_id("bos", BOS_OF_LARGE);
            }
            tokens
        };
        // transformers omits the field from the configurations that it knows.
        let model_type = self.files.config.as_ref().and_then(|c| c.get("model_type"));
        let known = ["hunyuan_v1_dense", "hunyuan_v1_moe"].map(Value::from);
        let eod = self.config("eod_token_id").filter(|v| !v.is_null());
        if let Some(eos) = eod.filter(|_| !model_type.is_some_and(|m| known.contains(m))) {
            let eos = id_of(eos, "eod_token_id");
            let eos = eos.map_err(|what| bad(&self.files.dir.join("config.json"), what))?;
            self.set_id("eos", eos);
        }
        let path = self.files.dir.join("generation_config.json");
        let generation = read_object(&path)?.unwrap_or_default();
        if let Some([eot, _, ..]) = generation
            .get("eos_token_id")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
        {
            let eot = id_of(eot, "eos_token_id").map_err(|what| bad(&path, what))?;
            self.set_id("eot", eot);
        }
        Ok(tokens)
    }

    /// Special tokens after the ranks, by number; those without names are reserved.
    pub(crate) fn kimi(&mut self, sets_end: bool) -> Result<usize> {
        /// Number of special tokens after the ranks.
        const SPECIAL: usize = 258;
        /// End of text if tokenizer_config.json has none.
        const END: &str = "[EOS]";

        if self.files.tokenizer.is_some() || !self.files.dir.join(KIMI.file).is_file() {
            return self.byte_level();
        }
        let ranks = self.ranks(&KIMI)?;
        let first = ranks.tokens.len();
        let size = checked_size(self.vocab_size, first + SPECIAL, &self.files.dir)?;
        let named: HashMap<u32, &str> = self
            .decoder()
            .filter_map(|(id, entry)| Some((id, entry.get("content")?.as_str()?)))
            .collect();
        let name = |id: usize| match named.get(&(id as u32)) {
            Some(text) => (*text).to_owned(),
            None => format!("<|reserved_token_{id}|>"),
        };
        let names: Vec<String> = (first..first + SPECIAL).map(name).collect();
        let end = self.files.config_field("eos_token");
        let end = end.and_then(|end| end.get("content").unwrap_or(end).as_str());
        let end = end.unwrap_or(END);
        let eos = names.iter().rposition(|name| name == end).ok_or_else(|| {
            let what = format!("the end-of-text token '{end}' is not among the special tokens");
            bad(&self.files.dir.join("tokenizer_config.json"), what)
        })?;
        let special = Special::load(self.files, false, &Special::TYPES, None)?;
        let names = names.into_iter().take(size.saturating_sub(first)).collect();
        let tokens = self.tiktoken(&KIMI, &ranks, special, names)?;
        if sets_end {
            self.set_id("eos", (first + eos) as u32);
        }
        Ok(tokens)
    }

    fn tiktoken_of_hunyuan(&mut self) -> Result<usize> {
        let ranks = self.ranks(&HUNYUAN)?;
        let special = Special::load(self.files, false, &Special::TYPES, None)?;
        self.tiktoken(&HUNYUAN, &ranks, special, HUNYUAN.names())
    }

    /// With the end of text as unknown token, and as default BOS and EOS tokens.
    fn tiktoken_with_ends(&mut self, family: &Family) -> Result<usize> {
        let ranks = self.ranks(family)?;
        let end = (ranks.tokens.len() + family.gap) as u32;
        let mut special = Special::load(self.files, false, &Special::TYPES, None)?;
        if !special.has_ids() {
            special.set_id("bos", end);
            special.set_id("eos", end);
        }
        special.set_id("unk", end);
        self.tiktoken(family, &ranks, special, family.names())
    }

    fn ranks(&self, family: &Family) -> Result<Ranks> {
        let path = self.files.dir.join(family.file);
        let file = read_bytes(&path)?.ok_or_else(|| {
            let what = format!("no {}; download it from the model's source", family.file);
            bad(&self.files.dir, what)
        })?;
        Ranks::parse(&file, family.lenient).map_err(|what| bad(&path, what))
    }

    /// `names` are the texts of the special tokens.
    fn tiktoken(
        &mut self,
        family: &Family,
        ranks: &Ranks,
        mut special: Special,
        names: Vec<String>,
    ) -> Result<usize> {
        let files = self.files;
        let path = files.dir.join(family.file);
        let first = ranks.tokens.len() + family.gap;
        let own = first + names.len();
        let size = checked_size(self.vocab_size, own, &files.dir)?;
        // Hunyuan's converter requires no padding, Qwen's as much as the embeddings have rows.
        if size < own || family.lenient && size != own {
            return Err(bad(
                &files.dir.join("config.json"),
                format!(
                    "a vocab_size of {size}, but {} and its special tokens are {own}",
                    family.file
                ),
            ));
        }
        let token = |text, token_type| Token {
            text,
            score: 0.0,
            token_type,
        };
        let mut tokens: Vec<Token> = ranks
            .tokens
            .iter()
            .map(|bytes| token(bytes::encode(bytes), TokenType::Normal))
            .collect();
        tokens.extend((tokens.len()..first).map(Token::padding));
        let special_tokens = names.into_iter();
        tokens.extend(special_tokens.map(|t| token(t, TokenType::Control)));
        tokens.extend((tokens.len()..size).map(Token::padding));

        special.merges = ranks
            .merges(family.lenient)
            .map_err(|what| bad(&path, what))?;
        let mut entries = Entries::new();
        entries.set_str("tokenizer.ggml.model", "gpt2");
        entries.set_str("tokenizer.ggml.pre", family.pre);
        token::write(&tokens, Scores::Left, &mut entries);
        special.write(&mut entries);
        let pre = self.pre_of(family, &entries)?;
        entries.set_str("tokenizer.ggml.pre", &pre);
        self.entries.extend(entries);
        Ok(size)
    }

    /// Name of the pre-tokenizer: the user's, otherwise from the fingerprint of this vocabulary's
    /// ids for the probe text.
    fn pre_of(&mut self, family: &Family, entries: &Entries) -> Result<String> {
        if family.one_pre {
            return Ok(family.pre.to_owned());
        }
        if let Some(name) = self.pre {
            return Ok(name.to_owned());
        }
        let mut metadata = Metadata::new();
        for (key, value) in entries.iter() {
            metadata.set(key.to_owned(), value.clone());
        }
        let tokenizer = Tokenizer::from_gguf(&metadata)
            .map_err(|what| bad(&self.files.dir.join(family.file), what.to_string()))?;
        let fingerprint = pre::fingerprint(&tokenizer.encode(pre::PROBE, false, true));
        Ok(match pre::lookup(&fingerprint) {
            Some(name) => name.to_owned(),
            None => {
                self.notes.push(format!(
                    "the fingerprint {fingerprint} of {} is not known; its pre-tokenizer is taken to be {} \
                     (--pre NAME says another)",
                    family.file, family.pre
                ));
                family.pre.to_owned()
            }
        })
    }
}

/// The id of a token in a configuration.
fn id_of(value: &Value, name: &str) -> std::result::Result<u32, String> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| format!("{name} is {value}, not the id of a token"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranks(tokens: &[&str]) -> Ranks {
        let all = tokens.iter().zip(0..);
        Ranks::new(all.map(|(t, rank)| (rank, t.as_bytes().to_vec())).collect()).unwrap()
    }

    #[test]
    fn merges_follow_from_ranks() {
        let ranks = ranks(&["a", "b", " ", "ab", " a", "aba", " ab"]);
        assert_eq!(
            ranks.merges(false).unwrap(),
            ["a b", "Ġ a", "ab a", "Ġ ab"],
            "the token \" ab\" is \" \" and \"ab\": that pair has the lower rank"
        );
    }

    #[test]
    fn tokens_without_a_merge_are_skipped_or_refused() {
        let ranks = ranks(&["a", "b", "abab"]);
        assert_eq!(ranks.merges(true).unwrap(), Vec::<String>::new());
        let error = ranks.merges(false).unwrap_err();
        assert!(error.contains("rank 2"), "{error}");
    }

    #[test]
    fn lines_are_tokens_with_ranks() {
        let read = Ranks::parse(b"Yg== 1\r\nYQ== 0\n\n", false).unwrap();
        assert_eq!(read.tokens, [b"a", b"b"]);
        // Hunyuan's reader ranks by line and skips repeated tokens.
        let read = Ranks::parse(b"Yg== 7\nYg== 8\nYQ== 9\n", true).unwrap();
        assert_eq!(read.tokens, [b"b", b"a"]);
        for (file, what) in [
            (&b""[..], "no tokens"),
            (b"YQ==", "line 1: not a token in base64 and its rank"),
            (b"YQ== 0 1", "line 1: not a token"),
            (b"YQ= 0", "line 1: the token is not base64"),
            (b"YQ== x", "line 1: the rank is not"),
            (b"YQ== -1", "line 1: the rank is not"),
            (b"YQ== 0\nYQ== 1", "line 2: this token appears twice"),
            (b"YQ== 0\nYg== 2", "rank 1 is missing"),
            (b"YQ== 0\nYg== 0", "rank 1 is missing or repeated"),
        ] {
            let error = Ranks::parse(file, false).err().unwrap();
            assert!(error.contains(what), "{error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused(file in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Ranks::parse(&file, true).map(|ranks| ranks.merges(true));
        }
    }
}
