//! The plan: all decisions and refusals, before the first byte is written.

use super::metadata::{
    Changes, KvOverride, OverrideValue, Pruning, UsedImatrix, facts, file_type_of_copy,
    set_rounding,
};
use super::rounded::Rounded;
use super::{Error, Job, Result, checks};
use crate::arch::{Entry, Facts, Role, TensorId, role};
use crate::format::gguf::{
    self, Layout, MAX_ALIGNMENT, Metadata, Shape, TensorInfo, keys, shard_path,
};
use crate::format::imatrix::Imatrix;
use crate::format::types::GgmlType;
use crate::input::{Input, Tensor};
use crate::plan::presets::requires_imatrix;
use crate::plan::recipe::{Candidate, Chosen, Problem, choose};
use crate::quant::Codec;
use crate::rounding::{Importance, InputHessians, Rounding};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A checked job.
pub struct Plan<'a> {
    pub(super) input: &'a Input<'a>,
    /// The input's tensors in output order, each with its importance weights.
    pub(super) tensors: Vec<Source<'a>>,
    /// The outputs.
    pub outputs: Vec<PlannedOutput<'a>>,
    pub(super) threads: usize,
    /// The importance matrix is an input too: no output may replace it.
    pub(super) imatrix_path: Option<PathBuf>,
    /// The input Hessians, if any output is rounded with error feedback.
    pub(super) hessians: Option<InputHessians>,
    /// Warnings for the user before the run.
    pub warnings: Vec<String>,
}

/// A tensor of the input.
pub(super) struct Source<'a> {
    pub(super) tensor: &'a Tensor<'a>,
    /// Name in the output, which differs if layers were pruned.
    pub(super) name: String,
    /// One importance weight per column and matrix.
    pub(super) importance: Option<Importance>,
    /// The reason why its values in the importance matrix are unusable.
    misfit: Option<Problem>,
}

/// One output of a plan.
pub struct PlannedOutput<'a> {
    /// The files with their metadata, one per shard.
    pub(super) files: Vec<(PathBuf, Metadata<'a>)>,
    /// The preset; `None` for a copy.
    pub file_type: Option<crate::plan::file_type::FileType>,
    /// Plans of the tensors, in output order.
    pub tensors: Vec<PlannedTensor>,
    /// Rounding of its weights.
    pub rounding: Rounding,
    /// Lossless encoding of rows on the grid of their type.
    pub(super) lossless: bool,
    /// Tensors already rounded by sequential rounding.
    pub(super) rounded: Option<Rounded>,
}

/// One tensor of an output.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// Name in the output.
    pub name: String,
    /// Dimensions, row length first.
    pub shape: Shape,
    /// Type in the input.
    pub from: GgmlType,
    /// The chosen type.
    pub chosen: Chosen,
    /// Size in the input, in bytes.
    pub bytes_before: u64,
    /// Size in the output, in bytes.
    pub bytes_after: u64,
    /// True if importance weights are used.
    pub has_importance: bool,
    /// True if it is rounded with error feedback.
    pub has_feedback: bool,
    pub(super) shard: usize,
}

impl<'a> PlannedOutput<'a> {
    /// Paths of the files.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().map(|(path, _)| path)
    }

    /// Layout of each file.
    pub(super) fn layouts(&self) -> Vec<Layout> {
        let layout = |(shard, (_, metadata)): (usize, &(PathBuf, Metadata<'_>))| {
            let tensors: Vec<_> = self
                .tensors
                .iter()
                .filter(|t| t.shard == shard)
                .map(PlannedTensor::info)
                .collect();
            Layout::new(metadata, &tensors, metadata.alignment())
        };
        self.files.iter().enumerate().map(layout).collect()
    }

    /// Size of all files in bytes, headers included.
    pub fn file_bytes(&self) -> u64 {
        self.layouts().iter().map(Layout::file_bytes).sum()
    }

    /// Size of all files in bytes with another rounding, which only changes metadata.
    pub(crate) fn file_bytes_rounded(&self, rounding: Rounding) -> u64 {
        let files: Vec<_> = self
            .files
            .iter()
            .map(|(path, metadata)| (path.clone(), metadata.clone()))
            .collect();
        let (tensors, file_type) = (self.tensors.clone(), self.file_type);
        let mut other = PlannedOutput {
            files,
            tensors,
            file_type,
            rounding,
            lossless: self.lossless,
            rounded: None,
        };
        if let Some((_, metadata)) = other.files.first_mut() {
            set_rounding(metadata, rounding);
        }
        other.file_bytes()
    }

    /// Size of the tensor data in bytes.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes_after).sum()
    }

    /// Bits per weight over all tensors.
    pub fn bpw(&self) -> f64 {
        8.0 * self.tensor_bytes() as f64
            / self
                .tensors
                .iter()
                .map(|t| t.shape.elements())
                .sum::<u64>()
                .max(1) as f64
    }

    /// Tensors of an output with error feedback that lack an input Hessian and get the reference's
    /// rounding.
    pub fn without_feedback(&self) -> impl Iterator<Item = &PlannedTensor> {
        let takes = |t: &&PlannedTensor| {
            let levels = Codec::of(t.chosen.target).is_some_and(Codec::takes_feedback);
            levels && t.chosen.target != t.from && !t.has_feedback
        };
        self.tensors
            .iter()
            .filter(|_| self.rounding.has_feedback())
            .filter(takes)
    }

    /// Tensors with another type than the chosen one, which does not fit their rows.
    pub fn substituted(&self) -> impl Iterator<Item = &PlannedTensor> {
        self.tensors
            .iter()
            .filter(|t| t.chosen.wanted != t.chosen.target)
    }

    /// Tensors that require importance weights and have none. A plan with any can be shown but not
    /// run.
    pub fn imatrix_missing(&self) -> impl Iterator<Item = &PlannedTensor> {
        let needs = |t: &&PlannedTensor| {
            let impossible_without = Codec::of(t.chosen.target).is_some_and(|c| c.needs_importance);
            let unwise_without = requires_imatrix(t.chosen.role, t.chosen.target, self.file_type);
            let touched = t.chosen.quantizable && t.chosen.target != t.from;
            touched && !t.has_importance && (impossible_without || unwise_without)
        };
        self.tensors.iter().filter(needs)
    }
}

impl PlannedTensor {
    /// Description in the output's header; ggml omits trailing dimensions of 1.
    fn info(&self) -> TensorInfo<'_> {
        TensorInfo {
            name: (&*self.name).into(),
            shape: self.shape.trimmed(),
            ggml_type: self.chosen.target,
        }
    }
}

impl<'a> Plan<'a> {
    /// Decides everything.
    ///
    /// # Errors
    /// [`Error::Impossible`] with all reasons at once, or a file that cannot be read. Missing
    /// importance weights are not an error here but listed in the outputs, so that a dry run can
    /// show the plan; [`Plan::run`] refuses.
    pub fn new(input: &'a Input<'a>, job: &Job) -> Result<Plan<'a>> {
        let imatrix = read_imatrix(job)?;
        let hessians = read_hessians(input, job)?;
        let mut problems = checks::unusable(input);
        let foreign = imatrix
            .as_ref()
            .and_then(|used| checks::foreign_imatrix(input, used));
        problems.extend(foreign);
        let (tensors, layers_left) = sources(input, job, imatrix.as_ref());
        let roles = tensors
            .iter()
            .map(|source| input.entry(source.tensor).facts.role);
        let facts = facts(input.metadata(), job, roles, imatrix.is_some())?;
        if layers_left == Some(0) && facts.layers > 0 {
            problems.push(Problem::of(
                "",
                "--prune-layers leaves no layer of the model",
            ));
        }
        let candidates: Vec<_> = tensors
            .iter()
            .map(|source| source.candidate(&facts.architecture))
            .collect();
        let mut outputs = Vec::new();
        for request in &job.outputs {
            let chosen = match choose(&request.wishes, &facts, &candidates) {
                Ok(chosen) => chosen,
                Err(reasons) => {
                    problems.extend(reasons);
                    continue;
                }
            };
            let file_type = match request.wishes.file_type {
                Some(file_type) => file_type.id(),
                None => {
                    let order = input.catalog().quantizer_order().into_iter();
                    let types = order.map(|id| input.tensor(id).info.ggml_type);
                    file_type_of_copy(input.metadata(), job, types)
                }
            };
            let changes = Changes {
                overrides: &job.kv_overrides,
                file_type,
                rounding: request.rounding,
                imatrix: imatrix.as_ref(),
                architecture: &facts.architecture,
                layers_left: layers_left.map(|left| Pruning {
                    layers: facts.layers,
                    pruned: &job.prune_layers,
                    left,
                }),
            };
            let metadata = changes.apply(input.metadata());
            let shards = if job.keep_split {
                tensors
                    .iter()
                    .map(|s| s.tensor.shard + 1)
                    .max()
                    .unwrap_or(1)
            } else {
                1
            };
            let files = files(
                &request.path,
                metadata,
                job.keep_split,
                shards,
                tensors.len(),
            );
            let hessians = hessians
                .as_ref()
                .filter(|_| request.rounding.has_feedback());
            let planned: Vec<_> = tensors
                .iter()
                .zip(chosen)
                .map(|(source, chosen)| source.planned(chosen, job.keep_split, hessians))
                .collect();
            problems.extend(planned.iter().filter_map(|t| impossible(t, job)));
            problems.extend(checks::scaled_output(input, &tensors, &planned));
            let used = planned
                .iter()
                .zip(&tensors)
                .filter(|(t, _)| t.chosen.target != t.from);
            problems.extend(used.filter_map(|(_, source)| source.misfit.clone()));
            let (file_type, rounding) = (request.wishes.file_type, request.rounding);
            outputs.push(PlannedOutput {
                files,
                file_type,
                tensors: planned,
                rounding,
                lossless: request.lossless,
                rounded: None,
            });
        }
        problems.extend(clashes(&outputs));
        problems.extend(bad_alignment(&job.kv_overrides));
        problems.sort();
        problems.dedup();
        if !problems.is_empty() {
            return Err(Error::Impossible(problems));
        }
        let mut warnings: Vec<String> = checks::absent_layers(&job.prune_layers, facts.layers)
            .into_iter()
            .collect();
        for (output, request) in outputs.iter().zip(&job.outputs) {
            let patterns = request.wishes.overrides.iter().map(|(pattern, _)| pattern);
            warnings.extend(checks::idle_patterns(patterns, &output.tensors));
            warnings.extend(checks::quantized_before(output));
            if let Some(used) = &imatrix {
                warnings.extend(checks::imatrix_gaps(input, job, used, output));
            }
        }
        warnings.dedup();
        let imatrix_path = job.imatrix.as_ref().map(|request| request.path.clone());
        Ok(Plan {
            input,
            tensors,
            outputs,
            threads: job.threads,
            imatrix_path,
            hessians,
            warnings,
        })
    }

    /// Warning about input Hessians of too few tokens.
    pub fn few_tokens(&self) -> Option<String> {
        self.hessians.as_ref().and_then(InputHessians::few_tokens)
    }

    /// Size of the input's tensors in bytes.
    pub fn input_bytes(&self) -> u64 {
        self.tensors.iter().map(|s| s.tensor.info.bytes()).sum()
    }
}

impl Source<'_> {
    /// Input for the choice of a type. The architecture may differ from the input's.
    fn candidate(&self, architecture: &str) -> Candidate<'_> {
        let info = &self.tensor.info;
        let dims = info.shape.four();
        Candidate {
            id: TensorId(self.tensor.index as u32),
            name: &self.name,
            facts: Facts::new(architecture, &self.name, dims),
            dims,
            ggml_type: info.ggml_type,
        }
    }

    fn planned(
        &self,
        chosen: Chosen,
        keep_split: bool,
        hessians: Option<&InputHessians>,
    ) -> PlannedTensor {
        let info = &self.tensor.info;
        let levels = chosen.target != info.ggml_type
            && Codec::of(chosen.target).is_some_and(Codec::takes_feedback);
        // The choice has checked that rows fit; a copied tensor fits as it is.
        let row_bytes = chosen.target.row_bytes(info.shape.row_len()).unwrap_or(0);
        PlannedTensor {
            name: self.name.clone(),
            shape: info.shape,
            from: info.ggml_type,
            chosen,
            bytes_before: info.bytes(),
            bytes_after: row_bytes * info.shape.rows(),
            has_importance: self.importance.is_some() && chosen.target != info.ggml_type,
            has_feedback: levels && hessians.is_some_and(|hessians| hessians.has(&info.name)),
            shard: if keep_split { self.tensor.shard } else { 0 },
        }
    }
}

/// Reads the importance matrix and applies the filters; `None` if there is none or the filters
/// remove all entries.
fn read_imatrix(job: &Job) -> Result<Option<UsedImatrix>> {
    let Some(request) = &job.imatrix else {
        return Ok(None);
    };
    let mut imatrix = Imatrix::read(&request.path)?;
    let any = |parts: &[String], name: &str| parts.iter().any(|part| name.contains(part.as_str()));
    imatrix.entries.retain(|name, _| {
        !any(&request.exclude, name) && (request.include.is_empty() || any(&request.include, name))
    });
    let file = request
        .shown
        .clone()
        .unwrap_or_else(|| request.path.to_string_lossy().into_owned());
    Ok((!imatrix.entries.is_empty()).then_some(UsedImatrix { file, imatrix }))
}

/// Opens the input Hessians, if an output is rounded with error feedback.
fn read_hessians(input: &Input<'_>, job: &Job) -> Result<Option<InputHessians>> {
    if !job
        .outputs
        .iter()
        .any(|output| output.rounding.has_feedback())
    {
        return Ok(None);
    }
    let Some(directory) = &job.hessians else {
        return Err(Error::impossible(
            "rounding with error feedback needs input Hessians (--hessians DIR)",
        ));
    };
    let hessians = InputHessians::open(directory)?;
    let misfit = |tensor: &Tensor<'_>| {
        let own = [tensor.info.shape.row_len() as usize, tensor.matrices()];
        let theirs = hessians.shape(&tensor.info.name)?;
        let shown =
            |[channels, matrices]: [usize; 2]| format!("{channels} channels x {matrices} matrices");
        (theirs != own).then(|| {
            Problem::of(
                &tensor.info.name,
                format!(
                    "{}: these input Hessians have {}, but {} are needed; they belong to another model",
                    directory.display(),
                    shown(theirs),
                    shown(own)
                ),
            )
        })
    };
    let misfits: Vec<_> = input.tensors.iter().filter_map(misfit).collect();
    if !misfits.is_empty() {
        return Err(Error::Impossible(misfits));
    }
    match input
        .tensors
        .iter()
        .any(|tensor| hessians.has(&tensor.info.name))
    {
        true => Ok(Some(hessians)),
        false => {
            let example = hessians
                .names()
                .next()
                .map_or(String::new(), |name| format!(" (they have '{name}')"));
            Err(Error::impossible(format!(
                "{}: these input Hessians have none of this model's tensors{example}; they belong to another model",
                directory.display()
            )))
        }
    }
}

/// Tensors in output order: by layer and name, or with `keep_split` in shard order. Pruned layers
/// are removed; the number of remaining layers is returned.
fn sources<'a>(
    input: &'a Input<'a>,
    job: &Job,
    imatrix: Option<&UsedImatrix>,
) -> (Vec<Source<'a>>, Option<u32>) {
    let mut renumbered = Renumbering::new(&job.prune_layers);
    let mut sources: Vec<Source<'_>> = Vec::with_capacity(input.tensors.len());
    for id in input.catalog().quantizer_order() {
        let tensor = input.tensor(id);
        let old = &*tensor.info.name;
        let Some(name) = renumbered.name(old) else {
            continue;
        };
        let entry = input.catalog().tensor(id);
        let importance = imatrix.map_or(Ok(None), |used| importance_of(entry, &used.imatrix));
        let (importance, misfit) = match importance {
            Ok(importance) => (importance, None),
            Err(misfit) => (None, Some(misfit)),
        };
        sources.push(Source {
            tensor,
            name,
            importance,
            misfit,
        });
    }
    if job.keep_split {
        sources.sort_by_key(|s| (s.tensor.shard, s.tensor.offset));
    }
    let layers_left = (!job.prune_layers.is_empty()).then_some(renumbered.next);
    (sources, layers_left)
}

/// Importance weights of a tensor, if the matrix has them in the right number. A mismatch is a
/// problem, except for the embedding, which has no activations.
fn importance_of(
    tensor: &Entry,
    imatrix: &Imatrix,
) -> std::result::Result<Option<Importance>, Problem> {
    let Some(entry) = imatrix.entries.get(&*tensor.name) else {
        return Ok(None);
    };
    let (row_len, matrices) = (tensor.row_len(), tensor.matrices());
    if entry.sums.len() as u64 == row_len * matrices {
        return Ok(Some(Importance::new(entry)));
    }
    if tensor.facts.role == Role::TokenEmbedding {
        return Ok(None);
    }
    Err(Problem::of(
        &tensor.name,
        format!(
            "the importance matrix has {} values, but {} are needed ({row_len} columns x {matrices} matrices); it belongs to another model",
            entry.sums.len(),
            row_len * matrices
        ),
    ))
}

/// Renumbering of layers, which must come in ascending order.
struct Renumbering {
    pruned: Vec<u32>,
    new_of: BTreeMap<u32, Option<u32>>,
    next: u32,
}

impl Renumbering {
    fn new(pruned: &[u32]) -> Renumbering {
        Renumbering {
            pruned: pruned.to_vec(),
            new_of: BTreeMap::new(),
            next: 0,
        }
    }

    /// Name with the new layer number; `None` if the layer is pruned.
    fn name(&mut self, old: &str) -> Option<String> {
        let Some((digits, layer)) = role::layer_number(old).filter(|_| !self.pruned.is_empty())
        else {
            return Some(old.to_owned());
        };
        let first = self.pruned.iter().min().copied().unwrap_or(0);
        let (pruned, next) = (self.pruned.contains(&layer), &mut self.next);
        let new = *self.new_of.entry(layer).or_insert_with(|| {
            if pruned {
                return None;
            }
            let new = if layer < first { layer } else { *next };
            *next = new + 1;
            Some(new)
        });
        new.map(|new| format!("{}{new}{}", &old[..digits.start], &old[digits.end..]))
    }
}

/// Files of an output with their metadata. Later shards have only the split's keys.
fn files<'a>(
    path: &std::path::Path,
    metadata: Metadata<'a>,
    keep_split: bool,
    shards: usize,
    n_tensors: usize,
) -> Vec<(PathBuf, Metadata<'a>)> {
    if !keep_split {
        return vec![(path.to_owned(), metadata)];
    }
    match shards {
        0 | 1 => vec![(shard_path(path, 0, 1), metadata)],
        _ => gguf::shards(path, metadata, shards, n_tensors),
    }
}

/// The reason why a tensor cannot take its chosen type.
fn impossible(tensor: &PlannedTensor, job: &Job) -> Option<Problem> {
    let (from, wanted, target) = (tensor.from, tensor.chosen.wanted, tensor.chosen.target);
    if from == target {
        return None;
    }
    let reason = if from.is_quantized() && !job.allow_requantize {
        format!(
            "quantized already ({from}); quantize the original model, or accept the loss with --allow-requantize"
        )
    } else if Codec::of(from).is_none() {
        format!("of type {from}, which cannot be quantized")
    } else if Codec::of(target).is_none() {
        format!("{target} is not a type for model files")
    } else if wanted != target && job.no_fallback {
        let row_len = tensor.shape.row_len();
        format!(
            "rows of {row_len} weights do not fit {wanted}, and --no-fallback forbids {target} as a substitute"
        )
    } else {
        return None;
    };
    Some(Problem::of(&tensor.name, reason))
}

/// An alignment that readers reject.
fn bad_alignment(overrides: &[KvOverride]) -> Option<Problem> {
    let alignment = overrides.iter().rfind(|o| o.key == keys::ALIGNMENT)?;
    let fits = |v: &i64| {
        u32::try_from(*v).is_ok_and(|v| v.is_power_of_two() && u64::from(v) <= MAX_ALIGNMENT)
    };
    match &alignment.value {
        OverrideValue::Int(v) if fits(v) => None,
        _ => Some(Problem::of(
            "",
            format!(
                "--override-kv {}: it must be an int, a power of two, at most {MAX_ALIGNMENT}",
                keys::ALIGNMENT
            ),
        )),
    }
}

/// Outputs with equal paths.
fn clashes(outputs: &[PlannedOutput<'_>]) -> Vec<Problem> {
    let mut seen = std::collections::HashSet::new();
    let paths = outputs.iter().flat_map(PlannedOutput::paths);
    let twice = paths.filter(|path| !seen.insert(*path));
    twice
        .map(|path| Problem::of("", format!("two outputs have the path {}", path.display())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_after_a_pruned_one_move_up() {
        let mut renumbered = Renumbering::new(&[1, 3]);
        let names = [
            "output.weight",
            "blk.0.a",
            "blk.1.a",
            "blk.1.b",
            "blk.2.a",
            "blk.2.b",
            "blk.3.a",
            "blk.4.a",
        ];
        let new: Vec<_> = names.iter().map(|n| renumbered.name(n)).collect();
        let expected = [
            Some("output.weight"),
            Some("blk.0.a"),
            None,
            None,
            Some("blk.1.a"),
            Some("blk.1.b"),
            None,
            Some("blk.2.a"),
        ];
        assert_eq!(
            new.iter().map(Option::as_deref).collect::<Vec<_>>(),
            expected
        );
        assert_eq!(renumbered.next, 3);
    }
}
