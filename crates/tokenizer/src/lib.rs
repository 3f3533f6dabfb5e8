//! Vocabularies: [`import`] converts the tokenizer files of a Hugging Face checkpoint to `tokenizer.*`
//! metadata, and [`Tokenizer`] encodes text by that metadata.
//!
//! ```text
//! tokenizer.model  -> protobuf -> spm ---+
//!                                        +-> token -> special -> metadata
//! tokenizer.json -> checked -> hf -> bpe-+
//!                              |
//!                    class    pre
//! ```

#![warn(missing_docs, unreachable_pub)]

mod bpe;
mod checked;
mod class;
mod encode;
pub mod files;
mod hf;
mod pre;
mod protobuf;
mod special;
mod spm;
mod token;

use files::{Files, bad};
use quantier_gguf::Result;
use quantier_gguf::gguf::{Entries, Value};
use special::Special;
use spm::Additions;
use std::path::Path;

pub use encode::{Error as VocabularyError, Tokenizer};

/// Limit on the tokens of a vocabulary: the largest models have 2^18, and a damaged file could fill
/// memory with padding.
pub(crate) const MAX_TOKENS: usize = 1 << 24;

/// The vocabulary of a family: its files and additions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VocabKind {
    /// Byte-level byte-pair encoding: GPT-2, OLMo, Starcoder2, Qwen's mixtures of experts.
    ByteLevel,
    /// SentencePiece if `tokenizer.model` exists, else byte-level: Qwen2 and Qwen3.
    Qwen,
    /// SentencePiece, else byte-pair encoding with byte fallback, else byte-level; with the extras
    /// of Code Llama and the small Granites: Llama, Mistral, Mixtral, Granite, SmolLM3.
    Llama,
    /// SentencePiece: Orion.
    SentencePiece,
    /// SentencePiece, padding and unknown tokens by number: Nemotron.
    Nemotron,
    /// SentencePiece, the space prefix as tokenizer_config.json says: ERNIE 4.5.
    Ernie,
    /// SentencePiece without a space prefix, with CodeGemma's end of turn: Gemma 1.
    Gemma1,
    /// SentencePiece without a space prefix: Gemma 2.
    Gemma2,
    /// The same, or byte-level without `tokenizer.model`: Gemma 3.
    Gemma3,
    /// SentencePiece with added tokens as they are, or byte-level for Phi-4: Phi-3.
    Phi3,
}

/// A vocabulary as GGUF metadata.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// `tokenizer.*` in the order of the file.
    pub entries: Entries,
    /// Number of tokens.
    pub tokens: usize,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Imports the vocabulary of a checkpoint.
///
/// `vocab_size` is the configuration's; missing tokens below it become padding. `pre` names the
/// pre-tokenizer of a byte-level vocabulary; `None` detects it.
///
/// # Errors
/// A missing, damaged or unsupported tokenizer file, or an unknown pre-tokenizer.
pub fn import(
    dir: &Path,
    kind: VocabKind,
    vocab_size: Option<u64>,
    pre: Option<&str>,
) -> Result<Vocabulary> {
    let files = Files::read(dir)?;
    let mut import = Import {
        files: &files,
        vocab_size,
        pre,
        entries: Entries::new(),
        notes: Vec::new(),
    };
    let tokens = match kind {
        VocabKind::ByteLevel => import.byte_level()?,
        VocabKind::Qwen => match import.sentencepiece(Additions::Common)? {
            Some(tokens) => tokens,
            None => import.byte_level()?,
        },
        VocabKind::Llama => import.llama()?,
        VocabKind::SentencePiece => import.only_sentencepiece()?,
        VocabKind::Nemotron => import.nemotron()?,
        VocabKind::Ernie => {
            let tokens = import.only_sentencepiece()?;
            import.space_prefix()?;
            tokens
        }
        VocabKind::Gemma1 => import.gemma1()?,
        VocabKind::Gemma2 => import.gemma()?.ok_or_else(|| no_model(dir))?,
        VocabKind::Gemma3 => match import.gemma()? {
            Some(tokens) => tokens,
            None => import.byte_level()?,
        },
        VocabKind::Phi3 => import.phi3()?,
    };
    Ok(Vocabulary {
        entries: import.entries,
        tokens,
        notes: import.notes,
    })
}

fn no_model(dir: &Path) -> quantier_gguf::Error {
    bad(
        dir,
        format!(
            "no {}; download it from where the model comes from",
            spm::FILE
        ),
    )
}

/// The number of tokens: the configuration's, else the tokenizer's own.
fn checked_size(vocab_size: Option<u64>, own: usize, dir: &Path) -> Result<usize> {
    let size = vocab_size
        .map_or(Some(own), |n| usize::try_from(n).ok())
        .filter(|&n| n <= MAX_TOKENS);
    size.ok_or_else(|| {
        let claimed = vocab_size.unwrap_or(own as u64);
        bad(
            &dir.join("config.json"),
            format!("a vocab_size of {claimed}; the most that is taken is {MAX_TOKENS}"),
        )
    })
}

/// State of an import. Each method returns the number of tokens.
struct Import<'a> {
    files: &'a Files,
    vocab_size: Option<u64>,
    pre: Option<&'a str>,
    entries: Entries,
    notes: Vec<String>,
}

impl Import<'_> {
    fn byte_level(&mut self) -> Result<usize> {
        bpe::write_byte_level(
            self.files,
            self.vocab_size,
            self.pre,
            &mut self.entries,
            &mut self.notes,
        )
    }

    /// `None` if there is no `tokenizer.model`.
    fn sentencepiece(&mut self, additions: Additions) -> Result<Option<usize>> {
        let Some(tokens) = spm::vocabulary(self.files, self.vocab_size, additions)? else {
            return Ok(None);
        };
        spm::write(self.files, &tokens, &mut self.entries)?;
        Ok(Some(tokens.len()))
    }

    fn only_sentencepiece(&mut self) -> Result<usize> {
        let tokens = self.sentencepiece(Additions::Common)?;
        tokens.ok_or_else(|| no_model(&self.files.dir))
    }

    fn nemotron(&mut self) -> Result<usize> {
        let tokens = self.only_sentencepiece()?;
        for (name, id) in [("padding", 0), ("unknown", 1)] {
            let key = format!("tokenizer.ggml.{name}_token_id");
            self.entries.set(&key, Value::U32(id));
        }
        Ok(tokens)
    }

    /// The space in front of a text, where tokenizer_config.json says whether there is one.
    fn space_prefix(&mut self) -> Result<()> {
        let field = self.files.config_field("add_prefix_space");
        let Some(space) = field.filter(|space| !space.is_null()) else {
            return Ok(());
        };
        let path = self.files.dir.join("tokenizer_config.json");
        let space = space.as_bool();
        let space =
            space.ok_or_else(|| bad(&path, "add_prefix_space is neither true nor false"))?;
        self.entries
            .set("tokenizer.ggml.add_space_prefix", Value::Bool(space));
        Ok(())
    }

    fn gemma(&mut self) -> Result<Option<usize>> {
        let tokens = self.sentencepiece(Additions::Common)?;
        if tokens.is_some() {
            self.entries
                .set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        }
        Ok(tokens)
    }

    fn gemma1(&mut self) -> Result<usize> {
        /// The end of a turn. The reference sets the tokens for filling in too, but writes none of
        /// them.
        const EOT: u32 = 107;

        let tokens = self.only_sentencepiece()?;
        let types = ["prefix", "suffix", "middle", "fsep", "eot"];
        let mut special = Special::load(self.files, false, &types, None)?;
        special.set_id("eot", EOT);
        special.write(&mut self.entries);
        self.entries
            .set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        Ok(tokens)
    }

    fn phi3(&mut self) -> Result<usize> {
        let class = self
            .files
            .config_field("tokenizer_class")
            .and_then(|c| c.as_str());
        if class == Some("GPT2Tokenizer") {
            return self.byte_level();
        }
        self.sentencepiece(Additions::Phi3)?
            .ok_or_else(|| no_model(&self.files.dir))
    }

    fn llama(&mut self) -> Result<usize> {
        /// Vocabulary size of Code Llama, and its end-of-infill token, the only infill token that
        /// the reference writes.
        const CODE_LLAMA: u64 = 32016;
        const CODE_LLAMA_EOT: u32 = 32010;
        /// Vocabulary size of the small Granite models, whose tokenizer wrongly declares a BOS
        /// token.
        const SMALL_GRANITE: u64 = 49152;

        let dir = &self.files.dir;
        if self.files.tokenizer.is_none() && dir.join("tekken.json").is_file() {
            let what =
                "tekken.json alone is not supported; get the tokenizer.json of the same model";
            return Err(bad(dir, what));
        }
        self.space_prefix()?;
        let tokens = if let Some(tokens) = self.sentencepiece(Additions::Common)? {
            tokens
        } else if bpe::is_like_sentencepiece(self.files) {
            let tokens = bpe::like_sentencepiece(self.files)?;
            spm::write(self.files, &tokens, &mut self.entries)?;
            tokens.len()
        } else {
            self.byte_level()?
        };
        match self.vocab_size {
            Some(CODE_LLAMA) => {
                let mut special = Special::load(
                    self.files,
                    false,
                    &["prefix", "suffix", "middle", "eot"],
                    None,
                )?;
                special.set_id("eot", CODE_LLAMA_EOT);
                special.write(&mut self.entries);
            }
            Some(SMALL_GRANITE) => self
                .entries
                .set("tokenizer.ggml.add_bos_token", Value::Bool(false)),
            _ => {}
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests;
