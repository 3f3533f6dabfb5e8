//! Long jobs that survive being killed: a job saves snapshots beside its output at intervals, and
//! the same job, started again, resumes from the last one.
//!
//! ```text
//! KeyBuilder       key of a result from all its dependencies
//! Resume::open     loads the snapshot of an earlier run of the same job
//! Resume::due      true if a snapshot is due
//! Resume::save     saves a snapshot
//! Resume::remove   removes the snapshot at the end of the job
//! ```

use quantier_arch::Input;
use quantier_gguf::gguf::Layout;
use quantier_gguf::output::Output;
use quantier_gguf::snapshot::{self, Key, Lookup, Progress, Snapshot};
use quantier_gguf::{Error, Result};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Snapshots take at most one part in this many of a job's time.
const SHARE: u32 = 10;

/// Builds the key of a result from everything that the result depends on.
pub struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// A kind of result of this version of the program.
    pub fn new(kind: &str) -> KeyBuilder {
        KeyBuilder(Sha256::new()).with(kind, env!("CARGO_PKG_VERSION").as_bytes())
    }

    /// Snapshots take at most one part in this many of a job's time.
    pub fn with(mut self, name: &str, value: &[u8]) -> KeyBuilder {
        for part in [name.as_bytes(), value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds a model: its files with their sizes and times, its metadata and the names, types and
    /// shapes of its tensors. Changed weights are noticed by the modification time of their file.
    ///
    /// # Errors
    /// If the files' metadata cannot be read.
    pub fn with_model(mut self, input: &Input<'_>) -> Result<KeyBuilder> {
        for path in input.paths() {
            let io = |source| Error::Io {
                path: path.to_owned(),
                action: "look at",
                source,
            };
            let meta = path.metadata().map_err(io)?;
            let modified = meta.modified().map_err(io)?;
            let time = modified
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .as_nanos();
            let real = path.canonicalize().map_err(io)?;
            self = self.with("file", real.as_os_str().as_encoded_bytes());
            self = self
                .with("size", &meta.len().to_le_bytes())
                .with("time", &time.to_le_bytes());
        }
        let infos: Vec<_> = input.tensors.iter().map(|t| t.info.clone()).collect();
        Ok(self.with("header", Layout::new(input.metadata(), &infos, 1).header()))
    }

    /// SHA-256 of all added parts.
    pub fn key(self) -> Key {
        self.0.finalize().into()
    }
}

/// The snapshot file of a job.
pub struct Resume {
    path: PathBuf,
    key: Key,
    every: Duration,
    earlier: Mutex<Option<Snapshot>>,
    clock: Mutex<Clock>,
}

struct Clock {
    /// Time of the last snapshot, or of the beginning of the job.
    last: Instant,
    /// Duration of the last snapshot.
    took: Duration,
    /// True if the file belongs to this job, or is damaged.
    ours: bool,
    /// Error of the last snapshot, if it could not be saved.
    failed: Option<String>,
}

impl Resume {
    /// Opens the snapshot file at `path` of the job `key`. The second value is a note for the user.
    ///
    /// A snapshot is due once per `every`, less often where saving takes long, and after every step
    /// if `every` is 0.
    ///
    /// # Errors
    /// If the file cannot be read, the directory is not writable, or another process writes there.
    pub fn open(path: &Path, key: Key, every: Duration) -> Result<(Resume, Option<String>)> {
        // This also removes the partial file of a killed process.
        drop(Output::create(path, 0, &[])?);
        let shown = path.display();
        let (earlier, ours, note) = match Snapshot::open(path, &key)? {
            Lookup::Nothing => (None, false, None),
            Lookup::Other => (
                None,
                false,
                Some(format!(
                    "{shown} is of another job or another model and is not used"
                )),
            ),
            Lookup::Damaged(what) => (
                None,
                true,
                Some(format!("{shown} is damaged and is not used: {what}")),
            ),
            Lookup::Ours(snapshot) => (Some(snapshot), true, None),
        };
        let clock = Clock {
            last: Instant::now(),
            took: Duration::ZERO,
            ours,
            failed: None,
        };
        let resume = Resume {
            path: path.to_owned(),
            key,
            every,
            earlier: Mutex::new(earlier),
            clock: Mutex::new(clock),
        };
        Ok((resume, note))
    }

    /// The snapshot of an earlier run; only the first call returns it.
    pub fn take(&self) -> Option<Snapshot> {
        self.earlier
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// True if a snapshot is due.
    pub fn due(&self) -> bool {
        let clock = self.clock();
        self.every.is_zero() || clock.last.elapsed() >= self.every.max(clock.took * SHARE)
    }

    /// Saves a snapshot after `done` steps, with the partial results `extra` and the activations of
    /// `shape` = [slots, length]. A full disk does not end the job: see [`Resume::failed`].
    ///
    /// # Errors
    /// Those of `state`.
    pub fn save<E: From<Error>>(
        &self,
        done: usize,
        extra: &[u8],
        shape: [usize; 2],
        state: &dyn Fn(usize) -> std::result::Result<Vec<f32>, E>,
    ) -> std::result::Result<(), E> {
        let begun = Instant::now();
        // Disk errors and errors of the activations are kept apart.
        let broken = Mutex::new(None);
        let state = |slot| {
            state(slot).map_err(|e| {
                *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                Error::Bad {
                    path: self.path.clone(),
                    what: "no activations".into(),
                }
            })
        };
        let progress = Progress { done, extra, shape };
        let written = snapshot::write::<Error>(&self.path, &self.key, progress, &state);
        if let Some(error) = broken.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut clock = self.clock();
        (clock.last, clock.took) = (Instant::now(), begun.elapsed());
        match written {
            Ok(()) => clock.ours = true,
            Err(error) => {
                let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
                clock.failed = Some(format!("{error}{}", source.unwrap_or_default()));
            }
        }
        Ok(())
    }

    /// The error of the last snapshot, if it could not be saved.
    pub fn failed(&self) -> Option<String> {
        self.clock().failed.clone()
    }

    /// The file, if the next run will resume from it.
    pub fn snapshot(&self) -> Option<&Path> {
        (self.clock().ours && self.path.exists()).then_some(&self.path)
    }

    /// Removes the snapshot, unless it belongs to another job.
    pub fn remove(&self) {
        if self.clock().ours {
            // The snapshot is useless from here on: a failure to remove it is harmless.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn clock(&self) -> std::sync::MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, key: Key, every: u64) -> (Resume, Option<String>) {
        Resume::open(path, key, Duration::from_secs(every)).unwrap()
    }

    #[test]
    fn snapshots_belong_to_one_job() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.resume");
        let key = |value: &[u8]| KeyBuilder::new("test").with("value", value).key();
        let (resume, note) = open(&path, key(b"a"), 0);
        assert!(note.is_none() && resume.take().is_none() && resume.due());
        resume
            .save::<Error>(2, b"x", [1, 1], &|_| Ok(vec![1.0]))
            .unwrap();
        assert_eq!(resume.snapshot(), Some(&*path));

        let (other, note) = open(&path, key(b"b"), 0);
        assert!(note.unwrap().contains("another job") && other.take().is_none());
        other.remove();
        assert!(path.exists(), "the snapshot of another job stays");

        let (again, note) = open(&path, key(b"a"), 1000);
        assert!(note.is_none() && !again.due());
        assert_eq!(again.take().unwrap().done(), 2);
        again.remove();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        std::fs::write(&path, b"QNTSNAP1").unwrap();
        let (damaged, note) = open(&path, key(b"a"), 0);
        assert!(note.unwrap().contains("damaged"));
        damaged.remove();
        assert!(!path.exists());
    }

    #[test]
    fn full_disks_are_reported_without_ending_the_job() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.resume");
        let (resume, _) = open(&path, [0; 32], 0);
        resume
            .save::<Error>(0, b"", [1 << 50, 1], &|_| Ok(vec![1.0]))
            .unwrap();
        assert!(
            resume.failed().unwrap().contains("free there"),
            "{:?}",
            resume.failed()
        );
        assert_eq!(
            (
                resume.snapshot(),
                std::fs::read_dir(dir.path()).unwrap().count()
            ),
            (None, 0)
        );
        let bad = || Error::Bad {
            path: path.clone(),
            what: "gone".into(),
        };
        assert!(
            resume
                .save(0, b"", [1, 1], &|_| Err(bad()))
                .unwrap_err()
                .to_string()
                .contains("gone")
        );
    }
}
