//! Tokens with score and type, and their metadata.

use quantier_gguf::gguf::{Entries, Value, ValueType};

/// Type of a token, with its number in a GGUF (as in SentencePiece).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum TokenType {
    /// A result of merges.
    Normal = 1,
    /// Replaces text that cannot be encoded.
    Unknown = 2,
    /// A control token.
    Control = 3,
    /// Text split off before pre-tokenization.
    UserDefined = 4,
    /// Never produced.
    Unused = 5,
    /// One byte, for text without other tokens.
    Byte = 6,
}

/// Score of a padding token in a SentencePiece vocabulary.
pub(super) const SCORE_OF_PADDING: f32 = -10000.0;
/// Score of an added token.
pub(super) const SCORE_OF_ADDED: f32 = -1000.0;

/// A token: text, score (in vocabularies with scores) and type.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub text: String,
    pub score: f32,
    pub token_type: TokenType,
}

impl Token {
    /// The padding token of an id.
    pub(crate) fn padding(id: usize) -> Token {
        Token {
            text: format!("[PAD{id}]"),
            score: SCORE_OF_PADDING,
            token_type: TokenType::Unused,
        }
    }
}

/// Format of a vocabulary's scores in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scores {
    /// No scores.
    Left,
    /// Unchanged.
    Floats,
    /// As integers.
    Integers,
}

/// Writes texts, scores and types.
pub(super) fn write(tokens: &[Token], scores: Scores, entries: &mut Entries) {
    const SCORES: &str = "tokenizer.ggml.scores";
    entries.set_strings("tokenizer.ggml.tokens", tokens.iter().map(|t| &t.text));
    let all = tokens.iter().map(|t| t.score);
    match scores {
        Scores::Left => {}
        Scores::Floats => entries.set_values(SCORES, ValueType::F32, all.map(Value::F32)),
        Scores::Integers => {
            let whole = all.map(|score| Value::I32(score as i32));
            entries.set_values(SCORES, ValueType::I32, whole);
        }
    }
    let types = tokens.iter().map(|t| Value::I32(t.token_type as i32));
    entries.set_values("tokenizer.ggml.token_type", ValueType::I32, types);
}

/// True for the text of a control token: some publishers forget the flag. The rules are the
/// reference's, each with the models that need it.
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

/// Text of a user-defined token for llama.cpp: spaces instead of U+2581.
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
