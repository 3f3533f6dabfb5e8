//! The fuzzers start from these files. They are what our writer writes; a stale one fails here.

use crate::support::gguf::{Tiny, dat, everything, imatrix, small};
use crate::support::torch::{TorchFile, View, archive};
use quantier_gguf::hessian::{File, Head, INDEX, Index, Part, Writing, triangle, write};
use quantier_gguf::{safetensors, torch};
use quantier_round::InputHessians;
use quantier_tokenizer::{Settings, VocabKind, import};
use serde_json::{Value, json};
use std::path::Path;

/// A header of several types and shapes, and its data.
fn tensors() -> Vec<u8> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
        "none": {"dtype": "U8", "shape": [0, 4], "data_offsets": [16, 16]},
    })
    .to_string();
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &[7; 16],
    ]
    .concat()
}

/// Tensors of two types, a parameter, and a transposed view of a shared storage.
fn torch_file() -> TorchFile {
    let mut file = TorchFile::default();
    let halves = file.storage("HalfStorage", vec![7; 48]);
    let floats = file.storage("FloatStorage", vec![7; 8]);
    file.tensor("b.weight", &View::whole(halves, &[4, 6]));
    file.parameter("a.bias", &View::whole(floats, &[2]));
    let transposed = View {
        storage: halves,
        offset: 6,
        shape: vec![6, 3],
        strides: vec![1, 6],
    };
    file.tensor("tied", &transposed);
    file
}

/// A SentencePiece model with a piece of every type, a training field, and a piece that is text
/// alone.
fn pieces() -> Vec<u8> {
    let mut model = Vec::new();
    for (text, kind) in [
        ("<unk>", 2),
        ("<s>", 3),
        ("</s>", 3),
        ("<0x0A>", 6),
        ("\u{2581}a", 1),
        ("x", 4),
        ("u", 5),
    ] {
        let score = (-1.5f32).to_le_bytes();
        let piece = [
            &[0x0a, text.len() as u8],
            text.as_bytes(),
            &[0x15],
            &score,
            &[0x18, kind],
        ]
        .concat();
        model.extend([0x0a, piece.len() as u8]);
        model.extend(piece);
    }
    model.extend([0x12, 3, 0x98, 0x02, 0x01, 0x0a, 3, 0x0a, 1, b'y']);
    model
}

/// A small `tokenizer.json` with these parts.
fn tokenizer(parts: Value, byte_fallback: bool) -> Vec<u8> {
    let mut tokenizer = json!({
        "added_tokens": [{"id": 9, "content": "<end>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false}],
        "model": {"type": "BPE", "unk_token": null, "byte_fallback": byte_fallback,
            "vocab": {"a": 0, "b": 1, "c": 2, "\u{120}": 3, "1": 4, "!": 5, "ab": 6, "<0x0A>": 7, "\u{2581}": 8},
            "merges": [["a", "b"]]}
    });
    for (key, value) in parts.as_object().unwrap() {
        tokenizer[key] = value.clone();
    }
    tokenizer.to_string().into_bytes()
}

/// As GPT-2 has it.
fn byte_level() -> Vec<u8> {
    let step = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let nfc = json!({"type": "NFC"});
    tokenizer(
        json!({"normalizer": nfc, "pre_tokenizer": step, "post_processor": step, "decoder": step}),
        false,
    )
}

/// Split by a pattern, with a template around.
fn split() -> Vec<u8> {
    let step = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let pattern = json!({"Regex": r"\p{N}{1,3}|\s+(?!\S)"});
    let pattern =
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let end = json!({"SpecialToken": {"id": "<end>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    tokenizer(
        json!({
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, digits, step]},
            "post_processor": {"type": "TemplateProcessing", "single": [end, text], "pair": [text],
                "special_tokens": {"<end>": {"id": "<end>", "ids": [9], "tokens": ["<end>"]}}},
            "decoder": step
        }),
        false,
    )
}

/// In the manner of SentencePiece.
fn fallback() -> Vec<u8> {
    tokenizer(
        json!({
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
        }),
        true,
    )
}

/// Covariances of a plain matrix and of two experts, and the index of both, by their names.
fn covariances() -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let key = [9; 32];
    let of = |name: &str, columns: usize, rows: &[u64], parts: &[(Part, usize)]| {
        let head = Head {
            key,
            columns,
            rows: rows.to_vec(),
            tensors: vec![format!("{name}.a"), format!("{name}.b")],
        };
        let writing = |(part, rows): &(Part, usize)| {
            let numbers: Vec<f32> = match part {
                // The identity, so that it has a factor.
                Part::Mean(_) => (0..columns)
                    .flat_map(|i| (i..columns).map(move |j| f32::from(u8::from(i == j))))
                    .collect(),
                Part::Sample(_) => (0..rows * columns).map(|i| i as f32 / 4.0).collect(),
            };
            assert!(matches!(part, Part::Sample(_)) || numbers.len() == triangle(columns));
            Writing {
                part: *part,
                rows: *rows,
                pieces: Box::new(move |put| put(&numbers)),
            }
        };
        let parts: Vec<_> = parts.iter().map(writing).collect();
        let file = format!("{name}.gguf");
        let (checksum, _) = write(&dir.path().join(&file), &head, &parts).unwrap();
        (file, checksum)
    };
    let plain = of(
        "plain",
        8,
        &[40],
        &[(Part::Mean(None), 0), (Part::Sample(None), 2)],
    );
    let of_experts = [
        (Part::Mean(None), 0),
        (Part::Mean(Some(1)), 0),
        (Part::Sample(None), 1),
        (Part::Sample(Some(1)), 16),
    ];
    let experts = of("experts", 3, &[2, 40], &of_experts);
    Index {
        key,
        files: vec![plain, experts],
    }
    .write(dir.path())
    .unwrap();
    let read = |name: &str| {
        (
            format!("covariance/{name}"),
            std::fs::read(dir.path().join(name)).unwrap(),
        )
    };
    ["plain.gguf", "experts.gguf", INDEX].map(read).into()
}

/// A model for a big-endian machine.
fn big_endian(model: &Tiny) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    model.write_big_endian(&path).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn seeds_are_current() {
    let seeds = [
        ("gguf/everything.gguf", everything().bytes()),
        ("gguf/small.gguf", small().bytes()),
        ("gguf/imatrix.gguf", imatrix().bytes()),
        ("gguf/big_endian.gguf", big_endian(&everything())),
        ("imatrix/imatrix.gguf", imatrix().bytes()),
        (
            "imatrix/imatrix.dat",
            dat(&[
                ("a.weight", 4, &[1.0, 2.0, 0.0, 0.5]),
                ("b.weight", 1, &[3.0; 8]),
            ]),
        ),
        ("safetensors/small.safetensors", tensors()),
        ("torch/small.bin", torch_file().bytes()),
        ("torch/wide.bin", archive(&torch_file().entries(), true)),
        ("torch/pickle.pkl", torch_file().pickle()),
        ("tokenizer_model/small.model", pieces()),
        ("tokenizer_json/byte_level.json", byte_level()),
        ("tokenizer_json/split.json", split()),
        ("tokenizer_json/fallback.json", fallback()),
    ];
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let seeds = seeds.map(|(name, bytes)| (name.to_owned(), bytes));
    for (name, bytes) in seeds.into_iter().chain(covariances()) {
        let path = dir.join(&name);
        if std::env::var_os("QUANTIER_RENEW").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let now = std::fs::read(&path).unwrap_or_default();
        assert!(
            now == bytes,
            "{name} is stale: QUANTIER_RENEW=1 cargo test --test suite fuzz_seeds::"
        );
    }
}

/// A seed that the first check refuses would lead the fuzzer nowhere.
#[test]
fn seeds_are_accepted_by_the_readers() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in covariances() {
        std::fs::write(
            dir.path().join(Path::new(&name).file_name().unwrap()),
            bytes,
        )
        .unwrap();
    }
    let feedback = InputHessians::open(dir.path()).unwrap();
    assert_eq!(feedback.names().count(), 4);
    assert!(
        feedback.inputs("plain.a", 0, 8).unwrap().is_some()
            && feedback.inputs("experts.b", 1, 3).unwrap().is_some()
    );
    let sample = File::open(&dir.path().join("experts.gguf"))
        .unwrap()
        .read(Part::Sample(Some(1)))
        .unwrap();
    assert_eq!(sample.map(|numbers| numbers.len()), Some(48));
    assert_eq!(safetensors::parse(&tensors()).unwrap().tensors.len(), 3);
    assert_eq!(torch::parse(&torch_file().bytes()).unwrap().len(), 3);
    for (name, kind, bytes, tokens) in [
        ("tokenizer.model", VocabKind::Gemma2, pieces(), 8),
        ("tokenizer.json", VocabKind::ByteLevel, byte_level(), 10),
        ("tokenizer.json", VocabKind::ByteLevel, split(), 10),
        ("tokenizer.json", VocabKind::Llama, fallback(), 10),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), bytes).unwrap();
        assert_eq!(
            import(
                dir.path(),
                kind,
                &Settings {
                    pre: Some("named"),
                    ..Settings::default()
                }
            )
            .unwrap()
            .tokens,
            tokens,
            "{name}"
        );
    }
}
