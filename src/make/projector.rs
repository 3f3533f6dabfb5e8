//! The projector beside the files: the encoders of images and of audio, which llama.cpp takes as
//! `--mmproj`.

use super::cost::Cost;
use super::stage::{Foreseeable, Session, Stage};
use super::workdir::WorkDir;
use super::{Job, Result};
use crate::convert::{self, Checkpoint, OutType, Plan, ProjectorFile};
use crate::format::gguf::Files;
use crate::format::map::Map;
use crate::format::output::Output;
use crate::format::snapshot::Key;
use crate::input::{self, Source};
use crate::report::data;
use crate::resume::KeyBuilder;
use std::path::{Path, PathBuf};

/// Name of the result in the work directory.
const NAME: &str = "projector";

/// The opened source of a projector.
pub enum ProjectorSource {
    /// The encoders of a checkpoint.
    Checkpoint(Box<Checkpoint>),
    /// A GGUF.
    File(ProjectorFile),
}

impl ProjectorSource {
    /// The projector of a model's own checkpoint; None for GGUFs and for models without encoders.
    ///
    /// # Errors
    /// Encoders that cannot be converted.
    pub fn own(model: &Source) -> convert::Result<Option<ProjectorSource>> {
        let Source::Checkpoint(checkpoint) = model else {
            return Ok(None);
        };
        let Some(projector) = checkpoint.projector()? else {
            return Ok(None);
        };
        Plan::of_projector(&projector, &convert::Job::default())?;
        Ok(Some(ProjectorSource::Checkpoint(Box::new(projector))))
    }

    /// A projector's GGUF.
    ///
    /// # Errors
    /// An unreadable file, and one that is no projector.
    pub fn given(path: &Path) -> convert::Result<ProjectorSource> {
        Ok(ProjectorSource::File(ProjectorFile::open(path)?))
    }
}

/// The projector of a job.
pub(super) struct Projector<'m> {
    source: &'m ProjectorSource,
    /// Directory of the files.
    directory: PathBuf,
    /// Stem of file names.
    stem: String,
    threads: usize,
    /// Size of its file in bytes.
    pub(super) bytes: u64,
    key: Key,
}

impl<'m> Job<'m> {
    /// With a projector beside the files. Its bytes count in `--fit`.
    ///
    /// # Errors
    /// An unreadable file.
    pub fn with_projector(mut self, source: &'m ProjectorSource) -> Result<Job<'m>> {
        let mut projector = Projector {
            source,
            directory: self.options.directory.clone(),
            stem: self.name.clone(),
            threads: self.options.engine.threads,
            bytes: 0,
            key: Key::default(),
        };
        let key = KeyBuilder::new("make: projector").with("stem", self.name.as_bytes());
        let key = match source {
            ProjectorSource::Checkpoint(checkpoint) => {
                let plan = projector.plan(checkpoint, OutType::F16)?;
                projector.bytes = plan.file_bytes();
                key.with_model(&input::reader_of(plan))?
            }
            ProjectorSource::File(file) => {
                projector.bytes = file.bytes;
                let source = Source::Gguf(Files::open(&file.path)?);
                key.with_model(&source.reader(&convert::Job::default())?)?
            }
        };
        projector.key = key.key();
        self.projector = Some(projector);
        Ok(self)
    }
}

impl Projector<'_> {
    /// The conversion of a checkpoint's encoders to this type.
    fn plan<'c>(&self, checkpoint: &'c Checkpoint, out_type: OutType) -> Result<Plan<'c>> {
        let job = convert::Job {
            out_type,
            threads: self.threads,
            ..convert::Job::default()
        };
        let plan = Plan::of_projector(checkpoint, &job)?;
        let name = self.converted_name(plan.file_type.name());
        Ok(plan.at(self.directory.join(name)))
    }

    /// The file name of a converted projector, by which llama.cpp finds it beside a model.
    fn converted_name(&self, file_type: &str) -> String {
        format!("mmproj-{}-{file_type}.gguf", self.stem)
    }

    /// Writes the file; returns its name.
    fn write(&self, session: &Session<'_>) -> Result<String> {
        let checkpoint = match self.source {
            ProjectorSource::Checkpoint(checkpoint) => checkpoint,
            ProjectorSource::File(file) => {
                let name = file.name();
                copy(&file.path, &self.directory.join(&name))?;
                return Ok(name);
            }
        };
        let mut plan = self.plan(checkpoint, OutType::F16)?;
        if let Some(found) = plan.find_too_large()? {
            (session.tell)(&format!(
                "the projector is written in bf16: {}, row {}, holds {}, which becomes infinite in f16",
                found.tensor, found.row, found.value
            ));
            plan = self.plan(checkpoint, OutType::Bf16)?;
        }
        plan.run(session.progress)?;
        Ok(self.converted_name(plan.file_type.name()))
    }
}

/// Copies a file, unless it is there already.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if let (Ok(a), Ok(b)) = (from.canonicalize(), to.canonicalize())
        && a == b
    {
        return Ok(());
    }
    let map = Map::open(from)?;
    let bytes = map.bytes().len();
    let mut output = Output::create(to, bytes as u64, &[from])?;
    output.copy(&map, 0..bytes)?;
    Ok(output.finish()?)
}

/// The stage.
pub(super) struct ProjectorStage<'j>(pub(super) &'j Projector<'j>);

impl Stage for ProjectorStage<'_> {
    type Output = data::Projector;

    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, work: &WorkDir) -> Result<Option<data::Projector>> {
        let written = work.read::<data::Projector>(NAME, &self.0.key);
        Ok(written.filter(|written| {
            let file = self.0.directory.join(&written.name).metadata();
            file.is_ok_and(|file| file.len() == written.bytes)
        }))
    }

    fn cost(&self, _: &WorkDir) -> Result<Cost> {
        Ok(Cost {
            read: self.0.bytes,
            written: self.0.bytes,
            ..Cost::default()
        })
    }

    fn run(&self, session: &Session<'_>) -> Result<data::Projector> {
        let written = data::Projector {
            name: self.0.write(session)?,
            bytes: self.0.bytes,
        };
        session.work.write(NAME, &self.0.key, &written)?;
        Ok(written)
    }
}

impl Foreseeable for ProjectorStage<'_> {
    fn expected(&self, _: &WorkDir) -> Result<data::Projector> {
        let name = match self.0.source {
            ProjectorSource::Checkpoint(_) => self.0.converted_name("F16"),
            ProjectorSource::File(file) => file.name(),
        };
        Ok(data::Projector {
            name,
            bytes: self.0.bytes,
        })
    }
}
