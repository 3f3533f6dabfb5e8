//! The input Hessians of a model, in a directory.

use crate::InputStatistics;
use crate::factor::InputCurvature;
use crate::hessian::{HELD_OUT, Hessian, Identity, Store};
use crate::statistics::{even, factored};
use quantier_gguf::snapshot::Key;
use quantier_gguf::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The input Hessians of a model's linears that were collected.
pub struct InputHessians {
    directory: PathBuf,
    store: Store,
    /// The last one read: linears with the same input follow each other.
    last: Mutex<Option<(Identity, Option<Arc<InputStatistics>>)>>,
}

impl InputHessians {
    /// Opens a directory.
    ///
    /// # Errors
    /// A directory that is incomplete or damaged.
    pub fn open(directory: &Path) -> Result<InputHessians> {
        let store = Store::open(directory)?;
        Ok(InputHessians {
            directory: directory.to_owned(),
            store,
            last: Mutex::default(),
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Key of everything that the Hessians depend on.
    pub fn key(&self) -> &Key {
        self.store.key()
    }

    /// True if a tensor has a Hessian.
    pub fn has(&self, tensor: &str) -> bool {
        self.store.identity(tensor, 0).is_some()
    }

    /// Number of input channels and of matrices of a tensor; `None` without a Hessian.
    pub fn shape(&self, tensor: &str) -> Option<[usize; 2]> {
        self.store.shape(tensor)
    }

    /// A warning if Hessians are means over fewer tokens than channels.
    pub fn few_tokens(&self) -> Option<String> {
        let few: Vec<_> = self.store.of_few_rows().collect();
        let (name, rows, columns) = few
            .iter()
            .max_by_key(|(_, rows, columns)| *columns as u64 - rows)?;
        Some(format!(
            "the input Hessians of {} tensors are means over fewer tokens than input channels ('{name}': {rows} tokens, \
             {columns} channels), so error feedback is only partial: at least {} tokens are needed, and several times \
             as many are better",
            few.len(),
            // One of HELD_OUT chunks is held out.
            columns + columns.div_ceil(HELD_OUT - 1)
        ))
    }

    /// Tensors with Hessians, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.store.names()
    }

    /// The input Hessian of a tensor of one matrix; `None` without one.
    ///
    /// # Errors
    /// Files that are damaged.
    pub fn hessian(&self, tensor: &str) -> Result<Option<Hessian>> {
        match self.store.shape(tensor) {
            Some([_, 1]) => self.store.get(tensor, 0),
            _ => Ok(None),
        }
    }

    /// Statistics of the inputs of matrix `matrix` of a tensor, factored on the threads of the
    /// current pool; `None` without a Hessian, or if all inputs are zero.
    ///
    /// # Errors
    /// Files that are damaged or belong to another model.
    pub fn inputs(
        &self,
        tensor: &str,
        matrix: usize,
        columns: usize,
    ) -> Result<Option<Arc<InputStatistics>>> {
        let Some(identity) = self.store.identity(tensor, matrix) else {
            return Ok(None);
        };
        let bad = |what: String| Error::Bad {
            path: self.directory.clone(),
            what: format!("the input Hessian of '{tensor}': {what}"),
        };
        if let Some([channels, _]) = self.store.shape(tensor).filter(|[n, _]| *n != columns) {
            return Err(bad(format!(
                "it is of {channels} channels and {columns} are needed; it is of another model"
            )));
        }
        let last = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((_, inputs)) = last.filter(|(last, _)| *last == identity) {
            return Ok(inputs);
        }
        let Some(hessian) = self.store.get(tensor, matrix)? else {
            return Ok(None);
        };
        let factored = factored(&hessian.mean, columns, hessian.rows)
            .map_err(|error| bad(error.to_string()))?;
        let inputs = factored.map(|(factor, damping)| {
            Arc::new(InputStatistics {
                factor: factor.into(),
                curvature: InputCurvature::new(hessian.mean, columns, damping).into(),
                even: even(&hessian.sample, columns).into(),
                held_out: hessian.sample.into(),
                shift: None,
            })
        });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((identity, inputs.clone()));
        Ok(inputs)
    }
}
