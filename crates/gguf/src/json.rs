//! JSON files: errors with the file's name, the line and the column.

use super::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Reads a file that holds one JSON object.
///
/// # Errors
/// A file that cannot be read or holds something else, with line and column.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    object(&bytes(path)?).map_err(|what| bad(path, what))
}

/// Reads a file that holds one JSON value.
///
/// # Errors
/// A file that cannot be read or holds something else, with line and column.
pub fn read(path: &Path) -> Result<Value> {
    serde_json::from_slice(&bytes(path)?).map_err(|e| bad(path, format!("bad JSON: {e}")))
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

/// Parses text that is one JSON object, of limited depth.
///
/// # Errors
/// The defect, with line and column.
pub fn object(text: &[u8]) -> std::result::Result<Map<String, Value>, String> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(format!(
            "it holds {}, and an object {{...}} is expected",
            kind(&other)
        )),
        Err(e) => Err(format!("bad JSON: {e}")),
    }
}

/// What a JSON value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(n) if n.is_f64() => "a number with a fraction",
        Value::Number(_) => "a whole number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
