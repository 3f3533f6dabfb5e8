//! Refusals of `perplexity` and `kld`: exit code 1, one error with a remedy, and no files left.

use crate::support::gguf::{Tiny, info};
use crate::support::models;
use crate::support::program::{fail_each, fails, quantier, stderr, succeeds};
use crate::support::text::{numbers, prose};
use quantier_gguf::gguf::{Array, Value};
use quantier_gguf::types::GgmlType;
use tempfile::TempDir;

/// The small trained model with a change.
fn changed(change: impl FnOnce(&mut Tiny)) -> Tiny {
    let mut model = models::refmodel();
    change(&mut model);
    model
}

/// Directory with the model and two texts.
fn with_model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    changed(|_| {}).write(&dir.path().join("m.gguf"));
    std::fs::write(dir.path().join("a.txt"), prose(1500)).unwrap();
    std::fs::write(dir.path().join("b.txt"), numbers(1500)).unwrap();
    dir
}

/// The same with a changed model x.gguf beside it.
fn with_changed(change: impl FnOnce(&mut Tiny)) -> TempDir {
    let dir = with_model();
    changed(change).write(&dir.path().join("x.gguf"));
    dir
}

fn tensor<'t>(model: &'t mut Tiny, name: &str) -> &'t mut Vec<u8> {
    &mut model
        .tensors
        .iter_mut()
        .find(|(info, _)| info.name == name)
        .unwrap()
        .1
}

const ON_A: &str = "-f a.txt -c 32 --chunks 2";

/// A model with four experts, of which a token sees one, and a change.
fn experts_with(change: impl FnOnce(Tiny) -> Tiny, parts: &[&str]) {
    let dir = with_model();
    change(models::experts()).write(&dir.path().join("x.gguf"));
    fails(dir.path(), &format!("perplexity x.gguf {ON_A}"), parts);
}

#[test]
fn mixtures_of_experts_that_do_not_fit() {
    let number =
        |key: &'static str, number: u32| move |model: Tiny| model.set(key, Value::U32(number));
    experts_with(
        number("llama.expert_used_count", 5),
        &["'llama.expert_used_count' is 5", "4 experts"],
    );
    experts_with(
        |model| {
            let groups = number("llama.expert_group_count", 3)(model);
            number("llama.expert_group_used_count", 1)(groups)
        },
        &["'llama.expert_group_count' is 3", "4 experts"],
    );
    experts_with(
        |model| model.weights("blk.0.ffn_gate_inp.bias", &[4], vec![0.0; 4]),
        &["'blk.0.ffn_gate_inp.bias' is unexpected"],
    );
    experts_with(
        |mut model| {
            const GATE: &str = "blk.1.ffn_gate_exps.weight";
            model.tensors.retain(|(info, _)| info.name != GATE);
            model.weights(GATE, &[256, 64, 3], vec![0.0; 256 * 64 * 3])
        },
        &[
            "tensor 'blk.1.ffn_gate_exps.weight' has shape",
            "[4, 64, 256]",
        ],
    );
}

#[test]
fn unusable_evaluation_texts() {
    let dir = with_model();
    let run = |text: &[u8], more: &str, parts: &[&str]| {
        std::fs::write(dir.path().join("t.txt"), text).unwrap();
        fail_each(
            dir.path(),
            &[
                (&format!("perplexity m.gguf -f t.txt {more}"), parts),
                (
                    &format!("kld m.gguf m.gguf -f a.txt -f t.txt {more}"),
                    parts,
                ),
            ],
        );
    };
    run(
        b"Too short.",
        "-c 64",
        &["t.txt", "128 are needed (2 chunks of 64)"],
    );
    run(b"", "-c 64", &["t.txt", "has 1 tokens and 128 are needed"]);
    run(b"abc \xff def", "-c 64", &["t.txt: not UTF-8 at byte 4"]);
    run(
        b"long enough for a context of two",
        "-c 2",
        &["must be at least 3"],
    );
    run(
        b"long enough for a context of three, surely",
        "-c 3 --chunks 0",
        &["0 chunks"],
    );
    fails(
        dir.path(),
        "perplexity m.gguf -f nowhere.txt",
        &["cannot read nowhere.txt"],
    );
    // As matched by *.gguf in a directory of `make`.
    crate::support::gguf::imatrix().write(&dir.path().join("imatrix.gguf"));
    let named = format!("kld m.gguf imatrix.gguf {ON_A}");
    fails(
        dir.path(),
        &named,
        &["imatrix.gguf: this is an importance matrix, and no model"],
    );
}

#[test]
fn unsupported_architecture() {
    let named = |name: &'static str| {
        with_changed(|model| model.metadata.set("general.architecture", Value::str(name)))
    };
    let unknown = [
        "x.gguf: models of architecture 'chameleon' cannot be run here yet (convert and quantize work)",
        "llama",
    ];
    let encoder = [
        "x.gguf: models of architecture 't5' cannot be run here yet: it has an encoder, whose output its decoder reads \
         (convert and quantize work)",
        "",
    ];
    for (dir, parts) in [(named("chameleon"), unknown), (named("t5"), encoder)] {
        fail_each(
            dir.path(),
            &[
                (&format!("perplexity x.gguf {ON_A}"), &parts),
                (
                    &format!("kld m.gguf x.gguf {ON_A} --save-logits base.kld"),
                    &parts,
                ),
            ],
        );
    }
}

#[test]
fn missing_and_misshapen_tensors() {
    let dir = with_changed(|model| {
        model
            .tensors
            .retain(|(info, _)| info.name != "blk.4.ffn_up.weight")
    });
    let parts = ["x.gguf: ", "are missing: blk.4.ffn_up.weight;"];
    fail_each(
        dir.path(),
        &[
            (
                &format!("perplexity x.gguf {ON_A} --save-logits base.kld"),
                &parts,
            ),
            (&format!("kld m.gguf x.gguf {ON_A}"), &parts),
        ],
    );
    let dir = with_changed(|model| {
        let (info, data) = model
            .tensors
            .iter_mut()
            .find(|(info, _)| info.name == "blk.2.attn_k.weight")
            .unwrap();
        *info = self::info("blk.2.attn_k.weight", &[256, 64], GgmlType::F16);
        data.truncate(256 * 64 * 2);
    });
    fails(
        dir.path(),
        &format!("perplexity x.gguf {ON_A}"),
        &["x.gguf: tensor 'blk.2.attn_k.weight' has shape", "64"],
    );
    let dir = with_changed(|model| {
        model
            .tensors
            .retain(|(info, _)| info.name != "token_embd.weight")
    });
    fails(
        dir.path(),
        &format!("perplexity x.gguf {ON_A}"),
        &["x.gguf: ", "are missing: token_embd.weight;"],
    );
}

#[test]
fn different_vocabularies() {
    // As many tokens, but with permuted texts.
    let dir = with_changed(|model| {
        let tokens = model
            .metadata
            .get("tokenizer.ggml.tokens")
            .and_then(Value::as_array)
            .unwrap();
        let mut tokens: Vec<Vec<u8>> = tokens.strings().map(<[u8]>::to_vec).collect();
        tokens[300..].rotate_left(1000);
        model.metadata.set(
            "tokenizer.ggml.tokens",
            Value::Array(Array::of_strings(tokens)),
        );
    });
    let parts = [
        "x.gguf: its vocabulary differs",
        "compare models of one family",
    ];
    fails(dir.path(), &format!("kld m.gguf x.gguf {ON_A}"), &parts);
    // Its logits file is refused with the text, and so is a model that decodes the file's tokens to
    // another text.
    succeeds(
        dir.path(),
        &format!("perplexity x.gguf {ON_A} --save-logits x.kld"),
    );
    fail_each(
        dir.path(),
        &[
            (
                "kld --logits x.kld x.gguf m.gguf",
                &["m.gguf: its vocabulary differs"],
            ),
            (
                "kld --logits x.kld m.gguf -f a.txt",
                &["x.kld: written from another text or with another"],
            ),
        ],
    );
    // Another number of tokens.
    let dir = with_changed(|model| {
        for name in ["token_embd.weight", "output.weight"] {
            let (info, data) = model
                .tensors
                .iter_mut()
                .find(|(info, _)| info.name == name)
                .unwrap();
            *info = self::info(name, &[256, 4097], GgmlType::F16);
            data.resize(256 * 4097 * 2, 0);
        }
    });
    fails(
        dir.path(),
        &format!("kld m.gguf x.gguf {ON_A}"),
        &["x.gguf: its vocabulary has 4097 tokens", "4096"],
    );
    succeeds(
        dir.path(),
        &format!("perplexity x.gguf {ON_A} --save-logits x.kld"),
    );
    fails(
        dir.path(),
        "kld --logits x.kld m.gguf",
        &["x.kld: written by a model with 4097 tokens", "4096"],
    );
}

#[test]
fn logits_files_of_other_models_are_reported() {
    let dir = with_changed(|model| tensor(model, "output.weight").rotate_left(512 * 1000));
    succeeds(
        dir.path(),
        &format!("perplexity x.gguf {ON_A} --save-logits x.kld"),
    );
    let warning = stderr(dir.path(), "kld --logits x.kld m.gguf", 0);
    assert!(
        warning.starts_with("warning: m.gguf and the logits file agree on "),
        "{warning}"
    );
}

#[test]
fn logits_files_of_another_text_and_damaged_ones() {
    let dir = with_model();
    succeeds(
        dir.path(),
        &format!("perplexity m.gguf {ON_A} --save-logits a.kld"),
    );
    let another = fails(
        dir.path(),
        "kld --logits a.kld m.gguf -f b.txt",
        &["a.kld: written from another text"],
    );
    assert!(another.contains("of chunk 0 is "), "{another}");
    fails(
        dir.path(),
        "kld --logits a.kld m.gguf -f a.txt -f b.txt",
        &["a.kld: the file has 2 chunks, but the texts have "],
    );
    let bytes = std::fs::read(dir.path().join("a.kld")).unwrap();
    std::fs::write(dir.path().join("cut.kld"), &bytes[..bytes.len() - 9]).unwrap();
    fail_each(
        dir.path(),
        &[
            ("kld --logits cut.kld m.gguf", &["cut.kld", "cut short"]),
            ("kld --logits a.txt m.gguf", &["a.txt", "'_logits_'"]),
            ("kld --logits nowhere.kld m.gguf", &["nowhere.kld"]),
            // Inputs are never overwritten.
            (
                &format!("perplexity m.gguf {ON_A} --save-logits m.gguf"),
                &["m.gguf"],
            ),
            (
                &format!("kld m.gguf m.gguf {ON_A} --save-logits a.txt"),
                &["a.txt"],
            ),
        ],
    );
    for wrong in [
        "kld m.gguf -f a.txt",
        "kld m.gguf m.gguf",
        "perplexity -f a.txt",
        "perplexity m.gguf",
    ] {
        quantier(wrong).current_dir(dir.path()).assert().code(2);
    }
}

#[test]
fn nonfinite_activations_name_the_first_layer() {
    let nan = [0x00, 0x7e]; // of f16
    let dir = with_changed(|model| {
        tensor(model, "blk.3.ffn_down.weight")[..2].copy_from_slice(&nan);
        tensor(model, "blk.5.ffn_down.weight")[..2].copy_from_slice(&nan);
    });
    let parts = ["x.gguf: layer 3, chunk ", "not finite"];
    fail_each(
        dir.path(),
        &[
            (
                &format!("perplexity x.gguf {ON_A} --save-logits base.kld"),
                &parts,
            ),
            (
                &format!("kld m.gguf x.gguf {ON_A} --save-logits base.kld"),
                &parts,
            ),
        ],
    );
    // After the last layer.
    let dir =
        with_changed(|model| tensor(model, "output.weight")[512 * 7..][..2].copy_from_slice(&nan));
    let parts = [
        "x.gguf: chunk 0, scored row 0: the logit of token 7 is NaN",
        "output matrix",
    ];
    fail_each(
        dir.path(),
        &[
            (
                &format!("perplexity x.gguf {ON_A} --save-logits base.kld"),
                &parts,
            ),
            (
                &format!("kld m.gguf m.gguf x.gguf {ON_A} --save-logits base.kld"),
                &parts,
            ),
        ],
    );
}
