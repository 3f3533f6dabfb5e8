use super::*;
use crate::factor::InputCurvature;
use crate::feedback::{descend, round_rows};
use crate::hessian::PairMeans;
use quantier_blocks::Codec;
use quantier_core::progress::Silent;
use quantier_core::rng::Rng;
use quantier_gguf::types::GgmlType;

const N: usize = 512;

/// Strongly correlated inputs: each channel is a mixture of a few dominant directions and some
/// noise; two channels are zero.
fn inputs(rows: usize) -> Vec<f32> {
    const DIRECTIONS: usize = 24;
    let mut rng = Rng::new(3);
    let mut next = || rng.gaussian();
    let mixture: Vec<f32> = (0..DIRECTIONS * N).map(|_| next()).collect();
    let mut x = vec![0.0; rows * N];
    for row in x.chunks_exact_mut(N) {
        for (d, direction) in mixture.chunks_exact(N).enumerate() {
            let strength = next() / (1.0 + d as f32).sqrt();
            row.iter_mut()
                .zip(direction)
                .for_each(|(x, m)| *x += strength * m);
        }
        row.iter_mut().for_each(|x| *x += 0.3 * next());
        (row[7], row[300]) = (0.0, 0.0);
    }
    x
}

fn hessian(x: &[f32]) -> Vec<f32> {
    let mut mean = vec![0.0f32; N * N];
    let view = crate::matrix::View::new(x, x.len() / N, N, N);
    crate::matrix::multiply(view.transposed(), view, &mut mean, N, 1);
    mean.iter_mut().for_each(|c| *c /= (x.len() / N) as f32);
    mean
}

fn weights(rows: usize) -> Vec<f32> {
    let mut rng = Rng::new(9);
    let mut next = || rng.gaussian();
    (0..rows * N)
        .map(|i| next() * 0.02 * if i % 97 == 0 { 6.0 } else { 1.0 })
        .collect()
}

/// Squared error of the products with inputs.
fn error(x: &[f32], w: &[f32], codec: &Codec, blocks: &[u8]) -> f64 {
    let mut back = vec![0.0; w.len()];
    codec.dequantize_row(blocks, &mut back);
    back.iter_mut().zip(w).for_each(|(b, w)| *b -= w);
    let (rows, seen) = (w.len() / N, x.len() / N);
    let mut products = vec![0.0; rows * seen];
    crate::matrix::multiply(
        crate::matrix::View::new(&back, rows, N, N),
        crate::matrix::View::new(x, seen, N, N).transposed(),
        &mut products,
        seen,
        1,
    );
    products.iter().map(|p| f64::from(p * p)).sum()
}

/// All types, on inputs that the factor does not contain, with a number of rows that is not a
/// multiple of eight.
#[test]
fn feedback_reduces_the_error_of_every_type() {
    const ROWS: usize = 11;
    let x = inputs(1400);
    let (seen, unseen) = x.split_at(1200 * N);
    let mean = hessian(seen);
    let factor = InputFactor::new(&mean, N, DAMPING, 1).unwrap();
    let importance: Vec<f32> = mean.iter().step_by(N + 1).copied().collect();
    let w = weights(ROWS);
    let mut tried = 0;
    for codec in Codec::all().iter().filter(|codec| codec.takes_feedback()) {
        let row_bytes = codec.ggml_type.row_bytes(N as u64).unwrap() as usize;
        let (mut plain, mut fed) = (vec![0; ROWS * row_bytes], vec![0; ROWS * row_bytes]);
        for (x, y) in w.chunks_exact(N).zip(plain.chunks_exact_mut(row_bytes)) {
            codec.quantize_row(x, Some(&importance), y);
        }
        round_rows(codec, &factor, &mut w.clone(), &mut fed);
        assert_eq!(codec.first_fault(&fed), None);
        let [before, after] = [&plain, &fed].map(|blocks| error(unseen, &w, codec, blocks));
        assert!(
            after < 0.8 * before,
            "{}: {:.3} of the error",
            codec.ggml_type,
            after / before
        );
        tried += 1;
    }
    assert_eq!(tried, 25);
}

/// In every type the cost falls, no code changes that would raise it, and blocks have the values that were
/// computed with.
#[test]
fn coordinate_descent_reduces_the_cost_of_every_type() {
    const ROWS: usize = 11;
    let mean = hessian(&inputs(1200));
    let factor = InputFactor::new(&mean, N, DAMPING, 1).unwrap();
    let curvature = InputCurvature::new(mean, N, DAMPING);
    let w = weights(ROWS);
    let cost = |values: &[f32]| -> Vec<f64> {
        let of_row = |(values, w): (&[f32], &[f32])| {
            let errors: Vec<f64> = (values.iter().zip(w))
                .map(|(value, w)| f64::from(value - w))
                .collect();
            let slope = |j: usize| -> f64 {
                let h = curvature.row(j).iter().zip(&errors);
                h.map(|(h, e)| f64::from(*h) * e).sum()
            };
            (0..N).map(|j| slope(j) * errors[j]).sum()
        };
        values.chunks(N).zip(w.chunks(N)).map(of_row).collect()
    };
    let mut ratios = Vec::new();
    for codec in Codec::all().iter().filter(|codec| codec.takes_feedback()) {
        let mut blocks = vec![0; ROWS * codec.ggml_type.row_bytes(N as u64).unwrap() as usize];
        let mut values = w.clone();
        round_rows(codec, &factor, &mut values, &mut blocks);
        codec.dequantize_row(&blocks, &mut values);
        let before = cost(&values);
        descend(codec, &curvature, &w, &mut values, &mut blocks);
        let mut again = vec![0.0; values.len()];
        codec.dequantize_row(&blocks, &mut again);
        assert_eq!(values, again, "{}", codec.ggml_type);
        let after = cost(&values);
        for (before, after) in before.iter().zip(&after) {
            assert!(
                *after <= before * 1.0001,
                "{}: {before}, {after}",
                codec.ggml_type
            );
        }
        ratios.push(after.iter().sum::<f64>() / before.iter().sum::<f64>());
    }
    let largest = ratios.iter().copied().fold(0.0, f64::max);
    assert!(ratios.len() == 25 && largest < 0.99, "{ratios:?}");
}

#[test]
fn rows_are_rounded_independently() {
    let mean = hessian(&inputs(700));
    let factor = InputFactor::new(&mean, N, DAMPING, 1).unwrap();
    let curvature = InputCurvature::new(mean, N, DAMPING);
    let w = weights(11);
    for name in ["q4_K", "q5_0", "iq3_xxs", "iq1_m", "nvfp4"] {
        let codec = Codec::of(GgmlType::from_name(name).unwrap()).unwrap();
        let row_bytes = codec.ggml_type.row_bytes(N as u64).unwrap() as usize;
        let (mut all, mut one) = (vec![0; 11 * row_bytes], vec![0; row_bytes]);
        let round = |w: &[f32], blocks: &mut [u8]| {
            let mut values = w.to_vec();
            round_rows(codec, &factor, &mut values, blocks);
            descend(codec, &curvature, w, &mut values, blocks);
        };
        round(&w, &mut all);
        for row in [0, 9, 10] {
            round(&w[row * N..][..N], &mut one);
            let weights = |blocks: &[u8]| {
                let mut back = vec![0.0; N];
                codec.dequantize_row(blocks, &mut back);
                back
            };
            let (alone, among) = (weights(&one), weights(&all[row * row_bytes..][..row_bytes]));
            // Products of other shapes may round differently, which can change the rounding of
            // ties.
            let same = alone.iter().zip(&among).filter(|(a, b)| a == b).count();
            assert!(
                same > N * 9 / 10,
                "{name}, row {row}: {same} of {N} weights are the same"
            );
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    let mean = hessian(&inputs(700));
    let factor = InputFactor::new(&mean, N, DAMPING, 1).unwrap();
    let curvature = InputCurvature::new(mean, N, DAMPING);
    for codec in Codec::all().iter().filter(|codec| codec.takes_feedback()) {
        let mut out = vec![1; codec.ggml_type.row_bytes(N as u64).unwrap() as usize];
        let mut back = vec![0.0; N];
        round_rows(codec, &factor, &mut back, &mut out);
        descend(codec, &curvature, &[0.0; N], &mut back, &mut out);
        assert!(back.iter().all(|w| *w == 0.0), "{}", codec.ggml_type);
    }
}

/// Inputs at half strength in the rounded model: the target shift compensates this and restores the
/// products. Contradicting held-out rows reduce the shift to zero.
#[test]
fn target_shifts_are_scaled_by_held_out_rows() {
    let z = inputs(1200);
    let pairs = |sign: f32| {
        let (summed, held) = z.split_at(1000 * N);
        let cross: Vec<f32> = hessian(summed).iter().map(|c| c * 0.5).collect();
        let samples = [
            held.iter().map(|z| z * (1.0 + 0.5 * sign)).collect(),
            held.to_vec(),
        ];
        PairMeans {
            columns: N,
            rows: 1000,
            mean: hessian(summed),
            cross,
            differences: None,
            samples,
        }
    };
    let w = weights(8);
    let rounder = Rounder::new(GgmlType::Q8_0, N).unwrap();
    let round = |pairs: PairMeans| {
        let inputs = InputStatistics::of_pairs(pairs).unwrap().unwrap();
        let knowledge = Knowledge {
            inputs: Some(&inputs),
            ..Knowledge::default()
        };
        let mut blocks = vec![0; 8 * rounder.row_bytes()];
        let proof = rounder.round(&w, &knowledge, &mut blocks, &Silent).unwrap();
        (blocks, proof)
    };
    let (_, proof) = round(pairs(1.0));
    // The reference cannot compensate the lost half; feedback does up to damping.
    assert!(
        proof.by_reference == 0 && proof.taken < 1e-2 * proof.reference,
        "{proof:?}"
    );
    let contradicted = round(pairs(-1.0));
    let without_shift = round(PairMeans {
        cross: vec![0.0; N * N],
        ..pairs(-1.0)
    });
    assert!(
        contradicted == without_shift,
        "{:?}, {:?}",
        contradicted.1,
        without_shift.1
    );
}
