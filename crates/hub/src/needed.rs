//! The files of a model that a conversion reads.

use super::address::Address;
use super::{Error, Result};
use quantier_gguf::foreign;
use quantier_gguf::gguf::shard_siblings;
use quantier_gguf::index::Format;

/// Small files that a conversion reads if present.
const SMALL: [&str; 25] = [
    "config.json",
    "hf_quant_config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "modules.json",
    "merges.txt",
    "tekken.json",
    "tokenizer.jsonl",
    "rwkv_vocab_v20230424.txt",
    "qwen.tiktoken",
    "hy.tiktoken",
    "arcade100k.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
];
/// Directory of named chat templates.
const TEMPLATES: &str = "additional_chat_templates/";
/// Names of directories of modules behind a model, after a number, and their files.
const MODULES: [(&str, &str); 3] = [
    ("_Pooling", "config.json"),
    ("_Dense", "config.json"),
    ("_Dense", "model.safetensors"),
];
/// Size limit of a small file in bytes. The largest tokenizers have about 40 MB.
pub(super) const MAX_SMALL: u64 = 512 << 20;

/// The files to download.
#[derive(Debug, PartialEq)]
pub(super) struct Selection {
    /// Configuration and tokenizer, downloaded first.
    pub small: Vec<String>,
    pub weights: Weights,
    /// File to open as the model; the snapshot directory if `None`.
    pub model: Option<String>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Weights {
    Files(Vec<String>),
    /// The files in the index of this name.
    OfIndex(&'static str),
}

/// Chooses the files to download.
pub(super) fn select(
    address: &Address,
    files: &[String],
    vocabulary_only: bool,
) -> Result<Selection> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let unusable = |what: String| Error::Unusable {
        address: address.to_string(),
        what,
    };
    let ggufs: Vec<&String> = files
        .iter()
        .filter(|file| file.ends_with(".gguf"))
        .collect();
    let named = match &address.file {
        Some(file) if !has(file) => {
            let alternatives = match ggufs.is_empty() {
                true => String::new(),
                false => format!("; its GGUFs are {}", listed(&ggufs)),
            };
            return Err(Error::NoFile {
                address: address.to_string(),
                file: file.clone(),
                alternatives,
            });
        }
        Some(file) if is_checkpoint_file(file) => Some(file),
        Some(file) if file.ends_with(".gguf") => return gguf(address, file, files),
        Some(file) => {
            return Err(unusable(format!(
                "{file} is neither a GGUF nor a .safetensors or .bin file at the top"
            )));
        }
        None => None,
    };
    let format = Format::of(files);
    let is_part = |file: &&String| is_weights(format, file);
    let mut weights: Vec<String> = files.iter().filter(is_part).cloned().collect();
    weights.sort();
    if named.is_none() && weights.is_empty() && !has(format.index) && !vocabulary_only {
        // A repository of GGUFs is unambiguous with one model in it.
        let firsts: Vec<&String> = ggufs
            .iter()
            .filter(|file| is_first(file))
            .copied()
            .collect();
        return match firsts[..] {
            [file] => gguf(address, file, files),
            [] => Err(unusable(match foreign::explain(files) {
                Some(what) => format!("it has no weights that can be converted: {what}"),
                None => "it has neither safetensors, nor pytorch_model*.bin, nor a GGUF".into(),
            })),
            _ => Err(unusable(format!(
                "it holds several GGUFs; name one: {address}/FILE, where FILE is one of {}",
                listed(&firsts)
            ))),
        };
    }
    let template = |file: &&String| {
        let name = file.strip_prefix(TEMPLATES);
        name.is_some_and(|name| name.ends_with(".jinja") && !name.contains('/'))
    };
    let mut small: Vec<String> = SMALL
        .iter()
        .filter(|name| has(name))
        .map(|name| (*name).to_owned())
        .collect();
    small.extend(files.iter().filter(template).cloned());
    small.extend(files.iter().filter(|file| is_of_module(file)).cloned());
    if !has("config.json") {
        return Err(unusable(
            "it has no config.json, so it cannot be converted".into(),
        ));
    }
    let weights = match named {
        _ if vocabulary_only => Weights::Files(Vec::new()),
        Some(file) => Weights::Files(vec![file.clone()]),
        None if has(format.index) => Weights::OfIndex(format.index),
        None => Weights::Files(weights),
    };
    Ok(Selection {
        small,
        weights,
        model: named.filter(|_| !vocabulary_only).cloned(),
    })
}

/// True for the files of modules behind an embedding model.
fn is_of_module(file: &str) -> bool {
    let number = |dir: &str| !dir.is_empty() && dir.bytes().all(|byte| byte.is_ascii_digit());
    let is_one = |(kind, name): &(&str, &str)| {
        let dir = file.split_once('/').filter(|(_, rest)| rest == name);
        dir.and_then(|(dir, _)| dir.strip_suffix(kind))
            .is_some_and(number)
    };
    MODULES.iter().any(is_one)
}

/// True for weight files of a conversion without an index.
pub(super) fn is_weights(format: Format, file: &str) -> bool {
    format.is_part(file) && !file.contains('/')
}

/// True for a checkpoint's weight file named by an address.
fn is_checkpoint_file(file: &str) -> bool {
    let formats = [Format::SAFETENSORS, Format::TORCH];
    let is_of = |format: &Format| file.ends_with(format.suffix);
    formats.iter().any(is_of) && !file.contains('/')
}

/// A GGUF with all its shards.
fn gguf(address: &Address, file: &str, files: &[String]) -> Result<Selection> {
    let shards = shard_siblings(file).unwrap_or_else(|| vec![file.to_owned()]);
    if let Some(missing) = shards.iter().find(|shard| !files.contains(shard)) {
        let alternatives = format!(", and {file} is one of {} shards", shards.len());
        return Err(Error::NoFile {
            address: address.to_string(),
            file: missing.clone(),
            alternatives,
        });
    }
    Ok(Selection {
        small: Vec::new(),
        weights: Weights::Files(shards),
        model: Some(file.to_owned()),
    })
}

/// True for a complete GGUF or the first file of a split one.
fn is_first(file: &str) -> bool {
    shard_siblings(file).is_none_or(|shards| shards[0] == *file)
}

fn listed(files: &[&String]) -> String {
    const SHOWN: usize = 20;
    let names: Vec<&str> = files.iter().take(SHOWN).map(|file| file.as_str()).collect();
    let more = files.len().saturating_sub(SHOWN);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    names.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = Format::SAFETENSORS.index;

    fn of(address: &str, files: &[&str]) -> std::result::Result<Selection, String> {
        let files: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
        select(&Address::parse(address).unwrap(), &files, false).map_err(|e| e.to_string())
    }

    #[test]
    fn modules_of_embedding_models_are_small_files() {
        for file in [
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
            "3_Dense/config.json",
        ] {
            assert!(is_of_module(file), "{file}");
        }
        for file in [
            "Pooling/config.json",
            "1_Pooling/model.safetensors",
            "a/1_Dense/config.json",
            "1_Dense/x",
        ] {
            assert!(!is_of_module(file), "{file}");
        }
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|f| (*f).to_owned()).collect()
    }

    #[test]
    fn unused_files_of_checkpoints_are_not_selected() {
        let files = [
            ".gitattributes",
            "LICENSE",
            "README.md",
            "additional_chat_templates/tools.jinja",
            "additional_chat_templates/deeper/x.jinja",
            "config.json",
            "consolidated.safetensors",
            "flax_model.msgpack",
            "model-00002-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
            "original/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let found = of("hf://o/n", &files).unwrap();
        let small = [
            "config.json",
            "tokenizer.json",
            "README.md",
            "additional_chat_templates/tools.jinja",
        ];
        assert_eq!(found.small, names(&small));
        let shards = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(found.weights, Weights::Files(names(&shards)));
        assert_eq!(found.model, None);
        assert_eq!(
            of("hf://o/n", &[&files[..], &[INDEX]].concat())
                .unwrap()
                .weights,
            Weights::OfIndex(INDEX)
        );
        let one = of("hf://o/n/consolidated.safetensors", &files).unwrap();
        assert_eq!(
            one.weights,
            Weights::Files(names(&["consolidated.safetensors"]))
        );
        assert_eq!(one.model.as_deref(), Some("consolidated.safetensors"));
    }

    #[test]
    fn ggufs_are_selected_with_all_shards() {
        let files = [
            "Q4/a-00001-of-00002.gguf",
            "Q4/a-00002-of-00002.gguf",
            "b.gguf",
            "config.json",
        ];
        let found = of("hf://o/n/Q4/a-00002-of-00002.gguf", &files).unwrap();
        assert_eq!(found.weights, Weights::Files(names(&files[..2])));
        assert!(found.small.is_empty());
        let several = of("hf://o/n", &files).unwrap_err();
        assert!(
            several.contains("name one")
                && several.contains("b.gguf")
                && !several.contains("00002-of"),
            "{several}"
        );
        assert_eq!(
            of("hf://o/n", &files[2..]).unwrap().model.as_deref(),
            Some("b.gguf")
        );
        assert_eq!(
            of("hf://o/n", &files[..2]).unwrap().model.as_deref(),
            Some(files[0])
        );
        let missing = of("hf://o/n/Q4/a-00001-of-00002.gguf", &files[..1]).unwrap_err();
        assert!(missing.contains("a-00002-of-00002.gguf"), "{missing}");
    }

    #[test]
    fn pytorch_files_are_selected_without_safetensors() {
        let files = [
            "config.json",
            "pytorch_model-00002-of-00002.bin",
            "pytorch_model-00001-of-00002.bin",
            "training_args.bin",
        ];
        let shards = [files[2], files[1]];
        assert_eq!(
            of("hf://o/n", &files).unwrap().weights,
            Weights::Files(names(&shards))
        );
        let index = Format::TORCH.index;
        let indexed = of("hf://o/n", &[&files[..], &[index]].concat());
        assert_eq!(indexed.unwrap().weights, Weights::OfIndex(index));
        let with_safetensors = of("hf://o/n", &[&files[..], &["model.safetensors"]].concat());
        assert_eq!(
            with_safetensors.unwrap().weights,
            Weights::Files(names(&["model.safetensors"]))
        );
        let one = of("hf://o/n/pytorch_model-00001-of-00002.bin", &files).unwrap();
        assert_eq!(one.model.as_deref(), Some(files[2]));
    }

    #[test]
    fn unusable_repositories_are_explained() {
        assert!(
            of("hf://o/n", &["consolidated.00.pth", "config.json"])
                .unwrap_err()
                .contains("Meta's own format")
        );
        assert!(
            of("hf://o/n", &["data.csv"])
                .unwrap_err()
                .contains("neither")
        );
        assert!(
            of("hf://o/n", &["model.safetensors"])
                .unwrap_err()
                .contains("config.json")
        );
        assert!(
            of("hf://o/n/c.gguf", &["b.gguf"])
                .unwrap_err()
                .contains("its GGUFs are b.gguf")
        );
        assert!(
            of("hf://o/n/config.json", &["config.json"])
                .unwrap_err()
                .contains("neither a GGUF")
        );
    }
}
