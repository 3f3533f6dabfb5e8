//! Refusals of the program, and the state after a stopped or failed run.

use crate::support::gguf::{dat, info};
use crate::support::program::{
    bash, fail_each, fails, importance, listing, model, quantier, sparse, stderr, succeeds,
    usage_errors, with_model,
};
use quantier_gguf::types::GgmlType;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[test]
fn unsupported_instruction_sets_are_refused_and_others_give_equal_bytes() {
    let dir = with_model();
    let with = |isa: &str, args: &str| {
        quantier(args)
            .env("QUANTIER_ISA", isa)
            .current_dir(dir.path())
            .assert()
    };
    let ran = with("sse9", "quantize m.gguf o.gguf Q4_K_M").code(2);
    let error = String::from_utf8_lossy(&ran.get_output().stderr).into_owned();
    assert!(
        error.contains("QUANTIER_ISA=sse9") && error.contains("scalar"),
        "{error}"
    );
    assert!(!dir.path().join("o.gguf").exists());
    with("scalar", "quantize m.gguf plain.gguf Q4_K_M").success();
    succeeds(dir.path(), "quantize m.gguf best.gguf Q4_K_M");
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(read("plain.gguf") == read("best.gguf"));
}

#[test]
fn wrong_usage() {
    let dir = with_model();
    usage_errors(
        dir.path(),
        &[
            ("", &["Usage"]),
            ("quantise m.gguf", &["quantise"]),
            ("quantize", &["Usage"]),
            ("quantize m.gguf", &["Usage"]),
            (
                "quantize m.gguf out.gguf Q4_X_M",
                &["'Q4_X_M' is not a type"],
            ),
            ("quantize m.gguf out.gguf", &["'out.gguf' is not a type"]),
            ("quantize m.gguf out.gguf 999", &["'999' is not a type"]),
            ("quantize m.gguf out.gguf Q4_0 many", &["threads"]),
            ("quantize m.gguf Q4_0 4 5", &["Usage"]),
            ("quantize --pur m.gguf Q4_0", &["--pur"]),
            (
                "quantize --tensor-type ffn_up m.gguf Q4_0",
                &["'ffn_up'", "NAME=GGML_TYPE"],
            ),
            (
                "quantize --tensor-type ffn_up=q9_9 m.gguf Q4_0",
                &["q9_9", "no such type"],
            ),
            (
                "quantize --tensor-type (=q4_0 m.gguf Q4_0",
                &["regular expression"],
            ),
            (
                "quantize --output-tensor-type nothing m.gguf Q4_0",
                &["no such type"],
            ),
            (
                "quantize --override-kv a=u8:1 m.gguf Q4_0",
                &["'u8' is not a type"],
            ),
            ("quantize --override-kv a=int:x m.gguf Q4_0", &["'x'"]),
            (
                "quantize --also Q4_0 m.gguf Q8_0",
                &["'Q4_0' is not TYPE=PATH"],
            ),
            ("quantize --prune-layers 1,x m.gguf Q8_0", &["x"]),
            (
                "quantize --include-weights a --exclude-weights b m.gguf Q8_0",
                &["cannot be used with"],
            ),
        ],
    );
}

#[test]
fn inputs_that_cannot_be_read() {
    let dir = with_model();
    fail_each(
        dir.path(),
        &[
            ("quantize nowhere.gguf Q4_0", &["cannot open nowhere.gguf"]),
            ("inspect .", &["directory"]),
            (
                "quantize . out.gguf Q4_0",
                &[
                    "no config.json",
                    "name the directory of a Hugging Face model",
                ],
            ),
            (
                "quantize --imatrix nowhere.dat m.gguf Q4_0",
                &["nowhere.dat"],
            ),
            (
                "quantize --tensor-type-file nowhere.txt m.gguf Q4_0",
                &["nowhere.txt"],
            ),
        ],
    );
    Command::new("mkfifo")
        .arg(dir.path().join("pipe"))
        .status()
        .unwrap();
    fails(dir.path(), "inspect pipe", &["pipe", "save it to a file"]);
    let whole = fs::read(dir.path().join("m.gguf")).unwrap();
    for len in [0, 3, 100, whole.len() / 2, whole.len() - 40] {
        fs::write(dir.path().join("cut.gguf"), &whole[..len]).unwrap();
        for command in [
            "quantize cut.gguf out.gguf Q4_0",
            "inspect cut.gguf",
            "verify cut.gguf",
        ] {
            fails(dir.path(), command, &["cut.gguf"]);
        }
    }
    fails(
        dir.path(),
        "quantize cut.gguf out.gguf Q4_0",
        &["beyond the end", "get it again"],
    );
}

#[test]
fn outputs_that_cannot_be_written() {
    let dir = with_model();
    fails(
        dir.path(),
        "quantize m.gguf no/such/dir/out.gguf Q4_0",
        &["create", "out.gguf", "create the directory no/such/dir"],
    );
    fs::create_dir(dir.path().join("folder.gguf")).unwrap();
    fail_each(
        dir.path(),
        &[
            (
                "quantize m.gguf folder.gguf Q4_0",
                &["folder.gguf", "directory"],
            ),
            (
                "quantize m.gguf /dev/full Q4_0",
                &["cannot write /dev/full", "No space left"],
            ),
            (
                "quantize m.gguf a.gguf Q4_0 --also Q8_0=/dev/full",
                &["/dev/full"],
            ),
            (
                "quantize m.gguf a.gguf Q4_0 --also Q8_0=a.gguf",
                &["two outputs", "a.gguf"],
            ),
            (
                "quantize m.gguf a.gguf Q4_0 --also Q8_0=./a.gguf",
                &["a.gguf"],
            ),
        ],
    );
    let locked = dir.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write anywhere.
    if fs::write(locked.join("probe"), b"").is_err() {
        fails(
            dir.path(),
            "quantize m.gguf locked/out.gguf Q4_0",
            &["locked", "choose a directory"],
        );
    }
    // Standard output on a full device.
    let ran = bash(dir.path(), "$quantier inspect m.gguf > /dev/full").code(1);
    let error = String::from_utf8_lossy(&ran.get_output().stderr).into_owned();
    assert!(error.contains("cannot write to standard output"), "{error}");
}

#[test]
fn inputs_are_never_overwritten() {
    let dir = with_model();
    let at = |name: &str| dir.path().join(name);
    let before = fs::read(at("m.gguf")).unwrap();
    fs::hard_link(at("m.gguf"), at("hard.gguf")).unwrap();
    symlink("m.gguf", at("soft.gguf")).unwrap();
    importance(|_| true).write(&at("i.gguf"));
    for name in ["m.gguf", "./m.gguf", "hard.gguf", "soft.gguf"] {
        fail_each(
            dir.path(),
            &[
                (
                    &format!("quantize m.gguf {name} Q4_0"),
                    &[name, "is an input"],
                ),
                (
                    &format!("quantize m.gguf new.gguf Q4_0 --also Q8_0={name}"),
                    &[name, "is an input"],
                ),
            ],
        );
    }
    fails(
        dir.path(),
        "quantize --imatrix i.gguf m.gguf i.gguf Q4_0",
        &["i.gguf is an input"],
    );
    fs::rename(at("m.gguf"), at("m.gguf.partial")).unwrap();
    fails(
        dir.path(),
        "quantize m.gguf.partial m.gguf Q4_0",
        &["m.gguf.partial is an input"],
    );
    assert!(fs::read(at("m.gguf.partial")).unwrap() == before);
}

#[test]
fn nonfinite_weights() {
    let dir = with_model();
    for (value, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "infinit")] {
        let mut broken = model();
        let (name, data) = broken
            .tensors
            .iter_mut()
            .map(|(info, data)| (info.name.to_string(), data))
            .nth(2)
            .unwrap();
        let at = 4 * (2 * 256 + 100); // row 2
        data[at..at + 4].copy_from_slice(&value.to_le_bytes());
        broken.write(&dir.path().join("broken.gguf"));
        let named = format!("'{name}'");
        for preset in ["Q4_K_M", "Q8_0", "F16", "COPY"] {
            let error = fails(
                dir.path(),
                &format!("quantize broken.gguf out.gguf {preset}"),
                &[&named, "row 2"],
            );
            assert!(
                error.to_lowercase().contains(&said.to_lowercase()),
                "{error}"
            );
        }
        quantier("verify broken.gguf")
            .current_dir(dir.path())
            .assert()
            .code(1);
    }
}

#[test]
fn quantized_models_are_requantized_only_on_request() {
    let dir = with_model();
    succeeds(dir.path(), "quantize m.gguf q8.gguf Q8_0");
    fails(
        dir.path(),
        "quantize q8.gguf q4.gguf Q4_0",
        &["quantized already", "--allow-requantize"],
    );
    succeeds(
        dir.path(),
        "quantize --allow-requantize q8.gguf q4.gguf Q4_0",
    );
}

#[test]
fn importance_of_another_model() {
    let dir = with_model();
    let mut other = importance(|_| true);
    let at = other
        .tensors
        .iter()
        .position(|(info, _)| info.name == "blk.1.ffn_up.weight.in_sum2")
        .unwrap();
    other.tensors[at] = (
        info("blk.1.ffn_up.weight.in_sum2", &[128], GgmlType::F32),
        vec![0; 512],
    );
    other.write(&dir.path().join("other.gguf"));
    let parts = [
        "blk.1.ffn_up.weight",
        "128 values, but 256 are needed",
        "another model",
    ];
    fails(
        dir.path(),
        "quantize --imatrix other.gguf m.gguf out.gguf Q4_K_M",
        &parts,
    );
}

#[test]
fn nonfinite_importance() {
    let dir = with_model();
    fs::write(
        dir.path().join("nan.dat"),
        dat(&[("blk.0.ffn_up.weight", 1, &[1.0, f32::NAN])]),
    )
    .unwrap();
    let parts = [
        "nan.dat",
        "value 1 of 'blk.0.ffn_up.weight' is NaN",
        "again",
    ];
    fails(
        dir.path(),
        "quantize --imatrix nan.dat m.gguf out.gguf Q4_K_M",
        &parts,
    );
    fs::write(
        dir.path().join("cut.dat"),
        &dat(&[("blk.0.ffn_up.weight", 1, &[1.0; 256])])[..700],
    )
    .unwrap();
    fails(
        dir.path(),
        "quantize --imatrix cut.dat m.gguf out.gguf Q4_K_M",
        &["cut.dat", "ends at byte 700"],
    );
}

#[test]
fn missing_required_importance() {
    let dir = with_model();
    let needy = ["blk.0.ffn_up.weight", "blk.2.attn_k.weight"];
    importance(|name| !needy.contains(&name)).write(&dir.path().join("i.gguf"));
    let error = fails(
        dir.path(),
        "quantize --imatrix i.gguf m.gguf out.gguf IQ2_XXS",
        &[
            needy[0],
            needy[1],
            "importance matrix",
            "--imatrix",
            "nothing was written",
        ],
    );
    assert!(!error.contains("blk.1.ffn_up.weight"), "{error}");
    fails(
        dir.path(),
        "quantize m.gguf out.gguf IQ2_XXS",
        &["blk.1.ffn_up.weight", "blk.0.attn_q.weight", "--imatrix"],
    );
    let shown = succeeds(dir.path(), "quantize --dry-run m.gguf out.gguf IQ2_XXS");
    assert!(
        shown.contains("requires an importance matrix for"),
        "{shown}"
    );
}

/// Starts a run of about a minute, and waits until it writes.
fn start(dir: &Path) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_quantier"))
        .args(["quantize", "big.gguf", "out.gguf", "Q4_K_S", "1"])
        .current_dir(dir)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !dir.join("out.gguf.partial").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never began");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn signal(child: &Child, name: &str) {
    assert!(
        Command::new("kill")
            .args([&format!("-{name}"), &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// A model of zeros is quantized too quickly in most types; this one has 2 GiB of zeros, without
/// allocated disk blocks.
fn big() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    sparse(&dir.path().join("big.gguf"), 2048);
    dir
}

#[test]
fn stopped_runs_leave_no_files() {
    for name in ["INT", "TERM"] {
        let dir = big();
        let mut child = start(dir.path());
        std::thread::sleep(Duration::from_millis(50));
        signal(&child, name);
        let asked = Instant::now();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(1), "{name}");
        assert!(
            asked.elapsed() < Duration::from_secs(20),
            "{:?} to stop",
            asked.elapsed()
        );
        let mut error = String::new();
        std::io::Read::read_to_string(&mut child.stderr.unwrap(), &mut error).unwrap();
        assert!(error.contains("stopped; nothing was written"), "{error}");
        assert_eq!(listing(dir.path()).len(), 1, "only the input is there");
    }
}

#[test]
fn killed_runs_can_be_repeated() {
    let dir = big();
    let mut child = start(dir.path());
    signal(&child, "KILL");
    child.wait().unwrap();
    assert!(!dir.path().join("out.gguf").exists());
    // The same command on a smaller model.
    model().write(&dir.path().join("big.gguf"));
    succeeds(dir.path(), "quantize big.gguf out.gguf Q4_K_S 1");
    succeeds(dir.path(), "verify out.gguf");
    assert_eq!(listing(dir.path()).len(), 2, "no partial file is left");
}

#[test]
fn concurrent_runs_on_one_output_are_refused() {
    let dir = big();
    let mut child = start(dir.path());
    let error = stderr(dir.path(), "quantize big.gguf out.gguf Q8_0 1", 1);
    assert!(error.contains("another process is writing it"), "{error}");
    signal(&child, "INT");
    child.wait().unwrap();
}
