//! A Hugging Face checkpoint on disk: config.json and the tensors of all its safetensors files.

use super::{Error, Result};
use crate::arch::Config;
use crate::format::index::Index;
use crate::format::json;
use crate::format::map::Map;
use crate::format::safetensors::{self, Dtype};
use crate::plan::recipe::Problem;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";

/// The mapped files of a checkpoint, and their tensors.
pub struct Checkpoint {
    /// The directory with the files beside the weights.
    pub dir: PathBuf,
    /// config.json.
    pub config: Config,
    /// Every tensor, in the reference's order: by file name, then by tensor name.
    pub tensors: Vec<Source>,
    maps: Vec<Map>,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Its file, as an index.
    pub(super) file: usize,
    /// Its bytes in that file.
    pub(super) range: Range<usize>,
}

impl Source {
    /// Where these elements are in the file, in bytes.
    pub(super) fn bytes(&self, elements: Range<u64>) -> Range<usize> {
        let (start, width) = (self.range.start, self.dtype.bytes());
        start + elements.start as usize * width..start + elements.end as usize * width
    }
}

impl Checkpoint {
    /// Opens a directory, or one safetensors file with a config.json beside it, and checks that
    /// nothing is missing.
    ///
    /// # Errors
    /// Everything that is wrong with the files at once, as far as it can be seen.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let one_file = path.is_file().then(|| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        });
        let dir = match one_file {
            Some(_) => path
                .parent()
                .filter(|dir| !dir.as_os_str().is_empty())
                .unwrap_or(Path::new("."))
                .to_owned(),
            None => path.to_owned(),
        };
        let config = json::read_object(&dir.join(CONFIG)).map_err(|e| explain_config(e, path))?;
        let config = Config::new(config).map_err(|what| bad(&dir.join(CONFIG), what))?;
        let index = match one_file {
            Some(_) => None,
            None => Index::read(&dir.join(INDEX))?,
        };
        let parts = match (&one_file, &index) {
            (Some(part), _) => vec![part.clone()],
            (None, Some(index)) => index.parts(),
            (None, None) => list(&dir, "model", ".safetensors")?,
        };
        let mut checkpoint = Checkpoint {
            dir,
            config,
            tensors: Vec::new(),
            maps: Vec::new(),
        };
        let mut problems = checkpoint.read(&parts)?;
        if problems.is_empty() {
            problems.extend(
                index
                    .iter()
                    .flat_map(|index| compare(index, &checkpoint.tensors)),
            );
        }
        match problems.is_empty() {
            true => Ok(checkpoint),
            false => Err(Error::Impossible(problems)),
        }
    }

    /// The mapped files.
    pub(super) fn maps(&self) -> &[Map] {
        &self.maps
    }

    /// The files of the weights.
    pub(crate) fn paths(&self) -> Vec<&Path> {
        self.maps.iter().map(Map::path).collect()
    }

    /// A tensor's bytes.
    pub(super) fn data(&self, source: &Source) -> &[u8] {
        &self.maps[source.file].bytes()[source.range.clone()]
    }

    /// Where config.json is.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.join(CONFIG)
    }

    /// Fails with what to do if the checkpoint has no weights.
    pub(super) fn check_has_weights(&self) -> Result<()> {
        if !self.tensors.is_empty() {
            return Ok(());
        }
        let what = match list(&self.dir, "pytorch_model", ".bin")?.is_empty() {
            true => "there are no model*.safetensors in it; name the directory of a Hugging Face model".to_owned(),
            false => "its weights are pytorch_model*.bin, which can run code when they are read. Make safetensors of \
                      them first: python -c \"from transformers import AutoModelForCausalLM as M; \
                      M.from_pretrained('DIR', torch_dtype='auto').save_pretrained('OUT', safe_serialization=True)\", \
                      then copy the tokenizer's files to OUT"
                .to_owned(),
        };
        Err(bad(&self.dir, what))
    }

    /// Maps and parses the files; returns what is wrong with any of them.
    fn read(&mut self, parts: &[String]) -> Result<Vec<Problem>> {
        let mut problems = Vec::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        for part in parts {
            let path = self.dir.join(part);
            if !path.is_file() {
                problems.push(Problem::of(
                    part,
                    "these files are missing; download them again",
                ));
                continue;
            }
            let map = Map::open(&path)?;
            let header = match safetensors::parse(map.bytes()) {
                Ok(header) => header,
                Err(what) => {
                    problems.push(Problem::of(part, what));
                    continue;
                }
            };
            let file = self.maps.len();
            for tensor in header.tensors {
                if let Some(first) = seen.insert(tensor.name.clone(), file) {
                    let first = self.maps[first].path().display();
                    problems.push(Problem::of(
                        &tensor.name,
                        format!("these tensors are in {first} and in {part}"),
                    ));
                }
                let (name, dtype, shape, range) =
                    (tensor.name, tensor.dtype, tensor.shape, tensor.range);
                self.tensors.push(Source {
                    name,
                    dtype,
                    shape,
                    file,
                    range,
                });
            }
            self.maps.push(map);
        }
        Ok(problems)
    }
}

/// Tensors that the index names and the files lack, and the other way round.
fn compare(index: &Index, tensors: &[Source]) -> Vec<Problem> {
    let stored: BTreeSet<&str> = tensors.iter().map(|t| &*t.name).collect();
    let absent = index.files().filter(|(name, _)| !stored.contains(name));
    let absent = absent.map(|(name, file)| {
        Problem::of(
            name,
            format!("{INDEX} says that {file} holds these tensors, and it does not"),
        )
    });
    let unlisted = stored.iter().filter(|name| !index.has(name));
    let unlisted =
        unlisted.map(|name| Problem::of(name, format!("these tensors are not in {INDEX}")));
    absent.chain(unlisted).collect()
}

/// Names in a directory with this beginning and this end, sorted.
fn list(dir: &Path, prefix: &str, suffix: &str) -> Result<Vec<String>> {
    let io = |source| crate::format::Error::Io {
        path: dir.to_owned(),
        action: "list",
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        names.extend(
            name.to_str()
                .filter(|name| name.starts_with(prefix) && name.ends_with(suffix))
                .map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}

fn bad(path: &Path, what: impl Into<String>) -> Error {
    crate::format::Error::Bad {
        path: path.to_owned(),
        what: what.into(),
    }
    .into()
}

/// A missing config.json mostly means that the wrong thing was named.
fn explain_config(error: crate::format::Error, path: &Path) -> Error {
    match error {
        crate::format::Error::Io { source, .. }
            if source.kind() == std::io::ErrorKind::NotFound && path.exists() =>
        {
            bad(
                path,
                format!(
                    "there is no {CONFIG} beside the weights; name the directory of a Hugging Face model"
                ),
            )
        }
        other => other.into(),
    }
}
