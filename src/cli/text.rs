//! How numbers are shown, and how anything is printed.

use anyhow::Context;
use std::io::{ErrorKind, Write};

/// Prints a line to standard output; `say!` in place of `println!`, which panics if that cannot be done.
///
/// A reader that has seen enough (`| head`) is no failure: the rest goes nowhere.
pub fn line(text: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

macro_rules! say {
    ($($text:tt)*) => { $crate::cli::text::line(format_args!($($text)*)) };
}
pub(super) use say;

/// A size in binary units: `4.33 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// A count with thousands marked: `6,843,392`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_read_well() {
        assert_eq!(super::size(1023), "1023 B");
        assert_eq!(super::size(4_650_000_000), "4.33 GiB");
        assert_eq!(super::count(6_843_392), "6,843,392");
        assert_eq!(super::count(92), "92");
    }
}
