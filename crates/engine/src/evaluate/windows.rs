//! Chunks of a text, and their scored positions.
//!
//! As in llama-perplexity, the text is split into disjoint chunks of `n_ctx` tokens, an incomplete
//! last chunk is dropped, and every chunk is evaluated separately. If the vocabulary requires a BOS
//! token, it replaces the first token of each chunk. Positions `n_ctx / 2 .. n_ctx - 1` are scored,
//! so that each has at least half a chunk of context; each predicts the next token of the text.
//!
//! For an embedding model, every text is a chunk, with all of its tokens, and nothing is scored.

use std::ops::Range;

/// Minimum tokens per chunk with a scored position.
pub const MIN_CONTEXT: usize = 3;

/// Minimum chunks of a text, as in llama-perplexity.
pub const MIN_CHUNKS: usize = 2;

/// Errors of splitting a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer tokens than two chunks.
    #[error(
        "the text has {tokens} tokens and {needed} are needed ({MIN_CHUNKS} chunks of {n_ctx}); give a longer text or a shorter context"
    )]
    TooShort {
        /// Tokens in the text.
        tokens: usize,
        /// Tokens required.
        needed: usize,
        /// Tokens per chunk.
        n_ctx: usize,
    },
    /// Fewer texts than two, for an embedding model.
    #[error(
        "there are {0} texts, and 2 are needed; empty lines separate texts or, in a file without any, line breaks"
    )]
    Few(usize),
    /// Chunks without a scored position.
    #[error("a context of {0} tokens leaves nothing to score; it must be at least {MIN_CONTEXT}")]
    Context(usize),
    /// Tokens that do not fill their chunks.
    #[error("{tokens} tokens are not a whole number of chunks of {n_ctx}")]
    Ragged {
        /// Number of tokens.
        tokens: usize,
        /// Tokens per chunk.
        n_ctx: usize,
    },
    /// Zero chunks requested.
    #[error("0 chunks leave nothing to score; ask for at least one")]
    NoChunks,
}

/// First scored position in a chunk of `n_ctx` tokens.
pub(crate) fn first_scored(n_ctx: usize) -> usize {
    n_ctx / 2
}

/// Number of scored positions in a chunk of `n_ctx` tokens.
pub(crate) fn scored(n_ctx: usize) -> usize {
    (n_ctx - first_scored(n_ctx)).saturating_sub(1)
}

/// A text split into chunks.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    tokens: &'a [u32],
    /// The ends of the texts of an embedding model, ascending; None for chunks of equal length.
    ends: Option<&'a [usize]>,
    /// Tokens of a chunk, or of the longest text.
    n_ctx: usize,
    bos: Option<u32>,
}

impl<'a> Windows<'a> {
    /// Splits a text into chunks of `n_ctx` tokens, at most `chunks`. `tokens` includes the BOS
    /// that the tokenizer adds; `bos` is that token if the vocabulary requires it.
    ///
    /// # Errors
    /// A context of less than [`MIN_CONTEXT`] tokens, a text of less than [`MIN_CHUNKS`] chunks, 0
    /// chunks.
    pub fn of_text(
        tokens: &'a [u32],
        n_ctx: usize,
        chunks: Option<usize>,
        bos: Option<u32>,
    ) -> Result<Windows<'a>, Error> {
        if n_ctx < MIN_CONTEXT {
            return Err(Error::Context(n_ctx));
        }
        let needed = n_ctx.saturating_mul(MIN_CHUNKS);
        if tokens.len() < needed {
            return Err(Error::TooShort {
                tokens: tokens.len(),
                needed,
                n_ctx,
            });
        }
        let whole = tokens.len() / n_ctx;
        let chunks = chunks.map_or(whole, |chunks| chunks.min(whole));
        Windows::of_chunks(&tokens[..chunks * n_ctx], n_ctx, bos)
    }

    /// Chunks from a logits file, `[chunks * n_ctx]` tokens; at least one.
    ///
    /// # Errors
    /// A context of less than [`MIN_CONTEXT`] tokens, no tokens, an incomplete chunk.
    pub fn of_chunks(
        tokens: &'a [u32],
        n_ctx: usize,
        bos: Option<u32>,
    ) -> Result<Windows<'a>, Error> {
        match (n_ctx, tokens.len()) {
            (..MIN_CONTEXT, _) => Err(Error::Context(n_ctx)),
            (_, 0) => Err(Error::NoChunks),
            (_, tokens) if !tokens.is_multiple_of(n_ctx) => Err(Error::Ragged { tokens, n_ctx }),
            _ => Ok(Windows {
                tokens,
                ends: None,
                n_ctx,
                bos,
            }),
        }
    }

    /// Texts of an embedding model, one behind the other: the end of each in `tokens`.
    ///
    /// # Errors
    /// No texts, an empty one, ends that are not those of the tokens.
    pub fn of_texts(tokens: &'a [u32], ends: &'a [usize]) -> Result<Windows<'a>, Error> {
        let starts = std::iter::once(&0).chain(ends);
        let lengths = starts.zip(ends).map(|(start, end)| end.checked_sub(*start));
        let lengths: Option<Vec<usize>> = lengths.collect();
        let lengths = lengths.filter(|lengths| lengths.iter().all(|length| *length > 0));
        let longest = lengths.and_then(|lengths| lengths.into_iter().max());
        match longest.filter(|_| ends.last() == Some(&tokens.len())) {
            Some(n_ctx) => Ok(Windows {
                tokens,
                ends: Some(ends),
                n_ctx,
                bos: None,
            }),
            None => Err(Error::NoChunks),
        }
    }

    /// Some of the chunks.
    ///
    /// # Panics
    ///
    /// If the range is empty or exceeds the chunks.
    pub fn range(&self, chunks: Range<usize>) -> Windows<'a> {
        assert!(!chunks.is_empty(), "a range without chunks");
        assert!(self.ends.is_none(), "texts are run together");
        Windows {
            tokens: &self.tokens[chunks.start * self.n_ctx..chunks.end * self.n_ctx],
            ..*self
        }
    }

    /// Number of chunks, at least 1.
    pub fn chunks(&self) -> usize {
        match self.ends {
            Some(ends) => ends.len(),
            None => self.tokens.len() / self.n_ctx,
        }
    }

    /// True if all chunks have the same length.
    pub fn are_even(&self) -> bool {
        self.all().all(|chunk| chunk.len() == self.n_ctx)
    }

    /// Tokens per chunk; of texts, those of the longest.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Mean number of tokens of a chunk, rounded down.
    pub fn mean_length(&self) -> usize {
        self.tokens.len() / self.chunks()
    }

    /// All tokens in use, as in the text: `[chunks * n_ctx]`. Stored in logits files.
    pub fn tokens(&self) -> &'a [u32] {
        self.tokens
    }

    /// First scored position of every chunk.
    pub(crate) fn first_scored(&self) -> usize {
        first_scored(self.n_ctx)
    }

    /// Number of scored positions in every chunk.
    pub(crate) fn scored(&self) -> usize {
        scored(self.n_ctx)
    }

    /// The tokens of each chunk, as in the text.
    pub fn all(&self) -> impl Iterator<Item = &'a [u32]> + use<'a> {
        let windows = *self;
        (0..windows.chunks()).map(move |chunk| windows.chunk(chunk))
    }

    /// Input of the model for a chunk: `[n_ctx]` tokens, the first replaced by BOS if there is one.
    ///
    /// # Panics
    ///
    /// If the chunk does not exist.
    pub fn input(&self, chunk: usize) -> Vec<u32> {
        let mut input = self.chunk(chunk).to_vec();
        if let Some(bos) = self.bos {
            input[0] = bos;
        }
        input
    }

    /// Inputs of the model for all chunks.
    pub fn inputs(&self) -> Vec<Vec<u32>> {
        (0..self.chunks()).map(|chunk| self.input(chunk)).collect()
    }

    /// Labels of a chunk's scored positions: `[scored]` tokens.
    ///
    /// # Panics
    ///
    /// If the chunk does not exist.
    pub(crate) fn labels(&self, chunk: usize) -> &'a [u32] {
        &self.chunk(chunk)[self.first_scored() + 1..]
    }

    fn chunk(&self, chunk: usize) -> &'a [u32] {
        match self.ends {
            None => &self.tokens[chunk * self.n_ctx..][..self.n_ctx],
            Some(ends) => {
                let start = chunk.checked_sub(1).map_or(0, |before| ends[before]);
                &self.tokens[start..ends[chunk]]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn second_half_is_scored_and_first_token_is_bos() {
        let tokens: Vec<u32> = (10..29).collect();
        let windows = Windows::of_text(&tokens, 8, None, Some(1)).unwrap();
        assert_eq!(
            (windows.chunks(), windows.first_scored(), windows.scored()),
            (2, 4, 3)
        );
        assert_eq!(windows.input(0), [1, 11, 12, 13, 14, 15, 16, 17]);
        assert_eq!(windows.input(1), [1, 19, 20, 21, 22, 23, 24, 25]);
        assert_eq!(windows.labels(0), [15, 16, 17]);
        assert_eq!(windows.labels(1), [23, 24, 25]);
        assert_eq!(windows.tokens(), (10..26).collect::<Vec<u32>>());
        assert_eq!(
            Windows::of_text(&tokens, 8, None, None).unwrap().input(1)[0],
            18
        );
    }

    #[test]
    fn texts_are_chunks_of_their_own_lengths() {
        let tokens: Vec<u32> = (0..9).collect();
        let windows = Windows::of_texts(&tokens, &[2, 7, 9]).unwrap();
        assert_eq!((windows.chunks(), windows.n_ctx()), (3, 5));
        assert_eq!(windows.input(0), [0, 1]);
        assert_eq!(windows.input(1), [2, 3, 4, 5, 6]);
        assert!(!windows.are_even());
        assert!(Windows::of_texts(&tokens, &[3, 6, 9]).unwrap().are_even());
        for ends in [&[][..], &[0, 9], &[5, 4, 9], &[3, 3, 9], &[2, 7]] {
            assert!(Windows::of_texts(&tokens, ends).is_err(), "{ends:?}");
        }
    }

    #[test]
    fn odd_contexts_score_like_the_reference() {
        let tokens: Vec<u32> = (0..14).collect();
        let windows = Windows::of_text(&tokens, 7, None, None).unwrap();
        assert_eq!((windows.first_scored(), windows.scored()), (3, 3));
        assert_eq!(windows.labels(1), [11, 12, 13]);
    }

    #[test]
    fn short_texts_report_the_required_length() {
        let error = Windows::of_text(&[0; 15], 8, None, None).unwrap_err();
        assert_eq!(
            error,
            Error::TooShort {
                tokens: 15,
                needed: 16,
                n_ctx: 8
            }
        );
        let text = error.to_string();
        assert!(
            text.contains("has 15 tokens and 16 are needed (2 chunks of 8)"),
            "{text}"
        );
    }

    #[test]
    fn windows_without_scored_positions_are_refused() {
        assert_eq!(
            Windows::of_text(&[0; 9], 2, None, None).unwrap_err(),
            Error::Context(2)
        );
        assert_eq!(
            Windows::of_text(&[0; 9], 0, None, None).unwrap_err(),
            Error::Context(0)
        );
        assert_eq!(
            Windows::of_text(&[0; 9], 4, Some(0), None).unwrap_err(),
            Error::NoChunks
        );
        assert_eq!(
            Windows::of_chunks(&[0; 9], 4, None).unwrap_err(),
            Error::Ragged {
                tokens: 9,
                n_ctx: 4
            }
        );
        assert_eq!(Windows::of_chunks(&[0; 4], 4, None).unwrap().scored(), 1);
        assert!(Windows::of_text(&[0; 9], usize::MAX, None, None).is_err());
    }

    proptest! {
        #[test]
        fn labels_are_the_next_tokens(
            n_ctx in 3_usize..40, length in 0_usize..400, limit in 1_usize..9
        ) {
            let tokens: Vec<u32> = (100..100 + length as u32).collect();
            let Ok(windows) = Windows::of_text(&tokens, n_ctx, Some(limit), Some(7)) else {
                prop_assert!(length < 2 * n_ctx);
                return Ok(());
            };
            prop_assert_eq!(windows.chunks(), limit.min(length / n_ctx));
            for chunk in 0..windows.chunks() {
                let input = windows.input(chunk);
                let labels = windows.labels(chunk);
                prop_assert_eq!(labels.len(), windows.scored());
                for (i, &label) in labels.iter().enumerate() {
                    let at = windows.first_scored() + i;
                    // The next token of the text; the input contains it too, since only position 0
                    // is replaced.
                    prop_assert_eq!(label, tokens[chunk * n_ctx + at + 1]);
                    prop_assert_eq!(input[at + 1], label);
                }
            }
        }
    }
}
