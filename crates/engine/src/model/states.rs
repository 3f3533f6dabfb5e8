//! Activations of all chunks between two layers: in memory up to a budget, the rest in a temporary
//! file that the system removes with the process.

use super::{Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

/// One slot of `len` numbers per chunk.
pub(super) struct States {
    len: usize,
    memory: Vec<Mutex<Vec<f32>>>,
    spilled: Option<File>,
}

impl States {
    /// Storage for `chunks` slots of `len` numbers, with at most `budget` bytes in memory.
    pub(super) fn new(chunks: usize, len: usize, budget: u64) -> Result<States> {
        let in_memory = (budget / (len as u64 * 4).max(1)).min(chunks as u64) as usize;
        let spilled = match in_memory < chunks {
            true => Some(tempfile::tempfile().map_err(Error::Spill)?),
            false => None,
        };
        Ok(States {
            len,
            memory: (0..in_memory).map(|_| Mutex::default()).collect(),
            spilled,
        })
    }

    /// Moves the activations of a chunk out.
    pub(super) fn take(&self, chunk: usize) -> Result<Vec<f32>> {
        if let Some(slot) = self.memory.get(chunk) {
            return Ok(std::mem::take(
                &mut *slot.lock().unwrap_or_else(|e| e.into_inner()),
            ));
        }
        let mut state = vec![0.0f32; self.len];
        if let Some(file) = &self.spilled {
            file.read_exact_at(bytemuck::cast_slice_mut(&mut state), self.offset(chunk))
                .map_err(Error::Spill)?;
        }
        Ok(state)
    }

    /// Copies the activations of a chunk.
    pub(super) fn copy(&self, chunk: usize) -> Result<Vec<f32>> {
        match self.memory.get(chunk) {
            Some(slot) => Ok(slot.lock().unwrap_or_else(|e| e.into_inner()).clone()),
            None => self.take(chunk),
        }
    }

    /// Stores the activations of a chunk.
    pub(super) fn put(&self, chunk: usize, state: Vec<f32>) -> Result<()> {
        debug_assert_eq!(state.len(), self.len);
        match (self.memory.get(chunk), &self.spilled) {
            (Some(slot), _) => *slot.lock().unwrap_or_else(|e| e.into_inner()) = state,
            (None, Some(file)) => {
                file.write_all_at(bytemuck::cast_slice(&state), self.offset(chunk))
                    .map_err(Error::Spill)?;
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Bytes in the temporary file, for `chunks` slots.
    pub(super) fn spilled_bytes(&self, chunks: usize) -> u64 {
        (chunks - self.memory.len()) as u64 * self.len as u64 * 4
    }

    /// Bytes in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory.len() as u64 * self.len as u64 * 4
    }

    fn offset(&self, chunk: usize) -> u64 {
        (chunk - self.memory.len()) as u64 * self.len as u64 * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_beyond_the_budget_are_read_back_from_the_file() {
        let states = States::new(5, 3, 30).unwrap();
        assert_eq!((states.memory.len(), states.spilled_bytes(5)), (2, 36));
        for round in 0..2 {
            for chunk in 0..5 {
                states
                    .put(chunk, vec![chunk as f32, round as f32, -1.0])
                    .unwrap();
            }
            for chunk in (0..5).rev() {
                assert_eq!(
                    states.take(chunk).unwrap(),
                    [chunk as f32, round as f32, -1.0]
                );
            }
        }
    }
}
