//! Cost of a stage: operations, weights to round, bytes on disk and in memory.

use crate::format::types::GgmlType;
use serde::Serialize;
use std::ops::AddAssign;

/// Cost of a stage. Costs are summed, except for memory and temporary space, where the larger of
/// two consecutive stages counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Floating-point operations of matrix products in f32.
    pub operations: f64,
    /// Floating-point operations of factorizations, in f64.
    pub double_operations: f64,
    /// Weights to round, by type and method.
    #[serde(skip)]
    pub(super) rounding: Vec<Rounding>,
    /// Bytes of weights and texts read.
    pub read: u64,
    /// Bytes written and kept.
    pub written: u64,
    /// Bytes written and removed at the end: snapshots, and tensors of unfinished files.
    pub scratch: u64,
    /// Peak memory in bytes, without the mapped model.
    pub memory: u64,
    /// Bytes of activations in a temporary file, beyond the limit on memory.
    pub temporary: u64,
    /// Bytes of a converted checkpoint, among those written.
    pub base: u64,
    /// Bytes of log-probabilities, among those written.
    pub logits: u64,
    /// True if an outside engine does the work, in a time that is unknown here.
    pub is_outside: bool,
}

/// Weights to round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rounding {
    pub(super) ggml_type: GgmlType,
    pub(super) weights: f64,
    /// Row length.
    pub(super) columns: u64,
    /// True for error feedback, which includes the reference's rounding for comparison.
    pub(super) feedback: bool,
}

impl AddAssign<Cost> for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.operations += other.operations;
        self.double_operations += other.double_operations;
        self.rounding.extend(other.rounding);
        self.read += other.read;
        self.written += other.written;
        self.scratch = self.scratch.max(other.scratch);
        self.memory = self.memory.max(other.memory);
        self.temporary = self.temporary.max(other.temporary);
        self.base += other.base;
        self.logits += other.logits;
        self.is_outside |= other.is_outside;
    }
}

/// Memory of a stage, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// Activations, which go to a temporary file beyond the limit.
    pub(super) activations: f64,
    /// Widened weights and buffers of the threads.
    pub(super) work: f64,
    /// Hessians and their factors, which the limit does not include.
    pub(super) feedback: f64,
}

impl Memory {
    /// Bytes of memory and of the temporary file under a limit on activations and work.
    pub(super) fn under(self, limit: Option<u64>) -> [u64; 2] {
        let room = limit.map_or(f64::INFINITY, |limit| (limit as f64 - self.work).max(0.0));
        let memory = self.activations.min(room) + self.work + self.feedback;
        [memory as u64, (self.activations - room).max(0.0) as u64]
    }
}
