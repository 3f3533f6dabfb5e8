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
    /// True if most bytes have the types of the preset rather than their fallbacks for odd rows.
    pub(super) keeps_types: bool,
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
        let kept = output
            .tensors
            .iter()
            .filter(|t| t.chosen.target == t.chosen.wanted);
        let kept_bytes: u64 = kept.map(|t| padded(t.bytes_after)).sum();
        let ours = || output.file_bytes_rounded(job.options.rounding) - tensor_bytes;
        Some(Preset {
            file_type,
            file_bytes: output.file_bytes(),
            tensor_bytes,
            header_bytes: *header.get_or_init(ours),
            keeps_types: 2 * kept_bytes >= tensor_bytes,
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

/// The common preset nearest to a file: in size, or in the bits of its type where the nearest in size consists of
/// fallbacks, which several presets share. Some readers know only these names.
pub(super) fn label(presets: &[Preset], file_bytes: u64, bpw: f64) -> FileType {
    let usual = || presets.iter().filter(|preset| preset.file_type.is_usual());
    let distance = |preset: &&Preset| preset.file_bytes.abs_diff(file_bytes);
    let bits = |preset: &&Preset| (preset.file_type.default_type().bpw() - bpw).abs();
    let by_size = usual().min_by_key(distance);
    let by_bits = || {
        usual().min_by(|a, b| {
            bits(a)
                .total_cmp(&bits(b))
                .then(distance(a).cmp(&distance(b)))
        })
    };
    let nearest = by_size.filter(|preset| preset.keeps_types).or_else(by_bits);
    nearest.map_or(FileType::Q4_K_M, |preset| preset.file_type)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallbacks_lend_no_name() {
        let preset = |file_type, file_bytes, keeps_types| Preset {
            file_type,
            file_bytes,
            tensor_bytes: file_bytes,
            header_bytes: 0,
            keeps_types,
            nats: None,
        };
        use FileType as F;
        let whole = [
            preset(F::IQ2_XXS, 200, true),
            preset(F::Q4_K_S, 430, true),
            preset(F::Q4_K_M, 450, true),
            preset(F::Q8_0, 850, true),
        ];
        assert_eq!(label(&whole, 310, 3.1), F::IQ2_XXS);
        assert_eq!(label(&whole, 445, 4.45), F::Q4_K_M);
        // Rows that fit no K-quant: IQ2_XXS is a file of 4.5 bits, like Q4_K_S.
        let odd = [
            preset(F::IQ2_XXS, 450, false),
            preset(F::Q4_K_S, 500, false),
            preset(F::Q4_K_M, 540, false),
            preset(F::Q8_0, 850, true),
        ];
        assert_eq!(label(&odd, 450, 4.5), F::Q4_K_S);
        assert_eq!(label(&odd, 530, 5.3), F::Q4_K_M);
        assert_eq!(label(&odd, 840, 8.4), F::Q8_0);
        assert_eq!(label(&[], 1, 1.0), F::Q4_K_M);
    }
}
