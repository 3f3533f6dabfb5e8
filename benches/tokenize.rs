//! Bytes of text tokenized per second, on one thread.
//!
//! QUANTIER_BENCH_TEXT          a text of some megabytes (default: this repository's prose, which is too short to be fair)
//! QUANTIER_BENCH_VOCABULARIES  GGUF files, separated by colons (default: that of the small trained model)

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quantier_gguf::gguf::{Files, Model};
use quantier_tokenizer::Tokenizer;
use std::path::Path;

fn tokenize(c: &mut Criterion) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = match std::env::var_os("QUANTIER_BENCH_TEXT") {
        Some(path) => std::fs::read_to_string(path).expect("the text"),
        None => ["README.md", "CONTRIBUTING.md", "docs/exactness.md"]
            .map(|name| std::fs::read_to_string(here.join(name)).expect("the repository's prose"))
            .concat(),
    };
    let vocabularies = std::env::var_os("QUANTIER_BENCH_VOCABULARIES")
        .unwrap_or_else(|| here.join("testdata/refmodel-f16.gguf").into_os_string());
    let mut group = c.benchmark_group("tokenize");
    group
        .throughput(Throughput::Bytes(text.len() as u64))
        .sample_size(10);
    for path in std::env::split_paths(&vocabularies) {
        let files = Files::open(&path).expect("a GGUF");
        let model = Model::parse(&files).expect("a model");
        let tokenizer = Tokenizer::from_gguf(model.metadata()).expect("a vocabulary");
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        group.bench_function(name, |b| {
            b.iter(|| tokenizer.encode(&text, true, false).len())
        });
    }
    group.finish();
}

criterion_group!(benches, tokenize);
criterion_main!(benches);
