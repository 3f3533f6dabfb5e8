//! `general.*`: where a model comes from, who made it, and how it wants to be sampled.
//!
//! Read from the model card, `config.json` and the directory's name, each filling what the former
//! left open, then `generation_config.json`, and over all of it the file and the name that the user
//! gives.

mod card;
pub(super) mod naming;

use crate::format::gguf::{Entries, Value as Gguf, ValueType};
use crate::format::{Error, Result};
use crate::tokenizer::files::{bad, kind, read_bytes, read_object};
use naming::{Extent, FileName, id_parts, size_label, title};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Numbers of weights, as a model's size label counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParameterCount {
    /// All.
    pub total: u64,
    /// Those outside of experts.
    pub shared: u64,
    /// Those of one expert of every layer.
    pub per_expert: u64,
    /// Experts in a layer; 0 if there are none.
    pub experts: u64,
    /// True for the matrices that an adapter changes. Its file has no size label of its own.
    pub is_adapter: bool,
}

impl ParameterCount {
    fn extent(&self) -> Extent {
        match (self.total, self.is_adapter) {
            (0, _) => Extent::Unknown,
            (weights, false) => Extent::Model(weights),
            (weights, true) => Extent::Adapter(weights),
        }
    }
}

/// The kind of number of a sampling parameter.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Integer,
    Float,
}

/// Key after `general.sampling.`, kind, and the names in `generation_config.json`, the first that
/// is there counting.
const SAMPLING: [(&str, Kind, &[&str]); 12] = [
    ("sequence", Kind::Text, &["sequence"]),
    ("top_k", Kind::Integer, &["top_k"]),
    ("top_p", Kind::Float, &["top_p"]),
    ("min_p", Kind::Float, &["min_p"]),
    ("xtc_probability", Kind::Float, &["xtc_probability"]),
    ("xtc_threshold", Kind::Float, &["xtc_threshold"]),
    ("temp", Kind::Float, &["temperature"]),
    ("penalty_last_n", Kind::Integer, &["penalty_last_n"]),
    (
        "penalty_repeat",
        Kind::Float,
        &["penalty_repeat", "repetition_penalty"],
    ),
    ("mirostat", Kind::Integer, &["mirostat"]),
    ("mirostat_tau", Kind::Float, &["mirostat_tau"]),
    ("mirostat_eta", Kind::Float, &["mirostat_eta"]),
];

/// The texts, by their key after `general.`, in the order of the file.
const TEXTS: [&str; 20] = [
    "name",
    "author",
    "version",
    "organization",
    "finetune",
    "basename",
    "description",
    "quantized_by",
    "size_label",
    "license",
    "license.name",
    "license.link",
    "url",
    "doi",
    "uuid",
    "repo_url",
    "source.url",
    "source.doi",
    "source.uuid",
    "source.repo_url",
];

/// Our key and the card's, in the order in which a card is asked.
const OF_CARD: [(&str, &str); 27] = [
    ("name", "name"),
    ("author", "author"),
    ("version", "version"),
    ("organization", "organization"),
    ("description", "description"),
    ("finetune", "finetune"),
    ("basename", "basename"),
    ("size_label", "size_label"),
    ("source.url", "url"),
    ("source.doi", "doi"),
    ("source.uuid", "uuid"),
    ("source.repo_url", "repo_url"),
    ("name", "model_name"),
    ("author", "model_author"),
    ("version", "model_version"),
    ("organization", "model_organization"),
    ("description", "model_description"),
    ("finetune", "model_finetune"),
    ("basename", "model_basename"),
    ("size_label", "model_size_label"),
    ("source.url", "model_url"),
    ("source.doi", "model_doi"),
    ("source.uuid", "model_uuid"),
    ("source.repo_url", "model_repo_url"),
    ("author", "model_creator"),
    ("basename", "model_type"),
    ("license", "license"),
];
/// The same, where the card's key differs only in its separator.
const LICENSE_OF_CARD: [(&str, &str); 2] = [
    ("license.name", "license_name"),
    ("license.link", "license_link"),
];

/// The fields of a base model or a data set, in the order of the file.
const OF_SOURCE: [&str; 9] = [
    "name",
    "author",
    "version",
    "organization",
    "description",
    "url",
    "doi",
    "uuid",
    "repo_url",
];

/// The general metadata of a model.
#[derive(Clone, Debug)]
pub struct General {
    /// Where errors say that they come from.
    dir: PathBuf,
    /// Values by key after `general.`; sampling parameters as `sampling.top_k` and so on. No value
    /// is null.
    values: BTreeMap<&'static str, Value>,
    sampling: Vec<Option<Value>>,
    base_models: Option<Vec<Value>>,
    datasets: Option<Vec<Value>>,
    tags: Option<Vec<Value>>,
    languages: Option<Vec<Value>>,
}

impl General {
    /// Reads the metadata of a checkpoint. `overrides` is a JSON file with keys of a GGUF; `name`
    /// is put over all.
    ///
    /// # Errors
    /// A file that cannot be read or is not valid JSON or YAML.
    pub fn load(
        dir: &Path,
        overrides: Option<&Path>,
        name: Option<&str>,
        weights: &ParameterCount,
    ) -> Result<General> {
        let mut general = General {
            dir: dir.to_owned(),
            values: BTreeMap::new(),
            sampling: vec![None; SAMPLING.len()],
            base_models: None,
            datasets: None,
            tags: None,
            languages: None,
        };
        general.take_card(&card::read(dir)?, weights.extent());
        let config = read_object(&dir.join("config.json"))?.unwrap_or_default();
        // A path of some computer has more slashes than a model's id.
        let id = config
            .get("_name_or_path")
            .and_then(Value::as_str)
            .filter(|id| id.matches('/').count() <= 1);
        let directory = directory_name(dir);
        for id in id.into_iter().chain([directory.as_str()]) {
            general.take_id(id, weights.extent());
        }
        general.take_generation_config(dir)?;
        if let Some(path) = overrides {
            general.take_overrides(path)?;
        }
        if let Some(name) = name {
            general.values.insert("name", Value::from(name));
        }
        general.fill("name", Value::from(directory));
        if let Extent::Model(total) = weights.extent() {
            let ParameterCount {
                shared,
                per_expert,
                experts,
                ..
            } = *weights;
            general.fill(
                "size_label",
                Value::from(size_label(total, shared, per_expert, experts)),
            );
        }
        Ok(general)
    }

    /// Sets a value unless there is one.
    fn fill(&mut self, key: &'static str, value: Value) {
        if !value.is_null() {
            self.values.entry(key).or_insert(value);
        }
    }

    fn take_card(&mut self, card: &Map<String, Value>, extent: Extent) {
        for (key, of_card) in OF_CARD.into_iter().chain(LICENSE_OF_CARD) {
            self.fill(key, card.get(of_card).cloned().unwrap_or(Value::Null));
        }
        self.base_models = sources(
            card,
            ["base_model", "base_models", "base_model_sources"],
            extent,
        );
        self.datasets = sources(card, ["datasets", "dataset", "dataset_sources"], extent);
        self.tags = collected(card, ["tags", "pipeline_tag"]);
        self.languages = collected(card, ["languages", "language"]);
    }

    fn take_id(&mut self, id: &str, extent: Extent) {
        let parts = id_parts(id, extent);
        let text = |part: Option<String>| part.map_or(Value::Null, Value::from);
        self.fill("name", text(parts.full_name.as_deref().map(title)));
        self.fill(
            "organization",
            text(parts.organization.as_deref().map(title)),
        );
        self.fill("basename", text(parts.basename));
        self.fill("finetune", text(parts.finetune));
        self.fill("version", text(parts.version));
        self.fill("size_label", text(parts.size_label));
    }

    /// Takes sampling parameters. Some models have a file that is not valid; it is passed over.
    fn take_generation_config(&mut self, dir: &Path) -> Result<()> {
        let bytes = read_bytes(&dir.join("generation_config.json"))?.unwrap_or_default();
        let config: Map<String, Value> = serde_json::from_slice(&bytes).unwrap_or_default();
        for ((_, _, names), value) in SAMPLING.iter().zip(&mut self.sampling) {
            *value = names
                .iter()
                .find_map(|name| config.get(*name))
                .filter(|v| !v.is_null())
                .cloned();
        }
        Ok(())
    }

    /// Takes what the user's file says; null removes.
    fn take_overrides(&mut self, path: &Path) -> Result<()> {
        let given = read_object(path)?.ok_or_else(|| {
            bad(
                path,
                "no such file; --metadata takes a JSON file like {\"general.name\": \"...\"}",
            )
        })?;
        for ((key, _, _), value) in SAMPLING.iter().zip(&mut self.sampling) {
            if let Some(new) = given.get(&format!("general.sampling.{key}")) {
                *value = Some(new.clone()).filter(|v| !v.is_null());
            }
        }
        // The license itself is not among those that the reference overrides.
        for key in TEXTS.into_iter().filter(|key| *key != "license") {
            match given.get(&format!("general.{key}")) {
                None => {}
                Some(Value::Null) => {
                    self.values.remove(key);
                }
                Some(value) => {
                    self.values.insert(key, value.clone());
                }
            }
        }
        let lists = [
            ("base_models", &mut self.base_models),
            ("datasets", &mut self.datasets),
            ("tags", &mut self.tags),
            ("languages", &mut self.languages),
        ];
        for (key, list) in lists {
            match given.get(&format!("general.{key}")) {
                None => {}
                Some(Value::Null) => *list = None,
                Some(Value::Array(new)) => *list = Some(new.clone()),
                Some(other) => {
                    return Err(bad(
                        path,
                        format!("general.{key} is {}, not an array", kind(other)),
                    ));
                }
            }
        }
        Ok(())
    }

    fn str(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.as_str()
    }

    /// The parts of the name that the converted file gets by default; `encoding` is the type of
    /// most tensors.
    pub(crate) fn file_name<'a>(&'a self, encoding: &'a str) -> FileName<'a> {
        let [name, basename, finetune] = ["name", "basename", "finetune"].map(|key| self.str(key));
        let [version, size_label] = ["version", "size_label"].map(|key| self.str(key));
        FileName {
            name,
            basename,
            finetune,
            version,
            size_label,
            encoding: Some(encoding),
            kind: None,
        }
    }

    /// The same for a file that holds only a vocabulary.
    pub(crate) fn vocabulary_file_name(&self) -> FileName<'_> {
        FileName {
            size_label: None,
            encoding: None,
            kind: Some("vocab"),
            ..self.file_name("")
        }
    }

    /// The same of an adapter's file.
    pub(crate) fn adapter_file_name<'a>(&'a self, encoding: &'a str) -> FileName<'a> {
        FileName {
            kind: Some("LoRA"),
            ..self.file_name(encoding)
        }
    }

    /// The same, whole, of a file that holds only a draft model or a projector.
    pub(crate) fn prefixed_file_name(&self, prefix: &str, encoding: &str) -> String {
        let name = FileName {
            size_label: None,
            ..self.file_name(encoding)
        };
        format!("{prefix}-{}", name.stem())
    }

    /// The entries, in the order of the file.
    ///
    /// # Errors
    /// A value of a kind that cannot be written, with its key.
    pub fn entries(&self) -> Result<Entries> {
        let mut entries = Entries::new();
        for ((key, kind, _), value) in SAMPLING.iter().zip(&self.sampling) {
            if let Some(value) = value {
                self.write_sampling(
                    &format!("general.sampling.{key}"),
                    *kind,
                    value,
                    &mut entries,
                )?;
            }
        }
        for key in TEXTS {
            let Some(value) = self.values.get(key) else {
                continue;
            };
            let listed = (key == "license")
                .then(|| value.as_array().map(|list| joined(list)))
                .flatten();
            self.write_text(
                &format!("general.{key}"),
                &listed.map_or_else(|| value.clone(), Value::from),
                &mut entries,
            )?;
        }
        for (group, sources) in [
            ("base_model", &self.base_models),
            ("dataset", &self.datasets),
        ] {
            let Some(sources) = sources else { continue };
            entries.set(
                format!("general.{group}.count"),
                Gguf::U32(sources.len() as u32),
            );
            for (i, source) in sources.iter().enumerate() {
                for key in OF_SOURCE {
                    if let Some(value) = source.get(key) {
                        self.write_text(
                            &format!("general.{group}.{i}.{key}"),
                            value,
                            &mut entries,
                        )?;
                    }
                }
            }
        }
        for (key, list) in [("tags", &self.tags), ("languages", &self.languages)] {
            write_list(
                &format!("general.{key}"),
                list.as_deref().unwrap_or_default(),
                &mut entries,
            );
        }
        Ok(entries)
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        let what = format!(
            "{key} is {} where {expected} is expected; set it with --metadata FILE",
            kind(value)
        );
        bad(&self.dir, what)
    }

    fn write_text(&self, key: &str, value: &Value, entries: &mut Entries) -> Result<()> {
        match value {
            Value::String(text) => entries.set_str(key, text),
            // Values that are false in Python are not written.
            Value::Null | Value::Bool(false) => {}
            Value::Number(number) if number.as_f64() == Some(0.0) => {}
            Value::Array(list) if list.is_empty() => {}
            Value::Object(map) if map.is_empty() => {}
            Value::Bool(_) | Value::Number(_) => entries.set_str(key, &value.to_string()),
            other => return Err(self.wrong(key, other, "a text")),
        }
        Ok(())
    }

    fn write_sampling(
        &self,
        key: &str,
        kind: Kind,
        value: &Value,
        entries: &mut Entries,
    ) -> Result<()> {
        let integer = || {
            value.as_i64().or_else(|| {
                value
                    .as_f64()
                    .filter(|f| f.fract() == 0.0)
                    .map(|f| f as i64)
            })
        };
        let value = match kind {
            Kind::Text => return self.write_text(key, value, entries),
            Kind::Integer => integer().and_then(|n| i32::try_from(n).ok()).map(Gguf::I32),
            Kind::Float => value.as_f64().map(|f| Gguf::F32(f as f32)),
        }
        .ok_or_else(|| {
            self.wrong(
                key,
                value,
                if kind == Kind::Integer {
                    "a whole number"
                } else {
                    "a number"
                },
            )
        })?;
        entries.set(key, value);
        Ok(())
    }
}

/// The name of a directory, in the Hub's cache that of the model instead of the commit's; where the
/// path ends in `.`, the name that it stands for is not looked up.
fn directory_name(dir: &Path) -> String {
    if let Some(origin) = crate::hub::origin(dir) {
        let name = origin.repository.rsplit('/').next().unwrap_or_default();
        return name.to_owned();
    }
    match dir.components().next_back() {
        Some(std::path::Component::Normal(name)) => name.to_string_lossy().into_owned(),
        Some(std::path::Component::ParentDir) => "..".to_owned(),
        _ => String::new(),
    }
}

/// Several licenses in one text.
fn joined(list: &[Value]) -> String {
    list.iter()
        .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
        .collect::<Vec<_>>()
        .join(",")
}

/// The values under several keys of a card, each a text or a list; `None` if none of the keys has a
/// value.
fn collected(card: &Map<String, Value>, keys: [&str; 2]) -> Option<Vec<Value>> {
    let mut values = None;
    for value in keys
        .iter()
        .filter_map(|key| card.get(*key))
        .filter(|v| !v.is_null())
    {
        let values = values.get_or_insert_with(Vec::new);
        match value {
            Value::String(_) => values.push(value.clone()),
            Value::Array(list) => values.extend(list.iter().cloned()),
            _ => {}
        }
    }
    values
}

/// Base models or data sets of a card, under the first of the keys that is there: ids, addresses or
/// maps.
fn sources(card: &Map<String, Value>, keys: [&str; 3], extent: Extent) -> Option<Vec<Value>> {
    let given = keys.iter().find_map(|key| card.get(*key))?;
    let single = std::slice::from_ref(given);
    let list = match given {
        Value::String(_) => single,
        Value::Array(list) => list,
        _ => &[],
    };
    let source = |entry: &Value| match entry {
        Value::String(id) => source_of_id(id, extent),
        Value::Object(_) => entry.clone(),
        _ => json!({}),
    };
    Some(list.iter().map(source).collect())
}

/// Metadata of a base model or a data set, from its id or address.
fn source_of_id(id: &str, extent: Extent) -> Value {
    const HUB: &str = "huggingface.co/";
    let mut source = Map::new();
    let is_address = ["http://", "https://", "ssh://"]
        .iter()
        .any(|scheme| id.starts_with(scheme));
    let id_on_hub = ["http://", "https://"]
        .iter()
        .find_map(|s| id.strip_prefix(s)?.strip_prefix(HUB));
    let id_on_hub = id_on_hub
        .filter(|id| id.split('/').count() == 2 && id.split('/').all(|part| !part.is_empty()));
    if is_address {
        source.insert("repo_url".to_owned(), Value::from(id));
    }
    let Some(id) = (if is_address { id_on_hub } else { Some(id) }) else {
        return Value::Object(source);
    };
    let parts = id_parts(id, extent);
    if let (false, Some(organization), Some(name)) =
        (is_address, &parts.organization, &parts.full_name)
    {
        source.insert(
            "repo_url".to_owned(),
            Value::from(format!("https://{HUB}{organization}/{name}")),
        );
    }
    let fields = [
        ("name", parts.full_name.as_deref().map(title)),
        ("organization", parts.organization.as_deref().map(title)),
        ("version", parts.version),
    ];
    for (key, text) in fields {
        source.extend(text.map(|text| (key.to_owned(), Value::from(text))));
    }
    Value::Object(source)
}

/// Writes a list of values of one kind; a list of several kinds as texts.
fn write_list(key: &str, list: &[Value], entries: &mut Entries) {
    fn all<T>(list: &[Value], convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        list.iter().map(convert).collect()
    }
    let whole = |v: &Value| {
        v.as_i64()
            .and_then(|n| i32::try_from(n).ok())
            .map(Gguf::I32)
    };
    let fraction = |v: &Value| {
        v.as_f64()
            .filter(|_| !v.is_i64() && !v.is_u64())
            .map(|f| Gguf::F32(f as f32))
    };
    if let Some(values) = all(list, |v| v.as_bool().map(Gguf::Bool)) {
        entries.set_values(key, ValueType::Bool, values);
    } else if let Some(values) = all(list, whole) {
        entries.set_values(key, ValueType::I32, values);
    } else if let Some(values) = all(list, fraction) {
        entries.set_values(key, ValueType::F32, values);
    } else {
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        entries.set_strings(key, list.iter().filter(|v| !v.is_null()).map(text));
    }
}

#[cfg(test)]
mod tests;
