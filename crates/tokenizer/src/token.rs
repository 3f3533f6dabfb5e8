//! The tokens of a vocabulary in the making.

use quantier_gguf::gguf::{Entries, Value, ValueType};

/// What a token is, with the number that stands for it in a GGUF (those of SentencePiece).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum TokenType {
    /// Text that the tokenizer merges to.
    Normal = 1,
    /// Stands for what cannot be encoded.
    Unknown = 2,
    /// Has a meaning instead of a text.
    Control = 3,
    /// Text that is split off before anything else.
    UserDefined = 4,
    /// Never produced.
    Unused = 5,
    /// One byte of what has no other token.
    Byte = 6,
}

/// The score of a token that fills a hole in a SentencePiece vocabulary.
const SCORE_OF_PADDING: f32 = -10000.0;
/// The score of a token that was added to a vocabulary later.
pub(super) const SCORE_OF_ADDED: f32 = -1000.0;

/// A token: its text, its score (where the vocabulary has scores) and its type.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub text: String,
    pub score: f32,
    pub token_type: TokenType,
}

impl Token {
    /// The token that fills the hole at an id.
    pub(crate) fn padding(id: usize) -> Token {
        Token {
            text: format!("[PAD{id}]"),
            score: SCORE_OF_PADDING,
            token_type: TokenType::Unused,
        }
    }
}

/// Writes texts, scores (only if `scored`) and types.
pub(super) fn write(tokens: &[Token], scored: bool, entries: &mut Entries) {
    entries.set_strings("tokenizer.ggml.tokens", tokens.iter().map(|t| &t.text));
    if scored {
        let scores = tokens.iter().map(|t| Value::F32(t.score));
        entries.set_values("tokenizer.ggml.scores", ValueType::F32, scores);
    }
    let types = tokens.iter().map(|t| Value::I32(t.token_type as i32));
    entries.set_values("tokenizer.ggml.token_type", ValueType::I32, types);
}

/// Whether an added token's text says that it is a control token although its flags do not: some
/// publishers forget the flag. The rules are the reference's; each names the models that made it
/// necessary.
pub(super) fn looks_special(text: &str) -> bool {
    let enclosed = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    // deepseek-coder; gemma, three of them
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || enclosed("<|", "|>")
        // deepseek-coder: full-width bars
        || enclosed("<｜", "｜>")
        // gemma
        || enclosed("<unused", ">")
}

/// A user-defined token's text as llama.cpp compares it: with spaces where SentencePiece has its
/// own sign.
pub(super) fn with_spaces(text: &str) -> String {
    text.replace('\u{2581}', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_looks() {
        for text in [
            "<pad>",
            "<|im_end|>",
            "<|",
            "<｜User｜>",
            "<unused7>",
            "[@BOS@]",
        ] {
            // "<|" is no token that ends in "|>"
            assert_eq!(looks_special(text), text != "<|", "{text}");
        }
        assert!(!looks_special("<s>") && !looks_special("|>") && !looks_special(""));
        // Python's startswith and endswith may overlap, and so may these.
        assert!(looks_special("<|>"));
    }
}
