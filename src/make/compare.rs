//! llama.cpp's presets, measured as our files are: quantized in the same pass, compared in the same
//! engine on the same text, and thrown away.

use super::choice::Choices;
use super::proof::Subject;
use super::{Job, Kept, Result, texts};
use crate::format;
use crate::input::Input;
use crate::plan::file_type::FileType;
use crate::plan::recipe::Wishes;
use crate::quantize::OutputRequest;
use crate::resume;
use crate::rounding::Rounding;
use std::path::{Path, PathBuf};

/// The presets of a run that are compared with.
pub(super) struct Compared {
    pub(super) presets: Vec<(FileType, Subject)>,
    /// Those that no earlier run has measured are written here.
    folder: Folder,
    missing: Vec<FileType>,
}

/// A folder that is gone when this is.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is removed by the next run.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Compared {
    /// Notes hear of presets that this model cannot have.
    pub(super) fn new(
        input: &Input<'_>,
        job: &Job,
        choices: &Choices,
        windows: &texts::Cut,
        imatrix: &Path,
        kept: &Kept,
        notes: &mut Vec<String>,
    ) -> Result<Compared> {
        // A killed run may have left it behind.
        let folder = Folder(kept.path("presets"));
        let _ = std::fs::remove_dir_all(&folder.0);
        let mut compared = Compared {
            presets: Vec::new(),
            folder,
            missing: Vec::new(),
        };
        if job.compare.is_empty() {
            return Ok(compared);
        }
        let io = |path: &Path, action| {
            let path = path.to_owned();
            move |source| format::Error::Io {
                path,
                action,
                source,
            }
        };
        let imatrix = std::fs::read(imatrix).map_err(io(imatrix, "read"))?;
        for preset in &job.compare {
            if !choices.presets.iter().any(|p| p.file_type == *preset) {
                notes.push(format!(
                    "this model cannot be written as {} with this importance matrix",
                    preset.name()
                ));
                continue;
            }
            let key = resume::KeyBuilder::new("make: preset")
                .with_model(input)?
                .with("imatrix", &imatrix);
            let key = key
                .with("preset", preset.name().as_bytes())
                .with("tokens", windows.evaluation_bytes())
                .key();
            let path = compared.folder.0.join(format!("{}.gguf", preset.name()));
            let subject = Subject {
                path,
                name: format!("preset-{}.measured", preset.name()),
                key,
            };
            if !subject.is_known(kept) {
                compared.missing.push(*preset);
            }
            compared.presets.push((*preset, subject));
        }
        if !compared.missing.is_empty() {
            let folder = &compared.folder.0;
            std::fs::create_dir_all(folder).map_err(io(folder, "create"))?;
        }
        Ok(compared)
    }

    /// What is to be written for it.
    pub(super) fn outputs(&self) -> Vec<OutputRequest> {
        let of = |preset: &FileType| OutputRequest {
            path: self.folder.0.join(format!("{}.gguf", preset.name())),
            wishes: Wishes {
                file_type: Some(*preset),
                ..Wishes::default()
            },
            // As llama-quantize writes it.
            rounding: Rounding::Reference,
        };
        self.missing.iter().map(of).collect()
    }
}
