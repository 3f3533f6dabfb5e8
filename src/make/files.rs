//! From recipes to files, each kept under a key of all that it depends on.

use super::choice::{Choices, Chosen, request};
use super::{Error, Job, Kept, Result, ended, resume, texts};
use crate::arch::Catalog;
use crate::format::snapshot::Key;
use crate::format::types::GgmlType;
use crate::hessian::Store;
use crate::input::Input;
use crate::model::Engine;
use crate::plan::recipe::Wishes;
use crate::progress::Progress;
use crate::quantize::{self, OutputRequest, Plan, SequentialRun};
use crate::rounding::{InputHessians, Rounding, TensorProof};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What files are written with.
#[derive(Clone, Copy)]
pub(super) struct Writing<'w> {
    pub(super) input: &'w Input<'w>,
    pub(super) job: &'w Job,
    pub(super) imatrix: &'w Path,
    pub(super) feedback: Option<&'w InputHessians>,
    /// What tensors are rounded one behind the other with, if they are.
    pub(super) propagated: Option<(&'w Engine<'w>, &'w texts::Cut)>,
    /// What is known of the gradients at what matrices make.
    pub(super) gradients: Option<&'w Store>,
    pub(super) kept: &'w Kept,
    pub(super) progress: &'w dyn Progress,
    pub(super) tell: &'w dyn Fn(&str),
}

fn bytes_of(imatrix: &Path) -> Result<Vec<u8>> {
    let io = |source| crate::format::Error::Io {
        path: imatrix.to_owned(),
        action: "read",
        source,
    };
    Ok(std::fs::read(imatrix).map_err(io)?)
}

/// Under which name and key it is kept that a file is written.
fn kept_as(
    input: &Input<'_>,
    job: &Job,
    chosen: &Chosen,
    imatrix: &[u8],
    [covariance, gradients]: [Option<Key>; 2],
) -> Result<(String, Key)> {
    let key = crate::resume::KeyBuilder::new("make: file").with_model(input)?;
    let key = key.with("covariance", covariance.as_ref().map_or(&[][..], |key| key));
    let key = key.with("gradients", gradients.as_ref().map_or(&[][..], |key| key));
    let key = key.with("propagated", &[job.rounding.is_sequential().into()]);
    let key = key.with("recipe", Choices::recipe_text(chosen).as_bytes());
    let key = key
        .with("label", chosen.label.name().as_bytes())
        .with("imatrix", imatrix)
        .key();
    Ok((
        chosen
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        key,
    ))
}

/// Under which name it is kept what rounding with error feedback did to a file.
fn rounded_as(name: &str) -> String {
    format!("{name}.rounding")
}

fn is_there(chosen: &Chosen, kept: &Kept, name: &str, key: &Key) -> bool {
    chosen
        .path
        .metadata()
        .is_ok_and(|meta| meta.len() == chosen.file_bytes)
        && kept.has(name, key)
}

/// How many of the files an earlier run has written.
pub(super) fn written(
    input: &Input<'_>,
    job: &Job,
    choices: &Choices,
    (imatrix, known): (&Path, [Option<Key>; 2]),
    kept: &Kept,
) -> Result<usize> {
    let imatrix = bytes_of(imatrix)?;
    let mut written = 0;
    for chosen in &choices.chosen {
        let (name, key) = kept_as(input, job, chosen, &imatrix, known)?;
        written += usize::from(is_there(chosen, kept, &name, &key));
    }
    Ok(written)
}

impl Writing<'_> {
    /// Under which name and key it is kept that each file is written, in the order of the budgets.
    fn keys(&self, choices: &Choices) -> Result<Vec<(String, Key)>> {
        let imatrix = bytes_of(self.imatrix)?;
        let known = [
            self.feedback.map(InputHessians::key),
            self.gradients.map(Store::key),
        ]
        .map(|key| key.copied());
        choices
            .chosen
            .iter()
            .map(|chosen| kept_as(self.input, self.job, chosen, &imatrix, known))
            .collect()
    }

    /// What rounding with error feedback did to each file, tensor by tensor.
    pub(super) fn proved(&self, choices: &Choices) -> Result<Vec<Vec<TensorProof>>> {
        let of = |(name, key): &(String, Key)| {
            self.kept.read(&rounded_as(name), key).unwrap_or_default()
        };
        Ok(self.keys(choices)?.iter().map(of).collect())
    }

    /// Writes the files of all recipes that are not there yet, and `more`: from one pass over the
    /// model, or each from one of its own where tensors are rounded one behind the other. Returns
    /// the former, all of them.
    pub(super) fn write(
        &self,
        choices: &Choices,
        more: Vec<OutputRequest>,
    ) -> Result<Vec<PathBuf>> {
        let keys = self.keys(choices)?;
        let missing = choices.chosen.iter().zip(&keys);
        let missing: Vec<_> = missing
            .filter(|(chosen, (name, key))| !is_there(chosen, self.kept, name, key))
            .collect();
        match self.propagated.filter(|_| self.feedback.is_some()) {
            Some((engine, windows)) => {
                let windows = windows.calibration()?;
                let chunks: Vec<_> = (0..windows.chunks())
                    .map(|chunk| windows.input(chunk))
                    .collect();
                for one in missing {
                    self.write_some(&[one], Vec::new(), Some((engine, &chunks)))?;
                }
                self.write_some(&[], more, None)?;
            }
            None => self.write_some(&missing, more, None)?,
        }
        Ok(choices
            .chosen
            .iter()
            .map(|chosen| chosen.path.clone())
            .collect())
    }

    /// Writes the files of some recipes, and `more`.
    fn write_some(
        &self,
        missing: &[(&Chosen, &(String, Key))],
        more: Vec<OutputRequest>,
        propagated: Option<(&Engine<'_>, &[Vec<u32>])>,
    ) -> Result<()> {
        let rounding = self
            .feedback
            .map_or(Rounding::Reference, |_| self.job.rounding);
        let of = |(chosen, _): &(&Chosen, &(String, Key))| OutputRequest {
            path: chosen.path.clone(),
            wishes: wishes(self.input.catalog(), chosen),
            rounding,
        };
        let outputs: Vec<_> = missing.iter().map(of).chain(more).collect();
        if outputs.is_empty() {
            return Ok(());
        }
        let known = (
            Some(self.imatrix),
            self.feedback.map(InputHessians::directory),
        );
        let mut plan = Plan::new(self.input, &request(self.job, known, outputs))?;
        for (output, (chosen, _)) in plan.outputs.iter().zip(missing) {
            let recipe: BTreeMap<_, _> = chosen
                .recipe
                .iter()
                .map(|(name, t)| (&**name, *t))
                .collect();
            for tensor in &output.tensors {
                match recipe.get(&*tensor.name) {
                    Some(t) if *t != tensor.chosen.target => {
                        let (tensor, planned) = (tensor.name.clone(), tensor.chosen.target);
                        return Err(Error::Recipe {
                            tensor,
                            chosen: *t,
                            planned,
                        });
                    }
                    _ => {}
                }
            }
        }
        let mut left = Vec::new();
        if let Some((engine, chunks)) = propagated {
            for (output, (_, (name, key))) in missing.iter().enumerate() {
                left.push(self.propagate(&mut plan, output, (name, key), (engine, chunks))?);
            }
        }
        let proved = plan.run(self.progress)?;
        for (proved, (_, (name, key))) in proved.into_iter().zip(missing) {
            self.kept.write(&rounded_as(name), key, &proved)?;
            self.kept.remember(name, key)?;
        }
        drop(plan);
        for path in left.iter().flatten() {
            // They are of no use any more; whoever cannot remove them can leave them.
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }

    /// Rounds the tensors of a file one behind the other. Returns what can be removed when the file
    /// is written.
    fn propagate(
        &self,
        plan: &mut Plan<'_>,
        output: usize,
        (name, key): (&str, &Key),
        (engine, chunks): (&Engine<'_>, &[Vec<u32>]),
    ) -> Result<[PathBuf; 2]> {
        let [blocks, state] =
            ["blocks", "resume"].map(|what| self.kept.path(&format!("{name}.{what}")));
        let resume = resume(&state, *key, self.job, self.tell)?;
        let with = SequentialRun {
            engine,
            chunks,
            output_hessians: self.gradients,
            file: Some(&blocks),
            resume: Some(&resume),
        };
        let done = plan.round_sequentially(output, &with, self.progress);
        ended(done, quantize::Error::is_final, &resume, self.tell)?;
        Ok([blocks, state])
    }
}

fn wishes(catalog: &Catalog, chosen: &Chosen) -> Wishes {
    let of = |(name, t): &(String, GgmlType)| Some((catalog.tensor_named(name)?, *t));
    Wishes {
        file_type: Some(chosen.label),
        recipe: chosen.recipe.iter().filter_map(of).collect(),
        ..Wishes::default()
    }
}
