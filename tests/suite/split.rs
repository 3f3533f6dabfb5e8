//! Tests of `quantier split` and `quantier merge`.

use crate::support::gguf::Tiny;
use crate::support::program::{
    bash, fail_each, fails, json, killed_when, listing, model, read, refmodel, sparse, stderr,
    succeeds, usage_errors, with_model,
};
use quantier_gguf::gguf::{Files, Model, Value};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Keys and values of a file, and its number of tensors.
fn keys(path: &Path) -> (Vec<(String, String)>, usize) {
    let bytes = fs::read(path).unwrap();
    let header = quantier_gguf::gguf::parse(&bytes).unwrap();
    let keys = header
        .metadata
        .iter()
        .map(|(k, v)| (k.to_owned(), format!("{} {v}", v.value_type().name())));
    (keys.collect(), header.tensors.len())
}

#[test]
fn merged_shards_equal_the_original() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(refmodel()).unwrap();
    for options in [
        "",
        "--split-max-tensors 1",
        "--split-max-tensors 7",
        "--split-max-tensors 30 --no-tensor-first-split",
        "--split-max-size 3M",
        "--split-max-size 5M --no-tensor-first-split",
        "--split-max-size 1G",
    ] {
        let written = json(
            dir.path(),
            &format!("split --json {} s {options}", refmodel()),
        );
        let paths: Vec<_> = written["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["path"].as_str().unwrap())
            .collect();
        assert_eq!(
            listing(dir.path()).len(),
            paths.len(),
            "{options}: nothing but the shards"
        );
        for (no, file) in written["files"].as_array().unwrap().iter().enumerate() {
            assert_eq!(
                file["path"],
                format!("s-{:05}-of-{:05}.gguf", no + 1, paths.len())
            );
            assert_eq!(
                file["bytes"],
                read(dir.path(), paths[no]).len(),
                "{options}"
            );
            let (keys, tensors) = keys(&dir.path().join(paths[no]));
            assert_eq!(file["tensors"], tensors);
            // In the order of llama-gguf-split.
            let last: Vec<_> = keys[keys.len() - 3..]
                .iter()
                .map(|(k, v)| format!("{k} {v}"))
                .collect();
            assert_eq!(
                last,
                [
                    format!("split.no u16 {no}"),
                    "split.tensors.count i32 57".into(),
                    format!("split.count u16 {}", paths.len())
                ],
                "{options}"
            );
            assert_eq!(
                keys.len() > 3,
                no == 0,
                "only the first has the model's metadata"
            );
        }
        assert_eq!(
            written["files"][0]["tensors"] == 0,
            options.contains("--no-tensor-first-split"),
            "{options}"
        );
        if paths.len() > 1 {
            assert_eq!(
                json(dir.path(), &format!("verify --json {}", paths[0]))["ok"],
                true
            );
            succeeds(
                dir.path(),
                &format!("merge {} back.gguf --no-split-keys", paths[paths.len() - 1]),
            );
            assert!(read(dir.path(), "back.gguf") == whole, "{options}");
        }
        fs::read_dir(dir.path())
            .unwrap()
            .for_each(|file| fs::remove_file(file.unwrap().path()).unwrap());
    }
}

#[test]
fn merged_files_can_be_split_again() {
    let dir = with_model();
    succeeds(dir.path(), "split m.gguf a --split-max-tensors 5");
    succeeds(dir.path(), "merge a-00001-of-00005.gguf once.gguf");
    let (keys_once, tensors) = keys(&dir.path().join("once.gguf"));
    let last: Vec<_> = keys_once
        .iter()
        .rev()
        .take(3)
        .map(|(k, v)| format!("{k} {v}"))
        .collect();
    assert_eq!(
        last,
        [
            "split.count u16 0",
            &format!("split.tensors.count i32 {tensors}"),
            "split.no u16 0"
        ]
    );
    succeeds(dir.path(), "split once.gguf b --split-max-tensors 5");
    for no in 1..=5 {
        let name = |prefix: &str| format!("{prefix}-0000{no}-of-00005.gguf");
        assert!(
            read(dir.path(), &name("a")) == read(dir.path(), &name("b")),
            "shard {no}"
        );
    }
    // A split model is split again as a whole.
    succeeds(
        dir.path(),
        "split a-00003-of-00005.gguf c --split-max-tensors 12",
    );
    succeeds(dir.path(), "split m.gguf d --split-max-tensors 12");
    for no in 1..=2 {
        let name = |prefix: &str| format!("{prefix}-0000{no}-of-00002.gguf");
        assert!(
            read(dir.path(), &name("c")) == read(dir.path(), &name("d")),
            "shard {no}"
        );
    }
}

#[test]
fn single_shards_are_split_models() {
    let dir = with_model();
    succeeds(dir.path(), "split m.gguf s");
    succeeds(
        dir.path(),
        "merge s-00001-of-00001.gguf back.gguf --no-split-keys",
    );
    assert!(read(dir.path(), "back.gguf") == read(dir.path(), "m.gguf"));
    fails(
        dir.path(),
        "merge m.gguf x.gguf",
        &["m.gguf", "not a shard of a split model", "split.count"],
    );
}

#[test]
fn dry_run_of_split_is_exact_and_writes_nothing() {
    let dir = with_model();
    let before = listing(dir.path());
    let planned = json(
        dir.path(),
        "split m.gguf s --split-max-size 20K --dry-run --json",
    );
    let shown = succeeds(dir.path(), "split m.gguf s --split-max-size 20K --dry-run");
    assert!(
        shown.contains("s-00001-of-") && shown.contains("(dry run)"),
        "{shown}"
    );
    assert_eq!(listing(dir.path()), before);
    let written = json(dir.path(), "split m.gguf s --split-max-size 20K --json");
    assert_eq!(planned["files"], written["files"]);
    assert_eq!(
        (&planned["written"], &written["written"]),
        (&false.into(), &true.into())
    );
}

#[test]
fn custom_alignment_stays_with_the_first_shard() {
    let dir = tempfile::tempdir().unwrap();
    let aligned = Tiny {
        metadata: model().metadata,
        tensors: model().tensors,
    };
    aligned
        .set("general.alignment", Value::U32(256))
        .write(&dir.path().join("m.gguf"));
    succeeds(dir.path(), "split m.gguf s --split-max-tensors 9");
    assert_eq!(
        json(dir.path(), "verify --json s-00001-of-00003.gguf")["ok"],
        true
    );
    succeeds(
        dir.path(),
        "merge s-00001-of-00003.gguf back.gguf --no-split-keys",
    );
    assert!(read(dir.path(), "back.gguf") == read(dir.path(), "m.gguf"));
}

#[test]
fn tensors_above_the_shard_limit() {
    let dir = with_model();
    // token_embd.weight, the first, has 256 x 12 weights of four bytes; ffn_down, among the later
    // ones, 512 x 5.
    fails(
        dir.path(),
        "split m.gguf s --split-max-size 12000",
        &["token_embd.weight", "12288", "12000", "larger size"],
    );
    let mut small_first = model();
    small_first.tensors.rotate_left(1);
    small_first.write(&dir.path().join("n.gguf"));
    let note = stderr(dir.path(), "split n.gguf s --split-max-size 9000", 0);
    assert!(
        note.contains("note: tensor 'token_embd.weight' has 12288 bytes")
            && note.contains("larger"),
        "{note}"
    );
}

#[test]
fn wrong_usage() {
    let dir = with_model();
    usage_errors(
        dir.path(),
        &[
            ("split m.gguf", &["OUT_PREFIX"]),
            ("split m.gguf s --split-max-tensors 0", &["0"]),
            (
                "split m.gguf s --split-max-size 0",
                &["must be greater than 0"],
            ),
            ("split m.gguf s --split-max-size 2T", &["M or G"]),
            (
                "split m.gguf s --split-max-size 1G --split-max-tensors 3",
                &["cannot be used with"],
            ),
            ("merge m.gguf", &["OUT"]),
        ],
    );
}

#[test]
fn existing_shards_are_replaced_only_on_request() {
    let dir = with_model();
    fs::write(dir.path().join("s-00002-of-00003.gguf"), b"precious").unwrap();
    fails(
        dir.path(),
        "split m.gguf s --split-max-tensors 9",
        &["s-00002-of-00003.gguf exists already", "--force"],
    );
    succeeds(dir.path(), "split m.gguf s --split-max-tensors 9 --force");
    fs::write(dir.path().join("out.gguf"), b"precious").unwrap();
    fails(
        dir.path(),
        "merge s-00001-of-00003.gguf out.gguf",
        &["out.gguf exists already", "--force"],
    );
    succeeds(
        dir.path(),
        "merge s-00001-of-00003.gguf out.gguf --force --no-split-keys",
    );
    assert!(read(dir.path(), "out.gguf") == read(dir.path(), "m.gguf"));
    // An input is never replaced, even with --force.
    let shard = read(dir.path(), "s-00002-of-00003.gguf");
    fail_each(
        dir.path(),
        &[
            (
                "merge s-00001-of-00003.gguf s-00002-of-00003.gguf --force",
                &["is an input"],
            ),
            (
                "split s-00001-of-00003.gguf s --split-max-tensors 9 --force",
                &["is an input"],
            ),
        ],
    );
    assert!(read(dir.path(), "s-00002-of-00003.gguf") == shard);
}

#[test]
fn unrelated_shards() {
    let dir = with_model();
    succeeds(dir.path(), "split m.gguf s --split-max-tensors 9");
    let name = |no: u32| format!("s-0000{no}-of-00003.gguf");
    let keep: Vec<_> = (1..=3).map(|no| read(dir.path(), &name(no))).collect();
    let put = |no: u32, bytes: &[u8]| fs::write(dir.path().join(name(no)), bytes).unwrap();

    fs::remove_file(dir.path().join(name(2))).unwrap();
    fail_each(
        dir.path(),
        &[
            (
                "merge s-00001-of-00003.gguf o.gguf",
                &["s-00002-of-00003.gguf", "missing"],
            ),
            (
                "merge s-00002-of-00003.gguf o.gguf",
                &["s-00002-of-00003.gguf"],
            ),
        ],
    );

    // In the wrong order.
    put(2, &keep[2]);
    put(3, &keep[1]);
    fails(
        dir.path(),
        "merge s-00001-of-00003.gguf o.gguf",
        &["s-00002-of-00003.gguf", "shard 2", "'split.no' says 3"],
    );

    // Truncated in the header and in the data.
    put(3, &keep[2]);
    for len in [0, 40, keep[1].len() / 3, keep[1].len() - 100] {
        put(2, &keep[1][..len]);
        fails(
            dir.path(),
            "merge s-00001-of-00003.gguf o.gguf",
            &["s-00002-of-00003.gguf"],
        );
    }

    // Of a model with other tensors.
    let mut other = model();
    other.tensors.remove(3);
    other.write(&dir.path().join("other.gguf"));
    succeeds(dir.path(), "split other.gguf other --split-max-tensors 9");
    put(2, &keep[1]);
    put(3, &read(dir.path(), "other-00003-of-00003.gguf"));
    let error = fails(
        dir.path(),
        "merge s-00001-of-00003.gguf o.gguf",
        &["split.tensors.count"],
    );
    assert!(error.contains("one model"), "{error}");
    // Of the same model, split elsewhere: tensors are repeated.
    put(3, &keep[2]);
    put(2, &read(dir.path(), "other-00002-of-00003.gguf"));
    fail_each(
        dir.path(),
        &[
            ("merge s-00001-of-00003.gguf o.gguf", &["s-0000"]),
            (
                "merge nowhere-00001-of-00003.gguf o.gguf",
                &["nowhere-00001-of-00003.gguf"],
            ),
            ("split . s", &["directory"]),
        ],
    );
}

#[test]
fn full_disk_leaves_no_files() {
    let dir = tempfile::tempdir().unwrap();
    sparse(&dir.path().join("big.gguf"), 1 << 20);
    // A tensor of 2^40 bytes: no disk here has room for it, which is detected before anything is
    // copied.
    let begun = Instant::now();
    fails(
        dir.path(),
        "split big.gguf s",
        &["s-00001-of-00001.gguf", "bytes"],
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    // An always full device.
    let dir = with_model();
    succeeds(dir.path(), "split m.gguf s --split-max-tensors 9");
    fails(
        dir.path(),
        "merge s-00001-of-00003.gguf /dev/full",
        &["cannot write /dev/full", "No space left"],
    );
}

/// A file size limit in the middle of the third shard: the first two are complete by then, and are
/// removed too.
#[test]
fn failed_writes_leave_no_files() {
    let dir = with_model();
    let before = listing(dir.path());
    // Blocks of 1024 bytes; the limit is per file, and the first shard, which has the metadata,
    // stays below it.
    let mut grown = model();
    let last = grown.tensors.len() - 1;
    grown.tensors[last] = (
        crate::support::gguf::info(
            "output.weight",
            &[256, 400],
            quantier_gguf::types::GgmlType::F32,
        ),
        vec![1; 256 * 400 * 4],
    );
    grown.write(&dir.path().join("m.gguf"));
    let line = "trap '' XFSZ; ulimit -f 200; exec $quantier split m.gguf s --split-max-tensors 9";
    let ran = bash(dir.path(), line).code(1);
    let error = String::from_utf8_lossy(&ran.get_output().stderr).into_owned();
    assert!(error.contains("s-00003-of-00003.gguf"), "{error}");
    let names = |all: Vec<(std::path::PathBuf, u64)>| {
        all.into_iter().map(|(path, _)| path).collect::<Vec<_>>()
    };
    assert_eq!(names(listing(dir.path())), names(before));
}

#[test]
fn killed_splits_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    sparse(&dir.path().join("big.gguf"), 3000);
    let partial = dir.path().join("s-00001-of-00001.gguf.partial");
    assert!(killed_when(dir.path(), "split big.gguf s", || partial.exists()));
    assert!(!dir.path().join("s-00001-of-00001.gguf").exists());
    model().write(&dir.path().join("big.gguf"));
    succeeds(dir.path(), "split big.gguf s");
    assert_eq!(listing(dir.path()).len(), 2, "no partial file is left");
}

#[test]
fn hundreds_of_shards() {
    let dir = tempfile::tempdir().unwrap();
    let mut many = crate::support::program::head();
    for i in 0..300 {
        many = many.zeros(
            &format!("blk.{i}.ffn_up.weight"),
            &[256, 8],
            quantier_gguf::types::GgmlType::F32,
        );
    }
    many.write(&dir.path().join("m.gguf"));
    succeeds(dir.path(), "split m.gguf s --split-max-tensors 1");
    let files = Files::open(&dir.path().join("s-00001-of-00300.gguf")).unwrap();
    assert_eq!(Model::parse(&files).unwrap().tensors.len(), 300);
    succeeds(
        dir.path(),
        "merge s-00300-of-00300.gguf back.gguf --no-split-keys",
    );
    assert!(read(dir.path(), "back.gguf") == read(dir.path(), "m.gguf"));
    // More open files than the system allows.
    let before = listing(dir.path());
    let line = "ulimit -n 64; exec $quantier split m.gguf t --split-max-tensors 1";
    let ran = bash(dir.path(), line).code(1);
    let error = String::from_utf8_lossy(&ran.get_output().stderr).into_owned();
    assert!(error.contains("ulimit -n"), "{error}");
    assert_eq!(listing(dir.path()), before);
}
