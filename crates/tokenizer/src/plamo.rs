//! PLaMo 2 and 3: a line of `tokenizer.jsonl` per token, an array of text, score and type.

use super::files::{bad, kind, read_text};
use super::token::{self, SCORE_OF_ADDED, Scores, Token, TokenType};
use super::{Import, MAX_TOKENS, checked_size, special};
use quantier_gguf::Result;
use quantier_gguf::gguf::Value as Gguf;
use serde_json::Value;

const FILE: &str = "tokenizer.jsonl";
/// End of a turn, `<|plamo:op|>`.
const TURN_END: u32 = 4;
/// Roles in `tokenizer_config.json` with the names of their keys, in the order of the reference.
const ROLES: [(&str, &str); 5] = [
    ("bos_token", "bos"),
    ("eos_token", "eos"),
    ("pad_token", "padding"),
    // The key is misspelt in the format.
    ("sep_token", "seperator"),
    ("unk_token", "unknown"),
];

/// Reads the tokens.
fn parse(text: &str) -> std::result::Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let lines = text.split('\n').zip(1..);
    for (line, number) in lines.filter(|(line, _)| !line.trim().is_empty()) {
        if tokens.len() == MAX_TOKENS {
            return Err(format!("more than {MAX_TOKENS} tokens"));
        }
        let wrong = |what: String| format!("line {number}: {what}");
        let entry: Value =
            serde_json::from_str(line).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
        let text = entry
            .get(0)
            .and_then(Value::as_str)
            .ok_or_else(|| wrong("the first value is not a text".to_owned()))?;
        let score = entry
            .get(1)
            .and_then(Value::as_f64)
            .ok_or_else(|| wrong("the second value is not a number".to_owned()))?;
        let token_type = match entry.get(2).and_then(Value::as_str) {
            Some("UNKNOWN") => TokenType::Unknown,
            Some("CONTROL") => TokenType::Control,
            Some("BYTE") => TokenType::Byte,
            _ if text.starts_with("<|plamo:") && text.ends_with("|>") => TokenType::Control,
            _ => TokenType::Normal,
        };
        tokens.push(Token {
            text: text.to_owned(),
            score: score as f32,
            token_type,
        });
    }
    match tokens.is_empty() {
        true => Err("it has no tokens".to_owned()),
        false => Ok(tokens),
    }
}

impl Import<'_> {
    pub(crate) fn plamo2(&mut self) -> Result<usize> {
        let files = self.files;
        let path = files.dir.join(FILE);
        let text = read_text(&path)?.ok_or_else(|| {
            let what = format!("no {FILE}; download it from the model's source");
            bad(&files.dir, what)
        })?;
        let mut tokens = parse(&text).map_err(|what| bad(&path, what))?;
        let size = checked_size(self.vocab_size, tokens.len(), &files.dir)?;
        // Numbered from 1, regardless of their ids.
        let padding = (1..=size.saturating_sub(tokens.len())).map(|number| Token {
            score: SCORE_OF_ADDED,
            ..Token::padding(number)
        });
        tokens.extend(padding);

        self.entries.set_str("tokenizer.ggml.model", "plamo2");
        self.entries.set_str("tokenizer.ggml.pre", "default");
        token::write(&tokens, Scores::Floats, &mut self.entries);
        let config = files.dir.join("tokenizer_config.json");
        for (role, key) in ROLES {
            let Some(named) = files.config_field(role).filter(|v| !v.is_null()) else {
                continue;
            };
            let text = named
                .as_str()
                .ok_or_else(|| bad(&config, format!("{role} is {}, not a text", kind(named))))?;
            let id = tokens.iter().position(|t| t.text == text);
            let id = id.ok_or_else(|| {
                bad(
                    &config,
                    format!("{role} is {text:?}, which {FILE} does not have"),
                )
            })?;
            self.entries.set(
                format!("tokenizer.ggml.{key}_token_id"),
                Gguf::U32(id as u32),
            );
        }
        self.entries
            .set("tokenizer.ggml.eot_token_id", Gguf::U32(TURN_END));
        self.entries
            .set("tokenizer.ggml.add_space_prefix", Gguf::Bool(false));
        Ok(tokens.len())
    }

    pub(crate) fn plamo3(&mut self) -> Result<usize> {
        let tokens = self.plamo2()?;
        let file = read_text(&self.files.dir.join("chat_template.jinja"))?.map(Value::String);
        let own = self.files.config_field("chat_template");
        if let Some(template) = file.as_ref().or(own).filter(|t| special::truthy(t)) {
            special::write_template(template, &mut self.entries);
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_become_tokens() {
        let text = "[\"<|plamo:unk|>\", 0.0, \"UNKNOWN\"]\n\n[\"<|plamo:op|>\", 0]\n[\"<0x00>\", -1.5, \"BYTE\", null]\n\
                    [\"a\\u2028\", -2, \"NORMAL\"]";
        let seen: Vec<_> = parse(text)
            .unwrap()
            .into_iter()
            .map(|t| (t.text, t.score, t.token_type))
            .collect();
        let token = |text: &str, score, kind| (text.to_owned(), score, kind);
        let expected = [
            token("<|plamo:unk|>", 0.0, TokenType::Unknown),
            token("<|plamo:op|>", 0.0, TokenType::Control),
            token("<0x00>", -1.5, TokenType::Byte),
            token("a\u{2028}", -2.0, TokenType::Normal),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn invalid_lines_are_explained() {
        for (text, what) in [
            ("", "no tokens"),
            (
                "[\"a\", 0]\n[1, 2]",
                "line 2: the first value is not a text",
            ),
            ("[\"a\"]", "line 1: the second value is not a number"),
            ("[\"a\", NaN]", "line 1: not valid JSON"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_read_or_refused(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
