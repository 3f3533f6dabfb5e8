//! Writing and measuring of files, repeated where a measurement changes their recipes.
//!
//! ```text
//! files         of all recipes, and presets for comparison
//! tuning        optional: of the files, on the calibration text
//! proof         their divergence on the evaluation text
//! corrected     files that missed their divergence target, at most twice
//! refinement    optional: near-ties, measured end to end on calibration text
//! ```

use super::allocation::Allocation;
use super::calibration::Calibrated;
use super::files::{self, FilesStage, Writer};
use super::job::{Job, Model};
use super::numbers::Numbers;
use super::presets::Comparison;
use super::proof::{Meter, Proof, Proven};
use super::refinement::Refinement;
use super::stage::Walk;
use super::tuning::TuneStage;
use super::{Result, targets};
use crate::report::data::Mean;

/// The model in the engine of this program.
#[derive(Clone, Copy)]
pub(super) struct Native<'p> {
    pub(super) model: &'p Model<'p>,
    pub(super) numbers: &'p Numbers,
    /// Maximum number of swaps to measure for each file.
    pub(super) refine: usize,
}

/// Writes and measures files.
pub(super) struct Prover<'p> {
    pub(super) job: &'p Job<'p>,
    pub(super) meter: &'p dyn Meter,
    pub(super) calibrated: &'p Calibrated,
    pub(super) writer: &'p Writer<'p>,
    /// For a refinement.
    pub(super) native: Option<Native<'p>>,
}

impl Prover<'_> {
    /// Writes and measures the files, and repeats that for files whose recipes change; `None` in a
    /// plan with files that are not measured yet.
    pub(super) fn prove(
        &self,
        walk: &mut Walk<'_>,
        allocation: &mut Allocation,
        notes: &mut Vec<String>,
    ) -> Result<Option<Proven>> {
        let work = walk.work();
        let imatrix = self.calibrated.file.as_deref();
        // Shards make only the files: the process that writes the report makes the presets.
        let comparison = match walk {
            Walk::Part { .. } => None,
            Walk::Run { .. } | Walk::Plan { .. } => Some(Comparison::new(
                self.job, self.meter, allocation, imatrix, work,
            )?),
        };
        let comparison = comparison.as_ref();
        notes.extend(comparison.iter().flat_map(|c| c.notes.iter().cloned()));
        let folder = match (comparison, walk.session()) {
            (Some(comparison), Some(_)) => Some(comparison.make_folder()?),
            _ => None,
        };
        let names = ["files", "tuning", "proof"];
        let Some(mut proven) = self.pass(walk, names, allocation, comparison)? else {
            return Ok(None);
        };
        drop(folder);
        let settled =
            |file: &super::allocation::FilePlan| allocation.adjusted.contains(&file.budget);
        let settled: Vec<bool> = allocation.files.iter().map(settled).collect();
        if !self.correct(walk, allocation, &settled, &mut proven)?
            || !self.refine(walk, allocation, &settled, &mut proven)?
        {
            return Ok(None);
        }
        notes.extend(allocation.adjusted.notes());
        for (file, divergence) in allocation.files.iter().zip(&proven.files) {
            let kld = divergence.measured.mean.value();
            if file.target.is_some_and(|target| kld > target) {
                let unit = match divergence.measured.mean {
                    Mean::Kld(_) => " nats",
                    Mean::CosineDistance(_) => "",
                };
                notes.push(format!("{}: measured {kld:.6}{unit}", file.budget));
            }
        }
        Ok(Some(proven))
    }

    /// Writes and measures missing files.
    fn pass(
        &self,
        walk: &mut Walk<'_>,
        [files, tuning, proof]: [&'static str; 3],
        allocation: &Allocation,
        comparison: Option<&Comparison>,
    ) -> Result<Option<Proven>> {
        let mut are_written = walk.stage(&FilesStage {
            name: files,
            writer: self.writer,
            allocation,
            comparison,
        })?;
        let options = self.job.options.files();
        let options = options.and_then(|files| files.tune.as_ref());
        let mut tuned = Vec::new();
        if let Some((native, options)) = self.native.zip(options) {
            tuned = walk.stage(&TuneStage {
                name: tuning,
                job: self.job,
                model: native.model,
                numbers: native.numbers,
                options,
                writer: self.writer,
                allocation,
                are_written,
            })?;
            are_written &= tuned.len() == allocation.files.len();
        }
        let proven = walk.last(&Proof {
            name: proof,
            job: self.job,
            meter: self.meter,
            allocation,
            comparison,
            are_written,
        })?;
        Ok(proven.map(|proven| Proven { tuned, ..proven }))
    }

    /// Replaces, writes and measures files with changed recipes. Returns true if the walk
    /// continues.
    fn again(
        &self,
        walk: &mut Walk<'_>,
        names: [&'static str; 3],
        allocation: &Allocation,
        proven: &mut Proven,
    ) -> Result<bool> {
        let Some(again) = self.pass(walk, names, allocation, None)? else {
            return Ok(false);
        };
        (proven.files, proven.tuned) = (again.files, again.tuned);
        Ok(true)
    }

    /// Corrects files that missed their divergence target.
    fn correct(
        &self,
        walk: &mut Walk<'_>,
        allocation: &mut Allocation,
        settled: &[bool],
        proven: &mut Proven,
    ) -> Result<bool> {
        for _ in 0..targets::ROUNDS {
            let measured: Vec<f64> = proven
                .files
                .iter()
                .map(|d| d.measured.mean.value())
                .collect();
            let before = files::paths(allocation);
            let changed = targets::correct(allocation, &measured, settled);
            if changed.is_empty() {
                break;
            }
            if !self.again(
                walk,
                ["corrected files", "corrected tuning", "corrected proof"],
                allocation,
                proven,
            )? {
                return Ok(false);
            }
            if let Some(session) = walk.session() {
                files::remove_replaced(&before, allocation);
                for index in changed {
                    let Allocation {
                        adjusted, files, ..
                    } = allocation;
                    adjusted.store(&files[index], None, session.work)?;
                }
            }
        }
        Ok(true)
    }

    /// Refines files on request.
    fn refine(
        &self,
        walk: &mut Walk<'_>,
        allocation: &mut Allocation,
        settled: &[bool],
        proven: &mut Proven,
    ) -> Result<bool> {
        let Some(native) = self.native.filter(|native| native.refine > 0) else {
            return Ok(true);
        };
        let files = (0..settled.len()).filter(|i| !settled[*i]);
        let files: Vec<_> = files.collect();
        let before = files::paths(allocation);
        let mut continues = true;
        for file in &files {
            let refined = walk.last(&Refinement {
                job: self.job,
                model: native.model,
                numbers: native.numbers,
                calibrated: self.calibrated,
                allocation,
                file: *file,
                most: native.refine,
            })?;
            match (refined, walk.session()) {
                (Some(Some(refined)), Some(session)) => {
                    let note = refined.note(&allocation.files[*file].budget);
                    allocation.set(*file, &refined.choices);
                    let Allocation {
                        adjusted, files, ..
                    } = &mut *allocation;
                    adjusted.store(&files[*file], Some(note), session.work)?;
                }
                // Without a text for one file, there is none for the others either.
                (Some(_), _) => break,
                (None, _) => continues = false,
            }
        }
        if files.is_empty() || !continues {
            return Ok(continues);
        }
        let names = ["refined files", "refined tuning", "refined proof"];
        let continues = self.again(walk, names, allocation, proven)?;
        if walk.session().is_some() {
            files::remove_replaced(&before, allocation);
        }
        Ok(continues)
    }
}
