//! How numbers are shown, and how anything is printed.

use anyhow::Context;
pub use quantier::report::numbers::{count, size};
use std::io::{ErrorKind, Write};

/// Prints a line to standard output; `say!` in place of `println!`, which panics if that cannot be
/// done.
///
/// A reader that has seen enough (`| head`) is no failure: the rest goes nowhere.
pub fn line(text: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Prints bytes to standard output as they are.
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
