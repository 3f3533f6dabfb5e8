//! Texts of a run in chunks of tokens, and the division of a text into calibration and evaluation
//! parts. For an embedding model, every text of a file is a chunk.

use super::job::Runnable;
use super::options::Texts;
use super::{Error, Result};
use crate::chat::encoder::Encoder;
use crate::evaluate::windows::{self, Windows};
use crate::text::{HELD_OUT, Shared, Text, passages::Passages};
use std::borrow::Cow;

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
    Error::Text {
        name: format!("the {which} text ({})", names(texts)),
        error: windows::Error::TooShort {
            tokens,
            needed: context * windows::MIN_CHUNKS,
            n_ctx: context,
        },
        advice: match texts.iter().any(|text| text.name.ends_with(HELD_OUT)) {
            true => OF_ITS_OWN,
            false => "",
        },
    }
}

/// Names of texts with their numbers of used tokens.
pub(super) type Used = Vec<(String, u64)>;

/// The tokens of some texts, one behind the other.
pub(super) struct Tokens {
    all: Vec<u32>,
    /// The end of each text of an embedding model; None for chunks of equal length.
    ends: Option<Vec<usize>>,
    /// Numbers of tokens, and of chunks, by text.
    pub(super) used: Used,
    chunks: Vec<usize>,
}

/// The texts in chunks.
pub(super) struct Cut {
    pub(super) calibration: Tokens,
    pub(super) evaluation: Tokens,
    context: usize,
    bos: Option<u32>,
    /// Number of texts that were cut to the context.
    pub(super) shortened: usize,
    /// Most tokens of a text, or of a chunk.
    pub(super) longest: usize,
}

/// The way from texts to chunks.
struct Cutter<'c> {
    encoder: Encoder<'c>,
    context: usize,
    /// True if every text of a file is a chunk.
    are_separate: bool,
    shortened: usize,
}

impl Cutter<'_> {
    /// The tokens of `texts`, of at most this number of chunks.
    fn tokens(&mut self, which: &str, texts: &[Text], most: Option<usize>) -> Result<Tokens> {
        let most = most.map_or(usize::MAX, |most| most.max(1));
        let (mut all, mut ends) = (Vec::new(), Vec::new());
        // Tokens or texts of all texts, and whole chunks.
        let (mut found, mut whole) = (0, 0);
        let mut tokens = Tokens {
            all: Vec::new(),
            ends: None,
            used: Used::new(),
            chunks: Vec::new(),
        };
        for text in texts {
            let bad = |what| Error::Conversations {
                name: text.name.clone(),
                what,
            };
            let (start, before) = (all.len(), ends.len());
            match self.are_separate {
                true => {
                    let separate = self.encoder.separate(text, self.context).map_err(bad)?;
                    self.shortened += separate.cut;
                    for text in separate.texts {
                        if ends.len() < most {
                            all.extend_from_slice(&text);
                            ends.push(all.len());
                        }
                        (found, whole) = (found + 1, whole + 1);
                    }
                }
                false => {
                    let own = self.encoder.tokens(text).map_err(bad)?;
                    found += own.len();
                    let chunks = own.chunks_exact(self.context);
                    for chunk in chunks {
                        if ends.len() < most {
                            all.extend_from_slice(chunk);
                            ends.push(all.len());
                        }
                        whole += 1;
                    }
                }
            }
            let used = (all.len() - start) as u64;
            tokens.used.push((text.name.clone(), used));
            tokens.chunks.push(ends.len() - before);
        }
        if whole < windows::MIN_CHUNKS {
            return Err(match self.are_separate {
                true => Error::Text {
                    name: format!("the {which} text ({})", names(texts)),
                    error: windows::Error::Few(found),
                    advice: "",
                },
                false => too_short(which, texts, found, self.context),
            });
        }
        tokens.all = all;
        tokens.ends = self.are_separate.then_some(ends);
        Ok(tokens)
    }
}

fn names(texts: &[Text]) -> String {
    let names: Vec<_> = texts.iter().map(|text| &*text.name).collect();
    names.join(", ")
}

/// Tokens and the ends of texts, for keys.
fn bytes(tokens: &Tokens) -> Cow<'_, [u8]> {
    let all: &[u8] = bytemuck::cast_slice(&tokens.all);
    match &tokens.ends {
        None => Cow::Borrowed(all),
        Some(ends) => {
            let ends = ends.iter().flat_map(|end| (*end as u64).to_le_bytes());
            Cow::Owned(all.iter().copied().chain(ends).collect())
        }
    }
}

impl Cut {
    pub(super) fn new(model: Runnable<'_>, texts: &Texts) -> Result<Cut> {
        let Runnable { engine, encoder } = model;
        let tokenizer = encoder.tokenizer;
        check_context(texts.context)?;
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let are_separate = !engine.has_output();
        let context = match are_separate {
            true => engine.hyper.longest_text(texts.context),
            false => texts.context,
        };
        let mut cutter = Cutter {
            encoder,
            context,
            are_separate,
            shortened: 0,
        };
        let calibration = cutter.tokens("calibration", &texts.calibration, None)?;
        let most = texts.evaluation_chunks;
        let evaluation = cutter.tokens("evaluation", &texts.evaluation, most)?;
        Ok(Cut {
            calibration,
            evaluation,
            context: texts.context,
            bos,
            shortened: cutter.shortened,
            longest: cutter.context,
        })
    }

    /// The evaluation texts with much of the calibration texts in them.
    pub(super) fn shared(&self) -> Vec<Shared> {
        let both = [self.calibration(), self.evaluation()];
        let [Ok(calibration), Ok(evaluation)] = both else {
            return Vec::new();
        };
        let passages = Passages::of(calibration.all());
        let mut chunks = evaluation.all();
        let texts = self.evaluation.used.iter().zip(&self.evaluation.chunks);
        let shared = texts.map(|((name, _), count)| {
            let own = chunks.by_ref().take(*count);
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

    fn windows<'t>(&self, name: &str, tokens: &'t Tokens) -> Result<Windows<'t>> {
        let cut = match &tokens.ends {
            Some(ends) => Windows::of_texts(&tokens.all, ends),
            None => Windows::of_chunks(&tokens.all, self.context, self.bos),
        };
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
        let texts = self.calibration.used.iter().zip(&self.calibration.chunks);
        let texts = texts.map(|((name, _), count)| {
            let last = first + count;
            let chunks = (first..last).map(|chunk| windows.input(chunk)).collect();
            first = last;
            (name.clone(), chunks)
        });
        Ok(texts.collect())
    }

    /// Names of the calibration texts.
    pub(super) fn calibration_names(&self) -> Vec<String> {
        let names = self.calibration.used.iter().map(|(name, _)| name.clone());
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

    /// Number of chunks for sensitivities: `most` or, of texts of an embedding model, as many as have about the
    /// tokens of so many chunks.
    pub(super) fn scored_chunks(&self, most: usize) -> Result<usize> {
        let windows = self.calibration()?;
        if self.calibration.ends.is_none() {
            return Ok(most);
        }
        let tokens = most.saturating_mul(self.context).max(1);
        Ok(tokens.div_ceil(windows.mean_length()))
    }

    /// Tokens of the calibration text, for keys.
    pub(super) fn calibration_bytes(&self) -> Cow<'_, [u8]> {
        bytes(&self.calibration)
    }

    /// Tokens of the evaluation text, for keys.
    pub(super) fn evaluation_bytes(&self) -> Cow<'_, [u8]> {
        bytes(&self.evaluation)
    }

    /// Numbers of tokens of the calibration and of the evaluation text.
    pub(super) fn lengths(&self) -> [u64; 2] {
        [&self.calibration, &self.evaluation].map(|tokens| tokens.all.len() as u64)
    }
}
