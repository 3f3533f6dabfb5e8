//! Log-probabilities of the base, by llama-perplexity: the file to which divergences are measured.

use super::super::cost::Cost;
use super::super::stage::{Foreseeable, Session, Stage};
use super::super::workdir::WorkDir;
use super::super::{Job, Result, write_text};
use super::texts::Measured;
use super::{Invocation, Outside, Ready, outside_cost};
use crate::format;
use crate::format::logits::{Logits, Shape};
use crate::format::output::Output;
use crate::format::snapshot::Key;
use crate::resume::KeyBuilder;
use std::path::{Path, PathBuf};

/// A file of log-probabilities.
#[derive(Clone, Debug)]
pub(in super::super) struct BaseLogits {
    pub(super) path: PathBuf,
    pub(super) chunks: u64,
    /// Number of scored positions.
    pub(super) rows: u64,
    /// Key of everything that it depends on.
    pub(super) key: Key,
}

/// The text of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Of {
    /// A part of the calibration text, for measurements that guide the allocation.
    Probing,
    /// The evaluation text.
    Evaluation,
}

/// The stage.
pub(in super::super) struct LogitsStage<'j> {
    of: Of,
    job: &'j Job<'j>,
    ready: Ready<'j>,
    key: Key,
}

impl<'j> LogitsStage<'j> {
    pub(in super::super) fn new(
        of: Of,
        job: &'j Job<'j>,
        ready: Ready<'j>,
    ) -> Result<LogitsStage<'j>> {
        let outside = ready.outside;
        let text = text_of(of, outside);
        let key = KeyBuilder::new("outside: logits").with_model(job.input)?;
        let key = outside
            .key(key)
            .with("text", text.content.as_bytes())
            .with("chunks", format!("{:?}", text.most_chunks).as_bytes());
        Ok(LogitsStage {
            of,
            job,
            ready,
            key: key.key(),
        })
    }

    fn text(&self) -> &'j Measured {
        text_of(self.of, self.ready.outside)
    }

    /// Name in the work directory.
    fn file_name(&self) -> &'static str {
        match self.of {
            Of::Probing => "probing.logits",
            Of::Evaluation => "evaluation.logits",
        }
    }

    /// Size of the file, as far as the number of tokens is known.
    fn bytes(&self) -> u64 {
        let tokens = self.text().tokens;
        let chunks = tokens / (self.ready.outside.context as u64).max(1);
        let shape = Shape {
            n_ctx: self.ready.outside.context as u32,
            n_vocab: self.ready.outside.vocabulary as u32,
            n_chunk: 1,
        };
        tokens * size_of::<u32>() as u64 + chunks * (shape.rows() * shape.row_bytes()) as u64
    }

    fn opened(&self, path: &Path) -> format::Result<BaseLogits> {
        let shape = Logits::open(path)?.shape();
        let chunks = u64::from(shape.n_chunk);
        Ok(BaseLogits {
            path: path.to_owned(),
            chunks,
            rows: chunks * shape.rows() as u64,
            key: self.key,
        })
    }

    /// Checks the first and the last row of every chunk.
    fn check(&self, path: &Path) -> format::Result<()> {
        let logits = Logits::open(path)?;
        let shape = logits.shape();
        let mut row = vec![0.0; shape.n_vocab as usize];
        for chunk in 0..shape.n_chunk as usize {
            for at in [0, shape.rows() - 1] {
                logits.row(chunk, at, &mut row)?;
            }
        }
        Ok(())
    }
}

fn text_of(of: Of, outside: &Outside) -> &Measured {
    match of {
        Of::Probing => &outside.texts.probing,
        Of::Evaluation => &outside.texts.evaluation,
    }
}

impl Stage for LogitsStage<'_> {
    type Output = BaseLogits;

    fn name(&self) -> &'static str {
        match self.of {
            Of::Probing => "probing logits",
            Of::Evaluation => "evaluation logits",
        }
    }

    fn load(&self, work: &WorkDir) -> Result<Option<BaseLogits>> {
        let is_made = work.is_marked(self.file_name(), &self.key);
        Ok(is_made
            .then(|| self.opened(&work.path(self.file_name())).ok())
            .flatten())
    }

    fn cost(&self, _: &WorkDir) -> Result<Cost> {
        let bytes = self.bytes();
        Ok(outside_cost(Cost {
            read: self.job.input.tensors.iter().map(|t| t.info.bytes()).sum(),
            written: bytes,
            logits: bytes,
            ..Cost::default()
        }))
    }

    fn run(&self, session: &Session<'_>) -> Result<BaseLogits> {
        let work = session.work;
        let name = self.file_name();
        let kept = work.path(name);
        let [text, made] = ["txt", "unchecked"].map(|e| work.path(&format!("{name}.{e}")));
        let removed = || {
            // A failure is harmless: the next run replaces the files.
            let _ = std::fs::remove_file(&text);
            let _ = std::fs::remove_file(&made);
        };
        // The file of another text makes room.
        let _ = std::fs::remove_file(&kept);
        removed();
        // Refuses a disk without room; the programs would fail in silence.
        drop(Output::create(
            &made,
            self.bytes(),
            &self.job.input.paths(),
        )?);
        write_text(&text, &self.text().content)?;
        let mut arguments = self.ready.outside.arguments(self.ready.base);
        arguments.extend(["-f".into(), text.clone().into()]);
        arguments.extend(["--kl-divergence-base".into(), made.clone().into()]);
        if let Some(chunks) = self.text().most_chunks {
            arguments.extend(["--chunks".into(), chunks.to_string().into()]);
        }
        let invocation = Invocation {
            program: &self.ready.outside.tools.perplexity,
            arguments,
            log: work.path(&format!("{name}.log")),
            chunks: self.text().tokens / self.ready.outside.context as u64,
        };
        let run = || -> Result<()> {
            let finished = invocation.run(session.progress)?;
            finished.check_numbers()?;
            if !made.is_file() {
                return Err(finished.error("wrote no log-probabilities").into());
            }
            self.check(&made)
                .map_err(|error| finished.error(format!("wrote bad log-probabilities: {error}")))?;
            finished.accept();
            Ok(())
        };
        run().inspect_err(|_| removed())?;
        std::fs::rename(&made, &kept).map_err(|source| format::Error::Io {
            path: kept.clone(),
            action: "rename",
            source,
        })?;
        removed();
        work.mark(name, &self.key)?;
        Ok(self.opened(&kept)?)
    }
}

impl Foreseeable for LogitsStage<'_> {
    fn expected(&self, work: &WorkDir) -> Result<BaseLogits> {
        Ok(BaseLogits {
            path: work.path(self.file_name()),
            chunks: 0,
            rows: 0,
            key: self.key,
        })
    }
}
