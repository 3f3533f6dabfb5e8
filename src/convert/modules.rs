//! The modules of a sentence-transformers model behind the model itself: pooling, and dense modules.
//!
//! ```text
//! modules.json                                  a list of types and directories
//! 1_Pooling/config.json                         the kind of pooling
//! 2_Dense/config.json, model.safetensors        sizes and weights of a linear layer
//! ```

use super::checkpoint::bad;
use super::{Result, parts};
use crate::arch::Pooling;
use crate::format::json;
use crate::format::map::Map as FileMap;
use crate::format::torch::TensorInfo;
use serde_json::Value;
use std::path::{Component, Path, PathBuf};

const MODULES: &str = "modules.json";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
/// The directory of the first dense module; any other is the second.
const FIRST: &str = "2_Dense";

/// The mapped weights of a module.
pub(super) struct Module {
    pub(super) map: FileMap,
    pub(super) tensors: Vec<TensorInfo>,
}

impl Module {
    /// Maps a file.
    pub(super) fn read(path: PathBuf) -> Result<Module> {
        let map = FileMap::open(&path)?;
        let tensors = parts::tensors(WEIGHTS, map.bytes()).map_err(|what| bad(&path, what))?;
        Ok(Module { map, tensors })
    }
}

/// A dense module.
pub(super) struct Dense {
    /// Its name in a GGUF.
    pub(super) name: &'static str,
    pub(super) weights: PathBuf,
    /// Numbers of inputs and outputs, if its config has them.
    pub(super) sizes: Option<[u32; 2]>,
}

/// The dense modules of a model that have weights.
pub(super) fn dense(dir: &Path) -> Result<Vec<Dense>> {
    let mut modules = Vec::new();
    for place in places(dir, "Dense")? {
        let weights = dir.join(&place).join(WEIGHTS);
        if !weights.is_file() {
            continue;
        }
        let config = dir.join(&place).join(CONFIG);
        let sizes = match config.is_file() {
            true => {
                let fields = json::read_object(&config)?;
                let size = |field: &str| match fields.get(field) {
                    None | Some(Value::Null) => Ok(None),
                    Some(value) => {
                        let size = value.as_u64().and_then(|size| u32::try_from(size).ok());
                        let what =
                            || format!("field '{field}' is {value}; a whole number is expected");
                        size.map(Some).ok_or_else(|| bad(&config, what()))
                    }
                };
                let sizes = size("in_features")?.zip(size("out_features")?);
                sizes.map(|(inputs, outputs)| [inputs, outputs])
            }
            false => None,
        };
        modules.push(Dense {
            name: match place == FIRST {
                true => "dense_2",
                false => "dense_3",
            },
            weights,
            sizes,
        });
    }
    Ok(modules)
}

/// The pooling of a model.
pub(super) fn pooling(dir: &Path) -> Result<Option<Pooling>> {
    let places = places(dir, "Pooling")?;
    let Some(place) = places.first() else {
        return Ok(None);
    };
    let path = dir.join(place).join(CONFIG);
    let fields = json::read_object(&path)?;
    let is_set = |field: &str| fields.get(field).and_then(Value::as_bool) == Some(true);
    let mode = fields.get("pooling_mode").and_then(Value::as_str);
    let kinds = [
        (Pooling::Mean, "pooling_mode_mean_tokens", "mean"),
        (Pooling::Cls, "pooling_mode_cls_token", "cls"),
        (Pooling::Last, "pooling_mode_lasttoken", "lasttoken"),
    ];
    let by_flag = kinds.iter().find(|(_, flag, _)| is_set(flag));
    let by_name = || kinds.iter().find(|(.., name)| mode == Some(name));
    match by_flag.or_else(by_name) {
        Some((kind, ..)) => Ok(Some(*kind)),
        None => Err(bad(
            &path,
            "it pools neither by mean, nor the first, nor the last token; a GGUF knows only these",
        )),
    }
}

/// The directories of modules whose type ends in this name.
fn places(dir: &Path, kind: &str) -> Result<Vec<String>> {
    let path = dir.join(MODULES);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let modules = json::read(&path)?;
    let all = modules.as_array().map_or(&[][..], Vec::as_slice);
    let text = |module: &Value, field: &str| Some(module.get(field)?.as_str()?.to_owned());
    let is_one = |module: &&Value| text(module, "type").is_some_and(|t| t.ends_with(kind));
    let place = |module: &Value| {
        let place = text(module, "path").filter(|place| is_inside(Path::new(place)));
        place.ok_or_else(|| {
            let what = format!("the path of a module of type {kind} is no directory in it");
            bad(&path, what)
        })
    };
    all.iter().filter(is_one).map(place).collect()
}

/// True if a path stays below its parent directory.
fn is_inside(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}
