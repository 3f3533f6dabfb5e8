//! Whole vocabularies from small files, valid and invalid.

use super::*;
use quantier_gguf::gguf::Array;
use serde_json::json;

/// A directory with these files.
fn directory(files: &[(&str, String)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// A byte-level tokenizer with nine tokens of its own and two added ones, split like Qwen2's.
fn tokenizer() -> serde_json::Value {
    let split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let added = |id, content: &str, special: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [added(9, "<end>", true), added(10, "<tool>", false)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "1": 4, "!": 5, "ab": 6, "abc": 7, "Ġa": 8},
            "merges": [["a", "b"], ["ab", "c"], ["Ġ", "a"]]}
    })
}

fn byte_level(tokenizer: serde_json::Value, config: serde_json::Value) -> Result<Vocabulary> {
    let dir = directory(&[
        ("tokenizer.json", tokenizer.to_string()),
        ("tokenizer_config.json", config.to_string()),
    ]);
    import(
        dir.path(),
        VocabKind::ByteLevel,
        &Settings {
            vocab_size: Some(13),
            ..Settings::default()
        },
    )
}

fn strings(vocabulary: &Vocabulary, key: &str) -> Vec<String> {
    let array = vocabulary.entries.get(key).unwrap().as_array().unwrap();
    array
        .strings()
        .map(|s| String::from_utf8(s.to_vec()).unwrap())
        .collect()
}

#[test]
fn byte_level_vocabularies_have_tokens_types_and_merges() {
    let config = json!({
        "eos_token": "<end>", "add_eos_token": true,
        "chat_template": [{"name": "tool use", "template": "T"}, {"name": "default", "template": "D"}]
    });
    let vocabulary = byte_level(tokenizer(), config).unwrap();
    let keys: Vec<&str> = vocabulary.entries.iter().map(|(key, _)| key).collect();
    let expected = [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.chat_template.tool_use",
        "tokenizer.chat_templates",
        "tokenizer.chat_template",
    ];
    assert_eq!(keys, expected);
    assert_eq!(vocabulary.tokens, 13);
    let tokens = strings(&vocabulary, "tokenizer.ggml.tokens");
    assert_eq!(
        tokens[7..],
        ["abc", "Ġa", "<end>", "<tool>", "[PAD11]", "[PAD12]"]
    );
    assert_eq!(
        strings(&vocabulary, "tokenizer.ggml.merges"),
        ["a b", "ab c", "Ġ a"]
    );
    let types: Vec<_> = vocabulary
        .entries
        .get("tokenizer.ggml.token_type")
        .and_then(Value::as_array)
        .map(Array::values)
        .unwrap()
        .collect();
    assert_eq!(types[8..], [1, 3, 4, 5, 5].map(Value::I32));
    // The post-processor overrides the configuration.
    assert_eq!(
        vocabulary.entries.get("tokenizer.ggml.add_eos_token"),
        Some(&Value::Bool(false))
    );
    assert_eq!(
        vocabulary.entries.get("tokenizer.ggml.pre"),
        Some(&Value::str("qwen2"))
    );
    assert!(
        vocabulary.notes[0].contains("like qwen2's"),
        "{:?}",
        vocabulary.notes
    );
}

#[test]
fn families_can_rename_pre_tokenizers() {
    let mut llama3 = tokenizer();
    let split = &mut llama3["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
    *split = json!(split.as_str().unwrap().replace(r"\p{N}|", r"\p{N}{1,3}|"));
    let added = llama3["added_tokens"].as_array_mut().unwrap();
    for (id, content) in [(11, "<|endoftext|>"), (12, "<|user|>")] {
        added.push(json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
    }
    let dir = directory(&[("tokenizer.json", llama3.to_string())]);
    for (kind, pre) in [
        (VocabKind::ByteLevel, "dbrx"),
        (VocabKind::ChatGlm, "chatglm-bpe"),
    ] {
        let vocabulary = import(dir.path(), kind, &Settings::default()).unwrap();
        let entry = |name: &str| vocabulary.entries.get(&format!("tokenizer.ggml.{name}"));
        assert_eq!(entry("pre"), Some(&Value::str(pre)));
        let eot = (kind == VocabKind::ChatGlm).then_some(&Value::U32(12));
        assert_eq!(entry("eot_token_id"), eot);
    }
    let error = import(dir.path(), VocabKind::GlmMoe, &Settings::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("lacks the added token \"[gMASK]\""),
        "{error}"
    );
}

#[test]
fn users_can_set_the_pre_tokenizer() {
    let dir = directory(&[("tokenizer.json", tokenizer().to_string())]);
    let vocabulary = import(
        dir.path(),
        VocabKind::Qwen,
        &Settings {
            pre: Some("mine"),
            ..Settings::default()
        },
    )
    .unwrap();
    assert_eq!(
        vocabulary.entries.get("tokenizer.ggml.pre"),
        Some(&Value::str("mine"))
    );
    assert!(vocabulary.notes.is_empty() && vocabulary.tokens == 11);
}

#[test]
fn unreadable_tokenizers_are_explained() {
    let with = |pointer: &str, value: serde_json::Value| {
        let mut tokenizer = tokenizer();
        *tokenizer.pointer_mut(pointer).unwrap() = value;
        tokenizer
    };
    let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}], "pair": [], "special_tokens": {}});
    let slot = json!({"Sequence": {"id": "A", "type_id": 0}});
    let twice = json!({"type": "TemplateProcessing", "single": [slot, slot], "pair": [], "special_tokens": {}});
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let doubled = json!({"type": "Sequence", "normalizers": vec![double; 11]});
    let step = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let steps = json!({"type": "Sequence", "pretokenizers": vec![step; 11]});
    let digits = json!({"type": "Sequence", "pretokenizers": vec![json!({"type": "Digits", "individual_digits": true}); 64]});
    let split = json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated", "invert": false});
    let splits = json!({"type": "Sequence", "pretokenizers": vec![split; 17]});
    // The library searches for the character beyond the start of the token.
    let strip = json!({"type": "Strip", "content": "d", "start": 0, "stop": 9});
    let mut stripped = with("/decoder", strip);
    stripped["added_tokens"][0]["content"] = json!("d");
    for (tokenizer, what) in [
        (
            with("/model/type", json!("Unigram")),
            "its model is Unigram; only BPE",
        ),
        (
            with("/model/vocab", json!([1])),
            "its vocabulary is an array",
        ),
        (
            with("/model/vocab/a", json!(-1)),
            "the id of token \"a\" is not a whole number",
        ),
        (
            with("/model/vocab/a", json!(u64::MAX)),
            "the largest allowed",
        ),
        (
            with("/model/vocab/abc", json!(13)),
            "config.json has a vocab_size of 13",
        ),
        (
            with("/model/merges", json!([["a", "z"]])),
            "the tokenizers library cannot read it",
        ),
        (
            with("/model/merges/1", json!(7)),
            "the tokenizers library cannot read it",
        ),
        (
            with(
                "/pre_tokenizer",
                json!({"type": "FixedLength", "length": 0}),
            ),
            "pre_tokenizer FixedLength",
        ),
        (
            with(
                "/pre_tokenizer/pretokenizers/0/pattern",
                json!({"Regex": "("}),
            ),
            "cannot read it",
        ),
        (
            with(
                "/pre_tokenizer/pretokenizers/0/pattern",
                json!({"Regex": "\\s"}),
            ),
            "splits the probe text differently",
        ),
        (with("/pre_tokenizer", json!(null)), "--pre NAME"),
        (with("/post_processor", template), "adds \"<x>\""),
        (with("/post_processor", twice), "repeats the text"),
        (
            with("/normalizer", doubled),
            "its normalizer makes a text more than 1024 times longer",
        ),
        (
            with("/pre_tokenizer", steps),
            "its pre_tokenizer makes a text",
        ),
        (
            with("/pre_tokenizer", splits),
            "more than 16 regular expressions",
        ),
        (with("/pre_tokenizer", digits), "more than 64 parts"),
        (
            with(
                "/normalizer",
                json!({"type": "Prepend", "prepend": "x".repeat(99)}),
            ),
            "more than 64 bytes to a text",
        ),
        (
            with(
                "/pre_tokenizer/pretokenizers/0/pattern",
                json!({"Regex": "(a{20,200}){99}"}),
            ),
            "counted repetitions",
        ),
        (
            with(
                "/pre_tokenizer/pretokenizers/0/pattern",
                json!({"Regex": "a".repeat(9000)}),
            ),
            "more than 8192 bytes",
        ),
        (
            with("/added_tokens/0/content", json!("x".repeat(2000))),
            "an added token has 2000 bytes",
        ),
        (stripped, "\"d\" cannot be encoded: it panics"),
        (
            with("/added_tokens", json!({})),
            "added_tokens is an object",
        ),
        (with("/model", json!(null)), "only BPE"),
        (json!({}), "it has no model"),
    ] {
        let error = byte_level(tokenizer, json!({})).unwrap_err().to_string();
        assert!(
            error.contains("tokenizer.json: ") && error.contains(what),
            "{what}: {error}"
        );
    }
}

#[test]
fn bad_files_are_named_with_line_and_column() {
    for (file, text, what) in [
        (
            "tokenizer.json",
            "{\n  \"model\": }",
            "tokenizer.json: not valid JSON: expected value at line 2 column 12",
        ),
        ("tokenizer.json", "[]", "tokenizer.json: holds an array"),
        (
            "tokenizer_config.json",
            "{\"a\"",
            "tokenizer_config.json: not valid JSON",
        ),
        (
            "config.json",
            "{\"bos_token_id\": -5}",
            "config.json: the id of the bos token is -5",
        ),
        ("chat_template.jinja", "\u{0}", ""),
    ] {
        let dir = directory(&[
            ("tokenizer.json", tokenizer().to_string()),
            (file, text.to_owned()),
        ]);
        match import(dir.path(), VocabKind::ByteLevel, &Settings::default()) {
            Err(error) => assert!(error.to_string().contains(what), "{error}"),
            Ok(_) => assert_eq!(what, ""),
        }
    }
    let dir = directory(&[
        ("tokenizer_config.json", "{\"x\": 1}".to_owned()),
        ("tokenizer.json", tokenizer().to_string()),
    ]);
    std::fs::write(dir.path().join("chat_template.jinja"), b"ok\nno\xff").unwrap();
    let error = import(dir.path(), VocabKind::ByteLevel, &Settings::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("chat_template.jinja: line 2 is not UTF-8"),
        "{error}"
    );
    let empty = directory(&[]);
    for kind in [
        VocabKind::ByteLevel,
        VocabKind::Qwen,
        VocabKind::Llama,
        VocabKind::SentencePiece,
        VocabKind::Nemotron,
        VocabKind::Ernie,
        VocabKind::Gemma1,
        VocabKind::Gemma2,
        VocabKind::Gemma3,
        VocabKind::Phi3,
    ] {
        let error = import(empty.path(), kind, &Settings::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no tokenizer."), "{error}");
    }
}

#[test]
fn truncated_tokenizers_are_errors() {
    let text = tokenizer().to_string();
    for length in 0..text.len() {
        if text.is_char_boundary(length) {
            let dir = directory(&[("tokenizer.json", text[..length].to_owned())]);
            assert!(
                import(
                    dir.path(),
                    VocabKind::ByteLevel,
                    &Settings {
                        pre: Some("x"),
                        ..Settings::default()
                    }
                )
                .is_err(),
                "cut at {length}"
            );
        }
    }
}
