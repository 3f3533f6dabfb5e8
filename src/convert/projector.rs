//! Projectors: the plan of a file, and a written one.

use super::fields;
use super::general::{General, ParameterCount};
use super::outputs::{self, Conversion, Fault, Outputs};
use super::plan::{check_defaults, check_endian, output};
use super::{Checkpoint, Error, Job, Plan, Result, range};
use crate::arch::{Keys, Nextn};
use crate::format;
use crate::format::gguf::{Entries, Files, Metadata, Model, QUANTIZATION_VERSION, Value, keys};
use std::path::{Path, PathBuf};

/// The value of `general.type`, and the part of a file's name by which llama.cpp finds a projector beside a
/// model (`common/download.cpp`).
const PROJECTOR: &str = "mmproj";
/// The architecture of projectors.
const CLIP: &str = "clip";

/// The GGUF of a projector.
#[derive(Clone, Debug)]
pub struct ProjectorFile {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// True with an encoder of images.
    pub images: bool,
    /// True with an encoder of audio.
    pub audio: bool,
    /// Length of the text model's embeddings, where it is recorded.
    pub width: Option<u64>,
}

impl ProjectorFile {
    /// Reads the header of a projector.
    ///
    /// # Errors
    /// An unreadable or split file, and one that is no projector.
    pub fn open(path: &Path) -> format::Result<ProjectorFile> {
        let files = Files::open(path)?;
        let model = Model::parse(&files)?;
        let bad = |what: &str| format::Error::Bad {
            path: path.to_owned(),
            what: what.into(),
        };
        if model.architecture() != Some(CLIP) {
            return Err(bad(
                "this is not a projector; `quantier convert MODEL --mmproj` writes one",
            ));
        }
        let [map] = files.maps() else {
            return Err(bad(
                "a projector is one file; `quantier merge` makes one of several",
            ));
        };
        let metadata = model.metadata();
        let has = |key: &str| matches!(metadata.get(key), Some(Value::Bool(true)));
        let width = ["clip.vision.projection_dim", "clip.audio.projection_dim"];
        let mut width = width.iter().filter_map(|key| metadata.get(key)?.as_u64());
        Ok(ProjectorFile {
            path: path.to_owned(),
            bytes: map.bytes().len() as u64,
            images: has("clip.has_vision_encoder"),
            audio: has("clip.has_audio_encoder"),
            width: width.next(),
        })
    }

    /// What the model reads through it, in words.
    pub(crate) fn reads(&self) -> &'static str {
        match (self.images, self.audio) {
            (_, false) => "images",
            (false, true) => "audio",
            (true, true) => "images and audio",
        }
    }

    /// A file name by which llama.cpp finds it beside a model.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        match name.contains(PROJECTOR) {
            true => name.into_owned(),
            false => format!("{PROJECTOR}-{name}"),
        }
    }
}

impl<'a> Plan<'a> {
    /// With this path of the only file.
    pub(crate) fn at(mut self, path: PathBuf) -> Plan<'a> {
        self.files.truncate(1);
        self.files
            .iter_mut()
            .for_each(|file| file.0.clone_from(&path));
        self
    }

    /// Plans the conversion of a projector. Options of a job that are for text models alone must be
    /// at their defaults.
    ///
    /// # Errors
    /// [`Error::Impossible`] with all reasons at once.
    pub fn of_projector(checkpoint: &'a Checkpoint, job: &Job) -> Result<Plan<'a>> {
        let why = "is for text models, and --mmproj writes the projector";
        check_defaults(job, &[], why)?;
        let in_config = |what| crate::format::Error::Bad {
            path: checkpoint.config_path(),
            what,
        };
        let Some(projector) = checkpoint.projector else {
            return Err(Error::impossible(
                "the checkpoint was not opened as a projector",
            ));
        };
        let architecture = &projector.architecture;
        checkpoint.check_has_weights()?;
        let config = checkpoint.config.clone();
        let config = &fields::complete(config, checkpoint, architecture, false)?;
        let file_type = job.out_type.file_type(checkpoint.halves);
        let mut keys = Keys::new(architecture.name, file_type.id());
        let conversion = Conversion {
            checkpoint,
            config,
            architecture,
            file_type,
            nextn: Nextn::Kept,
            fp8_as_q8: false,
            widen: job.widen,
        };
        let planned = outputs::plan(conversion, &mut keys);
        let Outputs { tensors, .. } = planned.map_err(|fault| match fault {
            Fault::Config(what) => in_config(what).into(),
            Fault::Tensors(problems) => Error::Impossible(problems),
        })?;
        check_endian(&tensors, job.endian)?;
        for parameter in architecture.parameters.iter().flat_map(|list| list.iter()) {
            parameter.apply(config, &mut keys).map_err(in_config)?;
        }
        let general = General::load(
            &checkpoint.dir,
            job.metadata.as_deref(),
            job.model_name.as_deref(),
            &ParameterCount::of(&tensors),
        )?;
        let mut entries = Entries::new();
        entries.set(keys::ARCHITECTURE, Value::str(architecture.name));
        entries.set(keys::TYPE, Value::str(PROJECTOR));
        entries.extend(general.entries()?);
        let own = keys.into_entries().into_iter();
        own.for_each(|(key, value)| entries.set(key, value));
        entries.set(keys::QUANTIZATION_VERSION, Value::U32(QUANTIZATION_VERSION));
        let mut metadata = Metadata::new();
        let entries = entries.into_iter();
        entries.for_each(|(key, value)| metadata.set(key, value));
        let name = || general.prefixed_file_name(PROJECTOR, file_type.name());
        let path = output(&job.output, file_type, name)?;
        Ok(Plan {
            checkpoint,
            files: vec![(path, metadata)],
            tensors,
            file_type,
            architecture,
            notes: checkpoint.notes.clone(),
            endian: job.endian,
            vocab_only: false,
            check: job.check,
            threads: job.threads,
            too_large: range::Seen::default(),
        })
    }
}
