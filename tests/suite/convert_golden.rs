//! Conversions against SHA-256 of the output of the reference's converter (renewed by
//! `scripts/goldens.sh`): the reference model in every type, split, and vocabulary only; the same
//! model with a card, sampling parameters and named templates, under every kind of name; and a
//! byte-level vocabulary.
//!
//! `scripts/parity.sh convert` compares far more, but needs the reference.

use assert_cmd::Command;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const CARD: &str = "Card-Llama-7M-Chat-v0.3";

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(name)
}

/// File and SHA-256 of the reference's output by case.
fn goldens() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut goldens: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for line in std::fs::read_to_string(testdata("convert.sha256"))
        .unwrap()
        .lines()
    {
        let (hash, path) = line.split_once("  ").unwrap();
        let (case, file) = path.split_once('/').unwrap();
        goldens
            .entry(case.into())
            .or_default()
            .insert(file.into(), hash.into());
    }
    goldens
}

/// The reference model under a name with parts, with the files of the card added or replaced.
fn card(root: &Path) -> PathBuf {
    let dir = root.join(CARD);
    std::fs::create_dir(&dir).unwrap();
    for source in ["refmodel", "card"] {
        for file in testdata(source).read_dir().unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
        }
    }
    dir
}

#[test]
fn conversions_match_the_reference() {
    let root = tempfile::tempdir().unwrap();
    let card = card(root.path());
    let metadata = card.join("metadata.json");
    let mut cases: Vec<(String, PathBuf, &str, Vec<&str>)> = Vec::new();
    for (name, dir) in [("refmodel", testdata("refmodel")), (CARD, card.clone())] {
        for out_type in ["f32", "f16", "bf16", "q8_0", "auto"] {
            cases.push((
                format!("{name}-{out_type}"),
                dir.clone(),
                "out.gguf",
                vec!["--outtype", out_type],
            ));
        }
    }
    for out_type in ["tq1_0", "tq2_0"] {
        cases.push((
            format!("refmodel-{out_type}"),
            testdata("refmodel"),
            "{ftype}-{FTYPE}.gguf",
            vec!["--outtype", out_type],
        ));
    }
    let of_refmodel: [(&str, &[&str]); 9] = [
        ("first", &["--no-tensor-first-split", "--use-temp-file"]),
        (
            "first-tensors",
            &["--no-tensor-first-split", "--split-max-tensors", "5"],
        ),
        ("temp", &["--use-temp-file"]),
        ("tensors", &["--split-max-tensors", "5"]),
        ("size", &["--split-max-size", "1M"]),
        ("unsplit", &["--split-max-size", "1G"]),
        ("vocab", &["--vocab-only"]),
        ("bigendian-f32", &["--bigendian", "--outtype", "f32"]),
        ("bigendian-f16", &["--bigendian", "--outtype", "f16"]),
    ];
    for (case, arguments) in of_refmodel {
        cases.push((
            format!("refmodel-{case}"),
            testdata("refmodel"),
            "out.gguf",
            arguments.to_vec(),
        ));
    }
    let of_card: [(&str, &str, &[&str]); 5] = [
        ("default", ".", &["--outtype", "f16"]),
        ("default-vocab", ".", &["--vocab-only"]),
        ("template", "{ftype}-{FTYPE}.gguf", &["--outtype", "q8_0"]),
        ("name", ".", &["--model-name", "Given Name"]),
        ("metadata", ".", &["--metadata", metadata.to_str().unwrap()]),
    ];
    for (case, output, arguments) in of_card {
        cases.push((
            format!("{CARD}-{case}"),
            card.clone(),
            output,
            arguments.to_vec(),
        ));
    }
    // The reference was given the pre-tokenizer's name; here it is detected.
    cases.push((
        "bpe-vocab".into(),
        testdata("bpe"),
        "out.gguf",
        vec!["--vocab-only"],
    ));

    let goldens = goldens();
    let names: BTreeSet<_> = cases.iter().map(|(case, ..)| case.clone()).collect();
    assert_eq!(
        names,
        goldens.keys().cloned().collect(),
        "cases, and those of testdata/convert.sha256"
    );
    for (case, dir, output, arguments) in cases {
        let out = root.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let mut command = Command::cargo_bin("quantier").unwrap();
        command
            .arg("convert")
            .arg(dir)
            .arg("-o")
            .arg(out.join(output))
            .args(arguments)
            .assert()
            .success();
        let hash = |path: PathBuf| {
            let digest = Sha256::digest(std::fs::read(path).unwrap());
            digest
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let made: BTreeMap<String, String> = out
            .read_dir()
            .unwrap()
            .map(|file| file.unwrap())
            .map(|file| (file.file_name().into_string().unwrap(), hash(file.path())))
            .collect();
        assert_eq!(made, goldens[&case], "{case}");
        std::fs::remove_dir_all(&out).unwrap();
    }
}
