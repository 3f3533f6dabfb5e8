//! What a long job tells the one who started it, and how it is asked to stop.

/// Watches a job. Pipelines print nothing; whoever implements this may.
pub trait Progress: Sync {
    /// The job is about to read this many bytes.
    fn begin(&self, _bytes: u64) {}

    /// It has come to this thing (a tensor).
    fn at(&self, _name: &str) {}

    /// It has read this many bytes more.
    fn advance(&self, _bytes: u64) {}

    /// Whether it should stop as soon as it can; it then fails with nothing half-written.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
pub struct Silent;

impl Progress for Silent {}
