//! Results of `perplexity` and `kld` for several texts, several models and a logits file, on the
//! small trained model and quantized files of it.

use crate::support::program::{json, succeeds};
use crate::support::text::{numbers, prose};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const CTX: &str = "-c 48 --chunks 4";

fn refmodel() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/refmodel-f16.gguf")
}

/// The model as m.gguf, two quantized files, and two texts.
fn with_models() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(refmodel(), dir.path().join("m.gguf")).unwrap();
    succeeds(dir.path(), "quantize m.gguf q3.gguf Q3_K_M");
    succeeds(dir.path(), "quantize m.gguf q8.gguf Q8_0");
    std::fs::write(dir.path().join("a.txt"), prose(2000)).unwrap();
    std::fs::write(dir.path().join("b.txt"), numbers(2000)).unwrap();
    dir
}

fn number(value: &Value, path: &str) -> f64 {
    value
        .pointer(path)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{path} in {value}"))
}

#[track_caller]
fn near(a: f64, b: f64, off: f64) {
    assert!((a - b).abs() <= off, "{a} {b}");
}

#[test]
fn combined_runs_equal_single_runs() {
    let dir = with_models();
    let all = json(
        dir.path(),
        &format!("kld m.gguf q3.gguf q8.gguf -f a.txt -f b.txt {CTX} --json"),
    );
    assert_eq!(all["chunks"], 8);
    for (i, model) in ["q3.gguf", "q8.gguf"].iter().enumerate() {
        for (j, text) in ["a.txt", "b.txt"].iter().enumerate() {
            let one = json(
                dir.path(),
                &format!("kld m.gguf {model} -f {text} {CTX} --json"),
            );
            assert_eq!(
                one["models"][0]["statistics"],
                all["models"][i]["texts"][j]["statistics"]
            );
            assert_eq!(all["models"][i]["texts"][j]["text"], *text);
            assert_eq!(one["models"][0]["statistics"]["rows"], 4 * 23);
        }
        // Equal numbers of rows per text: the mean is the mean of both.
        let kld = |at: &str| number(&all, &format!("/models/{i}{at}/statistics/kld/value"));
        near(kld(""), (kld("/texts/0") + kld("/texts/1")) / 2.0, 1e-12);
        let base = |at: &str| {
            number(
                &all,
                &format!("/models/{i}{at}/statistics/perplexity_base/value"),
            )
        };
        let ppl = json(
            dir.path(),
            &format!("perplexity m.gguf -f a.txt -f b.txt {CTX} --json"),
        );
        near(base(""), number(&ppl, "/perplexity/perplexity/value"), 1e-9);
        near(
            base("/texts/1"),
            number(&ppl, "/texts/1/perplexity/perplexity/value"),
            1e-9,
        );
    }
    let kld = |i: usize| number(&all, &format!("/models/{i}/statistics/kld/value"));
    assert!(
        kld(0) > 10.0 * kld(1) && kld(1) > 0.0,
        "{} {}",
        kld(0),
        kld(1)
    );
}

#[test]
fn results_are_independent_of_memory_and_threads() {
    let dir = with_models();
    let run = |more: &str| {
        json(
            dir.path(),
            &format!("kld m.gguf q3.gguf q8.gguf -f a.txt {CTX} --json {more}"),
        )
    };
    let all = run("--threads 2");
    // One MiB is less than any layer: all activations go to the temporary file, and models are
    // compared one by one.
    assert_eq!(run("--max-memory 1 --threads 1"), all);
    assert_eq!(run("--max-memory 12"), all);
}

#[test]
fn divergence_from_itself_is_zero() {
    let dir = with_models();
    let same = json(
        dir.path(),
        &format!("kld m.gguf m.gguf -f a.txt {CTX} --json"),
    );
    let statistics = &same["models"][0]["statistics"];
    assert_eq!(statistics["kld"]["value"], 0.0);
    assert_eq!(statistics["same_top"]["value"], 1.0);
    assert_eq!(statistics["ratio"]["value"], 1.0);
}

#[test]
fn logits_files_replace_the_base() {
    let dir = with_models();
    let direct = json(
        dir.path(),
        &format!("kld m.gguf q3.gguf -f a.txt -f b.txt {CTX} --json --save-logits a.kld"),
    );
    succeeds(
        dir.path(),
        &format!("perplexity -m m.gguf -f a.txt -f b.txt {CTX} --save-logits b.kld"),
    );
    let bytes = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("a.kld") == bytes("b.kld"));
    let stored = json(dir.path(), "kld --logits a.kld q3.gguf --json");
    let pick =
        |value: &Value, what: &str| number(value, &format!("/models/0/statistics/{what}/value"));
    // 16 nats in 65,535 steps; statistics of the rows' own text are not stored in the file.
    near(pick(&stored, "kld"), pick(&direct, "kld"), 2e-4);
    assert_eq!(pick(&stored, "perplexity"), pick(&direct, "perplexity"));
    near(
        pick(&stored, "perplexity_base") / pick(&direct, "perplexity_base"),
        1.0,
        1e-4,
    );
    // With the texts, results are per text again.
    let with_texts = json(
        dir.path(),
        &format!("kld --logits a.kld q3.gguf -f a.txt -f b.txt {CTX} --json"),
    );
    assert_eq!(
        with_texts["models"][0]["statistics"],
        stored["models"][0]["statistics"]
    );
    assert_eq!(
        with_texts["models"][0]["texts"].as_array().unwrap().len(),
        2
    );
    // Fewer chunks than the file has.
    let fewer = json(dir.path(), "kld --logits a.kld q3.gguf --chunks 3 --json");
    assert_eq!(fewer["chunks"], 3);
    assert_eq!(fewer["models"][0]["statistics"]["rows"], 3 * 23);
}

#[test]
fn tables_have_a_line_per_text_and_model() {
    let dir = with_models();
    let text = succeeds(
        dir.path(),
        &format!("kld m.gguf q3.gguf q8.gguf -f a.txt -f b.txt {CTX}"),
    );
    for (start, count) in [
        ("a.txt ", 2),
        ("b.txt ", 2),
        ("all ", 2),
        ("q8.gguf ", 1),
        ("Mean    KLD:", 2),
    ] {
        let lines = text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(lines, count, "{start:?} in\n{text}");
    }
    let text = succeeds(
        dir.path(),
        &format!("perplexity m.gguf -f a.txt -f b.txt {CTX}"),
    );
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.contains("Final estimate: PPL = ") && text.contains("8 chunks of 48 tokens"),
        "{text}"
    );
}
