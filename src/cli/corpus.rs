//! Evaluation texts, cut into chunks.

use super::measure::{Opened, read_text};
use anyhow::{Context, bail, ensure};
use quantier_engine::evaluate::windows::Windows;
use quantier_gguf::logits::Logits;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An open logits file.
pub struct LogitsFile<'a> {
    pub path: &'a Path,
    pub logits: Logits,
}

impl LogitsFile<'_> {
    pub fn open(path: &Path) -> anyhow::Result<LogitsFile<'_>> {
        let logits = Logits::open(path)?;
        Ok(LogitsFile { path, logits })
    }
}

/// The chunks of several texts, in sequence.
pub struct Corpus {
    /// The texts with their ranges of chunks.
    pub parts: Vec<(PathBuf, Range<usize>)>,
    tokens: Vec<u32>,
    n_ctx: usize,
    bos: Option<u32>,
}

impl Corpus {
    /// Reads texts and cuts them into chunks of `n_ctx` tokens.
    pub fn of_texts(
        model: &Opened<'_>,
        paths: &[PathBuf],
        n_ctx: usize,
        chunks: Option<usize>,
    ) -> anyhow::Result<Corpus> {
        let mut corpus = Corpus {
            parts: Vec::new(),
            tokens: Vec::new(),
            n_ctx,
            bos: model.chunk_bos(),
        };
        for path in paths {
            let tokens = model.tokenizer.encode(&read_text(path)?, true, false);
            let cut = Windows::of_text(&tokens, n_ctx, chunks, corpus.bos);
            corpus.push(
                path,
                cut.with_context(|| path.display().to_string())?.tokens(),
            );
        }
        Ok(corpus)
    }

    /// The first `chunks` chunks of a logits file. `texts`, if any, must match the file's tokens.
    pub fn of_logits(
        model: &Opened<'_>,
        LogitsFile { path, logits }: &LogitsFile<'_>,
        texts: &[PathBuf],
        chunks: Option<usize>,
    ) -> anyhow::Result<Corpus> {
        let (shape, file) = (logits.shape(), path.display());
        let (n_ctx, n_vocab) = (shape.n_ctx as usize, shape.n_vocab as usize);
        ensure!(
            n_vocab == model.engine.vocabulary(),
            "{file}: written by a model with {n_vocab} tokens, but this one has {}; write it again with the base of this \
             model",
            model.engine.vocabulary()
        );
        if texts.is_empty() {
            let mut corpus = Corpus {
                parts: Vec::new(),
                tokens: Vec::new(),
                n_ctx,
                bos: model.chunk_bos(),
            };
            let used = chunks.map_or(shape.n_chunk as usize, |chunks| {
                chunks.min(shape.n_chunk as usize)
            });
            corpus.push(path, &logits.tokens()[..used * n_ctx]);
            ensure!(
                used > 0,
                "0 chunks leave nothing to score; use at least one"
            );
            return Ok(corpus);
        }
        let mut corpus = Corpus::of_texts(model, texts, n_ctx, chunks)?;
        let stored = logits.tokens();
        if let Some(i) = corpus.tokens.iter().zip(stored).position(|(a, b)| a != b) {
            bail!(
                "{file}: written from another text or with another vocabulary: token {} of chunk {} is {} there and {} \
                 here; give its own text, or none to take the tokens from the file",
                i % n_ctx,
                i / n_ctx,
                stored[i],
                corpus.tokens[i]
            );
        }
        // A file written with --chunks holds fewer chunks than its text.
        match (corpus.tokens.len() > stored.len(), texts.len()) {
            (true, 1) => {
                corpus.tokens.truncate(stored.len());
                corpus.parts[0].1.end = shape.n_chunk as usize;
            }
            (true, _) => bail!(
                "{file}: the file has {} chunks, but the texts have {}",
                shape.n_chunk,
                corpus.chunks()
            ),
            (false, _) => {}
        }
        Ok(corpus)
    }

    fn push(&mut self, path: &Path, tokens: &[u32]) {
        let start = self.chunks();
        self.tokens.extend_from_slice(tokens);
        self.parts.push((path.to_owned(), start..self.chunks()));
    }

    fn chunks(&self) -> usize {
        self.tokens.len() / self.n_ctx
    }

    /// All chunks.
    pub fn windows(&self) -> anyhow::Result<Windows<'_>> {
        Ok(Windows::of_chunks(&self.tokens, self.n_ctx, self.bos)?)
    }

    /// Fails unless `other` tokenizes the texts like `first` or, without texts, decodes the tokens
    /// to the same text.
    pub fn check(
        &self,
        first: &Opened<'_>,
        other: &Opened<'_>,
        texts: &[PathBuf],
        chunks: Option<usize>,
    ) -> anyhow::Result<()> {
        let same = match texts {
            [] => first.tokenizer.decode(&self.tokens) == other.tokenizer.decode(&self.tokens),
            texts => {
                let read = Corpus::of_texts(other, texts, self.n_ctx, chunks);
                read.is_ok_and(|read| read.bos == self.bos && read.tokens.starts_with(&self.tokens))
            }
        };
        ensure!(
            same,
            "its vocabulary differs: it splits the text into other tokens; compare models of one family"
        );
        Ok(())
    }

    /// Rows of one text; every chunk has the same number of rows.
    pub fn rows<'r, T>(&self, part: &Range<usize>, all: &'r [T]) -> &'r [T] {
        let per_chunk = all.len() / self.chunks().max(1);
        &all[part.start * per_chunk..part.end * per_chunk]
    }
}
