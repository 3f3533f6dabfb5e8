//! Tests of `quantier diff`.

use crate::support::gguf::Tiny;
use crate::support::program::{listing, model, quantier, succeeds, with_model};
use quantier_gguf::gguf::{Array, Value};
use quantier_gguf::types::GgmlType;
use serde_json::Value as Json;
use std::path::Path;

/// Runs a comparison of different models.
#[track_caller]
fn differs(dir: &Path, args: &str) -> String {
    let ran = quantier(&format!("diff {args}"))
        .current_dir(dir)
        .assert()
        .code(1);
    assert_eq!(String::from_utf8_lossy(&ran.get_output().stderr), "");
    String::from_utf8(ran.get_output().stdout.clone()).unwrap()
}

#[track_caller]
fn json(dir: &Path, args: &str) -> Json {
    serde_json::from_str(&differs(dir, &format!("--json {args}"))).unwrap()
}

/// Runs a comparison that must fail: exit code 2, not 1.
#[track_caller]
fn trouble(dir: &Path, args: &str, part: &str) {
    let ran = quantier(&format!("diff {args}"))
        .current_dir(dir)
        .assert()
        .code(2)
        .stdout("");
    let error = String::from_utf8_lossy(&ran.get_output().stderr);
    assert!(error.contains(part), "{error}");
}

/// Changes weights of a tensor; returns pairs of old and new values.
fn weights(model: &mut Tiny, name: &str, change: impl Fn(usize, f32) -> f32) -> Vec<(f32, f32)> {
    let (_, data) = model
        .tensors
        .iter_mut()
        .find(|(info, _)| info.name == name)
        .unwrap();
    let (numbers, _) = data.as_chunks_mut::<4>();
    let one = |(i, bytes): (usize, &mut [u8; 4])| {
        let before = f32::from_le_bytes(*bytes);
        let after = change(i, before);
        *bytes = after.to_le_bytes();
        (before, after)
    };
    numbers.iter_mut().enumerate().map(one).collect()
}

fn relative(pairs: &[(f32, f32)]) -> f64 {
    let sum = |f: &dyn Fn(f64, f64) -> f64| {
        pairs
            .iter()
            .map(|&(a, b)| f(a.into(), b.into()))
            .sum::<f64>()
    };
    (sum(&|a, b| (a - b).powi(2)) / sum(&|a, _| a * a)).sqrt()
}

#[test]
fn storage_details_are_ignored() {
    let dir = with_model();
    assert!(succeeds(dir.path(), "diff m.gguf m.gguf").contains("equal: 24 tensors"));
    succeeds(dir.path(), "split m.gguf s --split-max-tensors 9");
    assert!(succeeds(dir.path(), "diff m.gguf s-00002-of-00003.gguf").contains("equal: "));
    // Another order of keys and tensors.
    let mut turned = model();
    turned.tensors.reverse();
    let name = turned.metadata.get("general.name").cloned().unwrap();
    turned
        .set("general.name", name)
        .write(&dir.path().join("turned.gguf"));
    let same: Json =
        serde_json::from_str(&succeeds(dir.path(), "diff m.gguf turned.gguf --json")).unwrap();
    assert_eq!(
        (&same["same"], &same["same_tensors"], &same["tensors"]),
        (&true.into(), &24.into(), &Json::Array(vec![]))
    );
}

#[test]
fn checkpoint_equals_its_conversion() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = format!("{}/testdata/refmodel", env!("CARGO_MANIFEST_DIR"));
    succeeds(dir.path(), &format!("convert {checkpoint} -o m.gguf"));
    assert!(succeeds(dir.path(), &format!("diff {checkpoint} m.gguf")).contains("equal: "));
    succeeds(dir.path(), "quantize m.gguf q.gguf Q8_0");
    let found = json(dir.path(), &format!("{checkpoint} q.gguf"));
    let changed = found["tensors"].as_array().unwrap();
    assert!(!changed.is_empty());
    // Eight bits leave an error of about 0.5%.
    for tensor in changed.iter().filter(|t| t["type_b"] == "q8_0") {
        let error = tensor["relative_rmse"].as_f64().unwrap();
        assert!((0.003..0.009).contains(&error), "{tensor}");
    }
    let keys: Vec<_> = found["metadata"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["key"].as_str().unwrap())
        .collect();
    assert!(keys.contains(&"general.file_type"), "{keys:?}");
}

#[test]
fn errors_match_their_definition_and_are_sorted() {
    let dir = with_model();
    let mut other = model();
    let little = weights(&mut other, "blk.0.ffn_up.weight", |i, x| {
        if i % 3 == 0 { x * 1.01 } else { x }
    });
    let much = weights(&mut other, "blk.2.ffn_down.weight", |_, x| -x);
    weights(&mut other, "blk.1.attn_norm.weight", |i, x| {
        if i == 7 { f32::NAN } else { x }
    });
    other.write(&dir.path().join("n.gguf"));
    let found = json(dir.path(), "m.gguf n.gguf");
    let of = |i: usize| {
        (
            found["tensors"][i]["name"].as_str().unwrap(),
            found["tensors"][i]["relative_rmse"].as_f64(),
        )
    };
    assert_eq!(found["tensors"].as_array().unwrap().len(), 3);
    assert_eq!(of(0), ("blk.1.attn_norm.weight", None));
    assert_eq!(
        (of(1).0, of(2).0),
        ("blk.2.ffn_down.weight", "blk.0.ffn_up.weight")
    );
    assert!((of(1).1.unwrap() - 2.0).abs() < 1e-12 && (relative(&much) - 2.0).abs() < 1e-12);
    assert!((of(2).1.unwrap() / relative(&little) - 1.0).abs() < 1e-12);
    assert_eq!(found["same_tensors"], 21);
    let shown = differs(dir.path(), "m.gguf n.gguf --top 2");
    assert!(
        shown.contains(" 2.00\n")
            && shown.contains("NaN")
            && shown.contains("and 1 more with smaller errors"),
        "{shown}"
    );
}

#[test]
fn quantized_weights_are_compared_after_dequantization() {
    let dir = with_model();
    for preset in ["Q8_0", "Q6_K", "Q4_0", "Q2_K"] {
        succeeds(
            dir.path(),
            &format!("quantize --pure m.gguf {preset}.gguf {preset}"),
        );
    }
    let error = |a: &str, b: &str| {
        let found = json(dir.path(), &format!("{a} {b}"));
        let all = found["tensors"].as_array().unwrap();
        all.iter()
            .find(|t| t["name"] == "blk.1.ffn_up.weight")
            .unwrap()["relative_rmse"]
            .as_f64()
            .unwrap()
    };
    let errors =
        ["Q8_0", "Q6_K", "Q4_0", "Q2_K"].map(|preset| error("m.gguf", &format!("{preset}.gguf")));
    assert!(
        errors.is_sorted() && errors[0] > 0.001 && errors[3] < 0.6,
        "{errors:?}"
    );
    // Between two quantized models: about the larger of both errors.
    let between = error("Q8_0.gguf", "Q2_K.gguf");
    assert!(
        (between / errors[3] - 1.0).abs() < 0.05,
        "{between} {errors:?}"
    );
    let shown = differs(dir.path(), "m.gguf Q4_0.gguf");
    assert!(shown.contains("f32 -> q4_0"), "{shown}");
}

#[test]
fn tensors_of_one_model_only_and_changed_shapes_and_types() {
    let dir = with_model();
    let mut other = model();
    other
        .tensors
        .retain(|(info, _)| info.name != "output.weight");
    let other =
        other
            .zeros("extra.weight", &[32, 2], GgmlType::F16)
            .zeros("ids", &[4], GgmlType::I32);
    let mut reshaped = other;
    let at = reshaped
        .tensors
        .iter()
        .position(|(info, _)| info.name == "blk.0.attn_q.weight")
        .unwrap();
    let data = reshaped.tensors[at].1.clone();
    reshaped.tensors[at] = (
        crate::support::gguf::info("blk.0.attn_q.weight", &[512, 3], GgmlType::F32),
        data,
    );
    reshaped.write(&dir.path().join("n.gguf"));
    let found = json(dir.path(), "m.gguf n.gguf");
    let names = |list: &Json| {
        list.as_array()
            .unwrap()
            .iter()
            .map(|t| t["name"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&found["only_a"]), ["output.weight"]);
    assert_eq!(names(&found["only_b"]), ["extra.weight", "ids"]);
    assert_eq!(names(&found["tensors"]), ["blk.0.attn_q.weight"]);
    assert_eq!(found["tensors"][0]["shape_b"], serde_json::json!([512, 3]));
    assert_eq!(found["tensors"][0]["relative_rmse"], Json::Null);
    // Integers are compared as bytes; zero weights are infinitely far from others.
    let ids = |number: u8| {
        Tiny {
            metadata: model().metadata,
            ..Tiny::default()
        }
        .tensor(
            crate::support::gguf::info("ids", &[4], GgmlType::I32),
            vec![number; 16],
        )
        .weights("w", &[4], [f32::from(number); 4])
    };
    ids(0).write(&dir.path().join("zero.gguf"));
    ids(1).write(&dir.path().join("one.gguf"));
    let shown = differs(dir.path(), "zero.gguf one.gguf");
    assert!(
        shown.contains("bytes differ") && shown.contains("inf"),
        "{shown}"
    );
}

#[test]
fn metadata_key_by_key() {
    let dir = with_model();
    let tokens = |third: &str, more: &[&str]| {
        let all = ["<s>", "</s>", third, "d"]
            .into_iter()
            .chain(more.iter().copied());
        Value::Array(Array::of_strings(all))
    };
    let long = "x".repeat(300);
    let a = model()
        .set("tokens", tokens("a", &[]))
        .set("only", Value::U8(1))
        .set("long", Value::str(long.clone()));
    let b = model()
        .set("tokens", tokens("b", &["more"]))
        .set("general.name", Value::str("other"))
        .set("llama.block_count", Value::U64(3))
        .set("new", Value::Bool(true))
        .set("long", Value::str(long + "end"));
    a.write(&dir.path().join("a.gguf"));
    b.write(&dir.path().join("b.gguf"));
    let shown = differs(dir.path(), "a.gguf b.gguf");
    for line in [
        "~ tokens: 2 elements (4 in A, 5 in B) differ, first [2]: \"a\" -> \"b\"",
        "~ general.name: str tiny -> other",
        "~ llama.block_count: u32 3 -> u64 3",
        "- only: u8 1",
        "+ new: bool true",
        "~ long: strings of 300 and 303 bytes, first difference at byte 300: \"\" -> \"end\"",
        "0 differ, 24 are equal",
    ] {
        assert!(shown.contains(line), "no {line:?} in\n{shown}");
    }
    let found = json(dir.path(), "a.gguf b.gguf");
    let tokens = found["metadata"]
        .as_array()
        .unwrap()
        .iter()
        .find(|k| k["key"] == "tokens")
        .unwrap();
    assert_eq!(
        tokens["elements"],
        serde_json::json!({ "differing": 2, "first": 2, "a": "a", "b": "b" })
    );
}

#[test]
fn failures_are_not_differences() {
    let dir = with_model();
    trouble(dir.path(), "m.gguf nowhere.gguf", "nowhere.gguf");
    trouble(dir.path(), "m.gguf .", "config.json");
    trouble(dir.path(), "m.gguf", "Usage");
    let whole = std::fs::read(dir.path().join("m.gguf")).unwrap();
    std::fs::write(dir.path().join("cut.gguf"), &whole[..whole.len() - 4000]).unwrap();
    trouble(dir.path(), "m.gguf cut.gguf", "cut.gguf");
    assert_eq!(listing(dir.path()).len(), 2);
    // Machine-readable errors like those of other commands.
    let ran = quantier("diff m.gguf nowhere.gguf --progress json")
        .current_dir(dir.path())
        .assert()
        .code(2);
    let line: Json = serde_json::from_slice(&ran.get_output().stderr).unwrap();
    assert!(
        line["event"] == "error" && line["text"].as_str().unwrap().contains("nowhere.gguf"),
        "{line}"
    );
}
