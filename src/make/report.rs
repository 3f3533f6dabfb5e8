//! The report on disk: frontier.json, report.html, a chart, and a recipe for each file.

use super::allocation::{Allocation, FilePlan};
use super::fit::{factor, fit};
use super::job::{GENERAL_NAME, Job, JobEngine, model_name};
use super::proof::{Divergence, Proven};
use super::{Outcome, Result, write_text};
use crate::arch::Catalog;
use crate::evaluate::paired::{self, Paired};
use crate::format::gguf::{Value, keys};
use crate::input::Input;
use crate::plan::frontier::Item;
use crate::report::data;
use crate::report::numbers::{shell, size};
use crate::report::page::page;
use crate::report::size_chart::size_chart;
use crate::report::svg::Place;
use crate::rounding::{Proof, Rounding, TensorProof, spread};
use crate::sensitivity::{Measure, Scores};

/// Maximum number of points of the frontier in frontier.json.
const POINTS: usize = 400;

/// The report without measurements.
fn predicted(job: &Job<'_>, scores: &Scores, allocation: &Allocation) -> data::Frontier {
    let settings = job.settings();
    let mut types: Vec<String> = Vec::new();
    for choice in allocation
        .problem
        .items
        .iter()
        .flat_map(|item| &item.choices)
    {
        let name = choice.ggml_type.name().to_owned();
        if !types.contains(&name) {
            types.push(name);
        }
    }
    data::Frontier {
        format: data::FORMAT,
        generator: format!("quantier {}", env!("CARGO_PKG_VERSION")),
        model: model(job.input, allocation),
        distance: match job.has_output() {
            true => data::Distance::KlDivergence,
            false => data::Distance::Cosine,
        },
        scoring: data::Scoring {
            texts: used(&job.calibration_tokens()),
            sequences: scores.sequences as u64,
            context: job.context as u64,
            draws: settings.draws as u32,
            seed: settings.seed,
            score: match scores.measure {
                Measure::Divergence if !job.has_output() => data::Score::PerText,
                Measure::Divergence => data::Score::PerToken,
                Measure::Sweep => data::Score::Sweep,
                Measure::Imatrix => data::Score::WeightedError,
                Measure::Fitted => data::Score::FittedError,
            },
        },
        evaluation: None,
        types,
        tensors: allocation
            .problem
            .items
            .iter()
            .map(|item| tensor(job.input.catalog(), scores, item))
            .collect(),
        frontier: points(allocation),
        presets: allocation
            .presets
            .iter()
            .map(|preset| data::Preset {
                name: preset.file_type.name().into(),
                bytes: preset.file_bytes,
                bpw: allocation.problem.bpw(preset.tensor_bytes),
                predicted: preset.nats,
                measured: None,
            })
            .collect(),
        correction: None,
        fit: None,
        preset_fit: None,
        files: allocation.files.iter().map(file).collect(),
        projector: None,
        stages: Vec::new(),
        settings: vec![data::Setting {
            name: "scored positions".into(),
            value: scores.positions.to_string(),
        }],
        commands: commands(job, allocation),
    }
}

/// Texts with used tokens.
fn used(tokens: &[(String, u64)]) -> Vec<data::Text> {
    let used = tokens.iter().filter(|(_, tokens)| *tokens > 0);
    used.map(|(name, tokens)| data::Text {
        name: name.clone(),
        tokens: *tokens,
    })
    .collect()
}

fn model(input: &Input<'_>, allocation: &Allocation) -> data::Model {
    let metadata = input.metadata();
    let tensors = &input.tensors;
    let base_type = tensors
        .iter()
        .max_by_key(|t| t.info.shape.elements())
        .map(|t| t.info.ggml_type.name());
    let architecture = metadata
        .get(keys::ARCHITECTURE)
        .and_then(Value::as_str)
        .unwrap_or_default();
    let number = |key: &str| {
        let value = metadata
            .get(&format!("{architecture}.{key}"))
            .and_then(Value::as_u64);
        value.and_then(|n| u32::try_from(n).ok())
    };
    data::Model {
        name: metadata
            .get(GENERAL_NAME)
            .and_then(Value::as_str)
            .map_or_else(|| model_name(input), str::to_owned),
        architecture: architecture.into(),
        parameters: tensors.iter().map(|t| t.info.shape.elements()).sum(),
        layers: number("block_count").unwrap_or(0),
        experts: number("expert_count").filter(|n| *n > 0),
        base_type: base_type.unwrap_or_default().into(),
        base_bytes: allocation.header_bytes + tensors.iter().map(|t| t.info.bytes()).sum::<u64>(),
        source: source(input),
    }
}

/// The Hub's checkpoint in its cache that the model comes from. A GGUF there is a third-party
/// conversion, and names its base itself.
fn source(input: &Input<'_>) -> Option<data::Source> {
    let path = input
        .paths()
        .first()
        .filter(|path| path.extension().is_none_or(|e| e != "gguf"))?
        .to_path_buf();
    let crate::hub::Origin { repository, commit } = crate::hub::origin(&path)?;
    Some(data::Source { repository, commit })
}

fn tensor(catalog: &Catalog, scores: &Scores, item: &Item) -> data::Tensor {
    let entry = catalog
        .tensor_named(&item.name)
        .map(|id| catalog.tensor(id));
    let scored = scores.tensors.iter().find(|t| t.name == item.name);
    let mut choices: Vec<_> = item.choices.iter().collect();
    choices.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.nats.total_cmp(&b.nats)));
    data::Tensor {
        name: item.name.clone(),
        role: entry.map_or(&*item.name, |entry| entry.label()).into(),
        layer: entry.and_then(|entry| entry.layer).map(|layer| layer.0),
        shape: scored.map_or_else(Vec::new, |scored| scored.dims.clone()),
        weights: item.weights,
        choices: choices
            .into_iter()
            .map(|c| data::Choice {
                ggml_type: c.ggml_type.name().into(),
                bytes: c.bytes,
                nats: c.nats,
            })
            .collect(),
        standard_error: scored
            .map(|scored| scored.standard_error)
            .filter(|e| *e > 0.0),
    }
}

/// The frontier, thinned for the chart: the smallest, the largest, and points evenly between.
fn points(allocation: &Allocation) -> Vec<data::Point> {
    let all = allocation.frontier.points();
    let step = all.len().div_ceil(POINTS).max(1);
    let last = all.len().saturating_sub(1);
    let shown = all
        .iter()
        .enumerate()
        .filter(|(i, _)| i % step == 0 || *i == last);
    shown
        .map(|(_, p)| data::Point {
            bytes: allocation.header_bytes + p.bytes,
            bpw: allocation.problem.bpw(p.bytes),
            nats: p.nats,
        })
        .collect()
}

fn file(file: &FilePlan) -> data::File {
    data::File {
        name: file.file_name(),
        budget: file.budget.clone(),
        label: format!("{:.2} bpw", file.bpw),
        bytes: file.file_bytes,
        bpw: file.bpw,
        recipe: file
            .recipe
            .iter()
            .map(|(name, t)| (name.clone(), t.name().to_owned()))
            .collect(),
        predicted: file.solution.nats,
        corrected: None,
        tuned: None,
        measured: None,
        versus: Vec::new(),
        rounding: Vec::new(),
    }
}

/// Adds the effect of error feedback on each file, in the order of the allocation.
fn rounded(report: &mut data::Frontier, job: &Job<'_>, proved: &[Vec<TensorProof>]) {
    let ratios: Vec<f64> = proved
        .iter()
        .flatten()
        .filter_map(|proved| proved.proof.ratio())
        .collect();
    for (file, proved) in report.files.iter_mut().zip(proved) {
        let of_tensor = |proved: &TensorProof| {
            let Proof {
                reference,
                taken,
                power,
                rows,
                by_reference,
                even: _,
            } = proved.proof;
            let part = |error: f64| (power > 0.0).then(|| error / power);
            let kept_plain = by_reference as f64 / rows.max(1) as f64;
            data::Rounded {
                tensor: proved.tensor.clone(),
                plain: part(reference),
                taken: part(taken),
                kept_plain,
            }
        };
        file.rounding = proved.iter().map(of_tensor).collect();
    }
    let how = match job.options.rounding {
        Rounding::Feedback {
            sequential: true,
            two_sided: true,
        } => "sequential, two-sided error feedback",
        Rounding::Feedback {
            sequential: true, ..
        } => "sequential error feedback",
        _ => "error feedback",
    };
    let value = match spread(&ratios) {
        Some([mean, least, most]) => format!(
            "{how}; the output error on held-out text is {mean:.2} times that of reference rounding ({least:.2} to \
             {most:.2} per tensor)"
        ),
        None => how.into(),
    };
    report.settings.push(data::Setting {
        name: "rounding".into(),
        value,
    });
}

fn commands(job: &Job<'_>, allocation: &Allocation) -> Vec<data::Command> {
    let types_of = |file: &FilePlan| {
        let name = file.file_name();
        let imatrix = job.options.imatrix.as_ref();
        let imatrix = imatrix
            .and_then(|path| path.file_name())
            .map(|n| n.to_string_lossy().into_owned());
        data::Command {
            purpose: match job.options.rounding.has_feedback() {
                false => format!("{name}, with llama.cpp only"),
                true => format!("The types of {name} with llama.cpp only, without error feedback"),
            },
            command: format!(
                "llama-quantize --imatrix {} --tensor-type-file {} BASE.gguf {} {}",
                shell(&imatrix.unwrap_or_else(|| "imatrix.gguf".into())),
                shell(&format!("{name}.recipe.txt")),
                shell(&name),
                file.label.name()
            ),
        }
    };
    let whole = job.options.command.iter().map(|command| data::Command {
        purpose: format!("Everything, with quantier {}", env!("CARGO_PKG_VERSION")),
        command: command.clone(),
    });
    whole.chain(allocation.files.iter().map(types_of)).collect()
}

/// The setting of tuned files; none for others.
fn tuning(tuned: &[data::Tuned]) -> Option<data::Setting> {
    let tokens = tuned.first()?.tokens;
    let ratios = tuned.iter().filter(|t| t.before > 0.0);
    let ratios: Vec<f64> = ratios.map(|t| t.after / t.before).collect();
    let [mean, least, most] = spread(&ratios)?;
    Some(data::Setting {
        name: "tuning".into(),
        value: format!(
            "on {tokens} tokens of the calibration text; the divergence on held-out parts of it is {mean:.2} times that \
             before ({least:.2} to {most:.2} per file)"
        ),
    })
}

/// The paired difference between a file and a preset; none if a program measured them that reports no chunks.
fn versus(preset: &str, [file, of_preset]: [&Divergence; 2]) -> Option<data::Versus> {
    let chunks = file.chunks.len();
    if chunks == 0 || chunks != of_preset.chunks.len() || file.rows != of_preset.rows {
        return None;
    }
    let differences = file.chunks.iter().zip(&of_preset.chunks);
    let differences: Vec<f64> = differences.map(|(a, b)| a - b).collect();
    let paired = Paired::of_sums(&differences, &vec![file.rows as usize / chunks; chunks])?;
    Some(data::Versus {
        preset: preset.into(),
        difference: paired.difference,
        uncertainty: paired.uncertainty,
        verdict: match paired.verdict {
            paired::Verdict::First => data::Verdict::Closer,
            paired::Verdict::Second => data::Verdict::Farther,
            paired::Verdict::Unclear => data::Verdict::Unclear,
        },
    })
}

/// Adds divergences of files and presets, and fits the predictions of the files to them.
fn measured(report: &mut data::Frontier, proven: &Proven) {
    for (preset, divergence) in &proven.presets {
        let mut presets = report.presets.iter_mut();
        if let Some(preset) = presets.find(|p| p.name == preset.name()) {
            preset.measured = Some(divergence.measured.clone());
        }
    }
    report.evaluation = proven.files.first().map(|first| data::Evaluation {
        texts: used(&proven.texts),
        context: report.scoring.context,
        tokens: first.rows,
        tool: proven.tool.clone(),
    });
    for (file, divergence) in report.files.iter_mut().zip(&proven.files) {
        file.measured = Some(divergence.measured.clone());
        let presets = proven.presets.iter();
        let versus = presets
            .filter_map(|(preset, of_preset)| versus(preset.name(), [divergence, of_preset]));
        file.versus = versus.collect();
    }
    for (file, tuned) in report.files.iter_mut().zip(&proven.tuned) {
        file.tuned = Some(tuned.clone());
    }
    report.settings.extend(tuning(&proven.tuned));
    if report.scoring.score == data::Score::WeightedError {
        return;
    }
    let pairs: Vec<_> = report
        .files
        .iter()
        .filter_map(|f| Some((f.predicted, f.measured.as_ref()?.mean.value())))
        .collect();
    report.fit = fit(&pairs);
    // Presets are rounded otherwise, so that the fit of the files says nothing about them.
    let presets = report.presets.iter();
    let pairs = presets.filter_map(|p| Some((p.predicted?, p.measured.as_ref()?.mean.value())));
    report.preset_fit = factor(&pairs.collect::<Vec<_>>());
    if let Some(fit) = report.fit {
        for file in &mut report.files {
            file.corrected = Some(fit.apply(file.predicted));
        }
    }
}

/// Writes everything, files by rising size, and returns the contents of frontier.json.
pub(super) fn write(
    job: &Job<'_>,
    outcome: &Outcome,
    stages: Vec<data::Stage>,
) -> Result<data::Frontier> {
    let allocation = &outcome.allocation;
    let mut report = predicted(job, &outcome.scores, allocation);
    if let Some(proven) = &outcome.proven {
        measured(&mut report, proven);
    }
    if let Some(proved) = &outcome.proved {
        rounded(&mut report, job, proved);
    }
    if let (JobEngine::Outside(outside), Some(correction)) = (&job.engine, &outcome.correction) {
        report.settings.extend(outside.settings(correction));
        report.correction = Some(correction.data());
    }
    if let Some(coverage) = &outcome.coverage {
        report.settings.push(data::Setting {
            name: "calibration tokens per expert".into(),
            value: coverage.to_string(),
        });
    }
    if let Some(projector) = &outcome.projector {
        report.settings.push(data::Setting {
            name: "projector".into(),
            value: format!("{}, {}", projector.name, size(projector.bytes)),
        });
        report.projector = Some(projector.clone());
    }
    report.stages = stages;
    report.files.sort_by_key(|file| file.bytes);
    let directory = &job.options.directory;
    for file in &allocation.files {
        let name = format!("{}.recipe.txt", file.file_name());
        write_text(&directory.join(name), &file.recipe_text())?;
    }
    write_text(&directory.join("frontier.json"), &report.to_json())?;
    write_text(
        &directory.join("frontier.svg"),
        &size_chart(&report, Place::Alone),
    )?;
    write_text(&directory.join("report.html"), &page(&report))?;
    Ok(report)
}
