//! Printing to standard output, and names of files.

use anyhow::Context;
pub use quantier_report::numbers::{count, size};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Prints a line to standard output. Unlike `println!`, `say!` returns errors and ignores a closed
/// pipe (`| head`).
pub fn line(text: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Prints bytes to standard output.
pub fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().write_all(bytes) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

macro_rules! say {
    ($($text:tt)*) => { $crate::cli::text::line(format_args!($($text)*)) };
}
pub(super) use say;

/// A path with a suffix appended to its name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
