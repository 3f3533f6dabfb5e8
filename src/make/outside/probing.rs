//! Nats from weighted errors: a few whole files, each coarse in another part of the model and fine
//! elsewhere, are written, measured on a part of the calibration text, and removed. Their
//! divergences give each part a factor.

use super::super::calibration::Calibrated;
use super::super::cost::{Cost, Rounding};
use super::super::files::{Knowledge, content, request};
use super::super::proof::Divergence;
use super::super::stage::{Foreseeable, Session, Stage};
use super::super::workdir::WorkDir;
use super::super::{Job, Result};
use super::factors::{self, Fitted};
use super::logits::BaseLogits;
use super::meter::LogitsMeter;
use super::{Outside, outside_cost};
use crate::arch::Role;
use crate::format::snapshot::Key;
use crate::format::types::GgmlType;
use crate::plan::file_type::FileType;
use crate::plan::recipe::Wishes;
use crate::quantize::{OutputRequest, Plan};
use crate::report::data;
use crate::resume::KeyBuilder;
use crate::rounding;
use crate::sensitivity::{Choice, Measure, Scored, Scores};
use std::path::PathBuf;

/// Precision of a file's coarse part, of its other parts, and of the file that is the same
/// everywhere, in bits per weight: those of Q3_K, Q6_K and Q4_K.
const COARSE: f64 = 3.4375;
const FINE: f64 = 6.5625;
const MEDIUM: f64 = 4.5;

/// A part of a model with a factor of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Vocabulary,
    Queries,
    Values,
    FfnInput,
    FfnOutput,
    Others,
}

impl Part {
    const ALL: [Part; 6] = [
        Part::Vocabulary,
        Part::Queries,
        Part::Values,
        Part::FfnInput,
        Part::FfnOutput,
        Part::Others,
    ];

    fn of(role: Role) -> Part {
        match role {
            Role::TokenEmbedding | Role::Output => Part::Vocabulary,
            Role::AttentionQ | Role::AttentionK => Part::Queries,
            Role::AttentionOutput => Part::Values,
            role if role.carries_values() => Part::Values,
            Role::FfnUp | Role::FfnGate => Part::FfnInput,
            Role::FfnDown => Part::FfnOutput,
            _ => Part::Others,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Part::Vocabulary => "embedding and output",
            Part::Queries => "queries and keys",
            Part::Values => "values and attention output",
            Part::FfnInput => "feed-forward input",
            Part::FfnOutput => "feed-forward output",
            Part::Others => "other linears",
        }
    }
}

/// The factors of a model, and the files behind them.
#[derive(Clone, Debug)]
pub(in super::super) struct Correction {
    parts: Vec<Part>,
    fitted: Fitted,
    probes: Vec<(String, u64, f64)>,
    /// Chunks and scored positions of the text.
    text: [u64; 2],
}

impl Correction {
    /// Turns weighted errors into nats.
    pub(in super::super) fn apply(&self, job: &Job<'_>, scores: &mut Scores) {
        for tensor in &mut scores.tensors {
            let part = part_of(job, tensor);
            let index = self.parts.iter().position(|of| *of == part);
            // A part without a choice of types has no errors.
            let factor = index.map_or(0.0, |index| self.fitted.factors[index]);
            for choice in &mut tensor.choices {
                choice.nats *= factor;
                choice.plain_nats = choice.plain_nats.map(|nats| nats * factor);
            }
        }
        scores.measure = Measure::Fitted;
        [scores.sequences, scores.positions] = self.text.map(|n| n as usize);
    }

    /// For the report.
    pub(in super::super) fn data(&self) -> data::Correction {
        let factors = self.parts.iter().zip(&self.fitted.factors);
        let probes = self.probes.iter().zip(&self.fitted.fitted);
        data::Correction {
            parts: factors
                .map(|(part, factor)| data::Part {
                    name: part.label().into(),
                    factor: *factor,
                })
                .collect(),
            probes: probes
                .map(|((name, bytes, measured), fitted)| data::Probe {
                    name: name.clone(),
                    bytes: *bytes,
                    measured: *measured,
                    fitted: *fitted,
                })
                .collect(),
            residual: self.fitted.residual,
        }
    }
}

fn part_of(job: &Job<'_>, tensor: &Scored) -> Part {
    Part::of(job.input.catalog().role_named(&tensor.name))
}

/// A file to measure.
struct Probe {
    /// Name in reports.
    name: String,
    recipe: Vec<(String, GgmlType)>,
    /// Weighted errors, by part.
    errors: Vec<f64>,
    key: Key,
}

impl Probe {
    /// Name of its result in the work directory.
    fn entry(index: usize) -> String {
        format!("probe-{index}.measured")
    }
}

/// The stage.
pub(in super::super) struct Probing<'j> {
    job: &'j Job<'j>,
    calibrated: &'j Calibrated,
    meter: LogitsMeter<'j>,
    parts: Vec<Part>,
    probes: Vec<Probe>,
}

impl<'j> Probing<'j> {
    pub(in super::super) fn new(
        job: &'j Job<'j>,
        outside: &'j Outside,
        logits: &'j BaseLogits,
        calibrated: &'j Calibrated,
        scores: &Scores,
    ) -> Result<Probing<'j>> {
        let tensors: Vec<&Scored> = scores
            .tensors
            .iter()
            .filter(|t| t.choices.len() > 1)
            .collect();
        let has = |part: &Part| tensors.iter().any(|tensor| part_of(job, tensor) == *part);
        let parts: Vec<Part> = Part::ALL.into_iter().filter(has).collect();
        let imatrix = content(calibrated.file.as_deref())?;
        let probe = |coarse: Option<Part>| -> Result<Probe> {
            let (mut recipe, mut errors) = (Vec::new(), vec![0.0; parts.len()]);
            for tensor in &tensors {
                let part = part_of(job, tensor);
                let bits = match coarse {
                    None => MEDIUM,
                    Some(coarse) if coarse == part => COARSE,
                    Some(_) => FINE,
                };
                let Some(choice) = nearest(tensor, bits) else {
                    continue;
                };
                recipe.push((tensor.name.clone(), choice.ggml_type));
                if let Some(index) = parts.iter().position(|of| *of == part) {
                    errors[index] += choice.nats;
                }
            }
            let mut key = KeyBuilder::new("outside: probe")
                .with_model(job.input)?
                .with("logits", &logits.key)
                .with("imatrix", &imatrix);
            for (name, t) in &recipe {
                key = key.with(name, t.name().as_bytes());
            }
            Ok(Probe {
                name: match coarse {
                    Some(part) => format!("{} coarse", part.label()),
                    None => "all of medium precision".into(),
                },
                recipe,
                errors,
                key: key.key(),
            })
        };
        let each = parts.iter().map(|part| probe(Some(*part)));
        let probes = each.chain([probe(None)]).collect::<Result<Vec<_>>>()?;
        Ok(Probing {
            meter: LogitsMeter {
                job,
                outside,
                logits,
            },
            job,
            calibrated,
            parts,
            probes,
        })
    }

    fn loaded(&self, work: &WorkDir, index: usize) -> Option<(u64, Divergence)> {
        work.read(&Probe::entry(index), &self.probes[index].key)
    }

    /// The quantizer's plan of a file.
    fn output(&self, probe: &Probe, path: PathBuf) -> OutputRequest {
        let catalog = self.job.input.catalog();
        let typed = |(name, t): &(String, GgmlType)| Some((catalog.tensor_named(name)?, *t));
        OutputRequest {
            path,
            wishes: Wishes {
                file_type: Some(FileType::Q4_K_M),
                recipe: probe.recipe.iter().filter_map(typed).collect(),
                ..Wishes::default()
            },
            rounding: rounding::Rounding::Reference,
            lossless: true,
        }
    }

    /// Writes, measures and removes a file.
    fn measure(&self, session: &Session<'_>, index: usize) -> Result<(u64, Divergence)> {
        let probe = &self.probes[index];
        let path = session.work.path("probe.gguf");
        let removed = || {
            // A failure is harmless: the next run replaces the file.
            let _ = std::fs::remove_file(&path);
        };
        let knowledge = Knowledge {
            imatrix: self.calibrated.file.as_deref(),
            hessians: None,
        };
        let outputs = vec![self.output(probe, path.clone())];
        let measure = || -> Result<(u64, Divergence)> {
            let plan = Plan::new(self.job.input, &request(self.job, knowledge, outputs))?;
            let bytes = plan.outputs.iter().map(|output| output.file_bytes()).sum();
            plan.run(session.progress)?;
            drop(plan);
            Ok((bytes, self.meter.measure_file(session, &path)?))
        };
        let measured = measure();
        removed();
        let measured = measured?;
        session
            .work
            .write(&Probe::entry(index), &probe.key, &measured)?;
        Ok(measured)
    }

    /// The factors, from the results of all files.
    fn corrected(&self, measured: &[(u64, Divergence)]) -> Option<Correction> {
        let errors: Vec<Vec<f64>> = self
            .probes
            .iter()
            .map(|probe| probe.errors.clone())
            .collect();
        let nats: Vec<f64> = measured
            .iter()
            .map(|(_, d)| d.measured.mean.value())
            .collect();
        let probes = self.probes.iter().zip(measured);
        Some(Correction {
            parts: self.parts.clone(),
            fitted: factors::fit(&errors, &nats)?,
            text: [self.meter.logits.chunks, self.meter.logits.rows],
            probes: probes
                .map(|(probe, (bytes, d))| (probe.name.clone(), *bytes, d.measured.mean.value()))
                .collect(),
        })
    }
}

/// The choice of about this precision.
fn nearest(tensor: &Scored, bits: f64) -> Option<&Choice> {
    let distance = |choice: &Choice| (choice.ggml_type.bpw() - bits).abs();
    tensor.choices.iter().min_by(|a, b| {
        distance(a)
            .total_cmp(&distance(b))
            .then(a.ggml_type.cmp(&b.ggml_type))
    })
}

impl Stage for Probing<'_> {
    /// `None` without a choice of types, and in a plan.
    type Output = Option<Correction>;

    fn name(&self) -> &'static str {
        "probing"
    }

    fn load(&self, work: &WorkDir) -> Result<Option<Option<Correction>>> {
        let all = (0..self.probes.len()).map(|index| self.loaded(work, index));
        let all = all.collect::<Option<Vec<_>>>();
        Ok(all.map(|all| self.corrected(&all)))
    }

    fn cost(&self, work: &WorkDir) -> Result<Cost> {
        let missing = (0..self.probes.len()).filter(|index| self.loaded(work, *index).is_none());
        let missing: Vec<usize> = missing.collect();
        let model: u64 = self.job.input.tensors.iter().map(|t| t.info.bytes()).sum();
        let mut cost = Cost {
            read: model * missing.len() as u64,
            ..Cost::default()
        };
        for index in missing {
            let mut bytes = 0;
            for (name, t) in &self.probes[index].recipe {
                let mut tensors = self.job.input.tensors.iter();
                let Some(tensor) = tensors.find(|tensor| tensor.info.name == *name) else {
                    continue;
                };
                let shape = &tensor.info.shape;
                bytes += t.row_bytes(shape.row_len()).unwrap_or(0) * shape.rows();
                cost.rounding.push(Rounding {
                    ggml_type: *t,
                    weights: shape.elements() as f64,
                    columns: shape.row_len(),
                    feedback: false,
                });
            }
            cost.scratch = cost.scratch.max(bytes);
        }
        Ok(outside_cost(cost))
    }

    fn run(&self, session: &Session<'_>) -> Result<Option<Correction>> {
        let mut all = Vec::new();
        for index in 0..self.probes.len() {
            all.push(match self.loaded(session.work, index) {
                Some(measured) => measured,
                None => self.measure(session, index)?,
            });
        }
        Ok(self.corrected(&all))
    }
}

impl Foreseeable for Probing<'_> {
    fn expected(&self, _: &WorkDir) -> Result<Option<Correction>> {
        Ok(None)
    }
}
