//! Encodes text to tokens and back by the metadata of a GGUF, with the reference's results.
//!
//! ```text
//! text -> special: cut out special tokens -> for each part of the text
//!   gpt2, gemma4:  pre (split, pattern): words -> bpe (merge) -> tokens
//!   llama:         spaces become U+2581         -> spm (merge) -> tokens
//!   plamo2:        plamo -> tokens
//!   rwkv:          world -> tokens
//!   bert:          word_piece -> tokens
//!   t5:            unigram -> tokens
//! ```
//!
//! Departures from the reference, without effect on the tokens:
//! 1. The tokens of a word are cached within a text.
//! 2. A text without word boundaries (SentencePiece, Gemma 4) is cut at every position that no token can span; the parts
//!    are merged separately.
//! 3. Special tokens are found by one search for all.

mod bpe;
pub(crate) mod bytes;
pub(crate) mod merge;
mod pattern;
mod plamo;
mod pre;
mod special;
mod split;
mod spm;
mod unicode;
mod unigram;
mod vocab;
mod word_piece;
mod world;

use bpe::Bpe;
use foldhash::fast::RandomState;
use merge::Merger;
use plamo::Plamo;
use pre::Pre;
use quantier_gguf::gguf::Metadata;
use special::{Fragment, Special};
use spm::Spm;
use std::collections::{HashMap, HashSet};
use unigram::Unigram;
use vocab::{Defaults, Vocab};
use word_piece::WordPiece;
use world::World;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
/// SentencePiece's character for a space.
const SPACE: char = '\u{2581}';
/// Maximum number of cached words, and their maximum length in bytes.
const CACHED: usize = 1 << 16;
const CACHED_LEN: usize = 48;

/// An unusable vocabulary: the key and its defect.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// An encoder and decoder of text, thread-safe.
pub struct Tokenizer {
    vocab: Vocab,
    special: Special,
    algorithm: Algorithm,
    adds_bos: bool,
    adds_eos: bool,
    adds_space: bool,
}

enum Algorithm {
    Spm(Box<Spm>),
    Bpe(Box<Bpe>),
    Plamo(Box<Plamo>),
    World(Box<World>),
    WordPiece(Box<WordPiece>),
    Unigram(Box<Unigram>),
}

impl Tokenizer {
    /// Reads the vocabulary from `tokenizer.*`.
    ///
    /// # Errors
    /// An unsupported vocabulary or pre-tokenizer, a missing or malformed key.
    pub fn from_gguf(metadata: &Metadata<'_>) -> Result<Tokenizer, Error> {
        let model = vocab::text(metadata, MODEL)?;
        let defaults = match model {
            "llama" => Defaults {
                bos: Some(1),
                eos: Some(2),
                unknown: Some(0),
            },
            "gpt2" => Defaults {
                bos: Some(11),
                eos: Some(11),
                unknown: None,
            },
            "plamo2" => Defaults {
                bos: Some(1),
                eos: Some(2),
                unknown: Some(0),
            },
            "bert" => Defaults {
                bos: Some(101),
                eos: None,
                unknown: Some(100),
            },
            "t5" => Defaults {
                bos: None,
                eos: Some(1),
                unknown: Some(2),
            },
            "gemma4" | "rwkv" => Defaults {
                bos: None,
                eos: None,
                unknown: None,
            },
            "" => {
                return Err(Error(format!(
                    "'{MODEL}' is missing; the file has no vocabulary"
                )));
            }
            other => {
                return Err(Error(format!(
                    "'{MODEL}' is '{other}'; supported are llama, gpt2, bert, t5, gemma4, plamo2 and rwkv"
                )));
            }
        };
        let mut tokenizer = if model == "llama" {
            let vocab = Vocab::read(metadata, defaults)?;
            let (special, algorithm) = (
                Special::of(&vocab),
                Algorithm::Spm(Box::new(Spm::of(&vocab))),
            );
            Tokenizer {
                vocab,
                special,
                algorithm,
                adds_bos: true,
                adds_eos: false,
                adds_space: true,
            }
        } else if ["plamo2", "rwkv", "bert", "t5"].contains(&model) {
            let vocab = Vocab::read(metadata, defaults)?;
            let algorithm = match model {
                "bert" => Algorithm::WordPiece(Box::new(WordPiece::of(metadata, &vocab)?)),
                "t5" => Algorithm::Unigram(Box::new(Unigram::of(metadata, &vocab)?)),
                "rwkv" => Algorithm::World(Box::new(World::of(&vocab)?)),
                _ => Algorithm::Plamo(Box::new(Plamo::of(&vocab)?)),
            };
            Tokenizer {
                special: Special::of(&vocab),
                vocab,
                algorithm,
                adds_bos: model == "bert",
                adds_eos: model == "t5",
                adds_space: false,
            }
        } else {
            let name = if model == "gemma4" {
                "gemma4"
            } else {
                vocab::text(metadata, PRE)?
            };
            let pre = Pre::named(name).ok_or_else(|| {
                Error(format!(
                    "'{PRE}' is '{name}', a pre-tokenizer that is not supported"
                ))
            })?;
            let bos = defaults.bos.filter(|_| pre.has_bos);
            let vocab = Vocab::read(metadata, Defaults { bos, ..defaults })?;
            let adds_bos = pre.adds_bos;
            let bpe = Bpe::read(metadata, &vocab, pre)?;
            let special = Special::of(&vocab);
            let algorithm = Algorithm::Bpe(Box::new(bpe));
            Tokenizer {
                vocab,
                special,
                algorithm,
                adds_bos,
                adds_eos: false,
                adds_space: false,
            }
        };
        let set = |key, to: &mut bool| {
            *to = vocab::flag(metadata, key)?.unwrap_or(*to);
            Ok(())
        };
        set("tokenizer.ggml.add_space_prefix", &mut tokenizer.adds_space)?;
        set("tokenizer.ggml.add_bos_token", &mut tokenizer.adds_bos)?;
        set("tokenizer.ggml.add_eos_token", &mut tokenizer.adds_eos)?;
        tokenizer.adds_bos |=
            matches!(&tokenizer.algorithm, Algorithm::Bpe(bpe) if bpe.pre.forces_bos);
        Ok(tokenizer)
    }

    /// Encodes a text. `add_special` adds BOS and EOS tokens as the vocabulary specifies;
    /// `parse_special` recognizes control tokens in the text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut session = Session::default();
        // As in the reference, PLaMo's and RWKV's settings in the file are ignored.
        let add_special =
            add_special && !matches!(self.algorithm, Algorithm::Plamo(_) | Algorithm::World(_));
        let word_piece = match &self.algorithm {
            Algorithm::WordPiece(word_piece) => Some(word_piece),
            _ => None,
        };
        // WordPiece's settings in the file are ignored, too.
        if add_special && (self.adds_bos || word_piece.is_some()) {
            session.out.extend(self.vocab.bos);
        }
        let mut after_special = true;
        for fragment in self.special.cut(&self.vocab, text, parse_special) {
            match fragment {
                Fragment::Token(id) => {
                    session.out.push(id);
                    after_special = true;
                }
                Fragment::Text(range) => {
                    let is_unigram = matches!(self.algorithm, Algorithm::Unigram(_));
                    let space = self.adds_space && (after_special || is_unigram);
                    self.encode_fragment(&text[range], space, &mut session);
                    after_special = false;
                }
            }
        }
        match word_piece {
            Some(word_piece) if add_special => session.out.extend(word_piece.separator),
            None if add_special && self.adds_eos => session.out.extend(self.vocab.eos),
            _ => {}
        }
        session.out
    }

    fn encode_fragment<'t>(&self, text: &'t str, space: bool, session: &mut Session<'t>) {
        match &self.algorithm {
            Algorithm::Plamo(plamo) => plamo.text(text, &mut session.out),
            Algorithm::World(world) => world.text(text, &mut session.out),
            Algorithm::WordPiece(pieces) => pieces.text(&self.vocab, text, &mut session.out),
            Algorithm::Unigram(unigram) => {
                unigram.text(&self.vocab, text, space, &mut session.out);
            }
            Algorithm::Spm(spm) => {
                let mut prefix = space;
                for part in spm.seams.parts(text) {
                    session.escaped(part, std::mem::take(&mut prefix), |word, merger, out| {
                        spm.word(&self.vocab, word, merger, out);
                    });
                }
            }
            Algorithm::Bpe(bpe) => match &bpe.seams {
                Some(seams) => {
                    for line in pieces(&bpe.pre, text) {
                        for part in seams.parts(line) {
                            session.escaped(part, false, |word, merger, out| {
                                bpe.word(word, merger, out)
                            });
                        }
                    }
                }
                None => {
                    for word in pieces(&bpe.pre, text) {
                        session.word(word, |merger, out| bpe.word(word, merger, out));
                    }
                }
            },
        }
    }

    /// Decodes tokens to text, including special tokens. Byte-level BPE is decoded exactly;
    /// SentencePiece's space prefix is kept.
    pub fn decode(&self, tokens: &[u32]) -> Vec<u8> {
        tokens.iter().flat_map(|&id| self.piece(id)).collect()
    }

    /// The text of one token; empty for an unknown id.
    pub fn piece(&self, id: u32) -> Vec<u8> {
        match &self.algorithm {
            Algorithm::Plamo(_) => Plamo::piece(&self.vocab, id),
            Algorithm::World(_) => World::piece(&self.vocab, id),
            Algorithm::Bpe(bpe) => self.vocab.piece(id, bpe.pre.byte_level),
            Algorithm::Spm(_) | Algorithm::WordPiece(_) | Algorithm::Unigram(_) => {
                self.vocab.piece(id, false)
            }
        }
    }

    /// Number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab.tokens.len()
    }

    /// The BOS token.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.bos
    }

    /// The EOS token.
    pub fn eos(&self) -> Option<u32> {
        self.vocab.eos
    }

    /// True if texts get a BOS token.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// True if texts get an EOS token.
    pub fn adds_eos(&self) -> bool {
        self.adds_eos
    }

    /// True if a token ends generation.
    pub fn is_eog(&self, id: u32) -> bool {
        self.vocab.ends.contains(&id)
    }

    /// True for control tokens.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocab
            .tokens
            .get(id as usize)
            .is_some_and(|t| t.role & vocab::CONTROL != 0)
    }
}

/// Splits a text into words.
fn pieces<'t>(pre: &Pre, text: &'t str) -> impl Iterator<Item = &'t str> {
    let mut ends = vec![text.len()];
    for step in &pre.steps {
        let (mut finer, mut start) = (Vec::with_capacity(ends.len()), 0);
        for end in ends {
            step.split(text, start, end, &mut finer);
            start = end;
        }
        ends = finer;
    }
    let mut start = 0;
    ends.into_iter()
        .map(move |end| &text[std::mem::replace(&mut start, end)..end])
}

/// State of the encoding of one text.
#[derive(Default)]
struct Session<'t> {
    out: Vec<u32>,
    merger: Merger,
    /// Range in `out` of the tokens of a cached word.
    seen: HashMap<&'t str, (usize, usize), RandomState>,
    text: String,
}

impl<'t> Session<'t> {
    /// Appends the tokens of a word, from the cache or by `encode`.
    fn word(&mut self, word: &'t str, encode: impl FnOnce(&mut Merger, &mut Vec<u32>)) {
        if let Some(&(start, end)) = self.seen.get(word) {
            return self.out.extend_from_within(start..end);
        }
        let start = self.out.len();
        encode(&mut self.merger, &mut self.out);
        if word.len() <= CACHED_LEN {
            if self.seen.len() == CACHED {
                self.seen.clear();
            }
            self.seen.insert(word, (start, self.out.len()));
        }
    }

    /// The same with spaces replaced by U+2581, and with a space prefix if `space`.
    fn escaped(
        &mut self,
        word: &'t str,
        space: bool,
        encode: impl FnOnce(&str, &mut Merger, &mut Vec<u32>),
    ) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        if space {
            text.push(SPACE);
            push_escaped(&mut text, word);
            encode(&text, &mut self.merger, &mut self.out);
        } else {
            self.word(word, |merger, out| {
                push_escaped(&mut text, word);
                encode(&text, merger, out);
            });
        }
        self.text = text;
    }
}

fn push_escaped(text: &mut String, word: &str) {
    text.extend(word.chars().map(escape));
}

fn escape(c: char) -> char {
    if c == ' ' { SPACE } else { c }
}

/// Characters that precede a space in some token: merges join no other character to a space.
struct Seams(HashSet<char, RandomState>);

impl Seams {
    /// From all possible results of merges.
    fn of<'a>(texts: impl Iterator<Item = &'a Box<[u8]>>) -> Seams {
        let mut before = HashSet::with_hasher(RandomState::default());
        for text in texts {
            let text = String::from_utf8_lossy(text);
            before.extend(
                text.chars()
                    .zip(text.chars().skip(1))
                    .filter(|(_, next)| *next == SPACE)
                    .map(|(c, _)| c),
            );
        }
        Seams(before)
    }

    /// Cuts a text into parts that merge independently.
    fn parts<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let mut chars = rest.char_indices().map(|(i, c)| (i, escape(c)));
            let mut before = chars.next().map_or(SPACE, |(_, c)| c);
            let seam = chars.find(|&(_, c)| {
                let is_seam = c == SPACE && !self.0.contains(&before);
                before = c;
                is_seam
            });
            let (part, after) = rest.split_at(seam.map_or(rest.len(), |(i, _)| i));
            rest = after;
            Some(part)
        })
    }
}

#[cfg(test)]
mod tests;
