//! JSON files: errors with file name, line and column.
//!
//! `NaN`, `Infinity` and `-Infinity`, which Python writes although JSON does not allow them, are
//! read as strings of these names.

use super::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Reads a file with one JSON object.
///
/// # Errors
/// A file that cannot be read or has other contents, with line and column.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    object(&bytes(path)?).map_err(|what| bad(path, what))
}

/// Reads a file with one JSON value.
///
/// # Errors
/// A file that cannot be read or has other contents, with line and column.
pub fn read(path: &Path) -> Result<Value> {
    value(&bytes(path)?).map_err(|what| bad(path, what))
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })
}

fn bad(path: &Path, what: String) -> Error {
    Error::Bad {
        path: path.to_owned(),
        what,
    }
}

/// Parses one JSON object of limited depth.
///
/// # Errors
/// The defect, with line and column.
pub fn object(text: &[u8]) -> std::result::Result<Map<String, Value>, String> {
    match value(text)? {
        Value::Object(object) => Ok(object),
        other => Err(format!(
            "it holds {}, but an object {{...}} is expected",
            kind(&other)
        )),
    }
}

/// Parses one JSON value of limited depth.
///
/// # Errors
/// The defect, with line and column, or another encoding than UTF-8.
pub fn value(text: &[u8]) -> std::result::Result<Value, String> {
    let encoding = BYTE_ORDER_MARKS
        .iter()
        .find(|(mark, _)| text.starts_with(mark));
    if let Some((_, what)) = encoding {
        return Err(format!(
            "{what}; save it as UTF-8 without a byte order mark"
        ));
    }
    let bad = |e| format!("not valid JSON: {e}");
    match serde_json::from_slice(text) {
        Ok(value) => Ok(value),
        Err(error) => match quote_numbers(text) {
            Some(quoted) => serde_json::from_slice(&quoted).map_err(bad),
            None => Err(bad(error)),
        },
    }
}

/// Prefixes of texts in encodings that JSON does not allow.
const BYTE_ORDER_MARKS: [(&[u8], &str); 3] = [
    (b"\xef\xbb\xbf", "it begins with a byte order mark"),
    (b"\xff\xfe", "it is UTF-16"),
    (b"\xfe\xff", "it is UTF-16"),
];

/// Numbers that Python writes although JSON does not allow them.
const NOT_FINITE: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Quotes non-finite numbers; `None` if there are none.
fn quote_numbers(text: &[u8]) -> Option<Vec<u8>> {
    let mut quoted = Vec::with_capacity(text.len());
    let (mut at, mut in_text, mut any) = (0, false, false);
    while let Some(&byte) = text.get(at) {
        let rest = &text[at..];
        let number = NOT_FINITE
            .iter()
            .find(|name| rest.starts_with(name.as_bytes()));
        match (in_text, byte, number) {
            (false, _, Some(name)) => {
                quoted.extend([b"\"", name.as_bytes(), b"\""].concat());
                at += name.len();
                any = true;
                continue;
            }
            // An escaped quotation mark does not end a string.
            (true, b'\\', _) => {
                quoted.push(byte);
                at += 1;
                quoted.extend(text.get(at));
            }
            (_, b'"', _) => {
                in_text = !in_text;
                quoted.push(byte);
            }
            _ => quoted.push(byte),
        }
        at += 1;
    }
    any.then_some(quoted)
}

/// Kind of a JSON value, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a number with a fraction",
        Value::Number(_) => "a whole number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nonfinite_numbers_are_read_as_strings() {
        let text =
            br#"{"a": [0.0, Infinity], "b": -Infinity, "c": NaN, "d \" NaN": "Infinity \\"}"#;
        let object = object(text).unwrap();
        assert_eq!(
            Value::Object(object),
            json!({ "a": [0.0, "Infinity"], "b": "-Infinity", "c": "NaN", "d \" NaN": "Infinity \\" })
        );
        let error = super::object(b"{\"a\": NaN,\n]").unwrap_err();
        assert!(error.contains("line 2 column 1"), "{error}");
        let error = super::object(b"{\"a\": nan}").unwrap_err();
        assert!(error.contains("line 1 column 8"), "{error}");
    }

    #[test]
    fn other_encodings_are_refused_by_name() {
        for (text, what) in [
            (&b"\xef\xbb\xbf{}"[..], "begins with a byte order mark"),
            (b"\xff\xfe{\0}\0", "it is UTF-16"),
            (b"\xfe\xff\0{\0}", "it is UTF-16"),
        ] {
            let error = object(text).unwrap_err();
            assert!(error.starts_with(what) || error.contains(what), "{error}");
            assert!(error.contains("save it as UTF-8"), "{error}");
        }
    }
}
