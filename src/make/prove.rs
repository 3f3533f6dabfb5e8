//! Files and their proof: written, measured, and written again where the measurement says so.
//!
//! ```text
//! files         those of all recipes, and presets to compare with, from one pass over the model
//! proof         their divergence on the evaluation text
//! wishes        where a file was to have so many nats and has others: chosen anew, at most twice
//! refinement    where it is asked for: near-ties, measured end to end on calibration text
//! ```

use super::choice::Choices;
use super::files::Writing;
use super::proof::{self, Found, Subject};
use super::{Opened, Result, Stages, adjust, compare, refine, texts};
use crate::format::imatrix::Imatrix;
use crate::plan::file_type::FileType;
use crate::sensitivity::{ModelKnowledge, Scores};
use std::path::PathBuf;

/// What it takes to write files and measure them.
pub(super) struct Prover<'p> {
    pub(super) model: Opened<'p>,
    pub(super) windows: &'p texts::Cut,
    pub(super) imatrix: &'p Imatrix,
    pub(super) writing: Writing<'p>,
}

/// What was measured.
pub(super) struct Proven {
    /// The files, in the order of the budgets.
    pub(super) files: Vec<PathBuf>,
    /// What was measured of each.
    pub(super) found: Vec<Found>,
    /// The same of presets.
    pub(super) presets: Vec<(FileType, Found)>,
}

impl Prover<'_> {
    /// Writes and measures the files, and those again whose recipes the measurement changes.
    pub(super) fn prove(
        &self,
        choices: &mut Choices,
        scores: &Scores,
        stages: &mut Stages,
        notes: &mut Vec<String>,
    ) -> Result<Proven> {
        let Prover {
            model,
            windows,
            imatrix,
            writing,
        } = *self;
        let Writing {
            job,
            feedback,
            kept,
            progress,
            ..
        } = writing;
        let key = &adjust::key(model.input, job, windows, scores)?;
        let mut adjusted = adjust::apply(job, choices, kept, key);
        let compared = compare::Compared::new(
            model.input,
            job,
            choices,
            windows,
            writing.imatrix,
            kept,
            notes,
        )?;
        let mut files = stages.run("files", || writing.write(choices, compared.outputs()))?;
        let (mut found, presets) = stages.run("proof", || {
            let presets: Vec<_> = compared
                .presets
                .iter()
                .map(|(_, subject)| subject.clone())
                .collect();
            let mut found = self.measure(&files, &presets)?;
            let presets = found.split_off(files.len());
            Ok((
                found,
                compared
                    .presets
                    .iter()
                    .map(|(preset, _)| *preset)
                    .zip(presets)
                    .collect(),
            ))
        })?;
        drop(compared);
        let done: Vec<_> = choices
            .chosen
            .iter()
            .map(|c| adjusted.contains_key(&c.budget))
            .collect();
        for _ in 0..adjust::ROUNDS {
            let nats: Vec<f64> = found.iter().map(|found| found.measured.kld).collect();
            let changed = adjust::closer(job, choices, &nats, &done);
            if changed.is_empty() {
                break;
            }
            (files, found) = stages.run("nearer to the wish", || self.again(choices, &files))?;
            for index in changed {
                adjust::keep(&mut adjusted, &choices.chosen[index], None, kept, key)?;
            }
        }
        let open: Vec<_> = (0..choices.chosen.len())
            .filter(|i| !done[*i] && job.refine > 0)
            .collect();
        if !open.is_empty() {
            stages.run("refinement", || {
                let chunks = windows.other_chunks(job.score_chunks)?;
                if chunks.len() < 2 {
                    notes.push(
                        "--refine has no text: every chunk of the calibration text was judged on"
                            .into(),
                    );
                    return Ok(());
                }
                let knowledge = ModelKnowledge {
                    input: model.input,
                    imatrix,
                    hessians: feedback,
                };
                for index in open {
                    let recipe = (&*choices.chosen[index].solution.choices, &*files[index]);
                    let refined = refine::refine(
                        model,
                        job,
                        &choices.problem,
                        recipe,
                        &chunks,
                        &knowledge,
                        progress,
                    )?;
                    let note = refined.note(&choices.chosen[index].budget);
                    choices.set(job, index, &refined.choices);
                    adjust::keep(&mut adjusted, &choices.chosen[index], Some(note), kept, key)?;
                }
                (files, found) = self.again(choices, &files)?;
                Ok(())
            })?;
        }
        notes.extend(
            adjusted
                .values()
                .filter_map(|adjusted| adjusted.note.clone()),
        );
        for (chosen, found) in choices.chosen.iter().zip(&found) {
            if chosen.wish.is_some_and(|wish| found.measured.kld > wish) {
                notes.push(format!(
                    "{}: {:.6} nats were measured",
                    chosen.budget, found.measured.kld
                ));
            }
        }
        Ok(Proven {
            files,
            found,
            presets,
        })
    }

    /// Writes and measures what has changed, and removes the files that were there in its place.
    fn again(&self, choices: &Choices, before: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<Found>)> {
        let files = self.writing.write(choices, Vec::new())?;
        for old in before.iter().filter(|old| !files.contains(old)) {
            // Whoever cannot remove it can leave it: nothing refers to it any more.
            let _ = std::fs::remove_file(old);
        }
        let found = self.measure(&files, &[])?;
        Ok((files, found))
    }

    /// What is measured of the files, then of the presets.
    fn measure(&self, files: &[PathBuf], presets: &[Subject]) -> Result<Vec<Found>> {
        let Writing {
            job,
            kept,
            progress,
            ..
        } = self.writing;
        let subjects = files
            .iter()
            .map(|path| Subject::of_file(self.model.input, self.windows, path));
        let mut subjects = subjects.collect::<Result<Vec<_>>>()?;
        subjects.extend_from_slice(presets);
        proof::measure(self.model, job, self.windows, &subjects, kept, progress)
    }
}
