//! Special tokens, merges and chat templates: the metadata beside the tokens.

use super::files::{Files, bad, read_json, read_text};
use quantier_gguf::Result;
use quantier_gguf::gguf::{Entries, Value as Gguf};
use serde_json::{Map, Value};
use std::path::Path;

/// Kinds of special tokens with the keys of their ids.
const ID_KEYS: [(&str, &str); 8] = [
    ("bos", "tokenizer.ggml.bos_token_id"),
    ("eos", "tokenizer.ggml.eos_token_id"),
    ("unk", "tokenizer.ggml.unknown_token_id"),
    // The key is misspelt in the format.
    ("sep", "tokenizer.ggml.seperator_token_id"),
    ("pad", "tokenizer.ggml.padding_token_id"),
    ("mask", "tokenizer.ggml.mask_token_id"),
    ("eot", "tokenizer.ggml.eot_token_id"),
    ("eom", "tokenizer.ggml.eom_token_id"),
];
/// Kinds of special tokens that a tokenizer may add to texts, with their keys.
const ADD_KEYS: [(&str, &str); 3] = [
    ("bos", "tokenizer.ggml.add_bos_token"),
    ("eos", "tokenizer.ggml.add_eos_token"),
    ("sep", "tokenizer.ggml.add_sep_token"),
];

/// Merges, special tokens and chat template of a vocabulary.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Special {
    pub merges: Vec<String>,
    /// Kinds with ids; the first of a kind is used.
    ids: Vec<(String, u32)>,
    /// Kinds, with true if the token is added to every text.
    adds: Vec<(String, bool)>,
    /// Chat template: a string, or a list of named ones.
    template: Option<Value>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
}

/// Truth value as in Python.
pub(super) fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// The id of the special token in a slot of a template.
fn special_in(slot: &Value) -> Option<&str> {
    slot.get("SpecialToken")?
        .get("id")?
        .as_str()
        .filter(|s| !s.is_empty())
}

/// The letter of the sequence in a slot of a template.
fn sequence_in(slot: &Value) -> Option<&str> {
    slot.get("Sequence")?.get("id")?.as_str()
}

impl Special {
    /// The common kinds.
    pub(crate) const TYPES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

    /// Reads special tokens from the files. Ids not below `limit` are ignored.
    pub(crate) fn load(
        files: &Files,
        merges: bool,
        types: &[&str],
        limit: Option<u64>,
    ) -> Result<Special> {
        let mut special = Special::default();
        let mut reading = Reading {
            special: &mut special,
            config: files.tokenizer_config.clone().filter(|c| !c.is_empty()),
            types: types.iter().map(|&t| t.to_owned()).collect(),
            limit,
        };
        if let Some(tokenizer) = files.tokenizer.as_ref().filter(|t| !t.is_empty()) {
            if merges
                && let Some(list) = tokenizer
                    .get("model")
                    .and_then(|m| m.get("merges")?.as_array())
            {
                reading.special.merges =
                    joined_merges(list).map_err(|what| files.bad_tokenizer(what))?;
            }
            if let Some(normalizer) = tokenizer.get("normalizer") {
                reading.special.read_normalizer(normalizer);
            }
            reading.post_processors(tokenizer.get("post_processor").unwrap_or(&Value::Null));
        }
        if reading.config.is_some() {
            reading.template(files)?;
            reading.ids_from_tokenizer_config(files)?;
        }
        reading.ids_from_config(files)?;
        if merges && special.merges.is_empty() {
            special.merges = merges_txt(&files.dir.join("merges.txt"))?;
        }
        Ok(special)
    }

    /// Sets the id of a kind, unless it has one.
    pub(crate) fn set_id(&mut self, token: &str, id: u32) {
        if !self.ids.iter().any(|(t, _)| t == token) {
            self.ids.push((token.to_owned(), id));
        }
    }

    /// The id of a kind.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.ids.iter().find(|(t, _)| t == token).map(|(_, id)| *id)
    }

    /// True if any kind has an id.
    pub(crate) fn has_ids(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Replaces the id of a kind, if it has one.
    pub(crate) fn replace_id(&mut self, token: &str, id: u32) {
        if let Some((_, old)) = self.ids.iter_mut().find(|(t, _)| t == token) {
            *old = id;
        }
    }

    /// Sets the chat template, if there is none. Returns whether there was none.
    pub(crate) fn set_template(&mut self, template: &str) -> bool {
        let is_missing = self.template.is_none();
        if is_missing {
            self.template = Some(Value::String(template.to_owned()));
        }
        is_missing
    }

    fn set_add(&mut self, token: &str, add: bool) {
        match self.adds.iter_mut().find(|(t, _)| t == token) {
            Some((_, old)) => *old = add,
            None => self.adds.push((token.to_owned(), add)),
        }
    }

    fn set_add_if_unset(&mut self, token: &str, add: bool) {
        if !self.adds.iter().any(|(t, _)| t == token) {
            self.adds.push((token.to_owned(), add));
        }
    }

    fn read_normalizer(&mut self, normalizer: &Value) {
        let flag = |name| normalizer.get(name).and_then(Value::as_bool);
        match normalizer.get("type").and_then(Value::as_str) {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                self.lowercase = flag("lowercase").or(self.lowercase);
                self.strip_accents = flag("strip_accents").or(self.strip_accents);
            }
            Some("Sequence") => {
                let parts = normalizer.get("normalizers").and_then(Value::as_array);
                parts
                    .into_iter()
                    .flatten()
                    .for_each(|part| self.read_normalizer(part));
            }
            _ => {}
        }
    }

    /// Writes merges, ids, additions and templates.
    pub(crate) fn write(&self, entries: &mut Entries) {
        let key_of = |keys: &[(&str, &'static str)], token: &str| {
            keys.iter().find(|(t, _)| *t == token).map(|k| k.1)
        };
        entries.set_strings("tokenizer.ggml.merges", &self.merges);
        for (token, id) in &self.ids {
            if let Some(key) = key_of(&ID_KEYS, token) {
                entries.set(key, Gguf::U32(*id));
            }
        }
        for (token, add) in &self.adds {
            if let Some(key) = key_of(&ADD_KEYS, token) {
                entries.set(key, Gguf::Bool(*add));
            }
        }
        if let Some(template) = &self.template {
            write_template(template, entries);
        }
        for (key, value) in [
            ("lowercase", self.lowercase),
            ("strip_accents", self.strip_accents),
        ] {
            if let Some(value) = value {
                entries.set(
                    format!("tokenizer.ggml.normalizer.{key}"),
                    Gguf::Bool(value),
                );
            }
        }
    }
}

/// Converts merges, spelled `"a b"` or `["a", "b"]`, to GGUF's spelling: `"a b"`, with `Ġ` for a
/// space within a part.
fn joined_merges(list: &[Value]) -> std::result::Result<Vec<String>, String> {
    let wrong =
        |at: usize| format!("merge {at} is neither \"a b\" nor [\"a\", \"b\"] like the first one");
    /// A space in byte-level vocabularies.
    const SPACE: &str = "\u{120}";
    match list.first() {
        None => Ok(Vec::new()),
        Some(Value::String(_)) => {
            let merge = |(at, merge): (usize, &Value)| {
                merge.as_str().map(str::to_owned).ok_or_else(|| wrong(at))
            };
            list.iter().enumerate().map(merge).collect()
        }
        Some(_) => {
            let merge = |(at, merge): (usize, &Value)| match merge.as_array().map(Vec::as_slice) {
                Some([Value::String(a), Value::String(b)]) => Ok(format!(
                    "{} {}",
                    a.replace(' ', SPACE),
                    b.replace(' ', SPACE)
                )),
                _ => Err(wrong(at)),
            };
            list.iter().enumerate().map(merge).collect()
        }
    }
}

/// Merges from `merges.txt` of slow tokenizers: one per line, other lines are skipped.
fn merges_txt(path: &Path) -> Result<Vec<String>> {
    let Some(text) = read_text(path)? else {
        return Ok(Vec::new());
    };
    let headed = text
        .lines()
        .next()
        .is_some_and(|line| line.trim().starts_with('#'));
    let merge = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [a, b] => Some(format!("{a} {b}")),
        _ => None,
    };
    Ok(text
        .split('\n')
        .skip(usize::from(headed))
        .filter_map(merge)
        .collect())
}

/// Reading state: the post-processor overrides the configuration.
struct Reading<'a> {
    special: &'a mut Special,
    /// `tokenizer_config.json`; `None` if it is missing or empty.
    config: Option<Map<String, Value>>,
    types: Vec<String>,
    limit: Option<u64>,
}

impl Reading<'_> {
    fn token(&self, key: &str) -> Value {
        self.config
            .as_ref()
            .and_then(|c| c.get(key))
            .cloned()
            .unwrap_or(Value::Null)
    }

    fn set_token(&mut self, key: &str, value: &Value) {
        if let Some(config) = &mut self.config {
            config.insert(key.to_owned(), value.clone());
        }
    }

    /// Reads the tokens that the post-processor adds.
    fn post_processors(&mut self, post_processor: &Value) {
        let mut roles = Roles {
            bos: self.token("bos_token"),
            cls: self.token("cls_token"),
            eos: self.token("eos_token"),
            sep: self.token("sep_token"),
        };
        if self.config.is_some() {
            if !truthy(&roles.bos) && truthy(&roles.cls) {
                roles.bos = roles.cls.clone();
                self.set_token("bos_token", &roles.bos);
            }
            if !truthy(&roles.eos) && truthy(&roles.sep) {
                roles.eos = roles.sep.clone();
                self.set_token("eos_token", &roles.eos);
            }
        }
        let single = std::slice::from_ref(post_processor);
        let processors = post_processor
            .get("processors")
            .and_then(Value::as_array)
            .map_or(single, Vec::as_slice);
        for processor in processors {
            match processor.get("type").and_then(Value::as_str) {
                Some("ByteLevel") => {
                    self.special.set_add_if_unset("bos", false);
                    self.special.set_add_if_unset("eos", false);
                }
                Some("RobertaProcessing") => self.roberta(processor, &mut roles),
                Some("TemplateProcessing") => self.template_processing(processor, &mut roles),
                _ => {}
            }
        }
    }

    fn roberta(&mut self, processor: &Value, roles: &mut Roles) {
        ["bos", "eos", "sep"]
            .iter()
            .for_each(|token| self.special.set_add(token, true));
        if self.config.is_none() {
            return;
        }
        let given = |name| processor.get(name).and_then(|pair| pair.get(0)).cloned();
        if !truthy(&roles.cls) {
            roles.cls = given("cls").unwrap_or_else(|| roles.bos.clone());
            self.set_token("cls_token", &roles.cls);
        }
        if !truthy(&roles.sep) {
            roles.sep = given("sep").unwrap_or_else(|| roles.eos.clone());
            self.set_token("sep_token", &roles.sep);
        }
    }

    /// The reference's heuristic for added tokens: the first and last slot of a template.
    fn template_processing(&mut self, processor: &Value, roles: &mut Roles) {
        let slots = |name| {
            processor
                .get(name)
                .and_then(Value::as_array)
                .map_or(&[][..], Vec::as_slice)
        };
        let (single, pair) = (slots("single"), slots("pair"));
        let (mut first, mut last) = (None, None);
        if single.len() > 1 {
            first = special_in(&single[0]);
            last = special_in(&single[single.len() - 1]);
        }
        if let Some(first) = first {
            self.leading_token(&Value::from(first), roles);
        }
        if let Some(last) = last {
            self.trailing_token(&Value::from(last), roles);
        }
        self.separator(pair, first, last, roles);
    }

    fn leading_token(&mut self, first: &Value, roles: &mut Roles) {
        if self.config.is_none() {
            roles.bos = first.clone();
        } else if *first != roles.bos && *first != roles.cls {
            if !truthy(&roles.bos) {
                roles.bos = first.clone();
                self.set_token("bos_token", first);
            }
            if !truthy(&roles.cls) {
                roles.cls = first.clone();
                self.set_token("cls_token", first);
            }
        }
        self.special
            .set_add("bos", *first == roles.bos || *first == roles.cls);
    }

    fn trailing_token(&mut self, last: &Value, roles: &mut Roles) {
        if self.config.is_some() && *last != roles.eos {
            // The configured EOS token becomes the end of a turn, otherwise of a message.
            let free = ["eot", "eom"]
                .into_iter()
                .find(|kind| !self.types.iter().any(|t| t == kind));
            if let Some(kind) = free {
                self.types.push(kind.to_owned());
                self.set_token(&format!("{kind}_token"), &roles.eos.clone());
            }
            self.set_token("eos_token", last);
        }
        roles.eos = last.clone();
        self.special.set_add("eos", true);
    }

    /// Detects a separator between two texts: `A [sep] [eos] B`.
    fn separator(
        &mut self,
        pair: &[Value],
        first: Option<&str>,
        last: Option<&str>,
        roles: &Roles,
    ) {
        let mut middle = pair;
        if let [start, rest @ ..] = middle
            && first.is_some()
            && special_in(start) == first
        {
            middle = rest;
        }
        if let [rest @ .., end] = middle
            && last.is_some()
            && special_in(end) == last
        {
            middle = rest;
        }
        let [a, middle @ .., b] = middle else { return };
        if sequence_in(a) != Some("A") || sequence_in(b) != Some("B") || middle.is_empty() {
            return;
        }
        let separates = |slot: &Value| {
            special_in(slot)
                .map(Value::from)
                .is_some_and(|token| token == roles.sep || token == roles.eos)
        };
        let add = (separates(&middle[0]) && last.is_none())
            || (middle.len() == 2 && separates(&middle[1]));
        self.special.set_add("sep", add);
        if add && !truthy(&roles.sep) {
            self.set_token("sep_token", &roles.eos.clone());
        }
    }

    /// Reads the chat template from `tokenizer_config.json` or its own file.
    fn template(&mut self, files: &Files) -> Result<()> {
        let own = self.config.as_ref().and_then(|c| c.get("chat_template"));
        let template = match own {
            Some(own) => own.clone(),
            None => template_file(&files.dir)?.unwrap_or(Value::Null),
        };
        // Values other than a string or a list are ignored.
        self.special.template = Some(template).filter(|t| t.is_string() || t.is_array());
        Ok(())
    }

    fn ids_from_tokenizer_config(&mut self, files: &Files) -> Result<()> {
        for kind in self.types.clone() {
            if let Value::Bool(add) = self.token(&format!("add_{kind}_token")) {
                // The post-processor takes precedence.
                self.special.set_add_if_unset(&kind, add);
            }
            let entry = self.token(&format!("{kind}_token"));
            let Some(text) = entry.as_str().or_else(|| entry.get("content")?.as_str()) else {
                continue;
            };
            let named = files
                .added_tokens()
                .iter()
                .find(|t| t.get("content").and_then(Value::as_str) == Some(text));
            if let Some(id) = named.and_then(|t| t.get("id")) {
                self.set_id(&kind, id)
                    .map_err(|what| files.bad_tokenizer(what))?;
            }
        }
        Ok(())
    }

    fn ids_from_config(&mut self, files: &Files) -> Result<()> {
        let Some(config) = &files.config else {
            return Ok(());
        };
        for kind in self.types.clone() {
            let key = format!("{kind}_token_id");
            let own = config.get(&key).filter(|id| !id.is_null());
            if let Some(id) = own.or_else(|| config.get("text_config")?.get(&key)) {
                self.set_id(&kind, id)
                    .map_err(|what| bad(&files.dir.join("config.json"), what))?;
            }
        }
        Ok(())
    }

    /// Sets an id; values other than whole numbers below the limit are ignored.
    fn set_id(&mut self, kind: &str, id: &Value) -> std::result::Result<(), String> {
        match (id.as_u64(), id.as_i64()) {
            (Some(id), _) if self.limit.is_some_and(|limit| id >= limit) => Ok(()),
            (Some(id), _) => {
                let id = u32::try_from(id)
                    .map_err(|_| format!("the id of the {kind} token, {id}, is too large"))?;
                self.special.set_id(kind, id);
                Ok(())
            }
            (None, Some(id)) => Err(format!(
                "the id of the {kind} token is {id}, below zero; set the right one"
            )),
            (None, None) => Ok(()),
        }
    }
}

/// Special tokens by role while reading the post-processor: strings, or objects with contents.
struct Roles {
    bos: Value,
    cls: Value,
    eos: Value,
    sep: Value,
}

/// `chat_template.jinja` with the files of `additional_chat_templates`, otherwise
/// `chat_template.json`.
fn template_file(dir: &Path) -> Result<Option<Value>> {
    let Some(default) = read_text(&dir.join("chat_template.jinja"))? else {
        let path = dir.join("chat_template.json");
        return Ok(read_json(&path)?.and_then(|json| json.get("chat_template").cloned()));
    };
    // In directory order, as in the reference.
    let mut named = Vec::new();
    for entry in dir
        .join("additional_chat_templates")
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path();
        let name = entry.file_name();
        if let Some(stem) = name.to_str().and_then(|name| name.strip_suffix(".jinja"))
            && let Some(template) = read_text(&path)?
        {
            // Python's stem of ".jinja" is ".jinja".
            let stem = if stem.is_empty() { ".jinja" } else { stem };
            named.push(serde_json::json!({ "name": stem, "template": template }));
        }
    }
    if named.is_empty() {
        return Ok(Some(Value::String(default)));
    }
    named.insert(
        0,
        serde_json::json!({ "name": "default", "template": default }),
    );
    Ok(Some(Value::Array(named)))
}

/// Writes a template; or named ones, the list of names, and the default one.
///
/// The reference lists names in the order of a Python set, which varies between runs; we keep the
/// order of the file.
pub(super) fn write_template(template: &Value, entries: &mut Entries) {
    const KEY: &str = "tokenizer.chat_template";
    if let Some(text) = template.as_str() {
        return entries.set_str(KEY, text);
    }
    let mut default = None;
    let mut names: Vec<String> = Vec::new();
    for choice in template.as_array().into_iter().flatten() {
        let name = choice
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        let Some(text) = choice.get("template").and_then(Value::as_str) else {
            continue;
        };
        if name == "default" {
            default = Some(text);
        } else if !name.is_empty() {
            entries.set_str(format!("{KEY}.{name}"), text);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    entries.set_strings("tokenizer.chat_templates", &names);
    if let Some(text) = default {
        entries.set_str(KEY, text);
    }
}
