//! Activations of all chunks between two layers: in memory up to a budget, the rest in a temporary
//! file that the system removes with the process.

use super::rows::Rows;
use super::{Error, Result};
use quantier_arch::hyper::Columns;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

/// Bytes of a number.
const BYTES: u64 = size_of::<f32>() as u64;

/// One slot of numbers per chunk.
pub(super) struct States {
    /// The end of each slot, in numbers from the start of the first.
    ends: Vec<u64>,
    memory: Vec<Mutex<Vec<f32>>>,
    spilled: Option<File>,
}

impl States {
    /// Storage for slots of these numbers, with at most `budget` bytes in memory.
    pub(super) fn new(lengths: impl Iterator<Item = usize>, budget: u64) -> Result<States> {
        let ends = lengths.scan(0, |end, length| {
            *end += length as u64;
            Some(*end)
        });
        let ends: Vec<u64> = ends.collect();
        let in_memory = ends.partition_point(|end| end.saturating_mul(BYTES) <= budget);
        let spilled = match in_memory < ends.len() {
            true => Some(tempfile::tempfile().map_err(Error::Spill)?),
            false => None,
        };
        Ok(States {
            ends,
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
        let mut state = vec![0.0f32; self.length(chunk)];
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
        debug_assert_eq!(state.len(), self.length(chunk));
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

    /// Bytes in the temporary file.
    pub(super) fn spilled_bytes(&self) -> u64 {
        self.start(self.ends.len()) * BYTES - self.memory_bytes()
    }

    /// Bytes in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.start(self.memory.len()) * BYTES
    }

    /// The start of a slot in bytes of the temporary file.
    fn offset(&self, chunk: usize) -> u64 {
        self.start(chunk) * BYTES - self.memory_bytes()
    }

    /// The start of a slot, in numbers from the start of the first.
    fn start(&self, chunk: usize) -> u64 {
        chunk.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// Numbers in a slot.
    fn length(&self, chunk: usize) -> usize {
        (self.ends[chunk] - self.start(chunk)) as usize
    }
}

/// Bundles of all chunks, once or by layer: columns that no layer changes are stored once per chunk.
pub(super) struct Slots {
    states: States,
    constants: Option<Constants>,
}

/// Columns that are the same in all slots of a chunk.
struct Constants {
    states: States,
    chunks: usize,
    columns: Columns,
    /// Row length of a bundle.
    width: usize,
}

/// Sizes of [`Slots`].
#[derive(Clone, Copy)]
pub(super) struct Layout<'a> {
    pub chunks: &'a [Vec<u32>],
    /// Slots per chunk.
    pub layers: usize,
    /// Row length of a bundle.
    pub width: usize,
    /// Columns of a bundle that no layer changes.
    pub constant: Columns,
}

impl Slots {
    /// Storage with at most `budget` bytes in memory.
    pub(super) fn new(layout: Layout<'_>, budget: u64) -> Result<Slots> {
        let Layout {
            chunks,
            layers,
            width,
            constant,
        } = layout;
        let lengths = |columns: usize| chunks.iter().map(move |chunk| chunk.len() * columns);
        let constants = match constant.count {
            0 => None,
            count => Some(Constants {
                states: States::new(lengths(count), budget)?,
                chunks: chunks.len(),
                columns: constant,
                width,
            }),
        };
        let taken = constants.as_ref().map_or(0, |c| c.states.memory_bytes());
        let all = (0..layers).flat_map(|_| lengths(width - constant.count));
        Ok(Slots {
            states: States::new(all, budget.saturating_sub(taken))?,
            constants,
        })
    }

    /// Stores the rows of a slot; slots are numbered by layer, then by chunk. The first slot of a
    /// chunk also holds its constant columns.
    pub(super) fn put(&self, slot: usize, rows: Vec<f32>) -> Result<()> {
        let Some(constants) = &self.constants else {
            return self.states.put(slot, rows);
        };
        let (Columns { first, count }, width) = (constants.columns, constants.width);
        let rows = Rows::new(rows, width);
        if slot < constants.chunks {
            let columns = rows.columns_range(first..first + count);
            constants.states.put(slot, columns.into_numbers())?;
        }
        let [before, behind] = [0..first, first + count..width].map(|c| rows.columns_range(c));
        self.states
            .put(slot, beside(&[&before, &behind]).into_numbers())
    }

    /// Moves the rows of a slot out.
    pub(super) fn take(&self, slot: usize) -> Result<Vec<f32>> {
        self.whole(slot, self.states.take(slot)?)
    }

    /// Copies the rows of a slot.
    pub(super) fn copy(&self, slot: usize) -> Result<Vec<f32>> {
        self.whole(slot, self.states.copy(slot)?)
    }

    /// Inserts the constant columns.
    fn whole(&self, slot: usize, changing: Vec<f32>) -> Result<Vec<f32>> {
        let Some(constants) = &self.constants else {
            return Ok(changing);
        };
        let (Columns { first, count }, width) = (constants.columns, constants.width);
        let changing = Rows::new(changing, width - count);
        let columns = Rows::new(constants.states.copy(slot % constants.chunks)?, count);
        let [before, behind] = [0..first, first..width - count].map(|c| changing.columns_range(c));
        Ok(beside(&[&before, &columns, &behind]).into_numbers())
    }

    /// Bytes in temporary files.
    pub(super) fn spilled_bytes(&self) -> u64 {
        let constants = self.constants.as_ref();
        let constants = constants.map_or(0, |c| c.states.spilled_bytes());
        self.states.spilled_bytes() + constants
    }
}

/// Concatenates rows side by side; parts may have no columns.
fn beside(parts: &[&Rows]) -> Rows {
    let parts = parts.iter().copied().filter(|part| part.columns() > 0);
    Rows::beside(&parts.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_columns_are_stored_once_per_chunk() {
        let chunks = [vec![0; 2], vec![0; 2]];
        let layout = |first: usize, count: usize| Layout {
            chunks: &chunks,
            layers: 3,
            width: 4,
            constant: Columns { first, count },
        };
        let rows = |slot: usize| -> Vec<f32> {
            // Column 1 and 2 depend on the chunk alone.
            let row = |position: usize| {
                let (chunk, x) = ((slot % 2) as f32, (10 * slot + position) as f32);
                [x, 100.0 + chunk, 200.0 + chunk, -x]
            };
            (0..2).flat_map(row).collect()
        };
        for (first, count, budget) in [(1, 2, 1 << 20), (1, 2, 0), (0, 0, 0), (1, 2, 40)] {
            let slots = Slots::new(layout(first, count), budget).unwrap();
            for slot in 0..6 {
                slots.put(slot, rows(slot)).unwrap();
            }
            for slot in (0..6).rev() {
                assert_eq!(slots.copy(slot).unwrap(), rows(slot));
                assert_eq!(slots.take(slot).unwrap(), rows(slot));
            }
        }
        let slots = Slots::new(layout(1, 2), 0).unwrap();
        // Six slots of two rows of two columns, and two chunks of as many.
        assert_eq!(slots.spilled_bytes(), 4 * (6 * 4 + 2 * 4));
    }

    #[test]
    fn slots_beyond_the_budget_are_read_back_from_the_file() {
        let lengths = [3, 1, 4, 2, 5];
        let states = States::new(lengths.into_iter(), 30).unwrap();
        assert_eq!((states.memory.len(), states.memory_bytes()), (2, 16));
        assert_eq!(states.spilled_bytes(), 44);
        let numbers = |round: usize, chunk: usize| -> Vec<f32> {
            let numbers = 0..lengths[chunk];
            numbers
                .map(|i| (100 * round + 10 * chunk + i) as f32)
                .collect()
        };
        for round in 0..2 {
            for chunk in 0..5 {
                states.put(chunk, numbers(round, chunk)).unwrap();
            }
            for chunk in (0..5).rev() {
                assert_eq!(states.take(chunk).unwrap(), numbers(round, chunk));
            }
        }
    }
}
