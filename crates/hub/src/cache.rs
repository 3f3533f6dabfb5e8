//! The directories of one model in the Hub's cache.

use super::address::is_commit;
use super::{Error, Result};
use quantier_gguf as format;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Cache directories of one model.
pub(super) struct Cache {
    root: PathBuf,
    locks: PathBuf,
}

impl Cache {
    /// Directories of `ORG/NAME`, not created yet.
    pub(crate) fn new(cache: &Path, repository: &str) -> Cache {
        let name = format!("models--{}", repository.replace('/', "--"));
        Cache {
            root: cache.join(&name),
            locks: cache.join(".locks").join(name),
        }
    }

    /// Directory of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Path of the blob of an ETag.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Path of the blob's partial download.
    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Path of the blob's lock file.
    pub(crate) fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    /// Creates the directories.
    ///
    /// # Errors
    /// A directory that cannot be created.
    pub(crate) fn create(&self) -> Result<()> {
        let blobs = self.root.join("blobs");
        [&blobs, &self.locks]
            .into_iter()
            .try_for_each(|dir| created(dir))
    }

    /// True if a file of a commit is complete.
    pub(crate) fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Links a blob under a file name of a commit.
    ///
    /// # Errors
    /// A directory or link that cannot be created.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        let parent = path.parent().unwrap_or(&self.root);
        created(parent)?;
        // Up from the file's directory to the model's: the file's own directories, the commit,
        // snapshots.
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        let blob = self.blob(etag);
        if path
            .canonicalize()
            .is_ok_and(|is| blob.canonicalize().is_ok_and(|blob| is == blob))
        {
            return Ok(());
        }
        // Other processes may link the same file at the same time: the rename is atomic.
        let fail = |source| {
            Error::Format(format::Error::Io {
                path: path.clone(),
                action: "link",
                source,
            })
        };
        let dir = tempfile::Builder::new()
            .prefix(".link")
            .tempdir_in(parent)
            .map_err(fail)?;
        let new = dir.path().join("new");
        linked(&target, &blob, &new).map_err(fail)?;
        std::fs::rename(&new, &path).map_err(fail)
    }

    /// Commit of a revision, as of the last request.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = std::fs::read(self.root.join("refs").join(revision)).ok()?;
        let text = str::from_utf8(text.get(..40)?).ok()?;
        is_commit(text).then(|| text.to_owned())
    }

    /// Stores the commit of a revision.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let parent = path.parent().unwrap_or(&self.root);
        created(parent)?;
        let fail = |source| {
            Error::Format(format::Error::Io {
                path: path.clone(),
                action: "write",
                source,
            })
        };
        let mut file = tempfile::Builder::new().tempfile_in(parent).map_err(fail)?;
        file.write_all(commit.as_bytes()).map_err(fail)?;
        file.persist(&path).map_err(|e| fail(e.error))?;
        Ok(())
    }

    /// Free disk space in bytes.
    pub(crate) fn free(&self) -> Option<u64> {
        fs4::available_space(&self.root).ok()
    }
}

fn created(dir: &Path) -> Result<()> {
    let fail = |source: std::io::Error| {
        let advice = format!("{source}; set HF_HUB_CACHE to a directory that you may write to");
        let source = std::io::Error::new(source.kind(), advice);
        Error::Format(format::Error::Io {
            path: dir.to_owned(),
            action: "create",
            source,
        })
    };
    std::fs::create_dir_all(dir).map_err(fail)
}

#[cfg(unix)]
fn linked(target: &Path, _: &Path, new: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, new)
}

/// On Windows, symbolic links need a privilege: use a hard link or a copy.
#[cfg(not(unix))]
fn linked(_: &Path, blob: &Path, new: &Path) -> std::io::Result<()> {
    std::fs::hard_link(blob, new).or_else(|_| std::fs::copy(blob, new).map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn blobs_are_linked_relatively_under_each_name() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "org/name");
        cache.create().unwrap();
        std::fs::write(cache.blob("abcdef0123"), b"bytes").unwrap();
        for file in ["a.gguf", "d/e/a.gguf", "a.gguf"] {
            cache.link(COMMIT, file, "abcdef0123").unwrap();
            assert!(cache.has(COMMIT, file));
        }
        // The cache is relocatable.
        let moved = dir.path().join("moved");
        std::fs::rename(dir.path().join("models--org--name"), &moved).unwrap();
        let snapshot = moved.join("snapshots").join(COMMIT);
        assert_eq!(
            std::fs::read(snapshot.join("d/e/a.gguf")).unwrap(),
            b"bytes"
        );
        assert_eq!(
            std::fs::read_dir(&snapshot).unwrap().count(),
            2,
            "nothing temporary is left"
        );
    }

    #[test]
    fn commits_of_revisions_are_stored() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "org/name");
        assert_eq!(cache.commit("main"), None);
        assert_eq!(cache.commit(COMMIT).as_deref(), Some(COMMIT));
        for revision in ["main", "refs/pr/1"] {
            cache.set_commit(revision, COMMIT).unwrap();
            assert_eq!(cache.commit(revision).as_deref(), Some(COMMIT));
        }
        let path = dir.path().join("models--org--name/refs/main");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), COMMIT);
        std::fs::write(&path, "../../../../etc").unwrap();
        assert_eq!(cache.commit("main"), None);
    }
}
