//! WordPiece (Schuster and Nakajima 2012), as llama.cpp does it for BERT: from where a word stands, the longest token.
//!
//! ```text
//! text -> letters without accents and in lower case -> words at spaces, punctuation and Chinese characters
//! word -> U+2581 word -> the longest tokens, or the unknown token for all of it
//! ```

use super::Error;
use super::unicode::{self, Kinds};
use super::vocab::{self, Vocab};
use foldhash::fast::RandomState;
use quantier_gguf::gguf::Metadata;
use std::collections::HashMap;

const LOWERCASE: &str = "tokenizer.ggml.normalizer.lowercase";
const STRIP_ACCENTS: &str = "tokenizer.ggml.normalizer.strip_accents";
const SEPARATOR: &str = "tokenizer.ggml.seperator_token_id";
/// Symbols beyond ASCII are parts of words.
const ASCII_END: char = '\u{7f}';

/// The settings of a vocabulary.
pub(crate) struct WordPiece {
    lowercase: bool,
    strips_accents: bool,
    /// The separator, which ends a text.
    pub separator: Option<u32>,
    /// Bytes of the longest token.
    longest: usize,
}

impl WordPiece {
    /// Reads the settings.
    pub(crate) fn of(metadata: &Metadata<'_>, vocab: &Vocab) -> Result<WordPiece, Error> {
        /// BERT's separator, in files that do not name it.
        const BY_DEFAULT: u32 = 102;
        let lowercase = vocab::flag(metadata, LOWERCASE)?.unwrap_or(true);
        let longest = vocab.tokens.iter().map(|token| token.text.len()).max();
        Ok(WordPiece {
            lowercase,
            strips_accents: vocab::flag(metadata, STRIP_ACCENTS)?.unwrap_or(lowercase),
            separator: vocab.named(metadata, SEPARATOR, Some(BY_DEFAULT))?,
            longest: longest.unwrap_or(0),
        })
    }

    /// Appends the tokens of a text.
    pub(crate) fn text(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut word = String::from(super::SPACE);
        let empty = word.len();
        let mut finish = |word: &mut String| {
            if word.len() > empty {
                self.word(vocab, word, out);
                word.truncate(empty);
            }
        };
        let kinds = Kinds::get();
        let mut first = HashMap::with_hasher(RandomState::default());
        for mut c in text.chars() {
            if self.strips_accents && !c.is_ascii() {
                c = *first.entry(c).or_insert_with(|| unicode::first_of_nfd(c));
            }
            let kind = kinds.of(c);
            if kind & unicode::SPACE != 0 {
                finish(&mut word);
                continue;
            }
            let is_dropped = matches!(c, '\0' | '\u{fffd}') || unicode::is_control(c);
            if is_dropped || self.strips_accents && kind & unicode::MARK != 0 {
                continue;
            }
            let is_word = kind & unicode::PUNCTUATION != 0
                || c < ASCII_END && kind & unicode::SYMBOL != 0
                || is_chinese(c);
            if is_word {
                finish(&mut word);
            }
            word.push(match self.lowercase {
                true => unicode::lower(c),
                false => c,
            });
            if is_word {
                finish(&mut word);
            }
        }
        finish(&mut word);
    }

    /// Appends the tokens of a word with its mark.
    fn word(&self, vocab: &Vocab, word: &str, out: &mut Vec<u32>) {
        let (bytes, start) = (word.as_bytes(), out.len());
        let mut at = 0;
        while at < bytes.len() {
            // One byte more than the longest token, as in the reference, finds nothing else.
            let most = bytes.len().min(at + self.longest);
            let ends = (at + 1..=most).rev();
            let mut found = ends.filter_map(|end| Some((*vocab.ids.get(&bytes[at..end])?, end)));
            let Some((id, end)) = found.next() else {
                out.truncate(start);
                break;
            };
            out.push(id);
            at = end;
        }
        if out.len() == start {
            out.extend(vocab.unknown);
        }
    }
}

/// True for characters that BERT treats as words.
fn is_chinese(c: char) -> bool {
    matches!(c as u32,
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F | 0x2B740..=0x2B81F
        // Sic; 0x2B820 was meant.
        | 0x2B920..=0x2CEAF
        | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}
