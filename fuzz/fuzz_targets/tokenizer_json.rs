//! Any bytes as a `tokenizer.json`: an error, or a text and a type for each token.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use quantier_tokenizer::{Settings, VocabKind, import};
use std::path::PathBuf;
use std::sync::LazyLock;

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = scratch::directory("tokenizer_json");
    let config = r#"{"bos_token": "a", "eos_token": "<end>", "pad_token": {"content": "<pad>", "special": true},
        "add_bos_token": true, "clean_up_tokenization_spaces": true, "added_tokens_decoder": {
        "9": {"content": "<end>", "special": true}, "10": {"content": "<tool>"}}}"#;
    std::fs::write(dir.join("tokenizer_config.json"), config).expect("write");
    std::fs::write(
        dir.join("config.json"),
        r#"{"bos_token_id": 1, "eos_token_id": 2}"#,
    )
    .expect("write");
    dir
});

/// Runs before the time limit applies: initialization is slow in an instrumented build.
fn initialize() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        if !panic
            .location()
            .is_some_and(|at| at.file().contains("/tokenizers-"))
        {
            std::process::abort();
        }
    }));
    std::fs::write(
        DIR.join("tokenizer.json"),
        include_bytes!("../seeds/tokenizer_json/byte_level.json"),
    )
    .expect("write");
    import(&DIR, VocabKind::ByteLevel, &Settings::default()).expect("a seed");
}

// The tokenizers library panics on some inputs; the reader turns that into errors, so the hook only
// prints. Uncaught panics still end the fuzzer.
fuzz_target!(
    init: initialize(),
    |file: &[u8]| {
        std::fs::write(DIR.join("tokenizer.json"), file).expect("write");
        for (kind, pre) in [(VocabKind::ByteLevel, None), (VocabKind::Llama, Some("named"))] {
            let Ok(vocabulary) = import(&DIR, kind, &Settings { pre, ..Settings::default() }) else { continue };
            for key in ["tokens", "token_type"] {
                let array = vocabulary.entries.get(&format!("tokenizer.ggml.{key}")).and_then(|v| v.as_array());
                assert_eq!(array.map_or(0, |a| a.len()), vocabulary.tokens, "{key}");
            }
        }
    }
);
