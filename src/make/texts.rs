//! Texts of a run in chunks of tokens, and the division of a text into calibration and evaluation
//! parts.

use super::options::Texts;
use super::{Error, Result};
use crate::chat::encoder::Encoder;
use crate::evaluate::windows::{self, Windows};
use crate::text::{HELD_OUT, Shared, Text, passages::Passages};

/// Advice for a held-out part that is too short.
const OF_ITS_OWN: &str = "; it is a fifth of the calibration text: five times as many are needed there, or a separate \
                          evaluation text (--eval)";

impl Default for Texts {
    /// No text, in chunks of 512 tokens, all of them evaluated.
    fn default() -> Texts {
        Texts {
            calibration: Vec::new(),
            evaluation: Vec::new(),
            context: 512,
            evaluation_chunks: None,
        }
    }
}

impl Texts {
    /// Calibration texts, with about a fifth of each held out for evaluation.
    pub fn hold_out(calibration: Vec<Text>) -> Texts {
        let (calibration, evaluation) = calibration.iter().map(Text::hold_out).unzip();
        Texts {
            calibration,
            evaluation,
            ..Texts::default()
        }
    }
}

/// Checks the number of tokens of a chunk.
pub(super) fn check_context(context: usize) -> Result<()> {
    if context >= windows::MIN_CONTEXT {
        return Ok(());
    }
    Err(Error::Text {
        name: "--ctx-size".into(),
        error: windows::Error::Context(context),
        advice: "",
    })
}

/// The error for texts with too few tokens for chunks of `context`.
pub(super) fn too_short(which: &str, texts: &[Text], tokens: usize, context: usize) -> Error {
    let names: Vec<_> = texts.iter().map(|text| &*text.name).collect();
    Error::Text {
        name: format!("the {which} text ({})", names.join(", ")),
        error: windows::Error::TooShort {
            tokens,
            needed: context * windows::MIN_CHUNKS,
            n_ctx: context,
        },
        advice: match names.iter().any(|name| name.ends_with(HELD_OUT)) {
            true => OF_ITS_OWN,
            false => "",
        },
    }
}

/// Names of texts with their numbers of used tokens.
pub(super) type Used = Vec<(String, u64)>;

/// The texts in chunks.
pub(super) struct Cut {
    calibration: Vec<u32>,
    evaluation: Vec<u32>,
    context: usize,
    bos: Option<u32>,
    pub(super) calibration_tokens: Used,
    pub(super) evaluation_tokens: Used,
}

impl Cut {
    pub(super) fn new(encoder: Encoder<'_>, texts: &Texts) -> Result<Cut> {
        let tokenizer = encoder.tokenizer;
        check_context(texts.context)?;
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let cut = |which: &str, texts_of: &[Text]| -> Result<(Vec<u32>, Used)> {
            let (mut all, mut used, mut found) = (Vec::new(), Vec::new(), 0);
            for text in texts_of {
                let tokens = encoder.tokens(text).map_err(|what| Error::Conversations {
                    name: text.name.clone(),
                    what,
                })?;
                found += tokens.len();
                let whole = tokens.len() / texts.context * texts.context;
                all.extend_from_slice(&tokens[..whole]);
                used.push((text.name.clone(), whole as u64));
            }
            if all.len() < texts.context * windows::MIN_CHUNKS {
                return Err(too_short(which, texts_of, found, texts.context));
            }
            Ok((all, used))
        };
        let (calibration, calibration_tokens) = cut("calibration", &texts.calibration)?;
        let (mut evaluation, mut evaluation_tokens) = cut("evaluation", &texts.evaluation)?;
        if let Some(chunks) = texts.evaluation_chunks {
            evaluation.truncate(chunks.max(1) * texts.context);
            let mut left = evaluation.len() as u64;
            for (_, tokens) in &mut evaluation_tokens {
                *tokens = left.min(*tokens);
                left -= *tokens;
            }
        }
        Ok(Cut {
            calibration,
            evaluation,
            context: texts.context,
            bos,
            calibration_tokens,
            evaluation_tokens,
        })
    }

    /// The evaluation texts with much of the calibration texts in them.
    pub(super) fn shared(&self) -> Vec<Shared> {
        let passages = Passages::of(self.calibration.chunks(self.context));
        let mut chunks = self.evaluation.chunks(self.context);
        let shared = self.evaluation_tokens.iter().map(|(name, tokens)| {
            let own = chunks.by_ref().take(*tokens as usize / self.context);
            let found: Vec<bool> = own.map(|chunk| passages.are_in(chunk)).collect();
            Shared {
                text: name.clone(),
                shared: found.iter().filter(|is_shared| **is_shared).count(),
                chunks: found.len(),
            }
        });
        shared.filter(Shared::is_much).collect()
    }

    pub(super) fn calibration(&self) -> Result<Windows<'_>> {
        self.windows("the calibration text", &self.calibration)
    }

    pub(super) fn evaluation(&self) -> Result<Windows<'_>> {
        self.windows("the evaluation text", &self.evaluation)
    }

    fn windows<'t>(&self, name: &str, tokens: &'t [u32]) -> Result<Windows<'t>> {
        let cut = Windows::of_chunks(tokens, self.context, self.bos);
        cut.map_err(|error| Error::Text {
            name: name.into(),
            error,
            advice: "",
        })
    }

    /// The calibration texts in chunks, with their names.
    pub(super) fn calibration_chunks(&self) -> Result<Vec<(String, Vec<Vec<u32>>)>> {
        let windows = self.calibration()?;
        let mut first = 0;
        let texts = self.calibration_tokens.iter().map(|(name, tokens)| {
            let last = first + *tokens as usize / self.context;
            let chunks = (first..last).map(|chunk| windows.input(chunk)).collect();
            first = last;
            (name.clone(), chunks)
        });
        Ok(texts.collect())
    }

    /// Names of the calibration texts.
    pub(super) fn calibration_names(&self) -> Vec<String> {
        let names = self.calibration_tokens.iter().map(|(name, _)| name.clone());
        names.collect()
    }

    /// At most `most` chunks of the calibration text, spread evenly.
    pub(super) fn spread_chunks(&self, most: usize) -> Result<Vec<Vec<u32>>> {
        let windows = self.calibration()?;
        let (all, most) = (windows.chunks(), most.clamp(1, windows.chunks()));
        Ok((0..most)
            .map(|i| windows.input((2 * i + 1) * all / (2 * most)))
            .collect())
    }

    /// At most `most` chunks of the calibration text outside `spread_chunks(most)`, spread evenly.
    pub(super) fn other_chunks(&self, most: usize) -> Result<Vec<Vec<u32>>> {
        let windows = self.calibration()?;
        let (all, most) = (windows.chunks(), most.clamp(1, windows.chunks()));
        let scored: Vec<usize> = (0..most).map(|i| (2 * i + 1) * all / (2 * most)).collect();
        let others: Vec<usize> = (0..all).filter(|chunk| !scored.contains(chunk)).collect();
        let n = most.min(others.len());
        Ok((0..n)
            .map(|i| windows.input(others[(2 * i + 1) * others.len() / (2 * n)]))
            .collect())
    }

    /// Tokens of the calibration text, for keys.
    pub(super) fn calibration_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.calibration)
    }

    /// Tokens of the evaluation text, for keys.
    pub(super) fn evaluation_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.evaluation)
    }
}
