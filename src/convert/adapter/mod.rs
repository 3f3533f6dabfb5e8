//! LoRA adapters as PEFT saves them: to the GGUF that convert_lora_to_gguf.py writes.
//!
//! ```text
//! Adapter::open        adapter_config.json and the header of the weights, checked
//! Adapter::on          with the config of the base model
//! Plan::of_adapter     the recipes of the base's architecture, applied to pairs of factors
//! Plan::run            as for a model
//! ```

mod merge;
mod outputs;
mod pair;
mod plan;
mod settings;

use super::checkpoint::{Checkpoint, Source, bad};
use super::{Error, Result, parts};
use crate::arch::wrapper::Part;
use crate::format::json;
use crate::format::map::Map;
use crate::plan::recipe::Problem;
use settings::Settings;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The file of an adapter's settings.
pub(super) const CONFIG: &str = "adapter_config.json";
/// The files of an adapter's weights; the first that exists is read.
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// Prefix that PEFT gives to the names of the base model.
const PREFIX: &str = "base_model.model.";

/// An adapter on disk.
pub struct Adapter {
    dir: PathBuf,
    settings: Settings,
    map: Map,
    /// The tensors of the file.
    tensors: Vec<Source>,
    /// The changes of the base, in the reference's order.
    changes: Vec<Change>,
    /// The number of tensors of parts outside the text model.
    left_out: BTreeMap<&'static str, u64>,
}

/// A changed tensor of the base model.
#[derive(Clone, Debug, PartialEq)]
struct Change {
    /// Its name in the text model.
    name: String,
    weights: Weights,
}

/// The weights of a change: indices of the file's tensors.
#[derive(Clone, Debug, PartialEq)]
enum Weights {
    /// A tensor in place of the base's.
    Whole(usize),
    /// The factors of an update B A.
    Pair {
        /// A, `[rank, columns]`.
        a: usize,
        /// B, `[rows, rank]`.
        b: usize,
        /// True for embeddings, of which B A is the transpose of the update.
        is_of_embedding: bool,
    },
}

/// What a tensor of the file is to its change.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    A,
    B,
    Whole,
    /// A copy of a weight of the base.
    Base,
}

/// Ends of names, and what they mean. The last two are of embeddings.
const FACTORS: [(&str, Kind); 4] = [
    (".lora_A.weight", Kind::A),
    (".lora_B.weight", Kind::B),
    (".lora_embedding_A", Kind::A),
    (".lora_embedding_B", Kind::B),
];
const OF_EMBEDDING: &str = ".lora_embedding_";

/// Pieces of names that belong to other methods, with these methods.
const OTHERS: [(&str, &str); 4] = [
    (
        "lora_magnitude_vector",
        "DoRA scales the columns of the updated matrix",
    ),
    (
        ".lora_B.bias",
        "this update has a bias of its own (lora_bias)",
    ),
    (
        "trainable_tokens",
        "single tokens were trained (trainable_token_indices)",
    ),
    (
        "lora_A.",
        "the factors of LoRA are named .lora_A.weight and .lora_B.weight",
    ),
];

/// Name of the base model's tensor, and the kind of the adapter's.
fn base_name(name: &str) -> std::result::Result<(String, Kind), String> {
    let name = name.replace(PREFIX, "");
    for (end, kind) in FACTORS {
        if let Some(module) = name.strip_suffix(end) {
            return Ok((format!("{module}.weight"), kind));
        }
    }
    if let Some((_, method)) = OTHERS.iter().find(|(piece, _)| name.contains(piece)) {
        return Err(format!(
            "{method}, and llama.cpp's adapters have only pairs of factors; merge the adapter into its base with \
             PEFT's merge_and_unload"
        ));
    }
    let is_base = name.contains(".base_layer.weight");
    Ok((name, if is_base { Kind::Base } else { Kind::Whole }))
}

impl Adapter {
    /// True for the directory of an adapter.
    pub fn is_one(path: &Path) -> bool {
        path.join(CONFIG).is_file()
    }

    /// Opens the directory of an adapter.
    ///
    /// # Errors
    /// Missing or damaged files, and adapters that are not pairs of factors.
    pub fn open(dir: &Path) -> Result<Adapter> {
        let config_path = dir.join(CONFIG);
        let config = json::read_object(&config_path)?;
        let settings = Settings::of(config).map_err(|what| bad(&config_path, what))?;
        let mut names = WEIGHTS.iter().filter(|name| dir.join(name).is_file());
        let name = names.next().ok_or_else(|| {
            let [first, second] = WEIGHTS;
            bad(
                dir,
                format!("there is neither {first} nor {second} in it; download the adapter again"),
            )
        })?;
        let path = dir.join(name);
        let map = Map::open(&path)?;
        let tensors = parts::tensors(name, map.bytes()).map_err(|what| bad(&path, what))?;
        let mut tensors: Vec<_> = tensors
            .into_iter()
            .map(|tensor| Source::plain(tensor, None, 0))
            .collect();
        if name.ends_with(".safetensors") {
            // The reference reads an adapter in the order of the data.
            tensors.sort_by_key(|tensor| tensor.range.start);
        }
        let mut adapter = Adapter {
            dir: dir.to_owned(),
            settings,
            map,
            tensors,
            changes: Vec::new(),
            left_out: BTreeMap::new(),
        };
        let problems = adapter.pair();
        match problems.is_empty() {
            true => Ok(adapter),
            false => Err(Error::Impossible(problems)),
        }
    }

    /// The base model by the settings: an id on the Hub, or a path of the machine that trained.
    pub fn base(&self) -> Option<&str> {
        self.settings.base.as_deref()
    }

    /// Finds the changes; returns what is wrong.
    fn pair(&mut self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut order: Vec<(String, [Option<usize>; 2])> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for (index, tensor) in self.tensors.iter().enumerate() {
            let (name, kind) = match base_name(&tensor.name) {
                Ok(named) => named,
                Err(what) => {
                    problems.push(Problem::of(&tensor.name, what));
                    continue;
                }
            };
            let name = match Part::of(&name) {
                Part::Text(name) => name.into_owned(),
                Part::Other(part) => {
                    *self.left_out.entry(part).or_default() += 1;
                    continue;
                }
            };
            let half = match kind {
                Kind::Base => continue,
                Kind::Whole => {
                    let weights = Weights::Whole(index);
                    self.changes.push(Change { name, weights });
                    continue;
                }
                Kind::A => 0,
                Kind::B => 1,
            };
            let place = *places.entry(name.clone()).or_insert(order.len());
            if place == order.len() {
                order.push((name, [None, None]));
            }
            if order[place].1[half].replace(index).is_some() {
                let what = "another tensor is this factor of the same matrix";
                problems.push(Problem::of(&tensor.name, what));
            }
        }
        for (name, halves) in order {
            match halves {
                [Some(a), Some(b)] => match self.check_pair(a, b) {
                    Some(problem) => problems.push(problem),
                    None => {
                        let is_of_embedding = self.tensors[a].name.contains(OF_EMBEDDING);
                        let weights = Weights::Pair {
                            a,
                            b,
                            is_of_embedding,
                        };
                        self.changes.push(Change { name, weights });
                    }
                },
                [a, _] => {
                    let missing = if a.is_some() { "B" } else { "A" };
                    let what = format!(
                        "factor {missing} of this matrix is missing; download the adapter again"
                    );
                    problems.push(Problem::of(&name, what));
                }
            }
        }
        let has_pairs = self.changes.iter().any(Change::is_pair);
        if problems.is_empty() && !has_pairs {
            let what = "the adapter has no pair of factors for the text model";
            problems.push(Problem::of("", what));
        }
        problems
    }

    /// What is wrong with the shapes of a pair.
    fn check_pair(&self, a: usize, b: usize) -> Option<Problem> {
        let [a, b] = [&self.tensors[a], &self.tensors[b]];
        match (&a.shape[..], &b.shape[..]) {
            ([rank, columns], [rows, of_b]) if rank == of_b && rank * columns * rows > 0 => None,
            _ => Some(Problem::of(
                &a.name,
                format!(
                    "its shape is {:?}, and that of {} {:?}; [rank, columns] and [rows, rank] are expected, none of them \
                     0",
                    a.shape, b.name, b.shape
                ),
            )),
        }
    }

    /// The adapter with the config of its base model, ready for conversion. `base` is a directory
    /// with config.json; weights are not read.
    ///
    /// # Errors
    /// A base without a readable config.
    pub fn on(self, base: &Path) -> Result<Based> {
        let mut checkpoint = Checkpoint::of_config(base)?.with_file(self.map, self.tensors);
        checkpoint.left_out = self.left_out;
        Ok(Based {
            dir: self.dir,
            settings: self.settings,
            checkpoint,
            changes: self.changes,
        })
    }
}

impl Change {
    fn is_pair(&self) -> bool {
        matches!(self.weights, Weights::Pair { .. })
    }

    fn is_of_embedding(&self) -> bool {
        matches!(
            self.weights,
            Weights::Pair {
                is_of_embedding: true,
                ..
            }
        )
    }
}

/// An adapter with the config of its base model.
pub struct Based {
    /// The adapter's directory.
    dir: PathBuf,
    settings: Settings,
    /// Config and directory of the base model; tensors and file of the adapter.
    checkpoint: Checkpoint,
    changes: Vec<Change>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_peft_are_those_of_the_base() {
        for (name, base, kind) in [
            (
                "base_model.model.model.layers.0.q.lora_A.weight",
                "model.layers.0.q.weight",
                Kind::A,
            ),
            (
                "base_model.model.model.layers.0.q.lora_B.weight",
                "model.layers.0.q.weight",
                Kind::B,
            ),
            (
                "base_model.model.model.embed_tokens.lora_embedding_A",
                "model.embed_tokens.weight",
                Kind::A,
            ),
            (
                "base_model.model.model.norm.weight",
                "model.norm.weight",
                Kind::Whole,
            ),
            (
                "base_model.model.model.e.base_layer.weight",
                "model.e.base_layer.weight",
                Kind::Base,
            ),
            ("lm_head.lora_B.weight", "lm_head.weight", Kind::B),
        ] {
            assert_eq!(base_name(name), Ok((base.to_owned(), kind)), "{name}");
        }
        for (name, part) in [
            ("base_model.model.q.lora_magnitude_vector", "DoRA"),
            ("base_model.model.q.lora_B.bias", "lora_bias"),
            (
                "base_model.model.e.token_adapter.trainable_tokens_delta",
                "trainable_token_indices",
            ),
            ("base_model.model.q.lora_A.default.weight", "are named"),
        ] {
            let what = base_name(name).unwrap_err();
            assert!(
                what.contains(part) && what.contains("merge_and_unload"),
                "{what}"
            );
        }
    }
}
