//! Weights out of range for the output's type, which overflow to infinity.

use super::plan::{Plan, PlannedTensor};
use super::weights::Weights;
use super::{Error, Result};
use crate::format::safetensors::Dtype;
use crate::format::types::GgmlType;
use quantier_core::threads;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// The smallest number that overflows in f16: half a step above the largest one, 65504.
const TOO_LARGE_FOR_F16: f32 = 65_520.0;
/// Weights per check for a find by another thread.
const STEP: u64 = 1 << 20;

/// A weight that overflows in the output's type.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "{tensor}, row {row}, holds {value}, which becomes infinite in f16 (its largest number is 65504); \
     --outtype bf16 keeps it"
)]
pub struct TooLarge {
    /// The tensor of the output.
    pub tensor: String,
    /// Row, counted over all matrices of the tensor.
    pub row: u64,
    /// The value.
    pub value: f32,
}

/// The first overflowing weight of each tensor so far.
#[derive(Default)]
pub(super) struct Seen(Mutex<BTreeMap<String, TooLarge>>);

impl Seen {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, TooLarge>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn add(&self, found: TooLarge) {
        let mut all = self.all();
        let first = all
            .entry(found.tensor.clone())
            .or_insert_with(|| found.clone());
        if found.row < first.row {
            *first = found;
        }
    }
}

/// The first weight that overflows in its tensor's type. `start` is the element of the first
/// weight.
fn too_large(tensor: &PlannedTensor, start: u64, weights: &[f32]) -> Option<TooLarge> {
    if tensor.target != GgmlType::F16 {
        return None;
    }
    let largest = weights.iter().fold(0f32, |largest, w| largest.max(w.abs()));
    if largest < TOO_LARGE_FOR_F16 {
        return None;
    }
    // Infinities of the checkpoint are not overflows.
    let is_beyond = |w: &f32| w.abs() >= TOO_LARGE_FOR_F16 && w.is_finite();
    let at = weights.iter().position(is_beyond)?;
    Some(TooLarge {
        tensor: tensor.name.clone(),
        row: (start + at as u64) / tensor.unit(),
        value: weights[at],
    })
}

impl Plan<'_> {
    /// Checks some of a tensor's weights, from element `start` on, for overflow.
    ///
    /// # Errors
    /// The first overflow under `--check`; otherwise it is recorded.
    pub(super) fn check_range(
        &self,
        tensor: &PlannedTensor,
        start: u64,
        weights: &[f32],
    ) -> Result<()> {
        match too_large(tensor, start, weights) {
            Some(found) if self.check => Err(Error::TooLarge(found)),
            Some(found) => {
                self.too_large.add(found);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The first overflowing weight of each converted tensor.
    pub fn too_large(&self) -> Vec<TooLarge> {
        self.too_large.all().values().cloned().collect()
    }

    /// A weight that would overflow in f16, after reading all tensors stored in a type with a
    /// larger range.
    ///
    /// # Errors
    /// If a file has become shorter.
    pub(crate) fn find_too_large(&self) -> Result<Option<TooLarge>> {
        let sources = &self.checkpoint.tensors;
        let is_wide =
            |index: usize| matches!(sources[index].dtype, Dtype::F64 | Dtype::F32 | Dtype::Bf16);
        let pool = threads::pool(self.threads).map_err(Error::impossible)?;
        for tensor in &self.tensors {
            let Weights::Stored(stored) = &tensor.weights else {
                continue;
            };
            if tensor.target != GgmlType::F16 || !tensor.weights.sources().any(is_wide) {
                continue;
            }
            let (step, end) = (tensor.step(STEP), tensor.shape.elements());
            let steps = end.div_ceil(step.max(1));
            let look = |index: u64| -> Result<Option<TooLarge>> {
                let elements = index * step..end.min((index + 1) * step);
                let start = elements.start;
                let weights = self.numbers(tensor, stored, elements)?;
                Ok(too_large(tensor, start, &weights))
            };
            let found = pool.install(|| {
                let all = (0..steps).into_par_iter().map(look);
                all.find_first(|found| !matches!(found, Ok(None)))
            });
            if let Some(found) = found {
                return found;
            }
            self.release(tensor, 0..tensor.shape.rows());
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_row_that_becomes_infinite_is_named() {
        let tensor = PlannedTensor::of_type("a", &[4, 3], GgmlType::F16);
        let mut weights = [0.0f32; 12];
        weights[2] = 65_519.99;
        weights[3] = f32::INFINITY;
        assert_eq!(too_large(&tensor, 0, &weights), None);
        weights[9] = -65_520.0;
        let found = too_large(&tensor, 8, &weights).unwrap();
        assert_eq!((found.row, found.value), (4, -65_520.0));
        assert!(found.to_string().contains("--outtype bf16"));
        let bf16 = PlannedTensor::of_type("a", &[4, 3], GgmlType::BF16);
        assert_eq!(too_large(&bf16, 0, &weights), None);
        let seen = Seen::default();
        [7, 4, 5].into_iter().for_each(|row| {
            seen.add(TooLarge {
                row,
                ..found.clone()
            })
        });
        assert_eq!(seen.all()["a"].row, 4);
    }
}
