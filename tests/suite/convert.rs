//! `quantier convert` on generated checkpoints: its output, and its errors for broken ones.

use crate::support::torch::{TorchFile, View, text};
use assert_cmd::Command;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

pub(super) const HIDDEN: u64 = 64;
pub(super) const FFN: u64 = 96;
/// The tokens of testdata/refmodel/tokenizer.model.
pub(super) const VOCAB: u64 = 4096;

/// A checkpoint under construction.
pub(super) struct Model {
    pub(super) config: Value,
    /// Name, type, shape, bytes.
    pub(super) tensors: BTreeMap<String, (&'static str, Vec<u64>, Vec<u8>)>,
}

impl Model {
    /// A Llama of one layer with ascending weights in bf16.
    pub(super) fn llama() -> Model {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
            "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": VOCAB,
        });
        let mut model = Model {
            config,
            tensors: BTreeMap::new(),
        };
        model.add("model.embed_tokens.weight", &[VOCAB, HIDDEN]);
        model.add("model.norm.weight", &[HIDDEN]);
        for (name, shape) in [
            ("self_attn.q_proj.weight", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj.weight", vec![HIDDEN, HIDDEN]),
            ("self_attn.v_proj.weight", vec![HIDDEN, HIDDEN]),
            ("self_attn.o_proj.weight", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj.weight", vec![FFN, HIDDEN]),
            ("mlp.up_proj.weight", vec![FFN, HIDDEN]),
            ("mlp.down_proj.weight", vec![HIDDEN, FFN]),
            ("input_layernorm.weight", vec![HIDDEN]),
            ("post_attention_layernorm.weight", vec![HIDDEN]),
        ] {
            model.add(&format!("model.layers.0.{name}"), &shape);
        }
        model
    }

    /// A Qwen 3.5 of one gated delta net layer, with one head of keys and two of values, 32 numbers
    /// each. Its tokenizer is that of testdata/bpe.
    pub(super) fn qwen35() -> Model {
        let tokens = 512;
        let mut model = Model::llama();
        model.config = json!({
            "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "hidden_size": HIDDEN,
            "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32,
            "vocab_size": tokens, "layer_types": ["linear_attention"], "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 1,
            "linear_num_value_heads": 2, "tie_word_embeddings": true,
            "rope_parameters": { "rope_theta": 1e6, "partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2] },
        });
        model.tensors.retain(|name, _| !name.contains("self_attn"));
        model.add("model.embed_tokens.weight", &[tokens, HIDDEN]);
        for (name, shape) in [
            ("in_proj_qkv.weight", vec![128, HIDDEN]),
            ("in_proj_z.weight", vec![64, HIDDEN]),
            ("in_proj_b.weight", vec![2, HIDDEN]),
            ("in_proj_a.weight", vec![2, HIDDEN]),
            ("conv1d.weight", vec![128, 1, 4]),
            ("A_log", vec![2]),
            ("dt_bias", vec![2]),
            ("norm.weight", vec![32]),
            ("out_proj.weight", vec![HIDDEN, 64]),
        ] {
            model.add(&format!("model.layers.0.linear_attn.{name}"), &shape);
        }
        model
    }

    /// A GPT-2 of one layer of these widths.
    pub(super) fn gpt2(config: Value, hidden: u64, length: u64) -> Model {
        let mut model = Model {
            config,
            tensors: BTreeMap::new(),
        };
        model.add("wte.weight", &[512, hidden]);
        model.add("wpe.weight", &[16, hidden]);
        for name in ["ln_f", "h.0.ln_1", "h.0.ln_2"] {
            model.add(&format!("{name}.weight"), &[hidden]);
            model.add(&format!("{name}.bias"), &[hidden]);
        }
        for (name, shape) in [
            ("attn.c_attn", [hidden, 3 * hidden]),
            ("attn.c_proj", [hidden, hidden]),
            ("mlp.c_fc", [hidden, length]),
            ("mlp.c_proj", [length, hidden]),
        ] {
            model.add(&format!("h.0.{name}.weight"), &shape);
            model.add(&format!("h.0.{name}.bias"), &shape[1..]);
        }
        model
    }

    /// A checkpoint on disk, with all weights in bf16 in one file.
    pub(super) fn read(dir: &Path) -> Model {
        let config = std::fs::read(dir.join("config.json")).unwrap();
        let mut model = Model {
            config: serde_json::from_slice(&config).unwrap(),
            tensors: BTreeMap::new(),
        };
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        let (length, rest) = bytes.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
        for (name, tensor) in header {
            assert_eq!(tensor["dtype"], "BF16");
            let at = |i: usize| tensor["data_offsets"][i].as_u64().unwrap() as usize;
            let shape = serde_json::from_value(tensor["shape"].clone()).unwrap();
            let bytes = data[at(0)..at(1)].to_vec();
            model.tensors.insert(name, ("BF16", shape, bytes));
        }
        model
    }

    /// Adds a tensor; its n-th weight is n, rounded to bf16.
    pub(super) fn add(&mut self, name: &str, shape: &[u64]) {
        let count: u64 = shape.iter().product();
        let bytes = (0..count)
            .flat_map(|i| ((i as f32).to_bits() >> 16).to_le_bytes()[..2].to_vec())
            .collect();
        self.tensors
            .insert(name.into(), ("BF16", shape.to_vec(), bytes));
    }

    pub(super) fn layer(&mut self, name: &str) -> &mut (&'static str, Vec<u64>, Vec<u8>) {
        self.tensors
            .get_mut(&format!("model.layers.0.{name}"))
            .unwrap()
    }

    /// The bytes of a safetensors file with all tensors whose names pass.
    pub(super) fn safetensors(&self, keep: impl Fn(&str) -> bool) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let mut data = Vec::new();
        for (name, (dtype, shape, bytes)) in self.tensors.iter().filter(|(name, _)| keep(name)) {
            let end = data.len() + bytes.len();
            let entry =
                json!({ "dtype": dtype, "shape": shape, "data_offsets": [data.len(), end] });
            header.insert(name.clone(), entry);
            data.extend(bytes);
        }
        let header = Value::Object(header).to_string();
        [
            &(header.len() as u64).to_le_bytes(),
            header.as_bytes(),
            &data,
        ]
        .concat()
    }

    /// A file of torch.save with all tensors whose names pass, each with its own storage.
    fn torch(&self, keep: impl Fn(&str) -> bool) -> TorchFile {
        let mut file = TorchFile::default();
        for (name, (_, shape, bytes)) in self.tensors.iter().filter(|(name, _)| keep(name)) {
            let storage = file.storage("BFloat16Storage", bytes.clone());
            file.tensor(name, &View::whole(storage, shape));
        }
        file
    }

    /// Writes config.json and a tokenizer.
    pub(super) fn write_without_weights(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/testdata/refmodel/tokenizer.model"
        );
        std::fs::copy(tokenizer, dir.path().join("tokenizer.model")).unwrap();
        std::fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        dir
    }

    /// Writes config.json, a tokenizer and one model.safetensors.
    pub(super) fn write(&self) -> TempDir {
        let dir = self.write_without_weights();
        std::fs::write(
            dir.path().join("model.safetensors"),
            self.safetensors(|_| true),
        )
        .unwrap();
        dir
    }
}

pub(super) fn quantier(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("quantier").unwrap();
    command
        .arg("convert")
        .arg(dir)
        .arg("-o")
        .arg(dir.join("out.gguf"))
        .args(args);
    command
}

/// Runs a conversion that must fail with these parts in its error, and write nothing.
pub(super) fn fails(dir: &Path, args: &[&str], parts: &[&str]) {
    let output = quantier(dir, args).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    let written = std::fs::read_dir(dir)
        .unwrap()
        .any(|e| e.unwrap().file_name().to_string_lossy().contains("gguf"));
    assert!(!written, "something was written");
}

pub(super) fn plan(dir: &Path, args: &[&str]) -> Value {
    let output = quantier(dir, &[args, &["--json"]].concat())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The f32 weights of a tensor in the output.
pub(super) fn weights(dir: &Path, name: &str) -> Vec<f32> {
    weights_of(&dir.join("out.gguf"), name)
}

/// The f32 weights of a tensor of a file.
pub(super) fn weights_of(path: &Path, name: &str) -> Vec<f32> {
    let file = std::fs::read(path).unwrap();
    let header = quantier_gguf::gguf::parse(&file).unwrap();
    let (info, offset) = header
        .tensors
        .iter()
        .find(|(info, _)| info.name == name)
        .unwrap();
    let bytes = &file[*offset as usize..][..info.bytes() as usize];
    let mut weights = vec![0.0; info.shape.elements() as usize];
    quantier_blocks::Codec::of(info.ggml_type)
        .unwrap()
        .dequantize_row(bytes, &mut weights);
    weights
}

#[test]
fn dry_run_shows_types_and_writes_nothing() {
    let dir = Model::llama().write();
    let plan = plan(dir.path(), &["--outtype", "q8_0", "--dry-run"]);
    assert_eq!(
        (&plan["architecture"], &plan["file_type"]),
        (&json!("llama"), &json!("Q8_0"))
    );
    let types: BTreeMap<_, _> = plan["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["name"].as_str().unwrap(), &t["to"]))
        .collect();
    assert_eq!(types.len(), 11);
    assert_eq!(
        (
            types["blk.0.attn_norm.weight"],
            types["blk.0.ffn_down.weight"]
        ),
        (&json!("f32"), &json!("q8_0"))
    );
    assert!(!dir.path().join("out.gguf").exists());
}

#[test]
fn auto_keeps_the_type_of_the_checkpoint() {
    let dir = Model::llama().write();
    assert_eq!(plan(dir.path(), &["--dry-run"])["file_type"], "BF16");
}

#[test]
fn halves_of_query_heads_are_interleaved() {
    let dir = Model::llama().write();
    plan(dir.path(), &["--outtype", "f32"]);
    let rows: Vec<_> = weights(dir.path(), "blk.0.attn_q.weight")
        .chunks(HIDDEN as usize)
        .map(|row| row[0])
        .collect();
    // Two heads of 32 rows; row n begins with 64 n. 64 * 17 = 1088 and so on are exact in bf16.
    let expected: Vec<_> = [0, 16, 1, 17, 2, 18]
        .iter()
        .map(|row| (row * HIDDEN) as f32)
        .collect();
    assert_eq!(&rows[..6], expected);
    assert_eq!(rows[32], 32.0 * HIDDEN as f32);
}

#[test]
fn shards_are_read_as_one_model_and_written_as_asked() {
    let model = Model::llama();
    let whole = model.write();
    plan(whole.path(), &[]);
    let dir = model.write_without_weights();
    let second = |name: &str| name.contains("mlp");
    std::fs::write(
        dir.path().join("model-1.safetensors"),
        model.safetensors(|n| !second(n)),
    )
    .unwrap();
    std::fs::write(
        dir.path().join("model-2.safetensors"),
        model.safetensors(second),
    )
    .unwrap();
    let file_of = |name: &String| format!("model-{}.safetensors", 1 + u8::from(second(name)));
    let map: serde_json::Map<_, _> = model
        .tensors
        .keys()
        .map(|n| (n.clone(), file_of(n).into()))
        .collect();
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();

    let split = plan(dir.path(), &["--split-max-tensors", "4"]);
    let names: Vec<_> = split["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p.as_str().unwrap().to_owned())
        .collect();
    assert!(
        names.len() == 3 && names[2].ends_with("out-00003-of-00003.gguf"),
        "{names:?}"
    );
    names
        .iter()
        .for_each(|path| std::fs::remove_file(path).unwrap());
    plan(dir.path(), &[]);
    for name in ["blk.0.ffn_up.weight", "output_norm.weight"] {
        assert_eq!(weights(dir.path(), name), weights(whole.path(), name));
    }
    std::fs::remove_file(dir.path().join("out.gguf")).unwrap();

    // First a shard is missing, then one lacks a tensor.
    std::fs::remove_file(dir.path().join("model-2.safetensors")).unwrap();
    fails(dir.path(), &[], &["model-2.safetensors", "missing"]);
    std::fs::write(
        dir.path().join("model-2.safetensors"),
        model.safetensors(|n| n.contains("mlp.up")),
    )
    .unwrap();
    fails(
        dir.path(),
        &[],
        &[
            "mlp.down_proj.weight, model.layers.0.mlp.gate_proj.weight",
            "index.json says",
        ],
    );
    let cut = &model.safetensors(second)[..4000];
    std::fs::write(dir.path().join("model-2.safetensors"), cut).unwrap();
    fails(dir.path(), &[], &["model-2.safetensors", "lies at"]);
}

#[test]
fn single_weight_files_are_accepted() {
    let dir = Model::llama().write();
    let file = dir.path().join("model.safetensors");
    let mut command = Command::cargo_bin("quantier").unwrap();
    command
        .arg("convert")
        .arg(&file)
        .arg("--dry-run")
        .assert()
        .success();
}

#[test]
fn unknown_architectures_are_refused_with_the_nearest_name() {
    let mut model = Model::llama();
    model.config["architectures"] = json!(["LLamaForCausalLM"]);
    fails(
        model.write().path(),
        &[],
        &[
            "'LLamaForCausalLM'",
            "is it LlamaForCausalLM?",
            "config.json",
        ],
    );
}

#[test]
fn all_unknown_tensors_are_listed() {
    let mut model = Model::llama();
    model.add("model.layers.0.self_attn.gate.weight", &[4]);
    model.add("model.extra", &[4]);
    model.add("model.layers.1.input_layernorm.weight", &[HIDDEN]);
    let parts = [
        "no such tensors: model.extra, model.layers.0.self_attn.gate.weight",
        "only 1 layers",
    ];
    fails(model.write().path(), &[], &parts);
}

#[test]
fn layers_without_tensors_are_refused() {
    let mut model = Model::llama();
    model.config["num_hidden_layers"] = json!(3);
    fails(
        model.write().path(),
        &[],
        &["has 3 layers, and there is no tensor of layer 1"],
    );
}

#[test]
fn multi_token_prediction_blocks_must_be_complete_or_omitted() {
    let mut model = Model::llama();
    fails(
        model.write().path(),
        &["--mtp"],
        &["--mtp and --no-nextn are for models with", "llama has none"],
    );
    model.config["architectures"] = json!(["Qwen3_5ForCausalLM"]);
    for (field, value) in [
        ("head_dim", 32),
        ("linear_num_key_heads", 1),
        ("linear_num_value_heads", 1),
        ("linear_key_head_dim", 32),
        ("linear_value_head_dim", 32),
    ] {
        model.config[field] = json!(value);
    }
    model.add(
        "model.layers.0.self_attn.q_proj.weight",
        &[2 * HIDDEN, HIDDEN],
    );
    fails(
        model.write().path(),
        &[],
        &["'mtp_num_hidden_layers'", "convert --no-nextn"],
    );
    model.config["mtp_num_hidden_layers"] = json!(1);
    fails(
        model.write().path(),
        &[],
        &["config.json promises blocks", "--no-nextn"],
    );
}

#[test]
fn experts_must_be_complete() {
    let mut model = Model::llama();
    model.config["architectures"] = json!(["MixtralForCausalLM"]);
    model.config["num_local_experts"] = json!(2);
    model.add("model.layers.0.block_sparse_moe.gate.weight", &[2, HIDDEN]);
    for expert in [0, 1] {
        let prefix = format!("model.layers.0.block_sparse_moe.experts.{expert}");
        model.add(&format!("{prefix}.w1.weight"), &[FFN, HIDDEN]);
        model.add(&format!("{prefix}.w2.weight"), &[HIDDEN, FFN]);
        model.add(&format!("{prefix}.w3.weight"), &[FFN, HIDDEN]);
    }
    plan(model.write().path(), &["--dry-run"]);
    model
        .tensors
        .remove("model.layers.0.block_sparse_moe.experts.1.w2.weight");
    fails(
        model.write().path(),
        &[],
        &[
            "these tensors are missing",
            ": model.layers.0.block_sparse_moe.experts.1.w2.weight",
        ],
    );
}

#[test]
fn quantized_checkpoints_of_other_kinds_are_refused_by_name() {
    let mut model = Model::llama();
    model.config["quantization_config"] = json!({ "quant_method": "hqq" });
    let name = "model.layers.0.mlp.up_proj.qweight";
    model
        .tensors
        .insert(name.into(), ("I32", vec![2], vec![0; 8]));
    let dir = model.write();
    let refused = "checkpoints quantized by hqq are not read; convert";
    fails(dir.path(), &[], &[refused, "the original model"]);
    std::fs::write(
        dir.path().join("README.md"),
        "---\nbase_model:\n  - org/name\n---\n",
    )
    .unwrap();
    fails(dir.path(), &[], &[refused, "made of, org/name"]);
    model.config["quantization_config"] = json!({ "quant_method": "gptq", "bits": 4 });
    fails(
        model.write().path(),
        &[],
        &[name, "up_proj.scales, which belongs to it, is missing"],
    );
}

#[test]
fn shapes_must_match_the_config() {
    let mut model = Model::llama();
    model.config["intermediate_size"] = json!(48);
    fails(
        model.write().path(),
        &[],
        &["mlp.down_proj", "must be 48 by config.json"],
    );
}

#[test]
fn fields_of_the_config_are_checked() {
    let mut model = Model::llama();
    model.config["rms_norm_eps"] = json!("small");
    fails(
        model.write().path(),
        &[],
        &["'rms_norm_eps' is a text", "config.json"],
    );
    let mut model = Model::llama();
    model
        .config
        .as_object_mut()
        .unwrap()
        .remove("architectures");
    fails(model.write().path(), &[], &["architectures", "config.json"]);
    let dir = Model::llama().write();
    std::fs::write(dir.path().join("config.json"), "{\n  \"hidden_size\": }").unwrap();
    fails(dir.path(), &[], &["config.json", "line 2 column 18"]);
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    fails(dir.path(), &[], &["there is no config.json"]);
}

#[test]
fn a_vocabulary_is_cut_and_padded_to_the_config() {
    for vocab_size in [VOCAB - 1, VOCAB, VOCAB + 2] {
        let mut model = Model::llama();
        model.config["vocab_size"] = json!(vocab_size);
        let dir = model.write();
        plan(dir.path(), &["--vocab-only"]);
        let file = std::fs::read(dir.path().join("out.gguf")).unwrap();
        let header = quantier_gguf::gguf::parse(&file).unwrap();
        let tokens = header
            .metadata
            .get("tokenizer.ggml.tokens")
            .and_then(|tokens| tokens.as_array())
            .unwrap();
        assert_eq!(tokens.len() as u64, vocab_size);
        let padded = tokens
            .strings()
            .filter(|token| token.starts_with(b"[PAD"))
            .count();
        assert_eq!(padded as u64, vocab_size.saturating_sub(VOCAB));
    }
}

#[test]
fn misnamed_files_are_refused_by_name() {
    let lying = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
    let cases: [(&str, &[u8], &[&str]); 9] = [
        (
            "model.safetensors",
            &lying,
            &["model.safetensors", "above the limit"],
        ),
        (
            "model.safetensors",
            b"\x02\0\0\0\0\0\0\0{]",
            &["model.safetensors", "line 1 column 2"],
        ),
        (
            "model.safetensors",
            pointer,
            &["model.safetensors", "Git LFS pointer"],
        ),
        (
            "tokenizer.model",
            pointer,
            &["tokenizer.model", "Git LFS pointer"],
        ),
        (
            "tokenizer_config.json",
            pointer,
            &["tokenizer_config.json", "Git LFS pointer"],
        ),
        (
            "tokenizer.model",
            b"\x0a\xff\x01",
            &["tokenizer.model", "not a SentencePiece model: at byte 0"],
        ),
        ("README.md", b"---\na: [\n---\n", &["README.md", "line 3"]),
        (
            "tokenizer_config.json",
            b"{\n\n",
            &["tokenizer_config.json", "line 3 column 0"],
        ),
        (
            "chat_template.jinja",
            b"{{ \xff }}",
            &["chat_template.jinja", "UTF-8"],
        ),
    ];
    for (file, bytes, parts) in cases {
        let dir = Model::llama().write();
        // Without this, the reference ignores chat templates.
        std::fs::write(
            dir.path().join("tokenizer_config.json"),
            r#"{"add_bos_token": true}"#,
        )
        .unwrap();
        std::fs::write(dir.path().join(file), bytes).unwrap();
        fails(dir.path(), &[], parts);
    }
}

#[test]
fn invalid_outputs_are_refused() {
    let dir = Model::llama().write();
    let weights = dir.path().join("model.safetensors");
    let before = std::fs::read(&weights).unwrap();
    let refused = |output: &Path, part: &str| {
        let mut command = Command::cargo_bin("quantier").unwrap();
        let output = command
            .arg("convert")
            .arg(dir.path())
            .arg("-o")
            .arg(output)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(1) && error.contains(part),
            "{error}"
        );
    };
    refused(&weights, "is an input of this command");
    refused(&dir.path().join("no/such/out.gguf"), "create the directory");
    refused(&dir.path().join("{type}.gguf"), "{ftype} and {FTYPE} are");
    assert!(
        std::fs::read(&weights).unwrap() == before,
        "the input has changed"
    );
}

/// The bytes of the output, which is then removed.
fn converted(dir: &Path, args: &[&str]) -> Vec<u8> {
    plan(dir, args);
    let bytes = std::fs::read(dir.join("out.gguf")).unwrap();
    std::fs::remove_file(dir.join("out.gguf")).unwrap();
    bytes
}

#[test]
fn pytorch_and_safetensors_files_convert_identically() {
    let model = Model::llama();
    let dir = model.write();
    let path = |name: &str| dir.path().join(name);
    let expected = converted(dir.path(), &[]);
    // Safetensors take precedence.
    std::fs::write(path("pytorch_model.bin"), b"anything").unwrap();
    assert!(converted(dir.path(), &[]) == expected);
    std::fs::remove_file(path("model.safetensors")).unwrap();
    fails(
        dir.path(),
        &[],
        &["pytorch_model.bin", "not a file of torch.save"],
    );

    std::fs::write(path("pytorch_model.bin"), model.torch(|_| true).bytes()).unwrap();
    assert!(converted(dir.path(), &[]) == expected);
    let quantized = Command::cargo_bin("quantier")
        .unwrap()
        .args(["quantize", "--dry-run"])
        .args([dir.path(), Path::new("Q8_0")])
        .output()
        .unwrap();
    assert!(quantized.status.success(), "{quantized:?}");

    // Two files with an index. In the reference's order, the second file's tensors come last.
    let second = |name: &str| name > "model.layers.0.mlp.up";
    let names = [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
    ];
    std::fs::rename(path("pytorch_model.bin"), path("whole.bin")).unwrap();
    std::fs::write(path(names[0]), model.torch(|name| !second(name)).bytes()).unwrap();
    std::fs::write(path(names[1]), model.torch(second).bytes()).unwrap();
    let file_of = |name: &String| names[usize::from(second(name))];
    let map: BTreeMap<_, _> = model
        .tensors
        .keys()
        .map(|name| (name, file_of(name)))
        .collect();
    let index = path("pytorch_model.bin.index.json");
    std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    assert!(converted(dir.path(), &[]) == expected);
    std::fs::remove_file(path(names[1])).unwrap();
    fails(dir.path(), &[], &[names[1], "missing"]);
    std::fs::write(
        path(names[1]),
        model.torch(|name| name.contains("q_proj")).bytes(),
    )
    .unwrap();
    fails(
        dir.path(),
        &[],
        &["model.norm.weight", "pytorch_model.bin.index.json says"],
    );

    // A single file by its name.
    let mut command = Command::cargo_bin("quantier").unwrap();
    let output = command
        .arg("convert")
        .arg(path("whole.bin"))
        .arg("-o")
        .arg(path("out.gguf"));
    assert!(output.output().unwrap().status.success());
    assert!(std::fs::read(path("out.gguf")).unwrap() == expected);
}

#[test]
fn views_of_shared_storages_are_resolved() {
    let mut model = Model::llama();
    // GPT-2's matrices are transposed; here one is, and two share a storage.
    let (_, shape, down) = model.layer("mlp.down_proj.weight").clone();
    let mut file = model.torch(|name| !name.contains("down_proj") && !name.contains("k_proj"));
    let rows: Vec<[u8; 2]> = down.as_chunks::<2>().0.to_vec();
    let (height, width) = (shape[0] as usize, shape[1] as usize);
    let transposed: Vec<u8> = (0..width * height)
        .flat_map(|i| rows[i % height * width + i / height])
        .collect();
    let storage = file.storage("BFloat16Storage", transposed);
    let view = View {
        storage,
        offset: 0,
        shape: shape.clone(),
        strides: vec![1, shape[0]],
    };
    file.tensor("model.layers.0.mlp.down_proj.weight", &view);
    let shared = View {
        storage: 0,
        offset: 2 * HIDDEN,
        ..View::whole(0, &[HIDDEN, HIDDEN])
    };
    file.parameter("model.layers.0.self_attn.k_proj.weight", &shared);
    let embeddings = model.tensors["model.embed_tokens.weight"].2.clone();
    model.layer("self_attn.k_proj.weight").2 =
        embeddings[2 * 2 * HIDDEN as usize..][..2 * (HIDDEN * HIDDEN) as usize].to_vec();

    let dir = model.write();
    for out_type in ["f32", "bf16", "q8_0"] {
        let arguments = ["--outtype", out_type];
        std::fs::write(
            dir.path().join("model.safetensors"),
            model.safetensors(|_| true),
        )
        .unwrap();
        plan(dir.path(), &arguments);
        let names = ["ffn_down", "attn_k", "attn_q"].map(|name| format!("blk.0.{name}.weight"));
        let expected = names.clone().map(|name| weights(dir.path(), &name));
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        std::fs::write(dir.path().join("pytorch_model.bin"), file.bytes()).unwrap();
        plan(dir.path(), &arguments);
        assert!(
            names.map(|name| weights(dir.path(), &name)) == expected,
            "{out_type}"
        );
    }
}

#[test]
fn pytorch_files_with_other_contents_are_refused() {
    let model = Model::llama();
    let dir = model.write_without_weights();
    let with = |key: &str, value: &[u8]| {
        let mut file = model.torch(|_| true);
        file.item(key, value);
        file.bytes()
    };
    let legacy = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec();
    let system = [b"cos\nsystem\n", &text("touch ran")[..], b"\x85R"].concat();
    for (bytes, parts) in [
        (
            with("run", &system),
            &["'os.system'", "nothing of it was run"][..],
        ),
        (with("epoch", b"K\x03"), &["tensor 'epoch'", "a number"]),
        (legacy, &["before 1.6", "torch.save"]),
        (model.safetensors(|_| true), &["not a file of torch.save"]),
    ] {
        std::fs::write(dir.path().join("pytorch_model.bin"), bytes).unwrap();
        fails(
            dir.path(),
            &[],
            &[&["pytorch_model.bin"][..], parts].concat(),
        );
    }
    assert!(!dir.path().join("ran").exists() && !Path::new("ran").exists());
}

#[test]
fn weights_of_other_kinds_are_explained() {
    for (name, parts) in [
        (
            "weights.safetensors",
            &[
                "'weights.safetensors' is not found",
                "only model*.safetensors",
            ][..],
        ),
        ("adapter.bin", &["'adapter.bin'", "only pytorch_model*.bin"]),
        ("consolidated.00.pth", &["Meta's own format", "-hf"]),
        ("tf_model.h5", &["TensorFlow's", "from_tf=True"]),
        ("flax_model.msgpack", &["Flax's", "from_flax=True"]),
        ("weights.npz", &["MLX"]),
        (
            "nothing.txt",
            &["neither model*.safetensors nor pytorch_model*.bin"],
        ),
    ] {
        let dir = Model::llama().write_without_weights();
        std::fs::write(dir.path().join(name), b"").unwrap();
        fails(dir.path(), &[], parts);
    }
}

#[test]
fn mistrals_own_format_is_read_on_demand() {
    let mut model = Model::llama();
    let own = |name: &str| match name.strip_prefix("model.layers.0.") {
        Some(rest) => {
            let (name, _) = rest.rsplit_once('.').unwrap();
            let name = match name.rsplit('.').next().unwrap() {
                "q_proj" => "attention.wq",
                "k_proj" => "attention.wk",
                "v_proj" => "attention.wv",
                "o_proj" => "attention.wo",
                "gate_proj" => "feed_forward.w1",
                "down_proj" => "feed_forward.w2",
                "up_proj" => "feed_forward.w3",
                "input_layernorm" => "attention_norm",
                _ => "ffn_norm",
            };
            format!("layers.0.{name}.weight")
        }
        None if name.contains("embed") => "tok_embeddings.weight".to_owned(),
        None => "norm.weight".to_owned(),
    };
    model.tensors = model
        .tensors
        .into_iter()
        .map(|(name, tensor)| (own(&name), tensor))
        .collect();
    let dir = model.write_without_weights();
    let path = |name: &str| dir.path().join(name);
    std::fs::remove_file(path("config.json")).unwrap();
    let mut params = json!({ "dim": HIDDEN, "n_layers": 1, "head_dim": 32, "hidden_dim": FFN, "n_heads": 2,
        "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": VOCAB });
    std::fs::write(path("params.json"), params.to_string()).unwrap();
    std::fs::write(
        path("consolidated.safetensors"),
        model.safetensors(|_| true),
    )
    .unwrap();
    plan(dir.path(), &["--mistral-format", "--outtype", "f32"]);
    // Rows of queries stay in place.
    let rows: Vec<_> = weights(dir.path(), "blk.0.attn_q.weight")
        .chunks(HIDDEN as usize)
        .map(|row| row[0])
        .collect();
    assert_eq!(rows[..3], [0.0, HIDDEN as f32, 2.0 * HIDDEN as f32]);
    let file = std::fs::read(path("out.gguf")).unwrap();
    let header = quantier_gguf::gguf::parse(&file).unwrap();
    let keys: Vec<_> = header
        .metadata
        .iter()
        .map(|(key, _)| key.to_string())
        .collect();
    let at = |key: &str| keys.iter().position(|k| k == key).unwrap();
    assert_eq!(
        at("llama.vocab_size") + 1,
        at("tokenizer.ggml.add_bos_token")
    );
    assert!(keys.contains(&"tokenizer.chat_template".to_owned()));
    std::fs::remove_file(path("out.gguf")).unwrap();
    let without = [
        "--mistral-format",
        "--disable-mistral-community-chat-template",
        "--dry-run",
    ];
    plan(dir.path(), &without);
    params["moe"] = json!({ "num_experts": 4 });
    std::fs::write(path("params.json"), params.to_string()).unwrap();
    fails(dir.path(), &["--mistral-format"], &["params.json", "'moe'"]);
    std::fs::remove_file(path("params.json")).unwrap();
    fails(dir.path(), &["--mistral-format"], &["no params.json"]);
}

#[test]
fn ternary_types_leave_embeddings_and_output_in_f16() {
    let mut model = Model::llama();
    model.config["intermediate_size"] = json!(256);
    for name in ["mlp.gate_proj.weight", "mlp.up_proj.weight"] {
        model.add(&format!("model.layers.0.{name}"), &[256, HIDDEN]);
    }
    model.add("model.layers.0.mlp.down_proj.weight", &[HIDDEN, 256]);
    model.add("lm_head.weight", &[VOCAB, HIDDEN]);
    let dir = model.write();
    for (out_type, name) in [("tq1_0", "TQ1_0"), ("tq2_0", "TQ2_0")] {
        let plan = plan(dir.path(), &["--outtype", out_type, "--dry-run"]);
        assert_eq!(plan["file_type"], name);
        let tensors = plan["tensors"].as_array().unwrap();
        let of = |name: &str| {
            let tensor = tensors.iter().find(|t| t["name"] == name).unwrap();
            [&tensor["wanted"], &tensor["to"]].map(|t| t.as_str().unwrap())
        };
        assert_eq!(of("blk.0.ffn_down.weight"), [out_type, out_type]);
        // Rows of 64.
        assert_eq!(of("blk.0.attn_q.weight"), [out_type, "f16"]);
        assert_eq!(of("token_embd.weight"), ["f16", "f16"]);
        assert_eq!(of("output.weight"), ["f16", "f16"]);
    }
}

#[test]
fn first_file_can_be_without_tensors() {
    let dir = Model::llama().write();
    let split = plan(dir.path(), &["--no-tensor-first-split", "--use-temp-file"]);
    let paths = split["paths"].as_array().unwrap();
    assert_eq!(paths.len(), 2);
    let counts = paths.iter().map(|path| {
        let file = std::fs::read(path.as_str().unwrap()).unwrap();
        quantier_gguf::gguf::parse(&file).unwrap().tensors.len()
    });
    assert_eq!(counts.collect::<Vec<_>>(), [0, 11]);
    paths
        .iter()
        .for_each(|path| std::fs::remove_file(path.as_str().unwrap()).unwrap());
    let arguments = ["--no-tensor-first-split", "--vocab-only"];
    fails(dir.path(), &arguments, &["a vocabulary is one file"]);
    let output = quantier(dir.path(), &["--use-temp-file", "--dry-run"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        error.matches("--use-temp-file has no effect").count(),
        1,
        "{error}"
    );
}

#[test]
fn check_finds_nonfinite_weights() {
    let mut model = Model::llama();
    let at = 2 * (5 * HIDDEN as usize + 3);
    model.layer("mlp.up_proj.weight").2[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    let dir = model.write();
    fails(
        dir.path(),
        &["--check"],
        &["model.layers.0.mlp.up_proj.weight", "row 5", "NaN"],
    );
    plan(dir.path(), &[]);
}

#[test]
fn eight_bit_weights_are_multiplied_by_their_scales() {
    let mut model = Model::llama();
    model.config["quantization_config"] =
        json!({ "quant_method": "fp8", "weight_block_size": [64, 32] });
    // 1.0 everywhere; scales 2, 3 and, for the last half of a block's rows, 4, 5.
    *model.layer("mlp.up_proj.weight") = (
        "F8_E4M3",
        vec![FFN, HIDDEN],
        vec![0x38; (FFN * HIDDEN) as usize],
    );
    let scales = [2.0f32, 3.0, 4.0, 5.0]
        .iter()
        .flat_map(|s| s.to_le_bytes())
        .collect();
    model.tensors.insert(
        "model.layers.0.mlp.up_proj.weight_scale_inv".into(),
        ("F32", vec![2, 2], scales),
    );
    let dir = model.write();
    plan(dir.path(), &["--outtype", "f32"]);
    let weights = weights(dir.path(), "blk.0.ffn_up.weight");
    let at = |row: usize, column: usize| weights[row * HIDDEN as usize + column];
    assert_eq!(
        [at(0, 0), at(63, 31), at(0, 32), at(64, 0), at(95, 63)],
        [2.0, 2.0, 3.0, 4.0, 5.0]
    );
}

#[test]
fn big_endian_files_have_the_same_numbers_in_reverse_order() {
    use quantier_gguf::gguf::{Endian, parse};
    let checkpoint = Model::llama().write();
    let dir = checkpoint.path();
    let written = |args: &[&str]| {
        plan(dir, args);
        std::fs::read(dir.join("out.gguf")).unwrap()
    };
    for out_type in ["f16", "f32"] {
        let little = written(&["--outtype", out_type]);
        let big = written(&["--outtype", out_type, "--bigendian"]);
        let (little_header, big_header) = (parse(&little).unwrap(), parse(&big).unwrap());
        assert_eq!(big_header.endian, Endian::Big);
        let keys = |metadata: &quantier_gguf::gguf::Metadata<'_>| -> Vec<(String, String)> {
            let entries = metadata.iter();
            entries
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect()
        };
        assert_eq!(keys(&little_header.metadata), keys(&big_header.metadata));
        assert_eq!(little.len(), big.len());
        for ((info, offset), other) in little_header.tensors.iter().zip(&big_header.tensors) {
            assert_eq!((info, *offset), (&other.0, other.1));
            let range = *offset as usize..*offset as usize + info.bytes() as usize;
            let mut swapped = big[range.clone()].to_vec();
            let width = info.ggml_type.block_bytes();
            swapped.chunks_exact_mut(width).for_each(<[u8]>::reverse);
            assert!(swapped == little[range], "{}", info.name);
        }
    }
    std::fs::remove_file(dir.join("out.gguf")).unwrap();
    for out_type in ["auto", "bf16", "q8_0"] {
        fails(
            dir,
            &["--bigendian", "--outtype", out_type],
            &["in little-endian order", "--outtype f16 or --outtype f32"],
        );
    }
}

/// GPT-2 stores transposed matrices; scales apply to the stored layout.
#[test]
fn eight_bit_weights_are_scaled_before_they_are_transposed() {
    let config = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 4, "n_layer": 1, "n_head": 1,
        "n_ctx": 16, "n_positions": 16, "vocab_size": 512, "layer_norm_epsilon": 1e-5,
        "quantization_config": { "quant_method": "fp8", "weight_block_size": [2, 8] },
    });
    let mut model = Model::gpt2(config, 4, 16);
    let name = "h.0.attn.c_attn.weight";
    model
        .tensors
        .insert(name.into(), ("F8_E4M3", vec![4, 12], vec![0x38; 48]));
    let scales = [2.0f32, 3.0, 4.0, 5.0]
        .iter()
        .flat_map(|s| s.to_le_bytes())
        .collect();
    model
        .tensors
        .insert(format!("{name}_scale_inv"), ("F32", vec![2, 2], scales));
    let dir = model.write();
    std::fs::remove_file(dir.path().join("tokenizer.model")).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/bpe");
        std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
    }
    plan(dir.path(), &["--outtype", "f32", "--pre", "gpt-2"]);
    // Stored rows 0 and 1 have scales 2 and 3, rows 2 and 3 have 4 and 5; they are columns now.
    let weights = weights(dir.path(), "blk.0.attn_qkv.weight");
    let rows: Vec<_> = weights.chunks_exact(4).collect();
    assert_eq!(rows[..8], [[2.0, 2.0, 4.0, 4.0]; 8]);
    assert_eq!(rows[8..], [[3.0, 3.0, 5.0, 5.0]; 4]);
}

#[test]
fn quantizing_a_checkpoint_equals_converting_first() {
    let checkpoint = Model::llama().write();
    let dir = checkpoint.path();
    quantier(dir, &["--outtype", "f32"]).assert().success();
    let quantize = |from: &Path, arguments: &[&str]| {
        let mut command = Command::cargo_bin("quantier").unwrap();
        command
            .args(["quantize", "--override-kv", "general.name=str:a"])
            .args(arguments)
            .arg(from);
        command
    };
    quantize(&dir.join("out.gguf"), &[])
        .arg(dir.join("two.gguf"))
        .arg("q8_0")
        .assert()
        .success();
    quantize(dir, &["--outtype", "f32"])
        .arg("q8_0")
        .assert()
        .success();
    let read = |name| std::fs::read(dir.join(name)).unwrap();
    assert!(
        read("two.gguf") == read("ggml-model-Q8_0.gguf"),
        "the files differ"
    );
}
