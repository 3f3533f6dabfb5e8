//! RWKV's World vocabulary: from where the text stands, the longest token.
//!
//! Tokens are bytes, written with the escapes of Python.

use super::Error;
use super::vocab::{self, Vocab};
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// The tokens of a vocabulary.
pub(crate) struct World {
    /// Of tokens of the same text the last one.
    ids: HashMap<Vec<u8>, u32, RandomState>,
    /// The lengths of the tokens that begin with a byte, longest first.
    lengths: Vec<Vec<usize>>,
}

/// The bytes of a token. As in the reference, an escape that is cut off at the end adds nothing.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        match rest.next() {
            Some(b't') => bytes.push(b'\t'),
            Some(b'n') => bytes.push(b'\n'),
            Some(b'r') => bytes.push(b'\r'),
            Some(b'x') => {
                let digit = |c: u8| match c >= b'a' {
                    true => (c - b'a').wrapping_add(10),
                    false => c.wrapping_sub(b'0'),
                };
                if let (Some(high), Some(low)) = (rest.next(), rest.next()) {
                    bytes.push((digit(high) << 4).wrapping_add(digit(low)));
                }
            }
            Some(other) => bytes.push(other),
            None => {}
        }
    }
    bytes
}

impl World {
    /// Prepares a vocabulary.
    pub(crate) fn of(vocab: &Vocab) -> Result<World, Error> {
        let mut ids = HashMap::with_capacity_and_hasher(vocab.tokens.len(), RandomState::default());
        let mut lengths = vec![Vec::new(); 256];
        for (token, id) in vocab.tokens.iter().zip(0..) {
            let bytes = unescaped(&token.text);
            let Some(first) = bytes.first() else {
                continue;
            };
            lengths[usize::from(*first)].push(bytes.len());
            ids.insert(bytes, id);
        }
        for (of_byte, byte) in lengths.iter_mut().zip(0..) {
            of_byte.sort_unstable_by(|a, b| b.cmp(a));
            of_byte.dedup();
            if of_byte.last() != Some(&1) {
                return Err(Error(format!(
                    "'{}' has no token of the byte 0x{byte:02x}, and a text with it has no tokens",
                    vocab::TOKENS
                )));
            }
        }
        Ok(World { ids, lengths })
    }

    /// Appends the tokens of a text.
    pub(crate) fn text(&self, text: &str, out: &mut Vec<u32>) {
        let mut rest = text.as_bytes();
        while let Some(first) = rest.first() {
            let lengths = self.lengths[usize::from(*first)].iter();
            let mut tokens = lengths.filter_map(|length| {
                let token = rest.get(..*length)?;
                Some((*self.ids.get(token)?, *length))
            });
            // Every byte has a token.
            let Some((id, length)) = tokens.next() else {
                return;
            };
            out.push(id);
            rest = &rest[length..];
        }
    }

    /// The text of a token.
    pub(crate) fn piece(vocab: &Vocab, id: u32) -> Vec<u8> {
        let token = vocab.tokens.get(id as usize);
        token.map_or(Vec::new(), |token| unescaped(&token.text))
    }
}
