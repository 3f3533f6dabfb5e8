//! Files: from recipes to GGUFs, each with a key of all its inputs.

use super::allocation::{Allocation, FilePlan};
use super::calibration::Calibrated;
use super::cost::{Cost, Memory};
use super::job::Job;
use super::numbers::{self, Numbers};
use super::presets::Comparison;
use super::sensitivities::Sensitivities;
use super::shards::{Cut, Writing};
use super::stage::{Foreseeable, Session, Stage};
use super::tuning;
use super::workdir::WorkDir;
use super::{Error, Result};
use crate::format::snapshot::Key;
use crate::format::types::GgmlType;
use crate::input::Tensor;
use crate::quantize::{self, ImatrixRequest, OutputRequest, Plan, SequentialRun};
use crate::resume::{KeyBuilder, Resume};
use crate::rounding::{InputHessians, Rounding, TensorProof};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Inputs of rounding.
#[derive(Clone, Copy)]
pub(super) struct Knowledge<'k> {
    pub(super) imatrix: Option<&'k Path>,
    /// Directory of the input Hessians.
    pub(super) hessians: Option<&'k Path>,
}

/// The quantizer's job for some outputs.
pub(super) fn request(
    job: &Job<'_>,
    knowledge: Knowledge<'_>,
    outputs: Vec<OutputRequest>,
) -> quantize::Job {
    // Metadata store only the name of the importance matrix, which lies beside the outputs: no path
    // of this machine.
    let imatrix = |path: &Path| {
        let name = path.file_name();
        ImatrixRequest {
            path: path.to_owned(),
            shown: name.map(|name| name.to_string_lossy().into_owned()),
            ..ImatrixRequest::default()
        }
    };
    quantize::Job {
        outputs,
        imatrix: knowledge.imatrix.map(imatrix),
        hessians: knowledge.hessians.map(Path::to_owned),
        // The job has been accepted.
        allow_requantize: true,
        threads: job.options.engine.threads,
        ..quantize::Job::default()
    }
}

/// Contents of the importance matrix, for keys.
pub(super) fn content(imatrix: Option<&Path>) -> Result<Vec<u8>> {
    let Some(imatrix) = imatrix else {
        return Ok(Vec::new());
    };
    let io = |source| crate::format::Error::Io {
        path: imatrix.to_owned(),
        action: "read",
        source,
    };
    Ok(std::fs::read(imatrix).map_err(io)?)
}

/// Writes files from the results of earlier stages.
pub(super) struct Writer<'j> {
    job: &'j Job<'j>,
    calibrated: &'j Calibrated,
    sensitivities: &'j Sensitivities,
    numbers: Option<&'j Numbers>,
    /// Contents of the importance matrix.
    imatrix: Vec<u8>,
}

impl<'j> Writer<'j> {
    pub(super) fn new(
        job: &'j Job<'j>,
        numbers: Option<&'j Numbers>,
        calibrated: &'j Calibrated,
        sensitivities: &'j Sensitivities,
    ) -> Result<Writer<'j>> {
        Ok(Writer {
            job,
            calibrated,
            sensitivities,
            numbers,
            imatrix: content(calibrated.file.as_deref())?,
        })
    }

    /// Key of a file.
    pub(super) fn key(&self, file: &FilePlan) -> Result<Key> {
        let hessians = self.calibrated.hessian_key.as_ref();
        let output_hessians = self.sensitivities.output_key.as_ref();
        let key = KeyBuilder::new("make: file")
            .with_model(self.job.input)?
            .with("covariance", hessians.map_or(&[][..], |key| key))
            .with("gradients", output_hessians.map_or(&[][..], |key| key))
            .with(
                "propagated",
                &[self.job.options.rounding.is_sequential().into()],
            )
            .with(
                "sequential chunks",
                &self
                    .numbers
                    .map_or(0, |numbers| numbers.sequential_chunks)
                    .to_le_bytes(),
            )
            .with("recipe", file.recipe_text().as_bytes())
            .with("label", file.label.name().as_bytes())
            .with("imatrix", &self.imatrix);
        let key = self.job.lossless.with(key);
        Ok(key.key())
    }

    /// Key of a file's tuning, if files are tuned.
    pub(super) fn tuning_key(&self, file: &FilePlan) -> Result<Option<Key>> {
        Ok(tuning::key(self.job, &self.key(file)?))
    }

    /// True if an earlier run has written the file, and has not tuned it in another way than this one
    /// would.
    pub(super) fn is_written(&self, file: &FilePlan, work: &WorkDir) -> Result<bool> {
        let has_size = |path: &Path| path.metadata().is_ok_and(|m| m.len() == file.file_bytes);
        let name = file.file_name();
        let mark = tuning::mark_name(&name);
        let is_as_tuned = match self.tuning_key(file)? {
            _ if !work.has(&mark) => true,
            Some(key) => work.read::<serde_json::Value>(&mark, &key).is_some(),
            None => false,
        };
        Ok(has_size(&file.path) && is_as_tuned && work.is_marked(&name, &self.key(file)?))
    }

    /// Effect of error feedback on every file, per tensor.
    pub(super) fn proved(
        &self,
        allocation: &Allocation,
        work: &WorkDir,
    ) -> Result<Vec<Vec<TensorProof>>> {
        let proved = |file: &FilePlan| {
            let name = rounding_name(&file.file_name());
            Ok(work.read(&name, &self.key(file)?).unwrap_or_default())
        };
        allocation.files.iter().map(proved).collect()
    }

    /// Chunks for sequential rounding, if enabled.
    pub(super) fn chunks(&self) -> Result<Option<Vec<Vec<u32>>>> {
        let is_sequential = self.job.options.rounding.is_sequential();
        let Some(model) = self.job.model().filter(|_| is_sequential) else {
            return Ok(None);
        };
        let most = self
            .numbers
            .map_or(usize::MAX, |numbers| numbers.sequential_chunks);
        Ok(Some(model.texts.spread_chunks(most)?))
    }

    /// True if sequential rounding takes a part of the calibration text.
    fn is_part(&self) -> bool {
        let numbers = self.numbers;
        numbers.is_some_and(|numbers| numbers.sequential_tokens() < numbers.calibration)
    }

    /// Writes some files and outputs of presets in one pass over the model, after a sequential pass
    /// over `chunks`, if any, for each of the files.
    pub(super) fn write(
        &self,
        session: &Session<'_>,
        files: &[&FilePlan],
        presets: Vec<OutputRequest>,
        chunks: Option<&[Vec<u32>]>,
    ) -> Result<()> {
        let hessians = self.calibrated.hessians.as_ref();
        let rounding = hessians.map_or(Rounding::Reference, |_| self.job.options.rounding);
        let output = |file: &&FilePlan| OutputRequest {
            path: file.path.clone(),
            wishes: file.wishes(self.job.input.catalog()),
            rounding,
            lossless: true,
        };
        let outputs: Vec<_> = files.iter().map(output).chain(presets).collect();
        if outputs.is_empty() {
            return Ok(());
        }
        let knowledge = Knowledge {
            imatrix: self.calibrated.file.as_deref(),
            hessians: hessians.map(InputHessians::directory),
        };
        let mut plan = Plan::new(self.job.input, &request(self.job, knowledge, outputs))?;
        for (output, file) in plan.outputs.iter().zip(files) {
            check_recipe(output, file)?;
        }
        let (work, mut keys) = (session.work, Vec::new());
        for (output, file) in files.iter().enumerate() {
            let key = self.key(file)?;
            // Sequential rounding: each linear on the activations of the already rounded model.
            if let Some((chunks, model)) = chunks.zip(self.job.model()) {
                let name = file.file_name();
                let snapshot = work.snapshot(&name);
                let blocks = work.blocks(&name);
                let run = |resume: &Resume| -> quantize::Result<()> {
                    let with = SequentialRun {
                        engine: model.engine,
                        chunks,
                        is_part: self.is_part(),
                        output_hessians: self.sensitivities.output_hessians.as_ref(),
                        file: Some(&blocks),
                        resume: Some(resume),
                    };
                    plan.round_sequentially(output, &with, session.progress)
                };
                session.resumable(&snapshot, key, quantize::Error::is_final, run)?;
            }
            keys.push(key);
        }
        for file in files {
            tuning::forget(work, &file.file_name());
        }
        let proved = plan.run(session.progress)?;
        for ((proved, file), key) in proved.into_iter().zip(files).zip(&keys) {
            let name = file.file_name();
            work.write(&rounding_name(&name), key, &proved)?;
            work.mark(&name, key)?;
        }
        drop(plan);
        for file in files {
            // A failure is harmless: nothing refers to the tensors.
            let name = file.file_name();
            let _ = std::fs::remove_file(work.blocks(&name));
            let _ = std::fs::remove_file(work.snapshot(&name));
        }
        Ok(())
    }

    /// Cost of files with these recipes.
    fn cost(&self, files: &[&FilePlan]) -> Cost {
        let mut cost = Cost {
            written: files.iter().map(|file| file.file_bytes).sum(),
            ..Cost::default()
        };
        let feedback = self.numbers.and_then(|numbers| numbers.feedback.as_ref());
        let is_sequential = self.job.options.rounding.is_sequential();
        // Files of one pass share factors and read weights once.
        let passes: Vec<Vec<&FilePlan>> = match is_sequential {
            true => files.iter().map(|file| vec![*file]).collect(),
            false => vec![files.to_vec()],
        };
        for pass in passes.iter().filter(|pass| !pass.is_empty()) {
            let mut types: BTreeMap<&str, Vec<GgmlType>> = BTreeMap::new();
            for (name, t) in pass.iter().flat_map(|file| &file.recipe) {
                types.entry(name).or_default().push(*t);
            }
            let mut with_feedback: Vec<(&Tensor<'_>, usize)> = Vec::new();
            for tensor in &self.job.input.tensors {
                let types = types.remove(&*tensor.info.name).unwrap_or_default();
                let types = types.into_iter().filter(|t| *t != tensor.info.ggml_type);
                let rounding: Vec<_> = types
                    .map(|t| numbers::rounding(tensor, t, feedback))
                    .collect();
                let count = rounding.iter().filter(|r| r.feedback).count();
                if count > 0 {
                    with_feedback.push((tensor, count));
                }
                cost.rounding.extend(rounding);
            }
            cost.read += self
                .job
                .input
                .tensors
                .iter()
                .map(|t| t.info.bytes())
                .sum::<u64>();
            if let Some((feedback, numbers)) = feedback.zip(self.numbers) {
                cost += feedback.pass(&with_feedback, numbers);
            }
        }
        cost
    }
}

/// Name of the result with a file's error feedback, in the work directory.
fn rounding_name(file: &str) -> String {
    format!("{file}.rounding")
}

/// Checks that the quantizer will write the types of the recipe.
fn check_recipe(output: &quantize::PlannedOutput<'_>, file: &FilePlan) -> Result<()> {
    let recipe: BTreeMap<_, _> = file.recipe.iter().map(|(name, t)| (&**name, *t)).collect();
    for tensor in &output.tensors {
        match recipe.get(&*tensor.name) {
            Some(chosen) if *chosen != tensor.chosen.target => {
                return Err(Error::Recipe {
                    tensor: tensor.name.clone(),
                    chosen: *chosen,
                    planned: tensor.chosen.target,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The stage: files of an allocation, and those of presets for comparison.
pub(super) struct FilesStage<'j> {
    pub(super) name: &'static str,
    pub(super) writer: &'j Writer<'j>,
    pub(super) allocation: &'j Allocation,
    pub(super) comparison: Option<&'j Comparison>,
}

/// True if the files have been written, not only planned.
pub(super) type Written = bool;

impl<'j> FilesStage<'j> {
    fn missing(&self, work: &WorkDir) -> Result<Vec<&'j FilePlan>> {
        let mut missing = Vec::new();
        for file in &self.allocation.files {
            if !self.writer.is_written(file, work)? {
                missing.push(file);
            }
        }
        Ok(missing)
    }

    /// Cost of files with these recipes, with the memory of their passes.
    pub(super) fn cost_of(&self, files: &[&FilePlan]) -> Cost {
        let mut cost = self.writer.cost(files);
        let Some(numbers) = self.writer.numbers else {
            return cost;
        };
        let Numbers { width, largest, .. } = *numbers;
        let Some(feedback) = &numbers.feedback else {
            return cost;
        };
        let tokens = numbers.sequential_tokens();
        let sequential = self.writer.job.options.rounding.is_sequential() && !files.is_empty();
        let mut memory = Memory {
            feedback: feedback.factor_bytes(),
            ..Memory::default()
        };
        if sequential {
            // The residual streams of both models, and the inputs of the widest linears.
            memory.activations = 2.0 * tokens * (width + feedback.widest as f64) * 4.0;
            memory.work = 2.0 * largest * 4.0 + numbers.working(2.0);
            let largest_file = files.iter().map(|file| file.file_bytes).max().unwrap_or(0);
            memory.work += numbers.rounded_experts(largest_file as f64);
            cost.scratch = 2 * numbers.snapshots(tokens) + largest_file;
        }
        numbers.with_memory(cost, memory)
    }

    fn has_presets(&self) -> bool {
        let comparison = self.comparison;
        comparison.is_none_or(|comparison| comparison.missing().next().is_none())
    }
}

impl Stage for FilesStage<'_> {
    type Output = Written;

    fn name(&self) -> &'static str {
        self.name
    }

    fn load(&self, work: &WorkDir) -> Result<Option<Written>> {
        let is_complete =
            self.allocation.open.is_empty() && self.has_presets() && self.missing(work)?.is_empty();
        Ok(is_complete.then_some(true))
    }

    fn cost(&self, work: &WorkDir) -> Result<Cost> {
        let medium = self.allocation.medium();
        let mut files = self.missing(work)?;
        files.extend((0..self.allocation.open_files()).map(|_| &medium));
        let mut cost = self.cost_of(&files);
        // Presets are rounded as the reference does, in one pass.
        for compared in self.comparison.iter().flat_map(|c| c.missing()) {
            let recipe = compared.preset.default_type();
            let input = self.writer.job.input;
            let matrices = input.tensors.iter();
            let matrices = matrices.filter(|tensor| input.entry(tensor).is_matrix());
            let rounding = matrices.map(|t| numbers::rounding(t, recipe, None));
            cost.rounding.extend(rounding);
        }
        Ok(cost)
    }

    fn cuts(&self) -> Vec<Box<dyn Cut + '_>> {
        vec![Box::new(Writing(self))]
    }

    fn run(&self, session: &Session<'_>) -> Result<Written> {
        let missing = self.missing(session.work)?;
        let presets = self.comparison.map_or(Vec::new(), Comparison::outputs);
        match self.writer.chunks()? {
            Some(chunks) => {
                for file in missing {
                    self.writer
                        .write(session, &[file], Vec::new(), Some(&chunks))?;
                }
                self.writer.write(session, &[], presets, None)?;
            }
            None => self.writer.write(session, &missing, presets, None)?,
        }
        session.work.remove_abandoned();
        Ok(true)
    }
}

impl Foreseeable for FilesStage<'_> {
    fn expected(&self, _: &WorkDir) -> Result<Written> {
        Ok(false)
    }
}

/// Paths of the files of an allocation.
pub(super) fn paths(allocation: &Allocation) -> Vec<PathBuf> {
    let paths = allocation.files.iter().map(|file| file.path.clone());
    paths.collect()
}

/// Removes files that were replaced by others.
pub(super) fn remove_replaced(before: &[PathBuf], allocation: &Allocation) {
    let files = paths(allocation);
    for path in before.iter().filter(|path| !files.contains(path)) {
        // A failure is harmless: nothing refers to the file.
        let _ = std::fs::remove_file(path);
    }
}
