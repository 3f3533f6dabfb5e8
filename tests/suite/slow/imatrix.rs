//! Output of `quantier imatrix`, from one run or several.

use crate::support::models;
use crate::support::program::{json, killed_when, listing, start, stderr, succeeds};
use quantier_gguf::imatrix::Imatrix;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::TempDir;

/// A directory with the text, and the model under a short name.
fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.txt"), models::text()).unwrap();
    std::os::unix::fs::symlink(models::refmodel_path(), dir.path().join("m.gguf")).unwrap();
    dir
}

fn bytes(dir: &Path, name: &str) -> Vec<u8> {
    fs::read(dir.join(name)).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    listing(dir)
        .into_iter()
        .map(|(path, _)| name(path))
        .collect()
}

/// Finished layers according to `out.gguf.resume`, and the first chunk of its group.
fn kept(dir: &Path) -> Option<[u64; 2]> {
    let bytes = fs::read(dir.join("out.gguf.resume")).ok()?;
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some([number(40)?, number(72)?])
}

/// Kills a run once its snapshot is beyond `reached`; returns false if it ended before.
fn killed_after(dir: &Path, args: &str, [layers, start]: [u64; 2]) -> bool {
    let ready = || kept(dir).is_some_and(|[done, first]| (first, done) >= (start, layers));
    killed_when(dir, args, ready)
}

#[test]
fn killed_runs_resume_and_write_the_same_file() {
    let dir = place();
    let dir = dir.path();
    let args = "imatrix -m m.gguf -f t.txt -c 64 --process-output";
    let want = json(dir, &format!("{args} -o want.gguf --json"));
    let run = format!("{args} --checkpoint-every 0 -o out.gguf");
    // Once after every layer, each time resuming from the previous kill.
    let kills = (1..=6)
        .filter(|layers| killed_after(dir, &run, [*layers, 0]))
        .count();
    assert!(kills >= 3, "only {kills} runs were killed");
    let told = json(dir, &format!("{run} --json"));
    assert!(told["resumed"]["layers"].as_u64() >= Some(3), "{told}");
    assert_eq!(told["perplexity"], want["perplexity"]);
    assert!(bytes(dir, "out.gguf") == bytes(dir, "want.gguf"));
    assert_eq!(names(dir), ["m.gguf", "out.gguf", "t.txt", "want.gguf"]);

    // At any time, within layers and while files are written.
    fs::remove_file(dir.join("out.gguf")).unwrap();
    let begun = Instant::now();
    succeeds(dir, &run);
    let whole = begun.elapsed();
    fs::remove_file(dir.join("out.gguf")).unwrap();
    for part in 1..12 {
        let mut child = start(dir, &run);
        std::thread::sleep(whole * part / 16);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeeds(dir, &run);
    assert!(bytes(dir, "out.gguf") == bytes(dir, "want.gguf"));
    assert_eq!(names(dir), ["m.gguf", "out.gguf", "t.txt", "want.gguf"]);
}

#[test]
fn killed_runs_in_groups_resume() {
    let dir = place();
    let dir = dir.path();
    let args = "imatrix -m m.gguf -f t.txt -c 64 --chunks 20";
    let want = json(dir, &format!("{args} -o want.gguf --json"));
    let run = format!("{args} --save-frequency 8 --checkpoint-every 0 -o out.gguf");
    assert!(killed_after(dir, &run, [3, 8]), "it ended before");
    // Spilled activations are saved like those in memory.
    let told = json(dir, &format!("{run} --json --max-memory 0"));
    assert!(told["resumed"]["chunk"].as_u64() >= Some(8), "{told}");
    assert_eq!(told["perplexity"], want["perplexity"]);
    assert!(bytes(dir, "out.gguf") == bytes(dir, "want.gguf"));
    assert_eq!(
        names(dir),
        [
            "m.gguf",
            "out.gguf",
            "out.gguf.at_16",
            "out.gguf.at_8",
            "t.txt",
            "want.gguf"
        ]
    );
}

#[test]
fn snapshots_of_other_jobs_are_ignored() {
    let dir = place();
    let dir = dir.path();
    let run = "imatrix -m m.gguf -f t.txt -c 64 --chunks 6 -o out.gguf";
    let saving = format!("{run} --checkpoint-every 0");
    assert!(killed_after(dir, &saving, [1, 0]), "it ended before");
    let others = bytes(dir, "out.gguf.resume");
    let note = |args: &str| stderr(dir, args, 0);
    let others_jobs = [
        "-c 64 --chunks 5",
        "-c 64 --chunk 1 --chunks 6",
        "-c 64 --chunks 6 --no-ppl",
        "-c 65 --chunks 6",
    ];
    for change in others_jobs {
        let stderr = note(&run.replace("-c 64 --chunks 6", change));
        assert!(
            stderr.contains("out.gguf.resume is of another job"),
            "{change}: {stderr}"
        );
        assert!(bytes(dir, "out.gguf.resume") == others);
    }
    assert!(note(&format!("{run} --no-checkpoint")).is_empty());
    assert!(bytes(dir, "out.gguf.resume") == others);
    let want = bytes(dir, "out.gguf");

    // A damaged snapshot is detected, and unusable for any job.
    let mut damaged = others.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(dir.join("out.gguf.resume"), damaged).unwrap();
    assert!(note(run).contains("out.gguf.resume is damaged"));
    assert!(bytes(dir, "out.gguf") == want);
    assert_eq!(names(dir), ["m.gguf", "out.gguf", "t.txt"]);

    // The model was written again: same name and size, another time.
    fs::remove_file(dir.join("m.gguf")).unwrap();
    fs::copy(models::refmodel_path(), dir.join("m.gguf")).unwrap();
    fs::write(dir.join("out.gguf.resume"), others).unwrap();
    assert!(note(run).contains("is of another job or another model"));
}

#[test]
fn intermediate_files_equal_those_of_shorter_runs() {
    let dir = place();
    let dir = dir.path();
    let run = |rest: &str| {
        succeeds(
            dir,
            &format!("imatrix -m m.gguf -f t.txt -c 64 --no-ppl {rest}"),
        )
    };
    run("--chunks 7 -o seven.gguf");
    run("--chunks 7 --save-frequency 3 -o out.gguf -t 3");
    run("--chunks 3 -o three.gguf -t 1");
    run("--chunks 6 -o six.gguf");
    assert!(bytes(dir, "out.gguf") == bytes(dir, "seven.gguf"));
    assert!(bytes(dir, "out.gguf.at_3") == bytes(dir, "three.gguf"));
    assert!(bytes(dir, "out.gguf.at_6") == bytes(dir, "six.gguf"));
    assert!(!dir.join("out.gguf.at_7").exists());
    // A single chunk is split over threads; merged with a file, the count continues.
    run("--chunks 2 --chunk 3 --save-frequency 1 --in-file three.gguf -o more.gguf");
    run("--chunks 5 -o five.gguf");
    assert!(dir.join("more.gguf.at_4").exists());
    let (more, five) = (
        Imatrix::read(&dir.join("more.gguf")).unwrap(),
        Imatrix::read(&dir.join("five.gguf")).unwrap(),
    );
    assert_eq!(more.datasets, ["t.txt", "t.txt"]);
    close(&more, &five);
}

/// Checks for equal counts, and sums that differ only by f32 rounding: half a unit in the last
/// place per part and for the whole.
#[track_caller]
fn close(a: &Imatrix, b: &Imatrix) {
    assert_eq!((a.chunk_count, a.chunk_size), (b.chunk_count, b.chunk_size));
    assert!(a.entries.keys().eq(b.entries.keys()));
    for (name, entry) in &a.entries {
        let other = &b.entries[name];
        assert_eq!(entry.counts, other.counts, "{name}");
        for (x, y) in entry.sums.iter().zip(&other.sums) {
            assert!((x - y).abs() <= f32::EPSILON * y.abs(), "{name}: {x} {y}");
        }
    }
}

#[test]
fn merged_parts_equal_a_single_run() {
    let dir = place();
    let dir = dir.path();
    let run = |rest: &str| {
        succeeds(
            dir,
            &format!("imatrix m.gguf -f t.txt -c 64 --no-ppl --process-output {rest}"),
        )
    };
    run("-o whole.gguf");
    let whole = Imatrix::read(&dir.join("whole.gguf")).unwrap();
    // The last shard begins with the last chunk.
    let last = whole.chunk_count - 1;
    run("--chunks 9 -o part0.gguf");
    run(&format!("--chunk 9 --chunks {} -o part1.gguf", last - 9));
    run(&format!(
        "--from-chunk {last} --chunks 9 --output-file part2.gguf"
    ));
    succeeds(
        dir,
        "imatrix --in-file part0.gguf,part1.gguf --in-file part2.gguf -o merged.gguf",
    );
    let merged = Imatrix::read(&dir.join("merged.gguf")).unwrap();
    close(&merged, &whole);
    assert_eq!(merged.datasets, ["t.txt"; 3]);
    // Whole numbers survive any order: a merge of one file is the same file.
    succeeds(dir, "imatrix --in-file whole.gguf -o again.gguf");
    assert!(bytes(dir, "again.gguf") == bytes(dir, "whole.gguf"));
    // In the old format and back: the means are preserved.
    succeeds(
        dir,
        "imatrix --in-file whole.gguf --output-format dat -o whole.dat",
    );
    succeeds(dir, "imatrix --in-file whole.dat -c 64 -o back.gguf");
    let back = Imatrix::read(&dir.join("back.gguf")).unwrap();
    for (name, entry) in &whole.entries {
        for (x, y) in entry.means().iter().zip(back.entries[name].means()) {
            assert!((x - y).abs() <= 4.0 * f32::EPSILON * y, "{name}: {x} {y}");
        }
    }
}

#[test]
fn several_texts_are_chunked_in_sequence() {
    let dir = place();
    let dir = dir.path();
    fs::write(dir.join("short.txt"), &models::text()[..1500]).unwrap();
    let run = |rest: &str| succeeds(dir, &format!("imatrix -m m.gguf -c 64 --no-ppl {rest}"));
    run("-f short.txt -o a.gguf --chunk 2");
    run("-f t.txt -o b.gguf --chunk 2 --chunks 12");
    run("-f short.txt -f t.txt --chunk 2 --chunks 12 -o both.gguf");
    succeeds(dir, "imatrix --in-file a.gguf,b.gguf -o merged.gguf");
    let read = |name: &str| Imatrix::read(&dir.join(name)).unwrap();
    close(&read("merged.gguf"), &read("both.gguf"));
    assert_eq!(read("both.gguf").datasets, ["short.txt", "t.txt"]);
    // A text without chunks in the range is not recorded.
    run("-f short.txt -f t.txt --chunk 12 --chunks 2 -o late.gguf");
    assert_eq!(read("late.gguf").datasets, ["t.txt"]);
}

#[test]
fn run_reports_its_results() {
    let dir = place();
    let dir = dir.path();
    let text = succeeds(
        dir,
        "imatrix m.gguf -f t.txt -c 64 --chunks 4 --show-statistics",
    );
    for part in [
        "Final estimate: PPL = ",
        "ffn_down",
        "imatrix.gguf: 42 tensors, 4 chunks of 64 tokens",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let shown = json(
        dir,
        "imatrix --show-statistics --in-file imatrix.gguf --json",
    );
    assert_eq!(
        shown["statistics"]["tensors"].as_array().map(Vec::len),
        Some(42)
    );
    assert_eq!(shown["output"], serde_json::Value::Null);
    // The perplexity of the run equals that of `perplexity`.
    let ours = json(dir, "imatrix m.gguf -f t.txt -c 64 --chunks 4 --json");
    let theirs = json(dir, "perplexity -m m.gguf -f t.txt -c 64 --chunks 4 --json");
    assert_eq!(ours["perplexity"], theirs["perplexity"], "{theirs}");
    assert!(ours["perplexity"]["rows"] == 4 * 31 && ours["statistics"].is_null());
}

#[test]
fn experts_without_tokens_are_reported() {
    let dir = place();
    let dir = dir.path();
    models::experts().write(&dir.join("e.gguf"));
    let told = stderr(dir, "imatrix e.gguf -f t.txt -c 64 --chunks 4 -t 2", 0);
    assert!(
        told.contains("warning: layer 0, 4 experts with 64.0 tokens on average: no tokens for 3\n"),
        "{told}"
    );
    assert!(
        told.ends_with("use a longer or more varied text, or --all-experts\n")
            && told.lines().count() == 3,
        "{told}"
    );
    let gaps = json(
        dir,
        "imatrix -m e.gguf --in-file imatrix.gguf -o copy.gguf --json",
    )["gaps"]
        .clone();
    for (layer, gap) in gaps.as_array().unwrap().iter().enumerate() {
        assert!(
            gap["layer"] == layer && gap["tensors"].as_array().unwrap().len() == 3,
            "{gap}"
        );
        assert!(
            gap["never"].as_array().unwrap().contains(&3.into()),
            "{gap}"
        );
    }
    let found = Imatrix::read(&dir.join("imatrix.gguf")).unwrap();
    let counts = &found.entries["blk.1.ffn_down_exps.weight"].counts;
    assert_eq!(
        (counts.len(), counts.iter().sum::<i64>(), counts[3]),
        (4, 256, 0)
    );
    // Shown to all experts, the same tokens count for each, and nothing else changes.
    let run = |options: &str| {
        json(
            dir,
            &format!("imatrix e.gguf -f t.txt -c 64 --chunks 4 --json {options}"),
        )
    };
    let (routed, shown) = (
        run("-o routed.gguf"),
        run("-o shown.gguf --all-experts --hessians shown"),
    );
    assert_eq!(routed["perplexity"], shown["perplexity"]);
    assert_eq!(shown["gaps"].as_array().map_or(0, Vec::len), 0, "{shown}");
    let shown = Imatrix::read(&dir.join("shown.gguf")).unwrap();
    for (name, entry) in &shown.entries {
        if !name.contains("_exps") {
            assert_eq!(entry, &found.entries[name], "{name}");
            continue;
        }
        assert_eq!(entry.counts, [256; 4], "{name}");
        if name.contains("ffn_gate_exps") {
            // All experts read the input of the router.
            let router = &shown.entries[&name.replace("ffn_gate_exps", "ffn_gate_inp")];
            for (one, want) in entry.sums.iter().zip(router.sums.iter().cycle()) {
                assert!(
                    (one - want).abs() <= 1e-5 * want.abs(),
                    "{name}: {one} {want}"
                );
            }
        }
    }
    // Sums of experts are merged and saved like all others.
    let want = bytes(dir, "imatrix.gguf");
    succeeds(
        dir,
        "imatrix e.gguf -f t.txt -c 64 --chunks 4 -t 1 --save-frequency 1 -o one.gguf --max-memory 0",
    );
    assert!(bytes(dir, "one.gguf") == want);
}
