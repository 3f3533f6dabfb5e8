//! llama.cpp's presets: their sizes on this model, and some of them measured like our files:
//! quantized in the same pass, compared in the same engine on the same text, then deleted.

use super::allocation::{Allocation, padding};
use super::files::{Knowledge, request};
use super::job::Job;
use super::options::Compare;
use super::proof::{Meter, Subject};
use super::workdir::WorkDir;
use super::{Result, files};
use crate::format;
use crate::format::types::GgmlType;
use crate::plan::file_type::{CHOICES, FileType};
use crate::plan::recipe::Wishes;
use crate::quantize::{self, OutputRequest};
use crate::report::compare::{Neighbours, neighbours};
use crate::resume::KeyBuilder;
use crate::rounding::Rounding;
use crate::sensitivity::{Measure, Scores};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A preset of llama.cpp on this model.
pub(super) struct Preset {
    pub(super) file_type: FileType,
    /// Size of the whole file in bytes.
    pub(super) file_bytes: u64,
    /// Size of the tensors in bytes, each padded to the file's alignment.
    pub(super) tensor_bytes: u64,
    /// Size before the tensors of one of our files with the same types.
    pub(super) header_bytes: u64,
    /// Predicted divergence of its recipe; `None` if a tensor's type has no sensitivity.
    pub(super) nats: Option<f64>,
}

/// The file of a preset, rounded as llama-quantize does.
fn output(path: PathBuf, preset: FileType) -> OutputRequest {
    OutputRequest {
        path,
        wishes: Wishes {
            file_type: Some(preset),
            ..Wishes::default()
        },
        rounding: Rounding::Reference,
        lossless: false,
    }
}

/// Possible presets for this model with this importance matrix, by rising size.
pub(super) fn presets(job: &Job<'_>, scores: &Scores, imatrix: Option<&Path>) -> Vec<Preset> {
    let padded = padding(job.input);
    let nats: BTreeMap<(&str, GgmlType), f64> = scores
        .tensors
        .iter()
        .flat_map(|t| {
            t.choices
                .iter()
                .map(|c| ((&*t.name, c.ggml_type), c.plain()))
        })
        .collect();
    // Independent of the types, hence equal for all presets.
    let header = OnceCell::new();
    let knowledge = Knowledge {
        imatrix,
        hessians: None,
    };
    let planned = |file_type: FileType| {
        let path = job.options.directory.join("preset");
        let request = request(job, knowledge, vec![output(path, file_type)]);
        let plan = quantize::Plan::new(job.input, &request).ok()?;
        let output = plan.outputs.first()?;
        if imatrix.is_some() && output.imatrix_missing().next().is_some() {
            return None;
        }
        let tensors = output
            .tensors
            .iter()
            .filter(|t| scores.tensors.iter().any(|s| s.name == t.name));
        let predicted = tensors
            .map(|t| nats.get(&(&*t.name, t.chosen.target)).copied())
            .sum::<Option<f64>>();
        let tensor_bytes = output.tensors.iter().map(|t| padded(t.bytes_after)).sum();
        let ours = || output.file_bytes_rounded(job.options.rounding) - tensor_bytes;
        Some(Preset {
            file_type,
            file_bytes: output.file_bytes(),
            tensor_bytes,
            header_bytes: *header.get_or_init(ours),
            nats: predicted.filter(|_| scores.measure != Measure::Imatrix),
        })
    };
    let all = CHOICES
        .iter()
        .filter(|choice| !choice.is_alias)
        .filter_map(|choice| choice.file_type);
    let mut presets: Vec<_> = all
        .filter(|t| t.default_type().is_quantized())
        .filter_map(planned)
        .collect();
    presets.sort_by_key(|preset| preset.file_bytes);
    presets
}

/// The presets that the report compares the files with.
fn nearest(allocation: &Allocation) -> Vec<FileType> {
    let presets = &allocation.presets;
    let are_predicted = presets.iter().all(|preset| preset.nats.is_some());
    // Without predictions, a larger preset is taken to be a better one.
    let nats = |preset: &Preset| match preset.nats.filter(|_| are_predicted) {
        Some(nats) => nats,
        None => 1.0 / preset.file_bytes as f64,
    };
    let sizes: Vec<(u64, f64)> = presets.iter().map(|p| (p.file_bytes, nats(p))).collect();
    let files = allocation.files.iter();
    let found = files.filter_map(|file| neighbours(&sizes, file.file_bytes));
    let mut found: Vec<usize> = found
        .flat_map(|Neighbours { preset, next }| [Some(preset), next])
        .flatten()
        .collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().map(|at| presets[at].file_type).collect()
}

/// Presets to compare with.
pub(super) struct Comparison {
    pub(super) presets: Vec<Compared>,
    folder: PathBuf,
    /// Notes on presets that are impossible for this model.
    pub(super) notes: Vec<String>,
}

/// A preset to compare with.
pub(super) struct Compared {
    pub(super) preset: FileType,
    pub(super) subject: Subject,
    /// True if no earlier run has measured it.
    pub(super) is_missing: bool,
}

/// Folder of the presets' files, removed on drop.
pub(super) struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // A failure is harmless: the next run tries again.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Comparison {
    pub(super) fn new(
        job: &Job<'_>,
        meter: &dyn Meter,
        allocation: &Allocation,
        imatrix: Option<&Path>,
        work: &WorkDir,
    ) -> Result<Comparison> {
        let mut comparison = Comparison {
            presets: Vec::new(),
            folder: work.path("presets"),
            notes: Vec::new(),
        };
        let compare = match job.options.files().map(|files| &files.compare) {
            None => return Ok(comparison),
            Some(Compare::Nearest) => nearest(allocation),
            Some(Compare::Listed(presets)) => presets.clone(),
        };
        if compare.is_empty() {
            return Ok(comparison);
        }
        let imatrix = files::content(imatrix)?;
        for preset in &compare {
            if !allocation.presets.iter().any(|p| p.file_type == *preset) {
                comparison.notes.push(format!(
                    "this model cannot be written as {} with this importance matrix",
                    preset.name()
                ));
                continue;
            }
            let key = KeyBuilder::new("make: preset")
                .with_model(job.input)?
                .with("imatrix", &imatrix)
                .with("preset", preset.name().as_bytes());
            let key = meter.key(key);
            let path = comparison.folder.join(format!("{}.gguf", preset.name()));
            let name = format!("preset-{}.measured", preset.name());
            let subject = Subject::new(path, name, key.key());
            comparison.presets.push(Compared {
                preset: *preset,
                is_missing: subject.load(work).is_none(),
                subject,
            });
        }
        Ok(comparison)
    }

    /// Presets to write.
    pub(super) fn missing(&self) -> impl Iterator<Item = &Compared> {
        self.presets.iter().filter(|compared| compared.is_missing)
    }

    /// Outputs of the missing presets, for the quantizer.
    pub(super) fn outputs(&self) -> Vec<OutputRequest> {
        self.missing()
            .map(|compared| output(compared.subject.path.clone(), compared.preset))
            .collect()
    }

    /// Creates an empty folder for the presets' files, if there are any.
    pub(super) fn make_folder(&self) -> Result<Folder> {
        let folder = Folder(self.folder.clone());
        // A killed run may have left files.
        let _ = std::fs::remove_dir_all(&folder.0);
        if self.missing().next().is_some() {
            std::fs::create_dir_all(&folder.0).map_err(|source| format::Error::Io {
                path: folder.0.clone(),
                action: "create",
                source,
            })?;
        }
        Ok(folder)
    }
}
