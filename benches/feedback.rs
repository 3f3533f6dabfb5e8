//! Rounding with error feedback on real matrices: time and remaining error, beside plain rounding.
//!
//! ```text
//! [QUANTIER_WEIGHTS=FILE.safetensors] cargo bench --bench feedback
//! ```
//!
//! Inputs are synthetic: the eigenvalues of their Hessian fall as a power of their index, in
//! directions that mix all channels, and a few channels dominate, as in activations of language
//! models. The error is measured on held-out inputs.

use quantier_blocks::Codec;
use quantier_core::progress::Silent;
use quantier_core::rng::Rng;
use quantier_engine::model::rows_times_rows;
use quantier_gguf::safetensors;
use quantier_gguf::types::GgmlType;
use quantier_round::{InputStatistics, Knowledge, Rounder};
use rayon::prelude::*;
use std::time::Instant;

/// Rows per task of a thread.
const BAND: usize = 128;

/// Synthetic inputs, `[count, n]`.
fn made_up(rng: &mut Rng, mixture: &[f32], count: usize, n: usize) -> Vec<f32> {
    let strengths: Vec<f32> = (0..count * n)
        .map(|i| rng.gaussian() * ((i % n + 1) as f32).powf(-0.4))
        .collect();
    let mut x = vec![0.0; count * n];
    let bands = x.par_chunks_mut(64 * n).zip(strengths.par_chunks(64 * n));
    bands.for_each(|(x, s)| rows_times_rows(s, mixture, [s.len() / n, n, n], x));
    for row in x.chunks_exact_mut(n) {
        row.iter_mut().step_by(n / 6).for_each(|x| *x *= 20.0);
    }
    x
}

/// Mean of `x x^T`.
fn covariance(x: &[f32], n: usize) -> Vec<f32> {
    let rows = x.len() / n;
    let mut turned = vec![0.0f32; x.len()];
    for (i, row) in x.chunks_exact(n).enumerate() {
        row.iter()
            .enumerate()
            .for_each(|(j, x)| turned[j * rows + i] = *x);
    }
    let mut mean = vec![0.0f32; n * n];
    let bands = mean
        .par_chunks_mut(64 * n)
        .zip(turned.par_chunks(64 * rows));
    bands.for_each(|(mean, some)| {
        rows_times_rows(some, &turned, [some.len() / rows, n, rows], mean)
    });
    mean.iter_mut().for_each(|c| *c /= rows as f32);
    mean
}

/// Rounds all rows on all threads.
fn rounded(
    codec: &Codec,
    w: &[f32],
    n: usize,
    one: impl Fn(&[f32], &mut [u8]) + Sync,
) -> (Vec<u8>, f64) {
    let row_bytes = codec.ggml_type.row_bytes(n as u64).expect("whole blocks") as usize;
    let mut out = vec![0; w.len() / n * row_bytes];
    let start = Instant::now();
    w.par_chunks(BAND * n)
        .zip(out.par_chunks_mut(BAND * row_bytes))
        .for_each(|(w, out)| one(w, out));
    (out, start.elapsed().as_secs_f64())
}

/// Squared error of the outputs, relative to the squared outputs.
fn error(codec: &Codec, w: &[f32], n: usize, blocks: &[u8], x: &[f32]) -> f64 {
    let mut change = vec![0.0; w.len()];
    codec.dequantize_row(blocks, &mut change);
    change.iter_mut().zip(w).for_each(|(c, w)| *c -= w);
    let squares = |rows: &[f32]| -> f64 {
        let mut products = vec![0.0; rows.len() / n * (x.len() / n)];
        rows_times_rows(rows, x, [rows.len() / n, x.len() / n, n], &mut products);
        products.iter().map(|p| f64::from(p * p)).sum()
    };
    squares(&change) / squares(w)
}

/// One matrix in some types: error and seconds of both roundings.
fn compare(name: &str, w: &[f32], n: usize, mixture: &[f32], types: &[GgmlType]) {
    let mut rng = Rng::new(23);
    let x = made_up(&mut rng, mixture, 4 * n, n);
    let unseen = made_up(&mut rng, mixture, 512, n);
    let mean = covariance(&x, n);
    let start = Instant::now();
    let inputs = InputStatistics::unjudged(mean.clone(), n).expect("a covariance");
    println!(
        "\n{name}, {} x {n}: the factor took {:.2} s\n",
        w.len() / n,
        start.elapsed().as_secs_f64()
    );
    println!(
        "| type | error, plain | error, feedback | ratio | s, plain | s, feedback |\n|---|---|---|---|---|---|"
    );
    let importance: Vec<f32> = mean.iter().step_by(n + 1).copied().collect();
    for codec in types.iter().filter_map(|t| Codec::of(*t)) {
        let row_bytes = codec.ggml_type.row_bytes(n as u64).expect("whole blocks") as usize;
        let (plain, plain_s) = rounded(codec, w, n, |w, out| {
            let rows = w.chunks_exact(n).zip(out.chunks_exact_mut(row_bytes));
            rows.for_each(|(w, out)| codec.quantize_row(w, Some(&importance), out));
        });
        let (fed, fed_s) = rounded(codec, w, n, |w, out| {
            let knowledge = Knowledge {
                inputs: Some(&inputs),
                ..Knowledge::default()
            };
            let rounder = Rounder::new(codec.ggml_type, n).expect("whole blocks");
            rounder
                .round(w, &knowledge, out, &Silent)
                .expect("never cancelled");
        });
        let [before, after] = [&plain, &fed].map(|blocks| error(codec, w, n, blocks, &unseen));
        let ratio = after / before;
        println!(
            "| {} | {before:.3e} | {after:.3e} | {ratio:.3} | {plain_s:.2} | {fed_s:.2} |",
            codec.ggml_type
        );
    }
}

/// The f32 matrices of a file with rows of whole blocks.
fn matrices(path: &std::path::Path) -> Vec<(String, usize, Vec<f32>)> {
    let file = std::fs::read(path).expect("the file of QUANTIER_WEIGHTS");
    let header = safetensors::parse(&file).expect("safetensors");
    let of = |t: &safetensors::TensorInfo| {
        let [_, n] = t.shape[..] else { return None };
        let numbers = file[t.range.clone()]
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
            .collect();
        (t.dtype == safetensors::Dtype::F32 && n % 256 == 0).then_some((
            t.name.clone(),
            n as usize,
            numbers,
        ))
    };
    header.tensors.iter().filter_map(of).collect()
}

fn main() {
    let with_levels: Vec<GgmlType> = Codec::all()
        .iter()
        .filter(|codec| codec.takes_feedback())
        .map(|codec| codec.ggml_type)
        .collect();
    let mix = |rng: &mut Rng, n: usize| -> Vec<f32> {
        (0..n * n)
            .map(|_| rng.gaussian() / (n as f32).sqrt())
            .collect()
    };
    let mut rng = Rng::new(17);
    if let Some(path) = std::env::var_os("QUANTIER_WEIGHTS") {
        let mut mixtures = std::collections::BTreeMap::new();
        for (name, n, w) in matrices(path.as_ref()) {
            let mixture = mixtures.entry(n).or_insert_with(|| mix(&mut rng, n));
            compare(&name, &w, n, mixture, &with_levels);
        }
        return;
    }
    const N: usize = 4096;
    let w: Vec<f32> = (0..N * N).map(|_| rng.gaussian() * 0.02).collect();
    let mixture = mix(&mut rng, N);
    compare("made up", &w, N, &mixture, &with_levels);
}
