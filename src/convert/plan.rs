//! The plan: all names, shapes, types and keys, and all errors, before the first byte is written.

use super::general::{General, ParameterCount, naming::fill_template};
use super::outputs::{self, Conversion, Fault, Outputs};
use super::target::Vocabulary;
use super::weights::Weights;
use super::{Checkpoint, Error, Job, OutType, Result, Source, fields, head, range, repack, target};
use crate::arch::{Architecture, Config, Keys, Nextn};
use crate::format::gguf::{
    self, Array, DEFAULT_ALIGNMENT, Endian, Entries, Layout, Metadata, QUANTIZATION_VERSION, Shape,
    TensorInfo, Value, ValueType, keys,
};
use crate::format::types::GgmlType;
use crate::plan::file_type::FileType;
use crate::plan::recipe::Problem;
use crate::tokenizer;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The last token key of a model in Mistral's format.
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
/// The token in place of those that a draft predicts.
const MASK_TOKEN: &str = "tokenizer.ggml.mask_token_id";

/// A valid conversion.
pub struct Plan<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    /// Output tensors, in file order.
    pub tensors: Vec<PlannedTensor>,
    /// The type of most matrices, apart from repacked 4-bit floats.
    pub file_type: FileType,
    /// The architecture.
    pub architecture: &'static Architecture,
    /// Notes for the user about the vocabulary and dropped tensors.
    pub notes: Vec<String>,
    /// The files, one per shard, and their metadata.
    pub(super) files: Vec<(PathBuf, Metadata<'static>)>,
    pub(super) endian: Endian,
    pub(super) vocab_only: bool,
    pub(super) check: bool,
    pub(super) threads: usize,
    /// Overflowing weights.
    pub(super) too_large: range::Seen,
}

/// One tensor of the output.
pub struct PlannedTensor {
    /// Its name in the output.
    pub name: String,
    /// Dimensions, row length first.
    pub shape: Shape,
    /// The type by the file type.
    pub wanted: GgmlType,
    /// The actual type; different if rows are not whole blocks.
    pub target: GgmlType,
    pub(super) weights: Weights,
    pub(super) shard: usize,
}

impl PlannedTensor {
    /// A tensor with dimensions from the outermost; in f16 if its rows are not whole blocks of the
    /// wanted type.
    ///
    /// # Errors
    /// Invalid dimensions.
    pub(super) fn new(
        name: String,
        dims: &[u64],
        wanted: GgmlType,
        weights: impl FnOnce() -> Weights,
    ) -> std::result::Result<PlannedTensor, Problem> {
        let reversed: Vec<u64> = dims.iter().rev().copied().collect();
        let shape = Shape::new(&reversed).map_err(|what| Problem::of(&name, what))?;
        let fits = wanted.row_bytes(shape.row_len()).is_some();
        let target = if fits { wanted } else { GgmlType::F16 };
        Ok(PlannedTensor {
            name,
            shape,
            wanted,
            target,
            weights: weights(),
            shard: 0,
        })
    }

    /// The entry in the output's header.
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

    /// The smallest number of elements converted together: a row, or less for one-dimensional
    /// tensors if the type permits.
    pub(super) fn unit(&self) -> u64 {
        match self.shape.dims() {
            [_] if self.target.row_bytes(1).is_some() => 1,
            _ => self.shape.row_len(),
        }
    }

    /// About this many elements, in whole rows, at least one.
    pub(super) fn step(&self, elements: u64) -> u64 {
        (elements / self.unit()).max(1) * self.unit()
    }

    /// Bytes of this many elements in the output, in whole rows.
    pub(super) fn bytes_of(&self, elements: u64) -> usize {
        let row_bytes = self.target.row_bytes(self.unit()).unwrap_or(0);
        (elements / self.unit() * row_bytes) as usize
    }

    /// One without weights.
    #[cfg(test)]
    pub(super) fn of_type(name: &str, dims: &[u64], target: GgmlType) -> PlannedTensor {
        PlannedTensor {
            name: name.into(),
            shape: Shape::new(dims).unwrap(),
            wanted: target,
            target,
            weights: Weights::Computed(Vec::new()),
            shard: 0,
        }
    }

    /// The elements of rows, counted over all matrices.
    pub(super) fn elements(&self, rows: Range<u64>) -> Range<u64> {
        rows.start * self.shape.row_len()..rows.end * self.shape.row_len()
    }
}

/// Tokens excluded from sampling.
const SUPPRESSED: &str = "tokenizer.ggml.suppress_tokens";

/// A list of tokens.
fn tokens(tokens: &[u32]) -> Value<'static> {
    let tokens = tokens.iter().map(|token| Value::I32(*token as i32));
    Value::Array(Array::of_values(ValueType::I32, tokens))
}

impl<'a> Plan<'a> {
    /// Plans a conversion.
    ///
    /// # Errors
    /// [`Error::Impossible`] with all reasons at once.
    pub fn new(checkpoint: &'a Checkpoint, job: &Job) -> Result<Plan<'a>> {
        let config = &checkpoint.config;
        let in_config = |what| crate::format::Error::Bad {
            path: checkpoint.config_path(),
            what,
        };
        let architecture = Architecture::of(config).map_err(in_config)?;
        if job.vocab_only && job.no_tensor_first_split {
            return Err(Error::impossible(
                "a vocabulary is one file; leave out --no-tensor-first-split, or --vocab-only",
            ));
        }
        let file_type = job.out_type.file_type(checkpoint.halves);
        let names = checkpoint.tensors.iter().map(Source::text_name);
        let nextn = architecture.nextn_blocks(job.nextn, config, names);
        let (own_vocabulary, completed) = target::vocabulary(checkpoint, architecture, job)?;
        let config = completed.with_nextn(nextn.map_err(in_config)?);
        let config = match job.dense_modules {
            true => config.with_dense_modules(),
            false => config,
        };
        let config = &fields::complete(config, checkpoint, architecture, job.vocab_only)?;
        let is_float = [FileType::F32, FileType::F16, FileType::BF16].contains(&file_type);
        let gives_type = is_float || checkpoint.fp4.gives_type;
        let named = match gives_type && !job.vocab_only && !job.widen {
            true if checkpoint.fp4.nvfp4 => FileType::NVFP4,
            true if checkpoint.fp4.mxfp4 => FileType::MXFP4_MOE,
            _ => file_type,
        };
        let mut keys = Keys::new(architecture.name, named.id());
        let mut tensors = Vec::new();
        let mut left_out = BTreeMap::new();
        let (mut weights_only, mut widened) = (Vec::new(), 0);
        if !job.vocab_only {
            checkpoint.check_has_weights()?;
            let conversion = Conversion {
                checkpoint,
                config,
                architecture,
                file_type,
                nextn: job.nextn,
                fp8_as_q8: job.fp8_as_q8,
                widen: job.widen,
            };
            let outputs = outputs::plan(conversion, &mut keys);
            Outputs {
                tensors,
                left_out,
                weights_only,
                widened,
            } = outputs.map_err(|fault| match fault {
                Fault::Config(what) => in_config(what).into(),
                Fault::Tensors(problems) => Error::Impossible(problems),
            })?;
            check_endian(&tensors, job.endian)?;
        } else if architecture.is_draft() {
            (architecture.generated)(config, &mut keys).map_err(in_config)?;
        } else if let Some(template) =
            own_template(architecture, config, &keys).map_err(in_config)?
        {
            keys.set_exact(CHAT_TEMPLATE.into(), template);
        }
        let computed = keys.clone().into_entries();
        for parameter in architecture.parameters.iter().flat_map(|list| list.iter()) {
            parameter.apply(config, &mut keys).map_err(in_config)?;
        }
        let mut notes = checkpoint.notes.clone();
        notes.extend_from_slice(keys.notes());
        if widened > 0 {
            notes.push(format!(
                "{widened} tensors of 4-bit floats are multiplied by their scales, which llama.cpp does not load beside \
                 them; a file with these scales does not run (convert_hf_to_gguf.py writes it)"
            ));
        }
        let mut own = keys.into_entries().split_off(computed.len());
        if architecture.vocabulary == tokenizer::VocabKind::MiniMax01 {
            let untrained = head::untrained(checkpoint)?;
            let at = own.iter().position(|(key, _)| key == keys::FILE_TYPE);
            if let (Some(at), false) = (at, untrained.is_empty()) {
                own.insert(at + 1, (SUPPRESSED.into(), tokens(&untrained)));
            }
        }
        let dir = &*checkpoint.dir;
        if architecture.vocabulary == tokenizer::VocabKind::Gemma4Unified {
            let suppressed = head::suppressed(dir)?;
            if !suppressed.is_empty() {
                own.push((SUPPRESSED.into(), tokens(&suppressed)));
            }
        }
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
        let settings = tokenizer::Settings {
            vocab_size,
            token_types: config
                .optional_u32(&["type_vocab_size"])
                .map_err(in_config)?,
            pre: job.pre.as_deref(),
        };
        let Vocabulary { dir, kind } = &own_vocabulary;
        let vocabulary = tokenizer::import(dir, *kind, &settings)?;
        // Drafts may share embeddings and output matrix with their targets, and predict fewer tokens.
        if !architecture.is_draft() {
            head::check_rows(&tensors, vocabulary.tokens as u64, vocab_size)?;
        }
        if !job.vocab_only && !architecture.is_draft() {
            notes.extend(head::check_tie(checkpoint, architecture, &tensors)?);
        }

        notes.extend(dropped_template(dir, &vocabulary.entries));

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
        for (key, value) in repack::keys(weights_only).into_iter().flatten() {
            entries.set(key, value);
        }
        let own_template = dir.join("chat_template.jinja").is_file();
        for (key, value) in vocabulary.entries {
            let is_template = key == CHAT_TEMPLATE;
            if is_template && job.no_community_template && !own_template {
                continue;
            }
            // In Mistral's format, the vocabulary size is the tokenizer's, and the reference writes
            // it after the tokens.
            if config.is_of_params() && key == ADD_BOS {
                let size = Value::U32(vocabulary.tokens as u32);
                entries.set(format!("{}.vocab_size", architecture.name), size);
            }
            entries.set(key, value);
        }
        if let Some(mask) = architecture.mask_token(config).map_err(in_config)? {
            entries.set(MASK_TOKEN, Value::U32(mask));
        }
        let is_open = |(key, value): &(String, Value<'static>)| {
            key == CHAT_TEMPLATE && value.as_str().is_some_and(str::is_empty)
        };
        let (open, entries): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_open);
        notes.extend(open.iter().map(|_| tokenizer::NO_TEMPLATE.to_owned()));
        let mut metadata = Metadata::new();
        entries
            .into_iter()
            .for_each(|(key, value)| metadata.set(key, value));

        let name = || file_name(job, architecture, &general, named);
        let output = output(&job.output, named, name)?;
        let shards = split(&mut tensors, job);
        let files = files(&output, metadata, shards, tensors.len());
        let (vocab_only, check, threads) = (job.vocab_only, job.check, job.threads);
        let left_out = left_out
            .iter()
            .map(|(part, count)| format!("{count} tensors of {part} are left out"));
        let notes = notes
            .into_iter()
            .chain(vocabulary.notes)
            .chain(left_out)
            .collect();
        Ok(Plan {
            checkpoint,
            tensors,
            file_type: named,
            architecture,
            notes,
            files,
            endian: job.endian,
            vocab_only,
            check,
            threads,
            too_large: range::Seen::default(),
        })
    }

    /// Output paths.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().map(|(path, _)| path)
    }

    /// The metadata of the first file.
    pub(crate) fn metadata(&self) -> &Metadata<'static> {
        &self.files[0].1
    }

    /// The layout of each file.
    pub(super) fn layouts(&self) -> Vec<Layout> {
        let layout = |(shard, (_, metadata)): (usize, &(PathBuf, Metadata<'_>))| {
            let tensors: Vec<_> = self
                .tensors
                .iter()
                .filter(|t| t.shard == shard)
                .map(PlannedTensor::info)
                .collect();
            // A file without tensors ends after the metadata.
            let alignment = if self.vocab_only {
                1
            } else {
                DEFAULT_ALIGNMENT
            };
            match self.endian {
                Endian::Little => Layout::new(metadata, &tensors, alignment),
                Endian::Big => Layout::big_endian(metadata, &tensors, alignment)
                    .expect("types that the plan has checked"),
            }
        };
        self.files.iter().enumerate().map(layout).collect()
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

/// The chat template that an architecture gives all its models; it comes before all other keys.
fn own_template(
    architecture: &Architecture,
    config: &Config,
    keys: &Keys,
) -> std::result::Result<Option<Value<'static>>, String> {
    let mut keys = keys.clone();
    (architecture.generated)(config, &mut keys)?;
    let mut entries = keys.into_entries().into_iter();
    let template = entries.find(|(key, _)| key == CHAT_TEMPLATE);
    Ok(template.map(|(_, template)| template))
}

impl ParameterCount {
    pub(super) fn of(tensors: &[PlannedTensor]) -> ParameterCount {
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

/// A note about a dropped chat template: the reference reads none without a
/// `tokenizer_config.json`.
fn dropped_template(dir: &Path, vocabulary: &Entries) -> Option<String> {
    const FILE: &str = "chat_template.jinja";
    let is_dropped =
        vocabulary.get("tokenizer.chat_template").is_none() && dir.join(FILE).is_file();
    is_dropped.then(|| {
        format!(
            "{FILE} is left out, as convert_hf_to_gguf.py does without a tokenizer_config.json; quantier set --chat-template \
             adds it"
        )
    })
}

/// Refuses options of models, and some `more`, in a conversion of something else; `why` follows the option's
/// name. All must be at their defaults.
pub(super) fn check_defaults(job: &Job, more: &[(bool, &str)], why: &str) -> Result<()> {
    let is_ternary = matches!(job.out_type, OutType::Tq1_0 | OutType::Tq2_0);
    let of_models = [
        (job.vocab_only, "--vocab-only"),
        (job.no_tensor_first_split, "--no-tensor-first-split"),
        (job.split_max_tensors > 0, "--split-max-tensors"),
        (job.split_max_size > 0, "--split-max-size"),
        (job.nextn == Nextn::Alone, "--mtp"),
        (job.nextn == Nextn::LeftOut, "--no-nextn"),
        (job.fp8_as_q8, "--fp8-as-q8"),
        (job.dense_modules, "--sentence-transformers-dense-modules"),
        (job.target.is_some(), "--target-model-dir"),
    ];
    let ternary = [(is_ternary, "--outtype tq1_0 or tq2_0")];
    let mut options = of_models.iter().chain(more).chain(&ternary);
    match options.find(|(is_given, _)| *is_given) {
        Some((_, option)) => Err(Error::impossible(format!("{option} {why}; leave it out"))),
        None => Ok(()),
    }
}

/// Rejects types that convert_hf_to_gguf.py writes in the wrong byte order: it swaps the bytes of
/// numpy's numbers, but stores bf16 and blocks as plain bytes.
pub(super) fn check_endian(tensors: &[PlannedTensor], endian: Endian) -> Result<()> {
    let is_swapped = |t: &&PlannedTensor| matches!(t.target, GgmlType::F32 | GgmlType::F16);
    match tensors.iter().find(|t| !is_swapped(t)) {
        Some(tensor) if endian == Endian::Big => Err(Error::impossible(format!(
            "convert_hf_to_gguf.py writes {} in little-endian order into big-endian files, which then do not run; \
             add --outtype f16 or --outtype f32 to --bigendian",
            tensor.target
        ))),
        _ => Ok(()),
    }
}

/// Distributes the tensors over files; returns the number of files.
fn split(tensors: &mut [PlannedTensor], job: &Job) -> usize {
    let first = usize::from(job.no_tensor_first_split);
    let (mut shard, mut in_shard, mut bytes) = (first, 0, 0u64);
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

/// The name of a model's file in a directory, without `.gguf`.
fn file_name(
    job: &Job,
    architecture: &Architecture,
    general: &General,
    file_type: FileType,
) -> String {
    let names_drafts = architecture.nextn().is_some_and(|names| names.names_drafts);
    match (job.nextn, job.vocab_only) {
        (Nextn::Alone, _) if names_drafts => general.prefixed_file_name("mtp", file_type.name()),
        (_, true) => general.vocabulary_file_name().stem(),
        (_, false) => general.file_name(file_type.name()).stem(),
    }
}

/// The path of the output: in a directory, a file of this name; else the path with the type filled
/// in.
pub(super) fn output(
    path: &Path,
    file_type: FileType,
    name: impl FnOnce() -> String,
) -> Result<PathBuf> {
    if path.is_dir() {
        return Ok(path.join(name() + ".gguf"));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = fill_template(&name, file_type.name()).map_err(Error::impossible)?;
    Ok(path.with_file_name(name))
}

/// The files of the output and their metadata. Later shards have only their place in the split.
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
