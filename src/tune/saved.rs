//! Snapshots of a run between two steps.
//!
//! ```text
//! extra      length of the course as u64, the course as JSON, then for each tensor its bytes and those of the best state
//! state      one slot: the numbers of the optimizers
//! ```

use super::parameters::Parameters;
use super::train::Point;
use super::{Error, Result};
use crate::format;
use crate::format::snapshot::Snapshot;
use crate::model::Changed;
use crate::resume::Resume;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a run has come to, but for the numbers of the parameters.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Course {
    /// Steps done.
    pub done: usize,
    /// Steps undone, in a row.
    pub bad: usize,
    /// Divergence of the batches since the last decision.
    pub training: Vec<f64>,
    /// Divergences of the chunks that decide at the start, by text.
    pub start: Vec<Vec<f64>>,
    pub points: Vec<Point>,
    pub notes: Vec<String>,
    /// Steps done in the best state.
    pub best: usize,
    /// Mean logarithm of its ratio to the start.
    pub gain: f64,
    /// The least such mean of all states, also of those that are worse on a text, and its step.
    pub least: f64,
    pub improved: usize,
    /// Times that the rates were halved.
    pub halvings: u32,
    /// Tensors with a gradient in some step.
    pub seen: Vec<u32>,
}

/// Saves a snapshot.
///
/// # Errors
/// None but for a course that cannot be written as JSON; a full disk does not end a run.
pub(super) fn save(
    resume: &Resume,
    course: &Course,
    parameters: &mut Parameters,
    best: &Changed,
) -> Result<()> {
    let json = serde_json::to_vec(course).map_err(|error| bad(&error.to_string()))?;
    let mut extra = (json.len() as u64).to_le_bytes().to_vec();
    extra.extend_from_slice(&json);
    for (id, bytes) in sorted(&parameters.bytes) {
        extra.extend_from_slice(bytes);
        extra.extend_from_slice(&best[&id]);
    }
    let state: Vec<f32> = parameters
        .state()
        .flat_map(|some| some.iter().copied())
        .collect();
    let shape = [1, state.len()];
    resume.save::<format::Error>(course.done, &extra, shape, &|_| Ok(state.clone()))?;
    Ok(())
}

/// Loads a snapshot into the parameters; returns the course and the bytes of the best state.
///
/// # Errors
/// A snapshot of another shape.
pub(super) fn load(
    snapshot: &Snapshot,
    parameters: &mut Parameters,
) -> Result<(Course, Arc<Changed>)> {
    let (length, rest) =
        (snapshot.extra().split_first_chunk()).ok_or_else(|| bad("it is cut short"))?;
    let length = u64::from_le_bytes(*length) as usize;
    let (json, mut rest) = rest
        .split_at_checked(length)
        .ok_or_else(|| bad("it is cut short"))?;
    let course: Course = serde_json::from_slice(json).map_err(|error| bad(&error.to_string()))?;
    let mut best = (*parameters.bytes).clone();
    let current = Arc::make_mut(&mut parameters.bytes);
    let ids: Vec<_> = sorted(current).into_iter().map(|(id, _)| id).collect();
    for id in ids {
        for bytes in [current.get_mut(&id), best.get_mut(&id)]
            .into_iter()
            .flatten()
        {
            let (own, others) =
                (rest.split_at_checked(bytes.len())).ok_or_else(|| bad("it is cut short"))?;
            bytes.copy_from_slice(own);
            rest = others;
        }
    }
    let state = snapshot.state(0)?;
    let mut state = &state[..];
    for numbers in parameters.state() {
        let (own, others) =
            (state.split_at_checked(numbers.len())).ok_or_else(|| bad("it is cut short"))?;
        numbers.copy_from_slice(own);
        state = others;
    }
    parameters.set_seen(&course.seen);
    Ok((course, Arc::new(best)))
}

/// The tensors by number.
fn sorted(changed: &Changed) -> Vec<(quantier_arch::TensorId, &Vec<u8>)> {
    let mut all: Vec<_> = changed.iter().map(|(id, bytes)| (*id, bytes)).collect();
    all.sort_unstable_by_key(|(id, _)| *id);
    all
}

fn bad(what: &str) -> Error {
    Error::Snapshot(what.to_owned())
}
