//! The work directory of a run: results of stages by name and key, and snapshots of unfinished
//! stages.
//!
//! ```text
//! NAME.json         a result, or the mark of a complete file
//! NAME.resume       snapshot of a stage; NAME.blocks: finished tensors of its file
//! covariance/       input Hessians, with their own key
//! gradients/        output Hessians, likewise
//! ```

use super::{Error, Result, write_text};
use crate::format;
use crate::format::hex;
use crate::format::snapshot::Key;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Name in the output directory.
const FOLDER: &str = "work";
/// File extensions of snapshots and of their tensors.
const SNAPSHOT: &str = "resume";
const BLOCKS: &str = "blocks";

pub(super) struct WorkDir {
    folder: PathBuf,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Entry<T> {
    /// SHA-256 of all inputs of the result.
    key: String,
    result: T,
}

impl WorkDir {
    /// The work directory of an output directory; it need not exist.
    pub(super) fn of(directory: &Path) -> WorkDir {
        WorkDir {
            folder: directory.join(FOLDER),
        }
    }

    /// Creates the directory.
    pub(super) fn create(&self) -> Result<()> {
        let io = |source| format::Error::Io {
            path: self.folder.clone(),
            action: "create",
            source,
        };
        Ok(std::fs::create_dir_all(&self.folder).map_err(io)?)
    }

    /// Path of an entry.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Path of a stage's snapshot.
    pub(super) fn snapshot(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.{SNAPSHOT}"))
    }

    /// Path of the tensors of an unfinished file.
    pub(super) fn blocks(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.{BLOCKS}"))
    }

    /// Removes snapshots of files with other recipes, left by a killed run.
    pub(super) fn remove_abandoned(&self) {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if [SNAPSHOT, BLOCKS]
                .iter()
                .any(|extension| name.ends_with(&format!(".gguf.{extension}")))
            {
                // A failure is harmless: nothing refers to the file.
                let _ = std::fs::remove_file(&path);
            }
        }
    }

    /// Result of an earlier run, if it is readable and has the same key.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str, key: &Key) -> Option<T> {
        let text = std::fs::read_to_string(self.json(name)).ok()?;
        let entry: Entry<T> = serde_json::from_str(&text).ok()?;
        (entry.key == hex(key)).then_some(entry.result)
    }

    /// Stores a result.
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

    /// Marks an entry as complete.
    pub(super) fn mark(&self, name: &str, key: &Key) -> Result<()> {
        self.write(name, key, &())
    }

    /// True if an entry is marked as complete.
    pub(super) fn is_marked(&self, name: &str, key: &Key) -> bool {
        self.read::<()>(name, key).is_some()
    }

    /// True if there is a result, under any key.
    pub(super) fn has(&self, name: &str) -> bool {
        self.json(name).exists()
    }

    /// Removes a result, if there is one.
    pub(super) fn remove(&self, name: &str) {
        // A failure is harmless: results are looked up by key.
        let _ = std::fs::remove_file(self.json(name));
    }

    fn json(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_need_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::of(dir.path());
        work.create().unwrap();
        let (a, b): (Key, Key) = ([1; 32], [2; 32]);
        work.write("x", &a, &vec![1.5f64, 1e-300]).unwrap();
        assert_eq!(work.read::<Vec<f64>>("x", &a), Some(vec![1.5, 1e-300]));
        assert_eq!(work.read::<Vec<f64>>("x", &b), None);
        assert_eq!(work.read::<Vec<f64>>("y", &a), None);
        std::fs::write(work.json("x"), "{").unwrap();
        assert_eq!(work.read::<Vec<f64>>("x", &a), None);
    }
    #[test]
    fn abandoned_file_snapshots_are_removed_and_stage_snapshots_kept() {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkDir::of(dir.path());
        work.create().unwrap();
        let file = "m-4.00bpw-Q4_K_M.gguf";
        let abandoned = [work.snapshot(file), work.blocks(file)];
        let others = [work.snapshot("scores"), work.json(file)];
        for path in abandoned.iter().chain(&others) {
            std::fs::write(path, "x").unwrap();
        }
        work.remove_abandoned();
        assert!(abandoned.iter().all(|path| !path.exists()));
        assert!(others.iter().all(|path| path.exists()));
    }
}
