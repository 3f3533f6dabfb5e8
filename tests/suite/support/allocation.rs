//! How much memory a thread asks for at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Display;

struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // A thread that is ending has no cell any more.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: everything is left to the system's allocator; a number is noted beside.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note(new_size);
        unsafe { System.realloc(old, layout, new_size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Runs something on this thread; returns what it gives, and the bytes of its largest single
/// allocation.
pub fn largest<T>(run: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.set(0);
    let result = run();
    (result, LARGEST.get())
}

/// What a parser says of bytes that it must not accept; it has to say all of `parts`, briefly, and
/// to ask for no more memory than the bytes warrant.
#[track_caller]
pub fn refused<T, E: Display>(
    bytes: &[u8],
    parts: &[&str],
    parse: impl FnOnce(&[u8]) -> Result<T, E>,
) -> String {
    let (error, largest) = largest(|| parse(bytes).err());
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
