//! From scores to recipes, and from recipes to files.

use super::{Error, Job, Opened, Result};
use crate::format::gguf::{DEFAULT_ALIGNMENT, Value, keys};
use crate::format::types::GgmlType;
use crate::frontier::{Measure, Scores};
use crate::plan::file_type::{CHOICES, FileType};
use crate::plan::frontier::{Budget, Choice, Frontier, Item, LayerCache, Memory, Problem, Solution, Surroundings};
use crate::plan::recipe::{Pattern, Wishes};
use crate::progress::Progress;
use crate::quantize::{self, ImatrixRequest, OutputRequest};
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
    /// The preset whose size is nearest: it names the file, for readers that know names only.
    pub(super) label: FileType,
    pub(super) path: PathBuf,
    /// Bytes of the whole file.
    pub(super) file_bytes: u64,
    pub(super) bpw: f64,
}

impl Choices {
    pub(super) fn new(model: Opened<'_>, job: &Job, scores: &Scores, imatrix: &Path) -> Result<Choices> {
        let alignment = model.input.metadata().get(keys::ALIGNMENT).and_then(Value::as_u64);
        let alignment = alignment.filter(|a| *a > 0).unwrap_or(DEFAULT_ALIGNMENT);
        let mut problem = problem(model, scores, alignment);
        let all_presets = presets(model, job, scores, imatrix, alignment);
        let mut notes = Vec::new();
        job.constraints.apply(&mut problem).map_err(Error::Constraints)?;
        let frontier = Frontier::of(&problem)?;
        // The header does not depend on types: that of any preset is that of all.
        let header_bytes = all_presets.first().map_or(0, |p| p.file_bytes - p.tensor_bytes);
        let mut around = Surroundings { header_bytes, preset_bytes: None, memory: Some(memory(model)) };
        let mut chosen: Vec<Chosen> = Vec::new();
        for (text, budget) in &job.budgets {
            around.preset_bytes = match budget {
                Budget::Like(wanted) => all_presets.iter().find(|p| p.file_type == *wanted).map(|p| p.tensor_bytes),
                _ => None,
            };
            let solution = budget.solve(&problem, &frontier, &around)?;
            let wish = match budget {
                Budget::Kld(nats) => Some(*nats),
                _ => None,
            };
            let new = of_solution(&problem, (&all_presets, header_bytes), job, (text, wish), solution);
            if let Some(same) = chosen.iter().find(|c| c.path == new.path) {
                notes.push(format!("{text} comes to the size of {}: one file serves both", same.budget));
                continue;
            }
            chosen.push(new);
        }
        Ok(Choices { problem, frontier, presets: all_presets, chosen, header_bytes, notes })
    }

    /// Gives a budget another recipe: a choice for each item. Whether it can have it: each choice is there, and no other
    /// budget's file has its name.
    pub(super) fn set(&mut self, job: &Job, index: usize, choices: &[usize]) -> bool {
        let items = &self.problem.items;
        let picked = items.iter().zip(choices).map(|(item, choice)| item.choices.get(*choice));
        let Some(picked) = picked.collect::<Option<Vec<_>>>().filter(|picked| picked.len() == items.len()) else {
            return false;
        };
        let bytes = self.problem.fixed_bytes + picked.iter().map(|c| c.bytes).sum::<u64>();
        let nats = picked.iter().map(|c| c.nats).sum();
        let solution = Solution { choices: choices.to_vec(), bytes, nats };
        let budget = (&*self.chosen[index].budget, self.chosen[index].wish);
        let new = of_solution(&self.problem, (&self.presets, self.header_bytes), job, budget, solution);
        let taken = self.chosen.iter().enumerate().any(|(i, other)| i != index && other.path == new.path);
        if !taken {
            self.chosen[index] = new;
        }
        !taken
    }

    /// Lines of llama-quantize's `--tensor-type-file`.
    pub(super) fn recipe_text(chosen: &Chosen) -> String {
        chosen.recipe.iter().map(|(name, t)| format!("{}={}\n", pattern(name), t.name())).collect()
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
    let recipe = problem.recipe(&solution).map(|(name, t)| (name.to_owned(), t)).collect();
    let file_bytes = header_bytes + solution.bytes;
    let bpw = problem.bpw(solution.bytes);
    let distance = |p: &&Preset| p.file_bytes.abs_diff(file_bytes);
    let label = presets.iter().min_by_key(distance).map_or(FileType::Q4_K_M, |p| p.file_type);
    let path = job.directory.join(format!("{}-{bpw:.2}bpw-{}.gguf", job.name, label.name()));
    Chosen { budget: budget.to_owned(), wish, solution, recipe, label, path, file_bytes, bpw }
}

/// A regular expression that this name alone matches.
fn pattern(name: &str) -> String {
    format!("^{}$", name.replace('.', "\\."))
}

fn problem(model: Opened<'_>, scores: &Scores, alignment: u64) -> Problem {
    let padded = |bytes: u64| bytes.div_ceil(alignment) * alignment;
    let items: Vec<Item> = scores
        .tensors
        .iter()
        .map(|tensor| Item {
            name: tensor.name.clone(),
            row_len: tensor.dims.first().copied().unwrap_or(1),
            weights: tensor.weights,
            choices: tensor
                .choices
                .iter()
                .map(|c| Choice { ggml_type: c.ggml_type, bytes: padded(c.bytes), nats: c.nats })
                .collect(),
        })
        .collect();
    let scored = |name: &str| items.iter().any(|item| item.name == name);
    let fixed = model.input.tensors.iter().filter(|t| !scored(&t.info.name));
    let (fixed_bytes, fixed_weights) =
        fixed.fold((0, 0), |(bytes, n), t| (bytes + padded(t.info.bytes()), n + t.info.shape.elements()));
    Problem { items, fixed_bytes, fixed_weights }
}

/// The presets that this model can have with this importance matrix, by rising size.
fn presets(model: Opened<'_>, job: &Job, scores: &Scores, imatrix: &Path, alignment: u64) -> Vec<Preset> {
    let nats: BTreeMap<(&str, GgmlType), f64> =
        scores.tensors.iter().flat_map(|t| t.choices.iter().map(|c| ((&*t.name, c.ggml_type), c.nats))).collect();
    let of = |file_type: FileType| {
        let wishes = Wishes { file_type: Some(file_type), ..Wishes::default() };
        let job = request(job, imatrix, vec![OutputRequest { path: job.directory.join("preset"), wishes }]);
        let plan = quantize::Plan::new(model.input, &job).ok()?;
        let output = plan.outputs.first()?;
        if output.imatrix_missing().next().is_some() {
            return None;
        }
        let tensors = output.tensors.iter().filter(|t| scores.tensors.iter().any(|s| s.name == t.name));
        let predicted = tensors.map(|t| nats.get(&(&*t.name, t.chosen.target)).copied()).sum::<Option<f64>>();
        let padded = |bytes: u64| bytes.div_ceil(alignment) * alignment;
        let tensor_bytes = output.tensors.iter().map(|t| padded(t.bytes_after)).sum();
        Some(Preset { file_type, file_bytes: output.file_bytes(), tensor_bytes, nats: predicted })
    };
    let all = CHOICES.iter().filter(|choice| !choice.is_alias).filter_map(|choice| choice.file_type);
    let mut presets: Vec<_> = all.filter(|t| t.default_type().is_quantized()).filter_map(of).collect();
    presets.sort_by_key(|preset| preset.file_bytes);
    if scores.measure == Measure::Imatrix {
        presets.iter_mut().for_each(|preset| preset.nats = None);
    }
    presets
}

fn request(job: &Job, imatrix: &Path, outputs: Vec<OutputRequest>) -> quantize::Job {
    // The path of this machine is nobody's business: the file lies beside the outputs.
    let shown = imatrix.file_name().map(|name| name.to_string_lossy().into_owned());
    quantize::Job {
        outputs,
        imatrix: Some(ImatrixRequest { path: imatrix.to_owned(), shown, ..ImatrixRequest::default() }),
        allow_requantize: job.allow_requantize,
        threads: job.threads,
        ..quantize::Job::default()
    }
}

/// Writes the files of all recipes that are not there yet, and `more`, from one pass over the model. Returns the former,
/// all of them.
pub(super) fn write(
    model: Opened<'_>,
    job: &Job,
    choices: &Choices,
    imatrix: &Path,
    more: Vec<OutputRequest>,
    kept: &super::Kept,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>> {
    let imatrix_bytes = std::fs::read(imatrix).map_err(|source| crate::format::Error::Io {
        path: imatrix.to_owned(),
        action: "read",
        source,
    })?;
    let mut missing = Vec::new();
    for chosen in &choices.chosen {
        let key = crate::resume::Job::new("make: file").with_model(model.input)?;
        let key = key.with("recipe", Choices::recipe_text(chosen).as_bytes());
        let key = key.with("label", chosen.label.name().as_bytes()).with("imatrix", &imatrix_bytes).key();
        let there = chosen.path.metadata().is_ok_and(|meta| meta.len() == chosen.file_bytes);
        let name = chosen.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !(there && kept.has(&name, &key)) {
            missing.push((chosen, name, key));
        }
    }
    let outputs =
        missing.iter().map(|(chosen, ..)| OutputRequest { path: chosen.path.clone(), wishes: wishes(chosen) });
    let outputs: Vec<_> = outputs.chain(more).collect();
    if !outputs.is_empty() {
        let plan = quantize::Plan::new(model.input, &request(job, imatrix, outputs))?;
        for (output, (chosen, ..)) in plan.outputs.iter().zip(&missing) {
            let recipe: BTreeMap<_, _> = chosen.recipe.iter().map(|(name, t)| (&**name, *t)).collect();
            for tensor in &output.tensors {
                match recipe.get(&*tensor.name) {
                    Some(t) if *t != tensor.chosen.target => {
                        let (tensor, planned) = (tensor.name.clone(), tensor.chosen.target);
                        return Err(Error::Recipe { tensor, chosen: *t, planned });
                    }
                    _ => {}
                }
            }
        }
        plan.run(progress)?;
    }
    for (_, name, key) in &missing {
        kept.remember(name, key)?;
    }
    Ok(choices.chosen.iter().map(|chosen| chosen.path.clone()).collect())
}

fn wishes(chosen: &Chosen) -> Wishes {
    // Names of tensors have no letters that a pattern could trip over, once their dots are quoted.
    let of = |(name, t): &(String, GgmlType)| Some((Pattern::new(&pattern(name)).ok()?, *t));
    Wishes {
        file_type: Some(chosen.label),
        overrides: chosen.recipe.iter().filter_map(of).collect(),
        ..Wishes::default()
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
    let widest = |part: &str| model.input.tensors.iter().filter(|t| t.info.name.contains(part)).map(rows).max();
    let experts = widest("ffn_up_exps").unwrap_or(0) * hyper.experts_used as u64;
    Memory {
        layers: (0..hyper.layers).map(layer).collect(),
        vocabulary: model.engine.vocabulary() as u64,
        embedding: hyper.hidden as u64,
        feed_forward: widest("ffn_up").unwrap_or(0).max(experts),
        queries: (hyper.heads * hyper.key_length) as u64,
    }
}
