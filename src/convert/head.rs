//! Checks of token embeddings and output matrix: one row per token, and an untied output matrix
//! where the config requires it.

use super::plan::PlannedTensor;
use super::{Checkpoint, Error, Result};
use crate::arch::Architecture;
use crate::plan::recipe::Problem;
use serde_json::Value;
use std::path::Path;

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";
/// The table of per-layer embeddings.
const PER_LAYER_EMBEDDING: &str = "per_layer_token_embd.weight";
/// Keys of embeddings of n-grams, whose table has a row for each hash instead of each token.
const NGRAM_KEYS: &str = ".ple_key.weight";
/// The classifier of a reranker, computed from the output matrix.
const CLASSIFIER: &str = "cls.output.weight";
/// The field of tied embeddings.
const TIED: &str = "tie_word_embeddings";
/// Bytes at the start of two matrices in their comparison.
const COMPARED: usize = 1 << 20;

/// Rejects a model with a different number of tokens than rows of the embeddings or the output
/// matrix: llama.cpp does not load it.
pub(super) fn check_rows(
    tensors: &[PlannedTensor],
    tokens: u64,
    vocab_size: Option<u64>,
) -> Result<()> {
    let size = match vocab_size {
        Some(size) => format!("config.json has a vocab_size of {size}"),
        None => "config.json has no vocab_size".into(),
    };
    let misfit = |tensor: &&PlannedTensor| tensor.shape.rows() != tokens;
    let is_of_ngrams = tensors.iter().any(|t| t.name.ends_with(NGRAM_KEYS));
    let is_by_token = |name: &str| match name {
        PER_LAYER_EMBEDDING => !is_of_ngrams,
        name => [EMBEDDING, OUTPUT].contains(&name),
    };
    let ends = tensors.iter().filter(|t| is_by_token(&t.name));
    let problem = |tensor: &PlannedTensor| {
        let rows = tensor.shape.rows();
        let what = format!(
            "it has {rows} rows, {size}, and the tokenizer's files lead to {tokens} tokens; llama.cpp loads only as \
             many rows as tokens. Take weights, config.json and tokenizer from one model; if they are, vocab_size \
             should be {rows}"
        );
        Problem::of(&tensor.name, what)
    };
    let problems: Vec<_> = ends.filter(misfit).map(problem).collect();
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Impossible(problems)),
    }
}

/// Tokens beyond the tokenizer's with zero embeddings, to exclude from sampling in llama.cpp:
/// models with untrained added tokens list them.
///
/// # Errors
/// A tokenizer.json that cannot be read.
pub(super) fn untrained(checkpoint: &Checkpoint) -> Result<Vec<u32>> {
    let table = checkpoint
        .tensors
        .iter()
        .find(|source| source.text_name() == "model.embed_tokens.weight");
    let path = checkpoint.dir.join("tokenizer.json");
    let (Some(table), true) = (table, path.is_file()) else {
        return Ok(Vec::new());
    };
    let tokenizer = crate::format::json::read_object(&path)?;
    let own = tokenizer
        .get("model")
        .and_then(|model| model.get("vocab")?.as_object());
    let own = own.map_or(0, |own| own.len());
    let (&[rows, columns], None) = (&*table.shape, table.strides.as_ref()) else {
        return Ok(Vec::new());
    };
    let mut row = vec![0.0; columns as usize];
    let mut untrained = Vec::new();
    for token in own as u64..rows {
        checkpoint.numbers(table, token * columns..(token + 1) * columns, &mut row)?;
        if row.iter().all(|x| *x == 0.0) {
            untrained.push(token as u32);
        }
    }
    Ok(untrained)
}

/// Tokens that `generation_config.json` excludes from sampling.
///
/// # Errors
/// A file that cannot be read, or a list of something else than tokens.
pub(super) fn suppressed(dir: &Path) -> Result<Vec<u32>> {
    const FIELD: &str = "suppress_tokens";
    let path = dir.join("generation_config.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let config = crate::format::json::read_object(&path)?;
    let Some(value) = config.get(FIELD).filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let token = |value: &Value| {
        let token = value.as_u64().and_then(|token| i32::try_from(token).ok());
        token.map(|token| token as u32)
    };
    let list = value.as_array();
    let tokens = list.and_then(|list| list.iter().map(token).collect::<Option<_>>());
    tokens.ok_or_else(|| {
        let what = format!("field '{FIELD}' is {value}; a list of tokens is expected");
        crate::format::Error::Bad { path, what }.into()
    })
}

/// Compares config.json with the output matrix. Returns a note if an untied output matrix is used
/// against the config.
///
/// # Errors
/// If a required output matrix is missing.
pub(super) fn check_tie(
    checkpoint: &Checkpoint,
    architecture: &Architecture,
    tensors: &[PlannedTensor],
) -> Result<Option<String>> {
    let find = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
    let (embedding, output) = (find(EMBEDDING), find(OUTPUT));
    match (checkpoint.config.is_tied(), embedding, output) {
        (Some(false), Some(_), None) => {
            let needs = architecture.has_output() && find(CLASSIFIER).is_none();
            match needs && !is_without_head(checkpoint) {
                true => Err(Error::impossible(format!(
                    "config.json says that the model has an output matrix of its own ({TIED} is false), and there is \
                     no lm_head.weight; download the files again, or set {TIED} to true if the embeddings serve as \
                     output matrix"
                ))),
                false => Ok(None),
            }
        }
        (Some(true), Some(embedding), Some(output)) if differ(checkpoint, [embedding, output]) => {
            Ok(Some(format!(
                "config.json says that the embeddings serve as output matrix ({TIED} is true), and lm_head.weight \
                 holds another one, which is taken, as convert_hf_to_gguf.py does; remove lm_head.weight if the model is \
                 better in transformers, which takes the embeddings"
            )))
        }
        _ => Ok(None),
    }
}

/// True for a checkpoint without a head: an embedding model, or a base model.
fn is_without_head(checkpoint: &Checkpoint) -> bool {
    let class = checkpoint.config.class().unwrap_or_default();
    let is_bare = class.ends_with("Model") && !class.ends_with("LMHeadModel");
    is_bare || checkpoint.dir.join("modules.json").is_file()
}

/// True if two tensors differ at the start.
fn differ(checkpoint: &Checkpoint, tensors: [&PlannedTensor; 2]) -> bool {
    let sources = tensors.map(|tensor| tensor.weights.sources().next());
    let [Some(a), Some(b)] = sources.map(|index| Some(&checkpoint.tensors[index?])) else {
        return false;
    };
    let [a_bytes, b_bytes] = [a, b].map(|source| {
        let bytes = checkpoint.data(source);
        &bytes[..bytes.len().min(COMPARED)]
    });
    a.dtype == b.dtype && a_bytes != b_bytes
}
