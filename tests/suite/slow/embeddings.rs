//! Embedding models from a checkpoint to measured files, on a random BERT and on the small trained model with a pooling.

use crate::support::models;
use crate::support::program::{fail_each, fails, json, stderr, succeeds};
use quantier::text::{Set, joined};
use quantier_core::rng::Rng;
use quantier_gguf::gguf::{Model, Value};
use quantier_gguf::imatrix::Imatrix;
use quantier_report::data::{Distance, Frontier, Mean, Score};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const HIDDEN: usize = 256;
const FFN: usize = 512;
const LAYERS: usize = 2;
const CONTEXT: usize = 48;

/// Words of the vocabulary behind the special tokens.
const WORDS: [&str; 24] = [
    "the", "river", "was", "old", "and", "house", "stood", "near", "it", "with", "many", "windows",
    "of", "green", "glass", "a", "boat", "left", "in", "morning", "light", "slow", "water",
    "bridge",
];

fn vocabulary() -> Vec<String> {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ","];
    special
        .iter()
        .chain(&WORDS)
        .map(|word| word.to_string())
        .collect()
}

/// A safetensors file of F32 tensors.
fn safetensors(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape, numbers) in tensors {
        let start = end;
        end += 4 * numbers.len();
        let entry =
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    let numbers = tensors.iter().flat_map(|(_, _, numbers)| numbers);
    bytes.extend(numbers.flat_map(|x| x.to_le_bytes()));
    bytes
}

/// Writes a checkpoint of a random BERT with mean pooling.
fn bert(dir: &Path) {
    fs::create_dir_all(dir.join("1_Pooling")).unwrap();
    let vocabulary = vocabulary();
    let config = serde_json::json!({
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": vocabulary.len(), "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": FFN,
        "max_position_embeddings": CONTEXT, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
        "pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3, "position_embedding_type": "absolute",
    });
    let write = |name: &str, value: serde_json::Value| {
        fs::write(dir.join(name), value.to_string()).unwrap();
    };
    write("config.json", config);
    write(
        "tokenizer_config.json",
        serde_json::json!({ "tokenizer_class": "BertTokenizer", "do_lower_case": true, "cls_token": "[CLS]",
            "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]" }),
    );
    fs::write(dir.join("vocab.txt"), vocabulary.join("\n") + "\n").unwrap();
    let module = |idx: usize, path: &str, kind: &str| {
        let kind = format!("sentence_transformers.models.{kind}");
        serde_json::json!({ "idx": idx, "name": idx.to_string(), "path": path, "type": kind })
    };
    write(
        "modules.json",
        serde_json::json!([
            module(0, "", "Transformer"),
            module(1, "1_Pooling", "Pooling")
        ]),
    );
    write(
        "1_Pooling/config.json",
        serde_json::json!({ "pooling_mode_mean_tokens": true }),
    );
    let mut rng = Rng::new(11);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize], mean: f32, deviation: f32| {
        let count = shape.iter().product();
        let numbers = (0..count).map(|_| mean + deviation * rng.gaussian());
        tensors.push((name, shape.to_vec(), numbers.collect::<Vec<f32>>()));
    };
    let mut linear = |name: String, rows: usize, columns: usize| {
        add(
            format!("{name}.weight"),
            &[rows, columns],
            0.0,
            1.5 / (columns as f32).sqrt(),
        );
        add(format!("{name}.bias"), &[rows], 0.0, 0.1);
    };
    for layer in 0..LAYERS {
        let at = |part: &str| format!("encoder.layer.{layer}.{part}");
        for part in ["query", "key", "value"] {
            linear(at(&format!("attention.self.{part}")), HIDDEN, HIDDEN);
        }
        linear(at("attention.output.dense"), HIDDEN, HIDDEN);
        linear(at("intermediate.dense"), FFN, HIDDEN);
        linear(at("output.dense"), HIDDEN, FFN);
    }
    let mut norm = |name: String| {
        add(format!("{name}.weight"), &[HIDDEN], 1.0, 0.1);
        add(format!("{name}.bias"), &[HIDDEN], 0.0, 0.1);
    };
    norm("embeddings.LayerNorm".into());
    for layer in 0..LAYERS {
        norm(format!("encoder.layer.{layer}.attention.output.LayerNorm"));
        norm(format!("encoder.layer.{layer}.output.LayerNorm"));
    }
    for (name, rows) in [
        ("word", vocabulary.len()),
        ("position", CONTEXT),
        ("token_type", 2),
    ] {
        let name = format!("embeddings.{name}_embeddings.weight");
        add(name, &[rows, HIDDEN], 0.0, 1.0);
    }
    fs::write(dir.join("model.safetensors"), safetensors(&tensors)).unwrap();
}

/// Sentences of these words, one a line, of 4 to 30 words.
fn sentences(seed: u64, count: usize) -> String {
    let mut rng = Rng::new(seed);
    let mut below = |n: usize| ((rng.uniform() * n as f32) as usize).min(n - 1);
    let sentence = |_| {
        let length = 4 + below(27);
        let words: Vec<&str> = (0..length).map(|_| WORDS[below(WORDS.len())]).collect();
        words.join(" ") + "."
    };
    (0..count).map(sentence).collect::<Vec<_>>().join("\n")
}

/// A directory with the random BERT, its GGUF in F32, and two texts.
fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    bert(&at.join("bert"));
    succeeds(at, "convert bert --outtype f32 --outfile f32.gguf");
    fs::write(at.join("cal.txt"), sentences(1, 120)).unwrap();
    fs::write(at.join("eval.txt"), sentences(2, 60)).unwrap();
    dir
}

#[test]
fn importance_matrices_count_all_tokens_of_all_texts() {
    let dir = place();
    let at = dir.path();
    succeeds(
        at,
        "imatrix -m f32.gguf -f cal.txt -o i.gguf --hessians hessians",
    );
    let imatrix = Imatrix::read(&at.join("i.gguf")).unwrap();
    assert_eq!(
        imatrix.entries.len(),
        6 * LAYERS,
        "{:?}",
        imatrix.entries.keys()
    );
    let ids = json(at, "tokenize -m f32.gguf -f cal.txt --ids");
    // The tokens of the lines; each text has [CLS] and [SEP] of its own, those of the whole file do not count.
    let tokens = ids.as_array().unwrap().len() - 2 + 2 * 120;
    for (name, entry) in &imatrix.entries {
        assert_eq!(entry.counts, [tokens as i64], "{name}");
    }
    let error = fails(
        at,
        "imatrix -m f32.gguf -f cal.txt -o o.gguf --process-output",
        &[],
    );
    assert!(error.contains("no output matrix"), "{error}");
}

#[test]
fn distances_and_agreement_of_quantized_files() {
    let dir = place();
    let at = dir.path();
    for preset in ["Q8_0", "Q4_K_M", "Q2_K"] {
        succeeds(
            at,
            &format!("quantize --imatrix none f32.gguf {preset}.gguf {preset}")
                .replace("--imatrix none ", ""),
        );
    }
    let found = json(
        at,
        "kld f32.gguf f32.gguf Q8_0.gguf Q4_K_M.gguf Q2_K.gguf -f eval.txt --json",
    );
    assert_eq!(found["measure"], "cosine-distance");
    assert_eq!(found["texts"][0]["texts"], 60);
    let models = found["models"].as_array().unwrap();
    let distance = |model: usize| {
        models[model]["cosine_distance"]["mean"]["value"]
            .as_f64()
            .unwrap()
    };
    let shared = |model: usize| {
        models[model]["agreement"]["shared_neighbours"]
            .as_f64()
            .unwrap()
    };
    assert_eq!((distance(0), shared(0)), (0.0, 1.0));
    assert!(
        distance(1) > 0.0 && distance(1) < distance(2) && distance(2) < distance(3),
        "{found}"
    );
    assert!(shared(1) > shared(3), "{found}");
    assert!(
        models[3]["cosine_distance"]["mean"]["uncertainty"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    // Q8_0 against Q2_K.
    let pair = &found["pairs"][4]["paired"];
    assert_eq!(pair["verdict"], "first", "{found}");
    let text = succeeds(at, "kld f32.gguf Q4_K_M.gguf -f eval.txt");
    for part in [
        "Cosine distance",
        "60 texts",
        "Rank correlation",
        "nearest neighbours",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Empty lines separate texts of several lines; long ones are cut to the context.
    fs::write(
        at.join("long.txt"),
        format!("{}\n\n{}", sentences(3, 9), sentences(4, 2)),
    )
    .unwrap();
    let cut = json(at, "kld f32.gguf Q8_0.gguf -f long.txt --json");
    assert_eq!(
        (&cut["texts"][0]["texts"], &cut["texts"][0]["shortened"]),
        (&2.into(), &1.into())
    );
    assert_eq!(
        cut["texts"][0]["tokens"]
            .as_u64()
            .unwrap()
            .min(CONTEXT as u64),
        CONTEXT as u64
    );
}

#[test]
fn what_needs_tokens_is_refused_with_its_reason() {
    let dir = place();
    let at = dir.path();
    fs::write(at.join("chats.jsonl"), "").unwrap();
    fs::write(at.join("one.txt"), "the river").unwrap();
    fail_each(
        at,
        &[
            (
                "perplexity f32.gguf -f eval.txt",
                &["predicts no tokens", "perplexity", "cosine distance"],
            ),
            (
                "kld f32.gguf f32.gguf -f eval.txt --save-logits l",
                &["--save-logits"],
            ),
            ("kld f32.gguf f32.gguf --chat chats.jsonl", &["--chat"]),
            (
                "kld f32.gguf f32.gguf -f one.txt",
                &["1 texts", "2 are needed"],
            ),
            (
                "tune f32.gguf f32.gguf -f cal.txt -o t.gguf",
                &["KL divergence"],
            ),
            (
                "make f32.gguf --bpw 5 -f cal.txt --tune -o out",
                &["--tune does not apply"],
            ),
            (
                "make f32.gguf --bpw 5 -f cal.txt --refine 2 -o out",
                &["--refine does not apply"],
            ),
            (
                "make f32.gguf --kld 0.01 -f cal.txt -o out",
                &["--kld does not apply", "--cosine"],
            ),
            (
                "make f32.gguf --bpw 5 -f cal.txt --score sweep -o out",
                &["--score sweep does not apply"],
            ),
            (
                "make f32.gguf --bpw 5 -f cal.txt --plan-only -o out",
                &["no shards"],
            ),
        ],
    );
    let error = stderr(
        at,
        "make f32.gguf --bpw 5 -f cal.txt --chat chats.jsonl -o out",
        1,
    );
    assert!(error.contains("conversations"), "{error}");
}

/// The contents of frontier.json.
fn frontier(dir: &Path) -> Frontier {
    let text = fs::read_to_string(dir.join("frontier.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The measured mean of a file.
fn cosine(mean: Mean) -> f64 {
    match mean {
        Mean::CosineDistance(value) => value,
        Mean::Kld(_) => panic!("a KL divergence of an embedding model"),
    }
}

/// Checks the results of `make` with two files, the smaller first: predictions, measurements, words.
fn check(out: &Path) {
    let report = frontier(out);
    assert_eq!(
        (report.distance, report.scoring.score),
        (Distance::Cosine, Score::PerText)
    );
    let [small, large] = &report.files[..] else {
        panic!("{} files", report.files.len());
    };
    let distances = [small, large].map(|file| cosine(file.measured.as_ref().unwrap().mean));
    assert!(distances[1] < distances[0], "{distances:?}");
    for (file, distance) in [small, large].into_iter().zip(distances) {
        let ratio = distance / file.predicted;
        assert!(
            (0.3..3.0).contains(&ratio),
            "{}: {distance} measured, {} predicted",
            file.name,
            file.predicted
        );
        let measured = file.measured.as_ref().unwrap();
        assert!(measured.uncertainty.unwrap() > 0.0 && measured.ppl.is_none());
        assert!(
            measured.rank_correlation.unwrap() > 0.5 && measured.shared_neighbours.unwrap() > 0.3
        );
        assert!(!file.versus.is_empty(), "{}: no preset", file.name);
    }
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    let chart = fs::read_to_string(out.join("frontier.svg")).unwrap();
    for text in [&page, &chart] {
        assert!(text.contains("osine distance"));
        for word in [" nats", "KL divergence", "KLD", "perplexity", "next token"] {
            assert!(!text.contains(word), "{word}");
        }
    }
}

/// Checks a published directory: words of the card, Ollama's files.
fn check_publication(published: &Path) {
    let read = |name: &str| fs::read_to_string(published.join(name)).unwrap();
    let card = read("README.md");
    for part in [
        "pipeline_tag: feature-extraction",
        "least\ncosine distance from the original",
        "is a mean over 60 held-out texts",
        "| mean distance | rank correlation | neighbours |",
        "llama-server --embeddings -m ",
        "ollama create ",
    ] {
        assert!(card.contains(part), "{part} is not in {card}");
    }
    let words = [
        "KL",
        "nats",
        "PPL",
        "same top",
        "next token",
        "llama-cli",
        "ollama run",
        "chat template",
    ];
    for word in words {
        assert!(!card.contains(word), "{word} is in {card}");
    }
    let names = fs::read_dir(published).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let modelfiles: Vec<String> = names.filter(|name| name.ends_with(".Modelfile")).collect();
    assert_eq!(modelfiles.len(), 2);
    for name in modelfiles {
        let text = read(&name);
        assert!(
            text.contains("FROM ./")
                && text.ends_with(&format!("PARAMETER num_ctx {CONTEXT}\n"))
                && !text.contains("TEMPLATE"),
            "{text}"
        );
    }
    assert!(!published.join("template").exists());
}

#[test]
fn make_allocates_by_cosine_distance() {
    let dir = place();
    let at = dir.path();
    let options = "-f cal.txt --eval eval.txt --types q2_K,q3_K,q4_K,q5_K,q6_K,q8_0";
    let printed = succeeds(
        at,
        &format!("make bert --bpw 3.5 --bpw 5.5 {options} --publish -o out"),
    );
    assert!(
        printed.contains("mean distance") && !printed.contains("KLD"),
        "{printed}"
    );
    check(&at.join("out"));
    check_publication(&at.join("out/publish"));
    // A cosine distance as the budget.
    let first = frontier(&at.join("out"));
    let target = cosine(first.files[0].measured.as_ref().unwrap().mean) * 0.6;
    succeeds(
        at,
        &format!("make bert --cosine {target:.9} {options} --compare none -o out"),
    );
    let reached = frontier(&at.join("out"));
    let file = &reached.files[0];
    // The file is chosen by the predicted distance.
    let ratio = cosine(file.measured.as_ref().unwrap().mean) / target;
    assert!((0.5..1.4).contains(&ratio), "{ratio}");
    assert!(file.bytes < first.files[1].bytes, "{}", file.bytes);
}

/// The trained model with a pooling: with attention to both sides and the mean, and causal with the last token.
#[test]
fn decoders_with_a_pooling_are_embedding_models() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let text: Vec<String> = joined(Set::Evaluation)
        .split("\n\n")
        .map(str::to_owned)
        .collect();
    fs::write(at.join("cal.txt"), text[..60].join("\n\n")).unwrap();
    fs::write(at.join("eval.txt"), text[60..100].join("\n\n")).unwrap();
    for (pooling, is_causal) in [(1, false), (3, true)] {
        let model = models::shortened(2)
            .set("llama.pooling_type", Value::U32(pooling))
            .set("llama.attention.causal", Value::Bool(is_causal));
        model.write(&at.join("m.gguf"));
        let out = format!("out{pooling}");
        succeeds(
            at,
            &format!(
                "make m.gguf --bpw 5 --bpw 6.5 -f cal.txt --eval eval.txt -c 128 --types q2_K,q3_K,q4_K,q6_K,q8_0 -o {out}"
            ),
        );
        check(&at.join(&out));
        let file = frontier(&at.join(&out)).files[0].name.clone();
        let written = Model::open(&at.join(&out).join(file)).unwrap();
        let key = written
            .metadata()
            .get("llama.pooling_type")
            .and_then(Value::as_u64);
        assert_eq!(key, Some(u64::from(pooling)));
    }
}
