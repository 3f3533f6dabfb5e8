//! Any bytes as a tiktoken file, `tekken.json`, `tokenizer.jsonl` or `merges.txt`: an error, or a
//! text and a type for each token.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use quantier_tokenizer::{Settings, VocabKind, import};
use std::path::PathBuf;
use std::sync::LazyLock;

/// File names, each with a kind of vocabulary that reads it.
const FILES: [(&str, VocabKind); 5] = [
    ("qwen.tiktoken", VocabKind::Qwen1),
    ("hy.tiktoken", VocabKind::HunyuanMoe),
    ("tekken.json", VocabKind::Mistral),
    ("tokenizer.jsonl", VocabKind::Plamo2),
    ("merges.txt", VocabKind::ByteLevel),
];

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = scratch::directory("tiktoken");
    let vocab = r#"{"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġa": 4}"#;
    std::fs::write(dir.join("vocab.json"), vocab).expect("write");
    let config = r#"{"tokenizer_class": "GPT2Tokenizer", "bos_token": "a"}"#;
    std::fs::write(dir.join("tokenizer_config.json"), config).expect("write");
    dir
});

fuzz_target!(|file: &[u8]| {
    for (name, kind) in FILES {
        std::fs::write(DIR.join(name), file).expect("write");
        let Ok(vocabulary) = import(&DIR, kind, &Settings { pre: Some("gpt-2"), ..Settings::default() }) else {
            continue;
        };
        for key in ["tokens", "token_type"] {
            let array = vocabulary
                .entries
                .get(&format!("tokenizer.ggml.{key}"))
                .and_then(|v| v.as_array());
            assert_eq!(array.map_or(0, |a| a.len()), vocabulary.tokens, "{key}");
        }
    }
});
