//! Measurement of every file's divergence on held-out text.

use super::Result;
use super::allocation::Allocation;
use super::cost::{Cost, Memory};
use super::job::{Job, Model};
use super::numbers::Numbers;
use super::presets::{Compared, Comparison};
use super::shards::{Cut, Measuring};
use super::stage::{Session, Stage};
use super::texts::Used;
use super::workdir::WorkDir;
use crate::convert;
use crate::evaluate::embeddings::{Agreement, Distances, distances, embeddings};
use crate::evaluate::measure::{Base, Measured, compare};
use crate::evaluate::paired::sums_of_chunks;
use crate::evaluate::score::Comparison as RowComparison;
use crate::evaluate::sequences::Sequences;
use crate::evaluate::statistics::Statistics;
use crate::evaluate::windows::Windows;
use crate::format::snapshot::Key;
use crate::input::{Input, Source};
use crate::model::Engine;
use crate::plan::file_type::FileType;
use crate::report;
use crate::resume::KeyBuilder;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Number of files measured together, beside the base.
const TOGETHER: usize = 4;

/// Measured divergence of one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Divergence {
    pub(super) measured: report::data::Measured,
    pub(super) rows: u64,
    /// Sums of the divergence by chunk of the text, in nats; empty if the program does not report them.
    #[serde(default)]
    pub(super) chunks: Vec<f64>,
}

/// A file to measure, with the name and key of its result.
#[derive(Clone)]
pub(super) struct Subject {
    /// The file may be deleted after its measurement.
    pub(super) path: PathBuf,
    name: String,
    key: Key,
}

/// A program that measures divergences from the base on the evaluation text.
pub(super) trait Meter {
    /// Name for reports.
    fn name(&self) -> String;

    /// The texts, with their numbers of tokens.
    fn texts(&self) -> Used;

    /// Adds all that a divergence depends on, except the base and the measured file.
    fn key(&self, key: KeyBuilder) -> KeyBuilder;

    /// Cost of measuring this number of files.
    fn cost(&self, files: usize) -> Cost;

    /// The engine of this program, whose measurements can be cut into shards.
    fn engine(&self) -> Option<&EngineMeter<'_>> {
        None
    }

    /// Measures some files and stores the results.
    fn measure(&self, session: &Session<'_>, subjects: &[&Subject]) -> Result<Vec<Divergence>>;
}

impl Subject {
    pub(super) fn new(path: PathBuf, name: String, key: Key) -> Subject {
        Subject { path, name, key }
    }

    /// Key of the result.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Subject for an existing file.
    fn of_file(base: &Input<'_>, meter: &dyn Meter, path: &Path) -> Result<Subject> {
        let source = Source::open(path)?;
        let input = source.reader(&convert::Job::default())?;
        let key = KeyBuilder::new("make: proof")
            .with_model(base)?
            .with_model(&input)?;
        let key = meter.key(key);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Subject {
            path: path.to_owned(),
            name: format!("{name}.measured"),
            key: key.key(),
        })
    }

    /// Stores a result.
    pub(super) fn store(&self, work: &WorkDir, divergence: &Divergence) -> Result<()> {
        work.write(&self.name, &self.key, divergence)
    }

    /// Result of an earlier run.
    pub(super) fn load(&self, work: &WorkDir) -> Option<Divergence> {
        work.read(&self.name, &self.key)
    }
}

/// Divergences of all files and presets.
pub(super) struct Proven {
    /// In the order of the allocation.
    pub(super) files: Vec<Divergence>,
    /// Outcomes of their tuning, in the same order; empty without it.
    pub(super) tuned: Vec<report::data::Tuned>,
    pub(super) presets: Vec<(FileType, Divergence)>,
    /// The measuring program.
    pub(super) tool: String,
    /// The texts, with their numbers of tokens.
    pub(super) texts: Used,
}

/// The stage.
pub(super) struct Proof<'j> {
    pub(super) name: &'static str,
    pub(super) job: &'j Job<'j>,
    pub(super) meter: &'j dyn Meter,
    pub(super) allocation: &'j Allocation,
    pub(super) comparison: Option<&'j Comparison>,
    /// True if the files have been written, not only planned.
    pub(super) are_written: bool,
}

impl<'j> Proof<'j> {
    fn presets(&self) -> &'j [Compared] {
        self.comparison
            .map_or(&[], |comparison| &comparison.presets)
    }

    /// The files; `None` if they do not exist yet.
    pub(super) fn files(&self) -> Result<Option<Vec<Subject>>> {
        let files = self.allocation.files.iter().map(|file| &*file.path);
        if !self.are_written {
            return Ok(None);
        }
        let files = files.map(|path| Subject::of_file(self.job.input, self.meter, path));
        files.collect::<Result<_>>().map(Some)
    }

    /// Files, then presets; `None` if the files do not exist yet.
    fn subjects(&self) -> Result<Option<Vec<Subject>>> {
        let presets = self.presets().iter();
        let presets = presets.map(|compared| compared.subject.clone());
        let files = self.files()?;
        Ok(files.map(|files| files.into_iter().chain(presets).collect()))
    }

    fn proven(&self, mut all: Vec<Divergence>) -> Proven {
        let presets = all.split_off(self.allocation.files.len());
        let names = self.presets().iter().map(|compared| compared.preset);
        Proven {
            files: all,
            tuned: Vec::new(),
            presets: names.zip(presets).collect(),
            tool: self.meter.name(),
            texts: self.meter.texts(),
        }
    }
}

impl Stage for Proof<'_> {
    type Output = Proven;

    fn name(&self) -> &'static str {
        self.name
    }

    fn load(&self, work: &WorkDir) -> Result<Option<Proven>> {
        let loaded = self.subjects()?.and_then(|subjects| {
            let all = subjects.iter().map(|subject| subject.load(work));
            all.collect::<Option<Vec<_>>>()
        });
        Ok(loaded.map(|all| self.proven(all)))
    }

    fn cost(&self, work: &WorkDir) -> Result<Cost> {
        let measured = match self.subjects()? {
            Some(subjects) => subjects.iter().filter(|s| s.load(work).is_some()).count(),
            None => self.presets().iter().filter(|c| !c.is_missing).count(),
        };
        let all = self.allocation.files.len() + self.allocation.open_files();
        let files = (all + self.presets().len()).saturating_sub(measured);
        Ok(self.meter.cost(files))
    }

    fn cuts(&self) -> Vec<Box<dyn Cut + '_>> {
        match self.meter.engine() {
            Some(meter) => vec![Box::new(Measuring { proof: self, meter })],
            None => Vec::new(),
        }
    }

    fn run(&self, session: &Session<'_>) -> Result<Proven> {
        let subjects = self.subjects()?.unwrap_or_default();
        let mut all: Vec<_> = subjects.iter().map(|s| s.load(session.work)).collect();
        let missing: Vec<_> = (0..all.len()).filter(|i| all[*i].is_none()).collect();
        let unmeasured: Vec<_> = missing.iter().map(|i| &subjects[*i]).collect();
        let measured = self.meter.measure(session, &unmeasured)?;
        for (i, divergence) in missing.iter().zip(measured) {
            all[*i] = Some(divergence);
        }
        Ok(self.proven(all.into_iter().flatten().collect()))
    }
}

/// The engine of this program, which runs some files beside the base.
pub(super) struct EngineMeter<'j> {
    pub(super) job: &'j Job<'j>,
    pub(super) model: &'j Model<'j>,
    pub(super) numbers: &'j Numbers,
}

impl Meter for EngineMeter<'_> {
    fn name(&self) -> String {
        "quantier".into()
    }

    fn texts(&self) -> Used {
        self.model.texts.evaluation.used.clone()
    }

    fn key(&self, key: KeyBuilder) -> KeyBuilder {
        key.with("tokens", &self.model.texts.evaluation_bytes())
    }

    fn engine(&self) -> Option<&EngineMeter<'_>> {
        Some(self)
    }

    fn cost(&self, files: usize) -> Cost {
        self.cost_of(files)
    }

    fn measure(&self, session: &Session<'_>, subjects: &[&Subject]) -> Result<Vec<Divergence>> {
        let windows = self.model.texts.evaluation()?;
        if !self.job.has_output() {
            return self.measure_embeddings(session, subjects, &windows);
        }
        let sequences = Sequences::from(&windows);
        let base = Measured::new(
            "the base".into(),
            self.model.engine,
            &sequences,
            session.progress,
        )?;
        let base = Base::Model(base);
        let mut all = Vec::new();
        for group in subjects.chunks(TOGETHER) {
            let rows = self.rows_of_group(session, &base, group, &sequences)?;
            for (rows, subject) in rows.iter().zip(group) {
                if let Some(divergence) = divergence(&[rows], windows.chunks()) {
                    subject.store(session.work, &divergence)?;
                    all.push(divergence);
                }
            }
        }
        Ok(all)
    }
}

impl EngineMeter<'_> {
    /// Cost of measuring this number of files.
    pub(super) fn cost_of(&self, files: usize) -> Cost {
        let Numbers {
            evaluation,
            width,
            largest,
            output,
            ..
        } = *self.numbers;
        let model = self.numbers.forward(evaluation) + self.numbers.logits(evaluation / 2.0);
        let together = 1.0 + files.min(TOGETHER) as f64;
        let cost = Cost {
            operations: (1.0 + files as f64) * model,
            // An upper bound: files are smaller than the base.
            read: self.numbers.model_bytes * (1 + files as u64),
            ..Cost::default()
        };
        let memory = Memory {
            activations: (together / 2.0 + 1.0) * evaluation * width * 4.0,
            work: (largest + together * output) * 4.0
                + self.numbers.working(1.0).max(self.numbers.working_logits()),
            feedback: 0.0,
        };
        self.numbers.with_memory(cost, memory)
    }

    /// Measures the cosine distances of some files of an embedding model, one after another.
    fn measure_embeddings(
        &self,
        session: &Session<'_>,
        subjects: &[&Subject],
        windows: &Windows<'_>,
    ) -> Result<Vec<Divergence>> {
        let (texts, progress) = (windows.inputs(), session.progress);
        let base = embeddings("the base", self.model.engine, &texts, progress)?;
        let mut all = Vec::new();
        for subject in subjects {
            let source = Source::open(&subject.path)?;
            let input = source.reader(&convert::Job::default())?;
            let engine = Engine::new(&input, &self.job.options.engine)?;
            let name = subject.path.display().to_string();
            let own = embeddings(&name, &engine, &texts, progress)?;
            let distances = distances(&base, &own, ["the base", &name])?;
            if let Some(divergence) = of_distances(distances, Agreement::of(&base, &own)) {
                subject.store(session.work, &divergence)?;
                all.push(divergence);
            }
        }
        Ok(all)
    }

    /// Measures some files on some chunks of the evaluation text: rows by file, base and files in passes of
    /// several files each.
    pub(super) fn rows(
        &self,
        session: &Session<'_>,
        subjects: &[&Subject],
        chunks: Range<usize>,
    ) -> Result<Vec<Vec<RowComparison>>> {
        let windows = self.model.texts.evaluation()?.range(chunks);
        let (sequences, progress) = (Sequences::from(&windows), session.progress);
        let base = Measured::new("the base".into(), self.model.engine, &sequences, progress)?;
        let base = Base::Model(base);
        let mut all = Vec::new();
        for group in subjects.chunks(TOGETHER) {
            all.extend(self.rows_of_group(session, &base, group, &sequences)?);
        }
        Ok(all)
    }

    /// Measures some files in one pass of the base.
    fn rows_of_group(
        &self,
        session: &Session<'_>,
        base: &Base<'_>,
        group: &[&Subject],
        sequences: &Sequences,
    ) -> Result<Vec<Vec<RowComparison>>> {
        let progress = session.progress;
        let sources = group.iter().map(|subject| Source::open(&subject.path));
        let sources = sources.collect::<convert::Result<Vec<_>>>()?;
        let inputs = sources
            .iter()
            .map(|source| source.reader(&convert::Job::default()));
        let inputs = inputs.collect::<convert::Result<Vec<_>>>()?;
        let engines = inputs
            .iter()
            .map(|input| Engine::new(input, &self.job.options.engine));
        let engines = engines.collect::<crate::model::Result<Vec<_>>>()?;
        let mut models = Vec::new();
        for (engine, subject) in engines.iter().zip(group) {
            let name = subject.path.display().to_string();
            models.push(Measured::new(name, engine, sequences, progress)?);
        }
        Ok(compare(base, &models, sequences, None, progress)?)
    }
}

/// The divergence of a file of an embedding model, from the cosine distances of all texts. None without texts.
fn of_distances(distances: Vec<f64>, agreement: Option<Agreement>) -> Option<Divergence> {
    let found = Distances::of(&distances)?;
    let mut percentiles = found.spread.percentiles.iter();
    let median = percentiles.find(|(percent, _)| *percent == 50.0);
    let measured = report::data::Measured {
        mean: report::data::Mean::CosineDistance(found.mean.value),
        uncertainty: found.mean.uncertainty,
        median: median.map(|(_, value)| *value),
        p999: None,
        same_top: None,
        ppl: None,
        ppl_base: None,
        rank_correlation: agreement.and_then(|agreement| agreement.rank_correlation),
        shared_neighbours: agreement.map(|agreement| agreement.shared_neighbours),
    };
    Some(Divergence {
        measured,
        rows: found.texts as u64,
        chunks: distances,
    })
}

/// The divergence of a file from its rows, in parts of whole chunks. None without rows.
pub(super) fn divergence(parts: &[&[RowComparison]], chunks: usize) -> Option<Divergence> {
    let statistics = Statistics::of(parts)?;
    let per_chunk = statistics.rows / chunks.max(1);
    let sums = parts.iter().flat_map(|part| {
        let chunks = vec![per_chunk; part.len() / per_chunk.max(1)];
        sums_of_chunks(part, &chunks)
    });
    let percentile = |percent: f64| {
        let spread = &statistics.kld_spread.percentiles;
        spread
            .iter()
            .find(|(of, _)| *of == percent)
            .map(|(_, value)| *value)
    };
    let measured = report::data::Measured {
        mean: report::data::Mean::Kld(statistics.kld.value),
        uncertainty: statistics.kld.uncertainty,
        median: percentile(50.0),
        p999: percentile(99.9),
        same_top: Some(statistics.same_top.value),
        ppl: Some(statistics.perplexity.value),
        ppl_base: Some(statistics.perplexity_base.value),
        rank_correlation: None,
        shared_neighbours: None,
    };
    Some(Divergence {
        measured,
        rows: statistics.rows as u64,
        chunks: sums.collect(),
    })
}
