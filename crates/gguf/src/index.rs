//! The weight files of a checkpoint and their index, which maps tensors to files.

use crate::{Error, Result, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A checkpoint format, by its file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Prefix of weight files.
    pub prefix: &'static str,
    /// Suffix of weight files.
    pub suffix: &'static str,
    /// Name of the index.
    pub index: &'static str,
}

impl Format {
    /// Safetensors.
    pub const SAFETENSORS: Format = Format {
        prefix: "model",
        suffix: ".safetensors",
        index: "model.safetensors.index.json",
    };
    /// Files of `torch.save`.
    pub const TORCH: Format = Format {
        prefix: "pytorch_model",
        suffix: ".bin",
        index: "pytorch_model.bin.index.json",
    };

    /// Safetensors in Mistral's own format, without an index.
    pub const MISTRAL: Format = Format {
        prefix: "consolidated",
        suffix: ".safetensors",
        index: "consolidated.safetensors.index.json",
    };

    /// The format of a directory with these files. As in the reference, PyTorch's only without
    /// safetensors.
    pub fn of(names: &[String]) -> Format {
        let has = |format: &Format| {
            let is_of = |name: &String| format.is_part(name) || *name == format.index;
            names.iter().any(is_of)
        };
        let preferred = [Format::SAFETENSORS, Format::TORCH];
        let found = preferred.into_iter().find(has);
        found.unwrap_or(Format::SAFETENSORS)
    }

    /// True for names of weight files.
    pub fn is_part(&self, name: &str) -> bool {
        name.starts_with(self.prefix) && name.ends_with(self.suffix)
    }
}

/// The map from tensors to files, as stored in an index.
pub struct Index {
    file_of: BTreeMap<String, String>,
}

impl Index {
    /// Reads the index; `None` if there is none.
    ///
    /// # Errors
    /// If the file is not an index, or a name in it would leave its directory.
    pub fn read(path: &Path) -> Result<Option<Index>> {
        if !path.is_file() {
            return Ok(None);
        }
        let bad = |what: String| Error::Bad {
            path: path.to_owned(),
            what,
        };
        let index = json::read_object(path)?;
        let entries = index.get("weight_map").and_then(|map| map.as_object());
        let entries =
            entries.ok_or_else(|| bad("its 'weight_map' is missing or not an object".into()))?;
        let mut file_of = BTreeMap::new();
        for (tensor, file) in entries {
            // A name with a directory in it could point anywhere.
            let file = file
                .as_str()
                .filter(|file| Path::new(file).file_name() == Some(file.as_ref()));
            let file = file
                .ok_or_else(|| bad(format!("the file of tensor '{tensor}' is not a file name")))?;
            file_of.insert(tensor.clone(), file.to_owned());
        }
        Ok(Some(Index { file_of }))
    }

    /// Tensors with their files, sorted by tensor name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.file_of.iter().map(|(name, file)| (&**name, &**file))
    }

    /// True if the index has the tensor.
    pub fn has(&self, tensor: &str) -> bool {
        self.file_of.contains_key(tensor)
    }

    /// The file of a tensor.
    pub fn file_of(&self, tensor: &str) -> Option<&str> {
        self.file_of.get(tensor).map(String::as_str)
    }

    /// Names of the files, sorted.
    pub fn parts(&self) -> Vec<String> {
        let parts: BTreeSet<_> = self.file_of.values().collect();
        parts.into_iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safetensors_take_precedence_over_pytorch_files() {
        let of = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            Format::of(&names)
        };
        assert_eq!(
            of(&["pytorch_model.bin", "model.safetensors"]),
            Format::SAFETENSORS
        );
        assert_eq!(
            of(&["pytorch_model.bin", Format::SAFETENSORS.index]),
            Format::SAFETENSORS
        );
        assert_eq!(
            of(&["pytorch_model-00001-of-00002.bin", "x.safetensors"]),
            Format::TORCH
        );
        assert_eq!(of(&[Format::TORCH.index]), Format::TORCH);
        assert_eq!(of(&["training_args.bin"]), Format::SAFETENSORS);
    }
}
