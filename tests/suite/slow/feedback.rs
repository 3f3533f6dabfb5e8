//! Rounding with error feedback: Hessians, files, proofs, and its use by `make`.

use crate::support::program::{
    divergence, fails, json, place, proven, quantier, read, stderr, succeeds, types,
};
use quantier_report::data::Frontier;
use serde_json::Value as Json;
use std::fs;
use tempfile::TempDir;

/// The trained model and two texts, with importance matrix and Hessians.
fn measured() -> TempDir {
    let dir = place();
    succeeds(
        dir.path(),
        "imatrix m.gguf -f cal.txt -c 128 --process-output --no-ppl --hessians cov -o imatrix.gguf",
    );
    dir
}

const FEEDBACK: &str = "quantize --imatrix imatrix.gguf --rounding feedback --hessians cov";

#[test]
fn feedback_lowers_the_divergence_at_equal_size() {
    let dir = measured();
    let dir = dir.path();
    for (name, bound) in [("Q2_K", 0.8), ("Q4_K_M", 0.8), ("IQ2_S", 0.8)] {
        succeeds(
            dir,
            &format!("quantize --imatrix imatrix.gguf m.gguf plain.gguf {name}"),
        );
        let done = json(dir, &format!("{FEEDBACK} --json m.gguf fed.gguf {name}"));
        let proven = proven(&done);
        assert!(proven > 40, "{name}: {proven} tensors");
        let [plain, fed] = ["plain.gguf", "fed.gguf"].map(|file| divergence(dir, file));
        assert!(
            fed < bound * plain,
            "{name}: {fed} nats with feedback, {plain} without"
        );
        succeeds(dir, "verify fed.gguf");
        assert_eq!(types(dir, "plain.gguf"), types(dir, "fed.gguf"), "{name}");
    }
}

#[test]
fn feedback_is_independent_of_threads_and_recorded_in_the_file() {
    let dir = measured();
    let dir = dir.path();
    succeeds(dir, &format!("{FEEDBACK} m.gguf one.gguf Q3_K_M 1"));
    succeeds(
        dir,
        &format!("{FEEDBACK} --also Q8_0=also.gguf m.gguf two.gguf Q3_K_M 2"),
    );
    assert!(read(dir, "one.gguf") == read(dir, "two.gguf"));
    let rounding = |file: &str| {
        let held = json(dir, &format!("inspect --json {file}"));
        held.pointer("/metadata/quantier.rounding/value")
            .and_then(Json::as_str)
            .map(str::to_owned)
    };
    assert_eq!(rounding("two.gguf").as_deref(), Some("feedback"));
    succeeds(
        dir,
        "quantize --imatrix imatrix.gguf m.gguf plain.gguf Q3_K_M",
    );
    assert_eq!(rounding("plain.gguf"), None);
}

#[test]
fn tensors_without_feedback_are_reported() {
    let dir = measured();
    let dir = dir.path();
    fails(
        dir,
        "quantize --rounding feedback --hessians nothing m.gguf x.gguf Q4_K",
        &["nothing"],
    );
    crate::support::program::model().write(&dir.join("other.gguf"));
    let feedback = "quantize --rounding feedback --hessians cov";
    fails(
        dir,
        &format!("{feedback} other.gguf x.gguf Q4_0"),
        &["cov", "another model", "blk.0.ffn_down.weight"],
    );
    quantier("quantize --rounding feedback m.gguf x.gguf Q4_K")
        .current_dir(dir)
        .assert()
        .code(2);
    // A damaged Hessian.
    let file = fs::read_dir(dir.join("cov"))
        .unwrap()
        .map(|e| e.unwrap().path());
    let file = file
        .into_iter()
        .find(|p| p.ends_with("blk.0.ffn_down.gguf"))
        .unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() - 1000;
    bytes[at] ^= 0x40;
    fs::write(&file, bytes).unwrap();
    let told = stderr(dir, &format!("{FEEDBACK} m.gguf x.gguf Q4_K"), 1);
    assert!(
        told.contains("error: ")
            && told.contains("blk.0.ffn_down.gguf")
            && !told.contains("panicked"),
        "{told}"
    );
    assert!(
        told.contains("for lack of an input Hessian: ") && told.contains("token_embd.weight"),
        "{told}"
    );
    assert!(!dir.join("x.gguf").exists());
}

#[test]
fn too_few_tokens_are_reported_and_harmless() {
    let dir = place();
    let dir = dir.path();
    succeeds(
        dir,
        "imatrix m.gguf -f cal.txt -c 128 --chunks 3 --process-output --no-ppl --hessians cov -o imatrix.gguf",
    );
    let told = stderr(dir, &format!("{FEEDBACK} m.gguf fed.gguf Q3_K_M"), 0);
    // Two chunks of 128 were summed, the third was held out.
    assert!(
        told.contains("256 tokens, 768 channels") && told.contains("at least 878 tokens"),
        "{told}"
    );
    succeeds(
        dir,
        "quantize --imatrix imatrix.gguf m.gguf plain.gguf Q3_K_M",
    );
    let [plain, fed] = ["plain.gguf", "fed.gguf"].map(|file| divergence(dir, file));
    assert!(fed < plain, "{fed} nats with feedback, {plain} without");
}

/// Files of `make` are rounded with feedback by default; another run reuses existing results.
#[test]
fn make_rounds_with_feedback() {
    let dir = place();
    let dir = dir.path();
    let small = "-c 128 --score-chunks 2 --eval-chunks 12 -f cal.txt --eval eval.txt --types q2_K,q3_K,q4_K,q6_K,q8_0";
    let made = |rest: &str| -> Frontier {
        let text = succeeds(dir, &format!("make m.gguf {small} --json {rest}"));
        Frontier::parse(&text).unwrap()
    };
    let fed = made("--bpw 3.5 -o fed");
    let again = made("--bpw 3.5 --bpw 4.5 -o fed");
    let plain = made("--bpw 3.5 -o plain --rounding reference");
    let kld = |of: &Frontier| of.files[0].measured.as_ref().unwrap().mean.value();
    assert!(
        kld(&fed) < 0.8 * kld(&plain),
        "{} with feedback, {} without",
        kld(&fed),
        kld(&plain)
    );
    assert!(fed.files[0].bytes.abs_diff(plain.files[0].bytes) < plain.files[0].bytes / 50);
    assert!(fed.files[0].rounding.len() > 40 && plain.files[0].rounding.is_empty());
    // The second run measures further presets, beside the second file.
    let mut first = again.files[0].clone();
    assert!(first.versus.starts_with(&fed.files[0].versus));
    first.versus.truncate(fed.files[0].versus.len());
    assert_eq!(first, fed.files[0]);
    let size = |of: &Frontier| {
        fs::metadata(dir.join("fed").join(&of.files[0].name))
            .unwrap()
            .len()
    };
    assert_eq!(
        size(&fed),
        fed.files[0].bytes,
        "the size is as it was planned"
    );
    let like = made("--like Q4_K_M -o fed");
    let preset = like.presets.iter().find(|p| p.name == "Q4_K_M").unwrap();
    assert!(
        like.files[0].bytes <= preset.bytes,
        "no larger than the preset"
    );
    let seconds =
        |of: &Frontier, name: &str| of.stages.iter().find(|s| s.name == name).unwrap().seconds;
    assert!(
        seconds(&again, "sensitivities") < seconds(&fed, "sensitivities") / 2.0,
        "scores were kept"
    );
    assert!(!dir.join("plain/work/covariance").exists());
}
