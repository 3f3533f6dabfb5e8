//! The files, one unit each.

use super::{Cut, Result};
use crate::format::part::{Part, Writer};
use crate::format::snapshot::Key;
use crate::make::cost::Cost;
use crate::make::files::FilesStage;
use crate::make::stage::Session;
use crate::make::workdir::WorkDir;
use crate::resume::KeyBuilder;
use std::ops::Range;
use std::sync::Mutex;

/// The cut. The parts are empty: a unit's result is its file, with the marks beside it.
pub(in crate::make) struct Writing<'c, 'j>(pub(in crate::make) &'c FilesStage<'j>);

impl Cut for Writing<'_, '_> {
    fn name(&self) -> &'static str {
        "files"
    }

    fn after(&self) -> &'static [&'static str] {
        &["imatrix", "hessians", "sensitivities"]
    }

    fn key(&self) -> Result<Key> {
        let mut key = KeyBuilder::new("make: files");
        for file in &self.0.allocation.files {
            key = key.with("file", &self.0.writer.key(file)?);
        }
        Ok(key.key())
    }

    fn units(&self) -> usize {
        let allocation = self.0.allocation;
        (allocation.files.len() + allocation.open_files()).max(1)
    }

    fn cost(&self, unit: usize) -> Cost {
        let allocation = self.0.allocation;
        match allocation.files.get(unit) {
            Some(file) => self.0.cost_of(&[file]),
            None => self.0.cost_of(&[&allocation.medium()]),
        }
    }

    fn run(&self, session: &Session<'_>, units: Range<usize>, _: &[Mutex<Writer>]) -> Result<()> {
        let chunks = self.0.writer.chunks()?;
        for unit in units {
            // Two budgets can have one file, so that there are fewer files than planned.
            if let Some(file) = self.0.allocation.files.get(unit) {
                let writer = self.0.writer;
                writer.write(session, &[file], Vec::new(), chunks.as_deref())?;
            }
        }
        Ok(())
    }

    fn is_there(&self, work: &WorkDir, unit: usize) -> Result<bool> {
        match self.0.allocation.files.get(unit) {
            Some(file) => self.0.writer.is_written(file, work),
            None => Ok(true),
        }
    }

    fn merge(&self, _: &Session<'_>, _: &[Part]) -> Result<()> {
        Ok(())
    }

    fn uses_up(&self) -> &'static [&'static str] {
        &[]
    }
}
