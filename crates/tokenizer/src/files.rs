//! Configuration and tokenizer files of a checkpoint directory, read once.

use quantier_gguf::safetensors::lfs_pointer;
use quantier_gguf::{Error, Result, json};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Error about a file.
pub fn bad(path: &Path, what: impl Into<String>) -> Error {
    Error::Bad {
        path: path.to_owned(),
        what: what.into(),
    }
}

/// Reads a file; `None` if it does not exist.
///
/// # Errors
/// A file that cannot be read.
pub fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    Ok(Some(bytes))
}

/// Reads a text file with the line ends of Python's text mode: `\n` for `\r\n` and `\r`.
///
/// # Errors
/// A file that cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read_bytes(path)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()]
            .iter()
            .filter(|&&b| b == b'\n')
            .count()
            + 1;
        bad(
            path,
            format!("line {line} is not UTF-8; save the file as UTF-8"),
        )
    })?;
    Ok(Some(if text.contains('\r') {
        text.replace("\r\n", "\n").replace('\r', "\n")
    } else {
        text
    }))
}

/// Reads a JSON file.
///
/// # Errors
/// A file that cannot be read, or invalid JSON, with its line and column.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = read_bytes(path)? else {
        return Ok(None);
    };
    let refused = |what| bad(path, lfs_pointer(&bytes).unwrap_or(what));
    json::value(&bytes).map(Some).map_err(refused)
}

/// Reads a JSON file with an object.
///
/// # Errors
/// A file that cannot be read, invalid JSON with its line and column, a value other than an object.
pub fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    match read_json(path)? {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(bad(
            path,
            format!("holds {} where an object {{...}} is expected", kind(&other)),
        )),
    }
}

/// Kind of a JSON value, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The vocabulary files of a checkpoint.
pub struct Files {
    /// The checkpoint.
    pub dir: PathBuf,
    /// `tokenizer.json`: the tokenizer of the tokenizers library.
    pub tokenizer: Option<Map<String, Value>>,
    /// `tokenizer_config.json`: the settings of transformers.
    pub tokenizer_config: Option<Map<String, Value>>,
    /// `config.json`, unmodified.
    pub config: Option<Map<String, Value>>,
}

impl Files {
    /// Reads the existing files.
    ///
    /// # Errors
    /// As [`read_object`].
    pub fn read(dir: &Path) -> Result<Files> {
        Ok(Files {
            dir: dir.to_owned(),
            tokenizer: read_object(&dir.join("tokenizer.json"))?,
            tokenizer_config: read_object(&dir.join("tokenizer_config.json"))?,
            config: read_object(&dir.join("config.json"))?,
        })
    }

    /// A field of `tokenizer_config.json`.
    pub(crate) fn config_field(&self, name: &str) -> Option<&Value> {
        self.tokenizer_config.as_ref()?.get(name)
    }

    /// Error about `tokenizer.json`, or about `vocab.json` without it.
    pub(crate) fn bad_tokenizer(&self, what: impl Into<String>) -> Error {
        let name = match self.tokenizer {
            Some(_) => "tokenizer.json",
            None if self.dir.join("vocab.txt").is_file() => "vocab.txt",
            None => "vocab.json",
        };
        bad(&self.dir.join(name), what)
    }

    /// The added tokens of `tokenizer.json`.
    pub fn added_tokens(&self) -> &[Value] {
        self.tokenizer
            .as_ref()
            .and_then(|t| t.get("added_tokens")?.as_array())
            .map_or(&[], Vec::as_slice)
    }
}
