//! Output files: written beside the target, flushed to disk, then renamed. The target is unchanged
//! until the rename.

use super::map::Map;
use super::{Error, Result};
use fs4::fs_std::FileExt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Buffer size in bytes, large enough to hide the cost of system calls.
const BUFFER: usize = 1 << 20;
/// Bytes between two flushes to disk.
const FLUSH_EVERY: u64 = 64 << 20;

/// A file that gets its name only when [`Output::finish`] succeeds.
///
/// Until then it is `NAME.partial` in the same directory, locked, and removed when the value is
/// dropped. A killed process leaves it behind; the next run takes it over.
pub struct Output {
    target: PathBuf,
    /// `None` for a device or a pipe, which is written directly.
    partial: Option<PathBuf>,
    writer: BufWriter<Arc<File>>,
    /// Background flush of written bytes, to shorten the wait at the end.
    flushing: Option<JoinHandle<std::io::Result<()>>>,
    /// Bytes written since the start of that flush.
    unflushed: u64,
}

impl Output {
    /// Opens an output of `bytes` bytes (0 if unknown).
    ///
    /// # Errors
    /// A target among the `inputs`, a directory, an output of another process, too little space.
    pub fn create(target: &Path, bytes: u64, inputs: &[&Path]) -> Result<Output> {
        check_not_input(target, inputs)?;
        let fail = |path: &Path, action| {
            let path = path.to_owned();
            move |source| Error::Io {
                path,
                action,
                source,
            }
        };
        // A symbolic link is kept: its target is replaced.
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        if target.is_dir() {
            let source = std::io::Error::other("it is a directory; name a file in it");
            return Err(Error::Io {
                path: target,
                action: "write",
                source,
            });
        }
        if target.exists() && !target.is_file() {
            let file = OpenOptions::new()
                .write(true)
                .open(&target)
                .map_err(fail(&target, "write"))?;
            return Ok(Output::new(target, None, file));
        }
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = target.with_file_name(name);
        check_not_input(&partial, inputs)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(|source| fail(&partial, "create")(with_advice(source, &partial)))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(taken(
                    partial,
                    "create",
                    "another process is writing it; wait for it, or choose another output",
                ));
            }
            // Some network file systems lack locks; the rename is still atomic there.
            Err(TryLockError::Error(_)) => {}
        }
        // Before the lock was taken, another process may have finished and renamed the file, and a
        // link may lead to an unrelated file. Only a file of exactly this name is truncated.
        if !is_at(&file, &partial) {
            return Err(taken(
                partial,
                "create",
                "it is a link, or another process has just moved it; choose another output",
            ));
        }
        let output = Output::new(target, Some(partial), file);
        output
            .writer
            .get_ref()
            .set_len(0)
            .map_err(fail(&output.target, "write"))?;
        output.reserve(bytes)?;
        Ok(output)
    }

    fn new(target: PathBuf, partial: Option<PathBuf>, file: File) -> Output {
        let writer = BufWriter::with_capacity(BUFFER, Arc::new(file));
        Output {
            target,
            partial,
            writer,
            flushing: None,
            unflushed: 0,
        }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let io = |source| Error::Io {
            path: self.target.clone(),
            action: "write",
            source,
        };
        self.writer.write_all(bytes).map_err(io)?;
        self.written(bytes.len() as u64)
    }

    /// Appends bytes of an input unchanged.
    ///
    /// # Errors
    /// I/O errors, and an input that has changed.
    pub fn copy(&mut self, input: &Map, range: Range<usize>) -> Result<()> {
        if range.len() < BUFFER {
            return self.write(&input.bytes()[range]);
        }
        let io = |source| Error::Io {
            path: self.target.clone(),
            action: "write",
            source,
        };
        self.writer.flush().map_err(io)?;
        input
            .copy_to(range.clone(), self.writer.get_ref())
            .map_err(io)?;
        self.written(range.len() as u64)
    }

    /// Counts written bytes, and starts a flush after enough of them.
    fn written(&mut self, bytes: u64) -> Result<()> {
        let io = |source| Error::Io {
            path: self.target.clone(),
            action: "write",
            source,
        };
        self.unflushed += bytes;
        let idle = self.flushing.as_ref().is_none_or(JoinHandle::is_finished);
        if self.partial.is_some() && self.unflushed >= FLUSH_EVERY && idle {
            flushed(self.flushing.take()).map_err(io)?;
            let file = Arc::clone(self.writer.get_ref());
            // Without a thread, the last flush does all the work.
            self.flushing = std::thread::Builder::new()
                .spawn(move || file.sync_data())
                .ok();
            self.unflushed = 0;
        }
        Ok(())
    }

    /// Flushes everything to disk, still under the temporary name. A job with several outputs
    /// settles all of them before it finishes the first, since a full disk shows up here. The
    /// buffer is freed, as many outputs can be waiting.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let io = |source| Error::Io {
            path: self.target.clone(),
            action: "write",
            source,
        };
        self.writer.flush().map_err(io)?;
        self.writer = BufWriter::with_capacity(0, Arc::clone(self.writer.get_ref()));
        flushed(self.flushing.take()).map_err(io)?;
        match self.partial {
            Some(_) => self.writer.get_ref().sync_all().map_err(io),
            None => Ok(()),
        }
    }

    /// Flushes everything to disk and renames the file to its target.
    ///
    /// # Errors
    /// I/O errors.
    pub fn finish(mut self) -> Result<()> {
        self.settle()?;
        let Some(partial) = self.partial.clone() else {
            return Ok(());
        };
        std::fs::rename(&partial, &self.target).map_err(|source| Error::Io {
            path: self.target.clone(),
            action: "rename the finished file to",
            source,
        })?;
        self.partial = None;
        // The rename survives a power cut once the directory is flushed, which not every system
        // supports.
        if let Some(dir) = self.target.parent().and_then(|dir| File::open(dir).ok()) {
            let _ = dir.sync_all();
        }
        Ok(())
    }

    /// Reserves space for the whole file, before another output or program takes it.
    fn reserve(&self, needed: u64) -> Result<()> {
        let dir = self
            .target
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let free = fs4::available_space(dir).ok();
        if let Some(free) = free.filter(|&free| free < needed) {
            return Err(Error::NoSpace {
                path: self.target.clone(),
                needed,
                free,
            });
        }
        // Where space cannot be reserved or determined, a full disk shows up in a write.
        match self.writer.get_ref().allocate(needed) {
            Err(e) if needed > 0 && e.kind() == ErrorKind::StorageFull => Err(Error::NoSpace {
                path: self.target.clone(),
                needed,
                free: free.unwrap_or(0),
            }),
            _ => Ok(()),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = std::fs::remove_file(partial);
        }
    }
}

/// Waits for a flush. Its error must not be lost: the system reports a failed write only once.
fn flushed(flushing: Option<JoinHandle<std::io::Result<()>>>) -> std::io::Result<()> {
    flushing.map_or(Ok(()), |thread| {
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Error for an output in use by another process.
fn taken(path: PathBuf, action: &'static str, why: &str) -> Error {
    Error::Io {
        path,
        action,
        source: std::io::Error::other(why),
    }
}

/// True if the process or the system has too many open files; the standard library has no name for
/// this error.
fn too_many_open(error: &std::io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    cfg!(unix) && matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

/// Adds a remedy to an error of the system.
fn with_advice(error: std::io::Error, path: &Path) -> std::io::Error {
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let advice = match error.kind() {
        std::io::ErrorKind::NotFound => format!("create the directory {} first", dir.display()),
        std::io::ErrorKind::PermissionDenied => {
            format!(
                "choose a directory that you may write to, not {}",
                dir.display()
            )
        }
        _ if too_many_open(&error) => {
            "write fewer files at once, or allow more open ones (ulimit -n)".into()
        }
        _ => return error,
    };
    std::io::Error::new(error.kind(), format!("{error}; {advice}"))
}

/// Checks that an output does not exist yet.
///
/// # Errors
/// [`Error::Exists`].
pub fn check_new(target: &Path) -> Result<()> {
    match target.symlink_metadata() {
        Ok(meta) if meta.is_file() || meta.is_dir() || meta.is_symlink() => Err(Error::Exists {
            path: target.to_owned(),
        }),
        // Devices and pipes are written to, not replaced.
        _ => Ok(()),
    }
}

/// Replacement of some bytes of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// Offset from the start of the file, in bytes.
    pub offset: u64,
    /// Current bytes.
    pub before: Vec<u8>,
    /// New bytes, of the same length.
    pub after: Vec<u8>,
}

/// Changes bytes of an existing file in place: the only write without a new file. Each patch is one
/// write; the caller ensures that the file is valid between any two.
///
/// # Errors
/// A patch whose current bytes differ; then nothing is written. The file must not be mapped.
pub fn patch(path: &Path, patches: &[Patch]) -> Result<()> {
    let io = |action| {
        move |source| Error::Io {
            path: path.to_owned(),
            action,
            source,
        }
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(io("write"))?;
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        return Err(taken(
            path.to_owned(),
            "write",
            "another process is writing it; wait for it",
        ));
    }
    for patch in patches {
        let mut found = vec![0; patch.before.len()];
        file.seek(SeekFrom::Start(patch.offset))
            .map_err(io("read"))?;
        file.read_exact(&mut found).map_err(io("read"))?;
        if found != patch.before || patch.before.len() != patch.after.len() {
            return Err(taken(
                path.to_owned(),
                "change",
                "it has changed since it was read; run the command again",
            ));
        }
    }
    for patch in patches {
        file.seek(SeekFrom::Start(patch.offset))
            .map_err(io("write"))?;
        file.write_all(&patch.after).map_err(io("write"))?;
    }
    file.sync_all().map_err(io("write"))
}

/// Fails if the target is one of the inputs, under any path.
fn check_not_input(target: &Path, inputs: &[&Path]) -> Result<()> {
    let Ok(real) = target.canonicalize() else {
        return Ok(());
    };
    let same = |input: &&Path| same_file(&real, input);
    match inputs.iter().any(same) {
        true => Err(Error::OutputIsInput {
            path: target.to_owned(),
        }),
        false => Ok(()),
    }
}

#[cfg(unix)]
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    id(a).is_some() && id(a) == id(b)
}

/// True if an open file is the one at this path, and the path is not a link.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |meta: std::io::Result<std::fs::Metadata>| meta.ok().map(|m| (m.dev(), m.ino()));
    id(file.metadata()) == id(path.symlink_metadata())
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_file())
}

#[cfg(not(unix))]
fn same_file(a: &Path, b: &Path) -> bool {
    a.canonicalize()
        .ok()
        .is_some_and(|a| b.canonicalize().ok() == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_outputs_leave_the_target_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        std::fs::write(&target, b"old").unwrap();
        let mut output = Output::create(&target, 3, &[]).unwrap();
        output.write(b"new").unwrap();
        drop(output);
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "the partial file is removed"
        );

        let mut output = Output::create(&target, 3, &[]).unwrap();
        output.write(b"new").unwrap();
        output.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn copies_of_inputs_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let (input, target) = (dir.path().join("in"), dir.path().join("out"));
        let bytes: Vec<u8> = (0..3 * BUFFER).map(|i| (i % 251) as u8).collect();
        std::fs::write(&input, &bytes).unwrap();
        let map = Map::open(&input).unwrap();
        let mut output = Output::create(&target, 0, &[&input]).unwrap();
        output.write(b"head").unwrap();
        let (long, short) = (BUFFER - 3..3 * BUFFER - 1, 5..9);
        output.copy(&map, long.clone()).unwrap();
        output.copy(&map, short.clone()).unwrap();
        output.write(b"tail").unwrap();
        output.copy(&map, long.clone()).unwrap();
        output.finish().unwrap();
        let expected = [
            b"head",
            &bytes[long.clone()],
            &bytes[short],
            b"tail",
            &bytes[long],
        ]
        .concat();
        assert!(std::fs::read(&target).unwrap() == expected);

        // Missing bytes are an error, not a shorter output.
        let mut output = Output::create(&target, 0, &[&input]).unwrap();
        File::options()
            .write(true)
            .open(&input)
            .unwrap()
            .set_len(BUFFER as u64)
            .unwrap();
        assert!(output.copy(&map, BUFFER / 2..2 * BUFFER).is_err());
    }

    #[test]
    fn inputs_are_refused_as_outputs() {
        let dir = tempfile::tempdir().unwrap();
        let (input, link) = (dir.path().join("in.gguf"), dir.path().join("link.gguf"));
        std::fs::write(&input, b"in").unwrap();
        std::fs::hard_link(&input, &link).unwrap();
        assert!(matches!(
            Output::create(&link, 0, &[&input]),
            Err(Error::OutputIsInput { .. })
        ));
        let unfinished = dir.path().join("out.gguf.partial");
        std::fs::write(&unfinished, b"in").unwrap();
        let refused = Output::create(&dir.path().join("out.gguf"), 0, &[&unfinished]);
        assert!(matches!(refused, Err(Error::OutputIsInput { .. })));
        assert_eq!(std::fs::read(&unfinished).unwrap(), b"in");
    }

    #[cfg(unix)]
    #[test]
    fn links_in_place_of_partial_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (target, victim) = (dir.path().join("a.gguf"), dir.path().join("victim"));
        std::fs::write(&victim, b"precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("a.gguf.partial")).unwrap();
        assert!(Output::create(&target, 0, &[]).is_err());
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn patches_with_other_current_bytes_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        std::fs::write(&target, b"abcdef").unwrap();
        let new = |offset, before: &[u8], after: &[u8]| Patch {
            offset,
            before: before.into(),
            after: after.into(),
        };
        assert!(patch(&target, &[new(0, b"a", b"A"), new(3, b"x", b"D")]).is_err());
        assert!(patch(&target, &[new(5, b"fg", b"FG")]).is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"abcdef");
        patch(&target, &[new(0, b"a", b"A"), new(3, b"de", b"DE")]).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"AbcDEf");
    }

    #[test]
    fn existing_targets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        assert!(check_new(&target).is_ok());
        std::fs::write(&target, b"").unwrap();
        assert!(matches!(check_new(&target), Err(Error::Exists { .. })));
        assert!(matches!(check_new(dir.path()), Err(Error::Exists { .. })));
    }

    #[test]
    fn outputs_beyond_the_free_space_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        assert!(matches!(
            Output::create(&target, u64::MAX, &[]),
            Err(Error::NoSpace { .. })
        ));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn concurrent_writers_of_one_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        let first = Output::create(&target, 0, &[]).unwrap();
        let refused = Output::create(&target, 0, &[]).err();
        let Some(Error::Io { source, .. }) = refused else {
            panic!("the second writer got in")
        };
        assert!(source.to_string().contains("another process"), "{source}");
        first.finish().unwrap();
    }
}
