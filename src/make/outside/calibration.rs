//! The importance matrix, by llama-imatrix: the text in parts, each a run of its own, so that a
//! killed run continues with the next part. The sums of the parts are added in their order.

use super::super::calibration::{self, Calibrated};
use super::super::cost::Cost;
use super::super::stage::{Foreseeable, Session, Stage};
use super::super::workdir::WorkDir;
use super::super::{Job, Result, write_text};
use super::{Error, Invocation, Ready, outside_cost};
use crate::format::imatrix::{Format, Imatrix};
use crate::format::snapshot::Key;
use crate::imatrix::sums::Sums;
use crate::resume::KeyBuilder;
use std::path::PathBuf;

/// Name of the importance matrix in the work directory.
const MARK: &str = "imatrix";

/// The stage.
pub(in super::super) struct PartsStage<'j> {
    job: &'j Job<'j>,
    ready: Ready<'j>,
    /// The importance matrix.
    file: PathBuf,
    /// Keys of the parts.
    parts: Vec<Key>,
    key: Key,
}

impl<'j> PartsStage<'j> {
    pub(in super::super) fn new(job: &'j Job<'j>, ready: Ready<'j>) -> Result<PartsStage<'j>> {
        let outside = ready.outside;
        let mut parts = Vec::new();
        let mut whole = KeyBuilder::new("outside: imatrix");
        for (index, part) in outside.texts.calibration.iter().enumerate() {
            let key = KeyBuilder::new("outside: part of an imatrix").with_model(job.input)?;
            let key = outside.key(key).with("text", part.as_bytes()).key();
            whole = whole.with(&index.to_string(), &key);
            parts.push(key);
        }
        let names = outside.texts.calibration_names.join("\n");
        Ok(PartsStage {
            job,
            ready,
            file: job.imatrix_file(),
            parts,
            key: whole.with("names", names.as_bytes()).key(),
        })
    }

    /// Name of a part in the work directory.
    fn name_of(part: usize) -> String {
        format!("imatrix-part-{part}")
    }

    fn part_file(work: &WorkDir, part: usize) -> PathBuf {
        work.path(&format!("{}.gguf", PartsStage::name_of(part)))
    }

    /// A part of an earlier run.
    fn loaded(&self, work: &WorkDir, part: usize) -> Option<Imatrix> {
        let is_made = work.is_marked(&PartsStage::name_of(part), &self.parts[part]);
        is_made.then(|| Imatrix::read(&PartsStage::part_file(work, part)).ok())?
    }

    fn has_all(&self, work: &WorkDir) -> bool {
        self.file.exists() && work.is_marked(MARK, &self.key)
    }

    /// Removes the parts, once they are summed.
    pub(in super::super) fn remove_parts(&self, work: &WorkDir) {
        for part in 0..self.parts.len() {
            work.remove(&PartsStage::name_of(part));
            // A failure is harmless: nothing refers to the file.
            let _ = std::fs::remove_file(PartsStage::part_file(work, part));
        }
    }

    /// Runs llama-imatrix on a part.
    fn run_part(&self, session: &Session<'_>, part: usize) -> Result<Imatrix> {
        let work = session.work;
        let name = PartsStage::name_of(part);
        let [text, made] = ["txt", "unchecked.gguf"].map(|e| work.path(&format!("{name}.{e}")));
        let removed = || {
            // A failure is harmless: the next run replaces the files.
            let _ = std::fs::remove_file(&text);
            let _ = std::fs::remove_file(&made);
        };
        removed();
        write_text(&text, &self.ready.outside.texts.calibration[part])?;
        let mut arguments = self.ready.outside.arguments(self.ready.base);
        arguments.extend(["-f".into(), text.clone().into(), "-o".into()]);
        arguments.extend([made.clone().into(), "--process-output".into()]);
        let tokens = self.ready.outside.texts.calibration_tokens / self.parts.len() as u64;
        let invocation = Invocation {
            program: &self.ready.outside.tools.imatrix,
            arguments,
            log: work.path(&format!("{name}.log")),
            chunks: tokens / self.ready.outside.context as u64,
        };
        let run = || -> Result<Imatrix> {
            let finished = invocation.run(session.progress)?;
            finished.check_numbers()?;
            if !made.is_file() {
                return Err(finished.error("wrote no importance matrix").into());
            }
            let imatrix = Imatrix::read(&made).map_err(|error| {
                finished.error(format!("wrote a bad importance matrix: {error}"))
            })?;
            check(&imatrix, begun(&finished.text)).map_err(|what| finished.error(what))?;
            finished.accept();
            Ok(imatrix)
        };
        let imatrix = run().inspect_err(|_| removed())?;
        let kept = PartsStage::part_file(work, part);
        imatrix.write(&kept, Format::Gguf, &[])?;
        removed();
        work.mark(&name, &self.parts[part])?;
        Ok(imatrix)
    }
}

/// Number of chunks that llama-imatrix announces.
fn begun(output: &str) -> Option<u32> {
    let (_, rest) = output.split_once("computing over ")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Checks an importance matrix against the announced number of chunks.
fn check(imatrix: &Imatrix, begun: Option<u32>) -> std::result::Result<(), String> {
    if imatrix.entries.is_empty() {
        return Err("its importance matrix is empty".into());
    }
    match begun {
        Some(begun) if imatrix.chunk_count != begun && imatrix.chunk_count > 0 => Err(format!(
            "its importance matrix holds {} of {begun} chunks",
            imatrix.chunk_count
        )),
        _ => Ok(()),
    }
}

impl Stage for PartsStage<'_> {
    type Output = Calibrated;

    fn name(&self) -> &'static str {
        "importance matrix"
    }

    fn load(&self, work: &WorkDir) -> Result<Option<Calibrated>> {
        match self.has_all(work) {
            true => Calibrated::read(self.job, &self.file, None).map(Some),
            false => Ok(None),
        }
    }

    fn cost(&self, work: &WorkDir) -> Result<Cost> {
        let parts = 0..self.parts.len();
        let missing = parts
            .filter(|part| self.loaded(work, *part).is_none())
            .count() as u64;
        let imatrix = calibration::imatrix_bytes(self.job);
        Ok(outside_cost(Cost {
            written: imatrix,
            scratch: imatrix * self.parts.len() as u64,
            read: missing
                * self
                    .job
                    .input
                    .tensors
                    .iter()
                    .map(|t| t.info.bytes())
                    .sum::<u64>(),
            ..Cost::default()
        }))
    }

    fn run(&self, session: &Session<'_>) -> Result<Calibrated> {
        let work = session.work;
        let mut sums: Option<Sums> = None;
        for part in 0..self.parts.len() {
            let imatrix = match self.loaded(work, part) {
                Some(imatrix) => imatrix,
                None => self.run_part(session, part)?,
            };
            let of_part = Sums::of_file(&imatrix, self.job.context as u32);
            match &mut sums {
                Some(sums) => sums.merge(&of_part).map_err(Error::from)?,
                None => sums = Some(of_part),
            }
        }
        let mut sums = sums.unwrap_or_default();
        sums.datasets = self.ready.outside.texts.calibration_names.clone();
        let imatrix = sums.to_file(self.job.context as u32);
        imatrix.write(&self.file, Format::Gguf, &self.job.input.paths())?;
        let calibrated = Calibrated::read(self.job, &self.file, None)?;
        work.mark(MARK, &self.key)?;
        Ok(calibrated)
    }
}

impl Foreseeable for PartsStage<'_> {
    fn expected(&self, _: &WorkDir) -> Result<Calibrated> {
        Ok(Calibrated {
            imatrix: calibration::expected(self.job),
            file: None,
            hessians: None,
            hessian_key: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::imatrix::Entry;

    #[test]
    fn the_announced_number_of_chunks_must_be_in_the_file() {
        let output = "x\ncompute_imatrix: computing over 7 chunks, n_ctx=512, batch_size=2048\n[1]";
        assert_eq!(begun(output), Some(7));
        assert_eq!(begun("nothing"), None);
        let entry = Entry {
            sums: vec![1.0],
            counts: vec![1],
        };
        let mut imatrix = Imatrix {
            entries: [("a".to_owned(), entry)].into(),
            chunk_count: 7,
            ..Imatrix::default()
        };
        assert_eq!(check(&imatrix, Some(7)), Ok(()));
        imatrix.chunk_count = 4;
        assert!(check(&imatrix, Some(7)).unwrap_err().contains("4 of 7"));
        imatrix.entries.clear();
        assert!(check(&imatrix, None).is_err());
    }
}
