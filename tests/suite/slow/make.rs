//! Tests of `quantier make` and `quantier frontier`, on the small trained model and tiny variants
//! of it.

use crate::support::gguf::Tiny;
use crate::support::program::{json, killed_when, listing, quantier, start, stderr, succeeds};
use quantier::convert;
use quantier::input::Source;
use quantier_blocks::Codec;
use quantier_core::rng::Rng;
use quantier_gguf::gguf::Value;
use quantier_gguf::imatrix::Imatrix;
use quantier_gguf::types::GgmlType;
use quantier_report::data::Frontier;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;

/// Few short chunks and few types, for runs of seconds.
const SMALL: &str = "-c 64 --score-chunks 2 --score-positions 64 --eval-chunks 2 -f cal.txt --eval eval.txt \
                     --types q2_K,q3_K,q4_K,q6_K,q8_0,q5_0";
/// The same with slow types at all positions.
const SLOW: &str = "-c 64 --score-chunks 8 --score-positions 0 --eval-chunks 2 -f cal.txt --eval eval.txt \
                    --types iq1_s,iq1_m,iq2_xxs,iq2_xs,q8_0";

fn refmodel() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/refmodel-f16.gguf")
}

/// Pseudo-random text.
fn text(seed: u64, words: usize) -> String {
    const WORDS: [&str; 16] = [
        "the", "river", "was", "old", "and", "a", "house", "stood", "near", "it", "with", "many",
        "windows", "of", "green", "glass",
    ];
    let mut rng = Rng::new(seed);
    let mut all = String::new();
    for i in 0..words {
        all.push_str(WORDS[(rng.uniform() * WORDS.len() as f32) as usize % WORDS.len()]);
        all.push_str(if i % 12 == 11 { ".\n\n" } else { " " });
    }
    all
}

/// A directory with a link to the model, and both texts.
fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(refmodel(), dir.path().join("m.gguf")).unwrap();
    fs::write(dir.path().join("cal.txt"), text(1, 400)).unwrap();
    fs::write(dir.path().join("eval.txt"), text(2, 200)).unwrap();
    dir
}

fn make(dir: &Path, rest: &str) -> String {
    succeeds(dir, &format!("make m.gguf {SMALL} {rest}"))
}

/// The command must fail with exit code 1 and all of `parts`, and leave everything unchanged.
#[track_caller]
fn fails(dir: &Path, args: &str, parts: &[&str]) -> String {
    let before = listing(dir);
    let error = stderr(dir, args, 1);
    assert!(
        error.contains("error: ") && !error.contains("panicked"),
        "{error}"
    );
    parts.iter().for_each(|part| {
        assert!(
            error.contains(part),
            "the error does not say {part:?}: {error}"
        )
    });
    assert_eq!(listing(dir), before, "after: {error}");
    error
}

/// The GGUFs in a directory, by rising size.
fn models(dir: &Path) -> Vec<PathBuf> {
    let is_model = |path: &Path| {
        path.extension().is_some_and(|e| e == "gguf") && !path.ends_with("imatrix.gguf")
    };
    let mut found: Vec<_> = listing(dir)
        .into_iter()
        .filter(|(path, _)| is_model(path))
        .collect();
    found.sort_by_key(|(_, bytes)| *bytes);
    found.into_iter().map(|(path, _)| path).collect()
}

fn recipe_of(model: &Path) -> PathBuf {
    PathBuf::from(format!("{}.recipe.txt", model.display()))
}

/// Names, types and bytes of all tensors.
fn tensors(path: &Path) -> BTreeMap<String, (GgmlType, Vec<u8>)> {
    let source = Source::open(path).unwrap();
    let input = source.reader(&convert::Job::default()).unwrap();
    let one = |t: &quantier::input::Tensor<'_>| {
        let mut buffer = Vec::new();
        let bytes = input
            .read(t, 0..t.info.shape.rows(), &mut buffer)
            .unwrap()
            .to_vec();
        (t.info.name.to_string(), (t.info.ggml_type, bytes))
    };
    input.tensors.iter().map(one).collect()
}

fn frontier_of(dir: &Path) -> Frontier {
    serde_json::from_str(&fs::read_to_string(dir.join("frontier.json")).unwrap()).unwrap()
}

fn times(dir: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let time =
        |(path, _): (PathBuf, u64)| (path.clone(), path.metadata().unwrap().modified().unwrap());
    listing(dir).into_iter().map(time).collect()
}

#[test]
fn files_match_their_budgets_and_are_measured() {
    let dir = place();
    make(dir.path(), "--bpw 3.2 --bpw 4.5 --bpw 6.6 -o out");
    let out = dir.path().join("out");
    let files = models(&out);
    assert_eq!(files.len(), 3, "{files:?}");
    for name in [
        "imatrix.gguf",
        "frontier.json",
        "frontier.svg",
        "report.html",
    ] {
        assert!(out.join(name).metadata().unwrap().len() > 100, "{name}");
    }
    assert!(
        listing(&out)
            .iter()
            .all(|(path, _)| !path.to_string_lossy().ends_with(".partial"))
    );
    let frontier = frontier_of(&out);
    assert_eq!(frontier.files.len(), 3);
    let base = tensors(&refmodel());
    let weights: u64 = frontier.model.parameters;
    for ((file, path), bpw) in frontier.files.iter().zip(&files).zip([3.2, 4.5, 6.6]) {
        assert_eq!(path.file_name().unwrap().to_str(), Some(&*file.name));
        assert_eq!(path.metadata().unwrap().len(), file.bytes);
        let own = tensors(path);
        let bytes: usize = own.values().map(|(_, bytes)| bytes.len()).sum();
        assert!(
            8.0 * bytes as f64 / weights as f64 <= bpw,
            "{} is larger than {bpw}",
            file.name
        );
        // The recipe matches the file, and its prediction is the sum over its tensors.
        let recipe = fs::read_to_string(recipe_of(path)).unwrap();
        assert_eq!(recipe.lines().count(), file.recipe.len());
        let mut nats = 0.0;
        for tensor in &frontier.tensors {
            let chosen = &file.recipe[&tensor.name];
            assert_eq!(own[&tensor.name].0.name(), chosen, "{}", tensor.name);
            let line = format!("^{}$={chosen}", tensor.name.replace('.', "\\."));
            assert!(recipe.lines().any(|l| l == line), "no {line:?}");
            nats += tensor
                .choices
                .iter()
                .find(|c| c.ggml_type == *chosen)
                .unwrap()
                .nats;
        }
        assert!(
            (nats - file.predicted).abs() <= 1e-9 * nats,
            "{nats} and {}",
            file.predicted
        );
        assert_eq!(
            own.keys().collect::<Vec<_>>(),
            base.keys().collect::<Vec<_>>()
        );
    }
    let nats: Vec<_> = frontier
        .files
        .iter()
        .map(|f| (f.predicted, f.measured.as_ref().unwrap().mean.value()))
        .collect();
    assert!(
        nats.windows(2).all(|w| w[0].0 > w[1].0 && w[0].1 > w[1].1),
        "{nats:?}"
    );
    assert!(
        frontier
            .frontier
            .windows(2)
            .all(|w| w[0].bytes < w[1].bytes && w[0].nats > w[1].nats)
    );

    // The quantizer alone, with recipe, importance matrix, Hessians, text and gradients, writes the
    // same bytes.
    for (path, file) in files.iter().zip(&frontier.files) {
        let label = file
            .name
            .trim_end_matches(".gguf")
            .rsplit_once("bpw-")
            .unwrap()
            .1;
        let recipe = recipe_of(path);
        let args = format!(
            "--imatrix out/imatrix.gguf --tensor-type-file {} m.gguf again.gguf {label}",
            recipe.display()
        );
        let known = "--covariance out/work/covariance --propagate cal.txt -c 64 --gradients out/work/gradients";
        succeeds(
            dir.path(),
            &format!("quantize --rounding feedback {known} {args}"),
        );
        assert!(
            tensors(&dir.path().join("again.gguf")) == tensors(path),
            "{}",
            file.name
        );
    }

    // A repetition changes nothing, and another budget needs no new measurement.
    let (before, contents) = (times(&out.join("work")), fs::read(&files[0]).unwrap());
    make(dir.path(), "--bpw 3.2 --bpw 4.5 --bpw 6.6 -o out");
    assert_eq!(times(&out.join("work")), before);
    let imatrix = fs::read(out.join("imatrix.gguf")).unwrap();
    make(dir.path(), "--bpw 5 --compare none -o out");
    let after = times(&out.join("work"));
    assert!(
        before.iter().all(|(path, time)| after[path] == *time),
        "something was measured anew"
    );
    assert_eq!(
        after.len(),
        before.len() + 3,
        "the file, its proof and what its rounding did"
    );
    assert!(fs::read(out.join("imatrix.gguf")).unwrap() == imatrix);
    // Nor do fewer types.
    make(dir.path(), "--bpw 5 --pin output=q6_K -o out");
    let scores = out.join("work/scores.json");
    assert_eq!(times(&out.join("work"))[&scores], before[&scores]);
    // A new run elsewhere makes the same file.
    make(dir.path(), "--bpw 3.2 -o other");
    assert!(fs::read(&models(&dir.path().join("other"))[0]).unwrap() == contents);
}

#[test]
fn frontier_writes_no_model() {
    let dir = place();
    succeeds(dir.path(), &format!("frontier m.gguf {SMALL} -o out"));
    let out = dir.path().join("out");
    assert_eq!(models(&out), Vec::<PathBuf>::new());
    let frontier = frontier_of(&out);
    assert!(
        frontier.files.is_empty()
            && frontier.frontier.len() > 10
            && out.join("report.html").exists()
    );
    let before = times(&out.join("work"));
    let made = json(
        dir.path(),
        &format!("make m.gguf {SMALL} --kld 0.05 --json -o out"),
    );
    assert!(made["files"][0]["predicted"].as_f64().unwrap() <= 0.05);
    let after = times(&out.join("work"));
    assert!(
        before.iter().all(|(path, time)| after[path] == *time),
        "make goes on from the frontier"
    );
}

#[test]
fn fast_settings_are_defaults() {
    let dir = place();
    fs::write(dir.path().join("cal.txt"), text(1, 12_000)).unwrap();
    let plan = |more: &str| {
        let args = format!(
            "make m.gguf -c 64 -f cal.txt --eval eval.txt --types q4_K,q8_0 --bpw 5 -o out --dry-run --json {more}"
        );
        let plan = json(dir.path(), &args);
        let stages = plan["stages"].as_array().unwrap();
        let files = stages.iter().find(|s| s["name"] == "files").unwrap();
        let tokens = plan["scoring_tokens"].as_u64().unwrap();
        (tokens, files["flops"].as_f64().unwrap())
    };
    let (usual, fast) = (plan(""), plan("--fast"));
    assert_eq!((usual.0, fast.0), (24 * 64, 12 * 64));
    assert!(fast.1 < 0.9 * usual.1, "{} and {}", fast.1, usual.1);
    let given = plan("--fast --score-chunks 3 --sequential-tokens 0");
    assert_eq!(given, (3 * 64, usual.1));
}

#[test]
fn dry_run_plans_and_writes_nothing() {
    let dir = place();
    let before = listing(dir.path());
    let told = json(
        dir.path(),
        &format!("make m.gguf {SMALL} --bpw 4.5 --kld 0.01 -o out --dry-run --json"),
    );
    assert_eq!(listing(dir.path()), before);
    assert_eq!(
        (told["tensors"].as_u64(), told["matrices"].as_u64()),
        (Some(44), Some(44))
    );
    assert_eq!(told["scoring_tokens"].as_u64(), Some(128));
    assert_eq!(told["evaluation_tokens"].as_u64(), Some(128));
    let stages = told["stages"].as_array().unwrap();
    assert!(
        stages.iter().all(|s| s["done"] == false) && stages.len() == 4,
        "{stages:?}"
    );
    assert!(
        stages[1]["seconds"].as_f64().unwrap() > 0.0
            && told["memory_bytes"].as_u64().unwrap() > 1 << 20
    );
    // The cost of error feedback, and the cost without it.
    let stage = |told: &serde_json::Value, name: &str, of: &str| {
        let stages = told["stages"].as_array().unwrap();
        stages
            .iter()
            .find(|s| s["name"] == name)
            .map(|s| s[of].as_f64().unwrap_or(f64::from(u8::from(s[of] == true))))
    };
    let without = json(
        dir.path(),
        &format!(
            "make m.gguf {SMALL} --bpw 4.5 --kld 0.01 --rounding reference -o out --dry-run --json"
        ),
    );
    for name in ["importance matrix", "sensitivities", "files"] {
        assert!(
            stage(&told, name, "flops") > stage(&without, name, "flops"),
            "{name}: {told} {without}"
        );
    }
    let tokens = told["calibration_tokens"].as_f64().unwrap();
    let sums = stage(&told, "importance matrix", "flops").unwrap()
        - stage(&without, "importance matrix", "flops").unwrap();
    // Three inputs of 288 channels and one of 768 in each of six layers, and that of the output.
    let squares = 6.0 * (3.0 * 288f64.powi(2) + 768f64.powi(2)) + 288f64.powi(2);
    assert!(
        (0.8..1.2).contains(&(sums / (tokens * squares))),
        "{sums} for {tokens} tokens"
    );
    assert_eq!(without["covariance_bytes"].as_u64(), Some(0));
    make(dir.path(), "--bpw 4.5 -o out");
    let files = ["covariance", "gradients"]
        .map(|of| fs::read_dir(dir.path().join("out/work").join(of)).unwrap());
    let there: u64 = files
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    let bytes = told["covariance_bytes"].as_u64().unwrap();
    assert!(
        there <= bytes && bytes < there + there / 4,
        "{bytes} were expected and {there} came"
    );
    // A given importance matrix has no Hessians.
    let given = |rounding: &str| {
        let args = format!(
            "make m.gguf {SMALL} --bpw 4.5 --imatrix out/imatrix.gguf --rounding {rounding} -o new --dry-run --json"
        );
        json(dir.path(), &args)
    };
    assert_eq!(
        stage(&given("feedback"), "importance matrix", "done"),
        Some(0.0)
    );
    assert_eq!(
        stage(&given("reference"), "importance matrix", "done"),
        None
    );
    let size = models(&dir.path().join("out"))[0].metadata().unwrap().len() as f64;
    let expected = told["files"][0][1].as_f64().unwrap();
    assert!(
        (expected / size - 1.0).abs() < 0.02,
        "{expected} was expected and {size} came"
    );
    let again = json(
        dir.path(),
        &format!("make m.gguf {SMALL} --bpw 4.5 -o out --dry-run --json"),
    );
    assert!(
        again["stages"]
            .as_array()
            .unwrap()
            .iter()
            .all(|s| s["done"] == true),
        "{again}"
    );
    let shown = make(dir.path(), "--bpw 4.5 --bpw 5 -o out --dry-run");
    assert!(
        shown.contains("disk: ") && shown.contains("an estimate") && shown.contains("done"),
        "{shown}"
    );
}

#[test]
fn impossible_budgets() {
    let dir = place();
    let run = |rest: &str, parts: &[&str]| {
        fails(
            dir.path(),
            &format!("make m.gguf {SMALL} {rest} -o out"),
            parts,
        )
    };
    // q2_K has 2.625 bits, q8_0 8.5: both bounds are named.
    run(
        "--bpw 1.5",
        &["1.5 bits per weight is less than", "(2.6", "(8.5"],
    );
    run(
        "--bpw 12",
        &["12 bits per weight is more than", "(2.6", "(8.5"],
    );
    run(
        "--size 1MiB",
        &["a file of 1048576 bytes is less than", "(8.5"],
    );
    run("--size 1GiB", &["is more than", "(2.6"]);
    run(
        "--fit 1MiB --ctx 512",
        &["memory of 1048576 bytes for 512 tokens is less than"],
    );
    run(
        "--kld 0.1 --score imatrix",
        &["--kld 0.1 is a budget in nats"],
    );
    run(
        "--bpw 4 --pin nothing_like_it=q8_0",
        &["covers none", "the nearest name is"],
    );
    run(
        "--bpw 4 --pin ffn_dwn=q8_0",
        &["covers none", "the nearest name is ffn_down"],
    );
    run("--bpw 4 --min q6_K --max q4_K", &["leaves it no type"]);
    for wrong in [
        "--bpw 0",
        "--bpw x",
        "--size 5XB",
        "--like Q9",
        "--fit 8GiB",
        "",
        "--bpw 4 --types q9",
    ] {
        quantier(&format!("make m.gguf {SMALL} {wrong} -o out"))
            .current_dir(dir.path())
            .assert()
            .code(2);
    }
}

#[test]
fn unusable_texts() {
    let dir = place();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    write("short.txt", text(3, 20).as_bytes());
    write("latin.txt", b"caf\xe9 au lait");
    write("copy.txt", text(1, 400).as_bytes());
    write("some.txt", text(5, 150).as_bytes());
    let run = |rest: &str, parts: &[&str]| {
        fails(
            dir.path(),
            &format!("make m.gguf -c 64 --bpw 4 {rest} -o out"),
            parts,
        )
    };
    run(
        "-f short.txt --eval eval.txt",
        &["the calibration text (short.txt)", "128 are needed"],
    );
    run(
        "-f cal.txt --eval short.txt",
        &["the evaluation text (short.txt)", "128 are needed"],
    );
    run(
        "-f some.txt",
        &["the evaluation text (some.txt (held out))", "--eval"],
    );
    run("-f latin.txt", &["latin.txt: not UTF-8 at byte 3"]);
    run("-f nowhere.txt", &["cannot read nowhere.txt"]);
    run(
        "-f cal.txt --eval cal.txt",
        &["cal.txt", "both calibration and evaluation"],
    );
    run(
        "-f cal.txt --eval ./cal.txt",
        &["both calibration and evaluation"],
    );
    run(
        "-f cal.txt --eval copy.txt",
        &["both calibration and evaluation"],
    );
    fails(
        dir.path(),
        "make m.gguf --bpw 4 -f cal.txt --eval eval.txt -c 0 -o out",
        &["a context of 0 tokens"],
    );
}

#[test]
fn unusable_models_and_directories() {
    let dir = place();
    let run = |args: &str, parts: &[&str]| fails(dir.path(), args, parts);
    run(
        &format!("make m.gguf {SMALL} --bpw 4 -o cal.txt"),
        &["cal.txt: this is a file; name a directory"],
    );
    run(
        &format!("make nowhere.gguf {SMALL} --bpw 4 -o out"),
        &["nowhere.gguf"],
    );
    succeeds(dir.path(), "quantize m.gguf q8.gguf Q8_0");
    let told = ["quantized already", "--allow-requantize", "is q8_0"];
    run(&format!("make q8.gguf {SMALL} --bpw 4 -o out"), &told);
    run(&format!("frontier q8.gguf {SMALL} -o out"), &told);
    succeeds(
        dir.path(),
        &format!("make q8.gguf {SMALL} --bpw 4 -o again --allow-requantize"),
    );
    assert_eq!(models(&dir.path().join("again")).len(), 1);
    // Importance matrices of other models: another width, and other names.
    let own = Imatrix::read(&dir.path().join("again/imatrix.gguf")).unwrap();
    let mut other = own.clone();
    other
        .entries
        .get_mut("blk.1.ffn_up.weight")
        .unwrap()
        .sums
        .truncate(128);
    other.write_gguf(&dir.path().join("other.gguf")).unwrap();
    let with = |imatrix: &str| format!("make m.gguf {SMALL} --bpw 4 --imatrix {imatrix} -o out");
    run(
        &with("other.gguf"),
        &[
            "blk.1.ffn_up.weight",
            "128 values, but 256 are needed",
            "another model",
        ],
    );
    other.entries = [(
        "encoder.weight".to_owned(),
        own.entries["blk.0.attn_q.weight"].clone(),
    )]
    .into();
    other.write_gguf(&dir.path().join("other.gguf")).unwrap();
    run(
        &with("other.gguf"),
        &["has none of this model's tensors", "encoder.weight"],
    );
    run(&with("cal.txt"), &["cal.txt"]);
}

/// The small trained model in F32 with changes: tensors are omitted if `change` returns `None`.
fn changed(change: impl Fn(&str, Vec<f32>) -> Option<Vec<f32>>) -> Tiny {
    let model = crate::support::models::refmodel();
    let mut tiny = Tiny {
        metadata: model.metadata,
        tensors: Vec::new(),
    };
    for (info, data) in model.tensors {
        let mut weights = vec![0.0; info.shape.elements() as usize];
        Codec::of(info.ggml_type)
            .unwrap()
            .dequantize_row(&data, &mut weights);
        if let Some(weights) = change(&info.name, weights) {
            tiny = tiny.weights(&info.name, info.shape.dims(), weights);
        }
    }
    tiny
}

/// Small random weights.
fn noise(seed: u64, dims: &[u64]) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..dims.iter().product())
        .map(|_| rng.gaussian() * 0.04)
        .collect()
}

#[test]
fn unsupported_models_use_weighted_errors() {
    let dir = place();
    succeeds(dir.path(), "imatrix m.gguf -f cal.txt -c 64 -o i.gguf");
    succeeds(
        dir.path(),
        "quantize --override-kv general.architecture=str:rwkv6 --override-kv rwkv6.block_count=int:6 m.gguf r.gguf COPY",
    );
    let parts = ["rwkv6", "--score imatrix --imatrix FILE"];
    fails(
        dir.path(),
        &format!("make r.gguf {SMALL} --bpw 4 -o out"),
        &parts,
    );
    for how in ["", "--score imatrix"] {
        let ran = quantier(&format!(
            "make r.gguf {SMALL} --bpw 4 --imatrix i.gguf {how} -o out"
        ))
        .current_dir(dir.path())
        .assert();
        let error = String::from_utf8_lossy(&ran.get_output().stderr).into_owned();
        ran.success();
        assert!(
            error.contains("warning: ") && error.contains("twice the divergence"),
            "{error}"
        );
        assert!(error.contains("were not measured"), "{error}");
    }
    let frontier = frontier_of(&dir.path().join("out"));
    assert!(frontier.files[0].measured.is_none() && frontier.files[0].bytes > 0);
    // The same types as for the runnable model, except for the architecture's name.
    make(
        dir.path(),
        "--bpw 4 --imatrix i.gguf --score imatrix -o runs",
    );
    let runs = frontier_of(&dir.path().join("runs"));
    assert_eq!(runs.files[0].recipe, frontier.files[0].recipe);
    assert!(runs.files[0].measured.is_some());
}

#[test]
fn nonfinite_gradients_are_named() {
    let dir = place();
    // All activations are zero, and every norm multiplies gradients by 1e19.
    let zero = |name: &str, weights: Vec<f32>| match name {
        "token_embd.weight" => Some(vec![0.0; weights.len()]),
        _ => Some(weights),
    };
    let model = changed(zero).set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-38));
    model.write(&dir.path().join("steep.gguf"));
    let error = stderr(
        dir.path(),
        &format!("make steep.gguf {SMALL} --bpw 4 -o out"),
        1,
    );
    assert!(
        error.contains("layer ") && error.contains("chunk ") && error.contains("--score imatrix"),
        "{error}"
    );
    let left = listing(&dir.path().join("out/work"));
    assert!(
        left.iter()
            .all(|(path, _)| !path.to_string_lossy().ends_with(".resume")),
        "{left:?}"
    );
}

#[test]
fn tensor_without_statistics_is_reported_and_unchanged() {
    let dir = place();
    let model = changed(|_, weights| Some(weights)).weights(
        "blk.0.idle.weight",
        &[256, 32],
        noise(4, &[256, 32]),
    );
    model.write(&dir.path().join("idle.gguf"));
    let run = |rest: &str, kept: &str| {
        let ran = quantier(&format!("make idle.gguf {SMALL} --bpw 4 {rest} -o out"))
            .current_dir(dir.path())
            .assert();
        let error = String::from_utf8_lossy(&ran.get_output().stderr).into_owned();
        ran.success();
        assert!(
            error.contains("1 of 45 tensors (blk.0.idle.weight) are multiplied by nothing"),
            "{error}"
        );
        assert_eq!(
            frontier_of(&dir.path().join("out")).files[0].recipe["blk.0.idle.weight"],
            kept,
            "{rest}"
        );
    };
    run("", "q8_0");
    run("--pin idle=q4_K", "q4_K");
}

/// A mixture-of-experts model of two layers: the small trained model with four random experts in
/// place of each FFN.
fn experts() -> Tiny {
    const LAYERS: [&str; 2] = ["blk.0.", "blk.1."];
    let stays =
        |name: &str| !name.starts_with("blk.") || LAYERS.iter().any(|l| name.starts_with(l));
    let mut model = changed(|name, weights| {
        (stays(name) && !name.contains("ffn_")
            || name.contains("0.ffn_norm")
            || name.contains("1.ffn_norm"))
        .then_some(weights)
    })
    .set("llama.block_count", Value::U32(2))
    .set("llama.feed_forward_length", Value::U32(256))
    .set("llama.expert_count", Value::U32(4))
    .set("llama.expert_used_count", Value::U32(2));
    for (i, layer) in LAYERS.iter().enumerate() {
        let parts: [(&str, &[u64]); 4] = [
            ("ffn_gate_inp", &[256, 4]),
            ("ffn_gate_exps", &[256, 256, 4]),
            ("ffn_up_exps", &[256, 256, 4]),
            ("ffn_down_exps", &[256, 256, 4]),
        ];
        for (j, (part, dims)) in parts.iter().enumerate() {
            model = model.weights(
                &format!("{layer}{part}.weight"),
                dims,
                noise((10 * i + j) as u64, dims),
            );
        }
    }
    model
}

#[test]
fn experts_of_a_layer_share_a_type() {
    let dir = place();
    experts().write(&dir.path().join("moe.gguf"));
    let run = |rest: &str| json(dir.path(), &format!("make moe.gguf {SMALL} {rest} --json"));
    let plan = run("--bpw 5 -o out --dry-run");
    // Attention, three tensors of four experts in two layers, embedding and output, without
    // routers.
    assert_eq!(
        (plan["tensors"].as_u64(), plan["matrices"].as_u64()),
        (Some(16), Some(34)),
        "{plan}"
    );
    let made = run("--bpw 3.5 --bpw 5 --bpw 7 -o out");
    let files = made["files"].as_array().unwrap();
    let kld: Vec<_> = files
        .iter()
        .map(|f| f["measured"]["kld"].as_f64().unwrap())
        .collect();
    assert!(kld.len() == 3 && kld.is_sorted_by(|a, b| a > b), "{kld:?}");
    for path in models(&dir.path().join("out")) {
        let types = tensors(&path);
        assert!(types["blk.1.ffn_down_exps.weight"].0.is_quantized());
        succeeds(dir.path(), &format!("verify {}", path.display()));
    }
    let frontier = frontier_of(&dir.path().join("out"));
    assert_eq!(frontier.model.experts, Some(4));
    let down = frontier
        .tensors
        .iter()
        .find(|t| t.name == "blk.0.ffn_down_exps.weight")
        .unwrap();
    assert!(
        down.choices
            .windows(2)
            .all(|c| c[0].nats > c[1].nats || c[0].bytes == c[1].bytes),
        "{:?}",
        down.choices
    );
}

/// The arguments of a run with snapshots after every layer.
fn run(out: &str, settings: &str) -> String {
    format!("make m.gguf {settings} --bpw 3.2 --bpw 5 --checkpoint-every 0 -o {out}")
}

#[test]
fn killed_make_resumes_with_the_same_result() {
    let dir = place();
    let whole = start(dir.path(), &run("whole", SMALL))
        .wait_with_output()
        .unwrap();
    assert!(whole.status.success());
    let whole = dir.path().join("whole");
    let layers_done = |state: &Path| fs::read(state).ok().map(|bytes| bytes[40]);
    // Killed once the snapshot of a number of layers exists, one run after another in one
    // directory.
    let state = dir.path().join("out/work/scores.resume");
    let mut kills = 0;
    for wanted in [0, 2, 5] {
        let ready = || layers_done(&state).is_some_and(|done| done >= wanted);
        kills += usize::from(killed_when(dir.path(), &run("out", SMALL), ready));
    }
    assert!(kills > 0, "no run was killed in time");
    let last = start(dir.path(), &run("out", SMALL))
        .wait_with_output()
        .unwrap();
    assert!(
        last.status.success(),
        "{}",
        String::from_utf8_lossy(&last.stderr)
    );
    let out = dir.path().join("out");
    let result = |dir: &Path| {
        let kept: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(dir.join("work/scores.json")).unwrap())
                .unwrap();
        kept["result"].to_string()
    };
    assert_eq!(result(&out), result(&whole));
    for (a, b) in models(&out).iter().zip(models(&whole)) {
        assert!(
            a.file_name() == b.file_name() && fs::read(a).unwrap() == fs::read(&b).unwrap(),
            "{a:?}"
        );
    }
    assert!(!state.exists(), "the state is gone when the run has ended");
}

#[test]
fn stopped_make_keeps_its_results() {
    let dir = place();
    for after in [30, 300, 900] {
        let child = start(dir.path(), &run("out", SLOW));
        std::thread::sleep(Duration::from_millis(after));
        Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap();
        let asked = Instant::now();
        let ended = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&ended.stderr);
        assert!(
            asked.elapsed() < Duration::from_secs(60),
            "{:?} to stop",
            asked.elapsed()
        );
        // Without a handler yet, the signal ends the program at once.
        if let Some(code) = ended.status.code() {
            assert_eq!(code, 1, "{error}");
            assert!(
                error.contains("stopped; the same command resumes from out/work"),
                "{error}"
            );
        }
        let left = |dir: PathBuf| {
            if dir.exists() {
                listing(&dir)
            } else {
                Vec::new()
            }
        };
        let all = [
            left(dir.path().join("out")),
            left(dir.path().join("out/work")),
        ]
        .concat();
        assert!(
            all.iter()
                .all(|(path, _)| !path.to_string_lossy().ends_with(".partial")),
            "{all:?}"
        );
    }
}

#[test]
fn tuned_files_have_fewer_nats_and_survive_kills() {
    let dir = place();
    let line = format!("make m.gguf {SMALL} --bpw 2.8 --tune -o short");
    fails(dir.path(), &line, &["for training", "in all"]);
    fs::write(dir.path().join("cal.txt"), text(1, 2500)).unwrap();
    let run = |options: &str| make(dir.path(), &format!("--bpw 2.8 --compare none {options}"));
    let one = |out: &str| models(&dir.path().join(out)).remove(0);
    run("-o plain");
    run("--tune --tune-steps 20 -o tuned");
    let [plain, tuned] = ["plain", "tuned"].map(|out| frontier_of(&dir.path().join(out)));
    let nats = |frontier: &Frontier| frontier.files[0].measured.as_ref().unwrap().mean.value();
    assert!(
        nats(&tuned) < nats(&plain),
        "{}, {}",
        nats(&tuned),
        nats(&plain)
    );
    let outcome = tuned.files[0].tuned.as_ref().unwrap();
    assert!(
        outcome.steps > 0 && outcome.after < outcome.before,
        "{outcome:?}"
    );
    assert_eq!(plain.files[0].tuned, None);
    let [before, after] = ["plain", "tuned"].map(|out| tensors(&one(out)));
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|(a, b)| a.0 == b.0 && a.1.0 == b.1.0)
    );
    // Killed in the middle, with and without a snapshot, and at the end: the same bytes.
    let line = format!(
        "make m.gguf {SMALL} --bpw 2.8 --compare none --tune --tune-steps 20 --snapshot-every 0 -o killed"
    );
    let name = one("tuned")
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let work = dir.path().join("killed/work");
    for sign in ["tuning.resume", "tuned", "tuning.json"] {
        let sign = work.join(format!("{name}.{sign}"));
        killed_when(dir.path(), &line, || sign.exists());
    }
    succeeds(dir.path(), &line);
    let bytes = |path: PathBuf| fs::read(path).unwrap();
    assert!(bytes(one("killed")) == bytes(one("tuned")));
    assert!(!work.join(format!("{name}.tuned")).exists());
    // Without tuning, the file is written again.
    run("-o killed");
    assert!(bytes(one("killed")) == bytes(one("plain")));
}

#[test]
fn files_are_compared_with_measured_presets_next_to_them() {
    let dir = place();
    let run = |options: &str| make(dir.path(), &format!("--bpw 4.25 {options}"));
    run("-o out");
    let frontier = frontier_of(&dir.path().join("out"));
    let measured = frontier
        .presets
        .iter()
        .filter(|preset| preset.measured.is_some());
    let sizes: Vec<u64> = measured.map(|preset| preset.bytes).collect();
    let size = frontier.files[0].bytes;
    // The file lies between two presets; both are measured, and no other.
    assert!(
        sizes.len() == 2 && sizes[0] < size && size < sizes[1],
        "{sizes:?}, {size}"
    );
    let comparison = frontier.comparison(&frontier.files[0]).unwrap();
    assert!(comparison.ratio() < 1.0);
    assert!(!dir.path().join("out/work/presets").exists());
    let text = run("-o none --compare none");
    assert!(!text.contains("presets"), "{text}");
    let frontier = frontier_of(&dir.path().join("none"));
    assert!(
        frontier
            .presets
            .iter()
            .all(|preset| preset.measured.is_none())
    );
}
