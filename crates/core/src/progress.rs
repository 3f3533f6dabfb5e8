//! What a long job tells the one who started it, and how it is asked to stop.

/// What a job counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes that are read.
    Bytes,
    /// Pieces of work of about the same size.
    Steps,
}

/// Watches a job. Pipelines print nothing; whoever implements this may.
pub trait Progress: Sync {
    /// The job is about to do so much. A job of several parts begins several times.
    fn begin(&self, _amount: u64, _unit: Unit) {}

    /// It has come to this thing (a tensor, a layer).
    fn at(&self, _name: &str) {}

    /// It has done so much more.
    fn advance(&self, _amount: u64) {}

    /// Whether it should stop as soon as it can; it then fails with nothing half-written.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
pub struct Silent;

impl Progress for Silent {}
