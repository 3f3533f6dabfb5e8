//! The importance matrix and the input Hessians: sums by units of the calibration text, then the
//! Hessians by layers.

use super::parts::{move_files, unit_hessians};
use super::{Cut, Parts, Result};
use crate::format::imatrix::Format;
use crate::format::part::{Part, Writer};
use crate::format::snapshot::{Key, Packer, Unpacker};
use crate::hessian::{self, Recorder, unit_chunks};
use crate::imatrix::collect;
use crate::make::calibration::{Calibration, IMATRIX};
use crate::make::cost::Cost;
use crate::make::stage::Session;
use crate::make::workdir::WorkDir;
use crate::resume::KeyBuilder;
use crate::sensitivity::units::locked;
use std::ops::Range;
use std::sync::Mutex;

/// Sums by units of the text.
pub(in crate::make) struct Summing<'c, 'j>(pub(in crate::make) &'c Calibration<'j>);

/// Input Hessians by layers, from the sums of all units.
pub(in crate::make) struct Averaging<'c, 'j>(pub(in crate::make) &'c Calibration<'j>);

impl Summing<'_, '_> {
    /// Chunks of the text, and those of a unit.
    fn chunks(&self) -> [usize; 2] {
        let chunks = self.0.chunks();
        [chunks, unit_chunks(chunks)]
    }

    fn range(&self, unit: usize) -> Range<usize> {
        let [chunks, of_unit] = self.chunks();
        unit * of_unit..((unit + 1) * of_unit).min(chunks)
    }
}

impl Cut for Summing<'_, '_> {
    fn name(&self) -> &'static str {
        "imatrix"
    }

    fn after(&self) -> &'static [&'static str] {
        &[]
    }

    fn key(&self) -> Result<Key> {
        let hessians = self.0.hessians.as_ref();
        let key = KeyBuilder::new("make: part of the imatrix")
            .with("all", &self.0.imatrix_key)
            .with(
                "covariance",
                hessians.map_or(&[][..], |hessians| &hessians.job.key),
            );
        Ok(key.key())
    }

    fn units(&self) -> usize {
        let [chunks, of_unit] = self.chunks();
        chunks.div_ceil(of_unit)
    }

    fn cost(&self, unit: usize) -> Cost {
        let [chunks, _] = self.chunks();
        let range = self.range(unit);
        let share = range.len() as f64 / chunks as f64;
        let whole = self.0.whole_cost(true);
        Cost {
            operations: whole.operations * share,
            // Sums of squares by chunk, in f64; the Hessians.
            written: 2 * self.0.imatrix_bytes() * range.len() as u64 + self.0.hessian_bytes(),
            scratch: 0,
            ..whole
        }
    }

    fn run(
        &self,
        session: &Session<'_>,
        units: Range<usize>,
        parts: &[Mutex<Writer>],
    ) -> Result<()> {
        let stage = self.0;
        let windows = stage.model.texts.calibration()?;
        for (unit, part) in units.zip(parts) {
            let options = collect::Options {
                process_output: stage.model.engine.has_output(),
                all_experts: stage.job.options.all_experts,
                covariance: stage.hessians.as_ref().map(|hessians| &hessians.job),
                unit: Some(collect::Unit {
                    chunks: self.range(unit),
                    part,
                }),
                ..collect::Options::default()
            };
            collect::collect(stage.model.engine, &windows, &options, session.progress)?;
        }
        Ok(())
    }

    fn merge(&self, session: &Session<'_>, parts: &[Part]) -> Result<()> {
        match self.0.hessians {
            // With the Hessians.
            Some(_) => Ok(()),
            None => merge_imatrix(self.0, session.work, parts),
        }
    }

    fn merge_bytes(&self) -> u64 {
        match self.0.hessians {
            Some(_) => 0,
            None => imatrix_parts(self.0),
        }
    }

    fn uses_up(&self) -> &'static [&'static str] {
        match self.0.hessians {
            Some(_) => &[],
            None => &["imatrix"],
        }
    }
}

/// Bytes of the sums of squares in all parts.
fn imatrix_parts(stage: &Calibration<'_>) -> u64 {
    2 * stage.imatrix_bytes() * stage.chunks() as u64
}

/// Adds the sums of squares of all units, unless the importance matrix is there.
fn merge_imatrix(stage: &Calibration<'_>, work: &WorkDir, parts: &[Part]) -> Result<()> {
    if stage.has_imatrix(work) {
        return Ok(());
    }
    let mut sums = collect::merge(parts)?;
    sums.datasets = stage.model.texts.calibration_names();
    let imatrix = sums.to_file(stage.job.context as u32);
    imatrix.write(&stage.file, Format::Gguf, &stage.job.input.paths())?;
    work.mark(IMATRIX, &stage.imatrix_key)
}

/// Name of the record with the names and checksums of a unit's files.
const FILES: &str = "files";

impl Averaging<'_, '_> {
    /// The layers, and the linears outside of them.
    fn groups(&self) -> usize {
        let engine = self.0.model.engine;
        engine.hyper.layers + usize::from(engine.has_nextn()) + 1
    }

    /// Hessians of the units, until they are merged.
    fn unit_job(&self, work: &WorkDir) -> Option<hessian::Job> {
        let hessians = self.0.hessians.as_ref()?;
        Some(unit_hessians(work, self.name(), &hessians.job))
    }
}

impl Cut for Averaging<'_, '_> {
    fn name(&self) -> &'static str {
        "hessians"
    }

    fn after(&self) -> &'static [&'static str] {
        &["imatrix"]
    }

    fn key(&self) -> Result<Key> {
        let key = KeyBuilder::new("make: Hessians of a layer");
        Ok(key.with("sums", &Summing(self.0).key()?).key())
    }

    fn units(&self) -> usize {
        self.groups()
    }

    fn cost(&self, _: usize) -> Cost {
        let groups = self.groups() as u64;
        let written = self.0.hessian_bytes() / groups;
        Cost {
            read: written * Summing(self.0).units() as u64,
            written,
            memory: self.0.whole_cost(true).memory,
            ..Cost::default()
        }
    }

    fn run(
        &self,
        session: &Session<'_>,
        units: Range<usize>,
        parts: &[Mutex<Writer>],
    ) -> Result<()> {
        let Some(job) = self.unit_job(session.work) else {
            return Ok(());
        };
        let (engine, catalog) = (self.0.model.engine, self.0.job.input.catalog());
        let last = self.groups() - 1;
        let group = |lead: &str| {
            let linear = catalog.linear_named(lead);
            let layer = linear.and_then(|linear| linear.layer);
            layer.map_or(last, |layer| layer.index().min(last))
        };
        let sums = Parts::all(session.work, &Summing(self.0))?;
        hessian::clear_others(&job.directory, &job.key)?;
        for (unit, part) in units.zip(parts) {
            let recorder = Recorder::new(&job, [self.0.chunks(), self.0.job.context])?;
            let merge = || recorder.merge(&sums, &|lead| group(lead) == unit);
            engine.pool().install(merge)?;
            let files = recorder.files();
            let mut packed = Packer::default();
            packed.number(files.len());
            for (name, checksum) in files {
                packed.text(&name).text(&checksum);
            }
            locked(part).put(FILES, &packed.0)?;
        }
        Ok(())
    }

    fn merge(&self, session: &Session<'_>, parts: &[Part]) -> Result<()> {
        let (stage, work) = (self.0, session.work);
        if let (Some(from), Some(hessians)) = (self.unit_job(work), &stage.hessians) {
            let job = &hessians.job;
            hessian::clear_others(&job.directory, &job.key)?;
            let mut files = Vec::new();
            for part in parts {
                let bad = || part.bad("its list of files cannot be read".into());
                files.extend(listed(part.get(FILES)?).ok_or_else(bad)?);
            }
            move_files(
                [&from.directory, &job.directory],
                files.iter().map(|(name, _)| &**name),
            )?;
            let recorder = Recorder::new(job, [stage.chunks(), stage.job.context])?;
            if !recorder.resume(&files) {
                return Err(super::lost_files(self.name(), &job.directory));
            }
            recorder.begin()?;
            recorder.finish()?;
        }
        merge_imatrix(stage, work, &Parts::all(work, &Summing(stage))?)
    }

    fn merge_bytes(&self) -> u64 {
        imatrix_parts(self.0)
    }

    fn uses_up(&self) -> &'static [&'static str] {
        &["imatrix", "hessians"]
    }
}

fn listed(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let mut fields = Unpacker(bytes);
    let mut files = Vec::new();
    for _ in 0..fields.number()? {
        files.push((fields.text()?.to_owned(), fields.text()?.to_owned()));
    }
    fields.0.is_empty().then_some(files)
}
