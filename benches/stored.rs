//! Weights of quantized checkpoints in f32, by one thread: bytes of f32 per second.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use quantier::convert::Checkpoint;
use std::hint::black_box;

#[path = "stored/mod.rs"]
#[allow(dead_code)]
mod model;

const ROWS: u64 = 1024;
const COLUMNS: u64 = 4096;
/// Weights that a conversion reads at a time.
const TASK: u64 = 64 << 10;

fn widening(c: &mut Criterion) {
    let mut group = c.benchmark_group("stored");
    group.throughput(Throughput::Bytes(ROWS * COLUMNS * 4));
    for kind in model::KINDS {
        // Codes differ; as scales, all of these bytes are positive and finite.
        let byte = |i: usize| 0x20 + (i * 37 % 31) as u8;
        let dir = model::Model::new(*kind, ROWS, COLUMNS).write(byte);
        let checkpoint = Checkpoint::open(dir.path()).expect("a sound checkpoint");
        let source = &checkpoint.tensors[0];
        assert_eq!(source.shape, [ROWS, COLUMNS], "{kind:?}");
        let mut weights = vec![0.0; TASK as usize];
        group.bench_function(format!("{kind:?}"), |b| {
            b.iter(|| {
                for start in (0..ROWS * COLUMNS).step_by(TASK as usize) {
                    let read = checkpoint.numbers(source, start..start + TASK, &mut weights);
                    read.expect("sound scales");
                    black_box(&weights);
                }
            });
        });
    }
}

criterion_group!(benches, widening);
criterion_main!(benches);
