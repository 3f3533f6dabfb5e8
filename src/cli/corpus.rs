//! Evaluation texts as sequences: chunks of plain text, and conversations.

use super::measure::{Opened, read_text};
use anyhow::{Context, bail, ensure};
use quantier::chat::conversation::{self, Conversation, Renderer};
use quantier::chat::template::ChatTemplate;
use quantier_engine::evaluate::sequences::{Sequence, Sequences};
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

/// Scored tokens of conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ChatTokens {
    /// The assistant's only.
    Assistant,
    /// All.
    All,
}

/// The evaluation texts of a command.
#[derive(Clone, Copy)]
pub struct Request<'r> {
    pub texts: &'r [PathBuf],
    /// Conversations, with the template that renders them.
    pub chats: Option<Chats<'r>>,
    /// Tokens per chunk of a plain text.
    pub n_ctx: usize,
    /// Maximum number of chunks, or of conversations, per text.
    pub chunks: Option<usize>,
    /// True if sequences may exceed the model's context.
    pub force_context: bool,
}

/// Files of conversations.
#[derive(Clone, Copy)]
pub struct Chats<'r> {
    pub files: &'r [PathBuf],
    pub template: &'r ChatTemplate,
    pub tokens: ChatTokens,
}

/// A text with its range of sequences.
pub struct Part {
    pub path: PathBuf,
    pub sequences: Range<usize>,
    /// The line of each sequence; None for chunks of a plain text.
    pub lines: Option<Vec<usize>>,
}

/// The sequences of several texts.
pub struct Corpus {
    pub parts: Vec<Part>,
    pub sequences: Sequences,
    /// The chunks of plain texts, which come first.
    tokens: Vec<u32>,
    pub n_ctx: usize,
    bos: Option<u32>,
}

impl Corpus {
    /// Reads texts and cuts them into chunks; renders conversations.
    pub fn read(model: &Opened<'_>, request: &Request<'_>) -> anyhow::Result<Corpus> {
        let mut corpus = Corpus::empty(model, request.n_ctx);
        if !request.texts.is_empty() {
            check_context(model, request)?;
        }
        for path in request.texts {
            let tokens = model.tokenizer.encode(&read_text(path)?, true, false);
            let cut = Windows::of_text(&tokens, request.n_ctx, request.chunks, corpus.bos);
            let cut = cut.with_context(|| path.display().to_string())?;
            corpus.push(path, cut.tokens());
        }
        corpus.finish_windows()?;
        if let Some(chats) = request.chats {
            let mut all = corpus.sequences.all().to_vec();
            for path in chats.files {
                let part = chats.read(model, path, request)?;
                let start = all.len();
                let (lines, sequences): (Vec<_>, Vec<_>) = part.into_iter().unzip();
                all.extend(sequences);
                corpus.parts.push(Part {
                    path: path.clone(),
                    sequences: start..all.len(),
                    lines: Some(lines),
                });
            }
            corpus.sequences = all.into_iter().collect();
        }
        ensure!(
            corpus.sequences.rows() > 0,
            "the texts leave nothing to score"
        );
        Ok(corpus)
    }

    /// The first chunks of a logits file. Texts, if any, must match the file's tokens.
    pub fn of_logits(
        model: &Opened<'_>,
        LogitsFile { path, logits }: &LogitsFile<'_>,
        request: &Request<'_>,
    ) -> anyhow::Result<Corpus> {
        let (shape, file) = (logits.shape(), path.display());
        let (n_ctx, n_vocab) = (shape.n_ctx as usize, shape.n_vocab as usize);
        ensure!(
            n_vocab == model.engine.vocabulary(),
            "{file}: written by a model with {n_vocab} tokens, but this one has {}; write it again with the base of this \
             model",
            model.engine.vocabulary()
        );
        let request = &Request { n_ctx, ..*request };
        if request.texts.is_empty() {
            let mut corpus = Corpus::empty(model, n_ctx);
            let stored = shape.n_chunk as usize;
            let used = request.chunks.map_or(stored, |chunks| chunks.min(stored));
            corpus.push(path, &logits.tokens()[..used * n_ctx]);
            ensure!(
                used > 0,
                "0 chunks leave nothing to score; use at least one"
            );
            check_context(model, request)?;
            corpus.finish_windows()?;
            return Ok(corpus);
        }
        let mut corpus = Corpus::read(model, request)?;
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
        match (corpus.tokens.len() > stored.len(), request.texts.len()) {
            (true, 1) => {
                corpus.tokens.truncate(stored.len());
                corpus.parts[0].sequences.end = shape.n_chunk as usize;
                corpus.finish_windows()?;
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

    fn empty(model: &Opened<'_>, n_ctx: usize) -> Corpus {
        Corpus {
            parts: Vec::new(),
            sequences: Sequences::default(),
            tokens: Vec::new(),
            n_ctx,
            bos: model.chunk_bos(),
        }
    }

    fn push(&mut self, path: &Path, tokens: &[u32]) {
        let start = self.chunks();
        self.tokens.extend_from_slice(tokens);
        self.parts.push(Part {
            path: path.to_owned(),
            sequences: start..self.chunks(),
            lines: None,
        });
    }

    /// Number of chunks of plain texts.
    fn chunks(&self) -> usize {
        self.tokens.len() / self.n_ctx.max(1)
    }

    /// Makes sequences of the chunks.
    fn finish_windows(&mut self) -> anyhow::Result<()> {
        if !self.tokens.is_empty() {
            self.sequences = Sequences::from(&self.windows()?);
        }
        Ok(())
    }

    /// The chunks of the plain texts, for a logits file.
    pub fn windows(&self) -> anyhow::Result<Windows<'_>> {
        Ok(Windows::of_chunks(&self.tokens, self.n_ctx, self.bos)?)
    }

    /// Fails unless `other` tokenizes the texts alike or, without texts, decodes the tokens to the same text.
    pub fn check(
        &self,
        first: &Opened<'_>,
        other: &Opened<'_>,
        request: &Request<'_>,
    ) -> anyhow::Result<()> {
        let same = match (request.texts, request.chats) {
            ([], None) => {
                first.tokenizer.decode(&self.tokens) == other.tokenizer.decode(&self.tokens)
            }
            _ => {
                let request = Request {
                    n_ctx: self.n_ctx,
                    force_context: true,
                    ..*request
                };
                Corpus::read(other, &request)
                    .is_ok_and(|read| read.sequences.all().starts_with(self.sequences.all()))
            }
        };
        ensure!(
            same,
            "its vocabulary differs: it splits the text into other tokens; compare models of one family"
        );
        Ok(())
    }

    /// Rows of one text.
    pub fn rows<'r, T>(&self, part: &Part, all: &'r [T]) -> &'r [T] {
        &all[self.sequences.rows_of(part.sequences.clone())]
    }

    /// The text of a sequence.
    pub fn part_of(&self, sequence: usize) -> Option<&Part> {
        let mut parts = self.parts.iter();
        parts.find(|part| part.sequences.contains(&sequence))
    }
}

/// Refuses chunks that are longer than the model's context.
fn check_context(model: &Opened<'_>, request: &Request<'_>) -> anyhow::Result<()> {
    match model.exceeded(request.n_ctx, request.force_context) {
        None => Ok(()),
        Some(context) => bail!(
            "chunks of {} tokens exceed the model's context of {context}; choose shorter ones (-c), or force it with \
             --force-context",
            request.n_ctx
        ),
    }
}

impl Chats<'_> {
    /// Sequences of a file with their lines.
    fn read(
        &self,
        model: &Opened<'_>,
        path: &Path,
        request: &Request<'_>,
    ) -> anyhow::Result<Vec<(usize, Sequence)>> {
        let file = || path.display().to_string();
        let conversations = conversation::read(&read_text(path)?).with_context(file)?;
        let used = request.chunks.unwrap_or(usize::MAX);
        let renderer = Renderer {
            template: self.template,
            tokenizer: &model.tokenizer,
        };
        let mut all = Vec::new();
        for conversation in conversations.iter().take(used) {
            for sequence in self.sequences(&renderer, conversation).with_context(file)? {
                let length = sequence.tokens().len();
                if let Some(context) = model.exceeded(length, request.force_context) {
                    bail!(
                        "{}: line {}: the conversation has {length} tokens, more than the model's context of {context}; \
                         shorten it, or force it with --force-context",
                        path.display(),
                        conversation.line
                    );
                }
                all.push((conversation.line, sequence));
            }
        }
        Ok(all)
    }

    fn sequences(
        &self,
        renderer: &Renderer<'_>,
        conversation: &Conversation,
    ) -> Result<Vec<Sequence>, conversation::Error> {
        match self.tokens {
            ChatTokens::All => {
                let tokens = renderer.tokens(conversation)?;
                let all = 0..tokens.len();
                Ok(vec![Sequence::new(tokens, &[all])])
            }
            ChatTokens::Assistant => {
                let turns = renderer.turns(conversation)?.into_iter();
                let turns = turns.map(|turns| Sequence::new(turns.tokens, &turns.assistant));
                Ok(turns.collect())
            }
        }
    }
}
