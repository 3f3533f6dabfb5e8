//! The plan: every name, shape, type and key, and every refusal, before the first byte is written.

use super::general::{General, ParameterCount, naming::fill_template};
use super::scale::{self, Scale};
use super::weights::Weights;
use super::{Checkpoint, Error, Job, Result, Source};
use crate::arch::{Architecture, Config, Keys, Match, Rule, Transform};
use crate::format::gguf::{
    self, DEFAULT_ALIGNMENT, Entries, Layout, MAX_NAME, Metadata, QUANTIZATION_VERSION, Shape,
    TensorInfo, Value, keys,
};
use crate::format::types::GgmlType;
use crate::plan::file_type::FileType;
use crate::plan::recipe::Problem;
use crate::tokenizer;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Computed by every model from its config; some checkpoints hold them all the same.
const BUFFERS: &[&str] = &[
    ".attention.masked_bias",
    ".attention.bias",
    ".rotary_emb.inv_freq",
];
/// Matrices that llama.cpp wants in f32, by the end of their name.
const ALWAYS_F32: &[&str] = &[
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
];

/// A conversion that can work.
pub struct Plan<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    /// What is written, in the order of the files.
    pub tensors: Vec<PlannedTensor>,
    /// What matrices are stored as, most of them.
    pub file_type: FileType,
    /// The architecture.
    pub architecture: &'static Architecture,
    /// What the user should know about the vocabulary.
    pub notes: Vec<String>,
    /// The files, one per shard, and their metadata.
    files: Vec<(PathBuf, Metadata<'static>)>,
    vocab_only: bool,
    pub(super) check: bool,
    pub(super) threads: usize,
}

/// One tensor of the output.
pub struct PlannedTensor {
    /// Its name in the output.
    pub name: String,
    /// Its dimensions, row length first.
    pub shape: Shape,
    /// What the file type wants.
    pub wanted: GgmlType,
    /// What it becomes; another than wanted where its rows are not whole blocks.
    pub target: GgmlType,
    pub(super) weights: Weights,
    pub(super) shard: usize,
}

impl PlannedTensor {
    /// As the output's header describes it.
    pub(crate) fn info(&self) -> TensorInfo<'_> {
        TensorInfo {
            name: (&*self.name).into(),
            shape: self.shape,
            ggml_type: self.target,
        }
    }

    /// Bytes in the output.
    pub fn bytes(&self) -> u64 {
        self.info().bytes()
    }

    /// Tensors of the checkpoint that it is made of, as indices.
    pub fn sources(&self) -> impl Iterator<Item = usize> {
        self.weights.parts().iter().map(|part| part.source)
    }
}

impl<'a> Plan<'a> {
    /// Decides everything.
    ///
    /// # Errors
    /// [`Error::Impossible`] with every reason at once.
    pub fn new(checkpoint: &'a Checkpoint, job: &Job) -> Result<Plan<'a>> {
        let config = &checkpoint.config;
        let in_config = |what| crate::format::Error::Bad {
            path: checkpoint.config_path(),
            what,
        };
        let class = config
            .class()
            .ok_or_else(|| in_config("field 'architectures' is missing or empty".into()))?;
        let architecture = Architecture::of_class(class).map_err(in_config)?;
        let file_type = job.out_type.file_type(&checkpoint.tensors);
        let mut keys = Keys::new(architecture.name, file_type.id());
        let mut tensors = Vec::new();
        if !job.vocab_only {
            checkpoint.check_has_weights()?;
            tensors = Tensors::new(checkpoint, architecture)
                .plan(&mut keys, file_type)
                .map_err(in_config_or(in_config))?;
        }
        let computed = keys.clone().into_entries();
        for parameter in architecture.parameters.iter().flat_map(|list| list.iter()) {
            parameter.apply(config, &mut keys).map_err(in_config)?;
        }
        let own = keys.into_entries().split_off(computed.len());
        let dir = &*checkpoint.dir;
        let count = ParameterCount::of(&tensors);
        let general = General::load(
            dir,
            job.metadata.as_deref(),
            job.model_name.as_deref(),
            &count,
        )?;
        let vocab_size = config
            .optional_u32(&["vocab_size"])
            .map_err(in_config)?
            .map(u64::from);
        let vocabulary =
            tokenizer::import(dir, architecture.vocabulary, vocab_size, job.pre.as_deref())?;

        let mut entries = Entries::new();
        entries.set(keys::ARCHITECTURE, Value::str(architecture.name));
        computed
            .into_iter()
            .for_each(|(key, value)| entries.set(key, value));
        entries.set(keys::TYPE, Value::str("model"));
        entries.extend(general.entries()?);
        own.into_iter()
            .for_each(|(key, value)| entries.set(key, value));
        entries.set(keys::QUANTIZATION_VERSION, Value::U32(QUANTIZATION_VERSION));
        entries.extend(vocabulary.entries);
        let mut metadata = Metadata::new();
        entries
            .into_iter()
            .for_each(|(key, value)| metadata.set(key, value));

        let output = output(job, &general, file_type)?;
        let shards = split(&mut tensors, job);
        let files = files(&output, metadata, shards, tensors.len());
        let (vocab_only, check, threads) = (job.vocab_only, job.check, job.threads);
        let notes = vocabulary.notes;
        Ok(Plan {
            checkpoint,
            tensors,
            file_type,
            architecture,
            notes,
            files,
            vocab_only,
            check,
            threads,
        })
    }

    /// Where the output goes.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().map(|(path, _)| path)
    }

    /// The metadata of the first file.
    pub fn metadata(&self) -> &Metadata<'static> {
        &self.files[0].1
    }

    /// The layout of each file.
    pub(super) fn layouts(&self) -> Vec<Layout> {
        let of = |(shard, (_, metadata)): (usize, &(PathBuf, Metadata<'_>))| {
            let tensors: Vec<_> = self
                .tensors
                .iter()
                .filter(|t| t.shard == shard)
                .map(PlannedTensor::info)
                .collect();
            match self.vocab_only {
                true => Layout::of_metadata(metadata),
                false => Layout::new(metadata, &tensors, DEFAULT_ALIGNMENT),
            }
        };
        self.files.iter().enumerate().map(of).collect()
    }

    /// Bytes of all files, headers included.
    pub fn file_bytes(&self) -> u64 {
        self.layouts().iter().map(Layout::file_bytes).sum()
    }

    /// Bytes of tensor data.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::bytes).sum()
    }
}

impl ParameterCount {
    fn of(tensors: &[PlannedTensor]) -> ParameterCount {
        let mut count = ParameterCount::default();
        let (mut stacks, mut stacked) = (0, 0);
        for tensor in tensors {
            let (dims, elements) = (tensor.shape.dims(), tensor.shape.elements());
            count.total += elements;
            // Biases of experts have one dimension less per expert.
            let experts = dims.get(if tensor.name.contains(".bias") { 1 } else { 2 });
            match experts.filter(|_| tensor.name.contains("_exps.") && dims.len() > 2) {
                Some(experts) => {
                    count.per_expert += elements / experts;
                    stacked += experts;
                    stacks += 1;
                }
                None => count.shared += elements,
            }
        }
        count.experts = stacked.checked_div(stacks).unwrap_or(0);
        count
    }
}

/// What goes wrong while tensors are planned: the config, or any number of tensors.
pub(super) enum Fault {
    Config(String),
    Tensors(Vec<Problem>),
}

fn in_config_or<F: Fn(String) -> crate::format::Error>(in_config: F) -> impl Fn(Fault) -> Error {
    move |fault| match fault {
        Fault::Config(what) => in_config(what).into(),
        Fault::Tensors(problems) => Error::Impossible(problems),
    }
}

/// Planning of the tensors.
struct Tensors<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    architecture: &'static Architecture,
    problems: Vec<Problem>,
    planned: Vec<PlannedTensor>,
    /// Layers that tensors have come by of.
    seen_layers: HashSet<u32>,
    /// Experts of a layer that have come by so far: which stack of it, which expert, which source.
    experts: HashMap<u32, Vec<(u8, u32, usize, String)>>,
}

impl<'a> Tensors<'a> {
    fn new(checkpoint: &'a Checkpoint, architecture: &'static Architecture) -> Tensors<'a> {
        let (problems, planned, experts) = (Vec::new(), Vec::new(), HashMap::new());
        let (config, seen_layers) = (&checkpoint.config, HashSet::new());
        Tensors {
            checkpoint,
            config,
            architecture,
            problems,
            planned,
            seen_layers,
            experts,
        }
    }

    /// Every tensor of the output in its order: those that are computed, then the checkpoint's as
    /// they come.
    fn plan(
        mut self,
        keys: &mut Keys,
        file_type: FileType,
    ) -> std::result::Result<Vec<PlannedTensor>, Fault> {
        let config = self.config;
        for generated in (self.architecture.generated)(config, keys).map_err(Fault::Config)? {
            let dims = [generated.weights.len() as u64];
            self.push(
                generated.name.into(),
                &dims,
                Weights::generated(generated.weights),
                file_type,
            );
        }
        let layers = config.layers().map_err(Fault::Config)?;
        let scales = scale::find(config, &self.checkpoint.tensors).map_err(Fault::Tensors)?;
        for (index, source) in self.checkpoint.tensors.iter().enumerate() {
            if scales.is_consumed(index) || BUFFERS.iter().any(|end| source.name.ends_with(end)) {
                continue;
            }
            let Some((rule, found)) = self.architecture.rule(&source.name) else {
                self.problem(
                    source,
                    format!(
                        "architecture {} has no such tensors",
                        self.architecture.name
                    ),
                );
                continue;
            };
            if rule.transform == Transform::Skip {
                continue;
            }
            self.seen_layers.extend(found.layer);
            if found.layer.is_some_and(|layer| layer >= layers) {
                self.problem(source, format!("config.json has only {layers} layers"));
            } else if let Err(what) = self.check_dims(rule, source) {
                self.problem(source, what);
            } else if let Transform::Expert(stack) = rule.transform {
                self.expert(stack, found, index, &scales, file_type)
                    .map_err(Fault::Config)?;
            } else if let Err(what) = self.tensor(rule, found, index, scales.of(index), file_type) {
                self.problem(source, what);
            }
        }
        for (layer, experts) in std::mem::take(&mut self.experts) {
            for (_, _, source, _) in experts {
                let what = format!("some experts of layer {layer} are missing beside these");
                self.problem(&self.checkpoint.tensors[source], what);
            }
        }
        if let Some(first) = (0..layers).find(|layer| !self.seen_layers.contains(layer)) {
            let what = format!(
                "config.json has {layers} layers, and there is no tensor of layer {first}; files are missing"
            );
            self.problems.push(Problem::of("", what));
        }
        self.check_names();
        self.problems.sort();
        match self.problems.is_empty() {
            true => Ok(self.planned),
            false => Err(Fault::Tensors(self.problems)),
        }
    }

    fn problem(&mut self, source: &Source, what: impl Into<String>) {
        self.problems.push(Problem::of(&source.name, what));
    }

    /// Plans a tensor that is made of one tensor of the checkpoint.
    fn tensor(
        &mut self,
        rule: &Rule,
        found: Match,
        index: usize,
        scale: Option<Scale>,
        file_type: FileType,
    ) -> std::result::Result<(), String> {
        let source = &self.checkpoint.tensors[index];
        let mut dims = source.shape.clone();
        let weights = Weights::of(index, source, scale);
        let weights = match rule.transform {
            Transform::InterleaveQueries => {
                weights.interleaved(self.heads(&["n_heads", "num_attention_heads"])?)?
            }
            Transform::InterleaveKeys => weights.interleaved(self.heads(&[
                "n_kv_heads",
                "num_key_value_heads",
                "num_attention_heads",
            ])?)?,
            Transform::Transpose => {
                dims.reverse();
                weights.transposed()?
            }
            Transform::AddOne => weights.plus_one(),
            Transform::VocabularyRows => {
                dims[0] = dims[0].min(self.vocabulary_rows()?);
                weights.first_rows(dims[0])
            }
            Transform::Keep | Transform::Skip | Transform::Expert(_) => weights,
        };
        self.push(found.name, &dims, weights, file_type);
        Ok(())
    }

    /// Keeps an expert; once a layer's are complete, plans their three stacks.
    fn expert(
        &mut self,
        stack: u8,
        found: Match,
        index: usize,
        scales: &scale::Scales,
        file_type: FileType,
    ) -> std::result::Result<(), String> {
        const STACKS: u32 = 3;
        let count = self.config.u32(&["num_local_experts", "num_experts"])?;
        let (layer, expert) = (found.layer.unwrap_or(0), found.expert.unwrap_or(0));
        let source = &self.checkpoint.tensors[index];
        if expert >= count {
            self.problem(source, format!("config.json has only {count} experts"));
            return Ok(());
        }
        let seen = self.experts.entry(layer).or_default();
        seen.push((stack, expert, index, found.name));
        if (seen.len() as u64) < u64::from(STACKS) * u64::from(count) {
            return Ok(());
        }
        let mut seen = self.experts.remove(&layer).unwrap_or_default();
        seen.sort();
        for experts in seen.chunk_by(|a, b| a.0 == b.0) {
            let first = &self.checkpoint.tensors[experts[0].2];
            let parts = experts.iter().map(|(_, _, index, _)| *index);
            let different = parts
                .clone()
                .find(|&i| self.checkpoint.tensors[i].shape != first.shape);
            if let Some(different) = different {
                let what = format!(
                    "it has another shape than {}, {:?}",
                    first.name, first.shape
                );
                self.problem(&self.checkpoint.tensors[different], what);
                continue;
            }
            let mut dims = vec![u64::from(count)];
            dims.extend(&first.shape);
            let weights = parts
                .map(|i| Weights::of(i, &self.checkpoint.tensors[i], scales.of(i)))
                .collect();
            self.push(
                experts[0].3.clone(),
                &dims,
                Weights::stacked(weights),
                file_type,
            );
        }
        Ok(())
    }

    /// Adds a tensor with dimensions that are counted from the outermost.
    fn push(&mut self, name: String, dims: &[u64], weights: Weights, file_type: FileType) {
        let reversed: Vec<u64> = dims.iter().rev().copied().collect();
        let shape = match Shape::new(&reversed) {
            Ok(shape) => shape,
            Err(what) => return self.problems.push(Problem::of(&name, what)),
        };
        let wanted = wanted_type(&name, dims.len(), file_type);
        let fits = wanted.row_bytes(shape.row_len()).is_some();
        let target = if fits { wanted } else { GgmlType::F16 };
        self.planned.push(PlannedTensor {
            name,
            shape,
            wanted,
            target,
            weights,
            shard: 0,
        });
    }

    /// How many heads there are, under the first of these names that is not null.
    fn heads(&self, names: &[&str]) -> std::result::Result<u64, String> {
        let found = names.iter().find(|name| self.config.get(name).is_some());
        Ok(self
            .config
            .u32(&[found.copied().unwrap_or(names[0])])?
            .into())
    }

    /// How many rows of the embeddings stand for tokens.
    fn vocabulary_rows(&self) -> std::result::Result<u64, String> {
        let dir = &self.checkpoint.dir;
        if dir.join("tokenizer.model").is_file() {
            return Ok(self.config.u32(&["vocab_size"])?.into());
        }
        let tokenizer = crate::format::json::read_object(&dir.join("tokenizer.json"))
            .map_err(|e| e.to_string())?;
        let tokens = tokenizer
            .get("model")
            .and_then(|model| model.get("vocab")?.as_object())
            .map_or(0, |v| v.len());
        let added = tokenizer
            .get("added_tokens")
            .and_then(|added| added.as_array())
            .map_or(0, Vec::len);
        Ok((tokens + added) as u64)
    }

    /// Compares a tensor's dimensions with those that the config leads to.
    fn check_dims(&self, rule: &Rule, source: &Source) -> std::result::Result<(), String> {
        // A bias has one number per row of its matrix.
        let dims = if source.name.ends_with(".bias") {
            &rule.dims[..rule.dims.len().min(1)]
        } else {
            rule.dims
        };
        if !dims.is_empty() && source.shape.len() != dims.len() {
            return Err(format!(
                "it has shape {:?}, and {} dimensions are expected",
                source.shape,
                dims.len()
            ));
        }
        for (i, (dim, size)) in dims.iter().zip(&source.shape).enumerate() {
            if let Some(expected) = dim.size(self.config).filter(|expected| expected != size) {
                return Err(format!(
                    "dimension {i} of shape {:?} must be {expected} by config.json",
                    source.shape
                ));
            }
        }
        Ok(())
    }

    /// Finds names that occur twice or are too long for ggml.
    fn check_names(&mut self) {
        let mut seen = HashSet::new();
        let twice: Vec<_> = self
            .planned
            .iter()
            .filter(|t| !seen.insert(&t.name))
            .map(|t| t.name.clone())
            .collect();
        self.problems.extend(
            twice
                .iter()
                .map(|name| Problem::of(name, "several tensors of the checkpoint become this")),
        );
        let long = self.planned.iter().filter(|t| t.name.len() >= MAX_NAME);
        self.problems.extend(
            long.map(|t| Problem::of(&t.name, format!("names have less than {MAX_NAME} bytes"))),
        );
    }
}

/// What a tensor becomes if its rows allow it.
fn wanted_type(name: &str, rank: usize, file_type: FileType) -> GgmlType {
    let in_f32 = rank <= 1
        || !name.ends_with(".weight")
        || name.ends_with("_norm.weight")
        || ALWAYS_F32.iter().any(|end| name.ends_with(end));
    match file_type {
        _ if in_f32 => GgmlType::F32,
        FileType::F32 => GgmlType::F32,
        FileType::BF16 => GgmlType::BF16,
        FileType::Q8_0 => GgmlType::Q8_0,
        _ => GgmlType::F16,
    }
}

/// Deals the tensors out to files; returns how many there are.
fn split(tensors: &mut [PlannedTensor], job: &Job) -> usize {
    let (mut shard, mut in_shard, mut bytes) = (0, 0, 0u64);
    for tensor in tensors {
        let size = tensor.bytes();
        let too_many = job.split_max_tensors != 0 && in_shard >= job.split_max_tensors;
        let too_large = job.split_max_size != 0 && bytes + size > job.split_max_size;
        if in_shard > 0 && (too_many || too_large) {
            (shard, in_shard, bytes) = (shard + 1, 0, 0);
        }
        tensor.shard = shard;
        in_shard += 1;
        bytes += size;
    }
    shard + 1
}

/// Where the output goes: in a directory, under the model's own name.
fn output(job: &Job, general: &General, file_type: FileType) -> Result<PathBuf> {
    if job.output.is_dir() {
        let name = match job.vocab_only {
            true => general.vocabulary_file_name().stem(),
            false => general.file_name(file_type.name()).stem(),
        };
        return Ok(job.output.join(name + ".gguf"));
    }
    let name = job.output.file_name().unwrap_or_default().to_string_lossy();
    Ok(job
        .output
        .with_file_name(fill_template(&name, file_type.name()).map_err(Error::impossible)?))
}

/// The files of the output and their metadata. Later shards have nothing but their place in the
/// split.
fn files(
    output: &Path,
    metadata: Metadata<'static>,
    shards: usize,
    tensors: usize,
) -> Vec<(PathBuf, Metadata<'static>)> {
    if shards == 1 {
        return vec![(output.to_owned(), metadata)];
    }
    let prefix = output.with_file_name(output.file_stem().unwrap_or_default());
    gguf::shards(&prefix, metadata, shards, tensors)
}
