//! model.safetensors.index.json: the file of every tensor of a checkpoint.

use crate::{Error, Result, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The file of every tensor, as model.safetensors.index.json names it.
pub struct Index {
    file_of: BTreeMap<String, String>,
}

impl Index {
    /// Reads the index; `None` if there is no such file.
    ///
    /// # Errors
    /// If the file is no index, or a name in it would lead out of its directory.
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
            entries.ok_or_else(|| bad("its 'weight_map' is missing or no object".into()))?;
        let mut file_of = BTreeMap::new();
        for (tensor, file) in entries {
            // A name with a directory in it could lead anywhere.
            let file = file
                .as_str()
                .filter(|file| Path::new(file).file_name() == Some(file.as_ref()));
            let file =
                file.ok_or_else(|| bad(format!("the file of tensor '{tensor}' is no file name")))?;
            file_of.insert(tensor.clone(), file.to_owned());
        }
        Ok(Some(Index { file_of }))
    }

    /// Every tensor with its file, sorted by tensor name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.file_of.iter().map(|(name, file)| (&**name, &**file))
    }

    /// Whether the index names the tensor.
    pub fn has(&self, tensor: &str) -> bool {
        self.file_of.contains_key(tensor)
    }

    /// The names of the files, sorted.
    pub fn parts(&self) -> Vec<String> {
        let parts: BTreeSet<_> = self.file_of.values().collect();
        parts.into_iter().cloned().collect()
    }
}
