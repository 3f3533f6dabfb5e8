//! Vocabularies and general metadata against files of the reference's converter.
//!
//! `QUANTIER_VOCABULARIES` names a directory in which every checkpoint `NAME/` has a file
//! `NAME.gguf` written by the converter with `--vocab-only`. `QUANTIER_PRE` names the pre-tokenizer
//! of all of them, if not empty.

use quantier::convert::general::General;
use quantier_gguf::gguf::{Files, Model, Value};
use quantier_tokenizer::{Settings, VocabKind, import};
use std::path::{Path, PathBuf};

fn kind(class: &str) -> VocabKind {
    match class {
        "GemmaForCausalLM" => VocabKind::Gemma1,
        "Gemma2ForCausalLM" => VocabKind::Gemma2,
        "Gemma3ForCausalLM" => VocabKind::Gemma3,
        "Phi3ForCausalLM" => VocabKind::Phi3,
        "Qwen2ForCausalLM" | "Qwen3ForCausalLM" => VocabKind::Qwen,
        "Glm4ForCausalLM" => VocabKind::Glm4,
        "Glm4MoeForCausalLM" => VocabKind::GlmMoe,
        "GlmForCausalLM" | "ChatGLMModel" => VocabKind::ChatGlm,
        "HunYuanDenseV1ForCausalLM" | "HunYuanVLForConditionalGeneration" => VocabKind::Hunyuan,
        "HunYuanMoEV1ForCausalLM" => VocabKind::HunyuanMoe,
        "QWenLMHeadModel" => VocabKind::Qwen1,
        "StableLmForCausalLM" => VocabKind::StableLm,
        "InternLM2ForCausalLM" => VocabKind::InternLm2,
        "InternLM3ForCausalLM" => VocabKind::InternLm3,
        "XverseForCausalLM" => VocabKind::Xverse,
        "DeciLMForCausalLM" => VocabKind::Deci,
        "Plamo3ForCausalLM" => VocabKind::Plamo3,
        "GPTRefactForCausalLM" => VocabKind::Refact,
        "MPTForCausalLM" => VocabKind::Mpt,
        "MuseGlimmerForConditionalGeneration" => VocabKind::MuseGlimmer,
        "LLaDAModelLM" => VocabKind::Llada,
        "DreamModel" => VocabKind::Dream,
        "BertModel" => VocabKind::WordPiece,
        "RobertaModel" => VocabKind::Roberta,
        "XLMRobertaModel" => VocabKind::XlmRoberta,
        "NomicBertModel" => VocabKind::NomicBertMoe,
        "JinaBertModel" => VocabKind::JinaBert,
        "ModernBertModel" => VocabKind::ModernBert,
        "EuroBertModel" => VocabKind::EuroBert,
        "T5ForConditionalGeneration" => VocabKind::T5,
        "LlamaForCausalLM" | "MistralForCausalLM" | "MixtralForCausalLM" | "GraniteForCausalLM"
        | "SmolLM3ForCausalLM" => VocabKind::Llama,
        _ => VocabKind::ByteLevel,
    }
}

type Entries = Vec<(String, Value<'static>)>;

/// Our entries with their notes.
fn ours(dir: &Path) -> Result<(Entries, Vec<String>), String> {
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let class = config["architectures"][0].as_str().unwrap();
    let general = General::load(dir, None, None, &Default::default()).map_err(|e| e.to_string())?;
    let mut entries: Entries = general
        .entries()
        .map_err(|e| e.to_string())?
        .into_iter()
        .collect();
    let pre = std::env::var("QUANTIER_PRE")
        .ok()
        .filter(|pre| !pre.is_empty());
    let size = config["vocab_size"].as_u64();
    let vocabulary = import(
        dir,
        kind(class),
        &Settings {
            vocab_size: size,
            token_types: config["type_vocab_size"].as_u64().map(|count| count as u32),
            pre: pre.as_deref(),
        },
    )
    .map_err(|e| e.to_string())?;
    entries.extend(vocabulary.entries);
    Ok((entries, vocabulary.notes))
}

/// True for keys within the scope of this test.
fn concerns(key: &str) -> bool {
    let others = [
        "general.architecture",
        "general.type",
        "general.file_type",
        "general.quantization_version",
    ];
    (key.starts_with("general.") && !others.contains(&key)) || key.starts_with("tokenizer.")
}

fn first_difference(ours: &Entries, theirs: &Entries) -> Option<String> {
    for (i, (key, value)) in theirs.iter().enumerate() {
        match ours.get(i) {
            None => return Some(format!("{key} is missing")),
            Some((k, _)) if k != key => return Some(format!("key {i} is {k}, not {key}")),
            Some((_, v)) if v != value => {
                let of_strings = v.as_array().zip(value.as_array()).and_then(|(a, b)| {
                    let at = a.strings().zip(b.strings()).position(|(a, b)| a != b)?;
                    let text = |s: &[u8]| String::from_utf8_lossy(s).into_owned();
                    Some(format!(
                        "element {at}: {:?}, not {:?}",
                        text(a.strings().nth(at)?),
                        text(b.strings().nth(at)?)
                    ))
                });
                let of_values = v.as_array().zip(value.as_array()).and_then(|(a, b)| {
                    let at = a.values().zip(b.values()).position(|(a, b)| a != b)?;
                    Some(format!(
                        "element {at}: {}, not {}",
                        a.values().nth(at)?,
                        b.values().nth(at)?
                    ))
                });
                let plain = || {
                    format!(
                        "{:?}: {v}, not {:?}: {value}",
                        v.value_type(),
                        value.value_type()
                    )
                };
                return Some(format!(
                    "{key}: {}",
                    of_strings.or(of_values).unwrap_or_else(plain)
                ));
            }
            Some(_) => {}
        }
    }
    ours.get(theirs.len())
        .map(|(key, _)| format!("{key} is too much"))
}

#[test]
#[ignore = "needs files that the reference wrote: see the top of this file"]
fn vocabularies_match_the_reference() {
    let root = std::env::var_os("QUANTIER_VOCABULARIES").map(PathBuf::from);
    let root = root.expect("QUANTIER_VOCABULARIES names the directory with the checkpoints");
    let mut differing = 0;
    let mut dirs: Vec<_> = root
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .collect();
    dirs.sort();
    for dir in dirs {
        let name = dir.file_name().unwrap().to_str().unwrap();
        let ours = ours(&dir);
        let expected = root.join(format!("{name}.gguf"));
        if !expected.is_file() {
            println!(
                "{name:24} the reference wrote none; ours: {:?}",
                ours.map(|(_, notes)| notes)
            );
            continue;
        }
        let files = Files::open(&expected).unwrap();
        let model = Model::parse(&files).unwrap();
        let theirs: Entries = model
            .metadata()
            .iter()
            .filter(|(key, _)| concerns(key))
            .map(|(key, value)| (key.to_owned(), value.clone().into_owned()))
            .collect();
        let result = ours.map(|(ours, notes)| (first_difference(&ours, &theirs), notes));
        match result {
            Ok((None, notes)) => println!("{name:24} identical, {} keys {notes:?}", theirs.len()),
            Ok((Some(difference), notes)) => {
                println!("{name:24} DIFFERS: {difference} {notes:?}");
                differing += 1;
            }
            Err(error) => {
                println!("{name:24} ERROR: {error}");
                differing += 1;
            }
        }
    }
    assert_eq!(differing, 0);
}
