//! Byte-pair encoding: adjacent symbols are merged by the rank of their merge.
//!
//! Symbols are ids: those of tokens with the same text, or ids beyond all tokens for intermediate
//! results. So a merge is one look-up of two ids.

use super::bytes;
use super::merge::{Merger, UNKNOWN};
use super::pre::Pre;
use super::vocab::{self, Texts, Vocab};
use super::{Error, Seams};
use foldhash::fast::RandomState;
use quantier_gguf::gguf::Metadata;
use std::collections::HashMap;

const MERGES: &str = "tokenizer.ggml.merges";

/// Merges of a vocabulary and initial symbols of words.
pub(crate) struct Bpe {
    pub pre: Pre,
    /// Rank and result of the merge of two symbols.
    merges: HashMap<(u32, u32), (u32, u32), RandomState>,
    /// The symbol of each byte, in a byte-level vocabulary.
    bytes: [u32; 256],
    /// Tokens of single bytes, the fallback for a symbol without a token.
    fallback: [Option<u32>; 256],
    /// Tokens (byte-level) or symbols (others) of whole words, by their bytes.
    words: Texts,
    tokens: u32,
    /// Boundaries without merges; `None` for byte-level vocabularies.
    pub seams: Option<Seams>,
}

impl Bpe {
    /// Reads the merges.
    pub(crate) fn read(metadata: &Metadata<'_>, vocab: &Vocab, pre: Pre) -> Result<Bpe, Error> {
        let mut symbols = vocab.ids.clone();
        let mut symbol = |text: &[u8]| match symbols.get(text) {
            Some(&id) => id,
            None => {
                let id = symbols.len() as u32;
                symbols.insert(text.into(), id);
                id
            }
        };
        let bytes = std::array::from_fn(|b| match pre.byte_level {
            true => symbol(bytes::char_of(b as u8).encode_utf8(&mut [0; 4]).as_bytes()),
            false => UNKNOWN,
        });
        let mut merges = HashMap::with_hasher(RandomState::default());
        // Kimi K2 may come without merges.
        if metadata.get(MERGES).is_some()
            || metadata.get("tokenizer.ggml.pre").and_then(|p| p.as_str()) != Some("kimi-k2")
        {
            for (rank, merge) in vocab::strings(metadata, MERGES)?.enumerate() {
                // The first part may begin with a space, and neither part may be empty.
                let Some(at) = merge.iter().skip(1).position(|&b| b == b' ').map(|n| n + 1) else {
                    continue;
                };
                let (first, second) = (&merge[..at], &merge[at + 1..]);
                if !second.is_empty() {
                    let pair = (symbol(first), symbol(second));
                    let joined = symbol(&[first, second].concat());
                    merges.entry(pair).or_insert((rank as u32, joined));
                }
            }
        }
        let fallback = match pre.byte_level {
            true => std::array::from_fn(|b| vocab.ids.get(&[b as u8][..]).copied()),
            false => vocab.byte_tokens(),
        };
        let seams = (!pre.byte_level).then(|| Seams::of(symbols.keys()));
        let words = match (pre.byte_level, pre.ignores_merges) {
            (false, _) => symbols,
            (true, false) => Texts::default(),
            (true, true) => vocab
                .ids
                .iter()
                .filter_map(|(t, &id)| Some((bytes::decode(t)?.into_boxed_slice(), id)))
                .collect(),
        };
        Ok(Bpe {
            pre,
            merges,
            bytes,
            fallback,
            words,
            tokens: vocab.tokens.len() as u32,
            seams,
        })
    }

    /// Appends the tokens of a word.
    pub(crate) fn word(&self, word: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        let whole = self.pre.ignores_merges
            || self.pre.keeps_line_breaks && word.bytes().all(|b| b == b'\n');
        if whole
            && let Some(&id) = self
                .words
                .get(word.as_bytes())
                .filter(|&&id| id < self.tokens)
        {
            return out.push(id);
        }
        merger.clear();
        if self.pre.byte_level {
            word.bytes()
                .for_each(|b| merger.push(1, self.bytes[b as usize]));
        } else {
            let symbol = |c: &[u8]| self.words.get(c).copied().unwrap_or(UNKNOWN);
            word.chars().for_each(|c| {
                merger.push(c.len_utf8(), symbol(c.encode_utf8(&mut [0; 4]).as_bytes()))
            });
        }
        merger.merge(|left, right| self.merges.get(&(left.id, right.id)).copied());
        for symbol in merger.symbols() {
            if symbol.id < self.tokens {
                out.push(symbol.id);
                continue;
            }
            for &byte in &word.as_bytes()[symbol.start as usize..][..symbol.len as usize] {
                if self.pre.byte_level {
                    let spelled = bytes::char_of(byte);
                    out.extend(
                        spelled
                            .encode_utf8(&mut [0; 4])
                            .bytes()
                            .filter_map(|b| self.fallback[b as usize]),
                    );
                } else {
                    out.extend(self.fallback[byte as usize]);
                }
            }
        }
    }
}
