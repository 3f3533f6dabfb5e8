//! Texts for calibration and evaluation, as tokens.

use super::conversation::{self, Renderer};
use super::template::ChatTemplate;
use crate::text::{Kind, Text};
use crate::tokenizer::Tokenizer;

/// A model's way from texts to tokens.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its chat template, which conversations need.
    pub template: Option<&'a ChatTemplate>,
}

impl Encoder<'_> {
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
