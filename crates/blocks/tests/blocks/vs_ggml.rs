//! Differential test of every block format against the real ggml.
//!
//! Ignored by default, as it needs the reference. To run it:
//!
//! ```text
//! QUANTIER_REFERENCE_BIN=$(scripts/reference.sh) cargo test --release -p quantier-blocks --test blocks vs_ggml -- --ignored
//! ```
//!
//! `QUANTIER_BLOCKS` sets the number of blocks per type (default 20,000; the full comparison takes
//! 1,000,000), `QUANTIER_TYPES` (comma-separated) the types.

use crate::ggml::{Ggml, stays_within};
use crate::inputs::{Importance, Weights};
use quantier_blocks::Codec;
use quantier_blocks::types::GgmlType;
use quantier_core::rng::Rng;

/// Blocks per row, by seed: 3 catches state carried from block to block, and odd counts; the other
/// lengths vary the sums over a whole row.
const BLOCKS_PER_ROW: [usize; 5] = [3, 1, 8, 5, 33];
/// Rows with common importance weights, like the rows of a matrix.
const ROWS: usize = 8;

fn blocks_wanted() -> usize {
    std::env::var("QUANTIER_BLOCKS")
        .map_or(20_000, |n| n.parse().expect("QUANTIER_BLOCKS is a number"))
}

fn types_wanted() -> Vec<&'static Codec> {
    let names = std::env::var("QUANTIER_TYPES").unwrap_or_default();
    let wanted: Vec<&str> = names.split(',').filter(|n| !n.is_empty()).collect();
    let codecs: Vec<_> = Codec::all()
        .iter()
        .filter(|c| {
            wanted.is_empty()
                || wanted
                    .iter()
                    .any(|n| n.eq_ignore_ascii_case(c.ggml_type.name()))
        })
        .collect();
    assert!(!codecs.is_empty(), "QUANTIER_TYPES names no type: {names}");
    codecs
}

fn quantize_rows(
    codec: &Codec,
    weights: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
) -> Vec<u8> {
    let row_bytes = codec.ggml_type.row_bytes(row_len as u64).unwrap() as usize;
    let mut blocks = vec![0xa5u8; weights.len() / row_len * row_bytes];
    for (x, y) in weights
        .chunks_exact(row_len)
        .zip(blocks.chunks_exact_mut(row_bytes))
    {
        codec.quantize_row(x, importance, y);
    }
    blocks
}

/// The rows with defined bytes in ggml, and those bytes.
///
/// Where ggml aborts, our row must have a fault.
fn defined_rows(
    ggml: &Ggml,
    codec: &Codec,
    weights: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
) -> (Vec<f32>, Vec<u8>) {
    let t = codec.ggml_type;
    if let Some(theirs) = ggml.quantize(t, weights, row_len, importance) {
        return (weights.to_vec(), theirs);
    }
    let rows = weights.chunks_exact(row_len).filter(|row| {
        let accepted = ggml.quantize(t, row, row_len, importance).is_some();
        let faulty = || {
            codec
                .first_fault(&quantize_rows(codec, row, row_len, importance))
                .is_some()
        };
        assert!(
            accepted || !stays_within(t, row, importance) || faulty(),
            "{t}: no fault where ggml gives up: {row:?}"
        );
        accepted
    });
    let accepted: Vec<f32> = rows.flatten().copied().collect();
    let theirs = ggml
        .quantize(t, &accepted, row_len, importance)
        .expect("each of these rows is accepted");
    (accepted, theirs)
}

/// Compares one type on `wanted` blocks; returns the number of compared blocks, and of those
/// without a defined result.
fn compare(ggml: &Ggml, codec: &Codec, wanted: usize) -> (usize, usize) {
    let t = codec.ggml_type;
    let (mut compared, mut undefined) = (0, 0);
    for seed in 0.. {
        let row_len = t.block_len().max(32) * BLOCKS_PER_ROW[seed as usize % BLOCKS_PER_ROW.len()];
        for kind in Weights::ALL {
            for importance_kind in Importance::ALL {
                if codec.needs_importance && importance_kind == Importance::None {
                    continue;
                }
                let mut rng = Rng::new(seed);
                let mut weights = vec![0.0; row_len * ROWS];
                weights
                    .chunks_exact_mut(row_len)
                    .for_each(|row| kind.fill(&mut rng, row));
                let importance = importance_kind.make(&mut rng, row_len);
                let context = || {
                    format!("{t}: {kind:?} weights, {importance_kind:?} importance, seed {seed}")
                };

                let mut ours = quantize_rows(codec, &weights, row_len, importance.as_deref());
                let total = weights.len();
                let theirs;
                (weights, theirs) =
                    defined_rows(ggml, codec, &weights, row_len, importance.as_deref());
                if weights.len() < total {
                    assert_eq!(kind, Weights::Huge, "{}: ggml gives up", context());
                    undefined += (total - weights.len()) / t.block_len();
                    ours = quantize_rows(codec, &weights, row_len, importance.as_deref());
                }
                if ours != theirs {
                    let at = ours.iter().zip(&theirs).position(|(a, b)| a != b).unwrap();
                    let (block, byte) = (at / t.block_bytes(), at % t.block_bytes());
                    let of = |b: &[u8]| b[block * t.block_bytes()..][..t.block_bytes()].to_vec();
                    panic!(
                        "{}: block {block} differs at byte {byte}\nours   {:02x?}\nggml's {:02x?}\nweights {:?}",
                        context(),
                        of(&ours),
                        of(&theirs),
                        &weights[block * t.block_len()..][..t.block_len()]
                    );
                }
                let mut back = vec![0.0; weights.len()];
                codec.dequantize_row(&ours, &mut back);
                if let Some(theirs_back) = ggml.dequantize(t, &theirs) {
                    let same = back
                        .iter()
                        .zip(&theirs_back)
                        .all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
                    assert!(same, "{}: dequantized weights differ", context());
                }
                assert_eq!(
                    codec.first_fault(&ours).is_none(),
                    ggml.validate(t, &theirs),
                    "{}: validity",
                    context()
                );
                compared += weights.len() / t.block_len();
            }
        }
        if compared >= wanted {
            break;
        }
    }
    (compared, undefined)
}

#[test]
#[ignore = "needs the reference: see the top of this file"]
fn blocks_match_ggml() {
    let ggml = Ggml::load();
    for codec in types_wanted() {
        let start = std::time::Instant::now();
        let (compared, undefined) = compare(&ggml, codec, blocks_wanted());
        println!(
            "{:8} {compared:9} blocks compared, 0 different, {undefined} undefined in ggml ({:.0} s)",
            codec.ggml_type,
            start.elapsed().as_secs_f64()
        );
    }
}

/// Rounding to halves and bfloat16: around all of their numbers and all ties, from subnormals to
/// overflow, infinities and NaN; and for f32 the same numbers.
#[test]
#[ignore = "needs the reference: see the top of this file"]
fn plain_numbers_round_like_ggml() {
    let ggml = Ggml::load();
    // The lowest 13 bits matter for halves, 16 for bfloat16; below 2^-14, more of them matter for
    // halves.
    let ends = [0u32, 1, 0x0800, 0x0fff, 0x1000, 0x1001, 0x1800, 0x1fff];
    let of_half = (0..=u32::MAX >> 13).flat_map(|top| ends.map(|end| top << 13 | end));
    let ends = [0x7fffu32, 0x8000, 0x8001];
    let of_bf16 = (0..=u32::MAX >> 16).flat_map(|top| ends.map(|end| top << 16 | end));
    let numbers: Vec<f32> = of_half.chain(of_bf16).map(f32::from_bits).collect();
    for t in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
        let codec = Codec::of(t).unwrap();
        let theirs = ggml
            .quantize(t, &numbers, numbers.len(), None)
            .expect("ggml accepts plain numbers");
        let mut ours = vec![0; theirs.len()];
        codec.quantize_row(&numbers, None, &mut ours);
        let size = t.block_bytes();
        for (i, (a, b)) in ours.chunks(size).zip(theirs.chunks(size)).enumerate() {
            assert_eq!(
                a,
                b,
                "{t}: {:e} ({:#010x})",
                numbers[i],
                numbers[i].to_bits()
            );
        }
        println!("{t:8} {:9} numbers compared, 0 different", numbers.len());
    }
}

/// Random bytes are blocks too: dequantization and validation beyond what quantizers write.
#[test]
#[ignore = "needs the reference: see the top of this file"]
fn random_bytes_dequantize_and_validate_as_in_ggml() {
    let ggml = Ggml::load();
    for codec in types_wanted() {
        let t = codec.ggml_type;
        let mut rng = Rng::new(7);
        for round in 0..2000 {
            let blocks: Vec<u8> = (0..t.block_bytes() * 2)
                .map(|_| rng.next_u64() as u8)
                .collect();
            assert_eq!(
                codec.first_fault(&blocks).is_none(),
                ggml.validate(t, &blocks),
                "{t}: validity, round {round}"
            );
            let mut ours = vec![0.0; t.block_len() * 2];
            codec.dequantize_row(&blocks, &mut ours);
            if let Some(theirs) = ggml.dequantize(t, &blocks) {
                for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                    assert!(
                        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
                        "{t}: weight {i}: {a} against {b}, round {round}"
                    );
                }
            }
        }
    }
}
