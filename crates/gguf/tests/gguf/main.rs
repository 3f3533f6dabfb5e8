//! Tests of the file formats through the public interface: attacks and round trips.

mod allocation;
mod attacks;
#[allow(dead_code)] // used by the tests of the program
mod files;
mod imatrix_attacks;
mod raw;
mod torch;
mod torch_files;

use std::fmt::Display;

/// The error of a parser for bytes that it must refuse. It must contain all of `parts`, be short,
/// and come without disproportionate allocations.
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
