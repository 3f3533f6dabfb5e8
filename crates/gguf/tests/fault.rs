//! A read of a mapped file that fails: the message names the file.

use quantier_gguf::fault::{FAILED_READ, report};
use quantier_gguf::map::Map;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Command;

/// Set for the process whose read fails.
const FILE: &str = "QUANTIER_TEST_FAULT";

#[test]
fn a_failed_read_names_its_file_among_others() {
    if let Some(path) = std::env::var_os(FILE).map(PathBuf::from) {
        fail_to_read(&path);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shortened.bin");
    let test = "a_failed_read_names_its_file_among_others";
    let done = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(FILE, &path)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(FAILED_READ), "{message}");
    let expected = format!("error: {}: a part of it cannot be read", path.display());
    assert!(message.contains(&expected), "{message}");
}

/// Shortens a mapped file, and reads beyond its end.
fn fail_to_read(path: &std::path::Path) -> ! {
    report();
    let beside = path.with_extension("other");
    for path in [path, &beside] {
        std::fs::write(path, vec![1; 1 << 20]).unwrap();
    }
    let dropped = Map::open(path).unwrap();
    drop(dropped);
    let (_other, map) = (Map::open(&beside).unwrap(), Map::open(path).unwrap());
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(0).unwrap();
    let last = map.bytes().last().copied();
    panic!("read {last:?}");
}
