//! Unigram models (Kudo 2018): of all ways to cut a text into tokens, that with the highest sum of scores.
//!
//! ```text
//! text -> characters replaced by the compiled map -> spaces as U+2581 -> the best tokens, from left to right
//! ```
//!
//! The compiled map is a double array (Kanda 2018). An entry of 32 bits: base in bits 10 to 30, shifted by 8 with bit 9;
//! bit 8 for the end of a key; the byte that leads to it in bits 0 to 7; bit 31 for values, which are offsets of
//! replacements that end in a zero.

use super::Error;
use super::vocab::{self, NORMAL, UNUSED, USER_DEFINED, Vocab};
use foldhash::fast::RandomState;
use quantier_gguf::gguf::{Metadata, Value, ValueType};
use std::collections::HashMap;

const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
const REMOVES_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
/// The unknown token's score lies this far below the lowest.
const PENALTY: f32 = 10.0;

/// A unigram model.
pub(crate) struct Unigram {
    charsmap: Option<Charsmap>,
    removes_spaces: bool,
    tokens: Trie,
    unknown_score: f32,
}

/// Compiled replacements of characters.
struct Charsmap {
    array: Vec<u32>,
    replacements: Vec<u8>,
}

/// Tokens by their bytes.
#[derive(Default)]
struct Trie {
    /// From a node and a byte to the next node.
    edges: HashMap<(u32, u8), u32, RandomState>,
    /// The token that ends at a node.
    ends: Vec<Option<u32>>,
}

/// The best tokens of a beginning of a text.
#[derive(Clone, Copy)]
struct Best {
    /// The last of them; None for the unknown one.
    token: Option<u32>,
    /// Where it begins.
    start: usize,
    score: f64,
}

impl Unigram {
    /// Reads a model.
    pub(crate) fn of(metadata: &Metadata<'_>, vocab: &Vocab) -> Result<Unigram, Error> {
        let mut tokens = Trie::new();
        let mut lowest = f32::MAX;
        for (id, token) in (0..).zip(&vocab.tokens) {
            if token.role & NORMAL != 0 {
                lowest = lowest.min(token.score);
            }
            if token.role & (NORMAL | USER_DEFINED | UNUSED) != 0 {
                tokens.insert(&token.text, id);
            }
        }
        Ok(Unigram {
            charsmap: Charsmap::read(metadata)?,
            removes_spaces: vocab::flag(metadata, REMOVES_SPACES)?.unwrap_or(false),
            tokens,
            unknown_score: lowest - PENALTY,
        })
    }

    /// Appends the tokens of a text, with a space in front of it if `space`.
    pub(crate) fn text(&self, vocab: &Vocab, text: &str, space: bool, out: &mut Vec<u32>) {
        let text = self.normalized(text, space);
        let text = text.as_bytes();
        let nothing = Best {
            token: None,
            start: 0,
            score: f64::MIN,
        };
        let mut best = vec![nothing; text.len() + 1];
        best[0].score = 0.0;
        let mut at = 0;
        while at < text.len() {
            let length = length_of(text[at]).min(text.len() - at);
            let score = best[at].score;
            let mut challenge = |end: usize, token: Option<u32>, own: f64| {
                if score + own > best[end].score {
                    best[end] = Best {
                        token,
                        start: at,
                        score: score + own,
                    };
                }
            };
            let mut has_character = false;
            self.tokens.beginnings(&text[at..], |id, bytes| {
                has_character |= bytes == length;
                let token = &vocab.tokens[id as usize];
                let is_users = token.role & USER_DEFINED != 0;
                let own = if is_users {
                    0.0
                } else {
                    f64::from(token.score)
                };
                challenge(at + bytes, Some(id), own);
            });
            if !has_character {
                challenge(at + length, None, f64::from(self.unknown_score));
            }
            at += length;
        }
        let start = out.len();
        let (mut end, mut was_unknown) = (text.len(), false);
        while end > 0 {
            let Best { token, start, .. } = best[end];
            let is_unknown = token.is_none() || token == vocab.unknown;
            if !(was_unknown && is_unknown) {
                out.extend(token.or(vocab.unknown));
            }
            (end, was_unknown) = (start, is_unknown);
        }
        out[start..].reverse();
    }

    /// The text with replacements, and spaces as U+2581.
    fn normalized(&self, text: &str, space: bool) -> String {
        let mut normalized = Vec::with_capacity(text.len() * 2);
        let mark = super::SPACE.to_string();
        let (mut is_prefixed, mut is_in_word) = (false, false);
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let found = self
                .charsmap
                .as_ref()
                .and_then(|map| map.longest(rest.as_bytes()));
            let (own, bytes) = match &found {
                Some((own, bytes)) => (*own, *bytes),
                None => (&rest.as_bytes()[..c.len_utf8()], c.len_utf8()),
            };
            for &byte in own {
                if byte == b' ' {
                    is_in_word = false;
                    if !self.removes_spaces {
                        normalized.extend(mark.bytes());
                    }
                    continue;
                }
                if !is_in_word {
                    is_in_word = true;
                    if space && !is_prefixed || self.removes_spaces {
                        normalized.extend(mark.bytes());
                        is_prefixed = true;
                    }
                }
                normalized.push(byte);
            }
            // A key of a damaged map could end within a character.
            let mut bytes = bytes;
            while !rest.is_char_boundary(bytes) {
                bytes += 1;
            }
            rest = &rest[bytes..];
        }
        String::from_utf8(normalized)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

/// The length of a character in UTF-8 by its first byte, as in the reference.
fn length_of(byte: u8) -> usize {
    match byte >> 4 {
        0xF => 4,
        0xE => 3,
        0xC | 0xD => 2,
        _ => 1,
    }
}

impl Trie {
    fn new() -> Trie {
        Trie {
            edges: HashMap::default(),
            ends: vec![None],
        }
    }

    /// Adds a token.
    fn insert(&mut self, text: &[u8], id: u32) {
        let mut node = 0;
        for &byte in text {
            let next = self.ends.len() as u32;
            node = *self.edges.entry((node, byte)).or_insert(next);
            if node == next {
                self.ends.push(None);
            }
        }
        self.ends[node as usize] = Some(id);
    }

    /// Calls `found` with the tokens that a text begins with, and their lengths, shortest first.
    fn beginnings(&self, text: &[u8], mut found: impl FnMut(u32, usize)) {
        let mut node = 0;
        for (length, byte) in (1..).zip(text) {
            let Some(next) = self.edges.get(&(node, *byte)) else {
                return;
            };
            node = *next;
            if let Some(id) = self.ends[node as usize] {
                found(id, length);
            }
        }
    }
}

impl Charsmap {
    /// Reads the map; None without one.
    fn read(metadata: &Metadata<'_>) -> Result<Option<Charsmap>, Error> {
        /// Bytes of the array's length.
        const HEADER: usize = 4;
        let Some(value) = metadata.get(CHARSMAP) else {
            return Ok(None);
        };
        let bytes = value
            .as_array()
            .filter(|array| matches!(array.element(), ValueType::U8 | ValueType::I8));
        let bytes = bytes.ok_or_else(|| Error(format!("'{CHARSMAP}' is not an array of bytes")))?;
        let byte = |value| match value {
            Value::U8(byte) => byte,
            Value::I8(byte) => byte as u8,
            _ => 0,
        };
        let bytes: Vec<u8> = bytes.values().map(byte).collect();
        let damaged = || Error(format!("'{CHARSMAP}' is cut short"));
        let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or_else(damaged)?;
        let length = u32::from_le_bytes(*header) as usize;
        if length >= rest.len() {
            return Err(damaged());
        }
        let (array, replacements) = rest.split_at(length);
        let entry = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0, |entry, byte| entry << 8 | u32::from(*byte))
        };
        Ok(Some(Charsmap {
            array: array.chunks_exact(HEADER).map(entry).collect(),
            replacements: replacements.to_vec(),
        }))
    }

    fn entry(&self, at: u32) -> Option<u32> {
        self.array.get(at as usize).copied()
    }

    /// The replacement of the longest key that a text begins with, and the key's length. A damaged
    /// map has no keys.
    fn longest(&self, text: &[u8]) -> Option<(&[u8], usize)> {
        const LABEL: u32 = 1 << 31 | 0xff;
        let base = |entry: u32| (entry >> 10) << ((entry & 1 << 9) >> 6);
        let mut found = None;
        let mut at = base(self.entry(0)?);
        for (length, &byte) in (1..).zip(text) {
            if byte == 0 {
                break;
            }
            at ^= u32::from(byte);
            let Some(entry) = self
                .entry(at)
                .filter(|entry| entry & LABEL == u32::from(byte))
            else {
                break;
            };
            at ^= base(entry);
            if entry >> 8 & 1 == 1 {
                let value = self.entry(at)? & !(1 << 31);
                found = Some((value as usize, length));
            }
        }
        let (offset, length) = found?;
        let rest = self.replacements.get(offset..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some((&rest[..end], length))
    }
}
