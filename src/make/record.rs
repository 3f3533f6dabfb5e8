//! The evidence, put down: frontier.json, report.html, a picture, a recipe for each file.

use super::choice::Choices;
use super::proof::fit;
use super::prove::Proven;
use super::{Job, Result, texts, write_text};
use crate::arch::Catalog;
use crate::format::gguf::{Value, keys};
use crate::input::Input;
use crate::report::data;
use crate::report::numbers::shell;
use crate::report::page::page;
use crate::report::size_chart::size_chart;
use crate::report::svg::Place;
use crate::rounding::{Proof, Rounding, TensorProof, spread};
use crate::sensitivity::{Measure, Scores};

/// Points of the frontier that are written down.
const POINTS: usize = 400;

pub(super) fn new(
    input: &Input<'_>,
    job: &Job,
    windows: Option<&texts::Cut>,
    scores: &Scores,
    choices: &Choices,
) -> data::Frontier {
    let mut types: Vec<String> = Vec::new();
    for choice in choices.problem.items.iter().flat_map(|item| &item.choices) {
        let name = choice.ggml_type.name().to_owned();
        if !types.contains(&name) {
            types.push(name);
        }
    }
    data::Frontier {
        format: data::FORMAT,
        generator: format!("quantier {}", env!("CARGO_PKG_VERSION")),
        model: of_model(input, choices),
        scoring: data::Scoring {
            texts: windows.map_or_else(Vec::new, |windows| used(&windows.calibration_tokens)),
            sequences: scores.sequences as u64,
            context: job.texts.context as u64,
            draws: job.settings.draws as u32,
            seed: job.settings.seed,
            score: match scores.measure {
                Measure::Divergence => data::Score::PerToken,
                Measure::Sweep => data::Score::Sweep,
                Measure::Imatrix => data::Score::WeightedError,
            },
        },
        evaluation: None,
        types,
        tensors: choices
            .problem
            .items
            .iter()
            .map(|item| tensor(input.catalog(), scores, item))
            .collect(),
        frontier: points(choices),
        presets: choices
            .presets
            .iter()
            .map(|preset| data::Preset {
                name: preset.file_type.name().into(),
                bytes: preset.file_bytes,
                bpw: choices.problem.bpw(preset.tensor_bytes),
                predicted: preset.nats,
                measured: None,
            })
            .collect(),
        fit: None,
        files: choices.chosen.iter().map(file).collect(),
        stages: Vec::new(),
        settings: vec![data::Setting {
            name: "positions judged on".into(),
            value: scores.positions.to_string(),
        }],
        commands: commands(job, choices),
    }
}

/// The texts that something was taken of.
fn used(tokens: &[(String, u64)]) -> Vec<data::Text> {
    let used = tokens.iter().filter(|(_, tokens)| *tokens > 0);
    used.map(|(name, tokens)| data::Text {
        name: name.clone(),
        tokens: *tokens,
    })
    .collect()
}

fn of_model(input: &Input<'_>, choices: &Choices) -> data::Model {
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
            .get(super::GENERAL_NAME)
            .and_then(Value::as_str)
            .map_or_else(|| super::model_name(input), str::to_owned),
        architecture: architecture.into(),
        parameters: tensors.iter().map(|t| t.info.shape.elements()).sum(),
        layers: number("block_count").unwrap_or(0),
        experts: number("expert_count").filter(|n| *n > 0),
        base_type: base_type.unwrap_or_default().into(),
        base_bytes: choices.header_bytes + tensors.iter().map(|t| t.info.bytes()).sum::<u64>(),
        source: source(input),
    }
}

/// The checkpoint in the Hub's cache that this is. GGUFs there are others' conversions of something
/// that they name.
fn source(input: &Input<'_>) -> Option<data::Source> {
    let path = input
        .paths()
        .first()
        .filter(|path| path.extension().is_none_or(|e| e != "gguf"))?
        .to_path_buf();
    let crate::hub::Origin { repository, commit } = crate::hub::origin(&path)?;
    Some(data::Source { repository, commit })
}

fn tensor(catalog: &Catalog, scores: &Scores, item: &crate::plan::frontier::Item) -> data::Tensor {
    let entry = catalog
        .tensor_named(&item.name)
        .map(|id| catalog.tensor(id));
    let dims = scores
        .tensors
        .iter()
        .find(|t| t.name == item.name)
        .map(|t| t.dims.clone());
    let mut choices: Vec<_> = item.choices.iter().collect();
    choices.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.nats.total_cmp(&b.nats)));
    data::Tensor {
        name: item.name.clone(),
        role: entry.map_or(&*item.name, |entry| entry.label()).into(),
        layer: entry.and_then(|entry| entry.layer).map(|layer| layer.0),
        shape: dims.unwrap_or_default(),
        weights: item.weights,
        choices: choices
            .into_iter()
            .map(|c| data::Choice {
                ggml_type: c.ggml_type.name().into(),
                bytes: c.bytes,
                nats: c.nats,
            })
            .collect(),
    }
}

/// The frontier, thinned to what a picture shows: the smallest, the largest, and points evenly
/// between.
fn points(choices: &Choices) -> Vec<data::Point> {
    let all = choices.frontier.points();
    let step = all.len().div_ceil(POINTS).max(1);
    let last = all.len().saturating_sub(1);
    let shown = all
        .iter()
        .enumerate()
        .filter(|(i, _)| i % step == 0 || *i == last);
    shown
        .map(|(_, p)| data::Point {
            bytes: choices.header_bytes + p.bytes,
            bpw: choices.problem.bpw(p.bytes),
            nats: p.nats,
        })
        .collect()
}

fn file(chosen: &super::choice::Chosen) -> data::File {
    data::File {
        name: chosen
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        budget: chosen.budget.clone(),
        label: format!("{:.2} bpw", chosen.bpw),
        bytes: chosen.file_bytes,
        bpw: chosen.bpw,
        recipe: chosen
            .recipe
            .iter()
            .map(|(name, t)| (name.clone(), t.name().to_owned()))
            .collect(),
        predicted: chosen.solution.nats,
        corrected: None,
        measured: None,
        rounding: Vec::new(),
    }
}

/// Adds what rounding with error feedback did, for each file in the order of the budgets.
pub(super) fn rounded(report: &mut data::Frontier, job: &Job, proved: Vec<Vec<TensorProof>>) {
    let ratios: Vec<f64> = proved
        .iter()
        .flatten()
        .filter_map(|proved| proved.proof.ratio())
        .collect();
    for (file, proved) in report.files.iter_mut().zip(proved) {
        let of = |proved: TensorProof| {
            let Proof {
                reference,
                taken,
                power,
                rows,
                by_reference,
            } = proved.proof;
            let part = |error: f64| (power > 0.0).then(|| error / power);
            let kept_plain = by_reference as f64 / rows.max(1) as f64;
            data::Rounded {
                tensor: proved.tensor,
                plain: part(reference),
                taken: part(taken),
                kept_plain,
            }
        };
        file.rounding = proved.into_iter().map(of).collect();
    }
    let how = match job.rounding {
        Rounding::Feedback {
            sequential: true, ..
        } => "error feedback, each matrix behind those that were rounded before it",
        _ => "error feedback",
    };
    let value = match spread(&ratios) {
        Some([mean, least, most]) => format!(
            "{how}; on held-out text the errors of products are {mean:.2} times those of plain rounding ({least:.2} to \
             {most:.2}, tensor by tensor)"
        ),
        None => how.into(),
    };
    report.settings.push(data::Setting {
        name: "rounding".into(),
        value,
    });
}

fn commands(job: &Job, choices: &Choices) -> Vec<data::Command> {
    let of = |chosen: &super::choice::Chosen| {
        let name = chosen
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let imatrix = job
            .imatrix
            .as_ref()
            .and_then(|path| path.file_name())
            .map(|n| n.to_string_lossy().into_owned());
        data::Command {
            purpose: match job.rounding.has_feedback() {
                false => format!("{name}, by llama.cpp alone"),
                true => format!("The types of {name} by llama.cpp alone, without error feedback"),
            },
            command: format!(
                "llama-quantize --imatrix {} --tensor-type-file {} BASE.gguf {} {}",
                shell(&imatrix.unwrap_or_else(|| "imatrix.gguf".into())),
                shell(&format!("{name}.recipe.txt")),
                shell(&name),
                chosen.label.name()
            ),
        }
    };
    let all = job.command.iter().map(|command| data::Command {
        purpose: format!("Everything, with quantier {}", env!("CARGO_PKG_VERSION")),
        command: command.clone(),
    });
    all.chain(choices.chosen.iter().map(of)).collect()
}

/// Adds what was measured of the files and of some presets, and fits the predictions of the files
/// to it.
pub(super) fn measured(report: &mut data::Frontier, proven: Proven, windows: &texts::Cut) {
    let Proven { found, presets, .. } = proven;
    for (preset, found) in presets {
        if let Some(of) = report
            .presets
            .iter_mut()
            .find(|of| of.name == preset.name())
        {
            of.measured = Some(found.measured);
        }
    }
    report.evaluation = found.first().map(|first| data::Evaluation {
        texts: used(&windows.evaluation_tokens),
        context: report.scoring.context,
        tokens: first.rows,
        tool: "quantier".into(),
    });
    for (file, found) in report.files.iter_mut().zip(found) {
        file.measured = Some(found.measured);
    }
    if report.scoring.score == data::Score::WeightedError {
        return;
    }
    let pairs: Vec<_> = report
        .files
        .iter()
        .filter_map(|f| Some((f.predicted, f.measured.as_ref()?.kld)))
        .collect();
    report.fit = fit(&pairs);
    if let Some(fit) = report.fit {
        for file in &mut report.files {
            file.corrected = Some(fit.apply(file.predicted));
        }
    }
}

/// Writes everything; files by rising size.
pub(super) fn write(job: &Job, report: &mut data::Frontier, choices: &Choices) -> Result<()> {
    for chosen in choices.chosen.iter().filter(|_| !job.frontier_only) {
        let mut name = chosen.path.file_name().unwrap_or_default().to_owned();
        name.push(".recipe.txt");
        write_text(&job.directory.join(name), &Choices::recipe_text(chosen))?;
    }
    report.files.sort_by_key(|file| file.bytes);
    write_text(&job.directory.join("frontier.json"), &report.to_json())?;
    write_text(
        &job.directory.join("frontier.svg"),
        &size_chart(report, Place::Alone),
    )?;
    write_text(&job.directory.join("report.html"), &page(report))?;
    Ok(())
}
