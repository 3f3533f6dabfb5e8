//! `make --engine llama.cpp=DIR`, with a small llama.cpp of shell scripts around this program: real
//! importance matrices, log-probabilities and divergences, in the formats and words of the original.

use crate::support::models::shortened;
use crate::support::program::{
    BINARY, fails, json, killed_when, listing, quantier, stderr, succeeds, usage_errors,
};
use quantier_report::data::{Frontier, Score};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Arguments of both programs, as variables of the shell. Every call is counted.
const ARGUMENTS: &str = r#"#!/usr/bin/env bash
set -e
here=$(dirname "$0")
echo "$(basename "$0") $*" >>"$here/calls"
while [ $# -gt 0 ]; do
    case $1 in
        --version) echo "version: 7 (fake)" >&2; exit 0 ;;
        -m) model=$2; shift ;;
        -f) text=$2; shift ;;
        -o) output=$2; shift ;;
        -c) context=$2; shift ;;
        -t | --rpc) shift ;;
        --chunks) chunks="--chunks $2"; shift ;;
        --kl-divergence-base) logits=$2; shift ;;
        --kl-divergence) compare=1 ;;
    esac
    shift
done
"#;

/// llama-imatrix in its own words.
const IMATRIX: &str = r#"
echo "compute_imatrix: tokenizing the input .." >&2
"$QUANTIER" imatrix -m "$model" -f "$text" -o "$output" -c "$context" --process-output --no-ppl >&2
"#;

/// llama-perplexity in its own words.
const PERPLEXITY: &str = r#"
if [ -z "$compare" ]; then
    "$QUANTIER" perplexity -m "$model" -f "$text" -c "$context" $chunks --save-logits "$logits" >&2
    echo "[1]4.0000,[2]5.0000,"
    exit 0
fi
found=$("$QUANTIER" kld --logits "$logits" "$model" --json)
figure() { grep -o "\"$1\":{\"value\":[^,]*,\"uncertainty\":[^}]*" <<<"$found" | head -n 1 | sed 's/[^:]*:[^:]*:\([^,]*\),[^:]*:\(.*\)/\1 \2/'; }
read -r kld error <<<"$(figure kld)"
read -r top _ <<<"$(figure same_top)"
read -r ratio _ <<<"$(figure log_ratio)"
count=$(grep -o '"chunks":[0-9]*' <<<"$found" | head -n 1 | cut -d: -f2)
echo "chunk  PPL  ln(PPL(Q)/PPL(base))  KL Divergence  RMS  Same top p"
printf '%4d  50.0 ± 1.0  %.5f ± 0.1  %.5f ± %.5f  2.8 ± 0.2 %%  %.3f ± 1.5 %%\n\n' "$count" "$ratio" "$kld" "$error" \
    "$(printf '%.5fe2' "$top")"
[ -f "$here/silent" ] && { rm "$here/silent"; exit 0; }
printf 'Mean    KLD: %10.6f ± %10.6f\n99.9%%   KLD:   0.5\nMedian  KLD:   0.1\n' "$kld" "$error"
"#;

fn script(path: &Path, text: &str) {
    fs::write(path, text.replace("$QUANTIER", BINARY)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A directory with a small model, both texts, and a llama.cpp.
fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    shortened(1).write(&dir.path().join("m.gguf"));
    let text = |begin: usize, words: usize| -> String {
        let word = |i: usize| ["river", "house", "glass", "green", "old"][i * i % 5];
        (begin..begin + words)
            .map(|i| match i % 12 {
                11 => ".\n\n".to_owned(),
                _ => format!("{} {} ", word(i), i % 7),
            })
            .collect()
    };
    fs::write(dir.path().join("cal.txt"), text(0, 400)).unwrap();
    fs::write(dir.path().join("eval.txt"), text(5000, 200)).unwrap();
    fs::create_dir(dir.path().join("cpp")).unwrap();
    let cpp = dir.path().join("cpp");
    script(
        &cpp.join("llama-imatrix"),
        &(ARGUMENTS.to_owned() + IMATRIX),
    );
    script(
        &cpp.join("llama-perplexity"),
        &(ARGUMENTS.to_owned() + PERPLEXITY),
    );
    dir
}

const OPTIONS: &str = "-c 64 --score-chunks 3 -f cal.txt --eval eval.txt --types q2_K,q3_K,q4_K,q6_K,q8_0 \
                       --engine llama.cpp=cpp";

fn make(rest: &str) -> String {
    format!("make m.gguf {OPTIONS} {rest}")
}

/// As `succeeds`, but returns standard error.
#[track_caller]
fn runs(dir: &Path, args: &str) -> String {
    let ran = quantier(args).current_dir(dir).assert();
    let output = ran.get_output().clone();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ran.success();
    error
}

#[track_caller]
fn fails_saying(dir: &Path, args: &str, parts: &[&str]) -> String {
    let ran = quantier(args).current_dir(dir).assert().code(1);
    let error = String::from_utf8_lossy(&ran.get_output().stderr).into_owned();
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
    error
}

fn frontier(dir: &Path) -> Frontier {
    serde_json::from_str(&fs::read_to_string(dir.join("frontier.json")).unwrap()).unwrap()
}

/// Calls of a program so far, without those for its version.
fn calls(dir: &Path, program: &str) -> usize {
    let all = fs::read_to_string(dir.join("cpp/calls")).unwrap_or_default();
    all.lines()
        .filter(|line| line.starts_with(program) && !line.contains("--version"))
        .count()
}

fn names(dir: &Path) -> Vec<String> {
    let name = |(path, _): (PathBuf, u64)| path.file_name().unwrap().to_string_lossy().into_owned();
    listing(dir).into_iter().map(name).collect()
}

/// Files, recipes and the importance matrix.
fn results(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let is_result = |name: &String| name.ends_with(".gguf") || name.ends_with(".recipe.txt");
    let all = names(dir).into_iter().filter(is_result);
    all.map(|name| (name.clone(), fs::read(dir.join(name)).unwrap()))
        .collect()
}

#[test]
fn files_are_chosen_and_measured_by_the_programs() {
    let dir = place();
    let planned = json(
        dir.path(),
        &make("--bpw 4.25 --bpw 5.5 -o out --dry-run --json"),
    );
    assert_eq!(calls(dir.path(), "llama-"), 0, "a dry run runs nothing");
    assert!(!dir.path().join("out").exists());
    let stages = planned["stages"].as_array().unwrap();
    let stages: Vec<&str> = stages
        .iter()
        .map(|stage| stage["name"].as_str().unwrap())
        .collect();
    let order = [
        "importance matrix",
        "sensitivities",
        "probing logits",
        "probing",
        "evaluation logits",
        "files",
        "proof",
    ];
    assert_eq!(stages, order);

    let told = runs(
        dir.path(),
        &make("--bpw 4.25 --bpw 5.5 --compare Q4_K_M -o out"),
    );
    for part in [
        "llama-imatrix 7 (fake)",
        "llama-perplexity 7 (fake)",
        "not available there",
    ] {
        assert!(told.contains(part), "no {part:?} in: {told}");
    }
    let out = dir.path().join("out");
    let report = frontier(&out);
    assert_eq!(report.scoring.score, Score::FittedError);
    assert_eq!(
        report.evaluation.as_ref().unwrap().tool,
        "llama-perplexity 7 (fake)"
    );
    let correction = report.correction.as_ref().unwrap();
    // Vocabulary, queries, values, both halves of the feed-forward network; and one for all.
    assert_eq!((correction.parts.len(), correction.probes.len()), (5, 6));
    assert!(
        correction.parts.iter().all(|part| part.factor > 0.0),
        "{correction:?}"
    );
    assert!(correction.residual < 0.5, "{correction:?}");
    assert_eq!(calls(dir.path(), "llama-imatrix"), 1);
    // Two files of log-probabilities, six probing files, two files and a preset.
    assert_eq!(calls(dir.path(), "llama-perplexity"), 2 + 6 + 3);
    // The log-probabilities are as large as the dry run said.
    let logits = ["probing.logits", "evaluation.logits"];
    let there: u64 = logits
        .map(|name| out.join("work").join(name).metadata().unwrap().len())
        .iter()
        .sum();
    let bytes = planned["logits_bytes"].as_u64().unwrap();
    assert!(
        there.abs_diff(bytes) <= 40,
        "{bytes} were expected and {there} came"
    );
    // The divergence is that of this program on the same text.
    for file in &report.files {
        let args = format!("kld m.gguf out/{} -f eval.txt -c 64 --json", file.name);
        let kld = json(dir.path(), &args)["models"][0]["statistics"]["kld"]["value"]
            .as_f64()
            .unwrap();
        let measured = file.measured.as_ref().unwrap().mean.value();
        assert!((measured / kld - 1.0).abs() < 0.01, "{measured} and {kld}");
        let predicted = file.predicted;
        assert!(
            (0.3..3.0).contains(&(predicted / measured)),
            "{predicted} for {measured}"
        );
    }
    // The reference's rounding: the same bytes as those of `quantize` with the recipe.
    let name = &report.files[0].name;
    let label = name.rsplit_once('-').unwrap().1.trim_end_matches(".gguf");
    succeeds(
        dir.path(),
        &format!(
            "quantize --imatrix out/imatrix.gguf --tensor-type-file out/{name}.recipe.txt m.gguf q.gguf {label}"
        ),
    );
    let tensors =
        |path: &str| json(dir.path(), &format!("inspect {path} --json"))["tensors"].clone();
    assert_eq!(tensors(&format!("out/{name}")), tensors("q.gguf"));

    // Nothing is done again, and another budget needs the proof of its file only.
    let before = (calls(dir.path(), "llama-"), results(&out));
    runs(
        dir.path(),
        &make("--bpw 4.25 --bpw 5.5 --compare Q4_K_M -o out"),
    );
    assert_eq!((calls(dir.path(), "llama-"), results(&out)), before);
    runs(
        dir.path(),
        &make("--bpw 4.25 --bpw 5.5 --bpw 3.5 --compare none -o out"),
    );
    assert_eq!(calls(dir.path(), "llama-"), before.0 + 1);
    // A changed program is another one.
    let changed = ARGUMENTS.to_owned() + "# changed" + PERPLEXITY;
    script(&dir.path().join("cpp/llama-perplexity"), &changed);
    let again = json(dir.path(), &make("--bpw 4.25 -o out --dry-run --json"));
    let again = again["stages"].as_array().unwrap();
    assert!(
        again
            .iter()
            .all(|s| s["done"] == false || s["name"] == "files"),
        "{again:?}"
    );
    let left = names(&out.join("work"));
    let is_temporary = |name: &&String| {
        [".txt", ".log", ".unchecked", ".gguf", ".partial"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    assert_eq!(left.iter().filter(is_temporary).count(), 0, "{left:?}");
}

#[test]
fn budgets_in_nats_and_checkpoints_work() {
    let dir = place();
    let told = runs(dir.path(), &make("--kld 0.05 -o out"));
    assert!(!told.contains("is converted"), "{told}");
    let file = &frontier(&dir.path().join("out")).files[0];
    let kld = file.measured.as_ref().unwrap().mean.value();
    assert!((0.03..0.06).contains(&kld), "{kld}");
    runs(dir.path(), &format!("frontier m.gguf {OPTIONS} -o out"));

    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/refmodel");
    let args = make("--bpw 4.5 -o of-checkpoint --eval-chunks 2");
    let args = args.replace("m.gguf", &model.display().to_string());
    let told = runs(dir.path(), &args);
    assert!(
        told.contains("is converted to of-checkpoint/work/base.gguf"),
        "{told}"
    );
    let base = dir.path().join("of-checkpoint/work/base.gguf");
    let f16 = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/refmodel-f16.gguf");
    let kld = format!(
        "kld {} {} -f eval.txt -c 64 --json",
        f16.display(),
        base.display()
    );
    let kld = json(dir.path(), &kld)["models"][0]["statistics"]["kld"]["value"]
        .as_f64()
        .unwrap();
    assert!(kld.abs() < 1e-3, "{kld}");
    assert!(
        frontier(&dir.path().join("of-checkpoint")).files[0]
            .measured
            .is_some()
    );
}

#[test]
fn killed_runs_continue_with_the_same_bytes() {
    let dir = place();
    runs(dir.path(), &make("--bpw 4 -o whole"));
    let work = dir.path().join("out/work");
    let mut kills = 0;
    // SAFETY of names: the places at which a run is killed.
    for wanted in [
        "imatrix.json",
        "probing.logits.json",
        "probe-1.measured.json",
        "probe-4.measured.json",
    ] {
        let args = make("--bpw 4 -o out");
        let with_program = format!("{args} --name model");
        kills += usize::from(killed_when(dir.path(), &with_program, || {
            work.join(wanted).exists()
        }));
    }
    assert!(kills > 1, "too few runs were killed in time: {kills}");
    runs(dir.path(), &make("--bpw 4 -o out --name model"));
    runs(dir.path(), &make("--bpw 4 -o whole --name model"));
    let [out, whole] = ["out", "whole"].map(|name| dir.path().join(name));
    let named = |dir: &Path| -> Vec<(String, Vec<u8>)> {
        let all = results(dir).into_iter();
        all.filter(|(name, _)| name.starts_with("model") || name == "imatrix.gguf")
            .collect()
    };
    assert_eq!(named(&out).len(), 3);
    assert_eq!(named(&out), named(&whole));
    assert_eq!(frontier(&out).files, frontier(&whole).files);
    assert_eq!(frontier(&out).correction, frontier(&whole).correction);
    let left = names(&work);
    assert!(
        left.iter()
            .all(|name| name.ends_with(".json") || name.ends_with(".logits")),
        "{left:?}"
    );
}

#[test]
fn lost_lines_are_measured_again() {
    let dir = place();
    runs(dir.path(), &make("--bpw 4 -o out"));
    let before = calls(dir.path(), "llama-");
    fs::write(dir.path().join("cpp/silent"), "").unwrap();
    runs(dir.path(), &make("--bpw 5 --compare none -o out"));
    assert_eq!(calls(dir.path(), "llama-"), before + 2);
    assert!(
        frontier(&dir.path().join("out")).files[0]
            .measured
            .as_ref()
            .unwrap()
            .p999
            .is_some()
    );
}

/// Replaces a program by one that ends in its own way.
fn ends(dir: &Path, program: &str, how: &str) {
    script(
        &dir.join("cpp").join(program),
        &(ARGUMENTS.to_owned() + how),
    );
}

#[test]
fn failures_of_the_programs_are_named() {
    let dir = place();
    let run = |parts: &[&str]| fails_saying(dir.path(), &make("--bpw 4 -o out"), parts);
    let rows: &[(&str, &[&str])] = &[
        // As the original reports an unknown model, with exit code 1 or 0.
        (
            "echo \"0.00.02 E llama_model_load: error loading model: unknown model architecture: 'x'\" >&2; exit 1",
            &[
                "llama-imatrix failed (exit code 1)",
                "unknown model architecture: 'x'",
                "use a newer one",
            ],
        ),
        (
            "echo \"error loading model: unknown model architecture: 'x'\" >&2; exit 0",
            &[
                "reported success, but wrote no importance matrix",
                "unknown model architecture: 'x'",
            ],
        ),
        (
            "kill -ILL $$",
            &["signal 4 (SIGILL: illegal instruction", "another CPU"],
        ),
        ("exit 132", &["signal 4 (SIGILL"]),
        ("kill -SEGV $$", &["signal 11 (SIGSEGV"]),
        ("echo x >\"$output\"", &["wrote a bad importance matrix"]),
        (
            "echo '[1]4.2,[2]nan,'; echo x >\"$output\"",
            &["the perplexity of chunk 2 is not a number"],
        ),
        (
            "echo 'error: you need at least 128 tokens' >&2; exit 1",
            &["you need at least 128 tokens", "give a longer text"],
        ),
    ];
    for (how, parts) in rows {
        ends(dir.path(), "llama-imatrix", how);
        let error = run(parts);
        assert!(error.contains("out/work/imatrix-part-0.log"), "{error}");
    }
    let left = names(&dir.path().join("out/work"));
    assert_eq!(
        left,
        ["imatrix-part-0.log"],
        "the log is kept, and nothing else"
    );
    // An importance matrix of fewer chunks than announced.
    let fewer =
        "echo 'compute_imatrix: computing over 99 chunks, n_ctx=64' >&2\n".to_owned() + IMATRIX;
    ends(dir.path(), "llama-imatrix", &fewer);
    run(&["of 99 chunks"]);
    // What was done is kept.
    ends(dir.path(), "llama-imatrix", IMATRIX);
    let rows: &[(&str, &[&str])] = &[
        (
            "exit 0",
            &["llama-perplexity reported success, but wrote no log-probabilities"],
        ),
        ("echo x >\"$logits\"", &["wrote bad log-probabilities"]),
        (
            "\"$QUANTIER\" perplexity -m \"$model\" -f \"$text\" -c \"$context\" --save-logits whole >&2; \
             head -c 5000 whole >\"$logits\"; echo 'write: No space left on device' >&2",
            &["wrote bad log-probabilities", "No space left"],
        ),
    ];
    for (how, parts) in rows {
        ends(dir.path(), "llama-perplexity", how);
        run(parts);
    }
    let half = PERPLEXITY.replace("found=$(", "echo 'failed to decode'; exit 0\nfound=$(");
    ends(dir.path(), "llama-perplexity", &half);
    run(&[
        "llama-perplexity reported success, but measured nothing",
        "failed to decode",
    ]);
    let nan = PERPLEXITY.replace("\"$kld\" \"$error\"", "nan nan");
    ends(dir.path(), "llama-perplexity", &nan);
    run(&["the divergence is not a number"]);
    ends(dir.path(), "llama-perplexity", PERPLEXITY);
    runs(dir.path(), &make("--bpw 4 -o out"));
    let left = names(&dir.path().join("out/work"));
    assert!(
        left.iter()
            .all(|name| name.ends_with(".json") || name.ends_with(".logits")),
        "{left:?}"
    );
}

#[test]
fn stopped_runs_kill_the_program() {
    let dir = place();
    ends(
        dir.path(),
        "llama-imatrix",
        "echo $$ >\"$here/pid\"; exec sleep 60",
    );
    let child = std::process::Command::new(BINARY)
        .args(make("--bpw 4 -o out").split_whitespace())
        .current_dir(dir.path())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = dir.path().join("cpp/pid");
    while fs::read_to_string(&pid)
        .is_ok_and(|text| text.ends_with('\n'))
        .eq(&false)
    {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let kill = |args: &[&str]| {
        std::process::Command::new("kill")
            .args(args)
            .status()
            .unwrap()
    };
    kill(&["-INT", &child.id().to_string()]);
    let ended = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{error}");
    assert!(
        error.contains("stopped; the same command resumes from out/work"),
        "{error}"
    );
    let program = fs::read_to_string(&pid).unwrap();
    let program = Path::new("/proc").join(program.trim());
    assert!(
        !program.exists() || !Path::new("/proc/self").exists(),
        "the program runs on"
    );
}

#[test]
fn wrong_directories_and_options_are_refused() {
    let dir = place();
    fs::create_dir(dir.path().join("empty")).unwrap();
    let with = |engine: &str| make("--bpw 4 -o out").replace("llama.cpp=cpp", engine);
    let engine = |engine: &str, parts: &[&str]| fails(dir.path(), &with(engine), parts);
    let error = stderr(dir.path(), &with("llama.cpp=nowhere"), 1);
    assert!(
        error.contains("llama.cpp=nowhere: this is no directory"),
        "{error}"
    );
    engine(
        "llama.cpp=m.gguf",
        &["this is no directory", "llama-imatrix and llama-perplexity"],
    );
    engine(
        "llama.cpp=empty",
        &["llama-imatrix and llama-perplexity not found there"],
    );
    fs::write(dir.path().join("empty/llama-imatrix"), "").unwrap();
    engine("llama.cpp=empty", &["llama-perplexity not found there"]);
    fs::write(dir.path().join("empty/llama-perplexity"), "").unwrap();
    engine(
        "llama.cpp=empty",
        &["llama-perplexity cannot be run", "Permission denied"],
    );
    let refused = |rest: &str, parts: &[&str]| fails(dir.path(), &make(rest), parts);
    refused(
        "--bpw 4 --refine 2 -o out",
        &["--refine needs the engine of this program"],
    );
    refused(
        "--bpw 4 --all-experts -o out",
        &["--all-experts needs the engine"],
    );
    let short = make("--bpw 4 -o out").replace("-c 64", "-c 1");
    fails(dir.path(), &short, &["--ctx-size"]);
    refused("--bpw 1 -o out", &["1 bits per weight is less than"]);
    let usage: &[(&str, &[&str])] = &[
        (
            "make m.gguf --bpw 4 -o out --engine vllm",
            &["engines are native and llama.cpp=DIR"],
        ),
        (
            "make m.gguf --bpw 4 -o out --engine llama.cpp=",
            &["engines are native and llama.cpp=DIR"],
        ),
        (
            "make m.gguf --bpw 4 -o out --rpc host:1",
            &["require --engine llama.cpp=DIR"],
        ),
    ];
    usage_errors(dir.path(), usage);
    // Servers and further arguments reach the programs.
    ends(dir.path(), "llama-imatrix", "exit 3");
    let args = make("--bpw 4 -o out --rpc a:1,b:2 --engine-args");
    let mut command = quantier(&args);
    command
        .arg("-ngl 20")
        .current_dir(dir.path())
        .assert()
        .code(1);
    let calls = fs::read_to_string(dir.path().join("cpp/calls")).unwrap();
    assert!(calls.contains("--rpc a:1,b:2 -ngl 20"), "{calls}");
}

#[test]
fn refused_models_name_the_outside_engine() {
    let dir = place();
    succeeds(
        dir.path(),
        "quantize --override-kv general.architecture=str:rwkv6 --override-kv rwkv6.block_count=int:1 m.gguf r.gguf COPY",
    );
    let args = "make r.gguf -c 64 -f cal.txt --eval eval.txt --bpw 4 -o out";
    fails_saying(
        dir.path(),
        args,
        &[
            "rwkv6",
            "--engine llama.cpp=DIR",
            "--score imatrix --imatrix FILE",
        ],
    );
}

/// The real programs, if QUANTIER_LLAMA_CPP names their directory.
#[test]
fn the_real_programs_measure_and_refuse() {
    let Some(real) = std::env::var_os("QUANTIER_LLAMA_CPP") else {
        return;
    };
    let real = Path::new(&real);
    let dir = place();
    // Enough positions for statistics.
    for name in ["cal.txt", "eval.txt"] {
        let path = dir.path().join(name);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.repeat(4)).unwrap();
    }
    let with = |model: &str, rest: &str| {
        let args = make(rest).replace("m.gguf", model);
        args.replace("llama.cpp=cpp", &format!("llama.cpp={}", real.display()))
    };
    runs(dir.path(), &with("m.gguf", "--bpw 4.25 -o out"));
    let report = frontier(&dir.path().join("out"));
    let file = &report.files[0];
    let args = format!("kld m.gguf out/{} -f eval.txt -c 64 --json", file.name);
    let kld = json(dir.path(), &args)["models"][0]["statistics"]["kld"]["value"]
        .as_f64()
        .unwrap();
    let measured = file.measured.as_ref().unwrap().mean.value();
    // The programs round activations to 8 bits.
    assert!((measured / kld - 1.0).abs() < 0.3, "{measured} and {kld}");
    succeeds(
        dir.path(),
        "quantize --override-kv general.architecture=str:nonesuch --override-kv nonesuch.block_count=int:1 m.gguf x.gguf COPY",
    );
    let parts = ["unknown model architecture: 'nonesuch'", "use a newer one"];
    fails_saying(dir.path(), &with("x.gguf", "--bpw 4 -o none"), &parts);
}
