//! The importance matrix and the input Hessians, from one pass over the calibration text.

use super::cost::{Cost, Memory};
use super::job::{Job, Model, hessian_needs, imatrix_key, shown_to_all};
use super::numbers::Numbers;
use super::shards::{Averaging, Cut, Summing};
use super::stage::{Foreseeable, Session, Stage};
use super::workdir::WorkDir;
use super::{Error, Result};
use crate::format::imatrix::{Entry, Format, Imatrix};
use crate::format::snapshot::Key;
use crate::hessian::{self, Needs};
use crate::imatrix::collect;
use crate::imatrix::coverage::{self, Coverage};
use crate::input::Input;
use crate::resume::KeyBuilder;
use crate::rounding::InputHessians;
use crate::sensitivity::{self, ModelKnowledge};
use std::path::{Path, PathBuf};

/// Statistics of the inputs of linears.
pub(super) struct Calibrated {
    pub(super) imatrix: Imatrix,
    /// Path of the importance matrix; none in a plan.
    pub(super) file: Option<PathBuf>,
    /// Input Hessians, for error feedback; none in a plan.
    pub(super) hessians: Option<InputHessians>,
    /// Key of the input Hessians, also in a plan.
    pub(super) hessian_key: Option<Key>,
}

impl Calibrated {
    /// Only the importance matrix given by the user.
    pub(super) fn given(job: &Job<'_>) -> Result<Calibrated> {
        let file = job.options.imatrix.as_ref().ok_or(Error::NeedsImatrix)?;
        Calibrated::read(job, file, None)
    }

    /// Weights of the model, and the statistics for rounding them.
    pub(super) fn knowledge<'k>(&'k self, input: &'k Input<'k>) -> ModelKnowledge<'k> {
        ModelKnowledge {
            input,
            imatrix: &self.imatrix,
            hessians: self.hessians.as_ref(),
        }
    }

    /// Tokens per expert of the importance matrix; `None` without experts.
    pub(super) fn coverage(&self, input: &Input<'_>) -> Option<Coverage> {
        let catalog = input.catalog();
        coverage::coverage(&self.imatrix, |name| {
            let linear = catalog.linear_named(name);
            linear.is_some_and(|linear| linear.grouping.experts().is_some())
        })
    }

    /// Reads an importance matrix and checks it against the model.
    pub(super) fn read(
        job: &Job<'_>,
        file: &Path,
        hessians: Option<InputHessians>,
    ) -> Result<Calibrated> {
        let imatrix = Imatrix::read(file)?;
        sensitivity::importance(job.input, &imatrix)?;
        Ok(Calibrated {
            imatrix,
            file: Some(file.to_owned()),
            hessian_key: hessians.as_ref().map(|hessians| *hessians.key()),
            hessians,
        })
    }
}

/// A note on the experts that the calibration text does not reach.
pub(super) fn unreached(job: &Job<'_>, coverage: &Coverage) -> Option<String> {
    let remedy = match job.model() {
        Some(_) => "use a longer or more varied text, or --all-experts",
        None => "use a longer or more varied text",
    };
    let experts = coverage.unreached();
    let layers = coverage.never.iter();
    let listed = layers.map(|(layer, experts)| format!("{layer} ({experts})"));
    (experts > 0).then(|| {
        format!(
            "no token of the calibration text reaches {experts} of {} experts, in layers {}: they are rounded with the \
             statistics of their layer's other experts; {remedy}",
            coverage.experts,
            coverage::some(listed)
        )
    })
}

/// The stage.
pub(super) struct Calibration<'j> {
    pub(super) job: &'j Job<'j>,
    pub(super) model: &'j Model<'j>,
    pub(super) numbers: &'j Numbers,
    /// Path of the importance matrix, new or given.
    pub(super) file: PathBuf,
    is_given: bool,
    pub(super) imatrix_key: Key,
    pub(super) hessians: Option<Hessians>,
}

/// Input Hessians to collect.
pub(super) struct Hessians {
    pub(super) job: hessian::Job,
    pub(super) needs: Needs,
}

impl Hessians {
    fn load(&self) -> Option<InputHessians> {
        let hessians = InputHessians::open(&self.job.directory).ok()?;
        (*hessians.key() == self.job.key).then_some(hessians)
    }
}

impl<'j> Calibration<'j> {
    /// `None` if there is nothing to collect.
    pub(super) fn new(
        job: &'j Job<'j>,
        model: &'j Model<'j>,
        numbers: &'j Numbers,
    ) -> Result<Option<Calibration<'j>>> {
        let hessians = match job.options.rounding.has_feedback() {
            true => {
                let needs = hessian_needs(model)?;
                let key = KeyBuilder::new("make: covariance").with_model(job.input)?;
                let key = shown_to_all(job, key)
                    .with("tokens", &model.texts.calibration_bytes())
                    .with("experts apart", &[needs.experts_apart.into()]);
                let job = hessian::Job {
                    directory: job.work().path("covariance"),
                    key: key.key(),
                    experts_apart: needs.experts_apart,
                    hold_out: true,
                };
                Some(Hessians { job, needs })
            }
            false => None,
        };
        let given = job.options.imatrix.clone();
        if given.is_some() && hessians.is_none() {
            return Ok(None);
        }
        Ok(Some(Calibration {
            job,
            model,
            numbers,
            is_given: given.is_some(),
            file: given.unwrap_or_else(|| job.imatrix_file()),
            imatrix_key: imatrix_key(job, model)?,
            hessians,
        }))
    }

    /// Cost of the whole text; without the bytes of an importance matrix that exists.
    pub(super) fn whole_cost(&self, has_imatrix: bool) -> Cost {
        let Numbers {
            calibration,
            width,
            largest,
            output,
            ..
        } = *self.numbers;
        let needs = self.hessians.as_ref().map(|hessians| &hessians.needs);
        let imatrix = match has_imatrix {
            true => 0,
            false => self.imatrix_bytes(),
        };
        let forward = match self.job.options.all_experts {
            true => self.numbers.forward_all(calibration),
            false => self.numbers.forward(calibration),
        };
        let cost = Cost {
            operations: forward
                + self.numbers.logits(calibration)
                + needs.map_or(0.0, |needs| needs.operations),
            read: self.numbers.model_bytes,
            written: imatrix + needs.map_or(0, |needs| needs.files),
            scratch: self.numbers.snapshots(calibration),
            ..Cost::default()
        };
        let memory = Memory {
            activations: calibration * width * 4.0,
            work: largest.max(output) * 4.0
                + self.numbers.working(1.0).max(self.numbers.working_logits()),
            feedback: needs.map_or(0.0, |needs| needs.memory as f64),
        };
        self.numbers.with_memory(cost, memory)
    }

    /// Chunks of the calibration text.
    pub(super) fn chunks(&self) -> usize {
        (self.numbers.calibration / self.numbers.context) as usize
    }

    /// Size of the values of a new importance matrix, in bytes.
    pub(super) fn imatrix_bytes(&self) -> u64 {
        imatrix_bytes(self.job)
    }

    /// Maximum size of the input Hessians, in bytes.
    pub(super) fn hessian_bytes(&self) -> u64 {
        let hessians = self.hessians.as_ref();
        hessians.map_or(0, |hessians| hessians.needs.files)
    }

    pub(super) fn has_imatrix(&self, work: &WorkDir) -> bool {
        self.is_given || (self.file.exists() && work.is_marked(IMATRIX, &self.imatrix_key))
    }
}

/// Name of the importance matrix and of the snapshot in the work directory.
pub(super) const IMATRIX: &str = "imatrix";

impl Stage for Calibration<'_> {
    type Output = Calibrated;

    fn name(&self) -> &'static str {
        "importance matrix"
    }

    fn load(&self, work: &WorkDir) -> Result<Option<Calibrated>> {
        if !self.has_imatrix(work) {
            return Ok(None);
        }
        let hessians = self.hessians.as_ref().map(Hessians::load);
        match hessians {
            Some(None) => Ok(None),
            hessians => Calibrated::read(self.job, &self.file, hessians.flatten()).map(Some),
        }
    }

    fn cost(&self, work: &WorkDir) -> Result<Cost> {
        Ok(self.whole_cost(self.has_imatrix(work)))
    }

    fn cuts(&self) -> Vec<Box<dyn Cut + '_>> {
        let mut cuts: Vec<Box<dyn Cut + '_>> = vec![Box::new(Summing(self))];
        if self.hessians.is_some() {
            cuts.push(Box::new(Averaging(self)));
        }
        cuts
    }

    fn run(&self, session: &Session<'_>) -> Result<Calibrated> {
        let work = session.work;
        let has_imatrix = self.has_imatrix(work);
        let mut hessians = self.hessians.as_ref().and_then(Hessians::load);
        let missing = self.hessians.as_ref().filter(|_| hessians.is_none());
        if let Some(missing) = missing {
            // Remove Hessians of other texts; keep those of an interrupted run.
            hessian::clear_others(&missing.job.directory, &missing.job.key)?;
            missing.needs.check(&missing.job)?;
        }
        let key = KeyBuilder::new("make: imatrix")
            .with("all", &self.imatrix_key)
            .with(
                "covariance",
                missing.map_or(&[][..], |missing| &missing.job.key),
            );
        let windows = self.model.texts.calibration()?;
        let (collected, resume) = session.resumable(
            &work.snapshot(IMATRIX),
            key.key(),
            collect::Error::is_final,
            |resume| {
                let options = collect::Options {
                    process_output: self.model.engine.has_output(),
                    all_experts: self.job.options.all_experts,
                    resume: Some(resume),
                    covariance: missing.map(|missing| &missing.job),
                    ..collect::Options::default()
                };
                collect::collect(self.model.engine, &windows, &options, session.progress)
            },
        )?;
        if !has_imatrix {
            let mut sums = collected.sums;
            sums.datasets = self.model.texts.calibration_names();
            let imatrix = sums.to_file(self.job.context as u32);
            imatrix.write(&self.file, Format::Gguf, &self.job.input.paths())?;
            work.mark(IMATRIX, &self.imatrix_key)?;
        }
        resume.remove();
        if let Some(missing) = missing {
            hessians = Some(InputHessians::open(&missing.job.directory)?);
        }
        // Read again, in f32 as in later runs.
        Calibrated::read(self.job, &self.file, hessians)
    }
}

impl Foreseeable for Calibration<'_> {
    fn expected(&self, work: &WorkDir) -> Result<Calibrated> {
        let calibrated = match self.has_imatrix(work) {
            true => Calibrated::read(self.job, &self.file, None)?,
            false => Calibrated {
                imatrix: expected(self.job),
                file: None,
                hessians: None,
                hessian_key: None,
            },
        };
        Ok(Calibrated {
            hessian_key: self.hessians.as_ref().map(|hessians| hessians.job.key),
            ..calibrated
        })
    }
}

/// Size of the values of a new importance matrix, in bytes.
pub(super) fn imatrix_bytes(job: &Job<'_>) -> u64 {
    let values = expected(job).entries.into_values();
    4 * values.map(|entry| entry.sums.len() as u64).sum::<u64>()
}

/// An importance matrix of zeros with the entries of the future one.
pub(super) fn expected(job: &Job<'_>) -> Imatrix {
    let catalog = job.input.catalog();
    let linears = catalog.linears().iter();
    let collected = linears.filter(|linear| {
        let is_run = job.input.is_run(&catalog.weight(linear.id).name);
        is_run && catalog.in_imatrix(linear.id, job.has_output())
    });
    let entries = collected.map(|linear| {
        let weight = catalog.weight(linear.id);
        let entry = Entry {
            sums: vec![0.0; (weight.row_len() * weight.matrices()) as usize],
            counts: vec![1; weight.matrices() as usize],
        };
        (weight.name.to_string(), entry)
    });
    Imatrix {
        entries: entries.collect(),
        datasets: Vec::new(),
        chunk_count: 0,
        chunk_size: 0,
    }
}
