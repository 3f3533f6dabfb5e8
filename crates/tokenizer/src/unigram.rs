//! Unigram vocabularies: SentencePiece files of XLM-RoBERTa and T5, and `tokenizer.json`.
//!
//! ```text
//! sentencepiece.bpe.model   <unk> <s> </s> ▁, ...         XLM-RoBERTa numbers <s> <pad> </s> <unk> ▁, ...
//! spiece.model              <pad> </s> <unk> ▁ ...        T5, in this order
//! ```

use super::files::{Files, bad};
use super::hf::{HfTokenizer, Model as Kind};
use super::special::Special;
use super::spm::{self, Additions, Model};
use super::token::{self, Scores, Token, TokenType};
use super::{Import, checked_size, no_model};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quantier_gguf::Result;
use quantier_gguf::gguf::{Value as Gguf, ValueType};
use serde_json::Value;
use std::collections::HashSet;

/// Name of XLM-RoBERTa's file.
const XLM_ROBERTA: &str = "sentencepiece.bpe.model";
/// Name of T5's file, if it is not `tokenizer.model`.
const T5: &str = "spiece.model";
/// The number of the mask token of Nomic-BERT with experts.
pub(super) const NOMIC_MASK: usize = 250_001;
/// XLM-RoBERTa's first tokens, in place of the first three of its file.
const FIRST: [(&str, TokenType); 4] = [
    ("<s>", TokenType::Control),
    ("<pad>", TokenType::Control),
    ("</s>", TokenType::Control),
    ("<unk>", TokenType::Unknown),
];
/// The number of the unknown token, if `tokenizer.json` does not say.
const UNKNOWN: u64 = 3;

/// A vocabulary and the normalization of its texts.
struct Unigram {
    tokens: Vec<Token>,
    /// True if texts get a space prefix.
    prefixes_space: bool,
    /// True if repeated spaces are removed.
    removes_spaces: bool,
    /// Compiled replacements of characters.
    charsmap: Vec<u8>,
}

/// Writes XLM-RoBERTa's vocabulary. `mask` is the number of the mask token that the SentencePiece
/// file lacks. Returns the number of tokens.
pub(super) fn write_xlm_roberta(import: &mut Import<'_>, mask: Option<usize>) -> Result<usize> {
    let path = import.files.dir.join(XLM_ROBERTA);
    let vocabulary = match Model::read(&path)? {
        Some(model) => {
            check_unigram(&model).map_err(|what| bad(&path, what))?;
            let size = import
                .vocab_size
                .unwrap_or(0)
                .max(model.pieces.len() as u64);
            let size = checked_size(Some(size), model.pieces.len(), &import.files.dir)?;
            let mut vocabulary = Unigram::of(model, size);
            vocabulary.renumber(mask).map_err(|what| bad(&path, what))?;
            vocabulary
        }
        None if import.files.tokenizer.is_none() => {
            return Err(bad(
                &import.files.dir,
                format!(
                    "neither {XLM_ROBERTA} nor tokenizer.json; download one from the model's source"
                ),
            ));
        }
        None => of_tokenizer_json(import.files, import.vocab_size)?,
    };
    write(import, &vocabulary, true)
}

/// Writes T5's vocabulary. Returns the number of tokens.
pub(super) fn write_t5(import: &mut Import<'_>) -> Result<usize> {
    let dir = &import.files.dir;
    let own = dir.join(spm::FILE);
    let path = match own.is_file() {
        true => own,
        false => dir.join(T5),
    };
    let Some(model) = Model::read(&path)? else {
        return Err(bad(
            dir,
            format!(
                "neither {} nor {T5}; download one from the model's source (convert_hf_to_gguf.py reads no \
                 tokenizer.json of a T5)",
                spm::FILE
            ),
        ));
    };
    if model.model_type == spm::BYTE_PAIRS && path.ends_with(spm::FILE) {
        let tokens = import.sentencepiece(Additions::Common)?;
        return tokens.ok_or_else(|| no_model(&import.files.dir));
    }
    check_unigram(&model).map_err(|what| bad(&path, what))?;
    let count = model.pieces.len();
    let size = checked_size(import.vocab_size, count, dir)?;
    if count > size {
        return Err(bad(
            &path,
            format!("{count} pieces, but config.json has a vocab_size of {size}"),
        ));
    }
    let mut vocabulary = Unigram::of(model, size);
    spm::add_from_added_tokens_json(&mut vocabulary.tokens, &dir.join("added_tokens.json"))?;
    write(import, &vocabulary, false)
}

/// Refuses other models than unigram ones.
fn check_unigram(model: &Model) -> std::result::Result<(), String> {
    match model.model_type {
        spm::UNIGRAM => Ok(()),
        other => Err(format!(
            "it is no unigram model (its model_type is {other}); the file belongs to another model"
        )),
    }
}

/// Writes tokens, scores, types, normalization and special tokens.
fn write(import: &mut Import<'_>, vocabulary: &Unigram, has_token_types: bool) -> Result<usize> {
    let entries = &mut import.entries;
    entries.set_str("tokenizer.ggml.model", "t5");
    entries.set_str("tokenizer.ggml.pre", "default");
    token::write(&vocabulary.tokens, Scores::Floats, entries);
    import.set_flag("add_space_prefix", vocabulary.prefixes_space);
    if has_token_types {
        import.write_token_types(import.token_types);
    }
    import.set_flag("remove_extra_whitespaces", vocabulary.removes_spaces);
    if !vocabulary.charsmap.is_empty() {
        let bytes = vocabulary.charsmap.iter().map(|byte| Gguf::U8(*byte));
        let key = "tokenizer.ggml.precompiled_charsmap";
        import.entries.set_values(key, ValueType::U8, bytes);
    }
    let size = vocabulary.tokens.len();
    Special::load(import.files, false, &Special::TYPES, Some(size as u64))?
        .write(&mut import.entries);
    Ok(size)
}

impl Unigram {
    /// A SentencePiece model, with padding up to this number of tokens.
    fn of(model: Model, size: usize) -> Unigram {
        let mut tokens = model.pieces;
        tokens.extend((tokens.len()..size).map(Token::padding));
        Unigram {
            tokens,
            prefixes_space: model.prefixes_space,
            removes_spaces: model.removes_spaces,
            charsmap: model.charsmap,
        }
    }

    /// Numbers the tokens as XLM-RoBERTa does: its own first tokens, then those of the file from the
    /// fourth on, one number later.
    fn renumber(&mut self, mask: Option<usize>) -> std::result::Result<(), String> {
        /// Tokens of the file that the first ones replace.
        const REPLACED: usize = 3;
        let size = self.tokens.len();
        if size <= REPLACED {
            return Err(format!("only {size} pieces; XLM-RoBERTa has more"));
        }
        let first = FIRST.map(|(text, token_type)| Token {
            text: text.to_owned(),
            score: 0.0,
            token_type,
        });
        self.tokens.pop();
        self.tokens.splice(..REPLACED, first);
        let Some(mask) = mask else { return Ok(()) };
        let size = self.tokens.len();
        let place = self.tokens.get_mut(mask).ok_or_else(|| {
            format!("{size} tokens; Nomic-BERT with experts has its mask token at number {mask}")
        })?;
        *place = Token {
            text: "<mask>".to_owned(),
            score: 0.0,
            token_type: TokenType::Control,
        };
        Ok(())
    }
}

/// The vocabulary of a `tokenizer.json`; tokens up to the configuration's number become padding.
fn of_tokenizer_json(files: &Files, vocab_size: Option<u64>) -> Result<Unigram> {
    let tokenizer = HfTokenizer::load(files, Kind::Unigram)?;
    let json = files.tokenizer.as_ref();
    let refused = |what: &str| files.bad_tokenizer(what);
    let model = json.and_then(|json| json.get("model"));
    let pieces = model.and_then(|model| model.get("vocab")?.as_array());
    let pieces = pieces.ok_or_else(|| refused("its model has no vocab"))?;
    let charsmap = json.and_then(|json| json.get("normalizer")?.get("precompiled_charsmap"));
    let charsmap = charsmap.and_then(Value::as_str).ok_or_else(|| {
        refused(
            "its normalizer has no precompiled_charsmap; convert_hf_to_gguf.py reads nothing else. Download \
             sentencepiece.bpe.model from the model's source",
        )
    })?;
    let charsmap = STANDARD
        .decode(charsmap)
        .map_err(|error| refused(&format!("its precompiled_charsmap is not base64: {error}")))?;
    let base = tokenizer.base_size();
    let size = vocab_size.unwrap_or(0).max(base as u64);
    let size = checked_size(Some(size), base, &files.dir)?;
    let added = tokenizer.added();
    let unknown_text = files.config_field("unk_token").and_then(|token| {
        let text = token.as_str();
        text.or_else(|| token.get("content")?.as_str())
    });
    let of_added = added
        .iter()
        .find(|(_, token)| Some(token.content.as_str()) == unknown_text);
    let unknown = match (of_added, model.and_then(|model| model.get("unk_id"))) {
        (Some((id, _)), _) => Some(u64::from(*id)),
        (None, Some(id)) => id.as_u64(),
        (None, None) => Some(UNKNOWN),
    };
    let special: HashSet<u32> = tokenizer
        .special
        .iter()
        .filter_map(|text| tokenizer.id_or_unknown(text))
        .collect();
    let mut tokens = Vec::with_capacity(size);
    for (id, piece) in (0u32..).zip(pieces).take(base) {
        let text = match added.get(&id) {
            Some(token) => token.content.as_str(),
            None => piece.get(0).and_then(Value::as_str).unwrap_or_default(),
        };
        let score = piece.get(1).and_then(Value::as_f64).unwrap_or_default();
        let token_type = match () {
            () if Some(u64::from(id)) == unknown => TokenType::Unknown,
            () if special.contains(&id) => TokenType::Control,
            () if added.contains_key(&id) => TokenType::UserDefined,
            () => TokenType::Normal,
        };
        tokens.push(Token {
            text: text.to_owned(),
            score: score as f32,
            token_type,
        });
    }
    tokens.extend((tokens.len()..size).map(Token::padding));
    Ok(Unigram {
        tokens,
        prefixes_space: flag(files, "add_prefix_space")?,
        removes_spaces: flag(files, "clean_up_tokenization_spaces")?,
        charsmap,
    })
}

/// A flag of `tokenizer_config.json`, false by default.
fn flag(files: &Files, name: &str) -> Result<bool> {
    let path = files.dir.join("tokenizer_config.json");
    match files.config_field(name) {
        None => Ok(false),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| bad(&path, format!("{name} is neither true nor false"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(texts: &[&str]) -> Unigram {
        let token = |text: &&str| Token {
            text: (*text).to_owned(),
            score: -1.0,
            token_type: TokenType::Normal,
        };
        Unigram {
            tokens: texts.iter().map(token).collect(),
            prefixes_space: true,
            removes_spaces: true,
            charsmap: Vec::new(),
        }
    }

    fn texts(vocabulary: &Unigram) -> Vec<&str> {
        vocabulary.tokens.iter().map(|token| &*token.text).collect()
    }

    #[test]
    fn tokens_are_numbered_anew() {
        let mut model = vocabulary(&["<unk>", "<s>", "</s>", ",", "a", "[PAD5]"]);
        model.renumber(None).unwrap();
        assert_eq!(texts(&model), ["<s>", "<pad>", "</s>", "<unk>", ",", "a"]);
        assert_eq!(model.tokens[3].token_type, TokenType::Unknown);
        let mut model = vocabulary(&["<unk>", "<s>", "</s>", ",", "a", "[PAD5]"]);
        model.renumber(Some(5)).unwrap();
        assert_eq!(texts(&model)[4..], [",", "<mask>"]);
        let error = vocabulary(&["a"; 5]).renumber(Some(5)).unwrap_err();
        assert!(error.contains("5 tokens"), "{error}");
        assert!(vocabulary(&["a"; 3]).renumber(None).is_err());
    }
}
