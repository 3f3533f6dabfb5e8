//! Blocks of tensors that are rounded before their output is written, in a separate file.

use super::Result;
use crate::format::Error;
use crate::rounding::Proof;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Blocks by tensor name.
pub(crate) struct Rounded {
    file: File,
    path: PathBuf,
    tensors: BTreeMap<String, Entry>,
    end: u64,
}

/// Place of a tensor's blocks, and its proof.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Entry {
    at: u64,
    bytes: u64,
    /// SHA-256 of the blocks in hexadecimal.
    digest: String,
    proof: Proof,
}

impl Rounded {
    /// In this directory, in a file that the system removes with the process.
    pub(super) fn temporary(directory: &Path) -> Result<Rounded> {
        let io = |source| Error::Io {
            path: directory.to_owned(),
            action: "make a temporary file in",
            source,
        };
        let file = tempfile::tempfile_in(directory).map_err(io)?;
        Ok(Rounded {
            file,
            path: directory.join("(temporary file)"),
            tensors: BTreeMap::new(),
            end: 0,
        })
    }

    /// In a file at this path, reusing the tensors of `index` if all of them are intact.
    pub(super) fn open(path: &Path, index: Option<&[u8]>) -> Result<Rounded> {
        let io = |action| {
            move |source| Error::Io {
                path: path.to_owned(),
                action,
                source,
            }
        };
        let options = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .to_owned();
        let file = options.open(path).map_err(io("open"))?;
        let tensors = index
            .and_then(|index| serde_json::from_slice(index).ok())
            .unwrap_or_default();
        let mut rounded = Rounded {
            file,
            path: path.to_owned(),
            tensors,
            end: 0,
        };
        if !rounded.is_intact()? {
            rounded.tensors.clear();
        }
        rounded.end = rounded
            .tensors
            .values()
            .map(|entry| entry.at + entry.bytes)
            .max()
            .unwrap_or(0);
        rounded.file.set_len(rounded.end).map_err(io("shorten"))?;
        Ok(rounded)
    }

    /// The index for [`Rounded::open`].
    pub(super) fn index(&self) -> Vec<u8> {
        serde_json::to_vec(&self.tensors).unwrap_or_default()
    }

    /// True if every tensor of the index is intact.
    fn is_intact(&self) -> Result<bool> {
        let io = |source| Error::Io {
            path: self.path.clone(),
            action: "read",
            source,
        };
        let len = self.file.metadata().map_err(io)?.len();
        for entry in self.tensors.values() {
            let end = entry.at.checked_add(entry.bytes);
            if end.is_none_or(|end| end > len) {
                return Ok(false);
            }
            let mut blocks = vec![0; entry.bytes as usize];
            self.file.read_exact_at(&mut blocks, entry.at).map_err(io)?;
            if digest(&blocks) != entry.digest {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// True if the tensor is present.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// Proof of a tensor; without rows for a tensor without error feedback.
    pub(super) fn proof(&self, tensor: &str) -> Option<&Proof> {
        Some(&self.tensors.get(tensor)?.proof)
    }

    /// Adds a tensor's blocks.
    pub(super) fn add(&mut self, tensor: &str, blocks: &[u8], proof: Proof) -> Result<()> {
        let io = |source| Error::Io {
            path: self.path.clone(),
            action: "write to",
            source,
        };
        self.file.write_all_at(blocks, self.end).map_err(io)?;
        let entry = Entry {
            at: self.end,
            bytes: blocks.len() as u64,
            digest: digest(blocks),
            proof,
        };
        self.end += entry.bytes;
        self.tensors.insert(tensor.to_owned(), entry);
        Ok(())
    }

    /// Reads a byte range of a tensor.
    ///
    /// # Errors
    /// A tensor that is missing or too short.
    pub(super) fn read(&self, tensor: &str, from: u64, out: &mut [u8]) -> Result<()> {
        let entry = self.tensors.get(tensor);
        let entry = entry.filter(|e| {
            from.checked_add(out.len() as u64)
                .is_some_and(|end| end <= e.bytes)
        });
        let source = std::io::Error::other(format!("its data of tensor '{tensor}' are incomplete"));
        let io = |source| Error::Io {
            path: self.path.clone(),
            action: "read",
            source,
        };
        let entry = entry.ok_or_else(|| io(source))?;
        Ok(self.file.read_exact_at(out, entry.at + from).map_err(io)?)
    }
}

fn digest(blocks: &[u8]) -> String {
    crate::format::hex(&Sha256::digest(blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intact_tensors_are_reused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rounded");
        let mut rounded = Rounded::open(&path, None).unwrap();
        let proof = Proof {
            rows: 2,
            taken: 0.1,
            reference: 0.3,
            ..Proof::default()
        };
        rounded.add("a", b"0123", proof).unwrap();
        let index = rounded.index();
        rounded.add("b", b"45", Proof::default()).unwrap();

        // The index lacks later tensors.
        let again = Rounded::open(&path, Some(&index)).unwrap();
        assert_eq!(
            (again.has("a"), again.has("b"), again.proof("a"), again.end),
            (true, false, Some(&proof), 4)
        );
        let mut two = [0; 2];
        again.read("a", 1, &mut two).unwrap();
        assert_eq!(&two, b"12");
        assert!(again.read("a", 3, &mut two).is_err() && again.read("c", 0, &mut two).is_err());

        std::fs::write(&path, b"0124").unwrap();
        assert!(
            !Rounded::open(&path, Some(&index)).unwrap().has("a"),
            "changed"
        );
        std::fs::write(&path, b"012").unwrap();
        assert!(!Rounded::open(&path, Some(&index)).unwrap().has("a"), "cut");
        assert!(
            !Rounded::open(&path, Some(b"{")).unwrap().has("a"),
            "no index"
        );
    }
}
