//! Read-only file mappings: the only place that maps memory.

use super::fault::Known;
use super::{Error, Result};
use memmap2::{Advice, Mmap, UncheckedAdvice};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A whole file, mapped read-only.
pub struct Map {
    path: PathBuf,
    file: File,
    bytes: Mmap,
    /// Names the file if a read of the mapping fails.
    _known: Known,
    /// Guards the file's position.
    position: Mutex<()>,
}

impl Map {
    /// Maps the file. An empty file gives an empty slice.
    ///
    /// # Errors
    /// A file that cannot be opened, a directory, a pipe, a device.
    pub fn open(path: &Path) -> Result<Map> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            action: "open",
            source,
        };
        // Checked before opening, which would wait for the other end of a pipe.
        let meta = path.metadata().map_err(io)?;
        let unmappable = match meta.is_dir() {
            true => Some("it is a directory; name a file"),
            false if !meta.is_file() => Some("it is a pipe or a device; save it to a file first"),
            false => None,
        };
        if let Some(why) = unmappable {
            let source = std::io::Error::other(why);
            return Err(Error::Io {
                path: path.to_owned(),
                action: "read",
                source,
            });
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is read-only and private to this process. If another process shortens
        // the file, reads beyond its end fault; `check_length` detects that between reads, and
        // every consumer of tensor data calls it before reading a band of rows. What faults
        // nevertheless ends a program with a message (see `fault`).
        let bytes = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Map {
            path: path.to_owned(),
            file,
            _known: Known::new(&bytes, path),
            bytes,
            position: Mutex::new(()),
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends bytes of the file to `out`, inside the kernel where supported (`copy_file_range`):
    /// less than half the work of writing mapped bytes.
    pub(super) fn copy_to(&self, range: Range<usize>, mut out: &File) -> std::io::Result<()> {
        let _held = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(range.start as u64))?;
        let copied = std::io::copy(&mut file.take(range.len() as u64), &mut out)?;
        match copied == range.len() as u64 {
            true => Ok(()),
            false => Err(std::io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("{} has changed", self.path.display()),
            )),
        }
    }

    /// Checks that the whole mapping is still backed by the file.
    ///
    /// # Errors
    /// A file that has become shorter.
    pub fn check_length(&self) -> Result<()> {
        let now = self
            .file
            .metadata()
            .map_err(|source| Error::Io {
                path: self.path.clone(),
                action: "check",
                source,
            })?
            .len();
        if now < self.bytes.len() as u64 {
            return Err(Error::Shrunk {
                path: self.path.clone(),
                was: self.bytes.len() as u64,
                now,
            });
        }
        Ok(())
    }

    /// Hints to the system that these bytes will be needed soon.
    pub(crate) fn prefetch(&self, range: Range<usize>) {
        let _ = self
            .bytes
            .advise_range(Advice::WillNeed, range.start, range.len());
    }

    /// Hints to the system that these bytes will not be needed again soon, so that a model larger
    /// than memory does not evict everything else.
    pub fn release(&self, range: Range<usize>) {
        // SAFETY: the mapping is file-backed and read-only; dropped pages are read again from the
        // file.
        let _ = unsafe {
            self.bytes
                .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
    }
}
