//! A temporary directory, in memory if possible, for readers of checkpoint directories.

use std::path::PathBuf;

/// An empty directory for this process and target.
pub fn directory(target: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    let dir = base.join(format!("quantier-fuzz-{target}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).expect("a directory for the files");
    dir
}
