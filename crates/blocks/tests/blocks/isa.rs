//! Every instruction set of this CPU against the scalar one, for every block format: the same bytes
//! from quantizing, the same bits from dequantizing.
//!
//! `QUANTIER_BLOCKS` sets the number of blocks per type (default 4,000), `QUANTIER_TYPES`
//! (comma-separated) the types.

use crate::inputs::{Importance, Weights};
use quantier_blocks::Codec;
use quantier_blocks::simd::Isa;
use quantier_core::rng::Rng;

/// Blocks per row, by seed: one block, part of a vector of blocks, a whole vector, and more with
/// every remainder.
const BLOCKS_PER_ROW: [usize; 7] = [3, 1, 8, 5, 33, 16, 23];

fn quantized(isa: Isa, codec: &Codec, weights: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut row = vec![0xa5; codec.ggml_type.row_bytes(weights.len() as u64).unwrap() as usize];
    codec.quantize_row_with(isa, weights, importance, &mut row);
    row
}

/// Compares one row, quantized and back; returns its blocks. Where the scalar one has a fault, so
/// must the other, at the same block: the sign of a NaN depends on the processor.
fn compare(
    isa: Isa,
    codec: &Codec,
    weights: &[f32],
    importance: Option<&[f32]>,
    context: &str,
) -> usize {
    let (plain, found) = (
        quantized(Isa::SCALAR, codec, weights, importance),
        quantized(isa, codec, weights, importance),
    );
    match (codec.first_fault(&plain), codec.first_fault(&found)) {
        (None, None) => assert!(
            plain == found,
            "{context}: {} differs from scalar",
            isa.name()
        ),
        (expected, fault) => {
            assert_eq!(
                fault.map(|f| f.0),
                expected.map(|f| f.0),
                "{context}: faults of {}",
                isa.name()
            )
        }
    }
    let (mut expected, mut back) = (vec![0.0; weights.len()], vec![0.0; weights.len()]);
    codec.dequantize_row_with(Isa::SCALAR, &plain, &mut expected);
    codec.dequantize_row_with(isa, &plain, &mut back);
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    assert!(
        expected.iter().zip(&back).all(same),
        "{context}: {} dequantizes otherwise than scalar",
        isa.name()
    );
    weights.len() / codec.ggml_type.block_len()
}

#[test]
fn instruction_sets_produce_identical_bytes() {
    let wanted: usize =
        std::env::var("QUANTIER_BLOCKS").map_or(4_000, |n| n.parse().expect("a number"));
    let types = std::env::var("QUANTIER_TYPES")
        .unwrap_or_default()
        .to_lowercase();
    let is_wanted = |codec: &&Codec| {
        types.is_empty()
            || types
                .split(',')
                .any(|t| t == codec.ggml_type.name().to_lowercase())
    };
    let others = &Isa::available()[1..];
    println!(
        "scalar against {}",
        others
            .iter()
            .map(|isa| isa.name())
            .collect::<Vec<_>>()
            .join(", ")
    );
    for codec in Codec::all().iter().filter(is_wanted) {
        let mut compared = 0;
        for seed in 0.. {
            let row_len = codec.ggml_type.block_len().max(32)
                * BLOCKS_PER_ROW[seed as usize % BLOCKS_PER_ROW.len()];
            for kind in Weights::ALL {
                for importance_kind in Importance::ALL {
                    if codec.needs_importance && importance_kind == Importance::None {
                        continue;
                    }
                    let mut rng = Rng::new(seed);
                    let mut weights = vec![0.0; row_len];
                    kind.fill(&mut rng, &mut weights);
                    let importance = importance_kind.make(&mut rng, row_len);
                    let context = format!(
                        "{}: {kind:?} weights, {importance_kind:?} importance, seed {seed}",
                        codec.ggml_type
                    );
                    for isa in others {
                        compared += compare(*isa, codec, &weights, importance.as_deref(), &context);
                    }
                }
            }
            if compared >= wanted || others.is_empty() {
                break;
            }
        }
        println!(
            "{:8} {compared:9} blocks compared, 0 different",
            codec.ggml_type
        );
    }
}
