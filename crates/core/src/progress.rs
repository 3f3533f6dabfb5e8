//! Progress and cancellation of long jobs.

/// The unit of progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes read.
    Bytes,
    /// Steps of about the same size.
    Steps,
}

/// An observer of a job. Pipelines print nothing themselves.
pub trait Progress: Sync {
    /// Begins a part of the job with its total amount.
    fn begin(&self, _amount: u64, _unit: Unit) {}

    /// Names the current item, such as a tensor or a layer.
    fn at(&self, _name: &str) {}

    /// Adds to the amount done.
    fn advance(&self, _amount: u64) {}

    /// Returns true to stop the job. It then fails, without partial outputs.
    fn cancelled(&self) -> bool {
        false
    }
}

/// No progress and no cancellation.
pub struct Silent;

impl Progress for Silent {}
