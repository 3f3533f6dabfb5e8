//! The output directory: written under a temporary name, then renamed.

use super::{Error, Result};
use crate::format::map::Map;
use crate::format::output::Output;
use crate::format::{self, hex};
use crate::progress::Progress;
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Name of the file with the checksums of all others.
pub const SUMS: &str = "SHA256SUMS";
/// Marker file of an unfinished directory, which distinguishes it from unrelated ones.
const MARK: &str = ".quantier-unfinished";
/// Bytes read or copied at once.
const PIECE: usize = 4 << 20;

/// A directory under construction, removed unless it is finished.
pub(super) struct Place {
    staging: PathBuf,
    target: PathBuf,
    sums: Vec<(String, String)>,
    /// Held while this run writes.
    _lock: Option<File>,
}

fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| {
        Error::Format(format::Error::Io {
            path,
            action,
            source,
        })
    }
}

/// Fails if the target exists and must not be replaced.
pub(super) fn check(target: &Path, force: bool) -> Result<()> {
    if target.exists() && !target.is_dir() {
        return Err(Error::NoDirectory(target.to_owned()));
    }
    let mut entries = match fs::read_dir(target) {
        Ok(entries) => entries,
        Err(_) => return Ok(()),
    };
    match entries.next().is_some() && !force {
        true => Err(Error::Exists(target.to_owned())),
        false => Ok(()),
    }
}

impl Place {
    /// Starts beside the target. Leftovers of a killed run are reused.
    pub(super) fn new(target: &Path, force: bool) -> Result<Place> {
        check(target, force)?;
        // A symbolic link is kept.
        let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        let Some(name) = target.file_name() else {
            return Err(Error::NoDirectory(target));
        };
        let mut staging = name.to_owned();
        staging.push(".partial");
        let staging = target.with_file_name(staging);
        fs::create_dir_all(&staging).map_err(io(&staging, "create"))?;
        let lock = File::open(&staging).ok();
        if let Some(Err(TryLockError::WouldBlock)) = lock.as_ref().map(File::try_lock) {
            return Err(Error::Taken(staging));
        }
        let entries = fs::read_dir(&staging).map_err(io(&staging, "read"))?;
        let left: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        let mark = staging.join(MARK);
        if !left.is_empty() && !mark.exists() {
            return Err(Error::Foreign(staging));
        }
        for path in left.iter().filter(|path| **path != mark) {
            fs::remove_file(path).map_err(io(path, "remove the unfinished"))?;
        }
        fs::write(&mark, "").map_err(io(&mark, "create"))?;
        Ok(Place {
            staging,
            target,
            sums: Vec::new(),
            _lock: lock,
        })
    }

    /// Writes a text file.
    pub(super) fn text(&mut self, name: &str, text: &str) -> Result<()> {
        let mut output = Output::create(&self.staging.join(name), text.len() as u64, &[])?;
        output.write(text.as_bytes())?;
        output.finish()?;
        self.sums
            .push((name.to_owned(), hex(&Sha256::digest(text.as_bytes()))));
        Ok(())
    }

    /// Hard-links a file under a name here, or copies it if linking is impossible or unwanted.
    /// Returns its SHA-256, and true for a link.
    pub(super) fn file(
        &mut self,
        from: &Path,
        name: &str,
        copy: bool,
        progress: &dyn Progress,
    ) -> Result<(String, bool)> {
        let to = self.staging.join(name);
        // Resolve links first.
        let real = from.canonicalize().map_err(io(from, "open"))?;
        let linked = !copy && fs::hard_link(&real, &to).is_ok();
        progress.at(name);
        let sum = match linked {
            true => sum_of(&to, progress)?,
            false => copied(&real, &to, progress)?,
        };
        self.sums.push((name.to_owned(), sum.clone()));
        Ok((sum, linked))
    }

    /// Writes the checksums and renames the directory. For an existing target, files are moved one
    /// by one: files of the last publication that are missing now are removed, other files are
    /// kept.
    pub(super) fn finish(mut self) -> Result<()> {
        self.sums.sort();
        let sums: String = self
            .sums
            .iter()
            .map(|(name, sum)| sum_line(name, sum))
            .collect();
        self.text(SUMS, &sums)?;
        let mark = self.staging.join(MARK);
        fs::remove_file(&mark).map_err(io(&mark, "remove"))?;
        if !self.target.exists() {
            return fs::rename(&self.staging, &self.target)
                .map_err(io(&self.target, "rename the finished directory to"));
        }
        let old = fs::read_to_string(self.target.join(SUMS)).unwrap_or_default();
        for (name, _) in &self.sums {
            let to = self.target.join(name);
            fs::rename(self.staging.join(name), &to)
                .map_err(io(&to, "move the finished file to"))?;
        }
        let stale = old
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(_, name)| name);
        for name in stale.filter(|name| !self.sums.iter().any(|(new, _)| new == name)) {
            let path = self.target.join(name);
            if Path::new(name).components().count() == 1 && path.is_file() {
                fs::remove_file(&path).map_err(io(&path, "remove"))?;
            }
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.staging);
    }
}

/// A line in the format of `sha256sum -c`.
fn sum_line(name: &str, sum: &str) -> String {
    match name.contains(['\\', '\n', '\r']) {
        true => {
            let escaped = name
                .replace('\\', "\\\\")
                .replace('\n', "\\n")
                .replace('\r', "\\r");
            format!("\\{sum}  {escaped}\n")
        }
        false => format!("{sum}  {name}\n"),
    }
}

fn sum_of(path: &Path, progress: &dyn Progress) -> Result<String> {
    let mut file = File::open(path).map_err(io(path, "open"))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut buffer).map_err(io(path, "read"))? {
            0 => return Ok(hex(&hash.finalize())),
            n => {
                hash.update(&buffer[..n]);
                progress.advance(n as u64);
            }
        }
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
    }
}

fn copied(from: &Path, to: &Path, progress: &dyn Progress) -> Result<String> {
    let map = Map::open(from)?;
    let all = map.bytes().len();
    let mut output = Output::create(to, all as u64, &[from])?;
    let mut hash = Sha256::new();
    for start in (0..all).step_by(PIECE) {
        let piece = start..all.min(start + PIECE);
        hash.update(&map.bytes()[piece.clone()]);
        output.copy(&map, piece.clone())?;
        progress.advance(piece.len() as u64);
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
    }
    output.finish()?;
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn unfinished_output_is_removed_and_unrelated_files_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (target, big) = (dir.path().join("out"), dir.path().join("big"));
        fs::write(&big, vec![7; 3 * PIECE + 1]).unwrap();
        let mut place = Place::new(&target, false).unwrap();
        place.text("a", "text").unwrap();
        assert!(matches!(Place::new(&target, false), Err(Error::Taken(_))));
        drop(place);
        assert_eq!(names(dir.path()), ["big"]);

        // Leftovers of a killed run are reused, unrelated directories are not.
        let unfinished = dir.path().join("out.partial");
        fs::create_dir(&unfinished).unwrap();
        fs::write(unfinished.join("mine"), "").unwrap();
        assert!(matches!(Place::new(&target, false), Err(Error::Foreign(_))));
        assert_eq!(names(&unfinished), ["mine"]);
        fs::write(unfinished.join(MARK), "").unwrap();

        let mut place = Place::new(&target, false).unwrap();
        place.text("a", "text").unwrap();
        let linked = place.file(&big, "big", false, &Silent).unwrap();
        let copied = place.file(&big, "copy", true, &Silent).unwrap();
        assert!(linked.1 && !copied.1 && linked.0 == copied.0);
        place.finish().unwrap();
        assert_eq!(names(&target), [SUMS, "a", "big", "copy"]);
        assert!(fs::read(target.join("copy")).unwrap() == fs::read(&big).unwrap());

        assert!(matches!(Place::new(&target, false), Err(Error::Exists(_))));
        fs::write(target.join("foreign"), "mine").unwrap();
        let mut place = Place::new(&target, true).unwrap();
        place.text("b", "text").unwrap();
        place.file(&big, "big", false, &Silent).unwrap();
        place.finish().unwrap();
        assert_eq!(names(&target), [SUMS, "b", "big", "foreign"]);
        assert_eq!(names(dir.path()), ["big", "out"]);
    }

    #[test]
    fn checksums_have_the_format_of_sha256sum() {
        let empty = hex(&Sha256::digest(b""));
        assert_eq!(
            empty,
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(sum_line("a b", "0"), "0  a b\n");
        assert_eq!(sum_line("a\\b\n", "0"), "\\0  a\\\\b\\n\n");
    }
}
