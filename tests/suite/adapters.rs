//! LoRA adapters of PEFT: converted beside their base, and merged into it.
//!
//! `scripts/parity.sh lora` compares the files with those of convert_lora_to_gguf.py.

use crate::convert::{FFN, HIDDEN, Model, VOCAB, fails, plan, weights};
use quantier_gguf::gguf::{Value as Gguf, parse};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

const RANK: u64 = 2;

/// An adapter under construction: its settings, and tensors of small whole numbers in f32.
struct Adapter {
    config: Value,
    model: Model,
}

/// The n-th number of a tensor.
fn number(name: &str, n: u64) -> f32 {
    let seed: u64 = name.bytes().map(u64::from).sum();
    ((n * 7 + seed) % 13) as f32 - 6.0
}

fn numbers(name: &str, count: u64) -> Vec<f32> {
    (0..count).map(|n| number(name, n)).collect()
}

impl Adapter {
    fn new() -> Adapter {
        Adapter {
            config: json!({ "peft_type": "LORA", "lora_alpha": 8, "base_model_name_or_path": "org/base" }),
            model: Model {
                config: json!({}),
                tensors: BTreeMap::new(),
            },
        }
    }

    fn add(&mut self, name: &str, shape: &[u64]) {
        let name = format!("base_model.model.{name}");
        let count = shape.iter().product();
        let numbers = numbers(&name, count).into_iter();
        let bytes = numbers.flat_map(f32::to_le_bytes).collect();
        self.model
            .tensors
            .insert(name, ("F32", shape.to_vec(), bytes));
    }

    /// The factors of a matrix of so many rows and columns.
    fn pair(mut self, module: &str, rows: u64, columns: u64) -> Adapter {
        self.add(&format!("{module}.lora_A.weight"), &[RANK, columns]);
        self.add(&format!("{module}.lora_B.weight"), &[rows, RANK]);
        self
    }

    fn embedding(mut self, module: &str, rows: u64, columns: u64) -> Adapter {
        self.add(&format!("{module}.lora_embedding_A"), &[RANK, rows]);
        self.add(&format!("{module}.lora_embedding_B"), &[columns, RANK]);
        self
    }

    fn whole(mut self, name: &str, shape: &[u64]) -> Adapter {
        self.add(name, shape);
        self
    }

    fn with(mut self, field: &str, value: Value) -> Adapter {
        self.config[field] = value;
        self
    }

    fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("adapter_config.json"), self.config.to_string()).unwrap();
        let tensors = self.model.safetensors(|_| true);
        std::fs::write(file("adapter_model.safetensors"), tensors).unwrap();
        dir
    }
}

fn query() -> Adapter {
    Adapter::new().pair("model.layers.0.self_attn.q_proj", HIDDEN, HIDDEN)
}

/// `--base DIR`.
fn base(dir: &TempDir) -> [String; 2] {
    ["--base".into(), dir.path().display().to_string()]
}

/// Converts an adapter on a base; the result, and the GGUF's keys.
fn converted(adapter: &Adapter, model: &Model, args: &[&str]) -> (TempDir, Value) {
    let (dir, model) = (adapter.write(), model.write_without_weights());
    let [option, path] = base(&model);
    let result = plan(dir.path(), &[&[&*option, &*path], args].concat());
    (dir, result)
}

fn keys(dir: &Path) -> Vec<(String, String)> {
    let file = std::fs::read(dir.join("out.gguf")).unwrap();
    let header = parse(&file).unwrap();
    let entries = header.metadata.iter();
    let entries = entries.map(|(key, value)| {
        let value = match value {
            Gguf::F32(number) => number.to_string(),
            value => value.as_str().map_or("list".to_owned(), str::to_owned),
        };
        (key.to_string(), value)
    });
    entries.collect()
}

#[test]
fn factors_become_tensors_of_the_base_in_its_order_of_rows() {
    let adapter = query()
        .embedding("model.embed_tokens", VOCAB, HIDDEN)
        .whole("model.norm.weight", &[HIDDEN])
        .with("alora_invocation_tokens", json!([5, 6]));
    let (dir, result) = converted(&adapter, &Model::llama(), &[]);
    let tensors: Vec<_> = result["tensors"].as_array().unwrap().iter().collect();
    let names: Vec<_> = tensors
        .iter()
        .map(|t| t["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "output_norm.weight",
            "token_embd.weight.lora_a",
            "token_embd.weight.lora_b",
            "blk.0.attn_q.weight.lora_a",
            "blk.0.attn_q.weight.lora_b"
        ]
    );
    assert!(tensors.iter().all(|t| t["to"] == "f32"), "{tensors:?}");

    const MODULE: &str = "base_model.model.model.layers.0.self_attn.q_proj";
    let a = numbers(&format!("{MODULE}.lora_A.weight"), RANK * HIDDEN);
    assert_eq!(weights(dir.path(), "blk.0.attn_q.weight.lora_a"), a);
    // Two heads of 32 rows, whose halves are interleaved.
    let b = numbers(&format!("{MODULE}.lora_B.weight"), HIDDEN * RANK);
    let b: Vec<_> = b.chunks(RANK as usize).collect();
    let rows = (0..HIDDEN as usize).map(|row| row / 32 * 32 + row % 32 / 2 + row % 2 * 16);
    let expected: Vec<f32> = rows.flat_map(|row| b[row].to_vec()).collect();
    assert_eq!(weights(dir.path(), "blk.0.attn_q.weight.lora_b"), expected);
    // A of embeddings has a row for every token.
    assert_eq!(tensors[1]["shape"], json!([RANK, VOCAB]));
    assert_eq!(tensors[2]["shape"], json!([RANK, HIDDEN]));

    let keys = keys(dir.path());
    let key = |name: &str| keys.iter().find(|(key, _)| key == name).map(|(_, v)| &**v);
    for (name, value) in [
        ("general.architecture", "llama"),
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
        ("adapter.lora.alpha", "8"),
        ("adapter.alora.invocation_tokens", "list"),
    ] {
        assert_eq!(key(name), Some(value), "{name}");
    }
    assert_eq!(key("general.file_type"), None);
}

#[test]
fn factors_follow_the_heads_of_a_gated_delta_net() {
    // One head of keys, two of values, of 32 numbers: their order stays, but Q, K and V are one.
    let adapter = Adapter::new()
        .pair("model.layers.0.linear_attn.in_proj_qkv", 128, HIDDEN)
        .pair("model.layers.0.linear_attn.out_proj", HIDDEN, 64);
    let (dir, result) = converted(&adapter, &Model::qwen35(), &["--outtype", "f16"]);
    let tensors = result["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 4);
    assert_eq!(tensors[0]["name"], "blk.0.attn_qkv.weight.lora_a");
    assert!(tensors.iter().all(|t| t["to"] == "f16"), "{tensors:?}");
    assert_eq!(
        weights(dir.path(), "blk.0.ssm_out.weight.lora_b").len(),
        128
    );
}

#[test]
fn the_name_of_the_file_says_that_it_is_an_adapter() {
    let model = Model::llama().write_without_weights();
    let dir = query().write();
    let named = dir.path().join("Tiny-1B-lora-v2");
    std::fs::create_dir(&named).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::rename(dir.path().join(file), named.join(file)).unwrap();
    }
    let line = format!(
        "convert {} --base {}",
        named.display(),
        model.path().display()
    );
    crate::support::program::succeeds(dir.path(), &line);
    let file = named.join("Tiny-1B-v2-F32-LoRA.gguf");
    assert!(
        file.is_file(),
        "{:?}",
        std::fs::read_dir(&named).unwrap().collect::<Vec<_>>()
    );
}

#[test]
fn adapters_that_llama_cpp_cannot_apply_are_refused() {
    let model = Model::llama().write_without_weights();
    let [option, path] = base(&model);
    let whole = query().whole("lm_head.weight", &[VOCAB, HIDDEN]);
    let mut ranks = query();
    ranks.add(
        "model.layers.0.self_attn.q_proj.lora_B.weight",
        &[HIDDEN, 3],
    );
    let mut half = query();
    half.add(
        "model.layers.0.self_attn.k_proj.lora_A.weight",
        &[RANK, HIDDEN],
    );
    let cases: [(Adapter, &[&str]); 9] = [
        (
            whole,
            &["lm_head.weight", "holds the whole tensor", "--lora"],
        ),
        (
            ranks,
            &["q_proj.lora_A.weight", "[rank, columns] and [rows, rank]"],
        ),
        (
            half,
            &["k_proj.weight", "factor B of this matrix is missing"],
        ),
        (
            query().pair("model.layers.0.self_attn.x_proj", HIDDEN, HIDDEN),
            &["x_proj.weight", "architecture llama has no such tensors"],
        ),
        (
            query().pair("model.layers.7.self_attn.q_proj", HIDDEN, HIDDEN),
            &["has only 1 layers"],
        ),
        (
            query().pair("model.layers.0.mlp.up_proj", FFN, FFN),
            &["up_proj.weight", "dimension 1 of shape [96, 96] must be 64"],
        ),
        (
            query().with("use_dora", json!(true)),
            &["adapter_config.json", "'use_dora'"],
        ),
        (
            query().with("lora_alpha", Value::Null),
            &["'lora_alpha' is missing"],
        ),
        (
            Adapter::new().whole("model.norm.weight", &[HIDDEN]),
            &["no pair of factors"],
        ),
    ];
    for (adapter, parts) in cases {
        fails(adapter.write().path(), &[&option, &path], parts);
    }
    let dir = query().write();
    fails(
        dir.path(),
        &[&option, &path, "--vocab-only"],
        &["--vocab-only is for models"],
    );
    fails(dir.path(), &[&option, "nowhere"], &["nowhere"]);
    std::fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    fails(
        dir.path(),
        &[&option, &path],
        &["neither adapter_model.safetensors nor adapter_model.bin"],
    );
    let whole = Model::llama().write();
    fails(whole.path(), &[&option, &path], &["--base is for adapters"]);
}

fn bf16(number: f32) -> f32 {
    half::bf16::from_f32(number).to_f32()
}

/// W + scale B A, rounded to bf16, row by row; the update is rounded by `rounded` before.
fn merged(w: &[f32], factors: [&[f32]; 2], scale: f32, rounded: fn(f32) -> f32) -> Vec<f32> {
    let [b, a] = factors;
    let (rank, columns) = (RANK as usize, a.len() / RANK as usize);
    let weights = w.iter().enumerate().map(|(place, w)| {
        let (row, column) = (place / columns, place % columns);
        let terms =
            (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * columns + column]));
        let sum: f64 = terms.sum();
        bf16(w + rounded(sum as f32 * scale))
    });
    weights.collect()
}

#[test]
fn adapters_are_merged_into_the_base() {
    let adapter = query()
        .pair("model.layers.0.mlp.down_proj", HIDDEN, FFN)
        .embedding("model.embed_tokens", VOCAB, HIDDEN)
        .whole("model.norm.weight", &[HIDDEN])
        .with("alpha_pattern", json!({ "mlp.down_proj": 3 }));
    let (plain, changed) = (Model::llama().write(), Model::llama().write());
    let adapter = adapter.write();
    plan(plain.path(), &["--outtype", "f32"]);
    let path = adapter.path().display().to_string();
    plan(changed.path(), &["--outtype", "f32", "--lora", &path]);
    let both = |name: &str| [&plain, &changed].map(|dir| weights(dir.path(), name));
    let factor = |name: &str, count: u64| numbers(&format!("base_model.model.{name}"), count);

    let [w, found] = both("blk.0.ffn_down.weight");
    let a = factor("model.layers.0.mlp.down_proj.lora_A.weight", RANK * FFN);
    let b = factor("model.layers.0.mlp.down_proj.lora_B.weight", HIDDEN * RANK);
    assert_eq!(found, merged(&w, [&b, &a], 1.5, |x| x));

    // Embeddings have the factors of the transpose, and PEFT rounds their update too.
    let [w, found] = both("token_embd.weight");
    let transposed = |m: &[f32], rows: usize| -> Vec<f32> {
        let columns = m.len() / rows;
        let place = |i: usize| m[i % rows * columns + i / rows];
        (0..m.len()).map(place).collect()
    };
    let a = factor("model.embed_tokens.lora_embedding_A", RANK * VOCAB);
    let b = factor("model.embed_tokens.lora_embedding_B", HIDDEN * RANK);
    let (a, b) = (
        transposed(&a, RANK as usize),
        transposed(&b, HIDDEN as usize),
    );
    assert_eq!(found, merged(&w, [&a, &b], 4.0, bf16));

    // Whole tensors take the place of the base's, and all others stay.
    let [_, found] = both("output_norm.weight");
    assert_eq!(found, factor("model.norm.weight", HIDDEN));
    let [w, found] = both("blk.0.ffn_up.weight");
    assert_eq!(found, w);
    let [w, found] = both("blk.0.attn_q.weight");
    assert_ne!(found, w);
}

#[test]
fn adapters_of_another_base_are_not_merged() {
    let model = Model::llama().write();
    let cases: [(Adapter, &[&str]); 3] = [
        (
            query().pair("model.layers.5.self_attn.q_proj", HIDDEN, HIDDEN),
            &["model.layers.5", "the base has no such tensors"],
        ),
        (
            query().embedding("model.embed_tokens", VOCAB + 8, HIDDEN),
            &[
                "of shape [4104, 64], and that of the base has [4096, 64]",
                "other tokens",
            ],
        ),
        (query().with("peft_type", json!("IA3")), &["kind IA3"]),
    ];
    for (adapter, parts) in cases {
        let adapter = adapter.write();
        let path = adapter.path().display().to_string();
        fails(model.path(), &["--lora", &path], parts);
    }
}
