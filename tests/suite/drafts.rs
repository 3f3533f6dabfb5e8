//! Draft models: `quantier convert --target-model-dir`.
//!
//! `scripts/parity.sh convert` compares the files with those of convert_hf_to_gguf.py.

use crate::convert::{FFN, HIDDEN, Model, VOCAB, fails, plan};
use crate::support::program::{json as run_json, stderr, succeeds};
use quantier_gguf::gguf::Model as Gguf;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Rows of the draft's output matrix.
const ROWS: u64 = 32;

/// An EAGLE-3 draft of the tiny Llama, whose rows stand for every other token.
pub(super) fn eagle3() -> Model {
    let mut model = Model {
        config: json!({
            "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": HIDDEN,
            "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": VOCAB,
            "draft_vocab_size": ROWS, "norm_before_residual": true,
        }),
        tensors: BTreeMap::new(),
    };
    for (name, shape) in [
        ("fc.weight", vec![HIDDEN, 3 * HIDDEN]),
        ("norm.weight", vec![HIDDEN]),
        ("lm_head.weight", vec![ROWS, HIDDEN]),
        ("midlayer.input_layernorm.weight", vec![HIDDEN]),
        ("midlayer.hidden_norm.weight", vec![HIDDEN]),
        ("midlayer.post_attention_layernorm.weight", vec![HIDDEN]),
        ("midlayer.self_attn.q_proj.weight", vec![HIDDEN, 2 * HIDDEN]),
        ("midlayer.self_attn.k_proj.weight", vec![HIDDEN, 2 * HIDDEN]),
        ("midlayer.self_attn.v_proj.weight", vec![HIDDEN, 2 * HIDDEN]),
        ("midlayer.self_attn.o_proj.weight", vec![HIDDEN, HIDDEN]),
        ("midlayer.mlp.gate_proj.weight", vec![FFN, HIDDEN]),
        ("midlayer.mlp.up_proj.weight", vec![FFN, HIDDEN]),
        ("midlayer.mlp.down_proj.weight", vec![HIDDEN, FFN]),
    ] {
        model.add(name, &shape);
    }
    table(&mut model, |row| row);
    let marks = vec![1; VOCAB as usize];
    model
        .tensors
        .insert("t2d".into(), ("BOOL", vec![VOCAB], marks));
    model
}

/// Sets the distances from rows to their tokens.
fn table(model: &mut Model, distance: impl Fn(i64) -> i64) {
    let bytes = (0..ROWS as i64).flat_map(|row| distance(row).to_le_bytes());
    let bytes = bytes.collect();
    model
        .tensors
        .insert("d2t".into(), ("I64", vec![ROWS], bytes));
}

#[test]
fn a_draft_has_the_vocabulary_of_its_target() {
    let target = Model::llama().write();
    let target_dir = target.path().to_str().unwrap();
    let draft = eagle3().write();
    std::fs::remove_file(draft.path().join("tokenizer.model")).unwrap();
    let result = plan(draft.path(), &["--target-model-dir", target_dir]);
    assert_eq!(result["architecture"], "eagle3");
    let tensors = result["tensors"].as_array().unwrap();
    let last = tensors.last().unwrap();
    assert_eq!(
        (last["name"].as_str(), last["to"].as_str()),
        (Some("d2t"), Some("i64"))
    );
    let names: Vec<&str> = tensors
        .iter()
        .map(|t| t["name"].as_str().unwrap())
        .collect();
    for name in [
        "fc.weight",
        "blk.0.attn_norm_2.weight",
        "blk.0.attn_q.weight",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.contains(&"t2d"));
    let file = Gguf::open(&draft.path().join("out.gguf")).unwrap();
    let keys: Vec<&str> = file.metadata().iter().map(|(key, _)| key).collect();
    assert_eq!(keys[1], "eagle3.target_layers");
    assert!(keys.contains(&"tokenizer.ggml.tokens"));
    let tokens = file.tensors.last().unwrap().data();
    let tokens = tokens.as_chunks().0.iter().map(|n| i64::from_le_bytes(*n));
    assert!(tokens.eq((0..ROWS as i64).map(|row| 2 * row)));

    // The table is copied.
    succeeds(draft.path(), "quantize out.gguf small.gguf Q8_0");
    let listed = run_json(draft.path(), "inspect small.gguf --json");
    let tensors = listed["tensors"].to_string();
    assert!(
        tensors.contains("\"i64\"") && tensors.contains("\"q8_0\""),
        "{tensors}"
    );
    std::fs::write(draft.path().join("text.txt"), "A text.").unwrap();
    let error = stderr(draft.path(), "perplexity out.gguf -f text.txt", 1);
    assert!(error.contains("draft model"), "{error}");
}

#[test]
fn a_draft_that_would_not_load_is_refused() {
    let target = Model::llama().write();
    let with_target = ["--target-model-dir", target.path().to_str().unwrap()];
    fails(eagle3().write().path(), &[], &["--target-model-dir DIR"]);
    let model = Model::llama().write();
    fails(model.path(), &with_target, &["is for draft models"]);
    let changed = |change: &dyn Fn(&mut Model)| {
        let mut draft = eagle3();
        change(&mut draft);
        draft.write()
    };
    let refused = |change: &dyn Fn(&mut Model), part: &str| {
        fails(changed(change).path(), &with_target, &[part]);
    };
    refused(&|draft| table(draft, |_| VOCAB as i64), "token 4096");
    refused(
        &|draft| table(draft, |row| -row),
        "several rows stand for token 0",
    );
    refused(
        &|draft| draft.config["draft_vocab_size"] = json!(ROWS + 1),
        "'draft_vocab_size' is 33",
    );
    refused(
        &|draft| draft.config["eagle_aux_hidden_state_layer_ids"] = json!([1, 2]),
        "names 2 layers",
    );
    refused(
        &|draft| draft.tensors.retain(|name, _| name != "fc.weight"),
        "fc.weight",
    );
    let masked = changed(&|_| {});
    std::fs::write(masked.path().join("mask_embedding.pt"), "").unwrap();
    fails(masked.path(), &with_target, &["mask_embedding.pt"]);
    let empty = tempfile::tempdir().unwrap();
    let nowhere = ["--target-model-dir", empty.path().to_str().unwrap()];
    fails(eagle3().write().path(), &nowhere, &["config.json"]);
    assert!(Path::new(with_target[1]).join("config.json").is_file());
}
