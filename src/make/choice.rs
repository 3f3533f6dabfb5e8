//! From scores to recipes.

use super::{Error, Job, Opened, Result};
use crate::format::gguf::{DEFAULT_ALIGNMENT, Value, keys};
use crate::format::types::GgmlType;
use crate::input::Input;
use crate::plan::file_type::{CHOICES, FileType};
use crate::plan::frontier::{
    Budget, Choice, Frontier, Item, LayerCache, Memory, Problem, Solution, Surroundings, spread,
};
use crate::plan::recipe::Wishes;
use crate::quantize::{self, ImatrixRequest, OutputRequest};
use crate::rounding::Rounding;
use crate::sensitivity::{Measure, Scores};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All that was chosen, and what it was chosen from.
pub(super) struct Choices {
    pub(super) problem: Problem,
    pub(super) frontier: Frontier,
    pub(super) presets: Vec<Preset>,
    pub(super) chosen: Vec<Chosen>,
    /// Bytes of a file before its tensors.
    pub(super) header_bytes: u64,
    pub(super) notes: Vec<String>,
}

/// One of llama.cpp's presets on this model.
pub(super) struct Preset {
    pub(super) file_type: FileType,
    /// Bytes of the whole file.
    pub(super) file_bytes: u64,
    /// Bytes of the tensors, each padded to the file's alignment.
    pub(super) tensor_bytes: u64,
    /// Bytes before the tensors in a file of ours with the same types.
    header_bytes: u64,
    /// What its recipe is predicted to cost; None if a tensor's type was not scored.
    pub(super) nats: Option<f64>,
}

/// A recipe for a budget.
pub(super) struct Chosen {
    /// The budget, as the user put it.
    pub(super) budget: String,
    /// The most nats that are to be measured, if that is the budget.
    pub(super) wish: Option<f64>,
    pub(super) solution: Solution,
    pub(super) recipe: Vec<(String, GgmlType)>,
    /// The usual preset whose size is nearest: it names the file, for readers that know names only.
    pub(super) label: FileType,
    pub(super) path: PathBuf,
    /// Bytes of the whole file.
    pub(super) file_bytes: u64,
    pub(super) bpw: f64,
}

impl Choices {
    /// Without an importance matrix, sizes of presets are those that they have without one.
    pub(super) fn new(
        input: &Input<'_>,
        opened: Option<Opened<'_>>,
        job: &Job,
        (budgets, variants): (&[(String, Budget)], usize),
        scores: &Scores,
        imatrix: Option<&Path>,
    ) -> Result<Choices> {
        let mut problem = problem(input, scores);
        let all_presets = presets(input, (job, opened.is_some()), scores, imatrix);
        let mut notes: Vec<_> = never_met(scores).into_iter().collect();
        job.constraints
            .apply(&mut problem)
            .map_err(Error::Constraints)?;
        let frontier = Frontier::of(&problem)?;
        let header_bytes = all_presets.first().map_or(0, |p| p.header_bytes);
        let mut around = Surroundings {
            header_bytes,
            preset_bytes: None,
            memory: opened.map(memory),
        };
        let mut chosen: Vec<Chosen> = Vec::new();
        let mut wanted: Vec<(String, Option<f64>, Solution)> = Vec::new();
        for (text, budget) in budgets {
            around.preset_bytes = match budget {
                Budget::Like(wanted) => {
                    let preset = all_presets.iter().find(|p| p.file_type == *wanted);
                    preset.map(|p| p.file_bytes - p.header_bytes)
                }
                _ => None,
            };
            let wish = match budget {
                Budget::Kld(nats) => Some(*nats),
                _ => None,
            };
            wanted.push((
                text.clone(),
                wish,
                budget.solve(&problem, &frontier, &around)?,
            ));
        }
        let spread = spread(
            &problem,
            &frontier,
            variants,
            scores.measure != Measure::Imatrix,
        );
        if spread.len() < variants {
            notes.push(format!(
                "--variants {variants}: the frontier has {} sizes that are worth a file each",
                spread.len()
            ));
        }
        let of_spread = |(i, solution)| {
            (
                format!("--variants {variants} (no. {})", i + 1),
                None,
                solution,
            )
        };
        wanted.extend(spread.into_iter().enumerate().map(of_spread));
        for (text, wish, solution) in &wanted {
            let solution = solution.clone();
            let new = of_solution(
                &problem,
                (&all_presets, header_bytes),
                job,
                (text, *wish),
                solution,
            );
            if let Some(same) = chosen.iter().find(|c| c.path == new.path) {
                notes.push(format!(
                    "{text} comes to the size of {}: one file serves both",
                    same.budget
                ));
                continue;
            }
            chosen.push(new);
        }
        Ok(Choices {
            problem,
            frontier,
            presets: all_presets,
            chosen,
            header_bytes,
            notes,
        })
    }

    /// Gives a budget another recipe: a choice for each item. Whether it can have it: each choice
    /// is there, and no other budget's file has its name.
    pub(super) fn set(&mut self, job: &Job, index: usize, choices: &[usize]) -> bool {
        let items = &self.problem.items;
        let picked = items
            .iter()
            .zip(choices)
            .map(|(item, choice)| item.choices.get(*choice));
        let Some(picked) = picked
            .collect::<Option<Vec<_>>>()
            .filter(|picked| picked.len() == items.len())
        else {
            return false;
        };
        let bytes = self.problem.fixed_bytes + picked.iter().map(|c| c.bytes).sum::<u64>();
        let nats = picked.iter().map(|c| c.nats).sum();
        let solution = Solution {
            choices: choices.to_vec(),
            bytes,
            nats,
        };
        let budget = (&*self.chosen[index].budget, self.chosen[index].wish);
        let new = of_solution(
            &self.problem,
            (&self.presets, self.header_bytes),
            job,
            budget,
            solution,
        );
        let taken = self
            .chosen
            .iter()
            .enumerate()
            .any(|(i, other)| i != index && other.path == new.path);
        if !taken {
            self.chosen[index] = new;
        }
        !taken
    }

    /// Lines of llama-quantize's `--tensor-type-file`.
    pub(super) fn recipe_text(chosen: &Chosen) -> String {
        chosen
            .recipe
            .iter()
            .map(|(name, t)| format!("{}={}\n", pattern(name), t.name()))
            .collect()
    }
}

/// The file of a recipe.
fn of_solution(
    problem: &Problem,
    (presets, header_bytes): (&[Preset], u64),
    job: &Job,
    (budget, wish): (&str, Option<f64>),
    solution: Solution,
) -> Chosen {
    let recipe = problem
        .recipe(&solution)
        .map(|(name, t)| (name.to_owned(), t))
        .collect();
    let file_bytes = header_bytes + solution.bytes;
    let bpw = problem.bpw(solution.bytes);
    let distance = |p: &&Preset| p.file_bytes.abs_diff(file_bytes);
    let usual = presets.iter().filter(|p| p.file_type.is_usual());
    let label = usual
        .min_by_key(distance)
        .map_or(FileType::Q4_K_M, |p| p.file_type);
    let path = job
        .directory
        .join(format!("{}-{bpw:.2}bpw-{}.gguf", job.name, label.name()));
    Chosen {
        budget: budget.to_owned(),
        wish,
        solution,
        recipe,
        label,
        path,
        file_bytes,
        bpw,
    }
}

/// Fails if constraints or budgets cannot be met, whatever the nats turn out to be. `guess` has
/// every type that may be chosen.
pub(super) fn check(
    input: &Input<'_>,
    opened: Option<Opened<'_>>,
    job: &Job,
    guess: &Scores,
) -> Result<()> {
    let mut problem = problem(input, guess);
    job.constraints
        .apply(&mut problem)
        .map_err(Error::Constraints)?;
    let frontier = Frontier::of(&problem)?;
    let of_files =
        |(_, budget): &(String, Budget)| matches!(budget, Budget::Size(_) | Budget::Fit { .. });
    let presets = match job.budgets.iter().any(of_files) {
        true => presets(
            input,
            (job, opened.is_some()),
            guess,
            job.imatrix.as_deref(),
        ),
        false => Vec::new(),
    };
    let header_bytes = presets.first().map_or(0, |p| p.header_bytes);
    let around = Surroundings {
        header_bytes,
        preset_bytes: None,
        memory: opened.map(memory),
    };
    // The nats are not known yet, and the bytes of a preset only roughly.
    let known = job
        .budgets
        .iter()
        .filter(|(_, budget)| !matches!(budget, Budget::Kld(_) | Budget::Like(_)));
    for (_, budget) in known {
        budget.target(&problem, &frontier, &around)?;
    }
    Ok(())
}

/// What is said of tensors that nothing is known of.
fn never_met(scores: &Scores) -> Option<String> {
    /// Names that are said.
    const SHOWN: usize = 3;
    let names = &scores.never_met;
    let shown: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = if names.len() > SHOWN {
        " and others"
    } else {
        ""
    };
    (!names.is_empty()).then(|| {
        format!(
            "{} of {} tensors ({}{more}) are multiplied by nothing when a text goes through the model, so that nothing is \
             known of them: they get the most precise type that is allowed; --pin gives them another",
            names.len(),
            scores.tensors.len(),
            shown.join(", ")
        )
    })
}

/// A regular expression that this name alone matches.
fn pattern(name: &str) -> String {
    format!("^{}$", name.replace('.', "\\."))
}

/// Bytes of a tensor with those that fill it up to what tensors are aligned to in the files.
fn padding(input: &Input<'_>) -> impl Fn(u64) -> u64 {
    let alignment = input
        .metadata()
        .get(keys::ALIGNMENT)
        .and_then(Value::as_u64);
    let alignment = alignment.filter(|a| *a > 0).unwrap_or(DEFAULT_ALIGNMENT);
    move |bytes| bytes.div_ceil(alignment) * alignment
}

fn problem(input: &Input<'_>, scores: &Scores) -> Problem {
    let padded = padding(input);
    let items: Vec<Item> = scores
        .tensors
        .iter()
        .map(|tensor| Item {
            name: tensor.name.clone(),
            role: input.catalog().role_named(&tensor.name),
            row_len: tensor.dims.first().copied().unwrap_or(1),
            weights: tensor.weights,
            choices: tensor
                .choices
                .iter()
                .map(|c| Choice {
                    ggml_type: c.ggml_type,
                    bytes: padded(c.bytes),
                    nats: c.nats,
                })
                .collect(),
        })
        .collect();
    let scored = |name: &str| items.iter().any(|item| item.name == name);
    let fixed = input.tensors.iter().filter(|t| !scored(&t.info.name));
    let (fixed_bytes, fixed_weights) = fixed.fold((0, 0), |(bytes, n), t| {
        (bytes + padded(t.info.bytes()), n + t.info.shape.elements())
    });
    Problem {
        items,
        fixed_bytes,
        fixed_weights,
    }
}

/// The presets that this model can have with this importance matrix, by rising size.
fn presets(
    input: &Input<'_>,
    (job, can_run): (&Job, bool),
    scores: &Scores,
    imatrix: Option<&Path>,
) -> Vec<Preset> {
    let padded = padding(input);
    let nats: BTreeMap<(&str, GgmlType), f64> = scores
        .tensors
        .iter()
        .flat_map(|t| {
            t.choices
                .iter()
                .map(|c| ((&*t.name, c.ggml_type), c.plain()))
        })
        .collect();
    // It does not depend on types: that of any preset is that of all.
    let header = OnceCell::new();
    // As llama-quantize rounds.
    let rounding = Rounding::Reference;
    // What cannot be run has no covariances.
    let ours = if can_run {
        job.rounding
    } else {
        Rounding::Reference
    };
    let of = |file_type: FileType| {
        let wishes = Wishes {
            file_type: Some(file_type),
            ..Wishes::default()
        };
        let path = job.directory.join("preset");
        let job = request(
            job,
            (imatrix, None),
            vec![OutputRequest {
                path,
                wishes,
                rounding,
            }],
        );
        let plan = quantize::Plan::new(input, &job).ok()?;
        let output = plan.outputs.first()?;
        if imatrix.is_some() && output.imatrix_missing().next().is_some() {
            return None;
        }
        let tensors = output
            .tensors
            .iter()
            .filter(|t| scores.tensors.iter().any(|s| s.name == t.name));
        let predicted = tensors
            .map(|t| nats.get(&(&*t.name, t.chosen.target)).copied())
            .sum::<Option<f64>>();
        let tensor_bytes = output.tensors.iter().map(|t| padded(t.bytes_after)).sum();
        let header_bytes = *header.get_or_init(|| output.file_bytes_rounded(ours) - tensor_bytes);
        Some(Preset {
            file_type,
            file_bytes: output.file_bytes(),
            tensor_bytes,
            header_bytes,
            nats: predicted,
        })
    };
    let all = CHOICES
        .iter()
        .filter(|choice| !choice.is_alias)
        .filter_map(|choice| choice.file_type);
    let mut presets: Vec<_> = all
        .filter(|t| t.default_type().is_quantized())
        .filter_map(of)
        .collect();
    presets.sort_by_key(|preset| preset.file_bytes);
    if scores.measure == Measure::Imatrix {
        presets.iter_mut().for_each(|preset| preset.nats = None);
    }
    presets
}

pub(super) fn request(
    job: &Job,
    (imatrix, covariance): (Option<&Path>, Option<&Path>),
    outputs: Vec<OutputRequest>,
) -> quantize::Job {
    // The path of this machine is nobody's business: the file lies beside the outputs.
    let of = |path: &Path| {
        let shown = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        ImatrixRequest {
            path: path.to_owned(),
            shown,
            ..ImatrixRequest::default()
        }
    };
    quantize::Job {
        outputs,
        imatrix: imatrix.map(of),
        hessians: covariance.map(Path::to_owned),
        allow_requantize: job.allow_requantize,
        threads: job.threads,
        ..quantize::Job::default()
    }
}

/// What the model needs to run beside its weights.
fn memory(model: Opened<'_>) -> Memory {
    let hyper = &model.engine.hyper;
    let layer = |number: usize| LayerCache {
        kv_heads: hyper.kv_heads as u64,
        key_length: hyper.key_length as u64,
        value_length: hyper.value_length as u64,
        window: hyper.window_of(number).map(|w| w as u64),
    };
    let rows = |t: &crate::input::Tensor<'_>| t.info.shape.dims().get(1).copied().unwrap_or(0);
    let widest = |part: &str| {
        model
            .input
            .tensors
            .iter()
            .filter(|t| t.info.name.contains(part))
            .map(rows)
            .max()
    };
    let experts = widest("ffn_up_exps").unwrap_or(0) * hyper.experts_used as u64;
    Memory {
        layers: (0..hyper.layers).map(layer).collect(),
        vocabulary: model.engine.vocabulary() as u64,
        embedding: hyper.hidden as u64,
        feed_forward: widest("ffn_up").unwrap_or(0).max(experts),
        queries: (hyper.heads * hyper.key_length) as u64,
    }
}
