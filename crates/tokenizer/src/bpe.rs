//! Vocabularies of `tokenizer.json`: byte-level byte-pair encoding, and byte-pair encoding with byte
//! fallback, as converted from SentencePiece.

use super::files::Files;
use super::hf::{HfTokenizer, library_error};
use super::special::Special;
use super::token::{self, SCORE_OF_ADDED, Token, TokenType};
use super::{checked_size, pre};
use quantier_gguf::Result;
use quantier_gguf::gguf::Entries;
use serde_json::Value;
use std::collections::HashSet;

/// Writes a byte-level vocabulary: tokens, types, pre-tokenizer, merges, special tokens. Returns the
/// number of tokens.
pub(super) fn write_byte_level(
    files: &Files,
    vocab_size: Option<u64>,
    named_pre: Option<&str>,
    entries: &mut Entries,
    notes: &mut Vec<String>,
) -> Result<usize> {
    let tokenizer = HfTokenizer::load(files)?;
    let tokens = byte_level(files, &tokenizer, vocab_size)?;
    let pre = pre::find(files, &tokenizer, named_pre, notes)?;
    entries.set_str("tokenizer.ggml.model", "gpt2");
    entries.set_str("tokenizer.ggml.pre", &pre);
    token::write(&tokens, false, entries);
    Special::load(files, true, &Special::TYPES, None)?.write(entries);
    Ok(tokens.len())
}

fn byte_level(
    files: &Files,
    tokenizer: &HfTokenizer,
    vocab_size: Option<u64>,
) -> Result<Vec<Token>> {
    let vocabulary = tokenizer.vocabulary();
    let size = checked_size(vocab_size, vocabulary.len(), &files.dir)?;
    if let Some((text, id)) = vocabulary
        .iter()
        .max_by_key(|(_, id)| **id)
        .filter(|(_, id)| **id as usize >= size)
    {
        return Err(files.bad_tokenizer(format!(
            "token {text:?} has the id {id}, but config.json has a vocab_size of {size}; one of the two files belongs \
             to another model"
        )));
    }
    let mut tokens: Vec<Token> = (0..size).map(Token::padding).collect();
    let place = |tokens: &mut Vec<Token>, id: u32, text: String, token_type| {
        tokens[id as usize] = Token {
            text,
            score: 0.0,
            token_type,
        };
    };
    for (text, id) in vocabulary {
        place(&mut tokens, id, text, TokenType::Normal);
    }
    for (id, added) in tokenizer.added() {
        let mut text = added.content;
        if !added.normalized {
            // llama.cpp matches added tokens in normalized text.
            text = tokenizer
                .round_trip(&text)
                .map_err(|what| library_error(files, &text, &what))?;
        }
        if added.special || token::looks_special(&text) {
            place(&mut tokens, id, text, TokenType::Control);
        } else {
            place(
                &mut tokens,
                id,
                token::with_spaces(&text),
                TokenType::UserDefined,
            );
        }
    }
    Ok(tokens)
}

/// Whether `tokenizer.json` has a vocabulary converted from SentencePiece: byte-pair encoding of
/// characters with byte fallback.
pub(super) fn is_like_sentencepiece(files: &Files) -> bool {
    let Some(tokenizer) = &files.tokenizer else {
        return false;
    };
    let model = |name| tokenizer.get("model").and_then(|m| m.get(name));
    let decoder = tokenizer
        .get("decoder")
        .and_then(|d| d.get("type")?.as_str());
    model("type").and_then(Value::as_str) == Some("BPE")
        && model("byte_fallback").and_then(Value::as_bool) == Some(true)
        && decoder == Some("Sequence")
}

/// The vocabulary of such a `tokenizer.json`, with equal scores as in the reference. llama.cpp merges
/// by score, so such a file serves only text that is tokenized elsewhere.
pub(super) fn like_sentencepiece(files: &Files) -> Result<Vec<Token>> {
    let tokenizer = HfTokenizer::load(files)?;
    let base = tokenizer.base_size();
    let special_ids: HashSet<u32> = tokenizer
        .special
        .iter()
        .filter_map(|text| tokenizer.id(text))
        .collect();
    let type_of = |id: u32, text: &str| match () {
        () if is_byte(text) => TokenType::Byte,
        () if special_ids.contains(&id) => TokenType::Control,
        () => TokenType::Normal,
    };
    let mut tokens: Vec<Option<Token>> = vec![None; base];
    for (text, id) in tokenizer.vocabulary() {
        if let Some(place) = tokens.get_mut(id as usize) {
            let token_type = type_of(id, &text);
            *place = Some(Token {
                text,
                score: SCORE_OF_ADDED,
                token_type,
            });
        }
    }
    let mut added: Vec<_> = tokenizer
        .added()
        .into_iter()
        .filter(|(id, _)| *id as usize >= base)
        .collect();
    added.sort_by_key(|(id, _)| *id);
    tokens.extend(added.into_iter().map(|(_, added)| {
        let control = tokenizer.special.contains(&added.content);
        let token_type = if control {
            TokenType::Control
        } else {
            TokenType::UserDefined
        };
        Some(Token {
            text: added.content,
            score: SCORE_OF_ADDED,
            token_type,
        })
    }));
    let missing = |id| {
        files.bad_tokenizer(format!(
            "no token has the id {id}, and there are {base} in all"
        ))
    };
    tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| token.ok_or_else(|| missing(id)))
        .collect()
}

/// Whether a token is a byte such as `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}
