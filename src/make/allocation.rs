//! Allocation: from sensitivities to a recipe for every budget.

use super::calibration::Calibrated;
use super::job::{Job, Model};
use super::presets::{Preset, label, presets};
use super::sensitivities::Sensitivities;
use super::workdir::WorkDir;
use super::{Error, Result, targets};
use crate::arch::hyper::Cache;
use crate::arch::{Catalog, Role};
use crate::format::gguf::{DEFAULT_ALIGNMENT, Value, keys};
use crate::format::types::GgmlType;
use crate::input::Input;
use crate::model::AttentionNumbers;
use crate::plan::file_type::FileType;
use crate::plan::frontier::{
    Budget, Choice, Frontier, Item, LayerCache, Memory, Problem, Solution, Surroundings, spread,
};
use crate::plan::recipe::Wishes;
use crate::sensitivity::{Measure, NEXTN_TYPE, Scores};
use std::path::PathBuf;

/// The frontier of a model, and one file per budget.
pub(super) struct Allocation {
    pub(super) problem: Problem,
    pub(super) frontier: Frontier,
    pub(super) presets: Vec<Preset>,
    pub(super) files: Vec<FilePlan>,
    /// Budgets in nats or bytes that need sensitivities, while these are only a guess.
    pub(super) open: Vec<Open>,
    /// Size of a file before its tensors, in bytes.
    pub(super) header_bytes: u64,
    pub(super) notes: Vec<String>,
    /// Recipes changed by measurements, in this run or an earlier one.
    pub(super) adjusted: targets::Adjustments,
    directory: PathBuf,
    name: String,
}

/// A budget without a recipe yet.
pub(super) struct Open {
    pub(super) budget: String,
    /// Number of its files.
    pub(super) files: usize,
}

/// A file for a budget.
pub(super) struct FilePlan {
    /// The option with the budget.
    pub(super) budget: String,
    /// The KL divergence to reach, for a budget in nats.
    pub(super) target: Option<f64>,
    pub(super) solution: Solution,
    pub(super) recipe: Vec<(String, GgmlType)>,
    /// The nearest common preset, for the file name.
    pub(super) label: FileType,
    pub(super) path: PathBuf,
    /// Size of the whole file in bytes.
    pub(super) file_bytes: u64,
    pub(super) bpw: f64,
}

impl FilePlan {
    /// The recipe in the format of llama-quantize's `--tensor-type-file`.
    pub(super) fn recipe_text(&self) -> String {
        let line = |(name, t): &(String, GgmlType)| format!("{}={}\n", pattern(name), t.name());
        self.recipe.iter().map(line).collect()
    }

    /// The recipe for the quantizer.
    pub(super) fn wishes(&self, catalog: &Catalog) -> Wishes {
        let typed = |(name, t): &(String, GgmlType)| Some((catalog.tensor_named(name)?, *t));
        Wishes {
            file_type: Some(self.label),
            recipe: self.recipe.iter().filter_map(typed).collect(),
            ..Wishes::default()
        }
    }

    pub(super) fn file_name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

/// A regular expression that matches exactly this name.
fn pattern(name: &str) -> String {
    format!("^{}$", name.replace('.', "\\."))
}

/// Solution of a budget, before its file has a name.
struct Solved {
    budget: String,
    target: Option<f64>,
    solution: Solution,
}

impl Allocation {
    /// Solves every budget, and applies the adjustments of earlier runs. With guessed
    /// sensitivities, budgets that depend on them stay open.
    pub(super) fn new(
        job: &Job<'_>,
        calibrated: &Calibrated,
        sensitivities: &Sensitivities,
        work: &WorkDir,
    ) -> Result<Allocation> {
        let scores = &sensitivities.scores;
        let mut problem = problem(job.input, scores);
        job.options
            .constraints
            .apply(&mut problem)
            .map_err(Error::Constraints)?;
        let presets = presets(job, scores, calibrated.file.as_deref());
        let mut allocation = Allocation {
            frontier: Frontier::of(&problem)?,
            problem,
            header_bytes: presets.first().map_or(0, |preset| preset.header_bytes),
            presets,
            files: Vec::new(),
            open: Vec::new(),
            notes: without_statistics(job.input, scores),
            adjusted: targets::Adjustments::default(),
            directory: job.options.directory.clone(),
            name: job.name.clone(),
        };
        let solved = allocation.solved(job, scores, sensitivities.is_guess)?;
        for solved in solved {
            allocation.add(solved);
        }
        if !sensitivities.is_guess {
            targets::apply(job, scores, &mut allocation, work)?;
        }
        Ok(allocation)
    }

    /// Solutions of all budgets, then those of the variants.
    fn solved(&mut self, job: &Job<'_>, scores: &Scores, is_guess: bool) -> Result<Vec<Solved>> {
        let Some(files) = job.options.files() else {
            return Ok(Vec::new());
        };
        let mut around = Surroundings {
            header_bytes: self.header_bytes,
            preset_bytes: None,
            projector_bytes: job
                .projector
                .as_ref()
                .map_or(0, |projector| projector.bytes),
            memory: job.model().map(|model| memory(job.input, model)),
        };
        let mut solved = Vec::new();
        for named in &files.budgets {
            let (budget, name) = (named.budget, named.name.clone());
            around.preset_bytes = match budget {
                Budget::Like(file_type) => {
                    let preset = self.presets.iter().find(|p| p.file_type == file_type);
                    preset.map(|preset| preset.file_bytes - preset.header_bytes)
                }
                _ => None,
            };
            let solution = budget.solve(&self.problem, &self.frontier, &around);
            let target = match budget {
                Budget::Kld(most) | Budget::Cosine(most) => Some(most),
                _ => None,
            };
            match solution {
                // Nats are a guess, and so are a preset's bytes without the importance matrix.
                _ if is_guess && target.is_some() => self.leave_open(name, 1),
                Err(_) if is_guess && matches!(budget, Budget::Like(_)) => self.leave_open(name, 1),
                solution => solved.push(Solved {
                    budget: name,
                    target,
                    solution: solution?,
                }),
            }
        }
        let variants = files.variants;
        if is_guess && variants > 0 {
            self.leave_open(format!("--variants {variants}"), variants);
            return Ok(solved);
        }
        let by_nats = scores.measure != Measure::Imatrix;
        let spread = spread(&self.problem, &self.frontier, variants, by_nats);
        if spread.len() < variants {
            self.notes.push(format!(
                "--variants {variants}: the frontier has only {} useful sizes",
                spread.len()
            ));
        }
        for (i, solution) in spread.into_iter().enumerate() {
            solved.push(Solved {
                budget: format!("--variants {variants} (no. {})", i + 1),
                target: None,
                solution,
            });
        }
        Ok(solved)
    }

    fn leave_open(&mut self, budget: String, files: usize) {
        self.open.push(Open { budget, files });
    }

    /// Number of files without a recipe yet.
    pub(super) fn open_files(&self) -> usize {
        self.open.iter().map(|open| open.files).sum()
    }

    /// Adds the file of a solution, unless it exists.
    fn add(&mut self, solved: Solved) {
        let new = self.file(solved);
        match self.files.iter().find(|file| file.path == new.path) {
            Some(same) => self.notes.push(format!(
                "{} has the size of {}: one file serves both",
                new.budget, same.budget
            )),
            None => self.files.push(new),
        }
    }

    /// The file of a solution.
    fn file(&self, solved: Solved) -> FilePlan {
        let Solved {
            budget,
            target,
            solution,
        } = solved;
        let recipe = self.problem.recipe(&solution);
        let recipe = recipe.map(|(name, t)| (name.to_owned(), t)).collect();
        let file_bytes = self.header_bytes + solution.bytes;
        let bpw = self.problem.bpw(solution.bytes);
        let label = label(&self.presets, file_bytes, bpw);
        let file_name = format!("{}-{bpw:.2}bpw-{}.gguf", self.name, label.name());
        FilePlan {
            budget,
            target,
            solution,
            recipe,
            label,
            path: self.directory.join(file_name),
            file_bytes,
            bpw,
        }
    }

    /// Changes the recipe of a file to these choices, one per item of the problem. Returns false if
    /// a choice does not exist or another file has the new name.
    pub(super) fn set(&mut self, index: usize, choices: &[usize]) -> bool {
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
        let solution = Solution {
            choices: choices.to_vec(),
            bytes: self.problem.fixed_bytes + picked.iter().map(|c| c.bytes).sum::<u64>(),
            nats: picked.iter().map(|c| c.nats).sum(),
        };
        let new = self.file(Solved {
            budget: self.files[index].budget.clone(),
            target: self.files[index].target,
            solution,
        });
        let mut others = self.files.iter().enumerate();
        let is_taken = others.any(|(i, other)| i != index && other.path == new.path);
        if !is_taken {
            self.files[index] = new;
        }
        !is_taken
    }

    /// A recipe of medium size, for files whose recipe is still open.
    pub(super) fn medium(&self) -> FilePlan {
        let [smallest, largest] = [self.frontier.smallest(), self.frontier.largest()];
        let bytes = smallest.bytes.midpoint(largest.bytes);
        self.file(Solved {
            budget: String::new(),
            target: None,
            solution: self
                .frontier
                .at_most(bytes)
                .unwrap_or_else(|| self.frontier.after(0)),
        })
    }
}

/// Notes on tensors without statistics.
fn without_statistics(input: &Input<'_>, scores: &Scores) -> Vec<String> {
    /// Maximum number of listed names.
    const SHOWN: usize = 3;
    let is_nextn = |name: &&String| input.is_nextn(name);
    let (nextn, others): (Vec<_>, Vec<_>) = scores.unread.iter().partition(is_nextn);
    let note = |names: Vec<&String>, what: &str| {
        let shown: Vec<_> = names.iter().take(SHOWN).map(|name| name.as_str()).collect();
        let more = if names.len() > SHOWN {
            " and others"
        } else {
            ""
        };
        (!names.is_empty()).then(|| {
            format!(
                "{} of {} tensors ({}{more}) {what}; set another with --pin",
                names.len(),
                scores.tensors.len(),
                shown.join(", ")
            )
        })
    };
    let of_nextn = format!(
        "are of blocks for multi-token prediction, which are not run, so that nothing is known of them: they get \
         {NEXTN_TYPE}, or else the most precise type that is allowed"
    );
    let of_others = "are multiplied by nothing when a text goes through the model, so that nothing is known of them: \
                     they get the most precise type that is allowed";
    [note(others, of_others), note(nextn, &of_nextn)]
        .into_iter()
        .flatten()
        .collect()
}

/// Rounding of tensor sizes up to the alignment of the files.
pub(super) fn padding(input: &Input<'_>) -> impl Fn(u64) -> u64 {
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

/// Memory of the model without its weights.
fn memory(input: &Input<'_>, model: &Model<'_>) -> Memory {
    let hyper = &model.engine.hyper;
    let layer = |attention: &AttentionNumbers| LayerCache {
        kv_heads: attention.kv_heads as u64,
        key_length: attention.key_length as u64,
        // Latent attention caches only keys, which include the values.
        value_length: match hyper.latent {
            Some(_) => 0,
            None => attention.value_length as u64,
        },
        window: attention.window.map(|w| w as u64),
    };
    let with_attention = || hyper.attention.iter().flatten();
    // Without causal attention, a text passes at once.
    let has_cache = |attention: &&AttentionNumbers| {
        hyper.is_causal && !matches!(attention.cache, Cache::Shared(_))
    };
    let queries = with_attention().map(|attention| attention.heads * attention.key_length);
    let catalog = input.catalog();
    let up = catalog.linears().iter().filter(|l| l.role == Role::FfnUp);
    let rows = up.map(|linear| {
        let used = linear
            .grouping
            .experts()
            .map_or(1, |_| hyper.experts_used());
        input.tensor(linear.tensor).info.shape.four()[1] * used.max(1) as u64
    });
    Memory {
        layers: (0..hyper.loops)
            .flat_map(|_| with_attention().filter(has_cache).map(layer))
            .collect(),
        states: hyper.states() as u64,
        vocabulary: model.engine.vocabulary() as u64,
        embedding: hyper.hidden as u64,
        feed_forward: rows.max().unwrap_or(0),
        queries: queries.max().unwrap_or(0) as u64,
    }
}
