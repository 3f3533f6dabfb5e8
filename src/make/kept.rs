//! What a run keeps in its directory for the next one: results by name, each under a key of all
//! that it depends on.

use super::{Error, Result, write_text};
use crate::format;
use crate::format::hex;
use crate::format::snapshot::Key;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// The folder inside the output directory.
const FOLDER: &str = "work";

pub(super) struct Kept {
    folder: PathBuf,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Entry<T> {
    /// Of all that the result depends on.
    key: String,
    result: T,
}

impl Kept {
    pub(super) fn new(directory: &Path) -> Result<Kept> {
        let folder = directory.join(FOLDER);
        let io = |source| format::Error::Io {
            path: folder.clone(),
            action: "create",
            source,
        };
        std::fs::create_dir_all(&folder).map_err(io)?;
        Ok(Kept { folder })
    }

    /// What is there, without making the folder: to look into it only.
    pub(super) fn look(directory: &Path) -> Kept {
        Kept {
            folder: directory.join(FOLDER),
        }
    }

    /// A file of this folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What an earlier run has kept under this name, if it is of the same key. What cannot be read
    /// is as good as gone.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str, key: &Key) -> Option<T> {
        let text = std::fs::read_to_string(self.json(name)).ok()?;
        let entry: Entry<T> = serde_json::from_str(&text).ok()?;
        (entry.key == hex(key)).then_some(entry.result)
    }

    pub(super) fn write<T: Serialize>(&self, name: &str, key: &Key, result: &T) -> Result<()> {
        let entry = Entry {
            key: hex(key),
            result,
        };
        let text = serde_json::to_string(&entry).map_err(|e| {
            let source = std::io::Error::other(e);
            Error::Format(format::Error::Io {
                path: self.json(name),
                action: "write",
                source,
            })
        })?;
        write_text(&self.json(name), &text)
    }

    /// Keeps that something is done.
    pub(super) fn remember(&self, name: &str, key: &Key) -> Result<()> {
        self.write(name, key, &())
    }

    /// Whether it is.
    pub(super) fn has(&self, name: &str, key: &Key) -> bool {
        self.read::<()>(name, key).is_some()
    }

    fn json(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(dir.path()).unwrap();
        let (a, b): (Key, Key) = ([1; 32], [2; 32]);
        kept.write("x", &a, &vec![1.5f64, 1e-300]).unwrap();
        assert_eq!(kept.read::<Vec<f64>>("x", &a), Some(vec![1.5, 1e-300]));
        assert_eq!(kept.read::<Vec<f64>>("x", &b), None);
        assert_eq!(kept.read::<Vec<f64>>("y", &a), None);
        std::fs::write(kept.json("x"), "{").unwrap();
        assert_eq!(kept.read::<Vec<f64>>("x", &a), None);
    }
}
