//! Splits a model into several files and merges them, byte for byte as llama-gguf-split does.

use super::{Header, Plan, PlannedFile, Result, check_byte_order};
use crate::format::Error;
use crate::format::gguf::{DEFAULT_ALIGNMENT, MAX_SHARDS, Model, Value, keys, shards};
use std::path::Path;

/// Size limit of the files of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Tensors per file.
    Tensors(u64),
    /// Bytes of tensors per file, each padded to 32 bytes, headers not included.
    Bytes(u64),
}

/// Plans the files `PREFIX-00001-of-0000N.gguf` of a model, which may already be split.
///
/// The first file has all metadata, and no tensors with `first_bare`.
///
/// # Errors
/// A first tensor above the limit, as in the reference (a later one gets its own file and a note);
/// more files than the format can count.
pub fn split<'a>(
    model: &'a Model,
    prefix: &Path,
    limit: Limit,
    first_bare: bool,
) -> Result<Plan<'a>> {
    check_byte_order(model)?;
    let bad = |what| Error::Bad {
        path: model.files.paths()[0].to_owned(),
        what,
    };
    let (mut starts, mut bytes, mut notes) = (vec![0], 0u64, Vec::new());
    if first_bare {
        starts.push(0);
    }
    for (index, tensor) in model.tensors.iter().enumerate() {
        let size = tensor.info.bytes().next_multiple_of(DEFAULT_ALIGNMENT);
        let full = match limit {
            Limit::Tensors(most) => index > 0 && (index as u64).is_multiple_of(most.max(1)),
            Limit::Bytes(most) => bytes.saturating_add(size) > most,
        };
        if let Limit::Bytes(most) = limit
            && size > most
        {
            let what = format!(
                "tensor '{}' has {size} bytes, above the limit of a shard ({most})",
                tensor.info.name
            );
            if index == 0 {
                return Err(bad(format!("{what}; choose a larger size")).into());
            }
            notes.push(format!("{what}; its shard is larger"));
        }
        if full {
            starts.push(index);
            bytes = 0;
        }
        bytes += size;
    }
    let count = starts.len();
    if count as u64 > MAX_SHARDS {
        return Err(bad(format!(
            "this needs {count} shards; the maximum is {MAX_SHARDS}"
        ))
        .into());
    }
    let ends = starts.iter().skip(1).copied().chain([model.tensors.len()]);
    let files = shards(
        prefix,
        model.metadata().cut_at_zeros(),
        count,
        model.tensors.len(),
    );
    let files = files.into_iter().zip(starts.iter().copied().zip(ends)).map(
        |((path, mut metadata), (start, end))| {
            // The reference sets the count last, which moves the key after the others.
            metadata.set(keys::SPLIT_COUNT, Value::U16(count as u16));
            PlannedFile {
                path,
                metadata,
                tensors: start..end,
                header: Header::Ggml,
            }
        },
    );
    Ok(Plan {
        model,
        files: files.collect(),
        notes,
    })
}

/// Plans the merged file of a split model. With `split_keys` its metadata is the reference's, with
/// a `split.count` of 0. Without them, the file equals the original one byte for byte, if that had
/// ggml's layout.
///
/// # Errors
/// A model that is not split.
pub fn merge<'a>(model: &'a Model, path: &Path, split_keys: bool) -> Result<Plan<'a>> {
    check_byte_order(model)?;
    let mut metadata = model.metadata().cut_at_zeros();
    if metadata
        .get(keys::SPLIT_COUNT)
        .and_then(Value::as_u64)
        .unwrap_or(0)
        == 0
    {
        let what = format!(
            "it is not a shard of a split model ('{}' is missing or 0)",
            keys::SPLIT_COUNT
        );
        return Err(Error::Bad {
            path: model.files.paths()[0].to_owned(),
            what,
        }
        .into());
    }
    match split_keys {
        true => metadata.set(keys::SPLIT_COUNT, Value::U16(0)),
        false => [keys::SPLIT_NO, keys::SPLIT_COUNT, keys::SPLIT_TENSORS]
            .iter()
            .for_each(|key| metadata.remove(key)),
    }
    let file = PlannedFile {
        path: path.to_owned(),
        metadata,
        tensors: 0..model.tensors.len(),
        header: Header::Ggml,
    };
    Ok(Plan {
        model,
        files: vec![file],
        notes: Vec::new(),
    })
}
