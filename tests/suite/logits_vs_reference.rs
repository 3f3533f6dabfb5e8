//! Statistics of two logits files of llama-perplexity (the same text with a model and a quantized one), beside the
//! output of `llama-perplexity --kl-divergence`:
//!
//! QUANTIER_LOGITS_BASE=base.kld QUANTIER_LOGITS=quantized.kld \
//!     cargo test --release --test suite logits_vs_reference:: -- --ignored --nocapture

use quantier_engine::evaluate::{score, statistics::Statistics};
use quantier_gguf::logits::{Logits, encode};

#[test]
#[ignore = "needs files that the reference wrote: see the top of this file"]
fn statistics_of_two_logits_files() {
    let open = |key: &str| Logits::open(std::env::var_os(key).expect(key).as_ref()).unwrap();
    let (base, other) = (open("QUANTIER_LOGITS_BASE"), open("QUANTIER_LOGITS"));
    let shape = base.shape();
    assert_eq!((shape, base.tokens()), (other.shape(), other.tokens()));
    let (mut b, mut o) = (
        vec![0.0; shape.n_vocab as usize],
        vec![0.0; shape.n_vocab as usize],
    );
    let (mut again, mut decoded) = (vec![0; shape.row_bytes()], vec![0.0; b.len()]);
    let mut rows = Vec::new();
    for chunk in 0..shape.n_chunk as usize {
        for row in 0..shape.rows() {
            base.row(chunk, row, &mut b).unwrap();
            other.row(chunk, row, &mut o).unwrap();
            let label = base.tokens()[(chunk + 1) * shape.n_ctx as usize - shape.rows() + row];
            let stored = score::Distribution::of_stored(&b).unwrap();
            let logits = score::Distribution::of_logits(&o).unwrap();
            rows.push(score::compare(&stored, &logits, label).unwrap());
            // Encoding a decoded row gives the same codes, so the same values up to the last bits
            // of scale and min.
            encode(&b, 0.0, &mut again);
            let scale = f32::from_le_bytes(again[..4].try_into().unwrap());
            let min = f32::from_le_bytes(again[4..8].try_into().unwrap());
            for (out, code) in decoded.iter_mut().zip(again[8..].as_chunks().0) {
                *out = scale * f32::from(u16::from_le_bytes(*code)) + min;
            }
            assert!(
                b.iter().zip(&decoded).all(|(x, y)| (x - y).abs() < 2e-5),
                "chunk {chunk} row {row}"
            );
        }
    }
    println!("{}", Statistics::of(&[&rows]).unwrap());
}
