//! The built program, and small models for it.

use super::gguf::Tiny;
use assert_cmd::Command;
use assert_cmd::assert::Assert;
use quantier_core::rng::Rng;
use quantier_gguf::gguf::Value;
use quantier_gguf::types::GgmlType;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Every row of the model is one super-block.
pub const WIDTH: u64 = 256;
pub const LAYERS: u32 = 3;

/// Path of the built program.
pub const BINARY: &str = env!("CARGO_BIN_EXE_quantier");

/// The program with arguments given as one string, separated by blanks.
pub fn quantier(args: &str) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(args.split_whitespace())
        .env("QUANTIER_CONFIG", no_defaults());
    command
}

/// An empty configuration file, to ignore that of the developer.
pub fn no_defaults() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/support/no-defaults.toml")
}

/// Runs the program in a directory; it must succeed. Returns its output.
#[track_caller]
pub fn succeeds(dir: &Path, args: &str) -> String {
    let output = quantier(args).current_dir(dir).assert().success();
    String::from_utf8(output.get_output().stdout.clone()).unwrap()
}

/// As [`succeeds`], with JSON output.
#[track_caller]
pub fn json(dir: &Path, args: &str) -> serde_json::Value {
    serde_json::from_str(&succeeds(dir, args)).expect("JSON")
}

/// Runs the program in a directory; it must end with this exit code. Returns its standard error.
#[track_caller]
pub fn stderr(dir: &Path, args: &str, code: i32) -> String {
    let output = quantier(args).current_dir(dir).assert().code(code);
    String::from_utf8(output.get_output().stderr.clone()).unwrap()
}

/// Runs the program in a directory; it must fail with exit code 1 and one error with all of
/// `parts`, and leave no new files.
#[track_caller]
pub fn fails(dir: &Path, args: &str, parts: &[&str]) -> String {
    let before = listing(dir);
    let error = stderr(dir, args, 1);
    assert!(
        error.starts_with("error: ") && !error.contains("panicked"),
        "{error}"
    );
    parts.iter().for_each(|part| {
        assert!(
            error.contains(part),
            "the error does not say {part:?}: {error}"
        )
    });
    assert!(
        error.lines().filter(|line| line.trim().is_empty()).count() == 0,
        "more than one paragraph: {error}"
    );
    assert_eq!(listing(dir), before, "after: {error}");
    error
}

/// As [`fails`], one run per row.
#[track_caller]
pub fn fail_each(dir: &Path, rows: &[(&str, &[&str])]) {
    for (args, parts) in rows {
        fails(dir, args, parts);
    }
}

/// Runs the program in a directory once per row; each run must fail with exit code 2 and an error
/// with all of the row's parts, and change nothing.
#[track_caller]
pub fn usage_errors(dir: &Path, rows: &[(&str, &[&str])]) {
    let before = listing(dir);
    for (args, parts) in rows {
        let error = stderr(dir, args, 2);
        for part in *parts {
            assert!(error.contains(part), "{args}: no {part:?} in: {error}");
        }
        assert!(
            error.contains("Usage: ") || error.contains("try '--help'"),
            "{args}: no way to the help in: {error}"
        );
    }
    assert_eq!(listing(dir), before);
}

/// Runs a line of bash in a directory; `$quantier` is the program.
pub fn bash(dir: &Path, line: &str) -> Assert {
    Command::new("bash")
        .args(["-c", line])
        .env("quantier", BINARY)
        .env("QUANTIER_CONFIG", no_defaults())
        .current_dir(dir)
        .assert()
}

/// Starts the program in a directory; its standard error is piped.
pub fn start(dir: &Path, args: &str) -> Child {
    std::process::Command::new(BINARY)
        .args(args.split_whitespace())
        .env("QUANTIER_CONFIG", no_defaults())
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Starts the program and kills it once `ready` is true; returns false if it ended before.
#[track_caller]
pub fn killed_when(dir: &Path, args: &str, mut ready: impl FnMut() -> bool) -> bool {
    let mut child = start(dir, args);
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if ready() {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(300),
            "{args}: the time to kill it never came"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}

/// A directory with [`model`] as `m.gguf`.
pub fn with_model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    model().write(&dir.path().join("m.gguf"));
    dir
}

/// The bytes of a file in a directory.
pub fn read(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Path of the trained model in testdata/.
pub fn refmodel() -> String {
    format!("{}/testdata/refmodel-f16.gguf", env!("CARGO_MANIFEST_DIR"))
}

/// Names and lengths of the files in a directory.
pub fn listing(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entry = |e: std::io::Result<std::fs::DirEntry>| {
        let path = e.unwrap().path();
        let len = path.metadata().map_or(0, |m| m.len());
        (path, len)
    };
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(entry).collect();
    files.sort();
    files
}

/// Names and dimensions of the tensors of a small llama.
pub fn tensors() -> Vec<(String, Vec<u64>)> {
    let mut all = vec![
        ("token_embd.weight".to_owned(), vec![WIDTH, 12]),
        ("output_norm.weight".into(), vec![WIDTH]),
    ];
    for layer in 0..LAYERS {
        for (part, rows) in [
            ("attn_q", 6),
            ("attn_k", 4),
            ("attn_v", 4),
            ("attn_output", 5),
            ("ffn_up", 8),
        ] {
            all.push((format!("blk.{layer}.{part}.weight"), vec![WIDTH, rows]));
        }
        all.push((format!("blk.{layer}.ffn_down.weight"), vec![2 * WIDTH, 5]));
        all.push((format!("blk.{layer}.attn_norm.weight"), vec![WIDTH]));
    }
    all.push(("output.weight".into(), vec![WIDTH, 12]));
    all
}

/// A small llama without tensors.
pub fn head() -> Tiny {
    Tiny::default()
        .set("general.architecture", Value::str("llama"))
        .set("general.name", Value::str("tiny"))
        .set("llama.block_count", Value::U32(LAYERS))
        .set("llama.attention.head_count", Value::U32(8))
        .set("llama.attention.head_count_kv", Value::U32(4))
        .set("llama.rope.freq_base", Value::F32(0.1))
}

/// A small llama in f32.
pub fn model() -> Tiny {
    let mut rng = Rng::new(7);
    tensors().into_iter().fold(head(), |model, (name, dims)| {
        let n = dims.iter().product::<u64>();
        model.weights(
            &name,
            &dims,
            (0..n).map(|_| rng.gaussian() * 0.02).collect::<Vec<_>>(),
        )
    })
}

/// An importance matrix for all its matrices accepted by `wanted`.
pub fn importance(wanted: impl Fn(&str) -> bool) -> Tiny {
    let mut rng = Rng::new(8);
    let mut file = super::gguf::imatrix();
    file.tensors.clear();
    for (name, dims) in tensors()
        .into_iter()
        .filter(|(name, dims)| dims.len() == 2 && wanted(name))
    {
        let sums: Vec<_> = (0..dims[0]).map(|_| rng.uniform() + 0.01).collect();
        file = file.weights(&format!("{name}.in_sum2"), &[dims[0], 1], sums);
        file = file.weights(&format!("{name}.counts"), &[1, 1], [9.0]);
    }
    file
}

/// A sparse file with a model of `mib` MiB of zeros.
pub fn sparse(path: &Path, mib: u64) {
    let rows = mib * (1 << 20) / 2 / WIDTH;
    let mut file = head().zeros("blk.0.ffn_up.weight", &[WIDTH, 1], GgmlType::F16);
    file.tensors[0].0 = super::gguf::info("blk.0.ffn_up.weight", &[WIDTH, rows], GgmlType::F16);
    let infos = [file.tensors[0].0.clone()];
    let layout = quantier_gguf::gguf::Layout::new(&file.metadata, &infos, 32);
    std::fs::write(path, layout.header()).unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(layout.file_bytes())
        .unwrap();
}

/// A directory with the trained model, and two texts without common paragraphs.
pub fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(refmodel(), dir.path().join("m.gguf")).unwrap();
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/texts");
    std::fs::copy(texts.join("calibration.txt"), dir.path().join("cal.txt")).unwrap();
    std::fs::copy(texts.join("evaluation.txt"), dir.path().join("eval.txt")).unwrap();
    dir
}

/// Mean divergence of a file from the model, on the second text.
pub fn divergence(dir: &Path, file: &str) -> f64 {
    let found = json(
        dir,
        &format!("kld m.gguf {file} -f eval.txt -c 128 --chunks 12 --json"),
    );
    let find = |found: &serde_json::Value| -> Option<f64> {
        found
            .pointer("/models/0/statistics/kld/value")
            .and_then(serde_json::Value::as_f64)
    };
    find(&found).unwrap_or_else(|| panic!("no divergence in {found}"))
}

/// Names and types of the tensors of a file.
pub fn types(dir: &Path, file: &str) -> Vec<(String, serde_json::Value)> {
    let inspected = json(dir, &format!("inspect --json {file}"));
    inspected["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| {
            (
                tensor["name"].as_str().unwrap().to_owned(),
                tensor["type"].clone(),
            )
        })
        .collect()
}

/// Number of tensors with error feedback in the first output of `quantize --json`; none may be
/// worse than the reference's rounding.
#[track_caller]
pub fn proven(printed: &serde_json::Value) -> usize {
    let proofs = printed["outputs"][0]["feedback"].as_array().unwrap();
    for proof in proofs {
        let [reference, taken] = ["reference", "taken"].map(|key| proof[key].as_f64().unwrap());
        assert!(taken <= reference && reference > 0.0, "{proof}");
    }
    proofs.len()
}
