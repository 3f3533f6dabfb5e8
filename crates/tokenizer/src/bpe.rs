//! Vocabularies of `tokenizer.json`: byte-level byte-pair encoding, and byte-pair encoding with byte
//! fallback, as converted from SentencePiece.

use super::files::Files;
use super::hf::{HfTokenizer, Model, library_error};
use super::special::Special;
use super::token::{self, SCORE_OF_ADDED, Scores, Token, TokenType};
use super::{Import, checked_size, pre};
use quantier_gguf::Result;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Deviations of a family from the plain byte-level vocabulary.
pub(super) struct Rules {
    /// Kinds of special tokens with their added tokens, for kinds without an id in the files. Files
    /// that lack such an added token are refused.
    pub roles: &'static [(&'static str, &'static str)],
    /// Kinds of special tokens in the files.
    pub types: &'static [&'static str],
    /// Pairs of pre-tokenizer names that split alike: the detected one, and the family's name for
    /// it, which a tokenizer without a known fingerprint gets. They differ in the BOS token.
    pub kin: &'static [(&'static str, &'static str)],
    /// True if added tokens keep their texts and are control tokens only by their flag.
    pub as_they_are: bool,
    /// Tokens that are control tokens whatever their flag says.
    pub control: &'static [&'static str],
}

impl Rules {
    /// No deviations.
    pub(super) const PLAIN: Rules = Rules {
        roles: &[],
        types: &Special::TYPES,
        kin: &[],
        as_they_are: false,
        control: &[],
    };
}

/// Writes a byte-level vocabulary: tokens, types, pre-tokenizer, merges, special tokens. Returns the
/// number of tokens and the tokenizer.
pub(super) fn write_byte_level(
    import: &mut Import<'_>,
    rules: &Rules,
) -> Result<(usize, HfTokenizer)> {
    let files = import.files;
    let tokenizer = HfTokenizer::load(files, Model::BytePairs)?;
    let tokens = tokens(files, &tokenizer, import.vocab_size, rules)?;
    let pre = match import.pre {
        Some(name) => name.to_owned(),
        None => pre::find(files, &tokenizer, rules.kin, &mut import.notes)?,
    };
    import.entries.set_str("tokenizer.ggml.model", "gpt2");
    import.entries.set_str("tokenizer.ggml.pre", &pre);
    token::write(&tokens, Scores::Left, &mut import.entries);
    let mut special = Special::load(files, true, rules.types, None)?;
    let added = tokenizer.added();
    for &(kind, text) in rules.roles {
        let id = added.iter().find(|(_, token)| token.content == text);
        let (&id, _) = id.ok_or_else(|| {
            files.bad_tokenizer(format!(
                "it lacks the added token {text:?}, which every model of this class has; the file belongs to another model"
            ))
        })?;
        special.set_id(kind, id);
    }
    special.write(&mut import.entries);
    Ok((tokens.len(), tokenizer))
}

/// The tokens of `tokenizer.json`, with padding up to the configuration's number.
pub(super) fn tokens(
    files: &Files,
    tokenizer: &HfTokenizer,
    vocab_size: Option<u64>,
    rules: &Rules,
) -> Result<Vec<Token>> {
    let vocabulary = tokenizer.vocabulary();
    let size = checked_size(vocab_size, vocabulary.len(), &files.dir)?;
    check_size(files, &vocabulary, size)?;
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
        if rules.as_they_are {
            let token_type = match added.special {
                true => TokenType::Control,
                false => TokenType::UserDefined,
            };
            place(&mut tokens, id, text, token_type);
            continue;
        }
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
    let control = |token: &&mut Token| rules.control.contains(&token.text.as_str());
    let places = tokens.iter_mut().filter(control);
    places.for_each(|token| token.token_type = TokenType::Control);
    Ok(tokens)
}

/// Writes XVERSE's vocabulary: texts and types of `tokenizer.json`, without scores and merges.
/// Returns the number of tokens.
pub(super) fn write_xverse(import: &mut Import<'_>) -> Result<usize> {
    let files = import.files;
    let tokenizer = HfTokenizer::load(files, Model::BytePairs)?;
    let vocabulary = tokenizer.vocabulary();
    let size = checked_size(import.vocab_size, vocabulary.len(), &files.dir)?;
    check_size(files, &vocabulary, size)?;
    let added = tokenizer.added();
    let mut tokens: Vec<Option<Token>> = vec![None; size];
    for (text, id) in vocabulary {
        let (text, token_type) = match added.get(&id) {
            // llama.cpp reads it as an empty text; spelled as Python prints the byte.
            _ if text == "\0" => (r"<b'\x00'>".to_owned(), TokenType::Byte),
            _ if is_byte(&text) => (text, TokenType::Byte),
            Some(added) if added.special => (text, TokenType::Control),
            Some(_) => (text, TokenType::UserDefined),
            None => (text, TokenType::Normal),
        };
        tokens[id as usize] = Some(Token {
            text,
            score: 0.0,
            token_type,
        });
    }
    let tokens = without_holes(files, tokens)?;
    import.entries.set_str("tokenizer.ggml.model", "llama");
    import.entries.set_str("tokenizer.ggml.pre", "default");
    token::write(&tokens, Scores::Left, &mut import.entries);
    Special::load(files, false, &Special::TYPES, Some(size as u64))?.write(&mut import.entries);
    Ok(size)
}

/// Refuses ids that are not below the configuration's vocabulary size.
fn check_size(files: &Files, vocabulary: &HashMap<String, u32>, size: usize) -> Result<()> {
    match vocabulary.iter().max_by_key(|(_, id)| **id) {
        Some((text, &id)) if id as usize >= size => Err(files.bad_tokenizer(format!(
            "token {text:?} has the id {id}, but config.json has a vocab_size of {size}; one of the two files belongs \
             to another model"
        ))),
        _ => Ok(()),
    }
}

/// All tokens, or an error about the first id without a token.
fn without_holes(files: &Files, tokens: Vec<Option<Token>>) -> Result<Vec<Token>> {
    let size = tokens.len();
    let missing = |id| {
        files.bad_tokenizer(format!(
            "no token has the id {id}, and there are {size} in all"
        ))
    };
    tokens
        .into_iter()
        .enumerate()
        .map(|(id, token)| token.ok_or_else(|| missing(id)))
        .collect()
}

/// True if `tokenizer.json` has a vocabulary converted from SentencePiece: byte-pair encoding of
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

/// The vocabulary of such a `tokenizer.json`, with equal scores as in the reference. llama.cpp
/// merges by score, so such a file works only for text that is tokenized elsewhere.
pub(super) fn like_sentencepiece(files: &Files) -> Result<Vec<Token>> {
    let tokenizer = HfTokenizer::load(files, Model::BytePairs)?;
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
    without_holes(files, tokens)
}

/// True for a byte token such as `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}
