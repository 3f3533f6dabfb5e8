//! Facts about a model for its card: from the user's options, otherwise from the GGUF's metadata.
//! Missing ones are omitted, with a note that asks for them.

use super::lint::lint;
use super::modelfile::{Ollama, Template};
use super::turns::Turns;
use crate::chat::template::{chat_template, token};
use crate::convert::ProjectorFile;
use crate::format::gguf::{Metadata, Value, keys};
use crate::report::data::Distance;
use crate::report::numbers::clean;

/// Facts given by the user.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The quantized model as named on the Hub: `org/name`, or its URL.
    pub base_model: Option<String>,
    /// Address of the model if it came from the Hub: the base model unless given.
    pub source: Option<String>,
    /// The license.
    pub license: Option<String>,
    /// Name of the publisher.
    pub quantized_by: Option<String>,
    /// Languages, replacing the metadata's.
    pub languages: Vec<String>,
    /// Further tags.
    pub tags: Vec<String>,
    /// Target repository of the files, `user/name`; the card then has commands that download them
    /// from there. `{name}` in it stands for the base model's name, otherwise the model's own.
    pub repo: Option<String>,
}

/// A license in the Hub's format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct License {
    /// Identifier on the Hub.
    pub id: String,
    /// Name, for the identifier `other`.
    pub name: Option<String>,
    /// Link to its text.
    pub link: Option<String>,
}

/// What a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Probabilities of the next token.
    Tokens,
    /// Embeddings of texts.
    Embeddings,
    /// Scores of pairs of texts: a reranker.
    Scores,
}

/// Facts for the model card.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the model computes.
    pub output: Output,
    /// The quantized model.
    pub base_model: Option<String>,
    /// The license.
    pub license: Option<License>,
    /// Name of the publisher.
    pub quantized_by: Option<String>,
    /// Target repository of the files.
    pub repo: Option<String>,
    /// Languages.
    pub languages: Vec<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Task of the model on the Hub.
    pub pipeline_tag: String,
    /// Settings for Ollama.
    pub ollama: Ollama,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// License identifiers of the Hub (its documentation, "Licenses").
const LICENSES: &str = "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 \
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 \
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 \
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 \
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl \
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr \
    mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr \
    deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other";
/// Maximum length of a license identifier or name; longer values are license texts.
const MAX_LICENSE: usize = 96;
/// Tasks on the Hub of models that predict tokens.
const TASKS: [&str; 5] = [
    "text-generation",
    "image-text-to-text",
    "audio-text-to-text",
    "any-to-any",
    "translation",
];
/// Tasks on the Hub of embedding models and rerankers.
const EMBEDDING_TASKS: [&str; 3] = ["feature-extraction", "sentence-similarity", "text-ranking"];
/// `pooling_type` of rerankers (llama.cpp's `llama.h`).
const RANK: u64 = 4;
/// Tags of every model.
const TAGS: [&str; 3] = ["gguf", "imatrix", "quantier"];
/// Sampling parameters: key after `general.sampling.`, name in Ollama.
const SAMPLING: [(&str, &str); 5] = [
    ("temp", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("penalty_repeat", "repeat_penalty"),
];

/// Name of a model on the Hub, from the name itself or its URL.
pub fn hub_id(text: &str) -> Option<String> {
    let text = text.trim().trim_end_matches('/');
    let of_address = [
        "https://huggingface.co/",
        "https://hf.co/",
        "http://huggingface.co/",
        "hf://",
    ];
    let id = of_address
        .iter()
        .find_map(|start| text.strip_prefix(start))
        .unwrap_or(text);
    let good = |part: &str| {
        let inside = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty()
            && part.len() <= MAX_LICENSE
            && part.chars().all(inside)
            && !part.starts_with(['.', '-'])
    };
    let parts: Vec<&str> = id.split('/').collect();
    (parts.len() == 2 && parts.iter().all(|part| good(part))).then(|| id.to_owned())
}

/// Expands a repository pattern for a model of this name; characters not permitted on the Hub
/// become `-`.
pub fn repository(pattern: &str, name: &str) -> Option<String> {
    let kept = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = name.trim().chars().map(kept).collect();
    hub_id(&pattern.replace("{name}", name.trim_matches(['-', '.'])))
}

impl Output {
    /// Of a model with a measure of its distance from the base, and metadata.
    pub(crate) fn new(distance: Distance, metadata: &Metadata<'_>) -> Output {
        let pooling = || of_architecture(metadata, "pooling_type");
        match distance {
            Distance::KlDivergence => Output::Tokens,
            Distance::Cosine if pooling() == Some(RANK) => Output::Scores,
            Distance::Cosine => Output::Embeddings,
        }
    }

    /// The tasks on the Hub that a model's tags may name.
    fn tasks(self) -> &'static [&'static str] {
        match self {
            Output::Tokens => &TASKS,
            Output::Embeddings | Output::Scores => &EMBEDDING_TASKS,
        }
    }

    /// The task of a model whose tags name none.
    fn task(self, projector: Option<&ProjectorFile>) -> &'static str {
        match (
            self,
            projector.map(|projector| (projector.images, projector.audio)),
        ) {
            (Output::Embeddings, _) => "feature-extraction",
            (Output::Scores, _) => "text-ranking",
            (Output::Tokens, None | Some((false, false))) => "text-generation",
            (Output::Tokens, Some((true, false))) => "image-text-to-text",
            (Output::Tokens, Some((false, true))) => "audio-text-to-text",
            (Output::Tokens, Some((true, true))) => "any-to-any",
        }
    }
}

impl Facts {
    /// From the metadata of one of the files.
    pub(crate) fn new(
        metadata: &Metadata<'_>,
        output: Output,
        details: &Details,
        projector: Option<&ProjectorFile>,
    ) -> Facts {
        let mut notes = Vec::new();
        let base_model = details
            .base_model
            .clone()
            .or_else(|| base_model(metadata, details, &mut notes));
        if base_model.is_none() {
            notes.push("the card names no base model: set it with --base-model ORG/NAME".into());
        }
        let license = license(metadata, details, &mut notes);
        if details.quantized_by.is_none() {
            notes.push("the card names no publisher: set it with --quantized-by NAME".into());
        }
        let given = list(metadata, "general.languages");
        let languages = if details.languages.is_empty() {
            given
        } else {
            details.languages.clone()
        };
        if languages.is_empty() {
            notes.push("the card names no language: set it with --language en".into());
        }
        let mut known = list(metadata, "general.tags");
        let tasks = output.tasks();
        let task = known.iter().find(|tag| tasks.contains(&&***tag)).cloned();
        known.retain(|tag| !tasks.contains(&&**tag));
        let mut tags: Vec<String> = Vec::new();
        for tag in TAGS
            .iter()
            .map(|tag| tag.to_string())
            .chain(known)
            .chain(details.tags.iter().cloned())
        {
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let ollama = ollama(metadata, output, &mut notes);
        let own_name = text(metadata, "general.name").unwrap_or("model");
        let name = base_model
            .as_deref()
            .and_then(|id| id.rsplit('/').next())
            .unwrap_or(own_name);
        let repo = details
            .repo
            .as_deref()
            .and_then(|pattern| repository(pattern, name));
        Facts {
            output,
            base_model,
            license,
            quantized_by: details.quantized_by.clone(),
            repo,
            languages,
            tags,
            pipeline_tag: task.unwrap_or_else(|| output.task(projector).into()),
            ollama,
            notes,
        }
    }
}

/// A number under a key of the model's architecture.
pub(super) fn of_architecture(metadata: &Metadata<'_>, key: &str) -> Option<u64> {
    let architecture = text(metadata, keys::ARCHITECTURE)?;
    metadata
        .get(&format!("{architecture}.{key}"))
        .and_then(Value::as_u64)
}

fn text<'m>(metadata: &'m Metadata<'_>, key: &str) -> Option<&'m str> {
    metadata
        .get(key)
        .and_then(Value::as_str)
        .map(str::trim)
        .filter(|text| !text.is_empty())
}

fn list(metadata: &Metadata<'_>, key: &str) -> Vec<String> {
    let array = metadata.get(key).and_then(Value::as_array);
    let strings = array.into_iter().flat_map(|array| array.strings());
    strings
        .map(|text| clean(&String::from_utf8_lossy(text)))
        .filter(|text| !text.is_empty())
        .collect()
}

/// The model itself, from its address in the metadata or its download address. `general.base_model`
/// is another model, usually the one it was fine-tuned from, and would be wrong here.
fn base_model(
    metadata: &Metadata<'_>,
    details: &Details,
    notes: &mut Vec<String>,
) -> Option<String> {
    let own = [
        "general.source.repo_url",
        "general.source.url",
        "general.repo_url",
        "general.url",
    ];
    if let Some(id) = own.iter().find_map(|key| hub_id(text(metadata, key)?)) {
        return Some(id);
    }
    if let Some(id) = details.source.as_deref().and_then(hub_id) {
        return Some(id);
    }
    let parent = hub_id(text(metadata, "general.base_model.0.repo_url")?)?;
    let same =
        |a: &str, b: &str| a.to_lowercase().replace(' ', "-") == b.to_lowercase().replace(' ', "-");
    let name = text(metadata, "general.name").unwrap_or_default();
    let parent_name = parent.rsplit('/').next().unwrap_or_default();
    if same(name, parent_name) {
        return Some(parent);
    }
    notes.push(format!(
        "the model was made from {parent}, according to its metadata; base_model is the quantized model itself"
    ));
    None
}

fn license(metadata: &Metadata<'_>, details: &Details, notes: &mut Vec<String>) -> Option<License> {
    let given = details
        .license
        .as_deref()
        .or_else(|| text(metadata, "general.license"));
    let usable = given.filter(|given| given.len() <= MAX_LICENSE && !given.contains(['\n', '\r']));
    let Some(given) = usable else {
        notes.push(
            "the card names no license: set it with --license (apache-2.0, for example)".into(),
        );
        return None;
    };
    let id = given.to_lowercase();
    let link = || text(metadata, "general.license.link").map(clean);
    if id != "other" && LICENSES.split_whitespace().any(|known| known == id) {
        return Some(License {
            id,
            name: None,
            link: None,
        });
    }
    let own_name = if id == "other" {
        text(metadata, "general.license.name")
    } else {
        Some(given)
    };
    if own_name.is_none() || link().is_none() {
        notes.push(format!(
            "license '{}' is not one of the Hub's: add its text to the directory as LICENSE",
            clean(given)
        ));
    }
    Some(License {
        id: "other".into(),
        name: own_name.map(clean),
        link: link(),
    })
}

fn ollama(metadata: &Metadata<'_>, output: Output, notes: &mut Vec<String>) -> Ollama {
    let context = of_architecture(metadata, "context_length");
    if output != Output::Tokens {
        return Ollama {
            template: Template::Unused,
            stops: Vec::new(),
            context,
            sampling: Vec::new(),
        };
    }
    let eos = token(metadata, "tokenizer.ggml.eos_token_id");
    let parsed = chat_template(metadata);
    notes.extend(lint(parsed.as_ref()).0);
    let template = match parsed {
        None => Template::Missing,
        Some(Err(why)) => Template::Unknown(why),
        Some(Ok(template)) => match Turns::of(&template) {
            Ok(turns) => Template::Derived(Box::new(turns)),
            Err(why) => Template::Unknown(why),
        },
    };
    if let Template::Unknown(why) = &template {
        notes.push(format!(
            "the chat template could not be converted for Ollama: {why}; the Modelfiles say so"
        ));
    }
    let stops = match &template {
        Template::Derived(turns) => turns.stops(eos.as_deref()),
        _ => eos.into_iter().filter(|eos| eos.len() > 2).collect(),
    };
    let sampling = SAMPLING.iter().filter_map(|(key, name)| {
        let value = match metadata.get(&format!("general.sampling.{key}"))? {
            Value::F32(x) if x.is_finite() => serde_json::from_str(&x.to_string()).ok()?,
            value => value.as_u64()?.into(),
        };
        Some((*name, value))
    });
    Ollama {
        template,
        stops,
        context,
        sampling: sampling.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::Array;

    fn metadata(pairs: &[(&'static str, &'static str)]) -> Metadata<'static> {
        let mut metadata = Metadata::new();
        pairs
            .iter()
            .for_each(|(key, value)| metadata.set(*key, Value::str(*value)));
        metadata
    }

    #[test]
    fn ids_are_found_in_urls_but_not_in_paths() {
        assert_eq!(
            hub_id("https://huggingface.co/Org/Model-1.5B/").as_deref(),
            Some("Org/Model-1.5B")
        );
        assert_eq!(hub_id("Org/Model").as_deref(), Some("Org/Model"));
        for none in [
            "/home/me/model",
            "./model",
            "../model",
            "a/b/c",
            "https://example.org/a/b",
            "",
            "model",
            "a b/c",
        ] {
            assert_eq!(hub_id(none), None, "{none}");
        }
    }

    #[test]
    fn repository_patterns_are_expanded() {
        assert_eq!(repository("me/X-GGUF", "Y").as_deref(), Some("me/X-GGUF"));
        assert_eq!(
            repository("me/{name}-GGUF", "Té st (1)").as_deref(),
            Some("me/T--st--1-GGUF")
        );
        assert_eq!(repository("me/{name}", "/"), None);
        let details = |base: Option<&str>| Details {
            repo: Some("me/{name}-GGUF".into()),
            base_model: base.map(str::to_owned),
            ..Details::default()
        };
        let named = metadata(&[("general.name", "My Model")]);
        assert_eq!(
            Facts::new(&named, Output::Tokens, &details(None), None)
                .repo
                .as_deref(),
            Some("me/My-Model-GGUF")
        );
        assert_eq!(
            Facts::new(&named, Output::Tokens, &details(Some("org/Other")), None)
                .repo
                .as_deref(),
            Some("me/Other-GGUF")
        );
    }

    #[test]
    fn base_model_metadata_is_not_the_quantized_model() {
        let parent = (
            "general.base_model.0.repo_url",
            "https://huggingface.co/Org/Model-Base",
        );
        let facts = Facts::new(
            &metadata(&[("general.name", "Model Chat"), parent]),
            Output::Tokens,
            &Details::default(),
            None,
        );
        assert_eq!(facts.base_model, None);
        assert!(
            facts
                .notes
                .iter()
                .any(|note| note.contains("made from Org/Model-Base"))
        );
        let facts = Facts::new(
            &metadata(&[("general.name", "Model Base"), parent]),
            Output::Tokens,
            &Details::default(),
            None,
        );
        assert_eq!(facts.base_model.as_deref(), Some("Org/Model-Base"));
        let source = (
            "general.source.url",
            "https://huggingface.co/Org/Model-Chat",
        );
        let facts = Facts::new(
            &metadata(&[source, parent]),
            Output::Tokens,
            &Details::default(),
            None,
        );
        assert_eq!(facts.base_model.as_deref(), Some("Org/Model-Chat"));
        let found = Details {
            source: Some("Org/Found".into()),
            ..Details::default()
        };
        let facts = Facts::new(
            &metadata(&[("general.name", "Model Chat"), parent]),
            Output::Tokens,
            &found,
            None,
        );
        assert_eq!(facts.base_model.as_deref(), Some("Org/Found"));
        assert_eq!(
            Facts::new(&metadata(&[source]), Output::Tokens, &found, None)
                .base_model
                .as_deref(),
            Some("Org/Model-Chat")
        );
    }

    #[test]
    fn tasks_are_those_of_what_the_model_computes() {
        let of = |distance, pooling, tag: Option<&'static str>| {
            let mut metadata = metadata(&[("general.architecture", "bert")]);
            metadata.set("bert.pooling_type", Value::U32(pooling));
            if let Some(tag) = tag {
                metadata.set("general.tags", Value::Array(Array::of_strings([tag])));
            }
            let output = Output::new(distance, &metadata);
            let facts = Facts::new(&metadata, output, &Details::default(), None);
            (facts.output, facts.pipeline_tag)
        };
        let cosine = Distance::Cosine;
        assert_eq!(
            of(cosine, 1, None),
            (Output::Embeddings, "feature-extraction".into())
        );
        assert_eq!(
            of(cosine, 2, Some("sentence-similarity")),
            (Output::Embeddings, "sentence-similarity".into())
        );
        assert_eq!(of(cosine, 4, None), (Output::Scores, "text-ranking".into()));
        assert_eq!(
            of(Distance::KlDivergence, 4, Some("text-ranking")),
            (Output::Tokens, "text-generation".into())
        );
    }

    #[test]
    fn unknown_licenses_become_other() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            Facts::new(&metadata(pairs), Output::Tokens, &Details::default(), None).license
        };
        assert_eq!(of(&[]), None);
        assert_eq!(
            of(&[("general.license", "Apache-2.0")]).unwrap().id,
            "apache-2.0"
        );
        let other = of(&[
            ("general.license", "other"),
            ("general.license.name", "our-license"),
            ("general.license.link", "https://example.org/l"),
        ]);
        let expected = License {
            id: "other".into(),
            name: Some("our-license".into()),
            link: Some("https://example.org/l".into()),
        };
        assert_eq!(other, Some(expected));
        assert_eq!(
            of(&[("general.license", "my own")])
                .unwrap()
                .name
                .as_deref(),
            Some("my own")
        );
        assert_eq!(
            of(&[("general.license", "first line\nand a whole text")]),
            None
        );
    }
}
