//! Which tokens make which chunk, and which of their positions are scored.
//!
//! As llama-perplexity does it: the text is cut into chunks of `n_ctx` tokens that do not overlap,
//! what is left at the end is dropped, and every chunk is evaluated on its own. Where the
//! vocabulary asks for a BOS token, it stands in place of the first token of each chunk. Positions
//! `n_ctx / 2 .. n_ctx - 1` are scored, so that each has at least half a chunk of context; each
//! predicts the token after it, as it is in the text.

/// Fewest tokens in a chunk that leave a position to score.
pub const MIN_CONTEXT: usize = 3;

/// Fewest chunks that a text must fill, as in llama-perplexity.
pub const MIN_CHUNKS: usize = 2;

/// Why a text cannot be cut into chunks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer tokens than two chunks have.
    #[error(
        "the text has {tokens} tokens and {needed} are needed ({MIN_CHUNKS} chunks of {n_ctx}); give a longer text or a shorter context"
    )]
    TooShort {
        /// Tokens that the text has.
        tokens: usize,
        /// Tokens that it must have.
        needed: usize,
        /// Tokens in a chunk.
        n_ctx: usize,
    },
    /// A chunk without a position to score.
    #[error("a context of {0} tokens leaves nothing to score; it must be at least {MIN_CONTEXT}")]
    Context(usize),
    /// Tokens that do not fill their chunks.
    #[error("{tokens} tokens are not a whole number of chunks of {n_ctx}")]
    Ragged {
        /// Tokens that there are.
        tokens: usize,
        /// Tokens in a chunk.
        n_ctx: usize,
    },
    /// No chunk was asked for.
    #[error("0 chunks leave nothing to score; ask for at least one")]
    NoChunks,
}

/// First scored position of a chunk of `n_ctx` tokens.
pub(crate) fn first_scored(n_ctx: usize) -> usize {
    n_ctx / 2
}

/// Number of scored positions in a chunk of `n_ctx` tokens.
pub(crate) fn scored(n_ctx: usize) -> usize {
    (n_ctx - first_scored(n_ctx)).saturating_sub(1)
}

/// A text in chunks.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    tokens: &'a [u32],
    n_ctx: usize,
    bos: Option<u32>,
}

impl<'a> Windows<'a> {
    /// Cuts a text into chunks of `n_ctx` tokens, at most `chunks` of them. `tokens` is the text
    /// with the BOS that the tokenizer puts before it; `bos` is that token where the vocabulary
    /// asks for it.
    ///
    /// # Errors
    /// A context of less than [`MIN_CONTEXT`] tokens, a text of less than [`MIN_CHUNKS`] chunks, 0 chunks.
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

    /// Chunks that have been cut already, `[chunks * n_ctx]` tokens: those of a logits file. One is
    /// enough.
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
            _ => Ok(Windows { tokens, n_ctx, bos }),
        }
    }

    /// Number of chunks, at least 1.
    pub fn chunks(&self) -> usize {
        self.tokens.len() / self.n_ctx
    }

    /// Tokens in a chunk.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// All tokens that are used, as they are in the text: `[chunks * n_ctx]`. A logits file keeps
    /// these.
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

    /// What the model reads in a chunk: `[n_ctx]` tokens, the first replaced by BOS where there is
    /// one.
    ///
    /// # Panics
    ///
    /// If there is no such chunk.
    pub fn input(&self, chunk: usize) -> Vec<u32> {
        let mut input = self.chunk(chunk).to_vec();
        if let Some(bos) = self.bos {
            input[0] = bos;
        }
        input
    }

    /// What the scored positions of a chunk should predict: `[scored]` tokens.
    ///
    /// # Panics
    ///
    /// If there is no such chunk.
    pub(crate) fn labels(&self, chunk: usize) -> &'a [u32] {
        &self.chunk(chunk)[self.first_scored() + 1..]
    }

    fn chunk(&self, chunk: usize) -> &'a [u32] {
        &self.tokens[chunk * self.n_ctx..][..self.n_ctx]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_second_half_is_scored_and_the_first_token_becomes_bos() {
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
    fn an_odd_context_scores_what_the_reference_scores() {
        let tokens: Vec<u32> = (0..14).collect();
        let windows = Windows::of_text(&tokens, 7, None, None).unwrap();
        assert_eq!((windows.first_scored(), windows.scored()), (3, 3));
        assert_eq!(windows.labels(1), [11, 12, 13]);
    }

    #[test]
    fn a_text_that_is_too_short_says_how_much_is_missing() {
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
    fn what_leaves_nothing_to_score_is_refused() {
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
        fn every_label_is_the_token_after_its_position(
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
                    // The next token of the text; the input has it too, since only position 0 is
                    // replaced.
                    prop_assert_eq!(label, tokens[chunk * n_ctx + at + 1]);
                    prop_assert_eq!(input[at + 1], label);
                }
            }
        }
    }
}
