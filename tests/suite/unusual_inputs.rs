//! Broken and unusual inputs, one test for each kind, listed in docs/unusual-inputs.md.

use super::convert::{FFN, HIDDEN, Model, VOCAB, fails, plan, quantier, weights};
use super::support::gguf::Tiny;
use super::support::models::shortened;
use super::support::program::{self, importance, succeeds, with_model};
use quantier_gguf::gguf::{self, Array, Metadata, Value as Gguf, ValueType};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// Standard error of a successful `convert`.
#[track_caller]
fn told(dir: &Path, args: &[&str]) -> String {
    let output = quantier(dir, args).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    error
}

/// Standard error of a successful command.
#[track_caller]
fn warned(dir: &Path, args: &str) -> String {
    program::stderr(dir, args, 0)
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    parts
        .iter()
        .for_each(|part| assert!(text.contains(part), "{part:?} is not in: {text}"));
}

/// Metadata of the file that `convert` wrote.
fn metadata(dir: &Path) -> Metadata<'static> {
    let model = gguf::Model::open(&dir.join("out.gguf")).unwrap();
    model.metadata().clone()
}

/// A model of the trained Llama's first layer, without tensors of this name.
fn without(name: &str) -> Tiny {
    let mut model = shortened(1);
    model.tensors.retain(|(info, _)| info.name != name);
    model
}

fn in_directory(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// Replaces the SentencePiece tokenizer by that of testdata/bpe with added tokens.
pub(super) fn with_byte_level(dir: &Path, added: &[(&str, u64)]) {
    let _ = std::fs::remove_file(dir.join("tokenizer.model"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/bpe");
    let text = std::fs::read_to_string(source.join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    for (content, id) in added {
        let entry = json!({ "id": id, "content": content, "special": false, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false });
        tokenizer["added_tokens"]
            .as_array_mut()
            .unwrap()
            .push(entry);
    }
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = source.join("tokenizer_config.json");
    std::fs::copy(config, dir.join("tokenizer_config.json")).unwrap();
}

#[test]
fn row_counts_must_equal_the_token_count() {
    let mut model = Model::llama();
    model.config["vocab_size"] = json!(VOCAB + 4);
    model.add("lm_head.weight", &[VOCAB - 1, HIDDEN]);
    let parts = [
        "it has 4096 rows, config.json has a vocab_size of 4100, and the tokenizer's files lead to 4100 tokens",
        "it has 4095 rows",
        "output.weight",
        "token_embd.weight",
    ];
    fails(model.write().path(), &[], &parts);
    // Padding up to vocab_size, as in the reference.
    let mut model = Model::llama();
    model.config["vocab_size"] = json!(VOCAB + 4);
    model.add("model.embed_tokens.weight", &[VOCAB + 4, HIDDEN]);
    told(model.write().path(), &[]);

    let model = without("token_embd.weight").weights("token_embd.weight", &[256, 10], [0.0; 2560]);
    let dir = in_directory(&[("m.gguf", &model.bytes())]);
    let parts = [
        "it has 10 rows, and 'tokenizer.ggml.tokens' 4096 tokens",
        "token_embd.weight",
    ];
    program::fails(dir.path(), "quantize m.gguf q.gguf Q8_0", &parts);
    program::fails(dir.path(), "quantize --dry-run m.gguf q.gguf Q8_0", &parts);
}

#[test]
fn all_missing_tensors_are_listed() {
    let mut model = Model::llama();
    let names = [
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
    ];
    let _ = names.map(|name| model.tensors.remove(name).unwrap());
    fails(
        model.write().path(),
        &[],
        &["these tensors are missing", &names.join(", ")],
    );
    let mut model = Model::llama();
    model.tensors.remove("model.embed_tokens.weight");
    fails(
        model.write().path(),
        &[],
        &["missing", "model.embed_tokens.weight"],
    );
}

#[test]
fn files_without_a_norm_do_not_run() {
    let text = include_bytes!("../../testdata/texts/evaluation.txt");
    for name in [
        "blk.0.attn_norm.weight",
        "output_norm.weight",
        "blk.0.ffn_up.weight",
    ] {
        let dir = in_directory(&[("m.gguf", &without(name).bytes()), ("t.txt", text)]);
        let parts = [
            "architecture llama do not run without",
            name,
            "not complete",
        ];
        program::fails(
            dir.path(),
            "perplexity m.gguf -f t.txt -c 64 --chunks 1",
            &parts,
        );
    }
}

#[test]
fn output_matrix_must_match_the_config() {
    let mut model = Model::llama();
    model.config["tie_word_embeddings"] = json!(false);
    let parts = ["tie_word_embeddings is false", "no lm_head.weight"];
    fails(model.write().path(), &[], &parts);
    // A bare model has no head.
    model.config["architectures"] = json!(["LlamaModel"]);
    told(model.write().path(), &[]);

    let mut model = Model::llama();
    model.config["tie_word_embeddings"] = json!(true);
    model.add("lm_head.weight", &[VOCAB, HIDDEN]);
    let same = model.write();
    assert!(!told(same.path(), &[]).contains("tie_word_embeddings"));
    model.tensors.get_mut("lm_head.weight").unwrap().2[1] ^= 0x40;
    let other = model.write();
    has(
        &told(other.path(), &[]),
        &[
            "tie_word_embeddings is true",
            "holds another one, which is taken",
        ],
    );
    assert_ne!(
        weights(other.path(), "output.weight"),
        weights(other.path(), "token_embd.weight")
    );
}

#[test]
fn imatrix_of_another_model_is_refused() {
    let dir = with_model();
    super::support::gguf::imatrix().write(&dir.path().join("i.gguf"));
    let parts = [
        "i.gguf: the importance matrix has none",
        "(it has 'a.weight')",
    ];
    program::fails(
        dir.path(),
        "quantize --imatrix i.gguf m.gguf q.gguf Q4_K_S",
        &parts,
    );
}

#[test]
fn matrices_missing_in_the_imatrix_are_named() {
    let dir = with_model();
    let part = importance(|name| name != "blk.1.attn_q.weight" && name != "output.weight");
    part.weights("far.weight.in_sum2", &[4, 1], [1.0; 4])
        .weights("far.weight.counts", &[1, 1], [1.0])
        .write(&dir.path().join("i.gguf"));
    let told = warned(dir.path(), "quantize --imatrix i.gguf m.gguf q.gguf Q4_K_S");
    has(
        &told,
        &[
            "has no values for 1 tensor, quantized without it: blk.1.attn_q.weight\n",
            "has 1 entry for other tensors than the model's: far.weight;",
        ],
    );
    importance(|_| true).write(&dir.path().join("i.gguf"));
    assert_eq!(
        warned(dir.path(), "quantize --imatrix i.gguf m.gguf q.gguf Q4_K_S"),
        ""
    );
}

/// The test model in f32, with one weight beyond f16.
fn too_large() -> Model {
    let mut model = Model::llama();
    for (dtype, _, bytes) in model.tensors.values_mut() {
        *dtype = "F32";
        *bytes = vec![0; 2 * bytes.len()];
    }
    let at = 4 * (5 * HIDDEN as usize + 3);
    model.layer("mlp.up_proj.weight").2[at..at + 4].copy_from_slice(&70_000f32.to_le_bytes());
    model
}

#[test]
fn weights_beyond_f16_are_reported() {
    let dir = too_large().write();
    let part = "blk.0.ffn_up.weight, row 5, holds 70000, which becomes infinite in f16";
    fails(dir.path(), &["--check"], &[part, "--outtype bf16 keeps it"]);
    has(
        &told(dir.path(), &[]),
        &["warning: ", part, "--outtype bf16"],
    );
    assert_eq!(
        weights(dir.path(), "blk.0.ffn_up.weight")[5 * HIDDEN as usize + 3],
        f32::INFINITY
    );
    for out_type in ["bf16", "f32"] {
        assert!(!told(dir.path(), &["--check", "--outtype", out_type]).contains("infinite"));
    }
}

#[test]
fn checkpoints_beyond_f16_are_quantized_via_bf16() {
    let dir = too_large().write();
    let told = warned(dir.path(), "quantize . out.gguf Q8_0");
    has(
        &told,
        &[
            "blk.0.ffn_up.weight, row 5, holds 70000",
            "the checkpoint is read as bf16",
        ],
    );
    let found = weights(dir.path(), "blk.0.ffn_up.weight")[5 * HIDDEN as usize + 3];
    assert!((found - 70_000.0).abs() < 300.0, "{found}");
    // If f16 holds all weights, it is chosen as in the reference.
    let dir = Model::llama().write();
    assert!(!warned(dir.path(), "quantize . out.gguf Q8_0").contains("bf16"));
}

#[test]
fn other_directories_are_explained() {
    let adapter = br#"{"base_model_name_or_path": "org/base"}"#;
    for (file, bytes, parts) in [
        (
            "adapter_config.json",
            &adapter[..],
            ["LoRA adapter", "base model (org/base)"],
        ),
        (
            "params.json",
            b"{}",
            ["Mistral's own format", "download config.json"],
        ),
    ] {
        let dir = in_directory(&[(file, bytes)]);
        // `convert` makes an adapter's own file.
        if file != "adapter_config.json" {
            fails(dir.path(), &[], &parts);
        }
        program::fails(dir.path(), "quantize . out Q8_0", &parts);
    }
}

#[test]
fn a_stale_index_is_named() {
    let dir = Model::llama().write();
    let map = json!({ "model.norm.weight": "model-00001-of-00002.safetensors" });
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    let parts = [
        "does not name the model.safetensors beside it",
        "remove model.safetensors.index.json",
    ];
    fails(dir.path(), &[], &parts);
    std::fs::remove_file(index).unwrap();
    told(dir.path(), &[]);
}

#[test]
fn index_decides_between_duplicate_tensors() {
    const TWICE: &str = "model.norm.weight";
    let model = Model::llama();
    let mut other = Model::llama();
    other.tensors.retain(|name, _| name == TWICE);
    other.tensors.get_mut(TWICE).unwrap().2.fill(0);
    for (named, first) in [(1, 0.0), (2, 0.0)] {
        let dir = model.write_without_weights();
        let files = [1, 2].map(|n| format!("model-0000{n}-of-00002.safetensors"));
        // The tensor has zeros in the file that the index names.
        let [a, b] = match named {
            1 => [&other, &model],
            _ => [&model, &other],
        };
        for (file, part) in files.iter().zip([a, b]) {
            std::fs::write(dir.path().join(file), part.safetensors(|_| true)).unwrap();
        }
        let whole = files[2 - named].clone();
        let file_of = |name: &String| match name == TWICE {
            true => files[named - 1].clone(),
            false => whole.clone(),
        };
        let map: serde_json::Map<_, _> = model
            .tensors
            .keys()
            .map(|name| (name.clone(), file_of(name).into()))
            .collect();
        let index = json!({ "weight_map": map }).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        told(dir.path(), &[]);
        assert_eq!(weights(dir.path(), "output_norm.weight")[1], first);
        assert_eq!(weights(dir.path(), "blk.0.attn_norm.weight")[1], 1.0);
    }
}

#[test]
fn whole_files_may_be_named_like_shards() {
    let name = "m-00001-of-00003.gguf";
    let dir = in_directory(&[(name, &shortened(1).bytes())]);
    succeeds(dir.path(), &format!("quantize {name} q.gguf Q8_0"));
    let part = shortened(1)
        .set("split.no", Gguf::U16(0))
        .set("split.count", Gguf::U16(3));
    part.write(&dir.path().join(name));
    program::fails(
        dir.path(),
        &format!("quantize {name} r.gguf Q8_0"),
        &["these are missing"],
    );
}

#[test]
fn concatenated_shards_are_recognized() {
    let shard = |no| {
        let model = match no {
            0 => shortened(1),
            _ => Tiny::default().zeros("x.weight", &[32], quantier_gguf::types::GgmlType::F32),
        };
        model
            .set("split.no", Gguf::U16(no))
            .set("split.count", Gguf::U16(2))
            .bytes()
    };
    let dir = in_directory(&[("m.gguf", &[shard(0), shard(1)].concat())]);
    let parts = ["several shards, joined byte by byte", "quantier merge"];
    program::fails(dir.path(), "quantize m.gguf q.gguf Q8_0", &parts);
}

#[test]
fn unmatched_patterns_are_reported() {
    let dir = with_model();
    let run = |pattern: &str| {
        warned(
            dir.path(),
            &format!("quantize --tensor-type {pattern}=q6_k m.gguf q.gguf Q4_K_S"),
        )
    };
    let told = run("atn_q");
    has(
        &told,
        &["--tensor-type atn_q matches no tensor; the nearest name is attn_q"],
    );
    assert_eq!(run("attn_q"), "");
}

#[test]
fn pruning_shortens_per_layer_lists() {
    let list = |values: &[u32]| {
        let values = values.iter().map(|n| Gguf::U32(*n));
        Gguf::Array(Array::of_values(ValueType::U32, values))
    };
    let dir = tempfile::tempdir().unwrap();
    program::model()
        .set("llama.attention.head_count_kv", list(&[4, 2, 1]))
        .write(&dir.path().join("m.gguf"));
    succeeds(dir.path(), "quantize --prune-layers 1 m.gguf out.gguf Q8_0");
    let written = metadata(dir.path());
    assert_eq!(
        written.get("llama.attention.head_count_kv"),
        Some(&list(&[4, 1]))
    );
    assert_eq!(written.get("llama.block_count"), Some(&Gguf::U32(2)));

    let told = warned(dir.path(), "quantize --prune-layers 1,7 m.gguf q.gguf Q8_0");
    has(&told, &["the model has 3 layers, 0 to 2, and no layer 7"]);
    let parts = ["--prune-layers leaves no layer"];
    program::fails(
        dir.path(),
        "quantize --prune-layers 0,1,2 m.gguf r.gguf Q8_0",
        &parts,
    );
}

#[test]
fn nonfinite_config_numbers_are_read() {
    let dir = Model::llama().write();
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let more = r#"{"time_step_limit": [0.0, Infinity], "a": -Infinity, "b": NaN, "#;
    std::fs::write(&path, text.replacen('{', more, 1)).unwrap();
    told(dir.path(), &[]);
}

#[test]
fn encodings_of_the_config_are_named() {
    let text = Model::llama().config.to_string();
    let utf16: Vec<u8> = [0xfeff_u16]
        .into_iter()
        .chain(text.encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
    for (bytes, part) in [
        (utf16, "it is UTF-16"),
        (marked, "begins with a byte order mark"),
    ] {
        let dir = Model::llama().write();
        std::fs::write(dir.path().join("config.json"), bytes).unwrap();
        fails(
            dir.path(),
            &[],
            &["config.json: ", part, "save it as UTF-8"],
        );
    }
}

#[test]
fn matrices_of_8_bits_need_scales() {
    for dtype in ["I8", "F8_E4M3"] {
        let mut model = Model::llama();
        let shape = vec![FFN, HIDDEN];
        *model.layer("mlp.up_proj.weight") = (dtype, shape, vec![0x38; (FFN * HIDDEN) as usize]);
        let parts = ["stored in 8 bits", dtype, "scales", "mlp.up_proj.weight"];
        fails(model.write().path(), &[], &parts);
    }
}

#[test]
fn gpt2_sizes_match_the_config() {
    const LENGTH: u64 = 24;
    let config = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1,
        "n_ctx": 8, "n_positions": 16, "n_inner": LENGTH, "vocab_size": 512, "layer_norm_epsilon": 1e-5,
    });
    let model = Model::gpt2(config, 8, LENGTH);
    let dir = model.write();
    with_byte_level(dir.path(), &[]);
    let told = told(dir.path(), &["--pre", "gpt-2"]);
    has(
        &told,
        &[
            "convert_hf_to_gguf.py writes n_ctx, 8,",
            "config.json's width, 24; convert_hf_to_gguf.py writes 32",
        ],
    );
    let written = metadata(dir.path());
    assert_eq!(written.get("gpt2.context_length"), Some(&Gguf::U32(16)));
    assert_eq!(
        written.get("gpt2.feed_forward_length"),
        Some(&Gguf::U32(LENGTH as u32))
    );
}

/// Writes a changed Qwen 3.5.
fn qwen35(change: impl FnOnce(&mut Model)) -> TempDir {
    let mut model = Model::qwen35();
    change(&mut model);
    let dir = model.write();
    with_byte_level(dir.path(), &[]);
    dir
}

const QWEN35: [&str; 5] = ["--pre", "qwen2", "--no-nextn", "--outtype", "f32"];

/// Replaces the two numbers of a tensor, in bf16.
fn numbers(model: &mut Model, name: &str, numbers: [f32; 2]) {
    let bytes = numbers.map(|x| (x.to_bits() >> 16) as u16);
    let bytes = bytes.iter().flat_map(|half| half.to_le_bytes());
    model.layer(&format!("linear_attn.{name}")).2 = bytes.collect();
}

#[test]
fn nonfinite_decays_are_refused() {
    let nan = [1.0, f32::NAN];
    let infinite = [f32::INFINITY, 1.0];
    for (tensor, of_heads, parts) in [
        ("A_log", nan, ["A_log", "number 1 is NaN"]),
        ("A_log", infinite, ["A_log", "number 0 is inf"]),
        // e^89 overflows f32.
        ("A_log", [89.0, 1.0], ["number 0 is 89", "would be -inf"]),
        ("dt_bias", nan, ["dt_bias", "number 1 is NaN"]),
        ("dt_bias", infinite, ["dt_bias", "number 0 is inf"]),
    ] {
        let dir = qwen35(|model| numbers(model, tensor, of_heads));
        fails(dir.path(), &QWEN35, &parts);
        fails(dir.path(), &QWEN35, &["linear_attn", "download it again"]);
    }
    // A state without decay, and the largest decay that f32 holds.
    let dir = qwen35(|model| numbers(model, "A_log", [f32::NEG_INFINITY, 88.5]));
    told(dir.path(), &QWEN35);
    let decay = weights(dir.path(), "blk.0.ssm_a");
    assert!(decay[0] == 0.0 && decay[1] < -1e38, "{decay:?}");
}

#[test]
fn parts_of_a_delta_net_must_add_up() {
    let wrong = |change: &dyn Fn(&mut Model), parts: &[&str]| {
        fails(qwen35(change).path(), &QWEN35, parts);
    };
    let rows = |tensor: &'static str, shape: &'static [u64]| {
        move |model: &mut Model| model.add(&format!("model.layers.0.linear_attn.{tensor}"), shape)
    };
    let matrix = rows("in_proj_qkv.weight", &[160, HIDDEN]);
    wrong(&matrix, &["in_proj_qkv", "must be 128 by config.json"]);
    let kernels = rows("conv1d.weight", &[96, 1, 4]);
    wrong(&kernels, &["conv1d", "must be 128 by config.json"]);
    let field = |name: &'static str, value: Value| {
        move |model: &mut Model| model.config[name] = value.clone()
    };
    let heads = field("linear_num_key_heads", json!(3));
    wrong(&heads, &["linear_num_key_heads", "no multiple of 3"]);
    // All tensors match, but llama.cpp does not run such a model.
    let shorter = |model: &mut Model| {
        field("linear_value_head_dim", json!(16))(model);
        rows("in_proj_qkv.weight", &[96, HIDDEN])(model);
        rows("conv1d.weight", &[96, 1, 4])(model);
        rows("in_proj_z.weight", &[32, HIDDEN])(model);
        rows("norm.weight", &[16])(model);
        rows("out_proj.weight", &[HIDDEN, 32])(model);
    };
    wrong(&shorter, &["'linear_key_head_dim' is 32", "is 16"]);
    let list = field("layer_types", json!(["linear_attention", "full_attention"]));
    wrong(&list, &["'layer_types' lists 2 layers"]);
}

#[test]
fn sections_that_do_not_add_up_are_named() {
    let sections =
        |list: Value| qwen35(|model| model.config["rope_parameters"]["mrope_section"] = list);
    let all = sections(json!([3, 3, 2]));
    assert_eq!(told(all.path(), &QWEN35), "");
    let more = sections(json!([11, 11, 10]));
    has(
        &told(more.path(), &QWEN35),
        &["[11, 11, 10, 0] of 'mrope_section' are 32 pairs together, and 8 pairs"],
    );
    let key = metadata(more.path());
    let key = key.get("qwen35.rope.dimension_sections");
    let key = key.and_then(Gguf::as_array).unwrap().values();
    assert!(key.eq([11, 11, 10, 0].map(Gguf::I32)));
    for list in [json!([0, 0, 0]), json!([20, 20, 20])] {
        let parts = ["'mrope_section'", "between 1 and 32"];
        fails(sections(list).path(), &QWEN35, &parts);
    }
}

/// A Qwen 3 of one layer.
fn qwen3(tied: bool) -> Model {
    const TOKENS: u64 = 512;
    let mut model = Model::llama();
    model.config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN, "head_dim": 32,
        "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "vocab_size": TOKENS, "tie_word_embeddings": tied, "rms_norm_eps": 1e-6,
    });
    model.add("model.embed_tokens.weight", &[TOKENS, HIDDEN]);
    if !tied {
        model.add("lm_head.weight", &[TOKENS, HIDDEN]);
    }
    for name in ["q_norm", "k_norm"] {
        model.add(&format!("model.layers.0.self_attn.{name}.weight"), &[32]);
    }
    model
}

#[test]
fn rerankers_have_a_classifier_instead_of_an_output_matrix() {
    for tied in [true, false] {
        let mut model = qwen3(tied);
        let dir = model.write();
        let tokens = [("no", 500), ("yes", 503)];
        with_byte_level(dir.path(), &tokens);
        let args = ["--pre", "qwen2", "--outtype", "f32"];
        // Otherwise, the model is a language model.
        told(dir.path(), &args);
        assert_eq!(metadata(dir.path()).get("qwen3.pooling_type"), None);

        model.config["_name_or_path"] = json!("Qwen/Qwen3-Reranker-0.6B");
        std::fs::write(dir.path().join("config.json"), model.config.to_string()).unwrap();
        let planned = plan(dir.path(), &args);
        let tensors = planned["tensors"].as_array().unwrap();
        let named = |name: &str| tensors.iter().any(|tensor| tensor["name"] == name);
        assert!(
            named("token_embd.weight") && named("cls.output.weight") && !named("output.weight")
        );
        let rows = weights(dir.path(), "cls.output.weight");
        let head = weights(dir.path(), "token_embd.weight");
        let row = |token: usize| &head[token * HIDDEN as usize..][..HIDDEN as usize];
        assert_eq!(rows, [row(503), row(500)].concat());
        let written = metadata(dir.path());
        assert_eq!(written.get("qwen3.pooling_type"), Some(&Gguf::U32(4)));
        let labels = written
            .get("qwen3.classifier.output_labels")
            .and_then(Gguf::as_array);
        assert!(labels.unwrap().strings().eq([&b"yes"[..], b"no"]));
        let template = written
            .get("tokenizer.chat_template.rerank")
            .and_then(Gguf::as_str);
        has(
            template.unwrap(),
            &["<Query>: {query}\n<Document>: {document}<|im_end|>"],
        );
    }
}

#[test]
fn tokens_only_in_tokenizer_json_are_reported() {
    let mut model = Model::llama();
    model.config["vocab_size"] = json!(VOCAB + 2);
    model.add("model.embed_tokens.weight", &[VOCAB + 2, HIDDEN]);
    let dir = model.write();
    let added =
        json!({ "added_tokens": [{ "id": VOCAB, "content": "<|im_end|>", "special": true }] });
    std::fs::write(dir.path().join("tokenizer.json"), added.to_string()).unwrap();
    has(
        &told(dir.path(), &[]),
        &[
            "become padding",
            "<|im_end|> (4096)",
            "added_tokens_decoder",
        ],
    );
    let written = metadata(dir.path());
    let tokens = written
        .get("tokenizer.ggml.tokens")
        .and_then(Gguf::as_array)
        .unwrap();
    assert_eq!(
        tokens.strings().nth(VOCAB as usize),
        Some(&b"[PAD4096]"[..])
    );
}

#[test]
fn pooling_module_affects_only_families_that_write_it() {
    let write = |dir: &Path| {
        let modules =
            json!([{ "type": "sentence_transformers.models.Pooling", "path": "1_Pooling" }]);
        std::fs::write(dir.join("modules.json"), modules.to_string()).unwrap();
        std::fs::create_dir(dir.join("1_Pooling")).unwrap();
        let config = json!({ "pooling_mode_max_tokens": true }).to_string();
        std::fs::write(dir.join("1_Pooling/config.json"), config).unwrap();
    };
    let dir = Model::llama().write();
    write(dir.path());
    told(dir.path(), &[]);
    let dir = qwen3(true).write();
    with_byte_level(dir.path(), &[]);
    write(dir.path());
    fails(
        dir.path(),
        &["--pre", "qwen2"],
        &["1_Pooling/config.json: it pools neither by mean"],
    );
}

#[test]
fn messages_state_a_remedy() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
    let dir = with_model();
    std::fs::write(dir.path().join("i.gguf"), pointer).unwrap();
    let parts = ["i.gguf: it is a Git LFS pointer"];
    program::fails(
        dir.path(),
        "quantize --imatrix i.gguf m.gguf q.gguf Q4_K_S",
        &parts,
    );
    let parts = ["--kl-divergence is a command here: quantier kld BASE MODEL"];
    program::fails(
        dir.path(),
        "perplexity --kl-divergence -m m.gguf -f t.txt",
        &parts,
    );
}

#[test]
fn quantization_configs_beside_plain_weights_are_reported() {
    let mut model = Model::llama();
    model.config["quantization_config"] = json!({ "quant_method": "bitsandbytes" });
    let parts = [
        "'bitsandbytes', and its weights are not",
        "Remove quantization_config",
    ];
    fails(model.write().path(), &[], &parts);
}

#[test]
fn dropped_chat_templates_are_reported() {
    let dir = Model::llama().write();
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    has(
        &told(dir.path(), &[]),
        &[
            "chat_template.jinja is left out",
            "quantier set --chat-template",
        ],
    );
    let config = r#"{"add_bos_token": true}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    assert!(!told(dir.path(), &[]).contains("left out"));
}

#[test]
fn rope_types_without_counterpart_are_reported() {
    let mut model = Model::llama();
    model.config["rope_scaling"] = json!({ "rope_type": "dynamic", "factor": 2.0 });
    has(
        &told(model.write().path(), &[]),
        &["RoPE type 'dynamic'", "left out"],
    );
    model.config["rope_scaling"] = json!({ "rope_type": "linear", "factor": 2.0 });
    assert!(!told(model.write().path(), &[]).contains("RoPE type"));
}

#[test]
fn old_files_with_single_experts_are_recognized() {
    let experts = |model: Tiny| {
        (0..2).fold(model, |model, expert| {
            ["gate", "up", "down"].iter().fold(model, |model, name| {
                let name = format!("blk.0.ffn_{name}.{expert}.weight");
                model.weights(&name, &[256, 4], [0.0; 1024])
            })
        })
    };
    let mut model = shortened(1);
    model
        .tensors
        .retain(|(info, _)| !info.name.contains("ffn_") || info.name.contains("norm"));
    let model = experts(model.weights("blk.0.ffn_gate_inp.weight", &[256, 2], [0.0; 512]));
    let text = include_bytes!("../../testdata/texts/evaluation.txt");
    let dir = in_directory(&[("m.gguf", &model.bytes()), ("t.txt", text)]);
    let parts = [
        "one tensor for each expert",
        "convert the original model again",
    ];
    program::fails(dir.path(), "quantize m.gguf q.gguf Q8_0", &parts);
    program::fails(
        dir.path(),
        "perplexity m.gguf -f t.txt -c 64 --chunks 1",
        &parts,
    );
}

#[test]
fn unsupported_popular_models_are_refused_by_name() {
    let mut model = Model::llama();
    model.config["architectures"] = json!(["OPTForCausalLM"]);
    model.config["model_type"] = json!("opt");
    fails(
        model.write().path(),
        &[],
        &["OPT (model type 'opt'", "llama.cpp cannot run it"],
    );
    model.config["model_type"] = json!("some_new");
    let parts = ["architecture 'OPTForCausalLM' is not supported; docs/architectures.md"];
    fails(model.write().path(), &[], &parts);
}
