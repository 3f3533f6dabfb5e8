//! Any bytes as a `tokenizer.model`: an error, or a text, a score and a type for each token.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use quantier_tokenizer::{Settings, VocabKind, import};
use std::path::PathBuf;
use std::sync::LazyLock;

/// The model's companion files, which add tokens to its vocabulary.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = scratch::directory("tokenizer_model");
    let config = r#"{"bos_token": "<s>", "added_tokens_decoder": {
        "1": {"content": "<s>", "special": true}, "2": {"content": "▁▁x"}, "6": {"content": "<|end|>"}}}"#;
    std::fs::write(dir.join("tokenizer_config.json"), config).expect("write");
    std::fs::write(
        dir.join("added_tokens.json"),
        r#"{"seven": 7, "beyond": 9000}"#,
    )
    .expect("write");
    std::fs::write(
        dir.join("config.json"),
        r#"{"bos_token_id": 1, "eos_token_id": 2}"#,
    )
    .expect("write");
    dir
});

fuzz_target!(|file: &[u8]| {
    std::fs::write(DIR.join("tokenizer.model"), file).expect("write");
    for (kind, vocab_size) in [
        (VocabKind::Llama, None),
        (VocabKind::Gemma2, Some(12)),
        (VocabKind::Phi3, Some(12)),
        (VocabKind::Qwen, Some(3)),
    ] {
        let Ok(vocabulary) = import(&DIR, kind, &Settings { vocab_size, ..Settings::default() }) else {
            continue;
        };
        assert!(
            vocabulary.tokens > 0 && vocab_size.is_none_or(|n| n as usize == vocabulary.tokens)
        );
        for key in ["tokens", "scores", "token_type"] {
            let array = vocabulary
                .entries
                .get(&format!("tokenizer.ggml.{key}"))
                .and_then(|v| v.as_array());
            assert_eq!(array.map(|a| a.len()), Some(vocabulary.tokens), "{key}");
        }
    }
});
