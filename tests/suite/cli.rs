//! The program's output files and messages.

use crate::support::gguf::Tiny;
use crate::support::program::{
    LAYERS, bash, fails, importance, json, listing, model, quantier, read, refmodel, stderr,
    succeeds, with_model,
};
use quantier_gguf::gguf::{Files, Model, Value};
use std::fs;
use std::path::Path;

/// Name and type of every tensor of a file.
fn types(dir: &Path, name: &str) -> Vec<(String, String)> {
    let shown = json(dir, &format!("inspect --json {name}"));
    let one = |t: &serde_json::Value| {
        (
            t["name"].as_str().unwrap().into(),
            t["type"].as_str().unwrap().into(),
        )
    };
    shown["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(one)
        .collect()
}

fn type_of(dir: &Path, name: &str, tensor: &str) -> String {
    let found = types(dir, name).into_iter().find(|(n, _)| n == tensor);
    found
        .unwrap_or_else(|| panic!("{name} has no tensor {tensor}"))
        .1
}

#[test]
fn a_real_model_in_several_types() {
    let dir = tempfile::tempdir().unwrap();
    // Bits per weight of the whole file: the preset's type, and a little more for tensors of larger
    // types.
    for (preset, low, high) in [
        ("Q8_0", 8.5, 8.6),
        ("Q4_K_M", 4.5, 5.8),
        ("Q2_K", 2.6, 4.2),
        ("BF16", 16.0, 16.2),
    ] {
        let planned = json(
            dir.path(),
            &format!(
                "quantize --dry-run --json {} {preset}.gguf {preset}",
                refmodel()
            ),
        );
        assert_eq!(listing(dir.path()).len(), 0, "a dry run writes nothing");
        let written = json(
            dir.path(),
            &format!("quantize --json {} {preset}.gguf {preset}", refmodel()),
        );
        assert_eq!(planned["outputs"], written["outputs"]);
        assert_eq!(
            (&planned["written"], &written["written"]),
            (&false.into(), &true.into())
        );
        let file = format!("{preset}.gguf");
        assert_eq!(
            written["outputs"][0]["file_bytes"],
            read(dir.path(), &file).len()
        );
        let shown = json(dir.path(), &format!("inspect --json {file}"));
        let bpw = shown["all"]["bpw"].as_f64().unwrap();
        assert!((low..high).contains(&bpw), "{preset}: {bpw}");
        assert_eq!(shown["all"]["bytes"], written["outputs"][0]["tensor_bytes"]);
        assert_eq!(
            json(dir.path(), &format!("verify --json {file}"))["ok"],
            true
        );
        fs::remove_file(dir.path().join(file)).unwrap();
    }
}

#[test]
fn several_outputs_equal_those_of_separate_runs() {
    let dir = with_model();
    succeeds(
        dir.path(),
        "quantize m.gguf a.gguf Q4_K_M --also Q8_0=b.gguf --also Q3_K_L=c.gguf --also COPY=d.gguf",
    );
    for (together, preset) in [
        ("a", "Q4_K_M"),
        ("b", "Q8_0"),
        ("c", "Q3_K_L"),
        ("d", "COPY"),
    ] {
        succeeds(dir.path(), &format!("quantize m.gguf alone.gguf {preset}"));
        assert!(
            read(dir.path(), "alone.gguf") == read(dir.path(), &format!("{together}.gguf")),
            "{preset}"
        );
    }
}

#[test]
fn dry_run_states_the_size_and_writes_nothing() {
    let dir = with_model();
    let before = listing(dir.path());
    let shown = succeeds(
        dir.path(),
        "quantize --dry-run m.gguf out.gguf Q5_K_M --also Q2_K=b.gguf",
    );
    assert!(
        shown.contains("blk.0.attn_v.weight") && shown.contains("(dry run)"),
        "{shown}"
    );
    let planned = json(
        dir.path(),
        "quantize --dry-run --json m.gguf out.gguf Q5_K_M --also Q2_K=b.gguf",
    );
    assert_eq!(listing(dir.path()), before);
    succeeds(
        dir.path(),
        "quantize m.gguf out.gguf Q5_K_M --also Q2_K=b.gguf",
    );
    for (i, name) in ["out.gguf", "b.gguf"].into_iter().enumerate() {
        assert_eq!(
            planned["outputs"][i]["file_bytes"],
            read(dir.path(), name).len()
        );
    }
}

#[test]
fn the_output_is_named_after_the_type() {
    let dir = with_model();
    succeeds(dir.path(), "quantize m.gguf q4_k_m");
    assert!(dir.path().join("ggml-model-Q4_K_M.gguf").exists());
    succeeds(dir.path(), "quantize m.gguf by-number.gguf 15 2");
    assert!(read(dir.path(), "by-number.gguf") == read(dir.path(), "ggml-model-Q4_K_M.gguf"));
}

#[test]
fn threads_do_not_change_the_bytes() {
    let dir = with_model();
    importance(|_| true).write(&dir.path().join("i.gguf"));
    for preset in ["Q4_K_M", "IQ3_XXS", "Q5_0"] {
        for threads in [1, 2, 7] {
            succeeds(
                dir.path(),
                &format!("quantize --imatrix i.gguf m.gguf {threads}.gguf {preset} {threads}"),
            );
        }
        assert!(
            read(dir.path(), "1.gguf") == read(dir.path(), "2.gguf"),
            "{preset}"
        );
        assert!(
            read(dir.path(), "1.gguf") == read(dir.path(), "7.gguf"),
            "{preset}"
        );
    }
}

#[test]
fn copies_keep_the_tensors() {
    let dir = with_model();
    succeeds(dir.path(), "quantize m.gguf copy.gguf COPY");
    let (input, copy) = (
        Files::open(&dir.path().join("m.gguf")).unwrap(),
        Files::open(&dir.path().join("copy.gguf")).unwrap(),
    );
    let (input, copy) = (Model::parse(&input).unwrap(), Model::parse(&copy).unwrap());
    assert_eq!(input.tensors.len(), copy.tensors.len());
    for tensor in &input.tensors {
        let same = copy
            .tensors
            .iter()
            .find(|t| t.info.name == tensor.info.name)
            .unwrap();
        assert_eq!((&same.info, same.data()), (&tensor.info, tensor.data()));
    }
}

#[test]
fn rows_that_do_not_fit() {
    let dir = with_model();
    model()
        .zeros(
            "blk.0.odd.weight",
            &[96, 4],
            quantier_gguf::types::GgmlType::F32,
        )
        .write(&dir.path().join("n.gguf"));
    let warning = stderr(dir.path(), "quantize n.gguf out.gguf Q4_K_S", 0);
    assert!(
        warning.contains("blk.0.odd.weight: q4_K cannot hold rows of 96 weights; q5_0"),
        "{warning}"
    );
    assert_eq!(type_of(dir.path(), "out.gguf", "blk.0.odd.weight"), "q5_0");
    fails(
        dir.path(),
        "quantize --no-fallback n.gguf no.gguf Q4_K_S",
        &["blk.0.odd.weight", "96", "q4_K", "--no-fallback"],
    );
}

#[test]
fn first_matching_pattern_wins() {
    let dir = with_model();
    fs::write(
        dir.path().join("types.txt"),
        "blk.0.ffn_up=q6_K\n\nffn_up=q8_0 attn_q=q5_K\n",
    )
    .unwrap();
    let ffn_up = |options: &str| {
        succeeds(
            dir.path(),
            &format!("quantize {options} m.gguf t.gguf Q4_K_S"),
        );
        ["0", "1"].map(|layer| type_of(dir.path(), "t.gguf", &format!("blk.{layer}.ffn_up.weight")))
    };
    assert_eq!(
        ffn_up("--tensor-type-file types.txt --tensor-type ffn_up=q5_0"),
        ["q6_K", "q8_0"]
    );
    assert_eq!(
        ffn_up("--tensor-type ffn_up=q5_0 --tensor-type-file types.txt"),
        ["q5_0", "q5_0"]
    );
    assert_eq!(
        ffn_up("--tensor-type blk.1.ffn_up=q3_K --tensor-type-file types.txt"),
        ["q6_K", "q3_K"]
    );
    assert_eq!(type_of(dir.path(), "t.gguf", "blk.2.attn_q.weight"), "q5_K");
}

#[test]
fn overridden_metadata() {
    let dir = with_model();
    let kv = "--override-kv a.int=int:-7 --override-kv a.float=float:0.1 --override-kv general.name=str:new \
              --override-kv a.bool=bool:true --override-kv general.alignment=int:64";
    succeeds(dir.path(), &format!("quantize {kv} m.gguf kv.gguf Q8_0"));
    let shown = json(dir.path(), "inspect --json kv.gguf");
    let metadata = &shown["metadata"];
    assert_eq!(
        metadata["a.int"],
        serde_json::json!({ "type": "u32", "value": 7 })
    );
    assert_eq!(
        metadata["a.float"],
        serde_json::json!({ "type": "f32", "value": 0.1 })
    );
    assert_eq!(metadata["general.name"]["value"], "new");
    assert_eq!(metadata["a.bool"]["value"], true);
    assert_eq!(shown["alignment"], 64);
    assert_eq!(json(dir.path(), "verify --json kv.gguf")["ok"], true);
    for value in [
        "int:0",
        "int:3",
        "int:-64",
        "int:4294967296",
        "str:32",
        "float:32",
        "bool:true",
    ] {
        let options =
            format!("quantize --override-kv general.alignment={value} m.gguf no.gguf Q8_0");
        fails(dir.path(), &options, &["general.alignment", "power of two"]);
    }
}

#[test]
fn json_numbers_are_shortest_exact_ones() {
    let dir = with_model();
    let shown = succeeds(dir.path(), "inspect --json m.gguf");
    // Printed as the shortest f32, not as the nearest double.
    assert!(shown.contains("\"value\": 0.1\n"), "{shown}");
    assert_eq!(
        json(dir.path(), "inspect --json m.gguf")["metadata"]["llama.rope.freq_base"]["value"],
        0.1
    );
}

#[test]
fn pruned_layers() {
    let dir = with_model();
    succeeds(
        dir.path(),
        "quantize --prune-layers 1 m.gguf pruned.gguf Q8_0",
    );
    let shown = json(dir.path(), "inspect --json pruned.gguf");
    assert_eq!(shown["metadata"]["llama.block_count"]["value"], LAYERS - 1);
    let names: Vec<_> = types(dir.path(), "pruned.gguf")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert!(
        names.iter().any(|n| n.starts_with("blk.1."))
            && !names.iter().any(|n| n.starts_with("blk.2."))
    );
    succeeds(dir.path(), "quantize m.gguf whole.gguf Q8_0");
    let data = |name: &str, tensor: &str| {
        let files = Files::open(&dir.path().join(name)).unwrap();
        let model = Model::parse(&files).unwrap();
        model
            .tensors
            .iter()
            .find(|t| t.info.name == tensor)
            .unwrap()
            .data()
            .to_vec()
    };
    assert_eq!(
        data("pruned.gguf", "blk.1.ffn_down.weight"),
        data("whole.gguf", "blk.2.ffn_down.weight")
    );
}

/// Splits the small model into three shards.
fn write_shards(dir: &Path) {
    let whole = model();
    let per_shard = whole.tensors.len().div_ceil(3);
    for (no, tensors) in whole.tensors.chunks(per_shard).enumerate() {
        let metadata = if no == 0 {
            whole.metadata.clone()
        } else {
            Default::default()
        };
        let shard = Tiny {
            metadata,
            tensors: tensors.to_vec(),
        }
        .set("split.no", Value::U16(no as u16))
        .set("split.count", Value::U16(3))
        .set(
            "split.tensors.count",
            Value::I32(whole.tensors.len() as i32),
        );
        shard.write(&dir.join(format!("s-{:05}-of-00003.gguf", no + 1)));
    }
}

#[test]
fn a_split_model_through_any_shard() {
    let dir = with_model();
    write_shards(dir.path());
    succeeds(dir.path(), "quantize m.gguf whole.gguf Q4_K_M");
    for shard in 1..=3 {
        succeeds(
            dir.path(),
            &format!("quantize s-0000{shard}-of-00003.gguf joined.gguf Q4_K_M"),
        );
        assert!(
            read(dir.path(), "joined.gguf") == read(dir.path(), "whole.gguf"),
            "shard {shard}"
        );
        let shown = json(
            dir.path(),
            &format!("inspect --json s-0000{shard}-of-00003.gguf"),
        );
        assert_eq!(shown["files"].as_array().unwrap().len(), 3);
    }
}

#[test]
fn shards_kept_as_shards() {
    let dir = with_model();
    write_shards(dir.path());
    let written = json(
        dir.path(),
        "quantize --json --keep-split s-00002-of-00003.gguf out.gguf Q4_K_M",
    );
    let names: Vec<_> = (1..=3)
        .map(|no| format!("out-0000{no}-of-00003.gguf"))
        .collect();
    assert_eq!(written["outputs"][0]["paths"], serde_json::json!(names));
    let bytes: usize = names.iter().map(|name| read(dir.path(), name).len()).sum();
    assert_eq!(written["outputs"][0]["file_bytes"], bytes);
    assert_eq!(
        json(dir.path(), &format!("verify --json {}", names[2]))["ok"],
        true
    );
    succeeds(dir.path(), "quantize m.gguf whole.gguf Q4_K_M");
    let sorted = |name: &str| {
        let mut all = types(dir.path(), name);
        all.sort();
        all
    };
    assert_eq!(sorted(&names[0]), sorted("whole.gguf"));
}

#[test]
fn closed_pipes_are_no_failure() {
    let dir = with_model();
    for args in ["inspect --tensors m.gguf", "quantize --dry-run m.gguf Q8_0"] {
        let line = format!("$quantier {args} | true; exit ${{PIPESTATUS[0]}}");
        let ran = bash(dir.path(), &line).success();
        assert_eq!(String::from_utf8_lossy(&ran.get_output().stderr), "");
    }
}

#[test]
fn messages_are_for_people_scripts_or_a_log() {
    let dir = tempfile::tempdir().unwrap();
    model().write(&dir.path().join("m.gguf"));
    let dir = dir.path();
    assert_eq!(
        stderr(dir, "quantize m.gguf out.gguf Q8_0", 0),
        "",
        "nothing that a script did not ask for"
    );

    let events = stderr(dir, "quantize --progress json m.gguf out.gguf Q8_0", 0);
    let events: Vec<serde_json::Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events
        .iter()
        .map(|e| e["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        (kinds[0], kinds[kinds.len() - 1]),
        ("begin", "end"),
        "{kinds:?}"
    );
    assert!(
        kinds.contains(&"at") && kinds.contains(&"advance"),
        "{kinds:?}"
    );
    let last = events.iter().rfind(|e| e["event"] == "advance").unwrap();
    assert_eq!(last["done"], last["amount"], "{last}");

    let lines = stderr(dir, "-v quantize m.gguf out.gguf Q8_0", 0);
    assert!(lines.contains(" s  blk.0.ffn_up.weight"), "{lines}");

    stderr(dir, "quantize --log run.log m.gguf out.gguf Q8_0", 0);
    let error = stderr(dir, "verify absent.gguf --log run.log", 1);
    let log = std::fs::read_to_string(dir.join("run.log")).unwrap();
    let kinds: Vec<&str> = log
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().nth(1).unwrap())
        .collect();
    assert_eq!(
        (kinds[0], kinds[kinds.len() - 2]),
        ("begin", "error"),
        "{log}"
    );
    assert!(
        kinds.contains(&"stage") && kinds.iter().filter(|k| **k == "end").count() == 2,
        "{log}"
    );
    assert!(
        error.starts_with("error: ") && log.contains(error["error: ".len()..].trim_end()),
        "{error}\n{log}"
    );
    let refused = quantier("verify m.gguf --log out.gguf")
        .current_dir(dir)
        .assert()
        .code(1);
    assert!(
        String::from_utf8_lossy(&refused.get_output().stderr).contains("not a log of this program")
    );
}

#[test]
fn completions_and_manuals_cover_every_command() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeeds(dir.path(), &format!("completions {shell}"));
        ["quantize", "imatrix", "perplexity"]
            .iter()
            .for_each(|w| assert!(script.contains(w), "{shell}: {w}"));
    }
    assert!(succeeds(dir.path(), "man").contains(".TH quantier 1"));
    succeeds(dir.path(), "man .");
    let help = succeeds(dir.path(), "--help");
    let examples = help.split("Examples:").nth(1).unwrap();
    assert!(
        examples
            .lines()
            .find(|l| l.trim_start().starts_with("quantier"))
            .unwrap()
            .contains("quantier make")
    );
    let commands = help
        .split("Commands:\n")
        .nth(1)
        .unwrap()
        .lines()
        .take_while(|l| !l.is_empty());
    let names: Vec<&str> = commands
        .filter_map(|l| l.strip_prefix("  ")?.split(' ').next())
        .collect();
    assert!(
        names.contains(&"make") && names.contains(&"man"),
        "{names:?}"
    );
    for name in names.iter().filter(|name| !["", "help"].contains(name)) {
        let page = std::fs::read_to_string(dir.path().join(format!("quantier-{name}.1"))).unwrap();
        assert!(
            page.contains(&format!(".TH quantier-{name} 1")) && page.contains("SYNOPSIS"),
            "{name}: {page}"
        );
    }
}
