//! Refusals of `quantier imatrix`: clear errors, exit code 1, and no files left.

use crate::support::gguf::Tiny;
use crate::support::models;
use crate::support::program::{fail_each, fails, importance, succeeds, usage_errors};
use quantier_gguf::gguf::Value;
use std::fs;
use tempfile::TempDir;

fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.txt"), &models::text()[..3000]).unwrap();
    models::shortened(2).write(&dir.path().join("m.gguf"));
    dir
}

#[test]
fn wrong_usage() {
    let dir = place();
    let dir = dir.path();
    usage_errors(
        dir,
        &[
            (
                "imatrix -m m.gguf",
                &["a text (--file) or importance matrices to merge (--in-file) are required"],
            ),
            ("imatrix -f t.txt", &["the model is missing"]),
            (
                "imatrix m.gguf -m m.gguf -f t.txt",
                &["cannot be used with"],
            ),
            (
                "imatrix --show-statistics --in-file a,b",
                &["a single --in-file"],
            ),
            ("imatrix -m m.gguf -f t.txt --output-format csv", &["csv"]),
        ],
    );
}

#[test]
fn unusable_texts() {
    let dir = place();
    let dir = dir.path();
    fs::write(dir.join("short.txt"), "Too short a text.").unwrap();
    fs::write(dir.join("latin.txt"), b"caf\xe9 au lait").unwrap();
    fail_each(
        dir,
        &[
            (
                "imatrix -m m.gguf -f short.txt",
                &["short.txt: ", "1024 are needed (2 chunks of 512)"],
            ),
            (
                "imatrix -m m.gguf -f latin.txt",
                &["latin.txt: not UTF-8 at byte 3"],
            ),
            (
                "imatrix -m m.gguf -f nowhere.txt",
                &["cannot read nowhere.txt"],
            ),
            (
                "imatrix -m m.gguf -f t.txt -c 64 --chunk 9999",
                &["--chunk 9999 is out of range", "chunks of 64"],
            ),
            (
                "imatrix -m m.gguf -f t.txt -c 64 --chunks 0",
                &["--chunks 0 leaves nothing"],
            ),
            ("imatrix -m m.gguf -f t.txt -c 0", &["--ctx-size must be"]),
            ("imatrix -m m.gguf -f t.txt -c 2", &["context of 2 tokens"]),
        ],
    );
}

#[test]
fn unsupported_models() {
    let dir = place();
    let dir = dir.path();
    models::refmodel()
        .set("general.architecture", Value::str("t5"))
        .write(&dir.join("t5.gguf"));
    fails(
        dir,
        "imatrix -m t5.gguf -f t.txt -c 64",
        &["t5.gguf", "'t5'"],
    );
    let mut missing = models::shortened(2);
    missing
        .tensors
        .retain(|(info, _)| info.name != "blk.1.attn_k.weight");
    missing.write(&dir.join("missing.gguf"));
    fail_each(
        dir,
        &[
            (
                "imatrix -m missing.gguf -f t.txt -c 64",
                &["missing.gguf", "are missing: blk.1.attn_k.weight"],
            ),
            ("imatrix -m nowhere.gguf -f t.txt", &["nowhere.gguf"]),
        ],
    );
}

/// Overwrites a value of an F16 or F32 tensor.
fn spoil(model: &mut Tiny, name: &str, at: usize, half: u16, single: f32) {
    let (info, data) = model
        .tensors
        .iter_mut()
        .find(|(info, _)| info.name == name)
        .unwrap();
    match data.len() as u64 / info.shape.elements() {
        2 => data[2 * at..2 * at + 2].copy_from_slice(&half.to_le_bytes()),
        _ => data[4 * at..4 * at + 4].copy_from_slice(&single.to_le_bytes()),
    }
}

#[test]
fn nonfinite_inputs_are_named() {
    let dir = place();
    let dir = dir.path();
    // Found in the input of the next matrix of the layer.
    let mut model = models::shortened(2);
    spoil(
        &mut model,
        "blk.1.ffn_norm.weight",
        17,
        0x7c00,
        f32::INFINITY,
    );
    model.write(&dir.join("norm.gguf"));
    let parts = [
        "norm.gguf: layer 1, chunk 3: ",
        "'blk.1.ffn_gate.weight'",
        "channel 17",
    ];
    fails(dir, "imatrix -m norm.gguf -f t.txt -c 64 --chunk 3", &parts);
    // The output of the last matrix is no input; a snapshot is useless then.
    let mut model = models::shortened(2);
    spoil(&mut model, "blk.0.ffn_down.weight", 5, 0x7e00, f32::NAN);
    model.write(&dir.join("down.gguf"));
    let parts = ["down.gguf: layer 0, chunk 0: ", "'blk.0.ffn_down.weight'"];
    fails(
        dir,
        "imatrix -m down.gguf -f t.txt -c 64 --checkpoint-every 0",
        &parts,
    );
    // The last norm and the output matrix are only used on request.
    let mut model = models::shortened(2);
    spoil(&mut model, "output_norm.weight", 0, 0x7e00, f32::NAN);
    model.write(&dir.join("last.gguf"));
    fails(
        dir,
        "imatrix -m last.gguf -f t.txt -c 64 --checkpoint-every 0",
        &["last.gguf: chunk 0, scored row 0: "],
    );
    let parts = ["last.gguf: chunk 0: ", "'output.weight'"];
    fails(
        dir,
        "imatrix -m last.gguf -f t.txt -c 64 --no-ppl --process-output --save-frequency 2",
        &parts,
    );
    succeeds(dir, "imatrix -m last.gguf -f t.txt -c 64 --no-ppl");
}

#[test]
fn unmergeable_files() {
    let dir = place();
    let dir = dir.path();
    succeeds(
        dir,
        "imatrix -m m.gguf -f t.txt -c 64 --chunks 2 --no-ppl -o two.gguf",
    );
    models::shortened(3).write(&dir.join("m3.gguf"));
    succeeds(
        dir,
        "imatrix -m m3.gguf -f t.txt -c 64 --chunks 2 --no-ppl -o three.gguf",
    );
    importance(|_| true).write(&dir.join("other.gguf"));
    fs::write(
        dir.join("cut.gguf"),
        &fs::read(dir.join("two.gguf")).unwrap()[..5000],
    )
    .unwrap();

    fails(
        dir,
        "imatrix --in-file two.gguf,three.gguf -o o.gguf",
        &["three.gguf: ", "3 blocks", "has 2"],
    );
    let sizes = ["two.gguf: ", "'blk.0.ffn_down.weight' has", "same model"];
    fails(
        dir,
        "imatrix --in-file three.gguf,other.gguf -o o.gguf",
        &["other.gguf: ", sizes[1], sizes[2]],
    );
    // Compared with the model before the text is read.
    let parts = ["three.gguf, against m.gguf: ", "'blk.2.", "no such tensor"];
    fails(
        dir,
        "imatrix -m m.gguf -f nowhere.txt --in-file three.gguf -o o.gguf",
        &parts,
    );
    let parts = [
        "other.gguf, against m3.gguf: ",
        "'blk.0.ffn_down.weight'",
        "768 input channels",
    ];
    fail_each(
        dir,
        &[
            ("imatrix -m m3.gguf --in-file other.gguf -o o.gguf", &parts),
            ("imatrix --in-file cut.gguf -o o.gguf", &["cut.gguf: "]),
            (
                "imatrix -m m.gguf -f t.txt -c 64 --in-file two.gguf,cut.gguf -o o.gguf",
                &["cut.gguf: "],
            ),
            (
                "imatrix --in-file nowhere.gguf -o o.gguf",
                &["nowhere.gguf"],
            ),
            ("imatrix --show-statistics --in-file t.txt", &["t.txt: "]),
        ],
    );
}

#[test]
fn outputs_that_cannot_be_written() {
    let dir = place();
    let dir = dir.path();
    let run = |output: &str| format!("imatrix -m m.gguf -f t.txt -c 64 --chunks 2 -o {output}");
    fail_each(
        dir,
        &[
            (
                &run("nowhere/o.gguf"),
                &["nowhere/o.gguf", "create the directory nowhere first"],
            ),
            (&run("m.gguf"), &["m.gguf is an input"]),
            (&run("t.txt"), &["t.txt is an input"]),
            (&run("."), &["it is a directory"]),
        ],
    );
    succeeds(dir, &run("/dev/null"));
}
