//! The GGUF that the programs read: the model itself, or a conversion of the checkpoint.

use super::super::cost::Cost;
use super::super::stage::{Foreseeable, Session, Stage};
use super::super::workdir::WorkDir;
use super::super::{Job, Result};
use crate::format;
use crate::format::snapshot::Key;
use crate::input::is_gguf;
use crate::quantize::{self, OutputRequest, Plan};
use crate::resume::KeyBuilder;
use std::path::PathBuf;

/// Name in the work directory.
const BASE: &str = "base.gguf";

/// Path of the GGUF; of its first shard, if it is split.
pub(in super::super) type BaseFile = PathBuf;

/// The stage: conversion of a checkpoint.
pub(in super::super) struct BaseStage<'j> {
    job: &'j Job<'j>,
    path: PathBuf,
    key: Key,
}

/// The model's own GGUF, if it is one.
pub(in super::super) fn given(job: &Job<'_>) -> Result<Option<BaseFile>> {
    let paths = job.input.paths();
    let Some(first) = paths.first() else {
        return Ok(None);
    };
    let io = |source| format::Error::Io {
        path: first.to_path_buf(),
        action: "read",
        source,
    };
    Ok(is_gguf(first).map_err(io)?.then(|| first.to_path_buf()))
}

impl<'j> BaseStage<'j> {
    pub(in super::super) fn new(job: &'j Job<'j>) -> Result<BaseStage<'j>> {
        let key = KeyBuilder::new("outside: base").with_model(job.input)?;
        Ok(BaseStage {
            job,
            path: job.work().path(BASE),
            key: key.key(),
        })
    }

    /// A copy of all tensors in their types.
    fn request(&self) -> quantize::Job {
        quantize::Job {
            outputs: vec![OutputRequest {
                path: self.path.clone(),
                ..OutputRequest::default()
            }],
            allow_requantize: true,
            threads: self.job.options.engine.threads,
            ..quantize::Job::default()
        }
    }
}

impl Stage for BaseStage<'_> {
    type Output = BaseFile;

    fn name(&self) -> &'static str {
        "base"
    }

    fn load(&self, work: &WorkDir) -> Result<Option<BaseFile>> {
        let is_made = self.path.is_file() && work.is_marked(BASE, &self.key);
        Ok(is_made.then(|| self.path.clone()))
    }

    fn cost(&self, _: &WorkDir) -> Result<Cost> {
        let bytes = self.job.input.tensors.iter().map(|t| t.info.bytes()).sum();
        Ok(Cost {
            read: bytes,
            written: bytes,
            base: bytes,
            ..Cost::default()
        })
    }

    fn run(&self, session: &Session<'_>) -> Result<BaseFile> {
        (session.tell)(&format!(
            "llama.cpp reads GGUF files: the checkpoint is converted to {} first",
            self.path.display()
        ));
        Plan::new(self.job.input, &self.request())?.run(session.progress)?;
        session.work.mark(BASE, &self.key)?;
        Ok(self.path.clone())
    }
}

impl Foreseeable for BaseStage<'_> {
    fn expected(&self, _: &WorkDir) -> Result<BaseFile> {
        Ok(self.path.clone())
    }
}
