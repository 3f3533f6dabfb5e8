//! Shards: the same bytes as in one process, and what is refused.

use crate::support::program::{quantier, stderr, succeeds};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Few short chunks and few types, with two units of the calibration text.
const MAKE: &str = "make m.gguf -c 64 --score-chunks 2 --eval-chunks 10 -f cal.txt --eval eval.txt \
                    --types q2_K,q4_K,q8_0 --bpw 3.5 --bpw 5";

fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = root.join("testdata/refmodel-f16.gguf");
    std::os::unix::fs::symlink(model, dir.path().join("m.gguf")).unwrap();
    let text = |name: &str| fs::read_to_string(root.join("testdata/texts").join(name)).unwrap();
    // Two units, and a few chunks.
    let beginning = |text: String, chars: usize| text.chars().take(chars).collect::<String>();
    fs::write(
        dir.path().join("cal.txt"),
        beginning(text("calibration.txt"), 1700),
    )
    .unwrap();
    fs::write(
        dir.path().join("eval.txt"),
        beginning(text("evaluation.txt"), 1300),
    )
    .unwrap();
    dir
}

fn plan(dir: &Path, out: &str, shards: usize) -> Value {
    succeeds(
        dir,
        &format!("{MAKE} -o {out} --plan-only --shards {shards}"),
    );
    let text = fs::read_to_string(dir.join(out).join("work/plan.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Names and numbers of shards of the stages up to one of them, in order.
fn stages(plan: &Value) -> Vec<(String, usize)> {
    let stages = plan["stages"].as_array().unwrap().iter();
    let shards = |stage: &Value| stage["shards"].as_array().unwrap().len();
    stages
        .map(|stage| (stage["name"].as_str().unwrap().to_owned(), shards(stage)))
        .collect()
}

fn run_stage(dir: &Path, out: &str, (stage, shards): &(String, usize)) {
    for shard in (0..*shards).rev() {
        succeeds(dir, &format!("shard {out} {stage} {shard}"));
    }
    succeeds(dir, &format!("merge-shards {out} {stage}"));
}

/// Outputs, Hessians and scores, without what has times.
fn results(out: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let folders = ["", "work", "work/covariance", "work/gradients"];
    let entries = folders
        .iter()
        .flat_map(|folder| fs::read_dir(out.join(folder)).unwrap());
    let paths = entries.map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        // The keys of measurements contain the files' paths; the report has the figures.
        let varies = ["report.html", "plan.json", ".measured.json"];
        path.is_file() && !varies.iter().any(|end| name.ends_with(end))
    });
    let mut all: BTreeMap<PathBuf, Vec<u8>> = files
        .map(|path| {
            let name = path.strip_prefix(out).unwrap().to_owned();
            (name, fs::read(&path).unwrap())
        })
        .collect();
    let report = all.get_mut(Path::new("frontier.json")).unwrap();
    let mut value: Value = serde_json::from_slice(report).unwrap();
    for varying in ["stages", "commands"] {
        // Times, and the output directory.
        value.as_object_mut().unwrap().remove(varying).unwrap();
    }
    *report = value.to_string().into_bytes();
    all
}

fn part(dir: &Path, stage: &str, unit: usize) -> PathBuf {
    dir.join(format!("out/work/parts/{stage}/{unit:05}.part"))
}

#[test]
fn shards_make_the_bytes_of_one_process() {
    let dir = place();
    let dir = dir.path();
    succeeds(dir, &format!("{MAKE} -o one"));
    for shards in [1, 5] {
        let out = format!("out{shards}");
        let plan = plan(dir, &out, shards);
        let names: Vec<_> = stages(&plan).into_iter().map(|(name, _)| name).collect();
        let expected = [
            "imatrix",
            "hessians",
            "gradients",
            "sensitivities",
            "files",
            "proof",
        ];
        assert_eq!(names, expected);
        assert_eq!(plan["stages"][0]["units"], 2, "{plan}");
        for stage in stages(&plan) {
            run_stage(dir, &out, &stage);
        }
        let status = succeeds(dir, &format!("cluster status {out}"));
        assert_eq!(status.matches("merged").count(), 6, "{status}");
        succeeds(dir, &format!("{MAKE} -o {out}"));
        let (one, other) = (results(&dir.join("one")), results(&dir.join(&out)));
        assert_eq!(
            one.keys().collect::<Vec<_>>(),
            other.keys().collect::<Vec<_>>()
        );
        for (name, bytes) in &one {
            assert!(other[name] == *bytes, "{} differs", name.display());
        }
    }
}

#[test]
fn damaged_and_foreign_shards_are_refused_or_done_again() {
    let dir = place();
    let dir = dir.path();
    let error = |args: &str, parts: &[&str]| {
        let error = stderr(dir, args, 1);
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    };
    fs::create_dir(dir.join("out")).unwrap();
    error("shard out imatrix 0", &["plan.json", "--plan-only"]);
    plan(dir, "out", 2);
    error("shard out imatrix 2", &["no shard 2", "there are 2"]);
    error("shard out rounding 0", &["no stage 'rounding'"]);
    error(
        "shard out files 0",
        &["stage files reads the result of imatrix", "merge-shards"],
    );

    // Out of time before the first unit, with an exit code of its own.
    let out_of_time = quantier("shard out imatrix 0 --max-time 0")
        .current_dir(dir)
        .output()
        .unwrap();
    assert_eq!(out_of_time.status.code(), Some(75));
    assert!(!part(dir, "imatrix", 0).exists());

    succeeds(dir, "shard out imatrix 0");
    let again = succeeds(dir, "shard out imatrix 0");
    assert!(again.contains("done already"), "{again}");
    let missing = part(dir, "imatrix", 1);
    error(
        "merge-shards out imatrix",
        &[
            "1 parts of stage imatrix are missing",
            &missing.to_string_lossy(),
        ],
    );
    // Cut short, and flipped in the middle of its data: done again, with the same bytes.
    let path = part(dir, "imatrix", 0);
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    for damaged in [&whole[..whole.len() - 100], &flipped] {
        fs::write(&path, damaged).unwrap();
        let again = quantier("shard out imatrix 0")
            .current_dir(dir)
            .output()
            .unwrap();
        let note = String::from_utf8(again.stderr).unwrap();
        assert!(note.contains("unit 0 of imatrix is done again"), "{note}");
        assert!(fs::read(&path).unwrap() == whole);
    }
    // Damaged behind the back of the shards.
    succeeds(dir, "shard out imatrix 1");
    succeeds(dir, "merge-shards out imatrix");
    fs::write(&path, &flipped).unwrap();
    let named = path.to_string_lossy().into_owned();
    let hessians = stages(&plan_of(dir))[1].1;
    let shards = (0..hessians).map(|shard| format!("shard out hessians {shard}"));
    let merge = "merge-shards out hessians".to_owned();
    let refused = shards.chain([merge]).filter(|args| {
        let output = quantier(args).current_dir(dir).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        !output.status.success() && error.contains(&named) && error.contains("checksum")
    });
    assert!(refused.count() > 0, "the flipped part is used");

    // Another text, another program, another processor.
    fs::write(dir.join("cal.txt"), "another text ".repeat(300)).unwrap();
    error(
        "shard out imatrix 0",
        &["the text is not the one of the plan"],
    );
    let plan_file = dir.join("out/work/plan.json");
    let text = fs::read_to_string(&plan_file).unwrap();
    let other = text.replace("\"maker\": \"quantier ", "\"maker\": \"quantier 9.");
    assert_ne!(other, text);
    fs::write(&plan_file, other).unwrap();
    error(
        "shard out imatrix 0",
        &["the plan was made by quantier 9.", "last bits"],
    );
    fs::write(&plan_file, &text[..text.len() / 2]).unwrap();
    error("merge-shards out imatrix", &["plan.json", "--plan-only"]);
}

fn plan_of(dir: &Path) -> Value {
    let text = fs::read_to_string(dir.join("out/work/plan.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn jobs_without_shards_are_refused() {
    let dir = place();
    let error = stderr(
        dir.path(),
        &format!("{MAKE} --score sweep -o out --plan-only"),
        1,
    );
    assert!(error.contains("--score divergence"), "{error}");
    assert!(!dir.path().join("out").exists());
}
