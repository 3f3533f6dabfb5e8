//! An adapter merged into its base while the base is read, as PEFT's `merge_and_unload` does.
//!
//! Updates are scaled by alpha over the rank, or over its root (rsLoRA), with the alpha of the
//! matrix. Whole tensors of the adapter (`modules_to_save`, biases, norms) take the place of the
//! base's.

use super::{Adapter, Change, Weights};
use crate::arch::Architecture;
use crate::convert::adapter::outputs::is_transposed;
use crate::convert::checkpoint::{Checkpoint, Source};
use crate::convert::stored::{Form, Merged, Update};
use crate::convert::{Error, Result};
use crate::plan::recipe::Problem;

impl Checkpoint {
    /// The checkpoint with an adapter merged into it.
    ///
    /// # Errors
    /// Tensors of the adapter without one of the same name and a fitting shape in the base, and
    /// bases that are quantized.
    pub fn merged(mut self, adapter: Adapter) -> Result<Checkpoint> {
        let Adapter {
            dir,
            settings,
            map,
            mut tensors,
            changes,
            left_out,
        } = adapter;
        let file = self.maps.len();
        tensors.iter_mut().for_each(|tensor| tensor.file = file);
        self.maps.push(map);
        self.settings.push(dir.join(super::CONFIG));
        let architecture = Architecture::of(&self.config).ok();
        let mut problems = Vec::new();
        for change in &changes {
            let name = &*change.name;
            let recipe = architecture.and_then(|a| a.recipe(name, &self.config));
            let is_transposed =
                change.is_of_embedding() || recipe.is_some_and(|(recipe, _)| is_transposed(recipe));
            let mut bases = self.tensors.iter_mut();
            let Some(base) = bases.find(|base| base.text_name() == name) else {
                problems.push(Problem::of(name, "the base has no such tensors"));
                continue;
            };
            let merging = Merging {
                change,
                tensors: &tensors,
                scale: settings.scale(change.rank(&tensors), module(name)),
                is_transposed,
            };
            match merging.form(base) {
                Ok(form) => base.form = Some(Box::new(Form::Merged(form))),
                Err(what) => problems.push(Problem::of(name, what)),
            }
        }
        let count = changes.len();
        self.notes.push(format!(
            "{count} tensors are merged with those of an adapter"
        ));
        let left_out = left_out.iter();
        self.notes.extend(left_out.map(|(part, count)| {
            format!("{count} tensors of the adapter are of {part}, and left out")
        }));
        match problems.is_empty() {
            true => Ok(self),
            false => Err(Error::Impossible(problems)),
        }
    }
}

/// The module of a weight.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

impl Change {
    /// The rank of an update; 1 for whole tensors.
    fn rank(&self, tensors: &[Source]) -> u64 {
        match self.weights {
            Weights::Whole(_) => 1,
            Weights::Pair { a, .. } => tensors[a].shape[0],
        }
    }
}

/// One change of a base's tensor.
struct Merging<'a> {
    change: &'a Change,
    /// The adapter's tensors.
    tensors: &'a [Source],
    scale: f32,
    /// True if B A is the transpose of the update.
    is_transposed: bool,
}

impl Merging<'_> {
    fn form(&self, base: &Source) -> std::result::Result<Merged, String> {
        if base.form.is_some() {
            return Err(
                "the base is quantized, and PEFT does not define what becomes of an update there; merge the adapter \
                 into the base in 16 bits"
                    .into(),
            );
        }
        let shape = match self.change.weights {
            Weights::Whole(index) => self.tensors[index].shape.clone(),
            Weights::Pair { a, b, .. } => {
                let (rows, columns) = (self.tensors[b].shape[0], self.tensors[a].shape[1]);
                match self.is_transposed {
                    true => vec![columns, rows],
                    false => vec![rows, columns],
                }
            }
        };
        if shape != base.shape {
            return Err(format!(
                "the adapter changes a tensor of shape {shape:?}, and that of the base has {:?}; is it another base, or \
                 one with other tokens?",
                base.shape
            ));
        }
        match self.change.weights {
            Weights::Whole(index) => Merged::replaced(&self.tensors[index], base.dtype),
            Weights::Pair { a, b, .. } => {
                let factors = [a, b].map(|index| &self.tensors[index]);
                let update = Update::new(factors, self.scale, self.is_transposed)?;
                let update = match self.change.is_of_embedding() {
                    true => update.rounded(),
                    false => update,
                };
                Merged::updated(base, update)
            }
        }
    }
}
