//! The recurrence of gated delta nets beside the matrix products of the same layer, with the shapes
//! of Qwen 3.5.
//!
//! ```text
//! cargo bench --bench delta [-- POSITIONS]      default: 512 positions
//! ```
//!
//! Median time of some runs on one thread. The share is that of the recurrence in both together;
//! other parts of a layer (convolution, norms, activations) would only lower it.

use quantier_arch::DeltaHeads;
use quantier_arch::hyper::DeltaNumbers;
use quantier_core::rng::Rng;
use quantier_engine::model::{delta_rule, rows_times_rows};
use std::time::{Duration, Instant};

/// Number of runs.
const RUNS: usize = 7;

/// Shape of a layer.
struct Shape {
    name: &'static str,
    hidden: usize,
    ffn: usize,
    key_heads: usize,
    value_heads: usize,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "hidden 1024, 16 heads",
        hidden: 1024,
        ffn: 3584,
        key_heads: 16,
        value_heads: 16,
    },
    Shape {
        name: "hidden 1024, 16 and 32 heads",
        hidden: 1024,
        ffn: 3584,
        key_heads: 16,
        value_heads: 32,
    },
    Shape {
        name: "hidden 2560, 16 and 32 heads",
        hidden: 2560,
        ffn: 9216,
        key_heads: 16,
        value_heads: 32,
    },
];
/// Length of every head.
const HEAD: usize = 128;

fn random(rng: &mut Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.gaussian()).collect()
}

/// Normalizes rows to length 1.
fn unit(mut rows: Vec<f32>) -> Vec<f32> {
    for row in rows.chunks_exact_mut(HEAD) {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= length);
    }
    rows
}

/// Median duration of `run`.
fn time(mut run: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[RUNS / 2]
}

fn measure(shape: &Shape, positions: usize) {
    let Shape {
        name,
        hidden,
        ffn,
        key_heads,
        value_heads,
    } = *shape;
    let numbers = DeltaNumbers {
        key_heads,
        value_heads,
        sharing: DeltaHeads::Tiled,
        key_length: HEAD,
        value_length: HEAD,
        kernel: 4,
    };
    let (keys, values) = (numbers.keys(), numbers.values());
    let mut rng = Rng::new(3);
    let rates = |rng: &mut Rng| -> Vec<f32> {
        let count = positions * value_heads;
        (0..count).map(|_| rng.uniform()).collect()
    };
    let streams = [
        unit(random(&mut rng, positions * keys)),
        unit(random(&mut rng, positions * keys)),
        random(&mut rng, positions * values),
        rates(&mut rng).iter().map(|x| -0.1 * x).collect(),
        rates(&mut rng),
    ];
    let scan = time(|| {
        std::hint::black_box(delta_rule(numbers, streams.clone()));
    });
    // Rows and columns of queries, keys and values; gates; rates; output; feed-forward network.
    let matrices = [
        [2 * keys + values, hidden],
        [values, hidden],
        [2 * value_heads, hidden],
        [hidden, values],
        [2 * ffn, hidden],
        [hidden, ffn],
    ];
    let mut products = Duration::ZERO;
    for [rows, columns] in matrices {
        let (x, w) = (
            random(&mut rng, positions * columns),
            random(&mut rng, rows * columns),
        );
        let mut y = vec![0.0; positions * rows];
        products += time(|| rows_times_rows(&x, &w, [positions, rows, columns], &mut y));
    }
    println!(
        "{name}: recurrence {:.1} ms, products {:.1} ms, share {:.1}%",
        scan.as_secs_f64() * 1e3,
        products.as_secs_f64() * 1e3,
        100.0 * scan.as_secs_f64() / (scan + products).as_secs_f64()
    );
}

fn main() {
    let given = std::env::args().find_map(|argument| argument.parse().ok());
    let positions = given.unwrap_or(512);
    println!("{positions} positions, one thread");
    for shape in &SHAPES {
        measure(shape, positions);
    }
}
