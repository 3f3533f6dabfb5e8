//! Vocabularies of all families against the output of the reference's converter for the same files.
//!
//! `testdata/NAME` is a checkpoint without weights; `testdata/vocabularies.golden` has a line for every
//! key of the reference's output. Both are renewed by `scripts/goldens.sh`.

use quantier_gguf::gguf::{Array, Value, ValueType};
use quantier_tokenizer::{Settings, VocabKind, import};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::Path;

const KINDS: [(&str, VocabKind); 37] = [
    ("chatglm", VocabKind::ChatGlm),
    ("codegen_slow", VocabKind::ByteLevel),
    ("deci", VocabKind::Deci),
    ("deci_llama3", VocabKind::Deci),
    ("dream", VocabKind::Dream),
    ("glm4", VocabKind::Glm4),
    ("glm_moe", VocabKind::GlmMoe),
    ("gpt2_slow", VocabKind::ByteLevel),
    ("gpt2_slow_plain", VocabKind::ByteLevel),
    ("hunyuan", VocabKind::Hunyuan),
    ("hunyuan_moe", VocabKind::HunyuanMoe),
    ("hunyuan_tiktoken", VocabKind::Hunyuan),
    ("hunyuan_vl", VocabKind::Hunyuan),
    ("kimi", VocabKind::Kimi),
    ("kimi_k2", VocabKind::KimiK2),
    ("llada", VocabKind::Llada),
    ("mpt", VocabKind::Mpt),
    ("muse_glimmer", VocabKind::MuseGlimmer),
    ("muse_glimmer_unknown", VocabKind::MuseGlimmer),
    ("plamo3", VocabKind::Plamo3),
    ("qwen1", VocabKind::Qwen1),
    ("qwen1_ids", VocabKind::Qwen1),
    ("qwen2_slow", VocabKind::Qwen),
    ("refact", VocabKind::Refact),
    ("stablelm_tiktoken", VocabKind::StableLm),
    ("tekken", VocabKind::Llama),
    ("tekken_v7", VocabKind::Llama),
    ("xverse", VocabKind::Xverse),
    ("bert", VocabKind::WordPiece),
    ("roberta", VocabKind::Roberta),
    ("xlm_roberta", VocabKind::XlmRoberta),
    ("xlm_roberta_json", VocabKind::XlmRoberta),
    ("nomic_bert_moe", VocabKind::NomicBertMoe),
    ("jina_bert_words", VocabKind::JinaBert),
    ("modern_bert", VocabKind::ModernBert),
    ("euro_bert", VocabKind::EuroBert),
    ("t5", VocabKind::T5),
];

/// Type, length and SHA-256 of an array: of each element the length and the bytes.
fn digest(array: &Array<'_>) -> String {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u32).to_le_bytes());
        hash.update(bytes);
    };
    let name = match array.element() {
        ValueType::String => "string",
        ValueType::F32 => "float32",
        ValueType::U8 => "uint8",
        _ => "int32",
    };
    array.strings().for_each(&mut add);
    for value in array.values() {
        match value {
            Value::F32(number) => add(&number.to_le_bytes()),
            Value::I32(number) => add(&number.to_le_bytes()),
            Value::U8(number) => add(&u32::from(number).to_le_bytes()),
            _ => {}
        }
    }
    let digest = quantier_gguf::hex(&hash.finalize());
    format!("{name} {} {digest}", array.len())
}

#[test]
fn vocabularies_of_all_families_match_the_reference() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let golden = std::fs::read_to_string(data.join("vocabularies.golden")).unwrap();
    for (name, kind) in KINDS {
        let dir = data.join(name);
        let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let size = config["vocab_size"].as_u64();
        let vocabulary = import(
            &dir,
            kind,
            &Settings {
                vocab_size: size,
                token_types: config["type_vocab_size"].as_u64().map(|count| count as u32),
                pre: Some("qwen2"),
            },
        )
        .unwrap();
        let mut ours = String::new();
        for (key, value) in vocabulary.entries.iter() {
            let shown = match value {
                Value::Array(array) => digest(array),
                Value::String(_) => serde_json::Value::from(value.as_str().unwrap()).to_string(),
                other => other.to_string(),
            };
            writeln!(ours, "{name} {key} {shown}").unwrap();
        }
        let theirs: String = golden
            .split_inclusive('\n')
            .filter(|line| line.starts_with(&format!("{name} ")))
            .collect();
        assert_eq!(
            ours, theirs,
            "{name} (scripts/goldens.sh renews the golden file from the reference)"
        );
    }
}
