//! Explanations of directories without a checkpoint.

use super::adapter::CONFIG as ADAPTER;
use crate::format::json;
use std::path::Path;

/// The kind of a directory without config.json or without weights, if recognized.
pub(super) fn directory(dir: &Path) -> Option<String> {
    let has = |name: &str| dir.join(name).is_file();
    if has(ADAPTER) {
        let config = json::read_object(&dir.join(ADAPTER)).ok();
        let base = config
            .as_ref()
            .and_then(|config| config.get("base_model_name_or_path")?.as_str());
        let base = base.map_or(String::new(), |base| format!(" ({base})"));
        return Some(format!(
            "it is a LoRA adapter ({ADAPTER}), not a model; name its base model{base} and merge the adapter into it \
             (--lora DIR, of make and convert), or make an adapter for llama.cpp of it (quantier convert DIR --base BASE)"
        ));
    }
    if has("model_index.json") {
        return Some(
            "it is a pipeline of several models (model_index.json); name the directory of the language model in it"
                .into(),
        );
    }
    if has("params.json") {
        return Some(
            "it has the files of Mistral's own format (params.json, consolidated*.safetensors) and none of Hugging \
             Face's; download config.json, model*.safetensors and the tokenizer of the same model"
                .into(),
        );
    }
    let gguf = first_with_extension(dir, "gguf")?;
    Some(format!(
        "it is a directory of GGUF files without a config.json, and no checkpoint; name one of them, such as {gguf}"
    ))
}

/// The first name in a directory with this extension.
fn first_with_extension(dir: &Path, extension: &str) -> Option<String> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let paths = entries.map(|entry| entry.path());
    let matching = paths.filter(|path| path.extension().is_some_and(|e| e == extension));
    matching
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_are_no_checkpoint_are_named() {
        for (file, text, parts) in [
            (
                ADAPTER,
                r#"{"base_model_name_or_path": "Qwen/Qwen3-0.6B"}"#,
                ["LoRA adapter", "base model (Qwen/Qwen3-0.6B)"],
            ),
            (ADAPTER, "{", ["LoRA adapter", "base model and merge"]),
            (
                "params.json",
                "{}",
                ["Mistral's own format", "download config.json"],
            ),
            ("model_index.json", "{}", ["pipeline", "language model"]),
            (
                "a-Q4_K_M.gguf",
                "",
                ["directory of GGUF files", "such as a-Q4_K_M.gguf"],
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            assert_eq!(directory(dir.path()), None);
            std::fs::write(dir.path().join(file), text).unwrap();
            let what = directory(dir.path()).unwrap();
            parts
                .iter()
                .for_each(|part| assert!(what.contains(part), "{what}"));
        }
    }
}
