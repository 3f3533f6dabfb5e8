//! Properties of all block formats, for any finite weights.

use proptest::prelude::*;
use quantier_blocks::Codec;
use quantier_blocks::types::GgmlType;

/// Any finite f32, uniform over its bits: every magnitude is equally likely.
fn finite() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(|bits| {
        let x = f32::from_bits(bits);
        if x.is_finite() {
            x
        } else {
            f32::from_bits(bits & 0x807f_ffff)
        }
    })
}

/// Two blocks of the largest kind.
const LEN: usize = 512;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_finite_row_goes_there_and_back(
        weights in prop::collection::vec(finite(), LEN),
        importance in prop::collection::vec(finite().prop_map(f32::abs), LEN),
    ) {
        for codec in Codec::all() {
            let t = codec.ggml_type;
            let mut row = vec![0; t.row_bytes(LEN as u64).unwrap() as usize];
            let mut back = vec![0.0; LEN];
            for importance in [None, Some(importance.as_slice())] {
                if importance.is_some() || !codec.needs_importance {
                    codec.quantize_row(&weights, importance, &mut row);
                    codec.first_fault(&row);
                    codec.dequantize_row(&row, &mut back);
                }
            }
        }
    }

    #[test]
    fn any_bytes_dequantize(bytes in prop::collection::vec(any::<u8>(), 600)) {
        for codec in Codec::all() {
            let t = codec.ggml_type;
            let blocks = bytes.len() / t.block_bytes();
            let mut weights = vec![0.0; blocks * t.block_len()];
            codec.first_fault(&bytes);
            codec.dequantize_row(&bytes[..blocks * t.block_bytes()], &mut weights);
        }
    }

    /// Half a step for rounding a weight, and 127 steps times half a unit in the last place of an
    /// f16 for rounding the scale.
    #[test]
    fn q8_0_errors_are_below_its_step(weights in prop::collection::vec(-100.0f32..100.0, 32)) {
        let codec = Codec::of(GgmlType::Q8_0).unwrap();
        let mut block = vec![0; GgmlType::Q8_0.block_bytes()];
        codec.quantize_row(&weights, None, &mut block);
        let mut back = vec![0.0; weights.len()];
        codec.dequantize_row(&block, &mut back);
        let step = weights.iter().fold(0.0f32, |amax, w| amax.max(w.abs())) / 127.0;
        for (w, b) in weights.iter().zip(&back) {
            prop_assert!((w - b).abs() <= step * (0.5 + 127.0 / 2048.0 + 1.0e-3), "{w} became {b}, step {step}");
        }
    }
}
