//! Metadata edits: checks, the new header, and patches in place.

use super::{Error, Header, Plan, PlannedFile, Result, check_byte_order};
use crate::format::gguf::{
    Endian, Layout, MAX_ALIGNMENT, Metadata, Model, Value, ValueType, keys, shard_name, shard_path,
};
use crate::format::output::Patch;
use crate::plan::recipe::Problem;
use std::path::Path;

/// Key of the vocabulary, whose length bounds token ids.
const TOKENS: &str = "tokenizer.ggml.tokens";
/// Maximum distance between differing bytes in one patch.
const GAP: usize = 8;

/// A requested edit.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The key.
    pub key: String,
    /// New value; `None` to remove the key.
    pub value: Option<Value<'static>>,
}

/// The effect of an edit.
#[derive(Clone, Debug, PartialEq)]
pub struct Change<'a> {
    /// The key.
    pub key: String,
    /// The old value.
    pub before: Option<Value<'a>>,
    /// The new value.
    pub after: Option<Value<'static>>,
}

/// Metadata after edits: keys keep their order, new ones are at the end.
pub struct Edited<'a> {
    /// The new metadata.
    pub metadata: Metadata<'a>,
    /// The changes, by edit.
    pub changes: Vec<Change<'a>>,
}

/// Applies edits.
///
/// # Errors
/// [`Error::Impossible`] with all reasons. `force` permits another type for a key, token ids
/// outside the vocabulary, and the removal of `general.architecture`.
pub fn edit<'a>(model: &'a Model, edits: &[Edit], force: bool) -> Result<Edited<'a>> {
    check_byte_order(model)?;
    let old = model.metadata();
    let mut problems: Vec<_> = edits
        .iter()
        .filter_map(|e| problem(old, e, force))
        .collect();
    let twice = edits
        .iter()
        .enumerate()
        .filter(|(i, e)| edits[..*i].iter().any(|other| other.key == e.key));
    problems.extend(twice.map(|(_, e)| Problem::of("", format!("'{}' has two edits", e.key))));
    if !problems.is_empty() {
        return Err(Error::Impossible(problems));
    }
    let wished = |key: &str| edits.iter().find(|e| e.key == key);
    let mut metadata = Metadata::new();
    for (key, value) in old.iter() {
        match wished(key).map(|edit| &edit.value) {
            Some(None) => {}
            Some(Some(new)) => metadata.set(key.to_owned(), new.clone()),
            None => metadata.set(key.to_owned(), value.clone()),
        }
    }
    for edit in edits.iter().filter(|e| old.get(&e.key).is_none()) {
        edit.value
            .iter()
            .for_each(|value| metadata.set(edit.key.clone(), value.clone()));
    }
    let change = |e: &Edit| Change {
        key: e.key.clone(),
        before: old.get(&e.key).cloned(),
        after: e.value.clone(),
    };
    Ok(Edited {
        metadata,
        changes: edits.iter().map(change).collect(),
    })
}

/// The fault of an edit.
fn problem(old: &Metadata<'_>, edit: &Edit, force: bool) -> Option<Problem> {
    let (key, before) = (&*edit.key, old.get(&edit.key));
    let refused = |what: String| Some(Problem::of("", what));
    if key.is_empty() || key.contains('\0') {
        return refused(format!("{key:?} is not a key"));
    }
    if [keys::SPLIT_NO, keys::SPLIT_COUNT, keys::SPLIT_TENSORS].contains(&key) {
        return refused(format!(
            "'{key}' describes the split into files; use split or merge"
        ));
    }
    let Some(value) = &edit.value else {
        return match before {
            None => refused(format!(
                "there is no key '{key}' to remove; quantier inspect lists all keys"
            )),
            Some(_) if key == keys::ARCHITECTURE && !force => refused(format!(
                "without '{key}' no program can read the model; --force removes it anyway"
            )),
            Some(_) => None,
        };
    };
    let fits = |v: &Value<'_>| matches!(v, &Value::U32(a) if a.is_power_of_two() && u64::from(a) <= MAX_ALIGNMENT);
    if key == keys::ALIGNMENT && !fits(value) {
        return refused(format!(
            "'{key}' must be a u32, a power of two, at most {MAX_ALIGNMENT}"
        ));
    }
    if force {
        return None;
    }
    if let Some(before) = before
        && kind(before) != kind(value)
    {
        let (was, is) = (kind(before), kind(value));
        return refused(format!(
            "'{key}' is of type {was}, not {is}; --force changes its type"
        ));
    }
    let tokens = old
        .get(TOKENS)
        .and_then(Value::as_array)
        .map(|tokens| tokens.len() as u64);
    if let (true, Some(tokens)) = (
        key.starts_with("tokenizer.") && key.ends_with("_token_id"),
        tokens,
    ) && value.as_u64().is_none_or(|id| id >= tokens)
    {
        return refused(format!(
            "'{key}' cannot be {value}: the vocabulary has {tokens} tokens, counted from 0"
        ));
    }
    None
}

/// Name of a value's type: `u32`, or `u32[]` for an array.
fn kind(value: &Value<'_>) -> String {
    match value {
        Value::Array(array) => format!("{}[]", array.element().name()),
        other => other.value_type().name().to_owned(),
    }
}

/// True if two values have equal types and lengths: then any mixture of their bytes is readable.
fn alike(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.len() == b.len(),
        (Value::Array(a), Value::Array(b)) => {
            let lengths = a
                .strings()
                .map(<[u8]>::len)
                .eq(b.strings().map(<[u8]>::len));
            a.element() == b.element()
                && a.len() == b.len()
                && lengths
                && a.element() != ValueType::Array
        }
        _ => a.value_type() == b.value_type(),
    }
}

/// Plans a copy of the model with other metadata. A split model stays split: `path` is the first
/// file, and the others are written beside it.
///
/// # Errors
/// For a split model, a name other than that of a first file.
pub fn copy<'a>(model: &'a Model, metadata: Metadata<'a>, path: &Path) -> Result<Plan<'a>> {
    let count = model.headers.len();
    let prefix = match shard_name(path) {
        Some((prefix, 0, n)) if n == count as u64 => Some(prefix),
        _ if count > 1 => {
            let what = format!(
                "the model has {count} shards: name an output that ends in -00001-of-{count:05}.gguf"
            );
            return Err(Error::Impossible(vec![Problem::of("", what)]));
        }
        _ => None,
    };
    let (mut files, mut start) = (Vec::new(), 0);
    for (shard, header) in model.headers.iter().enumerate() {
        let tensors = start..start + header.tensors.len();
        start = tensors.end;
        let bare = tensors.is_empty()
            && model.files.maps()[shard].bytes().len() < header.data_start as usize;
        files.push(PlannedFile {
            path: prefix.as_ref().map_or(path.to_owned(), |p| {
                shard_path(p, shard as u64, count as u64)
            }),
            metadata: if shard == 0 {
                metadata.clone()
            } else {
                header.metadata.clone()
            },
            tensors,
            header: if bare { Header::Bare } else { Header::AsItWas },
        });
    }
    Ok(Plan {
        model,
        files,
        notes: Vec::new(),
    })
}

/// Patches for editing the model's first file in place. The file must be readable after an
/// interruption at any time, so every changed value must keep its type and lengths. Several keys
/// are separate writes: after an interruption between them, the same command makes the remaining
/// ones.
///
/// # Errors
/// A key that is new, removed or of another length, another alignment, a header with a layout other
/// than ggml's.
pub fn patches(model: &Model, edited: &Edited<'_>) -> std::result::Result<Vec<Patch>, String> {
    let encoded = |value: &Value<'_>| {
        let mut bytes = Vec::new();
        value.write(Endian::Little, &mut bytes);
        bytes
    };
    for change in &edited.changes {
        let key = &change.key;
        let (before, after) = match (&change.before, &change.after) {
            (Some(before), Some(after)) => (before, after),
            (None, _) => return Err(format!("'{key}' would be a new key")),
            (_, None) => return Err(format!("'{key}' would be removed")),
        };
        if key == keys::ALIGNMENT {
            return Err(format!("'{key}' determines where tensors begin"));
        }
        if !alike(before, after) {
            let (was, is) = (encoded(before).len(), encoded(after).len());
            return Err(format!(
                "'{key}' would have {is} bytes ({}) in place of {was} ({})",
                kind(after),
                kind(before)
            ));
        }
    }
    let header = &model.headers[0];
    let infos: Vec<_> = header
        .tensors
        .iter()
        .map(|(info, _)| info.clone())
        .collect();
    let layout = |metadata: &Metadata<'_>| match header.tensors.is_empty() {
        true => Layout::of_metadata(metadata),
        false => Layout::new(metadata, &infos, header.alignment),
    };
    let (old, new) = (layout(&header.metadata), layout(&edited.metadata));
    let file = model.files.maps()[0].bytes();
    if file.get(..old.header().len()) != Some(old.header())
        || old.header().len() != new.header().len()
    {
        return Err("its header does not have ggml's present layout".into());
    }
    Ok(differences(old.header(), new.header()))
}

/// Ranges of differing bytes.
fn differences(old: &[u8], new: &[u8]) -> Vec<Patch> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for at in (0..old.len()).filter(|&at| old[at] != new[at]) {
        match runs.last_mut() {
            Some(run) if at - run.end <= GAP => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    let patch = |run: std::ops::Range<usize>| Patch {
        offset: run.start as u64,
        before: old[run.clone()].to_vec(),
        after: new[run].to_vec(),
    };
    runs.into_iter().map(patch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_differences_become_one_patch() {
        let old = vec![0u8; 64];
        let mut new = old.clone();
        for at in [3, 5, 40] {
            new[at] = 1;
        }
        let found: Vec<_> = differences(&old, &new)
            .into_iter()
            .map(|p| (p.offset, p.after))
            .collect();
        assert_eq!(found, [(3, vec![1, 0, 1]), (40, vec![1])]);
    }
}
