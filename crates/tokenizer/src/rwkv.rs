//! RWKV's World vocabulary: a line per token, its number, its text as a literal of Python (text or
//! bytes), and its length in bytes.

use super::files::{bad, read_text};
use super::special::Special;
use super::token::{self, Scores, Token, TokenType};
use super::{Import, MAX_TOKENS, checked_size};
use quantier_gguf::Result;
use std::fmt::Write;

const FILE: &str = "rwkv_vocab_v20230424.txt";
/// The number of tokens, if the configuration does not say it.
const TOKENS: u64 = 1 << 16;
/// The token in front of all others, which begins and ends texts.
const ENDS: (&str, u32) = ("<s>", 0);
/// Two line breaks, which end a turn.
const TURN_END: u32 = 261;
/// llama.cpp's name of its own template.
const TEMPLATE: &str = "rwkv-world";

/// The bytes of a literal of Python, `'...'` or `b'...'` with either kind of quotes.
fn literal(text: &str) -> std::result::Result<Vec<u8>, String> {
    let (is_bytes, quoted) = match text.strip_prefix('b') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let quote = quoted.chars().next().filter(|c| ['\'', '"'].contains(c));
    let quote = quote.ok_or("the token is no literal of Python in quotes")?;
    let mut chars = quoted[1..].chars();
    let mut bytes = Vec::new();
    let push = |c: char, bytes: &mut Vec<u8>| match (is_bytes, u8::try_from(c)) {
        (false, _) => {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            Ok(())
        }
        (true, Ok(byte)) => {
            bytes.push(byte);
            Ok(())
        }
        (true, Err(_)) => Err(format!("{c:?} is no byte")),
    };
    loop {
        match chars.next() {
            None => return Err("the token has no quote behind it".into()),
            Some(c) if c == quote => break,
            Some('\\') => {
                let escaped = chars.next().ok_or("the token ends within an escape")?;
                let digits = match escaped {
                    'n' => Err('\n'),
                    't' => Err('\t'),
                    'r' => Err('\r'),
                    'a' => Err('\x07'),
                    'b' => Err('\x08'),
                    'f' => Err('\x0c'),
                    'v' => Err('\x0b'),
                    '\\' | '\'' | '"' => Err(escaped),
                    'x' => Ok(2),
                    'u' if !is_bytes => Ok(4),
                    'U' if !is_bytes => Ok(8),
                    other => return Err(format!("the escape \\{other} is not supported")),
                };
                let c = match digits {
                    Err(c) => c,
                    Ok(count) => {
                        let digits: String = chars.by_ref().take(count).collect();
                        let number = u32::from_str_radix(&digits, 16)
                            .ok()
                            .filter(|_| digits.len() == count);
                        number.and_then(char::from_u32).ok_or_else(|| {
                            format!("\\{escaped}{digits} is the escape of no character")
                        })?
                    }
                };
                push(c, &mut bytes)?;
            }
            Some(c) => push(c, &mut bytes)?,
        }
    }
    match chars.next() {
        None => Ok(bytes),
        Some(_) => Err("there is something behind the token's quote".into()),
    }
}

/// Bytes as Python writes them between the quotes of a literal.
fn written(bytes: &[u8]) -> String {
    let is_double = bytes.contains(&b'\'') && !bytes.contains(&b'"');
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'\'' if !is_double => text.push_str("\\'"),
            b'\t' => text.push_str("\\t"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

/// Reads the tokens behind the first one.
fn parse(text: &str) -> std::result::Result<Vec<String>, String> {
    let mut tokens = Vec::new();
    let mut lines: Vec<&str> = text.split('\n').collect();
    if lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    for (line, number) in lines.into_iter().zip(1..) {
        if tokens.len() == MAX_TOKENS {
            return Err(format!("more than {MAX_TOKENS} tokens"));
        }
        let wrong = |what: String| format!("line {number}: {what}");
        let parts = line
            .split_once(' ')
            .and_then(|(_, rest)| rest.rsplit_once(' '));
        let parts = parts.ok_or_else(|| {
            wrong("it is not a number, a token and a length with spaces between them".into())
        })?;
        let (token, length) = parts;
        let bytes = literal(token).map_err(wrong)?;
        if length.trim().parse() != Ok(bytes.len()) {
            return Err(wrong(format!(
                "the token has {} bytes, and its length is said to be {}",
                bytes.len(),
                length.trim()
            )));
        }
        tokens.push(written(&bytes));
    }
    match tokens.is_empty() {
        true => Err("it has no tokens".to_owned()),
        false => Ok(tokens),
    }
}

impl Import<'_> {
    pub(crate) fn rwkv_world(&mut self) -> Result<usize> {
        let files = self.files;
        let path = files.dir.join(FILE);
        let text = read_text(&path)?.ok_or_else(|| {
            let what = format!("no {FILE}; download it from where the model comes from");
            bad(&files.dir, what)
        })?;
        let token = |text: String, token_type: TokenType| Token {
            text,
            score: 0.0,
            token_type,
        };
        let mut tokens = vec![token(ENDS.0.to_owned(), TokenType::Control)];
        let listed = parse(&text).map_err(|what| bad(&path, what))?;
        tokens.extend(
            listed
                .into_iter()
                .map(|text| token(text, TokenType::Normal)),
        );
        let size = checked_size(self.vocab_size.or(Some(TOKENS)), tokens.len(), &files.dir)?;
        if size < tokens.len() {
            return Err(bad(
                &path,
                format!(
                    "it has {} tokens with the one in front of all, and vocab_size in config.json is {size}; \
                     download both again",
                    tokens.len()
                ),
            ));
        }
        tokens.extend((tokens.len()..size).map(Token::padding));
        self.entries.set_str("tokenizer.ggml.model", "rwkv");
        token::write(&tokens, Scores::Left, &mut self.entries);
        let mut special = Special::load(files, false, &Special::TYPES, None)?;
        if special.set_template(TEMPLATE) {
            self.notes.push(format!(
                "the checkpoint has no chat template: the file names llama.cpp's own, {TEMPLATE}, where its converter \
                 writes the text of one that comes with it; a template in tokenizer_config.json is taken as it is"
            ));
        }
        special.set_id("eot", TURN_END);
        for kind in ["bos", "eos"] {
            special.set_id(kind, ENDS.1);
            special.replace_id(kind, ENDS.1);
        }
        special.write(&mut self.entries);
        Ok(tokens.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_is_a_token() {
        let text = "1 '\\x00' 1\n2 ' ' 1\n3 b'\\xff' 1\n4 \"it's\" 4\n5 '\\\\' 1\n6 'é' 2\n7 '\"\\'' 2\n8 '\\u4e2d' 3\n";
        let expected = [
            "\\x00",
            " ",
            "\\xff",
            // The quotes around it are left out, and no other is escaped.
            "it's",
            "\\\\",
            "\\xc3\\xa9",
            "\"\\'",
            "\\xe4\\xb8\\xad",
        ];
        assert_eq!(parse(text).unwrap(), expected);
    }

    #[test]
    fn wrong_lines_say_what_is_wrong() {
        for (text, what) in [
            ("", "no tokens"),
            ("1 'a'", "line 1: it is not a number"),
            ("1 'a' 1\n2 a 1", "line 2: the token is no literal"),
            ("1 'a 1", "no quote behind it"),
            (
                "1 'a' 2",
                "the token has 1 bytes, and its length is said to be 2",
            ),
            ("1 b'é' 2", "line 1: the token has 1 bytes"),
            ("1 b'中' 3", "is no byte"),
            ("1 '\\N{DEGREE SIGN}' 2", "\\N is not supported"),
            ("1 '\\xg0' 1", "no character"),
            ("1 '\\ud800' 3", "no character"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn bytes_are_read_as_they_are_written(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            let text = written(&bytes);
            let quote = if text.contains('\'') && !text.contains("\\'") { '"' } else { '\'' };
            prop_assert_eq!(literal(&format!("b{quote}{text}{quote}")), Ok(bytes));
        }
    }
}
