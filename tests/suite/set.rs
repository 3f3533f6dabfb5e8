//! Tests of `quantier set`.

use crate::support::gguf::Tiny;
use crate::support::program::{
    fail_each, fails, json as ran, listing, model, quantier, read, succeeds, usage_errors,
};
use quantier_gguf::gguf::{Array, Value};
use serde_json::{Value as Json, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// The small model, with a vocabulary of six tokens.
fn with_tokens() -> Tiny {
    model()
        .set(
            "tokenizer.ggml.tokens",
            Value::Array(Array::of_strings(["<s>", "</s>", "a", "b", "c", "d"])),
        )
        .set("tokenizer.ggml.bos_token_id", Value::U32(0))
        .set("tokenizer.ggml.eos_token_id", Value::U32(1))
        .set("tokenizer.ggml.add_bos_token", Value::Bool(true))
        .set("tokenizer.chat_template", Value::str("{{ old }}"))
        .set("general.alignment", Value::U32(32))
}

fn with_model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    with_tokens().write(&dir.path().join("m.gguf"));
    dir
}

/// Type and value of a key.
fn key(dir: &Path, file: &str, key: &str) -> Json {
    ran(dir, &format!("inspect --json {file}"))["metadata"][key].clone()
}

#[test]
fn chat_templates_are_tested() {
    let dir = with_model();
    let notes = |template: &str| {
        fs::write(dir.path().join("t.jinja"), template).unwrap();
        let ran = quantier("set m.gguf -o n.gguf --force --chat-template t.jinja")
            .current_dir(dir.path())
            .assert();
        String::from_utf8(ran.success().get_output().stderr.clone()).unwrap()
    };
    assert!(
        notes("{% for m in messages %}")
            .contains("note: the chat template cannot be parsed: line 1")
    );
    let plain = notes(
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ bos_token }}",
    );
    assert!(
        plain.contains("takes no tools") && !plain.contains("cannot"),
        "{plain}"
    );
    let ran = quantier("set m.gguf --dry-run --remove tokenizer.chat_template")
        .current_dir(dir.path())
        .assert();
    assert!(ran.success().get_output().stderr.is_empty());
}

#[test]
fn copies_have_new_keys_and_old_tensors() {
    let dir = with_model();
    let template = "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n";
    fs::write(dir.path().join("t.jinja"), template).unwrap();
    let before = read(dir.path(), "m.gguf");
    let shown = succeeds(
        dir.path(),
        "set m.gguf -o n.gguf --chat-template t.jinja --name renamed --eos 3 --pad 5 --add-bos false \
         --key general.license=str:mit --key a.list=i32[]:[1,-2] --remove llama.rope.freq_base",
    );
    assert!(
        shown.contains("~ tokenizer.ggml.eos_token_id: u32 1 -> u32 3"),
        "{shown}"
    );
    assert!(
        shown.contains("+ general.license: str mit") && shown.contains("- llama.rope.freq_base"),
        "{shown}"
    );
    assert!(
        shown.contains("n.gguf: ") && shown.contains("written"),
        "{shown}"
    );
    let value = |name: &str| key(dir.path(), "n.gguf", name);
    assert_eq!(
        value("tokenizer.chat_template"),
        json!({ "type": "str", "value": template })
    );
    assert_eq!(value("general.name")["value"], "renamed");
    assert_eq!(
        value("tokenizer.ggml.eos_token_id"),
        json!({ "type": "u32", "value": 3 })
    );
    assert_eq!(
        value("tokenizer.ggml.padding_token_id"),
        json!({ "type": "u32", "value": 5 })
    );
    assert_eq!(
        value("tokenizer.ggml.add_bos_token"),
        json!({ "type": "bool", "value": false })
    );
    assert_eq!(value("a.list"), json!({ "type": "arr", "value": [1, -2] }));
    assert_eq!(value("llama.rope.freq_base"), Json::Null);
    assert!(
        read(dir.path(), "m.gguf") == before,
        "the input is what it was"
    );
    // diff reports exactly the edits, and no tensor.
    let diff = quantier("diff m.gguf n.gguf --json")
        .current_dir(dir.path())
        .assert()
        .code(1);
    let found: Json = serde_json::from_slice(&diff.get_output().stdout).unwrap();
    assert_eq!(
        (
            found["metadata"].as_array().unwrap().len(),
            &found["same_tensors"]
        ),
        (8, &json!(24))
    );
    assert_eq!(ran(dir.path(), "verify --json n.gguf")["ok"], true);
}

#[test]
fn keys_keep_their_places_and_edits_can_be_undone() {
    let dir = with_model();
    succeeds(dir.path(), "set m.gguf -o n.gguf --name other --bos 2");
    succeeds(dir.path(), "set n.gguf -o back.gguf --name tiny --bos 0");
    assert!(read(dir.path(), "back.gguf") == read(dir.path(), "m.gguf"));
    // No change: the same bytes.
    succeeds(dir.path(), "set m.gguf -o same.gguf --name tiny");
    assert!(read(dir.path(), "same.gguf") == read(dir.path(), "m.gguf"));
    // Another alignment moves the tensors without changing them.
    succeeds(
        dir.path(),
        "set m.gguf -o wide.gguf --key general.alignment=u32:4096",
    );
    assert_eq!(
        ran(dir.path(), "inspect --json wide.gguf")["alignment"],
        4096
    );
    assert_eq!(ran(dir.path(), "verify --json wide.gguf")["ok"], true);
}

#[test]
fn in_place_edits_change_only_value_bytes() {
    let dir = with_model();
    let before = read(dir.path(), "m.gguf");
    let shown = succeeds(
        dir.path(),
        "set m.gguf --in-place --eos 4 --add-bos false --name abcd",
    );
    assert!(shown.contains("6 bytes changed in place"), "{shown}");
    let after = read(dir.path(), "m.gguf");
    assert_eq!(before.len(), after.len());
    assert_eq!(before.iter().zip(&after).filter(|(a, b)| a != b).count(), 6);
    assert_eq!(
        key(dir.path(), "m.gguf", "tokenizer.ggml.eos_token_id")["value"],
        4
    );
    assert_eq!(key(dir.path(), "m.gguf", "general.name")["value"], "abcd");
    // The same result as the copy.
    with_tokens().write(&dir.path().join("o.gguf"));
    succeeds(
        dir.path(),
        "set o.gguf -o copy.gguf --eos 4 --add-bos false --name abcd",
    );
    assert!(read(dir.path(), "copy.gguf") == after);
    // Repeated, there is nothing to do.
    let again = succeeds(dir.path(), "set m.gguf --in-place --eos 4");
    assert!(again.contains("0 bytes changed"), "{again}");
}

#[test]
fn in_place_edits_that_change_the_layout_are_refused() {
    let dir = with_model();
    let before = read(dir.path(), "m.gguf");
    fs::write(dir.path().join("t.jinja"), "{{ a longer one }}").unwrap();
    for (edit, part) in [
        (
            "--name longer",
            "'general.name' would have 14 bytes (str) in place of 12 (str)",
        ),
        (
            "--chat-template t.jinja",
            "'tokenizer.chat_template' would have",
        ),
        (
            "--pad 3",
            "'tokenizer.ggml.padding_token_id' would be a new key",
        ),
        ("--remove general.name", "'general.name' would be removed"),
        (
            "--key general.name=u32:1 --force",
            "'general.name' would have 4 bytes (u32) in place of 12 (str)",
        ),
        ("--eos 3 --pad 3", "padding_token_id"),
        // As many bytes, but including lengths: half of this edit would be unreadable.
        (
            r#"--key tokenizer.ggml.tokens=str[]:["<s","></s>","a","b","c","d"]"#,
            "'tokenizer.ggml.tokens' would have",
        ),
        ("--key general.alignment=u32:64", "where tensors begin"),
    ] {
        fails(
            dir.path(),
            &format!("set m.gguf --in-place {edit}"),
            &["m.gguf", part, "killed", "-o OUT"],
        );
        assert!(read(dir.path(), "m.gguf") == before, "{edit}");
    }
}

/// After a kill at any time, the file is one of the states between writes, all of which are
/// readable.
#[test]
fn killed_in_place_edits_leave_readable_files() {
    let dir = with_model();
    for round in 0..40 {
        let (eos, add) = (2 + round % 4, round % 2 == 0);
        let mut child = Command::new(env!("CARGO_BIN_EXE_quantier"))
            .args([
                "set",
                "m.gguf",
                "--in-place",
                "--eos",
                &eos.to_string(),
                "--add-bos",
                &add.to_string(),
            ])
            .args(["--name", ["abcd", "efgh"][round % 2]])
            .current_dir(dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(250 * round as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        let shown = ran(dir.path(), "inspect --json m.gguf");
        assert!(
            shown["metadata"]["tokenizer.ggml.eos_token_id"]["value"]
                .as_u64()
                .unwrap()
                < 6
        );
        assert_eq!(listing(dir.path()).len(), 1);
    }
    assert_eq!(ran(dir.path(), "verify --json m.gguf")["ok"], true);
}

#[test]
fn dry_run_of_set_changes_nothing() {
    let dir = with_model();
    let before = read(dir.path(), "m.gguf");
    for how in ["", "--in-place", "-o n.gguf"] {
        let found = ran(
            dir.path(),
            &format!("set m.gguf {how} --eos 2 --dry-run --json"),
        );
        assert_eq!(found["written"], false);
        let change = json!({ "key": "tokenizer.ggml.eos_token_id", "before": { "type": "u32", "value": 1 },
            "after": { "type": "u32", "value": 2 } });
        assert_eq!(found["changes"], json!([change]));
        assert!(read(dir.path(), "m.gguf") == before && listing(dir.path()).len() == 1);
    }
}

#[test]
fn invalid_edits() {
    let dir = with_model();
    for (edit, part) in [
        (
            "--key llama.block_count=u64:3",
            "of type u32, not u64; --force changes",
        ),
        (
            "--key tokenizer.ggml.tokens=str:x",
            "of type str[], not str",
        ),
        (
            "--key tokenizer.ggml.tokens=u32[]:[1]",
            "of type str[], not u32[]",
        ),
        (
            "--eos 6",
            "'tokenizer.ggml.eos_token_id' cannot be 6: the vocabulary has 6 tokens",
        ),
        ("--key tokenizer.ggml.eom_token_id=i32:-1", "cannot be -1"),
        ("--remove nothing", "no key 'nothing' to remove"),
        (
            "--remove general.architecture",
            "no program can read the model",
        ),
        ("--key split.count=u16:3", "use split or merge"),
        ("--remove split.no", "use split or merge"),
        ("--key general.alignment=u32:33 --force", "power of two"),
        ("--key general.alignment=u64:64 --force", "power of two"),
        (
            "--name a --key general.name=str:b",
            "'general.name' has two edits",
        ),
        ("--key =str:b", "is not a key"),
    ] {
        fails(dir.path(), &format!("set m.gguf -o n.gguf {edit}"), &[part]);
    }
    // All reasons at once.
    fails(
        dir.path(),
        "set m.gguf -o n.gguf --eos 9 --remove nothing",
        &["cannot be 9", "no key 'nothing'"],
    );
    // Unwise edits are possible with --force.
    succeeds(
        dir.path(),
        "set m.gguf -o n.gguf --force --key llama.block_count=u64:3 --eos 6",
    );
    assert_eq!(
        key(dir.path(), "n.gguf", "llama.block_count")["type"],
        "u64"
    );
}

#[test]
fn wrong_usage() {
    let dir = with_model();
    usage_errors(
        dir.path(),
        &[
            ("set m.gguf -o n.gguf", &["no change requested"]),
            ("set m.gguf --eos 2", &["-o OUT"]),
            (
                "set m.gguf --in-place -o n.gguf --eos 2",
                &["cannot be used with"],
            ),
            (
                "set m.gguf -o n.gguf --key general.name=tiny",
                &["expected TYPE:VALUE"],
            ),
            (
                "set m.gguf -o n.gguf --key general.name=text:tiny",
                &["'text' is not a type"],
            ),
            ("set m.gguf -o n.gguf --key a=u8:256", &["'256'"]),
            ("set m.gguf -o n.gguf --bos x", &["'x'"]),
            ("set m.gguf -o n.gguf --add-bos yes", &["'yes'"]),
        ],
    );
}

#[test]
fn unreadable_inputs_and_protected_outputs() {
    let dir = with_model();
    let before = read(dir.path(), "m.gguf");
    fail_each(
        dir.path(),
        &[
            ("set nowhere.gguf -o n.gguf --eos 2", &["nowhere.gguf"]),
            ("set . -o n.gguf --eos 2", &["directory"]),
            (
                "set m.gguf -o n.gguf --chat-template nowhere.jinja",
                &["cannot read nowhere.jinja"],
            ),
        ],
    );
    fs::write(dir.path().join("empty.jinja"), "\n").unwrap();
    fails(
        dir.path(),
        "set m.gguf -o n.gguf --chat-template empty.jinja",
        &["empty.jinja is empty"],
    );
    fs::write(dir.path().join("n.gguf"), "precious").unwrap();
    fail_each(
        dir.path(),
        &[
            (
                "set m.gguf -o n.gguf --eos 2",
                &["n.gguf exists already", "--force"],
            ),
            (
                "set m.gguf -o m.gguf --eos 2 --force",
                &["m.gguf is an input"],
            ),
            ("set m.gguf -o /dev/full --eos 2", &["/dev/full"]),
        ],
    );
    succeeds(dir.path(), "set m.gguf -o n.gguf --eos 2 --force");
    assert!(read(dir.path(), "m.gguf") == before);
}

#[test]
fn split_models_stay_split() {
    let dir = with_model();
    succeeds(dir.path(), "split m.gguf s --split-max-tensors 9");
    fails(
        dir.path(),
        "set s-00001-of-00003.gguf -o n.gguf --name longer",
        &["3 shards", "-00001-of-00003.gguf"],
    );
    succeeds(
        dir.path(),
        "set s-00002-of-00003.gguf -o n-00001-of-00003.gguf --name longer",
    );
    assert_eq!(
        key(dir.path(), "n-00003-of-00003.gguf", "general.name")["value"],
        "longer"
    );
    for no in 2..=3 {
        let name = |prefix: &str| format!("{prefix}-0000{no}-of-00003.gguf");
        assert!(read(dir.path(), &name("n")) == read(dir.path(), &name("s")));
    }
    let shown = succeeds(dir.path(), "set s-00003-of-00003.gguf --in-place --eos 2");
    assert!(
        shown.contains("s-00001-of-00003.gguf: 1 bytes changed in place"),
        "{shown}"
    );
    assert_eq!(
        key(
            dir.path(),
            "s-00001-of-00003.gguf",
            "tokenizer.ggml.eos_token_id"
        )["value"],
        2
    );
}

#[test]
fn a_file_of_metadata_only() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = format!("{}/testdata/refmodel", env!("CARGO_MANIFEST_DIR"));
    succeeds(
        dir.path(),
        &format!("convert {checkpoint} -o v.gguf --vocab-only"),
    );
    succeeds(
        dir.path(),
        "set v.gguf -o same.gguf --key tokenizer.ggml.bos_token_id=u32:1",
    );
    succeeds(dir.path(), "set v.gguf --in-place --eos 0");
    succeeds(dir.path(), "set v.gguf --in-place --eos 2");
    assert!(read(dir.path(), "same.gguf") == read(dir.path(), "v.gguf"));
}
