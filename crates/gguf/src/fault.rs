//! Failed reads of mapped files: where a file was shortened, or its file system has an outage, the system
//! sends SIGBUS, and without a handler the process dies without a message.

use std::path::Path;
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Exit code after a failed read.
pub const FAILED_READ: i32 = 74;
/// Mappings whose paths are known; those beyond have a message without a path.
const SLOTS: usize = 4096;

/// A mapping. A slot without an end is free.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    path: AtomicPtr<u8>,
    path_len: AtomicUsize,
}

static MAPPED: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        path: AtomicPtr::new(null_mut()),
        path_len: AtomicUsize::new(0),
    }
}; SLOTS];

/// Marks a slot that is being filled.
const TAKEN: usize = usize::MAX;

/// A mapping known to the handler, until it is dropped.
pub(crate) struct Known {
    slot: Option<&'static Slot>,
    /// What the slot points to.
    _path: Box<[u8]>,
}

impl Known {
    /// Enters a mapping.
    pub(crate) fn new(bytes: &[u8], path: &Path) -> Known {
        let path: Box<[u8]> = path.as_os_str().as_encoded_bytes().into();
        let free = |slot: &&Slot| {
            let (from, to) = (Ordering::AcqRel, Ordering::Relaxed);
            slot.start.load(Ordering::Relaxed) == 0
                && slot.start.compare_exchange(0, TAKEN, from, to).is_ok()
        };
        let slot = MAPPED.iter().find(free);
        if let Some(slot) = slot {
            let range = bytes.as_ptr_range();
            slot.path.store(path.as_ptr().cast_mut(), Ordering::Relaxed);
            slot.path_len.store(path.len(), Ordering::Relaxed);
            slot.start
                .store(range.start.addr().max(1), Ordering::Relaxed);
            slot.end.store(range.end.addr(), Ordering::Release);
        }
        Known { slot, _path: path }
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.end.store(0, Ordering::Release);
            slot.start.store(0, Ordering::Release);
        }
    }
}

/// From now on, a failed read of a mapped file ends the process with a message that names the file, and with
/// exit code [`FAILED_READ`]. For programs; a library does not call it by itself.
pub fn report() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the action is initialized as a whole, and its handler has the signature that
        // SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                on_failed_read;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &action, null_mut());
        }
    });
}

/// Writes the message and ends the process. Only calls that are safe within a signal handler.
extern "C" fn on_failed_read(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the system passes a valid description of the signal.
    let address = unsafe { (*info).si_addr() }.addr();
    let holds = |slot: &&Slot| {
        let end = slot.end.load(Ordering::Acquire);
        (slot.start.load(Ordering::Relaxed)..end).contains(&address)
    };
    let found = MAPPED.iter().find(holds);
    say(b"error: ");
    match found {
        Some(slot) => {
            let len = slot.path_len.load(Ordering::Relaxed);
            // SAFETY: the path lives as long as its slot has an end.
            say(unsafe { std::slice::from_raw_parts(slot.path.load(Ordering::Relaxed), len) });
        }
        None => say(b"a mapped file"),
    }
    say(b": a part of it cannot be read: its disk or network file system failed, or it was shortened; \
        run the command again when the file is back\n");
    // SAFETY: ends the process without running anything else.
    unsafe { libc::_exit(FAILED_READ) }
}

/// Writes to standard error.
fn say(text: &[u8]) {
    // SAFETY: the pointer and the length are those of a slice.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}
