//! The texts that models are measured on, in chunks.

use super::measure::{Opened, read_text};
use anyhow::{Context, bail, ensure};
use quantier::evaluate::windows::Windows;
use quantier::format::logits::Logits;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Texts that are measured together: the chunks of each follow those of the one before.
pub struct Corpus {
    /// What was read, and which chunks are its own.
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

    /// The chunks of a logits file, the first `chunks` of them. If texts are named, they must be
    /// what it was made of.
    pub fn of_logits(
        model: &Opened<'_>,
        (path, logits): (&Path, &Logits),
        texts: &[PathBuf],
        chunks: Option<usize>,
    ) -> anyhow::Result<Corpus> {
        let (shape, file) = (logits.shape(), path.display());
        let (n_ctx, n_vocab) = (shape.n_ctx as usize, shape.n_vocab as usize);
        ensure!(
            n_vocab == model.engine.vocabulary(),
            "{file}: it was made with a model of {n_vocab} tokens, and this one has {}; make it again with the base of \
             this model",
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
                "0 chunks leave nothing to score; ask for at least one"
            );
            return Ok(corpus);
        }
        let mut corpus = Corpus::of_texts(model, texts, n_ctx, chunks)?;
        let stored = logits.tokens();
        if let Some(i) = corpus.tokens.iter().zip(stored).position(|(a, b)| a != b) {
            bail!(
                "{file}: it was made of another text, or with another vocabulary: token {} of chunk {} is {} there and \
                 {} here; give the text that it was made of, or none to take it from the file",
                i % n_ctx,
                i / n_ctx,
                stored[i],
                corpus.tokens[i]
            );
        }
        // A file may hold fewer chunks than its text has: --chunks was given when it was made.
        match (corpus.tokens.len() > stored.len(), texts.len()) {
            (true, 1) => {
                corpus.tokens.truncate(stored.len());
                corpus.parts[0].1.end = shape.n_chunk as usize;
            }
            (true, _) => bail!(
                "{file}: it has {} chunks and the texts {}",
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

    /// Fails unless another model reads the same texts as the same tokens as `first`, or without
    /// texts the same tokens as the same text.
    pub fn check(
        &self,
        (first, other): (&Opened<'_>, &Opened<'_>),
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
            "it has another vocabulary: it reads the text as other tokens; compare models of one family"
        );
        Ok(())
    }

    /// The rows of a text among those of all, where every chunk has equally many.
    pub fn rows<'r, T>(&self, part: &Range<usize>, all: &'r [T]) -> &'r [T] {
        let per_chunk = all.len() / self.chunks().max(1);
        &all[part.start * per_chunk..part.end * per_chunk]
    }
}
