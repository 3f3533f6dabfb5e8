//! Tuning: gradients by every parameter against differences, whole runs, refusals.

use crate::support::gguf::Tiny;
use crate::support::program::{bash, fail_each, json, start, succeeds};
use crate::support::{models, text};
use half::f16;
use quantier::convert;
use quantier::input::{Input, Source};
use quantier_arch::TensorId;
use quantier_core::progress::Silent;
use quantier_core::rng::Rng;
use quantier_engine::model::{
    BaseLogits, Batch, Changed, Engine, Head, Hidden, Options, ParameterGradients, Result,
    RowGradient, Rows,
};
use quantier_gguf::gguf::{Array, Value};
use quantier_gguf::types::GgmlType;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The model with all numbers in f32.
fn in_f32(mut model: Tiny) -> Tiny {
    for (info, data) in &mut model.tensors {
        if info.ggml_type == GgmlType::F16 {
            let halves = data.as_chunks().0.iter();
            let numbers = halves.map(|half| f16::from_le_bytes(*half).to_f32());
            *data = numbers.flat_map(f32::to_le_bytes).collect();
            info.ggml_type = GgmlType::F32;
        }
    }
    model
}

/// The model with biases of queries, outputs of attention and the second matrix of its FFN.
fn biased(mut model: Tiny, layers: usize) -> Tiny {
    let mut rng = Rng::new(8);
    for layer in 0..layers {
        for name in ["attn_q", "attn_output", "ffn_down"] {
            let numbers: Vec<f32> = (0..256).map(|_| rng.gaussian() * 0.02).collect();
            model = model.weights(&format!("blk.{layer}.{name}.bias"), &[256], numbers);
        }
    }
    model
}

/// Every layer's numbers with some noise.
fn noisy(mut model: Tiny, seed: u64) -> Tiny {
    let mut rng = Rng::new(seed);
    for (_, data) in &mut model.tensors {
        for bytes in data.as_chunks_mut().0 {
            let number = f32::from_le_bytes(*bytes);
            *bytes = (number * (1.0 + 0.05 * rng.gaussian())).to_le_bytes();
        }
    }
    model
}

struct Logits<'b>(&'b Hidden, &'b Head<'b>);

impl BaseLogits for Logits<'_> {
    fn logits(&self, chunk: usize, positions: Range<usize>) -> Result<Rows> {
        let rows = self.0.rows_of(chunk)?.range(positions);
        self.1.logits(&rows, chunk, None)
    }
}

/// The sum of all gradients by tensor.
#[derive(Default)]
struct Sums(BTreeMap<TensorId, BTreeMap<usize, f64>>);

impl ParameterGradients for Sums {
    fn add(&mut self, gradient: RowGradient<'_>) {
        let sums = self.0.entry(gradient.tensor).or_default();
        let first = gradient.first * gradient.columns;
        for (i, g) in gradient.numbers.iter().enumerate() {
            *sums.entry(first + i).or_default() += f64::from(*g);
        }
    }
}

fn opened<T>(model: &Tiny, then: impl FnOnce(&Input<'_>, &Engine<'_>) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::open(&model.write(&dir.path().join("model.gguf"))).unwrap();
    let input = source.reader(&convert::Job::default()).unwrap();
    let engine = Engine::new(&input, &Options::default()).unwrap();
    engine.check().unwrap();
    then(&input, &engine)
}

/// Compares the gradient by each tensor, along a random direction, with differences of the divergence.
/// Returns the names of the tensors with a gradient.
fn check_gradients(base: &Tiny, model: &Tiny) -> Vec<String> {
    let tokens = text::tokens(3 * 24);
    let chunks: Vec<Vec<u32>> = tokens.chunks(24).map(<[u32]>::to_vec).collect();
    opened(base, |_, base| {
        let hidden = base.run(&chunks, 0..24, None, &Silent).unwrap();
        let head = base.head().unwrap();
        let logits = Logits(&hidden, &head);
        let batch = Batch {
            chunks: &chunks,
            base: &logits,
        };
        opened(model, |input, engine| {
            let mut sums = Sums::default();
            let nats = engine
                .divergence_gradients(&batch, &mut sums, &Silent)
                .unwrap();
            let by_chunk = engine.divergence(&batch, &Silent).unwrap();
            assert!((nats - by_chunk.iter().sum::<f64>() / 3.0).abs() < 1e-6);
            assert!(nats > 1e-3, "{nats}");
            let mut names = Vec::new();
            for (id, gradient) in &sums.0 {
                let tensor = input.tensor(*id);
                let mut buffer = Vec::new();
                let rows = 0..tensor.info.shape.rows();
                let bytes = input.read(tensor, rows, &mut buffer).unwrap();
                let numbers: Vec<f32> = (bytes.as_chunks().0.iter())
                    .map(|bytes| f32::from_le_bytes(*bytes))
                    .collect();
                let mut rng = Rng::new(u64::from(id.0));
                let direction: Vec<f32> = numbers
                    .iter()
                    .map(|x| (x.abs() + 0.01) * rng.gaussian())
                    .collect();
                let moved = |by: f32| {
                    let places = numbers.iter().zip(&direction);
                    let bytes = places
                        .flat_map(|(x, d)| (x + by * d).to_le_bytes())
                        .collect();
                    let changed = Arc::new(Changed::from([(*id, bytes)]));
                    let engine = engine.changing(changed).unwrap();
                    engine
                        .divergence(&batch, &Silent)
                        .unwrap()
                        .iter()
                        .sum::<f64>()
                        / 3.0
                };
                const STEP: f32 = 4e-3;
                let outer = moved(2.0 * STEP) - moved(-2.0 * STEP);
                let inner = moved(STEP) - moved(-STEP);
                let measured = (8.0 * inner - outer) / (12.0 * f64::from(STEP));
                let computed: f64 = gradient
                    .iter()
                    .map(|(at, g)| g * f64::from(direction[*at]))
                    .sum();
                let name = &tensor.info.name;
                assert!(
                    (measured - computed).abs() < 2e-2 * computed.abs().max(nats / 10.0),
                    "{name}: {computed}, measured {measured}"
                );
                names.push(name.to_string());
            }
            names
        })
    })
}

#[test]
fn gradients_by_all_parameters_match_differences() {
    let model = biased(in_f32(models::shortened(2)), 2);
    let names = check_gradients(&model, &noisy(biased(in_f32(models::shortened(2)), 2), 3));
    let all: Vec<String> = model
        .tensors
        .iter()
        .map(|(info, _)| info.name.to_string())
        .collect();
    assert_eq!(names.len(), all.len(), "{names:?}");
}

#[test]
fn tied_embeddings_have_the_gradients_of_output_and_lookups() {
    let tied = || {
        let mut model = in_f32(models::shortened(1));
        model
            .tensors
            .retain(|(info, _)| info.name != "output.weight");
        model
    };
    let names = check_gradients(&tied(), &noisy(tied(), 4));
    assert!(names.contains(&"token_embd.weight".into()));
}

/// All experts are used: a choice that jumps within a difference has no derivative.
#[test]
fn experts_have_gradients() {
    let model = || in_f32(models::experts().set("llama.expert_used_count", Value::U32(4)));
    let names = check_gradients(&model(), &noisy(model(), 5));
    assert!(names.iter().any(|name| name.contains("ffn_down_exps")));
}

/// A directory with a model of one layer, a quantized form and a text.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    models::shortened(1).write(&dir.path().join("f16.gguf"));
    std::fs::write(dir.path().join("prose.txt"), text::prose(24_000)).unwrap();
    std::fs::write(dir.path().join("sums.txt"), text::numbers(24_000)).unwrap();
    succeeds(dir.path(), "quantize f16.gguf q2.gguf Q2_K");
    dir
}

/// A short run.
const TUNE: &str = "tune f16.gguf q2.gguf -f prose.txt -f sums.txt -c 64 --steps 20 --batch 4";

fn bytes(dir: &Path, name: &str) -> Vec<u8> {
    std::fs::read(dir.join(name)).unwrap()
}

#[test]
fn impossible_runs_are_refused() {
    let dir = place();
    let dir = dir.path();
    let mut other = models::shortened(1);
    let tokens = other.metadata.get("tokenizer.ggml.tokens");
    let tokens = tokens.and_then(Value::as_array).unwrap();
    let mut tokens: Vec<Vec<u8>> = tokens.strings().map(<[u8]>::to_vec).collect();
    tokens[300..].rotate_left(1000);
    let tokens = Value::Array(Array::of_strings(tokens));
    other.metadata.set("tokenizer.ggml.tokens", tokens);
    other.write(&dir.join("other.gguf"));
    models::shortened(2).write(&dir.join("two.gguf"));
    std::fs::write(dir.join("short.txt"), text::prose(900)).unwrap();
    bash(dir, "head -c 8000 prose.txt >part.txt").success();
    let run = |rest: &str| format!("tune {rest} -c 64 --steps 4 -o out.gguf");
    let rows = [
        (
            run("f16.gguf q2.gguf -f short.txt"),
            ["for training", "in all"],
        ),
        (
            run("other.gguf q2.gguf -f prose.txt"),
            ["not a quantized form", "another vocabulary"],
        ),
        (
            run("f16.gguf two.gguf -f prose.txt"),
            ["not a quantized form", "'blk.1.attn_q.weight', which"],
        ),
        (
            run("f16.gguf q2.gguf -f prose.txt --eval part.txt"),
            ["part.txt has", "in common with prose.txt"],
        ),
        (
            "tune f16.gguf q2.gguf -f prose.txt -c 64 -o q2.gguf".to_owned(),
            ["q2.gguf", "exists"],
        ),
    ];
    let rows: Vec<(&str, &[&str])> = rows
        .iter()
        .map(|(args, parts)| (&**args, &parts[..]))
        .collect();
    fail_each(dir, &rows);
}

/// Longer than a few seconds.
mod slow {
    use super::*;

    #[test]
    fn tuned_files_keep_their_layout_and_have_fewer_nats() {
        let dir = place();
        let dir = dir.path();
        let report = json(dir, &format!("{TUNE} -o out.gguf --json"));
        for text in report["texts"].as_array().unwrap() {
            let nats = |key: &str| text[key].as_f64().unwrap();
            assert!(nats("after") < 0.97 * nats("before"), "{report}");
        }
        assert_eq!(report["without_gradient"], serde_json::json!([]));
        let [before, after] = ["q2.gguf", "out.gguf"].map(|name| bytes(dir, name));
        assert_eq!(before.len(), after.len());
        let model = quantier_gguf::gguf::Model::open(&dir.join("q2.gguf")).unwrap();
        let first = model
            .tensors
            .iter()
            .map(|tensor| tensor.offset as usize)
            .min()
            .unwrap();
        assert!(before[..first] == after[..first] && before != after);
        succeeds(dir, "verify out.gguf");
        assert!(!dir.join("out.gguf.resume").exists());
        // Each kind alone changes something; scales change nothing but their own bytes.
        succeeds(dir, &format!("{TUNE} -o scales.gguf --train scales"));
        let scales = bytes(dir, "scales.gguf");
        let tensor = model
            .tensors
            .iter()
            .find(|t| t.info.ggml_type == GgmlType::Q2_K)
            .unwrap();
        let data = tensor.offset as usize..(tensor.offset + tensor.info.bytes()) as usize;
        let blocks = before[data.clone()].chunks(84).zip(scales[data].chunks(84));
        let mut changed = 0;
        for (before, after) in blocks {
            assert_eq!(before[..80], after[..80]);
            changed += usize::from(before != after);
        }
        assert!(changed > 0);
    }

    #[test]
    fn killed_runs_go_on_to_the_same_bytes() {
        let dir = place();
        let dir = dir.path();
        succeeds(dir, &format!("{TUNE} -o whole.gguf --no-snapshot"));
        let line = format!("{TUNE} -o out.gguf --snapshot-every 0");
        let mut child = start(dir, &line);
        let snapshot = dir.join("out.gguf.resume");
        while !snapshot.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!dir.join("out.gguf").exists());
        succeeds(dir, &line);
        assert!(bytes(dir, "out.gguf") == bytes(dir, "whole.gguf"));
        assert!(!snapshot.exists());
    }
}
