//! Weights per second of one core: every block format quantized (with importance weights) by each
//! instruction set and, with `QUANTIER_REFERENCE_BIN` (printed by `scripts/reference.sh`), by the
//! real ggml, on the same rows; and dequantized into a matrix larger than any cache, beside a plain
//! copy of as many f32.
//!
//! ```text
//! QUANTIER_REFERENCE_BIN=$(scripts/reference.sh) cargo bench --bench blocks [-- FILTER]
//! ```
//!
//! `scripts/bench-quantize.sh` makes a table of it.

#[allow(dead_code)] // used by the tests
#[path = "../crates/blocks/tests/blocks/ggml.rs"]
mod ggml;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ggml::Ggml;
use quantier_blocks::Codec;
use quantier_blocks::simd::Isa;
use quantier_core::rng::Rng;
use std::time::Duration;

/// Rows of the quantized small matrix.
const COLUMNS: usize = 4096;
const ROWS: usize = 8;
/// Weights of the large matrix, 256 MiB of f32.
const LARGE: usize = 64 << 20;

fn inputs() -> (Vec<f32>, Vec<f32>) {
    let mut rng = Rng::new(17);
    let weights = (0..COLUMNS * ROWS).map(|_| rng.gaussian() * 0.03).collect();
    let importance = (0..COLUMNS).map(|_| rng.gaussian().exp()).collect();
    (weights, importance)
}

fn quantize(c: &mut Criterion) {
    let ggml = std::env::var_os("QUANTIER_REFERENCE_BIN").map(|_| Ggml::load());
    let (weights, importance) = inputs();
    for codec in Codec::all() {
        let t = codec.ggml_type;
        let mut group = c.benchmark_group(format!("quantize {t}"));
        group.throughput(Throughput::Elements((COLUMNS * ROWS) as u64));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_millis(600));
        let row_bytes = t.row_bytes(COLUMNS as u64).expect("whole blocks") as usize;
        let mut out = vec![0; row_bytes * ROWS];
        for isa in Isa::available() {
            group.bench_function(isa.name(), |b| {
                b.iter(|| {
                    for (x, row) in weights
                        .chunks_exact(COLUMNS)
                        .zip(out.chunks_exact_mut(row_bytes))
                    {
                        codec.quantize_row_with(isa, x, Some(&importance), row);
                    }
                });
            });
        }
        if let Some(ggml) = &ggml {
            let mut theirs = None;
            group.bench_function("ggml", |b| {
                b.iter(|| theirs = ggml.quantize(t, &weights, COLUMNS, Some(&importance)));
            });
            assert!(
                theirs.is_none_or(|theirs| theirs == out),
                "{t}: the bytes differ"
            );
        }
        group.finish();
    }
}

fn dequantize(c: &mut Criterion) {
    let (weights, importance) = inputs();
    let mut back = vec![0.0f32; LARGE];
    let plain: Vec<f32> = (0..LARGE).map(|i| i as f32).collect();
    let mut group = c.benchmark_group("dequantize");
    group.throughput(Throughput::Bytes(LARGE as u64 * 4));
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    group.bench_function("copy", |b| {
        b.iter_batched(
            || (),
            |()| back.copy_from_slice(&plain),
            BatchSize::PerIteration,
        )
    });
    drop(plain);
    for codec in Codec::all() {
        let row_bytes = codec
            .ggml_type
            .row_bytes(COLUMNS as u64)
            .expect("whole blocks") as usize;
        let mut rows = vec![0; row_bytes * ROWS];
        for (x, row) in weights
            .chunks_exact(COLUMNS)
            .zip(rows.chunks_exact_mut(row_bytes))
        {
            codec.quantize_row(x, Some(&importance), row);
        }
        let matrix = rows.repeat(LARGE / COLUMNS / ROWS);
        group.bench_function(codec.ggml_type.to_string(), |b| {
            b.iter(|| {
                for (row, x) in matrix
                    .chunks_exact(row_bytes)
                    .zip(back.chunks_exact_mut(COLUMNS))
                {
                    codec.dequantize_row(row, x);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, quantize, dequantize);
criterion_main!(benches);
