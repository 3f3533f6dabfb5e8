//! Tests of the file formats from outside: files that lie, and files that come back.

mod allocation;
mod attacks;
#[allow(dead_code)] // the program's tests use the rest
mod files;
mod imatrix_attacks;
mod raw;
mod torch;
mod torch_files;

use std::fmt::Display;

/// What a parser says of bytes that it must not accept; it has to say all of `parts`, briefly, and
/// to ask for no more memory than the bytes warrant.
#[track_caller]
fn refused<T, E: Display>(
    bytes: &[u8],
    parts: &[&str],
    parse: impl FnOnce(&[u8]) -> Result<T, E>,
) -> String {
    let (error, largest) = allocation::largest(|| parse(bytes).err());
    let error = error.expect("the attack passed").to_string();
    for part in parts {
        assert!(
            error.contains(part),
            "the error does not say {part:?}: {error}"
        );
    }
    assert!(error.len() < 600, "{} bytes of error: {error}", error.len());
    assert!(
        largest <= 4096 + 64 * bytes.len(),
        "{largest} bytes at once for a file of {}",
        bytes.len()
    );
    error
}
