//! `quantier tasks`, on task files of our own and the small trained model.

use crate::support::program::{fails, json, stderr, succeeds};
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

/// The model as m.gguf, quantized files, and the files of tasks.
fn with_tasks() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let copy = |from: &str, to: &str| {
        std::fs::copy(testdata.join(from), dir.path().join(to)).unwrap();
    };
    copy("refmodel-f16.gguf", "m.gguf");
    copy("tasks/hellaswag.txt", "h.txt");
    copy("tasks/winogrande.csv", "w.csv");
    copy("tasks/multiple-choice.bin", "c.bin");
    succeeds(dir.path(), "quantize m.gguf q2.gguf Q2_K");
    succeeds(dir.path(), "quantize m.gguf q8.gguf Q8_0");
    dir
}

const FILES: &str = "--hellaswag h.txt --winogrande w.csv --multiple-choice c.bin";

fn choices(model: &Value) -> Vec<usize> {
    let choices = model["choices"].as_array().unwrap().iter();
    choices
        .map(|choice| choice.as_u64().unwrap() as usize)
        .collect()
}

#[test]
fn tasks_are_picked_evenly() {
    let dir = with_tasks();
    let all = json(dir.path(), "tasks m.gguf --hellaswag h.txt --json");
    let some = json(
        dir.path(),
        "tasks m.gguf --hellaswag h.txt --limit 6 --json",
    );
    let [all, some] = [all, some].map(|found| choices(&found["files"][0]["models"][0]));
    assert_eq!(some, all.iter().step_by(4).copied().collect::<Vec<_>>());
}

#[test]
fn wrong_shapes_are_named_by_their_place() {
    let dir = with_tasks();
    let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
    write("bad.txt", b"A cat\n7\na\nb\nc\nd\n");
    fails(
        dir.path(),
        "tasks m.gguf --hellaswag bad.txt",
        &["bad.txt: line 2: \"7\""],
    );
    write("bad.csv", b"0,no blank here,a,b,1\n");
    fails(
        dir.path(),
        "tasks m.gguf --winogrande bad.csv",
        &["bad.csv: line 1: no blank _"],
    );
    let bytes = std::fs::read(dir.path().join("c.bin")).unwrap();
    write("bad.bin", &bytes[..bytes.len() - 9]);
    fails(
        dir.path(),
        "tasks m.gguf --multiple-choice bad.bin",
        &["bad.bin: byte "],
    );
    let mut long = String::from("A cat");
    long.push_str(&" runs".repeat(4000));
    write("long.txt", format!("{long}\n0\na\nb\nc\nd\n").as_bytes());
    fails(
        dir.path(),
        "tasks m.gguf --hellaswag long.txt",
        &["long.txt: line 1: the task has ", "context of 2048"],
    );
    assert!(stderr(dir.path(), "tasks m.gguf", 2).contains("name a file of tasks"));
    fails(
        dir.path(),
        "perplexity -m m.gguf -f h.txt --hellaswag",
        &["tasks are a command here: quantier tasks"],
    );
}

/// Longer than a few seconds.
mod slow {
    use super::*;

    #[test]
    fn models_are_compared_answer_by_answer() {
        let dir = with_tasks();
        let all = json(
            dir.path(),
            &format!("tasks m.gguf q2.gguf q8.gguf {FILES} --json"),
        );
        let files = all["files"].as_array().unwrap();
        assert_eq!(files.len(), 3);
        for (file, tasks) in files.iter().zip([24, 24, 20]) {
            let right = file["right"].as_array().unwrap();
            assert_eq!(right.len(), tasks);
            let models = file["models"].as_array().unwrap();
            let is_right = |model: &Value| -> Vec<bool> {
                let picked = choices(model);
                picked
                    .iter()
                    .zip(right)
                    .map(|(choice, right)| right[*choice] == true)
                    .collect()
            };
            let base = is_right(&models[0]);
            assert!(models[0]["flips"].is_null());
            for model in models {
                let of_model = is_right(model);
                let count = of_model.iter().filter(|right| **right).count();
                assert_eq!(model["accuracy"]["right"], count);
                if model["flips"].is_null() {
                    continue;
                }
                let both = || base.iter().zip(&of_model);
                assert_eq!(
                    model["flips"]["lost"],
                    both().filter(|(a, b)| **a && !**b).count()
                );
                assert_eq!(
                    model["flips"]["gained"],
                    both().filter(|(a, b)| !**a && **b).count()
                );
                let changed = choices(&models[0])
                    .iter()
                    .zip(choices(model))
                    .filter(|(a, b)| **a != *b)
                    .count();
                assert_eq!(model["flips"]["changed"], changed);
            }
            // One pass of both models gives the answers of single passes.
            let name = file["file"].as_str().unwrap();
            let option = FILES.split(' ').position(|word| word == name).unwrap() - 1;
            let option = FILES.split(' ').nth(option).unwrap();
            let alone = json(dir.path(), &format!("tasks q2.gguf {option} {name} --json"));
            assert_eq!(
                alone["files"][0]["models"][0]["choices"],
                models[1]["choices"]
            );
        }
        let text = succeeds(dir.path(), &format!("tasks m.gguf q2.gguf {FILES}"));
        for part in [
            "h.txt: 24 of 24 tasks",
            "95% interval",
            "answers differ from the base's",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
