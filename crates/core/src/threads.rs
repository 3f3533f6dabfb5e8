//! Thread pools.

/// Thread pool of the given size; 0 means one thread per core.
///
/// # Errors
/// If the system cannot start the threads. The message gives the number and the reason.
pub fn pool(threads: usize) -> Result<rayon::ThreadPool, String> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| format!("cannot start {threads} threads: {e}"))
}
