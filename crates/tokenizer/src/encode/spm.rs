//! SentencePiece as in the reference: adjacent symbols are merged by the score of the resulting
//! token, highest first.

use super::Seams;
use super::merge::{Merger, UNKNOWN};
use super::vocab::Vocab;

/// Tables of SentencePiece beside the vocabulary.
pub(crate) struct Spm {
    /// Priority of each token by score: lower for a higher score.
    order: Vec<u32>,
    /// Tokens of single bytes, the fallback.
    bytes: [Option<u32>; 256],
    /// Boundaries without merges.
    pub seams: Seams,
}

/// An order-reversing integer of a score: lower for a higher score, equal for equal ones.
fn order(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 != 0 {
        bits
    } else {
        !bits & 0x7FFF_FFFF
    }
}

impl Spm {
    /// Prepares a vocabulary.
    pub(crate) fn of(vocab: &Vocab) -> Spm {
        let byte_tokens = vocab.byte_tokens();
        let bytes = std::array::from_fn(|b| {
            byte_tokens[b].or_else(|| vocab.ids.get(&[b as u8][..]).copied())
        });
        let order = vocab.tokens.iter().map(|t| order(t.score)).collect();
        Spm {
            order,
            bytes,
            seams: Seams::of(vocab.ids.keys()),
        }
    }

    /// Appends the tokens of a text whose spaces are U+2581.
    pub(crate) fn word(&self, vocab: &Vocab, word: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        let token = |text: &[u8]| vocab.ids.get(text).copied();
        let bytes = word.as_bytes();
        merger.clear();
        for c in word.chars() {
            merger.push(
                c.len_utf8(),
                token(c.encode_utf8(&mut [0; 4]).as_bytes()).unwrap_or(UNKNOWN),
            );
        }
        merger.merge(|left, right| {
            let id = token(&bytes[left.start as usize..(right.start + right.len) as usize])?;
            Some((self.order[id as usize], id))
        });
        for symbol in merger.symbols() {
            if symbol.id != UNKNOWN {
                out.push(symbol.id);
                continue;
            }
            for &byte in &bytes[symbol.start as usize..][..symbol.len as usize] {
                // The reference fails here if the byte has no token.
                out.extend(self.bytes[byte as usize].or(vocab.unknown));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn higher_scores_have_priority() {
        let scores = [
            f32::INFINITY,
            3.0,
            1e-30,
            0.0,
            -1e-30,
            -2.0,
            f32::NEG_INFINITY,
        ];
        assert!(scores.map(super::order).is_sorted());
        assert_eq!(super::order(0.0), super::order(-0.0));
    }
}
