//! Long jobs that survive being killed: every so often they keep what they have come to beside
//! their output, and the same job, started again, goes on from there.
//!
//! ```text
//! Job              all that the result depends on -> a key
//! Resume::open     what a former run of the same job has left
//! Resume::due      is it time to keep something?       Resume::save     keeps it
//! Resume::remove   the job has ended
//! ```

use crate::format::checkpoint::{self, Checkpoint, Found, Key};
use crate::format::gguf::Layout;
use crate::format::output::Output;
use crate::format::{Error, Result};
use crate::input::Input;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A job may spend one part in so many of its time on keeping what it has come to.
const SHARE: u32 = 10;

/// All that the result of a job depends on, while it is named piece by piece.
pub struct Job(Sha256);

impl Job {
    /// A kind of job of this version of the program.
    pub fn new(kind: &str) -> Job {
        Job(Sha256::new()).with(kind, env!("CARGO_PKG_VERSION").as_bytes())
    }

    /// A setting.
    pub fn with(mut self, name: &str, value: &[u8]) -> Job {
        for part in [name.as_bytes(), value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// A model: its files, their sizes and times, its metadata and the description of its tensors.
    /// That a weight is another is seen by the file's time.
    ///
    /// # Errors
    /// If the files cannot be looked at.
    pub fn with_model(mut self, input: &Input<'_>) -> Result<Job> {
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

    /// What it comes to.
    pub fn key(self) -> Key {
        self.0.finalize().into()
    }
}

/// Where a job keeps what it has come to.
pub struct Resume {
    path: PathBuf,
    key: Key,
    every: Duration,
    found: Mutex<Option<Checkpoint>>,
    clock: Mutex<Clock>,
}

struct Clock {
    /// When something was kept last, or the job began.
    last: Instant,
    /// How long that took.
    took: Duration,
    /// Whether the file is this job's, or of no use to anybody.
    ours: bool,
    /// Why nothing can be kept.
    failed: Option<String>,
}

impl Resume {
    /// Looks for what a former run of the job `key` has left in `path`. The second value is what
    /// the user should know.
    ///
    /// Something is kept at most once `every` so long, and more seldom where it takes long; after
    /// every step if that is 0.
    ///
    /// # Errors
    /// If the file cannot be read, the directory cannot be written to, or another process is
    /// keeping something there.
    pub fn open(path: &Path, key: Key, every: Duration) -> Result<(Resume, Option<String>)> {
        // What a killed process has left half-written is removed by this too.
        drop(Output::create(path, 0, &[])?);
        let shown = path.display();
        let (found, ours, note) = match Checkpoint::open(path, &key)? {
            Found::Nothing => (None, false, None),
            Found::Other => (
                None,
                false,
                Some(format!(
                    "{shown} is of another job or another model and is not used"
                )),
            ),
            Found::Damaged(what) => (
                None,
                true,
                Some(format!("{shown} is damaged and is not used: {what}")),
            ),
            Found::Ours(checkpoint) => (Some(checkpoint), true, None),
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
            found: Mutex::new(found),
            clock: Mutex::new(clock),
        };
        Ok((resume, note))
    }

    /// What a former run has left. It is handed out once.
    pub fn take(&self) -> Option<Checkpoint> {
        self.found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Whether it is time to keep something.
    pub fn due(&self) -> bool {
        let clock = self.clock();
        self.every.is_zero() || clock.last.elapsed() >= self.every.max(clock.took * SHARE)
    }

    /// Keeps that `done` steps are done, with `extra` and the activations of `shape` = [slots,
    /// length]. A disk that is full does not end the job: see [`Resume::failed`].
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
        // Errors of the disk and those of the activations must not be mixed up.
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
        let written = checkpoint::write::<Error>(&self.path, &self.key, done, extra, shape, &state);
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

    /// Why the last attempt to keep something failed, if one did.
    pub fn failed(&self) -> Option<String> {
        self.clock().failed.clone()
    }

    /// Where it is, if a run that is started again will use it.
    pub fn kept(&self) -> Option<&Path> {
        (self.clock().ours && self.path.exists()).then_some(&self.path)
    }

    /// Removes what was kept, unless it is of another job.
    pub fn remove(&self) {
        if self.clock().ours {
            // It is of no use any more; whoever cannot remove it can leave it.
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
    fn a_job_finds_its_own_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.resume");
        let key = |value: &[u8]| Job::new("test").with("value", value).key();
        let (resume, note) = open(&path, key(b"a"), 0);
        assert!(note.is_none() && resume.take().is_none() && resume.due());
        resume
            .save::<Error>(2, b"x", [1, 1], &|_| Ok(vec![1.0]))
            .unwrap();
        assert_eq!(resume.kept(), Some(&*path));

        let (other, note) = open(&path, key(b"b"), 0);
        assert!(note.unwrap().contains("another job") && other.take().is_none());
        other.remove();
        assert!(path.exists(), "what is of another job stays");

        let (again, note) = open(&path, key(b"a"), 1000);
        assert!(note.is_none() && !again.due());
        assert_eq!(again.take().unwrap().done(), 2);
        again.remove();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        std::fs::write(&path, b"QNTCKPT1").unwrap();
        let (damaged, note) = open(&path, key(b"a"), 0);
        assert!(note.unwrap().contains("damaged"));
        damaged.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_full_disk_is_told_and_ends_nothing() {
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
                resume.kept(),
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
