//! Output files: written beside the target, flushed to the disk, renamed. Whatever happens before the rename, the
//! target is what it was.

use super::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Large enough that a system call costs nothing beside its bytes.
const BUFFER: usize = 1 << 20;

/// A file that comes into being under its name only when [`Output::finish`] succeeds.
///
/// Until then it is `NAME.partial` in the same directory, locked, and removed when the value is dropped. A killed
/// process leaves it behind; the next run takes it over.
pub struct Output {
    target: PathBuf,
    /// `None` where the target is no regular file (a device, a pipe): that is written directly.
    partial: Option<PathBuf>,
    writer: BufWriter<File>,
}

impl Output {
    /// Opens an output of `bytes` bytes (0 if unknown), which must not be one of the `inputs`.
    pub fn create(target: &Path, bytes: u64, inputs: &[&Path]) -> Result<Output> {
        check_not_input(target, inputs)?;
        let fail = |path: &Path, action| {
            let path = path.to_owned();
            move |source| Error::Io { path, action, source }
        };
        // A link stays a link: what it points to is replaced.
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        if target.is_dir() {
            let source = std::io::Error::other("it is a directory; name a file in it");
            return Err(Error::Io { path: target, action: "write", source });
        }
        if target.exists() && !target.is_file() {
            let file = OpenOptions::new().write(true).open(&target).map_err(fail(&target, "write"))?;
            return Ok(Output { target, partial: None, writer: BufWriter::with_capacity(BUFFER, file) });
        }
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = target.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(fail(&partial, "create"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let source =
                    std::io::Error::other("another process is writing it; wait for that one, or choose another output");
                return Err(Error::Io { path: partial, action: "create", source });
            }
            // Some network file systems have no locks; the rename is still atomic there.
            Err(TryLockError::Error(_)) => {}
        }
        let output = Output { target, partial: Some(partial), writer: BufWriter::with_capacity(BUFFER, file) };
        output.writer.get_ref().set_len(0).map_err(fail(&output.target, "write"))?;
        output.check_space(bytes)?;
        Ok(output)
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|source| Error::Io { path: self.target.clone(), action: "write", source })
    }

    /// Flushes everything to the disk and gives the file its name.
    pub fn finish(mut self) -> Result<()> {
        let io = |path: &Path, action| {
            let path = path.to_owned();
            move |source| Error::Io { path, action, source }
        };
        self.writer.flush().map_err(io(&self.target, "write"))?;
        let Some(partial) = self.partial.clone() else { return Ok(()) };
        self.writer.get_ref().sync_all().map_err(io(&self.target, "write"))?;
        std::fs::rename(&partial, &self.target).map_err(io(&self.target, "rename the finished file to"))?;
        self.partial = None;
        // The rename itself survives a power cut once the directory is flushed; not every system can do that.
        if let Some(dir) = self.target.parent().and_then(|dir| File::open(dir).ok()) {
            let _ = dir.sync_all();
        }
        Ok(())
    }

    fn check_space(&self, needed: u64) -> Result<()> {
        let dir = self.target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match fs4::available_space(dir) {
            Ok(free) if free < needed => Err(Error::NoSpace { path: self.target.clone(), needed, free }),
            // A file system that cannot tell is found out by writing.
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

/// Fails if the target is one of the inputs, under whatever name.
pub fn check_not_input(target: &Path, inputs: &[&Path]) -> Result<()> {
    let Ok(real) = target.canonicalize() else { return Ok(()) };
    let same = |input: &&Path| same_file(&real, input);
    match inputs.iter().any(same) {
        true => Err(Error::OutputIsInput { path: target.to_owned() }),
        false => Ok(()),
    }
}

#[cfg(unix)]
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path: &Path| path.metadata().ok().map(|m| (m.dev(), m.ino()));
    id(a).is_some() && id(a) == id(b)
}

#[cfg(not(unix))]
fn same_file(a: &Path, b: &Path) -> bool {
    a.canonicalize().ok().is_some_and(|a| b.canonicalize().ok() == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_is_not_finished_leaves_the_target_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        std::fs::write(&target, b"old").unwrap();
        let mut output = Output::create(&target, 3, &[]).unwrap();
        output.write(b"new").unwrap();
        drop(output);
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the partial file is removed");

        let mut output = Output::create(&target, 3, &[]).unwrap();
        output.write(b"new").unwrap();
        output.finish().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_input_is_never_an_output() {
        let dir = tempfile::tempdir().unwrap();
        let (input, link) = (dir.path().join("in.gguf"), dir.path().join("link.gguf"));
        std::fs::write(&input, b"in").unwrap();
        std::fs::hard_link(&input, &link).unwrap();
        assert!(matches!(Output::create(&link, 0, &[&input]), Err(Error::OutputIsInput { .. })));
    }

    #[test]
    fn too_large_an_output_is_refused_before_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        assert!(matches!(Output::create(&target, u64::MAX, &[]), Err(Error::NoSpace { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn two_writers_of_one_file_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.gguf");
        let first = Output::create(&target, 0, &[]).unwrap();
        let error = Output::create(&target, 0, &[]).err().unwrap();
        let reason = std::error::Error::source(&error).unwrap().to_string();
        assert!(reason.contains("another process"), "{reason}");
        first.finish().unwrap();
    }
}
