//! Qwen 3's rerankers: language models that judge a pair of texts by "yes" or "no". The reference
//! recognizes them by name and card.

use crate::arch::Config;
use std::path::Path;

/// Parts of their names.
const NAMES: [&str; 2] = ["qwen3-reranker", "qwen3-vl-reranker"];
/// Part of the class's name, if they have a separate one.
const CLASS: &str = "sequenceclassification";

/// True if the model in a directory is a reranker.
pub(super) fn is_one(dir: &Path, config: &Config) -> bool {
    let name = std::path::absolute(dir).ok();
    let name = name.as_ref().and_then(|dir| dir.file_name()?.to_str());
    let text = |field| config.get(field).and_then(|value| value.as_str());
    let class = text_of_first(config.get("architectures"));
    let hints = [name, text("_name_or_path"), text("model_type"), class];
    let is_named = |hint: &str| {
        let hint = hint.to_lowercase();
        NAMES.iter().any(|name| hint.contains(name))
    };
    let card = std::fs::read_to_string(dir.join("README.md")).unwrap_or_default();
    let card = card.to_lowercase();
    hints.into_iter().flatten().any(is_named)
        || NAMES.iter().any(|name| card.contains(&format!("# {name}")))
        || class.is_some_and(|class| class.to_lowercase().contains(CLASS))
}

/// The first text of a list.
fn text_of_first(list: Option<&serde_json::Value>) -> Option<&str> {
    list?.get(0)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rerankers_are_recognized_like_the_reference() {
        let is_one = |dir: &Path, fields: serde_json::Value| {
            let config = Config::new(fields.as_object().unwrap().clone()).unwrap();
            super::is_one(dir, &config)
        };
        let dir = tempfile::tempdir().unwrap();
        let plain = json!({ "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3" });
        assert!(!is_one(dir.path(), plain.clone()));
        assert!(is_one(Path::new("/a/Qwen3-Reranker-0.6B/"), plain.clone()));
        let named = json!({ "_name_or_path": "Qwen/Qwen3-VL-Reranker-2B" });
        assert!(is_one(dir.path(), named));
        let class = json!({ "architectures": ["Qwen3ForSequenceClassification"] });
        assert!(is_one(dir.path(), class));
        std::fs::write(
            dir.path().join("README.md"),
            "text\n\n# Qwen3-Reranker-4B\n",
        )
        .unwrap();
        assert!(is_one(dir.path(), plain));
    }
}
