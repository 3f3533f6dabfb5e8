//! Time to open a model with a large vocabulary: 260,000 tokens with scores and types, and 500,000
//! merges.

use criterion::{Criterion, criterion_group, criterion_main};
use quantier_gguf::gguf::{
    Array, DEFAULT_ALIGNMENT, Files, Layout, Metadata, Model, Value, ValueType, Writer,
};

const TOKENS: u32 = 260_000;
const MERGES: u32 = 500_000;

/// A vocabulary with strings of realistic length.
fn vocabulary() -> Metadata<'static> {
    let token = |i: u32| format!("{}{i:x}", &"tokenization"[..(i % 12) as usize]);
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", Value::str("llama"));
    metadata.set(
        "tokenizer.ggml.tokens",
        Value::Array(Array::of_strings((0..TOKENS).map(token))),
    );
    let scores = Array::of_values(ValueType::F32, (0..TOKENS).map(|i| Value::F32(-(i as f32))));
    metadata.set("tokenizer.ggml.scores", Value::Array(scores));
    let types = Array::of_values(ValueType::I32, (0..TOKENS).map(|_| Value::I32(1)));
    metadata.set("tokenizer.ggml.token_type", Value::Array(types));
    let merges = Array::of_strings((0..MERGES).map(|i| format!("{} {}", token(i), token(i / 2))));
    metadata.set("tokenizer.ggml.merges", Value::Array(merges));
    metadata
}

fn open(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("vocabulary.gguf");
    let layout = Layout::new(&vocabulary(), &[], DEFAULT_ALIGNMENT);
    Writer::create(&path, layout, &[])
        .and_then(Writer::finish)
        .expect("a file");

    c.bench_function("open a vocabulary of 260,000 tokens", |b| {
        b.iter(|| {
            let files = Files::open(&path).expect("the file");
            Model::parse(&files).expect("a model").metadata().len()
        });
    });
    c.bench_function("open it and walk over every token and merge", |b| {
        b.iter(|| {
            let files = Files::open(&path).expect("the file");
            let model = Model::parse(&files).expect("a model");
            let arrays = model
                .metadata()
                .iter()
                .filter_map(|(_, value)| value.as_array());
            arrays
                .flat_map(Array::strings)
                .map(<[u8]>::len)
                .sum::<usize>()
        });
    });
}

criterion_group!(benches, open);
criterion_main!(benches);
