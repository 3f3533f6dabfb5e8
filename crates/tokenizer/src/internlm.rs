//! InternLM 2 and 3: SentencePiece with end-of-turn tokens from the added tokens.

use super::files::{bad, read_object};
use super::special::Special;
use super::spm::{self, Additions, Model};
use super::token::{SCORE_OF_ADDED, Token, TokenType};
use super::{Import, checked_size, no_model};
use quantier_gguf::Result;
use quantier_gguf::gguf::Value as Gguf;
use serde_json::Value;

/// End of a turn, and the EOS token of chat models.
const TURN_END: &str = "<|im_end|>";

impl Import<'_> {
    pub(crate) fn internlm2(&mut self) -> Result<usize> {
        let files = self.files;
        let path = files.dir.join(spm::FILE);
        let model = Model::read(&path)?.ok_or_else(|| no_model(&files.dir))?;
        let mut tokens = model.pieces;
        let size = checked_size(self.vocab_size, tokens.len(), &files.dir)?;
        if size > tokens.len() {
            let pieces = tokens.len();
            return Err(bad(
                &path,
                format!("{pieces} pieces, but config.json has a vocab_size of {size}"),
            ));
        }
        tokens.truncate(size);
        for token in &mut tokens {
            if token.text.starts_with("[UNUSED") {
                token.token_type = TokenType::Unused;
            }
            if token.text == "\0" {
                // llama.cpp reads it as an empty text.
                token.text = "\u{1f409}".to_owned();
            }
        }
        // As in the reference, appended regardless of their ids.
        let added = read_object(&files.dir.join("added_tokens.json"))?.unwrap_or_default();
        tokens.extend(added.into_iter().map(|(text, _)| Token {
            text,
            score: SCORE_OF_ADDED,
            token_type: TokenType::UserDefined,
        }));
        spm::place_added(files, &mut tokens, Additions::AsTheyAre)?;

        spm::write_tokens(&tokens, "default", &mut self.entries);
        self.entries.set(
            "tokenizer.ggml.add_space_prefix",
            Gguf::Bool(model.prefixes_space),
        );
        let mut special = Special::load(files, false, &Special::TYPES, Some(tokens.len() as u64))?;
        if special.id("eos").is_none() {
            return Err(bad(
                &files.dir.join("config.json"),
                "no eos_token_id, and tokenizer.json names no EOS token; set it",
            ));
        }
        if let Some(id) = self.turn_end() {
            special.replace_id("eos", id);
        }
        special.write(&mut self.entries);
        Ok(tokens.len())
    }

    pub(crate) fn internlm3(&mut self) -> Result<usize> {
        let files = self.files;
        let tokens = spm::vocabulary(files, self.vocab_size, Additions::Common)?
            .ok_or_else(|| no_model(&files.dir))?;
        spm::write_tokens(&tokens, "default", &mut self.entries);
        self.space_prefix()?;
        let mut special = Special::load(files, false, &Special::TYPES, Some(tokens.len() as u64))?;
        let is_end = |entry: &&(u32, &Value)| {
            entry.1.get("content").and_then(Value::as_str) == Some(TURN_END)
                && entry.1.get("special").and_then(Value::as_bool) == Some(true)
        };
        if let Some((id, _)) = self.decoder().collect::<Vec<_>>().iter().rfind(is_end) {
            special.replace_id("eos", *id);
        }
        special.write(&mut self.entries);
        Ok(tokens.len())
    }

    /// The added tokens of `tokenizer_config.json` with numeric ids.
    pub(crate) fn decoder(&self) -> impl Iterator<Item = (u32, &Value)> {
        let decoder = self.files.config_field("added_tokens_decoder");
        decoder
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(id, entry)| Some((id.parse().ok()?, entry)))
    }

    /// The id of the last added token that ends a turn.
    fn turn_end(&self) -> Option<u32> {
        let of_json = self.files.added_tokens().iter().filter_map(|entry| {
            let id = entry.get("id").and_then(Value::as_u64)?;
            Some((u32::try_from(id).ok()?, entry))
        });
        self.decoder()
            .chain(of_json)
            .filter(|(_, entry)| entry.get("content").and_then(Value::as_str) == Some(TURN_END))
            .map(|(id, _)| id)
            .last()
    }
}
