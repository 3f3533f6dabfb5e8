//! Metadata from cards, names and files.

use super::naming::*;
use super::*;

fn directory(name: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join(name);
    std::fs::create_dir(&dir).unwrap();
    for (file, text) in files {
        std::fs::write(dir.join(file), text).unwrap();
    }
    (root, dir)
}

/// Keys and values as text.
fn entries(general: &General) -> Vec<(String, String)> {
    let shown = |value: Gguf<'static>| match &value {
        Gguf::Array(a) => a
            .strings()
            .map(|s| String::from_utf8_lossy(s).into_owned())
            .collect::<Vec<_>>()
            .join("|"),
        other => other.to_string(),
    };
    general
        .entries()
        .unwrap()
        .into_iter()
        .map(|(k, v)| (k["general.".len()..].to_owned(), shown(v)))
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect()
}

/// Basename, size, finetune and version.
fn parts(id: &str, extent: Extent) -> [Option<String>; 4] {
    let parts = id_parts(id, extent);
    [
        parts.basename,
        parts.size_label,
        parts.finetune,
        parts.version,
    ]
}

#[test]
fn ids_are_taken_apart() {
    let some = |parts: [&str; 4]| parts.map(|p| Some(p.to_owned()).filter(|p| !p.is_empty()));
    for (id, expected) in [
        (
            "Mistral-7B-Instruct-v0.2",
            ["Mistral", "7B", "Instruct", "v0.2"],
        ),
        (
            "bigscience/bloom-7b1-petals",
            ["bloom", "7.1B", "petals", ""],
        ),
        (
            "Qwen/Qwen1.5-MoE-A2.7B-Chat",
            ["Qwen1.5-MoE", "A2.7B", "Chat", ""],
        ),
        (
            "stabilityai/stablelm-2-1_6b",
            ["stablelm-2", "1.6B", "", ""],
        ),
        (
            "microsoft/Phi-3-mini-4k-instruct",
            ["Phi-3-mini", "4K", "instruct", ""],
        ),
        ("model", ["", "", "", ""]),
        ("a-b-c", ["", "", "", ""]),
        ("Mixtral-8x7B-v0.1", ["Mixtral", "8x7B", "", "v0.1"]),
        ("Meta-Llama-3-8B-Q4_K_M", ["Meta-Llama-3", "8B", "", ""]),
    ] {
        assert_eq!(parts(id, Extent::Unknown), some(expected), "{id}");
    }
    // A size that the model cannot have is a context length.
    assert_eq!(
        parts(
            "microsoft/Phi-3-mini-4k-instruct",
            Extent::Model(3_800_000_000)
        ),
        some(["Phi-3", "mini", "4k-instruct", ""])
    );
    assert_eq!(
        parts("Llama-3-8B", Extent::Model(8_030_000_000)),
        some(["Llama-3", "8B", "", ""])
    );
    // An adapter may change few of its base's matrices, and has no more weights.
    assert_eq!(
        parts("Llama-3-8B-LoRA-4k", Extent::Adapter(40_000_000)),
        some(["Llama-3", "8B", "4k", ""])
    );
    assert_eq!(
        id_parts("A model with spaces", Extent::Unknown)
            .full_name
            .as_deref(),
        Some("A model with spaces")
    );
    assert_eq!(id_parts("./x-7B", Extent::Unknown).organization, None);
}

#[test]
fn titles_and_sizes() {
    assert_eq!(title("meta-llama"), "Meta Llama");
    assert_eq!(
        title("Mistral-7b-v0.1-qwen2-it's"),
        "Mistral 7b v0.1 Qwen2 It'S"
    );
    for (weights, label) in [
        (8_030_261_248, "8.0B"),
        (70_553_706_496, "71B"),
        (134_515_008, "135M"),
        (1_000_000, "1000K"),
        (1_234, "1.2K"),
        (99, "0.10K"),
        (1_500_000_000_000, "1.5T"),
    ] {
        assert_eq!(rounded(weights), label);
    }
    assert_eq!(
        size_label(46_700_000_000, 1_600_000_000, 5_600_000_000, 8),
        "8x7.2B"
    );
}

#[test]
fn file_names() {
    let name = FileName {
        name: Some("My Model/x"),
        size_label: Some("7B"),
        encoding: Some("f16"),
        ..FileName::default()
    };
    assert_eq!(name.stem(), "My-Model-x-7B-F16");
    assert_eq!(
        FileName {
            basename: Some("Base"),
            finetune: Some("a b"),
            version: Some("v1"),
            ..name
        }
        .stem(),
        "Base-7B-a-b-v1-F16"
    );
    assert_eq!(
        FileName {
            name: None,
            ..FileName::default()
        }
        .stem(),
        "ggml-model"
    );
    assert_eq!(
        fill_template("m.{ftype}.{OUTTYPE}{{}}.gguf", "BF16").unwrap(),
        "m.bf16.BF16{}.gguf"
    );
    for wrong in ["{x}", "{", "a}", "{ftype"] {
        assert!(fill_template(wrong, "F16").is_err(), "{wrong}");
    }
}

#[test]
fn everything_from_a_checkpoint() {
    let card = "---\nlicense: [mit, apache-2.0]\nlanguage: [en, de]\ntags:\n- a\npipeline_tag: text-generation\n\
                base_model: meta-llama/Llama-3-8B-v2\ndatasets:\n- https://huggingface.co/org/set-v1.0\n\
                model_creator: Someone\n---\n";
    let (_root, dir) = directory(
        "Tiny-Llama-1.1B-chat-v0.3",
        &[
            ("README.md", card),
            ("config.json", r#"{"_name_or_path": "/home/x/y"}"#),
            (
                "generation_config.json",
                r#"{"temperature": 0.5, "top_k": 40, "repetition_penalty": 1, "top_p": null}"#,
            ),
        ],
    );
    let general = General::load(
        &dir,
        None,
        None,
        &ParameterCount {
            total: 1_100_000_000,
            ..ParameterCount::default()
        },
    )
    .unwrap();
    let expected = pairs(&[
        ("sampling.top_k", "40"),
        ("sampling.temp", "0.5"),
        ("sampling.penalty_repeat", "1"),
        ("name", "Tiny Llama 1.1B Chat v0.3"),
        ("author", "Someone"),
        ("version", "v0.3"),
        ("finetune", "chat"),
        ("basename", "Tiny-Llama"),
        ("size_label", "1.1B"),
        ("license", "mit,apache-2.0"),
        ("base_model.count", "1"),
        ("base_model.0.name", "Llama 3 8B v2"),
        ("base_model.0.version", "v2"),
        ("base_model.0.organization", "Meta Llama"),
        (
            "base_model.0.repo_url",
            "https://huggingface.co/meta-llama/Llama-3-8B-v2",
        ),
        ("dataset.count", "1"),
        ("dataset.0.name", "Set v1.0"),
        ("dataset.0.version", "v1.0"),
        ("dataset.0.organization", "Org"),
        ("dataset.0.repo_url", "https://huggingface.co/org/set-v1.0"),
        ("tags", "a|text-generation"),
        ("languages", "en|de"),
    ]);
    assert_eq!(entries(&general), expected);
    assert_eq!(
        general.file_name("F16").stem(),
        "Tiny-Llama-1.1B-chat-v0.3-F16"
    );
    assert_eq!(
        general.vocabulary_file_name().stem(),
        "Tiny-Llama-chat-v0.3-vocab"
    );
}

#[test]
fn the_user_overrides() {
    let (root, dir) = directory(
        "Foo-7B",
        &[("README.md", "---\nauthor: A\ntags: [x]\n---\n")],
    );
    let file = root.path().join("over.json");
    std::fs::write(&file, r#"{"general.author": null, "general.url": "u", "general.sampling.top_p": 0.5, "general.tags": ["y"], "general.name": "N"}"#)
        .unwrap();
    let general =
        General::load(&dir, Some(&file), Some("Given"), &ParameterCount::default()).unwrap();
    let expected = pairs(&[
        ("sampling.top_p", "0.5"),
        ("name", "Given"),
        ("basename", "Foo"),
        ("size_label", "7B"),
        ("url", "u"),
        ("tags", "y"),
    ]);
    assert_eq!(entries(&general), expected);
    let missing = General::load(
        &dir,
        Some(&root.path().join("no.json")),
        None,
        &ParameterCount::default(),
    );
    assert!(missing.unwrap_err().to_string().contains("no such file"));
}

#[test]
fn wrong_kinds_are_named() {
    for (file, text, what) in [
        (
            "README.md",
            "---\nauthor: {a: b}\n---\n",
            "general.author is an object",
        ),
        (
            "generation_config.json",
            r#"{"top_k": "many"}"#,
            "general.sampling.top_k is a string",
        ),
        (
            "generation_config.json",
            r#"{"top_k": 1.5}"#,
            "a whole number is expected",
        ),
    ] {
        let (_root, dir) = directory("x", &[(file, text)]);
        let error = General::load(&dir, None, None, &ParameterCount::default())
            .unwrap()
            .entries()
            .unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    let (_root, dir) = directory("x", &[("README.md", "---\na: [\n---\n")]);
    let error = General::load(&dir, None, None, &ParameterCount::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("README.md") && error.contains("line"),
        "{error}"
    );
    let (_root, dir) = directory("x", &[("config.json", "{\n\"a\": ,\n}")]);
    let error = General::load(&dir, None, None, &ParameterCount::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("line 2 column 6"), "{error}");
}
