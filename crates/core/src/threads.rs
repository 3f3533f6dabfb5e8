//! Thread pools.

/// A pool of this many threads; 0 takes one per core.
///
/// # Errors
/// If the system does not start them. The message gives the number and the reason.
pub fn pool(threads: usize) -> Result<rayon::ThreadPool, String> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| format!("cannot start {threads} threads: {e}"))
}
