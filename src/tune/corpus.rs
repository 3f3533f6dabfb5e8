//! The texts in chunks of tokens: for training, for decisions, for the report.

use super::{Error, Result};
use crate::chat::encoder::Encoder;
use crate::evaluate::windows::{self, Windows};
use crate::resume::KeyBuilder;
pub use crate::text::Text;
use crate::text::{Shared, passages::Passages};
use quantier_core::rng::Rng;
use std::ops::Range;

/// Fewest chunks for training, and fewest that are held out.
const LEAST_TRAINED: usize = 16;
const LEAST_HELD_OUT: usize = 4;
/// Most held-out chunks of all texts together: more do not sharpen decisions, and cost time.
const MOST_HELD_OUT: usize = 128;

/// One chunk in this many of a text in chunks is held out.
const HELD_OUT_EVERY: usize = 5;

/// All chunks of a run.
pub struct Corpus {
    /// The chunks for training, then those that are held out.
    pub(super) chunks: Vec<Vec<u32>>,
    /// Number of chunks for training.
    pub(super) trained: usize,
    /// The held-out chunks of each text, and its name.
    pub(super) held_out: Vec<(String, Range<usize>)>,
    /// Tokens of each chunk.
    pub(super) context: usize,
}

/// The tokens of some texts, in chunks.
#[derive(Default)]
struct Cut {
    chunks: Vec<Vec<u32>>,
    parts: Vec<(String, Range<usize>)>,
    tokens: usize,
}

impl Cut {
    fn new(encoder: Encoder<'_>, texts: &[Text], context: usize) -> Result<Cut> {
        let tokenizer = encoder.tokenizer;
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let mut cut = Cut::default();
        for text in texts {
            let tokens = encoder.tokens(text).map_err(|what| Error::Conversations {
                name: text.name.clone(),
                what,
            })?;
            cut.tokens += tokens.len();
            let whole = tokens.len() / context.max(1) * context;
            let first = cut.chunks.len();
            match Windows::of_chunks(&tokens[..whole], context, bos) {
                Ok(windows) => {
                    let inputs = (0..windows.chunks()).map(|chunk| windows.input(chunk));
                    cut.chunks.extend(inputs);
                }
                Err(windows::Error::NoChunks) => {}
                Err(error) => return Err(Error::Context(error)),
            }
            cut.parts.push((text.name.clone(), first..cut.chunks.len()));
        }
        Ok(cut)
    }

    fn check_length(&self, purpose: &'static str, least: usize, context: usize) -> Result<()> {
        match self.chunks.len() >= least {
            true => Ok(()),
            false => Err(Error::TooShort {
                texts: self.parts.len(),
                tokens: self.tokens,
                purpose,
                needed: least * context,
                total: (LEAST_TRAINED + LEAST_TRAINED / 4 + LEAST_HELD_OUT) * context,
            }),
        }
    }

    /// Keeps at most `most` chunks, of each text about the same share, spread evenly.
    fn thin(&mut self, most: usize) {
        let all = self.chunks.len();
        if all <= most {
            return;
        }
        let mut kept = Vec::with_capacity(most);
        for (_, part) in &mut self.parts {
            let here = (part.len() * most / all).max(part.len().min(1));
            let first = kept.len();
            for i in 0..here {
                let at = part.start + (2 * i + 1) * part.len() / (2 * here);
                kept.push(std::mem::take(&mut self.chunks[at]));
            }
            *part = first..kept.len();
        }
        self.chunks = kept;
    }

    /// Takes out the chunks with one of these passages; returns the first text with too many of them.
    fn without(&mut self, passages: &Passages<'_>) -> Option<Shared> {
        let (mut kept, mut found) = (Vec::with_capacity(self.chunks.len()), None);
        for (name, part) in &mut self.parts {
            let first = kept.len();
            let own = self.chunks[part.clone()].iter_mut().map(std::mem::take);
            kept.extend(own.filter(|chunk| !passages.are_in(chunk)));
            let shared = Shared {
                text: name.clone(),
                shared: part.len() - (kept.len() - first),
                chunks: part.len(),
            };
            found = found.or(Some(shared).filter(Shared::is_much));
            *part = first..kept.len();
        }
        self.chunks = kept;
        found
    }
}

impl Corpus {
    /// Cuts the texts. Without texts to hold out, about a fifth of each is held out, less chunks that
    /// repeat passages of the rest.
    ///
    /// # Errors
    /// Too few tokens, a text to hold out with passages of the training texts.
    pub fn new(
        encoder: Encoder<'_>,
        texts: &[Text],
        to_hold_out: &[Text],
        context: usize,
    ) -> Result<Corpus> {
        let halves: (Vec<Text>, Vec<Text>) = texts.iter().map(Text::hold_out).unzip();
        let (trained, held_out) = match to_hold_out.is_empty() {
            true => (&halves.0[..], &halves.1[..]),
            false => (texts, to_hold_out),
        };
        let trained = Cut::new(encoder, trained, context)?;
        let held_out = Cut::new(encoder, held_out, context)?;
        Corpus::of_cuts(trained, held_out, !to_hold_out.is_empty(), context)
    }

    /// Texts that are cut already: names, and chunks of `context` tokens. Every fifth chunk is held out, less
    /// those that repeat passages of the rest.
    ///
    /// # Errors
    /// Too few chunks.
    pub fn of_chunks(texts: Vec<(String, Vec<Vec<u32>>)>, context: usize) -> Result<Corpus> {
        let [mut trained, mut held_out] = [Cut::default(), Cut::default()];
        for (name, chunks) in texts {
            let numbered = chunks.into_iter().enumerate();
            let (held, kept): (Vec<_>, Vec<_>) =
                numbered.partition(|(at, _)| at % HELD_OUT_EVERY == HELD_OUT_EVERY - 1);
            for (cut, chunks) in [(&mut trained, kept), (&mut held_out, held)] {
                let first = cut.chunks.len();
                cut.chunks
                    .extend(chunks.into_iter().map(|(_, chunk)| chunk));
                cut.tokens += (cut.chunks.len() - first) * context;
                cut.parts.push((name.clone(), first..cut.chunks.len()));
            }
        }
        Corpus::of_cuts(trained, held_out, false, context)
    }

    fn of_cuts(trained: Cut, mut held_out: Cut, is_given: bool, context: usize) -> Result<Corpus> {
        trained.check_length("training", LEAST_TRAINED, context)?;
        held_out.check_length("decisions", LEAST_HELD_OUT, context)?;
        let passages = Passages::of(trained.chunks.iter().map(Vec::as_slice));
        let found = held_out.without(&passages);
        drop(passages);
        if let (Some(held_out), true) = (found, is_given) {
            let names: Vec<&str> = trained.parts.iter().map(|(name, _)| &**name).collect();
            return Err(Error::Shared {
                held_out,
                training: names.join(", "),
            });
        }
        held_out.check_length(
            "decisions without passages of the rest",
            LEAST_HELD_OUT,
            context,
        )?;
        held_out.thin(MOST_HELD_OUT);
        let first = trained.chunks.len();
        let parts = held_out.parts.into_iter();
        let parts = parts.map(|(name, part)| (name, first + part.start..first + part.end));
        let parts = parts.filter(|(_, part)| !part.is_empty()).collect();
        let mut chunks = trained.chunks;
        chunks.extend(held_out.chunks);
        Ok(Corpus {
            chunks,
            trained: first,
            held_out: parts,
            context,
        })
    }

    /// Adds all chunks to a key.
    pub(super) fn with(&self, key: KeyBuilder) -> KeyBuilder {
        let mut key = key.with("trained", &(self.trained as u64).to_le_bytes());
        for (_, part) in &self.held_out {
            let ends = [part.start as u64, part.end as u64];
            key = key.with("held out", bytemuck::cast_slice(&ends));
        }
        let chunks = self.chunks.iter();
        chunks.fold(key, |key, chunk| {
            key.with("chunk", bytemuck::cast_slice(chunk))
        })
    }

    /// The chunks of step `number`, from 0 on: `batch` of those for training. Every pass over the text
    /// has another order, which depends on `seed` alone.
    pub(super) fn batch(&self, number: usize, batch: usize, seed: u64) -> Vec<usize> {
        let at = |i: usize| {
            let (pass, place) = (i / self.trained, i % self.trained);
            self.order(pass, seed)[place]
        };
        (number * batch..(number + 1) * batch).map(at).collect()
    }

    fn order(&self, pass: usize, seed: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.trained).collect();
        Rng::new(seed ^ (pass as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).shuffle(&mut order);
        order
    }
}
