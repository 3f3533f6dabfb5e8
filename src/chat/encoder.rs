//! Texts for calibration and evaluation, as tokens.

use super::conversation::{self, Renderer};
use super::template::ChatTemplate;
use crate::text::{Kind, Text, separate};
use crate::tokenizer::Tokenizer;

/// A model's way from texts to tokens.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its chat template, which conversations need.
    pub template: Option<&'a ChatTemplate>,
}

/// The tokens of texts for an embedding model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Separate {
    /// Of each text, with the special tokens that the vocabulary adds.
    pub texts: Vec<Vec<u32>>,
    /// Number of texts that were cut.
    pub cut: usize,
}

impl Encoder<'_> {
    /// The tokens of the texts in a file for an embedding model: separated by empty lines or, in a file without
    /// any, by lines. Texts of more than `most` tokens are cut; the special token at their end stays.
    ///
    /// # Errors
    /// Conversations.
    pub fn separate(&self, text: &Text, most: usize) -> Result<Separate, String> {
        if text.kind != Kind::Plain {
            return Err(
                "conversations are for models that predict tokens; give plain texts (-f) to an embedding model"
                    .into(),
            );
        }
        let encode = |text: &str| self.tokenizer.encode(text, true, false);
        let added = encode("");
        let of_start = self.tokenizer.bos();
        let end = added.last().copied();
        let end = end.filter(|end| added.len() > 1 || Some(*end) != of_start);
        let mut all = Separate::default();
        for text in separate(&text.content) {
            let mut tokens = encode(text);
            if tokens.len() > most {
                tokens.truncate(most);
                if let (Some(last), Some(end)) = (tokens.last_mut(), end) {
                    *last = end;
                }
                all.cut += 1;
            }
            if !tokens.is_empty() {
                all.texts.push(tokens);
            }
        }
        Ok(all)
    }

    /// The tokens of a text. Conversations follow each other, each with the tokens that begin one.
    ///
    /// # Errors
    /// Conversations that cannot be read or rendered, with their line; conversations without a template.
    pub fn tokens(&self, text: &Text) -> Result<Vec<u32>, String> {
        if text.kind == Kind::Plain {
            return Ok(self.tokenizer.encode(&text.content, true, false));
        }
        let template = self
            .template
            .ok_or("the model has no chat template, which conversations need")?;
        let renderer = Renderer {
            template,
            tokenizer: self.tokenizer,
        };
        let mut all = Vec::new();
        // A part that is held out may be empty.
        if text.content.trim().is_empty() {
            return Ok(all);
        }
        for conversation in &conversation::read(&text.content).map_err(|e| e.to_string())? {
            let tokens = renderer.tokens(conversation).map_err(|e| e.to_string())?;
            all.extend(tokens);
        }
        Ok(all)
    }
}
