//! WordPiece vocabularies of `tokenizer.json`, and those of BERT's relatives with another one.
//!
//! llama.cpp marks beginnings of words instead of continuations:
//!
//! ```text
//! tokenizer.json   token    ##ization   [CLS]
//! GGUF             ▁token   ization     [CLS]
//! ```

use super::bpe::{self, Rules};
use super::files::Files;
use super::hf::{HfTokenizer, Model};
use super::special::Special;
use super::token::{self, Scores, TokenType};
use super::{Import, pre, unigram};
use quantier_gguf::Result;
use quantier_gguf::gguf::Value;

/// The key of the number of token types.
pub(super) const TOKEN_TYPES: &str = "tokenizer.ggml.token_type_count";
/// The beginning of a word in a GGUF.
const BEGINNING: char = '\u{2581}';
/// The beginning of a continuation in `tokenizer.json`.
const CONTINUATION: &str = "##";
/// The pre-tokenizer of vocabularies without one; llama.cpp does not read it of WordPiece.
const NO_PRE: &str = "default";
/// Jina-BERT has two token types, whatever the configuration says.
const JINA_TOKEN_TYPES: u32 = 2;

/// Writes a WordPiece vocabulary: number of token types, tokens, types, special tokens. Returns the
/// number of tokens.
pub(super) fn write(import: &mut Import<'_>) -> Result<usize> {
    let files = import.files;
    let tokenizer = HfTokenizer::load(files, Model::WordPiece)?;
    let mut tokens = bpe::tokens(files, &tokenizer, import.vocab_size, &Rules::PLAIN)?;
    for token in &mut tokens {
        if token.token_type != TokenType::Control {
            token.text = with_beginning(&token.text);
        }
    }
    let pre = match import.pre {
        Some(name) => name.to_owned(),
        None => match pre::by_fingerprint(files, &tokenizer)? {
            Ok(name) => name.to_owned(),
            Err(fingerprint) => {
                import.notes.push(format!(
                    "the tokenizer's fingerprint {fingerprint} is not known; llama.cpp splits the texts of all \
                     WordPiece vocabularies alike, and the file names '{NO_PRE}' as pre-tokenizer"
                ));
                NO_PRE.to_owned()
            }
        },
    };
    import.write_token_types(import.token_types);
    import.entries.set_str("tokenizer.ggml.model", "bert");
    import.entries.set_str("tokenizer.ggml.pre", &pre);
    token::write(&tokens, Scores::Left, &mut import.entries);
    let size = tokens.len();
    Special::load(files, false, &Special::TYPES, Some(size as u64))?.write(&mut import.entries);
    Ok(size)
}

/// A token's text with a mark at the beginning of a word.
fn with_beginning(text: &str) -> String {
    match text.strip_prefix(CONTINUATION) {
        Some(rest) => rest.to_owned(),
        None => format!("{BEGINNING}{text}"),
    }
}

/// The type of the model in `tokenizer.json`.
fn model_type(files: &Files) -> Option<&str> {
    let model = files.tokenizer.as_ref()?.get("model")?;
    model.get("type")?.as_str()
}

impl Import<'_> {
    /// Sets the number of token types.
    pub(super) fn write_token_types(&mut self, count: u32) {
        self.entries.set(TOKEN_TYPES, Value::U32(count));
    }

    /// Byte-level, with the number of token types behind it.
    pub(super) fn roberta(&mut self) -> Result<usize> {
        if self.files.tokenizer.is_none() {
            return Err(super::bad(
                &self.files.dir,
                "no tokenizer.json, without which convert_hf_to_gguf.py writes RoBERTa's tokens as those of BERT; save \
                 one with transformers",
            ));
        }
        let tokens = self.byte_level()?;
        self.write_token_types(self.token_types);
        Ok(tokens)
    }

    /// By the model in `tokenizer.json`. `mask` is the number of the mask token that a
    /// SentencePiece file lacks.
    pub(super) fn nomic_bert(&mut self, mask: Option<usize>) -> Result<usize> {
        if self.files.tokenizer.is_none() {
            return Err(super::bad(
                &self.files.dir,
                "no tokenizer.json; download it from the model's source",
            ));
        }
        match model_type(self.files) {
            Some("WordPiece") => write(self),
            Some("Unigram") => unigram::write_xlm_roberta(self, mask),
            other => {
                let other = other.unwrap_or("without a name");
                Err(self.files.bad_tokenizer(format!(
                    "its model is {other}; Nomic-BERT has WordPiece or Unigram"
                )))
            }
        }
    }

    /// By the class of the tokenizer.
    pub(super) fn jina_bert(&mut self) -> Result<usize> {
        const CLASS: &str = "tokenizer_class";
        let path = self.files.dir.join("tokenizer_config.json");
        let class = self
            .files
            .config_field(CLASS)
            .and_then(|class| class.as_str());
        match class {
            Some("BertTokenizer") => write(self),
            Some("RobertaTokenizer") => {
                let splits_words =
                    self.files.tokenizer.as_ref().and_then(|tokenizer| {
                        tokenizer.get("pre_tokenizer")?.get("type")?.as_str()
                    }) == Some("Whitespace");
                let tokens = match splits_words {
                    true => self.whole_words()?,
                    false => self.byte_level()?,
                };
                self.write_token_types(JINA_TOKEN_TYPES);
                Ok(tokens)
            }
            other => Err(super::bad(
                &path,
                format!(
                    "field '{CLASS}' is {}; Jina-BERT has BertTokenizer or RobertaTokenizer",
                    other.unwrap_or("missing")
                ),
            )),
        }
    }

    /// Byte-pair encoding without letters for bytes, of texts that are split at spaces.
    fn whole_words(&mut self) -> Result<usize> {
        const NAME: &str = "whitespace";
        let tokenizer = HfTokenizer::load(self.files, Model::BytePairs)?;
        let tokens = bpe::tokens(self.files, &tokenizer, self.vocab_size, &Rules::PLAIN)?;
        self.entries.set_str("tokenizer.ggml.model", NAME);
        self.entries.set_str("tokenizer.ggml.pre", NAME);
        token::write(&tokens, Scores::Left, &mut self.entries);
        Special::load(self.files, true, &Special::TYPES, None)?.write(&mut self.entries);
        Ok(tokens.len())
    }

    /// Byte-level; the flags of BOS, EOS and separator come first.
    pub(super) fn modern_bert(&mut self) -> Result<usize> {
        for kind in ["bos", "eos", "sep"] {
            self.set_flag(&format!("add_{kind}_token"), true);
        }
        self.byte_level()
    }

    /// Byte-level; the flag of the BOS token comes first.
    pub(super) fn euro_bert(&mut self) -> Result<usize> {
        self.set_flag("add_bos_token", false);
        self.byte_level()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_of_words_are_marked_instead_of_continuations() {
        for (text, expected) in [
            ("token", "▁token"),
            ("##ization", "ization"),
            ("##", ""),
            ("#", "▁#"),
            ("[unused0]", "▁[unused0]"),
        ] {
            assert_eq!(with_beginning(text), expected, "{text}");
        }
    }
}
