//! The files of a checkpoint's weights, and the tensors in them.

use super::Result;
use crate::format::foreign;
use crate::format::index::{Format, Index};
use crate::format::torch::{self, TensorInfo};
use crate::format::{Error, safetensors};
use std::path::Path;

/// The weight files.
pub(super) struct Parts {
    /// Sorted names.
    pub(super) names: Vec<String>,
    /// The file of every tensor, if there is an index.
    pub(super) index: Option<Index>,
    /// The name of the index.
    pub(super) index_name: &'static str,
}

impl Parts {
    /// The files of Mistral's own format in a directory. The reference reads no index of them.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub(super) fn of_mistral(dir: &Path) -> Result<Parts> {
        let mut names = names(dir)?;
        names.retain(|name| Format::MISTRAL.is_part(name));
        Ok(Parts {
            names,
            index: None,
            index_name: Format::MISTRAL.index,
        })
    }

    /// The files in a directory: safetensors, otherwise PyTorch's, as in the reference; those in an
    /// index, otherwise those with the format's prefix and suffix.
    ///
    /// # Errors
    /// A directory or an index that cannot be read.
    pub(super) fn of(dir: &Path) -> Result<Parts> {
        let all = names(dir)?;
        let format = Format::of(&all);
        let index = Index::read(&dir.join(format.index))?;
        let is_part = |name: &&String| format.is_part(name);
        let names = match &index {
            Some(index) => index.parts(),
            None => all.iter().filter(is_part).cloned().collect(),
        };
        Ok(Parts {
            names,
            index,
            index_name: format.index,
        })
    }

    /// A single file.
    pub(super) fn one(name: String) -> Parts {
        Parts {
            names: vec![name],
            index: None,
            index_name: Format::SAFETENSORS.index,
        }
    }
}

/// The tensors of a file, in the reference's order: safetensors by name, PyTorch's in saved order.
///
/// # Errors
/// The defect and its place; the caller adds the file's name.
pub(super) fn tensors(name: &str, file: &[u8]) -> std::result::Result<Vec<TensorInfo>, String> {
    if !name.ends_with(Format::SAFETENSORS.suffix) {
        return torch::parse(file);
    }
    let tensors = safetensors::parse(file)?.tensors.into_iter();
    Ok(tensors
        .map(|tensor| TensorInfo {
            name: tensor.name,
            dtype: tensor.dtype,
            shape: tensor.shape,
            strides: None,
            range: tensor.range,
        })
        .collect())
}

/// The kind of a directory's weights, if not a checkpoint's, with advice.
pub(super) fn explain(dir: &Path) -> Option<String> {
    foreign::explain(&names(dir).ok()?)
}

/// The names in a directory, sorted; those of directories end with a slash.
fn names(dir: &Path) -> Result<Vec<String>> {
    let io = |source| Error::Io {
        path: dir.to_owned(),
        action: "list",
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let end = if entry.path().is_dir() { "/" } else { "" };
        let name = entry.file_name().into_string().ok();
        names.extend(name.map(|name| name + end));
    }
    names.sort();
    Ok(names)
}
