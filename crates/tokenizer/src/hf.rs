//! The tokenizer of Python's `AutoTokenizer.from_pretrained`: `tokenizer.json` in the tokenizers
//! library, with the changes of its class in transformers.
//!
//! The reference takes vocabulary and fingerprint from that object, and both depend on the class:
//! some classes add a BOS token regardless of `tokenizer.json`, some have their own special tokens,
//! and all overwrite the flags of added tokens with those of `tokenizer_config.json`.

use super::class::{self, Class};
use super::files::{Files, bad, kind, read_object};
use super::slow::{self, Slow};
use super::{MAX_TOKENS, checked};
use quantier_gguf::{Error, Result};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::{AddedToken, Tokenizer};

/// The attributes of single special tokens, in the order of transformers.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];
const MORE_SPECIAL: &str = "additional_special_tokens";

/// An added token with an optional flag.
#[derive(Clone, Debug, PartialEq)]
struct Added {
    token: AddedToken,
    /// The opposite of `special` by default.
    normalized: Option<bool>,
}

impl Added {
    fn parse(entry: &Value) -> Option<Added> {
        let flag = |name| entry.get(name).and_then(Value::as_bool);
        let token = AddedToken {
            content: entry.get("content")?.as_str()?.to_owned(),
            single_word: flag("single_word").unwrap_or(false),
            lstrip: flag("lstrip").unwrap_or(false),
            rstrip: flag("rstrip").unwrap_or(false),
            normalized: false,
            special: flag("special").unwrap_or(false),
        };
        Some(Added {
            token,
            normalized: flag("normalized"),
        })
    }

    fn special(content: &str) -> Added {
        Added {
            token: AddedToken::from(content, true),
            normalized: Some(false),
        }
    }

    fn resolved(&self) -> AddedToken {
        AddedToken {
            normalized: self.normalized.unwrap_or(!self.token.special),
            ..self.token.clone()
        }
    }
}

/// Added tokens by id.
type Decoder = Vec<(u64, Added)>;

/// A special token: only its text, or with flags.
#[derive(Clone, Debug)]
enum Special {
    Text(String),
    Added(Added),
}

impl Special {
    fn parse(value: &Value) -> Option<Special> {
        match value {
            Value::String(text) if text.is_empty() => None,
            Value::String(text) => Some(Special::Text(text.clone())),
            entry => Added::parse(entry).map(Special::Added),
        }
    }

    fn text(&self) -> &str {
        match self {
            Special::Text(text) => text,
            Special::Added(added) => &added.token.content,
        }
    }
}

/// Kind of a tokenizer's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Model {
    /// Byte-pair encoding.
    BytePairs,
    /// WordPiece.
    WordPiece,
    /// A unigram model; it encodes no texts here, so that its normalizer and the like are not read.
    Unigram,
}

/// The tokenizer of a checkpoint.
pub(super) struct HfTokenizer {
    inner: Tokenizer,
    /// Texts of all special tokens with a role.
    pub special: HashSet<String>,
    /// The id of the unknown token.
    unknown: Option<u32>,
    /// Ids before and after every text; `None` if `tokenizer.json` decides.
    bounds: Option<(Vec<u32>, Vec<u32>)>,
    /// True if decoding removes spaces before punctuation.
    cleans_up: bool,
}

impl HfTokenizer {
    /// Loads the tokenizer of a checkpoint with a `tokenizer.json`, or with `vocab.json` and
    /// `merges.txt`.
    pub(crate) fn load(files: &Files, model: Model) -> Result<HfTokenizer> {
        let class = Class::of(files);
        let slow = files.tokenizer.is_none();
        let (settings, decoder) = settings(files)?;
        let json = match (&files.tokenizer, model) {
            (Some(json), _) => Cow::Borrowed(json),
            (None, Model::WordPiece) => {
                let bounds = ["cls_token", "sep_token"].map(|name| role(name, class, &settings));
                let bounds = bounds.each_ref().map(|token| Some(token.as_ref()?.text()));
                Cow::Owned(slow::word_piece(files, bounds)?)
            }
            (None, _) => Cow::Owned(slow::tokenizer(files, class)?),
        };
        let json = match model {
            Model::Unigram => Cow::Owned(without_texts(&json)),
            _ => json,
        };
        let json = &*json;
        checked::check(json, model).map_err(|what| files.bad_tokenizer(what))?;
        let mut roles: Vec<(&str, Special)> = ROLES
            .iter()
            .filter_map(|&r| Some((r, role(r, class, &settings)?)))
            .collect();
        let pad_of_padding = json.get("padding").and_then(|p| p.get("pad_token"));
        if let Some(pad) = pad_of_padding
            && !class.names_pad()
            && !settings.contains_key("pad_token")
        {
            roles.extend(Special::parse(pad).map(|pad| ("pad_token", pad)));
            roles.sort_by_key(|(role, _)| ROLES.iter().position(|r| r == role));
        }
        // The class that reads vocab.json sets flags on its special tokens.
        let makes_flags = slow && model == Model::BytePairs && !class.makes_added();
        for (role, special) in roles.iter_mut().filter(|_| makes_flags) {
            if let Special::Text(text) = special
                && ["bos_token", "eos_token", "unk_token", "pad_token"].contains(role)
            {
                *special = Special::Added(Added {
                    token: AddedToken::from(std::mem::take(text), false),
                    normalized: None,
                });
            }
        }
        // A special token of the files has the flags of the added token with the same text.
        for (role, special) in &mut roles {
            if settings.contains_key(*role)
                && let Some((_, added)) = decoder
                    .iter()
                    .rev()
                    .find(|(_, a)| a.token.content == special.text())
            {
                *special = Special::Added(added.clone());
            }
        }
        let mut all: Vec<Special> = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        let more = settings.get(MORE_SPECIAL).and_then(Value::as_array);
        let more = more.into_iter().flatten().filter_map(Special::parse);
        let of_class = class
            .more_special()
            .iter()
            .map(|text| Special::Text((*text).to_owned()));
        for special in roles
            .iter()
            .map(|(_, special)| special.clone())
            .chain(more)
            .chain(of_class)
        {
            if seen.insert(special.text().to_owned()) {
                all.push(special);
            }
        }

        let texts = decoder
            .iter()
            .map(|(_, added)| &*added.token.content)
            .chain(all.iter().map(Special::text));
        if let Some(long) = texts
            .map(str::len)
            .find(|&length| length > checked::MAX_ADDED)
        {
            let what = format!(
                "a token has {long} bytes; the limit is {}",
                checked::MAX_ADDED
            );
            return Err(bad(&files.dir.join("tokenizer_config.json"), what));
        }
        let mut inner = parse(files, json, class, &settings)?;
        guarded(|| {
            add_tokens(&mut inner, decoder, &all);
            Ok(())
        })
        .map_err(|what| {
            files.bad_tokenizer(format!(
                "the tokenizers library cannot add its tokens: {what}"
            ))
        })?;
        if settings
            .get("split_special_tokens")
            .and_then(Value::as_bool)
            == Some(true)
        {
            inner.set_encode_special_tokens(true);
        }
        let named = |name: &str| {
            let (_, token) = roles.iter().find(|(role, _)| *role == name)?;
            Some(inner.token_to_id(token.text()))
        };
        let unknown = named("unk_token").flatten();
        let id_of = |name: &str| named(name)?.or(unknown);
        // GPT-2's class adds only a BOS token, and only if it reads vocab.json.
        let reads_vocab = slow && class.slow() == Some(Slow::Gpt2);
        let bounds = class
            .adds_bos()
            .or(reads_vocab.then_some(false))
            .map(|bos| {
                let adds = |name, default| {
                    settings
                        .get(name)
                        .and_then(Value::as_bool)
                        .unwrap_or(default)
                };
                let bound = |add, name| {
                    if add {
                        id_of(name).into_iter().collect()
                    } else {
                        Vec::new()
                    }
                };
                (
                    bound(adds("add_bos_token", bos), "bos_token"),
                    bound(!reads_vocab && adds("add_eos_token", false), "eos_token"),
                )
            });
        let cleans_up = settings
            .get("clean_up_tokenization_spaces")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        Ok(HfTokenizer {
            inner,
            special: seen,
            unknown,
            bounds,
            cleans_up,
        })
    }

    /// The tokenizer of the tokenizers library.
    pub(crate) fn inner(&self) -> &Tokenizer {
        &self.inner
    }

    /// All tokens, added ones included, with their ids.
    pub(crate) fn vocabulary(&self) -> HashMap<String, u32> {
        self.inner.get_vocab(true)
    }

    /// Number of tokens without added ones.
    pub(crate) fn base_size(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// The added tokens by id.
    pub(crate) fn added(&self) -> HashMap<u32, AddedToken> {
        self.inner.get_added_tokens_decoder().into_iter().collect()
    }

    /// The id of a token.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of a token, otherwise that of the unknown token.
    pub(crate) fn id_or_unknown(&self, token: &str) -> Option<u32> {
        self.id(token).or(self.unknown)
    }

    /// Encodes a text, with the added tokens before and after it.
    pub(crate) fn encode(&self, text: &str) -> std::result::Result<Vec<u32>, String> {
        let encoding = guarded(|| self.inner.encode(text, self.bounds.is_none()))?;
        let ids = encoding.get_ids();
        Ok(match &self.bounds {
            None => ids.to_vec(),
            Some((front, behind)) => [front, ids, behind].concat(),
        })
    }

    /// Encodes and decodes a text.
    pub(crate) fn round_trip(&self, text: &str) -> std::result::Result<String, String> {
        let text = guarded(|| {
            self.inner
                .decode(self.inner.encode(text, false)?.get_ids(), false)
        })?;
        Ok(if self.cleans_up {
            cleaned_up(&text)
        } else {
            text
        })
    }
}

/// Calls the tokenizers library and catches its panics: it does not expect hostile files.
pub(super) fn guarded<T>(
    call: impl FnOnce() -> tokenizers::Result<T>,
) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("it panics".to_owned()),
    }
}

/// transformers' removal of spaces before English punctuation and contractions.
fn cleaned_up(text: &str) -> String {
    const REMOVED: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REMOVED
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The arguments of the class, and the added tokens by id.
///
/// From `tokenizer_config.json`; without added tokens in it (old checkpoints), from the three older
/// files.
fn settings(files: &Files) -> Result<(Map<String, Value>, Decoder)> {
    let path = files.dir.join("tokenizer_config.json");
    let mut settings = files.tokenizer_config.clone().unwrap_or_default();
    let mut decoder: Decoder = Vec::new();
    match settings.get("added_tokens_decoder") {
        Some(Value::Object(entries)) => {
            for (id, entry) in entries {
                let number = id
                    .parse()
                    .map_err(|_| bad(&path, format!("added token id {id:?} is not a number")))?;
                let added = Added::parse(entry)
                    .ok_or_else(|| bad(&path, format!("added token {id} has no content")))?;
                decoder.push((number, added));
            }
        }
        Some(other) => {
            return Err(bad(
                &path,
                format!("added_tokens_decoder is {}, not an object", kind(other)),
            ));
        }
        None => {
            for (key, mut value) in
                read_object(&files.dir.join("special_tokens_map.json"))?.unwrap_or_default()
            {
                if let Value::Object(token) = &mut value {
                    token.insert("special".to_owned(), Value::Bool(true));
                }
                settings.insert(key, value);
            }
            let special: HashSet<String> = ROLES
                .iter()
                .filter_map(|role| settings.get(*role))
                .chain(
                    settings
                        .get(MORE_SPECIAL)
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten(),
                )
                .filter_map(|value| Special::parse(value).map(|s| s.text().to_owned()))
                .collect();
            let path = files.dir.join("added_tokens.json");
            for (text, id) in read_object(&path)?.unwrap_or_default() {
                let id = id.as_u64().ok_or_else(|| {
                    bad(&path, format!("the id of {text:?} is not a whole number"))
                })?;
                let special = special.contains(&text);
                let added = Added {
                    token: AddedToken::from(text, special),
                    normalized: Some(!special),
                };
                decoder.push((id, added));
            }
            let mut place_of: HashMap<u64, usize> = decoder
                .iter()
                .enumerate()
                .map(|(at, (id, _))| (*id, at))
                .collect();
            for entry in files.added_tokens() {
                let id = entry.get("id").and_then(Value::as_u64);
                if let (Some(id), Some(added)) = (id, Added::parse(entry)) {
                    match place_of.get(&id) {
                        Some(&at) => decoder[at] = (id, added),
                        None => {
                            place_of.insert(id, decoder.len());
                            decoder.push((id, added));
                        }
                    }
                }
            }
        }
    }
    Ok((settings, decoder))
}

/// The special token of a role: from the settings, even if null, otherwise the default of the
/// class.
fn role(name: &str, class: &Class, settings: &Map<String, Value>) -> Option<Special> {
    let special = match settings.get(name) {
        Some(value) => Special::parse(value)?,
        None => Special::Text(class.default(name)?.to_owned()),
    };
    Some(match special {
        Special::Text(text) if class.makes_added() && class.default_roles().any(|r| r == name) => {
            Special::Added(Added::special(&text))
        }
        other => other,
    })
}

/// The fields for the numbers of tokens alone.
fn without_texts(json: &Map<String, Value>) -> Map<String, Value> {
    const TEXTS: [&str; 4] = ["normalizer", "pre_tokenizer", "post_processor", "decoder"];
    let fields = json.iter().map(|(name, value)| {
        let is_dropped = TEXTS.contains(&name.as_str());
        let value = if is_dropped {
            Value::Null
        } else {
            value.clone()
        };
        (name.clone(), value)
    });
    fields.collect()
}

/// Parses the file with the tokenizers library, without truncation and padding, and with the
/// changes of the class.
fn parse(
    files: &Files,
    json: &Map<String, Value>,
    class: &Class,
    settings: &Map<String, Value>,
) -> Result<Tokenizer> {
    let pre_tokenizer = json.get("pre_tokenizer").cloned().unwrap_or(Value::Null);
    let pre_tokenizer = class::with_prefix_space(pre_tokenizer, class.prefix_space(settings));
    let normalizer = json.get("normalizer").cloned().unwrap_or(Value::Null);
    let normalizer = class.with_normalizer(normalizer, settings);
    let mut text = String::from("{");
    for (key, value) in json {
        let value = match key.as_str() {
            "truncation" | "padding" => continue,
            "post_processor" if class.adds_bos().is_some() => continue,
            "pre_tokenizer" => &pre_tokenizer,
            "normalizer" => &normalizer,
            _ => value,
        };
        let separator = if text.len() > 1 { "," } else { "" };
        text += &format!("{separator}{}:{value}", Value::from(key.as_str()));
    }
    text.push('}');
    match guarded(|| text.parse::<Tokenizer>()) {
        Ok(tokenizer) if tokenizer.get_vocab_size(true) > MAX_TOKENS => {
            Err("too many tokens".to_owned())
        }
        other => other,
    }
    .map_err(|why| files.bad_tokenizer(format!("the tokenizers library cannot read it: {why}")))
}

/// Adds tokens of the configuration that `tokenizer.json` lacks or has with other flags, and
/// missing special tokens.
fn add_tokens(inner: &mut Tokenizer, mut decoder: Decoder, all_special: &[Special]) {
    let present: HashSet<AddedToken> = inner.get_added_tokens_decoder().into_values().collect();
    decoder.sort_by_key(|(id, _)| *id);
    let missing: Vec<Added> = decoder
        .into_iter()
        .map(|(_, added)| added)
        .filter(|added| !present.contains(&added.resolved()))
        .collect();
    let given: HashSet<(&AddedToken, Option<bool>)> =
        missing.iter().map(|a| (&a.token, a.normalized)).collect();
    let known: HashSet<&str> = present
        .iter()
        .map(|t| &*t.content)
        .chain(missing.iter().map(|added| &*added.token.content))
        .collect();
    // As in transformers, a token with flags never equals a plain text, so its flags are set again.
    let anew = all_special.iter().filter(|special| match special {
        Special::Text(text) => !known.contains(&**text),
        Special::Added(added) => !given.contains(&(&added.token, added.normalized)),
    });
    let special: HashSet<&str> = all_special.iter().map(Special::text).collect();
    let of_files = missing.iter().cloned().map(Special::Added);
    let tokens: Vec<AddedToken> = of_files
        .chain(anew.cloned())
        .map(|token| match token {
            Special::Text(text) => {
                let special = special.contains(&*text);
                AddedToken::from(text, special)
            }
            Special::Added(mut added) => {
                added.token.special |= special.contains(&*added.token.content);
                added.resolved()
            }
        })
        .collect();
    if !tokens.is_empty() {
        inner.add_tokens(&tokens);
    }
}

/// Error of the library about a text.
pub(super) fn library_error(files: &Files, text: &str, what: &str) -> Error {
    files.bad_tokenizer(format!("{text:?} cannot be encoded: {what}"))
}
